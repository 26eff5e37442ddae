"""Draws several runs into one figure: `python -m RLM_clean.plots results/one results/two`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from RLM_clean.config import similar
from RLM_clean.plots.comparison import compare
from RLM_clean.plots.style import save


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process; returns the exit status: 0 done, 2 cannot be drawn."""
    try:
        runs, out = _parse(words)
        try:
            save(compare(runs), out)
        except OSError as error:
            raise ValueError(f'--out={out} cannot be written ({error.strerror}): give another file') from None
    except ValueError as error:
        _say(f'RLM_clean.plots: error: {error}', sys.stderr)
        return 2
    _say(f'the figure is {out}', sys.stdout)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f'{message}: see --help')


def _parse(words: Sequence[str] | None) -> tuple[list[str], Path]:
    """The runs, and the file of the figure. Raises ValueError, with one sentence, for what cannot be drawn."""
    parser = _Parser(prog='RLM_clean.plots', description='Draw several runs into one figure.', allow_abbrev=False)
    parser.add_argument('runs', nargs='*', help="names of runs, or a pattern such as 'results/rlm_*'")
    parser.add_argument('--out', type=Path, default=Path('compare.png'), metavar='FILE', help='.png, .pdf or .svg')
    options, unknown = parser.parse_known_intermixed_args(words)  # --out may stand between the runs
    if unknown:
        raise ValueError(f'{unknown[0]!r} is not an option: {similar(unknown[0].split("=")[0], ["--out", "--help"])}')
    if not options.runs:
        raise ValueError("no run is named: give names of runs, or a pattern such as 'results/rlm_*'")
    _check(options.out)
    return options.runs, options.out


def _check(out: Path) -> None:
    if out.is_dir():
        raise ValueError(f'--out={out} is a folder: give a file in it, as {out / "compare.png"}')
    if out.suffix.lower() not in ('.png', '.pdf', '.svg'):
        raise ValueError(f'--out={out} has an ending that is not known: use .png, .pdf or .svg')


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
