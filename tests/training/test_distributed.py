"""One run over several processes has the curve of one, and ends everywhere when it fails anywhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, arguments, environment
from small_runs import TINY, make_trainer, read_log, tiny, train
from step_kinds import FROZEN, frozen_trainer, moved
from torch import Tensor

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import load
from RLM_clean.training import machine
from RLM_clean.training.distributed import DistributedUpdate

RUN: dict[str, Any] = {**TINY, 'max_iters': 300, 'lr': 0.05}
# By then the processes of a run have begun, failed and ended; some ten seconds on a quiet machine.
SECONDS_TO_END = 60

pytestmark = pytest.mark.skipif(not dist.is_available(), reason='torch has no distributed')
slow = pytest.mark.slow


def torchrun(processes: int, words: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return subprocess.Popen(
        [*command, 'RLM_clean/main.py', *words],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def train_by(processes: int, outname: Path, **options: Any) -> subprocess.Popen[str]:
    return torchrun(processes, arguments(**{**RUN, **options, 'outname': outname}))


def wait_for_step(process: subprocess.Popen[str], outname: Path, step: int) -> None:
    while not any(saved >= step for saved in RunFiles(outname).steps()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def assert_same_curve(outname: Path, other: Path, rel: float = 1e-5) -> None:
    logs = [read_log(RunFiles(name)) for name in (outname, other)]
    assert [record['t'] for record in logs[0]] == [record['t'] for record in logs[1]]
    for a, b in zip(*logs, strict=True):
        for name in ('trainloss', 'testloss', 'excess'):
            assert a[name] == pytest.approx(b[name], rel=rel)


# ---------------------------------------------------------------------- its curve


@slow
@pytest.mark.parametrize('options', ({}, {'optim': 'adam', 'lr': 0.003, 'dropout': 0.1, 'accumulation': 2}))
def test_two_processes_have_the_curve_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    process = train_by(2, tmp_path / 'two', **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count('done at step 300') == 1
    train(tiny(tmp_path / 'one', **{**RUN, **options}))
    assert_same_curve(tmp_path / 'two', tmp_path / 'one')
    assert load_run(tmp_path / 'two').done


@pytest.mark.parametrize(
    'options',
    (
        {},
        {'optim': 'adam', 'grad_clip': 0.1, 'accumulation': 2, 'dropout': 0.1},
        {'objective': 'masked', 'model': 'transformer_bert'},  # sequences with different numbers of hidden tokens
        {'objective': 'denoise', 'model': 'fcn'},
        {'objective': 'root', 'model': 'cnn', 'depth': 2},
    ),
)
def test_two_parts_of_a_batch_make_the_step_of_the_whole(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads in place of two processes, whose messages are added up here; weights are the same from the start."""
    meeting, sent = threading.Barrier(2, timeout=30), [torch.zeros(0)] * 2

    def all_reduce(flat: Tensor) -> None:
        rank = int(threading.current_thread().name)
        sent[rank] = flat.clone()
        meeting.wait()
        flat.copy_(sent[0] + sent[1])
        meeting.wait()

    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'all_reduce', all_reduce)
    monkeypatch.setattr(dist, 'broadcast', lambda tensor, source: None)
    whole, *parts = (make_trainer(tiny(lr=0.05, **options)) for _ in range(3))
    for rank, part in enumerate(parts):
        monkeypatch.setattr(dist, 'get_rank', lambda rank=rank: rank)
        part.take_steps = DistributedUpdate(part.model, part.optimizer, part.config)
    threads = [threading.Thread(target=part.advance, args=(10,), name=str(rank)) for rank, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    whole.advance(10)
    for thread in threads:
        thread.join()
    for part in parts:
        assert part.since_record == pytest.approx(whole.since_record, rel=1e-5)


@slow
def test_a_run_of_two_processes_that_was_killed_goes_on_with_one(tmp_path: Path) -> None:
    options = {'max_iters': 3000, 'optim': 'adam', 'lr': 1e-3, 'print_freq': 1000}
    process = train_by(2, tmp_path / 'run', **options)
    wait_for_step(process, tmp_path / 'run', 64)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not load_run(tmp_path / 'run').done
    lines: list[str] = []
    train(Config(**{**RUN, **options, 'outname': str(tmp_path / 'run')}), lines.append)
    assert any(line.startswith('going on from step') for line in lines)
    train(Config(**{**RUN, **options, 'outname': str(tmp_path / 'one')}))
    assert_same_curve(tmp_path / 'run', tmp_path / 'one', rel=1e-4)


@slow
def test_all_processes_have_the_rules_of_the_file(tmp_path: Path) -> None:
    """Which another version or another machine may have drawn."""
    options = {'max_iters': 8, 'optim': 'adam', 'lr': 0.01, 'print_freq': 10}
    for name in ('two', 'one'):
        train(Config(**{**RUN, **options, 'outname': str(tmp_path / name / 'run')}))
        path = RunFiles(tmp_path / name / 'run').config
        content = load(path)
        content['rules'] = content['rules'].flip(2)
        torch.save(content, path)
    longer = {**options, 'max_iters': 200}
    process = train_by(2, tmp_path / 'two/run', **longer)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    train(Config(**{**RUN, **longer, 'outname': str(tmp_path / 'one/run')}))
    assert_same_curve(tmp_path / 'two/run', tmp_path / 'one/run', rel=1e-4)


@slow
def test_a_signal_saves_once_and_ends_all(tmp_path: Path) -> None:
    process = train_by(2, tmp_path / 'run', max_iters=100000)
    wait_for_step(process, tmp_path / 'run', 64)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.count('SIGTERM: saved at step') == 1
    saved = RunFiles(tmp_path / 'run').steps()[-1]
    assert f'saved at step {saved};' in out


@pytest.fixture
def group_of_one() -> Any:
    """This process as a distributed run of its own."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('options', ({}, {'optim': 'adam', 'grad_clip': 0.1, 'accumulation': 2, 'dropout': 0.1}))
def test_steps_of_a_group_of_one_are_the_eager_ones(options: dict[str, Any], group_of_one: None) -> None:
    config = tiny(lr=0.01, **options)
    distributed = make_trainer(config)
    assert isinstance(distributed.take_steps, DistributedUpdate)
    distributed.advance(20)
    eager = make_trainer(config)
    eager.take_steps = eager.take_steps.__class__.__base__(eager.model, eager.optimizer, config)  # type: ignore
    eager.advance(20)
    assert distributed.since_record == eager.since_record


def test_what_is_not_trained_stays(group_of_one: None) -> None:
    config = tiny(optim='adam', lr=0.01, weight_decay=0.1)
    trainer = frozen_trainer(config)
    assert isinstance(trainer.take_steps, DistributedUpdate)
    trainer.advance(40)
    assert moved(trainer.model, config) == set(trainer.model.state_dict()) - {FROZEN}


# ---------------------------------------------------------------------- its failures

# A process of a run in which something fails: where RANK is {rank}, the function {name} does {action} at call {call}.
PROGRAM = """
import os, signal, sys, time
sys.path[0] = {root!r}
from RLM_clean import init, main
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import distributed
from RLM_clean.training.backends import Loss
owner, name = {owner}, {name!r}
function, calls = getattr(owner, name), []

def failing(*arguments, **options):
    calls.append(1)
    if os.environ['RANK'] == '{rank}' and len(calls) == {call}:
        {action}
    return function(*arguments, **options)

setattr(owner, name, failing)
sys.exit(main.main())
"""
STEP = {'owner': 'Loss', 'name': 'forward', 'call': 40}
SETUP = {'owner': 'init', 'name': 'init_model', 'call': 1}
FAILURES: dict[str, dict[str, Any]] = {
    'process 1 at the set-up': {'rank': 1, **SETUP, 'action': 'raise RuntimeError("it broke")'},
    'process 1 at a step': {'rank': 1, **STEP, 'action': 'raise RuntimeError("it broke")'},
    'process 0 at the set-up': {'rank': 0, **SETUP, 'action': 'raise RuntimeError("it broke")'},
    'process 0 at a step': {'rank': 0, **STEP, 'action': 'raise RuntimeError("it broke")'},
    'memory of process 1': {'rank': 1, **STEP, 'action': 'raise MemoryError'},
    'files of process 0': {
        'rank': 0, 'owner': 'RunFiles', 'name': 'save_checkpoint', 'call': 3, 'action': 'raise OSError("it broke")',
    },
    'process 1 killed': {'rank': 1, **STEP, 'action': 'os.kill(os.getpid(), signal.SIGKILL)'},
    'process 0 slow to say what is wrong': {'rank': 0, 'owner': 'main', 'name': 'from_arguments', 'call': 1,
                                            'action': 'time.sleep(3)'},
}  # fmt: skip


def start(folder: Path, failure: dict[str, Any], words: Sequence[str], agent: bool = False) -> list[subprocess.Popen]:
    """Two processes, without a launcher that would end one after the other; or with torchrun, which does."""
    program = folder / 'program.py'
    program.write_text(PROGRAM.format(root=str(ROOT), **failure))
    if agent:
        command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(program)]
        ranks: list[dict[str, str]] = [{}]
    else:
        command = [sys.executable, str(program)]
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free.getsockname()[1]), 'WORLD_SIZE': '2'}
        ranks = [{**place, 'RANK': rank, 'LOCAL_RANK': rank} for rank in '01']
    return [
        subprocess.Popen([*command, *words], cwd=ROOT, env=environment(**variables), stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL)
        for variables in ranks
    ]  # fmt: skip


def errors_of(processes: list[subprocess.Popen]) -> list[str]:
    """What each process said on standard error. Raises TimeoutExpired where one does not end."""
    try:
        return [process.communicate(timeout=SECONDS_TO_END)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def fail(folder: Path, failure: dict[str, Any], agent: bool = False, **options: Any) -> tuple[list[int], str]:
    """The statuses of the processes of a run that fails, and all that they said on standard error."""
    words = arguments(**{**RUN, 'max_iters': 100000, **options, 'outname': folder / 'run'})
    processes = start(folder, failure, words, agent)
    errors = errors_of(processes)
    return [process.returncode for process in processes], ''.join(errors)


@pytest.mark.parametrize(
    'name', [name if name == 'process 1 at a step' else pytest.param(name, marks=slow) for name in list(FAILURES)[:4]]
)
def test_an_error_ends_all_processes_and_is_said_once(tmp_path: Path, name: str) -> None:
    statuses, errors = fail(tmp_path, FAILURES[name])
    assert statuses == [1, 1]
    assert errors.count('RuntimeError: it broke') == 1 and errors.count('Traceback') == 1


@slow
def test_a_process_that_runs_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    statuses, errors = fail(tmp_path, FAILURES['memory of process 1'])
    assert statuses == [1, 1]
    assert errors.count('memory ran out: lower batch_size=8') == 1 and 'Traceback' not in errors


@slow
def test_files_that_cannot_be_written_end_all_processes(tmp_path: Path) -> None:
    statuses, errors = fail(tmp_path, FAILURES['files of process 0'])
    assert statuses == [1, 1]
    assert errors.count('it broke; the files of') == 1 and 'Traceback' not in errors


@slow
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    statuses, errors = fail(tmp_path, FAILURES['process 1 killed'])
    assert statuses == [1, -signal.SIGKILL]
    assert errors.count('rlm-train: error: another process of the run has ended or cannot be reached') == 1
    assert 'Traceback' not in errors


@slow
@pytest.mark.parametrize('options', ({'resume': 'require'}, {'batch_size': 7}, {'device': 'cuda:31'}))
def test_a_run_that_cannot_begin_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any]) -> None:
    nothing = {**FAILURES['process 1 killed'], 'rank': 9}
    statuses, errors = fail(tmp_path, nothing, **options)
    name, value = next(iter(options.items()))
    assert sorted(statuses) == [1, 2]
    assert errors.count('rlm-train: error: ') == errors.count(f'{name}={value!r}') == 1 and 'Traceback' not in errors


@slow
@pytest.mark.parametrize('name', ('process 1 at a step', 'process 1 at the set-up'))
def test_torchrun_passes_the_message_on(tmp_path: Path, name: str) -> None:
    (status,), errors = fail(tmp_path, FAILURES[name], agent=True)
    assert status == 1 and errors.count('RuntimeError: it broke') == 1


@slow
def test_torchrun_names_a_process_that_was_killed(tmp_path: Path) -> None:
    """torchrun may end process 0 before that misses the other one: then the agent alone says what happened."""
    (status,), errors = fail(tmp_path, FAILURES['process 1 killed'], agent=True)
    assert status == 1 and 'Signal 9 (SIGKILL)' in errors
    assert errors.count('another process of the run has ended') <= 1


@slow
def test_a_bad_option_is_said_once_however_slow_process_0_is(tmp_path: Path) -> None:
    """torchrun ends all processes when one of them has ended: the others wait for process 0 to say it."""
    (status,), errors = fail(tmp_path, FAILURES['process 0 slow to say what is wrong'], agent=True, depth=0)
    assert status == 1 and errors.count('depth=0 is out of range') == 1


def test_options_of_one_process_are_refused_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(machine, 'can_compile', lambda device: True)
    with pytest.raises(ValueError, match="compile='on' is for runs of one process"):
        machine.check(tiny(compile='on'))
    with pytest.raises(ValueError, match='batch_size=3 does not divide among 2 processes'):
        machine.check(tiny(batch_size=3))
