"""What is measured of a model: its loss, its accuracy, and its excess over the best possible predictor.

A model is measured on reference contexts, for which the exact posterior of the next token is known. All losses and
entropies are in nats; the floors `H_k` are those of exact.entropies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from RLM_clean import tasks
from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact import entropies, filtered
from RLM_clean.exact.entropies import (
    Estimate,
    conditional_entropy,
    entropy,
    marginal,
    mean_and_error,
    per_context,
    window_entropies,
)
from RLM_clean.exact.inference import next_token_probs
from RLM_clean.tasks import Contexts, Task
from RLM_clean.tasks.task import IGNORED

# conditional_entropy, entropy, marginal and window_entropies are those of exact.entropies: the first version had them
# here.
__all__ = [
    'Evaluation',
    'Language',
    'Logits',
    'Model',
    'Reference',
    'apply_model',
    'bayes_floor',
    'conditional_entropy',
    'divergence_from_window',
    'entropy',
    'excess_loss',
    'filtered_predictions',
    'format_estimate',
    'kl_divergence',
    'marginal',
    'prepare_language',
    'reference',
    'test',
    'window_entropies',
]

# What is measured: a module, or any function of contexts whose value are logits.
Model = Callable[[Tensor], Tensor]
Logits = Callable[[Any, Tensor], Tensor]

# Sequences times tokens in one forward pass of an evaluation: activations that stay in the processor's cache.
_TOKENS_PER_PASS = 2**13
# A set-up that is expected to take longer is announced.
_SECONDS_TO_ANNOUNCE = 3.0


def apply_model(model: Model, inputs: Tensor) -> Tensor:
    """The logits of a model called on its inputs as they are."""
    return model(inputs)


@torch.no_grad()
def test(model: Model, inputs: Tensor, targets: Tensor, logits: Logits = apply_model) -> tuple[float, float]:
    """The mean loss (nats) and the accuracy of a model on inputs `(N, T)` and targets `(N,)` or `(N, T)`.

    The loss is the mean of -ln q(target), summed in float64; `logits(model, inputs)` gives the logits for the targets.
    A target of -1 is left out; the targets of a sequence have equal weights, and so have the sequences that have any. A
    module is in eval mode during the call, and afterwards in the mode that it was in. Raises ValueError for logits at
    other positions than the targets, and where no sequence has a target.
    """
    counted = targets != IGNORED
    number = int((counted.any(1) if counted.dim() > 1 else counted).sum())
    if number == 0:
        raise ValueError(f'targets of shape {tuple(targets.shape)} are all left out: give a sequence with a target')
    loss, correct = 0.0, 0.0
    for scores, rows, y in _evaluate(model, inputs, targets, logits):
        _check_logits(scores, rows, y.shape)
        if rows is not None:
            scores = scores[rows]
        log_q = torch.log_softmax(scores, -1).gather(-1, y.clamp(min=0)[..., None])[..., 0].cpu().double()
        weights = _target_weights(y.cpu())
        loss -= (log_q * weights).where(weights > 0, 0.0).sum().item()  # what is left out may be infinite
        correct += ((scores.argmax(-1) == y).cpu() * weights).sum().item()
    number *= targets[0].numel()  # the sum of the weights
    return loss / number, correct / number


def _target_weights(targets: Tensor) -> Tensor:
    """The weights of targets `(N,)` or `(N, T)`, float64: 0 where left out, 1 on average in a row that has others."""
    counted = (targets != IGNORED).double().view(len(targets), -1)
    return (counted * (counted.shape[1] / counted.sum(1, keepdim=True).clamp(min=1))).view(targets.shape)


def _evaluate(
    model: Model, inputs: Tensor, others: Tensor, logits: Logits
) -> Iterable[tuple[Tensor, Tensor | None, Tensor]]:
    """Logits in float32 or better, chunk by chunk, with the rows of `others`; a module is in eval mode meanwhile.

    The second item says which row of the logits belongs to each row of `others`; None where the rows are the same.
    """
    size = max(1, _TOKENS_PER_PASS // inputs.shape[1])
    with _eval_mode(model):
        for x, y in zip(inputs.split(size), others.split(size), strict=True):
            distinct, rows = _distinct(x)
            scores = logits(model, distinct)
            if not isinstance(scores, Tensor):
                raise ValueError(
                    f'a model returned {type(scores).__name__}, not a tensor of logits: measure a function that does, '
                    'such as lambda inputs: model(inputs).logits[:, -1]'
                )
            yield (scores if scores.dtype == torch.float64 else scores.float()), rows, y


@contextmanager
def _eval_mode(model: Model) -> Iterator[None]:
    """A module is in eval mode, and then in the mode that it was in; a function has no modes."""
    if not isinstance(model, nn.Module):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _distinct(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """The contexts without repetitions, and the row of each one among them: contexts of one token repeat soonest."""
    if inputs.shape != (len(inputs), 1):
        return inputs, None
    distinct, rows = inputs.flatten().unique(return_inverse=True)
    return (inputs, None) if len(distinct) == len(inputs) else (distinct[:, None], rows)


def _check_logits(scores: Tensor, rows: Tensor | None, shape: torch.Size, classes: int | None = None) -> None:
    # Logits at every position would broadcast against the answers at the last one, without an error.
    if scores.shape[1:-1] != shape[1:] or len(scores) != (shape[0] if rows is None else int(rows.max()) + 1):
        raise ValueError(
            f'logits of shape {tuple(scores.shape)} do not fit targets of shape {tuple(shape)}: '
            'choose the positions by logits, as in logits=run.logits'
        )
    if classes is not None and scores.shape[-1] != classes:
        raise ValueError(
            f'logits for {scores.shape[-1]} values of a target do not fit posteriors of {classes}: '
            f'build the model with num_outputs={classes}'
        )


# ---------------------------------------------------------------------- distance from the best predictors


def kl_divergence(p: Tensor, log_q: Tensor) -> Tensor:
    """`KL(p || q) = sum_a p(a) ln(p(a) / q(a))` along the last axis, in nats, from p and ln q.

    Symbols with p = 0 add nothing, also where q is zero; infinite where q is zero and p is not.
    """
    # 0 times -inf would be nan.
    return -(torch.special.entr(p) + (p * log_q).where(p > 0, 0)).sum(-1)


class Evaluation(NamedTuple):
    """How good a model is on the reference contexts: loss and excess in nats, accuracy from 0 to 1.

    `excess_error` is the standard error of the excess: 0 where all contexts are summed over.
    """

    loss: float
    accuracy: float
    excess: float
    excess_error: float


class Reference(Contexts):
    """Contexts of a task, with the attributes of `tasks.Contexts`, against which models are measured."""

    def part(self, number: int) -> Reference:
        """The first `number` contexts of a sample; all contexts where these are not a sample, or are no more."""
        if self.weights is not None or number >= len(self.inputs):
            return self
        positions = None if self.positions is None else self.positions[:number]
        return Reference(self.inputs[:number], self.posteriors[:number], None, positions)

    @torch.no_grad()
    def evaluate(self, model: Model, logits: Logits = apply_model) -> Evaluation:
        """The loss, the accuracy and the excess of a model q on the contexts, in one pass.

        All three are expectations over the exact posterior P of the target, so no draw of a target adds noise: the loss
        is `E[-sum_x P(x) ln q(x)]`, the accuracy `E[P(argmax q)]`, the excess `E KL(P || q)`; the mean is over contexts
        and the targets of each. Raises ValueError for logits of other positions or values than the posteriors.
        """
        divergences, accuracies = [], []
        for scores, rows, p in _evaluate(model, self.inputs, self.posteriors, logits):
            _check_logits(scores, rows, p.shape[:-1], p.shape[-1])
            log_q = torch.log_softmax(scores.to(p.device).double(), -1)  # beside p: mps has no float64
            log_q = log_q if rows is None else log_q[rows.to(p.device)]
            divergences.append(kl_divergence(p, log_q))
            accuracies.append(p.gather(-1, log_q.argmax(-1, keepdim=True)).squeeze(-1))
        excess, error = mean_and_error(per_context(torch.cat(divergences), self.positions), self.weights)
        accuracy, _ = mean_and_error(per_context(torch.cat(accuracies), self.positions), self.weights)
        return Evaluation(self.floor()[0] + excess, accuracy, excess, error)

    @torch.no_grad()
    def divergences(self, model: Model, predictors: Tensor, logits: Logits = apply_model) -> list[Estimate]:
        """`E KL(r_k || q)`, q the model, and its standard error, for each of K predictors r_k, in one pass.

        `predictors (N, K, c)` or `(N, K, T, c)` hold their probabilities in the contexts of the reference. Raises
        ValueError for logits of other positions or values than theirs.
        """
        found = []
        for scores, rows, r in _evaluate(model, self.inputs, predictors, logits):
            _check_logits(scores, rows, r[:, 0].shape[:-1], r.shape[-1])
            log_q = torch.log_softmax(scores.to(r.device).double(), -1)
            log_q = log_q if rows is None else log_q[rows.to(r.device)]
            found.append(kl_divergence(r, log_q[:, None].expand_as(r)))
        each = torch.cat(found).unbind(1)
        return [mean_and_error(per_context(values, self.positions), self.weights) for values in each]

    def divergence(self, model: Model, logits: Logits = apply_model) -> Estimate:
        """`E KL(P || q)`, q the model, and its standard error: the excess of `evaluate`."""
        found = self.evaluate(model, logits)
        return found.excess, found.excess_error

    def to(self, device: torch.device) -> Reference:
        """The same with its inputs where a model is."""
        return self._replace(inputs=self.inputs.to(device))


@dataclass
class Language:
    """A grammar with the exact losses of a task, in nats, and the contexts that models are measured on.

    `entropy` is the lowest loss of any model, `marginal` that of a predictor that sees nothing, `floors` those of the
    best predictors from k tokens, {k: (value, standard error)}; which tokens these are, the task says. For 'all',
    `entropy` is the mean over the positions, as the loss is, while `marginal` and `floors` are those of the last token
    alone: `marginal` is `H(x_n)`, not the mean loss of a predictor that sees nothing. `contexts` says on how many
    sampled contexts each floor rests, {k: number} as in `entropies.num_contexts`; empty for files of earlier versions,
    which do not say. `filtered` are the predictions of BP_0, ..., BP_L in the contexts, where records compare a model
    with them: see exact/filtered.py.
    """

    grammar: TreeGrammar
    reference: Reference
    entropy: float
    marginal: float
    floors: dict[int, Estimate]
    contexts: dict[int, int] = field(default_factory=dict)
    filtered: Tensor | None = None

    def to(self, device: torch.device) -> Language:
        """The same with its contexts where a model is."""
        return replace(self, reference=self.reference.to(device))

    def losses(self) -> dict[str, Any]:
        """The exact losses, as files hold them."""
        return {'entropy': self.entropy, 'marginal': self.marginal, 'floors': self.floors, 'contexts': self.contexts}

    def rules(self) -> Tensor:
        """The rules, as files hold them: see `rules_of`."""
        return rules_of(self.grammar)


def rules_of(language: TreeGrammar) -> Tensor:
    """The rules of a language as files hold them: `(v, v, v)` where all levels share them, `(L, v, v, v)` otherwise."""
    return language.rules[0] if language.shared else torch.stack(language.rules)


def prepare_language(
    language: TreeGrammar,
    context_size: int,
    objective: str | Task = 'last',
    known: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Language:
    """A grammar with the exact losses of a task and the contexts that models are measured on.

    `context_size` is the number of tokens that a model sees. `known` holds losses that were computed before, as
    `Language.losses` gives them; `say` gets a line for each loss that is computed, with its standard error and the
    number of sampled contexts where it is not an exact sum, and before them a line with the time that they take where
    that is long.
    """
    task = tasks.make(objective)
    num_tokens = task.num_tokens(context_size)
    seconds = task.expected_seconds(language, num_tokens, floors=known is None)
    if seconds > _SECONDS_TO_ANNOUNCE:
        say(f'computing what is known exactly of the language: about {seconds:.0f} s')
    contexts = task.contexts(language, num_tokens)
    whole = Reference(*contexts)
    if known is not None:
        return Language(
            language, whole, known['entropy'], known['marginal'], known['floors'], known.get('contexts', {})
        )
    target = 'best loss of the last token' if task.name == 'all' else 'best loss'
    floors: dict[int, Estimate] = {}
    numbers: dict[int, int] = {}
    for k, floor, number in task.floors(language, num_tokens, contexts):
        floors[k], numbers[k] = floor, number
        say(f'{target} from {k} {"token" if k == 1 else "tokens"}: {format_estimate(floor, number)}')
    lowest = floors[max(floors)]
    if task.name == 'all':
        lowest = whole.floor()
        number = 0 if whole.weights is not None else len(whole.inputs)
        say(f'best loss of all tokens: {format_estimate(lowest, number)}')
    return Language(language, whole, lowest[0], floors[0][0], floors, numbers)


def filtered_predictions(
    language: TreeGrammar, reference: Reference, task: Task, heights: Iterable[int] | None = None
) -> Tensor:
    """The predictions of BP_k in the contexts of a reference, `(N, K, c)` or `(N, K, T, c)` for K heights k.

    They are 0, ..., L by default. Raises ValueError for a height that the language does not have.
    """
    possible = filtered.heights(language)
    chosen = possible if heights is None else list(heights)
    for k in chosen:
        if k not in possible:
            raise ValueError(f'k={k} is not a height of this language: use 0 to {possible[-1]}')
    return torch.stack([task.best(language.filtered(k), reference.inputs).cpu() for k in chosen], 1)


def format_estimate(estimate: Estimate, contexts: int = 0) -> str:
    """A value in nats, with its standard error and the number of contexts that it rests on where it is sampled."""
    value, error = estimate
    sampled = f' ({contexts} contexts)' if contexts else ''
    return (f'{value:.4f} +- {error:.4f} nats' if error else f'{value:.4f} nats') + sampled


def reference(
    language: TreeGrammar,
    context_size: int | None = None,
    objective: str | Task = 'last',
    num_samples: int = 4096,
    seed: int | None = None,
) -> Reference:
    """Contexts of `context_size` tokens (as many as there are by default), and the exact posteriors of the targets.

    All contexts with their probabilities where there are at most `num_samples`, as for L = 1: for 'last' and 'all' (of
    two tokens or more only if they make at most 2^24 sequences with the next token) and for 'root'. Otherwise, and
    always for 'masked' and 'denoise', those of `num_samples` sampled sequences, or of fewer, at least 8, where these
    would take more than some seconds, or their posteriors more than 2^24 numbers. `objective` is a task, or the name of
    one: for 'last' the contexts come before x_n, and for 'all' the posteriors are those of the token after each
    position given the context up to it.

    Raises ValueError for a context_size that the task cannot have, an unknown objective and fewer than 2 samples where
    sampled.
    """
    task = tasks.make(objective)
    num_tokens = 2**language.L if context_size is None else task.num_tokens(context_size)
    task.check_window(language, num_tokens)
    return Reference(*task.contexts(language, num_tokens, num_samples, seed))


def bayes_floor(language: TreeGrammar, objective: str | Task = 'last', num_samples: int = 4096) -> Estimate:
    """The lowest loss that any model can have on an objective, in nats, and its standard error.

    For 'last' `H(x_n | x_1..x_{n-1})`; for 'all' the mean over i = 2..n of `H(x_i | x_1..x_{i-1})`; for other tasks the
    mean entropy of the posteriors of the targets.
    """
    if tasks.make(objective).name == 'last':
        return entropies.entropy(language, num_samples)
    return reference(language, None, objective, num_samples).floor()


def excess_loss(
    model: Model,
    language: TreeGrammar,
    context_size: int | None = None,
    objective: str | Task = 'last',
    num_samples: int = 4096,
    logits: Logits = apply_model,
) -> Estimate:
    """By how much the loss of any model exceeds the lowest possible one, and the standard error of that, in nats.

    The excess is `E_x KL(P(. | x) || q(. | x)) = E_x sum_a P(a | x) ln(P(a | x) / q(a | x))`, where x is a context, P
    the exact posterior of the target and q the softmax of the model's logits: T. M. Cover and J. A. Thomas, *Elements
    of Information Theory*, section 5.4, where it is the price of a wrong code. The loss is the floor plus the excess;
    `reference(grammar, ...).evaluate(model)` gives it too, with the accuracy.

    The model is a module, or any function, that maps tokens `(B, T)` int64 to logits: `(B, c)`, or `(B, T, c)` for a
    target at each position. A function gets its contexts on the CPU, and is called without gradients; modules are in
    eval mode meanwhile. `objective` is a task (`tasks.Masked(0.5)`, ...), or the name of one. For 'last' the model sees
    the last `context_size` tokens before x_n (n - 1 by default), and the best predictor sees the same.

    The contexts are those of `reference`. Where they are all there are, they are summed over, and the error is 0.
    Otherwise the mean is over at most `num_samples` sampled contexts, the same ones in every call. Raises ValueError as
    `reference` does, for logits of another shape, and for a model that returns something else than a tensor.
    """
    return reference(language, context_size, objective, num_samples).to(_device(model)).divergence(model, logits)


def divergence_from_window(
    model: Model, language: TreeGrammar, k: int, num_samples: int = 4096, logits: Logits = apply_model
) -> Estimate:
    """`E KL(P(x_n | last k tokens) || model)`, the model seeing all n - 1 tokens, and its standard error, in nats.

    Zero for the best predictor from k tokens: along a training run, the k with the smallest divergence says which level
    of the tree the model has reached. Raises ValueError for k outside 0..n-1.
    """
    entropies.check_window(language, k)
    whole = reference(language, None, 'last', num_samples)
    seen = whole.inputs[:, whole.inputs.shape[1] - k :]
    posteriors = next_token_probs(language, seen).cpu()
    return Reference(whole.inputs, posteriors, whole.weights).to(_device(model)).divergence(model, logits)


def _device(model: Model) -> torch.device:
    """Where a module is; the CPU for one without parameters, and for a function."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device('cpu'))
