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
leaves of the sub-trees that the tokens complete. H_inf is the limit of longer and longer trees. So both exponents come
from trees with two more levels on top, whose entropies show how far H_n falls beyond n = 15. H_inf of each grammar that
the models learn is its own H_15, less that fall.

The runs are a sweep, which says how long it will take; after an interruption, the same command continues. `--quick`
trains small models in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes

from examples import make_parser, places, shared_compilation, training_sets
from RLM_clean import sweep
from RLM_clean.analysis.collapse import Collapse, collapse, rescale
from RLM_clean.analysis.scaling import Interval, PowerLaw, fit_power_law
from RLM_clean.datasets import RHM
from RLM_clean.exact import correlations, entropies
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array, Results

OPTIONS: dict[str, Any] = {**training_sets.OPTIONS, 'num_layers': 4, 'compile': shared_compilation()}
SIZES = tuple(2**k for k in range(8, 18))
REPETITIONS = 2
GRAMMARS = 32  # for the properties of the language
LEVELS_ABOVE = 2  # of the trees that these come from, for H_inf

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


def limits(found: Statistics) -> Array:
    """H_inf of each grammar, `(grammar,)` nats: its last floor less what longer trees would still take from it.

    That is the same for all grammars, from their means, by Aitken's extrapolation: `d'^2 / (d - d')` for the last two
    differences d > d' of the floors, the rest of a geometric series.
    """
    before, last = -np.diff(found.floors.mean(0))[-2:]
    return np.asarray(found.floors[:, -1] - last**2 / (before - last))


class Prediction(NamedTuple):
    """What follows from the language: the laws of `H_n - H_inf` and of the covariances, and alpha with its interval.

    `left` is H_n - H_inf at the largest n of the fits, the mean over grammars. Intervals are 95%, over grammars.
    """

    entropy: PowerLaw
    covariance: PowerLaw
    alpha: float
    interval: Interval
    left: float


def predict(found: Statistics, largest: float) -> Prediction:
    """alpha = gamma / (2 beta_c) from x up to `largest`; relative errors of gamma and beta_c add in quadrature."""
    used = found.x <= largest
    above = (found.floors - limits(found)[:, None])[:, used]
    entropy = fit_power_law(found.x[used], above, floor=0.0, choose_range=False)
    covariance = fit_power_law(found.x[used], found.covariances[:, used], floor=0.0, choose_range=False)
    alpha = entropy.exponent / (2 * covariance.exponent)
    error = alpha * math.hypot(*(np.ptp(law.interval) / 2 / law.exponent for law in (entropy, covariance)))
    return Prediction(entropy, covariance, alpha, (alpha - error, alpha + error), float(above[:, -1].mean()))


def losses_above(results: Results, windows: Sequence[int], left: float) -> Array:
    """The best losses above H_inf, `(window, P, R)`: that of each grammar is `left` below its own last floor."""
    return np.asarray(results['best_loss'] - (results[f'floor_{windows[-1]}'][-1, 0] - left))


def curves(windows: Sequence[int], sizes: Array, losses: Array) -> dict[int, tuple[Array, Array]]:
    """Losses above H_inf `(window, P, R)`, as `collapse` takes them: {n + 1: (P, (R, P))}."""
    return {t + 1: (sizes, values.T) for t, values in zip(windows, losses, strict=True)}


def measured(sizes: Array, losses: Array) -> PowerLaw:
    """The power law of the best window at each size, from losses above H_inf `(window, P, R)`."""
    return fit_power_law(sizes, losses.min(0).T, floor=0.0)


# ---------------------------------------------------------------------- what is printed


def language_table(found: Statistics, n: int) -> list[str]:
    """The properties of the language, and the exponents from the trees of n leaves and from twice as many."""
    lines = [f'   x   H_(x - 1) - H_inf     ||C||, means over {len(found.floors)} grammars and their spread']
    above = found.floors - limits(found)[:, None]
    for x, H, C in zip(found.x[:-1], above.T, found.covariances.T, strict=False):  # the last H is an extrapolation
        lines.append(f'{x:4.0f}   {H.mean():.4f} +- {H.std(ddof=1):.4f}      {C.mean():.5f} +- {C.std(ddof=1):.5f}')
    for largest in (n, 2 * n):
        language = predict(found, largest)
        for name, value, (low, high) in (
            ('gamma', language.entropy.exponent, language.entropy.interval),
            ('beta_c', language.covariance.exponent, language.covariance.interval),
            ('alpha from the language', language.alpha, language.interval),
        ):
            lines.append(f'x = 2 to {largest}: {name} = {value:.3f} (95%: {low:.3f} to {high:.3f})')
    return lines


def losses_table(windows: Sequence[int], sizes: Array, losses: Array, given: Collapse, best: Collapse) -> list[str]:
    """The exponent of the losses, together and for each seed, and how well they collapse."""
    lines = [f'alpha of the best window: {measured(sizes, losses)}']
    for r in range(losses.shape[-1]):
        lines.append(f'alpha of seed {r + 1} alone: {measured(sizes, losses[..., r : r + 1])}')
    chosen = losses.mean(-1).argmin(0)
    lines.append(f'the best window at each P: {", ".join(str(windows[i]) for i in chosen)}')
    lines.append(f'collapse with the exponents of the language: S = {given.S:.2f}, overlap {given.overlap:.2f}')
    assert best.x is not None and best.y is not None and best.x_interval is not None and best.y_interval is not None
    lines.append(
        f'best collapse: S = {best.S:.2f}, overlap {best.overlap:.2f}, 2 beta_c = {best.x:.2f} '
        f'({best.x_interval[0]:.2f} to {best.x_interval[1]:.2f}), gamma = {best.y:.2f} '
        f'({best.y_interval[0]:.2f} to {best.y_interval[1]:.2f})'
    )
    return lines


def ends(results: Results, windows: Sequence[int], sizes: Array) -> list[str]:
    """How the runs of the largest P end: training and test losses that agree above the floor are short of steps."""
    lines = []
    for i, t in enumerate(windows):
        floor = results[f'floor_{t}'][i, -1]
        test, train = (float((results[name][i, -1] - floor).mean()) for name in ('testloss', 'trainloss'))
        lines.append(
            f'window of {t} at the end of P = {sizes[-1]:.0f}: test loss H_{t} {test:+.4f}, '
            f'training loss H_{t} {train:+.4f}'
        )
    return lines


# ---------------------------------------------------------------------- the figure


@style.styled
def language_panel(found: Statistics, language: Prediction, axes: Axes) -> None:
    """The entropies above their limit and the covariances, with their power laws where they are fitted."""
    above, n = found.floors - limits(found)[:, None], len(found.x) - 1  # the last H is an extrapolation
    for name, exponent, values, law, color in (
        (r'$H_n - H_\infty$ (nats)', r'\gamma', above[:, :n], language.entropy, style.CYCLE[0]),
        (r'$\|C(n)\|$', r'\beta_c', found.covariances[:, :n], language.covariance, style.CYCLE[1]),
    ):
        label = f'{name}, ${exponent}$ = {law.exponent:.2f}'
        axes.errorbar(found.x[:n], values.mean(0), values.std(0, ddof=1), fmt='o', color=color, label=label)
        axes.plot(law.range, law(law.range), color=color, lw=1.2)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xlabel('n + 1, tokens')
    axes.set_title('the language', fontsize=10)
    axes.legend(fontsize=8)


@style.styled
def losses_panel(drawn: dict[int, tuple[Array, Array]], law: PowerLaw, language: Prediction, axes: Axes) -> None:
    """The losses of all windows above H_inf, with the predicted power law through the middle of the fit."""
    for (x, (sizes, values)), color in zip(drawn.items(), style.line_colors(len(drawn)), strict=True):
        label = f'n = {x - 1}'
        axes.errorbar(sizes, values.mean(0), values.std(0, ddof=1), fmt='.-', lw=1, color=color, label=label)
    within = np.array(law.range)
    middle = math.sqrt(within[0] * within[1])
    axes.plot(within, law(within), color='black', lw=1.5, label=rf'fit, $\alpha$ = {law.exponent:.2f}')
    predicted = law(middle) * (within / middle) ** -language.alpha
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
    rescaled = rescale(drawn, 2 * beta, gamma)
    for (x, (sizes, values)), color in zip(rescaled.items(), style.line_colors(len(rescaled)), strict=True):
        axes.plot(sizes, values.mean(0), '.-', lw=1, color=color, label=f'n = {x - 1}')
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel(r'$P / (n + 1)^{2 \beta_c}$')
    axes.set_ylabel(r'$(n + 1)^\gamma \, (L_n - H_\infty)$ (nats)')
    axes.set_title(f'in the axes of the theory, S = {S:.1f}', fontsize=10)
    axes.legend(fontsize=8)


def report(found: Statistics, results: Results, windows: Sequence[int], sizes: Array, picture: Path) -> None:
    """Prints the tables and draws the figure, from the properties of the language and the results of the runs."""
    n = windows[-1] + 1
    language = predict(found, n)
    losses = losses_above(results, windows, language.left)
    drawn = curves(windows, sizes, losses)
    given = collapse(drawn, x=2 * language.covariance.exponent, y=language.entropy.exponent)
    best = collapse(drawn, x=None, y=None)
    lines = [*language_table(found, n), *losses_table(windows, sizes, losses, given, best)]
    print('\n'.join([*lines, *ends(results, windows, sizes)]))
    panels = style.panels(1, 3, size=(14, 4.6))
    language_panel(found, language, panels[0])
    losses_panel(drawn, measured(sizes, losses), language, panels[1])
    collapsed_panel(drawn, language, given.S, panels[2])
    style.save(panels[0].figure, picture)
    print(f'the figure is {picture}')


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes the prediction, trains what is not trained yet, prints the table and draws the figure."""
    options = make_parser('exponent', __doc__).parse_args(arguments)
    folder, picture = places('exponent', options)
    chosen = {**OPTIONS, **(QUICK_OPTIONS if options.quick else {})}
    v, m, L = (chosen[name] for name in ('num_features', 'num_synonyms', 'num_layers'))
    windows = [2**level - 1 for level in range(1, L + 1)]
    sizes, largest = (QUICK_SIZES, 16) if options.quick else (SIZES, training_sets.LARGEST_BATCH)
    if sweep.main(training_sets.command(folder, windows, sizes, REPETITIONS, largest, **chosen)):
        raise SystemExit(1)
    results = sweep.load(folder)
    if np.isnan(results['best_loss']).any():
        raise SystemExit('exponent: some runs are not done: the same command goes on with them')
    found = statistics(v, m, L + LEVELS_ABOVE, GRAMMARS)
    report(found, results, windows, np.array(sizes, dtype=float), picture)


if __name__ == '__main__':
    main()
