"""Figures of trained models draw what was measured, for every kind of run, with labels and units."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from analysed import Best, run_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RLM_clean import plots
from RLM_clean.analysis import generation, predictions, probes
from RLM_clean.analysis.probes import AncestorProbes
from RLM_clean.datasets import RHM, RLM
from RLM_clean.runs.run import Run

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    'transformer': (RLM(v=6, L=2, beta=2.0), {'depth': 2, 'num_heads': 2}),
    'one level': (RLM(v=6, L=1, beta=2.0), {}),
    'three levels': (RLM(v=4, L=3, beta=2.0), {}),
    'all tokens': (RLM(v=6, L=2, beta=2.0), {'model': 'transformer_clm', 'objective': 'all'}),
    'window': (RLM(v=6, L=2, beta=2.0), {'num_tokens': 2}),
    'fully connected': (RLM(v=6, L=2, beta=2.0), {'model': 'fcn', 'depth': 2}),
    'rhm': (RHM(v=6, m=2, L=2), {}),
    'rhm of all tokens': (RHM(v=6, m=2, L=2), {'model': 'transformer_clm', 'objective': 'all'}),
}


def figures(run: Run) -> dict[str, Any]:
    """Every figure of a run, from few samples."""
    steps = predictions.model_steps(run)
    made = {
        'film': plots.film(predictions.film(run, 3, 20)),
        'windows': plots.window_curves(steps, predictions.window_divergences(run, steps, num_samples=50)),
        'ancestors': plots.ancestor_curves(predictions.ancestor_beliefs(run, num_samples=50)),
        'probes': plots.probe_curves(probes.probe_ancestors(run, num_train=100, num_test=50)),
        'scores': plots.generation_scores(run, generation.generate(run, run.model(), 100)),
    }
    if run.config.model != 'fcn':
        made['attention'] = plots.attention_maps(run, run.test_batch(10)[0])
    return made


def panels_of(figure: Figure) -> list[Any]:
    """The axes of a figure without its colour bars, row by row."""
    return [axes for axes in figure.axes if axes.get_label() != '<colorbar>']


@pytest.mark.parametrize('kind', KINDS)
def test_every_figure_can_be_drawn_for_every_kind_of_run_and_names_its_axes(kind: str) -> None:
    grammar, options = KINDS[kind]
    for name, made in figures(run_of(grammar, **options)).items():
        figure = made if isinstance(made, Figure) else made.figure
        figure.draw_without_rendering()  # a warning, as of a layout that does not fit, is an error
        found = panels_of(figure)
        outer = [panel for panel in found if panel.get_subplotspec().is_last_row()]
        assert all(panel.get_xlabel() or name == 'probes' for panel in outer)
        assert found[0].get_ylabel()
        for panel in found:
            if 'KL' in panel.get_ylabel() or '-ln' in panel.get_xlabel():
                assert '(nats)' in panel.get_ylabel() + panel.get_xlabel()


def test_figures_draw_into_given_axes() -> None:
    run = run_of(*KINDS['transformer'][:1])
    given = np.ravel(np.asarray(plots.panels(2, 2)))
    pictures = predictions.film(run, 3, 20)
    assert plots.film(pictures, given[:3]) is given[0].figure
    assert all(panel.has_data() for panel in given[:3]) and not given[3].has_data()
    assert plots.window_curves([0, 1, 10], predictions.window_divergences(run, num_samples=20), given[3]) is given[3]


# ---------------------------------------------------------------------- what they show


def image_of(axes: Axes) -> Any:
    """The values of a heat map, NaN where it is empty."""
    values = axes.images[0].get_array()
    assert values is not None
    return np.ma.filled(values.astype(float), math.nan)


def test_film_of_one_token_draws_the_matrices_and_the_exact_one() -> None:
    run = run_of(RLM(v=6, L=1, beta=2.0))
    pictures = predictions.film(run)
    axes = panels_of(plots.film(pictures))
    assert [panel.get_title(loc='left') for panel in axes] == ['step 0', 'step 1', 'step 10', 'exact']
    for panel, expected in zip(axes, [*pictures.model, pictures.best], strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), expected.clamp(min=1e-4))
    assert len({(panel.images[0].norm.vmin, panel.images[0].norm.vmax) for panel in axes}) == 1


def test_a_token_that_never_comes_before_x_n_has_an_empty_row() -> None:
    pictures = predictions.film(run_of(RHM(v=6, m=1, L=1)))
    there = pictures.contexts[:, 0].tolist()
    assert 0 < len(there) < 6
    axes = panels_of(plots.film(pictures))
    for panel, expected in zip(axes, [*pictures.model, pictures.best], strict=True):
        found = image_of(panel)
        assert found.shape == (6, 6)
        np.testing.assert_allclose(found[there], expected.clamp(min=1e-4))
        assert np.isnan(np.delete(found, there, axis=0)).all()
    assert 'never occurs' in axes[0].get_ylabel()
    whole = plots.film(predictions.film(run_of(RLM(v=6, L=1, beta=2.0))))
    assert 'never occurs' not in panels_of(whole)[0].get_ylabel()


def test_film_of_longer_contexts_has_a_point_for_each_token_and_context() -> None:
    grammar = RLM(v=6, L=2, beta=2.0)
    axes = panels_of(plots.film(predictions.film(run_of(grammar, Best(grammar)), 2, 20)))
    assert len(axes) == 2
    x, y = (np.asarray(values) for values in axes[0].lines[1].get_data())
    assert len(x) == 20 * 6
    np.testing.assert_allclose(x, y)  # the best predictor is on the diagonal


def test_window_curves_are_the_divergences_with_their_minima() -> None:
    divergences = {0: [(3.0, 0.1), (1.0, 0.1), (2.0, 0.1)], 1: [(2.0, 0.0), (0.5, 0.0), (0.0, 0.0)]}
    axes = plots.window_curves([0, 1, 10], divergences)
    curves, dots = ([np.asarray(line.get_data()) for line in axes.lines[i::2]] for i in (0, 1))
    np.testing.assert_allclose(curves[0], [[0, 1, 10], [3, 1, 2]])
    assert [dot[:, 0].tolist() for dot in dots] == [[1, 1.0], [10, 1e-6]]
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ['k = 0', 'k = 1']


def test_attention_maps_leave_out_what_nothing_reads() -> None:
    """The tokens ahead of a query, and all queries but the last one in the last block of a model of x_n."""
    run = run_of(RLM(v=6, L=2, beta=2.0), depth=2, num_heads=2)
    inputs = run.test_batch(10)[0]
    axes = np.reshape(np.asarray(panels_of(plots.attention_maps(run, inputs))), (2, 2))
    expected = probes.attention_weights(run, run.model(), inputs).mean(1)
    for (block, head), panel in np.ndenumerate(axes):
        found = image_of(panel)
        shown = np.tril(np.ones((3, 3), dtype=bool))
        if block == 1:
            shown[:2] = False
        assert np.array_equal(np.isfinite(found), shown)
        np.testing.assert_allclose(found[shown], expected[block, head].numpy()[shown], rtol=1e-5)
    one = panels_of(plots.attention_maps(run, inputs[:1]))
    assert [label.get_text() for label in one[2].get_xticklabels()] == [str(x) for x in inputs[0].tolist()]


@pytest.mark.parametrize(('num_tokens', 'names'), [(4, [1, 2, 3]), (3, [2, 3])])
def test_attention_maps_name_the_tokens_that_a_window_sees(num_tokens: int, names: list[int]) -> None:
    run = run_of(RLM(v=6, L=2, beta=2.0), num_tokens=num_tokens)
    panel = panels_of(plots.attention_maps(run, run.test_batch(10)[0]))[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == [f'$x_{{{i}}}$' for i in names]


def test_attention_maps_of_all_tokens_have_every_query() -> None:
    run = run_of(*KINDS['all tokens'][:1], **KINDS['all tokens'][1])
    found = image_of(panels_of(plots.attention_maps(run, run.test_batch(0)[0]))[-1])
    assert np.isfinite(found).sum() == 6


@pytest.mark.parametrize('objective', ('last', 'root', 'masked', 'denoise'))
def test_attention_maps_of_a_model_that_sees_both_sides_show_the_tokens_ahead(objective: str) -> None:
    """Every row that is read sums to one in the figure."""
    run = run_of(RLM(v=6, L=2, beta=2.0), depth=2, num_heads=2, model='transformer_bert', objective=objective)
    maps = [image_of(panel) for panel in panels_of(plots.attention_maps(run, run.test_batch(10)[0]))]
    for number, found in enumerate(maps):
        read = slice(None) if run.task.at_each or number < 2 else slice(-1, None)
        np.testing.assert_allclose(found[read].sum(1), 1, rtol=1e-5)
        assert np.isfinite(found).sum() == found[read].size


def test_probe_curves_draw_the_probes_and_the_exact_values() -> None:
    values = torch.arange(6, dtype=torch.float64).view(2, 3) / 10
    conditions = {name: values + i for i, name in enumerate(('trained', 'untrained', 'shuffled'))}
    found = AncestorProbes(
        layers=['embeddings', 'block 1'],
        accuracy=conditions,
        divergence=conditions,
        error=conditions,
        best_accuracy=torch.tensor([0.7, 0.8, 0.9]),
        entropy=torch.tensor([0.7, 0.8, 0.9]),
        windows={0: torch.tensor([1.0, 2.0, 2.5]), 1: torch.tensor([1.0, 1.01, 1.0])},
    )
    axes = np.reshape(np.asarray(panels_of(plots.probe_curves(found))), (2, 3))
    for l in range(3):
        upper, lower = axes[:, l]
        for i in range(3):
            np.testing.assert_allclose(upper.lines[i].get_ydata(), values[:, l] + i)
        assert upper.lines[3].get_ydata()[0] == pytest.approx(0.7 + 0.1 * l)
        places = [text.xy[1] for text in lower.texts]
        assert [text.get_text() for text in lower.texts] == ['k = 1', 'k = 0'] and places[1] - places[0] > 0.08


def test_scores_end_at_the_fraction_of_impossible_sequences() -> None:
    run = run_of(*KINDS['rhm'][:1])
    made = generation.generate(run, run.model(), 200)
    axes = plots.generation_scores(run, made)
    own, curve = (np.asarray(line.get_ydata()) for line in (axes.lines[0], axes.lines[2]))
    assert curve[0] == 1 and curve[-1] == pytest.approx(1 - made.possible) and own[-1] == pytest.approx(0)
    assert 'KL is infinite' in axes.get_title(loc='left')


def test_scores_of_a_perfect_model_have_no_divergence() -> None:
    grammar = RLM(v=6, L=2, beta=2.0)
    run = run_of(grammar, Best(grammar))
    axes = plots.generation_scores(run, generation.generate(run, run.model(), 50))
    assert axes.get_title(loc='left').replace('-', '') == 'KL(model || language) = 0.000 ± 0.000 nats'


# ---------------------------------------------------------------------- the map of a sweep


class Results:
    """Final excesses over an axis of beta, one of v, one of lr and the repetitions."""

    axes = {'beta': [1.0, 2.0, 2.5], 'num_features': [8, 16], 'lr': [0.1], 'repetition': [1, 2]}

    def mean(self, what: str, over: list[str]) -> Any:
        assert what == 'excess' and over == ['lr', 'repetition']
        return np.array([[0.1, 0.2], [0.3, math.nan], [0.5, 0.004]])


def test_the_map_of_a_sweep_has_a_cell_for_each_pair() -> None:
    results: Any = Results()
    axes = plots.excess_map(results)
    image = image_of(axes)
    np.testing.assert_allclose(image, [[0.1, 0.3, 0.5], [0.2, math.nan, 0.004]])
    assert [text.get_text() for text in axes.get_xticklabels()] == ['1', '2', '2.5']
    assert [text.get_text() for text in axes.get_yticklabels()] == ['8', '16']
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), '0.1'), ((1, 0), '0.3'), ((2, 0), '0.5'), ((0, 1), '0.2'), ((2, 1), '0.004'),
    }  # fmt: skip
    turned = plots.excess_map(results, rows='beta', columns='num_features')
    np.testing.assert_allclose(image_of(turned), image.T)
    with pytest.raises(ValueError, match="'batch_size' is not an axis of this sweep"):
        plots.excess_map(results, rows='batch_size')
    with pytest.raises(ValueError, match="rows='beta' and columns='beta' are the same axis: give two"):
        plots.excess_map(results, rows='beta')


def test_the_map_of_runs_without_excess_is_empty(tmp_path: Path) -> None:
    results: Any = SimpleNamespace(
        axes={'beta': [1.0], 'num_features': [8]}, mean=lambda what, over: np.full((1, 1), math.nan)
    )
    axes = plots.excess_map(results)
    assert isinstance(axes.figure, Figure)
    axes.figure.savefig(tmp_path / 'map.png')
    assert not axes.texts
