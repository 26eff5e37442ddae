"""What code.sh asks for: one run, a sweep or a search for thresholds, and its name.

code.sh gives its variables as NAME=VALUE, then its own arguments, which win:

    python -m RLM_clean.sweep.script dataset=rlm beta=2 ... -- --beta 1.5

Several values of an option, or repetitions, make a sweep. With a level as `threshold`, the size of the training set at
which it is learnt is sought (`RLM_clean.sweep.thresholds`), for each value. With --check in front only the names of the
arguments are checked; torch is not needed for that.
"""

from __future__ import annotations

import contextlib
import gc
import re
import secrets
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from RLM_clean.command_line import from_arguments
from RLM_clean.config import DEFAULTS, EXECUTION, Config, similar
from RLM_clean.sweep.grid import SWITCHES, read_values
from RLM_clean.sweep.names import check_rep, first_name, run_name, sweep_name

Values = dict[str, str]

_SWITCHES = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]
_SEEDS = ('seed_rules', 'seed_sample', 'seed_model')
_RESOURCES = ('partition', 'minutes', 'memory', 'gpus', 'cpus', 'notice')
# Which seeds differ between repetitions, and what they derive from, as code.sh has them when they are not set.
_OF_REPETITIONS = {'vary': 'rules,sample,model', 'seed': '0'}
_RANGE = re.compile(r'\.\..*:')


def main(words: Sequence[str] | None = None) -> int:
    """Starts what the words of code.sh ask for; returns the exit status, which is that of the run or of the sweep."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        if words[:1] == ['--check']:
            read_words(words[1:])
            return 0
        values = draw_seeds(read_words(words))
        varied = [name for name in _options(values) if is_several(values[name])]
        dry_run = is_on('dry_run', values['dry_run'])
        _check_use(values, one=not varied)
        if varied or values['repetitions'] or values['threshold']:
            from RLM_clean.sweep.__main__ import main as start_sweep

            line = threshold_words(values, varied) if values['threshold'] else sweep_words(values, varied)
            return start_sweep(line + (['--dry-run'] if dry_run else []))
        from RLM_clean import init  # noqa: F401 - it registers what is imported there (docs/extending.md)

        line = run_words(values)
        if dry_run:
            return list_run(line)
        from RLM_clean.main import main as start_run

        return start_run(line)
    except ValueError as error:
        with contextlib.suppress(OSError):
            print(f'code.sh: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while torch is imported
        return 130


def _check_use(values: Values, one: bool) -> None:
    """Raises ValueError for what has no use without repetitions, or for one run, where no option has several values."""
    repeated = values['repetitions'] or values['threshold']  # a search has repetitions by default
    for name, default in _OF_REPETITIONS.items():
        if not repeated and values[name] != default:
            raise ValueError(
                f'{name}={values[name]} is for repetitions: give repetitions=R too; the seeds of one run are '
                'seed_rules, seed_sample and seed_model'
            )
    if repeated or not one:
        return
    launcher = {'launcher': values['launcher']} if values['launcher'] != 'local' else {}
    for name, value in {**launcher, **{name: values[name] for name in _RESOURCES if values[name]}}.items():
        raise ValueError(
            f'{name}={value} is for sweeps, and this is one run: give several values of an option, or repetitions, '
            f'or {"use launcher=local" if name == "launcher" else "leave it out"}'
        )


def list_run(line: Sequence[str]) -> int:
    """Says what a run would do, and writes nothing; returns the exit status, 2 for options that cannot be run."""
    config = from_arguments(line)
    from RLM_clean.training.lifecycle import describe, foresee
    from RLM_clean.training.progress import say

    try:
        plan = foresee(config)
    except ValueError as error:
        say(f'rlm-train: error: {error}', sys.stderr)
        return 2
    say(describe(config))
    say(f'{config.outname}  {plan}')
    return 0


# ---------------------------------------------------------------------- words to values


def read_words(words: Sequence[str]) -> Values:
    """The variables of code.sh, each replaced by the argument of its name where there is one.

    Raises ValueError with one sentence for an argument that cannot be read.
    """
    end = words.index('--')
    variables = dict(word.split('=', 1) for word in words[:end])
    arguments = read_arguments(words[end + 1 :], variables)
    values = {**variables, **arguments}
    if values['launcher'] != 'slurm':  # names such as memory may stand in the environment for other reasons
        values |= {name: arguments.get(name, '') for name in _RESOURCES}
    return values


def read_arguments(words: Sequence[str], names: Values) -> Values:
    """The values of arguments such as `--beta 1.5`, `--beta=1.5`, `beta=1.5`, `--beta 1 2`, `--tie_weights`."""
    given: Values = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix('--').partition('=')
        if name.removeprefix('no-') in _SWITCHES and name.startswith('no-') and not equals:
            name, equals, value = name.removeprefix('no-'), '=', '0'
        name = {'seed_samples': 'seed_sample'}.get(name, name)  # the languages call it so
        if name not in names or not (equals or word.startswith('--')):
            raise ValueError(f'{word!r} is not an option: {similar(name, names)}')
        if name in given:
            raise ValueError(f'{name} is given twice: give it once, with several values as {name}="1 2"')
        if not equals:
            parts = list(takewhile(lambda part: not part.startswith('--') and '=' not in part, rest))
            del rest[: len(parts)]
            value = ' '.join(parts)
            if not parts and name in (*_SWITCHES, 'dry_run'):
                value = '1'
            elif not parts:
                raise ValueError(f'--{name} has no value: give one, as in --{name} {names[name] or "VALUE"}')
        given[name] = value
    return given


def draw_seeds(values: Values) -> Values:
    """The values with a number for each seed that is `random`, which is printed."""
    drawn = {name: str(secrets.randbits(32)) for name in _SEEDS if values[name] == 'random'}
    for name, seed in drawn.items():
        with contextlib.suppress(OSError):
            print(f'{name}={seed}', flush=True)
    return {**values, **drawn}


def is_several(value: str) -> bool:
    """Whether a value holds several, such as '0.8 1.2' or '0..4:9'."""
    return len(value.split()) > 1 or _RANGE.search(value) is not None


def is_on(name: str, value: str) -> bool:
    """The value of a switch. Raises ValueError for one that is neither on nor off."""
    if value.strip().lower() not in SWITCHES:
        raise ValueError(f'{name}={value} is not valid: use 1 or 0')
    return SWITCHES[value.strip().lower()]


# ---------------------------------------------------------------------- values to command lines


def run_words(values: Values) -> list[str]:
    """The command line of one run.

    Without an outname its name is made of its options, in results_dir. A run that an earlier version began there under
    its shorter name keeps that.
    """
    words = _option_words(values)
    if values['outname']:
        return [f'--outname={values["outname"]}', *words]
    folder, rep = values['results_dir'], check_rep(values['rep'])
    config = from_arguments([f'--outname={folder}/run', *words], prog='code.sh')
    outname, before = f'{folder}/{run_name(config, rep)}', f'{folder}/{first_name(values)}'
    if before != outname and _is_begun(before, config) and not _is_begun(outname, config):
        outname = before
    return [f'--outname={outname}', *words]


def _is_begun(outname: str, config: Config) -> bool:
    """Whether there is a run of these options under a name."""
    from RLM_clean.runs.files import RunFiles

    files = RunFiles(outname)
    if not files.config.exists():
        return False
    with contextlib.suppress(ValueError):
        return config.first_difference(files.load_config(tensors=False)['config']) is None
    return False


def sweep_words(values: Values, varied: Sequence[str]) -> list[str]:
    """The command line of a sweep over the options `varied`."""
    if 'zipf_levels' in varied and ',' in values['zipf_levels']:
        raise ValueError(
            f'zipf_levels={values["zipf_levels"]!r} has a value with a comma, which would be read as two: give such a '
            'sweep as a TOML file, with zipf_levels = ["0,2", "all"] (docs/sweeps.md)'
        )
    outname = values['outname'] or f'{values["results_dir"]}/{_sweep_folder(values, varied)}'
    words = [f'--outname={outname}', *_option_words(values)]
    words += [f'--grid={name}={",".join(values[name].split())}' for name in varied]
    if values['repetitions']:
        words += [f'--repetitions={values["repetitions"]}']
    if values['repetitions'] or values['threshold']:
        words += [f'--{name}={values[name]}' for name in _OF_REPETITIONS]
    words += [f'--{name}={values[name]}' for name in _RESOURCES if values[name]]
    return [*words, f'--workers={values["workers"]}', f'--launcher={values["launcher"]}']


def threshold_words(values: Values, varied: Sequence[str]) -> list[str]:
    """The command line of a search for thresholds over the options `varied`.

    What the search itself decides is left out where it has the default: the regime is offline, the number of steps ends
    a run, and checkpoints are kept where the criterion needs them. What was changed is there, and is refused or done.
    """
    level = values['threshold']
    if not level.isdecimal() or not int(level):
        raise ValueError(f'threshold={level} is not a level: use 1 (pairs of tokens) to num_layers, or nothing')
    left_out = ['--checkpoints', *(f'--{name}={DEFAULTS[name]}' for name in ('train_size', 'regime', 'max_epochs'))]
    folder = sweep_name(values, [*varied, 'train_size'], _changes(values, [*varied, 'train_size']))
    outname = values['outname'] or f'{values["results_dir"]}/threshold_{folder}'
    words = [word for word in sweep_words({**values, 'outname': outname}, varied) if word not in left_out]
    return ['threshold', *words, f'--level={level}']


def _option_words(values: Values) -> list[str]:
    words = []
    for name in _options(values):
        value = values[name].strip()
        if is_several(value) or (name == 'num_tokens' and not value):
            continue
        if name in _SWITCHES:
            words.append(f'--{"" if is_on(name, value) else "no-"}{name}')
        else:
            words.append(f'--{name}={value}')
    return words


def _options(values: Values) -> list[str]:
    """The options of a run among the values, in the order in which names of sweeps have them."""
    last = ['num_tokens', *_SWITCHES]
    first = [name for name in values if name in DEFAULTS and name not in (*last, 'outname')]
    return first + [name for name in values if name in last]


# ---------------------------------------------------------------------- names


def _sweep_folder(values: Values, varied: Sequence[str]) -> str:
    """The folder of a sweep in results_dir.

    A sweep that an earlier version began in results_dir under a shorter name keeps that.
    """
    before = sweep_name(values, varied, {})
    return before if _is_begun_sweep(values, varied, before) else sweep_name(values, varied, _changes(values, varied))


def _changes(values: Values, varied: Sequence[str]) -> dict[str, Any]:
    """What all runs of a sweep share and has another value than the default."""
    return {name: value for name, value in _shared(values, varied).items() if value != DEFAULTS[name]}


def _shared(values: Values, varied: Sequence[str]) -> dict[str, Any]:
    """The values of the options that all runs of a sweep share; num_tokens only where it is given."""
    names = [name for name in _options(values) if name not in varied and name not in EXECUTION]
    return {name: read_values(name, values[name])[0] for name in names if values[name].strip()}


def _is_begun_sweep(values: Values, varied: Sequence[str], name: str) -> bool:
    """Whether results_dir has a sweep of that name whose runs share the same options."""
    from RLM_clean.sweep.plan import plan_file, read_plan

    folder = f'{values["results_dir"]}/{name}'
    if not plan_file(folder).exists():
        return False
    with contextlib.suppress(ValueError):
        stored = read_plan(folder).options
        return all(stored.get(name, DEFAULTS[name]) == value for name, value in _shared(values, varied).items())
    return False


if __name__ == '__main__':
    status = main()
    gc.freeze()  # as main.py does
    sys.exit(status)
