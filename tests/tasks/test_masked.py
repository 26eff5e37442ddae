"""Masked tokens: against sums over all sequences to 1e-12, and which tokens are hidden.

Statistical tests of masks are those of test_streams.py: fixed seeds, p-values above ALARM, below 30 tests in this file.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from brute_force import direct_entropy, joint, occurring
from enumerated_tasks import assert_close, entropy, unmasked
from random_grammars import exhaustive, random_grammar
from test_streams import ALARM, chi_square
from torch import Tensor, nn

from RLM_clean import measures
from RLM_clean.datasets import RLM, TreeGrammar
from RLM_clean.exact import entropies
from RLM_clean.tasks import Masked
from RLM_clean.tasks.task import IGNORED


def all_masks(n: int) -> Tensor:
    """Every way to hide some tokens, `(2^n - 1, n)` bool."""
    return torch.tensor(list(itertools.product((False, True), repeat=n))[1:])


def exact_floor(grammar: TreeGrammar, size: int, number: int) -> float:
    """The mean of `H(x_i | tokens seen in its sub-tree of `size` leaves)` over all masks of a number of tokens."""
    n, v = 2**grammar.L, grammar.v
    sequences, probs = occurring(joint(grammar), at_most=10**6)
    values = []
    for mask in all_masks(n):
        if mask.sum() == number:
            posteriors = unmasked(joint(grammar), sequences.masked_fill(mask, v), size)
            values.append((probs @ entropy(posteriors)[:, mask]).mean().item())
    return sum(values) / len(values)


# ---------------------------------------------------------------------- the best predictor and the floors


@exhaustive(examples=15)
def test_best_predictions_are_sums_over_all_sequences_for_every_number_of_masks(grammar: TreeGrammar) -> None:
    n, v, table = 2**grammar.L, grammar.v, joint(grammar)
    sequences, _ = occurring(table, at_most=n)
    for number in range(n + 1):
        rank = torch.rand(len(sequences), n, generator=torch.Generator().manual_seed(number)).argsort(1)
        inputs = sequences.masked_fill(rank < number, v)
        found = Masked().best(grammar, inputs)
        assert_close(found, unmasked(table, inputs, n))
        seen = torch.nn.functional.one_hot(sequences, v).double()
        assert torch.equal(found[rank >= number], seen[rank >= number])


@exhaustive(examples=25)
def test_floors_of_sub_trees_are_sums_over_all_sequences(grammar: TreeGrammar) -> None:
    """On the contexts that the floors are measured on."""
    n, table = 2**grammar.L, joint(grammar)
    for task in (Masked(), Masked(0.5)):
        contexts = task.contexts(grammar, n, 6)
        assert contexts.weights is None and contexts.positions is not None
        hidden = contexts.inputs == grammar.v
        assert torch.equal(contexts.positions > 0, hidden)
        assert_close(contexts.posteriors, unmasked(table, contexts.inputs, n))
        for k, (value, error), number in task.floors(grammar, n, contexts):
            if k == 0:
                laws = torch.stack([table.sum([j for j in range(n) if j != i]) for i in range(n)])
                assert (value, error, number) == (pytest.approx(entropy(laws).mean().item(), abs=1e-12), 0.0, 0)
                continue
            values = entropy(unmasked(table, contexts.inputs, k))
            means = torch.stack([row[mask].mean() for row, mask in zip(values, hidden, strict=True)])
            assert value == pytest.approx(means.mean().item(), abs=1e-12)
            assert error == pytest.approx(means.std().item() / math.sqrt(6), abs=1e-12)
            assert number == 6


@pytest.mark.parametrize('rate', (0.25, 0.5, 0.75))
def test_floors_are_near_the_means_over_all_sequences_and_masks(rate: float) -> None:
    """Within 4 standard errors, for 4 grammars of two floors each: a false alarm has probability below 6e-4."""
    for seed in range(4):
        grammar = random_grammar(3, 2, seed, zeros=0.3 * (seed % 2))
        contexts = Masked(rate).contexts(grammar, 4, 1000)
        for k in (2, 4):
            value, error = Masked(rate).window_floor(grammar, contexts, k)
            assert 0 < error < 0.05
            assert abs(value - exact_floor(grammar, k, round(4 * rate))) < 4 * error


@pytest.mark.parametrize(('v', 'L'), ((2, 1), (4, 2), (3, 3)))
def test_the_floor_of_drawn_numbers_is_the_entropy_of_a_sequence_over_its_length(v: int, L: int) -> None:
    """Within 4 standard errors, for 4 grammars: a false alarm has probability below 3e-4. Exact for L = 1, below."""
    for seed in range(4):
        grammar = random_grammar(v, L, seed, zeros=0.3 * (seed % 2))
        value, error = measures.bayes_floor(grammar, Masked())
        exact, _ = entropies.leaves_entropy(grammar)
        assert exact == pytest.approx(direct_entropy(joint(grammar)), rel=1e-10)
        assert 0 < error < 0.05 and abs(value - exact / 2**L) < 4 * error


@exhaustive([(2, 1), (4, 1), (2, 2), (3, 2)], examples=10)
def test_the_mean_over_numbers_and_masks_is_the_entropy_of_a_sequence_over_its_length(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    mean = sum(exact_floor(grammar, n, number) for number in range(1, n + 1)) / n
    assert mean == pytest.approx(direct_entropy(joint(grammar)) / n, abs=1e-11)


# ---------------------------------------------------------------------- batches and losses


@pytest.mark.parametrize('task', (Masked(), Masked(0.5), Masked(0.01), Masked(0.99)), ids=str)
@pytest.mark.parametrize('num_data', (None, 20), ids=('online', 'offline'))
def test_targets_are_the_hidden_tokens_and_inputs_the_others(task: Masked, num_data: int | None) -> None:
    grammar = RLM(6, 3, num_data=num_data)
    inputs, targets = task.batches(grammar, 8, 2, 5, 40)
    before, last = grammar.batches(2, 5, 40)
    leaves = torch.cat((before, last[..., None]), -1)
    hidden = inputs == 6
    assert torch.equal(inputs[~hidden], leaves[~hidden]) and torch.equal(targets[hidden], leaves[hidden])
    assert (targets[~hidden] == IGNORED).all() and IGNORED < 0
    numbers = hidden.sum(-1)
    if task.rate:
        assert (numbers == {0.5: 4, 0.01: 1, 0.99: 8}[task.rate]).all()
    else:
        assert numbers.min() == 1 and numbers.max() == 8


def test_the_loss_is_the_mean_over_sequences_of_the_mean_over_hidden_tokens() -> None:
    grammar = RLM(5, 3)
    inputs, targets = (x[0] for x in Masked().batches(grammar, 8, 0, 1, 30))
    logits = torch.randn(30, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    losses = []
    for row in range(30):
        hidden = [i for i in range(8) if inputs[row, i] == 5]
        of_tokens = [-math.log(logits[row, i].softmax(-1)[targets[row, i]].item()) for i in hidden]
        losses.append(sum(of_tokens) / len(hidden))
    loss = Masked().loss(logits, targets)
    assert loss.item() == pytest.approx(sum(losses) / 30, rel=1e-12)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, inputs == 5)  # seen tokens teach nothing


def test_what_a_model_says_of_seen_tokens_counts_in_no_measure() -> None:
    """Also where it is sure of something wrong, so that its loss there is infinite."""
    grammar = RLM(4, 2)

    def logits(model: nn.Module, inputs: Tensor) -> Tensor:
        wrong = torch.nn.functional.one_hot((inputs + 1) % 4, 4)
        return torch.where((inputs == 4)[..., None], Masked().best(grammar, inputs), wrong).log()

    found = measures.reference(grammar, None, Masked(0.5), 100).evaluate(nn.Identity(), logits)
    assert abs(found.excess) < 1e-12 and found.excess_error < 1e-12
    inputs, targets = (x[0] for x in Masked(0.5).batches(grammar, 4, 0, 1, 100))
    loss, _ = measures.test(nn.Identity(), inputs, targets, logits)
    assert 0 < loss < math.log(4)
    assert Masked(0.5).loss(logits(nn.Identity(), inputs), targets).item() == pytest.approx(loss, rel=1e-12)


# ---------------------------------------------------------------------- which tokens are hidden


@pytest.mark.parametrize('rate', (0.25, 0.5, 0.75))
@pytest.mark.parametrize('stream', ('train', 'floors'))
def test_every_set_of_so_many_tokens_is_as_likely(rate: float, stream: str) -> None:
    hidden = Masked(rate).hidden(RLM(3, 2), 1000, 60_000, stream)
    sets = (hidden * 2 ** torch.arange(4)).sum(1)
    possible = [s for s in range(16) if f'{s:b}'.count('1') == round(4 * rate)]
    counts = sets.bincount(minlength=16)
    assert counts[possible].sum() == 60_000
    assert chi_square(counts[possible], torch.full((len(possible),), 60_000 / len(possible))) > ALARM


@pytest.mark.parametrize('stream', ('train', 'floors'))
def test_every_number_of_hidden_tokens_is_as_likely_and_every_set_of_it(stream: str) -> None:
    hidden = Masked().hidden(RLM(3, 2), 0, 100_000, stream)
    counts = (hidden * 2 ** torch.arange(4)).sum(1).bincount(minlength=16)
    expected = [0 if s == 0 else 1 / 4 / math.comb(4, f'{s:b}'.count('1')) for s in range(16)]
    assert chi_square(counts, 100_000 * torch.tensor(expected)) > ALARM


def test_masks_of_neighbours_and_the_tokens_below_them_are_independent() -> None:
    """Of one sequence and the next, of position and symbol, of two streams."""
    grammar, number = RLM(3, 2), 60_000
    for task in (Masked(0.5), Masked()):
        hidden = task.hidden(grammar, 0, number, 'train')
        sets = (hidden * 2 ** torch.arange(4)).sum(1)
        other = (task.hidden(grammar, 0, number, 'test') * 2 ** torch.arange(4)).sum(1)
        for a, b in ((sets[::2], sets[1::2]), (sets, other), (sets, grammar.sequences(0, number)[:, 1])):
            counts = (16 * b + a).bincount(minlength=256).view(16, 16).double()
            expected = counts.sum(1)[:, None] * counts.sum(0) / counts.sum()
            # Margins that are estimated take degrees of freedom: the p-value is too large, never too small.
            assert chi_square(counts, expected) > ALARM


def test_masks_are_functions_of_the_number_of_the_sequence() -> None:
    grammar = RLM(3, 3)
    for task in (Masked(), Masked(0.5)):
        whole = task.hidden(grammar, 0, 100, 'train')
        assert torch.equal(task.hidden(grammar, 40, 13, 'train'), whole[40:53])
        assert not torch.equal(task.hidden(grammar, 0, 100, 'train', seed=1), whole)


@pytest.mark.parametrize('rate', (-0.1, 1.5, math.inf, math.nan))
def test_a_rate_that_is_no_fraction_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f'rate={rate} is not a fraction of the tokens: use 0 to 1, 0 to draw'):
        Masked(rate)
