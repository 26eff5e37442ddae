"""One style for all figures: the file `house.mplstyle` of this folder, applied to one figure at a time."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import cbook
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation

from RLM_clean.runs.storage import atomic_write

# Okabe and Ito's colours, told apart with any colour vision: M. Okabe and K. Ito, Color Universal Design (2008).
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000',
)  # fmt: skip
GREY = '#555555'
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)
# For figures of more lines: darker colours after the cycle, three of them from P. Tol, Colour Schemes (SRON, 2021).
MORE = (*CYCLE, '#882255', '#999933', '#332288', '#999999', '#8C510A')

# The sizes of a legend in points, see house.mplstyle.
_LEGEND_SIZE, _HANDLE, _SPACING = 9, 9 * 2.6, 9 * 1.5

P = ParamSpec('P')
R = TypeVar('R')


@functools.cache
def _parameters() -> Any:
    return matplotlib.rc_params_from_file(Path(__file__).with_name('house.mplstyle'), use_default_template=False)


def context() -> AbstractContextManager[None]:
    """Applies the style within a `with` block; the global parameters of matplotlib come back after it."""
    return matplotlib.rc_context(_parameters())


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function draw in the style. The global parameters of matplotlib stay as they are."""

    @functools.wraps(function)
    def draw(*arguments: P.args, **named: P.kwargs) -> R:
        with context():
            return function(*arguments, **named)

    return draw


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options: Any) -> Any:
    """The axes of a new figure in the style, one or an array of them, as `Figure.subplots(rows, columns)` has them.

    The figure is `axes.figure`. It does not belong to pyplot, so it is freed when it is no longer used. `size` is in
    inches, 7 x 4.2 by default; `options` are those of `Figure.subplots`.
    """
    with context():
        return Figure(figsize=size).subplots(rows, columns, **options)


def own_axes(axes: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """The given axes, or those of a new figure."""
    return panels(size=size) if axes is None else axes


def shades(number: int) -> list[Any]:
    """Colours for lines of an ordered quantity, from dark to light."""
    return list(matplotlib.colormaps['viridis'](np.linspace(0, 0.85, max(1, number))))


def steps_axis(axes: Axes) -> None:
    """Makes the x axis one of training steps: logarithmic, and linear up to 1 so that it includes step 0."""
    axes.set_xscale('symlog', linthresh=1, linscale=0.5, subs=range(2, 10))
    axes.set_xlim(left=0)
    axes.set_xlabel('step')


def line_colors(number: int) -> list[str]:
    """Colours for lines that have no order: the first ones of the style, or shades where there are more lines."""
    return list(MORE[:number]) if number <= len(MORE) else [to_hex(color) for color in shades(number)]


def legend_below(axes: Axes, columns: int = 5) -> None:
    """Puts the legend below the axes, in as many columns as fit, up to `columns`: inside, a curve would cross it."""
    handles, labels = axes.get_legend_handles_labels()
    labels, columns, _ = fitted_labels(labels, 1.1 * axes_inches(axes)[0], columns)
    # A distance in inches: in a fraction of the height the legend of small axes would cover their labels.
    below = axes.transAxes + ScaledTranslation(0, -0.5, axes.figure.dpi_scale_trans)
    axes.legend(
        handles, labels, loc='upper left', bbox_to_anchor=(-0.02, 0), bbox_transform=below, borderaxespad=0,
        ncols=columns, columnspacing=1.5,
    )  # fmt: skip


def fitted_labels(labels: Sequence[str], inches: float, most: int) -> tuple[list[str], int, int]:
    """The labels of a legend in as many columns as fit a width, the number of columns, and that of the lines of text.

    There are `most` columns at most. Labels that are wider than a whole line are wrapped.
    """
    labels = [wrapped(label, inches - _HANDLE / 72, _LEGEND_SIZE) for label in labels]
    widths = [text_points(label, _LEGEND_SIZE) + _HANDLE for label in labels]
    for rows in range(1, len(labels) + 1):
        columns = math.ceil(len(labels) / rows)
        # A legend is filled column by column, the first ones with a row more where the last row is not full.
        filled = np.array_split(np.arange(len(labels)), columns)
        width = sum(max(widths[i] for i in column) for column in filled) + _SPACING * (columns - 1)
        if columns == 1 or (columns <= most and width <= 72 * inches):
            break
    lines = max(sum(labels[i].count('\n') + 1 for i in column) for column in filled)
    return labels, columns, lines


def wrapped(text: str, inches: float, size: float) -> str:
    """A text on as many lines as it needs in a width."""
    lines, letters = text, len(text)
    while text_points(lines, size) > 72 * inches and letters > 8:
        letters = min(letters - 1, int(letters * 72 * inches / text_points(lines, size)) + 1)
        lines = '\n'.join(textwrap.wrap(text, max(8, letters), break_on_hyphens=False))
    return lines


@functools.lru_cache(maxsize=1024)
def text_points(text: str, size: float) -> float:
    """The width of the widest line of a text, in points; a little more, since letters are drawn on whole pixels."""
    font = FontProperties(size=size)
    lines = [(line, cbook.is_math_text(line)) for line in text.split('\n') if line]
    widths = [text_to_path.get_text_width_height_descent(line, font, formula)[0] for line, formula in lines]
    return 1.05 * max(widths, default=0)


def axes_inches(axes: Axes) -> tuple[float, float]:
    """About the width and the height that axes will have: the layout is made when the figure is drawn."""
    width, height = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi
    # The legend and the labels take more of low axes.
    return width, max(0.5, 1.25 * height - 1.2)


def plain(text: str) -> str:
    """A text as matplotlib draws it letter by letter: without formulas, and not left out of a legend."""
    text = text.replace('$', r'\$')
    return f' {text}' if text.startswith('_') else text


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, atomically: as PDF or SVG where its path ends in .pdf or .svg, else as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.lower()[1:]
    with context():
        atomic_write(path, lambda file: figure.savefig(file, format=ending if ending in ('pdf', 'svg') else 'png'))
