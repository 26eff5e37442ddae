"""Runs that are trained together: the files, batches and weights that they would have alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from small_runs import contents, difference, make_trainer, quiet, tiny, train

from RLM_clean.config import Config
from RLM_clean.runs.run import load_run
from RLM_clean.training import ensemble, lifecycle, loop, machine
from RLM_clean.training.ensemble import Ensemble, most_seats
from RLM_clean.training.lifecycle import Outcome
from RLM_clean.training.loop import DivergedError

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')

# Members that differ in all that members may differ in.
MEMBERS: tuple[dict[str, Any], ...] = (
    {},
    {'beta': 0.5, 'seed_rules': 1, 'lr': 0.01},
    {'seed_sample': 2, 'momentum': 0.5, 'lr': 0.02},
    {'seed_model': 3, 'beta': 4.0, 'lr': 0.05},
)


def members(folder: Path, **options: Any) -> list[Config]:
    """Each in a folder of its own."""
    return [tiny(folder / str(i) / 'run', **{'lr': 0.03, **options, **member}) for i, member in enumerate(MEMBERS)]


def train_together(configs: list[Config], **options: Any) -> dict[str, Outcome | Exception]:
    seats = options.get('seats', len(configs))
    with mock.patch.object(lifecycle, 'save_learning_curve'):
        return {c.outname: result for c, result in ensemble.train(dict(enumerate(configs)), seats, quiet)}


def agree(alone: Config, together: Config, rel: float) -> None:
    """The records are the same to rounding, and the files hold the same."""
    a, b = contents(alone.outname), contents(together.outname)
    assert list(a) == list(b)
    for one, other in zip(a['log'], b['log'], strict=True):
        assert list(one) == list(other)
        assert one['t'] == other['t'] and one['lr'] == other['lr']
        for name in ('trainloss', 'testloss'):
            assert other[name] == pytest.approx(one[name], rel=rel)
        assert other['excess'] == pytest.approx(one['excess'], rel=1e-2, abs=1e-4)


@pytest.mark.parametrize(
    'options',
    (
        {},
        {'optim': 'adam'},
        {'num_layers': 1, 'weight_decay': 0.1},
        {'grad_clip': 0.1, 'dropout': 0.1, 'depth': 2, 'num_heads': 2},
        {'regime': 'offline', 'train_size': 100, 'accumulation': 2},
        {'model': 'transformer_clm', 'objective': 'all'},
        {'model': 'fcn'},
        {'dataset': 'rhm', 'num_synonyms': 2, 'checkpoints': False},
    ),
)
def test_members_write_the_files_of_lone_runs(tmp_path: Path, options: dict[str, Any]) -> None:
    alone, together = members(tmp_path / 'alone', **options), members(tmp_path / 'together', **options)
    results = train_together(together)
    for one, other in zip(alone, together, strict=True):
        train(one)
        result = results[other.outname]
        assert isinstance(result, Outcome) and result.status == 'done'
        agree(one, other, rel=1e-4)


@needs_compiler
@pytest.mark.parametrize('optim', ('sgd', 'adam'))
def test_losses_of_500_compiled_steps_are_those_of_lone_runs(optim: str) -> None:
    """Step by step, with batches that are the same bit for bit."""
    configs = members(Path('unused'), optim=optim, num_layers=1, max_iters=500)
    if optim == 'adam':
        configs = [replace(config, lr=config.lr / 10) for config in configs]
    alone, together = ([make_trainer(config) for config in configs] for _ in range(2))
    for a, b in zip(alone, together, strict=True):
        for step in (0, 127, 300):
            for x, y in zip(a.feed(step), b.feed(step), strict=True):
                assert torch.equal(x, y)
    group = Ensemble(dict(enumerate(together)), len(configs), compile=True)
    while together[0].step < 500:
        assert group.advance(min(loop.WINDOW, 500 - together[0].step)) == {}
    for a, b in zip(alone, together, strict=True):
        a.advance(500)
        assert len(b.since_record) == 500
        assert b.since_record == pytest.approx(a.since_record, rel=1e-4)


def test_what_becomes_of_a_member_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """Bit for bit, as long as it keeps its seat: so a group that goes on without those that are done is the same."""
    whole, partly = members(tmp_path / 'whole'), members(tmp_path / 'partly')
    train_together(whole)
    with mock.patch.object(lifecycle, 'save_learning_curve'):
        for _ in ensemble.train({2: partly[2], 3: partly[3]}, 4, quiet):
            pass
    for seat in (2, 3):
        a, b = (load_run(configs[seat].outname) for configs in (whole, partly))
        assert difference(a.model().state_dict(), b.model().state_dict()) is None
        assert difference(a.dynamics, b.dynamics) is None


def test_an_interrupted_group_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are at different steps, since a kill came between their checkpoints, still end the same."""
    whole, stopped = members(tmp_path / 'whole'), members(tmp_path / 'stopped')
    train_together(whole)
    for stop in (5, 13):
        advance = Ensemble.advance

        def until(self: Ensemble, steps: int, interrupted: Any, stop: int = stop, advance: Any = advance) -> Any:
            trainer = next(iter(self.trainers.values()))
            result = advance(self, min(steps, stop - trainer.step) if trainer.step < stop else steps, lambda: False)
            if trainer.step >= stop:
                interrupted.__self__.name = 'SIGTERM'
            return result

        monkeypatch.setattr(Ensemble, 'advance', until)
        results = train_together(stopped)
        monkeypatch.undo()
        assert {result.status for result in results.values() if isinstance(result, Outcome)} == {'interrupted'}
    train(stopped[1])  # one of them goes on alone
    results = train_together(stopped)
    assert [r.status for r in results.values() if isinstance(r, Outcome)] == ['complete', 'done', 'done', 'done']
    for seat in (0, 2, 3):
        a, b = (load_run(configs[seat].outname) for configs in (whole, stopped))
        assert difference(a.model().state_dict(), b.model().state_dict()) is None
        assert difference(a.dynamics, b.dynamics) is None


def test_each_member_stops_early_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, 'WINDOW', 8)
    configs = members(tmp_path, max_iters=60)
    configs[1] = replace(configs[1], loss_threshold=10.0)
    results = train_together(configs)
    statuses = [(r.status, r.step) for r in results.values() if isinstance(r, Outcome)]
    assert sorted(statuses) == [('done', 60)] * 3 + [('stopped early', 8)]
    assert isinstance(results[configs[1].outname], Outcome)
    alone = tiny(tmp_path / 'alone', **{'max_iters': 60, 'loss_threshold': 10.0, **MEMBERS[1]})
    train(alone)
    a, b = load_run(alone.outname), load_run(configs[1].outname)
    assert a.steps == b.steps
    assert b.dynamics[-1]['testloss'] == pytest.approx(a.dynamics[-1]['testloss'], rel=1e-5)


def test_a_member_that_diverges_stops_no_other(tmp_path: Path) -> None:
    configs = members(tmp_path, scheduler='none')
    configs[2] = replace(configs[2], lr=1e30)
    results = train_together(configs)
    assert isinstance(results[configs[2].outname], DivergedError)
    for seat in (0, 1, 3):
        result = results[configs[seat].outname]
        assert isinstance(result, Outcome) and result.status == 'done'
        assert torch.isfinite(torch.tensor(result.dynamics[-1]['testloss']))


def test_a_member_that_cannot_begin_stops_no_other(tmp_path: Path) -> None:
    configs = members(tmp_path)
    train(replace(configs[0], max_iters=3))
    results = train_together(configs)
    assert isinstance(results[configs[0].outname], ValueError)
    assert all(isinstance(results[c.outname], Outcome) for c in configs[1:])


def test_the_size_of_a_group_is_bounded_by_memory_and_by_the_cache() -> None:
    cpu, gpu = torch.device('cpu'), torch.device('cuda')
    config = Config(outname='x', num_features=32)
    assert [most_seats(replace(config, num_layers=L, num_tokens=2**L), cpu, 8e9) for L in (1, 2, 3, 6)] == [8, 7, 4, 1]
    assert most_seats(config, gpu, 8e9) == most_seats(config, gpu, math.inf) == 256
    assert most_seats(config, torch.device('mps'), 8e9) == 1
    assert most_seats(replace(config, num_features=512), gpu, 8e9) == 3  # rules and tables of 2.1 GB each
    assert most_seats(replace(config, num_features=512), cpu, 1e9) == 1
    assert most_seats(replace(config, embedding_dim=512, depth=4), cpu, 8e9) == 1
