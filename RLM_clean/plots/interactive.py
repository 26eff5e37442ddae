"""A slider that redraws a figure, in notebooks that have ipywidgets. Without ipywidgets the figure alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from RLM_clean.plots.style import context


def slider(draw: Callable[[float], Any], values: Sequence[float], start: float, name: str = 'beta') -> None:
    """Shows the figure `draw(start)`, and above it a slider over `values` that redraws it.

    `draw` returns a figure or axes, as all figure functions do. The figure is saved in the notebook as a picture, so
    that a notebook shows it without a kernel. Without ipywidgets the picture is shown alone. Raises ValueError for a
    start that is not one of the values.
    """
    from IPython.display import Image, display  # only notebooks have IPython

    if start not in values:
        raise ValueError(f'start={start} is not one of the values: use one of {list(values)}')

    def picture(value: float) -> Any:
        buffer = io.BytesIO()
        with context():
            drawn = draw(value)
            figure = drawn if isinstance(drawn, Figure) else drawn.figure
            figure.savefig(buffer, format='png', dpi=100)
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
