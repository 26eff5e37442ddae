"""What things cost: `python -m benchmarks.run` measures all, `python -m benchmarks.run sampler steps` some of it.

Tables go to standard output, progress to standard error, and with --json everything to a file. --quick takes small
sizes and short times, to see that all works: its figures say little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import compilation, gpu, inference, overhead, runs, sampler, setup, steps
from benchmarks.measure import Settings, machine, watched
from benchmarks.report import Result, as_markdown, as_text

# About how many minutes each takes, for the estimate of what is left.
MINUTES = {
    'sampler': 1, 'setup': 3, 'steps': 5, 'inference': 1, 'overhead': 4, 'compile': 8, 'runs': 27, 'gpu': 2
}  # fmt: skip

BENCHMARKS: dict[str, Callable[[Settings], Result]] = {
    'sampler': sampler.measure,
    'setup': setup.measure,
    'steps': steps.measure,
    'inference': inference.measure,
    'overhead': overhead.measure,
    'compile': compilation.measure,
    'runs': runs.measure,
    'gpu': gpu.measure,
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.run', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}; all by default')
    parser.add_argument('--quick', action='store_true', help='small and short: to see that it works')
    parser.add_argument('--large', action='store_true', help='also what needs 16 GB of memory (setup: v=1024)')
    parser.add_argument('--repeats', type=int, help='timings of everything (default: 5, with --quick 2)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything there too')
    parser.add_argument('--markdown', action='store_true', help='print tables for docs/benchmarks.md')
    parser.add_argument('--show', type=Path, metavar='FILE', help='print what --json wrote, and measure nothing')
    options = parser.parse_args(words)
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f'{min(unknown)!r} is no benchmark: use {", ".join(BENCHMARKS)}')
    if options.repeats is not None and options.repeats < 1:
        parser.error(f'--repeats={options.repeats} measures nothing: use 1 or more')

    has_gpu = torch.cuda.is_available()
    names = [name for name in BENCHMARKS if name in (options.names or BENCHMARKS)]
    if options.names and 'gpu' in names and not has_gpu:
        parser.error("'gpu' measures a GPU, and this machine has none: leave it out")
    if not has_gpu:
        names = [name for name in names if name != 'gpu']

    show = as_markdown if options.markdown else as_text
    if options.show:
        for name, content in json.loads(options.show.read_text())['benchmarks'].items():
            print(f'\n## {name}\n\n{show(Result.from_dict(content))}')
        return
    settings = Settings(options.quick, options.repeats or (2 if options.quick else 5), options.large)
    report: dict[str, Any] = {
        'machine': machine(),
        'quick': options.quick,
        'repeats': settings.repeats,
        'benchmarks': {},
    }
    print(', '.join(f'{name}: {value}' for name, value in report['machine'].items()))
    for name, measure in watched({name: BENCHMARKS[name] for name in names}, MINUTES, indent=''):
        start = time.perf_counter()
        result = measure(settings)
        elapsed = time.perf_counter() - start
        print(f'\n## {name} ({elapsed:.0f} s)\n\n{show(result)}', flush=True)
        report['benchmarks'][name] = {'seconds': elapsed, **result.to_dict()}
        if options.json:  # after each: what was measured is kept
            options.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
