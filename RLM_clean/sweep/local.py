"""The local launcher: worker processes on this machine, as many as its cores or its GPUs allow.

What is known of a sweep is in its folder alone. The driver starts workers while there are free runs and tells what
became of them; killed at any moment it leaves nothing to repair, and any number of drivers may serve one sweep.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.locks import is_locked
from RLM_clean.sweep import worker
from RLM_clean.sweep.plan import Member, Plan, groups
from RLM_clean.sweep.states import (
    claim_file,
    failure,
    holder,
    last_record,
    pending,
    record_failure,
    seconds_left,
    state,
)
from RLM_clean.training.machine import available_cores, resolve_device
from RLM_clean.training.progress import format_seconds
from RLM_clean.training.signals import Interruption

Say = Callable[[str], None]

# Seconds between two looks at the folder.
_INTERVAL = 0.5
# A run whose workers died so often is given up, the last time while it was trained without others of its group; and so
# is the sweep when workers die as often before they take a run.
_MOST_DEATHS = 3


class DeadWorkersError(RuntimeError):
    """Workers that die before they take a run."""


def default_workers(execution: dict[str, Any]) -> int:
    """How many workers this machine allows: one for each GPU where runs go there, else as its cores and threads say."""
    device = resolve_device(execution.get('device', 'auto'))
    if device.type == 'cuda':
        return torch.cuda.device_count() if device.index is None else 1
    if device.type == 'mps':
        return 1
    return max(1, available_cores() // int(execution.get('threads', 1)))


def default_group(members: list[Member], workers: int) -> int:
    """The largest group that leaves each worker a share of every shape."""
    largest = max((len(group) for group in groups(members, lambda config: len(members))), default=1)
    return max(1, -(-largest // workers))


def launch(plan: Plan, workers: int, say: Say = print) -> bool:
    """Trains a sweep by `workers` processes, group by group, until no run is left that can be.

    Returns False when a signal asked to save and stop. Runs that other drivers train are waited for. Raises
    DeadWorkersError when workers die before they take a run; a second SIGINT stops at once, by KeyboardInterrupt.
    """
    crew = Crew(plan, workers, say)
    with Interruption() as interruption:
        try:
            while crew.serve() and not interruption.requested():
                time.sleep(_INTERVAL)
        except BaseException:
            crew.kill()
            raise
        if not interruption.requested():
            return True
        say(f'{interruption.name}: the workers save and stop')
        try:
            crew.stop()
        except KeyboardInterrupt:
            crew.kill()
            raise
    return False


class Crew:
    """The workers of a driver."""

    def __init__(self, plan: Plan, number: int, say: Say) -> None:
        self.plan, self.number, self.say = plan, number, say
        self.group_of = {member.name: i for i, group in enumerate(plan.groups, start=1) for member in group}
        self.workers: dict[int, subprocess.Popen[bytes]] = {}  # by their place: 0, 1, ...
        self.started = 0
        self.deaths: Counter[str] = Counter()  # of workers, by the runs that they held
        self.open = [member for member in plan.members if pending(member)]
        self.logs = plan.folder / 'logs'

    def serve(self) -> bool:
        """Looks at the folder, tells what is new, and starts workers where there are free runs; False at the end."""
        self._bury()
        before, self.open = self.open, [member for member in self.open if pending(member)]
        self._tell(before)
        if not self.open and not self.workers:
            return False
        wanted = min(self.number, len({self.group_of[member.name] for member in self.open}))
        if len(self.workers) < wanted and any(self._free(member) for member in self.open):
            while len(self.workers) < wanted:
                self._start()
        return True

    def _free(self, member: Member) -> bool:
        files = (claim_file(self.plan.folder, member.name), RunFiles(member.config.outname).config)
        return not any(is_locked(file) for file in files)

    def stop(self) -> None:
        """Has the workers save and stop, and waits for it."""
        for process in self.workers.values():
            assert process.stdin is not None
            process.stdin.close()
            process.send_signal(signal.SIGTERM)
        for process in self.workers.values():
            process.wait()

    def kill(self) -> None:
        """Ends the workers at once; their runs go on from the last checkpoint another time."""
        for process in self.workers.values():
            process.kill()
            process.wait()

    def _start(self) -> None:
        place = next(i for i in range(self.number) if i not in self.workers)
        self.logs.mkdir(exist_ok=True)
        log = self.logs / f'{socket.gethostname()}_{os.getpid()}_{self.started}.txt'
        # A group whose workers have died before: one of its runs may kill the others.
        alone = {self.group_of[member.name] for member in self.open if self.deaths[member.name] == _MOST_DEATHS - 1}
        words = worker.command(self.plan.folder, self.plan.execution, alone=sorted(alone))
        with open(log, 'ab') as file:
            # Its standard input ends when this process does, however it ends. A session of its own: Ctrl-C on the
            # terminal is for the driver.
            self.workers[place] = subprocess.Popen(
                [*words, '--watch-input'],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_own_device(self.plan.execution, place), 'PYTHONUNBUFFERED': '1'},
                start_new_session=True,
            )
        self.started += 1

    def _bury(self) -> None:
        """Forgets workers that have ended; what those held that died is counted, and given up in the end."""
        for place, process in list(self.workers.items()):
            status = process.poll()
            if status is None:
                continue
            del self.workers[place]
            assert process.stdin is not None
            process.stdin.close()
            if status == 0:
                continue
            lost = [m for m in self.open if holder(self.plan.folder, m.name) == (process.pid, socket.gethostname())]
            for name in [member.name for member in lost if pending(member)] or ['']:
                self.deaths[name] += 1
            self._give_up(f'signal {-status}' if status < 0 else f'status {status}', lost)

    def _give_up(self, how: str, lost: list[Member]) -> None:
        if self.deaths[''] == _MOST_DEATHS:
            raise DeadWorkersError(f'workers end with {how} before they take a run: see the files in {self.logs}')
        self.say(f'a worker ended with {how} while it held {", ".join(m.name for m in lost) or "no run"}')
        for member in lost:
            if self.deaths[member.name] == _MOST_DEATHS and pending(member):
                why = (
                    f'its workers died {_MOST_DEATHS} times, the last with {how}: if memory ran out, use fewer workers'
                )
                record_failure(member.config.outname, why)

    def _tell(self, before: list[Member]) -> None:
        """Says which runs have ended since the last look."""
        names = {member.name for member in self.open}
        ended = [member for member in before if member.name not in names]
        if not ended:
            return
        total = len(self.plan.members)
        seconds = sum(seconds_left(state(member, self.plan.folder) for member in self.plan.members).values())
        left = f'; about {format_seconds(seconds / self.number)} left' if seconds else ''
        for i, member in enumerate(ended, start=total - len(before) + 1):
            self.say(f'{i:>{len(str(total))}}/{total}  {member.name}  {_ending(member)}{left}')


def _ending(member: Member) -> str:
    record = last_record(RunFiles(member.config.outname).log)
    why = failure(member.config.outname)
    if why is not None or record is None:
        return f'failed: {why}'
    return f'done at step {record["t"]}: test loss {record["testloss"]:.4f}, excess {record["excess"]:.4f}'


def _own_device(execution: dict[str, Any], place: int) -> dict[str, str]:
    """The variables of a worker's environment: its threads, and its own GPU where there are several."""
    variables = {'OMP_NUM_THREADS': str(execution.get('threads', 1))}
    device = resolve_device(execution.get('device', 'auto'))
    if device.type == 'cuda' and device.index is None:
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
        devices = visible.split(',')
        variables['CUDA_VISIBLE_DEVICES'] = devices[place % len(devices)]
    return variables
