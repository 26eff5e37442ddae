"""The notebooks execute on a fresh clone by one command, and their outputs are those of the committed code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from documents import blocks, copy_of_the_project, environment
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import notebooks
from tools.notebooks import NOTEBOOKS, NotebookError, code_of, execute, main, stale, write

COMMAND = 'python -m RLM_clean.notebooks'


# ---------------------------------------------------------------------- the committed notebooks


@pytest.mark.slow
def test_both_notebooks_execute_by_the_documented_command_where_no_run_was_trained(tmp_path: Path) -> None:
    """On a copy of what git tracks, from a folder without results; the outputs are as small as they must be."""
    folder = copy_of_the_project(tmp_path / 'project')
    assert COMMAND in [
        line.partition('#')[0].strip() for block in blocks('README.md', 'bash') for line in block.split('\n')
    ]
    before = [(folder / path.name).read_bytes() for path in NOTEBOOKS]
    words = ['bash', '-euc', f'{COMMAND} --to ../executed && {COMMAND} --check ../executed/*.ipynb']
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (folder / 'results').iterdir()] == ['.gitkeep']
    assert [(folder / path.name).read_bytes() for path in NOTEBOOKS] == before
    for path in NOTEBOOKS:
        assert stale(nbformat.read(tmp_path / 'executed' / path.name, as_version=4)) is None


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_committed_outputs_hold_figures_and_no_errors_and_are_small(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    outputs = [output for cell in cells for output in cell.outputs]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert all(output.output_type != 'error' for output in outputs)
    assert path.stat().st_size < notebooks.MAX_BYTES


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_committed_outputs_were_made_by_the_committed_code(path: Path) -> None:
    why = stale(nbformat.read(path, as_version=4))
    assert why is None, f'{path.name}: {why}: run {COMMAND}'


# ---------------------------------------------------------------------- the hashes of code

MODULES = {
    '__init__.py': '',
    'used.py': 'from RLM_clean import deeper\nx = 1\n',
    'deeper.py': 'def f():\n    from .parts import inner\n    return 2\n',
    'parts/__init__.py': '',
    'parts/inner.py': 'y = "text"\n',
    'parts/style.mplstyle': 'font.size: 9\n',
    'unused.py': 'z = 3\n',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        path = tmp_path / 'RLM_clean' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def notebook(*cells: str) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell('Words.'), *map(new_code_cell, cells)])


def changed(root: Path, name: str, text: str) -> list[str]:
    """What has another hash when a module has another text."""
    cells = notebook('%matplotlib inline\nfrom RLM_clean import used')
    before = code_of(cells, root)
    (root / 'RLM_clean' / name).write_text(text)
    after = code_of(cells, root)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def test_the_code_of_a_notebook_is_what_it_imports_directly_or_not(root: Path) -> None:
    found = code_of(notebook('%matplotlib inline\nfrom RLM_clean import used'), root)
    assert list(found) == [
        'RLM_clean', 'RLM_clean.deeper', 'RLM_clean.parts', 'RLM_clean.parts.inner', 'RLM_clean.parts/style.mplstyle',
        'RLM_clean.used', 'cells',
    ]  # fmt: skip
    assert list(code_of(notebook('import math'), root)) == ['cells']


@pytest.mark.parametrize(
    ('name', 'text', 'expected'),
    [
        ('used.py', 'from RLM_clean import deeper\nx = 2\n', ['RLM_clean.used']),
        ('deeper.py', 'def f():\n    return 2\n', [
            'RLM_clean.deeper', 'RLM_clean.parts', 'RLM_clean.parts.inner', 'RLM_clean.parts/style.mplstyle',
        ]),
        ('parts/inner.py', 'y = "texts"\n', ['RLM_clean.parts.inner']),
        ('parts/inner.py', 'y = b"text"\n', ['RLM_clean.parts.inner']),
        ('parts/style.mplstyle', 'font.size: 10\n', ['RLM_clean.parts/style.mplstyle']),
        ('unused.py', 'z = 4\n', []),
        ('used.py', '"""Words."""\nfrom RLM_clean import (\n    deeper,  # why\n)\n\nx = (1)\n', []),
        ('deeper.py', 'def f():\n    """Words."""\n\n    from .parts import inner\n    return 2\n', []),
    ],
)  # fmt: skip
def test_a_hash_changes_with_the_code_and_not_with_its_words(
    root: Path, name: str, text: str, expected: list[str]
) -> None:
    assert changed(root, name, text) == expected


def test_hashes_are_the_same_for_every_python(root: Path) -> None:
    """A golden value: syntax trees are described differently by each version, and hashes must not be."""
    source = (
        'class A:\n    def f(self, x: int = 1, *y, **z) -> str:\n        return f"{x!r:>{4}} a" "b"\n\n\nA[1:2, ...]\n'
    )
    (root / 'RLM_clean/used.py').write_text(source)
    assert code_of(notebook('import RLM_clean.used'), root)['RLM_clean.used'] == '8e47788bd52b308f'


# ---------------------------------------------------------------------- whether outputs are current


def executed(root: Path, *cells: str) -> NotebookNode:
    """As if executed: with counts, outputs and hashes."""
    made = notebook(*cells)
    for count, cell in enumerate(made.cells[1:], 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output('stream', text='1')]
    made.metadata['rlm_clean'] = {'code': code_of(made, root)}
    return made


def test_outputs_are_current_until_code_changes(root: Path) -> None:
    made = executed(root, 'from RLM_clean import used', 'used.x')
    assert stale(made, root) is None
    made.cells[0].source = 'Other words.'
    assert stale(made, root) is None
    (root / 'RLM_clean/used.py').write_text('x = 2\n')
    assert stale(made, root) == (
        'its outputs are older than RLM_clean.deeper, RLM_clean.parts, RLM_clean.parts.inner and others'
    )
    made = executed(root, 'from RLM_clean import used', 'used.x')
    made.cells[2].source = 'used.x + 1'
    assert stale(made, root) == 'its outputs are older than cells'


def test_what_was_not_executed_from_top_to_bottom_is_not_current(root: Path) -> None:
    assert stale(notebook('1'), root) == 'it has no outputs'
    made = executed(root, '1', '2')
    made.cells[1].execution_count = 3
    assert stale(made, root) == 'its cells were not executed from top to bottom'
    made = executed(root, '1')
    made.cells[1].outputs = [nbformat.v4.new_output('error', ename='ValueError', evalue='', traceback=[])]
    assert stale(made, root) == 'an output is an error'
    made = executed(root, '1')
    del made.metadata['rlm_clean']
    assert stale(made, root) == 'its outputs were not made by this command'


# ---------------------------------------------------------------------- execution


def test_a_notebook_executes_in_a_folder_of_its_own_by_this_python(tmp_path: Path) -> None:
    """Also where the user has kernels and settings of another kind; the CPU only; nothing is kept that changes."""
    made = notebook(
        'import os, sys, torch\n'
        f'assert sys.executable == {sys.executable!r} and os.getcwd() == {str(tmp_path)!r}\n'
        'assert not torch.cuda.is_available() and torch.get_num_threads() == 1\n'
        'open("here", "w").close()',
        'import matplotlib.pyplot as plt\nfrom RLM_clean import theory\nplt.plot([theory.BETA_FREEZING, 1]);',
        'object(), print("one"), print("two")',
    )
    execute(made, tmp_path)
    assert (tmp_path / 'here').exists()
    assert stale(made) is None
    (figure,), (printed, result) = made.cells[2].outputs, made.cells[3].outputs
    assert 'image/png' in figure.data
    assert printed.text == 'one\ntwo\n' and result.data['text/plain'] == '(<object>, None, None)'
    assert set(made.metadata) == {'kernelspec', 'language_info', 'rlm_clean'}
    assert made.metadata.language_info == {'name': 'python'} and not made.cells[2].metadata


def test_a_cell_that_fails_leaves_the_file_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'a.ipynb'
    nbformat.write(notebook('1', 'raise ValueError("no such run")'), path)
    before = path.read_bytes()
    assert main([str(path)]) == 1
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.ipynb']
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == 'notebooks: error: a.ipynb: code cell 2 fails with ValueError: no such run'


def test_an_output_may_not_show_a_path_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match='code cell 1 shows a path of this machine'):
        execute(notebook('import os; print(os.getcwd())'), tmp_path)


def test_where_the_home_is_the_root_only_the_other_paths_are_private(tmp_path: Path) -> None:
    made, private = notebook('1'), notebooks._private(Path('/'), tmp_path)
    made.cells[1].outputs = [nbformat.v4.new_output('stream', text='KL / excess, 3 steps/s')]
    notebooks._clean(made, private)
    made.cells[1].outputs[0].text += f' in {tmp_path}'
    with pytest.raises(NotebookError, match='shows a path of this machine'):
        notebooks._clean(made, private)


def test_a_notebook_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    made = notebook('1')
    made.cells[1].outputs = [nbformat.v4.new_output('stream', text='x' * notebooks.MAX_BYTES)]
    with pytest.raises(NotebookError, match=re.escape('1.50 MB, 1.5 are allowed: use fewer or smaller figures')):
        write(made, tmp_path / 'a.ipynb')
    assert not os.listdir(tmp_path)


def test_check_says_in_one_line_what_is_not_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'a.ipynb'
    nbformat.write(notebook('1'), path)
    assert main(['--check', str(path)]) == 1
    assert capsys.readouterr().err == f'notebooks: error: a.ipynb: it has no outputs: run {COMMAND}\n'
    nbformat.write(executed(notebooks.ROOT, '1'), path)
    assert main(['--check', str(path)]) == 0
    assert main([str(tmp_path / 'b.ipynb')]) == 2
    assert 'b.ipynb cannot be read' in capsys.readouterr().err
