"""From words to runs: the values of a grid, names, seeds, groups, and what a sweep may become."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.streams import stream_key
from RLM_clean.sweep.grid import Axis, Request, merged, read_axis, read_toml, read_values, spaced
from RLM_clean.sweep.plan import OWN_OPTIONS, Plan, by_shape, make_plan, read_plan, repetition_seeds, save_plan

SEEDS = ('seed_rules', 'seed_sample', 'seed_model')


def make(*grid: str, folder: str | Path = 'sweep', options: dict[str, Any] | None = None, **kinds: Any) -> Plan:
    """A plan from the words of a command line."""
    return Plan(Path(folder), tuple(read_axis(words.split()) for words in grid), options or {}, **kinds)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ('name', 'text', 'values'),
    [
        ('beta', '0.8,1.2', [0.8, 1.2]),
        ('beta', ' 1 , 2', [1.0, 2.0]),
        ('beta', '0..4:9', [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]),
        ('beta', '0..1:3,2', [0.0, 0.5, 1.0, 2.0]),
        ('beta', '2..1:3', [2.0, 1.5, 1.0]),
        ('lr', '1e-4..1e-1:7log', [1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2, 3.16228e-2, 1e-1]),
        ('num_features', '16..256:5log', [16, 32, 64, 128, 256]),
        ('depth', '1..4:4', [1, 2, 3, 4]),
        ('num_tokens', '2,4', [2, 4]),
        ('tie_weights', '0,true', [False, True]),
        ('model', 'transformer_mlm,fcn', ['transformer_mlm', 'fcn']),
    ],
)
def test_values_are_read_as_the_option_has_them(name: str, text: str, values: list[Any]) -> None:
    found = read_values(name, text)
    assert found == values and [type(x) for x in found] == [type(x) for x in values]


@given(
    ends=st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).filter(
        lambda ends: abs(math.log(ends[0] / ends[1])) > 1
    ),
    number=st.integers(2, 50),
    log=st.booleans(),
)
def test_a_range_has_its_ends_and_even_steps(ends: tuple[float, float], number: int, log: bool) -> None:
    values = spaced(*ends, number, log)
    assert len(values) == number and (values[0], values[-1]) == ends
    places = [math.log(value) for value in values] if log else values
    step = (places[-1] - places[0]) / (number - 1)
    scale = 1.0 if log else max(ends)
    assert all(abs(b - a - step) < 2e-5 * scale for a, b in itertools.pairwise(places))


def test_options_that_vary_together_make_one_axis() -> None:
    axis = read_axis(['num_features=32,64', 'lr=1e-3..1e-2:2log'])
    assert axis == Axis(('num_features', 'lr'), ((32, 1e-3), (64, 1e-2)))
    assert axis.column('lr') == [1e-3, 1e-2]


BAD_AXES: list[tuple[str, str]] = [
    ('beta', 'write them as in beta=0.8,1.2'),
    ('beta=', 'has no values: give some'),
    ('beta=,', 'has no values: give some'),
    ('beta=1,,2', "beta='' is not a number: give one"),
    ('beta=1,x', "beta='x' is not a number: give one"),
    ('depth=1,1.5', "depth='1.5' is not a whole number: give one"),
    ('tie_weights=0,2', "tie_weights='2' is not true or false: give one"),
    ('bta=1,2', "'bta' is not an option: did you mean beta?"),
    ('colour=1,2', "'colour' is not an option: see --help"),
    ('beta=1,2,1.0', 'beta=1 is given twice among the values: leave one out'),
    ('beta=1..2', 'is not a range: write it as first..last:number'),
    ('beta=1..2:few', 'is not a range: write it as first..last:number'),
    ('beta=1..x:3', "beta='x' is not a number: give one"),
    ('beta=1..nan:3', "beta='nan' is not a number: give one"),
    ('beta=1..2:1', 'asks for 1 values: ask for 2 to 1000'),
    ('beta=1..2:99999', 'asks for 99999 values: ask for 2 to 1000'),
    ('lr=0..1:3log', 'has an end that is not above 0'),
    ('depth=1..2:3', 'contains 1.5, which is not a whole number: choose other ends'),
    ('device=cpu,cuda', 'device cannot vary within a sweep: give it once, as --device'),
    ('outname=a,b', 'outname cannot vary within a sweep'),
    ('beta=1,2 lr=1', 'beta and lr vary together but have different numbers of values: 2 of beta, 1 of lr'),
    ('beta=1 beta=2', 'beta is varied with itself: give it once'),
    ('beta=1,2,1 lr=1,2,1', 'beta=1 lr=1 is given twice among the values'),
]


@pytest.mark.parametrize(('words', 'said'), BAD_AXES, ids=[words for words, _ in BAD_AXES])
def test_a_bad_axis_is_refused_in_one_sentence(words: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_axis(words.split())
    assert said in str(caught.value) and '\n' not in str(caught.value)


# ---------------------------------------------------------------------- files of requests

TOML = """
outname = 'results/betas'
repetitions = 3
vary = ['rules', 'model']
seed = 7

[grid]
beta = [1, 1.5]
lr = '1e-3..1e-1:3log'

[[zip]]
num_features = [16, 32]
embedding_dim = [32, 64]

[options]
max_iters = 500
tie_weights = true
"""


def toml(folder: Path, text: str) -> Path:
    pytest.importorskip('tomllib')
    path = folder / 'sweep.toml'
    path.write_text(text)
    return path


def test_a_toml_file_says_the_same_as_words(tmp_path: Path) -> None:
    axes = tuple(
        read_axis(words.split())
        for words in ('beta=1,1.5', 'lr=1e-3..1e-1:3log', 'num_features=16,32 embedding_dim=32,64')
    )
    assert read_toml(toml(tmp_path, TOML)) == Request(
        'results/betas', axes, {'max_iters': 500, 'tie_weights': True}, 3, ('rules', 'model'), 7
    )


def test_words_come_before_the_file(tmp_path: Path) -> None:
    words = Request('other', (read_axis(['lr=1,2']),), {'max_iters': 9}, seed=1)
    request = merged(read_toml(toml(tmp_path, TOML)), words)
    assert (request.outname, request.repetitions, request.seed) == ('other', 3, 1)
    assert [axis.names for axis in request.axes] == [('beta',), ('num_features', 'embedding_dim'), ('lr',)]
    assert request.axes[2].points == ((1.0,), (2.0,)) and request.options == {'max_iters': 9, 'tie_weights': True}


BAD_TOML: list[tuple[str, str]] = [
    ('outname = 3', 'outname=3'),
    ('outnam = "a"', "'outnam', which it cannot: did you mean outname?"),
    ('beta = [1, 2]', "'beta', which it cannot"),
    ('[grid]\nbeta = []', 'beta has no values'),
    ('[grid]\nbta = [1]', 'did you mean beta?'),
    ('[grid]\nbeta = [1, 1.0]', 'beta=1 is given twice'),
    ('[[zip]]\nbeta = [1, 2]\nlr = [1]', '2 of beta, 1 of lr'),
    ('zip = [1]', 'write [[zip]]'),
    ('[options]\nbeta = [1, 2]', 'put it in [grid]'),
    ('[options]\nbta = 1', 'did you mean beta?'),
    ('[options]\noutname = "a"', "'outname' among [options]"),
    ('[grid', 'is not TOML'),
    ('repetitions = true', 'repetitions=True'),
]


@pytest.mark.parametrize(('text', 'said'), BAD_TOML, ids=[text for text, _ in BAD_TOML])
def test_a_bad_toml_file_is_refused_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read_toml(toml(tmp_path, text))
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_missing_toml_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip('tomllib')
    with pytest.raises(ValueError, match=r'none\.toml cannot be read .*: give the path'):
        read_toml(tmp_path / 'none.toml')


# ---------------------------------------------------------------------- runs


def test_runs_are_the_product_of_the_axes_repetition_by_repetition() -> None:
    plan = make('beta=0.8,1.2', 'num_features=16,32 embedding_dim=32,64', repetitions=2)
    assert [run.name for run in plan.runs] == [
        'beta0.8_num_features16_embedding_dim32_r1', 'beta0.8_num_features32_embedding_dim64_r1',
        'beta1.2_num_features16_embedding_dim32_r1', 'beta1.2_num_features32_embedding_dim64_r1',
        'beta0.8_num_features16_embedding_dim32_r2', 'beta0.8_num_features32_embedding_dim64_r2',
        'beta1.2_num_features16_embedding_dim32_r2', 'beta1.2_num_features32_embedding_dim64_r2',
    ]  # fmt: skip
    last = plan.runs[-1]
    values: dict[str, Any] = {'beta': 1.2, 'num_features': 32, 'embedding_dim': 64, **repetition_seeds(0, 2)}
    assert last.config == Config(outname='sweep/' + last.name, **values)
    assert last.point == {'beta': 1.2, 'num_features': 32, 'embedding_dim': 64} and last.repetition == 2


def test_names_tell_the_values_apart_and_have_no_repetition_where_there_is_none() -> None:
    plan = make('lr=0.001,0.00100000001,1e-05', 'tie_weights=0,1', 'model=transformer_mlm,transformer_clm')
    names = [run.name for run in plan.runs]
    assert names[:2] == ['lr0.001_tie_weights0_modeltransformer_mlm', 'lr0.001_tie_weights0_modeltransformer_clm']
    assert len(set(names)) == 12 and all(name.isascii() and '/' not in name for name in names)
    assert {run.config.seed_model for run in plan.runs} == {11111}
    assert make(repetitions=2).runs[1].name == 'r2'


def test_files_of_one_run_are_none_of_another(tmp_path: Path) -> None:
    """Names that begin alike: the steps of a checkpoint are read from the names of files."""
    plan = make('beta=1,12', 'momentum=0,0.5', repetitions=11, folder=tmp_path)
    for run in plan.runs:
        files = RunFiles(run.config.outname)
        for path in (files.config, files.final, files.log, files.checkpoint(1), files.checkpoint(12)):
            path.touch()
    assert len(list(tmp_path.iterdir())) == 5 * len(plan.runs)
    for run in plan.runs:
        assert RunFiles(run.config.outname).steps() == [1, 12]


# ---------------------------------------------------------------------- seeds


def test_the_seeds_of_a_repetition_are_those_of_the_documented_rule() -> None:
    """They are part of what a sweep is: never change these numbers."""
    assert repetition_seeds(0, 1) == {'seed_rules': 1853802337, 'seed_sample': 3979259873, 'seed_model': 3032391305}
    assert repetition_seeds(12345, 9) == {
        name: stream_key(12345, 'other', i, 9) % 2**32 for i, name in enumerate(SEEDS)
    }
    assert repetition_seeds(12345, 1000)['seed_model'] == 3719955958


def test_seeds_do_not_repeat() -> None:
    """6000 draws of 32 bits agree by chance with probability 0.4%; the seeds are fixed."""
    drawn = [seed for s in (0, 1) for r in range(1, 1001) for seed in repetition_seeds(s, r).values()]
    assert len(set(drawn)) == len(drawn) and all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize('vary', [('rules',), ('sample', 'model'), ('rules', 'sample', 'model')])
def test_only_the_seeds_that_are_named_vary_and_they_are_those_of_the_repetition(vary: tuple[str, ...]) -> None:
    plan = make('beta=1,2', 'depth=1,2', repetitions=3, vary=vary, seed=5)
    default = Config(outname='run')
    for run in plan.runs:
        assert run.repetition is not None
        for name, seed in repetition_seeds(5, run.repetition).items():
            expected = seed if name.removeprefix('seed_') in vary else getattr(default, name)
            assert getattr(run.config, name) == expected


# ---------------------------------------------------------------------- what cannot be run

BAD_PLANS: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    ((), {}, 'nothing varies: give --grid or --repetitions'),
    (('beta=1,-2',), {}, 'beta=-2.0 is out of range: use a number from 0 to 1e9'),
    (('num_heads=1,3',), {}, 'num_heads=3 does not divide embedding_dim=64'),
    (('num_heads=2,4', 'embedding_dim=64,66'), {}, 'num_heads=4 does not divide embedding_dim=66'),
    (('model=transformer_mlm,mlp',), {}, "model='mlp' is unknown: use"),
    (('beta=1,2', 'beta=3,4'), {}, 'beta is varied twice: give all its values at once'),
    (('beta=1,2', 'lr=1,2 beta=3,4'), {}, 'beta is varied twice'),
    (('beta=1,2',), {'options': {'beta': 3.0}}, 'beta=3 clashes with the values 1,2 of the grid: leave one out'),
    (('beta=1,2',), {'options': {'lr': -1.0}}, 'lr=-1.0 is out of range'),
    (('beta=1,2',), {'options': {'num_layers': 'two'}}, "num_layers='two' is not a whole number: give one"),
    (('seed_model=1,2',), {'repetitions': 2}, 'seed_model is in the grid and varies with the repetition'),
    (('beta=1,2',), {'repetitions': 2, 'options': {'seed_rules': 5}}, 'seed_rules=5 would be replaced'),
    (('beta=1,2',), {'repetitions': 0}, 'repetitions=0 is out of range: use a whole number, 1 or more'),
    (('beta=1,2',), {'repetitions': 2, 'vary': ('rule',)}, 'vary=rule is unknown: use some of rules,sample,model'),
    (('beta=1,2',), {'repetitions': 2, 'vary': ()}, 'vary= names no seed'),
    (('beta=1,2',), {'repetitions': 2, 'seed': -1}, 'seed=-1 is out of range: use a whole number from 0 to 2^63 - 1'),
    (('beta=1,2',), {'folder': 'x' * 300}, 'has too long a name in it'),
    (('beta=1..2:1000', 'lr=1..2:1000'), {}, 'has 1000000 runs: make several sweeps of at most 100000'),
]


@pytest.mark.parametrize(('grid', 'kinds', 'said'), BAD_PLANS, ids=[str(i) for i in range(len(BAD_PLANS))])
def test_a_sweep_that_cannot_be_run_is_refused_in_one_sentence(
    grid: tuple[str, ...], kinds: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        make(*grid, **kinds)
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_seed_in_the_grid_may_go_with_repetitions_that_vary_the_others() -> None:
    plan = make('seed_model=1,2', repetitions=2, vary=('rules', 'sample'))
    assert [run.config.seed_model for run in plan.runs] == [1, 2, 1, 2]


# ---------------------------------------------------------------------- groups


def test_runs_of_one_shape_differ_only_in_what_changes_no_shape() -> None:
    plan = make('beta=1,2', 'num_features=16,32', 'lr=1e-3,1e-2', repetitions=3)
    lists = by_shape(plan.runs)
    assert [len(runs) for runs in lists] == [12, 12]
    assert sorted(run.name for runs in lists for run in runs) == sorted(run.name for run in plan.runs)
    for runs in lists:
        first = runs[0].config.to_dict()
        for run in runs:
            different = {name for name, value in run.config.to_dict().items() if value != first[name]}
            assert different <= OWN_OPTIONS


@pytest.mark.parametrize('option', ['momentum', 'weight_decay', 'grad_clip'])
def test_what_is_zero_in_a_run_is_not_trained_with_what_is_not(option: str) -> None:
    """It is left out of the step, which is one for the whole group."""
    plan = make(f'{option}=0,0.1,0.2', repetitions=2)
    assert [[run.point[option] for run in runs] for runs in by_shape(plan.runs)] == [[0, 0], [0.1, 0.2, 0.1, 0.2]]


def test_runs_of_different_lengths_are_not_trained_together() -> None:
    """Here 64 sequences are seen 100 times in 100 steps, and the runs on more end after 300."""
    options = {'regime': 'offline', 'batch_size': 64, 'max_epochs': 100, 'max_iters': 300}
    plan = make('train_size=64,256,1024', repetitions=2, options=options)
    assert [[run.point['train_size'] for run in runs] for runs in by_shape(plan.runs)] == [[64] * 2, [256, 1024] * 2]


def test_a_group_in_the_regime_population_has_one_language() -> None:
    """The rules of another one make another number of contexts possible."""
    options = {'regime': 'population', 'dataset': 'rhm', 'num_features': 6, 'num_layers': 2}
    plan = make('num_synonyms=2,3', 'lr=1e-3,1e-2', repetitions=2, options=options)
    assert [len(runs) for runs in by_shape(plan.runs)] == [2] * 4


@pytest.mark.parametrize('old', [{'group': 2, 'groups': [['beta1', 'beta2']]}, {'group': None}, {}])
def test_sweeps_of_earlier_versions_load_and_go_on(old: dict[str, Any], tmp_path: Path) -> None:
    """Their groups were kept in the file; they are ignored, since any group gives the same losses to rounding."""
    plan = make('beta=1,2', folder=tmp_path)
    save_plan(plan)
    path = tmp_path / 'sweep.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **old}))
    assert read_plan(tmp_path).runs == plan.runs
    assert len(read_plan(tmp_path).extended(make('beta=1,2,3', folder=tmp_path)).runs) == 3


# ---------------------------------------------------------------------- the file, and what may be added


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = make('lr=1e-4..1e-1:7log', 'depth=1,2 num_layers=2,1', folder=tmp_path, repetitions=2, seed=3)
    save_plan(plan)
    again = read_plan(tmp_path)
    assert again.runs == plan.runs
    assert json.loads((tmp_path / 'sweep.json').read_text())['axes'][1] == {'depth': [1, 2], 'num_layers': [2, 1]}


@settings(max_examples=25, deadline=None)
@given(
    betas=st.lists(st.floats(0, 1e9), min_size=1, max_size=4, unique=True),
    lrs=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=4, unique=True),
)
def test_any_numbers_come_back_from_the_file(
    betas: list[float], lrs: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp('plan')
    axes = (Axis(('beta',), tuple((x,) for x in betas)), Axis(('lr',), tuple((x,) for x in lrs)))
    plan = Plan(folder, axes, {})
    save_plan(plan)
    assert read_plan(folder).runs == plan.runs


def test_values_and_repetitions_can_be_added_and_the_runs_there_are_stay(tmp_path: Path) -> None:
    plan = make('beta=1,2', 'depth=1 embedding_dim=32', folder=tmp_path, repetitions=2)
    asked = make(
        'embedding_dim=64,32 depth=2,1', 'beta=3,2,1', folder=tmp_path, repetitions=3, execution={'device': 'cpu'}
    )
    whole = plan.extended(asked)
    assert whole.varied == ['beta', 'depth', 'embedding_dim'] and whole.repetitions == 3
    assert whole.axes[0].column('beta') == [1, 2, 3] and whole.axes[1].points == ((1, 32), (2, 64))
    assert {run.name for run in plan.runs} < {run.name for run in whole.runs}
    assert whole.runs[0].config.device == 'cpu'
    assert plan.extended(plan).to_dict() == plan.to_dict()


@pytest.mark.parametrize(
    ('grid', 'kinds', 'said'),
    [
        (('beta=1,3',), {'repetitions': 2}, 'beta=2 is in sweep/sweep.json and not asked for: add it'),
        (('beta=1,2', 'lr=1,2'), {'repetitions': 2}, 'grid=beta, lr differs from beta in sweep/sweep.json'),
        (('beta=1,2',), {'repetitions': 1}, 'repetitions=1 differs from 2'),
        (('beta=1,2',), {}, 'repetitions=None differs from 2'),
        (('beta=1,2',), {'repetitions': 2, 'seed': 1}, 'seed=1 differs from 0'),
        (('beta=1,2',), {'repetitions': 2, 'vary': ('model',)}, 'vary=model differs from rules,sample,model'),
        (('beta=1,2',), {'repetitions': 2, 'options': {'lr': 0.1}}, 'lr=0.1 differs from 0.001'),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(grid: tuple[str, ...], kinds: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        make('beta=1,2', repetitions=2).extended(make(*grid, **kinds))
    assert said in str(caught.value) and 'another outname' in str(caught.value)


def test_an_option_that_came_later_had_its_default(tmp_path: Path) -> None:
    plan = make('beta=1,2', folder=tmp_path)
    save_plan(plan)
    path = tmp_path / 'sweep.json'
    content = json.loads(path.read_text())
    del content['options']['grad_clip']
    path.write_text(json.dumps(content))
    assert read_plan(tmp_path).extended(plan).runs == plan.runs
    with pytest.raises(ValueError, match=r'grad_clip=1 differs from 0'):
        read_plan(tmp_path).extended(make('beta=1,2', folder=tmp_path, options={'grad_clip': 1.0}))


GOOD: dict[str, Any] = {'axes': [{'beta': [1, 2]}], 'options': {}, 'repetitions': None, 'vary': ['rules'], 'seed': 0}
NOT_PLANS = {
    'empty': '',
    'list': '[]',
    'no entries': '{}',
    'axes of a number': '{"axes": 3}',
    'axis of a list': '{"axes": [[1]], "options": {}, "vary": []}',
    'options null': json.dumps({**GOOD, 'options': None}),
    'options list': json.dumps({**GOOD, 'options': [3]}),
    'axes null': json.dumps({**GOOD, 'axes': None}),
    'axis null': json.dumps({**GOOD, 'axes': [None]}),
    'values null': json.dumps({**GOOD, 'axes': [{'beta': None}]}),
    'values of different lengths': json.dumps({**GOOD, 'axes': [{'beta': [1, 2], 'lr': [1]}]}),
    'no values': json.dumps({**GOOD, 'axes': [{}]}),
    'vary null': json.dumps({**GOOD, 'vary': None}),
    'nested deeply': '[' * 100_000 + ']' * 100_000,
    'a value nested as deep as can be read': json.dumps(GOOD).replace('{}', '{"lr": %s}' % ('[' * 900 + ']' * 900)),
    'not UTF-8': 'caf\xe9',
    'a number of many digits': json.dumps(GOOD).replace('"seed": 0', '"seed": ' + '9' * 5000),
}


@pytest.mark.parametrize('text', NOT_PLANS.values(), ids=NOT_PLANS)
def test_a_file_that_is_not_a_plan_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / 'sweep.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError) as caught:
        read_plan(tmp_path)
    message = str(caught.value)
    assert '\n' not in message and ('sweep.json' in message or 'lr=' in message) and ': ' in message


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        ({'axes': [{'bta': [1]}]}, "the unknown option 'bta': did you mean beta?"),
        ({'options': {'lr': 'fast'}}, "lr='fast' is not a number"),
        ({'axes': [{'beta': ['a', None]}]}, "beta='a' is not a number"),
        ({'repetitions': 1.5}, 'repetitions=1.5 is out of range'),
        ({'seed': 'one'}, "seed='one' is out of range"),
        ({'vary': [1]}, 'vary=1 is unknown'),
    ],
)
def test_a_wrong_value_in_the_file_is_named(wrong: dict[str, Any], said: str, tmp_path: Path) -> None:
    content = {**GOOD, 'repetitions': 2, **wrong}
    (tmp_path / 'sweep.json').write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read_plan(tmp_path)
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_plan_asks_for_a_folder(tmp_path: Path) -> None:
    request = Request(axes=(read_axis(['beta=1,2']),))
    with pytest.raises(ValueError, match='outname is missing: give the folder of the sweep'):
        make_plan(request, {})
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='is a file, but a sweep is a folder: use another name'):
        make_plan(dataclasses.replace(request, outname=str(tmp_path / 'file')), {})
    with pytest.raises(ValueError, match=r'has no file sweep\.json: give the folder of a sweep'):
        read_plan(tmp_path)
