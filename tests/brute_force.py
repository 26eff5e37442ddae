"""The language by brute force, for tests: every sequence, or every tree, of a small grammar with its probability.

It shares only the rules with exact/inference.py. `all_trees` is literal; `joint` reaches larger sizes by a
recursion over tables of all sequences, and test_inference.py proves it against `all_trees`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar


def all_trees(grammar: TreeGrammar) -> tuple[list[Tensor], Tensor]:
    """Every assignment of symbols to the N = v^(2^(L+1) - 1) trees: for each level `(N, 2^l)`, and `P(tree) (N,)`."""
    v, L = grammar.v, grammar.L
    digits = v ** torch.arange(2 ** (L + 1) - 1)
    symbols = torch.arange(v ** len(digits))[:, None] // digits % v
    levels = [symbols[:, 2**depth - 1 : 2 ** (depth + 1) - 1] for depth in range(L + 1)]
    probs = grammar.prior[levels[0][:, 0]]
    for depth in range(L):
        T = grammar.level_rules(depth)
        for i in range(2**depth):
            probs = probs * T[levels[depth][:, i], levels[depth + 1][:, 2 * i], levels[depth + 1][:, 2 * i + 1]]
    return levels, probs


def joint(grammar: TreeGrammar, pinned: tuple[int, int, int] | None = None) -> Tensor:
    """P(x_0, .., x_{n-1}) as a table of n axes of size v; with `pinned=(l, i, a)` P(x_0.., node i of level l = a)."""

    def below(depth: int, node: int) -> Tensor:
        """P(leaves below | symbol of the node), `(v, number of words)`, zero for symbols that the pin excludes."""
        if depth == grammar.L:
            table = torch.eye(grammar.v, dtype=torch.float64)
        else:
            left, right = below(depth + 1, 2 * node), below(depth + 1, 2 * node + 1)
            table = torch.einsum('abc,bx,cy->axy', grammar.level_rules(depth), left, right).flatten(1)
        if pinned is not None and pinned[:2] == (depth, node):
            table = torch.where(torch.arange(grammar.v)[:, None] == pinned[2], table, 0.0)
        return table

    return (grammar.prior @ below(0, 0)).view([grammar.v] * 2**grammar.L)


def last_given(table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """From P of all sequences: every context of k last tokens that occurs, `(N, k)`, and P(x_n | context), `(N, v)`."""
    v, n = table.shape[0], table.dim()
    marginal = table.reshape(-1, v**k, v).sum(0)
    occurs = marginal.sum(1).nonzero()[:, 0]
    contexts = occurs[:, None] // v ** torch.arange(k - 1, -1, -1) % v
    assert 0 <= k < n
    return contexts, marginal[occurs] / marginal[occurs].sum(1, keepdim=True)


def next_given(table: Tensor, leaves: Tensor) -> Tensor:
    """From P of all sequences: P(x_i | x_0..x_{i-1}) at every position of the given sequences, `(B, n, v)`."""
    v, n = table.shape[0], table.dim()
    found = []
    for i in range(n):
        prefix = (leaves[:, :i] * v ** torch.arange(i - 1, -1, -1)).sum(1)
        rows = table.reshape(v**i, v, -1).sum(2)[prefix]
        found.append(rows / rows.sum(1, keepdim=True))
    return torch.stack(found, 1)


def occurring(table: Tensor, at_most: int) -> tuple[Tensor, Tensor]:
    """Sequences of positive probability, spread evenly over all of them, `(B, n)`, and their probabilities `(B,)`."""
    leaves = table.nonzero()
    leaves = leaves[:: 1 + len(leaves) // at_most]
    return leaves, table[tuple(leaves.T)]


def direct_entropy(probs: Tensor) -> float:
    return -sum(p * math.log(p) for p in probs.flatten().tolist() if p > 0)


def window_table(grammar: TreeGrammar, m: int) -> Tensor:
    """P of the last m tokens, `(v^m,)`, from the enumeration."""
    return joint(grammar).reshape(-1, grammar.v**m).sum(0)


def direct_window_entropy(grammar: TreeGrammar, k: int) -> float:
    return direct_entropy(window_table(grammar, k + 1)) - direct_entropy(
        window_table(grammar, k + 1).view(-1, grammar.v).sum(1)
    )
