"""The tasks of language models: the last token from those before it, and every token from those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact import entropies
from RLM_clean.exact.entropies import Estimate
from RLM_clean.exact.inference import all_next_token_probs, next_token_probs
from RLM_clean.tasks.task import REFERENCE_ENTRIES, Batches, Contexts, Task


@dataclass(frozen=True)
class Last(Task):
    """Predict x_n from the tokens before it. The floors are those of the last k tokens, k = 0, 1, 3, 7, ..."""

    name: ClassVar[str] = 'last'
    seen: ClassVar[str] = 'the last k tokens'
    whole: ClassVar[bool] = False

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """Inputs `(S, B, num_tokens - 1)` and x_n `(S, B)`."""
        leaves = language.leaf_batches(*batches, last=num_tokens)
        return leaves[..., :-1], leaves[..., -1]

    def contexts(
        self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """All contexts with their probabilities where there are at most `num_samples`, as for L = 1; else a sample."""
        v, size, predicted = language.v, num_tokens - 1, num_tokens - 1 if self.at_each else 1
        if v**size <= num_samples and entropies.summable(language, size):
            return _all_contexts(language, size, self.at_each)
        number = entropies.affordable(language, size * (2 if self.at_each else 1), num_samples)
        number = min(number, max(entropies.FEWEST_CONTEXTS, REFERENCE_ENTRIES // (v * predicted)))
        inputs = entropies.sample_contexts(language, size, number, seed)
        return Contexts(inputs, self.best(language, inputs).cpu(), None)

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(x_n | inputs)`, `(N, v)`."""
        return next_token_probs(language, inputs)

    def windows(self, num_tokens: int) -> list[int]:
        """0, 1, 3, 7, ..., which complete one level of the tree after the other, and num_tokens - 1."""
        return entropies.window_ladder(num_tokens - 1)

    def window_floor(self, language: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """`H(x_n | last k tokens)`."""
        return entropies.window_entropies(language, [k])[k]

    def floors(self, language: TreeGrammar, num_tokens: int, contexts: Contexts) -> Iterator[tuple[int, Estimate, int]]:
        """The floors of x_n, from the smallest window up: a sampled one builds on those before."""
        found: dict[int, Estimate] = {}
        for k in self.windows(num_tokens):
            number = entropies.num_contexts(language, k)
            # The last window and the contexts are the same sequences where both are sampled in the plain way.
            if not self.at_each and number and k == num_tokens - 1 and not entropies.chained(language, k):
                found[k] = contexts.floor()
            else:
                found |= entropies.window_entropies(language, [k], known=found)
            yield k, found[k], number

    def expected_seconds(self, language: TreeGrammar, num_tokens: int, floors: bool = True) -> float:
        """About how long the contexts, and the floors, take on one core."""
        # The contexts take about as long as the last window, twice that for all tokens.
        windows = self.windows(num_tokens) if floors else []
        windows = [*windows, num_tokens - 1] if self.at_each or not floors else windows
        return sum(entropies.expected_seconds(language, k) for k in windows)

    def check_window(self, language: TreeGrammar, num_tokens: int) -> None:
        """Raises ValueError for a window that is not part of a sequence."""
        n = 2**language.L
        if not 2 <= num_tokens <= n:
            raise ValueError(
                f'context_size={num_tokens - 1} does not fit before the last of {n} tokens: use 1 to {n - 1}'
            )


@dataclass(frozen=True)
class All(Last):
    """Predict every token but the first from those before it. The floor is the mean over the positions."""

    name: ClassVar[str] = 'all'
    at_each: ClassVar[bool] = True

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """Inputs and the token after each, `(S, B, num_tokens - 1)`."""
        leaves = language.leaf_batches(*batches, last=num_tokens)
        return leaves[..., :-1], leaves[..., 1:]

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(next token | inputs up to it)` at each position, `(N, T, v)`."""
        leaves = torch.cat((inputs, torch.zeros_like(inputs[:, :1])), 1)  # the last token conditions nothing
        return all_next_token_probs(language, leaves)[:, 1:]


def _all_contexts(language: TreeGrammar, size: int, at_each: bool) -> Contexts:
    joint = entropies.window_distribution(language, size + 1)
    weights = joint.flatten(0, size - 1).sum(1)
    possible = torch.nonzero(weights).flatten()
    # Not torch.unravel_index, which imports sympy and takes a quarter of a second for that.
    inputs = possible[:, None] // language.v ** torch.arange(size - 1, -1, -1) % language.v
    posteriors = []
    for seen in range(size, 0, -1):
        given = joint[tuple(inputs[:, :seen].unbind(1))]
        posteriors.append(given / given.sum(1, keepdim=True))
        if not at_each:
            break
        joint = joint.sum(-1)
    stacked = torch.stack(posteriors[::-1], dim=1) if at_each else posteriors[0]
    return Contexts(inputs, stacked, weights[possible])
