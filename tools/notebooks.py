"""Executes notebooks from top to bottom and knows whether their outputs are current: `python -m RLM_clean.notebooks`.

A notebook that was executed holds, beside its outputs, hashes of the code that made them: of its own cells, and of the
modules of this package that it imports, directly or through others. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = (ROOT / 'rlm_data_generation.ipynb', ROOT / 'main_test.ipynb')
MAX_BYTES = 1_500_000

_PACKAGE = 'RLM_clean'
# Where the hashes stand in a notebook's metadata.
_KEY = 'rlm_clean'
_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


class NotebookError(Exception):
    """A notebook that cannot be executed or written, in one line; `details` say more."""

    def __init__(self, message: str, details: str = '') -> None:
        super().__init__(message)
        self.details = details


# ---------------------------------------------------------------------- the hashes of code


def code_of(notebook: NotebookNode, root: Path = ROOT) -> dict[str, str]:
    """Hashes of all code that the outputs of a notebook depend on, by the name of the module; 'cells' are its own."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
    found = {'cells': _digest('\0'.join(cells).encode())}
    waiting = [name for cell in cells for name in _imports(_parsed(cell), '', root)]
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if path is None or name in found:
            continue
        tree = ast.parse(path.read_bytes())
        found[name] = _digest('\0'.join(_shape(tree)).encode())
        if path.name == '__init__.py':  # what a package keeps beside its modules, such as the style of figures
            data = sorted(p for p in path.parent.iterdir() if p.is_file() and p.suffix not in ('.py', '.pyc'))
            found |= {f'{name}/{file.name}': _digest(file.read_bytes()) for file in data if file.name[0] != '.'}
        waiting += _imports(tree, name if path.name == '__init__.py' else name.rpartition('.')[0], root)
    return dict(sorted(found.items()))


def _parsed(cell: str) -> ast.AST:
    """A cell as Python, without the lines that only IPython knows."""
    lines = ['pass' if line.lstrip().startswith(('%', '!')) else line for line in cell.splitlines()]
    return ast.parse('\n'.join(lines))


def _imports(tree: ast.AST, package: str, root: Path) -> list[str]:
    """The modules of the package that a piece of code in `package` imports, with the packages that these are in."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) - node.level + 1] if node.level else []
            source = '.'.join([*above, *([node.module] if node.module else [])])
            names += [source, *(f'{source}.{alias.name}' for alias in node.names)]
    own = [name for name in names if name.split('.')[0] == _PACKAGE]
    parents = [name.rsplit('.', i)[0] for name in own for i in range(1, name.count('.') + 1)]
    return [name for name in own + parents if _file(name, root) is not None]


def _file(name: str, root: Path) -> Path | None:
    """The file of a module; None for a name that is none, such as that of a function."""
    path = root.joinpath(*name.split('.'))
    return next((file for file in (path.with_suffix('.py'), path / '__init__.py') if file.is_file()), None)


def _shape(node: Any) -> Iterator[str]:
    """The syntax tree as words, without docstrings: the same for every version of Python that can read the code.

    `ast.dump` is not: fields came with versions, and empty ones went.
    """
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if name == 'body' and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
            if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty parts
                value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == '')]
            if value is not None and value != []:
                yield f'.{name}'
                yield from _shape(value)
    elif isinstance(node, list):
        yield f'[{len(node)}'
        for part in node:
            yield from _shape(part)
    else:
        yield repr(node)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# ---------------------------------------------------------------------- execution


def execute(notebook: NotebookNode, folder: Path, root: Path = ROOT, timeout: int = 1800) -> None:
    """Executes a notebook from top to bottom in a working folder, on the CPU, and keeps the outputs and the hashes.

    The kernel is this Python, whatever kernels are installed, with the package at `root`, one thread and no settings
    of the user. Of the metadata only what does not change from one execution to the next is left. Raises NotebookError
    for a cell that fails, that takes longer than `timeout` seconds, or that shows a path of this machine.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    code = code_of(notebook, root)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as settings:
        # Without folders to look into, the only kernel is that of the Python that runs this.
        kernel = AsyncKernelManager(kernel_name='python3', kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=timeout,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            extra_arguments=['--log-level=ERROR'],
            resources={'metadata': {'path': str(folder)}},
        )
        try:
            client.execute(cleanup_kc=True, env=_environment(root, settings))
        except CellTimeoutError:
            raise NotebookError(f'{_running(notebook)} takes longer than {timeout} seconds: make it smaller') from None
        except CellExecutionError as error:
            message = f'{_running(notebook)} fails with {error.ename}: {error.evalue.partition(chr(10))[0]}'
            raise NotebookError(message, str(error)) from None
        except (DeadKernelError, AssertionError):  # the latter when nbclient has stopped it on a signal
            raise NotebookError(f'the kernel ended in {_running(notebook)}: stopped, or out of memory') from None
    _clean(notebook, _private(folder, root, Path(settings), Path.home()))
    notebook.metadata.clear()
    notebook.metadata.update(
        {
            'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
            'language_info': {'name': 'python'},
            _KEY: {'code': code},
        }
    )


def _environment(root: Path, settings: str) -> dict[str, str]:
    """The environment of the kernel: the same for everyone, as far as outputs depend on it."""
    ignored = ('MATPLOTLIBRC', 'MPLBACKEND', 'PYTHONPATH')
    own = {name: value for name, value in os.environ.items() if name not in ignored}
    return {
        **own,
        'PYTHONPATH': str(root),
        'PYTHONHASHSEED': '0',
        'PYDEVD_DISABLE_FILE_VALIDATION': '1',
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        'IPYTHONDIR': settings,
        'MPLCONFIGDIR': settings,
    }


def _running(notebook: NotebookNode) -> str:
    """The cell that was executed last, in words."""
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    place = max((i for i, cell in enumerate(cells, 1) if cell.execution_count), default=1)
    return f'code cell {place}'


def _private(*paths: Path) -> set[str]:
    """The paths that tell of this machine: not '/', the home of some users, which every path begins with."""
    return {str(path) for path in paths if path != Path(path.anchor)}


def _clean(notebook: NotebookNode, private: set[str]) -> None:
    """Takes addresses in memory out of the outputs. Raises NotebookError for one that shows a private path."""
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)
        for output in cell.get('outputs', []):
            texts = [output, *([output.data] if 'data' in output else [])]
            for text in texts:
                for name in ('text', 'text/plain', 'text/html'):
                    if name in text:
                        text[name] = _ADDRESS.sub('', text[name])
                        if any(path in text[name] for path in private):
                            raise NotebookError(f'code cell {cell.execution_count} shows a path of this machine')


# ---------------------------------------------------------------------- what is committed


def stale(notebook: NotebookNode, root: Path = ROOT) -> str | None:
    """Why the outputs of a notebook are not those of the code as it is; None where they are."""
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    if not any(cell.outputs for cell in cells):
        return 'it has no outputs'
    if any(output.output_type == 'error' for cell in cells for output in cell.outputs):
        return 'an output is an error'
    made, now = notebook.metadata.get(_KEY, {}).get('code', {}), code_of(notebook, root)
    changed = sorted(name for name in made.keys() | now.keys() if made.get(name) != now.get(name))
    if not made:
        return 'its outputs were not made by this command'
    if changed:
        return f'its outputs are older than {", ".join(changed[:3])}{" and others" if len(changed) > 3 else ""}'
    counts = [cell.execution_count for cell in cells if cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        return 'its cells were not executed from top to bottom'
    return None


def write(notebook: NotebookNode, path: Path) -> int:
    """Writes a notebook, whole or not at all; its size in bytes. Raises NotebookError above 1.5 MB."""
    import nbformat

    content = (nbformat.writes(notebook).rstrip('\n') + '\n').encode()
    if len(content) > MAX_BYTES:
        raise NotebookError(
            f'it would have {len(content) / 1e6:.2f} MB, {MAX_BYTES / 1e6:g} are allowed: use fewer or smaller figures'
        )
    temporary = path.with_name(f'.{path.name}.tmp-{os.getpid()}')
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return len(content)


# ---------------------------------------------------------------------- the command


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done or current, 1 failed or not current, 2 cannot be done."""
    parser = argparse.ArgumentParser(
        prog='python -m RLM_clean.notebooks',
        description='Execute the notebooks from top to bottom, on the CPU, and put the outputs into them.',
    )
    add = parser.add_argument
    add('notebooks', nargs='*', type=Path, default=list(NOTEBOOKS), help='by default the two of the project')
    add('--check', action='store_true', help='only say whether the outputs are those of the code as it is')
    add('--to', type=Path, metavar='DIR', help='write the executed notebooks there and leave these as they are')
    help = 'where the notebooks train and find runs (default: an empty folder, removed at the end)'
    add('--folder', type=Path, metavar='DIR', help=help)
    arguments = parser.parse_args(words)
    try:
        import nbclient  # noqa: F401
        import nbformat
    except ImportError as error:
        return _fail(f'{error.name} is missing: pip install notebook', 2)
    status = 0
    for path in arguments.notebooks:
        try:
            notebook = nbformat.read(path, as_version=4)
        except (OSError, ValueError) as error:
            return _fail(f'{path} cannot be read: {error}', 2)
        if arguments.check:
            why = stale(notebook)
            if why is not None:
                status = _fail(f'{path.name}: {why}: run python -m RLM_clean.notebooks', 1)
            continue
        try:
            with tempfile.TemporaryDirectory() as empty:
                folder = arguments.folder or Path(empty)
                folder.mkdir(parents=True, exist_ok=True)
                execute(notebook, folder.resolve())
            written = path if arguments.to is None else arguments.to / path.name
            written.parent.mkdir(parents=True, exist_ok=True)
            size = write(notebook, written)
        except NotebookError as error:
            print(error.details, file=sys.stderr, end='')
            return _fail(f'{path.name}: {error}', 1)
        print(f'{written}: executed, {size / 1e6:.2f} MB', flush=True)
    return status


def _fail(message: str, status: int) -> int:
    print(f'notebooks: error: {message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
