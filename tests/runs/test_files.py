"""The files of a run: what is in them, when they are written, and which of them belong to it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_runs import train_until
from small_runs import contents, make_trainer, quiet, read_log, tiny, train
from torch import Tensor

from RLM_clean import init
from RLM_clean.runs import load_run
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.locks import BusyError
from RLM_clean.runs.storage import load
from RLM_clean.training import lifecycle

RECORD = ['t', 'trainloss', 'testloss', 'testacc', 'excess', 'lr', 'seconds']


def is_plain(value: Any) -> bool:
    """Whether a value is made of tensors and plain Python values alone."""
    if isinstance(value, dict):
        return type(value) is dict and all(is_plain(x) for item in value.items() for x in item)
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(is_plain(x) for x in value)
    return type(value) in (Tensor, float, int, str, bool, type(None))


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The name of a finished run, with its picture."""
    outname = tmp_path_factory.mktemp('finished') / 'run'
    lifecycle.train(tiny(outname, dropout=0.1, optim='adam'), quiet)
    return outname


# ---------------------------------------------------------------------- what is in the files


def test_every_file_of_a_run_opens_with_weights_only_and_holds_what_is_promised(finished: Path) -> None:
    files = contents(finished)
    steps = init.save_times(24, 2)
    assert sorted(path.name for path in finished.parent.iterdir()) == sorted(
        ['run.pt', 'run.png', 'run_config.pt', 'run_log.jsonl', *(f'run_t{step}.pt' for step in steps)]
    )
    assert is_plain(files)
    assert set(files['_config.pt']) == {'config', 'machine', 'rules', 'entropy', 'marginal', 'floors', 'contexts'}
    assert set(files['.pt']) == {'config', 'output', 'model', 'best'}
    assert set(files['.pt']['output']) >= {'entropy', 'marginal', 'floors', 'contexts', 'dynamics', 'step'}
    assert set(files['.pt']['best']) == {'step', 'loss', 'excess', 'model'}
    for step in steps:
        content = files[f'_t{step}.pt']
        assert set(content) == {'model', 'state', 'step'} | ({'resume'} if step == 24 else set())
        assert content['step'] == content['state']['t'] == step
    for losses in (files['_config.pt'], files['.pt']['output']):
        assert type(losses['entropy']) is type(losses['marginal']) is float
        assert 0 < losses['entropy'] == losses['floors'][3][0] < losses['marginal'] == losses['floors'][0][0]
    assert finished.with_name('run.png').read_bytes().startswith(b'\x89PNG')


def test_the_records_of_all_files_are_the_same(finished: Path) -> None:
    files = contents(finished)
    dynamics = files['.pt']['output']['dynamics']
    assert dynamics == files['log'] == files['_t24.pt']['resume']['dynamics'] == load_run(finished).dynamics
    assert [record['t'] for record in dynamics] == init.print_times(24, 10, 2)
    assert all(list(record) == RECORD for record in dynamics)
    assert all(type(x) is (int if name == 't' else float) for record in dynamics for name, x in record.items())
    assert [record['seconds'] for record in dynamics] == sorted(record['seconds'] for record in dynamics)
    for record in dynamics:
        assert files.get(f'_t{record["t"]}.pt', {'state': record})['state'] == record


def test_saved_weights_have_the_names_of_the_model(finished: Path) -> None:
    files, names = contents(finished), list(init.init_model(tiny()).state_dict())
    saved = [files['.pt']['model'], files['.pt']['best']['model']]
    saved += [content['model'] for end, content in files.items() if end.startswith('_t')]
    for weights in saved:
        assert list(weights) == names and not any('_orig_mod' in name for name in names)
        assert all(tensor.device.type == 'cpu' and not tensor.requires_grad for tensor in weights.values())


def test_checkpoints_share_no_memory_with_the_model() -> None:
    trainer = make_trainer(tiny())
    trainer.record()
    before = trainer.weights()
    stored = [trainer.checkpoint()['model'], trainer.best['model'], before]
    copies = [{name: tensor.clone() for name, tensor in weights.items()} for weights in stored]
    trainer.update()
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.weights().items())
    for weights, copy in zip(stored, copies, strict=True):
        assert all(torch.equal(weights[name], copy[name]) for name in copy)


def test_only_the_newest_checkpoint_carries_what_resuming_needs(tmp_path: Path) -> None:
    """And while the run lasts the one before it is kept whole beside."""
    train_until(tiny(tmp_path / 'run'), 20)
    files = RunFiles(tmp_path / 'run')
    assert [step for step in files.steps() if 'resume' in load(files.checkpoint(step))] == [20]
    previous = load(files.previous)
    assert previous['step'] == 16 and previous['resume']['dynamics'][-1]['t'] == 16


def test_a_record_is_in_the_log_as_soon_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, lengths = RunFiles.append_record, []

    def watched(self: RunFiles, record: Record) -> None:
        append(self, record)
        lengths.append(len(read_log(self)))

    monkeypatch.setattr(RunFiles, 'append_record', watched)
    train(tiny(tmp_path / 'run'))
    assert lengths == list(range(1, len(init.print_times(24, 10, 2)) + 1))


# ---------------------------------------------------------------------- which files are a run's


def test_other_runs_in_the_same_folder_are_left_alone(tmp_path: Path) -> None:
    """Also those whose names begin alike, or look like a pattern."""
    for name in ('run', 'run_1', 'run2', 'ru.', '.run'):
        train(tiny(tmp_path / name, max_iters=2))
    (tmp_path / 'run_t3.pt.bak').write_text('mine')
    (tmp_path / 'run_tx.pt').write_text('mine')
    (tmp_path / 'run_t01.pt').write_text('mine')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    RunFiles(tmp_path / 'run').remove()
    gone = {'run.pt', 'run_config.pt', 'run_log.jsonl', *(f'run_t{step}.pt' for step in (0, 1, 2))}
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {name: x for name, x in before.items() if name not in gone}


def test_a_run_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / 'run')
    files.config.touch()
    busy = pytest.raises(BusyError, match='is being trained by another process: wait, or use another')
    with files.claim(), busy, RunFiles(tmp_path / 'run').claim():
        pass
    with files.claim():
        files.config.unlink()  # as a process that begins the run again does: it is busy, not missing
        with busy, RunFiles(tmp_path / 'run').claim():
            pass


def test_restarting_removes_all_files_of_a_run_and_its_leftovers(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / 'copy')
    files = RunFiles(tmp_path / 'copy' / 'run')
    files.curves.mkdir()
    files.previous.touch()
    leftovers = [files.folder / f'.{name}.tmp-7' for name in ('run.pt', 'run_t4.pt', 'run_t123.pt', 'run_log.jsonl')]
    for path in [*leftovers, files.folder / '.run_other.pt.tmp-7', files.folder / 'notes.txt']:
        path.touch()
    assert sorted(files.leftovers()) == sorted(leftovers)
    files.remove()
    assert sorted(path.name for path in files.folder.iterdir()) == ['.run_other.pt.tmp-7', 'notes.txt']
