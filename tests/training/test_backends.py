"""The ways to take a step: each takes the steps of the eager one, and leaves what is not trained as it is.

A compilation takes seconds, so the default run has one of each kind that matters; the others are slow tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_trainer, quiet, tiny, train
from step_kinds import FROZEN, KINDS, WAYS, Interpreted, frozen_trainer, losses_of, moved, plain_losses
from test_init import own_registry
from torch import Tensor

from RLM_clean import init, tasks
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.training import backends, compiler, loop, machine
from RLM_clean.training.backends import CapturedUpdate, CompilationError, make_update

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
slow = pytest.mark.slow


def assert_takes_the_eager_steps(config: Config, steps: int = 100) -> None:
    tolerance = 2e-2 if config.dtype == 'bfloat16' else 1e-4
    expected = losses_of(config, 'eager', steps)
    assert losses_of(config, 'compiled', steps) == pytest.approx(expected, rel=tolerance)
    assert sum(expected[-25:]) < sum(expected[:25])


# ---------------------------------------------------------------------- compiled


@needs_compiler
def test_compiled_steps_are_the_eager_ones() -> None:
    assert_takes_the_eager_steps(tiny(optim='adam', lr=0.01, grad_clip=0.1, dropout=0.1))


@slow
@needs_compiler
@pytest.mark.parametrize('kind', ('sgd', 'adam', 'clip', 'dropout', 'all', 'fcn', 'bfloat16'))
def test_compiled_steps_of_every_kind_are_the_eager_ones(kind: str) -> None:
    assert_takes_the_eager_steps(tiny(**{'lr': 0.05, 'decay_time': 64, **KINDS[kind]}), steps=200)


@slow
@needs_compiler
@pytest.mark.parametrize('options', ({'lr': 0.05}, {'optim': 'adam', 'lr': 1e-3}, {'tie_weights': True, 'lr': 0.05}))
def test_compiled_steps_are_the_plain_ones_in_float64(options: dict[str, Any]) -> None:
    config = tiny(num_layers=2, **options)
    expected = plain_losses(config, 200, double=True)
    assert losses_of(config, 'compiled', 200, double=True) == pytest.approx(expected, rel=1e-9)


@slow
@needs_compiler
def test_compiled_runs_of_a_process_with_other_shapes_have_programs_of_their_own() -> None:
    """Calls of a program check nothing."""
    small, large = tiny(), tiny(embedding_dim=32, batch_size=16, num_layers=2)
    trainers = [make_trainer(replace(config, compile='on')) for config in (small, large, small)]
    losses = [[trainer.update().item() for _ in range(5)] for trainer in trainers for _ in range(2)]
    for config, found in zip((small, large, small), zip(losses[::2], losses[1::2], strict=True), strict=True):
        assert [*found[0], *found[1]] == pytest.approx(losses_of(config, 'eager', 10), rel=1e-4)


@slow
@needs_compiler
def test_compiled_steps_of_two_threads_repeat_bit_for_bit() -> None:
    """Many rows of few symbols add up in each row of the embedding's gradient."""
    config = tiny(num_layers=4, batch_size=64, num_features=4, compile='on')
    torch.set_num_threads(2)
    runs = [make_trainer(config) for _ in range(2)]
    for trainer in runs:
        trainer.advance(20)
    torch.set_num_threads(1)
    assert runs[0].since_record == runs[1].since_record
    assert runs[0].since_record == pytest.approx(losses_of(config, 'eager', 20), rel=1e-4)


def test_a_model_with_buffers_is_not_compiled() -> None:
    trainer = make_trainer(tiny(dropout=0.1))
    trainer.model.register_buffer('table', torch.zeros(3))
    with pytest.raises(CompilationError, match='MLM has buffers: use parameters with requires_grad=False'):
        make_update(trainer.model, trainer.optimizer, trainer.config, compile=True)


# ---------------------------------------------------------------------- parameters with requires_grad=False


@pytest.mark.parametrize('optim', ('sgd', 'adam'))
@pytest.mark.parametrize('way', ('eager', 'pure', pytest.param('compiled', marks=[slow, needs_compiler])))
def test_what_is_not_trained_stays(way: str, optim: str) -> None:
    """In 40 steps, while everything else moves as it does in eager steps; decay and clipping do not touch it."""
    config = tiny(optim=optim, lr=0.01, weight_decay=0.1, grad_clip=0.5)
    eager, trainer = frozen_trainer(config), frozen_trainer(config)
    trainer.take_steps = WAYS[way](trainer.model, trainer.optimizer, config)
    for each in (eager, trainer):
        each.advance(40)
    assert moved(trainer.model, config) == set(trainer.model.state_dict()) - {FROZEN}
    assert trainer.since_record == pytest.approx(eager.since_record, rel=1e-4)


def test_what_is_not_trained_is_that_of_each_run_and_not_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs share a program, here the graph itself; their frozen embeddings differ."""
    monkeypatch.setattr(compiler, '_programs', {})
    monkeypatch.setattr(compiler, '_compile', lambda graph, example: graph)
    for seed_model in (1, 2):
        config = tiny(seed_model=seed_model, lr=0.1)
        eager, trainer = frozen_trainer(config), frozen_trainer(config)
        trainer.take_steps = WAYS['compiled'](trainer.model, trainer.optimizer, config)
        for each in (eager, trainer):
            each.advance(20)
        assert FROZEN not in moved(trainer.model, config) and len(compiler._programs) == 1
        assert trainer.since_record == pytest.approx(eager.since_record, rel=1e-4)


def test_a_run_whose_embedding_is_not_trained_resumes() -> None:
    config = tiny(optim='adam', lr=0.01)
    whole, stopped = (frozen_trainer(config) for _ in range(2))
    for trainer in (whole, stopped):
        trainer.take_steps = Interpreted(trainer.model, trainer.optimizer, config)
    stopped.advance(7)
    stopped.record()
    resumed = frozen_trainer(config)
    resumed.take_steps = Interpreted(resumed.model, resumed.optimizer, config)
    resumed.restore(stopped.checkpoint())
    for trainer in (whole, resumed):
        trainer.advance(20)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights().values(), resumed.weights().values(), strict=True))


# ---------------------------------------------------------------------- what a run keeps


@slow
@needs_compiler
def test_a_compiled_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {'optim': 'adam', 'dropout': 0.1, 'max_iters': 40}
    whole = tiny(tmp_path / 'whole', **options, compile='on')
    train(whole, quiet)
    stopped = tiny(tmp_path / 'stopped', **options, compile='on')
    trainer = make_trainer(stopped)
    for end in (13, 29, 40):
        fresh = make_trainer(stopped)
        if trainer.step:
            fresh.restore(trainer.checkpoint())
        trainer = fresh
        trainer.advance(end)
        trainer.record()
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights().values(), weights_of(whole).values(), strict=True))
    counted = trainer.checkpoint()['resume']['optimizer']['state'].values()
    assert {state['step'].item() for state in counted} == {40.0}


def weights_of(config: Config) -> dict[str, Tensor]:
    return load_run(config.outname).model().state_dict()


@pytest.mark.parametrize('optim', ('sgd', 'adam'))
@pytest.mark.parametrize('way', ('pure', pytest.param('compiled', marks=[slow, needs_compiler])))
def test_an_eager_run_goes_on_as_a_graph_from_the_state_of_torchs_optimizer(optim: str, way: str) -> None:
    config = tiny(optim=optim, lr=0.01)
    eager = make_trainer(config)
    eager.advance(20)
    eager.record()
    going_on = make_trainer(config)
    going_on.take_steps = WAYS[way](going_on.model, going_on.optimizer, config)
    going_on.restore(eager.checkpoint())
    eager.advance(40)
    going_on.advance(40)
    assert going_on.since_record == pytest.approx(eager.since_record, rel=1e-4)
    going_on.record()
    eager.record()
    saved, expected = (t.checkpoint()['resume']['optimizer']['state'] for t in (going_on, eager))
    assert [list(part) for part in saved.values()] == [list(part) for part in expected.values()]
    assert all(part['step'].item() == 40 for part in saved.values() if 'step' in part)


@slow
@needs_compiler
def test_files_say_what_auto_chose_and_a_resumed_run_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / 'run')
    monkeypatch.setattr(machine, '_STEPS_TO_COMPILE', 1)
    train(config, quiet)
    files = RunFiles(config.outname)
    assert files.load_config()['machine'] == {'device': 'cpu', 'threads': 1, 'compile': True}
    assert files.load_final()['output']['machine'] == files.load_config()['machine']
    assert files.load_config()['config']['compile'] == 'auto'
    assert not any('_orig_mod' in name for name in files.load_final()['model'])
    monkeypatch.undo()
    files.final.unlink()
    made: list[bool] = []

    def watched(*arguments: Any) -> backends.Update:
        made.append(arguments[3])
        return make_update(*arguments)

    monkeypatch.setattr(loop, 'make_update', watched)
    train(config, quiet)
    assert made == [True]


# ---------------------------------------------------------------------- when it fails


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError('C++ compile error\nmany lines')

    monkeypatch.setattr(compiler, '_programs', {})
    monkeypatch.setattr(compiler, '_compile', fail)
    monkeypatch.setattr(machine, '_STEPS_TO_COMPILE', 1)
    monkeypatch.setattr(machine, 'can_compile', lambda device: True)


def test_auto_goes_on_without_a_compilation_that_fails(tmp_path: Path, broken_compiler: None) -> None:
    lines: list[str] = []
    config = tiny(tmp_path / 'run')
    assert train(config, lines.append).status == 'done'
    assert 'the step could not be compiled (C++ compile error): the run goes on without' in lines
    assert RunFiles(config.outname).load_config()['machine']['compile'] is False
    train(tiny(tmp_path / 'eager', compile='off'), quiet)
    eager = load_run(tmp_path / 'eager').model().state_dict()
    assert all(torch.equal(a, eager[name]) for name, a in weights_of(config).items())


def test_on_says_that_it_fails_and_writes_nothing(tmp_path: Path, broken_compiler: None) -> None:
    with pytest.raises(ValueError, match=r"compile='on' fails \(C\+\+ compile error\): use auto or off"):
        train(tiny(tmp_path / 'runs' / 'run', compile='on'), quiet)
    assert list((tmp_path / 'runs').iterdir()) == []


def test_a_failed_compilation_changes_no_weight(broken_compiler: None) -> None:
    trainer = make_trainer(tiny())
    before = trainer.weights()
    with pytest.raises(CompilationError):
        make_update(trainer.model, trainer.optimizer, trainer.config, compile=True)
    assert all(torch.equal(a, before[name]) for name, a in trainer.weights().items())


# ---------------------------------------------------------------------- captured as a CUDA graph


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_takes_the_eager_steps() -> None:
    config = tiny(device='cuda', optim='adam', dropout=0.1)
    models = [init.init_model(config).cuda().train() for _ in range(2)]
    ways = [
        make_update(model, init.init_optimizer(model, config), config, compile)
        for model, compile in zip(models, (False, True), strict=True)
    ]
    grammar = init.init_data(config)
    inputs, targets = (
        x[:, None].cuda() for x in tasks.of(config).batches(grammar, config.window, 0, 32, config.batch_size)
    )
    eager = torch.cat([ways[0](step, inputs[step : step + 1], targets[step : step + 1]) for step in range(32)])
    captured = torch.cat([ways[1](0, inputs[:16], targets[:16]), ways[1](16, inputs[16:], targets[16:])])
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=0)


def test_a_failed_capture_is_a_failed_compilation_and_changes_no_weight() -> None:
    """Here for want of CUDA."""
    trainer = make_trainer(tiny())
    before = trainer.weights()
    with pytest.raises(CompilationError):
        CapturedUpdate(trainer.model, trainer.optimizer, trainer.config)
    assert all(torch.equal(a, before[name]) for name, a in trainer.weights().items())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize('kind', ('sgd', 'adam', 'clip', 'all', 'fcn', 'bfloat16'))
def test_captured_steps_of_every_kind_are_the_eager_ones(kind: str) -> None:
    config = tiny(**{'lr': 0.05, 'decay_time': 64, **KINDS[kind], 'device': 'cuda', 'compile': 'off'})
    eager, captured = make_trainer(config), make_trainer(replace(config, compile='on'))
    for trainer in (eager, captured):
        trainer.advance(100)
    tolerance = 2e-2 if config.dtype == 'bfloat16' else 1e-3
    assert captured.since_record == pytest.approx(eager.since_record, rel=tolerance)


@pytest.mark.gpu
@needs_gpu
def test_a_model_that_cannot_be_captured_is_trained_without(tmp_path: Path) -> None:
    """A number that the host reads is not known while a graph is captured."""

    class Reads(torch.nn.Module):
        def __init__(self, v: int) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(v))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.bias.expand(len(inputs), -1) * (1 + 0 * inputs.sum().item())

    with own_registry():
        init.register_model('reads', lambda c: Reads(c.num_features))
        said: list[str] = []
        train(tiny(tmp_path / 'run', model='reads', device='cuda', compile='auto'), said.append)
        assert any('the step could not be compiled' in line for line in said)
        assert load_run(tmp_path / 'run').done


@pytest.mark.gpu
@needs_gpu
def test_a_captured_graph_leaves_what_is_not_trained() -> None:
    config = tiny(device='cuda', optim='adam', lr=0.01)
    trainer = frozen_trainer(config)
    trainer.take_steps = CapturedUpdate(trainer.model, trainer.optimizer, config)
    trainer.advance(40)
    assert moved(trainer.model, config) == set(trainer.model.state_dict()) - {FROZEN}
