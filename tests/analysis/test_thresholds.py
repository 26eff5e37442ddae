"""The search for a threshold: it finds planted ones, measures few sizes, and goes on with what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from RLM_clean.analysis.thresholds import Search, Threshold, fit_thresholds

Array = NDArray[np.float64]


class Learner:
    """A synthetic learner: the excess of each seed falls from 1 to 0 around its own threshold, with noise.

    The thresholds of seeds are spread by `spread` in ln P around `true`, for which the mean over all seeds is sought.
    """

    def __init__(self, true: float, seeds: int, spread: float, noise: float, steepness: float, trial: int) -> None:
        self.draws = np.random.default_rng(trial)
        self.own = true * np.exp(spread * self.draws.standard_normal(seeds))
        self.noise, self.steepness = noise, steepness
        self.asked: list[int] = []

    def __call__(self, P: int) -> Array:
        self.asked.append(P)
        excess: Array = 1 / (1 + (P / self.own) ** self.steepness)
        return excess * np.exp(self.noise * self.draws.standard_normal(len(self.own)))


def trials(number: int, seeds: int, spread: float, noise: float, steepness: float = 3.0) -> list[bool]:
    """Whether the interval of each trial contains the planted threshold, which is elsewhere in each."""
    found = []
    for trial in range(number):
        true = float(np.exp(np.random.default_rng([7, trial]).uniform(math.log(50), math.log(2e5))))
        threshold = Search(0.5).run(Learner(true, seeds, spread, noise, steepness, trial))
        found.append(threshold.interval[0] <= true <= threshold.interval[1])
    return found


KINDS = [(4, 0.3, 0.05, 3.0), (4, 0.3, 0.2, 1.5), (8, 1.0, 0.05, 20.0), (1, 0.0, 0.02, 3.0), (3, 0.0, 0.0, 50.0)]


@pytest.mark.parametrize(('seeds', 'spread', 'noise', 'steepness'), KINDS)
def test_a_planted_threshold_is_within_its_interval_in_19_of_20_trials(
    seeds: int, spread: float, noise: float, steepness: float
) -> None:
    """40 trials each. At 95%, fewer than 33 are within with probability 0.07%."""
    assert stats.binom.cdf(32, 40, 0.95) < 1e-3
    assert sum(trials(40, seeds, spread, noise, steepness)) >= 33


@pytest.mark.slow
@pytest.mark.parametrize(('seeds', 'spread', 'noise', 'steepness'), KINDS)
def test_of_400_trials_19_of_20_are_within(seeds: int, spread: float, noise: float, steepness: float) -> None:
    """At 95%, fewer than 364 are within with probability 0.1%."""
    assert sum(trials(400, seeds, spread, noise, steepness)) >= 364


def test_the_interval_is_not_much_wider_than_the_spread_of_the_seeds() -> None:
    """As wide as Student's t over seeds says, and the resolution of a step."""
    threshold = Search(0.5, resolution=1.02).run(Learner(3000, 8, 0.3, 0.0, 3.0, 1))
    logs = np.log(threshold.per_seed)
    half = stats.t.ppf(0.975, 7) * logs.std(ddof=1) / math.sqrt(8)
    assert half <= math.log(threshold.interval[1] / threshold.value) <= half + 1.3 * math.log(1.02)
    assert threshold.value == pytest.approx(np.exp(logs.mean())) and threshold.median == pytest.approx(
        np.median(threshold.per_seed)
    )


def test_each_seed_has_its_own_threshold_to_the_resolution() -> None:
    learner = Learner(3000, 5, 1.0, 0.0, 50.0, 3)
    threshold = Search(0.5).run(learner)
    assert np.abs(np.log(np.array(threshold.per_seed) / learner.own)).max() < 1.25 * math.log(2**0.25)
    fine = Search(0.5, resolution=1.01).run(Learner(3000, 5, 1.0, 0.0, 50.0, 3))
    assert fine.per_seed == pytest.approx(learner.own, rel=0.01)


def test_few_sizes_are_measured_and_none_twice() -> None:
    """One seed: doublings from the start, one more to see the other side, and two halvings of an octave."""
    learner = Learner(5000, 1, 0.0, 0.0, 50.0, 0)
    Search(0.5, start=256).run(learner)
    assert learner.asked[:6] == [256, 512, 1024, 2048, 4096, 8192] and len(learner.asked) == 8
    assert len(set(learner.asked)) == 8


def test_the_search_goes_down_where_the_first_size_is_enough() -> None:
    learner = Learner(100, 2, 0.0, 0.0, 50.0, 0)
    assert Search(0.5, start=4096).run(learner).value == pytest.approx(100, rel=0.2)
    assert learner.asked[:7] == [4096, 2048, 1024, 512, 256, 128, 64]


def test_a_search_goes_on_with_what_was_measured() -> None:
    search, learner = Search(0.5), Learner(5000, 3, 0.5, 0.0, 3.0, 0)
    whole = search.run(learner)
    for known in range(len(learner.asked)):
        measured = {P: whole.measured[P] for P in learner.asked[:known]}
        assert search.next_size(measured) == learner.asked[known]
    assert search.next_size(whole.measured) is None and search.sizes_left(whole.measured) == 0
    assert search.threshold(whole.measured) == whole


def test_sizes_of_an_earlier_search_are_used() -> None:
    """With another bound, and on sizes that this search would not have chosen."""
    learner = Learner(5000, 1, 0.0, 0.0, 3.0, 0)
    measured = {P: tuple(learner(P)) for P in (3000, 4700, 5300, 20000)}
    assert Search(0.5).next_size(measured) is None
    assert Search(0.5).threshold(measured).value == pytest.approx(5000, rel=0.01)


def test_the_estimate_of_the_sizes_that_are_left_is_right_once_the_ends_are_found() -> None:
    search, learner = Search(0.5, resolution=1.05), Learner(5000, 1, 0.0, 0.0, 50.0, 0)
    search.run(learner)
    asked = list(learner.asked)
    done: dict[int, tuple[float, ...]] = {}
    left = []
    for P in asked:
        left.append(search.sizes_left(done))
        done[P] = tuple(learner(P))
    assert all(left)
    places = [i for i, P in enumerate(asked) if P > 5000]
    for i in range(places[0] + 1, len(left)):
        assert left[i] == len(left) - i


# ---------------------------------------------------------------------- what is not found, and what is not monotone


def test_a_threshold_beyond_the_largest_size_is_infinite() -> None:
    learner = Learner(5000, 2, 0.0, 0.0, 3.0, 0)
    threshold = Search(0.5, start=64, largest=1000).run(learner)
    assert threshold.per_seed == (math.inf, math.inf) and threshold.value == threshold.median == math.inf
    assert all(map(math.isnan, threshold.interval)) and max(learner.asked) == 1000


def test_a_criterion_that_is_met_at_any_size_has_the_threshold_0() -> None:
    threshold = Search(0.5, start=64, smallest=16).run(lambda P: [0.1, 0.2])
    assert threshold.value == threshold.median == 0 and list(threshold.measured) == [16, 32, 64]


def test_seeds_that_never_learn_leave_a_median() -> None:
    measured = {512: (1, 1, 1), 600: (0, 0, 1)}
    threshold = Search(0.5, largest=600, start=512).threshold(measured)
    assert threshold.value == math.inf and 512 < threshold.median < 600


def test_an_infinite_value_is_above_any_bound() -> None:
    search = Search(bound=50.0, start=1)
    measured = {1: (math.inf,), 2: (math.inf,), 4: (3.0,)}
    assert 2 <= search.threshold(measured).value <= 4
    assert search.next_size({2: (math.inf,), 4: (3.0,)}) == 3


def test_values_that_are_not_monotone_move_the_threshold_neither_up_nor_down() -> None:
    """0.6 and 0.4 in the wrong order pass 0.5 where their mean does; the last or the first crossing would not."""
    search = Search(0.5, start=100, resolution=4)
    threshold = search.threshold({100: (1.0,), 200: (0.3,), 400: (0.7,), 800: (0.0,)})
    assert 199 < threshold.value < 401
    assert search.threshold({100: (math.inf,), 200: (0.0,)}).value == pytest.approx(200, rel=0.1)


# ---------------------------------------------------------------------- what cannot be searched

BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Search(math.nan), 'bound=nan is out of range: use a finite number'),
    (lambda: Search(0.5, start=0), 'start=0 is out of range'),
    (lambda: Search(0.5, largest=100), 'start=1024 is out of range: use 1 to 100'),
    (lambda: Search(0.5, smallest=9, largest=8), 'smallest=9 does not fit largest=8'),
    (lambda: Search(0.5, resolution=1.0), 'resolution=1 is out of range: use a number above 1'),
    (lambda: Search(0.5).threshold({}), 'measured holds no size'),
    (lambda: Search(0.5).threshold({1: (1.0,), 2: (1.0, 2.0)}), 'give one for each seed'),
    (lambda: Search(0.5).threshold({1: (math.nan,)}), 'values that are not numbers'),
]


@pytest.mark.parametrize(('make', 'said'), BAD, ids=[said for _, said in BAD])
def test_what_cannot_be_searched_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ---------------------------------------------------------------------- their power law


def laws(number: int, spread: float) -> list[float]:
    """Planted thresholds x^2 at x = 2, 3, 4, searched to a factor of sqrt(2): the error over the half interval."""
    found = []
    x = np.array([2.0, 3.0, 4.0])
    for trial in range(number):
        amplitude = 1000 * float(np.exp(np.random.default_rng([8, trial]).uniform(0, math.log(2))))
        search = Search(0.5, resolution=2**0.5)
        thresholds = [
            search.run(Learner(amplitude * value**2, 4, spread, 0.0, 50.0, 100 * trial + i))
            for i, value in enumerate(x)
        ]
        law = fit_thresholds(x, thresholds)
        found.append(abs(law.exponent + 2) / (law.interval[1] - law.exponent))
    return found


@pytest.mark.parametrize('spread', [0.0, 0.1])
def test_the_exponent_of_thresholds_is_within_its_interval(spread: float) -> None:
    """30 trials each: at 95%, fewer than 24 are within with probability 0.06%.

    Seeds that learn at the same size have the same threshold, which is known to the resolution of the search only:
    their spread says nothing of the error.
    """
    assert stats.binom.cdf(23, 30, 0.95) < 1e-3
    assert sum(error <= 1 for error in laws(30, spread)) >= 24


def test_the_resolution_enters_the_law_of_thresholds_as_an_error_of_each_point() -> None:
    """Against the slope and the height of a straight line through points that are moved one by one."""
    x, h = np.array([2.0, 3.0, 5.0, 8.0]), np.array([0.1, 0.2, 0.3, 0.4])
    found = [Threshold(7 * v**2, (1, 1), 7 * v**2, (7 * v**2,) * 3, {}, step) for v, step in zip(x, h, strict=True)]
    law = fit_thresholds(x, found, scale=np.full(4, 2.0))
    logs = np.log(x)
    moved = np.array([np.polyfit(logs, np.where(np.arange(4) == i, h, 0.0), 1) for i in range(4)])
    slope, height = np.sqrt((moved**2).sum(0))
    assert law.exponent == pytest.approx(-2) and law.amplitude == pytest.approx(14)
    assert law.interval == pytest.approx((-2 - slope, -2 + slope))
    assert law.amplitude_interval == pytest.approx((14 * math.exp(-height), 14 * math.exp(height)))


def test_a_seed_without_a_threshold_has_no_law() -> None:
    found = [Threshold(math.nan, (math.nan, math.nan), v, (v, math.inf), {}) for v in (10.0, 20.0, 40.0)]
    with pytest.raises(ValueError, match='loss has values that are not finite'):
        fit_thresholds([1, 2, 4], found)
