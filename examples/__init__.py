"""Published results, one command each. Here is what these commands share: their options and their places."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(name: str, description: str | None, runs: str | None = None) -> argparse.ArgumentParser:
    """The parser of the example with this name: where its runs and its figure are kept, and a quick form.

    `runs` is the example that has the runs, by default this one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, help=f'where the runs are kept, results/{runs or name} by default')
    parser.add_argument('--picture', type=Path, help=f'the figure, {name}.png in that folder by default')
    parser.add_argument('--quick', action='store_true', help='few small models, to try the command out')
    return parser


def places(name: str, options: argparse.Namespace, runs: str | None = None) -> tuple[Path, Path]:
    """The folder of the runs and the file of the figure."""
    folder = options.folder or Path('results', f'{runs or name}_quick' if options.quick else runs or name)
    return folder, options.picture or folder / f'{name}.png'
