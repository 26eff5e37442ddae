"""Whole runs of every objective: they learn, go on where they were stopped, are trained in groups, and open again."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.image
import pytest
import torch
from interrupted_runs import train_until
from small_runs import assert_same_run, make_trainer, quiet, read_log, tiny, train
from small_sweeps import assert_finished, make_sweep
from step_kinds import losses_of
from test_init import own_registry
from torch import Tensor, nn

from RLM_clean import init, tasks
from RLM_clean.config import OBJECTIVES, Config
from RLM_clean.runs import load_run
from RLM_clean.runs.files import RunFiles
from RLM_clean.sweep import worker
from RLM_clean.training import ensemble, lifecycle, machine
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.lifecycle import Outcome

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

# Options of a run of each objective, with what only some tasks have.
FAST: dict[str, dict[str, Any]] = {
    'last': {'objective': 'last', 'model': 'transformer_bert'},
    'all': {'objective': 'all', 'model': 'gru'},
    'root': {'objective': 'root', 'model': 'cnn', 'depth': 2, 'num_classes': 3},
    'masked': {'objective': 'masked', 'model': 'transformer_bert', 'dropout': 0.1},
    'denoise': {'objective': 'denoise', 'model': 'fcn'},
}
SLOW: dict[str, dict[str, Any]] = {
    f'{objective}, {model}': {'objective': objective, 'model': model, 'depth': 2}
    for objective, models in OBJECTIVES.items()
    for model in models
} | {
    'masked at a rate': {'objective': 'masked', 'model': 'fcn', 'mask_rate': 0.5},
    'denoise at a noise': {'objective': 'denoise', 'model': 'transformer_bert', 'noise': 0.4, 'num_heads': 2},
    'masked, offline': {'objective': 'masked', 'model': 'transformer_bert', 'regime': 'offline', 'train_size': 40},
    'denoise, offline': {'objective': 'denoise', 'model': 'fcn', 'regime': 'offline', 'train_size': 40},
    'root, offline': {'objective': 'root', 'model': 'gru', 'regime': 'offline', 'train_size': 40, 'accumulation': 2},
    'masked, one-hot': {'objective': 'masked', 'model': 'fcn', 'input_format': 'onehot', 'whitening': 1},
    'masked, one-hot bert': {'objective': 'masked', 'model': 'transformer_bert', 'input_format': 'onehot'},
    'denoise, one-hot': {'objective': 'denoise', 'model': 'transformer_bert', 'input_format': 'onehot'},
    'root, one-hot': {'objective': 'root', 'model': 'lcn', 'depth': 2, 'input_format': 'onehot', 'whitening': 1},
    'all, one-hot': {'objective': 'all', 'model': 'gru', 'input_format': 'onehot', 'whitening': 1},
    'root, attention only': {'objective': 'root', 'model': 'transformer_bert', 'ffwd_size': 0, 'dropout': 0.1},
    'masked, rope and mup': {
        'objective': 'masked', 'model': 'transformer_bert', 'positions': 'rope', 'parametrisation': 'mup',
        'lr': 0.003,  # at this width mup multiplies it by 8 for most weights
    },
    'denoise, filtered': {'objective': 'denoise', 'model': 'fcn', 'filtered': 1},
    'root, accumulation': {'objective': 'root', 'model': 'cnn', 'depth': 2, 'accumulation': 3, 'dtype': 'bfloat16'},
    'masked, bfloat16': {'objective': 'masked', 'model': 'transformer_bert', 'dtype': 'bfloat16'},
    'last, bfloat16': {'model': 'transformer_mlm', 'dtype': 'bfloat16', 'num_heads': 2},
}  # fmt: skip

every_run = pytest.mark.parametrize(
    'options',
    [*FAST.values(), *(pytest.param(options, marks=pytest.mark.slow) for options in SLOW.values())],
    ids=[*FAST, *SLOW],
)
# A language that is learnt within some hundred steps.
LEARNT: dict[str, Any] = {
    'dataset': 'rhm', 'num_synonyms': 2, 'optim': 'adam', 'lr': 0.03, 'scheduler': 'none', 'batch_size': 32,
}  # fmt: skip


def test_every_objective_has_a_run() -> None:
    assert FAST.keys() == OBJECTIVES.keys() == tasks.TASKS.keys()


@every_run
def test_the_excess_of_a_short_run_falls(options: dict[str, Any], tmp_path: Path) -> None:
    """To less than 0.6 of what it was at the start; 0.85 where a single layer sees distances alone, not positions."""
    options = {**LEARNT, 'max_iters': 150, **options, 'train_size': 400, 'dropout': 0.0}
    outcome = train(tiny(tmp_path / 'run', **options))
    excess = [record['excess'] for record in outcome.dynamics]
    factor = 0.85 if options.get('positions') == 'rope' else 0.6
    assert excess[-1] < factor * excess[0] and outcome.status == 'done'
    if options.get('regime') != 'offline':
        assert outcome.dynamics[-1]['trainloss'] < outcome.dynamics[0]['trainloss']


@every_run
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(options: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, with the same masks and the same noise."""
    whole, stopped = (tiny(tmp_path / name / 'run', **options) for name in ('whole', 'stopped'))
    train(whole)
    train_until(stopped, 7)
    train_until(stopped, 16)
    assert train(stopped).status == 'done'
    assert_same_run(stopped.outname, whole.outname)


@every_run
def test_runs_of_a_group_have_the_losses_of_lone_runs(options: dict[str, Any], tmp_path: Path) -> None:
    def configs(folder: str) -> list[Config]:
        others: Sequence[dict[str, Any]] = ({}, {'seed_rules': 1, 'lr': 0.01}, {'seed_sample': 2, 'seed_model': 3})
        return [tiny(tmp_path / folder / str(i) / 'run', **{'lr': 0.03, **options, **o}) for i, o in enumerate(others)]

    alone, together = configs('alone'), configs('together')
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        results = [result for _, result in ensemble.train(together, quiet)]
    assert [result.status if isinstance(result, Outcome) else repr(result) for result in results] == ['done'] * 3
    rel = 1e-2 if options.get('dtype') == 'bfloat16' else 1e-4  # 8 bits are 4e-3
    for one, other in zip(alone, together, strict=True):
        train(one)
        a, b = (read_log(RunFiles(config.outname)) for config in (one, other))
        assert [record['t'] for record in a] == [record['t'] for record in b]
        for name in ('trainloss', 'testloss'):
            assert [record[name] for record in b] == pytest.approx([record[name] for record in a], rel=rel)


@pytest.mark.parametrize('model', ('transformer_mlm', 'transformer_clm'))
def test_transformers_in_bfloat16_are_trained_in_groups(model: str, tmp_path: Path) -> None:
    options = {'model': model, 'objective': 'all' if model == 'transformer_clm' else 'last', 'max_iters': 4}
    configs = [tiny(tmp_path / str(i) / 'run', dtype='bfloat16', seed_model=i, **options) for i in (1, 2)]
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        results = [result for _, result in ensemble.train(configs, quiet)]
    assert [result.status if isinstance(result, Outcome) else repr(result) for result in results] == ['done'] * 2


@every_run
def test_a_run_that_is_opened_gives_the_numbers_of_its_last_record(options: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', **options)
    train(config)
    run = load_run(config.outname)
    assert run.task == tasks.of(config) and run.done
    found, record = run.reference.evaluate(run.model(), run.logits), run.dynamics[-1]
    assert (found.loss, found.accuracy, found.excess) == (record['testloss'], record['testacc'], record['excess'])
    assert run.reference.floor()[0] == pytest.approx(run.entropy, abs=1e-12)
    assert found.loss == pytest.approx(run.entropy + found.excess, abs=1e-9)
    inputs, targets = run.test_batch(24)
    assert inputs.shape == (64, config.context_size) and int(inputs.max()) < config.num_inputs
    logits = run.logits(run.model(), inputs)
    assert logits.shape == (*targets.shape, config.num_outputs)
    assert run.task.loss(logits, targets).isfinite()
    probs = run.task.best(run.rlm, inputs)
    assert probs.shape == logits.shape


@pytest.mark.parametrize(
    'name', ('masked', *(pytest.param(name, marks=pytest.mark.slow) for name in FAST if name != 'masked'))
)
def test_the_picture_of_a_run_is_drawn(name: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', **FAST[name])
    lifecycle.train(config, quiet)
    height, width, _ = matplotlib.image.imread(tmp_path / 'run.png').shape
    assert height > 300 and width > 800


# ---------------------------------------------------------------------- models of one's own


class PerToken(nn.Module):
    """Logits of each token from itself alone, or their mean."""

    def __init__(self, num_inputs: int, num_outputs: int, at_each: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_inputs, num_outputs))
        self.at_each = at_each

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.table[inputs]
        return logits if self.at_each else logits.mean(1)


@pytest.mark.parametrize('name', ('root', 'masked', 'denoise', 'all'))
def test_a_registered_model_is_trained_on_every_task(name: str, tmp_path: Path) -> None:
    """It learns what there is to learn from single tokens, and stays above the floor."""
    with own_registry():
        init.register_model('mine', lambda c: PerToken(c.num_inputs, c.num_outputs, tasks.of(c).at_each))
        options = {'lr': 1.0, 'momentum': 0.0, 'scheduler': 'none', 'max_iters': 300, 'batch_size': 64}
        outcome = train(tiny(tmp_path / 'run', model='mine', objective=name, **options))
        run = load_run(tmp_path / 'run')
        assert run.entropy < outcome.dynamics[-1]['testloss'] < outcome.dynamics[0]['testloss'] - 0.02


@pytest.mark.parametrize(
    ('name', 'num_outputs', 'at_each', 'message'),
    (
        ('masked', 8, False, 'logits of shape .* do not fit targets of shape'),
        ('root', 3, True, 'logits of shape .* do not fit targets of shape'),
        ('root', 8, False, 'logits for 8 values of a target do not fit posteriors of 3: build .* num_outputs=3'),
        ('denoise', 9, True, 'logits for 9 values of a target do not fit posteriors of 8: build .* num_outputs=8'),
    ),
)
def test_a_registered_model_of_other_logits_is_refused(
    name: str, num_outputs: int, at_each: bool, message: str, tmp_path: Path
) -> None:
    with own_registry():
        init.register_model('mine', lambda c: PerToken(c.num_inputs, num_outputs, at_each))
        classes = 3 if name == 'root' else 0
        with pytest.raises(ValueError, match=message):
            train(tiny(tmp_path / 'run', model='mine', objective=name, num_classes=classes))


# ---------------------------------------------------------------------- batches of a run


def test_offline_masks_and_noise_are_new_in_each_epoch_and_the_same_for_a_run_that_goes_on(tmp_path: Path) -> None:
    for name in ('masked', 'denoise'):
        config = tiny(regime='offline', train_size=16, max_epochs=4, **FAST[name])
        trainer, again = make_trainer(config), make_trainer(config)
        epochs = []
        for epoch in range(3):  # of two steps
            x, y = (torch.cat([trainer.feed(step)[i][0, 0] for step in (2 * epoch, 2 * epoch + 1)]) for i in (0, 1))
            clean = x.where(x != 8, y) if name == 'masked' else y
            order = torch.tensor(sorted(range(16), key=lambda i, clean=clean: clean[i].tolist()))  # type: ignore[misc]
            epochs.append((clean[order].tolist(), x[order].tolist()))
        assert epochs[0][0] == epochs[1][0] == epochs[2][0]
        assert epochs[0][1] != epochs[1][1] != epochs[2][1]
        for a, b in zip(trainer.feed(3), again.feed(3), strict=True):  # a run that goes on at step 3
            assert torch.equal(a, b)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('name', FAST)
def test_compiled_steps_have_the_losses_of_eager_ones(name: str) -> None:
    config = tiny(optim='adam', lr=0.01, **FAST[name])
    assert losses_of(config, 'compiled', 40) == pytest.approx(losses_of(config, 'eager', 40), rel=1e-4)


@pytest.mark.parametrize('name', FAST)
def test_the_pure_step_has_the_losses_of_the_eager_one(name: str) -> None:
    config = tiny(optim='adam', lr=0.01, **FAST[name])
    assert losses_of(config, 'pure', 20) == pytest.approx(losses_of(config, 'eager', 20), rel=1e-4)


# ---------------------------------------------------------------------- sweeps


@pytest.mark.parametrize(
    'name', ('masked', *(pytest.param(n, marks=pytest.mark.slow) for n in ('root', 'denoise', 'all')))
)
def test_a_sweep_of_groups_trains_them_also_when_it_is_interrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: None)
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3', **FAST[name])
    advance = Ensemble.advance

    def stop(self: Ensemble, steps: int, interrupted: Callable[[], bool]) -> Any:
        failed = advance(self, min(steps, 13 - self.step), interrupted)
        if self.step == 13:
            signal.raise_signal(signal.SIGTERM)
        return failed

    with mock.patch.object(Ensemble, 'advance', stop):
        assert not worker.work(plan.folder, plan.execution, group=3)
    assert worker.work(plan.folder, plan.execution, group=2)
    assert_finished(plan, tmp_path / 'alone')


def test_a_sweep_over_objectives_trains_each_task_in_a_group_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: None)
    plan = make_sweep(
        tmp_path / 'sweep', 'objective=last,root,masked,denoise', 'seed_model=1,2', model='fcn', max_iters=4
    )
    groups: list[set[str]] = []
    together = worker.train_together

    def note(configs: Sequence[Config]) -> Any:
        groups.append({config.objective for config in configs})
        return together(configs)

    monkeypatch.setattr(worker, 'train_together', note)
    assert worker.work(plan.folder, plan.execution, group=8)
    assert groups == [{'last'}, {'root'}, {'masked'}, {'denoise'}]
    assert_finished(plan, tmp_path / 'alone')


def test_options_of_a_task_change_what_a_run_is(tmp_path: Path) -> None:
    """A run of another rate or noise is not taken for this one."""
    masked = tiny(tmp_path / 'masked', objective='masked', model='fcn', max_iters=2)
    denoise = tiny(tmp_path / 'denoise', objective='denoise', model='fcn', max_iters=2)
    root = tiny(tmp_path / 'root', objective='root', max_iters=2)
    for config, other in ((masked, {'mask_rate': 0.5}), (denoise, {'noise': 0.5}), (root, {'num_classes': 3})):
        train(config)
        with pytest.raises(ValueError, match=next(iter(other))):
            train(replace(config, **other))
