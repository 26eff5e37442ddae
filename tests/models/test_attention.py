"""Attention against its formula, and rotary positions."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from small_models import grown

from RLM_clean.models import attention as attention_module
from RLM_clean.models.attention import MOST_IN_PARTS, Attention, rotate

D, HEADS, T = 8, 2, 5


def attention(**options: Any) -> Any:
    """A layer with random weights in double precision."""
    layer = Attention(D, HEADS, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    return grown(layer)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('scale', [None, 0.7])
@pytest.mark.parametrize('causal', [True, False])
def test_attention_is_the_softmax_of_scaled_products_of_each_head(causal: bool, scale: float | None) -> None:
    layer, x = attention(causal=causal, scale=scale), 3 * normal(3, T, D)
    q, k, v = layer.qkv(x).split(D, dim=-1)
    outputs, weights = [], []
    for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * (1 / math.sqrt(D / HEADS) if scale is None else scale)
        if causal:
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
        weights.append(scores.softmax(-1))
        outputs.append(weights[-1] @ v[..., part])
    expected = torch.cat(outputs, -1) @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.last(x), expected[:, -1:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weights(x), torch.stack(weights, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ('tokens', 'dtype', 'in_parts'),
    [
        (MOST_IN_PARTS, torch.bfloat16, True),
        (MOST_IN_PARTS + 1, torch.bfloat16, False),
        (MOST_IN_PARTS, torch.float32, False),
    ],
)
def test_in_bfloat16_short_sequences_are_attended_to_in_parts(
    tokens: int, dtype: torch.dtype, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = Mock(wraps=torch.nn.functional.scaled_dot_product_attention)
    monkeypatch.setattr(attention_module.F, 'scaled_dot_product_attention', fused)
    with torch.autocast('cpu', torch.bfloat16, dtype == torch.bfloat16):
        assert attention().float()(normal(1, tokens, D).float())[0].dtype == dtype
    assert fused.call_count == (0 if in_parts else 1)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('scale', [None, 0.7])
@pytest.mark.parametrize('in_parts', [True, False])
def test_in_bfloat16_attention_is_that_of_float64_up_to_rounding(
    causal: bool, scale: float | None, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, 'MOST_IN_PARTS', MOST_IN_PARTS if in_parts else 0)
    layer, x = attention(causal=causal, scale=scale), normal(3, T, D)
    expected = layer(x)[0], layer.last(x)
    with torch.autocast('cpu', torch.bfloat16):
        found = layer.float()(x.float())[0], layer.last(x.float())
    for rounded, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(rounded.double(), exact, rtol=0.03, atol=0.03)


def test_the_output_is_the_average_of_values_by_the_weights_with_rope_too() -> None:
    layer, x = attention(rope=True), normal(3, T, D)
    v = layer.qkv(x)[..., 2 * D :].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    expected = layer.proj((layer.weights(x) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.last(x), expected[:, -1:], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- rotary positions


def test_rope_multiplies_pairs_as_complex_numbers_by_phases_linear_in_the_position() -> None:
    x, d = normal(2, 3, T, D), D
    theta = torch.tensor([10000.0 ** (-2 * i / d) for i in range(d // 2)], dtype=torch.float64)
    t = torch.arange(4, 4 + T, dtype=torch.float64)
    turned = torch.complex(x[..., : d // 2], x[..., d // 2 :]) * torch.polar(
        torch.ones(T, 4).double(), t[:, None] * theta
    )
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(rotate(x, start=4), expected, rtol=1e-12, atol=1e-12)


def test_products_of_rotated_queries_and_keys_depend_on_the_distance_alone() -> None:
    q, k = normal(1, 1, 1, D), normal(1, 1, 1, D, seed=1)

    def product(i: int, j: int) -> float:
        return (rotate(q, i) * rotate(k, j)).sum().item()

    for distance in range(-6, 7):
        expected = product(10 + distance, 10)
        for j in (7, 20, 1000):
            assert abs(product(j + distance, j) - expected) < 1e-12
    products = [product(10 + distance, 10) for distance in range(-6, 7)]
    assert len({round(x, 6) for x in products}) == 13  # each distance has its own


def test_rope_keeps_lengths_and_leaves_position_zero_as_it_is() -> None:
    x = normal(2, 3, T, D)
    torch.testing.assert_close(rotate(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.equal(rotate(x)[:, :, 0], x[:, :, 0])
    assert rotate(x.to(torch.bfloat16)).dtype == torch.bfloat16
