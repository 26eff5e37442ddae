"""Locks on files: which process trains a run. A lock ends with the process that took it, however that ends.

On Linux these are locks of an open file (F_OFD_SETLK), about which any process can ask without taking one
(F_OFD_GETLK). Elsewhere `flock` takes them. Where the system or the file system has no locks, every file is free.
"""

# filelock (PyPI) does not serve: it can only ask by taking the lock, so that asking makes another process fail.

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# A lock may be held only for a moment, by a process that is about to end: seconds for which it is tried again.
_PATIENCE, _INTERVAL = 0.3, 0.02
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

_locked: set[FileIO] = set()  # the open files that this process holds locks on


class BusyError(ValueError):
    """Another process trains the run."""


@contextmanager
def try_lock(path: Path, create: bool = False, patience: float = _PATIENCE) -> Iterator[FileIO | None]:
    """Locks a file while entered and gives the open file; None when another process keeps it for `patience` seconds.

    The lock is also refused to other calls in the same process, and children of a fork do not inherit it. `create`
    makes the file when it is missing; otherwise that raises FileNotFoundError.
    """
    end = time.monotonic() + patience
    while True:
        # Open for writing: NFS gives exclusive locks only on files that can be written.
        with FileIO(path, 'a+' if create else 'r+') as file:
            if _lock(file) and _is_at(file, path):
                _locked.add(file)
                try:
                    yield file
                finally:
                    _locked.discard(file)
                return
        if time.monotonic() >= end:
            break
        time.sleep(_INTERVAL)
    yield None


def is_locked(path: Path) -> bool:
    """Whether a lock is held on a file; False when the file does not exist.

    Asking does not disturb a process that wants the lock: on Linux because no lock is taken, elsewhere because
    `try_lock` tries again.
    """
    if fcntl is None:
        return False
    try:
        with FileIO(path) as file:
            found = _open_file_lock(file, 'F_OFD_GETLK')
            if found is not None:
                return struct.unpack('h', found[:2]) != (fcntl.F_UNLCK,)
            return not _flock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise


def _lock(file: FileIO) -> bool:
    if fcntl is None:
        return True
    try:
        return _open_file_lock(file, 'F_OFD_SETLK') is not None or _flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _WITHOUT_LOCKS:
            return True
        raise


def _open_file_lock(file: FileIO, command: str) -> bytes | None:
    """The answer of a command on locks of open files; None when the system does not know them."""
    if not hasattr(fcntl, command):
        return None
    # `struct flock` of 64-bit Linux: an exclusive lock on all bytes of the file.
    request = struct.pack('hhqqi0q', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        return fcntl.fcntl(file, getattr(fcntl, command), request)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _flock(file: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether a file still has its name: a process that begins a run again removes the file and makes a new one."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    # A lock lasts as long as any process has the file open: the children of a fork must not keep it.
    while _locked:
        _locked.pop().close()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_close_in_child)
