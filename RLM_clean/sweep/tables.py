"""The runs of a sweep as tables: rows for files, data frames of pandas, data sets of xarray.

numpy arrays over the axes (`Results`) need no further package. Whatever needs labels beyond that, such as choosing by
value, groups, joins or plots that name their axes, pandas and xarray do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from RLM_clean.config import DEFAULTS, EXECUTION
from RLM_clean.extras import needed
from RLM_clean.runs import columns

if TYPE_CHECKING:
    import pandas
    import xarray

    from RLM_clean.sweep.results import Result, Results

RECORDED = ('trainloss', 'testloss', 'testacc', 'excess', 'seconds')


def run_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of rows, one a run: the floors, of which a deeper language has more, by their windows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    floors = sorted((name for name in names if name.startswith('floor_')), key=lambda name: int(name[len('floor_') :]))
    others = [name for name in names if name not in ('entropy', 'marginal', *floors)]
    place = others.index('step')
    return [*others[:place], 'entropy', 'marginal', *floors, *others[place:]]


def record_rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row for each record of runs: the run, its values on the axes, its repetition, and what was measured.

    The rate of a step is called `learning_rate`, for `lr` can be an axis.
    """
    rows = []
    for result in results:
        head = {'run': result.run.name, **result.run.point, 'repetition': result.run.repetition}
        for record in map(columns.flat, result.records):
            measured = {name: record[name] for name in RECORDED}
            levels = {name: value for name, value in record.items() if name.startswith('bp_')}
            rows.append({**head, 't': record['t'], **measured, 'learning_rate': record['lr'], **levels})
    return rows


def shared_options(results: Results) -> dict[str, Any]:
    """The options that no two runs differ in, without those that only say where and how a run is computed."""
    rows, varied = results.rows, results.plan.varied
    names = [name for name in DEFAULTS if name not in EXECUTION and name not in varied]
    return {name: rows[0][name] for name in names if all(row[name] == rows[0][name] for row in rows)}


# ---------------------------------------------------------------------- pandas


def data_frame(results: Results, records: bool) -> pandas.DataFrame:
    """See `Results.to_pandas`."""
    pandas = needed('pandas', by='to_pandas')
    index = [*results.axes, *(['t'] if records else [])]
    shared = shared_options(results)
    if records:
        rows = record_rows(results.counted)
        head = ['run', *results.plan.varied, 'repetition', 't', *RECORDED, 'learning_rate']
        names = list(dict.fromkeys([*head, *(name for row in rows for name in row)]))
    else:
        rows = results.rows
        names = [name for name in run_columns(rows) if name not in shared and name not in EXECUTION]
    rows = [{**row, 'repetition': row['repetition'] or 1} for row in rows]
    frame = pandas.DataFrame(rows, columns=names).set_index(index).sort_index()
    frame = frame.astype({name: 'float64' for name in frame if frame[name].isna().all()})  # no run is done
    if not records:
        frame['early_stop'] = frame['early_stop'].astype('boolean')
    frame.attrs = {'sweep': str(results.plan.folder), 'options': shared, **columns.described([*index, *frame.columns])}
    return frame


# ---------------------------------------------------------------------- xarray


def data_set(results: Results, records: bool) -> xarray.Dataset:
    """See `Results.to_xarray`."""
    xarray = needed('xarray', by='to_xarray')
    shared = shared_options(results)
    dimensions = tuple(results.axes)
    coordinates: dict[str, Any] = {}
    for axis in results.plan.axes:
        for name in axis.names:
            coordinates[name] = (axis.names[0], np.array(axis.column(name)), _attributes(name))
    coordinates['repetition'] = ('repetition', np.array(results.axes['repetition']), _attributes('repetition'))
    known = {name for row in results.rows for name in row} - {*coordinates, *shared, *EXECUTION}
    names = [name for name in run_columns(results.rows) if name in known]
    if records:
        coordinates['t'] = ('t', results.steps, _attributes('t'))
        names = [name for name in names if name in ('entropy', 'marginal') or name.startswith('floor_')]
    variables = {name: (dimensions, results[name], _attributes(name)) for name in names}
    if records:
        recorded = dict.fromkeys(name for run in results.counted for name in columns.flat(run.records[0]))
        levels = [name for name in recorded if name.startswith('bp_')]
        stored = {**{name: name for name in (*RECORDED, *levels)}, 'learning_rate': 'lr'}
        for name, key in stored.items():
            variables[name] = ((*dimensions, 't'), results.curves(key), _attributes(name))
    options = {name: _plain(value) for name, value in shared.items()}
    return xarray.Dataset(variables, coordinates, {'sweep': str(results.plan.folder), **options})


def _plain(value: Any) -> Any:
    """A value that every format of netCDF can hold: 32 bits are the integers of its third version."""
    if isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, int) and abs(value) >= 2**31 else value  # a seed is exact as a float


def _attributes(name: str) -> dict[str, str]:
    """Long name and units of a variable, by the conventions of netCDF (CF); of an option also its help."""
    found = {'long_name': columns.meaning(name), 'units': columns.unit(name), 'comment': columns.help_of(name)}
    return {key: text for key, text in found.items() if text}
