"""What a run says while it works: a bar on a terminal, plain lines in a log, both with the time left."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from RLM_clean.config import Config
from RLM_clean.measures import Language
from RLM_clean.runs.files import RunFiles

# Between two records, a log gets a line at least so often.
_SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Shows the steps of a run, its last record and an estimate of the time left."""

    def __init__(self, first: int, last: int, floor: float | None, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else sys.stdout
        self.last = last
        self.floor = floor
        self.first, self.step = first, first
        self.start = self.said = time.monotonic()
        self.bar: tqdm[Any] | None = None
        if self.stream.isatty():
            self.bar = tqdm(total=last, initial=first, unit='step', file=self.stream, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Tells that the run is at `step`."""
        if self.bar is not None:
            self.bar.update(step - self.step)
        self.step = step
        if self.bar is None and time.monotonic() - self.said > _SECONDS_BETWEEN_LINES:
            self._say(f'step {step:>{len(str(self.last))}}/{self.last}')

    def record(self, record: dict[str, Any]) -> None:
        """Shows a record: the losses, and the excess over the floor where it is known."""
        excess = record['excess']
        if self.bar is not None:
            shown = {'test': f'{record["testloss"]:.4f}'}
            if excess is not None:
                shown['excess'] = f'{excess:.4f}'
            self.bar.set_postfix(shown)
            return
        line = f'step {record["t"]:>{len(str(self.last))}}/{self.last}'
        line += f'  train {record["trainloss"]:.4f}  test {record["testloss"]:.4f}'
        if excess is not None:
            line += f'  excess {excess:.4f}'
        if self.floor is not None:
            line += f'  floor {self.floor:.4f}'
        self._say(line)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def _say(self, line: str) -> None:
        self.said = time.monotonic()
        done = self.step - self.first
        if done:
            rate = done / (self.said - self.start)
            line += f'  {rate:.3g} steps/s  {format_seconds((self.last - self.step) / rate)} left'
        print(line, file=self.stream, flush=True)


class Curves:
    """The records of a run for TensorBoard, the floors among them, in the folder {outname}_tensorboard if asked for."""

    def __init__(self, config: Config, language: Language) -> None:
        self.writer: Any = None
        self.lines = {f'floors/{k} tokens': value for k, (value, _) in language.floors.items()}
        self.lines['floors/task'] = language.entropy
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(RunFiles(config.outname).curves))

    def add(self, record: dict[str, Any]) -> None:
        """Adds the numbers of a record at its step."""
        if self.writer is None:
            return
        curves = {f'run/{name}': value for name, value in record.items() if name not in ('t', 'seconds')}
        for name, value in (curves | self.lines).items():
            self.writer.add_scalar(name, value, record['t'])

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()


def format_seconds(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours:.0f}:{minutes:02.0f}:{seconds:02.0f}'
