"""Makes the files of runs and sweeps that tests/test_old_version.py reads, with the version before the packages.

That version is commit ce461ba. From the root of this repository:

    git worktree add /some/folder ce461ba
    files="$PWD/tests/old_version/files" make="$PWD/tests/old_version/make.py"
    cd /some/folder
    python "$make" "$files"          # the python that has this version's requirements
    cd - && git worktree remove /some/folder

The folder that is given must not exist. It takes some seconds, and writes into it

    done/                 a complete run
    interrupted/          a run that a signal stopped, with its newest checkpoint and the one before
    expected/             the same run, left in peace
    offline_interrupted/  a run on a training set, stopped within an epoch
    offline_expected/     the same run, left in peace
    sweep_done/           a sweep in groups, with its tables
    sweep_partial/        the same sweep with a repetition more, stopped: two runs are done, two are interrupted by the
                          same signal, two have not begun
    made.json             the options of all these, where they stopped, and how this machine rounds

There are no pictures and no logs of workers; of the runs left in peace there is no checkpoint but the last but one, and
of sweep_partial none but the newest: the rest is large and says nothing more. On the same machine with the same torch
the files are the same each time but for the `seconds` of sweep_done. Other runs take the time from a clock that each
look moves on by an eighth of a second.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

MACHINE: dict[str, Any] = {'device': 'cpu', 'threads': 1, 'compile': 'off'}
SMALL: dict[str, Any] = {
    'num_layers': 2, 'embedding_dim': 8, 'ffwd_size': 1, 'batch_size': 8, 'test_size': 64, 'print_freq': 5,
    'save_freq': 1,
}  # fmt: skip

# Few tensors make small files: only where it matters is the model a transformer.
DONE: dict[str, Any] = {
    **SMALL, 'num_features': 8, 'max_iters': 24, 'model': 'fcn', 'input_format': 'onehot', 'whitening': 1, 'lr': 0.1,
}  # fmt: skip
ONLINE: dict[str, Any] = {
    **SMALL, 'num_features': 6, 'max_iters': 12, 'model': 'transformer_clm', 'objective': 'all', 'dropout': 0.1,
    'optim': 'adam', 'lr': 0.01, 'weight_decay': 0.01, 'accumulation': 2,
}  # fmt: skip
OFFLINE: dict[str, Any] = {
    **SMALL, 'dataset': 'rhm', 'num_features': 4, 'num_synonyms': 2, 'regime': 'offline', 'train_size': 64,
    'max_epochs': 3, 'model': 'fcn', 'lr': 0.1, 'grad_clip': 1.0,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    'done': DONE,
    'interrupted': ONLINE,
    'expected': ONLINE,
    'offline_interrupted': OFFLINE,
    'offline_expected': OFFLINE,
}
# Between two records and two checkpoints; the second is within the second of three epochs.
STOPS = {'interrupted': 3, 'offline_interrupted': 13, 'sweep_partial': 6}

# The smallest test loss is where the smallest excess is: whichever says what is best, the tables are the same.
SWEEP: dict[str, Any] = {
    **SMALL, 'num_features': 4, 'max_iters': 12, 'print_freq': 4, 'lr': 0.1, 'checkpoints': False, 'test_size': 1024,
}  # fmt: skip
BETAS = 'beta=2,4'
GROUP = 2
REPETITIONS = {'sweep_done': 2, 'sweep_partial': 3}


def words(**options: Any) -> list[str]:
    """The command line of these options."""
    return [
        f'--{"" if value else "no-"}{name}' if isinstance(value, bool) else f'--{name}={value}'
        for name, value in options.items()
    ]


def old(name: str) -> Any:
    """A module of the version whose checkout this is started in."""
    return importlib.import_module(f'RLM_clean.{name}')


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """While entered, runs of this process have no pictures, and a clock that is the same each time."""
    ticks = itertools.count(0, 0.125)
    with (
        mock.patch.object(old('experiment'), 'save_learning_curve'),
        mock.patch.object(time, 'perf_counter', functools.partial(next, ticks)),
    ):
        yield


@contextlib.contextmanager
def stopped(owner: Any, method: str, when: Callable[[Any], bool]) -> Iterator[None]:
    """While entered, this process gets SIGTERM as soon as `when` holds of an object after a call of its method."""
    before = getattr(owner, method)

    def wrapped(self: Any, *given: Any) -> Any:
        result = before(self, *given)
        if when(self):
            signal.raise_signal(signal.SIGTERM)
        return result

    with mock.patch.object(owner, method, wrapped):
        yield


def make_run(name: str) -> None:
    """Trains a run, to its end or to its stop."""
    stop = STOPS.get(name)
    config = old('config').Config(outname=f'{name}/run', **RUNS[name], **MACHINE)
    with quick(), stopped(old('training').Trainer, 'update', lambda trainer: bool(trainer.step == stop)):
        outcome = old('experiment').train(config)
    assert outcome.status == ('done' if stop is None else 'interrupted')
    assert outcome.step == (config.last_step if stop is None else stop)
    files = old('checkpoints').RunFiles(config.outname)
    assert files.previous.exists() == (stop is not None)
    assert stop is None or 'resume' in torch.load(files.checkpoint(stop), weights_only=True)


def sweep_words(name: str) -> list[str]:
    """The command line of a sweep."""
    return [
        f'--outname={name}', f'--grid={BETAS}', f'--repetitions={REPETITIONS[name]}', f'--group={GROUP}',
        *words(**SWEEP, **MACHINE),
    ]  # fmt: skip


def make_sweep(checkout: Path) -> None:
    """Trains and collects a sweep as users do."""
    variables = {**os.environ, 'PYTHONPATH': str(checkout)}
    for line in (sweep_words('sweep_done'), ['collect', 'sweep_done']):
        subprocess.run([sys.executable, '-m', 'RLM_clean.sweep', *line], env=variables, check=True)


def stop_sweep() -> None:
    """Trains a sweep whose worker, which is this process, is stopped in its second group."""

    def launch(plan: Any, workers: int) -> bool:
        return bool(old('worker').work(plan.folder, plan.execution))

    groups: list[Any] = []

    def in_second_group(ensemble: Any) -> bool:
        if not any(ensemble is other for other in groups):
            groups.append(ensemble)
        return len(groups) == 2 and ensemble.step == STOPS['sweep_partial']

    # An ensemble takes all steps to the next record at once: one at a time, it can be stopped between two.
    ensemble = old('ensemble').Ensemble
    whole = ensemble.advance

    def advance(self: Any, steps: int, *given: Any) -> Any:
        return whole(self, min(steps, 1), *given)

    with (
        quick(),
        mock.patch.object(old('local'), 'launch', launch),
        mock.patch.object(ensemble, 'advance', advance),
        stopped(ensemble, 'advance', in_second_group),
    ):
        assert old('sweep').main(sweep_words('sweep_partial')) == 0
    for run in old('collect').load_results('sweep_done').runs:
        best = [min(run.records, key=lambda record: record[name])['t'] for name in ('testloss', 'excess')]
        assert best[0] == best[1], f'{run.member.name}: choose other options'
    plan = old('plan').read_plan('sweep_partial')
    found = [old('states').state(member, plan.folder).status for member in plan.members]
    assert found == ['done', 'done', 'interrupted', 'interrupted', 'waiting', 'waiting'], found


# ---------------------------------------------------------------------- how this machine rounds


def rounding() -> str:
    """A digest of the bits of two small trainings and of an exact inference, by nothing of this library.

    Sums and exponentials differ in their last bits between processors and versions of torch. Where the digest is the
    same, so are the bits of a run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        digest = hashlib.sha256()
        for tensor in (*_training(members=1), *_training(members=2), _inference()):
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
    finally:
        torch.set_num_threads(threads)


def _numbers(*shape: int) -> Tensor:
    """Numbers in -1..1 that no generator draws."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 % 10007).float() / 5003.5 - 1).view(shape)


def _training(members: int) -> list[Tensor]:
    """The weights of a block of a transformer after some steps of Adam and of SGD."""
    v, d, batch, length = 8, 8, 8, 3
    shapes = [(v, d), (d, 3 * d), (d, d), (d, 4 * d), (4 * d, d), (d, v)]
    weights = [(_numbers(members, *shape) / 3).requires_grad_() for shape in shapes]
    adam = torch.optim.AdamW(weights, lr=1e-2, fused=True)
    sgd = torch.optim.SGD(weights, lr=1e-1, momentum=0.9, fused=True)
    tokens = torch.arange(batch * (length + 1)).view(batch, length + 1) * 5 % v
    for step in range(12):
        embedding, attend, project, widen, narrow, head = weights
        x = embedding[:, tokens[:, :-1]]
        q, k, values = torch.matmul(F.layer_norm(x, (d,)), attend[:, None]).chunk(3, -1)
        x = x + torch.matmul(F.scaled_dot_product_attention(q, k, values, is_causal=True), project[:, None])
        x = x + torch.matmul(F.gelu(torch.matmul(F.layer_norm(x, (d,)), widen[:, None])), narrow[:, None])
        logits = torch.matmul(F.layer_norm(x, (d,)), head[:, None])
        targets = tokens[None, :, 1:].expand(members, -1, -1)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        for optimizer in (adam, sgd):
            optimizer.zero_grad()
        loss.backward()
        (adam if step % 2 else sgd).step()
    return weights


def _inference() -> Tensor:
    """Messages on a tree of two levels, in float64."""
    rules = _numbers(8, 8, 8).double().mul(3).exp()
    rules = rules / rules.sum((1, 2), keepdim=True)
    messages = torch.einsum('abc,nb,nc->na', rules, *2 * [_numbers(8, 8).double().softmax(-1)])
    return torch.einsum('abc,nb,mc->nma', rules, messages, messages).log()


# ---------------------------------------------------------------------- everything


def main() -> None:
    """Makes everything in the folder that the command line gives."""
    checkout, folder = Path.cwd(), Path(sys.argv[1]).absolute()
    sys.path.insert(0, str(checkout))
    package = Path(str(importlib.import_module('RLM_clean').__file__)).parent
    if package != checkout / 'RLM_clean' or not (package / 'experiment.py').exists():
        sys.exit('start this in the root of a checkout of commit ce461ba')
    folder.mkdir(parents=True)
    os.chdir(folder)  # so that what the files say of their own place is the same everywhere
    for name in RUNS:
        make_run(name)
    make_sweep(checkout)
    stop_sweep()
    surplus = [*folder.rglob('*.png'), *folder.glob('sweep_partial/*_previous.pt')]
    for name in ('expected', 'offline_expected'):
        files = old('checkpoints').RunFiles(f'{name}/run')
        *before, _, last = files.steps()
        surplus += [files.checkpoint(step) for step in (*before, last)]
    for path in surplus:
        path.unlink()
    for logs in folder.glob('*/logs'):
        shutil.rmtree(logs)
    made = {
        'torch': torch.__version__,
        'cpu': torch.backends.cpu.get_cpu_capability(),
        'rounding': rounding(),
        'stops': STOPS,
        'machine': MACHINE,
        'runs': RUNS,
        'sweeps': {name: sweep_words(name)[1:] for name in REPETITIONS},
    }
    Path('made.json').write_text(json.dumps(made, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
