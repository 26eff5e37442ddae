"""The results of a sweep: read from the files of its runs, as arrays over its axes, and as tables.

Models and rules stay on the disk: a thousand runs are read in seconds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from RLM_clean.config import similar
from RLM_clean.runs import contents
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.storage import atomic_write
from RLM_clean.runs.storage import load as load_file
from RLM_clean.sweep.plan import Plan, PlannedRun, read_plan
from RLM_clean.sweep.states import state

Array = np.ndarray[Any, np.dtype[Any]]

RECORDED = ('trainloss', 'testloss', 'testacc', 'excess', 'seconds')


@dataclass
class Result:
    """What the files of a run hold, without its models: its status, its records, its options and its floors."""

    run: PlannedRun
    status: str
    records: list[Record] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The run as a row of runs.csv: see `Results`."""
        last = self.records[-1] if self.records else {}
        # By the excess, which is exact or nearly so: the least of many noisy test losses lies below what was reached.
        best = min(self.records, key=lambda record: record['excess'], default={})
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
            'best_loss': best.get('testloss'),
            'best_excess': best.get('excess'),
            'best_step': best.get('t'),
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
        end = {name: output[name] for name in ('excess_error', 'early_stop')}
        result = Result(run, 'done', output['dynamics'], content['config'], _floors(output), end)
    elif files.config.exists():
        content = load_file(files.config, tensors=False)
        contents.check(content, contents.CONFIG, files.config)
        result = Result(run, state(run, folder).status, files.read_log(), content['config'], _floors(content))
    else:
        return Result(run, state(run, folder).status)
    name = run.config.first_difference(result.options)
    if name is not None:
        value, stored = getattr(run.config, name), result.options[name]
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

    `results[name]` takes every column of runs.csv: an option, a floor (`entropy`, `marginal`, `floor_1`, ...), what
    was measured last (`trainloss`, `testloss`, `testacc`, `excess`, `excess_error`, `seconds`, `step`), the test
    loss, the excess and the step of the record with the least excess (`best_loss`, `best_excess`, `best_step`),
    `early_stop`, `status`, `run`. Losses are in nats. NaN stands for what is not known. By default that includes
    the measurements of runs that are not done.

    Attributes:
        axes: the values of each axis, {name: values}; options that vary together are named by the first of them.
        steps: the steps of all records, int64.
        runs: what each run's files hold, in the order of the plan.
    """

    def __init__(self, plan: Plan, runs: Sequence[Result], done_only: bool = True) -> None:
        self.plan, self.runs = plan, list(runs)
        repetitions = list(range(1, (plan.repetitions or 1) + 1))
        self.axes: dict[str, list[Any]] = {axis.names[0]: axis.column(axis.names[0]) for axis in plan.axes}
        self.axes['repetition'] = repetitions
        self.shape = tuple(len(values) for values in self.axes.values())
        self._counted = [run for run in self.runs if run.records and (run.status == 'done' or not done_only)]
        self.steps = np.array(sorted({record['t'] for run in self._counted for record in run.records}), dtype=np.int64)
        self._rows = [run.row() for run in self.runs]
        if done_only:
            measured = {*RECORDED, 'step', 'best_loss', 'best_excess', 'best_step'}
            for row in self._rows:
                if row['status'] != 'done':
                    row.update(dict.fromkeys(measured))

    def __getitem__(self, name: str) -> Array:
        """A column of runs.csv over the grid, `(..., repetitions)`: numbers in float64, texts as objects."""
        names = list(dict.fromkeys(key for row in self._rows for key in row))
        if name not in names:
            raise ValueError(f'{name!r} is not a column of this sweep: {similar(name, names)}')
        values = [row.get(name) for row in self._rows]
        if any(isinstance(value, str) for value in values):
            return self._arrange(np.array(values, dtype=object))
        return self._arrange(np.array([math.nan if value is None else value for value in values], dtype=np.float64))

    def curves(self, name: str) -> Array:
        """What the records hold under a name over the grid and the steps, `(..., repetitions, steps)` float64."""
        curves = np.full((len(self.runs), len(self.steps)), math.nan)
        places = {int(step): i for i, step in enumerate(self.steps)}
        counted = {id(run) for run in self._counted}
        for curve, run in zip(curves, self.runs, strict=True):
            for record in run.records if id(run) in counted else ():
                if name not in record:
                    raise ValueError(f'{name!r} is not in the records: {similar(name, record)}')
                curve[places[record['t']]] = record[name]
        return self._arrange(curves)

    def mean(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The mean over axes of a column, or of an array over the grid such as curves; NaN is left out."""
        values, dimensions = self._values(what), self._dimensions(over)
        number = np.isfinite(values).sum(dimensions)
        total = np.where(np.isfinite(values), values, 0).sum(dimensions)
        return np.divide(total, number, out=np.full(total.shape, math.nan), where=number > 0)

    def spread(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The standard deviation over axes (its square over n - 1); NaN for fewer than two values."""
        values, dimensions = self._values(what), self._dimensions(over)
        number = np.isfinite(values).sum(dimensions)
        mean = np.expand_dims(self.mean(values, over), dimensions)
        squares = np.where(np.isfinite(values), (values - mean) ** 2, 0).sum(dimensions)
        return np.sqrt(np.divide(squares, number - 1, out=np.full(squares.shape, math.nan), where=number > 1))

    def error(self, what: str | Array, over: str | Iterable[str] = 'repetition') -> Array:
        """The standard error of the mean over axes."""
        number = np.isfinite(self._values(what)).sum(self._dimensions(over))
        return self.spread(what, over) / np.sqrt(np.maximum(number, 1))

    def _values(self, what: str | Array) -> Array:
        return self[what] if isinstance(what, str) else what

    def _dimensions(self, over: str | Iterable[str]) -> tuple[int, ...]:
        axes = [*(axis.names for axis in self.plan.axes), ('repetition',)]
        found = []
        for name in [over] if isinstance(over, str) else over:
            places = [i for i, names in enumerate(axes) if name in names]
            if not places:
                raise ValueError(f'over={name!r} is not an axis: {similar(name, [n for names in axes for n in names])}')
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
    rows = [run.row() for run in results.runs]
    records = []
    for result in results.runs:
        run = result.run
        head = {'run': run.name, **run.point, 'repetition': run.repetition}
        for record in result.records:
            measured = {name: record[name] for name in RECORDED}
            records.append({**head, 't': record['t'], **measured, 'learning_rate': record['lr']})
    columns = ['run', *varied, 'repetition', 't', *RECORDED, 'learning_rate']
    paths = [folder / 'runs.csv', folder / 'dynamics.csv']
    _write_csv(paths[0], rows, _columns(rows))
    _write_csv(paths[1], records, columns)
    return paths


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of all rows: the floors, of which a deeper language has more, in the order of their windows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    floors = sorted((name for name in names if name.startswith('floor_')), key=lambda name: int(name[len('floor_') :]))
    others = [name for name in names if name not in ('entropy', 'marginal', *floors)]
    place = others.index('step')
    return [*others[:place], 'entropy', 'marginal', *floors, *others[place:]]


def _write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
