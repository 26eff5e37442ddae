"""Fully connected networks: the baseline without attention and without shared weights between positions."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.models.transformer import INITIAL_LOGIT_STD, Linear
from RLM_clean.streams import seeded_generator


class MLP(nn.Module):
    """A multi-layer perceptron on the one-hot codes of T tokens: logits `(B, v)` of the token that follows them.

    Args:
        vocab_size: v. Inputs are token indices `(B, T)` or rows `(B, T, v)`.
        num_inputs: T, fixed.
        width: the size of the hidden layers.
        depth: the number of hidden layers, 1 or more.
        second_moment: the mean square of an input's entry, 1/v for one-hot rows (the default) and 1 for whitened
            ones: the first layer's scale, so that activations start at order one.
        seed: every weight is a function of the shapes and of this seed.
    """

    def __init__(
        self,
        vocab_size: int,
        num_inputs: int,
        width: int,
        depth: int = 1,
        second_moment: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_inputs = num_inputs
        self.second_moment = 1 / vocab_size if second_moment is None else second_moment
        sizes = [num_inputs * vocab_size] + depth * [width]
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.head = Linear(width, vocab_size, bias=False)
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
        """Logits `(B, v)`. Raises ValueError when the inputs do not hold `num_inputs` tokens."""
        if inputs.shape[1] != self.num_inputs:
            raise ValueError(f'{inputs.shape[1]} tokens were given to a network of {self.num_inputs}: give as many')
        if not inputs.is_floating_point():
            symbols = torch.arange(self.vocab_size, device=inputs.device)
            inputs = (inputs[..., None] == symbols).to(self.head.weight.dtype)
        x = inputs.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)
