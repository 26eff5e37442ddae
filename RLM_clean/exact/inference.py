"""Exact inference on the tree: belief propagation in float64.

With `T[a, b, c]` the rules of a level, every node has an upward message, the likelihood of what is observed below it,

    u[a] = sum_bc T[a, b, c] u_left[b] u_right[c],        one-hot at a seen leaf, all ones at an unseen one,

and an outside message, the probability of its symbol together with what is observed elsewhere,

    alpha_root = prior,   alpha_right[c] = sum_ab alpha[a] u_left[b] T[a, b, c],   alpha_left likewise.

Their product is the posterior of the symbol. Rows sum to one, so a sub-tree in which nothing is seen keeps the message
of all ones: it is never computed. Messages are normalised at every node, which excludes underflow with depth; a
product of probabilities of one node below the smallest double, about 1e-308, counts as zero.

Cost of a sequence: two dense messages meet in a contraction of v^3; a pair of seen leaves, a one-hot message, an
unseen side, and an outside message that no observation has touched yet (the same for all sequences) take O(v^2) or
less. The nodes of a level share its rules, and go through them together: few long sequences keep matrix products as
busy as many short ones. Memory: beside twice the results and the rules in float64, at most four arrays of 2^24 numbers,
0.5 GB, on a CPU (2^28 on a GPU), or what a single sequence needs, v * 2^L numbers, whatever the number of sequences.

J. Pearl, Probabilistic Reasoning in Intelligent Systems, Morgan Kaufmann 1988; for grammars, the inside-outside
algorithm of J. K. Baker, Trainable grammars for speech recognition, J. Acoust. Soc. Am. 65, S132 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.streams import random_words, stream_key

# What is known of a symbol of each of R sequences: nothing (None: all ones), its value (int64 (R,): one-hot), or
# weights (float64 (R, v)). An outside message that is the same for every sequence is float64 (v,).
Message = Tensor | None
M = TypeVar('M', Tensor, Message)
Contraction = Callable[[Tensor, Tensor, Tensor], Tensor]
Device = torch.device | str | None

# Numbers in one factor of a matrix product: many rows make it fast, as long as they stay in the cache.
_MESSAGE_ENTRIES = {'cpu': 2**17, 'cuda': 2**22}
# Sequences are worked on in chunks. Numbers in all messages of a chunk, which bound the memory.
_CHUNK_ENTRIES = {'cpu': 2**24, 'cuda': 2**28}
# Posterior trees take their random words from the stream 'other' under this index; never change it.
_POSTERIOR_INDEX = 0


def next_token_probs(grammar: TreeGrammar, inputs: Tensor, device: Device = None) -> Tensor:
    """The best possible prediction: P(x_n | the last k tokens before it), `(B, v)` float64.

    `alpha_0 = prior`, `alpha_{l+1}[c] = sum_ab alpha_l[a] u_l[b] T_l[a, b, c]` down the right spine, u_l the upward
    message of the left sub-tree; the prediction is alpha_L, normalised.

    `inputs (B, k)` int64 holds the k tokens before the target, 0 <= k <= n - 1, n = 2^L; earlier ones are unseen, and
    k = 0, shape (B, 0), gives the marginal of x_n. Cost for k = n - 1: 2^(L-1) - 2 contractions of v^3 a sequence.
    Computed on `device`, that of the inputs by default; on the CPU in place of mps, which has no float64. Raises
    ValueError for tokens or shapes that do not fit the grammar and for a context of probability zero.
    """
    inputs, levels, prior = _prepared(grammar, inputs, 'inputs', device)
    unseen = [None] * (2**grammar.L - 1 - inputs.shape[1])

    def predict(rows: slice) -> list[Tensor]:
        alpha, log_scale = _spine(levels, prior, [*unseen, *inputs[rows].unbind(1)])
        _check_possible(log_scale > -torch.inf, rows)
        return [alpha.expand(len(inputs[rows]), -1)]

    return _in_chunks(predict, inputs, grammar.v, 2**grammar.L * grammar.v)[0]


def all_next_token_probs(grammar: TreeGrammar, leaves: Tensor, device: Device = None) -> Tensor:
    """Every next-token prediction: `[:, i]` is P(x_i | x_0..x_{i-1}), i = 0..n-1, `(B, n, v)` float64.

    With m < n leaves these are the last m of the tree, the earlier ones are unseen, and the result is `(B, m, v)`.

    A node's outside message holds the past alone, since what stands to its right is unseen, and its left sibling's
    sub-tree is complete. This takes 2^L - 2 L contractions of v^3 a sequence, less than twice those of one prediction.
    `leaves (B, n)` int64; the first gets its marginal.

    Raises ValueError for tokens or shapes that do not fit and for a past of probability zero.
    """
    leaves, levels, prior = _prepared(grammar, leaves, 'last leaves', device)
    unseen = [None] * (2**grammar.L - leaves.shape[1])

    def predict(rows: slice) -> list[Tensor]:
        # The last leaf conditions nothing.
        messages, _ = _upward(levels, [*unseen, *leaves[rows, :-1].unbind(1)], _sum_product)
        alphas = [prior]
        for level, nodes in zip(levels, messages[1:], strict=True):
            alphas = _children_outside(level, alphas, nodes[::2], [None] * len(alphas))
        seen = alphas[len(unseen) :]
        probs = torch.stack([alpha.expand(len(leaves[rows]), -1) for alpha in seen], 1)
        _check_possible(probs[:, -1].sum(1) > 0, rows)
        return [probs]

    return _in_chunks(predict, leaves, grammar.v, 2**grammar.L * grammar.v)[0]


def log_likelihood(grammar: TreeGrammar, leaves: Tensor, device: Device = None, strict: bool = True) -> Tensor:
    """ln P(x_0..x_{n-1}) of each sequence, `(B,)` float64, in nats.

    It is the sum of the logarithms by which the messages of the first n - 1 leaves are normalised, and of
    ln P(x_{n-1} | x_0..x_{n-2}). With m < n leaves these are the last m of the tree and the earlier ones are unseen:
    ln P(x_{n-m}..x_{n-1}). `leaves (B, m)` int64. Raises ValueError for tokens or shapes that do not fit and for a
    sequence of probability zero, which gets minus infinity where `strict` is False.
    """
    leaves, levels, prior = _prepared(grammar, leaves, 'last leaves', device)
    unseen = [None] * (2**grammar.L - leaves.shape[1])

    def evaluate(rows: slice) -> list[Tensor]:
        *past, last = leaves[rows].unbind(1)
        alpha, log_scale = _spine(levels, prior, [*unseen, *past])
        log_probs = log_scale + alpha.expand(len(last), -1).gather(1, last[:, None])[:, 0].log()
        if strict:
            _check_possible(log_probs > -torch.inf, rows)
        return [log_probs]

    return _in_chunks(evaluate, leaves, grammar.v, 2**grammar.L * grammar.v)[0]


def ancestor_posteriors(
    grammar: TreeGrammar, leaves: Tensor, past: int | None = None, device: Device = None
) -> list[Tensor]:
    """The posterior of every symbol of the tree given the leaves: for each level l = 0..L `(B, 2^l, v)` float64.

    `P(node = a | leaves)` is proportional to `alpha[a] u[a]`. `leaves (B, n)` int64; with `past=k` only the first k
    of them are seen, and the posteriors of the others are predictions. Raises ValueError for tokens, shapes or a past
    that do not fit and for observations of probability zero.
    """
    leaves, levels, prior = _prepared(grammar, leaves, 'leaves', device)
    length = 2**grammar.L
    seen = length if past is None else past
    if not 0 <= seen <= length:
        raise ValueError(f'past={past} is no number of seen leaves: use 0 to {length}')
    unseen = [None] * (length - seen)

    def posteriors(rows: slice) -> list[Tensor]:
        messages, _ = _upward(levels, [*leaves[rows, :seen].unbind(1), *unseen], _sum_product)
        outside, found = [prior], []
        for depth, nodes in enumerate(messages):
            symbols = [_posterior(alpha, u) for alpha, u in zip(outside, nodes, strict=True)]
            found.append(torch.stack([symbol.expand(len(leaves[rows]), -1) for symbol in symbols], 1))
            if depth < grammar.L:
                below = messages[depth + 1]
                outside = _children_outside(levels[depth], outside, below[::2], below[1::2])
        _check_possible(found[0][:, 0].sum(1) > 0, rows)
        return found

    return _in_chunks(posteriors, leaves, grammar.v, 2 * length * grammar.v)


def spine_posteriors(grammar: TreeGrammar, inputs: Tensor, device: Device = None) -> tuple[Tensor, Tensor]:
    """What the last k tokens before x_n tell of its ancestors a_0 (the root), ..., a_(L-1), and of a_L = x_n itself.

    The posteriors `P(a_l = a | inputs)`, `(B, L + 1, v)`, and the channels `P(a_l = a | a_(l+1) = c, inputs)`,
    `[:, l, c, a]` of `(B, L, v, v)`; both float64. With alpha_l and u_l as in `next_token_probs`, a channel is
    proportional to `alpha_l[a] sum_b u_l[b] T_l[a, b, c]`: what is seen below the child tells no more of its parent
    than the child does. Given the inputs, a_L, ..., a_0 are therefore a Markov chain, and the posteriors are the
    prediction of x_n carried up through the channels. For a child that no parent can have beside what is seen, which
    has posterior zero, the channel gives the posterior of the parent.

    `inputs (B, k)` int64, 0 <= k <= n - 1. The result takes 8 B L v^2 bytes, and a sequence L contractions of v^3 more
    than its prediction. Raises ValueError as `next_token_probs` does.
    """
    inputs, levels, prior = _prepared(grammar, inputs, 'inputs', device)
    unseen = [None] * (2**grammar.L - 1 - inputs.shape[1])

    def climb(rows: slice) -> list[Tensor]:
        messages, _ = _upward(levels, [*unseen, *inputs[rows].unbind(1)], _sum_product)
        alpha, joints = prior.expand(len(inputs[rows]), -1), []
        for level, nodes in zip(levels, messages[1:], strict=True):
            joints.append(alpha[:, :, None] * _given_left(level, nodes[-1]))
            alpha, _ = _normalised(joints[-1].sum(1))
        _check_possible(alpha.sum(1) > 0, rows)
        posteriors, channels = [alpha], []
        for joint in reversed(joints):
            channel, log_norm = _normalised(joint.transpose(1, 2))
            posteriors.append(torch.einsum('rc,rca->ra', posteriors[-1], channel))
            channels.append(channel.where(log_norm[..., None] > -torch.inf, posteriors[-1][:, None]))
        return [torch.stack(posteriors[::-1], 1), torch.stack(channels[::-1], 1)]

    entries = 2**grammar.L * grammar.v + 3 * grammar.L * grammar.v**2
    posteriors, channels = _in_chunks(climb, inputs, grammar.v, entries)
    return posteriors, channels


def sample_posterior(grammar: TreeGrammar, leaves: Tensor, n: int, seed: int, device: Device = None) -> list[Tensor]:
    """`n` trees drawn from P(tree | leaves): for each level l = 0..L its symbols `(n, B, 2^l)` int64, leaves included.

    From the root down, `P(b | a)` is proportional to `u_left[b] sum_c T[a, b, c] u_right[c]`, and `P(c | a, b)` to
    `T[a, b, c] u_right[c]`. `leaves (B, 2^L)` int64. Tree i of row r is a function of (seed, r, i) and of the leaves
    of that row alone. Raises ValueError for tokens, shapes or an n that do not fit and for a sequence of probability
    zero.
    """
    leaves, levels, prior = _prepared(grammar, leaves, 'leaves', device)
    if n < 1:
        raise ValueError(f'n={n} leaves no tree to draw: use 1 or more')
    key = stream_key(seed, 'other', _POSTERIOR_INDEX)
    row_keys = random_words(key, torch.arange(len(leaves), device=leaves.device))
    samples = torch.arange(n, device=leaves.device)

    def draw_trees(rows: slice) -> list[Tensor]:
        keys = random_words(row_keys[rows].repeat_interleave(n), samples.repeat(len(row_keys[rows])))
        messages, _ = _upward(levels, leaves[rows].unbind(1), _sum_product)
        root = _posterior(prior, messages[0][0])
        _check_possible(root.sum(1) > 0, rows)

        def children(T: Tensor, a: Tensor, left: Tensor, right: Tensor, node: int) -> tuple[Tensor, Tensor]:
            left, right = left.repeat_interleave(n, 0), right.repeat_interleave(n, 0)
            b = _draw(left * _times_matrix_of(T.transpose(1, 2), a, right), keys, 2 * node)
            return b, _draw(T[a, b] * right, keys, 2 * node + 1)

        hidden = _descend(levels, messages, _draw(root.repeat_interleave(n, 0), keys, 0), children)
        return [nodes.view(-1, n, nodes.shape[1]) for nodes in hidden]

    hidden = _in_chunks(draw_trees, leaves, grammar.v, grammar.v * max(2**grammar.L, 4 * n))
    return [*(nodes.transpose(0, 1) for nodes in hidden), leaves.expand(n, -1, -1)]


def most_probable_tree(grammar: TreeGrammar, leaves: Tensor, device: Device = None) -> tuple[list[Tensor], Tensor]:
    """The most probable tree above the leaves, and the logarithm of the joint probability of tree and leaves.

    The levels are `(B, 2^l)` int64, l = 0..L, leaves included; the logarithm is `(B,)` float64, in nats. Upward
    `m[a] = max_bc T[a, b, c] m_left[b] m_right[c]`, then the best root and the best children of each parent. Among
    trees of equal probability any one is returned. `leaves (B, 2^L)` int64. Raises ValueError for tokens or shapes
    that do not fit and for a sequence of probability zero.
    """
    leaves, levels, prior = _prepared(grammar, leaves, 'leaves', device)
    v = grammar.v

    def children(T: Tensor, a: Tensor, left: Tensor, right: Tensor, node: int) -> tuple[Tensor, Tensor]:
        pair = (T[a] * left[:, :, None] * right[:, None]).flatten(1).argmax(1)
        return pair // v, pair % v

    def best(rows: slice) -> list[Tensor]:
        messages, _ = _upward(levels, leaves[rows].unbind(1), _max_product)
        root = _posterior(prior, messages[0][0])
        _check_possible(root.sum(1) > 0, rows)
        trees = [*_descend(levels, messages, root.argmax(1), children), leaves[rows]]
        steps = zip(levels, trees[:-1], trees[1:], strict=True)
        log_probs = [level.T[a, bc[:, ::2], bc[:, 1::2]].log().sum(1) for level, a, bc in steps]
        return [*trees, prior[trees[0][:, 0]].log() + sum(log_probs)]

    *trees, log_probs = _in_chunks(best, leaves, v, v * max(2**grammar.L, 8 * v))
    return trees, log_probs


# ------------------------------------------------------------------ passes over the tree


def _upward(
    levels: list[_Level], leaves: Sequence[Message], contract: Contraction
) -> tuple[list[list[Message]], Tensor]:
    """The normalised messages of all nodes, level by level from the root, and the logarithm of their norms `(R,)`.

    Without the last leaf, n - 1 of them, the right edge of the tree is left out: the last of the 2^l - 1 nodes of a
    level is then the left sibling of the edge.
    """
    messages, log_scale = [list(leaves)], torch.zeros((), dtype=torch.float64)
    for level in reversed(levels):
        nodes: list[Message] = []
        for u in _together(partial(_up, level, contract), messages[0][::2], messages[0][1::2]):
            if u is not None:
                u, log_norm = _normalised(u)
                log_scale = log_norm + log_scale
            nodes.append(u)
        messages.insert(0, nodes)
    return messages, log_scale


def _spine(levels: list[_Level], prior: Tensor, leaves: Sequence[Message]) -> tuple[Tensor, Tensor]:
    """Down the right spine: P(last leaf | the n - 1 leaves before it) and the logarithm of their probability `(R,)`."""
    messages, log_scale = _upward(levels, leaves, _sum_product)
    alpha = prior
    for level, nodes in zip(levels, messages[1:], strict=True):
        alpha, log_norm = _normalised(_down(level, alpha, nodes[-1]))
        log_scale = log_norm + log_scale
    return alpha, log_scale


def _children_outside(
    level: _Level, outside: list[Tensor], lefts: Sequence[Message], rights: Sequence[Message]
) -> list[Tensor]:
    """The outside messages of the level below, from those of its parents and from the upward messages of siblings."""
    to_left = _together(partial(_down, level.mirrored()), outside, rights)
    to_right = _together(partial(_down, level), outside, lefts)
    return [_normalised(child)[0] for pair in zip(to_left, to_right, strict=True) for child in pair]


def _together(step: Callable[..., M], firsts: Sequence[Message], seconds: Sequence[Message]) -> list[M]:
    """`step(first, second)` for each pair of messages of a level: pairs that are alike are the rows of one batch."""
    alike: dict[object, list[int]] = {}
    for i, (first, second) in enumerate(zip(firsts, seconds, strict=False)):
        # A message that is the same for every sequence has no rows. What is seen is of one kind on a level.
        single = first is not None and first.dim() == 1 and first.is_floating_point()
        alike.setdefault(i if single else (first is None, second is None), []).append(i)
    found: dict[int, M] = {}
    for pairs in alike.values():
        batch = step(*(_stacked([side[i] for i in pairs]) for side in (firsts, seconds)))
        found |= zip(pairs, [batch] * len(pairs) if batch is None else batch.tensor_split(len(pairs)), strict=True)
    return [found[i] for i in range(len(found))]


def _stacked(messages: list[Message]) -> Message:
    rows = [message for message in messages if message is not None]
    return torch.cat(rows) if len(rows) > 1 else messages[0]


def _descend(levels: list[_Level], messages: list[list[Message]], root: Tensor, children: Callable) -> list[Tensor]:
    """Hidden symbols `(R, 2^l)` of levels l = 0..L-1, each pair chosen by `children(T, parent, left, right, node)`."""
    hidden = [[root]]
    for depth, level in enumerate(levels[:-1]):
        families = zip(hidden[-1], messages[depth + 1][::2], messages[depth + 1][1::2], strict=True)
        chosen = [children(level.T, *family, node) for node, family in enumerate(families, 2**depth)]
        hidden.append([child for pair in chosen for child in pair])
    return [torch.stack(nodes, 1) for nodes in hidden]


# ------------------------------------------------------------------ one node


class _Level(NamedTuple):
    """The rules of a level, and their sums over an unseen child."""

    T: Tensor  # T[a, b, c]
    without_left: Tensor  # sum_b T[a, b, c], (a, c)
    without_right: Tensor  # sum_c T[a, b, c], (a, b)

    def mirrored(self) -> _Level:
        """The same rules with left and right exchanged (a view)."""
        return _Level(self.T.transpose(1, 2), self.without_right, self.without_left)


def _up(level: _Level, contract: Contraction, left: Message, right: Message) -> Message:
    """`u[a] = sum_bc T[a, b, c] left[b] right[c]`; the maximum in place of the sum with `_max_product`."""
    if right is None:
        return None if left is None else _times(left, level.without_right.T)
    if left is None:
        return _times(right, level.without_left.T)
    by_pair = level.T.permute(1, 2, 0)
    return contract(by_pair, left, right) if left.is_floating_point() else by_pair[left, right]


def _down(level: _Level, alpha: Tensor, left: Message) -> Tensor:
    """`alpha_right[c] = sum_ab alpha[a] left[b] T[a, b, c]`; for the left child, the level mirrored and u_right."""
    if left is None:
        return alpha @ level.without_left
    if alpha.dim() == 1:
        return _times(left, torch.tensordot(alpha, level.T, 1))
    if left.is_floating_point():
        return _sum_product(level.T, alpha, left)
    return _times_matrix_of(level.T.transpose(0, 1), left, alpha)


def _given_left(level: _Level, left: Message) -> Tensor:
    """`sum_b left[b] T[a, b, c]` as `[r, a, c]`: what a left child leaves of the rules."""
    if left is None:
        return level.without_left
    if not left.is_floating_point():
        return level.T[:, left].transpose(0, 1)
    v = left.shape[1]
    return (left @ level.T.transpose(0, 1).reshape(v, v * v)).view(-1, v, v)


def _posterior(alpha: Tensor, u: Message) -> Tensor:
    if u is None:
        return alpha
    if not u.is_floating_point():
        return torch.nn.functional.one_hot(u, alpha.shape[-1]).double()
    return _normalised(alpha * u)[0]


def _normalised(message: Tensor) -> tuple[Tensor, Tensor]:
    """The message with sum one, and the logarithm of its sum; a row of zeros stays, with minus infinity."""
    total = message.sum(-1, keepdim=True)
    return message / total.where(total > 0, 1), total.squeeze(-1).log()


# ------------------------------------------------------------------ products


def _sum_product(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`out[r, k] = sum_ij tensor[i, j, k] x[r, i] y[r, j]`, one matrix product for each i: `(R, v)`.

    A piece of the factors (R, v) stays in the processor's cache, while the whole outer product (R, v^2) would travel
    through memory; any permutation of the rules is a tensor of matrices that the product reads as they lie.
    """
    out = torch.zeros_like(y)
    for part, x_part, y_part in _row_pieces(_entries(_MESSAGE_ENTRIES, y) // y.shape[1], out, x, y):
        scaled = torch.empty_like(y_part)
        for x_i, matrix in zip(x_part.T.contiguous(), tensor, strict=True):
            torch.mul(x_i[:, None], y_part, out=scaled)
            part.addmm_(scaled, matrix)
    return out


def _max_product(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`out[r, k] = max_ij tensor[i, j, k] x[r, i] y[r, j]`, `(R, v)`."""
    out = torch.zeros_like(y)
    for part, x_part, y_part in _row_pieces(_entries(_CHUNK_ENTRIES, y) // (8 * y.shape[1] ** 2), out, x, y):
        for x_i, matrix in zip(x_part.T, tensor, strict=True):
            torch.maximum(part, (matrix.T * y_part[:, None]).amax(2).mul_(x_i[:, None]), out=part)
    return out


def _row_pieces(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(max(1, rows)) for tensor in tensors), strict=True)


def _times(message: Tensor, matrix: Tensor) -> Tensor:
    """`message @ matrix`, a look-up for a one-hot message."""
    return message @ matrix if message.is_floating_point() else matrix[message]


def _times_matrix_of(matrices: Tensor, symbols: Tensor, vectors: Tensor) -> Tensor:
    """Row r is `vectors[r] @ matrices[symbols[r]]`: the rows are sorted, so that each symbol takes one product."""
    order = symbols.argsort()
    counts = symbols.bincount(minlength=len(matrices)).tolist()
    groups = zip(vectors[order].split(counts), matrices, strict=True)
    out = torch.empty_like(vectors)
    out[order] = torch.cat([group @ matrix for group, matrix in groups])
    return out


def _draw(weights: Tensor, keys: Tensor, word: int) -> Tensor:
    """A symbol with probability proportional to its weight, for each row `(R,)`, from that word of the row's stream."""
    words = random_words(keys, torch.full_like(keys, word))
    uniform = ((words >> 11) & (2**53 - 1)) * 2.0**-53
    cumulative = weights.cumsum(1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]


# ------------------------------------------------------------------ what the public functions share


def _in_chunks(step: Callable[[slice], list[Tensor]], tokens: Tensor, v: int, entries: int) -> list[Tensor]:
    """The results of `step` for all rows, which it gets in slices; the messages of a row hold `entries` numbers."""
    message, chunk = _entries(_MESSAGE_ENTRIES, tokens), _entries(_CHUNK_ENTRIES, tokens)
    rows = max(1, min(message // v, chunk // entries))
    pieces = [step(slice(first, first + rows)) for first in range(0, max(1, len(tokens)), rows)]
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def _entries(sizes: dict[str, int], tensor: Tensor) -> int:
    return sizes.get(tensor.device.type, sizes['cpu'])


def _prepared(grammar: TreeGrammar, tokens: Tensor, name: str, device: Device) -> tuple[Tensor, list[_Level], Tensor]:
    """On the device: the tokens, checked, the levels from the root down (held once if shared), and the prior."""
    n = 2**grammar.L
    widths, meant = {
        'inputs': (range(n), f'(B, k), k < {n}'),
        'leaves': (range(n, n + 1), f'(B, {n})'),
        'last leaves': (range(1, n + 1), f'(B, m), 1 <= m <= {n}'),
    }[name]
    if tokens.dim() != 2 or tokens.shape[1] not in widths:
        raise ValueError(f'{name} of shape {tuple(tokens.shape)} do not fit a tree of {n} leaves: give {meant}')
    if tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f'{name} of type {tokens.dtype} are no tokens: give integers')
    device = torch.device(tokens.device if device is None else device)
    tokens = tokens.to(device='cpu' if device.type == 'mps' else device, dtype=torch.int64)
    wrong = tokens[(tokens < 0) | (tokens >= grammar.v)]
    if len(wrong):
        raise ValueError(
            f'{name} hold the token {wrong[0].item()}: use the symbols of the grammar, 0 to {grammar.v - 1}'
        )
    rules = [grammar.level_rules(depth).to(tokens.device) for depth in range(1 if grammar.shared else grammar.L)]
    levels = [_Level(T, T.sum(1), T.sum(2)) for T in rules] * (grammar.L if grammar.shared else 1)
    return tokens, levels, grammar.prior.to(tokens.device)


def _check_possible(possible: Tensor, rows: slice) -> None:
    if not possible.all():
        row = rows.start + int(possible.int().argmin())
        raise ValueError(f'row {row} has probability zero under this grammar: remove it, or use the rules it is from')
