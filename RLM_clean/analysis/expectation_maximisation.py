"""The learner that knows the tree and estimates the rules: expectation maximisation with exact inference.

Given rules, inference says how often each production `a -> b c` is expected in the trees above the observed sequences;
given these expected counts, the best rules are their frequencies. The two steps in turn never lower the likelihood: J.
K. Baker, Trainable grammars for speech recognition, J. Acoust. Soc. Am. 65, S132 (1979), known as inside-outside; A. P.
Dempster, N. M. Laird and D. B. Rubin, J. R. Stat. Soc. B 39, 1 (1977). The tree is given, so one upward and one
downward pass of exact/propagation.py are all of it.

**What can be known.** The hidden symbols are never seen, so different rules can make the same sequences.

- Rules that all levels share, in two levels or more: a hidden symbol that is a child and one that is the parent of
  tokens follow the same rule, which names it by its tokens. For rules without symmetry no permutation is left.
- Rules of their own on each level: any permutation of the symbols of a hidden level, and of the root's rules only the
  law of the pair of children, `sum_a prior[a] T_0[a, b, c]`. Even up to a permutation the rest is not always
  determined: where a symbol could be read as a mixture of others, a family of rules has the largest likelihood.
- One level: only the law of the pair.

`relabelling.match_symbols` finds the permutations. The predictions do not depend on which of equivalent rules is found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.inference import evidence_log_likelihood, next_token_probs
from RLM_clean.exact.propagation import (
    Level,
    check_possible,
    children_outside,
    of_tokens,
    seen_leaves,
    sum_product,
    tree_levels,
    upward,
)
from RLM_clean.streams import random_words, stream_key, uniform

# Numbers in the messages of one level of a chunk of sequences: as many as the caches of processors hold.
_MESSAGE_ENTRIES = 2**17
# Extrapolations go no further than this many iterations.
_LONGEST_STEP = 1000.0
# Starts take their random words from the stream 'other' under this index; never change it.
_STARTS_INDEX = 2


# ---------------------------------------------------------------------- the expectation


def expected_counts(language: TreeGrammar, sequences: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How often each production is expected above sequences, `(L, v, v, v)`, and `ln P` of each sequence, `(R,)`.

    The counts of level l are the sum over its nodes and over the sequences of

        P(node = a, children = (b, c) | sequence) = alpha[a] T_l[a, b, c] u_left[b] u_right[c] / Z,

    with the messages of exact/propagation.py and Z the sum over a, b, c. A sequence r counts `numbers[r]` times, once
    by default. Both float64; logarithms in nats. `sequences (R, 2^L)` int64 are tokens of the grammar. About five
    contractions of v^3 for each node above the parents of tokens. Raises ValueError for shapes that do not fit, other
    numbers than tokens, and a sequence of probability zero.
    """
    L, v = language.L, language.v
    if sequences.dim() != 2 or sequences.shape[1] != 2**L:
        raise ValueError(f'sequences of shape {tuple(sequences.shape)}: for a tree of {2**L} leaves give (R, {2**L})')
    if sequences.dtype != torch.int64 or (len(sequences) and not 0 <= sequences.min() <= sequences.max() < v):
        raise ValueError(f'sequences hold other numbers than tokens of v={v}: give int64 numbers from 0 to {v - 1}')
    numbers = torch.ones(len(sequences), dtype=torch.float64) if numbers is None else numbers.double()
    levels = tree_levels(language, 0, sequences.device)
    counts, log_probs = torch.zeros(L, v, v, v, dtype=torch.float64), []
    size = max(1, _MESSAGE_ENTRIES // v)
    for first in range(0, len(sequences), size):
        rows = slice(first, first + size)
        messages, log_scale = upward(levels, seen_leaves(sequences[rows]))
        likelihood = messages[0].values[0] @ language.prior
        check_possible(likelihood > 0, rows)
        log_probs.append(log_scale + likelihood.log())
        alpha = language.prior.expand(1, len(likelihood), v)
        for depth, level in enumerate(levels):
            left, right = messages[depth + 1].values[::2], messages[depth + 1].values[1::2]
            counts[depth] += _productions(level, alpha, left, right, numbers[rows])
            if depth < L - 1:
                alpha = children_outside(level, alpha, left, right)
    return counts, torch.cat(log_probs) if log_probs else torch.zeros(0, dtype=torch.float64)


def _productions(level: Level, alpha: Tensor, left: Tensor, right: Tensor, numbers: Tensor) -> Tensor:
    """The expected counts `(v, v, v)` of the productions of nodes with outside messages `alpha (nodes, R, v)`."""
    v = alpha.shape[-1]
    if left.is_floating_point():
        below = sum_product(level.T.permute(1, 2, 0), left.flatten(0, 1), right.flatten(0, 1)).view(left.shape)
    else:
        below = of_tokens(level, left, right)
    weighted = (alpha * (numbers[:, None] / (alpha * below).sum(-1, keepdim=True))).flatten(0, 1)
    if not left.is_floating_point():
        sums = torch.zeros(v * v, v, dtype=torch.float64).index_add_(0, (left * v + right).flatten(), weighted)
        return level.T * sums.T.view(v, v, v)
    lefts, rights = left.flatten(0, 1).T.contiguous(), right.flatten(0, 1)
    return level.T * torch.stack([(weighted.T * of_b) @ rights for of_b in lefts], 1)


# ---------------------------------------------------------------------- the fit


@dataclass(frozen=True)
class FittedRules:
    """Rules that were estimated, as a language; called on contexts `(B, T)` it returns `P(x_n | context)`, `(B, v)`.

    Attributes:
        grammar: the language of the best start, with the exact posteriors of exact/inference.py.
        log_likelihoods: for each start, step by step, `ln P(training sequences)` in nats; with a `weight` above 0, plus
            the logarithm of the density of the rules a priori, see `fit_rules`. The last one is that of the rules at
            the end, except after a single pass, which gives that of the rules at the start.
        best: the number of the start whose last value is the largest.
        converged: for each start, whether it ended by its tolerance, not by `max_iterations`.
    """

    grammar: TreeGrammar
    log_likelihoods: list[list[float]]
    best: int
    converged: list[bool]

    def __call__(self, contexts: Tensor) -> Tensor:
        """The exact posterior under the fitted rules; uniform in contexts that they make impossible."""
        contexts = contexts.cpu()
        hidden = contexts.new_full((len(contexts), 2**self.grammar.L - contexts.shape[1]), -1)
        # The tokens of a context stand directly before the target.
        evidence = torch.cat((hidden[:, 1:], contexts, hidden[:, :1]), 1)
        possible = evidence_log_likelihood(self.grammar, evidence) > -torch.inf
        q = torch.full((len(contexts), self.grammar.v), 1 / self.grammar.v, dtype=torch.float64)
        q[possible] = next_token_probs(self.grammar, contexts[possible])
        return q


@dataclass(frozen=True)
class KnownTree:
    """The learner that knows the tree, the law of the root and whether levels share their rules, but not the rules.

    It predicts with the exact posterior of the rules that `fit_rules` estimates; the options are those of `fit_rules`.
    For `prior=None` the root is uniform here; `baselines.learning_curve` and `baselines.learner_records` put the law of
    the language in its place.
    """

    shared: bool = True
    prior: Tensor | None = None
    starts: int = 4
    weight: float = 1.0
    seed: int = 0
    max_iterations: int = 500
    tolerance: float = 1e-7

    def fit(self, sequences: Tensor, v: int) -> FittedRules:
        """What it predicts after training sequences `(P, 2^L)` int64, of which the last token is the target."""
        return fit_rules(sequences, v, **vars(self))


def fit_rules(
    sequences: Tensor,
    v: int,
    shared: bool = True,
    prior: Tensor | None = None,
    starts: int = 4,
    weight: float = 1.0,
    seed: int = 0,
    max_iterations: int = 500,
    tolerance: float = 1e-7,
) -> FittedRules:
    """Rules estimated from sequences `(P, 2^L)` int64 by expectation maximisation, the best of several starts.

    With C the expected counts of a level (summed over levels where they share their rules), an iteration replaces

        T[a, b, c] by (C[a, b, c] + weight / v^2) / (sum_bc C[a, b, c] + weight):

    each symbol has `weight` imaginary productions, spread over all pairs, so that no sequence is impossible; 0 gives
    maximum likelihood. The value, the logarithm of the likelihood plus `weight / v^2 sum_abc ln T[a, b, c]`, never
    falls. Iterations are extrapolated where this raises it more: R. Varadhan and C. Roland, Scand. J. Stat. 35, 335
    (2008). A start ends when an iteration gains no more than `tolerance` nats a sequence, or after `max_iterations`
    passes over the sequences; the start with the largest value is the result. An extrapolation takes up to three
    passes; what is left of them at the end goes to plain iterations. Each pass gives the value of some rules and the
    next ones, and the result are the last rules whose value is known: n - 1 iterations for 2 or 3 passes. With
    `max_iterations=1` these are the rules after one iteration, and the only value is that of the rules before it, which
    is not larger. Start s has rows drawn uniformly from all distributions over pairs, by the seed and s alone.

    `prior (v,)` is the law of the root, uniform by default. Equal sequences are worked on once. Raises ValueError for
    sequences that do not have the tokens of a tree or hold other numbers, and for options out of range.
    """
    width = sequences.shape[1] if sequences.dim() == 2 else 0
    L = width.bit_length() - 1
    if L < 1 or width != 2**L:
        raise ValueError(f'sequences of shape {tuple(sequences.shape)}: give (P, 2^L), all the tokens of each tree')
    if starts < 1 or max_iterations < 1:
        raise ValueError(f'starts={starts}, max_iterations={max_iterations}: use 1 or more of each')
    if not weight >= 0 or not tolerance >= 0:
        raise ValueError(f'weight={weight}, tolerance={tolerance} are out of range: use 0 or more')
    distinct, numbers = sequences.cpu().unique(dim=0, return_counts=True)

    def language(rules: Tensor) -> TreeGrammar:
        return TreeGrammar(rules[0] if shared else list(rules), L, prior=prior)

    def iterate(rules: Tensor) -> tuple[float, Tensor]:
        counts, log_probs = expected_counts(language(rules), distinct, numbers)
        value = (log_probs @ numbers.double()).item()
        if weight:
            value += weight / v**2 * rules.log().sum().item()
        return value, _most_likely(counts.sum(0, keepdim=True) if shared else counts, weight, rules)

    least, found = tolerance * max(1, len(sequences)), []
    for start in range(starts):
        rules = _random_rules(v, 1 if shared else L, seed, start)
        found.append(_climb(iterate, rules, max_iterations, least))
    values = [value for _, value, _ in found]
    best = max(range(starts), key=lambda start: values[start][-1])
    return FittedRules(language(found[best][0]), values, best, [converged for *_, converged in found])


def _most_likely(counts: Tensor, weight: float, rules: Tensor) -> Tensor:
    """The frequencies of productions; a symbol that no tree needs keeps its rule where there is no weight."""
    totals = counts.sum((2, 3), keepdim=True) + weight
    frequencies = (counts + weight / rules[0, 0].numel()) / totals.where(totals > 0, 1)
    return frequencies.where(totals > 0, rules)


def _climb(
    iterate: Callable[[Tensor], tuple[float, Tensor]], rules: Tensor, max_iterations: int, least: float
) -> tuple[Tensor, list[float], bool]:
    """The rules at the end of a start, the value of each step on the way, and whether it converged.

    `iterate(rules)` returns the value of rules and the rules of the next iteration. Two iterations in turn say where
    many would lead, see `_extrapolated`; where that is worse than the first one, the second one is taken. The one or
    two passes that are left at the end are iterations; after a single pass the value is that of the rules before it.
    """
    value, once = iterate(rules)
    values, passes = [value], 1
    while passes + 3 <= max_iterations:
        value, twice = iterate(once)
        values.append(value)
        if values[-1] - values[-2] <= least:
            return once, values, True
        ahead = _extrapolated(rules, once, twice)
        value, next_rules = iterate(ahead)
        passes += 2
        if value < values[-1]:
            ahead = twice
            value, next_rules = iterate(ahead)
            passes += 1
        values.append(value)
        rules, once = ahead, next_rules
    if max_iterations == 1:
        return once, values, False
    for _ in range(max_iterations - passes):
        value, twice = iterate(once)
        values.append(value)
        if values[-1] - values[-2] <= least:
            return once, values, True
        rules, once = once, twice
    return rules, values, False


def _extrapolated(rules: Tensor, once: Tensor, twice: Tensor) -> Tensor:
    """Where iterations lead from rules of which the next two are known: the step S3 of Varadhan and Roland.

    With r and r + w the two changes, `rules + 2 s r + s^2 w`, s = |r| / |w|; s = 1 gives the second iteration. No rule
    falls below 1% of the second one, so that what is possible there remains possible.
    """
    r = once - rules
    w = twice - once - r
    s = (r.norm() / w.norm().clamp(min=r.norm() / _LONGEST_STEP)).clamp(min=1)
    ahead = torch.maximum(rules + 2 * s * r + s**2 * w, 0.01 * twice)
    return ahead / ahead.sum((2, 3), keepdim=True)


def _random_rules(v: int, number: int, seed: int, start: int) -> Tensor:
    """Rules `(number, v, v, v)` of one start: exponential weights, normalised, are uniform on the simplex."""
    words = random_words(stream_key(seed, 'other', _STARTS_INDEX, start), torch.arange(number * v**3))
    positive = uniform(words) + 2.0**-54
    weights = -positive.log().view(number, v, v * v)
    return (weights / weights.sum(2, keepdim=True)).view(number, v, v, v)
