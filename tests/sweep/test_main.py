"""The commands of sweeps, from their words to what they start and say."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from helpers import run_main
from small_runs import TINY, train
from small_sweeps import make_sweep

from RLM_clean import sweep
from RLM_clean.sweep import __main__ as commands
from RLM_clean.sweep import local, slurm, states
from RLM_clean.sweep.plan import Plan, read_plan
from RLM_clean.sweep.slurm import Resources


def words(folder: Path, *more: str, **options: Any) -> list[str]:
    """The command line of a sweep of tiny runs; what `more` gives or varies is left out before it."""
    given = {name.removeprefix('--').split('=')[0] for name in more}
    values = {'outname': folder, **TINY, **options}
    return [*(f'--{name}={value}' for name, value in values.items() if name not in given), *more]


class Launcher:
    """Takes the place of a launcher, and notes what it is to launch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr(local, 'launch', lambda *what: self.note(what, True))
        monkeypatch.setattr(slurm, 'launch', lambda *what: self.note(what, '77'))
        monkeypatch.setattr(slurm, 'check', lambda: None)

    def note(self, what: tuple[Any, ...], answer: Any) -> Any:
        """What the launcher is called with, and what it answers."""
        self.calls.append(what)
        return answer


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    return Launcher(monkeypatch)


# ---------------------------------------------------------------------- what cannot be run

BAD_WORDS: list[tuple[list[str], str]] = [
    ([], 'nothing varies: give --grid or --repetitions'),
    (['--grid', 'beta=1,x'], "beta='x' is not a number: give one"),
    (['--grid', 'beta='], 'beta= has no values: give some'),
    (['--grid', 'bta=1,2'], "'bta' is not an option: did you mean beta?"),
    (['--grids', 'beta=1,2'], "'--grids' is not an option: did you mean --grid?"),
    (['--grid', 'beta=1,2', '--num_feature=9'], "'--num_feature=9' is not an option: did you mean --num_features?"),
    (['--grid', 'beta=1,2', 'lr=1'], "'lr=1' is not an option"),
    (['--grid', 'num_heads=1,3'], 'num_heads=3 does not divide embedding_dim=8'),
    (['--grid', 'depth=1,2', '--depth=3'], 'depth=3 clashes with the values 1,2 of the grid: leave one out'),
    (['--grid', 'beta=1,2', '--depth=3', '--depth=4'], 'depth is given twice: give it once'),
    (['--grid', 'beta=1,2', '--tie_weights', '--no-tie_weights'], 'tie_weights is given twice'),
    (['--grid', 'beta=1,2', '--seed_sample=1', '--seed_samples=2'], 'seed_sample is given twice'),
    (['--grid', 'beta=1,2', '--grid', 'beta=3'], 'beta is varied twice'),
    (['--zip', 'beta=1,2', 'lr=1,2,3'], '2 of beta, 3 of lr'),
    (['--grid', 'beta=1,2', '--repetitions=0'], '0 is out of range: use a whole number, 1 or more'),
    (['--grid', 'beta=1,2', '--repetitions=few'], "'few' is not a whole number: give one"),
    (['--repetitions=2', '--vary=rule'], 'vary=rule is unknown: use some of rules,sample,model'),
    (
        ['--grid', 'beta=1,2', '--seed=7'],
        'seed=7 is for repetitions: add them, or give seed_rules, seed_sample, seed_model',
    ),
    (['--grid', 'beta=1,2', '--vary=rules,model'], 'vary=rules,model is for repetitions: add them'),
    (['--grid', 'beta=1,2', '--workers=0'], '0 is out of range: use a whole number, 1 or more'),
    (['--grid', 'beta=1,2', '--resume=restart'], "resume='restart' is not for sweeps: use auto"),
    (['--grid', 'beta=1,2', '--launcher=clowd'], "invalid choice: 'clowd'"),
    (['--grid', 'beta=1,2', '--gpus=2'], 'gpus=2 is asked of SLURM: use --launcher slurm'),
    (['--grid', 'beta=1,2', '--threads=many'], "threads='many'"),
    (['--grid', 'beta=1,2', '--device=cuda:99', '--workers=1'], "device='cuda:99' is not on this machine: use auto"),
    (['--grid', 'num_features=8,999999', '--workers=1'], 'num_features=999999 needs '),
    (
        ['--grid', 'beta=1,2', '--outname=/dev/null/sweep'],
        "'/dev/null/sweep' is a folder that cannot be written",
    ),
    (['--grid', 'beta=1,2', '--outname='], 'outname is missing: give the folder of the sweep'),
    (['--sweep', 'none.toml'], 'none.toml cannot be read'),
]


@pytest.mark.parametrize(('more', 'said'), BAD_WORDS, ids=[' '.join(more) for more, _ in BAD_WORDS])
def test_what_cannot_be_run_is_refused_in_one_line_and_nothing_is_written(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        status = sweep.main(words(tmp_path / 'sweep', *more))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, '')
    assert err.startswith('sweep: error: ') and err.count('\n') == 1 and said in err, err
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_sweep_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    before = (plan.folder / 'sweep.json').read_bytes()
    assert sweep.main(words(plan.folder, '--grid', 'beta=1,2', max_iters=25)) == 2
    assert 'max_iters=25 differs from 24 in' in capsys.readouterr().err
    assert sweep.main(words(plan.folder, '--grid', 'beta=1,3')) == 2
    assert 'beta=2 is in' in capsys.readouterr().err
    assert (plan.folder / 'sweep.json').read_bytes() == before


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(['statu', 'results/my_sweep']) == 2
    assert capsys.readouterr().err == "sweep: error: 'statu' is not a command: did you mean status?\n"


@pytest.mark.parametrize('command', ['status', 'collect', 'work'])
def test_commands_on_a_folder_ask_for_one_of_a_sweep(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([command, str(tmp_path)]) == 2
    assert 'has no file sweep.json: give the folder of a sweep' in capsys.readouterr().err
    with contextlib.suppress(SystemExit):  # the parser of a run's options, which a worker takes, ends by itself
        assert sweep.main([command]) == 2
    assert capsys.readouterr().err == 'sweep: error: the following arguments are required: FOLDER\n'


def test_a_worker_takes_no_options_of_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    assert sweep.main(['work', str(plan.folder), '--lr=3']) == 2
    assert capsys.readouterr().err == 'sweep: error: lr is fixed by the sweep: leave --lr out\n'
    for part in ('0/2', '3/2', '2', 'a/b'):
        with pytest.raises(SystemExit, match='2'):
            sweep.main(['work', str(plan.folder), f'--part={part}'])
        assert '--part' in capsys.readouterr().err


# ---------------------------------------------------------------------- what is started


def test_a_dry_run_lists_the_runs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = words(tmp_path / 'sweep', '--grid', 'beta=1,2', '--grid', 'depth=1,2', '--workers=2', '--dry-run')
    assert sweep.main(line) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f'beta{beta}_depth{depth}  to train' for beta in (1, 2) for depth in (1, 2)),
        f'{tmp_path / "sweep"}: 4 runs, 4 to train',
    ]
    assert list(tmp_path.iterdir()) == []
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    train(plan.runs[0].config)
    before = {path.name: path.stat().st_mtime_ns for path in plan.folder.iterdir()}
    assert sweep.main([f'--outname={plan.folder}', '--dry-run']) == 0
    assert capsys.readouterr().out.splitlines()[-3:-1] == ['beta1  there already', 'beta2  to train']
    assert {path.name: path.stat().st_mtime_ns for path in plan.folder.iterdir()} == before


def test_options_of_the_run_reach_every_run_and_the_machine_is_not_part_of_the_sweep(
    tmp_path: Path, launcher: Launcher
) -> None:
    line = words(tmp_path / 'sweep', '--grid', 'beta=1,2', '--zip', 'depth=1,2', 'lr=0.1,0.2', '--repetitions=2')
    assert sweep.main([*line, '--workers=3', '--group=2', '--seed=4', '--vary=model']) == 0
    plan, workers, group = launcher.calls[0]
    assert (workers, group, plan.repetitions, plan.seed, plan.vary) == (3, 2, 2, 4, ('model',))
    assert [run.name for run in plan.runs[:2]] == ['beta1_depth1_lr0.1_r1', 'beta1_depth2_lr0.2_r1']
    assert {run.config.num_features for run in plan.runs} == {8}
    assert {(run.config.threads, run.config.device) for run in plan.runs} == {('1', 'cpu')}
    stored = json.loads((plan.folder / 'sweep.json').read_text())
    assert not {'group', 'groups', 'device', 'workers'} & (stored.keys() | stored['options'].keys())
    # Named alone, the folder says the rest; more may be added, and how runs are grouped may change.
    assert sweep.main([f'--outname={plan.folder}']) == 0
    assert launcher.calls[1][0].runs == [
        type(run)(run.name, _on_this_machine(run.config), run.point, run.repetition) for run in plan.runs
    ]
    assert sweep.main([f'--outname={plan.folder}', '--group=3']) == 0 and launcher.calls[2][2] == 3
    assert sweep.main([*line, '--grid=beta=1,2,3', '--seed=4', '--vary=model']) == 2
    assert sweep.main([word.replace('beta=1,2', 'beta=1,2,3') for word in line] + ['--seed=4', '--vary=model']) == 0
    assert len(read_plan(plan.folder).runs) == 12


def _on_this_machine(config: Any) -> Any:
    return type(config)(**{**config.to_dict(), 'device': 'auto'})


def test_slurm_is_asked_for_what_the_words_say(
    tmp_path: Path, launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(tmp_path / 'sweep', '--repetitions=20', '--launcher=slurm', '--gpus=1', '--minutes=5', '--group=4')
    assert sweep.main(line) == 0
    plan, workers, group, resources = launcher.calls[0]
    assert (len(plan.runs), workers, group, resources) == (20, 16, 4, Resources(gpus=1, minutes=5))
    assert 'job 77 of SLURM' in capsys.readouterr().out


def test_failed_runs_are_tried_again_only_when_asked(
    tmp_path: Path, launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    states.record_failure(plan.runs[0].config.outname, 'it had to')
    assert sweep.main([f'--outname={plan.folder}', '--workers=1']) == 1
    out = capsys.readouterr().out
    assert '2 runs, 1 of them to train' in out and 'beta1 failed: it had to' in out
    assert sweep.main([f'--outname={plan.folder}', '--workers=1', '--retry-failed']) == 0
    assert '2 runs, 2 of them to train' in capsys.readouterr().out


def test_a_driver_whose_workers_die_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, 'launch', mock.Mock(side_effect=local.DeadWorkersError('a worker ended')))
    assert sweep.main(words(tmp_path / 'sweep', '--grid', 'beta=1,2')) == 1
    assert capsys.readouterr().err == 'sweep: error: a worker ended; the same command goes on from there\n'
    monkeypatch.setattr(local, 'launch', mock.Mock(side_effect=KeyboardInterrupt))
    assert sweep.main(words(tmp_path / 'sweep', '--grid', 'beta=1,2')) == 130


@pytest.mark.parametrize('closed', [True, False])
def test_output_that_cannot_be_written_changes_no_exit_status(
    closed: bool, tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed by >&-, or on a full disk."""
    plan = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    train(plan.runs[0].config)
    with open('/dev/full', 'w') as full:
        for name in ('stdout', 'stderr'):
            monkeypatch.setattr(sys, name, None if closed else full)
        assert sweep.main(['status', str(plan.folder)]) == 0
        assert sweep.main(['collect', str(plan.folder)]) == 0
        assert sweep.main([f'--outname={plan.folder}', '--dry-run']) == 0
        assert sweep.main([f'--outname={plan.folder}', '--workers=1']) == 0
        assert sweep.main(['status', str(tmp_path)]) == 2
    assert (plan.folder / 'runs.csv').exists() and len(launcher.calls) == 1


@pytest.mark.slow
def test_sweeps_start_as_a_script_from_any_folder_and_as_a_module(tmp_path: Path) -> None:
    for start in (('RLM_clean/sweep/__main__.py',), ('-m', 'RLM_clean.sweep')):
        done = run_main(['--help'], start)
        assert (done.returncode, done.stderr) == (0, '')
        assert '--repetitions R' in done.stdout and 'status FOLDER' in done.stdout
    line = words(tmp_path / 'sweep', '--grid', 'beta=1,2', max_iters=4)
    done = run_main(line, ('RLM_clean/sweep/__main__.py',))
    assert (done.returncode, done.stderr) == (0, '') and '\n2 runs: 2 done\n' in done.stdout


def test_two_drivers_that_begin_a_sweep_together_agree_on_it(tmp_path: Path) -> None:
    """The one that comes second adds to what the first has written."""
    first = make_sweep(tmp_path / 'sweep', 'beta=1,2')
    asked = Plan(first.folder, first.axes, first.options, execution=first.execution)
    more = make_sweep(tmp_path / 'other', 'beta=1,2,3')
    assert commands.begin(asked).runs == first.runs
    grown = commands.begin(Plan(first.folder, more.axes, first.options, execution=first.execution))
    assert (
        [run.name for run in grown.runs]
        == ['beta1', 'beta2', 'beta3']
        == [run.name for run in read_plan(first.folder).runs]
    )
