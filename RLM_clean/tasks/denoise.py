"""Denoising: tokens are replaced by random ones, and the model predicts the clean sequence.

This is one step of diffusion with uniform noise (E. Hoogeboom et al., NeurIPS 2021; J. Austin et al., NeurIPS 2021): at
noise eps each token is replaced, with probability eps, by one of the v symbols drawn uniformly.
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
from RLM_clean.streams import STREAMS, random_words, stream_key, uniform
from RLM_clean.tasks.task import (
    Batches,
    Contexts,
    Task,
    leaf_likelihoods,
    number_of_contexts,
    subtree_products,
    window_estimate,
)

# The noises of a run that draws them for each sequence: the middles of equal parts of 0..1.
DRAWN_NOISES = tuple((2 * i + 1) / 16 for i in range(8))


@dataclass(frozen=True)
class Denoise(Task):
    """Predict every clean token from the noisy sequence.

    `noise` is eps; 0 draws it for each sequence, uniformly from the eight values 1/16, 3/16, ..., 15/16. The model is
    not told which: the best predictor infers it from the sequence. The noise is new each time that a sequence is seen.
    The floors are those of the noisy sub-tree of k leaves around a token, k = 0, 1, 2, 4, ..., n.

    Raises ValueError for a noise outside 0..1.
    """

    noise: float = 0.0
    name: ClassVar[str] = 'denoise'
    seen: ClassVar[str] = 'the sub-tree of k leaves'
    at_each: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:  # nan too
            raise ValueError(f'noise={self.noise} is not a probability: use 0 to 1, 0 to draw it for each sequence')

    @property
    def noises(self) -> tuple[float, ...]:
        """The values that eps can have, equally likely."""
        return (self.noise,) if self.noise else DRAWN_NOISES

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """The noisy and the clean leaves, `(S, B, n)`."""
        leaves = language.leaf_batches(*batches)
        noisy = self.noisy(language, leaves.flatten(0, 1), batches.first, batches.stream)
        return noisy.view(leaves.shape), leaves

    def noisy(self, language: TreeGrammar, leaves: Tensor, first: int, stream: str, seed: int | None = None) -> Tensor:
        """Leaves `(count, n)` with noise, as sequences first..first+count-1 of a stream."""
        n, device = 2**language.L, leaves.device
        seed = language.seed_samples if seed is None else seed
        rows = torch.arange(first, first + len(leaves), device=device)[:, None]
        counters = rows * n + torch.arange(n, device=device)

        def drawn(index: int, counters: Tensor) -> Tensor:
            words = random_words(stream_key(seed, 'noise', STREAMS[stream], index), counters)
            return uniform(words)

        levels = torch.tensor(self.noises, dtype=torch.float64, device=device)
        noise = levels[(drawn(0, rows) * len(levels)).long()]
        replaced = drawn(1, counters) < noise
        return leaves.where(~replaced, (drawn(2, counters) * language.v).long())

    def contexts(
        self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """Sequences of the stream 'floors' with noise."""
        number = self.num_contexts(language, num_tokens, num_samples)
        inputs = self.noisy(language, language.sequences(0, number, 'floors', seed=seed), 0, 'floors', seed)
        return Contexts(inputs, self.best(language, inputs).cpu(), None)

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """`P(clean x_i | noisy sequence)` of every token, `(N, n, v)`.

        With several noises `sum_j P(eps_j | y) P(x_i | y, eps_j)`, `P(eps_j | y)` proportional to `P(y | eps_j)`.
        """
        return self._within(language, inputs, language.L)

    def window_floor(self, language: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """The mean over the tokens of `H(x_i | noisy sub-tree of k leaves around it)`."""
        if k == 0:
            return torch.special.entr(leaf_marginals(language)).sum(1).mean().item(), 0.0
        return window_estimate(self._within(language, contexts.inputs, k.bit_length() - 1).cpu(), contexts)

    def num_contexts(self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096) -> int:
        """How many contexts `contexts` gives: each takes the passes over the tree once for each noise."""
        return number_of_contexts(language, num_samples, num_tokens * language.v, len(self.noises))

    def products(self, language: TreeGrammar, k: int) -> float:
        """About how many multiplications the prediction from sub-trees of k leaves takes for one context."""
        return len(self.noises) * subtree_products(language, k)

    def likelihoods(self, language: TreeGrammar, inputs: Tensor, noise: float) -> Tensor:
        """`P(y_i | x_i = a) = (1 - eps) [a = y_i] + eps / v`, `(N, n, v)` float64: the evidence of noisy tokens."""
        return (1 - noise) * leaf_likelihoods(inputs, language.v) + noise / language.v

    def _within(self, language: TreeGrammar, inputs: Tensor, height: int) -> Tensor:
        found = [subtree_posteriors(language, self.likelihoods(language, inputs, e), height) for e in self.noises]
        if len(found) == 1:
            return found[0][0]
        # Each sub-tree says what it can of the noise.
        of_noise = torch.stack([log_probs for _, log_probs in found]).softmax(0)
        weights = of_noise.repeat_interleave(2**height, -1)[..., None]
        return sum((w * p for w, (p, _) in zip(weights, found, strict=True)), torch.zeros_like(found[0][0]))
