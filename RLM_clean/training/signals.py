"""Signals that ask a run to stop: at once while it is set up, later when the step under way is finished and saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequested(BaseException):
    """A signal came while a run was set up, when there was nothing to save yet."""


class Interruption:
    """While entered, SIGTERM, SIGUSR1, SIGHUP and SIGINT only set a flag; a second SIGINT raises KeyboardInterrupt.

    Between `stop_at_once` and `wait_for_step` they raise StopRequested. One may be entered within another: a signal
    that came to the inner one has come to both when the inner one is left.

    Only the main thread of a process may handle signals: elsewhere this does nothing.
    """

    NAMES = ('SIGTERM', 'SIGUSR1', 'SIGHUP', 'SIGINT')  # Windows lacks some of them

    def __init__(self) -> None:
        self.at_once = False
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.name is not None

    def stop_at_once(self) -> None:
        """From now on signals raise StopRequested. Raises it where one has come already."""
        self.at_once = True
        if self.requested():
            raise StopRequested

    def wait_for_step(self) -> None:
        """From now on signals only set the flag. Raises StopRequested where one has come already."""
        self.at_once = False
        if self.requested():
            raise StopRequested

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in self.NAMES:
                number = getattr(signal, name, None)
                # nohup asks for SIGHUP to be ignored. A script's background jobs ignore SIGINT, which must save all the
                # same.
                ignored = name == 'SIGHUP' and number is not None and signal.getsignal(number) is signal.SIG_IGN
                if number is not None and not ignored:
                    self._before[number] = signal.signal(number, self._receive)
        for outer in self._around():
            self.name = self.name or outer.name
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for outer in self._around():
            outer.name = outer.name or self.name

    def _around(self) -> list[Interruption]:
        """The interruptions whose signals this one receives while it is entered: the one that it was entered within."""
        owners = (getattr(handler, '__self__', None) for handler in self._before.values())
        return [owner for owner in owners if isinstance(owner, Interruption)]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == 'SIGINT':
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self.at_once:
            raise StopRequested
