"""Decoder-only transformers: CLM predicts the next token at every position, MLM the one that follows the last.

Pre-norm blocks with causal attention, learned token and position embeddings, a final norm and a linear head. Shapes in
names: B sequences, T tokens, v symbols, d embedding dimensions, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.streams import random_words, seeded_generator

KeyValues = tuple[Tensor, Tensor]

# Logits of this standard deviation at initialisation put the loss within 0.01 nats of ln v, the uniform guess, even
# where few symbols are far from equally likely, so that the errors of the logits hardly average out.
INITIAL_LOGIT_STD = 0.005
# Tied heads read the residual stream with its own embeddings, which a smaller start would drown in the norm's epsilon.
INITIAL_TIED_STD = 0.01
# The first norm divides by the size of the embeddings, so small ones are learnt faster: at the default learning rate
# the excess of the default run ends lower from 0.3 than from 1 or 0.1.
INITIAL_EMBEDDING_STD = 0.3


class Linear(nn.Linear):
    """A linear layer that is left unfilled: torch would draw its weights from the global generator."""

    def reset_parameters(self) -> None:
        """Does nothing: the model draws all weights, from a generator of its own."""


class Embedding(nn.Embedding):
    """An embedding that is left unfilled, as Linear is."""

    def reset_parameters(self) -> None:
        """Does nothing: the model draws all weights, from a generator of its own."""


class Dropout(nn.Module):
    """Dropout whose mask is a function of a key, which the training loop sets for each step.

    torch's own dropout draws from the global generator: a resumed run could not draw the same masks again.
    """

    key: Tensor

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.part = 0  # which part of a batch this process has, of equal ones
        self.register_buffer('key', torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        counters = torch.arange(x.numel(), device=x.device) + ((self.layer << 48) + self.part * x.numel())
        words = random_words(self.key, counters).view(x.shape)
        dropped = words < round((self.p - 0.5) * 2**64)  # words are uniform on [-2^63, 2^63)
        return x.masked_fill(dropped, 0.0) / (1.0 - self.p)


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, d: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(d, 3 * d)
        self.proj = Linear(d, d)

    def forward(self, x_BxTxd: Tensor, cache: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """The attention's output at all positions, and its keys and values.

        With a `cache` of earlier keys and values, x is the one token that follows them.
        """
        q, k, v = (self._split(y) for y in self.qkv(x_BxTxd).chunk(3, dim=-1))
        if cache is not None:
            k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
        # The last token alone sees everything: only several queries need the causal mask.
        return self._attend(q, k, v, causal=q.shape[2] > 1), (k, v)

    def last(self, x_BxTxd: Tensor) -> Tensor:
        """The output at the last position alone, `(B, 1, d)`: one query, and the keys and values of all."""
        d = x_BxTxd.shape[-1]
        if x_BxTxd.shape[1] == 1:  # a single key gets all the attention
            return self.proj(F.linear(x_BxTxd, self.qkv.weight[2 * d :], self.qkv.bias[2 * d :]))
        q = F.linear(x_BxTxd[:, -1:], self.qkv.weight[:d], self.qkv.bias[:d])
        k, v = F.linear(x_BxTxd, self.qkv.weight[d:], self.qkv.bias[d:]).chunk(2, dim=-1)
        return self._attend(self._split(q), self._split(k), self._split(v), causal=False)

    def _attend(self, q_BxHxTxd: Tensor, k_BxHxTxd: Tensor, v_BxHxTxd: Tensor, causal: bool) -> Tensor:
        y = F.scaled_dot_product_attention(q_BxHxTxd, k_BxHxTxd, v_BxHxTxd, is_causal=causal)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _split(self, x_BxTxd: Tensor) -> Tensor:
        return x_BxTxd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, d: int, num_heads: int, ffwd_size: int, dropout: float, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(d)
        self.attention = Attention(d, num_heads)
        self.norm_2 = nn.LayerNorm(d)
        self.expand = Linear(d, ffwd_size * d)
        self.contract = Linear(ffwd_size * d, d)
        self.dropout_1 = Dropout(dropout, 2 * layer + 1)
        self.dropout_2 = Dropout(dropout, 2 * layer + 2)

    def forward(self, x_BxTxd: Tensor, cache: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """The residual stream after the block, and its keys and values, with a `cache` as in Attention."""
        y, keys_values = self.attention(self.norm_1(x_BxTxd), cache)
        return self._feed_forward(x_BxTxd + self.dropout_1(y)), keys_values

    def last(self, x_BxTxd: Tensor) -> Tensor:
        """The residual stream after the block at the last position alone, `(B, 1, d)`."""
        return self._feed_forward(x_BxTxd[:, -1:] + self.dropout_1(self.attention.last(self.norm_1(x_BxTxd))))

    def _feed_forward(self, x_BxTxd: Tensor) -> Tensor:
        return x_BxTxd + self.dropout_2(self.contract(F.gelu(self.expand(self.norm_2(x_BxTxd)))))


class CLM(nn.Module):
    """Causal language model: logits of the next token at every position, `(B, T, v)`.

    Args:
        vocab_size: v. Inputs are token indices `(B, T)` or one-hot (or whitened one-hot) rows `(B, T, v)`.
        block_size: the largest T.
        embedding_dim: d, a multiple of num_heads.
        depth: the number of blocks.
        ffwd_size: the width of the feed-forward layers, in units of d.
        dropout: the probability of dropping an entry of the embeddings and of each block's two outputs.
        tie_weights: the head uses the token embeddings.
        seed: every weight is a function of the shapes and of this seed.

    Raises ValueError when num_heads does not divide embedding_dim, and for inputs longer than block_size.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        embedding_dim: int,
        num_heads: int = 1,
        depth: int = 1,
        ffwd_size: int = 4,
        dropout: float = 0.0,
        tie_weights: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if embedding_dim % num_heads:
            raise ValueError(
                f'num_heads={num_heads} does not divide embedding_dim={embedding_dim}: make one a multiple of the other'
            )
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.tie_weights = tie_weights
        self.tokens = Embedding(vocab_size, embedding_dim)
        self.positions = Embedding(block_size, embedding_dim)
        self.dropout = Dropout(dropout, 0)
        self.blocks = nn.ModuleList(
            Block(embedding_dim, num_heads, ffwd_size, dropout, layer) for layer in range(depth)
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.head = Linear(embedding_dim, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.tokens.weight
        self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws every weight anew from a generator seeded by `seed`: embeddings N(0, 0.3^2), matrices N(0, 1/fan_in).

        The projections back to the residual stream are divided by sqrt(2 depth), so that its variance does not grow
        with depth (Radford et al., GPT-2, 2019); the head starts with logits of standard deviation 0.005.
        """
        generator = seeded_generator(seed)
        d = self.norm.normalized_shape[0]
        embedding_std = INITIAL_TIED_STD * d**-0.5 if self.tie_weights else INITIAL_EMBEDDING_STD
        self.tokens.weight.normal_(0.0, embedding_std, generator=generator)
        self.positions.weight.normal_(0.0, embedding_std, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, Dropout):
                module.key.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module is not self.head:
                residual = name.endswith(('proj', 'contract'))
                scale = (2 * len(self.blocks)) ** -0.5 if residual else 1.0
                module.weight.normal_(0.0, scale * module.in_features**-0.5, generator=generator)
                module.bias.zero_()
        if not self.tie_weights:
            self.head.weight.normal_(0.0, INITIAL_LOGIT_STD * d**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, T, v)` of the token after each position, given that position and those before it."""
        x = self.embed(inputs)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(self.norm(x))

    def embed(self, inputs: Tensor, start: int = 0) -> Tensor:
        """The residual stream `(B, T, d)` before the first block; `start` is the position of the first token."""
        T = inputs.shape[1]
        if start + T > self.block_size:
            raise ValueError(
                f'a sequence of {start + T} tokens is longer than block_size={self.block_size}: shorten it'
            )
        tokens = inputs @ self.tokens.weight if inputs.is_floating_point() else self.tokens(inputs)
        return self.dropout(tokens + self.positions.weight[start : start + T])

    def last_logits(self, inputs: Tensor) -> Tensor:
        """Logits `(B, v)` of the token after the last position.

        The last block computes queries, projection and feed-forward for that position alone: nothing else is used.
        """
        x = self.embed(inputs)
        for i, block in enumerate(self.blocks):
            # Of a single token the last position is all there is.
            assert isinstance(block, Block)
            needs_all = i < len(self.blocks) - 1 and x.shape[1] > 1
            x = block(x)[0] if needs_all else block.last(x)
        return self.head(self.norm(x[:, -1]))

    @torch.no_grad()
    def generate(
        self, idx: Tensor, num_tokens: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """`idx (B, T)` continued by `num_tokens` tokens drawn from the model: `(B, T + num_tokens)` int64.

        Each token is drawn from softmax(logits / temperature); temperature 0 takes the likeliest. Draws come from
        `generator`, or from a new one seeded with 0 when none is given. Dropout is off.

        Raises ValueError for an empty `idx`, a negative temperature, and more than block_size + 1 tokens in all.
        """
        if temperature < 0:
            raise ValueError(f'temperature={temperature} is negative: use 0 (the likeliest token) or more')
        if generator is None:
            generator = torch.Generator(device=idx.device).manual_seed(0)
        return self.extend(idx, num_tokens, lambda logits: _draw(logits, temperature, generator))

    @torch.no_grad()
    def extend(self, idx: Tensor, num_tokens: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """`idx (B, T)` continued by `num_tokens` tokens, each one `choose(logits)`: `(B, T + num_tokens)` int64.

        `choose` makes the next tokens `(B, 1)` from the logits `(B, v)`. Keys and values of earlier tokens are kept, so
        a token costs one position. Dropout is off.

        Raises ValueError for an empty `idx` and more than block_size + 1 tokens in all.
        """
        if idx.ndim != 2 or idx.shape[1] < 1:
            raise ValueError(f'idx of shape {tuple(idx.shape)} holds no token to start from: give (B, T) with T >= 1')
        if idx.shape[1] + num_tokens > self.block_size + 1:
            raise ValueError(
                f'num_tokens={num_tokens} after {idx.shape[1]} tokens exceeds block_size + 1 = {self.block_size + 1}: '
                'draw fewer'
            )
        was_training = self.training
        self.eval()
        caches: list[KeyValues | None] = [None] * len(self.blocks)
        new = idx
        try:
            for _ in range(num_tokens):
                x = self.embed(new, start=idx.shape[1] - new.shape[1])
                for i, block in enumerate(self.blocks):
                    x, caches[i] = block(x, cache=caches[i])
                new = choose(self.head(self.norm(x[:, -1])))
                idx = torch.cat((idx, new), dim=1)
        finally:
            self.train(was_training)
        return idx


class MLM(CLM):
    """Predicts the last token of a sequence from those before it: the same weights as CLM, logits `(B, v)`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, v)` of the token that follows the inputs."""
        return self.last_logits(inputs)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)


def set_dropout_key(model: nn.Module, key: int) -> None:
    """Makes every dropout mask of the next forward pass a function of `key` (and of the layer)."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.key.fill_(key)


def num_parameters(model: nn.Module) -> int:
    """The number of trained numbers in a model."""
    return sum(math.prod(p.shape) for p in model.parameters())
