"""Thresholds: the training-set size at which models learn a level of the tree, for a grid of languages.

The runs of a search are those of a sweep in one folder, whose axis holds what varies and `train_size`. Sizes are added
as the search asks for them, so all that is known is in the files of the runs: a search that was stopped or killed goes
on, a search for another level uses the same runs, and `status`, `collect` and `work` do what they do for any sweep.

Training is offline: P sequences, reshuffled each epoch, for `max_iters` steps whatever P is. What counts is the best
model, that of the record with the least excess (early stopping). Its excess is the mean of exact divergences on all
contexts of a fixed reference, not a noisy test loss.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from RLM_clean.analysis.thresholds import Search, Threshold
from RLM_clean.config import DEFAULTS, EXECUTION, Config, format_value
from RLM_clean.runs.run import Run
from RLM_clean.sweep import worker
from RLM_clean.sweep.criteria import Criterion, make_criterion
from RLM_clean.sweep.grid import Axis, check_axes
from RLM_clean.sweep.plan import SEEDS, Plan, PlannedRun, plan_file, read_plan, save_plan
from RLM_clean.sweep.results import read_result
from RLM_clean.sweep.states import pending, sweep_lock
from RLM_clean.training.progress import Say, format_seconds, say

# Passes over the training set: the number of steps ends a run, the same for all sizes.
_MANY_EPOCHS = 10**9
# Seconds between two looks at runs that other processes train.
_INTERVAL = 0.5

# Trains what is left of a plan: False when a signal asked to save and stop.
Train = Callable[[Plan], bool]


def make_search(criterion: Criterion, start: int, largest: int, resolution: float) -> Search:
    """The search for the bound of a criterion, from words of a user."""
    return Search(criterion.bound, start, 1, largest, resolution)


# ---------------------------------------------------------------------- the search over a grid


@dataclass(frozen=True)
class Found:
    """What is known of one language: its values on the axes, and its threshold, or why there is none (yet)."""

    point: dict[str, Any]
    threshold: Threshold | None
    why: str = ''

    @property
    def label(self) -> str:
        """The language in a few words."""
        return ' '.join(f'{name}={format_value(value)}' for name, value in self.point.items()) or 'the language'


@dataclass
class ThresholdSweep:
    """The thresholds of all languages of a grid, by training runs in a folder.

    Attributes:
        folder: where the runs are.
        axes: what varies between the languages (or the models).
        options: what all runs share.
        criterion: what is sought.
        search: how it is sought; the smallest size is at least a batch.
        seeds: how many runs there are at each size, with the seeds of repetitions of a sweep.
        vary: which seeds differ between repetitions, as of `Plan`.
        seed: what these seeds are derived from, as of `Plan`.
        execution: options that change where or how a run is computed, as of `Plan`.

    Raises ValueError with one sentence for what cannot be run, before anything is written.
    """

    folder: Path
    axes: tuple[Axis, ...]
    options: dict[str, Any]
    criterion: Criterion
    search: Search
    seeds: int = 4
    vary: tuple[str, ...] = tuple(SEEDS)
    seed: int = 0
    execution: dict[str, Any] = field(default_factory=dict)
    _values: dict[str, float] = field(default_factory=dict, repr=False)
    _seconds: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_axes(self.axes)
        names = [name for axis in self.axes for name in axis.names]
        if 'train_size' in names or 'train_size' in self.options:
            raise ValueError(
                'train_size is what is sought: leave it out; the first size is --start of '
                '`python -m RLM_clean.sweep threshold`'
            )
        if 'regime' in names or self.options.get('regime', 'offline') != 'offline':
            raise ValueError('regime is offline in a search for a threshold: leave it out')
        usual = {'max_epochs': _MANY_EPOCHS, 'checkpoints': self.criterion.needs_checkpoints}
        usual = {name: value for name, value in usual.items() if name not in names}
        self.options = {**usual, **self.options, 'regime': 'offline'}
        product = itertools.product(*(axis.points for axis in self.axes))
        self.points = [dict(zip(names, itertools.chain.from_iterable(values), strict=True)) for values in product]
        for run in self.plan({}).runs:
            self.criterion.check(run.config)

    # ------------------------------------------------------------------ what is there

    def plan(self, more: dict[int, int]) -> Plan:
        """The sweep with the sizes that its file has, and those of `more`, {number of the point: size}.

        Before there are any, each language has its first size.
        """
        names = (*(name for axis in self.axes for name in axis.names), 'train_size')
        stored = read_plan(self.folder, self.execution) if plan_file(self.folder).exists() else None
        points: list[tuple[Any, ...]] = []
        if stored is not None and len(stored.axes) != 1:
            raise ValueError(f'{self.folder} holds a sweep over several axes, not a search: use another outname')
        if stored is not None and set(stored.varied) == set(names):
            points = list(zip(*(stored.axes[0].column(name) for name in names), strict=True))
        first = {} if points else {i: self.search_of(point).start for i, point in enumerate(self.points)}
        for i, size in (*first.items(), *more.items()):
            new = (*self.points[i].values(), size)
            points += [] if new in points else [new]
        asked = Plan(
            self.folder, (Axis(names, tuple(points)),), self.options, self.seeds, self.vary, self.seed, self.execution
        )
        return asked if stored is None else stored.extended(asked)

    def search_of(self, point: dict[str, Any]) -> Search:
        """The search of a language: its sizes are at least a batch."""
        value = {**DEFAULTS, **self.options, **point}
        smallest = max(self.search.smallest, value['batch_size'] * value['accumulation'])
        s = self.search
        return Search(s.bound, max(s.start, smallest), smallest, max(s.largest, smallest), s.resolution)

    def measured(self, plan: Plan) -> list[dict[int, tuple[float, ...]] | str]:
        """The values of each language at the sizes at which all seeds are done, or why a run of it failed."""
        found: list[dict[int, tuple[float, ...]] | str] = []
        for point in self.points:
            groups: dict[int, list[PlannedRun]] = {}
            for run in plan.runs:
                if all(run.point[name] == value for name, value in point.items()):
                    groups.setdefault(run.point['train_size'], []).append(run)
            try:
                values = {size: tuple(map(self._value, runs)) for size, runs in groups.items()}
            except ValueError as error:
                found.append(str(error))
            else:
                found.append({size: row for size, row in values.items() if not any(map(math.isnan, row))})
        return found

    def _value(self, run: PlannedRun) -> float:
        """The value of a run; nan while it is not done. Raises ValueError for one that failed."""
        if run.name not in self._values:
            if pending(run):
                return math.nan
            result = read_result(run, self.folder)
            if result.status == 'failed':
                raise ValueError(f'{run.name} failed: `status` says why, --retry-failed tries it again')
            value = self.criterion.value(result)
            if math.isnan(value):
                raise ValueError(f'{run.name}: the criterion is not a number: leave that language out')
            self._values[run.name] = value
            self._seconds[run.name] = result.records[-1]['seconds']
        return self._values[run.name]

    def found(self, plan: Plan | None = None) -> list[Found]:
        """What is known of each language."""
        plan = plan or self.plan({})
        rows = []
        for point, measured in zip(self.points, self.measured(plan), strict=True):
            search = self.search_of(point)
            if isinstance(measured, str):
                rows.append(Found(point, None, measured))
            elif (size := search.next_size(measured)) is not None:
                rows.append(Found(point, None, f'P={size} is to be trained'))
            else:
                rows.append(Found(point, search.threshold(measured)))
        return rows

    # ------------------------------------------------------------------ training

    def run(self, train: Train, workers: int = 1, say: Say = say) -> list[Found] | None:
        """The thresholds, by training until all are known; None when a signal asked to save and stop."""
        reported: set[tuple[int, int]] = set()
        while True:
            plan = self._extend({})
            if any(pending(run) for run in plan.runs):
                if not train(plan):
                    return None
                if any(pending(run) for run in plan.runs):  # another process trains them
                    time.sleep(_INTERVAL)
                    continue
            measured = self.measured(plan)
            self._report(measured, reported, workers, say)
            more = {
                i: size
                for i, values in enumerate(measured)
                if not isinstance(values, str)
                and (size := self.search_of(self.points[i]).next_size(values)) is not None
            }
            if not more:
                return self.found(plan)
            self._extend(more)

    def _extend(self, more: dict[int, int]) -> Plan:
        """Adds sizes to the file of the sweep; returns the whole plan. Raises ValueError for a folder of another."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with sweep_lock(self.folder):  # another driver may have come between
                plan = self.plan(more)
                save_plan(plan)
                return plan
        except OSError as error:
            raise ValueError(
                f'outname={str(self.folder)!r} is a folder that cannot be written ({error.strerror}): use another'
            ) from None

    def _report(
        self, measured: Sequence[dict[int, tuple[float, ...]] | str], reported: set[tuple[int, int]], workers: int,
        say: Say,
    ) -> None:  # fmt: skip
        """Says what is new: how many seeds meet the criterion at each size, and how long the search will still take."""
        sizes_left = sum(
            self.search_of(point).sizes_left(values)
            for point, values in zip(self.points, measured, strict=True)
            if not isinstance(values, str)
        )
        mean = sum(self._seconds.values()) / max(1, len(self._seconds))
        left = f'; about {format_seconds(sizes_left * self.seeds * mean / workers)} left' if sizes_left else ''
        for i, (point, values) in enumerate(zip(self.points, measured, strict=True)):
            label = Found(point, None).label
            if isinstance(values, str):
                if (i, -1) not in reported:
                    say(f'{label}: {values}')
                reported.add((i, -1))
                continue
            for size in sorted(values):
                if (i, size) not in reported:
                    met = sum(value <= self.search.bound for value in values[size])
                    say(f'{label}: P={size}: {met} of {self.seeds} seeds meet {self.criterion}{left}')
                    reported.add((i, size))


# ---------------------------------------------------------------------- for Python


def threshold(
    config: Config,
    level: int | None = None,
    criterion: str | Callable[[Run], float] = 'step',
    seeds: int = 4,
    fraction: float | None = None,
    excess: float | None = None,
    start: int = 1024,
    largest: int = 2**20,
    resolution: float = 2**0.25,
    vary: Sequence[str] = tuple(SEEDS),
    seed: int = 0,
    group: int | None = None,
    say: Say = say,
) -> Threshold:
    """The size of the training set at which runs like `config` meet a criterion: a `Threshold`.

        threshold(Config(outname='results/level2', dataset='rhm', num_features=8, num_layers=2, ...), level=2)

    Trains `seeds` runs together at each size that the search asks for, in this process, in the folder `config.outname`;
    `config.train_size` and `config.regime` do not matter. Without a `max_epochs` that was changed, a run takes
    `max_iters` steps at every size. Runs whose files are there are not trained again: called again after it was stopped
    or killed, it goes on. For `level`, `criterion`, `fraction` and `excess` see `Criterion`; a function gets each run
    (`load_run`) and gives a number that is at most `fraction` where the criterion is met. For the search and its
    interval see `analysis.thresholds.Search`; for `vary` and `seed` see `Plan`.

    Raises ValueError for what cannot be run, and where a run fails; KeyboardInterrupt after a signal, when all is
    saved.
    """
    what = make_criterion(level, criterion, fraction, excess)
    left_out = EXECUTION | {'outname', 'train_size', 'regime'}
    options = {name: value for name, value in config.changes().items() if name not in left_out}
    execution = {name: getattr(config, name) for name in EXECUTION - {'outname', 'resume'}}
    search = make_search(what, start, largest, resolution)
    sweep = ThresholdSweep(Path(config.outname), (), options, what, search, seeds, tuple(vary), seed, execution)
    found = sweep.run(lambda plan: worker.work(plan.folder, execution, group=group), say=say)
    if found is None:
        raise KeyboardInterrupt
    if found[0].threshold is None:
        raise ValueError(found[0].why)
    return found[0].threshold
