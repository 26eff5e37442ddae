"""The options of a run: each once, with its default, its help and its check.

A `Config` checks its values when it is made, and asks nothing of the machine: a laptop can open the options of a run
that only a cluster can train. `training.machine.check` asks the machine when a run begins.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Check = tuple[Callable[[Any], bool], str]

# What a check asks for is also what its error tells the user to give.
POSITIVE: Check = (lambda x: x >= 1, 'a whole number, 1 or more')
NOT_NEGATIVE: Check = (lambda x: x >= 0, 'a whole number, 0 or more')
POSITIVE_REAL: Check = (lambda x: 0 < x < math.inf, 'a finite number above 0')
NOT_NEGATIVE_REAL: Check = (lambda x: 0 <= x < math.inf, 'a finite number, 0 or more')
BETA: Check = (lambda x: 0 <= x <= 1e9, 'a number from 0 to 1e9')
FRACTION: Check = (lambda x: 0 <= x < 1, 'a number from 0 to below 1')
SEED: Check = (lambda x: 0 <= x < 2**63, 'a whole number from 0 to 2^63 - 1')
# torch's generator on the CPU reads only 32 bits of a seed: see streams.seeded_generator.
GENERATOR_SEED: Check = (lambda x: 0 <= x < 2**32, 'a whole number from 0 to 2^32 - 1')

# What a dataset or a model may be: the library's own, and what init.register_dataset and init.register_model add.
DATASETS = ['rlm', 'rhm', 'unambiguous']
MODELS = ['transformer_mlm', 'transformer_clm', 'transformer_bert', 'fcn', 'cnn', 'lcn', 'gru']
_OWN_DATASETS, _OWN_MODELS = frozenset(DATASETS), frozenset(MODELS)  # without those that are registered
TRANSFORMERS = ('transformer_mlm', 'transformer_clm', 'transformer_bert')

# What a model sees and predicts (tasks/), and the models of the library that can: those of 'all' predict at every
# position from the past, those of 'masked' and 'denoise' at every position from both sides.
OBJECTIVES = {
    'last': ('transformer_mlm', 'transformer_clm', 'transformer_bert', 'fcn', 'cnn', 'lcn', 'gru'),
    'all': ('transformer_clm', 'gru'),
    'root': ('transformer_mlm', 'transformer_clm', 'transformer_bert', 'fcn', 'cnn', 'lcn', 'gru'),
    'masked': ('transformer_bert', 'fcn'),
    'denoise': ('transformer_bert', 'fcn'),
}

# The regime population: what a step may go over, and the joint distributions of tokens from which its contexts are
# found; those with the root are made sequence by sequence.
MOST_CONTEXTS = 2**16
_MOST_ENTRIES = {'last': 2**24, 'all': 2**24, 'root': 2**20}

# Options that change where or how a run is computed, not what: a resumed run may have others.
EXECUTION = frozenset({'outname', 'device', 'threads', 'compile', 'resume', 'tracker', 'tensorboard'})
# Options that say when a run ends, and nothing else: no batch and no learning rate depends on them.
LENGTH = frozenset({'max_iters', 'max_epochs'})


def option(default: Any, group: str, help: str, check: Check | None = None, choices: Sequence[Any] = ()) -> Any:
    """A field of Config: its default, the group it is listed in, its help, and the values that it takes."""
    return dataclasses.field(
        default=default, metadata={'group': group, 'help': help, 'check': check, 'choices': choices}
    )


# Options that some values of another option make use of, and the others do not.
_USES: dict[str, tuple[str, tuple[str, ...]]] = {
    'beta': ('dataset', ('rlm',)),
    'num_synonyms': ('dataset', ('rhm',)),
    'sigma': ('dataset', ('unambiguous',)),
    'num_heads': ('model', TRANSFORMERS),
    'ffwd_size': ('model', (*TRANSFORMERS, 'fcn', 'cnn', 'lcn')),
    'momentum': ('optim', ('sgd',)),
    'warmup_time': ('scheduler', ('cosine-warmup',)),
    'decay_time': ('scheduler', ('cosine', 'cosine-warmup')),
    'max_epochs': ('regime', ('offline',)),
    'batch_size': ('regime', ('online', 'offline')),
}


@dataclass(frozen=True)
class Config:
    """Every option of a run. Raises ValueError with one sentence for a value that cannot be run."""

    outname: str = option('', 'output', 'required: path of the files to write, without ending, as results/my_run')

    dataset: str = option(
        'rlm', 'language', 'rlm: Random Language Model; rhm: Random Hierarchy Model; unambiguous: log-normal rules '
        'without ambiguity',
        choices=DATASETS,
    )  # fmt: skip
    num_features: int = option(
        128, 'language', 'v, the number of symbols', (lambda x: x >= 2, 'a whole number, 2 or more')
    )
    num_layers: int = option(
        1,
        'language',
        'L, the depth of the tree: 2^L tokens (depth: layers of the model)',
        (lambda x: 1 <= x <= 20, 'a whole number, 1 to 20'),
    )
    num_tokens: int | None = option(
        None, 'language', 'tokens of a sequence that count, the target included (default: 2^num_layers)'
    )
    beta: float = option(2.0, 'language', 'inverse temperature of the rules; they freeze at 2', BETA)
    num_synonyms: int = option(
        8, 'language', 'm, pairs that each symbol can become (rhm); at most num_features', POSITIVE
    )
    zipf: float = option(
        0.0, 'language', "a: Zipf's law k^-(1 + a) for a symbol's productions (rhm); 0: equally likely",
        NOT_NEGATIVE_REAL,
    )  # fmt: skip
    zipf_levels: str = option(
        'leaves',
        'language',
        "levels of rules with Zipf's law: leaves (the last), all, or numbers from 0 (the root), as 0,2",
    )
    sigma: float = option(
        1.0, 'language', 'spread of the logarithms of the weights of the pairs (unambiguous); 0: equally likely',
        NOT_NEGATIVE_REAL,
    )  # fmt: skip
    filtered: int = option(
        -1, 'language', 'k: removes the correlations above sub-trees of 2^k tokens; -1: none is removed',
        (lambda x: x >= -1, 'a whole number from 0 to num_layers, or -1'),
    )  # fmt: skip
    num_classes: int = option(
        0, 'language', 'symbols that the root can have, the first of them; 0: all num_features', NOT_NEGATIVE
    )  # fmt: skip
    seed_rules: int = option(12345, 'seeds', 'seed of the grammar', GENERATOR_SEED)
    seed_sample: int = option(67890, 'seeds', 'seed of the training and test sequences; seed_samples is the same', SEED)
    seed_model: int = option(11111, 'seeds', 'seed of the initial weights and of dropout', GENERATOR_SEED)

    regime: str = option(
        'online', 'data', 'online: every batch is new; offline: train_size sequences, reshuffled each epoch; '
        'population: the exact loss over all contexts, for small languages',
        choices=('online', 'offline', 'population'),
    )  # fmt: skip
    train_size: int = option(
        32768, 'data', 'size of the training set (regime offline); online it only names the files', POSITIVE
    )
    max_epochs: int = option(100, 'data', 'stop after so many passes over the training set (regime offline)', POSITIVE)
    batch_size: int = option(64, 'data', 'sequences in a batch', POSITIVE)
    accumulation: int = option(1, 'data', 'batches whose gradients are averaged in one step', POSITIVE)
    test_size: int = option(
        4096, 'data', 'sequences in run.test_batch; records need none, they use exact posteriors', POSITIVE
    )  # fmt: skip
    input_format: str = option('long', 'data', 'inputs as token indices or as one-hot rows', choices=('long', 'onehot'))
    whitening: int = option(
        0, 'data', '1: one-hot inputs minus 1/v, divided by their standard deviation', choices=(0, 1)
    )  # fmt: skip

    model: str = option(
        'transformer_mlm', 'model',
        'transformer_mlm: causal, predicts x_n alone; transformer_clm: every next token; transformer_bert: sees both '
        'sides; fcn: fully connected; cnn: a layer a level of the tree; lcn: a cnn without shared weights; '
        'gru: recurrent',
        choices=MODELS,
    )  # fmt: skip
    depth: int = option(1, 'model', 'layers of the model: blocks of a transformer, hidden layers of fcn', POSITIVE)
    embedding_dim: int = option(64, 'model', 'dimensions of the residual stream', POSITIVE)
    num_heads: int = option(1, 'model', 'attention heads; must divide embedding_dim', POSITIVE)
    ffwd_size: int = option(
        4, 'model', 'width of the feed-forward layers (and of fcn) over embedding_dim; 0: attention only', NOT_NEGATIVE
    )  # fmt: skip
    positions: str = option(
        'learned', 'model', 'how a transformer knows positions: learned embeddings, rope (rotary), or none',
        choices=('learned', 'rope', 'none'),
    )  # fmt: skip
    parametrisation: str = option(
        'standard', 'model', 'mup: maximal update, for which learning rates transfer over embedding_dim',
        choices=('standard', 'mup'),
    )  # fmt: skip
    dropout: float = option(0.0, 'model', 'probability of dropping an activation of a transformer', FRACTION)
    tie_weights: bool = option(False, 'model', 'the head uses the token embeddings')

    objective: str = option(
        'last', 'training', 'what the model predicts; last: x_n; all: every next token; root: the root from the '
        'leaves; masked: hidden tokens from the others; denoise: clean tokens from noisy ones',
        choices=tuple(OBJECTIVES),
    )  # fmt: skip
    mask_rate: float = option(
        0.0,
        'training',
        'fraction of the tokens that is hidden (objective masked); 0: drawn for each sequence',
        FRACTION,
    )
    noise: float = option(
        0.0, 'training', 'probability that a token is replaced (objective denoise); 0: drawn for each sequence',
        (lambda x: 0 <= x <= 1, 'a number from 0 to 1'),
    )  # fmt: skip
    optim: str = option('sgd', 'training', 'sgd with momentum, or adam (AdamW)', choices=('sgd', 'adam'))
    lr: float = option(1e-3, 'training', 'learning rate', POSITIVE_REAL)
    momentum: float = option(0.9, 'training', 'momentum of sgd', FRACTION)
    weight_decay: float = option(0.0, 'training', 'weight decay (decoupled for adam)', NOT_NEGATIVE_REAL)
    grad_clip: float = option(0.0, 'training', 'largest norm of the gradient; 0 for no limit', NOT_NEGATIVE_REAL)
    scheduler: str = option(
        'cosine-warmup', 'training', 'the learning rate over time; "" or none for a constant one',
        choices=('none', 'cosine', 'cosine-warmup'),
    )  # fmt: skip
    warmup_time: int = option(8, 'training', 'steps over which cosine-warmup raises the rate to lr', NOT_NEGATIVE)
    decay_time: int = option(262144, 'training', 'steps over which cosine lowers it to lr/10, constant after', POSITIVE)
    max_iters: int = option(30000, 'training', 'steps', POSITIVE)
    loss_threshold: float = option(
        1e-3, 'training', 'stop when the mean training loss of 128 steps is as low', NOT_NEGATIVE_REAL
    )  # fmt: skip
    dtype: str = option(
        'float32', 'training', 'bfloat16: matrix products in bfloat16 (autocast), losses in float32',
        choices=('float32', 'bfloat16'),
    )  # fmt: skip

    print_freq: int = option(1024, 'output', 'steps between two evaluations', POSITIVE)
    save_freq: int = option(
        2, 'output', 'checkpoints at steps spaced by 2^(1/save_freq), evaluated too',
        (lambda x: 1 <= x <= 1000, 'a whole number, 1 to 1000'),
    )  # fmt: skip
    bp_records: bool = option(
        False, 'output', 'records hold the divergences from BP_k, the best predictors of the filtered languages'
    )
    checkpoints: bool = option(True, 'output', 'keep the weights of every checkpoint')
    resume: str = option(
        'auto', 'output',
        'auto: go on where an interrupted run stopped; require: that or an error; restart: begin again at step 0',
        choices=('auto', 'require', 'restart'),
    )  # fmt: skip
    tracker: str = option(
        'none', 'output', 'program that is sent the records and the floors, where it is installed; wandb: offline',
        choices=('none', 'tensorboard', 'wandb', 'trackio'),
    )  # fmt: skip
    tensorboard: bool = option(False, 'output', 'the same as tracker=tensorboard, beside any other tracker')

    device: str = option(
        'auto', 'machine', 'auto (the first of cuda, mps and cpu that exists), cpu, cuda, cuda:1, mps',
        (lambda x: re.fullmatch(r'auto|(cpu|cuda|mps)(:\d+)?', x) is not None, 'auto, cpu, cuda, cuda:1 or mps'),
    )  # fmt: skip
    threads: int | str = option(
        'auto', 'machine', 'threads of the CPU; auto: one for small steps, else all cores',
        (lambda x: x == 'auto' or (x.isdecimal() and 1 <= int(x) <= 1024), 'auto, or a whole number, 1 to 1024'),
    )  # fmt: skip
    compile: str = option(
        'auto', 'machine', 'compile each step into one piece: off, on (faster, some seconds at the start), auto (on '
        'for long runs)', choices=('auto', 'on', 'off'),
    )  # fmt: skip
    deterministic: bool = option(False, 'machine', 'only deterministic algorithms, on GPUs too (slower)')

    def __post_init__(self) -> None:
        if self.num_tokens is None and isinstance(self.num_layers, int) and 1 <= self.num_layers <= 20:
            object.__setattr__(self, 'num_tokens', 2**self.num_layers)
        if self.scheduler == '':
            object.__setattr__(self, 'scheduler', 'none')
        if isinstance(self.threads, int) and not isinstance(self.threads, bool):
            object.__setattr__(self, 'threads', str(self.threads))
        for field in dataclasses.fields(self):
            _check_option(field, getattr(self, field.name))
        _check_together(self)

    @property
    def context_size(self) -> int:
        """The number of tokens that the model sees: num_tokens - 1, or all where the target is none of them."""
        return self.window - (self.objective in ('last', 'all'))

    @property
    def window(self) -> int:
        """The number of tokens of a sequence that count: num_tokens, which is set when a Config is made."""
        assert self.num_tokens is not None
        return self.num_tokens

    @property
    def num_inputs(self) -> int:
        """The number of symbols that an input can have: v, and one more for hidden tokens."""
        return self.num_features + (self.objective == 'masked')

    @property
    def num_outputs(self) -> int:
        """The number of symbols that a target can have: v, or num_classes of the root."""
        return self.num_classes or self.num_features if self.objective == 'root' else self.num_features

    @property
    def step_size(self) -> int:
        """The number of contexts in a step; in the regime population at most, for some may be impossible."""
        if self.regime != 'population':
            return self.batch_size * self.accumulation
        dense = self.num_features**self.context_size
        rhm = self.num_features * self.num_synonyms ** (2**self.num_layers - 1)
        return min(dense, rhm) if self.dataset == 'rhm' and self.filtered < 0 else dense

    @property
    def last_step(self) -> int:
        """The step at which the run ends unless it stops early: max_iters, or max_epochs in the offline regime."""
        if self.regime != 'offline':
            return self.max_iters
        epochs_end = math.ceil(self.max_epochs * self.train_size / (self.batch_size * self.accumulation))
        return min(self.max_iters, epochs_end)

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, for a file."""
        return dataclasses.asdict(self)

    def changes(self) -> dict[str, Any]:
        """The options that differ from their defaults; outname, which always does, is left out."""
        default = Config(num_layers=self.num_layers, outname=self.outname)
        names = [name for name in DEFAULTS if getattr(self, name) != getattr(default, name)]
        changed_depth = [] if self.num_layers == DEFAULTS['num_layers'] else ['num_layers']
        return {name: getattr(self, name) for name in DEFAULTS if name in names + changed_depth}

    def unused(self) -> dict[str, str]:
        """The options that have no use beside the others, whatever their values, and what they are for.

        Registered datasets and models may use any.
        """
        found = {}
        for name, (other, values) in _USES.items():
            chosen = getattr(self, other)
            registered = other in ('dataset', 'model') and chosen not in _OWN_DATASETS | _OWN_MODELS
            if chosen not in values and not registered:
                found[name] = f'{other}={" or ".join(values)}'
        if not self.zipf:
            found['zipf_levels'] = 'zipf above 0'
        return found

    def first_difference(self, stored: dict[str, Any]) -> str | None:
        """The first option whose stored value differs and would change the run; None when there is none.

        A run can be made longer: max_iters and max_epochs may be larger than the stored ones.
        """
        for name, value in self.to_dict().items():
            # Files of earlier versions lack the options that came later, which were at their defaults then.
            before = stored.get(name, value if name == 'num_tokens' else DEFAULTS[name])
            if name not in EXECUTION and before != value and not (name in LENGTH and before < value):
                return name
        return None


DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}


def format_value(value: Any) -> str:
    """A value for names and messages: short, and different for different values."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        value += 0.0  # -0.0 is 0.0
        return f'{value:g}' if float(f'{value:g}') == value else repr(value)
    return str(value)


def similar(name: str, names: Iterable[str], otherwise: str = 'see --help') -> str:
    """The remedy of an error about an unknown name: the nearest of the known names, or where they are listed."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f'did you mean {close[0]}?' if close else otherwise


_KINDS: dict[str, type] = {'int': int, 'int | None': int, 'int | str': str, 'float': float, 'str': str, 'bool': bool}
KIND_NAMES = {int: 'a whole number', float: 'a number', str: 'a text', bool: 'true or false'}


def kind_of(field: dataclasses.Field[Any]) -> type:
    """The type of the values of an option; texts for those that take other words too."""
    return _KINDS[str(field.type)]


def _check_option(field: dataclasses.Field[Any], value: Any) -> None:
    name, check, choices = field.name, field.metadata['check'], field.metadata['choices']
    if name == 'num_tokens' and value is None:
        return
    kind = kind_of(field)
    # An int will do for a float, a bool will not do for an int.
    good = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not good:
        raise ValueError(f'{name}={value!r} is not {KIND_NAMES[kind]}: give one')
    if choices and value not in choices:
        more = f', or register it first by init.register_{name}' if name in ('dataset', 'model') else ''
        raise ValueError(f'{name}={value!r} is unknown: use {" or ".join(str(c) for c in choices)}{more}')
    if kind is int and not abs(value) < 2**63:
        raise ValueError(f'{name}={value} is out of range: use a whole number below 2^63')
    if check is not None and not check[0](value):
        raise ValueError(f'{name}={value!r} is out of range: use {check[1]}')


def _check_together(config: Config) -> None:
    c = config
    if c.num_tokens is None or not 2 <= c.num_tokens <= 2**c.num_layers:
        raise ValueError(
            f'num_tokens={c.num_tokens} does not fit num_layers={c.num_layers}: use 2 to 2^num_layers={2**c.num_layers}'
        )
    if c.dataset == 'rhm' and c.num_synonyms > c.num_features:
        raise ValueError(f'num_synonyms={c.num_synonyms} exceeds num_features={c.num_features}: lower it')
    if c.zipf and c.dataset != 'rhm':
        raise ValueError(f"zipf={c.zipf:g} needs dataset='rhm': set it, or zipf=0")
    if c.zipf and (1 + c.zipf) * math.log10(c.num_synonyms) > 36:  # near the smallest number of float32
        raise ValueError(
            f'zipf={c.zipf:g} makes the last of num_synonyms={c.num_synonyms} productions rarer than 1e-36: lower it'
        )
    if not _are_levels(c.zipf_levels, c.num_layers):
        raise ValueError(
            f'zipf_levels={c.zipf_levels!r} does not name levels of rules: use leaves, all, or numbers from 0 '
            f'(the root) to num_layers - 1={c.num_layers - 1}, with commas between them'
        )
    if c.filtered > c.num_layers:
        raise ValueError(f'filtered={c.filtered} exceeds num_layers={c.num_layers}: lower it, or use -1')
    if c.num_classes > c.num_features:
        raise ValueError(f'num_classes={c.num_classes} exceeds num_features={c.num_features}: lower it')
    _check_model(c)
    _check_task(c)
    if c.regime == 'population':
        _check_population(c)
    if c.whitening and c.input_format != 'onehot':
        raise ValueError(f"whitening={c.whitening} needs input_format='onehot': set it, or whitening=0")
    if c.regime == 'offline' and c.batch_size * c.accumulation > c.train_size:
        raise ValueError(
            f'batch_size={c.batch_size} times accumulation={c.accumulation} exceeds train_size={c.train_size}: lower it'
        )
    if not os.path.basename(c.outname):
        raise ValueError(f'outname={c.outname!r} does not name a file: give a path such as results/my_run')
    if max(len(os.fsencode(part)) for part in c.outname.split(os.sep)) > 200:
        raise ValueError(f'outname={c.outname!r} has too long a name in it: use at most 200 bytes for each')
    if c.max_iters // c.print_freq > 10**6:
        raise ValueError(f'print_freq={c.print_freq} makes over a million records of max_iters={c.max_iters}: raise it')


def _are_levels(text: str, L: int) -> bool:
    return text in ('leaves', 'all') or all(word.isdecimal() and int(word) < L for word in text.split(','))


def _check_population(c: Config) -> None:
    """Raises ValueError for a run on the exact loss whose sum over contexts is too large, or is not known."""
    if c.objective not in _MOST_ENTRIES:
        raise ValueError(
            f"regime='population' does not sum over what objective={c.objective!r} draws: use last, all or root"
        )
    if c.accumulation != 1:
        raise ValueError(f"accumulation={c.accumulation} has no use with regime='population': leave it out")
    if c.step_size > MOST_CONTEXTS or c.num_features**c.window > _MOST_ENTRIES[c.objective]:
        raise ValueError(
            f'num_features={c.num_features} with {c.window} tokens has too many contexts for '
            "regime='population': lower num_features or num_layers, or use online"
        )


def _check_model(c: Config) -> None:
    """Raises ValueError for options that the model of the library does not have, or not together."""
    if c.model in TRANSFORMERS:
        if c.embedding_dim % c.num_heads:
            raise ValueError(
                f'num_heads={c.num_heads} does not divide embedding_dim={c.embedding_dim}: '
                'make one a multiple of the other'
            )
        if c.positions == 'rope' and c.embedding_dim // c.num_heads % 2:
            raise ValueError(
                f"positions='rope' turns pairs of dimensions: make embedding_dim / num_heads={c.embedding_dim}/"
                f'{c.num_heads} even'
            )
        if c.tie_weights and c.num_inputs != c.num_outputs:
            raise ValueError(
                f'tie_weights=True needs one symbol for each class, but objective={c.objective!r} has {c.num_inputs} '
                f'input symbols and {c.num_outputs} classes: leave it out'
            )
        return
    if c.model not in _OWN_MODELS:
        return
    if c.ffwd_size == 0:
        raise ValueError(f'ffwd_size=0 (attention only) is for transformers, not for model={c.model!r}: use 1 or more')
    for name in ('dropout', 'tie_weights', 'positions', 'parametrisation'):
        if getattr(c, name) != Config.__dataclass_fields__[name].default:
            raise ValueError(
                f'{name}={format_value(getattr(c, name))} is for transformers, not for model={c.model!r}: leave it out'
            )
    if c.model not in ('cnn', 'lcn'):
        return
    if c.num_tokens != 2**c.num_layers:
        raise ValueError(
            f'num_tokens={c.num_tokens} does not fit model={c.model!r}, which has the shape of the tree: leave it out'
        )
    if c.depth != c.num_layers:
        raise ValueError(
            f'depth={c.depth} does not fit model={c.model!r}, which has a layer for each level of the tree: '
            f'use depth={c.num_layers}'
        )


def _check_task(c: Config) -> None:
    """Raises ValueError for an objective that the model cannot have, and for options that it does not use."""
    fitting = OBJECTIVES[c.objective]
    if c.model in _OWN_MODELS and c.model not in fitting:
        needs = {'all': 'logits at all positions'}.get(c.objective, 'a model that sees both sides of a token')
        raise ValueError(
            f'objective={c.objective!r} needs {needs}: use model={" or ".join(map(repr, fitting))}, not {c.model!r}'
        )
    if c.objective not in ('last', 'all') and c.num_tokens != 2**c.num_layers:
        raise ValueError(f'num_tokens={c.num_tokens} does not fit objective={c.objective!r}: leave it out')
    if c.mask_rate and c.objective != 'masked':
        raise ValueError(f"mask_rate={c.mask_rate:g} needs objective='masked': set it, or mask_rate=0")
    if c.noise and c.objective != 'denoise':
        raise ValueError(f"noise={c.noise:g} needs objective='denoise': set it, or noise=0")
