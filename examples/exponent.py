"""The exponent of the loss against the size of the training set, from the language alone.

    python -m examples.exponent

F. Cagnetta, A. Raventos, S. Ganguli and M. Wyart (ICML 2026, arXiv:2602.07488) predict how the loss falls with the
number P of sequences from two properties of a language. The entropy of the next token given n tokens falls as
`H_n - H_inf ~ n^-gamma`, and the covariance of two tokens at the distance n, its largest singular value, as
`||C(n)|| ~ n^-beta_c`. Correlations emerge from the noise of P sequences at distances with `P ||C(n)||^2 > 1`, so that

    L(P) - H_inf ~ P^-alpha,   alpha = gamma / (2 beta_c),

and the losses L_n of models that see n tokens fall on one curve in the axes `P / n^(2 beta_c)` and
`n^gamma (L_n - H_inf)`. Here both exponents come from the exact entropies and covariances of the Random Hierarchy Model
(v = 16, m = 4, L = 4), and alpha is measured with transformers that see 1, 3, 7 and 15 tokens. Asymptotically
gamma = ln(v / m) / ln 2 and beta_c = ln m / ln 2, hence alpha = 1/2. All powers are those of n + 1 = 2, 4, 8, 16, the
leaves of the sub-trees that the tokens complete.

The runs are a sweep, which says how long it will take; after an interruption, the same command continues. `--quick`
trains small models in seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes

from examples import training_sets
from RLM_clean import sweep
from RLM_clean.analysis.collapse import Collapse, collapse, rescale
from RLM_clean.analysis.scaling import Interval, PowerLaw, fit_power_law
from RLM_clean.datasets import RHM
from RLM_clean.exact import correlations, entropies
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array

OPTIONS: dict[str, Any] = {**training_sets.OPTIONS, 'num_layers': 4}
SIZES = tuple(2**k for k in range(8, 18))
REPETITIONS = 2
GRAMMARS = 8  # for the properties of the language

QUICK_OPTIONS: dict[str, Any] = {**training_sets.QUICK, 'num_layers': 4, 'num_features': 4}
QUICK_SIZES = (16, 64, 256, 1024)


class Statistics(NamedTuple):
    """The exact properties of some grammars, `(grammar, level)`: floors H_(x - 1) and covariances at x = 2, 4, ..., n.

    `covariances` are the largest singular values of the covariance of x_n and of the tokens whose lowest common
    ancestor with it has x leaves, geometric means over these tokens.
    """

    x: Array
    floors: Array
    covariances: Array


def statistics(v: int, m: int, L: int, grammars: int) -> Statistics:
    """The properties of the Random Hierarchy Models with seeds 1, 2, ..."""
    floors, covariances = [], []
    for seed in range(1, grammars + 1):
        language = RHM(v=v, m=m, L=L, seed_rules=seed)
        known = entropies.window_entropies(language, [2**level - 1 for level in range(1, L + 1)])
        floors.append([value for value, _ in known.values()])
        covariances.append([_covariance(language, height) for height in range(1, L + 1)])
    return Statistics(2.0 ** np.arange(1, L + 1), np.array(floors), np.array(covariances))


def _covariance(language: RHM, height: int) -> float:
    last = 2**language.L - 1
    distances = range(2 ** (height - 1), 2**height)
    norms = [torch.linalg.matrix_norm(correlations.covariance(language, last - d, last), 2) for d in distances]
    return float(torch.stack(norms).log().mean().exp())


class Prediction(NamedTuple):
    """What follows from the language: the laws of its entropies and covariances, and alpha with its 95% interval."""

    entropy: PowerLaw
    covariance: PowerLaw
    alpha: float
    interval: Interval


def predict(found: Statistics) -> Prediction:
    """alpha = gamma / (2 beta_c); relative errors of gamma and beta_c add in quadrature."""
    entropy = fit_power_law(found.x, found.floors, choose_range=False)
    covariance = fit_power_law(found.x, found.covariances, floor=0.0, choose_range=False)
    alpha = entropy.exponent / (2 * covariance.exponent)
    error = alpha * math.hypot(*(np.ptp(law.interval) / 2 / law.exponent for law in (entropy, covariance)))
    return Prediction(entropy, covariance, alpha, (alpha - error, alpha + error))


def curves(windows: Sequence[int], sizes: Array, losses: Array, floor: float) -> dict[int, tuple[Array, Array]]:
    """The losses `(window, P, R)` above H_inf, as `collapse` takes them: {n + 1: (P, (R, P))}."""
    return {t + 1: (sizes, values.T - floor) for t, values in zip(windows, losses, strict=True)}


def measured(sizes: Array, losses: Array, floor: float) -> PowerLaw:
    """The power law of the best window at each size, from losses `(window, P, R)`."""
    return fit_power_law(sizes, losses.min(0).T, floor=floor)


def table(found: Statistics, language: Prediction, law: PowerLaw, given: Collapse, best: Collapse) -> list[str]:
    """The properties of the language, both exponents, and how well the losses collapse."""
    lines = ['   x   H_(x - 1)           ||C||, means over grammars and their spread']
    for x, H, C in zip(found.x, found.floors.T, found.covariances.T, strict=True):
        lines.append(f'{x:4.0f}   {H.mean():.4f} +- {H.std(ddof=1):.4f}   {C.mean():.5f} +- {C.std(ddof=1):.5f}')
    for name, power in (('gamma', language.entropy), ('beta_c', language.covariance)):
        lines.append(f'{name} = {power.exponent:.3f} (95%: {power.interval[0]:.3f} to {power.interval[1]:.3f})')
    lines.append(f'H_inf = {language.entropy.floor:.4f}')
    low, high = language.interval
    lines.append(f'alpha from the language = {language.alpha:.3f} (95%: {low:.3f} to {high:.3f})')
    lines.append(f'alpha of the best window: {law}')
    lines.append(f'collapse with the exponents of the language: S = {given.S:.2f}')
    assert best.x is not None and best.y is not None and best.x_interval is not None and best.y_interval is not None
    lines.append(
        f'best collapse: S = {best.S:.2f}, 2 beta_c = {best.x:.2f} ({best.x_interval[0]:.2f} to '
        f'{best.x_interval[1]:.2f}), gamma = {best.y:.2f} ({best.y_interval[0]:.2f} to {best.y_interval[1]:.2f})'
    )
    return lines


@style.styled
def language_panel(found: Statistics, language: Prediction, axes: Axes) -> None:
    """The entropies above their limit and the covariances, with their power laws."""
    floor = language.entropy.floor
    rows = (
        (r'$H_n - H_\infty$ (nats)', found.floors - floor, language.entropy, floor, r'$\gamma$ = '),
        (r'$\|C(n)\|$', found.covariances, language.covariance, 0.0, r'$\beta_c$ = '),
    )
    for (label, values, law, limit, name), color in zip(rows, style.CYCLE, strict=False):
        axes.errorbar(found.x, values.mean(0), values.std(0, ddof=1), fmt='o', color=color, label=label)
        axes.plot(found.x, law(found.x) - limit, color=color, lw=1.2, label=f'{name}{law.exponent:.2f}')
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xlabel('n + 1, tokens')
    axes.set_title('the language', fontsize=10)
    axes.legend(fontsize=8)


@style.styled
def losses_panel(drawn: dict[int, tuple[Array, Array]], law: PowerLaw, language: Prediction, axes: Axes) -> None:
    """The losses of all windows above H_inf, with the predicted power law through the middle of the fit."""
    for (x, (sizes, values)), color in zip(drawn.items(), style.CYCLE, strict=False):
        label = f'n = {x - 1}'
        axes.errorbar(sizes, values.mean(0), values.std(0, ddof=1), fmt='.-', lw=1, color=color, label=label)
    within = np.array(law.range)
    middle = math.sqrt(within[0] * within[1])
    height = law(middle) - law.floor
    axes.plot(within, law(within) - law.floor, color='black', lw=1.5, label=rf'fit, $\alpha$ = {law.exponent:.2f}')
    predicted = height * (within / middle) ** -language.alpha
    label = rf'predicted, $\alpha$ = {language.alpha:.2f}'
    axes.plot(within, predicted, color='black', lw=1.5, ls='--', label=label)
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('P, sequences in the training set')
    axes.set_ylabel(r'$L_n - H_\infty$ (nats)')
    axes.set_title('models that see n tokens', fontsize=10)
    axes.legend(fontsize=8)


@style.styled
def collapsed_panel(drawn: dict[int, tuple[Array, Array]], language: Prediction, S: float, axes: Axes) -> None:
    """The same losses in the axes of the theory."""
    gamma, beta = language.entropy.exponent, language.covariance.exponent
    for (x, (sizes, values)), color in zip(rescale(drawn, 2 * beta, gamma).items(), style.CYCLE, strict=False):
        axes.plot(sizes, values.mean(0), '.-', lw=1, color=color, label=f'n = {x - 1}')
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel(r'$P / (n + 1)^{2 \beta_c}$')
    axes.set_ylabel(r'$(n + 1)^\gamma \, (L_n - H_\infty)$ (nats)')
    axes.set_title(f'in the axes of the theory, S = {S:.1f}', fontsize=10)
    axes.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the prediction, trains what is not trained yet, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help='where the runs are kept, results/exponent by default')
    parser.add_argument('--picture', type=Path, help='the figure, exponent.png in that folder by default')
    parser.add_argument('--quick', action='store_true', help='small models, to try the command out')
    options = parser.parse_args(arguments)
    folder = options.folder or Path('results/exponent_quick' if options.quick else 'results/exponent')
    chosen = {**OPTIONS, **(QUICK_OPTIONS if options.quick else {})}
    v, m, L = (chosen[name] for name in ('num_features', 'num_synonyms', 'num_layers'))
    windows = [2**level - 1 for level in range(1, L + 1)]
    sizes, largest = (QUICK_SIZES, 16) if options.quick else (SIZES, training_sets.LARGEST_BATCH)
    if sweep.main(training_sets.command(folder, windows, sizes, REPETITIONS, largest, **chosen)):
        raise SystemExit(1)
    losses = sweep.load(folder)['best_loss']
    if np.isnan(losses).any():
        raise SystemExit('exponent: some runs are not done: the same command goes on with them')

    found = statistics(v, m, L, GRAMMARS)
    language, P = predict(found), np.array(sizes, dtype=float)
    law, drawn = measured(P, losses, language.entropy.floor), curves(windows, P, losses, language.entropy.floor)
    given = collapse(drawn, x=2 * language.covariance.exponent, y=language.entropy.exponent)
    print('\n'.join(table(found, language, law, given, collapse(drawn, x=None, y=None))))
    panels = style.panels(1, 3, size=(14, 4.6))
    language_panel(found, language, panels[0])
    losses_panel(drawn, law, language, panels[1])
    collapsed_panel(drawn, language, given.S, panels[2])
    picture = options.picture or folder / 'exponent.png'
    style.save(panels[0].figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
