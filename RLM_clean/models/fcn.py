"""Fully connected networks: the baseline without attention and without shared weights between positions."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.models.layers import INITIAL_LOGIT_STD, Linear
from RLM_clean.streams import seeded_generator


class MLP(nn.Module):
    """A multi-layer perceptron on the one-hot codes of T tokens: logits `(B, c)` of one target, or `(B, t, c)` of t.

    Args:
        vocab_size: v, the number of symbols of an input. Inputs are token indices `(B, T)` or rows `(B, T, v)`.
        num_inputs: T, fixed.
        width: the size of the hidden layers.
        depth: the number of hidden layers, 1 or more.
        second_moment: the mean square of an input's entry, 1/v for one-hot rows (the default) and 1 for whitened
            ones: the first layer's scale, so that activations start at order one.
        seed: every weight is a function of the shapes and of this seed.
        num_outputs: c, the number of values of a target; v by default.
        num_targets: t, the number of targets that are predicted at once; by default one, without an axis of its own.
    """

    def __init__(
        self,
        vocab_size: int,
        num_inputs: int,
        width: int,
        depth: int = 1,
        second_moment: float | None = None,
        seed: int = 0,
        *,
        num_outputs: int | None = None,
        num_targets: int | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_inputs = num_inputs
        self.num_outputs = num_outputs or vocab_size
        self.num_targets = num_targets
        self.second_moment = 1 / vocab_size if second_moment is None else second_moment
        sizes = [num_inputs * vocab_size] + depth * [width]
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.head = Linear(width, (num_targets or 1) * self.num_outputs, bias=False)
        self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws every weight anew: He initialisation (He et al., ICCV 2015), small logits at the head."""
        generator = seeded_generator(seed)
        power = self.second_moment
        for layer in self.hidden:
            assert isinstance(layer, nn.Linear)
            layer.weight.normal_(0.0, (2 / (layer.in_features * power)) ** 0.5, generator=generator)
            layer.bias.zero_()
            power = 1.0
        self.head.weight.normal_(0.0, INITIAL_LOGIT_STD * self.head.in_features**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, c)`, or `(B, t, c)`. Raises ValueError when the inputs do not hold `num_inputs` tokens."""
        x = input_rows(inputs, self).flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        logits = self.head(x)
        return logits if self.num_targets is None else logits.unflatten(1, (self.num_targets, self.num_outputs))


class FixedLength(Protocol):
    """A network that reads rows of a fixed number of tokens."""

    vocab_size: int
    num_inputs: int
    head: Linear


def input_rows(inputs: Tensor, network: FixedLength) -> Tensor:
    """The rows `(B, T, v)` that a network reads: one-hot codes of token indices `(B, T)`; rows as they are.

    Raises ValueError for another number of tokens than `network.num_inputs`.
    """
    if inputs.shape[1] != network.num_inputs:
        raise ValueError(f'{inputs.shape[1]} tokens were given to a network of {network.num_inputs}: give as many')
    if inputs.is_floating_point():
        return inputs
    symbols = torch.arange(network.vocab_size, device=inputs.device)
    return (inputs[..., None] == symbols).to(network.head.weight.dtype)
