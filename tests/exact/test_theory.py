"""Closed formulas, against brute force, against averages over grammars and against their limits."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import integrate, stats

from RLM_clean.datasets import RHM
from RLM_clean.datasets.random_language_model import random_rules
from RLM_clean.exact import theory

BETAS = (0.5, 1.0, 2.0, 3.0, 4.0)


# ---------------------------------------------------------------------- the rule as a random energy model


def test_both_phases_of_the_random_energy_model_meet_at_the_freezing_point() -> None:
    below, above = theory.BETA_FREEZING - 1e-7, theory.BETA_FREEZING + 1e-7
    assert theory.rem_log_partition(32, below) == pytest.approx(theory.rem_log_partition(32, above), abs=1e-5)
    assert theory.rem_entropy(32, below) == pytest.approx(0, abs=1e-5)
    assert theory.rem_entropy(32, above) == 0
    assert theory.rem_participation_ratio(below) == 0
    assert theory.rem_participation_ratio(above) == pytest.approx(0, abs=1e-6)
    assert theory.rem_participation_ratio(4) == 0.5


@pytest.mark.parametrize('beta', (0.3, 1.0, 1.7, 2.5))
def test_the_entropy_is_the_derivative_of_the_free_energy(beta: float) -> None:
    """`S = ln Z - beta d(ln Z)/d(beta)` in the limit, and at finite v, where the library integrates by parts."""
    h = 1e-4
    for log_partition, entropy in (
        (theory.rem_log_partition, theory.rem_entropy),
        (theory.mean_log_partition, theory.mean_rule_entropy),
    ):
        slope = (log_partition(32, beta + h) - log_partition(32, beta - h)) / (2 * h)
        assert log_partition(32, beta) - beta * slope == pytest.approx(entropy(32, beta), abs=1e-6)


@pytest.mark.parametrize('beta', (0.5, 1.0, 2.0, 3.0))
def test_quadrature_agrees_with_brute_force_for_two_symbols(beta: float) -> None:
    """v = 2: four weights, a Gaussian integral in three dimensions, the fourth being a shift of all energies."""
    sigma = beta * math.sqrt(math.log(2))
    points = torch.arange(-9, 9.01, 0.2, dtype=torch.float64)
    grid = torch.cartesian_prod(points, points, points)
    measure = torch.softmax(-(grid**2).sum(1) / 2, 0)
    orthogonal = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
    energies = sigma * grid @ orthogonal
    p = torch.softmax(energies, 1)
    entropy = -(p * torch.log_softmax(energies, 1)).sum(1)
    assert theory.mean_log_partition(2, beta) == pytest.approx((measure @ energies.logsumexp(1)).item(), abs=1e-9)
    assert theory.mean_participation_ratio(2, beta) == pytest.approx((measure @ (p**2).sum(1)).item(), abs=1e-9)
    assert theory.mean_rule_entropy(2, beta) == pytest.approx((measure @ entropy).item(), abs=1e-9)


@pytest.mark.parametrize('v, grammars', ((32, 60), (128, 4)))
def test_finite_size_averages_agree_with_those_over_grammars(v: int, grammars: int) -> None:
    """Within 4 standard errors, in 20 comparisons: one false alarm in about 800 seeds."""
    for beta in BETAS:
        entropy, participation = [], []
        for seed in range(grammars):
            p = random_rules(v, beta, seed).double().flatten(1)
            entropy.append(torch.special.entr(p).sum(1))
            participation.append((p**2).sum(1))
        for samples, exact in (
            (torch.cat(entropy), theory.mean_rule_entropy(v, beta)),
            (torch.cat(participation), theory.mean_participation_ratio(v, beta)),
        ):
            error = samples.std().item() / math.sqrt(len(samples))
            assert abs(samples.mean().item() - exact) < 4 * error, (v, beta)


def test_rules_are_uniform_at_infinite_temperature() -> None:
    for v in (2, 32, 1000):
        assert theory.mean_log_partition(v, 0) == pytest.approx(2 * math.log(v), abs=1e-12)
        assert theory.mean_rule_entropy(v, 0) == pytest.approx(2 * math.log(v), abs=1e-12)
        assert theory.mean_participation_ratio(v, 0) == pytest.approx(1 / v**2, rel=1e-12)


def test_high_temperature_corrections_are_those_of_the_annealed_expansion() -> None:
    """`E ln Z = ln E Z - Var Z / (2 (E Z)^2)` up to the cube of a ratio that is 6e-6 here."""
    v, beta = 1000, 0.5
    relative_variance = (v ** (beta**2) - 1) / v**2
    expected = theory.rem_log_partition(v, beta) - relative_variance / 2
    assert theory.mean_log_partition(v, beta) == pytest.approx(expected, abs=1e-9)
    assert theory.mean_participation_ratio(v, beta) == pytest.approx(v ** (beta**2 - 2), rel=1e-4)


@pytest.mark.parametrize('beta', (1.0, 2.0, 3.0, 6.0))
def test_large_vocabularies_approach_the_thermodynamic_limit(beta: float) -> None:
    distances = [
        (
            abs(theory.mean_log_partition(v, beta) - theory.rem_log_partition(v, beta)) / math.log(v),
            abs(theory.mean_rule_entropy(v, beta) - theory.rem_entropy(v, beta)) / math.log(v),
            abs(theory.mean_participation_ratio(v, beta) - theory.rem_participation_ratio(beta)),
        )
        for v in (10**2, 10**4, 10**6)
    ]
    for larger, smaller in zip(distances[1:], distances[:-1], strict=True):
        assert all(a < b for a, b in zip(larger, smaller, strict=True))


@pytest.mark.parametrize('v', (2, 8, 1024))
def test_a_very_cold_rule_has_the_largest_weight_and_sometimes_the_second(v: int) -> None:
    """At T = 1 / sigma, to first order: `E ln Z = E max g / T`, `1 - E Y = rho T` and `E S = rho T pi^2 / 6`.

    rho is the density at 0 of the gap between the two largest of N normal numbers, `N (N - 1) E[density Phi^(N-2)]`:
    two weights of ratio e^(-gap / T) have `1 - Y = 2 p (1 - p)`, whose integral over gap / T is 1; that of the entropy
    is pi^2 / 6. The corrections are of order T^2 = 1e-8 / ln v, relative to rho T of order T.
    """
    beta, N = 1e4, v**2
    sigma = beta * math.sqrt(math.log(v))
    phi, density = stats.norm.cdf, stats.norm.pdf
    rho = integrate.quad(lambda g: N * (N - 1) * density(g) ** 2 * phi(g) ** (N - 2), -8, 8, points=[0, 4])[0]
    largest = integrate.quad(lambda g: N * g * density(g) * phi(g) ** (N - 1), -8, 8, points=[0, 4])[0]
    assert theory.mean_log_partition(v, beta) == pytest.approx(sigma * largest, rel=1e-7)
    assert 1 - theory.mean_participation_ratio(v, beta) == pytest.approx(rho / sigma, rel=1e-3)
    assert theory.mean_rule_entropy(v, beta) == pytest.approx(rho / sigma * math.pi**2 / 6, rel=1e-3)


def test_a_colder_rule_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of all points at which the integrands are evaluated."""
    points: list[int] = []

    def counted(z: torch.Tensor) -> torch.Tensor:
        points.append(z.numel())
        return erfc(z)

    erfc = torch.special.erfc
    monkeypatch.setattr(torch.special, 'erfc', counted)
    for beta in (10.0, 1e2, 1e4, 1e8):
        theory.mean_rule_entropy(128, beta)
    assert len(points) == 4 and max(points) < 1.2 * points[0] < 10**6


@pytest.mark.parametrize('v', (2, 8, 128, 10**8, 10**16))
@pytest.mark.parametrize('beta', (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 30.0, 1e4))
def test_the_chances_that_two_draws_agree_and_that_they_do_not_add_up(v: int, beta: float) -> None:
    """Two integrals, which differ in all their factors."""
    _, agree, differ = theory._rule_integrals(v, beta)
    assert agree + differ == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    'v, beta', ((2, 0.9), (2, 1.3), (128, 0.4), (128, 0.6), (128, 2.0), (1024, 30.0), (10**16, 2.0))
)
def test_the_averages_have_converged(v: int, beta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides of sigma = 1, where the variable of the inner integral changes: a finer step gives the same."""
    found = theory._rule_integrals(v, beta)
    monkeypatch.setattr(theory, '_STEP', 0.7 * theory._STEP)
    assert theory._rule_integrals(v, beta) == pytest.approx(found, rel=1e-13)


def test_rare_large_weights_of_a_huge_rule_are_not_cut_off() -> None:
    """`E Y = v^(beta^2 - 2)` far above the freezing point: at N = 1e32, of weights 15 standard deviations out."""
    v, beta = 10**16, 0.9
    assert theory.mean_participation_ratio(v, beta) == pytest.approx(float(v) ** (beta**2 - 2), rel=1e-5)


@pytest.mark.parametrize('v, beta, tolerance', ((128, 15.0, 0.01), (10**8, 8.0, 0.01), (10**16, 4.0, 0.03)))
def test_the_weights_of_a_frozen_rule_are_those_of_poisson_and_dirichlet(v: int, beta: float, tolerance: float) -> None:
    """`E S = psi(1) - psi(Y)` with Y = E sum p^2, exact for v to infinity at fixed Y = 1 - 2 / beta."""
    Y = theory.mean_participation_ratio(v, beta)
    digamma = torch.special.digamma(torch.tensor([1.0, Y], dtype=torch.float64))
    assert theory.mean_rule_entropy(v, beta) == pytest.approx((digamma[0] - digamma[1]).item(), rel=tolerance)


def test_temperatures_of_de_giuli_are_those_of_the_weights_and_freeze_at_one_eighth() -> None:
    """Var(ln M) = beta^2 ln v = ln v / (2 x), the variance of the weights of a rule up to their common factor."""
    assert theory.degiuli_temperature(theory.BETA_FREEZING) == 1 / 8
    assert [theory.beta_of_degiuli_temperature(x) for x in (1 / 8, 1 / 2, 1 / 32)] == [2, 1, 4]
    weights = random_rules(128, 1.5, 0).double().log().flatten(1)
    expected = math.log(128) / (2 * theory.degiuli_temperature(1.5))
    assert weights.var(1).mean().item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize('function', (theory.mean_log_partition, theory.mean_rule_entropy, theory.rem_entropy))
def test_impossible_rules_are_refused(function: Callable[[int, float], float]) -> None:
    for v, beta in ((1, 1.0), (8, -1.0), (8, math.nan), (8, math.inf)):
        with pytest.raises(ValueError, match=r'v=1|beta='):
            function(v, beta)


def test_impossible_temperatures_are_refused() -> None:
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match='beta='):
            theory.degiuli_temperature(value)
        with pytest.raises(ValueError, match='x='):
            theory.beta_of_degiuli_temperature(value)


# ---------------------------------------------------------------------- the decay of correlations


def test_transition_matrices_are_the_marginals_of_the_rules() -> None:
    rules = torch.zeros(2, 2, 2)
    rules[0] = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    rules[1] = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    left, right = theory.transition_matrices(rules)
    torch.testing.assert_close(left, torch.tensor([[0.3, 0.7], [1, 0]], dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(right, torch.tensor([[0.4, 0.6], [0, 1]], dtype=torch.float64), atol=1e-7, rtol=0)
    for matrix in theory.transition_matrices(random_rules(16, 2.0, 0)):
        torch.testing.assert_close(matrix.sum(1), torch.ones(16, dtype=torch.float64), atol=1e-14, rtol=0)


def test_second_eigenvalue_of_known_matrices() -> None:
    assert theory.second_eigenvalue(torch.tensor([[0.9, 0.1], [0.3, 0.7]])) == pytest.approx(0.6, abs=1e-6)
    cycle = torch.roll(torch.eye(3), 1, 0)
    assert theory.second_eigenvalue(0.5 * cycle + 0.5 / 3) == pytest.approx(0.5, abs=1e-6)


def test_correlations_fall_as_the_eigenvalues_say() -> None:
    """The covariance of the two leaves in the middle of a tree, over 200 levels: its slope against the eigenvalues."""
    rules = random_rules(6, 1.5, 3)
    left, right = theory.transition_matrices(rules)
    covariance = rules.double().mean(0)
    logs = []
    for _ in range(200):
        # P_R on the path to the one leaf, P_L on the path to the other; rounding would revive the constant mode.
        covariance = right.T @ covariance @ left
        covariance = covariance - covariance.mean(0) - covariance.mean(1, keepdim=True) + covariance.mean()
        logs.append(covariance.norm().log().item())
        covariance = covariance / covariance.norm()
    per_level = theory.correlation_decay(rules, 1, 2)
    assert sum(logs[20:]) / len(logs[20:]) == pytest.approx(math.log(per_level), rel=0.03)
    assert theory.correlation_decay(rules, 7, 8) == pytest.approx(per_level**3, rel=1e-12)


def test_correlation_decay_counts_the_steps_of_both_paths() -> None:
    rules = random_rules(8, 1.5, 0)
    left, right = (theory.second_eigenvalue(matrix) for matrix in theory.transition_matrices(rules))
    assert theory.correlation_decay(rules, 4, 5) == 1
    assert theory.correlation_decay(rules, 0, 4) == pytest.approx(left**4)
    assert theory.correlation_decay(rules, 3, 7) == pytest.approx(right**4)
    assert (
        theory.correlation_decay(rules, 1, 6)
        == theory.correlation_decay(rules, 6, 1)
        == pytest.approx(left**2 * right**2)
    )
    for i, j in ((3, 3), (-1, 2)):
        with pytest.raises(ValueError, match='two leaves'):
            theory.correlation_decay(rules, i, j)


@pytest.mark.parametrize('beta', (0.5, 1.0, 2.0))
def test_a_random_rule_contracts_differences_by_its_random_matrix_size(beta: float) -> None:
    """Mean of |d P|^2 / |d|^2 over 400 matrices within 4 standard errors: one false alarm in 5000 seeds."""
    d = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d -= d.mean()
    ratios = torch.stack(
        [
            (d @ matrix).square().sum() / d.square().sum()
            for seed in range(200)
            for matrix in theory.transition_matrices(random_rules(16, beta, seed))
        ]
    )
    error = ratios.std().item() / math.sqrt(len(ratios))
    assert abs(ratios.mean().item() - theory.random_second_eigenvalue(16, beta) ** 2) < 4 * error


def test_second_eigenvalues_of_random_grammars_are_of_the_random_matrix_size() -> None:
    """Eigenvalues at the edge of a disc scatter: 15 % at high temperature, 40 % at the freezing point."""
    for beta, tolerance in ((0.5, 0.15), (2.0, 0.4)):
        found = [
            theory.second_eigenvalue(matrix)
            for seed in range(8)
            for matrix in theory.transition_matrices(random_rules(48, beta, seed))
        ]
        assert sum(found) / len(found) == pytest.approx(theory.random_second_eigenvalue(48, beta), rel=tolerance)
    assert theory.random_second_eigenvalue(32, 0) == pytest.approx(0, abs=1e-6)
    assert theory.random_second_eigenvalue(128, 0.5) == pytest.approx(math.sqrt(128**0.25 - 1) / 128, rel=0.01)


# ---------------------------------------------------------------------- the Random Hierarchy Model


def _mean_square_covariances(rhm: RHM) -> torch.Tensor:
    """The squared covariance of two leaves, averaged over symbols and pairs, for each height of their ancestor."""
    L, n = rhm.L, 2**rhm.L
    chains = [theory.transition_matrices(rhm.level_rules(level)) for level in range(L)]
    squares: list[list[float]] = [[] for _ in range(L)]
    for i in range(n):
        for j in range(i + 1, n):
            height = (i ^ j).bit_length()
            law = rhm.prior
            to_i = to_j = torch.eye(rhm.v, dtype=torch.float64)
            for level, matrices in enumerate(chains):
                # From level `level`, the path to leaf i turns right where that bit of i is set.
                turn_i, turn_j = i >> (L - 1 - level) & 1, j >> (L - 1 - level) & 1
                if level < L - height:
                    law = law @ matrices[turn_i]
                elif level > L - height:
                    to_i, to_j = to_i @ matrices[turn_i], to_j @ matrices[turn_j]
            children = torch.einsum('a,abc->bc', law, rhm.level_rules(L - height))
            joint = to_i.T @ children @ to_j
            covariance = joint - joint.sum(1, keepdim=True) * joint.sum(0)
            squares[height - 1].append(covariance.square().mean().item())
    return torch.tensor([sum(values) / len(values) for values in squares], dtype=torch.float64)


def test_covariances_of_the_random_hierarchy_model_are_the_published_ones() -> None:
    """v = 32, m = 8, L = 3, as in figure 1 of Cagnetta and Wyart (2024); the formula is asymptotic in v and m.

    Over 30 grammars the statistical error is about 1 % at each height. At the root, where the prior is uniform, the
    formula is known at finite v too: the square of the covariance has a factor (1 - 1/v)^2 v^2 / (v^2 - 1) from the
    centering and from drawing pairs without replacement, and (v / (v + 1))^2 for each further level.
    """
    v, m, L = 32, 8, 3
    found = torch.stack([_mean_square_covariances(RHM(v, m, L, seed_rules=seed)) for seed in range(30)]).mean(0).sqrt()
    published = [theory.rhm_covariance(v, m, height) for height in (1, 2, 3)]
    for measured, formula in zip(found.tolist(), published, strict=True):
        assert measured == pytest.approx(formula, rel=0.12)
    finite = (1 - 1 / v) * math.sqrt(v**2 / (v**2 - 1)) * (v / (v + 1)) ** (L - 1)
    assert found[-1].item() == pytest.approx(published[-1] * finite, rel=0.03)


def test_levels_are_learnt_when_their_covariance_exceeds_the_sampling_noise() -> None:
    v, m = 16, 4
    sizes = theory.rhm_sample_sizes(v, m, 4)
    assert theory.rhm_covariance(v, m, 1) == pytest.approx(math.sqrt(0.75 / (16**3 * 4)), rel=1e-12)
    assert theory.rhm_covariance(v, m, 4) == pytest.approx(math.sqrt(0.75 / (16**3 * 4**7)), rel=1e-12)
    assert sizes[0] == pytest.approx(16 * 4 / (1 - 0.25))
    assert sizes[1] / sizes[0] == pytest.approx(m**2)
    assert theory.rhm_covariance(8, 8, 1) == 0
    assert theory.rhm_sample_sizes(8, 8, 2) == [math.inf, math.inf]


def test_impossible_hierarchies_are_refused() -> None:
    for arguments in ((8, 0, 1), (8, 9, 1), (1, 1, 1), (8, 2, 0)):
        with pytest.raises(ValueError, match=r'v=|m=|height'):
            theory.rhm_covariance(*arguments)
        with pytest.raises(ValueError, match=r'v=|m=|height'):
            theory.rhm_sample_sizes(*arguments)
