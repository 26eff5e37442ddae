"""The Random Hierarchy Model: what its grammars promise, and that its samples keep to them."""

import math
from typing import Any

import pytest
import torch

from RLM_clean.datasets import RHM, TreeGrammar
from RLM_clean.datasets.random_hierarchy_model import chosen_levels, production_law, random_productions
from RLM_clean.exact import entropies


def test_the_productions_of_a_level_are_distinct_and_equally_likely() -> None:
    for v, m, L in ((16, 4, 3), (7, 1, 2), (5, 5, 2), (2, 2, 1)):
        rhm = RHM(v, m, L)
        for level in range(L):
            productions = rhm.productions(level)
            assert productions.shape == (v, m, 2) and productions.dtype == torch.int64
            pairs = (productions[..., 0] * v + productions[..., 1]).flatten()
            assert len(pairs.unique()) == v * m
            rules = rhm.level_rules(level).flatten(1)
            chosen = rules.gather(1, pairs.view(v, m))
            torch.testing.assert_close(chosen, torch.full_like(chosen, 1 / m), atol=1e-15, rtol=1e-14)
            assert (rules != 0).sum() == v * m
            assert rhm.rules[level].dtype == torch.float32


def test_levels_have_independent_rules() -> None:
    """Pairs that two levels both use, and rules that they share, are as few as chance makes them.

    Of the 4096 pairs 256 are used on each level: 16 in common, with standard deviation 3.75. Of the 262144 possible
    rules a -> bc, 256 are used on each level: 0.25 in common. With bounds of 4 standard deviations and of 4 rules, one
    false alarm in about 3000 seeds.
    """
    rhm = RHM(v=64, m=4, L=3)
    used = [rules != 0 for rules in rhm.rules]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert abs((used[first].any(0) & used[second].any(0)).sum().item() - 16) < 4 * 3.75
        assert (used[first] & used[second]).sum().item() <= 4


def test_the_seed_alone_makes_the_grammar() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rhm = RHM(8, 3, 2, seed_rules=5)
    rhm.sample_batch(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = RHM(8, 3, 2, seed_rules=5, seed_samples=1), RHM(8, 3, 2, seed_rules=6)
    assert all(torch.equal(a, b) for a, b in zip(rhm.rules, same.rules, strict=True))
    assert not torch.equal(rhm.rules[0], other.rules[0])
    deeper = RHM(8, 3, 4, seed_rules=5)
    assert all(torch.equal(a, b) for a, b in zip(rhm.rules, deeper.rules, strict=False))


def test_the_seed_keeps_its_meaning() -> None:
    """Golden grammar: if it changes, every stored result of an RHM loses its language; change it only knowingly."""
    productions = RHM(4, 2, 1, seed_rules=12345).productions(0).tolist()
    assert productions == [[[0, 2], [1, 3]], [[1, 1], [1, 2]], [[1, 0], [3, 3]], [[0, 3], [2, 1]]]


def test_productions_are_drawn_with_equal_probability() -> None:
    """Chi-square of the v m = 48 productions of each level at its 0.9999 quantile: one false alarm in 3000 seeds."""
    v, m, L, n = 16, 3, 3, 20000
    rhm = RHM(v, m, L)
    trees = rhm.sample_trees(n)
    for level in range(L):
        parents = trees[level].flatten()
        left, right = trees[level + 1][:, ::2].flatten(), trees[level + 1][:, 1::2].flatten()
        counts = torch.zeros(v, v, v, dtype=torch.float64)
        counts.index_put_((parents, left, right), torch.ones(len(parents), dtype=torch.float64), accumulate=True)
        drawn = counts[rhm.rules[level] != 0].view(v, m)
        assert drawn.sum() == len(parents)
        # A symbol that is in no production of the level above is never seen.
        drawn = drawn[drawn.sum(1) > 0]
        expected = drawn.mean(1, keepdim=True)
        assert len(drawn) > v // 2 and expected.min() > 50
        chi_square = ((drawn - expected) ** 2 / expected).sum().item()
        assert chi_square < _chi_square_quantile(len(drawn) * (m - 1), 3.72)


def test_the_root_is_uniform_by_default() -> None:
    """Chi-square with 7 degrees of freedom at its 0.9999 quantile: one false alarm in 10000 seeds."""
    n = 20000
    counts = RHM(8, 2, 1).sample_trees(n)[0].flatten().bincount(minlength=8).double()
    assert ((counts - n / 8) ** 2 / (n / 8)).sum().item() < _chi_square_quantile(7, 3.72)
    fixed = RHM(8, 2, 1, probs=[0, 0, 1, 0, 0, 0, 0, 0]).sample_trees(10)[0]
    assert torch.equal(fixed, torch.full((10, 1), 2))


def test_a_tree_is_read_off_its_leaves() -> None:
    rhm = RHM(12, 5, 4)
    trees = rhm.sample_trees(500)
    symbols = trees[-1]
    for level in reversed(range(rhm.L)):
        parent_of = torch.full((rhm.v, rhm.v), -1)
        productions = rhm.productions(level)
        parents = torch.arange(rhm.v)[:, None].expand(rhm.v, rhm.m)
        parent_of[productions[..., 0], productions[..., 1]] = parents
        symbols = parent_of[symbols[:, ::2], symbols[:, 1::2]]
        assert torch.equal(symbols, trees[level])


def test_it_is_a_dataset_like_any_tree_grammar() -> None:
    rhm = RHM(6, 2, 3, num_data=10, seed_samples=3)
    assert isinstance(rhm, TreeGrammar) and len(rhm) == 10
    inputs, target = rhm[4]
    assert inputs.shape == (7,) and target.shape == ()
    inputs, targets = RHM(6, 2, 3).sample_batch(5)
    assert inputs.shape == (5, 7) and targets.shape == (5,)
    assert 'v=6, m=2, L=3' in repr(rhm)


def test_stored_rules_give_back_the_grammar() -> None:
    rhm = RHM(6, 2, 3, seed_rules=1)
    again = RHM(6, 2, 3, seed_rules=1, rules=torch.stack(rhm.rules))
    assert torch.equal(rhm.sequences(0, 50), again.sequences(0, 50))
    stored = torch.stack(rhm.rules)
    with pytest.raises(ValueError, match='shape'):
        RHM(6, 2, 2, rules=stored)
    with pytest.raises(ValueError, match='not those of an RHM with m=3'):
        RHM(6, 3, 3, rules=stored)
    ambiguous = stored.clone()
    ambiguous[0, 1] = ambiguous[0, 0]
    with pytest.raises(ValueError, match='pairs of its own'):
        RHM(6, 2, 3, rules=ambiguous)


def test_sizes_out_of_range_are_refused_with_a_remedy() -> None:
    for v, m, L, message in (
        (8, 0, 2, 'm=0.*use 1 to v=8'),
        (8, 9, 2, 'm=9.*use 1 to v=8'),
        (1, 1, 2, 'v=1'),
        (8, 2, 0, 'L=0'),
    ):
        with pytest.raises(ValueError, match=message):
            RHM(v, m, L)
    with pytest.raises(ValueError, match=r's=3.*use s=2'):
        RHM(8, 2, 2, s=3)


# ------------------------------------------------------------------ Zipf's law


def test_the_kth_production_that_is_drawn_has_the_kth_probability_of_zipfs_law() -> None:
    """Harmonic sums by hand: for a = 1, m = 3 the weights are 1, 1/4, 1/9, whose sum is 49/36."""
    torch.testing.assert_close(production_law(3, 1.0), torch.tensor([36, 9, 4], dtype=torch.float64) / 49)
    v, m, L = 9, 3, 3
    rhm = RHM(v, m, L, seed_rules=4, zipf=1.0, zipf_levels=(0, 2))
    drawn = random_productions(v, m, L, 4)
    parents = torch.arange(v)[:, None].expand(v, m)
    for level, law in enumerate(([36 / 49, 9 / 49, 4 / 49], [1 / 3] * 3, [36 / 49, 9 / 49, 4 / 49])):
        rules = rhm.level_rules(level)
        found = rules[parents, drawn[level, ..., 0], drawn[level, ..., 1]]
        expected = torch.tensor(law, dtype=torch.float64).expand(v, m)
        torch.testing.assert_close(found, expected, atol=0, rtol=2e-7)  # kept in float32
        assert (rules != 0).sum() == v * m
    assert torch.equal(rhm.productions(0), drawn[0]) and torch.equal(rhm.productions(2), drawn[2])
    assert torch.equal(rhm.productions(1), RHM(v, m, L, seed_rules=4).productions(1))


def test_zipfs_law_is_at_the_chosen_levels_alone_and_the_others_stay_as_they_are() -> None:
    equal = RHM(8, 4, 4, seed_rules=2)
    for given, levels in (('leaves', (3,)), ('all', (0, 1, 2, 3)), ('0,2', (0, 2)), (1, (1,)), ([3, 0, 3], (0, 3))):
        zipf = RHM(8, 4, 4, seed_rules=2, zipf=0.5, zipf_levels=given)
        assert zipf.zipf_levels == levels == chosen_levels(given, 4)
        for level in range(4):
            assert torch.equal(zipf.rules[level] != 0, equal.rules[level] != 0)
            assert torch.equal(zipf.rules[level], equal.rules[level]) == (level not in levels)
    assert RHM(8, 4, 4, zipf=0.5).zipf_levels == (3,)
    assert 'zipf=0.5, zipf_levels=(3,)' in repr(RHM(8, 4, 4, zipf=0.5))


def test_without_zipf_the_levels_have_no_effect() -> None:
    equal = RHM(8, 4, 2, zipf_levels='all')
    assert equal.zipf is None and equal.zipf_levels == () and 'zipf' not in repr(equal)
    assert all(torch.equal(a, b) for a, b in zip(equal.rules, RHM(8, 4, 2).rules, strict=True))


def test_productions_are_drawn_with_zipfs_law() -> None:
    """Chi-square of the v m = 40 productions of each level at its 0.9999 quantile: one false alarm in 5000 seeds."""
    v, m, L, n = 10, 4, 2, 20000
    rhm = RHM(v, m, L, zipf=0.7, zipf_levels='all')
    weights = torch.tensor([k**-1.7 for k in range(1, m + 1)], dtype=torch.float64)
    trees = rhm.sample_trees(n)
    for level in range(L):
        pairs = rhm.productions(level)
        parents = torch.arange(v)[:, None].expand(v, m)
        counts = torch.zeros(v, v, v, dtype=torch.float64)
        seen = trees[level].flatten(), trees[level + 1][:, ::2].flatten(), trees[level + 1][:, 1::2].flatten()
        counts.index_put_(seen, torch.ones(len(seen[0]), dtype=torch.float64), accumulate=True)
        drawn = counts[parents, pairs[..., 0], pairs[..., 1]]
        assert drawn.sum() == len(seen[0])
        drawn = drawn[drawn.sum(1) > 0]  # a symbol that is in no production of the level above is never seen
        expected = drawn.sum(1, keepdim=True) * weights / weights.sum()
        assert len(drawn) > v // 2 and expected.min() > 20
        chi_square = ((drawn - expected) ** 2 / expected).sum().item()
        assert chi_square < _chi_square_quantile(len(drawn) * (m - 1), 3.72)


def test_the_entropies_of_a_zipf_language_are_those_of_its_law() -> None:
    """A tree is read off its leaves, so that the sequence has the entropy ln v + sum_l 2^l h_l, h_l that of a rule."""
    v, m, a = 5, 3, 0.8
    weights = [k ** -(1 + a) for k in range(1, m + 1)]
    zipf = -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    for L, levels, rules in ((1, 'leaves', zipf), (2, '0', zipf + 2 * math.log(m)), (2, '1', math.log(m) + 2 * zipf)):
        rhm = RHM(v, m, L, zipf=a, zipf_levels=levels)
        assert entropies.tree_entropy(rhm) == pytest.approx(math.log(v) + rules, rel=1e-7)
        value, error = entropies.leaves_entropy(rhm)
        assert error == 0 and value == pytest.approx(math.log(v) + rules, rel=1e-7)


def test_stored_rules_give_back_a_zipf_language() -> None:
    rhm = RHM(6, 3, 3, seed_rules=1, zipf=1.2, zipf_levels='1,2')
    stored = torch.stack(rhm.rules)
    again = RHM(6, 3, 3, rules=stored, zipf=1.2, zipf_levels='1,2')
    assert torch.equal(rhm.sequences(0, 50), again.sequences(0, 50))
    assert all(torch.equal(rhm.productions(level), again.productions(level)) for level in range(3))
    others: list[dict[str, Any]] = [{}, {'zipf': 1.2, 'zipf_levels': 'all'}, {'zipf': 1.3, 'zipf_levels': '1,2'}]
    for other in others:
        with pytest.raises(ValueError, match='not those of an RHM with m=3'):
            RHM(6, 3, 3, rules=stored, **other)
    with pytest.raises(ValueError, match=r'zipf=1\.2: give each symbol 3 pairs'):
        RHM(6, 3, 3, rules=torch.stack(RHM(6, 3, 3, seed_rules=1).rules), zipf=1.2)


def test_a_law_or_levels_that_do_not_exist_are_refused_with_a_remedy() -> None:
    for zipf, levels, message in (
        (0.0, 'leaves', r'zipf=0\.0 is not a valid exponent: use a number above 0'),
        (math.nan, 'leaves', 'zipf=nan'),
        (math.inf, 'leaves', 'zipf=inf'),
        (80.0, 'leaves', r'zipf=80\.0 leaves the last of m=4 .*use less'),
        (1.0, 'top', "zipf_levels='top' does not name levels: use 'leaves', 'all'"),
        (1.0, '', "zipf_levels='' does not name"),
        (1.0, '0,3', r'depth L=3: .*from 0 \(the root\) to 2'),
        (1.0, -1, r'zipf_levels=-1'),
        (1.0, (), r'zipf_levels=\(\)'),
    ):
        with pytest.raises(ValueError, match=message):
            RHM(8, 4, 3, zipf=zipf, zipf_levels=levels)


def _chi_square_quantile(k: int, z: float) -> float:
    """The quantile of chi-square with k degrees of freedom at z standard deviations of a normal (Wilson-Hilferty)."""
    return k * (1 - 2 / (9 * k) + z * math.sqrt(2 / (9 * k))) ** 3
