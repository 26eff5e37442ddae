"""What compiling a step costs and gains: in seconds, and in whole runs that leave it to `compile=auto`.

The cache of earlier compilations is a folder of each measurement's own. Whole runs are those of the command line. The
second table compares the one call into torch that is not public, `torch._inductor.compile`, with `torch.compile`.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any
from unittest import mock

from torch import _inductor

from benchmarks import steps
from benchmarks.measure import Settings, clocked, in_process, in_turn, seconds, threads_kept, watched
from benchmarks.report import Ratio, Result, Table, quotients
from benchmarks.runs import whole_run
from RLM_clean.config import Config
from RLM_clean.training import compiler
from RLM_clean.training.loop import WINDOW
from RLM_clean.training.machine import default_threads

SIZES: dict[str, dict[str, Any]] = {
    'default': {},
    'L=3': {'num_layers': 3},
    'L=6, depth 2': {'num_layers': 6, 'depth': 2},
}


def first_steps(options: dict[str, Any], windows: int) -> dict[str, float]:
    """Seconds until a first step is taken, and those of a step thereafter, for a process of its own."""
    config = Config(outname='unused', **options)
    with threads_kept(default_threads(config)), clocked(('first', steps, 'build_trainer')) as spent:
        trainer = steps.make_trainer(config, steps.without_floors(config, drawn=True))
        first = spent['first'] + seconds(lambda: trainer.advance(1))
        trainer.advance(WINDOW)
        times = [seconds(lambda: trainer.advance(trainer.step + WINDOW)) / WINDOW for _ in range(windows)]
    return {'first': first, 'step': statistics.median(times)}


def measure(settings: Settings) -> Result:
    """The tables of compilations and of whole runs."""
    result = Result()
    repeats = 1 if settings.quick else min(3, settings.repeats)
    sizes = {'default': {'num_features': 32, 'embedding_dim': 16}} if settings.quick else SIZES
    rows = []
    for name, options in watched({f'compilation, {name}': options for name, options in sizes.items()}):
        rows.append({'step': name.split(', ', 1)[1], **_compilation(options, repeats)})
    note = (
        'Seconds until the first step is taken: with an empty cache, again with what it holds then, and without '
        'compiling; and the number of steps that win back the first.'
    )
    result.tables.append(Table('Compilations', rows, note))
    rows = [_private_call(name, options, settings, result) for name, options in list(sizes.items())[:2]]
    result.tables.append(Table('A compiled step by the call into torch that is not public, and without it', rows))
    _whole_runs(settings, repeats, result)
    return result


def _compilation(options: dict[str, Any], repeats: int) -> dict[str, Any]:
    records: dict[str, list[dict[str, float]]] = {'cold': [], 'warm': [], 'eager': []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind in ('cold', 'warm'):
                compiled = {**options, 'compile': 'on'}
                records[kind].append(in_process(first_steps, compiled, 8, TORCHINDUCTOR_CACHE_DIR=folder))
        records['eager'].append(in_process(first_steps, {**options, 'compile': 'off'}, 8))
    first, step = (
        {kind: statistics.median(record[key] for record in records[kind]) for kind in records}
        for key in ('first', 'step')
    )
    gain = step['eager'] - step['warm']
    return {
        'empty cache (s)': first['cold'],
        'full cache (s)': first['warm'],
        'not compiled (s)': first['eager'],
        'compiled step (ms)': 1e3 * step['warm'],
        'eager step (ms)': 1e3 * step['eager'],
        'pays after steps': f'{(first["cold"] - first["eager"]) / gain:.0f}' if gain > 0 else 'never',
    }


def _private_call(name: str, options: dict[str, Any], settings: Settings, result: Result) -> dict[str, Any]:
    """The same step compiled by torch._inductor.compile, and as where torch lacks it."""
    config = Config(outname='unused', compile='on', **options)
    works = {}
    for kind, function in {'private': _inductor.compile, 'public': None}.items():
        with mock.patch.dict(compiler._programs, clear=True), mock.patch.object(_inductor, 'compile', function):
            works[kind] = steps.step(config, default_threads(config))
    times = in_turn(works, settings.repeats, settings.span)
    values = quotients(times['public'], times['private'])
    result.ratios.append(Ratio(f'{name}: step by torch.compile / by torch._inductor.compile', values))
    names = {'private': 'torch._inductor.compile (ms)', 'public': 'torch.compile (ms)'}
    return {'step': name, **{names[kind]: 1e3 * statistics.median(found) for kind, found in times.items()}}


def _whole_runs(settings: Settings, repeats: int, result: Result) -> None:
    """Runs by the command line, with an empty cache each."""
    lengths = {100: (1, None)} if settings.quick else {500: (5, 1.1), 30000: (repeats, 0.75)}
    rows = []
    for name, length in watched({f'runs of {length} steps': length for length in lengths}):
        times: dict[str, list[float]] = {'auto': [], 'off': []}
        number, limit = lengths[length]
        for _ in range(number):
            for mode, values in times.items():
                values.append(whole_run({'max_iters': length, 'compile': mode}))
        medians = {f'compile={mode} (s)': statistics.median(values) for mode, values in times.items()}
        rows.append({'steps': length, **medians})
        result.ratios.append(Ratio(f'{name}: auto / off', quotients(times['auto'], times['off']), at_most=limit))
    result.tables.append(Table('Whole default runs, with an empty cache each', rows))
