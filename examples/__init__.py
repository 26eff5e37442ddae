"""Published results, one command each. Here is what these commands share: their options, their places, their ends."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from RLM_clean.runs import Run


def make_parser(
    name: str, description: str | None, runs: str | None = None, deep: str | None = None
) -> argparse.ArgumentParser:
    """The parser of the example with this name: where its runs and its figure are kept, and a quick form.

    `runs` is the example that has the runs, by default this one. `deep` says what a longer form has, if there is one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help=f'where the runs are kept, results/{runs or name} by default')
    parser.add_argument('--picture', type=Path, help=f'the figure, {name}.png in that folder by default')
    size = parser.add_mutually_exclusive_group()
    if deep is not None:
        size.add_argument('--deep', action='store_true', help=f'{deep}, in results/{runs or name}_deep by default')
    size.add_argument('--quick', action='store_true', help='few small models, to try the command out')
    parser.set_defaults(deep=False)
    return parser


def places(name: str, options: argparse.Namespace, runs: str | None = None) -> tuple[Path, Path]:
    """The folder of the runs and the file of the figure."""
    form = '_deep' if options.deep else '_quick' if options.quick else ''
    folder = options.folder or Path('results', f'{runs or name}{form}')
    return folder, options.picture or folder / f'{name}.png'


def shared_compilation() -> str:
    """The option `compile` of sweeps: on, wherever steps can be compiled.

    A compiled step is shared by the runs of a worker, each of which alone may be too short for it.
    """
    from RLM_clean.training import machine

    return 'on' if machine.can_compile(machine.resolve_device('auto')) else 'auto'


def trained(outname: Path, **values: Any) -> Run:
    """A run with these options, trained if it is not complete yet.

    What cannot be run ends the command with one line and status 2, as in `rlm-train`. A signal ends it with status 1
    when the run is saved.
    """
    from RLM_clean.config import Config
    from RLM_clean.runs import load_run
    from RLM_clean.training import train

    try:
        status = train(Config(outname=str(outname), **values)).status
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        raise SystemExit(2) from None
    if status == 'interrupted':
        raise SystemExit('interrupted: the same command goes on')
    return load_run(outname)
