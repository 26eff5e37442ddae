"""The hierarchical convolutional network, against torch's convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import check_initial_loss, grown, tokens
from torch import Tensor

from RLM_clean import init
from RLM_clean.models import CNN, LCN, num_parameters


def by_convolutions(model: Any, rows: Tensor) -> Tensor:
    """The logits by torch.nn.functional.conv1d, from all 2^depth rows `(B, T, v)`."""
    x = rows.transpose(1, 2)  # (B, channels, T)
    for layer in model.hidden:
        kernel = layer.weight.unflatten(1, (2, -1)).transpose(1, 2)  # (width, channels, 2)
        x = F.conv1d(x, kernel, layer.bias, stride=2).relu()
    assert x.shape[2] == 1
    return x[:, :, 0] @ model.head.weight.T


@pytest.mark.parametrize('depth', [1, 2, 4])
def test_the_network_is_a_chain_of_convolutions_of_size_and_stride_two(depth: int) -> None:
    model = grown(CNN(7, 2**depth, 16, depth, num_outputs=3).double())
    idx = tokens(7, 20, 2**depth)
    assert model(idx).shape == (20, 3)
    torch.testing.assert_close(model(idx), by_convolutions(model, F.one_hot(idx, 7).double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('depth', [1, 2, 4])
def test_a_last_leaf_that_is_to_be_predicted_is_a_row_of_zeros(depth: int) -> None:
    model = grown(CNN(7, 2**depth - 1, 16, depth).double())
    idx = tokens(7, 20, 2**depth - 1)
    rows = torch.cat((F.one_hot(idx, 7).double(), torch.zeros(20, 1, 7).double()), 1)
    torch.testing.assert_close(model(idx), by_convolutions(model, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('build', [CNN, LCN])
def test_every_leaf_matters(build: Any) -> None:
    model = grown(build(7, 8, 64, 3))
    idx = tokens(7, 20, 8)
    for position in range(8):
        changed = idx.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        assert (model(changed) != model(idx)).any(1).all()


def test_the_number_of_weights_does_not_depend_on_the_number_of_positions() -> None:
    v, width, depth = 7, 16, 3
    expected = 2 * v * width + (depth - 1) * 2 * width**2 + depth * width + width * 5
    assert num_parameters(CNN(v, 8, width, depth, num_outputs=5)) == expected


@pytest.mark.parametrize('build', [CNN, LCN])
@pytest.mark.parametrize(('v', 'L'), [(2, 1), (2, 3), (32, 3), (128, 1)])
def test_the_loss_at_initialisation_is_that_of_the_uniform_guess(v: int, L: int, build: Any) -> None:
    for width in (16, 256):
        check_initial_loss(lambda v, L, seed: build(v, 2**L - 1, width, L, seed=seed), v, L)  # noqa: B023


@pytest.mark.parametrize('whitening', [0, 1])
@pytest.mark.parametrize('build', [CNN, LCN])
def test_activations_start_at_order_one(build: Any, whitening: int) -> None:
    v, depth = 20, 3
    model = build(v, 2**depth, 512, depth, second_moment=1.0 if whitening else None)
    x = init.transform_inputs(tokens(v, 1000, 2**depth), v, 'onehot', whitening)
    for layer in model.hidden:
        y = layer(x.unflatten(1, (-1, 2)).flatten(2))
        assert 1.0 < (y**2).mean() < 4.0  # 2 for an input of mean square one: relu halves it
        x = F.relu(y)


@pytest.mark.parametrize('build', [CNN, LCN])
def test_a_number_of_tokens_that_is_not_that_of_the_tree_is_an_error(build: Any) -> None:
    for number in (1, 2, 5, 6, 9, 16):
        with pytest.raises(ValueError, match=f'num_inputs={number} does not fit 3 layers, .*: use 7 or 8'):
            build(7, number, 16, 3)
    with pytest.raises(ValueError, match='8 tokens were given to a network of 7: give as many'):
        build(7, 7, 16, 3)(tokens(7, 2, 8))
