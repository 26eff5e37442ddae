"""Loss against the size of the training set, and the levels of the tree that it pays for.

    python -m examples.training_sets

Trains transformers on training sets of P sequences of the Random Hierarchy Model (v = 16, m = 4, L = 3) to predict the
last token from the last t tokens before it, t = 1, 3 and 7, and takes the best loss of each run. F. Cagnetta and
M. Wyart (NeurIPS 2024, arXiv:2406.00048) predict that the level l is learnt from about P_l = v m^(2l - 1) / (1 - m/v)
sequences, when the correlations of tokens at that distance emerge from the noise, and that a window of t tokens stops
the descent at the floor H_t. Prints, for each level, the size P* at which the loss is halfway between the floors that
the level joins, beside P_l; and draws the losses against P.

The runs are a sweep, which says how long it will take; after an interruption, the same command continues. `--quick`
trains small models in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from examples import make_parser, places
from examples.root import crossing
from RLM_clean import sweep
from RLM_clean.exact import theory
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array, Results

OPTIONS: dict[str, Any] = {
    'dataset': 'rhm', 'num_features': 16, 'num_synonyms': 4, 'num_layers': 3, 'regime': 'offline', 'depth': 3,
    'embedding_dim': 64, 'num_heads': 4, 'optim': 'adam', 'lr': 3e-3, 'warmup_time': 100,
    'max_iters': 8192, 'decay_time': 8192, 'max_epochs': 10**6, 'loss_threshold': 0.02, 'print_freq': 10**6,
}  # fmt: skip
WINDOWS = (1, 3, 7)
SIZES = tuple(2**k for k in range(5, 18))
LARGEST_BATCH = 128  # or half of the training set
REPETITIONS = 2

QUICK: dict[str, Any] = {
    'num_features': 8, 'num_synonyms': 2, 'num_layers': 2, 'depth': 1, 'embedding_dim': 16, 'num_heads': 2,
    'lr': 1e-2, 'max_iters': 256, 'decay_time': 256, 'warmup_time': 20, 'compile': 'off',
}  # fmt: skip
QUICK_WINDOWS = (1, 3)
QUICK_SIZES = (16, 64, 256)


def command(
    folder: Path, windows: Sequence[int], sizes: Sequence[int], repetitions: int, largest: int, **options: Any
) -> list[str]:
    """The words of the sweep: windows and sizes, and repetitions with other grammars and weights."""
    columns: dict[str, list[int]] = {'train_size': [*sizes], 'batch_size': [min(largest, P // 2) for P in sizes]}
    words = ['--outname', str(folder), '--grid', f'num_tokens={",".join(str(t + 1) for t in windows)}']
    words += ['--zip', *(f'{name}={",".join(map(str, column))}' for name, column in columns.items())]
    words += ['--repetitions', str(repetitions), '--no-checkpoints']
    return [*words, *(f'--{name}={value}' for name, value in options.items())]


def floors(results: Results, windows: Sequence[int]) -> dict[int, Array]:
    """The floors H_k of each grammar, {k: (repetition,)}, k = 0 and the windows."""
    return {k: results[f'floor_{k}'][-1, 0] for k in (0, *windows)}


def thresholds(sizes: Array, losses: Array, above: Array, below: Array) -> Array:
    """P* of each repetition: where losses `(P, R)` are halfway between two floors `(R,)`."""
    return np.array([crossing(sizes, column, (a + b) / 2) for column, a, b in zip(losses.T, above, below, strict=True)])


def table(results: Results, windows: Sequence[int], sizes: Array) -> list[str]:
    """A line for each level: P* as a geometric mean over repetitions, with its standard error, beside P_l."""
    v, m, L = (int(results[name].flat[0]) for name in ('num_features', 'num_synonyms', 'num_layers'))
    joined, losses, lines = floors(results, windows), results['best_loss'][-1], []
    for level, (j, k) in enumerate(pairwise((0, *windows)), start=1):
        logs = np.log(thresholds(sizes, losses, joined[j], joined[k]))
        expected = theory.rhm_sample_sizes(v, m, L)[level - 1]
        if np.isnan(logs).any():
            found = f'reached in {np.isfinite(logs).sum()} of {len(logs)} runs'
        else:
            mean, error = math.exp(logs.mean()), logs.std(ddof=1) / math.sqrt(len(logs))
            ratio = mean / expected
            found = f'P* = {mean:7.0f} +- {mean * error:5.0f}, P* / P_l = {ratio:.2f} +- {ratio * error:.2f}'
        lines.append(f'level {level}, from H_{j} to H_{k}: P_l = {expected:7.0f}, {found}')
    for i, t in enumerate(windows):
        above = results['best_loss'][i, -1] - joined[t]
        lines.append(f'window of {t}: best loss at P = {sizes[-1]:.0f} is H_{t} + {above.mean():.4f}')
    return lines


@style.styled
def figure(results: Results, windows: Sequence[int], sizes: Array, axes: Axes) -> None:
    """The best loss of each window against P, means over repetitions with their spread, and the floors."""
    v, m, L = (int(results[name].flat[0]) for name in ('num_features', 'num_synonyms', 'num_layers'))
    for losses, t, color in zip(results['best_loss'], windows, style.line_colors(len(windows)), strict=True):
        label = f'window of {t} token' + ('s' if t > 1 else '')
        axes.errorbar(sizes, losses.mean(1), losses.std(1, ddof=1), fmt='.-', color=color, label=label)
    for k, values in floors(results, windows).items():
        axes.axhline(values.mean(), color=style.GREY, lw=1, ls='--')
        axes.annotate(
            f'$H_{k}$', (1.01, values.mean()), xycoords=('axes fraction', 'data'), va='center', color=style.GREY
        )
    for level, size in enumerate(theory.rhm_sample_sizes(v, m, L)[: len(windows)], start=1):
        axes.axvline(size, color=style.GREY, lw=1, ls=':')
        axes.annotate(f'$P_{level}$', (size, 1.02), xycoords=('data', 'axes fraction'), ha='center', color=style.GREY)
    axes.set_xscale('log')
    axes.set_xlabel('P, sequences in the training set')
    axes.set_ylabel('best test loss (nats)')
    axes.legend(loc='upper right', bbox_to_anchor=(1, 0.92))


def train(arguments: Sequence[str] | None, description: str | None, name: str) -> tuple[Results, bool, Path]:
    """Trains what is not trained yet; the results, whether they are those of `--quick`, and where the figure goes."""
    options = make_parser(name, description, runs='training_sets').parse_args(arguments)
    folder, picture = places(name, options, runs='training_sets')
    windows, sizes = (QUICK_WINDOWS, QUICK_SIZES) if options.quick else (WINDOWS, SIZES)
    if sweep.main(
        command(
            folder,
            windows,
            sizes,
            REPETITIONS,
            16 if options.quick else LARGEST_BATCH,
            **{**OPTIONS, **(QUICK if options.quick else {})},
        )
    ):
        raise SystemExit(1)
    results = sweep.load(folder)
    if np.isnan(results['best_loss']).any():
        raise SystemExit(f'{name}: some runs are not done: the same command goes on with them')
    return results, options.quick, picture


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the table and draws the figure."""
    results, quick, picture = train(arguments, __doc__, 'training_sets')
    windows, sizes = (QUICK_WINDOWS, QUICK_SIZES) if quick else (WINDOWS, SIZES)
    P = np.array(sizes, dtype=float)
    print('\n'.join(table(results, windows, P)))
    axes = style.panels(size=(8, 4.6))
    figure(results, windows, P, axes)
    style.save(axes.figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
