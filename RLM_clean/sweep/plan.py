"""The definition of a sweep: its runs with their names and seeds, and the file sweep.json that keeps it.

{folder}/sweep.json holds the definition. Every run is {folder}/{name}, with the files that a single run has.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RLM_clean import __version__
from RLM_clean.config import DEFAULTS, EXECUTION, Config, format_value, similar
from RLM_clean.runs.storage import atomic_write
from RLM_clean.streams import stream_key
from RLM_clean.sweep.grid import Axis, Request, check_axes

SEEDS = {'rules': 'seed_rules', 'sample': 'seed_sample', 'model': 'seed_model'}

# What makes another language of the same shapes.
_LANGUAGE_OPTIONS = ('seed_rules', 'beta', 'num_synonyms', 'zipf', 'zipf_levels', 'sigma', 'filtered')
# Runs that differ only in these have the same shapes, see `PlannedRun.shape`: they can be trained together.
OWN_OPTIONS = frozenset({
    *SEEDS.values(), *_LANGUAGE_OPTIONS, 'train_size', 'mask_rate', 'noise', 'lr', 'momentum', 'weight_decay',
    'grad_clip', 'loss_threshold', 'outname',
})  # fmt: skip

_MOST_RUNS = 10**5
_REMEDY = 'remove it, and give the command of the sweep again'


def repetition_seeds(seed: int, repetition: int) -> dict[str, int]:
    """The seeds of a repetition, {'seed_rules', 'seed_sample', 'seed_model'}, each of 32 bits.

    The seed number i (0, 1, 2 in this order) is `stream_key(seed, 'other', i, repetition) mod 2^32`: a function of the
    sweep's seed and of the repetition alone, the same at all points of a grid.
    """
    return {name: stream_key(seed, 'other', i, repetition) % 2**32 for i, name in enumerate(SEEDS.values())}


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: its name, its options, its values on the axes, and its repetition (None without any)."""

    name: str
    config: Config
    point: dict[str, Any]
    repetition: int | None

    @property
    def shape(self) -> tuple[Any, ...]:
        """What is equal for runs that can be trained together."""
        c = self.config
        shared = [getattr(c, name) for name in DEFAULTS if name not in OWN_OPTIONS]
        # A step leaves out what is zero.
        zeros = [getattr(c, name) == 0 for name in ('momentum', 'weight_decay', 'grad_clip')]
        # Which contexts are possible, and so how many a step of the regime population has, the language says.
        language = [getattr(c, name) for name in _LANGUAGE_OPTIONS] if c.regime == 'population' else []
        # A group works on the rows of a run that has ended until its last run ends: a long run is not with short ones.
        return *shared, *zeros, *language, c.last_step


@dataclass(frozen=True)
class Plan:
    """What a sweep is. Raises ValueError with one sentence for what cannot be run.

    Attributes:
        folder: where its files are.
        axes: the options that vary, with their values.
        options: those that all runs share and that were given.
        repetitions: how often each point is repeated with other seeds; None for once, with the seeds as given.
        vary: which of rules, sample and model get another seed in each repetition.
        seed: what these seeds are derived from, see `repetition_seeds`.
        execution: options that change where or how a run is computed, not what.
        runs: all points of the grid, the last axis fastest, for the first repetition, then for the next.
    """

    folder: Path
    axes: tuple[Axis, ...]
    options: dict[str, Any]
    repetitions: int | None = None
    vary: tuple[str, ...] = tuple(SEEDS)
    seed: int = 0
    execution: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: list[PlannedRun] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_axes(self.axes)
        if self.repetitions is not None and (type(self.repetitions) is not int or self.repetitions < 1):
            raise ValueError(f'repetitions={self.repetitions!r} is out of range: use a whole number, 1 or more')
        for name in self.vary:
            if name not in SEEDS:
                raise ValueError(f'vary={name} is unknown: use some of {",".join(SEEDS)}')
        if not self.vary:
            raise ValueError(f'vary= names no seed, and repetitions need one: use some of {",".join(SEEDS)}')
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ValueError(f'seed={self.seed!r} is out of range: use a whole number from 0 to 2^63 - 1')
        if not self.axes and self.repetitions is None:
            raise ValueError('nothing varies: give --grid or --repetitions, or train one run with RLM_clean/main.py')
        self._check_clashes()
        object.__setattr__(self, 'runs', self._make_runs())

    def _check_clashes(self) -> None:
        for axis in self.axes:
            for name in axis.names:
                if name in self.options:
                    raise ValueError(
                        f'{name}={format_value(self.options[name])} clashes with the values '
                        f'{",".join(format_value(value) for value in axis.column(name))} of the grid: leave one out'
                    )
        for name in self._varied_seeds:
            kind = next(kind for kind, seed in SEEDS.items() if seed == name)
            others = ','.join(other for other in self.vary if other != kind) or 'another'
            if any(name in axis.names for axis in self.axes):
                raise ValueError(f'{name} is in the grid and varies with the repetition: use vary={others}')
            if self.options.get(name, DEFAULTS[name]) != DEFAULTS[name]:
                raise ValueError(
                    f'{name}={self.options[name]} would be replaced by that of each repetition: '
                    f'leave it out, or use vary={others}'
                )

    @property
    def _varied_seeds(self) -> tuple[str, ...]:
        return tuple(SEEDS[kind] for kind in self.vary) if self.repetitions is not None else ()

    @property
    def varied(self) -> list[str]:
        """The options on the axes, in their order."""
        return [name for axis in self.axes for name in axis.names]

    def _make_runs(self) -> list[PlannedRun]:
        number = math.prod(len(axis.points) for axis in self.axes) * (self.repetitions or 1)
        if number > _MOST_RUNS:
            raise ValueError(f'the grid has {number} runs: make several sweeps of at most {_MOST_RUNS}')
        repetitions: Iterable[int | None] = [None] if self.repetitions is None else range(1, self.repetitions + 1)
        runs = [
            self._make_run(dict(zip(self.varied, itertools.chain.from_iterable(values), strict=True)), repetition)
            for repetition in repetitions
            for values in itertools.product(*(axis.points for axis in self.axes))
        ]
        names = [run.name for run in runs]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f'two runs would be named {twice!r}: leave one of their values out')
        return runs

    def _make_run(self, point: dict[str, Any], repetition: int | None) -> PlannedRun:
        name = '_'.join(f'{option}{format_value(value)}' for option, value in point.items())
        seeds = {}
        if repetition is not None:
            name = f'{name}_r{repetition}' if name else f'r{repetition}'
            derived = repetition_seeds(self.seed, repetition)
            seeds = {seed: derived[seed] for seed in self._varied_seeds}
        options = {**self.options, **self.execution, **point, **seeds, 'outname': str(self.folder / name)}
        return PlannedRun(name, Config(**options), point, repetition)

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain values, with the defaults that its runs had."""
        return {
            'version': __version__,
            'axes': [axis.to_dict() for axis in self.axes],
            'options': self._shared,
            'repetitions': self.repetitions,
            'vary': list(self.vary),
            'seed': self.seed,
        }

    @property
    def _shared(self) -> dict[str, Any]:
        """Every option that all runs share, the defaults among them."""
        left_out = EXECUTION | {'outname', *self.varied, *self._varied_seeds}
        shared = {name: getattr(self.runs[0].config, name) for name in DEFAULTS if name not in left_out}
        if self.options.get('num_tokens') is None and 'num_tokens' in shared:
            shared['num_tokens'] = None  # it follows num_layers, which may vary
        return shared

    @property
    def _kept(self) -> dict[str, Any]:
        """What must stay the same when a sweep is started again."""
        kept: dict[str, Any] = {'grid': ', '.join(sorted(' with '.join(sorted(axis.names)) for axis in self.axes))}
        if self.repetitions is not None:
            kept |= {'vary': ','.join(kind for kind in SEEDS if kind in self.vary), 'seed': self.seed}
        return kept | self._shared

    def extended(self, asked: Plan) -> Plan:
        """This sweep with the values and repetitions that `asked` adds, computed as `asked` says.

        Raises ValueError with one sentence when `asked` is another sweep, or lacks values of this one.
        """
        where, remedy = f'in {plan_file(self.folder)}', 'use that, or another outname'
        repeated, again = self.repetitions, asked.repetitions
        if (repeated is None) != (again is None) or (repeated or 0) > (again or 0):
            raise ValueError(f'repetitions={again} differs from {repeated} {where}: {remedy}')
        old = {**DEFAULTS, **self._kept}  # an option that came later had its default
        for name, value in asked._kept.items():
            if value != old[name]:
                new, stored = format_value(value), format_value(old[name])
                raise ValueError(f'{name}={new} differs from {stored} {where}: {remedy}')
        axes = tuple(_extended_axis(axis, asked, where) for axis in self.axes)
        return dataclasses.replace(self, axes=axes, repetitions=again, execution=asked.execution)


def _extended_axis(axis: Axis, asked: Plan, where: str) -> Axis:
    other = next(other for other in asked.axes if set(other.names) == set(axis.names))
    points = list(zip(*(other.column(name) for name in axis.names), strict=True))
    for point in axis.points:
        if point not in points:
            words = ' '.join(f'{name}={format_value(value)}' for name, value in zip(axis.names, point, strict=True))
            raise ValueError(f'{words} is {where} and not asked for: add it, or use another outname')
    return Axis(axis.names, (*axis.points, *(point for point in points if point not in axis.points)))


def by_shape(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """The runs in lists of those that can be trained together, each in the order of `runs`."""
    lists: dict[tuple[Any, ...], list[PlannedRun]] = {}
    for run in runs:
        lists.setdefault(run.shape, []).append(run)
    return list(lists.values())


# ---------------------------------------------------------------------- the file


def plan_file(folder: str | Path) -> Path:
    """The path of the definition of a sweep."""
    return Path(folder) / 'sweep.json'


def make_plan(request: Request, execution: dict[str, Any]) -> Plan:
    """The plan of a request. Raises ValueError with one sentence for what cannot be run."""
    if not request.outname:
        raise ValueError('outname is missing: give the folder of the sweep, as in --outname results/my_sweep')
    given = {'repetitions': request.repetitions, 'vary': request.vary, 'seed': request.seed}
    for name in ('vary', 'seed'):
        if given[name] is not None and request.repetitions is None:
            value = ','.join(request.vary) if name == 'vary' and request.vary else given[name]
            raise ValueError(f'{name}={value} is for repetitions: add them, or give {", ".join(SEEDS.values())}')
    folder = Path(request.outname)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'outname={request.outname!r} is a file, but a sweep is a folder: use another name')
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Plan(folder, request.axes, request.options, execution=execution, **chosen)


def read_plan(folder: str | Path, execution: dict[str, Any] | None = None) -> Plan:
    """The plan of a sweep from its file.

    Raises ValueError with one sentence when there is no such file, or it does not hold a sweep. Entries that are not
    used any more (`group` and `groups` of earlier versions) are ignored.
    """
    path = plan_file(folder)
    not_a_sweep = f'{path} is not the file of a sweep: {_REMEDY}'
    try:
        content = _load_json(path)
        columns = [{str(name): list(values) for name, values in axis.items()} for axis in content['axes']]
        options, vary = dict(content['options']), tuple(content['vary'])
        for name in [*options, *(name for names in columns for name in names)]:
            if name not in DEFAULTS:
                raise ValueError(f'{path} has the unknown option {name!r}: {similar(name, DEFAULTS)}')
        if any(len(set(map(len, names.values()))) != 1 for names in columns):
            raise ValueError(not_a_sweep)
        axes = tuple(Axis(tuple(names), tuple(zip(*names.values(), strict=True))) for names in columns)
        seeds = {'repetitions': content['repetitions'], 'vary': vary, 'seed': content['seed']}
        return Plan(Path(folder), axes, options, execution=execution or {}, **seeds)
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(not_a_sweep) from None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ValueError(f'{str(path.parent)!r} has no file sweep.json: give the folder of a sweep') from None
    except NotADirectoryError:
        raise ValueError(f'{str(path.parent)!r} is not a folder: give the folder of a sweep') from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not JSON, or a number with too many digits
        raise ValueError(f'{path} cannot be read ({error}): {_REMEDY}') from None


def save_plan(plan: Plan) -> None:
    """Writes sweep.json, atomically."""
    text = json.dumps(plan.to_dict(), indent=2) + '\n'
    atomic_write(plan_file(plan.folder), lambda file: file.write(text.encode()))
