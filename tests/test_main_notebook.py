"""main_test.ipynb opens any run by changing one variable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT
from small_runs import tiny, train

RUNS: dict[str, dict[str, Any]] = {
    'deeper': {'num_features': 24, 'depth': 2, 'num_heads': 4},
    'one level': {'num_layers': 1},
    'fully connected, without checkpoints': {'model': 'fcn', 'checkpoints': False},
    'rhm, all tokens': {
        'dataset': 'rhm', 'num_synonyms': 2, 'num_layers': 3, 'model': 'transformer_clm', 'objective': 'all',
    },
    'offline, a window, whitened': {
        'regime': 'offline', 'train_size': 64, 'num_tokens': 3, 'input_format': 'onehot', 'whitening': 1,
    },
}  # fmt: skip


@pytest.mark.parametrize('kind', RUNS)
def test_every_section_works_or_says_why_it_does_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny('results/run', **RUNS[kind]))
    shown: list[Any] = []
    names: dict[str, Any] = {'display': shown.append}
    notebook = nbformat.read(ROOT / 'main_test.ipynb', as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
    assert cells[0].startswith('outname = ')
    cells[0] = "outname = 'results/run'"
    # What follows is about sweeps and runs of its own.
    of_the_run = cells[: next(i for i, cell in enumerate(cells) if 'sweep.main' in cell)]
    assert len(of_the_run) >= 10
    for cell in of_the_run:
        lines = [line for line in cell.splitlines() if not line.startswith('%')]
        exec(compile('\n'.join(lines), 'main_test.ipynb', 'exec'), names)
    assert names['run'].files.outname == Path('results/run')
    assert not list(Path('results').glob('notebook*'))
    has_none = 'This model is fully connected: it has no attention.' in capsys.readouterr().out
    assert has_none == kind.startswith('fully') and len(shown) == (0 if has_none else 2)
