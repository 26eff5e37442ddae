"""Learners that count see the training sequences of a run, no others, and are measured as a model is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_grammars import random_grammar
from small_runs import tiny
from torch import Tensor

from RLM_clean import init, measures, plots
from RLM_clean.analysis import baselines
from RLM_clean.config import Config
from RLM_clean.datasets import RHM, RLM
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
    with pytest.raises(ValueError, match='constant=0 is out of range: use a finite number above 0'):
        records(tiny(), [1], constant=0)
    with pytest.raises(ValueError, match=r'steps=\[2, 1\] are not in order'):
        records(tiny(), [2, 1])
    with pytest.raises(ValueError, match="objective='all' has several targets"):
        records(tiny(model='transformer_clm', objective='all'), [1])
    with pytest.raises(ValueError, match=r'k=7 makes a table of 16\^8 counts: use a smaller window'):
        records(tiny(num_features=16, num_layers=3), [1], k=7)
    with pytest.raises(ValueError, match="regime='population' draws no sequences to count: use learning_curve"):
        records(tiny(regime='population', num_features=4), [1])


# ---------------------------------------------------------------------- any learner


class Spy:
    """A learner that keeps what it is given, and predicts uniformly."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def fit(self, sequences: Tensor, v: int) -> baselines.Predictor:
        self.given.append(sequences.clone())
        return lambda contexts: torch.full((len(contexts), v), 1 / v, dtype=torch.float64)


def fed(config: Config, steps: int) -> Tensor:
    """The sequences of the batches of a run up to a step, inputs and targets side by side."""
    feed = BatchFeed(init.init_data(config), config, torch.device('cpu'))
    found = []
    for step in range(steps):
        inputs, targets = feed(step)
        found.append(torch.cat((inputs.flatten(0, -2), targets.reshape(-1, 1)), 1))
    return torch.cat(found)


def language(config: Config) -> tuple[Any, measures.Reference]:
    grammar = init.init_data(config)
    return grammar, measures.reference(grammar, config.context_size, config.objective)


@pytest.mark.parametrize('kind', KINDS)
def test_a_learner_gets_the_sequences_that_the_run_has_seen(kind: str) -> None:
    """Bit for bit, in their order; those of an offline run once."""
    config, spy = tiny(**KINDS[kind]), Spy()
    grammar, reference = language(config)
    baselines.learner_records(grammar, reference, config, spy, [0, 1, 5, 24])
    sequences, per_step = fed(config, 24), config.batch_size * config.accumulation
    if config.regime == 'offline':
        sequences = sequences[: config.train_size]
        assert len(sequences.unique(dim=0)) > 10
    for step, given in zip([0, 1, 5, 24], spy.given, strict=True):
        assert torch.equal(given, sequences[: step * per_step])


@pytest.mark.parametrize('regime', ['online', 'offline'])
def test_a_training_set_is_that_of_the_run_of_the_same_size(regime: str) -> None:
    """An epoch of an offline run with train_size=P holds the same P sequences, shuffled; an online run sees them."""
    spy = Spy()
    config = tiny(num_layers=3, regime='online')
    grammar, reference = language(config)
    baselines.learning_curve(grammar, reference, spy, [64, 16, 0])
    for size, given in zip([64, 16, 0], spy.given, strict=True):
        assert given.shape == (size, 8)
        if regime == 'online':
            assert size == 0 or torch.equal(given, fed(config, size // 8))
        elif size:
            epoch = fed(tiny(num_layers=3, regime='offline', train_size=size), size // 8)
            assert sorted(epoch.tolist()) == sorted(given.tolist())


@pytest.mark.parametrize('kind', KINDS)
def test_a_table_in_sorted_order_is_the_dense_table(kind: str) -> None:
    config, steps = tiny(**KINDS[kind]), [0, 1, 5, 24]
    grammar, reference = language(config)
    dense = baselines.ngram_records(grammar, reference, config, steps)
    found = baselines.learner_records(grammar, reference, config, baselines.AddConstant(1), steps)
    for record, expected in zip(found, dense, strict=True):
        assert record == pytest.approx(expected, abs=1e-12)


def test_loss_and_excess_are_expectations_over_the_exact_posterior() -> None:
    """A uniform predictor of v symbols loses ln v in every context; its excess is ln v less the floor."""
    config = tiny(num_layers=3)
    grammar, reference = language(config)
    (record,) = baselines.learning_curve(grammar, reference, Spy(), [10])
    assert record.keys() == {'P', 'testloss', 'excess'} and record['P'] == 10
    assert record['testloss'] == pytest.approx(np.log(8), abs=1e-12)
    assert record['excess'] == pytest.approx(np.log(8) - reference.floor()[0], abs=1e-12)


def test_every_learner_learns_with_the_number_of_sequences() -> None:
    """On all contexts of a tree of four tokens: the one that knows the tree needs the fewest."""
    grammar = random_grammar(3, 2, seed=3, shared=True)
    reference = measures.reference(grammar)
    learners: dict[str, baselines.Learner] = {
        'constant': baselines.AddConstant(), 'empirical': baselines.Empirical(),
        'Witten-Bell': baselines.WittenBell(), 'Kneser-Ney': baselines.KneserNey(),
        'tree': baselines.KnownTree(max_iterations=100),
    }  # fmt: skip
    ends = {}
    for name, learner in learners.items():
        curve = [r['excess'] for r in baselines.learning_curve(grammar, reference, learner, [10, 300, 10_000])]
        assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0] / 10
        ends[name] = curve[-1]
    assert min(ends, key=lambda name: ends[name]) == 'tree'


def test_the_records_of_a_learner_are_drawn_beside_those_of_a_run() -> None:
    config, steps = tiny(num_layers=2), [1, 5, 24]
    grammar, reference = language(config)
    run = [{'t': step, 'excess': 1 / step} for step in steps]
    counts = baselines.learner_records(grammar, reference, config, baselines.KneserNey(), steps)
    axes = plots.excess_curve(counts, plots.excess_curve(run, label='model'), label='counts')
    drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()}
    assert drawn['counts'] == [record['excess'] for record in counts]


def test_contexts_of_another_task_are_an_error() -> None:
    grammar = random_grammar(3, 2, seed=1)
    for objective, message in (('all', 'a reference with several targets'), ('root', 'contexts of all 4 tokens have')):
        with pytest.raises(ValueError, match=message):
            baselines.learning_curve(grammar, measures.reference(grammar, objective=objective), Spy(), [1])
    with pytest.raises(ValueError, match=r'sizes=\[1, -1\] are not numbers of sequences: use 0 or more'):
        baselines.learning_curve(grammar, measures.reference(grammar), Spy(), [1, -1])
    sizes: list[Any] = [2.5]
    with pytest.raises(ValueError, match=r'sizes=\[2.5\] are not numbers of sequences'):
        baselines.learning_curve(grammar, measures.reference(grammar), Spy(), sizes)
    two = measures.reference(grammar, context_size=1)
    with pytest.raises(ValueError, match='contexts of 1 of 3 tokens do not fit KnownTree'):
        baselines.learning_curve(grammar, two, baselines.KnownTree(), [1])
    config = tiny(model='transformer_bert', objective='masked')
    with pytest.raises(ValueError, match="objective='masked' does not predict the next token"):
        baselines.learner_records(*language(config), config, Spy(), [1])
    with pytest.raises(ValueError, match=r'steps=\[-1\] are not steps of a run: use 0 or more'):
        baselines.learner_records(*language(tiny()), tiny(), Spy(), [-1])


def test_the_learner_that_knows_the_tree_knows_the_law_of_the_root() -> None:
    """With `KnownTree` as it is: the excess is that of a learner that is told the law; its own prior is left alone."""
    config, law = tiny(num_layers=2, num_features=3), [0.9, 0.1, 0.0]
    grammar = RLM(3, 2, seed_rules=3, probs=law)
    reference = measures.reference(grammar)
    options: dict[str, Any] = {'starts': 1, 'max_iterations': 30}
    uniform, own = torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5])

    def measured(learner: baselines.KnownTree) -> tuple[list[float], list[float]]:
        curve = baselines.learning_curve(grammar, reference, learner, [50, 200])
        records = baselines.learner_records(grammar, reference, config, learner, [5, 20])
        return [r['excess'] for r in curve], [r['excess'] for r in records]

    def direct(prior: Tensor, size: int) -> float:
        fit = baselines.KnownTree(prior=prior, **options).fit(baselines.training_set(grammar, size, 4), 3)
        return baselines.evaluate(fit, reference)[1]

    curve, records = measured(baselines.KnownTree(**options))
    assert curve == [direct(grammar.prior, size) for size in (50, 200)]
    assert records == [direct(grammar.prior, size * config.batch_size) for size in (5, 20)]
    assert curve != [direct(uniform, size) for size in (50, 200)]
    assert measured(baselines.KnownTree(prior=own, **options))[0] == [direct(own, size) for size in (50, 200)]


def test_a_learner_that_knows_the_tree_is_refused_for_a_filtered_language() -> None:
    grammar = RLM(4, 2).filtered(1)
    with pytest.raises(ValueError, match='KnownTree does not fit a filtered language'):
        baselines.learning_curve(grammar, measures.reference(grammar), baselines.KnownTree(), [10])


def test_shared_rules_are_refused_where_levels_have_rules_of_their_own() -> None:
    grammar, config = RHM(4, 2, 2), tiny(num_layers=2, num_features=4, dataset='rhm', num_synonyms=2)
    reference = measures.reference(grammar)
    for call in (
        lambda: baselines.learning_curve(grammar, reference, baselines.KnownTree(), [10]),
        lambda: baselines.learner_records(grammar, reference, config, baselines.KnownTree(), [1]),
    ):
        with pytest.raises(ValueError, match=r'KnownTree\(shared=True\) does not fit .*: use shared=False'):
            call()
    few = baselines.KnownTree(shared=False, starts=1, max_iterations=5)
    assert baselines.learning_curve(grammar, reference, few, [10])[0]['excess'] > 0
    one = RHM(4, 2, 1)  # one level shares its rules with itself
    assert baselines.learning_curve(one, measures.reference(one), baselines.KnownTree(), [10])[0]['excess'] > 0


@pytest.mark.parametrize('constant', [math.inf, math.nan])
def test_a_constant_that_is_not_finite_is_refused(constant: float) -> None:
    with pytest.raises(ValueError, match=f'constant={constant} is out of range: use a finite number above 0'):
        records(tiny(), [1], constant=constant)
