"""Power laws of the loss in the size P of the training set, with honest intervals: fits and local exponents.

P are sizes `(K,)`, losses `(S, K)` a row a seed, or `(K,)`. Logarithms are natural, losses in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RLM_clean.streams import stream_key

Array = NDArray[np.float64]
Interval = tuple[float, float]

# The confidence of every interval of this package.
CONFIDENCE = 0.95
# An exponent drifts where the p-value of the test for it is below this.
DRIFT_LEVEL = 0.05
# The exponents that a fit looks at: of both signs where the floor is known. Where it is fitted, a sum of two powers.
_EXPONENTS, _FALLING = np.linspace(-10, 10, 201), np.geomspace(0.01, 10, 61)
# Relative residuals below this are rounding: such a fit is exact.
_ROUNDING = 1e-6
_TINY = 1e-300
# Over seeds, of losses `(S, K)`.
_MEANS: dict[str, Callable[[Array], Array]] = {
    'arithmetic': lambda y: y.mean(0),
    'geometric': lambda y: np.exp(np.log(y).mean(0)),
}
# The index of the bootstrap in the stream 'other'.
_BOOTSTRAP_INDEX = 20


def bootstrap_generator(seed: int) -> np.random.Generator:
    """A generator of numpy that `seed` alone seeds, by the stream 'other': resampling draws nothing elsewhere."""
    return np.random.default_rng(stream_key(seed, 'other', _BOOTSTRAP_INDEX) % 2**64)


def check_bootstraps(number: int) -> None:
    """Raises ValueError for a number of bootstraps that has no spread."""
    if number < 2:
        raise ValueError(f'bootstraps={number} gives no interval: use 2 or more')


def local_exponent(P: ArrayLike, loss: ArrayLike) -> Array:
    """The exponent of the power law through each size, `-d ln loss / d ln P`, in the shape and the order of `loss`.

    Central differences of second order in ln P, one-sided at the ends (`numpy.gradient`); constant for a power law.
    Subtract the floor first. Raises ValueError for fewer than 2 sizes, and for losses that are not above 0.
    """
    sizes, y = check_curve(P, loss, least=2)
    if not (y > 0).all():
        raise ValueError(f'loss={y.min():g} has no logarithm: leave out what is at or below the floor')
    exponents = np.asarray(-np.gradient(np.log(y), np.log(sizes), axis=-1))
    places = np.searchsorted(sizes, np.asarray(P, float))
    return exponents[:, places].reshape(np.shape(loss))


def envelope(losses: ArrayLike) -> Array:
    """The loss of the best of several learners at each size, `(S, K)`, from losses `(A, S, K)` of A learners.

    For each seed and size it is the loss of the learner whose mean over the *other* seeds is the least: the least of
    several noisy losses would be too small by chance. With one seed it is the least of them. A learner that lacks a
    seed at a size is left out there; nan where none is left. Raises ValueError for losses of another shape.
    """
    y = np.asarray(losses, float)
    if y.ndim != 3 or 0 in y.shape[:2]:
        raise ValueError(f'losses have shape {y.shape}: give (learners, seeds, sizes)')
    seeds = y.shape[1]
    judged = np.stack([np.delete(y, s, axis=1).mean(1) for s in range(seeds)], 1) if seeds > 1 else y
    complete = np.isfinite(y).all(1, keepdims=True)
    chosen = np.where(complete, judged, math.inf).argmin(0)
    return np.where(complete.any(0), np.take_along_axis(y, chosen[None], 0)[0], math.nan)


# ---------------------------------------------------------------------- the fit


@dataclass(frozen=True)
class PowerLaw:
    """The law `loss = floor + amplitude P^-exponent` that was fitted, see `fit_power_law`.

    Attributes:
        exponent: that of the fit to the mean over seeds.
        interval: its 95% confidence interval.
        amplitude: the factor of the fit.
        amplitude_interval: its 95% confidence interval.
        floor: the floor of the fit, or the one that was given.
        floor_interval: its 95% confidence interval.
        range: the smallest and the largest size of the fit.
        drift: the p-value of the test for a drift of the exponent over the range; nan where there are too few sizes.
        resampled: what the bootstrap resampled, 'seeds' or 'residuals'.
    """

    exponent: float
    interval: Interval
    amplitude: float
    amplitude_interval: Interval
    floor: float
    floor_interval: Interval
    range: Interval
    drift: float
    resampled: str

    def __call__(self, P: ArrayLike) -> Array:
        """The loss of the law at sizes P."""
        return self.floor + self.amplitude * np.asarray(P, float) ** -self.exponent

    def __str__(self) -> str:
        """The exponent with its interval, the range of the fit, and whether the exponent drifts there."""
        (low, high), (first, last) = self.interval, self.range
        drifts = f', drifts (p = {self.drift:.2g})' if self.drift < DRIFT_LEVEL else ''
        return f'exponent {self.exponent:.3f} (95%: {low:.3f} to {high:.3f}), P from {first:g} to {last:g}{drifts}'


def fit_power_law(
    P: ArrayLike,
    loss: ArrayLike,
    floor: float | None = None,
    choose_range: bool = True,
    level: float = DRIFT_LEVEL,
    bootstraps: int = 200,
    seed: int = 0,
    mean: str = 'arithmetic',
) -> PowerLaw:
    """The fit of `loss = floor + A P^-alpha` to the mean over seeds, with 95% intervals: a `PowerLaw`.

    For losses the mean is arithmetic, the loss expected of a seed. `mean='geometric'` is for what varies by factors, as
    the thresholds of seeds do, which are above 0.

    The fit minimises the sum over sizes of the squared *relative* errors: those of `loss - floor` where the floor is
    given, those of the loss where it is fitted too (then 0 or more, and alpha above 0). For each alpha, A and the floor
    follow from linear least squares; alpha is the minimum of what is left (variable projection: G. H. Golub and
    V. Pereyra, SIAM J. Numer. Anal. 10, 413, 1973), by Brent's method.

    The range is the longest one in ln P, of equal ones that of the largest sizes, over which the exponent does not
    drift: adding a term `c (ln P)^2` to the exponent does not improve the fit, by an F-test at `level`. Ranges have at
    least three sizes more than the law has parameters. Where none passes, that with the largest p-value, which
    `PowerLaw.drift` then shows to be below `level`. `choose_range=False`, and fewer sizes, take all.

    Intervals come from a bootstrap of whole seeds, each with all its sizes, at that range: the estimate plus or minus
    `t sqrt(S / (S - 1))` bootstrap standard deviations, t the quantile of Student's distribution with S - 1 degrees of
    freedom (percentiles of few seeds are too narrow: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap,
    1993). For one seed the relative residuals are resampled instead, scaled by sqrt(K / (K - p)) for K sizes and p
    parameters, with t of K - p degrees of freedom. The interval of A is that of ln A. A floor that is fitted may be
    below 0 in the bootstrap: near 0 a bound would hide a part of the spread of all three numbers. Its interval begins
    at 0 or above.

    Raises ValueError for fewer sizes than parameters and one more, for a mean loss that is not above the floor, for an
    exponent outside -10 to 10, or outside 0.01 to 10 where the floor is fitted, for a mean that is not known, and for
    fewer than 2 bootstraps.
    """
    if mean not in _MEANS:
        raise ValueError(f'mean={mean!r} is not a mean: use {" or ".join(_MEANS)}')
    average = _MEANS[mean]
    check_bootstraps(bootstraps)
    P, y = check_curve(P, loss, least=3 if floor is not None else 4)
    if mean == 'geometric' and not (y > 0).all():
        raise ValueError(f'loss={y.min():g} has no geometric mean with others: use arithmetic, or leave it out')
    curve = average(y)
    if not (curve > (floor or 0)).all():
        at = P[np.argmin(curve)]
        raise ValueError(f'loss={curve.min():g} at P={at:g} is not above floor={floor or 0:g}: leave that size out')
    chosen = _choose_range(P, curve, floor, level) if choose_range else slice(0, len(P))
    P, y, curve = P[chosen], y[:, chosen], curve[chosen]
    best = _fit(P, curve, curve, floor)
    _check_exponent(best.exponent, floor)
    replicas = list(_replicas(y, average, best, P, bootstraps, bootstrap_generator(seed)))
    refits = [_fit(P, replica, curve, floor, least=-math.inf) for replica in replicas]
    fits = np.array([(f.exponent, f.log_amplitude, f.floor) for f in refits])
    freedom = len(y) - 1 if len(y) > 1 else len(P) - best.parameters
    around = [
        interval_around(value, float(np.std(column)), freedom, len(y))
        for value, column in zip((best.exponent, best.log_amplitude, best.floor), fits.T, strict=True)
    ]
    return PowerLaw(
        best.exponent, around[0], math.exp(best.log_amplitude), _exp(around[1]),
        best.floor, (max(0.0, around[2][0]), around[2][1]) if floor is None else (floor, floor),
        (float(P[0]), float(P[-1])),
        _drift(P, curve, best), 'seeds' if len(y) > 1 else 'residuals',
    )  # fmt: skip


def _exp(interval: Interval) -> Interval:
    low, high = (math.exp(min(x, 700)) for x in interval)  # e^709 is the largest number
    return low, high


def _check_exponent(alpha: float, floor: float | None) -> None:
    exponents = _EXPONENTS if floor is not None else _FALLING
    if min(abs(alpha - exponents[0]), abs(alpha - exponents[-1])) < 1e-3 * abs(alpha):
        remedy = 'give other sizes' if floor is not None else 'give the floor, or other sizes'
        raise ValueError(f'loss does not follow a power law of P (exponent {alpha:.3g} or beyond): {remedy}')


def interval_around(value: float, deviation: float, freedom: float, seeds: int) -> Interval:
    """The 95% interval of an estimate from the standard deviation of its bootstrap over `seeds` seeds."""
    from scipy import stats

    small_sample = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * small_sample * deviation
    return value - half, value + half


def check_curve(P: Any, loss: Any, least: int) -> tuple[Array, Array]:
    """Sizes `(K,)` and losses `(S, K)` in float64, by increasing size. Raises ValueError for what is not a curve."""
    P, y = np.asarray(P, float), np.atleast_2d(np.asarray(loss, float))
    if P.ndim != 1 or y.ndim != 2 or y.shape[1] != len(P) or not len(y):
        raise ValueError(f'loss has shape {np.shape(loss)} for {P.size} sizes: give (sizes,) or (seeds, sizes)')
    if len(P) < least:
        raise ValueError(f'P has {len(P)} sizes: give {least} or more')
    if not (np.isfinite(P).all() and (P > 0).all() and len(set(P)) == len(P)):
        raise ValueError('P has sizes that are not finite and above 0, or one of them twice: leave them out')
    if not np.isfinite(y).all():
        raise ValueError('loss has values that are not finite: leave these sizes or seeds out')
    order = np.argsort(P)
    return P[order], y[:, order]


# ---------------------------------------------------------------------- least squares


@dataclass(frozen=True)
class _Fit:
    """A law, its relative residuals `(K,)`, and the weights `(K,)` that make them relative."""

    exponent: float
    log_amplitude: float
    floor: float
    residuals: Array
    weights: Array
    parameters: int


def _fit(P: Array, y: Array, scale: Array, floor: float | None, least: float = 0.0) -> _Fit:
    """The law with the smallest squares of `(y - law) / (scale - floor)`; `scale` alone where the floor is fitted.

    A floor that is fitted is `least` or more.
    """
    from scipy import optimize

    weights = 1 / (scale - (floor or 0))
    center = float(np.log(P).mean())
    x = np.log(P) - center
    exponents = _EXPONENTS if floor is not None else _FALLING

    def solve(alpha: Array) -> tuple[Array, Array, Array]:
        """The best ln A and floors `(E,)` and the squares that are left, for exponents `(E,)`."""
        logs = np.log(weights) - alpha[:, None] * x
        top = logs.max(1)
        shape = np.exp(logs - top[:, None])
        target = weights * (y - (floor or 0))
        above = np.zeros(len(alpha))
        if floor is None:
            ww, ws, ss = weights @ weights, shape @ weights, (shape**2).sum(1)
            determinant = np.maximum(ww * ss - ws**2, _TINY)
            above = np.maximum(least, (ss * (weights @ target) - ws * (shape @ target)) / determinant)
        rest = target - above[:, None] * weights
        amplitude = np.maximum((shape * rest).sum(1) / (shape**2).sum(1), _TINY)
        return np.log(amplitude) - top, above, ((rest - amplitude[:, None] * shape) ** 2).sum(1)

    # Squares that are flat far from the minimum would stop Brent's method: a grid says where it begins.
    start = int(np.argmin(solve(exponents)[2]))
    ends = exponents[max(0, start - 1)], exponents[min(len(exponents) - 1, start + 1)]
    found = optimize.minimize_scalar(
        lambda alpha: solve(np.array([alpha]))[2][0], bounds=ends, method='bounded', options={'xatol': 1e-8}
    )
    alpha = float(found.x)
    log_amplitude, above, _ = (float(value[0]) for value in solve(np.array([alpha])))
    base = above if floor is None else floor
    residuals = weights * (y - base) - np.exp(np.log(weights) + log_amplitude - alpha * x)
    return _Fit(alpha, log_amplitude + alpha * center, base, residuals, weights, 3 if floor is None else 2)


def _replicas(
    y: Array, average: Callable[[Array], Array], best: _Fit, P: Array, number: int, generator: np.random.Generator
) -> Iterator[Array]:
    """Mean curves `(K,)` as they might have been: of resampled seeds, or of the law with resampled residuals."""
    seeds, sizes = y.shape
    law = average(y) - best.residuals / best.weights
    scale = math.sqrt(sizes / (sizes - best.parameters))
    for _ in range(number):
        if seeds > 1:
            yield average(y[generator.integers(seeds, size=seeds)])
        else:
            yield law + scale * best.residuals[generator.integers(sizes, size=sizes)] / best.weights


# ---------------------------------------------------------------------- the range


def _choose_range(P: Array, mean: Array, floor: float | None, level: float) -> slice:
    """The longest range over which the exponent does not drift, see `fit_power_law`."""
    least = (3 if floor is None else 2) + 3
    ranges = [slice(i, j) for i in range(len(P)) for j in range(i + least, len(P) + 1)]
    if not ranges:
        return slice(0, len(P))
    ranges.sort(key=lambda r: (-round(math.log(P[r.stop - 1] / P[r.start]), 9), -r.start))
    tested = []
    for r in ranges:
        p = _drift(P[r], mean[r], _fit(P[r], mean[r], mean[r], floor))
        if p >= level:
            return r
        tested.append(p)
    return ranges[int(np.argmax(tested))]


def _drift(P: Array, y: Array, fit: _Fit) -> float:
    """The p-value of the F-test that the exponent does not drift: one more term, `c (ln P)^2` in the exponent.

    The squares that the term takes away, to first order in c, against those that remain.
    """
    from scipy import stats

    freedom = len(P) - fit.parameters - 1
    if freedom < 1:
        return math.nan
    if np.abs(fit.residuals).max() < _ROUNDING:
        return 1.0
    x = np.log(P) - np.log(P).mean()
    power = fit.weights * (y - fit.floor) - fit.residuals  # the weighted law above its floor
    columns = np.stack([power, power * x, fit.weights][: fit.parameters], 1)
    basis = np.linalg.qr(columns)[0]
    extra, rest = power * x**2, fit.residuals
    extra, rest = (vector - basis @ (basis.T @ vector) for vector in (extra, rest))
    # A law so steep that it vanishes at most sizes has no other term to add, and does not fit.
    if not extra @ extra > 0:
        return 0.0
    taken = float((extra @ rest) ** 2 / (extra @ extra))
    return float(stats.f.sf(freedom * taken / max(float(rest @ rest) - taken, _TINY), 1, freedom))
