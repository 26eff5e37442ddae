"""What the version before the packages has written: it opens, goes on to the same bits, and is collected.

The files are made by old_version/make.py with that version, commit ce461ba.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, environment
from old_version.make import rounding
from torch import Tensor

from RLM_clean.config import Config
from RLM_clean.runs import load_run
from RLM_clean.sweep import collect, load
from RLM_clean.training import train

FILES = Path(__file__).with_name('old_version') / 'files'
MADE: dict[str, Any] = json.loads((FILES / 'made.json').read_text(encoding='utf-8'))

RUNS = ['done/run', 'interrupted/run', 'expected/run', 'offline_interrupted/run', 'offline_expected/run']
RUNS += [f'sweep_done/{point}_{r}' for point in ('beta2', 'beta4') for r in ('r1', 'r2')]
RUNS += [f'sweep_partial/{point}_{r}' for point in ('beta2', 'beta4') for r in ('r1', 'r2')]

# What a record says that is the same in both versions: test losses are of other tokens now, and have less noise.
SAME = ('t', 'trainloss', 'excess', 'lr')
RESUMED = pytest.mark.parametrize('name', ('', 'offline_'), ids=('online', 'offline'))


@functools.cache
def rounds_alike() -> bool:
    """Whether this machine and its torch round as those that made the files: the bits can be the same only then."""
    return rounding() == MADE['rounding']


def copy(folder: str, tmp_path: Path) -> Path:
    """A copy of one of the folders, to work on."""
    return Path(shutil.copytree(FILES / folder, tmp_path / folder))


def options(name: str, outname: Path) -> Config:
    """The options of a run as they were given to the version before."""
    return Config(outname=str(outname), **MADE['runs'][name], **MADE['machine'])


def read(path: Path) -> Any:
    """The content of a .pt file."""
    return torch.load(path, weights_only=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log."""
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def quiet(line: str) -> None:
    """Says nothing."""


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, and bit for bit the same tensors where this machine rounds as the one that made the files."""
    assert list(found) == list(expected)
    for name, x in expected.items():
        if rounds_alike():
            assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
            assert torch.equal(found[name].flatten().view(torch.uint8), x.flatten().view(torch.uint8)), name
        else:  # the bias of keys has no gradient but rounding, of which Adam makes steps of full length
            torch.testing.assert_close(found[name], x, rtol=1e-3, atol=0.05)


def assert_same_records(found: list[dict[str, Any]], expected: list[dict[str, Any]], kept: int) -> None:
    """The same records, of which the first `kept` are those of the version before, with all that they say."""
    assert [record['t'] for record in found] == [record['t'] for record in expected]
    for i, (record, other) in enumerate(zip(found, expected, strict=True)):
        for name in [name for name in other if name != 'seconds'] if i < kept else SAME:
            same = other[name] if i < kept or rounds_alike() else pytest.approx(other[name], rel=1e-3, abs=1e-4)
            assert record[name] == same, f'{name} at step {record["t"]}'


def assert_same_end(outname: Path, expected: Path, kept: int) -> None:
    """A run that is done has the weights, the records and the floors of another, of the version before."""
    found, other = (read(Path(f'{path}.pt')) for path in (outname, expected))
    assert_same_weights(found['model'], other['model'])
    assert_same_records(found['output']['dynamics'], other['output']['dynamics'], kept)
    assert read_log(Path(f'{outname}_log.jsonl')) == found['output']['dynamics']
    for name in ('step', 'early_stop', 'machine'):
        assert found['output'][name] == other['output'][name], name
    for name in ('entropy', 'marginal'):
        assert found['output'][name] == pytest.approx(other['output'][name], rel=0 if rounds_alike() else 1e-12), name
    windows = [
        pytest.approx(window, rel=0 if rounds_alike() else 1e-12) for window in other['output']['floors'].values()
    ]
    assert list(found['output']['floors'].values()) == windows
    assert list(found['output']['floors']) == list(other['output']['floors'])
    assert {name: found['config'][name] for name in other['config'] if name != 'outname'} == {
        name: value for name, value in other['config'].items() if name != 'outname'
    }


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize('name', RUNS)
def test_an_old_run_opens_with_its_records_and_its_models(name: str, tmp_path: Path) -> None:
    folder, _, last = name.partition('/')
    outname = copy(folder, tmp_path) / last
    run, stored = load_run(outname), read(Path(f'{outname}_config.pt'))
    kept = {option: value for option, value in stored['config'].items() if option not in ('outname', 'compile')}
    assert {option: getattr(run.config, option) for option in kept} == kept
    assert run.dynamics == read_log(Path(f'{outname}_log.jsonl'))
    assert (run.entropy, run.marginal, run.floors) == tuple(stored[key] for key in ('entropy', 'marginal', 'floors'))
    final = Path(f'{outname}.pt')
    assert run.done == final.exists()
    for step in run.steps:
        assert_same_model(run.model(step).state_dict(), read(Path(f'{outname}_t{step}.pt'))['model'])
    if run.done:
        content = read(final)
        assert_same_model(run.model().state_dict(), content['model'])
        assert_same_model(run.model('best').state_dict(), content['best']['model'])
        assert run.best_step == content['best']['step']


def assert_same_model(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same tensors, wherever they were made: what is only read is never rounded."""
    assert list(found) == list(expected) and all(torch.equal(found[name], x) for name, x in expected.items())


def test_an_old_run_that_is_complete_is_found_so_and_left_as_it_is(tmp_path: Path) -> None:
    folder = copy('done', tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcome = train(options('done', folder / 'run'), quiet)
    assert outcome.status == 'complete' and outcome.step == 24
    assert outcome.dynamics == read_log(folder / 'run_log.jsonl')
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@RESUMED
def test_an_old_run_that_was_interrupted_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    folder = copy(f'{name}interrupted', tmp_path)
    stop, kept = MADE['stops'][f'{name}interrupted'], len(read_log(folder / 'run_log.jsonl'))
    said: list[str] = []
    outcome = train(options(f'{name}interrupted', folder / 'run'), said.append)
    assert outcome.status == 'done' and f'going on from step {stop}' in said
    assert_same_end(folder / 'run', FILES / f'{name}expected' / 'run', kept)
    for path in (FILES / f'{name}expected').glob('run_t*.pt'):
        assert_same_weights(read(folder / path.name)['model'], read(path)['model'])
    assert not (folder / f'run_t{stop}.pt').exists() and not (folder / 'run_previous.pt').exists()


@RESUMED
def test_an_old_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(name: str, tmp_path: Path) -> None:
    folder = copy(f'{name}interrupted', tmp_path)
    stop, records = MADE['stops'][f'{name}interrupted'], read_log(folder / 'run_log.jsonl')
    os.truncate(folder / f'run_t{stop}.pt', 100)
    before = read(folder / 'run_previous.pt')['step']
    assert before < stop
    said: list[str] = []
    assert train(options(f'{name}interrupted', folder / 'run'), said.append).status == 'done'
    assert f'going on from step {before}' in said
    kept = sum(record['t'] <= before for record in records)
    assert_same_end(folder / 'run', FILES / f'{name}expected' / 'run', kept)


@RESUMED
def test_this_version_trains_from_the_start_to_the_bits_of_the_one_before(name: str, tmp_path: Path) -> None:
    assert train(options(f'{name}expected', tmp_path / 'run'), quiet).status == 'done'
    assert_same_end(tmp_path / 'run', FILES / f'{name}expected' / 'run', kept=0)


@pytest.mark.parametrize('name', ('done', 'interrupted', 'offline_interrupted'))
def test_an_old_run_is_not_continued_with_other_options(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = dataclasses.replace(options(name, folder / 'run'), lr=0.5)
    with pytest.raises(ValueError, match=r'lr=0\.5 differs from'):
        train(other, quiet)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---------------------------------------------------------------------- sweeps


def assert_same_table(found: Path, expected: Path, skip: frozenset[str] = frozenset()) -> None:
    """The same rows: numbers to 1e-12, texts equal; columns may have come."""
    tables = [pd.read_csv(path, float_precision='round_trip', keep_default_na=False) for path in (found, expected)]
    assert len(tables[0]) == len(tables[1]) and set(tables[1]) <= set(tables[0])
    for name in tables[1]:
        if name in skip:
            continue
        values, others = (table[name] for table in tables)
        if others.dtype.kind == 'f':
            np.testing.assert_allclose(values, others, rtol=1e-12, atol=0, err_msg=name)
        else:
            assert values.tolist() == others.tolist(), name


def test_an_old_sweep_is_collected_into_the_same_tables(tmp_path: Path) -> None:
    folder = copy('sweep_done', tmp_path)
    for name in ('runs.csv', 'dynamics.csv'):
        (folder / name).unlink()
    collect(folder)
    for name in ('runs.csv', 'dynamics.csv'):
        assert_same_table(folder / name, FILES / 'sweep_done' / name)


def test_an_old_sweep_opens_as_arrays(tmp_path: Path) -> None:
    results = load(copy('sweep_done', tmp_path))
    assert results.axes == {'beta': [2.0, 4.0], 'repetition': [1, 2]}
    rows = pd.read_csv(FILES / 'sweep_done' / 'runs.csv', float_precision='round_trip', index_col='run')
    for name in ('excess', 'testloss', 'entropy'):
        expected = [[rows.loc[f'{point}_{r}', name] for r in ('r1', 'r2')] for point in ('beta2', 'beta4')]
        np.testing.assert_allclose(results[name], expected, rtol=1e-12, atol=0)
    records = pd.read_csv(FILES / 'sweep_done' / 'dynamics.csv', float_precision='round_trip')
    np.testing.assert_array_equal(results.steps, sorted(set(records['t'])))
    curve = records[records['run'] == 'beta4_r2']['excess']
    np.testing.assert_allclose(results.curves('excess')[1, 1], curve, rtol=1e-12, atol=0)


def test_an_old_sweep_that_is_not_done_is_collected_as_far_as_it_is(tmp_path: Path) -> None:
    folder = copy('sweep_partial', tmp_path)
    assert np.isfinite(load(folder)['excess']).tolist() == [[True, False, False]] * 2
    collect(folder)
    rows = pd.read_csv(folder / 'runs.csv', float_precision='round_trip')
    assert rows['status'].tolist() == ['done'] * 2 + ['interrupted'] * 2 + ['waiting'] * 2
    records = pd.read_csv(folder / 'dynamics.csv', float_precision='round_trip')
    for name in ('beta2_r1', 'beta4_r1', 'beta2_r2', 'beta4_r2'):
        log = pd.DataFrame(read_log(folder / f'{name}_log.jsonl')).rename(columns={'lr': 'learning_rate'})
        found = records[records['run'] == name]
        for column in log:
            np.testing.assert_allclose(found[column], log[column], rtol=1e-12, atol=0)


@pytest.mark.slow
def test_an_old_sweep_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """What was done is left as it is, what was interrupted ends like the whole sweep, to the rounding of its group."""
    folder = copy('sweep_partial', tmp_path)
    names = ['beta2_r1', 'beta4_r1', 'beta2_r2', 'beta4_r2', 'beta2_r3', 'beta4_r3']
    before = {path: path.read_bytes() for path in folder.glob('*_r1*')}
    definition = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    finished = subprocess.run(
        [sys.executable, '-m', 'RLM_clean.sweep', f'--outname={folder}', *MADE['sweeps']['sweep_partial']],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert '6 runs, 4 of them to train' in finished.stdout
    assert {path: path.read_bytes() for path in before} == before
    now = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    assert all(
        now[key] == definition[key] for key in definition if key not in ('version', 'options', 'group', 'groups')
    )
    assert definition['options'].items() <= now['options'].items()
    logs = ''.join(path.read_text(encoding='utf-8') for path in (folder / 'logs').iterdir())
    stop = MADE['stops']['sweep_partial']
    assert logs.count(f'going on from step {stop}\n') == 2
    for name in names[:4]:
        old, new = load_run(FILES / 'sweep_done' / name), load_run(folder / name)
        assert [record['t'] for record in new.dynamics] == [record['t'] for record in old.dynamics]
        old_excess, new_excess = ([record['excess'] for record in run.dynamics] for run in (old, new))
        np.testing.assert_allclose(np.array(new_excess), np.array(old_excess), rtol=1e-3)
    assert np.isfinite(load(folder)['excess']).all()
