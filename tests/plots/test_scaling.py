"""The figures of scaling can be read, and show what was found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from readable import assert_readable

from RLM_clean.analysis.collapse import rescale
from RLM_clean.analysis.scaling import fit_power_law
from RLM_clean.analysis.thresholds import Search, Threshold
from RLM_clean.plots import scaling


def made_up(true: float, largest: int = 2**20) -> Threshold:
    """The threshold of four seeds around a size."""
    own = true * np.array([0.8, 0.9, 1.1, 1.3])
    return Search(0.5, largest=largest).run(lambda P: 1.2 / (1 + (P / own) ** 2))


def languages(**values: list[Any]) -> list[tuple[dict[str, Any], Threshold]]:
    """Thresholds that grow with the square of v, for each combination of options."""
    points: list[dict[str, Any]] = [{}]
    for name, column in values.items():
        points = [{**point, name: value} for point in points for value in column]
    return [(point, made_up(40 * point.get('num_features', 8) ** 2.0)) for point in points]


GRIDS: dict[str, dict[str, list[Any]]] = {
    'one language': {},
    'two': {'num_features': [8, 16]},
    'three': {'num_features': [8, 16, 32]},
    'a name': {'model': ['transformer_mlm', 'fcn']},
    'two axes': {'num_features': [8, 16, 32, 64], 'num_layers': [2, 3]},
}


@pytest.mark.parametrize('grid', GRIDS)
def test_the_figure_of_thresholds_is_readable(grid: str) -> None:
    found = languages(**GRIDS[grid])
    figure = scaling.thresholds(found, 0.5, '(loss - floor with level 2) / step')
    assert_readable(figure)
    assert len(figure.axes) == (2 if 'num_features' in GRIDS[grid] else 1)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == '.']
    assert len(dots) == 4 * len(found)


def test_the_power_law_of_thresholds_is_in_the_legend() -> None:
    figure = scaling.thresholds(languages(num_features=[8, 16, 32]), 0.5)
    legend = figure.axes[1].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 1 and float(texts[0].split()[1]) == pytest.approx(2, abs=0.05)


def test_thresholds_too_steep_for_a_power_law_are_drawn_without_one() -> None:
    found = [({'num_layers': L}, made_up(size)) for L, size in ((2, 10), (3, 4000), (4, 200_000))]
    figure = scaling.thresholds(found, 0.5)
    assert figure.axes[1].get_legend() is None and len(figure.axes[1].containers) == 1


def test_thresholds_that_are_not_known_are_left_out() -> None:
    found = [({'num_features': 8}, made_up(400)), ({'num_features': 16}, made_up(1e6, largest=2048))]
    assert found[1][1].value == math.inf
    figure = scaling.thresholds(found, 0.5)
    assert_readable(figure)
    (points,) = figure.axes[1].containers
    assert len(points.lines[0].get_xdata()) == 1  # type: ignore[attr-defined]
    assert len(scaling.thresholds(found[1:], 0.5).axes) == 1


def test_fits_and_collapses_are_readable() -> None:
    P = np.geomspace(64, 2**16, 11)
    loss = 0.3 + 20 * P**-0.5 * (1 + 0.05 * np.random.default_rng(0).standard_normal((4, 11)))
    assert_readable(scaling.power_law(P, loss, fit_power_law(P, loss, 0.3)).figure)  # type: ignore[arg-type]
    fine = np.geomspace(64, 2**16, 41)
    curves = {v: (fine, (1 + fine / v**2) ** -0.5) for v in (8, 16, 32)}
    axes = scaling.collapsed(rescale(curves, 2.0, 0.0), r'$P / v^2$', 'loss - floor (nats)', 'v')
    assert_readable(axes.figure)  # type: ignore[arg-type]
    points = [(np.log(line.get_xdata()), np.log(line.get_ydata())) for line in axes.lines]
    heights = [np.interp(np.log(2.0), x, y) for x, y in points]
    assert heights == pytest.approx([-0.5 * np.log(3)] * 3, abs=0.02)
