"""Counts and corrected entropies of samples agree with plain loops and known distributions."""

import math
from collections import Counter

import pytest
import torch

from RLM_clean.analysis import counting
from RLM_clean.datasets import RLM
from RLM_clean.exact import correlations

sequences = RLM(v=3, L=2, beta=1.0).sequences(0, 200, 'other')


def test_counts_equal_those_of_a_loop_over_sequences() -> None:
    for positions in ([2], [0, 3], [3, 0, 1]):
        expected = Counter(tuple(row[k] for k in positions) for row in sequences.tolist())
        counts = counting.count_joint(sequences, positions, 3)
        assert counts.shape == (3,) * len(positions) and counts.sum() == 200
        assert all(counts[outcome] == number for outcome, number in expected.items())
    for n in (1, 2, 4):
        expected = Counter(tuple(row[k : k + n]) for row in sequences.tolist() for k in range(5 - n))
        counts = counting.count_ngrams(sequences, n, 3)
        assert counts.shape == (3,) * n and counts.sum() == 200 * (5 - n)
        assert all(counts[outcome] == number for outcome, number in expected.items())


def test_empirical_joint_has_the_empirical_marginals() -> None:
    marginals = counting.empirical_marginals(sequences, 3)
    pair = counting.empirical_joint(sequences, 1, 3, 3)
    torch.testing.assert_close(pair.sum(1), marginals[1])
    torch.testing.assert_close(pair.sum(0), marginals[3])
    torch.testing.assert_close(counting.empirical_joint(sequences, 2, 2, 3), torch.diag(marginals[2]))


def test_grassberger_uses_the_function_of_the_source() -> None:
    """G(1) = -gamma - ln 2, G(2n) = -gamma - ln 2 + sum_k<=n 2 / (2k - 1), G(2n + 1) = G(2n)."""
    gamma = 0.5772156649015329
    for count in range(1, 12):
        G = -gamma - math.log(2) + sum(2 / (2 * k - 1) for k in range(1, count // 2 + 1))
        entropy = counting.empirical_entropy(torch.tensor([count, count]), 'grassberger')
        assert entropy == pytest.approx(math.log(2 * count) - G, abs=1e-12)


def test_miller_madow_adds_the_number_of_outcomes_seen_minus_one_over_twice_the_samples() -> None:
    counts = torch.tensor([[3, 0], [1, 4]])
    plain = counting.empirical_entropy(counts, 'none')
    assert plain == pytest.approx(-sum(p * math.log(p) for p in (3 / 8, 1 / 8, 4 / 8)), abs=1e-12)
    assert counting.empirical_entropy(counts, 'miller-madow') == pytest.approx(plain + 2 / 16, abs=1e-12)


@pytest.mark.parametrize('samples', [50, 200])
def test_corrected_entropies_are_closer_to_the_truth_than_the_plain_one(samples: int) -> None:
    """Means over 200 data sets from a known distribution of 100 outcomes; they differ by far more than their spread."""
    generator = torch.Generator().manual_seed(1)
    law = torch.rand(100, generator=generator, dtype=torch.float64).square()
    law /= law.sum()
    truth = torch.special.entr(law).sum().item()
    draws = torch.multinomial(law.expand(200, -1), samples, replacement=True, generator=generator)
    bias = {}
    for correction in ('none', 'miller-madow', 'grassberger'):
        values = [counting.empirical_entropy(row.bincount(minlength=100), correction) for row in draws]
        bias[correction] = sum(values) / len(values) - truth
    assert bias['none'] < 0
    assert abs(bias['grassberger']) < abs(bias['miller-madow']) < abs(bias['none'])


def test_estimates_are_the_exact_values_within_their_error_at_large_samples() -> None:
    """Errors by the delta method, Var[ln P] / N for H and Var[ln P / (P P)] / N for I, false alarms in 6e-4 of seeds.

    Where tokens are all but independent 2 N I is a chi-square of (v - 1)^2 degrees of freedom: a term of second order
    in 1 / N, and a longer tail. Entropies are refused beyond 4 errors (6e-5 each), informations beyond 6 (7e-5 each).
    """
    grammar = RLM(v=4, L=3, beta=1.0, seed_samples=3)
    N = 100_000
    sample = grammar.sequences(0, N, 'other')
    for j in (1, 3, 7):
        pair = correlations.joint(grammar, 0, j)
        p, q = pair.sum(1, keepdim=True), pair.sum(0)
        information = correlations.mutual_information(grammar, 0, j)
        density = (pair / (p * q)).log()
        error = math.sqrt(((pair * density.square()).sum().item() - information**2) / N + (4 - 1) ** 2 / (2 * N**2))
        exact_entropy = torch.special.entr(pair).sum().item()
        error_entropy = math.sqrt(((pair * pair.log().square()).sum().item() - exact_entropy**2) / N)
        for correction in ('miller-madow', 'grassberger'):
            estimate = counting.empirical_mutual_information(sample, 0, j, 4, correction)
            assert abs(estimate - information) < 6 * error
            counts = counting.count_joint(sample, [0, j], 4)
            assert abs(counting.empirical_entropy(counts, correction) - exact_entropy) < 4 * error_entropy


def test_corrected_mutual_information_of_independent_tokens_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(4)
    independent = torch.randint(16, (200, 500, 2), generator=generator)
    plain, corrected = (
        sum(counting.empirical_mutual_information(sample, 0, 1, 16, correction) for sample in independent) / 200
        for correction in ('none', 'grassberger')
    )
    assert plain > 0.1 and abs(corrected) < plain / 10


def test_input_that_cannot_be_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match=r'position=4 is outside sequences of 4 tokens: use 0 to 3'):
        counting.count_joint(sequences, [0, 4], 3)
    with pytest.raises(ValueError, match='position=-1'):
        counting.empirical_joint(sequences, -1, 0, 3)
    with pytest.raises(ValueError, match='n=5 is not a valid length of n-grams'):
        counting.count_ngrams(sequences, 5, 3)
    with pytest.raises(ValueError, match='v=2 does not cover symbols from 0 to 2'):
        counting.empirical_marginals(sequences, 2)
    with pytest.raises(ValueError, match='table of'):
        counting.count_ngrams(sequences, 4, 512)
    with pytest.raises(ValueError, match='contain no token: count one sample or more'):
        counting.empirical_marginals(sequences[:0], 3)
    with pytest.raises(ValueError, match='all zero'):
        counting.empirical_entropy(torch.zeros(3))
    with pytest.raises(ValueError, match="correction='jackknife' is unknown"):
        counting.empirical_entropy(torch.ones(3), 'jackknife')  # type: ignore[arg-type]
