"""Masked tokens: some tokens of a sequence are hidden, and the model predicts each of them from the others.

Hidden tokens carry the symbol v. The loss of a sequence is the mean over its hidden tokens. With the number of hidden
tokens uniform on 1..n, n times this loss is an average over all orders in which the tokens can be predicted one after
the other, so that the lowest loss is H(x_1, ..., x_n) / n (B. Uria, I. Murray and H. Larochelle, ICML 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.correlations import leaf_marginals
from RLM_clean.exact.entropies import Estimate
from RLM_clean.exact.subtrees import subtree_posteriors
from RLM_clean.streams import STREAMS, random_words, stream_key
from RLM_clean.tasks.task import (
    IGNORED,
    Batches,
    Contexts,
    Task,
    in_float32,
    leaf_likelihoods,
    number_of_contexts,
    subtree_products,
    window_estimate,
)


@dataclass(frozen=True)
class Masked(Task):
    """Predict each hidden token from the tokens that are seen.

    `rate` is the fraction of the tokens that is hidden, rounded to a number of tokens, at least one; 0 draws this
    number for each sequence, uniformly from 1 to n. Which tokens are hidden is random, and new each time that a
    sequence is seen. The floors are those of the sub-tree of k leaves around a token, k = 0, 2, 4, ..., n.

    Raises ValueError for a rate outside 0..1.
    """

    rate: float = 0.0
    name: ClassVar[str] = 'masked'
    seen: ClassVar[str] = 'the sub-tree of k leaves'
    at_each: ClassVar[bool] = True
    mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:  # nan too
            raise ValueError(f'rate={self.rate} is not a fraction of the tokens: use 0 to 1, 0 to draw their number')

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """The leaves with hidden ones replaced by v, and the hidden ones (IGNORED at the others), `(S, B, n)`."""
        leaves = language.leaf_batches(*batches)
        hidden = self.hidden(language, batches.first, batches.number, batches.stream).view(leaves.shape)
        return leaves.masked_fill(hidden, language.v), leaves.masked_fill(~hidden, IGNORED)

    def hidden(self, language: TreeGrammar, first: int, count: int, stream: str, seed: int | None = None) -> Tensor:
        """Which tokens of sequences first..first+count-1 of a stream are hidden, `(count, n)` bool."""
        n, device = 2**language.L, language.device
        seed = language.seed_samples if seed is None else seed
        rows = torch.arange(first, first + count, device=device)[:, None]
        words = random_words(stream_key(seed, 'mask', STREAMS[stream]), rows * n + torch.arange(n, device=device))
        rank = words.argsort(dim=1, stable=True).argsort(dim=1)
        if self.rate:
            return rank < max(1, round(self.rate * n))
        number = random_words(stream_key(seed, 'mask', STREAMS[stream], 1), rows)
        return rank < 1 + (number & (n - 1))

    def contexts(
        self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """Sequences of the stream 'floors' with hidden tokens; the weights of a context's hidden tokens are equal."""
        number = self.num_contexts(language, num_tokens, num_samples)
        leaves = language.sequences(0, number, 'floors', seed=seed)
        hidden = self.hidden(language, 0, number, 'floors', seed)
        inputs, positions = leaves.masked_fill(hidden, language.v), hidden.double().cpu()
        return Contexts(inputs, self.best(language, inputs).cpu(), None, positions / positions.sum(1, keepdim=True))

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(x_i | seen tokens)` of every token, `(N, n, v)`: one-hot where the token is seen."""
        return self._within(language, inputs, language.L)

    def windows(self, num_tokens: int) -> list[int]:
        """0 and the powers of two from 2 to n: of a hidden token itself nothing is seen."""
        return [0, *(2**l for l in range(1, num_tokens.bit_length()))]

    def window_floor(self, language: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """The mean of `H(x_i | tokens seen in its sub-tree of k leaves)` over the hidden tokens."""
        if k == 0:
            return torch.special.entr(leaf_marginals(language)).sum(1).mean().item(), 0.0
        return window_estimate(self._within(language, contexts.inputs, k.bit_length() - 1).cpu(), contexts)

    def num_contexts(self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096) -> int:
        """How many contexts `contexts` gives."""
        return number_of_contexts(language, num_samples, num_tokens * language.v)

    def products(self, language: TreeGrammar, k: int) -> float:
        """About how many multiplications the prediction from sub-trees of k leaves takes for one context."""
        return subtree_products(language, k)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over sequences of the mean of -ln q(hidden token), in nats: logits `(B, n, v)`, targets `(B, n)`."""
        hidden = targets != IGNORED
        log_q = torch.log_softmax(in_float32(logits), -1)
        losses = -log_q.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        losses = losses.where(hidden, 0.0)  # what is not predicted may be infinite
        return (losses.sum(-1) / hidden.sum(-1)).mean()

    def _within(self, language: TreeGrammar, inputs: Tensor, height: int) -> Tensor:
        return subtree_posteriors(language, leaf_likelihoods(inputs, language.v), height)[0]
