"""Unambiguous grammars: pairs with one parent each, log-normal weights, and seeds that make them."""

from __future__ import annotations

import math

import pytest
import torch

from RLM_clean.datasets import TreeGrammar, Unambiguous
from RLM_clean.exact import entropies


def test_each_pair_of_children_belongs_to_one_symbol() -> None:
    for v, sigma in ((2, 1.0), (4, 1.0), (7, 0.0), (16, 2.0)):
        language = Unambiguous(v, 2, sigma)
        used = language.rules[0] > 0
        assert language.rules[0].shape == (v, v, v) and language.rules[0].dtype == torch.float32
        assert (used.sum(0) == 1).all() and (used.sum((1, 2)) == v).all()
        assert (language.M.sum((1, 2)) - 1).abs().max() < 1e-14
        assert language.shared and torch.equal(language.level_rules(1), language.M)


def test_weights_are_the_softmax_of_gaussian_numbers_of_the_seed() -> None:
    generator = torch.Generator().manual_seed(7)
    pairs = torch.randperm(25, generator=generator).view(5, 5)
    weights = (0.7 * torch.randn(5, 5, generator=generator, dtype=torch.float64)).exp()
    M = Unambiguous(5, 1, 0.7, seed_rules=7).M
    for a in range(5):
        found = M[a, pairs[a] // 5, pairs[a] % 5]
        torch.testing.assert_close(found, weights[a] / weights[a].sum(), rtol=3e-7, atol=0)  # kept in float32


def test_weights_are_log_normal_with_the_given_spread() -> None:
    """The variance of ln M around the mean of its row, over 4096 weights: 1 / 45 is one standard error of it.

    At 5 standard errors, one false alarm in 1.7 million seeds; the mean of a row takes one of 64 degrees of freedom.
    """
    sigma = 1.5
    rules = Unambiguous(64, 1, sigma).rules[0].double()
    logs = rules[rules > 0].view(64, 64).log()
    spread = (logs - logs.mean(1, keepdim=True)).square().sum() / (64 * 63) / sigma**2
    assert abs(spread.item() - 1) < 5 * math.sqrt(2 / (64 * 63))


def test_no_spread_makes_pairs_equally_likely_and_an_infinite_one_leaves_a_single_pair() -> None:
    flat = Unambiguous(6, 1, 0.0).M
    torch.testing.assert_close(flat[flat > 0], torch.full((36,), 1 / 6, dtype=torch.float64), rtol=1e-7, atol=0)
    one_hot, steep = Unambiguous(6, 1, math.inf).M, Unambiguous(6, 1, 1e4).M
    assert torch.equal(one_hot.amax((1, 2)), torch.ones(6).double()) and (one_hot > 0).sum() == 6
    torch.testing.assert_close(steep, one_hot, rtol=0, atol=1e-12)


def test_the_seed_alone_makes_the_grammar() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    language = Unambiguous(5, 2, seed_rules=5)
    language.sample_batch(4)
    assert torch.equal(torch.get_rng_state(), before)
    same, other = Unambiguous(5, 3, seed_rules=5, seed_samples=1), Unambiguous(5, 2, seed_rules=6)
    assert torch.equal(language.M, same.M) and not torch.equal(language.M > 0, other.M > 0)
    assert torch.equal(Unambiguous(5, 2, 2.0, seed_rules=5).M > 0, language.M > 0)


def test_the_seed_keeps_its_meaning() -> None:
    """Golden rules: if they change, every stored result loses its language; change them only knowingly."""
    M = Unambiguous(2, 1, 1.0, seed_rules=12345).M.flatten()
    golden = torch.tensor(
        [0.0, 0.3588094711, 0.6411905289, 0.0, 0.7495321259, 0.0, 0.0, 0.2504678741], dtype=torch.float64
    )
    torch.testing.assert_close(M, golden, rtol=0, atol=1e-7)


@pytest.mark.parametrize('sigma', [0.0, 1.0, math.inf])
def test_no_sequence_has_two_derivations(sigma: float) -> None:
    for v, L in ((4, 2), (3, 2), (2, 3)):
        value, error = entropies.ambiguity(Unambiguous(v, L, sigma))
        assert abs(value) < 1e-12 and error == 0


def test_a_tree_is_read_off_its_leaves() -> None:
    language = Unambiguous(6, 4)
    trees = language.sample_trees(300)
    parent_of = (language.rules[0] > 0).int().argmax(0)
    symbols = trees[-1]
    for level in reversed(range(language.L)):
        symbols = parent_of[symbols[:, ::2], symbols[:, 1::2]]
        assert torch.equal(symbols, trees[level])


def test_stored_rules_give_back_the_grammar() -> None:
    language = Unambiguous(5, 3, seed_rules=1)
    again = Unambiguous(5, 3, rules=language.rules[0], seed_sample=language.seed_sample)
    assert isinstance(again, TreeGrammar) and torch.equal(language.sequences(0, 50), again.sequences(0, 50))
    with pytest.raises(ValueError, match='do not fit v=4'):
        Unambiguous(4, 3, rules=language.rules[0])
    with pytest.raises(ValueError, match='not unambiguous'):
        Unambiguous(5, 3, rules=torch.full((5, 5, 5), 1 / 25))


def test_it_is_a_dataset_like_any_tree_grammar() -> None:
    language = Unambiguous(4, 3, num_data=10, seed_sample=3, probs=[0.0, 0.5, 0.5, 0.0])
    assert len(language) == 10 and language.seed_samples == 3
    inputs, target = language[4]
    assert inputs.shape == (7,) and target.shape == ()
    assert set(language.trees(0, 100)[0].flatten().tolist()) == {1, 2}
    assert 'v=4, L=3, sigma=1' in repr(language)


def test_values_out_of_range_are_refused_with_a_remedy() -> None:
    for v, L, sigma, message in (
        (1, 2, 1.0, 'v=1'),
        (4, 0, 1.0, 'L=0'),
        (4, 2, -1.0, 'sigma=-1'),
        (4, 2, math.nan, 'sig'),
    ):
        with pytest.raises(ValueError, match=message):
            Unambiguous(v, L, sigma)
