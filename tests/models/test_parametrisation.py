"""mup: the standard model at the base width, changes of activations that do not grow with width, the rates of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from interrupted_runs import train_until
from small_runs import assert_same_run, make_trainer, tiny, train
from step_kinds import losses_of
from torch import Tensor, nn, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models import CLM, MLP
from RLM_clean.models.parametrisation import BASE_WIDTH, lr_factors
from RLM_clean.runs import load_run
from RLM_clean.training import machine
from RLM_clean.training.backends import EagerUpdate
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.loop import Trainer

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

MUP: dict[str, Any] = {'parametrisation': 'mup', 'embedding_dim': 16, 'num_heads': 2, 'depth': 2, 'num_layers': 2}
MATRICES = ('attention.qkv', 'attention.proj', 'expand', 'contract')
OPTIMS: dict[str, dict[str, Any]] = {
    'sgd': {'optim': 'sgd', 'lr': 0.1, 'weight_decay': 0.1},
    'adam': {'optim': 'adam', 'lr': 0.01, 'weight_decay': 0.1},
}


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(seed))


def model(d: int, mup: bool = True, **options: Any) -> CLM:
    return CLM(7, 5, d, **{'depth': 2, **options}, mup=mup)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize('tie', [False, True])
def test_at_the_base_width_with_one_head_nothing_changes(tie: bool) -> None:
    mup, standard = (model(BASE_WIDTH, mup, tie_weights=tie) for mup in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(mup.parameters(), standard.parameters(), strict=True))
    assert torch.equal(mup(tokens(8, 5)), standard(tokens(8, 5)))
    for kind in ('adam', 'sgd'):
        assert set(lr_factors(mup, kind).values()) == {1.0}


def test_attention_is_scaled_by_the_size_of_a_head_and_logits_by_the_width() -> None:
    for d, heads in ((16, 1), (16, 2), (96, 2)):
        mup, standard = model(d, num_heads=heads), model(d, False, num_heads=heads)
        mup.load_state_dict(standard.state_dict())
        ratio = 8 / (d / heads) ** 0.5  # 8/d_head over 1/sqrt(d_head)
        with torch.no_grad():
            for block in standard.blocks:
                block.get_parameter('attention.qkv.weight')[:d] *= ratio
        torch.testing.assert_close(mup(tokens(8, 5)), standard(tokens(8, 5)) * BASE_WIDTH / d, rtol=1e-5, atol=1e-8)


def test_logits_shrink_with_width_at_the_start() -> None:
    narrow, wide = (CLM(7, 5, d, num_outputs=500, mup=True)(tokens(200, 5)).std().item() for d in (64, 576))
    assert 2.7 < narrow / wide < 3.3  # 3, as 1/sqrt(d)


@pytest.mark.parametrize('kind', OPTIMS)
def test_the_rates_are_those_of_the_table(kind: str) -> None:
    """Matrices of blocks, and all else, by G. Yang et al., arXiv:2203.03466, Table 8."""
    matrix, vector = {'adam': (1 / 4, 1.0), 'sgd': (1.0, 4.0)}[kind]
    wide = model(256, num_heads=4, num_outputs=3)
    factors = lr_factors(wide, kind)
    assert set(factors) == {name for name, _ in wide.named_parameters()}
    matrices = {f'blocks.{i}.{name}.weight' for i in (0, 1) for name in MATRICES}
    assert factors == {name: matrix if name in matrices else vector for name in factors}
    assert matrices < set(factors) and {'tokens.weight', 'positions.weight', 'head.weight', 'norm.bias'} < set(factors)


def test_what_has_no_rates_is_an_error_in_one_sentence() -> None:
    with pytest.raises(ValueError, match='the rates of MLP are not known for mup: use a transformer'):
        lr_factors(MLP(7, 5, 16), 'adam')
    with pytest.raises(ValueError, match=r"optim='lion' has no known rates for mup: use adam or sgd"):
        lr_factors(model(16), 'lion')


# ---------------------------------------------------------------------- the coordinate check


def changes(d: int, mup: bool, kind: str, steps: int = 4) -> dict[str, float]:
    """The root mean square of the change of activations and logits in a few steps, at the same learning rate."""
    options: dict[str, Any] = {'embedding_dim': d, 'parametrisation': 'mup' if mup else 'standard', 'num_features': 7}
    rate = {'adam': 2e-3, 'sgd': 0.5}[kind]
    config = tiny(optim=kind, lr=rate, momentum=0.0, scheduler='none', num_layers=2, ffwd_size=2, **options)
    network = init.init_model(config)
    update = EagerUpdate(network, init.init_optimizer(network, config), config)
    x, targets = tokens(64, 3), tokens(64, seed=1)
    before = activations(network, x)
    for step in range(steps):
        update(step, x[None, None], targets[None, None])
    return {name: (y - before[name]).square().mean().sqrt().item() for name, y in activations(network, x).items()}


@torch.no_grad()
def activations(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    assert isinstance(network, CLM)
    stream = network.embed(x)
    found = {'embeddings': stream}
    for i, block in enumerate(network.blocks):
        stream, _ = block(stream)
        found[f'block {i}'] = stream
    return {**found, 'logits': network.last_logits(x)}


@pytest.mark.parametrize('kind', OPTIMS)
def test_the_change_of_activations_does_not_grow_or_vanish_with_width(kind: str) -> None:
    narrow, wide = changes(64, True, kind), changes(512, True, kind)
    for name in narrow:
        assert 1 / 2 < wide[name] / narrow[name] < 2, name


@pytest.mark.parametrize('kind', OPTIMS)
def test_in_the_standard_parametrisation_it_does(kind: str) -> None:
    narrow, wide = changes(64, False, kind), changes(512, False, kind)
    ratios = [wide[name] / narrow[name] for name in narrow]
    assert max(ratios) > 4 or min(ratios) < 1 / 4


# ---------------------------------------------------------------------- the steps


def by_torch(config: Config, steps: int) -> list[float]:
    """The losses of the plain program: torch's optimizer with a group for each parameter."""
    network = init.init_model(config).double()
    assert isinstance(network, CLM)
    r = config.embedding_dim / 64
    groups = []
    for name, parameter in network.named_parameters():
        matrix = name.startswith('blocks.') and parameter.ndim == 2
        factor = (1 / r if matrix else 1) if config.optim == 'adam' else (1 if matrix else r)
        groups.append({'params': [parameter], 'lr': factor * config.lr, 'weight_decay': config.weight_decay / factor})
    optimizer: optim.Optimizer = optim.SGD(groups, momentum=config.momentum)
    if config.optim == 'adam':
        optimizer = optim.AdamW(groups)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: init.lr_factor(step, config))
    grammar, losses = init.init_data(config), []
    for step in range(steps):
        inputs, targets = grammar.batch(step, config.batch_size)
        optimizer.zero_grad()
        loss = F.cross_entropy(CLM.forward(network, inputs)[:, -1], targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('way', ['eager', 'pure', pytest.param('compiled', marks=[pytest.mark.slow, needs_compiler])])
@pytest.mark.parametrize('kind', OPTIMS)
def test_every_way_to_take_a_step_has_the_rates(kind: str, way: str) -> None:
    config = tiny(**MUP, **OPTIMS[kind], decay_time=16)
    torch.testing.assert_close(losses_of(config, way, 30, double=True), by_torch(config, 30), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kind', OPTIMS)
def test_the_groups_of_the_optimizer_keep_their_factors(kind: str) -> None:
    config = tiny(**MUP, **OPTIMS[kind])
    trainer = make_trainer(config)
    factors = lr_factors(trainer.model, kind)
    groups = trainer.optimizer.param_groups
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    assert sum(len(group['params']) for group in groups) == len(names)
    for _ in range(3):
        trainer.update()
        rate = init.learning_rate(trainer.step - 1, config)
        for group in groups:
            assert {factors[names[parameter]] for parameter in group['params']} == {group['lr_factor']}
            assert group['lr'] == group['lr_factor'] * rate
            assert group['lr'] * group['weight_decay'] == pytest.approx(rate * config.weight_decay, rel=1e-12)


def test_without_mup_there_is_one_group_without_a_factor() -> None:
    (group,) = make_trainer(tiny()).optimizer.param_groups
    assert 'lr_factor' not in group and group['lr'] == tiny().lr


def test_the_scheduler_of_torch_scales_the_rate_of_each_group() -> None:
    config = tiny(**MUP, **OPTIMS['adam'], warmup_time=8)
    _, optimizer, _ = init.init_training(init.init_model(config), config)
    assert [group['lr'] for group in optimizer.param_groups] == [
        pytest.approx(group['lr_factor'] * init.learning_rate(0, config)) for group in optimizer.param_groups
    ]


@pytest.mark.parametrize('kind', OPTIMS)
def test_an_interrupted_run_ends_as_one_that_was_not(kind: str, tmp_path: Path) -> None:
    options = {**MUP, **OPTIMS[kind]}
    whole, parts = (tiny(tmp_path / name / 'run', **options) for name in ('whole', 'parts'))
    train(whole)
    train_until(parts, 13)
    assert train(parts).status == 'done'
    assert_same_run(whole.outname, parts.outname)
    assert load_run(parts.outname).config.parametrisation == 'mup'


@pytest.mark.parametrize('kind', OPTIMS)
def test_runs_of_a_group_are_those_alone(kind: str) -> None:
    """At rates of their own, to rounding: in float64 nothing else differs."""

    def trainers() -> list[Trainer]:
        found = [make_trainer(tiny(**{**MUP, **OPTIMS[kind], 'lr': lr, 'seed_model': 7})) for lr in (0.01, 0.03)]
        for trainer in found:
            trainer.model.double()
            trainer.optimizer = init.init_optimizer(trainer.model, trainer.config)
            trainer.take_steps = EagerUpdate(trainer.model, trainer.optimizer, trainer.config)
        return found

    alone, together = trainers(), trainers()
    for trainer in alone:
        for _ in range(10):
            trainer.update()
    assert Ensemble(together, compile=False).advance(10) == {}
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
