"""Steps on a GPU: eagerly, as a CUDA graph, with the drawing of sequences, and the matrix products alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measure import Settings, Work, in_turn, watched
from benchmarks.products import multiplications, products_alone
from benchmarks.report import Ratio, Result, Table, quotients
from benchmarks.steps import loop
from RLM_clean.config import Config
from RLM_clean.init import init_model
from RLM_clean.models import num_parameters

SIZES: dict[str, dict[str, Any]] = {
    'default': {},
    'L=3': {'num_layers': 3},
    'L=8': {'num_layers': 8},
    '10 million parameters': {'num_layers': 6, 'embedding_dim': 384, 'num_heads': 6, 'depth': 6},
}


def measure(settings: Settings) -> Result:
    """The table of steps."""
    result, rows = Result(), []
    for name, options in watched(dict(list(SIZES.items())[:2]) if settings.quick else SIZES):
        config = Config(outname='unused', **options)
        works = {
            'captured': loop(replace(config, compile='on'), 1, True, 'cuda'),
            'with its sequences': loop(replace(config, compile='on'), 1, False, 'cuda'),
            'eager': loop(replace(config, compile='off'), 1, True, 'cuda'),
            'products': Work(_waited_for(products_alone(config, 'cuda'))),
        }
        times = in_turn(works, settings.repeats, settings.span)
        ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
        rows.append(
            {
                'step': name,
                'parameters': num_parameters(init_model(config)),
                **{f'{key} (ms)': ms[key] for key in ('eager', 'captured', 'with its sequences', 'products')},
                'multiplications (10^6)': multiplications(config) / 1e6,
                'tokens/s (10^6)': 1e-3 * config.batch_size * config.context_size / ms['with its sequences'],
            }
        )
        result.ratios += [
            Ratio(f'{name}: eager / captured', quotients(times['eager'], times['captured'])),
            Ratio(f'{name}: captured / products', quotients(times['captured'], times['products'])),
        ]
    note = f'{torch.cuda.get_device_name()}. The products are launched one by one, each into its place.'
    result.tables.append(Table('A step on a GPU', rows, note))
    return result


def _waited_for(function: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run
