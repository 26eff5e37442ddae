"""Each example is one command with a quick form; its figure is in the documentation and draws what was measured."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers import ROOT
from matplotlib.patches import Rectangle
from readable import assert_readable

from examples import denoising_transition, entropy_against_beta, filtering, mup, root, staircase, steering, tree
from RLM_clean import sweep, training
from RLM_clean.analysis.interventions import Interchange, Steering, Values
from RLM_clean.analysis.probes import NodeProbes
from RLM_clean.datasets import RHM, RLM
from RLM_clean.exact import entropies, inference, theory
from RLM_clean.plots import panels, style
from RLM_clean.runs import load_run
from RLM_clean.training.lifecycle import Outcome

EXAMPLES = sorted(path.stem for path in (ROOT / 'examples').glob('*.py') if path.stem != '__init__')
PAGE = (ROOT / 'docs/examples.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', [name for name in EXAMPLES if name != 'all'])
def test_an_example_has_its_command_and_its_figure_in_the_documentation(name: str) -> None:
    section = PAGE.split(f'python -m examples.{name}\n', 1)[1].split('\n## ', 1)[0]
    assert f'](images/{name}.png)' in section
    height, width, _ = matplotlib.image.imread(ROOT / f'docs/images/{name}.png').shape
    assert width > 1000 and height > 400


def test_the_documentation_names_only_examples_that_exist() -> None:
    assert sorted(set(re.findall(r'-m examples\.(\w+)', PAGE))) == EXAMPLES


@pytest.mark.parametrize('name', ['correlations', 'entropy_against_beta'])
def test_the_command_draws_the_figure_into_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [name, '--quick'])
    runpy.run_path(str(ROOT / f'examples/{name}.py'), run_name='__main__')
    assert capsys.readouterr().out.splitlines()[-1] == f'the figure is results/{name}.png'
    assert matplotlib.image.imread(tmp_path / f'results/{name}.png').shape[1] == 1430


def test_the_staircase_trains_both_languages_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ['--quick', '--threads', '1', '--max_iters', '20']
    staircase.main(words)
    assert matplotlib.image.imread(tmp_path / 'results/staircase_quick/staircase.png').shape[1] == 1430
    runs = [load_run(tmp_path / f'results/staircase_quick/{name}') for name in ('rhm', 'rlm')]
    assert [run.config.dataset for run in runs] == ['rhm', 'rlm']
    assert all(run.dynamics[-1]['t'] == 20 for run in runs)
    capsys.readouterr()
    staircase.main([*words, '--picture', 'again.png'])  # trained already: drawn again
    assert 'step' not in capsys.readouterr().err and Path('again.png').exists()


def test_the_deep_staircase_is_one_run_of_one_more_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(staircase, 'MODEL', {**staircase.MODEL, **staircase.QUICK, 'max_iters': 20})
    monkeypatch.setattr(staircase, 'DEEP', {'num_layers': 3})
    staircase.main(['--deep', '--threads', '1'])
    assert matplotlib.image.imread(tmp_path / 'results/staircase_deep/staircase.png').shape[1] == 715
    assert list(load_run(tmp_path / 'results/staircase_deep/rhm').floors) == [0, 1, 3, 7]
    assert not (tmp_path / 'results/staircase_deep/rlm.pt').exists()


def test_bad_input_of_an_example_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for main, words, message in (
        (staircase.main, ['--threads', 'abc'], "error: threads='abc' is out of range"),
        (staircase.main, ['--max_iters', '0'], 'error: max_iters=0 is out of range'),
        (filtering.main, ['--seeds', '0'], 'error: --seeds=0 trains no run: use 1 or more'),
    ):
        with pytest.raises(SystemExit) as stop:
            main(['--quick', *words])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('main', [staircase.main, filtering.main, steering.main])
def test_an_example_that_is_interrupted_does_not_say_that_it_is_done(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, 'train', lambda config: Outcome('interrupted', 1, [], {}, math.nan, math.nan))
    with pytest.raises(SystemExit, match='interrupted: the same command goes on'):
        main(['--quick'])


def test_an_example_whose_sweep_fails_says_so(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit) as stop:
        mup.main(['--quick', '--folder', str(tmp_path / 'file')])
    assert stop.value.code == 1


def test_the_sweep_of_the_root_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tasks, ratios in ((root.TASKS, root.RATIOS), (root.QUICK_TASKS, root.QUICK_RATIOS)):
        words = root.command(tmp_path / 'root', tasks, ratios, 3, **root.OPTIONS)
        assert sweep.main([*words, '--dry-run']) == 0
        listed = capsys.readouterr().out
        for task in tasks:
            for ratio in ratios:
                size = f'train_size{round(ratio * task.scale)}_'
                symbols = f'num_features{task.v}_num_classes{task.num_classes}_num_synonyms{task.m}_'
                assert len(re.findall(f'{symbols}num_layers{task.L}_depth{task.L}_{size}.*_r[123]', listed)) == 3


@pytest.mark.slow
def test_the_root_trains_its_sweep_and_prints_and_draws_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(root, 'QUICK_TASKS', (root.Task(4, 2, 2, 2),))
    monkeypatch.setattr(root, 'QUICK_RATIOS', (1, 8))
    monkeypatch.setattr(root, 'QUICK', {'embedding_dim': 8, 'max_iters': 128})
    root.main(['--quick'])
    *_, head, row, last = capsys.readouterr().out.splitlines()
    assert head.split() == ['n_c', 'm^L', 'P*', '+-', 'ratio', '+-']
    assert row.startswith('v = 4, n_c = 2, m = 2, L = 2') and row[34:42] == '       8'
    assert last == 'the figure is results/root_quick/root.png'
    assert matplotlib.image.imread(tmp_path / 'results/root_quick/root.png').shape[1] == 1430
    found = sweep.load('results/root_quick')
    np.testing.assert_array_equal(found['train_size'][:, 0], [8, 64])
    assert set(found['model'].flat) == {'cnn'} and set(found['objective'].flat) == {'root'}
    assert len(set(found['seed_rules'].flat)) == 3 and found['testacc'].shape == (2, 3)


def test_the_error_of_unseen_sequences_is_that_of_the_sequences_left_out_of_a_training_set() -> None:
    """A predictor that knows the training set by heart, and is right elsewhere with probability 0.7."""
    task, P = root.Task(8, 8, 4, 2), 256
    generator = np.random.default_rng(0)
    assert task.num_sequences == len(np.unique(RHM(8, 4, 2).sequences(0, 20000, 'test').numpy(), axis=0)) == 512
    accuracies = []
    for _ in range(400):
        seen = np.unique(generator.integers(task.num_sequences, size=P))
        accuracies.append((len(seen) + 0.7 * (task.num_sequences - len(seen))) / task.num_sequences)
    errors = root.unseen_error(np.array([[np.mean(accuracies)]]), task, np.array([P]))
    np.testing.assert_allclose(errors, 0.3, rtol=0.01)  # six standard errors: 0.024 / 20


def test_the_examples_needed_are_those_of_a_curve_that_is_known() -> None:
    """Errors of exp(-P / c): 10% of chance, 7/8, at P = c ln(8 / 0.7)."""
    task, P = root.Task(8, 8, 4, 3), np.geomspace(100, 10000, 400)
    c = np.array([900.0, 1000, 1100, 1000])
    errors = np.exp(-P[:, None] / c)
    found, error = root.examples_needed(task, P, errors)
    assert found == pytest.approx(1000 * math.log(80 / 7), rel=0.02)
    assert error == pytest.approx(c.std(ddof=1) / 2 * math.log(80 / 7), rel=0.1)
    assert math.isnan(root.crossing(P, np.ones(400), 0.5))
    assert root.crossing(np.array([1.0, 4.0]), np.array([0.8, 0.4]), 0.6) == pytest.approx(2)


def test_the_figure_of_the_root_draws_errors_over_those_of_chance_against_both_sizes() -> None:
    P = np.array([root.sizes(task, root.RATIOS) for task in root.TASKS])
    errors = np.random.default_rng(0).uniform(0, 0.5, size=(*P.shape, 4))
    axes = style.panels(1, 2, size=(11, 4.4))
    root.figure(root.TASKS, P, errors, *axes)
    assert_readable(axes[0].figure)
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == [str(task) for task in root.TASKS]
    for i, task in enumerate(root.TASKS):
        expected = errors[i].mean(1) / (1 - 1 / task.num_classes)
        for panel, unit in zip(axes, (1, task.num_classes * task.m**task.L), strict=True):
            line, _, (bars,) = panel.containers[i]
            np.testing.assert_allclose(line.get_xydata(), np.stack((P[i] / unit, expected), 1))
            heights = [bar[1, 1] - bar[0, 1] for bar in bars.get_segments()]
            np.testing.assert_allclose(heights, errors[i].std(1, ddof=1) / (1 - 1 / task.num_classes))  # 2 / sqrt(4)


def test_the_table_of_the_root_has_the_law_of_a_family_that_obeys_it() -> None:
    """The same curve in units of n_c m^L for all tasks: one ratio, without spread, and the exponent 1."""
    tasks = (root.Task(8, 8, 4, 2), root.Task(8, 8, 4, 3), root.Task(8, 2, 4, 3), root.Task(8, 8, 8, 3))
    P = np.array([root.sizes(task, (1, 2, 4, 8)) for task in tasks])
    errors = np.stack([np.array([[1.0], [0.2], [0.0], [0.0]]) * task.chance * np.ones(3) for task in tasks])
    *rows, ratio, depths, law = root.table(tasks, P, errors).splitlines()[1:]
    expected = 2 ** (1 + (0.2 - 0.1) / 0.2)
    for task, row in zip(tasks, rows, strict=True):
        assert row[34:].split() == [str(task.scale), f'{expected * task.scale:.0f}', '0', f'{expected:.2f}', '0.00']
    assert ratio == f'P* / (n_c m^L): geometric mean {expected:.2f}, spread of its logarithm 0.00'
    assert depths == f'geometric means at each depth: {expected:.2f} for L = 2, {expected:.2f} for L = 3'
    assert law == 'P* ~ (n_c m^L)^g: g = 1.00 +- 0.00'


def test_the_figure_draws_the_measured_entropy_of_sequences() -> None:
    languages = [RLM(3, entropy_against_beta.DEPTH, beta, seed_rules=seed) for beta in (1.0, 3.0) for seed in (1, 2)]
    axes = entropy_against_beta.sequence_entropies(languages, num_samples=64)
    found = np.array([entropies.leaves_entropy(language, 64) for language in languages]).reshape(2, 2, 2)
    (points,) = axes.containers
    unit = 16 * math.log(3)
    np.testing.assert_allclose(np.asarray(points[0].get_ydata(), dtype=float), found[:, :, 0].mean(1) / unit)
    heights = [bar[1, 1] - bar[0, 1] for bar in points[2][0].get_segments()]
    errors = np.hypot(found[:, :, 0].std(1, ddof=1), found[:, :, 1].mean(1)) / math.sqrt(2)
    np.testing.assert_allclose(heights, 2 * errors / unit)


def test_the_bound_is_the_smaller_of_the_tree_and_the_alphabet() -> None:
    for beta in (0.0, 1.0, math.sqrt(2) - 1e-3):
        assert entropy_against_beta.bound(beta, 2**20) == 1
    for beta in (1.6, 2.0, 3.0):
        tree = math.log(9) + 15 * theory.rem_entropy(9, beta)
        assert entropy_against_beta.bound(beta, 16) == pytest.approx(tree / (16 * math.log(9)))


def test_the_tree_shows_its_symbols_and_what_the_context_says_of_each_hidden_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.main(['--picture', str(tmp_path / 'tree.png')])
    assert capsys.readouterr().out == f'the figure is {tmp_path / "tree.png"}\n'
    again = matplotlib.image.imread(tmp_path / 'tree.png')
    np.testing.assert_array_equal(again.shape, matplotlib.image.imread(ROOT / 'docs/images/tree.png').shape)

    language = RLM(4, 3, 2.0, seed_rules=4)
    levels = language.trees(10, 1)
    axes: Any = tree.explained_tree(language, levels)
    assert_readable(axes.figure)
    symbols = [level.flatten().tolist() for level in levels]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    for level, row in enumerate(symbols):
        for i, symbol in enumerate(row):
            assert written[tree.place(3, level, i)] == str(symbol)
    hidden = [(level, i) for level in range(3) for i in range(2**level)] + [(3, 7)]
    bars = np.array([patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle)])
    bars = bars.reshape(len(hidden), 4) / tree.TALLEST
    for (level, i), found in zip(hidden, bars, strict=True):
        expected = np.zeros(4)
        for target in range(4):  # P(symbol | context) = sum_x P(symbol | context, x) P(x | context)
            leaves = torch.cat((levels[-1][:, :-1], torch.tensor([[target]])), 1)
            posterior = inference.ancestor_posteriors(language, leaves)[level][0, i].numpy()
            expected += posterior * inference.next_token_probs(language, leaves[:, :-1])[0, target].item()
        np.testing.assert_allclose(found, expected, atol=1e-12)


# ---------------------------------------------------------------------- mup

RATES = 2.0 ** np.arange(-9, -3)


def parabola(best: float, rates: np.ndarray[Any, Any] = RATES) -> np.ndarray[Any, Any]:
    """An excess that is least at the rate 2^best."""
    return 0.1 * np.exp(0.3 * (np.log2(rates) - best) ** 2)


class Measured:
    """The results of a sweep whose least excess lies at given rates, (parametrisations, widths, repetitions)."""

    def __init__(self, best: list[list[list[float]]]) -> None:
        self.axes = {'parametrisation': ['standard', 'mup'], 'embedding_dim': [64, 256], 'lr': RATES.tolist()}
        self.excess = np.moveaxis(np.array([[[parabola(x) for x in row] for row in rows] for rows in best]), -1, -2)

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        assert name == 'excess'
        return self.excess


def test_the_best_rate_is_the_lowest_point_between_the_rates_of_the_grid() -> None:
    for best in (-7.0, -6.7, -6.2, -5.5001):
        assert math.log2(mup.best_rate(RATES, parabola(best))) == pytest.approx(best)
    assert mup.best_rate(RATES, parabola(-20)) == RATES[0] and mup.best_rate(RATES, parabola(2)) == RATES[-1]
    rate, error = mup.best_rates(RATES, np.stack([parabola(best) for best in (-7.0, -6.0)], 1))
    assert math.log2(rate) == pytest.approx(-6.5) and error == pytest.approx(0.5)  # |7 - 6| / 2


def test_the_table_and_the_figure_of_mup_show_the_best_rates() -> None:
    results: Any = Measured([[[-5.8, -5.6], [-7.8, -7.6]], [[-5.8, -5.6], [-5.8, -5.6]]])
    lines = mup.table(results)
    assert lines[0] == 'standard  width   64  best lr 2^(-5.70 +- 0.10) = 1.92e-02  least excess 0.1030'
    assert [line.split()[-1] for line in lines if 'moves' in line] == ['-2.00', '+0.00']
    for place, name in enumerate(results.axes['parametrisation']):
        axes = panels()
        mup.draw(results, name, axes)
        curves = {line.get_label(): line for line in axes.lines if str(line.get_label()).startswith('width')}
        for i, width in enumerate(results.axes['embedding_dim']):
            mean = np.exp(np.log(results.excess[place, i]).mean(1))
            np.testing.assert_allclose(np.asarray(curves[f'width {width}'].get_ydata(), dtype=float), mean)
        dashed = [np.asarray(line.get_xdata(), dtype=float)[0] for line in axes.lines if line.get_linestyle() == '--']
        np.testing.assert_allclose(np.log2(dashed), [[-5.7, -7.7], [-5.7, -5.7]][place])


@pytest.mark.slow
def test_the_command_of_mup_trains_its_sweep_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mup.main(['--quick', '--workers', '2'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == 'the figure is results/mup_quick/mup.png'
    assert lines[-2].startswith('mup       from width 16 to 32')
    assert matplotlib.image.imread(tmp_path / 'results/mup_quick/mup.png').shape[1] == 1430


@pytest.mark.slow
def test_the_command_of_steering_trains_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steering, 'QUICK', {**steering.QUICK, 'max_iters': 100})
    steering.main(['--quick'])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == 'the figure is results/steering_quick/steering.png'
    assert matplotlib.image.imread(tmp_path / 'results/steering_quick/steering.png').shape[1] == 1430
    assert sum(line.startswith(('embeddings', 'block')) for line in said) == 3  # interchange, layer by layer
    assert sum(line.startswith(('level 1', 'level 2')) for line in said) == 2 * 3


def test_the_tables_and_the_figure_of_steering_hold_what_was_measured() -> None:
    layers, nodes = ['embeddings', 'block 1'], [(0, 0), (1, 0), (1, 1)]
    values = torch.arange(4, dtype=torch.float64).view(2, 2) / 8

    def conditions(shift: int) -> dict[str, Values]:
        names = ('unsteered', 'exact', 'steered', 'random')
        return {name: Values(values + shift + i, values / 100) for i, name in enumerate(names)}

    steered = Steering(
        layers, [(1, 0), (2, 2)], torch.tensor([5, 6]), conditions(0), conditions(10), conditions(20), conditions(30),
        values,
    )  # fmt: skip
    table = steering.steering_table(steered)
    assert [row[:2] for row in table.rows] == [[f'level {l}', layer] for l in (1, 2) for layer in layers]
    # change exact, steered, random; effect steered, random; correlation steered, random
    starts = [31, 32, 33, 12, 13, 22, 23]
    for row, value in zip(table.rows, [0, 0.25, 0.125, 0.375], strict=True):
        assert row[2:] == [f'{start + value:.3f} ± {value / 100:.3f}' for start in starts]
    exchanged = Interchange(layers, [0, 1], 7, Values(values + 1, values / 100))
    assert steering.interchange_table(exchanged).rows[1] == ['block 1', '1.250 ± 0.003', '1.375 ± 0.004']

    probed = {name: torch.rand(2, 3, generator=torch.Generator().manual_seed(0)) for name in ('trained', 'untrained')}
    ones = torch.ones(3)
    figure = steering.draw(
        NodeProbes(layers, nodes, probed, probed, probed, ones, ones, ones, probed), exchanged, steered
    )
    assert_readable(figure)
    titles = [axes.get_title(loc='left') for axes in figure.axes if axes.get_label() != '<colorbar>']
    assert titles[:2] == layers and len(titles) == 5 and all(titles)


def test_the_denoising_transition_prints_measured_beside_theory_and_draws_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The root of depth 4 agrees with the theory within 4 standard errors: fixed seeds, one false alarm in 8000."""
    monkeypatch.chdir(tmp_path)
    denoising_transition.main(['--quick'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'averaged map, L -> infinity: p* = 0.4000, eps* = 0.6857, slope 1.2245, nu = 3.423, a = 1.416'
    row = next(line for line in lines if line.startswith('eps*: the root of depth 4'))
    of_theory, value, of_sequences, of_rules = (float(word) for word in row.split('p*')[-1].split())
    assert of_theory == pytest.approx(0.6857, abs=1e-3)
    assert abs(value - of_theory) < 4 * max(of_rules, of_sequences)
    assert sum(line.startswith(('masked tokens', 'replaced tokens')) for line in lines) == 4
    assert lines[-1] == 'the figure is results/denoising_transition.png'
    height, width, _ = matplotlib.image.imread(tmp_path / 'results/denoising_transition.png').shape
    assert (width, height) == (1430, 1092)


def test_the_statistics_of_the_denoising_transition_by_hand() -> None:
    noises = np.linspace(0, 1, 11)
    assert denoising_transition.crossing(noises, 1 - noises, 0.35) == pytest.approx(0.65)
    assert math.isnan(denoising_transition.crossing(noises, noises, 0.35))
    parabola = 3 - (noises - 0.43) ** 2
    assert denoising_transition.peak(noises, parabola) == pytest.approx((0.43, 3))
    parabola[0] = math.nan  # the susceptibility without noise
    assert denoising_transition.peak(noises, parabola) == pytest.approx((0.43, 3))

    fine = np.linspace(0, 1, 2001)

    def curves(L: int) -> denoising_transition.Curves:
        recovered = np.repeat(1 / (1 + np.exp(8 * 1.5**L * (fine - 0.5)))[:, None], L + 1, 1)
        distances = np.array([0.5, *(2.0 ** np.arange(1, L + 1) - 1)])
        return denoising_transition.Curves(fine, recovered, np.tile(distances**-0.7, (len(fine), 1)))

    widths = denoising_transition.exponent_of_widths([curves(L) for L in range(1, 7)], 0.2, 0.7)
    assert widths == pytest.approx(math.log(2) / math.log(1.5), rel=1e-2)
    assert denoising_transition.decay_exponent(curves(6), 0.5) == pytest.approx(0.7)


def test_the_errors_of_the_denoising_transition_are_those_of_means() -> None:
    values = np.random.default_rng(1).normal(size=(5, 7, 3, 2))
    curves = denoising_transition.Curves(np.arange(3.0), values, values)
    found = denoising_transition.estimate(lambda means: means[0].recovered[:, 0], [curves])
    np.testing.assert_allclose(found.value, values[..., 0].mean((0, 1)))
    np.testing.assert_allclose(found.rules, values[..., 0].mean(1).std(0, ddof=1) / math.sqrt(5))
    np.testing.assert_allclose(found.sequences, values[..., 0].mean(0).std(0, ddof=1) / math.sqrt(7))


# ---------------------------------------------------------------------- filtering


def test_the_closest_predictor_is_that_of_the_smallest_divergence() -> None:
    divergences = {0: [(0.1, 0.0), (0.3, 0.0), (0.5, 0.0)], 1: [(0.4, 0.0), (0.2, 0.0), (0.1, 0.0)]}
    assert filtering.closest(divergences) == [0, 1, 1]
    assert filtering.first_steps([0, 8, 64], divergences) == {0: 0, 1: 8}
    assert filtering.first_steps([0], {0: [(0.1, 0.0)], 1: [(0.2, 0.0)]}) == {0: 0, 1: math.inf}


def test_the_table_of_filtering_has_means_over_runs_and_says_how_many_reached_a_level() -> None:
    first = [filtering.Row(1.0, 0.3, 0.5, 0), filtering.Row(0.7, 0.0, 0.1, 100)]
    second = [filtering.Row(1.2, 0.5, 0.9, 0), filtering.Row(0.7, 0.0, 0.3, math.inf)]
    both = filtering.table([first, second])
    assert ' '.join(both[1].split()) == '0 1.1000 +- 0.1000 0.4000 +- 0.1000 0.7000 +- 0.2000 0 +- 0'
    assert ' '.join(both[2].split()) == '1 0.7000 +- 0.0000 0.0000 +- 0.0000 0.2000 +- 0.1000 reached in 1 of 2 runs'
    assert filtering.table([first])[2].split() == ['1', '0.7000', '0.0000', '0.1000', '100']


def test_filtering_takes_one_of_its_sizes() -> None:
    with pytest.raises(SystemExit):
        filtering.main(['--deep', '--quick'])


@pytest.mark.slow
def test_filtering_trains_a_run_a_seed_and_compares_each_with_bp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    filtering.main(['--quick', '--threads', '1', '--seeds', '2'])
    said = capsys.readouterr().out
    assert said.count('closest to BP_0, BP_1, ... from step 0, ') == 2
    assert said.splitlines()[-2:] == [
        'nats; with several runs means and standard errors, here of 2',
        'the figure is results/filtering_quick/filtering.png',
    ]
    run = load_run('results/filtering_quick/seed2')
    rows = filtering.measured(run)
    assert rows[-1].excess == 0 and rows[-1].divergence < rows[0].divergence
    assert run.dynamics[-1]['excess'] < 0.5 * run.dynamics[0]['excess']
    assert matplotlib.image.imread('results/filtering_quick/filtering.png').shape[1] > 1000
