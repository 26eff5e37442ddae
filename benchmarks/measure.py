"""How everything here is measured: what is compared is timed in turn, in one process or in processes of their own."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from RLM_clean.threads import available_cores

ROOT = Path(__file__).resolve().parent.parent

Key = TypeVar('Key')
Item = TypeVar('Item')


@dataclass(frozen=True)
class Settings:
    """How thoroughly to measure: `quick` takes small sizes and short times, `large` adds what needs much memory."""

    quick: bool = False
    repeats: int = 5
    large: bool = False

    @property
    def span(self) -> float:
        """Seconds that one timing of something short goes on for."""
        return 0.02 if self.quick else 0.3


@dataclass(frozen=True)
class Work:
    """Something to time: one call of `run` makes `amount` of it (steps, leaves, ...) on so many threads."""

    run: Callable[[], object]
    amount: float = 1.0
    threads: int = 1


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(works: Mapping[Key, Work], repeats: int, span: float = 0.0) -> dict[Key, list[float]]:
    """Seconds for one unit of each work, once a repeat; a repeat times all of them, one after the other.

    What slows the machine for a while thus slows all alike, and the ratio of two times of one repeat hardly changes.
    Each is called once before, to warm up, and in each repeat as often as fills `span` seconds.
    """
    with threads_kept():
        calls = {}
        for key, work in works.items():
            torch.set_num_threads(work.threads)
            work.run()
            calls[key] = max(1, math.ceil(span / seconds(work.run))) if span else 1
        times: dict[Key, list[float]] = {key: [] for key in works}
        for _ in range(repeats):
            for key, work in works.items():
                torch.set_num_threads(work.threads)
                start = time.perf_counter()
                for _ in range(calls[key]):
                    work.run()
                times[key].append((time.perf_counter() - start) / (calls[key] * work.amount))
    return times


@contextmanager
def clocked(*places: tuple[str, object, str]) -> Iterator[dict[str, float]]:
    """Adds up the seconds of all calls made inside: of attribute `name` of `owner` for each (label, owner, name)."""
    spent = {label: 0.0 for label, *_ in places}

    def timed(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[label] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for label, owner, name in places:
            stack.enter_context(mock.patch.object(owner, name, timed(label, getattr(owner, name))))
        yield spent


@contextmanager
def threads_kept(threads: int | None = None) -> Iterator[None]:
    """Gives torch its number of threads back at the end; inside it has `threads` of them, where that is given."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_process(function: Callable[..., Any], *arguments: Any, **variables: str) -> Any:
    """What a function of a module returns, called in a process of its own with more environment variables.

    Its arguments and its result pass through JSON.
    """
    code = (
        'import importlib, json, sys\n'
        'module, name, arguments = json.loads(sys.argv[1])\n'
        'print(json.dumps(getattr(importlib.import_module(module), name)(*arguments)))'
    )
    call = json.dumps([function.__module__, function.__name__, arguments])
    return json.loads(run_python('-c', code, call, **variables).splitlines()[-1])


def run_python(*words: str, **variables: str) -> str:
    """The output of `python words...`, started at the root of the repository. Raises RuntimeError where it fails."""
    process = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f'{" ".join(words)} failed:\n{process.stderr}')
    return process.stdout


def peak_memory() -> float:
    """The largest resident memory of this process so far, in GB."""
    try:
        # Not getrusage: what it counts was begun by the process that started this one.
        status = Path('/proc/self/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        unit = 1 if sys.platform == 'darwin' else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def matrix_peak(threads: int, quick: bool = False, device: str = 'cpu', dtype: torch.dtype = torch.float32) -> float:
    """The most multiplications of matrix entries a second: the best of products of large square matrices."""
    rates = []
    sizes = (2048, 4096, 8192) if device == 'cuda' else (512, 1024, 2048)
    with threads_kept(threads):
        for size in (256, 512) if quick else sizes:
            # Random: on a GPU products of constants draw less power, and are faster.
            a, b, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
            product = waited_for(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)  # type: ignore[misc]
            rates.append(size**3 / min(in_turn({0: Work(product, threads=threads)}, 5, 0.02 if quick else 0.2)[0]))
    return max(rates)


def waited_for(function: Callable[[], object], device: str) -> Callable[[], None]:
    """`function`, and the end of the work that it gave to a GPU."""

    def run() -> None:
        function()
        if device == 'cuda':
            torch.cuda.synchronize()

    return run


def machine() -> dict[str, Any]:
    """Where the measurements were made."""
    return {
        'processor': _processor(),
        'cores': available_cores(),
        'torch threads': torch.get_num_threads(),
        'memory (GB)': round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9, 1),
        'system': f'{platform.system()} {platform.machine()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def watched(
    items: Mapping[str, Item], weights: Mapping[str, float] | None = None, indent: str = '  '
) -> Iterator[tuple[str, Item]]:
    """The items with their names, one after the other; a line on standard error says which, and what is left of them.

    `weights` say how long each takes compared to the others.
    """
    weights = weights or dict.fromkeys(items, 1.0)
    left, start = sum(weights[name] for name in items), time.perf_counter()
    whole = left
    for i, (name, item) in enumerate(items.items(), start=1):
        elapsed = time.perf_counter() - start
        estimate = f', about {elapsed * left / (whole - left):.0f} s left' if left < whole else ''
        print(f'{indent}{i}/{len(items)} {name}{estimate}', file=sys.stderr, flush=True)
        yield name, item
        left -= weights[name]
