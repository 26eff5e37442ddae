"""The command of thresholds, from its words to its table, its file and its figure."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from small_runs import TINY

from RLM_clean import sweep
from RLM_clean.sweep import local, worker
from RLM_clean.sweep.plan import Plan


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers are quick to start, and draw no pictures of runs."""

    def launch(plan: Plan, workers: int, group: int | None) -> bool:
        return worker.work(plan.folder, plan.execution, group=1)

    monkeypatch.setattr(local, 'launch', launch)
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        yield


def words(folder: Path, *more: str, **options: Any) -> list[str]:
    """The command line of a search among runs of a moment."""
    values = {**TINY, 'num_layers': 1, 'max_iters': 8, 'compile': 'off', 'outname': folder, **options}
    return ['threshold', *(f'--{name}={value}' for name, value in values.items()), *more]


SEARCH = ['--repetitions=2', '--start=32', '--largest=64', '--resolution=2']


def test_a_grid_of_languages_gives_a_table_a_file_and_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'search'
    line = words(folder, *SEARCH, '--grid=beta=1,3', '--excess=9')
    assert sweep.main([*line, '--dry-run']) == 0
    assert capsys.readouterr().out.count('P=32 is to be trained') == 2 and not folder.exists()
    assert sweep.main(line) == 0
    out = capsys.readouterr().out
    assert 'beta=1: P=32: 2 of 2 seeds meet excess9; about 0:00:00 left' in out
    assert '2 of 2 seeds already at 8, the smallest size' in out
    with open(folder / 'threshold_excess9.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['beta'], row['threshold'], row['criterion'], row['bound']) for row in rows] == [
        ('1.0', '0.0', 'excess', '9.0'), ('3.0', '0.0', 'excess', '9.0')
    ]  # fmt: skip
    with open(folder / 'threshold_excess9_values.csv', newline='') as file:
        values = list(csv.DictReader(file))
    assert len(values) == 2 * 3 * 2 and {row['train_size'] for row in values} == {'8', '16', '32'}
    assert (folder / 'threshold_excess9.png').exists()
    assert sweep.main([*line, '--dry-run']) == 0 and 'to be trained' not in capsys.readouterr().out


def test_the_grid_can_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = words(tmp_path / 'search', *SEARCH, '--excess=1e-9')
    assert sweep.main([*line, '--grid=beta=1']) == 0
    assert '2 of 2 seeds not up to 64, the largest size' in capsys.readouterr().out
    assert sweep.main([*line, '--grid=beta=3,1']) == 0
    assert '2 languages, 2 seeds each' in capsys.readouterr().out
    with open(tmp_path / 'search' / 'threshold_excess1e-09.csv', newline='') as file:
        assert [(row['beta'], row['threshold']) for row in csv.DictReader(file)] == [('3.0', 'inf'), ('1.0', 'inf')]


BAD: list[tuple[list[str], str]] = [
    ([], 'neither level nor excess is given: give a level, as in --level 2, or an excess in nats'),
    (['--level=3'], 'level=3 is not in a tree of 2 tokens: use 1 to 1'),
    (['--level=0'], '0 is out of range: use a whole number, 1 or more'),
    (['--levl=1'], "'--levl=1' is not an option: did you mean --level?"),
    (['--level=1', '--grid=train_size=32,64'], 'train_size is what is sought: leave it out'),
    (['--level=1', '--train_size=64'], 'train_size is what is sought: leave it out'),
    (['--level=1', '--regime=online'], 'regime is offline in a search for a threshold: leave it out'),
    (['--level=1', '--launcher=slurm'], 'launcher=slurm is not for thresholds'),
    (['--level=1', '--outname='], 'outname is missing: give the folder of the search'),
    (['--level=1', '--grid=num_heads=1,3'], 'num_heads=3 does not divide embedding_dim=8'),
    (['--level=1', '--resolution=1'], 'resolution=1 is out of range: use a number above 1'),
    (['--level=1', '--grid=beta=1', '--grid=beta=2'], 'beta is varied twice'),
    (['--level=1', '--outname=/dev/null/search'], "'/dev/null/search' is a folder that cannot be written"),
]


@pytest.mark.parametrize(('more', 'said'), BAD, ids=[' '.join(more) for more, _ in BAD])
def test_what_cannot_be_run_is_refused_in_one_line_and_nothing_is_written(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {word.removeprefix('--').split('=')[0] for word in more}
    line = [word for word in words(tmp_path / 'search') if word.removeprefix('--').split('=')[0] not in given]
    try:
        status = sweep.main([*line, *more])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    _, err = capsys.readouterr()
    assert status == 2
    assert err.startswith('sweep: error: ') and err.count('\n') == 1 and said in err, err
    assert list(tmp_path.iterdir()) == []
