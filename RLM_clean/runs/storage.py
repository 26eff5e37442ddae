"""Files that are written atomically and read safely: tensors and plain values, no code."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

TEMPORARY = '.tmp-'
REMEDY = 'remove it, or begin again with --resume restart'


class UnreadableFileError(ValueError):
    """A file that cannot be read as one of a run's; `damaged` when it is cut short rather than foreign or unsafe."""

    def __init__(self, message: str, damaged: bool) -> None:
        super().__init__(message)
        self.damaged = damaged


def atomic_write(path: Path, write: Callable[[BinaryIO], Any], new: bool = False) -> None:
    """Calls `write` on a temporary file in the folder of `path`, flushes it to the disk and renames it to `path`.

    Whatever happens on the way (a full disk, a signal), the file that was there stays whole. With `new` there must be
    none: of several processes that write it at a time, all but one get FileExistsError.
    """
    temporary = path.with_name(f'.{path.name}{TEMPORARY}{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _publish(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _publish(temporary: Path, path: Path) -> None:
    """Gives a file its name unless there is one of that name, which only a link tells without a gap."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(temporary, path)


def save(content: dict[str, Any], path: Path, new: bool = False) -> None:
    """Saves tensors and plain Python values atomically; `new` as in `atomic_write`."""

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides behind one of its own what the file raised, such as a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    atomic_write(path, write, new)


def link(path: Path, other: Path) -> None:
    """Gives the file at `path` a second name, in the place of what had it; a copy where there are no links."""
    temporary = other.with_name(f'.{other.name}{TEMPORARY}{os.getpid()}')
    try:
        os.link(path, temporary)
        os.replace(temporary, other)
    except OSError:
        save(load(path), other)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _intact(path: Path) -> bool:
    """Whether a zip archive, which every .pt file is, has its end and the right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of many kinds, on bytes that are no archive's
        return False


def load(path: Path, kinds: dict[str, type] | None = None) -> dict[str, Any]:
    """The content of a .pt file, on the CPU, read with weights_only=True: a file can hold data but run no code.

    Raises UnreadableFileError for a file that is cut short or changed, for one that holds anything but tensors and
    plain values, and for one that lacks an entry of `kinds`; FileNotFoundError where there is none.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
    except (IsADirectoryError, PermissionError) as error:
        raise UnreadableFileError(f'{path} cannot be read ({error.strerror}): {REMEDY}', damaged=False) from None
    if head not in (b'', b'P', b'PK'):  # nor need torch look at it: older formats are bare pickles
        raise UnreadableFileError(f'{path} is no file of a run, nor safe to read: {REMEDY}', damaged=False)
    if not _intact(path):
        raise UnreadableFileError(f'{path} is cut short or damaged: {REMEDY}', damaged=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UnreadableFileError(
            f'{path} is not safe to read, it holds more than tensors and plain values: {REMEDY}', damaged=False
        ) from None
    except Exception as error:  # of many kinds, on archives that are not torch's
        raise UnreadableFileError(f'{path} is no file of a run ({type(error).__name__}): {REMEDY}', False) from None
    if not isinstance(content, dict):
        raise UnreadableFileError(f'{path} is no file of a run, it holds a {type(content).__name__}: {REMEDY}', False)
    for name, kind in (kinds or {}).items():
        if not isinstance(content.get(name), kind):
            raise UnreadableFileError(f'{path} is no file of a run, it lacks {name!r}: {REMEDY}', damaged=False)
    return content
