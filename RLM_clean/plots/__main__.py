"""Draws several runs into one figure: `python -m RLM_clean.plots results/one results/two`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from RLM_clean.plots.comparison import compare
from RLM_clean.plots.style import save


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process; returns the exit status: 0 done, 2 cannot be drawn."""
    parser = argparse.ArgumentParser(prog='RLM_clean.plots', description='Draw several runs into one figure.')
    parser.add_argument('runs', nargs='+', help="names of runs, or a pattern such as 'results/rlm_*'")
    parser.add_argument('--out', type=Path, default=Path('compare.png'), metavar='FILE', help='.png, .pdf or .svg')
    options = parser.parse_args(words)
    try:
        _check(options.out)
        save(compare(options.runs), options.out)
    except ValueError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f'--out={options.out} cannot be written ({error.strerror}): give another file')
    _say(f'the figure is {options.out}', sys.stdout)
    return 0


def _check(out: Path) -> None:
    if out.is_dir():
        raise ValueError(f'--out={out} is a folder: give a file in it, as {out / "compare.png"}')
    if out.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise ValueError(f'--out={out} has an ending that is not known: use .png, .pdf or .svg')


def _fail(message: str) -> int:
    _say(f'RLM_clean.plots: error: {message}', sys.stderr)
    return 2


def _say(line: str, stream: TextIO | None) -> None:
    """Prints a line. A closed pipe or a full device is not an error: the figure is what matters."""
    if stream is None:
        return
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        # The interpreter flushes its streams once more at its end: what is left goes nowhere.
        with suppress(OSError, ValueError), open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


if __name__ == '__main__':
    sys.exit(main())
