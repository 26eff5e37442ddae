"""Small models of every kind, models as training might leave them, and checks that several kinds share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.datasets import RLM
from RLM_clean.models import BERT, CLM, CNN, GRU, LCN, MLM, MLP

V, T = 7, 7  # input symbols, and tokens of a sequence


def tokens(v: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(v, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def grown(model: nn.Module, seed: int = 1) -> Any:
    """The model as training might leave it: biases and gains off their start, logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def small(build: type[nn.Module] = CLM, **options: Any) -> Any:
    """A transformer of two blocks with two heads."""
    return build(**{'vocab_size': V, 'block_size': 5, 'embedding_dim': 8, 'num_heads': 2, 'depth': 2, **options})


def transformer(build: type[nn.Module], **options: Any) -> Callable[[int], nn.Module]:
    return lambda seed: small(build, **{'block_size': T, 'seed': seed, **options})


# Every architecture with every option of its own, as functions of the seed, for T tokens of V symbols.
BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    'clm': transformer(CLM, dropout=0.1),
    'tied': transformer(CLM, tie_weights=True),
    'mlm': transformer(MLM),
    'bert': transformer(BERT),
    'rope': transformer(CLM, positions='rope'),
    'rope mlm': transformer(MLM, positions='rope'),
    'no positions': transformer(CLM, positions='none'),
    'attention only': transformer(CLM, ffwd_size=0),
    'classes': transformer(BERT, num_outputs=3),
    'mup': transformer(CLM, mup=True),
    'mup tied': transformer(CLM, mup=True, tie_weights=True),
    'mlp': lambda seed: MLP(V, T, 16, 2, seed=seed),
    'mlp of several targets': lambda seed: MLP(V, T, 16, 2, seed=seed, num_outputs=3, num_targets=4),
    'cnn': lambda seed: CNN(V, T, 16, 3, seed=seed, num_outputs=3),
    'lcn': lambda seed: LCN(V, T, 16, 3, seed=seed),
    'gru': lambda seed: GRU(V, T, 8, 2, seed=seed, num_outputs=3),
}
# The shapes of logits for B sequences, without B, where they are not (T, V).
SHAPES: dict[str, tuple[int, ...]] = {
    'mlm': (V,), 'rope mlm': (V,), 'classes': (T, 3), 'mlp': (V,), 'mlp of several targets': (4, 3), 'cnn': (3,),
    'lcn': (V,), 'gru': (T, 3),
}  # fmt: skip

LANGUAGES = [(2, 1), (2, 3), (5, 2), (32, 3), (128, 1)]


def initial_loss(model: nn.Module, rlm: RLM, input_format: str = 'long', whitening: int = 0) -> float:
    """The loss of a new model on a language, in nats: of the last token, or of the next one at all positions."""
    inputs, targets = rlm.batch(0, 2048)
    logits = model.eval()(init.transform_inputs(inputs, rlm.v, input_format, whitening)).detach()
    if logits.dim() == 3:
        logits, targets = logits.flatten(0, 1), torch.cat((inputs[:, 1:], targets[:, None]), 1).flatten()
    return F.cross_entropy(logits, targets).item()


def check_initial_loss(build: Callable[[int, int, int], nn.Module], v: int, L: int) -> None:
    """The loss of models `build(v, L, seed)` is that of the uniform guess, ln v, to 0.01 nats."""
    rlm = RLM(v, L)
    for seed in (0, 11111):
        for input_format in ('long', 'onehot'):
            assert abs(initial_loss(build(v, L, seed), rlm, input_format) - math.log(v)) < 0.01


def check_the_past_alone_matters(model: nn.Module, length: int) -> None:
    """Changing the tokens from a position on changes the logits there, and none before: bit for bit."""
    idx = tokens(V, 16, length)
    logits = model(idx)
    for position in range(length):
        changed = idx.clone()
        changed[:, position:] = (changed[:, position:] + 1 + tokens(V - 1, 16, length - position, seed=position)) % V
        again = model(changed)
        assert torch.equal(again[:, :position], logits[:, :position])
        assert (again[:, position] != logits[:, position]).any(1).all()
