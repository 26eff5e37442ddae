"""The fully connected network: its inputs, its several targets, its initialisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import LANGUAGES, grown, initial_loss, tokens

from RLM_clean import init
from RLM_clean.datasets import RLM
from RLM_clean.models import MLP, num_parameters


def test_one_hot_rows_and_token_indices_give_an_mlp_the_same_logits() -> None:
    for dtype in (torch.float32, torch.float64):
        model = grown(MLP(7, 5, width=16, depth=2).to(dtype))
        idx = tokens(7, 20, 5)
        assert model(idx).shape == (20, 7) and model(idx).dtype == dtype
        assert torch.equal(model(F.one_hot(idx, 7).to(dtype)), model(idx))


def test_an_mlp_tells_positions_apart() -> None:
    model = grown(MLP(7, 2, width=16))
    assert not torch.allclose(model(torch.tensor([[1, 2]])), model(torch.tensor([[2, 1]])))


@pytest.mark.parametrize(('v', 'L'), LANGUAGES)
def test_the_loss_of_an_mlp_at_initialisation_is_that_of_the_uniform_guess(v: int, L: int) -> None:
    rlm = RLM(v, L)
    for width, depth in ((16, 1), (256, 2), (256, 4)):
        for seed in range(3):
            one_hot = MLP(v, 2**L - 1, width, depth, seed=seed)
            whitened = MLP(v, 2**L - 1, width, depth, second_moment=1.0, seed=seed)
            for model, input_format, whitening in (
                (one_hot, 'long', 0),
                (one_hot, 'onehot', 0),
                (whitened, 'onehot', 1),
            ):
                assert abs(initial_loss(model, rlm, input_format, whitening) - math.log(v)) < 0.01


@pytest.mark.parametrize('whitening', [0, 1])
def test_activations_of_an_mlp_start_at_order_one(whitening: int) -> None:
    v, T = 20, 7
    model: Any = MLP(v, T, 512, 3, second_moment=1.0 if whitening else None)
    x = init.transform_inputs(tokens(v, 1000, T), v, 'onehot', whitening).flatten(1)
    for layer in model.hidden:
        y = layer(x)
        assert 1.0 < (y**2).mean() < 4.0  # 2 for an input of mean square one: relu halves it
        x = F.relu(y)


def test_each_target_of_several_has_a_head_of_its_own() -> None:
    several: Any = MLP(7, 5, 16, 2, num_outputs=3, num_targets=4)
    model, idx = grown(several), tokens(7, 20, 5)
    assert model(idx).shape == (20, 4, 3)
    for target in range(4):
        one: Any = MLP(7, 5, 16, 2, num_outputs=3)
        weights = model.state_dict()
        weights['head.weight'] = weights['head.weight'][3 * target : 3 * target + 3]
        one.load_state_dict(weights)
        torch.testing.assert_close(one(idx), model(idx)[:, target])


def test_the_weights_of_an_mlp_are_counted() -> None:
    assert num_parameters(MLP(7, 5, 16, 2)) == 35 * 16 + 16 + 16 * 16 + 16 + 16 * 7
    assert num_parameters(MLP(7, 5, 16, 1, num_outputs=3, num_targets=4)) == 35 * 16 + 16 + 16 * 12


def test_an_mlp_takes_its_own_number_of_tokens_only() -> None:
    with pytest.raises(ValueError, match='4 tokens were given to a network of 5: give as many'):
        MLP(7, 5, 16)(tokens(7, 2, 4))
