"""Fits of power laws: exact ones are found, intervals cover, and the range ends where the exponent drifts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from RLM_clean.analysis.collapse import collapse
from RLM_clean.analysis.scaling import bootstrap_generator, envelope, fit_power_law, local_exponent

Array = NDArray[np.float64]
P = np.geomspace(256, 65536, 9)
EXPONENT, AMPLITUDE = 0.5, 48.0


def noisy(trial: int, seeds: int, floor: float, noise: float, known: bool) -> Array:
    """Losses `(seeds, 9)` of a power law: the noise is a fraction of the excess, or of the loss where not `known`."""
    draws = np.random.default_rng(trial)
    law = AMPLITUDE * P**-EXPONENT
    errors = 1 + noise * draws.standard_normal((seeds, len(P)))
    if known:  # seeds differ in their languages too, by a factor at all sizes
        return floor + law * (errors + noise * draws.standard_normal((seeds, 1)))
    return (floor + law) * errors


def near_zero(floor: float, trial: int) -> Array:
    """Losses `(8, 8)` of a power law whose floor is small, with a noise of 10%."""
    sizes, draws = np.geomspace(128, 2**14, 8), np.random.default_rng(trial)
    return (floor + 3 * sizes**-0.5) * np.exp(0.1 * draws.standard_normal((8, 8)))


def covered(trials: int, seeds: int, floor: float, noise: float, known: bool) -> int:
    """In how many trials the interval of the exponent contains the true one."""
    fits = [
        fit_power_law(P, noisy(trial, seeds, floor, noise, known), floor if known else None, bootstraps=100)
        for trial in range(trials)
    ]
    return sum(fit.interval[0] <= EXPONENT <= fit.interval[1] for fit in fits)


# ---------------------------------------------------------------------- exact laws


@pytest.mark.parametrize('exponent', [0.07, 0.5, 2.0])
@pytest.mark.parametrize('floor', [0.0, 1.3])
def test_the_law_of_a_curve_without_noise_is_found(exponent: float, floor: float) -> None:
    loss = floor + AMPLITUDE * P**-exponent
    for given in (floor, None):
        fit = fit_power_law(P, loss, given, bootstraps=5)
        assert (fit.exponent, fit.amplitude) == pytest.approx((exponent, AMPLITUDE), rel=1e-4)
        assert fit.floor == pytest.approx(floor, abs=1e-4 * loss.min())
        assert fit.range == (P[0], P[-1]) and fit.drift == 1
        assert fit(P) == pytest.approx(loss, rel=1e-5)


def test_a_growing_law_is_found_where_the_floor_is_given() -> None:
    """As thresholds grow with the vocabulary."""
    fit = fit_power_law([8, 16, 32, 64], 3 * np.array([8, 16, 32, 64]) ** 1.5, 0.0)
    assert fit.exponent == pytest.approx(-1.5, rel=1e-5) and fit.amplitude == pytest.approx(3, rel=1e-4)


def test_geometric_means_follow_the_law_that_seeds_share_up_to_factors() -> None:
    """Factors whose logarithms sum to zero at each size change the arithmetic means only."""
    sizes = np.array([8.0, 16, 32, 64])
    spread = np.array([[0, 0.1, 0.8, 1.5], [0, -0.1, -0.8, -1.5]])
    thresholds = 3 * sizes**1.5 * np.exp(spread)
    assert fit_power_law(sizes, thresholds, 0.0, mean='geometric').exponent == pytest.approx(-1.5, rel=1e-5)
    assert fit_power_law(sizes, thresholds, 0.0).exponent < -1.7


def test_the_order_of_the_sizes_does_not_matter() -> None:
    loss = noisy(0, 4, 0.3, 0.05, True)
    order = np.random.default_rng(1).permutation(len(P))
    assert fit_power_law(P, loss, 0.3) == fit_power_law(P[order], loss[:, order], 0.3)


def test_a_fit_draws_from_a_generator_of_its_own() -> None:
    loss = noisy(0, 4, 0.0, 0.05, True)
    before = str(np.random.get_state())  # noqa: NPY002
    first = fit_power_law(P, loss, 0.0, seed=3)
    assert str(np.random.get_state()) == before  # noqa: NPY002
    assert fit_power_law(P, loss, 0.0, seed=3) == first != fit_power_law(P, loss, 0.0, seed=4)


# ---------------------------------------------------------------------- intervals


def test_intervals_cover_and_are_not_too_wide() -> None:
    """Of 30 intervals of 95% fewer than 25 cover with probability 0.3%; and they are as wide as theory says.

    The exponent is a mean of those of the seeds, to first order: half a width is t s / sqrt(S), s the standard
    deviation of the slope of a line through 9 points of relative error 0.1.
    """
    assert covered(30, 5, 0.4, 0.1, True) >= 25
    s = 0.1 / np.sqrt(((np.log(P) - np.log(P).mean()) ** 2).sum())
    fits = [fit_power_law(P, noisy(trial, 5, 0.0, 0.1, True), 0.0, False, bootstraps=50) for trial in range(30)]
    halves = [(fit.interval[1] - fit.interval[0]) / 2 for fit in fits]
    assert np.mean(halves) == pytest.approx(stats.t.ppf(0.975, 4) * s / np.sqrt(5), rel=0.25)


KINDS: list[tuple[int, float, float, bool]] = [
    (5, 0.4, 0.1, True), (3, 0.7, 0.1, True), (8, 0.7, 0.02, False), (5, 0.5, 0.02, False), (1, 0.0, 0.1, True),
    (1, 0.5, 0.01, False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('seeds', 'floor', 'noise', 'known'), KINDS)
def test_intervals_of_95_percent_cover_in_90_to_98_percent_of_200_trials(
    seeds: int, floor: float, noise: float, known: bool
) -> None:
    assert 180 <= covered(200, seeds, floor, noise, known) <= 196


def test_near_a_floor_of_zero_the_intervals_are_those_of_a_floor_without_a_bound() -> None:
    """Of a curve whose fitted floor is 0, refitted by scipy's least squares in all three parameters.

    With floors of 0 or more in the bootstrap, the interval of the exponent is a third smaller here.
    """
    sizes = np.geomspace(128, 2**14, 8)
    loss = near_zero(0.0, 1)
    fit = fit_power_law(sizes, loss, None, choose_range=False, bootstraps=20)
    assert fit.floor == fit.floor_interval[0] == 0 < fit.floor_interval[1]
    generator, curve, found = bootstrap_generator(0), loss.mean(0), []
    for _ in range(20):
        replica = loss[generator.integers(8, size=8)].mean(0)
        start = np.array([fit.exponent, fit.amplitude, 0.0])
        result = optimize.least_squares(
            lambda x, y=replica: (x[2] + x[1] * sizes ** -x[0] - y) / curve, start, x_scale=[0.1, 1, 1e-3], xtol=1e-14
        )
        found.append(result.x)
    exponents, amplitudes, floors = np.array(found).T
    assert floors.min() < 0 < floors.max()
    half = stats.t.ppf(0.975, 7) * np.sqrt(8 / 7)
    assert fit.interval[1] - fit.exponent == pytest.approx(half * exponents.std(), rel=1e-3)
    assert fit.floor_interval[1] == pytest.approx(half * floors.std(), rel=1e-3)
    assert np.log(fit.amplitude_interval[1] / fit.amplitude) == pytest.approx(half * np.log(amplitudes).std(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('floor', [0.0, 0.003])
def test_intervals_cover_near_a_floor_of_zero(floor: float) -> None:
    """At least 90% of 200 trials, for the exponent and the floor."""
    sizes, hits = np.geomspace(128, 2**14, 8), np.zeros(2, int)
    for trial in range(200):
        fit = fit_power_law(sizes, near_zero(floor, trial), None, choose_range=False)
        truth = (fit.interval, 0.5), (fit.floor_interval, floor)
        hits += [low <= true <= high for (low, high), true in truth]
    assert hits.min() >= 180


def test_one_seed_resamples_residuals_and_several_resample_seeds() -> None:
    one, several = noisy(0, 1, 0.0, 0.1, True)[0], noisy(0, 4, 0.0, 0.1, True)
    assert fit_power_law(P, one, 0.0).resampled == 'residuals'
    assert fit_power_law(P, several, 0.0).resampled == 'seeds'
    # The same curve for each seed says that there is no noise: only residuals could say otherwise.
    same = fit_power_law(P, np.stack([one, one]), 0.0)
    assert same.interval[1] - same.interval[0] < 1e-6 < np.diff(fit_power_law(P, one, 0.0).interval)[0]


# ---------------------------------------------------------------------- the range


@pytest.mark.parametrize('seeds', [1, 5])
def test_the_range_leaves_out_the_sizes_before_the_law_begins(seeds: int) -> None:
    """A plateau up to P = 1000, then a power law."""
    sizes = np.geomspace(64, 2**16, 11)
    law = (1 + (sizes / 1000) ** 2) ** -0.3
    noise = 1 + 0.01 * np.random.default_rng(2).standard_normal((seeds, 11))
    fit = fit_power_law(sizes, law * noise, 0.0)
    assert 1000 < fit.range[0] < 5000 and fit.range[1] == sizes[-1] and fit.drift >= 0.05
    assert fit.exponent == pytest.approx(0.6, abs=0.05)
    whole = fit_power_law(sizes, law * noise, 0.0, choose_range=False)
    assert whole.range == (sizes[0], sizes[-1]) and whole.drift < 0.05 and whole.exponent < 0.45


def test_a_curve_that_is_nowhere_a_power_law_says_so() -> None:
    fit = fit_power_law(P, np.exp(-0.1 * (np.log(P) - 3) ** 2), 0.0)
    assert fit.drift < 0.05


def test_the_text_of_a_law_says_whether_its_exponent_drifts() -> None:
    P = np.geomspace(64, 2**16, 11)
    assert 'drifts' not in str(fit_power_law(P, 20 * P**-0.5, 0.0))
    bent = fit_power_law(P, np.exp(-0.1 * np.log(P) ** 2), 0.0)
    assert bent.drift < 0.05 and str(bent).endswith(f', drifts (p = {bent.drift:.2g})')


def test_a_curve_beyond_all_exponents_is_refused() -> None:
    with pytest.raises(ValueError, match='loss does not follow a power law of P'):
        fit_power_law(P, P**-12.0, 0.0)
    with pytest.raises(ValueError, match='give the floor, or other sizes'):
        fit_power_law(P, P**-0.003)


def test_a_true_law_keeps_its_whole_range_at_the_level_of_the_test() -> None:
    """At 5%, of 60 true laws more than 9 are cut with probability 0.1%."""
    fits = [fit_power_law(P, noisy(trial, 4, 0.0, 0.1, True), 0.0, bootstraps=2) for trial in range(60)]
    assert sum(fit.range != (P[0], P[-1]) for fit in fits) <= 9


# ---------------------------------------------------------------------- local exponents


def test_the_local_exponent_of_a_power_law_is_its_exponent_at_every_size() -> None:
    loss = np.stack([3 * P**-0.4, 2 * P**-1.1])
    assert local_exponent(P, loss) == pytest.approx(np.array([[0.4], [1.1]]) * np.ones(9), rel=1e-12)
    assert local_exponent(P, loss[0]).shape == (9,)


def test_the_local_exponents_are_in_the_order_of_the_sizes() -> None:
    loss = (1 + P / 4096) ** -0.5
    order = np.random.default_rng(0).permutation(len(P))
    assert np.array_equal(local_exponent(P[order], loss[order]), local_exponent(P, loss)[order])


def test_the_local_exponent_follows_a_bend() -> None:
    sizes = np.geomspace(1, 1e6, 200)
    expected = 0.6 * sizes**2 / (1e6 + sizes**2)
    found = local_exponent(sizes, (1 + sizes**2 / 1e6) ** -0.3)
    assert found[1:-1] == pytest.approx(expected[1:-1], abs=2e-3)


# ---------------------------------------------------------------------- what cannot be fitted

BAD: list[tuple[Any, Any, float | None, str]] = [
    ([1, 2], [2.0, 1.0], 0.0, 'P has 2 sizes: give 3 or more'),
    ([1, 2, 4], [2.0, 1.0, 0.5], None, 'P has 3 sizes: give 4 or more'),
    ([1, 2, 4], [2.0, 1.0], 0.0, r'loss has shape \(2,\) for 3 sizes'),
    ([1, 2, 2], [2.0, 1.0, 0.5], 0.0, 'or one of them twice'),
    ([0, 1, 2], [2.0, 1.0, 0.5], 0.0, 'not finite and above 0'),
    ([1, 2, 4], [2.0, np.nan, 0.5], 0.0, 'loss has values that are not finite'),
    ([1, 2, 4], [2.0, 1.0, 0.5], 0.5, 'loss=0.5 at P=4 is not above floor=0.5: leave that size out'),
]


@pytest.mark.parametrize(('sizes', 'loss', 'floor', 'said'), BAD, ids=[said for *_, said in BAD])
def test_what_cannot_be_fitted_is_refused(sizes: Any, loss: Any, floor: float | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_power_law(sizes, loss, floor)


def test_a_mean_that_is_not_known_or_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="mean='median' is not a mean: use arithmetic or geometric"):
        fit_power_law([1, 2, 4], [2.0, 1.0, 0.5], 0.0, mean='median')
    with pytest.raises(ValueError, match='loss=0 has no geometric mean'):
        fit_power_law([1, 2, 4], [[2.0, 1.0, 0.5], [2.0, 0.0, 0.5]], 0.0, mean='geometric')


@pytest.mark.parametrize('number', [0, 1])
def test_a_bootstrap_without_a_spread_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f'bootstraps={number} gives no interval: use 2 or more'):
        fit_power_law([1, 2, 4], [2.0, 1.0, 0.5], 0.0, bootstraps=number)
    with pytest.raises(ValueError, match=f'bootstraps={number} gives no interval: use 2 or more'):
        collapse({1: (P, P**-0.5), 2: (P, 2 * P**-0.5)}, error=0.01, bootstraps=number)


def test_a_loss_without_a_logarithm_has_no_local_exponent() -> None:
    with pytest.raises(ValueError, match='loss=-1 has no logarithm'):
        local_exponent([1, 2, 4], [1.0, -1.0, 2.0])


# ---------------------------------------------------------------------- the envelope


def test_the_envelope_is_the_loss_of_the_best_learner_at_each_size() -> None:
    """One is better at small sizes and one at large ones; a third lacks a seed and is never chosen."""
    first, second = np.array([[1.0, 2.0, 3.0], [1.2, 2.2, 3.2]]), np.array([[3.0, 2.5, 1.0], [3.2, 2.7, 1.2]])
    third = np.array([[0.0, 0.0, 0.0], [math.nan, 0.0, math.nan]])
    expected = np.array([[1.0, 2.0, 1.0], [1.2, 2.2, 1.2]])
    np.testing.assert_array_equal(envelope([first, second]), expected)
    found = envelope([first, second, third])
    np.testing.assert_array_equal(found[:, [0, 2]], expected[:, [0, 2]])
    np.testing.assert_array_equal(found[:, 1], [0.0, 0.0])
    assert np.isnan(envelope([third])[:, 0]).all()
    np.testing.assert_array_equal(envelope([first[:1], second[:1]]), [[1.0, 2.0, 1.0]])


def test_the_envelope_of_equal_learners_is_not_below_their_mean() -> None:
    """Of 20 learners with the same law and noise of 0.1 the least losses are 0.187 too small, the envelope is right.

    Over 10^4 sizes and two seeds the mean has a standard error of 0.0007: outside 5 of them by chance once in 10^6.
    """
    losses = 1 + 0.1 * np.random.default_rng(3).standard_normal((20, 2, 10_000))
    assert abs(envelope(losses).mean() - 1) < 5 * 0.1 / math.sqrt(20_000)
    assert losses.min(0).mean() == pytest.approx(1 - 0.187, abs=0.002)


@pytest.mark.parametrize('losses', [np.ones((3, 4)), np.ones((0, 2, 3)), np.ones((2, 0, 3))])
def test_losses_of_another_shape_have_no_envelope(losses: Any) -> None:
    with pytest.raises(ValueError, match=r'give \(learners, seeds, sizes\)'):
        envelope(losses)
