"""The laws of one and of two tokens of a language, exact: marginals, joints, covariances and mutual information.

Given its ancestor, a token is independent of the rest of the tree. So the law of one token is a product of transition
matrices along its path, and the law of two tokens is that of the children of their lowest common ancestor, with one
such product on either side: `T` is the rule tensor of a level, `P_L[a, b] = sum_c T[a, b, c]` leads to the left child
and `P_R[a, c] = sum_b T[a, b, c]` to the right one. All numbers are float64, on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.streams import random_words, stream_key

# Entries of float64 temporaries at a time: pairs of tokens go through in blocks of this size.
_ENTRIES_PER_BLOCK = 2**22
# Entries of the products of transition matrices that pairs of tokens share (8 bytes each).
_PATH_ENTRIES = 2**24


# ---------------------------------------------------------------------- one token


def level_marginals(grammar: TreeGrammar) -> list[Tensor]:
    """For each level l = 0 (the root) to L the laws of its symbols, `(2^l, v)`: `P(x_k = a)` of node k, left to right.

    `p_{2k} = p_k P_L`, `p_{2k+1} = p_k P_R`, from the prior down.
    """
    return _laws(grammar, transitions(grammar))


def leaf_marginals(grammar: TreeGrammar) -> Tensor:
    """`P(x_i = a)` for every token i, `(2^L, v)`."""
    return level_marginals(grammar)[-1]


def transitions(grammar: TreeGrammar) -> list[tuple[Tensor, Tensor]]:
    """`(P_L, P_R)` of each level, two matrices `(v, v)` from a node to its left and to its right child."""
    return [grammar.transitions(level) for level in range(grammar.L)]


# ---------------------------------------------------------------------- two tokens


def children_law(grammar: TreeGrammar, level: int, law: Tensor) -> Tensor:
    """`Q[b, c] = sum_a p[a] T[a, b, c]`, `(v, v)`: the law of the children of a node of a level whose law is p `(v,)`.

    The rules are read in blocks: no float64 copy of them is made.
    """
    pair = torch.zeros(grammar.v**2, dtype=torch.float64)
    for parents, block in grammar.blocks(level):
        pair += law[parents] @ block.flatten(1)
    return pair.view(grammar.v, grammar.v)


def joint(grammar: TreeGrammar, i: int, j: int) -> Tensor:
    """`P(x_i = a, x_j = b)`, `(v, v)`: diagonal for i = j, and the transpose of `joint(grammar, j, i)`.

    With p the law of the lowest common ancestor, `Q[b, c] = sum_a p[a] T[a, b, c]` that of its children, and A, B the
    products of transition matrices from these children to the two tokens: `P = A^T Q B`.

    Raises ValueError for positions outside 0..2^L - 1.
    """
    for position in (i, j):
        _check_position(position, 2**grammar.L)
    if i > j:
        return joint(grammar, j, i).T
    steps = transitions(grammar)
    laws = _laws(grammar, steps)
    if i == j:
        return torch.diag(laws[-1][i])
    height = (i ^ j).bit_length()
    top = grammar.L - height
    pair = children_law(grammar, top, laws[top][i >> height])
    for level in range(top + 1, grammar.L):
        # The bits of a position, from the highest, are the turns of its path: left (0) or right (1).
        below = grammar.L - 1 - level
        pair = steps[level][i >> below & 1].T @ pair @ steps[level][j >> below & 1]
    return pair


def covariance(grammar: TreeGrammar, i: int, j: int) -> Tensor:
    """`C[a, b] = P(x_i = a, x_j = b) - P(x_i = a) P(x_j = b)`, `(v, v)`; its rows and columns sum to zero.

    Raises ValueError for positions outside 0..2^L - 1.
    """
    pair = joint(grammar, i, j)
    return pair - pair.sum(1, keepdim=True) * pair.sum(0)


def mutual_information(grammar: TreeGrammar, i: int, j: int) -> float:
    """`I(x_i; x_j) = sum_ab P(a, b) ln(P(a, b) / (P(a) P(b)))` in nats; the entropy of the token for i = j.

    Raises ValueError for positions outside 0..2^L - 1.
    """
    return _information(joint(grammar, i, j)).item()


def mutual_information_by_distance(grammar: TreeGrammar, max_pairs: int = 2**12) -> Tensor:
    """Mean mutual information of two tokens at each tree distance, `(L,)` in nats: entry h - 1 is for height h.

    The height h = 1..L is that of the lowest common ancestor above the tokens. There are 2^(L + h - 2) pairs of height
    h: the mean is over all of them if there are at most `max_pairs` (every height of sequences up to 128 tokens by
    default), and otherwise over `max_pairs` of them, drawn uniformly with replacement from a random stream that the
    height and the grammar's `seed_samples` own. Each pair is exact and costs two products of `(v, v)` matrices, and two
    more for each level above the lowest ones: the products of transition matrices below a node are shared by all pairs
    as far as 2^24 numbers hold them (10 levels for v = 128, 6 for v = 512).

    Raises ValueError for max_pairs below 1.
    """
    if max_pairs < 1:
        raise ValueError(f'max_pairs={max_pairs} leaves no pair to average over: use 1 or more')
    v, L = grammar.v, grammar.L
    steps = transitions(grammar)
    laws = _laws(grammar, steps)
    # paths[w]: from a node `shared` levels above the leaves to the leaf w below it; the highest bit of w comes first.
    paths, shared = torch.eye(v, dtype=torch.float64)[None], 0
    means = torch.empty(L, dtype=torch.float64)
    for height in range(1, L + 1):
        level = L - height
        if shared == height - 2 and 2 * paths.numel() <= _PATH_ENTRIES:
            left, right = steps[level + 1]
            paths, shared = torch.cat((left @ paths, right @ paths)), height - 1
        T = grammar.level_rules(level).flatten(1)
        total = 0.0
        words = _pairs_of_height(grammar, height, max_pairs)
        for chunk in words.split(max(1, _ENTRIES_PER_BLOCK // v**2)):
            # Three fields of a word: the ancestor, and the paths to the tokens below its left and its right child.
            nodes, where = torch.unique(chunk >> 2 * (height - 1), return_inverse=True)
            pairs = (laws[level][nodes] @ T).view(-1, v, v)[where]
            sides = chunk >> (height - 1), chunk
            for above in range(height - 2, shared - 1, -1):
                left, right = (torch.stack(steps[L - 1 - above])[side >> above & 1] for side in sides)
                pairs = left.mT @ pairs @ right
            left, right = (paths[side & len(paths) - 1] for side in sides)
            total += _information(left.mT @ pairs @ right).sum().item()
        means[height - 1] = total / len(words)
    return means


# ---------------------------------------------------------------------- inside


def _check_position(position: int, n: int) -> None:
    if not 0 <= position < n:
        raise ValueError(f'position={position} is outside a sequence of {n} tokens: use 0 to {n - 1}')


def _laws(grammar: TreeGrammar, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    levels = [grammar.prior[None]]
    for left, right in steps:
        levels.append(torch.stack((levels[-1] @ left, levels[-1] @ right), dim=1).flatten(0, 1))
    return levels


def _pairs_of_height(grammar: TreeGrammar, height: int, max_pairs: int) -> Tensor:
    """Numbers in 0..2^(L + height - 2) - 1, one for each pair of that height: all of them, or a sample."""
    bits = grammar.L + height - 2
    if 2**bits <= max_pairs:
        return torch.arange(2**bits)
    key = stream_key(grammar.seed_samples, 'floors', height)
    return random_words(key, torch.arange(max_pairs)) & ((1 << bits) - 1)


def _information(pairs: Tensor) -> Tensor:
    """Mutual information of joint laws `(..., v, v)`, `(...)` nats.

    `sum_ab P(a) P(b) f(P(a, b) / (P(a) P(b)))` with `f(r) = r ln r - r + 1`: the terms `1 - r` sum to zero, and
    without them the terms of weak correlations, which are of second order in r - 1, would drown in their rounding.
    """
    independent = pairs.sum(-1, keepdim=True) * pairs.sum(-2, keepdim=True)
    excess = torch.where(independent > 0, pairs / independent - 1, 0.0)
    far = torch.xlogy(1 + excess, 1 + excess) - excess
    near = excess.square() * (1 / 2 - excess / 6 + excess.square() / 12)
    return (independent * torch.where(excess.abs() < 1e-3, near, far)).sum((-2, -1))
