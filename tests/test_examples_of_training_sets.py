"""The examples about amounts of data: their numbers on made-up curves, their sweeps, and their quick forms."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from examples import all as every
from examples import architectures, memorisation, phase_diagram, training_sets, zipf
from RLM_clean import sweep
from RLM_clean.analysis.thresholds import Threshold
from RLM_clean.datasets import RHM
from RLM_clean.exact import correlations
from RLM_clean.plots import panels
from RLM_clean.streams import seeded_generator


def test_a_threshold_is_where_the_loss_is_halfway_between_two_floors() -> None:
    sizes = np.array([10.0, 100.0, 1000.0])
    losses = np.array([[3.0, 3.0], [2.0, 3.0], [1.0, 3.0]])
    found = training_sets.thresholds(sizes, losses, np.array([2.0, 4.0]), np.array([1.0, 1.0]))
    assert found[0] == pytest.approx(100 * math.sqrt(10))
    assert np.isnan(found[1])  # 2.5 is not reached


def test_covariances_emerge_where_they_are_as_large_as_their_noise() -> None:
    """Their mean squared estimate is then twice the noise: against the exact covariances, over 16 samples.

    Single samples are off by 10 to 40%, so the geometric mean is by 10% or less.
    """
    language = RHM(v=8, m=4, L=3, seed_rules=3)
    sizes = 2.0 ** np.arange(3, 17)
    samples = [RHM(v=8, m=4, L=3, seed_rules=3, seed_samples=seed).sequences(0, 2**16) for seed in range(16)]
    found = np.exp(np.log([training_sets.emergence(sequences, 8, sizes) for sequences in samples]).mean(0))
    laws = correlations.leaf_marginals(language)
    for level, size in enumerate(found, start=1):
        ring = range(8 - 2**level, 8 - 2 ** (level - 1))
        signal = sum(correlations.covariance(language, i, 7).square().sum().item() for i in ring)
        noise = sum(((1 - laws[i].square().sum()) * (1 - laws[7].square().sum())).item() for i in ring)
        assert size == pytest.approx(noise / signal, rel=0.2)
    independent = torch.randint(8, (2**12, 8), generator=seeded_generator(1))
    assert np.isnan(training_sets.emergence(independent, 8, 2.0 ** np.arange(3, 13))).all()


def test_a_model_memorises_from_the_step_at_which_the_gap_stays() -> None:
    """An early gap that closes again is not counted, and neither are records that a run did not make."""
    steps = np.array([0.0, 1, 10, 50, 100, 1000])
    gaps = np.array([0.3, 0.2, 0.0, np.nan, 0.05, 0.25])
    assert memorisation.departure(steps, gaps, 0.15) == pytest.approx(100 * 10**0.5)
    assert math.isnan(memorisation.departure(steps, gaps, 0.5))


def test_the_exponent_of_the_time_is_that_of_its_power_law() -> None:
    sizes = np.array([64.0, 128, 256, 512, 1024])
    times = np.stack([2 * sizes**0.8, 2.1 * sizes**0.8], 1)
    times[-1, 0] = np.nan  # left out
    law = memorisation.fit(sizes, times)
    assert law is not None and law.exponent == pytest.approx(-0.8) and law.range == (64, 512)
    lines = memorisation.table(sizes, times, np.full(5, 16.0))
    assert lines[-2] == 'P =   1024: 1 of 2 runs memorise' and 'a = 0.80' in lines[-1]
    assert f'{2.05 * 64**0.8 * 16 / 64:6.1f} passes' in lines[0]
    assert memorisation.fit(sizes[:2], times[:2]) is None


@pytest.mark.slow
def test_training_sets_and_memorisation_share_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training_sets, 'QUICK_SIZES', (16, 64))
    training_sets.main(['--quick'])
    printed = capsys.readouterr().out
    results = sweep.load('results/training_sets_quick')
    best = results['best_loss'][-1, -1] - results['floor_3'][-1, 0]
    assert f'window of 3: best loss at P = 64 is H_3 + {best.mean():.4f}' in printed
    assert re.search(r'level 2, from H_1 to H_3: P_l = +85, ', printed)
    assert matplotlib.image.imread('results/training_sets_quick/training_sets.png').shape[1] > 1000
    memorisation.main(['--quick'])
    printed = capsys.readouterr().out
    assert '8 runs, 0 of them to train' in printed
    assert 'P =     16:' in printed and Path('results/training_sets_quick/memorisation.png').exists()


@pytest.mark.slow
def test_the_phase_diagram_has_the_excess_of_each_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    phase_diagram.main(['--quick'])
    printed = capsys.readouterr().out
    # v = 4, L = 1 belongs to both planes, and is trained once.
    first, results = (sweep.load(f'results/phase_diagram_quick/{name}') for name in ('num_features', 'num_layers'))
    assert first.axes['num_features'] == [4, 8] and results.axes['num_layers'] == [2]
    rows = [line.split(maxsplit=1) for line in printed.splitlines() if re.match(r' +[12] .* \+-', line)]
    shared = first['excess'].reshape(2, 2, 2)[0]
    for name, excess in (('1', shared), ('2', results['excess'].reshape(2, 2))):
        expected = [
            f'{mean:.3f} +-{spread:5.3f}' for mean, spread in zip(excess.mean(-1), excess.std(-1, ddof=1), strict=True)
        ]
        assert [name, '    '.join(expected)] in rows
    learnt = phase_diagram.measured(results)['learnt'][0, 1]
    loss, nothing, floor = (results[name].reshape(2, 2)[1] for name in ('testloss', 'floor_0', 'entropy'))
    np.testing.assert_allclose(learnt, (nothing - loss) / (nothing - floor), rtol=1e-6)
    assert matplotlib.image.imread('results/phase_diagram_quick/phase_diagram.png').shape[1] > 1000


# ---------------------------------------------------------------------- transformers against convolutions


def planted(power: float, factor: float, spread: tuple[float, ...] = (0.9, 1.0, 1.1)) -> list[Threshold]:
    """The thresholds `factor m^power / (1 - m/16)` for m = 2, 3, 4, three seeds each."""
    rows = [[factor * x * m**power / (1 - m / 16) for x in spread] for m in (2, 3, 4)]
    means = [float(np.prod(row) ** (1 / len(row))) for row in rows]
    return [
        Threshold(mean, (0.8 * mean, 1.25 * mean) if mean else (math.nan, math.nan), mean, tuple(row), {})
        for mean, row in zip(means, rows, strict=True)
    ]


def test_the_exponents_of_architectures_are_those_of_their_thresholds() -> None:
    m = np.array([2.0, 3, 4])
    found = {
        'transformer': {2: planted(3, 40), 3: planted(5, 30)},
        'cnn': {2: planted(3, 20), 3: planted(4, 10, (0.0, 1.0, 1.1))},
    }
    lines = architectures.table(found, 16, m)
    assert f'level 3, m = 4: law {16 * 4**5 / 0.75:6.0f}, P* = {found["transformer"][3][2].value:6.0f} (' in lines[5]
    law = architectures.power_law(found['transformer'][3], 16, m)
    assert law is not None and law.exponent == pytest.approx(-5)
    assert law.amplitude == pytest.approx(30 * (0.9 * 1.1) ** (1 / 3))
    assert 'P* (1 - m/v) ~ m^5.00 (5.00 to 5.00), law m^5' in lines[13]
    assert lines[15] == 'cnn         level 3: no exponent, for want of thresholds'  # a seed learns from any number
    factor = (30 / 40) * 4**2
    assert (
        f'm = 4: level 3 needs {factor:.1f} ({factor:.1f} to {factor:.1f}) times' in lines[18] and 'law 16' in lines[18]
    )
    assert 'needs not known for all seeds' in lines[19] and 'law 2' in lines[19]
    axes = panels()
    architectures.panel(found, 3, 16, m, axes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(f'{30 / 16 * (0.9 * 1.1) ** (1 / 3):.1f} $v' in label for label in labels)


@pytest.mark.slow
def test_the_search_of_architectures_prints_the_thresholds_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    architectures.main(['--quick'])
    printed = capsys.readouterr().out
    for name in ('transformer', 'cnn'):
        text = Path(f'results/architectures_quick/{name}/threshold_level2.csv').read_text()
        rows = list(csv.DictReader(text.splitlines()))
        assert [row['num_synonyms'] for row in rows] == ['2', '3']
        for row in rows:
            (line,) = (x for x in printed.splitlines() if x.startswith(f'{name:11} level 2, m = {row["num_synonyms"]}'))
            known = row['low'] and math.isfinite(float(row['low']))
            assert (f'P* = {float(row["threshold"]):6.0f} (' in line) if known else ('not all seeds' in line)
    assert matplotlib.image.imread('results/architectures_quick/architectures.png').shape[1] > 500


# ---------------------------------------------------------------------- all of them


def test_all_examples_are_run_once_and_their_numbers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With two stand-ins, of which the second fails the first time."""
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'examples/first.py').write_text(
        "print('step 1/2  train 3.0')\nprint('answer: 42')\nprint('the figure is x.png')\n"
        "open('runs', 'a').write('first\\n')"
    )
    (tmp_path / 'examples/second.py').write_text("open('runs', 'a').write('second\\n')\nraise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(every, 'NAMES', ('first', 'second'))
    with pytest.raises(SystemExit):
        every.main([])
    (tmp_path / 'examples/second.py').write_text("open('runs', 'a').write('second\\n')\nprint('7 +- 1')")
    kept = tmp_path / 'results/all/outcomes.json'
    first_try = json.loads(kept.read_text())['second']['seconds']
    monkeypatch.setattr(every.time, 'perf_counter', lambda: 5.0)  # the second try takes no time
    every.main([])
    assert json.loads(kept.read_text())['second']['seconds'] == first_try > 0
    assert (tmp_path / 'runs').read_text().split() == ['first', 'second', 'second']
    page = (tmp_path / 'results/all/outcomes.md').read_text()
    assert '| first | `python -m examples.first` |' in page and page.count('| done |') == 2
    assert '```\nanswer: 42\n```' in page and '7 +- 1' in page and 'train 3.0' not in page
    assert {o['status'] for o in json.loads((tmp_path / 'results/all/outcomes.json').read_text()).values()} == {0}


def test_the_time_of_an_interrupted_example_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed after a line, it leaves the time until then; the next call adds its own."""
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'examples/__init__.py').touch()  # a package is found before the one of the same name behind it
    (tmp_path / 'examples/long.py').write_text("import time\nprint('run 1 of 2', flush=True)\ntime.sleep(60)")
    monkeypatch.chdir(tmp_path)
    code = (
        'import os\nfrom examples import all as every\nevery.NAMES, every.SECONDS_BETWEEN_NOTES = ("long",), 0.0\n'
        f'os.chdir({str(tmp_path)!r})\nevery.main([])'
    )
    kept = tmp_path / 'results/all/outcomes.json'
    with subprocess.Popen([sys.executable, '-c', code], cwd=every.ROOT, start_new_session=True) as process:
        for _ in range(600):
            if kept.exists():
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    before = json.loads(kept.read_text())['long']
    assert before['status'] is None and before['seconds'] > 0
    assert '| interrupted |' in (tmp_path / 'results/all/outcomes.md').read_text()
    (tmp_path / 'examples/long.py').write_text("print('answer: 42')")
    monkeypatch.setattr(every, 'NAMES', ('long',))
    monkeypatch.setattr(every.time, 'perf_counter', lambda: 5.0)  # the second call takes no time
    handler = signal.getsignal(signal.SIGTERM)
    every.main([])
    assert signal.getsignal(signal.SIGTERM) is handler  # between two examples a signal ends the program
    after = json.loads(kept.read_text())['long']
    assert after['status'] == 0 and after['seconds'] == before['seconds']
    assert 'answer: 42' in (tmp_path / 'results/all/outcomes.md').read_text()


def test_a_signal_to_all_examples_reaches_the_one_that_runs(tmp_path: Path) -> None:
    """It saves, and its time is kept."""
    (tmp_path / 'examples').mkdir()
    (tmp_path / 'examples/__init__.py').touch()
    (tmp_path / 'examples/long.py').write_text(
        'import pathlib, signal, sys, time\n'
        "def save(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('run 1 of 2', flush=True)\ntime.sleep(60)"
    )
    code = (
        'import os\nfrom examples import all as every\nevery.NAMES = ("long",)\n'
        f'os.chdir({str(tmp_path)!r})\nevery.main([])'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code], cwd=every.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '== long\n' and process.stdout.readline() == 'run 1 of 2\n'
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and error == 'long: interrupted: the same command goes on\n'
    assert (tmp_path / 'saved').exists()
    assert json.loads((tmp_path / 'results/all/outcomes.json').read_text())['long']['status'] is None


def test_an_unknown_example_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        every.main(['stairs'])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "'stairs' is not an example" in error


@pytest.mark.slow
def test_the_errors_under_zipfs_law_have_the_exponents_that_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    zipf.main(['--quick'])
    printed = capsys.readouterr().out
    errors = 1 - sweep.load('results/zipf_quick')['testacc']
    assert errors.shape == (2, 3, 3)
    assert f'a = 0: error {errors[0, 0].mean():.3f} at P = 64, {errors[0, -1].mean():.4f} at 1024' in printed
    law = zipf.law(1.0, np.array([64.0, 256, 1024]), errors[1])
    assert law is not None and f'a = 1: {law}; a / (1 + a) = 0.500; ' in printed
    assert matplotlib.image.imread('results/zipf_quick/zipf.png').shape[1] > 1000


def test_few_rules_are_learnt_from_as_many_examples_as_with_equal_probabilities() -> None:
    sizes, equal = np.array([10.0, 100, 1000]), np.array([0.9, 0.5, 0.1])
    np.testing.assert_allclose(zipf.of_few_rules(-1.0, 4, sizes, equal), equal)  # a = -1: equal probabilities
    # Two rules with probabilities 4/5 and 1/5 (a = 1): 8/5 and 2/5 times as many examples as with equal ones.
    weights, found = {160.0: 16 / 25, 40.0: 9 / 25}, zipf.of_few_rules(1.0, 2, np.array([10.0, 100]), equal[:2])
    assert found[0] == pytest.approx(
        sum(w * np.interp(np.log(x / 10), np.log([10, 100]), equal[:2]) for x, w in weights.items())
    )
    assert zipf.slope(sizes, sizes**-0.5, (20.0, 500.0)) == pytest.approx(0.5)
