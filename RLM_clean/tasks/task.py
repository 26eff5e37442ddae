"""A task: what a model sees of a sequence, what it predicts, and how well this can be done.

A task knows three things: its batches, as functions of the seed of the samples and of the step alone; its loss; and its
best possible predictor, which is exact. From the last come the floors of the task and the contexts with exact
posteriors on which models are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact import entropies
from RLM_clean.exact.entropies import Estimate, mean_and_error, per_context

# Entries of the posteriors that are kept for the excess loss (8 bytes each).
REFERENCE_ENTRIES = 2**24
# What it takes to make, normalise and store a message: as long as this many multiplications for each of its v numbers.
_MESSAGE_COST = 500
# The target at a position that is not predicted.
IGNORED = -1


class Contexts(NamedTuple):
    """Contexts of a task and the exact posteriors of what a model predicts from them.

    Attributes:
        inputs: what the model sees, `(N, T)` int64.
        posteriors: `P(target | context)`, `(N, c)`, or `(N, T, c)` for a target at each position; float64.
        weights: the probabilities `(N,)` of the contexts where these are all there are; None for a sample.
        positions: the weights `(N, T)` of the targets of a context, which sum to one; None where they are equal.
    """

    inputs: Tensor
    posteriors: Tensor
    weights: Tensor | None
    positions: Tensor | None = None

    def floor(self) -> Estimate:
        """The mean entropy of the posteriors, which is the lowest loss on the contexts, and its standard error."""
        return mean_and_error(per_context(torch.special.entr(self.posteriors).sum(-1), self.positions), self.weights)


class Batches(NamedTuple):
    """Batches step..step+num_steps-1 of a stream, of `batch_size` sequences each."""

    step: int
    num_steps: int
    batch_size: int
    stream: str = 'train'

    @property
    def first(self) -> int:
        """The number of their first sequence in the stream."""
        return self.step * self.batch_size

    @property
    def number(self) -> int:
        """The number of their sequences."""
        return self.num_steps * self.batch_size


@dataclass(frozen=True)
class Task:
    """The base of the tasks. A task of its own defines the methods that are marked below.

    Attributes:
        name: the value of the option `objective`.
        whole: whether the model sees all n tokens (some changed), not only those before the target.
        at_each: whether there is a target at each position.
        seen: which k tokens the predictor of the floor H_k sees, for legends.
        mask: whether one more symbol, number v, stands for a hidden token.
    """

    name: ClassVar[str]
    whole: ClassVar[bool] = True
    at_each: ClassVar[bool] = False
    mask: ClassVar[bool] = False
    seen: ClassVar[str] = 'k tokens'

    def batches(
        self,
        language: TreeGrammar,
        num_tokens: int,
        step: int,
        num_steps: int,
        batch_size: int,
        stream: str = 'train',
    ) -> tuple[Tensor, Tensor]:
        """Batches step..step+num_steps-1 of a stream: inputs `(S, B, T)` and targets, `(S, B)` or `(S, B, T)`, int64.

        `num_tokens` are the last tokens of the sequence that count. The transform of a language that has one is applied
        to the inputs, as in `TreeGrammar.batches`; for a task with a mask it gets the symbol v at hidden tokens.
        """
        inputs, targets = self.pairs(language, num_tokens, Batches(step, num_steps, batch_size, stream))
        return (inputs if language.transform is None else language.transform(inputs)), targets

    def pairs(self, language: TreeGrammar, num_tokens: int, batches: Batches) -> tuple[Tensor, Tensor]:
        """The inputs and targets of `batches`, before any transform of the language. To be defined by a task."""
        raise NotImplementedError

    def contexts(
        self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096, seed: int | None = None
    ) -> Contexts:
        """Contexts of the stream 'floors' (of `seed`, by default the grammar's own) with their exact posteriors.

        To be defined by a task.
        """
        raise NotImplementedError

    def best(self, language: TreeGrammar, inputs: Tensor) -> Tensor:
        """The best possible prediction from inputs `(N, T)`: `P(target | inputs)`, `(N, c)` or `(N, T, c)` float64.

        To be defined by a task.
        """
        raise NotImplementedError

    def windows(self, num_tokens: int) -> list[int]:
        """The numbers of tokens k of the floors, in order: 0, which is a predictor that sees nothing, to all."""
        return [0, *(2**l for l in range(num_tokens.bit_length()))]

    def window_floor(self, language: TreeGrammar, contexts: Contexts, k: int) -> Estimate:
        """The loss of the best predictor that sees only k of the tokens, and its standard error, in nats.

        To be defined by a task.
        """
        raise NotImplementedError

    def floors(self, language: TreeGrammar, num_tokens: int, contexts: Contexts) -> Iterator[tuple[int, Estimate, int]]:
        """The floors of `windows`, each with k and with the number of contexts that it rests on (0: an exact sum)."""
        sampled = 0 if contexts.weights is not None else len(contexts.inputs)
        for k in self.windows(num_tokens):
            floor = contexts.floor() if k == num_tokens else self.window_floor(language, contexts, k)
            yield k, floor, sampled if k else 0

    def expected_seconds(self, language: TreeGrammar, num_tokens: int, floors: bool = True) -> float:
        """About how long `contexts` takes on one core, and with it the floors."""
        windows = self.windows(num_tokens) if floors else [num_tokens]
        products = sum(self.products(language, k) for k in windows if k)
        return self.num_contexts(language, num_tokens) * products / entropies.MULTIPLICATIONS_A_SECOND

    def num_contexts(self, language: TreeGrammar, num_tokens: int, num_samples: int = 4096) -> int:
        """How many contexts `contexts` gives. To be defined by a task."""
        raise NotImplementedError

    def products(self, language: TreeGrammar, k: int) -> float:
        """About how many multiplications the prediction from k tokens, k > 0, takes for one context.

        To be defined by a task.
        """
        raise NotImplementedError

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean of -ln q(target) in nats, in float32 or better: logits `(..., c)`, targets `(...)`."""
        return F.cross_entropy(in_float32(logits).flatten(0, -2), targets.flatten())

    def num_tokens(self, context_size: int) -> int:
        """The tokens of a sequence that count, where the model sees `context_size` of them."""
        return context_size if self.whole else context_size + 1

    def check_window(self, language: TreeGrammar, num_tokens: int) -> None:
        """Raises ValueError for a number of tokens that the task cannot have."""
        n = 2**language.L
        if num_tokens != n:
            raise ValueError(f'num_tokens={num_tokens} does not fit objective={self.name!r}: use all {n} tokens')


def expected_loss(logits: Tensor, law: Tensor) -> Tensor:
    """`-sum P(context, target) ln q(target | context)` in nats: a loss that is an expectation, without sampling noise.

    Logits `(..., c)` and the joint probabilities `(..., c)` of contexts and targets, which sum to one. A model may
    exclude targets that are impossible, by logits of minus infinity.
    """
    log_q = torch.log_softmax(in_float32(logits), -1)
    return -torch.where(law > 0, law * log_q, 0.0).sum()


def in_float32(logits: Tensor) -> Tensor:
    """Logits in float32 or better."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def window_estimate(posteriors: Tensor, contexts: Contexts) -> Estimate:
    """The mean entropy of posteriors `(N, c)` or `(N, T, c)` of the targets of contexts, and its standard error."""
    return Contexts(contexts.inputs, posteriors, contexts.weights, contexts.positions).floor()


def number_of_contexts(language: TreeGrammar, num_samples: int, entries: int, predictions: int = 1) -> int:
    """How many contexts of all n tokens are affordable, in time and in memory; `num_samples` at most.

    `entries` are the numbers in the posteriors of a context, `predictions` the passes over the tree that they take.
    """
    number = entropies.affordable(language, 4 * predictions * 2**language.L, num_samples)
    return min(number, max(entropies.FEWEST_CONTEXTS, REFERENCE_ENTRIES // entries))


def subtree_products(language: TreeGrammar, k: int) -> float:
    """About how many multiplications the posteriors of all leaves of a sequence take, from sub-trees of k leaves each.

    Of the 2 k - 1 nodes of a sub-tree, k - 1 take one contraction upwards and two downwards.
    """
    n = 2**language.L
    return products_of_passes(language, contractions=3 * (k - 1) * n / k, messages=3 * n)


def products_of_passes(language: TreeGrammar, contractions: float, messages: float) -> float:
    """About how many multiplications passes over the tree take: v^3 for each contraction, beside their messages."""
    return contractions * language.v**3 + messages * _MESSAGE_COST * language.v


def leaf_likelihoods(tokens: Tensor, v: int) -> Tensor:
    """One-hot likelihoods `(..., v)` float64 of tokens, all ones for a hidden token (v)."""
    rows = (tokens[..., None] == torch.arange(v, device=tokens.device)).double()
    return rows.where(tokens[..., None] < v, 1.0)
