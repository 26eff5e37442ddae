"""The loop: stochastic gradient descent on sequences of a language, with records, checkpoints and early stopping.

The batch of a step, its dropout masks and its learning rate are functions of the step alone. A run that was
interrupted therefore goes on from its newest checkpoint as if nothing had happened, bit for bit.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn, optim

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.training import distributed
from RLM_clean.training.backends import Batch, CompilationError, Update, make_update
from RLM_clean.training.batches import make_feed
from RLM_clean.training.machine import Machine
from RLM_clean.training.progress import Progress, Say, say
from RLM_clean.training.signals import Interruption
from RLM_clean.training.trackers import Trackers

# The losses of steps are read, and early stopping is decided, every so many steps: reading a loss waits for the GPU.
WINDOW = 128


class DivergedError(ArithmeticError):
    """The loss is not a finite number any more."""


class Trainer:
    """The state of a run and what changes it: steps of gradient descent and records.

    `machine` says where the model is and whether its step is compiled. Where only `auto` asked for compilation and it
    fails, the steps are taken without, and the trainer's own `machine` says so. Raises ValueError where compile=on
    fails.
    """

    def __init__(
        self,
        config: Config,
        language: Language,
        model: nn.Module,
        optimizer: optim.Optimizer,
        machine: Machine,
        say: Say = say,
    ) -> None:
        self.config, self.language, self.model, self.optimizer = config, language, model, optimizer
        self.say = say
        self.device = torch.device(machine.device)
        self.feed = make_feed(language.grammar, config, self.device)
        batch = self.feed.example()
        self.machine, self.take_steps = _make_backend(config, model, optimizer, machine, batch, say)
        self.step = 0
        self.dynamics: list[Record] = []
        self.best: dict[str, Any] = {}
        self.since_record: list[float] = []  # the training losses since the last record
        self.recent: list[float] = []  # the training losses of the last WINDOW steps
        self.seconds = 0.0
        self.stopped_early = False
        self.excess_error = 0.0  # the standard error of the last record's excess
        self.before_record: dict[str, Any] = {}  # what the last record has changed, as it was before

    # What a checkpoint keeps for resuming, beside the model and the optimizer.
    RESUMED = ('dynamics', 'best', 'since_record', 'recent', 'seconds', 'stopped_early', 'excess_error')

    @property
    def ended(self) -> bool:
        """Whether the run is at its end."""
        return self.step == self.config.last_step or self.stopped_early

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits for the targets of the task, in the precision of the run."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == 'bfloat16'):
            return init.task_logits(model, inputs, self.config)

    def advance(self, end: int, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Takes steps until step `end` or an interruption, then reads their losses.

        Raises DivergedError when a loss is not finite.
        """
        start = time.perf_counter()
        losses = []
        while self.step < end and not interrupted():
            losses.append(self.update(end - self.step))
        self.read_losses(torch.cat(losses).tolist() if losses else [])
        self.seconds += time.perf_counter() - start

    def update(self, most: int = 1) -> Tensor:
        """One step of gradient descent, or several where a backend takes several per call; their losses `(S,)`."""
        per_call = self.take_steps.steps_per_call
        inputs, targets = self.feed(self.step, per_call if per_call <= most else 1)
        losses = self.take_steps(self.step, inputs, targets)
        self.step += len(losses)
        return losses

    def read_losses(self, values: list[float]) -> None:
        """Takes in the losses of the steps just taken. Raises DivergedError when one of them is not finite."""
        for i, value in enumerate(values, start=self.step - len(values) + 1):
            self._check_finite('training loss', value, i)
        self.since_record += values
        self.recent = (self.recent + values)[-WINDOW:]
        # Decided at multiples of WINDOW only, so that an interruption cannot move the end of a run.
        if self.step % WINDOW == 0 and len(self.recent) == WINDOW:
            self.stopped_early = sum(self.recent) / WINDOW <= self.config.loss_threshold

    def record(self) -> Record:
        """Measures the model at this step and adds the record; keeps the model when its excess is the smallest.

        The training loss is the mean over the steps since the last record; at step 0, that of the first batch. Accuracy
        and excess are those of `Reference.evaluate`, at the end on all contexts of the reference and before on as many
        as `init.record_contexts` says; the loss is the floor on all contexts plus the excess. At the end the best model
        until then is measured on all contexts too. Raises DivergedError when a loss is not finite.
        """
        start = time.perf_counter()
        self.before_record = {name: getattr(self, name) for name in ('best', 'since_record', 'excess_error')}
        reference, filtered = self.language.reference, self.language.filtered
        contexts = reference if self.ended else reference.part(init.record_contexts(self.step, self.config))
        found = contexts.evaluate(self.model, self.logits)
        loss = reference.floor()[0] + found.excess
        self._check_finite('test loss', loss, self.step)
        if filtered is not None:
            levels = contexts.divergences(self.model, filtered[: len(contexts.inputs)], self.logits)
        if self.step == 0:
            self.since_record = [self.feed.first_loss(self.model, self.logits)]
        self.excess_error = found.excess_error
        if self.ended:
            self.best = self._best_on_all_contexts()
        self.seconds += time.perf_counter() - start
        record: Record = {
            't': self.step,
            'trainloss': sum(self.since_record) / len(self.since_record),
            'testloss': loss,
            'testacc': found.accuracy,
            'excess': found.excess,
            'lr': init.learning_rate(max(self.step - 1, 0), self.config),
            'seconds': self.seconds,
        }
        if filtered is not None:
            record['bp'] = [value for value, _ in levels]
        self.dynamics.append(record)
        self.since_record = []
        if found.excess < self.best.get('excess', math.inf):
            self.best = {'step': self.step, 'loss': loss, 'excess': found.excess, 'model': self.weights()}
        return record

    def _best_on_all_contexts(self) -> dict[str, Any]:
        """The best model so far, with its loss and excess on all contexts of the reference.

        Of records on parts of the contexts the smallest is not to be compared with one on all of them.
        """
        if not self.best or self._on_all_contexts(self.best['step']):
            return self.best
        reference, weights = self.language.reference, self.weights()
        self.model.load_state_dict(self.best['model'])
        found = reference.evaluate(self.model, self.logits)
        self.model.load_state_dict(weights)
        return {**self.best, 'loss': reference.floor()[0] + found.excess, 'excess': found.excess}

    def _would_be_as_it_is(self, before: dict[str, Any]) -> bool:
        """Whether a run of this length, which may be longer than it was, has the record of this step as it is."""
        times = init.print_times(self.config.last_step, self.config.print_freq, self.config.save_freq)
        measured_again = bool(before['best']) and not self._on_all_contexts(before['best']['step'])
        return self.step in times and self._on_all_contexts(self.step) and not measured_again

    def _on_all_contexts(self, step: int) -> bool:
        """Whether a record before the end is on all contexts of the reference."""
        reference = self.language.reference
        return reference.part(init.record_contexts(step, self.config)) is reference

    def take_back_record(self, before: dict[str, Any]) -> None:
        """Forgets the last record, which a longer run would not have made at this step, or on fewer contexts."""
        self.dynamics.pop()
        for name, value in before.items():
            setattr(self, name, value)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's weights on the CPU."""
        return {name: tensor.detach().to('cpu', copy=True) for name, tensor in self.model.state_dict().items()}

    def checkpoint(self) -> dict[str, Any]:
        """The content of a checkpoint: the model, its last record, and what resuming needs."""
        self.take_steps.sync_step_count(self.step)
        resume = {name: getattr(self, name) for name in self.RESUMED}
        if self.ended:
            resume['before_record'] = self.before_record
        optimizer = self.optimizer.state_dict()
        # Copies: a view into a larger tensor would be saved with all of it.
        state = {i: {name: x.clone() for name, x in part.items()} for i, part in optimizer['state'].items()}
        resume['optimizer'] = {**optimizer, 'state': state}
        return {'model': self.weights(), 'state': self.dynamics[-1], 'step': self.step, 'resume': resume}

    def restore(self, content: dict[str, Any]) -> None:
        """Returns to the state of a checkpoint."""
        resume = content['resume']
        self.step = content['step']
        self.model.load_state_dict(content['model'])
        self.optimizer.load_state_dict(resume['optimizer'])
        for parameter, state in self.optimizer.state.items():
            if any(x.dim() and x.shape != parameter.shape for x in state.values()):
                raise ValueError('the state of the optimizer belongs to another model')
        self.take_steps.rebind()
        for name in self.RESUMED:
            setattr(self, name, resume[name])
        # Runs of the first version chose the best model by its test loss, and did not keep its excess.
        if self.best and 'excess' not in self.best:
            self.best['excess'] = next(r['excess'] for r in self.dynamics if r['t'] == self.best['step'])
        if 'before_record' in resume and not self._would_be_as_it_is(resume['before_record']):
            self.take_back_record(resume['before_record'])

    def _check_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f'the {name} is {value} at step {step}: lower lr={self.config.lr:g}, or limit the gradient by grad_clip'
            )


def make_trainer(config: Config, language: Language, machine: Machine, say: Say = say) -> Trainer:
    """The trainer of a run at step 0, with the model and the optimizer of its options."""
    model = init.init_model(config).to(machine.device).train()
    return Trainer(config, language, model, init.init_optimizer(model, config), machine, say)


def _make_backend(
    config: Config, model: nn.Module, optimizer: optim.Optimizer, machine: Machine, batch: Batch | None, say: Say
) -> tuple[Machine, Update]:
    """What takes the steps of a run, and the machine as it turned out: without compilation where that failed."""
    if distributed.is_joined():
        return replace(machine, compile=False), distributed.DistributedUpdate(model, optimizer, config)
    if machine.compile and machine.device == 'cpu':
        say('compiling the step: about ten seconds, less if the same step was compiled before')
    try:
        return machine, make_update(model, optimizer, config, machine.compile, batch)
    except CompilationError as error:
        if config.compile == 'on':
            raise ValueError(f"compile='on' fails ({error}): use auto or off") from None
        say(f'the step could not be compiled ({error}): the run goes on without')
        return replace(machine, compile=False), make_update(model, optimizer, config, compile=False)


class Recorder:
    """Makes the records and the checkpoints of a run at their steps, and writes them to its files."""

    def __init__(self, trainer: Trainer, files: RunFiles) -> None:
        self.trainer, self.files = trainer, files
        config, last = trainer.config, trainer.config.last_step
        self.save_times = set(init.save_times(last, config.save_freq))
        self.times = init.print_times(last, config.print_freq, config.save_freq)
        self.kept = self.save_times if config.checkpoints else set()
        files.rewrite_log(trainer.dynamics)
        files.retire_all(trainer.step, self.kept, trainer.say)
        # Of a shorter run that becomes longer. The newest checkpoint, which was read, has all that it had.
        files.final.unlink(missing_ok=True)
        self.trackers = Trackers(config, trainer.language, trainer.step if trainer.dynamics else None, trainer.say)

    def visit(self) -> Record | None:
        """Makes the record and the checkpoint that are due at this step, and returns the record if there was one."""
        trainer = self.trainer
        recorded = trainer.dynamics[-1]['t'] if trainer.dynamics else -1
        if trainer.step == recorded or not (trainer.step in self.times or trainer.ended):
            return None
        record = trainer.record()
        self.files.append_record(record)
        self.trackers.record(record)
        if trainer.step in self.save_times or trainer.ended:
            self.save()
        return record

    def save(self) -> None:
        """Saves a checkpoint."""
        self.files.save_checkpoint(self.trainer.checkpoint(), self.kept)

    @property
    def next_stop(self) -> int:
        """The next step with a record, or at which losses are read."""
        step = self.trainer.step
        return min(self.times[bisect_right(self.times, step)], step - step % WINDOW + WINDOW)


def run(trainer: Trainer, files: RunFiles, interruption: Interruption) -> bool:
    """Takes steps, makes records and saves checkpoints until the end of a run (True) or an interruption (False)."""
    recorder = Recorder(trainer, files)
    last, floor = trainer.config.last_step, trainer.language.entropy
    with Progress(trainer.step, last, floor, times=recorder.times) as progress, recorder.trackers:
        while True:
            record = recorder.visit()
            if record is not None:
                progress.record(record)
            if trainer.ended:
                return True
            if interruption.requested():
                recorder.save()
                return False
            trainer.advance(recorder.next_stop, interruption.requested)
            progress.advance(trainer.step)
