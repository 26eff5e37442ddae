"""The pure step: torch's own gradients and optimizers, to rounding, for every option; and it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import make_trainer, tiny
from step_kinds import KINDS, WAYS, Interpreted, losses_of, plain_losses
from torch import Tensor, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.training.step import Step, adamw, clip, scalars_of, sgd

STEPS = 40


def random_parameters(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {'a': (4, 3), 'b': (5,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def by_torch(optimizer: optim.Optimizer, parameters: list[Tensor], config: Config) -> None:
    """STEPS steps on random gradients, the learning rate set for each."""
    for step, lr in enumerate(scalars_of(config, range(STEPS))['lr']):
        for p, g in zip(parameters, random_parameters(step).values(), strict=True):
            p.grad = g
        optimizer.param_groups[0]['lr'] = lr.item()
        optimizer.step()


@pytest.mark.parametrize('momentum', (0.0, 0.9))
@pytest.mark.parametrize('weight_decay', (0.0, 0.1))
def test_sgd_is_that_of_torch(momentum: float, weight_decay: float) -> None:
    config = tiny(momentum=momentum, weight_decay=weight_decay, lr=0.1, decay_time=16)
    expected = list(random_parameters(-1).values())
    by_torch(optim.SGD(expected, lr=1, momentum=momentum, weight_decay=weight_decay), expected, config)
    parameters = random_parameters(-1)
    state = {'momentum_buffer': {name: torch.zeros_like(p) for name, p in parameters.items()}} if momentum else {}
    scalars = scalars_of(config, range(STEPS))
    for step in range(STEPS):
        now = {name: x[step] for name, x in scalars.items()}
        parameters, state = sgd(parameters, random_parameters(step), state, now, config)
    for p, q in zip(parameters.values(), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('weight_decay', (0.0, 0.1))
def test_adamw_is_that_of_torch(weight_decay: float) -> None:
    config = tiny(optim='adam', weight_decay=weight_decay, lr=0.1, decay_time=16)
    expected = list(random_parameters(-1).values())
    by_torch(optim.AdamW(expected, lr=1, weight_decay=weight_decay), expected, config)
    parameters = random_parameters(-1)
    state = {key: {name: torch.zeros_like(p) for name, p in parameters.items()} for key in ('exp_avg', 'exp_avg_sq')}
    scalars = scalars_of(config, range(STEPS))
    for step in range(STEPS):
        now = {name: x[step] for name, x in scalars.items()}
        parameters, state = adamw(parameters, random_parameters(step), state, now, config)
    for p, q in zip(parameters.values(), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('limit', (0.1, 100.0))
def test_gradients_are_clipped_as_by_torch(limit: float) -> None:
    gradients = random_parameters(0)
    clipped = clip(gradients, torch.tensor(limit, dtype=torch.float64))
    parameters = list(random_parameters(1).values())
    for p, g in zip(parameters, gradients.values(), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    for p, g in zip(parameters, clipped.values(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'tied'])
def test_it_takes_the_steps_of_autograd_and_torchs_optimizers(kind: str) -> None:
    config = tiny(**{'scheduler': 'cosine-warmup', 'decay_time': 64, 'lr': 0.1, **KINDS[kind]})
    tolerance = 2e-2 if config.dtype == 'bfloat16' else 1e-4
    assert losses_of(config, 'pure', STEPS) == pytest.approx(losses_of(config, 'eager', STEPS), rel=tolerance)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind not in ('bfloat16', 'onehot')])
def test_in_float64_they_agree_to_rounding(kind: str) -> None:
    config = tiny(**{'scheduler': 'cosine-warmup', 'decay_time': 64, 'lr': 0.1, **KINDS[kind]})
    eager, pure = (losses_of(config, way, STEPS, double=True) for way in ('eager', 'pure'))
    assert pure == pytest.approx(eager, rel=1e-9)
    assert eager[-1] < eager[0]


def test_what_a_model_does_not_use_decays_in_each_way() -> None:
    """Such a parameter has no gradient, or a gradient of zero."""
    found = []
    for way in ('eager', 'pure'):
        trainer = make_trainer(tiny(optim='adam', lr=0.1, weight_decay=0.1, scheduler='none'))
        trainer.model.register_parameter('unused', torch.nn.Parameter(torch.ones(3)))
        optimizer = init.init_optimizer(trainer.model, trainer.config)
        trainer.take_steps = WAYS[way](trainer.model, optimizer, trainer.config)
        trainer.advance(20)
        found.append(trainer.model.get_parameter('unused').detach())
    torch.testing.assert_close(found[0], torch.full((3,), 0.99**20))
    torch.testing.assert_close(found[0], found[1])


def test_it_changes_nothing_that_it_is_given() -> None:
    trainer = make_trainer(tiny(optim='adam', lr=0.1))
    way = Interpreted(trainer.model, trainer.optimizer, trainer.config)
    before = [tensor.clone() for tensor in way.tensors]
    inputs, targets, scalars = way.example(1)
    now = {name: x[0] for name, x in scalars.items()}
    step = Step(way.model, way.config)
    parameters, state, _ = step(way.parameters, way.state, way.frozen, inputs[0], targets[0], now)
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


@pytest.mark.parametrize('options', ({}, {'optim': 'adam'}, {'tie_weights': True}))
def test_a_head_at_the_last_position_alone_changes_no_loss(options: dict[str, Any]) -> None:
    """Of 60 steps in float64, against logits at all positions and torch's plain optimizers."""
    config = tiny(num_layers=3, depth=2, num_heads=2, **{'lr': 0.01, **options})
    found = losses_of(config, 'eager', 60, double=True)
    assert found == pytest.approx(plain_losses(config, 60, double=True), rel=1e-9)
