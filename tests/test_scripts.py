"""code.sh, from its variables to its files, and the three ways to start the training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, SMALL, arguments, environment, run_main

from RLM_clean import sweep
from RLM_clean.config import Config, from_arguments
from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import load
from RLM_clean.sweep.arguments import parse
from RLM_clean.sweep.plan import Plan, make_plan, repetition_seeds

# A python that has every package: it prints what it is to run, a word a line.
ECHO = '#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n'
# The python of these tests, spared the question of its packages, which takes as long as a small run.
REAL = f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nexec "{sys.executable}" "$@"\n'

CodeSh = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A clone of the repository that has code.sh and what it needs, and no .venv."""
    home = tmp_path / 'clone'
    home.mkdir()
    for name in ('code.sh', 'environment.sh', 'requirements.txt'):
        shutil.copy(ROOT / name, home)
    (home / 'RLM_clean').symlink_to(ROOT / 'RLM_clean')
    (tmp_path / 'elsewhere').mkdir()
    return home


@pytest.fixture
def code_sh(home: Path) -> CodeSh:
    """Runs code.sh from another folder with variables of the environment."""

    def run(python: str = ECHO, **variables: object) -> subprocess.CompletedProcess[str]:
        program = home.parent / 'python'
        program.write_text(python)
        program.chmod(0o755)
        # A variable of the tests' own environment is none of the run's.
        names = set(re.findall(r'^(\w+)=\$\{', (home / 'code.sh').read_text(), re.MULTILINE))
        inherited = {name: value for name, value in environment().items() if name not in names}
        return subprocess.run(
            ['bash', '../clone/code.sh'],
            cwd=home.parent / 'elsewhere',
            env={**inherited, 'PYTHON': str(program), **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def config_of(done: subprocess.CompletedProcess[str]) -> Config:
    """The options of the command line that code.sh came to."""
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    start = lines.index('RLM_clean/main.py')
    return from_arguments(lines[start + 1 :])


# ---------------------------------------------------------------------- what reaches main.py


def test_the_variables_of_code_sh_have_the_defaults_of_the_options(code_sh: CodeSh):
    assert config_of(code_sh()) == Config(outname='results/rlm_128L1_b2_ts32768_1')


def test_every_option_is_a_variable_of_code_sh(code_sh: CodeSh):
    words = code_sh().stdout.splitlines()
    named = {re.sub(r'^--(no-)?|=.*', '', word) for word in words if word.startswith('--')}
    assert named == set(Config(outname='run').to_dict())


def test_variables_of_the_environment_reach_main(code_sh: CodeSh):
    options = {
        'dataset': 'rhm', 'num_features': 16, 'num_layers': 3, 'num_synonyms': 4, 'regime': 'offline',
        'train_size': 256, 'max_epochs': 3, 'batch_size': 32, 'accumulation': 2, 'test_size': 100,
        'input_format': 'onehot', 'whitening': 1, 'model': 'transformer_clm', 'depth': 2, 'embedding_dim': 12,
        'num_heads': 3, 'ffwd_size': 2, 'dropout': 0.25, 'objective': 'all', 'optim': 'adam', 'lr': 0.01,
        'momentum': 0.5, 'weight_decay': 0.1, 'grad_clip': 1.5, 'scheduler': 'cosine', 'warmup_time': 3,
        'decay_time': 50, 'max_iters': 77, 'loss_threshold': 0.5, 'seed_rules': 1, 'seed_sample': 2, 'seed_model': 3,
        'print_freq': 9, 'save_freq': 3, 'resume': 'restart', 'device': 'cpu', 'threads': 1, 'dtype': 'bfloat16',
        'beta': 0.5,
    }  # fmt: skip
    switches = {'checkpoints': 0, 'tie_weights': 1, 'deterministic': 'yes', 'tensorboard': 'no'}
    config = config_of(code_sh(**options, **switches, rep=7, results_dir='out'))
    outname = 'out/rhm_16L3_m4_ts256_7'
    expected = Config(outname=outname, **options, checkpoints=False, tie_weights=True, deterministic=True)  # type: ignore[arg-type]
    assert config == expected


def test_num_tokens_is_computed_from_num_layers_unless_it_is_given(code_sh: CodeSh):
    assert config_of(code_sh(num_layers=3)).num_tokens == 8
    assert config_of(code_sh(num_layers=3, num_tokens=5)).num_tokens == 5


def test_an_empty_scheduler_is_a_constant_rate(code_sh: CodeSh):
    assert config_of(code_sh(scheduler='')).scheduler == 'none'


@pytest.mark.parametrize(
    ('variables', 'outname'),
    [
        ({}, 'results/rlm_128L1_b2_ts32768_1'),
        ({'beta': 1.5, 'rep': 2}, 'results/rlm_128L1_b1.5_ts32768_2'),
        ({'num_features': 32, 'num_layers': 4, 'train_size': 1024}, 'results/rlm_32L4_b2_ts1024_1'),
        ({'dataset': 'rhm', 'num_features': 16, 'num_layers': 2}, 'results/rhm_16L2_m8_ts32768_1'),
        ({'results_dir': 'out/deep'}, 'out/deep/rlm_128L1_b2_ts32768_1'),
        ({'outname': 'mine/run'}, 'mine/run'),
    ],
)
def test_the_name_of_the_files_says_what_the_run_is(variables: dict[str, object], outname: str, code_sh: CodeSh):
    assert config_of(code_sh(**variables)).outname == outname


def test_random_seeds_are_drawn_and_printed(code_sh: CodeSh):
    """Two draws of 32 bits agree by chance once in 4e9; there are 6 pairs of draws here."""
    drawn = []
    for _ in range(2):
        done = code_sh(seed_rules='random', seed_model='random')
        config = config_of(done)
        assert f'seed_rules={config.seed_rules}\n' in done.stdout
        assert f'seed_model={config.seed_model}\n' in done.stdout
        assert config.seed_sample == 67890 and 'seed_sample=67890\n' not in done.stdout.split('RLM_clean/main.py')[0]
        drawn += [config.seed_rules, config.seed_model]
    assert len(set(drawn)) == 4


def test_a_switch_that_is_neither_on_nor_off_is_refused(code_sh: CodeSh):
    done = code_sh(checkpoints='maybe')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'error: checkpoints=maybe is neither 1 nor 0: use one of them\n'


def test_values_with_spaces_stay_whole(code_sh: CodeSh):
    assert config_of(code_sh(results_dir='my results')).outname == 'my results/rlm_128L1_b2_ts32768_1'


# ---------------------------------------------------------------------- several values


def sweep_of(done: subprocess.CompletedProcess[str]) -> tuple[Plan, dict[str, str]]:
    """The sweep that code.sh came to, and what else its command line says."""
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    parser = sweep.make_sweep_parser()
    args, given = parse(parser, lines[lines.index('RLM_clean/sweep.py') + 1 :])
    request, execution = sweep.read_request(args, given)
    return make_plan(request, execution), vars(args)


def test_several_values_and_repetitions_make_a_sweep(code_sh: CodeSh):
    plan, _ = sweep_of(code_sh(beta='0.8 1.2 1.8 2.4', num_features='32 64', repetitions=8, max_iters=25000))
    assert plan.folder == Path('results/rlm_L1_ts32768_1_over_num_features_beta')
    assert [(axis.names, axis.points) for axis in plan.axes] == [
        (('num_features',), ((32,), (64,))),
        (('beta',), ((0.8,), (1.2,), (1.8,), (2.4,))),
    ]
    assert plan.repetitions == 8 and len(plan.members) == 64
    assert plan.members[0].config == Config(
        outname='results/rlm_L1_ts32768_1_over_num_features_beta/num_features32_beta0.8_r1',
        beta=0.8, num_features=32, max_iters=25000, threads='1', **repetition_seeds(0, 1),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_sweep_takes_ranges_switches_depths_and_seeds(code_sh: CodeSh):
    values = {'lr': '1e-3..1e-1:3log', 'tie_weights': '0 1', 'num_layers': ' 1\t2', 'beta': '1'}
    plan, said = sweep_of(code_sh(**values, repetitions=2, vary='model', seed=3, workers=2, dry_run=1))
    assert [(axis.names[0], axis.column(axis.names[0])) for axis in plan.axes] == [
        ('num_layers', [1, 2]), ('lr', [1e-3, 1e-2, 1e-1]), ('tie_weights', [False, True]),
    ]  # fmt: skip
    assert {member.config.num_tokens for member in plan.members} == {2, 4}
    assert (plan.vary, plan.seed, said['workers'], said['dry_run']) == (('model',), 3, 2, True)
    assert {member.config.seed_rules for member in plan.members} == {12345}


@pytest.mark.parametrize(
    ('variables', 'folder'),
    [
        ({'repetitions': 3}, 'results/rlm_128L1_b2_ts32768_1_over_seeds'),
        ({'beta': '1 2'}, 'results/rlm_128L1_ts32768_1_over_beta'),
        ({'num_layers': '1 2', 'rep': 2}, 'results/rlm_128_b2_ts32768_2_over_num_layers'),
        ({'num_layers': '1 2', 'num_features': '8 16'}, 'results/rlm_b2_ts32768_1_over_num_features_num_layers'),
        ({'dataset': 'rlm rhm'}, 'results/languages_128L1_b2_ts32768_1_over_dataset'),
        ({'dataset': 'rhm', 'num_synonyms': '2 4'}, 'results/rhm_128L1_ts32768_1_over_num_synonyms'),
        ({'train_size': '64 128', 'regime': 'offline'}, 'results/rlm_128L1_b2_1_over_train_size'),
        ({'depth': '1 2', 'outname': 'mine/sweep'}, 'mine/sweep'),
    ],
)
def test_the_folder_of_a_sweep_says_what_its_runs_share_and_what_varies(
    variables: dict[str, object], folder: str, code_sh: CodeSh
):
    assert sweep_of(code_sh(**variables))[0].folder == Path(folder)


def test_what_a_sweep_asks_of_slurm_is_passed_on(code_sh: CodeSh):
    _, said = sweep_of(code_sh(beta='1 2', launcher='slurm', partition='gpu', gpus=1, minutes=30))
    assert (said['launcher'], said['partition'], said['gpus'], said['minutes']) == ('slurm', 'gpu', 1, 30)
    assert said['memory'] is None


@pytest.mark.slow
def test_code_sh_trains_a_sweep(code_sh: CodeSh, home: Path):
    done = code_sh(REAL, **SMALL, beta='1 2', repetitions=2)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.endswith('4 runs: 4 done\n')
    folder = home / 'results' / 'rlm_8L1_ts32768_1_over_beta'
    assert all(load_run(folder / f'beta{beta}_r{r}').done for beta in (1, 2) for r in (1, 2))
    bad = code_sh(REAL, **SMALL, beta='1 -2', repetitions=2)
    assert (bad.returncode, bad.stderr.count('\n')) == (2, 1) and 'beta=-2.0 is out of range' in bad.stderr


# ---------------------------------------------------------------------- a whole run


def test_code_sh_trains_once_and_again_only_when_it_is_told_to(code_sh: CodeSh, home: Path):
    """From another folder; the second call says that the run is complete and how to force it, and touches nothing."""
    variables = {**SMALL, 'seed_model': 'random', 'threads': 1}
    done = code_sh(REAL, **variables)
    assert (done.returncode, done.stderr) == (0, '')
    outname = home / 'results' / 'rlm_8L1_b2_ts32768_1'
    run = load_run(outname)
    assert run.done and run.steps == [0, 1, 2, 3, 4]
    variables['seed_model'] = run.config.seed_model
    assert f'seed_model={run.config.seed_model}\n' in done.stdout
    last = done.stdout.splitlines()[-4:]
    assert last[0] == 'done at step 4'
    losses = [record['testloss'] for record in run.dynamics]
    best = f'best {min(losses):.4f} at step {losses.index(min(losses))}'
    assert last[1] == f'last test loss {losses[-1]:.4f}, {best} (nats)'
    assert f'floor {run.entropy:.4f}, excess over it {run.dynamics[-1]["excess"]:.4f}' in last[2]
    assert 'results/rlm_8L1_b2_ts32768_1.pt' in last[3] and 'results/rlm_8L1_b2_ts32768_1.png' in last[3]
    assert list((home.parent / 'elsewhere').iterdir()) == []

    times = {path.name: path.stat().st_mtime_ns for path in outname.parent.iterdir()}
    again = code_sh(REAL, **variables)
    assert (again.returncode, again.stderr) == (0, '')
    assert again.stdout.splitlines()[0] == 'complete at step 4; it is not trained again (resume=restart does)'
    assert again.stdout.splitlines()[1:] == last[1:]
    assert {path.name: path.stat().st_mtime_ns for path in outname.parent.iterdir()} == times

    anew = code_sh(REAL, **variables, resume='restart')
    assert anew.returncode == 0 and anew.stdout.splitlines()[-4:] == last
    assert {path.name for path in outname.parent.iterdir()} == set(times)
    assert all(path.stat().st_mtime_ns > times[path.name] for path in outname.parent.iterdir())


def test_a_bad_variable_comes_back_as_one_line_and_status_2(code_sh: CodeSh, home: Path):
    done = code_sh(REAL, **SMALL, lr='fast')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == "rlm-train: error: argument --lr: 'fast' is not a number: give one\n"
    assert not (home / 'results').exists()


def test_no_python_is_told_in_one_line(code_sh: CodeSh, home: Path):
    """With a PATH that has the tools of the shell alone."""
    tools = home.parent / 'tools'
    tools.mkdir()
    for name in ('bash', 'dirname'):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    done = code_sh(PATH=tools, PYTHON='python-that-is-not-there')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and 'install one, or name it as PYTHON=' in done.stderr
    assert not (home / '.venv').exists()


# ---------------------------------------------------------------------- packages

# A python without packages, whose virtual environment has a python that prints what it is to run; a file `offline`
# makes it fail to install.
BARE = """#!/bin/sh
case "$*" in
    "-c import sys"*) exit 0 ;;
    "-m venv .venv") mkdir -p .venv/bin && cp ../python .venv/bin/python && exit 0 ;;
    "-m pip install"*) [ ! -e offline ] && echo "installing $*" && exit 0 ;;
    "RLM_clean/main.py"*) printf "%s\n" "$@" && exit 0 ;;
esac
exit 1
"""


def test_missing_packages_are_installed_once_into_a_virtual_environment(code_sh: CodeSh, home: Path):
    first = code_sh(BARE)
    assert 'setting up .venv with requirements.txt' in first.stdout
    assert re.search(r'installing .* -r requirements\.txt\n', first.stdout)
    assert config_of(first).outname == 'results/rlm_128L1_b2_ts32768_1'
    second = code_sh(BARE)
    assert config_of(second) == config_of(first)
    assert 'setting up' not in second.stdout and 'installing' not in second.stdout


def test_an_installation_that_failed_is_told_and_begun_again(code_sh: CodeSh, home: Path):
    (home / 'offline').touch()
    failed = code_sh(BARE)
    assert failed.returncode == 2 and 'RLM_clean/main.py' not in failed.stdout
    assert failed.stderr.startswith('error: the packages of requirements.txt could not be installed')
    (home / 'offline').unlink()
    assert 'installing' in code_sh(BARE).stdout


def test_packages_are_installed_again_when_the_requirements_changed(code_sh: CodeSh, home: Path):
    code_sh(BARE)
    (home / 'requirements.txt').write_text('torch\n')
    assert 'installing' in code_sh(BARE).stdout


# ---------------------------------------------------------------------- the ways to start


def test_main_starts_as_a_module_and_trains(tmp_path: Path):
    done = run_main(arguments(outname=tmp_path / 'run', max_iters=2), start=('-m', 'RLM_clean.main'))
    assert (done.returncode, done.stderr) == (0, '')
    assert 'done at step 2' in done.stdout
    assert load(tmp_path / 'run.pt')['output']['step'] == 2


def test_main_starts_as_a_script_from_any_folder(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'RLM_clean' / 'main.py'), '--help'],
        cwd=tmp_path,
        env={name: value for name, value in environment().items() if name != 'PYTHONPATH'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert '--num_features' in done.stdout


def test_rlm_train_is_the_same_program(tmp_path: Path):
    program = Path(sys.executable).parent / 'rlm-train'
    if not program.exists():
        pytest.skip('the package is not installed: pip install -e .')
    done = subprocess.run(
        [str(program), *arguments(outname=tmp_path / 'run', lr=-1)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and 'lr=-1.0 is out of range' in done.stderr
    assert os.listdir(tmp_path) == []
