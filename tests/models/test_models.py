"""What holds of every model: its shapes, its weights as a function of the seed, its gradients, many at once.

`BUILDERS` of small_models.py has every architecture with every option of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import BUILDERS, SHAPES, T, V, grown, tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from RLM_clean.models import set_dropout_key
from RLM_clean.training import compiler, machine


@pytest.mark.parametrize('name', BUILDERS)
def test_logits_have_the_shape_of_the_targets(name: str) -> None:
    model = grown(BUILDERS[name](0))
    assert model(tokens(V, 4, T)).shape == (4, *SHAPES.get(name, (T, V)))


@pytest.mark.parametrize('name', BUILDERS)
def test_one_hot_rows_and_token_indices_give_the_same_logits(name: str) -> None:
    model = grown(BUILDERS[name](0))
    idx = tokens(V, 20, T)
    torch.testing.assert_close(model(F.one_hot(idx, V).float()), model(idx), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', BUILDERS)
def test_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    build = BUILDERS[name]
    state = torch.get_rng_state()
    first = build(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    torch.randn(5)
    second, other = build(3), build(4)
    for (key, mine), theirs, different in zip(
        first.state_dict().items(), second.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
        random = key.endswith('weight') and 'norm' not in key  # gains start at one and biases at zero
        assert torch.equal(mine, different) != random, key
        assert mine.isfinite().all() and mine.dtype == torch.float32
    assert all(p.device.type == 'cpu' and p.requires_grad for p in first.parameters())


@pytest.mark.parametrize('name', BUILDERS)
def test_a_model_forgets_what_it_was_when_its_weights_are_drawn_anew(name: str) -> None:
    model: Any = BUILDERS[name](3)
    model.reset_parameters(4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), BUILDERS[name](4).parameters(), strict=True))


@pytest.mark.parametrize('name', BUILDERS)
def test_logits_start_small(name: str) -> None:
    """So the loss starts at that of the uniform guess: see the tests of each architecture."""
    logits = BUILDERS[name](0)(tokens(V, 500, T))
    assert 0 < logits.abs().max() < 0.1


@pytest.mark.parametrize('name', BUILDERS)
def test_every_weight_of_a_model_gets_a_gradient(name: str) -> None:
    model = grown(BUILDERS[name](0))
    logits = model(tokens(V, 64, T))
    F.cross_entropy(logits.flatten(0, -2), tokens(logits.shape[-1], logits[..., 0].numel(), seed=1)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), key


@pytest.mark.parametrize('name', BUILDERS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """The derivative along a random direction, of a random sum of logits."""
    model = grown(BUILDERS[name](0).double()).train()
    set_dropout_key(model, 7)
    idx, generator = tokens(V, 3, T), torch.Generator().manual_seed(2)
    weights = torch.randn(model(idx).shape, generator=generator, dtype=torch.float64)
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    direction = {key: torch.randn(p.shape, generator=generator, dtype=torch.float64) for key, p in parameters.items()}

    def at(step: float) -> Tensor:
        values = {key: p + step * direction[key] for key, p in parameters.items()}
        return (torch.func.functional_call(model, values, idx) * weights).sum()

    (model(idx) * weights).sum().backward()
    exact = sum((p.grad * direction[key]).sum() for key, p in model.named_parameters())
    h = 1e-4 / 3
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    torch.testing.assert_close(difference, exact, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- many at once, and compiled


@pytest.mark.parametrize('name', BUILDERS)
def test_models_that_are_stacked_give_what_each_gives_alone(name: str) -> None:
    models = [grown(BUILDERS[name](seed).double(), seed) for seed in range(3)]
    batches = torch.stack([tokens(V, 4, T, seed=seed) for seed in range(3)])
    stacked, _ = torch.func.stack_module_state(models)
    together = torch.func.vmap(lambda weights, idx: torch.func.functional_call(models[0], weights, idx))
    with sdpa_kernel(SDPBackend.MATH):  # as in training/ensemble.py: the kernels of attention are for one model
        found = together(stacked, batches)
    for model, idx, logits in zip(models, batches, found, strict=True):
        torch.testing.assert_close(logits, model(idx), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')
@pytest.mark.parametrize('name', ['bert', 'rope mlm', 'attention only'])
def test_compiled_gradients_of_transformers_are_those_of_the_plain_model(name: str) -> None:
    """Whole steps of the other models are compiled in test_training.py."""
    model = grown(BUILDERS[name](0))
    names, weights = zip(*((key, p.detach()) for key, p in model.named_parameters()), strict=True)

    def loss_and_gradients(*values: Tensor) -> Any:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, weights, values[-1]).square().mean()

        gradients, value = torch.func.grad_and_value(loss)(dict(zip(names, values, strict=False)))
        return value, *gradients.values()

    arguments = [*weights, tokens(V, 4, T)]
    with torch.no_grad():
        found = compiler.compile_graph(loss_and_gradients, arguments)(*arguments)
    for mine, expected in zip(found, loss_and_gradients(*arguments), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
