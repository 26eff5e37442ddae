"""Whether bfloat16 changes what is learnt: the excess after 2000 steps in both precisions, seed by seed.

The steps of both take the same sequences and start from the same weights. What another seed of the weights changes is
the noise that the difference of the precisions is compared with.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks.measure import Settings, in_process, watched
from benchmarks.report import Ratio, Result, Table
from benchmarks.steps import PAPER
from RLM_clean.config import Config
from RLM_clean.runs import load_run
from RLM_clean.training import lifecycle

OPTIONS: dict[str, Any] = {**PAPER, 'num_layers': 3, 'embedding_dim': 256, 'max_iters': 2000}
QUICK: dict[str, Any] = {'num_features': 8, 'num_layers': 2, 'embedding_dim': 16, 'max_iters': 20, 'test_size': 64}
PRECISIONS = ('float32', 'bfloat16')


def final_excess(options: dict[str, Any]) -> float:
    """The excess (nats) at the end of a run, for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        lifecycle.train(Config(outname=f'{folder}/run', **options), lambda line: None)
        return load_run(f'{folder}/run').dynamics[-1]['excess']


def measure(settings: Settings) -> Result:
    """The table of seeds, and the difference of the precisions in units of the noise."""
    options = QUICK if settings.quick else OPTIONS
    runs = {
        f'seed_model={seed}, {dtype}': {**options, 'seed_model': seed, 'dtype': dtype}
        for seed in range(1, 1 + min(3, max(2, settings.repeats)))
        for dtype in PRECISIONS
    }
    found = {name: in_process(final_excess, run) for name, run in watched(runs)}
    rows: dict[int, dict[str, Any]] = {}
    for name, run in runs.items():
        seed = run['seed_model']
        rows.setdefault(seed, {'seed_model': seed})[f'{run["dtype"]} (nats)'] = found[name]
    float32, bfloat16 = ([row[f'{dtype} (nats)'] for row in rows.values()] for dtype in PRECISIONS)
    noise = statistics.stdev(float32)
    differences = [abs(b - a) / noise for a, b in zip(float32, bfloat16, strict=True)]
    title = f'The excess after {options["max_iters"]} steps'
    result = Result([Table(title, list(rows.values()), f'Standard deviation of float32 over the seeds: {noise:.4f}.')])
    ratio = '|bfloat16 - float32| / standard deviation over the seeds of the weights'
    result.ratios.append(Ratio(ratio, differences, at_most=2.0))
    return result
