"""The figures of trained models: predictions, what is learnt when, attention, probes, generated sequences.

A function of one panel draws into `axes`, or makes a figure, and returns the axes. A function of several panels draws
into an array of `axes`, or makes a figure, and returns the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from RLM_clean.analysis.generation import Generation, exact_log_probs
from RLM_clean.analysis.predictions import AncestorBeliefs, Film, level_names, model_at, model_steps
from RLM_clean.analysis.probes import AncestorProbes, attention_weights
from RLM_clean.exact.entropies import Estimate
from RLM_clean.models import CLM
from RLM_clean.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    legend_below,
    own_axes,
    panels,
    shades,
    steps_axis,
    styled,
)
from RLM_clean.runs.run import Run

# Smaller probabilities have the lowest colour in heat maps, and are drawn at the edge of scatter plots.
_LEAST = 1e-4
# More panels side by side, or more labels on an axis, would be too small to read.
_MOST_COLUMNS, _MOST_LABELS = 6, 16
# In inches: a page would shrink a wider figure.
_WIDEST = 12
# Smaller divergences (nats) are rounding errors.
_LEAST_DIVERGENCE = 1e-6
# The colour of cells without a value.
_EMPTY = '#DDDDDD'


@styled
def film(pictures: Film, axes: Any = None) -> Figure:
    """The conditional distribution of x_n at several steps, and the exact one, as a figure.

    For contexts of one token: heat maps of the matrix q(x_n | x_(n-1)), one row for each x_(n-1), and the exact one in
    the last panel. Rows of tokens that never come before x_n are grey. For longer contexts: one point for each token in
    each context, the model's probability against the exact one, on log axes; probabilities below 1e-4 are drawn at the
    edge. A perfect model has all points on the diagonal.
    """
    matrices = pictures.contexts.shape[1] == 1
    number = len(pictures.steps) + matrices
    if axes is None:
        axes = panels(1, number, size=(min(1 + 2.5 * number, _WIDEST), 2.9), sharex=True, sharey=True, squeeze=False)
    axes = np.ravel(axes)
    titles = [f'step {step}' for step in pictures.steps] + ['exact'] * matrices
    if not matrices:
        for panel, title, q in zip(axes, titles, pictures.model, strict=True):
            _scatter(panel, pictures.best, q)
            panel.set_title(title)
            panel.label_outer()
        return axes[0].figure
    for panel, title, matrix in zip(axes, titles, [*pictures.model, pictures.best], strict=True):
        norm = LogNorm(_LEAST, 1)
        rows = _rows_of_tokens(matrix.clamp(min=_LEAST), pictures.contexts[:, 0])
        image = panel.imshow(rows, norm=norm, interpolation='none', aspect='auto')
        panel.set_facecolor(_EMPTY)
        panel.grid(False)
        panel.set_title(title)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.set_xlabel('next token')
        panel.set_ylabel('token before it' + '\n(grey: never occurs)' * (len(matrix) < matrix.shape[1]))
        panel.label_outer()
    bar = axes[0].figure.colorbar(image, ax=list(axes), extend='min', aspect=15, pad=0.02)
    bar.set_label('probability')
    return axes[0].figure


def _rows_of_tokens(matrix: Tensor, tokens: Tensor) -> Tensor:
    """The matrix `(v, v)` whose row x is that of the context x, or NaN for a context of probability zero."""
    v = matrix.shape[1]
    return matrix.new_full((v, v), torch.nan).index_copy(0, tokens, matrix)


def _scatter(axes: Axes, best: Tensor, q: Tensor) -> None:
    axes.plot([_LEAST, 1], [_LEAST, 1], color=GREY, lw=1)
    points = (best.clamp(min=_LEAST).flatten(), q.clamp(min=_LEAST).flatten())
    # Drawn as an image, because thousands of points make a vector file large.
    axes.plot(*points, '.', ms=4, alpha=0.3, mew=0, color=BLUE, rasterized=True)
    axes.set(xscale='log', yscale='log', xlim=(_LEAST / 1.5, 1.5), ylim=(_LEAST / 1.5, 1.5))
    axes.set_xlabel('exact probability')
    axes.set_ylabel("model's probability")


@styled
def window_curves(steps: Sequence[int], divergences: dict[int, list[Estimate]], axes: Axes | None = None) -> Axes:
    """The divergence (nats) of a run's models from the best predictors that see k tokens, against the step.

    One line for each window k, with a dot at its minimum. Where a line is the lowest, the model predicts as if it saw k
    tokens. `divergences` come from `predictions.window_divergences`. Bands are two standard errors on either side.
    """
    return _divergence_curves(steps, divergences, axes, 'E KL(P(x_n | last k tokens) || model) (nats)')


@styled
def filtered_curves(steps: Sequence[int], divergences: dict[int, list[Estimate]], axes: Axes | None = None) -> Axes:
    """The divergence (nats) of a run's models from belief propagation filtered to height k, against the step.

    One line for each height k, with a dot at its minimum. Where a line is the lowest, the model predicts as if it knew
    the correlations within sub-trees of 2^k leaves alone; the line of the largest k is the excess. `divergences` come
    from `filtering.filtered_divergences`. Bands are two standard errors on either side.
    """
    return _divergence_curves(steps, divergences, axes, 'E KL(BP_k || model) (nats)')


def _divergence_curves(
    steps: Sequence[int], divergences: dict[int, list[Estimate]], axes: Axes | None, label: str
) -> Axes:
    axes = own_axes(axes)
    for color, (k, curve) in zip(shades(len(divergences)), divergences.items(), strict=True):
        values, errors = np.maximum(np.array(curve), 0).T
        values = np.maximum(values, _LEAST_DIVERGENCE)
        axes.plot(steps, values, color=color, label=f'k = {k}')
        axes.fill_between(steps, np.maximum(values - 2 * errors, _LEAST_DIVERGENCE), values + 2 * errors,
                          color=color, alpha=0.2, lw=0)  # fmt: skip
        axes.plot(steps[values.argmin()], values.min(), 'o', color=color)
    steps_axis(axes)
    axes.set_yscale('log')
    axes.set_ylabel(label)
    legend_below(axes)
    return axes


@styled
def ancestor_curves(beliefs: AncestorBeliefs, axes: Any = None) -> Figure:
    """What a run's predictions imply about each ancestor of x_n, against the step: a figure of two panels.

    Left: the accuracy of the likeliest ancestor that the prediction implies, and dashed the upper bound, that of the
    exact posterior. Right: the divergence (nats) of the implied beliefs. The highest line is the excess, and each line
    is the part of it that is an error about that ancestor. See `predictions.ancestor_beliefs`.
    """
    axes = np.ravel(panels(1, 2, size=(11, 4.2)) if axes is None else axes)
    names = _names(len(beliefs.best_accuracy) - 1)
    for l, (name, color) in enumerate(zip(names, shades(len(names))[::-1], strict=True)):
        best = beliefs.best_accuracy[l].item()
        axes[0].plot(beliefs.steps, beliefs.accuracy[:, l], color=color, label=name)
        axes[0].axhline(best, color=color, ls='--', lw=1)
        axes[1].plot(beliefs.steps, beliefs.divergence[:, l].clamp(min=_LEAST_DIVERGENCE), color=color, label=name)
    axes[0].plot([], [], color=GREY, ls='--', lw=1, label='exact posterior')
    axes[0].set_ylabel('accuracy')
    axes[1].set_yscale('log')
    axes[1].set_ylabel('E KL(exact posterior || belief) (nats)')
    axes[0].set_title('how often the likeliest ancestor is the true one')
    axes[1].set_title('the excess, level by level')
    for panel in axes:
        steps_axis(panel)
        legend_below(panel)
    return axes[0].figure


@styled
def attention_maps(run: Run, inputs: Tensor, step: int | None = None, axes: Any = None) -> Figure:
    """Where each head looks, as a figure with a row of panels for each block and a column for each head.

    Each panel shows the attention weights of `inputs (N, T)`, their mean if N > 1: one row for each query, one
    column for each token it looks at, labelled with the tokens themselves if N = 1. A causal model looks at no
    token ahead, and these weights are left out; transformer_bert looks at all tokens. If a model has one target,
    x_n or the root, the last block has one row, since nothing reads the other queries. The model is the one at
    `step`, by default the last. Raises ValueError for a model without attention.
    """
    model = model_at(run, model_steps(run)[-1] if step is None else step)
    weights, T = attention_weights(run, model, inputs).mean(1).numpy(), inputs.shape[1]
    assert isinstance(model, CLM)
    if not run.task.at_each:
        weights[-1, :, :-1] = np.nan
    if model.causal:
        weights[..., np.triu(np.ones((T, T), dtype=bool), 1)] = np.nan
    rows, columns = weights.shape[:2]
    if axes is None:
        size = (min(1.2 + 2.3 * columns, _WIDEST), 0.6 + 2.2 * rows)
        axes = panels(rows, columns, size=size, sharex=True, sharey=True, squeeze=False)
    axes = np.reshape(axes, (rows, columns))
    every = -(-T // _MOST_LABELS)
    first = 1 if run.task.whole else 2**run.config.num_layers - T  # the last token that is seen is x_(n - 1)
    labels = [str(x) for x in inputs[0].tolist()]
    if len(inputs) > 1:
        labels = [f'$x_{{{i}}}$' for i in range(first, first + T)]
    for block, head in np.ndindex(rows, columns):
        panel = axes[block, head]
        image = panel.imshow(weights[block, head], vmin=0, vmax=1, interpolation='none', aspect='auto')
        panel.grid(False)
        panel.set_xticks(range(0, T, every), labels[::every])
        panel.set_yticks(range(0, T, every), labels[::every])
        panel.set_title(f'block {block + 1}, head {head + 1}')
        panel.set_xlabel('token looked at')
        panel.set_ylabel('token that looks')
        panel.label_outer()
    axes[0, 0].figure.colorbar(image, ax=list(axes.flat), aspect=15 * rows, pad=0.02).set_label('attention weight')
    return axes[0, 0].figure


@styled
def probe_curves(probes: AncestorProbes, axes: Any = None) -> Figure:
    """Linear probes of each ancestor of x_n, layer by layer, as a figure: accuracy above, divergence (nats) below.

    Solid lines are the trained model, the untrained one and shuffled targets. Dashed, above: the exact posterior.
    Dotted, below: the divergence of the posterior given the last k tokens, the least that a layer which holds no more
    than these tokens can reach. Of a deep tree, only the six levels next to x_n are drawn.
    """
    names = _names(len(probes.entropy) - 1)
    levels = list(range(len(names)))[-_MOST_COLUMNS:]
    if axes is None:
        axes = panels(
            2, len(levels), size=(min(1 + 2.5 * len(levels), _WIDEST), 5.6), sharex=True, sharey='row', squeeze=False
        )
    axes = np.reshape(axes, (2, len(levels)))
    places = range(len(probes.layers))
    lines = {'trained': (BLUE, 'o'), 'untrained': (ORANGE, 's'), 'shuffled': (GREY, 'x')}
    for (upper, lower), l in zip(axes.T, levels, strict=True):
        for condition, (color, marker) in lines.items():
            upper.plot(places, probes.accuracy[condition][:, l], color=color, marker=marker, label=condition)
            lower.errorbar(places, probes.divergence[condition][:, l], 2 * probes.error[condition][:, l], color=color,
                           marker=marker)  # fmt: skip
        upper.axhline(probes.best_accuracy[l].item(), color=BLACK, ls='--', lw=1, label='exact posterior')
        high = 1.05 * max(curve[:, levels].max().item() for curve in probes.divergence.values())
        place = -1.0
        for k, window in sorted(probes.windows.items(), reverse=True):
            value = window[l].item()
            lower.axhline(value, color=BLACK, ls=':', lw=1)
            place = max(value / high, place + 0.09)  # no two labels overlap
            lower.annotate(f'k = {k}', (1.02, place), xycoords='axes fraction', va='center', fontsize=8, color=GREY)
        lower.set_ylim(0, high)
        upper.set_title(names[l])
        lower.set_xticks(places, probes.layers, rotation=30, ha='right')
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].set_ylabel('accuracy of the probe')
    axes[1, 0].set_ylabel('E KL(exact || probe) (nats)')
    handles, labels = upper.get_legend_handles_labels()
    handles.append(Line2D([], [], color=BLACK, ls=':', lw=1))
    labels.append('exact posterior from the last k tokens')
    axes[0, 0].figure.legend(handles, labels, loc='outside lower center', ncols=5)
    return axes[0, 0].figure


@styled
def generation_scores(run: Run, generation: Generation, axes: Axes | None = None) -> Axes:
    """The surprise `-ln P` (nats) of a model's sequences under the language, and of as many sequences of the language.

    Each curve is the fraction of sequences with a surprise above x. If the language excludes some of the sequences, the
    curve ends above zero. Vertical lines are the means over the possible sequences. The title is KL(model || language).
    """
    axes = own_axes(axes)
    number, m = generation.sequences.shape
    own = -exact_log_probs(run, run.rlm.sequences(number, number, 'other')[:, -m:])
    scores = ((own, GREEN, 'sequences of the language'), (-generation.log_p, BLUE, 'sequences of the model'))
    for values, color, label in scores:
        values = values[values.isfinite()].sort().values
        above = 1 - np.arange(1, len(values) + 1) / number
        axes.step([0, *values.tolist()], [1, *above], where='post', color=color, label=label)
        if len(values):
            axes.axvline(values.mean().item(), color=color, lw=1, ls='--')
    axes.plot([], [], color=GREY, lw=1, ls='--', label='means')
    axes.set_yscale('log')
    drawn = m - generation.given
    axes.set_xlabel(f'-ln P of the last {"token" if drawn == 1 else f"{drawn} tokens"} (nats)')
    axes.set_ylabel('fraction of sequences above')
    value, error = generation.divergence
    title = f'KL(model || language) = {value:.3f} ± {error:.3f} nats' if np.isfinite(value) else 'KL is infinite'
    if generation.possible < 1:
        title += f': {generation.possible:.1%} of the sequences are possible'
    axes.set_title(title)
    legend_below(axes)
    return axes


def _names(L: int) -> list[str]:
    return [name.replace('x_n', '$x_n$') for name in level_names(L)]
