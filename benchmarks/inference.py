"""Exact inference: belief propagation, beside the matrix products in float64 that it cannot do without.

At L = 3 a prediction takes 2^(L-1) - 2 = 2 products `(B, v^2) x (v^2, v)`. The memory is that of long sequences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.measure import Settings, Work, in_process, in_turn, peak_memory, seconds, threads_kept, watched
from benchmarks.report import Ratio, Result, Table, quotients
from RLM_clean.datasets import RLM
from RLM_clean.exact.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    log_likelihood,
    most_probable_tree,
    next_token_probs,
    sample_posterior,
)


def matrix_products(v: int, B: int, count: int) -> None:
    """`count` products `(B, v^2) x (v^2, v)` in float64, 1024 rows at a time."""
    rows = min(B, 1024)
    outer, rules = torch.ones(rows, v * v, dtype=torch.float64), torch.ones(v * v, v, dtype=torch.float64)
    out = torch.empty(rows, v, dtype=torch.float64)
    for _ in range(count * B // rows):
        torch.mm(outer, rules, out=out)


def long_sequences(v: int, B: int, L: int) -> dict[str, float]:
    """Seconds and memory (GB) of a prediction from all tokens of long sequences, for a process of its own."""
    torch.set_num_threads(1)
    rlm = RLM(v, L)
    inputs = rlm.sequences(0, B, 'test')[:, :-1]
    before = peak_memory()
    return {
        'seconds': seconds(lambda: next_token_probs(rlm, inputs)),
        'memory': peak_memory(),
        'before': before,
    }


def measure(settings: Settings) -> Result:
    """The tables at L = 3, of which a prediction takes 2^(L-1) - 2 = 2 such products, and of long sequences."""
    v, B, L = (32, 512, 4) if settings.quick else (128, 4096, 6)
    few = min(B, 256)
    rlm = RLM(v, 3)
    leaves = rlm.sequences(0, B, 'test')
    functions: dict[str, Callable[[], object]] = {
        'next_token_probs, k=7': lambda: next_token_probs(rlm, leaves[:, :7]),
        'its matrix products alone': lambda: matrix_products(v, B, 2),
        'next_token_probs, k=3': lambda: next_token_probs(rlm, leaves[:, 4:7]),
        'all_next_token_probs': lambda: all_next_token_probs(rlm, leaves),
        'log_likelihood': lambda: log_likelihood(rlm, leaves),
        'ancestor_posteriors': lambda: ancestor_posteriors(rlm, leaves),
        'sample_posterior, n=1': lambda: sample_posterior(rlm, leaves, n=1, seed=0),
        'most_probable_tree': lambda: most_probable_tree(rlm, leaves[:few]),
    }
    works = {name: Work(run, few if name == 'most_probable_tree' else B) for name, run in functions.items()}
    times: dict[str, list[float]] = {}
    with threads_kept(1):
        for _ in watched({f'L=3, {settings.repeats} times': None, f'L={L}': None}):
            if not times:
                times = in_turn(works, settings.repeats)
            else:
                long = in_process(long_sequences, v, B, L)
    rows = [{'function': name, 'a sequence (us)': 1e6 * statistics.median(times[name])} for name in works]
    note = f'v={v}, L=3, one thread, float64; {B} sequences at a time, {few} for the most probable tree.'
    row = {
        'function': f'next_token_probs, k={2**L - 1}',
        'a sequence (us)': 1e6 * long['seconds'] / B,
        'peak memory (GB)': long['memory'],
        'before (GB)': long['before'],
    }
    ratio = quotients(times['next_token_probs, k=7'], times['its matrix products alone'])
    return Result(
        [Table('Exact inference', rows, note), Table(f'Long sequences: L={L}, {B} at a time', [row])],
        [Ratio('next_token_probs, k=7 / its matrix products', ratio)],
    )
