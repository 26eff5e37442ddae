"""Optimizers without the wrappers of torch: the steps, the states and the files of torch's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from RLM_clean import optimizers

ROOT = Path(__file__).resolve().parents[1]
KINDS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    'sgd': (optimizers.SGD, optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.01}),
    'adam': (optimizers.AdamW, optim.AdamW, {'lr': 0.01, 'weight_decay': 0.1}),
}


def steps(kind: Any, options: dict[str, float], state: Any = None) -> tuple[nn.Module, optim.Optimizer]:
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(15.0).view(3, 5) / 15)
        model.bias.zero_()
    groups = [{'params': [model.weight]}, {'params': [model.bias], 'lr': 0.5}]
    optimizer = kind(groups, fused=True, **options)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 20).view(4, 5)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize('name', KINDS)
def test_steps_and_states_are_those_of_torch(name: str) -> None:
    ours, theirs, options = KINDS[name]
    (model, optimizer), (expected, reference) = steps(ours, options), steps(theirs, options)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(parameter, other)
    state, other_state = optimizer.state_dict(), reference.state_dict()
    assert state['param_groups'] == other_state['param_groups'] and state['state'].keys() == other_state['state'].keys()
    for key, tensors in state['state'].items():
        assert tensors.keys() == other_state['state'][key].keys()
        assert all(torch.equal(tensors[part], other_state['state'][key][part]) for part in tensors)
    again, _ = steps(ours, options, other_state)
    expected_again, _ = steps(theirs, options, state)
    assert torch.equal(again.get_parameter('weight'), expected_again.get_parameter('weight'))
    assert isinstance(optimizer, theirs)


@pytest.mark.parametrize('optimizer', ['sgd', 'adam'])
def test_a_run_that_is_not_compiled_does_not_import_the_compiler(optimizer: str, tmp_path: Path) -> None:
    code = f"""
import sys
from RLM_clean.main import main
main(['--outname', {str(tmp_path / 'run')!r}, '--max_iters', '5', '--compile', 'off', '--optim', '{optimizer}'])
loaded = sorted({{'torch._dynamo', 'torch._inductor', 'sympy', 'scipy', 'pandas'}} & set(sys.modules))
sys.exit(f'imported: {{loaded}}' if loaded else 0)
"""
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
