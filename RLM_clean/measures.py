"""What is measured of a model and of a language: losses, accuracies, entropies, distances from the best predictor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from RLM_clean.datasets import TreeGrammar

Logits = Callable[[nn.Module, Tensor], Tensor]

# Sequences times tokens in one forward pass of an evaluation: bounds its memory.
_TOKENS_PER_PASS = 2**15


def apply_model(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits of a model called on its inputs as they are."""
    return model(inputs)


@torch.no_grad()
def test(model: nn.Module, inputs: Tensor, targets: Tensor, logits: Logits = apply_model) -> tuple[float, float]:
    """The mean loss (nats) and the accuracy of a model on inputs `(N, T)` and targets `(N,)` or `(N, T)`.

    The loss is the mean of -ln q(target), summed in float64; `logits(model, inputs)` gives the logits for the targets.
    The model is in eval mode during the call and comes back as it was.
    """
    was_training = model.training
    model.eval()
    size = max(1, _TOKENS_PER_PASS // inputs.shape[1])
    loss, correct = 0.0, 0
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        scores = logits(model, x).flatten(0, -2).float()
        loss += F.cross_entropy(scores, y.flatten(), reduction='none').double().sum().item()
        correct += int((scores.argmax(-1) == y.flatten()).sum().item())
    model.train(was_training)
    return loss / targets.numel(), correct / targets.numel()


# ---------------------------------------------------------------------- entropies of the last token


def entropy_of(p: Tensor) -> Tensor:
    """`-sum p ln p` over the last axis, in nats; 0 ln 0 = 0."""
    return -torch.xlogy(p, p).sum(-1)


def right_spine(grammar: TreeGrammar) -> list[Tensor]:
    """The distributions `(v,)` of the symbols on the right edge of the tree, from the root (the prior) to x_n."""
    distributions = [grammar.prior]
    for level in range(grammar.L):
        distributions.append(distributions[-1] @ grammar.level_rules(level).sum(1))
    return distributions


def last_pair(grammar: TreeGrammar) -> Tensor:
    """`P(x_{n-1} = b, x_n = c)`, `(v, v)` float64: the last two tokens are siblings at every depth."""
    parent = right_spine(grammar)[-2]
    return torch.einsum('a,abc->bc', parent, grammar.level_rules(grammar.L - 1))


def marginal(grammar: TreeGrammar) -> float:
    """`H(x_n)`, the entropy of the last token in nats, exact: the loss of the best predictor that sees nothing."""
    return entropy_of(right_spine(grammar)[-1]).item()


def conditional_entropy(grammar: TreeGrammar) -> float:
    """`H(x_n | x_{n-1})` in nats, exact: the loss of the best predictor that sees one token. The floor when L = 1."""
    pair = last_pair(grammar)
    return (entropy_of(pair.flatten()) - entropy_of(pair.sum(1))).item()
