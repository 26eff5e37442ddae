"""What a run says while it works and at its end."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, arguments, environment
from small_runs import TINY, tiny

from RLM_clean.main import main, summary
from RLM_clean.runs import load_run
from RLM_clean.training import lifecycle, progress
from RLM_clean.training.progress import Progress, format_seconds, say

RECORD = {'t': 20, 'trainloss': 1.25, 'testloss': 1.5, 'testacc': 0.5, 'excess': 0.125, 'lr': 0.1, 'seconds': 3.0}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that a run sees, in seconds: `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, 'monotonic', lambda: clock.now)
    return clock


# ---------------------------------------------------------------------- plain lines


def test_off_a_terminal_each_record_is_a_plain_line_with_the_time_left(clock: SimpleNamespace) -> None:
    """Ten steps a second, half a second a record: 980 steps and two more records take 99 seconds."""
    stream = io.StringIO()
    with Progress(0, 1000, 1.375, stream, times=[0, 1, 20, 500, 1000]) as shown:
        clock.now += 30  # the first call of each kind warms up, and counts for nothing
        shown.record({**RECORD, 't': 0})
        clock.now += 60
        shown.advance(1)
        clock.now += 0.5
        shown.record({**RECORD, 't': 1})
        clock.now += 1.9
        shown.advance(20)
        clock.now += 0.5
        shown.record(RECORD)
    assert stream.getvalue() == (
        'step    0/1000  train 1.2500  test 1.5000  excess 0.1250  floor 1.3750\n'
        'step    1/1000  train 1.2500  test 1.5000  excess 0.1250  floor 1.3750\n'
        'step   20/1000  train 1.2500  test 1.5000  excess 0.1250  floor 1.3750  10 steps/s  0:01:39 left\n'
    )


def test_many_early_records_do_not_spoil_the_time_left(clock: SimpleNamespace) -> None:
    """Twenty records of one second each among the first steps of a run whose steps take a millisecond."""
    times = [*range(0, 40, 2), 20_000]
    with Progress(0, 20_000, None, io.StringIO(), times=times) as shown:
        for step in times[:-1]:
            clock.now += 1
            shown.record({**RECORD, 't': step})
            clock.now += 0.002
            shown.advance(step + 2)
    assert shown.seconds_left() == pytest.approx((20_000 - 40) / 1000 + 1)


def test_the_time_left_of_a_resumed_run_counts_its_own_steps_alone(clock: SimpleNamespace) -> None:
    with Progress(900, 1000, None, io.StringIO()) as shown:
        for step in (910, 950):
            clock.now += 4
            shown.advance(step)
    assert shown.seconds_left() == 5


def test_between_records_a_log_gets_a_line_a_minute(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    with Progress(0, 10_000, None, stream) as shown:
        for second in range(1, 151):
            clock.now += 1
            shown.advance(2 * second)
    assert stream.getvalue() == (
        'step   122/10000  2 steps/s  1:22:19 left\nstep   244/10000  2 steps/s  1:21:18 left\n'
    )  # fmt: skip


def test_durations_are_hours_minutes_and_seconds() -> None:
    assert [format_seconds(x) for x in (0, 0.4, 59.6, 61, 3599.7, 90_000)] == [
        '0:00:00', '0:00:00', '0:01:00', '0:01:01', '1:00:00', '25:00:00'
    ]  # fmt: skip


# ---------------------------------------------------------------------- the bar


def test_on_a_terminal_a_bar_shows_losses_excess_speed_and_the_time_left() -> None:
    stream = Terminal()
    with Progress(100, 1000, 1.375, stream) as shown:
        shown.advance(101)
        shown.advance(400)
        shown.record(RECORD)
        assert shown.bar is not None
        shown.bar.refresh()
    last = stream.getvalue().split('\r')[-1]
    assert re.search(r'40%\|.*\| 400/1000 \[[\d:]+, test=1\.5000, excess=0\.1250, steps/s=.*, left=[\d:]+\]', last)
    assert 'floor' not in stream.getvalue() and stream.getvalue().endswith('\n')


def test_a_bar_shows_no_excess_where_none_is_known() -> None:
    stream = Terminal()
    with Progress(0, 10, None, stream) as shown:
        shown.record({**RECORD, 'excess': None})
    assert 'test=1.5000' in stream.getvalue() and 'excess' not in stream.getvalue()


def test_a_bar_is_closed_when_a_run_fails() -> None:
    stream = Terminal()
    with pytest.raises(ArithmeticError), Progress(0, 10, None, stream) as shown:
        raise ArithmeticError
    assert shown.bar is not None and shown.bar.disable and stream.getvalue().endswith('\n')


# ---------------------------------------------------------------------- whole runs


def run_main(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr(sys, 'argv', ['main.py', *arguments(**{**TINY, **options})])
    assert main() == 0


def test_a_run_says_its_floors_its_records_and_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outname = tmp_path / 'run'
    run_main(monkeypatch, outname=outname)
    lines = capsys.readouterr().out.splitlines()
    records = [line for line in lines if line.startswith('step')]
    assert records[0].startswith('step  0/24  train 2.') and 'left' not in records[0]
    assert re.fullmatch(
        r'step 24/24  train \d\.\d{4}  test \d\.\d{4}  excess \d\.\d{4}  floor \d\.\d{4}  [\d.]+ steps/s  0:00:00 left',
        records[-1],
    )
    floor = re.findall(r'floor (\d\.\d{4})', records[-1])[0]
    assert all(floor in line for line in records) and any(floor in line for line in lines if 'step' not in line)
    losses = [float(re.findall(r'test (\d\.\d{4})', line)[0]) for line in records]
    steps = [int(re.findall(r'step +(\d+)/', line)[0]) for line in records]
    best = min(losses)
    assert lines[-5:] == [
        'done at step 24',
        f'last test loss {losses[-1]:.4f}, best {best:.4f} at step {steps[losses.index(best)]} (nats)',
        f'floor {floor}, excess over it {re.findall("excess (.*?) ", records[-1])[0]} (exact)',
        f'results in {outname}.pt, learning curve in {outname}.png',
        f"to look closer: outname = '{outname}' in main_test.ipynb, or RLM_clean.runs.load_run",
    ]
    run_main(monkeypatch, outname=outname)
    again = capsys.readouterr().out.splitlines()
    assert again[0] == lines[0] and again[0].startswith('options: num_features=8 num_layers=2')
    assert again[1:] == ['complete at step 24; it is not trained again (resume=restart does that)', *lines[-4:]]


def test_a_run_on_a_terminal_shows_a_bar_and_the_same_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stdout', terminal)
    run_main(monkeypatch, outname=tmp_path / 'run')
    lines = terminal.getvalue().replace('\r', '\n').splitlines()
    assert [line for line in lines if line.startswith('step ')] == []
    assert any('24/24' in line and 'excess=' in line for line in lines)
    assert lines[-5] == 'done at step 24' and lines[-2].startswith('results in')


def test_the_summary_gives_the_error_of_a_sampled_excess() -> None:
    best: dict[str, Any] = {'step': 20, 'loss': 1.5, 'model': {}}
    for error, shown in ((0.0, '0.1250 (exact)'), (0.0123, '0.1250 +- 0.012')):
        outcome = lifecycle.Outcome('stopped early', 20, [RECORD], best, 1.375, error)
        lines = summary(outcome, tiny('results/x')).splitlines()
        assert lines[0] == 'stopped early at step 20'
        assert lines[2] == f'floor 1.3750, excess over it {shown}'


# ---------------------------------------------------------------------- trouble with the output


class Broken(io.StringIO):
    """A stream that fails in one way when it is written to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    'error', [BrokenPipeError(), OSError(28, 'No space left on device'), ValueError('I/O operation on closed file')]
)
@pytest.mark.parametrize('terminal', [False, True])
def test_a_broken_output_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, terminal: bool
) -> None:
    stream = Broken(error)
    monkeypatch.setattr(stream, 'isatty', lambda: terminal)
    monkeypatch.setattr(sys, 'stdout', stream)
    assert main(arguments(**TINY, outname=tmp_path / 'run')) == 0
    assert load_run(tmp_path / 'run').done


def test_a_closed_output_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `>&-`, where Python has no standard output at all."""
    monkeypatch.setattr(sys, 'stdout', None)
    assert main(arguments(**TINY, outname=tmp_path / 'run')) == 0
    assert load_run(tmp_path / 'run').done


def test_characters_that_the_output_cannot_encode_are_written_as_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding='ascii', write_through=True)
    say('results in \u03b2.pt', stream)
    assert raw.getvalue() == b'results in \\u03b2.pt\n'


@pytest.mark.slow
@pytest.mark.parametrize('end', ['>/dev/full', '>&-', '| head -1 >/dev/null', '>/dev/full 2>&1'])
def test_a_command_whose_output_goes_nowhere_writes_its_files_and_ends_well(tmp_path: Path, end: str) -> None:
    words = ' '.join([sys.executable, '-m RLM_clean.main', *arguments(outname=tmp_path / 'r\u00e9sultat')])
    script = f'set -o pipefail; {words} {end}'
    environ = environment(PYTHONIOENCODING='ascii', PYTHONUNBUFFERED='')
    done = subprocess.run(['bash', '-c', script], cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')
    assert load_run(tmp_path / 'r\u00e9sultat').done
