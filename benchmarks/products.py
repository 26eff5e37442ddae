"""The matrix products of a step, alone: what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from RLM_clean.config import Config


@dataclass(frozen=True)
class Product:
    """`batch` products `(m, k) x (k, n)`, each with matrices of its own."""

    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def multiplications(self) -> int:
        """Multiplications of matrix entries."""
        return self.batch * self.m * self.k * self.n


def forward_products(config: Config) -> list[Product]:
    """The products of the forward pass of a transformer on token indices, as a training step computes them.

    For the objective 'last' only the last position goes on through the last block, and all blocks see but one position
    where there is but one: no queries and keys then, since a single value gets all the attention.
    """
    c = config
    assert c.model != 'fcn' and c.input_format == 'long'
    B, T, d, v = c.batch_size, c.context_size, c.embedding_dim, c.num_features
    per_head, heads = d // c.num_heads, B * c.num_heads
    products = []
    for block in range(c.depth):
        queries = T
        if c.objective == 'all' or (T > 1 and block < c.depth - 1):
            products.append(Product(B * T, d, 3 * d))
        elif T > 1:
            queries = 1
            products += [Product(B, d, d), Product(B * T, d, 2 * d)]
        else:
            products.append(Product(B, d, d))
        if T > 1 or c.objective == 'all':
            products += [Product(queries, per_head, T, heads), Product(queries, T, per_head, heads)]
        products += [
            Product(B * queries, d, d),
            Product(B * queries, d, c.ffwd_size * d),
            Product(B * queries, c.ffwd_size * d, d),
        ]
    return [*products, Product(B * T if c.objective == 'all' else B, d, v)]


def multiplications(config: Config) -> int:
    """Multiplications of matrix entries in a step: each product of the forward pass has two in the backward pass.

    `Y = X W^T` gives `dX = dY W` and `dW = dY^T X`, of as many multiplications each.
    """
    return config.accumulation * 3 * sum(product.multiplications for product in forward_products(config))


def products_alone(config: Config, device: str = 'cpu', dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """A function that computes the products of a step, one after the other into places that are there already."""
    passes = [_passes(product, device, dtype) for product in forward_products(config)]
    calls = [forward for forward, *_ in passes] + [call for _, *backward in reversed(passes) for call in backward]

    def run() -> None:
        for _ in range(config.accumulation):
            for multiply, a, b, out in calls:
                multiply(a, b, out=out)

    return run


Call = tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]


def _passes(product: Product, device: str, dtype: torch.dtype) -> list[Call]:
    """A product of the forward pass and its two of the backward pass."""
    p = product
    shapes = (p.m, p.k), (p.n, p.k), (p.m, p.n)
    X, W, Y = (torch.randn(p.batch, *shape, device=device, dtype=dtype) for shape in shapes)
    dX, dW = torch.empty_like(X), torch.empty_like(W)
    if p.batch == 1:
        X, W, Y, dX, dW = X[0], W[0], Y[0], dX[0], dW[0]
    multiply = torch.mm if p.batch == 1 else torch.bmm
    return [(multiply, X, W.mT, Y), (multiply, Y, W, dX), (multiply, Y.mT, X, dW)]
