"""Sweeps as users meet them: commands, processes, kills, failures; and what a worker does with each run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers import ROOT, environment
from small_runs import TINY, difference, quiet, train

from RLM_clean import sweep
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.storage import load
from RLM_clean.sweep import local, states, worker
from RLM_clean.sweep.grid import read_axis
from RLM_clean.sweep.plan import Plan, read_plan, save_plan
from RLM_clean.training import ensemble, lifecycle
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.lifecycle import Outcome

# The longest that a process of these tests may take, on a machine that has other things to do.
PATIENCE = 300


def words(folder: Path, *more: str, **options: Any) -> list[str]:
    """The command line of a sweep of tiny runs; what `more` gives or varies is left out before it."""
    given = {name.removeprefix('--').split('=')[0] for name in more}
    values = {'outname': folder, **TINY, **options}
    return [*(f'--{name}={value}' for name, value in values.items() if name not in given), *more]


def start(line: list[str], **kinds: Any) -> subprocess.Popen[str]:
    """A driver as a process of its own."""
    return subprocess.Popen(
        [sys.executable, '-m', 'RLM_clean.sweep', *line],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, **kinds,
    )  # fmt: skip


def finish(line: list[str]) -> tuple[int, str]:
    """The status and the output of a driver."""
    process = start(line)
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def make(folder: Path, *grid: str, repetitions: int | None = None, group: int = 1, **options: Any) -> Plan:
    """A sweep of tiny runs in groups of a size, with its file."""
    folder.mkdir(exist_ok=True)
    shared = {name: value for name, value in {**TINY, **options}.items() if name not in ('device', 'threads')}
    axes = tuple(read_axis(group.split()) for group in grid)
    plan = Plan(folder, axes, shared, repetitions, execution={'device': 'cpu', 'threads': '1'})
    plan = plan.grouped(group, lambda config: group)
    save_plan(plan)
    return plan


def log_lines(folder: Path) -> Iterator[tuple[str, str]]:
    """What workers said of the runs: name and what became of it, in the order of time."""
    lines = [line for log in (folder / 'logs').glob('*') for line in log.read_text().splitlines()]
    names = {member.name for member in read_plan(folder).members}
    for line in sorted(lines, key=lambda line: line[:19]):
        found = re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([^ :]*): (.*)', line)
        if found and found[1] in names:
            yield found[1], found[2]


def wait_for(condition: Callable[[], Any]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, 'it does not come'
        time.sleep(0.05)


def nobody_works(folder: Path) -> bool:
    """Whether no process holds a run of a sweep."""
    claims = folder / 'claims'
    return not claims.exists() or not any(states.held(path) for path in claims.iterdir())


def trains_or_ended(driver: subprocess.Popen[str], folder: Path) -> bool:
    """Whether a worker of this very driver trains a run, or the driver has ended."""
    if driver.poll() is not None:
        return True
    said = [line for log in folder.glob(f'logs/*_{driver.pid}_*.txt') for line in log.read_text().splitlines()]
    taken = {line.split()[2].rstrip(':') for line in said if line.endswith(': taken')}
    # A run that goes on says so before its next record.
    steps = [int(found[1]) for line in said if (found := re.search(r'going on from step (\d+)', line))]
    records = [record['t'] for name in taken if (record := states.last_record(folder / f'{name}_log.jsonl'))]
    return bool(records) and max(records) > max(steps, default=0)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process without their pictures, which take longer than all the rest."""
    monkeypatch.setattr(lifecycle, 'save_learning_curve', lambda *_: None)


# ---------------------------------------------------------------------- killed


def undisturbed(plan: Plan, folder: Path) -> Plan:
    """The same sweep, trained in this process in one go."""
    calm = dataclasses.replace(plan, folder=folder, execution={'device': 'cpu', 'threads': '1'})
    folder.mkdir()
    save_plan(calm)
    with mock.patch.object(lifecycle, 'save_learning_curve'):
        assert worker.work(folder, calm.execution)
    return calm


def assert_undisturbed(plan: Plan, folder: Path) -> None:
    """Every run has the records and the weights of one that was left in peace, and none was trained twice."""
    for member, calm in zip(plan.members, undisturbed(plan, folder / 'calm').members, strict=True):
        files = RunFiles(member.config.outname)
        expected = load(RunFiles(calm.config.outname).final)
        found = difference(load(files.final), expected)
        assert found is None, f'{member.name}: {found}'
        assert difference(files.read_log(), expected['output']['dynamics']) is None
        assert not files.previous.exists() and not files.leftovers()
    ended: set[str] = set()
    for name, what in log_lines(plan.folder):
        assert 'another process' not in what
        assert name not in ended, f'{name} was taken again when it was done'
        if what.startswith('done'):
            ended.add(name)


@pytest.mark.slow
def test_a_driver_that_is_killed_ten_times_loses_nothing(tmp_path: Path) -> None:
    """By SIGKILL, at random moments while groups are trained; every other time its workers are killed with it."""
    draw = random.Random(3)
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=0.8,1.6,2.4', '--repetitions', '4', '--workers', '2', max_iters=4000)
    for kill in range(10):
        process = start(line)
        wait_for(functools.partial(trains_or_ended, process, folder))
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f'the sweep was over after {kill} kills'
        if kill % 2:
            holders = {states.holder(folder, member.name) for member in read_plan(folder).members} - {None}
            for pid, _ in filter(None, holders):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    assert finish(line)[0] == 0
    plan = read_plan(folder)
    assert [len(group) for group in plan.groups] == [6, 6]
    assert [what for _, what in log_lines(folder) if what.startswith('interrupted')]
    assert_undisturbed(plan, tmp_path)


@pytest.mark.slow
def test_workers_save_and_stop_when_their_driver_dies(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=1,2', '--workers', '2', max_iters=10**6, compile='off')
    process = start(line)
    logs = [folder / f'beta{beta}_log.jsonl' for beta in (1, 2)]
    wait_for(lambda: all(states.last_record(log) for log in logs))
    process.kill()
    process.communicate()
    wait_for(lambda: nobody_works(folder))
    assert sorted(what for name, what in log_lines(folder) if 'interrupted' in what)
    assert {what.split()[0] for _, what in log_lines(folder)} == {'taken', 'interrupted'}
    for beta in (1, 2):
        files = RunFiles(folder / f'beta{beta}')
        assert 'resume' in load(files.checkpoint(files.steps()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_driver_saves_and_stops_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=1,2', max_iters=2000)
    process = start(line)
    wait_for(lambda: states.last_record(folder / 'beta1_log.jsonl'))
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and out.endswith('saved; the same command goes on from there\n')
    assert (nobody_works(folder) and '1 interrupted' in out) or '2 interrupted' in out
    status, out = finish(line)
    assert status == 0 and out.endswith('2 runs: 2 done\n')
    plan = read_plan(folder)
    assert_undisturbed(plan, tmp_path)
    # And once more: nothing is left to do.
    status, out = finish(line)
    assert status == 0 and '2 runs, 0 of them to train' in out


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    """Also workers that do not come to an end."""
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)'
    timers = [threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)) for seconds in (2, 3)]
    started: list[subprocess.Popen[bytes]] = []
    original = local.Crew._start

    def keep(crew: local.Crew) -> None:
        original(crew)
        started.append(crew.workers[max(crew.workers)])

    with mock.patch.object(worker, 'command', fake_worker(code)), mock.patch.object(local.Crew, '_start', keep):
        for timer in timers:
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            local.launch(plan, 2, quiet)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_two_drivers_of_one_sweep_share_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=1,2,3', '--repetitions', '2', '--workers', '2', '--group', '2', max_iters=600)
    drivers = [start(line), start(line)]
    answers = [driver.communicate(timeout=PATIENCE)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], answers
    assert all(answer.endswith('6 runs: 6 done\n') for answer in answers)
    plan = read_plan(folder)
    assert_undisturbed(plan, tmp_path)
    taken = [name for name, what in log_lines(folder) if what == 'taken']
    assert sorted(taken) == sorted(member.name for member in plan.members)


# ---------------------------------------------------------------------- failures


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'lr=1e-3,1e6,1e-2', '--workers', '1', max_iters=100)
    status, out = finish(line)
    assert status == 1 and '3 runs: 2 done, 1 failed' in out and 'Traceback' not in out
    assert re.search(r'lr1e\+06 failed: the (training|test) loss is nan at step \d+: lower lr=1e\+06', out)
    table = states.table(read_plan(folder))
    assert re.search(r'lr1e\+06 +failed .* lower lr=1e\+06', table) and table.endswith('3 runs: 2 done, 1 failed')
    # It is not tried again, unless it is asked for; the files that were good are there.
    assert '0 of them to train' in finish(line)[1]
    when = states.failure_file(folder / 'lr1e+06').stat().st_mtime_ns
    status, out = finish([*line, '--retry-failed'])
    assert status == 1 and '1 of them to train' in out
    assert states.failure_file(folder / 'lr1e+06').stat().st_mtime_ns > when
    assert RunFiles(folder / 'lr1e+06').steps()


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (MemoryError(), 'memory ran out: use fewer workers, or another outname with a smaller '),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 'memory ran out: use fewer workers'),
        (OSError(28, 'No space left on device'), '[Errno 28] No space left on device'),
        (ValueError('lr=1 differs from 2 in x_config.pt: use that'), 'lr=1 differs from 2 in x_config.pt: use that'),
        (RuntimeError('shapes\ndo not fit'), 'RuntimeError: shapes do not fit'),
    ],
)
@pytest.mark.parametrize('group', [1, 3])
def test_whatever_a_run_fails_by_the_others_go_on(
    error: Exception, said: str, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    """Trained alone or together."""
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=group)

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def fail(config: Config, *rest: Any, **kinds: Any) -> Any:
            if config.beta == 2:
                raise error
            return original(config, *rest, **kinds)

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, 'train', failing(lifecycle.train))
        patch.setattr(ensemble, 'open_run', failing(ensemble.open_run))
        assert worker.work(plan.folder, plan.execution)
    found = [states.state(member, plan.folder) for member in plan.members]
    assert [s.status for s in found] == ['done', 'failed', 'done'] and said in found[1].why
    assert '\n' not in found[1].why
    # A try that succeeds leaves nothing of the failure.
    states.forget_failure(plan.members[1].config.outname)
    assert worker.work(plan.folder, plan.execution)
    assert [states.state(member, plan.folder).status for member in plan.members] == ['done'] * 3
    assert not list(plan.folder.glob('*_failed.json'))


def test_a_failure_whose_file_is_damaged_is_one_still(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    states.failure_file(plan.members[0].config.outname).write_text('{')
    assert states.state(plan.members[0], plan.folder).status == 'failed' and not states.pending(plan.members[0])


# ---------------------------------------------------------------------- who trains what


@pytest.mark.parametrize('group', [1, 3])
def test_a_run_that_another_process_holds_is_left_alone(group: int, tmp_path: Path, no_pictures: None) -> None:
    """By the claim of the sweep, which is there before the run is, or by the lock of the run, which main.py takes."""
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=group)
    began = plan.members[1].config
    train(began)
    files = RunFiles(began.outname)
    files.final.unlink()
    with states.claim(plan.folder, plan.members[0].name) as mine, files.claim():
        assert mine
        with states.claim(plan.folder, plan.members[0].name) as again:
            assert not again
        assert worker.work(plan.folder, plan.execution)
        found = [states.state(member, plan.folder).status for member in plan.members]
    assert found == ['running', 'running', 'done']
    assert [states.state(member, plan.folder).status for member in plan.members] == ['waiting', 'interrupted', 'done']
    assert worker.work(plan.folder, plan.execution)
    assert [states.state(member, plan.folder).status for member in plan.members] == ['done'] * 3
    assert states.holder(plan.folder, plan.members[0].name) is None


def test_a_claim_tells_who_has_it_and_ends_with_the_process(tmp_path: Path) -> None:
    code = (
        'import os, pathlib, sys; from RLM_clean.states import claim\n'
        'with claim(pathlib.Path(sys.argv[1]), "run") as mine: print(mine, flush=True); os.kill(os.getpid(), 9)'
    )
    done = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert done.communicate(timeout=PATIENCE)[0] == 'True\n' and done.returncode == -9
    assert states.holder(tmp_path, 'run') == (done.pid, socket.gethostname())
    assert not states.held(states.claim_file(tmp_path, 'run'))
    with states.claim(tmp_path, 'run') as mine:
        assert mine and states.holder(tmp_path, 'run') == (os.getpid(), socket.gethostname())


def test_parts_of_a_sweep_are_disjoint_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3,4,5', 'depth=1,2', group=2)
    trained: list[str] = []

    def note(members: dict[int, Config], seats: int) -> Iterator[tuple[Config, Outcome]]:
        for config in members.values():
            trained.append(config.outname)
            RunFiles(config.outname).final.touch()
            yield config, Outcome('done', 24, [], {}, 0.0, 0.0)

    monkeypatch.setattr(worker, 'train_together', note)
    sizes = []
    for number in (1, 2, 3):
        assert worker.work(plan.folder, plan.execution, (number, 3))
        sizes.append(len(trained))
    assert sizes == [4, 8, 10] and sorted(trained) == sorted(member.config.outname for member in plan.members)


def test_an_interrupted_worker_leaves_the_rest_to_others(tmp_path: Path, no_pictures: None) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3')

    def stop(config: Config, say: Callable[[str], None]) -> Outcome:
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(config, quiet)

    original = lifecycle.train
    with mock.patch.object(lifecycle, 'train', stop):
        assert not worker.work(plan.folder, plan.execution)
    found = [states.state(member, plan.folder).status for member in plan.members]
    assert found == ['interrupted', 'waiting', 'waiting']
    assert worker.work(plan.folder, plan.execution)


def test_workers_that_come_at_the_same_time_do_not_share_out_a_group(tmp_path: Path) -> None:
    """Each would take as long for its part as for the whole."""
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=3)
    with states.claim(plan.folder, 'beta1_group') as taking:  # as the first one does while it takes its runs
        assert taking and worker.work(plan.folder, plan.execution)
    assert [states.state(member, plan.folder).status for member in plan.members] == ['waiting'] * 3


def test_a_signal_saves_all_runs_of_a_group(tmp_path: Path, no_pictures: None) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=3)
    advance = Ensemble.advance

    def stop(self: Ensemble, steps: int, interrupted: Callable[[], bool]) -> Any:
        failed = advance(self, min(steps, 13 - self.step), interrupted)
        if self.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return failed

    with mock.patch.object(Ensemble, 'advance', stop):
        assert not worker.work(plan.folder, plan.execution)
    assert [states.state(member, plan.folder).status for member in plan.members] == ['interrupted'] * 3
    for member in plan.members:
        assert 'resume' in load(RunFiles(member.config.outname).checkpoint(13))
    # One run is trained on its seat without the others, as after workers died; then the others.
    assert worker.work(plan.folder, plan.execution, alone=[1])
    assert_undisturbed(plan, tmp_path)


def test_a_signal_while_a_group_is_opened_stops_it_before_the_next_run(tmp_path: Path, no_pictures: None) -> None:
    """To open a large group and to compile its step can take longer than a cluster waits."""
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=3)
    original = lifecycle.prepare_language

    def stop(*what: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*what)

    with mock.patch.object(lifecycle, 'prepare_language', stop):
        assert not worker.work(plan.folder, plan.execution)
    found = [states.state(member, plan.folder).status for member in plan.members]
    assert found == ['interrupted', 'waiting', 'waiting']
    assert worker.work(plan.folder, plan.execution)
    assert_undisturbed(plan, tmp_path)


def test_a_group_leaves_the_files_of_lone_runs(tmp_path: Path) -> None:
    """All of them, the picture too, and what they say of the machine; the losses are the same to rounding."""
    plan = make(tmp_path / 'sweep', 'beta=1,2', group=2)
    assert worker.work(plan.folder, plan.execution)
    for member in plan.members:
        alone = dataclasses.replace(member.config, outname=str(tmp_path / 'alone' / member.name), device='cpu')
        lifecycle.train(alone, quiet)
        names = [path.name for path in sorted(plan.folder.iterdir()) if path.name.startswith(member.name)]
        assert names == [path.name for path in sorted((tmp_path / 'alone').iterdir()) if path.name in names]
        assert f'{member.name}.png' in names and f'{member.name}_t24.pt' in names
        ours, its = (RunFiles(outname).load_final() for outname in (member.config.outname, alone.outname))
        assert ours['output']['machine'] == its['output']['machine']
        for one, other in zip(ours['output']['dynamics'], its['output']['dynamics'], strict=True):
            assert one['testloss'] == pytest.approx(other['testloss'], rel=1e-4)


def test_a_signal_in_the_last_moment_of_a_run_stops_the_worker_after_it(tmp_path: Path, no_pictures: None) -> None:
    """When the run no longer looks at its own."""
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    original = lifecycle.save_learning_curve

    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(lifecycle, 'save_learning_curve', stop):
        assert not worker.work(plan.folder, plan.execution)
    assert lifecycle.save_learning_curve is original
    assert [states.state(member, plan.folder).status for member in plan.members] == ['done', 'waiting']


# ---------------------------------------------------------------------- workers that die


def fake_worker(code: str) -> Callable[..., list[str]]:
    return lambda folder, execution, alone=(): [sys.executable, '-c', code, str(folder), *map(str, alone)]


def test_workers_that_die_before_they_take_a_run_end_the_sweep(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    with (
        mock.patch.object(worker, 'command', fake_worker('import sys; sys.exit("no such module")')),
        pytest.raises(local.DeadWorkersError, match='workers end with status 1 before they take a run: see the files'),
    ):
        local.launch(plan, 1, quiet)
    assert 'no such module' in next((plan.folder / 'logs').iterdir()).read_text()


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_given_up_and_the_others_are_trained(tmp_path: Path) -> None:
    """As when the system kills what takes all its memory. Twice its whole group falls with it, then it is alone."""
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=3)
    code = (
        'import os, sys; from RLM_clean import ensemble, worker\n'
        'original = ensemble.open_run\n'
        'def open_run(config, *rest, **kinds):\n'
        '    if config.beta == 2: os.kill(os.getpid(), 9)\n'
        '    return original(config, *rest, **kinds)\n'
        'ensemble.open_run = open_run\n'
        f'worker.work(sys.argv[1], {plan.execution}, alone=[int(place) for place in sys.argv[2:-1]])'
    )
    said: list[str] = []
    with mock.patch.object(worker, 'command', fake_worker(code)):
        assert local.launch(plan, 1, said.append)
    found = [states.state(member, plan.folder) for member in plan.members]
    assert [s.status for s in found] == ['done', 'failed', 'done']
    assert 'its workers died 3 times, the last with signal 9' in found[1].why
    assert sum('a worker ended with signal 9' in line for line in said) == 3


def test_a_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torch.cuda.device_count', lambda: 3)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert local.default_workers({}) == 3 and local.default_workers({'device': 'cuda:1'}) == 1
    assert [local._own_device({}, place)['CUDA_VISIBLE_DEVICES'] for place in range(3)] == ['0', '1', '2']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,7')
    assert local._own_device({'device': 'cuda'}, 1)['CUDA_VISIBLE_DEVICES'] == '7'
    assert 'CUDA_VISIBLE_DEVICES' not in local._own_device({'device': 'cpu', 'threads': '2'}, 0)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, 'available_cores', lambda: 8)
    assert local.default_workers({'device': 'cpu'}) == 8
    assert local.default_workers({'device': 'cpu', 'threads': '3'}) == 2
    assert local.default_workers({'device': 'cpu', 'threads': '9'}) == 1


def test_groups_leave_each_worker_a_share(tmp_path: Path) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', 'depth=1,2', repetitions=3)
    plan = dataclasses.replace(plan, group=None, seats=())
    for workers in (1, 2, 4, 100):
        whole = plan.grouped(local.default_group(plan.members, workers), lambda config: 99)
        assert len(whole.groups) >= min(workers, len(plan.members))


# ---------------------------------------------------------------------- the commands

BAD_WORDS: list[tuple[list[str], str]] = [
    ([], 'nothing varies: give --grid or --repetitions'),
    (['--grid', 'beta=1,x'], "beta='x' is not a number: give one"),
    (['--grid', 'beta='], 'beta= has no values: give some'),
    (['--grid', 'bta=1,2'], "'bta' is no option: did you mean beta?"),
    (['--grids', 'beta=1,2'], "'--grids' is no option: did you mean --grid?"),
    (['--grid', 'beta=1,2', '--num_feature=9'], "'--num_feature=9' is no option: did you mean --num_features?"),
    (['--grid', 'beta=1,2', 'lr=1'], "'lr=1' is no option"),
    (['--grid', 'num_heads=1,3'], 'num_heads=3 does not divide embedding_dim=8'),
    (['--grid', 'depth=1,2', '--depth=3'], 'depth=3 clashes with the values 1,2 of the grid: leave one out'),
    (['--grid', 'beta=1,2', '--depth=3', '--depth=4'], 'depth is given twice: give it once'),
    (['--grid', 'beta=1,2', '--tie_weights', '--no-tie_weights'], 'tie_weights is given twice'),
    (['--grid', 'beta=1,2', '--grid', 'beta=3'], 'beta is varied twice'),
    (['--zip', 'beta=1,2', 'lr=1,2,3'], '2 of beta, 3 of lr'),
    (['--grid', 'beta=1,2', '--repetitions=0'], '0 is out of range: use a whole number, 1 or more'),
    (['--grid', 'beta=1,2', '--repetitions=few'], "'few' is not a whole number: give one"),
    (['--repetitions=2', '--vary=rule'], 'vary=rule is unknown: use some of rules,sample,model'),
    (
        ['--grid', 'beta=1,2', '--seed=7'],
        'seed=7 is for repetitions: add them, or give seed_rules, seed_sample, seed_model',
    ),
    (['--grid', 'beta=1,2', '--vary=rules,model'], 'vary=rules,model is for repetitions: add them'),
    (['--grid', 'beta=1,2', '--workers=0'], '0 is out of range: use a whole number, 1 or more'),
    (['--grid', 'beta=1,2', '--resume=restart'], "resume='restart' is not for sweeps: use auto"),
    (['--grid', 'beta=1,2', '--launcher=clowd'], "invalid choice: 'clowd'"),
    (['--grid', 'beta=1,2', '--gpus=2'], 'gpus=2 is asked of SLURM: use --launcher slurm'),
    (['--grid', 'beta=1,2', '--threads=many'], "threads='many'"),
    (
        ['--grid', 'beta=1,2', '--outname=/dev/null/sweep'],
        "'/dev/null/sweep' is a folder that cannot be written",
    ),
    (['--grid', 'beta=1,2', '--outname='], 'outname is missing: give the folder of the sweep'),
    (['--sweep', 'none.toml'], 'none.toml cannot be read'),
]


@pytest.mark.parametrize(('more', 'said'), BAD_WORDS, ids=[' '.join(more) for more, _ in BAD_WORDS])
def test_what_cannot_be_run_is_refused_in_one_line_and_nothing_is_written(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = sweep.main(words(tmp_path / 'sweep', *more))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, '')
    assert err.startswith('sweep: error: ') and err.count('\n') == 1 and said in err, err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_sweep_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    before = (plan.folder / 'sweep.json').read_bytes()
    assert sweep.main(words(plan.folder, '--grid', 'beta=1,2', max_iters=25)) == 2
    assert 'max_iters=25 differs from 24 in' in capsys.readouterr().err
    assert sweep.main(words(plan.folder, '--grid', 'beta=1,3')) == 2
    assert 'beta=2 is in' in capsys.readouterr().err
    assert (plan.folder / 'sweep.json').read_bytes() == before


@pytest.mark.parametrize('command', ['status', 'collect', 'work'])
def test_commands_on_a_folder_ask_for_one_of_a_sweep(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([command, str(tmp_path)]) == 2
    assert 'has no file sweep.json: give the folder of a sweep' in capsys.readouterr().err
    with contextlib.suppress(SystemExit):  # the parser of a run's options, which a worker takes, ends by itself
        assert sweep.main([command]) == 2
    assert capsys.readouterr().err == 'sweep: error: the following arguments are required: FOLDER\n'


def test_a_dry_run_lists_runs_and_groups_and_an_estimate_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(tmp_path / 'sweep', '--grid', 'beta=1,2', '--grid', 'depth=1,2', '--workers=2', '--dry-run')
    with mock.patch.object(lifecycle, 'save_learning_curve'):
        assert sweep.main(line) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f'{tmp_path / "sweep"}: 4 runs, 4 of them to train, in 4 groups'
    assert out[1:3] == ['group 1: 1 runs of 24 steps', '    beta1_depth1']
    assert re.fullmatch(r'about \d+:\d\d:\d\d on 2 workers, by a trial of the first steps', out[-1])
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_run_reach_every_run_and_the_machine_is_not_part_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[tuple[Plan, int]] = []

    def launch(plan: Plan, workers: int) -> bool:
        launched.append((plan, workers))
        return True

    monkeypatch.setattr(local, 'launch', launch)
    line = words(tmp_path / 'sweep', '--grid', 'beta=1,2', '--zip', 'depth=1,2', 'lr=0.1,0.2', '--repetitions=2')
    assert sweep.main([*line, '--workers=3', '--group=2', '--seed=4', '--vary=model']) == 0
    plan, workers = launched[0]
    assert (workers, plan.group, plan.repetitions, plan.seed, plan.vary) == (3, 2, 2, 4, ('model',))
    assert [member.name for member in plan.members[:2]] == ['beta1_depth1_lr0.1_r1', 'beta1_depth2_lr0.2_r1']
    assert {member.config.num_features for member in plan.members} == {8}
    assert {(member.config.threads, member.config.device) for member in plan.members} == {('1', 'cpu')}
    assert 'device' not in json.loads((plan.folder / 'sweep.json').read_text())['options']
    # Named alone, the folder says the rest; more may be added.
    assert sweep.main([f'--outname={plan.folder}']) == 0
    assert launched[1][0].seats == plan.seats and [len(names) for names in plan.seats] == [2] * 4
    assert sweep.main([f'--outname={plan.folder}', '--group=3']) == 2
    assert capsys.readouterr().err.startswith('sweep: error: group=3 differs from 2 in ')
    assert sweep.main([*line, '--grid=beta=1,2,3', '--seed=4', '--vary=model']) == 2
    assert sweep.main([word.replace('beta=1,2', 'beta=1,2,3') for word in line] + ['--seed=4', '--vary=model']) == 0
    assert len(read_plan(plan.folder).members) == 12


def test_the_time_left_of_a_run_is_that_of_all_that_are_trained_with_it(tmp_path: Path, no_pictures: None) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3', group=3, max_iters=2000)
    for member in plan.members:
        RunFiles(member.config.outname).log.write_text('{"t": 1000, "seconds": 100.0, "testloss": 1, "excess": 1}\n')
    with contextlib.ExitStack() as claims:
        for member in plan.members[:2]:
            claims.enter_context(states.claim(plan.folder, member.name))
        rows = {line.split()[0]: line.split()[1:] for line in states.table(plan).splitlines()}
    assert rows['beta1'][:4] == rows['beta2'][:4] == ['running', '1000/2000', '50%', '0:03:20']
    assert '0:05:00' in rows['3']  # of work, in all


def test_the_table_has_every_status(tmp_path: Path, no_pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2,3,4,5')
    done, running, interrupted, failed, _ = plan.members
    for member in (done, running, interrupted):
        train(member.config)
    for member in (running, interrupted):
        files = RunFiles(member.config.outname)
        files.final.unlink()
        files.rewrite_log(files.read_log()[:-3])
    with open(RunFiles(running.config.outname).log, 'a') as file:
        file.write('{"t": 23, "trainl')  # what a kill leaves
    states.record_failure(failed.config.outname, 'it had to')
    with states.claim(plan.folder, running.name):
        assert sweep.main(['status', str(plan.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert rows['beta1'][:3] == ['done', '24/24', '100%']
    assert rows['beta2'][:3] == ['running', '16/24', '67%'] and re.fullmatch(r'\d+:\d\d:\d\d', rows['beta2'][3])
    assert rows['beta3'][:3] == ['interrupted', '16/24', '67%']
    assert rows['beta4'] == ['failed', 'it', 'had', 'to'] and rows['beta5'] == ['waiting']
    assert lines[-1].startswith('5 runs: 1 done, 1 running, 1 interrupted, 1 waiting, 1 failed; about 0:00:0')


def test_a_worker_takes_no_options_of_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    assert sweep.main(['work', str(plan.folder), '--lr=3']) == 2
    assert capsys.readouterr().err == 'sweep: error: lr is what the sweep says it is: leave --lr out\n'
    for part in ('0/2', '3/2', '2', 'a/b'):
        with pytest.raises(SystemExit, match='2'):
            sweep.main(['work', str(plan.folder), f'--part={part}'])
        assert '--part' in capsys.readouterr().err


def test_the_words_of_a_worker_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(worker, 'work', lambda *what: called.append(what))
    execution = {'device': 'cpu', 'threads': '2', 'tensorboard': False, 'compile': 'off'}
    line = worker.command(tmp_path, execution, [5, 7])
    assert line[:3] == [sys.executable, str(ROOT / 'RLM_clean' / 'sweep.py'), 'work']
    assert sweep.main([*line[2:], '--part=2/3']) == 0
    assert called == [(str(tmp_path), execution, (2, 3), [5, 7])]


def test_sweep_starts_as_a_script_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'RLM_clean' / 'sweep.py'), '--help'],
        cwd=tmp_path,
        env={name: value for name, value in environment().items() if name != 'PYTHONPATH'},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert '--repetitions R' in done.stdout and 'status FOLDER' in done.stdout


def test_a_kept_claim_of_a_removed_sweep_is_no_hindrance(tmp_path: Path, no_pictures: None) -> None:
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    assert worker.work(plan.folder, plan.execution)
    shutil.rmtree(plan.folder)
    plan = make(tmp_path / 'sweep', 'beta=1,2')
    assert worker.work(plan.folder, plan.execution)
    assert [states.state(member, plan.folder).status for member in plan.members] == ['done'] * 2
