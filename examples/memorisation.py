"""The time at which a model begins to memorise its training set. `python -m examples.memorisation`.

On a training set of P sequences, which is seen over and over, the training loss leaves the test loss below at some
step: from then on the model learns the sequences, not the language. A. Favero, A. Sclocchi and M. Wyart
(arXiv:2505.16959) find for diffusion models that this time is proportional to P. Here transformers predict the last
token of the Random Hierarchy Model (v = 16, m = 4, L = 3). The time is the step at which the test loss is 0.1 nats
above the training loss, which is the mean over the steps since the last record; from one record to the next the step
grows by a factor of sqrt(2). Prints the time for each P, and the exponent of a power law with its 95% interval; draws
the losses of some sizes, and the time against P.

The runs are those of `python -m examples.training_sets`, which are trained where they are not there yet. `--quick`
takes its small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes

from examples import training_sets
from RLM_clean.analysis.scaling import PowerLaw, fit_power_law
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array, Results

# Nats between the test and the training loss.
GAP = 0.1


def departure(steps: Array, gaps: Array, gap: float = GAP) -> float:
    """The step at which gaps `(steps,)` first reach `gap` for good, by interpolation in ln step; NaN where they do not.

    Gaps that are not known are left out.
    """
    known = np.isfinite(gaps) & (steps > 0)
    steps, gaps = steps[known], gaps[known]
    for i, ((t, before), (u, after)) in enumerate(pairwise(zip(steps, gaps, strict=True))):
        if before < gap <= after and (gaps[i + 1 :] >= gap).all():
            return float(t * (u / t) ** ((gap - before) / (after - before)))
    return math.nan


def departures(results: Results) -> Array:
    """The times `(P, repetition)` of the runs that see the whole context."""
    gaps = (results.curves('testloss') - results.curves('trainloss'))[-1]
    steps = results.steps.astype(float)
    return np.array([[departure(steps, run) for run in row] for row in gaps])


def fit(sizes: Array, times: Array) -> PowerLaw | None:
    """The power law of the times in P, over the sizes at which all runs memorise; None for fewer than three of them."""
    complete = np.isfinite(times).all(1)
    return fit_power_law(sizes[complete], times[complete].T, floor=0.0) if complete.sum() > 2 else None


def table(sizes: Array, times: Array, batches: Array) -> list[str]:
    """A line for each size: the time, also in passes over the training set; then the exponent."""
    lines = []
    for size, row, batch in zip(sizes, times, batches, strict=True):
        if np.isnan(row).any():
            lines.append(f'P = {size:6.0f}: {np.isfinite(row).sum()} of {len(row)} runs memorise')
            continue
        mean, error = row.mean(), row.std(ddof=1) / math.sqrt(len(row))
        lines.append(f'P = {size:6.0f}: {mean:6.0f} +- {error:4.0f} steps, {mean * batch / size:6.1f} passes')
    law = fit(sizes, times)
    if law is not None:  # the exponent of a law that falls is positive there
        low, high = law.interval
        first, last = law.range
        lines.append(
            f'time ~ P^a: a = {-law.exponent:.2f} (95%: {-high:.2f} to {-low:.2f}), P from {first:.0f} to {last:.0f}'
        )
    return lines


@style.styled
def figure(results: Results, sizes: Array, times: Array, left: Axes, right: Axes) -> None:
    """Training and test losses of some sizes against the step, and the time against P with its power law."""
    shown = np.flatnonzero(np.isfinite(times).all(1))[::2]
    for i, color in zip(shown, style.shades(len(shown)), strict=True):
        for name, line in (('testloss', '-'), ('trainloss', ':')):
            losses = results.curves(name)[-1, i, 0]
            known = np.isfinite(losses)  # runs of other lengths have records at other steps too
            label = f'P = {sizes[i]:.0f}' if line == '-' else None
            left.plot(results.steps[known], losses[known], line, color=color, label=label)
    left.axhline(results['entropy'][-1, 0, 0], color=style.GREY, lw=1, ls='--', label='floor')
    style.steps_axis(left)
    left.set_ylabel('loss (nats); dotted: training')
    left.legend(fontsize=8)
    spread = times.std(1, ddof=1) if times.shape[1] > 1 else np.zeros(len(sizes))
    right.errorbar(
        sizes, times.mean(1), spread, fmt='o', color=style.BLUE, label=f'test loss {GAP} nats above training'
    )
    law = fit(sizes, times)
    if law is not None:
        within = np.array(law.range)
        right.plot(within, law(within), color=style.BLUE, lw=1, label=f'$P^{{{-law.exponent:.2f}}}$')
    right.set_xscale('log')
    right.set_yscale('log')
    right.set_xlabel('P, sequences in the training set')
    right.set_ylabel('step')
    right.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the table and draws the figure."""
    results, quick, picture = training_sets.train(arguments, __doc__, 'memorisation')
    sizes = np.array(training_sets.QUICK_SIZES if quick else training_sets.SIZES, dtype=float)
    times = departures(results)
    print('\n'.join(table(sizes, times, results['batch_size'][-1, :, 0])))
    left, right = style.panels(1, 2, size=(11, 4.4))
    figure(results, sizes, times, left, right)
    style.save(left.figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
