"""What it means that a figure can be read: no text is cut, and none covers another."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def box(artist: Any) -> Any:
    """Where an artist of a figure that was drawn is, in pixels."""
    return artist.get_window_extent(artist.figure.canvas.get_renderer())


def overlapping(artists: list[Any], slack: float = 1.0) -> list[tuple[str, str]]:
    """The pairs of artists whose boxes overlap by more than a pixel in both directions."""
    boxes = [(str(artist), box(artist)) for artist in artists]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack
    ]


def labels_of(axis: Any) -> list[Any]:
    """The visible tick labels of an axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [
        tick.label1
        for tick in ticks
        if low <= tick.get_loc() <= high and tick.label1.get_text() and tick.label1.get_visible()
    ]


def texts_of(axes: Any) -> list[Any]:
    """The texts of axes, their legend among them as one."""
    around: list[Any] = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
    texts = [text for text in (*around, *axes.texts) if text.get_text() and text.get_visible()]
    texts += labels_of(axes.xaxis) + labels_of(axes.yaxis)
    return texts if axes.get_legend() is None else [*texts, axes.get_legend()]


def assert_readable(figure: Figure) -> None:
    """No text of a figure is cut or covers another, in any of its axes and between them, its legends included."""
    FigureCanvasAgg(figure).draw()
    texts = [text for axes in figure.axes for text in texts_of(axes)] + figure.legends
    covered = overlapping(texts)
    assert covered == [], covered
    inside: list[Any] = [*texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for text in inside:
        extent = box(text)
        assert min(extent.x0, extent.y0) >= -1, text
        assert extent.x1 <= figure.bbox.x1 + 1 and extent.y1 <= figure.bbox.y1 + 1, text


def legend_texts(owner: Figure | Axes) -> list[str]:
    """The entries of the legend of axes, or of that of a figure."""
    legend = owner.legends[0] if isinstance(owner, Figure) else owner.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]
