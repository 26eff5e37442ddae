"""Steering moves what a probe says by the least amount, and its effect is measured against exact counterfactuals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from analysed import run_of
from torch import Tensor

from RLM_clean.analysis import interventions
from RLM_clean.analysis.interventions import interchange, left_siblings, steer, steering_effects, whitened_step
from RLM_clean.analysis.layers import activations, patched_logits
from RLM_clean.analysis.probes import Probe, fit_probe
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact.inference import next_token_probs
from RLM_clean.measures import kl_divergence
from RLM_clean.models.transformer import MLM
from RLM_clean.streams import seeded_generator

FEW: dict[str, Any] = {'num_train': 100, 'num_test': 60}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed), dtype=torch.float64)


def planted(v: int = 4, d: int = 6) -> tuple[Probe, Tensor, Tensor, Tensor]:
    """A probe of correlated features, and contexts with their likeliest symbol a and another one b."""
    x = normal(500, d) @ normal(d, d, seed=1) + 3
    probe = fit_probe(x, torch.softmax(x @ normal(d, v, seed=2), 1), v)
    a = probe.log_probs(x).argmax(1)
    return probe, x, a, (a + 1 + torch.arange(500) % (v - 1)) % v


# ---------------------------------------------------------------------- a step along a probe


def test_a_step_exchanges_the_odds_of_two_symbols() -> None:
    probe, x, a, b = planted()
    rows = torch.arange(len(x))
    before, after = probe.log_probs(x), probe.log_probs(steer(probe, x, a, b))
    gap = before[rows, a] - before[rows, b]
    torch.testing.assert_close(after[rows, b] - after[rows, a], gap, rtol=0, atol=1e-8)
    half = probe.log_probs(steer(probe, x, a, b, strength=0.5))
    torch.testing.assert_close(half[rows, b], half[rows, a], rtol=0, atol=1e-8)


def test_no_step_of_smaller_mahalanobis_norm_exchanges_the_odds() -> None:
    """The step is the closest point of the plane of all exchanges: steps within that plane are orthogonal to it."""
    probe, x, a, b = planted()
    inverse = torch.linalg.inv(torch.cov(x.T, correction=0))
    rows = torch.arange(len(x))
    step = steer(probe, x, a, b) - x
    norm = torch.einsum('ri,ij,rj->r', step, inverse, step)
    torch.testing.assert_close(norm, whitened_step(probe, x, a, b).square().sum(1), rtol=1e-8, atol=0)
    weight = (probe.weight[:, b] - probe.weight[:, a]).T
    for seed in range(5):
        other = normal(*x.shape, seed=seed)
        other -= (other * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight
        moved = probe.log_probs(x + step + other)
        expected = probe.log_probs(x + step)
        torch.testing.assert_close(
            moved[rows, b] - moved[rows, a], expected[rows, b] - expected[rows, a], rtol=0, atol=1e-8
        )
        assert (torch.einsum('ri,ij,rj->r', step + other, inverse, step + other) > norm).all()


def test_a_step_does_not_depend_on_the_basis_of_the_features() -> None:
    probe, x, a, b = planted()
    basis = normal(6, 6, seed=3)
    labels = torch.softmax(normal(500, 4, seed=4), 1)
    one, other = fit_probe(x, labels, 4), fit_probe(x @ basis, labels, 4)
    torch.testing.assert_close(steer(one, x, a, b) @ basis, steer(other, x @ basis, a, b), rtol=0, atol=1e-2)
    assert (steer(one, x, a, b) - x).norm(dim=1).mean() > 0.1
    assert probe.whitening.shape == (6, 6)


def test_nothing_moves_where_the_new_symbol_is_likelier_already_or_the_step_is_zero() -> None:
    probe, x, a, b = planted()
    assert torch.equal(steer(probe, x, b, a), x)
    assert torch.equal(steer(probe, x, a, a), x)
    assert torch.equal(steer(probe, x, a, b, strength=0.0), x)


# ---------------------------------------------------------------------- the effect of steering


def large_weights(grammar: TreeGrammar, **options: Any) -> Any:
    return run_of(grammar, **{'depth': 2, 'num_heads': 2, **options})


@pytest.mark.parametrize(
    'options', [{}, {'num_tokens': 5}, {'model': 'transformer_clm', 'objective': 'all'}, {'positions': 'rope'}]
)
def test_steering_by_zero_changes_nothing(options: dict[str, Any]) -> None:
    found = steering_effects(large_weights(RLM(v=4, L=3, beta=1.0), **options), strength=0.0, **FEW)
    assert found.layers == ['embeddings', 'block 1', 'block 2'] and found.nodes == [(1, 0), (2, 2), (3, 6)]
    for condition in ('steered', 'random'):
        assert torch.equal(found.divergence[condition].value, found.divergence['unsteered'].value)
        assert not found.change[condition].value.any() and not found.effect[condition].value.any()
    assert (found.change['exact'].value > 0).all() and found.number.tolist() == [60, 60, 60]
    assert not found.distance.any()


def test_measures_are_those_of_predictions_patched_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """For x_(n-1), below which is one position, in each layer: every number from its definition, in loops."""
    grammar = RLM(v=4, L=2, beta=1.0)
    run = large_weights(grammar)
    model: Any = run.model()
    kept: dict[str, Any] = {}

    def keep(run: Any, inputs: Tensor, node: Any, generator: Any) -> Any:
        kept['symbols'] = original(run, inputs, node, generator)
        return kept['symbols']

    original = interventions._symbols
    monkeypatch.setattr(interventions, '_symbols', keep)
    found = steering_effects(run, nodes=[(2, 2)], **FEW)
    inputs, a, b = kept['symbols']
    assert torch.equal(a, inputs[:, -1]) and (a != b).all()
    fit = grammar.sequences(0, 100, 'other')[:, :3]
    changed = torch.cat((inputs[:, :2], b[:, None]), 1)
    exact, before = next_token_probs(grammar, changed), torch.softmax(run.logits(model, inputs).double(), 1)
    p = next_token_probs(grammar, inputs)
    unsteered = kl_divergence(exact, before.log()).mean()
    for k, layer in enumerate(found.layers):
        probe = fit_probe(activations(run, model, fit)[layer], fit[:, 2], 4)
        stream = activations(run, model, inputs)[layer]
        new = steer(probe, stream, a, b).float()
        q = torch.softmax(patched_logits(run, model, inputs, layer, new).double(), 1)
        divergence = kl_divergence(exact, q.log())
        expected = {
            'divergence': divergence.mean(), 'effect': 1 - divergence.mean() / unsteered,
            'change': (q - before).abs().sum(1).mean() / 2,
            'correlation': torch.corrcoef(torch.stack(
                [(x.clamp(min=1e-3) / y.clamp(min=1e-3)).log().flatten() for x, y in ((exact, p), (q, before))]
            ))[0, 1],
        }  # fmt: skip
        for name, value in expected.items():
            assert getattr(found, name)['steered'].value[k, 0].item() == pytest.approx(value.item(), abs=1e-5), name
        error = found.divergence['steered'].error[k, 0].item()
        assert error == pytest.approx(divergence.std().item() / 60**0.5, rel=1e-4)
        assert found.divergence['unsteered'].value[k, 0].item() == pytest.approx(unsteered.item(), abs=1e-5)
        assert found.change['exact'].value[k, 0].item() == pytest.approx((exact - p).abs().sum(1).mean().item() / 2)


def test_the_control_moves_each_vector_as_far_as_the_steering_but_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal Mahalanobis lengths at each position from the first token below the node on, and no change before it."""
    run = large_weights(RLM(v=4, L=3, beta=1.0))
    kept: list[tuple[str, Tensor, Tensor]] = []

    def keep(run: Any, model: Any, inputs: Tensor, layer: str, new: Tensor, position: Any) -> Tensor:
        kept.append((layer, inputs, new))
        return original(run, model, inputs, layer, new, position)

    original = interventions._patched_prediction
    monkeypatch.setattr(interventions, '_patched_prediction', keep)
    found = steering_effects(run, nodes=[(2, 2)], **FEW)
    fit = activations(run, run.model(), run.rlm.sequences(0, 100, 'other')[:, :7], None)
    pairs = list(zip(kept[::2], kept[1::2], strict=True))[1:]  # the embeddings have few directions
    for k, ((layer, inputs, steered), (_, _, random)) in enumerate(pairs, 1):
        stream = activations(run, run.model(), inputs, None)[layer]
        changes = [(new - stream).double() for new in (steered, random)]
        assert not changes[0][:, :4].any() and not changes[1][:, :4].any()
        for t in range(4, 7):
            inverse = torch.linalg.inv(torch.cov(fit[layer][:, t].double().T, correction=0))
            one, other = (torch.einsum('ri,ij,rj->r', x[:, t], inverse, x[:, t]).sqrt() for x in changes)
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
            assert t < 6 or found.distance[k, 0].item() == pytest.approx(one.mean().item(), rel=1e-3)
        moved = one > 0.1
        assert moved.any() and (changes[0][moved, 6] - changes[1][moved, 6]).norm(dim=1).min() > 1e-3


def test_the_error_of_an_effect_is_that_of_the_jackknife() -> None:
    p, q = (torch.softmax(normal(300, 4, seed=seed), 1) for seed in (0, 1))
    after = torch.softmax(p.log() + 0.5 * normal(300, 4, seed=2), 1)
    _, error = interventions._compared((q, p), q, {'steered': after})['effect steered']
    divergence, unsteered = kl_divergence(p, after.log()), kl_divergence(p, q.log())
    left_out = 1 - (divergence.sum() - divergence) / (unsteered.sum() - unsteered)
    jackknife = (299 / 300 * (left_out - left_out.mean()).square().sum()).sqrt()
    assert error.item() == pytest.approx(jackknife.item(), rel=0.02)


class Copy(MLM):
    """A transformer without blocks whose head says the exact ln P(x_2 | x_1) of a language of one level."""

    def __init__(self, grammar: TreeGrammar) -> None:
        super().__init__(grammar.v, 1, grammar.v, depth=0)
        self.table = next_token_probs(grammar, torch.arange(grammar.v)[:, None]).log().float()
        self.tokens.weight.data = torch.eye(grammar.v)
        assert self.positions is not None
        self.positions.weight.data.zero_()

    def read(self, x: Tensor) -> Tensor:
        return x @ self.table

    def last_logits(self, inputs: Tensor) -> Tensor:
        return self.read(self.embed(inputs)[:, -1])


def test_steering_the_symbol_that_a_model_reads_gives_the_exact_counterfactual() -> None:
    """The embeddings are one-hot: the least step that exchanges two tokens is that from one row to the other."""
    grammar = RLM(v=4, L=1, beta=1.0)
    found = steering_effects(run_of(grammar, Copy(grammar), depth=1), num_train=2000, num_test=200)
    assert found.layers == ['embeddings'] and found.nodes == [(1, 0)]
    assert found.effect['steered'].value[0, 0] > 0.98 and found.correlation['steered'].value[0, 0] > 0.98
    assert abs(found.change['steered'].value - found.change['exact'].value).item() < 0.01
    assert found.effect['random'].value[0, 0] < 0.5


def test_contexts_in_which_a_node_is_certain_are_left_out() -> None:
    grammar = RHM(v=4, m=1, L=2)
    with pytest.raises(ValueError, match=r'node=\(0, 0\) can have another symbol in 0 contexts: use another node'):
        steering_effects(large_weights(grammar), nodes=[(0, 0)], **FEW)


def test_the_same_seed_gives_the_same_numbers_and_the_global_generator_is_left_alone() -> None:
    run = large_weights(RLM(v=4, L=2, beta=1.0))
    state = torch.get_rng_state()
    one, again, other = (steering_effects(run, seed=seed, **FEW) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.divergence['random'].value, again.divergence['random'].value)
    assert not torch.equal(one.divergence['random'].value, other.divergence['random'].value)


def test_what_cannot_be_steered_is_an_error_with_a_remedy() -> None:
    grammar = RLM(v=4, L=2, beta=1.0)
    with pytest.raises(ValueError, match="objective='root' does not predict the next token"):
        steering_effects(run_of(grammar, model='transformer_bert', objective='root'), **FEW)
    with pytest.raises(ValueError, match="model='fcn' has no residual stream to steer: use a transformer"):
        steering_effects(run_of(grammar, model='fcn'), **FEW)
    with pytest.raises(ValueError, match="model='fcn' has no residual stream to replace: use a transformer"):
        interchange(run_of(grammar, model='fcn'))
    with pytest.raises(ValueError, match=r'node=\(1, 0\) has no token below it that the model sees: use another node'):
        steering_effects(run_of(grammar, num_tokens=2), **FEW)
    assert left_siblings(3) == [(1, 0), (2, 2), (3, 6)]


# ---------------------------------------------------------------------- the residual stream of another context


@pytest.mark.parametrize('options', [{}, {'model': 'transformer_clm', 'objective': 'all'}, {'num_tokens': 5}])
def test_embeddings_bring_the_last_token_of_the_donor_and_the_last_layer_all(options: dict[str, Any]) -> None:
    grammar = RLM(v=4, L=3, beta=1.0)
    run = large_weights(grammar, **options)
    model, size = run.model(), run.config.context_size
    found = interchange(run, num_pairs=40)
    assert found.windows == ([0, 1, 3, 7] if size == 7 else [0, 1, 3, 4]) and found.number == 40
    inputs = grammar.sequences(0, 40, 'test')[:, 7 - size : 7]
    donors = inputs.roll(-1, 0)

    def log_q(x: Tensor) -> Tensor:
        logits = run.logits(model, x)
        return torch.log_softmax((logits[:, -1] if logits.dim() == 3 else logits).double(), 1)

    mixed = torch.cat((inputs[:, :-1], donors[:, -1:]), 1)
    for w, k in enumerate(found.windows):
        exact = next_token_probs(grammar, torch.cat((inputs[:, : size - k], donors[:, size - k :]), 1))
        for layer, same in ((0, mixed), (2, donors)):
            values = kl_divergence(exact, log_q(same))
            assert found.divergence.value[layer, w].item() == pytest.approx(values.mean().item(), abs=1e-5)
            d = (values - values.mean()).tolist()
            shared = 2 * sum(d[r] * d[(r + 1) % 40] for r in range(40))
            error = ((sum(x * x for x in d) + max(0, shared)) / (40 * 39)) ** 0.5
            assert found.divergence.error[layer, w].item() == pytest.approx(error, abs=1e-5)


def test_the_error_of_pairs_that_share_contexts_is_that_of_their_mean() -> None:
    """Values a_r + a_(r+1) on 2000 rings of 60 pairs, a third of which are left out, at random.

    N times the mean has the variance sum_r n_r^2 of the a, n_r the number of the two pairs of context r that are kept.
    The mean square of 2000 errors has a relative standard deviation of about 1%, and the floor at independent pairs
    adds less than 1% here: 5% is refused. Independent errors would say 35% too little.
    """
    generator = seeded_generator(0)
    squares, expected = [], []
    for _ in range(2000):
        a = torch.randn(60, generator=generator, dtype=torch.float64)
        kept = torch.rand(60, generator=generator) < 2 / 3
        values = (a + a.roll(-1))[kept]
        mean, error = interventions._ring_mean(values, kept)
        assert mean == values.mean() and error >= values.std() / len(values) ** 0.5
        squares.append(error.item() ** 2)
        times = kept.double() + kept.double().roll(1)
        expected.append(times.square().sum().item() / len(values) ** 2)
    assert sum(squares) == pytest.approx(sum(expected), rel=0.05)


def test_pairs_whose_mixtures_are_impossible_are_left_out() -> None:
    grammar = RHM(v=6, m=2, L=2)
    found = interchange(large_weights(grammar), num_pairs=200)
    assert 2 <= found.number < 200 and found.divergence.value.isfinite().all()
    inputs = grammar.sequences(0, 200, 'test')[:, :3]
    possible = {tuple(row) for row in grammar.sequences(0, 20_000)[:, :3].tolist()}
    donors = inputs.roll(-1, 0)
    mixed = torch.cat((inputs[:, :-1], donors[:, -1:]), 1)
    assert found.number == sum(tuple(row) in possible for row in mixed.tolist())
    with pytest.raises(ValueError, match='num_pairs=1 leaves no pair whose mixtures are possible: use more'):
        interchange(large_weights(grammar), num_pairs=1)
