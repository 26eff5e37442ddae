"""The SLURM launcher, on a real SLURM of one node that is started for these tests: whatever SLURM does to a task, its
runs end as if nothing had happened.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from documents import blocks
from helpers import ROOT
from small_runs import TINY
from small_sweeps import assert_finished

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.sweep import slurm, worker
from RLM_clean.sweep.__main__ import main
from RLM_clean.sweep.plan import Plan, read_plan, save_plan
from RLM_clean.sweep.slurm import Resources
from RLM_clean.sweep.states import last_record
from RLM_clean.training import lifecycle

# One process has the cluster.
pytestmark = pytest.mark.xdist_group('slurm')

EXECUTION: dict[str, Any] = {'device': 'cpu', 'threads': 1}
SCRIPTS = ROOT / 'tests' / 'slurm'
# Two minutes are more than any test waits for one thing.
PATIENCE = 120

REASON = 'no SLURM to test on: as root, `bash tests/slurm/start.sh` installs one (Debian and its kin)'


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM of these tests' own, which SLURM's commands talk to; its jobs find the workers of the tests."""
    pytest.importorskip('submitit', reason='no submitit to test with: pip install submitit')
    if not shutil.which('slurmctld', path=f'{os.environ["PATH"]}:/usr/sbin:/sbin'):
        pytest.skip(REASON)  # the script would install it: not unasked
    folder = str(tmp_path_factory.mktemp('slurm'))
    started = subprocess.run(['bash', SCRIPTS / 'start.sh', folder], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        # Jobs get the environment of those who submit them.
        with mock.patch.dict(os.environ, SLURM_CONF=started.stdout.strip(), PYTHONPATH=str(ROOT / 'tests')):
            yield
    finally:
        subprocess.run(['bash', SCRIPTS / 'stop.sh', folder], check=True)


class Sweep:
    """A sweep and the number of its job on the cluster."""

    def __init__(self, plan: Plan, job: str = '') -> None:
        self.plan, self.job = plan, job

    @classmethod
    def make(cls, folder: Path, runs: int, max_iters: int) -> Sweep:
        """A sweep over `runs` repetitions of a tiny run."""
        options = {name: value for name, value in TINY.items() if name not in EXECUTION} | {'max_iters': max_iters}
        folder.mkdir()
        plan = Plan(folder, (), options, repetitions=runs, execution=EXECUTION)
        save_plan(plan)
        return cls(plan)

    def launch(self, workers: int, work: str = 'slow_worker:work', group: int = 1, **resources: Any) -> Sweep:
        """Submits workers whose groups take 0.05 seconds a step or more."""
        asked = Resources(**{'minutes': 10, 'memory': 0, **resources})
        with mock.patch.object(slurm, '_WORK', work):
            self.job = slurm.launch(self.plan, workers, group, asked)
        return self

    def said(self, task: int | None = None) -> str:
        """What a task of the array has said so far, in all its lives; by default, what all have."""
        pattern = f'{self.job}_*_log.out' if task is None else f'{self.job}_{task}_0_log.out'
        return ''.join(path.read_text() for path in sorted((self.plan.folder / 'slurm').glob(pattern)))

    def wait_for(self, text: str, tasks: Sequence[int | None] = (None,)) -> None:
        """Waits until each of these tasks has said this; by default, until one has."""
        self._wait(lambda: all(text in self.said(task) for task in tasks), repr(text))

    def wait_for_step(self, step: int) -> None:
        """Waits until all runs have a record of this step or a later one."""
        logs = [RunFiles(run.config.outname).log for run in self.plan.runs]
        self._wait(lambda: all((last_record(log) or {'t': -1})['t'] >= step for log in logs), f'step {step}')

    def wait(self) -> None:
        """Waits until the job is over."""
        self._wait(lambda: not self._queued(), 'the end')

    def _queued(self) -> bool:
        # A job that has ended a while ago is unknown, and squeue says so by an error.
        done = subprocess.run(['squeue', '-h', f'--jobs={self.job}'], capture_output=True, text=True)
        return bool(done.stdout.strip())

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            errors = ''.join(path.read_text() for path in (self.plan.folder / 'slurm').glob('*_log.err'))
            assert time.monotonic() < end, f'waited in vain for {what}:\n{self.said()}\n{errors}'
            time.sleep(0.1)

    def assert_finished(self, tmp_path: Path, exact: bool = True) -> None:
        """All runs are there, each as this process trains it."""
        assert_finished(self.plan, tmp_path / 'alone', exact)


def command(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


# ---------------------------------------------------------------------- on the cluster


@pytest.fixture(scope='module')
def out_of_time(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A run of a minute in a task that may last a minute and saves 20 seconds before its end.

    SLURM looks at time limits every 30 seconds, and sends the signal 30 seconds early rather than late: at the first
    look when the task is 10 seconds old, or older. This begins before the other tests, which is a minute less to wait.
    """
    return Sweep.make(tmp_path_factory.mktemp('time') / 'sweep', runs=1, max_iters=1200).launch(1, minutes=1, notice=20)


@pytest.mark.slow
@pytest.mark.usefixtures('out_of_time')
def test_an_array_trains_each_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line, in a folder of its own that the package is not in."""
    monkeypatch.chdir(tmp_path)
    words = [f'--{name}={value}' for name, value in TINY.items() if name != 'threads']
    words += ['--outname=sweep', '--repetitions=5', '--launcher=slurm', '--workers=2', '--group=1']
    assert main([*words, '--minutes=5', '--memory=0.5', '--gpus=1', '--partition=main']) == 0
    job = re.search(r'job (\d+) of SLURM', capsys.readouterr().out)
    assert job is not None
    sweep = Sweep(read_plan('sweep', EXECUTION), job[1])
    sweep.wait()
    assert all(sweep.said().count(f'{run.name}: taken') == 1 for run in sweep.plan.runs)
    assert all(': taken' in sweep.said(task) for task in (0, 1))
    sweep.assert_finished(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures('out_of_time')
def test_a_task_that_is_asked_to_make_room_saves_and_is_requeued_and_goes_on(tmp_path: Path) -> None:
    """By hand, by submitit's own signal, or by an administrator: then it is SLURM that requeues it.

    Each task has its own part of the runs, so that it comes back to them.
    """
    sweep = Sweep.make(tmp_path / 'sweep', runs=6, max_iters=160).launch(3, group=2, split=True)
    ways = (('scancel', '--signal=USR1'), ('scancel', '--signal=USR2'), ('scontrol', 'requeue'))
    sweep.wait_for_step(20)
    for task, way in enumerate(ways):
        command(*way, f'{sweep.job}_{task}')
    sweep.wait_for('interrupted at step', range(3))
    sweep.wait()
    for task, way in enumerate(ways):
        said = sweep.said(task)
        assert said.count(': interrupted at step') == said.count('going on from step') == 2
        assert said.count(': taken') == 4
        assert all(said.count(f' {run.name}: taken') == 2 for run in sweep.plan.runs[task::3])
        assert (f'{sweep.job}_{task} is requeued' in said) == (way[0] == 'scancel')
    sweep.assert_finished(tmp_path, exact=False)


@pytest.mark.slow
@pytest.mark.usefixtures('out_of_time')
def test_a_task_that_is_cancelled_saves_and_does_not_come_back(tmp_path: Path) -> None:
    sweep = Sweep.make(tmp_path / 'sweep', runs=1, max_iters=100).launch(1)
    sweep.wait_for('step  20/100')
    command('scancel', sweep.job)
    sweep.wait()
    assert ': interrupted at step' in sweep.said() and 'saved, and not requeued from here' in sweep.said()
    assert not RunFiles(sweep.plan.runs[0].config.outname).final.exists()
    sweep.launch(1).wait()  # another job
    assert 'going on from step' in sweep.said()
    sweep.assert_finished(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures('out_of_time')
def test_a_signal_is_heard_before_the_worker_is_there(tmp_path: Path) -> None:
    """To load torch takes seconds, on a network disk a minute: the worker of this test does."""
    (tmp_path / 'late_worker.py').write_text(
        "import time\nprint('loading', flush=True)\ntime.sleep(2)\n"
        "def work(*_, **__):\n    print('working', flush=True)\n    return True\n"
    )
    with mock.patch.dict(os.environ, PYTHONPATH=str(tmp_path)):
        sweep = Sweep.make(tmp_path / 'sweep', runs=1, max_iters=1).launch(1, 'late_worker:work')
    sweep.wait_for('loading')
    command('scancel', '--signal=USR1', sweep.job)
    sweep.wait()
    words = [line for line in sweep.said().splitlines() if not line.startswith('submitit')]
    assert words == ['loading', f'{sweep.job} is requeued: saved, it goes on from there', 'loading', 'working']


@pytest.mark.slow
def test_a_task_that_is_out_of_time_is_requeued_and_goes_on_as_often_as_it_takes(
    out_of_time: Sweep, tmp_path: Path
) -> None:
    out_of_time.wait()
    said = out_of_time.said()
    # A minute does not fit into two lives: the first lasts at most 40 seconds, and of the 30 until the next look the
    # second spends six waiting in the queue.
    assert said.count('is requeued') == said.count('going on from step') >= 2
    assert 'CANCELLED' not in said and said.count('step    0/') == said.count('done at step 1200') == 1
    out_of_time.assert_finished(tmp_path)


@pytest.mark.slow
def test_tasks_that_are_preempted_are_requeued_and_go_on(out_of_time: Sweep, tmp_path: Path) -> None:
    """In the partition's grace time they save and leave; then the job that is urgent runs, and then they do."""
    out_of_time.wait()
    sweep = Sweep.make(tmp_path / 'sweep', runs=2, max_iters=100).launch(2)
    sweep.wait_for('step  20/100', range(2))
    command('sbatch', '--partition=urgent', '--wait', f'--output={tmp_path}/urgent.txt', '--wrap=echo ran')
    assert (tmp_path / 'urgent.txt').read_text() == 'ran\n'
    assert not any('done at step' in sweep.said(task) for task in range(2))
    sweep.wait()
    for task in range(2):
        assert sweep.said(task).count('is requeued') == sweep.said(task).count('going on from step') == 1
    sweep.assert_finished(tmp_path)


@pytest.mark.slow
def test_the_documented_script_of_one_large_run_saves_and_is_requeued_and_goes_on(
    cluster: None, tmp_path: Path
) -> None:
    """Two torchruns under srun that meet; on the one node that there is, and with a run that is not large."""
    script = next(text for text in blocks('docs/sweeps.md', 'sh') if '#SBATCH' in text)
    options = {**TINY, 'max_iters': 3000, 'optim': 'adam', 'print_freq': 1000}
    words = ' '.join(f'--{name} {value}' for name, value in options.items())
    for old, new in {
        '--nodes=2': '--nodes=1', '--ntasks-per-node=1': '--ntasks-per-node=2', '#SBATCH --gpus-per-node=4\n': '',
        '--cpus-per-task=16': '--cpus-per-task=1', '04:00:00': '10', 'large.txt': f'{tmp_path}/said.txt',
        'outname=results/large': f'outname={tmp_path}/run', 'torchrun ': f'{sys.executable} -m torch.distributed.run ',
        '--embedding_dim 512 --num_heads 8 --depth 8 --batch_size 512': words,
    }.items():  # fmt: skip
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    (tmp_path / 'large.sh').write_text(script)
    submit = ['sbatch', '--parsable', f'--chdir={ROOT}', str(tmp_path / 'large.sh')]
    job = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.strip()

    def wait_until(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, (tmp_path / 'said.txt').read_text()
            time.sleep(0.1)

    files = RunFiles(tmp_path / 'run')
    wait_until(lambda: (last_record(files.log) or {'t': 0})['t'] >= 64)
    command('scancel', '--batch', '--signal=USR1', job)  # as SLURM does near the end of the time
    wait_until(files.final.exists)
    said = (tmp_path / 'said.txt').read_text()
    assert said.count('SIGTERM: saved at step') == said.count('going on from step') == 1
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        lifecycle.train(Config(outname=str(tmp_path / 'one'), **options), lambda line: None)
    for record, other in zip(files.read_log(), RunFiles(tmp_path / 'one').read_log(), strict=True):
        assert record['testloss'] == pytest.approx(other['testloss'], rel=1e-4)


@pytest.mark.slow
def test_what_slurm_refuses_is_reported_in_one_line(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep.make(tmp_path / 'sweep', runs=1, max_iters=1)
    with pytest.raises(ValueError, match=r'^SLURM refuses the jobs \(invalid partition specified: nowhere; .*\): .*$'):
        sweep.launch(2, partition='nowhere')
    assert capfd.readouterr() == ('', '')


# ---------------------------------------------------------------------- without one


@pytest.mark.parametrize(
    ('left', 'trains', 'comes_back'), [(30.0, False, False), (30.0, True, True), (900.0, False, True)]
)
def test_a_task_whose_time_is_too_short_for_a_step_does_not_come_back(
    left: float, trains: bool, comes_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It would for ever. One that took a step does, and so does one that was preempted before it could."""
    (tmp_path / 'run_config.pt').touch()
    (tmp_path / 'run_t0.pt').touch()

    def work(*_: Any, **__: Any) -> bool:
        (tmp_path / 'other_config.pt').touch()
        if trains:
            (tmp_path / 'run_t8.pt').touch()
        signal.raise_signal(signal.SIGUSR2)
        return False

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, '_job', lambda: ('7_0', 'RUNNING', left))
    monkeypatch.setattr(slurm, '_ask', lambda *words: asked.append(words))
    monkeypatch.setattr(worker, 'work', work)
    before = signal.getsignal(signal.SIGUSR2)
    try:
        end = slurm.run_task(slurm._WORK, str(tmp_path), {'execution': EXECUTION}, notice=20)
    except SystemExit:
        end = 'comes back'
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert end == ('comes back' if comes_back else 'out of time')
    assert asked == ([('scontrol', 'requeue', '7_0')] if comes_back else [])
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and ('give it more --minutes' in said) != comes_back


@pytest.mark.parametrize(
    ('text', 'seconds'),
    [('0:59', 59), ('12:03', 723), ('1:00:00', 3600), ('2-03:00:01', 183601), ('INVALID', math.inf)],
)
def test_durations_are_read_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert slurm.seconds(text) == seconds


def test_a_sweep_that_cannot_be_submitted_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('PATH', str(tmp_path))
    words = [f'--{name}={value}' for name, value in TINY.items() if name != 'threads']
    assert main([*words, f'--outname={tmp_path / "sweep"}', '--repetitions=2', '--launcher=slurm']) == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert not (tmp_path / 'sweep').exists()


@pytest.mark.parametrize(
    'options',
    ({'minutes': 0}, {'minutes': 1.5}, {'memory': -1}, {'memory': float('nan')}, {'gpus': -1}, {'cpus': 0},
     {'notice': 0}, {'partition': None}, {'split': 1}, {'notice': 60, 'minutes': 1}),
    ids=str,
)  # fmt: skip
def test_resources_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f'^{name}={value!r} .*: (use|lower)'):
        Resources(**options)


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep.make(tmp_path / 'sweep', runs=1, max_iters=1)
    monkeypatch.setattr(slurm.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='needs a package that is missing: pip install submitit'):
        sweep.launch(1)
    monkeypatch.setattr(slurm.importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match=r"finds no sbatch: .* or launcher='local'$"):
        sweep.launch(1)
    assert [path.name for path in sweep.plan.folder.iterdir()] == ['sweep.json']


def test_a_task_loads_nothing_slow_before_it_hears_signals() -> None:
    """`run_task` hears them from its first line on: what its module loads comes before."""
    loads = 'import sys, RLM_clean.sweep.slurm; print("torch" in sys.modules, "numpy" in sys.modules)'
    run = subprocess.run([sys.executable, '-c', loads], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == 'False False\n'


@pytest.mark.parametrize('split', [False, True])
def test_each_task_of_an_array_is_a_worker_of_the_same_sweep(
    split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own part of the runs where nodes do not see each other's locks."""
    submitit = pytest.importorskip('submitit')
    sweep = Sweep.make(tmp_path / 'sweep', runs=4, max_iters=1)
    monkeypatch.setattr(slurm, 'check', lambda: None)
    executor = mock.Mock()
    executor.map_array.return_value = [mock.Mock(job_id='9_0')]
    monkeypatch.setattr(submitit, 'SlurmExecutor', mock.Mock(return_value=executor))
    assert slurm.launch(sweep.plan, 2, 3, Resources(split=split)) == '9'
    task, works, folders, tasks, notices = executor.map_array.call_args.args
    assert (task, set(works), set(folders)) == (slurm.run_task, {slurm._WORK}, {str(sweep.plan.folder)})
    assert set(notices) == {120}
    common = {'execution': EXECUTION, 'group': 3}
    parts = [{'part': (1, 2)}, {'part': (2, 2)}] if split else [{'workers': 2}] * 2
    assert list(tasks) == [{**common, **part} for part in parts]
    work = mock.Mock(return_value=True)
    monkeypatch.setattr(worker, 'work', work)
    assert [slurm.run_task(*words) for words in zip(works, folders, tasks, notices, strict=True)] == ['done'] * 2
    assert work.call_args_list == [mock.call(folder, **task) for folder, task in zip(folders, tasks, strict=True)]


def test_a_job_finds_the_package_from_any_folder() -> None:
    setup = slurm._parameters(Path('sweep'), Resources())['setup'][0]
    assert setup.startswith(f'export PYTHONPATH={ROOT}$')
