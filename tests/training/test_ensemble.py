"""Runs that are trained together: the files, batches and weights that they would have alone, losses to rounding."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from small_runs import contents, make_trainer, quiet, tiny, train
from step_kinds import FROZEN, frozen_trainer, moved
from torch import nn

from RLM_clean.config import Config
from RLM_clean.runs.files import RunFiles
from RLM_clean.runs.run import load_run
from RLM_clean.sweep.plan import OWN_OPTIONS
from RLM_clean.training import compiler, ensemble, loop, machine
from RLM_clean.training.ensemble import Ensemble, fitting, group_size
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import DivergedError

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

# Runs that differ in all that runs of a group may differ in.
DIFFERENT: tuple[dict[str, Any], ...] = (
    {},
    {'beta': 0.5, 'seed_rules': 1, 'lr': 0.01},
    {'seed_sample': 2, 'momentum': 0.5, 'lr': 0.02},
    {'seed_model': 3, 'beta': 4.0, 'lr': 0.05},
)
Results = dict[str, Outcome | Exception]


def group(folder: Path, **options: Any) -> list[Config]:
    """Four runs, each in a folder of its own."""
    return [tiny(folder / str(i) / 'run', **{'lr': 0.03, **options, **other}) for i, other in enumerate(DIFFERENT)]


def train_together(configs: list[Config], say: Any = quiet) -> Results:
    with mock.patch('RLM_clean.plots.save_learning_curve'):
        return {config.outname: result for config, result in ensemble.train(configs, say)}


def statuses(results: Results) -> list[str]:
    return [result.status if isinstance(result, Outcome) else repr(result) for result in results.values()]


def assert_agree(alone: Config, together: Config, rel: float = 1e-4) -> None:
    """The records are the same to rounding, and there are the same files."""
    a, b = contents(alone.outname), contents(together.outname)
    assert list(a) == list(b)
    for one, other in zip(a['log'], b['log'], strict=True):
        assert list(one) == list(other)
        assert one['t'] == other['t'] and one['lr'] == other['lr']
        for name in ('trainloss', 'testloss'):
            assert other[name] == pytest.approx(one[name], rel=rel)
        assert other['excess'] == pytest.approx(one['excess'], rel=1e-2, abs=1e-4)


# ---------------------------------------------------------------------- what a group trains


def slow(**options: Any) -> Any:
    return pytest.param(options, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'options',
    (
        {'grad_clip': 0.1, 'dropout': 0.1, 'depth': 2, 'num_heads': 2},
        {'optim': 'adam', 'regime': 'offline', 'train_size': 100, 'accumulation': 2},
        slow(optim='adam'),
        slow(num_layers=1, weight_decay=0.1),
        slow(model='transformer_clm', objective='all'),
        slow(model='fcn'),
        slow(dataset='rhm', num_synonyms=2, checkpoints=False),
    ),
)
def test_runs_of_a_group_write_the_files_of_lone_runs(tmp_path: Path, options: dict[str, Any]) -> None:
    alone, together = group(tmp_path / 'alone', **options), group(tmp_path / 'together', **options)
    assert statuses(train_together(together)) == ['done'] * 4
    for one, other in zip(alone, together, strict=True):
        train(one)
        assert_agree(one, other)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('optim', ('sgd', 'adam'))
def test_losses_of_500_compiled_steps_are_those_of_lone_runs(optim: str) -> None:
    """Step by step, with batches that are the same bit for bit."""
    configs = group(Path('unused'), optim=optim, num_layers=1, max_iters=500)
    if optim == 'adam':
        configs = [replace(config, lr=config.lr / 10) for config in configs]
    alone, together = ([make_trainer(config) for config in configs] for _ in range(2))
    for a, b in zip(alone, together, strict=True):
        for step in (0, 127, 300):
            for x, y in zip(a.feed(step), b.feed(step), strict=True):
                assert torch.equal(x, y)
    stacked = Ensemble(together, compile=True)
    while together[0].step < 500:
        assert stacked.advance(min(loop.WINDOW, 500 - together[0].step)) == {}
    for a, b in zip(alone, together, strict=True):
        a.advance(500)
        assert len(b.since_record) == 500
        assert b.since_record == pytest.approx(a.since_record, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_losses_of_captured_steps_are_those_of_lone_runs() -> None:
    configs = group(Path('unused'), optim='adam', device='cuda', compile='off', max_iters=200)
    alone, together = ([make_trainer(config) for config in configs] for _ in range(2))
    stacked = Ensemble(together, compile=True)
    while together[0].step < 200:
        assert stacked.advance(min(loop.WINDOW, 200 - together[0].step)) == {}
    for a, b in zip(alone, together, strict=True):
        a.advance(200)
        assert b.since_record == pytest.approx(a.since_record, rel=1e-3)


@pytest.mark.parametrize(
    ('shared', 'own'),
    (
        (
            {'dataset': 'rhm'},
            {'num_synonyms': (2, 3), 'zipf': (0.0, 1.0), 'zipf_levels': ('all', '0'), 'filtered': (-1, 1)},
        ),
        ({'dataset': 'unambiguous'}, {'sigma': (0.5, 1.0)}),
        ({'regime': 'offline', 'max_epochs': 8, 'max_iters': 99}, {'train_size': (24, 64)}),
        ({'objective': 'masked', 'model': 'transformer_bert'}, {'mask_rate': (0.0, 0.5)}),
        ({'objective': 'denoise', 'model': 'transformer_bert'}, {'noise': (0.0, 0.5)}),
    ),
    ids=('rhm', 'unambiguous', 'offline', 'masked', 'denoise'),
)
def test_a_group_may_vary_the_options_of_languages_data_and_tasks(
    tmp_path: Path, shared: dict[str, Any], own: dict[str, tuple[Any, Any]]
) -> None:
    """Those that change no shape; here also runs of different lengths, 24 and 64 steps."""
    assert own.keys() <= OWN_OPTIONS
    alone, together = (
        [
            tiny(tmp_path / name / str(i) / 'run', **shared, **{o: values[i] for o, values in own.items()})
            for i in range(2)
        ]
        for name in ('alone', 'together')
    )
    assert statuses(train_together(together)) == ['done'] * 2
    for one, other in zip(alone, together, strict=True):
        train(one)
        assert_agree(one, other)


def test_what_is_not_trained_stays_that_of_each_run() -> None:
    """Two runs with frozen embeddings of their own."""
    configs = [tiny(seed_model=seed, optim='adam', lr=0.01, weight_decay=0.1) for seed in (1, 2)]
    alone, together = ([frozen_trainer(config) for config in configs] for _ in range(2))
    Ensemble(together, compile=False).advance(40)
    for one, other in zip(alone, together, strict=True):
        one.advance(40)
        assert moved(other.model, other.config) == set(other.model.state_dict()) - {FROZEN}
        assert other.since_record == pytest.approx(one.since_record, rel=1e-4)


# ---------------------------------------------------------------------- runs that end, fail and go on


def test_an_interrupted_group_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice; the second time, one of them has gone on alone to its end in the meantime."""
    whole, stopped = group(tmp_path / 'whole'), group(tmp_path / 'stopped')
    train_together(whole)
    for stop in (5, 13):
        advance = Ensemble.advance

        def until(self: Ensemble, steps: int, interrupted: Any, stop: int = stop, advance: Any = advance) -> Any:
            trainer = next(iter(self.active.values()))
            result = advance(self, min(steps, stop - trainer.step) if trainer.step < stop else steps, lambda: False)
            if trainer.step >= stop:
                interrupted.__self__.name = 'SIGTERM'
            return result

        monkeypatch.setattr(Ensemble, 'advance', until)
        assert set(statuses(train_together(stopped))) == {'interrupted'}
        monkeypatch.undo()
    train(stopped[1])
    assert statuses(train_together(stopped)) == ['complete', 'done', 'done', 'done']
    for one, other in zip(whole, stopped, strict=True):
        assert_agree(one, other)


def test_runs_at_different_steps_take_the_steps_that_they_would_take_alone() -> None:
    """Each has the batches, the learning rates, the dropout masks and the counts of adam of its own step."""
    options: dict[str, Any] = {'optim': 'adam', 'dropout': 0.2, 'lr': 0.01, 'warmup_time': 30, 'decay_time': 60}
    configs = [tiny(seed_model=seed, **options) for seed in (1, 2)]
    alone, together = ([make_trainer(config) for config in configs] for _ in range(2))
    for trainers in (alone, together):
        trainers[0].advance(8)
    Ensemble(together, compile=False).advance(8)
    for one, other, end in zip(alone, together, (16, 8), strict=True):
        one.advance(end)
        assert other.step == end
        assert other.since_record == pytest.approx(one.since_record, rel=1e-4)


def test_a_signal_during_the_set_up_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the set-up of one of them."""
    configs = group(tmp_path)

    def make(*arguments: Any) -> loop.Trainer:
        trainer = loop.make_trainer(*arguments)
        if trainer.config == configs[1]:
            signal.raise_signal(signal.SIGTERM)
        return trainer

    monkeypatch.setattr(ensemble, 'make_trainer', make)
    assert set(statuses(train_together(configs))) == {'interrupted'}
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_each_run_stops_early_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'WINDOW', 8)
    configs = group(tmp_path, max_iters=60)
    configs[1] = replace(configs[1], loss_threshold=10.0)
    results = train_together(configs)
    ends = [(result.status, result.step) for result in results.values() if isinstance(result, Outcome)]
    assert ends == [('stopped early', 8)] + [('done', 60)] * 3
    alone = tiny(tmp_path / 'alone', **{'max_iters': 60, 'loss_threshold': 10.0, **DIFFERENT[1]})
    train(alone)
    a, b = load_run(alone.outname), load_run(configs[1].outname)
    assert a.steps == b.steps
    assert b.dynamics[-1]['testloss'] == pytest.approx(a.dynamics[-1]['testloss'], rel=1e-5)


def test_a_run_that_diverges_stops_no_other(tmp_path: Path) -> None:
    configs = group(tmp_path / 'together', scheduler='none')
    configs[2] = replace(configs[2], lr=1e30)
    results = train_together(configs)
    assert isinstance(results.pop(configs[2].outname), DivergedError)
    assert statuses(results) == ['done'] * 3
    alone = group(tmp_path / 'alone', scheduler='none')[3]
    train(alone)
    assert_agree(alone, configs[3])


def test_a_run_that_cannot_begin_stops_no_other(tmp_path: Path) -> None:
    """Files of other options; a folder that is a file."""
    configs = group(tmp_path)
    train(replace(configs[0], test_size=99))
    (tmp_path / '1').write_text('')
    results = train_together(configs)
    assert [type(results[config.outname]) for config in configs] == [ValueError, ValueError, Outcome, Outcome]
    assert statuses(results)[2:] == ['done'] * 2


def test_a_run_whose_files_cannot_be_written_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = group(tmp_path)
    save = RunFiles.save_checkpoint

    def fail(self: RunFiles, content: dict[str, Any], *rest: Any) -> None:
        if str(self.outname) == configs[1].outname and content['step'] == 4:
            raise OSError('no space left')
        save(self, content, *rest)

    monkeypatch.setattr(RunFiles, 'save_checkpoint', fail)
    results = train_together(configs)
    assert isinstance(results.pop(configs[1].outname), OSError)
    assert statuses(results) == ['done'] * 3


# ---------------------------------------------------------------------- compilation


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError('C++ compile error\nmany lines')

    monkeypatch.setattr(compiler, '_programs', {})
    monkeypatch.setattr(compiler, '_compile', fail)
    monkeypatch.setattr(machine, '_STEPS_TO_COMPILE', 1)
    monkeypatch.setattr(machine, 'can_compile', lambda device: True)


def test_a_group_that_could_not_be_compiled_says_so_in_its_files(tmp_path: Path, broken_compiler: None) -> None:
    lines: list[str] = []
    configs = group(tmp_path)
    assert statuses(train_together(configs, lines.append)) == ['done'] * 4
    assert lines.count('the step could not be compiled (C++ compile error): the runs go on without') == 1
    for config in configs:
        files = RunFiles(config.outname)
        assert files.load_config()['machine']['compile'] is False
        assert files.load_final()['output']['machine']['compile'] is False


def test_a_group_that_must_be_compiled_and_cannot_writes_nothing(tmp_path: Path, broken_compiler: None) -> None:
    configs = group(tmp_path, compile='on')
    for result in train_together(configs).values():
        assert isinstance(result, ValueError)
        assert str(result) == "compile='on' fails (C++ compile error): use auto or off"
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_compiled_group_says_so_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that returns the graph as it is."""
    monkeypatch.setattr(compiler, '_programs', {})
    monkeypatch.setattr(compiler, '_compile', lambda graph, example: graph)
    monkeypatch.setattr(machine, 'can_compile', lambda device: True)
    configs = group(tmp_path, compile='on')
    assert statuses(train_together(configs)) == ['done'] * 4
    assert all(RunFiles(config.outname).load_config()['machine']['compile'] for config in configs)


def test_models_that_cannot_be_stacked_are_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loop.make_trainer

    def with_buffer(*arguments: Any) -> loop.Trainer:
        trainer = build(*arguments)
        nn.Module.register_buffer(trainer.model, 'table', torch.zeros(3))
        return trainer

    monkeypatch.setattr(ensemble, 'make_trainer', with_buffer)
    for result in train_together(group(tmp_path)).values():
        assert isinstance(result, ValueError)
        assert 'cannot be trained in a group (MLM has buffers' in str(result)
        assert str(result).endswith('train its runs one by one')


# ---------------------------------------------------------------------- how many runs make a group


def test_the_size_of_a_group_is_bounded_by_memory_and_by_the_cache() -> None:
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    config = Config(outname='x', num_features=32)
    assert [group_size(replace(config, num_layers=L, num_tokens=2**L), cpu, 8e9) for L in (1, 2, 3, 6)] == [8, 7, 4, 1]
    assert group_size(config, gpu, 8e9) == group_size(config, gpu, math.inf) == 256
    assert group_size(config, torch.device('mps'), 8e9) == 1
    large = replace(config, num_features=512)
    assert group_size(large, cpu, 1e9) == fitting(large, 1e9) == 1


def test_what_fits_is_what_a_run_needs_in_memory() -> None:
    config = Config(outname='x', num_features=256, num_layers=3)
    need = sum(need.size for need in machine.memory_needs(config))
    assert [fitting(config, n * need) for n in (0.5, 1, 3.5)] == [1, 1, 3]
