"""The names of hidden symbols: languages that differ in them alone are matched, and renamed to the same rules."""

from __future__ import annotations

import itertools

import pytest
import torch
from brute_force import joint
from random_grammars import random_grammar
from torch import Tensor

from RLM_clean.analysis.relabelling import match_symbols, relabelled_rules, rule_distances
from RLM_clean.datasets import TreeGrammar


def renamed(grammar: TreeGrammar, seed: int) -> tuple[TreeGrammar, list[Tensor]]:
    """The language with other names of the symbols of each hidden level, and for each the old name of the new one."""
    generator = torch.Generator().manual_seed(seed)
    names = [torch.randperm(grammar.v, generator=generator) for _ in range(grammar.L)]
    below = [*names[1:], torch.arange(grammar.v)]
    rules = [grammar.level_rules(l)[p][:, q][:, :, q] for l, (p, q) in enumerate(zip(names, below, strict=True))]
    return TreeGrammar(rules, grammar.L, prior=grammar.prior[names[0]]), names


@pytest.mark.parametrize(('v', 'L'), [(3, 1), (4, 2), (5, 3)])
def test_new_names_are_found_and_undone(v: int, L: int) -> None:
    grammar = random_grammar(v, L, seed=v)
    other, names = renamed(grammar, seed=1)
    if v**2**L <= 10**4:  # the names of hidden symbols change no sequence
        torch.testing.assert_close(joint(other), joint(grammar), rtol=0, atol=1e-14)
    found = match_symbols(other, grammar)
    assert all(torch.equal(p, q) for p, q in zip(found, names, strict=True))
    original = torch.stack([grammar.level_rules(level) for level in range(L)])
    torch.testing.assert_close(relabelled_rules(other, found), original, rtol=0, atol=1e-15)
    assert rule_distances(other, grammar).max() < 1e-12


def test_of_all_permutations_the_closest_is_found() -> None:
    """Rules that do not agree: the sum of total variation distances is the smallest of all 24 permutations."""
    fitted, true = random_grammar(4, 1, seed=1), random_grammar(4, 1, seed=2)
    T, M = fitted.level_rules(0), true.level_rules(0)

    def distance(p: tuple[int, ...]) -> float:
        return ((T - M[list(p)]).abs().sum() / 2).item()

    best = min(itertools.permutations(range(4)), key=distance)
    (found,) = match_symbols(fitted, true)
    assert tuple(found.tolist()) == best and best != (0, 1, 2, 3)
    assert rule_distances(fitted, true).sum().item() == pytest.approx(distance(best), abs=1e-12)


def test_languages_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match='v=2, L=1 do not fit v=2, L=2: compare languages of the same sizes'):
        match_symbols(random_grammar(2, 1, 0), random_grammar(2, 2, 0))
