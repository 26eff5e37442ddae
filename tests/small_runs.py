"""Small runs in this process, and what it means that two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from RLM_clean import init, measures, tasks
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import lifecycle, loop, machine
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import Trainer

TINY: dict[str, Any] = {
    'num_features': 8, 'num_layers': 2, 'embedding_dim': 8, 'batch_size': 8, 'test_size': 64, 'max_iters': 24,
    'print_freq': 10, 'threads': 1, 'device': 'cpu',
}  # fmt: skip

# What may differ between two runs that are the same: the time they took, and where they are.
FREE = ('seconds', 'outname')


def tiny(outname: Path | str = 'run', **options: Any) -> Config:
    """The options of a run of a moment."""
    return Config(**{'outname': str(outname), **TINY, **options})


def quiet(line: str) -> None:
    """Says nothing."""


def train(config: Config, say: Callable[[str], None] = quiet) -> Outcome:
    """A whole run without its picture, which takes longer than all the rest."""
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        return lifecycle.train(config, say)


def make_trainer(config: Config) -> Trainer:
    """The trainer of a run at step 0."""
    return loop.make_trainer(config, make_language(config), machine.choose(config), quiet)


def make_language(config: Config) -> measures.Language:
    """The language of a run, with its exact floors."""
    return measures.prepare_language(init.init_data(config), config.context_size, tasks.of(config))


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two models have the same weights, bit for bit."""
    return all(torch.equal(a[name], b[name]) for name in a | b)


def contents(outname: Path | str) -> dict[str, Any]:
    """Everything that the files of a run hold, by the ends of their names; the folder is the run's own."""
    files = RunFiles(outname)
    found: dict[str, Any] = {}
    for path in sorted(files.folder.iterdir()):
        assert files.outname.name in path.name, path
        if path.suffix == '.pt':
            found[path.name.replace(files.outname.name, '', 1)] = torch.load(path, weights_only=True)
    found['log'] = read_log(files)
    return found


def read_log(files: RunFiles) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in files.log.read_text().splitlines()]


def difference(a: Any, b: Any, where: str = '') -> str | None:
    """Where two contents differ by a single bit, or None; what is in FREE is not looked at."""
    if type(a) is not type(b):
        return f'{where}: {type(a).__name__} and {type(b).__name__}'
    if isinstance(a, Tensor):
        return None if a.dtype == b.dtype and a.shape == b.shape and _bits_equal(a, b) else f'{where}: tensors differ'
    if isinstance(a, dict):
        if list(a) != list(b):
            return f'{where}: keys {list(a)} and {list(b)}'
        parts = [(f'{where}/{key}', a[key], b[key]) for key in a if key not in FREE]
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f'{where}: {len(a)} and {len(b)} entries'
        parts = [(f'{where}/{i}', x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else f'{where}: {a!r} and {b!r}'
    return next((found for name, x, y in parts if (found := difference(x, y, name)) is not None), None)


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def assert_same_run(outname: Path | str, other: Path | str) -> None:
    """The same files with the same tensors, bit for bit, and the same records but for `seconds`."""
    found = difference(contents(outname), contents(other))
    assert found is None, found
