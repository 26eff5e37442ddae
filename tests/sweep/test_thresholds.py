"""Thresholds by training: searches of tiny runs that are stopped, killed, and go on without training anything twice."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers import ROOT, environment
from small_runs import TINY, quiet

from RLM_clean.analysis.thresholds import Search, Threshold
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.sweep import worker
from RLM_clean.sweep.criteria import make_criterion
from RLM_clean.sweep.grid import read_axis
from RLM_clean.sweep.plan import read_plan
from RLM_clean.sweep.results import read_result
from RLM_clean.sweep.states import record_failure
from RLM_clean.sweep.thresholds import ThresholdSweep, threshold

# Runs of a moment which learn more from more sequences.
SMALL: dict[str, Any] = {
    **TINY, 'num_features': 6, 'num_layers': 1, 'embedding_dim': 16, 'optim': 'adam', 'lr': 0.02, 'max_iters': 80,
    'print_freq': 40, 'compile': 'off', 'beta': 3.0,
}  # fmt: skip
SEARCH: dict[str, Any] = {'excess': 0.2, 'seeds': 2, 'start': 32, 'largest': 512, 'resolution': 2.0, 'group': 1}


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        yield


def config(folder: Path, **options: Any) -> Config:
    return Config(**{**SMALL, 'outname': str(folder), **options})


def search(folder: Path, **options: Any) -> Threshold:
    """The threshold of tiny runs, without a word."""
    return threshold(config(folder), **{**SEARCH, **options}, say=quiet)


class Recorder:
    """Stands before the trainer of a worker, and notes the runs that are trained to their end, in order."""

    def __init__(self, then: Callable[[int], None] = lambda number: None) -> None:
        self.trained: list[str] = []
        self.then, self.before = then, worker.train_together

    def __call__(self, configs: Sequence[Config]) -> Iterator[Any]:
        for config, result in self.before(configs):
            self.trained.append(Path(config.outname).name)
            yield config, result
            self.then(len(self.trained))

    def __enter__(self) -> Recorder:
        self.patch = mock.patch.object(worker, 'train_together', self)
        self.patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.stop()


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Threshold, list[str], Path]:
    """A search in one go: its threshold, the runs that it trained, and its folder."""
    folder = tmp_path_factory.mktemp('whole') / 'search'
    with mock.patch('RLM_clean.plots.save_learning_curve'), Recorder() as recorder:
        return search(folder), recorder.trained, folder


Whole = tuple[Threshold, list[str], Path]


def test_the_threshold_is_that_of_the_files_of_the_runs(whole: Whole) -> None:
    """The least excess over the records of each run, at the sizes around it."""
    found, trained, folder = whole
    assert 0 < found.value < math.inf and len(found.per_seed) == 2
    plan = read_plan(folder)
    assert sorted(run.name for run in plan.runs) == sorted(trained)
    for run in plan.runs:
        assert run.config.regime == 'offline' and run.config.last_step == 80 and run.repetition is not None
        least = min(record['excess'] for record in read_result(run, folder).records)
        assert found.measured[run.config.train_size][run.repetition - 1] == least


def test_each_run_is_trained_once_and_a_second_call_trains_none(whole: Whole) -> None:
    found, trained, folder = whole
    assert len(set(trained)) == len(trained)
    with Recorder() as recorder:
        assert search(folder) == found
    assert recorder.trained == []


def test_another_criterion_uses_the_runs_that_are_there(whole: Whole) -> None:
    _, trained, folder = whole
    with Recorder() as recorder:
        other = search(folder, excess=0.3)
    assert not set(recorder.trained) & set(trained)
    assert set(other.measured) >= {32}


@pytest.mark.parametrize(
    ('after', 'group'),
    [(1, 1), (4, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_a_search_that_is_killed_goes_on_without_training_anything_twice(
    after: int, group: int, whole: Whole, tmp_path: Path
) -> None:
    """SIGKILL after so many runs, between those of a size (a group where they are trained together) or two sizes."""
    found, trained, _ = whole

    def die(number: int) -> None:
        if number == after:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        with Recorder(die):
            search(tmp_path / 'search', group=group)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in finals(tmp_path / 'search')}
    assert before
    with Recorder() as recorder:
        again = search(tmp_path / 'search', group=group)
    fresh = [name for name in recorder.trained if tmp_path / 'search' / f'{name}.pt' not in before]
    assert sorted([*(path.stem for path in before), *fresh]) == sorted(trained)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.measured.keys() == found.measured.keys() and again.value == pytest.approx(found.value, rel=1e-3)


def finals(folder: Path) -> list[Path]:
    """The final files of the runs that are done."""
    if not (folder / 'sweep.json').exists():
        return []
    return [path for run in read_plan(folder).runs if (path := RunFiles(run.config.outname).final).exists()]


@pytest.mark.slow
def test_the_command_that_is_killed_goes_on_without_training_anything_twice(tmp_path: Path) -> None:
    """The driver is killed three times, its workers among their steps; at the end all is as in one go."""
    folder = tmp_path / 'search'
    words = [sys.executable, '-m', 'RLM_clean.sweep', 'threshold', f'--outname={folder}', '--workers=1']
    words += [f'--{name}={value}' for name, value in SMALL.items()]
    words += ['--excess=0.2', '--repetitions=2', '--start=32', '--largest=512', '--resolution=2']
    seen: dict[Path, int] = {}
    for wanted in (1, 3, 4, None):
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 240
        while process.poll() is None and (wanted is None or len(finals(folder)) < wanted):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if wanted is not None:
            process.kill()
        _, said = process.communicate()
        assert wanted is not None or (process.returncode, said) == (0, '')
        for path in finals(folder):
            assert seen.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    for run in read_plan(folder).runs:
        steps = [record['t'] for record in RunFiles(run.config.outname).read_log()]
        assert steps == sorted(set(steps)) and steps[-1] == 80
    assert (folder / 'threshold_excess0.2.csv').exists() and (folder / 'threshold_excess0.2.png').exists()


def test_a_search_that_a_signal_stops_says_so(tmp_path: Path) -> None:
    with Recorder(lambda number: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
        search(tmp_path / 'search')


def test_a_run_that_fails_ends_the_search_of_its_language(tmp_path: Path, whole: Whole) -> None:
    with Recorder(lambda number: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
        search(tmp_path / 'search')
    left = [run for run in read_plan(tmp_path / 'search').runs if not RunFiles(run.config.outname).final.exists()]
    if not left:
        pytest.fail('the signal came too late for this test')
    record_failure(left[0].config.outname, 'too hot')
    with pytest.raises(ValueError, match=rf'{left[0].name} failed: `status` says why'):
        search(tmp_path / 'search')


def test_a_run_takes_the_same_steps_at_every_size_unless_epochs_are_given(tmp_path: Path) -> None:
    """A hundred epochs, the default elsewhere, would end the runs of small sizes early."""
    what = make_criterion(None, excess=0.2)
    for given, last in (({}, 2000), ({'max_epochs': 50}, 200)):
        options = {'max_iters': 2000, 'batch_size': 8, **given}
        sweep = ThresholdSweep(tmp_path / 'search', (), options, what, Search(what.bound, 32))
        assert [run.config.last_step for run in sweep.plan({}).runs] == [last] * 4


def test_two_drivers_that_ask_for_the_same_size_agree(tmp_path: Path) -> None:
    """Each adds it to the file of the sweep, which has it once."""
    options = {name: value for name, value in SMALL.items() if name not in ('device', 'threads', 'compile', 'beta')}
    what = make_criterion(None, excess=0.2)
    one, other = (
        ThresholdSweep(tmp_path / 'search', (read_axis(['beta=1,3']),), options, what, Search(what.bound, 64), 2)
        for _ in range(2)
    )
    one._extend({1: 128})
    plan = other._extend({1: 128, 0: 32})
    sizes = [(run.point['beta'], run.point['train_size']) for run in plan.runs if run.repetition == 1]
    assert sizes == [(1.0, 64), (3.0, 64), (3.0, 128), (1.0, 32)]
    assert [run.name for run in one.plan({}).runs] == [run.name for run in plan.runs]


def test_a_function_of_the_run_is_a_criterion(tmp_path: Path) -> None:
    """Here the size itself: learnt from 100 sequences on."""

    def size(run: Any) -> float:
        return -float(run.config.train_size)

    found = threshold(
        config(tmp_path / 'search', max_iters=8),
        None,
        size,
        1,
        -100.0,
        start=64,
        largest=256,
        resolution=1.3,
        say=quiet,
    )
    low, high = (
        max(P for P in found.measured if P < 100),
        min(P for P in found.measured if P >= 100),
    )
    assert low <= found.value <= high and high / low < 1.5


# ---------------------------------------------------------------------- what cannot be searched

BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {'excess': None}, 'neither level nor excess is given'),
    ({}, {'level': 1}, 'both of them are given'),
    ({}, {'excess': None, 'level': 2}, 'level=2 is not in a tree of 2 tokens: use 1 to 1'),
    ({}, {'excess': -1.0}, 'excess=-1 is out of range: use a finite number above 0'),
    ({}, {'excess': None, 'level': 1, 'fraction': 1.5}, 'fraction=1.5 is out of range'),
    ({}, {'fraction': 0.5}, 'excess=0.2 has no fraction'),
    ({}, {'criterion': 'stop'}, "criterion='stop' is unknown: use step or divergence or probe"),
    ({}, {'excess': None, 'level': 1, 'criterion': 'divergence', 'fraction': 0.5}, 'not for criterion=divergence'),
    ({'objective': 'root'}, {'excess': None, 'level': 1}, 'level=1 is for objective=last, not'),
    ({}, {'seeds': 0}, 'repetitions=0 is out of range'),
    ({}, {'start': 9999}, 'start=9999 is out of range: use 1 to 512'),
    ({'seed_rules': 5}, {}, 'seed_rules=5 would be replaced by that of each repetition'),
]


@pytest.mark.parametrize(('options', 'how', 'said'), BAD, ids=[said for *_, said in BAD])
def test_what_cannot_be_searched_is_refused_and_nothing_is_written(
    options: dict[str, Any], how: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        threshold(config(tmp_path / 'search', **options), **{**SEARCH, **how}, say=quiet)
    assert list(tmp_path.iterdir()) == []
