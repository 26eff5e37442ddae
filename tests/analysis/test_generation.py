"""Generated sequences follow the distribution of the model, and their scores are exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from analysed import Best, run_of
from brute_force import joint
from torch import Tensor

from RLM_clean import measures
from RLM_clean.analysis.generation import Generation, exact_log_probs, generate
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.models import CLM

ALL: dict[str, Any] = {'model': 'transformer_clm', 'objective': 'all'}


def perfect(grammar: TreeGrammar, objective: str) -> Any:
    return run_of(grammar, Best(grammar, objective=objective), **(ALL if objective == 'all' else {}))


@pytest.mark.parametrize('objective', ['last', 'all'])
def test_a_perfect_model_has_no_divergence_and_the_entropy_of_the_language(objective: str) -> None:
    """The mean of 4096 surprises within 5 standard errors of the floor: a false alarm of 6e-7 a case, seed fixed."""
    grammar = RLM(v=6, L=2, beta=2.0)
    run = perfect(grammar, objective)
    made = generate(run, run.model(), 4096, seed=1)
    torch.testing.assert_close(made.log_q, made.log_p, rtol=0, atol=1e-10)
    assert made.divergence == pytest.approx((0, 0), abs=1e-10) and made.possible == 1
    number = made.sequences.shape[1] - made.given
    assert (made.given, number) == ((1, 3) if objective == 'all' else (3, 1))
    floor = measures.bayes_floor(grammar, objective, num_samples=grammar.v**3)
    assert floor[1] == 0
    value, error = made.surprise
    assert abs(value - number * floor[0]) < 5 * error
    assert made.entropy == pytest.approx(made.surprise)


@pytest.mark.parametrize('objective', ['last', 'all'])
def test_sequences_follow_the_distribution_of_the_model(objective: str) -> None:
    """Chi-square over all sequences; a false alarm of 1e-6 a case, seed fixed."""
    grammar = RLM(v=3, L=2, beta=1.0)
    run = run_of(grammar, **(ALL if objective == 'all' else {}))
    number = 20_000
    made = generate(run, run.model(), number, seed=5)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    logits = run.logits(run.model(), every[:, :3]).double().detach()
    if objective == 'all':
        chosen = logits.log_softmax(-1).gather(2, every[:, 1:, None])[..., 0].sum(1)
        begins = joint(grammar).sum((1, 2, 3))[every[:, 0]]
    else:
        chosen = logits.log_softmax(-1).gather(1, every[:, 3:])[:, 0]
        begins = joint(grammar).sum(3)[tuple(every[:, :3].T)]
    code = 3 ** torch.arange(3, -1, -1)
    drawn = (made.sequences * code).sum(1)
    torch.testing.assert_close(made.log_q, chosen[drawn], rtol=0, atol=1e-5)
    expected = number * begins * chosen.exp()
    # Sequences expected fewer than 10 times share one bin, with the most frequent one so that it is never too small.
    merged = (expected < 10) | (expected == expected.max())
    observed, expected = (
        torch.cat((x[~merged], x[merged].sum()[None])) for x in (drawn.bincount(minlength=81), expected)
    )
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert len(expected) > 40
    assert torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), chi2 / 2) > 1e-6


@pytest.mark.parametrize('num_tokens', [None, 3, 2])
def test_scores_are_exact(num_tokens: int | None) -> None:
    grammar = RLM(v=3, L=2, beta=2.0, probs=[0.5, 0.3, 0.2])
    table = joint(grammar)
    m = num_tokens or 4
    law = table.reshape(-1, *[3] * m).sum(0)
    sequences = torch.cartesian_prod(*[torch.arange(3)] * m)
    whole = law[tuple(sequences.T)]
    of_last = whole / law.sum(-1)[tuple(sequences[:, :-1].T)]
    of_all = whole / law.flatten(1).sum(1)[sequences[:, 0]]
    for options, expected in (({}, of_last), (ALL, of_all)):
        found = exact_log_probs(run_of(grammar, num_tokens=num_tokens, **options), sequences)
        torch.testing.assert_close(found, expected.log(), rtol=0, atol=1e-12)


class Doubled(CLM):
    """A transformer that is registered with a forward of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


@pytest.mark.parametrize('options', [{}, {'input_format': 'onehot', 'whitening': 1}, {'dtype': 'bfloat16'}])
def test_cached_keys_change_neither_the_draws_nor_their_probabilities(options: dict[str, Any]) -> None:
    """Against the same model behind a module of another type, which is called on every prefix."""
    run = run_of(RLM(v=5, L=3, beta=1.0), depth=2, num_heads=2, **ALL, **options)
    model = run.model()
    plain = torch.nn.Sequential(model)
    made, expected = generate(run, model, 300, seed=2), generate(run, plain, 300, seed=2)
    # In bfloat16 the products of other shapes round otherwise, and a draw in some hundred changes.
    same = (made.sequences == expected.sequences).all(1)
    tolerance, least = (0.1, 0.5) if 'dtype' in options else (1e-5, 1.0)
    assert same.double().mean() >= least
    torch.testing.assert_close(made.log_q[same], expected.log_q[same], rtol=0, atol=tolerance)


def test_a_transformer_computes_each_token_once() -> None:
    run = run_of(RLM(v=5, L=3, beta=1.0), depth=2, **ALL)
    model: Any = run.model()
    widths: list[int] = []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: widths.append(inputs[0].shape[1]))
    generate(run, model, 10)
    assert widths == [1] * 7


def test_a_subclass_with_its_own_forward_draws_from_that() -> None:
    run = run_of(RLM(v=5, L=2, beta=1.0), **ALL)
    model = Doubled(5, 3, 8, seed=1).eval()
    model.head.weight.data.mul_(300)
    made = generate(run, model, 100)
    log_q = model(made.sequences[:, :-1]).double().log_softmax(-1)
    expected = log_q.gather(2, made.sequences[:, 1:, None])[..., 0].sum(1)
    torch.testing.assert_close(made.log_q, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('options', [{}, ALL])
def test_what_the_language_excludes_is_counted(options: dict[str, Any]) -> None:
    run = run_of(RHM(v=4, m=2, L=2), **options)
    made = generate(run, run.model(), 200)
    assert 0 < made.possible < 1
    assert made.possible == (made.log_p > -math.inf).double().mean()
    assert made.divergence == (math.inf, 0) and math.isfinite(made.surprise[0]) and math.isfinite(made.entropy[0])
    seen = made.sequences[:, : made.given]
    assert torch.equal(seen, run.rlm.sequences(0, 200, 'other')[:, : made.given])


def test_an_rlm_allows_all_until_its_rules_are_below_the_least_float() -> None:
    for beta, underflows in ((2.0, False), (60.0, True)):
        grammar = RLM(v=6, L=2, beta=beta)
        assert bool((grammar.M == 0).any()) == underflows
        run = run_of(grammar)
        assert (generate(run, run.model(), 200).possible < 1) == underflows


def test_draws_are_a_function_of_the_seed_alone() -> None:
    run = run_of(RLM(v=5, L=2, beta=1.0), **ALL)
    state = torch.get_rng_state()

    def draw(seed: int) -> Tensor:
        return generate(run, run.model(), 50, seed=seed).sequences

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_possible_sequence_the_surprise_is_not_a_number() -> None:
    impossible = torch.full((3,), -math.inf, dtype=torch.float64)
    made = Generation(torch.zeros(3, 2, dtype=torch.int64), 1, torch.zeros(3, dtype=torch.float64), impossible)
    assert made.possible == 0 and all(math.isnan(x) for x in made.surprise) and made.entropy == (0, 0)
