"""Trains one model: `python RLM_clean/main.py --outname results/my_run`, see --help for the options."""

from __future__ import annotations

import importlib.util
import os
import sys

if not __package__:  # started as a script: the package is the folder of this file
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if importlib.util.find_spec('torch') is None:
    sys.exit('rlm-train: error: torch is missing: `source .venv/bin/activate` after `bash code.sh`, or install it')

import torch

from RLM_clean.config import Config, from_arguments
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import distributed, machine
from RLM_clean.training.lifecycle import Outcome, train
from RLM_clean.training.loop import DivergedError


def main() -> int:
    """Runs the command line; returns the exit status: 0 done or saved, 1 failed, 2 cannot be run as asked."""
    config = from_arguments()
    if machine.processes() == 1:
        return _train(config)
    device = torch.device(machine.choose(config).device)
    with distributed.joined(device):
        if torch.distributed.get_rank() == 0:
            return _train(config)
        with machine.prepared(machine.choose(config), config.deterministic):
            distributed.follow(config, device)
    return 0


def _train(config: Config) -> int:
    try:
        outcome = train(config)
        if outcome.status != 'interrupted':
            print(summary(outcome, config.outname), flush=True)
    except ValueError as error:
        return _fail(str(error), 2)
    except (DivergedError, OSError) as error:
        return _fail(f'{error}; the files of {config.outname} are as they were at the last checkpoint', 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and 'memory' not in str(error):
            raise
        return _fail(f'memory ran out: lower batch_size={config.batch_size} or test_size={config.test_size}', 1)
    except KeyboardInterrupt:
        return _fail(f'stopped at once; the same command goes on from the last checkpoint of {config.outname}', 130)
    return 0


def summary(outcome: Outcome, outname: str) -> str:
    """The last lines of a run: the last and the best test loss, the floor, and where the results are."""
    files = RunFiles(outname)
    last, best = outcome.dynamics[-1], outcome.best
    error = f' +- {outcome.excess_error:.2g}' if outcome.excess_error else ' (exact)'
    again = '; it is not trained again (resume=restart does)' if outcome.status == 'complete' else ''
    return '\n'.join(
        (
            f'{outcome.status} at step {outcome.step}{again}',
            f'last test loss {last["testloss"]:.4f}, best {best["loss"]:.4f} at step {best["step"]} (nats)',
            f'floor {outcome.entropy:.4f}, excess over it {last["excess"]:.4f}{error}',
            f'results in {files.final}, learning curve in {files.picture}',
        )
    )


def _fail(message: str, status: int) -> int:
    print(f'rlm-train: error: {message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
