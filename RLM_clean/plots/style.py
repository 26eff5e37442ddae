"""One style for all figures: the file `house.mplstyle` of this folder, applied to one figure at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RLM_clean.runs.storage import atomic_write

# Okabe and Ito's colours, told apart with any colour vision: M. Okabe and K. Ito, Color Universal Design (2008).
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000',
)  # fmt: skip
GREY = '#555555'
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK)

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


def legend_below(axes: Axes, columns: int = 5) -> None:
    """Puts the legend below the axes: inside, some curve would run through it."""
    axes.legend(loc='upper left', bbox_to_anchor=(-0.02, -0.15), borderaxespad=0, ncols=columns, columnspacing=1.5)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with context():
        atomic_write(path, lambda file: figure.savefig(file, format='png'))
