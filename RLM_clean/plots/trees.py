"""The figures of single trees and sequences: symbols, exact posteriors, ambiguity by level, token strips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.inference import ancestor_posteriors
from RLM_clean.plots.rules import language_names
from RLM_clean.plots.style import BLUE, GREY, line_colors, own_axes, styled

# Nodes and their labels are drawn smaller in trees with more leaves.
_LEAVES_AT_FULL_SIZE = 8


@styled
def tree(levels: Sequence[Tensor], axes: Axes | None = None) -> Axes:
    """A tree with its symbols: `levels[l]` holds the 2^l symbols of level l, 0 the root, the last one the tokens.

    Raises ValueError for other numbers of symbols, as those of filtered languages, whose trees lack some levels.
    """
    _check_levels(levels)
    axes = own_axes(axes)
    symbols = [level.flatten().tolist() for level in levels]
    _edges(axes, len(symbols) - 1)
    for level, row in enumerate(symbols):
        color = '#DCEBF5' if level == len(symbols) - 1 else 'white'
        for place, symbol in zip(_places(len(symbols) - 1, level), row, strict=True):
            _node(axes, len(symbols) - 1, place, level, str(symbol), color)
    axes.set_title('symbols, as drawn')
    return axes


@styled
def posterior_tree(language: TreeGrammar, levels: Sequence[Tensor], axes: Axes | None = None) -> Axes:
    """The same tree as inferred from its leaves: nodes coloured by the entropy (nats) of their exact posterior.

    Each node shows the true symbol, and below it the posterior probability of that symbol given all leaves. A ring
    marks the nodes whose most probable symbol is not the true one. Raises ValueError as `tree` does.
    """
    _check_levels(levels)
    axes = own_axes(axes)
    leaves = levels[-1].reshape(1, -1)
    posteriors = [posterior[0].cpu() for posterior in ancestor_posteriors(language, leaves)]
    colors = ScalarMappable(Normalize(0, math.log(language.v)), 'YlOrBr')
    _edges(axes, language.L)
    for level, posterior in enumerate(posteriors):
        entropies = torch.special.entr(posterior).sum(1)
        nodes = zip(_places(language.L, level), levels[level].flatten().tolist(), posterior, entropies, strict=True)
        for place, symbol, p, entropy in nodes:
            wrong = level < language.L and int(p.argmax()) != symbol
            _node(axes, language.L, place, level, str(symbol), colors.to_rgba(entropy.item()), ring=wrong)
            if level < language.L:
                axes.annotate(
                    f'{p[symbol]:.2f}', (place, level), (0, -_size(language.L) - 7), textcoords='offset points',
                    ha='center', va='center', fontsize=8, color=GREY,
                    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5},
                )  # fmt: skip
    axes.figure.colorbar(colors, ax=axes, label='entropy of the posterior (nats)', aspect=30, pad=0.02)
    axes.set_title('posterior of the true symbol; ring: another symbol is likelier')
    return axes


def _check_levels(levels: Sequence[Tensor]) -> None:
    """Raises ValueError for a tree that is not whole."""
    for level, symbols in enumerate(levels):
        if symbols.numel() != 2**level:
            raise ValueError(
                f'levels[{level}] holds {symbols.numel()} symbols, not {2**level}: give the tree of one sequence with '
                'all its levels (a filtered language has none; its `.original` has)'
            )


def _places(L: int, level: int) -> Any:
    """The horizontal positions of the nodes of a level, in tokens from 1: each above the middle of its leaves."""
    width = 2 ** (L - level)
    return np.arange(2**level) * width + (width + 1) / 2


def _edges(axes: Axes, L: int) -> None:
    for level in range(L):
        for parent, children in zip(_places(L, level), _places(L, level + 1).reshape(-1, 2), strict=True):
            for child in children:
                axes.plot([parent, child], [level, level + 1], color='#AAAAAA', lw=1.2, zorder=1)
    axes.set_ylim(L + 0.45, -0.45)
    axes.set_xlim(0.4, 2**L + 0.6)
    axes.set_yticks(range(L + 1))
    axes.set_xticks(range(1, 2**L + 1))
    axes.grid(False)
    axes.set_xlabel('position of the token')
    axes.set_ylabel('level (0: root)')


def _size(L: int) -> float:
    """The radius of a node in points."""
    return 11 * min(1.0, _LEAVES_AT_FULL_SIZE / 2**L) ** 0.45


def _node(axes: Axes, L: int, place: float, level: int, text: str, color: Any, ring: bool = False) -> None:
    edge, width = (BLUE, 2.6) if ring else (GREY, 0.9)
    axes.plot(
        [place], [level], 'o', ms=2 * _size(L), markerfacecolor=color, markeredgecolor=edge, markeredgewidth=width
    )
    _letters(axes, place, level, text, color, max(5, 0.9 * _size(L)))


def _letters(axes: Axes, x: float, y: float, text: str, background: Any, size: float) -> None:
    """Writes a text in the middle of a coloured field, in black or white, whichever has more contrast."""
    red, green, blue = matplotlib.colors.to_rgb(background)
    color = 'black' if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else 'white'
    axes.text(x, y, text, ha='center', va='center', color=color, fontsize=size, zorder=3)


@styled
def ambiguity_by_level(languages: Sequence[TreeGrammar], num_samples: int = 512, axes: Axes | None = None) -> Axes:
    """The ambiguity of each level: the mean entropy (nats) of a node's exact posterior given the leaves.

    The mean runs over the nodes of the first `num_samples` sequences of the stream 'floors' of each language. Error
    bars are standard errors over sequences. It is zero if every sequence determines the symbols of the level.
    """
    axes = own_axes(axes)
    names, colors = language_names(languages), line_colors(len(languages))
    for language, name, color in zip(languages, names, colors, strict=True):
        posteriors = ancestor_posteriors(language, language.sequences(0, num_samples, 'floors'))[:-1]
        means = [torch.special.entr(posterior).sum(-1).mean(1) for posterior in posteriors]
        values = [mean.mean().item() for mean in means]
        errors = [mean.std().item() / math.sqrt(num_samples) for mean in means]
        levels = getattr(language, 'levels', range(language.L + 1))[:-1]  # a filtered language lacks some
        axes.errorbar(levels, values, errors, color=color, marker='o', label=name)
    axes.set_xticks(range(max(language.L for language in languages)))
    axes.set_xlabel('level (0: root)')
    axes.set_ylabel('entropy of a symbol given the tokens (nats)')
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return axes


@styled
def token_strips(sequences: Tensor, v: int, title: str = '', axes: Axes | None = None) -> Axes:
    """Sequences `(N, 2^L)` as rows of tokens, each with its number and the colour of its symbol.

    The gap between two neighbours is wider the higher their lowest common ancestor is in the tree.
    """
    axes = own_axes(axes, (8, 0.7 + 0.32 * len(sequences)))
    n = sequences.shape[1]
    gaps = [0.0, *(0.18 * math.log2(i & -i) for i in range(1, n))]
    left = np.arange(n) + np.cumsum(gaps)
    colors = matplotlib.colormaps['viridis'](np.linspace(0, 1, v))
    for row, sequence in enumerate(sequences.tolist()):
        for x, symbol in zip(left, sequence, strict=True):
            axes.add_patch(Rectangle((x + 0.04, row - 0.42), 0.92, 0.84, facecolor=colors[symbol], lw=0))
            _letters(axes, x + 0.5, row, str(symbol), colors[symbol], 8)
    axes.set_xlim(-0.1, left[-1] + 1.1)
    axes.set_ylim(len(sequences) - 0.5, -0.5)
    axes.set_xticks(left + 0.5, [str(i + 1) for i in range(n)])
    axes.set_yticks(range(len(sequences)))
    axes.grid(False)
    axes.set_xlabel('position of the token')
    axes.set_ylabel('sequence')
    axes.set_title(title)
    return axes
