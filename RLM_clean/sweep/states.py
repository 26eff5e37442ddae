"""How far each run of a sweep is, told by its files: who holds it, its last record, and why it failed.

{folder}/claims/{name}       locked by the process that trains the run, and while it does holds its number and machine
{folder}/{name}_failed.json  why the last try failed; a run that has it waits until it is told to try again
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.locks import is_locked, try_lock
from RLM_clean.runs.storage import atomic_write
from RLM_clean.sweep.plan import Member, Plan
from RLM_clean.training.progress import format_seconds

STATUSES = ('done', 'running', 'interrupted', 'waiting', 'failed')

# The last record is in the last so many bytes of a log.
_TAIL = 4096


# ---------------------------------------------------------------------- claims


def claim_file(folder: Path, name: str) -> Path:
    """The path of the file that is locked by whoever trains a run."""
    return folder / 'claims' / name


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Holds a run for this process while entered, and says whether it could: False where another process holds it.

    The lock ends with the process, whatever ends it. Unlike the lock of `RunFiles.claim` it is there before the run is.
    """
    path = claim_file(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with try_lock(path, create=True) as file:
        if file is None:
            yield False
            return
        file.truncate(0)
        file.write(json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode())
        file.flush()
        try:
            yield True
        finally:
            file.truncate(0)


def holder(folder: Path, name: str) -> tuple[int, str] | None:
    """The process and the machine that hold a run, or held it when they were killed; None where it was let go."""
    try:
        content = json.loads(claim_file(folder, name).read_text(encoding='utf-8'))
        return content['pid'], content['host']
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------------- failures


def failure_file(outname: str | Path) -> Path:
    """The path of the file that tells why a run failed."""
    return Path(f'{outname}_failed.json')


def record_failure(outname: str | Path, why: str) -> None:
    """Keeps in the folder why a run failed; it is not tried again while that is there."""
    content = {'why': why, 'when': time.strftime('%Y-%m-%d %H:%M:%S')}
    atomic_write(failure_file(outname), lambda file: file.write((json.dumps(content) + '\n').encode()))


def forget_failure(outname: str | Path) -> None:
    """Lets a run that failed be tried again."""
    failure_file(outname).unlink(missing_ok=True)


def failure(outname: str | Path) -> str | None:
    """Why a run failed; None where it did not."""
    try:
        return str(json.loads(failure_file(outname).read_text(encoding='utf-8'))['why'])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return 'unknown: the file that says why cannot be read'


def pending(member: Member) -> bool:
    """Whether a run is still to be trained, by this process or another."""
    files = RunFiles(member.config.outname)
    return not files.final.exists() and not failure_file(member.config.outname).exists()


# ---------------------------------------------------------------------- states


@dataclass(frozen=True)
class State:
    """How far a run is: `status` is one of STATUSES, `record` its last record, `why` the reason of a failure."""

    member: Member
    status: str
    record: Record | None = None
    why: str = ''

    @property
    def step(self) -> int:
        """The step of the last record."""
        return self.record['t'] if self.record else 0

    @property
    def seconds(self) -> float:
        """The time spent on the run until then."""
        return self.record['seconds'] if self.record else 0.0

    @property
    def last_step(self) -> int:
        """The step at which the run ends, unless it stops early."""
        return self.member.config.last_step


def state(member: Member, folder: Path) -> State:
    """How far a run is, from its files, without reading a model."""
    files = RunFiles(member.config.outname)
    record = last_record(files.log)
    if files.final.exists():
        return State(member, 'done', record)
    # Its worker may hold it still, for the others of its group.
    why = failure(member.config.outname)
    if why is not None:
        return State(member, 'failed', record, why)
    # A run that was begun has a lock of its own, which main.py takes too.
    if is_locked(claim_file(folder, member.name)) or is_locked(files.config):
        return State(member, 'running', record)
    return State(member, 'interrupted' if files.config.exists() else 'waiting', record)


def last_record(log: Path) -> Record | None:
    """The last whole line of a log of records; None where there is none."""
    with contextlib.suppress(OSError), open(log, 'rb') as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError):  # cut short by a kill, or by where the tail begins
                record = json.loads(line)
                if isinstance(record, dict) and 't' in record:
                    return record
    return None


def seconds_left(states: Iterable[State]) -> dict[str, float]:
    """An estimate of the seconds of work that each unfinished run still needs, by name.

    From its own pace when it is well under way, else from that of the runs of its shape, else from that of all; none
    while nothing has been trained.
    """
    spent: dict[Any, tuple[float, int]] = {}  # seconds and steps, by shape and (None) in all
    states = list(states)
    for s in states:
        for key in (s.member.shape, None):
            seconds, steps = spent.get(key, (0.0, 0))
            spent[key] = (seconds + s.seconds, steps + s.step)
    left = {}
    for s in states:
        seconds, steps = spent[s.member.shape if spent[s.member.shape][1] else None]
        # The first steps are evaluated more often than the later ones.
        if s.step > s.last_step / 4:
            seconds, steps = s.seconds, s.step
        if s.status not in ('done', 'failed') and steps:
            left[s.member.name] = seconds / steps * (s.last_step - s.step)
    return left


# ---------------------------------------------------------------------- the table


def table(plan: Plan) -> str:
    """The runs of a sweep, a line each, and their numbers at the end."""
    states = [state(member, plan.folder) for member in plan.members]
    left = _seconds_to_end(plan, states)
    rows: list[tuple[str, ...]] = [('run', 'status', 'step', '', 'left', 'test', 'excess', '')]
    rows += [_row(s, left.get(s.member.name)) for s in states]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        texts = [
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append('  '.join((*texts, row[-1])).rstrip())
    return '\n'.join([*lines, totals(states)])


def _seconds_to_end(plan: Plan, states: list[State]) -> dict[str, float]:
    """How long each running run will still take, by name: as long as all those that are trained with it."""
    work = seconds_left(states)
    running = {s.member.name for s in states if s.status == 'running'}
    together = [running.intersection(member.name for member in group) for group in plan.groups]
    return {name: sum(work.get(other, 0.0) for other in names) for names in together for name in names if name in work}


def _row(s: State, left: float | None) -> tuple[str, ...]:
    step = f'{s.step}/{s.last_step}' if s.record else ''
    early = s.status == 'done' and s.step < s.last_step
    test, excess = (s.record['testloss'], s.record['excess']) if s.record else (None, None)
    return (
        s.member.name,
        s.status,
        step,
        f'{100 * s.step / s.last_step:.0f}%' if s.record else '',
        format_seconds(left) if left is not None and s.status == 'running' else '',
        '' if test is None else f'{test:.4f}',
        '' if excess is None else f'{excess:.4f}',
        'stopped early' if early else s.why,
    )


def totals(states: list[State]) -> str:
    """A line with the number of runs of each status and the work that is left."""
    counts = [(sum(s.status == status for s in states), status) for status in STATUSES]
    line = f'{len(states)} runs: ' + ', '.join(f'{number} {status}' for number, status in counts if number)
    left = sum(seconds_left(states).values())
    return f'{line}; about {format_seconds(left)} of work left' if left else line
