"""Transformers: CLM predicts the next token at every position, MLM the one that follows the last; BERT sees both sides.

Pre-norm blocks of attention and a feed-forward part, token embeddings, positions, a final norm and a linear head.
Shapes in names: B sequences, T tokens, v symbols, c classes, d embedding dimensions, H heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.models.attention import Attention, KeyValues
from RLM_clean.models.layers import INITIAL_LOGIT_STD, Dropout, Embedding, Linear, check_length
from RLM_clean.models.parametrisation import BASE_WIDTH, attention_scale
from RLM_clean.streams import seeded_generator

# Tied heads read the residual stream with its own embeddings: larger ones would start with larger logits.
INITIAL_TIED_STD = 0.01
# The first norm divides by the size of the embeddings, so small ones are learnt faster: at the default learning rate
# the excess of the default run ends lower from 0.3 than from 1 or 0.1.
INITIAL_EMBEDDING_STD = 0.3


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x)) unless `ffwd_size` is 0."""

    def __init__(self, d: int, ffwd_size: int, dropout: float, layer: int, attention: Attention) -> None:
        super().__init__()
        self.ffwd_size = ffwd_size
        self.norm_1 = nn.LayerNorm(d)
        self.attention = attention
        self.dropout_1 = Dropout(dropout, 2 * layer + 1)
        if ffwd_size:
            self.norm_2 = nn.LayerNorm(d)
            self.expand = Linear(d, ffwd_size * d)
            self.contract = Linear(ffwd_size * d, d)
            self.dropout_2 = Dropout(dropout, 2 * layer + 2)

    def forward(self, x_BxTxd: Tensor, cache: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """The residual stream after the block, and its keys and values, with a `cache` as in Attention."""
        y, keys_values = self.attention(self.norm_1(x_BxTxd), cache)
        return self._feed_forward(x_BxTxd + self.dropout_1(y)), keys_values

    def last(self, x_BxTxd: Tensor) -> Tensor:
        """The residual stream after the block at the last position alone, `(B, 1, d)`."""
        return self._feed_forward(x_BxTxd[:, -1:] + self.dropout_1(self.attention.last(self.norm_1(x_BxTxd))))

    def _feed_forward(self, x_BxTxd: Tensor) -> Tensor:
        if not self.ffwd_size:
            return x_BxTxd
        return x_BxTxd + self.dropout_2(self.contract(F.gelu(self.expand(self.norm_2(x_BxTxd)))))


class CLM(nn.Module):
    """Causal language model: logits of the next token at every position, `(B, T, c)`.

    Args:
        vocab_size: v, the number of symbols of the inputs: token indices `(B, T)` or one-hot (or whitened one-hot) rows
            `(B, T, v)`.
        block_size: the largest T.
        embedding_dim: d, a multiple of num_heads.
        depth: the number of blocks.
        ffwd_size: the width of the feed-forward layers, in units of d; 0 leaves attention only.
        dropout: the probability of dropping an entry of the embeddings and of each output of a block's parts.
        tie_weights: the head uses the token embeddings.
        seed: every weight is a function of the shapes and of this seed.
        num_outputs: c, the number of classes of the head; v by default.
        positions: 'learned' embeddings, 'rope' (rotary: see `rotate`), or 'none'.
        mup: the maximal update parametrisation (G. Yang et al., Tensor Programs V, arXiv:2203.03466), for which the
            best learning rate does not move with d. Products of queries and keys are scaled by 8 H / d, logits by
            64 / d; `parametrisation.lr_factors` has the learning rates. At d = 64 and H = 1 nothing changes.

    Raises ValueError when num_heads does not divide embedding_dim, for rope with an odd d / H, for tied weights where
    inputs and classes differ in number, and for inputs longer than block_size.
    """

    causal = True

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
        *,
        num_outputs: int | None = None,
        positions: str = 'learned',
        mup: bool = False,
    ) -> None:
        super().__init__()
        d, num_outputs = embedding_dim, vocab_size if num_outputs is None else num_outputs
        _check_shapes(d, num_heads, positions)
        if tie_weights and num_outputs != vocab_size:
            raise ValueError(
                f'tie_weights=True needs one class for each input symbol, not num_outputs={num_outputs} and '
                f'vocab_size={vocab_size}: leave it out'
            )
        self.vocab_size, self.num_outputs, self.block_size = vocab_size, num_outputs, block_size
        self.tie_weights, self.mup = tie_weights, mup
        self.tokens = Embedding(vocab_size, d)
        self.positions = Embedding(block_size, d) if positions == 'learned' else None
        self.dropout = Dropout(dropout, 0)
        scale = attention_scale(d // num_heads) if mup else None
        self.blocks = nn.ModuleList(
            Block(d, ffwd_size, dropout, layer, Attention(d, num_heads, self.causal, positions == 'rope', scale))
            for layer in range(depth)
        )
        self.norm = nn.LayerNorm(d)
        self.head = Linear(d, num_outputs, bias=False)
        if tie_weights:
            self.head.weight = self.tokens.weight
        self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws every weight anew from a generator seeded by `seed`: embeddings N(0, 0.3^2), matrices N(0, 1/fan_in).

        The projections back to the residual stream are divided by the root of their number (2 depth, or depth without
        feed-forward parts), so that its variance does not grow with depth (Radford et al., GPT-2, 2019); the head
        starts with logits of standard deviation 0.005, with mup 0.005 sqrt(64 / d). With tied weights, token and
        position embeddings are N(0, 0.01^2 / d), d = 64 with mup: the logits start with a deviation of about 0.01.
        """
        generator = seeded_generator(seed)
        # The weights of the head do not shrink with width where mup scales the logits themselves.
        width = BASE_WIDTH if self.mup else self.norm.normalized_shape[0]
        embedding_std = INITIAL_TIED_STD * width**-0.5 if self.tie_weights else INITIAL_EMBEDDING_STD
        self.tokens.weight.normal_(0.0, embedding_std, generator=generator)
        if self.positions is not None:
            self.positions.weight.normal_(0.0, embedding_std, generator=generator)
        num_residual = sum(name.endswith(('proj', 'contract')) for name, _ in self.named_modules())
        for name, module in self.named_modules():
            if isinstance(module, Dropout):
                module.key.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear) and module is not self.head:
                residual = name.endswith(('proj', 'contract'))
                scale = num_residual**-0.5 if residual else 1.0
                module.weight.normal_(0.0, scale * module.in_features**-0.5, generator=generator)
                module.bias.zero_()
        if not self.tie_weights:
            self.head.weight.normal_(0.0, INITIAL_LOGIT_STD * width**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, T, c)` of the token after each position, given that position and those before it."""
        x = self.embed(inputs)
        for block in self.blocks:
            x, _ = block(x)
        return self.read(x)

    def embed(self, inputs: Tensor, start: int = 0) -> Tensor:
        """The residual stream `(B, T, d)` before the first block; `start` is the position of the first token."""
        T = inputs.shape[1]
        check_length(start + T, self.block_size)
        tokens = self.tokens(inputs)
        return self.dropout(tokens if self.positions is None else tokens + self.positions.weight[start : start + T])

    def read(self, x_BxTxd: Tensor) -> Tensor:
        """The logits `(..., c)` that the head reads from the residual stream `(..., d)` after the last block."""
        x = self.norm(x_BxTxd)
        return self.head(x * (BASE_WIDTH / x.shape[-1]) if self.mup else x)

    def last_logits(self, inputs: Tensor) -> Tensor:
        """Logits `(B, c)` at the last position: those of the token after it.

        The last block computes queries, projection and feed-forward for that position alone: nothing else is used.
        """
        x = self.embed(inputs)
        for i, block in enumerate(self.blocks):
            # Of a single token the last position is all there is.
            assert isinstance(block, Block)
            needs_all = i < len(self.blocks) - 1 and x.shape[1] > 1
            x = block(x)[0] if needs_all else block.last(x)
        return self.read(x[:, -1])

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
                new = choose(self.read(x[:, -1]))
                idx = torch.cat((idx, new), dim=1)
        finally:
            self.train(was_training)
        return idx


class MLM(CLM):
    """Predicts the last token of a sequence from those before it: the same weights as CLM, logits `(B, c)`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, c)` of the token that follows the inputs."""
        return self.last_logits(inputs)


class BERT(CLM):
    """CLM without its causal mask: every position sees all tokens, and has logits of its own, `(B, T, c)`.

    J. Devlin et al., BERT, NAACL 2019. `last_logits` are those of the last position.
    """

    causal = False

    def extend(self, idx: Tensor, num_tokens: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Raises ValueError: a model that sees both sides of a token does not continue sequences."""
        raise ValueError(
            'transformer_bert sees the tokens after each position and cannot continue a sequence: use transformer_clm'
        )


def _check_shapes(d: int, num_heads: int, positions: str) -> None:
    if d % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide embedding_dim={d}: make one a multiple of the other')
    if positions not in ('learned', 'rope', 'none'):
        raise ValueError(f'positions={positions!r} is unknown: use learned, rope or none')
    if positions == 'rope' and d // num_heads % 2:
        raise ValueError(
            f"positions='rope' turns pairs of dimensions: make embedding_dim / num_heads={d}/{num_heads} even"
        )


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)
