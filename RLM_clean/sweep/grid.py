"""The values of a grid: from the words of a command line, or from a TOML file, to the axes of a sweep.

beta=0.8,1.2            two values
beta=0..4:9             nine values from 0 to 4, evenly spaced
lr=1e-4..1e-1:7log      seven values from 1e-4 to 1e-1, evenly spaced in their logarithm
beta=0..1:3,2,4         both
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RLM_clean.command_line import read_number
from RLM_clean.config import DEFAULTS, EXECUTION, format_value, similar

# A sweep varies neither the name of a run nor how it is computed.
_FIXED = EXECUTION | {'outname'}
_RANGE = re.compile(r'(?P<first>[^:]+?)\.\.(?P<last>[^:]+):(?P<number>[^:]*?)(?P<log>log)?')
# What the command line and the variables of code.sh take for a switch.
SWITCHES = {'1': True, 'true': True, 'yes': True, '0': False, 'false': False, 'no': False}
_KIND_NAMES = {int: 'a whole number', float: 'a number', bool: 'true or false'}
_MOST_VALUES = 1000


@dataclass(frozen=True)
class Axis:
    """Options that vary together: their names, and for each point of the axis one value of each."""

    names: tuple[str, ...]
    points: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        """The values of one of the options, point by point."""
        return [point[self.names.index(name)] for point in self.points]

    def to_dict(self) -> dict[str, list[Any]]:
        """The values of each option, for a file."""
        return {name: self.column(name) for name in self.names}


# ---------------------------------------------------------------------- axes


def read_axis(words: Sequence[str]) -> Axis:
    """The axis of words such as 'beta=0.8,1.2'; several words vary together, value by value.

    Raises ValueError with one sentence for words that are not an axis.
    """
    columns: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition('=')
        if not equals:
            raise ValueError(f'{word!r} gives no values: write them as in beta=0.8,1.2')
        if name in columns:
            raise ValueError(f'{name} is varied with itself: give it once')
        columns[name] = read_values(name, text)
    return make_axis(columns)


def make_axis(columns: dict[str, list[Any]]) -> Axis:
    """The axis of options that vary together, {name: values}. Raises ValueError for what cannot be an axis."""
    for name, values in columns.items():
        _check_name(name)
        if not values:
            raise ValueError(f'{name} has no values: give some, as in {name}={format_value(DEFAULTS[name])}')
    names = tuple(columns)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ', '.join(f'{length} of {name}' for name, length in lengths.items())
        raise ValueError(f'{" and ".join(names)} vary together but have different numbers of values: {counts}')
    points = tuple(zip(*columns.values(), strict=True))
    for i, point in enumerate(points):
        if point in points[:i]:
            words = ' '.join(f'{name}={format_value(value)}' for name, value in zip(names, point, strict=True))
            raise ValueError(f'{words} is given twice among the values: leave one out')
    return Axis(names, points)


def check_axes(axes: Sequence[Axis]) -> None:
    """Raises ValueError for an option that is on two axes."""
    names = [name for axis in axes for name in axis.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{name} is varied twice: give all its values at once, as in {name}=1,2,3')


def _check_name(name: str) -> None:
    if name in _FIXED:
        raise ValueError(f'{name} cannot vary within a sweep: give it once, as --{name}')
    if name not in DEFAULTS:
        raise ValueError(f'{name!r} is not an option: {similar(name, DEFAULTS)}')


# ---------------------------------------------------------------------- values


def read_values(name: str, text: str) -> list[Any]:
    """The values of an option from text such as '0.8,1.2' or '1e-4..1e-1:7log', of the option's own kind.

    Values of a range have six significant digits. Raises ValueError with one sentence for text that is not a value.
    """
    _check_name(name)
    if not text.strip(' ,'):
        raise ValueError(f'{name}={text} has no values: give some, as in {name}={format_value(DEFAULTS[name])}')
    lists = [_read_part(name, part.strip()) for part in text.split(',')]
    return list(itertools.chain.from_iterable(lists))


def _read_part(name: str, text: str) -> list[Any]:
    if '..' in text and _kind(name) in (int, float):
        return _read_range(name, text)
    return [_read_value(name, text)]


def _kind(name: str) -> type:
    return int if name == 'num_tokens' else type(DEFAULTS[name])


def _read_value(name: str, text: str) -> Any:
    kind = _kind(name)
    try:
        if text == '':
            raise ValueError
        return SWITCHES[text.lower()] if kind is bool else read_number(text) if kind is int else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f'{name}={text!r} is not {_KIND_NAMES.get(kind, "a value")}: give one') from None


def _read_range(name: str, text: str) -> list[Any]:
    found = _RANGE.fullmatch(text)
    if not found or not found['number'].isdecimal():
        raise ValueError(f'{name}={text} is not a range: write it as first..last:number, or with log after the number')
    first, last = (_read_number(name, found[end]) for end in ('first', 'last'))
    number = int(found['number'])
    if not 2 <= number <= _MOST_VALUES:
        raise ValueError(f'{name}={text} asks for {number} values: ask for 2 to {_MOST_VALUES}')
    if found['log'] and min(first, last) <= 0:
        raise ValueError(f'{name}={text} has an end that is not above 0: a log range needs both above it')
    return [_whole(name, text, x) if _kind(name) is int else x for x in spaced(first, last, number, bool(found['log']))]


def _read_number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f'{name}={text!r} is not a number: give one')
    return value


def spaced(first: float, last: float, number: int, log: bool = False) -> list[float]:
    """`number` values from first to last, evenly spaced (in their logarithm), to six significant digits."""
    fractions = [i / (number - 1) for i in range(number)]
    if log:
        values = [first * (last / first) ** fraction for fraction in fractions]
    else:
        values = [first + (last - first) * fraction for fraction in fractions]
    return [first, *(float(f'{value:.6g}') for value in values[1:-1]), last]


def _whole(name: str, text: str, value: float) -> int:
    if value != round(value):
        raise ValueError(
            f'{name}={text} contains {value:g}, which is not a whole number: choose other ends or their number'
        )
    return int(value)


# ---------------------------------------------------------------------- a file


@dataclass(frozen=True)
class Request:
    """What a sweep is asked to be; None or empty where nothing was given."""

    outname: str | None = None
    axes: tuple[Axis, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    repetitions: int | None = None
    vary: tuple[str, ...] | None = None
    seed: int | None = None


def merged(file: Request, words: Request) -> Request:
    """A request of a file with that of a command line, whose axes, options and numbers come first."""
    varied = {name for axis in words.axes for name in axis.names}
    axes = tuple(axis for axis in file.axes if not varied.intersection(axis.names)) + words.axes
    chosen = {
        name: value if (value := getattr(words, name)) is not None else getattr(file, name)
        for name in ('outname', 'repetitions', 'vary', 'seed')
    }
    return Request(axes=axes, options={**file.options, **words.options}, **chosen)


def read_toml(path: str | Path) -> Request:
    """The request of a TOML file with outname, repetitions, vary, seed, [grid], [[zip]] and [options], all optional.

        outname = 'results/betas'
        repetitions = 8

        [grid]
        beta = [0.8, 1.2]
        lr = '1e-4..1e-1:7log'

        [[zip]]
        num_features = [32, 64]
        embedding_dim = [64, 128]

        [options]
        max_iters = 25000

    Raises ValueError with one sentence for what cannot be read, and for any other entry.
    """
    content = _load_toml(path)
    kinds = {
        'outname': str, 'repetitions': int, 'vary': list, 'seed': int, 'grid': dict, 'zip': list, 'options': dict,
    }  # fmt: skip
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f'{path} has {name!r}, which it cannot: {similar(name, kinds)} (options go to [options])')
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise ValueError(f'{path} has {name}={value!r}, which is not a {kinds[name].__name__}: see docs/sweeps.md')
    axes = [_toml_axis({name: values}) for name, values in content.get('grid', {}).items()]
    for table in content.get('zip', []):
        if not isinstance(table, dict):
            raise ValueError(f'{path} has a zip of {table!r}: write [[zip]] and below it the variables, a line each')
        axes.append(_toml_axis(table))
    options = content.get('options', {})
    for name, value in options.items():
        if name not in DEFAULTS or name == 'outname':
            raise ValueError(f'{path} has {name!r} among [options], where it cannot be: {similar(name, DEFAULTS)}')
        if isinstance(value, (list, dict)):
            raise ValueError(f'{path} has several values of {name} among [options]: put it in [grid]')
    vary = tuple(content['vary']) if 'vary' in content else None
    return Request(
        content.get('outname'), tuple(axes), options, content.get('repetitions'), vary, content.get('seed')
    )  # fmt: skip


def _toml_axis(table: dict[str, Any]) -> Axis:
    return make_axis({name: _toml_values(name, values) for name, values in table.items()})


def _toml_values(name: str, values: Any) -> list[Any]:
    """A list of values, a text as on the command line, or a single value."""
    _check_name(name)
    if isinstance(values, str):
        return read_values(name, values)
    values = values if isinstance(values, list) else [values]
    # A whole number is a good value of an option that takes any number: beta = [1, 2].
    return [float(x) if _kind(name) is float and type(x) is int else x for x in values]


def _load_toml(path: str | Path) -> dict[str, Any]:
    try:
        import tomllib  # type: ignore[import-not-found, unused-ignore]  # Python 3.11 and newer
    except ImportError:
        try:
            import tomli as tomllib  # type: ignore[import-not-found, no-redef, unused-ignore]
        except ImportError:
            raise ValueError(f'{path} cannot be read by this Python: use 3.11 or newer, or pip install tomli') from None
    try:
        with open(path, 'rb') as file:
            return tomllib.load(file)
    except OSError as error:
        raise ValueError(f'{path} cannot be read ({error.strerror}): give the path of a TOML file') from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not TOML: {error}') from None
