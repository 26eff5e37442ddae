"""Every command and every Python snippet of the user documents runs, in order, on a fresh copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ('main_test.ipynb', 'rlm_data_generation.ipynb')
# What a run is cut down to where a command names no length of its own.
SHORT = {'max_iters': '40', 'test_size': '256', 'PYTHONWARNINGS': 'ignore'}
STAIRCASE = 'python -m examples.staircase\n'


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    return copy_of_the_project(tmp_path_factory.mktemp('fresh') / 'project')


def copy_of_the_project(folder):
    """A folder with the files that git tracks."""
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout
    for name in files.decode().split('\0')[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder


def environment(folder):
    """`python` and `jupyter` are those of the tests, and so is what code.sh finds."""
    scripts = folder.parent / 'bin'
    scripts.mkdir(exist_ok=True)
    for name in ('python', 'python3'):
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        script.chmod(0o755)
    jupyter = scripts / 'jupyter'
    jupyter.write_text(f'#!/bin/sh\nexec {sys.executable} -m jupyter "$@"\n')
    jupyter.chmod(0o755)
    # What `source .venv/bin/activate` and code.sh expect of an environment that was installed.
    venv = folder / '.venv/bin'
    venv.mkdir(parents=True, exist_ok=True)
    for script in scripts.iterdir():
        shutil.copy(script, venv / script.name)
    (venv / 'activate').write_text(f'PATH={venv}:$PATH\n')
    requirements = ''.join((folder / name).read_text() for name in ('requirements-dev.txt', 'requirements.txt'))
    (folder / '.venv/.installed-requirements').write_text(requirements)
    path = f'{scripts}:{os.environ["PATH"]}'
    return {**os.environ, **SHORT, 'PATH': path, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1', 'PYTHON': 'python3'}


def blocks(document, language):
    """The code blocks of a document in one language."""
    text = (ROOT / document).read_text(encoding='utf-8')
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


NOTEBOOK_COMMAND = 'jupyter nbconvert'
# The tests run inside the first of these; the others have tests of their own.
ELSEWHERE = ('bash test.sh', 'pip install -e .', NOTEBOOK_COMMAND)


@pytest.mark.slow
def test_every_command_of_the_readme_runs(copy):
    commands = [block for block in blocks('README.md', 'bash') if not block.startswith(ELSEWHERE)]
    assert len(commands) >= 3
    for block in commands:
        block = block.replace(STAIRCASE, STAIRCASE.rstrip() + ' --max_iters 4 --threads 1\n')
        done = subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', block], cwd=copy, env=environment(copy), capture_output=True, text=True
        )
        assert done.returncode == 0, f'{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    assert (copy / 'results/rlm_128L1_b2_ts32768_1.pt').exists()
    assert len(list(copy.glob('results/*/beta*_lr*.png'))) == 6


@pytest.mark.slow
@pytest.mark.parametrize('document', ['README.md', 'docs/files.md'])
def test_every_python_snippet_of_the_documents_runs(copy, document):
    env = environment(copy)
    subprocess.run(['bash', 'code.sh'], cwd=copy, env=env, check=True, capture_output=True)
    script = '\n'.join(blocks(document, 'python'))
    assert script
    # The longer runs that a snippet starts are cut down as those of the commands are.
    script = script.replace('max_iters=300', 'max_iters=30')
    done = subprocess.run([sys.executable, '-c', script], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_notebooks_execute_by_the_documented_command_where_no_run_was_trained(tmp_path):
    folder = copy_of_the_project(tmp_path / 'project')
    command = next(block for block in blocks('README.md', 'bash') if block.startswith(NOTEBOOK_COMMAND))
    subprocess.run(['bash', '-c', command], cwd=folder, env=environment(folder), check=True, capture_output=True)
    for name in NOTEBOOKS:
        cells = nbformat.read(folder / name, as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == 'code')


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_committed_notebooks_hold_outputs_and_no_errors(name):
    cells = [cell for cell in nbformat.read(ROOT / name, as_version=4).cells if cell.cell_type == 'code']
    outputs = [output for cell in cells for output in cell.outputs]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert all(output.output_type != 'error' for output in outputs)
    assert (ROOT / name).stat().st_size < 1.5e6


@pytest.mark.slow
def test_the_package_installs_and_imports_from_anywhere(copy, tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)
    python = tmp_path / 'venv/bin/python'
    site = next((tmp_path / 'venv/lib').glob('python3*')) / 'site-packages'
    # The packages of the tests stand in for a download of the dependencies.
    packages = [path for path in sys.path if path.endswith('site-packages')]
    (site / 'dependencies.pth').write_text('\n'.join(packages) + '\n')
    install = [python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '-e', str(copy)]
    subprocess.run([*install, '--prefix', str(tmp_path / 'venv'), '--force-reinstall'], check=True)
    command = tmp_path / 'venv/bin/rlm-train'
    env = {**os.environ, 'PYTHONPATH': ''}
    done = subprocess.run([command, '--help'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and '--num_features' in done.stdout
    code = 'import RLM_clean; print(RLM_clean.__file__)'
    found = subprocess.run([python, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(copy))
