"""What a sweep would do: its groups, and how long its runs will take by a trial of a few steps of each kind."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from RLM_clean.config import Config
from RLM_clean.experiment import train
from RLM_clean.init import print_times
from RLM_clean.machine import step_products
from RLM_clean.plan import Member, Plan, groups
from RLM_clean.progress import format_seconds
from RLM_clean.states import pending

# Steps of a trial, fewer where one has so many multiplications, and the most kinds of runs that are tried.
_STEPS, _FEW_STEPS, _LARGE = 256, 16, 10**9
_MOST_KINDS = 8


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds of a run: before its first step, for each record, for each step."""

    start: float
    record: float
    step: float

    def of(self, config: Config) -> float:
        """The seconds of a whole run."""
        records = len(print_times(config.last_step, config.print_freq, config.save_freq))
        return self.start + records * self.record + config.last_step * self.step


def measure(config: Config) -> Cost:
    """The costs of a run from the first steps of one like it; nothing is kept."""
    steps = min(config.last_step, _STEPS if step_products(config) < _LARGE else _FEW_STEPS)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        changes: dict[str, Any] = {'max_iters': steps, 'print_freq': steps, 'save_freq': 1, 'tensorboard': False}
        trial = dataclasses.replace(config, outname=f'{folder}/run', loss_threshold=0.0, **changes)
        begin = time.perf_counter()
        records = train(trial, say=lambda line: None).dynamics
        whole = time.perf_counter() - begin
    record = records[0]['seconds']
    # The first steps warm up: the second half is the pace.
    last, middle = records[-1], records[-2]
    pace = (last['seconds'] - middle['seconds']) / (last['t'] - middle['t'])
    step = max(pace - record / (last['t'] - middle['t']), pace / 4)
    return Cost(whole - last['seconds'], record, step)


def estimate(members: Iterable[Member]) -> float:
    """The seconds that runs take one after another, on one worker, from a trial of each kind of run among them."""
    kinds: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        kinds.setdefault(member.shape, []).append(member)
    tried = list(kinds.values())[:_MOST_KINDS]
    costs = [measure(members[0].config) for members in tried]
    total = 0.0
    for i, members in enumerate(kinds.values()):
        size = step_products(members[0].config)
        nearest = min(range(len(tried)), key=lambda j: abs(step_products(tried[j][0].config) - size))
        cost = costs[i if i < len(costs) else nearest]
        total += sum(cost.of(member.config) for member in members)
    return total


def describe(plan: Plan, workers: int, largest: int) -> str:
    """The runs of a sweep that are to be trained, by groups of at most `largest`, and how long that will take."""
    left = [member for member in plan.members if pending(member)]
    shares = groups(left, largest)
    lines = [f'{plan.folder}: {len(plan.members)} runs, {len(left)} of them to train, in {len(shares)} groups']
    for number, group in enumerate(shares, start=1):
        lines.append(f'group {number}: {len(group)} runs of {group[0].config.last_step} steps')
        lines += [f'    {member.name}' for member in group]
    seconds = estimate(left)
    parallel = min(workers, max(1, len(shares)))
    on = f'{workers} workers' if workers > 1 else 'one worker'
    lines.append(f'about {format_seconds(seconds / parallel)} on {on}, by a trial of the first steps')
    return '\n'.join(lines)
