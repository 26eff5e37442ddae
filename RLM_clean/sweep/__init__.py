"""Many runs by one command: python -m RLM_clean.sweep."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from RLM_clean.sweep.__main__ import main as main
    from RLM_clean.sweep.results import Results as Results
    from RLM_clean.sweep.results import collect as collect
    from RLM_clean.sweep.results import load as load

__all__ = ['Results', 'collect', 'load', 'main']

# Imported when first used: a job of SLURM listens for signals before torch is loaded.
_HOMES = {'Results': 'results', 'collect': 'results', 'load': 'results', 'main': '__main__'}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
