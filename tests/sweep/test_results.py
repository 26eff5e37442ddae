"""The results of a sweep: tables, arrays and the figure, from the files of runs that anyone has trained."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from small_runs import train
from small_sweeps import make_sweep

from RLM_clean import sweep
from RLM_clean.plots import plot_sweep, save_sweep
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import UnreadableFileError
from RLM_clean.runs.storage import load as load_file
from RLM_clean.sweep import states
from RLM_clean.sweep.plan import Plan
from RLM_clean.sweep.results import Results, load, read_result, write_tables

OPTIONS: dict[str, Any] = {'num_layers': 1, 'max_iters': 6, 'print_freq': 3}


def make(folder: Path, *grid: str, **options: Any) -> Plan:
    return make_sweep(folder, *grid, **OPTIONS, **options)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 2 x 2 x 3 runs that are done."""
    plan = make(tmp_path_factory.mktemp('sweep'), 'beta=0.5,2.5', 'num_features=6,8 num_layers=1,2', repetitions=3)
    for run in plan.runs:
        train(run.config)
    return plan.folder


@pytest.fixture(scope='module')
def results(folder: Path) -> Results:
    return sweep.load(folder)


# ---------------------------------------------------------------------- arrays


def test_arrays_have_an_entry_for_each_run_at_its_place(results: Results, folder: Path) -> None:
    assert results.axes == {'beta': [0.5, 2.5], 'num_features': [6, 8], 'repetition': [1, 2, 3]}
    assert results['excess'].shape == results.shape == (2, 2, 3)
    for i, beta in enumerate((0.5, 2.5)):
        for j, (v, layers) in enumerate(((6, 1), (8, 2))):
            for r in (1, 2, 3):
                name = f'beta{beta:g}_num_features{v}_num_layers{layers}_r{r}'
                run = load_run(folder / name)
                place = (i, j, r - 1)
                assert results['run'][place] == name and results['status'][place] == 'done'
                last = run.dynamics[-1]
                for column in ('trainloss', 'testloss', 'testacc', 'excess', 'seconds'):
                    assert results[column][place] == last[column]
                assert (results['step'][place], results['num_layers'][place]) == (6, layers)
                assert (results['entropy'][place], results['marginal'][place]) == (run.entropy, run.marginal)
                assert results['best_step'][place] == run.best_step
                assert results['seed_model'][place] == run.config.seed_model
                assert run.floors is not None
                assert results['floor_1'][place] == run.floors[1][0]
                assert (
                    results['floor_3'][place] == run.floors[3][0]
                    if layers == 2
                    else math.isnan(results['floor_3'][place])
                )
                assert results.curves('testloss')[place].tolist() == [r['testloss'] for r in run.dynamics]
    assert results.steps.tolist() == [0, 1, 2, 3, 4, 6]


def test_means_and_spreads_are_those_of_numpy(results: Results) -> None:
    excess = results['excess']
    np.testing.assert_allclose(results.mean('excess', over='repetition'), excess.mean(-1))
    np.testing.assert_allclose(results.spread('excess'), excess.std(-1, ddof=1))
    np.testing.assert_allclose(results.error('excess'), excess.std(-1, ddof=1) / math.sqrt(3))
    np.testing.assert_allclose(results.mean('excess', over=('beta', 'repetition')), excess.mean((0, 2)))
    # Options that vary together are one axis, under the name of any.
    np.testing.assert_allclose(results.mean('excess', over='num_layers'), excess.mean(1))
    curves = results.curves('excess')
    np.testing.assert_allclose(results.mean(curves), curves.mean(2))
    np.testing.assert_allclose(results.spread(curves, over='beta'), curves.std(0, ddof=1))


def test_what_is_not_known_is_left_out_of_a_mean(results: Results) -> None:
    values = results['excess'].copy()
    values[0, 0, 0] = values[1, 1, :] = math.nan
    mean, spread, error = results.mean(values), results.spread(values), results.error(values)
    assert mean[0, 0] == pytest.approx(values[0, 0, 1:].mean()) and math.isnan(mean[1, 1])
    assert spread[0, 0] == pytest.approx(values[0, 0, 1:].std(ddof=1)) and math.isnan(spread[1, 1])
    assert error[0, 0] == pytest.approx(values[0, 0, 1:].std(ddof=1) / math.sqrt(2)) and math.isnan(error[1, 1])


def test_an_unknown_name_is_refused_with_the_nearest_one(results: Results) -> None:
    with pytest.raises(ValueError, match="'exces' is not a column of this sweep: did you mean excess"):
        results['exces']
    with pytest.raises(ValueError, match="'losses' is not in the records"):
        results.curves('losses')
    with pytest.raises(ValueError, match="over='repetitions' is not an axis: did you mean repetition"):
        results.mean('excess', over='repetitions')


def test_unfinished_runs_count_only_when_they_are_asked_for(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3,4')
    done, begun, failed, _ = plan.runs
    for run in (done, begun):
        train(run.config)
    files = RunFiles(begun.config.outname)
    files.final.unlink()
    files.rewrite_log(files.read_log()[:4])
    states.record_failure(failed.config.outname, 'it had to')
    results = load(plan.folder)
    assert results['status'].flatten().tolist() == ['done', 'interrupted', 'failed', 'waiting']
    assert np.isfinite(results['excess'].flatten()).tolist() == [True, False, False, False]
    assert np.isfinite(results['entropy'].flatten()).tolist() == [True, True, False, False]
    assert np.isfinite(results['best_loss'].flatten()).tolist() == [True, False, False, False]
    assert results['beta'].flatten().tolist() == [1, 2, 3, 4]
    assert results.steps.tolist() == [0, 1, 2, 3, 4, 6]
    both = load(plan.folder, done_only=False)
    assert both['step'].flatten().tolist()[:2] == [6, 3] and np.isfinite(both['excess'].flatten()).sum() == 2
    assert np.isfinite(both.curves('excess')[1, 0]).tolist() == [True] * 4 + [False] * 2
    # The table holds it all in any case.
    rows = read_csv(write_tables(results)[0])
    assert [row['status'] for row in rows] == ['done', 'interrupted', 'failed', 'waiting']
    assert [row['step'] for row in rows] == ['6', '3', '', ''] and rows[1]['excess'] and not rows[1]['early_stop']


# ---------------------------------------------------------------------- tables


def test_tables_have_a_row_a_run_and_a_row_a_record(results: Results, folder: Path) -> None:
    runs, dynamics = write_tables(results)
    assert (runs.name, dynamics.name) == ('runs.csv', 'dynamics.csv')
    rows = read_csv(runs)
    assert [row['run'] for row in rows] == [run.name for run in results.plan.runs]
    row = rows[-1]
    run = load_run(folder / row['run'])
    for name, value in run.config.to_dict().items():
        if name not in ('outname', 'resume', 'device', 'threads', 'tensorboard', 'tracker'):
            assert row[name] == str(value)
    assert row['threads'] == '1' and row['device'] == 'cpu' and row['repetition'] == '3'
    assert float(row['excess']) == run.dynamics[-1]['excess'] and row['early_stop'] == 'False'
    columns = list(row)
    place = columns.index('entropy')
    assert columns[place : place + 6] == ['entropy', 'marginal', 'floor_0', 'floor_1', 'floor_3', 'step']
    assert rows[0]['floor_3'] == ''

    records = read_csv(dynamics)
    assert len(records) == 12 * 6
    assert list(records[0])[:6] == ['run', 'beta', 'num_features', 'num_layers', 'repetition', 't']
    last = [record for record in records if record['run'] == row['run']][-1]
    assert float(last['testloss']) == run.dynamics[-1]['testloss']
    assert float(last['learning_rate']) == run.dynamics[-1]['lr']


def test_a_varied_learning_rate_is_not_mistaken_for_that_of_a_step(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'lr=0.1,0.2')
    for run in plan.runs:
        train(run.config)
    records = read_csv(write_tables(load(plan.folder))[1])
    assert {record['lr'] for record in records} == {'0.1', '0.2'}
    assert float(records[0]['learning_rate']) < 0.1


def test_the_best_of_a_run_is_the_model_of_least_excess(tmp_path: Path) -> None:
    """Not that of the least test loss, which a lucky draw of test sequences can bring below the floor.

    As it was measured at the end; files of the first version do not say, and then as it was recorded.
    """
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    train(plan.runs[0].config)
    path = RunFiles(plan.runs[0].config.outname).final
    content = load_file(path)
    records = content['output']['dynamics']
    for record, excess, loss in zip(
        records, (3.0, 2.0, 0.5, 1.0, 0.9, 0.8), (9.0, 1.0, 7.0, 2.0, 3.0, 4.0), strict=True
    ):
        record['excess'], record['testloss'] = excess, loss
    best = {'step': records[2]['t'], 'loss': 7.1, 'excess': 0.6, 'model': content['model']}
    for stored, expected in ((best, (7.1, 0.6)), ({**best, 'excess': None}, (7.0, 0.5))):
        content['best'] = {name: value for name, value in stored.items() if value is not None}
        torch.save(content, path)
        row = read_csv(write_tables(load(plan.folder))[0])[0]
        assert (float(row['best_loss']), float(row['best_excess'])) == expected
        assert int(row['best_step']) == records[2]['t']


# ---------------------------------------------------------------------- files that are not what they should be


def test_a_run_of_other_options_is_refused(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    other = Plan(plan.folder, plan.axes, {**plan.options, 'depth': 2})
    train(other.runs[0].config)
    with pytest.raises(ValueError, match=r'depth=2 of .*beta1 is 1 in its sweep: move that run away'):
        load(plan.folder)
    RunFiles(other.runs[0].config.outname).final.unlink()
    with pytest.raises(ValueError, match=r'depth=2 of .*beta1 is 1 in its sweep: move that run away'):
        read_result(plan.runs[0], plan.folder)


@pytest.mark.parametrize('content', [b'', b'PK', b'no archive'])
def test_a_damaged_file_is_named_with_a_remedy(content: bytes, tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    RunFiles(plan.runs[0].config.outname).final.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r'beta1\.pt .*: remove it, or begin again'):
        load(plan.folder)


def test_a_file_that_runs_code_runs_none(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / 'stolen').touch, ()

    plan = make(tmp_path / 'sweep', 'beta=1,2')
    torch.save({'config': Malicious()}, RunFiles(plan.runs[0].config.outname).final)
    with pytest.raises(UnreadableFileError, match='not safe to read'):
        load(plan.folder)
    assert not (tmp_path / 'stolen').exists()


@pytest.mark.parametrize(
    'line',
    ['[1, 2]', '{}', '7', 'null', '{"t": 3}', '{"t": "three", "excess": 1}', 'not JSON', '\x00\xff', '[' * 2000],
)
def test_a_line_of_a_log_that_is_not_a_record_is_named_in_one_line(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By collect; status passes over it."""
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    train(plan.runs[0].config)
    files = RunFiles(plan.runs[0].config.outname)
    files.final.unlink()
    good = files.log.read_bytes().splitlines(keepends=True)
    files.log.write_bytes(
        b''.join([*good[:3], line.encode('latin-1') + b'\n', *good[3:5], line.encode('latin-1') + b'\n'])
    )
    assert sweep.main(['collect', str(plan.folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'sweep: error: {files.log} ') and 'line 4 is not a record' in error
    assert error.count('\n') == 1
    assert sweep.main(['status', str(plan.folder)]) == 0
    assert re.search(r'beta1 +interrupted +4/6 ', capsys.readouterr().out)


@pytest.mark.parametrize('part', ['output', 'dynamics', 'floors', 'entropy'])
def test_a_final_file_without_a_part_is_named_in_one_line(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    train(plan.runs[0].config)
    path = RunFiles(plan.runs[0].config.outname).final
    content = load_file(path)
    (content if part == 'output' else content['output']).pop(part)
    torch.save(content, path)
    assert sweep.main(['collect', str(plan.folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'sweep: error: {path} ') and repr(part) in error and error.count('\n') == 1


def test_models_and_rules_are_not_read(tmp_path: Path) -> None:
    """So that a thousand runs take seconds: bytes of a tensor that would fail their checksum are not noticed."""
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    for run in plan.runs:
        train(run.config)
        files = RunFiles(run.config.outname)
        content = load_file(files.final)
        tensor = content['model']['head.weight'] = torch.full((64, 64), 3.25)
        torch.save(content, files.final)
        stored, pattern = files.final.read_bytes(), tensor.numpy().tobytes()
        assert stored.count(pattern) == 1
        files.final.write_bytes(stored.replace(pattern, b'\0' * len(pattern)))
        with pytest.raises(UnreadableFileError, match='damaged'):
            load_file(files.final)
    assert np.isfinite(load(plan.folder)['excess']).all()


# ---------------------------------------------------------------------- the figure


def test_the_figure_has_a_line_a_value_and_the_floors(results: Results) -> None:
    figure = plot_sweep(results)
    upper, lower = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in upper] == ['num_features = 6', 'num_features = 8']
    for j, (above, below) in enumerate(zip(upper, lower, strict=True)):
        curves = [line for line in above.get_lines() if len(line.get_xdata()) > 2]
        assert [line.get_label() for line in curves] == ['beta = 0.5', 'beta = 2.5']
        mean = results.mean(results.curves('testloss'))[:, j]
        np.testing.assert_allclose([line.get_ydata() for line in curves], mean)
        floors = [line.get_ydata()[0] for line in above.get_lines() if line.get_linestyle() == '--']
        np.testing.assert_allclose(floors, results.mean('entropy')[:, j])
        np.testing.assert_allclose(
            [line.get_ydata() for line in below.get_lines()], results.mean(results.curves('excess'))[:, j]
        )
    other = plot_sweep(results, by='num_features')
    assert [axes.get_title() for axes in other.axes[:2]] == ['beta = 0.5', 'beta = 2.5']
    with pytest.raises(ValueError, match="by='bta' is not an axis of this sweep: did you mean beta"):
        plot_sweep(results, by='bta')


def test_collect_writes_the_tables_and_the_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(['collect', str(folder)]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ['runs.csv', 'dynamics.csv', 'sweep.png']
    assert (folder / 'sweep.png').read_bytes().startswith(b'\x89PNG')
    assert not [path for path in folder.iterdir() if '.tmp-' in path.name]


def test_a_sweep_of_repetitions_alone_or_without_any_has_a_figure(tmp_path: Path) -> None:
    plan = make(tmp_path / 'seeds', repetitions=2)
    assert save_sweep(load(plan.folder)) == []
    for run in plan.runs:
        train(run.config)
    results = load(plan.folder)
    assert results.shape == (2,) and results.mean('excess').shape == ()
    assert [path.name for path in save_sweep(results)] == ['sweep.png']
    plan = make(tmp_path / 'grid', 'beta=1,2')
    train(plan.runs[1].config)
    results = load(plan.folder)
    assert results.shape == (2, 1) and np.isnan(results['excess'][0, 0])
    assert len(save_sweep(results)) == 1


def test_the_documented_example_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'sweeps.md').read_text(), re.DOTALL)
    assert len(found) == 1
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results' / 'my_sweep').symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    exec(found[0], {})
    assert (tmp_path / 'sweep.png').stat().st_size > 0
