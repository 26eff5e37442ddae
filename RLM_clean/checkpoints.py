"""The files of a run: written atomically, read safely, resumed from, and opened again.

{outname}_config.pt    {'config', 'rules', 'entropy', 'marginal', 'floors'}
{outname}_t{step}.pt   {'model', 'state', 'step'}, and in the newest one alone 'resume'
{outname}_previous.pt  while the run lasts: the whole newest checkpoint but one, should the newest be damaged
{outname}.pt           {'config', 'output', 'model', 'best'}, written when the run is done
{outname}_log.jsonl    one record a line
{outname}.png          the learning curve
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.config import Config

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
_TEMPORARY = '.tmp-'
_REMEDY = 'remove it, or begin again with --resume restart'


class UnreadableFileError(ValueError):
    """A file that cannot be read as one of a run's; `damaged` when it is cut short rather than foreign or unsafe."""

    def __init__(self, message: str, damaged: bool) -> None:
        super().__init__(message)
        self.damaged = damaged


class BusyError(ValueError):
    """A run that another process is training."""


# ---------------------------------------------------------------------- atomic writing, safe reading


def atomic_write(path: Path, write: Callable[[BinaryIO], Any], new: bool = False) -> None:
    """Calls `write` on a temporary file in the folder of `path`, flushes it to the disk and renames it to `path`.

    Whatever happens on the way (a full disk, a signal), the file that was there stays whole. With `new` there must be
    none: of several processes that write it at a time, all but one get FileExistsError.
    """
    temporary = path.with_name(f'.{path.name}{_TEMPORARY}{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _publish(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _publish(temporary: Path, path: Path) -> None:
    """Gives a file its name unless there is one of that name, which only a link tells without a gap."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(temporary, path)


def save(content: dict[str, Any], path: Path, new: bool = False) -> None:
    """Saves tensors and plain Python values atomically; `new` as in `atomic_write`."""

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch hides behind one of its own what the file raised, such as a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    atomic_write(path, write, new)


def _link(path: Path, other: Path) -> None:
    """Gives the file at `path` a second name, in the place of what had it; a copy where there are no links."""
    temporary = other.with_name(f'.{other.name}{_TEMPORARY}{os.getpid()}')
    try:
        os.link(path, temporary)
        os.replace(temporary, other)
    except OSError:
        save(load(path), other)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _intact(path: Path) -> bool:
    """Whether a zip archive, which every .pt file is, has its end and the right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # of many kinds, on bytes that are no archive's
        return False


def load(path: Path, kinds: dict[str, type] | None = None) -> dict[str, Any]:
    """The content of a .pt file, on the CPU, read with weights_only=True: a file can hold data but run no code.

    Raises UnreadableFileError for a file that is cut short or changed, for one that holds anything but tensors and
    plain values, and for one that lacks an entry of `kinds`; FileNotFoundError where there is none.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
    except (IsADirectoryError, PermissionError) as error:
        raise UnreadableFileError(f'{path} cannot be read ({error.strerror}): {_REMEDY}', damaged=False) from None
    if head not in (b'', b'P', b'PK'):  # nor need torch look at it: older formats are bare pickles
        raise UnreadableFileError(f'{path} is no file of a run, nor safe to read: {_REMEDY}', damaged=False)
    if not _intact(path):
        raise UnreadableFileError(f'{path} is cut short or damaged: {_REMEDY}', damaged=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UnreadableFileError(
            f'{path} is not safe to read, it holds more than tensors and plain values: {_REMEDY}', damaged=False
        ) from None
    except Exception as error:  # of many kinds, on archives that are not torch's
        raise UnreadableFileError(f'{path} is no file of a run ({type(error).__name__}): {_REMEDY}', False) from None
    if not isinstance(content, dict):
        raise UnreadableFileError(f'{path} is no file of a run, it holds a {type(content).__name__}: {_REMEDY}', False)
    for name, kind in (kinds or {}).items():
        if not isinstance(content.get(name), kind):
            raise UnreadableFileError(f'{path} is no file of a run, it lacks {name!r}: {_REMEDY}', damaged=False)
    return content


# ---------------------------------------------------------------------- the files of one run


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
            raise UnreadableFileError(f'{self.config} has {name!r}, which is no option: {_REMEDY}', damaged=False)
        return content

    def load_final(self) -> dict[str, Any]:
        """The content of {outname}.pt."""
        content = load(self.final, {'config': dict, 'output': dict, 'model': dict, 'best': dict})
        for name in ('entropy', 'dynamics', 'step', 'excess_error'):
            if name not in content['output']:
                raise UnreadableFileError(f'{self.final} is no file of a run, it lacks {name!r}: {_REMEDY}', False)
        return content

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Holds the run for this process while entered, by a lock on its _config.pt that ends with the process.

        Raises BusyError when another process holds it.
        """
        # Open for writing: NFS has no exclusive locks on what is only read.
        with open(self.config, 'r+b') as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise self.busy() from None
                except OSError as error:
                    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                        raise
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
        stems = tuple(f'.{file.name}{_TEMPORARY}' for file in files)
        step = re.compile(re.escape(f'.{self.outname.name}') + r'_t\d+\.pt' + re.escape(_TEMPORARY) + r'\d+')
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
            _link(path, self.previous)
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


class Run:
    """A run read from its files, finished or not: what `load_run` returns.

    Attributes:
        config: its options (Config).
        rlm: its language, with the rules of its files.
        dynamics: its records, one dict an evaluation: t, trainloss, testloss, testacc, excess, lr, seconds.
        steps: the steps that have a checkpoint.
        entropy, marginal, floors: the lowest loss of any model and of one that sees nothing, and H(x_n | last k tokens)
            as {k: (value, standard error)}, in nats; None where they are not known.
        done: whether the run reached its end.
    """

    def __init__(self, outname: str | os.PathLike[str]) -> None:
        self.files = RunFiles(outname)
        if not self.files.config.exists():
            raise ValueError(f'outname={str(outname)!r} has no file {self.files.config}: give the path of a run')
        stored = self.files.load_config()
        # The machine that opens a run need not have the device that made it, nor a compiler.
        here = {'outname': str(outname), 'device': 'cpu', 'compile': 'auto', 'tensorboard': False}
        self.config = Config(**{**stored['config'], **here})
        self.entropy: float | None = stored['entropy']
        self.marginal: float | None = stored['marginal']
        self.floors: dict[int, tuple[float, float]] | None = stored['floors']
        self.rlm = init.init_data(self.config, rules=stored['rules'])
        self._final = self.files.load_final() if self.files.final.exists() else None
        self.done = self._final is not None
        self.dynamics: list[Record] = self._final['output']['dynamics'] if self._final else self.files.read_log()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return self.files.steps()

    @property
    def best_step(self) -> int | None:
        """The step of the lowest test loss; None before the run is done."""
        return self._final['best']['step'] if self._final else None

    def model(self, step: int | str | None = None) -> nn.Module:
        """The model at a step with a checkpoint, by default the last one, or 'best'; in eval mode.

        Raises ValueError for a step that has no checkpoint.
        """
        model = init.init_model(self.config)
        model.load_state_dict(self._weights(step))
        return model.eval()

    def test_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets on which the record of `step` was measured."""
        inputs, targets = self.rlm.batch(step, self.config.test_size, 'test')
        return init.select_task(inputs, targets, self.config)

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """The model's logits for the task's targets, from token indices `(B, T)`, in the run's format and precision."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.dtype == 'bfloat16'):
            return init.task_logits(model, inputs, self.config)

    def _weights(self, step: int | str | None) -> dict[str, Tensor]:
        if step == 'best' and self._final:
            return self._final['best']['model']
        if self._final and step in (None, self._final['output']['step']):
            return self._final['model']
        if step is None and self.steps:
            step = self.steps[-1]
        if step not in self.steps:
            raise ValueError(f'step={step!r} has no checkpoint: use one of {self.steps}')
        assert isinstance(step, int)
        return load(self.files.checkpoint(step))['model']


def load_run(outname: str | os.PathLike[str]) -> Run:
    """The run whose files are `{outname}_config.pt` and so on, finished or not.

        run = load_run('results/rlm_128L1_b2_ts32768_1')
        run.dynamics[-1]['testloss'], run.model(1024)

    Raises ValueError when there is no such run, UnreadableFileError when a file of it cannot be read.
    """
    return Run(outname)
