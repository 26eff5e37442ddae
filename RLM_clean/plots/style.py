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
    """The style within a `with` block; what the user set globally is back after it."""
    return matplotlib.rc_context(_parameters())


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, drawing in the style and leaving the global parameters of matplotlib as they are."""

    @functools.wraps(function)
    def draw(*arguments: P.args, **named: P.kwargs) -> R:
        with context():
            return function(*arguments, **named)

    return draw


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options: Any) -> Any:
    """The axes of a new figure in the style, one or an array of them, as `Figure.subplots(rows, columns)` has them.

    The figure is `axes.figure` and no part of pyplot, so that nothing keeps it. `size` is in inches, 7 x 4.2 by
    default; `options` are those of `Figure.subplots`.
    """
    with context():
        return Figure(figsize=size).subplots(rows, columns, **options)


def own_axes(axes: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """The given axes, or those of a new figure."""
    return panels(size=size) if axes is None else axes


def shades(number: int) -> list[Any]:
    """Colours for lines of an ordered quantity, from dark to light."""
    return list(matplotlib.colormaps['viridis'](np.linspace(0, 0.85, max(1, number))))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with context():
        atomic_write(path, lambda file: figure.savefig(file, format='png'))
