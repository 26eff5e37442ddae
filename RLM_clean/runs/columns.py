"""What the numbers of runs are called in tables: the unit and the meaning of each column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from RLM_clean.config import Config
from RLM_clean.runs.files import Record

# Unit and meaning of what is measured. A number without a unit has none, as a probability or a count.
MEASURED = {
    't': ('', 'step'),
    'trainloss': ('nat', 'training loss'),
    'testloss': ('nat', 'test loss'),
    'testacc': ('', 'accuracy'),
    'excess': ('nat', 'excess over the floor'),
    'lr': ('', 'learning rate'),
    'learning_rate': ('', 'learning rate of the step'),
    'seconds': ('s', 'time of training and evaluation'),
    'entropy': ('nat', 'floor of the whole context'),
    'marginal': ('nat', 'floor without context'),
    'step': ('', 'last step'),
    'excess_error': ('nat', 'standard error of the last excess'),
    'best_loss': ('nat', 'test loss of the best model'),
    'best_excess': ('nat', 'excess of the best model'),
    'best_step': ('', 'step of the best model'),
    'early_stop': ('', 'whether the run stopped early'),
    'run': ('', 'name of the run'),
    'status': ('', 'status of the run'),
    'repetition': ('', 'repetition'),
}
# Options whose names say less than the words of the field. Others are called by their names.
OPTIONS = {
    'num_features': 'number of symbols v',
    'num_layers': 'depth of the tree L',
    'num_tokens': 'tokens that count',
    'num_synonyms': 'productions of each symbol m',
    'beta': 'inverse temperature beta',
    'train_size': 'sequences in the training set',
    'depth': 'layers of the model',
    'embedding_dim': 'dimensions of the residual stream',
}


def flat(record: Record) -> dict[str, Any]:
    """A record whose values are single numbers: `bp`, a list, becomes bp_0, bp_1, ..."""
    numbers = {name: value for name, value in record.items() if not isinstance(value, list)}
    lists = {name: value for name, value in record.items() if isinstance(value, list)}
    return numbers | {f'{name}_{k}': value for name, values in lists.items() for k, value in enumerate(values)}


def unit(name: str) -> str:
    """The unit of a column, 'nat' or 's'; '' for a number without unit, and for a text."""
    return 'nat' if _numbered(name) else MEASURED.get(name, ('', ''))[0]


def meaning(name: str) -> str:
    """What a column is, in a few words."""
    if name in MEASURED:
        return MEASURED[name][1]
    return _numbered(name) or OPTIONS.get(name, name.replace('_', ' '))


def _numbered(name: str) -> str:
    """What floor_3 or bp_2 is, in nats; '' for another column."""
    head, _, k = name.partition('_')
    if not k.isdecimal():
        return ''
    tokens = f'{k} token{"" if k == "1" else "s"}'
    return {'floor': f'floor from {tokens}, H_{k}', 'bp': f'KL(BP_{k} || model)'}.get(head, '')


def help_of(name: str) -> str:
    """The help of an option; '' for a name that is not one."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    return fields[name].metadata['help'] if name in fields else ''


def described(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """{'units': {column: unit}, 'long_names': {column: meaning}}, for the `attrs` of a data frame.

    Columns without a unit are left out of the units.
    """
    names = list(names)
    units = {name: unit(name) for name in names if unit(name)}
    return {'units': units, 'long_names': {name: meaning(name) for name in names}}
