"""The table of n-grams is that of a plain loop over the same training sequences, and learns with their number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_runs import tiny

from RLM_clean import init, measures
from RLM_clean.analysis import baselines
from RLM_clean.config import Config
from RLM_clean.training.batches import BatchFeed

KINDS: dict[str, dict[str, Any]] = {
    'one level': {'num_layers': 1},
    'a window of one token': {'num_layers': 3, 'num_tokens': 2},
    'all targets of one token': {'num_layers': 1, 'model': 'transformer_clm', 'objective': 'all'},
    'accumulated batches': {'num_layers': 1, 'accumulation': 3},
    'offline': {'num_layers': 1, 'regime': 'offline', 'train_size': 20},
    'offline with accumulation': {'num_layers': 2, 'num_tokens': 2, 'regime': 'offline', 'train_size': 50,
                                  'accumulation': 2},
}  # fmt: skip


def records(config: Config, steps: list[int], **options: Any) -> list[dict[str, Any]]:
    grammar = init.init_data(config)
    reference = measures.reference(grammar, config.context_size, config.objective)
    return baselines.ngram_records(grammar, reference, config, steps, **options)


@pytest.mark.parametrize('kind', KINDS)
def test_the_counts_are_those_of_the_batches_that_the_run_trains_on(kind: str) -> None:
    """Batches from the feed of the loop, counted by numpy; the excess is summed by numpy over all contexts."""
    config = tiny(**KINDS[kind])
    steps = [0, 1, 5, 24]
    found = records(config, steps)
    grammar = init.init_data(config)
    reference = measures.reference(grammar, config.context_size, config.objective)
    v, feed = grammar.v, BatchFeed(grammar, config, torch.device('cpu'))
    per_step = config.batch_size * config.accumulation
    pairs = []
    for step in range(24):
        inputs, targets = feed(step)
        pairs += list(zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True))
    assert len(pairs) == 24 * per_step
    weights = np.full(len(reference.inputs), 1 / len(reference.inputs))
    if reference.weights is not None:
        weights = reference.weights.numpy()
    for step, record in zip(steps, found, strict=True):
        seen = pairs[: step * per_step]
        if config.regime == 'offline':
            seen = seen[: config.train_size]
        counts = np.full((v, v), 0.1)
        for context, target in seen:
            counts[context, target] += 1
        q = counts / counts.sum(1, keepdims=True)
        excess, loss = 0.0, 0.0
        for weight, context, p in zip(weights, reference.inputs[:, 0], reference.posteriors.view(-1, v), strict=True):
            excess += weight * float((p.numpy() * np.log(p.numpy() / q[context])).sum())
            loss -= weight * float((p.numpy() * np.log(q[context])).sum())
        assert record['t'] == step
        assert record['excess'] == pytest.approx(excess, abs=1e-12)
        assert record['testloss'] == pytest.approx(loss, abs=1e-12)


def test_the_excess_of_pairs_goes_to_zero_with_more_sequences() -> None:
    """The excess of counts is about v (v - 1) / 2N, here 4e-5 at the last step; the seeds are fixed."""
    config = tiny(num_layers=1, batch_size=64, max_iters=10**6)
    excess = [record['excess'] for record in records(config, [0, 10, 100, 1000, 10000])]
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 1e-4 and excess[0] > 0.3


def test_longer_windows_count_more_tokens_and_learn_more_of_the_tree() -> None:
    """From k tokens an excess cannot fall below H_k - H_3, and with many sequences it comes close to that."""
    config = tiny(num_features=4, batch_size=64, max_iters=10**6)
    floors = measures.prepare_language(init.init_data(config), 3).floors
    for k in (1, 3):
        (record,) = records(config, [4000], k=k)
        gap = floors[k][0] - floors[3][0]
        assert gap < record['excess'] < gap + 1e-3
    assert floors[1][0] - floors[3][0] > 0.01  # otherwise the test tells no windows apart


def test_a_sequence_of_the_training_set_counts_once() -> None:
    config = tiny(num_layers=1, regime='offline', train_size=64)
    first, later = records(config, [8, 24])
    assert first['excess'] == later['excess']
    assert baselines.sequences_seen(config, 7) == 56 and baselines.sequences_seen(config, 100) == 64
    assert baselines.sequences_seen(tiny(num_layers=1, accumulation=2), 100) == 1600


def test_what_cannot_be_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match='k=4 is not a valid window: use 1 to 3'):
        records(tiny(), [1], k=4)
    with pytest.raises(ValueError, match='constant=0 is out of range: use a number above 0'):
        records(tiny(), [1], constant=0)
    with pytest.raises(ValueError, match=r'steps=\[2, 1\] are not in order'):
        records(tiny(), [2, 1])
    with pytest.raises(ValueError, match="objective='all' has several targets"):
        records(tiny(model='transformer_clm', objective='all'), [1])
    with pytest.raises(ValueError, match=r'k=7 makes a table of 16\^8 counts: use a smaller window'):
        records(tiny(num_features=16, num_layers=3), [1], k=7)
