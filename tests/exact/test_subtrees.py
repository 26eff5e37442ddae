"""Posteriors within sub-trees against sums over all sequences, to 1e-12."""

from __future__ import annotations

import pytest
import torch
from brute_force import joint, occurring
from enumerated_tasks import assert_close, given, within
from random_grammars import exhaustive, random_grammar
from torch import Tensor

from RLM_clean.datasets import RHM, TreeGrammar
from RLM_clean.exact import propagation
from RLM_clean.exact.correlations import leaf_marginals
from RLM_clean.exact.inference import evidence_log_likelihood, leaf_posteriors
from RLM_clean.exact.subtrees import subtree_posteriors


def random_evidence(table: Tensor, rows: int, seed: int) -> Tensor:
    """Likelihoods `(rows, n, v)` of possible sequences: known leaves, hidden ones, and vectors with zeros."""
    generator = torch.Generator().manual_seed(seed)
    leaves, _ = occurring(table, at_most=rows)
    known = torch.nn.functional.one_hot(leaves, table.shape[0]).double()
    vague = torch.rand(known.shape, generator=generator, dtype=torch.float64) * 2
    vague = vague * (torch.rand(known.shape, generator=generator) < 0.7) + 0.1 * known
    kind = torch.randint(3, leaves.shape, generator=generator)[..., None]
    return known.where(kind == 0, vague.where(kind == 1, torch.ones_like(vague)))


@exhaustive(examples=40)
def test_posteriors_within_a_sub_tree_are_sums_over_all_sequences(grammar: TreeGrammar) -> None:
    """Of every height, with the probability of what is seen in each sub-tree."""
    table = joint(grammar)
    evidence = random_evidence(table, rows=3, seed=grammar.seed_samples)
    for height in range(grammar.L + 1):
        found, log_probs = subtree_posteriors(grammar, evidence, height)
        size = 2**height
        assert found.shape == evidence.shape and log_probs.shape == (len(evidence), 2 ** (grammar.L - height))
        for block, first in enumerate(range(0, 2**grammar.L, size)):
            expected, probs = given(table, within(evidence, first, size))
            assert_close(found[:, first : first + size], expected[:, first : first + size])
            assert_close(log_probs[:, block].exp(), probs)


@exhaustive(examples=20)
def test_the_whole_tree_is_the_largest_sub_tree_and_unseen_leaves_have_their_laws(grammar: TreeGrammar) -> None:
    evidence = random_evidence(joint(grammar), rows=4, seed=grammar.seed_samples)
    found, log_probs = subtree_posteriors(grammar, evidence, grammar.L)
    assert_close(found, leaf_posteriors(grammar, evidence))
    assert_close(log_probs[:, 0], evidence_log_likelihood(grammar, evidence))
    for height in range(grammar.L + 1):
        found, log_probs = subtree_posteriors(grammar, torch.ones_like(evidence), height)
        assert_close(found, leaf_marginals(grammar).expand_as(found))
        assert_close(log_probs, torch.zeros_like(log_probs))


def test_rows_in_pieces_are_the_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding: the shapes of matrix products choose the order of their sums."""
    grammar = random_grammar(3, 3, 1, zeros=0.3)
    evidence = random_evidence(joint(grammar), rows=50, seed=0)
    for height in range(4):
        at_once = subtree_posteriors(grammar, evidence, height)
        with monkeypatch.context() as patch:
            patch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': 7 * grammar.v})  # 7 sequences at a time
            in_pieces = subtree_posteriors(grammar, evidence, height)
        for a, b in zip(at_once, in_pieces, strict=True):
            assert_close(a, b)


def test_likelihoods_far_from_one_do_not_underflow() -> None:
    """A common factor of a leaf changes no posterior, and adds its logarithm to the log-probability."""
    grammar = random_grammar(3, 3, 2)
    evidence = random_evidence(joint(grammar), rows=5, seed=1)
    for height in range(4):
        found, log_probs = subtree_posteriors(grammar, evidence * 1e-200, height)
        expected, logs = subtree_posteriors(grammar, evidence, height)
        assert_close(found, expected)
        factor = 2**height * torch.tensor(1e-200, dtype=torch.float64).log()
        torch.testing.assert_close(log_probs, logs + factor, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ('shape', 'height', 'message'),
    [
        ((2, 4, 2), 1, r'likelihoods of shape \(2, 4, 2\): for a tree of 4 leaves give \(B, 4, 3\)'),
        ((2, 3, 3), 1, r'likelihoods of shape \(2, 3, 3\): for a tree of 4 leaves give \(B, 4, 3\)'),
        ((2, 4, 3), 3, 'height=3 is not that of a sub-tree: use 0 to 2'),
        ((2, 4, 3), -1, 'height=-1 is not that of a sub-tree: use 0 to 2'),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], height: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subtree_posteriors(random_grammar(3, 2, 0), torch.ones(shape, dtype=torch.float64), height)


@pytest.mark.parametrize('height', (1, 2, 3))
def test_evidence_of_probability_zero_is_refused_with_its_row(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is in another piece than the first."""
    grammar = RHM(4, 2, 3)
    possible = grammar.sequences(0, 40)
    pairs = {tuple(pair) for pair in grammar.sequences(0, 5000).view(-1, 2).tolist()}
    never = next((a, b) for a in range(4) for b in range(4) if (a, b) not in pairs)
    leaves = possible.clone()
    leaves[23, 4:6] = torch.tensor(never)
    evidence = torch.nn.functional.one_hot(leaves, 4).double()
    for rows in (10**4, 7, 1):  # sequences at a time
        monkeypatch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': rows * grammar.v})
        with pytest.raises(
            ValueError, match='row 23 has probability zero under this grammar: remove it, or use the rules it is from'
        ):
            subtree_posteriors(grammar, evidence, height)
