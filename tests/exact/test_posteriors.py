"""Evidence at any leaf: posteriors, likelihoods and the entropy of the tree, against brute force to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from brute_force import all_trees, joint, occurring
from filtered_process import all_filtered_trees, number_of_trees
from random_grammars import SMALL, exhaustive, random_grammar
from torch import Tensor

from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import entropies, inference, posteriors, propagation
from RLM_clean.exact.inference import (
    evidence_log_likelihood,
    leaf_posteriors,
    log_likelihood,
    node_posteriors,
    posterior_entropy,
    sample_posterior,
)

LISTED = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)]  # sizes of which every tree can be listed


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def mixed_evidence(leaves: Tensor, v: int, seed: int) -> Tensor:
    """Likelihoods `(B, n, v)` that allow these sequences: of each leaf its token, nothing, or numbers of any size, with
    zeros."""
    generator = torch.Generator().manual_seed(seed)
    kind, kept = (torch.rand(*leaves.shape, size, generator=generator, dtype=torch.float64) for size in (1, v))
    known = torch.nn.functional.one_hot(leaves, v).double()
    scale = 10.0 ** torch.randint(-3, 4, (*leaves.shape, 1), generator=generator)
    vague = scale * torch.rand(known.shape, generator=generator, dtype=torch.float64) * (kept < 0.7) + known
    return known.where(kind < 1 / 3, torch.ones_like(known).where(kind < 2 / 3, vague))


def tokens_with_unknown(leaves: Tensor, unknown: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return leaves.masked_fill(torch.rand(leaves.shape, generator=generator) < unknown, -1)


def likelihoods(tokens: Tensor, v: int) -> Tensor:
    """Tokens with -1 at unknown leaves, written as likelihoods."""
    return torch.nn.functional.one_hot(tokens + 1, v + 1)[..., 1:].double() + (tokens == -1)[..., None]


def weights_of(evidence: Tensor) -> Tensor:
    """`prod_i e_i[x_i]` of every sequence, `(B, v^n)`."""
    weights = evidence.new_ones(len(evidence), 1)
    for leaf in evidence.unbind(1):
        weights = (weights[:, :, None] * leaf[:, None]).flatten(1)
    return weights


# ------------------------------------------------------------------ posteriors and likelihoods


@exhaustive([*SMALL, (4, 3)], examples=16)
def test_posteriors_and_likelihoods_of_mixed_evidence_are_exact(grammar: TreeGrammar) -> None:
    """Tokens of which some are unknown, whole sequences, nothing at all, and the three kinds of evidence mixed."""
    v, table = grammar.v, joint(grammar)
    leaves, _ = occurring(table, at_most=4)
    tables = [
        torch.stack([torch.stack([joint(grammar, (l, i, a)).flatten() for a in range(v)]) for i in range(2**l)])
        for l in range(grammar.L + 1)
    ]
    tokens = tokens_with_unknown(leaves, 0.5, seed=1)
    mixed = mixed_evidence(leaves, v, seed=2)
    for evidence in (tokens, leaves, torch.full_like(leaves, -1), mixed):
        weights = weights_of(evidence if evidence.dim() == 3 else likelihoods(evidence, v))
        assert_close(evidence_log_likelihood(grammar, evidence), (weights @ table.flatten()).log())
        found = node_posteriors(grammar, evidence)
        assert torch.equal(leaf_posteriors(grammar, evidence), found[-1])
        for nodes, pinned in zip(found, tables, strict=True):
            expected = torch.einsum('rx,iax->ria', weights, pinned)
            assert_close(nodes, expected / expected.sum(-1, keepdim=True))


@exhaustive(examples=15)
def test_differences_of_the_log_likelihood_are_the_posteriors(grammar: TreeGrammar) -> None:
    """`e_i[a] d ln P(e) / d e_i[a] = P(x_i = a | e)`. P is linear in each e_i[a], so a difference is exact."""
    leaves, _ = occurring(joint(grammar), at_most=3)
    evidence = mixed_evidence(leaves, grammar.v, seed=3)
    found, log_likelihoods = leaf_posteriors(grammar, evidence), evidence_log_likelihood(grammar, evidence)
    for i in range(leaves.shape[1]):
        for a in range(grammar.v):
            doubled = evidence.clone()
            doubled[:, i, a] *= 2
            difference = (evidence_log_likelihood(grammar, doubled) - log_likelihoods).expm1()
            assert_close(difference, found[:, i, a])


def test_the_worked_example_of_the_manual_is_right() -> None:
    """docs/theory.md, by hand: 0 ? ? 1 has the trees 0(0(0 0) 0(1 1)), 0(1(0 1) 1(0 1)) and 1(0(0 0) 1(0 1))."""
    rules = torch.zeros(2, 2, 2)
    rules[0, 0, 0] = rules[0, 1, 1] = 0.5
    rules[1, 0, 1] = 1.0
    language, evidence = TreeGrammar(rules, L=2), torch.tensor([[0, -1, -1, 1]])
    weights = torch.tensor([1 / 16, 1 / 4, 1 / 4], dtype=torch.float64)
    assert_close(evidence_log_likelihood(language, evidence).exp(), weights.sum()[None])
    assert_close(posterior_entropy(language, evidence), torch.special.entr(weights / weights.sum()).sum()[None])
    root, _, leaves = node_posteriors(language, evidence)
    assert_close(root[0], torch.tensor([[5 / 9, 4 / 9]], dtype=torch.float64))
    expected = [[1, 0], [5 / 9, 4 / 9], [8 / 9, 1 / 9], [0, 1]]
    assert_close(leaves[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('unknown', [0.15, 0.5, 0.95])
@pytest.mark.parametrize('L', [1, 2, 5])
def test_unknown_tokens_count_as_likelihoods_of_one(L: int, unknown: float) -> None:
    """Tokens are looked up where likelihoods are multiplied: beyond the trees that can be listed."""
    grammar = random_grammar(5, L, seed=L, zeros=0.3)
    tokens = tokens_with_unknown(grammar.sequences(0, 40), unknown, seed=L)
    dense = likelihoods(tokens, 5)
    for found, expected in zip(node_posteriors(grammar, tokens), node_posteriors(grammar, dense), strict=True):
        assert_close(found, expected)
    assert_close(evidence_log_likelihood(grammar, tokens), evidence_log_likelihood(grammar, dense))
    assert_close(posterior_entropy(grammar, tokens), posterior_entropy(grammar, dense))


# ------------------------------------------------------------------ the entropy of the tree


def listed_entropy(levels: list[Tensor], probs: Tensor, evidence: Tensor) -> Tensor:
    """The entropy of a list of trees given evidence `(B, n, v)`."""
    found = []
    for row in evidence:
        weights = probs * row[torch.arange(len(row)), levels[-1]].prod(1)
        found.append(torch.special.entr(weights / weights.sum()).sum())
    return torch.stack(found)


@exhaustive(LISTED, examples=30)
def test_the_entropy_given_mixed_evidence_is_that_of_all_trees(grammar: TreeGrammar) -> None:
    levels, probs = all_trees(grammar)
    leaves, _ = occurring(joint(grammar), at_most=4)
    mixed = mixed_evidence(leaves, grammar.v, seed=4)
    assert_close(posterior_entropy(grammar, mixed), listed_entropy(levels, probs, mixed))
    for tokens in (leaves, tokens_with_unknown(leaves, 0.5, seed=5)):
        expected = listed_entropy(levels, probs, likelihoods(tokens, grammar.v))
        assert_close(posterior_entropy(grammar, tokens), expected)


@exhaustive([(3, 3), (4, 3)], examples=8)
def test_the_entropy_of_three_levels_is_that_of_all_trees_below_each_pair(grammar: TreeGrammar) -> None:
    """There are too many trees to list. The trees below the two children of the root are listed; they are independent
    given the children, so entropies add."""
    v = grammar.v
    lower = TreeGrammar(grammar.rules[0] if grammar.shared else list(grammar.rules[1:]), 2)
    levels, probs = all_trees(lower)
    leaves, _ = occurring(joint(grammar), at_most=2)
    evidence = mixed_evidence(leaves, v, seed=6)
    for row, found in zip(evidence, posterior_entropy(grammar, evidence), strict=True):
        weights, below = [], []
        for half in row.split(4):
            listed = v * probs * half[torch.arange(4), levels[-1]].prod(1)  # v: the prior of `lower` is uniform
            by_head = [listed[levels[0][:, 0] == head] for head in range(v)]
            weights.append(torch.stack([w.sum() for w in by_head]))
            below.append(torch.stack([torch.special.entr(w / w.sum().clamp(min=1e-300)).sum() for w in by_head]))
        tops = torch.einsum('a,abc,b,c->abc', grammar.prior, grammar.level_rules(0), *weights)
        tops = tops / tops.sum()
        expected = torch.special.entr(tops).sum() + (tops.sum((0, 2)) @ below[0] + tops.sum((0, 1)) @ below[1])
        assert_close(found, expected)


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)], examples=15)
def test_the_entropy_of_a_filtered_language_is_that_of_all_its_trees(grammar: TreeGrammar) -> None:
    leaves, _ = occurring(joint(grammar), at_most=3)
    mixed, tokens = mixed_evidence(leaves, grammar.v, seed=7), tokens_with_unknown(leaves, 0.5, seed=8)
    for k in range(grammar.L):
        if number_of_trees(grammar, k) > 2**17:
            continue
        levels, probs = all_filtered_trees(grammar, k)
        for evidence, dense in ((mixed, mixed), (tokens, likelihoods(tokens, grammar.v)), (leaves, None)):
            expected = listed_entropy(levels, probs, likelihoods(leaves, grammar.v) if dense is None else dense)
            assert_close(posterior_entropy(grammar.filtered(k), evidence), expected)


@pytest.mark.parametrize('seed', range(4))
def test_the_entropy_given_nothing_is_that_of_the_tree(seed: int) -> None:
    grammar = random_grammar(6, 4, seed, zeros=0.3, shared=seed % 2 == 0)
    nothing = torch.full((1, 16), -1)
    for language in (grammar, grammar.filtered(0), grammar.filtered(2)):
        expected = torch.tensor([entropies.tree_entropy(language)], dtype=torch.float64)
        assert_close(posterior_entropy(language, nothing), expected)
        assert_close(posterior_entropy(language, torch.full((1, 16, 6), 0.7)), expected)


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3)], examples=15)
def test_the_mean_entropy_over_sequences_is_the_ambiguity(grammar: TreeGrammar) -> None:
    table = joint(grammar)
    leaves = table.nonzero()
    mean = table[tuple(leaves.T)] @ posterior_entropy(grammar, leaves)
    assert mean.item() == pytest.approx(entropies.ambiguity(grammar)[0], rel=1e-12, abs=1e-12)


def test_a_tree_that_can_be_read_off_its_leaves_has_no_entropy() -> None:
    rhm = RHM(v=8, m=3, L=5)
    leaves = rhm.sequences(0, 20)
    found = posterior_entropy(rhm, leaves)
    assert (found >= 0).all() and found.max() < 1e-12
    # Of a token that is not seen there is something left to know, at most the symbol itself.
    leaves[:, 7] = -1
    found = posterior_entropy(rhm, leaves)
    assert (found < math.log(8)).all() and found.mean() > 0.1


def test_the_entropy_of_a_deep_tree_is_the_mean_surprise_of_its_posterior_samples() -> None:
    """Each of 4 rows within 5 standard errors of 4000 trees: false alarms below 1e-5 in all, seed fixed."""
    grammar = random_grammar(4, 5, seed=9, zeros=0.2)
    leaves = grammar.sequences(0, 4)
    trees = sample_posterior(grammar, leaves, n=4000, seed=1)
    surprise = log_likelihood(grammar, leaves) - grammar.prior[trees[0][..., 0]].log()
    for l in range(grammar.L):
        pairs = trees[l + 1]
        surprise = surprise - grammar.level_rules(l)[trees[l], pairs[..., ::2], pairs[..., 1::2]].log().sum(-1)
    found = posterior_entropy(grammar, leaves)
    assert (found > 1).all()
    assert ((surprise.mean(0) - found).abs() < 5 * surprise.std(0) / math.sqrt(4000)).all()


@pytest.mark.parametrize('scale', [1e-200, 1e200])
def test_the_scale_of_likelihoods_changes_no_entropy(scale: float) -> None:
    grammar = random_grammar(4, 6, seed=1)
    evidence = mixed_evidence(grammar.sequences(0, 3), 4, seed=9)
    assert_close(posterior_entropy(grammar, evidence * scale), posterior_entropy(grammar, evidence))


@pytest.mark.parametrize('beta', [0.0, 2.0, 12.0])
def test_entropies_of_a_thousand_leaves_neither_underflow_nor_lose_digits(beta: float) -> None:
    rlm = RLM(v=8, L=10, beta=beta)
    leaves = tokens_with_unknown(rlm.sequences(0, 2), 0.5, seed=10)
    found = posterior_entropy(rlm, leaves)
    assert found.isfinite().all() and (found >= 0).all()
    if beta == 0:  # every hidden symbol and every unknown token is uniform
        unknown = 1023 + (leaves < 0).sum(1)
        torch.testing.assert_close(found, unknown.double() * math.log(8), rtol=1e-12, atol=0)


# ------------------------------------------------------------------ limits


def copying_grammar() -> TreeGrammar:
    """Each symbol becomes two copies of itself: only constant sequences are possible."""
    rules = torch.zeros(3, 3, 3)
    rules[torch.arange(3), torch.arange(3), torch.arange(3)] = 1
    return TreeGrammar(rules, L=2)


@pytest.mark.parametrize('function', [node_posteriors, leaf_posteriors, posterior_entropy])
@pytest.mark.parametrize('dense', [False, True])
def test_impossible_evidence_is_an_error_that_names_the_first_row(
    function: Callable, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.tensor([[0, -1, -1, -1], [2, -1, 2, -1], [1, 1, 1, 1], [0, -1, 1, -1], [0, 1, -1, -1]])
    evidence = likelihoods(tokens, 3) if dense else tokens
    for language in (copying_grammar(), copying_grammar().filtered(0), copying_grammar().filtered(1)):
        function(language, evidence[:3])
        for rows in (1000, 3, 2):
            monkeypatch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': rows * 3})
            with pytest.raises(ValueError, match=r'^row 3 has probability zero'):
                function(language, evidence)


def test_a_leaf_at_which_nothing_is_possible_makes_the_evidence_impossible() -> None:
    evidence = torch.ones(2, 4, 3)
    evidence[1, 2] = 0
    assert evidence_log_likelihood(copying_grammar(), evidence)[1] == -math.inf
    for function in (node_posteriors, posterior_entropy):
        with pytest.raises(ValueError, match=r'^row 1 has probability zero'):
            function(copying_grammar(), evidence)


@pytest.mark.parametrize(
    'message', ['token -2 in evidence', r'evidence of shape \(2, 3\)', 'negative, infinite or nan']
)
def test_entropies_refuse_evidence_that_does_not_fit(message: str) -> None:
    evidence = {'t': torch.tensor([[0, 1, -2, 2]]), 'e': torch.zeros(2, 3).long(), 'n': -torch.ones(2, 4, 3)}
    with pytest.raises(ValueError, match=message):
        posterior_entropy(copying_grammar(), evidence[message[0]])


def test_an_empty_batch_has_no_entropies() -> None:
    grammar = random_grammar(3, 2, seed=4)
    assert posterior_entropy(grammar, torch.zeros(0, 4, dtype=torch.int64)).shape == (0,)
    assert posterior_entropy(grammar, torch.zeros(0, 4, 3)).shape == (0,)


@pytest.mark.parametrize(('name', 'entries'), [('_MESSAGE_ENTRIES', 35), ('_CHUNK_ENTRIES', 1000)])
def test_pieces_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, entries: int) -> None:
    grammar = random_grammar(5, 3, seed=2)
    leaves = grammar.sequences(0, 30)
    evidence = [tokens_with_unknown(leaves, 0.3, seed=11), mixed_evidence(leaves, 5, seed=12)]

    def everything() -> list[Tensor]:
        functions = (leaf_posteriors, evidence_log_likelihood, posterior_entropy)
        return [function(grammar, known) for function in functions for known in evidence]

    at_once = everything()
    monkeypatch.setattr(propagation, name, {'cpu': entries})
    for whole, parts in zip(at_once, everything(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize('function', [leaf_posteriors, evidence_log_likelihood, posterior_entropy])
def test_more_sequences_are_worked_on_in_as_small_pieces(function: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of a piece of at least 2 n v numbers a sequence stay below the bound, however many sequences."""
    pieces: list[int] = []

    def recorded(evidence: Tensor, first: int = 0) -> propagation.Nodes:
        pieces.append(len(evidence))
        return propagation.seen_leaves(evidence, first)

    for module in (inference, posteriors):
        monkeypatch.setattr(module, 'seen_leaves', recorded)
    monkeypatch.setattr(propagation, '_CHUNK_ENTRIES', {'cpu': 1000})
    grammar = random_grammar(3, 3, seed=2)
    for number in (50, 500):
        pieces.clear()
        function(grammar, mixed_evidence(grammar.sequences(0, number), 3, seed=16))
        assert sum(pieces) >= number and 1 < max(pieces) <= 1000 // (2 * 8 * 3)


@pytest.mark.parametrize('L', [2, 3, 5])
def test_contractions_are_as_few_as_documented(monkeypatch: pytest.MonkeyPatch, L: int) -> None:
    """3 n - 5 of v^3 a sequence given likelihoods, those of n / 2 leaves given tokens, however few are known."""
    rows: list[int] = []

    def counting(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rows.append(len(y))
        return sum_product(tensor, x, y)

    sum_product = propagation.sum_product
    monkeypatch.setattr(propagation, 'sum_product', counting)
    grammar = random_grammar(3, L, seed=7)
    leaves, n = grammar.sequences(0, 6), 2**L
    for evidence, count in (
        (mixed_evidence(leaves, 3, seed=13), 3 * n - 5),
        (leaves, 3 * n // 2 - 5),
        (tokens_with_unknown(leaves, 0.15, seed=14), 3 * n // 2 - 5),
        (tokens_with_unknown(leaves, 0.9, seed=15), 3 * n // 2 - 5),
    ):
        rows.clear()
        leaf_posteriors(grammar, evidence)
        assert sum(rows) == 6 * count
