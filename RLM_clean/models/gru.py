"""A recurrent network of gated units: it reads the tokens one by one, and keeps what it has read in a state.

K. Cho et al., EMNLP 2014 (arXiv:1406.1078). torch.nn.GRU computes the same, but torch.func.vmap does not take it, so
that its runs could not be trained in groups: here each step is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from RLM_clean.models.layers import INITIAL_LOGIT_STD, Embedding, Linear, check_length
from RLM_clean.streams import seeded_generator


class GRULayer(nn.Module):
    """One layer: from the states of the layer below, `(B, T, d)`, to its own.

    With the input x_t, the state h_t starts at h_0 = 0 and

        r = sigmoid(W_r x_t + U_r h + b),   z = sigmoid(W_z x_t + U_z h + b),      h = h_(t-1)
        n = tanh(W_n x_t + b + r * (U_n h + b')),   h_t = (1 - z) * n + z * h.

    This is the form of torch.nn.GRU, in which r multiplies U_n h; in the paper it multiplies h. `inputs` has the rows
    of W and `recurrent` those of U, in the order r, z, n.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.inputs = Linear(d, 3 * d)
        self.recurrent = Linear(d, 3 * d)

    def forward(self, x_BxTxd: Tensor) -> Tensor:
        h = torch.zeros_like(x_BxTxd[:, 0])
        states = []
        for from_input in self.inputs(x_BxTxd).unbind(1):  # what does not wait for the state is computed at once
            x_r, x_z, x_n = from_input.chunk(3, dim=-1)
            h_r, h_z, h_n = self.recurrent(h).chunk(3, dim=-1)
            z = torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = n + z * (h - n)
            states.append(h)
        return torch.stack(states, dim=1)


class GRU(nn.Module):
    """A recurrent network: logits of a target at every position, `(B, T, c)`, from that token and those before it.

    Args:
        vocab_size: v, the number of symbols of an input. Inputs are token indices `(B, T)` or rows `(B, T, v)`.
        block_size: the largest T.
        embedding_dim: d, the size of the embeddings and of the state of each layer.
        depth: the number of layers.
        seed: every weight is a function of the shapes and of this seed.
        num_outputs: c, the number of values of a target; v by default.

    Raises ValueError for inputs longer than block_size.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        embedding_dim: int,
        depth: int,
        seed: int = 0,
        *,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.tokens = Embedding(vocab_size, embedding_dim)
        self.layers = nn.ModuleList(GRULayer(embedding_dim) for _ in range(depth))
        self.head = Linear(embedding_dim, num_outputs or vocab_size, bias=False)
        self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws every weight anew from a generator seeded by `seed`: embeddings N(0, 1), matrices N(0, 1/d).

        Biases are zero, and the head starts with small logits.
        """
        generator = seeded_generator(seed)
        d = self.head.in_features
        self.tokens.weight.normal_(0.0, 1.0, generator=generator)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, d**-0.5, generator=generator)
                module.bias.zero_()
        self.head.weight.normal_(0.0, INITIAL_LOGIT_STD * d**-0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `(B, T, c)` at each position, given that token and those before it."""
        return self.head(self.states(inputs))

    def last_logits(self, inputs: Tensor) -> Tensor:
        """Logits `(B, c)` at the last position, from all tokens."""
        return self.head(self.states(inputs)[:, -1])

    def states(self, inputs: Tensor) -> Tensor:
        """The states `(B, T, d)` of the last layer after each token."""
        check_length(inputs.shape[1], self.block_size)
        x = self.tokens(inputs)
        for layer in self.layers:
            x = layer(x)
        return x
