"""The documents of the project, and a fresh copy of it in which what they say is tried out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

# What a run is cut down to where a command names no length of its own.
SHORT = {'max_iters': '20', 'test_size': '256', 'workers': '1', 'PYTHONWARNINGS': 'ignore'}


@dataclass(frozen=True)
class Block:
    """A block of code: its text, the line that it begins at, and the headings that it stands under."""

    text: str
    line: int
    headings: tuple[str, ...]


def parts(document: str) -> list[tuple[str, Block]]:
    """The blocks of code of a document, in order, each with its language."""
    found: list[tuple[str, Block]] = []
    headings: list[str] = []
    lines: list[str] = []
    language, start = None, 0
    for number, line in enumerate((ROOT / document).read_text(encoding='utf-8').splitlines(), 1):
        if language is None:
            if match := re.match(r'```(\w*)$', line):
                language, lines, start = match[1], [], number + 1
            elif match := re.match(r'(#+) (.*)', line):
                headings = [*headings[: len(match[1]) - 1], match[2]]
        elif line == '```':
            found.append((language, Block('\n'.join(lines) + '\n', start, tuple(headings))))
            language = None
        else:
            lines.append(line)
    assert language is None, f'{document}:{start}: a block of code has no end'
    return found


def blocks(document: str, language: str) -> list[str]:
    """The blocks of code of a document in one language, as texts."""
    return [block.text for name, block in parts(document) if name == language]


def copy_of_the_project(folder: Path) -> Path:
    """A folder with the files that git tracks, as they are now, and with new ones that it does not ignore."""
    words = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    files = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    for name in files.decode().split('\0')[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Of a process in a copy of the project: `python` is that of the tests, and so is what code.sh finds."""
    # What `source .venv/bin/activate` and code.sh expect of an environment that was installed.
    scripts = folder / '.venv/bin'
    scripts.mkdir(parents=True, exist_ok=True)
    for name in ('python', 'python3'):
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        script.chmod(0o755)
    (scripts / 'activate').write_text(f'PATH={scripts}:$PATH\n')
    requirements = ''.join((folder / name).read_text() for name in ('requirements-dev.txt', 'requirements.txt'))
    (folder / '.venv/.installed-requirements').write_text(requirements)
    path = f'{scripts}:{os.environ["PATH"]}'
    return {**os.environ, **SHORT, 'PATH': path, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1', 'PYTHON': 'python3'}
