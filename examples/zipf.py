"""The root from rules of unequal frequency: power laws of the error. `python -m examples.zipf`.

Trains hierarchical convolutional networks to classify the root of sequences of the Random Hierarchy Model (v = 16,
m = 16, L = 2) in which the k-th production of a symbol has probability ~ k^-(1 + a) at the level of the leaves (Zipf's
law), on training sets of P sequences. F. Cagnetta, H. Kang and M. Wyart (ICML 2025, arXiv:2505.07067) predict that the
test error falls as P^(-a / (1 + a)), since rare rules are learnt late; with equal probabilities it falls all at once.
Prints the exponent of each a with its 95% interval, and draws the errors. That law needs many rules. Beside it stands
what follows for m rules if each is learnt from as many examples of it as with equal probabilities.

The runs are a sweep, which says how long it will take; after an interruption, the same command continues. `--quick`
trains small networks in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from examples import make_parser, places
from RLM_clean import sweep
from RLM_clean.analysis.scaling import PowerLaw, fit_power_law
from RLM_clean.plots import style
from RLM_clean.sweep.results import Array

OPTIONS: dict[str, Any] = {
    'dataset': 'rhm', 'num_features': 16, 'num_synonyms': 16, 'num_layers': 2, 'objective': 'root', 'model': 'cnn',
    'depth': 2, 'regime': 'offline', 'embedding_dim': 64, 'ffwd_size': 2, 'optim': 'sgd', 'lr': 0.1, 'momentum': 0.9,
    'scheduler': 'none', 'batch_size': 128, 'loss_threshold': 0.01, 'max_iters': 4096, 'max_epochs': 10**6,
    'print_freq': 10**6, 'save_freq': 1, 'compile': 'off',
}  # fmt: skip
EXPONENTS = (0.0, 0.5, 1.0, 2.0)  # a; 0 stands for equal probabilities
SIZES = tuple(2**k for k in range(9, 17))
REPETITIONS = 3

QUICK: dict[str, Any] = {
    'num_features': 6, 'num_synonyms': 6, 'embedding_dim': 16, 'batch_size': 32, 'max_iters': 256,
}  # fmt: skip
QUICK_EXPONENTS = (0.0, 1.0)
QUICK_SIZES = (64, 256, 1024)


def command(
    folder: Path, exponents: Sequence[float], sizes: Sequence[int], repetitions: int, **options: Any
) -> list[str]:
    """The words of the sweep: exponents and sizes, and repetitions with other grammars and weights."""
    grid = {'zipf': exponents, 'train_size': sizes}
    axes = [word for name, values in grid.items() for word in ('--grid', f'{name}={",".join(map(str, values))}')]
    words = ['--outname', str(folder), *axes, '--repetitions', str(repetitions), '--no-checkpoints']
    return [*words, *(f'--{name}={value}' for name, value in options.items())]


def law(a: float, sizes: Array, errors: Array) -> PowerLaw | None:
    """The power law of errors `(P, R)`; None for equal probabilities, and for fewer than three errors above 0."""
    measured = errors.mean(1) > 0
    if a == 0 or measured.sum() < 3:
        return None
    return fit_power_law(sizes[measured], errors[measured].T, floor=0.0)


def of_few_rules(a: float, m: int, sizes: Array, equal: Array) -> Array:
    """The errors `(P,)` for m rules if each is learnt from as many examples of it as with equal probabilities.

    With p_k ~ k^-(1 + a), and f(P) the error with equal probabilities, which `equal (P,)` gives at the sizes, it is
    `sum_jk p_j p_k f(P m min(p_j, p_k))`: a sequence has two pairs of leaves, and the rarer rule decides.
    """
    p = np.arange(1, m + 1) ** -(1 + a)
    p /= p.sum()
    examples = sizes[:, None, None] * m * np.minimum(p[:, None], p)
    return (p[:, None] * p * np.interp(np.log(examples), np.log(sizes), equal, right=0.0)).sum((1, 2))


def slope(sizes: Array, errors: Array, within: tuple[float, float]) -> float:
    """The exponent between the ends of a range of sizes."""
    first, last = np.interp(np.log(within), np.log(sizes), np.log(errors))
    return float((first - last) / np.log(within[1] / within[0]))


def table(exponents: Sequence[float], m: int, sizes: Array, errors: Array) -> list[str]:
    """A line for each a: the exponent beside a / (1 + a), and beside that of m rules."""
    lines = []
    for a, values in zip(exponents, errors, strict=True):
        found = law(a, sizes, values)
        if found is None:
            lines.append(
                f'a = {a:g}: error {values[0].mean():.3f} at P = {sizes[0]:g}, {values[-1].mean():.4f} at {sizes[-1]:g}'
            )
        else:
            few = slope(sizes, of_few_rules(a, m, sizes, errors[0].mean(1)), found.range)
            lines.append(f'a = {a:g}: {found}; a / (1 + a) = {a / (1 + a):.3f}; {few:.3f} for {m} rules')
    return lines


@style.styled
def figure(exponents: Sequence[float], m: int, sizes: Array, errors: Array, axes: Axes) -> None:
    """The test errors `(a, P, R)` against P, means and spreads over grammars, with the fits and both laws."""
    for a, values, color in zip(exponents, errors, style.line_colors(len(exponents)), strict=True):
        label = f'a = {a:g}' if a else 'equal probabilities'
        axes.errorbar(sizes, values.mean(1), values.std(1, ddof=1), fmt='o', ms=4, color=color, label=label)
        found = law(a, sizes, values)
        if found is not None:
            within = np.array(found.range)
            axes.plot(within, found(within), color=color, lw=1.2)
            predicted = found(within[0]) * (within / within[0]) ** (-a / (1 + a))
            axes.plot(within, predicted, color=color, lw=1, ls=':')
            axes.plot(sizes, of_few_rules(a, m, sizes, errors[0].mean(1)), color=color, lw=1, ls='--')
    axes.plot([], [], color=style.GREY, lw=1.2, label='fit')
    axes.plot([], [], color=style.GREY, lw=1, ls=':', label='$P^{-a/(1+a)}$')
    axes.plot([], [], color=style.GREY, lw=1, ls='--', label=f'for {m} rules, from equal probabilities')
    axes.set_xscale('log')
    axes.set_yscale('log')
    axes.set_xlabel('P, sequences in the training set')
    axes.set_ylabel('test error of the root')
    axes.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, prints the exponents and draws the figure."""
    options = make_parser('zipf', __doc__).parse_args(arguments)
    folder, picture = places('zipf', options)
    exponents, sizes = (QUICK_EXPONENTS, QUICK_SIZES) if options.quick else (EXPONENTS, SIZES)
    changes = QUICK if options.quick else {}
    if sweep.main(command(folder, exponents, sizes, REPETITIONS, **{**OPTIONS, **changes})):
        raise SystemExit(1)
    results = sweep.load(folder)
    errors = 1 - results['testacc']
    if np.isnan(errors).any():
        raise SystemExit('zipf: some runs are not done: the same command goes on with them')
    P, m = np.array(sizes, dtype=float), int(results['num_synonyms'].flat[0])
    print('\n'.join(table(exponents, m, P, errors)))
    axes = style.panels(size=(8, 4.6))
    figure(exponents, m, P, errors, axes)
    style.save(axes.figure, picture)
    print(f'the figure is {picture}')


if __name__ == '__main__':
    main()
