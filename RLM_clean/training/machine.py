"""Where and how a run is computed: its device, its threads, compiled or not; what `auto` means, from options alone.

Nothing here looks at a clock or at a cache: the same options choose the same, so that the same seeds give the same
bits. What was chosen is kept in the files of a run, and a resumed run keeps it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from RLM_clean.config import Config

# Multiplications in a step below which one thread is used.
_PRODUCTS_FOR_THREADS = 2 * 10**8
# Steps from which compiling a step, some ten seconds, costs less than it saves.
_STEPS_TO_COMPILE = 2**14


@dataclass(frozen=True)
class Machine:
    """The device ('cpu', 'cuda:1', ...), the threads of the CPU, and whether steps are compiled."""

    device: str
    threads: int
    compile: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)


def choose(config: Config, recorded: Mapping[str, Any] | None = None) -> Machine:
    """The machine that the options ask for; `auto` is what the run began with (`recorded`), or else the rules below."""
    device = resolve_device(config.device)
    if device.type == 'cuda' and device.index is None and processes() > 1:
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
    auto = {'threads': default_threads(config), 'compile': default_compile(config, device), **(recorded or {})}
    return Machine(
        str(device),
        auto['threads'] if config.threads == 'auto' else int(config.threads),
        auto['compile'] if config.compile == 'auto' else config.compile == 'on',
    )


def resolve_device(device: str) -> torch.device:
    """The torch device that an option names; auto is cuda, mps or cpu, the first there is.

    Raises ValueError for a name that torch does not know and for a device that is absent.
    """
    mps = torch.backends.mps.is_available()
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu')
    kind, _, index = device.partition(':')
    if kind not in ('cpu', 'cuda', 'mps') or not (device == kind or index.isdecimal()):
        raise ValueError(f'device={device!r} is unknown: use auto, cpu, cuda, cuda:1 or mps')
    present = {'cpu': 1, 'cuda': torch.cuda.device_count(), 'mps': int(mps)}[kind]
    if int(index or 0) >= present:
        raise ValueError(f'device={device!r} is not on this machine: use auto or cpu')
    return torch.device(kind, int(index)) if index else torch.device(kind)


def step_products(config: Config) -> int:
    """About how many multiplications of matrix entries one update takes: three for each weight and position."""
    d, positions = config.embedding_dim, config.batch_size * config.context_size
    per_block = 4 * d * d + 2 * config.ffwd_size * d * d
    return 3 * positions * (config.depth * per_block + d * config.num_features)


def default_threads(config: Config) -> int:
    """The threads of a run that names none: one for small steps, all cores for large ones.

    Small matrix products lose to the meeting of threads most of what these gain (docs/benchmarks.md). For them the
    other cores are left to other runs, and the bits do not depend on how many there are.
    """
    if step_products(config) // processes() < _PRODUCTS_FOR_THREADS:
        return 1
    return max(1, available_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def available_cores() -> int:
    """The cores that this process may use, which a batch system may have made fewer than there are."""
    if 'SLURM_CPUS_PER_TASK' in os.environ:
        return int(os.environ['SLURM_CPUS_PER_TASK'])
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_of(device: torch.device) -> float:
    """The bytes of memory of a device; infinite where they are not told."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return math.inf


def processes() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return int(os.environ.get('WORLD_SIZE', 1))


def default_compile(config: Config, device: torch.device) -> bool:
    """Whether steps are compiled when the options leave it open: where a run is long enough to win back the time.

    On the CPU compiling takes some ten seconds, and a step saves about half a millisecond a block of the model, which
    is as much more to compile: the number of steps decides. A CUDA graph takes less than a second. Several batches a
    step (accumulation) make a graph as many times as large.
    """
    if processes() > 1:
        return False
    if device.type == 'cuda':
        return True
    return can_compile(device) and config.accumulation == 1 and config.last_step >= _STEPS_TO_COMPILE


def can_compile(device: torch.device) -> bool:
    """Whether steps can be compiled for a device: a CUDA graph needs nothing, the CPU a C++ compiler."""
    if device.type == 'cpu':
        return any(shutil.which(name) for name in (os.environ.get('CXX') or 'g++', 'clang++', 'c++'))
    return device.type == 'cuda'


@contextmanager
def prepared(machine: Machine, deterministic: bool) -> Iterator[torch.device]:
    """The device, with the threads and the algorithms that a run asks for; both go back at the end.

    A notebook that trains keeps its own settings, and those of one run do not reach the next.
    """
    threads, were_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(machine.threads)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        if deterministic != were_deterministic:  # to set it takes torch over a second
            torch.use_deterministic_algorithms(deterministic)
        yield torch.device(machine.device)
    finally:
        torch.set_num_threads(threads)
        if deterministic != were_deterministic:
            torch.use_deterministic_algorithms(were_deterministic, warn_only=warn_only)
