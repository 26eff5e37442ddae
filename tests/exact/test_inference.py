"""Exact inference against brute force, to 1e-12, over random grammars with zeros, priors and rules of each level."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from brute_force import all_trees, joint, last_given, next_given, occurring
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from RLM_clean.datasets import RLM, TreeGrammar
from RLM_clean.exact import inference, propagation
from RLM_clean.exact.inference import (
    all_next_token_probs,
    ancestor_posteriors,
    evidence_log_likelihood,
    leaf_posteriors,
    log_likelihood,
    most_probable_tree,
    next_token_probs,
    node_posteriors,
    sample_posterior,
    spine_posteriors,
)

LEAVES_FUNCTIONS = [
    all_next_token_probs,
    log_likelihood,
    ancestor_posteriors,
    most_probable_tree,
    lambda grammar, leaves: sample_posterior(grammar, leaves, n=2, seed=0),
]


def random_grammar(v: int, L: int, seed: int, zeros: float = 0.0, shared: bool = True, power: int = 1) -> TreeGrammar:
    """Random rules and prior, of which a fraction `zeros` vanish; they spread over many scales for a high `power`."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        kept = torch.rand(shape, generator=generator, dtype=torch.float64) >= zeros
        values = torch.rand(shape, generator=generator, dtype=torch.float64) ** power * kept
        values.view(shape[0], -1)[:, -1] += values.view(shape[0], -1).sum(1) == 0
        return values

    rules = [weights(v, v, v) for _ in range(1 if shared else L)]
    rules = [T / T.sum((1, 2), keepdim=True) for T in rules]
    prior = weights(1, v)[0]
    return TreeGrammar(rules[0] if shared else rules, L, prior=prior / prior.sum())


def grammars(*sizes: tuple[int, int]) -> st.SearchStrategy[TreeGrammar]:
    return st.builds(
        lambda size, **options: random_grammar(*size, **options),
        size=st.sampled_from(sizes),
        seed=st.integers(0, 2**31),
        zeros=st.sampled_from([0.0, 0.3, 0.8]),
        shared=st.booleans(),
        power=st.sampled_from([1, 6]),
    )


def exhaustive(*sizes: tuple[int, int], examples: int = 20) -> Callable[[Callable], Callable]:
    """A test over random grammars of these sizes (v, L), the same ones on each run."""
    return lambda test: settings(max_examples=examples, deadline=None, derandomize=True, database=None)(
        given(grammar=grammars(*sizes))(test)
    )


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


SMALL = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3)]
LITERAL = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2), (2, 3)]


# ------------------------------------------------------------------ the oracle


@exhaustive(*LITERAL)
def test_brute_force_recursion_agrees_with_listing_every_tree(grammar: TreeGrammar) -> None:
    levels, probs = all_trees(grammar)
    v, n = grammar.v, 2**grammar.L
    words = (levels[-1] * v ** torch.arange(n - 1, -1, -1)).sum(1)
    assert_close(joint(grammar).flatten(), torch.zeros(v**n, dtype=torch.float64).index_add(0, words, probs))
    for depth, nodes in enumerate(levels):
        for i in range(nodes.shape[1]):
            for a in range(v):
                listed = torch.zeros(v**n, dtype=torch.float64).index_add(0, words, probs * (nodes[:, i] == a))
                assert_close(joint(grammar, pinned=(depth, i, a)).flatten(), listed)


# ------------------------------------------------------------------ exactness


@exhaustive(*SMALL, (16, 2), (30, 1), examples=30)
def test_next_token_is_exact_for_every_number_of_last_tokens(grammar: TreeGrammar) -> None:
    table = joint(grammar)
    for k in range(2**grammar.L):
        contexts, expected = last_given(table, k)
        assert_close(next_token_probs(grammar, contexts), expected)


@exhaustive(*SMALL, (4, 3), (16, 2), examples=25)
def test_every_next_token_and_likelihood_are_exact(grammar: TreeGrammar) -> None:
    table = joint(grammar)
    leaves, probs = occurring(table, at_most=200)
    assert_close(all_next_token_probs(grammar, leaves), next_given(table, leaves))
    assert_close(log_likelihood(grammar, leaves), probs.log())
    for m in range(1, 2**grammar.L):
        last = table.reshape(-1, *[grammar.v] * m).sum(0)
        assert_close(log_likelihood(grammar, leaves[:, -m:]), last[tuple(leaves[:, -m:].T)].log())


@exhaustive(*LITERAL)
def test_ancestors_of_the_last_token_are_a_markov_chain_with_exact_posteriors(grammar: TreeGrammar) -> None:
    levels, probs = all_trees(grammar)
    v, L, n = grammar.v, grammar.L, 2**grammar.L
    spine = torch.stack([nodes[:, -1] for nodes in levels], 1)
    table = joint(grammar)
    for k in range(n):
        contexts, _ = last_given(table, k)
        posteriors, channels = spine_posteriors(grammar, contexts)
        assert posteriors.shape == (len(contexts), L + 1, v) and channels.shape == (len(contexts), L, v, v)
        assert_close(channels.sum(-1), torch.ones(len(contexts), L, v, dtype=torch.float64))
        for row in range(0, len(contexts), 1 + len(contexts) // 10):
            weights = probs * (levels[-1][:, n - 1 - k : n - 1] == contexts[row]).all(1)
            for l in range(L + 1):
                found = torch.zeros(v, dtype=torch.float64).index_add(0, spine[:, l], weights)
                assert_close(posteriors[row, l], found / found.sum())
            for l in range(L):
                pairs = torch.zeros(v * v, dtype=torch.float64).index_add(0, spine[:, l + 1] * v + spine[:, l], weights)
                pairs = pairs.view(v, v)
                possible = pairs.sum(1) > 0
                expected = pairs[possible] / pairs[possible].sum(1, keepdim=True)
                torch.testing.assert_close(channels[row, l, possible], expected, rtol=1e-9, atol=1e-12)
                excluded = posteriors[row, l + 1] == 0
                assert not (possible & excluded).any()


def test_posteriors_of_ancestors_agree_with_those_of_the_whole_tree() -> None:
    """Levels with rules of their own and contractions of dense messages, beyond the trees that can be listed."""
    grammar = random_grammar(6, 4, seed=3, zeros=0.3, shared=False)
    leaves = grammar.sequences(0, 30)
    posteriors, channels = spine_posteriors(grammar, leaves[:, :-1])
    for l, nodes in enumerate(ancestor_posteriors(grammar, leaves, past=15)):
        assert_close(posteriors[:, l], nodes[:, -1])
    # The channels given x_n are the posteriors given all leaves.
    belief = torch.nn.functional.one_hot(leaves[:, -1], 6).double()
    for l in range(3, -1, -1):
        belief = torch.einsum('rc,rca->ra', belief, channels[:, l])
        assert_close(belief, ancestor_posteriors(grammar, leaves)[l][:, -1])


def test_a_sequence_of_probability_zero_has_minus_infinity_where_that_is_asked_for() -> None:
    leaves = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [2, 2, 2, 2], [1, 1, 1, 0]])
    third = torch.tensor(1 / 3, dtype=torch.float64).log()
    found = log_likelihood(copying_grammar(), leaves, strict=False)
    assert_close(found, torch.stack((third, -torch.inf * third.abs(), third, -torch.inf * third.abs())))


@exhaustive(*SMALL)
def test_posterior_of_every_symbol_is_exact_for_every_past(grammar: TreeGrammar) -> None:
    n = 2**grammar.L
    leaves, _ = occurring(joint(grammar), at_most=60)
    for past in range(n + 1):
        found = ancestor_posteriors(grammar, leaves, past=past)
        assert [tuple(level.shape) for level in found] == [(len(leaves), 2**d, grammar.v) for d in range(grammar.L + 1)]
        seen = tuple(leaves[:, :past].T)
        for depth, level in enumerate(found):
            for i in range(2**depth):
                tables = [joint(grammar, pinned=(depth, i, a)) for a in range(grammar.v)]
                weights = torch.stack([t.flatten(past).sum(-1) if past < n else t for t in tables], -1)[seen]
                assert_close(level[:, i], (weights / weights.sum(-1, keepdim=True)).expand(len(leaves), -1))
    for default, full in zip(ancestor_posteriors(grammar, leaves), found, strict=True):
        assert torch.equal(default, full)


def test_evidence_that_is_a_whole_sequence_or_a_past_gives_what_is_known_of_them() -> None:
    grammar = random_grammar(6, 4, seed=3, zeros=0.3, shared=False)
    leaves = grammar.sequences(0, 30)
    assert_close(evidence_log_likelihood(grammar, leaves), log_likelihood(grammar, leaves))
    for whole, part in zip(node_posteriors(grammar, leaves), ancestor_posteriors(grammar, leaves), strict=True):
        assert torch.equal(whole, part)
    for past in (1, 5, 8, 15):
        seen = leaves.clone()
        seen[:, past:] = -1
        for found, expected in zip(
            node_posteriors(grammar, seen), ancestor_posteriors(grammar, leaves, past=past), strict=True
        ):
            assert_close(found, expected)
    seen[:, :10] = -1
    assert_close(leaf_posteriors(grammar, seen)[:, 15], next_token_probs(grammar, leaves[:, 10:15]))


def test_tiny_likelihoods_do_not_underflow() -> None:
    grammar = random_grammar(4, 6, seed=1)
    likelihoods = torch.rand(2, 64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    assert_close(leaf_posteriors(grammar, likelihoods * 1e-200), leaf_posteriors(grammar, likelihoods))
    tiny = evidence_log_likelihood(grammar, likelihoods * 1e-200)
    factor = 64 * torch.tensor(1e-200, dtype=torch.float64).log()
    torch.testing.assert_close(tiny, evidence_log_likelihood(grammar, likelihoods) + factor, rtol=1e-12, atol=0)


def test_evidence_of_probability_zero_has_no_posterior_and_minus_infinity() -> None:
    grammar = copying_grammar()
    for evidence in (
        torch.tensor([[0, -1, -1, -1], [0, -1, 1, -1]]),
        torch.eye(3)[torch.tensor([[0] * 4, [0, 1, 0, 0]])],
    ):
        found = evidence_log_likelihood(grammar, evidence)
        assert found[0] == pytest.approx(-math.log(3)) and found[1] == -math.inf
        with pytest.raises(ValueError, match=r'^row 1 has probability zero'):
            node_posteriors(grammar, evidence)


@pytest.mark.parametrize(
    ('evidence', 'message'),
    [
        (torch.tensor([[0, 1, -2, 2]]), 'token -2 in evidence is not a symbol of the grammar: use -1 to 2'),
        (torch.zeros(2, 3, dtype=torch.int64), r'evidence of shape \(2, 3\): .* give \(B, 4\) or \(B, 4, 3\)'),
        (torch.ones(2, 4, 2), r'evidence of shape \(2, 4, 2\): .* give \(B, 4\) or \(B, 4, 3\)'),
        (-torch.ones(2, 4, 3), 'negative, infinite or nan: use numbers from 0 up'),
        (torch.full((2, 4, 3), math.nan), 'negative, infinite or nan: use numbers from 0 up'),
    ],
)
def test_evidence_that_does_not_fit_is_refused(evidence: Tensor, message: str) -> None:
    for function in (node_posteriors, leaf_posteriors, evidence_log_likelihood):
        with pytest.raises(ValueError, match=message):
            function(copying_grammar(), evidence)


@exhaustive(*LITERAL)
def test_most_probable_tree_is_the_best_of_all_trees(grammar: TreeGrammar) -> None:
    levels, probs = all_trees(grammar)
    order = torch.cat(levels, 1)
    leaves, _ = occurring(joint(grammar), at_most=20)
    trees, log_probs = most_probable_tree(grammar, leaves)
    for row, sequence in enumerate(leaves):
        above = (levels[-1] == sequence).all(1)
        assert_close(log_probs[row], probs[above].max().log())
        tree = torch.cat([level[row] for level in trees])
        assert_close(probs[(order == tree).all(1)].log(), log_probs[row : row + 1])
        assert torch.equal(trees[-1][row], sequence)


# ------------------------------------------------------------------ sampling


@pytest.mark.parametrize(('v', 'L'), [(3, 2), (2, 3), (4, 2)])
def test_posterior_samples_have_the_posterior_frequencies(v: int, L: int) -> None:
    """Chi-square over all hidden trees above each of 4 sequences; false alarms: 12 tests at 1e-6 each, seed fixed."""
    grammar = random_grammar(v, L, seed=5, zeros=0.2, shared=False)
    levels, probs = all_trees(grammar)
    size = 2**L - 1
    code = v ** torch.arange(size)
    listed = (torch.cat(levels[:-1], 1) * code).sum(1)
    leaves, _ = occurring(joint(grammar), at_most=4)
    draws = 20_000
    samples = sample_posterior(grammar, leaves, n=draws, seed=11)
    assert [tuple(level.shape) for level in samples] == [(draws, len(leaves), 2**d) for d in range(L + 1)]
    drawn = (torch.cat(samples[:-1], 2) * code).sum(2)
    for row, sequence in enumerate(leaves):
        assert (samples[-1][:, row] == sequence).all()
        above = probs * (levels[-1] == sequence).all(1)
        expected = torch.zeros(v**size, dtype=torch.float64).index_add(0, listed, draws * above / above.sum())
        observed = drawn[:, row].bincount(minlength=v**size).double()
        assert observed[expected == 0].sum() == 0
        # Trees expected fewer than 10 times share one bin, with the most frequent tree so that it is never too small.
        merged = (expected < 10) | (expected == expected.max())
        observed, expected = (torch.cat((x[~merged], x[merged].sum()[None])) for x in (observed, expected))
        chi2 = ((observed - expected) ** 2 / expected).sum()
        assert len(expected) > 2
        assert torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), chi2 / 2) > 1e-6


def test_posterior_tree_is_a_function_of_seed_row_and_index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = random_grammar(4, 3, seed=1)
    leaves = grammar.sequences(0, 20)
    state = torch.get_rng_state()
    full = sample_posterior(grammar, leaves, n=6, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = sample_posterior(grammar, leaves, n=6, seed=4)
    assert not torch.equal(full[1], other[1])
    assert not torch.equal(full[1][0], full[1][1])
    monkeypatch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': 7 * 4})
    for whole, part in zip(full, sample_posterior(grammar, leaves[:9], n=2, seed=3), strict=True):
        assert torch.equal(whole[:2, :9], part)


def test_posterior_trees_keep_their_meaning() -> None:
    """Golden trees: another value gives every stored seed other trees. Change them only knowingly."""
    rlm = RLM(4, 3, 1.0)
    golden = [1, 3, 2, 2, 0, 3, 3, 0, 2, 0, 2, 2, 1, 0, 3, 0]
    assert sample_posterior(rlm, rlm.sequences(0, 2), n=2, seed=7)[2].flatten().tolist() == golden


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ('name', 'entries'), [('_MESSAGE_ENTRIES', 1), ('_MESSAGE_ENTRIES', 35), ('_CHUNK_ENTRIES', 1000)]
)
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, entries: int) -> None:
    grammar = random_grammar(5, 3, seed=2)
    leaves = grammar.sequences(0, 30)

    def everything() -> list[Tensor]:
        trees, log_probs = most_probable_tree(grammar, leaves)
        return [
            next_token_probs(grammar, leaves[:, 2:7]),
            next_token_probs(grammar, leaves[:, :0]),
            all_next_token_probs(grammar, leaves),
            log_likelihood(grammar, leaves),
            *ancestor_posteriors(grammar, leaves),
            *ancestor_posteriors(grammar, leaves, past=3),
            *trees,
            log_probs,
        ]

    at_once = everything()
    monkeypatch.setattr(propagation, name, {'cpu': entries})
    for whole, parts in zip(at_once, everything(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize('entries', [1, 100, 3000])
def test_the_messages_of_a_chunk_are_bounded_whatever_the_batch(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """The rows of a step times the numbers of a row, and the rows of a choice in a descent, stay below the bound."""
    monkeypatch.setattr(propagation, '_CHUNK_ENTRIES', {'cpu': entries})
    sizes: list[int] = []

    def step(rows: slice) -> list[Tensor]:
        sizes.append(rows.stop - rows.start)
        return [torch.zeros(1)]

    propagation.in_chunks(step, torch.zeros(90), 3, 40)
    assert sum(sizes) >= 90 and max(sizes) == max(1, entries // 40)
    monkeypatch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': 30})
    sizes.clear()
    propagation.in_chunks(step, torch.zeros(90), 3, 1)
    assert max(sizes) == min(10, entries)
    draws: list[int] = []
    draw = inference._draw

    def counted(weights: Tensor, keys: Tensor, word: Tensor) -> Tensor:
        draws.append(len(weights))
        return draw(weights, keys, word)

    monkeypatch.setattr(inference, '_draw', counted)
    grammar = random_grammar(5, 5, seed=2)
    sample_posterior(grammar, grammar.sequences(0, 3), n=4, seed=0)
    assert max(draws) <= max(4, 4 * 3, entries // 40) and (entries > 1 or 1 in draws)


@pytest.mark.parametrize(('shared', 'beside'), [(True, 1), (False, 1), (True, 6)])
def test_the_nodes_of_a_level_go_through_its_rules_together(
    monkeypatch: pytest.MonkeyPatch, shared: bool, beside: int
) -> None:
    """At most one product a level upwards and one downwards, however many nodes: rules are read once for few rows."""
    grammar = random_grammar(3, 6, seed=7, shared=shared)
    products = []

    def counting(tensor: Tensor, x: Tensor, y: Tensor) -> Tensor:
        products.append(len(y))
        return sum_product(tensor, x, y)

    sum_product = propagation.sum_product
    monkeypatch.setattr(propagation, 'sum_product', counting)
    all_next_token_probs(grammar, grammar.sequences(0, beside))
    assert len(products) <= 2 * 5
    assert sum(products) == beside * (2**6 - 2 * 6)  # contractions of v^3 in all, as documented
    products.clear()
    next_token_probs(grammar, grammar.sequences(0, beside)[:, :-1])
    assert len(products) <= 2 * 5 and sum(products) == beside * (2**5 - 2)


@pytest.mark.parametrize('beta', [0.0, 2.0, 12.0])
def test_nothing_underflows_at_depth_ten(beta: float) -> None:
    grammar = RLM(v=8, L=10, beta=beta)
    leaves = grammar.sequences(0, 3)
    log_probs = log_likelihood(grammar, leaves)
    predictions = all_next_token_probs(grammar, leaves)
    chain = predictions.gather(2, leaves[:, :, None])[:, :, 0].log().sum(1)
    torch.testing.assert_close(chain, log_probs, rtol=1e-11, atol=1e-11)
    if beta == 0:
        torch.testing.assert_close(log_probs, torch.full((3,), -1024.0).double() * torch.tensor(8.0).double().log())
    assert_close(next_token_probs(grammar, leaves[:, :-1]), predictions[:, -1])
    posteriors = ancestor_posteriors(grammar, leaves)
    assert all(level.isfinite().all() for level in posteriors)
    assert_close(posteriors[-1], torch.nn.functional.one_hot(leaves, 8).double())
    trees, best = most_probable_tree(grammar, leaves)
    assert (best <= log_probs + 1e-9).all()
    assert torch.equal(trees[-1], leaves)
    assert torch.equal(sample_posterior(grammar, leaves, n=1, seed=0)[-1][0], leaves)


def copying_grammar(L: int = 2) -> TreeGrammar:
    """Each symbol becomes two copies of itself: only constant sequences are possible."""
    rules = torch.zeros(3, 3, 3)
    rules[torch.arange(3), torch.arange(3), torch.arange(3)] = 1
    return TreeGrammar(rules, L)


@pytest.mark.parametrize('function', LEAVES_FUNCTIONS)
def test_impossible_sequence_is_an_error_that_names_the_first(
    function: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = torch.tensor([[0] * 4, [1] * 4, [2] * 4, [0, 0, 1, 0], [1] * 4, [0, 1, 0, 0]])
    for rows in (1000, 3, 2):
        monkeypatch.setattr(propagation, '_MESSAGE_ENTRIES', {'cpu': rows * 3})
        with pytest.raises(ValueError, match=r'^row 3 has probability zero'):
            function(copying_grammar(), leaves)
    function(copying_grammar(), leaves[:3])


def test_impossible_context_is_an_error_and_what_is_not_seen_does_not_count() -> None:
    grammar = copying_grammar()
    for context in ([[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [1, 1, 0]], [[0, 0], [1, 0]]):
        with pytest.raises(ValueError, match=r'^row 1 has probability zero'):
            next_token_probs(grammar, torch.tensor(context))
    # The last token is not part of any context, nor is what follows the past.
    leaves = torch.tensor([[0, 0, 0, 1]])
    assert torch.equal(all_next_token_probs(grammar, leaves)[0, -1], torch.tensor([1.0, 0, 0]).double())
    assert torch.equal(ancestor_posteriors(grammar, leaves, past=3)[0][0, 0], torch.tensor([1.0, 0, 0]).double())
    with pytest.raises(ValueError, match=r'^row 0 has probability zero'):
        ancestor_posteriors(grammar, leaves)


@pytest.mark.parametrize('function', LEAVES_FUNCTIONS)
@pytest.mark.parametrize(
    ('leaves', 'message'),
    [
        (torch.tensor([[0, 1, 2, 3]]), 'token 3 in .*leaves is not a symbol of the grammar: use 0 to 2'),
        (torch.tensor([[0, 1, -1, 2]]), 'token -1 in .*leaves is not a symbol of the grammar: use 0 to 2'),
        (torch.zeros(2, 5, dtype=torch.int64), r'leaves of shape \(2, 5\): for a tree of 4 leaves give'),
        (torch.zeros(4, dtype=torch.int64), r'leaves of shape \(4,\): for a tree of 4 leaves give'),
        (torch.zeros(2, 4), 'leaves of type torch.float32: give tokens as integers'),
    ],
)
def test_leaves_that_do_not_fit_are_refused(function: Callable, leaves: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(copying_grammar(), leaves)


def test_arguments_that_do_not_fit_are_refused() -> None:
    grammar = copying_grammar()
    leaves = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r'inputs of shape \(2, 4\): for a tree of 4 leaves give'):
        next_token_probs(grammar, leaves)
    with pytest.raises(ValueError, match='token 7 in inputs is'):
        next_token_probs(grammar, torch.tensor([[0, 7]]))
    for past in (-1, 5):
        with pytest.raises(ValueError, match=f'past={past} '):
            ancestor_posteriors(grammar, leaves, past=past)
    with pytest.raises(ValueError, match='n=0 '):
        sample_posterior(grammar, leaves, n=0, seed=0)


def test_where_there_is_no_float64_the_cpu_takes_its_place() -> None:
    grammar = random_grammar(3, 2, seed=4)
    leaves = grammar.sequences(0, 5)
    for function in (all_next_token_probs, log_likelihood):
        found = function(grammar, leaves, device='mps')
        assert found.device.type == 'cpu' and torch.equal(found, function(grammar, leaves))


def test_empty_batches_and_narrow_integers_are_accepted() -> None:
    grammar = random_grammar(3, 2, seed=4)
    nothing = torch.zeros(0, 4, dtype=torch.int64)
    assert next_token_probs(grammar, nothing[:, :3]).shape == (0, 3)
    assert all_next_token_probs(grammar, nothing).shape == (0, 4, 3)
    assert log_likelihood(grammar, nothing).shape == (0,)
    assert [level.shape for level in ancestor_posteriors(grammar, nothing)] == [(0, 1, 3), (0, 2, 3), (0, 4, 3)]
    assert sample_posterior(grammar, nothing, n=2, seed=0)[1].shape == (2, 0, 2)
    assert most_probable_tree(grammar, nothing)[0][1].shape == (0, 2)
    leaves = grammar.sequences(0, 5)
    assert torch.equal(log_likelihood(grammar, leaves.to(torch.uint8)), log_likelihood(grammar, leaves))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('k', [None, 1])
def test_inference_is_the_same_on_every_device(k: int | None) -> None:
    """Also where only deterministic algorithms are allowed."""
    original = RLM(v=5, L=3, beta=1.5)
    language: TreeGrammar = original if k is None else original.filtered(k)
    leaves = language.sequences(0, 50)
    torch.use_deterministic_algorithms(True)
    try:
        for function in (next_token_probs, all_next_token_probs):
            there = function(language, leaves[:, :7], device='cuda')
            assert there.is_cuda
            torch.testing.assert_close(there.cpu(), function(language, leaves[:, :7]), rtol=0, atol=1e-12)
    finally:
        torch.use_deterministic_algorithms(False)
