"""The training batches of a run, by step, drawn ahead in chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from RLM_clean import tasks
from RLM_clean.config import Config
from RLM_clean.datasets import TreeGrammar
from RLM_clean.measures import Logits, test
from RLM_clean.training.machine import STEPS_AHEAD, TOKENS_AHEAD

# More contexts than any run in the regime population has.
_EVERY = 2**24


class BatchFeed:
    """The batches of the training stream. How many are drawn ahead changes no batch."""

    def __init__(self, language: TreeGrammar, config: Config, device: torch.device) -> None:
        self.grammar, self.config, self.device = language, config, device
        self.task = tasks.of(config)
        tokens = config.batch_size * config.accumulation * config.window
        self.chunk = max(1, min(STEPS_AHEAD, TOKENS_AHEAD // tokens))
        self.first = -1

    def __call__(self, step: int, most: int = 1) -> tuple[Tensor, Tensor]:
        """The inputs and targets of `most` steps from `step` on, or of one step where the chunk ends before that.

        Inputs are `(S, A, B, T)`: S steps, A batches whose gradients are accumulated in each.
        """
        accumulation = self.config.accumulation
        first = step - step % self.chunk
        if first != self.first:
            batches = self.task.batches(
                self.grammar,
                self.config.window,
                first * accumulation,
                self.chunk * accumulation,
                self.config.batch_size,
            )
            # Contiguous, so that each batch is one block of memory.
            self.inputs, self.targets = (
                x.contiguous().to(self.device).unflatten(0, (self.chunk, accumulation)) for x in batches
            )
            self.first = first
        start = step - first
        stop = start + (most if most <= self.left(step) else 1)
        return self.inputs[start:stop], self.targets[start:stop]

    def left(self, step: int) -> int:
        """The number of steps from this one on whose batches are in one chunk."""
        return self.chunk - step % self.chunk

    def example(self) -> tuple[Tensor, Tensor] | None:
        """Nothing: the options say the shapes of a batch."""
        return None

    def first_loss(self, model: nn.Module, logits: Logits) -> float:
        """The loss of a model on the first batch, in eval mode."""
        batches = self.task.batches(self.grammar, self.config.window, 0, 1, self.config.batch_size)
        inputs, targets = (x[0].to(self.device) for x in batches)
        return test(model, inputs, targets, logits)[0]


class PopulationFeed:
    """The same at each step: all contexts, with the joint probabilities of contexts and targets.

    With them the loss is the expectation over the language, `-sum P(context, target) ln q(target | context)`, and its
    gradient that of infinitely many sequences. Where there is a target at each position, it is the mean over these.
    Raises ValueError where the contexts are not all known.
    """

    def __init__(self, language: TreeGrammar, config: Config, device: torch.device) -> None:
        inputs, posteriors, weights, positions = tasks.of(config).contexts(language, config.window, _EVERY)
        if weights is None or positions is not None:
            raise ValueError(f"regime='population' does not know all contexts of objective={config.objective!r}")
        law = weights.view(-1, *[1] * (posteriors.ndim - 1)) * posteriors
        if posteriors.ndim == 3:
            law = law / posteriors.shape[1]
        self.inputs, self.law = inputs.to(device)[None, None], law.float().to(device)[None, None]

    def __call__(self, step: int, most: int = 1) -> tuple[Tensor, Tensor]:
        """The contexts `(1, 1, N, T)` and the law `(1, 1, N, c)` or `(1, 1, N, T, c)` of one step."""
        return self.inputs, self.law

    def left(self, step: int) -> int:
        """One step at a time."""
        return 1

    def example(self) -> tuple[Tensor, Tensor] | None:
        """A batch: only the language says how many contexts are possible."""
        return self.inputs, self.law

    @torch.no_grad()
    def first_loss(self, model: nn.Module, logits: Logits) -> float:
        """The loss of a model, in eval mode."""
        was_training = model.training
        model.eval()
        loss = tasks.expected_loss(logits(model, self.inputs[0, 0]), self.law[0, 0]).item()
        model.train(was_training)
        return loss


Feed = BatchFeed | PopulationFeed


def make_feed(language: TreeGrammar, config: Config, device: torch.device) -> Feed:
    """What the steps of a run are taken on."""
    return (PopulationFeed if config.regime == 'population' else BatchFeed)(language, config, device)
