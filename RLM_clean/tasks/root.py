"""The root as a task: classify the symbol at the top of the tree from the leaves.

F. Cagnetta, L. Petrini, U. M. Tomasini, A. Favero and M. Wyart, Phys. Rev. X 14, 031001 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.entropies import Estimate
from RLM_clean.exact.inference import ancestor_posteriors, log_likelihood
from RLM_clean.tasks.task import Batches, Contexts, Task, number_of_contexts, products_of_passes, window_estimate


@dataclass(frozen=True)
class Root(Task):
    """Predict the symbol of the root from all n leaves.

    `num_classes` is the number of symbols that the root can have, the first of the v; 0 for all of them. The floors are
    those of the first k leaves, k = 0, 1, 2, 4, ..., n.

    Raises ValueError for a number that is not whole or below 0; its methods do for more classes than the language has
    symbols, and where the root can have symbols that are left out.
    """

    num_classes: int = 0
    name: ClassVar[str] = 'root'
    seen: ClassVar[str] = 'the first k leaves'

    def __post_init__(self) -> None:
        if not isinstance(self.num_classes, Integral) or self.num_classes < 0:
            raise ValueError(
                f'num_classes={self.num_classes} is not a number of classes: use a whole number, 0 for all symbols'
            )

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """The leaves `(S, B, n)` and the roots `(S, B)`."""
        self._classes(language)
        return language.leaf_batches(*batches), language.root_batches(*batches)

    def contexts(
        self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """All sequences with their probabilities where there are at most `num_samples`; otherwise a sample."""
        n, v = 2**language.L, language.v
        number = self.num_contexts(language, num_tokens, num_samples)
        if number == v**n:
            every = torch.cartesian_prod(*[torch.arange(v)] * n)
            weights = log_likelihood(language, every, strict=False).exp()
            leaves, weights = every[weights > 0], weights[weights > 0]
            return Contexts(leaves, self.best(language, leaves), weights)
        leaves = language.sequences(0, number, 'floors', seed=seed)
        return Contexts(leaves, self.best(language, leaves).cpu(), None)

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(root | leaves)`, `(N, num_classes)`."""
        return self._given(language, inputs, inputs.shape[1])

    def window_floor(self, language: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """`H(root | first k leaves)`."""
        self._classes(language)
        if k == 0:
            return torch.special.entr(language.prior).sum().item(), 0.0
        return window_estimate(self._given(language, contexts.inputs, k).cpu(), contexts)

    def num_contexts(self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096) -> int:
        """How many contexts `contexts` gives."""
        n, v = 2**language.L, language.v
        return v**n if v**n <= num_samples else number_of_contexts(language, num_samples, 2 * n * v)

    def products(self, language: TreeGrammar, k: int) -> float:
        """About how many multiplications the prediction from the first k leaves takes for one context.

        The posteriors of all nodes are computed. A pair of tokens takes no contraction, so that the k tokens take those
        of k / 2 leaves.
        """
        contractions = max(0, 3 * k // 2 - 5)
        return products_of_passes(language, contractions, messages=3 * 2**language.L / 2)

    def _given(self, language: TreeGrammar, leaves: Tensor, k: int) -> Tensor:
        return ancestor_posteriors(language, leaves, past=k)[0][:, 0, : self._classes(language)]

    def _classes(self, language: TreeGrammar) -> int:
        """The number of classes in a language; ValueError where it does not fit."""
        classes = int(self.num_classes) or language.v
        if classes > language.v:
            raise ValueError(f'num_classes={classes} is more than the v={language.v} symbols: use 0 to {language.v}')
        if language.prior[classes:].any():
            needed = int(language.prior.nonzero().max()) + 1
            raise ValueError(
                f'num_classes={classes} leaves out symbols that the root can have: use {needed}, or another prior'
            )
        return classes
