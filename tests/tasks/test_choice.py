"""The task of a run, from its options, and by its name."""

from __future__ import annotations

from typing import Any

import pytest

from RLM_clean import measures, tasks
from RLM_clean.config import OBJECTIVES, Config
from RLM_clean.datasets import RLM
from RLM_clean.tasks import All, Denoise, Last, Masked, Root, Task

# The options of a run and its task.
RUNS: list[tuple[dict[str, Any], Task]] = [
    ({}, Last()),
    ({'num_classes': 3}, Last()),
    ({'objective': 'all', 'model': 'gru'}, All()),
    ({'objective': 'root'}, Root()),
    ({'objective': 'root', 'num_classes': 3}, Root(3)),
    ({'objective': 'masked', 'model': 'transformer_bert'}, Masked()),
    ({'objective': 'masked', 'model': 'fcn', 'mask_rate': 0.25}, Masked(0.25)),
    ({'objective': 'denoise', 'model': 'transformer_bert'}, Denoise()),
    ({'objective': 'denoise', 'model': 'fcn', 'noise': 1}, Denoise(1)),
]


@pytest.mark.parametrize(('options', 'task'), RUNS, ids=[str(task) for _, task in RUNS])
def test_a_run_has_the_task_of_its_options(options: dict[str, Any], task: Task) -> None:
    config = Config(outname='run', num_layers=2, num_features=5, **options)
    assert tasks.of(config) == task
    assert task.num_tokens(config.context_size) == config.window == 4
    assert config.num_inputs == 5 + task.mask
    assert config.num_outputs == (3 if task == Root(3) else 5)


def test_every_objective_has_a_task_and_a_name() -> None:
    assert tuple(tasks.TASKS) == tuple(OBJECTIVES)
    for name, kind in tasks.TASKS.items():
        assert kind.name == name and tasks.make(name) == kind()


def test_a_task_is_taken_as_it_is_and_an_unknown_name_refused() -> None:
    task = Masked(0.5)
    assert tasks.make(task) is task
    message = "objective='first' is unknown: use last or all or root or masked or denoise"
    with pytest.raises(ValueError, match=message):
        tasks.make('first')
    with pytest.raises(ValueError, match=message):
        measures.reference(RLM(5, 2), None, 'first')


def test_tasks_are_values() -> None:
    assert Masked(0.5) == Masked(0.5) != Masked() and len({Root(), Root(0), Root(2)}) == 2
