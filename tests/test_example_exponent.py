"""The example that predicts an exponent from the language: its numbers on made-up laws, and its quick form."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from examples import exponent
from RLM_clean import sweep
from RLM_clean.datasets import RHM
from RLM_clean.exact import correlations, entropies


def test_the_properties_of_a_language_are_its_exact_floors_and_covariances() -> None:
    found = exponent.statistics(v=4, m=2, L=2, grammars=2)
    assert found.x.tolist() == [2, 4]
    language = RHM(v=4, m=2, L=2, seed_rules=2)
    assert found.floors[1].tolist() == [H for H, _ in entropies.window_entropies(language, [1, 3]).values()]
    norms = [torch.linalg.svdvals(correlations.covariance(language, i, 3))[0].item() for i in range(3)]
    np.testing.assert_allclose(found.covariances[1], [norms[2], math.sqrt(norms[0] * norms[1])], rtol=1e-10)


def test_power_laws_of_a_language_give_the_exponent_of_the_theory() -> None:
    """gamma = 1.5 and beta_c = 2: alpha = 0.375, with an interval from the spread of beta_c over grammars."""
    x = 2.0 ** np.arange(1, 5)
    each = np.array([[1.95], [2.0], [2.05]])
    found = exponent.Statistics(x, 0.2 + 3 * x**-1.5 * np.ones((3, 1)), 0.3 * x**-each)
    language = exponent.predict(found)
    assert language.entropy.exponent == pytest.approx(1.5, abs=1e-4)
    assert language.entropy.floor == pytest.approx(0.2, abs=1e-4)
    assert language.covariance.exponent == pytest.approx(2.0, abs=0.02)
    assert language.alpha == pytest.approx(0.75 / language.covariance.exponent, rel=1e-4)
    low, high = language.interval
    relative = np.ptp(language.covariance.interval) / 2 / language.covariance.exponent
    assert (high - low) / 2 == pytest.approx(language.alpha * relative, rel=1e-3)


def test_losses_of_the_theory_have_its_exponent_and_collapse() -> None:
    """L_n - H_inf = n^-gamma f(P / n^(2 beta_c)) with f(x) = 1 + x^-(gamma / 2 beta_c)."""
    windows, sizes, gamma, beta = [1, 3, 7], 2.0 ** np.arange(6, 20), 1.5, 2.0
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((3, len(sizes), 3)))
    x = np.array([t + 1.0 for t in windows])[:, None]
    scaled = 1 + (sizes / (100 * x ** (2 * beta))) ** -(gamma / (2 * beta))
    losses = 0.2 + (x**-gamma * scaled)[..., None] * noise
    drawn = exponent.curves(windows, sizes, losses, floor=0.2)
    assert list(drawn) == [2, 4, 8]
    best = exponent.collapse(drawn, x=None, y=None)
    assert best.x == pytest.approx(2 * beta, abs=0.2) and best.y == pytest.approx(gamma, abs=0.1)
    assert exponent.collapse(drawn, x=2 * beta, y=gamma).S < 3
    assert exponent.measured(sizes[:6], losses[:, :6], 0.2).exponent == pytest.approx(gamma / (2 * beta), abs=0.1)


@pytest.mark.slow
def test_the_quick_form_prints_the_losses_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exponent.main(['--quick'])
    printed = capsys.readouterr().out
    losses = sweep.load('results/exponent_quick')['best_loss']
    assert losses.shape == (4, 4, 2)
    language = exponent.predict(exponent.statistics(4, 2, 4, exponent.GRAMMARS))
    law = exponent.measured(np.array(exponent.QUICK_SIZES, float), losses, language.entropy.floor)
    assert f'alpha of the best window: {law}' in printed and f'gamma = {language.entropy.exponent:.3f}' in printed
    assert matplotlib.image.imread('results/exponent_quick/exponent.png').shape[1] > 1000
