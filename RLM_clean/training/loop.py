"""The loop: stochastic gradient descent on sequences of a language, with records, checkpoints and early stopping.

The batch of a step, its dropout masks and its learning rate are functions of the step, so a run that was interrupted
goes on from its newest checkpoint as if nothing had happened, bit for bit.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.datasets import TreeGrammar
from RLM_clean.measures import Language, test
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.training.backends import make_update
from RLM_clean.training.progress import Curves, Progress
from RLM_clean.training.signals import Interruption

# Losses are looked at, and early stopping decided, every so many steps: reading one from a GPU waits for it.
WINDOW = 128
# Sequences are drawn many steps ahead, at most so many tokens at a time.
TOKENS_AHEAD = 2**21


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


class BatchFeed:
    """The training batches of a run by step, drawn ahead in chunks. What is drawn ahead changes nothing."""

    def __init__(self, grammar: TreeGrammar, config: Config, device: torch.device) -> None:
        self.grammar, self.config, self.device = grammar, config, device
        tokens = config.batch_size * config.accumulation * 2**config.num_layers
        self.chunk = max(1, min(WINDOW, TOKENS_AHEAD // tokens))
        self.first = -1

    def __call__(self, step: int, most: int = 1) -> tuple[Tensor, Tensor]:
        """The batches of `most` steps from `step`, or of one where the chunk has no more: inputs and targets.

        Inputs are `(S, A, B, T)`: S steps, A batches whose gradients are accumulated in each.
        """
        accumulation = self.config.accumulation
        first = step - step % self.chunk
        if first != self.first:
            batches = self.grammar.batches(first * accumulation, self.chunk * accumulation, self.config.batch_size)
            # Contiguous, so that each batch is one block of memory.
            self.inputs, self.targets = (
                x.contiguous().to(self.device).unflatten(0, (self.chunk, accumulation))
                for x in init.select_task(*batches, self.config)
            )
            self.first = first
        start = step - first
        stop = start + (most if most <= self.left(step) else 1)
        return self.inputs[start:stop], self.targets[start:stop]

    def left(self, step: int) -> int:
        """How many steps from this one have their batches in one chunk."""
        return self.chunk - step % self.chunk


class Trainer:
    """The state of a run and what changes it: updates and records.

    Steps are compiled where `config.compile` is on (auto is for `machine.choose` to settle). Raises CompilationError
    where that fails.
    """

    def __init__(self, config: Config, language: Language, device: torch.device) -> None:
        self.config, self.language, self.device = config, language, device
        self.model: nn.Module = init.init_model(config).to(device).train()
        _, self.optimizer, _ = init.init_training(self.model, config)
        self.take_steps = make_update(self.model, self.optimizer, config, compile=config.compile == 'on')
        self.feed = BatchFeed(language.grammar, config, device)
        self.step = 0
        self.dynamics: list[Record] = []
        self.best: dict[str, Any] = {}
        self.since_record: list[float] = []  # the losses since the last record
        self.recent: list[float] = []  # those of the last WINDOW steps
        self.seconds = 0.0
        self.stopped_early = False
        self.excess_error = 0.0  # the standard error of the last record's excess

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The logits for the targets of the task, in the precision of the run."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == 'bfloat16'):
            return init.task_logits(model, inputs, self.config)

    def update(self, most: int = 1) -> Tensor:
        """One step of gradient descent, or several where a launch takes as many; their losses, on the device."""
        per_call = self.take_steps.steps_per_call
        inputs, targets = self.feed(self.step, per_call if per_call <= most else 1)
        losses = self.take_steps(self.step, inputs, targets)
        self.step += len(losses)
        return losses

    def advance(self, end: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Updates until step `end` or an interruption, then looks at the losses.

        Raises DivergedError when one of them is not finite.
        """
        start = time.perf_counter()
        losses = []
        while self.step < end and not interrupted():
            losses.append(self.update(end - self.step))
        self.note(torch.cat(losses).tolist() if losses else [])
        self.seconds += time.perf_counter() - start

    def note(self, values: list[float]) -> None:
        """Looks at the losses of the steps just taken. Raises DivergedError when one of them is not finite."""
        for i, value in enumerate(values, start=self.step - len(values) + 1):
            self._check('training loss', value, i)
        self.since_record += values
        self.recent = (self.recent + values)[-WINDOW:]
        # Decided at fixed steps alone: an interruption must not move the end of a run.
        if self.step % WINDOW == 0 and len(self.recent) == WINDOW:
            self.stopped_early = sum(self.recent) / WINDOW <= self.config.loss_threshold

    def record(self) -> Record:
        """Measures the model at this step and adds the record; keeps the model when its test loss is the best.

        The training loss is the mean over the steps since the last record; at step 0, that of the first batch.
        Raises DivergedError when a loss is not finite.
        """
        start = time.perf_counter()
        testloss, testacc = test(self.model, *self._batch('test', self.step, self.config.test_size), self.logits)
        self._check('test loss', testloss, self.step)
        if self.step == 0:
            self.since_record = [test(self.model, *self._batch('train', 0, self.config.batch_size), self.logits)[0]]
        excess, self.excess_error = self.language.reference.divergence(self.model, self.logits)
        self.seconds += time.perf_counter() - start
        record: Record = {
            't': self.step,
            'trainloss': sum(self.since_record) / len(self.since_record),
            'testloss': testloss,
            'testacc': testacc,
            'excess': excess,
            'lr': init.learning_rate(max(self.step - 1, 0), self.config),
            'seconds': self.seconds,
        }
        self.dynamics.append(record)
        self.since_record = []
        if not self.best or testloss < self.best['loss']:
            self.best = {'step': self.step, 'loss': testloss, 'model': self.weights()}
        return record

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights on the CPU."""
        return {name: tensor.detach().to('cpu', copy=True) for name, tensor in self.model.state_dict().items()}

    def checkpoint(self) -> dict[str, Any]:
        """The content of a checkpoint: the model, its last record, and what resuming needs."""
        self.take_steps.settle(self.step)
        resume = {name: getattr(self, name) for name in self._RESUMED}
        optimizer = self.optimizer.state_dict()
        # Copies: a tensor that is a part of a larger one would be saved with all of it.
        state = {i: {name: x.clone() for name, x in part.items()} for i, part in optimizer['state'].items()}
        resume['optimizer'] = {**optimizer, 'state': state}
        return {'model': self.weights(), 'state': self.dynamics[-1], 'step': self.step, 'resume': resume}

    def restore(self, content: dict[str, Any]) -> None:
        """Goes back to the state of a checkpoint."""
        resume = content['resume']
        self.step = content['step']
        self.model.load_state_dict(content['model'])
        self.optimizer.load_state_dict(resume['optimizer'])
        self.take_steps.bind()
        for name in self._RESUMED:
            setattr(self, name, resume[name])

    _RESUMED = ('dynamics', 'best', 'since_record', 'recent', 'seconds', 'stopped_early', 'excess_error')

    def _batch(self, stream: str, step: int, size: int) -> tuple[Tensor, Tensor]:
        inputs, targets = init.select_task(*self.language.grammar.batch(step, size, stream), self.config)
        return inputs.to(self.device), targets.to(self.device)

    def _check(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f'the {name} is {value} at step {step}: lower lr={self.config.lr:g}, or limit the gradient by grad_clip'
            )


class Session:
    """A run under way: its records and its checkpoints, in its files at their times."""

    def __init__(self, trainer: Trainer, files: RunFiles) -> None:
        self.trainer, self.files = trainer, files
        config, last = trainer.config, trainer.config.last_step
        self.saves = set(init.save_times(last, config.save_freq))
        self.times = init.print_times(last, config.print_freq, config.save_freq)
        self.records = set(self.times)
        self.keep = self.saves if config.checkpoints else set()
        files.rewrite_log(trainer.dynamics)
        files.retire_all(trainer.step, self.keep)
        self.curves = Curves(config, trainer.language)

    def visit(self) -> Record | None:
        """Makes the record and the checkpoint that are due at this step, and returns the record if there was one."""
        trainer = self.trainer
        recorded = trainer.dynamics[-1]['t'] if trainer.dynamics else -1
        if trainer.step == recorded or not (trainer.step in self.records or self.ended):
            return None
        record = trainer.record()
        self.files.append_record(record)
        self.curves.add(record)
        if trainer.step in self.saves or self.ended:
            self.save()
        return record

    def save(self) -> None:
        """Saves a checkpoint."""
        self.files.save_checkpoint(self.trainer.checkpoint(), self.keep)

    @property
    def ended(self) -> bool:
        """Whether the run is at its end."""
        return self.trainer.step == self.trainer.config.last_step or self.trainer.stopped_early

    @property
    def next_stop(self) -> int:
        """The next step with a record, or at which losses are looked at."""
        step = self.trainer.step
        return min(self.times[bisect_right(self.times, step)], step - step % WINDOW + WINDOW)


def run(trainer: Trainer, files: RunFiles, interruption: Interruption) -> bool:
    """Updates, records and checkpoints until the end of the run (True) or an interruption (False)."""
    session = Session(trainer, files)
    with Progress(trainer.step, trainer.config.last_step, trainer.language.entropy) as progress, session.curves:
        while True:
            record = session.visit()
            if record is not None:
                progress.record(record)
            if session.ended:
                return True
            if interruption.requested():
                session.save()
                return False
            trainer.advance(session.next_stop, interruption.requested)
            progress.advance(trainer.step)
