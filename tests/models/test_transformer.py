"""Transformers: causality, the three of them on the same weights, positions, initialisation, generation.

Statistical tests are those of test_streams.py: fixed seeds, p-values above ALARM.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import LANGUAGES, V, check_the_past_alone_matters, grown, initial_loss, small, tokens
from test_streams import ALARM, chi_square
from torch import Tensor, nn

from RLM_clean.datasets import RLM
from RLM_clean.models import BERT, CLM, MLM, num_parameters

POSITIONS = ('learned', 'rope', 'none')

# ---------------------------------------------------------------------- causality and the two transformers


@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('depth', [1, 2, 3])
def test_changing_later_tokens_changes_no_earlier_logits(depth: int, dtype: torch.dtype, positions: str) -> None:
    check_the_past_alone_matters(grown(small(depth=depth, block_size=8, positions=positions).to(dtype)), 8)


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


@pytest.mark.parametrize('positions', POSITIONS)
def test_every_position_of_bert_sees_all_tokens(positions: str) -> None:
    model = grown(small(BERT, positions=positions))
    idx = tokens(V, 16, 5)
    for position in range(5):
        changed = idx.clone()
        changed[:, position] = (changed[:, position] + 1) % V
        assert (model(changed) != model(idx)).any(-1).all()


@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('build', [CLM, BERT])
def test_last_logits_are_those_of_the_last_position(build: type[nn.Module], positions: str) -> None:
    model = grown(small(build, positions=positions, num_outputs=3).double())
    for length in (1, 2, 5):
        idx = tokens(V, 32, length, seed=length)
        assert model.last_logits(idx).shape == (32, 3)
        torch.testing.assert_close(model.last_logits(idx), model(idx)[:, -1], rtol=1e-12, atol=1e-12)


def test_bert_has_the_weights_of_clm_and_differs_only_in_what_it_sees() -> None:
    clm, bert = small(seed=3), small(BERT, seed=3)
    assert list(clm.state_dict()) == list(bert.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(clm.parameters(), bert.parameters(), strict=True))
    first = tokens(V, 8, 1)
    torch.testing.assert_close(bert(first), clm(first))  # of a single token both see all


def test_bert_does_not_continue_sequences() -> None:
    message = 'transformer_bert sees the tokens after each position .*: use transformer_clm'
    for call in (lambda m: m.generate(tokens(V, 3, 2), 1), lambda m: m.extend(tokens(V, 3, 2), 1, lambda x: x)):
        with pytest.raises(ValueError, match=message):
            call(small(BERT))


# ---------------------------------------------------------------------- positions and parts


def test_without_positions_bert_permutes_its_logits_with_its_tokens() -> None:
    """And with positions it does not."""
    idx, order = tokens(V, 16, 5), torch.tensor([3, 0, 4, 1, 2])
    for positions in POSITIONS:
        model = grown(small(BERT, positions=positions).double())
        same = torch.allclose(model(idx[:, order]), model(idx)[:, order], rtol=1e-12, atol=1e-12)
        assert same == (positions == 'none')


def test_attention_only_has_no_feed_forward_weights_and_no_second_norm() -> None:
    model = small(ffwd_size=0)
    d = 8
    assert [name for name, _ in model.blocks[1].named_parameters()] == [
        'norm_1.weight', 'norm_1.bias', 'attention.qkv.weight', 'attention.qkv.bias', 'attention.proj.weight',
        'attention.proj.bias',
    ]  # fmt: skip
    assert num_parameters(model) == 2 * V * d + 5 * d + 2 * (4 * d * d + 4 * d + 2 * d) + 2 * d
    x = torch.randn(3, 5, d, generator=torch.Generator().manual_seed(0))
    block = grown(model).blocks[0]
    torch.testing.assert_close(block(x)[0], x + block.attention(block.norm_1(x))[0], rtol=0, atol=0)


def test_inputs_and_classes_may_differ_in_number() -> None:
    for build, shape in ((CLM, (4, 5, 3)), (BERT, (4, 5, 3)), (MLM, (4, 3))):
        model = small(build, num_outputs=3)
        assert model(tokens(V, 4, 5)).shape == shape
        assert model.tokens.weight.shape == (V, 8) and model.head.weight.shape == (3, 8)


# ---------------------------------------------------------------------- initialisation


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


def test_one_hot_rows_are_embedded_in_the_precision_of_the_weights() -> None:
    """Also where products are in bfloat16, as indices are: the residual stream adds up many small parts."""
    model = small(positions='rope')
    x = tokens(7, 4, 5)
    with torch.autocast('cpu', torch.bfloat16):
        rows = model.embed(torch.nn.functional.one_hot(x, 7).float())
        assert rows.dtype == model.embed(x).dtype == torch.float32
    torch.testing.assert_close(rows, model.embed(x), rtol=1e-2, atol=1e-3)


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


def test_parameters_are_counted_and_a_tied_head_only_once() -> None:
    free, tied = small(), small(tie_weights=True)
    d, v, T = 8, 7, 5
    block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    assert num_parameters(free) == 2 * v * d + T * d + 2 * block + 2 * d
    assert num_parameters(tied) == num_parameters(free) - v * d
    assert tied.head.weight is tied.tokens.weight


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('temperature', [0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize('T', [1, 3, 6])
def test_generation_with_cached_keys_equals_recomputing_the_growing_prefix(
    T: int, temperature: float, positions: str
) -> None:
    model = grown(small(block_size=10, depth=3, positions=positions))
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


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_heads': 3}, 'num_heads=3 does not divide embedding_dim=8: make one a multiple'),
        (
            {'num_heads': 8, 'positions': 'rope'},
            "positions='rope' turns pairs .*: make embedding_dim.*=8/8 even",
        ),
        ({'positions': 'sines'}, "positions='sines' is unknown: use learned, rope or none"),
        ({'tie_weights': True, 'num_outputs': 3}, 'tie_weights=True needs .* num_outputs=3 and vocab_size=7: leave it'),
    ],
)
@pytest.mark.parametrize('build', [CLM, MLM, BERT])
def test_options_that_do_not_fit_together_are_an_error_in_one_line(
    build: type[nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        small(build, **options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('build', [CLM, MLM])
def test_a_sequence_longer_than_the_block_is_an_error(build: type[nn.Module], positions: str) -> None:
    model = small(build, positions=positions)
    model(tokens(V, 2, 5))
    with pytest.raises(ValueError, match='a sequence of 6 tokens is longer than block_size=5: shorten it'):
        model(tokens(V, 2, 6))
