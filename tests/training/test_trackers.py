"""Trackers: each record and the floors are sent, and whatever goes wrong in a tracker, the run goes on."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import quiet, tiny, train

from RLM_clean.config import Config
from RLM_clean.runs import RunFiles, load_run
from RLM_clean.training import ensemble, lifecycle, trackers
from RLM_clean.training.lifecycle import Outcome

PACKAGES = {'tensorboard': 'torch.utils.tensorboard', 'wandb': 'wandb', 'trackio': 'trackio'}


class Kept:
    """A tracker that keeps what it is told."""

    all: list[Kept]

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.finished: list[bool] = []
        Kept.all.append(self)

    def start(self, config: Config, step: int | None) -> None:
        self.config, self.step = config, step

    def record(self, step: int, values: dict[str, float]) -> None:
        assert not self.finished
        self.points[step] = values

    def finish(self, failed: bool) -> None:
        self.finished.append(failed)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """What the trackers of this test have been told, in the order in which they were made."""
    Kept.all = []
    for name in trackers.TRACKERS:
        monkeypatch.setitem(trackers.TRACKERS, name, Kept)
    return Kept.all


def sent(outname: Path | str) -> dict[int, dict[str, float]]:
    """What a tracker has to get of a run that is done."""
    run = load_run(outname)
    floors = {f'floors/{k} tokens': value for k, (value, _) in run.floors.items()} | {'floors/task': run.entropy}
    names = ('trainloss', 'testloss', 'testacc', 'excess', 'lr')
    return {record['t']: {f'run/{name}': record[name] for name in names} | floors for record in run.dynamics}


# ---------------------------------------------------------------------- what is sent


@pytest.mark.parametrize('name', PACKAGES)
def test_a_tracker_gets_each_record_and_the_floors(name: str, tmp_path: Path, kept: list[Kept]) -> None:
    train(tiny(tmp_path / 'run', tracker=name))
    (tracker,) = kept
    assert tracker.config.outname == str(tmp_path / 'run') and tracker.step is None
    assert tracker.points == sent(tmp_path / 'run') and set(tracker.points) >= {0, 10, 20, 24}
    assert {'floors/0 tokens', 'floors/1 tokens', 'floors/3 tokens', 'floors/task'} <= set(tracker.points[0])
    assert tracker.finished == [False]


def test_lists_of_a_record_are_sent_number_by_number(tmp_path: Path, kept: list[Kept]) -> None:
    train(tiny(tmp_path / 'run', tracker='wandb', bp_records=True, max_iters=2))
    values = load_run(tmp_path / 'run').dynamics[-1]['bp']
    assert [kept[0].points[2][f'run/bp_{k}'] for k in range(3)] == values


@pytest.mark.parametrize(
    ('options', 'number'),
    [
        ({}, 0),
        ({'tensorboard': True}, 1),
        ({'tracker': 'tensorboard', 'tensorboard': True}, 1),
        ({'tracker': 'wandb', 'tensorboard': True}, 2),
    ],
)
def test_the_option_tensorboard_is_that_tracker_beside_any_other(
    options: dict[str, Any], number: int, tmp_path: Path, kept: list[Kept]
) -> None:
    train(tiny(tmp_path / 'run', max_iters=2, **options))
    assert len(kept) == number
    assert all(tracker.points == sent(tmp_path / 'run') for tracker in kept)


def test_a_run_that_goes_on_says_from_where_and_one_that_begins_again_does_not(
    tmp_path: Path, kept: list[Kept]
) -> None:
    train(tiny(tmp_path / 'run', tracker='trackio'))
    train(tiny(tmp_path / 'run', tracker='trackio', max_iters=30))
    train(tiny(tmp_path / 'run', tracker='trackio', resume='restart'))
    assert [tracker.step for tracker in kept] == [None, 24, None]
    assert min(kept[1].points) > 24 and kept[0].points | kept[1].points == sent_of_longer(tmp_path)


def sent_of_longer(folder: Path) -> dict[int, dict[str, float]]:
    """What a run of 30 steps sends, and step 24, at which the shorter one ended."""
    train(tiny(folder / 'longer', max_iters=30))
    train(tiny(folder / 'shorter'))
    return sent(folder / 'shorter') | sent(folder / 'longer')


def test_each_run_of_a_group_has_its_own_tracker(tmp_path: Path, kept: list[Kept]) -> None:
    configs = [tiny(tmp_path / f'run{lr}', tracker='wandb', lr=lr) for lr in (0.1, 0.2)]
    configs.append(tiny(tmp_path / 'diverges', tracker='wandb', lr=1e30))
    results = dict(zip((0, 1, 2), sorted_results(configs), strict=True))
    assert [isinstance(results[i], Outcome) for i in range(3)] == [True, True, False]
    for config, tracker, failed in zip(configs, kept, (False, False, True), strict=True):
        assert tracker.config == config and tracker.finished == [failed]
    for config, tracker in zip(configs[:2], kept, strict=False):
        assert tracker.points == sent(config.outname)


def sorted_results(configs: list[Config]) -> list[Any]:
    results = {config.outname: result for config, result in ensemble.train(configs, quiet)}
    return [results[config.outname] for config in configs]


# ---------------------------------------------------------------------- what goes wrong


class Failing(Kept):
    """A tracker that fails where it is told to."""

    where, error = 'start', Exception()

    def fail(self, where: str) -> None:
        if where == Failing.where:
            raise Failing.error

    def start(self, config: Config, step: int | None) -> None:
        self.fail('start')

    def record(self, step: int, values: dict[str, float]) -> None:
        if step == 2:
            self.fail('record')

    def finish(self, failed: bool) -> None:
        self.fail('finish')


@pytest.mark.parametrize('error', [OSError(28, 'No space\nleft'), RuntimeError('offline'), SystemExit(3)])
@pytest.mark.parametrize('where', ['start', 'record', 'finish'])
def test_a_tracker_that_fails_stops_no_run(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[Kept]
) -> None:
    """It is left out after one line, and the run is the one without it."""
    monkeypatch.setattr(Failing, 'where', where)
    monkeypatch.setattr(Failing, 'error', error)
    monkeypatch.setitem(trackers.TRACKERS, 'wandb', Failing)
    said: list[str] = []
    options: dict[str, Any] = {'max_iters': 4}
    outcome = train(tiny(tmp_path / 'with' / 'run', tracker='wandb', tensorboard=True, **options), said.append)
    assert outcome.status == 'done'
    (line,) = [line for line in said if 'tracker=wandb' in line and not line.startswith('options: ')]
    assert line.startswith(f'tracker=wandb failed ({type(error).__name__}: ') and '\n' not in line
    assert line.endswith('): the run goes on without it')
    other = next(tracker for tracker in kept if not isinstance(tracker, Failing))
    assert other.points == sent(tmp_path / 'with' / 'run') and other.finished == [False]
    train(tiny(tmp_path / 'without' / 'run', **options))
    assert records_of(tmp_path / 'with' / 'run') == records_of(tmp_path / 'without' / 'run')


def records_of(outname: Path) -> list[dict[str, Any]]:
    return [{**record, 'seconds': 0} for record in load_run(outname).dynamics]


@pytest.mark.parametrize('name', PACKAGES)
def test_without_its_package_a_run_ends_well_and_says_how_to_install_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ('tensorboard', *PACKAGES.values()):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, 'torch.utils.tensorboard')
    said: list[str] = []
    assert train(tiny(tmp_path / 'run', tracker=name, max_iters=2), said.append).status == 'done'
    (line,) = [line for line in said if line.startswith(f'tracker={name}')]
    assert line == (
        f'tracker={name} needs a package that is not installed (pip install {name}): the run goes on without it'
    )


@pytest.mark.parametrize('broken', ['raise RuntimeError("two versions clash")', 'import sys; sys.exit(1)', ''])
@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_with_a_broken_package_a_run_ends_well(
    name: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails when it is imported, one that ends the process, and one that has nothing in it."""
    (tmp_path / 'packages').mkdir()
    (tmp_path / 'packages' / f'{name}.py').write_text(broken)
    monkeypatch.syspath_prepend(tmp_path / 'packages')
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')
    said: list[str] = []
    assert train(tiny(tmp_path / 'run', tracker=name, max_iters=2), said.append).status == 'done'
    assert load_run(tmp_path / 'run').done
    (line,) = [line for line in said if line.startswith(f'tracker={name}')]
    expected = {'': 'AttributeError: module', 'i': 'SystemExit: 1', 'r': 'RuntimeError: two versions clash'}
    assert line.startswith(f'tracker={name} failed ({expected[broken[:1]]}')
    sys.modules.pop(name, None)  # what was there before comes back


def test_without_a_tracker_nothing_is_imported_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)  # importing it would fail
    said: list[str] = []
    lifecycle.train(tiny(tmp_path / 'run', max_iters=2), said.append)
    assert not any('tracker' in line for line in said)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


# ---------------------------------------------------------------------- the real packages, where they are installed


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process can connect to nothing but this machine."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ('127.0.0.1', '::1'), f'a connection to {address}'
        connect(self, address)

    monkeypatch.setattr(socket.socket, 'connect', refuse)


def test_wandb_writes_the_records_and_the_floors_offline_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')
    monkeypatch.setenv('WANDB_MODE', 'online')
    pytest.importorskip('wandb')
    config = tiny(tmp_path / 'run', tracker='wandb', max_iters=4)
    train(config)
    train(tiny(tmp_path / 'run', tracker='wandb', max_iters=6))
    files = sorted((tmp_path / 'run_wandb').glob('wandb/offline-run-*/*.wandb'), key=os.path.getmtime)
    assert len(files) == 2 and len({path.name for path in files}) == 1  # the name is the id of the run
    first, second = ({int(row['_step']): row for row in rows_of(path)} for path in files)
    everything = sent(tmp_path / 'run')
    assert list(first) == [0, 1, 2, 3, 4] and list(second) == [6]
    for step, row in (first | second).items():
        assert {name: value for name, value in row.items() if not name.startswith('_')} == everything[step]
    train(tiny(tmp_path / 'run', tracker='wandb', max_iters=4, resume='restart'))
    (only,) = (tmp_path / 'run_wandb').glob('wandb/offline-run-*/*.wandb')
    assert only.name != files[0].name


def test_wandb_has_a_run_for_each_run_of_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')
    pytest.importorskip('wandb')
    configs = [tiny(tmp_path / f'run{lr}', tracker='wandb', max_iters=4, lr=lr) for lr in (0.1, 0.2)]
    assert all(isinstance(result, Outcome) for result in sorted_results(configs))
    for config in configs:
        (path,) = RunFiles(config.outname).wandb.glob('wandb/offline-run-*/*.wandb')
        rows = {int(row['_step']): row for row in rows_of(path)}
        assert {step: row['run/excess'] for step, row in rows.items()} == {
            step: values['run/excess'] for step, values in sent(config.outname).items()
        }


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of history in an offline file of wandb: a log in blocks of 32 KiB (leveldb's format) of protobufs."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content.startswith(b':W&B')
    place, part = 7, b''
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # the rest of a block is empty
            place += left
            continue
        _, size, kind = struct.unpack('<IHB', content[place : place + 7])
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            record = wandb_internal_pb2.Record.FromString(part)
            part = b''
            if record.WhichOneof('record_type') == 'history':
                items = record.history.item
                yield {item.key or '/'.join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope='module')
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Trackio keeps its runs, which it reads when it is imported."""
    folder = tmp_path_factory.mktemp('trackio')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRACKIO_DIR', str(folder))
        pytest.importorskip('trackio')
        yield folder / f'{trackers.PROJECT}.db'


def test_trackio_has_the_records_and_the_floors_of_each_run_and_goes_on_in_the_same_run(
    tmp_path: Path, database: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ['one', 'two']
    configs = [tiny(tmp_path / name, tracker='trackio', max_iters=4, lr=0.1 * len(name)) for name in names]
    assert all(isinstance(result, Outcome) for result in sorted_results(configs))
    train(tiny(tmp_path / 'one', tracker='trackio', max_iters=6, lr=0.1 * 3))
    assert 'rackio' not in capsys.readouterr().out
    connection = sqlite3.connect(database)
    rows = connection.execute('SELECT run_name, run_id, step, metrics FROM metrics').fetchall()
    connection.close()
    for name in names:
        mine = [row for row in rows if row[0] == str(tmp_path / name)]
        assert len({row[1] for row in mine}) == 1
        points = {step: json.loads(values) for _, _, step, values in mine}
        assert {step: points[step] for step in sent(tmp_path / name)} == sent(tmp_path / name)
        assert len(mine) == len(points) == (6 if name == 'one' else 5)


def test_tensorboard_has_the_records_and_the_floors(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(tmp_path / 'run', tensorboard=True, max_iters=4))
    train(tiny(tmp_path / 'run', tracker='tensorboard', max_iters=6))
    events = EventAccumulator(str(RunFiles(tmp_path / 'run').curves)).Reload()
    for step, values in sent(tmp_path / 'run').items():
        for name, value in values.items():
            assert [e.value for e in events.Scalars(name) if e.step == step] == [pytest.approx(value)]


@pytest.mark.parametrize('name', PACKAGES)
def test_a_run_is_the_same_with_a_tracker(name: str, tmp_path: Path, database: Path) -> None:
    pytest.importorskip(name)
    for folder, tracker in (('with', name), ('without', 'none')):
        train(tiny(tmp_path / folder, tracker=tracker, max_iters=4))
    assert records_of(tmp_path / 'with') == records_of(tmp_path / 'without')
