"""Steps on a GPU: eagerly, as a CUDA graph, with the drawing of sequences, and the matrix products alone.

A group of runs is captured as one graph, which takes a step of each. The ratios with a bound are what the project aims
at on one H100.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.measure import Settings, Work, in_turn, matrix_peak, waited_for, watched
from benchmarks.products import multiplications, products_alone
from benchmarks.report import Ratio, Result, Table, quotients
from benchmarks.steps import loop, make_trainer, without_floors
from RLM_clean.config import Config
from RLM_clean.init import init_model
from RLM_clean.models import num_parameters
from RLM_clean.training.ensemble import Ensemble
from RLM_clean.training.loop import WINDOW

DEVICE = 'cuda'
LARGE = 'd=512, depth 6, T=63, in bfloat16'
SIZES: dict[str, dict[str, Any]] = {
    'default': {},
    'default, in bfloat16': {'dtype': 'bfloat16'},
    'L=3': {'num_layers': 3},
    'L=8': {'num_layers': 8},
    '10 million parameters': {'num_layers': 6, 'embedding_dim': 384, 'num_heads': 6, 'depth': 6},
    LARGE: {
        'num_layers': 6, 'embedding_dim': 512, 'num_heads': 8, 'depth': 6, 'batch_size': 512, 'dtype': 'bfloat16',
    },
}  # fmt: skip
GROUPS = (1, 16, 256)  # runs of the default size that are trained together
# What the project aims at on one H100: a default step (s), steps of runs a second in a group, the share of the peak.
STEP, RATE, SHARE = 60e-6, 1e6, 0.4


def measure(settings: Settings) -> Result:
    """The tables of steps and of groups."""
    result = Result()
    sizes = {'default': {'num_features': 16}} if settings.quick else SIZES
    groups = (2,) if settings.quick else GROUPS
    peak = matrix_peak(1, settings.quick, DEVICE, torch.bfloat16)
    rows = [
        _step(name, Config(outname='unused', **options), peak, settings, result) for name, options in watched(sizes)
    ]
    where = torch.cuda.get_device_name() if DEVICE == 'cuda' else DEVICE
    note = (
        f'{where}. The products are launched one by one, each into its place, in the precision of the step. "Of the '
        'peak" sets the multiplications of the captured step beside those of the best large matrix product in '
        f'bfloat16, which makes {2e-12 * peak:.0f} 10^12 operations a second.'
    )
    result.tables.append(Table('A step on a GPU', rows, note))
    config = Config(outname='unused', **sizes['default'])
    rows = [_group(config, number, settings, result) for _, number in watched({f'{n} runs': n for n in groups})]
    note = (
        'Runs of the default size in one graph. Their sequences are drawn run by run; "drawn before" leaves that out.'
    )
    result.tables.append(Table('Groups of runs on a GPU', rows, note))
    return result


def _step(name: str, config: Config, peak: float, settings: Settings, result: Result) -> dict[str, Any]:
    dtype = getattr(torch, config.dtype)
    works = {
        'captured': loop(replace(config, compile='on'), 1, True, DEVICE),
        'with its sequences': loop(replace(config, compile='on'), 1, False, DEVICE),
        'eager': loop(replace(config, compile='off'), 1, True, DEVICE),
        'products': Work(waited_for(products_alone(config, DEVICE, dtype), DEVICE)),
    }
    times = in_turn(works, settings.repeats, settings.span)
    ms = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    shares = [multiplications(config) / (seconds * peak) for seconds in times['captured']]
    result.ratios += [
        Ratio(f'{name}: eager / captured', quotients(times['eager'], times['captured'])),
        Ratio(f'{name}: captured / products', quotients(times['captured'], times['products'])),
    ]
    if name == 'default':
        of_aim = _over(times['captured'], STEP)
        result.ratios.append(Ratio(f'{name}: captured / {1e6 * STEP:.0f} us', of_aim, at_most=1.0))
    if name == LARGE:
        result.ratios.append(Ratio(f'{name}: share of the peak', shares, at_least=SHARE))
    return {
        'step': name,
        'parameters': num_parameters(init_model(config)),
        **{f'{key} (ms)': ms[key] for key in ('eager', 'captured', 'with its sequences', 'products')},
        'multiplications (10^6)': multiplications(config) / 1e6,
        'of the peak': f'{statistics.median(shares):.0%}',
        'tokens/s (10^6)': 1e-3 * config.batch_size * config.context_size / ms['with its sequences'],
    }


def _group(config: Config, number: int, settings: Settings, result: Result) -> dict[str, Any]:
    works = {
        'with their sequences': group(config, number, False, DEVICE),
        'drawn before': group(config, number, True, DEVICE),
    }
    times = in_turn(works, settings.repeats, settings.span)
    rates = {key: [1 / seconds for seconds in values] for key, values in times.items()}
    if number == GROUPS[-1]:
        million = Ratio(
            f'{number} runs: steps of runs a second / 10^6', _over(rates['with their sequences'], RATE), at_least=1.0
        )
        result.ratios.append(million)
    return {
        'runs': number,
        **{f'{key}: steps of runs a second (10^3)': 1e-3 * statistics.median(rate) for key, rate in rates.items()},
    }


def group(config: Config, number: int, drawn: bool, device: str) -> Work:
    """The loop of runs that are trained together and differ in the weights that they start from."""
    language = without_floors(config, drawn, device)
    configs = [replace(config, compile='off', seed_model=seed) for seed in range(1, number + 1)]
    ensemble = Ensemble([make_trainer(one, language, device) for one in configs], compile=True)
    return Work(lambda: ensemble.advance(WINDOW), number * WINDOW)


def _over(values: Sequence[float], unit: float) -> list[float]:
    return [value / unit for value in values]
