"""What holds for every task: its batches, its contexts, and the excess of its best predictor."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_grammars import exhaustive, random_grammar
from torch import Tensor, nn

from RLM_clean import measures
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import entropies, propagation
from RLM_clean.tasks import All, Denoise, Last, Masked, Root, Task
from RLM_clean.tasks import task as task_module
from RLM_clean.tasks.task import IGNORED, expected_loss

TASKS: tuple[Task, ...] = (Last(), All(), Root(), Masked(), Masked(0.5), Denoise(), Denoise(0.3))
WHOLE = tuple(task for task in TASKS if task.whole)
every_task = pytest.mark.parametrize('task', TASKS, ids=str)


class Best(nn.Module):
    """The best predictor of a task as a model."""

    def __init__(self, task: Task, grammar: TreeGrammar) -> None:
        super().__init__()
        self.task, self.grammar = task, grammar

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.best(self.grammar, inputs).log()


def uniform(task: Task, grammar: TreeGrammar) -> Any:
    """A predictor for which all symbols are equally likely."""
    at_each = task.at_each
    return lambda model, inputs: torch.zeros(*(inputs.shape if at_each else inputs.shape[:1]), grammar.v)


# ---------------------------------------------------------------------- batches


@every_task
@pytest.mark.parametrize('num_data', (None, 10), ids=('online', 'offline'))
def test_a_batch_is_a_function_of_its_step_however_many_are_drawn(task: Task, num_data: int | None) -> None:
    grammar = RLM(5, 3, num_data=num_data)
    for num_tokens in (8,) if task.whole else (8, 3):
        inputs, targets = task.batches(grammar, num_tokens, 3, 7, 4)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == (7, 4, num_tokens if task.whole else num_tokens - 1)
        assert targets.shape == (inputs.shape if task.at_each else inputs.shape[:2])
        for first, steps in ((3, 1), (5, 3), (9, 1)):
            again = task.batches(RLM(5, 3, num_data=num_data), num_tokens, first, steps, 4)
            assert torch.equal(again[0], inputs[first - 3 : first - 3 + steps])
            assert torch.equal(again[1], targets[first - 3 : first - 3 + steps])


@every_task
def test_batches_depend_on_the_seed_of_the_samples_and_the_stream_alone(task: Task) -> None:
    grammar = RLM(5, 3)
    batch = task.batches(grammar, 8, 0, 2, 50)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for same in (RLM(5, 3), RLM(5, 3, seed_samples=grammar.seed_samples)):
        same.sample_batch(7)
        assert all(torch.equal(a, b) for a, b in zip(batch, task.batches(same, 8, 0, 2, 50), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    others = [
        task.batches(RLM(5, 3, seed_samples=1), 8, 0, 2, 50),
        task.batches(grammar, 8, 0, 2, 50, 'test'),
        task.batches(grammar, 8, 2, 2, 50),
    ]
    assert all(not torch.equal(a, b) for other in others for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize('task', (Masked(), Masked(0.5), Denoise(), Denoise(0.3)), ids=str)
def test_what_is_changed_is_new_in_each_epoch_and_in_each_stream(task: Task) -> None:
    """The sequences of an epoch are those of the one before; which tokens are changed is not.

    Of 200 sequences of 8 tokens, all are changed in the same way with a probability below 1e-100.
    """

    def drawn(grammar: TreeGrammar, step: int, stream: str = 'train') -> tuple[Tensor, Tensor]:
        """The clean sequences in order, and which of their tokens are changed."""
        inputs, targets = (x[0] for x in task.batches(grammar, 8, step, 1, 200, stream))
        clean = targets if isinstance(task, Denoise) else inputs.where(inputs != grammar.v, targets)
        order = torch.tensor(sorted(range(200), key=lambda i: clean[i].tolist()))
        return clean[order], (inputs != clean)[order]

    grammar = RLM(5, 3, num_data=200)
    (first, changed), (second, again) = drawn(grammar, 0), drawn(grammar, 1)
    assert torch.equal(first, second) and not torch.equal(changed, again)
    online = RLM(5, 3)
    assert not torch.equal(drawn(online, 0)[1], drawn(online, 0, 'test')[1])


GOLDEN: dict[Task, list[list[int]]] = {
    Masked(): [[10, 10, 9, 10], [2, 10, 10, 0], [3, 10, 6, 10], [10, 1, 10, 10]],
    Masked(0.5): [[6, 10, 9, 10], [2, 10, 10, 0], [3, 10, 6, 10], [4, 1, 10, 10]],
    Denoise(): [[9, 9, 9, 7], [0, 7, 6, 5], [2, 3, 4, 0], [3, 1, 6, 6]],
    Denoise(0.5): [[9, 9, 9, 7], [0, 7, 6, 5], [2, 3, 6, 6], [3, 1, 6, 6]],
}


def test_masks_and_noise_keep_their_meaning() -> None:
    """Golden batches: other values give every stored seed other data. Change them only knowingly."""
    assert RLM(10, 2).sequences(0, 4).tolist() == [[6, 4, 9, 0], [2, 0, 9, 0], [3, 2, 6, 6], [4, 1, 6, 6]]
    for task, inputs in GOLDEN.items():
        assert task.batches(RLM(10, 2), 4, 0, 1, 4)[0][0].tolist() == inputs
    assert Root().batches(RLM(10, 2), 4, 0, 1, 8)[1].tolist() == [[7, 2, 3, 7, 8, 3, 7, 6]]


# ---------------------------------------------------------------------- contexts and measures


@pytest.mark.parametrize('task', TASKS, ids=str)
def test_the_best_predictor_has_no_excess_and_the_uniform_one_ln_v_minus_the_floor(task: Task) -> None:
    """On the same contexts, so that both hold to rounding: `log_softmax` of float32 logits of a uniform predictor."""
    for grammar in (random_grammar(3, 2, 1, zeros=0.3), RHM(4, 2, 2), RLM(3, 3)):
        excess, error = measures.excess_loss(Best(task, grammar), grammar, objective=task, num_samples=100)
        assert abs(excess) < 1e-11 and error < 1e-11
        reference = measures.reference(grammar, None, task, num_samples=100)
        floor, error = reference.floor()
        found = reference.evaluate(nn.Identity(), uniform(task, grammar))
        assert found.excess == pytest.approx(math.log(grammar.v) - floor, abs=1e-7)
        assert found.loss == pytest.approx(math.log(grammar.v), abs=1e-7)
        assert found.excess_error == pytest.approx(error, abs=1e-7)
        assert (found.excess, found.excess_error) == measures.excess_loss(
            nn.Identity(), grammar, objective=task, num_samples=100, logits=uniform(task, grammar)
        )


@pytest.mark.parametrize('task', WHOLE, ids=str)
def test_the_excess_is_the_loss_on_new_sequences_minus_the_floor(task: Task) -> None:
    """For a predictor that is far from the best. Within 4.5 standard errors; a false alarm has probability 5e-5."""
    grammar = random_grammar(4, 2, 3, zeros=0.2)
    table = torch.randn(5, grammar.v, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def logits(model: nn.Module, inputs: Tensor) -> Tensor:
        at_each = table[inputs]
        return at_each if task.at_each else at_each.mean(1)

    found = measures.reference(grammar, None, task, num_samples=20_000).evaluate(nn.Identity(), logits)
    assert found.excess > 0.1
    inputs, targets = (x[0] for x in task.batches(grammar, 4, 0, 1, 20_000, 'test'))
    loss, accuracy = measures.test(nn.Identity(), inputs, targets, logits)
    assert loss == pytest.approx(task.loss(logits(nn.Identity(), inputs), targets).item(), rel=1e-12)
    # The standard deviation of the loss of a sequence is below 2 nats, that of its accuracy below 1/2.
    assert abs(loss - found.loss) < 4.5 * 2 * math.sqrt(2 / 20_000)
    assert abs(accuracy - found.accuracy) < 4.5 * 0.5 * math.sqrt(2 / 20_000)


def test_targets_that_are_left_out_count_in_no_measure() -> None:
    """Against a plain loop: the mean over sequences of the mean over their targets."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(30, 6, 4, generator=generator)
    targets = torch.randint(4, (30, 6), generator=generator)
    targets[torch.rand(30, 6, generator=generator) < 0.5] = IGNORED
    targets[:, 2] = targets[:, 2].clamp(min=0)  # one target at least in each
    losses, hits = [], []
    for rows, row in zip(scores, targets, strict=True):
        counted = [i for i in range(6) if row[i] != IGNORED]
        losses.append(sum(F.cross_entropy(rows[i], row[i]).item() for i in counted) / len(counted))
        hits.append(sum(int(rows[i].argmax() == row[i]) for i in counted) / len(counted))
    inputs = torch.arange(30)[:, None].expand(30, 6)
    loss, accuracy = measures.test(nn.Identity(), inputs, targets, lambda model, inputs: scores[inputs[:, 0]])
    assert loss == pytest.approx(sum(losses) / 30, rel=1e-6)
    assert accuracy == pytest.approx(sum(hits) / 30, rel=1e-12)
    assert Masked().loss(scores, targets).item() == pytest.approx(sum(losses) / 30, rel=1e-6)


def test_sequences_without_a_target_count_in_no_measure() -> None:
    """The same as without these rows; and with no other row there is nothing to measure."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(4, 4, generator=generator)
    inputs, targets = torch.randint(4, (2, 9, 6), generator=generator)
    targets[torch.rand(9, 6, generator=generator) < 0.5] = IGNORED
    targets[:, 2], empty = 1, torch.tensor([False, True, False, True] + [False] * 5)
    expected = measures.test(nn.Identity(), inputs[~empty], targets[~empty], lambda model, inputs: table[inputs])
    targets[empty] = IGNORED
    found = measures.test(nn.Identity(), inputs, targets, lambda model, inputs: table[inputs])
    assert found == pytest.approx(expected, rel=1e-12) and 0 < found[1] < 1
    one = measures.test(nn.Identity(), inputs, targets[:, 2], lambda model, inputs: table[inputs[:, 2]])
    assert one == pytest.approx(
        measures.test(nn.Identity(), inputs[~empty], targets[~empty, 2], lambda model, inputs: table[inputs[:, 2]])
    )
    for nothing in (targets[empty], targets[empty, 2], targets[:0]):
        with pytest.raises(ValueError, match=r'targets of shape .* are all left out: give a sequence with a target'):
            measures.test(nn.Identity(), inputs[: len(nothing)], nothing, lambda model, inputs: table[inputs])


@every_task
def test_losses_of_low_precision_are_computed_in_float32_and_have_gradients(task: Task) -> None:
    grammar = RLM(5, 2)
    _, (targets,) = task.batches(grammar, 4, 0, 1, 16)
    shape = (*targets.shape, 5)
    scores = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    loss = task.loss(scores, targets)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(task.loss(scores.double(), targets).item(), rel=1e-6)
    loss.backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad.abs().sum() > 0


@every_task
def test_fewer_contexts_are_taken_where_they_are_expensive(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = RLM(6, 2)
    monkeypatch.setattr(entropies, 'summable', lambda grammar, k: False)
    assert len(task.contexts(grammar, 4, 100).inputs) == 100
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', 0)
    assert len(task.contexts(grammar, 4, 100).inputs) == entropies.FEWEST_CONTEXTS
    monkeypatch.undo()
    monkeypatch.setattr(task_module, 'REFERENCE_ENTRIES', 0)
    monkeypatch.setattr('RLM_clean.tasks.next_token.REFERENCE_ENTRIES', 0)
    monkeypatch.setattr(entropies, 'summable', lambda grammar, k: False)
    assert len(task.contexts(grammar, 4, 100).inputs) == entropies.FEWEST_CONTEXTS


@pytest.mark.parametrize('task', WHOLE, ids=str)
@pytest.mark.parametrize('floors', (True, False), ids=('with floors', 'contexts alone'))
def test_the_expected_time_counts_the_contractions_that_are_done(
    task: Task, floors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where messages cost nothing. Also where contexts are fewer than asked for."""
    grammar, done = RLM(6, 3), 0

    def counted(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
        nonlocal done
        done += len(y) * grammar.v**3
        return sum_product(tensor, x, y)

    sum_product = propagation.sum_product
    monkeypatch.setattr(propagation, 'sum_product', counted)
    monkeypatch.setattr(task_module, '_MESSAGE_COST', 0)
    for budget in (entropies._SAMPLING_BUDGET, 3e7):
        monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', budget)
        done = 0
        contexts = task.contexts(grammar, 8)
        assert len(contexts.inputs) == task.num_contexts(grammar, 8)
        if floors:
            list(task.floors(grammar, 8, contexts))
        expected = task.expected_seconds(grammar, 8, floors) * entropies.MULTIPLICATIONS_A_SECOND
        assert expected == pytest.approx(done, rel=1e-12)


@every_task
@pytest.mark.parametrize('num_data', (None, 20), ids=('online', 'offline'))
def test_a_transform_is_applied_to_the_inputs_of_a_task_alone(task: Task, num_data: int | None) -> None:
    def transform(x: Tensor) -> Tensor:
        return F.one_hot(x, 6).float()

    plain = RLM(5, 3, num_data=num_data)
    transformed = RLM(5, 3, num_data=num_data, transform=transform)
    for num_tokens in (8,) if task.whole else (8, 3):
        inputs, targets = task.batches(plain, num_tokens, 3, 2, 4)
        rows, same = task.batches(transformed, num_tokens, 3, 2, 4)
        assert torch.equal(rows, transform(inputs)) and torch.equal(same, targets)


@every_task
def test_floors_fall_with_what_is_seen_from_the_marginal_to_the_best(task: Task) -> None:
    """On one set of contexts, so that a floor of more tokens may lie above by some standard errors at most."""
    grammar = random_grammar(4, 3, 7, zeros=0.7)
    contexts = task.contexts(grammar, 8, 500)
    found = list(task.floors(grammar, 8, contexts))
    assert [k for k, _, _ in found] == task.windows(8)
    values = [floor for _, floor, _ in found]
    for (before, _), (value, error) in pairwise(values):
        assert value < before + 4 * error + 1e-9
    assert values[0][1] == 0 and values[0][0] > values[-1][0] + 0.05
    for _, (_, error), number in found:
        assert (error == 0) == (number == 0)


@pytest.mark.parametrize('task', WHOLE, ids=str)
def test_a_language_is_prepared_with_the_floors_of_its_task(task: Task) -> None:
    grammar = RLM(5, 3)
    lines: list[str] = []
    language = measures.prepare_language(grammar, 8, task, say=lines.append)
    contexts = task.contexts(grammar, 8)
    floors = {k: floor for k, floor, _ in task.floors(grammar, 8, contexts)}
    assert language.floors == floors and list(floors) == task.windows(8)
    assert (language.entropy, language.marginal) == (floors[8][0], floors[0][0])
    assert language.entropy == pytest.approx(language.reference.floor()[0], abs=1e-12)
    assert len(lines) == len(floors) and all('best loss from' in line for line in lines)
    again = measures.prepare_language(grammar, 8, task, known=language.losses(), say=lines.append)
    assert again.losses() == language.losses() and len(lines) == len(floors)


@pytest.mark.parametrize('task', WHOLE, ids=str)
def test_a_part_of_a_sequence_is_refused_by_tasks_of_whole_ones(task: Task) -> None:
    message = f"num_tokens=3 does not fit objective='{task.name}': use all 4 tokens"
    with pytest.raises(ValueError, match=message):
        measures.reference(RLM(5, 2), 3, task)


@exhaustive([(2, 1), (3, 2), (2, 3)], examples=10)
def test_the_floor_of_contexts_is_the_mean_entropy_of_their_targets(grammar: TreeGrammar) -> None:
    for task in TASKS:
        contexts = task.contexts(grammar, 2**grammar.L, 20)
        total, weights = 0.0, contexts.weights
        for row, posteriors in enumerate(contexts.posteriors):
            targets = posteriors.view(-1, posteriors.shape[-1])
            shares = contexts.positions[row] if contexts.positions is not None else [1 / len(targets)] * len(targets)
            assert math.isclose(sum(float(share) for share in shares), 1, abs_tol=1e-12)
            own = sum(
                -float(share) * sum(p * math.log(p) for p in target.tolist() if p > 0)
                for share, target in zip(shares, targets, strict=True)
            )
            total += own * (weights[row].item() if weights is not None else 1 / len(contexts.posteriors))
        assert contexts.floor()[0] == pytest.approx(total, abs=1e-12)


# ---------------------------------------------------------------------- losses that are expectations


def test_an_impossible_target_that_a_model_excludes_costs_nothing() -> None:
    """`0 ln 0 = 0`, in the gradient too; a possible target that is excluded costs everything."""
    logits = torch.tensor([[0.3, -math.inf, 1.0], [0.0, 2.0, -1.0]], requires_grad=True)
    law = torch.tensor([[0.2, 0.0, 0.3], [0.0, 0.4, 0.1]])
    loss = expected_loss(logits, law)
    kept = [F.log_softmax(logits[0, [0, 2]], 0) @ law[0, [0, 2]], F.log_softmax(logits[1], 0)[1:] @ law[1, 1:]]
    torch.testing.assert_close(loss, -sum(kept))
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.where(logits.isinf(), 0.0, logits.softmax(1) * law.sum(1, keepdim=True) - law)
    torch.testing.assert_close(gradient, expected)
    assert expected_loss(logits, law.roll(1, 1)) == math.inf
