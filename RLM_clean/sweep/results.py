"""The results of a sweep: read from the files of its runs, as arrays over its axes; in tables.py as tables.

Models and rules stay on the disk: a thousand runs are read in seconds.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from RLM_clean.config import DEFAULTS, similar
from RLM_clean.runs import contents
from RLM_clean.runs.columns import flat
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.storage import atomic_write
from RLM_clean.runs.storage import load as load_file
from RLM_clean.sweep import tables
from RLM_clean.sweep.plan import Plan, PlannedRun, read_plan
from RLM_clean.sweep.states import state
from RLM_clean.sweep.tables import RECORDED

if TYPE_CHECKING:
    import pandas
    import xarray

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Result:
    """What the files of a run hold, without its models: its status, its records, its options and its floors.

    It stands for the path of the run, as in `load_run(result)` and `plots.compare(results.runs[:3])`.
    """

    run: PlannedRun
    status: str
    records: list[Record] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return self.run.config.outname

    @property
    def best(self) -> dict[str, Any]:
        """The `step`, the `loss` and the `excess` of the best model; empty before the first record.

        By the excess, which is exact or nearly so: the least of many noisy test losses lies below what was reached. At
        the end of a run the best model is measured on all contexts; before, and in files of the first version, it is
        the record with the least excess.
        """
        if 'excess' in self.end.get('best', {}):
            return self.end['best']
        least = min(self.records, key=lambda record: record['excess'], default=None)
        return {'step': least['t'], 'loss': least['testloss'], 'excess': least['excess']} if least else {}

    def row(self) -> dict[str, Any]:
        """The run as a row of runs.csv: see `Results`."""
        last, best = self.records[-1] if self.records else {}, self.best
        options = {**self.run.config.to_dict(), **self.options}
        return {
            'run': self.run.name,
            'status': self.status,
            'repetition': self.run.repetition,
            **{name: value for name, value in options.items() if name not in ('outname', 'resume')},
            **self.floors,
            'step': last.get('t'),
            **{name: last.get(name) for name in RECORDED},
            'excess_error': self.end.get('excess_error'),
            'best_loss': best.get('loss'),
            'best_excess': best.get('excess'),
            'best_step': best.get('step'),
            'early_stop': self.end.get('early_stop'),
        }


def read_result(run: PlannedRun, folder: Path) -> Result:
    """What the files of a run hold, whoever trained it, finished or not.

    Raises UnreadableFileError for a file that cannot be read, ValueError for one of another configuration.
    """
    files = RunFiles(run.config.outname)
    if files.final.exists():
        content = load_file(files.final, tensors=False)
        contents.check(content, contents.FINAL, files.final)
        output = content['output']
        best = {name: content['best'][name] for name in ('step', 'loss', 'excess') if name in content['best']}
        end = {'excess_error': output['excess_error'], 'early_stop': output['early_stop'], 'best': best}
        status = 'done' if contents.is_end(output, run.config.last_step) else state(run, folder).status
        result = Result(run, status, output['dynamics'], content['config'], _floors(output), end)
    elif files.config.exists():
        content = load_file(files.config, tensors=False)
        contents.check(content, contents.CONFIG, files.config)
        result = Result(run, state(run, folder).status, files.read_log(), content['config'], _floors(content))
    else:
        return Result(run, state(run, folder).status)
    name = run.config.first_difference(result.options)
    if name is not None:
        value, stored = getattr(run.config, name), result.options.get(name, DEFAULTS[name])
        raise ValueError(f'{name}={stored!r} of {run.config.outname} is {value!r} in its sweep: move that run away')
    return result


def _floors(content: dict[str, Any]) -> dict[str, float]:
    windows = {f'floor_{k}': value for k, (value, _) in content['floors'].items()}
    return {'entropy': content['entropy'], 'marginal': content['marginal'], **windows}


class Results:
    """The runs of a sweep as arrays: one dimension for each axis of the grid, the last one for the repetitions.

        results = load('results/my_sweep')
        results.axes                                 # {'beta': [0.8, 1.2], 'lr': [0.01, 0.1], 'repetition': [1, 2, 3]}
        results['excess']                            # (2, 2, 3), at the end of each run
        results.mean('excess', over='repetition')    # (2, 2)
        results.curves('testloss')                   # (2, 2, 3, len(results.steps))
        results.to_pandas(), results.to_xarray()     # with names, units, and all that these packages can do

    `results[name]` takes every column of runs.csv: an option, a floor (`entropy`, `marginal`, `floor_1`, ...), what
    was measured last (`trainloss`, `testloss`, `testacc`, `excess`, `excess_error`, `seconds`, `step`), the test
    loss, the excess and the step of the record with the least excess (`best_loss`, `best_excess`, `best_step`),
    `early_stop`, `status`, `run`. Losses are in nats. NaN stands for what is not known. By default that includes
    the measurements of runs that are not done.

    Attributes:
        axes: the values of each axis, {name: values}; options that vary together are named by the first of them.
        steps: the steps of all records, int64.
        runs: what each run's files hold, in the order of the plan; iteration goes over them.
        counted: those of them that have records, and are done unless others were asked for.
        rows: a row of runs.csv for each run.
    """

    def __init__(self, plan: Plan, runs: Sequence[Result], done_only: bool = True) -> None:
        self.plan, self.runs = plan, list(runs)
        repetitions = list(range(1, (plan.repetitions or 1) + 1))
        self.axes: dict[str, list[Any]] = {axis.names[0]: axis.column(axis.names[0]) for axis in plan.axes}
        self.axes['repetition'] = repetitions
        self.shape = tuple(len(values) for values in self.axes.values())
        self.counted = [run for run in self.runs if run.records and (run.status == 'done' or not done_only)]
        self.steps = np.array(sorted({record['t'] for run in self.counted for record in run.records}), dtype=np.int64)
        self.rows = [run.row() for run in self.runs]
        if done_only:
            measured = {*RECORDED, 'step', 'best_loss', 'best_excess', 'best_step'}
            for row in self.rows:
                if row['status'] != 'done':
                    row.update(dict.fromkeys(measured))

    def __iter__(self) -> Iterator[Result]:
        return iter(self.runs)

    def __getitem__(self, name: str) -> Array:
        """A column of runs.csv over the grid, `(..., repetitions)`: numbers in float64, texts as objects."""
        names = list(dict.fromkeys(key for row in self.rows for key in row))
        if name not in names:
            raise ValueError(f'{name!r} is not a column of this sweep: {similar(name, names, "runs.csv has them all")}')
        values = [row.get(name) for row in self.rows]
        if any(isinstance(value, str) for value in values):
            return self._arrange(np.array(values, dtype=object))
        return self._arrange(np.array([math.nan if value is None else value for value in values], dtype=np.float64))

    def curves(self, name: str) -> Array:
        """What the records hold under a name over the grid and the steps, `(..., repetitions, steps)` float64.

        A list of theirs has a name for each entry, as bp_0; deeper languages have more of them.
        """
        curves = np.full((len(self.runs), len(self.steps)), math.nan)
        places = {int(step): i for i, step in enumerate(self.steps)}
        counted = {id(run) for run in self.counted}
        known: dict[str, None] = {}
        for curve, run in zip(curves, self.runs, strict=True):
            for record in map(flat, run.records if id(run) in counted else ()):
                known |= dict.fromkeys(record)
                curve[places[record['t']]] = record.get(name, math.nan)
        if known and name not in known:
            remedy = similar(name, known, f'use {", ".join(known)}')
            raise ValueError(f'{name!r} is not in the records: {remedy}')
        return self._arrange(curves)

    def mean(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The mean over axes of a column, or of an array over the grid such as curves; NaN is left out."""
        return self._reduce(np.nanmean, what, over)

    def spread(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The standard deviation over axes (its square over n - 1); NaN for fewer than two values."""
        return self._reduce(lambda values, axis: np.nanstd(values, axis, ddof=1), what, over)

    def error(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The standard error of the mean over axes."""
        number = self._reduce(lambda values, axis: np.isfinite(values).sum(axis), what, over)
        return self.spread(what, over) / np.sqrt(np.maximum(number, 1))

    def to_pandas(self, records: bool = False) -> pandas.DataFrame:
        """A data frame with a row for each run, or with `records` for each record, and the axes as its index.

            results.to_pandas()['excess'].groupby(['beta', 'lr']).agg(['mean', 'sem'])

        The columns are those of runs.csv (see `Results`), or of dynamics.csv, where the index has the step `t` too.
        Options in which the runs do not differ are in `frame.attrs['options']`, the units and the meanings of the
        columns in `frame.attrs['units']` (nat, s) and `frame.attrs['long_names']`. Raises ModuleNotFoundError without
        pandas.
        """
        return tables.data_frame(self, records)

    def to_xarray(self, records: bool = False) -> xarray.Dataset:
        """A data set with the axes as dimensions: the end of each run, or with `records` each step, as dimension `t`.

            results.to_xarray(records=True).excess.sel(beta=2).mean('repetition').plot(x='t')

        The variables are the columns of `to_pandas`, numbers in float64. Each has its `long_name` and its `units`.
        Options that vary together are coordinates of one dimension; those in which the runs do not differ are
        attributes of the data set. Raises ModuleNotFoundError without xarray.
        """
        return tables.data_set(self, records)

    def _reduce(self, function: Callable[..., Any], what: str | Array, over: str | Iterable[str]) -> Array:
        """What a function of numpy makes of the values along axes; what is not a number is left out."""
        values = self[what] if isinstance(what, str) else what
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)  # no value, or one, where two are needed: NaN says so
            return np.asarray(function(np.where(np.isfinite(values), values, math.nan), axis=self._dimensions(over)))

    def _dimensions(self, over: str | Iterable[str]) -> tuple[int, ...]:
        axes = [*(axis.names for axis in self.plan.axes), ('repetition',)]
        found = []
        for name in [over] if isinstance(over, str) else over:
            places = [i for i, names in enumerate(axes) if name in names]
            if not places:
                known = [n for names in axes for n in names]
                remedy = similar(name, known, f'use {" or ".join(known)}')
                raise ValueError(f'over={name!r} is not an axis: {remedy}')
            found.append(places[0])
        return tuple(found)

    def _arrange(self, values: Array) -> Array:
        """From an entry a run, in the order of the plan (repetition by repetition), to the axes."""
        return np.moveaxis(
            values.reshape((self.shape[-1], *self.shape[:-1], *values.shape[1:])), 0, len(self.shape) - 1
        )


def load(folder: str | Path, done_only: bool = True) -> Results:
    """The results of a sweep as arrays, see `Results`; `done_only=False` counts what unfinished runs have measured.

    Raises ValueError when the folder holds no sweep, and for a run whose files cannot be read or are not of the sweep.
    """
    plan = read_plan(folder)
    return Results(plan, [read_result(run, plan.folder) for run in plan.runs], done_only)


def collect(folder: str | Path) -> list[Path]:
    """Writes the tables of a sweep, runs.csv and dynamics.csv, and its figure sweep.png into its folder; their paths.

    Unfinished runs are in the tables and not in the figure. Raises ValueError as `load` does.
    """
    from RLM_clean.plots import save_sweep

    results = load(folder)
    return [*write_tables(results), *save_sweep(results)]


# ---------------------------------------------------------------------- tables


def write_tables(results: Results) -> list[Path]:
    """Writes runs.csv (a row a run) and dynamics.csv (a row a record) into the folder of a sweep; their paths."""
    folder, varied = results.plan.folder, results.plan.varied
    rows, records = [run.row() for run in results.runs], tables.record_rows(results.runs)
    levels = dict.fromkeys(name for row in records for name in row if name.startswith('bp_'))
    columns = ['run', *varied, 'repetition', 't', *RECORDED, 'learning_rate', *levels]
    paths = [folder / 'runs.csv', folder / 'dynamics.csv']
    write_csv(paths[0], rows, tables.run_columns(rows))
    write_csv(paths[1], records, columns)
    return paths


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Writes rows as a table with these columns, atomically; what a row lacks is empty."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
