"""Convolutional networks in the shape of the tree: one layer for each level, which joins tokens two by two.

F. Cagnetta, L. Petrini, U. M. Tomasini, A. Favero and M. Wyart, Phys. Rev. X 14, 031001 (2024): the patches of a layer
do not overlap, and a patch is what a symbol of the tree has become.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.models.fcn import input_rows
from RLM_clean.models.layers import INITIAL_LOGIT_STD, Linear
from RLM_clean.streams import seeded_generator


class CNN(nn.Module):
    """The hierarchical convolutional network: logits `(B, c)` of one target, from all leaves of a tree or all but one.

    Each layer is a convolution of filter size 2 and stride 2, followed by a ReLU:
    `x'_i = relu(W (x_2i, x_2i+1) + b)`, the same W and b at all positions i. After `depth` layers one position is left,
    which a linear head reads. Where the last leaf is missing, because it is what the model predicts, its row is zero.

    Args:
        vocab_size: v, the number of symbols of an input. Inputs are token indices `(B, T)` or rows `(B, T, v)`.
        num_inputs: T, 2^depth or 2^depth - 1.
        width: the number of channels of each layer.
        depth: the number of layers, 1 or more, which is the depth of the tree.
        second_moment: the mean square of an input's entry, 1/v for one-hot rows (the default) and 1 for whitened
            ones: the first layer's scale, so that activations start at order one.
        seed: every weight is a function of the shapes and of this seed.
        num_outputs: c, the number of values of the target; v by default.

    Raises ValueError for another num_inputs.
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
    ) -> None:
        super().__init__()
        if num_inputs not in (2**depth, 2**depth - 1):
            raise ValueError(
                f'num_inputs={num_inputs} does not fit {depth} layers, which join tokens two by two: '
                f'use {2**depth - 1} or {2**depth}'
            )
        self.vocab_size = vocab_size
        self.num_inputs = num_inputs
        self.second_moment = 1 / vocab_size if second_moment is None else second_moment
        channels = [vocab_size] + (depth - 1) * [width]
        self.hidden = nn.ModuleList(
            self.layer(2 * c, width, num_patches=2 ** (depth - 1 - i)) for i, c in enumerate(channels)
        )
        self.head = Linear(width, num_outputs or vocab_size, bias=False)
        self.reset_parameters(seed)

    @staticmethod
    def layer(num_inputs: int, width: int, num_patches: int) -> nn.Module:
        """What maps patches `(B, num_patches, num_inputs)` to `(B, num_patches, width)`, with a `weight` and `bias`."""
        return Linear(num_inputs, width)  # the same for all patches

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws every weight anew: He initialisation (He et al., ICCV 2015), small logits at the head.

        A small head is what makes the hidden layers learn features at large width, as the paper's head N(0, 1) / width
        does; the paper's hidden weights are N(0, 1 / fan_in) and its biases N(0, 0.1^2).
        """
        generator = seeded_generator(seed)
        power = self.second_moment
        for layer in self.hidden:
            weight, bias = layer.weight, layer.bias
            assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
            weight.normal_(0.0, (2 / (weight.shape[-1] * power)) ** 0.5, generator=generator)
            bias.zero_()
            power = 1.0
        self.head.weight.normal_(0.0, INITIAL_LOGIT_STD * self.head.in_features**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, c)`. Raises ValueError when the inputs do not hold `num_inputs` tokens."""
        x = input_rows(inputs, self)
        x = F.pad(x, (0, 0, 0, self.num_inputs % 2))  # a zero row for the leaf that is missing
        for layer in self.hidden:
            x = F.relu(layer(x.unflatten(1, (-1, 2)).flatten(2)))
        return self.head(x.flatten(1))
