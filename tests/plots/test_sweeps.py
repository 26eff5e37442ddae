"""The figures of sweeps can be read for every grid: few and many columns, short and long names."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pytest
from readable import assert_readable, box, legend_texts

from RLM_clean import plots


class MadeUp:
    """The part of sweep.Results that is drawn, for runs that were never trained."""

    def __init__(self, axes: dict[str, list[Any]]) -> None:
        self.axes = {**axes, 'repetition': [1, 2, 3]}
        self.steps = np.array([0, 1, 3, 10, 30, 100, 300, 1000])
        shape = tuple(len(values) for values in self.axes.values())
        number = int(np.prod(shape))
        self.floors = np.linspace(1, 2.5, number).reshape(shape)
        self.speeds = np.geomspace(2, 200, number).reshape(shape)

    def curves(self, name: str) -> Any:
        excess = (3.4 - self.floors)[..., None] * (1 + self.steps / self.speeds[..., None]) ** -1.3
        return excess if name == 'excess' else self.floors[..., None] + excess

    def __getitem__(self, name: str) -> Any:
        return self.floors

    def mean(self, what: str, over: list[str]) -> Any:
        return self.curves(what)[..., -1].mean(tuple(list(self.axes).index(name) for name in over))


BETAS = [0.5 * i for i in range(1, 9)]
GRIDS: dict[str, dict[str, list[Any]]] = {
    'no axis': {},
    '1 x 1': {'beta': [1.0]},
    '1 x 4': {'beta': BETAS[:4]},
    '1 x 4, long names': {'an_option_with_a_long_name': [f'a_long_value_with_number_{i}' for i in range(4)]},
    '1 x 4, longer than the figure': {'an_option': [f'{"a_longer_value" * 5}_{i}' for i in range(4)]},
    '3 x 2': {'beta': BETAS[:3], 'num_features': [16, 32]},
    '2 x 8': {'dataset': ['rlm', 'rhm'], 'beta': [1.23456 * beta for beta in BETAS]},
    '6 columns': {'weight_decay': BETAS, 'accumulation': [1, 2, 3], 'num_features': [16, 32]},
    '6 columns, long names': {
        'weight_decay': [0.00012345 * i for i in range(8)],
        'an_option_with_a_long_name': [1, 2, 3],
        'and_another_one_which_is_longer': ['with_values_of_many_letters', 'each'],
    },
}  # fmt: skip


@pytest.mark.parametrize('grid', GRIDS)
def test_the_curves_of_every_grid_are_readable_and_told_apart(grid: str) -> None:
    results: Any = MadeUp(GRIDS[grid])
    figure = plots.plot_sweep(results)
    assert_readable(figure)
    (legend,) = figure.legends
    extent = box(legend)
    assert extent.x0 >= -1 and extent.x1 <= figure.bbox.x1 + 1 and extent.y0 >= -1
    by = max(GRIDS[grid], key=lambda name: len(GRIDS[grid][name]), default=None)
    entries = legend_texts(figure)
    assert len(set(entries)) == len(entries) == (len(GRIDS[grid][by]) if by else 1)
    colours = [line.get_color() for line in figure.axes[-1].get_lines()]
    assert len({matplotlib.colors.to_hex(color) for color in colours}) == len(entries)
    for axes in figure.axes:
        assert axes.get_window_extent().height > 2.5 * figure.dpi  # the figure grows with its legend


def test_a_figure_says_how_many_columns_it_leaves_out() -> None:
    of_six: Any = MadeUp({'weight_decay': BETAS, 'accumulation': [1, 2, 3], 'num_features': [16, 32]})
    of_eight: Any = MadeUp({'weight_decay': BETAS, 'accumulation': [1, 2, 3, 4], 'num_features': [16, 32]})
    assert plots.plot_sweep(of_six).get_suptitle() == ''
    figure = plots.plot_sweep(of_eight)
    assert figure.get_suptitle() == r'the first 6 of 8 combinations of accumulation, num\_features'.replace('\\', '')
    assert_readable(figure)


@pytest.mark.parametrize('grid', [grid for grid in GRIDS if len(GRIDS[grid]) == 2])
def test_the_map_of_every_grid_is_readable_both_ways(grid: str) -> None:
    results: Any = MadeUp(GRIDS[grid])
    one, other = GRIDS[grid]
    for rows, columns in ((one, other), (other, one)):
        axes: Any = plots.excess_map(results, rows, columns)
        assert_readable(axes.figure)


@pytest.mark.parametrize('sizes', [(1, 4), (4, 1), (1, 1), (2, 8)])
def test_maps_of_one_row_or_column_and_of_long_values_are_readable(sizes: tuple[int, int]) -> None:
    rows, columns = ([f'a_long_value_{i}' for i in range(size)] for size in sizes)
    results: Any = MadeUp({'model': rows, 'another': columns})
    axes: Any = plots.excess_map(results, 'model', 'another')
    assert_readable(axes.figure)
