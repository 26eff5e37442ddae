"""The plain way: the program that one writes first, against which this library is measured.

One tensor of rules, each pair of children drawn by `torch.multinomial` from the v^2 probabilities of its parent, each
batch when its step needs it, the model at all positions, autograd and torch.optim as they come, and an evaluation on
fresh sequences now and then. The architecture, the initial weights, the sizes and the precision are those of the
library's runs. What it leaves out, exact floors and files, is not charged to it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models import CLM
from RLM_clean.models.transformer import Block


def random_rules(v: int, beta: float) -> Tensor:
    """Rules `M (v, v^2)`: the probabilities of all pairs of children of each symbol."""
    return torch.softmax(beta * math.sqrt(math.log(v)) * torch.randn(v, v * v), dim=1)


def sample(M: Tensor, L: int, batch_size: int) -> Tensor:
    """Sequences `(batch_size, 2^L)` of leaves, drawn level by level from a uniform root."""
    v = len(M)
    symbols = torch.randint(v, (batch_size, 1))
    for _ in range(L):
        pairs = torch.multinomial(M[symbols.flatten()], 1)
        symbols = torch.cat((pairs // v, pairs % v), dim=1).view(batch_size, -1)
    return symbols


def logits(model: CLM, inputs: Tensor) -> Tensor:
    """The logits `(B, T, v)` at all positions."""
    assert model.positions is not None
    x = model.tokens(inputs) + model.positions.weight[: inputs.shape[1]]
    for block in model.blocks:
        assert isinstance(block, Block)
        attention, heads = block.attention, block.attention.num_heads
        q, k, v = (
            y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in attention.qkv(block.norm_1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.proj(y.transpose(1, 2).flatten(2))
        x = x + block.contract(F.gelu(block.expand(block.norm_2(x))))
    return model.head(model.norm(x))


class PlainRun:
    """A training run, the plain way."""

    def __init__(self, config: Config, M: Tensor | None = None) -> None:
        self.config = config
        self.M = random_rules(config.num_features, config.beta) if M is None else M
        model = init.init_model(replace(config, model='transformer_clm'))
        assert isinstance(model, CLM)
        self.model = model
        weights = self.model.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(weights, lr=config.lr, momentum=config.momentum)
            if config.optim == 'sgd'
            else torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: init.lr_factor(step, config))

    def loss(self, sequences: Tensor) -> Tensor:
        """The mean of -ln q(next token), at the last position or at all of them."""
        scores, targets = logits(self.model, sequences[:, :-1]), sequences[:, 1:]
        if self.config.objective == 'last':
            scores, targets = scores[:, -1], targets[:, -1]
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten())

    def update(self, sequences: Tensor) -> Tensor:
        """One step of gradient descent; returns the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss(sequences)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def step(self) -> Tensor:
        """One step on a fresh batch."""
        return self.update(sample(self.M, self.config.num_layers, self.config.batch_size))

    @torch.no_grad()
    def evaluate(self, batches: int) -> float:
        """The loss on fresh sequences, batch by batch: all of them would need v^2 numbers for each pair at once."""
        fresh = (sample(self.M, self.config.num_layers, self.config.batch_size) for _ in range(batches))
        return sum(self.loss(sequences).item() for sequences in fresh) / batches
