"""What a sweep would do: its groups, and how long its runs will take by a trial of a few steps of each kind."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from RLM_clean.experiment import Outcome
from RLM_clean.init import print_times
from RLM_clean.machine import choose, step_products
from RLM_clean.plan import Member, Plan
from RLM_clean.progress import format_seconds
from RLM_clean.states import pending
from RLM_clean.worker import train_together

# Steps of a trial, fewer where one has so many multiplications, and the most kinds of groups that are tried.
_STEPS, _FEW_STEPS, _LARGE = 256, 16, 10**9
_MOST_KINDS = 6
# The most runs of a group that are begun for its trial; its other seats stay empty, which makes no step shorter.
_MOST_BEGUN = 8
# No run diverges by this learning rate, nor is it any slower.
_SAFE_LR = 1e-12


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds of a group: to compile its step, before the first one, for the records at a time, for each step."""

    compile: float
    start: float
    record: float
    step: float

    def of(self, group: Sequence[Member]) -> float:
        """The seconds of a whole group whose step has been compiled."""
        c = group[0].config
        records = len(print_times(c.last_step, c.print_freq, c.save_freq))
        return self.start + records * self.record + c.last_step * self.step


def measure(group: Sequence[Member]) -> Cost:
    """The costs of a group from the first steps of one like it; nothing is kept but what was compiled."""
    first, _ = _trial(group)
    whole, outcomes = _trial(group)
    records = [outcome.dynamics for outcome in outcomes]
    scale = len(group) / len(records)
    record = sum(each[0]['seconds'] for each in records)
    # The first steps warm up: the second half is the pace.
    steps = records[0][-1]['t'] - records[0][-2]['t']
    pace = sum(each[-1]['seconds'] - each[-2]['seconds'] for each in records) / steps
    spent = sum(each[-1]['seconds'] for each in records)
    step = max(pace - record / steps, pace / 4)
    return Cost(max(first - whole, 0.0), scale * (whole - spent), scale * record, step)


def _trial(group: Sequence[Member]) -> tuple[float, list[Outcome]]:
    """The seconds of the first steps of a group, from its start to its end, and what came out."""
    shape = group[0].config
    steps = min(shape.last_step, _STEPS if step_products(shape) * len(group) < _LARGE else _FEW_STEPS)
    changes: dict[str, Any] = {
        'max_iters': steps, 'print_freq': steps, 'save_freq': 1, 'tensorboard': False, 'lr': _SAFE_LR,
        'loss_threshold': 0.0, 'compile': 'on' if choose(shape).compile else 'off',
    }  # fmt: skip
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        members = {
            seat: dataclasses.replace(member.config, outname=f'{folder}/{seat}', **changes)
            for seat, member in enumerate(group[:_MOST_BEGUN])
        }
        begin = time.perf_counter()
        for _, result in train_together(members, len(group)):
            if isinstance(result, Exception):
                raise result
            if result.status == 'interrupted':
                raise KeyboardInterrupt
            outcomes.append(result)
        return time.perf_counter() - begin, outcomes


def estimate(groups: Sequence[Sequence[Member]], workers: int) -> float:
    """The seconds that groups of runs take on so many workers, from a trial of each kind of group among them."""
    kinds: dict[tuple[Any, ...], list[Sequence[Member]]] = {}
    for group in groups:
        kinds.setdefault((group[0].shape, len(group)), []).append(group)
    tried = list(kinds.values())[:_MOST_KINDS]
    costs = [measure(alike[0]) for alike in tried]
    total = 0.0
    for i, alike in enumerate(kinds.values()):
        nearest = min(range(len(tried)), key=lambda j: abs(_size(tried[j][0]) - _size(alike[0])))
        cost = costs[i if i < len(costs) else nearest]
        parallel = min(workers, len(groups))
        # Each worker compiles what it trains.
        total += cost.compile * min(len(alike), parallel) / parallel + sum(map(cost.of, alike)) / parallel
    return total


def _size(group: Sequence[Member]) -> int:
    return step_products(group[0].config) * len(group)


def describe(plan: Plan, workers: int) -> str:
    """The runs of a sweep that are to be trained, by their groups, and how long that will take."""
    shares = [[member for member in group if pending(member)] for group in plan.groups]
    left = [share for share in shares if share]
    number = sum(map(len, left))
    lines = [f'{plan.folder}: {len(plan.members)} runs, {number} of them to train, in {len(left)} groups']
    for place, share in enumerate(shares, start=1):
        if share:
            lines.append(f'group {place}: {len(share)} runs of {share[0].config.last_step} steps')
            lines += [f'    {member.name}' for member in share]
    # A group takes as long as when all its runs are still to be trained.
    seconds = estimate([group for group, share in zip(plan.groups, shares, strict=True) if share], workers)
    on = f'{workers} workers' if workers > 1 else 'one worker'
    lines.append(f'about {format_seconds(seconds)} on {on}, by a trial of the first steps')
    return '\n'.join(lines)
