"""Inside a model: the activations of its layers, read or replaced, and where its attention looks.

The layers of a transformer are the states of its residual stream: 'embeddings', 'block 1', 'block 2', ..., of which the
head reads the last one through a norm. Shapes in names as in the models: N sequences, T tokens, d dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.models import CLM, CNN, GRU, MLP
from RLM_clean.models.fcn import input_rows
from RLM_clean.models.transformer import Block
from RLM_clean.runs.run import Run

# Sequences times tokens in one forward pass, to bound memory.
_TOKENS_PER_PASS = 2**15


@torch.no_grad()
def activations(run: Run, model: nn.Module, inputs: Tensor, position: int | None = -1) -> dict[str, Tensor]:
    """The activations of each layer, {name: `(N, d)` float32}, for tokens `(N, T)`, at one input position.

    The default is the last position, where a model of x_n is read; `position=None` gives all of them, `(N, T, d)`.

    - transformers: the residual stream, 'embeddings', 'block 1', 'block 2', ...
    - gru: 'embeddings', and the states 'layer 1', 'layer 2', ...
    - fcn, cnn, lcn: the hidden layers 'layer 1', ..., whole: they have no positions of tokens.

    Raises ValueError for any other model, for a position outside the context, and for one of a model without them.
    """
    parts = []
    for x in _passes(inputs):
        with _precision(run, x):
            found = dict(_layers(run, model, x, position))
        parts.append({name: _at(layer, position, x.shape[1]).float() for name, layer in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def patched_logits(
    run: Run, model: nn.Module, inputs: Tensor, layer: str, new: Tensor, position: int | None = -1
) -> Tensor:
    """The logits of a transformer whose residual stream after `layer` is replaced by `new (N, d)` at one position.

    `new (N, T, d)` replaces it at all positions, with `position=None`. Later layers compute as always, from the new
    vectors and from what the stream holds at the other positions. `layer` and `position` are those of `activations`,
    and the logits have the shape of `run.logits`. The model's own activations change nothing, bit for bit.

    Raises ValueError for a model that is not a transformer of the library, a layer or a position that it does not have,
    and a `new` of another shape.
    """
    if not isinstance(model, CLM):
        raise ValueError(f'model={run.config.model!r} has no residual stream to replace: use a transformer')
    names = layer_names(model)
    if layer not in names:
        raise ValueError(f'layer={layer!r} is unknown: use {", ".join(names)}')
    T, d = inputs.shape[1], model.norm.normalized_shape[0]
    expected = (len(inputs), d) if position is not None else (len(inputs), T, d)
    if new.shape != expected:
        raise ValueError(f'new activations of shape {tuple(new.shape)} do not fit: give {expected}')
    found = []
    for x, rows in zip(_passes(inputs), new.split(_rows(inputs)), strict=True):
        with _precision(run, x):
            found.append(_patched(run, model, x, names.index(layer), rows, position))
    return torch.cat(found)


def layer_names(model: CLM) -> list[str]:
    """The names of the layers of a transformer, as `activations` has them."""
    return ['embeddings', *(f'block {i}' for i in range(1, len(model.blocks) + 1))]


@torch.no_grad()
def attention_weights(run: Run, model: nn.Module, inputs: Tensor) -> Tensor:
    """Where each head looks: `(depth, N, H, T, T)`, whose `[l, r, h, i, j]` is the weight of token j for query i,

        softmax_j(scale q_i . k_j),  scale = 1 / sqrt(d / H), with mup 8 H / d,

    over j <= i in causal models, in which no query looks ahead, and over all j in transformer_bert; rows sum to one.
    `inputs (N, T)` are token indices. A model that predicts x_n alone uses only the last row of its last block. Raises
    ValueError for a model that is not a transformer of the library.
    """
    if not isinstance(model, CLM):
        raise ValueError(f'model={run.config.model!r} has no known attention: use transformer_mlm, _clm or _bert')
    x, maps = _embedded(run, model, inputs), []
    for block in model.blocks:
        assert isinstance(block, Block)
        maps.append(block.attention.weights(block.norm_1(x)))
        x, _ = block(x)
    return torch.stack(maps)


# ---------------------------------------------------------------------- layer by layer


def _patched(run: Run, model: CLM, inputs: Tensor, number: int, new: Tensor, position: int | None) -> Tensor:
    T = inputs.shape[1]
    place = None if position is None else _place(position, T)
    stream = _embedded(run, model, inputs)
    for i in range(len(model.blocks) + 1):
        if i:
            stream = _after_block(run, model, i, stream, place in (None, T - 1))
        if i == number and place is None:
            stream = new[:, -stream.shape[1] :].to(stream.dtype)
        elif i == number and place is not None:
            stream = stream.clone()
            stream[:, place - T] = new.to(stream.dtype)
    return model.read(stream if run.task.at_each else stream[:, -1])


def _layers(run: Run, model: nn.Module, inputs: Tensor, position: int | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(model, CLM):
        last_only = position is not None and _place(position, inputs.shape[1]) == inputs.shape[1] - 1
        stream = _embedded(run, model, inputs)
        for i, name in enumerate(layer_names(model)):
            if i:
                stream = _after_block(run, model, i, stream, last_only)
            yield name, stream
    elif isinstance(model, GRU):
        x = model.tokens(_model_inputs(run, inputs))
        yield 'embeddings', x
        for i, layer in enumerate(model.layers, 1):
            x = layer(x)
            yield f'layer {i}', x
    elif isinstance(model, MLP | CNN):
        if position != -1:
            raise ValueError(f'model={run.config.model!r} has no positions of tokens: leave position at -1')
        x = input_rows(_model_inputs(run, inputs), model)
        if isinstance(model, CNN):
            x = F.pad(x, (0, 0, 0, model.num_inputs % 2))
        for i, layer in enumerate(model.hidden, 1):
            x = torch.relu(layer(x.unflatten(1, (-1, 2)).flatten(2) if isinstance(model, CNN) else x.flatten(1)))
            yield f'layer {i}', x.flatten(1)
    else:
        raise ValueError(
            f'the layers of model={run.config.model!r} are not known: use a transformer, gru, fcn, cnn or lcn, '
            'or probes.fit_probe on activations of your own'
        )


def _embedded(run: Run, model: CLM, inputs: Tensor) -> Tensor:
    return model.embed(_model_inputs(run, inputs))


def _after_block(run: Run, model: CLM, number: int, stream: Tensor, last_only: bool) -> Tensor:
    """The stream after block `number`, from 1, with the same bits as in the model's own prediction.

    A model with one target computes its last block at the last position alone, as in `CLM.last_logits`; with
    `last_only` nothing else is returned then, `(N, 1, d)`.
    """
    block = model.blocks[number - 1]
    assert isinstance(block, Block)
    if run.task.at_each or not (number == len(model.blocks) or stream.shape[1] == 1):
        return block(stream)[0]
    last = block.last(stream)
    return last if last_only else torch.cat((block(stream)[0][:, :-1], last), 1)


def _at(layer: Tensor, position: int | None, length: int) -> Tensor:
    """What a layer `(N, T, d)`, `(N, 1, d)` of the last position alone, or `(N, d)` holds at a position."""
    if layer.dim() == 2 or position is None:
        return layer
    return layer[:, _place(position, length) - length]


def _place(position: int, length: int) -> int:
    """The position from 0, given one from the beginning or, if negative, from the end."""
    if not -length <= position < length:
        raise ValueError(f'position={position} is outside a context of {length} tokens: use {-length} to {length - 1}')
    return position % length


def _model_inputs(run: Run, inputs: Tensor) -> Tensor:
    return init.transform_inputs(inputs, run.config.num_inputs, run.config.input_format, run.config.whitening)


def _precision(run: Run, inputs: Tensor) -> AbstractContextManager[None]:
    """The precision in which the run computes."""
    return torch.autocast(inputs.device.type, torch.bfloat16, enabled=run.config.dtype == 'bfloat16')


def _passes(inputs: Tensor) -> tuple[Tensor, ...]:
    return inputs.split(_rows(inputs))


def _rows(inputs: Tensor) -> int:
    return max(1, _TOKENS_PER_PASS // inputs.shape[1])
