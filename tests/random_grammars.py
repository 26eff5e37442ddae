"""Random grammars for tests: rules over some orders of magnitude, with zeros, with priors, shared or of each level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from RLM_clean.datasets import TreeGrammar

SMALL = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3)]


def random_grammar(v: int, L: int, seed: int, zeros: float = 0.0, shared: bool = False) -> TreeGrammar:
    """Random rules over some orders of magnitude and a random prior, of which a fraction `zeros` vanish."""
    generator = torch.Generator().manual_seed(seed)

    def weights(rows: int, n: int) -> Tensor:
        kept = torch.rand(rows, n, generator=generator) >= zeros
        values = torch.randn(rows, n, generator=generator, dtype=torch.float64).exp() * kept
        values[:, seed % n] += 0.1
        return values / values.sum(1, keepdim=True)

    rules = [weights(v, v * v).view(v, v, v) for _ in range(1 if shared else L)]
    return TreeGrammar(rules[0] if shared else rules, L, prior=weights(1, v)[0], seed_samples=seed)


def exhaustive(sizes: list[tuple[int, int]] = SMALL, examples: int = 40) -> Callable[[Callable], Callable]:
    """A test over random grammars of these sizes (v, L), the same ones on each run."""
    grammars = st.builds(
        lambda size, seed, zeros, shared: random_grammar(size[0], size[1], seed, zeros, shared),
        st.sampled_from(sizes),
        st.integers(0, 10**6),
        st.sampled_from([0.0, 0.3, 0.8]),
        st.booleans(),
    )
    return lambda test: settings(max_examples=examples, deadline=None, derandomize=True, database=None)(
        given(grammar=grammars)(test)
    )
