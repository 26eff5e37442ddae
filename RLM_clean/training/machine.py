"""Where and how a run is computed: its device, its threads, whether its step is compiled, and what it needs in memory.

`choose` decides what `auto` means from the options alone, never from a clock or a cache, so that the same seeds give
the same bits. The decision is kept in the files of a run, and a resumed run keeps it. `check` refuses what this machine
cannot run, before anything is written.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from RLM_clean import init, tasks
from RLM_clean.config import Config
from RLM_clean.threads import available_cores

# Training batches are drawn ahead, for at most so many steps and so many tokens at a time.
STEPS_AHEAD, TOKENS_AHEAD = 128, 2**21
# Multiplications in a step below which one thread is used.
_PRODUCTS_FOR_THREADS = 2 * 10**8
# Steps from which compiling a step, some ten seconds, costs less than it saves.
_STEPS_TO_COMPILE = 2**14
# Tokens of a recurrent network up to which its step is compiled in less than a minute.
_TOKENS_TO_UNROLL = 16


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
    """The machine that the options ask for; `auto` is what the run began with (`recorded`), or else the rules below.

    Of what it began with, a device that this machine lacks is left out, and compilation for a device of another kind.
    """
    recorded = dict(recorded or {})
    device = resolve_device(config.device)
    if config.device == 'auto' and recorded and processes() == 1:
        with suppress(ValueError):
            device = resolve_device(recorded['device'])
    if device.type == 'cuda' and device.index is None and processes() > 1:
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
    same_kind = recorded and recorded['device'].partition(':')[0] == device.type
    if not same_kind or (recorded['compile'] and not can_compile(device)):
        recorded.pop('compile', None)
    auto = {'threads': default_threads(config), 'compile': default_compile(config, device), **recorded}
    return Machine(
        str(device),
        auto['threads'] if config.threads == 'auto' else int(config.threads),
        auto['compile'] if config.compile == 'auto' else config.compile == 'on',
    )


def resolve_device(device: str) -> torch.device:
    """The torch device that an option names; auto is the first of cuda, mps and cpu that exists.

    Raises ValueError for a device that this machine does not have.
    """
    mps = torch.backends.mps.is_available()
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu')
    kind, _, index = device.partition(':')
    present = {'cpu': 1, 'cuda': torch.cuda.device_count(), 'mps': int(mps)}[kind]
    if int(index or 0) >= present:
        raise ValueError(f'device={device!r} is not on this machine: use auto or cpu')
    return torch.device(kind, int(index)) if index else torch.device(kind)


def check(config: Config) -> None:
    """Raises ValueError, with one sentence, for options that this machine cannot run."""
    c = config
    device = resolve_device(c.device)
    together, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
    if device.type == 'cuda' and together > 1 and (device.index is not None or together > gpus):
        remedy = "device='cuda'" if gpus >= together else f'--nproc_per_node={gpus}'
        raise ValueError(f'device={c.device!r} has no GPU for each of {together} processes of torchrun: use {remedy}')
    if c.batch_size % processes():
        raise ValueError(f'batch_size={c.batch_size} does not divide among {processes()} processes: use a multiple')
    if c.regime == 'population' and processes() > 1:
        raise ValueError("regime='population' is for runs of one process: leave torchrun out")
    if c.compile == 'on' and processes() > 1:
        raise ValueError("compile='on' is for runs of one process: use auto, or leave torchrun out")
    if c.compile == 'on' and not can_compile(device):
        remedy = 'use auto' if device.type == 'mps' else 'install g++, or use auto'
        raise ValueError(f"compile='on' finds no compiler for device={c.device!r}: {remedy}")
    present = memory_of(torch.device('cpu'))
    for need in memory_needs(c):
        if need.size > present:
            name = max(need.powers, key=lambda name: getattr(c, name))
            most = int(getattr(c, name) * (present / need.size) ** (1 / need.powers[name]))
            raise ValueError(
                f'{name}={getattr(c, name)} needs {need.size / 2**30:.0f} GiB for {need.of}, this machine has '
                f'{present / 2**30:.0f}: use at most {most}'
            )


# ---------------------------------------------------------------------- memory


class Need(NamedTuple):
    """Bytes that a run needs for one thing, and the options that it grows with, each with its power."""

    of: str
    size: int
    powers: dict[str, int]


def memory_needs(config: Config) -> list[Need]:
    """What a run holds in memory, about: the one model of memory for checks and for the size of groups."""
    c = config
    # An entry of the rules takes 4 bytes, 8 in the sampler's tables, and 8 in the float64 rules of exact inference,
    # which floors from more than one token need; all three are kept.
    entry = 12 + (8 if c.context_size > 1 else 0)
    sequence = 8 * c.window
    batch = c.step_size
    ahead = 3 * min(STEPS_AHEAD * batch * sequence, 8 * TOKENS_AHEAD)  # sequences, inputs, and a copy to work on
    positions = c.context_size if tasks.of(c).at_each else 1
    heights = c.num_layers + 1 if c.bp_records else 0
    growing = {'batch_size': 1} if c.regime != 'population' else {}  # there it has no effect
    return [
        Need('the rules', entry * init.num_rule_entries(c), {'num_features': 3}),
        Need('the batches', max(ahead, sequence * batch), {'batch_size': 1, 'accumulation': 1}),
        Need('the test sequences', sequence * c.test_size, {'test_size': 1}),
        # A training set is drawn again each epoch: only its order is held, with the words that it is sorted by.
        Need('the order of an epoch', 40 * c.train_size if c.regime == 'offline' else 0, {'train_size': 1}),
        Need('the exact posteriors', 8 * min(4096 * c.num_features * positions, 2**24), {'num_features': 1}),
        Need('the divergences from BP', 8 * 4096 * heights * c.num_features * positions, {'num_features': 1}),
        # Weights, their gradients, the states of the optimizer, and the models kept as the best and as the last.
        Need('the weights', 32 * num_weights(c), {'embedding_dim': 2, 'ffwd_size': 1, 'depth': 1}),
        Need('the activations', 4 * num_activations(c), {**growing, 'depth': 1}),
    ]


def num_weights(config: Config) -> int:
    """About the number of weights of a model."""
    c, d = config, config.embedding_dim
    inputs, width, ends = c.num_inputs, c.ffwd_size * d, (c.num_inputs + c.num_outputs) * d
    if c.model == 'fcn':
        targets = c.context_size if tasks.of(c).at_each else 1
        return width * (c.context_size * inputs + (c.depth - 1) * width + targets * c.num_outputs)
    if c.model in ('cnn', 'lcn'):
        patches = [2 ** (c.depth - 1 - i) if c.model == 'lcn' else 1 for i in range(c.depth)]
        biases = sum(patches)  # those of a narrow network count: one for each of the 2^L - 1 patches of an lcn
        return width * (2 * inputs * patches[0] + 2 * width * sum(patches[1:]) + biases + c.num_outputs)
    if c.model == 'gru':
        return 6 * c.depth * d**2 + ends
    positions = c.context_size * d if c.positions == 'learned' else 0
    return c.depth * (4 + 2 * c.ffwd_size) * d**2 + ends + positions


def num_activations(config: Config) -> int:
    """About the number of activations that a step keeps for the gradient of one batch; batches come one by one."""
    c = config
    sequences, width = c.step_size // c.accumulation, c.ffwd_size * c.embedding_dim
    if c.model == 'fcn':
        return sequences * (c.context_size * c.num_inputs + 2 * c.depth * width)
    if c.model in ('cnn', 'lcn'):
        return sequences * 2**c.depth * (c.num_inputs + 2 * width)
    if c.model == 'gru':
        return sequences * c.context_size * (12 * c.depth * c.embedding_dim + 2 * c.num_features)
    looks = 2 * c.num_heads * c.context_size  # where the heads look, before and after the softmax
    of_a_block = (8 + 3 * c.ffwd_size) * c.embedding_dim + looks
    return sequences * c.context_size * (c.depth * of_a_block + 2 * c.num_features)


def memory_of(device: torch.device) -> float:
    """The bytes of memory of a device; infinite where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return math.inf


# ---------------------------------------------------------------------- threads and compilation


def step_products(config: Config) -> int:
    """About how many multiplications of matrix entries one update takes: three for each weight and position."""
    contexts = config.step_size // config.accumulation
    d, positions = config.embedding_dim, contexts * config.context_size
    per_block = 4 * d * d + 2 * config.ffwd_size * d * d
    return 3 * positions * (config.depth * per_block + d * config.num_features)


def default_threads(config: Config) -> int:
    """The threads of a run that names none: one for small steps, all cores for large ones.

    On small matrix products, threads lose much of what they gain to waiting for each other (docs/benchmarks.md). One
    thread leaves the other cores to other runs, and makes the bits independent of their number.
    """
    if step_products(config) // processes() < _PRODUCTS_FOR_THREADS:
        return 1
    return max(1, available_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    words = ('out of memory', "can't allocate memory", 'not enough memory')  # CUDA; the CPU on Linux; on Windows
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def processes() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return int(os.environ.get('WORLD_SIZE', 1))


def default_compile(config: Config, device: torch.device) -> bool:
    """Whether steps are compiled when the options leave it open: where a run is long enough to win back the time.

    On the CPU, compiling takes some ten seconds and saves about half a millisecond a step. A deeper model takes longer
    to compile and saves as much more, so the number of steps decides. A CUDA graph takes less than a second. With
    accumulation the graph grows with the number of batches, which does not pay.
    """
    if processes() > 1:
        return False
    if device.type == 'cuda':
        return True
    # The steps of a recurrent network are unrolled over its tokens: a long sequence makes a long program.
    short = config.model != 'gru' or config.context_size <= _TOKENS_TO_UNROLL
    return can_compile(device) and config.accumulation == 1 and config.last_step >= _STEPS_TO_COMPILE and short


def can_compile(device: torch.device) -> bool:
    """Whether steps can be compiled for a device: a CUDA graph needs nothing, the CPU a C++ compiler."""
    if device.type == 'cpu':
        return any(shutil.which(name) for name in (os.environ.get('CXX') or 'g++', 'clang++', 'c++'))
    return device.type == 'cuda'


@contextmanager
def prepared(machine: Machine, deterministic: bool) -> Iterator[torch.device]:
    """The device, with the threads and the algorithms that a run asks for set while entered.

    Of several GPUs it is the current one meanwhile: a CUDA graph is captured on that. All is as it was afterwards: a
    notebook that trains keeps its own settings.
    """
    device = torch.device(machine.device)
    threads, were_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(machine.threads)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        if deterministic != were_deterministic:  # setting it takes torch over a second
            torch.use_deterministic_algorithms(deterministic)
        with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
            yield device
    finally:
        torch.set_num_threads(threads)
        if deterministic != were_deterministic:
            torch.use_deterministic_algorithms(were_deterministic, warn_only=warn_only)
