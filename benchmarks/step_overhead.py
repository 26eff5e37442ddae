"""What the training loop adds to a step: `python -m benchmarks.step_overhead`.

Times the default run's loop (sampling, learning rate, bookkeeping, checks) against the same model's bare forward,
backward and update on one batch that stays in place, in turn in one process, and prints medians and their ratio.
Then trains the default for a while in a process of its own and prints its peak memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.training import WINDOW, Trainer


def bare_steps(config: Config, steps: int) -> float:
    """Seconds a step of forward, backward and update, nothing else, with the run's model, optimizer and batch size."""
    model = init.init_model(config)
    optimizer = init.init_training(model, config)[1]
    grammar = init.init_data(config)
    inputs, targets = grammar.batch(0, config.batch_size)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def loop_steps(trainer: Trainer, steps: int) -> float:
    """Seconds a step of the training loop between two records, as it runs."""
    start = time.perf_counter()
    for end in range(trainer.step + WINDOW, trainer.step + steps + 1, WINDOW):
        trainer.advance(end)
    return (time.perf_counter() - start) / steps


def peak_memory(steps: int) -> float:
    """The peak memory in MB of a default run of so many steps, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, 'RLM_clean/main.py', f'--outname={folder}/run', f'--max_iters={steps}']
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Prints the figures, as JSON too with --json FILE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--steps', type=int, default=8 * WINDOW, help=f'steps in a repeat, a multiple of {WINDOW}')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()

    config = Config(outname='unused')
    torch.set_num_threads(init.default_threads(config))
    grammar = init.init_data(config)
    language = measures.Language(grammar, measures.reference(grammar), 0.0, 0.0, {})
    trainer = Trainer(config, language, torch.device('cpu'))
    bare_steps(config, WINDOW), loop_steps(trainer, WINDOW)  # warm up
    bare, loop = [], []
    for _ in range(arguments.repeats):
        bare.append(bare_steps(config, arguments.steps))
        loop.append(loop_steps(trainer, arguments.steps))
    result = {
        'machine': f'{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}',
        'bare step (ms)': 1e3 * statistics.median(bare),
        'step of the loop (ms)': 1e3 * statistics.median(loop),
        'ratio': statistics.median(b / a for a, b in zip(bare, loop, strict=True)),
        'peak memory of a default run (MB)': peak_memory(2048),
    }
    for name, value in result.items():
        print(f'{name:36} {value if isinstance(value, str) else f"{value:.3f}"}')
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
