"""Evidence at any leaf: the posteriors of all nodes of a tree, and the entropy of the whole tree.

**Posteriors** take one upward and one downward pass of exact/propagation.py.

**The entropy** takes one upward pass. Below a symbol a, let every sub-tree with its evidence have the weight w, the
product of its rules and of the likelihoods of its leaves. Two numbers are carried upwards,

    u[a] = sum w,   s[a] = sum w ln w,   both sums over the sub-trees below a,

by the product rule of the logarithm, with `u_left`, `s_left` those of the left child and so on:

    s[a] = sum_bc T[a, b, c] (ln T[a, b, c] u_left[b] u_right[c] + s_left[b] u_right[c] + u_left[b] s_right[c]).

The sub-trees below a, given a and the evidence, have the probabilities w / u[a], hence the entropy `ln u[a] - s[a] /
u[a]`. This is the expectation semiring of Z. Li and J. Eisner, First- and second-order expectation semirings with
applications to minimum-risk training on translation forests, EMNLP 2009. It takes four contractions of v^3 a node with
two dense children, and no array of more than v numbers a node and sequence. T ln T is a second copy of the rules.

`inference` checks the arguments and calls these functions: tokens are int64, -1 for an unknown leaf, and likelihoods
have sum one at each leaf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.exact.propagation import (
    Level,
    check_possible,
    children_outside,
    down,
    down_path,
    in_chunks,
    level_posteriors,
    likelihoods_of,
    normalised,
    of_tokens,
    seen_leaves,
    sum_product,
    times,
    tree_levels,
    upward,
)

# ------------------------------------------------------------------ posteriors


def node_posteriors(language: TreeGrammar, evidence: Tensor) -> list[Tensor]:
    """The posteriors `(B, 2^l, v)` of all nodes given the first leaves: tokens `(B, k)` or likelihoods `(B, k, v)`.

    k > 0. Raises ValueError for evidence of probability zero.
    """
    L, dense = language.L, evidence.is_floating_point()
    levels, prior = tree_levels(language, 0, evidence.device), language.prior.to(evidence.device)
    # Tokens do not need the outside messages of all leaves.
    steps = L if dense else L - 1
    # Down to the lowest node that has all of the evidence below it, the left edge has laws that need no sequence.
    apex = L - (evidence.shape[1] - 1).bit_length()
    laws, pairs = down_path(language, 0, prior, [0] * min(apex + 1, steps))

    def outside_below(depth: int, alpha: Tensor, u: Tensor) -> Tensor:
        """The outside messages of the children of level `depth`, whose upward messages are u."""
        if depth > apex:
            return children_outside(levels[depth], alpha, u[::2], u[1::2])
        to_right = normalised(times(u[0], pairs[depth]))[0]
        to_left = laws[depth + 1].expand_as(to_right)
        if depth == apex:
            to_left = normalised(times(u[1], pairs[depth].T))[0]
        others = children_outside(levels[depth], alpha[1:], u[2::2], u[3::2])
        return torch.cat((torch.stack((to_left, to_right)), others))

    def posteriors(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(evidence[rows]))
        alpha, found = prior.expand(1, len(evidence[rows]), -1), []
        for depth in range(steps):
            found.append(level_posteriors(alpha, messages[depth].values))
            alpha = outside_below(depth, alpha, messages[depth + 1].values)
        found.append(level_posteriors(alpha, messages[steps].values))
        if not dense:
            found.append(_token_posteriors(levels[-1], alpha, messages[-1].values))
        check_possible(found[0][0].sum(1) > 0, rows)
        return [nodes.transpose(0, 1) for nodes in found]

    return in_chunks(posteriors, evidence, language.v, 2 * 2**L * language.v)


def _token_posteriors(level: Level, alpha: Tensor, tokens: Tensor) -> Tensor:
    """The posteriors `(2 N, R, v)` of the children of N nodes with outside messages alpha, given the first tokens."""
    unknown = tokens.new_full((2 * len(alpha) - len(tokens), tokens.shape[1]), -1)
    tokens = torch.cat((tokens, unknown))
    found = torch.nn.functional.one_hot(tokens.clamp(min=0), alpha.shape[-1]).double()
    for rules, side in (level.mirrored(), 0), (level, 1):
        nodes, rows = (tokens[side::2] < 0).nonzero(as_tuple=True)
        siblings = tokens[1 - side :: 2][nodes, rows]
        found[side::2][nodes, rows] = normalised(down(rules, alpha[nodes, rows], siblings))[0]
    return found


# ------------------------------------------------------------------ the entropy of the tree


def posterior_entropy(language: TreeGrammar, evidence: Tensor) -> Tensor:
    """The entropy `(B,)` in nats of all symbols given tokens `(B, n)` or likelihoods `(B, n, v)`.

    In a filtered language, the sub-trees below the heads, and the heads, are independent given the root. Raises
    ValueError for evidence of probability zero.
    """
    if language.top_level == language.L:  # the heads are the leaves
        evidence = likelihoods_of(evidence, language.v)
    levels = _levels_with_logarithms(tree_levels(language, language.top_level, evidence.device))
    log_prior = language.prior.to(evidence.device).log()
    laws = language.head_laws.to(evidence.device) if isinstance(language, FilteredGrammar) else None

    def entropy(rows: slice) -> list[Tensor]:
        u, s = _weights_below(levels, seen_leaves(evidence[rows]).values)
        if laws is not None:
            u, s = u @ laws.mT, u @ torch.xlogy(laws, laws).mT + s @ laws.mT
        given_root = (u.log() - s / u).where(u > 0, 0).sum(0)
        root = (log_prior + u.log().sum(0)).softmax(-1)
        check_possible(root.sum(1) > 0, rows)  # nan where all roots are impossible
        # The difference of two sums that agree to rounding may be below zero.
        return [(torch.special.entr(root) + root * given_root).sum(1).clamp(min=0)]

    return in_chunks(entropy, evidence, language.v, 8 * 2**language.L * language.v)[0]


def _levels_with_logarithms(levels: list[Level]) -> list[tuple[Level, Level]]:
    """Each level, and the same with `T ln T` in the place of T; there is one copy of rules that all share."""
    found: list[tuple[Level, Level]] = []
    for level in levels:
        if found and level is found[-1][0]:
            found.append(found[-1])
        else:
            T_ln_T = torch.xlogy(level.T, level.T)
            found.append((level, Level(T_ln_T, T_ln_T.sum(1), T_ln_T.sum(2))))
    return found


def _weights_below(levels: list[tuple[Level, Level]], leaves: Tensor) -> tuple[Tensor, Tensor]:
    """`u` and `s` (see above) of the nodes of the highest level, `(nodes, R, v)`, with weights scaled so that a u has
    sum one; a scale changes no entropy."""
    u, s = leaves, torch.xlogy(leaves, leaves)  # of tokens, s is not used
    for level, logarithms in reversed(levels):
        lefts, rights = u[::2], u[1::2]
        if u.is_floating_point():
            left, right, s_left, s_right = (x.flatten(0, 1) for x in (lefts, rights, s[::2], s[1::2]))
            T, T_ln_T = (rules.T.permute(1, 2, 0) for rules in (level, logarithms))
            s = sum_product(T_ln_T, left, right) + sum_product(T, s_left, right) + sum_product(T, left, s_right)
            u, s = sum_product(T, left, right).view(rights.shape), s.view(rights.shape)
        else:
            u, s = of_tokens(level, lefts, rights), of_tokens(logarithms, lefts, rights)
        total = u.sum(-1, keepdim=True)  # nan, where nothing is possible, is found at the root
        u, s = u / total, s / total - u / total * total.log()
    return u, s
