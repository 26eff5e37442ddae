"""One run over several processes has the curve of one, also when it goes on with another number of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import arguments
from small_runs import TINY, read_log, tiny, train

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run

ROOT = Path(__file__).parents[2]
RUN: dict[str, Any] = {**TINY, 'max_iters': 300, 'lr': 0.05}

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason='torch has no distributed')


def torchrun(processes: int, words: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return subprocess.Popen(
        [*command, 'RLM_clean/main.py', *words],
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def train_by(processes: int, outname: Path, **options: Any) -> subprocess.Popen[str]:
    return torchrun(processes, arguments(**{**RUN, **options, 'outname': outname}))


def assert_same_curve(outname: Path, other: Path, rel: float = 1e-5) -> None:
    logs = [read_log(RunFiles(name)) for name in (outname, other)]
    assert [record['t'] for record in logs[0]] == [record['t'] for record in logs[1]]
    for a, b in zip(*logs, strict=True):
        for name in ('trainloss', 'testloss', 'excess'):
            assert a[name] == pytest.approx(b[name], rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize('options', ({}, {'optim': 'adam', 'lr': 0.003, 'dropout': 0.1, 'accumulation': 2}))
def test_two_processes_have_the_curve_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    process = train_by(2, tmp_path / 'two', **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count('done at step 300') == 1
    train(tiny(tmp_path / 'one', **{**RUN, **options}))
    assert_same_curve(tmp_path / 'two', tmp_path / 'one')
    assert load_run(tmp_path / 'two').done


@pytest.mark.slow
def test_a_run_of_two_processes_that_was_killed_goes_on_with_one(tmp_path: Path) -> None:
    options = {'max_iters': 3000, 'optim': 'adam', 'lr': 1e-3, 'print_freq': 1000}
    process = train_by(2, tmp_path / 'run', **options)
    while not any(step >= 64 for step in RunFiles(tmp_path / 'run').steps()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    # torchrun and the processes that it started, which all have the name of the run among their words.
    subprocess.run(['pkill', '-KILL', '-f', f'outname={tmp_path / "run"}'], check=True)
    process.communicate()
    assert not load_run(tmp_path / 'run').done
    lines: list[str] = []
    train(Config(**{**RUN, **options, 'outname': str(tmp_path / 'run')}), lines.append)
    assert any(line.startswith('going on from step') for line in lines)
    train(Config(**{**RUN, **options, 'outname': str(tmp_path / 'one')}))
    assert_same_curve(tmp_path / 'run', tmp_path / 'one', rel=1e-4)


@pytest.mark.slow
def test_a_signal_saves_once_and_ends_all(tmp_path: Path) -> None:
    process = train_by(2, tmp_path / 'run', max_iters=100000)
    while not any(step >= 64 for step in RunFiles(tmp_path / 'run').steps()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out.count('SIGTERM: saved at step') == 1
    saved = RunFiles(tmp_path / 'run').steps()[-1]
    assert f'saved at step {saved};' in out


@pytest.mark.slow
def test_batches_that_cannot_be_shared_are_refused_in_one_line(tmp_path: Path) -> None:
    process = train_by(3, tmp_path / 'run')
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count('batch_size=8 is no multiple of the 3 processes: make it one') == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_one_process_are_refused_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match="compile='on' is for runs of one process"):
        tiny(compile='on')
    with pytest.raises(ValueError, match='batch_size=3 is no multiple of the 2 processes'):
        tiny(batch_size=3)
