"""The figures of a sweep: learning curves over the repetitions against the floors, and a map of the final excess."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from RLM_clean.config import format_value, similar
from RLM_clean.plots.style import own_axes, save, shades, styled
from RLM_clean.sweep.results import Array, Results

# More columns than these would be too small to read.
_MOST_COLUMNS = 6


@styled
def plot_sweep(results: Results, by: str | None = None) -> Figure:
    """Test loss and excess (nats) against the step: a line a value of the axis `by`, a column a point of the others.

    A line is the mean over repetitions, its band reaches from their 16th to their 84th percentile: as far as one
    standard deviation, were they normal. A dashed line is the mean floor, the loss of the best possible predictors, of
    the line of its colour. `by` is the axis with the most values by default; of the points of the other axes there are
    the first six. Raises ValueError for a `by` that is no axis.
    """
    axes = [name for name in results.axes if name != 'repetition']
    if by is not None and by not in axes:
        raise ValueError(f'by={by!r} is no axis: {similar(by, axes)}')
    by = by or max(axes, key=lambda name: len(results.axes[name]), default=None)
    others = [name for name in axes if name != by]
    points = list(itertools.product(*(enumerate(results.axes[name]) for name in others)))[:_MOST_COLUMNS]
    labels = [f'{by} = {format_value(value)}' for value in results.axes[by]] if by else ['all runs']
    colors = shades(len(labels))

    figure = Figure(figsize=(1 + 4.2 * len(points), 7.2))
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
        upper.set_title(title, loc='center')
        # linear up to 1 puts step 0, the untrained model, on the log axis
        lower.set_xscale('symlog', linthresh=1, linscale=0.5)
        lower.set_xlim(left=0)
        lower.set_yscale('log', nonpositive='mask')
        lower.set_xlabel('step')
    panels[0, 0].set_ylabel('test loss (nats); dashed: floor')
    panels[1, 0].set_ylabel('excess over the floor (nats)')
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=6)
    return figure


def _draw(axes: Axes, steps: Array, curves: Array, color: Any, label: str | None = None) -> None:
    """The mean of `curves` `(repetitions, steps)` and its band, at the steps that half of them or more have."""
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
    """The excess over the floor (nats) at the end of the runs of a sweep, over two of its axes: a heat map.

    A cell is the mean over the repetitions and all other axes of the runs that are done, written in it; colours are
    logarithmic, and cells without a run are empty. Raises ValueError for a name that is no axis, and for one given
    twice.
    """
    names = [name for name in results.axes if name != 'repetition']
    for name in (rows, columns):
        if name not in names:
            raise ValueError(f'{name!r} is no axis of this sweep: {similar(name, names)}')
    if rows == columns:
        raise ValueError(f'rows and columns are both {rows!r}: give two axes')
    values = results.mean('excess', over=[name for name in results.axes if name not in (rows, columns)])
    if names.index(rows) > names.index(columns):
        values = values.T
    axes = own_axes(axes, (1.6 + 0.9 * values.shape[1], 1.4 + 0.6 * values.shape[0]))
    norm = _log_norm(values)
    image = axes.imshow(np.ma.masked_invalid(values), norm=norm, origin='lower', aspect='auto')
    axes.grid(False)
    for i, j in np.argwhere(np.isfinite(values)):
        value = float(values[i, j])
        color = 'white' if float(norm(value)) < 0.6 else 'black'
        axes.text(j, i, f'{value:.2g}', ha='center', va='center', fontsize=9, color=color)
    axes.set_xticks(range(values.shape[1]), [format_value(value) for value in results.axes[columns]])
    axes.set_yticks(range(values.shape[0]), [format_value(value) for value in results.axes[rows]])
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.figure.colorbar(image, ax=axes, label='excess over the floor (nats)')
    return axes


def _log_norm(values: Array) -> LogNorm:
    """From the least to the largest of the values above zero; any range where there are none."""
    shown = values[np.isfinite(values) & (values > 0)]
    low, high = (shown.min(), shown.max()) if len(shown) else (0.1, 1)
    return LogNorm(low, high if high > low else 1.01 * low)


def save_sweep(results: Results) -> list[Path]:
    """Draws a sweep into sweep.png in its folder; its path, or none where no run is done yet."""
    if not len(results.steps):
        return []
    path = results.plan.folder / 'sweep.png'
    save(plot_sweep(results), path)
    return [path]
