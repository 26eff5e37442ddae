"""From the variables and the arguments of code.sh to one run or a sweep, and its name."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SMALL
from small_runs import TINY, tiny, train

from RLM_clean import main as run_module
from RLM_clean.command_line import from_arguments
from RLM_clean.config import Config
from RLM_clean.sweep import __main__ as sweep_module
from RLM_clean.sweep import script, threshold_command
from RLM_clean.sweep.arguments import make_sweep_parser, parse, read_request
from RLM_clean.sweep.names import run_name
from RLM_clean.sweep.plan import Plan, make_plan, repetition_seeds

# A python that prints what it is to run, a word a line.
ECHO = '#!/bin/sh\n[ "$1" = -c ] && exit 0\nprintf "%s\\n" "$@"\n'


@pytest.fixture(scope='module')
def defaults(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The variables of code.sh as it passes them on when none is set."""
    home = tmp_path_factory.mktemp('clone')
    for name in ('code.sh', 'environment.sh', 'requirements.txt'):
        shutil.copy(ROOT / name, home)
    (home / 'python').write_text(ECHO)
    (home / 'python').chmod(0o755)
    done = subprocess.run(
        ['bash', 'code.sh'], cwd=home, env={'PATH': os.environ['PATH'], 'PYTHON': './python'},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[:2] == ['-m', 'RLM_clean.sweep.script'] and words[-1] == '--'
    return words[2:-1]


class Asked:
    """What code.sh starts with some variables and arguments: notes the command line of the run or of the sweep."""

    def __init__(self, defaults: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.defaults = dict(word.split('=', 1) for word in defaults)
        self.run: list[str] | None = None
        self.sweep: list[str] | None = None
        monkeypatch.setattr(run_module, 'main', self.start_run)
        monkeypatch.setattr(sweep_module, 'main', self.start_sweep)

    def start_run(self, words: list[str]) -> int:
        """Takes the place of main.py."""
        self.run = words
        return 7

    def start_sweep(self, words: list[str]) -> int:
        """Takes the place of the command of a sweep."""
        self.sweep = words
        return 8

    def __call__(self, *arguments: str, **variables: object) -> int:
        self.run = self.sweep = None
        values = {**self.defaults, **{name: str(value) for name, value in variables.items()}}
        assert values.keys() == self.defaults.keys()
        return script.main([*(f'{name}={value}' for name, value in values.items()), '--', *arguments])

    def config(self, *arguments: str, **variables: object) -> Config:
        """The options of the run that is started."""
        assert self(*arguments, **variables) == 7 and self.run is not None
        return from_arguments(self.run)

    def plan(self, *arguments: str, **variables: object) -> tuple[Plan, dict[str, Any]]:
        """The sweep that is started, and what else its command line says."""
        assert self(*arguments, **variables) == 8 and self.sweep is not None
        args, given = parse(make_sweep_parser(), self.sweep)
        request, execution = read_request(args, given)
        return make_plan(request, execution), vars(args)


@pytest.fixture
def asked(defaults: list[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(defaults, monkeypatch)


# ---------------------------------------------------------------------- one run


def test_the_variables_have_the_defaults_of_the_options(asked: Asked) -> None:
    assert asked.config() == Config(outname='results/rlm_128L1_b2_ts32768_1')


def test_every_option_is_a_variable(asked: Asked) -> None:
    assert set(Config(outname='run').to_dict()) <= asked.defaults.keys()


def test_every_variable_reaches_the_run(asked: Asked) -> None:
    options = {
        'dataset': 'rhm', 'num_features': 16, 'num_layers': 3, 'num_synonyms': 4, 'regime': 'offline',
        'zipf': 0.75, 'zipf_levels': '0,1', 'train_size': 256, 'max_epochs': 3, 'batch_size': 32, 'accumulation': 2,
        'test_size': 100,
        'input_format': 'onehot', 'whitening': 1, 'model': 'transformer_bert', 'depth': 2, 'embedding_dim': 12,
        'num_heads': 3, 'ffwd_size': 2, 'dropout': 0.25, 'objective': 'denoise', 'optim': 'adam', 'lr': 0.01,
        'momentum': 0.5, 'weight_decay': 0.1, 'grad_clip': 1.5, 'scheduler': 'cosine', 'warmup_time': 3,
        'decay_time': 50, 'max_iters': 77, 'loss_threshold': 0.5, 'seed_rules': 1, 'seed_sample': 2, 'seed_model': 3,
        'print_freq': 9, 'save_freq': 3, 'resume': 'restart', 'device': 'cpu', 'threads': 1, 'dtype': 'bfloat16',
        'beta': 0.5, 'compile': 'off', 'sigma': 0.25, 'filtered': 2, 'num_classes': 5, 'noise': 0.125,
        'positions': 'rope', 'parametrisation': 'mup', 'tracker': 'trackio',
    }  # fmt: skip
    switches = {'checkpoints': 0, 'tie_weights': 1, 'deterministic': 'yes', 'tensorboard': 'no', 'bp_records': 1}
    changes = 'b0.5_zipf0.75_at0,1_s0.25_k2_nc5_offline_denoise_noise0.125_bert_posrope_mup_depth2_d12_heads3_ff2'
    changes += '_tied_drop0.2_cce82ee0'  # the end is a hash of the whole
    outname = f'out/rhm_16L3_m4_ts256_{changes}_7'
    on = dict.fromkeys(('tie_weights', 'deterministic', 'bp_records'), True)
    expected = Config(outname=outname, **options, checkpoints=False, **on)  # type: ignore[arg-type]
    variables = {**options, **switches, 'rep': 7, 'results_dir': 'out'}
    assert asked.config(**variables) == expected
    assert asked.config(*(f'--{name}={value}' for name, value in variables.items())) == expected
    # mask_rate has no use beside noise.
    masked = asked.config(objective='masked', model='transformer_bert', mask_rate=0.25)
    name = 'results/rlm_128L1_b2_ts32768_masked_hidden0.25_bert_1'
    assert masked == Config(outname=name, objective='masked', model='transformer_bert', mask_rate=0.25)
    assert options.keys() | switches.keys() | {'outname', 'num_tokens', 'mask_rate'} == expected.to_dict().keys()


def test_num_tokens_follows_num_layers_unless_it_is_given(asked: Asked) -> None:
    assert asked.config(num_layers=3).num_tokens == 8
    assert asked.config(num_layers=3, num_tokens=5).num_tokens == 5


def test_an_empty_scheduler_is_a_constant_rate(asked: Asked) -> None:
    assert asked.config(scheduler='').scheduler == 'none'


@pytest.mark.parametrize(
    ('variables', 'outname'),
    [
        ({}, 'results/rlm_128L1_b2_ts32768_1'),
        ({'beta': '2.0'}, 'results/rlm_128L1_b2_ts32768_1'),
        ({'beta': '0.50'}, 'results/rlm_128L1_b0.5_ts32768_1'),
        ({'beta': '1e-3'}, 'results/rlm_128L1_b0.001_ts32768_1'),
        ({'max_iters': 5, 'threads': 2, 'compile': 'off'}, 'results/rlm_128L1_b2_ts32768_1'),
        ({'num_layers': 3, 'num_tokens': 8}, 'results/rlm_128L3_b2_ts32768_1'),
        ({'num_layers': 3, 'num_tokens': 4}, 'results/rlm_128L3_b2_ts32768_n4_1'),
        ({'seed_rules': 7, 'checkpoints': 0}, 'results/rlm_128L1_b2_ts32768_nockpt_sr7_1'),
        ({'depth': 3, 'optim': 'adam', 'lr': '2e-3'}, 'results/rlm_128L1_b2_ts32768_depth3_adam_lr0.002_1'),
        ({'dataset': 'rhm', 'beta': 3}, 'results/rhm_128L1_m8_ts32768_b3_1'),
        (
            {'dataset': 'rhm', 'num_layers': 3, 'zipf': 1, 'zipf_levels': '0,2'},
            'results/rhm_128L3_m8_ts32768_zipf1_at0,2_1',
        ),
        ({'beta': 1.5, 'rep': 2}, 'results/rlm_128L1_b1.5_ts32768_2'),
        ({'num_features': 32, 'num_layers': 4, 'train_size': 1024}, 'results/rlm_32L4_b2_ts1024_1'),
        ({'dataset': 'rhm', 'num_features': 16, 'num_layers': 2}, 'results/rhm_16L2_m8_ts32768_1'),
        ({'results_dir': 'out/deep'}, 'out/deep/rlm_128L1_b2_ts32768_1'),
        ({'results_dir': 'my results'}, 'my results/rlm_128L1_b2_ts32768_1'),
        ({'outname': 'mine/run 1'}, 'mine/run 1'),
        ({'objective': 'root', 'num_classes': 4, 'model': 'gru'}, 'results/rlm_128L1_b2_ts32768_nc4_root_gru_1'),
        ({'objective': 'masked', 'model': 'fcn'}, 'results/rlm_128L1_b2_ts32768_masked_fcn_1'),
        (
            {'objective': 'denoise', 'model': 'transformer_bert', 'noise': 0.5, 'positions': 'none'},
            'results/rlm_128L1_b2_ts32768_denoise_noise0.5_bert_posnone_1',
        ),
        ({'dataset': 'unambiguous', 'sigma': 0.5, 'filtered': 0}, 'results/unambiguous_128L1_s0.5_ts32768_k0_1'),
        ({'parametrisation': 'mup', 'model': 'transformer_clm'}, 'results/rlm_128L1_b2_ts32768_clm_mup_1'),
    ],
)
def test_the_name_of_the_files_says_what_the_run_is(variables: dict[str, object], outname: str, asked: Asked) -> None:
    assert asked.config(**variables).outname == outname


def test_different_commands_never_meet_in_one_file(asked: Asked) -> None:
    """Each option on its own, and in pairs; what changes only length, place or speed of a run is left out."""
    changes: list[dict[str, Any]] = [
        {}, {'dataset': 'rhm'}, {'num_features': 64}, {'num_layers': 2}, {'beta': 3}, {'beta': 0.3},
        {'regime': 'offline'}, {'train_size': 99}, {'batch_size': 32}, {'accumulation': 2}, {'test_size': 9},
        {'input_format': 'onehot'}, {'input_format': 'onehot', 'whitening': 1}, {'model': 'fcn'},
        {'model': 'transformer_clm'}, {'depth': 2}, {'embedding_dim': 2}, {'embedding_dim': 32}, {'num_heads': 2},
        {'ffwd_size': 2}, {'dropout': 0.1}, {'tie_weights': True}, {'optim': 'adam'}, {'lr': 2}, {'lr': 0.2},
        {'momentum': 0}, {'weight_decay': 0.1}, {'grad_clip': 1}, {'scheduler': 'none'}, {'scheduler': 'cosine'},
        {'warmup_time': 2}, {'decay_time': 2}, {'loss_threshold': 0}, {'seed_rules': 2}, {'seed_sample': 2},
        {'seed_model': 2}, {'print_freq': 2}, {'save_freq': 3}, {'checkpoints': False}, {'dtype': 'bfloat16'},
        {'deterministic': True}, {'rep': 2}, {'num_layers': 2, 'num_tokens': 2}, {'num_layers': 2, 'num_tokens': 3},
        {'dataset': 'unambiguous'}, {'sigma': 0.5}, {'filtered': 0}, {'filtered': 1}, {'num_classes': 1},
        {'num_classes': 2}, {'model': 'cnn'}, {'model': 'lcn'}, {'model': 'gru'}, {'model': 'transformer_bert'},
        {'objective': 'root'}, {'objective': 'masked', 'model': 'fcn'}, {'objective': 'denoise', 'model': 'fcn'},
        {'objective': 'masked', 'model': 'fcn', 'mask_rate': 0.5}, {'positions': 'rope'}, {'positions': 'none'},
        {'objective': 'denoise', 'model': 'fcn', 'noise': 0.5}, {'parametrisation': 'mup'}, {'ffwd_size': 0},
        {'objective': 'all', 'model': 'gru'}, {'bp_records': True},
    ]  # fmt: skip
    names: dict[str, dict[str, Any]] = {}
    for first, second in itertools.combinations_with_replacement(changes, 2):
        options = {'rep': 1, **first, **second}
        rep = str(options.pop('rep'))
        with contextlib.suppress(ValueError):  # options that cannot be combined
            config = Config(outname='run', **options)
            name = run_name(config, rep)
            assert names.setdefault(name, {**config.to_dict(), 'rep': rep}) == {**config.to_dict(), 'rep': rep}
            if first is second:
                given = {key: int(value) if isinstance(value, bool) else value for key, value in first.items()}
                assert asked.config(**given) == replace(config, outname=f'results/{name}')
    assert len(names) > 1500


def test_a_run_of_the_first_version_is_found_under_its_name(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = tiny('results/rlm_8L2_b2_ts32768_1')
    train(old)
    variables = {name: getattr(old, name) for name in TINY}
    assert asked.config(**variables).outname == old.outname
    assert asked.config(**{**variables, 'max_iters': 99}).outname == old.outname  # it can be made longer
    other = asked.config(**{**variables, 'seed_rules': 5}).outname
    assert other != old.outname and other.startswith('results/rlm_8L2_b2_ts32768_')


@pytest.mark.parametrize(
    ('variables', 'message'),
    [
        ({'rep': '1 2'}, 'rep=1 2 is not valid: use a number; for several runs with other seeds use repetitions=2'),
        ({'rep': 'a/b'}, 'rep=a/b is not valid'),
        (
            {'beta': '1..3'},
            'argument --beta: \'1..3\' is not a number: several values are a sweep, in code.sh as "1 2 3"',
        ),
        ({'beta': '1,2,3'}, "'1,2,3' is not a number: several values are a sweep"),
        ({'depth': '1,2'}, "'1,2' is not a whole number: several values are a sweep"),
        ({'lr': 'fast'}, "'fast' is not a number: give one"),
    ],
)
def test_a_bad_value_is_answered_with_how_to_write_it(
    variables: dict[str, object], message: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert asked(**variables) == 2
    except SystemExit as stop:
        assert stop.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and error.startswith('code.sh: error: ')


def test_random_seeds_are_drawn_and_printed(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """Two draws of 32 bits agree by chance once in 4e9; there are 6 pairs of draws here."""
    drawn = []
    for _ in range(2):
        config = asked.config(seed_rules='random', seed_model='random')
        assert capsys.readouterr().out == f'seed_rules={config.seed_rules}\nseed_model={config.seed_model}\n'
        assert config.seed_sample == 67890
        drawn += [config.seed_rules, config.seed_model]
    assert len(set(drawn)) == 4


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    'arguments', [['--beta', '1.5'], ['--beta=1.5'], ['beta=1.5'], ['--depth', '2', '--beta', '1.5', 'lr=0.1']], ids=str
)
def test_arguments_win_over_variables(arguments: list[str], asked: Asked) -> None:
    config = asked.config(*arguments, beta=3)
    assert config.beta == 1.5 and config.outname.startswith('results/rlm_128L1_b1.5_ts32768_')


def test_switches_may_be_given_without_a_value(asked: Asked) -> None:
    config = asked.config('--tie_weights', '--no-checkpoints', '--deterministic', 'yes')
    assert (config.tie_weights, config.checkpoints, config.deterministic) == (True, False, True)


def test_an_argument_may_have_several_values(asked: Asked) -> None:
    plan, _ = asked.plan('--beta', '1', '2', '--lr=0.1 0.2', '--repetitions', '3')
    assert plan.varied == ['beta', 'lr'] and plan.repetitions == 3


BAD_ARGUMENTS = [
    (['--bta', '1'], "'--bta' is not an option: did you mean beta?"),
    (['bta=1'], "'bta=1' is not an option: did you mean beta?"),
    (['--max-iters=5'], "'--max-iters=5' is not an option: did you mean max_iters?"),
    (['1.5'], "'1.5' is not an option: see --help"),
    (['beta'], "'beta' is not an option: did you mean beta?"),
    (['--beta'], '--beta has no value: give one, as in --beta 2'),
    (['--beta', '--depth=2'], '--beta has no value: give one'),
    (['--beta=1', '--beta=2'], 'beta is given twice: give it once'),
    (['--no-beta'], "'--no-beta' is not an option"),
    (['--tie_weights=maybe'], 'tie_weights=maybe is not valid: use 1 or 0'),
    (['--dry_run=maybe'], 'dry_run=maybe is not valid: use 1 or 0'),
]


@pytest.mark.parametrize(('arguments', 'said'), BAD_ARGUMENTS, ids=[' '.join(words) for words, _ in BAD_ARGUMENTS])
def test_a_bad_argument_is_refused_in_one_line(
    arguments: list[str], said: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('code.sh: error: ') and said in err and err.count('\n') == 1
    assert asked.run is None and asked.sweep is None


def test_names_of_arguments_are_checked_without_torch(defaults: list[str]) -> None:
    code = (
        'import sys\nfrom RLM_clean.sweep import script\n'
        'status = script.main(sys.argv[1:])\nsys.exit(status or "torch" in sys.modules)'
    )
    for argument, status in (('--beta=1.5', 0), ('--bta=1.5', 2)):
        done = subprocess.run([sys.executable, '-c', code, '--check', *defaults, '--', argument], cwd=ROOT, timeout=60)
        assert done.returncode == status


# ---------------------------------------------------------------------- sweeps


def test_several_values_and_repetitions_make_a_sweep(asked: Asked) -> None:
    plan, _ = asked.plan(beta='0.8 1.2 1.8 2.4', num_features='32 64', repetitions=8, max_iters=25000)
    assert plan.folder == Path('results/rlm_L1_ts32768_it25000_1_over_num_features_beta')
    assert [(axis.names, axis.points) for axis in plan.axes] == [
        (('num_features',), ((32,), (64,))),
        (('beta',), ((0.8,), (1.2,), (1.8,), (2.4,))),
    ]
    assert plan.repetitions == 8 and len(plan.runs) == 64
    assert plan.runs[0].config == Config(
        outname='results/rlm_L1_ts32768_it25000_1_over_num_features_beta/num_features32_beta0.8_r1',
        beta=0.8, num_features=32, max_iters=25000, threads='1', **repetition_seeds(0, 1),  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_sweep_takes_ranges_switches_depths_and_seeds(asked: Asked) -> None:
    values = {'lr': '1e-3..1e-1:3log', 'tie_weights': '0 1', 'num_layers': ' 1\t2', 'beta': '1'}
    plan, said = asked.plan(**values, repetitions=2, vary='model', seed=3, workers=2, dry_run=1)
    assert [(axis.names[0], axis.column(axis.names[0])) for axis in plan.axes] == [
        ('num_layers', [1, 2]), ('lr', [1e-3, 1e-2, 1e-1]), ('tie_weights', [False, True]),
    ]  # fmt: skip
    assert {run.config.num_tokens for run in plan.runs} == {2, 4}
    assert (plan.vary, plan.seed, said['workers'], said['dry_run']) == (('model',), 3, 2, True)
    assert {run.config.seed_rules for run in plan.runs} == {12345}


@pytest.mark.parametrize(
    ('variables', 'folder'),
    [
        ({'repetitions': 3}, 'results/rlm_128L1_b2_ts32768_1_over_seeds'),
        ({'beta': '1 2'}, 'results/rlm_128L1_ts32768_1_over_beta'),
        ({'beta': '0..4:9', 'depth': '1 2'}, 'results/rlm_128L1_ts32768_1_over_beta_depth'),
        ({'num_layers': '1 2', 'rep': 2}, 'results/rlm_128_b2_ts32768_2_over_num_layers'),
        ({'num_layers': '1 2', 'num_features': '8 16'}, 'results/rlm_b2_ts32768_1_over_num_features_num_layers'),
        ({'dataset': 'rlm rhm'}, 'results/languages_128L1_b2_ts32768_1_over_dataset'),
        ({'dataset': 'rhm', 'num_synonyms': '2 4'}, 'results/rhm_128L1_ts32768_1_over_num_synonyms'),
        ({'train_size': '64 128', 'regime': 'offline'}, 'results/rlm_128L1_b2_offline_1_over_train_size'),
        ({'beta': '1 2', 'lr': '1e-2', 'max_iters': 90}, 'results/rlm_128L1_ts32768_lr0.01_it90_1_over_beta'),
        ({'num_tokens': '2 4', 'beta': '1 2', 'num_layers': 2}, 'results/rlm_128L2_ts32768_1_over_beta_num_tokens'),
        ({'tie_weights': '0 1', 'lr': '1 2'}, 'results/rlm_128L1_b2_ts32768_1_over_lr_tie_weights'),
        ({'depth': '1 2', 'outname': 'mine/sweep'}, 'mine/sweep'),
        (
            {'objective': 'masked', 'model': 'fcn', 'mask_rate': '0.25 0.5'},
            'results/rlm_128L1_b2_ts32768_masked_fcn_1_over_mask_rate',
        ),
        (
            {'objective': 'denoise', 'model': 'fcn', 'noise': '0.1..0.9:3'},
            'results/rlm_128L1_b2_ts32768_denoise_fcn_1_over_noise',
        ),
        ({'objective': 'root', 'num_classes': '2 4'}, 'results/rlm_128L1_b2_ts32768_root_1_over_num_classes'),
        ({'objective': 'last root', 'num_layers': 2}, 'results/rlm_128L2_b2_ts32768_1_over_objective'),
        ({'dataset': 'unambiguous', 'sigma': '0 1'}, 'results/unambiguous_128L1_ts32768_1_over_sigma'),
    ],
)
def test_the_folder_of_a_sweep_says_what_its_runs_share_and_what_varies(
    variables: dict[str, object], folder: str, asked: Asked
) -> None:
    assert asked.plan(**variables)[0].folder == Path(folder)


def test_seeds_of_repetitions_are_never_left_out(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """A search repeats by default; a sweep and a run without repetitions have no use for them."""
    for variables in ({'seed': 5}, {'beta': '1 2', 'vary': 'model'}):
        assert asked(**variables) == 2 and asked.run is None and asked.sweep is None
        name = next(name for name in variables if name != 'beta')
        assert f'{name}={variables[name]} is for repetitions: give repetitions=R too' in capsys.readouterr().err
    language = {'dataset': 'rhm', 'num_synonyms': 2, 'num_features': 4, 'num_layers': 2}
    assert asked(**language, threshold=2, seed=5, vary='rules') == 8 and asked.sweep is not None
    _, search = threshold_command.read_words(asked.sweep[1:])
    assert (search.seed, search.vary) == (5, ('rules',))


def test_a_whole_number_may_be_written_with_an_exponent(asked: Asked) -> None:
    assert asked.config(max_iters='1e4').max_iters == 10**4
    plan, _ = asked.plan(max_iters='1e3 2e3')
    assert plan.axes[0].column('max_iters') == [1000, 2000]


def test_options_without_use_are_named_where_they_were_changed(asked: Asked) -> None:
    plan, _ = asked.plan(beta='1 2')
    assert sweep_module.without_use(plan) == []  # code.sh names every option
    plan, _ = asked.plan(beta='1 2', num_synonyms=3, dataset='rhm')
    assert sweep_module.without_use(plan) == ['beta has no use in these runs: it is for dataset=rlm']


def test_what_is_for_slurm_is_refused_for_one_run(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked('--minutes', '7') == 2 and asked.run is None
    assert 'minutes=7 is for sweeps, and this is one run' in capsys.readouterr().err
    assert asked(minutes=7) == 7  # a variable of the shell, which may be there for other reasons


def test_values_of_levels_with_a_comma_are_not_taken_apart(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(dataset='rhm', num_layers=3, zipf=1, zipf_levels='0,2 all') == 2
    assert "zipf_levels='0,2 all' has a value with a comma, which would be read as two" in capsys.readouterr().err
    assert asked.config(dataset='rhm', num_layers=3, zipf=1, zipf_levels='0,2').zipf_levels == '0,2'
    plan, _ = asked.plan(dataset='rhm', num_layers=3, zipf=1, zipf_levels='leaves all')
    assert plan.axes[0].column('zipf_levels') == ['leaves', 'all']


def test_what_a_sweep_asks_of_slurm_is_passed_on(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = asked.plan(beta='1 2', launcher='slurm', partition='gpu', gpus=1, minutes=30)
    assert (said['launcher'], said['partition'], said['gpus'], said['minutes']) == ('slurm', 'gpu', 1, 30)
    assert said['memory'] is None
    # The environment may have such names for other reasons; an argument is meant.
    _, said = asked.plan(beta='1 2', memory='a lot')
    assert said['memory'] is None
    _, said = asked.plan('--gpus=2', beta='1 2')
    assert said['gpus'] == 2


# ---------------------------------------------------------------------- dry runs


def test_a_dry_run_of_one_run_says_what_would_run_and_writes_nothing(
    defaults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real main.py behind it, which must not be reached."""
    monkeypatch.chdir(tmp_path)
    small = [f'{name}={value}' for name, value in SMALL.items()]
    assert script.main([*defaults, '--', *small, 'dry_run=1', 'beta=2.0']) == 0
    assert capsys.readouterr().out.splitlines() == [
        'options: num_features=8 test_size=32 embedding_dim=8 max_iters=4, all others at their defaults',
        'results/rlm_8L1_b2_ts32768_d8_test32_1  to train',
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_of_a_run_that_has_been_trained_what_the_command_would_do(
    defaults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def dry_run(max_iters: int) -> int:
        small = [f'{name}={value}' for name, value in {**SMALL, 'max_iters': max_iters}.items()]
        return script.main([*defaults, '--', *small, '--dry_run'])

    name = 'results/rlm_8L1_b2_ts32768_d8_test32_1'
    train(Config(outname=name, **SMALL))
    before = sorted((path, path.stat().st_mtime_ns) for path in Path('results').iterdir())
    for steps, said in ((4, 'there already'), (9, 'to go on from step 4 to 9')):
        assert dry_run(steps) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f'{name}  {said}'
    assert dry_run(3) == 2
    assert 'max_iters=3 differs from 4' in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in Path('results').iterdir()) == before


@pytest.mark.parametrize(
    ('variables', 'said'),
    [
        ({'lr': 'fast'}, "'fast' is not a number: give one"),
        ({'lr': -1}, 'lr=-1.0 is out of range'),
        ({'device': 'cuda:99'}, "device='cuda:99' is not on this machine: use auto or cpu"),
        ({'checkpoints': 'maybe'}, 'checkpoints=maybe is not valid: use 1 or 0'),
        ({'beta': '1 -2'}, 'beta=-2.0 is out of range'),
        ({'beta': '1 2', 'repetitions': 0}, '0 is out of range'),
        ({'device': 'cpu cuda'}, 'device cannot vary within a sweep'),
        ({'launcher': 'slurm'}, 'launcher=slurm is for sweeps, and this is one run'),
    ],
)
def test_a_dry_run_refuses_what_cannot_run(
    variables: dict[str, object], said: str, defaults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [f'{name}={value}' for name, value in {**variables, 'dry_run': 1}.items()]
    try:
        status = script.main([*defaults, '--', *words])
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, '') and said in err and err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- searches for thresholds


def test_a_level_asks_for_a_search_for_its_threshold(asked: Asked) -> None:
    """The size, the regime and the number of passes are the search's own, unless they were changed."""
    language = {'dataset': 'rhm', 'num_synonyms': 2, 'num_layers': 2, 'num_features': '4 8', 'max_iters': 50}
    assert asked(**language, threshold=2, repetitions=3) == 8 and asked.sweep is not None
    assert asked.sweep[0] == 'threshold'
    args, search = threshold_command.read_words(asked.sweep[1:])
    assert args.level == search.criterion.level == 2 and search.seeds == 3
    assert search.points == [{'num_features': 4}, {'num_features': 8}]
    assert search.options['max_epochs'] > 10**6 and search.options['regime'] == 'offline'
    assert search.options['checkpoints'] is False  # as without the script: the criterion needs none
    assert str(search.folder) == 'results/threshold_rhm_L2_m2_it50_1_over_num_features_train_size'
    assert asked(**language, threshold=2, max_epochs=20, outname='here') == 8 and asked.sweep is not None
    search = threshold_command.read_words(asked.sweep[1:])[1]
    assert search.options['max_epochs'] == 20 and search.seeds == 4 and str(search.folder) == 'here'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train_size': 64}, 'train_size is what is sought'),
        ({'train_size': '64 128'}, 'train_size is what is sought'),
        ({'regime': 'population'}, 'regime is offline in a search'),
        ({'launcher': 'slurm'}, 'launcher=slurm is not for thresholds'),
        ({'num_layers': 1}, 'level=2 is not in a tree of 2 tokens'),
    ],
)
def test_what_a_search_decides_is_refused(asked: Asked, changes: dict[str, object], message: str) -> None:
    assert asked(**{'num_layers': 2, **changes}, threshold=2) == 8 and asked.sweep is not None
    with pytest.raises(ValueError, match=message):
        threshold_command.read_words(asked.sweep[1:])


@pytest.mark.parametrize('level', ['0', 'two', '1.5', '-1'])
def test_a_threshold_that_is_no_level_is_refused(asked: Asked, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(threshold=level) == 2 and asked.sweep is None
    assert f'threshold={level} is not a level: use 1' in capsys.readouterr().err
