"""Belief propagation that ignores what is above sub-trees of 2^k leaves, as a predictor of the original language.

`BP_k` is the best predictor of the language filtered to height k (datasets/filtered.py). On sequences of the original
language it knows all correlations within a sub-tree of 2^k leaves and takes different sub-trees as independent given
the root. It loses the cross-entropy `E[-ln BP_k(x_i | evidence)]`, which is the floor of the language and the
divergence `E KL(BP_L || BP_k)`; BP_L is the best predictor.

The predictions of BP_k are those of `exact.inference` on `language.filtered(k)`, for any task:

    inference.leaf_posteriors(language.filtered(k), evidence)       # hidden tokens, (N, n, v)
    inference.next_token_probs(language.filtered(k), inputs)        # x_n from the tokens before it, (N, v)
    inference.node_posteriors(language.filtered(k), evidence)[0]    # the root, (N, 1, v)

J. Garnier-Brun, M. Mezard, E. Moscato and L. Saglietti, ICML 2025, arXiv:2408.15138.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.entropies import Estimate, mean_and_error, per_context
from RLM_clean.exact.inference import leaf_posteriors, next_token_probs


class Comparison(NamedTuple):
    """How a predictor q does on contexts whose best predictor p is known, in nats, with standard errors.

    Attributes:
        cross_entropy: `E[-sum_a p(a) ln q(a)]`: the loss of q.
        divergence: `E KL(p || q)`: what q loses beyond the best predictor.
    """

    cross_entropy: Estimate
    divergence: Estimate


def compare(
    best: Tensor, predicted: Tensor, positions: Tensor | None = None, weights: Tensor | None = None
) -> Comparison:
    """The loss of the predictions and their divergence from the best ones, `(N, c)` or `(N, T, c)` each.

    The expectation over the target is exact, over its best posterior: no draw of a target adds noise. `positions
    (N, T)` are weights of the targets of a context, which sum to one (equal by default); `weights (N,)` the
    probabilities of the contexts where these are all there are, and the standard errors are then zero. The loss is
    infinite where a possible target is predicted with probability zero. Raises ValueError for shapes that differ.
    """
    if best.shape != predicted.shape:
        raise ValueError(
            f'predictions of shape {tuple(predicted.shape)} do not fit posteriors of shape {tuple(best.shape)}: '
            'give both for the same contexts'
        )
    possible = best > 0
    losses = -(best * predicted.log()).where(possible, 0.0).sum(-1)
    divergences = (best * (best / predicted).log()).where(possible, 0.0).sum(-1)
    return Comparison(*(mean_and_error(per_context(values, positions), weights) for values in (losses, divergences)))


def masked_floors(
    language: TreeGrammar, evidence: Tensor, ks: Iterable[int] | None = None, weights: Tensor | None = None
) -> dict[int, Comparison]:
    """What BP_k loses on hidden tokens, `{k: Comparison}`, for k = 0, ..., L by default.

    `evidence (N, n)` int64 are sequences of the language with -1 at hidden tokens, at least one in each. The loss of a
    sequence is the mean over its hidden tokens, and the expectation is over the N sequences, with `weights` as in
    `compare`. Raises ValueError for a row without a hidden token, and as `inference.leaf_posteriors`.
    """
    hidden = (evidence == -1).double()
    if not (hidden.sum(1) > 0).all():
        row = int((hidden.sum(1) == 0).int().argmax())
        raise ValueError(f'row {row} of the evidence has no hidden token: set one of its tokens to -1')
    positions = hidden / hidden.sum(1, keepdim=True)
    return _floors(leaf_posteriors, language, evidence, ks, positions, weights)


def last_floors(
    language: TreeGrammar, inputs: Tensor, ks: Iterable[int] | None = None, weights: Tensor | None = None
) -> dict[int, Comparison]:
    """What BP_k loses on x_n given the tokens before it, `{k: Comparison}`, for k = 0, ..., L by default.

    `inputs (N, m)` int64 are the last m tokens before x_n of sequences of the language, with `weights` as in `compare`.
    Raises ValueError as `inference.next_token_probs`.
    """
    return _floors(next_token_probs, language, inputs, ks, None, weights)


def heights(language: TreeGrammar) -> range:
    """The heights k to which a language can be filtered: 0, ..., L, or up to that of a filtered language itself."""
    return range(language.L - language.top_level + 1)


def _floors(
    predict: Callable[[TreeGrammar, Tensor], Tensor],
    language: TreeGrammar,
    context: Tensor,
    ks: Iterable[int] | None,
    positions: Tensor | None,
    weights: Tensor | None,
) -> dict[int, Comparison]:
    best = predict(language, context)
    chosen = heights(language) if ks is None else ks
    return {k: compare(best, predict(language.filtered(k), context), positions, weights) for k in chosen}
