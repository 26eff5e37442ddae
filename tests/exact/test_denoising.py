"""What survives of a tree whose leaves are seen through noise: against every tree, and in the limits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from brute_force import all_trees
from random_grammars import exhaustive

from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import denoising
from RLM_clean.exact.correlations import level_marginals
from RLM_clean.exact.denoising import Recovery, change_covariances, noisy_evidence, recovery
from RLM_clean.exact.inference import node_posteriors

TOLERANCE: dict[str, Any] = {'atol': 1e-12, 'rtol': 1e-12}


@exhaustive([(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (2, 3)], examples=30)
def test_symbols_and_pairs_of_leaves_that_are_recovered_agree_with_all_trees(grammar: TreeGrammar) -> None:
    B, n = 3, 2**grammar.L
    trees = grammar.trees(0, B)
    evidence = torch.rand(B, n, grammar.v, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    evidence[0] *= evidence[0] > 0.3  # likelihoods with zeros, all zero at none of the true tokens
    evidence.scatter_add_(2, trees[-1][..., None], torch.full((B, n, 1), 0.2, dtype=torch.float64))
    found = recovery(grammar, trees, evidence)
    covariances = change_covariances(found)
    levels, probs = all_trees(grammar)
    for row in range(B):
        weights = probs * evidence[row].gather(1, levels[-1].T).prod(0)
        weights = weights / weights.sum()
        for level, symbols in enumerate(levels):
            expected = weights @ (symbols == trees[level][row]).double().mean(1)
            torch.testing.assert_close(found.levels[row, level], expected, **TOLERANCE)
        same = (levels[-1] == trees[-1][row]).double()
        torch.testing.assert_close(found.leaves[row], weights @ same, **TOLERANCE)
        both = same.T @ (weights[:, None] * same)
        changed = 1 - 2 * same
        C = changed.T @ (weights[:, None] * changed) - torch.outer(weights @ changed, weights @ changed)
        for height, pairs in enumerate(_pairs_of_heights(n)):
            torch.testing.assert_close(found.pairs[row, height], sum(both[i, j] for i, j in pairs), **TOLERANCE)
            mean = sum(C[i, j] for i, j in pairs) / len(pairs)
            torch.testing.assert_close(covariances[row, height], mean, **TOLERANCE)
            assert denoising.num_pairs(n, height) == len(pairs)


def test_the_recovery_is_the_posterior_of_the_true_symbols_whatever_the_evidence() -> None:
    rlm = RLM(5, 3, 1.5)
    trees = rlm.trees(0, 40)
    tokens = trees[-1].where(torch.rand(40, 8, generator=torch.Generator().manual_seed(2)) < 0.5, -1)
    for evidence in (tokens, noisy_evidence(trees[-1], 5, 0.4)):
        found = recovery(rlm, trees, evidence)
        for level, posterior in enumerate(node_posteriors(rlm, evidence)):
            expected = posterior.gather(2, trees[level][..., None])[..., 0]
            torch.testing.assert_close(found.levels[:, level], expected.mean(1), **TOLERANCE)
        torch.testing.assert_close(found.leaves, expected, **TOLERANCE)


def test_without_noise_all_is_recovered_and_with_full_noise_what_chance_recovers() -> None:
    rhm = RHM(6, 2, 3)
    trees = rhm.trees(0, 50)
    for kind in denoising.NOISES:
        clear = recovery(rhm, trees, noisy_evidence(trees[-1], 6, 0.0, kind))
        torch.testing.assert_close(clear.levels, torch.ones(50, 4, dtype=torch.float64), **TOLERANCE)
        assert change_covariances(clear).abs().max() < 1e-12
        blind = recovery(rhm, trees, noisy_evidence(trees[-1], 6, 1.0, kind))
        torch.testing.assert_close(blind.levels[:, 0], torch.full((50,), 1 / 6, dtype=torch.float64), **TOLERANCE)
        for level, law in enumerate(level_marginals(rhm)):
            expected = law.expand(50, -1, -1).gather(2, trees[level][..., None]).mean((1, 2))
            torch.testing.assert_close(blind.levels[:, level], expected, **TOLERANCE)


def test_many_sequences_in_chunks_give_what_each_gives_alone() -> None:
    rhm = RHM(4, 2, 2)
    trees = rhm.trees(0, 40000)  # more than a chunk
    evidence = noisy_evidence(trees[-1], 4, 0.6, 'replaced')
    together = recovery(rhm, trees, evidence)
    for rows in (slice(0, 2), slice(32767, 32770), slice(39999, 40000)):
        alone = recovery(rhm, [level[rows] for level in trees], evidence[rows])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[rows], **TOLERANCE)


def test_covariances_over_random_noise_are_unbiased() -> None:
    """Two draws of the noise among the four ways to mask two leaves: averaged over all 16 pairs, the estimate is the
    covariance over masks and new leaves together."""
    grammar, noise = RHM(3, 2, 1), 0.3
    trees = [level[:1] for level in grammar.trees(0, 1)]
    masks = list(itertools.product((False, True), repeat=2))
    weights = [noise ** sum(mask) * (1 - noise) ** (2 - sum(mask)) for mask in masks]
    found = [recovery(grammar, trees, trees[-1].where(~torch.tensor([mask]), -1)) for mask in masks]
    p = torch.stack([w * one.leaves[0] for w, one in zip(weights, found, strict=True)]).sum(0)
    both = torch.stack([w * one.pairs[0, 1] for w, one in zip(weights, found, strict=True)]).sum(0)
    expected = torch.stack((4 * (p * (1 - p)).mean(), 4 * (both - p[0] * p[1])))
    mean = torch.zeros(2, dtype=torch.float64)
    for (w, one), (x, other) in itertools.product(zip(weights, found, strict=True), repeat=2):
        draws = Recovery(*(torch.cat(parts) for parts in zip(one, other, strict=True)))
        mean += w * x * change_covariances(draws, repeats=2)[0]
    torch.testing.assert_close(mean, expected, **TOLERANCE)


def test_repeats_are_rows_of_the_same_sequences() -> None:
    rhm = RHM(5, 2, 2)
    trees = rhm.trees(0, 6)
    twice = [torch.cat((level, level)) for level in trees]
    found = recovery(rhm, twice, noisy_evidence(twice[-1], 5, 0.5))
    once = change_covariances(recovery(rhm, trees, noisy_evidence(trees[-1], 5, 0.5)))
    torch.testing.assert_close(change_covariances(found, repeats=2), once, **TOLERANCE)
    with pytest.raises(ValueError, match='repeats=5 does not divide 12 rows: give the same sequences'):
        change_covariances(found, repeats=5)


def test_each_kind_of_noise_is_seen_as_it_is_defined() -> None:
    """Replaced and masked tokens: frequencies within 4 standard deviations, one false alarm in about 8000 seeds."""
    v, noise, size = 4, 0.3, 40000
    leaves = torch.ones(size // 4, 4, dtype=torch.int64)
    true = torch.nn.functional.one_hot(leaves, v).double()
    torch.testing.assert_close(noisy_evidence(leaves, v, noise), 0.7 * true + 0.3 / v, **TOLERANCE)

    replaced = noisy_evidence(leaves, v, noise, 'replaced', seed=1)
    seen = replaced.argmax(-1)
    expected = 0.7 * torch.nn.functional.one_hot(seen, v).double() + 0.3 / v
    torch.testing.assert_close(replaced, expected, **TOLERANCE)
    counts = seen.flatten().bincount(minlength=v) / size
    for token, p in enumerate((0.3 / v, 0.7 + 0.3 / v, 0.3 / v, 0.3 / v)):
        assert abs(counts[token].item() - p) < 4 * (p * (1 - p) / size) ** 0.5

    masked = noisy_evidence(leaves, v, noise, 'masked', seed=1)
    hidden = (masked == 1 / v).all(-1)
    assert torch.equal(masked[~hidden], true[~hidden])
    assert abs(hidden.double().mean().item() - noise) < 4 * (noise * (1 - noise) / size) ** 0.5
    more = (noisy_evidence(leaves, v, 0.5, 'masked', seed=1) == 1 / v).all(-1)
    assert (more | ~hidden).all() and more.sum() > hidden.sum()


def test_noise_is_a_function_of_its_seed_and_of_the_number_of_a_row() -> None:
    leaves = torch.zeros(50, 4, dtype=torch.int64)
    for kind in ('replaced', 'masked'):
        noisy = noisy_evidence(leaves, 5, 0.5, kind, seed=3)
        assert torch.equal(noisy_evidence(leaves[:20], 5, 0.5, kind, seed=3), noisy[:20])
        assert not torch.equal(noisy_evidence(leaves, 5, 0.5, kind, seed=4), noisy)
        assert not torch.equal(noisy[:25], noisy[25:])


def test_susceptibility_and_length_of_changes_by_hand() -> None:
    """Eight tokens: heights 0, 1, 2, 3 hold 1, 1, 2 and 4 of them, at distances 0, 1, 3 and 7."""
    alone = torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    together = torch.full((4,), 0.5, dtype=torch.float64)
    some = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    found = denoising.susceptibility(torch.stack((alone, together, some)))
    torch.testing.assert_close(found, torch.tensor([1.0, 8.0, 2.0], dtype=torch.float64))
    lengths = denoising.correlation_length(torch.stack((together, some)))
    torch.testing.assert_close(
        lengths, torch.tensor([(1 + 2 * 3 + 4 * 7) / 7, (0.5 + 0.5 * 3) / 1], dtype=torch.float64)
    )


def test_noise_that_is_none_and_impossible_evidence_are_refused() -> None:
    rhm = RHM(4, 1, 1)
    leaves = rhm.trees(0, 2)[-1]
    with pytest.raises(ValueError, match="kind='gaussian' is not a noise: use one of beliefs, replaced, masked"):
        noisy_evidence(leaves, 4, 0.5, 'gaussian')
    with pytest.raises(ValueError, match=r'noise=1\.5 is not a probability: use 0 to 1'):
        noisy_evidence(leaves, 4, 1.5)
    used = rhm.productions(0).view(-1, 2).tolist()
    unused = next(pair for pair in itertools.product(range(4), repeat=2) if list(pair) not in used)
    with pytest.raises(ValueError, match='row 1 has probability zero'):
        recovery(rhm, rhm.trees(0, 2), torch.tensor([used[0], list(unused)]))


def test_evidence_is_checked_and_taken_in_any_precision() -> None:
    rlm = RLM(4, 2, seed_rules=1)
    trees = rlm.trees(0, 3)
    evidence = noisy_evidence(trees[-1], 4, 0.5, seed=1)
    for found, expected in zip(recovery(rlm, trees, evidence.float()), recovery(rlm, trees, evidence), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='token 4 in evidence is not a symbol of the grammar: use -1 to 3'):
        recovery(rlm, trees, torch.full((3, 4), 4))


def _pairs_of_heights(n: int) -> list[list[tuple[int, int]]]:
    """The pairs of n leaves by the height of their lowest common ancestor; at height 0 each leaf with itself."""
    heights: list[list[tuple[int, int]]] = [[(i, i) for i in range(n)], *([] for _ in range(n.bit_length() - 1))]
    for i, j in itertools.combinations(range(n), 2):
        heights[(i ^ j).bit_length()].append((i, j))
    return heights
