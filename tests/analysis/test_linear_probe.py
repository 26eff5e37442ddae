"""A linear probe finds laws that are planted, and the minimum that other methods find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from RLM_clean.analysis.linear_probe import fit_probe
from RLM_clean.streams import seeded_generator


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed), dtype=torch.float64)


def test_a_probe_recovers_a_planted_linear_law() -> None:
    x, weight, bias = normal(3000, 6), normal(6, 5, seed=1), normal(5, seed=2)
    law = torch.softmax(x @ weight + bias, -1)
    new = normal(1000, 6, seed=3)
    expected = torch.log_softmax(new @ weight + bias, -1)
    torch.testing.assert_close(fit_probe(x, law, 5, l2=1e-9).log_probs(new), expected, rtol=0, atol=1e-2)


def test_a_probe_of_sampled_labels_comes_close_to_their_law() -> None:
    """E KL of a fit of 24 free numbers to N = 20000 labels is about 24 / (2 N) nats; three times that is allowed."""
    x, weight = normal(20_000, 6), normal(6, 5, seed=1)
    law = torch.softmax(x @ weight, -1)
    labels = torch.multinomial(law, 1, generator=seeded_generator(4))[:, 0]
    log_q = fit_probe(x, labels, 5, l2=1e-6).log_probs(x)
    assert 0 < (law * (law.log() - log_q)).sum(1).mean() < 3 * 24 / 40_000


def test_a_fit_is_the_minimum_that_newtons_method_finds() -> None:
    """Against Newton's method on the function of the docstring, with features that are white already."""
    x, l2 = normal(200, 3), 0.05
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 200)).T
    labels = (x @ normal(3, 4, seed=1)).argmax(1)

    def loss(flat: Tensor) -> Tensor:
        weight = flat[:12].view(3, 4)
        return torch.nn.functional.cross_entropy(x @ weight + flat[12:], labels) + l2 / 2 * weight.square().sum()

    flat = torch.zeros(16, dtype=torch.float64)
    for _ in range(30):
        hessian: Any = torch.autograd.functional.hessian(loss, flat)
        gradient: Any = torch.autograd.functional.jacobian(loss, flat)
        flat = flat - torch.linalg.lstsq(hessian, gradient[:, None], driver='gelsd').solution[:, 0]
    expected = torch.log_softmax(x @ flat[:12].view(3, 4) + flat[12:], -1)
    torch.testing.assert_close(fit_probe(x, labels, 4, l2).log_probs(x), expected, rtol=0, atol=2e-3)


def test_a_probe_does_not_depend_on_the_basis_of_its_features() -> None:
    x = normal(500, 4)
    labels = (x @ normal(4, 3, seed=1) + normal(500, 3, seed=5)).argmax(1)
    mapped = x @ (normal(4, 4, seed=2) * torch.tensor([1e-2, 1, 10, 1e2])) + 7
    repeated = torch.cat((x, x[:, :2] - x[:, 2:], torch.ones(500, 1)), 1)  # directions that add nothing
    expected = fit_probe(x, labels, 3).log_probs(x)
    for features in (mapped, repeated):
        found = fit_probe(features, labels, 3).log_probs(features)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_a_probe_of_features_that_never_vary_is_the_marginal() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    found = fit_probe(torch.ones(4, 3), labels, 2).log_probs(torch.ones(1, 3)).exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_sizes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match='3 features do not fit 2 targets'):
        fit_probe(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match='targets over 3 classes do not fit num_classes=2'):
        fit_probe(torch.zeros(3, 2), torch.ones(3, 3), 2)
