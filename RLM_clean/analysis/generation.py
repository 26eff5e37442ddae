"""Sequences drawn from a model, scored by their exact likelihood under the language that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from RLM_clean.analysis.predictions import check_next_token, predict
from RLM_clean.exact.correlations import leaf_marginals
from RLM_clean.exact.entropies import Estimate, mean_and_error
from RLM_clean.exact.inference import log_likelihood, next_token_probs
from RLM_clean.models import CLM
from RLM_clean.runs.run import Run
from RLM_clean.streams import seeded_generator


@dataclass
class Generation:
    """Sequences whose first `given` tokens come from the language and the others from a model: see `generate`.

    Attributes:
        sequences: `(N, m)` int64.
        given: how many tokens at the beginning come from the language.
        log_q: `ln q` of the tokens that the model drew, given those before, `(N,)` float64, in nats.
        log_p: `ln P` of the same tokens under the language, exact; minus infinity for what the language excludes.
    """

    sequences: Tensor
    given: int
    log_q: Tensor
    log_p: Tensor

    @property
    def possible(self) -> float:
        """The fraction of sequences that the language allows.

        An RHM excludes most of them. The rules of an RLM are positive and allow all, unless beta is so large that some
        of them are below the smallest number of float32, 1e-45, and therefore zero.
        """
        return self.log_p.isfinite().double().mean().item()

    @property
    def surprise(self) -> Estimate:
        """`E_q[-ln P]`, the mean over the possible sequences, and its standard error.

        For a perfect model this is the entropy of what it draws. A lower value means that the model draws what is
        likely too often, a higher value that it draws what is unlikely. NaN if no sequence is possible.
        """
        return _estimate(-self.log_p[self.log_p.isfinite()])

    @property
    def entropy(self) -> Estimate:
        """`E_q[-ln q]`, the entropy of what the model draws, and its standard error."""
        return _estimate(-self.log_q)

    @property
    def divergence(self) -> Estimate:
        """`KL(q || P) = E_q[ln q - ln P]`, and its standard error; infinite if a sequence is impossible.

        The excess is the divergence in the other direction, `KL(P || q)`. The excess is large when the model misses
        sequences of the language, this divergence when the model makes sequences that the language does not.
        """
        if self.possible < 1:
            return math.inf, 0.0
        return _estimate(self.log_q - self.log_p)


def generate(run: Run, model: nn.Module, number: int = 1024, seed: int = 0) -> Generation:
    """`number` sequences from a model, each token drawn from its distribution given those before.

    A model of the objective 'all' draws every token but the first, which comes from the language. A model of the
    objective 'last' draws x_n alone, after contexts of the language. What is given comes from the sequences of the
    stream 'other', and the draws from a generator that `seed` alone seeds. With `num_tokens` below 2^L a sequence is
    the last num_tokens tokens of one of the language.
    """
    check_next_token(run)
    m, generator = run.config.context_size + 1, seeded_generator(seed)
    given = 1 if run.config.objective == 'all' else m - 1
    log_q = torch.zeros(number, dtype=torch.float64)

    def draw(q: Tensor) -> Tensor:
        token = torch.multinomial(q, 1, generator=generator)
        log_q.add_(q.gather(1, token)[:, 0].log())
        return token

    sequences = run.rlm.sequences(0, number, 'other')[:, -m:][:, :given]
    sequences = _extend(run, model, sequences, m - given, draw)
    return Generation(sequences, given, log_q, exact_log_probs(run, sequences))


def _extend(run: Run, model: nn.Module, sequences: Tensor, num_tokens: int, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """`sequences (N, T)` continued by `num_tokens` tokens, each one `draw(q)` of the model's distribution `(N, v)`.

    A CLM that reads indices keeps the keys and values of earlier tokens. Any other model, and one that reads one-hot
    rows, is called on the whole sequence again for each token.
    """
    if type(model) is CLM and run.config.input_format == 'long':  # a subclass may compute something else
        with torch.autocast(sequences.device.type, torch.bfloat16, enabled=run.config.dtype == 'bfloat16'):
            return model.extend(sequences, num_tokens, lambda logits: draw(torch.softmax(logits.double(), -1)))
    for _ in range(num_tokens):
        sequences = torch.cat((sequences, draw(predict(run, model, sequences))), 1)
    return sequences


def exact_log_probs(run: Run, sequences: Tensor) -> Tensor:
    """`ln P` of the tokens that the run's objective predicts given those before them, `(N,)` float64, in nats.

    For `sequences (N, num_tokens)`: `ln P(x_n | context)` for 'last', and for 'all' the sum over all tokens but the
    first. Minus infinity for what the language excludes. The mean over sequences of the language is -`run.entropy`
    times the number of predicted tokens.
    """
    if run.config.objective == 'last':
        return next_token_probs(run.rlm, sequences[:, :-1]).gather(1, sequences[:, -1:])[:, 0].log()
    first = leaf_marginals(run.rlm)[2**run.rlm.L - sequences.shape[1]]
    return log_likelihood(run.rlm, sequences, strict=False) - first[sequences[:, 0]].log()


def _estimate(values: Tensor) -> Estimate:
    if len(values) < 2:  # the model makes at most one sequence that the language allows
        return values.mean().item(), math.nan
    return mean_and_error(values)
