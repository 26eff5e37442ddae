"""A sequence and the tree above it, with what the context says of each hidden symbol: `python -m examples.tree`.

Draws one tree of a Random Language Model (v = 4, L = 3). The last token is hidden, as it is from a model; bars are the
exact posteriors of all hidden symbols given the seven tokens before it, by belief propagation. The bars of the last
token are the best possible prediction.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from RLM_clean.datasets import RLM, TreeGrammar
from RLM_clean.exact.inference import node_posteriors
from RLM_clean.plots import style

V, DEPTH, BETA, SEED, NUMBER = 4, 3, 2.0, 4, 10
COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)
# In units of the distance between two tokens.
RADIUS, BAR, TALLEST = 0.17, 0.1, 0.42


@style.styled
def explained_tree(grammar: TreeGrammar, levels: Sequence[Tensor], axes: Axes | None = None) -> Axes:
    """A tree with its symbols, and bars beside all that is hidden: its posterior given all tokens but the last one.

    `levels[l]` holds the 2^l symbols of level l, 0 the root. The full bar is that of the true symbol.
    """
    axes = style.own_axes(axes, (11, 4.9))
    depth, n = grammar.L, 2**grammar.L
    symbols = [level.flatten().tolist() for level in levels]
    evidence = torch.tensor([[*symbols[-1][:-1], -1]])
    posteriors = [posterior[0].tolist() for posterior in node_posteriors(grammar, evidence)]
    for level in range(depth + 1):
        for i, symbol in enumerate(symbols[level]):
            x, y = place(depth, level, i)
            if level < depth:
                for child in (2 * i, 2 * i + 1):
                    below = place(depth, level + 1, child)
                    axes.plot([x, below[0]], [y, below[1]], color='#AAAAAA', lw=1.2, zorder=1)
            hidden = level < depth or i == n - 1
            _symbol(axes, x, y, symbol, hidden)
            if hidden:
                lower = RADIUS if level else 0.07  # clear of the edge to the parent, or of that to a child of the root
                _bars(axes, x + RADIUS + 0.08, y - lower, posteriors[level][i], symbol)
    _names(axes, grammar, symbols)
    axes.set_xlim(-1.15, n + 0.85)
    axes.set_ylim(-0.75, depth + 0.45)
    axes.set_aspect('equal')
    axes.set_axis_off()
    return axes


def place(depth: int, level: int, i: int) -> tuple[float, float]:
    """Where node i of a level is: above the middle of its leaves, which are at 1, 2, ..., and the root at the top."""
    width = 2 ** (depth - level)
    return i * width + (width + 1) / 2, float(depth - level)


def _symbol(axes: Axes, x: float, y: float, symbol: int, hidden: bool) -> None:
    face = 'white' if hidden else COLORS[symbol]
    axes.add_patch(Circle((x, y), RADIUS, facecolor=face, edgecolor=COLORS[symbol], lw=2, zorder=2))
    color = COLORS[symbol] if hidden else 'white'
    axes.text(x, y, str(symbol), ha='center', va='center', color=color, fontsize=12, fontweight='bold', zorder=3)


def _bars(axes: Axes, x: float, y: float, posterior: Sequence[float], symbol: int) -> None:
    """The probability of each symbol as a bar, with that of the true one as a number above it."""
    for a, p in enumerate(posterior):
        alpha = 1.0 if a == symbol else 0.3
        bar = Rectangle((x + a * BAR, y), 0.8 * BAR, p * TALLEST, facecolor=COLORS[a], alpha=alpha, lw=0, zorder=3)
        axes.add_patch(bar)
    axes.plot([x - 0.02, x + len(posterior) * BAR], [y, y], color=style.GREY, lw=0.8, zorder=3)
    true = posterior[symbol]
    axes.text(x + (symbol + 0.4) * BAR, y + true * TALLEST + 0.03, f'{true:.2f}', ha='center', fontsize=8, zorder=3)


def _names(axes: Axes, grammar: TreeGrammar, symbols: list[list[int]]) -> None:
    """What a newcomer needs to know, in words."""
    n, depth = len(symbols[-1]), grammar.L
    for level in range(depth + 1):
        name = {0: 'root', depth: 'leaves:\nthe sequence'}.get(level, f'level {level}')
        axes.text(-1.1, depth - level, name, va='center', fontsize=10, color=style.GREY)
    a, b, c = symbols[-2][-1], *symbols[-1][-2:]
    p = grammar.level_rules(depth - 1)[a, b, c]
    rule = f'a random rule replaces each symbol by a pair:\n{a} becomes ({b}, {c}) with probability {p:.2f}'
    axes.text(0.35, depth + 0.05, rule, va='center', fontsize=9.5, color=style.GREY)
    bars = (
        'bars: how likely each symbol is, given\nthe context (exact, by belief propagation);\n'
        'number: that of the true symbol'
    )
    axes.text(6.15, depth, bars, va='center', fontsize=9.5, color=style.GREY)
    for first, last, text in ((1, n - 1, 'context: what the model sees'), (n, n, 'target: what it predicts')):
        axes.plot([first - 0.3, last + 0.3], [-0.36, -0.36], color=style.GREY, lw=1.2)
        axes.text((first + last) / 2, -0.6, text, ha='center', va='center', fontsize=10.5, color='#333333')


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--picture', type=Path, default=Path('results/tree.png'), help='the figure')
    options = parser.parse_args(arguments)
    language = RLM(V, DEPTH, BETA, seed_rules=SEED)
    axes = explained_tree(language, language.trees(NUMBER, 1))
    style.save(axes.get_figure(), options.picture)  # type: ignore[arg-type]
    print(f'the figure is {options.picture}')


if __name__ == '__main__':
    main()
