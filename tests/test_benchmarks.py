"""The benchmarks: what they compare is the same, what they count is what is computed, and each of them runs.

No test looks at a time. Statistical tests are those of test_streams.py: p-values above ALARM, false alarms below 1e-7.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from brute_force import joint
from helpers import ROOT, environment
from small_runs import make_trainer, tiny
from test_streams import ALARM, chi_square
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, plain, sampler, steps
from benchmarks.inference import matrix_products
from benchmarks.measure import Settings, Work, clocked, in_process, in_turn, threads_kept
from benchmarks.plain import PlainRun
from benchmarks.products import multiplications, products_alone
from benchmarks.report import Ratio, Result, Table, as_markdown, as_text, figure
from benchmarks.run import BENCHMARKS, main
from benchmarks.steps import DrawnOnce
from RLM_clean.datasets import RLM
from RLM_clean.training.loop import WINDOW

SHAPES: list[dict[str, Any]] = [
    {'num_layers': 1},
    {'num_layers': 1, 'depth': 3},
    {'num_layers': 3},
    {'num_layers': 3, 'depth': 2, 'num_heads': 2, 'accumulation': 2},
    {'num_layers': 4, 'num_tokens': 5, 'ffwd_size': 3},
    {'num_layers': 3, 'depth': 2, 'num_heads': 4, 'model': 'transformer_clm', 'objective': 'all'},
    {'num_layers': 1, 'model': 'transformer_clm', 'objective': 'all'},
]


# ---------------------------------------------------------------------- the plain way


def test_the_plain_sampler_draws_the_language() -> None:
    """All sequences of four tokens, against their exact probabilities."""
    grammar = RLM(v=5, L=2)
    torch.manual_seed(0)
    leaves = plain.sample(grammar.rules[0].flatten(1), L=2, batch_size=200_000)
    words = (leaves * 5 ** torch.arange(3, -1, -1)).sum(1)
    assert chi_square(torch.bincount(words, minlength=5**4), 200_000 * joint(grammar)) > ALARM


def test_the_plain_rules_are_random_energy_models() -> None:
    """Rows sum to one; the logarithms of a row have the standard deviation beta sqrt(ln v), within 1% (14 sigma)."""
    torch.manual_seed(0)
    M = plain.random_rules(100, 2.0)
    assert (M.sum(1) - 1).abs().max() < 1e-5
    assert M.log().std(dim=1).mean().item() == pytest.approx(2 * math.sqrt(math.log(100)), rel=0.01)


@pytest.mark.parametrize(
    'shape', [shape for shape in SHAPES if 'accumulation' not in shape and 'num_tokens' not in shape]
)
def test_the_plain_way_takes_the_same_steps(shape: dict[str, Any]) -> None:
    """The losses of 20 steps on the same batches agree with those of a run: one model, one rule, one schedule."""
    config = tiny(lr=0.1, **shape)
    trainer, run = make_trainer(config), PlainRun(config)
    grammar = trainer.language.grammar
    losses = [run.update(grammar.sequences(t * 8, 8, 'train')).item() for t in range(20)]
    trainer.advance(20)
    assert losses == pytest.approx(trainer.since_record, rel=1e-4)
    assert losses[-1] != losses[0]


def test_the_plain_evaluation_is_the_loss_on_fresh_sequences() -> None:
    """Of a model that knows nothing: ln v, within the reach of its initial weights."""
    run = PlainRun(tiny())
    assert run.evaluate(8) == pytest.approx(math.log(8), abs=0.05)


# ---------------------------------------------------------------------- the matrix products


@pytest.mark.parametrize('shape', SHAPES)
def test_the_products_are_those_of_an_eager_step(shape: dict[str, Any]) -> None:
    """As many multiplications as torch counts, to the last one, in the step and where they are computed alone.

    Attention is spelt out for the count: the fused kernel computes its scores once more instead of storing them.
    """
    config = tiny(embedding_dim=16, **shape)
    trainer = make_trainer(config)
    batch = trainer.feed(0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole:
        trainer.take_steps(0, *batch)
    with FlopCounterMode(display=False) as alone:
        products_alone(config)()
    assert whole.get_total_flops() == alone.get_total_flops() == 2 * multiplications(config)


@pytest.mark.parametrize(('B', 'count'), [(8, 2), (200, 19)])
def test_the_products_of_inference_are_as_many_as_asked_for(B: int, count: int) -> None:
    """Of v^3 multiplications a sequence each, in pieces that need not come out even; test_posteriors.py counts those
    of inference."""
    with FlopCounterMode(display=False) as alone:
        matrix_products(16, B, count)
    assert alone.get_total_flops() == 2 * count * B * 16**3


# ---------------------------------------------------------------------- how things are measured


def test_what_is_compared_is_timed_in_turn() -> None:
    calls: list[str] = []
    works = {name: Work(lambda name=name: calls.append(name)) for name in 'ab'}  # type: ignore[misc]
    times = in_turn(works, repeats=3)
    assert ''.join(calls) == 'ab' + 3 * 'ab'
    assert [len(times[name]) for name in 'ab'] == [3, 3]


def test_times_are_those_of_one_unit() -> None:
    """Of ten in a call that sleeps for 50 ms: at least 5 ms, and never as long as a call."""
    (seconds,) = in_turn({0: Work(lambda: time.sleep(0.05), amount=10)}, repeats=1)[0]
    assert 0.005 <= seconds < 0.05


def test_each_work_has_its_threads() -> None:
    found: Counter[int] = Counter()
    works = {n: Work(lambda: found.update([torch.get_num_threads()]), threads=n) for n in (1, 2)}
    with threads_kept(1):
        in_turn(works, repeats=2)
        assert torch.get_num_threads() == 1
    assert found == {1: 3, 2: 3}


def test_the_seconds_of_calls_add_up_and_the_function_comes_back() -> None:
    sleep = time.sleep
    with clocked(('sleep', time, 'sleep'), ('nothing', time, 'monotonic')) as spent:
        time.sleep(0.02)
        time.sleep(0.02)
    assert spent['sleep'] >= 0.04 and spent['nothing'] == 0 and time.sleep is sleep


def test_a_process_of_its_own_returns_what_its_function_does() -> None:
    assert in_process(figure, 'text') == 'text'
    with pytest.raises(RuntimeError, match='TypeError: figure'):
        in_process(figure)


def test_the_sampler_is_timed_on_new_sequences() -> None:
    """Twice the same ones would be found in the cache."""
    grammar = RLM(v=4, L=2)
    asked: list[tuple[int, int]] = []
    draw = grammar.sequences
    grammar.sequences = lambda first, count, **options: asked.append((first, count)) or draw(first, count, **options)  # type: ignore
    work = sampler.drawing(grammar, L=2, leaves=64, threads=1)
    work.run()
    work.run()
    assert asked == [(0, 16), (16, 16)] and work.amount == 64


def test_batches_that_are_drawn_once_are_those_of_the_language() -> None:
    once, language = DrawnOnce(8, 2), RLM(8, 2)
    for step in (0, 3):
        for ours, theirs in zip(once.batches(step, 2, 4), language.batches(0, 2, 4), strict=True):
            assert torch.equal(ours, theirs)


# ---------------------------------------------------------------------- what is printed


ROWS = [{'name': 'a', 'x': 0.12345, 'n': 3, 'y': None}, {'name': 'b', 'x': 123.45, 'n': 44, 'y': 1.0}]
RESULT = Result([Table('Title', ROWS, 'Note.')], [Ratio('fast / slow', [0.5, 0.25, 0.75], at_most=0.6)])


def test_figures_have_three_digits_and_no_exponent() -> None:
    values = (0.0012345, 0.1, 1.0, 12.345, 99.96, 123.4, 1234567.0, 7, 'x', None)
    assert [figure(value) for value in values] == [
        '0.00123', '0.100', '1.00', '12.3', '100', '123', '1234567', '7', 'x', '',
    ]  # fmt: skip


def test_tables_align_words_left_and_figures_right() -> None:
    assert as_text(RESULT).splitlines() == [
        'Title',
        'name      x   n     y',
        'a     0.123   3',
        'b       123  44  1.00',
        'Note.',
        '',
        'Ratios (medians of paired repeats)',
        'ratio        median           range  bound',
        'fast / slow   0.500  0.250 to 0.750  at most 0.600',
    ]


def test_tables_are_written_as_markdown() -> None:
    lines = as_markdown(RESULT).splitlines()
    assert lines[:4] == ['**Title**', '', '| name | x | n | y |', '|---|---:|---:|---:|']
    assert lines[4:6] == ['| a | 0.123 | 3 |  |', '| b | 123 | 44 | 1.00 |']
    assert 'Note.' in lines and '| fast / slow | 0.500 | 0.250 to 0.750 | at most 0.600 |' in lines


def test_a_file_of_results_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = {'machine': {'cores': 2, 'torch': '3'}, 'benchmarks': {'steps': {'seconds': 1.0, **RESULT.to_dict()}}}
    (tmp_path / 'report.json').write_text(json.dumps(report))
    main(['--show', str(tmp_path / 'report.json')])
    assert capsys.readouterr().out == f'cores 2, torch 3\n\n## steps (1 s)\n\n{as_text(RESULT)}\n'
    main(['--show', str(tmp_path / 'report.json'), '--markdown'])
    printed = capsys.readouterr().out
    assert '\n## steps\n' in printed and steps.__doc__.strip() in printed and as_markdown(RESULT) in printed


@pytest.mark.parametrize('words', (['stepps'], ['--repeats=0'], *([] if torch.cuda.is_available() else [['gpu']])))
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and words[0].strip('-') in capsys.readouterr().err


# ---------------------------------------------------------------------- all of them


@pytest.mark.slow
def test_the_benchmark_of_gpus_runs_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but CUDA itself: steps and groups are measured, and every figure is positive."""
    monkeypatch.setattr(gpu, 'DEVICE', 'cpu')
    result = gpu.measure(Settings(quick=True, repeats=1))
    steps_, groups = (table.rows for table in result.tables)
    assert [row['step'] for row in steps_] == ['default'] and [row['runs'] for row in groups] == [2]
    assert all(value > 0 for row in (*steps_, *groups) for value in row.values() if isinstance(value, float))
    assert {ratio.name for ratio in result.ratios} == {
        'default: eager / captured', 'default: captured / products', 'default: captured / 60 us',
    }  # fmt: skip


def test_a_group_is_timed_by_the_step_of_a_run() -> None:
    """Two runs of other weights take a window of steps each in a call, on batches that are drawn or there."""
    config = tiny(compile='off')
    for drawn in (False, True):
        with mock.patch.object(gpu.Ensemble, 'advance', autospec=True, side_effect=gpu.Ensemble.advance) as advance:
            work = gpu.group(config, 2, drawn, 'cpu')
            work.run()
        ensemble = advance.call_args.args[0]
        trainers = ensemble.active.values()
        assert work.amount == 2 * WINDOW and [trainer.step for trainer in trainers] == [WINDOW, WINDOW]
        losses = [trainer.since_record for trainer in trainers]
        assert len(losses[0]) == WINDOW and losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in BENCHMARKS if name != 'gpu' or torch.cuda.is_available()])
def test_every_benchmark_runs_and_writes_what_it_prints(tmp_path: Path, name: str) -> None:
    file = tmp_path / 'report.json'
    command = [sys.executable, '-m', 'benchmarks.run', name, '--quick', '--repeats=1', '--json', str(file)]
    process = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    report = json.loads(file.read_text())
    assert {'processor', 'cores', 'torch threads', 'torch', 'python'} <= set(report['machine'])
    assert report['quick'] and report['repeats'] == 1 and list(report['benchmarks']) == [name]
    content = report['benchmarks'][name]
    assert content['tables'] and all(table['rows'] for table in content['tables'])
    for ratio in content['ratios']:
        assert ratio['median'] > 0 and ratio['values'] and ratio['name'] in process.stdout
    assert all(table['title'] in process.stdout for table in content['tables'])
