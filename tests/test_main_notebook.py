"""main_test.ipynb opens any run by changing one variable."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT
from small_runs import tiny, train
from test_init import Unigram, own_registry

from RLM_clean import init, sweep

RUNS: dict[str, dict[str, Any]] = {
    'deeper': {'num_features': 24, 'depth': 2, 'num_heads': 4},
    'one level': {'num_layers': 1},
    'registered': {'model': 'unigram'},
    'fully connected, without checkpoints': {'model': 'fcn', 'checkpoints': False},
    'rhm, all tokens': {
        'dataset': 'rhm', 'num_synonyms': 2, 'num_layers': 3, 'model': 'transformer_clm', 'objective': 'all',
    },
    'offline, a window, whitened': {
        'regime': 'offline', 'train_size': 64, 'num_tokens': 3, 'input_format': 'onehot', 'whitening': 1,
    },
}  # fmt: skip


CELLS = [
    '\n'.join(line for line in cell.source.splitlines() if not line.startswith('%'))
    for cell in nbformat.read(ROOT / 'main_test.ipynb', as_version=4).cells
    if cell.cell_type == 'code'
]
# What follows is about sweeps and runs of its own.
OF_THE_RUN = next(i for i, cell in enumerate(CELLS) if 'sweep.main' in cell)


def execute(cells: list[str], names: dict[str, Any]) -> None:
    for cell in cells:
        exec(compile(cell, 'main_test.ipynb', 'exec'), names)


@pytest.mark.parametrize('kind', RUNS)
def test_every_section_works_or_says_why_it_does_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []
    names: dict[str, Any] = {'display': shown.append}
    assert CELLS[0].startswith('outname = ') and OF_THE_RUN >= 10
    with own_registry():
        init.register_model('unigram', lambda c: Unigram(c.num_features))
        train(tiny('results/run', **RUNS[kind]))
        execute(["outname = 'results/run'", *CELLS[1:OF_THE_RUN]], names)
    assert names['run'].files.outname == Path('results/run')
    assert not list(Path('results').glob('notebook*'))
    said = capsys.readouterr().out
    no_attention = kind == 'registered' or kind.startswith('fully')
    assert said.count('has no attention that is known here') == (2 if no_attention else 0)
    assert said.count('has layers of its own') == (kind == 'registered')
    assert len(shown) == 2 * (not no_attention) + (kind != 'registered')


def test_a_name_of_no_run_is_an_error_and_trains_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="outname='results/typo' has no file"):
        execute(["outname = 'results/typo'", CELLS[1]], {})
    assert not list(tmp_path.iterdir())


def test_no_cell_hides_its_errors() -> None:
    """%%capture keeps the traceback of a cell that fails to itself."""
    assert '%%capture' not in (ROOT / 'main_test.ipynb').read_text()


def test_a_sweep_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(words: list[str]) -> int:
        print('v8-b1-1 failed: no space left')
        return 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, 'main', fail)
    with pytest.raises(RuntimeError, match='status 1:\nv8-b1-1 failed: no space left'):
        execute([CELLS[OF_THE_RUN]], {'sweep': sweep, 'contextlib': contextlib, 'io': io})
