"""The files of a run: their paths, and how each is written, read and retired.

{outname}_config.pt    {'config', 'machine', 'rules', 'entropy', 'marginal', 'floors', 'contexts'}
{outname}_t{step}.pt   {'model', 'state', 'step'}, and in the newest one also 'resume'
{outname}_previous.pt  while the run lasts: the checkpoint before the newest with its 'resume', in case of damage
{outname}.pt           {'config', 'output', 'model', 'best'}, written when the run is done
{outname}_log.jsonl    one record per line
{outname}.png          the learning curve

contents.py describes what is in them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from RLM_clean.config import Config
from RLM_clean.runs import contents
from RLM_clean.runs.locks import BusyError, try_lock
from RLM_clean.runs.storage import FOLDER_REMEDY, TEMPORARY, UnreadableFileError, atomic_write, link, load, save

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
        self.wandb = self.folder / f'{name}_wandb'
        self._saved: dict[str, Any] | None = None  # the last checkpoint that was saved here

    def load_config(self, tensors: bool = True) -> dict[str, Any]:
        """The content of {outname}_config.pt, checked; `tensors=False` leaves the rules on the disk, unchecked.

        Raises UnreadableFileError, also for options that this version does not have or take.
        """
        content = load(self.config, tensors)
        contents.check(content, contents.CONFIG, self.config)
        for name in sorted(content['config'].keys() - {field.name for field in fields(Config)}):
            raise contents.foreign(self.config, f'it has {name!r}, which is not an option')
        try:
            config = Config(**content['config'])
        except ValueError as error:
            raise UnreadableFileError(f'{self.config} has options that do not work: {error}', damaged=False) from None
        if tensors:
            contents.check_rules(content['rules'], config, self.config)
        return content

    def load_final(self, tensors: bool = True) -> dict[str, Any]:
        """The content of {outname}.pt, checked; `tensors=False` leaves the weights on the disk, unchecked."""
        content = load(self.final, tensors)
        contents.check(content, contents.FINAL, self.final)
        contents.check_same_model(content['best'], content, self.final)
        return content

    def load_checkpoint(self, path: Path) -> dict[str, Any]:
        """The content of a checkpoint, checked: {outname}_t{step}.pt or {outname}_previous.pt."""
        content = load(path)
        contents.check(content, contents.CHECKPOINT, path)
        if path not in (self.checkpoint(content['step']), self.previous):
            raise contents.foreign(path, f'it is the checkpoint of step {content["step"]}')
        if 'resume' in content:
            contents.check_same_model(content['resume']['best'], content, path)
        return content

    def check_paths(self) -> None:
        """Raises UnreadableFileError for a folder in the place of a file of the run."""
        steps = [self.checkpoint(step) for step in self.steps()]
        for path in (self.config, self.final, self.previous, self.log, self.picture, *steps):
            if path.is_dir():
                raise UnreadableFileError(f'{path} is a folder: {FOLDER_REMEDY}', damaged=False)

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the run for this process while entered, by a lock on its _config.pt that ends with the process.

        Raises BusyError when another process holds it.
        """
        with ExitStack() as stack:
            try:
                file = stack.enter_context(try_lock(self.config))
            except FileNotFoundError:  # another process is about to begin the run again
                file = None
            if file is None:
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
        pattern = re.compile(re.escape(self.outname.name) + r'_t(0|[1-9][0-9]*)\.pt')
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
        """Removes every file of the run. Raises UnreadableFileError before, for a folder in the place of one."""
        self.check_paths()
        own = [self.final, self.config, self.previous, self.log, self.picture, *self.leftovers()]
        for path in own + [self.checkpoint(step) for step in self.steps()]:
            path.unlink(missing_ok=True)
        for folder in (self.curves, self.wandb):
            shutil.rmtree(folder, ignore_errors=True)

    def save_checkpoint(self, content: dict[str, Any], keep: Container[int]) -> None:
        """Saves the newest checkpoint, `content` with its 'resume', then retires the one before it."""
        earlier = [step for step in self.steps() if step < content['step']]
        save(content, self.checkpoint(content['step']))
        if earlier:
            self.retire(earlier[-1], keep)
        self._saved = content

    def retire(self, step: int, keep: Container[int]) -> None:
        """Takes 'resume' out of a checkpoint that is not the newest any more; removes it when `keep` lacks its step.

        The file with its 'resume' stays under the name {outname}_previous.pt until the next one is retired.
        """
        path = self.checkpoint(step)
        # What this process has written it does not read again.
        content = self._saved if self._saved is not None and self._saved['step'] == step else load(path)
        if 'resume' in content:
            link(path, self.previous)
            if step in keep:
                save({name: part for name, part in content.items() if name != 'resume'}, path)
        if step not in keep:
            path.unlink()

    def retire_all(self, newest: int, keep: Container[int], say: Callable[[str], None]) -> None:
        """Retires the checkpoints before `newest`: a process killed between two files leaves several with 'resume'.

        One that is damaged is not needed to go on: it is removed, with a line to `say`.
        """
        for step in self.steps():
            if step < newest:
                try:
                    self.retire(step, keep)
                except UnreadableFileError as error:
                    if not error.damaged:
                        raise
                    self.checkpoint(step).unlink()
                    say(f'{self.checkpoint(step)} was damaged and is removed')

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest checkpoint that a run can go on from; None when it has to begin at step 0.

        Removes a newest checkpoint that is damaged, with a line to `say`, and returns the one before.
        Raises UnreadableFileError when there are checkpoints but none can be read, and for a file that is not damaged
        but not a checkpoint of this run.
        """
        damaged: list[tuple[Path, UnreadableFileError]] = []
        found = None
        readable = False
        for path in [self.checkpoint(step) for step in reversed(self.steps())] + [self.previous]:
            if not path.exists():
                continue
            try:
                content = self.load_checkpoint(path)
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
        """The records of the log; none when there is no log yet.

        A last line that a killed process has cut short is left out. Raises UnreadableFileError, with the number of the
        line, for any other line that is not a record.
        """
        try:
            lines = self.log.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnreadableFileError(f'{self.log} cannot be read ({error.strerror}): {FOLDER_REMEDY}', False) from None
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                if number == len(lines) and line.startswith(b'{') and not line.endswith(b'\n'):
                    break
                record = None
            why = contents.difference(record, contents.RECORD)
            if why is not None:
                raise contents.foreign(self.log, f'line {number} is not a record')
            records.append(record)
        return records

    def rewrite_log(self, records: list[Record]) -> None:
        """Makes the log hold these records and no others."""
        text = ''.join(json.dumps(record) + '\n' for record in records)
        atomic_write(self.log, lambda file: file.write(text.encode()))
