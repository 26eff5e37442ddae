"""The files of a run: what is in them, how they are written and read, and that a stored model is the one measured."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO

import pytest
import torch
from small_runs import contents, make_trainer, quiet, read_log, tiny, train
from torch import Tensor, nn

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.runs.files import Record, RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.runs.storage import UnreadableFileError, atomic_write, load, save
from RLM_clean.training import lifecycle, loop
from RLM_clean.training.signals import Interruption

RECORD = ['t', 'trainloss', 'testloss', 'testacc', 'excess', 'lr', 'seconds']

# One run of every kind that a user can ask for.
CLM: dict[str, Any] = {'model': 'transformer_clm'}
KINDS: dict[str, dict[str, Any]] = {
    'default': {},
    'one level': {'num_layers': 1},
    'two blocks and heads': {'depth': 2, 'num_heads': 2, 'dropout': 0.2},
    'clm': CLM,
    'all tokens': {**CLM, 'objective': 'all', 'tie_weights': True},
    'fewer tokens': {'num_layers': 3, 'num_tokens': 5},
    'all of fewer tokens': {**CLM, 'objective': 'all', 'num_layers': 3, 'num_tokens': 5},
    'rhm': {'dataset': 'rhm', 'num_synonyms': 3, 'num_layers': 3},
    'fcn': {'model': 'fcn', 'depth': 2},
    'fcn of one-hot': {'model': 'fcn', 'input_format': 'onehot', 'whitening': 1},
    'whitened': {'input_format': 'onehot', 'whitening': 1},
    'one-hot': {'input_format': 'onehot', 'tie_weights': True},
    'offline': {'regime': 'offline', 'train_size': 20, 'accumulation': 2, 'optim': 'adam'},
    'bfloat16': {'dtype': 'bfloat16'},
    'decay and clip': {'weight_decay': 0.1, 'grad_clip': 0.5, 'scheduler': 'none', 'beta': 0},
}


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
    assert set(files['_config.pt']) == {'config', 'machine', 'rules', 'entropy', 'marginal', 'floors'}
    assert set(files['.pt']) == {'config', 'output', 'model', 'best'}
    assert set(files['.pt']['output']) >= {'entropy', 'marginal', 'floors', 'dynamics', 'step'}
    assert set(files['.pt']['best']) == {'step', 'loss', 'model'}
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


def test_without_checkpoints_only_the_last_and_the_best_model_are_kept(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', checkpoints=False))
    train(tiny(tmp_path / 'with'))
    names = ['run.pt', 'run_config.pt', 'run_log.jsonl']
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('run')) == names
    run, other = load_run(tmp_path / 'run'), load_run(tmp_path / 'with')
    assert run.steps == [] and run.done and len(run.dynamics) == len(other.dynamics)
    for step in (None, 24, 'best'):
        for a, b in zip(run.model(step).parameters(), other.model(step).parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match='step=1 has no checkpoint'):
        run.model(1)


# ---------------------------------------------------------------------- opening a run


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_that_is_opened_gives_its_recorded_test_loss_again(tmp_path: Path, kind: str) -> None:
    """To 1e-6, and the accuracy, at every step with a checkpoint; so every kind of run trains, is saved and opens."""
    config = tiny(tmp_path / 'run', **KINDS[kind])
    outcome = train(config)
    run = load_run(tmp_path / 'run')
    assert run.config == config and run.done and run.dynamics == outcome.dynamics
    records = {record['t']: record for record in run.dynamics}
    assert run.steps == init.save_times(config.last_step, 2)
    for step in run.steps:
        model = run.model(step)
        assert not any(module.training for module in model.modules())
        loss, accuracy = measures.test(model, *run.test_batch(step), run.logits)
        assert loss == pytest.approx(records[step]['testloss'], abs=1e-6)
        assert accuracy == pytest.approx(records[step]['testacc'], abs=1e-9)
    best = min(run.dynamics, key=lambda record: record['testloss'])
    loss, _ = measures.test(run.model('best'), *run.test_batch(best['t']), run.logits)
    assert run.best_step == best['t'] and loss == pytest.approx(best['testloss'], abs=1e-6)


def test_the_last_model_is_opened_by_default(finished: Path) -> None:
    run = load_run(str(finished))
    final = torch.load(f'{finished}.pt', weights_only=True)['model']
    for step in (None, 24):
        assert all(torch.equal(tensor, final[name]) for name, tensor in run.model(step).state_dict().items())
    for absent in (7, -1, 'last'):
        with pytest.raises(ValueError, match=f'step={absent!r} has no checkpoint: use one of'):
            run.model(absent)


@pytest.mark.parametrize('dataset', ('rlm', 'rhm'))
def test_the_language_of_a_run_has_the_rules_of_its_file(tmp_path: Path, dataset: str) -> None:
    """Also where this version of the library would draw others from the seed."""
    config = tiny(tmp_path / 'run', dataset=dataset, num_synonyms=3)
    train(config)
    path = RunFiles(config.outname).config
    run = load_run(config.outname)
    grammar: TreeGrammar = RLM(8, 2, 2.0, 12345, 67890) if dataset == 'rlm' else RHM(8, 3, 2, 12345, 67890)
    assert torch.equal(torch.stack(run.rlm.rules), torch.stack(grammar.rules))
    assert torch.equal(run.rlm.batch(3, 64, 'test')[0], run.test_batch(3)[0])
    if dataset == 'rlm':
        assert isinstance(run.rlm, RLM) and torch.equal(load(path)['rules'], run.rlm.rules[0])
    other = load(path)
    other['rules'] = other['rules'].flip(-1).contiguous()
    save(other, path)
    resumed = lifecycle.prepare_language(config, torch.device('cpu'), load(path), quiet).grammar
    for opened in (load_run(config.outname).rlm, resumed):
        assert torch.equal(torch.stack(opened.rules), torch.stack(grammar.rules).flip(-1))


def test_a_run_that_was_moved_opens_where_it_is(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / 'moved')
    run = load_run(tmp_path / 'moved' / 'run')
    assert run.steps == load_run(finished).steps and run.config.outname == str(tmp_path / 'moved' / 'run')
    assert lifecycle.train(tiny(tmp_path / 'moved' / 'run', dropout=0.1, optim='adam'), quiet).status == 'complete'


def test_an_unfinished_run_opens_from_its_log(tmp_path: Path) -> None:
    trainer, files = _unfinished(tiny(tmp_path / 'run'), 12)
    run = load_run(tmp_path / 'run')
    assert not run.done and run.best_step is None
    assert run.dynamics == trainer.dynamics == read_log(files) and run.dynamics[-1]['t'] == 11
    assert run.steps == [0, 1, 2, 3, 4, 6, 8, 11, 12]
    assert all(torch.equal(tensor, trainer.weights()[name]) for name, tensor in run.model().state_dict().items())
    loss, _ = measures.test(run.model(11), *run.test_batch(11), run.logits)
    assert loss == pytest.approx(run.dynamics[-1]['testloss'], abs=1e-6)
    assert run.entropy is not None and run.floors is not None and run.entropy == run.floors[3][0]
    assert files.previous.exists()
    with pytest.raises(ValueError, match="step='best' has no checkpoint"):
        run.model('best')


def _unfinished(config: Config, stop: int) -> tuple[loop.Trainer, RunFiles]:
    """A run that was interrupted at a step."""
    trainer, files = make_trainer(config), RunFiles(config.outname)

    class Stop(Interruption):
        def requested(self) -> bool:
            return trainer.step == stop

    language = trainer.language
    save({'config': config.to_dict(), 'rules': language.rules(), **language.losses()}, files.config)
    assert not loop.run(trainer, files, Stop())
    return trainer, files


def test_a_run_that_was_just_begun_opens_without_records(tmp_path: Path) -> None:
    _, files = _unfinished(tiny(tmp_path / 'run'), 0)
    files.checkpoint(0).unlink()
    files.log.unlink()
    run = load_run(tmp_path / 'run')
    assert run.dynamics == [] and run.steps == [] and not run.done
    with pytest.raises(ValueError, match='step=None has no checkpoint'):
        run.model()


def test_only_the_newest_checkpoint_carries_what_resuming_needs(tmp_path: Path) -> None:
    """And while the run lasts the one before it is kept whole beside."""
    _, files = _unfinished(tiny(tmp_path / 'run'), 20)
    assert [step for step in files.steps() if 'resume' in load(files.checkpoint(step))] == [20]
    previous = load(files.previous)
    assert previous['step'] == 16 and previous['resume']['dynamics'][-1]['t'] == 16


def test_other_runs_in_the_same_folder_are_left_alone(tmp_path: Path) -> None:
    """Also those whose names begin alike, or look like a pattern."""
    for name in ('run', 'run_1', 'run2', 'ru.', '.run'):
        train(tiny(tmp_path / name, max_iters=2))
    (tmp_path / 'run_t3.pt.bak').write_text('mine')
    (tmp_path / 'run_tx.pt').write_text('mine')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    RunFiles(tmp_path / 'run').remove()
    gone = {'run.pt', 'run_config.pt', 'run_log.jsonl', *(f'run_t{step}.pt' for step in (0, 1, 2))}
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {name: x for name, x in before.items() if name not in gone}


# ---------------------------------------------------------------------- writing and reading


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / 'file.pt'
    save({'x': 1}, path)

    def fail(file: Any) -> None:
        file.write(b'half')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        atomic_write(path, fail)
    with pytest.raises(Exception, match='pickle'):
        save({'x': lambda: None}, path)
    assert load(path) == {'x': 1} and list(tmp_path.iterdir()) == [path]


def test_of_two_that_write_a_new_file_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / 'file'

    def write(file: BinaryIO) -> None:  # the other one comes while this one writes
        file.write(b'mine')
        path.write_bytes(b'theirs')

    with pytest.raises(FileExistsError):
        atomic_write(path, write, new=True)
    assert path.read_bytes() == b'theirs' and os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('errors', [{'link': errno.EPERM}, {}])
def test_a_new_file_is_written_with_and_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: dict[str, int]
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errors['link'], 'no links')

    if errors:
        monkeypatch.setattr(os, 'link', fail)
    atomic_write(tmp_path / 'file', lambda file: file.write(b'mine'), new=True)
    assert (tmp_path / 'file').read_bytes() == b'mine' and os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize(('error', 'swallowed'), [(errno.ENOLCK, True), (errno.ENOTSUP, True), (errno.EBADF, False)])
def test_only_a_file_system_without_locks_leaves_a_run_unlocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, swallowed: bool
) -> None:
    def fail(file: IO[bytes], operation: int) -> None:
        assert file.writable()  # NFS asks for it
        raise OSError(error, 'no lock')

    monkeypatch.setattr(fcntl, 'flock', fail)
    files = RunFiles(tmp_path / 'run')
    files.config.touch()
    with nullcontext() if swallowed else pytest.raises(OSError, match='no lock'), files.claim():
        pass


def test_a_compiled_run_opens_where_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(tmp_path / 'run'))
    files = RunFiles(tmp_path / 'run')
    content = files.load_config()
    save({**content, 'config': {**content['config'], 'compile': 'on'}}, files.config)
    monkeypatch.setattr('RLM_clean.config.can_compile', lambda device: False)
    assert load_run(tmp_path / 'run').done


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ('fsync', 'replace'):
        real = getattr(os, name)

        def watched(*arguments: Any, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(*arguments)

        monkeypatch.setattr(os, name, watched)
    save({'x': torch.ones(2)}, tmp_path / 'file.pt')
    assert done == ['fsync', 'replace']


def test_a_file_cut_anywhere_is_known_as_damaged(finished: Path, tmp_path: Path) -> None:
    whole = finished.with_name('run_t24.pt').read_bytes()
    path = tmp_path / 'cut.pt'
    for size in (0, 1, 2, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableFileError, match='cut short') as caught:
            load(path)
        assert caught.value.damaged and str(path) in str(caught.value)
    changed = bytearray(whole)
    with zipfile.ZipFile(finished.with_name('run_t24.pt')) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    changed[entry.header_offset + entry.file_size // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UnreadableFileError):
        load(path)


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / 'bad.pt', tmp_path / 'made'
    for content in ({'model': Malicious(made)}, Malicious(made), nn.Linear(1, 1), {'x': Path('x')}):
        for new_format in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
            with pytest.raises(UnreadableFileError, match='safe to read') as caught:
                load(path)
            assert not caught.value.damaged and not made.exists()


def test_a_record_is_in_the_log_as_soon_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, lengths = RunFiles.append_record, []

    def watched(self: RunFiles, record: Record) -> None:
        append(self, record)
        lengths.append(len(read_log(self)))

    monkeypatch.setattr(RunFiles, 'append_record', watched)
    train(tiny(tmp_path / 'run'))
    assert lengths == list(range(1, len(init.print_times(24, 10, 2)) + 1))
