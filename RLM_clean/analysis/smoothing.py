"""Learners that count n-grams: how often each symbol followed each context, and what to say of contexts seen rarely.

From P sequences `(P, m)` a learner counts `N(c, x)`, the number of sequences whose target, the last token, is x and
whose j tokens before it are c, for j = 0..k. A context c of j tokens has `N(c) = sum_x N(c, x)` sequences and `T(c)`
different symbols after it, and c' is c without its first token. The learners are

- `AddConstant`, one window: `q(x | c) = (N(c, x) + constant) / (N(c) + v constant)`.
- `Empirical`, the relative frequency in the longest part of the context that was seen.
- `WittenBell` and `KneserNey`, which mix the frequencies of all lengths, from the shortest to the longest:
  S. F. Chen and J. Goodman, An empirical study of smoothing techniques for language modeling, Harvard TR-10-98 (1998).

All of them have the form `q(x | c) = (n(c, x) + w(c) q_lower(x)) / Z(c)`. No table of v^(k + 1) counts is made: the
contexts that occur are numbered in sorted order, length by length, and each of the k + 1 lengths takes at most 3 P
numbers for P sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# The discount of Kneser-Ney where no n-gram was seen once, of which its estimate says 0.
_DISCOUNT_WITHOUT_SINGLES = 0.5


# ---------------------------------------------------------------------- counts


class Counts(NamedTuple):
    """What was counted with contexts of one length j; a context has a number, its place among the sorted ones.

    Attributes:
        contexts: `v a + y` for each context, in rising order: y is its first token, a the number of the rest of it
            among the contexts of length j - 1. A single 0 for j = 0.
        ngrams: `v a + x` for each n-gram that occurs, in rising order: a is the number of its context, x its target.
        occurrences: N(c, x) of each n-gram, float64.
    """

    contexts: Tensor
    ngrams: Tensor
    occurrences: Tensor


def count_suffixes(sequences: Tensor, k: int, v: int) -> list[Counts]:
    """The counts of contexts of 0, 1, ..., k tokens before the last token of sequences `(P, m)` int64, k < m."""
    *before, targets = sequences.unbind(1)
    number, found = torch.zeros_like(targets), []
    for j in range(k + 1):
        contexts = torch.zeros(1, dtype=torch.int64)
        if j:
            contexts, number = (number * v + before[-j]).unique(return_inverse=True)
        ngrams, occurrences = (number * v + targets).unique(return_counts=True)
        found.append(Counts(contexts, ngrams, occurrences.double()))
    return found


def continuations(shorter: Counts, longer: Counts, v: int) -> Counts:
    """The same n-grams with the number of different tokens that were seen before each one, `N1+(. c x)`.

    `longer` are the counts of contexts of one token more, in which every n-gram has such a token.
    """
    number, targets = longer.ngrams // v, longer.ngrams % v
    rest = longer.contexts[number] // v
    places = torch.searchsorted(shorter.ngrams, rest * v + targets)
    return replace_occurrences(shorter, places.bincount(minlength=len(shorter.ngrams)))


def replace_occurrences(counts: Counts, occurrences: Tensor) -> Counts:
    """The same n-grams with other numbers beside them."""
    return counts._replace(occurrences=occurrences.double())


def _find(keys: Tensor, wanted: Tensor) -> Tensor:
    """The place of each wanted number among sorted ones, -1 where it is not there."""
    if len(keys) == 0:
        return torch.full_like(wanted, -1)
    places = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return places.where(keys[places] == wanted, -1)


# ---------------------------------------------------------------------- predictions


@dataclass(frozen=True)
class Mixture:
    """`q(x | c) = (n(c, x) + w(c) q_lower(x)) / Z(c)` for contexts of one length.

    `counts` holds n(c, x) as its occurrences; `weights` and `norms` are w and Z of each context, by its number.
    """

    counts: Counts
    weights: Tensor
    norms: Tensor


@dataclass(frozen=True)
class NgramPredictor:
    """What a learner predicts: called on contexts `(B, T)` it returns `q(x | context)`, `(B, v)` float64.

    `mixtures` are those of 0, 1, ... tokens, each applied to the contexts that were seen; None where a length has no
    say. A mixture takes q_lower from the longest shorter length that has one, or is uniform where `interpolated` is
    False. Contexts are at least as long as the longest mixture, and their last tokens count. Raises ValueError for
    shorter ones, and for tokens outside 0..v - 1.
    """

    v: int
    mixtures: list[Mixture | None]
    counts: list[Counts]
    interpolated: bool

    def __call__(self, contexts: Tensor) -> Tensor:
        contexts = contexts.cpu()
        k, (rows, size) = len(self.counts) - 1, contexts.shape
        if size < k:
            raise ValueError(f'contexts of {size} tokens are too short: give {k} or more, or learn with k={size}')
        # Another number would be read as a token of another context.
        if contexts.numel() and not 0 <= contexts.min() <= contexts.max() < self.v:
            raise ValueError(
                f'contexts hold symbols from {contexts.min()} to {contexts.max()}: use 0 to {self.v - 1}, as v={self.v}'
            )
        q = torch.full((rows, self.v), 1 / self.v, dtype=torch.float64)
        seen, number = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
        for j, (counts, mixture) in enumerate(zip(self.counts, self.mixtures, strict=True)):
            if j:
                number = _find(counts.contexts, number * self.v + contexts[seen, size - j])
                seen, number = seen[number >= 0], number[number >= 0]
            if mixture is not None:
                q[seen] = self._mixed(mixture, number, q[seen])
        return q

    def _mixed(self, mixture: Mixture, number: Tensor, lower: Tensor) -> Tensor:
        places = _find(mixture.counts.ngrams, number[:, None] * self.v + torch.arange(self.v))
        padded = torch.cat((mixture.counts.occurrences, torch.zeros(1, dtype=torch.float64)))
        lower = lower if self.interpolated else torch.full_like(lower, 1 / self.v)
        return (padded[places] + mixture.weights[number, None] * lower) / mixture.norms[number, None]


def _per_context(counts: Counts, v: int) -> tuple[Tensor, Tensor]:
    """`N(c)` and `T(c)` of each context, float64."""
    number, size = counts.ngrams // v, len(counts.contexts)
    return number.bincount(counts.occurrences, size).double(), number.bincount(minlength=size).double()


def _counted(sequences: Tensor, v: int, k: int | None) -> list[Counts]:
    """The counts of sequences `(P, m)` for a window k, by default all m - 1 tokens; none where there is no sequence."""
    if sequences.dim() != 2 or sequences.dtype != torch.int64 or sequences.shape[1] == 0:
        raise ValueError(f'sequences of shape {tuple(sequences.shape)} and {sequences.dtype}: give (P, m) int64')
    longest = sequences.shape[1] - 1
    if k is not None and not 0 <= k <= longest:
        raise ValueError(f'k={k} is not a valid window of sequences of {longest + 1} tokens: use 0 to {longest}')
    if len(sequences) == 0:
        return []
    if not 0 <= sequences.min() <= sequences.max() < v:
        raise ValueError(
            f'v={v} does not cover symbols from {sequences.min()} to {sequences.max()}: '
            'use the vocabulary of the language'
        )
    return count_suffixes(sequences.cpu(), longest if k is None else k, v)


# ---------------------------------------------------------------------- the learners


@dataclass(frozen=True)
class AddConstant:
    """`q(x | c) = (N(c, x) + constant) / (N(c) + v constant)`, c the last k tokens (all of them by default).

    Uniform in contexts that were not seen. G. J. Lidstone, Trans. Fac. Actuaries 8, 182 (1920). Raises ValueError for a
    constant that is not finite and above 0 and a k that does not fit the sequences.
    """

    k: int | None = None
    constant: float = 0.1

    def fit(self, sequences: Tensor, v: int) -> NgramPredictor:
        """What it predicts after training sequences `(P, m)` int64, of which the last token is the target."""
        if not 0 < self.constant < math.inf:
            raise ValueError(f'constant={self.constant} is out of range: use a finite number above 0')
        counts = _counted(sequences, v, self.k)
        mixtures: list[Mixture | None] = [None] * len(counts)
        if counts:
            totals, _ = _per_context(counts[-1], v)
            weight = v * self.constant
            mixtures[-1] = Mixture(counts[-1], torch.full_like(totals, weight), totals + weight)
        return NgramPredictor(v, mixtures, counts, interpolated=False)


@dataclass(frozen=True)
class Empirical:
    """The relative frequency in the longest part of the context that was seen.

    `q(x | c) = (N(c, x) + weight / v) / (N(c) + weight)`, c the longest suffix of the last k tokens (of all tokens by
    default) with N(c) > 0. A context whose last token was never seen there has the frequencies of the target alone, and
    q is uniform after no sequence. The weight counts as observations of symbols drawn uniformly: one by default, whose
    bias vanishes as 1 / N(c). With `weight=0` q is the relative frequency itself, and the loss is infinite as long as a
    possible symbol was not seen. Raises ValueError for a weight that is below 0 or not finite and a k that does not fit
    the sequences.
    """

    k: int | None = None
    weight: float = 1.0

    def fit(self, sequences: Tensor, v: int) -> NgramPredictor:
        """What it predicts after training sequences `(P, m)` int64, of which the last token is the target."""
        if not 0 <= self.weight < math.inf:
            raise ValueError(f'weight={self.weight} is out of range: use a finite number, 0 or more')
        counts = _counted(sequences, v, self.k)
        mixtures: list[Mixture | None] = []
        for level in counts:
            totals, _ = _per_context(level, v)
            mixtures.append(Mixture(level, torch.full_like(totals, self.weight), totals + self.weight))
        return NgramPredictor(v, mixtures, counts, interpolated=False)


@dataclass(frozen=True)
class WittenBell:
    """`q(x | c) = (N(c, x) + T(c) q(x | c')) / (N(c) + T(c))`, from the last k tokens (all of them by default) down.

    T(c), the number of different symbols seen after c, stands for how often a new one is to be expected. The recursion
    ends at a uniform q below the empty context, and a context that was not seen has the q of c'. I. H. Witten and T. C.
    Bell, IEEE Trans. Inf. Theory 37, 1085 (1991), in the form of Chen and Goodman 1998. Raises ValueError
    for a k that does not fit the sequences.
    """

    k: int | None = None

    def fit(self, sequences: Tensor, v: int) -> NgramPredictor:
        """What it predicts after training sequences `(P, m)` int64, of which the last token is the target."""
        counts = _counted(sequences, v, self.k)
        mixtures: list[Mixture | None] = []
        for level in counts:
            totals, types = _per_context(level, v)
            mixtures.append(Mixture(level, types, totals + types))
        return NgramPredictor(v, mixtures, counts, interpolated=True)


@dataclass(frozen=True)
class KneserNey:
    """Interpolated Kneser-Ney: `q(x | c) = (max(n(c, x) - D, 0) + D T(c) q(x | c')) / sum_y n(c, y)`.

    For the longest contexts n is N; for shorter ones it is `N1+(. c x)`, the number of different tokens that were seen
    before (c, x): a symbol that follows many contexts is likely after a new one, a symbol that follows often but only
    one is not. Each length has its discount `D = n_1 / (n_1 + 2 n_2)`, with n_1 and n_2 the numbers of its n-grams of
    n = 1 and n = 2, and D = 1/2 where n_1 = 0. The recursion ends at a uniform q below the empty context, and a context
    that was not seen has the q of c'. R. Kneser and H. Ney, ICASSP 1995; H. Ney, U. Essen and R. Kneser, Comput. Speech
    Lang. 8, 1 (1994) for D; interpolated in Chen and Goodman 1998. Raises ValueError for a k
    that does not fit the sequences.
    """

    k: int | None = None

    def fit(self, sequences: Tensor, v: int) -> NgramPredictor:
        """What it predicts after training sequences `(P, m)` int64, of which the last token is the target."""
        counts = _counted(sequences, v, self.k)
        seen = [*(continuations(shorter, longer, v) for shorter, longer in pairwise(counts)), *counts[-1:]]
        mixtures: list[Mixture | None] = []
        for level in seen:
            totals, types = _per_context(level, v)
            D = _discount(level.occurrences)
            discounted = replace_occurrences(level, (level.occurrences - D).clamp(min=0))
            mixtures.append(Mixture(discounted, D * types, totals))
        return NgramPredictor(v, mixtures, counts, interpolated=True)


def _discount(occurrences: Tensor) -> float:
    """`n_1 / (n_1 + 2 n_2)`, the discount of Ney, Essen and Kneser; 1/2 where nothing was seen once."""
    once, twice = ((occurrences == n).sum().item() for n in (1, 2))
    return once / (once + 2 * twice) if once else _DISCOUNT_WITHOUT_SINGLES
