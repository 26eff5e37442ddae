"""Small runs that are interrupted in this process at a step of choice."""

from __future__ import annotations

from unittest import mock

from small_runs import train

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import loop
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import Trainer
from RLM_clean.training.signals import Interruption


def train_until(config: Config, stop: int) -> Outcome:
    """Trains from the beginning, or goes on, and saves and stops at step `stop`, as on a signal."""
    before = loop.run

    def run(trainer: Trainer, files: RunFiles, interruption: Interruption) -> bool:
        with mock.patch.object(interruption, 'requested', lambda: trainer.step == stop):
            return before(trainer, files, interruption)

    with mock.patch.object(loop, 'run', run):
        outcome = train(config)
    assert outcome.status == 'interrupted' and outcome.step == stop
    return outcome
