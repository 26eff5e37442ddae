"""Files are written whole or not at all, and reading one never runs code."""

from __future__ import annotations

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import nn

from RLM_clean.runs.storage import UnreadableFileError, atomic_write, link, load, save

CONTENT: dict[str, Any] = {'model': {'a': torch.arange(1000.0), 'b': torch.ones(3, 4)}, 'step': 4, 'lr': [0.1, None]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with CONTENT, the only one of its folder."""
    save(CONTENT, tmp_path / 'file.pt')
    return tmp_path / 'file.pt'


# ---------------------------------------------------------------------- writing


def test_a_write_that_fails_leaves_the_file_that_was_there(path: Path) -> None:
    before = path.read_bytes()

    def fail(file: Any) -> None:
        file.write(b'half')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        atomic_write(path, fail)
    with pytest.raises(Exception, match='local object'):
        save({'x': lambda: None}, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ('fsync', 'replace'):
        real = getattr(os, name)

        def watched(*arguments: Any, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(*arguments)

        monkeypatch.setattr(os, name, watched)
    save(CONTENT, tmp_path / 'file.pt')
    assert done == ['fsync', 'replace']


def test_of_two_processes_that_write_a_new_file_one_gets_an_error(tmp_path: Path) -> None:
    path = tmp_path / 'file'

    def write(file: BinaryIO) -> None:  # the other process writes it in the meantime
        file.write(b'mine')
        path.write_bytes(b'theirs')

    with pytest.raises(FileExistsError):
        atomic_write(path, write, new=True)
    assert path.read_bytes() == b'theirs' and os.listdir(tmp_path) == ['file']


@pytest.fixture(params=[True, False], ids=['links', 'no links'])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with links, and one without."""

    def fail(*arguments: Any) -> None:
        raise OSError(errno.EPERM, 'no links')

    if not request.param:
        monkeypatch.setattr(os, 'link', fail)


@pytest.mark.usefixtures('links')
def test_a_new_file_is_written_with_and_without_links(tmp_path: Path) -> None:
    atomic_write(tmp_path / 'file', lambda file: file.write(b'mine'), new=True)
    assert (tmp_path / 'file').read_bytes() == b'mine' and os.listdir(tmp_path) == ['file']


@pytest.mark.usefixtures('links')
def test_a_second_name_replaces_the_file_that_had_it(path: Path) -> None:
    other = path.with_name('other.pt')
    save({'step': 2}, other)
    link(path, other)
    save({'step': 8}, path)
    assert load(path) == {'step': 8} and str(load(other)) == str(CONTENT)
    assert sorted(os.listdir(path.parent)) == ['file.pt', 'other.pt']


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize('tensors', [True, False])
def test_a_file_gives_what_was_saved(path: Path, tensors: bool) -> None:
    assert str(load(path, tensors)) == str(CONTENT)


def test_a_missing_file_is_not_an_unreadable_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / 'missing.pt')


@pytest.mark.parametrize('size', [0, 1, 2, 3, 100, 0.5, -1])
def test_a_file_cut_anywhere_is_known_to_be_damaged(path: Path, size: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    for tensors in (True, False):
        with pytest.raises(UnreadableFileError, match='is cut short or damaged: remove it') as caught:
            load(path, tensors)
        assert caught.value.damaged and str(path) in str(caught.value)


def test_one_changed_bit_of_a_tensor_is_found(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    changed[entry.header_offset + entry.file_size // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UnreadableFileError, match='damaged'):
        load(path)


def test_bytes_changed_at_random_are_found(path: Path) -> None:
    """load gives what was saved or one line that says why it cannot: 200 changes by a fixed seed."""
    draw = random.Random(5)
    good, found = path.read_bytes(), 0
    for _ in range(200):
        data = bytearray(good)
        for _ in range(draw.choice((1, 3, 20))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            assert str(load(path)) == str(CONTENT)
        except UnreadableFileError as error:
            found += '\n' not in str(error)
    assert found > 160


def test_a_folder_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match='is a folder: move it away') as caught:
        load(tmp_path)
    assert not caught.value.damaged
    torch.save([1, 2], tmp_path / 'file.pt')
    with pytest.raises(UnreadableFileError, match='it holds a list'):
        load(tmp_path / 'file.pt')


class Malicious:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize('zip_format', [True, False])
@pytest.mark.parametrize('tensors', [True, False])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, zip_format: bool, tensors: bool) -> None:
    path, made = tmp_path / 'bad.pt', tmp_path / 'made'
    for content in ({'model': Malicious(made)}, Malicious(made), nn.Linear(1, 1), {'x': Path('x')}):
        torch.save(content, path, _use_new_zipfile_serialization=zip_format)
        with pytest.raises(UnreadableFileError, match='safe to read') as caught:
            load(path, tensors)
        assert not caught.value.damaged and not made.exists()


def test_the_code_of_these_tests_would_run_in_a_reader_that_trusts_it(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / 'made')))
    assert (tmp_path / 'made').exists()
