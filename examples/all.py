"""All published results, one after the other, and a table of what came out. `python -m examples.all`.

Runs the examples that take minutes, each by its own command, and keeps what it prints in results/all/NAME.txt. The
table in results/all/outcomes.md has for each its command, its time (that of interrupted calls is counted), its end, the
commit of the code and its last numbers. It takes some hours on two cores. After an interruption, the same command
continues: an example that is done is not run again, and one that was interrupted goes on with its runs. `--quick` tries
all commands on small models, in minutes.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from RLM_clean.runs.storage import atomic_write

ROOT = Path(__file__).resolve().parents[1]
# In the order of docs/results.md; memorisation needs the runs of training_sets.
NAMES = (
    'staircase', 'training_sets', 'memorisation', 'architectures', 'root', 'zipf', 'mup', 'denoising_transition',
    'filtering', 'exponent', 'phase_diagram', 'steering',
)  # fmt: skip

Outcome = dict[str, Any]
SECONDS_BETWEEN_NOTES = 10.0  # of the time that an example has taken so far


def write(path: Path, text: str) -> None:
    """Writes a file of text; whatever happens, one that was there before stays whole."""
    atomic_write(path, lambda file: file.write(text.encode()))


def commit() -> str:
    """The commit of the code, with a plus where files differ from it; 'unknown' outside a git repository."""

    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', '--short', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def run(name: str, quick: bool, printed: Path, note: Callable[[Outcome], None]) -> None:
    """Runs an example; prints what it prints, and keeps it in a file.

    `note` is called with the outcome so far, now and then, and at the end. Its status is None until then.
    """
    words = ['-m', f'examples.{name}', *(['--quick'] if quick else [])]
    start, at, lines = time.perf_counter(), commit(), []

    def so_far(status: int | None) -> Outcome:
        seconds = time.perf_counter() - start
        return {'command': f'python {" ".join(words)}', 'seconds': seconds, 'status': status, 'commit': at}

    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        noted = start

        def stop(number: int, frame: object) -> None:
            """A signal to this process alone is passed on; one from the terminal, SIGINT, the example has got."""
            process.send_signal(number)
            raise KeyboardInterrupt

        passed_on = [
            number
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
        ]
        before = {number: signal.signal(number, stop) for number in passed_on}
        try:
            for line in process.stdout:
                print(line, end='', flush=True)
                lines.append(line)
                if time.perf_counter() - noted >= SECONDS_BETWEEN_NOTES:
                    noted = time.perf_counter()
                    note(so_far(None))
        except KeyboardInterrupt:  # the example saves its runs
            process.wait()
            note(so_far(None))
            raise
        finally:  # between two examples a signal ends this process, and nothing is lost
            for number, handler in before.items():
                signal.signal(number, handler)
    write(printed, ''.join(lines))
    note(so_far(process.returncode))


def table(outcomes: dict[str, Outcome], folder: Path) -> str:
    """The outcomes as a page in Markdown: a row for each, then the numbers that each printed last."""
    lines = ['| result | command | minutes | end | commit |', '|---|---|---|---|---|']
    for name, outcome in outcomes.items():
        end = {0: 'done', None: 'interrupted'}.get(outcome['status'], f'failed ({outcome["status"]})')
        lines.append(
            f'| {name} | `{outcome["command"]}` | {outcome["seconds"] / 60:.1f} | {end} | {outcome["commit"]} |'
        )
    for name in outcomes:
        printed = folder / f'{name}.txt'  # there is none of one that was interrupted
        if printed.exists():
            lines += ['', f'## {name}', '', '```', *numbers(printed.read_text()), '```']
    return '\n'.join(lines) + '\n'


def numbers(text: str, most: int = 30) -> list[str]:
    """The last lines that an example printed, without those of its sweeps and of its figure."""
    lines = text.splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith(('`python -m RLM_clean.sweep collect', 'step '))]
    rest = lines[marks[-1] + 1 :] if marks else lines
    return [line for line in rest if not line.startswith(('the figure is', 'done at step', 'results in'))][-most:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not done yet and writes the table. Exits with status 1 if an example fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='small models, to try the commands out')
    parser.add_argument('--again', action='store_true', help='run those that are done too')
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'some of {", ".join(NAMES)}; all by default')
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f'{unknown[0]!r} is not an example: use {", ".join(NAMES)}')
    folder = Path('results/all_quick' if options.quick else 'results/all')
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / 'outcomes.json'
    outcomes: dict[str, Outcome] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.names or NAMES:
        if name in outcomes and outcomes[name]['status'] == 0 and not options.again:
            continue
        print(f'== {name}', flush=True)
        before = outcomes.get(name, {}).get('seconds', 0.0)  # of runs that need not be trained again

        def note(outcome: Outcome, name: str = name, before: float = before) -> None:
            outcomes[name] = {**outcome, 'seconds': before + outcome['seconds']}
            ordered = {name: outcomes[name] for name in NAMES if name in outcomes}
            write(kept, json.dumps(ordered, indent=1))
            write(folder / 'outcomes.md', table(ordered, folder))

        try:
            run(name, options.quick, folder / f'{name}.txt', note)
        except KeyboardInterrupt:
            raise SystemExit(f'{name}: interrupted: the same command goes on') from None
    print(f'the table is {folder / "outcomes.md"}')
    if any(outcome['status'] for outcome in outcomes.values()):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
