"""Data collapse: curves of several languages that fall onto one when their axes are rescaled, and how well they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from RLM_clean.analysis.scaling import (
    Array,
    Interval,
    bootstrap_generator,
    check_bootstraps,
    check_curve,
    interval_around,
)

Curves = Mapping[Any, tuple[Any, Any]]
# What an axis is rescaled by: param^exponent, the exponent fitted (None) or given, or a function of the parameter.
Scale = float | Callable[[Any], float] | None

# A collapse in which fewer points than this fraction have a neighbour in another curve is not counted as one.
LEAST_OVERLAP = 0.5
# Exponents at which the search begins.
_GRID = {'x': np.linspace(-1, 6, 29), 'y': np.linspace(-2, 2, 17)}


@dataclass(frozen=True)
class Collapse:
    """The best collapse, see `collapse`.

    Attributes:
        x: the exponent a; None where a function says the scale.
        y: the exponent b; None where a function says the scale.
        x_interval: 95% confidence; the exponent itself twice where it was given.
        y_interval: the same for b.
        S: the quality. About 1 for curves that agree within their errors; much larger ones do not collapse.
        overlap: the fraction of the points that have neighbours in other curves, and are counted in S.
    """

    x: float | None
    y: float | None
    x_interval: Interval | None
    y_interval: Interval | None
    S: float
    overlap: float


def rescale(curves: Curves, x: Scale, y: Scale) -> dict[Any, tuple[Array, Array]]:
    """The curves with P over their scale in x, and the loss times their scale in y: {param: (P / X, loss * Y)}.

    A scale is `param^x` for a number x, and `x(param)` for a function. Raises ValueError for a scale that is not above
    0, or not known (None).
    """
    for name, scale in (('x', x), ('y', y)):
        if scale is None:
            raise ValueError(f'{name}=None is no scale: give the exponent that `collapse` has found, or a function')
    scaled = {}
    for param, (P, loss) in curves.items():
        X, Y = (math.exp(_log_scale(param, scale, name)) for scale, name in ((x, 'x'), (y, 'y')))
        scaled[param] = (np.asarray(P, float) / X, np.asarray(loss, float) * Y)
    return scaled


def _log_scale(param: Any, scale: Scale, name: str) -> float:
    """The logarithm of what an axis of a curve is divided or multiplied by."""
    if not callable(scale) and scale == 0:
        return 0.0
    value = scale(param) if callable(scale) else param
    if not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        what = 'the scale of' if callable(scale) else 'the parameter'
        raise ValueError(f'{name}: {what} {param!r} is not a number above 0: give a function of the parameter')
    return math.log(value) * (1.0 if callable(scale) or scale is None else scale)


def collapse(
    curves: Curves,
    x: Scale = None,
    y: Scale = 0.0,
    error: float | None = None,
    bootstraps: int = 100,
    seed: int = 0,
) -> Collapse:
    """The exponents a and b with which the curves `loss param^b` against `P / param^a` collapse best: a `Collapse`.

        collapse({8: (P, loss), 16: (P, loss)}, x=None, y=0.0)             fits a, with b = 0
        collapse(curves, x=lambda vm: vm[0] * vm[1] ** 3, y=0.0)           fits nothing: how good is this scale?

    `curves` are {param: (P (K,), loss (S, K) or (K,))}, a row a seed. `x` and `y` are None for an exponent that is
    fitted, a number for one that is given, or a function of the parameter that gives the scale. Losses are above 0:
    subtract a floor first.

    The quality is that of J. Houdayer and A. K. Hartmann, Phys. Rev. B 70, 014418 (2004), on the logarithms of both
    axes, in which power laws are straight:

        S = (1/N) sum_ij (y_ij - Y_ij)^2 / (dy_ij^2 + dY_ij^2),

    with y_ij the log of the mean loss of point i of curve j, dy_ij its standard error, and Y_ij, dY_ij the master curve
    and its error there: a straight line by weighted least squares through the two neighbours of the point (the nearest
    sizes below and above; one that is equal counts as either) in each other curve that has both. Points without any are
    not counted in N. Where less than half of the points are counted, the collapse is not considered, since curves that
    are pulled apart have no misfit.

    The minimum is found on a grid (a from -1 to 6, b from -2 to 2), and from its best point by Nelder and Mead's
    method. dy^2 is the mean of the variance over seeds at the point and of that at all points of the curve: of few
    seeds some would agree by chance, and decide the fit. Or dy is `error`, that of ln loss at all points, which one
    seed needs.

    Intervals come from a bootstrap of whole seeds, each curve by itself: `t` bootstrap standard deviations around the
    estimate, see `scaling.fit_power_law`, with 2 (S - 1) degrees of freedom, those of the two outermost curves, which
    decide an exponent. For one seed, normal errors of size `error` are added to ln loss instead.

    Raises ValueError for fewer than two curves, losses or scales that are not above 0, one seed without `error`, fewer
    than 2 bootstraps, and where no exponents make the curves overlap.
    """
    check_bootstraps(bootstraps)
    data = _Data(curves, x, y, error)
    grids = [_GRID[axis] for axis in data.fitted]
    best = _minimise(data, data.mean, grids)
    S, overlap = data.quality(best, data.mean)
    if not math.isfinite(S):
        raise ValueError('the curves do not overlap at any exponents: measure them at more sizes')
    deviations = np.zeros(len(best))
    if len(best):
        generator = bootstrap_generator(seed)
        replicas = [_simplex(data, data.resampled(generator), best, 1e-3) for _ in range(bootstraps)]
        deviations = np.std(replicas, axis=0)
    found: dict[str, tuple[float | None, Interval | None]] = {}
    for axis, scale in (('x', x), ('y', y)):
        if axis in data.fitted:
            i = data.fitted.index(axis)
            value = float(best[i])
            found[axis] = value, interval_around(value, float(deviations[i]), data.freedom, data.seeds)
        else:
            found[axis] = (None, None) if callable(scale) else (float(scale or 0), (float(scale or 0),) * 2)
    return Collapse(found['x'][0], found['y'][0], found['x'][1], found['y'][1], S, overlap)


# ---------------------------------------------------------------------- the quality


class _Data:
    """Curves in logarithms, with the errors of their points, and which exponents are to be fitted."""

    def __init__(self, curves: Curves, x: Scale, y: Scale, error: float | None) -> None:
        if len(curves) < 2:
            raise ValueError(f'curves has {len(curves)} curves: give two or more')
        self.fitted = [axis for axis, scale in (('x', x), ('y', y)) if scale is None]
        self.log_scales = {
            axis: np.array([_log_scale(param, scale, axis) for param in curves]) for axis, scale in (('x', x), ('y', y))
        }
        self.error = error
        self.logP, self.losses, self.errors = [], [], []
        for param, (P, loss) in curves.items():
            P, loss = check_curve(P, loss, least=2)
            if not (loss.mean(0) > 0).all():
                raise ValueError(f'the curve of {param!r} has losses at or below 0: leave these sizes out')
            self.logP.append(np.log(P))
            self.losses.append(loss)
            self.errors.append(self._errors(param, loss))
        self.mean = [np.log(loss.mean(0)) for loss in self.losses]
        seeds = [len(loss) for loss in self.losses]
        self.seeds = min(seeds)
        self.freedom = math.inf if self.seeds == 1 else 2 * (self.seeds - 1)

    def _errors(self, param: Any, loss: Array) -> Array:
        """The standard errors of the logarithms of the mean losses `(K,)`."""
        if self.error is not None:
            if not self.error > 0:
                raise ValueError(f'error={self.error} is out of range: use a number above 0')
            return np.full(loss.shape[1], float(self.error))
        if len(loss) < 2:
            raise ValueError(f'the curve of {param!r} has one seed, which has no spread: give error, that of ln loss')
        variances = (loss.std(0, ddof=1) / loss.mean(0)) ** 2 / len(loss)
        return np.sqrt(np.maximum((variances + variances.mean()) / 2, 1e-18))  # not 0, where all seeds agree

    def resampled(self, generator: np.random.Generator) -> list[Array]:
        """The curves as they might have been: of resampled seeds, or with other errors where there is one."""
        replica = []
        for mean, loss, errors in zip(self.mean, self.losses, self.errors, strict=True):
            if len(loss) > 1:
                drawn = loss[generator.integers(len(loss), size=len(loss))].mean(0)
                replica.append(np.log(np.maximum(drawn, 1e-300)))
            else:
                replica.append(mean + errors * generator.standard_normal(len(mean)))
        return replica

    def quality(self, exponents: Sequence[float] | Array, values: list[Array]) -> tuple[float, float]:
        """S and the fraction of points that are counted, for the exponents that are fitted; infinite with too few."""
        factor = dict(zip(self.fitted, exponents, strict=True))
        xs = [P - factor.get('x', 1) * X for P, X in zip(self.logP, self.log_scales['x'], strict=True)]
        ys = [y + factor.get('y', 1) * Y for y, Y in zip(values, self.log_scales['y'], strict=True)]
        squares, number, total = 0.0, 0, 0
        for j, (x, y, error) in enumerate(zip(xs, ys, self.errors, strict=True)):
            others = [i for i in range(len(xs)) if i != j]
            Y, dY2 = _master([(xs[i], ys[i], self.errors[i]) for i in others], x)
            counted = np.isfinite(Y)
            squares += float(((y - Y)[counted] ** 2 / (error**2 + dY2)[counted]).sum())
            number, total = number + int(counted.sum()), total + len(x)
        return (squares / number if number >= LEAST_OVERLAP * total else math.inf), number / total


def _master(others: Iterable[tuple[Array, Array, Array]], x: Array) -> tuple[Array, Array]:
    """The master curve at x and its squared error, from other curves (x, y, error); nan where none has neighbours.

    The line through points of weights w = 1/error^2, with x counted from where it is evaluated: with K = sum w,
    Kx = sum w x and so on, it is Y = (Kxx Ky - Kx Kxy) / D there, and dY^2 = Kxx / D, D = K Kxx - Kx^2.
    """
    total = np.zeros((5, len(x)))
    for other_x, other_y, error in others:
        inside = (other_x[0] <= x) & (x <= other_x[-1])
        above = np.searchsorted(other_x, x).clip(1, len(other_x) - 1)
        place = np.stack([above - 1, above])
        w = inside / error[place] ** 2
        distance, y = other_x[place] - x, other_y[place]
        w_distance = w * distance
        total += np.stack([w, w_distance, w_distance * distance, w * y, w_distance * y]).sum(1)
    K, Kx, Kxx, Ky, Kxy = total
    D = K * Kxx - Kx**2
    counted = D > 0
    D = np.where(counted, D, 1)
    return np.where(counted, (Kxx * Ky - Kx * Kxy) / D, math.nan), np.where(counted, Kxx / D, math.nan)


# ---------------------------------------------------------------------- the minimum


def _minimise(data: _Data, values: list[Array], grids: list[Array]) -> Array:
    """The exponents of the smallest S: the best of a grid, then Nelder and Mead."""
    if not grids:
        return np.zeros(0)
    points = np.stack(np.meshgrid(*grids, indexing='ij'), -1).reshape(-1, len(grids))
    qualities = [data.quality(point, values)[0] for point in points]
    return _simplex(data, values, points[int(np.argmin(qualities))])


def _simplex(data: _Data, values: list[Array], start: Array, tolerance: float = 1e-5) -> Array:
    """The minimum of S near some exponents."""
    from scipy import optimize

    simplex = np.concatenate([start[None], start + 0.1 * np.eye(len(start))])
    found = optimize.minimize(
        lambda exponents: data.quality(exponents, values)[0], start, method='Nelder-Mead',
        options={'initial_simplex': simplex, 'xatol': tolerance, 'fatol': tolerance},
    )  # fmt: skip
    return np.asarray(found.x)
