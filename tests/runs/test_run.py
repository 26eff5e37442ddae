"""Runs opened from their files: the models, the records and the language are those of the run."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted_runs import train_until
from small_runs import quiet, tiny, train
from torch import nn

from RLM_clean import init, measures
from RLM_clean.config import Config
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.runs import Run, UnreadableFileError, load_run
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.storage import load, save
from RLM_clean.training import lifecycle, machine

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
    'zipf': {'dataset': 'rhm', 'num_synonyms': 3, 'num_layers': 3, 'zipf': 0.5, 'zipf_levels': '0,2'},
    'fcn': {'model': 'fcn', 'depth': 2},
    'fcn of one-hot': {'model': 'fcn', 'input_format': 'onehot', 'whitening': 1},
    'whitened': {'input_format': 'onehot', 'whitening': 1},
    'one-hot': {'input_format': 'onehot', 'tie_weights': True},
    'offline': {'regime': 'offline', 'train_size': 20, 'accumulation': 2, 'optim': 'adam'},
    'bfloat16': {'dtype': 'bfloat16'},
    'decay and clip': {'weight_decay': 0.1, 'grad_clip': 0.5, 'scheduler': 'none', 'beta': 0},
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The name of a finished run."""
    outname = tmp_path_factory.mktemp('finished') / 'run'
    train(tiny(outname, dropout=0.1, optim='adam'))
    return outname


def test_a_printed_run_says_what_it_is_and_how_far_it_is(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    options = 'num_features=8 num_layers=2 batch_size=8 test_size=64 embedding_dim=8 dropout=0.1 optim=adam '
    options += 'max_iters=24 print_freq=10'  # not where it was computed
    last = run.dynamics[-1]
    end = f'floor {run.entropy:.4f}, excess {last["excess"]:.4f} (nats)'
    assert str(run) == repr(run) == f"Run('{finished}'): {options}; step 24 of 24, done; {end}"
    train_until(tiny(tmp_path / 'run'), 12)
    assert 'step 11 of 24, not finished; floor' in str(load_run(tmp_path / 'run'))
    train(tiny(tmp_path / 'early', loss_threshold=1e9, max_iters=1000))
    early = load_run(tmp_path / 'early')
    assert f'step {early.dynamics[-1]["t"]} of 1000, stopped early' in str(early)
    RunFiles(tmp_path / 'run').log.unlink()
    assert str(load_run(tmp_path / 'run')).endswith(f'step 0 of 24, not finished; floor {run.entropy:.4f} (nats)')


@pytest.mark.parametrize('kind', KINDS)
def test_a_model_that_is_opened_gives_its_record_again(tmp_path: Path, kind: str) -> None:
    """Loss, accuracy and excess at every step with a checkpoint; so every kind of run trains, is saved and opens."""
    config = tiny(tmp_path / 'run', **KINDS[kind])
    outcome = train(config)
    run = load_run(tmp_path / 'run')
    assert run.config == config and run.done and run.dynamics == outcome.dynamics
    assert run.steps == init.save_times(config.last_step, 2)
    for step in run.steps:
        model = run.model(step)
        assert not any(module.training for module in model.modules())
        _check_record(run, model, step)
    best = min(run.dynamics, key=lambda record: record['excess'])
    assert run.best_step == best['t']
    _check_record(run, run.model('best'), best['t'])


def _check_record(run: Run, model: nn.Module, step: int) -> None:
    found = run.reference_at(step).evaluate(model, run.logits)
    record = next(record for record in run.dynamics if record['t'] == step)
    assert record['testloss'] == pytest.approx(run.reference.floor()[0] + found.excess, abs=1e-6)
    assert found.accuracy == pytest.approx(record['testacc'], abs=1e-9)
    assert found.excess == pytest.approx(record['excess'], abs=1e-6)


def test_the_excess_of_a_record_is_that_of_its_model_as_a_function(finished: Path) -> None:
    """What `excess_loss` says of a function that knows nothing of runs."""
    run = load_run(finished)
    for step in (0, None):
        model = run.model(step)
        excess, error = measures.excess_loss(lambda inputs, model=model: model(inputs), run.rlm)  # type: ignore[misc]
        assert excess == pytest.approx(run.dynamics[0 if step == 0 else -1]['excess'], abs=1e-6) and error == 0


def test_the_best_step_of_a_run_of_the_first_version_is_that_of_its_file(finished: Path, tmp_path: Path) -> None:
    """Its `best` has no excess: it was chosen by the test loss."""
    shutil.copytree(finished.parent, tmp_path / 'old')
    files = RunFiles(tmp_path / 'old' / 'run')
    content = load(files.final)
    content['best'] = {'step': 2, 'loss': 1.0, 'model': load(files.checkpoint(2))['model']}
    save(content, files.final)
    run = load_run(files.outname)
    assert run.best_step == 2
    assert all(torch.equal(x, run.model(2).state_dict()[name]) for name, x in run.model('best').state_dict().items())


def test_test_batches_are_fresh_sequences_of_the_test_stream(finished: Path) -> None:
    run = load_run(finished)
    inputs, targets = run.test_batch(3)
    assert inputs.shape == (64, 3) and targets.shape == (64,)
    assert all(torch.equal(x, y) for x, y in zip(run.test_batch(3), (inputs, targets), strict=True))
    assert not torch.equal(run.test_batch(4)[0], inputs)
    loss, _ = measures.test(run.model(), *run.test_batch(24), run.logits)
    # 64 sequences scatter about the expectation by about 0.15: this is wrong by chance once in 10^6.
    assert loss == pytest.approx(run.dynamics[-1]['testloss'], abs=0.75)


def test_a_run_is_opened_by_the_file_that_it_names_at_its_end(finished: Path) -> None:
    run = load_run(f'{finished}.pt')
    assert run.files.outname == finished and run.config.outname == str(finished)


def test_the_folder_of_a_sweep_is_no_run(tmp_path: Path) -> None:
    (tmp_path / 'sweep.json').touch()
    with pytest.raises(ValueError, match=r'it is the folder of a sweep, which sweep\.load opens'):
        load_run(tmp_path)


def test_the_options_of_a_run_that_began_anew_do_not_begin_it_anew(tmp_path: Path) -> None:
    for resume in ('auto', 'restart'):
        train(tiny(tmp_path / 'run', max_iters=4, resume=resume))
    longer = dataclasses.replace(load_run(tmp_path / 'run').config, max_iters=8)
    said: list[str] = []
    train(longer, say=said.append)
    assert any('going on from step 4' in line for line in said)


def test_the_last_model_is_opened_by_default(finished: Path) -> None:
    run = load_run(str(finished))
    final = torch.load(f'{finished}.pt', weights_only=True)['model']
    for step in (None, 24):
        assert all(torch.equal(tensor, final[name]) for name, tensor in run.model(step).state_dict().items())
    absences: tuple[Any, ...] = (7, -1, 'last', 1.5)
    for absent in absences:
        with pytest.raises(ValueError, match=f'step={absent!r} has no checkpoint: use one of'):
            run.model(absent)


def test_a_step_may_be_a_number_of_numpy(finished: Path) -> None:
    """As an index of a data frame gives it."""
    run = load_run(finished)
    for step in run.steps:
        expected = run.model(step).state_dict()
        found = run.model(np.int64(step)).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize('dataset', ('rlm', 'rhm'))
def test_the_language_of_a_run_has_the_rules_of_its_file(tmp_path: Path, dataset: str) -> None:
    """Also where this version of the library would draw others from the seed."""
    config = tiny(tmp_path / 'run', dataset=dataset, num_synonyms=3)
    train(config)
    path = RunFiles(config.outname).config
    run = load_run(config.outname)
    grammar: TreeGrammar = RLM(8, 2, 2.0, 12345, 67890) if dataset == 'rlm' else RHM(8, 3, 2, 12345, 67890)
    assert torch.equal(torch.stack(run.rlm.rules), torch.stack(grammar.rules))
    if dataset == 'rlm':
        assert isinstance(run.rlm, RLM) and torch.equal(load(path)['rules'], run.rlm.rules[0])
    other = load(path)
    other['rules'] = other['rules'].flip(-1).contiguous()
    save(other, path)
    RunFiles(config.outname).final.unlink()
    with lifecycle.claim(config, quiet) as active:
        resumed = active.language().grammar
    for opened in (load_run(config.outname).rlm, resumed):
        assert torch.equal(torch.stack(opened.rules), torch.stack(grammar.rules).flip(-1))


def test_a_run_that_was_moved_opens_where_it_is(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / 'moved')
    run = load_run(tmp_path / 'moved' / 'run')
    assert run.steps == load_run(finished).steps and run.config.outname == str(tmp_path / 'moved' / 'run')
    assert train(tiny(tmp_path / 'moved' / 'run', dropout=0.1, optim='adam')).status == 'complete'


def test_an_unfinished_run_opens_from_its_log(tmp_path: Path) -> None:
    outcome = train_until(tiny(tmp_path / 'run'), 12)
    run = load_run(tmp_path / 'run')
    assert not run.done and run.best_step is None
    assert run.dynamics == outcome.dynamics and run.dynamics[-1]['t'] == 11
    assert run.steps == [0, 1, 2, 3, 4, 6, 8, 11, 12]
    newest = load(run.files.checkpoint(12))['model']
    assert all(torch.equal(tensor, newest[name]) for name, tensor in run.model().state_dict().items())
    _check_record(run, run.model(11), 11)
    assert run.entropy == outcome.entropy == run.floors[3][0]
    with pytest.raises(ValueError, match="step='best' has no checkpoint"):
        run.model('best')


def test_a_run_that_was_just_begun_opens_without_records(tmp_path: Path) -> None:
    train_until(tiny(tmp_path / 'run'), 0)
    files = RunFiles(tmp_path / 'run')
    files.checkpoint(0).unlink()
    files.log.unlink()
    run = load_run(tmp_path / 'run')
    assert run.dynamics == [] and run.steps == [] and not run.done
    with pytest.raises(ValueError, match='step=None has no checkpoint'):
        run.model()


def test_a_run_without_files_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'has no file .*run_config.pt: give the path of a run'):
        load_run(tmp_path / 'run')


def test_without_checkpoints_only_the_last_and_the_best_model_are_kept(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', checkpoints=False))
    train(tiny(tmp_path / 'with'))
    names = ['run.pt', 'run_config.pt', 'run_log.jsonl', 'run_t24.pt']  # from the last one it can be made longer
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('run')) == names
    run, other = load_run(tmp_path / 'run'), load_run(tmp_path / 'with')
    assert run.steps == [24] and run.done and len(run.dynamics) == len(other.dynamics)
    for step in (None, 24, 'best'):
        for a, b in zip(run.model(step).parameters(), other.model(step).parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match='step=1 has no checkpoint'):
        run.model(1)


def test_a_run_of_another_machine_opens_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a cluster, on a laptop without its GPU, its compiler, its memory and its packages."""
    train(tiny(tmp_path / 'run'))
    files = RunFiles(tmp_path / 'run')
    cluster = {'device': 'cuda:3', 'compile': 'on', 'tensorboard': True, 'threads': '64', 'batch_size': 2**40}
    content = files.load_config()
    save({**content, 'config': {**content['config'], **cluster}}, files.config)
    monkeypatch.setattr(machine, 'can_compile', lambda device: False)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    run = load_run(tmp_path / 'run')
    assert run.done and run.config.compile == 'on' and run.config.device == 'cpu'
    _check_record(run, run.model(), 24)


def test_a_run_of_a_model_that_is_not_registered_says_what_to_do(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run'))
    files = RunFiles(tmp_path / 'run')
    content = files.load_config()
    save({**content, 'config': {**content['config'], 'model': 'mine'}}, files.config)
    with pytest.raises(UnreadableFileError, match=r"run_config.pt has .*model='mine'.* by init.register_model"):
        load_run(tmp_path / 'run')


# ---------------------------------------------------------------------- as a data frame


def test_a_frame_has_a_row_for_each_record_and_says_what_its_columns_are(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', bp_records=True))
    run = load_run(tmp_path / 'run')
    frame = run.to_pandas()
    assert frame.index.name == 't' and list(frame.index) == [record['t'] for record in run.dynamics]
    assert list(frame)[:6] == ['trainloss', 'testloss', 'testacc', 'excess', 'lr', 'seconds']
    for name in list(frame)[:6]:
        assert list(frame[name]) == [record[name] for record in run.dynamics]
    assert [list(row) for row in frame[['bp_0', 'bp_1', 'bp_2']].to_numpy()] == [r['bp'] for r in run.dynamics]
    about = frame.attrs
    assert about['units'] == dict.fromkeys(('trainloss', 'testloss', 'excess', 'bp_0', 'bp_1', 'bp_2'), 'nat') | {
        'seconds': 's'
    }
    assert about['long_names'].keys() == {'t', *frame} and about['long_names']['testacc'] == 'accuracy'
    assert (about['run'], about['entropy'], about['floors']) == (str(tmp_path / 'run'), run.entropy, run.floors)
    assert Config(**about['config']) == run.config


def test_a_run_that_has_just_begun_is_a_frame_without_rows(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run'))
    files = RunFiles(tmp_path / 'run')
    files.final.unlink()
    files.log.unlink()
    frame = load_run(tmp_path / 'run').to_pandas()
    assert len(frame) == 0 and 'excess' in frame and frame.index.name == 't'


def test_without_pandas_a_run_opens_and_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(tmp_path / 'run', max_iters=2))
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ModuleNotFoundError, match=r'^to_pandas needs pandas, .*: pip install -e "\.\[pandas\]"$'):
        load_run(tmp_path / 'run').to_pandas()
