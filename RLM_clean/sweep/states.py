"""How far each run of a sweep is, as its files say: who trains it, its last record, and why it failed.

{folder}/claims/{name}       locked by the process that trains the run, and naming it while it does
{folder}/claims/sweep.json   locked while the definition is written, or a worker chooses its next runs
{folder}/{name}_failed.json  why the last try failed; such a run is tried again only when the user asks for it

To look at a run takes no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from RLM_clean.runs import contents
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.locks import is_locked, try_lock
from RLM_clean.runs.storage import UnreadableFileError, atomic_write
from RLM_clean.sweep.plan import Plan, PlannedRun
from RLM_clean.training.progress import format_seconds

STATUSES = ('done', 'running', 'interrupted', 'waiting', 'failed')

# The last record is in the last so many bytes of a log.
_TAIL = 4096


# ---------------------------------------------------------------------- claims


class Claim(NamedTuple):
    """Who trains a run, or did so when it was killed: process and machine, and what it found when it took the run.

    `deaths` is the number of workers that had died in a row while they held the run, `step` that of its last record.
    """

    pid: int
    host: str
    deaths: int = 0
    step: int = -1


def claim_file(folder: Path, name: str) -> Path:
    """The path of the file that is locked by whoever trains a run."""
    return folder / 'claims' / name


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Waits for the lock of a whole sweep, and holds it while entered."""
    path = claim_file(folder, 'sweep.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with try_lock(path, create=True) as file:
            if file is not None:
                yield
                return


@contextmanager
def claim(folder: Path, run: PlannedRun) -> Iterator[bool]:
    """Holds a run for this process while entered, and gives True; False where another process holds it.

    The lock ends with the process, whatever ends it. Unlike the lock of `RunFiles.claim` it is there before the run is.
    """
    path = claim_file(folder, run.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with try_lock(path, create=True) as file:
        if file is None:
            yield False
            return
        mine = Claim(os.getpid(), socket.gethostname(), deaths(folder, run), _last_step(run))
        file.truncate(0)
        file.write(json.dumps(mine._asdict()).encode())
        file.flush()
        try:
            yield True
        finally:
            file.truncate(0)


def holder(folder: Path, name: str) -> Claim | None:
    """The claim on a run, also that of a process that was killed; None where it was let go or never taken."""
    try:
        found = Claim(**json.loads(claim_file(folder, name).read_text(encoding='utf-8')))
    except (OSError, ValueError, TypeError):
        return None
    kinds = zip(found, (int, str, int, int), strict=True)
    return found if all(isinstance(value, kind) for value, kind in kinds) else None


def deaths(folder: Path, run: PlannedRun) -> int:
    """How many workers in a row died while they held a free run, without a new record of it."""
    last = holder(folder, run.name)
    if last is None:
        return 0
    return 1 if _last_step(run) > last.step else last.deaths + 1


def forget_deaths(folder: Path, name: str) -> None:
    """Takes back the claim of a process that was killed, so that it does not count as a death."""
    with contextlib.suppress(OSError):
        os.truncate(claim_file(folder, name), 0)


def is_busy(folder: Path, run: PlannedRun) -> bool:
    """Whether any process trains a run."""
    # A run that was begun has a lock of its own, which main.py takes too.
    return is_locked(claim_file(folder, run.name)) or is_locked(RunFiles(run.config.outname).config)


def _last_step(run: PlannedRun) -> int:
    record = last_record(RunFiles(run.config.outname).log)
    return record['t'] if record else -1


# ---------------------------------------------------------------------- failures


def failure_file(outname: str | Path) -> Path:
    """The path of the file that says why a run failed."""
    return Path(f'{outname}_failed.json')


def record_failure(outname: str | Path, why: str) -> None:
    """Writes down why a run failed; it is not tried again while that file is there."""
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


def pending(run: PlannedRun) -> bool:
    """Whether a run is still to be trained, by this process or another."""
    return not is_complete(run) and not failure_file(run.config.outname).exists()


def is_complete(run: PlannedRun) -> bool:
    """Whether the files of a run are those of its end, and not of the end of a shorter one."""
    files = RunFiles(run.config.outname)
    if not files.final.exists():
        return False
    record = last_record(files.log)
    if record is not None and record['t'] >= run.config.last_step:
        return True
    try:
        return contents.is_end(files.load_final(tensors=False)['output'], run.config.last_step)
    except UnreadableFileError:
        return True  # what reads its results says why


# ---------------------------------------------------------------------- states


@dataclass(frozen=True)
class State:
    """How far a run is: `status` is one of STATUSES, `record` its last record, `why` the reason of a failure."""

    run: PlannedRun
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
        return self.run.config.last_step


def state(run: PlannedRun, folder: Path) -> State:
    """How far a run is, from its files, without reading a model."""
    files = RunFiles(run.config.outname)
    record = last_record(files.log)
    if is_complete(run):
        return State(run, 'done', record)
    # Its worker may still hold its lock, for the other runs of its group.
    why = failure(run.config.outname)
    if why is not None:
        return State(run, 'failed', record, why)
    if is_busy(folder, run):
        return State(run, 'running', record)
    return State(run, 'interrupted' if files.config.exists() else 'waiting', record)


def last_record(log: Path) -> Record | None:
    """The last whole record of a log; None where there is none. Lines that are not records are left out."""
    with contextlib.suppress(OSError), open(log, 'rb') as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError, RecursionError):  # cut short by a kill, or where the tail begins
                record = json.loads(line)
                if contents.difference(record, contents.RECORD) is None:
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
        for key in (s.run.shape, None):
            seconds, steps = spent.get(key, (0.0, 0))
            spent[key] = (seconds + s.seconds, steps + s.step)
    left = {}
    for s in states:
        seconds, steps = spent[s.run.shape if spent[s.run.shape][1] else None]
        # The first steps are evaluated more often than the later ones.
        if s.step > s.last_step / 4:
            seconds, steps = s.seconds, s.step
        if s.status not in ('done', 'failed') and steps:
            left[s.run.name] = seconds / steps * (s.last_step - s.step)
    return left


# ---------------------------------------------------------------------- the table


def table(plan: Plan) -> str:
    """The runs of a sweep, a line each, and their numbers at the end."""
    states = [state(run, plan.folder) for run in plan.runs]
    left = _seconds_to_end(plan, states)
    rows: list[tuple[str, ...]] = [('run', 'status', 'step', '', 'left', 'test', 'excess', '')]
    rows += [_row(s, left.get(s.run.name)) for s in states]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        texts = [
            text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append('  '.join((*texts, row[-1])).rstrip())
    return '\n'.join([*lines, totals(states)])


def _seconds_to_end(plan: Plan, states: list[State]) -> dict[str, float]:
    """How long each running run will still take, by name: as long as all those that its process trains with it."""
    work = seconds_left(states)
    running = [s.run.name for s in states if s.status == 'running']
    # main.py, which makes no claim, trains a run alone.
    process = {name: (holder(plan.folder, name) or (name, ''))[:2] for name in running}
    total: dict[Any, float] = defaultdict(float)
    for name in running:
        total[process[name]] += work.get(name, 0.0)
    return {name: total[process[name]] for name in running if name in work}


def _row(s: State, left: float | None) -> tuple[str, ...]:
    step = f'{s.step}/{s.last_step}' if s.record else ''
    early = s.status == 'done' and s.step < s.last_step
    test, excess = (s.record['testloss'], s.record['excess']) if s.record else (None, None)
    return (
        s.run.name,
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
