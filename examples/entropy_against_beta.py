"""The Random Language Model through its freezing point: `python -m examples.entropy_against_beta`.

Draws, for several v, the entropy of a rule against beta, and the entropy of a sequence per token, beside the closed
form of the random energy model (REM): for large v a rule keeps (2 - beta^2 / 2) ln v of its entropy 2 ln v and freezes
at beta = 2 (B. Derrida, Phys. Rev. B 24, 2613, 1981; E. DeGiuli, Phys. Rev. Lett. 122, 128301, 2019).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from RLM_clean import plots
from RLM_clean.datasets import RLM
from RLM_clean.exact import entropies, theory
from RLM_clean.plots import style

# Trees of four levels: the root's own entropy is a 16th of ln v a token.
DEPTH = 4


@style.styled
def sequence_entropies(languages: Sequence[RLM], num_samples: int, axes: Axes | None = None) -> Axes:
    """The entropy of a sequence per token, in units of ln v, against beta: means over the grammars of one v and beta.

    Error bars are standard errors, those of the samples and those of the mean over grammars together. Dashed is the
    bound that the REM sets for large v: the tokens have no more entropy than the tree, ln v for the root and that of a
    rule for each of the n - 1 nodes, and none has more than ln v.
    """
    axes = style.own_axes(axes)
    for v, color in zip(sorted({language.v for language in languages}), style.CYCLE, strict=False):
        betas = sorted({language.beta for language in languages if language.v == v})
        points = []
        for beta in betas:
            group = [language for language in languages if (language.v, language.beta) == (v, beta)]
            found = np.array([entropies.leaves_entropy(language, num_samples) for language in group])
            spread = found[:, 0].std(ddof=1) if len(group) > 1 else 0.0
            points.append((found[:, 0].mean(), math.hypot(spread, found[:, 1].mean()) / math.sqrt(len(group))))
        values, errors = np.array(points).T / (2**DEPTH * math.log(v))
        axes.errorbar(betas, values, errors, color=color, fmt='.-', label=f'v = {v}')
    line = np.linspace(0, max(language.beta for language in languages), 201)
    axes.plot(line, [bound(beta, 2**DEPTH) for beta in line], color=style.BLACK, ls='--', lw=1, label='bound, REM')
    axes.axvline(theory.BETA_FREEZING, color=style.GREY, lw=1, ls=':', label='freezing, beta = 2')
    axes.set_ylim(0, 1.05)
    axes.set_xlabel('beta (inverse temperature)')
    axes.set_ylabel('entropy of a sequence, per token (ln v)')
    axes.set_title(f'sequences of {2**DEPTH} tokens')
    axes.legend()
    return axes


def bound(beta: float, n: int) -> float:
    """The largest entropy per token of n leaves for large v, in units of ln v: `min(1, (1 + (n - 1) s) / n)`.

    s is the entropy of a rule, `theory.rem_entropy`.
    """
    return min(1.0, (1 + (n - 1) * theory.rem_entropy(2, beta) / math.log(2)) / n)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--picture', type=Path, default=Path('results/entropy_against_beta.png'), help='the figure')
    parser.add_argument('--quick', action='store_true', help='small vocabularies and few values of beta, in seconds')
    options = parser.parse_args(arguments)
    sizes, points, seeds, num_samples = ((4, 8), 5, 1, 64) if options.quick else ((8, 32, 128), 17, 3, 512)

    betas = np.linspace(0, 4, points)
    languages = [RLM(v, DEPTH, beta, seed_rules=seed) for v in sizes for beta in betas for seed in range(seeds)]
    left, right = plots.panels(1, 2, size=(11, 4.4))
    plots.rule_entropies(languages, left)
    sequence_entropies(languages, num_samples, right)
    style.save(left.figure, options.picture)
    print(f'the figure is {options.picture}')


if __name__ == '__main__':
    main()
