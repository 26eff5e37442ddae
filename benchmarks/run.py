"""What things cost: `python -m benchmarks.run` measures all, `python -m benchmarks.run sampler steps` some of it.

Tables go to standard output, progress to standard error, and with --json everything to a file too. --quick takes small
sizes and short times, to see that all works: its figures say little.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import compilation, gpu, inference, overhead, precision, runs, sampler, setup, steps
from benchmarks.measure import Settings, machine, watched
from benchmarks.report import Ratio, Result, as_markdown, as_text

# About how many minutes each takes, for the estimate of what is left.
MINUTES = {
    'sampler': 1, 'setup': 3, 'steps': 8, 'precision': 10, 'inference': 2, 'overhead': 6, 'compile': 6, 'runs': 35,
    'gpu': 2,
}  # fmt: skip

BENCHMARKS: dict[str, Callable[[Settings], Result]] = {
    'sampler': sampler.measure,
    'setup': setup.measure,
    'steps': steps.measure,
    'precision': precision.measure,
    'inference': inference.measure,
    'overhead': overhead.measure,
    'compile': compilation.measure,
    'runs': runs.measure,
    'gpu': gpu.measure,
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = _options(words)
    if options.show:
        report = json.loads(options.show.read_text())
        print(_machine(report['machine']))
        for name, content in report['benchmarks'].items():
            print(_printed(name, content, options.markdown))
        return
    settings = Settings(options.quick, options.repeats or (2 if options.quick else 5), options.large)
    report = {'machine': machine(), 'quick': settings.quick, 'repeats': settings.repeats, 'benchmarks': {}}
    print(_machine(report['machine']))
    for name, measure in watched({name: BENCHMARKS[name] for name in options.names}, MINUTES, indent=''):
        start = time.perf_counter()
        result = measure(settings)
        if settings.quick:  # small sizes say nothing about the bounds
            result.ratios = [Ratio(ratio.name, ratio.values) for ratio in result.ratios]
        content = {'seconds': time.perf_counter() - start, **result.to_dict()}
        print(_printed(name, content, options.markdown), flush=True)
        report['benchmarks'][name] = content
        if options.json:  # after each: what was measured is kept
            options.json.write_text(json.dumps(report, indent=1) + '\n')


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read; its names are those of the benchmarks to run, in order."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.run', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}; all by default')
    parser.add_argument('--quick', action='store_true', help='small and short: to see that it works')
    parser.add_argument('--large', action='store_true', help='also what needs 16 GB of memory (setup: v=1024)')
    parser.add_argument('--repeats', type=int, help='timings of everything (default: 5, with --quick 2)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything there too')
    parser.add_argument('--markdown', action='store_true', help='print tables for docs/benchmarks.md')
    parser.add_argument('--show', type=Path, metavar='FILE', help='print what --json wrote, and measure nothing')
    options = parser.parse_args(words)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f'{name!r} is not a benchmark: use {", ".join(BENCHMARKS)}')
        if name == 'gpu' and not torch.cuda.is_available():
            parser.error(f'{name!r} needs a GPU, and this machine has none: leave it out')
    if options.repeats is not None and options.repeats < 1:
        parser.error(f'--repeats={options.repeats} measures nothing: use 1 or more')
    found = [name for name in BENCHMARKS if name != 'gpu' or torch.cuda.is_available()]
    options.names = [name for name in BENCHMARKS if name in (options.names or found)]
    return options


def _machine(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return ', '.join(f'{name} {value}' for name, value in machine.items())


def _printed(name: str, content: dict[str, Any], markdown: bool) -> str:
    """A benchmark as it is printed; in Markdown with what its module says of it."""
    result = Result.from_dict(content)
    if not markdown:
        return f'\n## {name} ({content["seconds"]:.0f} s)\n\n{as_text(result)}'
    about = inspect.getdoc(sys.modules[BENCHMARKS[name].__module__])
    return f'\n## {name}\n\n`python -m benchmarks.run {name}`\n\n{about}\n\n{as_markdown(result)}'


if __name__ == '__main__':
    main()
