"""Sequences that a model makes, scored by their exact likelihood under the language it has learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from RLM_clean.analysis.predictions import predict
from RLM_clean.exact.correlations import leaf_marginals
from RLM_clean.exact.entropies import Estimate, mean_and_error
from RLM_clean.exact.inference import log_likelihood, next_token_probs
from RLM_clean.runs.run import Run
from RLM_clean.streams import seeded_generator


@dataclass
class Generation:
    """Sequences of which a model drew all tokens but the first `given` ones: see `generate`. Logarithms are in nats.

    Attributes:
        sequences: `(N, m)` int64.
        given: how many tokens at the beginning are the language's own.
        log_q: the logarithm of the model's probability of what it drew, given the tokens before, `(N,)` float64.
        log_p: the same under the language, exact; minus infinity for what the language excludes.
    """

    sequences: Tensor
    given: int
    log_q: Tensor
    log_p: Tensor

    @property
    def possible(self) -> float:
        """The fraction of sequences that the language allows.

        An RHM excludes most. The rules of an RLM are positive and allow all, unless beta is so large that some of them
        are below the least number of float32, 1e-45, and therefore zero.
        """
        return self.log_p.isfinite().double().mean().item()

    @property
    def surprise(self) -> Estimate:
        """`E_q[-ln P]`, the mean over the possible sequences, and its standard error.

        Of a perfect model this is the entropy of what it draws. Lower means that the model keeps to what is likely,
        higher that it makes what is not. NaN where no sequence is possible.
        """
        return _estimate(-self.log_p[self.log_p.isfinite()])

    @property
    def entropy(self) -> Estimate:
        """`E_q[-ln q]`, the entropy of what the model draws, and its standard error."""
        return _estimate(-self.log_q)

    @property
    def divergence(self) -> Estimate:
        """`KL(q || P) = E_q[ln q - ln P]`, and its standard error: infinite when a sequence is impossible.

        The excess loss is the divergence the other way, `KL(P || q)`: that one grows where the model misses what the
        language makes, this one where the model makes what the language does not.
        """
        if self.possible < 1:
            return math.inf, 0.0
        return _estimate(self.log_q - self.log_p)


def generate(run: Run, model: nn.Module, number: int = 1024, seed: int = 0) -> Generation:
    """`number` sequences from a model, each token drawn from its distribution given those before.

    A model of the objective 'all' draws every token but the first, which nothing precedes: that one is the language's
    own. A model of the objective 'last' draws x_n alone, after contexts of the language. What is given comes from the
    sequences of the stream 'other', and the draws from a generator that `seed` alone seeds. With `num_tokens` below
    2^L a sequence is the last num_tokens of one of the language.
    """
    m, generator = run.config.context_size + 1, seeded_generator(seed)
    given = 1 if run.config.objective == 'all' else m - 1
    sequences = run.rlm.sequences(0, number, 'other')[:, -m:][:, :given]
    log_q = torch.zeros(number, dtype=torch.float64)
    for _ in range(given, m):
        q = predict(run, model, sequences)
        token = torch.multinomial(q, 1, generator=generator)
        log_q += q.gather(1, token)[:, 0].log()
        sequences = torch.cat((sequences, token), 1)
    return Generation(sequences, given, log_q, exact_log_probs(run, sequences))


def exact_log_probs(run: Run, sequences: Tensor) -> Tensor:
    """`ln P` of the tokens that the run's objective predicts given those before them, `(N,)` float64, in nats.

    Of `sequences (N, num_tokens)`: `ln P(x_n | context)` for 'last', and for 'all' the sum over the tokens but the
    first one seen. Minus infinity for what the language excludes. The mean over sequences of the language is
    -`run.entropy` times the number of predicted tokens.
    """
    if run.config.objective == 'last':
        return next_token_probs(run.rlm, sequences[:, :-1]).gather(1, sequences[:, -1:])[:, 0].log()
    first = leaf_marginals(run.rlm)[2**run.rlm.L - sequences.shape[1]]
    return log_likelihood(run.rlm, sequences, strict=False) - first[sequences[:, 0]].log()


def _estimate(values: Tensor) -> Estimate:
    if len(values) < 2:  # a model that makes nothing the language allows
        return values.mean().item(), math.nan
    return mean_and_error(values)
