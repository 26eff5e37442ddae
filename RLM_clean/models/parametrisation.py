"""The maximal update parametrisation (mup) of transformers: one learning rate is the best for all widths.

G. Yang et al., Tensor Programs V (arXiv:2203.03466), Table 8: as the width d grows, every activation, and its change in
a step, stays of order one. With r = d / 64, the width over that of a base model:

| weights | at the start | Adam: rate / lr | SGD: rate / lr |
|---|---|---|---|
| matrices of the blocks | standard deviation 1/sqrt(fan in), as in the standard parametrisation | 1/r | 1 |
| embeddings, biases, gains of norms, head | of the same size for all d | 1 | r |

The logits are multiplied by 1/r, and attention scores divided by the size d_head of a head, not by its square root. For
d = d_head = 64 all this is the standard parametrisation.
"""

from __future__ import annotations

from torch import nn

# The width at which mup is the standard parametrisation.
BASE_WIDTH = 64


def attention_scale(head_size: int) -> float:
    """What mup multiplies products of queries and keys by: 8/d_head, which is 1/sqrt(d_head) for d_head = 64."""
    return BASE_WIDTH**0.5 / head_size


def lr_factors(model: nn.Module, optim: str, base: int = BASE_WIDTH) -> dict[str, float]:
    """The learning rate of each parameter of a transformer over `lr` under mup, by name: the table above.

    `optim` is adam or sgd. Raises ValueError for other optimizers, and for models that are not transformers.
    """
    if optim not in ('adam', 'sgd'):
        raise ValueError(f'optim={optim!r} has no known rates for mup: use adam or sgd')
    norm = getattr(model, 'norm', None)
    if not hasattr(model, 'blocks') or not isinstance(norm, nn.LayerNorm):
        raise ValueError(f'the rates of {type(model).__name__} are not known for mup: use a transformer')
    r = norm.normalized_shape[0] / base
    matrix, vector = (1 / r, 1.0) if optim == 'adam' else (1.0, r)
    return {
        name: matrix if name.startswith('blocks.') and parameter.ndim == 2 else vector
        for name, parameter in model.named_parameters()
    }
