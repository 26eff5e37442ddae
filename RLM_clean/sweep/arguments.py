"""The command lines of sweeps: their parsers, and what the words ask for."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, NoReturn

from RLM_clean.command_line import make_parser
from RLM_clean.config import DEFAULTS, EXECUTION, similar
from RLM_clean.sweep.grid import Request, merged, read_axis, read_toml
from RLM_clean.sweep.slurm import Resources

_USAGE = """python -m RLM_clean.sweep --outname FOLDER --grid NAME=VALUES ... [--repetitions R] [--NAME VALUE ...]
       python -m RLM_clean.sweep status FOLDER
       python -m RLM_clean.sweep collect FOLDER
       python -m RLM_clean.sweep work FOLDER"""
_DESCRIPTION = """Train all runs of a grid, as many at a time as this machine allows. The same command goes on where it
was stopped or killed; with a larger grid it trains what is new. outname is the folder of the sweep. The other options
are those of a run and hold for all runs."""

_GRID = 'an option and its values: beta=0.8,1.2 or beta=0..4:9 or lr=1e-4..1e-1:7log; once for each option that varies'
_ZIP = 'options that vary together: --zip num_features=32,64 embedding_dim=64,128'
_WORKERS = 'processes (default: auto, as many as the cores or the GPUs allow)'
_GROUP = 'the most runs that are trained together (default: auto, as many as pay; 1: every run alone)'
_LAUNCHER = 'where workers run: local, on this machine, or slurm, as an array of jobs (default: local)'

# Stands for an option that was not given.
_ABSENT = object()


# ---------------------------------------------------------------------- the parsers


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueError with one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def make_sweep_parser() -> argparse.ArgumentParser:
    """The parser of a sweep's command line: the options of a run, of the sweep, and of SLURM."""
    parser = make_parser('sweep')
    parser.usage, parser.description = _USAGE, _DESCRIPTION
    add = parser.add_argument_group('sweep').add_argument
    values = 'NAME=VALUES'
    add('--grid', action='append', default=[], metavar=values, help=_GRID)
    add('--zip', action='append', nargs='+', default=[], metavar=values, help=_ZIP)
    add('--repetitions', type=positive, metavar='R', help='repeat each point of the grid with R other seeds')
    add('--vary', metavar='SEEDS', help='the seeds that differ, some of rules,sample,model (default: all of them)')
    add('--seed', type=whole, metavar='S', help='the number that the seeds of repetitions derive from (default: 0)')
    add('--sweep', metavar='FILE', help='read all this from a TOML file; the command line overrides it')
    add('--workers', type=positive_or_auto, default='auto', metavar='N', help=_WORKERS)
    add('--group', type=positive, metavar='N', help=_GROUP)
    add('--launcher', choices=('local', 'slurm'), default='local', metavar='', help=_LAUNCHER)
    add('--dry-run', action='store_true', help='list the runs and write nothing')
    add('--retry-failed', action='store_true', help='try again the runs that failed')
    add = parser.add_argument_group('what each worker asks of SLURM (--launcher slurm)').add_argument
    readers = {int: whole, float: number}
    for field in dataclasses.fields(Resources):
        flag, help = f'--{field.name}', f'{field.metadata["help"]} (default: {field.default!r})'
        if isinstance(field.default, bool):
            add(flag, action=argparse.BooleanOptionalAction, default=None, help=help)
        else:
            add(flag, type=readers.get(type(field.default), str), metavar='', help=help)
    return parser


def make_work_parser() -> argparse.ArgumentParser:
    """The parser of `work`: the folder of a sweep, and what one worker does of it."""
    parser = make_parser('sweep')
    parser.usage = 'python -m RLM_clean.sweep work FOLDER'
    parser.description = 'Train what is free in a sweep, beside any number of other workers.'
    parser.add_argument('folder', metavar='FOLDER')
    add = parser.add_argument_group('worker').add_argument
    add('--part', type=part, default=(1, 1), metavar='I/N', help='take only every N-th run, from the I-th on')
    add('--group', type=positive, metavar='N', help=_GROUP)
    add('--workers', type=positive, default=1, metavar='N', help='the number of workers that share the runs')
    add('--watch-input', action='store_true', help='save and stop when the standard input ends')
    return parser


def read_folder(command: str, help: str, words: list[str]) -> str:
    """The folder that the words of a command name."""
    parser = Parser(prog=f'python -m RLM_clean.sweep {command}', description=help, allow_abbrev=False)
    parser.add_argument('folder', metavar='FOLDER', help='the folder of the sweep')
    return parser.parse_args(words).folder


# ---------------------------------------------------------------------- what the words ask for


def parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The values of a command line, and of the options of a run those that were given.

    Raises ValueError for an unknown word, and for an option that is given twice.
    """
    known = argparse.Namespace(**dict.fromkeys(DEFAULTS, _ABSENT))
    args, unknown = parser.parse_known_args(words, known)
    flags = [word.split('=')[0].lstrip('-') for word in words if word.startswith('--')]
    if unknown:
        name = unknown[0].split('=')[0].lstrip('-')
        own = [name.replace('_', '-') for name in vars(args) if name not in DEFAULTS]
        alone = not unknown[0].startswith('-')
        otherwise = 'several values are written with commas, as in --grid beta=0.8,1.2' if alone else 'see --help'
        remedy = similar(f'--{name}', (f'--{n}' for n in [*DEFAULTS, *own]), otherwise)
        raise ValueError(f'{unknown[0]!r} is not an option: {remedy}')
    given = {name: value for name in DEFAULTS if (value := getattr(args, name)) is not _ABSENT}
    for name in given:
        alias = 'seed_samples' if name == 'seed_sample' else f'no-{name}'
        if flags.count(name) + flags.count(alias) > 1:
            raise ValueError(f'{name} is given twice: give it once, or its values as --grid {name}=...')
    return args, given


def read_request(args: argparse.Namespace, given: dict[str, Any]) -> tuple[Request, dict[str, Any]]:
    """What the words and the TOML file ask for, and the options of execution among it."""
    axes = [read_axis([word]) for word in args.grid] + [read_axis(words) for words in args.zip]
    vary = None if args.vary is None else tuple(args.vary.split(','))
    outname = given.pop('outname', None)
    words = Request(outname, tuple(axes), given, args.repetitions, vary, args.seed)
    request = merged(read_toml(args.sweep) if args.sweep else Request(), words)
    execution = {name: request.options.pop(name) for name in DEFAULTS if name in EXECUTION and name in request.options}
    resume = execution.pop('resume', 'auto')
    if resume != 'auto':
        raise ValueError(f'resume={resume!r} is not for sweeps: use auto, or remove the folder to begin anew')
    # The cores are for the workers.
    if execution.get('threads', 'auto') == 'auto':
        execution['threads'] = str(args.cpus or 1)
    return request, execution


def read_execution(given: dict[str, Any]) -> dict[str, Any]:
    """The options that a worker takes. Raises ValueError for one that the sweep fixes."""
    for name in given:
        if name not in EXECUTION - {'outname', 'resume'}:
            raise ValueError(f'{name} is fixed by the sweep: leave --{name} out')
    return {'threads': '1', **given}  # as the workers of a driver


def read_resources(args: argparse.Namespace) -> Resources | None:
    """What is asked of SLURM; None for the local launcher, which takes none of it."""
    names = [field.name for field in dataclasses.fields(Resources)]
    asked = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.launcher == 'slurm':
        return Resources(**asked)
    for name, value in asked.items():
        raise ValueError(f'{name}={value} is asked of SLURM: use --launcher slurm, or leave it out')
    return None


# ---------------------------------------------------------------------- values


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
        raise argparse.ArgumentTypeError(f'{text!r} is not a part: give one such as 1/4')
    return int(place), int(parts)
