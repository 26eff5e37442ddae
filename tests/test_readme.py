"""What the README says of the package is so. test_docs.py runs its commands and snippets."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from documents import blocks, copy_of_the_project
from helpers import ROOT

from RLM_clean import checkpoints, exact, inference, measures, runs
from RLM_clean.config import Config
from RLM_clean.datasets import RLM
from RLM_clean.exact import entropies
from RLM_clean.sweep.names import run_name

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


LOG = (ROOT / 'docs/log.md').read_text(encoding='utf-8')


def section(heading: str) -> str:
    """The text under a heading."""
    return TEXT.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= 1200


def test_the_floor_of_the_default_run_is_the_one_that_is_shown() -> None:
    c = Config(outname='unused')
    floor = entropies.conditional_entropy(RLM(c.num_features, c.num_layers, c.beta, c.seed_rules, c.seed_sample))
    assert f'\nfloor {floor:.4f}, excess over it ' in section('Two commands')


def test_the_losses_that_are_shown_belong_together() -> None:
    """The test loss is the floor plus the excess, and the best one lies between the two."""
    numbers = re.search(r'last test loss ([\d.]+), best ([\d.]+) .*\nfloor ([\d.]+), excess over it ([\d.]+)', TEXT)
    assert numbers is not None
    last, best, floor, excess = map(float, numbers.groups())
    assert last == pytest.approx(floor + excess, abs=1.1e-4) and floor < best <= last


@pytest.mark.parametrize('name', ['default_run', 'showcase'])
def test_the_pictures_of_runs_have_the_size_that_runs_draw(name: str) -> None:
    assert f'(docs/images/{name}.png)' in TEXT
    height, width, _ = matplotlib.image.imread(ROOT / f'docs/images/{name}.png').shape
    assert width > 1000 and height > 400


def test_the_excess_of_the_counts_is_that_of_the_log() -> None:
    """The README says by how much counting pairs is better than the default run; docs/log.md has the table."""
    counts, run = re.findall(r'^\| 30000 \| 1920000 \| ([\d.]+) \| ([\d.]+) \|', LOG, re.MULTILINE)[0]
    assert f'excess {counts} ' in section('Two commands') and f'excess over it {run} ' in section('Two commands')


def test_names_of_runs_are_those_that_code_sh_gives() -> None:
    default = Config(outname='unused')
    assert f"outname = 'results/{run_name(default)}'" in TEXT
    other = Config(outname='unused', depth=3, optim='adam', lr=2e-3)
    assert f'`{run_name(other)}`' in section('Options')


def test_every_option_is_listed() -> None:
    listed = set(re.findall(r'`(\w+)', section('Options')))
    assert {field.name for field in dataclasses.fields(Config)} <= listed


def test_the_tree_shows_every_folder_of_the_package_and_nothing_else() -> None:
    lines = [line.split('  ')[0] for line in re.findall(r'^ {4}(\S.*)$', section('Where things are'), re.MULTILINE)]
    names = [name for line in lines for name in line.split(', ')]
    assert all((ROOT / name).exists() for name in names)
    packages = {f'RLM_clean/{path.parent.name}/' for path in (ROOT / 'RLM_clean').glob('*/__init__.py')}
    assert packages == {name for name in names if name.startswith('RLM_clean/')} - {'RLM_clean/'}


def test_the_import_paths_of_the_first_readme_still_work() -> None:
    assert checkpoints.load_run is runs.load_run
    assert inference.next_token_probs is exact.inference.next_token_probs
    assert measures.window_entropies is exact.entropies.window_entropies


@pytest.mark.slow
def test_the_package_installs_and_imports_from_anywhere(tmp_path: Path) -> None:
    copy = copy_of_the_project(tmp_path / 'project')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'venv'], check=True)
    python = tmp_path / 'venv/bin/python'
    site = next((tmp_path / 'venv/lib').glob('python3*')) / 'site-packages'
    # The packages of the tests stand in for a download of the dependencies.
    packages = [path for path in sys.path if path.endswith('site-packages')]
    (site / 'dependencies.pth').write_text('\n'.join(packages) + '\n')
    options = ['--quiet', '--no-deps', '--no-build-isolation', '--force-reinstall', '--prefix', str(tmp_path / 'venv')]
    subprocess.run([str(python), '-m', 'pip', 'install', *options, '-e', str(copy)], check=True)
    command = tmp_path / 'venv/bin/rlm-train'
    env = {**os.environ, 'PYTHONPATH': ''}
    done = subprocess.run([command, '--help'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and '--num_features' in done.stdout
    # The first Python block of the README, in a folder outside of the project.
    code = blocks('README.md', 'python')[0] + 'import RLM_clean; print(RLM_clean.__file__)'
    found = subprocess.run([python, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(str(copy))
