"""What holds for every network of the library, and the tokens and weights to test it with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import tiny, train
from step_kinds import losses_of
from torch import Tensor, nn

from RLM_clean.training import machine

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')


def tokens(v: int, *shape: int, seed: int = 0) -> Tensor:
    """Random tokens of that shape."""
    return torch.randint(v, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def grown(model: nn.Module, seed: int = 1) -> Any:
    """The model as training might leave it: biases off zero, logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def assert_seed_alone_sets_the_weights(build: Callable[[int], nn.Module]) -> None:
    """The global generator neither changes them nor is changed; another seed changes every matrix."""
    state = torch.get_rng_state()
    first = build(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    second, other = build(3).state_dict(), build(4).state_dict()
    torch.set_rng_state(state)
    for name, mine in first.state_dict().items():
        assert torch.equal(mine, second[name])
        assert torch.equal(mine, other[name]) == name.endswith('bias'), name  # biases start at zero
        assert mine.isfinite().all() and mine.dtype == torch.float32


def assert_starts_from_a_uniform_guess(model: nn.Module, inputs: Tensor) -> None:
    """Logits of standard deviation 0.005, or somewhat less where activations are below one."""
    assert 0.001 < model(inputs).std() < 0.01


def assert_stacked_equals_one_by_one(build: Callable[[int], nn.Module], inputs: Tensor) -> None:
    """The logits of three models by torch.func.vmap over their stacked weights; inputs `(3, B, T)`."""
    models = [grown(build(seed), seed) for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    skeleton = copy.deepcopy(models[0])

    def logits(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(skeleton, values, (x,))

    together = torch.func.vmap(logits)(parameters | buffers, inputs)
    for model, x, found in zip(models, inputs, together, strict=True):
        torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


def assert_gradients_are_those_of_finite_differences(model: nn.Module, inputs: Tensor) -> None:
    """In float64, of every weight."""
    model = grown(model.double())
    names, parameters = zip(*model.named_parameters(), strict=True)

    def logits(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (inputs,))

    assert torch.autograd.gradcheck(logits, [p.detach().clone().requires_grad_() for p in parameters])


def assert_compiled_steps_are_the_eager_ones(**options: Any) -> None:
    """The losses of 60 steps, which fall."""
    config = tiny(optim='adam', lr=0.01, **options)
    expected = losses_of(config, 'eager', 60)
    assert losses_of(config, 'compiled', 60) == pytest.approx(expected, rel=1e-4)
    assert sum(expected[-20:]) < sum(expected[:20])


def assert_a_short_run_learns(folder: Path, **options: Any) -> None:
    """The excess of a whole run falls to less than half of what it was."""
    config = tiny(folder / 'run', dataset='rhm', num_synonyms=2, optim='adam', lr=0.03, max_iters=100, **options)
    outcome = train(config)
    assert outcome.dynamics[-1]['excess'] < 0.5 * outcome.dynamics[0]['excess']
