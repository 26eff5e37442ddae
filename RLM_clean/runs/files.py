"""The files of a run: written atomically, read safely, resumed from, and opened again.

{outname}_config.pt    {'config', 'rules', 'entropy', 'marginal', 'floors'}
{outname}_t{step}.pt   {'model', 'state', 'step'}, and in the newest one alone 'resume'
{outname}_previous.pt  while the run lasts: the whole newest checkpoint but one, should the newest be damaged
{outname}.pt           {'config', 'output', 'model', 'best'}, written when the run is done
{outname}_log.jsonl    one record a line
{outname}.png          the learning curve
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from RLM_clean.config import Config
from RLM_clean.runs.locks import BusyError, try_lock
from RLM_clean.runs.storage import REMEDY, TEMPORARY, UnreadableFileError, atomic_write, link, load, save

Record = dict[str, Any]


class RunFiles:
    """The paths of a run's files, and what is done with them."""

    def __init__(self, outname: str | os.PathLike[str]) -> None:
        self.outname = Path(outname)
        self.folder = self.outname.parent
        name = self.outname.name
        self.config = self.folder / f'{name}_config.pt'
        self.final = self.folder / f'{name}.pt'
        self.previous = self.folder / f'{name}_previous.pt'
        self.log = self.folder / f'{name}_log.jsonl'
        self.picture = self.folder / f'{name}.png'
        self.curves = self.folder / f'{name}_tensorboard'
        self._saved: dict[str, Any] | None = None  # the last checkpoint that was saved here

    def load_config(self) -> dict[str, Any]:
        """The content of {outname}_config.pt. Raises UnreadableFileError also for an option that is none."""
        kinds = {'config': dict, 'rules': Tensor, 'entropy': float, 'marginal': float, 'floors': dict}
        content = load(self.config, kinds)
        for name in sorted(content['config'].keys() - {field.name for field in fields(Config)}):
            raise UnreadableFileError(f'{self.config} has {name!r}, which is no option: {REMEDY}', damaged=False)
        return content

    def load_final(self) -> dict[str, Any]:
        """The content of {outname}.pt."""
        content = load(self.final, {'config': dict, 'output': dict, 'model': dict, 'best': dict})
        for name in ('entropy', 'dynamics', 'step', 'excess_error'):
            if name not in content['output']:
                raise UnreadableFileError(f'{self.final} is no file of a run, it lacks {name!r}: {REMEDY}', False)
        return content

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the run for this process while entered, by a lock on its _config.pt that ends with the process.

        Raises BusyError when another process holds it.
        """
        with try_lock(self.config) as held:
            if held is None:
                raise self.busy()
            yield

    def busy(self) -> BusyError:
        """The error of a second process on the same run."""
        return BusyError(f'outname={str(self.outname)!r} is being trained by another process: wait, or use another')

    def checkpoint(self, step: int) -> Path:
        """The path of the checkpoint of a step."""
        return self.folder / f'{self.outname.name}_t{step}.pt'

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        pattern = re.compile(re.escape(self.outname.name) + r'_t(\d+)\.pt')
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))

    def leftovers(self) -> list[Path]:
        """Temporary files of this run that a killed process left behind."""
        files = (self.config, self.final, self.previous, self.log, self.picture, self.checkpoint(0))
        stems = tuple(f'.{file.name}{TEMPORARY}' for file in files)
        step = re.compile(re.escape(f'.{self.outname.name}') + r'_t\d+\.pt' + re.escape(TEMPORARY) + r'\d+')
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in names if name.startswith(stems) or step.fullmatch(name)]

    def remove(self) -> None:
        """Removes every file of the run."""
        own = [self.final, self.config, self.previous, self.log, self.picture, *self.leftovers()]
        for path in own + [self.checkpoint(step) for step in self.steps()]:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.curves, ignore_errors=True)

    def save_checkpoint(self, content: dict[str, Any], keep: Container[int]) -> None:
        """Saves the newest checkpoint, `content` with its 'resume', then retires the one before it."""
        earlier = [step for step in self.steps() if step < content['step']]
        save(content, self.checkpoint(content['step']))
        if earlier:
            self.retire(earlier[-1], keep)
        self._saved = content

    def retire(self, step: int, keep: Container[int]) -> None:
        """Takes 'resume' out of a checkpoint that is no longer the newest; removes it when `keep` lacks its step.

        The whole file stays under another name until the next one is retired.
        """
        path = self.checkpoint(step)
        # What this process has written it need not read.
        content = self._saved if self._saved is not None and self._saved['step'] == step else load(path)
        if 'resume' in content:
            link(path, self.previous)
            if step in keep:
                save({name: part for name, part in content.items() if name != 'resume'}, path)
        if step not in keep:
            path.unlink()

    def retire_all(self, newest: int, keep: Container[int]) -> None:
        """Retires the checkpoints before `newest`: a process that was killed between two files leaves several whole."""
        for step in self.steps():
            if step < newest:
                self.retire(step, keep)

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that a run can go on from; None when it has to begin at step 0.

        A newest checkpoint that is damaged is removed, with a line to `say`, and the one before takes its place.
        Raises UnreadableFileError when there are checkpoints and none can be read, and for files that are none.
        """
        damaged: list[tuple[Path, UnreadableFileError]] = []
        found = None
        readable = False
        for path in [self.checkpoint(step) for step in reversed(self.steps())] + [self.previous]:
            if not path.exists():
                continue
            try:
                content = load(path, {'model': dict, 'state': dict, 'step': int})
            except UnreadableFileError as error:
                if not error.damaged:
                    raise
                damaged.append((path, error))
                continue
            readable = True
            if 'resume' in content:
                found = content
                break
        if damaged and not readable:
            raise damaged[0][1]
        instead = 'the run begins again' if found is None else f'the run goes on from step {found["step"]}'
        for path, _ in damaged:
            path.unlink()
            say(f'{path} was damaged and is removed: {instead}')
        return found

    def append_record(self, record: Record) -> None:
        """Adds one line to the log, flushed."""
        with open(self.log, 'a', encoding='utf-8') as file:
            file.write(json.dumps(record) + '\n')

    def read_log(self) -> list[Record]:
        """The records of the log; none where there is no log."""
        records = []
        if self.log.exists():
            for line in self.log.read_text(encoding='utf-8').splitlines():
                with suppress(json.JSONDecodeError):  # the last line of a killed run can be cut short
                    records.append(json.loads(line))
        return records

    def rewrite_log(self, records: list[Record]) -> None:
        """Makes the log hold these records and no others."""
        text = ''.join(json.dumps(record) + '\n' for record in records)
        atomic_write(self.log, lambda file: file.write(text.encode()))


# ---------------------------------------------------------------------- runs to look at
