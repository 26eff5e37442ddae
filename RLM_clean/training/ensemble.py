"""Ensembles: runs of one shape trained together in one process, their weights stacked along a first axis of members.

One graph takes a step of all of them: torch.func.vmap of the pure function of a single run. Each member keeps its own
grammar, batches, scalars (learning rate, momentum, ...), records, checkpoints and early stop, and writes the files that
it would write alone: its model and its optimizer hold views into the stacked tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from RLM_clean.config import Config
from RLM_clean.training import backends
from RLM_clean.training.backends import CompilationError, GraphUpdate
from RLM_clean.training.lifecycle import OpenedRun, Outcome, Say, open_run
from RLM_clean.training.loop import TOKENS_AHEAD, WINDOW, DivergedError, Session, Trainer
from RLM_clean.training.progress import Progress
from RLM_clean.training.signals import Interruption
from RLM_clean.training.step import Scalars, Step

# Bytes of weights, gradients, momenta and activations that members may take together on a CPU: its cache holds them,
# and beyond it stacked members get in each other's way. More than so many members are no faster, each, than these.
_CACHE, _CPU_SEATS = 12 * 2**20, 8
# Each run holds files open, of which a process may have a thousand.
_MOST_SEATS = 256


class Ensemble:
    """Trainers whose steps are taken together.

    `trainers` sit on numbered seats of which there may be more: an empty one computes and is never looked at, so that
    what a member becomes does not depend on who is there.
    """

    def __init__(self, trainers: Mapping[int, Trainer], seats: int, compile: bool) -> None:
        self.trainers = dict(trainers)
        first = next(iter(self.trainers.values()))
        self.config, self.device, self.seats = first.config, first.device, seats
        shares = {seat: GraphUpdate(t.model, t.optimizer, t.config) for seat, t in self.trainers.items()}
        some = next(iter(shares.values()))
        columns = zip(*(shares.get(seat, some).tensors for seat in range(seats)), strict=True)
        self.tensors = [torch.stack(column) for column in columns]
        for seat, share in shares.items():
            share.adopt([tensor[seat] for tensor in self.tensors])
            self.trainers[seat].take_steps = share
        step = torch.func.vmap(Step(first.model, first.config))
        write = backends.in_place(step, list(some.parameters), list(some.state))
        example = self._batches(1)
        # The kernels of attention are for one model: for several it is products of matrices.
        with sdpa_kernel(SDPBackend.MATH):
            if compile:
                self.function = backends.compiled(self.config, write, self.tensors, *example)
            else:
                self.function = backends.traced(write, self.tensors, *example)

    @property
    def step(self) -> int:
        """The step of the member that is the least far."""
        return min(trainer.step for trainer in self.trainers.values())

    def leave(self, seat: int) -> None:
        """Looks at a member no more."""
        del self.trainers[seat]

    def advance(self, steps: int, interrupted: Callable[[], bool] = lambda: False) -> dict[int, DivergedError]:
        """Updates all members by so many steps, or up to an interruption, then looks at the losses.

        Each trainer is at a step of its own. Returns what went wrong with whom.
        """
        start = time.perf_counter()
        inputs, targets, scalars = self._batches(steps)
        losses = []
        with torch.no_grad():
            for i in range(len(inputs)):
                if interrupted():
                    break
                now = {name: column[i : i + 1] for name, column in scalars.items()}
                losses.append(self.function(self.tensors, inputs[i : i + 1], targets[i : i + 1], now))
        values = torch.cat(losses).T.tolist() if losses else [[]] * self.seats
        seconds = (time.perf_counter() - start) / len(self.trainers)
        failed = {}
        for seat, trainer in self.trainers.items():
            trainer.step += len(losses)
            trainer.seconds += seconds
            try:
                trainer.note(values[seat])
            except DivergedError as error:
                failed[seat] = error
        return failed

    def _batches(self, steps: int) -> tuple[Tensor, Tensor, Scalars]:
        """Inputs `(S, R, A, B, T)`, targets and scalars of the next steps of all R seats."""
        trainers = list(self.trainers.values())
        steps = min(steps, *(t.feed.left(t.step) for t in trainers))
        parts = {seat: self._part(trainer, steps) for seat, trainer in self.trainers.items()}
        rows = [parts.get(seat, next(iter(parts.values()))) for seat in range(self.seats)]
        inputs, targets, scalars = zip(*rows, strict=True)
        columns = {name: torch.stack([part[name] for part in scalars], 1) for name in scalars[0]}
        return torch.stack(inputs, 1), torch.stack(targets, 1), columns

    def _part(self, trainer: Trainer, steps: int) -> tuple[Tensor, Tensor, Scalars]:
        scalars = backends.scalars_of(trainer.config, range(trainer.step, trainer.step + steps))
        return *trainer.feed(trainer.step, steps), {name: x.to(self.device) for name, x in scalars.items()}


def most_seats(config: Config, device: torch.device, memory: float) -> int:
    """How many runs like this one are best trained together, within so many bytes of memory; at least one.

    On a CPU as many as its cache holds; a GPU is the faster the more there are.
    """
    if device.type == 'mps':  # where no graph of a step is made
        return 1
    fitting = fitting_seats(config, memory)
    return fitting if device.type == 'cuda' else max(1, min(fitting, _CPU_SEATS, _CACHE // _step_bytes(config)))


def fitting_seats(config: Config, memory: float) -> int:
    """How many runs like this one fit into so many bytes of memory together; at least one."""
    c = config
    # Rules and the tables that they are drawn from, on every level of an RHM.
    rules = 16 * (c.num_layers if c.dataset == 'rhm' else 1) * c.num_features**3
    # Batches drawn ahead, and stacked; contexts with their posteriors; the models kept as best and as last.
    batches = 24 * min(WINDOW * c.accumulation * c.batch_size * 2**c.num_layers, TOKENS_AHEAD)
    posteriors = 8 * min(4096 * c.num_features * (c.context_size if c.objective == 'all' else 1), 2**24)
    run = rules + batches + posteriors + _step_bytes(c) + 16 * _weights(c)
    return max(1, int(min(memory / run, _MOST_SEATS)))


def _weights(config: Config) -> int:
    c = config
    return c.depth * (4 + 2 * c.ffwd_size) * c.embedding_dim**2 + 2 * c.num_features * c.embedding_dim


def _step_bytes(config: Config) -> int:
    """About the bytes that a step works on: weights, gradients, momenta and activations."""
    c = config
    positions = c.accumulation * c.batch_size * c.context_size
    activations = positions * (c.depth * (8 + 3 * c.ffwd_size) * c.embedding_dim + 2 * c.num_features)
    return 4 * (3 * _weights(c) + activations)


def train(members: Mapping[int, Config], seats: int, say: Say = print) -> Iterator[tuple[Config, Outcome | Exception]]:
    """Trains runs that differ in scalars alone, on their seats; each with its outcome, or its error, as it ends.

    Files, batches and initial weights are those of the same runs alone, the losses the same to rounding. After an
    interruption all that are under way are saved, and their status is 'interrupted'; those not yet begun are left out.
    """
    with ExitStack() as stack:
        opened: dict[int, OpenedRun] = {}
        interruption = stack.enter_context(Interruption())
        for seat, config in members.items():
            try:
                run = open_run(config, stack, say, alone=False)
            except Exception as error:  # of any kind: one run stops no other
                yield config, error
                continue
            if isinstance(run, Outcome):
                yield config, run
                continue
            opened[seat] = run
            interruption = run.interruption  # the one entered last receives the signals
            if interruption.requested():
                break
        if interruption.requested():  # before the first step: there is nothing to save yet
            for run in opened.values():
                yield run.config, run.outcome('interrupted')
            return
        sessions = {seat: Session(run.trainer, run.files) for seat, run in opened.items()}
        for session in sessions.values():
            stack.enter_context(session.curves)
        try:
            for seat, result in _train(opened, sessions, seats, interruption, say):
                del sessions[seat]
                yield opened[seat].config, result
        except Exception as error:  # it was not the fault of one
            for seat in sessions:
                yield opened[seat].config, error


def _train(
    opened: dict[int, OpenedRun], sessions: dict[int, Session], seats: int, interruption: Interruption, say: Say
) -> Iterator[tuple[int, Outcome | Exception]]:
    """The loop of `train` over `sessions`, from which the caller takes a run when it has its result."""
    if not sessions:
        return
    ensemble = _make_ensemble(opened, seats, say)
    failed: dict[int, DivergedError] = {}
    with Progress(ensemble.step, ensemble.config.last_step, None) as progress:
        while sessions:
            for seat, session in list(sessions.items()):
                result: Outcome | Exception | None = failed.get(seat)
                try:
                    if result is None:
                        session.visit()
                        result = opened[seat].finish() if session.ended else None
                except Exception as error:  # of any kind: one run stops no other
                    result = error
                if result is not None:
                    ensemble.leave(seat)
                    yield seat, result
            if interruption.requested():
                for seat, session in list(sessions.items()):
                    yield seat, _save(session, opened[seat])
            elif sessions:
                steps = min(session.next_stop - session.trainer.step for session in sessions.values())
                failed = ensemble.advance(steps, interruption.requested)
                progress.advance(ensemble.step)


def _save(session: Session, run: OpenedRun) -> Outcome | Exception:
    try:
        session.save()
    except OSError as error:
        return error
    return run.outcome('interrupted')


def _make_ensemble(opened: dict[int, OpenedRun], seats: int, say: Say) -> Ensemble:
    """Compiled where every member's machine says so and it works. Raises ValueError where it is asked for and fails."""
    trainers = {seat: run.trainer for seat, run in opened.items()}
    if all(run.machine.compile for run in opened.values()):
        try:
            return Ensemble(trainers, seats, compile=True)
        except CompilationError as error:
            if any(run.config.compile == 'on' for run in opened.values()):
                raise ValueError(f"compile='on' fails ({error}): use auto or off") from None
            say(f'the step could not be compiled ({error}): going on without')
    for run in opened.values():
        run.machine = replace(run.machine, compile=False)
    return Ensemble(trainers, seats, compile=False)
