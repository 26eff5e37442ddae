"""What a worker takes, and what becomes of it: groups, failures, signals, deaths."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import ROOT
from small_runs import quiet, train
from small_sweeps import assert_finished, die_holding, make_sweep, statuses

from RLM_clean import measures, sweep
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.locks import BusyError
from RLM_clean.runs.storage import load
from RLM_clean.sweep import states, worker
from RLM_clean.sweep.plan import Plan, PlannedRun
from RLM_clean.training import ensemble, lifecycle
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.lifecycle import Outcome

Result = tuple[Config, Outcome | Exception]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without their pictures, which take longer than all the rest."""
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: None)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the runs of each group, in the order in which they are taken; each ends at once."""
    groups: list[list[str]] = []

    def note(configs: Sequence[Config]) -> Iterator[Result]:
        groups.append([Path(config.outname).name for config in configs])
        for config in configs:
            RunFiles(config.outname).final.touch()
            yield config, Outcome('done', 24, [], {}, 0.0, 0.0)

    monkeypatch.setattr(worker, 'train_together', note)
    return groups


def names(plan: Plan) -> list[str]:
    return [run.name for run in plan.runs]


# ---------------------------------------------------------------------- groups


def test_a_group_gives_the_files_and_the_losses_of_lone_runs(tmp_path: Path) -> None:
    """The losses to rounding, also of runs that are stopped and go on in another group."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    advance = Ensemble.advance

    def stop(self: Ensemble, steps: int, interrupted: Callable[[], bool]) -> Any:
        failed = advance(self, min(steps, 13 - self.step), interrupted)
        if self.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return failed

    with mock.patch.object(Ensemble, 'advance', stop):
        assert not worker.work(plan.folder, plan.execution, group=3)
    assert statuses(plan) == ['interrupted'] * 3
    for run in plan.runs:
        assert 'resume' in load(RunFiles(run.config.outname).checkpoint(13))
    assert worker.work(plan.folder, plan.execution, group=2)
    assert_finished(plan, tmp_path / 'alone')
    ours = {path.name for path in plan.folder.iterdir() if path.is_file()} - {'sweep.json'}
    assert ours == {path.name for path in (tmp_path / 'alone').iterdir()}


def test_runs_that_are_trained_one_at_a_time_are_those_of_main_to_the_bit(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    assert worker.work(plan.folder, plan.execution, group=1)
    assert_finished(plan, tmp_path / 'alone', exact=True)


@pytest.mark.parametrize(
    ('group', 'workers', 'sizes'),
    [
        (3, 1, [3, 3, 2, 2]),  # about as large as each other
        (100, 1, [10]),
        (1, 1, [1] * 10),
        (3, 7, [3, 3, 2, 2]),  # the user's word counts, not the number of workers
        (None, 1, [4, 3, 3]),
        (None, 5, [2, 2, 2, 2, 2]),
        (None, 50, [1] * 10),
    ],
)
def test_groups_are_as_large_as_asked_for_or_as_pays(
    group: int | None, workers: int, sizes: list[int], taken: list[list[str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Four of these runs pay; each of several workers gets its part."""
    monkeypatch.setattr(ensemble, 'group_size', lambda config, device, memory: 4)
    plan = make_sweep(tmp_path / 'sweep', repetitions=10)
    # The other workers hold nothing yet, and come too late.
    assert worker.work(plan.folder, plan.execution, group=group, workers=workers)
    found = sorted(map(len, taken), reverse=True)
    assert sum(found) == 10 and found[0] == sizes[0]
    if workers == 1 or group is not None:
        assert found == sizes


def test_a_group_is_no_larger_than_memory_allows(
    taken: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, 'fitting', lambda config, memory: 2)
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3,4')
    assert worker.work(plan.folder, plan.execution, group=9)
    assert [len(group) for group in taken] == [2, 2]


def test_the_run_that_needs_most_memory_says_how_many_fit(
    taken: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, 'fitting', lambda config, memory: 2 if config.train_size > 128 else 9)
    plan = make_sweep(tmp_path / 'sweep', 'train_size=64,128,256,512', regime='offline', max_epochs=10**6)
    assert worker.work(plan.folder, plan.execution, group=9)
    assert [len(group) for group in taken] == [2, 2]


def test_a_worker_of_slurm_counts_on_the_memory_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('SLURM_MEM_PER_NODE', '3000')
    assert worker._memory(torch.device('cpu')) == 1500 * 2**20


def test_runs_of_different_shapes_are_not_trained_together(taken: list[list[str]], tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2', 'depth=1,2')
    assert worker.work(plan.folder, plan.execution, group=4)
    assert taken == [['beta1_depth1', 'beta2_depth1'], ['beta1_depth2', 'beta2_depth2']]


def test_parts_of_a_sweep_are_disjoint_and_whole(taken: list[list[str]], tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3,4,5', 'depth=1,2')
    sizes = []
    for number in (1, 2, 3):
        assert worker.work(plan.folder, plan.execution, (number, 3))
        sizes.append(sum(map(len, taken)))
    assert sizes == [4, 8, 10] and sorted([*chain.from_iterable(taken)]) == sorted(names(plan))


# ---------------------------------------------------------------------- several workers


def test_workers_that_come_together_train_each_run_once_and_split_no_group(
    taken: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take as long for its part of a group as for the whole."""
    plan = make_sweep(tmp_path / 'sweep', repetitions=6)

    @contextmanager
    def slow_claim(folder: Path, run: PlannedRun) -> Iterator[bool]:
        with states.claim(folder, run) as mine:
            time.sleep(0.05)  # so that another worker could come between
            yield mine

    monkeypatch.setattr(worker, 'claim', slow_claim)
    workers = [threading.Thread(target=worker.work, args=(plan.folder, plan.execution, (1, 1), 6)) for _ in range(3)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert taken == [names(plan)]


@pytest.mark.parametrize('group', [1, 3])
def test_a_run_that_another_process_trains_is_left_alone(group: int, tmp_path: Path) -> None:
    """By the claim of the sweep, which is there before the run is, or by the lock of the run, which main.py takes."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    began = plan.runs[1].config
    train(began)
    files = RunFiles(began.outname)
    files.final.unlink()
    with states.claim(plan.folder, plan.runs[0]) as mine, files.claim():
        assert mine
        assert worker.work(plan.folder, plan.execution, group=group)
        assert statuses(plan) == ['running', 'running', 'done']
    assert statuses(plan) == ['waiting', 'interrupted', 'done']
    assert worker.work(plan.folder, plan.execution, group=group)
    assert statuses(plan) == ['done'] * 3
    assert states.holder(plan.folder, plan.runs[0].name) is None


def test_a_run_that_main_begins_in_the_last_moment_is_not_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    with ExitStack() as of_main:
        original = lifecycle.train

        def busy(config: Config, say: Callable[[str], None]) -> Outcome:
            if config.beta == 1:
                RunFiles(config.outname).config.touch()
                of_main.enter_context(RunFiles(config.outname).claim())
                raise BusyError('it is being trained by another process')
            return original(config, say)

        monkeypatch.setattr(lifecycle, 'train', busy)
        assert worker.work(plan.folder, plan.execution, group=1)
        assert statuses(plan) == ['running', 'done']


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ('error', 'said'),
    [
        (MemoryError(), 'memory ran out: use fewer workers'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 'memory ran out: use fewer workers'),
        (OSError(28, 'No space left on device'), '[Errno 28] No space left on device'),
        (ValueError('lr=1 differs from 2 in x_config.pt: use that'), 'lr=1 differs from 2 in x_config.pt: use that'),
        (RuntimeError('shapes\ndo not fit'), 'RuntimeError: shapes do not fit'),
    ],
)
@pytest.mark.parametrize('group', [1, 3])
def test_whatever_a_run_fails_by_the_others_go_on(
    error: Exception, said: str, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained alone or together."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    claim = lifecycle.claim

    def fail(config: Config, *rest: Any) -> Any:
        if config.beta == 2:
            raise error
        return claim(config, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, 'claim', fail)
        patch.setattr(ensemble, 'claim', fail)
        assert worker.work(plan.folder, plan.execution, group=group)
    found = [states.state(run, plan.folder) for run in plan.runs]
    assert [s.status for s in found] == ['done', 'failed', 'done'] and said in found[1].why
    assert '\n' not in found[1].why
    # A try that succeeds leaves nothing of the failure.
    states.forget_failure(plan.runs[1].config.outname)
    assert worker.work(plan.folder, plan.execution)
    assert statuses(plan) == ['done'] * 3 and not list(plan.folder.glob('*_failed.json'))


def test_a_worker_whose_output_is_closed_trains_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2', lr=1e-3)
    monkeypatch.setattr(sys, 'stdout', None)
    assert worker.work(plan.folder, plan.execution, group=2)
    assert statuses(plan) == ['done'] * 2
    with open('/dev/full', 'w') as full:
        monkeypatch.setattr(sys, 'stdout', full)
        monkeypatch.setattr(sys, 'stderr', full)
        plan = make_sweep(tmp_path / 'other', 'beta=1,2')
        monkeypatch.setattr(lifecycle, 'train', mock.Mock(side_effect=RuntimeError('odd')))
        assert worker.work(plan.folder, plan.execution, group=1)
    assert statuses(plan) == ['failed'] * 2


# ---------------------------------------------------------------------- signals


def test_an_interrupted_worker_leaves_the_rest_to_others(tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    original = lifecycle.train

    def stop(config: Config, say: Callable[[str], None]) -> Outcome:
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(config, quiet)

    with mock.patch.object(lifecycle, 'train', stop):
        assert not worker.work(plan.folder, plan.execution, group=1)
    assert 'done' not in statuses(plan) and not (plan.folder / 'beta2_config.pt').exists()
    assert worker.work(plan.folder, plan.execution)
    assert statuses(plan) == ['done'] * 3


def test_a_signal_while_a_group_is_set_up_stops_it_before_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To set up a large group can take longer than a cluster waits."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    original, calls = measures.prepare_language, []

    def stop(*what: Any) -> Any:
        calls.append(what)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*what)

    with monkeypatch.context() as patch:
        patch.setattr(measures, 'prepare_language', stop)
        assert not worker.work(plan.folder, plan.execution, group=3)
    assert len(calls) == 1 and statuses(plan) == ['waiting'] * 3
    assert worker.work(plan.folder, plan.execution, group=3)
    assert_finished(plan, tmp_path / 'alone')


def test_a_signal_in_the_last_moment_of_a_run_stops_the_worker_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run itself no longer looks for signals."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert not worker.work(plan.folder, plan.execution, group=1)
    assert statuses(plan) == ['done', 'waiting']


# ---------------------------------------------------------------------- deaths


def test_a_run_that_kills_its_workers_is_found_and_the_others_are_trained(
    taken: list[list[str]], tmp_path: Path
) -> None:
    """Once and twice its group falls with it. Then its runs are trained one at a time, and it falls alone."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3', repetitions=2)
    group = [run for run in plan.runs if run.repetition == 1]
    killer = group[1]
    die_holding(plan.folder, group)
    die_holding(plan.folder, group)
    with states.claim(plan.folder, killer) as mine:  # as the worker that dies of it now; here, it waits
        assert mine and worker.work(plan.folder, plan.execution, group=6)
    # In turn, and not with the runs that have nothing to do with it.
    assert taken == [['beta1_r1'], ['beta3_r1'], ['beta1_r2', 'beta2_r2', 'beta3_r2']]
    die_holding(plan.folder, group)
    die_holding(plan.folder, [killer])
    die_holding(plan.folder, [killer])
    assert worker.work(plan.folder, plan.execution, group=6) and len(taken) == 3
    failed = states.state(killer, plan.folder)
    assert failed.status == 'failed' and failed.why.startswith('its workers died 3 times')
    assert statuses(plan).count('done') == 5


def test_a_run_whose_worker_was_killed_once_stays_in_its_group(taken: list[list[str]], tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2,3')
    die_holding(plan.folder, plan.runs)
    assert worker.work(plan.folder, plan.execution, group=3)
    assert taken == [['beta1', 'beta2', 'beta3']]


# ---------------------------------------------------------------------- processes


def test_the_words_of_a_worker_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(worker, 'work', lambda *what: called.append(what))
    execution = {'device': 'cpu', 'threads': '2', 'tensorboard': False, 'compile': 'off'}
    line = worker.command(tmp_path, execution, 5, 7)
    assert line[:3] == [sys.executable, str(ROOT / 'RLM_clean' / 'sweep' / '__main__.py'), 'work']
    assert sweep.main([*line[2:], '--part=2/3']) == 0
    assert sweep.main(worker.command(tmp_path, {})[2:]) == 0
    assert called == [
        (str(tmp_path), execution, (2, 3), 5, 7),
        (str(tmp_path), {'threads': '1'}, (1, 1), None, 1),
    ]


def test_a_worker_stops_when_its_standard_input_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when the driver dies, however that ends."""
    reading, writing = os.pipe()
    heard = threading.Event()
    monkeypatch.setattr(os, 'kill', lambda pid, number: heard.set() if number == signal.SIGTERM else None)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)
        worker.stop_at_end_of_input()
        assert not heard.is_set()
        os.close(writing)
        assert heard.wait(60)


def test_a_kept_claim_of_a_removed_sweep_does_no_harm(taken: list[list[str]], tmp_path: Path) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    for _ in range(2):
        assert worker.work(plan.folder, plan.execution)
        for run in plan.runs:
            RunFiles(run.config.outname).final.unlink()
    assert [*chain.from_iterable(taken)] == names(plan) * 2
