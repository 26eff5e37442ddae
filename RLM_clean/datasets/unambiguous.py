"""Unambiguous grammars with log-normal rules: each pair of children belongs to one parent alone.

The v^2 pairs are dealt out to the v symbols at random, v pairs each, and the pairs (b, c) of a symbol a have the
probabilities

    M[a, b, c] = exp(sigma g[a, b, c]) / sum of the same over the pairs of a,      g i.i.d. standard normal,

the same on all levels. So a tree can be read off its leaves, while the pairs of a symbol are not equally likely.
J. Garnier-Brun, M. Mezard, E. Moscato and L. Saglietti, How transformers learn structured data: insights from
hierarchical filtering, ICML 2025, arXiv:2408.15138, use v = 4, L = 4 and sigma = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.streams import seeded_generator


def unambiguous_rules(v: int, sigma: float, seed_rules: int) -> Tensor:
    """Rules `M (v, v, v)` float32, from a generator that `seed_rules` alone seeds, drawn in float64 on the CPU.

    Pairs and normal numbers do not depend on sigma. sigma = 0 makes the pairs of a symbol equally likely; the limit of
    large sigma, `math.inf`, gives each symbol a single pair: a rule is then one-hot.
    """
    generator = seeded_generator(seed_rules)
    pairs = torch.randperm(v * v, generator=generator).view(v, v)
    energies = torch.randn(v, v, generator=generator, dtype=torch.float64)
    if sigma == math.inf:
        weights = torch.nn.functional.one_hot(energies.argmax(1), v).double()
    else:
        weights = torch.softmax(sigma * energies, 1)
    return torch.zeros(v, v * v).scatter(1, pairs, weights.float()).view(v, v, v)


class Unambiguous(TreeGrammar):
    """Sequences of an unambiguous grammar with v symbols and depth L, one set of rules for all levels.

        language = Unambiguous(v=4, L=4, sigma=1.0, seed_rules=12345, seed_samples=67890)
        inputs, targets = language.sample_batch(batch_size=64)   # (64, 15) and (64,)

    Args:
        v: the number of symbols, 2 or more; each has v pairs of children.
        L: the depth; sequences have 2^L tokens.
        sigma: the spread of the logarithms of the weights, 0 or more: 0 makes the pairs of a symbol equally likely, inf
            gives each symbol a single pair.
        seed_rules: the seed of the grammar, 0 to 2^32 - 1.
        seed_samples: the seed of the sequences; seed_sample, the name of the option of runs, is taken too.
        num_data: None (online: every batch is new) or the size of a fixed training set, see TreeGrammar.
        probs: the probabilities of the root's symbol `(v,)`; uniform by default.
        transform: applied to the inputs before they are returned.
        device: where sequences are drawn.
        rules: rules that were drawn before (a file holds them), used as they are instead of drawing from seed_rules.

    `M` holds the rules in float64. Raises ValueError for values outside these ranges and for rules with a pair that two
    symbols share.
    """

    def __init__(
        self,
        v: int,
        L: int,
        sigma: float = 1.0,
        seed_rules: int = 12345,
        seed_samples: int = 67890,
        num_data: int | None = None,
        probs: Tensor | Sequence[float] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        *,
        rules: Tensor | None = None,
        seed_sample: int | None = None,
    ) -> None:
        if v < 2:
            raise ValueError(f'v={v} symbols are too few: use 2 or more')
        if not sigma >= 0:
            raise ValueError(f'sigma={sigma} is not a valid spread of the weights: use 0 or more')
        super().__init__(
            unambiguous_rules(v, sigma, seed_rules) if rules is None else _checked(rules, v),
            L,
            prior=probs,
            seed_samples=seed_samples if seed_sample is None else seed_sample,
            num_data=num_data,
            transform=transform,
            device=device,
        )
        self.sigma = sigma
        self.seed_rules = seed_rules

    @property
    def M(self) -> Tensor:
        """`M[a, b, c] = P(children = (b, c) | parent = a)`, `(v, v, v)` float64, the same on every level."""
        return self.level_rules(0)

    def __repr__(self) -> str:
        return f'Unambiguous(v={self.v}, L={self.L}, sigma={self.sigma:g}, seed_rules={self.seed_rules}, ...)'


def _checked(rules: Tensor, v: int) -> Tensor:
    """Stored rules, or a ValueError if they are not those of an unambiguous grammar of this size."""
    if rules.shape != (v, v, v):
        raise ValueError(f'rules of shape {tuple(rules.shape)} do not fit v={v}: use the (v, v, v) of a file')
    used = rules != 0
    if (used.sum(0) > 1).any() or (used.sum((1, 2)) > v).any():
        raise ValueError(f'rules are not unambiguous: give each symbol at most {v} pairs that no other symbol has')
    return rules
