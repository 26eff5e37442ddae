"""Correlations and entropies of the language against the literal enumeration of all of its trees."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from RLM_clean.datasets import RLM, TreeGrammar, tree_grammar
from RLM_clean.exact import correlations, entropies, theory

# v^(2^(L + 1) - 1) trees each: at most 2^15.
SIZES = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)]
oracle_settings = settings(max_examples=30, deadline=None, derandomize=True)


def random_grammar(v: int, L: int, seed: int, zeros: float = 0.3, shared: bool = False) -> TreeGrammar:
    """Random rules of all sizes, a part of them zero, and a prior that is not uniform."""
    generator = torch.Generator().manual_seed(seed)

    def stochastic(*shape: int) -> Tensor:
        weights = torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.5).exp()
        weights *= torch.rand(shape, generator=generator) >= zeros
        # One production is never forbidden, so that no row is empty.
        weights.view(shape[0], -1)[:, seed % weights[0].numel()] += 0.1
        return weights / weights.flatten(1).sum(1).view(-1, *[1] * (len(shape) - 1))

    rules = stochastic(v, v, v) if shared else [stochastic(v, v, v) for _ in range(L)]
    return TreeGrammar(rules, L, prior=stochastic(1, v)[0], seed_samples=seed)


grammars = st.builds(
    lambda size, seed, zeros, shared: random_grammar(size[0], size[1], seed, zeros, shared),
    st.sampled_from(SIZES),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 0.7]),
    st.booleans(),
)


def all_trees(grammar: TreeGrammar) -> tuple[Tensor, Tensor]:
    """Every assignment of symbols to the nodes of the tree (root first, level by level) and its probability."""
    nodes = 2 ** (grammar.L + 1) - 1
    trees = torch.cartesian_prod(*[torch.arange(grammar.v)] * nodes)
    probability = grammar.prior[trees[:, 0]].clone()
    for node in range(2**grammar.L - 1):
        rules = grammar.level_rules((node + 1).bit_length() - 1)
        probability *= rules[trees[:, node], trees[:, 2 * node + 1], trees[:, 2 * node + 2]]
    return trees, probability


def law(symbols: Tensor, probability: Tensor, v: int) -> Tensor:
    """The joint law of the columns of `symbols`, flat."""
    codes = sum(column * v**k for k, column in enumerate(reversed(symbols.unbind(1))))
    return torch.zeros(v ** symbols.shape[1], dtype=torch.float64).scatter_add_(0, codes, probability)


def entropy(probability: Tensor) -> float:
    return -sum(p * math.log(p) for p in probability.tolist() if p > 0)


def enumerated_log_likelihood(grammar: TreeGrammar, leaves: Tensor) -> Tensor:
    trees, probability = all_trees(grammar)
    n = 2**grammar.L
    of_leaves = law(trees[:, -n:], probability, grammar.v).view((grammar.v,) * n)
    return of_leaves[leaves.unbind(1)].log()


@given(grammars)
@oracle_settings
def test_marginals_of_every_node_are_those_of_the_enumerated_trees(grammar):
    trees, probability = all_trees(grammar)
    levels = correlations.level_marginals(grammar)
    assert [tuple(level.shape) for level in levels] == [(2**k, grammar.v) for k in range(grammar.L + 1)]
    for node, marginal in enumerate(torch.cat(levels)):
        expected = law(trees[:, [node]], probability, grammar.v)
        torch.testing.assert_close(marginal, expected, rtol=0, atol=1e-12)
    assert torch.equal(correlations.leaf_marginals(grammar), levels[-1])


@given(grammars)
@oracle_settings
def test_joints_and_their_measures_of_all_pairs_are_those_of_the_enumerated_trees(grammar):
    trees, probability = all_trees(grammar)
    v, n = grammar.v, 2**grammar.L
    leaves = trees[:, -n:]
    by_height: list[list[float]] = [[] for _ in range(grammar.L + 1)]
    for i in range(n):
        for j in range(n):
            expected = law(leaves[:, [i, j]], probability, v).view(v, v)
            p, q = expected.sum(1), expected.sum(0)
            torch.testing.assert_close(correlations.joint(grammar, i, j), expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(
                correlations.covariance(grammar, i, j), expected - p[:, None] * q, rtol=0, atol=1e-12
            )
            information = entropy(p) + entropy(q) - entropy(expected.flatten())
            assert abs(correlations.mutual_information(grammar, i, j) - information) < 1e-12
            by_height[(i ^ j).bit_length()].append(information)
    means = torch.tensor([sum(values) / len(values) for values in by_height[1:]], dtype=torch.float64)
    torch.testing.assert_close(correlations.mutual_information_by_distance(grammar), means, rtol=0, atol=1e-12)


@given(grammars)
@oracle_settings
def test_entropies_of_trees_and_leaves_are_those_of_the_enumerated_trees(grammar):
    trees, probability = all_trees(grammar)
    of_trees, of_leaves = entropy(probability), entropy(law(trees[:, -(2**grammar.L) :], probability, grammar.v))
    assert abs(entropies.tree_entropy(grammar) - of_trees) < 1e-12
    value, error = entropies.leaves_entropy(grammar)
    assert abs(value - of_leaves) < 1e-12 and error == 0
    assert abs(entropies.ambiguity(grammar)[0] - (of_trees - of_leaves)) < 1e-12


@given(grammars)
@oracle_settings
def test_rule_entropies_and_participation_ratios_are_sums_over_productions(grammar):
    rules = grammar.level_rules(grammar.L - 1)
    expected = [entropy(row) for row in rules.flatten(1)]
    assert entropies.rule_entropy(rules).tolist() == pytest.approx(expected, abs=1e-12)
    expected = [sum(p * p for p in row.tolist()) for row in rules.flatten(1)]
    assert entropies.participation_ratio(rules).tolist() == pytest.approx(expected, abs=1e-12)


def test_measures_do_not_depend_on_the_blocks_they_are_computed_in(monkeypatch):
    grammar = RLM(v=6, L=3, seed_rules=3)

    def measures() -> list[Tensor]:
        rules = grammar.rules[0]
        leaves, _ = entropies.leaves_entropy(grammar)
        return [
            entropies.rule_entropy(rules),
            entropies.participation_ratio(rules),
            correlations.joint(grammar, 2, 4),
            correlations.mutual_information_by_distance(grammar),
            torch.tensor([leaves, entropies.tree_entropy(grammar)], dtype=torch.float64),
        ]

    whole = measures()
    monkeypatch.setattr(correlations, '_ENTRIES_PER_BLOCK', 80)
    monkeypatch.setattr(tree_grammar, '_ENTRIES_PER_BLOCK', 80)
    torch.testing.assert_close(measures(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize('shared_levels', [0, 1, 2])
def test_information_does_not_depend_on_how_many_levels_of_paths_are_kept(monkeypatch, shared_levels):
    grammar = random_grammar(3, 5, 8)
    kept = correlations.mutual_information_by_distance(grammar)
    monkeypatch.setattr(correlations, '_PATH_ENTRIES', 2**shared_levels * 3**2)
    found = correlations.mutual_information_by_distance(grammar)
    assert torch.equal(found[: shared_levels + 1], kept[: shared_levels + 1])
    torch.testing.assert_close(found, kept, rtol=1e-10, atol=0)


def test_uniform_and_frozen_rules_have_known_entropies():
    uniform = TreeGrammar(torch.full((4, 4, 4), 1 / 16), 3)
    assert entropies.rule_entropy(uniform.rules[0]).tolist() == pytest.approx([math.log(16)] * 4)
    assert entropies.participation_ratio(uniform.rules[0]).tolist() == pytest.approx([1 / 16] * 4)
    assert entropies.tree_entropy(uniform) == pytest.approx(15 * math.log(4))
    assert entropies.ambiguity(uniform)[0] == pytest.approx(7 * math.log(4))
    assert correlations.mutual_information_by_distance(uniform).abs().max() < 1e-30

    frozen = torch.zeros(4, 4, 4)
    frozen[range(4), range(4), range(4)] = 1
    copies = TreeGrammar(frozen, 3)
    assert entropies.participation_ratio(frozen).tolist() == [1] * 4
    assert entropies.tree_entropy(copies) == pytest.approx(math.log(4))
    assert entropies.ambiguity(copies)[0] == pytest.approx(0, abs=1e-12)
    assert correlations.mutual_information_by_distance(copies).tolist() == pytest.approx([math.log(4)] * 3)


def test_weak_correlations_keep_their_digits():
    """A binary symmetric copy with eigenvalue lambda: P(x_i = x_j) = (1 + lambda^(2h)) / 2, for heights down to 1e-49.

    The children are drawn independently, so I(h) = sum over signs of (1 + s d) ln(1 + s d) / 2, with d = lambda^(2h).
    """
    lam, L = 0.03, 8
    flip = torch.tensor([[1 + lam, 1 - lam], [1 - lam, 1 + lam]], dtype=torch.float64) / 2
    grammar = TreeGrammar(flip[:, :, None] * flip[:, None, :], L)
    information = correlations.mutual_information_by_distance(grammar)
    d = [lam ** (2 * h) for h in range(1, L + 1)]
    exact = [sum((1 + s * x) * math.log1p(s * x) for s in (1, -1)) / 2 if x > 1e-3 else x * x / 2 for x in d]
    # The rounding of the rules, 1e-16, is 1e-13 of the covariance of siblings, and the series has an error of d^2 / 6.
    assert information.tolist() == pytest.approx(exact, rel=1e-6)


ONE = 2**600  # the unit of numbers of 600 binary digits after the point


def fixed_point(tensor: Tensor) -> np.ndarray:
    numbers = [int(Fraction(x) * ONE) for x in tensor.double().flatten().tolist()]
    return np.array(numbers, dtype=object).reshape(tuple(tensor.shape))


def exact_pair(grammar: TreeGrammar, height: int) -> np.ndarray:
    """The joint law of the first and the last token below the first node of a height, by whole numbers of any size."""
    v = grammar.v
    M = fixed_point(grammar.rules[0])
    M = M * ONE // M.sum((1, 2))[:, None, None]
    law = fixed_point(grammar.prior)
    for _ in range(grammar.L - height):
        law = law @ M.sum(2) // ONE
    pair = (law @ M.reshape(v, v * v) // ONE).reshape(v, v)
    for _ in range(height - 1):
        pair = M.sum(2).T @ pair // ONE @ M.sum(1) // ONE
    return pair


@pytest.mark.parametrize(('v', 'L', 'beta'), [(16, 10, 0.5), (8, 8, 0.1)])
def test_weak_covariances_and_informations_are_those_of_numbers_of_600_digits(v, L, beta):
    """Of two tokens at each height, down to 1e-25 and 1e-47; strong correlations too. And they fall as eigenvalues say.

    Covariances to 1e-11 of the largest entry: the rounding of the rules is 1e-16 / beta of their deviations.
    """
    grammar = RLM(v=v, L=L, beta=beta)
    sizes = []
    for height in range(1, L + 1):
        pair = exact_pair(grammar, height)
        p, q = pair.sum(1), pair.sum(0)
        C = pair - p[:, None] * q // ONE
        exact = torch.tensor([[float(Fraction(x, ONE)) for x in row] for row in C.tolist()], dtype=torch.float64)
        found = correlations.covariance(grammar, 0, 2**height - 1)
        scale = exact.abs().max().item()
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-11 * scale)
        assert torch.equal(correlations.covariance(grammar, 2**height - 1, 0), found.T)
        sizes.append(exact.norm().item())
        # Where correlations are weak the information is the mean square of the relative covariance, in nats / 2.
        if scale * v**2 < 1e-5:
            mean_square = sum(Fraction(C[a, b] ** 2, 2 * p[a] * q[b]) for a in range(v) for b in range(v))
            information = correlations.mutual_information(grammar, 0, 2**height - 1)
            assert information == pytest.approx(float(mean_square), rel=1e-4)
            assert correlations.mutual_information(grammar, 2**height - 1, 0) == information
    assert sizes[-1] < 1e-24 and information < 1e-46
    # From one height to the next by |lambda_L lambda_R|, on average over the levels where a chain has settled.
    slope = (sizes[-1] / sizes[3]) ** (1 / (L - 4))
    assert slope == pytest.approx(theory.correlation_decay(grammar.rules[0], 0, 3), rel=0.25)


def test_the_mean_of_weak_informations_is_that_of_all_pairs():
    """Down to 1e-24. Each pair has the laws of its own two tokens."""
    grammar = RLM(v=8, L=4, beta=0.1)
    by_height: list[list[float]] = [[] for _ in range(5)]
    for j in range(16):
        for i in range(j):
            by_height[(i ^ j).bit_length()].append(correlations.mutual_information(grammar, i, j))
    means = [sum(values) / len(values) for values in by_height[1:]]
    assert means[-1] < 1e-24
    assert correlations.mutual_information_by_distance(grammar).tolist() == pytest.approx(means, rel=1e-10, abs=0)


@given(grammars)
@oracle_settings
def test_the_covariance_of_strong_correlations_is_the_joint_law_less_the_product(grammar):
    """To the rounding of that difference, 1e-16; the information of a token about itself is its entropy."""
    n = 2**grammar.L
    for i in range(n):
        for j in range(n):
            pair = correlations.joint(grammar, i, j)
            expected = pair - pair.sum(1, keepdim=True) * pair.sum(0)
            torch.testing.assert_close(correlations.covariance(grammar, i, j), expected, rtol=0, atol=1e-15)
        law_of_i = correlations.leaf_marginals(grammar)[i]
        assert abs(correlations.mutual_information(grammar, i, i) - entropy(law_of_i)) < 1e-14


def test_mutual_information_falls_with_the_height_of_the_common_ancestor():
    falls = torch.stack(
        [correlations.mutual_information_by_distance(RLM(v=8, L=5, beta=2.0, seed_rules=seed)) for seed in range(10)]
    ).mean(0)
    assert (falls.diff() < 0).all() and (falls > 0).all()


@given(st.integers(0, 10**6), st.integers(0, 15))
@oracle_settings
def test_no_pair_of_tokens_shares_more_information_than_their_parents(seed, i):
    """Data processing, with the parents as the leaves of a grammar cut off one level higher."""
    grammar = random_grammar(3, 4, seed)
    cut = TreeGrammar(grammar.rules[:-1], 3, prior=grammar.prior)
    for j in range(16):
        above = correlations.mutual_information(cut, i // 2, j // 2)
        assert i // 2 == j // 2 or correlations.mutual_information(grammar, i, j) <= above + 1e-14


def test_a_subset_of_pairs_is_reproducible_and_close_to_the_mean_over_all():
    """40 samples of 256 pairs at heights 5 and 6 of 6.

    The z-score of their mean, with 39 degrees of freedom, is refused beyond 5: false alarms in 3e-5 of seeds.
    """
    all_pairs = correlations.mutual_information_by_distance(RLM(v=4, L=6, beta=1.0))
    subsets = [
        correlations.mutual_information_by_distance(RLM(v=4, L=6, beta=1.0, seed_samples=seed), max_pairs=256)
        for seed in range(40)
    ]
    again = correlations.mutual_information_by_distance(RLM(v=4, L=6, beta=1.0, seed_samples=0), max_pairs=256)
    assert torch.equal(again, subsets[0])
    # 2^(L + h - 2) pairs: heights up to 4 are still exact.
    assert torch.equal(subsets[0][:4], all_pairs[:4]) and not torch.equal(subsets[0][4:], subsets[1][4:])
    top = torch.stack(subsets)[:, 4:]
    z = (top.mean(0) - all_pairs[4:]) / (top.std(0) / math.sqrt(40))
    assert z.abs().max() < 5


def test_marginals_and_joints_are_the_frequencies_of_sampled_tokens():
    """Chi-square of 8 marginals and 28 joints at v = 8, L = 3, each rejected at 1e-6: false alarms in 4e-5 of seeds."""
    grammar = RLM(v=8, L=3, beta=1.0, seed_rules=5, seed_samples=7)
    N = 50_000
    sequences = grammar.sequences(0, N, 'other')
    ones = torch.ones(N, dtype=torch.float64)

    def p_value(columns: list[int], expected: Tensor) -> float:
        expected = expected.flatten() * N
        # Rare outcomes are counted together: the chi-square law needs a few counts in each cell.
        rare = expected < 5
        observed = law(sequences[:, columns], ones, grammar.v)
        observed = torch.cat((observed[~rare], observed[rare].sum()[None]))
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        kept = expected > 0
        assert observed[~kept].sum() == 0
        statistic = ((observed - expected)[kept].square() / expected[kept]).sum()
        freedom = torch.tensor((kept.sum().item() - 1) / 2, dtype=torch.float64)
        return torch.special.gammaincc(freedom, statistic / 2).item()

    marginals = correlations.leaf_marginals(grammar)
    for i in range(8):
        assert p_value([i], marginals[i]) > 1e-6
        for j in range(i + 1, 8):
            assert p_value([i, j], correlations.joint(grammar, i, j)) > 1e-6


@pytest.fixture
def enumerated_inference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The exact log-likelihood by enumeration in the place of belief propagation, where `entropies` looks it up."""
    calls: list[int] = []

    def counted(grammar: TreeGrammar, leaves: Tensor) -> Tensor:
        calls.append(len(leaves))
        return enumerated_log_likelihood(grammar, leaves)

    monkeypatch.setattr(entropies, 'log_likelihood', counted)
    yield
    assert calls, 'the enumeration was not used'


@pytest.mark.parametrize('zeros', [0.0, 0.7])
def test_sampled_entropy_of_leaves_is_the_summed_one_within_its_stated_error(enumerated_inference, zeros):
    """30 seeds: the mean square of the z-scores of a fair error bar is 1 +- 0.26; outside 0.4..2.1 in < 1e-3."""
    scores = []
    for seed in range(30):
        grammar = random_grammar(3, 2, 11, zeros)
        grammar.seed_samples = seed
        value, error = entropies.leaves_entropy(grammar, num_samples=512, max_sequences=0)
        scores.append((value - entropies.leaves_entropy(grammar)[0]) / error)
    assert 0.4 < torch.tensor(scores).square().mean() < 2.1
    assert entropies.ambiguity(grammar, 512, 0) == pytest.approx((entropies.tree_entropy(grammar) - value, error))


def test_sampled_entropy_of_leaves_is_the_same_by_belief_propagation_and_by_enumeration(monkeypatch):
    grammar = random_grammar(3, 2, 5)
    by_propagation = entropies.leaves_entropy(grammar, num_samples=100, max_sequences=0)
    monkeypatch.setattr(entropies, 'log_likelihood', enumerated_log_likelihood)
    by_enumeration = entropies.leaves_entropy(grammar, num_samples=100, max_sequences=0)
    assert by_propagation == pytest.approx(by_enumeration, rel=1e-10)
    monkeypatch.setattr(entropies, 'log_likelihood', lambda grammar, leaves: leaves.sum(1).double())
    assert entropies.leaves_entropy(grammar, num_samples=100, max_sequences=0) != by_enumeration


def test_sampled_entropy_needs_no_luck_where_leaves_tell_the_tree(enumerated_inference):
    """Each pair of children has one parent only: -ln P(tree) is -ln P(leaves), and the control variate is perfect."""
    rules = torch.zeros(4, 4, 4, dtype=torch.float64)
    for a in range(4):
        rules[a, a] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    grammar = TreeGrammar(rules, 2, prior=[0.1, 0.2, 0.3, 0.4])
    value, error = entropies.leaves_entropy(grammar, num_samples=16, max_sequences=0)
    assert value == pytest.approx(entropies.tree_entropy(grammar), abs=1e-12) and error < 1e-12


@pytest.mark.parametrize('i, j', [(-1, 0), (0, 8), (8, 8)])
def test_positions_outside_the_sequence_are_refused_by_name(i, j):
    grammar = random_grammar(2, 3, 0)
    for measure in (correlations.joint, correlations.covariance, correlations.mutual_information):
        with pytest.raises(ValueError, match=r'position=(-1|8) is outside a sequence of 8 tokens: use 0 to 7'):
            measure(grammar, i, j)


def test_numbers_of_samples_that_leave_nothing_are_refused_by_name():
    grammar = random_grammar(2, 3, 0)
    with pytest.raises(ValueError, match='max_pairs=0'):
        correlations.mutual_information_by_distance(grammar, max_pairs=0)
    with pytest.raises(ValueError, match='num_samples=2'):
        entropies.leaves_entropy(grammar, num_samples=2, max_sequences=0)
