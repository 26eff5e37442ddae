"""Counts and frequencies of tokens in samples of sequences, and entropies corrected for their bias.

The entropy of observed frequencies is too low on average: by (m - 1) / 2N for N samples of m outcomes if N is much
larger than m, and by more otherwise. There are two corrections:

- 'miller-madow' adds this first order, where m is the number of outcomes that were observed: G. A. Miller, Note on the
  bias of information estimates, in Information Theory in Psychology (1955).
- 'grassberger' replaces the logarithm of each count by a function that is nearly unbiased for Poisson counts:
  P. Grassberger, Entropy estimates from insufficient samplings, arXiv:physics/0307138 (2003, revised 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Correction = Literal['miller-madow', 'grassberger', 'none']

# 2 GiB at 8 bytes per count.
MAX_TABLE = 2**28


def count_joint(sequences: Tensor, positions: Sequence[int], v: int) -> Tensor:
    """How often each combination of symbols occurs at the given positions, `(v,) * len(positions)` int64.

    Sequences are `(N, n)` int64. Raises ValueError for positions outside 0..n - 1, symbols outside 0..v - 1, and
    tables that do not fit in memory.
    """
    n = sequences.shape[1]
    for position in positions:
        if not 0 <= position < n:
            raise ValueError(f'position={position} is outside sequences of {n} tokens: use 0 to {n - 1}')
    return _count(sequences[:, list(positions)], v)


def count_ngrams(sequences: Tensor, n: int, v: int) -> Tensor:
    """How often each n-gram occurs, anywhere in the sequences, `(v,) * n` int64.

    Sequences are `(N, length)` int64, and each has length - n + 1 overlapping n-grams. Raises ValueError for n outside
    1..length, symbols outside 0..v - 1, and tables that do not fit in memory.
    """
    length = sequences.shape[1]
    if not 1 <= n <= length:
        raise ValueError(f'n={n} is not a valid length of n-grams in sequences of {length} tokens: use 1 to {length}')
    return _count(sequences.unfold(1, n, 1).flatten(0, 1), v)


def empirical_marginals(sequences: Tensor, v: int) -> Tensor:
    """The frequency of each symbol at each position, `(n, v)` float64, for sequences `(N, n)` int64.

    Raises ValueError for symbols outside 0..v - 1.
    """
    N, n = sequences.shape
    _check_symbols(sequences, v)
    codes = sequences + v * torch.arange(n, device=sequences.device)
    return codes.flatten().bincount(minlength=n * v).view(n, v).double() / N


def empirical_joint(sequences: Tensor, i: int, j: int, v: int) -> Tensor:
    """The frequency of each pair of symbols at positions i and j, `(v, v)` float64, for sequences `(N, n)` int64.

    Raises ValueError for positions outside 0..n - 1 and symbols outside 0..v - 1.
    """
    return count_joint(sequences, (i, j), v).double() / len(sequences)


def empirical_entropy(counts: Tensor, correction: Correction = 'grassberger') -> float:
    """The entropy in nats of the distribution behind counts of any shape, `N = sum_k n_k`.

    - 'none': `-sum_k (n_k / N) ln(n_k / N)`
    - 'miller-madow': the same plus `(m - 1) / 2N`, where m is the number of non-zero counts
    - 'grassberger': `ln N - sum_k (n_k / N) G(n_k)`, `G(n) = psi(n) + (-1)^n (psi((n + 1) / 2) - psi(n / 2)) / 2`

    Raises ValueError for counts that sum to zero and for other corrections.
    """
    observed = counts[counts > 0].double()
    if len(observed) == 0:
        raise ValueError(f'counts of shape {tuple(counts.shape)} are all zero: count one sample or more')
    N = observed.sum()
    if correction == 'grassberger':
        sign = 1 - 2 * observed.remainder(2)
        psi = torch.special.digamma
        G = psi(observed) + sign / 2 * (psi((observed + 1) / 2) - psi(observed / 2))
        return (N.log() - (observed * G).sum() / N).item()
    plain = torch.special.entr(observed / N).sum().item()
    if correction == 'none':
        return plain
    if correction == 'miller-madow':
        return plain + (len(observed) - 1) / (2 * N.item())
    raise ValueError(f"correction={correction!r} is unknown: use 'miller-madow', 'grassberger' or 'none'")


def empirical_mutual_information(
    sequences: Tensor, i: int, j: int, v: int, correction: Correction = 'grassberger'
) -> float:
    """`H(x_i) + H(x_j) - H(x_i, x_j)` in nats, each entropy corrected for its bias, for sequences `(N, n)` int64.

    The result can be below zero by chance, because the corrections remove the bias only on average.

    Raises ValueError for positions outside 0..n - 1, symbols outside 0..v - 1 and other corrections.
    """
    counts = count_joint(sequences, (i, j), v)
    of_i, of_j = counts.sum(1), counts.sum(0)
    return sum(empirical_entropy(c, correction) for c in (of_i, of_j)) - empirical_entropy(counts, correction)


def _check_symbols(sequences: Tensor, v: int) -> None:
    if sequences.numel() == 0:
        raise ValueError(f'sequences of shape {tuple(sequences.shape)} contain no token: count one sample or more')
    low, high = sequences.min().item(), sequences.max().item()
    if not 0 <= low <= high < v:
        raise ValueError(f'v={v} does not cover symbols from {low} to {high}: use the vocabulary of the grammar')


def _count(symbols: Tensor, v: int) -> Tensor:
    """Counts of the rows of `symbols (N, k)`, `(v,) * k`: each row is read as a number in base v."""
    k = symbols.shape[1]
    if v**k > MAX_TABLE:
        raise ValueError(f'v={v} with {k} tokens makes a table of {v**k} counts: count fewer tokens at a time')
    _check_symbols(symbols, v)
    codes = torch.zeros_like(symbols[:, 0])
    for column in symbols.unbind(1):
        codes = codes * v + column
    return codes.bincount(minlength=v**k).view((v,) * k)
