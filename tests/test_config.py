"""The options: their defaults, their command line, what they promise together."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from RLM_clean.command_line import from_arguments, make_parser
from RLM_clean.config import EXECUTION, LENGTH, Config, format_value
from RLM_clean.datasets import RHM, RLM

DEFAULTS: dict[str, Any] = {
    'num_features': 128,
    'num_layers': 1,
    'num_tokens': 2,
    'beta': 2.0,
    'batch_size': 64,
    'accumulation': 1,
    'test_size': 4096,
    'model': 'transformer_mlm',
    'depth': 1,
    'embedding_dim': 64,
    'num_heads': 1,
    'ffwd_size': 4,
    'dropout': 0.0,
    'checkpoints': True,
    'regime': 'online',
    'objective': 'last',
    'optim': 'sgd',
    'lr': 1e-3,
    'momentum': 0.9,
    'scheduler': 'cosine-warmup',
    'warmup_time': 8,
    'decay_time': 262144,
    'max_iters': 30000,
    'print_freq': 1024,
    'save_freq': 2,
    'loss_threshold': 1e-3,
    'input_format': 'long',
    'whitening': 0,
    'device': 'auto',
    'train_size': 2**15,
    'weight_decay': 0.0,
    'grad_clip': 0.0,
    'dtype': 'float32',
    'deterministic': False,
    'tracker': 'none',
    'tensorboard': False,
    'resume': 'auto',
}


def parse(*words: str) -> Config:
    return from_arguments(['--outname', 'results/run', *words])


def test_the_defaults_are_those_of_the_default_run():
    config = parse().to_dict()
    assert {name: config[name] for name in DEFAULTS} == DEFAULTS
    assert all(type(config[name]) is type(value) for name, value in DEFAULTS.items())


def test_a_command_line_without_options_is_a_config_without_options():
    assert parse() == Config(outname='results/run')


def test_seeds_are_three_fixed_numbers():
    config = parse()
    seeds = (config.seed_rules, config.seed_sample, config.seed_model)
    assert len(set(seeds)) == 3 and seeds == (12345, 67890, 11111)


def test_both_forms_of_an_option_are_read():
    assert parse('--lr=0.5', '--num_layers', '3') == parse('--lr', '0.5', '--num_layers=3')
    assert parse('--lr=0.5').lr == 0.5


def test_the_last_of_two_values_counts():
    assert parse('--lr=1', '--lr=2').lr == 2


def test_negative_values_reach_their_check(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse('--lr', '-0.5')
    assert 'lr=-0.5 is out of range' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['checkpoints', 'tie_weights', 'deterministic'])
def test_a_switch_has_two_forms(name: str):
    assert getattr(parse(f'--{name}'), name) is True
    assert getattr(parse(f'--no-{name}'), name) is False


def test_abbreviations_are_not_taken(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse('--num_feat=8')
    assert stop.value.code == 2 and 'did you mean --num_features?' in capsys.readouterr().err


def test_num_tokens_is_all_of_the_leaves_unless_it_is_given():
    assert Config(outname='run', num_layers=4).num_tokens == 16
    config = parse('--num_layers=4', '--num_tokens=5')
    assert config.num_tokens == 5 and config.context_size == 4


@pytest.mark.parametrize('word', ['', 'none'])
def test_the_scheduler_can_be_left_out(word: str):
    assert parse(f'--scheduler={word}').scheduler == 'none'
    assert Config(outname='run', scheduler=word) == Config(outname='run', scheduler='none')


def test_help_names_every_option_with_its_default_and_its_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv('COLUMNS', '1000')
    with pytest.raises(SystemExit) as stop:
        from_arguments(['--help'])
    assert stop.value.code == 0
    text = ' '.join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        help = ' '.join(field.metadata['help'].split())
        assert f'--{field.name} ' in text
        if isinstance(field.default, bool) or field.default in (None, ''):
            assert help in text
            continue
        choices = field.metadata['choices']
        listed = f' [{", ".join(str(choice) for choice in choices)}]' if choices else ''
        assert f'{help}{listed} (default: {field.default})' in text


def test_every_option_has_a_help_and_a_group():
    for field in dataclasses.fields(Config):
        assert field.metadata['help'] and field.metadata['group']


def test_every_number_has_a_range():
    """But num_tokens, which is checked against num_layers."""
    for field in dataclasses.fields(Config):
        if field.type in ('int', 'float'):
            assert field.metadata['check'] or field.metadata['choices'], field.name


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('num_features', '8'), ('num_features', 8.0), ('num_features', True), ('lr', '0.1'), ('lr', None),
        ('checkpoints', 1), ('model', None), ('num_tokens', 1.5), ('outname', None), ('num_layers', None),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_are_refused_by_name(name: str, value: Any):
    with pytest.raises(ValueError, match=f'{name}={value!r} is not .*: give one'):
        Config(**{'outname': 'run', name: value})


def test_a_whole_number_is_a_good_real_one():
    assert Config(outname='run', beta=2, lr=1).beta == 2


def test_num_heads_of_fcn_is_no_concern():
    assert Config(outname='run', model='fcn', embedding_dim=10, num_heads=3).model == 'fcn'


@settings(max_examples=60, deadline=None)
@given(
    num_layers=st.integers(1, 6),
    beta=st.floats(0, 1e9),
    lr=st.floats(1e-12, 1e12),
    dropout=st.floats(0, 1, exclude_max=True),
    seed_rules=st.integers(0, 2**32 - 1),
    max_iters=st.integers(1, 10**6),
    scheduler=st.sampled_from(['none', 'cosine', 'cosine-warmup']),
    checkpoints=st.booleans(),
)
def test_a_command_line_gives_back_the_values_that_were_written_on_it(**options: Any):
    words = [f'--{name}={value}' for name, value in options.items() if name != 'checkpoints']
    words.append('--checkpoints' if options['checkpoints'] else '--no-checkpoints')
    assert parse(*words) == Config(outname='results/run', **options)


def test_a_config_of_a_file_is_the_config_that_was_written():
    config = parse('--num_layers=3', '--lr=0.3', '--model=transformer_clm', '--objective=all')
    assert Config(**config.to_dict()) == config


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().lr = -1  # type: ignore[misc]


# ---------------------------------------------------------------------- the last step


def test_an_online_run_ends_at_max_iters():
    assert parse('--max_iters=7', '--max_epochs=1').last_step == 7


@pytest.mark.parametrize(
    ('train_size', 'batch_size', 'accumulation', 'max_epochs', 'max_iters', 'last'),
    [
        (128, 32, 1, 2, 1000, 8),
        (128, 32, 2, 2, 1000, 4),
        (100, 32, 1, 1, 1000, 4),  # the last batch of the last epoch reaches beyond it
        (100, 32, 1, 3, 1000, 10),
        (64, 64, 1, 5, 1000, 5),
        (128, 32, 1, 2, 5, 5),
    ],
)
def test_an_offline_run_ends_after_its_epochs_or_at_max_iters(
    train_size: int, batch_size: int, accumulation: int, max_epochs: int, max_iters: int, last: int
):
    config = Config(
        outname='run',
        regime='offline',
        train_size=train_size,
        batch_size=batch_size,
        accumulation=accumulation,
        max_epochs=max_epochs,
        max_iters=max_iters,
    )
    assert config.last_step == last


# ---------------------------------------------------------------------- differences that matter to a resumed run

OTHER: dict[str, Any] = {
    'outname': 'elsewhere', 'dataset': 'rhm', 'num_features': 64, 'num_layers': 2, 'num_tokens': 2, 'beta': 1.0,
    'num_synonyms': 4, 'seed_rules': 1, 'seed_sample': 1, 'seed_model': 1, 'regime': 'offline', 'train_size': 1024,
    'max_epochs': 3, 'batch_size': 32, 'accumulation': 2, 'test_size': 64, 'input_format': 'onehot', 'whitening': 1,
    'model': 'transformer_clm', 'depth': 2, 'embedding_dim': 32, 'num_heads': 2, 'ffwd_size': 2, 'dropout': 0.1,
    'tie_weights': True, 'objective': 'all', 'optim': 'adam', 'lr': 0.1, 'momentum': 0.5, 'weight_decay': 0.1,
    'grad_clip': 1.0, 'scheduler': 'cosine', 'warmup_time': 9, 'decay_time': 10, 'max_iters': 10,
    'loss_threshold': 0.0, 'dtype': 'bfloat16', 'print_freq': 10, 'save_freq': 1, 'checkpoints': False,
    'num_classes': 2, 'zipf': 1.0, 'zipf_levels': 'all', 'sigma': 0.5, 'filtered': 1, 'positions': 'none',
    'parametrisation': 'mup', 'mask_rate': 0.5, 'noise': 0.5, 'bp_records': True,
    'resume': 'require', 'tracker': 'wandb', 'tensorboard': True, 'device': 'cpu', 'threads': 2, 'compile': 'off',
    'deterministic': True,
}  # fmt: skip


@pytest.mark.parametrize('name', [field.name for field in dataclasses.fields(Config)])
def test_a_difference_is_found_unless_it_changes_only_how_a_run_is_computed(name: str):
    config = Config(outname='run', num_layers=2, num_tokens=4)
    stored = config.to_dict()
    assert config.first_difference(stored) is None
    other = 3 if name == 'num_layers' else OTHER[name]
    assert other != stored[name]
    expected = None if name in EXECUTION | LENGTH else name  # these runs are longer than the stored ones
    assert config.first_difference({**stored, name: other}) == expected


def test_a_run_can_be_made_longer_and_not_shorter():
    config = Config(outname='run', max_iters=100, max_epochs=10)
    stored = config.to_dict()
    assert config.first_difference({**stored, 'max_iters': 99, 'max_epochs': 9}) is None
    assert config.first_difference({**stored, 'max_iters': 101}) == 'max_iters'
    assert config.first_difference({**stored, 'max_epochs': 11}) == 'max_epochs'


def test_the_options_that_may_differ_are_those_of_the_machine_and_the_files():
    assert sorted(EXECUTION) == ['compile', 'device', 'outname', 'resume', 'tensorboard', 'threads', 'tracker']


def test_an_option_that_an_older_file_lacks_is_no_difference():
    config = parse()
    stored = config.to_dict()
    del stored['grad_clip']
    assert config.first_difference(stored) is None


# ---------------------------------------------------------------------- values, never the machine


@pytest.mark.parametrize('name', ['tpu', 'cuda:', 'cuda:-1', 'cuda:x', 'cpu:0:0', '', 'CPU'])
def test_a_name_that_cannot_be_a_device_is_refused(name: str):
    with pytest.raises(ValueError, match='is out of range: use auto, cpu, cuda'):
        Config(outname='run', device=name)


def test_options_for_another_machine_are_a_good_config():
    """A laptop reads the options of a run that only a cluster can train."""
    config = Config(
        outname='run', device='cuda:7', compile='on', tensorboard=True, tracker='wandb', num_features=2048, threads=128
    )
    assert config.device == 'cuda:7'


def test_importing_the_options_loads_no_torch():
    code = 'import sys, RLM_clean.config; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=60).returncode == 0


def test_the_seed_of_the_sequences_has_two_names():
    assert parse('--seed_samples=5') == parse('--seed_sample=5') and parse('--seed_samples=5').seed_sample == 5
    for language in (RLM(4, 2, seed_sample=5), RHM(4, 2, 2, seed_sample=5), RLM(4, 2, seed_samples=5)):
        assert language.seed_sample == language.seed_samples == 5


# ---------------------------------------------------------------------- names and messages


@pytest.mark.parametrize(
    ('options', 'changes'),
    [
        ({}, {}),
        ({'beta': 2}, {}),
        ({'beta': 1.5, 'lr': 0.1}, {'beta': 1.5, 'lr': 0.1}),
        ({'num_layers': 3}, {'num_layers': 3}),
        ({'num_layers': 3, 'num_tokens': 4}, {'num_layers': 3, 'num_tokens': 4}),
        ({'num_layers': 3, 'num_tokens': 8}, {'num_layers': 3}),
    ],
)
def test_changes_are_the_options_that_differ_from_their_defaults(options: dict[str, Any], changes: dict[str, Any]):
    assert Config(outname='run', **options).changes() == changes


@settings(max_examples=100, deadline=None)
@given(a=st.floats(allow_nan=False), b=st.floats(allow_nan=False))
def test_different_values_have_different_names(a: float, b: float):
    assert (format_value(a) == format_value(b)) == (a == b)


def test_the_parser_says_what_it_is_for():
    assert 'Random Language Model' in (make_parser().description or '')
