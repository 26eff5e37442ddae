"""When a run has learnt a level of the tree: the criteria of thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from RLM_clean import measures
from RLM_clean.config import Config, format_value
from RLM_clean.runs.run import Run, load_run
from RLM_clean.sweep.results import Result

CRITERIA = ('step', 'divergence', 'probe')
# A level that lowers the floor by less (nats) cannot be seen to be learnt.
_LEAST_STEP = 1e-3
# And an accuracy that can rise by less.
_LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Criterion:
    """What it takes to have learnt: the value of a run is at most `bound`.

    With H_k the floors of a run's own language, windows `below = 2^(l-1) - 1` and `whole = 2^l - 1` of level l, which
    are those without and with the level, and its best model, that of the least excess:

        step        (loss - H_whole) / (H_below - H_whole): 1 for the best predictor that does not know the level, 0 for
                    the best that does; the bound is a fraction, 1/2 by default
        divergence  E KL(P_whole || model) - E KL(P_below || model) in nats, P_k the best predictor from k tokens: below
                    the bound 0 the model is nearer to the one that knows the level
        excess      the least excess, in nats, without a level

        probe       1 - (a - a0) / (a* - a0): a is the accuracy with which a linear probe of the best layer reads the
                    ancestor l levels above x_n, at the checkpoint of the least excess, a0 that of the model at step 0,
                    a* that of exact inference; the bound is a fraction, 1/2 by default. See `analysis.probes`

    or what a function of the opened run says.
    """

    name: str
    bound: float
    level: int | None = None
    function: Callable[[Run], float] | None = None

    def __str__(self) -> str:
        """The name for files: level2, level2_divergence, excess0.1, ..."""
        if self.level is None:
            return f'{self.name}{format_value(self.bound)}'
        default = self.name == 'step' and self.bound == 0.5
        return f'level{self.level}' + ('' if default else f'_{self.name}{format_value(self.bound)}')

    @property
    def axis(self) -> str:
        """What its values are, for a figure."""
        level = self.level or 1
        return {
            'step': f'(loss - floor with level {self.level}) / step',
            'divergence': f'divergence with {2**level - 1} tokens minus that with {2 ** (level - 1) - 1} (nats)',
            'excess': 'least excess (nats)',
            'probe': f'what a probe of level {self.level} lacks',
        }.get(self.name, self.name)

    @property
    def needs_checkpoints(self) -> bool:
        """Whether it looks at models of other steps than the best."""
        return self.name == 'probe' or self.function is not None

    def check(self, config: Config) -> None:
        """Raises ValueError for a run that cannot meet it."""
        if self.level is None:
            return
        if config.objective != 'last':
            raise ValueError(
                f'level={self.level} is for objective=last, not {config.objective!r}: use --excess, or objective=last'
            )
        if self.level < 1 or 2**self.level > config.window:
            most = int(math.log2(config.window))
            raise ValueError(f'level={self.level} is not in a tree of {config.window} tokens: use 1 to {most}')
        if self.name == 'divergence' and config.window < 2**config.num_layers:
            raise ValueError(
                f'num_tokens={config.window} does not fit criterion=divergence, which asks about whole contexts: '
                'leave it out, or use step'
            )

    def value(self, result: Result) -> float:
        """The value of a run that is done. Raises ValueError where its language has nothing to learn on the level."""
        excess = result.best['excess']
        if self.function is not None:
            return float(self.function(load_run(result.run.config.outname)))
        if self.level is None:
            return excess
        below, whole = 2 ** (self.level - 1) - 1, 2**self.level - 1
        height = self._floor(result, below) - self._floor(result, whole)
        if height < _LEAST_STEP:
            raise ValueError(
                f'level {self.level} of {result.run.name} lowers the floor by {height:.2g} nats only: use another level'
            )
        if self.name == 'divergence':
            run = load_run(result.run.config.outname)
            far, near = (
                measures.divergence_from_window(run.model('best'), run.rlm, k, logits=run.logits)[0]
                for k in (below, whole)
            )
            return near - far
        if self.name == 'probe':
            return _probe_gap(load_run(result.run.config.outname), self.level)
        return (result.floors['entropy'] + excess - self._floor(result, whole)) / height

    def _floor(self, result: Result, k: int) -> float:
        return result.floors['marginal'] if k == 0 else result.floors[f'floor_{k}']


def make_criterion(
    level: int | None,
    criterion: str | Callable[[Run], float] = 'step',
    fraction: float | None = None,
    excess: float | None = None,
) -> Criterion:
    """The criterion of a level, or of an excess in nats. Raises ValueError with one sentence for what is none."""
    if callable(criterion):
        for name, value in (('level', level), ('excess', excess)):
            if value is not None:
                raise ValueError(f'{name}={value:g} is not for a criterion that is a function: leave it out')
        return Criterion(getattr(criterion, '__name__', 'own').strip('<>'), 0.5 if fraction is None else fraction,
                         None, criterion)  # fmt: skip
    if criterion not in CRITERIA:
        raise ValueError(f'criterion={criterion!r} is unknown: use {" or ".join(CRITERIA)}')
    if (level is None) == (excess is None):
        given = 'both of them are given' if level is not None else 'neither level nor excess is given'
        raise ValueError(f'{given}: give a level, as in --level 2, or an excess in nats, as in --excess 0.1')
    if excess is not None:
        if not 0 < excess < math.inf:
            raise ValueError(f'excess={excess:g} is out of range: use a finite number above 0')
        if fraction is not None or criterion != 'step':
            raise ValueError(f'excess={excess:g} has no fraction and no other criterion: leave them out')
        return Criterion('excess', excess)
    if criterion == 'divergence':
        if fraction is not None:
            raise ValueError(f'fraction={fraction:g} is not for criterion=divergence: leave it out')
        return Criterion('divergence', 0.0, level)
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f'fraction={fraction:g} is out of range: use a number between 0 and 1')
    return Criterion(criterion, 0.5 if fraction is None else fraction, level)


def _probe_gap(run: Run, level: int) -> float:
    """How much of what a probe could gain by training it has not, see `Criterion`."""
    from RLM_clean.analysis.probes import probe_ancestors

    kept = [record for record in run.dynamics if record['t'] in run.steps]
    probes = probe_ancestors(run, min(kept, key=lambda record: record['excess'])['t'])
    ancestor = run.config.num_layers - level
    trained, before = (probes.accuracy[condition][:, ancestor].max().item() for condition in ('trained', 'untrained'))
    best = probes.best_accuracy[ancestor].item()
    if best - before < _LEAST_GAIN:
        raise ValueError(
            f'a probe of the ancestor {level} levels up gains {best - before:.2g} at most in {run.config.outname}: '
            'use another level'
        )
    return 1 - (trained - before) / (best - before)
