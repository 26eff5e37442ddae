"""The figures of a run: its learning curve against the floors, and its excess; several runs on the same axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from RLM_clean.analysis import baselines
from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.plots.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    MORE,
    PURPLE,
    axes_inches,
    legend_below,
    line_colors,
    own_axes,
    panels,
    save,
    steps_axis,
    styled,
)
from RLM_clean.runs.files import Record
from RLM_clean.tasks import TASKS, Last

Floors = dict[int, tuple[float, float]]

# The baseline of counts takes less than a second up to here: training sequences, and entries of its tables.
_MOST_SEQUENCES, _MOST_ENTRIES = 2**21, 2**26
_NOTE, _SHORT_NOTE = 'below the floor: out of reach on new sequences', 'below the floor'


@dataclass(frozen=True)
class Curve:
    """A run as it is drawn: its records, its floors, and its name and colour where it has some."""

    dynamics: list[Record]
    floors: Floors
    entropy: float
    title: str = ''
    label: str = ''
    color: Any = None
    seen: str = Last.seen


# The curves of axes and the artists that show them, so that another curve can be added.
_drawn: WeakKeyDictionary[Axes, dict[str, tuple[list[Curve], WeakSet[Artist]]]] = WeakKeyDictionary()


@styled
def learning_curve(
    dynamics: list[Record],
    floors: Floors,
    entropy: float,
    title: str = '',
    axes: Axes | None = None,
    label: str = '',
    color: Any = None,
    seen: str = Last.seen,
) -> Axes:
    """Training and test loss (nats) against the step, on a log axis, with the floors of the task as labelled lines.

    `floors` are the losses of the best predictors from k tokens, {k: (value, standard error)}; `seen` says which
    tokens, for the legend. `entropy` is the lowest mean loss that any model can have on new sequences; the area below
    it is shaded. The training loss can be there: it is measured on a batch, or on a training set that the model has
    memorised. Draws into `axes`, or makes its own figure (`axes.figure`).

    Axes that hold learning curves already get one more: each run then has a colour and a name, `label` or else its
    title. Floors that all runs share are drawn once, otherwise each run has its lowest one in its own colour.
    """
    axes = own_axes(axes)
    _add(axes, 'learning curve', Curve(dynamics, floors, entropy, title, label, color, seen), draw_losses)
    legend_below(axes, columns=3)
    return axes


@styled
def excess_curve(
    dynamics: list[Record], axes: Axes | None = None, title: str = '', label: str = '', color: Any = None
) -> Axes:
    """The excess over the floor (nats) against the step on log axes, without step 0, with the last value as a label.

    Axes that hold curves of the excess already get one more, and a legend: see `learning_curve`.
    """
    axes = own_axes(axes)
    _add(axes, 'excess', Curve(dynamics, {}, 0.0, title, label, color), draw_excess)
    if len(axes.get_legend_handles_labels()[1]):
        legend_below(axes, columns=3)
    return axes


def _add(axes: Axes, kind: str, curve: Curve, draw: Callable[[Axes, Sequence[Curve]], None]) -> None:
    """Draws the curves of axes again with one more: names, colours and floors are those that fit them all."""
    kinds = _drawn.setdefault(axes, {})
    curves, artists = kinds.get(kind, ([], WeakSet()))
    earlier = [artist for artist in axes.get_children() if artist in artists]
    for artist in earlier:
        artist.remove()
    curves = [*(curves if earlier else []), curve]  # without artists the axes were cleared
    axes.relim()
    axes.autoscale(axis='y')
    others = set(axes.get_children())
    draw(axes, curves)
    kinds[kind] = curves, WeakSet(set(axes.get_children()) - others)


def _named(curves: Sequence[Curve]) -> list[Curve]:
    """The curves of several runs with a colour and a name for each: its label, its title, or its number."""
    titles = {curve.title for curve in curves}
    taken = {curve.color for curve in curves if isinstance(curve.color, str)}
    palette = iter([color for color in MORE if color not in taken] if len(curves) <= len(MORE) else [])
    named, names = [], set()
    for number, (curve, color) in enumerate(zip(curves, line_colors(len(curves)), strict=True), start=1):
        name = curve.label or (curve.title if len(titles) > 1 else '') or f'run {number}'
        if name in names:
            name = f'{name} ({number})'
        names.add(name)
        own = curve.color if curve.color is not None else next(palette, color)
        named.append(replace(curve, label=name, color=own))
    return named


def _title(curves: Sequence[Curve]) -> str:
    """The title that all curves share."""
    titles = {curve.title for curve in curves}
    return titles.pop() if len(titles) == 1 else ''


# ---------------------------------------------------------------------- losses and floors


def draw_losses(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws the losses of runs with their floors into axes that hold no other learning curve, without a legend."""
    alone = len(curves) == 1 and not curves[0].label
    curves = curves if alone else _named(curves)
    for curve in curves:
        steps = [record['t'] for record in curve.dynamics]
        training, test = ([record[name] for record in curve.dynamics] for name in ('trainloss', 'testloss'))
        if alone:
            axes.plot(steps, training, color=AMBER, lw=1.4, label='training loss')
            axes.plot(steps, test, color=curve.color or BLUE, marker='.', label='test loss')
        else:
            axes.plot(steps, training, color=curve.color, lw=0.8, alpha=0.4)
            axes.plot(steps, test, color=curve.color, marker='.', label=curve.label)
    if not alone:
        axes.plot([], [], color=GREY, lw=0.8, alpha=0.6, label='training loss')
    steps_axis(axes)
    if all(_same_floors(curve, curves[0]) for curve in curves):
        _shared_floors(axes, curves[0])
    else:
        _own_floors(axes, curves)
    axes.set_ylabel('loss (nats)')
    axes.set_title(_title(curves))


def _same_floors(a: Curve, b: Curve) -> bool:
    return (
        math.isclose(a.entropy, b.entropy, abs_tol=1e-9)
        and a.floors.keys() == b.floors.keys()
        and all(math.isclose(a.floors[k][0], b.floors[k][0], abs_tol=1e-9) for k in a.floors)
    )


def _shared_floors(axes: Axes, curve: Curve) -> None:
    """Draws every floor of a language, and shades what lies below the lowest one."""
    floors, entropy = curve.floors, curve.entropy
    if any(abs(value - entropy) < 1e-9 for value, _ in floors.values()):
        lines = {f'$H_{{{k}}}$ = {value:.3f}': value for k, (value, _) in floors.items()}
        floor_lines(axes, lines, f'$H_k$, best loss from {curve.seen}')
    else:  # the mean over several targets, which is not the floor of any window
        floor_lines(axes, {f'floor = {entropy:.3f}': entropy}, 'best loss of all models')
    width, height = axes_inches(axes)
    low, high = axes.get_ylim()
    low = min(low, entropy - 0.2 / height * (high - entropy))  # room for the note
    axes.set_ylim(low, high)
    axes.axhspan(low, entropy, color='#EFEFEF', lw=0, zorder=0.5)
    axes.annotate(
        _NOTE if width > 3.4 else _SHORT_NOTE, (0.01, (low + entropy) / 2), xycoords=('axes fraction', 'data'),
        va='center', fontsize=8, color=GREY,
    )  # fmt: skip


def _own_floors(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws the lowest floor of each run in its colour; the dashes of runs that share one follow each other."""
    groups: dict[float, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(round(curve.entropy, 9), []).append(curve)
    for value, group in groups.items():
        for i, curve in enumerate(group):
            dashes = (5 * i, (4, 5 * len(group) - 4 if len(group) > 1 else 2))
            axes.axhline(value, color=curve.color, ls=dashes, lw=1, zorder=1)
    axes.plot([], [], color=GREY, ls='--', lw=1, label='floor of the run')
    _spread_limits(axes, list(groups))
    labels = [(value, f'{value:.3f}', group[0].color if len(group) == 1 else GREY) for value, group in groups.items()]
    _right_labels(axes, labels)


@styled
def floor_lines(axes: Axes, lines: dict[str, float], legend: str) -> None:
    """Draws horizontal lines, `{label: value}`, with the labels at their right ends, where they do not overlap.

    The lowest line, the floor of all models, is solid and the others are dashed. `legend` is the entry for all of them.
    """
    _spread_limits(axes, list(lines.values()))
    for i, value in enumerate(sorted(lines.values())):
        last = i == len(lines) - 1
        dashes = '-' if i == 0 else '--'
        axes.axhline(value, color=GREY, ls=dashes, lw=1, zorder=1, label=legend if last else None)
    _right_labels(axes, [(value, label, GREY) for label, value in lines.items()])


def _spread_limits(axes: Axes, values: Sequence[float]) -> None:
    """Makes room for horizontal lines and for their labels."""
    low, high = axes.get_ylim()
    low, high = min(low, *values), max(high, *values)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.02 * (high - low))


def _right_labels(axes: Axes, labels: Sequence[tuple[float, str, Any]]) -> None:
    """Writes `(value, text, colour)` to the right of axes, each beside its value or as near as the others let it.

    More labels than fit beside the axes are left out: their values are where the lines cross the axis.
    """
    low, high = axes.get_ylim()
    labels = sorted(labels, key=lambda label: label[0])
    apart = 0.18 / axes_inches(axes)[1]  # a line of text, as a fraction of the height
    if apart * (len(labels) - 1) > 1:
        return
    places: list[float] = []
    for value, _, _ in labels:
        places.append(max((value - low) / (high - low), places[-1] + apart if places else 0.0))
    above = 1.0 + apart  # the same from above, for what was pushed out of the axes
    for i in reversed(range(len(places))):
        above = places[i] = min(places[i], above - apart)
    for (_, text, color), place in zip(labels, places, strict=True):
        axes.annotate(text, (1.01, place), xycoords='axes fraction', va='center', fontsize=9, color=color)


# ---------------------------------------------------------------------- the excess


def draw_excess(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws the excess of runs into axes that hold no other one, without a legend.

    The axes are logarithmic, unless no run has an excess above zero.
    """
    unnamed = len(curves) == 1 and not curves[0].label
    logarithmic = any(_positive(curve.dynamics) for curve in curves)
    for curve in curves if unnamed else _named(curves):
        later = _positive(curve.dynamics) if logarithmic else curve.dynamics
        color = curve.color or GREEN
        label = None if unnamed else curve.label
        axes.plot([r['t'] for r in later], [r['excess'] for r in later], color=color, marker='.', label=label)
        if len(curves) == 1 and later:
            _end_label(axes, later, color)
    if logarithmic:  # without points such axes cannot be saved
        axes.set_xscale('log')
        axes.set_yscale('log')
    axes.set_xlabel('step')
    axes.set_ylabel('excess over the floor (nats)' if axes_inches(axes)[1] > 1.7 else 'excess (nats)')
    axes.set_title(_title(curves))


def _positive(dynamics: list[Record]) -> list[Record]:
    """The records that logarithmic axes show."""
    return [record for record in dynamics if record['t'] > 0 and record['excess'] > 0]


def _end_label(axes: Axes, records: list[Record], color: str) -> None:
    """Writes the last excess beside the end of its curve."""
    end = (records[-1]['t'], records[-1]['excess'])
    # An excess falls, so the space to the left of its end is free.
    axes.annotate(f'{end[1]:.2g}', end, (-8, -1), textcoords='offset points', ha='right', va='center', color=color)


# ---------------------------------------------------------------------- the picture of a run


def run_title(config: Config) -> str:
    """The language and the model of a run in one line."""
    return f'{", ".join(language_parts(config))}: {", ".join(model_parts(config))}'


def language_parts(config: Config) -> list[str]:
    """What is said of the language of a run."""
    c = config
    name = c.dataset.upper() if c.dataset in ('rlm', 'rhm') else c.dataset
    rules = {'rhm': f'm = {c.num_synonyms}', 'unambiguous': f'sigma = {c.sigma:g}'}.get(c.dataset, f'beta = {c.beta:g}')
    more = [f'Zipf a = {c.zipf:g} at {c.zipf_levels}'] if c.zipf else []
    more += [] if c.filtered < 0 else [f'filtered to k = {c.filtered}']
    return [name, f'v = {c.num_features}', f'L = {c.num_layers}', rules, *more]


def model_parts(config: Config) -> list[str]:
    """What is said of the model of a run and of its task."""
    task = [] if config.objective == 'last' else [config.objective]
    return [*task, config.model, f'depth {config.depth}', config.optim]


def save_learning_curve(dynamics: list[Record], language: Language, config: Config, path: Path) -> None:
    """Draws the learning curve of a run and its excess side by side into a PNG file, atomically.

    Where the context is one token, the curves of counts of pairs are beside them: a table has all there is to learn.
    """
    levels = bool(dynamics) and 'bp' in dynamics[0]
    left, right, *more = panels(1, 2 + levels, size=(11 + 4.5 * levels, 4.2), width_ratios=(3, 2, 2)[: 2 + levels])
    counts = _count_records(dynamics, language, config)
    if counts:
        _draw_counts(left, right, counts, dynamics)
    seen = TASKS[config.objective].seen
    learning_curve(dynamics, language.floors, language.entropy, run_title(config), left, seen=seen)
    excess_curve(dynamics, right, 'excess over the best predictor', 'model' if counts else '', GREEN)
    if levels:
        from RLM_clean.plots.models import filtered_curves  # slow to import, for a panel that few runs have

        curves = zip(*(record['bp'] for record in dynamics), strict=True)
        exact = {k: [(value, 0.0) for value in curve] for k, curve in enumerate(curves)}
        filtered_curves([record['t'] for record in dynamics], exact, more[0])
    save(left.figure, path)


def _count_records(dynamics: list[Record], language: Language, config: Config) -> list[Record]:
    """The baseline of counts at the steps of a run; none for longer contexts, and where counting takes long."""
    steps = [record['t'] for record in dynamics]
    if config.context_size != 1 or config.regime == 'population' or not steps:
        return []
    entries = len(steps) * config.num_features**2
    if baselines.sequences_seen(config, steps[-1]) > _MOST_SEQUENCES or entries > _MOST_ENTRIES:
        return []
    return baselines.ngram_records(language.grammar, language.reference, config, steps)


@styled
def _draw_counts(left: Axes, right: Axes, counts: list[Record], dynamics: list[Record]) -> None:
    """Draws the baseline of counts into both panels of a run."""
    style: dict[str, Any] = {'color': PURPLE, 'ls': '--', 'lw': 1.6, 'label': 'counts of pairs'}
    left.plot([r['t'] for r in counts], [r['testloss'] for r in counts], **style)
    later = _positive(counts)
    right.loglog([r['t'] for r in later], [r['excess'] for r in later], **style)
    last = _positive(dynamics)[-1:]
    if later and not (last and 2 / 3 < last[0]['excess'] / later[-1]['excess'] < 3 / 2):  # the two would overlap
        _end_label(right, later, PURPLE)
