"""Writes the model of a run for other programs: `python -m RLM_clean.export RUN --to huggingface FOLDER`.

safetensors    model.safetensors: the weights by their names here; any model
huggingface    config.json, model.safetensors, tokenizer.json: a GPT-2 with the same logits; causal transformers

Both have run.json: the options of the run, the step, its record and the floors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from RLM_clean import __version__
from RLM_clean.config import EXECUTION, similar
from RLM_clean.extras import needed
from RLM_clean.models import gpt2
from RLM_clean.runs import Run, load_run
from RLM_clean.runs.storage import TEMPORARY

FORMATS = ('safetensors', 'huggingface')
_OPTIONS = ('--to', '--step', '--help')


def export(run: Run, folder: str | os.PathLike[str], to: str, step: int | str | None = None) -> Path:
    """Writes the model of a run at a step into a new folder, and returns the folder.

    `to` is safetensors or huggingface; `step` is one with a checkpoint, by default the last one, or 'best'. The folder
    appears when it is whole: a process that is killed leaves none, only a hidden one beside it with `.tmp-` in its
    name. Nothing is written where an error is raised.

    Raises ValueError for a folder that is not empty, a step without a checkpoint, another format, and for huggingface
    for a model that GPT-2 cannot be; ModuleNotFoundError without safetensors; OSError if the disk refuses.
    """
    folder = Path(folder)
    if to not in FORMATS:
        raise ValueError(f'to={to!r} is unknown: use {" or ".join(FORMATS)}')
    _check_new(folder)
    _write(folder, _files(run, to, step))
    return folder


def _check_new(folder: Path) -> None:
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        what = 'is not empty' if folder.is_dir() else 'is not a folder'
        raise ValueError(f'FOLDER={str(folder)!r} {what}: give the name of a new one')


def _files(run: Run, to: str, step: int | str | None) -> dict[str, bytes]:
    """The content of each file, by its name."""
    needed('safetensors', by='export', extra='export')
    model, whitened = run.model(step), bool(run.config.whitening)
    files = {'run.json': _json(_about(run, step))}
    if to == 'safetensors':
        # Tied weights are one tensor with two names here, and two tensors in the file.
        weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
        return files | {'model.safetensors': _safetensors(weights)}
    transformer = gpt2.check(model, run.config.model)
    return files | {
        'config.json': _json(gpt2.options(transformer, whitened)),
        'model.safetensors': _safetensors(gpt2.weights(transformer, whitened)),
        'tokenizer.json': _json(gpt2.tokenizer(transformer.vocab_size)),
        'tokenizer_config.json': _json(
            {
                'tokenizer_class': 'PreTrainedTokenizerFast',
                'unk_token': gpt2.UNKNOWN,
                'model_max_length': transformer.block_size,
            }
        ),
    }


def _about(run: Run, step: int | str | None) -> dict[str, Any]:
    """What a reader of the weights wants to know of their run: plain values, losses in nats."""
    if step == 'best':
        step = run.best_step
    elif step is None:
        step = run.dynamics[-1]['t'] if run.done else run.steps[-1]
    else:
        step = int(step)  # of numpy, too
    return {
        'version': __version__,
        'run': run.files.outname.name,
        'step': step,
        'record': next((record for record in run.dynamics if record['t'] == step), None),
        'config': {name: value for name, value in run.config.to_dict().items() if name not in EXECUTION},
        'entropy': run.entropy,
        'marginal': run.marginal,
        'floors': {str(k): list(floor) for k, floor in run.floors.items()},
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + '\n').encode()


def _safetensors(weights: dict[str, Tensor]) -> bytes:
    import safetensors.torch

    # Hugging Face's loader asks for this entry.
    return safetensors.torch.save(weights, metadata={'format': 'pt'})


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Writes the files into a hidden folder, flushes them to the disk, and gives the folder its name."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = folder.with_name(f'.{folder.name}{TEMPORARY}{os.getpid()}')
    shutil.rmtree(hidden, ignore_errors=True)  # of a killed process that had the same number
    try:
        hidden.mkdir()
        for name, content in files.items():
            with open(hidden / name, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        os.rename(hidden, folder)  # replaces an empty folder, and no other
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


# ---------------------------------------------------------------------- the command


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process; returns the exit status: 0 done, 2 cannot be exported."""
    try:
        options = _parse(words)
        try:
            folder = export(load_run(options.run), options.folder, options.to, options.step)
        except OSError as error:
            raise ValueError(f'FOLDER={options.folder!r} cannot be written ({error.strerror}): give another') from None
    except (ValueError, ModuleNotFoundError) as error:
        print(f'RLM_clean.export: error: {error}', file=sys.stderr)
        return 2
    print(f'the model is in {folder}')
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f'{message}: see --help')


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises ValueError, with one sentence, for words that are none."""
    parser = _Parser(prog='RLM_clean.export', description='Write the model of a run for other programs.')
    parser.add_argument('run', metavar='RUN', help='the name of a run, as results/my_run')
    parser.add_argument('folder', metavar='FOLDER', help='a new folder')
    parser.add_argument('--to', required=True, choices=FORMATS, help='huggingface: a GPT-2 with the same logits')
    parser.add_argument('--step', type=_step, metavar='N', help='a step with a checkpoint, or best (default: the last)')
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(f'{unknown[0]!r} is not an option: {similar(unknown[0].split("=")[0], _OPTIONS)}')
    return options


def _step(text: str) -> int | str:
    if text == 'best':
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a step, give a whole number or best') from None


if __name__ == '__main__':
    sys.exit(main())
