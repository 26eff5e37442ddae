"""Trains one model: the whole story on a page. `python -m RLM_clean.main --help` lists the options."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a script: the package is the folder of this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

if importlib.util.find_spec('torch') is None:
    sys.exit('rlm-train: error: torch is not installed: run `bash code.sh` and `source .venv/bin/activate`')

try:
    from RLM_clean import init
    from RLM_clean.command_line import from_arguments
    from RLM_clean.config import Config
    from RLM_clean.training import distributed, loop, machine
    from RLM_clean.training.lifecycle import Outcome, claim
    from RLM_clean.training.loop import DivergedError, Trainer
    from RLM_clean.training.progress import say
except KeyboardInterrupt:  # torch takes seconds to import
    sys.exit(130)


def train(config: Config) -> Outcome:
    """Trains one run from its options to its files. `RLM_clean.training.train` does the same from Python."""
    # The files {outname}_config.pt, {outname}_t{step}.pt, ... are ours in this block (runs/files.py, docs/files.md).
    # They say whether the run begins, goes on from a checkpoint, or is complete.
    with claim(config) as run:
        if run.complete is not None:
            return run.complete

        # The language: a random grammar with its sampler (datasets/), and what is known exactly of it (exact/): the
        # best losses, and the contexts with exact posteriors on which models are measured (measures.py).
        language = run.language()

        # The model (models/), its optimizer, and what takes a step: eager, compiled or captured (training/backends.py).
        model = init.init_model(config).to(run.machine.device).train()
        optimizer = init.init_optimizer(model, config)
        trainer = Trainer(config, language, model, optimizer, run.machine)
        run.start(trainer)

        # The loop. Batch, dropout masks and learning rate are functions of the step alone.
        #   at log-spaced steps: evaluate, write a record, save a checkpoint
        #   between them: draw a batch, take the gradient of its loss, update the weights
        if loop.run(trainer, run.files, run.interruption):
            return run.finish(trainer)  # {outname}.pt with the last and the best model, and {outname}.png
        return run.interrupted(trainer)  # a signal: saved, the same command goes on from there
    return run.stopped()  # a signal that came before the first step


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process.

    Returns the exit status: 0 done or saved, 1 failed, 2 cannot be run as asked, 130 stopped at once.
    """
    config = from_arguments(words)
    try:
        result = train(config) if machine.processes() == 1 else distributed.train(config, train)
    except ValueError as error:
        return _fail(str(error), 2)
    except (DivergedError, OSError) as error:
        return _fail(f'{error}; the files of {config.outname} are as they were at the last checkpoint', 1)
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        return _fail(f'memory ran out: lower batch_size={config.batch_size} or the size of the model', 1)
    except KeyboardInterrupt:
        return _fail(f'stopped at once; the same command goes on from the last checkpoint of {config.outname}', 130)
    if result is not None and result.status != 'interrupted':
        say(summary(result, config))
    return 0


def summary(result: Outcome, config: Config) -> str:
    """The last lines of a run: its last and its best loss, its floor, and where the results are."""
    last, best = result.dynamics[-1], result.best
    error = f' +- {result.excess_error:.2g}' if result.excess_error else ' (exact)'
    again = '; it is not trained again (resume=restart does that)' if result.status == 'complete' else ''
    return '\n'.join(
        (
            f'{result.status} at step {result.step}{again}',
            f'last test loss {last["testloss"]:.4f}, best {best["loss"]:.4f} at step {best["step"]} (nats)',
            f'floor {result.entropy:.4f}, excess over it {last["excess"]:.4f}{error}',
            f'results in {config.outname}.pt, learning curve in {config.outname}.png',
            f'to look closer: outname = {config.outname!r} in main_test.ipynb, or RLM_clean.runs.load_run',
        )
    )


def _fail(message: str, status: int) -> int:
    say(f'rlm-train: error: {message}', sys.stderr)
    return status


if __name__ == '__main__':
    status = main()
    gc.freeze()  # torch's compiler leaves millions of objects, through which the interpreter would look at its end
    sys.exit(status)
