"""The figures of the nodes of a tree inside a model: what layers hold of each symbol, and what interventions do.

A function of one panel draws into `axes`, or makes a figure, and returns the axes. A function of several panels draws
into an array of `axes`, or makes a figure, and returns the figure.
"""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from RLM_clean.analysis.interventions import Interchange, Steering
from RLM_clean.analysis.probes import NodeProbes
from RLM_clean.plots.style import BLACK, BLUE, GREY, legend_below, own_axes, panels, shades, styled

# More panels side by side would be too small to read.
_MOST_COLUMNS = 4
# Numbers are written into the fields of trees of at most this many levels.
_MOST_WRITTEN_LEVELS = 3
# The colour of symbols of which the model sees nothing.
_EMPTY = '#DDDDDD'
_MARKERS = 'osD^vP'


@styled
def node_probes(probes: NodeProbes, condition: str = 'trained', axes: Any = None) -> Figure:
    """What each layer holds of each symbol of the tree, as a figure with one panel for each layer.

    A panel is the tree: the root above, the tokens below, each symbol as wide as the tokens below it. The colour is the
    fraction `1 - E KL(exact posterior || probe) / E KL(exact posterior || marginal)`, which is written in percent:
    100 if a linear probe knows as much of the symbol as exact inference does, 0 if it knows nothing. Symbols of which
    the model sees nothing are grey. `condition` is 'trained', 'untrained' or 'shuffled'.
    """
    number = len(probes.layers)
    rows = -(-number // _MOST_COLUMNS)
    columns = -(-number // rows)
    if axes is None:
        size = (1 + 2.7 * columns, 0.5 + 2.1 * rows)
        axes = panels(rows, columns, size=size, sharex=True, sharey=True, squeeze=False)
    axes = np.ravel(axes)
    colors = ScalarMappable(Normalize(0, 1), 'viridis')
    for panel, layer, fractions in zip(axes, probes.layers, probes.fraction(condition).tolist(), strict=False):
        _icicle(panel, probes.nodes, fractions, colors)
        panel.set_title(layer)
        panel.label_outer()
    for panel in axes[number:]:
        panel.set_visible(False)
    bar = axes[0].figure.colorbar(colors, ax=list(axes), aspect=12 * rows, pad=0.02)
    bar.set_label('fraction of the information')
    return axes[0].figure


def _icicle(axes: Axes, nodes: list[tuple[int, int]], values: list[float], colors: Any) -> None:
    L = max(level for level, _ in nodes)
    written = L <= _MOST_WRITTEN_LEVELS
    for (level, i), value in zip(nodes, values, strict=True):
        width, known = 2 ** (L - level), not np.isnan(value)
        face: Any = colors.to_rgba(np.float64(value)) if known else _EMPTY
        axes.add_patch(Rectangle((i * width + 0.5, level - 0.5), width, 1, facecolor=face, edgecolor='white', lw=1.5))
        if written and known:
            red, green, blue = matplotlib.colors.to_rgb(face)
            color = 'black' if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else 'white'
            text = f'{100 * max(value, 0):.0f}'
            axes.text((i + 0.5) * width + 0.5, level, text, ha='center', va='center', color=color, fontsize=8)
    axes.set_xlim(0.5, 2**L + 0.5)
    axes.set_ylim(L + 0.5, -0.5)
    axes.set_yticks(range(L + 1))
    axes.set_xticks(range(1, 2**L + 1, max(1, 2**L // 8)))
    axes.grid(False)
    axes.set_xlabel('position of the token')
    axes.set_ylabel('level (0: root)')


@styled
def steering_effects(steering: Steering, axes: Axes | None = None) -> Axes:
    """How far steering moves the prediction to the exact counterfactual one, against the layer: one line for each node.

    The effect is `1 - E KL(counterfactual || steered model) / E KL(counterfactual || model)`. The exact posterior has
    the effect 1. Dashed lines are random directions of the same length. Bars are two standard errors on either side.
    """
    axes = own_axes(axes)
    places = range(len(steering.layers))
    for j, (name, color, marker) in enumerate(_lines(steering)):
        for condition, line in (('steered', '-'), ('random', '--')):
            value, error = (table[:, j] for table in steering.effect[condition])
            axes.errorbar(places, value, 2 * error, color=color, marker=marker, ls=line, lw=1 if line == '--' else None,
                          label=name if line == '-' else None)  # fmt: skip
    axes.axhline(1, color=BLACK, lw=1, ls=':')
    axes.axhline(0, color=GREY, lw=0.6)
    axes.annotate('exact', (0.99, 1), xycoords=('axes fraction', 'data'), ha='right', va='bottom', fontsize=8)
    axes.plot([], [], color=GREY, ls='--', lw=1, label='random direction')
    axes.set_xticks(places, steering.layers, rotation=20, ha='right')
    lowest = min((value - 2 * error).min().item() for value, error in steering.effect.values())
    axes.set_ylim(max(-1, min(0, lowest)) - 0.1, 1.12)
    axes.set_ylabel('effect on the prediction of $x_n$')
    legend_below(axes, 2)
    return axes


@styled
def steering_changes(steering: Steering, layer: str | None = None, axes: Axes | None = None) -> Axes:
    """How much the prediction of x_n changes with each node, beside the exact posterior, for steering in one layer.

    The change is the mean total variation distance between the predictions before and after. `layer` is by default
    the one with the largest mean effect. Bars are two standard errors on either side.
    """
    axes = own_axes(axes)
    k = int(steering.effect['steered'].value.mean(1).argmax()) if layer is None else steering.layers.index(layer)
    places = range(len(steering.nodes))
    looks: dict[str, dict[str, Any]] = {
        'exact': {'color': BLACK, 'marker': 's', 'ls': ':', 'label': 'exact posterior'},
        'steered': {'color': BLUE, 'marker': 'o', 'label': f'steered, {steering.layers[k]}'},
        'random': {'color': GREY, 'marker': 'x', 'ls': '--', 'lw': 1, 'label': 'random direction'},
    }
    for condition, look in looks.items():
        value, error = (table[k] for table in steering.change[condition])
        axes.errorbar(places, value, 2 * error, **look)
    axes.set_xticks(places, [name for name, _, _ in _lines(steering)])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel('change of the prediction of $x_n$')
    axes.set_xlabel('symbol that is changed')
    legend_below(axes, 2)
    return axes


@styled
def interchange_curves(found: Interchange, axes: Axes | None = None) -> Axes:
    """The divergence (nats) of the patched model from the exact prediction with the last k tokens of the donor.

    One line for each k against the layer that is patched, at the last position. The lowest line says how many of the
    last tokens that position has gathered. Bars are two standard errors on either side.
    """
    axes = own_axes(axes)
    places = range(len(found.layers))
    lines = zip(
        found.windows, shades(len(found.windows)), found.divergence.value.T, found.divergence.error.T, strict=True
    )
    for (k, color, value, error), marker in zip(lines, itertools.cycle(_MARKERS), strict=False):
        axes.errorbar(places, value, 2 * error, color=color, marker=marker, label=f'k = {k}')
    axes.set_yscale('log')
    axes.set_xticks(places, found.layers, rotation=20, ha='right')
    axes.set_ylabel('E KL(exact || patched model) (nats)')
    legend_below(axes)
    return axes


def _lines(steering: Steering) -> list[tuple[str, Any, str]]:
    """The name, the colour and the marker of each node."""
    levels = [level for level, _ in steering.nodes]
    short = len(set(levels)) == len(levels)
    names = [f'level {level}' if short else f'node {i + 1} of level {level}' for level, i in steering.nodes]
    return list(zip(names, shades(len(names)), itertools.cycle(_MARKERS), strict=False))
