"""What a command says when it cannot do what is asked: one line with what is wrong and the remedy, and no file touched.

Crafted contents of files are in tests/runs/test_contents.py.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import arguments, run_main
from small_runs import train

from RLM_clean import main as main_module
from RLM_clean.command_line import from_arguments
from RLM_clean.runs import load_run, storage
from RLM_clean.runs.storage import load

# ---------------------------------------------------------------------- the table of options

OWN_MODELS = ('transformer_mlm', 'transformer_clm', 'transformer_bert', 'fcn', 'cnn', 'lcn', 'gru')
DEEP = {'num_layers': 2, 'depth': 2}  # fits every model

# Options of which the first is wrong, the value that the error shows, and a part of the remedy.
OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({'num_features': 1}, '1', 'use a whole number, 2 or more'),
    ({'num_features': 'many'}, "'many'", 'give one'),
    ({'num_features': 8.5}, "'8.5'", 'give one'),
    ({'num_features': ''}, "''", 'give one'),
    ({'num_features': 2**20}, '1048576', 'use at most'),
    ({'num_features': 10**120}, '10000', 'below 2^63'),
    ({'num_layers': 0}, '0', '1 to 20'),
    ({'num_layers': 99}, '99', '1 to 20'),
    ({'num_tokens': 5, 'num_layers': 2}, '5', 'use 2 to 2^num_layers=4'),
    ({'num_tokens': 3}, '3', 'use 2 to 2^num_layers=2'),
    ({'num_tokens': 1}, '1', 'use 2 to 2^num_layers=2'),
    ({'beta': 'nan'}, 'nan', 'use a number from 0'),
    ({'beta': -1}, '-1', 'use a number from 0'),
    ({'beta': 'inf'}, 'inf', 'use a number from 0'),
    ({'beta': 1e308}, '1e+308', 'use a number from 0 to 1e9'),
    ({'beta': 'two'}, "'two'", 'give one'),
    ({'num_synonyms': 9, 'dataset': 'rhm'}, '9', 'lower it'),
    ({'num_synonyms': 0}, '0', 'use a whole number, 1 or more'),
    ({'seed_rules': -1}, '-1', 'from 0 to 2^32 - 1'),
    ({'seed_rules': 2**32}, '4294967296', 'from 0 to 2^32 - 1'),
    ({'seed_sample': -5}, '-5', 'from 0 to 2^63 - 1'),
    ({'seed_model': 2**63}, '9223372036854775808', 'below 2^63'),
    ({'seed_model': 'random'}, "'random'", 'code.sh draws one seed for it; for several use repetitions=2'),
    ({'dataset': 'wikipedia'}, "'wikipedia'", 'use rlm or rhm or unambiguous'),
    ({'sigma': -1, 'dataset': 'unambiguous'}, '-1', 'use a finite number, 0 or more'),
    ({'zipf': 1}, '1', "needs dataset='rhm'"),
    ({'zipf': -1, 'dataset': 'rhm'}, '-1', 'use a finite number, 0 or more'),
    ({'zipf': 900, 'dataset': 'rhm'}, '900', 'rarer than 1e-36: lower it'),
    ({'zipf_levels': 'roots'}, "'roots'", 'use leaves, all, or numbers from 0 (the root) to num_layers - 1=0'),
    ({'zipf_levels': '0,2', 'num_layers': 2}, "'0,2'", 'num_layers - 1=1'),
    ({'filtered': 3, 'num_layers': 2}, '3', 'lower it, or use -1'),
    ({'filtered': -2}, '-2', 'use a whole number from 0 to num_layers, or -1'),
    ({'num_classes': 9}, '9', 'lower it'),
    ({'num_classes': -1}, '-1', 'use a whole number, 0 or more'),
    ({'regime': 'both'}, "'both'", 'use online or offline or population'),
    ({'regime': 'population', 'accumulation': 2, 'num_features': 8}, '2', 'leave it out'),
    ({'regime': 'population', 'num_layers': 3}, '=8 with 8 tokens', 'lower num_features or num_layers, or use online'),
    ({'regime': 'population', 'num_features': 64, 'num_layers': 2}, '64', 'lower num_features or num_layers'),
    ({'regime': 'population', 'objective': 'masked', 'model': 'fcn'}, "'masked'", 'use last, all or root'),
    ({'input_format': 'bytes'}, "'bytes'", 'use long or onehot'),
    ({'model': 'transformer'}, "'transformer'", 'use ' + ' or '.join(OWN_MODELS)),
    ({'model': ''}, "''", 'use transformer_mlm'),
    ({'objective': 'first'}, "'first'", 'use last or all or root or masked or denoise'),
    *(
        ({'objective': 'all', 'model': model, **DEEP}, "'all'", f"'transformer_clm' or 'gru', not {model!r}")
        for model in ('transformer_mlm', 'transformer_bert', 'fcn', 'cnn', 'lcn')
    ),
    *(
        ({'objective': name, 'model': model, **DEEP}, repr(name), f"'transformer_bert' or 'fcn', not {model!r}")
        for name in ('masked', 'denoise')
        for model in ('transformer_mlm', 'transformer_clm', 'cnn', 'lcn', 'gru')
    ),
    ({'num_tokens': 3, 'objective': 'root', 'num_layers': 2}, '3', 'leave it out'),
    ({'num_tokens': 2, 'objective': 'masked', 'model': 'transformer_bert', 'num_layers': 2}, '2', 'leave it out'),
    ({'num_tokens': 3, 'objective': 'denoise', 'model': 'fcn', 'num_layers': 2}, '3', 'leave it out'),
    ({'mask_rate': 0.5}, '0.5', "objective='masked'"),
    ({'mask_rate': 0.5, 'objective': 'denoise', 'model': 'fcn'}, '0.5', "objective='masked'"),
    ({'mask_rate': 1.0, 'objective': 'masked', 'model': 'fcn'}, '1.0', 'use a number from 0 to below 1'),
    ({'mask_rate': -0.5}, '-0.5', 'use a number from 0 to below 1'),
    ({'noise': 0.5}, '0.5', "objective='denoise'"),
    ({'noise': 0.5, 'objective': 'masked', 'model': 'fcn'}, '0.5', "objective='denoise'"),
    ({'noise': 1.5, 'objective': 'denoise', 'model': 'fcn'}, '1.5', 'use a number from 0 to 1'),
    ({'noise': 'nan', 'objective': 'denoise', 'model': 'fcn'}, 'nan', 'use a number from 0 to 1'),
    ({'optim': 'adamw'}, "'adamw'", 'use sgd or adam'),
    ({'scheduler': 'linear'}, "'linear'", 'use none or cosine or cosine-warmup'),
    ({'dtype': 'float16'}, "'float16'", 'use float32 or bfloat16'),
    ({'resume': 'yes'}, "'yes'", 'use auto or require or restart'),
    ({'resume': 'require'}, "'require'", 'use auto'),
    ({'train_size': 63, 'regime': 'offline'}, '63', 'lower it'),
    ({'batch_size': 64, 'accumulation': 2, 'train_size': 127, 'regime': 'offline'}, '64', 'lower it'),
    ({'batch_size': 0}, '0', 'use a whole number, 1 or more'),
    ({'batch_size': 10**14}, '100000000000000', 'use at most'),
    ({'accumulation': 0}, '0', 'use a whole number, 1 or more'),
    ({'accumulation': 10**13}, '10000000000000', 'use at most'),
    ({'test_size': 0}, '0', 'use a whole number, 1 or more'),
    ({'test_size': 10**14}, '100000000000000', 'use at most'),
    ({'whitening': 1}, '1', "input_format='onehot'"),
    ({'whitening': 2, 'input_format': 'onehot'}, '2', 'use 0 or 1'),
    ({'depth': 0}, '0', 'use a whole number, 1 or more'),
    ({'depth': 2, 'model': 'cnn'}, '2', 'use depth=1'),
    ({'depth': 1, 'model': 'lcn', 'num_layers': 3}, '1', 'use depth=3'),
    ({'num_tokens': 3, 'model': 'cnn', 'num_layers': 2, 'depth': 2}, '3', 'leave it out'),
    ({'num_tokens': 3, 'model': 'lcn', 'num_layers': 2}, '3', 'leave it out'),
    ({'embedding_dim': 0}, '0', 'use a whole number, 1 or more'),
    ({'embedding_dim': 10**7}, '10000000', 'use at most'),
    ({'num_heads': 3}, '3', 'make one a multiple of the other'),
    ({'num_heads': 0}, '0', 'use a whole number, 1 or more'),
    ({'ffwd_size': -1}, '-1', 'use a whole number, 0 or more'),
    ({'ffwd_size': 0, 'model': 'fcn'}, '0', 'use 1 or more'),
    ({'ffwd_size': 0, 'model': 'cnn'}, '0', 'use 1 or more'),
    ({'positions': 'sine'}, "'sine'", 'use learned or rope or none'),
    ({'positions': 'rope', 'num_heads': 8}, '8', 'make embedding_dim / num_heads=8/8 even'),
    ({'positions': 'rope', 'embedding_dim': 6, 'num_heads': 2}, '6', 'make embedding_dim / num_heads=6/2 even'),
    *(({'positions': 'none', 'model': model}, 'none', 'leave it out') for model in ('fcn', 'cnn', 'lcn', 'gru')),
    ({'parametrisation': 'ntk'}, "'ntk'", 'use standard or mup'),
    *(({'parametrisation': 'mup', 'model': model}, 'mup', 'leave it out') for model in ('fcn', 'cnn', 'lcn', 'gru')),
    ({'dropout': 1.0}, '1.0', 'use a number from 0 to below 1'),
    ({'dropout': -0.1}, '-0.1', 'use a number from 0 to below 1'),
    *(
        ({'dropout': 0.1, 'model': model}, f'0.1 is for transformers, not for model={model!r}', 'leave it out')
        for model in ('fcn', 'cnn', 'lcn', 'gru')
    ),
    *(
        ({'tie_weights': True, 'model': model}, f'1 is for transformers, not for model={model!r}', 'leave it out')
        for model in ('fcn', 'cnn', 'lcn', 'gru')
    ),
    ({'tie_weights': True, 'objective': 'masked', 'model': 'transformer_bert'}, "'masked'", 'leave it out'),
    ({'tie_weights': True, 'objective': 'root', 'num_classes': 3}, "'root'", 'leave it out'),
    ({'lr': -1}, '-1', 'use a finite number above 0'),
    ({'lr': 0}, '0', 'use a finite number above 0'),
    ({'lr': 'inf'}, 'inf', 'use a finite number above 0'),
    ({'lr': 'nan'}, 'nan', 'use a finite number above 0'),
    ({'lr': 'fast'}, "'fast'", 'give one'),
    ({'lr': ''}, "''", 'give one'),
    ({'momentum': 1}, '1', 'use a number from 0 to below 1'),
    ({'weight_decay': -1}, '-1', 'use a finite number, 0 or more'),
    ({'grad_clip': -1}, '-1', 'use a finite number, 0 or more'),
    ({'warmup_time': -1}, '-1', 'use a whole number, 0 or more'),
    ({'decay_time': 0}, '0', 'use a whole number, 1 or more'),
    ({'max_iters': 0}, '0', 'use a whole number, 1 or more'),
    ({'max_iters': 1e3}, "'1000.0'", 'give one'),
    ({'max_epochs': 0}, '0', 'use a whole number, 1 or more'),
    ({'print_freq': 0}, '0', 'use a whole number, 1 or more'),
    ({'print_freq': 1, 'max_iters': 10**12}, '1', 'raise it'),
    ({'save_freq': 0}, '0', 'use a whole number, 1 to 1000'),
    ({'save_freq': 10**9}, '1000000000', 'use a whole number, 1 to 1000'),
    ({'loss_threshold': 'nan'}, 'nan', 'use a finite number, 0 or more'),
    ({'tracker': 'mlflow'}, "'mlflow'", 'use none or tensorboard or wandb or trackio'),
    ({'threads': 0}, '0', 'use auto, or a whole number, 1 to 1024'),
    ({'threads': 100000}, '100000', 'use auto, or a whole number, 1 to 1024'),
    ({'threads': 'many'}, 'many', 'use auto, or a whole number, 1 to 1024'),
    ({'compile': 'maybe'}, 'maybe', 'use auto or on or off'),
    ({'device': 'tpu'}, "'tpu'", 'use auto, cpu'),
    ({'device': 'cpu:'}, "'cpu:'", 'use auto, cpu'),
    ({'device': 'cpu:1'}, "'cpu:1'", 'use auto or cpu'),
    ({'device': 'cuda:9'}, "'cuda:9'", 'use auto or cpu'),
    ({'outname': ''}, "''", 'give a path'),
    ({'outname': 'kept'}, "'kept'", 'give the path of a run in it'),
    ({'outname': 'kept/'}, "'kept/'", 'give a path'),
    ({'outname': 'kept/notes.txt/run'}, "'kept/notes.txt/run'", 'use another'),
    ({'outname': 'kept/notes.txt/new/run'}, "'kept/notes.txt/new/run'", 'use another'),
    ({'outname': '/dev/null/run'}, "'/dev/null/run'", 'use another'),
    ({'outname': '/proc/nowhere/run'}, "'/proc/nowhere/run'", 'use another'),
    ({'outname': 'new/' + 300 * 'x' + '/run'}, 'xxxx', 'use at most 200 bytes'),
]
if not torch.cuda.is_available():
    OPTIONS.append(({'device': 'cuda'}, "'cuda'", 'use auto or cpu'))
if not torch.backends.mps.is_available():
    OPTIONS.append(({'device': 'mps'}, "'mps'", 'use auto or cpu'))

# Words at the end of a good command line, and parts of the error.
WORDS: list[tuple[list[str], tuple[str, ...]]] = [
    (['--colour=red'], ('--colour=red', 'see --help')),
    (['--num_layer=2'], ('--num_layer=2', 'did you mean --num_layers?')),
    (['--seed_rule', '3'], ('--seed_rule', 'did you mean --seed_rules?')),
    (['--no-checkpoint'], ('--no-checkpoint', 'did you mean --no-checkpoints?')),
    (['results/run'], ('results/run', 'see --help')),
    (['--lr'], ('--lr', 'give it a value')),
    (['--checkpoints=0'], ('--checkpoints', "'0'", 'give it without a value')),
]


def fault(options: dict[str, Any]) -> str:
    return ','.join(f'{name}={str(value)[:20]}' for name, value in options.items())


# ---------------------------------------------------------------------- the table of files


class Malicious:
    """Unpickled by anything that trusts it, it leaves a file in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ('stolen', 'w')


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def cut(path: Path, size: int | None = None) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 if size is None else size])


def flip(path: Path) -> None:
    """Changes one byte of a tensor: the archive still has its end."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if '/data/' in info.filename)
    data[entry.header_offset + 200] ^= 1
    path.write_bytes(data)


def cut_every_checkpoint(folder: Path) -> None:
    for path in folder.glob('run_t*.pt'):
        cut(path)


def remove_every_checkpoint(folder: Path) -> None:
    for path in folder.glob('run_t*.pt'):
        path.unlink()


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('letter', 'hello')


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


# What happened to the files of a run, the options of the next call, and parts of the error. `run.pt` is the file of a
# finished run: only rows that name it have one.
FILES: dict[str, tuple[Callable[[Path], Any], dict[str, Any], tuple[str, ...]]] = {
    'another lr': (lambda f: None, {'lr': 0.5}, ('lr=0.5', '0.001', 'another outname')),
    'another num_features': (lambda f: None, {'num_features': 9}, ('num_features=9', '8', 'another outname')),
    'another seed_rules': (lambda f: None, {'seed_rules': 7}, ('seed_rules=7', '12345', 'resume=restart')),
    'another scheduler': (lambda f: None, {'scheduler': ''}, ("scheduler='none'", 'cosine-warmup', 'resume=restart')),
    'no checkpoint to require': (
        remove_every_checkpoint, {'resume': 'require'}, ("resume='require'", 'auto'),
    ),
    '_config.pt a pickle': (
        lambda f: (f / 'run_config.pt').write_bytes(pickle.dumps(Malicious())), {}, ('run_config.pt', 'safe', 'remove'),
    ),
    '_config.pt a malicious archive': (
        lambda f: torch.save({'config': Malicious()}, f / 'run_config.pt'), {}, ('run_config.pt', 'safe', 'remove'),
    ),
    '_config.pt cut short': (lambda f: cut(f / 'run_config.pt'), {}, ('run_config.pt', 'cut short', 'remove')),
    '_config.pt empty': (lambda f: cut(f / 'run_config.pt', 0), {}, ('run_config.pt', 'cut short', 'remove')),
    '_config.pt of two bytes': (lambda f: cut(f / 'run_config.pt', 2), {}, ('run_config.pt', 'cut short', 'remove')),
    '_config.pt changed': (lambda f: flip(f / 'run_config.pt'), {}, ('run_config.pt', 'damaged', 'remove')),
    '_config.pt a text': (
        lambda f: (f / 'run_config.pt').write_text('hello'), {}, ('run_config.pt', 'not a file of', 'remove'),
    ),
    '_config.pt a plain zip': (
        lambda f: plain_zip(f / 'run_config.pt'), {}, ('run_config.pt', 'not a file of', 'remove'),
    ),
    '_config.pt a TorchScript model': (
        lambda f: torchscript(f / 'run_config.pt'), {}, ('run_config.pt', 'not a file of', 'remove'),
    ),
    '_config.pt missing': (
        lambda f: (f / 'run_config.pt').unlink(), {}, ('outname=', 'run_config.pt', 'resume=restart'),
    ),
    '_config.pt a list': (
        lambda f: torch.save([1], f / 'run_config.pt'), {}, ('run_config.pt', 'list', 'remove'),
    ),
    'newest checkpoint a pickle': (
        lambda f: (f / 'run_t4.pt').write_bytes(pickle.dumps(Malicious())), {}, ('run_t4.pt', 'safe', 'remove'),
    ),
    'newest checkpoint a malicious archive': (
        lambda f: torch.save({'model': Malicious()}, f / 'run_t4.pt'), {}, ('run_t4.pt', 'safe', 'remove'),
    ),
    'newest checkpoint of the older format': (
        lambda f: torch.save({'model': Malicious()}, f / 'run_t4.pt', _use_new_zipfile_serialization=False), {},
        ('run_t4.pt', 'safe', 'remove'),
    ),
    'newest checkpoint of another model': (
        lambda f: edit(f / 'run_t4.pt', lambda x: x['model'].popitem()), {}, ('run_t4.pt', 'another', 'remove'),
    ),
    'every checkpoint cut short': (cut_every_checkpoint, {}, ('run_t4.pt', 'cut short', 'restart')),
    'run.pt cut short': (lambda f: cut(f / 'run.pt'), {}, ('run.pt', 'cut short', 'remove')),
    'run.pt a list': (lambda f: torch.save([1, 2], f / 'run.pt'), {}, ('run.pt', 'list', 'remove')),
    'run.pt a malicious archive': (
        lambda f: torch.save({'output': Malicious()}, f / 'run.pt'), {}, ('run.pt', 'safe', 'remove'),
    ),
}  # fmt: skip


# ---------------------------------------------------------------------- what holds for each row

Answer = tuple[int, str, str]
CallMain = Callable[[list[str]], Answer]


@pytest.fixture
def call_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CallMain:
    """Calls main with a command line, without the picture; gives its status, its output and its errors."""
    monkeypatch.setattr('RLM_clean.plots.save_learning_curve', lambda *_: None)

    def call(words: list[str]) -> Answer:
        capsys.readouterr()
        try:
            status = main_module.main(words)
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file in it that is not of a run."""
    (tmp_path / 'kept').mkdir()
    (tmp_path / 'kept' / 'notes.txt').write_text('keep me')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that is done."""
    folder = tmp_path_factory.mktemp('finished')
    train(from_arguments(arguments(outname=folder / 'run')))
    return folder


@pytest.fixture
def unfinished(finished: Path, folder: Path) -> Path:
    """The files of a run that was killed before it wrote its final file."""
    shutil.copytree(finished, folder / 'out', copy_function=shutil.copyfile)
    (folder / 'out' / 'run.pt').unlink()
    return folder / 'out'


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: contents and times of change."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
    }


def check_refusal(answer: Answer, said: tuple[str, ...]) -> None:
    """One line on standard error with all parts of `said`, status 2, no traceback."""
    status, out, err = answer
    assert 'Traceback' not in out + err
    assert status == 2, err
    assert err.startswith('rlm-train: error: ') and err.endswith('\n') and err.count('\n') == 1, err
    for part in said:
        assert part in err


# ---------------------------------------------------------------------- the promises


@pytest.mark.parametrize(('options', 'value', 'remedy'), OPTIONS, ids=[fault(row[0]) for row in OPTIONS])
def test_a_bad_option_gives_its_name_value_and_remedy_in_one_line_and_writes_nothing(
    options: dict[str, Any], value: str, remedy: str, call_main: CallMain, folder: Path
):
    before = snapshot(folder)
    answer = call_main(arguments(**{'outname': 'new/run', **options}))
    check_refusal(answer, (next(iter(options)), value, remedy))
    assert snapshot(folder) == before


@pytest.mark.parametrize(('words', 'said'), WORDS, ids=[' '.join(row[0]) for row in WORDS])
def test_unknown_words_are_refused_in_one_line_and_nothing_is_written(
    words: list[str], said: tuple[str, ...], call_main: CallMain, folder: Path
):
    before = snapshot(folder)
    check_refusal(call_main(arguments(outname='new/run') + words), said)
    assert snapshot(folder) == before


def test_a_run_without_outname_is_refused(call_main: CallMain, folder: Path):
    before = snapshot(folder)
    check_refusal(call_main(arguments()), ('outname', "''", 'give a path such as results/my_run'))
    assert snapshot(folder) == before


@pytest.mark.parametrize('name', FILES)
def test_files_that_cannot_be_used_are_refused_in_one_line_and_left_alone(
    name: str, call_main: CallMain, unfinished: Path, finished: Path, folder: Path
):
    spoil, options, said = FILES[name]
    if name.startswith('run.pt'):
        shutil.copyfile(finished / 'run.pt', unfinished / 'run.pt')
    spoil(unfinished)
    before = snapshot(folder)
    check_refusal(call_main(arguments(outname='out/run', **options)), said)
    assert snapshot(folder) == before
    assert not (folder / 'stolen').exists()


def check_process(words: list[str], said: tuple[str, ...], folder: Path) -> None:
    """A process of its own refuses in the same way; there the warnings of torch would reach standard error."""
    before = snapshot(folder)
    done = run_main(words)
    check_refusal((done.returncode, done.stdout, done.stderr), said)
    assert snapshot(folder) == before


def test_a_process_refuses_a_bad_option_in_one_line(folder: Path):
    check_process(arguments(outname=folder / 'new/run', lr=-1), ('lr=-1', 'above 0'), folder)


@pytest.mark.slow
def test_a_process_refuses_a_bad_path_and_an_unknown_option_in_one_line(folder: Path):
    check_process(arguments(outname='/dev/null/run'), ('outname=', '/dev/null/run', 'use another'), folder)
    check_process(arguments(outname=folder / 'new/run', num_head=2), ('--num_head', 'did you mean'), folder)


@pytest.mark.parametrize(
    'name',
    [
        '_config.pt a TorchScript model',
        pytest.param('another lr', marks=pytest.mark.slow),
        pytest.param('newest checkpoint a malicious archive', marks=pytest.mark.slow),
    ],
)
def test_a_process_refuses_bad_files_in_one_line(name: str, unfinished: Path, folder: Path):
    spoil, options, said = FILES[name]
    spoil(unfinished)
    check_process(arguments(outname=unfinished / 'run', **options), said, folder)


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line_and_keeps_the_good_files(
    call_main: CallMain, folder: Path
):
    words = arguments(outname='out/run', optim='sgd', lr=1e6, max_iters=100)
    status, out, err = call_main(words)
    assert status == 1 and 'Traceback' not in out + err
    assert err.count('\n') == 1 and 'nan' in err and 'lower lr=1e+06' in err and 'out/run' in err
    run = load_run('out/run')
    assert not run.done and run.steps and run.dynamics[-1]['t'] == run.steps[-1]
    for step in run.steps:
        assert all(weights.isfinite().all() for weights in run.model(step).state_dict().values())
    before = snapshot(folder / 'out')
    status, _, again = call_main(words)
    assert (status, again) == (1, err)
    assert {name: file[0] for name, file in snapshot(folder / 'out').items()} == {
        name: file[0] for name, file in before.items()
    }


class SmallDisk(io.FileIO):
    """A file on a disk that has room for 3000 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 3000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize('write', [1, 2, 3, 5, 6, 9, 'inside torch.save'])
def test_a_full_disk_gives_one_line_and_leaves_only_whole_files(
    write: int | str, call_main: CallMain, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """And once there is room, the same command ends with the weights of a run that always had it."""
    words = arguments(outname='out/run')
    written = 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        if isinstance(write, str):
            patch.setattr(storage, 'open', lambda path, mode, **_: SmallDisk(path, mode), raising=False)
        status, out, err = call_main(words)
    assert status == 1 and 'Traceback' not in out + err
    assert err.count('\n') == 1 and 'No space left' in err and 'out/run' in err
    files = list((folder / 'out').iterdir())
    assert not [path for path in files if '.tmp-' in path.name]
    for path in files:
        if path.suffix == '.pt':
            load(path)
    assert call_main(words)[0] == 0
    for name in ('run.pt', 'run_t1.pt', 'run_t4.pt'):
        expected = load(finished / name)['model']
        assert all(torch.equal(expected[key], value) for key, value in load(folder / 'out' / name)['model'].items())


@pytest.mark.parametrize(
    ('error', 'status', 'said'),
    [
        (KeyboardInterrupt(), 130, 'goes on from the last checkpoint of new/run'),
        (MemoryError(), 1, 'lower batch_size=64'),
        (RuntimeError('CUDA out of memory. Tried to allocate\n2 GiB'), 1, 'lower batch_size=64'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, 'batch_size='),
    ],
)
def test_what_stops_a_run_from_outside_gives_one_line(
    error: BaseException, status: int, said: str, call_main: CallMain, monkeypatch: pytest.MonkeyPatch
):
    def fail(config: object) -> None:
        raise error

    monkeypatch.setattr(main_module, 'train', fail)
    answer = call_main(arguments(outname='new/run'))
    assert answer[0] == status and answer[2].count('\n') == 1 and said in answer[2]


def test_an_error_of_the_program_itself_is_not_hidden(call_main: CallMain, monkeypatch: pytest.MonkeyPatch):
    def fail(config: object) -> None:
        raise RuntimeError('shapes do not fit')

    monkeypatch.setattr(main_module, 'train', fail)
    with pytest.raises(RuntimeError, match='shapes do not fit'):
        call_main(arguments(outname='new/run'))
