"""The example that predicts an exponent from the language: its numbers on made-up laws, and its quick form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
    x = 2.0 ** np.arange(1, 7)
    each, own = np.array([[1.95], [2.0], [2.05]]), np.array([[0.1], [0.2], [0.4]])
    found = exponent.Statistics(x, own + 3 * x**-1.5, 0.3 * x**-each)
    np.testing.assert_allclose(exponent.limits(found), own[:, 0], rtol=1e-10)
    language = exponent.predict(found, 16)
    assert language.entropy.range == language.covariance.range == (2, 16)
    assert language.entropy.exponent == pytest.approx(1.5, abs=1e-4)
    assert language.left == pytest.approx(3 * 16**-1.5, rel=1e-10)
    assert language.covariance.exponent == pytest.approx(2.0, abs=0.02)
    assert language.alpha == pytest.approx(0.75 / language.covariance.exponent, rel=1e-4)
    low, high = language.interval
    relative = np.ptp(language.covariance.interval) / 2 / language.covariance.exponent
    assert (high - low) / 2 == pytest.approx(language.alpha * relative, rel=1e-3)


@pytest.mark.slow
def test_the_limit_does_not_depend_on_the_levels_above() -> None:
    """H_15 is as far above H_inf in trees of 5, 6 and 7 levels, within 3 errors (false alarms: 0.5%, fixed seeds)."""
    left = []
    for levels in (5, 6, 7):
        found = exponent.statistics(16, 4, levels, 16)
        above = found.floors[:, 3] - exponent.limits(found)
        left.append((above.mean(), above.std(ddof=1) / 4))
    assert all(0.015 < value < 0.035 for value, _ in left)
    assert all(abs(value - left[1][0]) < 3 * math.hypot(error, left[1][1]) for value, error in left)


def test_losses_of_the_theory_have_its_exponent_and_collapse() -> None:
    """L_n - H_inf = n^-gamma f(P / n^(2 beta_c)) with f(x) = 1 + x^-(gamma / 2 beta_c), for grammars of three H_inf."""
    windows, sizes, gamma, beta = [1, 3, 7], 2.0 ** np.arange(6, 20), 1.5, 2.0
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((3, len(sizes), 3)))
    x = np.array([t + 1.0 for t in windows])[:, None]
    scaled = 1 + (sizes / (100 * x ** (2 * beta))) ** -(gamma / (2 * beta))
    above, own, left = (x**-gamma * scaled)[..., None] * noise, np.array([0.1, 0.2, 0.4]), 8**-gamma
    results: Any = {'best_loss': own + above, 'floor_7': np.tile(own + left, (3, len(sizes), 1))}
    losses = exponent.losses_above(results, windows, left)
    np.testing.assert_allclose(losses, above, rtol=1e-10)
    drawn = exponent.curves(windows, sizes, losses)
    assert list(drawn) == [2, 4, 8]
    best = exponent.collapse(drawn, x=None, y=None)
    assert best.x == pytest.approx(2 * beta, abs=0.2) and best.y == pytest.approx(gamma, abs=0.1)
    assert exponent.collapse(drawn, x=2 * beta, y=gamma).S < 3
    assert exponent.measured(sizes[:6], losses[:, :6]).exponent == pytest.approx(gamma / (2 * beta), abs=0.1)


def test_the_ends_of_the_runs_have_both_losses_above_the_floors() -> None:
    """Two windows, one size, two seeds: the training loss above the floor is that at the end of each run."""
    results: Any = {
        'floor_1': np.array([[[1.0, 1.2]], [[1.0, 1.2]]]), 'floor_3': np.array([[[np.nan] * 2], [[0.5, 0.7]]]),
        'testloss': np.array([[[1.1, 1.3]], [[0.9, 1.1]]]), 'trainloss': np.array([[[0.8, 1.0]], [[0.9, 1.2]]]),
    }  # fmt: skip
    assert exponent.ends(results, [1, 3], np.array([64.0])) == [
        'window of 1 at the end of P = 64: test loss H_1 +0.1000, training loss H_1 -0.2000',
        'window of 3 at the end of P = 64: test loss H_3 +0.4000, training loss H_3 +0.4500',
    ]


@pytest.mark.slow
def test_the_quick_form_prints_the_losses_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exponent.main(['--quick'])
    printed = capsys.readouterr().out
    results = sweep.load('results/exponent_quick')
    assert results['best_loss'].shape == (4, 4, 2)
    language = exponent.predict(exponent.statistics(4, 2, 6, exponent.GRAMMARS), 16)
    losses = exponent.losses_above(results, [1, 3, 7, 15], language.left)
    law = exponent.measured(np.array(exponent.QUICK_SIZES, float), losses)
    assert f'alpha of the best window: {law}' in printed
    assert f'x = 2 to 16: gamma = {language.entropy.exponent:.3f}' in printed
    assert matplotlib.image.imread('results/exponent_quick/exponent.png').shape[1] > 1000
