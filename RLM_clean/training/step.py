"""One step of gradient descent as a pure function, and as a function that writes to the tensors of a run.

The pure function maps (parameters, optimizer state, batch, learning rate) to (parameters, optimizer state, loss): the
forward pass, the gradient and the rule of the optimizer. backends.py says how such a step is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from RLM_clean import init
from RLM_clean.config import Config
from RLM_clean.models.layers import Dropout
from RLM_clean.streams import stream_key

Parameters = dict[str, Tensor]
# The optimizer's tensors by name, then by parameter, as torch.optim names them: momentum_buffer, or exp_avg and so on.
State = dict[str, Parameters]
Scalars = dict[str, Tensor]
_ADAM_BETAS, _ADAM_EPSILON = (0.9, 0.999), 1e-8


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
        return init.task_loss(logits, targets, self.config)


class Step:
    """The pure function of a model and its options: `step(parameters, state, frozen, inputs, targets, scalars)`.

    It returns (parameters, state, loss) and changes nothing. `parameters` are those that are trained, `frozen` those
    with requires_grad=False. Inputs `(A, B, T)` are A batches whose gradients are averaged; the scalars are those of
    `scalars_of`, at one step.
    """

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.config = config
        self.factors = init.lr_factors(model, config)
        self.loss = Loss(model, config)
        self.keys = [f'model.{name}.key' for name, module in model.named_modules() if isinstance(module, Dropout)]

    def __call__(
        self,
        parameters: Parameters,
        state: State,
        frozen: Parameters,
        inputs: Tensor,
        targets: Tensor,
        scalars: Scalars,
    ) -> tuple[Parameters, State, Tensor]:
        gradients, loss = self.gradients(parameters, frozen, inputs, targets, scalars)
        if self.config.grad_clip:
            gradients = clip(gradients, scalars['grad_clip'])
        if self.config.optim == 'sgd':
            return *sgd(parameters, gradients, state, scalars, self.config, self.factors), loss
        return *adamw(parameters, gradients, state, scalars, self.config, self.factors), loss

    def gradients(
        self, parameters: Parameters, frozen: Parameters, inputs: Tensor, targets: Tensor, scalars: Scalars
    ) -> tuple[Parameters, Tensor]:
        """The gradient of the mean loss of all batches, and that loss.

        Batch by batch, so that only the activations of one are kept at a time.
        """
        accumulation = self.config.accumulation

        def part(parameters: Parameters, i: int) -> Tensor:
            values = {f'model.{name}': p for name, p in (parameters | frozen).items()}
            if self.config.dropout:
                values |= dict.fromkeys(self.keys, scalars['keys'][i])
            loss = torch.func.functional_call(self.loss, values, (inputs[i], targets[i]))
            return loss / accumulation if accumulation > 1 else loss

        gradients, loss = torch.func.grad_and_value(part)(parameters, 0)
        for i in range(1, accumulation):
            more, also = torch.func.grad_and_value(part)(parameters, i)
            gradients = {name: g + more[name] for name, g in gradients.items()}
            loss = loss + also
        return gradients, loss


def scalars_of(config: Config, steps: range) -> Scalars:
    """What changes from step to step, or from run to run, by name; one row a step, float64 (keys: int64, `(S, A)`).

    `lr`; with adam `t`, the number of the update from 1; and where they are not zero `momentum`, `weight_decay`,
    `grad_clip` and the `keys` of the dropout masks.
    """
    c = config
    rows: dict[str, list[Any]] = {'lr': [init.learning_rate(step, c) for step in steps]}
    if c.optim == 'adam':
        rows['t'] = [float(step + 1) for step in steps]
    names = ('momentum', 'weight_decay', 'grad_clip') if c.optim == 'sgd' else ('weight_decay', 'grad_clip')
    rows |= {name: [getattr(c, name)] * len(steps) for name in names if getattr(c, name)}
    scalars = {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}
    if c.dropout:
        keys = [[stream_key(c.seed_model, 'dropout', step, i) for i in range(c.accumulation)] for step in steps]
        scalars['keys'] = torch.tensor(keys)
    return scalars


def clip(gradients: Parameters, limit: Tensor) -> Parameters:
    """Gradients scaled down so that their common norm is at most `limit` (as torch.nn.utils.clip_grad_norm_ does)."""
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0).to(norm.dtype)
    return {name: g * scale for name, g in gradients.items()}


def sgd(
    parameters: Parameters,
    gradients: Parameters,
    state: State,
    scalars: Scalars,
    config: Config,
    factors: Mapping[str, float] | None = None,
) -> tuple[Parameters, State]:
    """`m <- momentum m + g`, `p <- p - lr m`, g including weight_decay p: as torch.optim.SGD.

    `factors` multiply the lr of each parameter, and divide its weight decay.
    """
    directions, dtype = gradients, _precision(parameters)
    if config.weight_decay:
        decays = _for_each(parameters, scalars['weight_decay'], _inverse(factors))
        directions = {name: g + decays[name] * parameters[name] for name, g in gradients.items()}
    if config.momentum:
        m, momentum = state['momentum_buffer'], scalars['momentum'].to(dtype)
        directions = {name: momentum * m[name] + g for name, g in directions.items()}
    rates = _for_each(parameters, scalars['lr'], factors)
    updated = {name: p - rates[name] * directions[name] for name, p in parameters.items()}
    return updated, {'momentum_buffer': directions} if config.momentum else {}


def adamw(
    parameters: Parameters,
    gradients: Parameters,
    state: State,
    scalars: Scalars,
    config: Config,
    factors: Mapping[str, float] | None = None,
) -> tuple[Parameters, State]:
    """AdamW (I. Loshchilov and F. Hutter, arXiv:1711.05101), as torch.optim.AdamW: running means m of g and s of g^2,
    `p <- (1 - lr weight_decay) p - lr / (1 - beta_1^t) m / (sqrt(s / (1 - beta_2^t)) + epsilon)`.

    `factors` multiply the lr of each parameter, but not in its decay.
    """
    beta_1, beta_2 = _ADAM_BETAS
    lr, t, dtype = scalars['lr'], scalars['t'], _precision(parameters)
    m = {name: x + (1 - beta_1) * (gradients[name] - x) for name, x in state['exp_avg'].items()}
    s = {name: beta_2 * x + (1 - beta_2) * gradients[name].square() for name, x in state['exp_avg_sq'].items()}
    root, rates = (1 - beta_2**t).sqrt().to(dtype), _for_each(parameters, lr / (1 - beta_1**t), factors)
    kept = (1 - lr * scalars['weight_decay']).to(dtype) if config.weight_decay else 1.0
    updated = {
        name: kept * p - rates[name] * (m[name] / (s[name].sqrt() / root + _ADAM_EPSILON))
        for name, p in parameters.items()
    }
    return updated, {'exp_avg': m, 'exp_avg_sq': s}


def _for_each(parameters: Parameters, scalar: Tensor, factors: Mapping[str, float] | None) -> Scalars:
    """A scalar times the factor of each parameter, if there are factors, in the precision of the weights."""
    dtype = _precision(parameters)
    if factors is None:
        return dict.fromkeys(parameters, scalar.to(dtype))
    scaled = {factor: (factor * scalar).to(dtype) for factor in factors.values()}
    return {name: scaled[factors[name]] for name in parameters}


def _inverse(factors: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if factors is None else {name: 1 / factor for name, factor in factors.items()}


def _precision(parameters: Parameters) -> torch.dtype:
    """That of the weights, which a scalar has to take: where there is one for each run, it would raise theirs."""
    return next(iter(parameters.values())).dtype


# ---------------------------------------------------------------------- written in place


def flatten(parameters: Parameters, state: State, frozen: Parameters) -> list[Tensor]:
    """All tensors of a step in one order: those that it writes to, then the frozen ones."""
    return [*parameters.values(), *(x for part in state.values() for x in part.values()), *frozen.values()]


def in_place(
    step: Callable[..., Any], trained: Sequence[str], keys: Sequence[str], frozen: Sequence[str]
) -> Callable[..., Tensor]:
    """`write(tensors, inputs, targets, scalars)`: steps on batches `(S, ...)`, written to the tensors of `flatten`.

    It returns the losses `(S, ...)`. `trained` and `frozen` are the names of parameters, `keys` those of the optimizer
    state.
    """

    def write(tensors: Sequence[Tensor], inputs: Tensor, targets: Tensor, scalars: Scalars) -> Tensor:
        rest = iter(tensors)
        parameters = {name: next(rest) for name in trained}
        state = {key: {name: next(rest) for name in trained} for key in keys}
        constants = {name: next(rest) for name in frozen}
        losses = []
        for i in range(len(inputs)):
            now = {name: column[i] for name, column in scalars.items()}
            parameters, state, loss = step(parameters, state, constants, inputs[i], targets[i], now)
            losses.append(loss)
        results = flatten(parameters, state, {})
        for tensor, result in zip(tensors[: len(results)], results, strict=True):
            tensor.copy_(result)
        return torch.stack(losses)

    return write
