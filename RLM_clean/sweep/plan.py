"""A sweep as it is defined: its runs with their names and seeds, their groups, and the file that keeps it.

{folder}/sweep.json holds the definition; every run of it is {folder}/{name}, with the files of a run of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RLM_clean import __version__
from RLM_clean.config import DEFAULTS, EXECUTION, Config, format_value, similar
from RLM_clean.runs.storage import atomic_write
from RLM_clean.streams import stream_key
from RLM_clean.sweep.grid import Axis, Request, check_axes

SEEDS = {'rules': 'seed_rules', 'sample': 'seed_sample', 'model': 'seed_model'}

# Runs that differ in these alone have the same shapes and the same schedule: they can be trained together.
MEMBER_OPTIONS = frozenset(
    {*SEEDS.values(), 'beta', 'lr', 'momentum', 'weight_decay', 'grad_clip', 'loss_threshold', 'outname'}
)

_MOST_RUNS = 10**5


def repetition_seeds(seed: int, repetition: int) -> dict[str, int]:
    """The seeds of a repetition, {'seed_rules', 'seed_sample', 'seed_model'}, each of 32 bits.

    The seed number i (0, 1, 2 in this order) is `stream_key(seed, 'other', i, repetition) mod 2^32`: a function of the
    sweep's seed and of the repetition alone, the same at all points of a grid.
    """
    return {name: stream_key(seed, 'other', i, repetition) % 2**32 for i, name in enumerate(SEEDS.values())}


@dataclass(frozen=True)
class Member:
    """A run of a sweep: its name, its options, its values on the axes, and its repetition (None without any)."""

    name: str
    config: Config
    point: dict[str, Any]
    repetition: int | None

    @property
    def shape(self) -> tuple[Any, ...]:
        """What runs have in common that can be trained together."""
        shared = [getattr(self.config, name) for name in DEFAULTS if name not in MEMBER_OPTIONS]
        # What is zero is left out of a step.
        return *shared, *(getattr(self.config, name) == 0 for name in ('momentum', 'weight_decay', 'grad_clip'))


@dataclass(frozen=True)
class Plan:
    """What a sweep is. Raises ValueError with one sentence, when it is made, for what cannot be run.

    Attributes:
        folder: where its files are.
        axes: the options that vary, with their values.
        options: those that all runs share and that were given.
        repetitions: how often each point is repeated with other seeds; None for once, with the seeds as given.
        vary: which of rules, sample and model get another seed in each repetition.
        seed: what these seeds are derived from, see `repetition_seeds`.
        execution: options that change where or how a run is computed, not what.
        group: the most runs of a group; None while nobody has chosen it.
        seats: the groups: names of runs that are trained together, each in its place. A run keeps its group and its
            place for ever, for its losses depend on them by rounding; a run that is in none is trained alone.
        members: the runs: all points of the grid, the last axis fastest, for the first repetition, then for the next.
    """

    folder: Path
    axes: tuple[Axis, ...]
    options: dict[str, Any]
    repetitions: int | None = None
    vary: tuple[str, ...] = tuple(SEEDS)
    seed: int = 0
    execution: dict[str, Any] = dataclasses.field(default_factory=dict)
    group: int | None = None
    seats: tuple[tuple[str, ...], ...] = ()
    members: list[Member] = dataclasses.field(init=False, repr=False, compare=False)

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
            raise ValueError('nothing varies: give --grid or --repetitions, or train one run by RLM_clean/main.py')
        self._check_clashes()
        object.__setattr__(self, 'members', self._make_members())
        self._check_groups()

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

    def _check_groups(self) -> None:
        shapes = {member.name: member.shape for member in self.members} if self.seats else {}
        seated = [name for names in self.seats for name in names]
        known = len(set(seated)) == len(seated) and shapes.keys() >= set(seated)
        if not known or any(len({shapes[name] for name in names}) != 1 for names in self.seats):
            path = plan_file(self.folder)
            raise ValueError(f'{path} has groups that are none of its runs: remove it, and start the sweep as before')

    @property
    def _varied_seeds(self) -> tuple[str, ...]:
        return tuple(SEEDS[kind] for kind in self.vary) if self.repetitions is not None else ()

    @property
    def varied(self) -> list[str]:
        """The options on the axes, in their order."""
        return [name for axis in self.axes for name in axis.names]

    def _make_members(self) -> list[Member]:
        number = math.prod(len(axis.points) for axis in self.axes) * (self.repetitions or 1)
        if number > _MOST_RUNS:
            raise ValueError(f'the grid has {number} runs: make several sweeps of at most {_MOST_RUNS}')
        repetitions: Iterable[int | None] = [None] if self.repetitions is None else range(1, self.repetitions + 1)
        members = [
            self._member(dict(zip(self.varied, itertools.chain.from_iterable(values), strict=True)), repetition)
            for repetition in repetitions
            for values in itertools.product(*(axis.points for axis in self.axes))
        ]
        names = [member.name for member in members]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f'two runs would be named {twice!r}: leave one of their values out')
        return members

    def _member(self, point: dict[str, Any], repetition: int | None) -> Member:
        name = '_'.join(f'{option}{format_value(value)}' for option, value in point.items())
        seeds = {}
        if repetition is not None:
            name = f'{name}_r{repetition}' if name else f'r{repetition}'
            derived = repetition_seeds(self.seed, repetition)
            seeds = {seed: derived[seed] for seed in self._varied_seeds}
        options = {**self.options, **self.execution, **point, **seeds, 'outname': str(self.folder / name)}
        return Member(name, Config(**options), point, repetition)

    def to_dict(self) -> dict[str, Any]:
        """The definition as plain values, with the defaults that its runs had."""
        return {
            'version': __version__,
            'axes': [axis.to_dict() for axis in self.axes],
            'options': self._shared,
            'repetitions': self.repetitions,
            'vary': list(self.vary),
            'seed': self.seed,
            'group': self.group,
            'groups': self.seats,
        }

    @property
    def groups(self) -> list[list[Member]]:
        """All runs by the groups that they are trained in, each in its place; those in no group alone, at the end."""
        members = {member.name: member for member in self.members}
        return [[members.pop(name) for name in names] for names in self.seats] + [[m] for m in members.values()]

    def grouped(self, largest: int, limit: Callable[[Config], int]) -> Plan:
        """This sweep with its runs that are in no group in groups of one shape, of `limit(config)` runs at most.

        `largest` is the most runs of a group where the sweep has no such number yet; it keeps it.
        """
        largest = self.group or largest
        seated = {name for names in self.seats for name in names}
        left = [member for member in self.members if member.name not in seated]
        shares = groups(left, lambda config: min(largest, limit(config)))
        seats = (*self.seats, *(tuple(member.name for member in share) for share in shares))
        return dataclasses.replace(self, group=largest, seats=seats)

    @property
    def _shared(self) -> dict[str, Any]:
        """Every option that all runs share, the defaults among them."""
        left_out = EXECUTION | {'outname', *self.varied, *self._varied_seeds}
        shared = {name: getattr(self.members[0].config, name) for name in DEFAULTS if name not in left_out}
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
        if asked.group not in (None, self.group):
            raise ValueError(f'group={asked.group} differs from {self.group} {where}: {remedy}')
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


def groups(members: Iterable[Member], limit: Callable[[Config], int]) -> list[list[Member]]:
    """The runs that can be trained together, in lists of at most `limit(config)`, about as long as each other.

    All are in the order of `members`.
    """
    together: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        together.setdefault(member.shape, []).append(member)
    result = []
    for runs in together.values():
        size = math.ceil(len(runs) / math.ceil(len(runs) / limit(runs[0].config)))
        result += [runs[i : i + size] for i in range(0, len(runs), size)]
    return result


# ---------------------------------------------------------------------- the file


def plan_file(folder: str | Path) -> Path:
    """The path of the definition of a sweep."""
    return Path(folder) / 'sweep.json'


def make_plan(request: Request, execution: dict[str, Any], group: int | None = None) -> Plan:
    """The plan of a request, with groups of at most `group` runs.

    Raises ValueError with one sentence for what cannot be run.
    """
    if not request.outname:
        raise ValueError('outname is missing: give the folder of the sweep, as in --outname results/my_sweep')
    given = {'repetitions': request.repetitions, 'vary': request.vary, 'seed': request.seed}
    for name in ('vary', 'seed'):
        if given[name] is not None and request.repetitions is None:
            value = ','.join(request.vary) if name == 'vary' and request.vary else given[name]
            raise ValueError(f'{name}={value} is for repetitions: add them, or give {", ".join(SEEDS.values())}')
    folder = Path(request.outname)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'outname={request.outname!r} is a file, a sweep is a folder: use another')
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Plan(folder, request.axes, request.options, execution=execution, group=group, **chosen)


def read_plan(folder: str | Path, execution: dict[str, Any] | None = None) -> Plan:
    """The plan of a sweep from its file.

    Raises ValueError when there is none or it cannot be read.
    """
    path = plan_file(folder)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise ValueError(f'{str(folder)!r} has no file sweep.json: give the folder of a sweep') from None
    except NotADirectoryError:
        raise ValueError(f'{str(folder)!r} is no folder: give that of a sweep') from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({error}): remove it, and start the sweep as before') from None
    try:
        axes = tuple(Axis(tuple(columns), tuple(zip(*columns.values(), strict=True))) for columns in content['axes'])
        values = {name: content[name] for name in ('options', 'repetitions', 'seed')}
        vary = tuple(content['vary'])
        # Earlier versions trained every run alone.
        group, seats = content.get('group', 1), tuple(tuple(map(str, names)) for names in content.get('groups', []))
        if group is not None and (type(group) is not int or group < 1):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f'{path} is not the file of a sweep: remove it, and start the sweep as before') from None
    for name in [*values['options'], *(name for axis in axes for name in axis.names)]:
        if name not in DEFAULTS:
            raise ValueError(f'{path} has {name!r}, which is no option: {similar(name, DEFAULTS)}')
    return Plan(Path(folder), axes, vary=vary, execution=execution or {}, group=group, seats=seats, **values)


def save_plan(plan: Plan) -> None:
    """Writes sweep.json, atomically."""
    text = json.dumps(plan.to_dict(), indent=2) + '\n'
    atomic_write(plan_file(plan.folder), lambda file: file.write(text.encode()))
