"""A worker of a sweep: takes the next runs that are free, trains them, and goes on until none is left.

Any number of workers on one sweep, started by anyone on any machine that sees its folder, share the work between them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from RLM_clean.config import Config
from RLM_clean.runs.locks import BusyError
from RLM_clean.sweep.plan import Member, read_plan
from RLM_clean.sweep.states import claim, forget_failure, pending, record_failure
from RLM_clean.training import ensemble, lifecycle
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import DivergedError
from RLM_clean.training.signals import Interruption


def work(
    folder: str | Path, execution: dict[str, Any], part: tuple[int, int] = (1, 1), alone: Collection[int] = ()
) -> bool:
    """Trains what is free in a sweep; True when nothing free is left, False when a signal asked to save and stop.

    `part` (i, n) takes only every n-th group from the i-th on, so that n workers share a sweep that cannot see each
    other's locks. The runs of the groups with the numbers in `alone` (from 1) are trained one at a time, each on its
    seat: they become what they would with the others.

    A run that fails leaves {name}_failed.json and stops no other. Raises ValueError when there is no such sweep.
    """
    plan = read_plan(folder, execution)
    number, parts = part
    shares = list(enumerate(plan.groups, start=1))[number - 1 :: parts]
    with Interruption() as interruption:
        trained = True
        while trained:  # in a later pass, what others let go in the meantime
            trained = False
            for place, group in shares:
                for seats in [[seat] for seat in range(len(group))] if place in alone else [range(len(group))]:
                    if interruption.requested():
                        return False
                    trained |= _take(group, seats, plan.folder)
    return not interruption.requested()


def _take(group: Sequence[Member], seats: Collection[int], folder: Path) -> bool:
    """Trains those runs of a group, on some of its seats, that are free; whether any was trained."""
    with ExitStack() as claims:
        with claim(folder, f'{group[0].name}_group') as mine:
            # Two workers that come at the same time must not share it out between them: each would take as long as one.
            free = _claimed(group, seats, folder, claims) if mine else {}
        names = {member.config.outname: member.name for member in free.values()}
        for name in names.values():
            _say(f'{name}: taken')
        busy = 0
        for config, result in train_together({seat: member.config for seat, member in free.items()}, len(group)):
            name = names[config.outname]
            if isinstance(result, BusyError):
                busy += 1
                _say(f'{name}: trained by another process')
            elif isinstance(result, Exception):
                record_failure(config.outname, explain(result, len(group)))
                _say(f'{name}: failed: {explain(result, len(group))}')
                if not isinstance(result, (ValueError, ArithmeticError, OSError, MemoryError)):
                    traceback.print_exception(result)
            else:
                forget_failure(config.outname)
                _say(f'{name}: {result.status} at step {result.step}')
    return len(free) > busy


def _claimed(group: Sequence[Member], seats: Iterable[int], folder: Path, claims: ExitStack) -> dict[int, Member]:
    """The runs on some seats of a group that are free, held until `claims` is closed."""
    return {
        seat: group[seat]
        for seat in seats
        # Asked again under the lock: another may have ended the run just before it let it go.
        if pending(group[seat]) and claims.enter_context(claim(folder, group[seat].name)) and pending(group[seat])
    }


def train_together(members: Mapping[int, Config], seats: int) -> Iterator[tuple[Config, Outcome | Exception]]:
    """Trains members of a group of so many seats, each on its own; each with its outcome, or its error, as it ends.

    The run of a group of one is trained as main.py would.
    """
    if seats > 1:
        yield from ensemble.train(members, seats, _say)
        return
    for config in members.values():
        try:
            yield config, lifecycle.train(config, _say)
        except Exception as error:  # of any kind: one run stops no other
            yield config, error


def explain(error: Exception, seats: int) -> str:
    """Why a run of a group of so many seats failed, in one line, with the remedy where it is known."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and 'memory' in str(error)):
        less = 'a smaller --group' if seats > 1 else 'a smaller batch_size or test_size'
        return f'memory ran out: use fewer workers, or another outname with {less}'
    if isinstance(error, (ValueError, DivergedError, OSError)):
        return ' '.join(str(error).split())
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def stop_at_end_of_input() -> None:
    """Asks this process to save and stop when its standard input ends: then whoever holds the other end has died."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _say(line: str) -> None:
    print(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {line}', flush=True)


def command(folder: str | Path, execution: dict[str, Any], alone: Collection[int] = ()) -> list[str]:
    """The words that start a worker as a process of its own; they do not depend on the folder they are started in."""
    words = [sys.executable, str(Path(__file__).with_name('sweep.py')), 'work', str(folder)]
    words += [f'--alone={place}' for place in alone]
    for name, value in execution.items():
        words.append(f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}')
    return words
