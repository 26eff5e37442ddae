"""Executes notebooks from top to bottom and writes the outputs into them: `python -m tools.notebooks`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = (ROOT / 'rlm_data_generation.ipynb', ROOT / 'main_test.ipynb')
MAX_BYTES = 1_500_000

_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


class NotebookError(Exception):
    """A notebook cannot be executed or written. The message is one line, `details` may hold a traceback."""

    def __init__(self, message: str, details: str = '') -> None:
        super().__init__(message)
        self.details = details


def clear(notebook: NotebookNode) -> None:
    """Removes all outputs, and the metadata that would change from one execution to the next."""
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)
        if cell.cell_type == 'code':
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.clear()
    notebook.metadata['kernelspec'] = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    notebook.metadata['language_info'] = {'name': 'python'}


def execute(notebook: NotebookNode, folder: Path, root: Path = ROOT, timeout: int = 1800) -> None:
    """Executes a notebook from top to bottom in a working folder, on the CPU with one thread, and keeps the outputs.

    The kernel is this Python, whatever kernels are installed, with the package at `root` and without settings of the
    user. Raises NotebookError if a cell fails, takes longer than `timeout` seconds, or shows a path of this machine.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    clear(notebook)
    with tempfile.TemporaryDirectory() as settings:
        # Without folders to search, the only kernel is the Python that runs this.
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
        except (DeadKernelError, AssertionError):  # nbclient raises the latter if a signal stopped it
            raise NotebookError(f'the kernel ended in {_running(notebook)}: stopped, or out of memory') from None
        notebook.metadata['language_info'] = {'name': 'python'}
        clean(notebook, [folder, root, Path(settings), Path.home()])


def _environment(root: Path, settings: str) -> dict[str, str]:
    """The environment of the kernel, without what would make outputs differ from one user to another."""
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
    """The name of the cell that was executed last."""
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    place = max((i for i, cell in enumerate(cells, 1) if cell.execution_count), default=1)
    return f'code cell {place}'


def clean(notebook: NotebookNode, private: list[Path]) -> None:
    """Removes memory addresses from the outputs. Raises NotebookError for an output that shows a private path."""
    paths = [str(path) for path in private if path != Path(path.anchor)]  # every path begins with '/'
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            for text in (output, output.get('data', {})):
                for name in ('text', 'text/plain', 'text/html'):
                    if name in text:
                        text[name] = _ADDRESS.sub('', text[name])
                        if any(path in text[name] for path in paths):
                            raise NotebookError(f'code cell {cell.execution_count} shows a path of this machine')


def write(notebook: NotebookNode, path: Path) -> int:
    """Writes a notebook atomically; returns its size in bytes. Raises NotebookError above 1.5 MB."""
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


def main(words: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 a cell failed, 2 a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog='python -m tools.notebooks',
        description='Execute the notebooks from top to bottom, on the CPU, and write the outputs into them.',
    )
    add = parser.add_argument
    add('notebooks', nargs='*', type=Path, default=list(NOTEBOOKS), help='default: the two of the project')
    add('--clear', action='store_true', help='only remove the outputs')
    add('--to', type=Path, metavar='DIR', help='write the executed notebooks there and leave these unchanged')
    help = 'where the notebooks train and find runs (default: an empty folder, removed at the end)'
    add('--folder', type=Path, metavar='DIR', help=help)
    arguments = parser.parse_args(words)
    try:
        import nbclient  # noqa: F401
        import nbformat
    except ImportError as error:
        return _fail(f'{error.name} is missing: pip install notebook', 2)
    for path in arguments.notebooks:
        try:
            notebook = nbformat.read(path, as_version=4)
        except (OSError, ValueError) as error:
            return _fail(f'{path} cannot be read: {error}', 2)
        try:
            if arguments.clear:
                clear(notebook)
            else:
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
        print(f'{written}: {"cleared" if arguments.clear else "executed"}, {size / 1e6:.2f} MB', flush=True)
    return 0


def _fail(message: str, status: int) -> int:
    print(f'notebooks: error: {message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
