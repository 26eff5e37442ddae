"""The notebooks run from top to bottom by one command, and what is committed is small and shows no path or error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from documents import copy_of_the_project, environment
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import notebooks
from tools.notebooks import NOTEBOOKS, NotebookError, clean, clear, execute, main, write


def check_outputs(path: Path) -> None:
    """The notebook was executed from top to bottom, has figures and no errors, and is small."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert all(output.output_type != 'error' and output.get('name') != 'stderr' for output in outputs)
    assert path.stat().st_size < notebooks.MAX_BYTES


# ---------------------------------------------------------------------- the notebooks of the project


@pytest.mark.slow
def test_both_notebooks_run_on_a_fresh_copy_without_any_earlier_run(tmp_path: Path) -> None:
    """The check before a release: the command on what git tracks, in an empty folder, into other files."""
    folder = copy_of_the_project(tmp_path / 'project')
    before = [(folder / path.name).read_bytes() for path in NOTEBOOKS]
    words = [sys.executable, '-m', 'tools.notebooks', '--to', str(tmp_path / 'executed')]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (folder / 'results').iterdir()] == ['.gitkeep']
    assert [(folder / path.name).read_bytes() for path in NOTEBOOKS] == before
    for path in NOTEBOOKS:
        check_outputs(tmp_path / 'executed' / path.name)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_committed_outputs_have_figures_and_no_errors_and_are_small(path: Path) -> None:
    check_outputs(path)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_committed_outputs_show_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text()
    assert not re.findall(r'/(?:home|root|tmp|work|Users|mnt|opt|usr)/', re.sub(r'"image/png": ".*"', '', text))


# ---------------------------------------------------------------------- execution


def notebook(*cells: str) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell('Words.'), *map(new_code_cell, cells)])


def test_a_notebook_runs_in_its_folder_with_this_python(tmp_path: Path) -> None:
    """Whatever kernels and settings the user has, on the CPU; nothing is kept that changes between executions."""
    made = notebook(
        'import os, sys\n'
        f'assert sys.executable == {sys.executable!r} and os.getcwd() == {str(tmp_path)!r}\n'
        'assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["CUDA_VISIBLE_DEVICES"] == ""\n'
        'open("here", "w").close()',
        'import matplotlib.pyplot as plt\nimport RLM_clean\nplt.plot([0, 1]);',
        'object(), print("one"), print("two")',
    )
    made.metadata['changes'] = 1
    execute(made, tmp_path)
    assert (tmp_path / 'here').exists()
    (figure,), (printed, result) = made.cells[2].outputs, made.cells[3].outputs
    assert 'image/png' in figure.data
    assert printed.text == 'one\ntwo\n' and result.data['text/plain'] == '(<object>, None, None)'
    assert [cell.execution_count for cell in made.cells[1:]] == [1, 2, 3]
    assert set(made.metadata) == {'kernelspec', 'language_info'}
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
    made = notebook('1')
    made.cells[1].outputs = [new_output('stream', text='KL / excess, 3 steps/s')]
    clean(made, [Path('/'), tmp_path])  # a home of '/' forbids nothing
    for output in (
        new_output('stream', text=f'in {tmp_path}'),
        new_output('display_data', {'text/html': f'{tmp_path}'}),
    ):
        made.cells[1].outputs = [output]
        with pytest.raises(NotebookError, match='shows a path of this machine'):
            clean(made, [Path('/'), tmp_path])


def test_a_notebook_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    made = notebook('1')
    made.cells[1].outputs = [new_output('stream', text='x' * notebooks.MAX_BYTES)]
    with pytest.raises(NotebookError, match=re.escape('1.50 MB, 1.5 are allowed: use fewer or smaller figures')):
        write(made, tmp_path / 'a.ipynb')
    assert not os.listdir(tmp_path)


def test_clear_removes_the_outputs_and_nothing_else(tmp_path: Path) -> None:
    made, expected = notebook('1', '2'), notebook('1', '2')
    for count, (cell, other) in enumerate(zip(made.cells, expected.cells, strict=True)):
        other.id = cell.id
        if count:
            cell.outputs, cell.execution_count = [new_output('stream', text='1')], count
    clear(expected)
    path = tmp_path / 'a.ipynb'
    nbformat.write(made, path)
    assert main(['--clear', str(path)]) == 0
    assert nbformat.read(path, as_version=4) == expected
    assert not expected.cells[1].outputs and expected.cells[1].execution_count is None


def test_a_file_that_is_not_a_notebook_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / 'b.ipynb')]) == 2
    assert 'b.ipynb cannot be read' in capsys.readouterr().err
