"""What is measured of a model: its loss, its accuracy, and its excess over the best possible predictor.

A model is measured on reference contexts, for which the exact posterior of the next token is known. All losses and
entropies are in nats; the floors `H_k` are those of exact.entropies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact import entropies
from RLM_clean.exact.entropies import Estimate, conditional_entropy, entropy, marginal, mean_and_error, window_entropies
from RLM_clean.exact.inference import all_next_token_probs, next_token_probs

# conditional_entropy, entropy, marginal and window_entropies are those of exact.entropies: the first version had them
# here.
__all__ = [
    'Evaluation',
    'Language',
    'Logits',
    'Reference',
    'apply_model',
    'bayes_floor',
    'conditional_entropy',
    'divergence_from_window',
    'entropy',
    'excess_loss',
    'format_estimate',
    'kl_divergence',
    'marginal',
    'prepare_language',
    'reference',
    'test',
    'window_entropies',
]

Logits = Callable[[nn.Module, Tensor], Tensor]

# Sequences times tokens in one forward pass of an evaluation: bounds its memory.
_TOKENS_PER_PASS = 2**15
# A set-up that is expected to take longer is announced.
_SECONDS_TO_ANNOUNCE = 3.0
# Entries of the posteriors that are kept for the excess loss (8 bytes each).
_REFERENCE_ENTRIES = 2**24


def apply_model(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits of a model called on its inputs as they are."""
    return model(inputs)


@torch.no_grad()
def test(model: nn.Module, inputs: Tensor, targets: Tensor, logits: Logits = apply_model) -> tuple[float, float]:
    """The mean loss (nats) and the accuracy of a model on inputs `(N, T)` and targets `(N,)` or `(N, T)`.

    The loss is the mean of -ln q(target), summed in float64; `logits(model, inputs)` gives the logits for the targets.
    The model is in eval mode during the call, and afterwards in the mode that it was in. Raises ValueError for logits
    at other positions than the targets.
    """
    loss, correct = 0.0, 0
    for scores, rows, y in _evaluate(model, inputs, targets, logits):
        _check_logits(scores, rows, y.shape)
        flat, answers = scores.flatten(0, -2), y.flatten()
        rows = torch.arange(len(answers), device=answers.device) if rows is None else rows
        loss -= torch.log_softmax(flat, -1)[rows, answers].cpu().double().sum().item()
        correct += int((flat.argmax(-1)[rows] == answers).sum().item())
    return loss / targets.numel(), correct / targets.numel()


def _evaluate(
    model: nn.Module, inputs: Tensor, others: Tensor, logits: Logits
) -> Iterable[tuple[Tensor, Tensor | None, Tensor]]:
    """Logits in float32 or better, chunk by chunk, with the rows of `others`; the model is in eval mode meanwhile.

    The second item says which row of the logits belongs to each row of `others`; None where the rows are the same.
    """
    was_training = model.training
    model.eval()
    size = max(1, _TOKENS_PER_PASS // inputs.shape[1])
    try:
        for x, y in zip(inputs.split(size), others.split(size), strict=True):
            distinct, rows = _distinct(x)
            scores = logits(model, distinct)
            yield (scores if scores.dtype == torch.float64 else scores.float()), rows, y
    finally:
        model.train(was_training)


def _distinct(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """The contexts without repetitions, and the row of each one among them: contexts of one token repeat soonest."""
    if inputs.shape != (len(inputs), 1):
        return inputs, None
    distinct, rows = inputs.flatten().unique(return_inverse=True)
    return (inputs, None) if len(distinct) == len(inputs) else (distinct[:, None], rows)


def _check_logits(scores: Tensor, rows: Tensor | None, shape: torch.Size) -> None:
    # Logits at every position would broadcast against the answers at the last one, without an error.
    if scores.shape[1:-1] != shape[1:] or len(scores) != (shape[0] if rows is None else int(rows.max()) + 1):
        raise ValueError(
            f'logits of shape {tuple(scores.shape)} do not fit targets of shape {tuple(shape)}: '
            'choose the positions by logits, as in logits=run.logits'
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


@dataclass
class Reference:
    """Contexts and the exact posteriors of what follows them, against which models are measured.

    Attributes:
        inputs: contexts `(N, T)`, int64.
        posteriors: `P(next token | context)`, `(N, v)`, or `(N, T, v)` for the token after each position; float64.
        weights: the probabilities `(N,)` of the contexts where these are all there are; None for a sample.
    """

    inputs: Tensor
    posteriors: Tensor
    weights: Tensor | None

    def floor(self) -> Estimate:
        """The mean entropy of the posteriors, which is the lowest loss on them, and its standard error."""
        return mean_and_error(self._per_context(torch.special.entr(self.posteriors).sum(-1)), self.weights)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, logits: Logits = apply_model) -> Evaluation:
        """The loss, the accuracy and the excess of a model q on the contexts, in one pass.

        All three are expectations over the exact posterior P of the target, so no draw of a target adds noise: the loss
        is `E[-sum_x P(x) ln q(x)]`, the accuracy `E[P(argmax q)]`, the excess `E KL(P || q)`; the mean is over contexts
        and positions. Raises ValueError for logits at other positions than the posteriors.
        """
        divergences, accuracies = [], []
        for scores, rows, p in _evaluate(model, self.inputs, self.posteriors, logits):
            _check_logits(scores, rows, p.shape[:-1])
            log_q = torch.log_softmax(scores.to(p.device).double(), -1)  # beside p: mps has no float64
            log_q = log_q if rows is None else log_q[rows.to(p.device)]
            divergences.append(kl_divergence(p, log_q))
            accuracies.append(p.gather(-1, log_q.argmax(-1, keepdim=True)).squeeze(-1))
        excess, error = mean_and_error(self._per_context(torch.cat(divergences)), self.weights)
        accuracy, _ = mean_and_error(self._per_context(torch.cat(accuracies)), self.weights)
        return Evaluation(self.floor()[0] + excess, accuracy, excess, error)

    def divergence(self, model: nn.Module, logits: Logits = apply_model) -> Estimate:
        """`E KL(P || q)`, q the model, and its standard error: the excess of `evaluate`."""
        found = self.evaluate(model, logits)
        return found.excess, found.excess_error

    def to(self, device: torch.device) -> Reference:
        """The same with its inputs where a model is."""
        return Reference(self.inputs.to(device), self.posteriors, self.weights)

    @staticmethod
    def _per_context(values: Tensor) -> Tensor:
        return values.view(len(values), -1).mean(1)


@dataclass
class Language:
    """A grammar with the exact losses of a task, in nats, and the contexts that models are measured on.

    `entropy` is the lowest loss of any model, `marginal` that of a predictor that sees nothing, `floors` those of the
    best predictors from k tokens, {k: (value, standard error)}. `contexts` says on how many sampled contexts each floor
    rests, {k: number} as in `entropies.num_contexts`; empty for files of earlier versions, which do not say.
    """

    grammar: TreeGrammar
    reference: Reference
    entropy: float
    marginal: float
    floors: dict[int, Estimate]
    contexts: dict[int, int] = field(default_factory=dict)

    def to(self, device: torch.device) -> Language:
        """The same with its contexts where a model is."""
        return replace(self, reference=self.reference.to(device))

    def losses(self) -> dict[str, Any]:
        """The exact losses, as files hold them."""
        return {'entropy': self.entropy, 'marginal': self.marginal, 'floors': self.floors, 'contexts': self.contexts}

    def rules(self) -> Tensor:
        """The rules, as files hold them: `(v, v, v)` where all levels share them, `(L, v, v, v)` otherwise."""
        return self.grammar.rules[0] if self.grammar.shared else torch.stack(self.grammar.rules)


def prepare_language(
    grammar: TreeGrammar,
    context_size: int,
    objective: str = 'last',
    known: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Language:
    """A grammar with the exact losses of a task and the contexts that models are measured on.

    `known` holds losses that were computed before, as `Language.losses` gives them; `say` gets a line for each loss
    that is computed, with its standard error and the number of sampled contexts where it is not an exact sum, and
    before them a line with the time that they take where that is long.
    """
    ladder = entropies.window_ladder(context_size)
    # The reference takes about as long as the last window, twice that for all tokens.
    windows = [*ladder, context_size] if objective == 'all' or known is None else [context_size]
    seconds = sum(entropies.expected_seconds(grammar, k) for k in windows)
    if seconds > _SECONDS_TO_ANNOUNCE:
        say(f'computing what is known exactly of the language: about {seconds:.0f} s')
    whole = reference(grammar, context_size, objective)
    if known is not None:
        return Language(grammar, whole, known['entropy'], known['marginal'], known['floors'], known.get('contexts', {}))
    target = 'best loss' if objective == 'last' else 'best loss of the last token'
    floors: dict[int, Estimate] = {}
    contexts = {k: entropies.num_contexts(grammar, k) for k in ladder}
    for k, number in contexts.items():
        # The last window and the reference are the same contexts where both are sampled in the plain way.
        if objective == 'last' and number and k == context_size and not entropies.chained(grammar, k):
            floors[k] = whole.floor()
        else:
            floors |= entropies.window_entropies(grammar, [k], known=floors)
        say(f'{target} from {k} {"token" if k == 1 else "tokens"}: {format_estimate(floors[k], number)}')
    if objective == 'last':
        lowest = floors[context_size]
    else:
        lowest = whole.floor()
        say(
            f'best loss of all tokens: {format_estimate(lowest, 0 if whole.weights is not None else len(whole.inputs))}'
        )
    return Language(grammar, whole, lowest[0], floors[0][0], floors, contexts)


def format_estimate(estimate: Estimate, contexts: int = 0) -> str:
    """A value in nats, with its standard error and the number of contexts that it rests on where it is sampled."""
    value, error = estimate
    sampled = f' ({contexts} contexts)' if contexts else ''
    return (f'{value:.4f} +- {error:.4f} nats' if error else f'{value:.4f} nats') + sampled


def reference(
    grammar: TreeGrammar,
    context_size: int | None = None,
    objective: str = 'last',
    num_samples: int = 4096,
    seed: int | None = None,
) -> Reference:
    """Contexts of `context_size` tokens (n - 1 by default) before x_n, and the exact posteriors of what follows.

    All contexts with their probabilities where there are at most `num_samples`, as for L = 1; otherwise those of
    sampled sequences, as in `window_entropies`. For the objective 'all' the posteriors are those of the token after
    each position given the context up to it.

    Raises ValueError for a context_size outside 1..n-1, an unknown objective and fewer than 2 samples where sampled.
    """
    v, n = grammar.v, 2**grammar.L
    size = n - 1 if context_size is None else context_size
    if not 1 <= size < n:
        raise ValueError(f'context_size={size} does not fit before the last of {n} tokens: use 1 to {n - 1}')
    if objective not in ('last', 'all'):
        raise ValueError(f'objective={objective!r} is unknown: use last or all')
    if v**size <= num_samples and entropies.summable(grammar, size):
        return _whole_reference(grammar, size, objective)
    number = entropies.affordable(grammar, size * (2 if objective == 'all' else 1), num_samples)
    number = min(
        number, max(entropies.FEWEST_CONTEXTS, _REFERENCE_ENTRIES // (v * (size if objective == 'all' else 1)))
    )
    inputs = entropies.sample_contexts(grammar, size, number, seed)
    if objective == 'last':
        return Reference(inputs, next_token_probs(grammar, inputs).cpu(), None)
    leaves = torch.cat((inputs, torch.zeros_like(inputs[:, :1])), 1)  # the last token conditions nothing
    return Reference(inputs, all_next_token_probs(grammar, leaves)[:, 1:].cpu(), None)


def _whole_reference(grammar: TreeGrammar, size: int, objective: str) -> Reference:
    joint = entropies.window_distribution(grammar, size + 1)
    weights = joint.flatten(0, size - 1).sum(1)
    possible = torch.nonzero(weights).flatten()
    inputs = torch.stack(torch.unravel_index(possible, (grammar.v,) * size), dim=1)
    posteriors = []
    for seen in range(size, 0, -1):
        given = joint[tuple(inputs[:, :seen].unbind(1))]
        posteriors.append(given / given.sum(1, keepdim=True))
        if objective == 'last':
            break
        joint = joint.sum(-1)
    stacked = posteriors[0] if objective == 'last' else torch.stack(posteriors[::-1], dim=1)
    return Reference(inputs, stacked, weights[possible])


def bayes_floor(grammar: TreeGrammar, objective: str = 'last', num_samples: int = 4096) -> Estimate:
    """The lowest loss that any model can have on an objective, in nats, and its standard error.

    For 'last' `H(x_n | x_1..x_{n-1})`; for 'all' the mean over i = 2..n of `H(x_i | x_1..x_{i-1})`.
    """
    if objective == 'last':
        return entropies.entropy(grammar, num_samples)
    return reference(grammar, None, objective, num_samples).floor()


def excess_loss(
    model: nn.Module,
    grammar: TreeGrammar,
    context_size: int | None = None,
    objective: str = 'last',
    num_samples: int = 4096,
    logits: Logits = apply_model,
) -> Estimate:
    """`E KL(Bayes || model)`: by how much the model's loss exceeds the lowest possible one, and its standard error.

    The mean over contexts of exact divergences: exact (error 0) where all contexts are summed over, as for L = 1. The
    model sees the last `context_size` tokens (n - 1 by default) and is compared with the best predictor that does.
    """
    return reference(grammar, context_size, objective, num_samples).to(_device(model)).divergence(model, logits)


def divergence_from_window(
    model: nn.Module, grammar: TreeGrammar, k: int, num_samples: int = 4096, logits: Logits = apply_model
) -> Estimate:
    """`E KL(P(x_n | last k tokens) || model)`, the model seeing all n - 1 tokens, and its standard error, in nats.

    Zero for the best predictor from k tokens: along a training run, the k with the smallest divergence says which level
    of the tree the model has reached. Raises ValueError for k outside 0..n-1.
    """
    entropies.check_window(grammar, k)
    whole = reference(grammar, None, 'last', num_samples)
    seen = whole.inputs[:, whole.inputs.shape[1] - k :]
    posteriors = next_token_probs(grammar, seen).cpu()
    return Reference(whole.inputs, posteriors, whole.weights).to(_device(model)).divergence(model, logits)


def _device(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for a predictor without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device('cpu'))
