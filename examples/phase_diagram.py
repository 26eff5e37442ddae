"""A phase diagram: which Random Language Models are learnt within a budget. `python -m examples.phase_diagram`.

Trains the same transformer for the same number of steps on Random Language Models over a grid of the inverse
temperature beta and the number of symbols v, at L = 2, and over beta and the depth L of the tree, at v = 16. The rules
freeze at beta = 2 (a random energy model). Prints and draws, for each point, the excess over the exact floor at the end
and the share of the information of the context that the model has learnt,

    1 - excess / (H_0 - H_(n-1)),

the mean over grammars and its spread (the standard deviation) from one grammar to another: H_0 is the loss of a
predictor that sees nothing, H_(n-1) that of the best predictor. Grammars in which the context says less than 0.01 nats
have no share. We know of no paper with this diagram.

The two sweeps say how long they will take; after an interruption, the same command continues. `--quick` trains small
models in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from examples import make_parser, places, shared_compilation
from RLM_clean import sweep
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array, Results

OPTIONS: dict[str, Any] = {
    'dataset': 'rlm', 'depth': 3, 'embedding_dim': 64, 'num_heads': 4, 'optim': 'adam', 'lr': 2e-3, 'batch_size': 64,
    'warmup_time': 100, 'max_iters': 2048, 'decay_time': 2048, 'loss_threshold': 0, 'print_freq': 2048, 'save_freq': 1,
    'compile': shared_compilation(),
}  # fmt: skip
# For the option that varies beside beta, the values of v and of L.
Planes = dict[str, dict[str, Sequence[int]]]
BETAS: tuple[float, ...] = (0.5, 1, 1.5, 2, 2.5, 3, 4)
PLANES: Planes = {
    'num_features': {'num_features': (8, 16, 32, 64), 'num_layers': (2,)},
    'num_layers': {'num_features': (16,), 'num_layers': (1, 2, 3, 4)},
}
REPETITIONS = 4
LEAST_INFORMATION = 0.01  # nats
NAMES = {'num_features': 'v, number of symbols', 'num_layers': 'L, depth of the tree'}

QUICK: dict[str, Any] = {
    'embedding_dim': 16, 'depth': 1, 'num_heads': 2, 'max_iters': 64, 'decay_time': 64, 'batch_size': 16,
    'compile': 'off',
}  # fmt: skip
QUICK_BETAS = (1, 3)
QUICK_PLANES: Planes = {
    'num_features': {'num_features': (4, 8), 'num_layers': (1,)},
    'num_layers': {'num_features': (4,), 'num_layers': (1, 2)},
}
QUICK_REPETITIONS = 2


def command(
    folder: Path, betas: Sequence[float], plane: dict[str, Sequence[int]], repetitions: int, **options: Any
) -> list[str]:
    """The words of the sweep over a plane: each repetition has another grammar, other sequences and weights."""
    axes = {**plane, 'beta': betas}
    grid = [word for name, values in axes.items() for word in ('--grid', f'{name}={",".join(map(str, values))}')]
    words = ['--outname', str(folder), *grid, '--repetitions', str(repetitions), '--no-checkpoints']
    return [*words, *(f'--{name}={value}' for name, value in options.items())]


def without_repeats(planes: Planes) -> Planes:
    """The planes to train: the depth of the first one, which the second one has too, is left out of the second."""
    (L,) = planes['num_features']['num_layers']
    second = planes['num_layers']
    return {**planes, 'num_layers': {**second, 'num_layers': [depth for depth in second['num_layers'] if depth != L]}}


def with_shared_row(planes: Planes, found: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """What is found on the second plane, with the row of the first that belongs to it: its runs have the same seeds."""
    (L,), (v,) = planes['num_features']['num_layers'], planes['num_layers']['num_features']
    row, place = planes['num_features']['num_features'].index(v), planes['num_layers']['num_layers'].index(L)
    first, second = found['num_features'], found['num_layers']
    return {what: np.insert(second[what], place, first[what][row], axis=0) for what in second}


def measured(results: Results) -> dict[str, Array]:
    """The excess and the share of the information that was learnt, `(rows, beta, repetition)` each.

    The share is nan where the context says less than LEAST_INFORMATION.
    """
    excess, possible = results['excess'], results['floor_0'] - results['entropy']
    shape = (-1, len(results.axes['beta']), excess.shape[-1])
    share = 1 - excess / np.where(possible < LEAST_INFORMATION, np.nan, possible)
    return {'excess': excess.reshape(shape), 'learnt': share.reshape(shape)}


def over_grammars(values: Array) -> tuple[Array, Array]:
    """The mean and the spread over repetitions, the last axis; nan where fewer than two of them have a value."""
    kept = np.isfinite(values)
    enough = kept.sum(-1) >= 2
    rows = np.where(enough[..., None], np.where(kept, values, np.nan), 0.0)  # zeros, so that numpy does not warn
    mean, spread = np.nanmean(rows, axis=-1), np.nanstd(rows, axis=-1, ddof=1)
    return np.where(enough, mean, np.nan), np.where(enough, spread, np.nan)


def table(name: str, values: Sequence[int], betas: Sequence[float], found: dict[str, Array]) -> list[str]:
    """The mean and the spread at each point, a line for each value of the option."""
    lines = []
    for title, what in (('excess (nats)', 'excess'), ('share of the information learnt', 'learnt')):
        lines.append(f'{title}, mean and spread over grammars; {name} down, beta across')
        lines.append(' ' * 8 + ''.join(f'{f"{beta:g}":>16}' for beta in betas))
        mean, spread = over_grammars(found[what])
        for value, row, width in zip(values, mean, spread, strict=True):
            lines.append(f'{value:8}' + ''.join(f'{m:9.3f} +-{s:5.3f}' for m, s in zip(row, width, strict=True)))
    return lines


@style.styled
def panel(values: Sequence[int], betas: Sequence[float], found: Array, title: str, norm: Normalize, axes: Axes) -> None:
    """The mean over grammars as colours, with the numbers and their spread, and the freezing point as a line."""
    mean, spread = over_grammars(found)
    image = axes.imshow(mean, norm=norm, aspect='auto', origin='lower', cmap='viridis')
    axes.grid(False)
    for (i, j), value in np.ndenumerate(mean):
        color = 'white' if norm(value) < 0.6 else 'black'
        text = f'{value:.2g}\n±{spread[i, j]:.1g}' if np.isfinite(value) else '-'
        behind = {'facecolor': image.to_rgba(value), 'edgecolor': 'none', 'pad': 1}  # over the dashed line
        axes.text(j, i, text, ha='center', va='center', fontsize=7, color=color, bbox=behind)
    axes.set_xticks(range(len(betas)), [f'{beta:g}' for beta in betas])
    axes.set_yticks(range(len(values)), [str(value) for value in values])
    frozen = np.interp(2.0, betas, range(len(betas)))
    axes.axvline(frozen, color='white', ls='--', lw=1.5)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes, pad=0.02)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the tables and draws the figure."""
    options = make_parser('phase_diagram', __doc__).parse_args(arguments)
    folder, picture = places('phase_diagram', options)
    betas, planes = (QUICK_BETAS, QUICK_PLANES) if options.quick else (BETAS, PLANES)
    repetitions, changes = (QUICK_REPETITIONS, QUICK) if options.quick else (REPETITIONS, {})

    found = {}
    for name, plane in without_repeats(planes).items():
        if sweep.main(command(folder / name, betas, plane, repetitions, **{**OPTIONS, **changes})):
            raise SystemExit(1)
        found[name] = measured(sweep.load(folder / name))
        if np.isnan(found[name]['excess']).any():
            raise SystemExit('phase_diagram: some runs are not done: the same command goes on with them')
    found['num_layers'] = with_shared_row(planes, found)
    panels = style.panels(2, 2, size=(11, 7.5))
    largest = max(float(values['excess'].mean(-1).max()) for values in found.values())
    least = min(float(values['excess'].mean(-1).min()) for values in found.values())
    norms = {'excess': LogNorm(max(least, 1e-4), largest), 'learnt': Normalize(0, 1)}
    titles = {'excess': 'excess at the end (nats)', 'learnt': 'share of the information learnt'}
    for row, (name, values) in zip(panels, found.items(), strict=True):
        print('\n'.join(table(name, planes[name][name], betas, values)))
        for axes, what in zip(row, ('excess', 'learnt'), strict=True):
            panel(planes[name][name], betas, values[what], titles[what], norms[what], axes)
            axes.set_xlabel('beta (dashed: the rules freeze)')
            axes.set_ylabel(NAMES[name])
    style.save(panels[0, 0].figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
