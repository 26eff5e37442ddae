"""The command line of a run: one `--name` for each option of a Config, and one line for what cannot be run."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from RLM_clean.config import KIND_NAMES, Config, kind_of

# What argparse leaves unsaid.
_REMEDIES = {'expected one argument': 'give it a value', 'ignored explicit argument': 'give it without a value'}

# How long a process of several waits for process 0 to say what is wrong.
_SECONDS_TO_SAY_WHY = 20.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line on standard error and status 2, without the usage."""
        message += ''.join(f': {remedy}' for found, remedy in _REMEDIES.items() if found in message)
        if os.environ.get('RANK', '0') == '0':
            print(f'{self.prog}: error: {message}', file=sys.stderr)
        else:  # of several processes on one run, one says it; torchrun ends all of them as soon as one has ended
            time.sleep(_SECONDS_TO_SAY_WHY)
        sys.exit(2)


def not_a_value(text: str, kind: str) -> str:
    """The message for a text that is not a value of its kind; several values are answered with how to write them."""
    if len(text.replace(',', ' ').split()) > 1 or '..' in text:
        return (
            f'{text!r} is not {kind}: several values are a sweep, in code.sh as "1 2 3", or 1..3:5 for five of them; '
            'in RLM_clean.sweep as --grid NAME=1,2,3'
        )
    if text == 'random':
        return f'{text!r} is not {kind}: code.sh draws one seed for it; for several use repetitions=2'
    return f'{text!r} is not {kind}: give one'


def read_number(text: str) -> int:
    """A whole number, which may be written as 1e4. Raises ValueError for another text."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if 'e' not in text.lower() or not value.is_integer() or abs(value) > 2**53:  # above, floats leave numbers out
            raise ValueError from None
        return int(value)


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return read_number(text) if kind is int else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(not_a_value(text, KIND_NAMES[kind])) from None

    return read


def make_parser(prog: str = 'rlm-train') -> argparse.ArgumentParser:
    """The parser of a run's command line: one `--name` for each option, in groups."""
    parser = _Parser(
        prog=prog,
        description='Train a model on sequences of a random grammar, such as the Random Language Model, against the '
        'exact floors of its task. Trees are complete and binary; all levels share one alphabet.',
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        group = groups.setdefault(field.metadata['group'], None)
        if group is None:
            group = groups[field.metadata['group']] = parser.add_argument_group(field.metadata['group'])
        flag, help, kind = f'--{field.name}', field.metadata['help'], kind_of(field)
        # The languages call seed_sample seed_samples.
        flags = [flag, '--seed_samples'] if field.name == 'seed_sample' else [flag]
        choices = field.metadata['choices']
        if choices:
            help = f'{help} [{", ".join(str(c) for c in choices)}]'
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=help)
        else:
            shown = '' if field.default in (None, '') else f' (default: {field.default})'
            group.add_argument(*flags, type=_reader(kind), default=field.default, metavar='', help=help + shown)
    return parser


def from_arguments(arguments: Sequence[str] | None = None, prog: str = 'rlm-train') -> Config:
    """The Config of a command line (that of the process by default).

    Exits with status 2 and one line on standard error for anything that cannot be run.
    """
    parser = make_parser(prog)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split('=')[0].lstrip('-')
        fields = dataclasses.fields(Config)
        flags = [f.name for f in fields] + [f'no-{f.name}' for f in fields if kind_of(f) is bool]
        close = difflib.get_close_matches(name, flags, 1)
        remedy = f'did you mean --{close[0]}?' if close else 'see --help'
        if not unknown[0].startswith('-') and not close:
            remedy = 'see --help; several values of an option are a sweep (docs/sweeps.md)'
        parser.error(f'{unknown[0]!r} is not an option: {remedy}')
    try:
        return Config(**vars(known))
    except ValueError as error:
        parser.error(str(error))
