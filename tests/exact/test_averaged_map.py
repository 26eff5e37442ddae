"""The averaged theory of the denoising transition: against every set of rules, every tree, and belief propagation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from brute_force import all_trees
from torch import Tensor

from RLM_clean.datasets import RHM, TreeGrammar
from RLM_clean.exact import averaged_map, denoising

TOLERANCE: dict[str, Any] = {'atol': 1e-12, 'rtol': 1e-12}


@pytest.mark.parametrize(('v', 'm'), [(2, 1), (2, 2), (3, 1), (3, 2)])
def test_the_map_and_the_law_of_children_are_averages_over_all_rules(v: int, m: int) -> None:
    """The true rule is 0 -> (0, 0); the other m v - 1 productions are any of the other pairs, in any order."""
    if (v, m) == (2, 2):  # all pairs are used: 6 orders
        assert len(_all_rules(v, m)) == math.factorial(3)
    for p in (0.2, 0.5, 0.9):
        belief = torch.full((v,), (1 - p) / (v - 1), dtype=torch.float64)
        belief[0] = p
        rules = _all_rules(v, m)  # (N, v m, 2), production k of symbol a in row a m + k
        weights = belief[rules].prod(-1).view(len(rules), v, m)
        above = weights.sum(2).mean(0)
        expected = above[0] / above.sum()
        torch.testing.assert_close(
            averaged_map.map_up(torch.tensor(p, dtype=torch.float64), v, m), expected, **TOLERANCE
        )
        law = averaged_map.children(torch.tensor(p, dtype=torch.float64), v, m)
        states = (rules != 0).view(len(rules), v, m, 2).long()
        for state, parents in enumerate((slice(0, 1), slice(1, v))):
            found = torch.zeros(2, 2, dtype=torch.float64)
            for i, j in itertools.product(range(2), repeat=2):
                here = (states[:, parents, :, 0] == i) & (states[:, parents, :, 1] == j)
                found[i, j] = (weights[:, parents] * here).sum()
            torch.testing.assert_close(law[state], found / found.sum(), **TOLERANCE)


def test_recovery_and_covariances_are_those_of_a_chain_with_two_states_on_the_tree() -> None:
    """Every tree of recovered (0) and other (1) nodes, with the laws of children as rules."""
    v, m, L = 8, 3, 3
    for noise in (0.1, 0.6, 0.95):
        p = averaged_map.beliefs_up(torch.tensor(noise, dtype=torch.float64), v, m, L)
        laws = [averaged_map.children(p[L - 1 - level], v, m) for level in range(L)]
        chain = TreeGrammar(laws, L, prior=[p[L].item(), 1 - p[L].item()])
        levels, probs = all_trees(chain)
        recovered, covariances = averaged_map.averaged_recovery(torch.tensor(noise, dtype=torch.float64), v, m, L)
        for level, states in enumerate(levels):
            for node in range(2**level):
                torch.testing.assert_close(recovered[level], probs @ (states[:, node] == 0).double(), **TOLERANCE)
        changed = 2.0 * levels[-1].double() - 1
        C = changed.T @ (probs[:, None] * changed) - torch.outer(probs @ changed, probs @ changed)
        for height, other in enumerate((0, 1, 2, 4)):
            torch.testing.assert_close(covariances[height], C[0, other], **TOLERANCE)


def test_the_threshold_is_the_unstable_fixed_point_between_chance_and_certainty() -> None:
    for v, m in ((32, 8), (8, 3), (101, 50), (5, 2)):
        found = averaged_map.threshold(v, m)
        p = torch.tensor([1 / v, found.belief, 1.0], dtype=torch.float64)
        torch.testing.assert_close(averaged_map.map_up(p, v, m), p, **TOLERANCE)
        step = 1e-6
        rise = averaged_map.map_up(p + step, v, m) - averaged_map.map_up(p - step, v, m)
        slopes = (rise / (2 * step)).tolist()
        assert slopes[1] == pytest.approx(found.slope, rel=1e-8) and slopes[0] < 1 < slopes[1] and slopes[2] < 1
        assert 1 - found.noise + found.noise / v == pytest.approx(found.belief)
        to_child = averaged_map.children(p[1], v, m).sum(2)
        assert (to_child[0, 0] - to_child[1, 0]).item() == pytest.approx(found.slope / 2)
        assert found.nu == pytest.approx(math.log(2) / math.log(slopes[1]), rel=1e-6)


def test_deep_trees_keep_their_root_below_the_threshold_and_lose_it_above() -> None:
    noise = averaged_map.threshold(32, 8).noise
    below, at, above = averaged_map.beliefs_up(
        torch.tensor([noise - 0.01, noise, noise + 0.01], dtype=torch.float64), 32, 8, 60
    )
    assert below[-1] > 0.999 and at[-1].item() == pytest.approx(7 / 24, abs=1e-4) and above[-1] < 1 / 32 + 1e-3
    assert noise == pytest.approx(0.7312, abs=1e-4)  # arXiv:2410.13770 gives 0.74 for these sizes


def test_at_the_threshold_covariances_fall_as_a_power_of_the_distance_and_around_it_faster() -> None:
    """Heights 10 to 15 of depth 40: far from the tokens and from the root. On both sides, at distances of 2^15, the
    covariance is less than a tenth of that."""
    at = averaged_map.threshold(32, 8)
    noises = torch.tensor([at.noise - 0.01, at.noise, at.noise + 0.01], dtype=torch.float64)
    _, covariances = averaged_map.averaged_recovery(noises, 32, 8, 40)
    falls = -covariances[1, 10:16].log2().diff()
    torch.testing.assert_close(falls, torch.full_like(falls, at.decay), atol=0.02, rtol=0)
    assert at.decay == pytest.approx(0.9434, abs=1e-4)
    assert (covariances[[0, 2], 15] < 0.1 * covariances[1, 15]).all() and (covariances > 0).all()


def test_grammars_without_a_threshold_are_refused() -> None:
    for v, m in ((32, 1), (32, 17), (7, 4), (2, 2)):
        with pytest.raises(ValueError, match=f'm={m}, v={v} have no threshold: use 2 <= m < '):
            averaged_map.threshold(v, m)


def test_without_noise_all_is_recovered_and_with_full_noise_the_root_by_chance() -> None:
    recovered, covariances = averaged_map.averaged_recovery(torch.tensor([0.0, 1.0], dtype=torch.float64), 9, 3, 4)
    torch.testing.assert_close(recovered[0], torch.ones(5, dtype=torch.float64), **TOLERANCE)
    assert covariances[0].abs().max() < 1e-12
    torch.testing.assert_close(recovered[1, 0], torch.tensor(1 / 9, dtype=torch.float64), **TOLERANCE)


@pytest.mark.parametrize('noise', [0.5, 0.73, 0.9])
def test_belief_propagation_averaged_over_rules_follows_the_theory(noise: float) -> None:
    """v = 32, m = 8, L = 2, 24 rules with 24 sequences each. What the theory neglects, and the sampling, come to 0.011
    at most; the largest standard error of the averages is 0.0036, so that 0.025 is four of them beyond."""
    levels, covariances = [], []
    for seed in range(24):
        rhm = RHM(32, 8, 2, seed_rules=seed)
        trees = rhm.trees(0, 24, 'test')
        found = denoising.recovery(rhm, trees, denoising.noisy_evidence(trees[-1], 32, noise))
        levels.append(found.levels.mean(0))
        covariances.append(denoising.change_covariances(found).mean(0))
    expected = averaged_map.averaged_recovery(torch.tensor(noise, dtype=torch.float64), 32, 8, 2)
    for found_mean, theory in zip((torch.stack(levels), torch.stack(covariances)), expected, strict=True):
        difference = found_mean.mean(0) - theory
        assert difference.abs().max() < 0.025


def _all_rules(v: int, m: int) -> Tensor:
    pairs = list(itertools.product(range(v), repeat=2))[1:]
    return torch.tensor([[(0, 0), *others] for others in itertools.permutations(pairs, m * v - 1)])
