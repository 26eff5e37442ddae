"""The models: causality, equality of the two transformers, initialisation, gradients, generation, dropout.

Statistical tests are those of test_streams.py: fixed seeds, p-values above ALARM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_streams import ALARM, chi_square
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.datasets import RLM
from RLM_clean.models import CLM, MLM, MLP, num_parameters, set_dropout_key
from RLM_clean.models.layers import Dropout
from RLM_clean.streams import stream_key


def tokens(v: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(v, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def grown(model: nn.Module, seed: int = 1) -> Any:
    """The model as training might leave it: biases and gains off their start, logits of order one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def small(build: type[nn.Module] = CLM, **options: Any) -> Any:
    return build(**{'vocab_size': 7, 'block_size': 5, 'embedding_dim': 8, 'num_heads': 2, 'depth': 2, **options})


# ---------------------------------------------------------------------- causality and the two transformers


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('depth', [1, 2, 3])
def test_changing_later_tokens_changes_no_earlier_logits(depth: int, dtype: torch.dtype) -> None:
    model = grown(small(depth=depth, block_size=8).to(dtype))
    idx = tokens(7, 16, 8)
    logits = model(idx)
    assert logits.shape == (16, 8, 7)
    for position in range(8):
        changed = idx.clone()
        changed[:, position:] = (changed[:, position:] + 1 + tokens(6, 16, 8 - position, seed=position)) % 7
        again = model(changed)
        assert torch.equal(again[:, :position], logits[:, :position])
        assert (again[:, position] != logits[:, position]).any(1).all()


def test_every_earlier_token_matters() -> None:
    model = grown(small(depth=1, block_size=8))
    idx = tokens(7, 4, 8)
    for position in range(8):
        changed = idx.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        assert (model(changed)[:, -1] != model(idx)[:, -1]).any(1).all()


@pytest.mark.parametrize('tie', [False, True])
@pytest.mark.parametrize('heads', [1, 2, 4])
@pytest.mark.parametrize('depth', [0, 1, 2, 3])
def test_mlm_equals_the_last_position_of_clm_with_the_same_weights(depth: int, heads: int, tie: bool) -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        clm = grown(small(depth=depth, num_heads=heads, tie_weights=tie).to(dtype))
        mlm = small(MLM, depth=depth, num_heads=heads, tie_weights=tie, seed=5).to(dtype).eval()
        mlm.load_state_dict(clm.state_dict())
        for length in (1, 2, 5):
            idx = tokens(7, 32, length, seed=length)
            last = clm(idx)[:, -1]
            scale = max(1.0, last.abs().max().item())
            assert mlm(idx).shape == (32, 7)
            assert last.std() > 0.1
            torch.testing.assert_close(mlm(idx), last, rtol=0, atol=tolerance * scale)
            torch.testing.assert_close(clm.last_logits(idx), last, rtol=0, atol=tolerance * scale)


def test_one_seed_gives_clm_and_mlm_the_same_weights() -> None:
    clm, mlm = small(seed=3), small(MLM, seed=3)
    assert list(clm.state_dict()) == list(mlm.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(clm.parameters(), mlm.parameters(), strict=True))


def test_attention_is_the_softmax_of_scaled_products_of_each_head() -> None:
    d, heads = 8, 2
    attention = grown(small(embedding_dim=d, num_heads=heads).double()).blocks[0].attention
    x = torch.randn(3, 5, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = attention.qkv(x).split(d, dim=-1)
    outputs = []
    for h in range(heads):
        part = slice(h * d // heads, (h + 1) * d // heads)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d / heads)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(-1) @ v[..., part])
    expected = torch.cat(outputs, -1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('build', [CLM, MLM])
def test_one_hot_rows_and_token_indices_give_the_same_logits(build: type[nn.Module]) -> None:
    model = grown(small(build))
    idx = tokens(7, 20, 5)
    torch.testing.assert_close(model(F.one_hot(idx, 7).float()), model(idx), rtol=1e-6, atol=1e-6)


def test_one_hot_rows_and_token_indices_give_an_mlp_the_same_logits() -> None:
    for dtype in (torch.float32, torch.float64):
        model = grown(MLP(7, 5, width=16, depth=2).to(dtype))
        idx = tokens(7, 20, 5)
        assert model(idx).shape == (20, 7) and model(idx).dtype == dtype
        assert torch.equal(model(F.one_hot(idx, 7).to(dtype)), model(idx))


def test_an_mlp_tells_positions_apart() -> None:
    model = grown(MLP(7, 2, width=16))
    assert not torch.allclose(model(torch.tensor([[1, 2]])), model(torch.tensor([[2, 1]])))


# ---------------------------------------------------------------------- initialisation


def initial_loss(model: nn.Module, rlm: RLM, input_format: str = 'long', whitening: int = 0) -> float:
    inputs, targets = rlm.batch(0, 2048)
    logits = model.eval()(init.transform_inputs(inputs, rlm.v, input_format, whitening)).detach()
    if logits.dim() == 3:
        logits, targets = logits.flatten(0, 1), torch.cat((inputs[:, 1:], targets[:, None]), 1).flatten()
    return F.cross_entropy(logits, targets).item()


LANGUAGES = [(2, 1), (2, 3), (5, 2), (32, 3), (128, 1)]


@pytest.mark.parametrize('tie', [False, True])
@pytest.mark.parametrize(('v', 'L'), LANGUAGES)
def test_the_loss_at_initialisation_is_that_of_the_uniform_guess(v: int, L: int, tie: bool) -> None:
    rlm = RLM(v, L)
    for d, heads, depth in ((8, 1, 1), (8, 2, 3), (64, 1, 1), (64, 4, 2)):
        for seed in (0, 11111):
            for build in (CLM, MLM):
                model = build(v, 2**L - 1, d, heads, depth, tie_weights=tie, seed=seed)
                for input_format, whitening in (('long', 0), ('onehot', 1)):
                    assert abs(initial_loss(model, rlm, input_format, whitening) - math.log(v)) < 0.01


@pytest.mark.parametrize(('v', 'L'), LANGUAGES)
def test_the_loss_of_an_mlp_at_initialisation_is_that_of_the_uniform_guess(v: int, L: int) -> None:
    rlm = RLM(v, L)
    for width, depth in ((16, 1), (256, 2), (256, 4)):
        for seed in range(3):
            one_hot = MLP(v, 2**L - 1, width, depth, seed=seed)
            whitened = MLP(v, 2**L - 1, width, depth, second_moment=1.0, seed=seed)
            for model, input_format, whitening in (
                (one_hot, 'long', 0),
                (one_hot, 'onehot', 0),
                (whitened, 'onehot', 1),
            ):
                assert abs(initial_loss(model, rlm, input_format, whitening) - math.log(v)) < 0.01


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    'clm': lambda seed: small(seed=seed, dropout=0.1),
    'tied': lambda seed: small(seed=seed, tie_weights=True),
    'mlm': lambda seed: small(MLM, seed=seed),
    'mlp': lambda seed: MLP(7, 5, 16, 2, seed=seed),
}


@pytest.mark.parametrize('name', BUILDERS)
def test_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    build = BUILDERS[name]
    state = torch.get_rng_state()
    first = build(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    torch.randn(5)
    second, other = build(3), build(4)
    for (key, mine), theirs, different in zip(
        first.state_dict().items(), second.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)
        random = mine.dim() == 2  # gains start at one and biases at zero
        assert torch.equal(mine, different) != random, key
        assert mine.isfinite().all() and mine.dtype == torch.float32
    assert all(p.device.type == 'cpu' and p.requires_grad for p in first.parameters())


def test_forward_and_backward_leave_the_global_generator_alone() -> None:
    model = small(dropout=0.5)
    state = torch.get_rng_state()
    model(tokens(7, 4, 5)).sum().backward()
    model.generate(tokens(7, 4, 2), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_start_with_the_stated_variances() -> None:
    """To 5%: more than 8 deviations of an estimate from the 16384 weights or more of each tensor."""
    d, depth = 128, 2
    model: Any = CLM(200, 150, d, 4, depth, ffwd_size=4, seed=1)
    tied: Any = CLM(200, 150, d, 4, depth, tie_weights=True)
    block = model.blocks[1]
    logits = model(tokens(200, 50, 150))
    for values, std in (
        (model.tokens.weight, 0.3),
        (model.positions.weight, 0.3),
        (block.attention.qkv.weight, d**-0.5),
        (block.attention.proj.weight, d**-0.5 / math.sqrt(2 * depth)),
        (block.expand.weight, d**-0.5),
        (block.contract.weight, (4 * d) ** -0.5 / math.sqrt(2 * depth)),
        (tied.positions.weight, tied.tokens.weight.std().item()),
        (logits, 0.005),
        (tied(tokens(200, 50, 150)), 0.01),
    ):
        assert abs(values.std().item() / std - 1) < 0.05


@pytest.mark.parametrize('whitening', [0, 1])
def test_activations_of_an_mlp_start_at_order_one(whitening: int) -> None:
    v, T = 20, 7
    model: Any = MLP(v, T, 512, 3, second_moment=1.0 if whitening else None)
    x = init.transform_inputs(tokens(v, 1000, T), v, 'onehot', whitening).flatten(1)
    for layer in model.hidden:
        y = layer(x)
        assert 1.0 < (y**2).mean() < 4.0  # 2 for an input of mean square one: relu halves it
        x = F.relu(y)


def test_parameters_are_counted_and_a_tied_head_only_once() -> None:
    free, tied = small(), small(tie_weights=True)
    d, v, T = 8, 7, 5
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    assert num_parameters(free) == 2 * v * d + T * d + 2 * block + 2 * d
    assert num_parameters(tied) == num_parameters(free) - v * d
    assert tied.head.weight is tied.tokens.weight
    assert num_parameters(MLP(7, 5, 16, 2)) == 35 * 16 + 16 + 16 * 16 + 16 + 16 * 7


# ---------------------------------------------------------------------- gradients


TINY: dict[str, Any] = {
    'vocab_size': 3,
    'block_size': 3,
    'embedding_dim': 4,
    'num_heads': 2,
    'depth': 1,
    'ffwd_size': 2,
}


@pytest.mark.parametrize(
    'model',
    [
        CLM(**TINY),
        MLM(**TINY),
        CLM(**TINY, tie_weights=True),
        CLM(**TINY, dropout=0.3),
        MLP(3, 3, width=5, depth=2),
    ],
    ids=['clm', 'mlm', 'tied', 'dropout', 'mlp'],
)
def test_gradients_are_those_of_finite_differences(model: nn.Module) -> None:
    model = grown(model.double()).train()
    set_dropout_key(model, 7)
    names, parameters = zip(*model.named_parameters(), strict=True)
    idx = torch.tensor([[0, 1, 2], [2, 2, 0]])

    def logits(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), idx)

    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(logits, leaves)


def test_every_weight_of_a_model_gets_a_gradient() -> None:
    for name, build in BUILDERS.items():
        model = grown(build(0))
        idx, targets = tokens(7, 64, 5), tokens(7, 64, seed=1)
        logits = model(idx)
        F.cross_entropy(logits if logits.dim() == 2 else logits[:, -1], targets).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), f'{name} {key}'


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize('temperature', [0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize('T', [1, 3, 6])
def test_generation_with_cached_keys_equals_recomputing_the_growing_prefix(T: int, temperature: float) -> None:
    model = grown(small(block_size=10, depth=3))
    idx = tokens(7, 200, T)
    generator = torch.Generator().manual_seed(5)
    expected = idx
    for _ in range(11 - T):
        logits = model(expected)[:, -1]
        if temperature == 0:
            token = logits.argmax(1, keepdim=True)
        else:
            token = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
        expected = torch.cat((expected, token), 1)
    found = model.generate(idx, 11 - T, temperature, torch.Generator().manual_seed(5))
    assert found.shape == (200, 11) and found.dtype == torch.int64
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(idx, 3, temperature, torch.Generator().manual_seed(5)), expected[:, : T + 3])


def test_generation_without_a_generator_is_reproducible_and_follows_a_given_one() -> None:
    model = grown(small())
    idx = tokens(7, 50, 1)
    torch.manual_seed(1)
    first = model.generate(idx, 5)
    torch.manual_seed(2)
    assert torch.equal(model.generate(idx, 5), first)
    assert torch.equal(model.generate(idx, 5, generator=torch.Generator().manual_seed(0)), first)
    assert not torch.equal(model.generate(idx, 5, generator=torch.Generator().manual_seed(1)), first)
    assert torch.equal(model.generate(idx, 0), idx)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 4.0])
def test_generated_tokens_have_the_distribution_of_the_model(temperature: float) -> None:
    model = grown(small())
    idx = torch.tensor([[2, 5]]).expand(20_000, -1)
    drawn = model.generate(idx, 1, temperature)[:, -1]
    law = (model(idx[:1])[0, -1].double() / temperature).softmax(0)
    assert chi_square(drawn.bincount(minlength=7), 20_000 * law) > ALARM


@pytest.mark.parametrize('training', [True, False])
def test_generation_drops_nothing_and_leaves_the_mode_as_it_was(training: bool) -> None:
    model = grown(small(dropout=0.5))
    expected = model.generate(tokens(7, 20, 1), 5, temperature=0)
    model.train(training)
    assert torch.equal(model.generate(tokens(7, 20, 1), 5, temperature=0), expected)
    assert model.training is training and model.blocks[0].training is training


@pytest.mark.parametrize(
    ('idx', 'options', 'message'),
    [
        (torch.zeros(3, 0, dtype=torch.int64), {'num_tokens': 1}, r'idx of shape \(3, 0\) holds no token .*: give'),
        (torch.zeros(3, dtype=torch.int64), {'num_tokens': 1}, r'idx of shape \(3,\) holds no token .*: give'),
        (torch.zeros(3, 2, dtype=torch.int64), {'num_tokens': 5}, 'num_tokens=5 after 2 tokens exceeds block_size'),
        (torch.zeros(3, 2, dtype=torch.int64), {'num_tokens': 1, 'temperature': -1.0}, 'temperature=-1.0 is negative'),
    ],
)
def test_what_cannot_be_generated_is_an_error_in_one_sentence(idx: Tensor, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().generate(idx, **options)


# ---------------------------------------------------------------------- dropout


def mask(key: int, layer: int = 0, p: float = 0.3, *shape: int) -> Tensor:
    module = Dropout(p, layer)
    module.key.fill_(key)
    return module(torch.ones(shape or (2**16,))) != 0


def test_a_dropout_mask_is_a_function_of_key_and_layer() -> None:
    key = stream_key(1, 'dropout', 0)
    first = mask(key)
    torch.manual_seed(5)
    assert torch.equal(mask(key), first)
    assert torch.equal(mask(key, 0, 0.3, 2**8, 2**8).flatten(), first)


@pytest.mark.parametrize('p', [0.05, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_stated_fraction_and_the_mean(p: float) -> None:
    """Within 6.5 standard deviations of a binomial count: a false alarm once in 1e10 for each of 40 seeds."""
    module = Dropout(p, 1)
    x = torch.ones(2**15)
    for step in range(10):
        module.key.fill_(stream_key(3, 'dropout', step))
        y = module(x)
        kept = (y != 0).sum().item()
        assert abs(kept - (1 - p) * 2**15) < 6.5 * math.sqrt(p * (1 - p) * 2**15)
        torch.testing.assert_close(y[y != 0], torch.full((kept,), 1 / (1 - p)))


def test_masks_of_different_keys_and_layers_are_independent() -> None:
    """Both, one or neither of two masks keep an entry: chi-square over the four cases."""
    keys = [stream_key(1, 'dropout', step) for step in range(4)]
    masks = [mask(key, layer) for key in keys for layer in range(3)]
    law = torch.tensor([0.3, 0.7]).double()
    for i, first in enumerate(masks):
        for second in masks[:i]:
            counts = torch.bincount(2 * first + second.long(), minlength=4)
            assert chi_square(counts, 2**16 * torch.outer(law, law)) > ALARM


def test_no_layer_and_no_part_of_a_batch_repeats_the_words_of_another() -> None:
    """The first 64 entries of a mask are nowhere among the 2^16 entries of another: by chance once in 1e9 seeds."""
    key = stream_key(1, 'dropout', 0)
    masks = [mask(key, layer) for layer in range(7)]
    module = Dropout(0.3, 0)
    module.key.fill_(key)
    module.part = 1
    masks.append(module(torch.ones(2**16)) != 0)
    for i, first in enumerate(masks):
        for j, second in enumerate(masks):
            found = (second.unfold(0, 64, 1) == first[:64]).all(1)
            assert found.nonzero().flatten().tolist() == ([0] if i == j else [])


def test_masks_keep_their_meaning() -> None:
    """Golden masks: with other ones, a run that is resumed would go on with other dropout. Change them knowingly."""
    assert mask(7, 1, 0.5, 16).int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert mask(7, 2, 0.5, 16).int().tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0]


def test_every_dropout_of_a_model_has_a_layer_of_its_own() -> None:
    modules = [module for module in small(dropout=0.1, depth=3).modules() if isinstance(module, Dropout)]
    assert sorted(module.layer for module in modules) == list(range(7))


def test_the_dropout_of_a_model_is_a_function_of_its_key() -> None:
    model = grown(small(dropout=0.3)).train()
    idx = tokens(7, 8, 5)
    logits: dict[int, Tensor] = {}
    for key in (1, 2, 1):
        set_dropout_key(model, key)
        found = model(idx)
        assert torch.equal(logits.setdefault(key, found), found)
    assert not torch.equal(logits[1], logits[2])


def test_dropout_is_off_in_evaluation_and_at_zero() -> None:
    dropping, plain = grown(small(dropout=0.5)), grown(small())
    idx = tokens(7, 8, 5)
    assert torch.equal(dropping(idx), plain(idx))
    assert not torch.equal(dropping.train()(idx), plain(idx))
    assert torch.equal(plain.train()(idx), dropping.eval()(idx))


def test_dropout_leaves_no_trace_in_the_stored_weights() -> None:
    dropping, plain = small(dropout=0.5), small()
    set_dropout_key(dropping, 99)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(dropping.state_dict())
    assert dropping.dropout.key == 99


def test_gradients_flow_through_kept_entries_alone() -> None:
    module = Dropout(0.5, 0)
    x = torch.ones(100, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize('build', [CLM, MLM])
def test_heads_that_do_not_divide_the_dimension_are_an_error(build: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match='num_heads=3 does not divide embedding_dim=8: make one a multiple'):
        small(build, num_heads=3)


@pytest.mark.parametrize('build', [CLM, MLM])
def test_a_sequence_longer_than_the_block_is_an_error(build: type[nn.Module]) -> None:
    model = small(build)
    model(tokens(7, 2, 5))
    with pytest.raises(ValueError, match='a sequence of 6 tokens is longer than block_size=5: shorten it'):
        model(tokens(7, 2, 6))


def test_an_mlp_takes_its_own_number_of_tokens_only() -> None:
    with pytest.raises(ValueError, match='4 tokens were given to a network of 5: give as many'):
        MLP(7, 5, 16)(tokens(7, 2, 4))
