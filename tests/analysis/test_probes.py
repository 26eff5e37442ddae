"""Probes find what is planted and nothing else: the ancestors of x_n, and every node of the tree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from analysed import run_of
from brute_force import all_trees
from torch import Tensor

from RLM_clean.analysis import probes
from RLM_clean.analysis.probes import (
    NodeProbes,
    evidence_posteriors,
    node_evidence,
    probe_ancestors,
    probe_nodes,
)
from RLM_clean.datasets import RHM, RLM
from RLM_clean.exact.inference import ancestor_posteriors, next_token_probs
from RLM_clean.streams import seeded_generator

TRANSFORMER = {'depth': 2, 'num_heads': 2}
KINDS: list[dict[str, Any]] = [
    TRANSFORMER,
    {**TRANSFORMER, 'model': 'transformer_clm', 'objective': 'all'},
    {**TRANSFORMER, 'num_tokens': 3, 'tie_weights': True},
    {**TRANSFORMER, 'input_format': 'onehot', 'whitening': 1},
    {'model': 'fcn', 'depth': 2},
    {'model': 'fcn', 'input_format': 'onehot', 'whitening': 1},
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- the ancestors of x_n


def test_probes_find_ancestors_where_they_are_planted_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer contains the logarithms of the exact posteriors, the other noise."""
    grammar = RLM(v=4, L=2, beta=1.5)
    run = run_of(grammar)
    untrained, trained = object(), run.model()
    monkeypatch.setattr(probes, 'model_at', lambda run, step: trained if step else untrained)

    def planted(run: Any, model: Any, inputs: Tensor, position: int) -> dict[str, Tensor]:
        assert position == -1
        exact = probes._posteriors(run, inputs).log().flatten(1)
        noise = normal(*exact.shape, seed=len(inputs))
        return {'noise': noise, 'planted': exact if model is trained else noise}

    monkeypatch.setattr(probes, 'activations', planted)
    found = probe_ancestors(run, num_train=1000, num_test=800, l2=1e-6)
    assert found.layers == ['noise', 'planted']
    assert (found.divergence['trained'][1] < 2e-3).all()
    assert (found.best_accuracy - found.accuracy['trained'][1] < 5e-3).all()
    nothing = found.windows[0]
    for condition, layer in (('trained', 0), ('untrained', 0), ('untrained', 1), ('shuffled', 0), ('shuffled', 1)):
        assert (found.divergence[condition][layer] > 0.97 * nothing).all()
        assert (found.accuracy[condition][layer] < found.best_accuracy).all()


def test_exact_values_of_the_probes_equal_those_of_the_whole_tree() -> None:
    grammar = RHM(v=4, m=2, L=3)
    found = probe_ancestors(run_of(grammar), num_train=64, num_test=200)
    leaves = grammar.sequences(0, 200, 'test')
    spine = [nodes[:, -1] for nodes in ancestor_posteriors(grammar, leaves, past=7)]
    for l, p in enumerate(spine):
        assert found.best_accuracy[l] == pytest.approx(p.amax(1).mean().item())
        assert found.entropy[l] == pytest.approx(torch.special.entr(p).sum(1).mean().item())
    assert list(found.windows) == [0, 1, 3]
    for k, window in found.windows.items():
        p, q = spine[-1], next_token_probs(grammar, leaves[:, 7 - k : 7])
        ratio = torch.where(p > 0, p / q, 1.0)
        assert window[-1] == pytest.approx((p * ratio.log()).sum(1).mean().item())
        assert (window > -1e-12).all()


@pytest.mark.parametrize('options', KINDS)
def test_probes_are_bounded_by_the_exact_posterior_for_every_kind_of_run(options: dict[str, Any]) -> None:
    run = run_of(RLM(v=5, L=2, beta=2.0), **options)
    state = torch.get_rng_state()
    found = probe_ancestors(run, num_train=300, num_test=200)
    assert torch.equal(torch.get_rng_state(), state)
    for condition in ('trained', 'untrained', 'shuffled'):
        assert found.accuracy[condition].shape == found.divergence[condition].shape == (len(found.layers), 3)
        assert (found.accuracy[condition] <= found.best_accuracy + 1e-12).all()
        assert (found.divergence[condition] > 0).all() and (found.error[condition] > 0).all()
    again = probe_ancestors(run, num_train=300, num_test=200)
    assert all(torch.equal(a, b) for a, b in zip(found.divergence.values(), again.divergence.values(), strict=True))


def test_embeddings_hold_no_more_than_the_last_token() -> None:
    """Fitted and measured on the same law, the probe of the embeddings cannot pass the window k = 1, up to its spread.

    The 2048 contexts of the test and the fit to 4096 others leave an error; three standard errors of the mean are
    allowed: a false alarm of 1e-3 for each of 3 levels, seed fixed.
    """
    run = run_of(RLM(v=5, L=2, beta=2.0))
    found = probe_ancestors(run, l2=1e-6)
    below = found.windows[1] - found.divergence['trained'][0]
    assert (below < 3 * found.error['trained'][0]).all() and (below > -0.03).all()


# ---------------------------------------------------------------------- every node

TASKS: dict[str, dict[str, Any]] = {
    'last': {},
    'window': {'num_tokens': 3},
    'all': {'model': 'transformer_clm', 'objective': 'all'},
    'root': {'model': 'transformer_bert', 'objective': 'root'},
    'masked': {'model': 'transformer_bert', 'objective': 'masked'},
    'denoise': {'model': 'transformer_bert', 'objective': 'denoise', 'noise': 0.3},
    'denoise drawn': {'model': 'transformer_bert', 'objective': 'denoise'},
}


@pytest.mark.parametrize('task', TASKS)
def test_the_posteriors_of_nodes_are_those_given_what_the_model_sees(task: str) -> None:
    """Against the enumeration of all trees: P(node = a | inputs) from the likelihood of the inputs given each tree."""
    grammar = RLM(v=3, L=2, beta=1.5)
    run = run_of(grammar, **TASKS[task])
    inputs = run.task.batches(grammar, run.config.window, 0, 1, 12)[0][0]
    levels, probs = all_trees(grammar)
    leaves = levels[-1]

    def likelihood(row: Tensor) -> Tensor:
        """P(inputs | tree), `(trees,)`."""
        if run.config.objective in ('last', 'all'):
            return (leaves[:, 3 - len(row) : 3] == row).all(1).double()
        if run.config.objective == 'masked':
            return ((leaves == row) | (row == 3)).all(1).double()
        noises = {'root': [0.0], 'denoise': [0.3], 'denoise drawn': [(2 * i + 1) / 16 for i in range(8)]}[task]
        terms = [((1 - e) * (leaves == row).double() + e / 3).prod(1) for e in noises]
        return torch.stack(terms).mean(0)

    found = evidence_posteriors(run, inputs)
    for r, row in enumerate(inputs):
        weights = probs * likelihood(row)
        for l, level in enumerate(levels):
            for i in range(2**l):
                expected = torch.zeros(3, dtype=torch.float64).index_add(0, level[:, i], weights) / weights.sum()
                torch.testing.assert_close(found[l][r, i], expected, rtol=0, atol=1e-12)


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations at three positions: noise at the first and the last, the exact log posteriors at the middle one."""

    def planted(run: Any, model: Any, inputs: Tensor, position: int | None = -1) -> dict[str, Tensor]:
        exact = torch.cat(evidence_posteriors(run, inputs), 1).clamp(min=1e-6).log().flatten(1)
        noise = normal(*exact.shape, seed=len(inputs))
        everywhere = torch.stack((noise, exact, noise), 1)
        return {'planted': everywhere if position is None else everywhere[:, position]}

    monkeypatch.setattr(probes, 'activations', planted)


def test_probes_of_all_nodes_find_what_is_planted_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    run = run_of(RLM(v=3, L=2, beta=1.5))
    sizes: dict[str, Any] = {'num_train': 500, 'num_test': 400, 'l2': 1e-6}
    known = probe_nodes(run, position=1, **sizes)
    assert known.nodes == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)] and known.layers == ['planted']
    assert (known.divergence['trained'] < 2e-3).all() and (known.fraction() > 0.98).all()
    assert (known.best_accuracy - known.accuracy['trained'] < 5e-3).all()
    found = probe_nodes(run, position='best', **sizes)
    assert torch.equal(found.divergence['trained'], known.divergence['trained'])
    assert (found.positions['trained'] == 1).all() and (known.positions['trained'] == 1).all()
    nothing = probe_nodes(run, **sizes)
    assert (nothing.fraction() < 0.05).all() and (nothing.positions['trained'] == 2).all()


def test_a_probe_of_shuffled_targets_reaches_the_marginal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the information is allowed, for the fit to 2000 contexts and the mean of 600; the seed is fixed."""
    plant(monkeypatch)
    found = probe_nodes(run_of(RLM(v=3, L=2, beta=1.5)), position=1, num_train=2000, num_test=600)
    assert (found.fraction('shuffled').abs() < 0.1).all()
    assert (found.fraction('trained') > 0.95).all()


@pytest.mark.parametrize('task', TASKS)
def test_probes_of_nodes_are_bounded_by_exact_inference_for_every_task(task: str) -> None:
    run = run_of(RLM(v=4, L=2, beta=2.0), **TASKS[task])
    state = torch.get_rng_state()
    found = probe_nodes(run, num_train=100, num_test=60)
    assert torch.equal(torch.get_rng_state(), state)
    levels = evidence_posteriors(run, run.task.batches(run.rlm, run.config.window, 0, 1, 60, 'test')[0][0])
    exact = torch.cat(levels, 1)
    torch.testing.assert_close(found.entropy, torch.special.entr(exact).sum(-1).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.best_accuracy, exact.amax(-1).mean(0), rtol=0, atol=1e-12)
    for condition in ('trained', 'untrained', 'shuffled'):
        assert found.accuracy[condition].shape == found.error[condition].shape == (len(found.layers), 7)
        assert (found.accuracy[condition] <= found.best_accuracy + 1e-12).all()
        assert (found.divergence[condition] > -1e-12).all()


def test_the_information_is_that_of_the_language() -> None:
    """E KL(posterior || marginal) over all contexts is the mutual information of the enumerated trees.

    The mean of 4000 contexts has a spread: three of its standard errors are allowed, a false alarm of 3e-3 for each of
    7 nodes, seed fixed.
    """
    grammar = RLM(v=3, L=2, beta=1.5)
    found = probe_nodes(run_of(grammar), num_train=20, num_test=4000)
    levels, probs = all_trees(grammar)
    context = (levels[-1][:, :3] * torch.tensor([9, 3, 1])).sum(1)
    contexts = grammar.sequences(0, 4000, 'test')[:, :3]
    for j, (l, i) in enumerate(found.nodes):
        table = torch.zeros(27, 3, dtype=torch.float64)
        table.index_put_((context, levels[l][:, i]), probs, accumulate=True)
        product = table.sum(1, keepdim=True) * table.sum(0)
        per_context = (table * (table / product).log()).where(table > 0, 0.0).sum(1) / table.sum(1)
        sampled = per_context[(contexts * torch.tensor([9, 3, 1])).sum(1)]
        assert found.information[j].item() == pytest.approx(sampled.mean().item(), abs=1e-12)
        assert abs(found.information[j] - per_context @ table.sum(1)) < 3 * sampled.std() / 4000**0.5 + 1e-12


def test_a_node_of_which_nothing_is_seen_has_no_fraction() -> None:
    values = {name: torch.tensor([[0.0, 0.5]]) for name in ('trained', 'untrained', 'shuffled')}
    found = NodeProbes(['layer 1'], [(0, 0), (1, 0)], values, values, values, values['trained'][0],
                       values['trained'][0], torch.tensor([0.0, 2.0]), values)  # fmt: skip
    fraction = found.fraction()[0]
    assert fraction[0].isnan() and fraction[1] == 0.75


def test_evidence_marks_what_is_not_seen() -> None:
    run = run_of(RLM(v=4, L=2, beta=2.0), num_tokens=3)
    assert node_evidence(run, torch.tensor([[2, 1]])).tolist() == [[-1, 2, 1, -1]]


@pytest.mark.parametrize('task', ['root', 'masked', 'denoise'])
def test_ancestors_of_x_n_are_those_of_a_model_of_the_next_token(task: str) -> None:
    run = run_of(RLM(v=4, L=2), objective=task, model='transformer_bert', num_heads=2)
    with pytest.raises(ValueError, match=f'objective={task!r} has no x_n to predict: use probe_nodes'):
        probe_ancestors(run)


def test_positions_that_there_are_not_are_an_error_with_a_remedy() -> None:
    run = run_of(RLM(v=4, L=2, beta=2.0))
    with pytest.raises(ValueError, match="position='mean' is unknown: use a number, or 'best'"):
        probe_nodes(run, position='mean')
    with pytest.raises(ValueError, match='position=3 is outside a context of 3 tokens'):
        probe_nodes(run, position=3, num_train=20, num_test=20)
