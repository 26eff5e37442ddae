"""Stopping and going on: whatever stops a run, and when, it ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import arguments
from small_runs import TINY, assert_same_run, contents, make_trainer, quiet, same_weights, tiny, train

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.main import main
from RLM_clean.measures import Evaluation, Reference
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import load
from RLM_clean.training import lifecycle, loop
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import Trainer
from RLM_clean.training.signals import Interruption

# Two ways to train whose state is not the same: moments of two kinds or one, epochs, accumulated gradients.
ADAM: dict[str, Any] = {'dropout': 0.1, 'optim': 'adam'}
OFFLINE: dict[str, Any] = {'regime': 'offline', 'train_size': 40, 'accumulation': 2}
REGIMES = pytest.mark.parametrize('regime', (ADAM, OFFLINE), ids=('adam-dropout', 'sgd-offline-accumulation'))


# ---------------------------------------------------------------------- interrupted in this process


class StopAt(Interruption):
    """A signal that comes when the trainer is at one of these steps."""

    def __init__(self, trainer: Trainer, steps: set[int]) -> None:
        super().__init__()
        self.trainer, self.steps = trainer, steps

    def requested(self) -> bool:
        return self.trainer.step in self.steps


def run_with_stops(config: Config, stops: list[int]) -> Trainer:
    """Trains with an interruption at each of these steps in turn, going on each time in a new trainer."""
    files = RunFiles(config.outname)
    files.folder.mkdir(exist_ok=True)
    for stop in [*stops, None]:
        trainer = make_trainer(config)
        checkpoint = files.newest(quiet)
        assert (checkpoint is None) == (not files.steps())
        if checkpoint is not None:
            trainer.restore(checkpoint)
        finished = loop.run(trainer, files, StopAt(trainer, set() if stop is None else {stop}))
        assert finished == (stop is None or stop == config.last_step)
        if not finished:
            assert trainer.step == stop == files.steps()[-1]
            assert 'resume' in load(files.checkpoint(trainer.step))
    files.previous.unlink(missing_ok=True)
    return trainer


@pytest.mark.parametrize(
    'options', ({**ADAM}, {**OFFLINE, 'checkpoints': False}), ids=('adam-dropout', 'offline-no-checkpoints')
)
def test_an_interruption_at_any_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Also at steps that have no checkpoint of their own: theirs is gone at the end."""
    monkeypatch.setattr(loop, 'WINDOW', 4)  # so that windows end inside the run
    options |= {'max_iters': 14, 'print_freq': 5}
    whole = tiny(tmp_path / 'whole' / 'run', **options)
    run_with_stops(whole, [])
    for stop in range(whole.last_step + 1):
        config = tiny(tmp_path / str(stop) / 'run', **options)
        run_with_stops(config, [stop])
        assert_same_run(config.outname, whole.outname)
    kept = init.save_times(14, whole.save_freq) if whole.checkpoints else [14]
    assert RunFiles(whole.outname).steps() == kept


@REGIMES
def test_interruptions_at_all_steps_change_nothing(tmp_path: Path, regime: dict[str, Any]) -> None:
    whole, stopped = (tiny(tmp_path / name / 'run', max_iters=20, **regime) for name in ('whole', 'stopped'))
    run_with_stops(whole, [])
    run_with_stops(stopped, list(range(20)))
    assert_same_run(stopped.outname, whole.outname)


def test_an_interruption_does_not_move_an_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'WINDOW', 8)
    options: dict[str, Any] = {'max_iters': 60, 'optim': 'adam', 'lr': 0.02}
    trainer = make_trainer(tiny(**options))
    losses = [trainer.update().item() for _ in range(24)]
    options['loss_threshold'] = sum(losses[16:]) / 8 + 1e-6
    whole = tiny(tmp_path / 'whole' / 'run', **options)
    end = run_with_stops(whole, []).step
    assert 8 < end <= 24
    for stop in range(1, end):
        config = tiny(tmp_path / str(stop) / 'run', **options)
        trainer = run_with_stops(config, [stop])
        assert trainer.stopped_early and trainer.step == end
        assert_same_run(config.outname, whole.outname)


# ---------------------------------------------------------------------- killed between two operations on files


@pytest.mark.parametrize('checkpoints', (True, False), ids=('checkpoints', 'no-checkpoints'))
def test_a_kill_between_any_two_operations_on_files_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: bool
) -> None:
    """The folder is copied around every renaming, link and removal: what a process killed there would leave."""
    config = tiny(tmp_path / 'whole' / 'run', max_iters=4, checkpoints=checkpoints, **ADAM)
    copies: list[Path] = []

    def copy_folder() -> None:
        copies.append(tmp_path / f'copy{len(copies)}')
        shutil.copytree(tmp_path / 'whole', copies[-1])

    replace, link, unlink = os.replace, os.link, Path.unlink

    def copying_replace(source: Path, target: Path) -> None:
        copy_folder()
        replace(source, target)
        copy_folder()

    def copying_link(source: Path, target: Path) -> None:
        copy_folder()
        link(source, target)
        copy_folder()

    def copying_unlink(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if 'tmp-' not in self.name:
            copy_folder()

    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', copying_replace)
        patched.setattr(os, 'link', copying_link)
        patched.setattr(Path, 'unlink', copying_unlink)
        train(config)
    assert len(copies) > 20
    for copy in copies:
        said: list[str] = []
        left = [path for path in copy.iterdir() if 'tmp-' in path.name]
        outcome = train(tiny(copy / 'run', max_iters=4, checkpoints=checkpoints, **ADAM), said.append)
        assert outcome.step == 4
        # This process has the number of the killed one: what was to become _config.pt is written over.
        removed = [path for path in left if 'config' not in path.name]
        assert len(left) <= 1 and all(any(str(path) in line for line in said) for path in removed)
        assert not RunFiles(copy / 'run').leftovers()
        assert_same_run(copy / 'run', config.outname)


def test_a_truncated_newest_checkpoint_is_survived_with_a_line(tmp_path: Path) -> None:
    """Wherever it is cut; and when the one before is cut as well, the run begins again."""
    whole = tiny(tmp_path / 'whole' / 'run', **ADAM)
    train(whole)
    for stop, size, both in ((1, 0, False), (6, 1, False), (10, 100, False), (23, 10_000, False), (16, 100, True)):
        hurt = tiny(tmp_path / f'{stop}' / 'run', **ADAM)
        files = RunFiles(hurt.outname)
        assert _train_until(hurt, stop).status == 'interrupted'
        os.truncate(files.checkpoint(stop), size)
        if both:
            os.truncate(files.previous, size)
        said: list[str] = []
        assert train(hurt, said.append).status == 'done'
        assert any('damaged' in line and str(files.checkpoint(stop)) in line for line in said)
        assert any(line.startswith('going on from step') for line in said) == (not both)
        assert_same_run(hurt.outname, whole.outname)


def _train_until(config: Config, stop: int) -> Outcome:
    """Trains from the beginning or goes on, to an interruption at step `stop`."""

    before = loop.run

    def run(trainer: Trainer, files: RunFiles, interruption: Interruption) -> bool:
        return before(trainer, files, StopAt(trainer, {stop}))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, 'run', run)
        return train(config)


def test_a_log_cut_short_is_made_whole(tmp_path: Path) -> None:
    whole, hurt = (tiny(tmp_path / name / 'run', **ADAM) for name in ('whole', 'hurt'))
    train(whole)
    _train_until(hurt, 12)
    log = RunFiles(hurt.outname).log
    os.truncate(log, log.stat().st_size - 30)
    records = len(load_run(hurt.outname).dynamics)
    assert records == len(log.read_text().splitlines()) - 1  # the line that was cut is no record
    train(hurt)
    assert_same_run(hurt.outname, whole.outname)


def test_a_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run')
    train(config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = train(config)
    assert outcome.status == 'complete' and outcome.step == config.max_iters
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_restart_begins_again_and_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'new' / 'run', max_iters=6, seed_model=5))
    train(tiny(tmp_path / 'old' / 'run', max_iters=24))
    files = RunFiles(tmp_path / 'old' / 'run')
    for folder in (files.curves, files.wandb):  # a tracker would show them beside the new ones
        folder.mkdir()
    again = tiny(tmp_path / 'old' / 'run', max_iters=6, seed_model=5, resume='restart')
    assert train(again).status == 'done'
    new, old = contents(tmp_path / 'new' / 'run'), contents(tmp_path / 'old' / 'run')
    assert list(new) == list(old)
    assert all(torch.equal(new['.pt']['model'][name], x) for name, x in old['.pt']['model'].items())


def test_a_restart_that_cannot_be_set_up_leaves_the_run_before_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its step cannot be compiled, or a signal comes while its floors are computed."""
    train(tiny(tmp_path / 'run', max_iters=6))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = tiny(tmp_path / 'run', max_iters=6, seed_model=5, resume='restart')
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, 'make_trainer', mock.Mock(side_effect=ValueError("compile='on' fails")))
        with pytest.raises(ValueError, match="compile='on' fails"):
            train(again)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def stop(line: str) -> None:
        if line.startswith('best loss'):
            signal.raise_signal(signal.SIGTERM)

    assert train(again, stop).status == 'interrupted'
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(again).status == 'done' and load_run(again.outname).config.seed_model == 5


def test_a_picture_that_cannot_be_drawn_is_a_line_and_the_run_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = tiny(tmp_path / 'run', max_iters=4), list[str]()
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', mock.Mock(side_effect=ValueError('no font')))
    assert lifecycle.train(config, said.append).status == 'done'
    assert said[-1] == f'{tmp_path / "run.png"} cannot be drawn (no font): the run is complete without it'
    assert load_run(config.outname).done and not (tmp_path / 'run.png').exists()


def test_a_run_with_no_excess_above_zero_is_drawn(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', num_features=4, objective='root', num_classes=1, max_iters=4)
    said = list[str]()
    assert lifecycle.train(config, said.append).status == 'done'
    assert all(record['excess'] <= 0 for record in load_run(config.outname).dynamics)
    assert (tmp_path / 'run.png').exists() and not any('cannot be drawn' in line for line in said)


def test_an_option_that_an_older_file_lacks_is_named_with_its_default(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', max_iters=4)
    train(config)
    files = RunFiles(config.outname)
    stored = load(files.config)
    del stored['config']['filtered']
    torch.save(stored, files.config)
    with pytest.raises(ValueError, match=r'filtered=1 differs from -1 in .*run_config\.pt'):
        train(tiny(tmp_path / 'run', max_iters=4, filtered=1))


# ---------------------------------------------------------------------- processes


# Processes start from one that has imported the package, and what torch imports later, in a moment.
_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['RLM_clean.main', 'torch._inductor'])


def _work(words: list[str], output: str) -> None:
    """What a process does: the command line without the picture, its output in a file."""
    sys.argv = ['main.py', *words]
    setattr(lifecycle, 'save_learning_curve', lambda *_: None)  # noqa: B010 (mypy minds an assignment)
    with open(output, 'w', buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = main()
    os._exit(status)


class Process:
    """A process that runs the command line of a tiny run."""

    def __init__(self, outname: Path, **options: Any) -> None:
        outname.parent.mkdir(exist_ok=True)
        self.output = outname.parent.parent / f'{outname.parent.name}_output.txt'
        self.output.write_text('')
        words = arguments(**{'outname': outname, **TINY, **options})
        self.process: ForkServerProcess = _context.Process(target=_work, args=(words, str(self.output)))
        self.process.start()

    def wait_for(self, *words: str) -> None:
        """Waits until the process has said one of these words, or ended."""
        while self.process.is_alive() and not any(word in self.said for word in words):
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self) -> int | None:
        """Waits for the end; returns the exit status, minus the signal that killed the process."""
        self.process.join()
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.output.read_text()


# Long enough to be killed in: about a second.
LONG: dict[str, Any] = {'num_features': 16, 'embedding_dim': 16, 'batch_size': 64, 'max_iters': 400, 'save_freq': 4}


@pytest.mark.slow
@REGIMES
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, regime: dict[str, Any]) -> None:
    """Each kill lands in training: it comes at random within a fifth of the run's length after its first line."""
    options = LONG | regime | ({'train_size': 2000} if 'train_size' in regime else {})
    whole = tmp_path / 'whole' / 'run'
    process = Process(whole, **options)
    process.wait_for('step')
    start = time.monotonic()
    assert process.end() == 0
    length = time.monotonic() - start

    moments = random.Random(20190320)
    kills = runs = 0
    while kills < 10:
        outname = tmp_path / f'killed{runs}' / 'run'
        runs += 1
        while not RunFiles(outname).final.exists():
            process = Process(outname, **options)
            if kills < 10:
                process.wait_for('step')
                time.sleep(moments.uniform(0, length / 5))
                process.signal(signal.SIGKILL)
            status = process.end()
            assert status in (0, -signal.SIGKILL)
            kills += status != 0
        assert_same_run(outname, whole)


@pytest.mark.slow
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    """One run is stopped by three signals in turn, each soon after a record; the next process goes on."""
    whole, stopped = tmp_path / 'whole' / 'run', tmp_path / 'stopped' / 'run'
    other = Process(whole, **LONG, **ADAM)
    files, step = RunFiles(stopped), 0
    for name, after in (('SIGTERM', 64), ('SIGUSR1', 128), ('SIGINT', 256)):
        process = Process(stopped, **LONG, **ADAM)
        process.wait_for(f'step {after:3}/400')
        process.signal(getattr(signal, name))
        assert process.end() == 0
        assert step == 0 or f'going on from step {step}\n' in process.said
        step = files.steps()[-1]
        assert after <= step < 400 and not files.final.exists()
        assert process.said.endswith(f'{name}: saved at step {step}; the same command goes on from there\n')
    process = Process(stopped, **LONG, **ADAM)
    assert process.end() == 0 and other.end() == 0
    assert f'going on from step {step}\n' in process.said and 'done at step 400' in process.said
    assert_same_run(stopped, whole)


@pytest.mark.slow
def test_a_second_sigint_stops_at_once(tmp_path: Path) -> None:
    outname = tmp_path / 'run' / 'run'
    process = Process(outname, accumulation=20_000)  # a step of many seconds
    process.wait_for('step  0/')
    time.sleep(0.3)
    process.signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.process.is_alive()
    process.signal(signal.SIGINT)
    start = time.monotonic()
    assert process.end() == 130
    assert time.monotonic() - start < 3
    assert 'stopped at once; the same command goes on from the last checkpoint' in process.said
    assert 'Traceback' not in process.said
    assert load_run(outname).steps == [0] and 'resume' in load(RunFiles(outname).checkpoint(0))


def test_a_signal_during_preparation_or_the_end_is_heard_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def signal_at_floors(line: str) -> None:
        said.append(line)
        if line.startswith('best loss'):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: signal.raise_signal(signal.SIGTERM))
    whole, stopped = tiny(tmp_path / 'whole' / 'run'), tiny(tmp_path / 'stopped' / 'run')
    assert lifecycle.train(whole, quiet).status == 'done'
    outcome = lifecycle.train(stopped, signal_at_floors)
    assert (outcome.status, outcome.step, outcome.dynamics) == ('interrupted', 0, [])
    assert said[-1] == 'SIGTERM: stopped before step 1; the same command starts again from there'
    assert said[-2].startswith('best loss from 0 tokens')  # it stops at once, not when the floors are there
    assert list((tmp_path / 'stopped').iterdir()) == []
    assert lifecycle.train(stopped, quiet).status == 'done'
    assert_same_run(stopped.outname, whole.outname)


def test_a_signal_before_the_first_step_of_a_resumed_run_leaves_its_files_as_they_are(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run')
    _train_until(config, 12)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original = measures.prepare_language

    def prepare(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return original(*arguments)

    with mock.patch.object(measures, 'prepare_language', prepare):
        outcome = train(config)
    assert (outcome.status, outcome.step) == ('interrupted', 12)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(config).status == 'done'


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP has its default action, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures('hangups')
def test_an_interruption_hears_its_signals_and_leaves_the_handlers_as_they_were() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        with Interruption() as interruption:
            assert not interruption.requested()
            signal.raise_signal(number)
            assert interruption.requested() and interruption.name == number.name
            if number != signal.SIGINT:
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup, which has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.requested()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('resume', ['auto', 'restart'])
def test_a_second_process_on_the_same_run_is_refused_and_changes_nothing(tmp_path: Path, resume: str) -> None:
    train(tiny(tmp_path / 'run', max_iters=4))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with RunFiles(tmp_path / 'run').claim():  # two open files of one process are told apart
        with pytest.raises(ValueError, match='is being trained by another process'):
            train(tiny(tmp_path / 'run', max_iters=4, resume=resume))
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(tiny(tmp_path / 'run', max_iters=4, resume=resume)).step == 4


def test_a_run_that_another_process_begins_in_the_meantime_is_left_to_it(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', max_iters=4)

    def other(*arguments: Any) -> Any:
        (tmp_path / 'run_config.pt').write_bytes(b'of the other')
        return original(*arguments)

    original = measures.prepare_language
    with mock.patch.object(measures, 'prepare_language', other), pytest.raises(ValueError, match='another process'):
        train(config)
    assert [path.name for path in tmp_path.iterdir()] == ['run_config.pt']


def test_a_file_that_another_process_is_writing_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    """Before this process holds the lock of a run that begins, another one may be at work on it."""
    other = tmp_path / '.run_config.pt.tmp-1'
    other.touch()
    said: list[str] = []

    def look(*arguments: Any) -> Any:
        assert other.exists()
        return original(*arguments)

    original = measures.prepare_language
    with mock.patch.object(measures, 'prepare_language', look):
        train(tiny(tmp_path / 'run', max_iters=4), said.append)
    assert not other.exists() and f'{other} was left by a killed process and is removed' in said


def test_of_two_processes_that_begin_a_run_the_later_one_is_refused(tmp_path: Path) -> None:
    """The other one takes the temporary file of this one for a leftover, and removes it."""

    def begun(content: Any, path: Path, new: bool = False) -> None:
        path.write_bytes(b'of the other')
        raise FileNotFoundError(path)

    with mock.patch.object(lifecycle, 'save', begun), pytest.raises(ValueError, match='another process'):
        train(tiny(tmp_path / 'run', max_iters=4))
    assert [path.name for path in tmp_path.iterdir()] == ['run_config.pt']


def test_a_checkpoint_with_the_optimizer_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', **ADAM)
    _train_until(config, 12)
    path = RunFiles(config.outname).checkpoint(12)
    content = load(path)
    content['resume']['optimizer']['state'][0]['exp_avg'] = torch.zeros(3, 3)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r'run_t12\.pt belongs to another run'):
        train(config)


# ---------------------------------------------------------------------- the contexts of records

SAMPLED: dict[str, Any] = {'num_layers': 3, 'batch_size': 16, 'print_freq': 40}


def test_a_record_takes_at_most_5_percent_of_the_time_of_its_steps_or_512_contexts() -> None:
    config = tiny(max_iters=4096, print_freq=4096, save_freq=2, batch_size=128, accumulation=2)
    times = init.print_times(4096, 4096, 2)
    found = {t: init.record_contexts(t, config) for t in times}
    assert found[0] == found[8] == found[16] == 512
    gaps = {t: t - before for before, t in itertools.pairwise(times)}
    assert all(found[t] == max(512, int(3 * 0.05 * gap * 256)) for t, gap in gaps.items())
    assert found[4096] > 4096 and init.record_contexts(100, config) == max(512, int(3 * 0.05 * (100 - 91) * 256))


def test_early_records_have_the_first_contexts_and_the_last_one_all(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', max_iters=130, bp_records=True, **SAMPLED)
    outcome = train(config)
    run = load_run(config.outname)
    whole = run.reference
    assert len(whole.inputs) == 4096 and whole.weights is None
    for record in outcome.dynamics:
        number = 4096 if record['t'] == 130 else init.record_contexts(record['t'], config)
        model = run.model(record['t']) if record['t'] in run.steps else None
        assert number in (512, 4096)
        if model is not None:
            found = whole.part(number).evaluate(model, run.logits)
            assert (record['excess'], record['testacc']) == (found.excess, found.accuracy)
            assert record['testloss'] == whole.floor()[0] + found.excess
            assert len(record['bp']) == 4 and record['bp'][3] == pytest.approx(record['excess'], rel=1e-9)
    assert outcome.excess_error == whole.evaluate(run.model(130), run.logits).excess_error


def test_a_run_made_longer_measures_the_record_at_its_former_end_again(tmp_path: Path) -> None:
    """Step 64 is a time of both runs: of the shorter one it is the last, with all contexts."""
    parts, whole = tmp_path / 'parts' / 'run', tmp_path / 'whole' / 'run'
    for last in (64, 70, 96):
        assert train(tiny(parts, max_iters=last, **SAMPLED)).status == 'done'
    train(tiny(whole, max_iters=96, **SAMPLED))
    assert_same_run(parts, whole)


def test_the_best_model_is_measured_on_all_contexts_in_the_end(tmp_path: Path) -> None:
    """Its record is on 512 of them, and smaller by chance than the excess on all."""
    options = {**SAMPLED, 'num_features': 16, 'optim': 'adam', 'lr': 1e-2, 'max_iters': 600, 'print_freq': 10}
    outcome = train(tiny(tmp_path / 'run', seed_rules=1, seed_model=1, **options))
    run = load_run(tmp_path / 'run')
    recorded = {record['t']: record['excess'] for record in run.dynamics}
    best, found = outcome.best, run.reference.evaluate(run.model('best'), run.logits)
    assert best['step'] == run.best_step == min(recorded, key=recorded.__getitem__)
    assert best['excess'] == found.excess and best['loss'] == found.loss
    assert found.excess > recorded[best['step']] + 0.005 and found.excess < recorded[600]


def test_the_last_model_is_the_best_where_it_is_on_all_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records on parts of the contexts have 0.5; on all of them every model has 0.6, but the last one 0.55."""
    last = iter([0.55])

    def evaluate(contexts: Reference, *_: Any) -> Evaluation:
        return Evaluation(2.0, 0.5, 0.5 if len(contexts.inputs) < 4096 else next(last, 0.6), 0.0)

    monkeypatch.setattr(Reference, 'evaluate', evaluate)
    outcome = train(tiny(tmp_path / 'run', **SAMPLED))
    assert outcome.best['step'] == 24 and outcome.best['excess'] == 0.55


def test_all_contexts_that_there_are_are_always_summed_over() -> None:
    reference = measures.reference(init.init_data(tiny(num_layers=2)))
    assert reference.weights is not None and reference.part(1) is reference
    sample = measures.reference(init.init_data(tiny(num_layers=3)))
    assert sample.part(4096) is sample and len(sample.part(7).inputs) == len(sample.part(7).posteriors) == 7


# ---------------------------------------------------------------------- longer runs


@pytest.mark.parametrize(
    'options',
    [{'optim': 'sgd'}, {'optim': 'adam', 'dropout': 0.1}, OFFLINE, {'checkpoints': False}],
    ids=('sgd', 'adam', 'offline', 'no-checkpoints'),
)
def test_a_run_made_longer_is_the_run_that_was_so_long_from_the_start(tmp_path: Path, options: dict[str, Any]) -> None:
    """Steps 30 and 60 have no record in the longest run; 64 has one."""
    parts, whole = tmp_path / 'parts' / 'run', tmp_path / 'whole' / 'run'
    for last in (30, 60, 64, 90):
        assert train(tiny(parts, max_iters=last, max_epochs=1000, **options)).status == 'done'
        assert load_run(parts).dynamics[-1]['t'] == load_run(parts).steps[-1] == last
    train(tiny(whole, max_iters=90, max_epochs=1000, **options))
    assert_same_run(parts, whole)


def test_a_damaged_checkpoint_that_is_not_needed_does_not_stop_a_longer_run(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', max_iters=20)
    train(config)
    path = RunFiles(config.outname).checkpoint(1)
    path.write_bytes(path.read_bytes()[:-100])
    said: list[str] = []
    assert train(tiny(tmp_path / 'run', max_iters=40), said.append).step == 40
    assert f'{path} was damaged and is removed' in said
    train(tiny(tmp_path / 'whole/run', max_iters=40))
    assert load_run(tmp_path / 'run').steps == [step for step in load_run(tmp_path / 'whole/run').steps if step != 1]
    assert same_weights(*(load_run(tmp_path / name).model().state_dict() for name in ('run', 'whole/run')))


def test_the_end_of_a_shorter_run_stays_until_the_longer_one_has_begun(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', max_iters=20)
    train(config)
    files = RunFiles(config.outname)
    final = files.final.read_bytes()
    with mock.patch.object(RunFiles, 'rewrite_log', side_effect=OSError(28, 'No space left')), pytest.raises(OSError):
        train(tiny(tmp_path / 'run', max_iters=40))
    assert files.final.read_bytes() == final
    assert train(tiny(tmp_path / 'run', max_iters=40)).step == 40


def test_a_finished_run_without_checkpoints_does_not_begin_again_to_become_longer(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', max_iters=20))
    files = RunFiles(tmp_path / 'run')
    for step in files.steps():
        files.checkpoint(step).unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    longer = tiny(tmp_path / 'run', max_iters=40)
    for ask in (train, lifecycle.foresee):
        with pytest.raises(ValueError, match=r'run\.pt is finished, and its checkpoints are gone, so it cannot become'):
            ask(longer)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert train(tiny(tmp_path / 'run', max_iters=20)).status == 'complete'


def test_a_required_checkpoint_is_foreseen_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume='require' finds no checkpoint"):
        lifecycle.foresee(tiny(tmp_path / 'run', resume='require'))


def test_options_without_use_are_named_at_the_start(tmp_path: Path) -> None:
    said: list[str] = []
    train(tiny(tmp_path / 'run', max_iters=1, num_synonyms=3, optim='adam', momentum=0.5), said.append)
    assert 'without use here: num_synonyms (it is for dataset=rhm), momentum (it is for optim=sgd)' in said[0]
    assert list(tiny(model='gru', ffwd_size=1).unused()).count('ffwd_size') == 1
    assert 'ffwd_size' not in tiny(model='cnn', depth=2, num_layers=2, ffwd_size=1).unused()
    train(tiny(tmp_path / 'rhm', max_iters=1, dataset='rhm', num_synonyms=3, momentum=0.5), said.append)
    assert sum('without use' in line for line in said) == 1


def test_more_epochs_make_an_offline_run_longer(tmp_path: Path) -> None:
    for epochs in (2, 4):
        train(tiny(tmp_path / 'parts' / 'run', max_iters=1000, max_epochs=epochs, **OFFLINE))
    train(tiny(tmp_path / 'whole' / 'run', max_iters=1000, max_epochs=4, **OFFLINE))
    assert_same_run(tmp_path / 'parts' / 'run', tmp_path / 'whole' / 'run')


def test_a_run_is_never_made_shorter(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', max_iters=20))
    with pytest.raises(ValueError, match=r'max_iters=10 differs from 20 in .*run_config\.pt'):
        train(tiny(tmp_path / 'run', max_iters=10))
    assert train(tiny(tmp_path / 'run', max_iters=20)).status == 'complete'


def test_a_longer_run_can_be_interrupted_and_killed_like_any_other(tmp_path: Path) -> None:
    parts, whole = tmp_path / 'parts' / 'run', tmp_path / 'whole' / 'run'
    train(tiny(parts, max_iters=20))
    _train_until(tiny(parts, max_iters=50), 20)  # at once: the record of step 20 has just been made again
    assert not load_run(parts).done
    _train_until(tiny(parts, max_iters=50), 33)
    train(tiny(parts, max_iters=50))
    train(tiny(whole, max_iters=50))
    assert_same_run(parts, whole)


def test_a_run_that_stopped_early_stays_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'WINDOW', 8)
    assert train(tiny(tmp_path / 'run', max_iters=20, loss_threshold=10.0)).status == 'stopped early'
    outcome = train(tiny(tmp_path / 'run', max_iters=40, loss_threshold=10.0))
    assert (outcome.status, outcome.step) == ('complete', 8)
