"""Sweeps: many runs by one command, which goes on with them when it is given again.

python -m RLM_clean.sweep --outname results/my_sweep --grid beta=0.8,1.2 --grid num_features=32,64 --repetitions 8
python -m RLM_clean.sweep status results/my_sweep     how far its runs are
python -m RLM_clean.sweep collect results/my_sweep    its tables and its figure
python -m RLM_clean.sweep work results/my_sweep       one more worker, on any machine that sees the folder
python -m RLM_clean.sweep threshold --level 2 ...     how much data a level of the tree needs (docs/scaling.md)
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: the package is the folder of this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

if importlib.util.find_spec('torch') is None:
    sys.exit('sweep: error: torch is not installed: run `bash code.sh` and `source .venv/bin/activate`')

try:
    from RLM_clean.config import DEFAULTS, similar
    from RLM_clean.sweep import local, slurm, worker
    from RLM_clean.sweep.arguments import (
        make_sweep_parser,
        make_work_parser,
        parse,
        read_execution,
        read_folder,
        read_request,
        read_resources,
    )
    from RLM_clean.sweep.grid import Request
    from RLM_clean.sweep.plan import Plan, by_shape, make_plan, plan_file, read_plan, save_plan
    from RLM_clean.sweep.results import collect
    from RLM_clean.sweep.states import forget_failure, pending, state, sweep_lock, table, totals
    from RLM_clean.training import machine
    from RLM_clean.training.progress import say
except KeyboardInterrupt:  # torch takes seconds to import
    sys.exit(130)

# The most jobs that are submitted when their number is left open.
_SLURM_TASKS = 16


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0 done or saved, 1 something failed, 2 cannot be run as asked."""
    words = list(sys.argv[1:] if words is None else words)
    commands = {'status': _status, 'collect': _collect, 'work': _work, 'threshold': _threshold}
    try:
        if not words or words[0].startswith('-'):
            return _sweep(words)
        if words[0] not in commands:
            raise ValueError(f'{words[0]!r} is not a command: {similar(words[0], commands)}')
        return commands[words[0]](words[1:])
    except ValueError as error:
        return _fail(str(error), 2)
    except (OSError, local.DeadWorkersError) as error:
        return _fail(f'{error}; the same command goes on from there', 1)
    except KeyboardInterrupt:
        return _fail('stopped at once; the same command goes on from the last checkpoints', 130)


def _fail(message: str, status: int) -> int:
    say(f'sweep: error: {message}', sys.stderr)
    return status


# ---------------------------------------------------------------------- the sweep


def _sweep(words: list[str]) -> int:
    args, given = parse(make_sweep_parser(), words)
    request, execution = read_request(args, given)
    resources = read_resources(args)
    plan = _asked_plan(request, execution)
    for line in without_use(plan):
        say(line)
    if resources is None:
        for runs in by_shape(plan.runs):
            machine.check(runs[0].config)
    if args.dry_run:
        say(listing(plan))
        return 0
    if resources is not None:
        slurm.check()
    plan = begin(plan)
    if args.retry_failed:
        for run in plan.runs:
            forget_failure(run.config.outname)
    left = sum(pending(run) for run in plan.runs)
    automatic = local.default_workers(execution) if resources is None else min(max(left, 1), _SLURM_TASKS)
    workers = automatic if args.workers == 'auto' else args.workers
    say(f'{plan.folder}: {len(plan.runs)} runs, {left} of them to train, on {workers} workers')
    if resources is None:
        return _report(plan, finished=local.launch(plan, workers, args.group))
    if left:
        job = slurm.launch(plan, workers, args.group, resources)
        say(f'job {job} of SLURM; `python -m RLM_clean.sweep status {_quoted(plan)}` shows how far it is')
    return 0


def _asked_plan(request: Request, execution: dict[str, Any]) -> Plan:
    """The sweep that is asked for, with what its folder has of it; when only the folder is named, the sweep in it."""
    if request.outname and dataclasses.replace(request, outname=None) == Request() and _stored(request.outname):
        return read_plan(request.outname, execution)
    plan = make_plan(request, execution)
    return read_plan(plan.folder).extended(plan) if _stored(plan.folder) else plan


def _stored(folder: str | Path) -> bool:
    try:
        return plan_file(folder).exists()
    except OSError:  # such as a name that is too long: making the folder will say so
        return False


def _quoted(plan: Plan) -> str:
    """The folder of a sweep as a word of a command."""
    return shlex.quote(str(plan.folder))


def without_use(plan: Plan) -> list[str]:
    """A line for each option that the sweep names and none of its runs uses, such as beta where all are of the RHM.

    Values that are the defaults, all of which code.sh names, are left out.
    """
    unused = [run.config.unused() for run in plan.runs]
    return [
        f'{name} has no use in these runs: it is for {unused[0][name]}'
        for name in (*plan.varied, *(name for name, value in plan.options.items() if value != DEFAULTS[name]))
        if all(name in of_run for of_run in unused)
    ]


def listing(plan: Plan) -> str:
    """The runs of a sweep, a line each, and which of them are still to be trained."""
    lines = [f'{run.name}  {"to train" if pending(run) else "there already"}' for run in plan.runs]
    return '\n'.join([*lines, f'{plan.folder}: {len(plan.runs)} runs, {sum(map(pending, plan.runs))} to train'])


def begin(plan: Plan) -> Plan:
    """Makes the folder of a sweep and its sweep.json, or adds to what is there; returns the whole plan.

    Raises ValueError when the folder cannot be written, or has another sweep by now.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with sweep_lock(plan.folder):
            for leftover in plan.folder.glob(f'.{plan_file(plan.folder).name}.tmp-*'):  # of a killed driver
                leftover.unlink()
            # Another driver may have come between.
            if plan_file(plan.folder).exists():
                plan = read_plan(plan.folder).extended(plan)
            save_plan(plan)
            return plan
    except OSError as error:
        raise ValueError(
            f'outname={str(plan.folder)!r} is a folder that cannot be written ({error.strerror}): use another'
        ) from None


def _report(plan: Plan, finished: bool) -> int:
    """Says at the end of a sweep what became of it; returns the exit status."""
    found = [state(run, plan.folder) for run in plan.runs]
    failed = [s for s in found if s.status == 'failed']
    say(totals(found))
    if failed:
        say(f'{failed[0].run.name} failed: {failed[0].why}')
        say(f'`python -m RLM_clean.sweep status {_quoted(plan)}` lists all that failed; --retry-failed trains them')
    if not finished:
        say('saved; the same command goes on from there')
    elif any(s.status == 'done' for s in found):
        say(f'`python -m RLM_clean.sweep collect {_quoted(plan)}` writes its tables and its figure, sweep.png')
    return 1 if failed and finished else 0


# ---------------------------------------------------------------------- the other commands


def _status(words: list[str]) -> int:
    say(table(read_plan(read_folder('status', 'List the runs of a sweep and how far they are.', words))))
    return 0


def _collect(words: list[str]) -> int:
    help = 'Write runs.csv, dynamics.csv and sweep.png into the folder of a sweep.'
    folder = read_folder('collect', help, words)
    try:
        paths = collect(folder)
    except PermissionError:
        raise ValueError(f'{folder} cannot be written: copy it to another place, or use sweep.load in Python') from None
    for path in paths:
        say(str(path))
    return 0


def _work(words: list[str]) -> int:
    args, given = parse(make_work_parser(), words)
    execution = read_execution(given)
    if args.watch_input:
        worker.stop_at_end_of_input()
    worker.work(args.folder, execution, args.part, args.group, args.workers)
    return 0


def _threshold(words: list[str]) -> int:
    from RLM_clean.sweep import threshold_command  # with scipy, which no worker needs

    return threshold_command.main(words)


if __name__ == '__main__':
    sys.exit(main())
