"""torch's optimizers for runs that are not compiled: the same steps without the start of torch's compiler.

torch wraps the methods of its optimizers so that they import its compiler at their first call, which takes as long as
importing torch itself and is of use to `torch.compile` alone. This library traces its own steps (training/step.py)
and never compiles an optimizer, so the methods are taken without their wrappers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import optim


class _Bookkeeping:
    add_param_group: Any = inspect.unwrap(optim.Optimizer.add_param_group)
    zero_grad: Any = inspect.unwrap(optim.Optimizer.zero_grad)
    state_dict: Any = inspect.unwrap(optim.Optimizer.state_dict)
    load_state_dict: Any = inspect.unwrap(optim.Optimizer.load_state_dict)


class SGD(_Bookkeeping, optim.SGD):
    """torch's SGD with momentum."""

    step: Any = torch.no_grad()(inspect.unwrap(optim.SGD.step))


class AdamW(_Bookkeeping, optim.AdamW):
    """torch's AdamW."""

    step: Any = torch.no_grad()(inspect.unwrap(optim.AdamW.step))
