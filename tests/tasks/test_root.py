"""The root as a task: against sums over all sequences to 1e-12."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from brute_force import joint, occurring
from enumerated_tasks import assert_close, entropy
from random_grammars import exhaustive, random_grammar
from torch import Tensor

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.tasks import Root


def tables_by_root(grammar: TreeGrammar) -> Tensor:
    """`P(root = a, x_1, ..., x_n)`, `(v, v^n)`."""
    return torch.stack([joint(grammar, (0, 0, a)).flatten() for a in range(grammar.v)])


def root_entropy(grammar: TreeGrammar, k: int) -> float:
    """`H(root | first k leaves)`, summed over all of their values."""
    table = tables_by_root(grammar).view(grammar.v, grammar.v**k, -1).sum(2)
    probs = table.sum(0)
    given = table / probs.where(probs > 0, 1)
    return (entropy(given.T) @ probs).item()


@exhaustive(examples=30)
def test_best_predictions_are_sums_over_all_sequences(grammar: TreeGrammar) -> None:
    leaves, probs = occurring(joint(grammar), at_most=100)
    rows = (leaves * grammar.v ** torch.arange(2**grammar.L - 1, -1, -1)).sum(1)
    assert_close(Root().best(grammar, leaves), tables_by_root(grammar)[:, rows].T / probs[:, None])


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)], examples=30)
def test_floors_of_all_sequences_are_exact(grammar: TreeGrammar) -> None:
    contexts = Root().contexts(grammar, 2**grammar.L)
    assert contexts.weights is not None and contexts.weights.sum().item() == pytest.approx(1, abs=1e-12)
    leaves, probs = occurring(joint(grammar), at_most=10**6)
    assert torch.equal(contexts.inputs, leaves)
    assert_close(contexts.weights, probs)
    for k, (value, error), number in Root().floors(grammar, 2**grammar.L, contexts):
        assert (value, error, number) == (pytest.approx(root_entropy(grammar, k), abs=1e-12), 0.0, 0)


def test_floors_of_sampled_sequences_are_near_the_exact_ones() -> None:
    """Within 4 standard errors, 8 independent grammars of 4 floors each: a false alarm has probability below 0.002."""
    for seed in range(8):
        grammar = random_grammar(3, 3, seed, zeros=0.3 * (seed % 2))
        contexts = Root().contexts(grammar, 8, 300)
        assert contexts.weights is None and len(contexts.inputs) == 300
        for k, (value, error), number in Root().floors(grammar, 8, contexts):
            assert number == (300 if k else 0) and (error > 0 or k == 0 or value == 0)
            assert abs(value - root_entropy(grammar, k)) <= 4 * error + 1e-12


@pytest.mark.parametrize('num_data', (None, 12), ids=('online', 'offline'))
def test_the_roots_are_those_of_the_trees(num_data: int | None) -> None:
    for grammar in (RLM(5, 3, num_data=num_data), RHM(5, 2, 3, num_data=num_data)):
        for language in (grammar, grammar.filtered(1)):
            inputs, roots = Root().batches(language, 8, 0, 3, 4)
            trees = language.trees(0, 12)
            found = torch.cat((roots.view(-1, 1), inputs.flatten(0, 1)), 1)
            expected = torch.cat((trees[0], trees[-1]), 1)
            assert sorted(found.tolist()) == sorted(expected.tolist())
            if num_data is None:
                assert torch.equal(roots.flatten(), trees[0].flatten())
                test = language.trees(8, 4, 'test')
                inputs, roots = Root().batches(language, 8, 2, 1, 4, 'test')
                assert torch.equal(inputs[0], test[-1]) and torch.equal(roots[0], test[0].flatten())


def test_in_a_later_epoch_each_sequence_keeps_its_root() -> None:
    """A root is a function of the leaves in this language, whose rules are without ambiguity."""
    grammar = RHM(6, 3, 2, num_data=30)
    trees = grammar.trees(0, 30)
    roots_of = {tuple(row): root for (root,), row in zip(trees[0].tolist(), trees[-1].tolist(), strict=True)}
    inputs, roots = Root().batches(grammar, 4, 0, 9, 10)
    assert [roots_of[tuple(row)] for row in inputs.flatten(0, 1).tolist()] == roots.flatten().tolist()


def test_a_few_classes_restrict_the_root() -> None:
    config = Config(outname='run', num_features=6, num_layers=2, num_classes=2, objective='root')
    grammar, task = init.init_data(config), Root(2)
    assert grammar.prior.tolist() == [0.5, 0.5, 0, 0, 0, 0]
    inputs, roots = task.batches(grammar, 4, 0, 4, 100)
    assert set(roots.flatten().tolist()) == {0, 1}
    posteriors = task.best(grammar, inputs.flatten(0, 1))
    assert posteriors.shape == (400, 2)
    assert_close(posteriors, Root().best(grammar, inputs.flatten(0, 1))[:, :2])
    assert_close(posteriors.sum(1), torch.ones(400, dtype=torch.float64))
    contexts = task.contexts(grammar, 4)
    floors = {k: floor for k, floor, _ in task.floors(grammar, 4, contexts)}
    assert floors[0] == (pytest.approx(math.log(2)), 0.0)
    assert floors[4] == (pytest.approx(root_entropy(grammar, 4), abs=1e-12), 0.0)


def test_classes_that_leave_out_symbols_of_the_root_are_refused() -> None:
    """Their probabilities would not sum to one."""
    with pytest.raises(ValueError, match='num_classes=2 leaves out symbols that the root can have: use 5, or another'):
        measures.reference(RLM(5, 2), None, Root(2))


@pytest.mark.parametrize('number', (-1, 1.5, math.nan))
def test_a_number_of_classes_that_is_not_whole_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match=f'num_classes={number} is not a number of classes: use a whole number, 0 for'):
        Root(number)


def test_more_classes_than_symbols_are_refused_where_the_language_is_known() -> None:
    """The model would have classes that never occur, and the posteriors fewer than the model."""
    language, task = RLM(5, 2), Root(6)
    contexts = Root().contexts(language, 4)
    for call in (
        lambda: measures.reference(language, None, task),
        lambda: task.batches(language, 4, 0, 1, 2),
        lambda: task.best(language, contexts.inputs),
        lambda: task.window_floor(language, contexts, 0),
    ):
        with pytest.raises(ValueError, match='num_classes=6 is more than the v=5 symbols: use 0 to 5'):
            call()
