"""Packages that this one can do without: the extras of pyproject.toml."""

from __future__ import annotations

import importlib
from typing import Any


def needed(package: str, by: str, extra: str | None = None) -> Any:
    """A package that is an extra of this one, imported. Raises ModuleNotFoundError, with the command, without it.

    `extra` is the name of the extra where it is not that of the package.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f'{by} needs {package}, which is not installed: pip install -e ".[{extra or package}]"', name=package
        ) from None
