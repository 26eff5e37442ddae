"""What the best predictors of tasks say, by brute force, for tests: sums over all sequences, with likelihoods by loops.

It shares nothing with RLM_clean/tasks and exact/subtrees.py; the tables of all sequences are those of brute_force.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ATOL = 1e-12


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-12."""
    torch.testing.assert_close(found, expected, rtol=ATOL, atol=ATOL)


def weighted(table: Tensor, likelihoods: Tensor) -> Tensor:
    """`P(x) prod_i e_i[x_i]` of every sequence x, as a table, for the likelihoods e `(n, v)` of one context."""
    product = torch.ones(1, dtype=torch.float64)
    for e in likelihoods:
        product = torch.outer(product, e).flatten()
    return table * product.view_as(table)


def leaf_sums(table: Tensor) -> Tensor:
    """The sum over all sequences with x_i = a, `(n, v)`: for a table of probabilities, those of each leaf."""
    v, n = table.shape[0], table.dim()
    return torch.stack([table.reshape(v**i, v, -1).sum((0, 2)) for i in range(n)])


def given(table: Tensor, likelihoods: Tensor) -> tuple[Tensor, Tensor]:
    """`P(x_i = a | evidence)`, `(B, n, v)`, and `P(evidence)`, `(B,)`, for likelihoods `(B, n, v)`."""
    sums = [leaf_sums(weighted(table, e)) for e in likelihoods]
    total = torch.stack([s[0].sum() for s in sums])
    return torch.stack(sums) / total[:, None, None], total


def within(likelihoods: Tensor, first: int, size: int) -> Tensor:
    """The same likelihoods `(B, n, v)` at leaves first..first+size-1, and ones (nothing is seen) elsewhere."""
    seen = torch.ones_like(likelihoods)
    seen[:, first : first + size] = likelihoods[:, first : first + size]
    return seen


def likelihoods_of_tokens(tokens: Tensor, v: int, noise: float = 0.0) -> Tensor:
    """`P(token i is seen | x_i = a)`, `(B, n, v)`, entry by entry: v is a hidden token, noise replaces the others."""
    rows = torch.empty(*tokens.shape, v, dtype=torch.float64)
    for b, row in enumerate(tokens.tolist()):
        for i, token in enumerate(row):
            for a in range(v):
                kept = 1.0 - noise if token == a else 0.0
                rows[b, i, a] = 1.0 if token == v else kept + noise / v
    return rows


def denoised(table: Tensor, tokens: Tensor, noises: Sequence[float], size: int) -> Tensor:
    """`P(x_i | noisy sub-tree of `size` leaves around i)`, `(B, n, v)`, for noises that are equally likely."""
    v, n = table.shape[0], table.dim()
    sums = torch.zeros(*tokens.shape, v, dtype=torch.float64)
    for noise in noises:
        likelihoods = likelihoods_of_tokens(tokens, v, noise)
        for first in range(0, n, size):
            for b, e in enumerate(within(likelihoods, first, size)):
                sums[b, first : first + size] += leaf_sums(weighted(table, e))[first : first + size]
    return sums / sums.sum(-1, keepdim=True)


def unmasked(table: Tensor, tokens: Tensor, size: int) -> Tensor:
    """`P(x_i | seen tokens of the sub-tree of `size` leaves around i)`, `(B, n, v)`; hidden tokens are v."""
    return denoised(table, tokens, [0.0], size)


def entropy(probs: Tensor) -> Tensor:
    """`-sum p ln p` along the last axis."""
    return -(probs * probs.clamp(min=1e-300).log()).sum(-1)
