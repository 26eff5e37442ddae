"""Exported models: other programs compute the same logits; what cannot be exported is refused in one line.

tests/models/test_gpt2.py compares the weights with a GPT-2 written down there; here the real packages read the files.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import ROOT, environment
from interrupted_runs import train_until
from small_runs import tiny, train
from test_init import own_registry
from torch import Tensor

from RLM_clean import export, init
from RLM_clean.runs import load_run

# A few steps at a high rate: logits of order one, biases and gains far from their start.
TRAINED: dict[str, Any] = {'optim': 'adam', 'lr': 0.05, 'num_heads': 2, 'embedding_dim': 16}
CLM: dict[str, Any] = {'model': 'transformer_clm', 'depth': 2}
# Everything that GPT-2 can be.
KINDS: dict[str, dict[str, Any]] = {
    'all tokens': {**CLM, 'objective': 'all'},
    'all tokens, tied': {**CLM, 'objective': 'all', 'tie_weights': True},
    'last token': {'num_heads': 4},
    'last token, tied, no positions': {'tie_weights': True, 'positions': 'none'},
    'clm, last token, no positions': {**CLM, 'positions': 'none', 'num_layers': 3, 'num_tokens': 5},
    'mup, tied, attention only': {'parametrisation': 'mup', 'tie_weights': True, 'ffwd_size': 0, 'depth': 2},
    'whitened, tied': {'input_format': 'onehot', 'whitening': 1, 'tie_weights': True},
    'root': {'objective': 'root', 'dropout': 0.1},
}


def words(run: Path, folder: Path, *more: str, to: str = 'huggingface') -> list[str]:
    return [str(run), '--to', to, str(folder), *more]


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The name of a finished run."""
    outname = tmp_path_factory.mktemp('trained') / 'run'
    train(tiny(outname, **TRAINED, tie_weights=True))
    return outname


# ---------------------------------------------------------------------- the files


@pytest.mark.parametrize('step', [None, 2, 'best'])
@pytest.mark.parametrize('kind', [{}, {'model': 'gru'}, {'tie_weights': True, 'positions': 'rope'}, {'model': 'fcn'}])
def test_the_weights_of_any_model_are_in_safetensors(
    kind: dict[str, Any], step: int | str | None, tmp_path: Path
) -> None:
    """By the names that they have here: they fit the model again. run.json says what they are of."""
    outname, folder = tmp_path / 'run', tmp_path / 'out'
    train(tiny(outname, max_iters=6, **kind))
    more = [] if step is None else ['--step', str(step)]
    assert export.main(words(outname, folder, *more, to='safetensors')) == 0
    assert {path.name for path in folder.iterdir()} == {'model.safetensors', 'run.json'}
    run = load_run(outname)
    model = init.init_model(run.config)
    model.load_state_dict(safetensors.torch.load_file(folder / 'model.safetensors'))
    inputs, _ = run.test_batch(0)
    assert torch.equal(run.logits(model.eval(), inputs), run.logits(run.model(step), inputs))
    about = json.loads((folder / 'run.json').read_text())
    assert about['step'] == {None: 6, 2: 2, 'best': run.best_step}[step]
    assert about['record'] == next(record for record in run.dynamics if record['t'] == about['step'])
    assert {**run.config.to_dict(), **about['config']} == run.config.to_dict() and about['run'] == 'run'
    assert {int(k): tuple(floor) for k, floor in about['floors'].items()} == run.floors
    assert str(tmp_path) not in (folder / 'run.json').read_text()


def test_a_run_that_is_not_finished_gives_its_last_checkpoint(tmp_path: Path) -> None:
    train_until(tiny(tmp_path / 'run'), 12)
    assert export.main(words(tmp_path / 'run', tmp_path / 'out')) == 0
    step = json.loads((tmp_path / 'out/run.json').read_text())['step']
    weights = safetensors.torch.load_file(tmp_path / 'out/model.safetensors')
    run = load_run(tmp_path / 'run')
    assert step == run.steps[-1]
    assert torch.equal(weights['lm_head.weight'], run.model(step).state_dict()['head.weight'])


@pytest.mark.parametrize('step', [2, 24])
def test_the_step_may_be_a_number_of_numpy(trained: Path, tmp_path: Path, step: int) -> None:
    export.export(load_run(trained), tmp_path / 'out', 'safetensors', np.int64(step))
    assert json.loads((tmp_path / 'out/run.json').read_text())['step'] == step


def test_a_tied_head_is_written_once_for_gpt2(trained: Path, tmp_path: Path) -> None:
    export.export(load_run(trained), tmp_path / 'out', 'huggingface')
    assert 'lm_head.weight' not in safetensors.torch.load_file(tmp_path / 'out/model.safetensors')
    assert json.loads((tmp_path / 'out/config.json').read_text())['tie_word_embeddings'] is True


# ---------------------------------------------------------------------- the folder


def test_an_empty_folder_is_filled_and_any_other_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, full, file = tmp_path / 'empty', tmp_path / 'full', tmp_path / 'file'
    for folder in (empty, full):
        folder.mkdir()
    for path in (file, full / 'mine'):
        path.touch()
    assert export.main(words(trained, empty)) == 0 and (empty / 'config.json').exists()
    assert capsys.readouterr().out == f'the model is in {empty}\n'
    for folder, why in ((full, 'is not empty'), (empty, 'is not empty'), (file, 'is not a folder')):
        before = sorted(tmp_path.rglob('*'))
        assert export.main(words(trained, folder)) == 2
        message = f"RLM_clean.export: error: FOLDER='{folder}' {why}: give the name of a new one\n"
        assert capsys.readouterr().err == message
        assert sorted(tmp_path.rglob('*')) == before


def test_folders_above_are_made(trained: Path, tmp_path: Path) -> None:
    assert export.main(words(trained, tmp_path / 'a/b/out')) == 0
    assert (tmp_path / 'a/b/out/config.json').exists()


def test_an_export_that_fails_leaves_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as on a full disk, or when another process was faster."""

    def full(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        assert export.main(words(trained, tmp_path / 'out')) == 2
    assert 'cannot be written (No space left on device): give another' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

    def faster(descriptor: int) -> None:
        (tmp_path / 'out').mkdir(exist_ok=True)
        (tmp_path / 'out/theirs').touch()

    monkeypatch.setattr(os, 'fsync', faster)
    assert export.main(words(trained, tmp_path / 'out')) == 2
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'theirs']


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_and_the_next_one_works(trained: Path, tmp_path: Path) -> None:
    """Killed when everything is written but the name."""
    program = 'import os, signal, sys\nfrom RLM_clean import export\n'
    program += 'os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\nexport.main(sys.argv[1:])'
    command = [sys.executable, '-c', program, *words(trained, tmp_path / 'out')]
    killed = subprocess.run(command, cwd=ROOT, env=environment(), timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith('.out.tmp-') and len(list(hidden.iterdir())) == 5
    assert export.main(words(trained, tmp_path / 'out')) == 0 and (tmp_path / 'out/config.json').exists()


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'positions': 'rope'},
            "positions='rope' does not exist in GPT-2, which has learned positions: use safetensors",
        ),
        ({'model': 'transformer_bert'}, "model='transformer_bert' is not a causal transformer, as GPT-2 is: use safet"),
        ({'model': 'fcn'}, "model='fcn' is not a causal transformer, as GPT-2 is: use safetensors"),
        ({'objective': 'root', 'num_classes': 3}, '3 classes do not fit GPT-2, which predicts one of its 8 input sym'),
    ],
    ids=['rope', 'bert', 'fcn', 'classes'],
)
def test_a_model_that_gpt2_cannot_be_is_refused_in_a_line(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outname = tmp_path / 'run'
    train(tiny(outname, max_iters=1, **options))
    assert export.main(words(outname, tmp_path / 'above/out')) == 2
    line = capsys.readouterr().err
    assert line.startswith(f'RLM_clean.export: error: {message}') and line.count('\n') == 1
    assert not (tmp_path / 'above').exists()
    with pytest.raises(ValueError, match='GPT-2'):
        load_run(outname).hooked()


def test_a_registered_model_is_refused_for_gpt2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Mean(torch.nn.Embedding):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs).mean(1)

    with own_registry():
        init.register_model('mean', lambda config: Mean(config.num_features, config.num_features))
        train(tiny(tmp_path / 'run', model='mean', max_iters=1))
        assert export.main(words(tmp_path / 'run', tmp_path / 'out')) == 2
        assert "model='mean' is not a causal transformer" in capsys.readouterr().err
        assert export.main(words(tmp_path / 'run', tmp_path / 'out', to='safetensors')) == 0


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('RUN out --to huggingface --step 5', r'step=5 has no checkpoint: use one of \[0, 1, 2, '),
        ('RUN out --to huggingface --step last', "argument --step: 'last' is not a step, give a whole number or best"),
        ('RUN out', 'the following arguments are required: --to: see --help'),
        ('RUN --to huggingface', 'the following arguments are required: FOLDER: see --help'),
        ('RUN out --to onnx', "argument --to: invalid choice: 'onnx'"),
        ('RUN out --to huggingface --steps 5', "'--steps' is not an option: did you mean --step"),
        ('nothing out --to huggingface', "outname='nothing' has no file nothing_config.pt: give the path of a run"),
    ],
)
def test_a_wrong_command_is_refused_in_a_line(
    command: str,
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained) if word == 'RUN' else word for word in command.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('RLM_clean.export: error: ') and re.search(message, line)
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to='onnx' is unknown: use safetensors or huggingface"):
        export.export(load_run(trained), tmp_path / 'out', 'onnx')


def test_a_missing_package_is_named_with_its_extra(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'transformer_lens', None)
    assert export.main(words(trained, tmp_path / 'out')) == 2
    assert 'export needs safetensors, which is not installed: pip install -e ".[export]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModuleNotFoundError, match=r'hooked needs transformer_lens, .*"\.\[transformer-lens\]"'):
        load_run(trained).hooked()


# ---------------------------------------------------------------------- what others read, with the real packages


@pytest.fixture(scope='module')
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all kinds, exported and read in another process: logits.pt in the folder of each."""
    root = tmp_path_factory.mktemp('read')
    for kind, options in KINDS.items():
        folder = root / kind
        folder.mkdir()
        config = tiny(folder / 'run', **{**TRAINED, **options})
        train(config)
        assert export.main(words(folder / 'run', folder / 'exported')) == 0
        generator = torch.Generator().manual_seed(0)
        torch.save(torch.randint(8, (50, config.context_size), generator=generator), folder / 'inputs.pt')
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/read_exports.py'), str(root)],
        cwd=root,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


# One process reads all of them: the imports are what takes time.
@pytest.mark.slow
@pytest.mark.xdist_group('export')
@pytest.mark.parametrize('kind', KINDS)
def test_transformers_and_transformer_lens_compute_the_same_logits(kind: str, read: Path) -> None:
    """In a process that does not have this library; to 1e-5, on random contexts."""
    run, found = load_run(read / kind / 'run'), torch.load(read / kind / 'logits.pt')
    inputs = torch.load(read / kind / 'inputs.pt')
    with torch.no_grad():
        expected, start = (run.logits(run.model(step), inputs) for step in (None, 0))
    assert expected.std() > 0.2
    for name in ('transformers', 'TransformerLens', 'hooked'):
        logits = found[name] if run.config.objective == 'all' else found[name][:, -1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    at_start = found['at the start'] if run.config.objective == 'all' else found['at the start'][:, -1]
    torch.testing.assert_close(at_start, start, rtol=0, atol=1e-5)
    # Nothing was missing, nothing was left over, and a tied head is tied there too.
    assert not any(found['report'].values()) and found['dtype'] == 'torch.float32'
    assert found['same matrix'] == (run.config.tie_weights and not run.config.whitening)


@pytest.mark.slow
@pytest.mark.xdist_group('export')
@pytest.mark.parametrize('kind', KINDS)
def test_activations_can_be_read_and_changed_there(kind: str, read: Path) -> None:
    run, found = load_run(read / kind / 'run'), torch.load(read / kind / 'logits.pt')
    inputs = torch.load(read / kind / 'inputs.pt')
    model: Any = run.model()
    with torch.no_grad():
        block = model.blocks[0]
        x = model.embed(init.transform_inputs(inputs, 8, run.config.input_format, run.config.whitening))
        torch.testing.assert_close(found['patterns'], block.attention.weights(block.norm_1(x)), rtol=0, atol=1e-5)
        x = block._feed_forward(x)
        for block in model.blocks[1:]:
            x, _ = block(x)
        torch.testing.assert_close(found['without a block'], model.read(x), rtol=0, atol=1e-5)
    assert (found['without a block'] - found['hooked']).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.xdist_group('export')
def test_texts_are_symbols_between_blanks(read: Path) -> None:
    found = torch.load(read / 'all tokens' / 'logits.pt')
    assert found['tokens'] == [2, 0, 7] and found['text'] == '2 0 7'
    assert found['hooked tokens'] == [[2, 0, 7]] and found['hooked text'] == ['2', '0', '7']
