"""A whole run: from its options to its files, begun, resumed, or found complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from RLM_clean import init, measures
from RLM_clean.checkpoints import Record, RunFiles, save
from RLM_clean.config import Config, resolve_device
from RLM_clean.measures import Language
from RLM_clean.plots import save_learning_curve
from RLM_clean.signals import Interruption
from RLM_clean.training import Trainer, run

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
    files = RunFiles(config.outname)
    begun = _begun(config, files)
    stored = _stored(config, files) if begun and config.resume != 'restart' else None
    with prepared_machine(config) as device, ExitStack() as claims:
        if begun:
            claims.enter_context(files.claim())
        if stored is not None and files.final.exists():
            return _complete(config, files)
        checkpoint = files.newest(say) if stored is not None else None
        if config.resume == 'require' and checkpoint is None:
            raise ValueError(
                f"resume='require' finds no checkpoint of outname={config.outname!r} to go on from: use auto"
            )
        _make_folder(config, files)
        if config.resume == 'restart':
            files.remove()
        for leftover in files.leftovers():
            leftover.unlink()
            say(f'{leftover} was left by a killed process and is removed')
        interruption = claims.enter_context(Interruption())
        language = prepare_language(config, device, stored, say)
        trainer = Trainer(config, language, device)
        if stored is None:
            if files.config.exists():  # begun by another process in the meantime
                raise files.busy()
            save({'config': config.to_dict(), 'rules': language.rules(), **language.losses()}, files.config)
            claims.enter_context(files.claim())
        if checkpoint is not None:
            _restore(trainer, checkpoint, files)
            say(f'going on from step {trainer.step}')
        if not run(trainer, files, interruption):
            say(f'{interruption.name}: saved at step {trainer.step}; the same command goes on from there')
            return _outcome('interrupted', trainer)
        _finish(trainer, files)
    return _outcome('stopped early' if trainer.stopped_early else 'done', trainer)


@contextmanager
def prepared_machine(config: Config) -> Iterator[torch.device]:
    """The device of a run, with the threads and the algorithms that its options ask for; both go back at the end.

    A notebook that trains keeps its own settings, and those of one run do not reach the next.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(config.threads or init.default_threads(config))
    if config.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        if config.deterministic != deterministic:  # to set it takes torch over a second
            torch.use_deterministic_algorithms(config.deterministic)
        yield resolve_device(config.device)
    finally:
        torch.set_num_threads(threads)
        if config.deterministic != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def prepare_language(config: Config, device: torch.device, stored: dict[str, Any] | None, say: Say) -> Language:
    """The language of a run with its exact losses; those in `stored`, the content of its file, are not made again."""
    grammar = init.init_data(config, device, None if stored is None else stored['rules'])
    reference = measures.reference(grammar, config.context_size, config.objective).to(device)
    if stored is not None:
        return Language(grammar, reference, stored['entropy'], stored['marginal'], stored['floors'])
    floors: dict[int, measures.Estimate] = {}
    for k in measures.window_ladder(config.context_size):
        if config.objective == 'last' and k == config.context_size and not measures.summable(grammar, k):
            floors[k] = reference.floor()  # the same contexts: their posteriors are there already
        else:
            floors |= measures.window_entropies(grammar, [k])
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


def _finish(trainer: Trainer, files: RunFiles) -> None:
    """Writes the file of the finished run and its picture, and removes what only resuming needed."""
    output = {
        **trainer.language.losses(),
        'dynamics': trainer.dynamics,
        'step': trainer.step,
        'early_stop': trainer.stopped_early,
        'excess_error': trainer.excess_error,
    }
    config = trainer.config
    content = {'config': config.to_dict(), 'output': output, 'model': trainer.weights(), 'best': trainer.best}
    save_learning_curve(trainer.dynamics, trainer.language, config, files.picture)
    save(content, files.final)
    _remove_surplus(config, files)


def _remove_surplus(config: Config, files: RunFiles) -> None:
    """Removes what only resuming needed."""
    files.previous.unlink(missing_ok=True)
    if not config.checkpoints:
        for step in files.steps():
            files.checkpoint(step).unlink()


def _outcome(status: str, trainer: Trainer) -> Outcome:
    t = trainer
    return Outcome(status, t.step, t.dynamics, t.best, t.language.entropy, t.excess_error)


def _complete(config: Config, files: RunFiles) -> Outcome:
    content = files.load_final()
    _remove_surplus(config, files)  # the process that wrote the file may have been killed before it did
    output = content['output']
    return Outcome(
        'complete', output['step'], output['dynamics'], content['best'], output['entropy'], output['excess_error']
    )
