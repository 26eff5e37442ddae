"""A whole run: from its options to its files, begun, resumed, or found complete."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.exact import entropies
from RLM_clean.measures import Language
from RLM_clean.plots import save_learning_curve
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.storage import save
from RLM_clean.training import machine
from RLM_clean.training.backends import CompilationError
from RLM_clean.training.distributed import DistributedUpdate
from RLM_clean.training.loop import Trainer, run
from RLM_clean.training.machine import Machine
from RLM_clean.training.signals import Interruption

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: `status` is 'done', 'stopped early', 'complete' (already before) or 'interrupted'.

    `dynamics` are the records so far, `best` is {'step', 'loss', 'model'}, `entropy` the floor in nats.
    """

    status: str
    step: int
    dynamics: list[Record]
    best: dict[str, Any]
    entropy: float
    excess_error: float


def train(config: Config, say: Say = print) -> Outcome:
    """Runs a training to its end or to an interruption, or goes on with the one that its files hold.

    On SIGTERM, SIGUSR1 or SIGINT the step under way is finished and saved; a second SIGINT stops at once.

    Raises ValueError when the files are those of another configuration or cannot be read, DivergedError when the loss
    is no longer finite, OSError when a file cannot be written. Files that were good stay so.
    """
    with ExitStack() as stack:
        opened = open_run(config, stack, say)
        if isinstance(opened, Outcome):
            return opened
        if not run(opened.trainer, opened.files, opened.interruption):
            say(f'{opened.interruption.name}: saved at step {opened.trainer.step}; the same command goes on from there')
            return opened.outcome('interrupted')
        return opened.finish()


@dataclass
class OpenedRun:
    """A run that this process holds, at the step where it begins or goes on."""

    config: Config
    machine: Machine
    files: RunFiles
    trainer: Trainer
    interruption: Interruption

    def outcome(self, status: str) -> Outcome:
        """How it stands."""
        t = self.trainer
        return Outcome(status, t.step, t.dynamics, t.best, t.language.entropy, t.excess_error)

    def finish(self) -> Outcome:
        """Writes the file of the finished run and its picture, and removes what only resuming needed."""
        trainer = self.trainer
        output = {
            **trainer.language.losses(),
            'dynamics': trainer.dynamics,
            'step': trainer.step,
            'early_stop': trainer.stopped_early,
            'excess_error': trainer.excess_error,
            'machine': self.machine.to_dict(),
        }
        content = {'config': self.config.to_dict(), 'output': output, 'model': trainer.weights(), 'best': trainer.best}
        save_learning_curve(trainer.dynamics, trainer.language, self.config, self.files.picture)
        save(content, self.files.final)
        _remove_surplus(self.config, self.files)
        return self.outcome('stopped early' if trainer.stopped_early else 'done')


def open_run(config: Config, stack: ExitStack, say: Say, alone: bool = True) -> OpenedRun | Outcome:
    """Begins a run or goes on with it: checks, locks and writes its first file; the outcome of one that is complete.

    Locks, signals and the settings of the machine stay until the stack is closed. The trainer of a run that is not
    `alone` takes no steps of its own: those of its ensemble are compiled. Raises what `train` raises.
    """
    files = RunFiles(config.outname)
    begun = _begun(config, files)
    stored = _stored(config, files) if begun and config.resume != 'restart' else None
    chosen = machine.choose(config, stored.get('machine') if stored else None)
    device = stack.enter_context(machine.prepared(chosen, config.deterministic))
    if begun:
        stack.enter_context(files.claim())
    if stored is not None and files.final.exists():
        return _complete(config, files)
    checkpoint = files.newest(say) if stored is not None else None
    if config.resume == 'require' and checkpoint is None:
        raise ValueError(f"resume='require' finds no checkpoint of outname={config.outname!r} to go on from: use auto")
    _make_folder(config, files)
    if config.resume == 'restart':
        files.remove()
    for leftover in files.leftovers():
        leftover.unlink()
        say(f'{leftover} was left by a killed process and is removed')
    interruption = stack.enter_context(Interruption())
    language = prepare_language(config, device, stored, say)
    if alone:
        trainer, chosen = _trainer(config, language, chosen, interruption, say)
    else:
        trainer = Trainer(replace(config, compile='off'), language, device)
    if stored is None:
        content = {'config': config.to_dict(), 'machine': chosen.to_dict(), 'rules': language.rules()}
        try:
            save({**content, **language.losses()}, files.config, new=True)
        except FileExistsError:  # begun by another process in the meantime
            raise files.busy() from None
        stack.enter_context(files.claim())
    if checkpoint is not None:
        _restore(trainer, checkpoint, files)
        say(f'going on from step {trainer.step}')
    return OpenedRun(config, chosen, files, trainer, interruption)


def _trainer(
    config: Config, language: Language, chosen: Machine, interruption: Interruption, say: Say
) -> tuple[Trainer, Machine]:
    """The trainer on a machine, and that machine: without compilation where only `auto` asked for it and it fails."""
    device = torch.device(chosen.device)
    if torch.distributed.is_initialized():
        trainer = Trainer(replace(config, compile='off'), language, device)
        trainer.take_steps = DistributedUpdate(trainer.model, trainer.optimizer, config)
        return trainer, replace(chosen, compile=False)
    if chosen.compile and device.type == 'cpu':
        say('compiling the step: some ten seconds, less when the same one was compiled before')
    try:
        return Trainer(replace(config, compile='on' if chosen.compile else 'off'), language, device), chosen
    except CompilationError as error:
        if interruption.requested():  # Ctrl-C ends the compiler too
            raise KeyboardInterrupt from None
        if config.compile == 'on':
            raise ValueError(f"compile='on' fails ({error}): use auto or off") from None
        say(f'the step could not be compiled ({error}): going on without')
        return Trainer(replace(config, compile='off'), language, device), replace(chosen, compile=False)


def prepare_language(config: Config, device: torch.device, stored: dict[str, Any] | None, say: Say) -> Language:
    """The language of a run with its exact losses; those in `stored`, the content of its file, are not made again."""
    grammar = init.init_data(config, device, None if stored is None else stored['rules'])
    reference = measures.reference(grammar, config.context_size, config.objective).to(device)
    if stored is not None:
        return Language(grammar, reference, stored['entropy'], stored['marginal'], stored['floors'])
    floors: dict[int, entropies.Estimate] = {}
    for k in entropies.window_ladder(config.context_size):
        sampled = not entropies.summable(grammar, k) and not entropies.chained(grammar, k)
        if config.objective == 'last' and k == config.context_size and sampled:
            floors[k] = reference.floor()  # the same contexts: their posteriors are there already
        else:
            floors |= entropies.window_entropies(grammar, [k])
        value, error = floors[k]
        target = 'best loss' if config.objective == 'last' else 'best loss of the last token'
        tokens = 'token' if k == 1 else 'tokens'
        say(f'{target} from {k} {tokens}: {value:.4f}{f" +- {error:.4f}" if error else ""} nats')
    entropy = floors[config.context_size] if config.objective == 'last' else reference.floor()
    if config.objective == 'all':
        say(f'best loss of all tokens: {entropy[0]:.4f}{f" +- {entropy[1]:.4f}" if entropy[1] else ""} nats')
    return Language(grammar, reference, entropy[0], floors[0][0], floors)


def _begun(config: Config, files: RunFiles) -> bool:
    """Whether there are files of this run already."""
    try:
        begun, others = files.config.exists(), files.final.exists() or files.steps()
    except OSError as error:
        raise _no_folder(config, error) from None
    if others and not begun and config.resume != 'restart':
        raise ValueError(
            f'outname={config.outname!r} has files but no {files.config}: use another name, or resume=restart'
        )
    return begun


def _stored(config: Config, files: RunFiles) -> dict[str, Any]:
    """What the files of the run hold of its options and its language, which must be those of `config`."""
    stored = files.load_config()
    name = config.first_difference(stored['config'])
    if name is not None:
        raise ValueError(
            f'{name}={getattr(config, name)!r} differs from {stored["config"][name]!r} in {files.config}: '
            'use that, another outname, or resume=restart'
        )
    return stored


def _restore(trainer: Trainer, checkpoint: dict[str, Any], files: RunFiles) -> None:
    try:
        trainer.restore(checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError):
        path = files.checkpoint(checkpoint['step'])
        raise ValueError(f'{path} is of another run: remove it, use another outname, or resume=restart') from None


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
    """Removes what only resuming needed."""
    files.previous.unlink(missing_ok=True)
    if not config.checkpoints:
        for step in files.steps():
            files.checkpoint(step).unlink()


def _complete(config: Config, files: RunFiles) -> Outcome:
    content = files.load_final()
    _remove_surplus(config, files)  # the process that wrote the file may have been killed before it did
    output = content['output']
    return Outcome(
        'complete', output['step'], output['dynamics'], content['best'], output['entropy'], output['excess_error']
    )
