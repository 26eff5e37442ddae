"""What a run says while it works: a bar on a terminal, plain lines in a log, both with the time left.

Output is a courtesy: a closed pipe, a full device or a terminal that lacks a character never decides how a run ends.
"""

from __future__ import annotations

import os
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from tqdm import tqdm

Say = Callable[[str], None]

# Between two records, a log gets a line at least so often.
_SECONDS_BETWEEN_LINES = 60.0
# Steps from which the time left can be told.
_STEPS_TO_TELL = 16


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line to a stream, by default the standard output, and flushes it. Never raises for trouble there."""
    output = Output(sys.stdout if stream is None else stream)
    output.write(f'{line}\n')
    output.flush()


class Output:
    """A text stream whose failures are swallowed: writing to it always returns. None stands for a closed stream."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """Writes a text; characters that the stream cannot encode are written as escapes."""
        try:
            if self.stream is not None:
                self.stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, 'backslashreplace').decode(error.encoding))
        except (OSError, ValueError):  # a closed pipe, a full device; a file that was closed
            self._give_up()

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """The file descriptor of the stream, from which tqdm reads the width of the terminal."""
        if self.stream is None:
            raise OSError('the stream is closed')
        return self.stream.fileno()

    def _give_up(self) -> None:
        """Lets what is buffered, and all that follows, go nowhere: the interpreter flushes its streams at its end."""
        try:
            if self.stream is not None:
                with open(os.devnull, 'wb') as nowhere:
                    os.dup2(nowhere.fileno(), self.stream.fileno())
        except (OSError, ValueError):
            pass
        self.stream = None


class Progress:
    """Shows the steps of a run, its last record, and how long it will still take.

    The time left is told from the pace of steps and that of records, each for itself: the first steps of a run have
    many records, the later ones few. It is shown once enough steps have been taken to tell. `times` are the steps with
    a record.
    """

    def __init__(
        self, first: int, last: int, floor: float | None, stream: TextIO | None = None, times: Sequence[int] = ()
    ) -> None:
        self.stream = Output(sys.stdout if stream is None else stream)
        self.last, self.floor, self.times = last, floor, times
        self.step = first
        self.now = self.last_line = time.monotonic()
        self.paces = {'step': _Pace(), 'record': _Pace()}
        self.bar: tqdm[Any] | None = None
        if self.stream.isatty():
            bar_format = '{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]'
            self.bar = tqdm(
                total=last, initial=first, bar_format=bar_format, file=self.stream, dynamic_ncols=True
            )  # fmt: skip

    def advance(self, step: int) -> None:
        """Shows that the run is at `step`."""
        self._measure('step', step - self.step)
        if self.bar is not None:
            self.bar.update(step - self.step)
        self.step = step
        if self.bar is None and self.now - self.last_line > _SECONDS_BETWEEN_LINES:
            self._say(f'step {step:>{len(str(self.last))}}/{self.last}')

    def record(self, record: dict[str, Any]) -> None:
        """Shows a record: the losses, and the excess over the floor where it is known."""
        self._measure('record', 1)
        excess = record['excess']
        if self.bar is not None:
            shown = {'test': f'{record["testloss"]:.4f}'}
            if excess is not None:
                shown['excess'] = f'{excess:.4f}'
            left = self.seconds_left()
            if left is not None:
                shown |= {'steps/s': self.paces['step'].text, 'left': format_seconds(left)}
            self.bar.set_postfix(shown)
            return
        line = f'step {record["t"]:>{len(str(self.last))}}/{self.last}'
        line += f'  train {record["trainloss"]:.4f}  test {record["testloss"]:.4f}'
        if excess is not None:
            line += f'  excess {excess:.4f}'
        if self.floor is not None:
            line += f'  floor {self.floor:.4f}'
        self._say(line)

    def seconds_left(self) -> float | None:
        """An estimate of the seconds until the last step; None while it cannot be told."""
        steps, records = self.paces['step'], self.paces['record']
        if steps.number < _STEPS_TO_TELL:
            return None
        records_left = len(self.times) - bisect_right(self.times, self.step)
        return (self.last - self.step) / steps.rate + (records_left / records.rate if records.number else 0.0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def _measure(self, what: str, number: int) -> None:
        """Adds the time since the last event to that of steps or records."""
        before, self.now = self.now, time.monotonic()
        self.paces[what].add(number, self.now - before)

    def _say(self, line: str) -> None:
        self.last_line = self.now
        left = self.seconds_left()
        if left is not None:
            line += f'  {self.paces["step"].text} steps/s  {format_seconds(left)} left'
        self.stream.write(f'{line}\n')
        self.stream.flush()


class _Pace:
    """How fast things go, from all of them but the first call, which warms up."""

    def __init__(self) -> None:
        self.number, self.seconds, self.warm = 0, 0.0, False

    def add(self, number: int, seconds: float) -> None:
        if self.warm:
            self.number += number
            self.seconds += seconds
        self.warm = True

    @property
    def rate(self) -> float:
        return self.number / max(self.seconds, 1e-9)

    @property
    def text(self) -> str:
        return f'{self.rate:.0f}' if self.rate >= 100 else f'{self.rate:.3g}'


def format_seconds(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours:.0f}:{minutes:02.0f}:{seconds:02.0f}'
