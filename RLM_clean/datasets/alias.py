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

from RLM_clean.threads import Scratch, for_each


class AliasTable:
    """Tables for the rows of a stochastic matrix `(R, n)`, in 8 bytes an entry.

    `draw(rows, words)` maps uniform 64-bit words to outcomes. Column j of a row is one int64: a threshold of F bits
    above the alias of log2(n) bits, F = 63 - ceil(log2 n), so one look-up fetches both. All arithmetic is on integers:
    the same words give the same outcomes on every device.

    Precision, in total variation. The law that a table encodes differs from the one it was built from by less than
    1e-11 for n up to 2^20 (about 1e-12 at n = 2^18). A draw uses F bits of its word, 2^F equally likely values, of
    which each of the two parts of a column gets its share to within one: the law of the draws differs from that of the
    table by less than n / 2^F, which is 3e-11 at n = 2^14 (v = 128), 8e-9 at n = 2^18 and 1.2e-7 at n = 2^20. An
    outcome of probability zero is never drawn.

    Beside the table, building it takes some ten arrays of n numbers, whatever the number of rows; where the table lives
    on a GPU, it is built on the CPU first.

    Args:
        blocks: float64 blocks of rows `(r, n)` on the CPU, in order; rows need not be normalised.
        num_rows, n: the shape of the whole matrix.
        device: where the table lives and draws.
    """

    def __init__(self, blocks: Iterable[Tensor], num_rows: int, n: int, device: torch.device | str = 'cpu') -> None:
        self.n = n
        self.alias_bits = max(1, (n - 1).bit_length())
        self.threshold_bits = 63 - self.alias_bits
        entries = torch.empty(num_rows, n, dtype=torch.int64)
        rows = (pair for block in blocks for pair in zip(block, n / block.sum(1), strict=True))

        scratch = Scratch(2, n)

        def fill(item: tuple[Tensor, tuple[Tensor, Tensor]]) -> None:
            columns, (row, factor) = item
            weights, deficits = scratch.tensor
            alias = _share_columns(torch.mul(row, factor, out=weights), deficits)
            self._pack(weights, alias, out=columns)

        # A row at a time: its arrays stay in the processor's cache.
        for_each(zip(entries, rows, strict=True), fill, entries=n)
        self.entries = entries.flatten().to(device)

    def _pack(self, threshold: Tensor, alias: Tensor, out: Tensor) -> None:
        out.copy_(threshold.mul_(2.0**self.threshold_bits).round_())
        # A full column would need one bit more: its alias gets 2^-F of it.
        out.clamp_(max=(1 << self.threshold_bits) - 1)
        out <<= self.alias_bits
        out |= alias

    def draw(self, rows: Tensor, words: Tensor) -> Tensor:
        """Outcomes in 0..n-1 (int64), one for each pair of a row index and a uniform 64-bit word (same shapes)."""
        fraction_mask = (1 << self.threshold_bits) - 1
        # word / 2^64 * n in fixed point: its integer part is the column, its fraction the height in that column.
        position = words >> (64 - self.threshold_bits)
        position &= fraction_mask
        position *= self.n
        column = position >> self.threshold_bits
        position &= fraction_mask
        index = torch.add(column, rows, alpha=self.n).flatten()
        entry = self.entries.index_select(0, index).view_as(column)  # several times faster than entries[index]
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


def _share_columns(weights: Tensor, deficits: Tensor) -> Tensor:
    """The aliases of one row `weights (n,)` with mean one, which become its thresholds in [0, 1].

    A light outcome (weight <= 1) leaves the deficit 1 - w of its column to a heavy one; heavy outcomes, in order, fill
    the deficits of the light ones, in order. With D and E the running sums of deficits and of excesses: heavy j runs
    short at the first light i with D_i >= E_j, the last one that it fills; it keeps 1 + E_j - D_i of its own column and
    leaves the rest to the next heavy. `deficits (n,)` is memory for D.
    """
    last = len(weights) - 1
    torch.neg(weights, out=deficits).add_(1).clamp_(min=0).cumsum_(0)
    heavy = torch.nonzero(weights > 1).squeeze(1)
    if len(heavy) == 0:  # all weights are one, or less by rounding
        heavy = weights.argmax(0, keepdim=True)
    excesses = (weights[heavy] - 1).cumsum(0)
    short = torch.searchsorted(deficits, excesses).clamp_(max=last)
    short[-1] = last  # whatever rounding has left over
    weights[heavy] = (1 + excesses - deficits[short]).clamp_(0, 1)
    alias = heavy.repeat_interleave(short.diff(prepend=short.new_tensor([-1])), output_size=len(weights))
    alias[heavy] = torch.cat((heavy[1:], heavy[-1:]))
    return alias
