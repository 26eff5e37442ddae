"""Filtered languages by brute force, for tests: the process that draws them, written down without exact/ and datasets/.

It shares with the library only the rules and the prior of the original language. `all_filtered_trees` is literal;
`filtered_joint` reaches larger sizes by tables of all sequences, and test_filtered_tree.py proves one by the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar


def law_given_root(original: TreeGrammar, level: int, node: int) -> Tensor:
    """P(node = b | root = a) in the original tree, `(v, v)`, along the path from the root."""
    law = torch.eye(original.v, dtype=torch.float64)
    for depth in range(level):
        to_right = node >> (level - 1 - depth) & 1
        law = torch.einsum('ra,abc->rc' if to_right else 'ra,abc->rb', law, original.level_rules(depth))
    return law


def levels_of(original: TreeGrammar, k: int) -> list[int]:
    """The levels that a tree filtered to height k < L has."""
    return [0, *range(original.L - k, original.L + 1)]


def number_of_trees(original: TreeGrammar, k: int) -> float:
    return math.pow(original.v, sum(2**level for level in levels_of(original, k)))


def all_filtered_trees(original: TreeGrammar, k: int) -> tuple[list[Tensor], Tensor]:
    """Every assignment of symbols to the N filtered trees: for each of its levels `(N, 2^l)`, and `P(tree) (N,)`."""
    v, top = original.v, original.L - k
    sizes = [2**level for level in levels_of(original, k)]
    symbols = torch.arange(v ** sum(sizes))[:, None] // v ** torch.arange(sum(sizes)) % v
    levels = list(symbols.split(sizes, dim=1))
    probs = original.prior[levels[0][:, 0]]
    for j in range(2**top):
        probs = probs * law_given_root(original, top, j)[levels[0][:, 0], levels[1][:, j]]
    for depth in range(top, original.L):
        parents, children = levels[1 + depth - top], levels[2 + depth - top]
        for i in range(2**depth):
            T = original.level_rules(depth)
            probs = probs * T[parents[:, i], children[:, 2 * i], children[:, 2 * i + 1]]
    return levels, probs


def filtered_joint(original: TreeGrammar, k: int, pinned: tuple[int, int, int] | None = None) -> Tensor:
    """P(x_0, .., x_{n-1}), n axes of size v; with `pinned=(l, i, a)` P(x_0.., node i of level l = a)."""
    v, top = original.v, original.L - k

    def pin(depth: int, node: int, table: Tensor) -> Tensor:
        if pinned is None or pinned[:2] != (depth, node):
            return table
        return torch.where(torch.arange(v)[:, None] == pinned[2], table, 0.0)

    def below(depth: int, node: int) -> Tensor:
        if depth == original.L:
            return pin(depth, node, torch.eye(v, dtype=torch.float64))
        left, right = below(depth + 1, 2 * node), below(depth + 1, 2 * node + 1)
        table = torch.einsum('abc,bx,cy->axy', original.level_rules(depth), left, right).flatten(1)
        return pin(depth, node, table)

    table = pin(0, 0, torch.ones(v, 1, dtype=torch.float64))
    for j in range(2**top):
        given_root = law_given_root(original, top, j) @ below(top, j)
        table = (table[:, :, None] * given_root[:, None]).flatten(1)
    return (original.prior @ table).view([v] * 2**original.L)
