"""Predictions of models and the exact ones: the best predictor has no divergence, and brute force agrees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from analysed import Best, run_of
from brute_force import all_trees
from small_runs import tiny, train
from torch import Tensor

from RLM_clean import measures
from RLM_clean.analysis import predictions
from RLM_clean.analysis.predictions import (
    ancestor_beliefs,
    film,
    model_steps,
    predict,
    prediction_table,
    window_divergences,
)
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact.inference import next_token_probs
from RLM_clean.init import init_model
from RLM_clean.runs import load_run


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------ the models of a run


def test_steps_are_those_with_weights_and_the_untrained_model_is_always_there(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'all', max_iters=8))
    train(tiny(tmp_path / 'ends', max_iters=8, checkpoints=False))
    everything, ends = load_run(tmp_path / 'all'), load_run(tmp_path / 'ends')
    assert model_steps(everything) == everything.steps == [0, 1, 2, 3, 4, 6, 8]
    assert model_steps(everything, 3) == [0, 3, 8] and model_steps(everything, 50) == everything.steps
    assert ends.steps == [8] and model_steps(ends) == [0, 8]
    for step in (0, 8):
        states = [predictions.model_at(run, step).state_dict() for run in (everything, ends)]
        assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    assert not predictions.model_at(ends, 0).training
    with pytest.raises(ValueError, match='step=4 has no checkpoint'):
        predictions.model_at(ends, 4)


def test_predictions_are_for_the_last_token_with_both_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = RLM(v=5, L=2, beta=2.0)
    inputs = grammar.sequences(0, 40)[:, :-1]
    every = run_of(grammar, model='transformer_clm', objective='all')
    last = run_of(grammar, model='transformer_clm')
    found = predict(every, every.model(), inputs)
    assert found.shape == (40, 5) and found.dtype == torch.float64
    close(found.sum(1), torch.ones(40, dtype=torch.float64))
    close(found, predict(last, last.model(), inputs), atol=1e-6)
    monkeypatch.setattr(predictions, '_TOKENS_PER_PASS', 7)
    close(predict(every, every.model(), inputs), found, atol=1e-6)


# ------------------------------------------------------------------ the best predictor


@pytest.mark.parametrize(('v', 'L'), [(6, 1), (4, 2), (8, 3)])
def test_the_best_predictor_has_no_divergence(v: int, L: int) -> None:
    grammar = RLM(v=v, L=L, beta=2.5)
    run = run_of(grammar, Best(grammar))
    k = 2**L - 1
    divergences = window_divergences(run, [0], num_samples=128)
    assert abs(divergences[k][0][0]) < 1e-12
    assert all(value > 1e-3 for j in divergences if j < k for value, _ in divergences[j])
    beliefs = ancestor_beliefs(run, [0], num_samples=128)
    close(beliefs.divergence[0], torch.zeros(L + 1, dtype=torch.float64))
    close(beliefs.accuracy[0], beliefs.best_accuracy)
    pictures = film(run, num_contexts=16)
    close(pictures.model, pictures.best.expand(3, -1, -1))


def test_each_window_has_its_own_zero() -> None:
    """A model that is the best predictor from k tokens touches zero at k, and at no other window."""
    grammar = RLM(v=6, L=2, beta=2.5)
    for k in (0, 1, 3):
        found = window_divergences(run_of(grammar, Best(grammar, k)), [0])
        assert {j: abs(found[j][0][0]) < 1e-12 for j in found} == {j: j == k for j in (0, 1, 3)}


@pytest.mark.parametrize('num_samples', [4096, 100])
def test_divergences_from_windows_equal_those_of_measures(num_samples: int) -> None:
    """Summed over all contexts, 512 of them, and sampled."""
    grammar = RLM(v=8, L=2, beta=2.0)
    run = run_of(grammar)
    found = window_divergences(run, num_samples=num_samples)
    for k in (0, 1, 3):
        expected = measures.divergence_from_window(run.model(), grammar, k, num_samples, run.logits)
        assert found[k] == [pytest.approx(expected, rel=1e-6)] * 3
    with pytest.raises(ValueError, match='k=4 is not a valid window of a context of 3 tokens: use 0 to 3'):
        window_divergences(run, ks=[4])


def test_a_window_of_the_sequence_is_compared_with_the_best_that_sees_it() -> None:
    grammar = RLM(v=5, L=2, beta=2.0)
    run = run_of(grammar, Best(grammar), num_tokens=3)
    found = window_divergences(run, [0])
    assert list(found) == [0, 1, 2] and abs(found[2][0][0]) < 1e-12
    close(ancestor_beliefs(run, [0]).divergence, torch.zeros(1, 3, dtype=torch.float64))


# ------------------------------------------------------------------ the film


def test_the_film_of_one_level_is_a_matrix_of_all_contexts() -> None:
    grammar = RLM(v=7, L=1, beta=2.0)
    run = run_of(grammar)
    pictures = film(run, count=2, num_contexts=3)
    assert pictures.steps == [0, 10] and torch.equal(pictures.contexts, torch.arange(7)[:, None])
    pair = torch.einsum('a,abc->bc', grammar.prior, grammar.level_rules(0))
    close(pictures.best, pair / pair.sum(1, keepdim=True))
    close(pictures.model[1], predict(run, run.model(), torch.arange(7)[:, None]))


# ------------------------------------------------------------------ level by level


def beliefs_by_listing(grammar: TreeGrammar, context: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """`P(a_l | context)` and `sum_x q(x) P(a_l | context, x_n = x)` for each level, from the list of all trees."""
    levels, probs = all_trees(grammar)
    k = len(context)
    seen = probs * (levels[-1][:, -1 - k : -1] == context).all(1)
    exact, implied = torch.zeros(2, grammar.L + 1, grammar.v, dtype=torch.float64)
    for l, nodes in enumerate(levels):
        for x in range(grammar.v):
            weights = seen * (levels[-1][:, -1] == x)
            given = torch.zeros(grammar.v, dtype=torch.float64).index_add(0, nodes[:, -1], weights)
            exact[l] += given / seen.sum()
            implied[l] += q[x] * given / given.sum()
    return exact, implied


@pytest.mark.parametrize(('v', 'L', 'options'), [(4, 1, {}), (3, 2, {}), (3, 2, {'num_tokens': 3})])
def test_beliefs_about_ancestors_equal_those_from_all_trees(v: int, L: int, options: dict[str, Any]) -> None:
    grammar = RLM(v=v, L=L, beta=1.5, probs=torch.arange(1.0, v + 1) / sum(range(1, v + 1)))
    run = run_of(grammar, **options)
    reference = measures.reference(grammar, run.config.context_size)
    q = predict(run, run.model(), reference.inputs)
    accuracy, divergence, best = torch.zeros(3, L + 1, dtype=torch.float64)
    assert reference.weights is not None
    for weight, context, row in zip(reference.weights, reference.inputs, q, strict=True):
        p, w = beliefs_by_listing(grammar, context, row)
        accuracy += weight * p.gather(1, w.argmax(1, keepdim=True))[:, 0]
        divergence += weight * (p * (p / w).log()).sum(1)
        best += weight * p.amax(1)
    found = ancestor_beliefs(run, [1])
    close(found.accuracy[0], accuracy)
    close(found.divergence[0], divergence)
    close(found.best_accuracy, best)
    assert not found.error.any()


@pytest.mark.parametrize('grammar', [RLM(v=6, L=3, beta=2.5), RHM(v=6, m=2, L=3), RHM(v=4, m=4, L=2)])
def test_divergence_falls_towards_the_root_from_the_excess(grammar: TreeGrammar) -> None:
    run = run_of(grammar)
    found = ancestor_beliefs(run, [0, 1], num_samples=100)
    assert (found.divergence.diff(dim=1) > -1e-12).all() and (found.divergence > -1e-12).all()
    assert (found.accuracy <= found.best_accuracy + 1e-12).all()
    excess = measures.excess_loss(run.model(), grammar, num_samples=100, logits=run.logits)
    assert (found.divergence[0, -1].item(), found.error[0, -1].item()) == pytest.approx(excess, rel=1e-6)


def test_chunks_of_contexts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(RLM(v=6, L=2, beta=2.0))
    whole = ancestor_beliefs(run, num_samples=50)
    monkeypatch.setattr(predictions, '_CHANNEL_ENTRIES', 500)
    parts = ancestor_beliefs(run, num_samples=50)
    close(parts.divergence, whole.divergence)
    close(parts.accuracy, whole.accuracy)


def test_levels_are_named_from_the_last_token_upwards() -> None:
    assert predictions.level_names(1) == ['root', 'x_n']
    assert predictions.level_names(2) == ['root', 'parent', 'x_n']
    assert predictions.level_names(4) == ['root', 'ancestor 3', 'grandparent', 'parent', 'x_n']


# ------------------------------------------------------------------ examples


def test_the_table_holds_the_probabilities_of_model_and_best_predictor() -> None:
    grammar = RLM(v=12, L=2, beta=2.5)
    run = run_of(grammar, model='transformer_clm', objective='all')
    inputs, targets = grammar.batch(10, 16, 'test')
    lines = str(prediction_table(run, number=3, top=2)).splitlines()
    assert len(lines) == 4 and lines[0].split()[:2] == ['context', 'x_n']
    q, p = predict(run, run.model(), inputs), next_token_probs(grammar, inputs)
    for line, context, x, q_row, p_row in zip(lines[1:], inputs[:3], targets[:3], q[:3], p[:3], strict=True):
        divergence = (p_row * (p_row / q_row).log()).sum()
        words = line.replace('*', ' ').split()
        assert words[:7] == [
            *map(str, [*context.tolist(), x.item()]), *(f'{number:.3f}' for number in (q_row[x], p_row[x], divergence)),
        ]  # fmt: skip
        for row, found in ((q_row, words[7:11]), (p_row, words[11:])):
            order = row.argsort(descending=True)[:2].tolist()
            assert found == [str(word) for token in order for word in (token, f'{row[token]:.2f}')]
        assert line.count('*') == sum(x.item() in row.topk(2).indices for row in (q_row, p_row))


def test_a_long_context_is_cut_in_the_table() -> None:
    grammar = RLM(v=3, L=4, beta=1.0)
    line = str(prediction_table(run_of(grammar), number=1)).splitlines()[1]
    assert line.startswith('... ' + ' '.join(map(str, grammar.batch(10, 16, 'test')[0][0, -8:].tolist())))
    assert 'nan' not in line


def test_the_table_is_text_in_a_terminal_and_html_in_a_notebook() -> None:
    table = predictions.Table(['token', 'q < p'], [['1', '0.5 & more'], ['10', '']])
    assert str(table) == repr(table) == 'token   q < p\n1       0.5 & more\n10'
    shown = ElementTree.fromstring(table._repr_html_())
    assert shown.tag == 'table'
    assert [[cell.text or '' for cell in row] for row in shown] == [table.header, *table.rows]
    assert all('white-space: pre' in cell.attrib['style'] for cell in shown.iter() if cell.tag in ('th', 'td'))


def test_untrained_weights_need_no_file() -> None:
    run: Any = SimpleNamespace(config=tiny(), steps=[])
    model = predictions.model_at(run, 0)
    assert torch.equal(next(model.parameters()), next(init_model(tiny()).parameters()))
