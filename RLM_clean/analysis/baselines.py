"""Learners that count: what a table of n-grams predicts after the same training sequences as a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from RLM_clean.analysis import counting
from RLM_clean.config import Config
from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.entropies import mean_and_error
from RLM_clean.measures import Reference, kl_divergence
from RLM_clean.runs.files import Record

# Sequences that are drawn at a time.
_CHUNK = 2**18


def ngram_records(
    grammar: TreeGrammar,
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
    above 0, steps that are not in order, a table that does not fit in memory, and a run that predicts several tokens.
    """
    size, v = reference.inputs.shape[1], grammar.v
    posteriors = reference.posteriors
    if config.objective not in ('last', 'all'):
        raise ValueError(f"objective={config.objective!r} does not predict the next token: count for one with 'last'")
    if posteriors.ndim == 3 and posteriors.shape[1] > 1:
        raise ValueError("objective='all' has several targets: count for a run with objective='last'")
    if not 1 <= k <= size:
        raise ValueError(f'k={k} is not a valid window: use 1 to {size}')
    if not constant > 0:
        raise ValueError(f'constant={constant} is out of range: use a number above 0')
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
        for leaves in _training_sequences(grammar, seen, upto, k + 1):
            counts += counting.count_joint(leaves, range(k + 1), v)
        seen = upto
        log_q = (counts / counts.sum(-1, keepdim=True)).log()[contexts]
        excess, _ = mean_and_error(kl_divergence(posteriors, log_q), reference.weights)
        records.append({'t': step, 'testloss': floor + excess, 'excess': excess})
    return records


def sequences_seen(config: Config, step: int) -> int:
    """The number of different training sequences that a run has seen after `step` steps."""
    drawn = step * config.batch_size * config.accumulation
    return drawn if config.regime == 'online' else min(drawn, config.train_size)


def _training_sequences(grammar: TreeGrammar, first: int, stop: int, width: int) -> Iterator[Tensor]:
    """The last `width` tokens of the training sequences first..stop-1, in the order of a run, in chunks."""
    while first < stop:
        count = min(_CHUNK, stop - first)
        inputs, targets = grammar.batches(first, count, 1, last=width)
        yield torch.cat((inputs[:, 0], targets), 1).cpu()
        first += count
