"""Learners that count: what they predict of the last token after the same training sequences as a model.

A learner has a method `fit(sequences, v)`, which returns its predictor: a function of contexts `(B, T)` that gives the
probabilities `q(x | context)` of the next token, `(B, v)` float64. Those of the library count n-grams (`AddConstant`,
`Empirical`, `WittenBell`, `KneserNey`, in analysis/smoothing.py), or know the tree and estimate its rules (`KnownTree`,
in analysis/expectation_maximisation.py). `learning_curve` measures one on training sets of several sizes,
`learner_records` at the steps of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from RLM_clean.analysis import counting
from RLM_clean.analysis.expectation_maximisation import KnownTree
from RLM_clean.analysis.smoothing import AddConstant, Empirical, KneserNey, WittenBell
from RLM_clean.config import Config
from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.exact.entropies import mean_and_error
from RLM_clean.measures import Reference, kl_divergence
from RLM_clean.runs.files import Record

__all__ = [
    'AddConstant', 'Empirical', 'KneserNey', 'KnownTree', 'Learner', 'Predictor', 'WittenBell', 'evaluate',
    'learner_records', 'learning_curve', 'ngram_records', 'sequences_seen', 'training_set',
]  # fmt: skip

Predictor = Callable[[Tensor], Tensor]

# Sequences that are drawn at a time.
_CHUNK = 2**18


class Learner(Protocol):
    """What learns from sequences: `fit` gets P training sequences `(P, m)` int64, whose last token is the target."""

    def fit(self, sequences: Tensor, v: int) -> Predictor:
        """What it predicts after these sequences of a language of v symbols."""
        ...


# ---------------------------------------------------------------------- any learner


def learning_curve(language: TreeGrammar, reference: Reference, learner: Learner, sizes: Sequence[int]) -> list[Record]:
    """How good a learner is after training sets of several sizes P: for each {'P', 'testloss', 'excess'}, in nats.

    A training set holds the first P sequences of the training stream, those on which a run with `regime='offline'` and
    `train_size=P` is trained, and those that an online run has seen when it has drawn P. Of each the learner gets the
    tokens that `reference` has, and the target. Loss and excess are those of `evaluate`.

        baselines.learning_curve(run.rlm, run.reference, baselines.KneserNey(), [100, 1000, 10000])

    A `KnownTree` without a `prior` gets that of the language. Raises ValueError for sizes that are not whole or below
    0, a reference of another task than the prediction of the last token, a `KnownTree(shared=True)` where levels have
    rules of their own, and what the learner refuses.
    """
    width, learner = _width(language, reference, learner), _informed(learner, language)
    if any(not isinstance(size, Integral) or size < 0 for size in sizes):
        raise ValueError(f'sizes={list(sizes)} are not numbers of sequences: use 0 or more')
    sequences = training_set(language, max(sizes, default=0), width)
    records = []
    for size in sizes:
        loss, excess = evaluate(learner.fit(sequences[:size], language.v), reference)
        records.append({'P': size, 'testloss': loss, 'excess': excess})
    return records


def learner_records(
    language: TreeGrammar, reference: Reference, config: Config, learner: Learner, steps: Sequence[int]
) -> list[Record]:
    """How good a learner is after the training sequences that a run has seen at each of `steps`.

    Returns a record for each step, {'t', 'testloss', 'excess'} in nats, which `plots.excess_curve` draws beside those
    of the run. In the offline regime a sequence counts once, however often the run returns to it.

        baselines.learner_records(run.rlm, run.reference, run.config, baselines.WittenBell(), run.steps)

    A `KnownTree` without a `prior` gets that of the language. Raises ValueError for steps below 0, a run that predicts
    several tokens or another one than the last, one in the regime population, a `KnownTree(shared=True)` where levels
    have rules of their own, and what the learner refuses.
    """
    _check_objective(config)
    width, learner = _width(language, reference, learner), _informed(learner, language)
    if any(step < 0 for step in steps):
        raise ValueError(f'steps={list(steps)} are not steps of a run: use 0 or more')
    seen = [sequences_seen(config, step) for step in steps]
    chunks = list(_training_sequences(language, 0, max(seen, default=0), width))
    sequences = torch.cat(chunks) if chunks else torch.empty(0, width, dtype=torch.int64)
    records = []
    for step, size in zip(steps, seen, strict=True):
        loss, excess = evaluate(learner.fit(sequences[:size], language.v), reference)
        records.append({'t': step, 'testloss': loss, 'excess': excess})
    return records


def evaluate(predictor: Predictor, reference: Reference) -> tuple[float, float]:
    """The loss and the excess of a predictor q on the contexts of a reference, in nats.

    The excess is `E KL(P || q)`, P the exact posterior of the target, so no draw of a test sequence adds noise; the
    loss is the floor plus the excess. Both are infinite where q excludes a symbol that is possible.
    """
    q = predictor(reference.inputs.cpu())
    posteriors = reference.posteriors.view(q.shape)
    excess, _ = mean_and_error(kl_divergence(posteriors, q.log()), reference.weights)
    return reference.floor()[0] + excess, excess


def training_set(language: TreeGrammar, size: int, width: int) -> Tensor:
    """The last `width` tokens of the first `size` sequences of the training stream, `(size, width)` int64."""
    return language.sequences(0, size, last=width).cpu()


def _width(language: TreeGrammar, reference: Reference, learner: Learner) -> int:
    """The tokens of a context and its target; ValueError where that is not what the learner learns from."""
    size, posteriors = reference.inputs.shape[1], reference.posteriors
    if posteriors.ndim == 3 and posteriors.shape[1] > 1:
        raise ValueError("a reference with several targets does not fit learners that count: make one for 'last'")
    if size >= 2**language.L:
        raise ValueError(f"contexts of all {size} tokens have another target than the last one: use those of 'last'")
    if isinstance(learner, KnownTree) and size + 1 != 2**language.L:
        whole = 2**language.L - 1
        raise ValueError(f'contexts of {size} of {whole} tokens do not fit KnownTree, which needs whole sequences')
    return size + 1


def _informed(learner: Learner, language: TreeGrammar) -> Learner:
    """A `KnownTree` with what it should know of the language; ValueError where it takes something else for known."""
    if not isinstance(learner, KnownTree):
        return learner
    if isinstance(language, FilteredGrammar):
        raise ValueError('KnownTree does not fit a filtered language, whose heads have no rules: use another learner')
    if learner.shared and len(language.rules) > 1:
        raise ValueError('KnownTree(shared=True) does not fit levels with rules of their own: use shared=False')
    uniform = bool((language.prior == language.prior[0]).all())  # as by default, to the last bit
    return learner if uniform or learner.prior is not None else replace(learner, prior=language.prior)


def _check_objective(config: Config) -> None:
    if config.objective not in ('last', 'all'):
        raise ValueError(f"objective={config.objective!r} does not predict the next token: count for one with 'last'")


# ---------------------------------------------------------------------- a table of n-grams, step by step


def ngram_records(
    language: TreeGrammar,
    reference: Reference,
    config: Config,
    steps: Sequence[int],
    k: int = 1,
    constant: float = 0.1,
) -> list[Record]:
    """How good counts of n-grams are after the training sequences that a run has seen at each of `steps`.

    Returns a record for each step: {'t', 'testloss', 'excess'}, in nats. With N(c, x) the number of the sequences whose
    last k tokens before the target are c and whose target is x, the prediction is

        q(x | c) = (N(c, x) + constant) / (sum_y N(c, y) + v constant)

    (add-constant smoothing: G. J. Lidstone, Trans. Fac. Actuaries 8, 182, 1920). The excess is E KL(P || q) over the
    contexts of `reference`, P the exact posterior of the target, so no draw of a test sequence adds noise; the loss is
    the floor plus the excess. In the offline regime a sequence counts once, however often the run returns to it.

        baselines.ngram_records(run.rlm, run.reference, run.config, run.steps)

    The table has v^(k + 1) counts. Raises ValueError for a k that is not a window of the run, a constant that is not
    finite and above 0, steps that are not in order, a table that does not fit in memory, a run that predicts several
    tokens, and one in the regime population.
    """
    size, v = reference.inputs.shape[1], language.v
    posteriors = reference.posteriors
    _check_objective(config)
    if posteriors.ndim == 3 and posteriors.shape[1] > 1:
        raise ValueError("objective='all' has several targets: count for a run with objective='last'")
    if not 1 <= k <= size:
        raise ValueError(f'k={k} is not a valid window: use 1 to {size}')
    if not 0 < constant < math.inf:
        raise ValueError(f'constant={constant} is out of range: use a finite number above 0')
    if v ** (k + 1) > counting.MAX_TABLE:
        raise ValueError(f'k={k} makes a table of {v}^{k + 1} counts: use a smaller window')
    if list(steps) != sorted(steps) or any(step < 0 for step in steps):
        raise ValueError(f'steps={list(steps)} are not in order: sort them, from 0 on')

    counts = torch.full((v,) * (k + 1), constant, dtype=torch.float64)
    contexts = reference.inputs.cpu()[:, size - k :].unbind(1)
    posteriors = posteriors.view(len(posteriors), v)
    floor, seen, records = reference.floor()[0], 0, []
    for step in steps:
        upto = sequences_seen(config, step)
        for leaves in _training_sequences(language, seen, upto, k + 1):
            counts += counting.count_joint(leaves, range(k + 1), v)
        seen = upto
        log_q = (counts / counts.sum(-1, keepdim=True)).log()[contexts]
        excess, _ = mean_and_error(kl_divergence(posteriors, log_q), reference.weights)
        records.append({'t': step, 'testloss': floor + excess, 'excess': excess})
    return records


def sequences_seen(config: Config, step: int) -> int:
    """The number of different training sequences that a run has seen after `step` steps.

    Raises ValueError for a run in the regime population, which sees none.
    """
    if config.regime == 'population':
        raise ValueError("regime='population' draws no sequences to count: use learning_curve, or an online run")
    drawn = step * config.batch_size * config.accumulation
    return drawn if config.regime == 'online' else min(drawn, config.train_size)


def _training_sequences(language: TreeGrammar, first: int, stop: int, width: int) -> Iterator[Tensor]:
    """The last `width` tokens of the training sequences first..stop-1, in the order of a run, in chunks."""
    while first < stop:
        count = min(_CHUNK, stop - first)
        yield language.leaf_batches(first, count, 1, last=width)[:, 0].cpu()
        first += count
