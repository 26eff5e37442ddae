"""What code.sh asks for: one run or a sweep, and its name.

code.sh gives its variables as NAME=VALUE, then its own arguments, which win:

    python -m RLM_clean.sweep.script dataset=rlm beta=2 ... -- --beta 1.5

Several values of an option, or repetitions, make a sweep. With --check in front only the names of the arguments are
checked; torch is not needed for that.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import sys
from collections.abc import Sequence
from itertools import takewhile

from RLM_clean.config import DEFAULTS, from_arguments, similar
from RLM_clean.sweep.grid import SWITCHES

Values = dict[str, str]

_SWITCHES = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]
_SEEDS = ('seed_rules', 'seed_sample', 'seed_model')
_RESOURCES = ('partition', 'minutes', 'memory', 'gpus', 'cpus', 'notice')
_RANGE = re.compile(r'\.\..*:')


def main(words: Sequence[str] | None = None) -> int:
    """Starts what the words of code.sh ask for; returns the exit status, which is that of the run or of the sweep."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        if words[:1] == ['--check']:
            read_values(words[1:])
            return 0
        values = draw_seeds(read_values(words))
        varied = [name for name in _options(values) if is_several(values[name])]
        dry_run = is_on('dry_run', values['dry_run'])
        if varied or values['repetitions']:
            from RLM_clean.sweep.__main__ import main as start_sweep

            return start_sweep(sweep_words(values, varied) + (['--dry-run'] if dry_run else []))
        line = run_words(values)
    except ValueError as error:
        with contextlib.suppress(OSError):
            print(f'code.sh: error: {error}', file=sys.stderr)
        return 2
    if dry_run:
        return list_run(line)
    from RLM_clean.main import main as start_run

    return start_run(line)


def list_run(line: Sequence[str]) -> int:
    """Says what a run would do, and writes nothing; returns the exit status, 2 for options that cannot be run."""
    config = from_arguments(line)
    from RLM_clean.runs.files import RunFiles
    from RLM_clean.training import machine
    from RLM_clean.training.lifecycle import describe
    from RLM_clean.training.progress import say

    try:
        machine.check(config)
    except ValueError as error:
        say(f'rlm-train: error: {error}', sys.stderr)
        return 2
    say(describe(config))
    say(f'{config.outname}  {"there already" if RunFiles(config.outname).final.exists() else "to train"}')
    return 0


# ---------------------------------------------------------------------- words to values


def read_values(words: Sequence[str]) -> Values:
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
    """The command line of one run."""
    return [f'--outname={values["outname"] or values["results_dir"] + "/" + run_name(values)}', *_option_words(values)]


def sweep_words(values: Values, varied: Sequence[str]) -> list[str]:
    """The command line of a sweep over the options `varied`."""
    outname = values['outname'] or f'{values["results_dir"]}/{sweep_name(values, varied)}'
    words = [f'--outname={outname}', *_option_words(values)]
    words += [f'--grid={name}={",".join(values[name].split())}' for name in varied]
    if values['repetitions']:
        words += [f'--{name}={values[name]}' for name in ('repetitions', 'vary', 'seed')]
    words += [f'--{name}={values[name]}' for name in _RESOURCES if values[name]]
    return [*words, f'--workers={values["workers"]}', f'--launcher={values["launcher"]}']


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


def run_name(values: Values) -> str:
    """{dataset}_{v}L{L}_{rules}_ts{train_size}_{rep}: the name of a run's files."""
    v = values
    return f'{v["dataset"]}_{v["num_features"]}L{v["num_layers"]}_{_rules(v)}_ts{v["train_size"]}_{v["rep"]}'


def sweep_name(values: Values, varied: Sequence[str]) -> str:
    """The folder of a sweep: what its runs share, as in `run_name`, then the options that vary."""
    v = values
    size = '' if 'num_features' in varied else v['num_features']
    size += '' if 'num_layers' in varied else f'L{v["num_layers"]}'
    parts = ['languages' if 'dataset' in varied else v['dataset'], size]
    parts += [] if is_several(_rules(v)) else [_rules(v)]
    parts += [] if 'train_size' in varied else [f'ts{v["train_size"]}']
    return '_'.join([part for part in parts if part] + [v['rep'], 'over', *(varied or ['seeds'])])


def _rules(values: Values) -> str:
    if values['dataset'] == 'rhm':
        return f'm{values["num_synonyms"]}'
    beta = values['beta']
    # 2.0 and 2 are the same language, and have the same name.
    return f'b{float(beta):g}' if re.fullmatch(r'[0-9]+\.?[0-9]*', beta) else f'b{beta}'


if __name__ == '__main__':
    sys.exit(main())
