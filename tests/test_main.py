"""The command line of a run: it tells the same story as training from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import arguments
from small_runs import TINY, assert_same_run, tiny

from RLM_clean import training
from RLM_clean.main import main


@pytest.mark.parametrize('options', [{}, {'optim': 'adam', 'dropout': 0.1, 'regime': 'offline', 'train_size': 40}])
def test_the_command_line_and_python_train_the_same_run(tmp_path: Path, options: dict[str, object]) -> None:
    assert main(arguments(**TINY, **options, outname=tmp_path / 'command' / 'run')) == 0
    assert training.train(tiny(tmp_path / 'python' / 'run', **options)).status == 'done'
    assert_same_run(tmp_path / 'command' / 'run', tmp_path / 'python' / 'run')
    names = [{path.name for path in (tmp_path / who).iterdir()} for who in ('command', 'python')]
    assert names[0] == names[1]


def test_the_first_line_of_a_run_names_the_options_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(**TINY, beta=1.5, outname=tmp_path / 'run')) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith('options: num_features=8 num_layers=2 beta=1.5 ')


def test_the_page_that_tells_the_story_stays_a_page() -> None:
    import RLM_clean.main

    assert len(Path(RLM_clean.main.__file__).read_text().splitlines()) <= 110
