"""The Random Hierarchy Model: a context-free grammar whose productions are equally likely and never ambiguous.

F. Cagnetta et al., Phys. Rev. X 14, 031001 (2024); as a language, F. Cagnetta and M. Wyart, NeurIPS 2024,
arXiv:2406.00048.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.streams import seeded_generator


def random_productions(v: int, m: int, L: int, seed_rules: int) -> Tensor:
    """Productions `(L, v, m, 2)` int64: for each level and each symbol, its m pairs of children.

    The v m pairs of a level are drawn without replacement among the v^2, independently on each level, from a generator
    that `seed_rules` alone seeds: the same seed gives the same grammar on every device and whatever was drawn before,
    and the first levels of a deeper grammar are those of a shallower one.
    """
    generator = seeded_generator(seed_rules)
    pairs = torch.stack([torch.randperm(v * v, generator=generator)[: v * m] for _ in range(L)])
    return torch.stack((pairs // v, pairs % v), dim=-1).view(L, v, m, 2)


class RHM(TreeGrammar):
    """Sequences of the Random Hierarchy Model with v symbols, m productions a symbol and depth L.

        rhm = RHM(v=32, m=8, L=3)
        inputs, targets = rhm.sample_batch(batch_size=64)   # (64, 7) and (64,)

    Each symbol of a level becomes one of its m pairs of children, with equal probability; no pair has two parents on
    the same level, so the tree can be read off its leaves; every level has rules of its own.

    Args:
        v: the number of symbols, the same on all levels, 2 or more.
        m: the number of productions of a symbol (its synonyms), 1 to v; m = v leaves adjacent tokens independent.
        L: the depth; sequences have 2^L tokens.
        seed_rules: the seed of the grammar, 0 to 2^32 - 1.
        seed_samples: the seed of the sequences; seed_sample, the name of the option of runs, is taken too.
        num_data: None (online: every batch is new) or the size of a fixed training set, see TreeGrammar.
        probs: the probabilities of the root's symbol `(v,)`; uniform by default.
        transform: applied to the inputs before they are returned.
        device: where sequences are drawn.
        rules: rules `(L, v, v, v)` that were drawn before (a file holds them), instead of drawing from seed_rules.
        s: the number of children of a symbol; trees are binary, so 2 is the only value.

    `rules[l]` holds `T[a, b, c]` of level l (0 at the root), `(v, v, v)` float32 with entries 1 / m or 0. Raises
    ValueError for values outside these ranges and for rules that are not those of an RHM.
    """

    def __init__(
        self,
        v: int,
        m: int,
        L: int,
        seed_rules: int = 12345,
        seed_samples: int = 67890,
        num_data: int | None = None,
        probs: Tensor | Sequence[float] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        *,
        rules: Tensor | None = None,
        seed_sample: int | None = None,
        s: int = 2,
    ) -> None:
        if s != 2:
            raise ValueError(f's={s} children a symbol are not available: trees are binary, use s=2')
        if v < 2:
            raise ValueError(f'v={v} symbols are too few: use 2 or more')
        if not 1 <= m <= v:
            raise ValueError(f'm={m} productions a symbol need m v distinct pairs of v^2: use 1 to v={v}')
        if L < 1:
            raise ValueError(f'L={L} is not a valid depth: use 1 or more')
        if rules is None:
            levels = [_dense(level) for level in random_productions(v, m, L, seed_rules)]
        else:
            levels = _checked(rules, v, m, L)
        super().__init__(
            levels,
            L,
            prior=probs,
            seed_samples=seed_samples if seed_sample is None else seed_sample,
            num_data=num_data,
            transform=transform,
            device=device,
        )
        self.m = m
        self.seed_rules = seed_rules

    def productions(self, level: int) -> Tensor:
        """The pairs of children of each symbol of a level (0 at the root), `(v, m, 2)` int64, in rising order."""
        return self.rules[level].nonzero()[:, 1:].view(self.v, self.m, 2)

    def __repr__(self) -> str:
        return f'RHM(v={self.v}, m={self.m}, L={self.L}, seed_rules={self.seed_rules}, ...)'


def _dense(productions: Tensor) -> Tensor:
    """Rules `(v, v, v)` float32 from the productions `(v, m, 2)` of a level."""
    v, m, _ = productions.shape
    rules = torch.zeros(v, v, v)
    parents = torch.arange(v)[:, None].expand(v, m)
    rules[parents, productions[..., 0], productions[..., 1]] = 1 / m
    return rules


def _checked(rules: Tensor, v: int, m: int, L: int) -> list[Tensor]:
    """The levels of stored rules, or a ValueError if they are not those of an RHM of these sizes."""
    if rules.shape != (L, v, v, v):
        raise ValueError(f'rules of shape {tuple(rules.shape)} do not fit v={v}, L={L}: use the (L, v, v, v) of a file')
    used = rules != 0
    equal = ((rules * m - 1).abs() < 1e-3) | ~used
    if not ((used.sum((2, 3)) == m).all() and equal.all() and (used.sum(1) <= 1).all()):
        raise ValueError(
            f'rules are not those of an RHM with m={m}: give each symbol {m} pairs of its own, of probability 1/{m}'
        )
    return list(rules.unbind())
