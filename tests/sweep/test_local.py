"""The driver on this machine: how many workers it starts, and what it does when they or it itself are killed."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
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
from small_runs import TINY
from small_sweeps import assert_finished, make_sweep, statuses

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.locks import is_locked
from RLM_clean.runs.storage import load
from RLM_clean.sweep import local, states, worker
from RLM_clean.sweep.plan import read_plan
from RLM_clean.threads import available_cores

# The longest that a process of these tests may take, on a machine that has other things to do.
PATIENCE = 120

# How the workers of these tests begin, which are quick to start because they do not load torch: take(NAMES) holds runs,
# finish(NAMES) ends runs, and `number` says how many workers were started before.
QUICK = """
import fcntl, json, os, socket, sys, time
folder = sys.argv[1]
number = int(os.readlink('/proc/self/fd/1').removesuffix('.txt').split('_')[-1])
os.makedirs(f'{folder}/claims', exist_ok=True)
held = []
def take(*names):
    for name in names:
        held.append(open(f'{folder}/claims/{name}', 'w'))
        fcntl.lockf(held[-1], fcntl.LOCK_EX)
        json.dump({'pid': os.getpid(), 'host': socket.gethostname()}, held[-1])
        held[-1].flush()
def finish(*names):
    for name in names:
        open(f'{folder}/{name}.pt', 'w').close()
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes workers do what some code says."""

    def use(code: str) -> None:
        words = [sys.executable, '-c', QUICK + code]
        monkeypatch.setattr(worker, 'command', lambda folder, *rest: [*words, str(folder), *map(str, rest)])

    monkeypatch.setattr(local, '_INTERVAL', 0.02)
    return use


# ---------------------------------------------------------------------- how many workers


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
    assert available_cores() >= 1


def test_no_more_workers_are_started_than_there_are_runs(tmp_path: Path, quick: Callable[[str], None]) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('name = f"beta{number + 1}"; take(name); time.sleep(0.2); finish(name)')
    said: list[str] = []
    assert local.launch(plan, 9, say=said.append)
    assert len(list((plan.folder / 'logs').iterdir())) == 2
    assert [re.sub(' .*', '', line) for line in sorted(said)] == ['1/2', '2/2']


def test_workers_are_given_the_size_of_groups_and_their_number(tmp_path: Path, quick: Callable[[str], None]) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('finish("beta1", "beta2"); print(sys.argv[3:])')
    assert local.launch(plan, 1, 5, say=lambda line: None)
    assert "['5', '1', '--watch-input']" in next((plan.folder / 'logs').iterdir()).read_text()


# ---------------------------------------------------------------------- workers that die


def test_workers_that_die_before_they_take_a_run_end_the_sweep(tmp_path: Path, quick: Callable[[str], None]) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('sys.exit("no such module")')
    said: list[str] = []
    with pytest.raises(local.DeadWorkersError, match='a worker ended with status 1 before it took a run: see the'):
        local.launch(plan, 1, say=said.append)
    assert said == ['a worker ended with status 1 while it held no run'] * 3
    assert all('no such module' in path.read_text() for path in (plan.folder / 'logs').iterdir())


def test_a_worker_that_takes_a_run_lets_earlier_deaths_be_forgotten(
    tmp_path: Path, quick: Callable[[str], None]
) -> None:
    """Two that hold nothing die, one that holds a run, two again; then the runs are trained."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('if number in (0, 1, 3, 4): sys.exit(1)\ntake("beta1")\nif number == 2: os.kill(os.getpid(), 9)\n'
          'finish("beta1", "beta2")')  # fmt: skip
    said: list[str] = []
    assert local.launch(plan, 1, say=said.append)
    deaths = [line for line in said if line.startswith('a worker ended')]
    none, one = 'a worker ended with status 1 while it held no run', 'a worker ended with signal 9 while it held beta1'
    assert deaths == [none, none, one, none, none]


def test_workers_that_die_at_their_start_do_not_stop_one_that_works(
    tmp_path: Path, quick: Callable[[str], None]
) -> None:
    """As where one of several GPUs is broken: its worker is not started for ever, the others train all runs."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    quick('if number: sys.exit(1)\ntake("beta1"); time.sleep(0.7)\n'
          'finish("beta1", "beta2", "beta3")')  # fmt: skip
    said: list[str] = []
    assert local.launch(plan, 2, say=said.append)
    # Two more when the good one is seen to take a run after two deaths.
    assert said.count('a worker ended with status 1 while it held no run') in (3, 4, 5)


def test_an_error_of_the_driver_lets_its_workers_save(
    tmp_path: Path, quick: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('import signal\ndef save(*_): open(f"{folder}/saved{number}", "w").close(); sys.exit(0)\n'
          'signal.signal(signal.SIGTERM, save); take(f"beta{number + 1}"); time.sleep(1000)')  # fmt: skip
    original = local.Driver.serve

    def serve(driver: local.Driver) -> bool:
        if all(states.holder(plan.folder, run.name) for run in plan.runs):
            raise OSError(5, 'Input/output error')
        return original(driver)

    monkeypatch.setattr(local.Driver, 'serve', serve)
    with pytest.raises(OSError, match='Input/output error'):
        local.launch(plan, 2, say=lambda line: None)
    assert {path.name for path in plan.folder.glob('saved*')} == {'saved0', 'saved1'}


def test_a_second_ctrl_c_stops_at_once_and_counts_as_no_death(tmp_path: Path, quick: Callable[[str], None]) -> None:
    """Also workers that do not come to an end."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    quick('import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
          'take(f"beta{number + 1}"); time.sleep(1000)')  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    original = local.Driver._start

    def keep(driver: local.Driver) -> None:
        original(driver)
        started.append(driver.workers[max(driver.workers)])

    def interrupt() -> None:
        wait_for(lambda: all(states.holder(plan.folder, run.name) for run in plan.runs))
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: 'SIGINT: the workers save and stop' in said)
        os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    with mock.patch.object(local.Driver, '_start', keep):
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            local.launch(plan, 2, say=said.append)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    assert [states.deaths(plan.folder, run) for run in plan.runs] == [0, 0]


@pytest.mark.slow
def test_a_run_that_kills_its_workers_is_given_up_and_the_others_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the system kills what takes all its memory. Twice its whole group falls with it, then it alone."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    code = (
        'import os, sys\n'
        'from RLM_clean.sweep import worker\n'
        'from RLM_clean.training import ensemble, lifecycle\n'
        'original = lifecycle.claim\n'
        'def claim(config, *rest):\n'
        '    if config.beta == 2: os.kill(os.getpid(), 9)\n'
        '    return original(config, *rest)\n'
        'lifecycle.claim = ensemble.claim = claim\n'
        f'worker.work(sys.argv[1], {plan.execution}, group=3)'
    )
    monkeypatch.setattr(worker, 'command', lambda folder, *_: [sys.executable, '-c', code, str(folder)])
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    said: list[str] = []
    assert local.launch(plan, 1, say=said.append)
    found = [states.state(run, plan.folder) for run in plan.runs]
    assert [s.status for s in found] == ['done', 'failed', 'done']
    assert found[1].why.startswith('its workers died 3 times')
    assert sum('a worker ended with signal 9' in line for line in said) == 3


# ---------------------------------------------------------------------- a driver that is killed


def words(folder: Path, *more: str, **options: Any) -> list[str]:
    """The command line of a sweep of tiny runs."""
    values = {'outname': folder, **TINY, **options}
    return [*(f'--{name}={value}' for name, value in values.items()), *more]


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


def wait_for(condition: Callable[[], Any]) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, 'it does not come'
        time.sleep(0.05)


def log_lines(folder: Path) -> Iterator[tuple[str, str]]:
    """What workers said of the runs: name and what became of it, in the order of time."""
    lines = [line for log in (folder / 'logs').glob('*') for line in log.read_text().splitlines()]
    names = {run.name for run in read_plan(folder).runs}
    for line in sorted(lines, key=lambda line: line[:19]):
        found = re.fullmatch(
            r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([^ :]*): (taken|(?:done|interrupted) at step.*|.*another process.*)', line
        )
        if found and found[1] in names:
            yield found[1], found[2]


def nobody_works(folder: Path) -> bool:
    """Whether no process holds a run of a sweep."""
    claims = folder / 'claims'
    return not claims.exists() or not any(is_locked(path) for path in claims.iterdir())


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


def assert_trained_once(folder: Path) -> None:
    """No run was taken again when it was done, nor while another process trained it."""
    ended: set[str] = set()
    for name, what in log_lines(folder):
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
            holders = {states.holder(folder, run.name) for run in read_plan(folder).runs} - {None}
            for claim in filter(None, holders):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(claim.pid, signal.SIGKILL)
    status, out = finish(line)
    assert status == 0 and '12 runs: 12 done' in out, out
    assert [what for _, what in log_lines(folder) if what.startswith('interrupted')]
    assert_trained_once(folder)
    assert_finished(read_plan(folder), tmp_path / 'alone', every=5)


@pytest.mark.slow
def test_workers_save_and_stop_when_their_driver_dies(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    process = start(words(folder, '--grid', 'beta=1,2', '--workers', '2', max_iters=10**6, compile='off'))
    wait_for(lambda: all(states.last_record(folder / f'beta{beta}_log.jsonl') for beta in (1, 2)))
    process.kill()
    process.communicate()
    wait_for(lambda: nobody_works(folder))
    assert {what.split()[0] for _, what in log_lines(folder)} == {'taken', 'interrupted'}
    for beta in (1, 2):
        files = RunFiles(folder / f'beta{beta}')
        assert 'resume' in load(files.checkpoint(files.steps()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_driver_saves_and_stops_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=1,2', '--workers=1', '--group=1', max_iters=2000)
    process = start(line)
    wait_for(lambda: states.last_record(folder / 'beta1_log.jsonl'))
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and out.endswith('saved; the same command goes on from there\n')
    assert nobody_works(folder) and '1 interrupted' in out
    status, out = finish(line)
    assert status == 0 and '\n2 runs: 2 done\n' in out
    assert_finished(read_plan(folder), tmp_path / 'alone', exact=True)
    # And once more: nothing is left to do.
    status, out = finish(line)
    assert status == 0 and '2 runs, 0 of them to train' in out


@pytest.mark.slow
def test_two_drivers_of_one_sweep_share_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'beta=1,2,3', '--repetitions', '2', '--workers', '2', '--group', '2', max_iters=600)
    drivers = [start(line), start(line)]
    answers = [driver.communicate(timeout=PATIENCE)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], answers
    assert all('\n6 runs: 6 done\n' in answer for answer in answers)
    plan = read_plan(folder)
    assert_finished(plan, tmp_path / 'alone')
    taken = [name for name, what in log_lines(folder) if what == 'taken']
    assert sorted(taken) == sorted(run.name for run in plan.runs)


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    folder = tmp_path / 'sweep'
    line = words(folder, '--grid', 'lr=1e-3,1e6,1e-2', '--workers', '1', max_iters=100)
    status, out = finish(line)
    assert status == 1 and '3 runs: 2 done, 1 failed' in out and 'Traceback' not in out
    assert re.search(r'lr1e\+06 failed: the (training|test) loss is nan at step \d+: lower lr=1e\+06', out), out
    assert statuses(read_plan(folder)) == ['done', 'failed', 'done']
    # It is not tried again, unless it is asked for; the files that were good are there.
    assert '0 of them to train' in finish(line)[1]
    when = states.failure_file(folder / 'lr1e+06').stat().st_mtime_ns
    status, out = finish([*line, '--retry-failed'])
    assert status == 1 and '1 of them to train' in out
    assert states.failure_file(folder / 'lr1e+06').stat().st_mtime_ns > when
    assert RunFiles(folder / 'lr1e+06').steps()
