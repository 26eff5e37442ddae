"""Locks on files: one process at a time, asking disturbs nobody, and a lock ends with its process.

Each promise is kept both by the locks of open files (Linux) and by `flock` (elsewhere).
"""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from RLM_clean.runs import locks
from RLM_clean.runs.locks import is_locked, try_lock

OPEN_FILE_COMMANDS = ('F_OFD_GETLK', 'F_OFD_SETLK')

# What a process of these tests runs first: the module alone, without torch, and with the kind of lock of the test.
PREPARE = f"""
import fcntl, importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location('locks', {str(ROOT / 'RLM_clean' / 'runs' / 'locks.py')!r})
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
path = Path(sys.argv[1])
if sys.argv[2] == 'flock':
    for name in {OPEN_FILE_COMMANDS!r}:
        if hasattr(fcntl, name):
            delattr(fcntl, name)
"""

HOLD = """
with locks.try_lock(path) as file:
    print(file is not None, flush=True)
    sys.stdin.read()
"""

LOOK = """
print('ready', flush=True)
os.set_blocking(0, False)
while sys.stdin.buffer.raw.read(1) is None:
    for _ in range(1000):
        locks.is_locked(path)
"""

# Two processes inside at the same time would both try to make the file 'inside'.
TAKE_TURNS = """
inside, taken = path.with_name('inside'), 0
while taken < 200:
    with locks.try_lock(path) as file:
        if file is not None:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            os.unlink(inside)
            taken += 1
"""

FORK_AND_HOLD = """
with locks.try_lock(path) as file:
    if not os.fork():
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=['open file', 'flock'])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of lock that this process and its processes use."""
    if request.param == 'flock':
        for name in OPEN_FILE_COMMANDS:
            monkeypatch.delattr(fcntl, name, raising=False)
    elif not all(hasattr(fcntl, name) for name in OPEN_FILE_COMMANDS):
        pytest.skip('this system has no locks of open files')
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to lock."""
    (tmp_path / 'file').touch()
    return tmp_path / 'file'


class Starter:
    """Starts processes that run a script on a file; they read from a pipe and end when it is closed."""

    def __init__(self, stack: ExitStack, path: Path, kind: str) -> None:
        self.stack, self.arguments = stack, [str(path), kind]

    def __call__(self, script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-c', PREPARE + script, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(process.communicate)
        return process


@pytest.fixture
def start(path: Path, kind: str) -> Iterator[Starter]:
    with ExitStack() as stack:
        yield Starter(stack, path, kind)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def close_input(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None


def test_asking_never_makes_a_process_that_wants_the_lock_fail(path: Path, kind: str, start: Starter) -> None:
    """Another process asks in a tight loop. Locks of open files are not even tried twice."""
    assert line_of(start(LOOK)) == 'ready'
    patience: dict[str, Any] = {'patience': 0} if kind == 'open file' else {}
    refused = 0
    for _ in range(2000):
        with try_lock(path, **patience) as file:
            refused += file is None
    assert refused == 0


def test_two_processes_never_hold_a_lock_together(start: Starter) -> None:
    processes = [start(TAKE_TURNS) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]


@pytest.mark.usefixtures('kind')
def test_a_lock_is_refused_while_another_open_file_has_it(path: Path) -> None:
    """Also to the process that has it."""
    assert not is_locked(path)
    with try_lock(path) as file:
        assert file is not None and is_locked(path)
        with try_lock(path, patience=0) as other:
            assert other is None
        assert is_locked(path)  # a refusal does not end the lock, nor does reading the file
        path.read_bytes()
        assert is_locked(path)
    assert not is_locked(path)


def test_a_lock_ends_with_a_process_that_is_killed(path: Path, start: Starter) -> None:
    process = start(HOLD)
    assert line_of(process) == 'True' and is_locked(path)
    with try_lock(path, patience=0) as file:
        assert file is None
    process.kill()
    process.wait()
    assert not is_locked(path)
    with try_lock(path, patience=0) as file:
        assert file is not None


def test_a_lock_that_is_held_for_a_moment_is_waited_for(
    path: Path, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(HOLD)
    assert line_of(process) == 'True'

    def end_other(seconds: float) -> None:  # instead of a pause
        close_input(process)
        process.wait()

    monkeypatch.setattr(locks.time, 'sleep', end_other)
    with try_lock(path) as file:
        assert file is not None


@pytest.mark.usefixtures('kind')
def test_a_file_that_is_replaced_before_its_lock_is_taken_is_locked_under_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that begins a run again removes its files: a lock on what it removed would keep nobody out."""
    take = locks._lock

    def replace_first(file: FileIO) -> bool:
        monkeypatch.setattr(locks, '_lock', take)
        path.unlink()
        path.touch()
        return take(file)

    monkeypatch.setattr(locks, '_lock', replace_first)
    with try_lock(path) as file:
        assert file is not None and os.path.samestat(os.fstat(file.fileno()), path.stat())


def test_children_of_a_fork_do_not_keep_a_lock(path: Path, start: Starter) -> None:
    process = start(FORK_AND_HOLD)
    child = int(line_of(process))
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)  # it is alive
        assert not is_locked(path)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures('kind')
def test_the_end_of_a_forked_child_does_not_end_the_lock_of_its_parent(path: Path) -> None:
    with try_lock(path) as file:
        assert file is not None
        child = os.fork()
        if not child:
            file.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert is_locked(path)


@pytest.mark.usefixtures('kind')
def test_a_missing_file_is_not_locked_and_is_made_on_request(tmp_path: Path) -> None:
    missing = tmp_path / 'missing'
    assert not is_locked(missing)
    with pytest.raises(FileNotFoundError), try_lock(missing):
        pass
    with try_lock(missing, create=True) as file:
        assert file is not None and is_locked(missing)


@pytest.mark.parametrize('error', [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.usefixtures('kind')
def test_on_a_file_system_without_locks_every_file_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    _fail_with(error, monkeypatch)
    with try_lock(path) as file, try_lock(path) as other:
        assert file is not None and other is not None and not is_locked(path)


@pytest.mark.usefixtures('kind')
def test_another_error_of_the_system_is_not_hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(errno.EBADF, monkeypatch)
    with pytest.raises(OSError, match='from the test'), try_lock(path):
        pass
    with pytest.raises(OSError, match='from the test'):
        is_locked(path)


def _fail_with(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Any, *arguments: Any) -> None:
        raise OSError(error, 'from the test')

    monkeypatch.setattr(fcntl, 'fcntl', fail)
    monkeypatch.setattr(fcntl, 'flock', fail)


def test_a_system_that_does_not_know_locks_of_open_files_uses_flock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EINVAL, 'from the test')

    monkeypatch.setattr(fcntl, 'fcntl', fail)
    with try_lock(path) as file, try_lock(path, patience=0) as other:
        assert file is not None and other is None and is_locked(path)
    assert not is_locked(path)


def test_without_fcntl_every_file_is_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, 'fcntl', None)
    with try_lock(path) as file, try_lock(path) as other:
        assert file is not None and other is not None and not is_locked(path)


def test_no_other_module_knows_how_files_are_locked() -> None:
    importing = []
    for module in sorted((ROOT / 'RLM_clean').rglob('*.py')):
        for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            importing += [module.name for name in names if name in ('fcntl', 'filelock', 'msvcrt')]
    assert importing == ['locks.py']
