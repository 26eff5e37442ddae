"""The learner that knows the tree: expected counts against enumeration, likelihoods that rise, rules that are found."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from brute_force import all_trees, joint, last_given, occurring
from random_grammars import exhaustive, random_grammar
from torch import Tensor

from RLM_clean import measures
from RLM_clean.analysis import baselines, expectation_maximisation
from RLM_clean.analysis.expectation_maximisation import FittedRules, KnownTree, expected_counts, fit_rules
from RLM_clean.analysis.relabelling import match_symbols, rule_distances
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact.inference import log_likelihood

SIZES = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)]


# ---------------------------------------------------------------------- the expectation


@exhaustive(sizes=SIZES, examples=25)
def test_expected_counts_are_those_of_all_trees(grammar: TreeGrammar) -> None:
    """Each production of each tree above a sequence, with the posterior probability of the tree."""
    v, L = grammar.v, grammar.L
    sequences, probs = occurring(joint(grammar), at_most=6)
    numbers = torch.arange(1, len(sequences) + 1)
    levels, tree_probs = all_trees(grammar)
    expected = torch.zeros(L, v**3, dtype=torch.float64)
    for sequence, prob, number in zip(sequences, probs, numbers.tolist(), strict=True):
        above = (levels[-1] == sequence).all(1)
        posterior = tree_probs[above] / prob
        assert posterior.sum().item() == pytest.approx(1, abs=1e-12)
        for depth in range(L):
            parents, children = levels[depth][above], levels[depth + 1][above]
            codes = (parents * v + children[:, ::2]) * v + children[:, 1::2]
            for node in codes.T:
                expected[depth].index_add_(0, node, number * posterior)
    found, log_probs = expected_counts(grammar, sequences, numbers)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-12 * numbers.sum().item())
    torch.testing.assert_close(log_probs, probs.log(), rtol=0, atol=1e-12)


def test_expected_counts_do_not_depend_on_how_sequences_are_cut_into_chunks() -> None:
    """More sequences than one chunk holds, 2^17 / v: their counts are the sum of those of the parts."""
    grammar = random_grammar(32, 2, seed=1, shared=True)
    sequences = grammar.sequences(0, 5000)
    whole, log_probs = expected_counts(grammar, sequences)
    parts = [expected_counts(grammar, part) for part in sequences.split(1700)]
    torch.testing.assert_close(whole, sum(part[0] for part in parts), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_probs, log_likelihood(grammar, sequences), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.sum((1, 2, 3)), torch.tensor([5000.0, 10000.0], dtype=torch.float64))


# ---------------------------------------------------------------------- the fit


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('weight', [0.0, 1.0])
@pytest.mark.parametrize('L', [1, 2, 3])
def test_the_likelihood_never_falls(shared: bool, weight: float, L: int) -> None:
    """With the density of the rules a priori where they have one; up to the rounding of a sum over the sequences."""
    grammar = random_grammar(3, L, seed=4, shared=True)
    fit = fit_rules(grammar.sequences(0, 500), 3, shared, starts=3, weight=weight, max_iterations=60, tolerance=0)
    for values in fit.log_likelihoods:
        steps = torch.tensor(values, dtype=torch.float64).diff()
        assert steps.min() >= -1e-12 * abs(values[-1])
        assert len(steps) > 15 or (L == 1 and not weight)  # frequencies of pairs are reached at once
        assert values[-1] > values[0] + 10


def test_the_values_are_likelihoods_and_the_best_start_is_the_most_likely() -> None:
    grammar = RLM(4, 2, seed_rules=2)
    sequences = grammar.sequences(0, 3000)
    fit = fit_rules(sequences, 4, starts=4, weight=0.0, max_iterations=100)
    ends = [values[-1] for values in fit.log_likelihoods]
    assert ends[fit.best] == max(ends) > min(ends) + 10  # some starts end in another maximum
    assert ends[fit.best] == pytest.approx(log_likelihood(fit.grammar, sequences).sum().item(), rel=1e-12)
    penalised = fit_rules(sequences, 4, starts=1, weight=2.0, max_iterations=30)
    expected = log_likelihood(penalised.grammar, sequences).sum() + 2 / 16 * penalised.grammar.rules[0].log().sum()
    assert penalised.log_likelihoods[0][-1] == pytest.approx(expected.item(), rel=1e-12)


def test_a_fit_ends_where_an_iteration_changes_nothing() -> None:
    """At a maximum the rules are the frequencies of their own expected counts."""
    sequences = RLM(3, 2, beta=1.0, seed_rules=1).sequences(0, 2000)
    fit = fit_rules(sequences, 3, starts=1, weight=1.0, tolerance=1e-12, max_iterations=2000)
    assert fit.converged == [True]
    counts = expected_counts(fit.grammar, sequences)[0].sum(0) + 1 / 9
    frequencies = counts / counts.sum((1, 2), keepdim=True)
    assert (frequencies - fit.grammar.level_rules(0)).abs().max() < 1e-4


def test_a_start_is_a_function_of_the_seed_and_its_number_alone() -> None:
    sequences = RLM(3, 2, seed_rules=1).sequences(0, 200)

    def starts(number: int, seed: int) -> list[list[float]]:
        torch.manual_seed(number)
        return fit_rules(sequences, 3, starts=number, seed=seed, max_iterations=5).log_likelihoods

    assert starts(3, seed=1)[:2] == starts(2, seed=1)
    assert starts(2, seed=1)[0] != starts(2, seed=1)[1] and starts(1, seed=1) != starts(1, seed=2)


@pytest.mark.parametrize('most', range(1, 12))
def test_a_start_makes_no_more_passes_than_it_may(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Mock(wraps=expectation_maximisation.expected_counts)
    monkeypatch.setattr(expectation_maximisation, 'expected_counts', passes)
    fit_rules(RLM(3, 2, seed_rules=1).sequences(0, 50), 3, starts=1, max_iterations=most, tolerance=0)
    assert 1 <= passes.call_count <= most


def test_the_passes_that_are_left_are_iterations() -> None:
    """One pass gives the rules after one iteration; two and three the last ones whose value is known."""
    sequences = RLM(3, 2, seed_rules=1).sequences(0, 300)
    rules = [expectation_maximisation._random_rules(3, 1, 0, 0)[0]]
    values = []
    for _ in range(3):
        counts, log_probs = expected_counts(TreeGrammar(rules[-1], 2), sequences)
        values.append(log_probs.sum().item() + rules[-1].log().sum().item() / 9)
        counts = counts.sum(0) + 1 / 9
        rules.append(counts / counts.sum((1, 2), keepdim=True))
    for most, iterations in ((1, 1), (2, 1), (3, 2)):
        fit = fit_rules(sequences, 3, starts=1, max_iterations=most, tolerance=0)
        torch.testing.assert_close(fit.grammar.level_rules(0), rules[iterations], rtol=1e-10, atol=0)
        assert fit.log_likelihoods[0] == pytest.approx(values[:most], rel=1e-12)
        assert fit.converged == [False]
    # After an extrapolation too: five passes are the four of three steps, or the three of two, and the rest.
    for most in range(4, 12):
        fit = fit_rules(sequences, 3, starts=1, max_iterations=most, tolerance=0)
        expected = log_likelihood(fit.grammar, sequences).sum() + fit.grammar.rules[0].log().sum() / 9
        assert fit.log_likelihoods[0][-1] == pytest.approx(expected.item(), rel=1e-12)


def test_a_start_converges_in_the_passes_that_are_left_too() -> None:
    """Of a tree of one level: one iteration finds the frequencies of the pairs, where the root has one symbol."""
    sequences, prior = RLM(3, 1, seed_rules=1).sequences(0, 300), torch.tensor([1.0, 0, 0])
    fit = fit_rules(sequences, 3, prior=prior, starts=1, weight=0.0, max_iterations=3)
    assert fit.converged == [True] and len(fit.log_likelihoods[0]) == 3


# ---------------------------------------------------------------------- the rules


def fisher_information(grammar: TreeGrammar) -> Tensor:
    """`F = sum_x (d P(x) / d M)(d P(x) / d M)^T / P(x)` of the shared rules of a tree of two levels, `(v^3, v^3)`."""

    def law(M: Tensor) -> Tensor:
        return torch.einsum('a,abc,bij,ckl->ijkl', grammar.prior, M, M, M).flatten()

    M = grammar.level_rules(0)
    jacobian = torch.autograd.functional.jacobian(law, M).flatten(1)
    return jacobian.T @ (jacobian / law(M)[:, None])


def check_recovered(grammar: TreeGrammar, size: int, starts: int, largest_error: float) -> None:
    """Rules that all levels share are found to the precision of the best unbiased estimate.

    The errors d of the maximum of the likelihood are normal, with the covariance C / P: C is the inverse of the Fisher
    information F on the differences of rules, whose rows sum to zero. So P d F d is chi-squared with v (v^2 - 1)
    degrees of freedom; a false-alarm rate of 1e-4 is allowed. Every probability is within 5 standard errors, false
    alarms 6e-7 each; `largest_error` bounds the largest one, so that this says that the rules are found.
    """
    from scipy.stats import chi2

    fit = fit_rules(grammar.sequences(0, size), grammar.v, starts=starts, weight=0.0, tolerance=1e-9)
    v = grammar.v
    d = (fit.grammar.level_rules(0) - grammar.level_rules(0)).flatten()
    F = fisher_information(grammar)
    rows = torch.eye(v * v, dtype=torch.float64) - 1 / v**2
    differences = torch.block_diag(*[torch.linalg.eigh(rows).eigenvectors[:, 1:]] * v)  # (v^3, v (v^2 - 1))
    covariance = differences @ torch.linalg.inv(differences.T @ F @ differences) @ differences.T / size
    errors = covariance.diag().sqrt()
    assert size * (d @ F @ d) < chi2.isf(1e-4, v * (v**2 - 1))
    assert (d.abs() < 5 * errors).all() and errors.max() < largest_error
    # Shared rules name the hidden symbols: no permutation is left.
    assert all(torch.equal(p, torch.arange(v)) for p in match_symbols(fit.grammar, grammar))


def test_shared_rules_of_three_symbols_are_recovered() -> None:
    check_recovered(RLM(3, 2, beta=1.0, seed_rules=9), 20_000, starts=3, largest_error=0.03)


@pytest.mark.slow
@pytest.mark.parametrize('seed_rules', [1, 2, 3])
@pytest.mark.parametrize('beta', [1.0, 2.0])
def test_shared_rules_are_recovered_from_a_hundred_thousand_sequences(beta: float, seed_rules: int) -> None:
    """v = 4, L = 2, six starts. At beta = 2 rules have entries near zero, where errors are smaller than normal ones."""
    check_recovered(RLM(4, 2, beta, seed_rules), 100_000, starts=6, largest_error=0.05)


def test_rules_of_each_level_are_recovered_up_to_a_permutation() -> None:
    """An RHM, whose pairs of tokens have one parent: the level above the tokens, and the law of the root's children.

    Total variation distances of 0.05: each production of the level has 1250 occurrences or more among P = 5000
    sequences, so that the frequencies of the m = 2 productions of a symbol have errors of 0.014 at most. Not every RHM
    is determined in this way: this one has no symbol that could also be read as a mixture of others.
    """
    grammar = RHM(4, 2, 2, seed_rules=2)
    fit = fit_rules(grammar.sequences(0, 5000), 4, shared=False, starts=6, weight=0.0)
    permutation = match_symbols(fit.grammar, grammar)[1]
    assert sorted(permutation.tolist()) == [0, 1, 2, 3]
    assert permutation.tolist() != [0, 1, 2, 3]  # the names are arbitrary: otherwise the test shows less
    assert rule_distances(fit.grammar, grammar)[1].max() < 0.05
    fitted, true = ((g.prior @ g.level_rules(0).flatten(1)).view(4, 4) for g in (fit.grammar, grammar))
    assert (fitted - true[permutation][:, permutation]).abs().sum() / 2 < 0.05


def test_rules_of_each_level_are_not_always_determined() -> None:
    """In this RHM a symbol can be read as a mixture of others: other rules than the true ones have the same law."""
    grammar = RHM(4, 2, 2, seed_rules=5)
    sequences = grammar.sequences(0, 5000)
    fit = fit_rules(sequences, 4, shared=False, starts=4, weight=0.0)
    assert fit.log_likelihoods[fit.best][-1] > log_likelihood(grammar, sequences).sum()
    assert rule_distances(fit.grammar, grammar)[1].max() > 0.2
    assert (joint(fit.grammar) - joint(grammar)).abs().sum() / 2 < 0.06


# ---------------------------------------------------------------------- the predictor


def test_the_prediction_is_the_exact_posterior_of_the_fitted_rules() -> None:
    grammar = random_grammar(3, 2, seed=1, shared=True)
    fit = KnownTree(starts=1, max_iterations=20).fit(grammar.sequences(0, 100), 3)
    contexts, expected = last_given(joint(fit.grammar), 3)
    found = fit(contexts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert (found.sum(1) - 1).abs().max() < 1e-12


def test_impossible_contexts_get_uniform_predictions_and_no_sequence_is_no_error() -> None:
    rules = torch.zeros(2, 2, 2)
    rules[:, 0, 0] = 1
    fit = FittedRules(TreeGrammar(rules, 2), [[0.0]], 0, [True])
    q = fit(torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 0]]))
    assert q.tolist() == [[1, 0], [0.5, 0.5], [0.5, 0.5]]
    blank = KnownTree(starts=2).fit(torch.zeros(0, 4, dtype=torch.int64), 2)(torch.zeros(1, 3, dtype=torch.int64))
    torch.testing.assert_close(blank, torch.full((1, 2), 0.5, dtype=torch.float64))


def test_the_tree_is_worth_more_than_counts() -> None:
    """After 1000 sequences of an RLM the learner that knows the tree has less than a third of the excess of counts."""
    grammar = RLM(4, 2, beta=2.0, seed_rules=1)
    reference = measures.reference(grammar)
    learners: list[baselines.Learner] = [KnownTree(), baselines.WittenBell(), baselines.KneserNey()]
    tree, *counts = (baselines.learning_curve(grammar, reference, x, [1000])[0]['excess'] for x in learners)
    assert 0 < 3 * tree < min(counts)


def test_what_cannot_be_fitted_is_an_error() -> None:
    sequences = torch.zeros(5, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r'sequences of shape \(5, 3\): give \(P, 2\^L\), all the tokens of each tree'):
        fit_rules(sequences[:, :3], 2)
    with pytest.raises(ValueError, match='starts=0, max_iterations=500: use 1 or more of each'):
        fit_rules(sequences, 2, starts=0)
    with pytest.raises(ValueError, match='weight=-1, tolerance=1e-07 are out of range: use 0 or more'):
        fit_rules(sequences, 2, weight=-1)
    with pytest.raises(ValueError, match=r'sequences of shape \(5, 2\): for a tree of 4 leaves give \(R, 4\)'):
        expected_counts(random_grammar(2, 2, 0), sequences[:, :2])
    for other in (sequences + 2, sequences - 1, sequences.double()):
        with pytest.raises(ValueError, match='other numbers than tokens of v=2: give int64 numbers from 0 to 1'):
            fit_rules(other, 2)
    with pytest.raises(ValueError, match='row 1 has probability zero under this grammar'):
        rules = torch.zeros(2, 2, 2)
        rules[:, 0, 0] = 1
        expected_counts(TreeGrammar(rules, 1), torch.tensor([[0, 0], [1, 0]]))
