"""The Random Language Model: a context-free grammar whose rules are random energy models.

E. DeGiuli, Random Language Model, Phys. Rev. Lett. 122, 128301 (2019).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from RLM_clean.datasets.tree_grammar import TreeGrammar
from RLM_clean.streams import seeded_generator
from RLM_clean.threads import LEAST_ENTRIES, Scratch, for_each

# Groups of 16 numbers that become normal ones at a time: temporaries that stay in the processor's cache.
_PAIRS_PER_PIECE = 2**11


def random_rules(v: int, beta: float, seed_rules: int) -> Tensor:
    """Rules `M (v, v, v)` float32, `M[a, b, c] = softmax over (b, c) of beta * sqrt(ln v) * g[a, b, c]`.

    `g` is i.i.d. standard normal, from a generator that `seed_rules` alone seeds, drawn in float64 on the CPU one
    parent after the other: the same seed gives the same grammar on every device and whatever was drawn before. Each
    row is a random energy model of v^2 states with energies of variance ln v, which freezes at beta = 2.
    """
    generator = seeded_generator(seed_rules)
    scale = beta * math.sqrt(math.log(v))
    rules = torch.empty(v, v * v)
    # One thread draws the numbers of all rows in their order, and only what is made of them can be shared.
    shared = v * v >= LEAST_ENTRIES and v * v % 16 == 0
    numbers, spare = torch.rand if shared else torch.randn, deque[Tensor]()
    scratch = Scratch(v * v)

    def draw(row: Tensor) -> tuple[Tensor, Tensor]:
        drawn = spare.pop() if spare else torch.empty(v * v, dtype=torch.float64)
        return row, numbers(v * v, generator=generator, out=drawn)

    def fill(item: tuple[Tensor, Tensor]) -> None:
        row, energies = item
        if shared:
            _make_normal(energies)
        row.copy_(torch.softmax(energies.mul_(scale), 0, out=scratch.tensor))
        spare.append(energies)

    for_each(map(draw, rules), fill, entries=v * v)
    return rules.view(v, v, v)


def _make_normal(uniform: Tensor) -> None:
    """Makes of uniform numbers `(n,)` float64, in place, the normal ones of `torch.randn`; n is a multiple of 16.

    Box and Muller's transform: of 16 numbers, the first eight give radii and the others angles (ATen's normal_fill). In
    torch it runs on the thread that draws the uniform numbers, one number at a time, and takes most of the set-up of a
    large grammar.
    """
    for pairs in uniform.view(-1, 2, 8).split(_PAIRS_PER_PIECE):
        radius = (1 - pairs[:, 0]).log_().mul_(-2).sqrt_()
        angle = pairs[:, 1] * (2 * math.pi)
        torch.mul(radius, angle.cos(), out=pairs[:, 0])
        torch.mul(radius, angle.sin_(), out=pairs[:, 1])


class RLM(TreeGrammar):
    """Sequences of the Random Language Model with v symbols and depth L, one set of rules for all levels.

        rlm = RLM(v=128, L=1, beta=2.0, seed_rules=12345, seed_samples=67890)
        inputs, targets = rlm.sample_batch(batch_size=64)   # (64, 1) and (64,)

    Args:
        v: the number of symbols, 2 or more.
        L: the depth; sequences have 2^L tokens.
        beta: the inverse temperature of the rules, 0 or more: 0 makes all pairs of children equally likely, above the
            freezing point 2 a few pairs carry each rule.
        seed_rules: the seed of the grammar, 0 to 2^32 - 1.
        seed_samples: the seed of the sequences; seed_sample, the name of the option of runs, is taken too.
        num_data: None (online: every batch is new) or the size of a fixed training set, see TreeGrammar.
        probs: the probabilities of the root's symbol `(v,)`; uniform by default.
        transform: applied to the inputs before they are returned.
        device: where sequences are drawn.
        rules: rules that were drawn before (a file holds them), used as they are instead of drawing from seed_rules.

    `M` holds the rules in float64. Raises ValueError for values outside these ranges.
    """

    def __init__(
        self,
        v: int,
        L: int,
        beta: float = 2.0,
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
        if not 0 <= beta < math.inf:
            raise ValueError(f'beta={beta} is not a valid inverse temperature: use a finite number, 0 or more')
        if rules is not None and rules.shape != (v, v, v):
            raise ValueError(f'rules of shape {tuple(rules.shape)} do not fit v={v}: use the (v, v, v) of a file')
        super().__init__(
            random_rules(v, beta, seed_rules) if rules is None else rules,
            L,
            prior=probs,
            seed_samples=seed_samples if seed_sample is None else seed_sample,
            num_data=num_data,
            transform=transform,
            device=device,
        )
        self.beta = beta
        self.seed_rules = seed_rules

    @property
    def M(self) -> Tensor:
        """`M[a, b, c] = P(children = (b, c) | parent = a)`, `(v, v, v)` float64, the same on every level."""
        return self.level_rules(0)

    def __repr__(self) -> str:
        return f'RLM(v={self.v}, L={self.L}, beta={self.beta:g}, seed_rules={self.seed_rules}, ...)'
