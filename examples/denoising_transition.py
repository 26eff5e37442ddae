"""The denoising transition: above a threshold, noise destroys the root. `python -m examples.denoising_transition`.

The leaves of trees of the Random Hierarchy Model (v = 32, m = 8, L up to 9) are seen through noise eps, and a new tree
is drawn from the exact posterior. This measures, by belief propagation and without training, how often the new tree has
the symbols of the old one at each level, how many tokens change together (the susceptibility), and how far apart they
are (the correlation length). Beside it is the theory, belief propagation averaged over rules, which has a threshold.
A. Sclocchi, A. Favero and M. Wyart, PNAS 2025, arXiv:2402.16991; A. Sclocchi, A. Favero, N. I. Levi and M. Wyart, ICLR
2025, arXiv:2410.13770. The command prints a table and takes about five minutes on one core. `--quick` measures small
trees, in seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from RLM_clean import plots
from RLM_clean.datasets import RHM
from RLM_clean.exact import averaged_map, denoising
from RLM_clean.plots import style

Array = NDArray[np.float64]


class Size(NamedTuple):
    """What is measured. `rules` grammars, each with `sequences` sequences; random noise is drawn `repeats` times."""

    v: int
    m: int
    depths: tuple[int, ...]
    rules: int
    sequences: int
    noises: tuple[float, ...]
    random_rules: int
    random_sequences: int
    repeats: int
    random_noises: tuple[float, ...]


FULL = Size(
    32, 8, (3, 4, 5, 6, 7, 8, 9), 16, 24,
    (0.2, 0.4, 0.5, 0.6, 0.65, 0.68, 0.7, 0.71, 0.715, 0.72, 0.725, 0.73, 0.735, 0.74, 0.745, 0.75, 0.76, 0.77, 0.78,
     0.8, 0.83, 0.87, 0.92, 1.0),
    12, 4, 24, (0.05, 0.1, 0.15, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325, 0.35, 0.4, 0.5),
)  # fmt: skip
QUICK = Size(
    8, 3, (2, 3, 4), 3, 8, (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0), 2, 4, 2, (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
)


# The depth of which the theory alone is drawn, beyond those that are measured.
DEEP = 20


class Curves(NamedTuple):
    """Measured at each noise (E of them) for trees of one depth, means over sequences and rules, or one value each."""

    noises: Array  # (E,)
    recovered: Array  # (..., E, L + 1): the fraction of the symbols of each level that are recovered, 0 at the root
    covariances: Array  # (..., E, L + 1): the covariance of changes of two tokens of each height


class Estimate(NamedTuple):
    """A mean with its standard errors: `sequences` from the number of sequences alone, `rules` the whole of it."""

    value: Array
    sequences: Array
    rules: Array


Statistic = Callable[[list[Curves]], Any]


# ------------------------------------------------------------------ measuring


def measured(
    v: int, m: int, L: int, noises: Sequence[float], rules: int, sequences: int, kind: str = 'beliefs', repeats: int = 1
) -> Curves:
    """The curves of each of some rules and sequences: `(rules, sequences, E, L + 1)`."""
    found = []
    for seed in range(rules):
        language = RHM(v, m, L, seed_rules=seed)
        trees = [level.repeat(repeats, 1) for level in language.trees(0, sequences, 'test')]
        for noise in noises:
            evidence = denoising.noisy_evidence(trees[-1], v, noise, kind, seed)
            recovery = denoising.recovery(language, trees, evidence)
            recovered = recovery.levels.view(repeats, sequences, -1).mean(0)
            found.append(torch.stack((recovered, denoising.change_covariances(recovery, repeats))))
    values = torch.stack(found).view(rules, len(noises), 2, sequences, L + 1).permute(2, 0, 3, 1, 4).numpy()
    return Curves(np.array(noises), values[0], values[1])


def theory(v: int, m: int, L: int, noises: Sequence[float]) -> Curves:
    """The curves `(E, L + 1)` of belief propagation averaged over rules."""
    recovered, covariances = averaged_map.averaged_recovery(torch.tensor(noises, dtype=torch.float64), v, m, L)
    return Curves(np.array(noises), recovered.numpy(), covariances.numpy())


def estimate(statistic: Statistic, curves: list[Curves]) -> Estimate:
    """A statistic of the mean curves of several depths, with jackknife errors: rules, or sequences, left out in turn.

    Sequences of different rules are independent, so leaving out rules shows both sources of error.
    """
    value = np.asarray(statistic([_mean(one, (0, 1)) for one in curves]), dtype=float)
    errors = []
    for axis in (1, 0):
        number = curves[0].recovered.shape[axis]
        left_out = np.array(
            [statistic([_mean(_without(one, axis, i), (0, 1)) for one in curves]) for i in range(number)]
        )
        errors.append(np.sqrt((number - 1) * left_out.var(0)))
    return Estimate(value, *errors)


def _mean(curves: Curves, axes: tuple[int, int]) -> Curves:
    return Curves(curves.noises, curves.recovered.mean(axes), curves.covariances.mean(axes))


def _without(curves: Curves, axis: int, i: int) -> Curves:
    return Curves(curves.noises, np.delete(curves.recovered, i, axis), np.delete(curves.covariances, i, axis))


# ------------------------------------------------------------------ statistics of curves


def roots_of(curves: Curves) -> Array:
    """The probability that the root is recovered, `(E,)`."""
    return curves.recovered[:, 0]


def susceptibilities(curves: Curves) -> Array:
    """How many tokens change together, `(E,)`; not known where nothing changes."""
    return denoising.susceptibility(torch.tensor(curves.covariances)).numpy()


def lengths(curves: Curves) -> Array:
    """The mean distance of correlated changes, `(E,)`."""
    return denoising.correlation_length(torch.tensor(curves.covariances)).numpy()


def crossing(noises: Array, curve: Array, level: float = 0.0) -> float:
    """The first noise at which a curve falls through a level, between two points of a grid; nan where it does not."""
    above = np.flatnonzero((curve[:-1] >= level) & (curve[1:] < level))
    if not len(above):
        return math.nan
    i = above[0]
    return noises[i] + (curve[i] - level) / (curve[i] - curve[i + 1]) * (noises[i + 1] - noises[i])


def peak(noises: Array, curve: Array) -> tuple[float, float]:
    """Place and height of the largest value, by a parabola through it and its neighbours."""
    i = min(max(int(np.nanargmax(curve)), 1), len(curve) - 2)
    a, b, c = np.polyfit(noises[i - 1 : i + 2] - noises[i], curve[i - 1 : i + 2], 2)
    if a >= 0:
        return noises[i], curve[i]
    return noises[i] - b / (2 * a), c - b**2 / (4 * a)


def exponent_of_widths(curves: list[Curves], low: float, high: float) -> float:
    """nu from the noise over which the recovery of the root falls from `high` to `low`: it shrinks as n^(-1 / nu).

    n = 2^L; the last five depths.
    """
    depths = [one.recovered.shape[-1] - 1 for one in curves][-5:]
    roots = [(one.noises, roots_of(one)) for one in curves[-5:]]
    widths = [crossing(noises, root, low) - crossing(noises, root, high) for noises, root in roots]
    return -math.log(2) / np.polyfit(depths, np.log(widths), 1)[0]


def decay_exponent(curves: Curves, noise: float) -> float:
    """a of `C(r) ~ r^-a` at the measured noise closest to the given one; heights 2 to L - 1, r = 2^h - 1."""
    covariances = curves.covariances[np.abs(curves.noises - noise).argmin()]
    heights = np.arange(2, max(4, len(covariances) - 1))
    return -np.polyfit(np.log(2.0**heights - 1), np.log(covariances[heights]), 1)[0]


# ------------------------------------------------------------------ the table


def statistics(size: Size) -> list[tuple[str, Statistic, str]]:
    """What the table lists: a name, a statistic of the curves of all depths, and the published value."""
    at = averaged_map.threshold(size.v, size.m)
    low, high = (at.belief + 1 / size.v) / 2, (at.belief + 1) / 2
    L, other = size.depths[-1], size.depths[-3]
    published = size.v == 32

    def curves_cross(curves: list[Curves]) -> float:
        return crossing(curves[-1].noises, roots_of(curves[-1]) - roots_of(curves[-3]))

    return [
        (
            f'eps*: the root of depth {L} is recovered with probability p*',
            lambda curves: crossing(curves[-1].noises, roots_of(curves[-1]), at.belief),
            '0.74' if published else '',
        ),
        (f'eps*: the curves of the roots of depths {other} and {L} cross', curves_cross, '0.74' if published else ''),
        (
            'nu, from the widths of the last depths',
            lambda curves: exponent_of_widths(curves, low, high),
            '1.78' if published else '',
        ),
        (
            f'susceptibility of depth {L}: eps of the peak',
            lambda curves: peak(curves[-1].noises, susceptibilities(curves[-1]))[0],
            'at eps*',
        ),
        ('    its height', lambda curves: peak(curves[-1].noises, susceptibilities(curves[-1]))[1], ''),
        (
            f'correlation length of depth {L}: eps of the peak',
            lambda curves: peak(curves[-1].noises, lengths(curves[-1]))[0],
            'at eps*',
        ),
        ('    its height', lambda curves: peak(curves[-1].noises, lengths(curves[-1]))[1], ''),
        (
            'a in C(r) ~ r^-a, measured next to eps*',
            lambda curves: decay_exponent(curves[-1], at.noise),
            '1' if published else '',
        ),
    ]


def random_statistics(kind: str, published: bool) -> list[tuple[str, Statistic, str]]:
    """The same for noise that is drawn, of which there is no averaged theory."""
    place = '0.3' if published and kind == 'masked' else ''
    return [
        (
            f'{kind} tokens: eps at which the root is recovered with probability 1/2',
            lambda curves: crossing(curves[0].noises, roots_of(curves[0]), 0.5),
            '',
        ),
        (
            f'{kind} tokens: eps of the peak of the susceptibility',
            lambda curves: peak(curves[0].noises, susceptibilities(curves[0]))[0],
            place,
        ),
    ]


def print_table(size: Size, curves: list[Curves], drawn: dict[str, Curves]) -> None:
    """The statistics of the curves of all depths, and of noise that is drawn, with their errors, beside the theory."""
    at = averaged_map.threshold(size.v, size.m)
    expected = [theory(size.v, size.m, L, size.noises) for L in size.depths]
    print(f'Random Hierarchy Model, v = {size.v}, m = {size.m}, L up to {size.depths[-1]}')
    exponents = f'slope {at.slope:.4f}, nu = {at.nu:.3f}, a = {at.decay:.3f}'
    print(f'averaged map, L -> infinity: p* = {at.belief:.4f}, eps* = {at.noise:.4f}, {exponents}')
    print(f'\n{"":75}{"averaged":>9}{"measured":>10}   error from')
    print(f'{"":75}{"map":>9}{"":>10}{"sequences":>12}{"all":>9}{"published":>11}')
    rows = [(row, curves, row[1](expected)) for row in statistics(size)]
    for kind, one in drawn.items():
        rows += [(row, [one], math.nan) for row in random_statistics(kind, size.v == 32)]
    for (name, statistic, published), values, of_theory in rows:
        found = estimate(statistic, values)
        theory_text = '' if math.isnan(of_theory) else f'{of_theory:.4g}'
        print(
            f'{name:75}{theory_text:>9}{found.value:>10.4g}{found.sequences:>12.2g}{found.rules:>9.2g}{published:>11}'
        )
    print_levels(expected[-1], curves[-1])


def print_levels(expected: Curves, curves: Curves) -> None:
    """The recovery of each level at five noises, with the standard error over rules, and the theory below it."""
    found = estimate(lambda means: means[0].recovered, [curves])
    L = found.value.shape[1] - 1
    print(f'\nprobability that a symbol is recovered, depth {L}; below it the averaged map')
    print(f'{"eps":>6}' + ''.join(f'{f"level {level}":>15}' for level in range(L + 1)))
    for i in np.linspace(0, len(curves.noises) - 1, 9).round().astype(int)[1:-1]:
        values = zip(found.value[i], found.rules[i], strict=True)
        print(f'{curves.noises[i]:>6.3f}' + ''.join(f'{f"{value:.3f} +- {error:.3f}":>15}' for value, error in values))
        print(f'{"":6}' + ''.join(f'{f"{value:.3f}         ":>15}' for value in expected.recovered[i]))


# ------------------------------------------------------------------ the figure


def draw(size: Size, curves: list[Curves], picture: Path) -> None:
    """Recovery of levels, recovery of roots, susceptibility and correlation length, beside the theory (dashed)."""
    at = averaged_map.threshold(size.v, size.m)
    ((levels, roots), (chi, xi)) = plots.panels(2, 2, size=(11, 8.4))
    near = np.linspace(at.noise - 0.05, at.noise + 0.05, 101)
    fine = np.unique(np.concatenate((np.linspace(size.noises[0], 1, 201), near)))
    _draw_levels(levels, size, curves[-1], fine)
    for axes, statistic in ((roots, roots_of), (chi, susceptibilities), (xi, lengths)):
        _draw_depths(axes, size, curves, fine, statistic)
    deep = lengths(theory(size.v, size.m, DEEP, fine.tolist()))
    top = 3 * lengths(theory(size.v, size.m, size.depths[-1], fine.tolist())).max()
    xi.plot(fine, deep, color=style.BLACK, ls=':', lw=1.2, label=f'averaged map, L = {DEEP}')
    xi.set_yscale('log')
    xi.set_ylim(0.9, top)
    _finish(at, levels, roots, chi, xi)
    style.save(levels.figure, picture)


def _draw_levels(axes: Any, size: Size, curves: Curves, fine: Array) -> None:
    L = size.depths[-1]
    found = estimate(lambda means: means[0].recovered, [curves])
    expected = theory(size.v, size.m, L, fine.tolist())
    shown = [*range(0, L, 2), L]
    for level, color in zip(shown, style.shades(len(shown)), strict=True):
        name = {0: 'level 0 (root)', L: f'level {L} (tokens)'}.get(level, f'level {level}')
        value, error = found.value[:, level], found.rules[:, level]
        axes.errorbar(size.noises, value, error, fmt='o', ms=3.5, color=color, label=name)
        axes.plot(fine, expected.recovered[:, level], color=color, ls='--', lw=1)


def _draw_depths(
    axes: Any, size: Size, curves: list[Curves], fine: Array, statistic: Callable[[Curves], Array]
) -> None:
    few = size.depths[::2]
    for L, color in zip(few, style.line_colors(len(few)), strict=True):
        found = estimate(lambda means: statistic(means[0]), [curves[size.depths.index(L)]])
        axes.errorbar(size.noises, found.value, found.rules, fmt='o', ms=3.5, color=color, label=f'L = {L}')
        axes.plot(fine, statistic(theory(size.v, size.m, L, fine.tolist())), color=color, ls='--', lw=1)


def _finish(at: averaged_map.Threshold, levels: Any, roots: Any, chi: Any, xi: Any) -> None:
    with style.context():
        levels.set_ylabel('probability that a symbol is recovered')
        roots.set_ylabel('probability that the root is recovered')
        chi.set_ylabel('susceptibility: tokens that change together')
        xi.set_ylabel('correlation length of changes (tokens)')
        for axes in (levels, roots, chi, xi):
            axes.axvline(at.noise, color=style.GREY, lw=0.8, label=r'threshold $\epsilon^*$')
            axes.plot([], [], color=style.GREY, ls='--', lw=1, label='averaged map')
            axes.set_xlabel(r'noise $\epsilon$')
            axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--picture', type=Path, default=Path('results/denoising_transition.png'), help='the figure')
    parser.add_argument('--quick', action='store_true', help='small trees, takes seconds')
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    curves = [measured(size.v, size.m, L, size.noises, size.rules, size.sequences) for L in size.depths]
    L, sizes = size.depths[-1], (size.random_rules, size.random_sequences)
    drawn = {
        kind: measured(size.v, size.m, L, size.random_noises, *sizes, kind, size.repeats)
        for kind in ('masked', 'replaced')
    }
    print_table(size, curves, drawn)
    draw(size, curves, options.picture)
    print(f'the figure is {options.picture}')


if __name__ == '__main__':
    main()
