"""Figures draw what was measured, are readable, and leave the user's parameters of matplotlib as they were."""

from __future__ import annotations

import functools
import math
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from readable import assert_readable, box, legend_texts
from small_runs import make_language, tiny

from RLM_clean import plots
from RLM_clean.analysis import baselines, counting
from RLM_clean.datasets import RHM, RLM, TreeGrammar, Unambiguous
from RLM_clean.exact import correlations, entropies, inference, theory
from RLM_clean.plots import style

DYNAMICS = [
    {'t': t, 'trainloss': 2.2 - 0.1 * i, 'testloss': 2.1 - 0.1 * i, 'excess': 1.1 - 0.1 * i}
    for i, t in enumerate((0, 1, 3, 10, 30, 100, 300))
]
STEPS = [int(record['t']) for record in DYNAMICS]
FLOORS = {0: (2.0, 0.0), 1: (1.5, 0.0), 3: (1.02, 0.01), 7: (1.0, 0.01)}

SMALL = RLM(v=4, L=2, beta=1.5)
SEQUENCES = SMALL.sequences(0, 3000)
TREE = SMALL.trees(0, 1)
BETAS = (0.5, 1.5, 3.0)
GRAMMARS = [RLM(v, 2, beta, seed_rules=seed) for v in (4, 6) for beta in BETAS for seed in (1, 2)]
OF_ONE_SIZE = [grammar for grammar in GRAMMARS if grammar.v == 4]
RHM_SMALL = RHM(v=4, m=2, L=2)

# Every figure function, given axes or not.
FIGURES: dict[str, Callable[..., Any]] = {
    'learning_curve': lambda axes=None: plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', axes),
    'learning_curve_of_all': lambda axes=None: plots.learning_curve(DYNAMICS, {0: (2.0, 0.0)}, 1.2, 'a run', axes),
    'excess_curve': lambda axes=None: plots.excess_curve(DYNAMICS, axes, 'a run'),
    'rule_maps': lambda axes=None: plots.rule_maps(SMALL, [2], axes=axes),
    'ranked_rules': lambda axes=None: plots.ranked_rules(OF_ONE_SIZE[::2], axes),
    'rule_entropies': lambda axes=None: plots.rule_entropies(GRAMMARS, axes),
    'rule_participation': lambda axes=None: plots.rule_participation(GRAMMARS, axes),
    'tree': lambda axes=None: plots.tree(TREE, axes),
    'posterior_tree': lambda axes=None: plots.posterior_tree(SMALL, TREE, axes),
    'ambiguity_by_level': lambda axes=None: plots.ambiguity_by_level([SMALL, RHM_SMALL], 32, axes),
    'token_strips': lambda axes=None: plots.token_strips(SEQUENCES[:4], 4, 'sequences', axes),
    'token_frequencies': lambda axes=None: plots.token_frequencies(SMALL, SEQUENCES, axes),
    'pair_frequencies': lambda axes=None: plots.pair_frequencies(SMALL, SEQUENCES, axes=axes),
    'deviations': lambda axes=None: plots.deviations(SMALL, SEQUENCES, axes),
    'entropies': lambda axes=None: plots.entropies(OF_ONE_SIZE, axes),
    'ladder': lambda axes=None: plots.ladder([SMALL, RHM_SMALL], axes=axes),
    'information_decay': lambda axes=None: plots.information_decay([*OF_ONE_SIZE, RHM_SMALL], axes),
    'path_decay': lambda axes=None: plots.path_decay(RLM(v=4, L=4, beta=1.5), axes),
}
# Numbers that have no unit: counts, positions, symbols, ranks.
WITHOUT_UNIT = {
    'step', 'rank of the pair (b, c)', 'left child b', 'right child c', 'position of the token', 'sequence',
    'tokens seen, k',
}  # fmt: skip


def first(made: Any) -> Axes:
    """The axes that a figure function returned, or the first of its figure."""
    return made.axes[0] if isinstance(made, Figure) else made


def parameters() -> dict[str, Any]:
    return {name: str(value) for name, value in matplotlib.rcParams.items()}


@functools.cache
def drawn(name: str) -> tuple[Figure, dict[str, Any], dict[str, Any]]:
    """A rendered figure, and the global parameters before and after. Each figure is made once."""
    before = parameters()
    figure: Any = first(FIGURES[name]()).figure
    after = parameters()
    FigureCanvasAgg(figure).draw()
    return figure, before, after


def axes_of(name: str) -> Any:
    """The axes of a rendered figure."""
    return drawn(name)[0].axes[0]


def numbers(data: Any) -> np.ndarray:
    """The data of a line as floats; error bars have objects."""
    return np.asarray(data, dtype=float)


# ---------------------------------------------------------------------- all figures


@pytest.mark.parametrize('name', FIGURES)
def test_every_axis_has_a_label_with_its_unit(name: str) -> None:
    for axes in drawn(name)[0].axes:
        labels = [axes.get_xlabel(), axes.get_ylabel()]
        if axes.get_label() == '<colorbar>':
            labels = [label for label in labels if label]
            assert labels
        for label in labels:
            assert label in WITHOUT_UNIT or 'probability' in label or re.search(r'\(.+\)$', label), label


@pytest.mark.parametrize('name', FIGURES)
def test_lines_of_several_kinds_have_a_legend(name: str) -> None:
    for axes in drawn(name)[0].axes:
        named = axes.get_legend_handles_labels()[1]
        if len(named) > 1:
            legend = axes.get_legend()
            assert legend is not None and [text.get_text() for text in legend.get_texts()] == named


@pytest.mark.parametrize('name', FIGURES)
def test_no_text_is_cut_or_overlaps_another(name: str) -> None:
    assert_readable(drawn(name)[0])


@pytest.mark.parametrize('name', FIGURES)
def test_a_figure_has_the_style_and_keeps_the_global_parameters(name: str) -> None:
    figure, before, after = drawn(name)
    assert before == after
    assert figure.get_layout_engine() is not None and figure.dpi == 84
    assert not figure.axes[0].spines['top'].get_visible()


@pytest.mark.parametrize('name', FIGURES)
def test_a_figure_draws_into_given_axes(name: str) -> None:
    given = Figure().subplots()
    before = parameters()
    assert first(FIGURES[name](axes=given)) is given
    assert parameters() == before
    assert given.has_data()


# ---------------------------------------------------------------------- the style


def test_pyplot_finds_the_style_file_of_the_package() -> None:
    with matplotlib.style.context('RLM_clean.plots.house'):
        by_name = parameters()
    with style.context():
        assert parameters() == by_name
        cycle = matplotlib.rcParams['axes.prop_cycle'].by_key()['color']
    assert [to_hex(color) for color in cycle] == [color.lower() for color in style.CYCLE]


def test_an_error_within_the_style_keeps_the_global_parameters() -> None:
    before = parameters()
    with pytest.raises(ValueError, match='do not fit one figure'):
        plots.entropies(GRAMMARS)
    assert parameters() == before


# ---------------------------------------------------------------------- runs


def test_the_learning_curve_draws_the_records_and_names_the_floors() -> None:
    axes = axes_of('learning_curve')
    curves = {line.get_label(): line for line in axes.get_lines()}
    for label, key in (('training loss', 'trainloss'), ('test loss', 'testloss')):
        assert list(curves[label].get_xdata()) == [record['t'] for record in DYNAMICS]
        assert list(curves[label].get_ydata()) == [record[key] for record in DYNAMICS]
    levels = sorted(float(line.get_ydata()[0]) for line in axes.get_lines() if len(line.get_xdata()) == 2)
    assert levels == sorted(value for value, _ in FLOORS.values())
    written = {text.get_text() for text in axes.texts}
    assert {f'$H_{{{k}}}$ = {value:.3f}' for k, (value, _) in FLOORS.items()} <= written
    (shade,) = axes.patches
    assert shade.get_extents().y1 == pytest.approx(axes.transData.transform((0, 1.0))[1])
    assert 'below the floor: out of reach on new sequences' in written


def test_the_floor_of_several_targets_is_named_alone() -> None:
    axes = axes_of('learning_curve_of_all')
    assert 'floor = 1.200' in {text.get_text() for text in axes.texts}
    assert [float(line.get_ydata()[0]) for line in axes.get_lines() if len(line.get_xdata()) == 2] == [1.2]


def test_the_excess_is_on_log_axes_without_step_0_and_names_its_end() -> None:
    axes = axes_of('excess_curve')
    (line,) = axes.get_lines()
    assert axes.get_xscale() == axes.get_yscale() == 'log'
    assert list(line.get_ydata()) == [record['excess'] for record in DYNAMICS[1:]]
    assert [text.get_text() for text in axes.texts] == [f'{DYNAMICS[-1]["excess"]:.2g}']


@pytest.mark.parametrize('draw', [plots.ladder, plots.information_decay, plots.ambiguity_by_level])
def test_every_language_has_a_line_however_many_there_are(draw: Callable[..., Axes]) -> None:
    betas = np.linspace(0.5, 4.5, 9)
    axes = draw([RLM(v=4, L=2, beta=float(beta)) for beta in betas])
    names = ' '.join(legend_texts(axes))
    assert all(f'{beta:g}' in names for beta in betas)
    assert len({to_hex(bars[0].get_color()) for bars in axes.containers}) == 9


def test_the_picture_of_a_run_has_its_learning_curve_and_its_excess(tmp_path: Path) -> None:
    path = tmp_path / 'run.png'
    before = parameters()
    config = tiny(num_layers=1)
    plots.save_learning_curve(DYNAMICS, make_language(config), config, path)
    assert parameters() == before
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1430, 546)


def test_the_picture_of_a_run_shows_counts_of_pairs_where_the_context_is_one_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def picture(records: list[dict[str, Any]] = DYNAMICS, **options: Any) -> Any:
        pictures: list[Figure] = []
        monkeypatch.setattr('RLM_clean.plots.runs.save', lambda figure, path: pictures.append(figure))
        config = tiny(**options)
        plots.save_learning_curve(records, make_language(config), config, Path('run.png'))
        return pictures[0]

    kinds: list[dict[str, Any]] = [{'num_layers': 1}, {'num_layers': 2, 'num_tokens': 2}]
    for options in kinds:
        figure = picture(**options)
        language = make_language(tiny(**options))
        expected = baselines.ngram_records(language.grammar, language.reference, tiny(**options), STEPS)
        left, right = figure.axes
        for axes, name, first in ((left, 'testloss', 0), (right, 'excess', 1)):
            (line,) = [line for line in axes.get_lines() if line.get_label() == 'counts of pairs']
            assert list(line.get_ydata()) == [record[name] for record in expected[first:]]
            assert 'counts of pairs' in legend_texts(axes)
            low, high = axes.get_ylim()
            assert low < min(line.get_ydata()) and max(line.get_ydata()) < high
        assert 'model' in legend_texts(right)
        assert_readable(figure)
    long = [{**record, 't': 10**6 * record['t']} for record in DYNAMICS]  # counting these would take long
    for figure in (picture(num_layers=2), picture(long, num_layers=1), picture([], num_layers=1)):
        assert 'counts of pairs' not in legend_texts(figure.axes[0])
        assert figure.axes[1].get_legend() is None


def test_two_learning_curves_on_one_axes_share_floors_and_have_a_name_each() -> None:
    axes: Any = style.panels()
    plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', axes)
    other = [{**record, 'testloss': record['testloss'] + 0.1} for record in DYNAMICS]
    assert [plots.learning_curve(other, FLOORS, 1.0, 'a run', axes)] == [axes]
    assert_readable(axes.figure)
    floor = '$H_k$, best loss from the last k tokens'
    assert legend_texts(axes) == ['run 1', 'run 2', 'training loss', floor]
    assert axes.get_title('left') == 'a run'
    for name, records in (('run 1', DYNAMICS), ('run 2', other)):
        (line,) = [line for line in axes.get_lines() if line.get_label() == name]
        assert list(line.get_ydata()) == [record['testloss'] for record in records]
    levels = [float(line.get_ydata()[0]) for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert sorted(levels) == sorted(value for value, _ in FLOORS.values())  # once
    assert [text.get_text() for text in axes.texts].count('$H_{0}$ = 2.000') == 1
    assert len(axes.patches) == 1

    plots.learning_curve(DYNAMICS, {0: (2.0, 0.0), 1: (0.7, 0.0)}, 0.7, 'another run', axes, 'mine', 'black')
    assert_readable(axes.figure)
    assert legend_texts(axes) == ['a run', 'a run (2)', 'mine', 'training loss', 'floor of the run']
    floors = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert [float(line.get_ydata()[0]) for line in floors] == [1.0, 1.0, 0.7]
    assert [line.get_color() for line in floors] == [style.BLUE, style.ORANGE, 'black']
    assert {text.get_text() for text in axes.texts} == {'1.000', '0.700'}
    assert not axes.get_title('left') and not axes.patches


def test_axes_keep_what_others_have_drawn_and_forget_curves_that_were_cleared() -> None:
    axes: Any = style.panels()
    (own,) = axes.plot([1, 100], [3.0, 0.5], label='my own line')
    for _ in range(2):
        plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', axes)
        assert own in axes.get_lines() and 'my own line' in legend_texts(axes)
        low, high = axes.get_ylim()
        assert low < 0.5 and high > 3
    axes.clear()
    plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', axes)
    assert legend_texts(axes)[:2] == ['training loss', 'test loss']


def test_a_learning_curve_takes_a_name_and_a_colour() -> None:
    axes: Any = plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', label='mine', color='#123456')
    assert legend_texts(axes)[0] == 'mine' and axes.get_lines()[1].get_color() == '#123456'
    axes = plots.excess_curve(DYNAMICS, label='mine', color='#123456')
    plots.excess_curve(DYNAMICS, axes, label='other')
    assert legend_texts(axes) == ['mine', 'other']
    assert [line.get_color() for line in axes.get_lines()] == ['#123456', style.BLUE]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == 2 * [[r['excess'] for r in DYNAMICS[1:]]]


@pytest.mark.parametrize('size', [(3.5, 2.4), (5, 3), (7, 4.2), (14, 8)])
def test_the_learning_curve_is_readable_at_every_size(size: tuple[float, float]) -> None:
    axes: Any = style.panels(size=size)
    plots.learning_curve(DYNAMICS, FLOORS, 1.0, 'a run', axes)
    assert_readable(axes.figure)
    (shade,) = axes.patches
    (note,) = [text for text in axes.texts if text.get_text().startswith('below the floor')]
    assert box(shade).y0 - 1 <= box(note).y0 and box(note).y1 <= box(shade).y1 + 1


def test_the_training_loss_of_an_offline_run_may_be_below_the_floor() -> None:
    memorised = [{**record, 'trainloss': 0.1} for record in DYNAMICS]
    axes: Any = plots.learning_curve(memorised, FLOORS, 1.0, 'a run')
    assert_readable(axes.figure)
    assert axes.get_ylim()[0] < 0.1


def test_labels_of_floors_stay_beside_the_axes_where_many_are_close() -> None:
    top = {k: (2.2 - 1e-3 * k, 0.0) for k in range(8)}
    axes: Any = plots.learning_curve(DYNAMICS, {**top, 8: (1.0, 0.0)}, 1.0, 'a run')
    assert_readable(axes.figure)
    labels = [text for text in axes.texts if text.get_text().startswith('$H')]
    heights = [box(text).y0 for text in sorted(labels, key=lambda text: -int(text.get_text()[4]))]
    assert heights == sorted(heights) and len(labels) == 9  # in the order of the floors
    assert max(box(text).y1 for text in labels) < box(axes.patch).y1 + 10


# ---------------------------------------------------------------------- rules


def test_rule_maps_draw_the_probabilities_down_to_the_lowest_colour() -> None:
    rules = RHM_SMALL.level_rules(1)
    figure: Any = plots.rule_maps(RHM_SMALL, [0, 3], level=1)
    for a, axes in zip((0, 3), figure.axes[:2], strict=True):
        (image,) = axes.get_images()
        np.testing.assert_allclose(image.get_array(), rules[a].clamp(min=1e-5))
        assert image.norm.vmin == 1e-5 and image.norm.vmax == 1


def test_rule_maps_of_few_symbols_show_all_of_them() -> None:
    figure: Any = plots.rule_maps(RLM(v=3, L=1))
    assert [bool(axes.get_images()) for axes in figure.axes] == [True, True, True, False]  # the last is the colour bar


def test_ranked_rules_are_sorted_and_averaged_over_symbols() -> None:
    lines = axes_of('ranked_rules').get_lines()
    assert [line.get_label() for line in lines] == [f'beta = {beta:g}' for beta in BETAS]
    for line, grammar in zip(lines, OF_ONE_SIZE[::2], strict=True):
        expected = np.mean([np.sort(grammar.M[a].flatten().numpy())[::-1] for a in range(4)], axis=0)
        np.testing.assert_allclose(np.asarray(line.get_ydata()), expected)


@pytest.mark.parametrize(
    ('name', 'measure', 'mean', 'limit'),
    [
        ('rule_entropies', entropies.rule_entropy, theory.mean_rule_entropy, lambda beta: max(0, 1 - beta**2 / 4)),
        ('rule_participation', entropies.participation_ratio, theory.mean_participation_ratio, lambda beta: 0),
    ],
)
def test_rule_figures_draw_the_measured_values_and_the_theory(
    name: str, measure: Callable, mean: Callable, limit: Callable
) -> None:
    axes = axes_of(name)
    lines = {line.get_label(): line for line in axes.get_lines()}
    for v, points in zip((4, 6), axes.containers, strict=True):
        unit = 2 * math.log(v) if name == 'rule_entropies' else 1.0
        values = [
            torch.cat([measure(grammar.M) for grammar in GRAMMARS if (grammar.v, grammar.beta) == (v, beta)]) / unit
            for beta in BETAS
        ]
        np.testing.assert_allclose(numbers(points[0].get_xdata()), BETAS)
        np.testing.assert_allclose(numbers(points[0].get_ydata()), [value.mean().item() for value in values])
        heights = [bar[1, 1] - bar[0, 1] for bar in points[2][0].get_segments()]
        np.testing.assert_allclose(heights, [2 * value.std().item() / math.sqrt(2 * v) for value in values])
        x, y = lines[f'v = {v}'].get_data()
        np.testing.assert_allclose(y, [mean(v, beta) / unit for beta in np.asarray(x)])
    x, y = lines['v to infinity (REM)'].get_data()
    below = np.asarray(x) <= 2
    np.testing.assert_allclose(np.asarray(y)[below], [limit(beta) for beta in np.asarray(x)[below]], atol=1e-12)
    assert lines['freezing, beta = 2'].get_xdata()[0] == 2
    warm: Any = getattr(plots, name)([grammar for grammar in GRAMMARS if grammar.beta < 2])
    (line,) = [line for line in warm.get_lines() if line.get_label() == 'v to infinity (REM)']
    assert (np.diff(line.get_xdata()) >= 0).all()  # no line back from beyond the largest beta


# ---------------------------------------------------------------------- trees and sequences


def test_a_tree_shows_every_symbol_at_its_place() -> None:
    found = {text.get_position(): text.get_text() for text in axes_of('tree').texts}
    places = [(2.5,), (1.5, 3.5), (1, 2, 3, 4)]
    for level, row in enumerate(places):
        for x, symbol in zip(row, TREE[level][0].tolist(), strict=True):
            assert found.pop((x, level)) == str(symbol)
    assert not found


def test_the_posterior_tree_shows_probabilities_entropies_and_wrong_guesses() -> None:
    rhm_tree = RHM_SMALL.trees(0, 1)
    misled = 0
    for grammar, trees in (
        (SMALL, TREE),
        (RHM_SMALL, rhm_tree),
        (SMALL, SMALL.trees(1, 1)),
        (SMALL, SMALL.trees(2, 1)),
    ):
        axes: Any = plots.posterior_tree(grammar, trees)
        posteriors = inference.ancestor_posteriors(grammar, trees[-1])
        hidden = [
            (p[0, i], int(trees[level][0, i])) for level, p in enumerate(posteriors[:-1]) for i in range(2**level)
        ]
        written = [text.get_text() for text in axes.texts if '.' in text.get_text()]
        assert written == [f'{p[symbol]:.2f}' for p, symbol in hidden]
        nodes = [line for line in axes.get_lines() if line.get_marker() == 'o'][: len(hidden)]
        for node, (p, symbol) in zip(nodes, hidden, strict=True):
            share = torch.special.entr(p).sum().item() / math.log(grammar.v)
            colour = matplotlib.colormaps['YlOrBr'](share)
            np.testing.assert_allclose(to_rgba(node.get_markerfacecolor()), colour)
            wrong = int(p.argmax()) != symbol
            misled += wrong
            assert (node.get_markeredgecolor() == style.BLUE) is wrong
    assert misled  # otherwise the test checks no ring


def test_ambiguity_is_the_mean_entropy_of_the_posteriors_and_zero_in_the_rhm() -> None:
    of_rlm, of_rhm = axes_of('ambiguity_by_level').containers
    leaves = SMALL.sequences(0, 32, 'floors')
    expected = [torch.special.entr(p).sum(-1).mean().item() for p in inference.ancestor_posteriors(SMALL, leaves)[:-1]]
    np.testing.assert_allclose(numbers(of_rlm[0].get_ydata()), expected)
    np.testing.assert_allclose(numbers(of_rhm[0].get_ydata()), 0, atol=1e-9)


def test_the_ambiguity_of_a_filtered_language_is_drawn_at_the_levels_that_it_has() -> None:
    languages = [RLM(v=3, L=3, beta=1.5).filtered(k) for k in (0, 1, 2)]
    axes: Any = plots.ambiguity_by_level(languages, 16)
    assert [points[0].get_xdata().tolist() for points in axes.containers] == [[0], [0, 2], [0, 1, 2]]


def test_the_tree_of_a_filtered_language_is_refused_in_one_sentence() -> None:
    filtered = RLM(v=3, L=3, beta=1.5).filtered(1)
    tree = filtered.trees(0, 1)
    with pytest.raises(ValueError, match=r'levels\[1\] holds 4 symbols, not 2: give the tree of one sequence'):
        plots.tree(tree)
    with pytest.raises(ValueError, match=r'levels\[1\] holds 4 symbols, not 2'):
        plots.posterior_tree(filtered, tree)


def test_token_strips_have_the_same_colour_for_the_same_symbol() -> None:
    axes = axes_of('token_strips')
    assert [text.get_text() for text in axes.texts] == [str(symbol) for symbol in SEQUENCES[:4].flatten().tolist()]
    colours: dict[str, set[Any]] = {}
    for text, field in zip(axes.texts, axes.patches, strict=True):
        colours.setdefault(text.get_text(), set()).add(field.get_facecolor())
    assert all(len(found) == 1 for found in colours.values())
    assert len(set().union(*colours.values())) == len(colours)
    left = [field.get_x() for field in axes.patches[:4]]
    assert left[2] - left[1] > left[1] - left[0]  # the middle of the tree parts more than a pair


# ---------------------------------------------------------------------- tokens


def test_frequencies_are_drawn_against_exact_probabilities() -> None:
    for name, exact, sampled in (
        ('token_frequencies', correlations.leaf_marginals(SMALL), counting.empirical_marginals(SEQUENCES, 4)),
        ('pair_frequencies', correlations.joint(SMALL, 2, 3), counting.empirical_joint(SEQUENCES, 2, 3, 4)),
    ):
        (points,) = [line for line in axes_of(name).get_lines() if line.get_linestyle() == 'None']
        seen = sampled.flatten() > 0
        np.testing.assert_allclose(points.get_xdata(), exact.flatten()[seen])
        np.testing.assert_allclose(points.get_ydata(), sampled.flatten()[seen])


def test_pairs_that_were_not_seen_are_counted_in_the_legend() -> None:
    axes = plots.pair_frequencies(RHM_SMALL, RHM_SMALL.sequences(0, 500))
    unseen = int((counting.empirical_joint(RHM_SMALL.sequences(0, 500), 2, 3, 4) == 0).sum())
    assert f'sampled; {unseen} of 16 not seen' in axes.get_legend_handles_labels()[1]


def test_deviations_are_normal_for_the_grammar_of_the_samples_and_large_for_another() -> None:
    # One token: 12 free counts. A deviation of z beyond 1.7 has a probability below 1e-4; the seed is fixed.
    def deviation(axes: Axes) -> float:
        (label,) = [label for label in axes.get_legend_handles_labels()[1] if label.startswith('one token')]
        return float(label.rsplit(' ', 1)[1])

    assert 0.3 < deviation(axes_of('deviations')) < 1.7
    assert deviation(plots.deviations(RLM(v=4, L=2, beta=1.5, seed_rules=2), SEQUENCES)) > 3


def test_entropies_against_beta_are_the_exact_ones() -> None:
    lines = {line.get_label(): line for line in axes_of('entropies').get_lines()}
    exact: dict[str, Callable[[RLM], float]] = {
        'marginal $H(x_n)$': entropies.marginal,
        'sequence, per token': lambda grammar: entropies.leaves_entropy(grammar)[0] / 4,
        'floor $H(x_n|x_1..x_{n-1})$': lambda grammar: entropies.entropy(grammar)[0],
    }
    for label, measure in exact.items():
        means = [np.mean([measure(grammar) for grammar in OF_ONE_SIZE if grammar.beta == beta]) for beta in BETAS]
        np.testing.assert_allclose(np.asarray(lines[label].get_ydata()), means)
    assert lines['ln v'].get_ydata()[0] == math.log(4)


def test_the_ladder_draws_the_window_entropies() -> None:
    for grammar, line in zip((SMALL, RHM_SMALL), axes_of('ladder').containers, strict=True):
        floors = entropies.window_entropies(grammar, range(4))
        np.testing.assert_allclose(numbers(line[0].get_ydata()), [value for value, _ in floors.values()])


def test_the_ladder_names_the_target_where_all_languages_have_the_same() -> None:
    assert axes_of('ladder').get_ylabel() == '$H(x_{4}$ | last k tokens) (nats)'
    assert plots.ladder([SMALL, RLM(v=3, L=1)]).get_ylabel() == '$H(x_{n}$ | last k tokens) (nats)'


@pytest.mark.parametrize(('i', 'j', 'name'), [(4, 1, 'i=4'), (0, -5, 'j=-5')])
def test_a_pair_with_a_position_of_no_token_is_refused(i: int, j: int, name: str) -> None:
    with pytest.raises(ValueError, match=f'{name} is outside a sequence of 4 tokens: use -4 to 3'):
        plots.pair_frequencies(SMALL, SEQUENCES, i, j)


def test_information_is_drawn_as_the_mean_of_the_theory_and_as_the_geometric_one() -> None:
    """Full points are arithmetic means, which the theory is about, and open points are geometric means."""
    axes = axes_of('information_decay')
    groups = [[grammar for grammar in OF_ONE_SIZE if grammar.beta == beta] for beta in BETAS]
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == 'white' and len(line.get_xdata()) == 2]
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == '--' and len(line.get_xdata()) == 2]
    assert len(hollow) == 3 and len(dashed) == 4
    for group, points, typical, line in zip(groups, axes.containers[:3], hollow, dashed[:3], strict=True):
        information = np.array([correlations.mutual_information_by_distance(grammar).numpy() for grammar in group])
        np.testing.assert_allclose(numbers(points[0].get_ydata()), information.mean(0))
        np.testing.assert_allclose(numbers(typical.get_ydata()), np.exp(np.log(information).mean(0)))
        heights = [bar[1, 1] - bar[0, 1] for bar in points[2][0].get_segments()]
        np.testing.assert_allclose(heights, 2 * information.std(0, ddof=1) / math.sqrt(2))
        decay = theory.random_second_eigenvalue(4, group[0].beta) ** 4
        np.testing.assert_allclose(numbers(line.get_ydata()), information[:, 0].mean() * np.array([1, decay]))
    # v (1 - m / v) / (2 m^(2h - 1)) with v = 4, m = 2
    np.testing.assert_allclose(numbers(dashed[3].get_ydata()), [4 * 0.5 / 4, 4 * 0.5 / 16])
    assert {'mean over grammars', 'geometric mean', 'theory of the mean'} <= set(axes.get_legend_handles_labels()[1])


def test_information_is_averaged_only_over_grammars_of_the_same_parameters_and_sizes() -> None:
    sizes = [(4, 2, 1.5), (5, 2, 1.5), (4, 3, 1.5), (4, 2, 3.0)]
    languages = [RLM(v, L, beta, seed_rules=seed) for v, L, beta in sizes for seed in (1, 2)]
    axes = plots.information_decay(languages)
    assert len(axes.containers) == 4
    for i, points in enumerate(axes.containers):
        pair = [
            correlations.mutual_information_by_distance(grammar).numpy() for grammar in languages[2 * i : 2 * i + 2]
        ]
        np.testing.assert_allclose(numbers(points[0].get_ydata()), np.mean(pair, 0))
    names = [name for name in axes.get_legend_handles_labels()[1] if name.startswith('RLM')]
    assert names == [*(f'RLM, v = {v}, L = {L}, beta = 1.5' for v, L, _ in sizes[:3]), 'RLM, beta = 3']


def test_the_decay_between_the_ends_of_sub_trees_has_the_slope_of_the_eigenvalues() -> None:
    grammar = RLM(v=4, L=4, beta=1.5)
    exact, dashed = axes_of('path_decay').get_lines()
    values = [correlations.mutual_information(grammar, 0, end) for end in (1, 3, 7, 15)]
    np.testing.assert_allclose(np.asarray(exact.get_ydata()), values)
    left, right = (theory.second_eigenvalue(matrix) for matrix in theory.transition_matrices(grammar.M))
    line = np.asarray(dashed.get_ydata())
    np.testing.assert_allclose(line[1:] / line[:-1], (left * right) ** 2)
    assert line[2] == pytest.approx(values[2])


def test_different_languages_have_different_names_in_legends() -> None:
    languages = [
        RLM(v=4, L=2), RLM(v=8, L=2), RLM(v=4, L=2, beta=1.0), RLM(v=4, L=2, beta=1.0).filtered(1),
        Unambiguous(v=4, L=2, sigma=1.0), Unambiguous(v=4, L=2, sigma=2.0),
    ]  # fmt: skip
    names = [
        'RLM, v = 4, L = 2, beta = 2', 'RLM, v = 8, L = 2, beta = 2', 'RLM, beta = 1',
        'RLM, beta = 1, filtered to k = 1', 'unambiguous, sigma = 1', 'unambiguous, sigma = 2',
    ]  # fmt: skip
    for draw in (plots.ladder, plots.ambiguity_by_level):
        known = languages if draw is plots.ladder else [languages[i] for i in (0, 1, 2, 4, 5)]  # filtered: few levels
        labels = draw(known).get_legend_handles_labels()[1]
        assert [label for label in labels if label in names] == [names[languages.index(one)] for one in known]


def test_figures_of_languages_take_grammars_of_other_rules() -> None:
    """Such as those of registered datasets, which have no beta and no theory."""
    own = [TreeGrammar(RLM(v=4, L=2, beta=1.5, seed_rules=seed).rules[0], 2) for seed in (1, 2)]
    assert plots.language_name(own[0]) == 'own rules'
    assert plots.language_name(own[0], sizes=True) == 'own rules, v = 4, L = 2'
    assert plots.language_name(SMALL, sizes=True) == 'RLM, v = 4, L = 2, beta = 1.5'
    for draw in (plots.ladder, plots.information_decay, plots.ambiguity_by_level):
        figure: Any = draw([*own, SMALL]).figure
        FigureCanvasAgg(figure).draw()
        legend = figure.axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()].count('own rules') == 2
    axes = plots.information_decay(own)
    for grammar, points in zip(own, axes.containers, strict=True):  # not averaged: nothing says that they are alike
        information = correlations.mutual_information_by_distance(grammar)
        np.testing.assert_allclose(numbers(points[0].get_ydata()), information)
    assert not [line for line in axes.get_lines() if line.get_linestyle() == '--']


# ---------------------------------------------------------------------- the slider


class FakeSlider:
    """The part of the slider of ipywidgets that is used: it can be observed and moved."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def observe(self, react: Callable, name: str) -> None:
        assert name == 'value'
        self.move = lambda value: react({'new': value})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a notebook would show, in order; an update replaces a picture."""
    found: list[Any] = []

    def display(thing: Any, display_id: bool = False) -> Any:
        found.append(thing)
        place = len(found) - 1
        return types.SimpleNamespace(update=lambda other: found.__setitem__(place, other))

    monkeypatch.setattr('IPython.display.display', display)
    return found


def draw_axes(beta: float) -> Axes:
    return plots.ranked_rules([RLM(v=4, L=1, beta=beta)])


def draw_figure(beta: float) -> Figure:
    return plots.rule_maps(RLM(v=4, L=1, beta=beta), [0])


@pytest.mark.parametrize('draw', [draw_axes, draw_figure])
def test_a_slider_redraws_the_figure_with_ipywidgets(
    draw: Callable[[float], Any], shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType('ipywidgets')
    module.SelectionSlider = FakeSlider
    monkeypatch.setitem(sys.modules, 'ipywidgets', module)
    before = parameters()
    plots.slider(draw, [1.0, 2.0], start=1.0)
    control, picture = shown
    assert control.options['options'] == [1.0, 2.0] and control.options['value'] == 1.0
    control.move(2.0)
    assert shown[1].data.startswith(b'\x89PNG') and shown[1].data != picture.data
    assert parameters() == before


def test_a_slider_is_a_plain_picture_without_ipywidgets(shown: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    plots.slider(draw_axes, [1.0, 2.0], start=2.0)
    (picture,) = shown
    assert picture.data.startswith(b'\x89PNG')


def test_a_slider_that_starts_outside_its_values_is_an_error(shown: list[Any]) -> None:
    with pytest.raises(ValueError, match=r'start=3.0 is not one of the values: use one of \[1.0, 2.0\]'):
        plots.slider(draw_axes, [1.0, 2.0], start=3.0)
    assert not shown
