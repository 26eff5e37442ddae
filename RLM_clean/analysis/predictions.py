"""What the models of a run predict, compared with the best possible prediction: by step, by level, and in examples.

`q(x_n | context)` is the model's distribution of the last token, and `P(x_n | context)` the exact one given the tokens
that the model sees. Averages run over contexts of the stream 'floors', on which no run is trained, or over all contexts
if there are few of them (see `measures.reference`). Losses and divergences are in nats.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from RLM_clean import init, measures
from RLM_clean.exact import entropies
from RLM_clean.exact.entropies import Estimate, mean_and_error
from RLM_clean.exact.inference import next_token_probs, spine_posteriors
from RLM_clean.measures import Reference, kl_divergence
from RLM_clean.runs.run import Run

# Sequences times tokens in one forward pass: bounds its memory.
_TOKENS_PER_PASS = 2**15
# Numbers in the channels between the ancestors of a chunk of contexts (8 bytes each).
_CHANNEL_ENTRIES = 2**23
# A table shows this many of the last tokens of a context.
_SHOWN_TOKENS = 8


# ---------------------------------------------------------------------- the models of a run


def model_steps(run: Run, count: int | None = None) -> list[int]:
    """The steps whose weights are available, in order; with `count`, at most that many, first and last included.

    These are the steps with a checkpoint, the last one of a finished run, and 0, where the weights are a function of
    the options. Checkpoints are spaced by factors, and so are the steps that `count` keeps.
    """
    last = [run.dynamics[-1]['t']] if run.done else []
    steps = sorted({0, *run.steps, *last})
    if count is None or count >= len(steps):
        return steps
    return [steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)]


def model_at(run: Run, step: int) -> nn.Module:
    """The model at one of `model_steps(run)`, in eval mode. Raises ValueError for a step without weights."""
    if step == 0 and 0 not in run.steps:
        return init.init_model(run.config).eval()
    return run.model(step)


@torch.no_grad()
def predict(run: Run, model: nn.Module, inputs: Tensor) -> Tensor:
    """`q(x_n | context)`, the model's distribution of the token after the last input, `(N, v)` float64.

    `inputs (N, T)` are token indices, T the number of tokens that the run's model sees. Raises ValueError for a run
    that predicts something else than the next token.
    """
    check_next_token(run)
    found = []
    for x in inputs.split(max(1, _TOKENS_PER_PASS // inputs.shape[1])):
        logits = run.logits(model, x)
        found.append(torch.softmax((logits[:, -1] if run.config.objective == 'all' else logits).double(), -1))
    return torch.cat(found)


def check_next_token(run: Run) -> None:
    """Raises ValueError for a run that predicts something else than the next token."""
    if run.task.whole:
        raise ValueError(
            f'objective={run.config.objective!r} does not predict the next token: compare run.logits with run.task.best'
        )


def _reference(run: Run, num_samples: int) -> Reference:
    """Contexts and the exact distribution of x_n; all contexts of one token, so that q is a whole matrix."""
    check_next_token(run)
    size = run.config.context_size
    return measures.reference(run.rlm, size, 'last', max(num_samples, run.rlm.v) if size == 1 else num_samples)


# ---------------------------------------------------------------------- the film


@dataclass
class Film:
    """The conditional distribution at several steps of a run, beside the exact one.

    Attributes:
        steps: the steps, S of them.
        contexts: the tokens that the model sees, `(N, T)`; contexts of probability zero are left out.
        best: `P(x_n | context)`, `(N, v)`.
        model: `q(x_n | context)` at each step, `(S, N, v)`.
    """

    steps: list[int]
    contexts: Tensor
    best: Tensor
    model: Tensor


def film(run: Run, count: int = 4, num_contexts: int = 256) -> Film:
    """The model's distributions of x_n at `count` steps of a run, in `num_contexts` contexts, or in all if fewer.

    For contexts of one token (L = 1) it takes all of them: `film.model[s]` is the matrix q(x_2 | x_1), and its row i is
    the one of x_1 = `film.contexts[i, 0]`. A token that never comes first, which an RHM can have, has no row.
    """
    steps, reference = model_steps(run, count), _reference(run, num_contexts)
    model = torch.stack([predict(run, model_at(run, step), reference.inputs) for step in steps])
    return Film(steps, reference.inputs, reference.posteriors, model)


# ---------------------------------------------------------------------- which level has been learnt when


def window_divergences(
    run: Run, steps: Iterable[int] | None = None, ks: Iterable[int] | None = None, num_samples: int = 1024
) -> dict[int, list[Estimate]]:
    """`{k: [E KL(P(x_n | last k tokens) || q) and its standard error, for each step]}`, in nats.

    The curve of k is zero where the model is the best predictor from the last k tokens, and it rises again when the
    model learns to use more tokens. Each of the windows k = 0, 1, 3, 7, ... (the default) completes one more level of
    the tree, so the k of the lowest curve says how many tokens the model uses. `steps` are all of `model_steps` by
    default. Raises ValueError for a k outside 0..context_size.

    `measures.divergence_from_window` measures one model; here the posteriors are computed once for all steps.
    """
    size = run.config.context_size
    ks = entropies.window_ladder(size) if ks is None else list(ks)
    for k in ks:
        if not 0 <= k <= size:
            raise ValueError(f'k={k} is not a valid window of a context of {size} tokens: use 0 to {size}')
    whole = _reference(run, num_samples)
    windows = {k: next_token_probs(run.rlm, whole.inputs[:, size - k :]) for k in ks}
    found: dict[int, list[Estimate]] = {k: [] for k in ks}
    for step in model_steps(run) if steps is None else steps:
        log_q = predict(run, model_at(run, step), whole.inputs).log()
        for k, posteriors in windows.items():
            found[k].append(mean_and_error(kl_divergence(posteriors, log_q), whole.weights))
    return found


# ---------------------------------------------------------------------- level by level


@dataclass
class AncestorBeliefs:
    """What a run's predictions imply about each ancestor of x_n: see `ancestor_beliefs`. Levels l = 0..L.

    Attributes:
        steps: the steps, S of them.
        accuracy: `A_l` at each step, `(S, L + 1)`.
        best_accuracy: the `A_l` of the exact posterior, the highest there can be, `(L + 1,)`.
        divergence: `D_l` at each step in nats, `(S, L + 1)`.
        error: the standard errors of `divergence`; 0 if the average runs over all contexts.
    """

    steps: list[int]
    accuracy: Tensor
    best_accuracy: Tensor
    divergence: Tensor
    error: Tensor


def ancestor_beliefs(run: Run, steps: Iterable[int] | None = None, num_samples: int = 512) -> AncestorBeliefs:
    """What a run's predictions of x_n imply about its ancestors: the root a_0, ..., the parent a_(L-1), a_L = x_n.

    A prediction q of x_n implies a belief about each ancestor. If q is right about x_n, and exact inference is used for
    all else, the distribution of the ancestor on level l is (R. C. Jeffrey's rule of conditioning)

        w_l(a) = sum_x q(x | context) P(a_l = a | context, x_n = x),

    which is the exact posterior `P(a_l | context)` if q is the exact prediction. At each level this measures

        A_l = E P(a_l = argmax_a w_l(a) | context),   how often the likeliest ancestor is the true one,
        D_l = E KL(P(a_l | context) || w_l),          the divergence of the belief.

    `A_L` is the accuracy of the prediction. At each level `A_l` is at most that of the exact posterior,
    `E max_a P(a_l = a | context)`. `D_L` is the excess. Given the context, the chain from x_n to its parent and on to
    the root is Markov, so that `D_L >= D_(L-1) >= ... >= D_0 >= 0`: by the chain rule of divergences, `D_l` is the part
    of the excess that is an error about the ancestor on level l, and the rest is an error about what lies below it.

    The expectation over the true ancestor in A_l is exact in each context, not sampled. For a token that cannot follow
    the context, `P(a_l = a | context)` takes the place of `P(a_l = a | context, x_n = x)`.
    """
    steps = model_steps(run) if steps is None else list(steps)
    reference, L = _reference(run, num_samples), run.rlm.L
    q = torch.stack([predict(run, model_at(run, step), reference.inputs) for step in steps])
    accuracy, best, divergence = [], [], []
    rows = max(1, _CHANNEL_ENTRIES // (L * run.rlm.v**2))
    for inputs, belief in zip(reference.inputs.split(rows), q.split(rows, dim=1), strict=True):
        posteriors, channels = spine_posteriors(run.rlm, inputs)
        beliefs = [belief]
        for l in reversed(range(L)):
            beliefs.append(torch.einsum('src,rca->sra', beliefs[-1], channels[:, l]))
        w = torch.stack(beliefs[::-1], 2)  # (S, R, L + 1, v)
        p = posteriors.expand_as(w)
        accuracy.append(p.gather(-1, w.argmax(-1, keepdim=True))[..., 0])
        best.append(posteriors.amax(-1))
        divergence.append(kl_divergence(p, w.log()))
    all_divergences, number = torch.cat(divergence, 1), len(reference.inputs)
    sampled = reference.weights is None
    weights = torch.full((number,), 1 / number, dtype=torch.float64) if reference.weights is None else reference.weights
    spread = all_divergences.std(1) / number**0.5 if sampled else torch.zeros(len(steps), L + 1, dtype=torch.float64)
    return AncestorBeliefs(
        steps,
        torch.einsum('r,srl->sl', weights, torch.cat(accuracy, 1)),
        weights @ torch.cat(best),
        torch.einsum('r,srl->sl', weights, all_divergences),
        spread,
    )


def level_names(L: int) -> list[str]:
    """The names of the levels 0..L as seen from x_n: 'root', ..., 'grandparent', 'parent', 'x_n'."""
    upwards = ['x_n', 'parent', 'grandparent', *(f'ancestor {i}' for i in range(3, L))]
    return ['root', *upwards[:L][::-1]]


# ---------------------------------------------------------------------- examples


@dataclass
class Table:
    """Rows of text under a header. Aligned text where it is printed, an HTML table where a notebook shows it."""

    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return '\n'.join('   '.join(line).rstrip() for line in cells)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        style = 'style="text-align: left; white-space: pre; font-variant-numeric: tabular-nums"'
        header = ''.join(f'<th {style}>{html.escape(cell)}</th>' for cell in self.header)
        rows = [''.join(f'<td {style}>{html.escape(cell)}</td>' for cell in row) for row in self.rows]
        return '\n'.join(('<table>', *(f'<tr>{row}</tr>' for row in (header, *rows)), '</table>'))


def prediction_table(run: Run, step: int | None = None, number: int = 8, top: int = 5) -> Table:
    """Some test sequences: the context, the true x_n, and the likeliest tokens of the model and of the best predictor.

    One row per sequence: the last tokens of the context; the true x_n with the probability that the model and the best
    predictor give it; `KL(P || q)` in nats; the `top` likeliest tokens of the model and of the best predictor with
    their probabilities, the true one marked by a star. The model is the one at `step`, by default the last.
    """
    check_next_token(run)
    step = model_steps(run)[-1] if step is None else step
    inputs, targets = run.test_batch(step)
    inputs, targets = inputs[:number], targets[:number]
    targets = targets[:, -1] if targets.dim() == 2 else targets
    q, p = predict(run, model_at(run, step), inputs), next_token_probs(run.rlm, inputs)
    divergences = kl_divergence(p, q.log())
    width = len(str(run.rlm.v - 1))
    rows = []
    for context, truth, q_row, p_row, divergence in zip(inputs, targets.tolist(), q, p, divergences, strict=True):
        tokens = ' '.join(f'{token:{width}d}' for token in context[-_SHOWN_TOKENS:].tolist())
        dots = '... ' if len(context) > _SHOWN_TOKENS else ''
        of_truth = [f'{row[truth]:.3f}' for row in (q_row, p_row)]
        likeliest = [_likeliest(row, truth, top, width) for row in (q_row, p_row)]
        rows.append([dots + tokens, str(truth), *of_truth, f'{divergence:.3f}', *likeliest])
    header = ['context', 'x_n', 'model', 'best', 'KL', f'likeliest {top} of the model', f'likeliest {top} of the best']
    return Table(header, rows)


def _likeliest(row: Tensor, truth: int, top: int, width: int) -> str:
    probs, tokens = row.topk(min(top, len(row)))
    pairs = zip(tokens.tolist(), probs.tolist(), strict=True)
    return ' '.join(f'{"*" if token == truth else " "}{token:{width}d} {prob:.2f}' for token, prob in pairs)
