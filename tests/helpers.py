"""What several tests share: the command line of a small run, and a process that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# A run of a moment, with five checkpoints.
SMALL: dict[str, Any] = {'num_features': 8, 'embedding_dim': 8, 'max_iters': 4, 'test_size': 32}


def arguments(**options: Any) -> list[str]:
    """The command line of a small run with these options; True is `--name`, False is `--no-name`."""
    words = []
    for name, value in (SMALL | options).items():
        words.append(f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}')
    return words


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that a test starts: one thread, and `variables`."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', **variables}


def run_main(
    words: Sequence[str], start: Sequence[str] = ('RLM_clean/main.py',), timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs `python RLM_clean/main.py` with these words from the root of the repository, its output captured."""
    return subprocess.run(
        [sys.executable, *start, *words],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
