"""The figures of a grammar's rules: heat maps, ranked probabilities, entropy and participation against beta.

`rule_maps` returns its figure; the functions of one panel return their axes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from RLM_clean.datasets import RHM, RLM, FilteredGrammar, TreeGrammar, Unambiguous
from RLM_clean.exact import entropies, theory
from RLM_clean.plots.style import BLACK, GREY, line_colors, own_axes, panels, shades, styled

# Smaller probabilities have the lowest colour in heat maps.
_LEAST = 1e-5


def language_name(language: TreeGrammar, sizes: bool = False) -> str:
    """The language and its parameter, 'RLM, beta = 2' or 'RHM, m = 4', with v and L if `sizes` is true.

    A filtered language has the height of its sub-trees, 'RHM, m = 4, filtered to k = 1'. Other grammars, such as those
    of registered datasets, are called 'own rules'.
    """
    if isinstance(language, FilteredGrammar):
        return f'{language_name(language.original, sizes)}, filtered to k = {language.k}'
    if isinstance(language, RHM):
        words = ['RHM', f'm = {language.m}']
        if language.zipf is not None:
            words.append(f'Zipf a = {language.zipf:g} at {", ".join(map(str, language.zipf_levels))}')
    elif isinstance(language, RLM):
        words = ['RLM', f'beta = {language.beta:g}']
    elif isinstance(language, Unambiguous):
        words = ['unambiguous', f'sigma = {language.sigma:g}']
    else:
        words = ['own rules']
    if sizes:
        words[1:1] = [f'v = {language.v}', f'L = {language.L}']
    return ', '.join(words)


def language_names(languages: Sequence[TreeGrammar]) -> list[str]:
    """The names of several languages: with v and L where languages of different sizes have the same name."""
    short, full = ([language_name(language, sizes) for language in languages] for sizes in (False, True))
    different = Counter(name for name, _ in set(zip(short, full, strict=True)))
    return [b if different[a] > 1 else a for a, b in zip(short, full, strict=True)]


@styled
def rule_maps(language: TreeGrammar, symbols: Iterable[int] | None = None, level: int = 0, axes: Any = None) -> Figure:
    """Heat maps of `T[a, b, c]` over the pairs of children (b, c), as a figure with one panel for each a of `symbols`.

    These are the first four symbols by default. Colours are logarithmic and the same in all panels. Probabilities below
    1e-5, zero included, have the lowest colour. `level` counts from the root. If `axes` are given, there must be one
    for each symbol.
    """
    symbols = list(range(min(4, language.v)) if symbols is None else symbols)
    if axes is None:
        axes = panels(1, len(symbols), size=(1 + 2.5 * len(symbols), 2.9), squeeze=False, sharey=True)[0]
    axes = np.ravel(axes)
    rules = language.level_rules(level)
    name = f'{language_name(language)}: '
    for panel, a in zip(axes, symbols, strict=True):
        values = rules[a].clamp(min=_LEAST)
        # Cells fill their panel: constrained layout cuts the labels of panels of a fixed aspect.
        image = panel.imshow(values, norm=LogNorm(_LEAST, 1), origin='lower', interpolation='none', aspect='auto')
        panel.grid(False)
        panel.set_title(f'{name}a = {a}')
        panel.set_xlabel('right child c')
        panel.set_ylabel('left child b')
        panel.label_outer()
        name = ''  # only the first panel has it
    bar = axes[0].figure.colorbar(image, ax=list(axes), extend='min', aspect=15, pad=0.02)
    bar.set_label('probability T[a, b, c]')
    return axes[0].figure


@styled
def ranked_rules(languages: Sequence[RLM], axes: Axes | None = None) -> Axes:
    """The probabilities of pairs of children from the largest to the smallest, averaged over parents (log axes)."""
    axes = own_axes(axes)
    for language, color in zip(languages, shades(len(languages)), strict=True):
        ranked = language.level_rules(0).flatten(1).sort(1, descending=True).values.mean(0).numpy()
        rank = np.arange(1, len(ranked) + 1)
        axes.loglog(rank, ranked, color=color, label=f'beta = {language.beta:g}')
    axes.set_ylim(1e-7, 1.5)
    axes.set_xlabel('rank of the pair (b, c)')
    axes.set_ylabel('mean probability T[a, b, c]')
    axes.legend()
    return axes


@styled
def rule_entropies(languages: Sequence[RLM], axes: Axes | None = None) -> Axes:
    """The entropy of a rule against beta, as a fraction of 2 ln v, its value at beta = 0.

    Points are means over the rules of the given grammars of one v and beta, with their standard errors. Lines are the
    exact means over all grammars. Dashed: the random energy model (REM), the limit of large v, which freezes at
    beta = 2.
    """
    axes = _against_beta(
        languages, own_axes(axes), entropies.rule_entropy, theory.mean_rule_entropy, lambda v: 2 * math.log(v)
    )
    betas = np.array([0, *np.linspace(0, 2, 50), max(2, _largest(languages))])
    limit = [theory.rem_entropy(2, beta) / (2 * math.log(2)) for beta in betas]
    axes.plot(betas, limit, color=BLACK, ls='--', lw=1, label='v to infinity (REM)')
    axes.set_ylabel('entropy of a rule (2 ln v)')
    axes.legend()
    return axes


@styled
def rule_participation(languages: Sequence[RLM], axes: Axes | None = None) -> Axes:
    """The participation ratio `sum_bc M[a, b, c]^2` against beta: the probability that two draws of a rule agree.

    Points, lines and the dashed limit are those of `rule_entropies`.
    """
    axes = _against_beta(
        languages,
        own_axes(axes),
        entropies.participation_ratio,
        theory.mean_participation_ratio,
        lambda v: 1.0,
    )
    betas = np.linspace(0, _largest(languages), 100)
    limit = [theory.rem_participation_ratio(beta) for beta in betas]
    axes.plot(betas, limit, color=BLACK, ls='--', lw=1, label='v to infinity (REM)')
    axes.set_ylabel('participation ratio (probability)')
    axes.legend()
    return axes


def _largest(languages: Sequence[RLM]) -> float:
    return max(language.beta for language in languages)


def _against_beta(
    languages: Sequence[RLM],
    axes: Axes,
    measure: Callable[[torch.Tensor], torch.Tensor],
    mean: Callable[[int, float], float],
    unit: Callable[[int], float],
) -> Axes:
    """Draws a number of each rule against beta: points with errors, and the mean over all grammars by quadrature."""
    sizes = sorted({language.v for language in languages})
    for v, color in zip(sizes, line_colors(len(sizes)), strict=True):
        chosen = [language for language in languages if language.v == v]
        betas = sorted({language.beta for language in chosen})
        values = [torch.cat([measure(one.rules[0]) for one in chosen if one.beta == beta]) for beta in betas]
        means = [value.mean().item() / unit(v) for value in values]
        errors = [value.std().item() / math.sqrt(len(value)) / unit(v) for value in values]
        axes.errorbar(betas, means, errors, color=color, fmt='o')
        line = np.linspace(0, _largest(languages), 25)
        axes.plot(line, [mean(v, beta) / unit(v) for beta in line], color=color, label=f'v = {v}')
    axes.axvline(theory.BETA_FREEZING, color=GREY, lw=1, ls=':', label='freezing, beta = 2')
    axes.set_xlabel('beta (inverse temperature)')
    axes.set_title('points: sampled rules; lines: mean over all grammars')
    return axes
