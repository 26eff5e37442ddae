"""The local launcher: worker processes on this machine, as many as its cores or its GPUs allow.

The folder of a sweep holds all that is known of it. The driver starts workers while there are free runs, and reports
which runs have ended. It can be killed at any moment, and any number of drivers may serve one sweep.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from typing import Any

import torch

from RLM_clean.runs.files import RunFiles
from RLM_clean.sweep import worker
from RLM_clean.sweep.plan import Plan, PlannedRun
from RLM_clean.sweep.states import (
    failure,
    forget_deaths,
    holder,
    is_busy,
    last_record,
    pending,
    seconds_left,
    state,
)
from RLM_clean.threads import available_cores
from RLM_clean.training.machine import resolve_device
from RLM_clean.training.progress import Say, format_seconds, say
from RLM_clean.training.signals import Interruption

# Seconds between two looks at the folder.
_INTERVAL = 0.5
# After so many deaths of workers that had not taken a run, with none in between that did, no more are started.
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


def launch(plan: Plan, workers: int, group: int | None = None, say: Say = say) -> bool:
    """Trains a sweep with `workers` processes until no run is left that can be trained.

    Returns False when a signal asked to save and stop. Runs that other drivers train are waited for. `group` is the
    most runs that are trained together, see `worker.work`. Raises DeadWorkersError when workers die before they take
    a run; a second SIGINT stops at once, by KeyboardInterrupt.
    """
    driver = Driver(plan, workers, group, say)
    with Interruption() as interruption:
        try:
            while driver.serve() and not interruption.requested():
                time.sleep(_INTERVAL)
            if not interruption.requested():
                return True
            say(f'{interruption.name}: the workers save and stop')
            driver.stop()
        except Exception:  # of the driver, such as a disk that does not answer: the workers are well
            driver.stop()
            raise
        except BaseException:
            driver.kill()
            raise
    return False


class Driver:
    """The workers that one process has started, and the runs that are left."""

    def __init__(self, plan: Plan, number: int, group: int | None, say: Say) -> None:
        self.plan, self.number, self.group, self.say = plan, number, group, say
        self.workers: dict[int, subprocess.Popen[bytes]] = {}  # by their place: 0, 1, ...
        self.started = 0
        self.seen_at_work: set[int] = set()  # the processes that have held a run
        self.deaths = 0  # of workers that held no run, since one was seen to take a run
        self.last_death = ''
        self.open = [run for run in plan.runs if pending(run)]
        self.logs = plan.folder / 'logs'

    def serve(self) -> bool:
        """Reports what has changed in the folder, and starts workers while there are free runs; False at the end."""
        self._collect_ended_workers()
        before, self.open = self.open, [run for run in self.open if pending(run)]
        self._report_ended_runs(before)
        if not self.open and not self.workers:
            return False
        if len(self.workers) < self.number:
            self._start_workers()
        return True

    def _start_workers(self) -> None:
        """Starts a worker for each free run, as far as there are places; workers that have yet to take one count."""
        held = self._held()
        working = {pid for pid, runs in held.items() if runs}
        if not working <= self.seen_at_work:
            self.seen_at_work |= working
            self.deaths = 0
        free = (run for run in self.open if not is_busy(self.plan.folder, run))
        wanted = len(list(itertools.islice(free, self.number))) - (len(held) - len(working))
        wanted = min(wanted, self.number - len(self.workers))
        if wanted > 0 and self.deaths >= _MOST_DEATHS:
            if not self.workers:  # otherwise those that work go on
                raise DeadWorkersError(f'{self.last_death} before it took a run: see the files in {self.logs}')
            return
        for _ in range(wanted):
            self._start()

    def _held(self) -> dict[int, list[PlannedRun]]:
        """The open runs that each worker holds, or held when it died, by the number of its process."""
        held: dict[int, list[PlannedRun]] = {process.pid: [] for process in self.workers.values()}
        for run in self.open:
            claim = holder(self.plan.folder, run.name)
            if claim is not None and claim.host == socket.gethostname() and claim.pid in held:
                held[claim.pid].append(run)
        return held

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
        for run in itertools.chain.from_iterable(self._held().values()):
            forget_deaths(self.plan.folder, run.name)

    def _start(self) -> None:
        place = next(i for i in range(self.number) if i not in self.workers)
        self.logs.mkdir(exist_ok=True)
        log = self.logs / f'{socket.gethostname()}_{os.getpid()}_{self.started}.txt'
        words = worker.command(self.plan.folder, self.plan.execution, self.group, self.number)
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

    def _collect_ended_workers(self) -> None:
        """Reports workers that have died, with the runs that they held."""
        ended = {place: status for place, worker in self.workers.items() if (status := worker.poll()) is not None}
        held = self._held() if any(ended.values()) else {}
        for place, status in ended.items():
            process = self.workers.pop(place)
            assert process.stdin is not None
            process.stdin.close()
            if status == 0:
                continue
            names = [run.name for run in held[process.pid]]
            self.deaths = 0 if names else self.deaths + 1
            self.last_death = f'a worker ended with {f"signal {-status}" if status < 0 else f"status {status}"}'
            self.say(f'{self.last_death} while it held {", ".join(names) or "no run"}')

    def _report_ended_runs(self, before: list[PlannedRun]) -> None:
        """Says which runs have ended since the last look."""
        names = {run.name for run in self.open}
        ended = [run for run in before if run.name not in names]
        if not ended:
            return
        self.deaths = 0
        total = len(self.plan.runs)
        seconds = sum(seconds_left(state(run, self.plan.folder) for run in self.plan.runs).values())
        left = f'; about {format_seconds(seconds / self.number)} left' if seconds else ''
        for i, run in enumerate(ended, start=total - len(before) + 1):
            self.say(f'{i:>{len(str(total))}}/{total}  {run.name}  {_ending(run)}{left}')


def _ending(run: PlannedRun) -> str:
    record = last_record(RunFiles(run.config.outname).log)
    why = failure(run.config.outname)
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
