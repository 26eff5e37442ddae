"""Training: the loop, its step and the backends that take it, ensembles, several processes, the machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from RLM_clean.training.lifecycle import Outcome as Outcome
    from RLM_clean.training.lifecycle import train as train
    from RLM_clean.training.loop import DivergedError as DivergedError
    from RLM_clean.training.loop import Trainer as Trainer

__all__ = ['DivergedError', 'Outcome', 'Trainer', 'train']

# Imported when first used: signals are heard before torch is loaded.
_HOMES = {'train': 'lifecycle', 'Outcome': 'lifecycle', 'Trainer': 'loop', 'DivergedError': 'loop'}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
