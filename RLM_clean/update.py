"""One step of gradient descent as a pure function, and the ways to take it: eagerly, compiled whole, as a CUDA graph.

The pure function maps (parameters, optimizer state, batch, learning rate) to (parameters, optimizer state, loss): the
forward pass, the gradient and the rule of the optimizer in one graph. A small model's eager step is mostly overhead;
compiled, it is mostly matrix products.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.fx.experimental.proxy_tensor import make_fx

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models.transformer import Dropout, set_dropout_key
from RLM_clean.streams import stream_key

Parameters = dict[str, Tensor]
# The optimizer's tensors by name, then by parameter, as torch.optim names them: momentum_buffer, or exp_avg and so on.
State = dict[str, Parameters]

# Steps whose learning rates are made at a time.
_STEPS_PREPARED = 1024
_ADAM_BETAS, _ADAM_EPSILON = (0.9, 0.999), 1e-8


class CompilationError(RuntimeError):
    """A step could not be compiled."""


# ---------------------------------------------------------------------- the pure function


class Loss(nn.Module):
    """The training loss of a model on one batch, in the precision of the run: inputs `(B, T)`, targets -> `()`."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        bfloat16 = self.config.dtype == 'bfloat16'
        # Weights that were cast for one graph must not be found by another: no cache.
        with torch.autocast(inputs.device.type, torch.bfloat16, bfloat16, cache_enabled=False):
            logits = init.task_logits(self.model, inputs, self.config)
        return init.cross_entropy(logits, targets)


class Step:
    """The pure function of one model and its options: `step(parameters, state, inputs, targets, lr, t, keys)`.

    It returns (parameters, state, loss) and changes nothing. inputs `(A, B, T)` are A batches whose gradients are
    averaged, `t` counts updates from 1, `lr` and `t` are scalars, `keys (A,)` those of the dropout masks.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.config = config
        self.loss = Loss(model, config)
        self.keys = [f'model.{name}.key' for name, module in model.named_modules() if isinstance(module, Dropout)]

    def __call__(
        self, parameters: Parameters, state: State, inputs: Tensor, targets: Tensor, lr: Tensor, t: Tensor, keys: Tensor
    ) -> tuple[Parameters, State, Tensor]:
        gradients, loss = self.gradients(parameters, inputs, targets, keys)
        if self.config.grad_clip:
            gradients = clip(gradients, self.config.grad_clip)
        rule = sgd if self.config.optim == 'sgd' else adamw
        updated = {
            name: rule(p, gradients[name], {key: state[key][name] for key in state}, lr, t, self.config)
            for name, p in parameters.items()
        }
        new_state = {key: {name: updated[name][1][key] for name in parameters} for key in state}
        return {name: p for name, (p, _) in updated.items()}, new_state, loss

    def gradients(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, keys: Tensor
    ) -> tuple[Parameters, Tensor]:
        """The gradient of the mean loss of all batches, and that loss."""

        def mean_loss(parameters: Parameters) -> Tensor:
            losses = [self._loss(parameters, *batch) for batch in zip(inputs, targets, keys, strict=True)]
            return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

        return torch.func.grad_and_value(mean_loss)(parameters)

    def _loss(self, parameters: Parameters, inputs: Tensor, targets: Tensor, key: Tensor) -> Tensor:
        values = {f'model.{name}': p for name, p in parameters.items()} | dict.fromkeys(self.keys, key)
        return torch.func.functional_call(self.loss, values, (inputs, targets))


def clip(gradients: Parameters, limit: float) -> Parameters:
    """Gradients scaled down so that their common norm is at most `limit` (as torch.nn.utils.clip_grad_norm_ does)."""
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return {name: g * scale for name, g in gradients.items()}


def sgd(p: Tensor, g: Tensor, state: Parameters, lr: Tensor, t: Tensor, config: Config) -> tuple[Tensor, Parameters]:
    """`m <- momentum m + g`, `p <- p - lr m`, g including weight_decay p: torch.optim.SGD."""
    if config.weight_decay:
        g = g + config.weight_decay * p
    if not config.momentum:
        return p - lr * g, {}
    m = config.momentum * state['momentum_buffer'] + g
    return p - lr * m, {'momentum_buffer': m}


def adamw(p: Tensor, g: Tensor, state: Parameters, lr: Tensor, t: Tensor, config: Config) -> tuple[Tensor, Parameters]:
    """AdamW (I. Loshchilov and F. Hutter, arXiv:1711.05101) as in torch.optim.AdamW: moments m and s of the gradient,
    `p <- (1 - lr weight_decay) p - lr / (1 - beta_1^t) m / (sqrt(s / (1 - beta_2^t)) + epsilon)`."""
    beta_1, beta_2 = _ADAM_BETAS
    m = state['exp_avg'] + (1 - beta_1) * (g - state['exp_avg'])
    s = beta_2 * state['exp_avg_sq'] + (1 - beta_2) * g * g
    denominator = s.sqrt() / (1 - beta_2**t).sqrt() + _ADAM_EPSILON
    decayed = p * (1 - lr * config.weight_decay) if config.weight_decay else p
    return decayed - (lr / (1 - beta_1**t)) * (m / denominator), {'exp_avg': m, 'exp_avg_sq': s}


# ---------------------------------------------------------------------- ways to take a step


class EagerUpdate:
    """Steps taken by autograd and torch's own optimizer, operation by operation."""

    steps_per_call = 1

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.loss = Loss(model, config)

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
        self.config, self.optimizer = config, optimizer
        self.device = next(model.parameters()).device
        self.step = Step(model, config)
        self.model = model
        self.known = range(0)  # the steps whose scalars are there
        self.bind()

    def bind(self) -> None:
        """Finds the tensors to write to: an optimizer that loads a state has new ones."""
        self.parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        self.state = optimizer_state(self.model, self.optimizer, self.config)
        self.tensors = [*self.parameters.values(), *(x for part in self.state.values() for x in part.values())]

    @torch.no_grad()
    def __call__(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Takes updates from number `step` (0 is the first) on inputs `(S, A, B, T)` and targets; the losses `(S,)`."""
        S = len(inputs)
        if step not in self.known or step + S - 1 not in self.known:
            self._prepare(step)
        i = step - self.known.start
        return self.run(inputs, targets, *(scalars[i : i + S] for scalars in self.scalars))

    def run(self, *arguments: Tensor) -> Tensor:
        """Runs the graph on inputs, targets, and the scalars of each step: learning rate, count and dropout keys."""
        raise NotImplementedError

    def settle(self, step: int) -> None:
        """Brings what the optimizer counts for itself up to `step` updates."""
        for state in self.optimizer.state.values():
            if 'step' in state:
                state['step'].fill_(step)

    def write(self, tensors: list[Tensor], *batches: Tensor) -> Tensor:
        """The function that becomes a graph: steps on batches `(S, A, B, T)`, one after the other, written in place."""
        n = len(self.parameters)
        parameters = dict(zip(self.parameters, tensors[:n], strict=True))
        rest = iter(tensors[n:])
        state = {key: {name: next(rest) for name in part} for key, part in self.state.items()}
        losses = []
        for batch in zip(*batches, strict=True):
            parameters, state, loss = self.step(parameters, state, *batch)
            losses.append(loss)
        results = [*parameters.values(), *(x for part in state.values() for x in part.values())]
        for tensor, result in zip(tensors, results, strict=True):
            tensor.copy_(result)
        return torch.stack(losses)

    def example(self, S: int) -> list[Tensor]:
        """Batches and scalars of the shapes of a call with S steps."""
        c = self.config
        inputs = torch.zeros(S, c.accumulation, c.batch_size, c.context_size, dtype=torch.int64, device=self.device)
        targets = inputs if c.objective == 'all' else inputs[..., -1]
        self._prepare(0)
        return [inputs, targets.clone(), *(scalars[:S].clone() for scalars in self.scalars)]

    def _prepare(self, step: int) -> None:
        """Makes the scalars of the steps to come: a look-up is cheaper than a new tensor at every step."""
        c = self.config
        self.known = range(step, step + _STEPS_PREPARED)
        rates = [init.learning_rate(i, c) for i in self.known]
        keys = [[0] * c.accumulation] * len(rates)
        if c.dropout:
            keys = [[stream_key(c.seed_model, 'dropout', i, j) for j in range(c.accumulation)] for i in self.known]
        self.scalars = (
            torch.tensor(rates, dtype=torch.float64, device=self.device),
            torch.arange(step + 1, step + 1 + len(rates), dtype=torch.float64, device=self.device),
            torch.tensor(keys, dtype=torch.int64, device=self.device),
        )


class CompiledUpdate(GraphUpdate):
    """Steps compiled into C++ by torch.compile. Raises CompilationError where that fails; then nothing was changed."""

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        tensors = [tensor.clone() for tensor in self.tensors]  # the first call compiles, and takes a step
        example = self.example(1)
        self.function = compiled(self.write, tensors, *example)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                self.function(tensors, *example)
        except Exception as error:  # of many kinds: no compiler, one that is too old, no space for its files
            raise CompilationError(_reason(error)) from error

    def run(self, *arguments: Tensor) -> Tensor:
        return self.function(self.tensors, *arguments)


class CapturedUpdate(GraphUpdate):
    """Steps captured as a CUDA graph, several in one launch: a small model's kernels take less time than to launch."""

    steps_per_call = 16

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, config: Config) -> None:
        super().__init__(model, optimizer, config)
        self.steps_per_call = max(1, self.steps_per_call // config.accumulation)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def run(self, *arguments: Tensor) -> Tensor:
        S = len(arguments[0])
        if S not in self.graphs:
            self.graphs[S] = self._capture(S)
        graph, places, losses = self.graphs[S]
        for place, value in zip(places, arguments, strict=True):
            place.copy_(value)
        graph.replay()
        return losses.clone()

    def _capture(self, S: int) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """A graph of S steps, the places that its batches are copied to, and the place of its losses."""
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


def compiled(function: Callable[..., Tensor], *example: Any) -> Callable[..., Tensor]:
    """`function` traced on arguments like `example` and compiled for the CPU; for arguments of those shapes only.

    The trace is one flat graph of tensor operations, the gradient among them, so there is nothing for torch.compile to
    guess, and nothing that a call has to check.
    """
    # The gradient of an embedding adds up rows: several threads would do so in an order that changes.
    ordered = {torch.ops.aten.embedding_dense_backward.default: _embedding_gradient}
    graph = make_fx(function, ordered if torch.get_num_threads() > 1 else None, tracing_mode='fake')(*example)
    options: dict[str, Any] = {'cpp_wrapper': True, 'cpp.vec_isa_ok': True}
    if hasattr(torch.compiler, 'skip_all_guards_unsafe'):  # torch 2.8
        options['guard_filter_fn'] = torch.compiler.skip_all_guards_unsafe
    return torch.compile(graph.forward, fullgraph=True, dynamic=False, options=options)


def _reason(error: Exception) -> str:
    """What went wrong, from the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _embedding_gradient(gradient: Tensor, indices: Tensor, size: int, padding: int, scale_by_frequency: bool) -> Tensor:
    """The gradient `(size, d)` of the rows of an embedding as a matrix product: the same sum, in a fixed order."""
    one_hot = indices.flatten() == torch.arange(size, device=indices.device)[:, None]
    return one_hot.to(gradient.dtype) @ gradient.flatten(0, -2)
