"""The figures of a run: its learning curve against the floors, and its excess."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes

from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.plots.style import AMBER, BLUE, GREEN, GREY, legend_below, own_axes, panels, save, steps_axis, styled
from RLM_clean.runs.files import Record


@styled
def learning_curve(
    dynamics: list[Record],
    floors: dict[int, tuple[float, float]],
    entropy: float,
    title: str = '',
    axes: Axes | None = None,
) -> Axes:
    """Training and test loss (nats) against the step, on a log axis, with the floors of the task as labelled lines.

    `floors` are the losses of the best predictors from the last k tokens, {k: (value, standard error)}, and `entropy`
    is the lowest mean loss that any model can have on new sequences; the area below it is shaded. The training loss
    can be there: it is measured on a batch, or on a training set that the model has memorised. Draws into `axes`, or
    makes its own figure (`axes.figure`).
    """
    axes = own_axes(axes)
    steps = [record['t'] for record in dynamics]
    axes.plot(steps, [r['trainloss'] for r in dynamics], color=AMBER, lw=1.4, label='training loss')
    axes.plot(steps, [r['testloss'] for r in dynamics], color=BLUE, marker='.', label='test loss')
    steps_axis(axes)
    if any(abs(value - entropy) < 1e-9 for value, _ in floors.values()):
        lines = {f'$H_{{{k}}}$ = {value:.3f}': value for k, (value, _) in floors.items()}
        floor_lines(axes, lines, '$H_k$, best loss from the last k tokens')
    else:  # the mean over several targets, which is not the floor of any window
        floor_lines(axes, {f'floor = {entropy:.3f}': entropy}, 'best loss of all models')
    low = axes.get_ylim()[0]
    axes.axhspan(low, entropy, color='#EFEFEF', lw=0, zorder=0.5)
    axes.annotate(
        'below the floor: no model on new sequences', (0.01, (low + entropy) / 2), xycoords=('axes fraction', 'data'),
        va='center', fontsize=8, color=GREY,
    )  # fmt: skip
    axes.set_ylabel('loss (nats)')
    axes.set_title(title)
    legend_below(axes, columns=3)
    return axes


@styled
def floor_lines(axes: Axes, lines: dict[str, float], legend: str) -> None:
    """Draws horizontal lines, `{label: value}`, with the labels at their right ends, where they do not overlap.

    The lowest line, the floor of all models, is solid and the others are dashed. `legend` is the entry for all of them.
    """
    low, high = axes.get_ylim()
    low, high = min(low, *lines.values()), max(high, *lines.values())
    low, high = low - 0.05 * (high - low), high + 0.02 * (high - low)
    axes.set_ylim(low, high)
    place = -math.inf
    for i, (label, value) in enumerate(sorted(lines.items(), key=lambda line: line[1])):
        dashes = '-' if i == 0 else '--'
        axes.axhline(value, color=GREY, ls=dashes, lw=1, zorder=1, label=legend if i == len(lines) - 1 else None)
        place = max(value, place + 0.05 * (high - low))
        right_end = (1.01, (place - low) / (high - low))
        axes.annotate(label, right_end, xycoords='axes fraction', va='center', fontsize=9, color=GREY)


@styled
def excess_curve(dynamics: list[Record], axes: Axes | None = None, title: str = '') -> Axes:
    """The excess over the floor (nats) against the step on log axes, without step 0, with the last value as a label."""
    axes = own_axes(axes)
    later = [record for record in dynamics if record['t'] > 0 and record['excess'] > 0]
    axes.loglog([r['t'] for r in later], [r['excess'] for r in later], color=GREEN, marker='.')
    axes.set_xlabel('step')
    axes.set_ylabel('excess over the floor (nats)')
    axes.set_title(title)
    if later:
        end = (later[-1]['t'], later[-1]['excess'])
        # An excess falls, so the space to the left of its end is free.
        axes.annotate(f'{end[1]:.2g}', end, (-8, -1), textcoords='offset points', ha='right', va='center', color=GREEN)
    return axes


def run_title(config: Config) -> str:
    """The language and the model of a run in one line."""
    c = config
    rules = f'm = {c.num_synonyms}' if c.dataset == 'rhm' else f'beta = {c.beta:g}'
    model = f'{c.model}, depth {c.depth}, {c.optim}'
    return f'{c.dataset.upper()}, v = {c.num_features}, L = {c.num_layers}, {rules}: {model}'


def save_learning_curve(dynamics: list[Record], language: Language, config: Config, path: Path) -> None:
    """Draws the learning curve of a run and its excess side by side into a PNG file, atomically."""
    left, right = panels(1, 2, size=(11, 4.2), width_ratios=(3, 2))
    learning_curve(dynamics, language.floors, language.entropy, run_title(config), left)
    excess_curve(dynamics, right, 'excess over the best predictor')
    save(left.figure, path)
