"""A step of training: the plain way, eagerly, compiled, and its matrix products alone.

All take a batch that is there already. The plain way computes all positions, with autograd and torch.optim as they
come. The products are those of the forward and of the backward pass as the step computes them, attention's included,
one after the other into places that are there already: what the step cannot do without. The second table is what the
rule of `threads=auto` rests on.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import Settings, Work, in_turn, matrix_peak, threads_kept, watched
from benchmarks.plain import PlainRun
from benchmarks.products import multiplications, products_alone
from benchmarks.report import Ratio, Result, Table, quotients
from RLM_clean.config import Config
from RLM_clean.datasets import RLM
from RLM_clean.measures import Language, Reference
from RLM_clean.models import attention
from RLM_clean.threads import available_cores
from RLM_clean.training import machine
from RLM_clean.training.loop import WINDOW, Trainer
from RLM_clean.training.loop import make_trainer as build_trainer
from RLM_clean.training.machine import default_threads

SIZES: dict[str, dict[str, Any]] = {
    'default': {},
    'L=3': {'num_layers': 3},
    'L=3, d=128, depth 2': {'num_layers': 3, 'embedding_dim': 128, 'depth': 2},
    'L=6, depth 2': {'num_layers': 6, 'depth': 2},
    'L=3, all positions': {'num_layers': 3, 'objective': 'all', 'model': 'transformer_clm'},
}
# The sizes of papers: v = 32, depth 3, 128 sequences a step.
PAPER: dict[str, Any] = {'num_features': 32, 'depth': 3, 'batch_size': 128, 'optim': 'adam'}
SIZES |= {
    f'paper, T={2**L - 1}, d={d}': {**PAPER, 'num_layers': L, 'embedding_dim': d} for d in (128, 256) for L in (3, 4)
}
# The most that a compiled step may take over its products, and the least that the plain way may take over it.
BOUNDS = {'default': (1.5, None), 'L=3': (2.0, 2.5)}
BOUNDS |= {name: (1.15, 2.0 if name == 'paper, T=7, d=128' else None) for name in SIZES if name.startswith('paper')}
WIDTHS = (64, 128, 256, 512)
# Sequences and heads of the table of attention.
ATTENTION = {f'T={2**L - 1}, {heads} head{"s" * (heads > 1)}': (L, heads) for L in (3, 4, 5, 6) for heads in (1, 4)}


# ---------------------------------------------------------------------- what is timed


class DrawnOnce(RLM):
    """A language whose training batches were drawn before: what a step takes without its sequences."""

    drawn: Tensor | None = None

    def leaf_batches(self, step: int, num_steps: int, *arguments: Any, **options: Any) -> Tensor:
        """The same sequences for any step."""
        if self.drawn is None or len(self.drawn) != num_steps:
            self.drawn = super().leaf_batches(0, num_steps, *arguments, **options)
        return self.drawn


def without_floors(config: Config, drawn: bool, device: str = 'cpu') -> Language:
    """The language of a run; with `drawn` its sequences cost nothing. It has no floors: they take long."""
    grammar = (DrawnOnce if drawn else RLM)(config.num_features, config.num_layers, config.beta, device=device)
    nothing = torch.empty(0)
    return Language(grammar, Reference(nothing, nothing, None), 0.0, 0.0, {})


def make_trainer(config: Config, language: Language, device: str = 'cpu') -> Trainer:
    """The trainer of a run of this language, that says nothing."""
    return build_trainer(config, language, machine.choose(replace(config, device=device)), lambda line: None)


def loop(config: Config, threads: int, drawn: bool, device: str = 'cpu') -> Work:
    """The loop of a run between two records, compiled or not as `config` says; see `make_trainer`."""
    with threads_kept(threads):
        trainer = make_trainer(config, without_floors(config, drawn, device), device)
    return Work(lambda: trainer.advance(trainer.step + WINDOW), WINDOW, threads)


def step(config: Config, threads: int) -> Work:
    """A step of a run on one batch that stays where it is, compiled or not as `config` says."""
    with threads_kept(threads):
        trainer = make_trainer(config, without_floors(config, drawn=True))
    inputs, targets = (x.clone() for x in trainer.feed(0))
    steps = itertools.count()
    return Work(lambda: trainer.take_steps(next(steps), inputs, targets), threads=threads)


def update_alone(config: Config, threads: int) -> Work:
    """The optimizer's part of an eager step: torch's fused kernels, on gradients that are there."""
    with threads_kept(threads):
        trainer = make_trainer(replace(config, compile='off'), without_floors(config, drawn=True))
        trainer.update()
    return Work(trainer.optimizer.step, threads=threads)


def plain_step(config: Config, threads: int) -> Work:
    """The same the plain way."""
    grammar = RLM(config.num_features, config.num_layers, config.beta)
    run = PlainRun(config, grammar.rules[0].flatten(1))
    sequences = grammar.sequences(0, config.batch_size)
    return Work(lambda: run.update(sequences), threads=threads)


# ---------------------------------------------------------------------- the tables


def measure(settings: Settings) -> Result:
    """The tables of steps and of threads."""
    result = Result()
    sizes = {'default': SIZES['default']} if settings.quick else SIZES
    widths = WIDTHS[:1] if settings.quick else WIDTHS
    peaks = {n: matrix_peak(n, settings.quick) for n in sorted({1, available_cores()})}
    parts = {
        name: partial(_size, name, Config(outname='unused', **options), peaks, settings, result)
        for name, options in sizes.items()
    }
    parts |= {
        f'threads at d={d}': partial(
            _threads, Config(outname='unused', num_layers=3, embedding_dim=d), settings, result
        )
        for d in widths
    }
    if not settings.quick:
        parts |= {
            f'attention: {name}': partial(_attention, name, *shape, settings, result)
            for name, shape in ATTENTION.items()
        }
    rows = {name: part() for name, part in watched(parts)}

    rates = ', '.join(f'{2e-9 * rate:.0f} on {n} thread{"s" * (n > 1)}' for n, rate in peaks.items())
    note = (
        'The plain way has as many threads as serve it best. "Its optimizer" is the update of an eager step, by the '
        'fused kernels of torch; in a compiled step it is a part of the one program, as the norms are. "Of the peak" '
        'sets the multiplications of the compiled step beside those of the best large matrix product on the same '
        'threads, which makes, in 10^9 float32 '
        f'operations a second: {rates}. With dtype=bfloat16 the matrix products have the lower precision.'
    )
    result.tables.append(Table('A step', [rows[name] for name in sizes], note))
    note = 'L=3, depth 1. The last column is what threads=auto takes.'
    result.tables.append(Table('Threads', [row for name, row in rows.items() if name.startswith('threads')], note))
    looks = [row for name, row in rows.items() if name.startswith('attention')]
    if looks:
        note = (
            'Compiled steps in bfloat16 of two blocks with d=64 and 64 sequences: with the fused attention of torch, '
            'and with its products and its softmax one after the other, in float32.'
        )
        result.tables.append(Table('Attention', looks, note))
    return result


def _size(name: str, config: Config, peaks: dict[int, float], settings: Settings, result: Result) -> dict[str, Any]:
    threads = default_threads(config)
    works = {
        'compiled': step(replace(config, compile='on'), threads),
        'eager': step(replace(config, compile='off'), threads),
        'optimizer': update_alone(config, threads),
        'products': Work(products_alone(config), threads=threads),
        **{f'plain, {n}': plain_step(config, n) for n in peaks},
    }
    paper = name.startswith('paper')
    if paper:
        works['bfloat16'] = step(replace(config, compile='on', dtype='bfloat16'), threads)
    times = in_turn(works, settings.repeats, settings.span)
    times['plain'] = min((times[f'plain, {n}'] for n in peaks), key=statistics.median)
    most, least = BOUNDS.get(name, (None, None))
    result.ratios += [
        Ratio(f'{name}: compiled / products', quotients(times['compiled'], times['products']), at_most=most),
        Ratio(f'{name}: plain / compiled', quotients(times['plain'], times['compiled']), at_least=least),
        Ratio(f'{name}: eager / compiled', quotients(times['eager'], times['compiled'])),
        Ratio(f'{name}: optimizer / eager', quotients(times['optimizer'], times['eager'])),
    ]
    if paper:
        lower = 1.5 if config.embedding_dim == 256 else None
        result.ratios += [
            Ratio(f'{name}: compiled / in bfloat16', quotients(times['compiled'], times['bfloat16']), at_least=lower),
            Ratio(f'{name}: plain / in bfloat16', quotients(times['plain'], times['bfloat16']), at_least=least),
            Ratio(f'{name}: plain / products', quotients(times['plain'], times['products'])),
        ]
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    return {
        'step': name,
        'T': config.context_size,
        'd': config.embedding_dim,
        'depth': config.depth,
        'threads': threads,
        'plain (ms)': ms['plain'],
        'eager (ms)': ms['eager'],
        'its optimizer (ms)': ms['optimizer'],
        'compiled (ms)': ms['compiled'],
        'in bfloat16 (ms)': ms.get('bfloat16'),
        'products (ms)': ms['products'],
        'multiplications (10^6)': multiplications(config) / 1e6,
        'of the peak': f'{multiplications(config) / (1e-3 * ms["compiled"] * peaks[threads]):.0%}',
        'tokens/s (10^3)': config.batch_size * config.context_size / ms['compiled'],
    }


def _attention(name: str, L: int, heads: int, settings: Settings, result: Result) -> dict[str, Any]:
    """What attention in parts saves in bfloat16."""
    works = {}
    options: dict[str, Any] = {'num_features': 32, 'num_layers': L, 'num_heads': heads, 'depth': 2, 'compile': 'on'}
    config = Config(outname='unused', dtype='bfloat16', **options)
    for way, most in (('fused', 0), ('in parts', 2**L)):
        with mock.patch.object(attention, 'MOST_IN_PARTS', most):  # read when the step is compiled
            works[way] = step(config, default_threads(config))
    times = in_turn(works, settings.repeats, settings.span)
    result.ratios.append(Ratio(f'attention, {name}: fused / in parts', quotients(times['fused'], times['in parts'])))
    return {'attention': name, **{f'{way} (ms)': 1e3 * statistics.median(values) for way, values in times.items()}}


def _threads(config: Config, settings: Settings, result: Result) -> dict[str, Any]:
    """What all cores do for a step, which the rule of threads=auto goes by."""
    cores = available_cores()
    modes = {'eager': 'off'} if settings.quick else {'eager': 'off', 'compiled': 'on'}
    works = {
        (kind, n): step(replace(config, compile=mode), n) for kind, mode in modes.items() for n in sorted({1, cores})
    }
    times = in_turn(works, settings.repeats, settings.span)
    result.ratios += [
        Ratio(f'd={config.embedding_dim}, {kind}: {cores} threads / 1', quotients(times[kind, cores], times[kind, 1]))
        for kind in modes
    ]
    columns = {f'{kind}, {n} (ms)': 1e3 * statistics.median(values) for (kind, n), values in times.items()}
    work = multiplications(config) / 1e6
    return {'d': config.embedding_dim, 'multiplications (10^6)': work, **columns, 'auto': default_threads(config)}
