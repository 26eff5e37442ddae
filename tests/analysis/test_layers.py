"""Layers are read and replaced as the model computes them; attention maps are the ones that it uses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysed import Best, run_of
from torch import Tensor

from RLM_clean.analysis import layers
from RLM_clean.analysis.layers import activations, attention_weights, layer_names, patched_logits
from RLM_clean.analysis.probes import probe_ancestors
from RLM_clean.datasets import RLM
from RLM_clean.models.transformer import CLM, Block
from RLM_clean.runs.run import Run
from RLM_clean.streams import seeded_generator

TRANSFORMER: dict[str, Any] = {'depth': 2, 'num_heads': 2}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    'last': TRANSFORMER,
    'all': {**TRANSFORMER, 'model': 'transformer_clm', 'objective': 'all'},
    'window': {**TRANSFORMER, 'num_tokens': 3, 'tie_weights': True},
    'one token': {**TRANSFORMER, 'num_tokens': 2},
    'one-hot': {**TRANSFORMER, 'input_format': 'onehot', 'whitening': 1},
    'rope': {**TRANSFORMER, 'positions': 'rope'},
    'masked': {**TRANSFORMER, 'model': 'transformer_bert', 'objective': 'masked'},
    'root': {**TRANSFORMER, 'model': 'transformer_bert', 'objective': 'root'},
    'bfloat16': {**TRANSFORMER, 'dtype': 'bfloat16'},
}
OTHERS: dict[str, dict[str, Any]] = {
    'fcn': {'model': 'fcn', 'depth': 2},
    'fcn one-hot': {'model': 'fcn', 'input_format': 'onehot', 'whitening': 1},
    'gru': {'model': 'gru', 'depth': 2},
    'cnn': {'model': 'cnn', 'depth': 2},
    'cnn root': {'model': 'cnn', 'depth': 2, 'objective': 'root'},
    'lcn': {'model': 'lcn', 'depth': 2},
}


def run_and_inputs(options: dict[str, Any], number: int = 30) -> tuple[Any, Any, Tensor]:
    run = run_of(RLM(v=5, L=2, beta=1.0), **options)
    inputs, _ = run.task.batches(run.rlm, run.config.window, 0, 1, number)
    return run, run.model(), inputs[0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed))


# ---------------------------------------------------------------------- reading


@pytest.mark.parametrize('input_format', ['long', 'onehot'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_activations_of_a_gru_are_those_of_its_own_forward_pass(input_format: str, dtype: str) -> None:
    run, model, inputs = run_and_inputs({**OTHERS['gru'], 'dtype': dtype, 'input_format': input_format})
    own: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: own.append(output[:, -1].float()))
        for module in (model.tokens, *model.layers)
    ]
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'):
        run.logits(model, inputs)
    for hook in hooks:
        hook.remove()
    for found, expected in zip(activations(run, model, inputs).values(), own, strict=True):
        assert torch.equal(found.float(), expected)


@pytest.mark.parametrize('kind', [*TRANSFORMERS, *OTHERS])
def test_activations_of_the_last_layer_are_what_the_head_reads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model, inputs = run_and_inputs({**TRANSFORMERS, **OTHERS}[kind])
    found = activations(run, model, inputs)
    last = list(found.values())[-1]
    expected = run.logits(model, inputs).float()
    logits = model.read(last) if kind in TRANSFORMERS else model.head(last)
    tolerance = 0.1 if kind == 'bfloat16' else 1e-5
    torch.testing.assert_close(logits, expected[:, -1] if expected.dim() == 3 else expected, rtol=0, atol=tolerance)
    first, other = ('embeddings', 'block') if kind in TRANSFORMERS else ('embeddings', 'layer')
    names = [first, *(f'{other} {i}' for i in range(1, run.config.depth + 1))]
    assert list(found) == (names if kind in TRANSFORMERS or kind == 'gru' else names[1:])
    monkeypatch.setattr(layers, '_TOKENS_PER_PASS', 10)
    for whole, parts in zip(found.values(), activations(run, model, inputs).values(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize('kind', [*TRANSFORMERS, 'gru'])
def test_activations_at_all_positions_hold_those_at_each(kind: str) -> None:
    run, model, inputs = run_and_inputs({**TRANSFORMERS, **OTHERS}[kind])
    T = inputs.shape[1]
    everywhere = activations(run, model, inputs, position=None)
    for position in range(-T, T):
        for name, features in activations(run, model, inputs, position).items():
            assert torch.equal(everywhere[name][:, position], features)


@pytest.mark.parametrize('kind', ['last', 'gru'])
def test_a_causal_model_has_at_a_position_nothing_of_later_tokens(kind: str) -> None:
    run, model, inputs = run_and_inputs({**TRANSFORMERS, **OTHERS}[kind])
    changed = inputs.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 5
    for one, other in zip(*(activations(run, model, x, None).values() for x in (inputs, changed)), strict=True):
        torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=1e-6)
        assert not torch.equal(one[:, 2], other[:, 2])


def test_a_convolutional_layer_is_read_whole() -> None:
    run, model, inputs = run_and_inputs(OTHERS['cnn'])
    found = activations(run, model, inputs)
    assert {name: features.shape[1] for name, features in found.items()} == {'layer 1': 2 * 32, 'layer 2': 32}


def test_what_cannot_be_read_is_an_error_with_a_remedy() -> None:
    run, model, inputs = run_and_inputs(TRANSFORMER)
    with pytest.raises(ValueError, match='position=3 is outside a context of 3 tokens: use -3 to 2'):
        activations(run, model, inputs, 3)
    run, model, inputs = run_and_inputs(OTHERS['fcn'])
    with pytest.raises(ValueError, match="model='fcn' has no positions of tokens: leave position at -1"):
        activations(run, model, inputs, None)
    with pytest.raises(ValueError, match="model='fcn' has no known attention: use transformer_mlm, _clm or _bert"):
        attention_weights(run, model, inputs)
    with pytest.raises(ValueError, match="model='fcn' has no residual stream to replace: use a transformer"):
        patched_logits(run, model, inputs, 'layer 1', torch.zeros(30, 8))


def test_a_registered_model_is_an_error_with_a_remedy() -> None:
    """Its layers are not known here."""
    grammar = RLM(v=5, L=2, beta=1.0)
    run = run_of(grammar, Best(grammar))
    with pytest.raises(ValueError, match=r'the layers of model=.* are not known: use .* or probes\.fit_probe on'):
        probe_ancestors(run, num_train=20, num_test=20)
    with pytest.raises(ValueError, match='has no known attention'):
        attention_weights(run, run.model(), torch.zeros(1, 3, dtype=torch.int64))


# ---------------------------------------------------------------------- replacing


@pytest.mark.parametrize('kind', TRANSFORMERS)
def test_a_patch_with_the_models_own_activations_changes_nothing_bit_for_bit(kind: str) -> None:
    run, model, inputs = run_and_inputs(TRANSFORMERS[kind])
    expected = Run.logits(run, model, inputs)  # in the precision of the run
    for position in (-1, 0, None):
        for layer, own in activations(run, model, inputs, position).items():
            assert torch.equal(patched_logits(run, model, inputs, layer, own, position), expected), (layer, position)


@pytest.mark.parametrize('kind', [kind for kind in TRANSFORMERS if kind != 'bfloat16'])
def test_a_patch_of_the_last_layer_is_what_the_head_says_of_the_new_vector(kind: str) -> None:
    run, model, inputs = run_and_inputs(TRANSFORMERS[kind])
    new = normal(len(inputs), 8)
    logits = patched_logits(run, model, inputs, 'block 2', new)
    expected = model.head(model.norm(new))
    torch.testing.assert_close(logits[:, -1] if logits.dim() == 3 else logits, expected, rtol=0, atol=1e-5)
    if logits.dim() == 3:  # no other position reads the last layer
        assert torch.equal(logits[:, :-1], run.logits(model, inputs)[:, :-1])


@pytest.mark.parametrize('kind', ['last', 'all', 'masked'])
def test_a_patch_of_the_embedding_of_a_token_is_the_model_on_another_token(kind: str) -> None:
    """At each position, together with the embeddings, which hold the token and its position alone."""
    run, model, inputs = run_and_inputs(TRANSFORMERS[kind])
    others = inputs.roll(1, 0)
    for position in range(inputs.shape[1]):
        mixed = inputs.clone()
        mixed[:, position] = others[:, position]
        new = activations(run, model, others, position)['embeddings']
        found = patched_logits(run, model, inputs, 'embeddings', new, position)
        torch.testing.assert_close(found, run.logits(model, mixed), rtol=0, atol=1e-5)


@pytest.mark.parametrize('layer', ['embeddings', 'block 1', 'block 2'])
def test_a_patch_at_all_positions_is_the_model_on_the_donor(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model, inputs = run_and_inputs(TRANSFORMER)
    donors = inputs.roll(1, 0)
    monkeypatch.setattr(layers, '_TOKENS_PER_PASS', 21)  # seven rows in a pass
    new = activations(run, model, donors, None)[layer]
    found = patched_logits(run, model, inputs, layer, new, None)
    torch.testing.assert_close(found, run.logits(model, donors), rtol=0, atol=1e-5)


def test_patches_that_do_not_fit_are_an_error_with_a_remedy() -> None:
    run, model, inputs = run_and_inputs(TRANSFORMER)
    with pytest.raises(ValueError, match="layer='block 3' is unknown: use embeddings, block 1, block 2"):
        patched_logits(run, model, inputs, 'block 3', torch.zeros(30, 8))
    with pytest.raises(ValueError, match=r'new activations of shape \(30, 7\) do not fit: give \(30, 8\)'):
        patched_logits(run, model, inputs, 'block 1', torch.zeros(30, 7))
    with pytest.raises(ValueError, match=r'new activations of shape \(30, 8\) do not fit: give \(30, 3, 8\)'):
        patched_logits(run, model, inputs, 'block 1', torch.zeros(30, 8), None)
    with pytest.raises(ValueError, match='position=-4 is outside a context of 3 tokens: use -3 to 2'):
        patched_logits(run, model, inputs, 'block 1', torch.zeros(30, 8), -4)
    assert layer_names(model) == ['embeddings', 'block 1', 'block 2']


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize('kind', [kind for kind in TRANSFORMERS if kind != 'bfloat16'])
def test_attention_weights_give_the_output_of_the_blocks(kind: str) -> None:
    run, model, inputs = run_and_inputs(TRANSFORMERS[kind], 6)
    assert isinstance(model, CLM)
    T = inputs.shape[1]
    maps = attention_weights(run, model, inputs)
    assert maps.shape == (2, 6, 2, T, T) and (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 6, 2, T), rtol=0, atol=1e-6)
    assert bool(maps.triu(1).any()) == (run.config.model == 'transformer_bert')
    x = model.embed(layers._model_inputs(run, inputs))
    for block, weights in zip(model.blocks, maps, strict=True):
        assert isinstance(block, Block)
        values = block.attention.qkv(block.norm_1(x))[..., 2 * x.shape[-1] :].unflatten(-1, (2, -1))
        mixed = torch.einsum('rhij,rjhd->rihd', weights, values).flatten(2)
        mine = block._feed_forward(x + block.attention.proj(mixed))
        x, _ = block(x)
        torch.testing.assert_close(mine, x, rtol=0, atol=1e-5)


def test_an_attention_weight_is_the_softmax_of_scaled_products() -> None:
    run = run_of(RLM(v=5, L=2, beta=1.0), num_heads=2)
    model: Any = run.model()
    inputs = torch.tensor([[3, 0, 4]])
    d, head = 8, 1
    block = model.blocks[0]
    rows = block.norm_1(model.tokens.weight[inputs[0]] + model.positions.weight)
    matrix, offset = block.attention.qkv.weight, block.attention.qkv.bias
    q = (matrix[:d] @ rows[2] + offset[:d])[4 * head : 4 * head + 4]
    keys = [(matrix[d : 2 * d] @ row + offset[d : 2 * d])[4 * head : 4 * head + 4] for row in rows]
    scores = [math.exp((q @ key).item() / math.sqrt(4)) for key in keys]
    found = attention_weights(run, model, inputs)[0, 0, head, 2].tolist()
    assert found == pytest.approx([score / sum(scores) for score in scores], abs=1e-6)
