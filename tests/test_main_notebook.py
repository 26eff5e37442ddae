"""main_test.ipynb opens any run if one variable is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT
from small_runs import tiny, train
from test_init import Unigram, own_registry

from RLM_clean import init

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


# Probes and samples are smaller than in the notebook.
SMALLER = {'num_train=4096, num_test=2048': 'num_train=200, num_test=100', 'number=1024': 'number=100'}
CELLS = [
    '\n'.join(line for line in cell.source.splitlines() if not line.startswith('%'))
    for cell in nbformat.read(ROOT / 'main_test.ipynb', as_version=4).cells
    if cell.cell_type == 'code'
]
# The cells from this one on are about a sweep.
OF_THE_RUN = next(i for i, cell in enumerate(CELLS) if 'train_sweep(' in cell)


def execute(cells: list[str], names: dict[str, Any]) -> None:
    for cell in cells:
        for large, small in SMALLER.items():
            cell = cell.replace(large, small)
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
    assert said.count('is not a transformer, so there is no attention to show') == (2 if no_attention else 0)
    assert said.count('use probes.fit_probe on its activations') == (kind == 'registered')
    assert len(shown) == 2 * (not no_attention) + (kind != 'registered')


def test_a_misspelt_run_is_an_error_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="outname='results/typo' has no file"):
        execute(["outname = 'results/typo'", CELLS[1]], {})
    assert not list(tmp_path.iterdir())


def test_what_is_made_smaller_is_in_the_notebook() -> None:
    assert all(any(large in cell for cell in CELLS) for large in SMALLER)


def test_no_cell_hides_its_errors() -> None:
    """%%capture would hide the traceback of a cell that fails."""
    assert '%%capture' not in (ROOT / 'main_test.ipynb').read_text()


def test_a_sweep_that_fails_stops_the_notebook() -> None:
    names = {'train_sweep': lambda words: 1}
    with pytest.raises(RuntimeError, match='the sweep ended with status 1'):
        execute([CELLS[OF_THE_RUN]], names)
