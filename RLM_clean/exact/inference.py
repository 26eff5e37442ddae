"""What exact inference says of a sequence: predictions, likelihoods, posteriors of hidden symbols, and whole trees.

The functions are uses of belief propagation, whose formulas, cost and memory are in exact/propagation.py. With `T` the
rules of a level, `u` the upward message of a node (the likelihood of what is observed below it) and `alpha` its outside
message (its probability together with what is observed elsewhere), the posterior of its symbol is alpha u, normalised.
All results are float64; tokens are integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from RLM_clean.datasets import FilteredGrammar, TreeGrammar
from RLM_clean.exact import filtered_tree, posteriors
from RLM_clean.exact.correlations import level_marginals
from RLM_clean.exact.propagation import (
    check_possible,
    children_outside,
    descend,
    down_path,
    given_left,
    in_chunks,
    likelihoods_of,
    max_product,
    normalised,
    seen_leaves,
    spine_prediction,
    subtree,
    times,
    times_matrix_of,
    tree_levels,
    upward,
)
from RLM_clean.streams import random_words, stream_key, uniform

Device = torch.device | str | None

# Posterior trees take their random words from the stream 'other' under this index; never change it.
_POSTERIOR_INDEX = 0


# ------------------------------------------------------------------ predictions


def next_token_probs(language: TreeGrammar, inputs: Tensor, device: Device = None) -> Tensor:
    """The best possible prediction: P(x_n | the last k tokens before it), `(B, v)` float64.

    `alpha_0 = prior`, `alpha_{l+1}[c] = sum_ab alpha_l[a] u_l[b] T_l[a, b, c]` down the right spine, u_l the upward
    message of the left sub-tree; the prediction is alpha_L, normalised.

    `inputs (B, k)` int64 holds the k tokens before the target, 0 <= k <= n - 1, n = 2^L; earlier ones are unseen, and
    k = 0, shape (B, 0), gives the marginal of x_n. Cost for k = n - 1: 2^(L-1) - 2 contractions of v^3 a sequence.
    Computed on `device`, that of the inputs by default; on the CPU in place of mps, which has no float64. Raises
    ValueError for tokens or shapes that do not fit the grammar and for a context of probability zero.
    """
    inputs = _tokens(language, inputs, 'inputs', device)
    if isinstance(language, FilteredGrammar):
        return filtered_tree.next_token_probs(language, inputs)
    predicted = spine_prediction(language, inputs.shape[1], inputs.device)

    def predict(rows: slice) -> list[Tensor]:
        alpha, log_scale = predicted(inputs[rows])
        check_possible(log_scale > -torch.inf, rows)
        return [alpha.expand(len(inputs[rows]), -1)]

    return in_chunks(predict, inputs, language.v, (inputs.shape[1] + 1) * language.v)[0]


def all_next_token_probs(language: TreeGrammar, leaves: Tensor, device: Device = None) -> Tensor:
    """Every next-token prediction: `[:, i]` is P(x_i | x_0..x_{i-1}), i = 0..n-1, `(B, n, v)` float64.

    With m < n leaves these are the last m of the tree, the earlier ones are unseen, and the result is `(B, m, v)`.

    A node's outside message holds the past alone, since what stands to its right is unseen, and its left sibling's
    sub-tree is complete. This takes 2^L - 2 L contractions of v^3 a sequence, less than twice those of one prediction.
    `leaves (B, n)` int64; the first gets its marginal.

    Raises ValueError for tokens or shapes that do not fit and for a past of probability zero.
    """
    leaves = _tokens(language, leaves, 'last leaves', device)
    m, v = leaves.shape[1], language.v
    if isinstance(language, FilteredGrammar):
        return filtered_tree.all_next_token_probs(language, leaves)
    top = subtree(language, m, leaves.device)
    # The first of the m leaves and the nodes above it have nothing seen to their left: their laws need no sequence.
    first_nodes = [2**top.height - m >> top.height - depth for depth in range(top.height + 1)]
    laws, pairs = down_path(language, language.L - top.height, top.law, [node & 1 for node in first_nodes[1:]])

    def predict(rows: slice) -> list[Tensor]:
        # The last leaf conditions nothing.
        messages, _ = upward(top.levels, seen_leaves(leaves[rows, :-1], 2**top.height - m), last_is_target=True)
        alpha = laws[0].new_empty(0, len(leaves[rows]), v)  # of the nodes after the first
        for depth, pair in enumerate(pairs):
            lefts, children = messages[depth].values[first_nodes[depth + 1] & 1 :: 2], []
            if first_nodes[depth + 1] % 2 == 0:
                children.append(normalised(times(lefts[0], pair))[0][None])
                lefts = lefts[1:]
            if len(alpha):
                level = top.levels[depth - 1]
                children.append(children_outside(level, alpha, lefts, lefts[:0]))
            alpha = torch.cat(children) if children else alpha
        probs = torch.cat((laws[-1].expand(1, len(leaves[rows]), -1), alpha)).transpose(0, 1)
        check_possible(probs[:, -1].sum(1) > 0, rows)
        return [probs]

    return in_chunks(predict, leaves, v, 2 * m * v)[0]


def log_likelihood(language: TreeGrammar, leaves: Tensor, device: Device = None, strict: bool = True) -> Tensor:
    """ln P(x_0..x_{n-1}) of each sequence, `(B,)` float64, in nats.

    It is the sum of the logarithms by which the messages of the first n - 1 leaves are normalised, and of
    ln P(x_{n-1} | x_0..x_{n-2}). With m < n leaves these are the last m of the tree and the earlier ones are unseen:
    ln P(x_{n-m}..x_{n-1}). `leaves (B, m)` int64. Raises ValueError for tokens or shapes that do not fit and for a
    sequence of probability zero, which gets minus infinity where `strict` is False.
    """
    leaves = _tokens(language, leaves, 'last leaves', device)
    if isinstance(language, FilteredGrammar):
        log_probs = filtered_tree.log_likelihood(language, leaves)
        check_possible((log_probs > -torch.inf) | (not strict), slice(0, None))
        return log_probs
    predicted = spine_prediction(language, leaves.shape[1] - 1, leaves.device)

    def evaluate(rows: slice) -> list[Tensor]:
        alpha, log_scale = predicted(leaves[rows, :-1])
        last = leaves[rows, -1:]
        log_probs = log_scale + alpha.expand(len(last), -1).gather(1, last)[:, 0].log()
        if strict:
            check_possible(log_probs > -torch.inf, rows)
        return [log_probs]

    return in_chunks(evaluate, leaves, language.v, leaves.shape[1] * language.v)[0]


# ------------------------------------------------------------------ posteriors of hidden symbols


def ancestor_posteriors(
    language: TreeGrammar, leaves: Tensor, past: int | None = None, device: Device = None
) -> list[Tensor]:
    """The posterior of every symbol of the tree given the leaves: for each level l = 0..L `(B, 2^l, v)` float64.

    A filtered language has the levels `.levels`. `P(node = a | leaves)` is proportional to `alpha[a] u[a]`.
    `leaves (B, n)` int64; with `past=k` only the first k of them are seen, and the posteriors of the others are
    predictions. Raises ValueError for tokens, shapes or a past that do not fit and for observations of probability
    zero.
    """
    leaves = _tokens(language, leaves, 'leaves', device)
    length = leaves.shape[1]
    seen = length if past is None else past
    if not 0 <= seen <= length:
        raise ValueError(f'past={past} leaves are not part of a sequence of {length}: use 0 to {length}')
    if seen == 0 and not isinstance(language, FilteredGrammar):
        laws = [law.to(leaves.device) for law in level_marginals(language)]
        return [law.expand(len(leaves), -1, -1) for law in laws]
    return _node_posteriors(language, leaves[:, :seen])


def node_posteriors(language: TreeGrammar, evidence: Tensor, device: Device = None) -> list[Tensor]:
    """The posterior of every symbol given evidence at any leaves: for each level l = 0..L `(B, 2^l, v)` float64.

    A filtered language has the levels `.levels`.
    `evidence` is int64 tokens `(B, n)`, -1 at a leaf of which nothing is known, or likelihoods `(B, n, v)`:
    `P(what is known of leaf i | x_i = a)` up to a factor, not negative. Raises ValueError for evidence that does not
    fit and for evidence of probability zero.
    """
    return _node_posteriors(language, checked_evidence(language, evidence, device)[0])


def leaf_posteriors(language: TreeGrammar, evidence: Tensor, device: Device = None) -> Tensor:
    """`P(x_i = a | evidence)` for every leaf, `(B, n, v)` float64, with evidence and errors as in `node_posteriors`."""
    return node_posteriors(language, evidence, device)[-1]


def evidence_log_likelihood(language: TreeGrammar, evidence: Tensor, device: Device = None) -> Tensor:
    """`ln P(evidence)`, `(B,)` float64 in nats; minus infinity for evidence of probability zero.

    `P(evidence) = sum over sequences of P(x) prod_i e_i[x_i]`, e_i the likelihoods of leaf i, as in `node_posteriors`.
    """
    known, log_norm = checked_evidence(language, evidence, device)
    if isinstance(language, FilteredGrammar):
        return log_norm + filtered_tree.log_likelihood(language, known)
    levels, prior = tree_levels(language, 0, known.device), language.prior.to(known.device)

    def evaluate(rows: slice) -> list[Tensor]:
        messages, log_scale = upward(levels, seen_leaves(known[rows]))
        return [log_norm[rows] + log_scale + (messages[0].values[0] @ prior).log()]

    return in_chunks(evaluate, known, language.v, 2 * known.shape[1] * language.v)[0]


def posterior_entropy(language: TreeGrammar, evidence: Tensor, device: Device = None) -> Tensor:
    """The entropy of the whole tree given the evidence, `(B,)` float64 in nats: of all hidden symbols and all leaves.

    `H(tree | evidence) = ln P(evidence) - sum over trees of P(tree, evidence) ln P(tree, evidence) / P(evidence)`, with
    `P(tree, evidence) = P(tree) prod_i e_i[x_i]`; evidence and errors are as in `node_posteriors`. Given all tokens it
    is the ambiguity of a sequence, whose mean over sequences is `entropies.ambiguity`; given nothing it is
    `entropies.tree_entropy`. One upward pass, about as expensive as `node_posteriors`: see exact/posteriors.py.
    """
    return posteriors.posterior_entropy(language, checked_evidence(language, evidence, device)[0])


def _node_posteriors(language: TreeGrammar, evidence: Tensor) -> list[Tensor]:
    """The posteriors of all nodes given the first leaves: tokens `(B, k)` or likelihoods `(B, k, v)`, k > 0."""
    of_language = filtered_tree if isinstance(language, FilteredGrammar) else posteriors
    return of_language.node_posteriors(language, evidence)


def spine_posteriors(language: TreeGrammar, inputs: Tensor, device: Device = None) -> tuple[Tensor, Tensor]:
    """What the last k tokens before x_n say of its ancestors a_0 (the root), ..., a_(L-1), and of a_L = x_n itself.

    The posteriors `P(a_l = a | inputs)`, `(B, L + 1, v)`, and the channels `P(a_l = a | a_(l+1) = c, inputs)`,
    `[:, l, c, a]` of `(B, L, v, v)`; both float64. With alpha_l and u_l as in `next_token_probs`, a channel is
    proportional to `alpha_l[a] sum_b u_l[b] T_l[a, b, c]`: what is seen below the child says no more of its parent
    than the child does. Given the inputs, a_L, ..., a_0 are therefore a Markov chain, and the posteriors are the
    prediction of x_n carried up through the channels. For a child that no parent can have beside what is seen, which
    has posterior zero, the channel gives the posterior of the parent.

    `inputs (B, k)` int64, 0 <= k <= n - 1. The result takes 8 B L v^2 bytes, and a sequence L contractions of v^3 more
    than its prediction. Raises ValueError as `next_token_probs` does, and for a filtered language, which may lack some
    of these ancestors.
    """
    if isinstance(language, FilteredGrammar):
        language.level_rules(0)  # raises: a filtered language has none at its root
    inputs = _tokens(language, inputs, 'inputs', device)
    L, v = language.L, language.v
    height = inputs.shape[1].bit_length()
    levels, prior = tree_levels(language, L - height, inputs.device), language.prior.to(inputs.device)
    unseen = [language.transitions(level)[1].to(inputs.device) for level in range(L - height)]

    def climb(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels[1:], seen_leaves(inputs[rows], 2**height - 1 - inputs.shape[1]), True)
        left_siblings = [nodes.values[-1] for nodes in messages[:height]]
        seen = [given_left(level, u) for level, u in zip(levels, left_siblings, strict=True)]
        alpha, joints = prior.expand(len(inputs[rows]), -1), []
        for children in [*unseen, *seen]:
            joints.append(alpha[:, :, None] * children)
            alpha, _ = normalised(joints[-1].sum(1))
        check_possible(alpha.sum(1) > 0, rows)
        beliefs, channels = [alpha], []
        for joint in reversed(joints):
            channel, log_norm = normalised(joint.transpose(1, 2))
            beliefs.append(torch.einsum('rc,rca->ra', beliefs[-1], channel))
            channels.append(channel.where(log_norm[..., None] > -torch.inf, beliefs[-1][:, None]))
        return [torch.stack(beliefs[::-1], 1), torch.stack(channels[::-1], 1)]

    entries = (inputs.shape[1] + 1) * v + 4 * L * v**2
    beliefs, channels = in_chunks(climb, inputs, v, entries)
    return beliefs, channels


# ------------------------------------------------------------------ whole trees


def sample_posterior(language: TreeGrammar, leaves: Tensor, n: int, seed: int, device: Device = None) -> list[Tensor]:
    """`n` trees drawn from P(tree | leaves): for each level l = 0..L its symbols `(n, B, 2^l)` int64, leaves included.

    From the root down, `P(b | a)` is proportional to `u_left[b] sum_c T[a, b, c] u_right[c]`, and `P(c | a, b)` to
    `T[a, b, c] u_right[c]`. `leaves (B, 2^L)` int64. Tree i of row r is a function of (seed, r, i) and of the leaves
    of that row alone. Raises ValueError for tokens, shapes or an n that do not fit and for a sequence of probability
    zero.
    """
    leaves = _tokens(language, leaves, 'leaves', device)
    levels, prior = tree_levels(language, 0, leaves.device), language.prior.to(leaves.device)
    if n < 1:
        raise ValueError(f'n={n} leaves no tree to draw: use 1 or more')
    key = stream_key(seed, 'other', _POSTERIOR_INDEX)
    row_keys = random_words(key, torch.arange(len(leaves), device=leaves.device))
    samples = torch.arange(n, device=leaves.device)

    def draw_trees(rows: slice) -> list[Tensor]:
        keys = random_words(row_keys[rows].repeat_interleave(n), samples.repeat(len(row_keys[rows])))
        messages, _ = upward(levels, seen_leaves(leaves[rows]))
        root = normalised(prior * messages[0].values[0])[0]
        check_possible(root.sum(1) > 0, rows)

        def children(T: Tensor, a: Tensor, left: Tensor, right: Tensor, node: Tensor, tree: Tensor) -> list[Tensor]:
            b = _draw(left * times_matrix_of(T.transpose(1, 2), a, right), keys[tree], 2 * node)
            return [b, _draw(T[a, b] * right, keys[tree], 2 * node + 1)]

        drawn = _draw(root.repeat_interleave(n, 0), keys, torch.zeros_like(keys))
        hidden = descend(levels, messages, drawn, n, children, entries=8 * language.v)
        return [nodes.T.reshape(-1, n, len(nodes)) for nodes in hidden]

    hidden = in_chunks(draw_trees, leaves, language.v, leaves.shape[1] * (language.v + 2 * n))
    return [*(nodes.transpose(0, 1) for nodes in hidden), leaves.expand(n, -1, -1)]


def most_probable_tree(language: TreeGrammar, leaves: Tensor, device: Device = None) -> tuple[list[Tensor], Tensor]:
    """The most probable tree above the leaves, and the logarithm of the joint probability of tree and leaves.

    The levels are `(B, 2^l)` int64, l = 0..L, leaves included; the logarithm is `(B,)` float64, in nats. Upward
    `m[a] = max_bc T[a, b, c] m_left[b] m_right[c]`, then the best root and the best children of each parent. Among
    trees of equal probability any one is returned. `leaves (B, 2^L)` int64. Raises ValueError for tokens or shapes
    that do not fit and for a sequence of probability zero.
    """
    leaves = _tokens(language, leaves, 'leaves', device)
    levels, prior = tree_levels(language, 0, leaves.device), language.prior.to(leaves.device)
    v = language.v

    def children(T: Tensor, a: Tensor, left: Tensor, right: Tensor, node: Tensor, tree: Tensor) -> list[Tensor]:
        pair = (T[a] * left[:, :, None] * right[:, None]).flatten(1).argmax(1)
        return [pair // v, pair % v]

    def best(rows: slice) -> list[Tensor]:
        messages, _ = upward(levels, seen_leaves(leaves[rows]), contract=max_product)
        root = normalised(prior * messages[0].values[0])[0]
        check_possible(root.sum(1) > 0, rows)
        hidden = descend(levels, messages, root.argmax(1), 1, children, entries=8 * v**2)
        trees = [*(nodes.T for nodes in hidden), leaves[rows]]
        steps = zip(levels, trees[:-1], trees[1:], strict=True)
        log_probs = [level.T[a, bc[:, ::2], bc[:, 1::2]].log().sum(1) for level, a, bc in steps]
        return [*trees, prior[trees[0][:, 0]].log() + sum(log_probs)]

    *trees, log_probs = in_chunks(best, leaves, v, v * max(leaves.shape[1], 8 * v))
    return trees, log_probs


# ------------------------------------------------------------------ what the public functions share


def _draw(weights: Tensor, keys: Tensor, word: Tensor) -> Tensor:
    """A symbol with probability proportional to its weight, for each row `(R,)`, from that word of the row's stream."""
    heights = uniform(random_words(keys, word))
    cumulative = weights.cumsum(1)
    return torch.searchsorted(cumulative, heights[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _tokens(language: TreeGrammar, tokens: Tensor, name: str, device: Device) -> Tensor:
    """The tokens as int64 where inference runs, checked."""
    n = 2**language.L
    widths, meant = {
        'inputs': (range(n), f'(B, k), k < {n}'),
        'leaves': (range(n, n + 1), f'(B, {n})'),
        'last leaves': (range(1, n + 1), f'(B, m), 1 <= m <= {n}'),
        'evidence': (range(n, n + 1), f'(B, {n}) or (B, {n}, {language.v})'),
    }[name]
    if tokens.dim() != 2 or tokens.shape[1] not in widths:
        raise ValueError(f'{name} of shape {tuple(tokens.shape)}: for a tree of {n} leaves give {meant}')
    if tokens.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f'{name} of type {tokens.dtype}: give tokens as integers')
    tokens = tokens.to(device=_place(tokens, device), dtype=torch.int64)
    lowest = -1 if name == 'evidence' else 0
    wrong = tokens[(tokens < lowest) | (tokens >= language.v)]
    if len(wrong):
        raise ValueError(
            f'token {wrong[0].item()} in {name} is not a symbol of the grammar: use {lowest} to {language.v - 1}'
        )
    return tokens


def checked_evidence(language: TreeGrammar, evidence: Tensor, device: Device) -> tuple[Tensor, Tensor]:
    """Evidence, checked, as tokens `(B, n)`, -1 for unknown, or likelihoods `(B, n, v)` with sum one; the logarithm of
    the factors that are left out `(B,)`."""
    if evidence.dim() != 3:
        tokens = _tokens(language, evidence, 'evidence', device)
        if isinstance(language, FilteredGrammar) and (tokens < 0).any():  # it takes tokens only where all are known
            tokens = likelihoods_of(tokens, language.v)
        return tokens, torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    n = 2**language.L
    if evidence.shape[1:] != (n, language.v):
        raise ValueError(
            f'evidence of shape {tuple(evidence.shape)}: '
            f'for a tree of {n} leaves give (B, {n}) or (B, {n}, {language.v})'
        )
    likelihoods = evidence.to(device=_place(evidence, device), dtype=torch.float64)
    if not ((likelihoods >= 0) & (likelihoods < torch.inf)).all():
        raise ValueError('evidence holds likelihoods that are negative, infinite or nan: use numbers from 0 up')
    likelihoods, log_norms = normalised(likelihoods)
    return likelihoods, log_norms.sum(1)


def _place(tensor: Tensor, device: Device) -> torch.device:
    """Where inference runs: the CPU in place of mps, which has no float64."""
    place = torch.device(tensor.device if device is None else device)
    return torch.device('cpu') if place.type == 'mps' else place
