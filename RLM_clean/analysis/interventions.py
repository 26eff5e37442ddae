"""Interventions: the residual stream of a transformer is changed in a layer.

The change of the model's prediction is compared with the change of the exact posterior.

`steering_effects` moves the residual stream along the probe of a hidden symbol, from symbol a to symbol b. The exact
counterpart is the posterior of x_n given that the symbol is b (see counterfactuals.py). `interchange` replaces the
residual stream at the last position by that of another context, the donor. The exact counterpart is the posterior of
x_n for the context whose last k tokens are the donor's. Divergences are in nats.

Interventions along linear probes: N. Nanda, A. Lee and M. Wattenberg, BlackboxNLP 2023 (arXiv:2309.00941). Interchange
interventions, compared with a causal model: A. Geiger, H. Lu, T. Icard and C. Potts, NeurIPS 2021 (arXiv:2106.02997).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from RLM_clean.analysis.counterfactuals import Node, counterfactual_probs, node_law
from RLM_clean.analysis.layers import activations, layer_names, patched_logits
from RLM_clean.analysis.predictions import check_next_token, model_at, model_steps, predict
from RLM_clean.analysis.probes import L2, Probe, fit_probe, node_evidence
from RLM_clean.exact import entropies
from RLM_clean.exact.inference import evidence_log_likelihood, next_token_probs, node_posteriors
from RLM_clean.measures import kl_divergence
from RLM_clean.models import CLM
from RLM_clean.runs.run import Run
from RLM_clean.streams import seeded_generator

# Smaller probabilities count as this one in changes of ln P(x_n): those of an RHM can be zero.
LEAST = 1e-3
# The groups of contexts whose correlations have a spread.
_GROUPS = 16


# ---------------------------------------------------------------------- steering along a probe


def steer(probe: Probe, features: Tensor, a: Tensor, b: Tensor, strength: float = 1.0) -> Tensor:
    """Features `(N, d)` moved by the least amount that exchanges the probe's odds of symbols a and b: `(N, d)` float64.

    A context with symbol a becomes one of symbol b: after the change the probe gives b the advantage over a that a had
    over b. With f the logits of the probe, w their weights in its whitened coordinates z, and `a, b (N,)`,

        dz = 2 (f_a - f_b) (w_b - w_a) / |w_b - w_a|^2   if f_a > f_b, else 0,

    times `strength`. This mirrors z in the plane f_a = f_b. Of all changes that exchange the odds it has the smallest
    norm in z, in which each direction is measured in standard deviations of the features (the Mahalanobis norm). In the
    features themselves, of covariance S and with weights W, it is the direction `S (W_b - W_a)`, whatever their basis.
    """
    dz = strength * whitened_step(probe, features, a, b)
    return features.double() + dz @ torch.linalg.pinv(probe.whitening)


def whitened_step(probe: Probe, features: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The step dz of `steer` in the whitened coordinates of the probe, `(N, rank)`."""
    f, rows = probe.log_probs(features), torch.arange(len(features), device=features.device)
    weight = torch.linalg.pinv(probe.whitening) @ probe.weight
    direction = (weight[:, b] - weight[:, a]).T
    gap = (f[rows, a] - f[rows, b]).clamp(min=0)[:, None]
    square = direction.square().sum(1, keepdim=True)
    return 2 * gap * direction / square.where(square > 0, 1)


class Values(NamedTuple):
    """A quantity in each layer for each node, `(K, J)`, and its standard error."""

    value: Tensor
    error: Tensor


@dataclass
class Steering:
    """What steering to another symbol does to a model's prediction of x_n: see `steering_effects`. K layers, J nodes.

    The conditions are 'steered', and 'random' for the control.

    Attributes:
        layers: the names of the layers.
        nodes: (l, i) for node i of level l, both from 0.
        number: in how many contexts each node can have another symbol, `(J,)`.
        divergence: {condition: `E KL(counterfactual posterior of x_n || model)`} in nats, 'unsteered' too: the model as
            it is.
        effect: {condition: `1 - divergence / unsteered divergence`}: 0 for a change that brings the prediction no
            closer to the counterfactual one, 1 for one that reaches it, below 0 for one that leads away.
        correlation: {condition: the correlation of the changes of ln P(x_n) by exact inference and by the model}, over
            contexts and symbols x_n. Probabilities below 0.001 count as 0.001.
        change: {condition: the mean total variation distance `E sum_x |P'(x) - P(x)| / 2` between the predictions after
            and before}, and 'exact': that of the exact posteriors, the same in all layers.
        distance: the mean length of the steps at the last position, in standard deviations of the features, `(K, J)`.
    """

    layers: list[str]
    nodes: list[Node]
    number: Tensor
    divergence: dict[str, Values]
    effect: dict[str, Values]
    correlation: dict[str, Values]
    change: dict[str, Values]
    distance: Tensor


def left_siblings(L: int) -> list[Node]:
    """The left siblings of x_n and of the nodes above it, levels 1 to L: x_n depends on its context through them."""
    return [(l, 2**l - 2) for l in range(1, L + 1)]


def steering_effects(
    run: Run,
    step: int | None = None,
    nodes: Sequence[Node] | None = None,
    num_train: int = 4096,
    num_test: int = 2048,
    strength: float = 1.0,
    l2: float = L2,
    seed: int = 0,
) -> Steering:
    """Steers a transformer from one hidden symbol to another, in each layer, for each of the nodes.

    For each of `num_test` contexts of the stream 'test', a is the likeliest symbol of the node, and b another one,
    drawn from what the rest of the sequence allows (`node_law`). The residual stream after the layer is moved by
    `steer` at every position from the first token below the node on, each along a probe of its own, as those of
    `probes.probe_nodes`: these are the positions that can know something of the node, from which later layers read. The
    probes are fitted on `num_train` contexts of the stream 'other'. The model's new prediction of x_n is compared with
    the exact one for node = b (`counterfactual_probs`).

    The control moves each vector in a random direction, by the same length in whitened coordinates. Contexts in which
    the node can have no other symbol are left out.

    `nodes` are `left_siblings` by default. Raises ValueError for a run that does not predict the next token, a model
    that is not a transformer of the library, and nodes below which no token is seen or that have one symbol alone.
    """
    check_next_token(run)
    model = model_at(run, model_steps(run)[-1] if step is None else step)
    if not isinstance(model, CLM):
        raise ValueError(f'model={run.config.model!r} has no residual stream to steer: use a transformer')
    chosen = left_siblings(run.rlm.L) if nodes is None else list(nodes)
    fit, test = (_contexts(run, number, stream) for stream, number in (('other', num_train), ('test', num_test)))
    posteriors, features = node_posteriors(run.rlm, node_evidence(run, fit)), activations(run, model, fit, None)
    generator = seeded_generator(seed)
    rows = []
    for l, i in chosen:
        first = _first_position(run, (l, i))
        inputs, a, b = _symbols(run, test, (l, i), generator)
        exact = (next_token_probs(run.rlm, inputs), counterfactual_probs(run.rlm, inputs, (l, i), b))
        before = predict(run, model, inputs)
        for layer, stream in activations(run, model, inputs, None).items():
            moved = {'steered': stream.clone(), 'random': stream.clone()}
            for t in range(first, stream.shape[1]):
                probe = fit_probe(features[layer][:, t], posteriors[l][:, i], run.rlm.v, l2)
                dz = strength * whitened_step(probe, stream[:, t], a, b)
                noise = torch.randn(dz.shape, generator=generator, dtype=torch.float64)
                noise *= (dz.norm(dim=1) / noise.norm(dim=1))[:, None]
                for name, change in (('steered', dz), ('random', noise)):
                    moved[name][:, t] += (change @ torch.linalg.pinv(probe.whitening)).float()
            after = {name: _patched_prediction(run, model, inputs, layer, new, None) for name, new in moved.items()}
            rows.append({**_compared(exact, before, after), 'distance': (dz.norm(dim=1).mean(), torch.zeros(()))})
            rows[-1]['number'] = (torch.tensor(len(inputs)), torch.zeros(()))
    return _collected(layer_names(model), chosen, rows)


def _contexts(run: Run, number: int, stream: str) -> Tensor:
    return run.task.batches(run.rlm, run.config.window, 0, 1, number, stream)[0][0]


def _first_position(run: Run, node: Node) -> int:
    """The first input position that holds a token below the node."""
    n, size, (level, place) = 2**run.rlm.L, run.config.context_size, node
    width = n >> level
    first = max(0, place * width - (n - 1 - size))
    if (place + 1) * width <= n - 1 - size or first >= size:
        raise ValueError(f'node={node} has no token below it that the model sees: use another node')
    return first


def _symbols(run: Run, inputs: Tensor, node: Node, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The contexts in which a node can have another symbol than its likeliest one, a; a, and another one, b."""
    law = node_law(run.rlm, inputs, node)
    a = node_posteriors(run.rlm, node_evidence(run, inputs))[node[0]][:, node[1]].argmax(1)
    others = law.scatter(1, a[:, None], 0.0)
    possible = others.sum(1) > 0
    if possible.sum() < _GROUPS:
        raise ValueError(f'node={node} can have another symbol in {int(possible.sum())} contexts: use another node')
    return inputs[possible], a[possible], torch.multinomial(others[possible], 1, generator=generator)[:, 0]


def _patched_prediction(run: Run, model: CLM, inputs: Tensor, layer: str, new: Tensor, position: int | None) -> Tensor:
    """`q(x_n)` of the patched model, `(N, v)` float64."""
    logits = patched_logits(run, model, inputs, layer, new, position)
    return torch.softmax((logits[:, -1] if logits.dim() == 3 else logits).double(), -1)


# ---------------------------------------------------------------------- measures of a change

_Row = dict[str, tuple[Tensor, Tensor]]


def _compared(exact: tuple[Tensor, Tensor], before: Tensor, after: dict[str, Tensor]) -> _Row:
    """The measures of `Steering` for one layer and node, {'measure condition': (value, error)}.

    `exact` are the posteriors before and after the change.
    """
    unsteered = kl_divergence(exact[1], before.log())
    found = {'divergence unsteered': _mean(unsteered), 'change exact': _mean(_variation(*exact))}
    for name, q in after.items():
        divergence = kl_divergence(exact[1], q.log())
        ratio = divergence.mean() / unsteered.mean()
        # The error of a ratio of means, to first order.
        spread = (divergence - ratio * unsteered).std() / unsteered.mean() / len(q) ** 0.5
        found[f'divergence {name}'] = _mean(divergence)
        found[f'effect {name}'] = (1 - ratio, spread)
        found[f'correlation {name}'] = _correlation(_log_change(*exact), _log_change(before, q))
        found[f'change {name}'] = _mean(_variation(before, q))
    return found


def _mean(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.std() / len(values) ** 0.5


def _ring_mean(values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of values of pairs on a ring, of which neighbours share a context, and its standard error.

    `kept (R,)` says which of the R pairs have a value. With d the deviations of N values from their mean,

        error^2 = (sum_r d_r^2 + 2 sum_r d_r d_(r+1)) / (N (N - 1)),

    the second sum over neighbours that both have a value: pairs further apart share nothing. It is left out where
    chance makes it negative, so that the error is never below that of independent pairs.
    """
    mean, error = _mean(values)
    deviations = values.new_zeros(len(kept)).masked_scatter(kept, values - mean)
    shared = 2 * (deviations * deviations.roll(-1)).sum() / (len(values) * (len(values) - 1))
    return mean, (error.square() + shared.clamp(min=0)).sqrt()


def _variation(p: Tensor, q: Tensor) -> Tensor:
    return (p - q).abs().sum(-1) / 2


def _log_change(p: Tensor, q: Tensor) -> Tensor:
    return q.clamp(min=LEAST).log() - p.clamp(min=LEAST).log()


def _correlation(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The correlation over all entries of `(N, v)`, and its error from the spread over groups of contexts."""

    def of(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(), y - y.mean()
        norm = (x.square().sum() * y.square().sum()).sqrt()
        return (x * y).sum() / norm.where(norm > 0, 1)

    groups = torch.stack([of(*pair) for pair in zip(x.tensor_split(_GROUPS), y.tensor_split(_GROUPS), strict=True)])
    return of(x, y), groups.std() / _GROUPS**0.5


def _collected(layers: list[str], nodes: list[Node], rows: list[_Row]) -> Steering:
    """Rows of all layers of the first node, then of the second one, ... as tables `(K, J)`."""

    def table(name: str) -> Values:
        pairs = zip(*(row[name] for row in rows), strict=True)
        return Values(*(torch.stack(column).view(len(nodes), len(layers)).T for column in pairs))

    def tables(measure: str, *conditions: str) -> dict[str, Values]:
        return {condition: table(f'{measure} {condition}') for condition in conditions}

    return Steering(
        layers,
        nodes,
        table('number').value[0],
        tables('divergence', 'unsteered', 'steered', 'random'),
        tables('effect', 'steered', 'random'),
        tables('correlation', 'steered', 'random'),
        tables('change', 'exact', 'steered', 'random'),
        table('distance').value,
    )


# ---------------------------------------------------------------------- the residual stream of another context


@dataclass
class Interchange:
    """The prediction with the residual stream of another context at the last position: see `interchange`.

    Attributes:
        layers: the names of the layers, K of them.
        windows: how many of the last tokens come from the donor in the exact prediction: 0, 1, 3, 7, ..., all.
        number: the pairs of contexts for which all these mixtures have a probability above zero.
        divergence: `E KL(P(x_n | mixture) || patched model)` in nats, and its standard error, `(K, windows)`: with the
            covariance of neighbouring pairs, which share a context.
    """

    layers: list[str]
    windows: list[int]
    number: int
    divergence: Values


def interchange(run: Run, step: int | None = None, num_pairs: int = 2048) -> Interchange:
    """Patches the residual stream of a donor into a context at the last position, after each layer.

    The patched model predicts from the donor what the last position has gathered in the layer, and from the context
    what later layers read at the other positions. If the last k tokens have been gathered, its prediction is

        P(x_n | x_1, ..., x_(n-1-k), x'_(n-k), ..., x'_(n-1)),

    the exact one for the context x whose last k tokens are those of the donor x'. k = 0 is the context itself, and the
    largest k the donor, which the last layer always predicts: there the divergence is the excess of the model. The
    window of the lowest curve says how much of the context has arrived at the last position.

    Contexts are those of the stream 'test', the donor of each is the next one (that of the last one is the first), and
    pairs with a mixture of probability zero, as an RHM has, are left out. Raises ValueError as `steering_effects` does.
    """
    check_next_token(run)
    model = model_at(run, model_steps(run)[-1] if step is None else step)
    if not isinstance(model, CLM):
        raise ValueError(f'model={run.config.model!r} has no residual stream to replace: use a transformer')
    inputs, size = _contexts(run, num_pairs, 'test'), run.config.context_size
    donors, windows = inputs.roll(-1, 0), entropies.window_ladder(size)
    mixtures = torch.stack([torch.cat((inputs[:, : size - k], donors[:, size - k :]), 1) for k in windows])
    evidence = [node_evidence(run, mixture) for mixture in mixtures]
    possible = torch.stack([evidence_log_likelihood(run.rlm, seen) > -torch.inf for seen in evidence]).all(0)
    if possible.sum() < 2:
        raise ValueError(f'num_pairs={num_pairs} leaves no pair whose mixtures are possible: use more')
    inputs, donors = inputs[possible], donors[possible]
    exact = [next_token_probs(run.rlm, mixture[possible]) for mixture in mixtures]
    rows = []
    for layer, stream in activations(run, model, donors).items():
        log_q = _patched_prediction(run, model, inputs, layer, stream, -1).log()
        rows.append([_ring_mean(kl_divergence(p, log_q), possible) for p in exact])
    values, errors = ([[pair[part] for pair in row] for row in rows] for part in (0, 1))
    divergence = Values(torch.tensor(values, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64))
    return Interchange(layer_names(model), windows, len(inputs), divergence)
