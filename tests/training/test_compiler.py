"""Programs: they do what was traced, are shared by what they compute and by nothing else, and need no private torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_runs import make_trainer, tiny
from torch import Tensor, nn

from RLM_clean import config, init
from RLM_clean.training import compiler, machine
from RLM_clean.training.backends import CompiledUpdate
from RLM_clean.training.compiler import CompilationError, compile_graph, trace

needs_compiler = pytest.mark.skipif(not machine.can_compile(torch.device('cpu')), reason='no C++ compiler')


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs of which programs are made, of a process that has made none: a program is the graph itself."""
    graphs: list[Any] = []

    def remember(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compiler, '_programs', {})
    monkeypatch.setattr(compiler, '_compile', remember)
    return graphs


def make_program(options: dict[str, Any]) -> CompiledUpdate:
    """The compiled step of a run."""
    made = tiny(**{'num_layers': 1, **options})
    model = init.init_model(made)
    return CompiledUpdate(model, init.init_optimizer(model, made), made)


@pytest.fixture
def any_model() -> Iterator[Callable[[Callable[..., nn.Module]], None]]:
    """Registers model='mine', as often as it is called; nothing of that stays."""

    def register(build: Callable[..., nn.Module]) -> None:
        init.register_model('mine', build)

    yield register
    init._models.pop('mine', None)
    if 'mine' in config.MODELS:
        config.MODELS.remove('mine')


class Rows(nn.Module):
    """Logits that are rows of a table, times a factor."""

    def __init__(self, v: int, factor: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, v * v).view(v, v))
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * self.table[inputs[:, -1]]


def multiply(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def times(value: float) -> Callable[[Tensor], Tensor]:
    return lambda x: multiply(x, torch.tensor([value, value, value]))


@pytest.mark.parametrize('real', (False, pytest.param(True, marks=[pytest.mark.slow, needs_compiler])))
def test_a_model_registered_again_trains_its_own_forward(
    real: bool, any_model: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """Under the same name, with the same shapes and options; with programs that are graphs, and with compiled ones."""
    if not real:
        request.getfixturevalue('built')
    for factor in (1.0, -2.0):
        any_model(lambda c, factor=factor: Rows(c.num_features, factor))
        eager, compiled = (make_trainer(tiny(model='mine', lr=0.1)) for _ in range(2))
        compiled.take_steps = CompiledUpdate(compiled.model, compiled.optimizer, compiled.config)
        for trainer in (eager, compiled):
            trainer.advance(10)
        assert compiled.since_record == pytest.approx(eager.since_record, rel=1e-5)


def test_runs_that_take_the_same_step_share_a_program(built: list[Any]) -> None:
    """Seeds, rates, lengths and the language are not in the graph, nor is how strong the decay is."""
    same: tuple[dict[str, Any], ...] = (
        {}, {'seed_model': 1}, {'lr': 0.5}, {'max_iters': 99}, {'beta': 0.5}, {'weight_decay': 0.2},
        {'momentum': 0.5}, {'scheduler': 'none'}, {'dataset': 'rhm', 'num_synonyms': 2},
    )  # fmt: skip
    for options in same:
        make_program({'weight_decay': 0.1, **options})
    assert len(built) == 1


def test_runs_that_take_another_step_do_not(built: list[Any]) -> None:
    other: tuple[dict[str, Any], ...] = (
        {}, {'momentum': 0.0}, {'weight_decay': 0.1}, {'grad_clip': 1.0}, {'optim': 'adam'}, {'batch_size': 4},
        {'dropout': 0.1}, {'dropout': 0.2}, {'dtype': 'bfloat16'}, {'accumulation': 2},
        {'tie_weights': True}, {'num_layers': 2}, {'num_layers': 2, 'num_heads': 2}, {'input_format': 'onehot'},
    )  # fmt: skip
    for options in other:
        make_program(options)
    assert len(built) == len(other)


def test_programs_depend_on_the_number_of_threads_and_on_strides(built: list[Any]) -> None:
    x = torch.ones(3, 3)
    compile_graph(multiply, [x, x])
    compile_graph(multiply, [x, x])
    assert len(built) == 1
    compile_graph(multiply, [x, x.new_ones(3, 6)[:, ::2]])
    torch.set_num_threads(2)
    compile_graph(multiply, [x, x])
    assert len(built) == 3


def test_a_graph_that_holds_a_tensor_has_a_program_of_its_own(built: list[Any]) -> None:
    """What it computes cannot be seen from its operations."""
    for value in (2.0, 3.0):
        program = compile_graph(times(value), [torch.ones(3)])
        assert program(torch.ones(3)).item() == 3 * value
    assert len(built) == 2


@needs_compiler
@pytest.mark.parametrize(
    'private', ('works', pytest.param('missing', marks=pytest.mark.slow), pytest.param('fails', marks=pytest.mark.slow))
)
def test_a_program_writes_to_the_tensors_of_each_call(private: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the call into torch that is not public."""
    monkeypatch.setattr(compiler, '_programs', {})
    if private == 'missing':
        monkeypatch.delattr('torch._inductor.compile')
    if private == 'fails':  # as that of torch 2.6 does, which leaves another graph behind

        def fail(graph: Any, *arguments: Any, **options: Any) -> None:
            graph.graph.erase_node(graph.graph.output_node())
            graph.recompile()
            raise RuntimeError('it broke')

        monkeypatch.setattr('torch._inductor.compile', fail)

    example = [torch.zeros(3), torch.ones(3)]
    program = compile_graph(lambda total, x: total.add_(2 * x).sum(), example)
    assert example[0].tolist() == [0.0] * 3
    ones = torch.ones(3)
    with torch.no_grad():
        assert program(ones, torch.ones(3)).item() == 9.0
    assert ones.tolist() == [3.0] * 3


def test_what_cannot_be_traced_says_why_in_a_line() -> None:
    with pytest.raises(CompilationError) as error:
        trace(lambda x: x * (2 if x.sum().item() > 0 else 3), [torch.ones(3)])
    assert str(error.value) and '\n' not in str(error.value)


def test_the_gradient_of_an_embedding_is_a_product() -> None:
    weight = torch.zeros(7, 5, dtype=torch.float64, requires_grad=True)
    indices = torch.arange(12).view(3, 4) % 7
    gradient = torch.arange(60, dtype=torch.float64).view(3, 4, 5)
    F.embedding(indices, weight).backward(gradient)
    assert weight.grad is not None
    torch.testing.assert_close(compiler._embedding_gradient(gradient, indices, 7, -1, False), weight.grad)


def test_torchs_private_parts_are_used_in_one_module() -> None:
    """Of the package: imports of torch._something, or of attributes of torch with an underscore."""
    package = Path(sys.modules['RLM_clean'].__file__ or '').parent
    using = {
        path.relative_to(package).as_posix()
        for path in package.rglob('*.py')
        if 'torch._' in path.read_text() or 'torch.utils._' in path.read_text()
    }
    assert using == {'training/compiler.py'}
