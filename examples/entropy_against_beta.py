"""The Random Language Model through its freezing point: `python -m examples.entropy_against_beta`.

Draws the entropy of a rule and the entropy per token of a sequence against beta, for several v, with the closed form of
the random energy model (REM): for large v the entropy of a rule is (2 - beta^2 / 2) ln v, at most 2 ln v, and the rule
freezes at beta = 2 (B. Derrida, Phys. Rev. B 24, 2613, 1981; E. DeGiuli, Phys. Rev. Lett. 122, 128301, 2019).
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

# With four levels, the entropy of the root adds at most ln v / 16 per token.
DEPTH = 4


@style.styled
def sequence_entropies(languages: Sequence[RLM], num_samples: int, axes: Axes | None = None) -> Axes:
    """The entropy of a sequence per token, in units of ln v, against beta: means over the grammars of one v and beta.

    Error bars are standard errors, which combine those of the samples and that of the mean over grammars. Dashed is the
    bound of the REM for large v: the tokens have at most the entropy of the tree, ln v for the root and the entropy of
    a rule for each of the n - 1 nodes, and each token has at most ln v.
    """
    axes = style.own_axes(axes)
    sizes = sorted({language.v for language in languages})
    for v, color in zip(sizes, style.line_colors(len(sizes)), strict=True):
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

    Here s is the entropy of a rule, `theory.rem_entropy`, in the same units.
    """
    return min(1.0, (1 + (n - 1) * theory.rem_entropy(2, beta) / math.log(2)) / n)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--picture', type=Path, default=Path('results/entropy_against_beta.png'), help='the figure')
    parser.add_argument('--quick', action='store_true', help='small vocabularies and few values of beta, takes seconds')
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
