"""Belief propagation on the tree of a filtered language: its kept sub-trees, and the root that connects them.

In the kept sub-trees the passes are those of exact/propagation.py. With u_j the upward message of head j and
`K_j[a, b] = P(head j = b | root = a)`, the heads being independent given the root,

    m_j[a] = sum_b K_j[a, b] u_j[b]                              what is seen below head j says of the root,
    P(root = a, all that is seen) = prior[a] prod_j m_j[a],
    alpha_j[b] = sum_a prior[a] prod_(i != j) m_i[a] K_j[a, b]   the outside message of head j.

Nothing is divided: the products without one head are sums of logarithms over the heads before it and after it, so that
zeros, and products of many small numbers, are exact. `inference` checks the arguments and calls these functions: tokens
are int64, likelihoods have sum one at each leaf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar
from RLM_clean.exact.propagation import (
    Level,
    Nodes,
    check_possible,
    children_outside,
    in_chunks,
    level_posteriors,
    normalised,
    seen_leaves,
    tree_levels,
    upward,
)


def next_token_probs(language: FilteredGrammar, inputs: Tensor) -> Tensor:
    """`P(x_n | the last k tokens before it)`, `(B, v)`, from inputs `(B, k)`: down the right edge of the last sub-tree.

    Raises ValueError for a context of probability zero, as the functions below do for what they are given.
    """
    levels, laws, log_prior = _kept(language, inputs.device)
    first = 2**language.L - 1 - inputs.shape[1]

    def predict(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(inputs[rows], first), last_is_target=True)
        root = _probabilities(log_prior + _log_messages(laws, messages[0]).sum(0))
        alpha = (root @ laws[-1])[None]
        for level, nodes in zip(levels, messages[1:], strict=True):
            left_sibling = nodes.values[-1:]
            alpha = children_outside(level, alpha, left_sibling, left_sibling[:0])[1:]
        check_possible(alpha[0].sum(-1) > 0, rows)
        return [alpha[0]]

    return in_chunks(predict, inputs, language.v, _entries(language))[0]


def all_next_token_probs(language: FilteredGrammar, leaves: Tensor) -> Tensor:
    """`[:, i]` is `P(x_i | x_0..x_(i-1))`, `(B, m, v)`, from the last m leaves `(B, m)` of sequences."""
    levels, laws, log_prior = _kept(language, leaves.device)
    first = 2**language.L - leaves.shape[1]

    def predict(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(leaves[rows], first))
        before, _ = _before_and_after(_log_messages(laws, messages[0]))
        alpha = _probabilities(log_prior + before) @ laws[messages[0].first :]
        for level, nodes in zip(levels, messages[1:], strict=True):
            alpha = _given_the_past(level, alpha, nodes)
        check_possible(alpha[-1].sum(-1) > 0, rows)
        return [alpha.transpose(0, 1)]

    return in_chunks(predict, leaves, language.v, _entries(language))[0]


def log_likelihood(language: FilteredGrammar, evidence: Tensor) -> Tensor:
    """`ln P(evidence)`, `(B,)` in nats: of the last m leaves `(B, m)`, or of likelihoods `(B, n, v)`; minus infinity
    where it is impossible."""
    levels, laws, log_prior = _kept(language, evidence.device)
    first = 2**language.L - evidence.shape[1]

    def evaluate(rows: slice) -> list[Tensor]:
        messages, log_scale = upward(levels, seen_leaves(evidence[rows], first))
        return [log_scale + (log_prior + _log_messages(laws, messages[0]).sum(0)).logsumexp(-1)]

    return in_chunks(evaluate, evidence, language.v, _entries(language))[0]


def node_posteriors(language: FilteredGrammar, evidence: Tensor) -> list[Tensor]:
    """The posteriors of all nodes given the first leaves: tokens `(B, k)` or likelihoods `(B, k, v)`.

    One tensor `(B, 2^l, v)` for each level l of `language.levels`: the root, the heads, and below.
    """
    levels, laws, log_prior = _kept(language, evidence.device)

    def posteriors(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(evidence[rows]))
        log_messages = _log_messages(laws, messages[0])
        before, after = _before_and_after(log_messages)
        root = _probabilities(log_prior + log_messages.sum(0))
        unseen = root.expand(len(laws) - len(log_messages), -1, -1)
        alpha = torch.cat((_probabilities(log_prior + before + after), unseen)) @ laws
        found = [root[None], level_posteriors(alpha, messages[0].values)]
        for level, nodes in zip(levels, messages[1:], strict=True):
            alpha = children_outside(level, alpha, nodes.values[::2], nodes.values[1::2])
            found.append(level_posteriors(alpha, nodes.values))
        check_possible(root.sum(-1) > 0, rows)
        return [nodes.transpose(0, 1) for nodes in found]

    return in_chunks(posteriors, evidence, language.v, _entries(language))


def block_posteriors(language: FilteredGrammar, likelihoods: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """`P(x_i | evidence in its block of 2^height leaves)`, `(B, n, v)`, and `ln P(evidence)` of each block `(B, N)`.

    A block is what a sub-tree of that height has for leaves in the original tree, `height` above k; the rest of the
    sequence is unseen. `likelihoods (B, n, v)`.
    """
    posteriors, log_probs = [], []
    for leaves in torch.arange(2**language.L, device=likelihoods.device).split(2**height):
        seen = torch.ones_like(likelihoods)
        seen[:, leaves] = likelihoods[:, leaves]
        seen, log_norms = normalised(seen)
        posteriors.append(node_posteriors(language, seen)[-1][:, leaves])
        log_probs.append(log_norms.sum(1) + log_likelihood(language, seen))
    return torch.cat(posteriors, 1), torch.stack(log_probs, 1)


# ------------------------------------------------------------------ inside


def _kept(language: FilteredGrammar, device: torch.device) -> tuple[list[Level], Tensor, Tensor]:
    """The levels of the kept sub-trees, the laws of their heads `(H, v, v)`, and the logarithm of the prior."""
    levels = tree_levels(language, language.top_level, device)
    return levels, language.head_laws.to(device), language.prior.log().to(device)


def _entries(language: FilteredGrammar) -> int:
    """The numbers in the messages of a sequence."""
    return (2 * 2**language.L + 4 * 2**language.top_level) * language.v


def _log_messages(laws: Tensor, heads: Nodes) -> Tensor:
    """`ln m_j[a]` of the heads that have something seen below them, `(N, R, v)`."""
    u, to_root = heads.values, laws[heads.first : heads.first + len(heads.values)].mT
    if u.is_floating_point():
        return (u @ to_root).log()
    return to_root[torch.arange(len(u), device=u.device)[:, None], u].log()


def _before_and_after(log_messages: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over the heads before each head, and over those after it, `(N, R, v)` each."""
    device = log_messages.device
    if torch.are_deterministic_algorithms_enabled():  # then torch has no sums of this kind on a GPU
        log_messages = log_messages.cpu()
    none = torch.zeros_like(log_messages[:1])
    before = torch.cat((none, log_messages[:-1])).cumsum(0)
    after = torch.cat((none, log_messages.flip(0)[:-1])).cumsum(0).flip(0)
    return before.to(device), after.to(device)


def _probabilities(logs: Tensor) -> Tensor:
    """`exp(logs)` with sum one; nan where all are minus infinity, which `check_possible` finds."""
    return logs.softmax(-1)


def _given_the_past(level: Level, alpha: Tensor, nodes: Nodes) -> Tensor:
    """The laws, given the leaves to their left, of the nodes of a level that are not wholly before the first leaf.

    `alpha` are those of their parents. The left sibling of the first node has nothing seen below it if that node is a
    right child.
    """
    odd = nodes.first % 2
    lefts = nodes.values[odd::2]
    first = normalised(alpha[:odd] @ level.without_left)[0]
    return torch.cat((first, children_outside(level, alpha[odd:], lefts, lefts[:0])))
