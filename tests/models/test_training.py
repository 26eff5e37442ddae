"""Networks that are not transformers are trained like them: whole runs that learn, compiled steps, groups of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from small_runs import quiet, read_log, tiny, train
from step_kinds import losses_of

from RLM_clean.runs.files import RunFiles
from RLM_clean.training import ensemble, machine
from RLM_clean.training.lifecycle import Outcome

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

RUNS: dict[str, dict[str, Any]] = {
    'fcn, root': {'model': 'fcn', 'objective': 'root', 'num_classes': 4},
    'fcn, masked': {'model': 'fcn', 'objective': 'masked', 'mask_rate': 0.3},
    'cnn, root': {'model': 'cnn', 'depth': 2, 'objective': 'root', 'num_classes': 4},
    'cnn, last': {'model': 'cnn', 'depth': 2},
    'lcn, root': {'model': 'lcn', 'depth': 2, 'objective': 'root'},
    'gru, all': {'model': 'gru', 'objective': 'all'},
    'gru, last': {'model': 'gru', 'depth': 2},
}


@pytest.mark.parametrize('name', RUNS)
def test_a_short_run_learns(tmp_path: Path, name: str) -> None:
    """The excess of a whole run falls to less than half of what it was."""
    options = {'dataset': 'rhm', 'num_synonyms': 2, 'optim': 'adam', 'lr': 0.03, 'scheduler': 'none', 'max_iters': 150}
    dynamics = train(tiny(tmp_path / 'run', **options, **RUNS[name])).dynamics
    assert dynamics[-1]['excess'] < 0.5 * dynamics[0]['excess']


@pytest.mark.parametrize(
    'name',
    ['cnn, root', *(pytest.param(name, marks=pytest.mark.slow) for name in ('fcn, root', 'lcn, root', 'gru, all'))],
)
def test_runs_of_a_group_are_those_alone(tmp_path: Path, name: str) -> None:
    records = []
    for folder in ('alone', 'together'):
        configs = [
            tiny(tmp_path / folder / str(seed) / 'run', optim='adam', lr=0.01, seed_rules=seed, seed_model=seed,
                 compile='off', **RUNS[name])
            for seed in range(2)
        ]  # fmt: skip
        if folder == 'alone':
            for config in configs:
                train(config)
        else:
            with mock.patch('RLM_clean.plots.save_learning_curve'):
                results = [result for _, result in ensemble.train(configs, quiet)]
            assert all(isinstance(result, Outcome) and result.status == 'done' for result in results)
        records.append([read_log(RunFiles(config.outname))[-1] for config in configs])
    for alone, together in zip(*records, strict=True):
        assert together['testloss'] == pytest.approx(alone['testloss'], rel=1e-4)
    assert records[0][0]['testloss'] != records[0][1]['testloss']


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('name', RUNS)
def test_compiled_steps_are_the_eager_ones(name: str) -> None:
    config = tiny(optim='adam', lr=0.01, **RUNS[name])
    expected = losses_of(config, 'eager', 60)
    assert losses_of(config, 'compiled', 60) == pytest.approx(expected, rel=1e-4)
    assert sum(expected[-20:]) < sum(expected[:20])
