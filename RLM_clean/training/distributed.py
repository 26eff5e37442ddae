"""One run over several processes: each takes its slice of every batch, and gradients are averaged between them.

    torchrun --nproc_per_node=2 RLM_clean/main.py --outname results/large --embedding_dim 512 --depth 8

Process 0 leads: it keeps the run, its records and its files as a process alone would, and tells the others before each
step to take it too. They hold a copy of the model and of the optimizer and draw the same batches. `batch_size` stays
that of the whole run, so its curve is that of one process up to the order of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models.transformer import Dropout
from RLM_clean.training import backends
from RLM_clean.training.batches import BatchFeed
from RLM_clean.training.signals import Interruption
from RLM_clean.training.step import flatten

# What process 0 says instead of a step.
_END = -1


def is_joined() -> bool:
    """Whether this process is one of several that train a run together."""
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """While entered, the processes that torchrun started can talk; when process 0 leaves, it lets the others go."""
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    try:
        yield
    finally:
        if dist.get_rank() == 0:
            _announce(_END, device)
        dist.barrier()  # who leaves early takes the connections of the others along
        dist.destroy_process_group()


class DistributedUpdate(backends.EagerUpdate):
    """Steps in which each process takes its slice of the batch; the same call on all of them, led by process 0."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        self.alike = False
        for module in model.modules():
            if isinstance(module, Dropout):
                module.part = dist.get_rank()

    def rebind(self) -> None:
        """Has the others take over the weights and the optimizer's state of process 0 before the next step."""
        self.alike = False

    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes update number `step` on this process's slice of inputs `(1, A, B, T)`; the loss `(1,)` of them all."""
        if dist.get_rank() == 0:
            _announce(step, inputs.device)
        if not self.alike:
            self._take_over()
        share = inputs.shape[2] // dist.get_world_size()
        mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
        losses = super().__call__(step, inputs[:, :, mine], targets[:, :, mine])
        dist.all_reduce(losses)
        return losses / dist.get_world_size()

    def _take_over(self) -> None:
        """Makes weights and optimizer states those of process 0; from now on equal gradients keep them so."""
        states = backends.optimizer_state(self.model, self.optimizer, self.config)
        counters = [state['step'] for state in self.optimizer.state.values() if 'step' in state]
        tensors = flatten({name: p.detach() for name, p in self.model.named_parameters()}, states, {})
        for tensor in tensors + counters:
            dist.broadcast(tensor, 0)
        self.loss = DistributedDataParallel(backends.Loss(self.model, self.config))
        self.alike = True


def follow(config: Config, device: torch.device) -> None:
    """What the other processes do: take the steps that process 0 takes, until it says that there are no more."""
    # A signal to stop is for process 0, which saves and then says so.
    with Interruption():
        grammar = init.init_data(config, device)
        model = init.init_model(config).to(device).train()
        take_step = DistributedUpdate(model, init.init_training(model, config)[1], config)
        feed = BatchFeed(grammar, config, device)
        while (step := _hear(device)) != _END:
            take_step(step, *feed(step))


def _announce(step: int, device: torch.device) -> None:
    dist.broadcast(torch.tensor([step], device=device), 0)


def _hear(device: torch.device) -> int:
    message = torch.tensor([0], device=device)
    dist.broadcast(message, 0)
    return int(message.item())
