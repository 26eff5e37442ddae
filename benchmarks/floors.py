"""What the floors and the excess cost a run: `python -m benchmarks.floors`.

For the default language and for v = 128, L = 3: the seconds that the floors take at the start, and the seconds of all
excess measurements of a run of 30000 steps over the seconds of its steps, from medians measured in turn in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.experiment import prepare_language
from RLM_clean.training import WINDOW, Trainer


def seconds(function: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def costs(config: Config, repeats: int) -> dict[str, float]:
    """The figures of one run's options."""
    torch.set_num_threads(init.default_threads(config))
    grammar = seconds(lambda: init.init_data(config))
    start = time.perf_counter()
    language = prepare_language(config, torch.device('cpu'), None, lambda line: None)
    floors = time.perf_counter() - start - grammar
    trainer = Trainer(config, language, torch.device('cpu'))
    trainer.advance(WINDOW)  # warm up
    steps, records = [], []
    for _ in range(repeats):
        steps.append(seconds(lambda: trainer.advance(trainer.step + WINDOW)) / WINDOW)
        records.append(seconds(lambda: language.reference.divergence(trainer.model, trainer.logits)))
    run = config.max_iters * statistics.median(steps)
    times = init.print_times(config.last_step, config.print_freq, config.save_freq)
    excess = len(times) * statistics.median(records)
    return {
        'floors at the start (s)': floors,
        'floors / steps of the run': floors / run,
        'excess of all records / steps of the run': excess / run,
        'a step (ms)': 1e3 * statistics.median(steps),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=5)
    arguments = parser.parse_args()
    for num_layers in (1, 3):
        print(f'v = 128, L = {num_layers}')
        for name, value in costs(Config(outname='unused', num_layers=num_layers), arguments.repeats).items():
            print(f'  {name:42} {value:.4f}')


if __name__ == '__main__':
    main()
