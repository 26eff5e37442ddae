"""The names of runs and of sweeps: what they are, and what of it differs from the defaults."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from RLM_clean.config import Config, format_value

# How the name of a run says that an option differs from its default: a short code and the value, for texts the value
# alone, for switches a word. In this order; what is left out is in the name anyway, or is not part of what a run is.
NAME_CODES = {
    'num_tokens': 'n', 'beta': 'b', 'num_synonyms': 'm', 'zipf': 'zipf', 'zipf_levels': 'at', 'sigma': 's',
    'filtered': 'k', 'num_classes': 'nc', 'regime': '', 'objective': '', 'mask_rate': 'hidden', 'noise': 'noise',
    'model': '', 'positions': 'pos', 'parametrisation': '', 'depth': 'depth', 'embedding_dim': 'd',
    'num_heads': 'heads', 'ffwd_size': 'ff', 'tie_weights': 'tied', 'dropout': 'drop', 'optim': '', 'lr': 'lr',
    'momentum': 'mom', 'weight_decay': 'wd', 'grad_clip': 'clip', 'scheduler': '', 'warmup_time': 'warm',
    'decay_time': 'decay', 'batch_size': 'bs', 'accumulation': 'acc', 'input_format': '', 'whitening': 'white',
    'dtype': '', 'test_size': 'test', 'loss_threshold': 'stop', 'print_freq': 'print', 'save_freq': 'save',
    'bp_records': 'bp', 'checkpoints': 'ckpt', 'deterministic': 'det', 'seed_rules': 'sr', 'seed_sample': 'ss',
    'seed_model': 'sm',
}  # fmt: skip

_LONGEST_CHANGES = 120
# Unlike a run, a sweep cannot be made longer: its length is part of its name.
_LENGTH_CODES = {'max_iters': 'it', 'max_epochs': 'ep'}


def run_name(config: Config, rep: str = '1') -> str:
    """The name of a run: {dataset}_{v}L{L}_{rules}_ts{train_size}, what differs from the defaults, and `rep`.

    `rules` is b{beta}, for the Random Hierarchy Model m{num_synonyms}. Two runs that differ in more than their length,
    or in where and how they are computed, have different names.
    """
    c = config
    rules = _rules_option(c.dataset)
    parts = [c.dataset, f'{c.num_features}L{c.num_layers}', NAME_CODES[rules] + format_value(getattr(c, rules))]
    parts.append(f'ts{c.train_size}')
    changes = {name: value for name, value in config.changes().items() if name != rules}
    return '_'.join([*parts, *_name_parts(changes), rep])


def _name_parts(changes: dict[str, Any]) -> list[str]:
    """What the name of a run says of options that differ from their defaults, in the order of NAME_CODES."""
    parts = []
    for name, code in NAME_CODES.items():
        if name in changes:
            value = changes[name]
            if isinstance(value, bool):
                parts.append(code if value else f'no{code}')
            else:
                parts.append(code + format_value(value).removeprefix('transformer_'))
    said = '_'.join(parts)
    if len(said) > _LONGEST_CHANGES:  # file systems allow names of 255 bytes
        return [said[: _LONGEST_CHANGES - 9].rstrip('_'), hashlib.sha256(said.encode()).hexdigest()[:8]]
    return parts


def first_name(values: Mapping[str, str]) -> str:
    """{dataset}_{v}L{L}_{rules}_ts{train_size}_{rep}: the name that the first version gave to a run."""
    v = values
    return f'{v["dataset"]}_{v["num_features"]}L{v["num_layers"]}_{_rules(v)}_ts{v["train_size"]}_{v["rep"]}'


def sweep_name(values: Mapping[str, str], varied: Sequence[str], changes: Mapping[str, Any]) -> str:
    """The name of a sweep: what its runs share, as in `run_name`, then the options that vary.

    `changes` are the options that its runs share and that differ from their defaults.
    """
    v = values
    size = '' if 'num_features' in varied else v['num_features']
    size += '' if 'num_layers' in varied else f'L{v["num_layers"]}'
    parts = ['languages' if 'dataset' in varied else v['dataset'], size]
    parts += [] if _rules_option(v['dataset']) in varied else [_rules(v)]
    parts += [] if 'train_size' in varied else [f'ts{v["train_size"]}']
    parts += _name_parts({name: value for name, value in changes.items() if name != _rules_option(v['dataset'])})
    parts += [f'{code}{changes[name]}' for name, code in _LENGTH_CODES.items() if name in changes]
    return '_'.join([part for part in parts if part] + [check_rep(v['rep']), 'over', *(varied or ['seeds'])])


def check_rep(rep: str) -> str:
    """The number of a repetition, which is part of a name. Raises ValueError for what cannot be one."""
    if not re.fullmatch(r'[\w.-]+', rep):
        raise ValueError(f'rep={rep} is not valid: use a number; for several runs with other seeds use repetitions=2')
    return rep


def _rules_option(dataset: str) -> str:
    """The option that every name says the rules by."""
    return {'rhm': 'num_synonyms', 'unambiguous': 'sigma'}.get(dataset, 'beta')


def _rules(values: Mapping[str, str]) -> str:
    option = _rules_option(values['dataset'])
    code, value = NAME_CODES[option], values[option]
    # 2.0 and 2 are the same language, and have the same name.
    return f'{code}{float(value):g}' if re.fullmatch(r'[0-9]+\.?[0-9]*', value) else f'{code}{value}'
