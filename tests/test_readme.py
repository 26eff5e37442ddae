"""What the README says of the package is so. Its commands and snippets are run by test_docs.py."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import copy_of_the_project
from helpers import ROOT

from RLM_clean.config import Config
from RLM_clean.datasets import RLM
from RLM_clean.exact import entropies

TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


def section(heading: str) -> str:
    """The text under a heading."""
    return TEXT.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]


def test_the_floor_of_the_default_run_is_the_one_that_is_shown() -> None:
    c = Config(outname='unused')
    floor = entropies.conditional_entropy(RLM(c.num_features, c.num_layers, c.beta, c.seed_rules, c.seed_sample))
    assert f'\nfloor {floor:.4f}, excess over it ' in section('Two commands')


def test_every_option_is_listed() -> None:
    listed = set(re.findall(r'`(\w+)', section('Options')))
    assert {field.name for field in dataclasses.fields(Config)} <= listed


def test_what_is_listed_of_the_code_is_there() -> None:
    lines = [line.split('  ')[0] for line in re.findall(r'^ {4}(\S.*)$', section('The code'), re.MULTILINE)]
    names = [name for line in lines for name in line.split(', ')]
    assert len(names) > 20 and all((ROOT / name).exists() for name in names)


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
    code = 'import RLM_clean; print(RLM_clean.__file__)'
    found = subprocess.run([python, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(copy))
