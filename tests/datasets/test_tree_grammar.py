"""The language and its sequences: the rules, the alias tables, the sampler, and both regimes of training data.

Statistical tests are those of test_streams.py: fixed seeds, p-values above ALARM, false alarms below 1e-7 in all.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import joint
from helpers import ROOT, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streams import ALARM, chi_square
from torch import Tensor
from torch.utils.data import DataLoader

from RLM_clean import datasets, measures
from RLM_clean.datasets import RHM, RLM, TreeGrammar, tree_grammar
from RLM_clean.datasets.alias import AliasTable
from RLM_clean.exact import entropies, inference
from RLM_clean.streams import random_words

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def random_rules(v: int, seed: int, zeros: float = 0.0) -> Tensor:
    """Rules that spread over some orders of magnitude, of which a fraction vanish."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(v, v, v, generator=generator, dtype=torch.float64).mul(1.5).exp()
    weights *= torch.rand(v, v, v, generator=generator) >= zeros
    weights[:, 0, -1] += 0.1
    return weights / weights.sum((1, 2), keepdim=True)


@pytest.fixture(scope='module')
def rlm() -> RLM:
    return RLM(v=10, L=3)


# ---------------------------------------------------------------------- the rules


def test_the_promised_call_gives_the_promised_shapes() -> None:
    rlm = datasets.RLM(
        v=128, L=1, beta=2.0, seed_rules=12345, seed_samples=67890, num_data=None, probs=None, transform=None
    )
    inputs, targets = rlm.sample_batch(batch_size=64, L=1)
    assert inputs.shape == (64, 1) and targets.shape == (64,)
    assert inputs.dtype == targets.dtype == torch.int64
    assert set(torch.cat((inputs[:, 0], targets)).tolist()) <= set(range(128))
    assert rlm.M.shape == (128, 128, 128)
    assert (rlm.M.sum((1, 2)) - 1).abs().max() < 1e-15 * 128**2


@pytest.mark.parametrize(
    ('v', 'beta', 'seed'), [(2, 1.0, 0), (3, 2.0, 7), (6, 0.5, 12345), (33, 2.0, 1), (20, 4.0, 2**32 - 1)]
)
def test_rules_are_the_softmax_of_gaussian_energies_of_the_seed(v: int, beta: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g = torch.stack([torch.randn(v * v, generator=generator, dtype=torch.float64) for _ in range(v)])
    weights = (beta * math.sqrt(math.log(v)) * g).exp()
    expected = (weights / weights.sum(1, keepdim=True)).view(v, v, v)
    M = RLM(v, 1, beta, seed_rules=seed).M
    assert M.dtype == torch.float64
    torch.testing.assert_close(M, expected, rtol=3e-7, atol=1e-37)  # kept in float32, normalised in float64
    assert (M.sum((1, 2)) - 1).abs().max() < 1e-15 * v**2


def test_rules_keep_their_meaning() -> None:
    """Golden rules: another value gives every stored seed another language. Change them only knowingly."""
    M = RLM(3, 1, 2.0, seed_rules=12345).M[0].flatten()
    golden = [
        0.4931856449, 0.0004911250, 0.0020169604, 0.0003411194, 0.0095191934, 0.0012369538, 0.0055015856, 0.4583621673,
        0.0293452501,
    ]  # fmt: skip
    torch.testing.assert_close(M, torch.tensor(golden, dtype=torch.float64), rtol=0, atol=1e-7)


def test_rules_depend_on_their_seed_alone_and_leave_global_generators_alone() -> None:
    first = RLM(8, 2, seed_rules=3)
    torch.manual_seed(99)
    torch.randn(17)
    np.random.default_rng(0)
    np.random.seed(5)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    second = RLM(8, 3, seed_rules=3, seed_samples=1, num_data=10)
    second.sample_batch(20)
    second.sample_trees(5)
    assert second[3][0].shape == (7,)
    after = np.random.get_state()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, after, strict=True))
    assert torch.equal(first.M, second.M)
    assert not torch.equal(first.M, RLM(8, 2, seed_rules=4).M)
    assert torch.equal(RLM(8, 1, 1.0).M, RLM(8, 1, 1.0).M)


def test_zero_beta_makes_all_pairs_equally_likely_and_a_large_one_a_single_pair() -> None:
    torch.testing.assert_close(RLM(7, 1, 0.0).M, torch.full((7, 7, 7), 1 / 49, dtype=torch.float64), rtol=1e-15, atol=0)
    frozen = RLM(7, 1, 1000.0).M
    torch.testing.assert_close(frozen.amax((1, 2)), torch.ones(7).double(), rtol=1e-12, atol=0)


def test_the_probabilities_of_the_root_are_normalised_in_float64() -> None:
    """Probabilities of a file, in float32 or rounded to some digits, sum to one only nearly."""
    nearly = [0.3333333, 0.3333333, 0.3333331]
    prior = RLM(3, 1, probs=nearly).prior
    assert prior.dtype == torch.float64 and abs(prior.sum().item() - 1) < 1e-15
    torch.testing.assert_close(prior, torch.tensor(nearly, dtype=torch.float64) / sum(nearly), rtol=1e-14, atol=0)
    assert torch.equal(RLM(3, 1).prior, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_stored_rules_give_the_same_language_again(rlm: RLM) -> None:
    again = RLM(10, 3, rules=rlm.rules[0], seed_rules=1)
    assert torch.equal(again.M, rlm.M)
    assert torch.equal(again.sequences(0, 50), rlm.sequences(0, 50))


# ---------------------------------------------------------------------- alias tables


def rows_of_weights(draw: Callable[..., Any]) -> Tensor:
    n, seed = draw(st.integers(2, 300)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(n, generator=generator, dtype=torch.float64)
    one = int(random[0] * n)
    kinds: dict[str, Callable[[], Tensor]] = {
        'random': lambda: random,
        'spread': lambda: random**20,
        'zeros': lambda: torch.where(random.flip(0) < 0.5, 0.0, random).index_fill(0, torch.tensor(one), 1.0),
        'one-hot': lambda: torch.zeros(n, dtype=torch.float64).index_fill(0, torch.tensor(one), 1.0),
        'almost one-hot': lambda: torch.full((n,), 1e-17).double().index_fill(0, torch.tensor(one), 1.0),
        'uniform': lambda: torch.full((n,), 1 / 3, dtype=torch.float64),
        'two': lambda: torch.zeros(n, dtype=torch.float64).index_fill(0, torch.tensor([0, n - 1]), 0.5),
        'geometric': lambda: 0.5 ** torch.arange(n, dtype=torch.float64),
    }
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))
    return torch.stack([kinds[kind]() for kind in chosen])


weights = st.composite(rows_of_weights)()


@given(weights)
@examples
def test_alias_tables_encode_their_distribution(w: Tensor) -> None:
    table = AliasTable([w], len(w), w.shape[1])
    exact = w / w.sum(1, keepdim=True)
    assert ((table.probabilities() - exact).abs().sum(1) / 2).max() < 1e-12
    assert torch.equal(table.probabilities(0, 1), table.probabilities()[:1])


def exact_law(table: AliasTable, row: int) -> list[int]:
    """How many of the 2^F values of the bits that a draw uses give each outcome, counted column by column.

    The values of a column are consecutive, and the first ones give its own outcome: two draws tell which outcomes are
    there, bisection how many of each.
    """
    n, bits = table.n, table.threshold_bits

    def outcome(position: int) -> int:
        word = position << (64 - bits)
        word -= 2**64 if word >> 63 else 0
        return int(table.draw(torch.tensor([row]), torch.tensor([word])))

    counts = [0] * n
    for column in range(n):
        first, last = -(-(column << bits) // n), -(-((column + 1) << bits) // n) - 1
        own, other = outcome(first), outcome(last)
        low, high = first, last + 1
        while own != other and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if outcome(middle) == own else (low, middle)
        counts[own] += high - first
        counts[other] += last + 1 - high
    return counts


def counted_law(table: AliasTable, row: int) -> list[int]:
    """The same from the entries: the value p is in column p n / 2^F, which draws itself below its threshold."""
    n, bits = table.n, table.threshold_bits
    counts = [0] * n
    for j, entry in enumerate(table.entries.view(-1, n)[row].tolist()):
        threshold, alias = entry >> table.alias_bits, entry & ((1 << table.alias_bits) - 1)
        first, middle, end = (-(-x // n) for x in (j << bits, (j << bits) + threshold, (j + 1) << bits))
        counts[j] += middle - first
        counts[alias] += end - middle
    return counts


@pytest.mark.parametrize('n', [2, 3, 7, 64, 1000, 2**14, 2**16 - 1, 2**18])
def test_the_law_of_the_draws_is_that_of_the_table_to_the_bits_of_a_word(n: int) -> None:
    """By less than n / 2^F in total variation; draws themselves give the counts, where these are few."""
    w = torch.rand(1, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) ** 4
    table = AliasTable([w], 1, n)
    counts = counted_law(table, 0)
    if n < 10:
        assert counts == exact_law(table, 0)
    total = 2**table.threshold_bits
    assert sum(counts) == total
    drawn = torch.tensor([count / total for count in counts], dtype=torch.float64)
    distance = (drawn - table.probabilities()[0]).abs().sum().item() / 2
    assert distance < n / total + 1e-15
    # The words have no more bits: what they add is far above what the table rounds.
    assert n < 2**14 or distance > n / total / 100


@pytest.mark.parametrize('n', [2, 3, 5, 7])
def test_the_words_themselves_give_the_distribution_to_rounding(n: int) -> None:
    w = torch.tensor([0.0, 0.3, 1e-9, 0.25, 0.2, 0.0, 0.2])[:n].double()[None]
    counts = exact_law(AliasTable([w], 1, n), 0)
    total = 2 ** (63 - max(1, (n - 1).bit_length()))
    assert sum(counts) == total
    for count, probability in zip(counts, (w / w.sum())[0].tolist(), strict=True):
        assert abs(count / total - probability) < 1e-14
        assert (count == 0) == (probability == 0)


@given(weights)
@examples
def test_no_word_draws_an_outcome_of_probability_zero(w: Tensor) -> None:
    """The lowest and the highest value of each column draw every outcome that the column can give."""
    n = w.shape[1]
    table = AliasTable([w], len(w), n)
    bits = table.threshold_bits
    ends = [position for j in range(n) for position in (-(-(j << bits) // n), -(-((j + 1) << bits) // n) - 1)]
    words = torch.tensor([(e << (64 - bits)) - (2**64 if e >> (bits - 1) else 0) for e in ends])
    rows = torch.arange(len(w))[:, None].expand(-1, len(words))
    drawn = table.draw(rows, words.expand(len(w), -1))
    assert (w.gather(1, drawn) > 0).all()


@given(weights, st.integers(1, 3))
@examples
def test_rows_in_blocks_make_the_same_table(w: Tensor, size: int) -> None:
    together = AliasTable([w], len(w), w.shape[1])
    assert torch.equal(AliasTable(w.split(size), len(w), w.shape[1]).entries, together.entries)
    scaled = AliasTable([w * 2.0**13], len(w), w.shape[1])
    assert torch.equal(scaled.entries, together.entries)


@pytest.mark.parametrize('n', [2**14, 2**16, 2**16 - 1, 2**20])
def test_large_alias_tables_are_as_exact_as_promised(n: int) -> None:
    g = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for beta in (0.0, 0.5, 2.0, 8.0):
        w = torch.softmax(beta * math.sqrt(math.log(n) / 2) * g, 0)[None]
        assert (AliasTable([w], 1, n).probabilities() - w).abs().sum() / 2 < 1e-11


def total_variation(grammar: TreeGrammar, level: int) -> float:
    """Between the rules and what the table of a level draws from, the largest of all parents."""
    drawn = grammar.table(level).probabilities()
    return (drawn - grammar.level_rules(level).flatten(1)).abs().sum(1).max().item() / 2


@pytest.mark.parametrize('beta', [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize('v', [2, 3, 32, 45, 128])
def test_tables_draw_from_the_rules_of_every_parent_to_rounding(v: int, beta: float) -> None:
    assert total_variation(RLM(v, 1, beta), 0) < 1e-12


@pytest.mark.parametrize(('v', 'm'), [(2, 1), (2, 2), (3, 2), (7, 3), (32, 8), (32, 32), (48, 7), (128, 1)])
def test_tables_draw_the_productions_of_every_level_equally(v: int, m: int) -> None:
    rhm = RHM(v, m, 2)
    for level in range(2):
        assert total_variation(rhm, level) < 1e-12
        drawn = rhm.table(level).probabilities()[(rhm.rules[level] != 0).flatten(1)]
        torch.testing.assert_close(drawn, torch.full_like(drawn, 1 / m), rtol=1e-12, atol=0)


def test_neither_rules_nor_tables_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks as small as they get, of rows so long that torch shares the sum of a single one among its threads."""
    monkeypatch.setattr(tree_grammar, '_ENTRIES_PER_BLOCK', 1)
    one = RLM(200, 1, 0.5)
    torch.set_num_threads(3)
    several = RLM(200, 1, 0.5)
    assert torch.equal(several.rules[0], one.rules[0]) and torch.equal(several.M, one.M)
    assert torch.equal(several.table(0).entries, one.table(0).entries)


def test_what_is_expensive_is_made_when_it_is_first_used_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            made.append(name)
            return function(*args, **options)

        return counted

    monkeypatch.setattr(tree_grammar, 'AliasTable', counting('table', AliasTable))
    monkeypatch.setattr(tree_grammar, '_normalised', counting('rules', tree_grammar._normalised))
    for grammar in (RLM(8, 2), RLM(8, 2, rules=RLM(8, 1).rules[0]), RHM(8, 2, 2), RLM(8, 2, num_data=10)):
        levels = 1 if grammar.shared else 2
        assert repr(grammar) and grammar.prior.sum() and made == []
        rules = grammar.level_rules(1)
        assert made == ['rules'] and grammar.level_rules(1) is rules
        assert grammar.transitions(1)[0] is grammar.transitions(1)[0]
        grammar.sequences(0, 4)
        assert made.count('table') == 1 + levels and made.count('rules') == levels
        grammar.sequences(7, 4, 'test')
        assert grammar.table(1) is grammar.table(1) and len(made) == 1 + 2 * levels
        made.clear()


def test_a_language_of_one_level_never_has_its_rules_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    rlm = RLM(9, 1)
    monkeypatch.setattr(TreeGrammar, 'level_rules', None)
    measures.prepare_language(rlm, 1)
    measures.prepare_language(rlm, 1, 'all')
    leaves = rlm.sequences(0, 5)
    inference.next_token_probs(rlm, leaves[:, :1])
    inference.all_next_token_probs(rlm, leaves)
    inference.log_likelihood(rlm, leaves)
    entropies.tree_entropy(rlm), entropies.leaves_entropy(rlm)


@pytest.mark.parametrize('entries', [1, 200, 2**18])
def test_blocks_of_rules_are_the_same_numbers_before_and_after_they_are_kept(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_grammar, '_ENTRIES_PER_BLOCK', entries)
    rhm, rlm = RHM(9, 3, 2), RLM(9, 2)
    for grammar in (rhm, rlm):
        before = [(parents, block.clone()) for parents, block in grammar.blocks(1)]
        # torch cuts the sum of a single row by the number of threads.
        assert all(parents.stop - parents.start >= 2 for parents, _ in before)
        T = grammar.level_rules(1)
        for (parents, block), (again, kept) in zip(before, grammar.blocks(1), strict=True):
            assert parents == again and torch.equal(block, kept) and torch.equal(T[parents], kept)
        assert torch.equal(torch.cat([block for _, block in before]), T)
        left, right = grammar.transitions(1)
        assert torch.equal(left, T.sum(2)) and torch.equal(right, T.sum(1))


MEMORY = """
import re, sys
import torch
from RLM_clean import measures
from RLM_clean.exact import entropies
from RLM_clean.datasets import RLM

def mebibytes(name):
    return int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) / 2**10

torch.set_num_threads(1)
RLM(4, 1).sequences(0, 10)
before = mebibytes('VmRSS')
rlm = RLM(256, 1)
print(mebibytes('VmHWM') - before)
entropies.window_entropies(rlm), measures.reference(rlm), entropies.tree_entropy(rlm), rlm.sequences(0, 1000)
print(mebibytes('VmHWM') - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the memory of a process from /proc')
def test_a_language_with_its_floors_takes_twelve_bytes_for_an_entry_of_its_rules() -> None:
    """v = 256: 192 MiB, and at most 64 for the arrays of some rows at a time and for what torch loads on the way.

    Four of the twelve are the rules themselves: the tables are not there before a sequence is drawn.
    """
    process = subprocess.run(
        [sys.executable, '-c', MEMORY], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    built, measured = (float(line) for line in process.stdout.split())
    assert 63 < built < 64 + 32 and 191 < measured < 192 + 64


# ---------------------------------------------------------------------- the sampler against the rules


@pytest.fixture(scope='module', params=['shared', 'per level', 'with zeros'])
def sampled(request: pytest.FixtureRequest) -> tuple[TreeGrammar, list[Tensor]]:
    v, L = 6, 3
    prior = [0.4, 0.05, 0.25, 0.0, 0.2, 0.1]
    grammar: TreeGrammar
    if request.param == 'shared':
        grammar = RLM(v, L, 1.0, probs=prior)
    else:
        zeros = 0.0 if request.param == 'per level' else 0.6
        grammar = TreeGrammar([random_rules(v, seed, zeros) for seed in range(L)], L, prior=prior, seed_samples=3)
    return grammar, grammar.trees(0, 40_000)


def test_the_symbols_of_every_node_have_their_exact_distribution(sampled: tuple[TreeGrammar, list[Tensor]]) -> None:
    grammar, trees = sampled
    nodes = [grammar.prior]
    for level, symbols in enumerate(trees):
        assert symbols.shape == (40_000, 2**level) and symbols.dtype == torch.int64
        for node, law in enumerate(nodes):
            counts = torch.bincount(symbols[:, node], minlength=grammar.v)
            assert chi_square(counts, 40_000 * law) > ALARM
        if level < grammar.L:
            T = grammar.level_rules(level)
            nodes = [child for law in nodes for child in (law @ T.sum(2), law @ T.sum(1))]


def test_siblings_follow_the_rule_of_their_parent_on_every_level(sampled: tuple[TreeGrammar, list[Tensor]]) -> None:
    grammar, trees = sampled
    v = grammar.v
    tests = 0
    for level in range(grammar.L):
        parents, children = trees[level], trees[level + 1]
        pairs = children[:, ::2] * v + children[:, 1::2]
        for a in range(v):
            chosen = pairs[parents == a]
            if len(chosen):
                expected = len(chosen) * grammar.level_rules(level)[a].flatten()
                assert chi_square(torch.bincount(chosen, minlength=v * v), expected) > ALARM
                tests += 1
    assert tests >= 3 * v - 2


@pytest.mark.parametrize(('v', 'L', 'shared'), [(3, 1, True), (3, 2, True), (3, 2, False), (2, 3, True), (2, 3, False)])
def test_whole_sequences_have_their_exact_distribution(v: int, L: int, shared: bool) -> None:
    """Over all v^n sequences, which also tests the independence of sub-trees and of the nodes of a level."""
    rules = random_rules(v, 5) if shared else [random_rules(v, seed) for seed in range(L)]
    prior = torch.arange(1, v + 1).double() / sum(range(1, v + 1))
    grammar = TreeGrammar(rules, L, prior=prior, seed_samples=11)
    for stream in ('train', 'test', 'other', 'floors'):
        leaves = grammar.sequences(0, 40_000, stream)
        words = (leaves * v ** torch.arange(2**L - 1, -1, -1)).sum(1)
        counts = torch.bincount(words, minlength=v**2**L)
        assert chi_square(counts, 40_000 * joint(grammar)) > ALARM


@pytest.mark.parametrize('streams', [('train', 'train'), ('train', 'test'), ('train', 'other'), ('test', 'floors')])
def test_different_sequences_and_streams_are_independent(streams: tuple[str, str]) -> None:
    """Pairs of leaves of two sequences: the next one of the same stream, or that of the same number in another."""
    v, count = 5, 20_000
    grammar = TreeGrammar(random_rules(v, 1), 2, seed_samples=2)
    first, second = (grammar.sequences(0, 2 * count, stream)[::2] for stream in streams)
    if streams[0] == streams[1]:
        second = grammar.sequences(0, 2 * count, streams[1])[1::2]
    exact = joint(grammar)
    laws = torch.stack([exact.sum([axis for axis in range(4) if axis != leaf]) for leaf in range(4)])
    for i in range(4):
        for j in range(4):
            counts = torch.bincount(first[:, i] * v + second[:, j], minlength=v * v)
            assert chi_square(counts, count * torch.outer(laws[i], laws[j])) > ALARM


def test_different_seeds_of_samples_are_independent() -> None:
    v, count = 5, 20_000
    rules = random_rules(v, 1)
    first, second = (TreeGrammar(rules, 1, seed_samples=seed) for seed in (0, 1))
    law = joint(first).sum(0)
    counts = torch.bincount(first.sequences(0, count)[:, 1] * v + second.sequences(0, count)[:, 1], minlength=v * v)
    assert chi_square(counts, count * torch.outer(law, law)) > ALARM


@pytest.mark.parametrize('shared', [True, False])
def test_sampled_trees_are_consistent_from_root_to_leaves(shared: bool) -> None:
    v, L = 9, 4
    rules = random_rules(v, 0, 0.8) if shared else [random_rules(v, seed, 0.8) for seed in range(L)]
    prior = torch.zeros(v)
    prior[[2, 5]] = 0.5
    grammar = TreeGrammar(rules, L, prior=prior)
    trees = grammar.sample_trees(500)
    assert [tuple(level.shape) for level in trees] == [(500, 2**level) for level in range(L + 1)]
    assert set(trees[0].flatten().tolist()) == {2, 5}
    for level in range(L):
        parents, children = trees[level], trees[level + 1]
        assert (grammar.level_rules(level)[parents, children[:, ::2], children[:, 1::2]] > 0).all()
    for again, symbols in zip(grammar.trees(0, 500, 'other'), trees, strict=True):
        assert torch.equal(again, symbols)
    assert torch.equal(grammar.sequences(0, 500, 'other'), trees[-1])
    assert not torch.equal(grammar.sample_trees(500)[-1], trees[-1])


# ---------------------------------------------------------------------- a sequence is a function of its number


@given(first=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=5), chunk=st.integers(1, 200))
@examples
def test_sequences_are_the_same_however_they_are_split(rlm: RLM, first: int, cuts: list[int], chunk: int) -> None:
    whole = rlm.sequences(first, sum(cuts) + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_grammar, '_NODES_PER_CHUNK', {'cpu': chunk})
        position, parts = first, []
        for count in [*cuts, 1]:
            parts.append(rlm.sequences(position, count))
            position += count
    assert torch.equal(torch.cat(parts), whole)


@given(first=st.integers(0, 10**6), last=st.integers(1, 16), chunk=st.integers(1, 50), shared=st.booleans())
@examples
def test_the_last_leaves_alone_are_those_of_the_whole_sequences(
    first: int, last: int, chunk: int, shared: bool
) -> None:
    grammar = TreeGrammar(random_rules(4, 1) if shared else [random_rules(4, i) for i in range(4)], 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_grammar, '_NODES_PER_CHUNK', {'cpu': chunk})
        found = grammar.sequences(first, 20, 'floors', seed=3, last=last)
        inputs, target = grammar.batches(first, 2, 3, 'test', last=last)
    assert torch.equal(found, grammar.sequences(first, 20, 'floors', seed=3)[:, 16 - last :])
    whole, same = grammar.batches(first, 2, 3, 'test')
    assert torch.equal(inputs, whole[..., 16 - last :]) and torch.equal(target, same)


@pytest.mark.parametrize('size', [1, 60, 500])
def test_the_nodes_that_are_drawn_at_a_time_are_bounded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[int] = []

    def counted(key: int, counters: Tensor) -> Tensor:
        words.append(counters.numel())
        return random_words(key, counters)

    monkeypatch.setattr(tree_grammar, 'random_words', counted)
    monkeypatch.setattr(tree_grammar, '_NODES_PER_CHUNK', {'cpu': size})
    RLM(4, 6).sequences(0, 300)
    assert max(words) <= max(size, 2**5) and sum(words) == 300 * 2**6


def test_the_last_leaves_of_a_deep_tree_cost_their_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two nodes a level above the smallest sub-tree of 8 leaves, and twice its nodes below."""
    words: list[int] = []

    def counted(key: int, counters: Tensor) -> Tensor:
        words.append(counters.numel())
        return random_words(key, counters)

    monkeypatch.setattr(tree_grammar, 'random_words', counted)
    deep = RLM(4, 40)
    assert deep.sequences(5, 10, last=8).shape == (10, 8)
    assert sum(words) <= 10 * (2 * 40 + 16)
    for last in (0, 2**40 + 1):
        with pytest.raises(ValueError, match=f'last={last} leaves are not part of a sequence of {2**40}: use 1 to'):
            deep.sequences(0, 1, last=last)


@given(step=st.integers(0, 10**5), num_steps=st.integers(1, 6), batch_size=st.integers(1, 30), depth=st.integers(1, 4))
@examples
def test_a_batch_is_a_slice_of_several_and_of_the_stream(
    rlm: RLM, step: int, num_steps: int, batch_size: int, depth: int
) -> None:
    for stream in ('train', 'test'):
        inputs, targets = rlm.batches(step, num_steps, batch_size, stream, depth)
        assert inputs.shape == (num_steps, batch_size, 2**depth - 1) and targets.shape == (num_steps, batch_size)
        leaves = rlm.sequences(step * batch_size, num_steps * batch_size, stream, depth)
        assert torch.equal(torch.cat((inputs, targets[..., None]), -1).flatten(0, 1), leaves)
        for i in range(num_steps):
            x, y = rlm.batch(step + i, batch_size, stream, depth)
            assert torch.equal(x, inputs[i]) and torch.equal(y, targets[i])


@given(step=st.integers(0, 10**5), num_steps=st.integers(1, 6), batch_size=st.integers(1, 30))
@examples
def test_the_roots_of_batches_are_those_of_their_trees(rlm: RLM, step: int, num_steps: int, batch_size: int) -> None:
    for stream in ('train', 'test'):
        roots = rlm.root_batches(step, num_steps, batch_size, stream)
        assert roots.dtype == torch.int64 and roots.shape == (num_steps, batch_size)
        trees = rlm.trees(step * batch_size, num_steps * batch_size, stream)
        assert torch.equal(roots.flatten(), trees[0].flatten())


@pytest.mark.parametrize('num_data', [None, 10])
@pytest.mark.parametrize('depth', [None, 2])
def test_the_call_number_t_of_sample_batch_is_batch_t(num_data: int | None, depth: int | None) -> None:
    rlm = RLM(16, 3, num_data=num_data)
    inputs, targets = rlm.batches(0, 8, 7, L=depth)
    for t in range(8):
        x, y = rlm.sample_batch(7, depth)
        assert torch.equal(x, inputs[t]) and torch.equal(y, targets[t])
        again = rlm.batch(t, 7, L=depth)
        assert torch.equal(x, again[0]) and torch.equal(y, again[1])


def test_calls_with_different_batch_sizes_go_on_where_the_last_one_stopped(rlm: RLM) -> None:
    fresh = RLM(10, 3)
    leaves = torch.cat([torch.cat((x, y[:, None]), 1) for x, y in map(fresh.sample_batch, (3, 1, 10, 6))])
    assert torch.equal(leaves, rlm.sequences(0, 20))


def test_using_one_stream_leaves_the_others_as_they_are() -> None:
    quiet, busy = RLM(10, 2), RLM(10, 2)
    for t in range(5):
        busy.batch(t, 13, 'test')
        busy.sample_trees(9)
        busy.sequences(100, 10, 'floors')
        busy.batches(1000, 2, 3)
        for mine, theirs in zip(quiet.sample_batch(4), busy.sample_batch(4), strict=True):
            assert torch.equal(mine, theirs)
    assert torch.equal(quiet.sample_trees(5)[-1], busy.trees(0, 5, 'other')[-1])
    assert torch.equal(quiet.batch(3, 8, 'test')[0], busy.batch(3, 8, 'test')[0])


def test_no_stream_repeats_another() -> None:
    rlm = RLM(64, 3, 1.0)
    streams = [rlm.sequences(0, 1000, stream) for stream in ('train', 'test', 'other', 'floors')]
    streams += [rlm.sequences(0, 1000, seed=seed) for seed in (0, 1)]
    assert len(torch.cat(streams).unique(dim=0)) == 6000
    assert torch.equal(RLM(64, 3, 1.0, seed_samples=1).sequences(0, 10), rlm.sequences(0, 10, seed=1))


@pytest.mark.parametrize('ranks', [1, 2, 4])
def test_processes_that_share_a_batch_draw_its_slices(rlm: RLM, ranks: int) -> None:
    size = 8
    for step in (0, 5):
        inputs, targets = rlm.batch(step, size)
        share = size // ranks
        parts = [rlm.sequences(step * size + rank * share, share) for rank in range(ranks)]
        assert torch.equal(torch.cat(parts), torch.cat((inputs, targets[:, None]), 1))
        alone = [rlm.batch(step * ranks + rank, share)[1] for rank in range(ranks)]
        assert torch.equal(torch.cat(alone), targets)


def test_sequences_far_along_a_stream_are_as_good_as_the_first(rlm: RLM) -> None:
    far = rlm.sequences(2**40, 20_000)[:, -1]
    near = rlm.sequences(0, 20_000)[:, -1]
    law = rlm.prior @ torch.linalg.matrix_power(rlm.M.sum(1), 3)
    for leaves in (near, far):
        assert chi_square(leaves.bincount(minlength=10), 20_000 * law) > ALARM


def test_sequences_keep_their_meaning() -> None:
    """Golden sequences: another value gives every stored seed other data. Change them only knowingly."""
    assert RLM(10, 2).sequences(0, 4).tolist() == [[6, 4, 9, 0], [2, 0, 9, 0], [3, 2, 6, 6], [4, 1, 6, 6]]
    assert RLM(10, 2, num_data=8).batch(3, 4)[1].tolist() == [6, 0, 7, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_sequences_are_the_same_on_every_device() -> None:
    for num_data in (None, 100):
        here, there = RLM(50, 3, num_data=num_data), RLM(50, 3, num_data=num_data, device='cuda')
        assert there.batch(0, 4)[0].is_cuda
        for mine, theirs in zip(here.batches(2, 5, 60), there.batches(2, 5, 60), strict=True):
            assert torch.equal(mine, theirs.cpu())
        for mine, theirs in zip(here.trees(7, 1000), there.trees(7, 1000), strict=True):
            assert torch.equal(mine, theirs.cpu())


# ---------------------------------------------------------------------- the fixed training set


@pytest.fixture
def offline() -> RLM:
    rlm = RLM(64, 2, 1.0, num_data=10)
    assert len(rlm.sequences(0, 10).unique(dim=0)) == 10
    return rlm


def numbers(rlm: RLM, inputs: Tensor, targets: Tensor) -> list[int]:
    """Which sequences of the training set these are."""
    leaves = torch.cat((inputs.flatten(0, -2), targets.flatten()[:, None]), 1)
    same = (leaves[:, None] == rlm.sequences(0, len(rlm))).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


def test_the_training_set_has_a_length_and_can_be_indexed(offline: RLM) -> None:
    assert len(offline) == 10
    leaves = RLM(64, 2, 1.0).sequences(0, 10)
    for i in range(10):
        for index in (i, i - 10):
            x, y = offline[index]
            assert x.shape == (3,) and y.shape == () and x.dtype == y.dtype == torch.int64
            assert torch.equal(x, leaves[i, :3]) and torch.equal(y, leaves[i, 3])
    assert len([x for x, _ in DataLoader(offline, batch_size=None)]) == 10


@pytest.mark.parametrize('index', [10, -11, 1000])
def test_an_index_outside_the_training_set_is_an_error(offline: RLM, index: int) -> None:
    with pytest.raises(IndexError, match=f'index {index} is outside a training set of 10 sequences'):
        offline[index]


@pytest.mark.parametrize('batch_size', [1, 3, 10, 23])
def test_the_roots_of_epochs_are_in_the_order_of_their_sequences(offline: RLM, batch_size: int) -> None:
    steps = -(-30 // batch_size)
    order = numbers(offline, *offline.batches(0, steps, batch_size))
    roots = offline.root_batches(0, steps, batch_size)
    assert torch.equal(roots.flatten(), RLM(64, 2, 1.0).trees(0, 10)[0].flatten()[order])


@pytest.mark.parametrize('batch_size', [1, 3, 4, 10, 23])
def test_every_epoch_is_a_new_permutation_whatever_the_batch_size(offline: RLM, batch_size: int) -> None:
    """Batches that cross the border of two epochs neither repeat nor skip a sequence."""
    steps = -(-60 // batch_size)
    order = numbers(offline, *offline.batches(0, steps, batch_size))[:60]
    epochs = [order[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    one_by_one = [number for t in range(60) for number in numbers(offline, *offline.batch(t, 1))]
    assert order == one_by_one
    assert numbers(offline, *offline.batch(steps - 1, batch_size)) == numbers(
        RLM(64, 2, 1.0, num_data=10), *offline.batch(steps - 1, batch_size)
    )


def test_the_order_of_epochs_depends_on_the_seed_of_samples_alone() -> None:
    orders = []
    for seed_rules, seed_samples in ((1, 1), (2, 1), (1, 2)):
        rlm = RLM(64, 2, 1.0, seed_rules, seed_samples, num_data=10)
        orders.append(numbers(rlm, *rlm.batches(0, 2, 10)))
    assert orders[0] == orders[1] != orders[2]


def test_the_training_set_is_the_start_of_the_training_stream_and_tests_stay_fresh(offline: RLM) -> None:
    online = RLM(64, 2, 1.0)
    assert numbers(offline, *online.batch(0, 10)) == list(range(10))
    for step in (0, 3):
        for mine, theirs in zip(offline.batch(step, 8, 'test'), online.batch(step, 8, 'test'), strict=True):
            assert torch.equal(mine, theirs)


def test_the_training_set_goes_through_a_data_loader(offline: RLM) -> None:
    batches = list(DataLoader(offline, batch_size=4))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3), (4, 3), (2, 3)]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert numbers(offline, x, y) == list(range(10))
    shuffled = DataLoader(offline, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))
    assert sorted(numbers(offline, *(torch.cat(parts) for parts in zip(*shuffled, strict=True)))) == list(range(10))


def test_an_online_grammar_has_neither_length_nor_items(rlm: RLM) -> None:
    with pytest.raises(TypeError, match='online grammar has no length: set num_data'):
        len(rlm)
    with pytest.raises(TypeError, match='set num_data'):
        rlm[0]
    assert rlm and RLM(10, 1, num_data=3)


@pytest.mark.parametrize('num_data', [None, 10])
def test_a_transform_is_applied_to_the_inputs_alone(num_data: int | None) -> None:
    def transform(x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x, 64).float()

    plain = RLM(64, 2, 1.0, num_data=num_data)
    transformed = RLM(64, 2, 1.0, num_data=num_data, transform=transform)
    pairs = [
        (plain.sample_batch(4), transformed.sample_batch(4)),
        (plain.batch(3, 4), transformed.batch(3, 4)),
        (plain.batches(3, 2, 4), transformed.batches(3, 2, 4)),
    ]
    if num_data:
        pairs.append((plain[2], transformed[2]))
    for (x, y), (rows, targets) in pairs:
        assert torch.equal(rows, transform(x)) and torch.equal(targets, y)
    assert torch.equal(plain.sequences(0, 3), transformed.sequences(0, 3))


# ---------------------------------------------------------------------- depths and levels


@pytest.mark.parametrize('depth', [1, 2, 5])
def test_shared_rules_give_sequences_of_any_depth(rlm: RLM, depth: int) -> None:
    inputs, targets = RLM(10, 3).sample_batch(6, L=depth)
    assert inputs.shape == (6, 2**depth - 1) and targets.shape == (6,)
    leaves = torch.cat((inputs, targets[:, None]), 1)
    assert torch.equal(leaves, RLM(10, depth).sequences(0, 6))
    assert torch.equal(rlm.trees(0, 6, L=depth)[-1], leaves)
    assert [level.shape[1] for level in rlm.sample_trees(2, depth)] == [2**level for level in range(depth + 1)]


def test_a_grammar_may_have_rules_of_its_own_on_each_level() -> None:
    rules = [random_rules(4, seed) for seed in range(3)]
    grammar = TreeGrammar(rules, 3, seed_samples=1)
    assert not grammar.shared
    for level in range(3):
        torch.testing.assert_close(grammar.level_rules(level), rules[level], rtol=1e-15, atol=0)
        encoded = grammar.table(level).probabilities().view(4, 4, 4)
        torch.testing.assert_close(encoded, rules[level], rtol=0, atol=1e-12)
    same = TreeGrammar([rules[0]] * 3, 3, seed_samples=1)
    assert torch.equal(same.sequences(0, 100), TreeGrammar(rules[0], 3, seed_samples=1).sequences(0, 100))
    assert not torch.equal(same.sequences(0, 100), grammar.sequences(0, 100))
    for depth in (2, 4):
        with pytest.raises(ValueError, match=f'L={depth} does not fit a grammar of depth 3 with rules of its own'):
            grammar.sample_batch(2, L=depth)


def test_the_sampler_and_the_rules_share_one_set_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules in float32 are normalised in float64 once and for all, whatever the blocks."""
    rlm = RLM(20, 1)
    assert rlm.rules[0].dtype == torch.float32
    torch.testing.assert_close(rlm.table(0).probabilities().view(20, 20, 20), rlm.M, rtol=0, atol=1e-13)
    monkeypatch.setattr(tree_grammar, '_ENTRIES_PER_BLOCK', 20 * 20 * 3)
    blocks = RLM(20, 1)
    assert torch.equal(blocks.M, rlm.M) and torch.equal(blocks.table(0).entries, rlm.table(0).entries)


def test_the_representation_names_the_language(rlm: RLM) -> None:
    assert repr(RLM(10, 3)) == 'RLM(v=10, L=3, beta=2, seed_rules=12345, ...)'


# ---------------------------------------------------------------------- what a user can get wrong


def make(**options: Any) -> Callable[[], object]:
    return lambda: RLM(**{'v': 4, 'L': 2, **options})


BAD: list[tuple[Callable[[], object], str]] = [
    (make(v=1), 'v=1 symbols are too few: use 2'),
    (make(v=0), 'v=0 symbols are too few: use 2'),
    (make(beta=-0.1), 'beta=-0.1 .*: use a finite number'),
    (make(beta=math.nan), 'beta=nan .*: use a finite number'),
    (make(beta=math.inf), 'beta=inf .*: use a finite number'),
    (make(L=0), 'L=0 .*: use 1 or more'),
    (make(L=-2), 'L=-2 .*: use 1 or more'),
    (make(num_data=0), 'num_data=0 .*: use 1 or more, or None'),
    (make(num_data=-5), 'num_data=-5 .*: use 1 or more, or None'),
    (make(probs=[0.5, 0.5]), 'probs must be 4 probabilities that sum to one'),
    (make(probs=[0.5, 0.5, 0.5, -0.5]), 'probs must be 4 probabilities that sum to one'),
    (make(probs=[0.5, 0.5, 0.5, 0.5]), 'probs must be 4 probabilities that sum to one'),
    (make(probs=torch.full((4,), math.nan)), 'probs must be 4 probabilities that sum to one'),
    (make(rules=torch.full((3, 3, 3), 1 / 9)), r'rules of shape \(3, 3, 3\) .* v=4'),
    (make(rules=torch.full((4, 4), 0.25)), r'rules of shape \(4, 4\)'),
    (make(rules=torch.ones(4, 4, 4)), 'rules must be probabilities'),
    (make(rules=torch.full((4, 4, 4), math.nan)), 'rules must be probabilities'),
    (lambda: TreeGrammar(random_rules(4, 0) * torch.tensor([-1.0, 1, 1, 3]), 2), 'rules must be probabilities'),
    (lambda: TreeGrammar([random_rules(4, 0)], 2), '1 rule tensors were given for L=2: give one a level'),
    (lambda: TreeGrammar([random_rules(4, 0), random_rules(3, 0)], 2), r'rules of shape \(3, 3, 3\)'),
    (lambda: TreeGrammar(torch.ones(1, 1, 1), 1), r'rules of shape \(1, 1, 1\)'),
    (lambda: RLM(4, 2).sample_batch(2, L=0), 'L=0 is not a valid depth: use 1 or more, or None for the 2'),
    (lambda: RLM(4, 2).trees(0, 2, L=-1), 'L=-1 is not a valid depth: use 1 or more, or None for the 2'),
    (lambda: RLM(4, 2).sequences(0, 2, 'validation'), "stream='validation' is unknown: use one of train, test"),
]


@pytest.mark.parametrize('number', range(len(BAD)))
def test_what_cannot_be_is_an_error_in_one_sentence(number: int) -> None:
    call, message = BAD[number]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert '\n' not in str(error.value) and len(str(error.value)) < 200
