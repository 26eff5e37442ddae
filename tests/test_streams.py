"""Random words by counter: against SplitMix64 in plain integers, and against what chance would do.

Statistical tests fail below a p-value of ALARM with fixed seeds; the three files that use `chi_square` make fewer than
1000 such tests in all, so that an unlucky choice of seeds would raise a false alarm with probability below 1e-7.
"""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from RLM_clean.streams import STREAMS, random_permutation, random_words, seeded_generator, stream_key, uniform

ALARM = 1e-10
INT64 = st.integers(-(2**63), 2**63 - 1)
examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def chi_square(observed: Tensor, expected: Tensor, pool_below: float = 20.0) -> float:
    """The p-value of Pearson's test of the counts `observed` against expectations of the same total.

    Cells that are expected less often than `pool_below` share one cell with the most frequent one. 0 if an impossible
    cell was counted.
    """
    observed, expected = observed.flatten().double(), expected.flatten().double()
    assert abs(observed.sum() - expected.sum()) < 1e-6 * expected.sum()
    if observed[expected == 0].any():
        return 0.0
    small = expected < pool_below
    if small.any():
        small |= expected == expected.max()
        observed, expected = (torch.cat((x[~small], x[small].sum()[None])) for x in (observed, expected))
    assert len(expected) > 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2).item()


class SplitMix64:
    """The generator as its authors define it: a state that moves on, in integers of any size."""

    def __init__(self, state: int) -> None:
        self.state = state % 2**64

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = ((z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z // 2**27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z // 2**31)


def unsigned(words: Tensor) -> list[int]:
    return [word % 2**64 for word in words.flatten().tolist()]


# ---------------------------------------------------------------------- the words


def test_words_are_the_published_outputs_of_splitmix64() -> None:
    # The reference outputs for the seed 1234567 that implementations of SplitMix64 are checked against.
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert unsigned(random_words(1234567, torch.arange(5))) == published
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(5)] == published


@given(key=INT64, first=st.integers(0, 50))
@examples
def test_word_i_is_output_i_of_splitmix64(key: int, first: int) -> None:
    generator = SplitMix64(key)
    outputs = [generator.next() for _ in range(first + 8)]
    assert unsigned(random_words(key, torch.arange(first, first + 8))) == outputs[first:]


@given(keys=st.lists(INT64, min_size=3, max_size=3), counters=st.lists(INT64, min_size=3, max_size=3))
@examples
def test_a_word_is_a_function_of_its_key_and_counter_wherever_it_stands(keys: list[int], counters: list[int]) -> None:
    expected = [SplitMix64(key + i * 0x9E3779B97F4A7C15).next() for key, i in zip(keys, counters, strict=True)]
    together = random_words(torch.tensor(keys), torch.tensor(counters))
    alone = [random_words(key, torch.tensor([[i]])) for key, i in zip(keys, counters, strict=True)]
    assert unsigned(together) == expected
    assert unsigned(torch.cat(alone)) == expected
    assert all(word.shape == (1, 1) and word.dtype == torch.int64 for word in alone)
    assert unsigned(random_words(keys[0], torch.tensor(counters[0]))) == expected[:1]


def test_drawing_words_changes_neither_the_counters_nor_any_global_generator() -> None:
    counters = torch.arange(100)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first = random_words(3, counters)
    random_words(4, counters)
    random_permutation(5, 100)
    assert torch.equal(counters, torch.arange(100))
    assert torch.equal(random_words(3, counters), first)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


# ---------------------------------------------------------------------- keys


@given(seed=st.integers(-(2**70), 2**70), stream=st.sampled_from(sorted(STREAMS)), indices=st.lists(INT64, max_size=3))
@examples
def test_a_key_is_the_chain_of_mixings_of_seed_stream_and_indices(seed: int, stream: str, indices: list[int]) -> None:
    gamma = 0x9E3779B97F4A7C15
    key = SplitMix64(seed - gamma).next()
    for index in (STREAMS[stream], *indices):
        key = SplitMix64(key + index * gamma).next()
    found = stream_key(seed, stream, *indices)
    assert -(2**63) <= found < 2**63
    assert found % 2**64 == key


def test_streams_keep_their_meaning() -> None:
    """Golden keys: another value gives every stored seed other sequences. Change them only knowingly."""
    names = ['train', 'test', 'other', 'shuffle', 'dropout', 'floors', 'mask', 'noise']
    assert {name: number for number, name in enumerate(names)} == STREAMS
    assert stream_key(67890, 'train') == -742737065319871731
    assert stream_key(67890, 'shuffle', 3) == -5124734165814812667


def test_different_seeds_streams_and_indices_have_different_keys() -> None:
    seeds = [*range(-50, 50), 12345, 67890, 2**31, 2**32, 2**62, 2**63 - 1]
    keys = [stream_key(seed, stream) for seed in seeds for stream in STREAMS]
    keys += [stream_key(seed, stream, i) for seed in seeds for stream in STREAMS for i in range(20)]
    keys += [stream_key(seed, 'dropout', i, j) for seed in seeds for i in range(5) for j in range(5)]
    assert len(set(keys)) == len(keys)


def test_an_unknown_stream_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="stream='validation' is unknown: use one of train, test"):
        stream_key(1, 'validation')


# ---------------------------------------------------------------------- what chance would do


@pytest.mark.parametrize('key', [0, stream_key(67890, 'train'), stream_key(67890, 'test')])
@pytest.mark.parametrize('stride', [1, 2, 8, 2**20])
def test_every_byte_of_the_words_is_uniform(key: int, stride: int) -> None:
    words = random_words(key, torch.arange(2**16) * stride)
    for byte in range(8):
        counts = torch.bincount((words >> (8 * byte)) & 255, minlength=256)
        assert chi_square(counts, torch.full((256,), 2.0**16 / 256)) > ALARM


PAIRS = {
    'neighbouring counters': (lambda i: random_words(7, 2 * i), lambda i: random_words(7, 2 * i + 1)),
    'neighbouring seeds': (
        lambda i: random_words(stream_key(1, 'train'), i),
        lambda i: random_words(stream_key(2, 'train'), i),
    ),
    'train and test': (
        lambda i: random_words(stream_key(1, 'train'), i),
        lambda i: random_words(stream_key(1, 'test'), i),
    ),
    'train and other': (
        lambda i: random_words(stream_key(1, 'train'), i),
        lambda i: random_words(stream_key(1, 'other'), i),
    ),
    'neighbouring indices': (
        lambda i: random_words(stream_key(1, 'shuffle', 0), i),
        lambda i: random_words(stream_key(1, 'shuffle', 1), i),
    ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_words_of_different_streams_look_independent(name: str) -> None:
    """The top four bits of two words are jointly uniform, and half of their bits agree, to 6.5 deviations (1e-10)."""
    count = 2**15
    x, y = (words(torch.arange(count)) for words in PAIRS[name])
    cells = ((x >> 60) & 15) * 16 + ((y >> 60) & 15)
    assert chi_square(torch.bincount(cells, minlength=256), torch.full((256,), count / 256)) > ALARM
    low = (x & 15) * 16 + (y & 15)
    assert chi_square(torch.bincount(low, minlength=256), torch.full((256,), count / 256)) > ALARM
    agreeing = sum((~(x ^ y) >> bit & 1).sum().item() for bit in range(64))
    assert abs(agreeing - 32 * count) < 6.5 * math.sqrt(16 * count)


def test_keys_of_consecutive_seeds_and_indices_are_uniform() -> None:
    by_seed = torch.tensor([stream_key(seed, 'train') for seed in range(4096)])
    by_index = torch.tensor([stream_key(67890, 'dropout', step) for step in range(4096)])
    for keys in (by_seed, by_index):
        for shift in (0, 30, 60):
            counts = torch.bincount((keys >> shift) & 15, minlength=16)
            assert chi_square(counts, torch.full((16,), 256.0)) > ALARM


# ---------------------------------------------------------------------- permutations


@pytest.mark.parametrize('size', [2, 3, 4, 5])
def test_permutations_are_uniform(size: int) -> None:
    number = 12_000
    orders = [random_permutation(stream_key(5, 'shuffle', epoch), size) for epoch in range(number)]
    found, counts = torch.stack(orders).unique(dim=0, return_counts=True)
    assert found.tolist() == [list(order) for order in itertools.permutations(range(size))]
    assert chi_square(counts, torch.full((len(counts),), number / len(counts))) > ALARM


@given(key=INT64, size=st.integers(1, 300))
@examples
def test_a_permutation_holds_every_index_once_and_is_a_function_of_its_key(key: int, size: int) -> None:
    order = random_permutation(key, size)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(size))
    assert torch.equal(random_permutation(key, size), order)


def test_a_permutation_leaves_each_element_anywhere_with_equal_probability() -> None:
    size, number = 64, 2000
    orders = torch.stack([random_permutation(stream_key(9, 'shuffle', epoch), size) for epoch in range(number)])
    cells = torch.arange(size) * size + orders
    # Rows and columns of the table of counts are fixed, which leaves (size - 1)^2 degrees of freedom.
    counts = torch.bincount(cells.flatten(), minlength=size**2).double()
    statistic = ((counts - number / size) ** 2 / (number / size)).sum()
    freedom = torch.tensor((size - 1) ** 2 / 2).double()
    assert torch.special.gammaincc(freedom, statistic * (size - 1) / size / 2) > ALARM
    assert torch.special.gammainc(freedom, statistic * (size - 1) / size / 2) > ALARM


# ---------------------------------------------------------------------- generators


@pytest.mark.parametrize('seed', [-1, 2**32, 2**32 + 5])
def test_a_seed_that_would_repeat_another_is_refused(seed: int) -> None:
    """torch's generator takes a seed modulo 2^32."""
    with pytest.raises(ValueError, match=f'seed={seed} is out of range: use a whole number from 0 to 2\\^32 - 1'):
        seeded_generator(seed)


def test_uniform_numbers_are_the_highest_53_bits_and_below_one() -> None:
    words = torch.tensor([0, 1 << 11, -1, 2**63 - 1, -(2**63)])
    assert uniform(words).tolist() == [0.0, 2.0**-53, 1 - 2.0**-53, 0.5 - 2.0**-53, 0.5]


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [0, *(1 << bit for bit in range(32)), 2**32 - 1]
    assert len({torch.randn(4, generator=seeded_generator(seed)).sum().item() for seed in seeds}) == len(seeds)
