"""How far runs are: claims and deaths, failures, and the table."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path
from unittest import mock

import pytest
from small_runs import train
from small_sweeps import EXECUTION, die_holding, make_sweep, statuses

from RLM_clean import sweep
from RLM_clean.runs import locks
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.locks import is_locked
from RLM_clean.sweep import states
from RLM_clean.sweep.plan import Plan, save_plan


def write_log(files: RunFiles, *steps: int) -> None:
    record = {'trainloss': 1.0, 'testloss': 1.0, 'testacc': 0.5, 'excess': 1.0, 'lr': 0.1}
    files.rewrite_log([{'t': step, **record, 'seconds': step / 10} for step in steps])


# ---------------------------------------------------------------------- claims


def test_a_claim_names_its_process_and_ends_with_it(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    run = plan.runs[0]
    pid = die_holding(plan.folder, [run])
    assert states.holder(plan.folder, run.name) == (pid, socket.gethostname(), 0, -1)
    assert not is_locked(states.claim_file(plan.folder, run.name))
    with states.claim(plan.folder, run) as mine:
        found = states.holder(plan.folder, run.name)
        assert mine and found is not None and found[:2] == (os.getpid(), socket.gethostname())
        assert states.is_busy(plan.folder, run)
        with states.claim(plan.folder, run) as again:
            assert not again
    assert states.holder(plan.folder, run.name) is None and not states.is_busy(plan.folder, run)


def test_deaths_of_workers_are_counted_until_the_run_moves_on(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    run = plan.runs[0]
    files = RunFiles(run.config.outname)
    assert states.deaths(plan.folder, run) == 0
    for number in (1, 2):
        die_holding(plan.folder, [run])
        assert states.deaths(plan.folder, run) == number
    write_log(files, 0)
    assert states.deaths(plan.folder, run) == 1
    die_holding(plan.folder, [run])
    assert states.deaths(plan.folder, run) == 2
    with states.claim(plan.folder, run) as mine:  # and let go
        assert mine
    assert states.deaths(plan.folder, run) == 0
    die_holding(plan.folder, [run])
    states.forget_deaths(plan.folder, run.name)
    assert states.deaths(plan.folder, run) == 0


@pytest.mark.parametrize('content', ['', '{', 'null', '[1]', '{"pid": 1}', '{"pid": "x", "host": [1]}'])
def test_a_claim_whose_content_is_damaged_names_nobody(content: str, tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    path = states.claim_file(plan.folder, 'beta1')
    path.parent.mkdir()
    path.write_text(content)
    assert states.holder(plan.folder, 'beta1') is None and states.deaths(plan.folder, plan.runs[0]) == 0


def test_a_claim_of_an_earlier_version_counts_as_one_death(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    path = states.claim_file(plan.folder, 'beta1')
    path.parent.mkdir()
    path.write_text(json.dumps({'pid': 7, 'host': 'elsewhere'}))
    assert states.deaths(plan.folder, plan.runs[0]) == 1


def test_to_look_at_a_sweep_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment, in which a worker would find a free run taken."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    die_holding(plan.folder, plan.runs)
    (plan.folder / 'beta1_config.pt').touch()

    def refuse(*_: object) -> bool:
        raise AssertionError('a lock was taken')

    monkeypatch.setattr(locks, '_lock', refuse)
    with pytest.raises(AssertionError), locks.try_lock(states.claim_file(plan.folder, 'beta1')):
        pass
    assert statuses(plan) == ['interrupted', 'waiting']
    assert sweep.main(['status', str(plan.folder)]) == 0
    assert [states.pending(run) for run in plan.runs] == [True, True]


def test_a_run_that_ended_earlier_than_it_is_asked_to_is_not_done(tmp_path: Path) -> None:
    """Such as one that was trained there before the sweep; one that stopped early is done."""
    short = make_sweep(tmp_path / 'sweep', 'beta=1,2', max_iters=8)
    for run in short.runs:
        train(run.config)
    assert statuses(short) == ['done', 'done'] and not any(map(states.pending, short.runs))
    plan = Plan(short.folder, short.axes, {**short.options, 'max_iters': 24}, execution=EXECUTION)
    assert statuses(plan) == ['interrupted', 'interrupted'] and all(map(states.pending, plan.runs))
    save_plan(plan)
    assert [run.status for run in sweep.load(plan.folder)] == ['interrupted', 'interrupted']
    for run in plan.runs:
        train(run.config)
    assert statuses(plan) == ['done', 'done'] and [run.records[-1]['t'] for run in sweep.load(plan.folder)] == [24, 24]
    early = make_sweep(tmp_path / 'early', 'beta=1', max_iters=400, loss_threshold=10.0)
    train(early.runs[0].config)
    assert statuses(early) == ['done'] and states.state(early.runs[0], early.folder).step < 400


# ---------------------------------------------------------------------- failures and the table


def test_a_failure_whose_file_is_damaged_is_still_a_failure(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    states.failure_file(plan.runs[0].config.outname).write_text('{')
    assert statuses(plan) == ['failed', 'waiting'] and not states.pending(plan.runs[0])


def test_the_time_left_of_a_run_is_that_of_all_that_its_process_trains(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3', max_iters=2000)
    for run in plan.runs:
        write_log(RunFiles(run.config.outname), 1000)
    with contextlib.ExitStack() as claims:
        for run in plan.runs[:2]:
            claims.enter_context(states.claim(plan.folder, run))
        with mock.patch('os.getpid', lambda: 1):  # as another process would
            claims.enter_context(states.claim(plan.folder, plan.runs[2]))
        rows = {line.split()[0]: line.split()[1:] for line in states.table(plan).splitlines()}
    assert rows['beta1'][:4] == rows['beta2'][:4] == ['running', '1000/2000', '50%', '0:03:20']
    assert rows['beta3'][:4] == ['running', '1000/2000', '50%', '0:01:40']
    assert '0:05:00' in rows['3']  # of work, in all


def test_the_table_has_every_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3,4,5')
    done, running, interrupted, failed, _ = plan.runs
    for run in (done, running, interrupted):
        train(run.config)
    for run in (running, interrupted):
        files = RunFiles(run.config.outname)
        files.final.unlink()
        files.rewrite_log(files.read_log()[:-3])
    with open(RunFiles(running.config.outname).log, 'a') as file:
        file.write('{"t": 23, "trainl')  # what a kill leaves
    states.record_failure(failed.config.outname, 'it had to')
    with states.claim(plan.folder, running):
        assert sweep.main(['status', str(plan.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert rows['beta1'][:3] == ['done', '24/24', '100%']
    assert rows['beta2'][:3] == ['running', '16/24', '67%'] and re.fullmatch(r'\d+:\d\d:\d\d', rows['beta2'][3])
    assert rows['beta3'][:3] == ['interrupted', '16/24', '67%']
    assert rows['beta4'] == ['failed', 'it', 'had', 'to'] and rows['beta5'] == ['waiting']
    assert lines[-1].startswith('5 runs: 1 done, 1 running, 1 interrupted, 1 waiting, 1 failed; about 0:00:0')
