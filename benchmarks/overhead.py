"""What a run does beside its steps: the loop, drawing sequences, evaluations, floors and files; and its memory.

The first table sets a step on a batch that is there already beside a step of the loop, without and with the drawing
of sequences. The second sets a short run from the command line beside the import of torch and its steps, which it
cannot do without. The others say where the seconds of a whole run go, by clocks around the functions that spend them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from typing import Any

from benchmarks import runs as whole_runs
from benchmarks.compilation import first_steps
from benchmarks.measure import Settings, clocked, in_process, in_turn, peak_memory, run_python, seconds, watched
from benchmarks.report import Ratio, Result, Table, quotients
from benchmarks.steps import PAPER, loop, step
from RLM_clean import init, measures, plots
from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.training import lifecycle
from RLM_clean.training.loop import Trainer
from RLM_clean.training.machine import default_threads

# What a run does, and where it does it. What draws the sequences of the floors is part of them.
PLACES = (
    ('language', init, 'init_data'),
    ('floors', measures, 'prepare_language'),
    ('trainer', lifecycle, 'make_trainer'),
    ('steps', Trainer, 'advance'),
    ('evaluations', Trainer, 'record'),
    ('files', RunFiles, 'rewrite_log'),
    ('files', RunFiles, 'append_record'),
    ('files', RunFiles, 'save_checkpoint'),
    ('files', lifecycle, 'save'),
    ('picture', plots, 'save_learning_curve'),
)


def whole_run(options: dict[str, Any]) -> dict[str, float]:
    """Seconds of the parts of a run and of all of it, and its peak memory (GB), for a process of its own."""
    with tempfile.TemporaryDirectory() as folder, clocked(*PLACES) as spent:
        start = time.perf_counter()
        lifecycle.train(Config(outname=f'{folder}/run', **options), lambda line: None)
        whole = time.perf_counter() - start
    return {**spent, 'rest': whole - sum(spent.values()), 'whole': whole, 'memory': peak_memory()}


def measure(settings: Settings) -> Result:
    """The tables of the loop and of the parts of whole runs."""
    result = Result()
    modes = ('off',) if settings.quick else ('off', 'on')
    runs: dict[str, dict[str, Any]] = {
        'default run': {},
        'run at L=3': {'num_layers': 3},
        'run of the size of papers': {**PAPER, 'num_layers': 3, 'embedding_dim': 128, 'max_iters': 2048},
    }
    if settings.quick:
        runs = {'default run': {'max_iters': 256, 'num_features': 32}}
    rows: list[dict[str, Any]] = []

    def measure_loop(mode: str) -> None:
        rows.append(_loop(Config(outname='unused', compile=mode), settings, result))

    parts = {f'loop, compile={mode}': partial(measure_loop, mode) for mode in modes}
    parts['short run'] = partial(_short_run, settings, result)
    parts |= {name: partial(_parts, name, options, settings, result) for name, options in runs.items()}
    for _, part in watched(parts):
        part()
    result.tables.insert(0, Table('The loop of a default run (ms a step)', rows))
    return result


def _loop(config: Config, settings: Settings, result: Result) -> dict[str, Any]:
    """A step alone, in the loop, and in the loop that draws its sequences too."""
    threads = default_threads(config)
    works = {
        'step alone': step(config, threads),
        'in the loop': loop(config, threads, drawn=True),
        'with its sequences': loop(config, threads, drawn=False),
    }
    times = in_turn(works, settings.repeats, settings.span)
    values = quotients(times['with its sequences'], times['step alone'])
    result.ratios.append(Ratio(f'compile={config.compile}: step of a run / step alone', values))
    return {'compile': config.compile, **{key: 1e3 * statistics.median(times[key]) for key in works}}


def _short_run(settings: Settings, result: Result) -> None:
    """A short run by the command line, beside `import torch` and its steps, each in a process of its own."""
    steps = 20 if settings.quick else 300
    times: dict[str, list[float]] = {
        'the run (s)': [],
        'import torch (s)': [],
        'its steps (s)': [],
        'its picture (s)': [],
    }
    for _ in range(settings.repeats):
        times['the run (s)'].append(whole_runs.whole_run({'max_iters': steps}))
        times['import torch (s)'].append(seconds(lambda: run_python('-c', 'import torch')))
        parts = in_process(whole_run, {'max_iters': steps})
        times['its steps (s)'].append(parts['steps'])
        times['its picture (s)'].append(parts['picture'])
    needed = [sum(pair) for pair in zip(times['import torch (s)'], times['its steps (s)'], strict=True)]
    values = quotients(times['the run (s)'], needed)
    result.ratios.append(Ratio(f'{steps} default steps: the run / import torch and steps', values, at_most=1.3))
    row = {'steps': steps, **{key: statistics.median(values) for key, values in times.items()}}
    result.tables.append(Table('A short run', [row], 'The picture is that of its learning curve, by matplotlib.'))


def _parts(name: str, options: dict[str, Any], settings: Settings, result: Result) -> None:
    """Where the time of a whole run goes whose step was compiled before, by a process that only does that."""
    with tempfile.TemporaryDirectory() as cache:
        if not settings.quick:
            in_process(first_steps, {**options, 'compile': 'on'}, 1, TORCHINDUCTOR_CACHE_DIR=cache)
        repeats = min(3, settings.repeats)
        parts = [in_process(whole_run, options, TORCHINDUCTOR_CACHE_DIR=cache) for _ in range(repeats)]
    evaluations = [(part['floors'] + part['evaluations']) / part['whole'] for part in parts]
    files = [part['files'] / part['whole'] for part in parts]
    default, bounded = name == 'default run', name != 'run at L=3'
    result.ratios += [
        Ratio(f'{name}: evaluations and floors / all', evaluations, at_most=0.05 if bounded else None),
        Ratio(f'{name}: files / all', files, at_most=0.02 if default else None),
        Ratio(f'{name}: peak memory (GB)', [part['memory'] for part in parts]),
    ]
    median = {label: statistics.median(part[label] for part in parts) for label in parts[0]}
    rows = [
        {'part': label, 'seconds': spent, 'share': f'{spent / median["whole"]:.1%}'}
        for label, spent in median.items()
        if label != 'memory'
    ]
    note = (
        'The step was compiled before; what finding it takes is in the part "trainer". Sequences are drawn within the '
        'part "steps".'
    )
    result.tables.append(Table(f'The parts of a {name}', rows, note))
