"""Learners that count n-grams follow their formulas, written again with dictionaries, and learn as theory says."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_grammars import random_grammar
from torch import Tensor

from RLM_clean import measures
from RLM_clean.analysis import baselines
from RLM_clean.analysis.smoothing import AddConstant, Empirical, KneserNey, WittenBell

LEARNERS: dict[str, Any] = {
    'add a constant': AddConstant(),
    'add a constant, k = 1': AddConstant(1, 0.5),
    'empirical': Empirical(),
    'empirical, k = 2': Empirical(2, 0.0),
    'Witten-Bell': WittenBell(),
    'Witten-Bell, k = 0': WittenBell(0),
    'Kneser-Ney': KneserNey(),
    'Kneser-Ney, k = 1': KneserNey(1),
}

Context = tuple[int, ...]
Slow = Callable[[Any, list[Context], int, Context], list[float]]


# ---------------------------------------------------------------------- the formulas, with dictionaries


def table(sequences: list[Context], j: int) -> dict[Context, Counter[int]]:
    """`N(c, x)` for the contexts c of j tokens."""
    found: dict[Context, Counter[int]] = defaultdict(Counter)
    for *before, x in sequences:
        found[tuple(before[len(before) - j :])][x] += 1
    return found


def window(learner: Any, sequences: list[Context]) -> int:
    return len(sequences[0]) - 1 if learner.k is None else learner.k


def add_constant(learner: AddConstant, sequences: list[Context], v: int, c: Context) -> list[float]:
    k, a = window(learner, sequences), learner.constant
    n = table(sequences, k).get(c[len(c) - k :], Counter())
    return [(n[x] + a) / (sum(n.values()) + v * a) for x in range(v)]


def empirical(learner: Empirical, sequences: list[Context], v: int, c: Context) -> list[float]:
    for j in range(window(learner, sequences), -1, -1):
        n = table(sequences, j).get(c[len(c) - j :])
        if n:
            return [(n[x] + learner.weight / v) / (sum(n.values()) + learner.weight) for x in range(v)]
    raise AssertionError('the empty context was seen')


def witten_bell(learner: WittenBell, sequences: list[Context], v: int, c: Context) -> list[float]:
    def q(j: int) -> list[float]:
        lower = q(j - 1) if j else [1 / v] * v
        n = table(sequences, j).get(c[len(c) - j :])
        if not n:
            return lower
        return [(n[x] + len(n) * lower[x]) / (sum(n.values()) + len(n)) for x in range(v)]

    return q(window(learner, sequences))


def kneser_ney(learner: KneserNey, sequences: list[Context], v: int, c: Context) -> list[float]:
    k = window(learner, sequences)

    def counted(j: int) -> dict[Context, Counter[int]]:
        if j == k:
            return table(sequences, k)
        found: dict[Context, Counter[int]] = defaultdict(Counter)
        for longer, after in table(sequences, j + 1).items():
            for x in after:
                found[longer[1:]][x] += 1  # one more token that was seen before (longer[1:], x)
        return found

    def q(j: int) -> list[float]:
        lower = q(j - 1) if j else [1 / v] * v
        counts = counted(j)
        values = [n for after in counts.values() for n in after.values()]
        n_1, n_2 = values.count(1), values.count(2)
        D = n_1 / (n_1 + 2 * n_2) if n_1 else 0.5
        n = counts.get(c[len(c) - j :])
        if not n:
            return lower
        total = sum(n.values())
        return [(max(n[x] - D, 0) + D * len(n) * lower[x]) / total if n[x] else D * len(n) * lower[x] / total
                for x in range(v)]  # fmt: skip

    return q(k)


SLOW: dict[type, Slow] = {
    AddConstant: add_constant, Empirical: empirical, WittenBell: witten_bell, KneserNey: kneser_ney,
}  # fmt: skip


def all_contexts(v: int, size: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(v)] * size).view(-1, size)


@pytest.mark.parametrize('name', LEARNERS)
@pytest.mark.parametrize(('v', 'L', 'size'), [(3, 2, 1), (3, 2, 40), (2, 3, 60), (3, 2, 2000)])
def test_predictions_are_those_of_the_formulas_with_dictionaries(name: str, v: int, L: int, size: int) -> None:
    """In all contexts, seen or not: few sequences, whose contexts are mostly new, and many."""
    learner = LEARNERS[name]
    sequences = random_grammar(v, L, seed=5, zeros=0.3).sequences(0, size)
    contexts = all_contexts(v, 2**L - 1)
    found = learner.fit(sequences, v)(contexts)
    listed = [tuple(row) for row in sequences.tolist()]
    slow = SLOW[type(learner)]
    expected = torch.tensor([slow(learner, listed, v, tuple(c)) for c in contexts.tolist()], dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', LEARNERS)
def test_predictions_sum_to_one_in_every_context(name: str) -> None:
    """Windows whose table, of 16^8 counts, would not fit in memory; contexts that were seen, and random ones."""
    grammar = random_grammar(16, 3, seed=1)
    sequences = grammar.sequences(0, 3000)
    random = torch.randint(16, (500, 7), generator=torch.Generator().manual_seed(0))
    for size in (0, 1, 3000):
        q = LEARNERS[name].fit(sequences[:size], 16)(torch.cat((sequences[:500, :7], random)))
        assert q.shape == (1000, 16) and (q >= 0).all()
        assert (q.sum(1) - 1).abs().max() < 1e-12
        if size == 0:
            torch.testing.assert_close(q, torch.full_like(q, 1 / 16), rtol=0, atol=1e-15)


def test_long_windows_do_not_mix_up_contexts() -> None:
    """31 tokens of 32 symbols are 155 bits, more than a whole number of 64: each context keeps its own target."""
    sequences = torch.randint(32, (500, 32), generator=torch.Generator().manual_seed(1))
    sequences[250:, 1:31] = sequences[:250, 1:31]  # pairs of contexts that differ in their first token alone
    sequences[250:, 0] = (sequences[:250, 0] + 1) % 32
    sequences[250:, 31] = (sequences[:250, 31] + 1) % 32
    q = Empirical(weight=0.0).fit(sequences, 32)(sequences[:, :31])
    assert torch.equal(q.argmax(1), sequences[:, 31]) and (q.max(1).values == 1).all()


def test_more_tokens_than_the_window_do_not_matter() -> None:
    grammar = random_grammar(3, 3, seed=2)
    sequences, contexts = grammar.sequences(0, 300), grammar.sequences(1000, 50)[:, :7]
    for learner in (WittenBell, KneserNey, Empirical, AddConstant):
        short = learner().fit(sequences[:, 5:], 3)
        assert torch.equal(learner(2).fit(sequences, 3)(contexts), short(contexts))


def test_a_symbol_of_many_contexts_is_likelier_in_a_new_one() -> None:
    """What Kneser-Ney is for: symbol 1 occurs most often, but only after 1; symbol 0 follows 1, 2 and 3."""
    pairs = torch.tensor([[1, 1]] * 10 + [[1, 0], [2, 0], [3, 0], [3, 2]])
    new = torch.tensor([[0]])  # a context that was never seen
    kneser_ney, witten_bell = (learner.fit(pairs, 4)(new)[0] for learner in (KneserNey(), WittenBell()))
    assert kneser_ney[0] > kneser_ney[1] and witten_bell[0] < witten_bell[1]


def test_the_loss_of_relative_frequencies_is_infinite_until_all_that_is_possible_was_seen() -> None:
    grammar = random_grammar(3, 1, seed=3)
    reference = measures.reference(grammar)
    curve = baselines.learning_curve(grammar, reference, Empirical(weight=0), [3, 50_000])
    assert curve[0]['excess'] == math.inf == curve[0]['testloss'] and 0 < curve[1]['excess'] < 0.01
    assert baselines.learning_curve(grammar, reference, Empirical(), [3])[0]['excess'] < 3


# ---------------------------------------------------------------------- the law of the excess


@pytest.mark.parametrize('learner', [AddConstant(1, 1e-3), Empirical(), WittenBell(), KneserNey()], ids=repr)
def test_the_excess_of_pairs_is_the_number_of_parameters_over_twice_the_number_of_sequences(learner: Any) -> None:
    """Mean over 200 samples of P = 20000: v (v - 1) / 2P within 4 standard errors and 1%.

    To leading order 2 P times the excess is chi-squared with v (v - 1) degrees of freedom; terms of order 1 / P^2,
    which smoothing has too, are below 1% here. The rate of false alarms is 6e-5 for each learner; the seeds are fixed.
    """
    v, size, samples = 4, 20_000, 200
    grammar = random_grammar(v, 1, seed=12)
    reference = measures.reference(grammar)
    assert grammar.level_rules(0).sum(0).min() > 0.03  # so that all pairs occur often, as the formula supposes
    excesses = []
    sequences = grammar.sequences(0, size * samples).view(samples, size, 2)
    for sample in sequences:
        excesses.append(baselines.evaluate(learner.fit(sample, v), reference)[1])
    found = torch.tensor(excesses, dtype=torch.float64)
    expected, error = v * (v - 1) / (2 * size), found.std() / math.sqrt(samples)
    assert abs(found.mean() - expected) < 4 * error + 0.01 * expected
    assert error < 0.05 * expected


# ---------------------------------------------------------------------- errors


def test_what_cannot_be_counted_is_an_error() -> None:
    sequences = torch.zeros(5, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match='k=4 is not a valid window of sequences of 4 tokens: use 0 to 3'):
        WittenBell(4).fit(sequences, 2)
    with pytest.raises(ValueError, match='v=2 does not cover symbols from 0 to 2: use the vocabulary'):
        KneserNey().fit(sequences + torch.tensor([0, 0, 1, 2]), 2)
    for constant in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f'constant={constant} is out of range: use a finite number above 0'):
            AddConstant(constant=constant).fit(sequences, 2)
    for weight in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f'weight={weight} is out of range: use a finite number, 0 or more'):
            Empirical(weight=weight).fit(sequences, 2)
    with pytest.raises(ValueError, match=r'sequences of shape \(5,\)'):
        Empirical().fit(sequences[:, 0], 2)
    with pytest.raises(ValueError, match='contexts of 2 tokens are too short: give 3 or more, or learn with k=2'):
        WittenBell().fit(sequences, 2)(sequences[:, :2])


@pytest.mark.parametrize('name', LEARNERS)
def test_contexts_of_other_symbols_are_refused(name: str) -> None:
    """They would be read as other contexts: v * a + y has a second reading for y = v."""
    sequences = random_grammar(3, 2, seed=5).sequences(0, 50)
    predict = LEARNERS[name].fit(sequences, 3)
    for token in (-1, 3):
        contexts = sequences[:5, :3].clone()
        contexts[2, 1] = token
        with pytest.raises(ValueError, match=f'contexts hold symbols from .*{token}.*: use 0 to 2, as v=3'):
            predict(contexts)
    assert predict(sequences[:0, :3]).shape == (0, 3)
