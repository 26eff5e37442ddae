"""Packages that are missing: the error names what needs them, and the command that installs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import ROOT

from RLM_clean.extras import needed


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'xarray', None)
    with pytest.raises(ModuleNotFoundError) as caught:
        needed('xarray', by='to_xarray')
    assert str(caught.value) == 'to_xarray needs xarray, which is not installed: pip install -e ".[xarray]"'
    text = (ROOT / 'pyproject.toml').read_text()
    assert all(f'\n{extra} = [' in text for extra in ('pandas', 'xarray', 'wandb', 'trackio', 'tensorboard'))


def test_a_package_that_lacks_another_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'halfway.py').write_text('import numpi')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='numpi'):
        needed('halfway', by='to_pandas')
