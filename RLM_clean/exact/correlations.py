"""The laws of one and of two tokens of a language, exact: marginals, joints, covariances and mutual information.

Given its ancestor, a token is independent of the rest of the tree. So the law of one token is a product of transition
matrices along its path, and the law of two tokens is that of the children of their lowest common ancestor, with one
such product on either side: `T` is the rule tensor of a level, `P_L[a, b] = sum_c T[a, b, c]` leads to the left child
and `P_R[a, c] = sum_b T[a, b, c]` to the right one. All numbers are float64, on the CPU.

What two tokens say of each other falls exponentially with the height of their ancestor. So it is not the difference of
two probabilities, which leaves their rounding of 1e-17: the covariance of the children of the ancestor is carried down
to the tokens, by transition matrices without their eigenvalue 1 (see `covariance`), and keeps its digits.
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


def level_marginals(language: TreeGrammar) -> list[Tensor]:
    """For each level l = 0 (the root) to L the laws of its symbols, `(2^l, v)`: `P(x_k = a)` of node k, left to right.

    `p_{2k} = p_k P_L`, `p_{2k+1} = p_k P_R`, from the prior down.
    """
    return _laws(language, transitions(language))


def leaf_marginals(language: TreeGrammar) -> Tensor:
    """`P(x_i = a)` for every token i, `(2^L, v)`."""
    return level_marginals(language)[-1]


def transitions(language: TreeGrammar) -> list[tuple[Tensor, Tensor]]:
    """`(P_L, P_R)` of each level, two matrices `(v, v)` from a node to its left and to its right child."""
    return [language.transitions(level) for level in range(language.L)]


# ---------------------------------------------------------------------- two tokens


def children_law(language: TreeGrammar, level: int, law: Tensor) -> Tensor:
    """`Q[b, c] = sum_a p[a] T[a, b, c]`, `(v, v)`: the law of the children of a node of a level whose law is p `(v,)`.

    The rules are read in blocks: no float64 copy of them is made.
    """
    pair = torch.zeros(language.v**2, dtype=torch.float64)
    for parents, block in language.blocks(level):
        pair += law[parents] @ block.flatten(1)
    return pair.view(language.v, language.v)


def joint(language: TreeGrammar, i: int, j: int) -> Tensor:
    """`P(x_i = a, x_j = b)`, `(v, v)`: diagonal for i = j, and the transpose of `joint(grammar, j, i)`.

    With p the law of the lowest common ancestor, `Q[b, c] = sum_a p[a] T[a, b, c]` that of its children, and A, B the
    products of transition matrices from these children to the two tokens: `P = A^T Q B`.

    Raises ValueError for positions outside 0..2^L - 1.
    """
    if i > j:
        return joint(language, j, i).T
    steps, laws = _known(language, i, j)
    if i == j:
        return torch.diag(laws[-1][i])
    return _descend(steps, _children_of_ancestor(language, laws, i, j), i, j)


def covariance(language: TreeGrammar, i: int, j: int) -> Tensor:
    """`C[a, b] = P(x_i = a, x_j = b) - P(x_i = a) P(x_j = b)`, `(v, v)`; its rows and columns sum to zero.

    With Q, A and B as in `joint`, `C = A^T (Q - Q_left Q_right^T) B`, `Q_left` and `Q_right` the sums of Q over its
    columns and rows. The rows and columns of the difference sum to zero, so each transition matrix acts as the same
    matrix less its mean row, whose largest eigenvalue is the second one of the chain: weak covariances have small
    errors too, of about 1e-15 of the largest entry where siblings are correlated.

    Raises ValueError for positions outside 0..2^L - 1.
    """
    if i > j:
        return covariance(language, j, i).T
    steps, laws = _known(language, i, j)
    return _covariance(language, steps, laws, i, j)


def mutual_information(language: TreeGrammar, i: int, j: int) -> float:
    """`I(x_i; x_j) = sum_ab P(a, b) ln(P(a, b) / (P(a) P(b)))` in nats; the entropy of the token for i = j.

    It is computed from `covariance`, of whose entries weak informations are the squares: these too have all their
    digits but the last few. Raises ValueError for positions outside 0..2^L - 1.
    """
    i, j = min(i, j), max(i, j)
    steps, laws = _known(language, i, j)
    return _information(_covariance(language, steps, laws, i, j), laws[-1][i], laws[-1][j]).item()


def mutual_information_by_distance(language: TreeGrammar, max_pairs: int = 2**12) -> Tensor:
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
    v, L = language.v, language.L
    steps = transitions(language)
    laws = _laws(language, steps)
    centred = _centred(steps)
    # paths[w]: from a node `shared` levels above the leaves to the leaf w below it; the highest bit of w comes first.
    # A product of centred matrices is the product of the matrices less a constant row.
    paths, shared = torch.eye(v, dtype=torch.float64)[None], 0
    means = torch.empty(L, dtype=torch.float64)
    for height in range(1, L + 1):
        level = L - height
        if shared == height - 2 and 2 * paths.numel() <= _PATH_ENTRIES:
            left, right = centred[level + 1]
            paths, shared = torch.cat((left @ paths, right @ paths)), height - 1
        T = language.level_rules(level).flatten(1)
        total = 0.0
        words = _pairs_of_height(language, height, max_pairs)
        for chunk in words.split(max(1, _ENTRIES_PER_BLOCK // v**2)):
            # Three fields of a word: the ancestor, and the paths to the tokens below its left and its right child.
            ancestors = chunk >> 2 * (height - 1)
            nodes, where = torch.unique(ancestors, return_inverse=True)
            pairs = _less_independent((laws[level][nodes] @ T).view(-1, v, v))[where]
            sides = chunk >> (height - 1), chunk
            for above in range(height - 2, shared - 1, -1):
                left, right = (torch.stack(centred[L - 1 - above])[side >> above & 1] for side in sides)
                pairs = left.mT @ pairs @ right
            left, right = (paths[side & len(paths) - 1] for side in sides)
            # Tokens are numbered by their path from the root: that to the ancestor, a turn, and the path below it.
            below = (1 << (height - 1)) - 1
            tokens = ((2 * ancestors + turn << (height - 1)) + (side & below) for turn, side in enumerate(sides))
            p, q = (laws[L][token] for token in tokens)
            total += _information(left.mT @ pairs @ right, p, q).sum().item()
        means[height - 1] = total / len(words)
    return means


# ---------------------------------------------------------------------- inside


def _check_position(position: int, n: int) -> None:
    if not 0 <= position < n:
        raise ValueError(f'position={position} is outside a sequence of {n} tokens: use 0 to {n - 1}')


def _laws(language: TreeGrammar, steps: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    levels = [language.prior[None]]
    for left, right in steps:
        levels.append(torch.stack((levels[-1] @ left, levels[-1] @ right), dim=1).flatten(0, 1))
    return levels


def _known(language: TreeGrammar, i: int, j: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """The transition matrices and the laws of all levels; ValueError for positions of no token."""
    for position in (i, j):
        _check_position(position, 2**language.L)
    steps = transitions(language)
    return steps, _laws(language, steps)


def _children_of_ancestor(language: TreeGrammar, laws: list[Tensor], i: int, j: int) -> Tensor:
    """The joint law `(v, v)` of the children of the lowest common ancestor of tokens i < j."""
    height = (i ^ j).bit_length()
    top = language.L - height
    return children_law(language, top, laws[top][i >> height])


def _descend(steps: list[tuple[Tensor, Tensor]], pair: Tensor, i: int, j: int) -> Tensor:
    """`A^T pair B`, with the products A and B of transition matrices from these children to the tokens i and j."""
    L = len(steps)
    for level in range(L - (i ^ j).bit_length() + 1, L):
        # The bits of a position, from the highest, are the turns of its path: left (0) or right (1).
        below = L - 1 - level
        pair = steps[level][i >> below & 1].T @ pair @ steps[level][j >> below & 1]
    return pair


def _covariance(
    language: TreeGrammar, steps: list[tuple[Tensor, Tensor]], laws: list[Tensor], i: int, j: int
) -> Tensor:
    """`covariance` for i <= j."""
    if i == j:
        return _less_independent(torch.diag(laws[-1][i]))
    return _descend(_centred(steps), _less_independent(_children_of_ancestor(language, laws, i, j)), i, j)


def _less_independent(pairs: Tensor) -> Tensor:
    """`P(a, b) - P(a) P(b)` of joint laws `(..., v, v)`."""
    return pairs - pairs.sum(-1, keepdim=True) * pairs.sum(-2, keepdim=True)


def _centred(steps: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The transition matrices less their mean rows, which are the same for differences of laws.

    With the eigenvalue 1 of the matrices themselves, the rounding of a sum that should be zero would outlive what
    falls with the other eigenvalues.
    """
    return [(left - left.mean(0), right - right.mean(0)) for left, right in steps]


def _pairs_of_height(language: TreeGrammar, height: int, max_pairs: int) -> Tensor:
    """Numbers in 0..2^(L + height - 2) - 1, one for each pair of that height: all of them, or a sample."""
    bits = language.L + height - 2
    if 2**bits <= max_pairs:
        return torch.arange(2**bits)
    key = stream_key(language.seed_samples, 'floors', height)
    return random_words(key, torch.arange(max_pairs)) & ((1 << bits) - 1)


def _information(covariances: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Mutual information `(...)` in nats, from covariances `(..., v, v)` and the laws `(..., v)` of the two tokens.

    `sum_ab p(a) q(b) f(r)`, `f(r) = r ln r - r + 1`, with `r = P(a, b) / (p(a) q(b)) = 1 + C[a, b] / (p(a) q(b))`: the
    terms `1 - r` sum to zero, and without them the terms of weak correlations, which are of second order in r - 1,
    would drown in their rounding.
    """
    independent = p[..., :, None] * q[..., None, :]
    # Not below -1, where rounding leaves an impossible pair; nor where the product of two rare symbols is zero.
    excess = torch.where(independent > 0, covariances / independent, 0.0).clamp(min=-1)
    far = torch.xlogy(1 + excess, 1 + excess) - excess
    near = excess.square() * (1 / 2 - excess / 6 + excess.square() / 12)
    return (independent * torch.where(excess.abs() < 1e-3, near, far)).sum((-2, -1))
