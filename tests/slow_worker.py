"""A worker whose steps take long enough for a run to be caught in the middle; what it computes is the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from torch import Tensor

from RLM_clean.sweep import worker
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.loop import DivergedError, Trainer

# Seconds that a step takes at least.
PACE = 0.05


def work(folder: str, **kinds: Any) -> bool:
    """As `worker.work`, slowly, and without pictures."""
    update, advance = Trainer.update, Ensemble.advance

    def slow_update(self: Trainer, most: int = 1) -> Tensor:
        time.sleep(PACE)
        return update(self, most)

    def slow_advance(self: Ensemble, steps: int, interrupted: Callable[[], bool]) -> dict[int, DivergedError]:
        time.sleep(PACE)
        return advance(self, 1, interrupted)

    with (
        mock.patch.object(Trainer, 'update', slow_update),
        mock.patch.object(Ensemble, 'advance', slow_advance),
        mock.patch('RLM_clean.plots.save_learning_curve'),
    ):
        return worker.work(folder, **kinds)
