"""Sweeps as data frames and data sets: the same numbers as the arrays, with names and units."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from small_runs import train
from small_sweeps import make_sweep

from RLM_clean import sweep
from RLM_clean.plots import plot_sweep
from RLM_clean.runs import load_run
from RLM_clean.runs.files import RunFiles
from RLM_clean.sweep.plan import Plan
from RLM_clean.sweep.results import Results

MEASURED = ('trainloss', 'testloss', 'testacc', 'excess', 'seconds')
OPTIONS: dict[str, Any] = {'num_layers': 1, 'max_iters': 4, 'print_freq': 3, 'bp_records': True}


def make(folder: Path, *grid: str, **options: Any) -> Plan:
    return make_sweep(folder, *grid, **OPTIONS, **options)


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A sweep of 2 x 2 x 2 runs that are done; languages of two depths, and an axis of texts in descending order."""
    plan = make(tmp_path_factory.mktemp('sweep'), 'optim=sgd,adam', 'num_features=6,8 num_layers=1,2', repetitions=2)
    for run in plan.runs:
        train(run.config)
    return sweep.load(plan.folder)


# ---------------------------------------------------------------------- pandas


def test_a_frame_has_a_row_for_each_run_under_its_values_on_the_axes(results: Results) -> None:
    frame = results.to_pandas()
    assert frame.index.names == ['optim', 'num_features', 'repetition'] and len(frame) == 8
    assert frame.index.is_monotonic_increasing and frame.index.is_unique
    for i, optim in enumerate(results.axes['optim']):
        for j, v in enumerate(results.axes['num_features']):
            for r in (1, 2):
                row = frame.loc[(optim, v, r)]
                for name in ('run', 'status', 'num_layers', 'seed_rules', 'entropy', 'floor_0', 'floor_3', *MEASURED):
                    expected = results[name][i, j, r - 1]
                    assert row[name] == expected or (np.isnan(row[name]) and np.isnan(expected)), name
    assert {'run', 'num_layers', 'seed_model'} <= set(frame) and not {'optim', 'lr', 'outname', 'threads'} & set(frame)
    mean = frame['excess'].groupby(['optim', 'num_features']).mean()
    for i, optim in enumerate(results.axes['optim']):
        np.testing.assert_allclose(mean.loc[optim], results.mean('excess')[i])


def test_a_frame_of_records_has_a_row_for_each_record(results: Results) -> None:
    frame = results.to_pandas(records=True)
    assert frame.index.names == ['optim', 'num_features', 'repetition', 't'] and frame.index.is_unique
    assert len(frame) == 8 * len(results.steps)
    for result in results:
        run = load_run(result)
        point = (run.config.optim, run.config.num_features, result.run.repetition)
        part = frame.loc[point]
        assert list(part.index) == [record['t'] for record in run.dynamics]
        for name in MEASURED:
            assert list(part[name]) == [record[name] for record in run.dynamics]
        assert list(part['learning_rate']) == [record['lr'] for record in run.dynamics]
        assert list(part['bp_1']) == [record['bp'][1] for record in run.dynamics]
        assert part['bp_2'].isna().all() == (run.config.num_layers == 1)
        assert set(part['run']) == {result.run.name}


@pytest.mark.parametrize('records', [False, True])
def test_a_frame_says_its_units_its_meanings_and_what_its_runs_share(results: Results, records: bool) -> None:
    about = results.to_pandas(records).attrs
    assert about['units']['excess'] == 'nat' and about['units']['seconds'] == 's' and 'testacc' not in about['units']
    frame = results.to_pandas(records)
    assert set(about['long_names']) == {*frame.columns, *frame.index.names}
    assert about['long_names']['excess'] == 'excess over the floor'
    assert about['options']['embedding_dim'] == 8 and about['options']['model'] == 'transformer_mlm'
    assert not {'optim', 'num_features', 'num_layers', 'seed_rules', 'device', 'outname'} & set(about['options'])
    assert about['sweep'] == str(results.plan.folder)
    assert frame[frame['excess'] > 0].attrs == about  # and a choice of rows keeps it


def test_what_is_not_known_is_missing_in_columns_of_numbers(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3')
    empty = sweep.load(plan.folder)
    assert str(empty.to_pandas()['excess'].dtype) == 'float64' and empty.to_pandas()['excess'].isna().all()
    assert len(empty.to_pandas(records=True)) == 0 and empty.to_xarray(records=True).sizes['t'] == 0
    train(plan.runs[0].config)
    train(plan.runs[1].config)
    files = RunFiles(plan.runs[1].config.outname)
    files.final.unlink()
    files.rewrite_log(files.read_log()[:2])
    frame = sweep.load(plan.folder).to_pandas()
    assert list(frame['status']) == ['done', 'interrupted', 'waiting']
    assert list(frame['excess'].notna()) == [True, False, False]
    assert list(frame['entropy'].notna()) == [True, True, False]
    assert list(frame.index) == [(1.0, 1), (2.0, 1), (3.0, 1)]
    assert str(frame['early_stop'].dtype) == 'boolean' and list(frame['early_stop'].isna()) == [False, True, True]
    assert set(sweep.load(plan.folder).to_pandas(records=True)['run']) == {'beta1'}
    both = sweep.load(plan.folder, done_only=False)
    assert len(both.to_pandas(records=True)) == 5 + 2
    curve = both.to_xarray(records=True)['excess'].sel(beta=2, repetition=1)
    assert list(np.isfinite(curve)) == [True, True, False, False, False]


# ---------------------------------------------------------------------- xarray


def test_a_data_set_has_the_axes_as_dimensions_with_coordinates(results: Results) -> None:
    data = results.to_xarray()
    assert data.sizes == {'optim': 2, 'num_features': 2, 'repetition': 2}
    assert list(data['optim'].values) == ['sgd', 'adam'] and list(data['num_features'].values) == [6, 8]
    assert data['num_layers'].dims == ('num_features',) and list(data['num_layers'].values) == [1, 2]
    for name in ('run', 'status', 'entropy', 'floor_1', 'best_step', 'early_stop', 'seed_rules', *MEASURED):
        assert data[name].dims == ('optim', 'num_features', 'repetition')
        np.testing.assert_array_equal(data[name].values, results[name])
    np.testing.assert_allclose(data['excess'].mean('repetition'), results.mean('excess'))
    np.testing.assert_allclose(data['excess'].std('repetition', ddof=1), results.spread('excess'))
    assert data.attrs['embedding_dim'] == 8 and data.attrs['checkpoints'] == 1 and 'num_features' not in data.attrs


def test_a_data_set_of_records_has_the_steps_as_a_dimension(results: Results) -> None:
    data = results.to_xarray(records=True)
    assert data.sizes == {'optim': 2, 'num_features': 2, 'repetition': 2, 't': len(results.steps)}
    np.testing.assert_array_equal(data['t'], results.steps)
    for name in (*MEASURED, 'bp_0', 'bp_2'):
        np.testing.assert_array_equal(data[name].values, results.curves(name))
    np.testing.assert_array_equal(data['learning_rate'].values, results.curves('lr'))
    np.testing.assert_array_equal(data['floor_3'].values, results['floor_3'])
    run = load_run(results.runs[-1])
    curve = data['excess'].sel(optim='adam', num_features=8, repetition=2)
    assert curve.values.tolist() == [record['excess'] for record in run.dynamics]


@pytest.mark.parametrize('records', [False, True])
def test_every_variable_has_a_long_name_and_losses_have_units(results: Results, records: bool) -> None:
    data = results.to_xarray(records)
    assert all(data[name].attrs['long_name'] for name in (*data.data_vars, *data.coords))
    assert data['excess'].attrs == {'long_name': 'excess over the floor', 'units': 'nat'}
    assert {name for name in data.data_vars if data[name].attrs.get('units') == 's'} == {'seconds'}
    assert data['num_features'].attrs['comment'] == 'v, the number of symbols'


@pytest.mark.parametrize('records', [False, True])
def test_a_data_set_comes_back_from_a_file(results: Results, records: bool, tmp_path: Path) -> None:
    import xarray

    data = results.to_xarray(records)
    data.to_netcdf(tmp_path / 'sweep.nc', engine='scipy')
    with xarray.open_dataset(tmp_path / 'sweep.nc', engine='scipy') as again:
        assert again.identical(data)


def test_an_unknown_axis_is_answered_with_those_there_are(results: Results) -> None:
    """There is no --help in Python."""
    for call in (lambda: results.mean('excess', over='rep'), lambda: plot_sweep(results, by='beta')):
        with pytest.raises(ValueError, match=r'is not an axis.*: (did you mean repetition|use optim or )'):
            call()


def test_a_data_set_with_a_large_seed_can_be_written(tmp_path: Path) -> None:
    """The writer of scipy has 32-bit integers."""
    import xarray

    plan = make(tmp_path / 'sweep', 'num_features=6,8', seed_sample=2**32 - 1)
    for run in plan.runs:
        train(run.config)
    sweep.load(plan.folder).to_xarray().to_netcdf(tmp_path / 'sweep.nc', engine='scipy')
    with xarray.open_dataset(tmp_path / 'sweep.nc', engine='scipy') as again:
        assert again.attrs['seed_sample'] == 2**32 - 1


# ---------------------------------------------------------------------- without the packages


def test_without_a_package_the_arrays_work_and_the_rest_says_what_to_install(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ('pandas', 'xarray'):
        monkeypatch.setitem(sys.modules, package, None)
    again = sweep.load(results.plan.folder)
    assert again.mean('excess').shape == (2, 2) and again.curves('bp_0').shape == (2, 2, 2, len(again.steps))
    with pytest.raises(ModuleNotFoundError, match=r'^to_pandas needs pandas, .*: pip install -e "\.\[pandas\]"$'):
        again.to_pandas()
    with pytest.raises(ModuleNotFoundError, match=r'^to_xarray needs xarray, .*: pip install -e "\.\[xarray\]"$'):
        again.to_xarray()


def test_the_frame_of_a_sweep_is_that_of_its_tables(results: Results) -> None:
    runs, dynamics = sweep.results.write_tables(results)
    index = ['optim', 'num_features', 'repetition']
    frame, records = results.to_pandas(), results.to_pandas(records=True)
    table = pandas.read_csv(runs).set_index(index).sort_index()
    assert set(frame) <= set(table)
    numbers = frame.select_dtypes('number')
    pandas.testing.assert_frame_equal(table[list(numbers)], numbers, check_dtype=False)
    table = pandas.read_csv(dynamics).set_index([*index, 't']).sort_index()
    assert list(table) == list(records)
    pandas.testing.assert_frame_equal(table, records, check_dtype=False)
