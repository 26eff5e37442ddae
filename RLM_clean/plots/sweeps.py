"""The figures of a sweep: learning curves over the repetitions against the floors, and a map of the final excess."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from RLM_clean.config import format_value, similar
from RLM_clean.plots.style import (
    fitted_labels,
    own_axes,
    plain,
    save,
    shades,
    steps_axis,
    styled,
    text_points,
    wrapped,
)

if TYPE_CHECKING:
    from RLM_clean.sweep.results import Array, Results

# More columns would be too small to read.
_MOST_COLUMNS = 6


@styled
def plot_sweep(results: Results, by: str | None = None) -> Figure:
    """The test loss and the excess (nats) against the step, with one line for each value of the axis `by`.

    A line is the mean over repetitions. Its band runs from the 16th to the 84th percentile, which is one standard
    deviation on either side for a normal distribution. The dashed line of the same colour is the mean floor, the loss
    of the best possible predictors. Each combination of the other axes has its own column; of more than six
    the first six are shown, which the title says. `by` is the axis with the most values by default. Raises ValueError
    for a `by` that is not an axis of the sweep.
    """
    axes = [name for name in results.axes if name != 'repetition']
    if by is not None and by not in axes:
        raise ValueError(f'by={by!r} is not an axis of this sweep: {similar(by, axes, _one_of(axes))}')
    by = by or max(axes, key=lambda name: len(results.axes[name]), default=None)
    others = [name for name in axes if name != by]
    every = list(itertools.product(*(enumerate(results.axes[name]) for name in others)))
    points = every[:_MOST_COLUMNS]
    labels = [f'{by} = {format_value(value)}' for value in results.axes[by]] if by else ['all runs']
    colors = shades(len(labels))

    width = 1 + 4.2 * len(points)
    figure = Figure(figsize=(width, 7.2))
    panels = figure.subplots(2, len(points), sharex=True, sharey='row', squeeze=False)
    values = {name: results.curves(name) for name in ('testloss', 'excess')} | {'floor': results['entropy']}
    for (upper, lower), point in zip(panels.T, points, strict=True):
        places = {name: place for name, (place, _) in zip(others, point, strict=True)}
        chosen = tuple(places.get(name, slice(None)) for name in axes)
        lines = {name: value[chosen] if by else value[chosen][None] for name, value in values.items()}
        for i, (label, color) in enumerate(zip(labels, colors, strict=True)):
            _draw(upper, results.steps, lines['testloss'][i], color, label)
            _draw(lower, results.steps, lines['excess'][i], color)
            floors = lines['floor'][i][np.isfinite(lines['testloss'][i]).any(-1)]
            if len(floors):
                upper.axhline(floors.mean(), color=color, ls='--', lw=1, zorder=1)
        title = ', '.join(f'{name} = {format_value(value)}' for name, (_, value) in zip(others, point, strict=True))
        upper.set_title(wrapped(plain(title), 3.8, 10.5), loc='center')
        steps_axis(lower)
        lower.set_yscale('log', nonpositive='mask')
    panels[0, 0].set_ylabel('test loss (nats); dashed: floor')
    panels[1, 0].set_ylabel('excess over the floor (nats)')
    handles, labels = panels[0, 0].get_legend_handles_labels()
    labels, columns, rows = fitted_labels([plain(label) for label in labels], width - 0.4, 6)
    figure.set_figheight(7 + 0.19 * rows)
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, columnspacing=1.5)
    if len(points) < len(every):
        figure.suptitle(f'the first {len(points)} of {len(every)} combinations of {plain(", ".join(others))}', size=11)
    return figure


def _draw(axes: Axes, steps: Array, curves: Array, color: Any, label: str | None = None) -> None:
    """Draws the mean of `curves (repetitions, steps)` and its band, at the steps that at least half of them have."""
    curves = curves[np.isfinite(curves).any(1)]
    if not len(curves):
        axes.plot([], [], color=color, label=label)
        return
    recorded = np.isfinite(curves).sum(0) * 2 >= len(curves)
    steps, curves = steps[recorded], curves[:, recorded]
    axes.plot(steps, np.nanmean(curves, 0), color=color, lw=1.5, label=label)
    axes.fill_between(steps, *np.nanquantile(curves, (0.16, 0.84), axis=0), color=color, alpha=0.2, lw=0)


@styled
def excess_map(results: Results, rows: str = 'num_features', columns: str = 'beta', axes: Axes | None = None) -> Axes:
    """A heat map of the excess over the floor (nats) at the end of the runs of a sweep, over two of its axes.

    A cell shows the mean over the finished runs of all repetitions and all other axes. Colours are logarithmic, and
    cells without a run are empty. Raises ValueError for a name that is not an axis, and for the same name twice.
    """
    names = [name for name in results.axes if name != 'repetition']
    for name in (rows, columns):
        if name not in names:
            raise ValueError(f'{name!r} is not an axis of this sweep: {similar(name, names, _one_of(names))}')
    if rows == columns:
        raise ValueError(f'rows={rows!r} and columns={columns!r} are the same axis: give two different ones')
    values = results.mean('excess', over=[name for name in results.axes if name not in (rows, columns)])
    if names.index(rows) > names.index(columns):
        values = values.T
    names_of = {name: [format_value(value) for value in results.axes[name]] for name in (rows, columns)}
    widest = {name: max(text_points(text, 9) for text in names_of[name]) / 72 for name in names_of}
    size = (1.6 + widest[rows] + max(0.9, widest[columns] + 0.2) * values.shape[1], max(3.0, 1.4 + 0.6 * len(values)))
    axes = own_axes(axes, size)
    norm = _log_norm(values)
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, origin='lower', aspect='auto')
    axes.grid(False)
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        color = 'white' if float(norm(value)) < 0.6 else 'black'
        axes.text(j, i, f'{value:.2g}', ha='center', va='center', fontsize=9, color=color)
    axes.set_xticks(range(values.shape[1]), names_of[columns])
    axes.set_yticks(range(values.shape[0]), names_of[rows])
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.figure.colorbar(image, ax=axes, label='excess over the floor (nats)')
    return axes


def _log_norm(values: Array) -> LogNorm:
    """A scale from the smallest to the largest value above zero, or any scale if there is none."""
    shown = values[np.isfinite(values) & (values > 0)]
    low, high = (shown.min(), shown.max()) if len(shown) else (0.1, 1)
    return LogNorm(low, high if high > low else 1.01 * low)


def save_sweep(results: Results) -> list[Path]:
    """Draws a sweep into sweep.png in its folder. Returns its path, or nothing if no run has finished."""
    if not len(results.steps):
        return []
    path = results.plan.folder / 'sweep.png'
    save(plot_sweep(results), path)
    return [path]


def _one_of(axes: Sequence[str]) -> str:
    return f'use {" or ".join(axes)}' if axes else 'it has none but the repetitions'
