"""Loss against the size of the training set, and the levels of the tree that it pays for.

    python -m examples.training_sets

Trains transformers on training sets of P sequences of the Random Hierarchy Model (v = 16, m = 4, L = 3) to predict the
last token from the last t tokens before it, t = 1, 3 and 7, and takes the best loss of each run. F. Cagnetta and
M. Wyart (NeurIPS 2024, arXiv:2406.00048) predict that the level l is learnt from about P_l = v m^(2l - 1) / (1 - m/v)
sequences, when the correlations of tokens at that distance emerge from the noise, and that a window of t tokens stops
the descent at the floor H_t. Prints, for each level, the size from which the covariances of the training sequences
stand out of their noise, and the size P* at which the loss is halfway between the floors that the level joins, both
beside P_l; and draws the losses against P.

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
import torch
from matplotlib.axes import Axes
from torch import Tensor

from examples import make_parser, places
from examples.root import crossing
from RLM_clean import sweep
from RLM_clean.analysis import baselines
from RLM_clean.exact import theory
from RLM_clean.plots import scaling, style
from RLM_clean.runs import load_run
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


def emergence(sequences: Tensor, v: int, sizes: Array) -> Array:
    """The sizes from which covariances stand out of their noise, `(level,)`, from sequences `(P, 2^L)` of a language.

    Those of the last token and of each token whose lowest common ancestor with it is l levels above them. They stand
    out where the mean of the squared norm of their estimates `p(a, b) - p(a) p(b)` from the first P sequences is twice
    what independent tokens would have, `(1 - sum_a p(a)^2) (1 - sum_b p(b)^2) / P`: the theory's condition for P_l.
    """
    n = sequences.shape[1]
    ratios = np.empty((len(sizes), n.bit_length() - 1))
    for row, size in zip(ratios, sizes, strict=True):
        counted = sequences[: int(size)]
        joint = torch.stack([torch.bincount(x * v + counted[:, -1], minlength=v * v) for x in counted[:, :-1].T])
        p = joint.view(-1, v, v).double() / len(counted)
        left, right = p.sum(2), p.sum(1)
        estimates = (p - left[:, :, None] * right[:, None, :]).square().sum((1, 2))
        noise = (1 - left.square().sum(1)) * (1 - right.square().sum(1)) / len(counted)
        for level in range(1, len(row) + 1):
            ring = slice(n - 2**level, n - 2 ** (level - 1))  # the tokens at that distance
            row[level - 1] = (noise[ring].mean() / estimates[ring].mean()).item()
    return np.array([crossing(sizes, column, 0.5) for column in ratios.T])


def emergences(results: Results, sizes: Array) -> Array:
    """What `emergence` says of the training sets of each repetition, `(level, repetition)`."""
    found = []
    for name in results['run'][-1, -1]:
        run = load_run(results.plan.folder / name)
        sequences = baselines.training_set(run.rlm, run.config.train_size, 2**run.config.num_layers)
        found.append(emergence(sequences, run.config.num_features, sizes))
    return np.array(found).T


def table(results: Results, windows: Sequence[int], sizes: Array) -> list[str]:
    """Two lines for each level: where covariances emerge, and P*, both beside P_l."""
    v, m, L = (int(results[name].flat[0]) for name in ('num_features', 'num_synonyms', 'num_layers'))
    joined, losses, lines = floors(results, windows), results['best_loss'][-1], []
    expected = theory.rhm_sample_sizes(v, m, L)
    for level, (size, found) in enumerate(zip(expected, emergences(results, sizes), strict=True), start=1):
        lines.append(f'level {level}: P_l = {size:7.0f}, covariances emerge at {beside(found, size)}')
    for level, (j, k) in enumerate(pairwise((0, *windows)), start=1):
        size, found = expected[level - 1], thresholds(sizes, losses, joined[j], joined[k])
        lines.append(f'level {level}, from H_{j} to H_{k}: P_l = {size:7.0f}, P* = {beside(found, size)}')
    for i, t in enumerate(windows):
        above = results['best_loss'][i, -1] - joined[t]
        lines.append(f'window of {t}: best loss at P = {sizes[-1]:.0f} is H_{t} + {above.mean():.4f}')
    return lines


def beside(found: Array, expected: float) -> str:
    """The geometric mean of sizes `(repetition,)` with its standard error, and its ratio to the size of the theory."""
    logs = np.log(found)
    if np.isnan(logs).any():
        return f'a size within the range in {np.isfinite(logs).sum()} of {len(logs)} runs'
    mean, error = math.exp(logs.mean()), logs.std(ddof=1) / math.sqrt(len(logs))
    ratio = mean / expected
    return f'{mean:7.0f} +- {mean * error:5.0f}, {ratio:.2f} +- {ratio * error:.2f} times P_l'


@style.styled
def figure(results: Results, windows: Sequence[int], axes: Axes) -> None:
    """The best loss of each window against P, with the floors and the sizes of the theory."""
    v, m, L = (int(results[name].flat[0]) for name in ('num_features', 'num_synonyms', 'num_layers'))
    scaling.size_curves(results, labels=[f'window of {t} token' + ('s' if t > 1 else '') for t in windows], axes=axes)
    for level, size in enumerate(theory.rhm_sample_sizes(v, m, L), start=1):
        axes.axvline(size, color=style.GREY, lw=1, ls=':')
        axes.annotate(f'$P_{level}$', (size, 1.02), xycoords=('data', 'axes fraction'), ha='center', color=style.GREY)


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
    figure(results, windows, axes)
    style.save(axes.figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
