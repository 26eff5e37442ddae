"""Rows that are shared among threads: the same results whatever the number of cores, and errors that are heard."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest
import torch

from RLM_clean import threads
from RLM_clean.datasets import RLM
from RLM_clean.datasets.random_language_model import random_rules
from RLM_clean.streams import seeded_generator

LARGE = threads.LEAST_ENTRIES


@pytest.fixture(params=[1, 2, 3])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    number: int = request.param
    monkeypatch.setattr(threads, 'available_cores', lambda: number)
    return number


def test_every_item_is_worked_on_once_and_made_in_order_by_the_caller(cores: int) -> None:
    made: list[tuple[int, int]] = []
    worked: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append((i, threading.get_ident()))
            yield i

    threads.for_each(items(), lambda i: worked.append((i, threading.get_ident())), LARGE)
    assert made == [(i, threading.get_ident()) for i in range(50)]
    assert sorted(i for i, _ in worked) == list(range(50))
    assert (threading.get_ident() in {thread for _, thread in worked}) == (cores == 1)


def test_small_items_stay_with_the_caller(cores: int) -> None:
    worked: list[int] = []
    threads.for_each(range(3), lambda i: worked.append(threading.get_ident()), LARGE - 1)
    assert worked == [threading.get_ident()] * 3


def test_few_items_are_made_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, 'available_cores', lambda: 2)
    done, ahead = [0], []

    def items() -> Iterator[int]:
        for i in range(100):
            ahead.append(i - done[0])
            yield i

    def work(i: int) -> None:
        with lock:
            done[0] += 1

    lock = threading.Lock()
    threads.for_each(items(), work, LARGE)
    assert max(ahead) <= 6


def test_errors_of_the_work_and_of_the_items_are_raised(cores: int) -> None:
    def fail(i: int) -> None:
        if i == 7:
            raise ValueError('seven')

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match='seven'):
        threads.for_each(range(20), fail, LARGE)
    with pytest.raises(ZeroDivisionError):
        threads.for_each((1 // (3 - i) for i in range(5)), lambda i: None, LARGE)
    assert torch.get_num_threads() == before


def test_torch_shares_no_operation_within_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, 'available_cores', lambda: 3)
    seen: list[int] = []
    threads.for_each(range(12), lambda i: seen.append(torch.get_num_threads()), LARGE)
    assert seen == [1] * 12


def test_grammars_tables_and_transitions_do_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> list[torch.Tensor]:
        language = RLM(v=128, L=2, seed_rules=3)
        return [language.rules[0], language.table(0).entries, *language.transitions(0)]

    monkeypatch.setattr(threads, 'available_cores', lambda: 1)
    alone = made()
    monkeypatch.setattr(threads, 'available_cores', lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, made(), strict=True))


@pytest.mark.parametrize('v', [127, 128, 130, 132])
def test_large_grammars_are_those_that_torch_randn_gives(v: int) -> None:
    """The transform of this library is that of torch to rounding, and its generator goes through the same states."""
    generator = seeded_generator(5)
    for row in random_rules(v, 2.0, 5):
        energies = torch.randn(v * v, generator=generator, dtype=torch.float64)
        expected = torch.softmax(2.0 * math.sqrt(math.log(v)) * energies, 0)
        torch.testing.assert_close(row.flatten().double(), expected, rtol=6.1e-8, atol=0)
