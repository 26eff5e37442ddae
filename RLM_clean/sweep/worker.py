"""A worker of a sweep: takes a group of free runs, trains them together, and goes on until none is left.

Any number of workers, started by anyone on any machine that sees the folder of the sweep, share the work: whoever
holds the lock of a run trains it, and workers choose their runs one after another.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from RLM_clean.config import Config
from RLM_clean.runs.locks import BusyError
from RLM_clean.sweep.plan import PlannedRun, by_shape, read_plan
from RLM_clean.sweep.states import (
    claim,
    deaths,
    forget_failure,
    is_busy,
    pending,
    record_failure,
    sweep_lock,
)
from RLM_clean.training import ensemble, lifecycle, machine, progress
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import DivergedError
from RLM_clean.training.signals import Interruption

# A run whose workers died so often in a row, without a new record, is given up. The last time it is trained alone, so
# that it takes no other runs with it.
MOST_DEATHS = 3


def work(
    folder: str | Path,
    execution: dict[str, Any],
    part: tuple[int, int] = (1, 1),
    group: int | None = None,
    workers: int = 1,
) -> bool:
    """Trains what is free in a sweep; True when nothing free is left, False when a signal asked to save and stop.

    `part` (i, n) takes only every n-th run of each shape, from the i-th on: for n workers that do not see each other's
    locks. `group` is the most runs that are trained together; by default as many as pay, of which each of so many
    `workers` gets its part.

    A run that fails leaves {name}_failed.json, and the others go on. Raises ValueError when there is no such sweep.
    """
    plan = read_plan(folder, execution)
    first, step = part
    left = [runs[first - 1 :: step] for runs in by_shape(plan.runs)]
    with Interruption() as interruption:
        while not interruption.requested():
            left = [open for runs in left if (open := [run for run in runs if pending(run)])]
            with ExitStack() as claims:
                taken = _take(left, plan.folder, partial(_group_size, group=group, workers=workers), claims)
                if not taken:
                    return True
                _train(taken)
    return False


def _group_size(runs: Sequence[PlannedRun], group: int | None, workers: int) -> int:
    """How many of the runs left of a shape are to be trained together, so that all groups are about as large."""
    config = max((run.config for run in runs), key=lambda config: config.train_size)  # that which needs most memory
    device = machine.resolve_device(config.device)
    if group is not None:
        limit = 1 if device.type == 'mps' else min(group, ensemble.fitting(config, _memory(device)))
    else:
        limit = min(ensemble.group_size(config, device, _memory(device)), math.ceil(len(runs) / workers))
    return math.ceil(len(runs) / math.ceil(len(runs) / limit))


def _memory(device: torch.device) -> float:
    """The bytes that the runs of a worker may take: half of its GPU, or half of its part of the machine's memory."""
    if device.type == 'cuda':
        return machine.memory_of(device) / 2
    if 'SLURM_MEM_PER_NODE' in os.environ:
        return int(os.environ['SLURM_MEM_PER_NODE']) * 2**20 / 2
    return machine.memory_of(device) / (os.cpu_count() or 1) / 2


def _take(
    left: Sequence[Sequence[PlannedRun]], folder: Path, size: Callable[[Sequence[PlannedRun]], int], claims: ExitStack
) -> list[PlannedRun]:
    """A group of free runs of one shape, held until `claims` is closed; an empty list when no run is free."""
    # One worker chooses at a time: two that come together would split a group, and each take as long as for the whole.
    with sweep_lock(folder):
        for runs in left:
            taken: list[PlannedRun] = []
            for run in runs:
                if is_busy(folder, run):
                    continue
                died = deaths(folder, run)
                alone = died >= MOST_DEATHS - 1
                # Asked only now: another process may have ended the run just before it let it go.
                if (alone and taken) or not claims.enter_context(claim(folder, run)) or not pending(run):
                    continue
                if died >= MOST_DEATHS:
                    _fail(run.name, run.config.outname, f'its workers died {died} times: if memory ran out, use fewer')
                    continue
                taken.append(run)
                if alone or len(taken) == size(runs):
                    break
            if taken:
                return taken
    return []


def _train(group: Sequence[PlannedRun]) -> None:
    """Trains runs that this process holds, and writes down which of them fail."""
    names = {run.config.outname: run.name for run in group}
    for name in names.values():
        _say(f'{name}: taken')
    for config, result in train_together([run.config for run in group]):
        name = names[config.outname]
        if isinstance(result, BusyError):
            _say(f'{name}: trained by another process')
        elif isinstance(result, Exception):
            _fail(name, config.outname, explain(result, len(group)))
            if not isinstance(result, (ValueError, ArithmeticError, OSError, MemoryError)):
                progress.say(''.join(traceback.format_exception(result)), sys.stderr)
        else:
            forget_failure(config.outname)
            _say(f'{name}: {result.status} at step {result.step}')


def train_together(configs: Sequence[Config]) -> Iterator[tuple[Config, Outcome | Exception]]:
    """Trains runs of one shape; each with its outcome, or its error, as it ends. A single run is trained by itself."""
    if len(configs) > 1:
        yield from ensemble.train(configs, _say)
        return
    try:
        yield configs[0], lifecycle.train(configs[0], _say)
    except Exception as error:  # whatever it is, the other runs of the sweep go on
        yield configs[0], error


def explain(error: Exception, together: int) -> str:
    """Why a run failed that was trained with others, `together` in all: one line, with the remedy where it is known."""
    if machine.is_out_of_memory(error):
        if together > 1:
            return 'memory ran out: use fewer workers or a smaller --group, and --retry-failed'
        return 'memory ran out: use fewer workers and --retry-failed, or a smaller batch_size and another outname'
    if isinstance(error, (ValueError, DivergedError, OSError)):
        return ' '.join(str(error).split())
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def _fail(name: str, outname: str, why: str) -> None:
    record_failure(outname, why)
    _say(f'{name}: failed: {why}')


def _say(line: str) -> None:
    progress.say(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {line}')


def stop_at_end_of_input() -> None:
    """Asks this process to save and stop when its standard input ends: then the process at the other end has died."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def command(folder: str | Path, execution: dict[str, Any], group: int | None = None, workers: int = 1) -> list[str]:
    """The words that start a worker as a process of its own, from any folder."""
    words = [sys.executable, str(Path(__file__).with_name('__main__.py')), 'work', str(folder), f'--workers={workers}']
    words += [] if group is None else [f'--group={group}']
    for name, value in execution.items():
        words.append(f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}')
    return words
