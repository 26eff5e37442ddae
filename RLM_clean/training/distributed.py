"""One run over several processes: each takes its part of every batch, and gradients are averaged between them.

    torchrun --nproc_per_node=2 RLM_clean/main.py --outname results/large --embedding_dim 512 --depth 8

Process 0 leads: it keeps the run, its records and its files as a process alone would, and before each step it announces
the step to the others. They hold a copy of the model and of the optimizer, and draw the same batches. `batch_size` is
that of the whole run, so its curve is that of one process up to the order of sums.

Where one process fails, all end within seconds. The one that failed says why; it is counted in the key-value store
through which the processes found each other, and a thread of each process watches that count.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models.layers import Dropout
from RLM_clean.training import machine
from RLM_clean.training.backends import EagerUpdate, optimizer_state
from RLM_clean.training.batches import BatchFeed
from RLM_clean.training.machine import Machine
from RLM_clean.training.signals import Interruption
from RLM_clean.training.step import flatten

Result = TypeVar('Result')

# What process 0 announces in place of a step: the end, and before the first step the rules of the language.
_END, _RULES = -1, -2
# How long a process waits for the others: while process 0 computes floors or evaluates, they have nothing to do.
_TIMEOUT = timedelta(hours=1)
# The key of the store under which failed processes are counted; seconds between two looks at it; and seconds that the
# others leave the one that failed to say why, before the launcher sees that they have ended, and ends it too.
_FAILURES, _SECONDS_BETWEEN_LOOKS, _SECONDS_TO_SAY_WHY = 'failures', 0.5, 2.0


def is_joined() -> bool:
    """Whether this process is one of several that train a run together."""
    return dist.is_available() and dist.is_initialized()


def train(config: Config, lead: Callable[[Config], Result]) -> Result | None:
    """`lead(config)` on process 0, which trains the run; the other processes take its steps with it and return None.

    Raises what `lead` raises, and ConnectionError where another process has ended. Of several processes that fail, the
    first one raises, and the others end with status 1.
    """
    # One connection to join by, and one to watch by: waiting for others blocks the first.
    (joining, rank, size), (watching, *_) = (next(iter(dist.rendezvous('env://'))) for _ in range(2))
    ended = threading.Event()
    threading.Thread(target=_watch, args=(watching, ended), daemon=True).start()
    try:
        chosen = machine.choose(config)
        with _joined(joining, rank, size, torch.device(chosen.device)):
            if rank == 0:
                return lead(config)
            _follow(config, chosen)
            return None
    except BaseException:
        if not _is_first_failure(watching):
            os._exit(1)
        raise
    finally:
        ended.set()


def _watch(store: dist.Store, ended: threading.Event) -> None:
    """Ends this process soon after another one has failed, or the store has gone with the process that kept it."""
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            failed = store.check([_FAILURES])
        except RuntimeError:
            failed = True
        if failed and not ended.wait(_SECONDS_TO_SAY_WHY):
            os._exit(1)


def _is_first_failure(store: dist.Store) -> bool:
    try:
        return store.add(_FAILURES, 1) == 1
    except RuntimeError:  # process 0 kept the store, and has failed first
        return False


@contextmanager
def _joined(store: dist.Store, rank: int, size: int, device: torch.device) -> Iterator[None]:
    """Connects the processes; at the end process 0 lets the others go. After an error, connections are left to break.

    To close them would mean waiting for the others.
    """
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    with _communicating():
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    yield
    with _communicating():
        if rank == 0:
            _announce(_END, device)
        dist.barrier()  # a process that leaves early breaks the connections of the others
        dist.destroy_process_group()


@contextmanager
def _communicating() -> Iterator[None]:
    """Turns the errors of torch.distributed into a ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError('another process of the run has ended or cannot be reached') from error


def _follow(config: Config, chosen: Machine) -> None:
    """Takes the steps that process 0 announces until it announces the end."""
    # A signal to stop is for process 0, which saves and then announces the end.
    with Interruption(), machine.prepared(chosen, config.deterministic) as device:
        if _hear(device) == _END:
            return
        language = init.init_data(config, device, _receive_rules(device))
        model = init.init_model(config).to(device).train()
        take_step = DistributedUpdate(model, init.init_optimizer(model, config), config)
        feed = BatchFeed(language, config, device)
        while (step := _hear(device)) != _END:
            take_step(step, *feed(step))


def share_rules(rules: Tensor, device: torch.device) -> None:
    """Process 0 gives the others its rules, `(v, v, v)` or `(L, v, v, v)`, which may be those of a file."""
    _announce(_RULES, device)
    shape = torch.tensor([0] * (4 - rules.dim()) + list(rules.shape), device=device)
    with _communicating():
        dist.broadcast(shape, 0)
        dist.broadcast(rules.float().to(device).contiguous(), 0)


def _receive_rules(device: torch.device) -> Tensor:
    """The rules that `share_rules` sends, on the CPU."""
    shape = torch.zeros(4, dtype=torch.int64, device=device)
    with _communicating():
        dist.broadcast(shape, 0)
        rules = torch.empty([size for size in shape.tolist() if size], device=device)
        dist.broadcast(rules, 0)
    return rules.cpu()


class DistributedUpdate(EagerUpdate):
    """Steps in which each process takes its part of the batch; the same call on all of them, led by process 0."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.in_sync = False
        for module in model.modules():
            if isinstance(module, Dropout):
                module.part = self.rank

    def rebind(self) -> None:
        """Copies the weights and the optimizer's state of process 0 to the others before the next step."""
        self.in_sync = False

    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes update number `step` on this process's part of inputs `(1, A, B, T)`; the loss `(1,)` of all parts."""
        if self.rank == 0:
            _announce(step, inputs.device)
        if not self.in_sync:
            self._copy_from_leader()
        part = inputs.shape[2] // self.size
        mine = slice(self.rank * part, (self.rank + 1) * part)
        return super().__call__(step, inputs[:, :, mine], targets[:, :, mine])

    def combine(self, loss: Tensor) -> Tensor:
        """Averages the gradients and the loss over the processes, in one message."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([loss[None], *(g.flatten() for g in gradients)])
        with _communicating():
            dist.all_reduce(flat)
        flat /= self.size
        for g, mean in zip(gradients, flat[1:].split([g.numel() for g in gradients]), strict=True):
            g.copy_(mean.view_as(g))
        return flat[0]

    def _copy_from_leader(self) -> None:
        """Makes weights and optimizer states those of process 0; from now on equal gradients keep them so."""
        states = optimizer_state(self.model, self.optimizer, self.config)
        counters = [state['step'] for state in self.optimizer.state.values() if 'step' in state]
        tensors = flatten({name: p.detach() for name, p in self.model.named_parameters()}, states, {})
        with _communicating():
            for tensor in tensors + counters:
                dist.broadcast(tensor, 0)
        self.in_sync = True


def _announce(step: int, device: torch.device) -> None:
    with _communicating():
        dist.broadcast(torch.tensor([step], device=device), 0)


def _hear(device: torch.device) -> int:
    message = torch.tensor([0], device=device)
    with _communicating():
        dist.broadcast(message, 0)
    return int(message.item())
