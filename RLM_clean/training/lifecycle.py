"""A whole run, from its options to its files: claimed, begun or resumed, trained, finished.

with claim(config) as run:              the files are this process's; they say whether the run begins or goes on
    language = run.language()           rules, sampler, exact floors: computed, or read from the files
    trainer = make_trainer(...)
    run.start(trainer)                  writes the first file, or returns to the newest checkpoint
    ...                                 the loop, in loop.py
    return run.finish(trainer)          writes the final file and the picture
return run.stopped()                    a signal came before run.start
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from RLM_clean import init, measures, tasks
from RLM_clean.config import DEFAULTS, LENGTH, Config, format_value
from RLM_clean.measures import Language
from RLM_clean.runs import contents
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.storage import save
from RLM_clean.training import distributed, loop, machine
from RLM_clean.training.loop import Trainer, make_trainer
from RLM_clean.training.machine import Machine
from RLM_clean.training.progress import Say, say
from RLM_clean.training.signals import Interruption, StopRequested

# Entries of rules that are drawn, and put into the tables of the sampler, in a second.
_RULE_ENTRIES_A_SECOND = 3e7


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: `status` is 'done', 'stopped early', 'complete' (already before) or 'interrupted'.

    `dynamics` are the records so far, `best` is {'step', 'loss', 'excess', 'model'}, `entropy` the floor in nats. A run
    that was stopped before its first step has none of these.
    """

    status: str
    step: int
    dynamics: list[Record] = field(repr=False)
    best: dict[str, Any] = field(repr=False)
    entropy: float
    excess_error: float


def train(config: Config, say: Say = say) -> Outcome:
    """Trains a run to its end or to an interruption, or goes on with the run that its files hold.

    On SIGTERM, SIGUSR1, SIGHUP or SIGINT it finishes the step, saves and returns; a second SIGINT stops at once. Before
    the first step there is nothing to save, and it stops without.

    Raises ValueError for options that this machine cannot run, and when the files belong to other options or cannot be
    read; DivergedError when the loss is not finite any more; OSError when a file cannot be written. Files that were
    good stay good.
    """
    with claim(config, say) as run:
        if run.complete is not None:
            return run.complete
        trainer = make_trainer(config, run.language(), run.machine, say)
        run.start(trainer)
        if loop.run(trainer, run.files, run.interruption):
            return run.finish(trainer)
        return run.interrupted(trainer)
    return run.stopped()


@contextmanager
def claim(config: Config, say: Say = say) -> Iterator[ActiveRun]:
    """Holds a run for this process while entered: its lock, its signals and the settings of the machine.

    A signal that comes before `ActiveRun.start` ends the block at once, without an exception. Raises what `train`
    raises; nothing has been written then but the folder.
    """
    machine.check(config)
    files = RunFiles(config.outname)
    with ExitStack() as stack:
        say(describe(config))
        begun = _check_folder(config, files)
        stored = _read_stored(config, files) if begun and config.resume != 'restart' else None
        chosen = machine.choose(config, stored.get('machine') if stored else None)
        stack.enter_context(machine.prepared(chosen, config.deterministic))
        if begun:
            stack.enter_context(files.claim())
        run = ActiveRun(config, files, chosen, stored, begun, stack, say)
        if stored is not None and files.final.exists():
            run.complete = _read_complete(config, files)
        if run.complete is not None:
            yield run
            return
        run.checkpoint = _find_checkpoint(config, files, stored, say)
        _make_folder(config, files)
        if begun:  # otherwise this process does not hold the lock yet, and another one may be at work
            run.remove_leftovers()
        run.interruption = stack.enter_context(Interruption())
        with suppress(StopRequested):  # from `ActiveRun.language` to `ActiveRun.start`
            yield run


@dataclass
class ActiveRun:
    """A run that this process holds: see `claim`.

    Attributes:
        machine: where and how it is computed.
        stored: the content of its _config.pt; None for a run that begins.
        held: whether it had files before, so that this process holds its lock from the start.
        checkpoint: the content of the checkpoint that it goes on from; None for a run that begins at step 0.
        complete: the outcome of a run that is already at its end.
        interruption: the signals that ask it to stop.
    """

    config: Config
    files: RunFiles
    machine: Machine
    stored: dict[str, Any] | None
    held: bool
    stack: ExitStack
    say: Say
    checkpoint: dict[str, Any] | None = None
    complete: Outcome | None = None
    interruption: Interruption = field(default_factory=Interruption)

    def language(self) -> Language:
        """The language with its exact floors: from the files of a run that goes on, else computed.

        From now on a signal stops the set-up at once.
        """
        self.interruption.stop_at_once()
        rules = None if self.stored is None else self.stored['rules']
        seconds = init.num_rule_entries(self.config) / _RULE_ENTRIES_A_SECOND
        if rules is None and seconds > 3:
            self.say(f'drawing the rules: about {seconds:.0f} s')
        grammar = init.init_data(self.config, self.machine.device, rules)
        if distributed.is_joined():
            distributed.share_rules(measures.rules_of(grammar), torch.device(self.machine.device))
        c = self.config
        language = measures.prepare_language(grammar, c.context_size, tasks.of(c), self.stored, self.say)
        if c.bp_records:
            language.filtered = measures.filtered_predictions(grammar, language.reference, tasks.of(c))
        return language.to(torch.device(self.machine.device))

    def start(self, trainer: Trainer) -> None:
        """Returns to the newest checkpoint of a run that goes on, and writes the first file of a run that begins.

        From now on a signal waits for the end of a step.
        """
        self.interruption.wait_for_step()
        self.restore(trainer)
        self.begin(trainer.language, trainer.machine)

    def restore(self, trainer: Trainer) -> None:
        """Brings a trainer to the newest checkpoint, where there is one."""
        if self.checkpoint is None:
            return
        try:
            trainer.restore(self.checkpoint)
        except (KeyError, TypeError, ValueError, RuntimeError, StopIteration):
            path = self.files.checkpoint(self.checkpoint['step'])
            raise ValueError(
                f'{path} belongs to another run: remove it, use another outname, or resume=restart'
            ) from None
        self.say(f'going on from step {trainer.step}')

    def remove_leftovers(self) -> None:
        """Removes the temporary files of a process that was killed."""
        for leftover in self.files.leftovers():
            leftover.unlink()
            self.say(f'{leftover} was left by a killed process and is removed')

    def begin(self, language: Language, chosen: Machine) -> None:
        """Writes the _config.pt of a run that begins, or that becomes longer, and holds its lock.

        With resume=restart it removes the files of the run before, which were good until here.
        """
        self.machine = chosen
        longer = self.stored is not None and any(self.stored['config'][n] != getattr(self.config, n) for n in LENGTH)
        if self.stored is not None and not longer:
            return
        content = {'config': self.config.to_dict(), 'machine': chosen.to_dict(), 'rules': language.rules()}
        if self.config.resume == 'restart':
            if not self.held and self.files.config.exists():
                raise self.files.busy()
            self.files.remove()
        try:
            save({**content, **language.losses()}, self.files.config, new=not longer)
        except (FileExistsError, FileNotFoundError):  # another process has begun the same run in the meantime
            if not self.files.config.exists():
                raise
            raise self.files.busy() from None
        self.stack.enter_context(self.files.claim())
        if not self.held:
            self.remove_leftovers()

    def stopped(self) -> Outcome:
        """The outcome of a run that a signal stopped while it was set up: its files are as they were."""
        step = 0 if self.checkpoint is None else self.checkpoint['step']
        self.say(f'{self.interruption.name}: stopped before step {step + 1}; the same command starts again from there')
        return Outcome('interrupted', step, [], {}, math.nan, math.nan)

    def interrupted(self, trainer: Trainer) -> Outcome:
        """The outcome of a run that a signal stopped between two steps, and that was saved."""
        self.say(f'{self.interruption.name}: saved at step {trainer.step}; the same command goes on from there')
        return outcome(trainer, 'interrupted')

    def finish(self, trainer: Trainer) -> Outcome:
        """Writes the picture and the final file of a run, and removes what only resuming needed.

        A picture that cannot be drawn is a line, not an error.
        """
        output = {
            **trainer.language.losses(),
            'dynamics': trainer.dynamics,
            'step': trainer.step,
            'early_stop': trainer.stopped_early,
            'excess_error': trainer.excess_error,
            'machine': self.machine.to_dict(),
        }
        content = {'config': self.config.to_dict(), 'output': output, 'model': trainer.weights(), 'best': trainer.best}
        try:
            from RLM_clean.plots import save_learning_curve  # slow to import, and not needed before

            save_learning_curve(trainer.dynamics, trainer.language, self.config, self.files.picture)
        except OSError:  # the device is full: so it is for the final file
            raise
        except Exception as error:  # of matplotlib, or of its absence
            self.say(f'{self.files.picture} cannot be drawn ({error}): the run is complete without it')
        save(content, self.files.final)
        _remove_surplus(self.config, self.files)
        return outcome(trainer, 'stopped early' if trainer.stopped_early else 'done')


def outcome(trainer: Trainer, status: str) -> Outcome:
    """The outcome of a run at the step where its trainer is."""
    t = trainer
    return Outcome(status, t.step, t.dynamics, t.best, t.language.entropy, t.excess_error)


def describe(config: Config) -> str:
    """One line with the options that differ from their defaults, and those of them that have no use in this run."""
    changes = config.changes()
    words = ' '.join(f'{name}={format_value(value)}' for name, value in changes.items())
    unused = ', '.join(f'{name} (it is for {use})' for name, use in config.unused().items() if name in changes)
    line = f'options: {words}, all others at their defaults' if words else 'all options at their defaults'
    return f'{line}; without use here: {unused}' if unused else line


def foresee(config: Config) -> str:
    """What `train` would do with the files of a run, in a few words; writes nothing.

    Raises ValueError where `train` would.
    """
    machine.check(config)
    files = RunFiles(config.outname)
    if not _check_folder(config, files) or config.resume == 'restart':
        _check_required(config, False)
        return 'to train'
    _read_stored(config, files)
    output = files.load_final(tensors=False)['output'] if files.final.exists() else None
    if output is not None and contents.is_end(output, config.last_step):
        return 'there already'
    steps = files.steps()
    _check_required(config, bool(steps))
    _check_longer(config, files, bool(steps))
    return f'to go on from step {steps[-1]} to {config.last_step}' if steps else 'to train'


# ---------------------------------------------------------------------- what the files of a run hold already


def _check_folder(config: Config, files: RunFiles) -> bool:
    """Whether the run has been begun. Raises ValueError for files that belong to no run that was begun."""
    if os.path.isdir(config.outname):
        raise ValueError(f'outname={config.outname!r} is a folder: give the path of a run in it, as results/my_run')
    try:
        files.check_paths()
        begun, others = files.config.exists(), files.final.exists() or files.steps()
    except OSError as error:
        raise _no_folder(config, error) from None
    if others and not begun and config.resume != 'restart':
        raise ValueError(
            f'outname={config.outname!r} has files but not {files.config}: use another name, or resume=restart'
        )
    return begun


def _read_stored(config: Config, files: RunFiles) -> dict[str, Any]:
    """The content of _config.pt, whose options must be those of `config`."""
    stored = files.load_config()
    name = config.first_difference(stored['config'])
    if name is not None:
        before = stored['config'].get(name, DEFAULTS[name])
        raise ValueError(
            f'{name}={getattr(config, name)!r} differs from {before!r} in {files.config}: '
            'use that, another outname, or resume=restart'
        )
    return stored


def _read_complete(config: Config, files: RunFiles) -> Outcome | None:
    """The outcome of a run that is at its end; None where its final file is that of a shorter one."""
    content = files.load_final()
    output = content['output']
    if not contents.is_end(output, config.last_step):
        return None
    _remove_surplus(config, files)  # the process that wrote the final file may have been killed before it did
    return Outcome(
        'complete', output['step'], output['dynamics'], content['best'], output['entropy'], output['excess_error']
    )


def _find_checkpoint(config: Config, files: RunFiles, stored: dict[str, Any] | None, say: Say) -> dict[str, Any] | None:
    checkpoint = files.newest(say) if stored is not None else None
    _check_required(config, checkpoint is not None)
    if stored is not None:
        _check_longer(config, files, checkpoint is not None)
    return checkpoint


def _check_required(config: Config, found: bool) -> None:
    if config.resume == 'require' and not found:
        raise ValueError(f"resume='require' finds no checkpoint of outname={config.outname!r} to go on from: use auto")


def _check_longer(config: Config, files: RunFiles, found: bool) -> None:
    """Raises ValueError for a shorter run that was finished, and that has no checkpoint to go on from."""
    if files.final.exists() and not found:
        raise ValueError(
            f'{files.final} is finished, and its checkpoints are gone, so it cannot become longer: '
            'use another outname, or resume=restart'
        )


def _make_folder(config: Config, files: RunFiles) -> None:
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=files.folder):
            pass
    except OSError as error:
        raise _no_folder(config, error) from None


def _no_folder(config: Config, error: OSError) -> ValueError:
    return ValueError(
        f'outname={config.outname!r} is in a folder that cannot be written ({error.strerror}): use another'
    )


def _remove_surplus(config: Config, files: RunFiles) -> None:
    """Removes what only an interrupted run needs. The last checkpoint stays: from it the run can be made longer."""
    files.previous.unlink(missing_ok=True)
    if not config.checkpoints:
        for step in files.steps()[:-1]:
            files.checkpoint(step).unlink()
