"""Filtering: a transformer on masked tokens follows belief propagation level by level. `python -m examples.filtering`.

Trains bidirectional transformers to predict hidden tokens of the unambiguous grammar of Garnier-Brun, Mezard, Moscato
and Saglietti (arXiv:2408.15138; v = 4, sigma = 1), on trees of three levels with two of the eight tokens hidden. At
each checkpoint a model is compared with BP_k, the best predictor that knows the correlations within sub-trees of 2^k
tokens alone (their k counts the levels that are removed: it is L - k). Prints for each k the loss of BP_k, the
divergence of the model from BP_k at its end, and the first step at which the model is closest to BP_k or to one of more
levels: means over seeds of the grammar and of the model, with standard errors. Draws the curves of the first run.

After an interruption, the same command continues. `--deep` has trees of four levels and one hidden token, as the paper;
its runs take longer, and end before the last level is learnt. `--quick` trains small models on trees of two levels, in
seconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples import make_parser, places, trained
from RLM_clean import plots
from RLM_clean.analysis import filtering, predictions
from RLM_clean.exact.entropies import Estimate
from RLM_clean.plots import style
from RLM_clean.runs import load_run
from RLM_clean.runs.run import Run

OPTIONS: dict[str, Any] = {
    'dataset': 'unambiguous', 'num_features': 4, 'num_layers': 3, 'objective': 'masked', 'mask_rate': 1 / 4,
    'model': 'transformer_bert', 'depth': 4, 'embedding_dim': 64, 'num_heads': 4, 'optim': 'adam', 'lr': 2e-3,
    'batch_size': 128, 'max_iters': 8192, 'decay_time': 8192, 'warmup_time': 200, 'save_freq': 2,
}  # fmt: skip
# What the paper has: four levels, and one hidden token.
DEEP: dict[str, Any] = {'num_layers': 4, 'mask_rate': 1 / 16, 'max_iters': 16384, 'decay_time': 16384}
QUICK: dict[str, Any] = {
    'num_layers': 2, 'mask_rate': 0.25, 'depth': 2, 'embedding_dim': 16, 'num_heads': 2, 'batch_size': 32,
    'max_iters': 512, 'decay_time': 512, 'warmup_time': 20, 'lr': 1e-2, 'save_freq': 1,
}  # fmt: skip

Divergences = dict[int, list[Estimate]]


class Row(NamedTuple):
    """What is measured of a run and of BP_k: losses and divergences in nats.

    `loss` is that of BP_k, `excess` its divergence from the best predictor, `divergence` that of the model from BP_k at
    the end of the run, and `step` the first at which the model is closest to BP_k or to one of more levels.
    """

    loss: float
    excess: float
    divergence: float
    step: float


def closest(divergences: Divergences) -> list[int]:
    """The k of the smallest divergence at each step."""
    number = len(next(iter(divergences.values())))
    return [min(divergences, key=lambda k: divergences[k][i][0]) for i in range(number)]


def first_steps(steps: Sequence[int], divergences: Divergences) -> dict[int, float]:
    """For each k the first step at which the smallest divergence is that of k or more; infinite if there is none."""
    nearest = closest(divergences)
    return {
        k: next((float(step) for step, j in zip(steps, nearest, strict=True) if j >= k), math.inf) for k in divergences
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the table and draws the figure."""
    parser = make_parser('filtering', __doc__, deep='trees of four levels')
    parser.add_argument('--seeds', type=int, default=3, help='runs with other grammars and models')
    parser.add_argument('--threads', default='auto', help='threads of the CPU')
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f'--seeds={options.seeds} trains no run: use 1 or more')
    folder, picture = places('filtering', options)
    changes = DEEP if options.deep else QUICK if options.quick else {}
    values = {**OPTIONS, **changes, 'threads': options.threads}

    found = []
    for seed in range(1, options.seeds + 1):
        run = trained(folder / f'seed{seed}', seed_rules=seed, seed_model=seed, **values)
        found.append(measured(run))
        first = ', '.join(f'{row.step:.0f}' if math.isfinite(row.step) else 'never' for row in found[-1])
        print(f'seed {seed}: closest to BP_0, BP_1, ... from step {first}')
    print('\n'.join(table(found)))
    _draw(folder / 'seed1', picture)
    print(f'the figure is {picture}')


def measured(run: Run) -> list[Row]:
    """What is measured of a run, a row for each k = 0, ..., L."""
    steps = predictions.model_steps(run)
    divergences = filtering.filtered_divergences(run, steps)
    first, floors = first_steps(steps, divergences), filtering.filtered_floors(run)
    return [Row(floors[k][0][0], floors[k][1][0], curve[-1][0], first[k]) for k, curve in divergences.items()]


def table(found: Sequence[Sequence[Row]]) -> list[str]:
    """A line for each k: the means over runs of the columns of their rows, with standard errors."""
    lines = [f'k  {"loss of BP_k":18} {"its excess":18} {"model from BP_k":18} first step closest to BP_k or beyond']
    for k, rows in enumerate(zip(*found, strict=True)):
        columns = [_mean([getattr(row, name) for row in rows], 4) for name in ('loss', 'excess', 'divergence')]
        lines.append(f'{k}  {columns[0]:18} {columns[1]:18} {columns[2]:18} {_mean([row.step for row in rows], 0)}')
    return [*lines, f'nats; with several runs means and standard errors, here of {len(found)}']


def _mean(values: Sequence[float], digits: int) -> str:
    reached = sum(map(math.isfinite, values))
    if reached < len(values):
        return f'reached in {reached} of {len(values)} runs'
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} +- {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}' if len(values) > 1 else mean


def _draw(outname: Path, picture: Path) -> None:
    """The learning curve of a run with the losses of BP_k as lines, and its divergences from BP_k."""
    run = load_run(outname)
    left, right = plots.panels(1, 2, size=(11, 4.4))
    floors = {k: loss for k, (loss, _) in filtering.filtered_floors(run).items()}
    c = run.config
    title = f'{c.dataset}, v = {c.num_features}, L = {c.num_layers}, sigma = {c.sigma:g}'
    plots.learning_curve(run.dynamics, floors, floors[max(floors)][0], title, left, seen='BP_k')
    steps = predictions.model_steps(run)
    plots.filtered_curves(steps, filtering.filtered_divergences(run, steps), right)
    right.set_title('divergence from BP_k', loc='left')
    style.save(left.figure, picture)


if __name__ == '__main__':
    main()
