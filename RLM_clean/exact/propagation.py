"""Belief propagation on the tree in float64: the passes over its levels that exact inference is made of.

With `T[a, b, c]` the rules of a level, every node has an upward message, the likelihood of what is observed below it,

    u[a] = sum_bc T[a, b, c] u_left[b] u_right[c],        one-hot at a seen leaf, all ones at an unseen one,
                                                          any likelihood at a leaf that is seen in part,

and an outside message, the probability of its symbol together with what is observed elsewhere,

    alpha_root = prior,   alpha_right[c] = sum_ab alpha[a] u_left[b] T[a, b, c],   alpha_left likewise.

Their product is the posterior of the symbol. Rows sum to one, so a sub-tree in which nothing is seen keeps the message
of all ones: beyond the seen leaves it is never computed. Messages are normalised at every node, which excludes
underflow with depth; a product of probabilities of one node below the smallest double, about 1e-308, counts as zero.

The leaves of which something may be known are neighbours, so the nodes of a level that have something seen below them
are neighbours too: their messages are one tensor, and go through the rules of the level together. Few long sequences
keep matrix products as busy as many short ones. Tokens stay integers, -1 for an unknown one among known ones, and what
they say is looked up. For the last k tokens, the smallest sub-tree that holds them and the target is enough; the law of
its root is that of a node on the right edge of the tree.

Cost of a sequence: two dense messages meet in a contraction of v^3; a pair of tokens, known or not, a one-hot message,
an unseen side, and an outside message that no observation has touched yet (the same for all sequences) take O(v^2) or
less. So the posteriors of all nodes, given likelihoods at n leaves, take 3 n - 5 contractions: n - 1 upwards, and two
downwards from each inner node but the root. Given tokens they take those of half as many leaves. Memory: beside a copy
of the evidence, twice the results and the rules in float64, at most four arrays of 2^24 numbers, 0.5 GB, on a CPU (2^28
on a GPU), or what a single sequence needs, v numbers for each of its leaves, whatever the number of sequences.

J. Pearl, Probabilistic Reasoning in Intelligent Systems, Morgan Kaufmann 1988; for grammars, the inside-outside
algorithm of J. K. Baker, Trainable grammars for speech recognition, J. Acoust. Soc. Am. 65, S132 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from RLM_clean.datasets import TreeGrammar
from RLM_clean.exact.correlations import children_law

Contraction = Callable[[Tensor, Tensor, Tensor], Tensor]

# Numbers in one factor of a matrix product: many rows make it fast, as long as they stay in the cache.
_MESSAGE_ENTRIES = {'cpu': 2**17, 'cuda': 2**22}
# Sequences are worked on in chunks. Numbers in all messages of a chunk, which bound the memory.
_CHUNK_ENTRIES = {'cpu': 2**24, 'cuda': 2**28}


# ------------------------------------------------------------------ passes over the tree


class Nodes(NamedTuple):
    """The upward messages of neighbouring nodes of a level, those that have something seen below them."""

    first: int  # the number of the first node on its level
    values: Tensor  # tokens (nodes, R) int64 at leaves, -1 for unknown; weights (nodes, R, v) float64 otherwise


class Level(NamedTuple):
    """The rules of a level, and their sums over an unseen child."""

    T: Tensor  # T[a, b, c]
    without_left: Tensor  # sum_b T[a, b, c], (a, c)
    without_right: Tensor  # sum_c T[a, b, c], (a, b)

    def mirrored(self) -> Level:
        """The same rules with left and right exchanged (a view)."""
        return Level(self.T.transpose(1, 2), self.without_right, self.without_left)


class Subtree(NamedTuple):
    """The part of the tree below a node of its right edge."""

    height: int
    law: Tensor  # of its root, (v,)
    levels: list[Level]  # below its root, whose own rules enter through children_law alone


def tree_levels(language: TreeGrammar, first: int, device: torch.device) -> list[Level]:
    """The levels from number `first` down; there is one copy of rules that all share."""
    found: list[Level] = []
    for level in range(first, language.L):
        if found and language.shared:
            found.append(found[0])
        else:
            left, right = language.transitions(level)
            found.append(Level(language.level_rules(level).to(device), right.to(device), left.to(device)))
    return found


def subtree(language: TreeGrammar, m: int, device: torch.device) -> Subtree:
    """The smallest sub-tree that holds the last m leaves."""
    height = (m - 1).bit_length()
    law = language.prior
    for level in range(language.L - height):
        law = law @ language.transitions(level)[1]
    return Subtree(height, law.to(device), tree_levels(language, language.L - height + 1, device) if height else [])


def down_path(language: TreeGrammar, level: int, law: Tensor, turns: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """The laws of the nodes of a path from a node of a level (0 turns left, 1 right), and of their pairs of children.

    These read the rules in blocks: what is known of one level alone needs no float64 copy of its rules.
    """
    laws, pairs = [law], []
    for depth, turn in enumerate(turns, level):
        pairs.append(children_law(language, depth, laws[-1].cpu()).to(law.device))
        laws.append(pairs[-1].sum(1 - turn))
    return laws, pairs


def seen_leaves(evidence: Tensor, first: int = 0) -> Nodes:
    """The messages of leaves of which tokens `(R, k)`, -1 for unknown, or likelihoods `(R, k, v)` are known."""
    return Nodes(first, evidence.transpose(0, 1).contiguous())


def likelihoods_of(evidence: Tensor, v: int) -> Tensor:
    """Tokens `(R, k)`, -1 for unknown, as likelihoods `(R, k, v)`; likelihoods as they are."""
    if evidence.is_floating_point():
        return evidence
    one_hot = torch.nn.functional.one_hot(evidence.clamp(min=0), v).double()
    return one_hot.where(evidence[..., None] >= 0, 1.0)


def upward(
    levels: list[Level], leaves: Nodes, last_is_target: bool = False, contract: Contraction | None = None
) -> tuple[list[Nodes], Tensor]:
    """The normalised messages of all nodes, level by level from the top, and the logarithm of their norms `(R,)`.

    With `last_is_target` the last leaf is not among the leaves, and the nodes above it, on the right edge, get no
    message: the last node of each level is the left sibling of the edge.
    """
    messages = [leaves]
    log_scale = torch.zeros(leaves.values.shape[1], dtype=torch.float64, device=leaves.values.device)
    for level in reversed(levels):
        first, u = messages[0]
        parents = _parents(level, contract or sum_product, first % 2, u[:-1] if last_is_target else u)
        parents, log_norms = normalised(parents)
        log_scale = log_scale + log_norms.sum(0)
        messages.insert(0, Nodes(first // 2, parents))
    return messages, log_scale


def _parents(level: Level, contract: Contraction, odd: int, u: Tensor) -> Tensor:
    """The messages of the parents of neighbouring nodes; the first node is a right child where `odd` is 1."""
    alone = [] if not (odd and len(u)) else [times(u[:1], level.without_left.T)]
    u = u[odd:]
    left, right = u[: len(u) // 2 * 2 : 2], u[1::2]
    if u.is_floating_point():
        pairs = contract(level.T.permute(1, 2, 0), left.flatten(0, 1), right.flatten(0, 1)).view(right.shape)
    else:
        pairs = of_tokens(level, left, right)
    last = [times(u[-1:], level.without_right.T)] if len(u) % 2 else []
    return torch.cat((*alone, pairs, *last)) if alone or last else pairs


def spine_prediction(language: TreeGrammar, k: int, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The function of inputs `(R, k)` that goes down the right spine.

    It returns P(last leaf | the k leaves before it), `(R, v)`, `(v,)` for k = 0, and the logarithm of the probability
    of these, `(R,)`.
    """
    top = subtree(language, k + 1, device)
    _, pairs = down_path(language, language.L - top.height, top.law, [1] * min(1, top.height))

    def predicted(inputs: Tensor) -> tuple[Tensor, Tensor]:
        messages, log_scale = upward(top.levels, seen_leaves(inputs, 2**top.height - 1 - k), last_is_target=True)
        alpha = top.law
        for depth, nodes in enumerate(messages[: top.height]):
            u = nodes.values[-1]
            alpha = down(top.levels[depth - 1], alpha, u) if depth else times(u, pairs[0])
            alpha, log_norm = normalised(alpha)
            log_scale = log_scale + log_norm
        return alpha, log_scale

    return predicted


def children_outside(level: Level, alpha: Tensor, lefts: Tensor, rights: Tensor) -> Tensor:
    """The outside messages `(2 N, R, v)` of the children of N nodes with outside messages `alpha (N, R, v)`.

    `lefts` and `rights` are the upward messages of the left and of the right children of the first nodes; those of the
    others have nothing seen below them.
    """

    def to_side(rules: Level, siblings: Tensor) -> Tensor:
        m = len(siblings)
        unseen = alpha[m:] @ rules.without_left
        if m == 0:
            return unseen
        seen = down(rules, alpha[:m].flatten(0, 1), siblings.flatten(0, 1)).view(m, *alpha.shape[1:])
        return torch.cat((seen, unseen)) if m < len(alpha) else seen

    children = torch.stack((to_side(level.mirrored(), rights), to_side(level, lefts)), 1).flatten(0, 1)
    return normalised(children)[0]


def level_posteriors(alpha: Tensor, u: Tensor) -> Tensor:
    """The posteriors `(N, R, v)` of the nodes of a level, of which the first ones have the upward messages u."""
    m, v = len(u), alpha.shape[-1]
    seen = normalised(alpha[:m] * u)[0] if u.is_floating_point() else torch.nn.functional.one_hot(u, v).double()
    return torch.cat((seen, alpha[m:])) if m < len(alpha) else seen


def descend(
    levels: list[Level], messages: list[Nodes], root: Tensor, n: int, children: Callable, entries: int
) -> list[Tensor]:
    """Hidden symbols `(2^l, R n)` of levels l = 0..L-1, from those of the root `(R n,)`, n for each sequence.

    `children(T, parent, left, right, node, tree)` chooses the symbols of both children of each of many nodes, from the
    rules and the messages of the children; `node` is the number of a node in its tree, 1 at the root, `tree` that of
    its column. A node takes up to `entries` numbers of memory meanwhile.
    """
    piece = max(1, _entries(_CHUNK_ENTRIES, root) // entries)
    hidden = [root[None]]
    for depth, level in enumerate(levels[:-1]):
        parents, u = hidden[-1].flatten(), messages[depth + 1].values
        left, right = u[::2].flatten(0, 1), u[1::2].flatten(0, 1)
        below = torch.empty(2**depth, 2, len(root), dtype=torch.int64, device=root.device)
        rows = torch.arange(len(parents), device=root.device)
        chosen = [
            children(level.T, parents[p], left[p // n], right[p // n], 2**depth + p // len(root), p % len(root))
            for p in rows.split(piece)
        ]
        for side, symbols in enumerate(zip(*chosen, strict=True)):
            below[:, side] = torch.cat(symbols).view(2**depth, -1)
        hidden.append(below.flatten(0, 1))
    return hidden


# ------------------------------------------------------------------ one node


def down(level: Level, alpha: Tensor, left: Tensor) -> Tensor:
    """`alpha_right[c] = sum_ab alpha[a] left[b] T[a, b, c]`; for the left child, the level mirrored and u_right."""
    if left.is_floating_point():
        return sum_product(level.T, alpha, left)
    matrices = [*level.T.transpose(0, 1), level.without_left]
    return times_matrix_of(matrices, left % len(matrices), alpha)  # -1 counts from the end


def of_tokens(level: Level, left: Tensor, right: Tensor) -> Tensor:
    """`T[:, b, c]` for pairs of tokens (b, c), summed over a token that is unknown (-1): one more axis of size v."""
    found = level.T.permute(1, 2, 0)[left, right]
    for unknown, other, sums in (left < 0, right, level.without_left), (right < 0, left, level.without_right):
        if unknown.any():
            found[unknown] = times(other[unknown], sums.T)
    return found


def given_left(level: Level, left: Tensor) -> Tensor:
    """`sum_b left[b] T[a, b, c]` as `[r, a, c]`: what a left child leaves of the rules."""
    if not left.is_floating_point():
        return level.T[:, left].transpose(0, 1)
    v = left.shape[1]
    return (left @ level.T.transpose(0, 1).reshape(v, v * v)).view(-1, v, v)


def normalised(message: Tensor) -> tuple[Tensor, Tensor]:
    """The message with sum one, and the logarithm of its sum; a row of zeros stays, with minus infinity."""
    total = message.sum(-1, keepdim=True)
    return message / total.where(total > 0, 1), total.squeeze(-1).log()


# ------------------------------------------------------------------ products


def sum_product(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`out[r, k] = sum_ij tensor[i, j, k] x[r, i] y[r, j]`, one matrix product for each i: `(R, v)`.

    A piece of the factors (R, v) stays in the processor's cache, while the whole outer product (R, v^2) would travel
    through memory; any permutation of the rules is a tensor of matrices that the product reads as they lie. The rows
    are the long side of the products: libraries are slow where v is, and it is small.
    """
    out = torch.empty_like(y)
    for part, x_part, y_part in _row_pieces(_entries(_MESSAGE_ENTRIES, y) // y.shape[1], out, x, y):
        x_T, y_T = x_part.T.contiguous(), y_part.T.contiguous()
        total, scaled = torch.zeros_like(y_T), torch.empty_like(y_T)
        for x_i, matrix in zip(x_T, tensor, strict=True):
            torch.mul(x_i, y_T, out=scaled)
            total.addmm_(matrix.T, scaled)
        part.copy_(total.T)
    return out


def max_product(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`out[r, k] = max_ij tensor[i, j, k] x[r, i] y[r, j]`, `(R, v)`."""
    out = torch.zeros_like(y)
    for part, x_part, y_part in _row_pieces(_entries(_CHUNK_ENTRIES, y) // (8 * y.shape[1] ** 2), out, x, y):
        for x_i, matrix in zip(x_part.T, tensor, strict=True):
            torch.maximum(part, (matrix.T * y_part[:, None]).amax(2).mul_(x_i[:, None]), out=part)
    return out


def _row_pieces(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(max(1, rows)) for tensor in tensors), strict=True)


def times(message: Tensor, matrix: Tensor) -> Tensor:
    """`message @ matrix`; for tokens a look-up of a row, or of the sum of the rows for an unknown one (-1)."""
    if message.is_floating_point():
        return message @ matrix
    return torch.cat((matrix, matrix.sum(0, keepdim=True)))[message]


def times_matrix_of(matrices: Tensor | list[Tensor], symbols: Tensor, vectors: Tensor) -> Tensor:
    """Row r is `vectors[r] @ matrices[symbols[r]]`: the rows are sorted, so that each symbol takes one product."""
    order = symbols.argsort()
    counts = symbols.bincount(minlength=len(matrices)).tolist()
    groups = zip(vectors[order].split(counts), matrices, strict=True)
    out = torch.empty_like(vectors)
    out[order] = torch.cat([group @ matrix for group, matrix in groups])
    return out


# ------------------------------------------------------------------ chunks


def in_chunks(step: Callable[[slice], list[Tensor]], evidence: Tensor, v: int, entries: int) -> list[Tensor]:
    """The results of `step` for all rows, which it gets in slices; the messages of a row hold `entries` numbers."""
    message, chunk = _entries(_MESSAGE_ENTRIES, evidence), _entries(_CHUNK_ENTRIES, evidence)
    rows = max(1, min(message // v, chunk // entries))
    pieces = [step(slice(first, first + rows)) for first in range(0, max(1, len(evidence)), rows)]
    return [torch.cat(parts) for parts in zip(*pieces, strict=True)]


def _entries(sizes: dict[str, int], tensor: Tensor) -> int:
    return sizes.get(tensor.device.type, sizes['cpu'])


def check_possible(possible: Tensor, rows: slice) -> None:
    """Raises ValueError where one of these rows is not possible, with its number."""
    if not possible.all():
        row = rows.start + int(possible.int().argmin())
        raise ValueError(f'row {row} has probability zero under this grammar: remove it, or use the rules it is from')
