"""Signals while a run is set up: it stops at once, with a line, and leaves nothing half-written."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, arguments, environment

from RLM_clean.runs import load_run
from RLM_clean.training.signals import Interruption, StopRequested

DEEP: dict[str, Any] = {'num_features': 32, 'num_layers': 9, 'max_iters': 1, 'num_tokens': 512, 'batch_size': 2}
COMPILED: dict[str, Any] = {'compile': 'on', 'max_iters': 1}


def start(outname: Path, **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own, past its first line."""
    process = subprocess.Popen(
        [sys.executable, 'RLM_clean/main.py', *arguments(**options, outname=outname)], cwd=ROOT,
        env=environment(TORCHINDUCTOR_CACHE_DIR=str(outname.parent / 'cache')), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith('options: ')
    return process


def test_a_signal_raises_at_once_until_the_run_starts() -> None:
    with Interruption() as outer, Interruption() as interruption:
        interruption.stop_at_once()
        with pytest.raises(StopRequested):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested):  # it came before
            interruption.wait_for_step()
        signal.raise_signal(signal.SIGUSR1)  # from now on it only sets the flag
        assert interruption.requested() and interruption.name == 'SIGUSR1' and not outer.requested()
    assert outer.name == 'SIGUSR1'


def test_a_signal_before_the_set_up_listens_is_heard_when_it_does() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested):
            interruption.stop_at_once()


@pytest.mark.slow
@pytest.mark.parametrize('options', [DEEP, COMPILED], ids=('floors', 'compilation'))
def test_a_run_is_stopped_at_any_moment_of_its_set_up(tmp_path: Path, options: dict[str, Any]) -> None:
    draw = random.Random(1)
    for number, name in enumerate(('SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGHUP')):
        outname = tmp_path / str(number) / 'run'
        with start(outname, **options) as process:
            time.sleep(draw.uniform(0, 3))
            process.send_signal(getattr(signal, name))
            said, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and 'Traceback' not in said
        files = [path.name for path in outname.parent.glob('*') if path.is_file()]
        if f'{name}: stopped before step 1; the same command starts again from there\n' in said:
            assert files == []
        else:  # the set-up was over
            assert f'{name}: saved at step' in said or 'done at step 1' in said
            assert not [file for file in files if file.startswith('.')]
    with start(outname, **options) as process:
        process.communicate(timeout=300)
    assert process.returncode == 0 and load_run(outname).done
