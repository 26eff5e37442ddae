"""The figures of a run: its learning curve against the floors, and its excess."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RLM_clean.checkpoints import Record, atomic_write
from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.plots.style import BLUE, GREEN, GREY, ORANGE


def learning_curve(
    dynamics: list[Record],
    floors: dict[int, tuple[float, float]],
    entropy: float,
    title: str = '',
    axes: Axes | None = None,
) -> Axes:
    """Training and test loss (nats) against the step, on a log axis, with the floors of the task as labelled lines.

    `floors` are the losses of the best predictors from the last k tokens, {k: (value, standard error)}, `entropy` the
    lowest loss of any model. Draws into `axes`, or makes its own figure (`axes.figure`).
    """
    if axes is None:
        axes = Figure(figsize=(7, 4.5), layout='constrained').subplots()
    steps = [record['t'] for record in dynamics]
    axes.plot(steps, [r['trainloss'] for r in dynamics], color=ORANGE, lw=1, alpha=0.8, label='training loss')
    axes.plot(steps, [r['testloss'] for r in dynamics], color=BLUE, marker='.', label='test loss')
    # linear up to 1 puts step 0, the untrained model, on the log axis
    axes.set_xscale('symlog', linthresh=1, linscale=0.5)
    axes.set_xlim(left=0)
    if any(abs(value - entropy) < 1e-9 for value, _ in floors.values()):
        floor_lines(axes, {f'k = {k}': value for k, (value, _) in floors.items()}, 'best loss from the last k tokens')
    else:  # a task of several targets, whose floor is no window's
        floor_lines(axes, {'floor': entropy}, 'best loss of all models')
    axes.set_xlabel('step')
    axes.set_ylabel('loss (nats)')
    axes.set_title(title, fontsize=10)
    # Below the axes: inside, some curve or floor would run through it.
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=9)
    return axes


def floor_lines(axes: Axes, lines: dict[str, float], legend: str) -> None:
    """Horizontal lines at the values of `lines`, each labelled in the right margin; labels are kept apart."""
    low, high = axes.get_ylim()
    low, high = min(low, *lines.values()), max(high, *lines.values())
    low, high = low - 0.05 * (high - low), high + 0.02 * (high - low)
    axes.set_ylim(low, high)
    label = low - math.inf
    for i, (name, value) in enumerate(sorted(lines.items(), key=lambda line: line[1])):
        axes.axhline(value, color=GREY, ls='--', lw=1, zorder=1, label=legend if i == 0 else None)
        label = max(value, label + 0.045 * (high - low))
        place = (1.01, (label - low) / (high - low))
        axes.annotate(f'{name}: {value:.3f}', place, xycoords='axes fraction', va='center', fontsize=8, color=GREY)


def excess_curve(dynamics: list[Record], axes: Axes | None = None, title: str = '') -> Axes:
    """The excess over the floor (nats) against the step, both on log axes; step 0 is left out."""
    if axes is None:
        axes = Figure(figsize=(7, 4.5), layout='constrained').subplots()
    later = [record for record in dynamics if record['t'] > 0 and record['excess'] > 0]
    axes.loglog([r['t'] for r in later], [r['excess'] for r in later], color=GREEN, marker='.')
    axes.set_xlabel('step')
    axes.set_ylabel('excess over the floor (nats)')
    axes.set_title(title, fontsize=10)
    return axes


def run_title(config: Config) -> str:
    """A line that tells a run's language and model."""
    c = config
    rules = f'beta = {c.beta:g}' if c.dataset == 'rlm' else f'm = {c.num_synonyms}'
    model = f'{c.model}, depth {c.depth}, {c.optim}'
    return f'{c.dataset.upper()}, v = {c.num_features}, L = {c.num_layers}, {rules}: {model}'


def save_learning_curve(dynamics: list[Record], language: Language, config: Config, path: Path) -> None:
    """Draws the learning curve of a run and its excess side by side into a PNG file, atomically."""
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    learning_curve(dynamics, language.floors, language.entropy, run_title(config), left)
    excess_curve(dynamics, right)
    options: dict[str, Any] = {'format': 'png', 'dpi': 130}
    atomic_write(path, lambda file: figure.savefig(file, **options))
