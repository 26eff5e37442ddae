"""Exact counterfactuals: what the best prediction of x_n would be if a hidden symbol of the tree were another one."""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.exact.inference import node_posteriors
from RLM_clean.exact.propagation import (
    given_left,
    in_chunks,
    likelihoods_of,
    normalised,
    seen_leaves,
    tree_levels,
    upward,
)

Node = tuple[int, int]


def counterfactual_probs(language: TreeGrammar, inputs: Tensor, node: Node, symbols: Tensor) -> Tensor:
    """The best prediction of x_n if a node of the tree had another symbol: `(N, v)` float64.

    For node i of level l, `node = (l, i)`, and `symbols (N,)`, the symbol b of each context,

        P(x_n | node = b, seen tokens),

    where the tokens below the node are left out unless x_n is below it as well: they are what says that the symbol is
    another one. In terms of messages, one-hot at b takes the place of the upward message of the node. `inputs (N, k)`
    are the k tokens before x_n, 1 <= k <= n - 1.

    Raises ValueError for a node that there is not, for x_n itself, for symbols beside which no x_n is possible, for
    other inputs or symbols than these, and for filtered languages.
    """
    evidence = _evidence(language, inputs, node)
    if symbols.shape != inputs.shape[:1]:
        raise ValueError(
            f'symbols of shape {tuple(symbols.shape)} do not fit {len(inputs)} contexts: give one for each'
        )
    _check_symbols('symbols', symbols, language.v)
    one_hot = torch.nn.functional.one_hot(symbols, language.v).double()
    (level, place), levels = node, tree_levels(language, 0, inputs.device)
    prior = language.prior.to(inputs.device)

    def predict(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(likelihoods_of(evidence[rows], language.v)))
        message, l, i = one_hot[rows], level, place
        while l and i < 2**l - 2:  # up to the left sibling of a node above x_n
            sibling = messages[l].values[i ^ 1]
            left, right = (sibling, message) if i & 1 else (message, sibling)
            l, i = l - 1, i // 2
            message = normalised(torch.einsum('abc,rb,rc->ra', levels[l].T, left, right))[0]
        above = i == 2**l - 1
        alpha, start = (message, l) if above else (prior.expand(len(message), -1), 0)
        for depth in range(start, language.L):
            left = message if not above and depth + 1 == l else messages[depth + 1].values[-2]
            alpha = normalised(torch.einsum('ra,rac->rc', alpha, given_left(levels[depth], left)))[0]
        if not (alpha.sum(1) > 0).all():
            raise ValueError(f'symbols of node={node} are impossible beside the seen tokens: draw them from node_law')
        return [alpha]

    return in_chunks(predict, evidence, language.v, 4 * 2**language.L * language.v + language.v**2)[0]


def node_law(language: TreeGrammar, inputs: Tensor, node: Node) -> Tensor:
    """`P(node = b | seen tokens)`, those below the node left out unless x_n is below it as well: `(N, v)` float64.

    These are the symbols that the rest of the sequence allows, for `counterfactual_probs`, with errors as there.
    """
    return node_posteriors(language, _evidence(language, inputs, node))[node[0]][:, node[1]]


def _evidence(language: TreeGrammar, inputs: Tensor, node: Node) -> Tensor:
    """What is seen beside the node, as tokens at the leaves `(N, n)`, -1 where nothing is."""
    (level, place), n = node, 2**language.L
    if isinstance(language, FilteredGrammar):
        raise ValueError('a filtered language has no symbols between its root and its heads: use its `.original`')
    if not (0 <= level <= language.L and 0 <= place < 2**level) or node == (language.L, n - 1):
        raise ValueError(f'node={node} is not a node beside x_n: use (l, i) with l from 0 to {language.L}, i < 2^l')
    if inputs.dim() != 2 or not 1 <= inputs.shape[1] < n:
        raise ValueError(
            f'inputs of shape {tuple(inputs.shape)}: give (N, k), the k tokens before x_n, 1 <= k <= {n - 1}'
        )
    _check_symbols('inputs', inputs, language.v)
    evidence = torch.full((len(inputs), n), -1, dtype=torch.int64, device=inputs.device)
    evidence[:, n - 1 - inputs.shape[1] : n - 1] = inputs
    if place < 2**level - 1:
        width = n >> level
        evidence[:, place * width : (place + 1) * width] = -1
    return evidence


def _check_symbols(name: str, symbols: Tensor, v: int) -> None:
    if symbols.numel() and not 0 <= symbols.min() <= symbols.max() < v:
        raise ValueError(f'{name} from {symbols.min()} to {symbols.max()} are no symbols of v={v}: use 0 to {v - 1}')
