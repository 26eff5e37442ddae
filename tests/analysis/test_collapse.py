"""Data collapse: planted exponents are found and covered, and the quality tells a collapse from none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from RLM_clean.analysis.collapse import collapse, rescale

Array = NDArray[np.float64]
Curves = dict[Any, tuple[Array, Array]]
A, B = 1.5, 0.3


def planted(trial: int, seeds: int, noise: float, common: float = 0.0, b: float = 0.0, points: int = 10) -> Curves:
    """Curves of v = 8, 16, 32 that bend at P = 10 v^1.5 and have the height v^-b.

    The noise is a fraction of the loss at each point, and `common` at all points of a seed.
    """
    draws = np.random.default_rng(trial)
    curves = {}
    for v in (8, 16, 32):
        P = np.geomspace(128, 2**16, points)
        loss = v**-b * (1 + (P / (10 * v**A)) ** 1.5) ** -0.5
        errors = noise * draws.standard_normal((seeds, points)) + common * draws.standard_normal((seeds, 1))
        curves[v] = P, loss * np.exp(errors)
    return curves


def direct_quality(curves: Mapping[Any, tuple[Array, Array, Array]]) -> float:
    """S as Houdayer and Hartmann define it, point by point, by polynomial fits of numpy: curves of (x, y, dy)."""
    terms = []
    for j, (xs, ys, dys) in curves.items():
        for x, y, dy in zip(xs, ys, dys, strict=True):
            near = []
            for i, (other, values, errors) in curves.items():
                below, above = np.flatnonzero(other < x), np.flatnonzero(other >= x)
                if x == other[0]:
                    below, above = np.array([0]), np.array([1])
                if i != j and len(below) and len(above):
                    near += [(other[k], values[k], errors[k]) for k in (below[-1], above[0])]
            if near:
                at, value, error = np.array(near).T
                (slope, height), covariance = np.polyfit(at, value, 1, w=1 / error, cov='unscaled')
                dY2 = np.array([x, 1]) @ covariance @ np.array([x, 1])
                terms.append((y - slope * x - height) ** 2 / (dy**2 + dY2))
    return float(np.mean(terms))


@pytest.mark.filterwarnings('ignore:Polyfit may be poorly conditioned')
def test_the_quality_is_that_of_the_definition() -> None:
    curves = planted(0, 1, 0.1)
    for x, y in ((1.4, 0.0), (1.1, 0.2)):  # no point falls onto another
        rescaled = rescale(curves, x, y)
        logs = {v: (np.log(P), np.log(loss[0]), np.full(10, 0.1)) for v, (P, loss) in rescaled.items()}
        quality = collapse(curves, x, y, error=0.1).S
        assert quality == pytest.approx(direct_quality(logs), rel=1e-9)


@pytest.mark.filterwarnings('ignore:Polyfit may be poorly conditioned')
def test_points_at_either_end_of_another_curve_are_inside_it() -> None:
    """Where all curves have the same sizes, each point has neighbours in the others; also from the other side."""
    curves = planted(0, 1, 0.1)
    found = collapse(curves, 0.0, 0.0, error=0.1)
    logs = {v: (np.log(P), np.log(loss[0]), np.full(10, 0.1)) for v, (P, loss) in curves.items()}
    quality = found.S
    assert found.overlap == 1 and quality == pytest.approx(direct_quality(logs), rel=1e-9)
    mirrored = {v: (1 / P[::-1], loss[:, ::-1]) for v, (P, loss) in curves.items()}
    assert collapse(mirrored, 0.0, 0.0, error=0.1).overlap == 1


def test_exponents_of_curves_without_noise_are_found() -> None:
    """On many points: between two of them a bent curve is not a straight line."""
    curves = planted(0, 1, 0.0, b=B, points=60)
    found = collapse(curves, None, None, error=0.01, bootstraps=2)
    assert (found.x, found.y) == pytest.approx((A, B), abs=0.01)
    assert found.S < 0.05 and found.overlap > 0.8


def test_the_quality_is_about_1_for_a_collapse_and_large_for_none() -> None:
    """S is a mean over about 28 points with errors from 8 seeds: above 2 or below 0.4 in far less than 1% of trials."""
    curves = planted(1, 8, 0.05)
    assert 0.4 < collapse(curves, bootstraps=2).S < 2
    assert collapse(curves, x=0.5).S > 20


def covered(
    trials: int, seeds: int, noise: float, common: float, b: float | None, bootstraps: int = 100
) -> tuple[int, int]:
    """In how many trials the intervals of the exponents of x and y contain the true ones; b is fitted unless None."""
    hits = np.zeros(2, int)
    for trial in range(trials):
        found = collapse(
            planted(trial, seeds, noise, common, b or 0.0), None, None if b else 0.0, bootstraps=bootstraps
        )
        assert found.x_interval is not None and found.y_interval is not None
        hits += [low <= true <= high for true, (low, high) in ((A, found.x_interval), (b or 0.0, found.y_interval))]
    return int(hits[0]), int(hits[1])


def test_intervals_cover() -> None:
    """Of 6 intervals of 95% fewer than 4 cover with probability 0.2%. The slow test has 200 trials."""
    assert covered(6, 5, 0.1, 0.0, None, bootstraps=20)[0] >= 4


@pytest.mark.slow
def test_intervals_of_95_percent_cover_in_90_to_98_percent_of_200_trials() -> None:
    """Of five seeds, whose errors are in part the same at all sizes."""
    assert 180 <= covered(200, 5, 0.05, 0.1, None, bootstraps=50)[0] <= 196


@pytest.mark.slow
def test_intervals_of_two_exponents_cover_in_90_to_98_percent_of_200_trials() -> None:
    for hits in covered(200, 5, 0.1, 0.0, B, bootstraps=20):
        assert 180 <= hits <= 196


def test_a_scale_may_be_a_function_of_any_parameter() -> None:
    curves = {(v, 'name'): curve for v, curve in planted(0, 4, 0.05).items()}
    found = collapse(curves, x=lambda key: 10 * key[0] ** A, y=0.0)
    assert found.x is found.x_interval is None and (found.y, found.y_interval) == (0.0, (0.0, 0.0))
    same = collapse(planted(0, 4, 0.05), x=A, y=0.0)
    assert (same.x, same.x_interval) == (A, (A, A))
    quality = found.S
    assert quality == pytest.approx(same.S)


def test_rescaled_curves_lie_on_each_other() -> None:
    curves = rescale(planted(0, 1, 0.0, b=B), A, B)
    P, loss = curves[16]
    assert loss[0] == pytest.approx((1 + (P / 10) ** 1.5) ** -0.5)
    assert curves[8][0] == pytest.approx(np.geomspace(128, 2**16, 10) / 8**A)
    with pytest.raises(ValueError, match='y=None is no scale: give the exponent'):
        rescale(planted(0, 1, 0.0, b=B), A, None)


def test_the_same_seed_gives_the_same_intervals() -> None:
    curves = planted(0, 4, 0.1)
    once = collapse(curves, bootstraps=5, seed=1)
    assert collapse(curves, bootstraps=5, seed=1) == once != collapse(curves, bootstraps=5, seed=2)


def test_curves_that_are_pulled_apart_do_not_count_as_a_collapse() -> None:
    """At an exponent of 20 no curve reaches another; S would be a mean over nothing."""
    with pytest.raises(ValueError, match='the curves do not overlap at any exponents'):
        collapse(planted(0, 3, 0.1), x=20.0)


P = np.array([1.0, 2.0, 4.0])
BAD: list[tuple[dict[Any, Any], dict[str, Any], str]] = [
    ({8: (P, P)}, {}, 'curves has 1 curves: give two or more'),
    ({8: (P, P), 16: (P, P)}, {}, "the curve of 8 has one seed, which has no spread: give error"),
    ({8: (P, P - 2), 16: (P, P)}, {'error': 0.1}, 'the curve of 8 has losses at or below 0'),
    ({8: (P, P), 16: (P, P)}, {'error': 0.0}, 'error=0.0 is out of range: use a number above 0'),
    ({'a': (P, P), 16: (P, P)}, {'error': 0.1}, "x: the parameter 'a' is not a number above 0: give a function"),
    ({8: (P, P), 16: (P, P)}, {'error': 0.1, 'y': lambda v: -v}, 'y: the scale of 8 is not a number above 0'),
]  # fmt: skip


@pytest.mark.parametrize(('curves', 'options', 'said'), BAD, ids=[said for *_, said in BAD])
def test_what_cannot_collapse_is_refused(curves: dict[Any, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        collapse(curves, **options)
