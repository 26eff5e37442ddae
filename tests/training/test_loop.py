"""The loop: when it updates, records and saves, what each seed governs, and that options do what they say."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, arguments, environment
from small_runs import TINY, assert_same_run, contents, make_language, make_trainer, same_weights, tiny, train
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.exact import entropies
from RLM_clean.main import main
from RLM_clean.measures import Evaluation, Reference
from RLM_clean.runs.run import load_run
from RLM_clean.training import batches, machine
from RLM_clean.training.batches import BatchFeed
from RLM_clean.training.loop import DivergedError, Trainer

# ---------------------------------------------------------------------- the times


def test_step_one_differs_from_step_zero_in_its_weights(tmp_path: Path) -> None:
    for i, options in enumerate(({}, {'optim': 'adam'}, {'scheduler': 'cosine'}, {'scheduler': 'none'})):
        outname = tmp_path / str(i)
        train(tiny(outname, max_iters=1, **options))
        before, after = (load_run(outname).model(step).state_dict() for step in (0, 1))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {'tokens.weight', 'positions.weight', 'head.weight', 'blocks.0.attention.qkv.weight'} <= changed


@pytest.mark.parametrize('max_iters', (1, 2, 5, 1000))
def test_records_and_checkpoints_exist_for_the_first_and_the_last_step(tmp_path: Path, max_iters: int) -> None:
    outcome = train(tiny(tmp_path / 'run', max_iters=max_iters, print_freq=300))
    run = load_run(tmp_path / 'run')
    assert outcome.step == max_iters and outcome.status == 'done' and run.done
    powers = {round(2 ** (k / 2)) for k in range(30)}
    assert run.steps == sorted({0, max_iters} | {step for step in powers if step < max_iters})
    assert [record['t'] for record in run.dynamics] == sorted({*run.steps, *range(0, max_iters + 1, 300)})


@pytest.mark.parametrize('max_iters', (25000, 30000, 2**14, 2**15 - 1, 2**15 + 1))
def test_long_runs_have_records_and_checkpoints_for_the_first_and_the_last_step(max_iters: int) -> None:
    for print_freq, save_freq in ((1024, 2), (1, 1), (30001, 3)):
        saves = init.save_times(max_iters, save_freq)
        prints = init.print_times(max_iters, print_freq, save_freq)
        assert {0, 1, max_iters} <= set(saves) <= set(prints)
        assert saves == sorted(set(saves)) and prints == sorted(set(prints)) and prints[-1] == max_iters


# ---------------------------------------------------------------------- seeds


@pytest.mark.slow
def test_two_processes_with_the_same_seeds_write_the_same_tensors(tmp_path: Path) -> None:
    """Whatever the order of their sets and dictionaries; and a process that does other things beside."""
    options: dict[str, Any] = {'dropout': 0.1, 'optim': 'adam', 'max_iters': 40}
    processes = []
    for name in ('1', '2'):
        (tmp_path / name).mkdir()
        words = arguments(**{**TINY, **options, 'outname': tmp_path / name / 'run'})
        command = [sys.executable, 'RLM_clean/main.py', *words]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment(PYTHONHASHSEED=name), stdout=subprocess.DEVNULL)
        )
    torch.manual_seed(1)
    train(tiny(tmp_path / '3' / 'run', **options))
    assert [process.wait() for process in processes] == [0, 0]
    assert len(contents(tmp_path / '1' / 'run')) == 3 + len(init.save_times(40, 2))
    assert_same_run(tmp_path / '2' / 'run', tmp_path / '1' / 'run')
    assert_same_run(tmp_path / '3' / 'run', tmp_path / '1' / 'run')


@pytest.mark.parametrize('seed', ('seed_rules', 'seed_sample', 'seed_model'))
def test_each_seed_changes_what_it_governs_and_nothing_else(tmp_path: Path, seed: str) -> None:
    """Sequences follow their rules; what seed_sample alone governs of them is the symbols of the roots."""
    governed = {}
    for name, options in (('one', {}), ('other', {seed: 1})):
        train(tiny(tmp_path / name, max_iters=2, **options))
        run = load_run(tmp_path / name)
        roots = torch.cat([run.rlm.trees(0, 1000, stream)[0] for stream in ('train', 'test')])
        weights = torch.cat([tensor.flatten() for tensor in run.model(0).state_dict().values()])
        governed[name] = {'seed_rules': run.rlm.rules[0], 'seed_sample': roots, 'seed_model': weights}
    changed = {name for name in governed['one'] if not torch.equal(governed['one'][name], governed['other'][name])}
    assert changed == {seed}


def test_training_leaves_every_global_generator_as_it_was(tmp_path: Path) -> None:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    train(tiny(tmp_path / 'run', dropout=0.1))
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(states[0], after[0]) and states[2] == after[2]
    assert all(np.array_equal(a, b) for a, b in zip(states[1], after[1], strict=True))


def test_the_state_of_the_global_generators_changes_nothing(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        train(tiny(tmp_path / str(seed) / 'run', dropout=0.1))
    assert_same_run(tmp_path / '1' / 'run', tmp_path / '2' / 'run')


# ---------------------------------------------------------------------- evaluation


def test_evaluation_leaves_training_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {'max_iters': 200, 'dropout': 0.1, 'optim': 'adam'}
    often, seldom = tmp_path / 'often', tmp_path / 'seldom'
    train(tiny(often, print_freq=1, test_size=200, **options))
    train(tiny(seldom, print_freq=1000, **options))
    assert len(load_run(often).dynamics) == 201 and len(load_run(seldom).dynamics) < 20
    assert load_run(often).steps == load_run(seldom).steps
    for step in load_run(often).steps:
        assert same_weights(load_run(often).model(step).state_dict(), load_run(seldom).model(step).state_dict())


def test_every_step_has_test_sequences_of_its_own_and_none_of_training(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', num_layers=3)
    train(config)
    run = load_run(tmp_path / 'run')
    inputs = [run.test_batch(record['t'])[0] for record in run.dynamics]
    inputs += [run.rlm.batch(step, config.test_size)[0] for step in range(config.max_iters)]
    distinct = {tuple(batch.flatten().tolist()) for batch in inputs}
    assert len(distinct) == len(inputs) == len(run.dynamics) + config.max_iters


def test_the_training_loss_of_a_record_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run')
    train(config)
    trainer = make_trainer(config)
    losses = [trainer.update().item() for _ in range(config.max_iters)]
    records = load_run(tmp_path / 'run').dynamics
    assert records[0]['trainloss'] == pytest.approx(losses[0], abs=1e-6)
    for before, record in pairwise(records):
        mean = sum(losses[before['t'] : record['t']]) / (record['t'] - before['t'])
        assert record['trainloss'] == pytest.approx(mean, abs=1e-12)


def test_the_best_model_is_that_of_the_smallest_excess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first of several; here the excesses are given."""
    found = [0.9, 0.8, 0.7, 0.1, 0.2, 0.1]
    evaluations = iter(Evaluation(2.0, 0.5, excess, 0.0) for excess in found)
    monkeypatch.setattr(Reference, 'evaluate', lambda *_: next(evaluations, Evaluation(2.0, 0.5, 0.3, 0.0)))
    train(tiny(tmp_path / 'run'))
    run = load_run(tmp_path / 'run')
    floor = run.reference.floor()[0]
    assert [record['testloss'] for record in run.dynamics][:7] == [floor + excess for excess in (*found, 0.3)]
    stored = torch.load(tmp_path / 'run.pt', weights_only=True)['best']
    assert (stored['step'], stored['loss'], stored['excess'], run.best_step) == (3, floor + 0.1, 0.1, 3)
    assert same_weights(run.model('best').state_dict(), stored['model'])
    assert same_weights(run.model('best').state_dict(), run.model(3).state_dict())
    assert not same_weights(stored['model'], run.model(4).state_dict())


def test_the_rates_of_the_records_are_those_of_the_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the formula, and as the optimizer had them; the first one is above zero."""
    used: list[float] = []
    update = Trainer.update

    def watched(self: Trainer, most: int) -> Tensor:
        losses = update(self, most)
        used.append(self.optimizer.param_groups[0]['lr'])
        return losses

    monkeypatch.setattr(Trainer, 'update', watched)
    for name, scheduler in enumerate(('none', 'cosine', 'cosine-warmup')):
        used.clear()
        train(tiny(tmp_path / str(name), scheduler=scheduler, lr=0.02, warmup_time=4, decay_time=16))
        cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * min(step / 16, 1))) for step in range(24)]
        warm = [min((step + 1) / 4, 1) for step in range(24)]
        factors = {'none': [1.0] * 24, 'cosine': cosine, 'cosine-warmup': np.multiply(cosine, warm).tolist()}[scheduler]
        assert used == pytest.approx([0.02 * factor for factor in factors], rel=1e-12)
        assert used[0] > 0
        for record in load_run(tmp_path / str(name)).dynamics:
            assert record['lr'] == pytest.approx(used[max(record['t'] - 1, 0)], rel=1e-12)


# ---------------------------------------------------------------------- updates


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_accumulated_batches_equal_one_large_batch() -> None:
    """The batches of a step are the parts of the large batch of that step, and the gradient is their mean."""
    large, parts = make_trainer(tiny(batch_size=32)), make_trainer(tiny(batch_size=8, accumulation=4))
    for _ in range(10):
        losses = large.update(), parts.update()
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
        for a, b in zip(gradients(large.model), gradients(parts.model), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert torch.equal(_joined(large.feed(10))[0], _joined(parts.feed(10))[0])


def _joined(batches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batches[0].flatten(0, 2), batches[1].flatten(0, 2)


def test_dropout_is_new_in_each_batch_of_each_step_and_made_by_seed_model() -> None:
    masks: dict[int, list[Tensor]] = {}
    for trial, seed in enumerate((1, 1, 2)):
        trainer = make_trainer(tiny(dropout=0.5, accumulation=2, seed_model=seed))
        seen = masks[trial] = []
        dropout = next(module for name, module in trainer.model.named_modules() if name == 'dropout')
        dropout.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output == 0))
        for _ in range(3):
            trainer.update()
    assert len({tuple(mask.flatten().tolist()) for mask in masks[0] + masks[2]}) == 12
    assert all(torch.equal(a, b) for a, b in zip(masks[0], masks[1], strict=True))
    assert all(0.4 < mask.float().mean() < 0.6 for mask in masks[0])


def test_grad_clip_shortens_the_gradient_to_its_length() -> None:
    free, clipped, loose = (make_trainer(tiny(grad_clip=clip)) for clip in (0.0, 0.1, 100.0))
    for trainer in (free, clipped, loose):
        trainer.update()
    whole = torch.cat([g.flatten() for g in gradients(free.model)])
    short = torch.cat([g.flatten() for g in gradients(clipped.model)])
    assert whole.norm() > 0.2
    torch.testing.assert_close(short, whole * (0.1 / whole.norm()), atol=1e-6, rtol=1e-4)
    assert same_weights(free.weights(), loose.weights())


@pytest.mark.parametrize('optim', ('sgd', 'adam'))
def test_weight_decay_pulls_the_weights_to_zero(optim: str) -> None:
    """After one update at the rate lr the weights differ by -lr decay w_0 from those without decay."""
    options: dict[str, Any] = {'optim': optim, 'lr': 0.01, 'scheduler': 'none'}
    without, with_decay = make_trainer(tiny(**options)), make_trainer(tiny(weight_decay=0.5, **options))
    start = without.weights()
    without.update()
    with_decay.update()
    for name, tensor in without.weights().items():
        torch.testing.assert_close(with_decay.weights()[name], tensor - 0.01 * 0.5 * start[name], atol=1e-6, rtol=1e-5)


def test_bfloat16_trains_near_float32_and_keeps_its_weights_in_float32(tmp_path: Path) -> None:
    for dtype in ('float32', 'bfloat16'):
        train(tiny(tmp_path / dtype, dtype=dtype, max_iters=50))
    exact, rough = (load_run(tmp_path / dtype) for dtype in ('float32', 'bfloat16'))
    for a, b in zip(exact.dynamics, rough.dynamics, strict=True):
        assert a['testloss'] != b['testloss'] and abs(a['testloss'] - b['testloss']) < 0.02
    assert all(tensor.dtype == torch.float32 for tensor in rough.model().state_dict().values())


def test_what_is_drawn_ahead_changes_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {'accumulation': 3}, {'regime': 'offline', 'train_size': 20}):
        trainer = make_trainer(tiny(**options))
        monkeypatch.setattr(batches, 'TOKENS_AHEAD', 1)
        single = BatchFeed(trainer.language.grammar, trainer.config, trainer.device)
        monkeypatch.undo()
        assert isinstance(trainer.feed, BatchFeed)
        assert (single.chunk, trainer.feed.chunk) == (1, machine.STEPS_AHEAD)
        for step in (0, 1, 200, 127, 128, 0):
            for a, b in zip(trainer.feed(step), single(step), strict=True):
                assert torch.equal(a, b)


# ---------------------------------------------------------------------- the offline regime


def test_the_offline_regime_visits_each_sequence_once_an_epoch() -> None:
    """In another order each time, also where batches do not divide the training set."""
    trainer = make_trainer(tiny(regime='offline', train_size=20, batch_size=2, accumulation=3))
    grammar = trainer.language.grammar
    whole = sorted((*grammar[i][0].tolist(), grammar[i][1].item()) for i in range(20))
    seen: list[tuple[int, ...]] = []
    for step in range(10):
        inputs, targets = _joined(trainer.feed(step))
        seen += [tuple(row) for row in torch.cat((inputs, targets[:, None]), 1).tolist()]
    epochs = [seen[20 * i : 20 * i + 20] for i in range(3)]
    assert all(sorted(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_offline_regime_ends_after_max_epochs(tmp_path: Path) -> None:
    options: dict[str, Any] = {'regime': 'offline', 'train_size': 20, 'batch_size': 2, 'accumulation': 3}
    assert train(tiny(tmp_path / 'epochs', max_epochs=2, **options)).step == 7  # 40 sequences, 6 a step
    assert load_run(tmp_path / 'epochs').steps[-1] == 7
    assert train(tiny(tmp_path / 'iters', max_epochs=2, **{**options, 'max_iters': 5})).step == 5
    assert tiny(max_iters=7, max_epochs=1).last_step == 7  # online there are no epochs


def test_a_small_training_set_is_learnt_by_heart(tmp_path: Path) -> None:
    """The training loss goes below the floor, which the test loss cannot."""
    options: dict[str, Any] = {'regime': 'offline', 'train_size': 16, 'optim': 'adam', 'lr': 0.02, 'max_iters': 300}
    outcome = train(tiny(tmp_path / 'run', max_epochs=1000, loss_threshold=0, **options))
    last = outcome.dynamics[-1]
    assert last['trainloss'] < outcome.entropy / 2 < outcome.entropy < last['testloss']


# ---------------------------------------------------------------------- the end


def test_early_stopping_looks_at_the_mean_of_recent_steps(tmp_path: Path) -> None:
    """It comes at the first multiple of 128 where the mean loss of 128 steps is at the threshold.

    The mean over all steps, or the last loss alone, would stop at other steps.
    """
    options: dict[str, Any] = {'optim': 'adam', 'lr': 0.01, 'max_iters': 1000, 'print_freq': 1000, 'scheduler': 'none'}
    trainer = make_trainer(tiny(**options))
    losses = [trainer.update().item() for _ in range(512)]
    means = [sum(losses[end - 128 : end]) / 128 for end in (128, 256, 384, 512)]
    assert means[0] > means[1] > means[2]
    threshold = (means[1] + means[2]) / 2
    assert sum(losses) / 512 > threshold > min(losses[:256])
    outcome = train(tiny(tmp_path / 'run', loss_threshold=threshold, **options))
    assert outcome.status == 'stopped early' and outcome.step == 384
    run = load_run(tmp_path / 'run')
    output = torch.load(tmp_path / 'run.pt', weights_only=True)['output']
    assert run.done and output['step'] == 384 and output['early_stop'] is True
    assert run.steps[-1] == run.dynamics[-1]['t'] == 384 not in init.print_times(1000, 1000, 2)
    assert train(tiny(tmp_path / 'run', loss_threshold=threshold, **options)).status == 'complete'


def test_a_run_that_does_not_stop_early_says_so(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run'))
    assert torch.load(tmp_path / 'run.pt', weights_only=True)['output']['early_stop'] is False


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_good_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and one line; what was saved before is finite and opens; the same command fails the same way."""
    words = arguments(**{**TINY, 'outname': tmp_path / 'run', 'lr': 1e20, 'scheduler': 'none'})
    monkeypatch.setattr(sys, 'argv', ['main.py', *words])
    errors = []
    for _ in range(2):
        assert main() == 1
        errors.append(capsys.readouterr().err)
        assert errors[-1].count('\n') == 1 and 'lr=1e+20' in errors[-1] and 'grad_clip' in errors[-1]
        run = load_run(tmp_path / 'run')
        assert not run.done and run.steps == [record['t'] for record in run.dynamics] and run.steps[0] == 0
        assert all(math.isfinite(x) for record in run.dynamics for x in record.values())
        assert all(tensor.isfinite().all() for step in run.steps for tensor in run.model(step).state_dict().values())
        assert not [path for path in tmp_path.iterdir() if 'tmp' in path.name]
    assert errors[0] == errors[1]


def test_a_loss_that_is_no_number_between_two_records_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tiny())
    losses = iter([1.0, 2.0, math.nan, 3.0])
    trainer.record()
    monkeypatch.setattr(init, 'task_loss', lambda logits, *_: logits.sum() * 0 + next(losses))
    with pytest.raises(DivergedError, match='training loss is nan at step 3: lower lr='):
        trainer.advance(4)


# ---------------------------------------------------------------------- the machine


@pytest.mark.parametrize('diverges', [False, True])
def test_a_run_leaves_the_settings_of_torch_as_it_found_them(diverges: bool, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    options: dict[str, Any] = {'lr': 1e30, 'optim': 'sgd'} if diverges else {}
    with pytest.raises(DivergedError) if diverges else contextlib.nullcontext():
        train(tiny(tmp_path / 'run', threads=2, deterministic=True, **options))
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


# ---------------------------------------------------------------------- learning


def test_the_default_model_learns_to_near_the_floor(tmp_path: Path) -> None:
    outcome = train(tiny(tmp_path / 'run', num_layers=1, optim='adam', lr=0.01, max_iters=400, batch_size=32))
    first, last = outcome.dynamics[0], outcome.dynamics[-1]
    assert first['excess'] > 0.3 > 0.05 > last['excess'] > 0


def test_all_next_tokens_are_learnt_by_the_objective_all(tmp_path: Path) -> None:
    options: dict[str, Any] = {'model': 'transformer_clm', 'objective': 'all', 'optim': 'adam', 'lr': 0.01}
    outcome = train(tiny(tmp_path / 'run', max_iters=500, batch_size=32, scheduler='none', **options))
    first, last = outcome.dynamics[0], outcome.dynamics[-1]
    assert first['excess'] > 0.3 > 0.15 > last['excess'] > 0
    assert last['testloss'] == pytest.approx(outcome.entropy + last['excess'], abs=1e-12)
    stored = torch.load(tmp_path / 'run.pt', weights_only=True)['output']
    assert stored['entropy'] == outcome.entropy < stored['marginal']


def test_the_floors_of_a_run_are_those_of_the_language_however_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropies, '_SAMPLING_BUDGET', 1e6)
    language = make_language(tiny(num_layers=4))
    assert entropies.chained(language.grammar, 15)
    assert language.floors == entropies.window_entropies(language.grammar)
    assert language.entropy == language.floors[15][0]


def test_with_fewer_tokens_the_model_sees_the_last_ones_and_the_floor_is_theirs(tmp_path: Path) -> None:
    train(tiny(tmp_path / 'run', num_layers=3, num_tokens=3))
    run = load_run(tmp_path / 'run')
    inputs, targets = run.test_batch(10)
    whole, last = run.rlm.batch(10, 64, 'test')
    assert torch.equal(inputs, whole[:, -2:]) and torch.equal(targets, last)
    assert run.floors is not None and list(run.floors) == [0, 1, 2]
    assert run.entropy == run.floors[2][0] < run.floors[1][0] < run.floors[0][0] == run.marginal


GOLDEN = {0: 2.77218, 50: 2.23911, 100: 1.95139, 150: 1.83346, 200: 1.79660}


def test_a_short_training_keeps_its_losses(tmp_path: Path) -> None:
    options: dict[str, Any] = {'num_features': 16, 'embedding_dim': 16, 'batch_size': 64, 'lr': 0.01, 'max_iters': 200}
    outcome = train(tiny(tmp_path / 'run', test_size=512, print_freq=50, **options))
    found = {record['t']: record['testloss'] for record in outcome.dynamics if record['t'] % 50 == 0}
    assert found == pytest.approx(GOLDEN, abs=1e-4), (
        'The same seeds no longer give the same training. Update GOLDEN only with a deliberate change of the random '
        f'streams, of the initialisation or of the defaults, and say so in the message of the commit: {found}'
    )
