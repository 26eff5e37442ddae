"""Filtered languages: their trees, the law of their samples, and their random streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from filtered_process import filtered_joint, law_given_root, levels_of
from random_grammars import random_grammar
from test_streams import ALARM, chi_square

from RLM_clean.datasets import RHM, RLM, FilteredGrammar, TreeGrammar

LANGUAGES = [
    RLM(3, 3, 1.0, probs=[0.2, 0.5, 0.3]),
    RHM(4, 2, 2),
    random_grammar(3, 3, seed=1, zeros=0.5),
    random_grammar(4, 1, seed=2),
]


# ---------------------------------------------------------------------- trees and their laws


@pytest.mark.parametrize('original', LANGUAGES)
def test_trees_have_the_root_the_heads_and_what_is_below(original: TreeGrammar) -> None:
    for k in range(original.L):
        language = original.filtered(k)
        assert isinstance(language, FilteredGrammar)
        assert language.levels == levels_of(original, k)
        trees = language.trees(5, 20)
        assert [tuple(symbols.shape) for symbols in trees] == [(20, 2**level) for level in language.levels]
        assert all(symbols.dtype == torch.int64 for symbols in trees)
        assert (language.v, language.L, language.num_data) == (original.v, original.L, None)
        assert torch.equal(language.prior, original.prior)


@pytest.mark.parametrize('original', LANGUAGES)
def test_heads_have_their_exact_law_given_the_root(original: TreeGrammar) -> None:
    for k in range(original.L):
        language = original.filtered(k)
        assert isinstance(language, FilteredGrammar)
        for j, law in enumerate(language.head_laws):
            expected = law_given_root(original, original.L - k, j)
            torch.testing.assert_close(law, expected, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(law.sum(1), torch.ones(original.v).double(), rtol=1e-13, atol=0)


@pytest.mark.parametrize('original', [*LANGUAGES[1:], random_grammar(2, 3, seed=3, shared=True)])
def test_whole_sequences_have_their_exact_distribution(original: TreeGrammar) -> None:
    """Over all v^n sequences, which tests the independence of sub-trees given the root too.

    A chi-square test of 40000 sequences for each height and two streams; the false-alarm rate of each is ALARM.
    """
    v, n = original.v, 2**original.L
    for k in range(original.L):
        table = filtered_joint(original, k)
        for stream in ('train', 'floors'):
            words = (original.filtered(k).sequences(0, 40_000, stream) * v ** torch.arange(n - 1, -1, -1)).sum(1)
            assert chi_square(torch.bincount(words, minlength=v**n), 40_000 * table) > ALARM


def test_root_and_heads_have_their_exact_joint_distribution() -> None:
    """Chi-square of the root and all four heads of 40000 trees, at the false-alarm rate ALARM."""
    original = random_grammar(3, 3, seed=6, zeros=0.3)
    roots, heads, *_ = original.filtered(1).trees(0, 40_000)
    expected = original.prior[:, None]
    for j in range(4):
        law = law_given_root(original, 2, j)
        expected = (expected[:, :, None] * law[:, None]).flatten(1)
    words = (torch.cat((roots, heads), 1) * 3 ** torch.arange(4, -1, -1)).sum(1)
    assert chi_square(torch.bincount(words, minlength=3**5), 40_000 * expected) > ALARM


def test_sequences_of_one_stream_are_independent() -> None:
    """Pairs of tokens of neighbouring sequences, 16 tests at the false-alarm rate ALARM."""
    language, count = random_grammar(4, 2, seed=7).filtered(0), 20_000
    leaves = language.sequences(0, 2 * count)
    laws = [torch.bincount(leaves[:, i], minlength=4).double() / len(leaves) for i in range(4)]
    for i in range(4):
        for j in range(4):
            pairs = leaves[::2, i] * 4 + leaves[1::2, j]
            assert chi_square(torch.bincount(pairs, minlength=16), count * torch.outer(laws[i], laws[j])) > ALARM


def test_pairs_below_the_heads_follow_the_rules() -> None:
    original = random_grammar(4, 3, seed=9, zeros=0.8)
    for k in range(1, original.L):
        trees = original.filtered(k).trees(0, 500)[1:]
        for level, (parents, children) in enumerate(pairwise(trees), original.L - k):
            assert (original.level_rules(level)[parents, children[:, ::2], children[:, 1::2]] > 0).all()


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize('original', LANGUAGES)
def test_a_sequence_is_a_function_of_its_number_alone(original: TreeGrammar) -> None:
    for k in range(original.L):
        language = original.filtered(k)
        n = 2**original.L
        leaves = language.sequences(0, 60, 'test')
        assert torch.equal(leaves, language.trees(0, 60, 'test')[-1])
        assert torch.equal(leaves[37:45], original.filtered(k).sequences(37, 8, 'test'))
        for last in range(1, n + 1):
            assert torch.equal(leaves[:, -last:], language.sequences(0, 60, 'test', last=last))
        inputs, targets = language.batches(2, 3, 4, 'test')
        assert torch.equal(torch.cat((inputs, targets[..., None]), -1).flatten(0, 1), leaves[8:20])
        assert torch.equal(language.root_batches(2, 3, 4, 'test').flatten(), language.trees(8, 12, 'test')[0][:, 0])
        first, second = language.sample_batch(4), language.sample_batch(4)
        assert torch.equal(torch.cat((first[0], second[0])), language.sequences(0, 8)[:, :-1])
        assert not torch.equal(leaves, language.sequences(0, 60, 'test', seed=original.seed_samples + 1))
        assert not torch.equal(leaves, language.sequences(0, 60, 'train'))


def test_many_sequences_are_drawn_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from RLM_clean.datasets import tree_grammar

    language = RLM(5, 3).filtered(1)
    whole, last = language.sequences(0, 100), language.sequences(0, 100, last=5)
    monkeypatch.setattr(tree_grammar, '_NODES_PER_CHUNK', {'cpu': 8})
    assert torch.equal(language.sequences(0, 100), whole) and torch.equal(language.sequences(0, 100, last=5), last)


def test_the_largest_height_draws_the_sequences_of_the_original() -> None:
    for original in LANGUAGES:
        original.sample_batch(3)
        language = original.filtered(original.L)
        assert type(language) is type(original)
        assert torch.equal(language.sequences(0, 50), original.sequences(0, 50))
        # It begins with its own first batch, and leaves the original where it was.
        assert torch.equal(language.sample_batch(3)[0], original.sequences(0, 3)[:, :-1])
        assert torch.equal(original.sample_batch(3)[0], original.sequences(3, 3)[:, :-1])


def test_root_and_sub_trees_use_the_random_words_of_the_original() -> None:
    """Where a head has the symbol that it has in the original tree, the leaves below it are the same."""
    original = RLM(3, 3, 1.0)
    trees = original.trees(0, 300)
    for k in (1, 2):
        filtered = original.filtered(k).trees(0, 300)
        assert torch.equal(filtered[0], trees[0])
        same = filtered[1] == trees[3 - k]
        assert 0.2 < same.double().mean() < 1
        leaves = (filtered[-1] == trees[-1]).unflatten(1, (-1, 2**k)).all(2)
        assert leaves[same].all() and not leaves[~same].all()


def test_a_fixed_training_set_is_shuffled_as_that_of_the_original() -> None:
    original = RLM(4, 2, num_data=10)
    language = original.filtered(1)
    assert len(language) == 10
    assert torch.equal(language.root_batches(0, 6, 5), original.root_batches(0, 6, 5))
    epoch = torch.cat([language.sample_batch(5)[1] for _ in range(2)])
    assert torch.equal(epoch.sort().values, language.sequences(0, 10)[:, -1].sort().values)
    assert torch.equal(language[3][0], language.sequences(3, 1)[0, :-1])


# ---------------------------------------------------------------------- what does not fit


def test_heights_that_do_not_fit_are_refused_with_a_remedy() -> None:
    original = RLM(3, 2)
    for k in (-1, 3):
        with pytest.raises(ValueError, match=f'k={k} .*use 0 to 2'):
            original.filtered(k)
    language = original.filtered(1)
    assert torch.equal(language.filtered(0).sequences(0, 20), original.filtered(0).sequences(0, 20))
    assert torch.equal(language.filtered(1).sequences(0, 20), language.sequences(0, 20))
    with pytest.raises(ValueError, match='k=2 does not fit a language filtered to k=1'):
        language.filtered(2)
    with pytest.raises(ValueError, match='L=3 does not fit a language filtered at depth 2'):
        language.sequences(0, 1, L=3)
    assert 'RLM(v=3' in repr(language) and repr(language).endswith('.filtered(1)')


@pytest.mark.parametrize('shared', [True, False])
def test_levels_above_the_heads_have_no_rules(shared: bool) -> None:
    original = random_grammar(3, 3, seed=3, shared=shared)
    original.table(0), original.level_rules(0)
    language = original.filtered(2)
    for rules in (language.level_rules, language.blocks, language.table):
        with pytest.raises(ValueError, match='level 0 has no rules in a language filtered to k=2'):
            rules(0)
        rules(1)
    assert torch.equal(language.level_rules(2), original.level_rules(2))
    for found, expected in zip(language.transitions(0), original.transitions(0), strict=True):
        assert torch.equal(found, expected)
