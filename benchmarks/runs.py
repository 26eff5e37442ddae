"""Whole runs from the command line to the last file, and what the plain way would take for them.

Each run finds nothing compiled before. The plain way's time is extrapolated from as many of its steps as are given
and one of its evaluations, on as many threads as serve it best; its start is not charged to it, and it has neither
floors nor files.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks.measure import Settings, in_process, run_python, seconds, watched
from benchmarks.plain import PlainRun
from benchmarks.report import Ratio, Result, Table, quotients
from benchmarks.steps import PAPER
from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.threads import available_cores

RUNS: dict[str, dict[str, Any]] = {
    'default': {},
    'L=3': {'num_layers': 3},
    'L=6': {'num_layers': 6},
    'paper': {**PAPER, 'num_layers': 3, 'embedding_dim': 128, 'max_iters': 2048},
}
BOUNDS = {'default': 20.0, 'L=3': 60.0, 'paper': 3.0}
# The run whose time is also measured with dtype=bfloat16, beside the plain way in float32.
IN_BFLOAT16 = 'paper'
# Repeats at most: a run at L=6 is some minutes long, and then its time is steady.
MOST_REPEATS = {'default': 3, 'L=3': 3, 'L=6': 1, 'paper': 3}


def plain_run(options: dict[str, Any], steps: int, budget: float) -> dict[str, float]:
    """What a whole run would take the plain way, for a process of its own.

    It is tried with one thread and with all cores; with the faster it takes as many steps as `steps`, or as fit in
    `budget` seconds, and then evaluates, on as many of the sequences as a quarter of these allow.
    """
    config = Config(outname='unused', **options)
    start = time.perf_counter()
    run = PlainRun(config)
    setup = time.perf_counter() - start
    trials = {n: _seconds_a_step(run, n, max(1, steps // 25), budget / 20) for n in {1, available_cores()}}
    threads = min(trials, key=lambda n: trials[n][0])
    step, taken = _seconds_a_step(run, threads, steps, budget)
    batches = config.test_size // config.batch_size
    measured = min(batches, max(1, int(budget / 4 / step)))
    evaluation = seconds(lambda: run.evaluate(measured)) * batches / measured
    evaluations = len(init.print_times(config.last_step, config.print_freq, config.save_freq))
    return {
        'step': step,
        'taken': taken,
        'threads': threads,
        'evaluation': evaluation,
        'whole': setup + config.last_step * step + evaluations * evaluation,
    }


def _seconds_a_step(run: PlainRun, threads: int, steps: int, budget: float) -> tuple[float, int]:
    """The mean over as many steps as `steps` or as fit in `budget` seconds, and their number."""
    torch.set_num_threads(threads)
    run.step()  # warms up
    taken, start = 0, time.perf_counter()
    while not taken or (taken < steps and time.perf_counter() - start < budget):
        run.step()
        taken += 1
    return (time.perf_counter() - start) / taken, taken


def whole_run(options: dict[str, Any]) -> float:
    """Seconds of a run by the command line that finds nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f'--{name}={value}' for name, value in options.items()]
        return seconds(
            lambda: run_python(
                'RLM_clean/main.py', f'--outname={folder}/run', *words, TORCHINDUCTOR_CACHE_DIR=f'{folder}/cache'
            )
        )


def measure(settings: Settings) -> Result:
    """The table of whole runs."""
    result = Result()
    quick = {'max_iters': 200, 'num_features': 32, 'test_size': 256}
    sizes = {'default': quick, 'L=3': {**quick, 'num_layers': 3}} if settings.quick else RUNS
    steps, budget = (20, 1.0) if settings.quick else (500, 120.0)
    rows = []
    for name, options in watched(sizes, {'default': 1, 'L=3': 3, 'L=6': 10, 'paper': 5}):
        ours, lower, plainly = [], [], []
        for _ in range(1 if settings.quick else min(MOST_REPEATS[name], settings.repeats)):
            ours.append(whole_run(options))
            if name == IN_BFLOAT16:
                lower.append(whole_run({**options, 'dtype': 'bfloat16'}))
            plainly.append(in_process(plain_run, options, steps, budget))
        median = {key: statistics.median(record[key] for record in plainly) for key in plainly[0]}
        whole = statistics.median(ours)
        rows.append(
            {
                'run': name,
                'this library (s)': whole,
                'in bfloat16 (s)': statistics.median(lower) if lower else None,
                'a step of it (ms)': 1e3 * whole / Config(outname='unused', **options).last_step,
                'plain way (s)': median['whole'],
                'its step (ms)': 1e3 * median['step'],
                'its evaluation (s)': median['evaluation'],
                'its steps measured': int(median['taken']),
            }
        )
        plain = [record['whole'] for record in plainly]
        result.ratios.append(
            Ratio(f'{name}: plain way / this library', quotients(plain, ours), at_least=BOUNDS.get(name))
        )
        if lower:
            result.ratios.append(Ratio(f'{name}: plain way / this library in bfloat16', quotients(plain, lower)))
    note = (
        "This library: start, set-up, floors, steps, evaluations and files; 'a step of it' is all of that over the "
        'number of steps. The plain way: the set-up, and as many steps and evaluations as the run has.'
    )
    result.tables.append(Table('Whole runs', rows, note))
    return result
