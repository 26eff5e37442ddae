"""One step of gradient descent as a pure function, and the ways to take it: eagerly, compiled whole, as a CUDA graph.

The pure function maps (parameters, optimizer state, batch, learning rate) to (parameters, optimizer state, loss): the
forward pass, the gradient and the rule of the optimizer in one graph. A small model's eager step is mostly overhead;
compiled, it is mostly matrix products.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn, optim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from RLM_clean import init
from RLM_clean.config import EXECUTION, Config
from RLM_clean.models.transformer import Dropout, set_dropout_key
from RLM_clean.streams import stream_key
from RLM_clean.training.step import Loss, Parameters, Scalars, State, Step, scalars_of

# Steps whose learning rates are made at a time.
_STEPS_PREPARED = 1024


class CompilationError(RuntimeError):
    """A step could not be compiled."""


# ---------------------------------------------------------------------- the pure function


# ---------------------------------------------------------------------- ways to take a step


class EagerUpdate:
    """Steps taken by autograd and torch's own optimizer, operation by operation."""

    steps_per_call = 1

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.loss: nn.Module = Loss(model, config)

    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes update number `step` (0 is the first) on inputs `(1, A, B, T)` and targets; its loss `(1,)`."""
        config, losses = self.config, []
        self.optimizer.zero_grad()
        for i, (x, y) in enumerate(zip(inputs[0], targets[0], strict=True)):
            if config.dropout:
                set_dropout_key(self.model, stream_key(config.seed_model, 'dropout', step, i))
            loss = self.loss(x, y) / config.accumulation
            loss.backward()
            losses.append(loss.detach())
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for group in self.optimizer.param_groups:
            group['lr'] = init.learning_rate(step, config)
        self.optimizer.step()
        return torch.stack(losses).sum(0, keepdim=True)

    def bind(self) -> None:
        """Does nothing: torch's optimizer finds its tensors itself."""

    def settle(self, step: int) -> None:
        """Does nothing: torch's optimizer counts for itself."""


class GraphUpdate:
    """Steps taken by one graph of the pure function that writes to the tensors of the model and of the optimizer.

    The base of CompiledUpdate and CapturedUpdate, which say how the graph is run.
    """

    steps_per_call = 1

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.device = next(model.parameters()).device
        _check_buffers(model)
        self.known = range(0)  # the steps whose scalars are there
        self.bind()
        self.write = in_place(Step(model, config), list(self.parameters), list(self.state))

    def bind(self) -> None:
        """Finds the tensors to write to: an optimizer that loads a state has new ones."""
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.state = optimizer_state(self.model, self.optimizer, self.config)
        self.tensors = flat(self.parameters, self.state)

    def adopt(self, tensors: list[Tensor]) -> None:
        """Makes these the tensors of the model and of the optimizer, in the order of `tensors`."""
        rest = iter(tensors)
        for p in self.model.parameters():
            p.data = next(rest)
        for key in self.state:
            for p in self.model.parameters():
                self.optimizer.state[p][key] = next(rest)
        self.bind()

    @torch.no_grad()
    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes updates from number `step` (0 is the first) on inputs `(S, A, B, T)` and targets; the losses `(S,)`."""
        return self.run(inputs, targets, self.scalars(step, len(inputs)))

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        """Runs the graph of the steps."""
        raise NotImplementedError

    def settle(self, step: int) -> None:
        """Brings what the optimizer counts for itself up to `step` updates."""
        for state in self.optimizer.state.values():
            if 'step' in state:
                state['step'].fill_(step)

    def scalars(self, step: int, S: int) -> Scalars:
        """Those of S steps, from a table of steps to come: a look-up is cheaper than a new tensor at every step."""
        if step not in self.known or step + S - 1 not in self.known:
            self.known = range(step, step + _STEPS_PREPARED)
            self.table = {name: x.to(self.device) for name, x in scalars_of(self.config, self.known).items()}
        i = step - self.known.start
        return {name: column[i : i + S] for name, column in self.table.items()}

    def example(self, S: int) -> tuple[Tensor, Tensor, Scalars]:
        """Batches and scalars of the shapes of a call with S steps."""
        c = self.config
        inputs = torch.zeros(S, c.accumulation, c.batch_size, c.context_size, dtype=torch.int64, device=self.device)
        targets = inputs.clone() if c.objective == 'all' else inputs[..., -1].clone()
        return inputs, targets, {name: x.clone() for name, x in self.scalars(0, S).items()}


def _check_buffers(model: nn.Module) -> None:
    # A graph would hold on to the buffers of the first model that it was made for.
    for module in model.modules():
        if not isinstance(module, Dropout) and next(module.buffers(recurse=False), None) is not None:
            raise CompilationError(f'{type(module).__name__} has buffers: make them parameters, or constants')


class CompiledUpdate(GraphUpdate):
    """Steps compiled into C++ by torch. Raises CompilationError where that fails; then nothing was changed."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        self.function = compiled(config, self.write, self.tensors, *self.example(1))

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        return self.function(self.tensors, inputs, targets, scalars)


class CapturedUpdate(GraphUpdate):
    """Steps captured as a CUDA graph, several in one launch: a small model's kernels take less time than to launch."""

    steps_per_call = 16

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        self.steps_per_call = max(1, self.steps_per_call // config.accumulation)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Scalars], Tensor]] = {}

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        if len(inputs) not in self.graphs:
            self.graphs[len(inputs)] = self._capture(len(inputs))
        graph, places, losses = self.graphs[len(inputs)]
        places[0].copy_(inputs)
        places[1].copy_(targets)
        for name, value in scalars.items():
            places[2][name].copy_(value)
        graph.replay()
        return losses.clone()

    def _capture(self, S: int) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor, Scalars], Tensor]:
        """A graph of S steps, the places that its batches and scalars are copied to, and the place of its losses."""
        places = self.example(S)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries set themselves up on the first calls, which a capture forbids
            for _ in range(3):
                self.write([tensor.clone() for tensor in self.tensors], *places)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self.write(self.tensors, *places)
        return graph, places, losses


Update = EagerUpdate | GraphUpdate


def make_update(model: nn.Module, optimizer: optim.Optimizer, config: Config, compile: bool) -> Update:
    """What takes the steps of a run on the model's device. Raises CompilationError where `compile` fails."""
    if not compile:
        return EagerUpdate(model, optimizer, config)
    on_gpu = next(model.parameters()).device.type == 'cuda'
    return (CapturedUpdate if on_gpu else CompiledUpdate)(model, optimizer, config)


def optimizer_state(model: nn.Module, optimizer: optim.Optimizer, config: Config) -> State:
    """The tensors of the optimizer, by name and by parameter; zero, as it would make them itself, where it has none."""
    keys = ('exp_avg', 'exp_avg_sq') if config.optim == 'adam' else ('momentum_buffer',) if config.momentum else ()
    for p in model.parameters():
        state = optimizer.state[p]
        if config.optim == 'adam':
            state.setdefault('step', torch.zeros((), dtype=torch.float32, device=p.device))
        for key in keys:
            if state.get(key) is None:
                state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return {key: {name: optimizer.state[p][key] for name, p in model.named_parameters()} for key in keys}


# ---------------------------------------------------------------------- graphs


def flat(parameters: Parameters, state: State) -> list[Tensor]:
    """All tensors that a step writes to, in one order."""
    return [*parameters.values(), *(tensor for part in state.values() for tensor in part.values())]


def in_place(step: Callable[..., Any], names: list[str], keys: list[str]) -> Callable[..., Tensor]:
    """The function that becomes a graph: steps on batches `(S, ...)` one after the other, written to the tensors of
    `flat`; it returns the losses `(S, ...)`. `names` are those of the parameters, `keys` those of the state."""

    def write(tensors: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        rest = iter(tensors)
        parameters = {name: next(rest) for name in names}
        state = {key: {name: next(rest) for name in names} for key in keys}
        losses = []
        for i in range(len(inputs)):
            now = {name: column[i] for name, column in scalars.items()}
            parameters, state, loss = step(parameters, state, inputs[i], targets[i], now)
            losses.append(loss)
        for tensor, result in zip(tensors, flat(parameters, state), strict=True):
            tensor.copy_(result)
        return torch.stack(losses)

    return write


def traced(write: Callable[..., Tensor], tensors: list[Tensor], *example: Any) -> Callable[..., Tensor]:
    """`write(tensors, ...)` as a list of tensor operations, the gradient among them; for arguments like these."""
    graph, _ = _trace(write, tensors, *example)
    return lambda *arguments: graph(*_leaves(*arguments))


def _trace(write: Callable[..., Tensor], *example: Any) -> tuple[fx.GraphModule, list[Any]]:
    """A graph of `write` that takes all tensors of its arguments in one list, and that list for the example."""
    leaves, shape = tree_flatten(example)
    # The gradient of an embedding adds up rows: several threads would do so in an order that changes.
    ordered = {torch.ops.aten.embedding_dense_backward.default: _embedding_gradient}
    with torch.no_grad():
        trace = make_fx(
            lambda *leaves: write(*tree_unflatten(list(leaves), shape)),
            ordered if torch.get_num_threads() > 1 else None,
            tracing_mode='fake',
        )
        return trace(*leaves), leaves


def _leaves(tensors: list[Tensor], *rest: Tensor | Scalars) -> Iterator[Tensor]:
    """All tensors of the arguments of a graph, as `tree_flatten` orders them, which takes longer than some steps."""
    yield from tensors
    for argument in rest:
        if isinstance(argument, dict):
            yield from argument.values()
        else:
            yield argument


def compiled(
    config: Config, write: Callable[..., Tensor], tensors: list[Tensor], *example: Any
) -> Callable[..., Tensor]:
    """`write(tensors, ...)` traced and compiled for the CPU; for arguments like these.

    The trace leaves nothing for a compiler to guess, and nothing that a call has to check. What was compiled for a
    run serves all others of the process with the same graph. Raises CompilationError where it fails; the tensors stay
    as they are.
    """
    # The shapes and the options that the graph depends on.
    options = tuple(value for name, value in config.to_dict().items() if name not in _NOT_IN_GRAPHS)
    used = tuple(bool(getattr(config, name)) for name in ('momentum', 'weight_decay', 'grad_clip', 'dropout'))
    key = (options, used, torch.get_num_threads(), *((x.shape, x.dtype) for x in (*tensors, *example[:2])))
    if key not in _compiled:
        copies = [tensor.clone() for tensor in tensors]  # the first call takes a step
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                _look_at_the_processor()
                graph, leaves = _trace(write, copies, *example)
                run = torch._inductor.compile(graph, leaves, options=_options())
                run(*leaves)
        except Exception as error:  # of many kinds: no compiler, one that is too old, no space for its files
            raise CompilationError(_reason(error)) from error
        _compiled[key] = lambda *arguments: run(*_leaves(*arguments))
    return _compiled[key]


# What the process has compiled.
_compiled: dict[Any, Callable[..., Tensor]] = {}
# Options that change no graph: what they say is in the scalars, the batches or the files.
_NOT_IN_GRAPHS = EXECUTION | {
    'dataset', 'beta', 'num_synonyms', 'num_layers', 'seed_rules', 'seed_sample', 'seed_model', 'regime', 'train_size',
    'max_epochs', 'test_size', 'lr', 'momentum', 'weight_decay', 'grad_clip', 'scheduler', 'warmup_time', 'decay_time',
    'max_iters', 'loss_threshold', 'print_freq', 'save_freq', 'checkpoints',
}  # fmt: skip


def _options() -> dict[str, Any]:
    """Options of torch's compiler that make one C++ program of a step, and that leave out what finds nothing in it."""
    options: dict[str, Any] = {'cpp_wrapper': True, 'cpp.vec_isa_ok': True, 'cpp_wrapper_build_separate': True}
    options |= {'pattern_matcher': False, 'use_joint_graph_passes': False}
    known = torch._inductor.list_options()
    return {name: value for name, value in options.items() if name in known}


def _look_at_the_processor() -> None:
    """Begins what torch asks of the processor before it compiles: small programs, that run beside the tracing."""

    def look() -> None:
        with suppress(Exception), torch._inductor.config.patch({'cpp.vec_isa_ok': True}):
            pick_vec_isa()

    from torch._inductor.cpu_vec_isa import pick_vec_isa

    threading.Thread(target=look, daemon=True).start()


def _reason(error: Exception) -> str:
    """What went wrong, from the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _embedding_gradient(gradient: Tensor, indices: Tensor, size: int, padding: int, scale_by_frequency: bool) -> Tensor:
    """The gradient `(size, d)` of the rows of an embedding as a matrix product: the same sum, in a fixed order."""
    one_hot = indices.flatten() == torch.arange(size, device=indices.device)[:, None]
    return one_hot.to(gradient.dtype) @ gradient.flatten(0, -2)
