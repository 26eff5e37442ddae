"""BP_k as a predictor of the original language: its losses and divergences against sums over all sequences."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from brute_force import joint
from filtered_process import filtered_joint
from random_grammars import exhaustive, random_grammar
from torch import Tensor

from RLM_clean.datasets import RHM, TreeGrammar
from RLM_clean.exact import entropies, filtered
from RLM_clean.exact.inference import leaf_posteriors


def table_of(grammar: TreeGrammar, k: int) -> Tensor:
    return joint(grammar) if k == grammar.L else filtered_joint(grammar, k)


def loss_of_token(language: Tensor, predictor: Tensor, i: int, seen: Tensor) -> float:
    """`E[-ln Q(x_i | seen tokens)]` under P from the tables of all sequences of P and Q."""
    hidden = [axis for axis in range(predictor.dim()) if axis != i and not seen[axis]]
    law, with_token = ((table.sum(hidden, keepdim=True) if hidden else table) for table in (language, predictor))
    log_q = with_token.log() - with_token.sum(i, keepdim=True).log()
    return -(law * log_q)[law > 0].sum().item()


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)], examples=20)
def test_losses_on_hidden_tokens_are_those_of_the_enumeration(grammar: TreeGrammar) -> None:
    n, table = 2**grammar.L, joint(grammar)
    leaves = table.nonzero()
    weights = table[tuple(leaves.T)]
    for seed in range(2):
        seen = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6
        seen[seed] = False
        floors = filtered.masked_floors(grammar, leaves.masked_fill(~seen, -1), weights=weights)
        assert list(floors) == list(range(grammar.L + 1))
        hidden = (~seen).nonzero()[:, 0].tolist()
        best = sum(loss_of_token(table, table, i, seen) for i in hidden) / len(hidden)
        for k, (cross_entropy, divergence) in floors.items():
            expected = sum(loss_of_token(table, table_of(grammar, k), i, seen) for i in hidden) / len(hidden)
            assert cross_entropy == (pytest.approx(expected, rel=1e-12, abs=1e-12), 0.0)
            assert divergence == (pytest.approx(expected - best, abs=1e-12), 0.0)


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)], examples=20)
def test_losses_on_the_last_token_are_those_of_the_enumeration(grammar: TreeGrammar) -> None:
    n, table = 2**grammar.L, joint(grammar)
    for m in range(n):
        seen = torch.tensor([n - 1 - m <= i < n - 1 for i in range(n)])
        law = table.reshape(-1, grammar.v**m, grammar.v).sum((0, 2)).view([grammar.v] * m)
        inputs = law.nonzero() if m else torch.zeros(1, 0, dtype=torch.int64)
        floors = filtered.last_floors(grammar, inputs, weights=law[law > 0] if m else torch.ones(1).double())
        best = loss_of_token(table, table, n - 1, seen)
        for k, (cross_entropy, divergence) in floors.items():
            expected = loss_of_token(table, table_of(grammar, k), n - 1, seen)
            assert cross_entropy == (pytest.approx(expected, rel=1e-12, abs=1e-12), 0.0)
            assert divergence == (pytest.approx(expected - best, abs=1e-12), 0.0)


def test_the_largest_height_is_the_best_predictor() -> None:
    grammar = random_grammar(3, 3, seed=3)
    leaves = grammar.sequences(0, 200)
    floors = filtered.last_floors(grammar, leaves[:, :-1])
    assert floors[3].divergence == (0.0, 0.0)
    # Filtering to the height of the tree changes nothing; lower heights lose something.
    assert all(floors[k].divergence[0] > 0 for k in range(3))
    evidence = leaves.masked_fill(torch.arange(8) % 3 == 0, -1)
    assert filtered.masked_floors(grammar, evidence, ks=[3])[3].divergence == (0.0, 0.0)


def test_heights_that_hold_all_that_is_seen_lose_nothing() -> None:
    """With all that is seen in the sub-tree of the target, no correlation of other sub-trees matters."""
    grammar = random_grammar(4, 3, seed=4, zeros=0.3)
    floors = filtered.last_floors(grammar, grammar.sequences(0, 100)[:, 4:-1])
    for k in (2, 3):
        assert floors[k].divergence[0] == pytest.approx(0, abs=1e-14)
    assert floors[1].divergence[0] > 1e-6 and floors[0].divergence[0] > 1e-6


def test_sampled_losses_are_estimates_of_the_sums() -> None:
    """Within 5 standard errors, for 8 numbers: one false alarm in about 200000 seeds."""
    grammar = random_grammar(3, 3, seed=5)
    table = joint(grammar)
    seen = torch.arange(8) < 7
    floors = filtered.last_floors(grammar, grammar.sequences(0, 4000, 'floors')[:, :-1])
    best = loss_of_token(table, table, 7, seen)
    for k, (cross_entropy, divergence) in floors.items():
        expected = loss_of_token(table, table_of(grammar, k), 7, seen)
        assert 0 < cross_entropy[1] < 0.02 and abs(cross_entropy[0] - expected) < 5 * cross_entropy[1]
        assert abs(divergence[0] - (expected - best)) <= 5 * divergence[1]
    assert abs(best - entropies.entropy(grammar)[0]) < 1e-12


def test_a_sequence_counts_by_the_mean_of_its_hidden_tokens() -> None:
    grammar = random_grammar(3, 2, seed=6)
    evidence = torch.tensor([[-1, -1, -1, 0], [1, 2, -1, 0]])
    best, predicted = leaf_posteriors(grammar, evidence), leaf_posteriors(grammar.filtered(0), evidence)
    losses = -(best * predicted.log()).where(best > 0, 0.0).sum(-1)
    expected = [losses[0, :3].mean().item(), losses[1, 2].item()]
    (value, error), _ = filtered.masked_floors(grammar, evidence, ks=[0])[0]
    assert value == pytest.approx(sum(expected) / 2, rel=1e-13)
    assert error == pytest.approx(abs(expected[0] - expected[1]) / 2, rel=1e-13)


def test_impossible_targets_have_an_infinite_loss_and_certain_ones_none() -> None:
    best = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert filtered.compare(best[:1], certain[:1], weights=torch.ones(1).double()).cross_entropy == (0.0, 0.0)
    assert filtered.compare(best, certain).divergence[0] == math.inf
    # The second position does not count.
    counted = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert filtered.compare(best[None], certain[None], counted, torch.ones(1).double()).cross_entropy == (0.0, 0.0)
    with pytest.raises(ValueError, match='do not fit posteriors of shape'):
        filtered.compare(best, certain[:1])


def test_a_row_without_a_hidden_token_is_refused() -> None:
    grammar = RHM(4, 2, 2)
    with pytest.raises(ValueError, match='row 1 of the evidence has no hidden token'):
        filtered.masked_floors(grammar, torch.tensor([[-1, 0, 0, 0], [0, 0, 0, 0]]))


def test_a_filtered_language_is_compared_with_lower_heights() -> None:
    grammar = random_grammar(3, 2, seed=7)
    language = grammar.filtered(1)
    table, lower = filtered_joint(grammar, 1), filtered_joint(grammar, 0)
    leaves = table.nonzero()
    weights = table[tuple(leaves.T)]
    seen = torch.tensor([True, True, False, True])
    floors = filtered.masked_floors(language, leaves.masked_fill(~seen, -1), weights=weights)
    assert list(floors) == [0, 1] and floors[1].divergence == (0.0, 0.0)
    assert floors[0].cross_entropy[0] == pytest.approx(loss_of_token(table, lower, 2, seen), rel=1e-12)


def test_the_table_of_the_theory_is_what_its_snippet_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/theory.md, section Filtered languages."""
    section = (
        (Path(__file__).parents[2] / 'docs/theory.md').read_text(encoding='utf-8').partition('## Filtered languages')[2]
    )
    snippet, _, rest = section.partition('```python\n')[2].partition('```')
    exec(compile(snippet, 'docs/theory.md', 'exec'), {})
    printed = re.findall(r'\d+\.\d+|^\d+', capsys.readouterr().out, re.MULTILINE)
    rows = [line for line in rest.partition('\n## ')[0].splitlines() if re.match(r'\| \d', line)]
    assert printed == re.findall(r'\d+\.\d+|(?<=^\| )\d+', '\n'.join(rows), re.MULTILINE) and len(rows) == 5
