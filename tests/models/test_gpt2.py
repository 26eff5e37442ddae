"""The layout of GPT-2: another program, which knows GPT-2 alone, computes the same logits from the exported weights.

tests/test_export.py has the same with the real packages.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import grown, small, tokens
from torch import Tensor

from RLM_clean.init import transform_inputs
from RLM_clean.models import BERT, CLM, CNN, GRU, MLM, gpt2


def gpt2_logits(options: dict[str, Any], weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """GPT-2 as its paper and its first code have it, `(B, T, v)`: matrices (in, out), nothing of this library."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    d, H, T = options['n_embd'], options['n_head'], inputs.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + options['layer_norm_epsilon']).sqrt()
        return centred / deviation * w[f'{name}.weight'] + w[f'{name}.bias']

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f'{name}.weight'] + w[f'{name}.bias']

    x = w['transformer.wte.weight'][inputs] + w['transformer.wpe.weight'][:T]
    for i in range(options['n_layer']):
        h = f'transformer.h.{i}'
        q, k, v = (
            part.view(len(x), T, H, d // H) for part in linear(norm(x, f'{h}.ln_1'), f'{h}.attn.c_attn').split(d, -1)
        )
        scores = torch.einsum('bihc,bjhc->bhij', q, k) / math.sqrt(d / H)
        seen = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
        x = x + linear(torch.einsum('bhij,bjhc->bihc', seen, v).flatten(2), f'{h}.attn.c_proj')
        hidden = F.gelu(linear(norm(x, f'{h}.ln_2'), f'{h}.mlp.c_fc'))
        assert hidden.shape[-1] == options['n_inner']
        x = x + linear(hidden, f'{h}.mlp.c_proj')
    head = 'transformer.wte.weight' if options['tie_word_embeddings'] else 'lm_head.weight'
    return norm(x, 'transformer.ln_f') @ w[head].T


@pytest.mark.parametrize('build', [CLM, MLM])
@pytest.mark.parametrize('tie', [False, True])
@pytest.mark.parametrize(
    'options',
    [
        {'num_heads': 2, 'depth': 2},
        {'num_heads': 4, 'positions': 'none'},
        {'ffwd_size': 0, 'depth': 2},
        {'ffwd_size': 3},
        {'mup': True, 'num_heads': 2, 'depth': 2},
    ],
    ids=['heads', 'no positions', 'attention only', 'another width', 'mup'],
)
def test_gpt2_has_the_same_logits(build: type[CLM], tie: bool, options: dict[str, Any]) -> None:
    """The default, an MLM at its last position, several heads and depths, and all that has to be folded."""
    model = grown(small(build, tie_weights=tie, **options).double())
    inputs = tokens(7, 20, 5)
    found = gpt2_logits(gpt2.options(model), gpt2.weights(model.float()), inputs)
    expected = model.double()(inputs)
    if build is MLM:
        found = found[:, -1]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.mark.parametrize('tie', [False, True])
def test_whitened_rows_become_embeddings(tie: bool) -> None:
    """A tied head reads the embeddings as they are: it gets a matrix of its own."""
    model = grown(small(tie_weights=tie))
    inputs = tokens(7, 20, 5)
    options, weights = gpt2.options(model, whitened=True), gpt2.weights(model, whitened=True)
    assert not options['tie_word_embeddings']
    expected = model.double()(transform_inputs(inputs, 7, 'onehot', 1).double())
    torch.testing.assert_close(gpt2_logits(options, weights, inputs), expected, rtol=0, atol=2e-5)


def test_the_options_are_those_of_the_model() -> None:
    found = gpt2.options(small(num_heads=2, depth=3, block_size=6, dropout=0.25, tie_weights=True))
    shape = {'vocab_size': 7, 'n_positions': 6, 'n_embd': 8, 'n_layer': 3, 'n_head': 2, 'n_inner': 32}
    assert shape.items() <= found.items()
    assert (found['embd_pdrop'], found['resid_pdrop'], found['attn_pdrop']) == (0.25, 0.25, 0.0)
    assert found['activation_function'] == 'gelu'  # the exact one; gelu_new is GPT-2's approximation by tanh
    assert found['tie_word_embeddings'] is True and found['eos_token_id'] is None


def test_weights_are_copies() -> None:
    """The model stays as it was when someone changes them."""
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in gpt2.weights(model).values():
        tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Derived(CLM):
    """A model of a user, which may compute anything."""


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (small(positions='rope'), "positions='rope' .*: use safetensors"),
        (small(BERT), "model='BERT' is not a causal transformer.*: use safetensors"),
        (GRU(7, 5, 8, 1), "model='GRU' is not a causal transformer"),
        (CNN(7, 4, 8, 2), "model='CNN' is not a causal transformer"),
        (small(Derived), "model='Derived' is not a causal transformer"),
        (small(num_outputs=3), '3 classes do not fit GPT-2, which predicts one of its 7 input symbols'),
    ],
    ids=['rope', 'bert', 'gru', 'cnn', 'derived', 'classes'],
)
def test_a_model_that_gpt2_cannot_be_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2.check(model)
    with pytest.raises(ValueError, match="model='its name' is not" if 'causal' in message else message):
        gpt2.check(model, 'its name')
