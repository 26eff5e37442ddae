"""Noise and back: which symbols of a tree survive when its leaves are seen through noise and drawn again, exactly.

A sequence x with its tree is seen through noise eps, and a new tree is drawn from the posterior given what is seen (a
forward-backward experiment). A symbol is recovered if the new tree has the same symbol at this node; a token that is
not recovered has changed. Nothing is sampled here but the noise: belief propagation gives the probabilities that a
symbol is recovered, and those that two tokens are both recovered. For the latter, two numbers are carried upwards,

    u[a] = sum w,   k[a] = sum w K,   over the sub-trees below a symbol a,

w being the weight of a sub-tree with its evidence and K the number of its leaves that are those of x. With `u_left`,
`k_left` those of the left child, `k[a] = sum_bc T[a, b, c] (k_left[b] u_right[c] + u_left[b] k_right[c])`, and the
expected number of recovered pairs with one leaf in each of two sibling sub-trees is

    E[K_left K_right | evidence] = sum_abc alpha[a] T[a, b, c] k_left[b] k_right[c] / sum_a alpha[a] u[a].

With sigma_i = 1 for a token that changed and -1 for one that did not, the covariances of changes are
`C_ij = <sigma_i sigma_j> - <sigma_i> <sigma_j> = 4 (P(both recovered) - P(i recovered) P(j recovered))`, the mean being
over noise and new trees for a given x. They depend on how far i and j are on the tree: the height of their lowest
common ancestor. A. Sclocchi, A. Favero and M. Wyart, PNAS 122, e2408799121 (2025), arXiv:2402.16991; A. Sclocchi,
A. Favero, N. I. Levi and M. Wyart, ICLR 2025, arXiv:2410.13770. Their approximate theory is in exact/averaged_map.py.

Cost: six contractions of v^3 for each inner node and sequence, twice those of `inference.node_posteriors`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.inference import checked_evidence
from RLM_clean.exact.propagation import (
    Level,
    check_possible,
    children_outside,
    in_chunks,
    likelihoods_of,
    sum_product,
    tree_levels,
)
from RLM_clean.streams import random_words, stream_key, uniform

# The noise takes its random words from the stream 'noise' under these indices; never change them.
_WHERE, _WHAT = 10, 11
NOISES = ('beliefs', 'replaced', 'masked')


def noisy_evidence(leaves: Tensor, v: int, noise: float, kind: str = 'beliefs', seed: int = 0) -> Tensor:
    """What is seen of tokens `(B, n)` at noise eps, as likelihoods `(B, n, v)` float64, with sum one at each leaf.

    The kinds of noise:

    - `beliefs`: `1 - eps + eps / v` at the true token and `eps / v` elsewhere, the same for each sequence: the noise of
      the theory (the eps-process of arXiv:2402.16991), in which no token is drawn.
    - `replaced`: each token is replaced, with probability eps, by a uniformly random one; the same likelihoods at the
      token that is seen. This is uniform diffusion, and the noise of the objective 'denoise'.
    - `masked`: each token is hidden with probability eps, and known otherwise.

    The noise of leaf i of row r is a function of (seed, r, i) alone; with more noise, tokens that were replaced or
    hidden remain so. Raises ValueError for a kind that is not one of these and a noise outside 0..1.
    """
    if kind not in NOISES:
        raise ValueError(f'kind={kind!r} is not a noise: use one of {", ".join(NOISES)}')
    if not 0 <= noise <= 1:
        raise ValueError(f'noise={noise} is not a probability: use 0 to 1')
    seen = leaves
    if kind != 'beliefs':
        counters = torch.arange(leaves.numel(), device=leaves.device).view(leaves.shape)
        where, what = (_uniform(stream_key(seed, 'noise', index), counters) for index in (_WHERE, _WHAT))
        drawn = torch.full_like(leaves, -1) if kind == 'masked' else (what * v).long()
        seen = torch.where(where < noise, drawn, leaves)
    if kind == 'masked':
        likelihoods = likelihoods_of(seen, v)
        return likelihoods / likelihoods.sum(-1, keepdim=True)
    return (1 - noise) * likelihoods_of(seen, v) + noise / v


def _uniform(key: int, counters: Tensor) -> Tensor:
    return uniform(random_words(key, counters))


class Recovery(NamedTuple):
    """What survives of B sequences of n = 2^L leaves.

    Attributes:
        levels: `P(symbol is recovered | evidence)`, the mean over the nodes of each level, `(B, L + 1)`, root first.
        leaves: the same of each leaf, `(B, n)`.
        pairs: the sum of `P(both are recovered | evidence)` over the pairs of leaves of each height, `(B, L + 1)`.
    """

    levels: Tensor
    leaves: Tensor
    pairs: Tensor


def recovery(language: TreeGrammar, trees: list[Tensor], evidence: Tensor) -> Recovery:
    """What survives of trees (for each level `(B, 2^l)` int64, as `language.trees` draws them) given evidence.

    `evidence` is that of `inference.node_posteriors`: likelihoods `(B, n, v)`, or tokens `(B, n)` with -1 for unknown.
    The pairs of height 0 are each leaf with itself. Raises ValueError for evidence of probability zero.
    """
    evidence = likelihoods_of(checked_evidence(language, evidence, evidence.device)[0], language.v)
    levels, prior = tree_levels(language, 0, evidence.device), language.prior.to(evidence.device)

    def survive(rows: slice) -> list[Tensor]:
        """The three items of Recovery for some rows: one pass up, and one down that collects what it meets."""
        original = [nodes[rows].T for nodes in trees]
        u, pairs = _upward(levels, evidence[rows], original[-1])
        alpha, found, expected = prior.expand(1, len(evidence[rows]), -1), [], []
        for depth, symbols in enumerate(original):
            weights = alpha * u[depth]
            total = weights.sum(-1)
            check_possible(total[0] > 0, rows)
            found.append(weights.gather(-1, symbols[..., None]).squeeze(-1) / total)
            if depth < language.L:
                expected.append(((alpha * pairs[depth]).sum(-1) / total).sum(0))
                alpha = children_outside(levels[depth], alpha, u[depth + 1][::2], u[depth + 1][1::2])
        # From the leaves up: the lowest common ancestor of a pair of height h is on level L - h.
        expected.append(found[-1].sum(0))
        return [torch.stack([nodes.mean(0) for nodes in found], 1), found[-1].T, torch.stack(expected[::-1], 1)]

    return Recovery(*in_chunks(survive, evidence, language.v, 8 * 2**language.L * language.v))


def _upward(levels: list[Level], evidence: Tensor, original: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """From the root down, `u` of each level `(nodes, R, v)` with sum one, and, on the same scale, the sums over
    sub-trees of w K_left K_right of each level but the last."""
    u = [evidence.transpose(0, 1).contiguous()]
    k = u[0] * torch.nn.functional.one_hot(original, u[0].shape[-1])
    pairs: list[Tensor] = []
    for level in reversed(levels):
        T = level.T.permute(1, 2, 0)
        u_left, u_right, k_left, k_right = (x.flatten(0, 1) for x in (u[0][::2], u[0][1::2], k[::2], k[1::2]))
        above = sum_product(T, u_left, u_right)
        norm = above.sum(-1, keepdim=True)
        norm = norm.where(norm > 0, 1)
        k = sum_product(T, k_left, u_right).add_(sum_product(T, u_left, k_right)).div_(norm)
        both = sum_product(T, k_left, k_right).div_(norm)
        nodes = (len(u[0]) // 2, *u[0].shape[1:])
        u.insert(0, above.div_(norm).view(nodes))
        pairs.insert(0, both.view(nodes))
        k = k.view(nodes)
    return u, pairs


def change_covariances(found: Recovery, repeats: int = 1) -> Tensor:
    """The mean of `C_ij` over the pairs of leaves of each height, `(B, L + 1)`; height 0 is the mean of `C_ii`.

    With `repeats=R`, rows r B to (r + 1) B - 1 of `found` are the same B sequences under the r-th of R independent
    draws of the noise, and the means are over the noise too; the products of means are over different draws, hence
    unbiased. With R = 1 the evidence is a function of the sequence, as that of 'beliefs'. Raises ValueError for rows
    that are not R times a whole number.
    """
    rows, n = found.leaves.shape
    if repeats < 1 or rows % repeats:
        raise ValueError(f'repeats={repeats} does not divide {rows} rows: give the same sequences once for each repeat')
    leaves, pairs = found.leaves.view(repeats, -1, n), found.pairs.view(repeats, rows // repeats, -1).mean(0)
    found_at = []
    for height in range(n.bit_length()):
        left = right = leaves
        if height:
            halves = leaves.unflatten(-1, (-1, 2, 2 ** (height - 1))).sum(-1)
            left, right = halves.unbind(-1)
        product = (left * right).mean(0).sum(-1)
        if repeats > 1:
            product = ((left.mean(0) * right.mean(0)).sum(-1) * repeats - product) / (repeats - 1)
        found_at.append(4 * (pairs[:, height] - product) / num_pairs(n, height))
    return torch.stack(found_at, 1)


def num_pairs(n: int, height: int) -> int:
    """The number of pairs of n leaves with their lowest common ancestor at a height; n for height 0."""
    return n * 2**height // 4 if height else n


def susceptibility(covariances: Tensor) -> Tensor:
    """`chi = sum_ij C_ij / sum_i C_ii` from covariances by height `(..., L + 1)`: how many tokens change together.

    The sums are over all i and j, so that chi = 1 for independent changes. Average covariances before, not after; 0 / 0
    (nothing changes) is nan. arXiv:2410.13770.
    """
    weights = _weights(covariances)
    return (covariances * weights).sum(-1) / covariances[..., 0]


def correlation_length(covariances: Tensor) -> Tensor:
    """The mean distance of correlated changes: `xi = sum_ij r_ij C_ij / sum_ij C_ij` over i != j.

    `r = 2^h - 1` is the distance of tokens of height h, as in arXiv:2410.13770. Covariances by height `(..., L + 1)`.
    """
    weighted = (covariances * _weights(covariances))[..., 1:]
    distances = 2.0 ** torch.arange(1, covariances.shape[-1], dtype=covariances.dtype) - 1
    return (weighted * distances).sum(-1) / weighted.sum(-1)


def _weights(covariances: Tensor) -> Tensor:
    """How many tokens are at each height from a token: 1, 1, 2, 4, ..."""
    heights = torch.arange(covariances.shape[-1], dtype=covariances.dtype)
    return (2.0 ** (heights - 1)).where(heights > 0, 1)
