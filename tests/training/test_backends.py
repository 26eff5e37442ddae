"""Steps: the pure function against torch's own optimizers, the pruned and compiled ways against the plain one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_trainer, quiet, tiny, train
from torch import Tensor, nn, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models import CLM
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.training import backends, machine
from RLM_clean.training.backends import CompilationError, GraphUpdate, compiled, make_update
from RLM_clean.training.loop import Trainer

HAS_COMPILER = machine.can_compile(torch.device('cpu'))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason='no C++ compiler')

# A run of each kind of step: optimizers, models, inputs, dropout, accumulation, precision.
KINDS: dict[str, dict[str, Any]] = {
    'sgd': {},
    'sgd without momentum': {'momentum': 0.0},
    'sgd with weight decay': {'weight_decay': 0.1, 'num_layers': 2},
    'adam': {'optim': 'adam', 'weight_decay': 0.1, 'lr': 0.01, 'num_layers': 2},
    'clip': {'grad_clip': 0.1, 'num_layers': 2, 'depth': 2, 'num_heads': 2},
    'dropout': {'dropout': 0.2, 'num_layers': 2},
    'accumulation': {'accumulation': 3, 'dropout': 0.1},
    'all': {'objective': 'all', 'model': 'transformer_clm', 'num_layers': 2},
    # Its embeddings start so small that float32's rounding grows at once: see the tests in float64.
    'tied': {'tie_weights': True, 'num_layers': 2},
    'fcn': {'model': 'fcn', 'num_layers': 2, 'depth': 2},
    'onehot': {'input_format': 'onehot', 'whitening': 1, 'num_layers': 2},
    'bfloat16': {'dtype': 'bfloat16', 'num_layers': 2},
}


class Interpreted(GraphUpdate):
    """The pure function itself, operation by operation."""

    def run(self, inputs: Tensor, targets: Tensor, scalars: backends.Scalars) -> Tensor:
        return self.write(self.tensors, inputs, targets, scalars)


def losses_of(config: Config, kind: str, steps: int, double: bool = False) -> list[float]:
    """The losses of a run's first steps, taken in one of the ways."""
    trainer = make_trainer(config)
    model, optimizer = trainer.model, trainer.optimizer
    if double:
        model.double()
        optimizer = init.init_training(model, config)[1]
    build: dict[str, Callable[..., backends.Update]] = {
        'eager': backends.EagerUpdate, 'pure': Interpreted, 'compiled': backends.CompiledUpdate,
    }  # fmt: skip
    trainer.take_steps = build[kind](model, optimizer, config)
    return [trainer.update().item() for _ in range(steps)]


def plain_losses(config: Config, steps: int, double: bool = False) -> list[float]:
    """The same by the straightforward program: logits at all positions, a batch at a time, torch's plain optimizers."""
    model = init.init_model(config)
    if double:
        model.double()
    grammar = init.init_data(config)
    assert isinstance(model, CLM)
    optimizer: optim.Optimizer = optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, foreach=False)
    if config.optim == 'adam':
        optimizer = optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, foreach=False)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: init.lr_factor(step, config))
    losses = []
    for step in range(steps):
        inputs, targets = grammar.batch(step, config.batch_size)
        optimizer.zero_grad()
        loss = F.cross_entropy(CLM.forward(model, inputs)[:, -1], targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------------- the pure function


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'tied'])
def test_the_pure_function_takes_the_steps_of_autograd_and_torchs_optimizers(kind: str) -> None:
    config = tiny(**{'scheduler': 'cosine-warmup', 'decay_time': 64, 'lr': 0.1, **KINDS[kind]})
    tolerance = 2e-2 if config.dtype == 'bfloat16' else 1e-4
    assert losses_of(config, 'pure', 40) == pytest.approx(losses_of(config, 'eager', 40), rel=tolerance)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind not in ('bfloat16', 'onehot')])
def test_in_float64_they_agree_to_rounding(kind: str) -> None:
    config = tiny(**{'scheduler': 'cosine-warmup', 'decay_time': 64, 'lr': 0.1, **KINDS[kind]})
    eager, pure = (losses_of(config, way, 40, double=True) for way in ('eager', 'pure'))
    assert pure == pytest.approx(eager, rel=1e-9)
    assert eager[-1] < eager[0]


def test_the_pure_function_changes_nothing_that_it_is_given() -> None:
    trainer = make_trainer(tiny(optim='adam', lr=0.1))
    way = Interpreted(trainer.model, trainer.optimizer, trainer.config)
    before = [tensor.clone() for tensor in way.tensors]
    inputs, targets, scalars = way.example(1)
    now = {name: x[0] for name, x in scalars.items()}
    parameters, state, _ = backends.Step(way.model, way.config)(way.parameters, way.state, inputs[0], targets[0], now)
    assert all(torch.equal(a, b) for a, b in zip(before, way.tensors, strict=True))
    changed = [not torch.equal(parameters[name], p) for name, p in way.parameters.items()]
    assert any(changed) and list(state) == ['exp_avg', 'exp_avg_sq']


def test_several_steps_of_one_call_are_the_steps_one_by_one() -> None:
    """What a CUDA graph captures, without a GPU."""
    one, several = (make_trainer(tiny(optim='adam', dropout=0.1)) for _ in range(2))
    one.take_steps = Interpreted(one.model, one.optimizer, one.config)
    several.take_steps = Interpreted(several.model, several.optimizer, several.config)
    several.take_steps.steps_per_call = 8
    one.advance(30)
    calls = []
    while several.step < 30:
        calls.append(len(several.update(30 - several.step)))
    assert calls == [8, 8, 8] + 6 * [1]
    for a, b in zip(one.weights().values(), several.weights().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('seed_model', (1, 2))
def test_pruned_positions_change_no_loss(seed_model: int) -> None:
    """Of 200 steps, against logits at all positions."""
    config = tiny(num_layers=3, depth=2, num_heads=2, lr=0.05, seed_model=seed_model)
    assert losses_of(config, 'eager', 200) == pytest.approx(plain_losses(config, 200), rel=1e-4)
    double = losses_of(config, 'eager', 200, double=True)
    assert double == pytest.approx(plain_losses(config, 200, double=True), rel=1e-9)


# ---------------------------------------------------------------------- compiled


@needs_compiler
@pytest.mark.parametrize('kind', ('sgd', 'adam', 'clip', 'dropout', 'all', 'fcn', 'bfloat16'))
def test_compiled_steps_are_the_eager_ones(kind: str) -> None:
    config = tiny(**{'lr': 0.05, 'decay_time': 64, **KINDS[kind]})
    tolerance = 2e-2 if config.dtype == 'bfloat16' else 1e-4
    expected = losses_of(config, 'eager', 200)
    assert losses_of(config, 'compiled', 200) == pytest.approx(expected, rel=tolerance)
    assert sum(expected[-50:]) < sum(expected[:50])


@needs_compiler
@pytest.mark.parametrize('options', ({'lr': 0.05}, {'optim': 'adam', 'lr': 1e-3}, {'tie_weights': True, 'lr': 0.05}))
def test_compiled_pruned_steps_are_the_plain_ones_in_float64(options: dict[str, Any]) -> None:
    config = tiny(num_layers=2, **options)
    expected = plain_losses(config, 200, double=True)
    assert losses_of(config, 'compiled', 200, double=True) == pytest.approx(expected, rel=1e-9)


@needs_compiler
def test_two_compiled_runs_of_a_process_do_not_meet() -> None:
    """Calls of a compiled step check nothing: each must have code of its own."""
    small, large = tiny(), tiny(embedding_dim=32, batch_size=16, num_layers=2)
    trainers = [make_trainer(replace(config, compile='on')) for config in (small, large, small)]
    losses = [[trainer.update().item() for _ in range(5)] for trainer in trainers for _ in range(2)]
    for config, found in zip((small, large, small), zip(losses[::2], losses[1::2], strict=True), strict=True):
        assert [*found[0], *found[1]] == pytest.approx(losses_of(config, 'eager', 10), rel=1e-4)


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


def test_the_gradient_of_an_embedding_is_a_product() -> None:
    weight = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(7, (3, 4))
    gradient = torch.randn(3, 4, 5, dtype=torch.float64)
    F.embedding(indices, weight).backward(gradient)
    assert weight.grad is not None
    torch.testing.assert_close(backends._embedding_gradient(gradient, indices, 7, -1, False), weight.grad)


def test_a_model_with_buffers_is_not_compiled() -> None:
    trainer = make_trainer(tiny(dropout=0.1))
    trainer.model.register_buffer('table', torch.zeros(3))
    with pytest.raises(CompilationError, match='has buffers: make them parameters, or constants'):
        make_update(trainer.model, trainer.optimizer, trainer.config, compile=True)


@needs_compiler
def test_a_compiled_function_writes_to_the_tensors_of_each_call() -> None:
    example = ([torch.zeros(3)], torch.ones(3), torch.ones(3))
    function = compiled(tiny(), lambda tensors, x, y: tensors[0].add_(x * y).sum(), *example)
    assert example[0][0].tolist() == [0.0] * 3
    ones = [torch.ones(3)]
    assert function(ones, torch.ones(3), torch.ones(3)) == 6.0 and ones[0].tolist() == [2.0] * 3


# ---------------------------------------------------------------------- what auto means, and that runs keep it


def test_auto_weighs_the_compilation_against_the_length_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'which', lambda name: '/usr/bin/' + name)
    choose = machine.choose
    assert choose(Config(outname='x', device='cpu')).compile
    assert not choose(Config(outname='x', device='cpu', max_iters=500)).compile
    assert not choose(Config(outname='x', device='cpu', accumulation=8)).compile
    assert choose(Config(outname='x', device='cpu', max_iters=500, compile='on')).compile
    assert not choose(Config(outname='x', device='cpu', compile='off')).compile
    assert machine.default_compile(Config(outname='x', max_iters=500), torch.device('cuda'))
    assert not machine.default_compile(Config(outname='x'), torch.device('mps'))
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert not choose(Config(outname='x', device='cpu')).compile
    with pytest.raises(ValueError, match="compile='on' finds no compiler for device='cpu': install g"):
        Config(outname='x', device='cpu', compile='on')


def test_what_a_run_began_with_is_kept_unless_it_is_asked_for_otherwise() -> None:
    recorded = {'device': 'cpu', 'threads': 3, 'compile': True}
    assert machine.choose(Config(outname='x', device='cpu', max_iters=9), recorded) == machine.Machine('cpu', 3, True)
    asked = Config(outname='x', device='cpu', compile='off', threads=1)
    assert machine.choose(asked, recorded) == machine.Machine('cpu', 1, False)


def test_a_machine_is_put_back_as_it_was() -> None:
    before = torch.get_num_threads()
    with machine.prepared(machine.Machine('cpu', before + 1, False), deterministic=True) as device:
        assert device.type == 'cpu' and torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before and not torch.are_deterministic_algorithms_enabled()


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


@needs_compiler
def test_an_eager_run_goes_on_compiled_from_the_state_of_torchs_optimizer() -> None:
    for optim_name in ('sgd', 'adam'):
        config = tiny(optim=optim_name, lr=0.01)
        eager = make_trainer(config)
        eager.advance(20)
        eager.record()
        going_on = make_trainer(replace(config, compile='on'))
        going_on.restore(eager.checkpoint())
        eager.advance(40)
        going_on.advance(40)
        assert going_on.since_record == pytest.approx(eager.since_record, rel=1e-4)


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
    seen: list[str] = []
    build = Trainer.__init__

    def watched(self: Trainer, config: Config, *args: Any) -> None:
        seen.append(config.compile)
        build(self, config, *args)

    monkeypatch.setattr(Trainer, '__init__', watched)
    train(config, quiet)
    assert seen == ['on']


# ---------------------------------------------------------------------- when it fails


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError('C++ compile error\nmany lines')

    monkeypatch.setattr(backends, '_compiled', {})
    monkeypatch.setattr(machine, '_STEPS_TO_COMPILE', 1)
    monkeypatch.setattr(machine, 'can_compile', lambda device: True)
    monkeypatch.setattr(torch._inductor, 'compile', fail)


def test_auto_goes_on_without_a_compilation_that_fails(tmp_path: Path, broken_compiler: None) -> None:
    lines: list[str] = []
    config = tiny(tmp_path / 'run')
    assert train(config, lines.append).status == 'done'
    assert 'the step could not be compiled (C++ compile error): going on without' in lines
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_captured_graph_takes_the_eager_steps() -> None:
    config = tiny(device='cuda', optim='adam', dropout=0.1)
    models = [init.init_model(config).cuda().train() for _ in range(2)]
    ways = [
        make_update(model, init.init_training(model, config)[1], config, compile)
        for model, compile in zip(models, (False, True), strict=True)
    ]
    grammar = init.init_data(config)
    inputs, targets = (x[:, None].cuda() for x in init.select_task(*grammar.batches(0, 32, config.batch_size), config))
    eager = torch.cat([ways[0](step, inputs[step : step + 1], targets[step : step + 1]) for step in range(32)])
    captured = torch.cat([ways[1](0, inputs[:16], targets[:16]), ways[1](16, inputs[16:], targets[16:])])
    torch.testing.assert_close(captured, eager, rtol=1e-4, atol=0)
    assert isinstance(models[0], nn.Module)
