"""The figures of scaling: losses against the size of the training set, thresholds, power laws, data collapses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RLM_clean.config import Config, format_value
from RLM_clean.plots.runs import floor_lines
from RLM_clean.plots.style import (
    BLACK,
    GREY,
    fitted_labels,
    legend_below,
    line_colors,
    own_axes,
    plain,
    shades,
    styled,
)

if TYPE_CHECKING:
    from RLM_clean.analysis.scaling import Array, PowerLaw
    from RLM_clean.analysis.thresholds import Threshold
    from RLM_clean.sweep.results import Results

Point = dict[str, Any]

# The options that the floors depend on, beside how much of them a model sees.
_OF_FLOORS = {field.name for field in dataclasses.fields(Config) if field.metadata['group'] == 'language'}
_OF_FLOORS = _OF_FLOORS - {'num_tokens'} | {'seed_rules', 'objective', 'mask_rate', 'noise'}


@styled
def size_curves(
    results: Results, envelope: bool = False, labels: Sequence[str] | None = None, axes: Axes | None = None
) -> Axes:
    """The best loss (nats) of the runs of a sweep over `train_size` against P, with the floors.

    A line for each combination of the other axes is the mean over repetitions, with their standard deviation as error
    bars. `labels` name the lines, by default by their values on the axes. Where all lines have the same language and
    task, its floors H_k, means over the repetitions, are grey lines (with objective=all, whose loss is a mean over
    positions, the floor alone); else each line has its own floor, dashed. With `envelope` a black line is the mean of
    `analysis.scaling.envelope`, the best of the lines at each size. Raises ValueError for a sweep without the axis or
    without results, and for another number of labels.
    """
    places = [i for i, axis in enumerate(results.plan.axes) if 'train_size' in axis.names]
    if not places:
        raise ValueError('this sweep has no axis train_size: give it one, as in --grid train_size=256,1024,4096')
    if not results.counted:
        raise ValueError(f'{results.plan.folder} has no run that is done: train it first')
    others = [axis for i, axis in enumerate(results.plan.axes) if i != places[0]]
    columns = [[(axis.names[0], value) for value in axis.column(axis.names[0])] for axis in others]
    named = [_name(dict(point)) or 'all runs' for point in itertools.product(*columns)]
    if labels is not None and len(labels) != len(named):
        raise ValueError(f'labels has {len(labels)} names for {len(named)} lines: give one for each')
    sizes = np.array(results.plan.axes[places[0]].column('train_size'), float)
    order, P = np.argsort(sizes), np.sort(sizes)

    def lines(values: Array) -> Array:
        """An array over the grid as `(line, P, ...)`, by increasing size."""
        values = np.moveaxis(values, places[0], len(others))
        return np.asarray(values.reshape(len(named), len(sizes), *values.shape[len(others) + 1 :])[:, order])

    axes = own_axes(axes, (8, 4.6))
    colors = line_colors(len(named))
    means, spreads = lines(results.mean('best_loss')), lines(results.spread('best_loss'))
    for label, mean, spread, color in zip(labels or named, means, spreads, colors, strict=True):
        bars = axes.errorbar(P, mean, spread, fmt='.-', color=color)
        bars.lines[0].set_label(plain(label))  # a legend has bars after all lines, and so after the floors
    if envelope:
        from RLM_clean.analysis import scaling  # slow to import

        best = scaling.envelope(lines(results['best_loss']).swapaxes(1, 2))
        axes.plot(P, best.mean(0), color=BLACK, lw=1.2, ls='-.', label='envelope')
    axes.set_xscale('log')
    _doublings(axes.xaxis, P[0], P[-1])
    axes.set_xlabel('P, sequences in the training set')
    axes.set_ylabel('best test loss (nats)')
    if _OF_FLOORS.isdisjoint(name for axis in others for name in axis.names):
        _shared_floors(axes, results)
    else:
        for floor, color in zip(results.mean('entropy', ['train_size', 'repetition']).flat, colors, strict=True):
            axes.axhline(floor, color=color, lw=1, ls='--', zorder=1)
        axes.set_ylabel('best test loss (nats); dashed: floor')
    legend_below(axes)
    return axes


def _shared_floors(axes: Axes, results: Results) -> None:
    """Draws the floors of the one language of all runs, means over them."""
    if results['objective'].flat[0] == 'all':  # a mean over positions, which is the floor of no window
        floor_lines(axes, {'floor': float(np.nanmean(results['entropy']))}, 'best loss of all models')
        return
    names = dict.fromkeys(name for row in results.rows for name in row if name.startswith('floor_'))
    floor_lines(axes, {f'$H_{{{name[6:]}}}$': float(np.nanmean(results[name])) for name in names}, 'floors $H_k$')


@styled
def thresholds(found: Sequence[tuple[Point, Threshold]], bound: float, label: str = 'value') -> Figure:
    """What seeds reach against the size of the training set, and the thresholds against what varies.

    Left, a line for each language is the mean over seeds, a dot a seed; the dashed line is the bound. Right, a point is
    the geometric mean of the thresholds with its 95% interval, against the option with the most numbers above 0; a line
    for each combination of the others. A power law is fitted to each line of three points or more, where they follow
    one. Without such an option there is no right panel. Thresholds of 0 or infinity, which are not known, are left out
    there.
    """
    x = _numeric_axis([point for point, _ in found])
    x = x if any(0 < threshold.value < np.inf for _, threshold in found) else None
    figure = Figure(figsize=(10.5 if x else 6.5, 4.6))
    panels = figure.subplots(1, 2 if x else 1, squeeze=False)[0]
    colors = shades(len(found))
    for (point, threshold), color in zip(found, colors, strict=True):
        sizes = np.array(list(threshold.measured))
        values = np.array(list(threshold.measured.values()))
        panels[0].plot(sizes, values.mean(1), color=color, lw=1.5, label=plain(_name(point)))
        panels[0].plot(sizes, values, '.', color=color, ms=4, alpha=0.6)
    panels[0].axhline(bound, color=GREY, ls='--', lw=1, zorder=1)
    panels[0].set_xscale('log')
    sizes_asked = [size for _, threshold in found for size in threshold.measured]
    _doublings(panels[0].xaxis, min(sizes_asked), max(sizes_asked))
    panels[0].set_xlabel('P, sequences of the training set')
    panels[0].set_ylabel(label)
    if x:
        _against(panels[1], found, x)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(found) > 1:
        labels, columns, rows = fitted_labels(labels, figure.get_figwidth() - 0.4, 6)
        figure.set_figheight(4.4 + 0.19 * rows)
        figure.legend(handles, labels, loc='outside lower center', ncols=columns, columnspacing=1.5)
    return figure


def _doublings(axis: Any, low: float, high: float) -> None:
    """Puts the ticks of an axis on powers of two, at most eight: sizes often span less than a factor of ten."""
    powers = [2**i for i in range(max(0, math.ceil(math.log2(low))), math.floor(math.log2(high)) + 1)] or [round(low)]
    powers = powers[:: math.ceil(len(powers) / 8)]
    axis.set_ticks(powers, labels=[str(power) for power in powers])
    axis.set_ticks([], minor=True)


def _against(axes: Axes, found: Sequence[tuple[Point, Threshold]], x: str) -> None:
    """Draws the thresholds against an option, a line for each combination of the others, with their power laws."""
    lines: dict[str, list[tuple[float, Threshold]]] = {}
    for point, threshold in found:
        if 0 < threshold.value < np.inf:
            others = _name({name: value for name, value in point.items() if name != x})
            lines.setdefault(others, []).append((point[x], threshold))
    colors = shades(len(lines)) if len(lines) > 1 else [BLACK] * len(lines)
    for (name, line), color in zip(lines.items(), colors, strict=True):
        line.sort(key=lambda pair: pair[0])
        at, middle = np.array([value for value, _ in line], float), np.array([t.value for _, t in line])
        ends = np.abs(np.array([t.interval for _, t in line]).T - middle)
        law = _law_of_thresholds(at, [t for _, t in line])
        if law is not None:
            name = f'{name} ' if len(lines) > 1 else ''
            name += f'exponent {-law.exponent:.2f} ({-law.interval[1]:.2f} to {-law.interval[0]:.2f})'
            grid = np.geomspace(at[0], at[-1], 50)
            axes.plot(grid, law(grid), color=color, lw=1)
        axes.errorbar(at, middle, ends, fmt='o', color=color, capsize=3, label=plain(name))
    axes.set_xscale('log')
    axes.set_yscale('log')
    values = sorted({point[x] for point, _ in found})
    axes.set_xticks(values, [format_value(value) for value in values])
    axes.set_xticks([], minor=True)
    _doublings(axes.yaxis, *axes.get_ylim())
    axes.set_xlabel(x)
    axes.set_ylabel('P* (95% intervals)')
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc='best')


def _law_of_thresholds(x: Array, line: Sequence[Threshold]) -> PowerLaw | None:
    """The power law in x of the geometric means of thresholds; None for fewer than three, or where there is none."""
    from RLM_clean.analysis.thresholds import fit_thresholds

    if len(line) < 3:
        return None
    try:
        return fit_thresholds(x, line)
    except ValueError:  # steeper than any law that is looked for, or a seed without a threshold
        return None


def _numeric_axis(points: Sequence[Point]) -> str | None:
    """The option with the most different values, all of them numbers above 0; None where no option has two."""
    best, most = None, 1
    for name in points[0] if points else ():
        values = {point[name] for point in points}
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in values)
        if numbers and len(values) > most:
            best, most = name, len(values)
    return best


def _name(point: Point) -> str:
    return ', '.join(f'{name} = {format_value(value)}' for name, value in point.items())


@styled
def power_law(P: Any, loss: Any, law: PowerLaw, axes: Axes | None = None, label: str = 'loss - floor (nats)') -> Axes:
    """The loss above the floor of a fit against P, log-log: seeds as dots, the law as a line over the range of its fit.

    Beyond its range the law is dashed. Points at or below the floor cannot be drawn.
    """
    axes = own_axes(axes)
    P, above = np.asarray(P, float), np.atleast_2d(np.asarray(loss, float)) - law.floor
    axes.plot(P, np.where(above > 0, above, np.nan).T, '.', color=GREY, ms=4)
    axes.plot(P, above.mean(0), 'o', color=BLACK)
    for low, high, style in ((P.min(), P.max(), '--'), (*law.range, '-')):
        grid = np.geomspace(low, high, 100)
        axes.plot(grid, law(grid) - law.floor, style, color='#0072B2', label=str(law) if style == '-' else None)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('P, sequences of the training set')
    axes.set_ylabel(label)
    axes.legend(loc='best')
    return axes


@styled
def collapsed(
    curves: Mapping[Any, tuple[Any, Any]], x_label: str, y_label: str, name: str = '', axes: Axes | None = None
) -> Axes:
    """Curves that were rescaled (`analysis.collapse.rescale`), log-log: means over seeds, a colour for each parameter.

    `x_label` and `y_label` say what the axes are then, as r'$P / v^{1.5}$'; `name` is that of the parameter.
    """
    axes = own_axes(axes)
    for (param, (P, loss)), color in zip(curves.items(), shades(len(curves)), strict=True):
        label = f'{name} = {param}' if name else str(param)
        axes.plot(P, np.atleast_2d(loss).mean(0), 'o-', color=color, label=plain(label), lw=1)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(loc='best')
    return axes
