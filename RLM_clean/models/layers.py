"""The parts that the models share: unfilled layers, dropout by counter, the size of the first logits.

Every model draws its weights itself, from a generator of its own: torch's layers would draw theirs from the global one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from RLM_clean.streams import random_words

# Logits of this standard deviation at initialisation put the loss within 0.01 nats of ln v, the uniform guess, even
# where few symbols are far from equally likely, so that the errors of the logits hardly average out.
INITIAL_LOGIT_STD = 0.005


class Linear(nn.Linear):
    """A linear layer that is left unfilled: torch would draw its weights from the global generator."""

    def reset_parameters(self) -> None:
        """Does nothing: the model draws all weights, from a generator of its own."""


class Embedding(nn.Embedding):
    """An embedding that is left unfilled, as Linear is. It takes rows over the symbols too, in place of indices."""

    def reset_parameters(self) -> None:
        """Does nothing: the model draws all weights, from a generator of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The embeddings `(..., d)` of symbols `(...)` or of rows `(..., v)`, in the precision of the weights."""
        if not inputs.is_floating_point():
            return super().forward(inputs)
        return (inputs @ self.weight).to(self.weight.dtype)  # as with indices, also where products are in bfloat16


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


def set_dropout_key(model: nn.Module, key: int) -> None:
    """Makes every dropout mask of the next forward pass a function of `key` (and of the layer)."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.key.fill_(key)


def num_parameters(model: nn.Module) -> int:
    """The number of trained numbers in a model."""
    return sum(math.prod(p.shape) for p in model.parameters())


def check_length(T: int, block_size: int) -> None:
    """Raises ValueError for a sequence of more than block_size tokens."""
    if block_size < T:
        raise ValueError(f'a sequence of {T} tokens is longer than block_size={block_size}: shorten it')
