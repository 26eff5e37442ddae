"""Runs of each kind of step, and the losses of their first steps, taken in each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from small_runs import make_language, make_trainer
from torch import Tensor, nn, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models import CLM
from RLM_clean.training import backends
from RLM_clean.training.backends import GraphUpdate
from RLM_clean.training.loop import Trainer
from RLM_clean.training.machine import Machine
from RLM_clean.training.step import Scalars

# Optimizers, models, inputs, dropout, accumulation, precision.
KINDS: dict[str, dict[str, Any]] = {
    'sgd': {},
    'sgd without momentum': {'momentum': 0.0},
    'sgd with weight decay': {'weight_decay': 0.1, 'num_layers': 2},
    'adam': {'optim': 'adam', 'weight_decay': 0.1, 'lr': 0.01, 'num_layers': 2},
    'clip': {'grad_clip': 0.1, 'num_layers': 2, 'depth': 2, 'num_heads': 2},
    'dropout': {'dropout': 0.2, 'num_layers': 2},
    'accumulation': {'accumulation': 3, 'dropout': 0.1},
    'all': {'objective': 'all', 'model': 'transformer_clm', 'num_layers': 2},
    # Its embeddings start so small that the rounding of float32 grows at once: see the tests in float64.
    'tied': {'tie_weights': True, 'num_layers': 2},
    'fcn': {'model': 'fcn', 'num_layers': 2, 'depth': 2},
    'onehot': {'input_format': 'onehot', 'whitening': 1, 'num_layers': 2},
    'bfloat16': {'dtype': 'bfloat16', 'num_layers': 2},
}


class Interpreted(GraphUpdate):
    """The pure function itself, operation by operation."""

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        return self.write(self.tensors, inputs, targets, scalars)


WAYS: dict[str, Callable[..., backends.Update]] = {
    'eager': backends.EagerUpdate, 'pure': Interpreted, 'compiled': backends.CompiledUpdate,
}  # fmt: skip


def losses_of(config: Config, way: str, steps: int, double: bool = False) -> list[float]:
    """The losses of a run's first steps."""
    trainer = make_trainer(config)
    model, optimizer = trainer.model, trainer.optimizer
    if double:
        model.double()
        optimizer = init.init_optimizer(model, config)
    trainer.take_steps = WAYS[way](model, optimizer, config)
    return [trainer.update().item() for _ in range(steps)]


def plain_losses(config: Config, steps: int, double: bool = False) -> list[float]:
    """The same by the straightforward program: logits at all positions, a batch at a time, torch's plain optimizers."""
    model = init.init_model(config)
    if double:
        model.double()
    grammar = init.init_data(config)
    assert isinstance(model, CLM)
    optimizer: optim.Optimizer = optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, foreach=False)
    if config.optim == 'adam':
        optimizer = optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, foreach=False)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: init.lr_factor(step, config))
    losses = []
    for step in range(steps):
        inputs, targets = grammar.batch(step, config.batch_size)
        optimizer.zero_grad()
        loss = F.cross_entropy(CLM.forward(model, inputs)[:, -1], targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------------- parameters that are not trained

FROZEN = 'tokens.weight'


def frozen_trainer(config: Config) -> Trainer:
    """The eager trainer of a model whose token embeddings do not require a gradient."""
    model = init.init_model(config).to(config.device).train()
    model.get_parameter(FROZEN).requires_grad_(False)
    machine = Machine(config.device, 1, compile=False)
    return Trainer(config, make_language(config), model, init.init_optimizer(model, config), machine)


def moved(model: nn.Module, config: Config) -> set[str]:
    """The parameters that are not what they were at step 0."""
    before = init.init_model(config).state_dict()
    return {name for name, tensor in model.state_dict().items() if not tensor.cpu().equal(before[name])}
