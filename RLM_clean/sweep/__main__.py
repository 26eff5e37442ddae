"""Sweeps: many runs by one command, which goes on with them when it is given again.

python -m RLM_clean.sweep --outname results/my_sweep --grid beta=0.8,1.2 --grid num_features=32,64 --repetitions 8
python -m RLM_clean.sweep status results/my_sweep     how far its runs are
python -m RLM_clean.sweep collect results/my_sweep    its tables and its figure
python -m RLM_clean.sweep work results/my_sweep       one more worker, on any machine that sees the folder
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: the package is the folder of this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

if importlib.util.find_spec('torch') is None:
    sys.exit('sweep: error: torch is missing: `source .venv/bin/activate` after `bash code.sh`, or install it')

import torch

from RLM_clean.config import DEFAULTS, EXECUTION, Config, make_parser
from RLM_clean.sweep import local, slurm, worker
from RLM_clean.sweep.arguments import Parser, number, parse, part, positive, positive_or_auto, whole
from RLM_clean.sweep.grid import Request, merged, read_axis, read_toml
from RLM_clean.sweep.plan import Plan, make_plan, plan_file, read_plan, save_plan
from RLM_clean.sweep.results import collect
from RLM_clean.sweep.states import claim, forget_failure, pending, state, table, totals
from RLM_clean.training.ensemble import fitting_seats, most_seats
from RLM_clean.training.machine import available_cores, memory_of, resolve_device

_USAGE = """python -m RLM_clean.sweep --outname FOLDER --grid NAME=VALUES ... [--repetitions R] [--NAME VALUE ...]
       python -m RLM_clean.sweep status FOLDER
       python -m RLM_clean.sweep collect FOLDER
       python -m RLM_clean.sweep work FOLDER"""
_DESCRIPTION = """Train all runs of a grid, as many at a time as this machine allows. The same command goes on where it
was stopped or killed, and adds what its grid has more than before. outname is the folder of the sweep; the other
options are those of a run and hold for all runs."""

_GRID = 'an option and its values: beta=0.8,1.2 or beta=0..4:9 or lr=1e-4..1e-1:7log; once for each option that varies'
_ZIP = 'options that vary together: --zip num_features=32,64 embedding_dim=64,128'
_WORKERS = 'processes (default: auto, as many as the cores or the GPUs allow)'
_GROUP = 'the most runs that are trained together, for good (default: auto, as many as pay; 1: every run alone)'
_LAUNCHER = 'where workers run: local, on this machine, or slurm, as an array of jobs (default: local)'

# The most jobs that are submitted when their number is left open.
_SLURM_TASKS = 16
# Bytes that a GPU has where none can be asked, as on a login node.
_GPU_MEMORY = 16 * 2**30


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0 done or saved, 1 something failed, 2 cannot be run as asked."""
    words = list(sys.argv[1:] if words is None else words)
    commands = {'status': _status, 'collect': _collect, 'work': _work}
    try:
        if words and words[0] in commands:
            return commands[words[0]](words[1:])
        return _sweep(words)
    except ValueError as error:
        return _fail(str(error), 2)
    except (OSError, local.DeadWorkersError) as error:
        return _fail(f'{error}; the same command goes on from there', 1)
    except KeyboardInterrupt:
        return _fail('stopped at once; the same command goes on from the last checkpoints', 130)


def _fail(message: str, status: int) -> int:
    print(f'sweep: error: {message}', file=sys.stderr)
    return status


# ---------------------------------------------------------------------- the sweep


def _sweep(words: list[str]) -> int:
    args, given = parse(make_sweep_parser(), words)
    request, execution = read_request(args, given)
    plan = _asked_plan(request, execution, args.group)
    resources = _resources(args)
    left = sum(pending(member) for member in plan.members)
    if args.workers != 'auto':
        workers = args.workers
    else:
        workers = local.default_workers(execution) if resources is None else min(max(left, 1), _SLURM_TASKS)
    largest = local.default_group(plan.members, workers)
    limit = group_limit(execution, resources, most=args.group is not None)
    if args.dry_run:
        print(listing(plan))
        return 0
    if resources is not None:
        slurm.check()
    plan = begin(plan, largest, limit)
    if args.retry_failed:
        for member in plan.members:
            forget_failure(member.config.outname)
        left = sum(pending(member) for member in plan.members)
    print(f'{plan.folder}: {len(plan.members)} runs, {left} of them to train, on {workers} workers', flush=True)
    if resources is None:
        return _report(plan, finished=local.launch(plan, workers))
    if left:
        job = slurm.launch(plan, workers, resources)
        print(f'job {job} of SLURM; `python -m RLM_clean.sweep status {plan.folder}` shows how far it is')
    return 0


def listing(plan: Plan) -> str:
    """The runs of a sweep, a line each, and which of them are still to be trained."""
    lines = [f'{m.name}  {"to train" if pending(m) else "there already"}' for m in plan.members]
    return '\n'.join([*lines, f'{plan.folder}: {len(plan.members)} runs, {sum(map(pending, plan.members))} to train'])


def _report(plan: Plan, finished: bool) -> int:
    """Says at the end of a sweep what became of it; the exit status."""
    found = [state(member, plan.folder) for member in plan.members]
    failed = [s for s in found if s.status == 'failed']
    print(totals(found))
    if failed:
        print(f'{failed[0].member.name} failed: {failed[0].why}')
        print(f'`python -m RLM_clean.sweep status {plan.folder}` lists all that did, --retry-failed tries them again')
    if not finished:
        print('saved; the same command goes on from there')
    return 1 if failed and finished else 0


def make_sweep_parser() -> argparse.ArgumentParser:
    """The parser of a sweep's command line: the options of a run, of the sweep, and of SLURM."""
    parser = make_parser('sweep')
    parser.usage, parser.description = _USAGE, _DESCRIPTION
    add = parser.add_argument_group('sweep').add_argument
    values = 'NAME=VALUES'
    add('--grid', action='append', default=[], metavar=values, help=_GRID)
    add('--zip', action='append', nargs='+', default=[], metavar=values, help=_ZIP)
    add('--repetitions', type=positive, metavar='R', help='repeat each point of the grid with R other seeds')
    add('--vary', metavar='SEEDS', help='the seeds that do, some of rules,sample,model (default: all of them)')
    add('--seed', type=whole, metavar='S', help='what the seeds of repetitions are derived from (default: 0)')
    add('--sweep', metavar='FILE', help='read all this from a TOML file; what is given beside it comes first')
    add('--workers', type=positive_or_auto, default='auto', metavar='N', help=_WORKERS)
    add('--group', type=positive, metavar='N', help=_GROUP)
    add('--launcher', choices=('local', 'slurm'), default='local', metavar='', help=_LAUNCHER)
    add('--dry-run', action='store_true', help='list the runs, their groups and an estimate of the time; write nothing')
    add('--retry-failed', action='store_true', help='try again what failed')
    add = parser.add_argument_group('what each worker asks of SLURM (--launcher slurm)').add_argument
    readers = {int: whole, float: number}
    for field in dataclasses.fields(slurm.Resources):
        flag, help = f'--{field.name}', f'{field.metadata["help"]} (default: {field.default!r})'
        if isinstance(field.default, bool):
            add(flag, action=argparse.BooleanOptionalAction, default=None, help=help)
        else:
            add(flag, type=readers.get(type(field.default), str), metavar='', help=help)
    return parser


def _resources(args: argparse.Namespace) -> slurm.Resources | None:
    """What is asked of SLURM; None for the local launcher, which takes none of it."""
    names = [field.name for field in dataclasses.fields(slurm.Resources)]
    asked = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.launcher == 'slurm':
        return slurm.Resources(**asked)
    for name, value in asked.items():
        raise ValueError(f'{name}={value} is asked of SLURM: use --launcher slurm, or leave it out')
    return None


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


def _asked_plan(request: Request, execution: dict[str, Any], group: int | None) -> Plan:
    """The sweep that is asked for, with what its folder has of it already; with nothing asked for, that alone."""
    if request.outname and dataclasses.replace(request, outname=None) == Request() and _stored(request.outname):
        plan = read_plan(request.outname, execution)
        return plan.extended(dataclasses.replace(plan, group=group))
    plan = make_plan(request, execution, group)
    return read_plan(plan.folder).extended(plan) if _stored(plan.folder) else plan


def _stored(folder: str | Path) -> bool:
    try:
        return plan_file(folder).exists()
    except OSError:  # such as a name that is too long: to make the folder says so
        return False


def group_limit(execution: dict[str, Any], resources: slurm.Resources | None, most: bool) -> Callable[[Config], int]:
    """The number of runs like one that a worker is to train together; with `most`, as many as its memory holds."""
    device = resolve_device(execution.get('device', 'auto'))
    memory = memory_of(device)
    share = memory / 2 if device.type == 'cuda' else memory / available_cores() / 2
    if resources is not None and resources.gpus:
        share = (memory if device.type == 'cuda' else _GPU_MEMORY) / 2
        device = torch.device('cuda')
    elif resources is not None and device.type == 'cpu' and resources.memory:
        share = resources.memory * 2**30 / 2
    most = most and device.type != 'mps'
    return lambda config: fitting_seats(config, share) if most else most_seats(config, device, share)


def begin(plan: Plan, largest: int, limit: Callable[[Config], int]) -> Plan:
    """Makes the folder of a sweep and its sweep.json, or adds to what is there; the whole plan, in groups.

    Raises ValueError when the folder cannot be written, or has another sweep by now.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        while True:
            with claim(plan.folder, plan_file(plan.folder).name) as mine:
                if mine:
                    for leftover in plan.folder.glob(f'.{plan_file(plan.folder).name}.tmp-*'):  # of a killed driver
                        leftover.unlink()
                    # Another driver may have come between.
                    if plan_file(plan.folder).exists():
                        plan = read_plan(plan.folder).extended(plan)
                    plan = plan.grouped(largest, limit)
                    save_plan(plan)
                    return plan
            time.sleep(0.1)
    except OSError as error:
        raise ValueError(
            f'outname={str(plan.folder)!r} is a folder that cannot be written ({error.strerror}): use another'
        ) from None


# ---------------------------------------------------------------------- the other commands


def _status(words: list[str]) -> int:
    print(table(read_plan(_folder('status', 'list the runs of a sweep and how far they are', words))))
    return 0


def _collect(words: list[str]) -> int:
    for path in collect(
        _folder('collect', 'write runs.csv, dynamics.csv and sweep.png into the folder of a sweep', words)
    ):
        print(path)
    return 0


def _work(words: list[str]) -> int:
    parser = make_parser('sweep')
    parser.usage, parser.description = 'python -m RLM_clean.sweep work FOLDER', worker.work.__doc__
    parser.add_argument('folder', metavar='FOLDER')
    add = parser.add_argument_group('worker').add_argument
    add('--alone', type=positive, action='append', default=[], metavar='I', help='train the runs of a group in turn')
    add('--part', type=part, default=(1, 1), metavar='I/N', help='take only every N-th group, from the I-th on')
    add('--watch-input', action='store_true', help='save and stop when the standard input ends')
    args, execution = parse(parser, words)
    for name in execution:
        if name not in EXECUTION - {'outname', 'resume'}:
            raise ValueError(f'{name} is what the sweep says it is: leave --{name} out')
    if args.watch_input:
        worker.stop_at_end_of_input()
    execution.setdefault('threads', '1')  # as the workers of a driver have
    worker.work(args.folder, execution, args.part, args.alone)
    return 0


def _folder(command: str, help: str, words: list[str]) -> str:
    parser = Parser(prog=f'python -m RLM_clean.sweep {command}', description=help, allow_abbrev=False)
    parser.add_argument('folder', metavar='FOLDER', help='the folder of the sweep')
    return parser.parse_args(words).folder


if __name__ == '__main__':
    sys.exit(main())
