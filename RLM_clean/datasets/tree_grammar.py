"""Sequences from a context-free grammar on a complete binary tree.

The root is drawn from a prior; each symbol `a` of level l becomes a pair of children `(b, c)` of level l + 1 with
probability `T_l[a, b, c]`; the 2^L leaves are the sequence. Sequence i of a stream is a function of (seed_samples,
stream, i) alone, so any batch can be drawn at any time, in any process, in any order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from RLM_clean.datasets.alias import AliasTable
from RLM_clean.streams import random_permutation, random_words, stream_key
from RLM_clean.threads import for_each

# Table look-ups run fastest while the working set of a chunk stays in the processor's cache.
_NODES_PER_CHUNK = {'cpu': 2**15, 'cuda': 2**24}
# Entries of the rules that are turned into float64 at a time: temporaries that stay in the processor's cache.
_ENTRIES_PER_BLOCK = 2**18


class TreeGrammar(Dataset):
    """A grammar given by its rules; a dataset of (inputs, target) pairs when `num_data` is set.

    The task: the sequence x_1..x_n, n = 2^L; the input is x_1..x_{n-1}, the target x_n.

    Args:
        rules: one tensor `(v, v, v)` that every level shares, or a sequence of L of them, `rules[l][a, b, c]` being
            P(children = (b, c) | parent = a) from level l (0 at the root) to level l + 1. They are kept in the
            precision they come in, and every row is normalised in float64 before any use.
        L: the number of levels of rules; sequences have 2^L tokens.
        prior: probabilities of the root's symbols `(v,)`; uniform by default.
        seed_samples: the seed of every stream of sequences.
        num_data: None for the online regime (each batch is new); an integer for a fixed training set of the first
            `num_data` sequences of the training stream, reshuffled each epoch.
        transform: applied to inputs, of one sequence or of a batch, before they are returned.
        device: where sequences are drawn and returned; the same ones on every device.

    Memory: an entry of a rule tensor takes its own 4 bytes in float32. What is expensive is made when it is first used,
    and kept: 8 bytes more for the alias table of a level once sequences are drawn from it, and 8 more for its rules in
    float64 once `level_rules` is called, as inference from two tokens or more does. A language of one level (L = 1)
    and its exact floors never need the latter: 12 bytes in all.

    Raises ValueError for rules or priors that are not probabilities, and for sizes that do not fit together.
    """

    # The level from which symbols become pairs of children by the rules; not 0 in a filtered language.
    top_level = 0

    def __init__(
        self,
        rules: Tensor | Sequence[Tensor],
        L: int,
        *,
        prior: Tensor | Sequence[float] | None = None,
        seed_samples: int = 0,
        num_data: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if L < 1:
            raise ValueError(f'L={L} is not a valid depth: use 1 or more')
        self.shared = isinstance(rules, Tensor)
        self.rules: list[Tensor] = [rules] if isinstance(rules, Tensor) else list(rules)
        if not self.shared and len(self.rules) != L:
            raise ValueError(f'{len(self.rules)} rule tensors were given for L={L}: give one a level, or one for all')
        self.v = self.rules[0].shape[0]
        for tensor in self.rules:
            _check_rules(tensor, self.v)
        if num_data is not None and num_data < 1:
            raise ValueError(
                f'num_data={num_data} is not a valid number of sequences: use 1 or more, or None for the online regime'
            )
        self.L = L
        self.prior = _normalised_prior(prior, self.v)
        self.seed_samples = seed_samples
        self.num_data = num_data
        self.transform = transform
        self.device = torch.device(device if device is not None else 'cpu')
        self._drawn = {'train': 0, 'other': 0}
        self._permutation: tuple[int, Tensor] | None = None
        # Made when first used, by the number of the rule tensor.
        self._root_table: AliasTable | None = None
        self._tables: dict[int, AliasTable] = {}
        self._exact_rules: dict[int, Tensor] = {}
        self._transitions: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def seed_sample(self) -> int:
        """seed_samples, by the name that the options of a run have for it."""
        return self.seed_samples

    # ------------------------------------------------------------------ the language

    def level_rules(self, level: int) -> Tensor:
        """`T[a, b, c]` of a level (0 at the root), `(v, v, v)` float64 on the CPU, rows summing to one.

        Made at the first call and kept: do not write into it. `blocks` gives the same numbers and keeps nothing.
        """
        number = self._number(level)
        if number not in self._exact_rules:
            self._exact_rules[number] = _normalised(self.rules[number])
        return self._exact_rules[number]

    def blocks(self, level: int) -> Iterator[tuple[slice, Tensor]]:
        """The rules of a level as float64 in blocks of parents, see `normalised_blocks`."""
        number = self._number(level)
        if number in self._exact_rules:
            return ((parents, self._exact_rules[number][parents]) for parents in _parents(self.rules[number]))
        return normalised_blocks(self.rules[number])

    def _block(self, number: int, parents: slice) -> Tensor:
        if number in self._exact_rules:
            return self._exact_rules[number][parents]
        return _normalised(self.rules[number][parents])

    def transitions(self, level: int) -> tuple[Tensor, Tensor]:
        """`P_L[a, b] = sum_c T[a, b, c]` and `P_R[a, c] = sum_b T[a, b, c]` of a level, `(v, v)` float64; kept."""
        number = self._number(level)
        if number not in self._transitions:
            left, right = torch.empty(2, self.v, self.v, dtype=torch.float64)

            def add(parents: slice) -> None:
                block = self._block(number, parents)
                left[parents], right[parents] = block.sum(2), block.sum(1)

            for_each(_parents(self.rules[number]), add, entries=self.v**2)
            self._transitions[number] = left, right
        return self._transitions[number]

    def table(self, level: int) -> AliasTable:
        """The alias table from which the pairs of children of level `level` are drawn, built at the first call."""
        number = self._number(level)
        if number not in self._tables:
            rows = (self._block(number, parents).flatten(1) for parents in _parents(self.rules[number]))
            self._tables[number] = AliasTable(rows, self.v, self.v**2, self.device)
        return self._tables[number]

    def _number(self, level: int) -> int:
        return 0 if self.shared else level

    def filtered(self, k: int) -> TreeGrammar:
        """The language with the same seeds whose correlations above sub-trees of 2^k leaves are removed, 0 <= k <= L.

        The symbols at the heads of these sub-trees are independent of each other given the root, each with its exact
        law given the root, and the usual rules hold below them: see datasets/filtered.py. k = L gives the language
        itself, a copy that has drawn nothing yet; k = 0 leaves all tokens independent given the root. Raises ValueError
        for k outside 0..L.
        """
        from RLM_clean.datasets.filtered import FilteredGrammar  # filtered.py builds on this module

        if not 0 <= k <= self.L:
            raise ValueError(f'k={k} is not the height of a sub-tree: use 0 to {self.L}')
        if k < self.L:
            return FilteredGrammar(self, k)
        language = copy.copy(self)
        language._drawn = dict.fromkeys(self._drawn, 0)
        return language

    # ------------------------------------------------------------------ sampling

    def trees(self, first: int, count: int, stream: str = 'train', L: int | None = None) -> list[Tensor]:
        """Trees first..first+count-1 of a stream: for each level l = 0..L its symbols, `(count, 2^l)` int64."""
        indices = torch.arange(first, first + count, device=self.device)
        return self._trees(indices, stream, self._depth(L))

    def sequences(
        self,
        first: int,
        count: int,
        stream: str = 'train',
        L: int | None = None,
        seed: int | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The leaves `(count, 2^L)` int64 of the same trees; `seed` takes the place of seed_samples.

        `last=m` gives their last m leaves alone, `(count, m)`: only the part of each tree above them is drawn.
        """
        indices = torch.arange(first, first + count, device=self.device)
        return self._leaves(indices, stream, self._depth(L), seed, last)

    def batches(
        self,
        step: int,
        num_steps: int,
        batch_size: int,
        stream: str = 'train',
        L: int | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Batches step..step+num_steps-1 of a stream: inputs `(num_steps, B, 2^L - 1)`, targets `(num_steps, B)`.

        Batch t holds the sequences t*B..(t+1)*B-1 of its stream; of their last m tokens alone for `last=m`. In the
        offline regime (`num_data`) the training stream is the endless row of epochs, each a permutation of the training
        set, cut into batches.
        """
        leaves = self.leaf_batches(step, num_steps, batch_size, stream, L, last)
        inputs, targets = leaves[..., :-1], leaves[..., -1]
        return (inputs if self.transform is None else self.transform(inputs)), targets

    def leaf_batches(
        self,
        step: int,
        num_steps: int,
        batch_size: int,
        stream: str = 'train',
        L: int | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The sequences of `batches`, targets included: `(num_steps, B, 2^L or last)` int64, without the transform."""
        indices = self._batch_indices(step * batch_size, num_steps * batch_size, stream)
        return self._leaves(indices, stream, self._depth(L), last=last).view(num_steps, batch_size, -1)

    def root_batches(self, step: int, num_steps: int, batch_size: int, stream: str = 'train') -> Tensor:
        """The symbols at the roots of the sequences of `batches`, `(num_steps, B)` int64."""
        indices = self._batch_indices(step * batch_size, num_steps * batch_size, stream)
        roots = self._roots(stream_key(self.seed_samples, stream), indices[:, None] << self.L)
        return roots.view(num_steps, batch_size)

    def batch(self, step: int, batch_size: int, stream: str = 'train', L: int | None = None) -> tuple[Tensor, Tensor]:
        """Batch number `step` of a stream: inputs `(B, 2^L - 1)` and targets `(B,)`, both int64."""
        inputs, targets = self.batches(step, 1, batch_size, stream, L)
        return inputs[0], targets[0]

    def sample_batch(self, batch_size: int, L: int | None = None) -> tuple[Tensor, Tensor]:
        """The next `batch_size` sequences of the training stream: inputs `(B, 2^L - 1)` and targets `(B,)`, int64.

        The t-th call with one batch size returns `batch(t, batch_size)`. `L` asks for another depth than the
        grammar's own, where all levels share their rules.
        """
        depth = self._depth(L)
        first = self._drawn['train']
        if self.num_data is None:
            indices = torch.arange(first, first + batch_size, device=self.device)
        else:
            indices = self._epoch_indices(first, batch_size)
        leaves = self._leaves(indices, 'train', depth)
        self._drawn['train'] += batch_size
        inputs = leaves[:, :-1]
        return (inputs if self.transform is None else self.transform(inputs)), leaves[:, -1]

    def sample_trees(self, n: int, L: int | None = None) -> list[Tensor]:
        """The next `n` trees of a stream of their own: for each level l = 0..L its symbols, `(n, 2^l)` int64."""
        trees = self.trees(self._drawn['other'], n, 'other', L)
        self._drawn['other'] += n
        return trees

    # ------------------------------------------------------------------ the fixed training set

    def __bool__(self) -> bool:
        return True  # a dataset without a length would raise in `if grammar:`

    def __len__(self) -> int:
        if self.num_data is None:
            raise TypeError('an online grammar has no length: set num_data for a fixed training set')
        return self.num_data

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Input `(2^L - 1,)` and target `()` of sequence `index` of the training set."""
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f'index {index} is outside a training set of {size} sequences')
        leaves = self.sequences(index % size, 1)[0]
        inputs = leaves[:-1]
        return (inputs if self.transform is None else self.transform(inputs)), leaves[-1]

    # ------------------------------------------------------------------ inside

    def _depth(self, L: int | None) -> int:
        if L is None or L == self.L:
            return self.L
        if not self.shared:
            raise ValueError(
                f'L={L} does not fit a grammar of depth {self.L} with rules of its own on each level: '
                f'use {self.L} or None'
            )
        if L < 1:
            raise ValueError(f'L={L} is not a valid depth: use 1 or more, or None for the {self.L} of the grammar')
        return L

    def _batch_indices(self, first: int, count: int, stream: str) -> Tensor:
        """The numbers of the sequences at positions first..first+count-1 of a stream of batches."""
        if stream == 'train' and self.num_data is not None:
            return self._epoch_indices(first, count)
        return torch.arange(first, first + count, device=self.device)

    def _epoch_indices(self, first: int, count: int) -> Tensor:
        """The numbers of the sequences at positions first..first+count-1 of the endless row of shuffled epochs."""
        size = len(self)
        pieces = []
        while count:
            epoch, offset = divmod(first, size)
            piece = self._epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return torch.cat(pieces).to(self.device)

    def _epoch(self, epoch: int) -> Tensor:
        if self._permutation is None or self._permutation[0] != epoch:
            order = random_permutation(stream_key(self.seed_samples, 'shuffle', epoch), len(self))
            self._permutation = (epoch, order)
        return self._permutation[1]

    def _trees(self, indices: Tensor, stream: str, depth: int) -> list[Tensor]:
        key = stream_key(self.seed_samples, stream)
        base = indices[:, None] << depth
        levels = self._tops(key, base)
        for level in range(self.top_level, depth):
            levels.append(self._children(key, base, levels[-1], level))
        return levels

    def _leaves(
        self, indices: Tensor, stream: str, depth: int, seed: int | None = None, last: int | None = None
    ) -> Tensor:
        """The (last) leaves of the same trees; where a level has too many nodes, part of the trees goes on alone."""
        n = 2**depth
        width = n if last is None else last
        if not 1 <= width <= n:
            raise ValueError(f'last={last} leaves are not part of a sequence of {n}: use 1 to {n}')
        key = stream_key(self.seed_samples if seed is None else seed, stream)
        size = _NODES_PER_CHUNK.get(self.device.type, 2**15)
        top = self.top_level
        leaves = torch.empty(len(indices), width, dtype=torch.int64, device=self.device)

        def grow(base: Tensor, symbols: Tensor, level: int, out: Tensor) -> None:
            if level == depth:
                out.copy_(symbols)
                return
            nodes = symbols.shape[1]
            for part in zip(*(tensor.split(max(1, size // nodes)) for tensor in (base, symbols, out)), strict=True):
                children = self._children(key, part[0], part[1], level)
                # Only ancestors of the leaves that are asked for: the first child may have none below it.
                needed = 2 ** (level + 1) - (n - width >> depth - level - 1)
                grow(part[0], children[:, 2 * nodes - needed :], level + 1, part[2])

        trees = max(1, size >> top)
        for chunk, out in zip(indices.split(trees), leaves.split(trees), strict=True):
            base = chunk[:, None] << depth
            grow(base, self._tops(key, base)[-1][:, n - width >> depth - top :], top, out)
        return leaves

    # The sampler. Node h of tree i (heap order; 0 is the draw of the root) uses word i * 2^depth + h of the
    # stream; `base (r, 1)` holds the i * 2^depth.

    def _tops(self, key: int, base: Tensor) -> list[Tensor]:
        """The symbols that no rule draws, level by level down to `top_level`."""
        return [self._roots(key, base)]

    def _roots(self, key: int, base: Tensor) -> Tensor:
        if self._root_table is None:
            self._root_table = AliasTable([self.prior[None]], 1, self.v, self.device)
        return self._root_table.draw(torch.zeros_like(base), random_words(key, base))

    def _children(self, key: int, base: Tensor, symbols: Tensor, level: int) -> Tensor:
        """The children `(r, 2 m)` of the last m nodes of a level, from their symbols `(r, m)`."""
        nodes = torch.arange(2 ** (level + 1) - symbols.shape[1], 2 ** (level + 1), device=self.device)
        pairs = self.table(level).draw(symbols, random_words(key, base + nodes))
        children = torch.empty(*pairs.shape, 2, dtype=torch.int64, device=self.device)
        left, right = children.unbind(-1)
        # pairs // v, and faster: exact for pairs below v^2 and v up to 2^14, whose rules no memory holds.
        torch.bitwise_right_shift(pairs * (2**42 // self.v + 1), 42, out=left)
        torch.sub(pairs, left, alpha=self.v, out=right)
        return children.flatten(1)


def normalised_blocks(rules: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some parents after the other: which, and their rules `(r, v, v)` as float64 with rows that sum to one.

    All code that uses rules gets them from here, or whole from `TreeGrammar.level_rules`: sampler, inference and
    entropies share the same numbers. A block is there until the next one is asked for, which takes its memory.
    """
    memory = torch.empty(0, dtype=torch.float64)
    for parents in _parents(rules):
        block = rules[parents]
        if len(block) > len(memory):
            memory = torch.empty(block.shape, dtype=torch.float64)
        yield parents, _normalise(memory[: len(block)].copy_(block))


def _parents(rules: Tensor) -> list[slice]:
    """The blocks of parents that are worked on at a time."""
    # Never a block of one row: torch cuts the sum of a single row by the number of threads, which changes its rounding.
    v = len(rules)
    blocks = torch.arange(v).tensor_split(max(1, v // max(2, _ENTRIES_PER_BLOCK // v**2)))
    return [slice(int(block[0]), int(block[-1]) + 1) for block in blocks]


def _normalised(rules: Tensor) -> Tensor:
    return _normalise(rules.to(torch.float64, copy=True))


def _normalise(exact: Tensor) -> Tensor:
    return exact.div_(exact.sum((1, 2), keepdim=True))


def _check_rules(rules: Tensor, v: int) -> None:
    if rules.shape != (v, v, v) or v < 2:
        raise ValueError(f'rules of shape {tuple(rules.shape)} are not (v, v, v) with the same v >= 2 on each level')
    # Also false for NaN. float32 rules, which are only normalised to rounding, pass.
    if not (rules.min() >= 0 and (rules.sum((1, 2)) - 1).abs().max() < 1e-3):
        raise ValueError('rules must be probabilities: not negative, with sums over the children of one')


def _normalised_prior(prior: Tensor | Sequence[float] | None, v: int) -> Tensor:
    if prior is None:
        return torch.full((v,), 1 / v, dtype=torch.float64)
    weights = torch.as_tensor(prior, dtype=torch.float64, device='cpu')
    if weights.shape != (v,) or not (weights.min() >= 0 and abs(weights.sum().item() - 1) < 1e-6):
        raise ValueError(f'probs must be {v} probabilities that sum to one, for the {v} symbols of the root')
    return weights / weights.sum()
