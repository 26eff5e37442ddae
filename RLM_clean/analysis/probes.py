"""What the layers of a model know about the hidden symbols of the tree: linear probes against exact posteriors.

A linear probe (linear_probe.py) predicts a symbol of the tree from the activations of a layer at one position: the
ancestors of x_n (`probe_ancestors`), or every node (`probe_nodes`). The best possible probe is known exactly: the
posterior of the symbol given what the model sees. Divergences and entropies are in nats.

G. Alain and Y. Bengio, Understanding intermediate layers using linear classifier probes, arXiv:1610.01644 (2016); for
controls, J. Hewitt and P. Liang, EMNLP 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from RLM_clean.analysis.layers import activations, attention_weights
from RLM_clean.analysis.linear_probe import L2, Probe, fit_probe
from RLM_clean.analysis.predictions import model_at, model_steps
from RLM_clean.exact import entropies
from RLM_clean.exact.inference import evidence_log_likelihood, node_posteriors, spine_posteriors
from RLM_clean.measures import kl_divergence
from RLM_clean.runs.run import Run
from RLM_clean.streams import random_permutation, stream_key
from RLM_clean.tasks import Denoise, Masked

__all__ = [
    'L2', 'AncestorProbes', 'NodeProbes', 'Probe', 'activations', 'attention_weights', 'evidence_posteriors',
    'fit_probe', 'node_evidence', 'probe_ancestors', 'probe_nodes',
]  # fmt: skip

# Numbers in one chunk of posteriors (8 bytes each), to bound memory.
_POSTERIOR_ENTRIES = 2**23
# A symbol about which the model sees less (nats) has nothing that a layer could hold a fraction of.
_LEAST_INFORMATION = 1e-4
# The index of the permutation of the shuffled control in the stream 'other'.
_SHUFFLE_INDEX = 1


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

    Raises ValueError for a run that does not predict the next token: `probe_nodes` probes it.
    """
    if run.task.whole:
        raise ValueError(f'objective={run.config.objective!r} has no x_n to predict: use probe_nodes')
    inputs = _Split(_contexts(run, num_train, 'other'), _contexts(run, num_test, 'test'))
    exact = _Split(*(_posteriors(run, x) for x in inputs))
    scores = _probe(run, step, inputs, exact, -1, l2, seed)
    entropy, size = torch.special.entr(exact.test).sum(-1).mean(0), run.config.context_size
    windows = {
        k: kl_divergence(exact.test, _posteriors(run, inputs.test[:, size - k :]).log()).mean(0)
        for k in entropies.window_ladder(size)[:-1]
    }
    best = exact.test.amax(-1).mean(0)
    return AncestorProbes(scores.layers, scores.accuracy, scores.divergence, scores.error, best, entropy, windows)


def _contexts(run: Run, number: int, stream: str) -> Tensor:
    size = run.config.context_size
    return run.rlm.sequences(0, number, stream)[:, -1 - size : -1]


def _posteriors(run: Run, inputs: Tensor) -> Tensor:
    """The exact posteriors of x_n and its ancestors, `(N, L + 1, v)`."""
    rows = max(1, _POSTERIOR_ENTRIES // (run.rlm.L * run.rlm.v**2))
    return torch.cat([spine_posteriors(run.rlm, part)[0] for part in inputs.split(rows)])


# ---------------------------------------------------------------------- every node


@dataclass
class NodeProbes:
    """Probes of every node of the tree, layer by layer: see `probe_nodes`.

    Attributes:
        layers: the names of the layers, K of them.
        nodes: (l, i) for node i of level l, both from 0: the root, the nodes of level 1 from left to right, ...; J
            nodes. Node i of level l is number `nodes.index((l, i))`.
        accuracy: of the probes of the model, {'trained': `(K, J)`, 'untrained': ..., 'shuffled': ...}.
        divergence: `E KL(exact posterior || probe)` in nats, the same keys and shapes.
        error: the standard errors of `divergence`.
        best_accuracy: of the exact posterior, `(J,)`.
        entropy: of the exact posterior in nats, `(J,)`.
        information: `E KL(exact posterior || marginal)` in nats, `(J,)`: what the model sees says of the symbol.
        positions: the input position that each probe reads, the same keys and shapes as `accuracy`, int64.
    """

    layers: list[str]
    nodes: list[tuple[int, int]]
    accuracy: dict[str, Tensor]
    divergence: dict[str, Tensor]
    error: dict[str, Tensor]
    best_accuracy: Tensor
    entropy: Tensor
    information: Tensor
    positions: dict[str, Tensor]

    def fraction(self, condition: str = 'trained') -> Tensor:
        """`1 - divergence / information`, `(K, J)`: how much of what can be known of each symbol a layer holds.

        One for a probe that is as good as exact inference, 0 for the marginal, and below 0 for a probe that is worse
        than it. nan for a node of which the model sees nothing.
        """
        fraction = 1 - self.divergence[condition] / self.information
        return fraction.where(self.information > _LEAST_INFORMATION, torch.nan)


def probe_nodes(
    run: Run,
    step: int | None = None,
    num_train: int = 4096,
    num_test: int = 2048,
    l2: float = L2,
    seed: int = 0,
    position: int | str = -1,
) -> NodeProbes:
    """Linear probes of every node of the tree in each layer of a run's model, with the controls of `probe_ancestors`.

    The targets are the exact posteriors of the node given what the model sees, for any task: the context, with x_n
    unknown, for a model of the next token; all leaves, those that are not hidden, or noisy ones. Fit, measures and
    controls are otherwise those of `probe_ancestors`.

    A probe reads one input position. By default this is the last one, from which x_n is predicted: what a node has
    there, the prediction can use. With `position='best'` each probe has the position with the smallest divergence on
    the contexts of the fit (so the measure on other contexts is not biased by the choice): it says in which layer a
    symbol is known anywhere, and where, and takes as many times as long as there are tokens. In the last block of a
    model of x_n alone only the last position is ever read. Networks without positions (fcn, cnn, lcn) are probed whole,
    with the position -1.

    Raises ValueError for a position outside the context, for another one than -1 in networks without positions, and for
    models whose layers are not known.
    """
    if isinstance(position, str) and position != 'best':
        raise ValueError(f"position={position!r} is unknown: use a number, or 'best'")
    streams = (('other', num_train), ('test', num_test))
    inputs = _Split(*(run.task.batches(run.rlm, run.config.window, 0, 1, N, name)[0][0] for name, N in streams))
    levels = [evidence_posteriors(run, x) for x in inputs]
    nodes = [(nodes.shape[1].bit_length() - 1, i) for nodes in levels[0] for i in range(nodes.shape[1])]
    exact = _Split(*(torch.cat(posteriors, 1) for posteriors in levels))
    scores = _probe(run, step, inputs, exact, position, l2, seed)
    unknown = torch.full((1, 2**run.rlm.L), -1, device=inputs.test.device)
    marginal = torch.cat(node_posteriors(run.rlm, unknown), 1).log()
    return NodeProbes(
        scores.layers,
        nodes,
        scores.accuracy,
        scores.divergence,
        scores.error,
        exact.test.amax(-1).mean(0),
        torch.special.entr(exact.test).sum(-1).mean(0),
        kl_divergence(exact.test, marginal.expand_as(exact.test)).mean(0),
        scores.positions,
    )


def evidence_posteriors(run: Run, inputs: Tensor) -> list[Tensor]:
    """`P(symbol | inputs)` of every node, for each level `(N, 2^l, v)`, given what a run's model sees, `(N, T)`.

    Where the noise is drawn for each sequence: `sum_j P(eps_j | inputs) P(symbol | inputs, eps_j)`.
    """
    task, language = run.task, run.rlm
    if not isinstance(task, Denoise):
        return node_posteriors(language, node_evidence(run, inputs))
    evidence = [task.likelihoods(language, inputs, noise) for noise in task.noises]
    weights = torch.stack([evidence_log_likelihood(language, likelihoods) for likelihoods in evidence]).softmax(0)
    parts = [node_posteriors(language, likelihoods) for likelihoods in evidence]
    return [torch.einsum('er,erna->rna', weights, torch.stack(level)) for level in zip(*parts, strict=True)]


def node_evidence(run: Run, inputs: Tensor) -> Tensor:
    """What a model sees, `(N, T)`, as evidence at the leaves, `(N, n)` int64, -1 at a leaf that is not seen."""
    if isinstance(run.task, Masked):
        return inputs.masked_fill(inputs == run.rlm.v, -1)
    if run.task.whole:
        return inputs
    evidence = torch.full((len(inputs), 2**run.rlm.L), -1, dtype=torch.int64, device=inputs.device)
    evidence[:, -1 - inputs.shape[1] : -1] = inputs
    return evidence


# ---------------------------------------------------------------------- what both share


class _Split(NamedTuple):
    """Contexts, or what belongs to them: those of the fit, and those of the measures."""

    fit: Tensor
    test: Tensor


class _Scores(NamedTuple):
    """What probes of J symbols reach in K layers: for each condition `(K, J)`."""

    layers: list[str]
    accuracy: dict[str, Tensor]
    divergence: dict[str, Tensor]
    error: dict[str, Tensor]
    positions: dict[str, Tensor]


def _probe(
    run: Run, step: int | None, inputs: _Split, exact: _Split, position: int | str, l2: float, seed: int
) -> _Scores:
    """Probes of symbols with posteriors `(N, J, v)` in every layer, of the model and its two controls."""
    order = random_permutation(stream_key(seed, 'other', _SHUFFLE_INDEX), len(inputs.fit))
    model, untrained = model_at(run, model_steps(run)[-1] if step is None else step), model_at(run, 0)
    conditions = {
        'trained': (model, exact.fit), 'untrained': (untrained, exact.fit), 'shuffled': (model, exact.fit[order]),
    }  # fmt: skip
    found = _Scores([], {}, {}, {}, {})
    for name, (probed, targets) in conditions.items():
        fit, test = (_features(run, probed, x, position) for x in inputs)
        found.layers[:] = list(fit)
        accuracies, divergences, positions = [], [], []
        for layer in fit:
            for target, truth in zip(targets.unbind(1), exact.test.unbind(1), strict=True):
                log_q, place = _best_fit(fit[layer], target, test[layer], l2)
                accuracies.append(truth.gather(-1, log_q.argmax(-1, keepdim=True)).mean())
                divergences.append(kl_divergence(truth, log_q))
                positions.append(place if position == 'best' else position)
        shape = (len(fit), exact.fit.shape[1])
        all_divergences = torch.stack(divergences)
        found.accuracy[name] = torch.stack(accuracies).view(shape)
        found.divergence[name] = all_divergences.mean(1).view(shape)
        found.error[name] = (all_divergences.std(1) / len(inputs.test) ** 0.5).view(shape)
        found.positions[name] = torch.tensor(positions).view(shape) % inputs.fit.shape[1]
    return found


def _features(run: Run, model: nn.Module, inputs: Tensor, position: int | str) -> dict[str, Tensor]:
    """The activations of each layer at all positions, `(N, T, d)`, or at one, `(N, 1, d)`."""
    if isinstance(position, str):
        return activations(run, model, inputs, None)
    return {name: features[:, None] for name, features in activations(run, model, inputs, position).items()}


def _best_fit(fit: Tensor, targets: Tensor, test: Tensor, l2: float) -> tuple[Tensor, int]:
    """`ln q` on the features of the test, by the probe of the position that fits best, and that position.

    Features are `(N, T, d)`.
    """
    classes = targets.shape[1]
    probes = [fit_probe(features, targets, classes, l2) for features in fit.unbind(1)]
    if len(probes) == 1:
        return probes[0].log_probs(test[:, 0]), 0
    losses = [
        kl_divergence(targets, probe.log_probs(features)).mean().item()
        for probe, features in zip(probes, fit.unbind(1), strict=True)
    ]
    best = losses.index(min(losses))
    return probes[best].log_probs(test[:, best]), best
