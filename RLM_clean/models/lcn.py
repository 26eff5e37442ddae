"""Locally connected networks: the hierarchical convolutional network without weights that positions share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from RLM_clean.models.cnn import CNN


class LCN(CNN):
    """The network of CNN with weights of its own for each patch: `x'_i = relu(W_i (x_2i, x_2i+1) + b_i)`.

    Arguments, inputs and logits are those of CNN.
    """

    @staticmethod
    def layer(num_inputs: int, width: int, num_patches: int) -> nn.Module:
        """What maps patches `(B, num_patches, num_inputs)` to `(B, num_patches, width)`, with a `weight` and `bias`."""
        return LocalLinear(num_inputs, width, num_patches)


class LocalLinear(nn.Module):
    """A linear layer for each patch, left unfilled: weight `(P, width, num_inputs)`, bias `(P, width)`."""

    def __init__(self, num_inputs: int, width: int, num_patches: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_patches, width, num_inputs))
        self.bias = nn.Parameter(torch.empty(num_patches, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, P, num_inputs)` -> `(B, P, width)`."""
        return torch.einsum('bpi,poi->bpo', x, self.weight) + self.bias
