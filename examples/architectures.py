"""Transformers against convolutions: from how many sequences each learns a level of the tree.

    python -m examples.architectures

F. Cagnetta, A. Favero, A. Sclocchi and M. Wyart (arXiv:2505.07070) predict how many sequences of the Random Hierarchy
Model teach the level l to a network that predicts the last token, pairs of tokens being level 1: transformers need
about `v m^(2l - 1) / (1 - m/v)`, and convolutional networks, whose patches and shared weights are those of the tree,
from level 2 on only `v m^(l + 1) / (1 - m/v)`. The two laws agree at level 2. At level 3 they have m^5 and m^4.

Searches for the thresholds P* of levels 2 and 3 for both architectures and m = 2, 3, 4 (v = 16, L = 3), as
`python -m RLM_clean.sweep threshold` does: P* is the size of the training set at which the least loss of a run is
halfway between the floors without and with the level. Prints P* beside the laws, the exponents in m, and how many times
more sequences the third level needs than the second, all with 95% intervals; and draws P* against m.

The searches say how long they will take; after an interruption, the same command continues. `--quick` trains small
networks for the second level alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from examples import make_parser, places, shared_compilation
from RLM_clean.analysis.scaling import PowerLaw, interval_around
from RLM_clean.analysis.thresholds import Threshold, fit_thresholds
from RLM_clean.plots import style
from RLM_clean.sweep import threshold_command
from RLM_clean.sweep.results import Array

# Of both architectures. The least loss came after 8 to 16 passes over the training set in trials; 64 are made at most.
OPTIONS: dict[str, Any] = {
    'dataset': 'rhm', 'num_features': 16, 'num_layers': 3, 'optim': 'adam', 'lr': 3e-3, 'batch_size': 128,
    'warmup_time': 100, 'max_iters': 8192, 'decay_time': 8192, 'max_epochs': 64, 'loss_threshold': 0.02,
    'print_freq': 10**6,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    'transformer': {'depth': 3, 'embedding_dim': 64, 'num_heads': 4, 'compile': shared_compilation()},
    'cnn': {'model': 'cnn', 'depth': 3, 'embedding_dim': 128, 'compile': 'off'},
}
SYNONYMS = (2, 3, 4)
LEVELS = (2, 3)
SEARCH: dict[str, Any] = {'start': 2**12, 'largest': 2**18, 'resolution': 2**0.5, 'repetitions': 4}

QUICK: dict[str, Any] = {
    'num_features': 8, 'num_layers': 2, 'batch_size': 16, 'max_iters': 128, 'decay_time': 128, 'warmup_time': 20,
    'compile': 'off', 'lr': 1e-2, 'depth': 2, 'embedding_dim': 16, 'test_size': 256,
}  # fmt: skip
QUICK_SYNONYMS = (2, 3)
QUICK_LEVELS = (2,)
QUICK_SEARCH: dict[str, Any] = {'start': 256, 'largest': 512, 'resolution': 2, 'repetitions': 2}

# The thresholds of one architecture: for each level those of all m.
Levels = dict[int, list[Threshold]]


def exponent(architecture: str, level: int) -> int:
    """The power of m in the law of an architecture."""
    return 2 * level - 1 if architecture == 'transformer' else level + 1


def law(architecture: str, level: int, v: int, m: Array) -> Array:
    """`v m^e / (1 - m/v)`, e the exponent of the architecture at that level."""
    return v * m ** exponent(architecture, level) / (1 - m / v)


def command(folder: Path, level: int, synonyms: Sequence[int], **options: Any) -> list[str]:
    """The words of a search for the thresholds of all m. Searches for two levels share their runs."""
    words = ['--outname', str(folder), '--level', str(level), '--grid', f'num_synonyms={",".join(map(str, synonyms))}']
    return [*words, *(f'--{name}={value}' for name, value in options.items())]


def search(words: Sequence[str]) -> list[Threshold]:
    """The thresholds of a search, after training what is not trained yet."""
    if threshold_command.main(words):
        raise SystemExit(1)
    found = [row.threshold for row in threshold_command.read_words(words)[1].found()]
    known = [threshold for threshold in found if threshold is not None]
    if len(known) < len(found):
        raise SystemExit('architectures: some runs are not done: the same command goes on with them')
    return known


def per_seed(thresholds: Sequence[Threshold]) -> Array:
    """P* of each seed `(m, seeds)`; nan where a seed has none."""
    found = np.array([threshold.per_seed for threshold in thresholds])
    return np.where(np.isfinite(found) & (found > 0), found, np.nan)


def power_law(thresholds: Sequence[Threshold], v: int, m: Array) -> PowerLaw | None:
    """The power law of the geometric means of `P* (1 - m/v)` in m, whose exponent is minus that of the fit.

    None for fewer than three m, and where a seed has no P*.
    """
    if len(m) < 3 or np.isnan(per_seed(thresholds)).any():
        return None
    return fit_thresholds(m, thresholds, 1 - m / v)


def ratio(above: Threshold, below: Threshold) -> str:
    """How many times the sequences of one threshold another one needs: the geometric mean of seeds, 95% interval.

    The interval holds the resolutions of both searches, as those of the thresholds do.
    """
    logs = np.log(per_seed([above])[0] / per_seed([below])[0])
    if np.isnan(logs).any():
        return 'not known for all seeds'
    number, mean = len(logs), float(logs.mean())
    low, high = interval_around(mean, float(logs.std()) / number**0.5, number - 1, number)
    half = math.hypot((high - low) / 2, above.resolution, below.resolution)
    return f'{math.exp(mean):.1f} ({math.exp(mean - half):.1f} to {math.exp(mean + half):.1f})'


def table(found: dict[str, Levels], v: int, m: Array) -> list[str]:
    """A line for each threshold beside the law, for each exponent, and for each factor between levels."""
    lines = []
    for architecture, levels in found.items():
        for level, thresholds in levels.items():
            for value, threshold, expected in zip(m, thresholds, law(architecture, level, v, m), strict=True):
                low, high = threshold.interval
                measured = (
                    f'P* = {threshold.value:6.0f} ({low:.0f} to {high:.0f}), {threshold.value / expected:.2f} times it'
                )
                if not math.isfinite(low):
                    measured = 'not all seeds have a P*'
                lines.append(f'{architecture:11} level {level}, m = {value:.0f}: law {expected:6.0f}, {measured}')
    for architecture, levels in found.items():
        for level, thresholds in levels.items():
            fitted = power_law(thresholds, v, m)
            if fitted is None:
                lines.append(f'{architecture:11} level {level}: no exponent, for want of thresholds')
                continue
            high, low = (-x for x in fitted.interval)
            lines.append(
                f'{architecture:11} level {level}: P* (1 - m/v) ~ m^{-fitted.exponent:.2f} ({low:.2f} to {high:.2f}), '
                f'law m^{exponent(architecture, level)}'
            )
    for architecture, levels in found.items():
        for (lower, below), (upper, above) in zip(list(levels.items())[:-1], list(levels.items())[1:], strict=True):
            power = exponent(architecture, upper) - exponent(architecture, lower)
            for value, *pair in zip(m, above, below, strict=True):
                lines.append(
                    f'{architecture:11} m = {value:.0f}: level {upper} needs {ratio(*pair)} times the sequences '
                    f'of level {lower}, law {value**power:.0f}'
                )
    return lines


@style.styled
def panel(found: dict[str, Levels], level: int, v: int, m: Array, axes: Axes) -> None:
    """P* of both architectures at one level against m, with the laws through the middle of the points."""
    fine = np.linspace(m[0], m[-1], 50)
    for (architecture, levels), color, marker in zip(found.items(), style.CYCLE, 'os', strict=False):
        known = ~np.isnan(per_seed(levels[level])).any(1)
        values = np.array([threshold.value for threshold in levels[level]])[known]
        errors = np.abs(np.array([threshold.interval for threshold in levels[level]])[known].T - values)
        axes.errorbar(m[known], values, errors, fmt=marker, ms=5, capsize=3, color=color, label=architecture)
        factor = float(np.exp(np.log(values / law(architecture, level, v, m[known])).mean())) if known.any() else 1.0
        axes.plot(
            fine, factor * law(architecture, level, v, fine), color=color, lw=1, ls='--',
            label=f'{factor:.1f} $v\\,m^{exponent(architecture, level)}/(1-m/v)$',
        )  # fmt: skip
    axes.set_xscale('log')
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axes.minorticks_off()
    axes.set_xticks(m, [f'{value:.0f}' for value in m])
    axes.set_xlabel('m, productions of each symbol')
    axes.set_ylabel('P*, sequences in the training set')
    axes.set_title(f'level {level}: {2**level} tokens')
    axes.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Searches for what is not known yet, prints the tables and draws the figure."""
    options = make_parser('architectures', __doc__).parse_args(arguments)
    folder, picture = places('architectures', options)
    shared, changes = {**OPTIONS, **SEARCH}, {**QUICK, **QUICK_SEARCH} if options.quick else {}
    levels, synonyms = (QUICK_LEVELS, QUICK_SYNONYMS) if options.quick else (LEVELS, SYNONYMS)
    found: dict[str, Levels] = {
        name: {
            level: search(command(folder / name, level, synonyms, **{**shared, **own, **changes})) for level in levels
        }
        for name, own in ARCHITECTURES.items()
    }
    v, m = {**shared, **changes}['num_features'], np.array(synonyms, float)
    print('\n'.join(table(found, v, m)))
    panels = np.atleast_1d(style.panels(1, len(levels), size=(5 * len(levels) + 1, 4.6)))
    for level, axes in zip(levels, panels, strict=True):
        panel(found, level, v, m, axes)
    style.save(panels[0].figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
