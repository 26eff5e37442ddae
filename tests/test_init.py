"""Builders: each option reaches what it governs, and learning rates and times follow their definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import tiny, train
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.config import DATASETS, MODELS, Config
from RLM_clean.datasets import RHM, RLM
from RLM_clean.models import CLM, MLM, MLP
from RLM_clean.runs.run import load_run

examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def config(**options: Any) -> Config:
    return Config(**{'outname': 'unused', 'num_features': 6, 'embedding_dim': 8, **options})


# ---------------------------------------------------------------------- the language and the task


def test_the_language_is_that_of_the_options() -> None:
    c = config(num_layers=3, beta=1.5, seed_rules=5, seed_sample=6)
    rlm = init.init_data(c)
    expected = RLM(6, 3, 1.5, 5, 6)
    assert isinstance(rlm, RLM) and rlm.num_data is None
    assert torch.equal(rlm.M, expected.M)
    assert torch.equal(rlm.sequences(0, 20), expected.sequences(0, 20))


def test_the_offline_regime_fixes_a_training_set_of_train_size() -> None:
    assert len(init.init_data(config(regime='offline', train_size=100))) == 100


def test_the_random_hierarchy_model_is_that_of_the_options() -> None:
    rhm = init.init_data(config(dataset='rhm', num_layers=2, num_synonyms=3, seed_rules=5, seed_sample=6))
    expected = RHM(6, 3, 2, 5, 6)
    assert isinstance(rhm, RHM) and rhm.m == 3
    assert torch.equal(rhm.sequences(0, 20), expected.sequences(0, 20))


@pytest.mark.parametrize('dataset', ['rlm', 'rhm'])
def test_stored_rules_take_the_place_of_the_seed(dataset: str) -> None:
    c = config(dataset=dataset, num_layers=2, num_synonyms=3)
    first = init.init_data(c)
    rules = torch.stack(first.rules) if dataset == 'rhm' else first.rules[0]
    again = init.init_data(config(dataset=dataset, num_layers=2, num_synonyms=3, seed_rules=99), rules=rules)
    assert torch.equal(again.sequences(0, 20), first.sequences(0, 20))


# ---------------------------------------------------------------------- languages and models that a program adds


@contextmanager
def own_registry() -> Iterator[None]:
    """What is registered meanwhile is forgotten after it."""
    kept = [registered.copy() for registered in (DATASETS, MODELS)]
    with mock.patch.dict(init._datasets), mock.patch.dict(init._models):
        yield
    DATASETS[:], MODELS[:] = kept


@pytest.fixture
def registry() -> Iterator[None]:
    with own_registry():
        yield


def cyclic_rules(c: Config) -> Tensor:
    """Each symbol a becomes (a + s, a + 2s), s the seed: no choice at all."""
    v, a = c.num_features, torch.arange(c.num_features)
    rules = torch.zeros(v, v, v, dtype=torch.float64)
    rules[a, (a + c.seed_rules) % v, (a + 2 * c.seed_rules) % v] = 1
    return rules


class Unigram(nn.Module):
    """Logits that do not depend on the context."""

    def __init__(self, v: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(v))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.bias.expand(len(inputs), -1)


@pytest.mark.usefixtures('registry')
def test_a_registered_dataset_is_the_language_of_its_rules() -> None:
    init.register_dataset('cyclic', cyclic_rules)
    grammar = init.init_data(config(dataset='cyclic', num_layers=2, seed_rules=1, regime='offline', train_size=100))
    leaves = grammar.sequences(0, 50)
    assert torch.equal((leaves - leaves[:, :1]) % 6, torch.tensor([0, 1, 1, 2]).expand(50, 4))
    assert grammar.shared and grammar.rules[0].dtype == torch.float32 and len(grammar) == 100
    init.register_dataset('cyclic', lambda c: torch.stack([cyclic_rules(c)] * c.num_layers))
    levels = init.init_data(config(dataset='cyclic', num_layers=2, seed_rules=1))
    assert not levels.shared and torch.equal(levels.sequences(0, 50), leaves)


@pytest.mark.usefixtures('registry')
def test_a_registered_dataset_reads_its_rules_from_the_files_of_a_run(tmp_path: Path) -> None:
    init.register_dataset('cyclic', cyclic_rules)
    train(tiny(tmp_path / 'a', dataset='cyclic', max_iters=2))
    init.register_dataset('cyclic', lambda c: torch.zeros(0))  # later versions may draw other rules
    run = load_run(tmp_path / 'a')
    assert torch.equal(run.rlm.rules[0], cyclic_rules(run.config).float())


@pytest.mark.usefixtures('registry')
def test_a_registered_model_is_trained_and_opened_again(tmp_path: Path) -> None:
    init.register_model('unigram', lambda c: Unigram(c.num_features))
    outcome = train(tiny(tmp_path / 'a', model='unigram', num_layers=1, lr=1.0, max_iters=200))
    run = load_run(tmp_path / 'a')
    model = run.model()
    assert isinstance(model, Unigram)
    # The best predictor that sees nothing has the loss H_0; 64 test sequences leave it uncertain.
    assert run.marginal is not None and abs(outcome.dynamics[-1]['testloss'] - run.marginal) < 0.3
    assert torch.equal(run.logits(model, run.test_batch(0)[0]), model.bias.expand(64, -1))


@pytest.mark.usefixtures('registry')
def test_the_options_of_a_registered_model_are_its_own() -> None:
    init.register_model('unigram', lambda c: Unigram(c.num_features))
    assert config(model='unigram', ffwd_size=0, dropout=0.5).ffwd_size == 0


@pytest.mark.parametrize('option', ['dataset', 'model'])
def test_a_run_of_what_is_not_registered_says_what_to_do(tmp_path: Path, option: str) -> None:
    with own_registry():
        init.register_dataset('mine', cyclic_rules)
        init.register_model('mine', lambda c: Unigram(c.num_features))
        train(tiny(tmp_path / 'a', max_iters=2, **{option: 'mine'}))
    message = f"{option}='mine' is unknown: use .* or register it first by init.register_{option}$"
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / 'a')


@pytest.mark.usefixtures('registry')
def test_what_cannot_be_registered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model='fcn' is one of the library's own: use another name"):
        init.register_model('fcn', lambda c: Unigram(c.num_features))
    with pytest.raises(ValueError, match=r"dataset='rlm' is one of the library's own: use another name"):
        init.register_dataset('rlm', cyclic_rules)
    init.register_dataset('small', lambda c: torch.ones(2, 2, 2) / 4)
    with pytest.raises(ValueError, match=r"dataset='small' has rules of shape \(2, 2, 2\): make them \(6, 6, 6\), or"):
        init.init_data(config(dataset='small'))


def test_sequences_for_mps_are_drawn_beside_it() -> None:
    assert init.init_data(config(), torch.device('mps')).device == torch.device('cpu')


# ---------------------------------------------------------------------- formats of inputs


def test_long_inputs_stay_as_they_are() -> None:
    idx = torch.randint(6, (3, 4))
    assert init.transform_inputs(idx, 6) is idx
    assert init.transform_inputs(idx, 6, 'long') is idx


def test_one_hot_inputs_have_a_one_at_their_token() -> None:
    idx = torch.arange(6).view(2, 3)
    rows = init.transform_inputs(idx, 6, 'onehot')
    assert rows.shape == (2, 3, 6) and rows.dtype == torch.float32
    assert torch.equal(rows.flatten(0, 1), torch.eye(6))


@pytest.mark.parametrize('v', [2, 3, 10, 128])
def test_whitened_inputs_have_mean_zero_and_variance_one_over_uniform_tokens(v: int) -> None:
    rows = init.transform_inputs(torch.arange(v)[:, None], v, 'onehot', 1)[:, 0].double()
    zeros, ones = torch.zeros(v, dtype=torch.float64), torch.ones(v, dtype=torch.float64)
    torch.testing.assert_close(rows.mean(0), zeros, rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.var(0, correction=0), ones, rtol=1e-6, atol=0)
    expected = (torch.eye(v).double() - 1 / v) / math.sqrt(1 / v - 1 / v**2)
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------- the model


def test_the_transformers_are_those_of_the_options() -> None:
    options: dict[str, Any] = {
        'num_layers': 3, 'num_tokens': 6, 'depth': 3, 'num_heads': 2, 'ffwd_size': 3, 'dropout': 0.25,
        'tie_weights': True, 'seed_model': 4,
    }  # fmt: skip
    expected = CLM(6, 5, 8, 2, 3, 3, 0.25, True, seed=4)
    for name, kind in (('transformer_clm', CLM), ('transformer_mlm', MLM)):
        model: Any = init.init_model(config(model=name, **options))
        assert str(model).split('\n')[1:] == str(expected).split('\n')[1:]
        assert model.block_size == 5 and model.tie_weights and model.blocks[0].attention.num_heads == 2
        assert model.dropout.p == 0.25
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
        assert type(model) is kind


@pytest.mark.parametrize('whitening', [0, 1])
def test_the_fully_connected_network_is_that_of_the_options(whitening: int) -> None:
    c = config(
        model='fcn', num_layers=2, depth=3, ffwd_size=2, seed_model=4, input_format='onehot', whitening=whitening
    )
    model = init.init_model(c)
    expected = MLP(6, 3, 16, 3, 1.0 if whitening else 1 / 6, seed=4)
    assert isinstance(model, MLP)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize('input_format', ['long', 'onehot'])
@pytest.mark.parametrize('name', ['transformer_mlm', 'transformer_clm', 'fcn'])
def test_the_logits_of_the_task_are_those_of_the_last_position(name: str, input_format: str) -> None:
    c = config(model=name, num_layers=2, input_format=input_format)
    model = init.init_model(c)
    idx = torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(0))
    direct = model(F.one_hot(idx, 6).float() if input_format == 'onehot' else idx)
    logits = init.task_logits(model, idx, c)
    assert logits.shape == (5, 6)
    torch.testing.assert_close(logits, direct[:, -1] if name == 'transformer_clm' else direct)


def test_the_logits_of_the_objective_all_are_those_of_every_position() -> None:
    c = config(model='transformer_clm', objective='all', num_layers=2)
    model = init.init_model(c)
    idx = torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(init.task_logits(model, idx, c), model(idx))


def test_the_criterion_is_the_mean_cross_entropy_in_float32_or_better() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((10,), (4, 3)):
        logits = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
        targets = torch.randint(6, shape, generator=generator)
        expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
        for dtype, result in (
            (torch.float64, torch.float64),
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.float32),
        ):
            loss = init.cross_entropy(logits.to(dtype), targets)
            assert loss.dtype == result and loss.dim() == 0
            rounded = -logits.to(dtype).double().log_softmax(-1).gather(-1, targets[..., None]).mean()
            torch.testing.assert_close(loss.double(), rounded, rtol=1e-6, atol=0)
        torch.testing.assert_close(init.cross_entropy(logits, targets), expected, rtol=1e-14, atol=0)


# ---------------------------------------------------------------------- the optimizer


def updated(weights: Tensor, gradients: list[Tensor], c: Config) -> Tensor:
    """The weights after updates with these gradients and the scheduled rates."""
    model = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    model.weight.data = weights.clone()
    _, optimizer, scheduler = init.init_training(model, c)
    for step, gradient in enumerate(gradients):
        assert optimizer.param_groups[0]['lr'] == pytest.approx(c.lr * init.lr_factor(step, c), rel=1e-12)
        model.weight.grad = gradient.clone()
        optimizer.step()
        scheduler.step()
    return model.weight.detach()


@pytest.fixture
def problem() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = torch.randn(12, 4, 5, generator=generator)
    return weights, gradients


@pytest.mark.parametrize(('momentum', 'weight_decay'), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_sgd_follows_its_options(problem: tuple[Tensor, list[Tensor]], momentum: float, weight_decay: float) -> None:
    w, gradients = problem
    c = config(optim='sgd', lr=0.1, momentum=momentum, weight_decay=weight_decay, warmup_time=4, decay_time=9)
    found = updated(w, gradients, c)
    velocity = torch.zeros_like(w)
    for step, gradient in enumerate(gradients):
        velocity = momentum * velocity + gradient + weight_decay * w
        w = w - c.lr * init.lr_factor(step, c) * velocity
    torch.testing.assert_close(found, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
def test_adam_follows_its_options(problem: tuple[Tensor, list[Tensor]], weight_decay: float) -> None:
    w, gradients = problem
    c = config(optim='adam', lr=0.01, weight_decay=weight_decay, scheduler='cosine', decay_time=9)
    found = updated(w, gradients, c)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for step, gradient in enumerate(gradients):
        lr = c.lr * init.lr_factor(step, c)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        w = w * (1 - lr * weight_decay)
        w = w - lr * first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    torch.testing.assert_close(found, w, rtol=1e-5, atol=1e-6)


def test_the_optimizer_holds_every_weight_once() -> None:
    model = init.init_model(config(tie_weights=True))
    _, optimizer, _ = init.init_training(model, config())
    held = [id(p) for group in optimizer.param_groups for p in group['params']]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


# ---------------------------------------------------------------------- the learning rate


def test_the_learning_rate_follows_its_definition() -> None:
    c = config(scheduler='cosine-warmup', warmup_time=10, decay_time=1000)
    assert init.lr_factor(0, c) == pytest.approx(0.1)
    assert init.lr_factor(4, c) == pytest.approx(0.5 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.004))))
    assert init.lr_factor(9, c) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.009)))
    assert init.lr_factor(10, c) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.01)))
    assert init.lr_factor(500, c) == pytest.approx(0.55)
    assert init.lr_factor(250, c) == pytest.approx(0.55 + 0.45 * math.sqrt(0.5))
    for late in (1000, 1001, 10**6):
        assert init.lr_factor(late, c) == pytest.approx(0.1)


def test_without_a_scheduler_the_rate_is_constant() -> None:
    for name in ('none', ''):
        c = config(scheduler=name, warmup_time=10, decay_time=100)
        assert {init.lr_factor(step, c) for step in (0, 1, 9, 10, 50, 100, 10**6)} == {1.0}


def test_a_cosine_starts_at_the_full_rate() -> None:
    assert init.lr_factor(0, config(scheduler='cosine')) == 1.0
    assert init.lr_factor(0, config(scheduler='cosine-warmup', warmup_time=0)) == 1.0
    assert init.lr_factor(0, config(scheduler='cosine-warmup', warmup_time=1)) == 1.0


@given(
    scheduler=st.sampled_from(['none', 'cosine', 'cosine-warmup']),
    warmup_time=st.integers(0, 100),
    decay_time=st.integers(1, 10**6),
)
@examples
def test_the_rate_rises_then_falls_and_is_never_zero(scheduler: str, warmup_time: int, decay_time: int) -> None:
    c = config(scheduler=scheduler, warmup_time=warmup_time, decay_time=decay_time)
    top = warmup_time if scheduler == 'cosine-warmup' else 0
    falling = [init.lr_factor(step, c) for step in range(max(0, top - 1), decay_time + 10, 1 + decay_time // 50)]
    assert all(0.1 - 1e-12 <= b <= a <= 1 for a, b in pairwise(falling))
    for step in range(top):
        plain = init.lr_factor(step, config(scheduler='cosine', decay_time=decay_time))
        assert 0 < init.lr_factor(step, c) == pytest.approx(plain * (step + 1) / warmup_time)


# ---------------------------------------------------------------------- times


TIMES = [1, 2, 3, 5, 7, 64, 1000, 25000, 30000]


@given(last=st.one_of(st.sampled_from(TIMES), st.integers(1, 10**6)), save_freq=st.integers(1, 20))
@examples
def test_checkpoints_are_spaced_by_powers_and_hold_the_first_and_the_last_step(last: int, save_freq: int) -> None:
    times = init.save_times(last, save_freq)
    assert times == sorted(set(times))
    assert times[0] == 0 and times[-1] == last and times[1] == 1
    powers = {round(2 ** (k / save_freq)) for k in range(20 * save_freq + 1)}
    assert set(times) == {0, last} | {step for step in powers if step < last}
    ratio = 2 ** (1 / save_freq)
    for step, following in pairwise(times[1:-1]):
        if step * (ratio - 1) >= 1:
            assert abs(following - step * ratio) <= 0.5 * (1 + ratio)
        else:
            assert following - step <= 2
    assert last <= max(2, times[-2] * ratio + 2) or len(times) == 2


@given(
    last=st.one_of(st.sampled_from(TIMES), st.integers(1, 10**5)),
    print_freq=st.integers(1, 5000),
    save_freq=st.integers(1, 8),
)
@examples
def test_records_are_made_at_multiples_and_at_every_checkpoint(last: int, print_freq: int, save_freq: int) -> None:
    times = init.print_times(last, print_freq, save_freq)
    assert times == sorted(set(times))
    assert set(times) == set(range(0, last + 1, print_freq)) | set(init.save_times(last, save_freq))


def test_the_times_of_a_short_run_are_these() -> None:
    assert init.save_times(1, 2) == [0, 1]
    assert init.save_times(2, 2) == [0, 1, 2]
    assert init.save_times(20, 2) == [0, 1, 2, 3, 4, 6, 8, 11, 16, 20]
    assert init.save_times(20, 1) == [0, 1, 2, 4, 8, 16, 20]
    assert init.print_times(20, 5, 1) == [0, 1, 2, 4, 5, 8, 10, 15, 16, 20]
