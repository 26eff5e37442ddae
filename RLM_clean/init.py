"""Builders: from the options of a run to its language, model, optimizer, learning rates and times."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Container
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn, optim

from RLM_clean import datasets, models, optimizers, tasks
from RLM_clean.config import DATASETS, MODELS, Config
from RLM_clean.models import parametrisation

Criterion = Callable[[Tensor, Tensor], Tensor]
DrawRules = Callable[[Config], Tensor]
BuildModel = Callable[[Config], nn.Module]

_TRANSFORMERS = {'transformer_mlm': models.MLM, 'transformer_clm': models.CLM, 'transformer_bert': models.BERT}
# The models whose `forward` gives logits at all positions.
_AT_ALL_POSITIONS = ('transformer_clm', 'transformer_bert', 'gru')

# The share of the time since the last record that a record takes at most, and the contexts that it always has.
_RECORD_SHARE, _FEWEST_CONTEXTS = 0.05, 512

# What a program has added to the library's own datasets and models.
_datasets: dict[str, DrawRules] = {}
_models: dict[str, BuildModel] = {}


def register_dataset(name: str, rules: DrawRules) -> None:
    """Makes `dataset=name` the language whose rules are `rules(config)`, in this process.

    `rules` returns P(children = (b, c) | parent = a): `(v, v, v)` where all levels share them, or `(L, v, v, v)` with a
    tensor a level from the root; a function of config.num_features (v), num_layers (L), beta, num_synonyms and
    seed_rules. It is called once: later the rules come from the files of the run, in float32. The root is uniform on
    all symbols, or on the first config.num_classes.
    Raises ValueError for a name of the library's own.
    """
    _register(_datasets, DATASETS, 'dataset', name)
    _datasets[name] = rules


def register_model(name: str, build: BuildModel) -> None:
    """Makes `model=name` the module that `build(config)` returns, in this process.

    It maps token indices `(B, T)`, T = config.context_size (or rows `(B, T, v)` for input_format='onehot'), to the
    logits `(B, v)` of the token that follows; for other tasks to `(B, c)`, or `(B, T, c)` where there is a target at
    each position, with c = config.num_outputs and config.num_inputs input symbols. Its weights are a function of
    config.seed_model. Raises ValueError for a name of the library's own.
    """
    _register(_models, MODELS, 'model', name)
    _models[name] = build


def _register(registered: Container[str], names: list[str], option: str, name: str) -> None:
    if name in names and name not in registered:
        raise ValueError(f"{option}={name!r} is one of the library's own: use another name")
    if name not in names:
        names.append(name)


def prior_of_root(config: Config) -> Tensor | None:
    """The probabilities of the root's symbol `(v,)`: uniform on the first num_classes; None for uniform on all."""
    if not config.num_classes:
        return None
    prior = torch.zeros(config.num_features, dtype=torch.float64)
    prior[: config.num_classes] = 1 / config.num_classes
    return prior


def init_data(config: Config, device: torch.device | str = 'cpu', rules: Tensor | None = None) -> datasets.TreeGrammar:
    """The language of a run, drawing on `device`; `rules` are those of its files, when it has some already."""
    language = _init_language(config, device, rules)
    return language if config.filtered < 0 else language.filtered(config.filtered)


def _init_language(config: Config, device: torch.device | str, rules: Tensor | None) -> datasets.TreeGrammar:
    """The language of a run before it is filtered."""
    # mps has no 64-bit arithmetic to speak of: sequences are drawn beside it.
    device = torch.device('cpu') if torch.device(device).type == 'mps' else torch.device(device)
    num_data = config.train_size if config.regime == 'offline' else None
    v, L, seeds = config.num_features, config.num_layers, (config.seed_rules, config.seed_sample)
    prior = prior_of_root(config)
    if config.dataset in _datasets:
        given = _datasets[config.dataset](config).float() if rules is None else rules
        if given.shape not in ((v, v, v), (L, v, v, v)):
            raise ValueError(
                f'dataset={config.dataset!r} has rules of shape {tuple(given.shape)}: '
                f'make them {(v, v, v)}, or {(L, v, v, v)} with a tensor a level'
            )
        levels = given if given.ndim == 3 else list(given)
        return datasets.TreeGrammar(
            levels, L, prior=prior, seed_samples=config.seed_sample, num_data=num_data, device=device
        )
    if config.dataset == 'rhm':
        return datasets.RHM(
            v, config.num_synonyms, L, *seeds, num_data, prior, device=device, rules=rules,
            zipf=config.zipf or None, zipf_levels=config.zipf_levels,
        )  # fmt: skip
    if config.dataset == 'unambiguous':
        return datasets.Unambiguous(v, L, config.sigma, *seeds, num_data, prior, device=device, rules=rules)
    return datasets.RLM(v, L, config.beta, *seeds, num_data, prior, device=device, rules=rules)


def num_rule_entries(config: Config) -> int:
    """The number of entries of the rules of a run's language, about: v^3, on each level of an RHM."""
    return (config.num_layers if config.dataset == 'rhm' else 1) * config.num_features**3


def transform_inputs(inputs: Tensor, v: int, input_format: str = 'long', whitening: int = 0) -> Tensor:
    """Token indices `(..., T)` as they are (`long`) or as one-hot rows `(..., T, v)` float32 (`onehot`).

    Whitening subtracts the mean 1/v of a row's entries and divides by their standard deviation sqrt((1 - 1/v) / v).
    """
    if input_format == 'long':
        return inputs
    rows = (inputs[..., None] == torch.arange(v, device=inputs.device)).float()
    return (rows - 1 / v) / math.sqrt((1 - 1 / v) / v) if whitening else rows


def init_model(config: Config) -> nn.Module:
    """The model of a run, on the CPU, its weights a function of the shapes and of seed_model alone."""
    c = config
    if c.model in _models:
        return _models[c.model](c)
    if c.model in _TRANSFORMERS:
        return _TRANSFORMERS[c.model](
            vocab_size=c.num_inputs,
            block_size=c.context_size,
            embedding_dim=c.embedding_dim,
            num_heads=c.num_heads,
            depth=c.depth,
            ffwd_size=c.ffwd_size,
            dropout=c.dropout,
            tie_weights=c.tie_weights,
            seed=c.seed_model,
            num_outputs=c.num_outputs,
            positions=c.positions,
            mup=c.parametrisation == 'mup',
        )
    if c.model == 'gru':
        return models.GRU(
            c.num_inputs, c.context_size, c.embedding_dim, c.depth, seed=c.seed_model, num_outputs=c.num_outputs
        )
    moment = 1.0 if c.whitening else None
    width = c.ffwd_size * c.embedding_dim
    if c.model == 'fcn':
        targets = c.context_size if tasks.of(c).at_each else None
        return models.MLP(
            c.num_inputs, c.context_size, width, c.depth, moment, c.seed_model,
            num_outputs=c.num_outputs, num_targets=targets,
        )  # fmt: skip
    network = {'cnn': models.CNN, 'lcn': models.LCN}[c.model]
    return network(c.num_inputs, c.context_size, width, c.depth, moment, c.seed_model, num_outputs=c.num_outputs)


def task_logits(model: nn.Module, inputs: Tensor, config: Config) -> Tensor:
    """The model's logits for the targets of the task, from token indices `(B, T)`: `(B, c)`, or `(B, T, c)`.

    Of a model that has logits at all positions, a task with one target gets those of the last.
    """
    inputs = transform_inputs(inputs, config.num_inputs, config.input_format, config.whitening)
    if config.model in _AT_ALL_POSITIONS and not tasks.of(config).at_each:
        assert isinstance(model, models.CLM | models.GRU)
        return model.last_logits(inputs)
    return model(inputs)


def task_loss(logits: Tensor, targets: Tensor, config: Config) -> Tensor:
    """The training loss of the task in nats, `()`, from logits as `task_logits` gives them.

    In the regime population `targets` are joint probabilities, see training.batches.PopulationFeed.
    """
    if config.regime == 'population':
        return tasks.expected_loss(logits, targets)
    return tasks.of(config).loss(logits, targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -ln q(target) in nats, in float32 or better: logits `(..., v)`, targets `(...)`."""
    return tasks.Last().loss(logits, targets)


def init_training(
    model: nn.Module, config: Config
) -> tuple[Criterion, optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """The criterion, the optimizer and the scheduler of the learning rate, stepped once after each update."""
    optimizer = init_optimizer(model, config)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, config))
    return lambda logits, targets: task_loss(logits, targets, config), optimizer, scheduler


def init_optimizer(model: nn.Module, config: Config) -> optim.Optimizer:
    """The optimizer of the weights that are trained: torch's SGD with momentum, or its AdamW.

    With mup it has one group for each factor of `lr_factors`, which the group keeps as its `lr_factor`.
    """
    c = config
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: list[Any] = list(trained.values())
    factors = lr_factors(model, c)
    if factors is not None:
        groups = [
            {
                'params': [parameter for name, parameter in trained.items() if factors[name] == factor],
                'lr_factor': factor,
                'lr': factor * c.lr,
                # lr times weight_decay, the fraction by which a step shrinks a weight, stays the same for all weights.
                'weight_decay': c.weight_decay / factor,
            }
            for factor in sorted({factors[name] for name in trained})
        ]
    # One fused kernel for all weights: a small model's step is otherwise mostly overhead.
    if c.optim == 'sgd':
        return optimizers.SGD(groups, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, fused=True)
    return optimizers.AdamW(groups, lr=c.lr, weight_decay=c.weight_decay, fused=True)


def lr_factors(model: nn.Module, config: Config) -> dict[str, float] | None:
    """The learning rate of each parameter over that of the run, by name, with mup; None where all are equal."""
    return parametrisation.lr_factors(model, config.optim) if config.parametrisation == 'mup' else None


def learning_rate(step: int, config: Config) -> float:
    """The learning rate of update number `step` (0 is the first)."""
    return config.lr * lr_factor(step, config)


def lr_factor(step: int, config: Config) -> float:
    """The learning rate of update number `step` (0 is the first) over `lr`.

    Cosine: from 1 down to 0.1 over decay_time steps, `0.1 + 0.45 (1 + cos(pi step / decay_time))`, then constant.
    Warm-up multiplies it by `(step + 1) / warmup_time` for the first warmup_time updates: never by zero.
    """
    if config.scheduler == 'none':
        return 1.0
    factor = 0.1 + 0.45 * (1 + math.cos(math.pi * min(step / config.decay_time, 1.0)))
    if config.scheduler == 'cosine-warmup' and step < config.warmup_time:
        factor *= (step + 1) / config.warmup_time
    return factor


def save_times(last: int, save_freq: int) -> list[int]:
    """The steps with a checkpoint: 0, 2^(k / save_freq) rounded for k = 0, 1, 2, ... below `last`, and `last`."""
    times = {0, last}
    k = 0
    while (step := round(2 ** (k / save_freq))) < last:
        times.add(step)
        k += 1
    return sorted(times)


def record_contexts(step: int, config: Config) -> int:
    """The largest number of sampled contexts that the record of a step is measured on, the last record excepted.

    It is a function of the step, the options and the schedule of records, so that runs that go on or become longer have
    the same records. A record takes 5% of the time of the steps since the one before, or 512 contexts where these take
    longer: in a step a sequence costs about three times as much as a context in a record.
    """
    times = _print_times(config.last_step, config.print_freq, config.save_freq)
    before = times[max(0, bisect_left(times, step) - 1)]
    return max(_FEWEST_CONTEXTS, int(3 * _RECORD_SHARE * (step - before) * config.step_size))


def print_times(last: int, print_freq: int, save_freq: int) -> list[int]:
    """The steps with a record: the multiples of print_freq up to `last`, and every step with a checkpoint."""
    return list(_print_times(last, print_freq, save_freq))


@lru_cache(8)  # each record of a run asks for them
def _print_times(last: int, print_freq: int, save_freq: int) -> tuple[int, ...]:
    return tuple(sorted({*range(0, last + 1, print_freq), *save_times(last, save_freq)}))
