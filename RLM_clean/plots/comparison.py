"""Several runs in one figure, given as runs, by their names, by a pattern, as a sweep, or as data frames."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from RLM_clean.config import EXECUTION, Config, format_value
from RLM_clean.plots.runs import Curve, draw_excess, draw_losses, language_parts, model_parts
from RLM_clean.plots.style import fitted_labels, plain, styled
from RLM_clean.runs import Run, RunFiles
from RLM_clean.runs.files import Record
from RLM_clean.tasks import TASKS

if TYPE_CHECKING:
    import pandas

# A data frame of pandas is one too, or several.
AnyRun = Run | str | os.PathLike[str]

# More lines cannot be told apart.
_MOST_RUNS = 24
# What follows the name of a run in the names of its files.
_ENDINGS = re.compile(r'(_config\.pt|_t\d+\.pt|_previous\.pt|_log\.jsonl|_tensorboard|_wandb|\.pt|\.png)$')
_WIDTH = 11.0
# Options that change what is written of a run, not the run.
_OUTPUT = frozenset({'print_freq', 'save_freq', 'checkpoints'})
# A label of more letters is harder to read than the name of the run.
_LONGEST = 100


@dataclass(frozen=True)
class _Found:
    """What the figure needs of a run: a language is not read, which may be large."""

    name: str
    config: Config
    records: list[Record]
    floors: dict[int, tuple[float, float]]
    entropy: float


def compare(runs: AnyRun | pandas.DataFrame | Iterable[AnyRun | pandas.DataFrame]) -> Figure:
    """The test loss and the excess (nats) of several runs against the step, one colour for each run.

    `runs` are runs, names of runs, patterns such as 'results/rlm_*', results of a sweep or runs of them, or data frames
    made by their `to_pandas`; one of these or a list. A frame of a run is drawn as it is, one of a sweep stands for the
    runs in it. Runs of a sweep without a record yet are left out. Names of files of a run stand for the run.

    A run is labelled by the options in which the runs differ, or by its name where there are none or many. Thin lines
    are training losses. Floors are drawn once where all runs share them; otherwise each run has its lowest floor,
    dashed, in its colour.

        plots.compare(['results/one', 'results/two']).savefig('compare.png')
        frame = sweep.load('results/my_sweep').to_pandas()
        plots.compare(frame[frame.excess > 0.1].query('repetition == 1'))

    Raises ValueError for a name that is not a run, a pattern that fits none, a run without records, another frame, and
    more than 24 runs.
    """
    given = [runs] if isinstance(runs, (Run, str, os.PathLike)) or _is_frame(runs) else list(runs)
    found = [_found(run) for run in _resolve(given)]
    labels = _labels(found)
    title = _shared_title([run.config for run in found])
    curves = [
        Curve(run.records, run.floors, run.entropy, title, plain(label), seen=TASKS[run.config.objective].seen)
        for run, label in zip(found, labels, strict=True)
    ]
    return _draw(curves)


@styled
def _draw(curves: Sequence[Curve]) -> Figure:
    """Losses and excess side by side, with one legend below both, for which the figure grows."""
    figure = Figure(figsize=(_WIDTH, 4.2))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_losses(left, curves)
    draw_excess(right, curves)
    right.set_title('excess over the best predictor')
    handles, labels = left.get_legend_handles_labels()
    labels, columns, lines = fitted_labels(labels, _WIDTH - 0.4, 6)
    figure.set_figheight(3.9 + 0.19 * lines)
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, columnspacing=1.5)
    return figure


# ---------------------------------------------------------------------- which runs


def _resolve(given: Sequence[Any]) -> list[Any]:
    """The runs that are meant, each once, in the order in which they are given; those of a pattern by their names.

    Runs of a sweep that have no record yet are left out.
    """
    found: dict[str, Any] = {}
    waiting = False
    for item in given:
        if _is_frame(item) and 'config' in item.attrs:
            found.setdefault(f'{os.path.abspath(item.attrs["run"])} as {id(item)}', item)
            continue
        if isinstance(item, Run):
            found.setdefault(os.path.abspath(item.files.outname), item)
            continue
        paths = _in_frame(item) if _is_frame(item) else [item]
        if not paths or getattr(item, 'records', True) == []:  # a sweep.Result has its records
            waiting = True
            continue
        for name in itertools.chain.from_iterable(_names(os.fspath(path)) for path in paths):
            found.setdefault(os.path.abspath(name), Path(name))
    if not found and waiting:
        raise ValueError('no run of the sweep has a record yet: wait for its first evaluation')
    if not found:
        raise ValueError("no run was given: give names of runs, or a pattern such as 'results/rlm_*'")
    if len(found) > _MOST_RUNS:
        raise ValueError(f'{len(found)} runs were given: one figure shows at most {_MOST_RUNS}, give fewer')
    return list(found.values())


def _names(text: str) -> list[str]:
    """The names of the runs that a name, the name of a file of a run, or a pattern stands for."""
    if (name := _run_of(text)) is not None:
        return [name]
    if glob.has_magic(text):
        matches = [_run_of(path) for path in [*glob.glob(text), *glob.glob(f'{text}_config.pt')]]
        names = {match for match in matches if match is not None}
        if not names:
            raise ValueError(f"{text!r} fits no run: see ls results; those of a sweep are as 'results/my_sweep/*'")
        return sorted(names, key=_by_number)
    if os.path.isdir(text):
        raise ValueError(f'{text!r} is a folder: give the runs in it, as {os.path.join(text, "*")!r}')
    raise ValueError(f'{text!r} is not a run ({text}_config.pt does not exist): give the outname of a run')


def _run_of(text: str) -> str | None:
    """The run of this name, or the run that a file of this name belongs to."""
    for name in (text, _ENDINGS.sub('', text)):
        if os.path.basename(name) and RunFiles(name).config.exists():
            return name
    return None


def _by_number(name: str) -> list[tuple[float, str]]:
    """Sorts names by the numbers in them: beta2 comes before beta10."""
    return [(float(part), '') if part.isdecimal() else (-1.0, part) for part in re.split(r'(\d+)', name)]


def _is_frame(item: Any) -> bool:
    """Whether something is a data frame of pandas, which is not imported for this."""
    return hasattr(item, 'columns') and hasattr(item, 'attrs')


def _in_frame(frame: Any) -> list[Path]:
    """The names of the runs in a frame of a sweep that have a record, in the order of its rows."""
    if 'sweep' not in frame.attrs or 'run' not in frame:
        raise ValueError('a data frame names no run: give those of run.to_pandas() or results.to_pandas()')
    rows = frame[frame['step'].notna()] if 'step' in frame else frame
    return [Path(frame.attrs['sweep']) / name for name in dict.fromkeys(rows['run'])]


def _found(run: Any) -> _Found:
    if isinstance(run, Run):
        return _of_run(run)
    return _of_frame(run) if _is_frame(run) else _of_files(run)


def _of_frame(frame: Any) -> _Found:
    """A run as its frame has it: some of its records may be left out."""
    about = frame.attrs
    if missing := {'trainloss', 'testloss', 'excess'} - set(frame.columns):
        raise ValueError(f'the data frame of {about["run"]} lacks {sorted(missing)[0]!r}: give that of run.to_pandas()')
    records = [{str(name): value for name, value in row.items()} for row in frame.reset_index().to_dict('records')]
    # A frame that went through a file has texts for keys.
    floors = {int(k): (value, error) for k, (value, error) in about['floors'].items()}
    return _checked(_Found(about['run'], Config(**about['config']), records, floors, about['entropy']))


def _of_run(run: Run) -> _Found:
    return _checked(_Found(str(run.files.outname), run.config, run.dynamics, run.floors, run.entropy))


def _of_files(path: str | os.PathLike[str]) -> _Found:
    files = RunFiles(path)
    stored = files.load_config(tensors=False)
    final = files.load_final(tensors=False) if files.final.exists() else None
    records = files.read_log() if final is None else final['output']['dynamics']
    return _checked(_Found(str(path), Config(**stored['config']), records, stored['floors'], stored['entropy']))


def _checked(found: _Found) -> _Found:
    if not found.records:
        raise ValueError(f'{found.name} has no record yet: wait for its first evaluation, or leave it out')
    return found


# ---------------------------------------------------------------------- how they are called


def _labels(found: Sequence[_Found]) -> list[str]:
    """For each run the options in which the runs differ, or its name if there are none or many; no two are the same."""
    options = [run.config.to_dict() for run in found]
    compared = [name for name in options[0] if name not in EXECUTION | _OUTPUT]
    varied = [name for name in compared if any(o[name] != options[0][name] for o in options)]
    if {'num_layers', 'num_tokens'} <= set(varied) and all(o['num_tokens'] == 2 ** o['num_layers'] for o in options):
        varied.remove('num_tokens')  # it follows from the depth
    labels = [', '.join(f'{name} = {format_value(o[name])}' for name in varied) for o in options]
    if max(map(len, labels)) > _LONGEST:
        labels = [''] * len(found)
    names = [os.path.basename(run.name) for run in found]
    names = names if len(set(names)) == len(names) else [run.name for run in found]
    return [
        label if label and labels.count(label) == 1 else ', '.join(filter(None, (label, name)))
        for label, name in zip(labels, names, strict=True)
    ]


def _shared_title(configs: Sequence[Config]) -> str:
    """The parts of the titles of runs that are the same for all of them."""
    shared = []
    for parts in (language_parts, model_parts):
        first, *others = map(parts, configs)
        shared.append(', '.join(part for part in first if all(part in other for other in others)))
    return ': '.join(filter(None, shared))
