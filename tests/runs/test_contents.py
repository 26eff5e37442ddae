"""Crafted files: valid archives of plain values that no run has written. Each gives one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import arguments
from small_runs import TINY, tiny, train

from RLM_clean.main import main
from RLM_clean.runs import contents, load_run
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.storage import UnreadableFileError

Change = Callable[[dict[str, Any]], Any]

OPTIONS: dict[str, Any] = {'max_iters': 4}


def widened(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model of another shape."""
    return {name: torch.cat((x, x)) for name, x in weights.items()}


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model of another kind."""
    return {f'layers.{name}': x for name, x in weights.items()}


# What is changed in which file, and what the line says besides the name of the file.
CONFIG: dict[str, tuple[Change, str]] = {
    'no rules': (lambda x: x.pop('rules'), "it lacks 'rules'"),
    'no options': (lambda x: x.pop('config'), "it lacks 'config'"),
    'options are a list': (lambda x: x.update(config=[1]), 'config is a list, not a dict'),
    'an option is a tensor': (lambda x: x['config'].update(lr=torch.ones(2)), "config['lr'] is a Tensor"),
    'an option without a name': (lambda x: x['config'].update({3: 4}), 'a key of config is an int, not a str'),
    'an unknown option': (lambda x: x['config'].update(colour=1), "it has 'colour', which is not an option"),
    'an option out of range': (lambda x: x['config'].update(lr=-1.0), 'lr=-1.0 is out of range'),
    'machine is a text': (lambda x: x.update(machine='laptop'), 'machine is a str, not a dict'),
    'entropy is a text': (lambda x: x.update(entropy='2'), 'entropy is a str, not a float'),
    'entropy is true': (lambda x: x.update(entropy=True), 'entropy is a bool, not a float'),
    'floors are a list': (lambda x: x.update(floors=[2.0]), 'floors is a list, not a dict'),
    'a floor without its error': (lambda x: x['floors'].update({0: 2.0}), 'floors[0] is a float, not a tuple'),
    'a floor of one number': (lambda x: x['floors'].update({1: (2.0,)}), 'floors[1] has 1 entries, not 2'),
    'a floor of a word': (lambda x: x['floors'].update({1: (2.0, '0')}), 'floors[1][1] is a str, not a float'),
    'a window that is a text': (lambda x: x['floors'].update({'1': (2.0, 0.0)}), 'a key of floors is a str'),
    'rules of another shape': (lambda x: x.update(rules=x['rules'][:2]), "'rules' have shape (2, 8, 8), not (8, 8, 8)"),
    'rules by level': (lambda x: x.update(rules=x['rules'].expand(2, 8, 8, 8)), "'rules' have shape (2, 8, 8, 8), not"),
    'rules of whole numbers': (lambda x: x.update(rules=x['rules'].long()), "'rules' are torch.int64"),
    'rules of complex numbers': (lambda x: x.update(rules=x['rules'] + 0j), "'rules' are torch.complex64"),
    'sparse rules': (lambda x: x.update(rules=x['rules'].to_sparse()), "'rules' are"),
    'rules with NaN': (lambda x: x['rules'][1, 2].fill_(torch.nan), "'rules' are not probabilities"),
    'negative rules': (lambda x: x['rules'].neg_(), "'rules' are not probabilities"),
    'rules that sum to two': (lambda x: x['rules'].mul_(2), "'rules' are not probabilities"),
}

CHECKPOINT: dict[str, tuple[Change, str]] = {
    'no model': (lambda x: x.pop('model'), "it lacks 'model'"),
    'another step': (lambda x: x.update(step=99), 'it is the checkpoint of step 99'),
    'a step that is a text': (lambda x: x.update(step='4'), 'step is a str, not an int'),
    'a record without lr': (lambda x: x['state'].pop('lr'), "state lacks 'lr'"),
    'records are a number': (lambda x: x['resume'].update(dynamics=3), "resume['dynamics'] is an int, not a list"),
    'records are tensors': (
        lambda x: x['resume'].update(dynamics=[torch.ones(1)]), "resume['dynamics'][0] is a Tensor, not a dict",
    ),
    'no records': (lambda x: x['resume'].update(dynamics=[]), "resume['dynamics'] is empty"),
    'a record that lacks its step': (
        lambda x: x['resume']['dynamics'][1].pop('t'), "resume['dynamics'][1] lacks 't'",
    ),
    'losses are a text': (lambda x: x['resume'].update(recent='none'), "resume['recent'] is a str, not a list"),
    'no time': (lambda x: x['resume'].pop('seconds'), "resume lacks 'seconds'"),
    'no optimizer': (lambda x: x['resume'].pop('optimizer'), "resume lacks 'optimizer'"),
    'the optimizer is a list': (lambda x: x['resume'].update(optimizer=[]), "resume['optimizer'] is a list"),
    'the best model without its step': (lambda x: x['resume']['best'].pop('step'), "resume['best'] lacks 'step'"),
    'the best model of another shape': (
        lambda x: x['resume']['best'].update(model=widened(x['model'])), "'best' has the weights of another model",
    ),
    'a weight that is a number': (lambda x: x['model'].update(bias=1.0), "model['bias'] is a float, not a Tensor"),
}  # fmt: skip

FINAL: dict[str, tuple[Change, str]] = {
    'empty': (dict.clear, "it lacks 'config'"),
    'no records': (lambda x: x['output'].update(dynamics=[]), "output['dynamics'] is empty"),
    'a record that lacks its loss': (
        lambda x: x['output']['dynamics'][2].pop('testloss'), "output['dynamics'][2] lacks 'testloss'",
    ),
    'records are a dict': (lambda x: x['output'].update(dynamics={}), "output['dynamics'] is a dict, not a list"),
    'no floor': (lambda x: x['output'].pop('entropy'), "output lacks 'entropy'"),
    'best without its step': (lambda x: x['best'].pop('step'), "best lacks 'step'"),
    'best without its model': (lambda x: x['best'].pop('model'), "best lacks 'model'"),
    'best of another shape': (
        lambda x: x['best'].update(model=widened(x['model'])), "'best' has the weights of another model",
    ),
    'best of other names': (
        lambda x: x['best'].update(model=renamed(x['model'])), "'best' has the weights of another model",
    ),
}  # fmt: skip

ROWS = [
    (file, name, change, said)
    for file, table in (('config', CONFIG), ('checkpoint', CHECKPOINT), ('final', FINAL))
    for name, (change, said) in table.items()
]
CRAFTED = pytest.mark.parametrize(
    ('file', 'change', 'said'),
    [(file, change, said) for file, _, change, said in ROWS],
    ids=[f'{file}: {name}' for file, name, _, _ in ROWS],
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that is done."""
    folder = tmp_path_factory.mktemp('finished')
    train(tiny(folder / 'run', **OPTIONS))
    return folder


@pytest.fixture
def files(finished: Path, tmp_path: Path) -> RunFiles:
    """A copy of its files, to be changed."""
    shutil.copytree(finished, tmp_path / 'out')
    return RunFiles(tmp_path / 'out' / 'run')


def edit(path: Path, change: Change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def craft(files: RunFiles, file: str, change: Change) -> Path:
    """Changes a file of a run; where that is a checkpoint, the run was killed before its end."""
    path = {'config': files.config, 'checkpoint': files.checkpoint(4), 'final': files.final}[file]
    edit(path, change)
    if file == 'checkpoint':
        files.final.unlink()
    return path


def snapshot(files: RunFiles) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files.folder.iterdir()}


@CRAFTED
def test_a_crafted_file_is_refused_by_load_run_in_one_line(
    files: RunFiles, file: str, change: Change, said: str
) -> None:
    path = craft(files, file, change)
    with pytest.raises(UnreadableFileError) as caught:
        load_run(files.outname).model(4)
    assert str(path) in str(caught.value) and said in str(caught.value) and '\n' not in str(caught.value)


@CRAFTED
def test_a_crafted_file_is_refused_by_the_command_line_in_one_line_and_nothing_is_touched(
    files: RunFiles, file: str, change: Change, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = craft(files, file, change)
    before = snapshot(files)
    status = main(arguments(**{**TINY, **OPTIONS, 'outname': files.outname}))
    error = capsys.readouterr().err
    assert status == 2 and error.startswith('rlm-train: error: ') and error.count('\n') == 1, error
    assert str(path) in error and said in error
    assert snapshot(files) == before


@pytest.mark.parametrize('change', [widened, renamed], ids=['another shape', 'other names'])
def test_weights_of_another_model_are_refused(
    files: RunFiles, change: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In every file that has weights, whether a notebook opens it or a run goes on from it."""

    def replace(content: dict[str, Any]) -> None:
        content['model'] = change(content['model'])
        for part in (content.get('best'), content.get('resume', {}).get('best')):
            if part is not None:
                part['model'] = change(part['model'])

    for path, step in ((files.checkpoint(2), 2), (files.final, None), (files.final, 'best')):
        if step != 'best':
            edit(path, replace)
        with pytest.raises(UnreadableFileError, match='it has the weights of another model') as caught:
            load_run(files.outname).model(step)
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    files.final.unlink()
    edit(files.checkpoint(4), replace)
    assert main(arguments(**{**TINY, **OPTIONS, 'outname': files.outname})) == 2
    assert f'{files.checkpoint(4)} belongs to another run: remove it' in capsys.readouterr().err


def test_files_that_a_run_has_written_have_their_forms(files: RunFiles) -> None:
    """A run that goes on, one that is done; with the tensors and without."""
    for tensors in (True, False):
        files.load_config(tensors)
        files.load_final(tensors)
    for step in files.steps():
        assert files.load_checkpoint(files.checkpoint(step))['step'] == step


@pytest.mark.parametrize(
    ('value', 'form', 'expected'),
    [
        (1, float, None),
        (True, int, 'it is a bool, not an int'),
        (1.0, int, 'it is a float, not an int'),
        (True, bool, None),
        (None, frozenset({int, type(None)}), None),
        ('a', frozenset({int, type(None)}), 'it is a str'),
        (None, dict, 'it is None, not a dict'),
        ([], [int], None),
        ([], [int, ...], 'it is empty'),
        ([1, 'a'], [int], 'it[1] is a str, not an int'),
        ((1, 2), (int, int), None),
        ((1, 2), (int, int, int), 'it has 2 entries, not 3'),
        ({}, {'a?': int}, None),
        ({'a': 'b'}, {'a?': int}, 'a is a str, not an int'),
        ({'a': {}}, {'a': {'b': int}}, "a lacks 'b'"),
        ({'a': 1, 'more': 2}, {'a': int}, None),
    ],
)
def test_the_first_difference_from_a_form_is_named(value: Any, form: Any, expected: str | None) -> None:
    assert contents.difference(value, form) == expected


# ---------------------------------------------------------------------- logs


LINE = json.dumps(dict.fromkeys(contents.RECORD, 1))


@pytest.mark.parametrize(
    ('lines', 'number'),
    [
        ([LINE, '3', LINE], 2),
        ([LINE, '[]'], 2),
        (['{"a": 1}', LINE], 1),
        ([LINE, LINE, '"t"'], 3),
        ([LINE[:-5], LINE], 1),  # cut short, but not the last line
        ([LINE, ''], 2),
        ([LINE, 100_000 * '['], 2),
        ([LINE.replace('1', '"1"', 1)], 1),
    ],
)
@pytest.mark.parametrize('end', ['\n', ''])
def test_a_line_that_is_not_a_record_is_an_error_with_its_number(
    tmp_path: Path, lines: list[str], number: int, end: str
) -> None:
    files = RunFiles(tmp_path / 'run')
    files.log.write_text('\n'.join(lines) + (end if lines[-1] else '\n'))
    with pytest.raises(UnreadableFileError) as caught:
        files.read_log()
    assert f'{files.log} is not a file of this run (line {number} is not a record): remove it' in str(caught.value)


def test_binary_garbage_in_a_log_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / 'run')
    for garbage in (b'\x80\xff\x00\n', bytes(range(256)), f'{LINE}\n'.encode() + b'\x00' * 100):
        files.log.write_bytes(garbage)
        with pytest.raises(UnreadableFileError) as caught:
            files.read_log()
        assert str(files.log) in str(caught.value) and '\n' not in str(caught.value)


def test_a_last_line_that_was_cut_short_anywhere_is_left_out(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / 'run')
    for size in range(len(LINE)):
        files.log.write_text(f'{LINE}\n{LINE[:size]}')
        assert files.read_log() == [json.loads(LINE)]
    files.log.write_text(f'{LINE}\n{LINE}')  # only the end of the line is missing
    assert files.read_log() == 2 * [json.loads(LINE)]
    files.log.unlink()
    assert files.read_log() == []
    files.log.mkdir()
    with pytest.raises(UnreadableFileError, match='move it away'):
        files.read_log()


# ---------------------------------------------------------------------- folders in the place of files


@pytest.mark.parametrize('resume', ['auto', 'restart'])
@pytest.mark.parametrize(
    'name', ['run_config.pt', 'run.pt', 'run_t2.pt', 'run_log.jsonl', 'run.png', 'run_previous.pt']
)
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_touched(
    files: RunFiles, name: str, resume: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files.folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / 'mine').write_text('keep me')

    def state() -> dict[str, Any]:
        return {str(p): p.is_dir() or p.read_bytes() for p in files.folder.rglob('*')}

    before = state()
    assert main(arguments(**{**TINY, **OPTIONS, 'outname': files.outname, 'resume': resume})) == 2
    assert capsys.readouterr().err == f'rlm-train: error: {path} is a folder: move it away, or use another outname\n'
    assert state() == before


def test_a_folder_in_the_place_of_a_file_is_refused_before_a_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'run.png').mkdir()
    assert main(arguments(**{**TINY, 'outname': tmp_path / 'run'})) == 2
    assert f'{tmp_path / "run.png"} is a folder: move it away' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['run.png']
