"""A slider for a figure, in notebooks that have ipywidgets; the plain figure elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from RLM_clean.plots.style import context


def slider(draw: Callable[[float], Any], values: Sequence[float], start: float, name: str = 'beta') -> None:
    """Shows the figure `draw(start)`, and above it a slider over `values` that draws it again.

    `draw` returns axes, as all figure functions do. The figure stands in the notebook's output as a picture of its own,
    so that a saved notebook shows it without a kernel; without ipywidgets there is that picture alone. ValueError for a
    start that is none of the values.
    """
    from IPython.display import Image, display  # of the notebooks, which training does not need

    if start not in values:
        raise ValueError(f'start={start} is none of the values: use one of {list(values)}')

    def picture(value: float) -> Any:
        buffer = io.BytesIO()
        with context():
            np.ravel(draw(value))[0].figure.savefig(buffer, format='png', dpi=100)
        return Image(buffer.getvalue())

    try:
        import ipywidgets
    except ImportError:
        display(picture(start))
        return
    control = ipywidgets.SelectionSlider(options=list(values), value=start, description=name, continuous_update=False)
    display(control)
    shown = display(picture(start), display_id=True)
    control.observe(lambda change: shown.update(picture(change['new'])), 'value')
