"""Runs side by side: each has its colour and its name, floors are those of its language, and names are understood."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas
import pytest
from helpers import ROOT
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from readable import assert_readable, legend_texts
from small_runs import TINY, tiny, train

from RLM_clean import plots, sweep
from RLM_clean.config import Config
from RLM_clean.plots.__main__ import main
from RLM_clean.plots.comparison import _draw, _Found, _labels, _shared_title
from RLM_clean.plots.runs import Curve
from RLM_clean.runs import RunFiles, load_run
from RLM_clean.runs.storage import load, save
from RLM_clean.sweep.grid import read_axis
from RLM_clean.sweep.plan import Plan, save_plan

SMALL = {name: value for name, value in TINY.items() if name not in ('device', 'threads')} | {'max_iters': 4}
LONG = 'a_name_of_a_run_that_somebody_chose_in_a_hurry_and_that_has_all_of_its_options_in_it_and_then_some_'


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs: three of one language, and one of another."""
    folder = tmp_path_factory.mktemp('runs')
    for name, options in {
        'rlm_2': {'lr': 0.01},
        'rlm_10': {'lr': 0.1},
        'same': {'lr': 0.01},
        'other': {'num_layers': 1, 'beta': 1.0, 'lr': 0.01},
    }.items():
        train(tiny(folder / name, **options))
    return folder


def curve_named(axes: Any, name: str) -> Any:
    (line,) = [line for line in axes.get_lines() if line.get_label() == name]
    return line


# ---------------------------------------------------------------------- what is drawn


def test_runs_of_one_language_have_a_colour_each_and_share_its_floors(folder: Path) -> None:
    runs = [load_run(folder / name) for name in ('rlm_2', 'rlm_10')]
    figure: Any = plots.compare(runs)
    left, right = figure.axes
    floor = '$H_k$, best loss from the last k tokens'
    assert legend_texts(figure) == ['lr = 0.01', 'lr = 0.1', 'training loss', floor]
    for run, name in zip(runs, ('lr = 0.01', 'lr = 0.1'), strict=True):
        loss, excess = curve_named(left, name), curve_named(right, name)
        assert list(loss.get_ydata()) == [record['testloss'] for record in run.dynamics]
        assert list(excess.get_ydata()) == [r['excess'] for r in run.dynamics if r['t'] > 0]
        assert loss.get_color() == excess.get_color()
        (thin,) = [line for line in left.get_lines() if line.get_color() == loss.get_color() and line is not loss]
        assert list(thin.get_ydata()) == [record['trainloss'] for record in run.dynamics]
    labels = [text.get_text() for text in left.texts]
    assert [label for label in labels if '$' in label] == [
        f'$H_{{{k}}}$ = {runs[0].floors[k][0]:.3f}' for k in (3, 1, 0)
    ]
    assert left.get_title('left') == 'RLM, v = 8, L = 2, beta = 2: transformer_mlm, depth 1, sgd'


def test_runs_of_several_languages_have_their_own_floors_in_their_colours(folder: Path) -> None:
    figure: Any = plots.compare([folder / 'rlm_2', folder / 'other'])
    left = figure.axes[0]
    names = legend_texts(figure)
    assert names == [
        'num_layers = 2, beta = 2', 'num_layers = 1, beta = 1', 'training loss', 'floor of the run'
    ]  # fmt: skip
    floors = [line for line in left.get_lines() if len(line.get_xdata()) == 2]
    for name, floor, run in zip(names, floors, ('rlm_2', 'other'), strict=False):
        assert float(floor.get_ydata()[0]) == pytest.approx(load_run(folder / run).entropy, abs=1e-8)
        assert floor.get_color() == curve_named(left, name).get_color()
    assert left.get_title('left') == 'RLM, v = 8: transformer_mlm, depth 1, sgd'


def test_runs_that_differ_in_nothing_have_their_names(folder: Path, tmp_path: Path) -> None:
    assert legend_texts(plots.compare([folder / 'rlm_2', folder / 'same']))[:2] == ['rlm_2', 'same']
    assert legend_texts(plots.compare(folder / 'rlm_2'))[:1] == ['rlm_2']
    three = plots.compare([folder / name for name in ('rlm_2', 'same', 'rlm_10')])
    assert legend_texts(three)[:3] == ['lr = 0.01, rlm_2', 'lr = 0.01, same', 'lr = 0.1']
    shutil.copytree(folder, tmp_path / 'again')
    twins = [folder / 'same', tmp_path / 'again' / 'same']
    assert legend_texts(plots.compare(twins))[:2] == [str(path) for path in twins]


def test_runs_that_differ_in_many_options_have_their_names_and_what_is_written_of_a_run_is_not_named() -> None:
    options = ('beta', 'lr', 'momentum', 'weight_decay', 'dropout', 'grad_clip', 'loss_threshold')
    many: list[dict[str, Any]] = [{}, dict.fromkeys(options, 0.12345)]
    written: list[dict[str, Any]] = [{'lr': 0.1}, {'lr': 0.2, 'print_freq': 5, 'checkpoints': False, 'threads': 2}]
    for cases, labels in ((many, ['run0', 'run1']), (written, ['lr = 0.1', 'lr = 0.2'])):
        configs = [Config(outname=f'results/run{i}', **case) for i, case in enumerate(cases)]
        assert _labels([_Found(config.outname, config, [], {}, 0.0) for config in configs]) == labels


def test_frames_are_drawn_like_their_runs(folder: Path) -> None:
    """And a frame from which records were taken shows those that are left."""
    runs = [load_run(folder / name) for name in ('rlm_2', 'rlm_10')]
    figures: list[Any] = [plots.compare(runs), plots.compare([run.to_pandas() for run in runs])]
    assert legend_texts(figures[0]) == legend_texts(figures[1])
    for axes, same in zip(figures[0].axes, figures[1].axes, strict=True):
        for line, other in zip(axes.get_lines(), same.get_lines(), strict=True):
            assert list(line.get_xdata()) == list(other.get_xdata())
            assert list(line.get_ydata()) == list(other.get_ydata())
    late: Any = plots.compare([runs[0], runs[0].to_pandas().loc[8:]])
    longer, shorter = (line for line in late.axes[0].get_lines() if line.get_marker() == '.')
    assert list(shorter.get_xdata()) == [t for t in longer.get_xdata() if t >= 8]
    with pytest.raises(ValueError, match=r"the data frame of .*rlm_2 lacks 'excess': give that of run\.to"):
        plots.compare(runs[0].to_pandas()[['trainloss', 'testloss']])
    with pytest.raises(ValueError, match='has no record yet'):
        plots.compare(runs[0].to_pandas().loc[100:])
    with pytest.raises(ValueError, match='a data frame names no run: give those of'):
        plots.compare(pandas.DataFrame({'excess': [1.0]}))


def test_a_sweep_its_runs_and_its_frames_are_drawn(tmp_path: Path) -> None:
    """By one call; a frame stands for the runs that are in it."""
    plan = Plan(tmp_path, (read_axis(['beta=1,2']), read_axis(['lr=0.01,0.1'])), SMALL, execution={'threads': '1'})
    save_plan(plan)
    for run in plan.runs:
        train(run.config)
    results = sweep.load(tmp_path)
    frame, records = results.to_pandas(), results.to_pandas(records=True)
    everything = [f'beta = {beta}, lr = {lr}' for beta in (1, 2) for lr in (0.01, 0.1)]
    for given in (results, results.runs, frame, records):
        assert legend_texts(plots.compare(given))[:4] == everything
    assert legend_texts(plots.compare(results.runs[1:3]))[:2] == everything[1:3]
    assert legend_texts(plots.compare(frame.query('lr == 0.1')))[:2] == ['beta = 1', 'beta = 2']
    mixed = [results.runs[0], frame.query('beta == 2'), load_run(results.runs[1]), str(tmp_path / 'beta1_lr0.01')]
    assert legend_texts(plots.compare(mixed))[:4] == [everything[i] for i in (0, 2, 3, 1)]
    grown = Plan(tmp_path, (read_axis(['beta=1,2,3']), plan.axes[1]), SMALL, execution={'threads': '1'})
    save_plan(grown)
    unfinished = sweep.load(tmp_path)
    for given in (unfinished, unfinished.to_pandas()):
        assert legend_texts(plots.compare(given))[:4] == everything  # beta = 3 waits
    with pytest.raises(ValueError, match='no run of the sweep has a record yet: wait for its first evaluation'):
        plots.compare(unfinished.to_pandas().query('beta == 3'))
    with pytest.raises(ValueError, match='no run of the sweep has a record yet'):
        plots.compare(unfinished.runs[-1:])
    RunFiles(results.runs[0]).remove()
    with pytest.raises(ValueError, match=r'beta1_lr0\.01. is not a run'):
        plots.compare(frame)


def test_a_name_is_drawn_letter_by_letter(folder: Path, tmp_path: Path) -> None:
    for name in ('_hidden', 'a$b^$c'):
        for file in folder.glob('same*'):
            shutil.copy(file, tmp_path / file.name.replace('same', name))
    figure: Any = plots.compare([tmp_path / '_hidden', tmp_path / 'a$b^$c'])
    assert_readable(figure)
    assert legend_texts(figure)[:2] == [' _hidden', r'a\$b^\$c']


def records(i: int, floor: float) -> list[dict[str, Any]]:
    steps = (0, 1, 3, 10, 30, 100, 300, 1000)
    excess = [1.5 * (1 + t / 2 ** (i + 1)) ** -1.2 for t in steps]
    return [
        {'t': t, 'trainloss': floor + 1.02 * x, 'testloss': floor + x, 'excess': x}
        for t, x in zip(steps, excess, strict=True)
    ]


def picture(configs: Sequence[Config], floors: Sequence[float]) -> Figure:
    """The figure of made-up runs."""
    found = [
        _Found(config.outname, config, records(i, floor), {0: (3.0, 0.0), 1: (floor, 0.0)}, floor)
        for i, (config, floor) in enumerate(zip(configs, floors, strict=True))
    ]
    title = _shared_title(configs)
    labels = _labels(found)
    return _draw([Curve(r.records, r.floors, r.entropy, title, label) for r, label in zip(found, labels, strict=True)])


@pytest.mark.parametrize(
    'options', [{'filtered': 1}, {'dataset': 'rhm', 'zipf': 1.0}, {'model': 'transformer_clm', 'objective': 'all'}]
)
def test_the_title_of_runs_of_several_kinds_is_what_they_share(options: dict[str, Any]) -> None:
    one, other = Config(outname='one', num_layers=2), Config(outname='other', num_layers=2, **options)
    expected = {
        'filtered': 'RLM, v = 128, L = 2, beta = 2: transformer_mlm, depth 1, sgd',
        'dataset': 'v = 128, L = 2: transformer_mlm, depth 1, sgd',
        'model': 'RLM, v = 128, L = 2, beta = 2: depth 1, sgd',
    }[next(iter(options))]
    assert _shared_title([one, other]) == _shared_title([other, one]) == expected


@pytest.mark.parametrize('number', [1, 2, 6, 12, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', ['short', 'long names', 'many options', 'other floors', 'close floors'])
def test_every_line_can_be_told_apart_and_no_text_is_cut_or_covered(number: int, kind: str) -> None:
    configs = [Config(outname=f'results/{LONG if kind == "long names" else "run"}{i}') for i in range(number)]
    if kind == 'many options':
        options = ('beta', 'lr', 'momentum', 'weight_decay', 'dropout')
        for i in range(number):
            varied: dict[str, Any] = {**dict.fromkeys(options, 0.01234 * (i + 1)), 'optim': ('sgd', 'adam')[i % 2]}
            configs[i] = Config(outname='run', **varied)
    spread = {'other floors': 0.1, 'close floors': 1e-4}.get(kind, 0.0)
    figure: Any = picture(configs, [1 + spread * i for i in range(number)])
    assert_readable(figure)
    left, right = figure.axes
    entries = legend_texts(figure)
    assert len(entries) == len(set(entries)) == number + 2
    colours = {to_hex(line.get_color()) for line in right.get_lines()}
    assert len(colours) == number == len(right.get_lines())
    height = left.get_window_extent().height / figure.dpi
    assert 2.5 < height < 3.5  # the figure grows with its legend


def test_runs_that_share_a_floor_of_several_show_it_in_turn() -> None:
    configs = [Config(outname='run', beta=beta, seed_model=seed) for beta in (1.0, 2.0) for seed in (1, 2, 3)]
    left: Any = picture(configs, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]).axes[0]
    floors = [line for line in left.get_lines() if len(line.get_xdata()) == 2]
    assert len({line.get_color() for line in floors}) == 6
    covered = np.zeros(15)
    for line in floors[:3]:
        offset, (on, off) = line._unscaled_dash_pattern
        assert on + off == 15
        covered[(np.arange(on) - offset).astype(int) % 15] += 1
    assert covered.max() == 1
    assert [text.get_text() for text in left.texts] == ['1.000', '2.000']


# ---------------------------------------------------------------------- which runs


def test_names_patterns_and_files_stand_for_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    by_name = legend_texts(plots.compare(['rlm_2', 'rlm_10']))
    cases: list[Any] = [
        'rlm_*', ['rlm_*'], ['rlm_2.pt', 'rlm_10_config.pt'], ['rlm_2_t24.pt', 'rlm_10_log.jsonl'],
        ['rlm_2', folder / 'rlm_2', load_run('rlm_10')], [*map(str, Path().glob('rlm_2*')), 'rlm_10'],
        [Path('rlm_2'), 'rlm_*_config.pt'],
    ]  # fmt: skip
    for same in cases:
        assert legend_texts(plots.compare(same)) == by_name, same
    assert len(legend_texts(plots.compare('*'))) == 4 + 2


def test_a_run_that_is_not_finished_is_drawn_from_its_log(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / 'runs')
    RunFiles(tmp_path / 'runs/same').final.unlink()
    figure: Any = plots.compare(tmp_path / 'runs/same')
    assert list(curve_named(figure.axes[0], 'same').get_ydata()) == [
        record['testloss'] for record in load_run(folder / 'same').dynamics
    ]
    RunFiles(tmp_path / 'runs/same').log.unlink()
    with pytest.raises(ValueError, match='same has no record yet: wait for its first evaluation, or leave it out'):
        plots.compare(tmp_path / 'runs/same')


def test_the_rules_of_a_language_are_not_read(folder: Path, tmp_path: Path) -> None:
    """A run of a large language has gigabytes of them."""
    shutil.copytree(folder, tmp_path / 'runs')
    files = RunFiles(tmp_path / 'runs/same')
    content = load(files.config)
    pattern = content['rules'].numpy().tobytes()
    stored = files.config.read_bytes()
    assert stored.count(pattern) == 1
    files.config.write_bytes(stored.replace(pattern, b'\0' * len(pattern)))
    with pytest.raises(ValueError, match='damaged'):
        load_run(files.outname)
    plots.compare(files.outname)


def test_what_is_not_a_run_is_named_with_what_to_give(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / 'empty').mkdir(exist_ok=True)
    cases = {
        'no_run': r"'no_run' is not a run \(no_run_config.pt does not exist\): give the outname of a run",
        'x_*': r"'x_\*' fits no run: see ls results; those of a sweep are as 'results/my_sweep/\*'",
        'empty': r"'empty' is a folder: give the runs in it, as 'empty/\*'",
        '': "'' is not a run",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            plots.compare(['rlm_2', name])
    with pytest.raises(ValueError, match='no run was given: give names of runs, or a pattern'):
        plots.compare([])
    runs = [load_run('same') for _ in range(25)]
    for i, run in enumerate(runs):
        run.files = RunFiles(f'same_{i}')
    with pytest.raises(ValueError, match='25 runs were given: one figure shows at most 24'):
        plots.compare(runs)


# ---------------------------------------------------------------------- the command


def test_the_command_draws_into_a_file_and_says_where(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(folder / 'rlm_2'), str(folder / 'rlm_10')]) == 0
    assert capsys.readouterr().out == 'the figure is compare.png\n'
    assert matplotlib.image.imread('compare.png').shape[1] == 1430
    for name, start in (('one.pdf', b'%PDF'), ('two.svg', b'<?xml'), ('deep/three.png', b'\x89PNG')):
        assert main([str(folder / 'rlm_*'), '--out', name]) == 0
        assert Path(name).read_bytes().startswith(start)
    assert main([str(folder / 'rlm_2'), '--out', 'between.png', str(folder / 'rlm_10')]) == 0
    assert (matplotlib.image.imread('between.png') == matplotlib.image.imread('compare.png')).all()


def test_the_command_answers_bad_input_with_one_line_and_status_2(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save({'config': {'num_features': -1}}, tmp_path / 'broken_config.pt')
    good = str(folder / 'rlm_2')
    for words, message in (
        (['absent'], 'is not a run'),
        (['absent*'], 'fits no run'),
        (['broken'], 'broken_config.pt'),
        ([good, '--out', str(tmp_path)], 'is a folder'),
        ([good, '--out', 'a.jpeg'], 'use .png, .pdf or .svg'),
        ([good, '--out', f'{good}.pt/a.png'], 'cannot be written'),
        ([good, '--ot', 'a.png'], "'--ot' is not an option: did you mean --out?"),
        ([good, '--ou=a.png'], "'--ou=a.png' is not an option: did you mean --out?"),
        ([good, '--grid'], "'--grid' is not an option: see --help"),
        ([good, '--out'], 'argument --out: expected one argument: see --help'),
        ([], 'no run is named: give names of runs, or a pattern'),
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        assert not said.out and said.err.count('\n') == 1 and message in said.err
        assert said.err.startswith('RLM_clean.plots: error: ')
    assert not Path('compare.png').exists()


@pytest.mark.slow
def test_closed_outputs_are_no_error(folder: Path, tmp_path: Path) -> None:
    command = f'{sys.executable} -m RLM_clean.plots {folder}/rlm_2 --out {tmp_path}/a.png'
    for redirection in ('>&-', '2>&- >&-', '> /dev/full'):
        done = subprocess.run(
            f'{command} {redirection}', shell=True, cwd=ROOT, stderr=subprocess.PIPE, env=os.environ, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, b''), redirection
    assert math.prod(matplotlib.image.imread(tmp_path / 'a.png').shape) > 0
