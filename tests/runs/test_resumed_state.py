"""What a checkpoint keeps beside the model, down to what only the very end of a run needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from interrupted_runs import train_until
from small_runs import assert_same_run, tiny, train

from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.storage import load

# Too many contexts for a sum: the excess is sampled and has an error.
SAMPLED: dict[str, Any] = {'num_layers': 3, 'max_iters': 12}


def test_the_error_of_the_excess_is_resumed_after_the_last_record(tmp_path: Path) -> None:
    """The process is killed between the last checkpoint and the final file: no record is made after that."""
    config = tiny(tmp_path / 'run', **SAMPLED)
    whole = train(config)
    assert whole.excess_error > 0
    files = RunFiles(config.outname)
    expected = load(files.final)['output']['excess_error']
    files.final.unlink()
    outcome = train(config)
    assert outcome.status == 'done' and outcome.excess_error == whole.excess_error
    assert load(files.final)['output']['excess_error'] == expected == whole.excess_error


def test_a_run_with_a_sampled_excess_ends_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole, stopped = (tiny(tmp_path / name / 'run', **SAMPLED) for name in ('whole', 'stopped'))
    train(whole)
    assert train_until(stopped, 8).excess_error > 0
    train(stopped)
    assert_same_run(stopped.outname, whole.outname)


def test_the_best_model_is_resumed_when_no_later_one_is_better(tmp_path: Path) -> None:
    options: dict[str, Any] = {'optim': 'adam', 'lr': 0.3, 'scheduler': 'none', 'max_iters': 3}
    whole, stopped = (tiny(tmp_path / name / 'run', **options) for name in ('whole', 'stopped'))
    best = train(whole).best
    assert best['step'] == 0
    train_until(stopped, 2)
    resumed = train(stopped).best
    assert resumed['step'] == 0 and resumed['excess'] == best['excess']
    assert all(torch.equal(x, resumed['model'][name]) for name, x in best['model'].items())
