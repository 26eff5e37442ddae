"""Exact inference: belief propagation, beside the matrix products in float64 that it cannot do without.

At L = 3 a prediction takes 2^(L-1) - 2 = 2 products `(B, v^2) x (v^2, v)`. The memory is that of long sequences. The
posteriors of all n leaves given likelihoods take 3 n - 5 products, those given tokens, known or not, 3 n / 2 - 5.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Settings, Work, in_process, in_turn, peak_memory, seconds, threads_kept, watched
from benchmarks.report import Ratio, Result, Table, quotients
from RLM_clean.datasets import RLM
from RLM_clean.exact.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    leaf_posteriors,
    log_likelihood,
    most_probable_tree,
    next_token_probs,
    posterior_entropy,
    sample_posterior,
)


def matrix_products(v: int, B: int, count: int) -> None:
    """`count` products `(B, v^2) x (v^2, v)` in float64, 1024 rows at a time."""
    rows = min(B * count, 1024)
    outer, rules = torch.ones(rows, v * v, dtype=torch.float64), torch.ones(v * v, v, dtype=torch.float64)
    out = torch.empty(rows, v, dtype=torch.float64)
    for first in range(0, B * count, rows):
        some = min(rows, B * count - first)
        torch.mm(outer[:some], rules, out=out[:some])


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


def evidence_at_any_leaf(v: int, L: int, B: int, repeats: int) -> tuple[list[dict[str, Any]], list[Ratio]]:
    """Rows of a table and ratios: posteriors of all leaves and entropies, given likelihoods and given tokens.

    Of the tokens 15% are unknown, and then all but 5%, which must not cost more.
    """
    rlm, n = RLM(v, L), 2**L
    generator = torch.Generator().manual_seed(0)
    leaves = rlm.sequences(0, B, 'test')
    likelihoods = torch.rand(B, n, v, generator=generator, dtype=torch.float64)
    some, few = (leaves.masked_fill(torch.rand(B, n, generator=generator) < part, -1) for part in (0.15, 0.95))
    dense, tokens = '3 n - 5 matrix products', '3 n / 2 - 5 matrix products'
    functions: dict[str, Callable[[], object]] = {
        'leaf_posteriors, likelihoods': lambda: leaf_posteriors(rlm, likelihoods),
        'posterior_entropy, likelihoods': lambda: posterior_entropy(rlm, likelihoods),
        dense: lambda: matrix_products(v, B, 3 * n - 5),
        'leaf_posteriors, 15% unknown': lambda: leaf_posteriors(rlm, some),
        'posterior_entropy, 15% unknown': lambda: posterior_entropy(rlm, some),
        'leaf_posteriors, 95% unknown': lambda: leaf_posteriors(rlm, few),
        tokens: lambda: matrix_products(v, B, 3 * n // 2 - 5),
    }
    times = in_turn({name: Work(run, B) for name, run in functions.items()}, repeats)
    sizes = {'v': v, 'L': L, 'sequences': B}
    rows = [{**sizes, 'function': name, 'a sequence (us)': 1e6 * statistics.median(times[name])} for name in times]
    products = {name: dense if 'likelihoods' in name else tokens for name in times if name not in (dense, tokens)}
    ratios = [
        Ratio(f'v={v}, L={L}: {name} / products', quotients(times[name], times[needed]), at_most=2.5)
        for name, needed in products.items()
    ]
    return rows, ratios


def measure(settings: Settings) -> Result:
    """The tables at L = 3, of which a prediction takes 2^(L-1) - 2 = 2 such products, and of long sequences."""
    v, B, L = (32, 512, 4) if settings.quick else (128, 4096, 6)
    sizes = [(8, 3, 64), (16, 4, 32)] if settings.quick else [(32, 3, 4096), (32, 6, 512), (128, 3, 512), (128, 6, 64)]
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
    parts: dict[str, Callable[[], Any]] = {
        f'L=3, {settings.repeats} times': lambda: in_turn(works, settings.repeats),
        f'L={L}': lambda: in_process(long_sequences, v, B, L),
        'evidence at any leaf': lambda: [evidence_at_any_leaf(*size, settings.repeats) for size in sizes],
    }
    with threads_kept(1):
        times, long, evidence = (measured() for _, measured in watched(parts))
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
        [
            Table('Exact inference', rows, note),
            Table(f'Long sequences: L={L}, {B} at a time', [row]),
            Table('Evidence at any leaf', [line for lines, _ in evidence for line in lines], 'One thread, float64.'),
        ],
        [
            Ratio('next_token_probs, k=7 / its matrix products', ratio),
            *(ratio for _, ratios in evidence for ratio in ratios),
        ],
    )
