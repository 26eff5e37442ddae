"""The root from few examples: how much data a convolutional network needs. `python -m examples.root`.

Trains hierarchical convolutional networks to classify the root of sequences of the Random Hierarchy Model, with
training sets of P sequences, and measures their error on sequences that they have not seen. F. Cagnetta, L. Petrini,
U. M. Tomasini, A. Favero and M. Wyart (Phys. Rev. X 14, 031001, 2024) find that it falls when P is about n_c m^L, with
n_c the number of classes (the symbols that a root can have), m the number of productions of a symbol, and L the depth
of the tree. Prints P*, the size of the training set at which the error is 10% of chance, beside n_c m^L, and draws the
curves against P and against P / (n_c m^L).

The runs are a sweep, which takes two minutes on two cores; after an interruption, the same command continues. `--quick`
trains small networks in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from examples import make_parser, places
from RLM_clean import sweep
from RLM_clean.plots import style

Array = np.ndarray[Any, np.dtype[Any]]

# P* is where the test error falls to this fraction of the error of a random guess.
FRACTION = 0.1


@dataclass(frozen=True)
class Task:
    """A family of Random Hierarchy Models: v symbols, num_classes of them at the root, m productions, depth L."""

    v: int
    num_classes: int
    m: int
    L: int

    @property
    def scale(self) -> int:
        """`n_c m^L`, the paper's number of examples."""
        return self.num_classes * self.m**self.L

    @property
    def num_sequences(self) -> int:
        """`n_c m^(n - 1)`: each of the n - 1 nodes above the leaves has m productions. All are equally likely."""
        return self.num_classes * self.m ** (2**self.L - 1)

    @property
    def chance(self) -> float:
        """The error of a random guess."""
        return 1 - 1 / self.num_classes

    def __str__(self) -> str:
        return f'v = {self.v}, n_c = {self.num_classes}, m = {self.m}, L = {self.L}'


TASKS = (
    # n_c = v = m, as in most of the paper, and others.
    Task(8, 8, 8, 2), Task(10, 10, 10, 2), Task(4, 4, 4, 3), Task(6, 6, 6, 3), Task(3, 3, 3, 4), Task(4, 4, 4, 4),
    Task(8, 2, 4, 3), Task(8, 8, 4, 3), Task(16, 8, 4, 3),
)  # fmt: skip
RATIOS = (1, 2, 4, 8, 16)  # P / (n_c m^L)
REPETITIONS = 4
# SGD with momentum, as in the authors' code (github.com/pcsl-epfl/hierarchy-learning), until the training loss is 0.01.
OPTIONS: dict[str, Any] = {
    'dataset': 'rhm', 'objective': 'root', 'model': 'cnn', 'regime': 'offline', 'embedding_dim': 64, 'ffwd_size': 2,
    'optim': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'scheduler': 'none', 'loss_threshold': 0.01, 'max_iters': 4096,
    'max_epochs': 100000, 'print_freq': 100000, 'save_freq': 1, 'compile': 'off',
}  # fmt: skip
QUICK_TASKS = (Task(6, 6, 3, 2), Task(6, 3, 3, 2))
QUICK_RATIOS = (1, 2, 4, 8)
QUICK = {'embedding_dim': 16, 'max_iters': 512}


def sizes(task: Task, ratios: Sequence[float]) -> list[int]:
    """The sizes P of the training sets of a task."""
    return [round(ratio * task.scale) for ratio in ratios]


def command(
    folder: Path, tasks: Sequence[Task], ratios: Sequence[float], repetitions: int, **options: Any
) -> list[str]:
    """The words of the sweep: one axis of all tasks and sizes, and repetitions with other grammars and weights."""
    points = [(task, P) for task in tasks for P in sizes(task, ratios)]
    columns: dict[str, list[int]] = {
        'num_features': [task.v for task, _ in points],
        'num_classes': [task.num_classes for task, _ in points],
        'num_synonyms': [task.m for task, _ in points],
        'num_layers': [task.L for task, _ in points],
        'depth': [task.L for task, _ in points],
        'train_size': [P for _, P in points],
        'batch_size': [min(128, P // 2) for _, P in points],
    }
    axis = [f'{name}={",".join(map(str, column))}' for name, column in columns.items()]
    words = ['--outname', str(folder), '--zip', *axis, '--repetitions', str(repetitions), '--group', str(repetitions)]
    return [*words, '--no-checkpoints', *(f'--{name}={value}' for name, value in options.items())]


def unseen_error(accuracy: Array, task: Task, P: Array) -> Array:
    """The error on sequences outside the training set, from the accuracy over all sequences; shapes `(P, R)`, `(P,)`.

    P draws among N equally likely sequences leave out the share `(1 - 1/N)^P` of them, and training goes on until the
    error on the others is near zero.
    """
    return (1 - accuracy) / (1 - 1 / task.num_sequences) ** P[:, None]


def crossing(P: Array, errors: Array, threshold: float) -> float:
    """The P at which errors `(P,)` first fall to a threshold, by interpolation in ln P; NaN where they do not."""
    for (p, above), (q, below) in pairwise(zip(P, errors, strict=True)):
        if above > threshold >= below:
            return float(p * (q / p) ** ((above - threshold) / (above - below)))
    return math.nan


def examples_needed(task: Task, P: Array, errors: Array) -> tuple[float, float]:
    """P* of the mean over repetitions of errors `(P, R)`, and its standard error by the jackknife in ln P*."""
    R, threshold = errors.shape[1], FRACTION * task.chance
    left_out = [np.delete(errors, r, axis=1).mean(1) for r in range(R)]
    logs = np.log([crossing(P, mean, threshold) for mean in left_out])
    found = crossing(P, errors.mean(1), threshold)
    return found, found * math.sqrt((R - 1) * logs.var())


@style.styled
def figure(tasks: Sequence[Task], P: Array, errors: Array, left: Axes, right: Axes) -> None:
    """The test error over that of a random guess, `(task, P, R)`, against P, and against P / (n_c m^L).

    The points are means over repetitions with their standard errors.
    """
    for task, row, values, color in zip(tasks, P, errors / errors_of_chance(tasks), style.MORE, strict=False):
        mean, error = values.mean(1), values.std(1, ddof=1) / math.sqrt(values.shape[1])
        left.errorbar(row, mean, error, fmt='.-', color=color)
        right.errorbar(row / task.scale, mean, error, fmt='.-', color=color, label=str(task))
    for axes, label in ((left, 'P, sequences in the training set'), (right, 'P / (n_c m^L)')):
        axes.axhline(FRACTION, color=style.GREY, lw=1, ls=':')
        axes.set_xscale('log')
        axes.set_ylim(0, 1.05)
        axes.set_xlabel(label)
        axes.set_ylabel('test error / chance')
    left.set_title('against the size of the training set')
    right.set_title('against this size over n_c m^L')
    right.legend(fontsize=8, loc='upper right')


def errors_of_chance(tasks: Sequence[Task]) -> Array:
    """The error of a random guess in each task, `(task, 1, 1)`."""
    return np.array([task.chance for task in tasks])[:, None, None]


def table(tasks: Sequence[Task], P: Array, errors: Array) -> str:
    """P* beside n_c m^L, a line a task; then the means of their ratio, and the exponent of a power law."""
    lines = [f'{"":34}{"n_c m^L":>8}{"P*":>8}{"+-":>6}{"ratio":>8}{"+-":>6}']
    found = np.array([examples_needed(*row) for row in zip(tasks, P, errors, strict=True)])
    for task, (needed, error) in zip(tasks, found, strict=True):
        ratios = f'{needed / task.scale:8.2f}{error / task.scale:6.2f}'
        numbers = f'{needed:8.0f}{error:6.0f}{ratios}' if math.isfinite(needed) else f'{"not reached":>14}'
        lines.append(f'{task!s:34}{task.scale:8}{numbers}')
    reached = [task for task, needed in zip(tasks, found[:, 0], strict=True) if math.isfinite(needed)]
    if len(reached) > 2:
        x, y = np.log([task.scale for task in reached]), np.log(found[np.isfinite(found[:, 0]), 0])
        depths = np.array([task.L for task in reached])
        means = [f'{math.exp((y - x)[depths == L].mean()):.2f} for L = {L}' for L in sorted(set(depths))]
        mean, spread = (y - x).mean(), (y - x).std(ddof=1)
        lines.append(f'P* / (n_c m^L): geometric mean {math.exp(mean):.2f}, spread of its logarithm {spread:.2f}')
        lines.append(f'geometric means at each depth: {", ".join(means)}')
        (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
        lines.append(f'P* ~ (n_c m^L)^g: g = {slope:.2f} +- {math.sqrt(covariance[0, 0]):.2f}')
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the table and draws the figure."""
    options = make_parser('root', __doc__).parse_args(arguments)
    folder, picture = places('root', options)

    tasks, ratios, repetitions = (QUICK_TASKS, QUICK_RATIOS, 3) if options.quick else (TASKS, RATIOS, REPETITIONS)
    changes = QUICK if options.quick else {}
    if sweep.main(command(folder, tasks, ratios, repetitions, **{**OPTIONS, **changes})):
        raise SystemExit(1)
    accuracy = sweep.load(folder)['testacc'].reshape(len(tasks), len(ratios), repetitions)
    if np.isnan(accuracy).any():
        raise SystemExit('root: some runs are not done: the same command goes on with them')
    P = np.array([sizes(task, ratios) for task in tasks])
    errors = np.array([unseen_error(*row) for row in zip(accuracy, tasks, P, strict=True)])
    left, right = style.panels(1, 2, size=(11, 4.4))
    figure(tasks, P, errors, left, right)
    style.save(left.figure, picture)
    print(table(tasks, P, errors))
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
