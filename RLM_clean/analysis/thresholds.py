"""The training-set size at which a criterion is met: a search that bisects, over seeds that are trained together.

The search looks only at what has been measured, {size: a value for each seed}, and says which size to measure next.
It can therefore be stopped, and go on with the same measurements, whoever made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from RLM_clean.analysis.scaling import CONFIDENCE, Array, Interval, PowerLaw, fit_power_law

Measured = Mapping[int, Sequence[float]]

# Sizes are whole: two may be a little further apart than the resolution asks for.
_ROUNDING = 1.25


@dataclass(frozen=True)
class Threshold:
    """The sizes at which the seeds meet a criterion, see `Search`.

    Attributes:
        value: the geometric mean over seeds; infinite where one never meets it, 0 where one meets it at any size, nan
            where there are both.
        interval: 95% confidence, the resolution included; nan where `value` is 0 or infinite.
        median: the median over seeds.
        per_seed: the threshold of each seed.
        measured: the values of the seeds at each size, {P: (values)}, by increasing size.
        resolution: how far apart, in ln P, the two sizes are between which a seed's threshold lies, at most.
    """

    value: float
    interval: Interval
    median: float
    per_seed: tuple[float, ...]
    measured: dict[int, tuple[float, ...]]
    resolution: float = 0.0


@dataclass(frozen=True)
class Search:
    """A search for the size of the training set at which the value of a seed falls to `bound` or below.

    Attributes:
        bound: a criterion is met where a value is at most this.
        start: the first size that is measured. Sizes are doubled until all seeds meet the criterion, and halved until
            none does.
        smallest: no smaller size is measured.
        largest: no larger size is measured.
        resolution: the search ends when each seed's threshold lies between two sizes with about this ratio.

    Raises ValueError with one sentence for what cannot be searched.
    """

    bound: float
    start: int = 1024
    smallest: int = 1
    largest: int = 2**20
    resolution: float = 2**0.25

    def __post_init__(self) -> None:
        if not math.isfinite(self.bound):
            raise ValueError(f'bound={self.bound} is out of range: use a finite number')
        if not 1 <= self.smallest <= self.largest:
            raise ValueError(f'smallest={self.smallest} does not fit largest={self.largest}: use 1 to {self.largest}')
        if not self.smallest <= self.start <= self.largest:
            raise ValueError(f'start={self.start} is out of range: use {self.smallest} to {self.largest}')
        if not 1 < self.resolution < math.inf:
            raise ValueError(f'resolution={self.resolution:g} is out of range: use a number above 1')

    def run(self, measure: Callable[[int], ArrayLike]) -> Threshold:
        """The threshold, by measuring size after size; `measure(P)` gives a value for each seed."""
        measured: dict[int, tuple[float, ...]] = {}
        while (P := self.next_size(measured)) is not None:
            measured[P] = tuple(float(value) for value in np.atleast_1d(np.asarray(measure(P), float)))
        return self.threshold(measured)

    # ------------------------------------------------------------------ which size is next

    def next_size(self, measured: Measured) -> int | None:
        """The size to measure next; None when every seed's threshold is known to the resolution.

        First `start`, then outwards by factors of two, then the middle (in ln P) of the widest bracket of a seed.
        """
        if not measured:
            return self.start
        sizes, values = _sorted(measured)
        # The ends: at the smallest size no seed shall meet the criterion, at the largest all.
        if not (values[:, -1] <= self.bound).all() and sizes[-1] < self.largest:
            return min(2 * sizes[-1], self.largest)
        if (values[:, 0] <= self.bound).any() and sizes[0] > self.smallest:
            return max(sizes[0] // 2, self.smallest)
        widest = max(self._open_brackets(sizes, values), key=lambda ends: ends[1] / ends[0], default=None)
        return None if widest is None else _middle(*widest)

    def sizes_left(self, measured: Measured) -> int:
        """About how many sizes are still to be measured: an estimate, as long as the ends are not found at least two.

        Each open bracket takes as many sizes as it has halvings left.
        """
        if not measured:
            return 4 + self._halvings(2.0)
        sizes, values = _sorted(measured)
        open_ends = (not (values[:, -1] <= self.bound).all() and sizes[-1] < self.largest) + (
            bool((values[:, 0] <= self.bound).any()) and sizes[0] > self.smallest
        )
        brackets = self._open_brackets(sizes, values)
        return open_ends * (1 + self._halvings(2.0)) + sum(self._halvings(high / low) for low, high in brackets)

    def _halvings(self, ratio: float) -> int:
        return max(0, math.ceil(math.log2(math.log(ratio) / (_ROUNDING * math.log(self.resolution)))))

    def _open_brackets(self, sizes: list[int], values: Array) -> set[tuple[int, int]]:
        """The pairs of neighbouring sizes that hold a seed's threshold and are further apart than the resolution."""
        brackets = set()
        for row in values:
            place = int(np.sum(_decreasing(row, self.bound) > self.bound))
            if 0 < place < len(sizes):
                low, high = sizes[place - 1], sizes[place]
                if math.log(high / low) > _ROUNDING * math.log(self.resolution) and high - low > 1:
                    brackets.add((low, high))
        return brackets

    # ------------------------------------------------------------------ what has been found

    def threshold(self, measured: Measured) -> Threshold:
        """The threshold of what has been measured.

        Of each seed: values that do not decrease with the size are made to by isotonic regression (the closest
        decreasing curve in least squares), so that noise moves the threshold neither up nor down; where that curve
        passes the bound, the size follows by linear interpolation in ln P. It is 0 where the smallest size meets the
        criterion, and infinite where the largest does not.

        The interval is that of the mean of ln P over seeds by Student's t, and in quadrature the distance of the two
        sizes between which the thresholds lie: a seed that learns at once can do so anywhere between them. With one
        seed only the latter remains. Raises ValueError for nothing measured, and values that are not numbers.
        """
        sizes, values = _sorted(measured)
        found = [self._crossing(sizes, row) for row in values]
        logs = np.log([P for P, _ in found if 0 < P < math.inf])
        finite = len(logs) == len(found)
        with np.errstate(divide='ignore', invalid='ignore'):
            value = float(np.exp(np.mean(np.log([P for P, _ in found]))))
            median = float(np.median([P for P, _ in found]))
        resolution = max(step for _, step in found)
        interval = (math.nan, math.nan)
        if finite:
            half = math.hypot(_student_half(logs), resolution)
            interval = value * math.exp(-half), value * math.exp(half)
        table = {P: tuple(column) for P, column in zip(sizes, values.T.tolist(), strict=True)}
        return Threshold(value, interval, median, tuple(P for P, _ in found), table, resolution)

    def _crossing(self, sizes: list[int], row: Array) -> tuple[float, float]:
        """Where the values of a seed pass the bound, and the distance in ln P of the sizes around it."""
        curve = _decreasing(row, self.bound)
        place = int(np.sum(curve > self.bound))
        if place == 0:
            return 0.0, 0.0
        if place == len(sizes):
            return math.inf, 0.0
        (low, high), (above, below) = np.log(sizes[place - 1 : place + 1]), curve[place - 1 : place + 1]
        part = (above - self.bound) / (above - below)
        return float(np.exp(low + part * (high - low))), float(high - low)


def fit_thresholds(x: ArrayLike, found: Sequence[Threshold], scale: ArrayLike = 1.0) -> PowerLaw:
    """The power law of thresholds in what varies, `scale P* = A x^-exponent`: where they grow, the exponent is below 0.

    `x` are the values of what varies `(K,)`, with a threshold each, and `scale` numbers `(K,)` that multiply them. The
    fit is that of `fit_power_law` to the geometric means over seeds, at all x. Its intervals hold the seeds, by their
    bootstrap, and in quadrature the resolution of the searches: with h the `Threshold.resolution` of each point, and w
    the weights with which the points enter a straight line, `sqrt(sum (w h)^2)`.

    Raises ValueError as `fit_power_law` does, and for a seed without a threshold.
    """
    per_seed = np.array([threshold.per_seed for threshold in found], float).T * np.asarray(scale, float)
    law = fit_power_law(x, per_seed, 0.0, choose_range=False, mean='geometric')
    logs, steps = np.log(np.asarray(x, float)), np.array([threshold.resolution for threshold in found])
    slope = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    height = 1 / len(logs) - slope * logs.mean()
    of_seeds = np.ptp(law.interval) / 2, np.ptp(np.log(law.amplitude_interval)) / 2
    half, factor = math.hypot(of_seeds[0], *(slope * steps)), math.exp(math.hypot(of_seeds[1], *(height * steps)))
    return replace(
        law,
        interval=(law.exponent - half, law.exponent + half),
        amplitude_interval=(law.amplitude / factor, law.amplitude * factor),
    )


def _sorted(measured: Measured) -> tuple[list[int], Array]:
    """The sizes, and the values `(S, sizes)`, by increasing size."""
    if not measured:
        raise ValueError('measured holds no size: measure one first')
    sizes = sorted(measured)
    numbers = {len(measured[P]) for P in sizes}
    if len(numbers) > 1 or 0 in numbers:
        raise ValueError(f'measured has {sorted(numbers)} values at different sizes: give one for each seed')
    values = np.array([measured[P] for P in sizes], float).T
    if np.isnan(values).any():
        raise ValueError('measured has values that are not numbers: leave these seeds out')
    return sizes, values


def _decreasing(row: Array, bound: float) -> Array:
    """The closest decreasing curve, in least squares; an infinite value counts as one far above (below) the bound."""
    from scipy import optimize

    largest = 10 * (1 + np.abs(row[np.isfinite(row)]).max(initial=abs(bound)))
    return np.asarray(optimize.isotonic_regression(np.clip(row, -largest, largest), increasing=False).x)


def _middle(low: int, high: int) -> int:
    return min(max(round(math.sqrt(low * high)), low + 1), high - 1)


def _student_half(logs: Array) -> float:
    """Half the width of the 95% interval of a mean; 0 for one value."""
    from scipy import stats

    if len(logs) < 2:
        return 0.0
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
