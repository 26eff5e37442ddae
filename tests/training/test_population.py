"""The regime population: steps on the exact loss, against sums over all trees and means over many sequences."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from brute_force import joint
from interrupted_runs import train_until
from small_runs import assert_same_run, make_trainer, read_log, tiny, train
from torch import Tensor

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import ensemble, machine
from RLM_clean.training.loop import Trainer

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

KINDS: dict[str, dict[str, Any]] = {
    'last': {},
    'fewer tokens': {'num_tokens': 3},
    'all': {'objective': 'all', 'model': 'transformer_clm'},
    'root': {'objective': 'root', 'num_classes': 2},
    'rhm': {'dataset': 'rhm', 'num_synonyms': 2},
    'filtered': {'filtered': 1},
}


def population(outname: Path | str = 'run', **options: Any) -> Config:
    return tiny(outname, **{'regime': 'population', 'num_features': 4, 'beta': 1.0, **options})


def gradient(trainer: Trainer, batch: tuple[Tensor, Tensor], config: Config) -> Tensor:
    inputs, targets = (x[0, 0] for x in batch)
    loss = init.task_loss(init.task_logits(trainer.model, inputs, config), targets, config)
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()))
    return torch.cat([g.flatten() for g in gradients]).double()


@pytest.mark.parametrize('name', KINDS)
def test_the_gradient_is_the_mean_over_many_sequences(name: str) -> None:
    """Within 4.5 standard errors of 100 means of 10^4 sequences; by chance outside for one of 10^3 weights: 0.7%."""
    config = population(**KINDS[name])
    trainer = make_trainer(config)
    exact = gradient(trainer, trainer.feed(0), config)
    sampled = tiny(**{**KINDS[name], 'num_features': 4, 'beta': 1.0, 'batch_size': 10**4})
    others = make_trainer(sampled)
    others.model.load_state_dict(trainer.model.state_dict())
    parts = [gradient(others, others.feed(step), sampled) for step in range(100)]
    means = torch.stack(parts)
    error = means.std(0) / 10
    assert (error > 0).any()
    # Float32 rounds the sums; unused weights have no gradient and no error.
    assert ((means.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all()
    # A test that could not fail would pass for a law that is 3% off: the gradient differs from that of a uniform law.
    inputs, law = trainer.feed(0)
    other = gradient(trainer, (inputs, torch.full_like(law, law.sum().item() / law.numel())), config)
    assert ((means.mean(0) - other).abs() > 4.5 * error + 1e-6).any()


def test_the_loss_is_the_sum_over_all_trees() -> None:
    config = population()
    trainer = make_trainer(config)
    law = joint(trainer.language.grammar)
    every = torch.cartesian_prod(*[torch.arange(4)] * 4)
    log_q = torch.log_softmax(trainer.model(every[:, :3]).double(), -1).gather(1, every[:, 3:])[:, 0]
    assert trainer.update().item() == pytest.approx(-(law.flatten() * log_q).sum().item(), rel=1e-6)


def test_the_first_record_has_the_exact_loss_and_trains_on_it(tmp_path: Path) -> None:
    """Here the reference holds all contexts too: the training loss of the next step is the test loss of the last."""
    outcome = train(population(tmp_path / 'run', optim='adam', lr=0.01, save_freq=1, max_iters=64, print_freq=1))
    records = outcome.dynamics
    assert records[0]['trainloss'] == pytest.approx(records[0]['testloss'], rel=1e-6)
    for before, after in pairwise(records):
        assert after['trainloss'] == pytest.approx(before['testloss'], rel=1e-5)
    assert records[-1]['excess'] < 0.5 * records[0]['excess']


@pytest.mark.parametrize('name', ('last', 'root'))
def test_two_runs_are_bit_identical_and_so_is_a_resumed_one(tmp_path: Path, name: str) -> None:
    """Also with another seed of the sequences, of which none is drawn."""
    configs = [
        population(tmp_path / str(i) / 'run', optim='adam', seed_sample=seed, **KINDS[name])
        for i, seed in enumerate((1, 1, 2))
    ]
    train(configs[0])
    train_until(configs[1], 12)
    train(configs[1])
    train(configs[2])
    assert_same_run(configs[0].outname, configs[1].outname)
    first, other = (read_log(RunFiles(configs[i].outname)) for i in (0, 2))
    assert [r['trainloss'] for r in first] == [r['trainloss'] for r in other]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('name', ('last', 'all'))
def test_compiled_steps_take_the_exact_loss(tmp_path: Path, name: str) -> None:
    options = {**KINDS[name], 'optim': 'adam', 'max_iters': 100}
    plain, fast = (train(population(tmp_path / x / 'run', compile=x, **options)) for x in ('off', 'on'))
    for a, b in zip(plain.dynamics, fast.dynamics, strict=True):
        assert b['trainloss'] == pytest.approx(a['trainloss'], rel=1e-4)


def test_a_group_trains_on_the_exact_loss(tmp_path: Path) -> None:
    alone, together = ([population(tmp_path / f'{i}' / kind, beta=i + 1.0) for i in range(2)] for kind in 'ab')
    ends = {config.outname: outcome for config, outcome in ensemble.train(together)}
    for one, other in zip(alone, together, strict=True):
        result = ends[other.outname]
        assert not isinstance(result, Exception)
        assert result.dynamics[-1]['trainloss'] == pytest.approx(train(one).dynamics[-1]['trainloss'], rel=1e-4)
