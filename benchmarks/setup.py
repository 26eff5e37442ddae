"""The set-up of a run: seconds and memory for the language with its sampling tables, and for its exact floors.

Each row is measured in a process of its own, which then takes a first 128 steps: the peak memory of a whole run. The
opening of a finished run is that of `load_run`, in a process that has imported torch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

from benchmarks.measure import Settings, in_process, peak_memory, seconds, threads_kept, watched
from benchmarks.report import Ratio, Result, Table
from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.measures import prepare_language
from RLM_clean.runs import load_run
from RLM_clean.training import lifecycle, machine
from RLM_clean.training.loop import WINDOW, make_trainer


def make_language(v: int, L: int) -> dict[str, float]:
    """Seconds and memory (GB) of the language of a run and of its first steps, for a process of its own."""
    config = Config(outname='unused', num_features=v, num_layers=L, device='cpu')
    before, chosen = peak_memory(), machine.choose(config)
    with threads_kept(chosen.threads):
        start = time.perf_counter()
        grammar = init.init_data(config)
        grammar.sequences(0, 1)  # the tables are made when they are needed first
        drawn = time.perf_counter()
        language = prepare_language(grammar, config.context_size, config.objective)
        ready, memory = time.perf_counter(), peak_memory()
        # The first chunk of batches is drawn and trained on.
        make_trainer(config, language, chosen, lambda line: None).advance(WINDOW)
    return {
        'before': before, 'grammar': drawn - start, 'whole': ready - start, 'memory': memory, 'trained': peak_memory()
    }  # fmt: skip


def write_run(outname: str, v: int) -> None:
    """The files of a run with one level, for a process of its own."""
    options: dict[str, Any] = {'max_iters': 1, 'test_size': 64, 'compile': 'off', 'device': 'cpu'}
    lifecycle.train(Config(outname=outname, num_features=v, **options), lambda line: None)


def open_run(outname: str) -> float:
    """Seconds until the run is opened, for a process of its own."""
    return seconds(lambda: load_run(outname))


def measure(settings: Settings) -> Result:
    """The table over v, each row measured in processes of its own."""
    pairs = [(32, 1), (32, 3)] if settings.quick else [(v, L) for v in (32, 128, 256, 512) for L in (1, 3)]
    sizes = {f'v={v}, L={L}': (v, L) for v, L in pairs + ([(1024, 1)] if settings.large else [])}
    result = Result()
    rows: list[dict[str, Any]] = []
    for name, (v, L) in watched(sizes, {name: 2 + (v / 256) ** 3 for name, (v, _) in sizes.items()}):
        # Memory hardly varies, and large languages take long.
        repeats = 1 if v > 512 or settings.quick else min(3, settings.repeats)
        runs = [in_process(make_language, v, L) for _ in range(repeats)]
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append(
            {
                'v': v,
                'L': L,
                'language (s)': median['grammar'],
                'floors (s)': median['whole'] - median['grammar'],
                'peak memory (GB)': median['memory'],
                'after 128 steps (GB)': median['trained'],
                'bytes an entry of M': (median['memory'] - median['before']) * 1e9 / v**3 if v >= 128 else None,
            }
        )
        limits = {(512, 1): (2.0, 4.0), (1024, 1): (15.0, 16.0)}.get((v, L))
        if limits:
            result.ratios += [
                Ratio(f'{name}: set-up (s)', [run['whole'] for run in runs], at_most=limits[0]),
                Ratio(f'{name}: peak memory (GB)', [run['trained'] for run in runs], at_most=limits[1]),
            ]
    v = 32 if settings.quick else 512
    with tempfile.TemporaryDirectory() as folder:
        in_process(write_run, f'{folder}/run', v)
        opened = [in_process(open_run, f'{folder}/run') for _ in range(min(3, settings.repeats))]
    result.ratios.append(Ratio(f'v={v}, L=1: opening a finished run (s)', opened, at_most=1.0))
    note = 'Of the memory, torch alone takes a quarter of a GB.'
    result.tables.append(Table('The set-up of a run', rows, note))
    return result
