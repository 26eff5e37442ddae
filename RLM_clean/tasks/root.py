"""The root as a task: classify the symbol at the top of the tree from the leaves.

F. Cagnetta, L. Petrini, U. M. Tomasini, A. Favero and M. Wyart, Phys. Rev. X 14, 031001 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.entropies import Estimate
from RLM_clean.exact.inference import ancestor_posteriors, log_likelihood
from RLM_clean.tasks.task import Contexts, Task, drawn, number_of_contexts, window_estimate


@dataclass(frozen=True)
class Root(Task):
    """Predict the symbol of the root from all n leaves.

    `num_classes` is the number of symbols that the root can have, the first of the v; 0 for all of them. The floors are
    those of the first k leaves, k = 0, 1, 2, 4, ..., n.
    """

    num_classes: int = 0
    name: ClassVar[str] = 'root'
    seen: ClassVar[str] = 'the first k leaves'

    def batches(
        self,
        grammar: TreeGrammar,
        num_tokens: int,
        step: int,
        num_steps: int,
        batch_size: int,
        stream: str = 'train',
    ) -> tuple[Tensor, Tensor]:
        """The leaves `(S, B, n)` and the roots `(S, B)`."""
        leaves = drawn(grammar, step, num_steps, batch_size, stream)
        return leaves, grammar.root_batches(step, num_steps, batch_size, stream)

    def contexts(
        self, grammar: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """All sequences with their probabilities where there are at most `num_samples`; otherwise a sample."""
        n, v = 2**grammar.L, grammar.v
        if v**n <= num_samples:
            every = torch.cartesian_prod(*[torch.arange(v)] * n)
            weights = log_likelihood(grammar, every, strict=False).exp()
            leaves, weights = every[weights > 0], weights[weights > 0]
            return Contexts(leaves, self.best(grammar, leaves), weights)
        number = number_of_contexts(grammar, num_samples, 2 * n * v)
        leaves = grammar.sequences(0, number, 'floors', seed=seed)
        return Contexts(leaves, self.best(grammar, leaves).cpu(), None)

    def best(self, grammar: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(root | leaves)`, `(N, num_classes)`. Raises ValueError where the root can have other symbols."""
        return self._given(grammar, inputs, inputs.shape[1])

    def window_floor(self, grammar: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """`H(root | first k leaves)`."""
        if k == 0:
            return torch.special.entr(grammar.prior).sum().item(), 0.0
        return window_estimate(self._given(grammar, contexts.inputs, k).cpu(), contexts)

    def _given(self, grammar: TreeGrammar, leaves: Tensor, k: int) -> Tensor:
        classes = self.num_classes or grammar.v
        if grammar.prior[classes:].any():
            needed = int(grammar.prior.nonzero().max()) + 1
            raise ValueError(
                f'num_classes={classes} leaves out symbols that the root can have: use {needed}, or another prior'
            )
        return ancestor_posteriors(grammar, leaves, past=k)[0][:, 0, :classes]
