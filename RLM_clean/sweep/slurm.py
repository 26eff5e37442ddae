"""The SLURM launcher: workers of a sweep as a job array, through submitit (an optional package).

Each task of the array is a worker: it takes runs until none is left. When it is asked to stop it saves its runs, has
itself requeued, and goes on from there when its turn comes again, as often as that takes:

    out of time             `notice` seconds before the end of its time limit
    preempted               in the partition's grace time, or by SLURM itself where there is none
    scancel --signal=USR1   asked to make room for a moment, by hand

`scancel` alone ends it: it saves, and does not come back. Nor does a task whose time ends before its first step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from RLM_clean.training.signals import Interruption

if TYPE_CHECKING:
    from RLM_clean.sweep.plan import Plan

# A task must hear signals from its first moment on. This module, which it loads before it can, therefore imports
# nothing slow, and names the worker instead of importing it: to load torch from a network disk can take a minute.
_WORK = 'RLM_clean.sweep.worker:work'

# Seconds by which SLURM may be early with its notice.
_CLOCK = 60

_COUNT = (lambda x: type(x) is int and x >= 1, 'a whole number, 1 or more')
_COUNT_OR_NONE = (lambda x: type(x) is int and x >= 0, 'a whole number, 0 or more')
_AMOUNT = (lambda x: type(x) in (int, float) and 0 <= x < math.inf, 'a finite number, 0 or more')
_NAME = (lambda x: isinstance(x, str), 'a name')
_SWITCH = (lambda x: isinstance(x, bool), 'true or false')


def _option(default: Any, help: str, check: tuple[Callable[[Any], bool], str]) -> Any:
    return field(default=default, metadata={'group': 'slurm', 'help': help, 'check': check, 'choices': ()})


@dataclass(frozen=True)
class Resources:
    """What each task of the array asks the cluster for. Raises ValueError with one sentence for what makes no sense."""

    partition: str = _option('', "the partition; empty: the cluster's default", _NAME)
    minutes: int = _option(60, 'the time limit; a task that has more to do is requeued', _COUNT)
    memory: float = _option(4.0, "GB of memory; 0: the cluster's default", _AMOUNT)
    gpus: int = _option(0, 'GPUs', _COUNT_OR_NONE)
    cpus: int = _option(1, 'cores', _COUNT)
    notice: int = _option(120, 'seconds before the end of the time limit at which a task saves', _COUNT)
    split: bool = _option(
        False, "give each task its runs beforehand, where nodes do not see each other's locks on files", _SWITCH
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            good, remedy = option.metadata['check']
            if not good(getattr(self, option.name)):
                raise ValueError(f'{option.name}={getattr(self, option.name)!r} is out of range: use {remedy}')
        if self.notice >= 60 * self.minutes:
            raise ValueError(
                f'notice={self.notice} leaves nothing of minutes={self.minutes}: lower it, or raise minutes'
            )


def check() -> None:
    """Raises ValueError with one sentence where submitit or SLURM is missing."""
    if importlib.util.find_spec('submitit') is None:
        raise ValueError("launcher='slurm' needs a package that is missing: pip install submitit")
    if shutil.which('sbatch') is None or shutil.which('srun') is None:
        raise ValueError("launcher='slurm' finds no sbatch: use it on a login node of a cluster, or launcher='local'")


def launch(plan: Plan, workers: int, group: int | None, resources: Resources) -> str:
    """Submits an array of `workers` tasks that train a sweep; returns its job number.

    It does not wait for them. Their output is in {folder}/slurm. All nodes must see the folder of the sweep. `group`
    is the most runs that are trained together, see `worker.work`.

    Raises ValueError with one sentence where submitit or SLURM is missing, and where SLURM refuses the jobs.
    """
    check()
    import submitit

    folder = plan.folder.absolute()
    executor = submitit.SlurmExecutor(folder=folder / 'slurm')
    executor.update_parameters(**_parameters(folder, resources))
    common = {'execution': plan.execution, 'group': group}
    tasks: list[dict[str, Any]] = [{**common, 'workers': workers}] * workers
    if resources.split:
        tasks = [{**common, 'part': (i, workers)} for i in range(1, workers + 1)]
    arguments = [(_WORK, str(folder), task, resources.notice) for task in tasks]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the error has what sbatch says
            jobs = executor.map_array(run_task, *zip(*arguments, strict=True))
    except submitit.core.utils.FailedJobError as error:
        reason = '; '.join(line.removeprefix('sbatch: error: ') for line in str(error).splitlines())
        raise ValueError(f'SLURM refuses the jobs ({reason}): ask for something else') from None
    return jobs[0].job_id.split('_')[0]


def _parameters(folder: Path, asked: Resources) -> dict[str, Any]:
    """What submitit gives to sbatch and srun."""
    home = Path(__file__).absolute().parents[2]
    parameters: dict[str, Any] = {
        'job_name': f'rlm-{folder.name}',
        'time': asked.minutes,
        'cpus_per_task': asked.cpus,
        # Since SLURM 22.05 srun does not take it from the job.
        'srun_args': [f'--cpus-per-task={asked.cpus}'],
        'signal_delay_s': asked.notice,
        # Where the cluster does not requeue jobs unless they say that they can be.
        'additional_parameters': {'requeue': True},
        # The package need not be installed, nor the job be submitted from its folder.
        'setup': [f'export PYTHONPATH={shlex.quote(str(home))}${{PYTHONPATH:+:$PYTHONPATH}}'],
    }
    if asked.partition:
        parameters['partition'] = asked.partition
    if asked.memory:
        parameters['mem'] = f'{math.ceil(1024 * asked.memory)}M'
    if asked.gpus:
        parameters['gpus_per_node'] = asked.gpus
    return parameters


# ---------------------------------------------------------------------- in the job


def run_task(work: str, folder: str, task: dict[str, Any], notice: int) -> str:
    """What a task of the array runs: a worker, named as 'module:function', with the arguments of `worker.work`.

    Returns how it ended for good.

    Interrupted, it has itself requeued and ends by SystemExit: submitit then writes no result, the job goes on.
    """
    before = _results(folder)
    with Interruption() as interruption:
        # submitit's own signal would raise an exception in the middle of a step. Runs listen for this one, and save.
        signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGUSR1))
        call = pkgutil.resolve_name(work)
        if not interruption.requested() and call(folder, **task):
            return 'done'
        # Within the interruption: a second signal must not end the process before it is requeued.
        job, state, left = _job()
        # A job that its user cancelled would come back if it were requeued while it ends; SLURM may be requeuing it.
        if state != 'RUNNING':
            _say(f'{job} is {state.lower() or "gone"}: saved, and not requeued from here')
            return 'cancelled'
        if left <= notice + _CLOCK and _results(folder) <= before:
            _say(f'{job} is out of time before its first step, and not requeued: give it more --minutes')
            return 'out of time'
        _say(f'{job} is requeued: saved, it goes on from there')
        _ask('scontrol', 'requeue', job)
    raise SystemExit


def _results(folder: str) -> set[str]:
    """The names of the files of a sweep that training makes: there are new ones when a step was taken."""
    return {name for name in os.listdir(folder) if re.search(r'((?<!_config)\.pt|_failed\.json)$', name)}


def _job() -> tuple[str, str, float]:
    """The number of this task, its state, empty where SLURM knows it no more, and the seconds that it has left."""
    import submitit

    # An array's last task has the number of the whole array as its own SLURM_JOB_ID; this is array_task.
    task = submitit.JobEnvironment().job_id
    state, _, left = _ask('squeue', '--noheader', f'--jobs={task}', '--format=%T %L').partition(' ')
    return task, state, seconds(left)


def seconds(text: str) -> float:
    """A duration as SLURM writes it (days-hours:minutes:seconds); infinite where it is not a number."""
    found = re.fullmatch(r'(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)', text.strip())
    if not found:
        return math.inf
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + rest


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a full disk must not keep a task from being requeued
        print(line, flush=True)


def _ask(*words: str) -> str:
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout.strip()
