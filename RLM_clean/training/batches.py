"""The training batches of a run, by step, drawn ahead in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean import tasks
from RLM_clean.config import Config
from RLM_clean.datasets import TreeGrammar
from RLM_clean.training.machine import STEPS_AHEAD, TOKENS_AHEAD


class BatchFeed:
    """The batches of the training stream. How many are drawn ahead changes no batch."""

    def __init__(self, grammar: TreeGrammar, config: Config, device: torch.device) -> None:
        self.grammar, self.config, self.device = grammar, config, device
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
