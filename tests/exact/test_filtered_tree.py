"""Inference on filtered languages against brute force, to 1e-12, for all heights and rules with zeros."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from brute_force import direct_entropy, last_given, next_given, occurring
from filtered_process import (
    all_filtered_trees,
    filtered_joint,
    law_given_root,
    levels_of,
    number_of_trees,
)
from random_grammars import exhaustive, random_grammar
from torch import Tensor

from RLM_clean import measures, tasks
from RLM_clean.datasets import RHM, RLM, FilteredGrammar, TreeGrammar
from RLM_clean.exact import correlations, entropies, inference
from RLM_clean.exact.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    evidence_log_likelihood,
    leaf_posteriors,
    log_likelihood,
    next_token_probs,
    node_posteriors,
)
from RLM_clean.exact.subtrees import subtree_posteriors


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def mixed_evidence(table: Tensor, rows: int, seed: int) -> Tensor:
    """Likelihoods `(rows, n, v)`, of known tokens, hidden tokens and tokens seen through noise, for possible sequences.

    The noise excludes some symbols, never the one that is there.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves, _ = occurring(table, at_most=rows)
    v = table.shape[0]
    one_hot = torch.nn.functional.one_hot(leaves, v).double()
    noisy = torch.rand(one_hot.shape, generator=generator, dtype=torch.float64) * 3
    noisy = noisy * (torch.rand(one_hot.shape, generator=generator) < 0.7) + one_hot
    kind = torch.randint(3, (*leaves.shape, 1), generator=generator)
    return torch.where(kind == 0, one_hot, torch.where(kind == 1, torch.ones_like(noisy), noisy))


def weights_of(evidence: Tensor) -> Tensor:
    """`prod_i e_i[x_i]` for every sequence, `(rows, v^n)`."""
    table = evidence.new_ones(len(evidence), 1)
    for likelihoods in evidence.unbind(1):
        table = (table[:, :, None] * likelihoods[:, None]).flatten(1)
    return table


def expected_posteriors(original: TreeGrammar, k: int, evidence: Tensor) -> list[Tensor]:
    weights, found = weights_of(evidence), []
    for level in levels_of(original, k):
        nodes = [
            torch.stack(
                [weights @ filtered_joint(original, k, (level, i, a)).flatten() for a in range(original.v)], dim=1
            )
            for i in range(2**level)
        ]
        found.append(torch.stack(nodes, 1))
    return [nodes / nodes.sum(-1, keepdim=True) for nodes in found]


# ------------------------------------------------------------------ the oracle


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)], examples=15)
def test_brute_force_recursion_agrees_with_listing_every_tree(grammar: TreeGrammar) -> None:
    v, n = grammar.v, 2**grammar.L
    for k in range(grammar.L):
        if number_of_trees(grammar, k) > 2**17:
            continue
        levels, probs = all_filtered_trees(grammar, k)
        words = (levels[-1] * v ** torch.arange(n - 1, -1, -1)).sum(1)
        assert_close(
            filtered_joint(grammar, k).flatten(), torch.zeros(v**n, dtype=torch.float64).index_add(0, words, probs)
        )
        for level, nodes in zip(levels_of(grammar, k), levels, strict=True):
            pinned = torch.zeros(v**n, dtype=torch.float64).index_add(0, words, probs * (nodes[:, -1] == v - 1))
            assert_close(filtered_joint(grammar, k, (level, 2**level - 1, v - 1)).flatten(), pinned)


# ------------------------------------------------------------------ exactness


@exhaustive(examples=25)
def test_posteriors_and_likelihoods_of_any_evidence_are_exact_for_every_height(grammar: TreeGrammar) -> None:
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        evidence = mixed_evidence(table, rows=5, seed=k)
        found = node_posteriors(language, evidence)
        for nodes, expected in zip(found, expected_posteriors(grammar, k, evidence), strict=True):
            assert_close(nodes, expected)
        assert_close(leaf_posteriors(language, evidence), found[-1])
        assert_close(evidence_log_likelihood(language, evidence), (weights_of(evidence) @ table.flatten()).log())


@exhaustive(examples=25)
def test_hidden_tokens_count_as_likelihoods_of_one(grammar: TreeGrammar) -> None:
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        leaves, _ = occurring(table, at_most=20)
        hidden = torch.rand(leaves.shape, generator=torch.Generator().manual_seed(k)) < 0.5
        one_hot = torch.nn.functional.one_hot(leaves, grammar.v).double()
        likelihoods = one_hot.masked_fill(hidden[..., None], 1.0)
        tokens = leaves.masked_fill(hidden, -1)
        assert_close(leaf_posteriors(language, tokens), leaf_posteriors(language, likelihoods))
        expected = (weights_of(likelihoods) @ table.flatten()).log()
        assert_close(evidence_log_likelihood(language, tokens), expected)


@exhaustive(examples=25)
def test_next_tokens_are_exact_for_every_height_and_number_of_tokens(grammar: TreeGrammar) -> None:
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        leaves, probs = occurring(table, at_most=50)
        for seen in range(2**grammar.L):
            contexts, expected = last_given(table, seen)
            chosen = slice(None, None, 1 + len(contexts) // 100)
            assert_close(next_token_probs(language, contexts[chosen]), expected[chosen])
        assert_close(all_next_token_probs(language, leaves), next_given(table, leaves))
        assert_close(log_likelihood(language, leaves), probs.log())
        for m in range(1, 2**grammar.L):
            last = table.reshape(-1, *[grammar.v] * m).sum(0)
            assert_close(log_likelihood(language, leaves[:, -m:]), last[tuple(leaves[:, -m:].T)].log())
            assert_close(all_next_token_probs(language, leaves[:, -m:]), next_given(last, leaves[:, -m:]))


@exhaustive(examples=15)
def test_nodes_given_the_past_are_exact(grammar: TreeGrammar) -> None:
    for k in range(grammar.L):
        leaves, _ = occurring(filtered_joint(grammar, k), at_most=5)
        one_hot = torch.nn.functional.one_hot(leaves, grammar.v).double()
        for past in range(2**grammar.L + 1):
            seen = torch.arange(2**grammar.L)[:, None] < past
            found = ancestor_posteriors(grammar.filtered(k), leaves, past)
            for nodes, expected in zip(found, expected_posteriors(grammar, k, one_hot.where(seen, 1.0)), strict=True):
                assert_close(nodes, expected)


@exhaustive([(2, 1), (3, 2), (4, 2), (2, 3)], examples=15)
def test_posteriors_from_a_part_of_the_sequence_are_exact(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        evidence = mixed_evidence(table, rows=3, seed=k)
        for height in range(grammar.L + 1):
            posteriors, log_probs = subtree_posteriors(language, evidence, height)
            for block in range(n >> height):
                inside = torch.arange(n) >> height == block
                seen = evidence.where(inside[:, None], 1.0)
                assert_close(posteriors[:, inside], expected_posteriors(grammar, k, seen)[-1][:, inside])
                assert_close(log_probs[:, block], (weights_of(seen) @ table.flatten()).log())


# ------------------------------------------------------------------ what filtering keeps, and what it removes


def pair_law(language: TreeGrammar, i: int, j: int) -> Tensor:
    """P(x_i = a, x_j = b) by inference on the language."""
    evidence = torch.full((language.v, 2**language.L), -1)
    evidence[:, i] = torch.arange(language.v)
    weights = evidence_log_likelihood(language, evidence).exp()
    possible = weights > 0
    law = torch.zeros(language.v, language.v, dtype=torch.float64)
    law[possible] = weights[possible, None] * leaf_posteriors(language, evidence[possible])[:, j]
    return law


@exhaustive(examples=20)
def test_single_tokens_keep_their_laws_and_pairs_those_of_their_sub_tree(grammar: TreeGrammar) -> None:
    """Across sub-trees a pair has the law of two tokens that are independent given the root."""
    n = 2**grammar.L
    given_root = [law_given_root(grammar, grammar.L, i) for i in range(n)]
    for k in range(grammar.L):
        language = grammar.filtered(k)
        nothing = torch.full((1, n), -1)
        assert_close(leaf_posteriors(language, nothing)[0], correlations.leaf_marginals(grammar))
        assert_close(correlations.leaf_marginals(language), correlations.leaf_marginals(grammar))
        for i in range(n):
            for j in range(i + 1, n):
                law = pair_law(language, i, j)
                if i >> k == j >> k:
                    assert_close(law, correlations.joint(grammar, i, j))
                    assert_close(law, correlations.joint(language, i, j))
                else:
                    assert_close(law, torch.einsum('a,ab,ac->bc', grammar.prior, given_root[i], given_root[j]))


def test_filtering_changes_the_pairs_across_sub_trees() -> None:
    """Otherwise the test above could not tell a filtered language from the original one."""
    grammar = random_grammar(3, 3, seed=1)
    for k in (0, 1):
        assert (pair_law(grammar.filtered(k), 0, 3) - pair_law(grammar, 0, 3)).abs().max() > 1e-3
    assert (pair_law(grammar.filtered(2), 0, 7) - pair_law(grammar, 0, 7)).abs().max() > 1e-4


@pytest.mark.parametrize('grammar', [RLM(4, 2), RHM(4, 2, 3), random_grammar(3, 3, seed=2, zeros=0.3, shared=True)])
def test_the_largest_height_gives_the_original_language(grammar: TreeGrammar) -> None:
    language = grammar.filtered(grammar.L)
    assert type(language) is type(grammar) and language is not grammar
    leaves = grammar.sequences(0, 20)
    evidence = leaves.masked_fill(leaves == 1, -1)
    functions: list[Callable] = [
        lambda g: leaf_posteriors(g, evidence),
        lambda g: node_posteriors(g, evidence),
        lambda g: evidence_log_likelihood(g, evidence),
        lambda g: next_token_probs(g, leaves[:, :-1]),
        lambda g: all_next_token_probs(g, leaves),
        lambda g: log_likelihood(g, leaves),
        lambda g: inference.most_probable_tree(g, leaves)[0],
        correlations.level_marginals,
    ]
    for function in functions:
        for found, expected in zip(function(language), function(grammar), strict=True):
            assert torch.equal(found, expected)


# ------------------------------------------------------------------ entropies


@exhaustive(examples=25)
def test_floors_and_entropies_of_sequences_are_exact(grammar: TreeGrammar) -> None:
    n, v = 2**grammar.L, grammar.v
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        for m in range(1, n + 1):
            window = table.reshape(-1, v**m).sum(0)
            assert_close(entropies.window_distribution(language, m).flatten(), window)
            floor = direct_entropy(window) - direct_entropy(window.view(-1, v).sum(1))
            found, error = entropies.window_entropies(language, [m - 1])[m - 1]
            assert found == pytest.approx(floor, rel=1e-12, abs=1e-12) and error == 0
        found, error = entropies.leaves_entropy(language)
        assert found == pytest.approx(direct_entropy(table), rel=1e-12, abs=1e-12) and error == 0


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2), (2, 3)], examples=15)
def test_the_entropy_of_trees_is_exact(grammar: TreeGrammar) -> None:
    for k in range(grammar.L):
        if number_of_trees(grammar, k) <= 2**17:
            _, probs = all_filtered_trees(grammar, k)
            expected = torch.special.entr(probs).sum().item()
            assert entropies.tree_entropy(grammar.filtered(k)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_sampled_floors_and_entropies_agree_with_sums() -> None:
    """Within 5 standard errors, for 6 numbers: one false alarm in about 300000 seeds."""
    grammar = random_grammar(3, 3, seed=8)
    for k in range(grammar.L):
        language, table = grammar.filtered(k), filtered_joint(grammar, k)
        found, error = entropies.leaves_entropy(language, num_samples=2000, max_sequences=1)
        assert 0 < error < 0.1 and abs(found - direct_entropy(table)) < 5 * error
        posteriors = next_token_probs(language, language.sequences(0, 2000, 'floors')[:, :-1])
        value, error = entropies.mean_and_error(torch.special.entr(posteriors).sum(1))
        assert error > 0 and abs(value - entropies.window_entropies(language, [7])[7][0]) < 5 * error


def test_a_model_is_measured_against_the_filtered_language() -> None:
    """For last, all, masked and denoise, floors and excess are those of its own posteriors."""
    grammar = random_grammar(3, 2, seed=11)
    language, table = grammar.filtered(0), filtered_joint(grammar, 0)
    contexts, posteriors = last_given(table, 3)
    weights = table.sum(3)[tuple(contexts.T)]
    uniform = torch.nn.Linear(3, 3)
    expected = weights @ (math.log(3) - torch.special.entr(posteriors).sum(1))
    found, error = measures.excess_loss(uniform, language, logits=lambda model, inputs: torch.zeros(len(inputs), 3))
    assert found == pytest.approx(expected.item(), rel=1e-6) and error == 0
    assert measures.bayes_floor(language)[0] == pytest.approx(math.log(3) - expected.item(), rel=1e-12)
    for task in (tasks.Masked(0.5), tasks.Denoise(0.4)):
        chosen = task.contexts(language, 4, 50)
        floors = [floor[0] for _, floor, _ in task.floors(language, 4, chosen)]
        assert floors[-1] == pytest.approx(chosen.floor()[0]) and 0 < floors[-1] < math.log(3)
    masked = tasks.Masked(0.5).contexts(language, 4, 50)
    assert_close(masked.posteriors, leaf_posteriors(language, masked.inputs.masked_fill(masked.inputs == 3, -1)))


# ------------------------------------------------------------------ limits


def test_products_over_many_sub_trees_do_not_underflow() -> None:
    """128 tokens, independent given the root, of which one half speaks for root 0 and the other for root 1.

    Each of the first 64 tokens has odds of 10^-10 against root 1; the product of 64 of them is no double.
    """
    small = 1e-10
    grammar = random_grammar(2, 7, seed=0)
    language = FilteredGrammar(grammar, 0)
    language._head_laws = torch.tensor([[1 - small, small], [small, 1 - small]], dtype=torch.float64).expand(128, 2, 2)
    leaves = (torch.arange(128) >= 64).long()[None]
    root, posteriors = node_posteriors(language, leaves.masked_fill(torch.arange(128) == 127, -1))
    odds = [grammar.prior[a].item() for a in (0, 1)]
    # 64 tokens speak for root 0 and 63 for root 1.
    expected = odds[1] * small / (1 - small) / (odds[0] + odds[1] * small / (1 - small))
    assert math.isclose(root[0, 0, 1].item(), expected, rel_tol=1e-10)
    found = next_token_probs(language, leaves[:, :-1])
    assert_close(found, posteriors[:, -1])
    assert math.isclose(found[0, 1].item(), expected * (1 - small) + (1 - expected) * small, rel_tol=1e-10)
    likelihood = log_likelihood(language, leaves)[0].item()
    assert math.isclose(likelihood, 64 * math.log(small * (1 - small)), rel_tol=1e-12)


def test_impossible_evidence_is_refused_or_has_likelihood_zero() -> None:
    rhm = RHM(3, 1, 2, seed_rules=3)
    for k in (0, 1):
        language, table = rhm.filtered(k), filtered_joint(rhm, k)
        impossible = (table == 0).nonzero()[:1]
        possible = table.nonzero()[:1]
        both = torch.cat((possible, impossible))
        assert log_likelihood(language, both, strict=False)[1] == -math.inf
        assert evidence_log_likelihood(language, both)[1] == -math.inf
        for function in (log_likelihood, leaf_posteriors, node_posteriors):
            with pytest.raises(ValueError, match='row 1 has probability zero'):
                function(language, both)
    never = [a for a in range(3) if correlations.leaf_marginals(rhm)[0, a] == 0]
    if never:
        leaves = torch.tensor([[never[0], 0, 0, 0]])
        with pytest.raises(ValueError, match='row 0 has probability zero'):
            all_next_token_probs(rhm.filtered(0), leaves)
        with pytest.raises(ValueError, match='row 0 has probability zero'):
            next_token_probs(rhm.filtered(0), leaves[:, :-1])


def test_a_batch_in_pieces_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    from RLM_clean.exact import propagation

    language = random_grammar(3, 3, seed=5).filtered(1)
    leaves = language.sequences(0, 50)
    whole = node_posteriors(language, leaves)
    monkeypatch.setattr(propagation, '_CHUNK_ENTRIES', {'cpu': 500})
    for found, expected in zip(node_posteriors(language, leaves), whole, strict=True):
        assert_close(found, expected)


def test_what_is_not_known_of_a_filtered_language_is_an_error() -> None:
    """Never the number of the original language."""
    language = random_grammar(3, 3, seed=4, shared=True).filtered(1)
    leaves = language.sequences(0, 2)
    functions: list[Callable] = [
        lambda: inference.most_probable_tree(language, leaves),
        lambda: inference.sample_posterior(language, leaves, n=1, seed=0),
        lambda: inference.spine_posteriors(language, leaves[:, :-1]),
        lambda: inference.spine_posteriors(language, leaves[:, :1]),
        lambda: correlations.joint(language, 0, 7),
        lambda: correlations.mutual_information_by_distance(language),
    ]
    for function in functions:
        with pytest.raises(ValueError, match='has no rules in a language filtered to k=1'):
            function()
