"""Posteriors of the leaves given what is seen within their own sub-tree, by belief propagation in sub-trees.

Sub-trees of height l hold 2^l leaves each. The root of a sub-tree has the law of its node in the whole tree, so that
the rest of the sequence is unseen, not absent. At l = L the sub-tree is the tree, and the posterior is the one given
everything; at l = 0 it is the one given what is seen of the leaf itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.exact import filtered_tree
from RLM_clean.exact.correlations import level_marginals
from RLM_clean.exact.propagation import (
    check_possible,
    children_outside,
    in_chunks,
    level_posteriors,
    normalised,
    seen_leaves,
    tree_levels,
    upward,
)


def subtree_posteriors(language: TreeGrammar, likelihoods: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """`P(x_i = a | evidence in the sub-tree of height l that holds leaf i)`, `(B, n, v)`, and `ln P(evidence)` there.

    `likelihoods (B, n, v)` float64 are `P(what is seen of leaf i | x_i = a)`: one-hot at a known leaf, all ones at a
    hidden one. The logarithms `(B, 2^(L - l))`, in nats, are those of each sub-tree. Raises ValueError for shapes and a
    height that do not fit, and for evidence of probability zero.
    """
    L, v = language.L, language.v
    if likelihoods.shape[1:] != (2**L, v):
        raise ValueError(
            f'likelihoods of shape {tuple(likelihoods.shape)}: for a tree of {2**L} leaves give (B, {2**L}, {v})'
        )
    if not 0 <= height <= L:
        raise ValueError(f'height={height} is not that of a sub-tree: use 0 to {L}')
    if isinstance(language, FilteredGrammar) and height > language.k:
        return filtered_tree.block_posteriors(language, likelihoods, height)
    levels = tree_levels(language, L - height, likelihoods.device)
    laws = level_marginals(language)[L - height].to(likelihoods.device)  # (2^(L - l), v)

    def posteriors(rows: slice) -> list[Tensor]:
        # One row for each sub-tree: those of the first sequence from left to right, then those of the second, ...
        sequences = likelihoods[rows]
        evidence, log_norms = normalised(sequences.reshape(-1, 2**height, v))
        messages, log_scale = upward(levels, seen_leaves(evidence))
        law = laws.repeat(len(sequences), 1)
        alpha = law[None]
        for depth, level in enumerate(levels, 1):
            u = messages[depth].values
            alpha = children_outside(level, alpha, u[::2], u[1::2])
        log_probs = log_norms.sum(1) + log_scale + (messages[0].values[0] * law).sum(1).log()
        log_probs = log_probs.view(len(sequences), -1)
        check_possible((log_probs > -torch.inf).all(1), rows)
        found = level_posteriors(alpha, messages[-1].values).transpose(0, 1)
        return [found.reshape(sequences.shape), log_probs]

    found, log_probs = in_chunks(posteriors, likelihoods, v, 2 * 2**L * v)
    return found, log_probs
