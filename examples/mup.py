"""The best learning rate against the width of a transformer, in two parametrisations. `python -m examples.mup`.

Trains transformers of embedding_dim 64 to 512 on Random Language Models (v = 8, beta = 3, L = 2) at eight learning
rates, with `parametrisation` standard and mup, the maximal update parametrisation (G. Yang et al., Tensor Programs V,
arXiv:2203.03466). Draws the excess at the end against the learning rate, and prints the best rate of each width: the
lowest point of the parabola through the three best rates, in logarithms of both, for the geometric mean over languages
(each with other seeds), and its standard error from the languages alone. At width 64 both parametrisations are the
same.

The sweep takes four minutes on two cores. After an interruption, the same command
continues. `--quick` trains small models at three rates, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from examples import make_parser, places
from RLM_clean import plots, sweep
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array, Results

OPTIONS: dict[str, Any] = {
    'dataset': 'rlm', 'num_features': 8, 'beta': 3.0, 'num_layers': 2, 'depth': 2, 'ffwd_size': 2,
    'optim': 'adam', 'scheduler': 'none', 'batch_size': 32, 'max_iters': 160, 'print_freq': 160, 'save_freq': 1,
}  # fmt: skip
GRID: dict[str, Sequence[Any]] = {
    'parametrisation': ('standard', 'mup'),
    'embedding_dim': (64, 128, 256, 512),
    'lr': tuple(2.0**-k for k in range(13, 5, -1)),
}
REPETITIONS = 2

QUICK_OPTIONS: dict[str, Any] = {'batch_size': 16, 'max_iters': 10, 'print_freq': 10}
QUICK_GRID: dict[str, Sequence[Any]] = {'embedding_dim': (16, 32), 'lr': (2.0**-9, 2.0**-7, 2.0**-5)}
QUICK_REPETITIONS = 2


def best_rate(rates: Array, excess: Array) -> float:
    """The learning rate of the least excess: that of the parabola through the lowest point and its neighbours.

    The parabola is one of ln excess against ln lr. If the lowest point is at an end of the grid, it is returned.
    """
    i = int(np.argmin(excess))
    if i in (0, len(rates) - 1):
        return float(rates[i])
    a, b, _ = np.polyfit(np.log(rates[i - 1 : i + 2]), np.log(excess[i - 1 : i + 2]), 2)
    return math.exp(-b / (2 * a))


def best_rates(rates: Array, excess: Array) -> tuple[float, float]:
    """The best rate for the geometric mean of `excess (rates, repetitions)`, and the standard error of its log2."""
    alone = [math.log2(best_rate(rates, column)) for column in excess.T]
    return best_rate(rates, np.exp(np.log(excess).mean(1))), float(np.std(alone, ddof=1)) / math.sqrt(len(alone))


def table(results: Results) -> list[str]:
    """A line for each parametrisation and width: the best rate, and how it moves between the ends."""
    rates, excess = np.array(results.axes['lr']), results['excess']
    lines = []
    for name, values in zip(results.axes['parametrisation'], excess, strict=True):
        found = []
        for width, values_of_width in zip(results.axes['embedding_dim'], values, strict=True):
            rate, error = best_rates(rates, values_of_width)
            found.append(math.log2(rate))
            lowest = np.exp(np.log(values_of_width).mean(1)).min()
            lines.append(f'{name:8}  width {width:4}  best lr 2^({found[-1]:.2f} +- {error:.2f}) = {rate:.2e}  '
                         f'least excess {lowest:.4f}')  # fmt: skip
        widths = results.axes['embedding_dim']
        lines.append(f'{name:8}  from width {widths[0]} to {widths[-1]} log2 of the best lr moves by '
                     f'{found[-1] - found[0]:+.2f}')  # fmt: skip
    return lines


@style.styled
def draw(results: Results, name: str, axes: Axes) -> None:
    """The excess (geometric mean over repetitions) against the learning rate, a line a width, its minimum marked."""
    place = results.axes['parametrisation'].index(name)
    rates, widths = np.array(results.axes['lr']), results.axes['embedding_dim']
    for width, values, color in zip(widths, results['excess'][place], style.shades(len(widths)), strict=True):
        mean = np.exp(np.log(values).mean(1))
        axes.plot(rates, mean, color=color, marker='o', ms=4, label=f'width {width}')
        for column in values.T:
            axes.plot(rates, column, color=color, lw=0.6, alpha=0.4)
        axes.axvline(best_rate(rates, mean), color=color, ls='--', lw=1.2, zorder=1)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xlabel('learning rate (dashed: the best)')
    axes.set_title(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the best rates and draws the figure."""
    parser = make_parser('mup', __doc__)
    parser.add_argument('--workers', default='auto', help='runs, or groups of runs, at a time')
    options = parser.parse_args(arguments)
    folder, picture = places('mup', options)
    values = {**OPTIONS, **(QUICK_OPTIONS if options.quick else {})}
    grid = {**GRID, **(QUICK_GRID if options.quick else {})}
    repetitions = QUICK_REPETITIONS if options.quick else REPETITIONS

    words = ['--outname', str(folder), '--repetitions', str(repetitions), '--workers', options.workers]
    words += ['--no-checkpoints', *(word for name, value in values.items() for word in (f'--{name}', str(value)))]
    for name, axis in grid.items():
        words += ['--grid', f'{name}={",".join(str(value) for value in axis)}']
    if sweep.main(words) != 0:
        raise SystemExit(1)
    results = sweep.load(folder)
    if not np.isfinite(results['excess']).all():
        raise SystemExit('mup: some runs are not done: the same command goes on with them')
    print('\n'.join(table(results)))
    panels = plots.panels(1, 2, size=(11, 4.4), sharey=True)
    for name, axes in zip(grid['parametrisation'], panels, strict=True):
        draw(results, name, axes)
    panels[0].set_ylabel(f'excess after {values["max_iters"]} steps (nats)')
    panels[1].legend()
    style.save(panels[0].figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
