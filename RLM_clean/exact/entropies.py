"""The entropies of a language, in nats: the floors H_k of the last token, and those of rules, trees and sequences.

The floors `H_k = H(x_n | last k tokens)` are the losses of the best predictors that see k tokens; the last one,
`H_(n-1)`, is the lowest loss of any model (the Bayes floor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import count, pairwise, takewhile

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.datasets.tree_grammar import normalised_blocks
from RLM_clean.exact.correlations import children_law, level_marginals, transitions
from RLM_clean.exact.inference import log_likelihood, next_token_probs

Estimate = tuple[float, float]
# Entries of a joint distribution of tokens that is summed over exactly (8 bytes each).
_EXACT_ENTRIES = 2**24
# Multiplications in float64 that the sampled posteriors of one quantity may take: about five seconds on two cores.
_SAMPLING_BUDGET = 2e11
MULTIPLICATIONS_A_SECOND = 2.5e10
# What a node costs at least, in multiplications: drawing it, and reading and writing its messages. It counts for
# v < 37 in contexts of more than 2046 tokens; the numbers of shorter contexts never change, so that old runs go on.
_NODE_COST = 47_000
# Contexts that are sampled however expensive they are: the fewest whose spread still says something about the error.
FEWEST_CONTEXTS = 8
# Entries of float64 temporaries at a time.
_ENTRIES_PER_BLOCK = 2**22


# ---------------------------------------------------------------------- the last token: floors


def marginal(language: TreeGrammar) -> float:
    """`H(x_n)`, the entropy of the last token, exact: the loss of the best predictor that sees nothing."""
    return torch.special.entr(window_distribution(language, 1)).sum().item()


def conditional_entropy(language: TreeGrammar) -> float:
    """`H(x_n | x_{n-1})`, exact: the loss of the best predictor that sees one token. The Bayes floor when L = 1."""
    return exact_window_entropy(language, 1)


def entropy(language: TreeGrammar, num_samples: int = 4096) -> Estimate:
    """`H(x_n | x_1..x_{n-1})`, the Bayes floor, and its standard error: see `window_entropies`."""
    k = 2**language.L - 1
    return window_entropies(language, [k], num_samples)[k]


def window_entropies(
    language: TreeGrammar,
    ks: Iterable[int] | None = None,
    num_samples: int = 4096,
    seed: int | None = None,
    known: dict[int, Estimate] | None = None,
) -> dict[int, Estimate]:
    """`{k: (H(x_n | last k tokens), standard error)}` in nats, for k = 0, 1, 3, 7, ..., n-1 by default.

    Exact, with an error of 0, where the sum over all contexts is affordable: always for k = 0 and 1. Otherwise the
    mean of the entropy of the exact posterior over the contexts of `num_samples` sampled sequences (the first of the
    stream 'floors' of `seed`, by default the grammar's own): unbiased, and with less variance than the mean of
    -ln P(x_n | context).

    Where so many posteriors would take more than some seconds, `H_k = H_j - E[H(x_n | last j) - H(x_n | last k)]`, with
    j the window of the level below (about k/2) and the expectation over fewer contexts, other ones than those of H_j:
    far tokens add little information, so that a few contexts, at least 8, leave an error close to that of H_j
    (M. B. Giles, Oper. Res. 56, 607, 2008). `num_contexts` says how many contexts a floor rests on.

    `known` are windows of the same grammar and samples that are not computed again. Raises ValueError for k outside
    0..n-1 and for fewer than 2 samples where the sum is not exact.
    """
    found = dict(known or {})
    wanted = window_ladder(2**language.L - 1) if ks is None else list(ks)
    for k in wanted:
        check_window(language, k)
        found[k] = _window_entropy(language, k, num_samples, seed, found)
    return {k: found[k] for k in wanted}


def _window_entropy(
    language: TreeGrammar, k: int, num_samples: int, seed: int | None, known: dict[int, Estimate]
) -> Estimate:
    if k in known:
        return known[k]
    if summable(language, k):
        return exact_window_entropy(language, k), 0.0
    number = num_contexts(language, k, num_samples)
    if not chained(language, k, num_samples):
        return mean_and_error(_context_entropies(language, sample_contexts(language, k, number, seed)))
    below = window_ladder(k)[-2]
    value, error = _window_entropy(language, below, num_samples, seed, known)
    inputs = sample_contexts(language, k, number, seed, first=k * num_samples)
    gains = _context_entropies(language, inputs[:, k - below :]) - _context_entropies(language, inputs)
    difference, own_error = mean_and_error(gains)
    return value - difference, math.hypot(error, own_error)


def exact_window_entropy(language: TreeGrammar, k: int) -> float:
    joint = window_distribution(language, k + 1).flatten()
    context = joint.view(-1, language.v).sum(1)
    return (torch.special.entr(joint).sum() - torch.special.entr(context).sum()).item()


def check_window(language: TreeGrammar, k: int) -> None:
    n = 2**language.L
    if not 0 <= k < n:
        raise ValueError(f'k={k} is not a valid window of {n} tokens: use 0 to {n - 1}')


def window_ladder(context_size: int) -> list[int]:
    """The windows 0, 1, 3, 7, ... up to a context, which complete one level of the tree after the other, and itself."""
    return [*takewhile(lambda k: k < context_size, (2**l - 1 for l in count())), context_size]


def summable(language: TreeGrammar, k: int) -> bool:
    """Whether `H(x_n | last k tokens)` is summed exactly over all contexts and next tokens, up to 2^24 in all."""
    return k <= 1 or language.v ** (k + 1) <= _EXACT_ENTRIES


def chained(language: TreeGrammar, k: int, num_samples: int = 4096) -> bool:
    """Whether posteriors of k tokens are too expensive for `window_entropies` to take `num_samples` of them."""
    return not summable(language, k) and affordable(language, k, num_samples) < num_samples


def num_contexts(language: TreeGrammar, k: int, num_samples: int = 4096) -> int:
    """How many contexts `window_entropies` samples for H_k: 0 where it is an exact sum.

    Where H_k is H_j minus a difference (see there), the contexts of the difference alone, without those of H_j.
    """
    if summable(language, k):
        return 0
    if not chained(language, k, num_samples):
        return num_samples
    return affordable(language, k + window_ladder(k)[-2], num_samples)


def affordable(language: TreeGrammar, k: int, num_samples: int) -> int:
    """How many contexts of k tokens the budget allows, `num_samples` at most and FEWEST_CONTEXTS at least.

    A posterior takes about k/2 contractions of v^3. Beyond the budget, the few contexts that are left cost as much as
    some tens of training steps on sequences of that length.
    """
    if num_samples < 2:
        raise ValueError(f'num_samples={num_samples} gives no standard error: use 2 or more')
    return min(num_samples, max(FEWEST_CONTEXTS, int(_SAMPLING_BUDGET / _context_cost(language, k))))


def expected_seconds(language: TreeGrammar, k: int, num_samples: int = 4096) -> float:
    """About how long `window_entropies` takes for H_k on one core, without the windows that it builds on."""
    if summable(language, k):
        return language.v ** (k + 1) / MULTIPLICATIONS_A_SECOND
    windows = k + window_ladder(k)[-2] if chained(language, k, num_samples) else k
    cost = num_contexts(language, k, num_samples) * _context_cost(language, windows)
    return cost / MULTIPLICATIONS_A_SECOND


def _context_cost(language: TreeGrammar, k: int) -> float:
    """About how many multiplications the posterior of one context of k tokens takes."""
    return max(1, k / 2) * max(language.v**3, _NODE_COST)


def sample_contexts(language: TreeGrammar, k: int, number: int, seed: int | None, first: int = 0) -> Tensor:
    """The k tokens before the last one, `(number, k)`, of the sequences of the stream 'floors' from the first on."""
    return language.sequences(first, number, 'floors', seed=seed, last=k + 1)[:, :-1]


def _context_entropies(language: TreeGrammar, inputs: Tensor) -> Tensor:
    """`H(x_n | context)` of each context `(N, k)`, `(N,)` nats."""
    return torch.special.entr(next_token_probs(language, inputs)).sum(1).cpu()


def window_distribution(language: TreeGrammar, m: int) -> Tensor:
    """`P(x_{n-m+1}, ..., x_n)`, the joint distribution of the last m tokens, `(v,) * m` float64, exact.

    From the leaves up, `U[a, tokens]` is the probability of the last tokens below a symbol a. The cost is v^(m+1).
    Raises ValueError for m outside 1..n.
    """
    n = 2**language.L
    if not 1 <= m <= n:
        raise ValueError(f'm={m} tokens are not part of a sequence of {n}: use 1 to {n}')
    height = (m - 1).bit_length()
    level, half = language.L - height, 2**height // 2
    if level < language.top_level:
        left, right = _given_root(language, n - m, n - half), _given_root(language, n - half, n)
        return ((left * language.prior[:, None]).T @ right).view((language.v,) * m)
    law = right_spine(language)[level]
    if height == 0:
        return law
    pair = children_law(language, level, law)
    left, right = _below(language, height - 1, m - half), _below(language, height - 1, half)
    return (left.T @ pair @ right).view((language.v,) * m)


def _below(language: TreeGrammar, height: int, m: int) -> Tensor:
    """`U[a, tokens]`, `(v, v^m)`: the probability of the last m of the 2^height tokens below a symbol a."""
    if height == 0:
        return torch.eye(language.v, dtype=torch.float64)
    rules, half = language.level_rules(language.L - height), 2 ** (height - 1)
    if m <= half:
        return rules.sum(1) @ _below(language, height - 1, m)
    left, right = _below(language, height - 1, m - half), _below(language, height - 1, half)
    return (left.T @ (rules @ right)).flatten(1)


def _given_root(language: TreeGrammar, first: int, end: int) -> Tensor:
    """`P(x_first..x_(end - 1) | root)` of a filtered language, `(v, v^(end - first))`; `end` is that of a sub-tree."""
    assert isinstance(language, FilteredGrammar)
    size, table = 2**language.k, torch.ones(language.v, 1, dtype=torch.float64)
    for j in range(first // size, end // size):
        words = language.head_laws[j] @ _below(language, language.k, min(size, (j + 1) * size - first))
        table = (table[:, :, None] * words[:, None]).flatten(1)
    return table


def right_spine(language: TreeGrammar) -> list[Tensor]:
    """The distributions `(v,)` of the symbols on the right edge of the tree, from the root (the prior) to x_n."""
    distributions = [language.prior]
    for _, right in transitions(language):
        distributions.append(distributions[-1] @ right)
    return distributions


def per_context(values: Tensor, positions: Tensor | None) -> Tensor:
    """The mean over the targets of each context: values `(N,)` or `(N, T)` -> `(N,)`, with weights `positions`."""
    if positions is None:
        return values.reshape(len(values), -1).mean(1)
    return (values * positions).where(positions > 0, 0.0).sum(1)  # what is not predicted may be infinite


def mean_and_error(values: Tensor, weights: Tensor | None = None) -> Estimate:
    """The mean of one value a context and its standard error; 0 where the weights say that the mean is a whole sum."""
    if weights is not None:
        return (values @ weights).item(), 0.0
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


# ---------------------------------------------------------------------- rules, trees and sequences


def rule_entropy(rules: Tensor) -> Tensor:
    """`-sum_bc M[a, b, c] ln M[a, b, c]` of each parent a, `(v,)` nats, for rules `(v, v, v)`."""
    return _of_parents(lambda block: torch.special.entr(block).sum((1, 2)), rules)


def participation_ratio(rules: Tensor) -> Tensor:
    """`Y_2[a] = sum_bc M[a, b, c]^2` of each parent a, `(v,)`, for rules `(v, v, v)`.

    The chance that two draws of one rule agree: 1 / Y_2 is the effective number of productions of a, from 1 (frozen)
    to v^2 (uniform). The order parameter of the freezing of a random energy model: B. Derrida, Phys. Rev. B 24, 2613
    (1981); M. Mezard and A. Montanari, Information, Physics, and Computation, ch. 5 (2009).
    """
    return _of_parents(lambda block: block.square().sum((1, 2)), rules)


def tree_entropy(language: TreeGrammar) -> float:
    """The entropy of a whole derivation, all of its symbols, in nats.

    By the chain rule `H(prior) + sum over inner nodes k of sum_a P(x_k = a) h_k[a]`, with h the entropy of the rules.
    In a filtered language the heads of the sub-trees, given the root, take the place of the inner nodes above them.
    """
    entropy = torch.special.entr(language.prior).sum().item()
    laws = level_marginals(language)
    shared = rule_entropy(language.rules[0]) if language.shared else None
    if isinstance(language, FilteredGrammar):
        entropy += (torch.special.entr(language.head_laws).sum((0, 2)) @ language.prior).item()
    for level in range(language.top_level, language.L):
        of_rules = rule_entropy(language.rules[level]) if shared is None else shared
        entropy += (laws[level].sum(0) @ of_rules).item()
    return entropy


def leaves_entropy(language: TreeGrammar, num_samples: int = 2**12, max_sequences: int = 2**24) -> tuple[float, float]:
    """The entropy of a sequence of tokens, in nats, and its standard error.

    Exact, with a standard error of 0, when there are at most `max_sequences` sequences to sum over, of v^(2^L).
    Otherwise from the trees 0..num_samples - 1 of the stream 'floors': the mean of `-ln P(leaves)`, with `-ln P(tree)`
    as control variate, whose mean is known exactly (`tree_entropy`). The two are close where the leaves determine the
    tree, and there the error is far below that of the plain mean. The coefficient is that of the regression on the same
    samples, which biases the value by O(1 / num_samples), less than its error of O(1 / sqrt num_samples).

    Raises ValueError for num_samples below 3.
    """
    if language.v**2**language.L <= max_sequences:
        return _summed_leaves_entropy(language), 0.0
    if num_samples < 3:
        raise ValueError(f'num_samples={num_samples} gives no standard error: use 3 or more')
    trees = language.trees(0, num_samples, 'floors')
    surprise = -log_likelihood(language, trees[-1]).cpu()
    control = -_tree_log_probabilities(language, [symbols.cpu() for symbols in trees])
    deviation = control - control.mean()
    spread = deviation.square().sum().item()
    # Where all trees are equally likely, the control variate is constant.
    slope = (deviation @ surprise).item() / spread if spread > 1e-20 * num_samples else 0.0
    residual = surprise - slope * (control - tree_entropy(language))
    return residual.mean().item(), math.sqrt(
        residual.var().item() * (num_samples - 1) / (num_samples - 2) / num_samples
    )


def ambiguity(language: TreeGrammar, num_samples: int = 2**12, max_sequences: int = 2**24) -> tuple[float, float]:
    """The entropy of the tree given its leaves, in nats, and its standard error: `tree_entropy - leaves_entropy`.

    Zero where every sequence has a single derivation. Arguments and errors are those of `leaves_entropy`.
    """
    entropy, error = leaves_entropy(language, num_samples, max_sequences)
    return tree_entropy(language) - entropy, error


def _of_parents(number: Callable[[Tensor], Tensor], rules: Tensor) -> Tensor:
    """One number of each parent `(v,)` by a function of blocks of rules."""
    numbers = torch.empty(len(rules), dtype=torch.float64)
    for parents, block in normalised_blocks(rules):
        numbers[parents] = number(block)
    return numbers


def _summed_leaves_entropy(language: TreeGrammar) -> float:
    """The entropy of the leaves by the sum over all sequences, which are never all in memory.

    `U[a, s]` is the probability that a symbol of the level has the leaves s; the sequences are the pairs of the left
    and the right half below the root.
    """
    v, L = language.v, language.L
    if language.top_level:
        half = (_given_root(language, 0, 2**L // 2) * language.prior[:, None]).T
        U = _given_root(language, 2**L // 2, 2**L)
    else:
        U = torch.eye(v, dtype=torch.float64)
        for level in range(L - 1, 0, -1):
            U = (U.T @ (language.level_rules(level) @ U)).flatten(1)
        half = U.T @ children_law(language, 0, language.prior)
    blocks = half.split(max(1, _ENTRIES_PER_BLOCK // U.shape[1]))
    return sum(torch.special.entr(block @ U).sum().item() for block in blocks)


def _tree_log_probabilities(language: TreeGrammar, trees: list[Tensor]) -> Tensor:
    """`ln P(tree)` of each tree, `(B,)` nats, given level by level as the grammar draws them."""
    log_probability = language.prior[trees[0][:, 0]].log()
    if isinstance(language, FilteredGrammar):
        log_probability += language.head_laws[torch.arange(len(language.head_laws)), trees[0], trees[1]].log().sum(1)
        trees = trees[1:]
    for level, (parents, children) in enumerate(pairwise(trees), language.top_level):
        T = language.level_rules(level)
        log_probability += T[parents, children[:, ::2], children[:, 1::2]].log().sum(1)
    return log_probability
