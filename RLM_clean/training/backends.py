"""Three ways to take a step: operation by operation, compiled whole for a CPU, captured as a CUDA graph.

A small model's eager step is mostly overhead; compiled or captured, it is mostly matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from RLM_clean import init, tasks
from RLM_clean.config import Config
from RLM_clean.models.layers import Dropout, set_dropout_key
from RLM_clean.streams import stream_key
from RLM_clean.training.compiler import CompilationError, compile_graph, reason, trace
from RLM_clean.training.step import Loss, Scalars, State, Step, flatten, in_place, scalars_of

# Steps whose learning rates are made at a time.
_STEPS_PREPARED = 1024

Batch = tuple[Tensor, Tensor]
Function = Callable[[list[Tensor], Tensor, Tensor, Scalars], Tensor]


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
        for p in self.model.parameters():
            if p.requires_grad and p.grad is None:  # the model does not use it; it decays all the same, as in a graph
                p.grad = torch.zeros_like(p)
        mean_loss = self.combine(torch.stack(losses).sum())
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        for group in self.optimizer.param_groups:
            group['lr'] = group.get('lr_factor', 1.0) * init.learning_rate(step, config)
        self.optimizer.step()
        return mean_loss[None]

    def combine(self, loss: Tensor) -> Tensor:
        """Does nothing to the loss and to the gradients: a place for what several processes average between them."""
        return loss

    def rebind(self) -> None:
        """Does nothing: torch's optimizer finds its tensors itself."""

    def sync_step_count(self, step: int) -> None:
        """Does nothing: torch's optimizer counts its steps itself."""


class GraphUpdate:
    """Steps taken by one graph of the pure function that writes to the tensors of the model and of the optimizer.

    The base of CompiledUpdate and CapturedUpdate, which say how the graph is run. `batch`, the inputs and targets of a
    step, is needed where the options do not say their shapes: in the regime population.
    """

    steps_per_call = 1

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, config: Config, batch: Batch | None = None
    ) -> None:
        self.model, self.optimizer, self.config, self.batch = model, optimizer, config, batch
        self.device = next(model.parameters()).device
        _check_buffers(model)
        self.known = range(0)  # the steps whose scalars are in the table
        self.rebind()
        self.write = self.in_place(Step(model, config))

    def rebind(self) -> None:
        """Finds the tensors of the model and of the optimizer: an optimizer that loads a state has new ones."""
        named = dict(self.model.named_parameters())
        self.parameters = {name: p.detach() for name, p in named.items() if p.requires_grad}
        self.frozen = {name: p.detach() for name, p in named.items() if not p.requires_grad}
        self.state = optimizer_state(self.model, self.optimizer, self.config)
        self.tensors = flatten(self.parameters, self.state, self.frozen)

    def in_place(self, step: Callable[..., object]) -> Function:
        """A pure step as a function that writes to `tensors`."""
        return in_place(step, list(self.parameters), list(self.state), list(self.frozen))

    def move_to(self, tensors: list[Tensor]) -> None:
        """Makes these the tensors of the model and of the optimizer, in the order of `tensors`."""
        rest = iter(tensors)
        named = dict(self.model.named_parameters())
        for name in self.parameters:
            named[name].data = next(rest)
        for key in self.state:
            for name in self.parameters:
                self.optimizer.state[named[name]][key] = next(rest)
        for name in self.frozen:
            named[name].data = next(rest)
        self.rebind()

    @torch.no_grad()
    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes updates from number `step` (0 is the first) on inputs `(S, A, B, T)` and targets; the losses `(S,)`."""
        return self.run(inputs, targets, self.scalars(step, len(inputs)))

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        """Runs the graph of the steps."""
        raise NotImplementedError

    def sync_step_count(self, step: int) -> None:
        """Sets the number of steps that torch's optimizer keeps, and that a graph does not count, to `step`."""
        for state in self.optimizer.state.values():
            if 'step' in state:
                state['step'].fill_(step)

    def scalars(self, step: int, S: int) -> Scalars:
        """The scalars of S steps, from a table of steps to come: looking them up is cheaper than making tensors."""
        if step not in self.known or step + S - 1 not in self.known:
            self.known = range(step, step + _STEPS_PREPARED)
            self.table = {name: x.to(self.device) for name, x in scalars_of(self.config, self.known).items()}
        i = step - self.known.start
        return {name: column[i : i + S] for name, column in self.table.items()}

    def example(self, S: int) -> tuple[Tensor, Tensor, Scalars]:
        """Batches and scalars of the shapes of a call with S steps."""
        scalars = {name: x.clone() for name, x in self.scalars(0, S).items()}
        if self.batch is not None:
            inputs, targets = (x.repeat(S, *[1] * (x.ndim - 1)) for x in self.batch)
            return inputs, targets, scalars
        c = self.config
        inputs = torch.zeros(S, c.accumulation, c.batch_size, c.context_size, dtype=torch.int64, device=self.device)
        targets = inputs.clone() if tasks.of(c).at_each else inputs[..., -1].clone()
        return inputs, targets, scalars


class CompiledUpdate(GraphUpdate):
    """Steps compiled into C++ by torch. Raises CompilationError where that fails; then nothing was changed."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, config: Config, batch: Batch | None = None
    ) -> None:
        super().__init__(model, optimizer, config, batch)
        self.function = compiled(self.write, self.tensors, *self.example(1))

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        return self.function(self.tensors, inputs, targets, scalars)


class CapturedUpdate(GraphUpdate):
    """Steps captured as a CUDA graph, several in a launch, since launching small kernels takes longer than they do.

    Raises CompilationError where a step cannot be captured; then nothing was changed.
    """

    steps_per_call = 16

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer, config: Config, batch: Batch | None = None
    ) -> None:
        super().__init__(model, optimizer, config, batch)
        self.steps_per_call = max(1, self.steps_per_call // config.accumulation)
        self.graphs[1] = captured(self.write, self.tensors, *self.example(1))  # now, while a failure changes nothing

    def rebind(self) -> None:
        """Finds the tensors of the model and of the optimizer; the graphs were captured for others."""
        super().rebind()
        self.graphs: dict[int, Function] = {}

    def run(self, inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        S = len(inputs)
        if S not in self.graphs:
            self.graphs[S] = captured(self.write, self.tensors, *self.example(S))
        return self.graphs[S](self.tensors, inputs, targets, scalars)


Update = EagerUpdate | GraphUpdate


def make_update(
    model: nn.Module, optimizer: optim.Optimizer, config: Config, compile: bool, batch: Batch | None = None
) -> Update:
    """The way to take the steps of a run on the model's device. Raises CompilationError where `compile` fails.

    `batch` is an example of what they are taken on, see GraphUpdate.
    """
    if not compile:
        return EagerUpdate(model, optimizer, config)
    on_gpu = next(model.parameters()).device.type == 'cuda'
    return (CapturedUpdate if on_gpu else CompiledUpdate)(model, optimizer, config, batch)


def optimizer_state(model: nn.Module, optimizer: optim.Optimizer, config: Config) -> State:
    """The tensors of the optimizer, by name and by parameter; zero, as it would make them itself, where it has none."""
    keys = ('exp_avg', 'exp_avg_sq') if config.optim == 'adam' else ('momentum_buffer',) if config.momentum else ()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trained.values():
        state = optimizer.state[p]
        if config.optim == 'adam':
            state.setdefault('step', torch.zeros((), dtype=torch.float32, device=p.device))
        for key in keys:
            if state.get(key) is None:
                state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
    return {key: {name: optimizer.state[p][key] for name, p in trained.items()} for key in keys}


def _check_buffers(model: nn.Module) -> None:
    """Raises CompilationError for a model with buffers."""
    # A graph would keep the buffers of the model that it was made for, and not update them.
    for module in model.modules():
        if not isinstance(module, Dropout) and next(module.buffers(recurse=False), None) is not None:
            raise CompilationError(f'{type(module).__name__} has buffers: use parameters with requires_grad=False')


def compiled(write: Function, tensors: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Function:
    """`write` compiled for arguments like these, which stay as they are. Raises CompilationError where that fails."""
    program = compile_graph(*_with_flat_arguments(write, tensors, inputs, targets, scalars))
    return lambda tensors, inputs, targets, scalars: program(*tensors, inputs, targets, *scalars.values())


@torch.no_grad()
def captured(write: Function, tensors: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Function:
    """`write` as a CUDA graph that writes to these `tensors`, whatever it is called with; they stay as they are.

    The graph reads its other arguments, of the shapes of these, from places of its own, to which each call copies
    them. Raises CompilationError where capturing fails.
    """
    device = inputs.device
    places = inputs.clone(), targets.clone(), {name: value.clone() for name, value in scalars.items()}
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # libraries set themselves up on the first calls, which a capture forbids
            for _ in range(3):
                write([tensor.clone() for tensor in tensors], *places)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Without a stream, torch captures all graphs of a process on the device of the first.
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
            losses = write(tensors, *places)
    except Exception as error:  # of the model, of its kernels, or for want of memory
        raise CompilationError(reason(error)) from error

    def run(_: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        places[0].copy_(inputs)
        places[1].copy_(targets)
        for name, value in scalars.items():
            places[2][name].copy_(value)
        graph.replay()
        return losses.clone()

    return run


def traced(write: Function, tensors: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Function:
    """`write` as its list of operations, for arguments like these. Raises CompilationError where that fails."""
    graph = trace(*_with_flat_arguments(write, tensors, inputs, targets, scalars))
    return lambda tensors, inputs, targets, scalars: graph(*tensors, inputs, targets, *scalars.values())


def _with_flat_arguments(
    write: Function, tensors: list[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """`write` as a function of tensors one by one, and its arguments in that order."""
    n, names = len(tensors), list(scalars)

    def function(*flat: Tensor) -> Tensor:
        return write(list(flat[:n]), flat[n], flat[n + 1], dict(zip(names, flat[n + 2 :], strict=True)))

    return function, [*tensors, inputs, targets, *scalars.values()]
