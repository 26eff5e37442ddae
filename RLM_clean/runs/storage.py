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
FOLDER_REMEDY = 'move it away, or use another outname'


class UnreadableFileError(ValueError):
    """A file that cannot be read as a file of a run.

    `damaged` says that it is cut short or changed, as a crash leaves it, and not of another origin or unsafe to read.
    """

    def __init__(self, message: str, damaged: bool) -> None:
        super().__init__(message)
        self.damaged = damaged


def atomic_write(path: Path, write: Callable[[BinaryIO], Any], new: bool = False) -> None:
    """Calls `write` on a temporary file in the folder of `path`, flushes it to the disk and renames it to `path`.

    Whatever happens on the way (a full disk, a signal), a file that was at `path` before stays whole. With `new` the
    file must not exist yet: when several processes write it at the same time, all but one get FileExistsError.
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
    """Gives a file its name, or raises FileExistsError: a link does both in one operation, a renaming would not."""
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
        except RuntimeError as error:  # torch wraps the error of the file, such as a full disk, in one of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    atomic_write(path, write, new)


def link(path: Path, other: Path) -> None:
    """Gives the file at `path` a second name, replacing a file of that name; makes a copy where links do not work."""
    temporary = other.with_name(f'.{other.name}{TEMPORARY}{os.getpid()}')
    try:
        os.link(path, temporary)
        os.replace(temporary, other)
    except OSError:
        save(load(path), other)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def load(path: Path, tensors: bool = True) -> dict[str, Any]:
    """The content of a .pt file, on the CPU, read with weights_only=True: a file can hold data but run no code.

    `tensors=False` is for plain values only: the tensors stay on the disk, and neither they nor checksums are read.

    Raises UnreadableFileError for a file that is cut short or changed, and for one that holds anything but a dict of
    tensors and plain values; FileNotFoundError when the file does not exist.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise UnreadableFileError(f'{path} is a folder: {FOLDER_REMEDY}', damaged=False) from None
    except OSError as error:
        raise UnreadableFileError(f'{path} cannot be read ({error.strerror}): {REMEDY}', damaged=False) from None
    if head not in (b'', b'P', b'PK'):  # older formats of torch are bare pickles: do not let torch try them
        raise UnreadableFileError(f'{path} is not a file of a run and may not be safe to read: {REMEDY}', damaged=False)
    if tensors and not _intact(path):
        raise UnreadableFileError(f'{path} is cut short or damaged: {REMEDY}', damaged=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=not tensors)
    except Exception as error:  # torch raises many kinds
        if not tensors:
            return load(path)  # it finds out what is wrong
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UnreadableFileError(f'{path} is not a file of a run (it holds a {kind}): {REMEDY}', damaged=False)
    return content


def _intact(path: Path) -> bool:
    """Whether a zip archive, which every .pt file is, has its end and the right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile raises many kinds on bytes that are not an archive
        return False


def _unreadable(path: Path, error: Exception) -> UnreadableFileError:
    if isinstance(error, pickle.UnpicklingError):
        why = 'is not safe to read, it holds more than tensors and plain values'
    else:
        why = f'is not a file of a run ({type(error).__name__})'
    return UnreadableFileError(f'{path} {why}: {REMEDY}', damaged=False)
