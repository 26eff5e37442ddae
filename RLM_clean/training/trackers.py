"""Trackers: programs that show the records of runs as they come. Each is sent the records and the floors of a run.

A tracker is a courtesy, as output is: whatever goes wrong in one, the run goes on. A new one is a class with the three
methods of `Tracker` and an entry in `TRACKERS`.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.runs.columns import flat
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.training.progress import Say

# What the runs are filed under, by trackers that ask for it.
PROJECT = 'RLM_clean'


class Tracker(Protocol):
    """What is told of a run. Any method may raise: the tracker is then left out, with a line that says why."""

    def start(self, config: Config, step: int | None) -> None:
        """A run begins (step None), or goes on after the record of a step: then in the same place, where possible."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """What was measured at a step, as run/excess, and the floors, as floors/3 tokens; losses in nats."""

    def finish(self, failed: bool) -> None:
        """The run is done or interrupted, or has failed. Called once, in the end."""


class TensorBoard:
    """Event files in the folder {outname}_tensorboard."""

    def start(self, config: Config, step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps after the newest checkpoint come again.
        again = None if step is None else step + 1
        self.writer: Any = SummaryWriter(str(RunFiles(config.outname).curves), purge_step=again)

    def record(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases in the folder {outname}_wandb. Nothing is sent: `wandb sync` does that later.

    A run that goes on writes a second file with the same id, which `wandb sync` joins to the first.
    """

    def start(self, config: Config, step: int | None) -> None:
        os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')  # a crash of wandb itself would be sent
        import wandb

        folder = RunFiles(config.outname).wandb
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(folder.glob('wandb/offline-run-*-*')) if step is not None else []
        self.run: Any = wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            name=os.path.basename(config.outname),
            group=os.path.dirname(config.outname) or None,
            id=earlier[-1].name.rpartition('-')[2] if earlier else None,
            dir=str(folder),
            mode='offline',
            config=config.to_dict(),
            reinit='create_new',  # a run of a group leaves those of the others open
            settings=wandb.Settings(
                silent=True, console='off', disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )

    def record(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, in its database on this machine: `trackio show --project RLM_clean` shows it."""

    def start(self, config: Config, step: int | None) -> None:
        import trackio

        def init() -> Any:
            return trackio.init(
                project=PROJECT,
                name=config.outname,
                group=os.path.dirname(config.outname) or None,
                config=config.to_dict(),
                resume='never' if step is None else 'allow',
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        with _silent():
            # In a context of its own, for it ends the run that the context has: one of the same group.
            self.run = contextvars.Context().run(init)

    def record(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        with _silent():
            self.run.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    'tensorboard': TensorBoard,
    'wandb': WeightsAndBiases,
    'trackio': Trackio,
}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Trackers:
    """The trackers that a run asks for, started while entered. One that fails is left out, with a line to `say`."""

    def __init__(self, config: Config, language: Language, step: int | None, say: Say) -> None:
        self.config, self.step, self.say = config, step, say
        names = [config.tracker, *(['tensorboard'] if config.tensorboard else [])]
        self.active = {name: TRACKERS[name]() for name in dict.fromkeys(names) if name != 'none'}
        self.floors = {f'floors/{k} tokens': value for k, (value, _) in language.floors.items()}
        self.floors['floors/task'] = language.entropy

    def record(self, record: Record) -> None:
        """Sends the numbers of a record, and the floors, which are lines beside its losses."""
        numbers = {f'run/{name}': value for name, value in flat(record).items() if name not in ('t', 'seconds')}
        self._call(lambda tracker: tracker.record(record['t'], numbers | self.floors))

    def finish(self, failed: bool = False) -> None:
        """Ends what is sent; a second call does nothing."""
        self._call(lambda tracker: tracker.finish(failed))
        self.active = {}

    def __enter__(self) -> Trackers:
        self._call(lambda tracker: tracker.start(self.config, self.step))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(failed=kind is not None)

    def _call(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.active.items()):
            try:
                what(tracker)
            except (Exception, SystemExit) as error:
                del self.active[name]
                self.say(f'tracker={name} {_reason(name, error)}: the run goes on without it')


def _reason(name: str, error: BaseException) -> str:
    """What went wrong, in a part of a line."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f'needs a package that is not installed (pip install {name})'
    return f'failed ({" ".join(f"{type(error).__name__}: {error}".split())[:200]})'
