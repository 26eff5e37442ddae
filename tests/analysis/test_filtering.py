"""How far models are from belief propagation that ignores the upper levels: predictors whose divergences are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from analysed import run_of
from small_runs import tiny, train
from torch import Tensor, nn

from RLM_clean import tasks
from RLM_clean.analysis import filtering
from RLM_clean.datasets import RHM, RLM, TreeGrammar
from RLM_clean.exact import filtered
from RLM_clean.runs import load_run
from RLM_clean.runs.files import RunFiles


class Filtered(nn.Module):
    """Logits ln BP_k of a task."""

    def __init__(self, grammar: TreeGrammar, task: tasks.Task, k: int) -> None:
        super().__init__()
        self.language, self.task = grammar.filtered(k), task

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.best(self.language, inputs).log()


OBJECTIVES: dict[str, dict[str, Any]] = {
    'last': {},
    'all': {'model': 'transformer_clm'},
    'root': {'model': 'cnn', 'depth': 2},
    'masked': {'model': 'transformer_bert'},
    'denoise': {'model': 'transformer_bert', 'noise': 0.3},
}


@pytest.mark.parametrize('grammar', [RLM(4, 2, beta=3.0), RHM(4, 3, 2)], ids=('rlm', 'rhm'))
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_a_model_that_is_bp_k_has_no_divergence_from_it_and_the_known_ones_from_the_others(
    objective: str, grammar: TreeGrammar, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(grammar, objective=objective, **OBJECTIVES[objective])
    for k in range(3):
        model = Filtered(grammar, run.task, k)
        monkeypatch.setattr(run, 'model', lambda step=None, model=model: model)
        monkeypatch.setattr(run, 'logits', lambda model, inputs: model(inputs))
        found = filtering.filtered_divergences(run, [10], num_samples=256)
        assert found[k][0][0] == pytest.approx(0, abs=1e-12)
        floors = filtering.filtered_floors(run, num_samples=256)
        assert found[2][0] == pytest.approx(floors[k].divergence, rel=1e-9, abs=1e-12)  # that of BP_L is the excess
        assert all(found[j][0][0] > 1e-4 for j in range(3) if j != k)
    assert floors[2].divergence[0] == pytest.approx(0, abs=1e-12)
    losses = [floors[k].cross_entropy[0] for k in range(3)]
    assert losses == sorted(losses, reverse=True)


def test_heights_that_a_language_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match='k=3 is not a height of this language: use 0 to 2'):
        filtering.filtered_divergences(run_of(RLM(4, 2)), ks=[3])


def test_records_hold_the_divergences_from_bp_k_where_a_run_asks_for_them(tmp_path: Path) -> None:
    config = tiny(tmp_path / 'run', bp_records=True, optim='adam', lr=0.01)
    records = train(config).dynamics
    run = load_run(config.outname)
    assert RunFiles(config.outname).read_log() == run.dynamics == records
    assert len(records[0]['bp']) == len(filtered.heights(run.rlm)) == 3
    assert [record['bp'][2] for record in records] == pytest.approx([record['excess'] for record in records])
    found = filtering.filtered_divergences(run, [24], num_samples=4096)
    assert records[-1]['bp'] == pytest.approx([found[k][0][0] for k in range(3)])
    plain = train(tiny(tmp_path / 'plain' / 'run', optim='adam', lr=0.01)).dynamics
    assert 'bp' not in plain[0] and plain[-1]['testloss'] == records[-1]['testloss']
    other = load_run(tmp_path / 'plain' / 'run').model().state_dict()
    assert all(torch.equal(x, other[name]) for name, x in run.model().state_dict().items())
