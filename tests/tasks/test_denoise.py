"""Denoising: against sums over all sequences and noises to 1e-12, and what the noise does.

Statistical tests of the noise are those of test_streams.py: fixed seeds, p-values above ALARM, below 20 tests here.
"""

from __future__ import annotations

import math

import pytest
import torch
from brute_force import joint, occurring
from enumerated_tasks import assert_close, denoised, entropy, leaf_sums, likelihoods_of_tokens, weighted
from random_grammars import exhaustive, random_grammar
from test_streams import ALARM, chi_square
from torch import Tensor

from RLM_clean import measures
from RLM_clean.datasets import RLM, TreeGrammar
from RLM_clean.tasks import Denoise
from RLM_clean.tasks.denoise import DRAWN_NOISES


def all_sequences(v: int, n: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(v)] * n)


def exact_floor(grammar: TreeGrammar, task: Denoise, size: int) -> float:
    """The mean of `H(x_i | noisy sub-tree of `size` leaves)` over all noisy sequences and tokens."""
    table, every = joint(grammar), all_sequences(grammar.v, 2**grammar.L)
    probs = torch.zeros(len(every), dtype=torch.float64)
    for noise in task.noises:
        likelihoods = likelihoods_of_tokens(every, grammar.v, noise)
        probs += torch.stack([weighted(table, e).sum() for e in likelihoods]) / len(task.noises)
    assert probs.sum().item() == pytest.approx(1, abs=1e-12)
    return (probs @ entropy(denoised(table, every, task.noises, size)).mean(1)).item()


# ---------------------------------------------------------------------- the best predictor and the floors


def test_the_drawn_noises_are_the_middles_of_eight_equal_parts() -> None:
    assert Denoise().noises == DRAWN_NOISES == (1 / 16, 3 / 16, 5 / 16, 7 / 16, 9 / 16, 11 / 16, 13 / 16, 15 / 16)
    assert Denoise(0.3).noises == (0.3,)


@exhaustive(examples=15)
def test_best_predictions_are_sums_over_all_sequences_and_noises(grammar: TreeGrammar) -> None:
    """For any noisy sequence: noise can make each of them."""
    n, v, table = 2**grammar.L, grammar.v, joint(grammar)
    generator = torch.Generator().manual_seed(grammar.seed_samples)
    tokens = torch.cat((torch.randint(v, (3, n), generator=generator), occurring(table, at_most=3)[0]))
    for task in (Denoise(0.3), Denoise(1.0), Denoise(1e-3), Denoise()):
        assert_close(task.best(grammar, tokens), denoised(table, tokens, task.noises, n))


@exhaustive(examples=12)
def test_floors_of_sub_trees_are_sums_over_all_sequences_and_noises(grammar: TreeGrammar) -> None:
    """On the contexts that the floors are measured on. Each sub-tree says itself what it can of the noise."""
    n, table = 2**grammar.L, joint(grammar)
    for task in (Denoise(), Denoise(0.4)):
        contexts = task.contexts(grammar, n, 4)
        assert contexts.weights is None and contexts.positions is None
        assert_close(contexts.posteriors, denoised(table, contexts.inputs, task.noises, n))
        for k, (value, error), number in task.floors(grammar, n, contexts):
            if k == 0:
                assert (value, error, number) == (
                    pytest.approx(entropy(leaf_sums(table)).mean().item(), abs=1e-12), 0.0, 0,
                )  # fmt: skip
                continue
            means = entropy(denoised(table, contexts.inputs, task.noises, k)).mean(1)
            assert value == pytest.approx(means.mean().item(), abs=1e-12)
            assert error == pytest.approx(means.std().item() / 2, abs=1e-12)
            assert number == 4


@pytest.mark.parametrize('task', (Denoise(), Denoise(0.2), Denoise(0.7)), ids=str)
def test_floors_are_near_the_means_over_all_noisy_sequences(task: Denoise) -> None:
    """Within 4 standard errors, for 2 grammars of 3 floors each: a false alarm has probability below 4e-4."""
    for seed in range(2):
        grammar = random_grammar(3, 2, seed, zeros=0.3 * (seed % 2))
        contexts = task.contexts(grammar, 4, 1000)
        for k in (1, 2, 4):
            value, error = task.window_floor(grammar, contexts, k)
            assert 0 < error < 0.05 and abs(value - exact_floor(grammar, task, k)) < 4 * error


@exhaustive(examples=15)
def test_pure_noise_leaves_the_laws_of_the_tokens(grammar: TreeGrammar) -> None:
    laws = leaf_sums(joint(grammar))
    contexts = Denoise(1.0).contexts(grammar, 2**grammar.L, 20)
    assert_close(contexts.posteriors, laws.expand_as(contexts.posteriors))
    for _, (value, error), _ in Denoise(1.0).floors(grammar, 2**grammar.L, contexts):
        assert value == pytest.approx(entropy(laws).mean().item(), abs=1e-12) and error < 1e-12


def test_little_noise_leaves_little_to_learn() -> None:
    """`H(x_i | y) <= h(eps) + eps ln v` by Fano's inequality, h the entropy of a coin; 0.02 at eps = 0.002."""
    grammar = random_grammar(4, 3, 1)
    values = [measures.bayes_floor(grammar, Denoise(noise), 1000)[0] for noise in (1e-9, 2e-3, 0.1, 0.5)]
    assert values[0] < 1e-6 and values[1] < 0.02
    assert values == sorted(values)


# ---------------------------------------------------------------------- batches and what the noise does


@pytest.mark.parametrize('num_data', (None, 20), ids=('online', 'offline'))
def test_targets_are_the_clean_tokens(num_data: int | None) -> None:
    grammar = RLM(6, 3, num_data=num_data)
    before, last = grammar.batches(2, 5, 40)
    for task in (Denoise(), Denoise(0.3), Denoise(1.0)):
        noisy, clean = task.batches(grammar, 8, 2, 5, 40)
        assert torch.equal(clean, torch.cat((before, last[..., None]), -1))
        assert noisy.min() >= 0 and noisy.max() < 6 and not torch.equal(noisy, clean)


@pytest.mark.parametrize('noise', (0.2, 0.7, 1.0))
@pytest.mark.parametrize('stream', ('train', 'floors'))
def test_a_token_is_replaced_at_the_rate_of_the_noise_by_any_symbol(noise: float, stream: str) -> None:
    """`P(y | x) = (1 - eps) [y = x] + eps / v`, at each position."""
    grammar, number = RLM(5, 2), 40_000
    leaves = grammar.sequences(0, number, stream)
    noisy = Denoise(noise).noisy(grammar, leaves, 0, stream)
    for i in range(4):
        counts = (5 * leaves[:, i] + noisy[:, i]).bincount(minlength=25).view(5, 5)
        law = (1 - noise) * torch.eye(5) + noise / 5
        assert chi_square(counts, counts.sum(1)[:, None] * law) > ALARM


def test_tokens_are_replaced_independently_at_the_noise_of_the_sequence() -> None:
    """The number of changed tokens is binomial: `Bin(n, eps (1 - 1/v))`, and for drawn noise the mean of eight."""
    grammar, number, n = RLM(5, 3), 100_000, 8
    leaves = grammar.sequences(0, number)
    for task in (Denoise(0.3), Denoise()):
        changed = (task.noisy(grammar, leaves, 0, 'train') != leaves).sum(1)
        law = torch.zeros(n + 1, dtype=torch.float64)
        for noise in task.noises:
            p = noise * (1 - 1 / 5)
            law += torch.tensor([math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(n + 1)])
        assert chi_square(changed.bincount(minlength=n + 1), number * law / len(task.noises)) > ALARM
        pairs = (leaves != task.noisy(grammar, leaves, 0, 'train')).long()
        if len(task.noises) == 1:  # two neighbouring tokens, and a token of two neighbouring sequences
            for a, b in ((pairs[:, 0], pairs[:, 1]), (pairs[::2, 3], pairs[1::2, 3])):
                each = torch.tensor([1 - 0.24, 0.24], dtype=torch.float64)
                counts = (2 * a + b).bincount(minlength=4)
                assert chi_square(counts, len(a) * torch.outer(each, each).flatten()) > ALARM


def test_noise_is_a_function_of_the_number_of_the_sequence() -> None:
    grammar = RLM(5, 3)
    leaves = grammar.sequences(0, 100)
    for task in (Denoise(), Denoise(0.5)):
        whole = task.noisy(grammar, leaves, 0, 'train')
        assert torch.equal(task.noisy(grammar, leaves[40:53], 40, 'train'), whole[40:53])
        assert not torch.equal(task.noisy(grammar, leaves, 0, 'train', seed=1), whole)
        assert not torch.equal(task.noisy(grammar, leaves, 0, 'test'), whole)


@pytest.mark.parametrize('noise', (-0.1, 1.5, math.inf, math.nan))
def test_a_noise_that_is_no_probability_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=f'noise={noise} is not a probability: use 0 to 1, 0 to draw it'):
        Denoise(noise)
