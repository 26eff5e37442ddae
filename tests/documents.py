"""The documents of the project, and a fresh copy of the project in which their commands are tried."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT

# The pages whose commands and snippets are run, in this order.
PAGES = ['README.md', 'CONTRIBUTING.md', *sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md'))]

# The length of a run that names none: variables of code.sh. It is not part of the name of a run's files.
SHORT = {'max_iters': '20', 'workers': '1', 'PYTHONWARNINGS': 'ignore'}


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and the line that it begins at."""

    language: str
    text: str
    line: int


def parts(document: str) -> list[Block]:
    """The blocks of code of a document, in order."""
    found: list[Block] = []
    lines: list[str] = []
    language, start = None, 0
    for number, line in enumerate((ROOT / document).read_text(encoding='utf-8').splitlines(), 1):
        if language is None:
            if match := re.match(r'```(\w*)$', line):
                language, lines, start = match[1], [], number + 1
        elif line == '```':
            found.append(Block(language, '\n'.join(lines) + '\n', start))
            language = None
        else:
            lines.append(line)
    assert language is None, f'{document}:{start}: a block of code has no end'
    return found


def blocks(document: str, language: str) -> list[str]:
    """The blocks of code of a document in one language, as texts."""
    return [block.text for block in parts(document) if block.language == language]


def commands(document: str) -> list[str]:
    """The lines of the shell blocks of a document."""
    return [line for text in blocks(document, 'bash') for line in text.splitlines()]


def copy_of_the_project(folder: Path) -> Path:
    """A folder with the current content of the files that git tracks, and with new files that git does not ignore."""
    words = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    files = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    for name in files.decode().split('\0')[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process in a copy of the project: `python`, and what code.sh finds, is that of the tests."""
    # What `source .venv/bin/activate` and code.sh expect of an environment that was installed.
    scripts = folder / '.venv/bin'
    scripts.mkdir(parents=True, exist_ok=True)
    for name in ('python', 'python3'):
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        script.chmod(0o755)
    (scripts / 'activate').write_text(f'PATH={scripts}:$PATH\n')
    requirements = ''.join((folder / name).read_text() for name in ('requirements-dev.txt', 'requirements.txt'))
    (folder / '.venv/.installed-with-package-requirements').write_text(requirements)
    path = f'{scripts}:{os.environ["PATH"]}'
    return {**os.environ, **SHORT, 'PATH': path, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1', 'PYTHON': 'python3'}
