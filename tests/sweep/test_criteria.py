"""The criteria of thresholds: 1 or 0 for the exact predictors that do or do not know a level, and what has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import TINY, train

from RLM_clean import measures
from RLM_clean.analysis.probes import probe_ancestors
from RLM_clean.config import Config
from RLM_clean.exact import entropies
from RLM_clean.runs.run import Run, load_run
from RLM_clean.sweep.criteria import make_criterion
from RLM_clean.sweep.plan import PlannedRun
from RLM_clean.sweep.results import Result, read_result


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> PlannedRun:
    """A run of a moment on a hierarchy of two levels."""
    name = str(tmp_path_factory.mktemp('criteria') / 'run')
    options = {**TINY, 'dataset': 'rhm', 'num_synonyms': 2, 'optim': 'adam', 'lr': 0.02, 'max_iters': 60}
    config = Config(**{**options, 'outname': name})
    train(config)
    return PlannedRun('run', config, {}, 1)


def with_loss(run: PlannedRun, loss: float) -> Result:
    """The run with another least loss."""
    result = read_result(run, Path(run.config.outname).parent)
    result.end['best'] = {'step': 4, 'loss': loss, 'excess': loss - result.floors['entropy']}
    return result


@pytest.mark.parametrize('level', [1, 2])
def test_the_step_is_1_without_the_level_and_0_with_it(run: PlannedRun, level: int) -> None:
    floors = entropies.window_entropies(load_run(run.config.outname).rlm)
    below, whole = (floors[2**l - 1][0] for l in (level - 1, level))
    criterion = make_criterion(level)
    assert criterion.bound == 0.5
    assert criterion.value(with_loss(run, below)) == pytest.approx(1, abs=1e-9)
    assert criterion.value(with_loss(run, whole)) == pytest.approx(0, abs=1e-9)
    assert criterion.value(with_loss(run, (below + whole) / 2)) == pytest.approx(0.5, abs=1e-9)


def test_what_counts_is_the_best_model(run: PlannedRun) -> None:
    """As it was measured at the end; in files that do not say, the record of the least excess."""
    result = read_result(run, Path(run.config.outname).parent)
    least = min(record['excess'] for record in result.records)
    assert make_criterion(None, excess=0.1).value(result) == result.end['best']['excess'] == least
    result.end['best']['excess'] = 2 * least
    assert make_criterion(None, excess=0.1).value(result) == 2 * least
    del result.end['best']['excess']
    result.records = [{**result.records[0], 'excess': least / 2}, *result.records]
    assert make_criterion(None, excess=0.1).value(result) == least / 2


def test_the_divergence_compares_the_best_model_with_both_predictors(run: PlannedRun) -> None:
    value = make_criterion(2, 'divergence').value(read_result(run, Path(run.config.outname).parent))
    opened: Run = load_run(run.config.outname)
    far, near = (measures.divergence_from_window(opened.model('best'), opened.rlm, k)[0] for k in (1, 3))
    assert value == pytest.approx(near - far) and make_criterion(2, 'divergence').bound == 0


def test_the_probe_reads_the_ancestor_of_its_level(run: PlannedRun) -> None:
    """Of two levels, the parent of x_n (a_1) is level 1, and the root (a_0) level 2."""
    result, opened = read_result(run, Path(run.config.outname).parent), load_run(run.config.outname)
    kept = [record for record in opened.dynamics if record['t'] in opened.steps]
    probes = probe_ancestors(opened, min(kept, key=lambda record: record['excess'])['t'])
    trained, before = (probes.accuracy[name].amax(0) for name in ('trained', 'untrained'))
    gaps = (1 - (trained - before) / (probes.best_accuracy - before)).tolist()
    assert gaps[0] != pytest.approx(gaps[1])
    for level, ancestor in ((1, 1), (2, 0)):
        assert make_criterion(level, 'probe').value(result) == pytest.approx(gaps[ancestor])


def test_the_probe_is_1_for_an_untrained_model(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, result = make_criterion(1, 'probe'), read_result(run, Path(run.config.outname).parent)
    assert criterion.needs_checkpoints and abs(criterion.value(result) - 1) > 0.01
    opened = load_run(run.config.outname)
    opened.dynamics = opened.dynamics[:1]  # step 0 has the least excess
    monkeypatch.setattr('RLM_clean.sweep.criteria.load_run', lambda name: opened)
    assert criterion.value(result) == pytest.approx(1, abs=1e-9)


def test_a_level_that_teaches_nothing_is_refused(run: PlannedRun) -> None:
    result = with_loss(run, 1.0)
    result.floors['floor_3'] = result.floors['floor_1']
    with pytest.raises(ValueError, match='level 2 of run lowers the floor by 0 nats only: use another level'):
        make_criterion(2).value(result)


def test_names_of_criteria_tell_them_apart() -> None:
    made = [
        make_criterion(2), make_criterion(2, fraction=0.1), make_criterion(2, 'divergence'),
        make_criterion(2, 'probe'), make_criterion(None, excess=0.1), make_criterion(1),
    ]  # fmt: skip
    names = [str(criterion) for criterion in made]
    assert names[0] == 'level2' and len(set(names)) == len(names)


def test_a_function_has_neither_a_level_nor_an_excess() -> None:
    assert make_criterion(None, lambda run: 0.1, 0.2).bound == 0.2
    with pytest.raises(ValueError, match='level=2 is not for a criterion that is a function: leave it out'):
        make_criterion(2, lambda run: 0.1)
    with pytest.raises(ValueError, match=r'excess=0\.1 is not for a criterion'):
        make_criterion(None, lambda run: 0.1, excess=0.1)
