"""A causal transformer in the layout of GPT-2, which other programs read: its options, weights and tokenizer.

GPT-2 (A. Radford et al., 2019) as Hugging Face's transformers has it: pre-norm blocks with biases everywhere but in the
head, learned positions, products of queries and keys over sqrt(d_head). What a model of this library does otherwise is
folded into the weights, so that the logits are the same to rounding:

| here | there |
|---|---|
| whitened rows as inputs | token embeddings of the whitened rows |
| no positions | positions of zeros |
| no feed-forward part | one hidden unit with weights of zero |
| mup: scores times 8 / d_head | queries times 8 / sqrt(d_head) |
| mup: logits times 64 / d | gain and bias of the last norm times 64 / d |
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from RLM_clean.models.attention import Attention
from RLM_clean.models.parametrisation import BASE_WIDTH
from RLM_clean.models.transformer import CLM, MLM, Block

# The layers of a block here and there; there, weights are stored as (in, out).
_NORMS = {'norm_1': 'ln_1', 'norm_2': 'ln_2'}
_LINEARS = {
    'attention.qkv': 'attn.c_attn', 'attention.proj': 'attn.c_proj', 'expand': 'mlp.c_fc', 'contract': 'mlp.c_proj',
}  # fmt: skip
# What a tokenizer makes of a text that is not a symbol. A model has no embedding for it, and fails.
UNKNOWN = '<unk>'


def check(model: nn.Module, name: str | None = None) -> CLM:
    """The model, if GPT-2 can compute what it computes. `name` is what errors call it, by default its class.

    Raises ValueError for models that are not causal transformers, for rotary positions, and where inputs and classes
    differ in number.
    """
    name = name or type(model).__name__
    if type(model) not in (CLM, MLM):  # a class derived from them may compute something else
        raise ValueError(f'model={name!r} is not a causal transformer, as GPT-2 is: use safetensors')
    assert isinstance(model, CLM)
    if any(isinstance(module, Attention) and module.rope for module in model.modules()):
        raise ValueError("positions='rope' does not exist in GPT-2, which has learned positions: use safetensors")
    if model.num_outputs != model.vocab_size:
        raise ValueError(
            f'{model.num_outputs} classes do not fit GPT-2, which predicts one of its {model.vocab_size} input '
            'symbols: use safetensors'
        )
    return model


def options(model: CLM, whitened: bool = False) -> dict[str, Any]:
    """The options of the GPT-2 that computes what a model computes: the content of its config.json.

    `whitened` as in `weights`.
    """
    block = model.blocks[0]
    assert isinstance(block, Block)
    p = model.dropout.p
    return {
        'architectures': ['GPT2LMHeadModel'],
        'model_type': 'gpt2',
        'dtype': 'float32',
        'vocab_size': model.vocab_size,
        'n_positions': model.block_size,
        'n_embd': model.norm.normalized_shape[0],
        'n_layer': len(model.blocks),
        'n_head': block.attention.num_heads,
        'n_inner': _width(model),
        'activation_function': 'gelu',
        'layer_norm_epsilon': model.norm.eps,
        'embd_pdrop': p,
        'resid_pdrop': p,
        'attn_pdrop': 0.0,
        'tie_word_embeddings': _tied(model, whitened),
        # No symbol begins or ends a sequence.
        'bos_token_id': None,
        'eos_token_id': None,
    }


@torch.no_grad()
def weights(model: CLM, whitened: bool = False) -> dict[str, Tensor]:
    """The weights of the GPT-2 that computes what a model computes, float32, by their names there.

    `whitened` says that the model is fed with whitened one-hot rows, as init.transform_inputs makes them: a symbol's
    embedding is then `(E[a] - mean E) / sqrt((1 - 1/v) / v)`. A tied head is left out, except where this unties it.
    """
    E, d = model.tokens.weight, model.norm.normalized_shape[0]
    v = len(E)
    positions = torch.zeros(model.block_size, d) if model.positions is None else model.positions.weight
    scale = BASE_WIDTH / d if model.mup else 1.0
    found = {
        'transformer.wte.weight': (E - E.mean(0)) / math.sqrt((1 - 1 / v) / v) if whitened else E,
        'transformer.wpe.weight': positions,
        'transformer.ln_f.weight': model.norm.weight * scale,
        'transformer.ln_f.bias': model.norm.bias * scale,
    }
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        found |= {f'transformer.h.{i}.{name}': tensor for name, tensor in _block(block, d, _width(model)).items()}
    if not _tied(model, whitened):
        found['lm_head.weight'] = model.head.weight
    return {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in found.items()}


def tokenizer(v: int) -> dict[str, Any]:
    """A tokenizer of texts like '3 0 12', symbols 0 to v - 1 between blanks: the content of its tokenizer.json."""
    vocabulary = {**{str(a): a for a in range(v)}, UNKNOWN: v}
    unknown = {'id': v, 'content': UNKNOWN, 'special': True}
    shape = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [unknown | shape],
        'normalizer': None,
        'pre_tokenizer': {'type': 'WhitespaceSplit'},
        'post_processor': None,
        'decoder': None,
        'model': {'type': 'WordLevel', 'vocab': vocabulary, 'unk_token': UNKNOWN},
    }


def _width(model: CLM) -> int:
    """The width of the feed-forward part; one where there is none, with weights of zero."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block.expand.out_features if block.ffwd_size else 1


def _tied(model: CLM, whitened: bool) -> bool:
    return model.tie_weights and not whitened


def _block(block: Block, d: int, width: int) -> dict[str, Tensor]:
    """The weights of a block by their names there."""
    found = {
        'ln_2.weight': torch.ones(d), 'ln_2.bias': torch.zeros(d),
        'mlp.c_fc.weight': torch.zeros(d, width), 'mlp.c_fc.bias': torch.zeros(width),
        'mlp.c_proj.weight': torch.zeros(width, d), 'mlp.c_proj.bias': torch.zeros(d),
    }  # fmt: skip
    for name, parameter in block.named_parameters():
        layer, _, kind = name.rpartition('.')
        if layer in _NORMS:
            found[f'{_NORMS[layer]}.{kind}'] = parameter
        else:
            found[f'{_LINEARS[layer]}.{kind}'] = parameter.T if kind == 'weight' else parameter
    if block.attention.scale is not None:
        factors = torch.ones(3 * d)
        factors[:d] = block.attention.scale * math.sqrt(d // block.attention.num_heads)
        for kind in ('weight', 'bias'):  # queries are the first d of the 3 d columns
            found[f'attn.c_attn.{kind}'] = found[f'attn.c_attn.{kind}'] * factors
    return found
