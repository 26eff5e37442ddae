"""Counterfactual predictions are those of the enumeration of all trees, for every node and symbol."""

from __future__ import annotations

import pytest
import torch
from brute_force import all_trees
from random_grammars import exhaustive
from torch import Tensor

from RLM_clean.analysis.counterfactuals import counterfactual_probs, node_law
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact.inference import next_token_probs, spine_posteriors

SMALL = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (2, 3)]


def enumerated(v: int, levels: list[Tensor], probs: Tensor, row: Tensor, node: tuple[int, int]) -> Tensor:
    """`P(node = b, x_n = x, seen tokens that are not below the node, or all if x_n is)`, `(v, v)`, from all trees."""
    (l, i), n = node, levels[-1].shape[1]
    width = n >> l
    for position, token in enumerate(row.tolist(), n - 1 - len(row)):
        if position // width != i or i == 2**l - 1:
            probs = probs * (levels[-1][:, position] == token)
    code = levels[l][:, i] * v + levels[-1][:, -1]
    return torch.zeros(v * v, dtype=torch.float64).index_add(0, code, probs).view(v, v)


@exhaustive(SMALL, examples=8)
def test_counterfactuals_are_those_of_the_enumeration(grammar: TreeGrammar) -> None:
    """For windows of all lengths, random rules with zeros, per level and shared; for all nodes but x_n."""
    n, v = 2**grammar.L, grammar.v
    sequence, (levels, probs) = grammar.sequences(3, 1), all_trees(grammar)
    for k in range(1, n):
        inputs = sequence[:, n - 1 - k : n - 1]
        for node in [(l, i) for l in range(grammar.L + 1) for i in range(2**l)][:-1]:
            joint = enumerated(v, levels, probs, inputs[0], node)
            law = joint.sum(1)
            torch.testing.assert_close(node_law(grammar, inputs, node)[0], law / law.sum(), rtol=0, atol=1e-12)
            b = law.nonzero()[:, 0]
            found = counterfactual_probs(grammar, inputs.expand(len(b), -1), node, b)
            torch.testing.assert_close(found, joint[b] / law[b, None], rtol=0, atol=1e-12)


def test_the_mean_over_the_symbols_of_a_node_is_the_prediction_without_what_is_below() -> None:
    """sum_b P(node = b | seen) P(x_n | node = b, seen) = P(x_n | seen), for the nodes above x_n, at a larger size."""
    grammar = RLM(v=6, L=4, beta=2.0)
    inputs = grammar.sequences(0, 20)[:, :-1]
    for l in range(4):
        node = (l, 2**l - 1)
        law = node_law(grammar, inputs, node)
        torch.testing.assert_close(law, spine_posteriors(grammar, inputs)[0][:, l], rtol=0, atol=1e-12)
        each = [counterfactual_probs(grammar, inputs, node, torch.full((20,), b)) for b in range(6)]
        mean = torch.einsum('rb,brx->rx', law, torch.stack(each))
        torch.testing.assert_close(mean, next_token_probs(grammar, inputs), rtol=0, atol=1e-12)


def test_a_token_in_place_of_another_is_the_prediction_from_the_changed_context() -> None:
    grammar = RLM(v=6, L=3, beta=2.0)
    inputs, new = grammar.sequences(0, 30)[:, :-1], grammar.sequences(30, 30)[:, 0]
    for position in range(7):
        changed = inputs.clone()
        changed[:, position] = new
        found = counterfactual_probs(grammar, inputs, (3, position), new)
        torch.testing.assert_close(found, next_token_probs(grammar, changed), rtol=0, atol=1e-12)


def test_what_cannot_be_changed_is_an_error_with_a_remedy() -> None:
    grammar = RHM(v=4, m=1, L=2)
    inputs = grammar.sequences(0, 5)[:, :-1]
    zeros = torch.zeros(5, dtype=torch.int64)
    for node in ((2, 3), (3, 0), (1, 2), (-1, 0)):
        with pytest.raises(ValueError, match=r'is not a node beside x_n: use \(l, i\) with l from 0 to 2, i < 2\^l'):
            counterfactual_probs(grammar, inputs, node, zeros)
    impossible = node_law(grammar, inputs, (2, 0)).argmin(1)
    with pytest.raises(ValueError, match=r'symbols of node=\(2, 0\) are impossible .*: draw them from node_law'):
        counterfactual_probs(grammar, inputs, (2, 0), impossible)
    with pytest.raises(ValueError, match=r'a filtered language has no symbols .*: use its `\.original`'):
        node_law(grammar.filtered(1), inputs, (1, 0))


def test_what_is_no_context_or_symbol_is_an_error_with_a_remedy() -> None:
    grammar = RLM(v=4, L=2)
    inputs, b = grammar.sequences(0, 5)[:, :-1], torch.zeros(5, dtype=torch.int64)
    for wrong, said in (
        (grammar.sequences(0, 5), r'inputs of shape \(5, 4\): give \(N, k\), the k tokens before x_n, 1 <= k <= 3'),
        (inputs[:, :0], r'inputs of shape \(5, 0\): give \(N, k\)'),
        (inputs[0], r'inputs of shape \(3,\): give \(N, k\)'),
        (inputs + 4, 'inputs from . to . are no symbols of v=4: use 0 to 3'),
        (inputs.masked_fill(inputs == inputs[0, 0], -1), 'inputs from -1 to . are no symbols of v=4: use 0 to 3'),
    ):
        with pytest.raises(ValueError, match=said):
            node_law(grammar, wrong, (1, 0))
        with pytest.raises(ValueError, match=said):
            counterfactual_probs(grammar, wrong, (1, 0), b)
    for symbols, said in (
        (b[:4], r'symbols of shape \(4,\) do not fit 5 contexts: give one for each'),
        (b[:1], r'symbols of shape \(1,\) do not fit 5 contexts: give one for each'),
        (b[:, None], r'symbols of shape \(5, 1\) do not fit 5 contexts: give one for each'),
        (b + 4, 'symbols from 4 to 4 are no symbols of v=4: use 0 to 3'),
        (b - 1, 'symbols from -1 to -1 are no symbols of v=4: use 0 to 3'),
    ):
        with pytest.raises(ValueError, match=said):
            counterfactual_probs(grammar, inputs, (1, 0), symbols)
    assert node_law(grammar, inputs[:0], (1, 0)).shape == (0, 4)
