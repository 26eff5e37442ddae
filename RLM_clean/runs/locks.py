"""Locks on files: who holds a run. They end with the process that holds them, however it ends.

On Linux they are open file description locks, which a process can ask about without taking them (`is_locked`); where
there are none (macOS), `flock` takes them and POSIX locks answer. On a system or a file system without locks nothing
is ever held.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Another process may hold a lock for a moment, on its way out: seconds for which it is tried again.
_PATIENCE, _INTERVAL = 0.3, 0.02
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class BusyError(ValueError):
    """A run that another process is training."""


@contextmanager
def try_lock(path: Path, create: bool = False, patience: float = _PATIENCE) -> Iterator[IO[bytes] | None]:
    """Holds the lock of a file while entered, and gives the open file; None when another process holds it.

    `create` makes the file where there is none; otherwise it raises FileNotFoundError.
    """
    # Open for writing: NFS has no exclusive locks on what is only read.
    with open(path, 'a+b' if create else 'r+b') as file:
        end = time.monotonic() + patience
        while not _take(file):
            if time.monotonic() >= end:
                yield None
                return
            time.sleep(_INTERVAL)
        yield file


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file. It only asks: a process that wants the lock meanwhile gets it."""
    try:
        with open(path, 'rb') as file:
            return _asked(file)
    except FileNotFoundError:
        return False


def _take(file: IO[Any]) -> bool:
    if fcntl is None:
        return True
    try:
        if hasattr(fcntl, 'F_OFD_SETLK'):
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _whole_file())
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def _asked(file: IO[Any]) -> bool:
    if fcntl is None:
        return False
    command = getattr(fcntl, 'F_OFD_GETLK', None) or fcntl.F_GETLK
    try:
        found = fcntl.fcntl(file, command, _whole_file())
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return struct.unpack('hh', found[:4])[0] != fcntl.F_UNLCK


def _whole_file() -> bytes:
    """`struct flock` of Linux: an exclusive lock on all bytes of a file."""
    return struct.pack('hhqqi0q', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
