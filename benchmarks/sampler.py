"""The sampler: leaves drawn a second, over the size of the language and the depth of its trees, beside the plain way.

Sequences are drawn in large chunks, new ones each time, with one thread and with all cores. The plain way draws each
pair of children by `torch.multinomial` from the v^2 probabilities of its parent, 64 sequences at a time.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from benchmarks import plain
from benchmarks.measure import Settings, Work, in_turn
from benchmarks.report import Ratio, Result, Table, quotients
from RLM_clean.datasets import RLM
from RLM_clean.threads import available_cores


def drawing(grammar: RLM, L: int, leaves: int, threads: int) -> Work:
    """Sequences drawn in large chunks, `leaves` tokens a call, never the same twice."""
    count = max(1, leaves >> L)
    firsts = itertools.count(0, count)
    return Work(lambda: grammar.sequences(next(firsts), count, L=L), count << L, threads)


def plain_drawing(grammar: RLM, L: int, threads: int, batch_size: int = 64) -> Work:
    """The same sequences drawn the plain way, a batch a call."""
    M = grammar.rules[0].flatten(1)
    return Work(lambda: plain.sample(M, L, batch_size), batch_size << L, threads)


def measure(settings: Settings) -> Result:
    """The table over (v, L), with one thread and with all cores."""
    vs, Ls, leaves = ((32, 128), (1, 3, 10), 2**16) if settings.quick else ((32, 128, 512), (1, 3, 6, 10), 2**20)
    cores = available_cores()
    numbers = sorted({1, cores})
    works: dict[tuple[Any, ...], Work] = {}
    for v in vs:
        grammar = RLM(v, 1)
        works |= {(v, L, n): drawing(grammar, L, leaves, n) for L in Ls for n in numbers}
        if v == 128:
            works |= {('plain', v, L, n): plain_drawing(grammar, L, n) for L in (1, 3) for n in numbers}
    times = in_turn(works, settings.repeats, settings.span)

    rows = []
    for v in vs:
        for L in Ls:
            row: dict[str, Any] = {'v': v, 'L': L}
            for n in numbers:
                row[f'{n} thread{"s" * (n > 1)}'] = 1e-6 / statistics.median(times[v, L, n])
            plainly = [times[key] for n in numbers if (key := ('plain', v, L, n)) in times]
            row['plain way'] = 1e-6 / min(map(statistics.median, plainly)) if plainly else None
            rows.append(row)
    note = 'A sequence has 2^L leaves. The plain way has as many threads as serve it best.'
    table = Table('Leaves drawn a second (10^6)', rows, note)

    best = min((times['plain', 128, 3, n] for n in numbers), key=statistics.median)
    top, growth = max(vs), 3.0 if max(vs) == 512 else None
    ratios = [
        Ratio('v=128, L=3: leaves a second, 10^6', [1e-6 / x for x in times[128, 3, cores]], at_least=10.0),
        Ratio('v=128, L=3: plain way / sampler', quotients(best, times[128, 3, cores]), at_least=2000.0),
        Ratio('v=128: a leaf at L=10 / L=1', quotients(times[128, 10, cores], times[128, 1, cores]), at_most=3.5),
        Ratio(f'L=3: a leaf at v={top} / v=32', quotients(times[top, 3, cores], times[32, 3, cores]), at_most=growth),
    ]
    return Result([table], ratios)
