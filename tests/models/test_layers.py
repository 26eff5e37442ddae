"""Dropout: its mask is a function of the key and the layer, and keeps the stated fraction.

Statistical tests are those of test_streams.py: fixed seeds, p-values above ALARM.
"""

from __future__ import annotations

import math

import pytest
import torch
from small_models import grown, small, tokens
from test_streams import ALARM, chi_square
from torch import Tensor

from RLM_clean.models import set_dropout_key
from RLM_clean.models.layers import Dropout
from RLM_clean.streams import stream_key


def mask(key: int, layer: int = 0, p: float = 0.3, *shape: int) -> Tensor:
    module = Dropout(p, layer)
    module.key.fill_(key)
    return module(torch.ones(shape or (2**16,))) != 0


def test_a_dropout_mask_is_a_function_of_key_and_layer() -> None:
    key = stream_key(1, 'dropout', 0)
    first = mask(key)
    torch.manual_seed(5)
    assert torch.equal(mask(key), first)
    assert torch.equal(mask(key, 0, 0.3, 2**8, 2**8).flatten(), first)


@pytest.mark.parametrize('p', [0.05, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_stated_fraction_and_the_mean(p: float) -> None:
    """Within 6.5 standard deviations of a binomial count: a false alarm once in 1e10 for each of 40 seeds."""
    module = Dropout(p, 1)
    x = torch.ones(2**15)
    for step in range(10):
        module.key.fill_(stream_key(3, 'dropout', step))
        y = module(x)
        kept = (y != 0).sum().item()
        assert abs(kept - (1 - p) * 2**15) < 6.5 * math.sqrt(p * (1 - p) * 2**15)
        torch.testing.assert_close(y[y != 0], torch.full((kept,), 1 / (1 - p)))


def test_masks_of_different_keys_and_layers_are_independent() -> None:
    """Both, one or neither of two masks keep an entry: chi-square over the four cases."""
    keys = [stream_key(1, 'dropout', step) for step in range(4)]
    masks = [mask(key, layer) for key in keys for layer in range(3)]
    law = torch.tensor([0.3, 0.7]).double()
    for i, first in enumerate(masks):
        for second in masks[:i]:
            counts = torch.bincount(2 * first + second.long(), minlength=4)
            assert chi_square(counts, 2**16 * torch.outer(law, law)) > ALARM


def test_no_layer_and_no_part_of_a_batch_repeats_the_words_of_another() -> None:
    """The first 64 entries of a mask are nowhere among the 2^16 entries of another: by chance once in 1e9 seeds."""
    key = stream_key(1, 'dropout', 0)
    masks = [mask(key, layer) for layer in range(7)]
    module = Dropout(0.3, 0)
    module.key.fill_(key)
    module.part = 1
    masks.append(module(torch.ones(2**16)) != 0)
    for i, first in enumerate(masks):
        for j, second in enumerate(masks):
            found = (second.unfold(0, 64, 1) == first[:64]).all(1)
            assert found.nonzero().flatten().tolist() == ([0] if i == j else [])


def test_masks_keep_their_meaning() -> None:
    """Golden masks: with other ones, a run that is resumed would go on with other dropout. Change them knowingly."""
    assert mask(7, 1, 0.5, 16).int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert mask(7, 2, 0.5, 16).int().tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0]


def test_every_dropout_of_a_model_has_a_layer_of_its_own() -> None:
    modules = [module for module in small(dropout=0.1, depth=3).modules() if isinstance(module, Dropout)]
    assert sorted(module.layer for module in modules) == list(range(7))


def test_the_dropout_of_a_model_is_a_function_of_its_key() -> None:
    model = grown(small(dropout=0.3)).train()
    idx = tokens(7, 8, 5)
    logits: dict[int, Tensor] = {}
    for key in (1, 2, 1):
        set_dropout_key(model, key)
        found = model(idx)
        assert torch.equal(logits.setdefault(key, found), found)
    assert not torch.equal(logits[1], logits[2])


def test_dropout_is_off_in_evaluation_and_at_zero() -> None:
    dropping, plain = grown(small(dropout=0.5)), grown(small())
    idx = tokens(7, 8, 5)
    assert torch.equal(dropping(idx), plain(idx))
    assert not torch.equal(dropping.train()(idx), plain(idx))
    assert torch.equal(plain.train()(idx), dropping.eval()(idx))


def test_dropout_leaves_no_trace_in_the_stored_weights() -> None:
    dropping, plain = small(dropout=0.5), small()
    set_dropout_key(dropping, 99)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(dropping.state_dict())
    assert dropping.dropout.key == 99


def test_gradients_flow_through_kept_entries_alone() -> None:
    module = Dropout(0.5, 0)
    x = torch.ones(100, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
