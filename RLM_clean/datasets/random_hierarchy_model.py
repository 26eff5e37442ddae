"""The Random Hierarchy Model: a context-free grammar whose productions are never ambiguous.

F. Cagnetta et al., Phys. Rev. X 14, 031001 (2024); as a language, F. Cagnetta and M. Wyart, NeurIPS 2024,
arXiv:2406.00048. The productions of a symbol are equally likely, or follow Zipf's law at chosen levels: F. Cagnetta,
H. Kang and M. Wyart, Learning curves theory for hierarchically compositional data with power-law distributed features,
ICML 2025, arXiv:2505.07067.
"""

from __future__ import annotations

import math
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


def production_law(m: int, zipf: float | None) -> Tensor:
    """The probabilities of the m productions of a symbol, most probable first, `(m,)` float64.

    `P(k) = k^-(1 + zipf) / sum_j j^-(1 + zipf)` for k = 1..m, and 1 / m for None. Raises ValueError for a `zipf` that
    is not above 0, and for one so large that the last probability is zero in float32, in which rules are kept.
    """
    if zipf is None:
        return torch.full((m,), 1 / m, dtype=torch.float64)
    if not 0 < zipf < math.inf:
        raise ValueError(f'zipf={zipf} is not a valid exponent: use a number above 0, or None for equal probabilities')
    law = torch.arange(1, m + 1, dtype=torch.float64) ** -(1 + zipf)
    law /= law.sum()
    # A comfortable distance from the smallest normal number of float32, 1.2e-38.
    if law[-1] < 1e-37:
        raise ValueError(f'zipf={zipf} leaves the last of m={m} productions a probability below 1e-37: use less')
    return law


def chosen_levels(levels: str | int | Sequence[int], L: int) -> tuple[int, ...]:
    """The numbers of levels of rules, 0 at the root, L - 1 for the rules that make the tokens, in rising order.

    `levels` is 'all', 'leaves' (the level L - 1), a number, several numbers, or several in a text such as '0,2'. Raises
    ValueError for numbers outside 0..L - 1 and for other texts.
    """
    named = {'all': range(L), 'leaves': (L - 1,)}
    remedy = f"use 'leaves', 'all', or numbers from 0 (the root) to {L - 1}, such as '0,{L - 1}'"
    if isinstance(levels, str):
        words = levels.split(',')
        if levels not in named and not all(word.strip().isdecimal() for word in words):
            raise ValueError(f'zipf_levels={levels!r} does not name levels: {remedy}')
        levels = named[levels] if levels in named else [int(word) for word in words]
    numbers = tuple(sorted({levels} if isinstance(levels, int) else set(levels)))
    if not numbers or numbers[0] < 0 or numbers[-1] >= L:
        raise ValueError(f'zipf_levels={levels} are not levels of a tree of depth L={L}: {remedy}')
    return numbers


class RHM(TreeGrammar):
    """Sequences of the Random Hierarchy Model with v symbols, m productions a symbol and depth L.

        rhm = RHM(v=32, m=8, L=3)
        inputs, targets = rhm.sample_batch(batch_size=64)   # (64, 7) and (64,)

    Each symbol of a level becomes one of its m pairs of children, with equal probability; no pair has two parents on
    the same level, so the tree can be read off its leaves; every level has rules of its own.

    With `zipf=a` the k-th production of each symbol has probability k^-(1 + a) / sum_j j^-(1 + a) at the levels
    `zipf_levels`, and 1 / m at the others. The rank k is the order in which the productions are drawn, which is random:
    the pairs are those of the same seed without `zipf`. Levels are counted from the root here. The papers count them
    from the leaves, where rules lead from level l to l - 1 and the root is on level L: their level l is L - l here, and
    their level 1 is L - 1, 'leaves'.

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
        zipf: the exponent a of Zipf's law, above 0; None, by default, for equal probabilities.
        zipf_levels: the levels with Zipf's law: 'leaves' (the last level of rules, by default), 'all', a number from 0
            (the root) to L - 1, several, or several in a text such as '0,2'. Without `zipf` it has no effect.

    `rules[l]` holds `T[a, b, c]` of level l (0 at the root), `(v, v, v)` float32 with m entries that are not 0 for each
    a: 1 / m, or those of Zipf's law. `zipf_levels` is a tuple of the levels with Zipf's law, empty without. Raises
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
        zipf: float | None = None,
        zipf_levels: str | int | Sequence[int] = 'leaves',
    ) -> None:
        if s != 2:
            raise ValueError(f's={s} children a symbol are not available: trees are binary, use s=2')
        if v < 2:
            raise ValueError(f'v={v} symbols are too few: use 2 or more')
        if not 1 <= m <= v:
            raise ValueError(f'm={m} productions a symbol need m v distinct pairs of v^2: use 1 to v={v}')
        if L < 1:
            raise ValueError(f'L={L} is not a valid depth: use 1 or more')
        chosen = () if zipf is None else chosen_levels(zipf_levels, L)
        laws = torch.stack([production_law(m, zipf if level in chosen else None) for level in range(L)])
        if rules is None:
            productions = random_productions(v, m, L, seed_rules)
            levels = [_dense(level, law) for level, law in zip(productions, laws, strict=True)]
        else:
            levels = _checked(rules, v, laws, 'equal probabilities' if zipf is None else f'zipf={zipf}')
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
        self.zipf = zipf
        self.zipf_levels = chosen

    def productions(self, level: int) -> Tensor:
        """The pairs of children of each symbol of a level (0 at the root), `(v, m, 2)` int64.

        The most probable comes first; equally likely ones are in rising order.
        """
        rules = self.rules[level]
        pairs = rules.nonzero()[:, 1:].view(self.v, self.m, 2)
        ranks = rules[rules != 0].view(self.v, self.m).argsort(dim=1, descending=True, stable=True)
        return pairs.gather(1, ranks[..., None].expand(-1, -1, 2))

    def __repr__(self) -> str:
        law = '' if self.zipf is None else f'zipf={self.zipf}, zipf_levels={self.zipf_levels}, '
        return f'RHM(v={self.v}, m={self.m}, L={self.L}, seed_rules={self.seed_rules}, {law}...)'


def _dense(productions: Tensor, law: Tensor) -> Tensor:
    """Rules `(v, v, v)` float32 from the productions `(v, m, 2)` of a level and their probabilities `(m,)`."""
    v, m, _ = productions.shape
    rules = torch.zeros(v, v, v)
    parents = torch.arange(v)[:, None].expand(v, m)
    rules[parents, productions[..., 0], productions[..., 1]] = law.float().expand(v, m)
    return rules


def _checked(rules: Tensor, v: int, laws: Tensor, meant: str) -> list[Tensor]:
    """The levels of stored rules, or a ValueError if they are not those of an RHM with these laws `(L, m)`."""
    L, m = laws.shape
    if rules.shape != (L, v, v, v):
        raise ValueError(f'rules of shape {tuple(rules.shape)} do not fit v={v}, L={L}: use the (L, v, v, v) of a file')
    used = rules != 0
    probabilities = rules.flatten(2).topk(m).values
    as_meant = (probabilities / laws[:, None] - 1).abs() < 1e-3
    if not ((used.sum((2, 3)) == m).all() and as_meant.all() and (used.sum(1) <= 1).all()):
        raise ValueError(
            f'rules are not those of an RHM with m={m} and {meant}: '
            f'give each symbol {m} pairs of its own, with these probabilities'
        )
    return list(rules.unbind())
