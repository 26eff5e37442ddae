"""code.sh, from its variables to its files, and the three ways to start the training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SMALL, arguments, environment, run_main

from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import load

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

    def run(*words: str, python: str = ECHO, **variables: object) -> subprocess.CompletedProcess[str]:
        program = home.parent / 'python'
        program.write_text(python)
        program.chmod(0o755)
        # A variable of the tests' own environment is none of the run's.
        names = set(re.findall(r'^(\w+)=\$\{', (home / 'code.sh').read_text(), re.MULTILINE))
        inherited = {name: value for name, value in environment().items() if name not in names}
        return subprocess.run(
            ['bash', '../clone/code.sh', *words],
            cwd=home.parent / 'elsewhere',
            env={**inherited, 'PYTHON': str(program), **{name: str(value) for name, value in variables.items()}},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def started(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What code.sh gave to Python: the variables, and after -- the arguments."""
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    return lines[lines.index('RLM_clean.sweep.script') + 1 :]


# ---------------------------------------------------------------------- what code.sh passes on


def test_every_variable_is_passed_on_as_the_environment_has_it(code_sh: CodeSh):
    words = started(code_sh(beta='1 2', results_dir='my results', scheduler='', seed_model='random'))
    assert words[-1] == '--'
    names = re.findall(r'^(\w+)=\$\{', (ROOT / 'code.sh').read_text(), re.MULTILINE)
    assert [word.split('=')[0] for word in words[:-1]] == names
    assert {'beta=1 2', 'results_dir=my results', 'scheduler=', 'seed_model=random', 'num_features=128'} <= set(words)


def test_arguments_are_passed_on_after_a_check_of_their_names(code_sh: CodeSh):
    done = code_sh('--beta', '1.5', 'lr=0.1')
    assert started(done)[-4:] == ['--', '--beta', '1.5', 'lr=0.1']
    assert done.stdout.splitlines()[:3] == ['-m', 'RLM_clean.sweep.script', '--check']


def test_help_is_the_list_of_variables(code_sh: CodeSh):
    done = code_sh('--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert 'beta=${beta:-2}' in done.stdout and 'exec' not in done.stdout


def test_a_misspelt_argument_is_refused_before_anything_is_installed(code_sh: CodeSh, home: Path):
    """By a python that has no package."""
    bare = f'#!/bin/sh\ncase "$*" in *--check*|*sys.version_info*) exec "{sys.executable}" "$@";; esac\nexit 1\n'
    done = code_sh('--bta', '1.5', python=bare)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == "code.sh: error: '--bta' is not an option: did you mean beta?\n"
    assert not (home / '.venv').exists() and not (home / 'results').exists()


@pytest.mark.slow
def test_code_sh_trains_a_sweep(code_sh: CodeSh, home: Path):
    done = code_sh(python=REAL, **SMALL, beta='1 2', repetitions=2)
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.splitlines()[-2] == '4 runs: 4 done'
    folder = home / 'results' / 'rlm_8L1_ts32768_d8_test32_it4_1_over_beta'
    assert done.stdout.splitlines()[-1].startswith('`python -m RLM_clean.sweep collect results/')
    assert all(load_run(folder / f'beta{beta}_r{r}').done for beta in (1, 2) for r in (1, 2))
    bad = code_sh(python=REAL, **SMALL, beta='1 -2', repetitions=2)
    assert (bad.returncode, bad.stderr.count('\n')) == (2, 1) and 'beta=-2.0 is out of range' in bad.stderr


# ---------------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_code_sh_trains_once_and_again_only_with_resume_restart(code_sh: CodeSh, home: Path):
    """From another folder; the second call says that the run is complete and how to force it, and touches nothing."""
    variables = {**SMALL, 'seed_model': 'random', 'threads': 1}
    done = code_sh(python=REAL, **variables)
    assert (done.returncode, done.stderr) == (0, '')
    (config,) = (home / 'results').glob('*_config.pt')
    name = config.name.removesuffix('_config.pt')
    outname = home / 'results' / name
    run = load_run(outname)
    assert name == f'rlm_8L1_b2_ts32768_d8_test32_sm{run.config.seed_model}_1'
    assert run.done and run.steps == [0, 1, 2, 3, 4]
    variables['seed_model'] = run.config.seed_model
    assert f'seed_model={run.config.seed_model}\n' in done.stdout
    last = done.stdout.splitlines()[-5:]
    assert last[0] == 'done at step 4'
    losses = [record['testloss'] for record in run.dynamics]
    excess = [record['excess'] for record in run.dynamics]
    least = excess.index(min(excess))
    best = f'best {losses[least]:.4f} at step {least}'
    assert last[1] == f'last test loss {losses[-1]:.4f}, {best} (nats)'
    assert f'floor {run.entropy:.4f}, excess over it {run.dynamics[-1]["excess"]:.4f}' in last[2]
    assert f'results/{name}.pt' in last[3] and f'results/{name}.png' in last[3]
    assert 'main_test.ipynb' in last[4] and f'results/{name}' in last[4]
    assert list((home.parent / 'elsewhere').iterdir()) == []

    times = {path.name: path.stat().st_mtime_ns for path in outname.parent.iterdir()}
    again = code_sh(python=REAL, **variables)
    assert (again.returncode, again.stderr) == (0, '')
    assert again.stdout.splitlines()[-5] == 'complete at step 4; it is not trained again (resume=restart does that)'
    assert again.stdout.splitlines()[-4:] == last[1:]
    assert {path.name: path.stat().st_mtime_ns for path in outname.parent.iterdir()} == times

    anew = code_sh(python=REAL, **variables, resume='restart')
    assert anew.returncode == 0 and anew.stdout.splitlines()[-5:] == last
    assert {path.name for path in outname.parent.iterdir()} == set(times)
    assert all(path.stat().st_mtime_ns > times[path.name] for path in outname.parent.iterdir())


def test_a_bad_variable_comes_back_as_one_line_and_status_2(code_sh: CodeSh, home: Path):
    done = code_sh(python=REAL, **SMALL, lr='fast')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == "code.sh: error: argument --lr: 'fast' is not a number: give one\n"
    assert not (home / 'results').exists()


def test_a_missing_python_is_reported_in_one_line(code_sh: CodeSh, home: Path):
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
    "-m RLM_clean.sweep.script"*) printf "%s\n" "$@" && exit 0 ;;
esac
exit 1
"""


# A uv that does the same for that python.
BARE_UV = """#!/bin/sh
case "$*" in
    "venv --quiet --seed --python "*" .venv") mkdir -p .venv/bin && cp ../python .venv/bin/python && exit 0 ;;
    "pip install --quiet --python .venv/bin/python "*) [ ! -e offline ] && echo "installing $*" && exit 0 ;;
esac
exit 1
"""


@pytest.fixture(params=['uv', 'pip'])
def bare_code_sh(request: pytest.FixtureRequest, code_sh: CodeSh, home: Path) -> Callable[[], Any]:
    """code.sh with a python that has no packages, which are installed by uv or by pip."""
    tools = home.parent / 'bin'
    tools.mkdir()
    (tools / 'uv').write_text(BARE_UV)
    (tools / 'uv').chmod(0o755)
    path = f'{tools}:{os.environ["PATH"]}'
    variables = {'PATH': path} if request.param == 'uv' else {'PATH': path, 'UV': ''}
    return lambda: code_sh(python=BARE, **variables)


def test_missing_packages_are_installed_once_into_a_virtual_environment(bare_code_sh: Callable[[], Any]):
    first = bare_code_sh()
    assert 'setting up .venv with requirements.txt' in first.stdout
    assert re.search(r'installing .* -r requirements\.txt\n', first.stdout)
    assert 'beta=2' in started(first)
    second = bare_code_sh()
    assert started(second) == started(first)
    assert 'setting up' not in second.stdout and 'installing' not in second.stdout


def test_an_installation_that_failed_is_reported_and_begun_again(bare_code_sh: Callable[[], Any], home: Path):
    (home / 'offline').touch()
    failed = bare_code_sh()
    assert failed.returncode == 2 and 'RLM_clean.sweep.script' not in failed.stdout
    assert failed.stderr.startswith('error: the packages of requirements.txt could not be installed')
    (home / 'offline').unlink()
    assert 'installing' in bare_code_sh().stdout


def test_packages_are_installed_again_when_the_requirements_changed(bare_code_sh: Callable[[], Any], home: Path):
    bare_code_sh()
    (home / 'requirements.txt').write_text('torch\n')
    assert 'installing' in bare_code_sh().stdout


# ---------------------------------------------------------------------- the ways to start


@pytest.mark.slow
def test_main_starts_as_a_module_and_trains(tmp_path: Path):
    done = run_main(arguments(outname=tmp_path / 'run', max_iters=2), start=('-m', 'RLM_clean.main'))
    assert (done.returncode, done.stderr) == (0, '')
    assert 'done at step 2' in done.stdout
    assert load(tmp_path / 'run.pt')['output']['step'] == 2


@pytest.mark.slow
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


@pytest.mark.slow
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
