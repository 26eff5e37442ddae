"""What this machine can run, and what auto means on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import tiny, train

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models import num_parameters
from RLM_clean.threads import available_cores
from RLM_clean.training import machine
from RLM_clean.training.machine import Machine, resolve_device


def check(**options: Any) -> None:
    """Checks the options of a run on this machine."""
    machine.check(Config(outname='run', **options))


def test_memory_that_ran_out_is_told_from_other_errors_that_name_memory() -> None:
    for words in ('CUDA out of memory. Tried to allocate', "DefaultCPUAllocator: can't allocate memory: you tried"):
        assert machine.is_out_of_memory(RuntimeError(words))
    assert machine.is_out_of_memory(MemoryError()) and not machine.is_out_of_memory(ValueError('out of memory'))
    assert not machine.is_out_of_memory(RuntimeError('CUDA error: an illegal memory access was encountered'))


def test_auto_is_the_first_device_there_is(monkeypatch: pytest.MonkeyPatch):
    for cuda, mps, expected in ((True, True, 'cuda'), (False, True, 'mps'), (False, False, 'cpu')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda mps=mps: mps)
        assert resolve_device('auto') == torch.device(expected)


def test_a_device_is_taken_when_it_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert resolve_device('cuda') == torch.device('cuda')
    assert resolve_device('cuda:1') == torch.device('cuda', 1)
    with pytest.raises(ValueError, match="device='cuda:2' is not on this machine"):
        resolve_device('cuda:2')
    assert resolve_device('cpu') == torch.device('cpu') and resolve_device('cpu:0').type == 'cpu'


def test_what_the_memory_cannot_hold_is_refused_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    """With 1 GiB: v^3 times 12 bytes fit up to v = 447, 20 bytes, with exact inference, up to 377."""
    monkeypatch.setattr('os.sysconf', lambda name: {'SC_PHYS_PAGES': 2**18, 'SC_PAGE_SIZE': 2**12}[name])
    check(num_features=447)
    check(num_features=447, num_layers=3, num_tokens=2)
    check(num_layers=10, regime='offline', train_size=2**24)
    with pytest.raises(ValueError, match=r'num_features=448 needs 1 GiB for the rules, this machine has 1: .* 447'):
        check(num_features=448)
    with pytest.raises(ValueError, match=r'num_features=447 .* use at most 377'):
        check(num_features=447, num_layers=3)
    with pytest.raises(ValueError, match=r'num_features=447 .* use at most 299'):
        check(num_features=447, dataset='rhm', num_layers=2)
    with pytest.raises(ValueError, match=r'train_size=100000000 .* use at most 26843545'):
        check(regime='offline', train_size=10**8)
    with pytest.raises(ValueError, match=r'accumulation=10000000 .* use at most 1048576'):
        check(accumulation=10**7)
    with pytest.raises(ValueError, match=r'num_features=32 needs 5 GiB for the divergences from BP'):
        check(num_features=32, num_layers=9, model='transformer_clm', objective='all', bp_records=True)
    with pytest.raises(ValueError, match=r'embedding_dim=8192 .* for the weights'):
        check(embedding_dim=8192, depth=4)
    with pytest.raises(ValueError, match=r'depth=8 .* for the activations, this machine has 1: use at most'):
        check(regime='population', num_features=4, num_layers=3, depth=8, embedding_dim=128)


def test_batches_that_are_accumulated_need_the_activations_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('os.sysconf', lambda name: {'SC_PHYS_PAGES': 2**18, 'SC_PAGE_SIZE': 2**12}[name])
    large: dict[str, Any] = {'num_layers': 5, 'num_features': 32, 'depth': 4, 'embedding_dim': 256}
    large |= {'model': 'transformer_clm', 'objective': 'all'}
    check(batch_size=64, accumulation=32, **large)
    with pytest.raises(ValueError, match=r'batch_size=2048 needs 5 GiB for the activations'):
        check(batch_size=2048, **large)


def test_a_run_goes_on_where_it_began_if_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(device='auto', threads='auto')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    elsewhere = {'device': 'cuda', 'threads': 3, 'compile': True}
    assert machine.choose(config, elsewhere) == Machine('cpu', 3, machine.default_compile(config, torch.device('cpu')))
    monkeypatch.setattr(machine, 'can_compile', lambda device: device.type != 'mps')
    assert machine.choose(config, {**elsewhere, 'device': 'cpu'}) == Machine('cpu', 3, True)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert machine.choose(config, elsewhere) == Machine('mps', 3, False)  # no compiled step was ever made there
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert machine.choose(config, {**elsewhere, 'device': 'cpu'}) == Machine('cpu', 3, True)
    assert machine.choose(config, elsewhere) == Machine('cuda', 3, True)
    assert machine.choose(config, {**elsewhere, 'device': 'cuda:1'}).device == 'cuda'  # there is one only
    assert machine.choose(tiny(device='cpu'), elsewhere).device == 'cpu'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'device': 'cuda:9'}, "device='cuda:9' is not on this machine: use auto or cpu"),
        ({'compile': 'on'}, "compile='on' finds no compiler for device='auto': install g\\+\\+, or use auto"),
        ({'batch_size': 63}, 'batch_size=63 does not divide among 2 processes: use a multiple'),
    ],
)
def test_what_this_machine_lacks_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(machine, 'can_compile', lambda device: False)
    if 'batch_size' in options:
        monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(machine, 'resolve_device', lambda d: resolve_device(d) if d != 'auto' else torch.device('cpu'))
    with pytest.raises(ValueError, match=message):
        check(**options)


@pytest.mark.parametrize(
    ('device', 'gpus', 'remedy'),
    [('cuda', 1, '--nproc_per_node=1'), ('cuda:0', 2, "device='cuda'"), ('cuda:0', 1, '--nproc_per_node=1')],
)
def test_processes_of_torchrun_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, remedy: str
) -> None:
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    check(device=device)
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with pytest.raises(ValueError, match=f"device='{device}' has no GPU for each of 2 processes .*: use {remedy}$"):
        check(device=device)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    check(device='cuda')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '1')  # two machines with one GPU each
    check(device='cuda:0')


def test_what_cannot_be_run_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='is not on this machine'):
        train(tiny(tmp_path / 'folder' / 'run', device='cuda:99'))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'model': 'transformer_bert', 'objective': 'masked'},
        {'model': 'fcn'},
        {'model': 'fcn', 'objective': 'masked'},
        {'model': 'cnn', 'num_layers': 3},
        {'model': 'lcn', 'num_layers': 3, 'objective': 'root', 'num_classes': 4},
        {'model': 'lcn', 'num_layers': 9, 'depth': 9, 'embedding_dim': 4, 'ffwd_size': 1, 'num_features': 2},
        {'num_layers': 7, 'embedding_dim': 32},
        {'model': 'gru'},
    ],
    ids=str,
)
def test_the_size_of_a_model_is_that_of_its_matrices(options: dict[str, Any]) -> None:
    """One model of memory serves checks and groups; it leaves out norms and most biases."""
    config = tiny(**{'depth': 3, 'embedding_dim': 64, 'ffwd_size': 2, 'num_features': 32, **options})
    assert machine.num_weights(config) == pytest.approx(num_parameters(init.init_model(config)), rel=0.05)


def test_small_steps_take_one_thread_and_large_ones_all() -> None:
    assert machine.default_threads(Config(outname='unused')) == 1
    large = Config(outname='unused', embedding_dim=512, depth=4, num_layers=5, num_features=64)
    assert machine.default_threads(large) == available_cores()
    assert machine.step_products(large) > 100 * machine.step_products(Config(outname='unused'))


def test_the_products_of_a_step_are_three_for_each_weight_of_a_matrix_and_position() -> None:
    c = tiny(batch_size=10, depth=2, ffwd_size=3)
    model: Any = init.init_model(c)
    matrices = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert machine.step_products(c) == 3 * 10 * 3 * sum(matrices)


def test_a_recurrent_network_is_compiled_for_short_sequences_alone() -> None:
    long: dict[str, Any] = {'model': 'gru', 'max_iters': 2**15, 'objective': 'all'}
    cpu = torch.device('cpu')
    assert machine.default_compile(tiny(**long), cpu) == machine.can_compile(cpu)
    assert not machine.default_compile(tiny(**{**long, 'num_layers': 5}), cpu)
