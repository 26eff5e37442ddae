"""Signals that ask a run to stop: the step under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """While entered, SIGTERM, SIGUSR1 and SIGINT only set a flag; a second SIGINT stops at once (KeyboardInterrupt).

    Only the main thread of a process may handle signals: elsewhere this does nothing.
    """

    NAMES = ('SIGTERM', 'SIGUSR1', 'SIGINT')  # Windows has no SIGUSR1

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.name is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in self.NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
