"""Filtered languages: sequences in which the correlations above sub-trees of a given height are removed.

In the tree of the original language, the nodes of level L - k are the heads of sub-trees of 2^k leaves. The filtered
language of height k draws the root from the prior, then each head from its own exact law given the root,

    K_j[a, b] = P(head j = b | root = a) = [P_1 P_2 ... P_(L-k)][a, b],

P_l being the transition to the left or to the right child on the path from the root to head j; the heads are
independent of each other given the root. Below the heads the usual rules hold. Laws of single nodes, and of all symbols
of one sub-tree, are those of the original language; what two sub-trees say of each other goes through the root alone.

k = L is the original language; k = L - 1 removes the correlation of the two children of the root; k = 0 leaves all
tokens independent given the root. J. Garnier-Brun, M. Mezard, E. Moscato and L. Saglietti, How transformers learn
structured data: insights from hierarchical filtering, ICML 2025, arXiv:2408.15138 (their code:
github.com/emanuele-moscato/tree-language), count the filtered levels from the root instead: their k is L - k here, and
their k = 0 the full hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from RLM_clean.datasets.alias import AliasTable
from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.streams import random_words


class FilteredGrammar(TreeGrammar):
    """The filtered language of height k < L of a language; `language.filtered(k)` makes it.

    Root and sub-trees use the random words that they use in the original language, so the same seed gives related
    sequences; the heads have words of their own. Sequence i of a stream is a function of (seed_samples, stream, i)
    alone. The language has one depth: `L=` of the methods takes no other value.

    Attributes:
        original: the language that was filtered.
        k: the height of the sub-trees that are kept, 0 to L - 1.
        top_level: L - k, the level of their heads.
        levels: the numbers of the levels that a tree has: 0, L - k, ..., L.
        head_laws: `K[j, a, b] = P(head j = b | root = a)`, `(2^(L - k), v, v)` float64 on the CPU.

    Memory: 8 v^2 bytes for each head once laws of heads are used, and as much again once sequences are drawn.

    `rules` are those of the original; `level_rules`, `blocks` and `table` raise ValueError for a level above the heads,
    where pairs of children are not drawn, so that no quantity of the original is taken for one of this language.
    `transitions` gives the laws of single children, which both languages share, on all levels.
    """

    def __init__(self, original: TreeGrammar, k: int) -> None:
        super().__init__(
            original.rules[0] if original.shared else original.rules,
            original.L,
            prior=original.prior,
            seed_samples=original.seed_samples,
            num_data=original.num_data,
            transform=original.transform,
            device=original.device,
        )
        if not 0 <= k < original.L:
            raise ValueError(f'k={k} is not the height of a filtered language: use 0 to {original.L - 1}')
        self.prior = original.prior  # to the last bit
        self.original = original
        self.k = k
        self.top_level = original.L - k
        self.levels = [0, *range(self.top_level, original.L + 1)]
        self._head_laws: Tensor | None = None
        self._head_table: AliasTable | None = None

    @property
    def head_laws(self) -> Tensor:
        """`K[j, a, b] = P(head j = b | root = a)`, `(2^(L - k), v, v)` float64; made at the first use and kept."""
        if self._head_laws is None:
            paths = torch.eye(self.v, dtype=torch.float64)[None]
            for level in range(self.top_level):
                left, right = self.transitions(level)
                paths = torch.stack((paths @ left, paths @ right), dim=1).flatten(0, 1)
            self._head_laws = paths
        return self._head_laws

    def filtered(self, k: int) -> TreeGrammar:
        """The original language filtered to a height k that is not above this one's. Raises ValueError otherwise."""
        if not 0 <= k <= self.k:
            raise ValueError(
                f'k={k} does not fit a language filtered to k={self.k}, which keeps no larger sub-trees: '
                f'use 0 to {self.k}, or filter `.original`'
            )
        return FilteredGrammar(self.original, k)

    def level_rules(self, level: int) -> Tensor:
        return self._with_rules(level).level_rules(level)

    def blocks(self, level: int) -> Iterator[tuple[slice, Tensor]]:
        return self._with_rules(level).blocks(level)

    def table(self, level: int) -> AliasTable:
        return self._with_rules(level).table(level)

    def transitions(self, level: int) -> tuple[Tensor, Tensor]:
        return self.original.transitions(level)

    def __repr__(self) -> str:
        return f'{self.original!r}.filtered({self.k})'

    # ------------------------------------------------------------------ inside

    def _with_rules(self, level: int) -> TreeGrammar:
        """The original language, whose rules hold on this level too."""
        if level < self.top_level:
            raise ValueError(
                f'level {level} has no rules in a language filtered to k={self.k}, so this quantity is not known '
                f'for it: use a language filtered to k={self.L - level} or more, or `.original`'
            )
        return self.original

    def _depth(self, L: int | None) -> int:
        if L not in (None, self.L):
            raise ValueError(f'L={L} does not fit a language filtered at depth {self.L}: filter one of that depth')
        return self.L

    def _tops(self, key: int, base: Tensor) -> list[Tensor]:
        roots = self._roots(key, base)
        return [roots, self._heads(key, base, roots)]

    def _heads(self, key: int, base: Tensor, roots: Tensor) -> Tensor:
        """The heads `(r, 2^(L - k))` of the kept sub-trees, from the roots `(r, 1)`."""
        if self._head_table is None:
            number = len(self.head_laws) * self.v
            self._head_table = AliasTable(self.head_laws, number, self.v, self.device)
        heads = torch.arange(len(self.head_laws), device=self.device)
        # Words of negative number: those from 0 up belong to the root and to the pairs of children. Never change it.
        words = random_words(key, ~(base + heads))
        return self._head_table.draw(heads * self.v + roots, words)
