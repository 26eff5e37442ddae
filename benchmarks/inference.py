"""Speed and memory of exact inference: `python -m benchmarks.inference`, about a minute on one processor core.

One prediction is set beside the matrix products in float64 that it cannot do without, 2^(L-1) - 2 of
`(B, v^2) x (v^2, v)`, the two measured in turn in one process (medians). Then come the other functions at the same
size, and the time and peak memory for sequences of 64 tokens.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from RLM_clean.datasets import RLM
from RLM_clean.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    log_likelihood,
    most_probable_tree,
    next_token_probs,
    sample_posterior,
)


def medians(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each function in seconds, all measured in turn after one warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def matrix_products(v: int, B: int, count: int) -> None:
    """`count` products `(B, v^2) x (v^2, v)` in float64, 1024 rows at a time."""
    outer, rules = torch.ones(1024, v * v, dtype=torch.float64), torch.ones(v * v, v, dtype=torch.float64)
    out = torch.empty(1024, v, dtype=torch.float64)
    for _ in range(count * B // 1024):
        torch.mm(outer, rules, out=out)


def peak_memory() -> float:
    """The largest resident memory of this process so far, in GB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description='Speed and memory of exact inference.')
    parser.add_argument('--v', type=int, default=128, help='number of symbols')
    parser.add_argument('--batch', type=int, default=4096, help='number of sequences')
    parser.add_argument('--repeats', type=int, default=5, help='repeats of each measurement')
    parser.add_argument('--threads', type=int, default=1, help='threads of torch')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    v, B = options.v, options.batch
    print(f'v={v}, B={B}, threads={options.threads}, float64, torch {torch.__version__}')

    # First, so that the peak of memory is that of the long sequences.
    rlm = RLM(v=v, L=6)
    leaves = rlm.sequences(0, B, 'test')
    start, before = time.perf_counter(), peak_memory()
    next_token_probs(rlm, leaves[:, :-1])
    elapsed = time.perf_counter() - start
    print(f'\n{"L=6":<34}{"time [s]":>10}{"per sequence [us]":>20}{"peak memory [GB]":>20}{"before":>10}')
    print(
        f'{"next_token_probs, k=63":<34}{elapsed:>10.3f}{elapsed / B * 1e6:>20.1f}{peak_memory():>20.2f}{before:>10.2f}'
    )

    rlm = RLM(v=v, L=3)
    leaves = rlm.sequences(0, B, 'test')
    mine, products = medians(
        [lambda: next_token_probs(rlm, leaves[:, :7]), lambda: matrix_products(v, B, 2)], options.repeats
    )
    print(f'\n{"L=3":<34}{"time [s]":>10}{"per sequence [us]":>20}')
    print(f'{"next_token_probs, k=7":<34}{mine:>10.3f}{mine / B * 1e6:>20.1f}')
    print(f'{"its matrix products alone":<34}{products:>10.3f}{products / B * 1e6:>20.1f}')
    print(f'{"ratio":<34}{mine / products:>10.2f}')
    functions: dict[str, Callable[[], object]] = {
        'next_token_probs, k=3': lambda: next_token_probs(rlm, leaves[:, 4:7]),
        'all_next_token_probs': lambda: all_next_token_probs(rlm, leaves),
        'log_likelihood': lambda: log_likelihood(rlm, leaves),
        'ancestor_posteriors': lambda: ancestor_posteriors(rlm, leaves),
        'sample_posterior, n=1': lambda: sample_posterior(rlm, leaves, n=1, seed=0),
        'most_probable_tree, B=256': lambda: most_probable_tree(rlm, leaves[:256]),
    }
    for name, function in functions.items():
        (elapsed,) = medians([function], 2)
        print(f'{name:<34}{elapsed:>10.3f}{elapsed / (256 if "B=256" in name else B) * 1e6:>20.1f}')


if __name__ == '__main__':
    main()
