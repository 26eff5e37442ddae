"""The command of thresholds: python -m RLM_clean.sweep threshold --level 2 --grid num_features=8,16 ...

Its words are those of a sweep, and what is sought. It writes a table and a figure into the folder of the sweep.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from RLM_clean.config import format_value
from RLM_clean.sweep import local
from RLM_clean.sweep.arguments import make_sweep_parser, number, parse, positive, read_request, read_resources
from RLM_clean.sweep.criteria import CRITERIA, Criterion, make_criterion
from RLM_clean.sweep.plan import SEEDS, plan_file
from RLM_clean.sweep.results import write_csv
from RLM_clean.sweep.states import forget_failure, pending
from RLM_clean.sweep.thresholds import Found, ThresholdSweep, make_search
from RLM_clean.training import machine
from RLM_clean.training.progress import say

_USAGE = """python -m RLM_clean.sweep threshold --outname FOLDER --level L [--grid NAME=VALUES ...]
       [--repetitions R] [--NAME VALUE ...]"""
_DESCRIPTION = """Find the training-set size at which a level of the tree is learnt, for each language of a grid,
by bisection over seeds that are trained together. The same command goes on where it was stopped or killed. The other
options are those of a sweep: see docs/sweeps.md and docs/scaling.md."""


def main(words: Sequence[str]) -> int:
    """Runs the command; returns the exit status: 0 done or saved, 1 where a language failed.

    Raises ValueError with one sentence for what cannot be run.
    """
    args, sweep = read_words(words)
    for run in sweep.plan({}).runs:
        machine.check(run.config)
    if args.dry_run:
        say(table(sweep.found()))
        return 0
    if args.retry_failed:
        for run in sweep.plan({}).runs:
            forget_failure(run.config.outname)
    workers = local.default_workers(sweep.execution) if args.workers == 'auto' else args.workers
    left = sum(pending(run) for run in sweep.plan({}).runs)
    say(f'{sweep.folder}: {len(sweep.points)} languages, {sweep.seeds} seeds each, on {workers} workers; '
        f'{left} runs to train first')  # fmt: skip
    found = sweep.run(lambda plan: local.launch(plan, workers, args.group), workers)
    if found is None:
        say('saved; the same command goes on from there')
        return 0
    say(table(found))
    for path in write(sweep, found):
        say(str(path))
    return 1 if any(row.threshold is None for row in found) else 0


def read_words(words: Sequence[str]) -> tuple[argparse.Namespace, ThresholdSweep]:
    """What a command line asks for: the options of the command, and the search.

    `found` of the search says what is known of it by now. Raises ValueError with one sentence for what cannot be run.
    """
    args, given = parse(_make_parser(), list(words))
    return args, read_sweep(args, given)


def _make_parser() -> argparse.ArgumentParser:
    """The parser of a sweep, with what is sought."""
    parser = make_sweep_parser()
    parser.usage, parser.description = _USAGE, _DESCRIPTION
    add = parser.add_argument_group('threshold').add_argument
    add('--level', type=positive, metavar='L', help='the level that is to be learnt: pairs of tokens are level 1')
    add('--criterion', choices=CRITERIA, default='step', metavar='', help=f'how it shows: {", ".join(CRITERIA)}')
    add('--fraction', type=number, metavar='F', help='of the step or of the probe that may be left (default: 0.5)')
    add('--excess', type=number, metavar='X', help='instead of a level: the least excess is at most X nats')
    add('--start', type=positive, default=1024, metavar='P', help='the first size (default: 1024)')
    add('--largest', type=positive, default=2**20, metavar='P', help='the largest size (default: 2^20)')
    add('--resolution', type=number, default=2**0.25, metavar='R', help='ratio of the last two sizes (default: 2^0.25)')
    return parser


def read_sweep(args: argparse.Namespace, given: dict[str, Any]) -> ThresholdSweep:
    """What the words ask for. Raises ValueError with one sentence for what cannot be run."""
    request, execution = read_request(args, given)
    if args.launcher != 'local':
        raise ValueError(f'launcher={args.launcher} is not for thresholds, which ask for sizes one after another: '
                         'use local, and add workers by `work`')  # fmt: skip
    read_resources(args)
    if not request.outname:
        raise ValueError('outname is missing: give the folder of the search, as in --outname results/level2')
    folder = Path(request.outname)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'outname={request.outname!r} is a file, but a search has a folder: use another name')
    criterion = make_criterion(args.level, args.criterion, args.fraction, args.excess)
    search = make_search(criterion, args.start, args.largest, args.resolution)
    repetitions = 4 if request.repetitions is None else request.repetitions
    vary = tuple(SEEDS) if request.vary is None else request.vary
    return ThresholdSweep(
        folder, request.axes, request.options, criterion, search, repetitions, vary, request.seed or 0, execution
    )


# ---------------------------------------------------------------------- what comes out


def table(found: Sequence[Found]) -> str:
    """The thresholds, a line for each language, with their intervals and the sizes that were trained."""
    names = list(found[0].point) or ['']
    rows = [[*names, 'P*', '95% low', 'high', 'median', 'sizes', '']]
    for row in found:
        values = [format_value(value) for value in row.point.values()] or ['all runs']
        if row.threshold is None:
            rows.append([*values, '', '', '', '', '', row.why])
            continue
        t = row.threshold
        numbers = ['-' if math.isnan(x) else f'{x:.4g}' for x in (t.value, *t.interval, t.median)]
        rows.append([*values, *numbers, str(len(t.measured)), _remark(row)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return '\n'.join(
        '  '.join([*(text.rjust(width) for text, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _remark(row: Found) -> str:
    """Which seeds have no threshold of their own: those that meet the criterion at all sizes, or at none."""
    assert row.threshold is not None
    sizes, seeds = list(row.threshold.measured), row.threshold.per_seed
    remarks = [
        f'{number} of {len(seeds)} seeds {what}'
        for number, what in (
            (seeds.count(0), f'already at {sizes[0]}, the smallest size'),
            (seeds.count(math.inf), f'not up to {sizes[-1]}, the largest size'),
        )
        if number
    ]
    return '; '.join(remarks)


def write(sweep: ThresholdSweep, found: Sequence[Found]) -> list[Path]:
    """Writes threshold_{criterion}.csv, ..._values.csv and ....png into the folder of a sweep; their paths.

    The first has a row for each language, the second one for each run with its value. All are written atomically.
    """
    from RLM_clean.plots.scaling import thresholds
    from RLM_clean.plots.style import save

    name = f'threshold_{sweep.criterion}'
    paths = [plan_file(sweep.folder).with_name(f'{name}{ending}') for ending in ('.csv', '_values.csv', '.png')]
    rows = [_row(row, sweep.criterion) for row in found]
    write_csv(paths[0], rows, _columns(rows))
    rows = [
        {**row.point, 'train_size': P, 'repetition': r, 'value': value}
        for row in found if row.threshold
        for P, values in row.threshold.measured.items()
        for r, value in enumerate(values, start=1)
    ]  # fmt: skip
    write_csv(paths[1], rows, _columns(rows))
    drawn = [(row.point, row.threshold) for row in found if row.threshold is not None]
    if not drawn:
        return paths[:2]
    save(thresholds(drawn, sweep.criterion.bound, sweep.criterion.axis), paths[2])
    return paths


def _row(row: Found, criterion: Criterion) -> dict[str, Any]:
    """A language as a row of the table file."""
    head = {**row.point, 'criterion': criterion.name, 'level': criterion.level, 'bound': criterion.bound}
    if row.threshold is None:
        return {**head, 'why': row.why}
    t = row.threshold
    seeds = {f'seed_{r}': P for r, P in enumerate(t.per_seed, start=1)}
    low, high = t.interval
    return {**head, 'threshold': t.value, 'low': low, 'high': high, 'median': t.median, **seeds, 'why': _remark(row)}


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names in the rows, in their order; `why` last, also where a language without a threshold comes first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return sorted(names, key=lambda name: name == 'why')
