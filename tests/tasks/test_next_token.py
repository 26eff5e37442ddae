"""The last token and all next tokens: what they see, and their floors, against sums over all sequences to 1e-12."""

from __future__ import annotations

import pytest
import torch
from brute_force import direct_window_entropy, joint, last_given, next_given, occurring
from enumerated_tasks import assert_close
from random_grammars import exhaustive, random_grammar

from RLM_clean import measures
from RLM_clean.datasets import RLM, TreeGrammar
from RLM_clean.tasks import All, Last


def test_the_model_sees_the_tokens_before_its_target() -> None:
    grammar = RLM(6, 3)
    leaves = grammar.sequences(0, 20).view(4, 5, 8)
    for num_tokens in (8, 5, 2):
        seen = leaves[..., 8 - num_tokens :]
        inputs, targets = Last().batches(grammar, num_tokens, 0, 4, 5)
        assert torch.equal(inputs, seen[..., :-1]) and torch.equal(targets, seen[..., -1])
        inputs, targets = All().batches(grammar, num_tokens, 0, 4, 5)
        assert torch.equal(inputs, seen[..., :-1]) and torch.equal(targets, seen[..., 1:])


@exhaustive(examples=30)
def test_best_predictions_are_sums_over_all_sequences(grammar: TreeGrammar) -> None:
    table = joint(grammar)
    for size in range(1, 2**grammar.L):
        contexts, expected = last_given(table, size)
        chosen = slice(None, None, 1 + len(contexts) // 50)
        assert_close(Last().best(grammar, contexts[chosen]), expected[chosen])
    leaves, _ = occurring(table, at_most=20)
    assert_close(All().best(grammar, leaves[:, :-1]), next_given(table, leaves)[:, 1:])


@exhaustive(examples=25)
def test_floors_are_the_entropies_of_the_last_token(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    for task in (Last(), All()):
        for num_tokens in {2, n // 2 + 1, n}:
            contexts = task.contexts(grammar, num_tokens, 200)
            found = {k: floor for k, floor, _ in task.floors(grammar, num_tokens, contexts)}
            assert list(found) == task.windows(num_tokens) and max(found) == num_tokens - 1
            for k, (value, error) in found.items():
                assert (value, error) == (pytest.approx(direct_window_entropy(grammar, k), abs=1e-11), 0.0)
                assert task.window_floor(grammar, contexts, k) == (value, error)


def test_a_window_that_is_not_part_of_a_sequence_is_refused() -> None:
    for task in (Last(), All()):
        for size in (0, 8):
            with pytest.raises(ValueError, match=f'context_size={size} does not fit .* of 8 tokens: use 1 to 7'):
                measures.reference(random_grammar(3, 3, 0), size, task)
