"""Inside a model: what its layers know about the hidden symbols above x_n, and where its attention looks.

A linear probe predicts an ancestor of x_n from the activations at the last input position, by multinomial logistic
regression. The best possible probe is known exactly: the posterior of the ancestor given the tokens that the model
sees. Divergences and entropies are in nats.

G. Alain and Y. Bengio, Understanding intermediate layers using linear classifier probes, arXiv:1610.01644 (2016); for
controls, J. Hewitt and P. Liang, EMNLP 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.analysis.predictions import model_at, model_steps
from RLM_clean.exact import entropies
from RLM_clean.exact.inference import spine_posteriors
from RLM_clean.measures import kl_divergence
from RLM_clean.models import CLM, MLP
from RLM_clean.models.transformer import Block
from RLM_clean.runs.run import Run
from RLM_clean.streams import random_permutation, stream_key

# The penalty on the squared weights of a probe. It has no unit, because they act on whitened activations.
L2 = 1e-3
# Directions whose variance is below this fraction of the largest one are rounding errors.
_LEAST_VARIANCE = 1e-10
# A fit ends when all entries of the gradient (nats) are smaller, or after this many iterations.
_GRADIENT = 1e-5
_MAX_ITERATIONS = 300
# Sequences times tokens in one forward pass, and numbers in one chunk of posteriors (8 bytes each), to bound memory.
_TOKENS_PER_PASS = 2**15
_POSTERIOR_ENTRIES = 2**23
# The index of the permutation of the shuffled control in the stream 'other'.
_SHUFFLE_INDEX = 1


# ---------------------------------------------------------------------- inside a model


@torch.no_grad()
def activations(run: Run, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The activations of each layer at the last input position, {name: `(N, d)` float32}, for tokens `(N, T)`.

    For a transformer they are the residual stream: 'embeddings', 'block 1', 'block 2', ..., of which the head reads the
    last one through a norm. For a fully connected network, which has no positions, they are the hidden layers:
    'layer 1', ... Raises ValueError for any other model.
    """
    parts = [_activations(run, model, _model_inputs(run, x)) for x in _passes(inputs)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _activations(run: Run, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found = {}
    if isinstance(model, MLP):
        if not x.is_floating_point():
            x = torch.nn.functional.one_hot(x, model.vocab_size).float()
        x = x.flatten(1)
        for i, layer in enumerate(model.hidden, 1):
            found[f'layer {i}'] = x = torch.relu(layer(x))
        return found
    if not isinstance(model, CLM):
        raise ValueError(
            f'the layers of model={run.config.model!r} are not known: use a transformer or fcn, '
            'or probes.fit_probe on activations of your own'
        )
    x = model.embed(x)
    found['embeddings'] = x[:, -1]
    for i, block in enumerate(model.blocks, 1):
        x, _ = block(x)
        found[f'block {i}'] = x[:, -1]
    return found


@torch.no_grad()
def attention_weights(run: Run, model: nn.Module, inputs: Tensor) -> Tensor:
    """Where each head looks: `(depth, N, H, T, T)`, whose `[l, r, h, i, j]` is the weight of token j for query i,

        softmax_j(q_i . k_j / sqrt(d / H)),   j <= i,

    so that rows sum to one and no query looks ahead. `inputs (N, T)` are token indices. A model that predicts x_n alone
    uses only the last row of its last block. Raises ValueError for a model that is not a transformer of the library.
    """
    if not isinstance(model, CLM):
        raise ValueError(f'model={run.config.model!r} has no known attention: use transformer_mlm or transformer_clm')
    x, maps = model.embed(_model_inputs(run, inputs)), []
    ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    for block in model.blocks:
        assert isinstance(block, Block)
        heads = (-1, block.attention.num_heads)
        q, k, _ = block.attention.qkv(block.norm_1(x)).chunk(3, dim=-1)
        q, k = (y.unflatten(-1, heads[::-1]).transpose(1, 2) for y in (q, k))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        maps.append(scores.masked_fill(ahead, -torch.inf).softmax(-1))
        x, _ = block(x)
    return torch.stack(maps)


def _model_inputs(run: Run, inputs: Tensor) -> Tensor:
    return init.transform_inputs(inputs, run.rlm.v, run.config.input_format, run.config.whitening)


def _passes(inputs: Tensor) -> tuple[Tensor, ...]:
    return inputs.split(max(1, _TOKENS_PER_PASS // inputs.shape[1]))


# ---------------------------------------------------------------------- a linear probe


@dataclass
class Probe:
    """A linear classifier: logits `(x - center) @ weight + bias`, in float64."""

    center: Tensor
    weight: Tensor
    bias: Tensor

    def log_probs(self, features: Tensor) -> Tensor:
        """`ln q(class | features)`, `(N, classes)`, from `(N, d)`."""
        return torch.log_softmax((features.double() - self.center) @ self.weight + self.bias, -1)


def fit_probe(features: Tensor, targets: Tensor, num_classes: int, l2: float = L2) -> Probe:
    """Multinomial logistic regression from `features (N, d)` to classes: the minimum of a convex function,

        -(1/N) sum_r sum_a p_r(a) ln q_r(a) + (l2/2) |W|^2,     q_r = softmax(z_r W + b).

    `targets` are classes `(N,)` or distributions over them `(N, num_classes)`; p_r is one-hot for a class. The features
    are whitened first: z has mean zero and unit covariance, and directions without variance are left out. The probe
    therefore does not depend on the basis and the scale of the features. The penalty on the weights corresponds to the
    prior N(0, 1/(N l2)) of each of them; the biases b have none.

    The minimum is found by full-batch L-BFGS from zero weights, without randomness (D. C. Liu and J. Nocedal, Math.
    Program. 45, 503, 1989). Raises ValueError for sizes that do not fit.
    """
    if len(features) != len(targets) or len(features) < 2:
        raise ValueError(f'{len(features)} features do not fit {len(targets)} targets: give as many, 2 or more')
    if targets.dim() == 1:
        targets = torch.nn.functional.one_hot(targets, num_classes)
    if targets.shape[1] != num_classes:
        raise ValueError(f'targets over {targets.shape[1]} classes do not fit num_classes={num_classes}')
    x, p = features.double(), targets.double()
    center = x.mean(0)
    whitening = _whitening(x - center)
    z = (x - center) @ whitening
    weight = torch.zeros(z.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias = p.mean(0).clamp(min=1e-9).log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MAX_ITERATIONS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn='strong_wolfe',
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_q = torch.log_softmax(z @ weight + bias, -1)
        value = -(p * log_q).sum() / len(p) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(center, whitening @ weight.detach(), bias.detach())


def _whitening(x: Tensor) -> Tensor:
    """The matrix `(d, rank)` that makes the covariance of centred features the identity."""
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    kept = variances > _LEAST_VARIANCE * variances[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return directions[:, kept] / variances[kept].sqrt()


# ---------------------------------------------------------------------- the ancestors of x_n


@dataclass
class AncestorProbes:
    """Probes of the ancestors of x_n, layer by layer: see `probe_ancestors`. Levels l = 0..L, x_n itself the last.

    Attributes:
        layers: the names of the layers, K of them.
        accuracy: of the probes of the model, {'trained': `(K, L + 1)`, 'untrained': ..., 'shuffled': ...}.
        divergence: `E KL(exact posterior || probe)` in nats, the same keys and shapes.
        error: the standard errors of `divergence`.
        best_accuracy: of the exact posterior, `(L + 1,)`.
        entropy: of the exact posterior, `(L + 1,)`; the cross-entropy of a probe is the sum of this and its divergence.
        windows: {k: `E KL(exact posterior || posterior given the last k tokens)`, `(L + 1,)`}: the least divergence for
            a layer that depends on the last k tokens alone.
    """

    layers: list[str]
    accuracy: dict[str, Tensor]
    divergence: dict[str, Tensor]
    error: dict[str, Tensor]
    best_accuracy: Tensor
    entropy: Tensor
    windows: dict[int, Tensor]


def probe_ancestors(
    run: Run, step: int | None = None, num_train: int = 4096, num_test: int = 2048, l2: float = L2, seed: int = 0
) -> AncestorProbes:
    """Linear probes of each ancestor of x_n in each layer of a run's model, with two controls.

    A probe is fitted to the activations at the last input position on `num_train` contexts of the stream 'other', and
    measured on `num_test` contexts of the stream 'test'. Its targets are the exact posteriors `P(a_l | context)`, not
    sampled ancestors. The expectation over the hidden symbols is therefore exact, in the fit and in the measures

        accuracy E P(a_l = argmax_a q(a) | context),  divergence E KL(P(a_l | context) || q),

    with the same minimum as for sampled labels, and less noise. The posterior itself has the highest accuracy and
    divergence zero. The siblings x_n and x_(n-1) have the same ancestors.

    'trained' is the model at `step`, by default the last. There are two controls. 'untrained' is the model at step 0,
    which shows what random features contain. 'shuffled' is the trained model with targets that are permuted among the
    contexts of the fit, so that a probe can learn only the marginal of the ancestor, the window k = 0.
    """
    inputs = {'fit': _contexts(run, num_train, 'other'), 'test': _contexts(run, num_test, 'test')}
    posteriors = {name: _posteriors(run, x) for name, x in inputs.items()}
    order = random_permutation(stream_key(seed, 'other', _SHUFFLE_INDEX), num_train)
    model = model_at(run, model_steps(run)[-1] if step is None else step)
    conditions = {
        'trained': (model, posteriors['fit']),
        'untrained': (model_at(run, 0), posteriors['fit']),
        'shuffled': (model, posteriors['fit'][order]),
    }
    exact = posteriors['test']
    accuracy, divergence, error, layers = {}, {}, {}, []
    for name, (probed, targets) in conditions.items():
        fit, test = (activations(run, probed, x) for x in inputs.values())
        layers, log_q = list(fit), []
        for layer in layers:
            levels = [fit_probe(fit[layer], p, run.rlm.v, l2).log_probs(test[layer]) for p in targets.unbind(1)]
            log_q.append(torch.stack(levels, 1))
        scores = torch.stack(log_q)  # (K, N, L + 1, v)
        expanded = exact.expand_as(scores)
        accuracy[name] = expanded.gather(-1, scores.argmax(-1, keepdim=True))[..., 0].mean(1)
        divergences = kl_divergence(expanded, scores)
        divergence[name], error[name] = divergences.mean(1), divergences.std(1) / num_test**0.5
    entropy, size = torch.special.entr(exact).sum(-1).mean(0), run.config.context_size
    windows = {
        k: kl_divergence(exact, _posteriors(run, inputs['test'][:, size - k :]).log()).mean(0)
        for k in entropies.window_ladder(size)[:-1]
    }
    best = exact.amax(-1).mean(0)
    return AncestorProbes(layers, accuracy, divergence, error, best, entropy, windows)


def _contexts(run: Run, number: int, stream: str) -> Tensor:
    size = run.config.context_size
    return run.rlm.sequences(0, number, stream)[:, -1 - size : -1]


def _posteriors(run: Run, inputs: Tensor) -> Tensor:
    """The exact posteriors of x_n and its ancestors, `(N, L + 1, v)`."""
    rows = max(1, _POSTERIOR_ENTRIES // (run.rlm.L * run.rlm.v**2))
    return torch.cat([spine_posteriors(run.rlm, part)[0] for part in inputs.split(rows)])
