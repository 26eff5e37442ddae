"""Groups of runs that are trained together in one process: one graph takes a step of all of them.

The weights of the runs are stacked along a first axis, and the graph is torch.func.vmap of the step of a single run.
Each run keeps its own language, batches, scalars (learning rate, momentum, ...), records, checkpoints and early stop,
and writes the files that it would write alone; its losses are those of the run alone up to rounding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from RLM_clean.config import Config
from RLM_clean.training import machine
from RLM_clean.training.backends import CompilationError, GraphUpdate, captured, compiled, traced
from RLM_clean.training.lifecycle import ActiveRun, Outcome, claim, outcome
from RLM_clean.training.loop import DivergedError, Recorder, Trainer, make_trainer
from RLM_clean.training.progress import Progress, Say, say
from RLM_clean.training.signals import Interruption
from RLM_clean.training.step import Scalars, Step, scalars_of

# The bytes that the steps of a group may work on together on a CPU, for which its cache has room; and the most runs
# there: beyond either, more runs in a group make none of them faster (docs/sweeps.md).
_CACHE, _MOST_ON_CPU = 12 * 2**20, 8
# Each run holds files open, of which a process may have about a thousand.
_MOST = 256

Result = tuple[Config, Outcome | Exception]


@dataclass
class Member:
    """A run of a group: its files, and the trainer of its model."""

    run: ActiveRun
    trainer: Trainer


def train(configs: Sequence[Config], say: Say = say) -> Iterator[Result]:
    """Trains runs that differ in scalars alone; yields each with its outcome, or its error, as it ends.

    An error in one run stops no other. After an interruption all runs are saved and yielded as 'interrupted'; those
    that were not set up yet are left out.
    """
    results: list[Result] = []  # of runs that are complete, or cannot be trained
    runs: list[ActiveRun] = []
    with ExitStack() as stack:
        _claim(configs, runs, results, stack, say)
        for run in runs:
            run.interruption.stop_at_once()
        members = _prepare(runs, results)
        ensemble = _make_ensemble(members, results, say)
        for run in runs:
            run.interruption.wait_for_step()
        yield from results
        if ensemble is not None:
            # The interruption that was entered last receives the signals.
            yield from _train(members, ensemble, runs[-1].interruption, stack)
        return
    # A signal came while the runs were set up, and ended the block.
    yield from results
    ended = {config.outname for config, _ in results}
    for run in runs:
        if run.config.outname not in ended:
            yield run.config, run.stopped()


def _claim(configs: Sequence[Config], runs: list[ActiveRun], results: list[Result], stack: ExitStack, say: Say) -> None:
    """Claims each run until `stack` is closed, and adds it to `runs`; those that are complete or fail to `results`."""
    for config in configs:
        try:
            with ExitStack() as claimed:
                run = claimed.enter_context(claim(config, _with_name(config, say)))
                if run.complete is None:
                    stack.enter_context(claimed.pop_all())
                    runs.append(run)
                else:
                    results.append((config, run.complete))
        except Exception as error:
            results.append((config, error))


def _with_name(config: Config, say: Say) -> Say:
    """What a run of a group says, with its name in front."""
    return lambda line: say(f'{os.path.basename(config.outname)}: {line}')


def _prepare(runs: Sequence[ActiveRun], results: list[Result]) -> list[Member]:
    """The language and the trainer of each run, at its newest checkpoint; the runs that fail go to `results`."""
    members = []
    for run in runs:
        try:
            # No step is compiled for a single run: the group has its own.
            trainer = make_trainer(run.config, run.language(), replace(run.machine, compile=False), run.say)
            run.restore(trainer)
        except Exception as error:
            results.append((run.config, error))
        else:
            members.append(Member(run, trainer))
    return members


def _make_ensemble(members: Sequence[Member], results: list[Result], say: Say) -> Ensemble | None:
    """The ensemble of runs that are set up; None where there are none, or where it fails, which `results` says."""
    if not members:
        return None
    try:
        return _compiled_or_not(members, say)
    except Exception as error:  # not the fault of one of them
        results += [(member.run.config, error) for member in members]
        return None


def _compiled_or_not(members: Sequence[Member], say: Say) -> Ensemble:
    """An ensemble whose steps are compiled where all runs ask for it and it does not fail.

    Raises ValueError where compile=on fails, and for models that cannot be stacked.
    """
    trainers = [member.trainer for member in members]
    if all(member.run.machine.compile for member in members):
        try:
            return Ensemble(trainers, compile=True)
        except CompilationError as error:
            if any(member.run.config.compile == 'on' for member in members):
                raise ValueError(f"compile='on' fails ({error}): use auto or off") from None
            say(f'the step could not be compiled ({error}): the runs go on without')
    try:
        return Ensemble(trainers, compile=False)
    except CompilationError as error:
        name = trainers[0].config.model
        raise ValueError(f'model={name!r} cannot be trained in a group ({error}): train its runs one by one') from None


def _train(
    members: Sequence[Member], ensemble: Ensemble, interruption: Interruption, stack: ExitStack
) -> Iterator[Result]:
    """Begins runs that are set up, and trains them to their ends or to an interruption."""
    recorders: dict[int, Recorder] = {}
    for i, member in enumerate(members):
        try:
            # Only now is it known whether the steps are compiled, which _config.pt says.
            member.run.begin(member.trainer.language, replace(member.run.machine, compile=ensemble.compiled))
            recorder = Recorder(member.trainer, member.run.files)
            stack.enter_context(recorder.trackers)
            recorders[i] = recorder
        except Exception as error:
            ensemble.leave(i)
            yield member.run.config, error
    try:
        if recorders:
            yield from _loop(members, ensemble, recorders, interruption)
    except Exception as error:  # not the fault of one of them
        for i in recorders:
            yield members[i].run.config, error


def _loop(
    members: Sequence[Member], ensemble: Ensemble, recorders: dict[int, Recorder], interruption: Interruption
) -> Iterator[Result]:
    """The loop of training over all runs at once; takes those that end or fail out of `recorders`."""
    failures: dict[int, DivergedError] = {}
    last = max(member.run.config.last_step for member in members)
    with Progress(ensemble.step, last, None) as progress:
        while recorders:
            for i, recorder in list(recorders.items()):
                result = failures.get(i) or _visit(members[i], recorder, interruption)
                if result is not None:
                    del recorders[i]
                    ensemble.leave(i)
                    recorder.trackers.finish(failed=isinstance(result, Exception))
                    yield members[i].run.config, result
            if recorders:
                steps = min(recorder.next_stop - recorder.trainer.step for recorder in recorders.values())
                failures = ensemble.advance(steps, interruption.requested)
                progress.advance(ensemble.step)


def _visit(member: Member, recorder: Recorder, interruption: Interruption) -> Outcome | Exception | None:
    """Makes what is due at this step; returns the outcome of a run that ends here, or its error."""
    try:
        recorder.visit()
        if member.trainer.ended:
            return member.run.finish(member.trainer)
        if interruption.requested():
            recorder.save()
            return outcome(member.trainer, 'interrupted')
    except Exception as error:  # one run stops no other
        return error
    return None


class Ensemble:
    """Trainers whose steps are taken together. Raises CompilationError where no graph of their step can be made.

    The tensors of all models and optimizers are stacked, and become views into the stacks. A run that leaves is
    ignored: its rows are computed as before.
    """

    def __init__(self, trainers: Sequence[Trainer], compile: bool) -> None:
        self.active = dict(enumerate(trainers))
        self.size, self.device, self.compiled = len(trainers), trainers[0].device, compile
        updates = [GraphUpdate(t.model, t.optimizer, t.config) for t in trainers]
        self.tensors = [torch.stack(column) for column in zip(*(u.tensors for u in updates), strict=True)]
        for i, (trainer, update) in enumerate(zip(trainers, updates, strict=True)):
            update.move_to([tensor[i] for tensor in self.tensors])
            trainer.take_steps = update
        write = updates[0].in_place(torch.func.vmap(Step(trainers[0].model, trainers[0].config)))
        example, capture = self._batches(1), compile and self.device.type == 'cuda'
        # The kernels of attention are for one model: for several, attention is made of matrix products.
        with sdpa_kernel(SDPBackend.MATH):
            self.take_step = (compiled if compile and not capture else traced)(write, self.tensors, *example)
            if capture:
                self.take_step = captured(self.take_step, self.tensors, *example)

    @property
    def step(self) -> int:
        """The smallest step of the runs that have not left."""
        return min(trainer.step for trainer in self.active.values())

    def leave(self, i: int) -> None:
        """Ignores trainer number i from now on."""
        del self.active[i]

    def advance(self, steps: int, interrupted: Callable[[], bool] = lambda: False) -> dict[int, DivergedError]:
        """Takes so many steps of all runs, or fewer after an interruption, then reads their losses.

        The runs may be at different steps. Returns the errors of those whose loss is not finite.
        """
        start = time.perf_counter()
        inputs, targets, scalars = self._batches(steps)
        losses = []
        with torch.no_grad():
            for i in range(len(inputs)):
                if interrupted():
                    break
                now = {name: column[i : i + 1] for name, column in scalars.items()}
                losses.append(self.take_step(self.tensors, inputs[i : i + 1], targets[i : i + 1], now))
        values = torch.cat(losses).T.tolist() if losses else [[]] * self.size
        seconds = (time.perf_counter() - start) / len(self.active)
        failures = {}
        for i, trainer in self.active.items():
            trainer.step += len(losses)
            trainer.seconds += seconds
            try:
                trainer.read_losses(values[i])
            except DivergedError as error:
                failures[i] = error
        return failures

    def _batches(self, steps: int) -> tuple[Tensor, Tensor, Scalars]:
        """Inputs `(S, R, A, B, T)`, targets and scalars of the next steps of all R runs.

        Those of a run that has left are those of another: its rows need some.
        """
        steps = min(steps, *(t.feed.left(t.step) for t in self.active.values()))
        parts = {i: self._part(trainer, steps) for i, trainer in self.active.items()}
        some = next(iter(parts.values()))
        inputs, targets, scalars = zip(*(parts.get(i, some) for i in range(self.size)), strict=True)
        columns = {name: torch.stack([part[name] for part in scalars], 1) for name in scalars[0]}
        return torch.stack(inputs, 1), torch.stack(targets, 1), columns

    def _part(self, trainer: Trainer, steps: int) -> tuple[Tensor, Tensor, Scalars]:
        scalars = scalars_of(trainer.config, range(trainer.step, trainer.step + steps))
        return *trainer.feed(trainer.step, steps), {name: x.to(self.device) for name, x in scalars.items()}


# ---------------------------------------------------------------------- how many runs make a group


def group_size(config: Config, device: torch.device, memory: float) -> int:
    """How many runs like this one are best trained together, within so many bytes of memory; at least one.

    On a CPU as many as its cache has room for; on a GPU as many as its memory.
    """
    if device.type == 'mps':  # no graph of a step is made there
        return 1
    most = fitting(config, memory)
    if device.type == 'cuda':
        return most
    # Weights, gradients, momenta and activations, in float32.
    step = 4 * (3 * machine.num_weights(config) + machine.num_activations(config))
    return max(1, min(most, _MOST_ON_CPU, _CACHE // step))


def fitting(config: Config, memory: float) -> int:
    """How many runs like this one fit into so many bytes of memory together; at least one."""
    run = sum(need.size for need in machine.memory_needs(config))
    return max(1, int(min(memory / run, _MOST)))
