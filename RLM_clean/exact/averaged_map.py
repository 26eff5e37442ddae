"""The denoising transition of the Random Hierarchy Model: belief propagation averaged over rules.

Leaves are seen through the noise 'beliefs' (see exact/denoising.py), so that each true token has the belief
`p_0 = 1 - eps + eps / v` and each other one (1 - p_0) / (v - 1). Let both children of a node have the belief p in their
true symbols, the others being equal. Numerator and denominator of the belief in the true symbol of the node, averaged
over the rules that are not those of the true tree (annealed), give the map

    F(p) = (p^2 + g (1 - p^2)) / (p^2 + f (1 - p^2)),   f = (m v - 1) / (v^2 - 1),   g = (m - 1) / (v^2 - 1),

and the root of a tree of height L has the belief p_L = F(... F(p_0)). F has the fixed points 1, 1 / v and
`p* = (m - 1) / (v - m)`. For 1 < m < (v + 1) / 2, p* lies between them and is unstable: beliefs above it grow to 1
with L, those below fall to 1 / v, and p_0 = p* at the threshold eps*. Near it, differences grow by F'(p*) with
each level, which doubles the length of the sequence: lengths diverge as |eps - eps*|^-nu, nu = ln 2 / ln F'(p*).

The other quantities follow from the same average: a node is recovered or not, given its parent, with

    W(child pair) = q p^2 (both recovered), (m - q) / (v^2 - 1) p (1 - p) (one), (m - q) / (v^2 - 1) (1 - p)^2 (none),

normalised, q = 1 where the parent is recovered and q = 0 where it is not. This is a Markov chain with two states on the
tree. At eps* a step from a node to a child keeps the fraction F'(p*) / 2 of a difference, and two tokens of height h
are h - 1 steps below two siblings. The covariance of their changes then falls as (F'(p*) / 2)^(2 h), which is
r^-(2 - 2 / nu) with their distance r ~ 2^h.

A. Sclocchi, A. Favero and M. Wyart, PNAS 122, e2408799121 (2025), arXiv:2402.16991 (F and eps*), and A. Sclocchi,
A. Favero, N. I. Levi and M. Wyart, ICLR 2025, arXiv:2410.13770 (pairs of tokens, nu); p* in closed form, the chain as
a way to write their averages, and the exponent 2 - 2 / nu are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Threshold(NamedTuple):
    """The transition of the averaged map.

    Attributes:
        belief: `p*`, the unstable fixed point.
        noise: `eps*`, at which the leaves have this belief.
        slope: `F'(p*)`.
        nu: `ln 2 / ln F'(p*)`, the exponent of the correlation length.
        decay: `2 - 2 / nu`: at `eps*` the covariance of changes falls as `r^-decay` with the distance of tokens.
    """

    belief: float
    noise: float
    slope: float
    nu: float
    decay: float


def threshold(v: int, m: int) -> Threshold:
    """The transition of the Random Hierarchy Model with v symbols and m productions a symbol.

    Raises ValueError where there is none: for m = 1, which leaves nothing ambiguous, and 2 m >= v + 1, where noise
    destroys the root of a deep tree however small it is.
    """
    if not 1 < m < (v + 1) / 2:
        raise ValueError(f'm={m}, v={v} have no threshold: use 2 <= m < (v + 1) / 2 = {(v + 1) / 2:g}')
    p = (m - 1) / (v - m)
    f = (m * v - 1) / (v**2 - 1)
    slope = 2 * p * m / (v + 1) / (p**2 + f * (1 - p**2)) ** 2
    nu = math.log(2) / math.log(slope)
    return Threshold(p, (1 - p) * v / (v - 1), slope, nu, 2 - 2 / nu)


def map_up(p: Tensor, v: int, m: int) -> Tensor:
    """`F(p)`: the belief in the true symbol of a node whose children have the belief p in theirs."""
    f, g = (m * v - 1) / (v**2 - 1), (m - 1) / (v**2 - 1)
    return (p**2 + g * (1 - p**2)) / (p**2 + f * (1 - p**2))


def beliefs_up(noise: Tensor, v: int, m: int, L: int) -> Tensor:
    """`p_0, ..., p_L` from the leaves up, `(..., L + 1)`, for noise `(...)` float64; p_L is that of the root."""
    beliefs = [1 - noise + noise / v]
    for _ in range(L):
        beliefs.append(map_up(beliefs[-1], v, m))
    return torch.stack(beliefs, -1)


def averaged_recovery(noise: Tensor, v: int, m: int, L: int) -> tuple[Tensor, Tensor]:
    """Recovery and covariances of changes in the averaged theory, for noise `(...)` float64.

    The probability that a symbol of each level is recovered, 0 at the root, and the covariance `C_ij` of leaves of each
    height, as `denoising.change_covariances` has them, both `(..., L + 1)`.
    """
    p = beliefs_up(noise, v, m, L)
    laws = [children(p[..., height - 1], v, m) for height in range(1, L + 1)]
    states = [torch.stack((p[..., L], 1 - p[..., L]), -1)]
    for law in reversed(laws):
        states.append(torch.einsum('...a,...abc->...b', states[-1], law))
    kept = torch.stack((torch.ones_like(noise), torch.zeros_like(noise)), -1)  # P(leaf recovered | state above it)
    mean = states[-1][..., 0]
    covariances = [4 * mean * (1 - mean)]
    for height, law in enumerate(laws, 1):
        centred = kept - mean[..., None]  # the difference of P(both) and mean^2 would lose all digits far apart
        covariances.append(4 * torch.einsum('...a,...abc,...b,...c->...', states[L - height], law, centred, centred))
        kept = torch.einsum('...abc,...b->...a', law, kept)
    return torch.stack([state[..., 0] for state in states], -1), torch.stack(covariances, -1)


def children(p: Tensor, v: int, m: int) -> Tensor:
    """`P(left state, right state | state of the parent)`, `[..., a, b, c]`, 0 for recovered and 1 for not.

    p `(...)` is the belief in the true symbols of the children from below.
    """
    laws = []
    for q in (1, 0):
        others = (m - q) / (v**2 - 1)
        one = others * p * (1 - p)
        weights = torch.stack((q * p**2, one, one, others * (1 - p) ** 2), -1).unflatten(-1, (2, 2))
        total = weights.sum((-1, -2), keepdim=True)
        # p = 1 leaves no wrong parent: its children do not matter.
        laws.append(torch.where(total > 0, weights / total, 0.25))
    return torch.stack(laws, -3)
