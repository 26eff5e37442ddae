"""Work on the rows of large tensors, shared among threads.

torch shares one operation among threads where it can, and neither random numbers, running sums nor searches are such
operations. The rows of a grammar are independent of each other, so that a thread can take a row of its own.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar('Item')

MOST_THREADS = 4  # each has temporaries of its own, and one thread makes the items for all
# Shorter rows are done before a thread has started.
LEAST_ENTRIES = 2**14


def for_each(items: Iterable[Item], work: Callable[[Item], object], entries: int) -> None:
    """Calls `work(item)` for all items, on several threads where an item has many `entries`.

    There are as many threads as this process has cores, at most MOST_THREADS. The calling thread makes the items, in
    order, a few before they are needed. Meanwhile torch does not share operations among threads, so that the bits do
    not depend on the number of cores. What `work` or the items raise is raised.
    """
    threads = min(MOST_THREADS, available_cores()) if entries >= LEAST_ENTRIES else 1
    if threads == 1:
        for item in items:
            work(item)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take it over
    try:
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[Future[object]] = deque()
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > 2 * threads:
                    pending.popleft().result()
            for future in pending:
                future.result()
    finally:
        torch.set_num_threads(before)


class Scratch(threading.local):
    """Memory that each thread has for itself, made when it first asks: `tensor`, float64, of unset values.

    A large temporary that is new for every item costs more than the work on it: the system hands out its pages one by
    one and takes them back.
    """

    def __init__(self, *shape: int) -> None:
        self.tensor: Tensor = torch.empty(shape, dtype=torch.float64)


def available_cores() -> int:
    """The cores that this process may use; a batch system may allow fewer than the machine has."""
    if 'SLURM_CPUS_PER_TASK' in os.environ:
        return int(os.environ['SLURM_CPUS_PER_TASK'])
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
