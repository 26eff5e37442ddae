"""Small sweeps in this process, and the runs that they should have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY, difference, train

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.storage import load
from RLM_clean.sweep import states
from RLM_clean.sweep.grid import read_axis
from RLM_clean.sweep.plan import Plan, PlannedRun, save_plan

EXECUTION = {'device': 'cpu', 'threads': '1'}


def make_sweep(folder: Path, *grid: str, repetitions: int | None = None, **options: Any) -> Plan:
    """A sweep of tiny runs, with its file."""
    folder.mkdir(exist_ok=True)
    axes = tuple(read_axis(words.split()) for words in grid)
    left_out = {*EXECUTION, *(name for axis in axes for name in axis.names)}
    shared = {name: value for name, value in {**TINY, **options}.items() if name not in left_out}
    plan = Plan(folder, axes, shared, repetitions, execution=EXECUTION)
    save_plan(plan)
    return plan


def statuses(plan: Plan) -> list[str]:
    """The status of each run, in the order of the plan."""
    return [states.state(run, plan.folder).status for run in plan.runs]


def die_holding(folder: Path, runs: Sequence[PlannedRun]) -> int:
    """Has a process take runs and die at once; the number of that process."""
    pid = os.fork()
    if pid == 0:
        claims = [states.claim(folder, run) for run in runs]
        for claim in claims:
            claim.__enter__()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    return pid


def assert_finished(plan: Plan, folder: Path, exact: bool = False, every: int = 1) -> None:
    """Every run has the records and the weights of the same run trained alone in one go: to rounding, or bit for bit.

    The runs for comparison are made in `folder`; with `every` above 1 only each so many of them are, to save time.
    """
    alone = Plan(folder, plan.axes, plan.options, plan.repetitions, plan.vary, plan.seed, EXECUTION)
    for run, other in list(zip(plan.runs, alone.runs, strict=True))[::every]:
        train(other.config)
        found, expected = (load(RunFiles(one.config.outname).final) for one in (run, other))
        if exact:
            assert difference(found, expected) is None, run.name
        ours, theirs = (content['output']['dynamics'] for content in (found, expected))
        assert [record['t'] for record in ours] == [record['t'] for record in theirs]
        assert [r['testloss'] for r in ours] == pytest.approx([r['testloss'] for r in theirs], rel=1e-3)
        assert RunFiles(run.config.outname).read_log() == ours
        assert not RunFiles(run.config.outname).previous.exists() and not RunFiles(run.config.outname).leftovers()
