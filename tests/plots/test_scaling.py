"""The figures of scaling can be read, and show what was found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from readable import assert_readable, legend_texts

from RLM_clean.analysis.collapse import rescale
from RLM_clean.analysis.scaling import fit_power_law
from RLM_clean.analysis.thresholds import Search, Threshold
from RLM_clean.plots import scaling
from RLM_clean.plots.style import CYCLE
from RLM_clean.sweep.grid import read_axis
from RLM_clean.sweep.plan import Plan
from RLM_clean.sweep.results import Result, Results


def made_up(true: float, largest: int = 2**20) -> Threshold:
    """The threshold of four seeds around a size."""
    own = true * np.array([0.8, 0.9, 1.1, 1.3])
    return Search(0.5, largest=largest).run(lambda P: 1.2 / (1 + (P / own) ** 2))


def languages(**values: list[Any]) -> list[tuple[dict[str, Any], Threshold]]:
    """Thresholds that grow with the square of v, for each combination of options."""
    points: list[dict[str, Any]] = [{}]
    for name, column in values.items():
        points = [{**point, name: value} for point in points for value in column]
    return [(point, made_up(40 * point.get('num_features', 8) ** 2.0)) for point in points]


GRIDS: dict[str, dict[str, list[Any]]] = {
    'one language': {},
    'two': {'num_features': [8, 16]},
    'three': {'num_features': [8, 16, 32]},
    'a name': {'model': ['transformer_mlm', 'fcn']},
    'two axes': {'num_features': [8, 16, 32, 64], 'num_layers': [2, 3]},
}


@pytest.mark.parametrize('grid', GRIDS)
def test_the_figure_of_thresholds_is_readable(grid: str) -> None:
    found = languages(**GRIDS[grid])
    figure = scaling.thresholds(found, 0.5, '(loss - floor with level 2) / step')
    assert_readable(figure)
    assert len(figure.axes) == (2 if 'num_features' in GRIDS[grid] else 1)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == '.']
    assert len(dots) == 4 * len(found)


def test_the_power_law_of_thresholds_is_in_the_legend() -> None:
    figure = scaling.thresholds(languages(num_features=[8, 16, 32]), 0.5)
    legend = figure.axes[1].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 1 and float(texts[0].split()[1]) == pytest.approx(2, abs=0.05)


def test_thresholds_too_steep_for_a_power_law_are_drawn_without_one() -> None:
    found = [({'num_layers': L}, made_up(size)) for L, size in ((2, 10), (3, 4000), (4, 200_000))]
    figure = scaling.thresholds(found, 0.5)
    assert figure.axes[1].get_legend() is None and len(figure.axes[1].containers) == 1


def test_thresholds_that_are_not_known_are_left_out() -> None:
    found = [({'num_features': 8}, made_up(400)), ({'num_features': 16}, made_up(1e6, largest=2048))]
    assert found[1][1].value == math.inf
    figure = scaling.thresholds(found, 0.5)
    assert_readable(figure)
    (points,) = figure.axes[1].containers
    assert len(points.lines[0].get_xdata()) == 1  # type: ignore[attr-defined]
    assert len(scaling.thresholds(found[1:], 0.5).axes) == 1


def test_fits_and_collapses_are_readable() -> None:
    P = np.geomspace(64, 2**16, 11)
    loss = 0.3 + 20 * P**-0.5 * (1 + 0.05 * np.random.default_rng(0).standard_normal((4, 11)))
    assert_readable(scaling.power_law(P, loss, fit_power_law(P, loss, 0.3)).figure)  # type: ignore[arg-type]
    fine = np.geomspace(64, 2**16, 41)
    curves = {v: (fine, (1 + fine / v**2) ** -0.5) for v in (8, 16, 32)}
    axes = scaling.collapsed(rescale(curves, 2.0, 0.0), r'$P / v^2$', 'loss - floor (nats)', 'v')
    assert_readable(axes.figure)  # type: ignore[arg-type]
    points = [(np.log(line.get_xdata()), np.log(line.get_ydata())) for line in axes.lines]
    heights = [np.interp(np.log(2.0), x, y) for x, y in points]
    assert heights == pytest.approx([-0.5 * np.log(3)] * 3, abs=0.02)


# ---------------------------------------------------------------------- losses against the size


def made_up_loss(P: int, model: str, repetition: int) -> float:
    """The transformer is better from 1024 sequences on, the network below."""
    return 0.5 + 0.1 * repetition + (P / (500 if model == 'fcn' else 1000)) ** (-0.3 if model == 'fcn' else -0.6)


def made_up_results(*grid: str, done: bool = True, **options: Any) -> Results:
    """Runs that were never trained, two repetitions of each, with floors of their own language."""
    plan = Plan(
        Path('made_up'), tuple(read_axis(words.split()) for words in grid), {'num_layers': 2, **options}, 2, ('model',)
    )
    runs = []
    for run in plan.runs:
        c, repetition = run.config, run.repetition or 0
        loss, floor = made_up_loss(c.train_size, c.model, repetition), 0.4 + 0.1 * repetition + 0.01 * c.beta
        best = {'step': 1, 'loss': loss, 'excess': loss - floor}
        record = dict.fromkeys(('trainloss', 'testloss', 'testacc', 'excess', 'lr', 'seconds'), 0.0) | {'t': 1}
        floors = {'floor_0': floor + 2, 'floor_1': floor + 1, 'floor_3': floor, 'entropy': floor, 'marginal': floor + 2}
        end = {'best': best, 'excess_error': 0.0, 'early_stop': False}
        records: list[Any] = [record] if done else []
        runs.append(Result(run, 'done' if done else 'pending', records, c.to_dict(), floors if done else {}, end))
    return Results(plan, runs)


MODELS, LOSSES = 'model=transformer_mlm,fcn', ['transformer_mlm', 'fcn']


@pytest.mark.parametrize('sizes', ['train_size=4096,256,1024', 'batch_size=32,8,16 train_size=4096,256,1024'])
def test_losses_against_the_size_are_means_beside_the_floors(sizes: str) -> None:
    """Whatever the order of the sizes, and where another option varies with them."""
    results = made_up_results(MODELS, sizes)
    axes: Any = scaling.size_curves(results)
    assert_readable(axes.figure)
    for points, model in zip(axes.containers, LOSSES, strict=True):
        expected = [np.mean([made_up_loss(P, model, r) for r in (1, 2)]) for P in (256, 1024, 4096)]
        np.testing.assert_allclose(points[0].get_xdata(), [256, 1024, 4096])
        np.testing.assert_allclose(points[0].get_ydata(), expected)
        heights = [bar[1, 1] - bar[0, 1] for bar in points[2][0].get_segments()]
        np.testing.assert_allclose(heights, 2 * 0.1 / math.sqrt(2))
    assert [text.get_text() for text in axes.texts] == ['$H_{3}$', '$H_{1}$', '$H_{0}$']
    floors = sorted(line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1)
    np.testing.assert_allclose(floors, [0.57, 1.57, 2.57])
    assert legend_texts(axes)[:2] == ['model = transformer_mlm', 'model = fcn']
    assert legend_texts(scaling.size_curves(results, labels=['one', 'two']))[:2] == ['one', 'two']


def test_the_envelope_is_drawn_through_the_best_model_at_each_size() -> None:
    axes: Any = scaling.size_curves(made_up_results('train_size=256,1024,4096', MODELS), envelope=True)
    (line,) = [line for line in axes.lines if line.get_label() == 'envelope']
    expected = [min(np.mean([made_up_loss(P, m, r) for r in (1, 2)]) for m in LOSSES) for P in (256, 1024, 4096)]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert expected[0] < np.mean([made_up_loss(256, 'transformer_mlm', r) for r in (1, 2)])


@pytest.mark.parametrize('other', ['beta=1,2', 'seed_rules=1,2'])
def test_lines_of_several_languages_have_a_floor_each(other: str) -> None:
    axes: Any = scaling.size_curves(made_up_results('train_size=256,1024', other))
    assert_readable(axes.figure)
    dashed = [line for line in axes.lines if line.get_linestyle() == '--']
    assert [to_hex(line.get_color()) for line in dashed] == [color.lower() for color in CYCLE[:2]]
    expected = [0.56, 0.57] if other == 'beta=1,2' else [0.57, 0.57]
    np.testing.assert_allclose([line.get_ydata()[0] for line in dashed], expected)
    assert 'dashed: floor' in axes.get_ylabel()


def test_a_loss_that_is_a_mean_over_positions_has_the_floor_of_that() -> None:
    axes: Any = scaling.size_curves(made_up_results('train_size=256,1024', model='transformer_clm', objective='all'))
    assert [text.get_text() for text in axes.texts] == ['floor'] and legend_texts(axes)[0] == 'all runs'


def test_what_has_no_losses_against_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match='this sweep has no axis train_size: give it one'):
        scaling.size_curves(made_up_results('beta=1,2'))
    with pytest.raises(ValueError, match='made_up has no run that is done: train it first'):
        scaling.size_curves(made_up_results('train_size=256,1024', done=False))
    with pytest.raises(ValueError, match='labels has 1 names for 2 lines: give one for each'):
        scaling.size_curves(made_up_results('train_size=256,1024', MODELS), labels=['one'])
