"""Alias tables: exact draws from many discrete distributions at the price of one random word and one look-up each.

Walker's method cuts a distribution over n outcomes into n columns of equal mass, each shared by at most two outcomes
(A. J. Walker, ACM Trans. Math. Softw. 3, 253, 1977). The tables are built here without a sequential loop: prefix sums
over the light and the heavy outcomes say which heavy outcome fills which column (L. Huebschle-Schneider and
P. Sanders, ESA 2019).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AliasTable:
    """Tables for the rows of a stochastic matrix `(R, n)`, in 8 bytes an entry.

    `draw(rows, words)` maps uniform 64-bit words to outcomes. Column j of a row is one int64: a threshold of F bits
    above the alias of log2(n) bits, F = 63 - ceil(log2 n), so one look-up fetches both. All arithmetic is on integers:
    the same words give the same outcomes on every device. The distribution that a table encodes differs from the one
    it was built from by less than 1e-9 in total variation for n up to 2^16, and 1e-6 up to 2^20.

    Args:
        blocks: float64 blocks of rows `(r, n)`, in order; rows need not be normalised.
        num_rows, n: the shape of the whole matrix.
        device: where the table lives and draws.
    """

    def __init__(self, blocks: Iterable[Tensor], num_rows: int, n: int, device: torch.device | str = 'cpu') -> None:
        self.n = n
        self.alias_bits = max(1, (n - 1).bit_length())
        self.threshold_bits = 63 - self.alias_bits
        self.entries = torch.empty(num_rows * n, dtype=torch.int64, device=device)
        start = 0
        for block in blocks:
            stop = start + block.numel()
            threshold, alias = _share_columns(block * (n / block.sum(1, keepdim=True)))
            self.entries[start:stop] = self._pack(threshold, alias).flatten()
            start = stop
        assert start == num_rows * n

    def _pack(self, threshold: Tensor, alias: Tensor) -> Tensor:
        scaled = (threshold * 2.0**self.threshold_bits).round().to(torch.int64)
        own = torch.arange(self.n, device=alias.device).expand_as(alias)
        # A full column would need one bit more: it names itself as its alias instead.
        full = scaled >= 1 << self.threshold_bits
        scaled = scaled.clamp(0, (1 << self.threshold_bits) - 1)
        return (scaled << self.alias_bits) | torch.where(full, own, alias)

    def draw(self, rows: Tensor, words: Tensor) -> Tensor:
        """Outcomes in 0..n-1 (int64), one for each pair of a row index and a uniform 64-bit word (same shapes)."""
        fraction_mask = (1 << self.threshold_bits) - 1
        # word / 2^64 * n in fixed point: its integer part is the column, its fraction the height in that column.
        position = words >> (64 - self.threshold_bits)
        position &= fraction_mask
        position *= self.n
        column = position >> self.threshold_bits
        position &= fraction_mask
        entry = self.entries[(rows * self.n).add_(column)]
        threshold = entry >> self.alias_bits
        entry &= (1 << self.alias_bits) - 1
        return torch.where(position < threshold, column, entry)

    def probabilities(self, first: int = 0, last: int | None = None) -> Tensor:
        """The distributions that rows first..last-1 encode, `(rows, n)` float64, recomputed from their entries."""
        entries = self.entries.view(-1, self.n)[first:last]
        threshold = (entries >> self.alias_bits).double() / 2.0**self.threshold_bits
        alias = entries & ((1 << self.alias_bits) - 1)
        probability = threshold.clone()
        return probability.scatter_add_(1, alias, 1 - threshold) / self.n


def _share_columns(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds in [0, 1] and aliases for rows `weights (r, n)` with mean one.

    A light outcome (weight <= 1) leaves the deficit 1 - w of its column to a heavy one; heavy outcomes, in order, fill
    the deficits of the light ones, in order. With D and E the running sums of deficits and of excesses: the deficit of
    light i begins at D_{i-1} and is filled by the first heavy j with E_j > D_{i-1}; heavy j runs short at the first i
    with D_i >= E_j, keeps 1 + E_j - D_i of its own column and leaves the rest to the next heavy.
    """
    light = weights <= 1
    deficit = torch.where(light, 1 - weights, 0.0)
    deficits = deficit.cumsum(1)
    excesses = torch.where(light, 0.0, weights - 1).cumsum(1)
    last = weights.shape[1] - 1

    begin = torch.where(light, deficits - deficit, excesses)
    alias = torch.searchsorted(excesses, begin, right=True).clamp_(max=last)
    short = torch.searchsorted(deficits, excesses).clamp_(max=last)
    kept = (1 + excesses - deficits.gather(1, short)).clamp_(0, 1)
    # Rounding can leave the last excess unreached: the outcome with the largest weight stands for the missing heavy.
    reachable = weights.gather(1, alias) > 1
    alias = torch.where(reachable, alias, weights.argmax(1, keepdim=True))
    return torch.where(light, weights, kept), alias
