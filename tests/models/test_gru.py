"""The recurrent network, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import check_initial_loss, check_the_past_alone_matters, grown, tokens
from torch import Tensor, nn

from RLM_clean.models import GRU, num_parameters


def by_torch(model: Any, idx: Tensor) -> Tensor:
    """The logits by torch.nn.GRU with the same weights."""
    d, depth = model.head.in_features, len(model.layers)
    theirs = nn.GRU(d, d, depth, batch_first=True).double()
    weights: dict[str, Tensor] = {}
    for i, layer in enumerate(model.layers):
        weights |= {f'{key}_ih_l{i}': value for key, value in layer.inputs.state_dict().items()}
        weights |= {f'{key}_hh_l{i}': value for key, value in layer.recurrent.state_dict().items()}
    theirs.load_state_dict(weights)
    return theirs(model.tokens(idx))[0] @ model.head.weight.T


@pytest.mark.parametrize('depth', [1, 3])
def test_the_network_is_that_of_torch_with_the_same_weights(depth: int) -> None:
    model = grown(GRU(7, 9, 8, depth, num_outputs=3).double())
    for length in (1, 2, 9):
        idx = tokens(7, 20, length)
        expected = by_torch(model, idx)
        assert model(idx).shape == (20, length, 3)
        torch.testing.assert_close(model(idx), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.last_logits(idx), expected[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('depth', [1, 2])
def test_changing_later_tokens_changes_no_earlier_logits(depth: int) -> None:
    check_the_past_alone_matters(grown(GRU(7, 8, 16, depth)), 8)


def test_the_first_token_is_remembered_to_the_end() -> None:
    model = grown(GRU(7, 8, 16, 1))
    idx = tokens(7, 20, 8)
    changed = idx.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 7
    assert (model.last_logits(changed) != model.last_logits(idx)).any(1).all()


@pytest.mark.parametrize(('v', 'L'), [(2, 1), (2, 3), (32, 3), (128, 1)])
def test_the_loss_at_initialisation_is_that_of_the_uniform_guess(v: int, L: int) -> None:
    check_initial_loss(lambda v, L, seed: GRU(v, 2**L - 1, 16, 2, seed=seed), v, L)


def test_weights_start_with_the_stated_variances() -> None:
    """To 5%: more than 8 deviations of an estimate from the 16384 weights or more of each tensor."""
    d = 128
    model: Any = GRU(200, 10, d, 2)
    layer = model.layers[1]
    for weight, std in (
        (model.tokens.weight, 1.0), (layer.inputs.weight, d**-0.5), (layer.recurrent.weight, d**-0.5),
        (model.head.weight, 0.005 * d**-0.5),
    ):  # fmt: skip
        assert abs(weight.std().item() / std - 1) < 0.05
    assert not layer.inputs.bias.any() and not layer.recurrent.bias.any()


def test_the_weights_are_counted() -> None:
    assert num_parameters(GRU(7, 9, 8, 2, num_outputs=3)) == 7 * 8 + 2 * 2 * (3 * 8 * 8 + 3 * 8) + 3 * 8


def test_a_sequence_longer_than_the_block_is_an_error() -> None:
    with pytest.raises(ValueError, match='a sequence of 6 tokens is longer than block_size=5: shorten it'):
        GRU(7, 5, 8, 1)(tokens(7, 2, 6))
    assert F.softmax(GRU(7, 5, 8, 1)(tokens(7, 2, 5)), -1).shape == (2, 5, 7)
