"""The figures of trained models: predictions against the best ones, what is learnt when, attention, probes, samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from RLM_clean.analysis.generation import Generation, exact_log_probs
from RLM_clean.analysis.predictions import AncestorBeliefs, Film, level_names, model_at, model_steps
from RLM_clean.analysis.probes import AncestorProbes, attention_weights
from RLM_clean.exact.entropies import Estimate
from RLM_clean.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, own_axes, panels, shades, styled
from RLM_clean.runs.run import Run

# Probabilities below are of one colour in heat maps, and stand at the edge of scatter plots.
_LEAST = 1e-4
# More panels side by side would be too small to read, more tokens on an axis too dense for one label each.
_MOST_COLUMNS, _MOST_LABELS = 6, 16
# A figure that is wider (inches) is shrunk on a page.
_WIDEST = 12
# Divergences (nats) below are rounding.
_LEAST_DIVERGENCE = 1e-6
# The colour of what has no value.
_EMPTY = '#DDDDDD'


@styled
def film(pictures: Film, axes: Any = None) -> Any:
    """The conditional distribution of x_n at several steps, beside the exact one; an array of axes.

    For contexts of one token: heat maps of the matrix q(x_n | x_(n-1)), a row a token, and the exact one as the last
    panel; rows of tokens that never stand there are grey. For longer contexts: each point is one token in one context,
    the model's probability of it against the exact one, both on log axes; points below 1e-4 stand at the edge. A
    perfect model has all of them on the diagonal.
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
        return axes
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
        panel.set_ylabel('token before it' + '\n(grey: never there)' * (len(matrix) < matrix.shape[1]))
        panel.label_outer()
    bar = axes[0].figure.colorbar(image, ax=list(axes), extend='min', aspect=15, pad=0.02)
    bar.set_label('probability')
    return axes


def _rows_of_tokens(matrix: Tensor, tokens: Tensor) -> Tensor:
    """The matrix `(v, v)` whose row x is that of the context x; NaN where there is none, of probability zero."""
    v = matrix.shape[1]
    return matrix.new_full((v, v), torch.nan).index_copy(0, tokens, matrix)


def _scatter(axes: Axes, best: Tensor, q: Tensor) -> None:
    axes.plot([_LEAST, 1], [_LEAST, 1], color=GREY, lw=1)
    points = (best.clamp(min=_LEAST).flatten(), q.clamp(min=_LEAST).flatten())
    # As an image: some thousand points would make a file of vectors large.
    axes.plot(*points, '.', ms=4, alpha=0.3, mew=0, color=BLUE, rasterized=True)
    axes.set(xscale='log', yscale='log', xlim=(_LEAST / 1.5, 1.5), ylim=(_LEAST / 1.5, 1.5))
    axes.set_xlabel('exact probability')
    axes.set_ylabel("model's probability")


@styled
def window_curves(steps: Sequence[int], divergences: dict[int, list[Estimate]], axes: Axes | None = None) -> Axes:
    """The divergence (nats) of a run's models from the best predictors that see k tokens, against the step.

    A line a window k, with a dot at its minimum: where it is the lowest line, the model predicts as if it saw k tokens.
    `divergences` are those of `predictions.window_divergences`. Bands are two standard errors on either side.
    """
    axes = own_axes(axes)
    for color, (k, curve) in zip(shades(len(divergences)), divergences.items(), strict=True):
        values, errors = np.maximum(np.array(curve), 0).T
        values = np.maximum(values, _LEAST_DIVERGENCE)
        axes.plot(steps, values, color=color, label=f'k = {k}')
        axes.fill_between(steps, np.maximum(values - 2 * errors, _LEAST_DIVERGENCE), values + 2 * errors,
                          color=color, alpha=0.2, lw=0)  # fmt: skip
        axes.plot(steps[values.argmin()], values.min(), 'o', color=color)
    _steps_axis(axes)
    axes.set_yscale('log')
    axes.set_ylabel('E KL(P(x_n | last k tokens) || model) (nats)')
    _legend_below(axes)
    return axes


@styled
def ancestor_curves(beliefs: AncestorBeliefs, axes: Any = None) -> Any:
    """How right a run's predictions are about each ancestor of x_n, against the step; two axes.

    Left the accuracy of the likeliest ancestor that the prediction implies, dashed that of the exact posterior, which
    no model passes. Right the divergence (nats) of the implied beliefs: the highest line is the excess loss, and each
    line the part of it that is an error about that ancestor. See `predictions.ancestor_beliefs`.
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
    axes[0].set_title('how often the likeliest is the true one')
    axes[1].set_title('the excess loss, level by level')
    for panel in axes:
        _steps_axis(panel)
        _legend_below(panel)
    return axes


@styled
def attention_maps(run: Run, inputs: Tensor, step: int | None = None, axes: Any = None) -> Any:
    """Where each head looks, a row of panels a block and a column a head; an array of axes.

    The weights of `inputs (N, T)`, their mean where N > 1: a row a query, a column the token it looks at, named by the
    tokens themselves where N = 1. Of the last block of a model that predicts x_n alone, the queries that nothing reads
    are left out. The model is that of `step`, by default the last one. Raises ValueError for a model without attention.
    """
    maps = attention_weights(run, model_at(run, model_steps(run)[-1] if step is None else step), inputs)
    weights, T = maps.mean(1).numpy(), inputs.shape[1]
    if run.config.objective == 'last':
        weights[-1, :, :-1] = np.nan
    weights[..., np.triu(np.ones((T, T), dtype=bool), 1)] = np.nan
    rows, columns = weights.shape[:2]
    if axes is None:
        size = (min(1.2 + 2.3 * columns, _WIDEST), 0.6 + 2.2 * rows)
        axes = panels(rows, columns, size=size, sharex=True, sharey=True, squeeze=False)
    axes = np.reshape(axes, (rows, columns))
    every = -(-T // _MOST_LABELS)
    labels = [str(x) for x in inputs[0].tolist()] if len(inputs) == 1 else [f'$x_{{{i + 1}}}$' for i in range(T)]
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
    return axes


@styled
def probe_curves(probes: AncestorProbes, axes: Any = None) -> Any:
    """Linear probes of each ancestor of x_n, layer by layer: accuracy above, divergence (nats) below; an array of axes.

    Full lines are the trained model, the untrained one and shuffled targets; dashed is the exact posterior above, and
    below the divergence of the posterior given the last k tokens, which a layer that knows no more cannot pass. Of deep
    trees the six levels next to x_n are drawn.
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
            place = max(value / high, place + 0.09)  # labels are kept apart
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
    return axes


@styled
def generation_scores(run: Run, generation: Generation, axes: Axes | None = None) -> Axes:
    """How surprising a model's sequences are to the language, `-ln P` (nats), beside as many of the language's own.

    Each curve is the fraction of sequences that are more surprising than x; where the language excludes some, the curve
    ends above zero. Vertical lines are the means over the possible sequences. The title has KL(model || language).
    """
    axes = own_axes(axes)
    number, m = generation.sequences.shape
    own = -exact_log_probs(run, run.rlm.sequences(number, number, 'other')[:, -m:])
    scores = ((own, GREEN, 'sequences of the language'), (-generation.log_p, BLUE, "model's sequences"))
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
    _legend_below(axes)
    return axes


def _names(L: int) -> list[str]:
    return [name.replace('x_n', '$x_n$') for name in level_names(L)]


def _steps_axis(axes: Axes) -> None:
    # linear up to 1 puts step 0, the untrained model, on the log axis
    axes.set_xscale('symlog', linthresh=1, linscale=0.5, subs=range(2, 10))
    axes.set_xlim(left=0)
    axes.set_xlabel('step')


def _legend_below(axes: Axes) -> None:
    # Below the axes: inside, some curve would run through it.
    place: dict[str, Any] = {'loc': 'upper left', 'bbox_to_anchor': (-0.02, -0.15), 'borderaxespad': 0}
    axes.legend(**place, ncols=5, columnspacing=1.5)
