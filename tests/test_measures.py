"""What is measured of models and languages: against direct sums over every sequence, to 1e-12 where they are exact.

Sampled values are compared with the exact ones in units of their standard error; each test states its false-alarm rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brute_force import direct_entropy, direct_window_entropy, joint, last_given, next_given, window_table
from random_grammars import exhaustive, random_grammar
from torch import Tensor, nn

from RLM_clean import measures
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import entropies
from RLM_clean.exact.inference import all_next_token_probs, next_token_probs
from RLM_clean.models import CLM, MLM
from RLM_clean.tasks import next_token


class Predictor(nn.Module):
    """A model that is the best predictor from the last k tokens (by default all) of x_n, or of every next token."""

    def __init__(self, grammar: TreeGrammar, k: int | None = None, everywhere: bool = False) -> None:
        super().__init__()
        self.grammar, self.k, self.everywhere = grammar, k, everywhere

    def forward(self, inputs: Tensor) -> Tensor:
        if self.everywhere:
            leaves = torch.cat((inputs, inputs[:, :1]), 1)
            return all_next_token_probs(self.grammar, leaves)[:, 1:].log()
        k = inputs.shape[1] if self.k is None else self.k
        return next_token_probs(self.grammar, inputs[:, inputs.shape[1] - k :]).log()


@torch.no_grad()
def model_of(grammar: TreeGrammar, objective: str = 'last', seed: int = 0) -> nn.Module:
    """A small model in float64, far from any good one, with logits of order one."""
    build = CLM if objective == 'all' else MLM
    model = build(grammar.v, 2**grammar.L - 1, 8, 2, 1, dropout=0.5, seed=seed)
    model.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return model.double()


def log_probs(model: nn.Module, inputs: Tensor) -> Tensor:
    was_training = model.training
    with torch.no_grad():
        result = model.eval()(inputs).double().log_softmax(-1)
    model.train(was_training)
    return result


# ---------------------------------------------------------------------- loss and accuracy


@pytest.mark.parametrize('objective', ['last', 'all'])
@pytest.mark.parametrize('tokens_per_pass', [1, 100, 2**15])
def test_loss_and_accuracy_are_the_direct_means_whatever_the_chunks(
    objective: str, tokens_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = RLM(9, 3)
    model = model_of(grammar, objective).float()
    inputs, targets = grammar.batch(0, 500, 'test')
    if objective == 'all':
        targets = torch.cat((inputs[:, 1:], targets[:, None]), 1)
    expected = log_probs(model, inputs)
    losses = -expected.gather(-1, targets[..., None])
    hits = expected.argmax(-1) == targets
    monkeypatch.setattr(measures, '_TOKENS_PER_PASS', tokens_per_pass)
    loss, accuracy = measures.test(model, inputs, targets)
    assert loss == pytest.approx(losses.mean().item(), rel=1e-6)
    assert accuracy == pytest.approx(hits.double().mean().item(), rel=1e-12)
    assert 0 < accuracy < 1
    assert type(loss) is float and type(accuracy) is float


def test_contexts_of_one_token_are_evaluated_once_each() -> None:
    model, generator = model_of(RLM(5, 1)).float(), torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(5, (300, 1), generator=generator), torch.randint(5, (300,), generator=generator)
    seen = []

    def logits(model: nn.Module, inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return model(inputs)

    loss, accuracy = measures.test(model, inputs, targets, logits)
    whole = log_probs(model, inputs)
    assert [x.tolist() for x in seen] == [[[0], [1], [2], [3], [4]]]
    assert loss == pytest.approx(F.nll_loss(whole, targets).item(), rel=1e-6)
    assert accuracy == (whole.argmax(1) == targets).double().mean().item()
    # A sampled reference may repeat its contexts too.
    posteriors = torch.rand(300, 5, generator=generator, dtype=torch.float64).softmax(1)
    divergence, _ = measures.Reference(inputs, posteriors, None).divergence(model, logits)
    assert seen[1].tolist() == seen[0].tolist()
    assert divergence == pytest.approx((posteriors * (posteriors.log() - whole)).sum(1).mean().item(), rel=1e-6)


@pytest.mark.parametrize('training', [True, False])
def test_a_measured_model_comes_back_in_its_mode_and_without_gradients(training: bool) -> None:
    """Also after an error in the middle."""
    grammar = RLM(9, 2)
    model = model_of(grammar).train(training)
    state = torch.get_rng_state()
    seen = []

    def watching(model: nn.Module, inputs: Tensor) -> Tensor:
        seen.append(model.training)
        return model(inputs)

    def failing(model: nn.Module, inputs: Tensor) -> Tensor:
        raise RuntimeError('out of memory')

    inputs, targets = grammar.batch(0, 50, 'test')
    measures.test(model, inputs, targets, watching)
    measures.excess_loss(model, grammar, logits=watching)
    with pytest.raises(RuntimeError, match='out of memory'):
        measures.test(model, inputs, targets, failing)
    assert seen == [False, False]
    assert all(module.training is training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_of_models_in_low_precision_are_computed_in_float32() -> None:
    grammar = RLM(9, 2)
    model = model_of(grammar)
    inputs, targets = grammar.batch(0, 500, 'test')

    def rounded(model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs).bfloat16()

    scores = model.eval()(inputs).bfloat16().double()
    loss, _ = measures.test(model, inputs, targets, rounded)
    assert loss == pytest.approx(F.cross_entropy(scores, targets).item(), rel=1e-6)


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is summed over all contexts."""
    monkeypatch.setattr(entropies, 'summable', lambda grammar, k: False)


# ---------------------------------------------------------------------- the best predictors as a reference


def direct_reference(grammar: TreeGrammar, size: int, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts that occur, their probabilities, and what follows them, from the enumeration."""
    contexts, last = last_given(joint(grammar), size)
    table = window_table(grammar, size + 1)
    weights = table.view(-1, grammar.v).sum(1)
    weights = weights[weights > 0]
    if objective == 'last':
        return contexts, weights, last
    window = table.view((grammar.v,) * (size + 1))
    return contexts, weights, next_given(window, torch.cat((contexts, contexts[:, :1]), 1))[:, 1:]


@exhaustive(examples=40)
def test_whole_references_hold_every_context_that_occurs(grammar: TreeGrammar) -> None:
    for objective in ('last', 'all'):
        for size in range(1, 2**grammar.L):
            whole = measures.reference(grammar, size, objective, num_samples=4**7)
            inputs, weights, posteriors = direct_reference(grammar, size, objective)
            assert torch.equal(whole.inputs, inputs)
            assert whole.weights is not None and whole.posteriors.dtype == torch.float64
            torch.testing.assert_close(whole.weights, weights, rtol=1e-11, atol=1e-15)
            torch.testing.assert_close(whole.posteriors, posteriors, rtol=1e-10, atol=1e-12)
            assert whole.weights.sum().item() == pytest.approx(1, abs=1e-12)


@exhaustive([(2, 1), (4, 1), (3, 2), (4, 2), (2, 3), (3, 3)], examples=30)
def test_sampled_references_hold_the_exact_posteriors_of_their_contexts(grammar: TreeGrammar) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropies, 'summable', lambda grammar, k: False)
        for objective in ('last', 'all'):
            for size in range(1, 2**grammar.L):
                sampled = measures.reference(grammar, size, objective, num_samples=50)
                assert sampled.weights is None and sampled.inputs.shape == (50, size)
                inputs, _, posteriors = direct_reference(grammar, size, objective)
                row = (sampled.inputs[:, None] == inputs).all(2).int().argmax(1)
                assert torch.equal(inputs[row], sampled.inputs)
                torch.testing.assert_close(sampled.posteriors, posteriors[row], rtol=1e-10, atol=1e-12)


def test_references_hold_the_first_contexts_of_the_stream_of_floors_as_far_as_the_budget_goes(
    sampling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = random_grammar(6, 2, 1)
    leaves = grammar.sequences(0, 100, 'floors')
    assert torch.equal(measures.reference(grammar, 2, num_samples=7).inputs, leaves[:7, 1:3])
    monkeypatch.setattr(entropies, '_NODE_COST', 0)
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', 80 * 6**3)
    assert len(measures.reference(grammar, 2).inputs) == 80
    assert len(measures.reference(grammar, 2, 'all').inputs) == 40
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', 0)
    assert len(measures.reference(grammar, 3).inputs) == 8
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', 1e9)
    monkeypatch.setattr(next_token, 'REFERENCE_ENTRIES', 0)
    assert len(measures.reference(grammar, 3, 'all').inputs) == 8


@exhaustive(examples=40)
def test_the_floor_of_a_reference_is_the_entropy(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    for size in range(1, n):
        whole = measures.reference(grammar, size, num_samples=4**7)
        assert whole.floor() == (pytest.approx(direct_window_entropy(grammar, size), rel=1e-11, abs=1e-12), 0.0)
    table = joint(grammar)
    chain = direct_entropy(table) - direct_entropy(table.reshape(grammar.v, -1).sum(1))
    floor = measures.bayes_floor(grammar, 'all', num_samples=4**7)
    assert floor == (pytest.approx(chain / (n - 1), rel=1e-11, abs=1e-12), 0.0)


@exhaustive(examples=40)
def test_the_best_predictor_has_no_excess(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    for size in {1, n // 2, n - 1}:
        for objective in ('last', 'all'):
            best = Predictor(grammar, everywhere=objective == 'all')
            excess, error = measures.excess_loss(best, grammar, size, objective, num_samples=4**7)
            assert abs(excess) < 1e-11 and error == 0
            excess, error = measures.excess_loss(best, grammar, size, objective, num_samples=2)
            assert abs(excess) < 1e-11 and error < 1e-11


@exhaustive([(2, 1), (4, 1), (2, 2), (4, 2), (2, 3), (3, 3)], examples=30)
def test_the_excess_of_a_model_is_its_expected_loss_minus_the_floor(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    for objective in ('last', 'all'):
        model = model_of(grammar, objective)
        for size in {1, n // 2, n - 1}:
            inputs, weights, posteriors = direct_reference(grammar, size, objective)
            losses = -(posteriors * log_probs(model, inputs)).sum(-1)
            losses = losses.view(len(inputs), -1).mean(1)
            floor, _ = measures.reference(grammar, size, objective, num_samples=4**7).floor()
            excess, error = measures.excess_loss(model, grammar, size, objective, num_samples=4**7)
            assert error == 0
            assert excess == pytest.approx((weights @ losses).item() - floor, abs=1e-11)
            assert excess > 1e-4


@exhaustive([(2, 1), (4, 1), (2, 2), (4, 2), (2, 3), (3, 3)], examples=30)
def test_an_evaluation_is_the_expectation_over_every_sequence(grammar: TreeGrammar) -> None:
    """The loss and the accuracy that a test set without end would give, and the excess of `divergence`, bit for bit."""
    n = 2**grammar.L
    for objective in ('last', 'all'):
        model = model_of(grammar, objective)
        for size in {1, n // 2, n - 1}:
            inputs, weights, posteriors = direct_reference(grammar, size, objective)
            log_q = log_probs(model, inputs)
            losses = -(posteriors * log_q).sum(-1).view(len(inputs), -1).mean(1)
            hits = posteriors.gather(-1, log_q.argmax(-1, keepdim=True)).view(len(inputs), -1).mean(1)
            whole = measures.reference(grammar, size, objective, num_samples=4**7)
            found = whole.evaluate(model)
            assert found.loss == pytest.approx((weights @ losses).item(), abs=1e-11)
            assert found.accuracy == pytest.approx((weights @ hits).item(), abs=1e-11)
            assert (found.excess, found.excess_error) == whole.divergence(model)
            divergences = measures.kl_divergence(whole.posteriors, log_probs(model, whole.inputs))
            assert whole.weights is not None
            assert found.excess == (divergences.view(len(inputs), -1).mean(1) @ whole.weights).item()


@pytest.mark.parametrize('objective', ['last', 'all'])
def test_an_evaluation_on_sampled_contexts_draws_no_targets(objective: str) -> None:
    grammar = random_grammar(8, 3, 3, zeros=0.3)
    model = model_of(grammar, objective)
    whole = measures.reference(grammar, 5, objective, num_samples=60)
    assert whole.weights is None
    log_q = log_probs(model, whole.inputs)
    divergences = measures.kl_divergence(whole.posteriors, log_q).view(60, -1).mean(1)
    found = whole.evaluate(model)
    assert found.excess == divergences.mean().item()
    assert found.excess_error == divergences.std().item() / math.sqrt(60)
    assert found.loss == pytest.approx(-(whole.posteriors * log_q).sum(-1).mean().item(), rel=1e-12)
    hits = whole.posteriors.gather(-1, log_q.argmax(-1, keepdim=True))
    assert found.accuracy == pytest.approx(hits.mean().item(), rel=1e-12)
    assert found.loss - found.excess == pytest.approx(whole.floor()[0], rel=1e-12)


@exhaustive([(2, 1), (4, 1), (2, 2), (4, 2), (2, 3), (3, 3)], examples=20)
def test_any_function_of_contexts_is_measured_as_a_module_is(grammar: TreeGrammar) -> None:
    """Against the sum over every context, here of a model that knows nothing but the last token."""
    v, n = grammar.v, 2**grammar.L
    table = torch.randn(v, v, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for objective in ('last', 'all'):

        def function(inputs: Tensor, last: bool = objective == 'last') -> Tensor:
            return table[inputs[:, -1] if last else inputs]

        inputs, weights, posteriors = direct_reference(grammar, n - 1, objective)
        log_q = function(inputs).log_softmax(-1)
        terms = torch.where(posteriors > 0, posteriors * (posteriors.clamp(min=1e-300).log() - log_q), 0.0).sum(-1)
        excess, error = measures.excess_loss(function, grammar, objective=objective, num_samples=4**7)
        assert excess == pytest.approx((weights @ terms.view(len(inputs), -1).mean(1)).item(), abs=1e-12) and error == 0
    mlm = model_of(grammar)
    assert measures.excess_loss(lambda inputs: mlm.eval()(inputs), grammar) == measures.excess_loss(mlm, grammar)
    loss, accuracy = measures.test(lambda inputs: table[inputs[:, -1]], *grammar.batch(0, 50, 'test'))
    assert loss > 0 and 0 <= accuracy <= 1


def test_a_function_is_called_without_gradients_and_keeps_its_mode() -> None:
    grammar, model = RLM(9, 2), model_of(RLM(9, 2)).train()
    seen = []

    def function(inputs: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), model.training))
        return model(inputs)

    measures.excess_loss(function, grammar)
    assert seen == [(False, True)]


def test_what_is_not_a_tensor_of_logits_is_refused_with_an_example() -> None:
    """Such as the outputs of Hugging Face's models."""
    with pytest.raises(ValueError, match=r'returned dict, not a tensor .*: measure a function .* lambda inputs'):
        measures.excess_loss(lambda inputs: {'logits': inputs}, RLM(9, 2))  # type: ignore[arg-type,return-value]


def test_the_excess_is_exact_for_one_level_by_default() -> None:
    for v in (2, 30, 128):
        grammar = RLM(v, 1)
        model = model_of(grammar)
        table = joint(grammar)
        q = log_probs(model, torch.arange(v)[:, None])
        conditional = table / table.sum(1, keepdim=True)
        expected = (table * (conditional.log() - q)).nan_to_num(0).sum().item()
        excess, error = measures.excess_loss(model, grammar)
        assert error == 0
        assert excess == pytest.approx(expected, abs=1e-11)


def test_sampled_excess_lies_within_four_standard_errors_of_the_exact_one() -> None:
    """96 cases: a Gaussian error beyond 4 standard errors in one of them has a probability of 0.006."""
    scores = []
    for seed in range(24):
        grammar = random_grammar(8, 2, seed, zeros=0.4 * (seed % 2), shared=seed % 3 == 0)
        for objective in ('last', 'all'):
            model = model_of(grammar, objective, seed)
            for size in (2, 3):
                exact, none = measures.excess_loss(model, grammar, size, objective)
                value, error = measures.excess_loss(model, grammar, size, objective, num_samples=60)
                assert none == 0 < error
                scores.append((value - exact) / error)
    assert len(scores) == 96
    assert max(abs(score) for score in scores) < 4


@pytest.mark.usefixtures('sampling')
def test_sampled_floors_of_all_next_tokens_lie_within_four_standard_errors_of_the_exact_one() -> None:
    """40 cases: a Gaussian error beyond 4 standard errors in one of them has a probability of 0.003."""
    for seed in range(40):
        grammar = random_grammar(5, 2 + seed % 2, seed, zeros=0.4 * (seed % 2))
        table = joint(grammar)
        chain = direct_entropy(table) - direct_entropy(table.reshape(5, -1).sum(1))
        value, error = measures.bayes_floor(grammar, 'all', num_samples=400)
        assert abs(value - chain / (2**grammar.L - 1)) < 4 * error


def test_the_excess_is_the_test_loss_minus_the_floor() -> None:
    """Within 4 standard errors of the test loss, over 10 grammars: false alarms 6e-4."""
    for seed in range(10):
        grammar = RLM(20, 1, seed_rules=seed)
        model = model_of(grammar)
        inputs, targets = grammar.batch(0, 20_000, 'test')
        losses = -log_probs(model, inputs).gather(1, targets[:, None])
        loss, _ = measures.test(model, inputs, targets)
        excess, _ = measures.excess_loss(model, grammar)
        assert abs(loss - entropies.entropy(grammar)[0] - excess) < 4 * losses.std().item() / math.sqrt(20_000)


@exhaustive([(2, 1), (3, 2), (4, 2), (2, 3), (3, 3)], examples=30)
def test_the_predictor_from_k_tokens_has_no_divergence_from_its_window(grammar: TreeGrammar) -> None:
    for k in range(2**grammar.L):
        for num_samples in (2, 4**7):
            value, error = measures.divergence_from_window(Predictor(grammar, k), grammar, k, num_samples)
            assert abs(value) < 1e-11 and error < 1e-11


@exhaustive([(2, 1), (3, 2), (4, 2), (2, 3), (3, 3)], examples=30)
def test_divergence_from_a_window_is_that_of_the_enumeration(grammar: TreeGrammar) -> None:
    n, v = 2**grammar.L, grammar.v
    model = model_of(grammar)
    inputs, weights, _ = direct_reference(grammar, n - 1, 'last')
    q = log_probs(model, inputs)
    for k in range(n):
        contexts, posteriors = last_given(joint(grammar), k)
        row = (inputs[:, None, n - 1 - k :] == contexts).all(2).int().argmax(1)
        p = posteriors[row]
        expected = (weights[:, None] * p * (p.log() - q)).nan_to_num(0).sum().item()
        value, error = measures.divergence_from_window(model, grammar, k, num_samples=4**7)
        assert (value, error) == (pytest.approx(expected, abs=1e-11), 0.0)
    whole = measures.excess_loss(model, grammar, num_samples=v**n)
    assert measures.divergence_from_window(model, grammar, n - 1, num_samples=v**n)[0] == pytest.approx(whole[0])


def test_the_divergence_between_two_windows_is_the_difference_of_their_entropies() -> None:
    """E KL(P(x | last j) || P(x | last k)) = H_k - H_j for j > k: what a model that stopped at k has left to learn."""
    grammar = random_grammar(4, 3, 5)
    floors = entropies.window_entropies(grammar, range(8))
    for j in range(8):
        for k in range(j):
            value, _ = measures.divergence_from_window(Predictor(grammar, k), grammar, j, num_samples=4**7)
            assert value == pytest.approx(floors[k][0] - floors[j][0], abs=1e-11)


def test_a_model_that_rules_out_what_cannot_follow_has_a_finite_divergence() -> None:
    rhm = RHM(6, 2, 2)
    excess, error = measures.excess_loss(Predictor(rhm), rhm)
    assert abs(excess) < 1e-12 and error == 0

    class Wrong(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return F.one_hot(inputs[:, 0], 6).double().log()

    assert measures.excess_loss(Wrong(), rhm)[0] == math.inf


@pytest.mark.parametrize('num_samples', [4096, 500])
def test_a_reference_does_not_depend_on_the_chunks_of_its_evaluation(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = RLM(9, 2)
    for objective in ('last', 'all'):
        model = model_of(grammar, objective)
        once = measures.excess_loss(model, grammar, None, objective, num_samples)
        with monkeypatch.context() as patch:
            patch.setattr(measures, '_TOKENS_PER_PASS', 50)
            pieces = measures.excess_loss(model, grammar, None, objective, num_samples)
        assert pieces == (pytest.approx(once[0], rel=1e-6), pytest.approx(once[1], rel=1e-6))


# ---------------------------------------------------------------------- the language of a run


def test_a_language_names_its_losses_and_its_rules() -> None:
    shared, own = RLM(5, 2), random_grammar(5, 2, 1)
    for grammar, shape in ((shared, (5, 5, 5)), (own, (2, 5, 5, 5))):
        language = measures.prepare_language(grammar, 3)
        floors = entropies.window_entropies(grammar)
        assert language.losses() == {
            'entropy': floors[3][0], 'marginal': floors[0][0], 'floors': floors, 'contexts': {0: 0, 1: 0, 3: 0}
        }  # fmt: skip
        assert language.rules().shape == shape
        assert torch.equal(
            language.rules().flatten(0, -4)[-1] if grammar is own else language.rules(), grammar.rules[-1]
        )


@pytest.mark.parametrize('budget', [1e9, 100 * 5**3])
@pytest.mark.parametrize('size', [7, 5])
def test_a_language_is_prepared_with_the_floors_of_its_windows(
    size: int, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropies, 'summable', lambda grammar, k: k <= 1)
    monkeypatch.setattr(entropies, '_NODE_COST', 0)
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', budget)
    grammar = random_grammar(5, 3, 1)
    expected = entropies.window_entropies(grammar, [0, 1, 3, size])
    said: list[str] = []
    language = measures.prepare_language(grammar, size, say=said.append)
    assert language.floors == {k: pytest.approx(floor, rel=1e-12) for k, floor in expected.items()}
    assert language.entropy == language.floors[size][0] and language.marginal == expected[0][0]
    assert language.contexts == {k: entropies.num_contexts(grammar, k) for k in expected}
    assert torch.equal(language.reference.inputs, measures.reference(grammar, size).inputs)
    value, error = expected[size]
    number = language.contexts[size]
    assert number == 4096 if budget == 1e9 else 8 <= number < 40
    assert said[0] == f'best loss from 0 tokens: {expected[0][0]:.4f} nats'
    assert said[-1] == f'best loss from {size} tokens: {value:.4f} +- {error:.4f} nats ({number} contexts)'
    assert len(said) == 4


@pytest.mark.usefixtures('sampling')
def test_a_language_of_all_tokens_has_their_mean_floor() -> None:
    grammar = random_grammar(5, 2, 1)
    said: list[str] = []
    language = measures.prepare_language(grammar, 3, 'all', say=said.append)
    value, error = measures.bayes_floor(grammar, 'all')
    assert language.entropy == value < language.floors[0][0]
    assert list(language.floors) == [0, 1, 3] and language.contexts == {0: 4096, 1: 4096, 3: 4096}
    assert said[1].startswith('best loss of the last token from 1 token: ')
    assert said[-1] == f'best loss of all tokens: {value:.4f} +- {error:.4f} nats (4096 contexts)'


def test_losses_that_are_known_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of files that do not say the number of contexts."""
    grammar = random_grammar(5, 2, 1)
    language = measures.prepare_language(grammar, 3)
    for name in ('window_entropies', 'num_contexts'):
        monkeypatch.setattr(entropies, name, None)
    said: list[str] = []
    again = measures.prepare_language(grammar, 3, known=language.losses(), say=said.append)
    assert again.losses() == language.losses() and said == []
    old = {name: value for name, value in language.losses().items() if name != 'contexts'}
    assert measures.prepare_language(grammar, 3, known=old).losses() == {**old, 'contexts': {}}


def test_the_entropies_of_the_first_version_are_still_here() -> None:
    for name in ('window_entropies', 'entropy', 'conditional_entropy', 'marginal'):
        assert getattr(measures, name) is getattr(entropies, name) and name in measures.__all__


# ---------------------------------------------------------------------- what a user can get wrong


@pytest.mark.parametrize('L', [1, 2])
def test_logits_at_every_position_are_not_taken_for_those_of_the_last(L: int) -> None:
    """For L = 1, and for as many contexts as positions, they would broadcast to a number without a meaning."""
    grammar = RLM(9, L)
    model = model_of(grammar, 'all')
    assert isinstance(model, CLM)
    same = MLM(9, 2**L - 1, 8, 2, 1, dropout=0.5).double()
    same.load_state_dict(model.state_dict())
    inputs, targets = grammar.batch(0, 2**L - 1)
    for measure in (
        lambda model, **options: measures.test(model, inputs, targets, **options),
        lambda model, **options: measures.excess_loss(model, grammar, num_samples=9 if L == 1 else 3, **options),
        lambda model, **options: measures.divergence_from_window(model, grammar, 0, **options),
    ):
        with pytest.raises(ValueError, match=r'logits of shape .* do not fit targets of shape .*: choose'):
            measure(model)
        assert measure(model, logits=lambda model, inputs: model.last_logits(inputs)) == pytest.approx(measure(same))


def test_logits_that_do_not_fit_the_predictors_are_refused() -> None:
    """They would broadcast: for L = 1 those at every position, for as many contexts as positions, or one value."""
    grammar = RLM(9, 1)
    reference = measures.reference(grammar)
    predictors = reference.posteriors[:, None].expand(-1, 2, -1)
    assert reference.divergences(lambda x: torch.zeros(len(x), 9), predictors)[0][0] > 0
    with pytest.raises(ValueError, match=r'logits of shape \(9, 1, 9\) do not fit targets of shape \(9,\): choose'):
        reference.divergences(lambda x: torch.zeros(len(x), 1, 9), predictors)
    with pytest.raises(ValueError, match=r'logits for 1 values of a target do not fit posteriors of 9'):
        reference.divergences(lambda x: torch.zeros(len(x), 1), predictors)
    whole = measures.reference(RLM(5, 2), None, 'all')
    several = whole.posteriors[:, None].expand(-1, 2, -1, -1)
    assert whole.divergences(lambda x: torch.zeros(*x.shape, 5), several)[1][0] > 0
    with pytest.raises(ValueError, match=r'logits of shape \(125, 5\) do not fit targets of shape \(125, 3\): choose'):
        whole.divergences(lambda x: torch.zeros(len(x), 5), several)


def test_the_marginal_of_all_tokens_is_that_of_the_last_one_as_documented() -> None:
    grammar = random_grammar(4, 2, 1)
    language = measures.prepare_language(grammar, 3, 'all')
    assert language.marginal == language.floors[0][0] == pytest.approx(entropies.marginal(grammar), abs=1e-14)
    assert language.entropy == pytest.approx(measures.bayes_floor(grammar, 'all')[0], abs=1e-14)
    assert language.entropy != pytest.approx(language.floors[3][0], abs=1e-3)


def bad_calls() -> list[tuple[Callable[[], Any], str]]:
    grammar = RLM(9, 2)
    model = model_of(grammar)
    return [
        (lambda: measures.divergence_from_window(model, grammar, 4), 'k=4 .*: use 0 to 3'),
        (lambda: measures.divergence_from_window(model, grammar, -1), 'k=-1 .*: use 0 to 3'),
        (lambda: measures.reference(grammar, 0), 'context_size=0 .*: use 1 to 3'),
        (lambda: measures.reference(grammar, 4), 'context_size=4 .*: use 1 to 3'),
        (lambda: measures.excess_loss(model, grammar, 4), 'context_size=4 .*: use 1 to 3'),
        (lambda: measures.reference(grammar, 2, 'first'), "objective='first' is unknown: use last or all"),
        (lambda: measures.bayes_floor(grammar, 'first'), "objective='first' is unknown: use last or all"),
        (lambda: measures.reference(grammar, num_samples=1), 'num_samples=1 .*: use 2 or more'),
        (lambda: measures.reference(grammar, num_samples=0), 'num_samples=0 .*: use 2 or more'),
    ]


@pytest.mark.parametrize('number', range(9))
def test_what_cannot_be_measured_is_an_error_in_one_sentence(number: int) -> None:
    call, message = bad_calls()[number]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert '\n' not in str(error.value)


def test_a_long_set_up_says_what_it_does_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = random_grammar(4, 4, 1)
    said: list[str] = []
    measures.prepare_language(grammar, 15, say=said.append)
    assert not any('about' in line for line in said)
    expected = sum(entropies.expected_seconds(grammar, k) for k in (0, 1, 3, 7, 15, 15))
    monkeypatch.setattr(measures, '_SECONDS_TO_ANNOUNCE', expected / 2)
    measures.prepare_language(grammar, 15, say=said.append)
    announced = [line for line in said if 'about' in line]
    assert announced == [f'computing what is known exactly of the language: about {expected:.0f} s']


def test_the_expected_time_of_a_floor_grows_with_its_contexts_up_to_its_budget() -> None:
    small, large = RLM(8, 5), RLM(192, 5)
    assert entropies.expected_seconds(small, 1) < entropies.expected_seconds(small, 31) < 1
    assert 4 < entropies.expected_seconds(large, 31) < 10
