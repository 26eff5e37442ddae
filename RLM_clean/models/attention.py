"""Multi-head self-attention: causal or of all tokens, with or without rotary positions.

Shapes in names: B sequences, H heads, T tokens, d embedding dimensions (of a head where there is an H).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.models.layers import Linear

KeyValues = tuple[Tensor, Tensor]

# The slowest of the rotary angles turns once in about 2 pi times as many tokens.
_ROTARY_PERIOD = 10_000.0
# In bfloat16 and for at most so many tokens, a CPU takes less time for attention in parts (products, softmax, products,
# all in float32) than for torch's fused attention: see docs/benchmarks.md, "steps". In float32 the fused one stays, so
# that runs of earlier versions go on to the same bits.
MOST_IN_PARTS = 64


def rotate(x_BxHxTxd: Tensor, start: int = 0) -> Tensor:
    """Rotary positions (J. Su et al., arXiv:2104.09864): pairs of dimensions turned by angles linear in the position.

    Dimensions i and i + d/2 of the token at position t (the first has `start`) turn by `t 10000^(-2i/d)`,
    i = 0..d/2 - 1. So the product of a query and a key depends on the difference of their positions alone.
    """
    T, half = x_BxHxTxd.shape[2], x_BxHxTxd.shape[3] // 2
    device, dtype = x_BxHxTxd.device, torch.promote_types(x_BxHxTxd.dtype, torch.float32)
    frequencies = _ROTARY_PERIOD ** (-torch.arange(half, device=device, dtype=dtype) / half)
    angles = torch.arange(start, start + T, device=device, dtype=dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b = x_BxHxTxd.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x_BxHxTxd.dtype)


class Attention(nn.Module):
    """Multi-head self-attention, `softmax_j(scale q_i . k_j)` over j <= i where `causal`, else over all j.

    With `rope`, queries and keys are turned by `rotate`. The scale is 1/sqrt(d_head) by default.
    """

    def __init__(
        self, d: int, num_heads: int, causal: bool = True, rope: bool = False, scale: float | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.rope = rope
        self.scale = scale
        self.qkv = Linear(d, 3 * d)
        self.proj = Linear(d, d)

    def forward(self, x_BxTxd: Tensor, cache: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """The attention's output at all positions, and its keys and values.

        With a `cache` of earlier keys and values, x is the one token that follows them.
        """
        q, k, v = (self._split(y) for y in self.qkv(x_BxTxd).chunk(3, dim=-1))
        if self.rope:
            start = 0 if cache is None else cache[0].shape[2]
            q, k = rotate(q, start), rotate(k, start)
        if cache is not None:
            k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
        # The last token alone sees everything: only several queries need the causal mask.
        return self._attend(q, k, v, causal=self.causal and q.shape[2] > 1), (k, v)

    def last(self, x_BxTxd: Tensor) -> Tensor:
        """The output at the last position alone, `(B, 1, d)`: one query, and the keys and values of all."""
        T, d = x_BxTxd.shape[1:]
        if T == 1:  # a single key gets all the attention
            return self.proj(F.linear(x_BxTxd, self.qkv.weight[2 * d :], self.qkv.bias[2 * d :]))
        q = self._split(F.linear(x_BxTxd[:, -1:], self.qkv.weight[:d], self.qkv.bias[:d]))
        k, v = F.linear(x_BxTxd, self.qkv.weight[d:], self.qkv.bias[d:]).chunk(2, dim=-1)
        k, v = self._split(k), self._split(v)
        if self.rope:
            q, k = rotate(q, T - 1), rotate(k)
        return self._attend(q, k, v, causal=False)

    def weights(self, x_BxTxd: Tensor) -> Tensor:
        """Where each head looks, `(B, H, T, T)`: `[b, h, i, j]` is the weight of token j for the query of token i."""
        q, k, _ = (self._split(y) for y in self.qkv(x_BxTxd).chunk(3, dim=-1))
        if self.rope:
            q, k = rotate(q), rotate(k)
        return self._weights(q, k, self.causal)

    def _weights(self, q_BxHxTxd: Tensor, k_BxHxTxd: Tensor, causal: bool) -> Tensor:
        scores = q_BxHxTxd @ k_BxHxTxd.transpose(2, 3)
        scores = scores / q_BxHxTxd.shape[-1] ** 0.5 if self.scale is None else scores * self.scale
        if causal:
            ahead = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, -torch.inf)
        return scores.softmax(-1)

    def _attend(self, q_BxHxTxd: Tensor, k_BxHxTxd: Tensor, v_BxHxTxd: Tensor, causal: bool) -> Tensor:
        # In groups of runs, torch's decomposition of attention mixes precisions under autocast: here there is one.
        dtype, device = v_BxHxTxd.dtype, v_BxHxTxd.device
        in_parts = device.type == 'cpu' and dtype == torch.bfloat16 and k_BxHxTxd.shape[2] <= MOST_IN_PARTS
        q, k, v = (x.to(torch.float32 if in_parts else dtype) for x in (q_BxHxTxd, k_BxHxTxd, v_BxHxTxd))
        with torch.autocast(device.type, enabled=False):
            if in_parts:
                y = (self._weights(q, k, causal) @ v).to(dtype)
            else:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _split(self, x_BxTxd: Tensor) -> Tensor:
        return x_BxTxd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
