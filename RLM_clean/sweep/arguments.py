"""The words of a sweep's command line: options that were given and no others, and numbers that can be."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from RLM_clean.config import DEFAULTS, similar

# Stands in for an option that was not given.
_ABSENT = object()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueError with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The words of a command line, and of the options of a run those that were given.

    Raises ValueError for a word that is none, and for an option that is given twice.
    """
    known = argparse.Namespace(**dict.fromkeys(DEFAULTS, _ABSENT))
    args, unknown = parser.parse_known_args(words, known)
    flags = [word.split('=')[0].lstrip('-') for word in words if word.startswith('--')]
    if unknown:
        name = unknown[0].split('=')[0].lstrip('-')
        own = [name.replace('_', '-') for name in vars(args) if name not in DEFAULTS]
        raise ValueError(f'{unknown[0]!r} is no option: {similar(f"--{name}", (f"--{n}" for n in [*DEFAULTS, *own]))}')
    given = {name: value for name in DEFAULTS if (value := getattr(args, name)) is not _ABSENT}
    for name in given:
        if flags.count(name) + flags.count(f'no-{name}') > 1:
            raise ValueError(f'{name} is given twice: give it once, or its values as --grid {name}=...')
    return args, given


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number: give one') from None


def number(text: str) -> float:
    """Any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number: give one') from None


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is out of range: use a whole number, 1 or more')
    return int(text)


def positive_or_auto(text: str) -> int | str:
    """A number of processes, or 'auto'."""
    return text if text == 'auto' else positive(text)


def part(text: str) -> tuple[int, int]:
    """A part of several, such as 1/4."""
    place, _, parts = text.partition('/')
    if not 1 <= positive(place) <= positive(parts or '0'):
        raise argparse.ArgumentTypeError(f'{text!r} is no part: give one such as 1/4')
    return int(place), int(parts)
