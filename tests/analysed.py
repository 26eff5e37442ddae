"""Shared by the tests of the analysis: runs without files, whose model can be the best predictor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from RLM_clean import init, tasks
from RLM_clean.config import Config
from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.inference import all_next_token_probs, next_token_probs
from RLM_clean.runs.run import Run


class Best(nn.Module):
    """The best predictor from the last k tokens: logits ln P(x_n | last k), or those of every next token for `all`."""

    def __init__(self, grammar: TreeGrammar, k: int | None = None, objective: str = 'last') -> None:
        super().__init__()
        self.grammar, self.k, self.objective = grammar, k, objective

    def forward(self, inputs: Tensor) -> Tensor:
        if self.objective == 'last':
            k = inputs.shape[1] if self.k is None else self.k
            return next_token_probs(self.grammar, inputs[:, inputs.shape[1] - k :]).log()
        n = 2**self.grammar.L
        # Posteriors of a prefix do not depend on the leaves after it.
        leaves = torch.cat((inputs, torch.zeros(len(inputs), n - inputs.shape[1], dtype=torch.int64)), 1)
        return all_next_token_probs(self.grammar, leaves)[:, 1 : inputs.shape[1] + 1].log()


def run_of(grammar: TreeGrammar, predictor: nn.Module | None = None, **options: Any) -> Run:
    """A stand-in for a run of this grammar, whose model is `predictor` at its steps 0, 1 and 10.

    The default is an untrained model of the options, with large weights at its head so that its predictions differ.
    """
    config = Config(
        outname='none', num_features=grammar.v, num_layers=grammar.L, embedding_dim=8, device='cpu', **options
    )
    if predictor is None:
        predictor = init.init_model(config).eval()
        assert isinstance(predictor.head, nn.Linear)
        predictor.head.weight.data.mul_(300)

    task = tasks.of(config)

    def logits(model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs) if isinstance(model, Best) else init.task_logits(model, inputs, config)

    def test_batch(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = task.batches(grammar, config.window, step, 1, 16, 'test')
        return inputs[0], targets[0]

    found: Any = SimpleNamespace(
        config=config, rlm=grammar, task=task, steps=[0, 1, 10], done=True, dynamics=[{'t': 0}, {'t': 10}],
        model=lambda step=None: predictor, logits=logits, test_batch=test_batch,
    )  # fmt: skip
    return found
