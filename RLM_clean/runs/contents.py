"""What the files of a run hold: a description of each file, and the check of a file against its description.

A form is a type (float takes whole numbers too), or is built from forms as a value is: a dict with the form of each
key (a key that ends in ? may be missing; a key that is a type stands for all entries), a list with the form of its
entries ([form, ...] has at least one), or a tuple of fixed length. A set holds alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from RLM_clean.config import Config
from RLM_clean.runs.storage import REMEDY, UnreadableFileError

Form = Any

PLAIN = frozenset({bool, int, float, str, type(None)})
WEIGHTS = {str: Tensor}
RECORD = {
    't': int, 'trainloss': float, 'testloss': float, 'testacc': float, 'excess': float, 'lr': float, 'seconds': float,
    'bp?': [float],
}  # fmt: skip
# Files of the first version have no excess here: they chose the best model by its test loss.
BEST = {'step': int, 'loss': float, 'excess?': float, 'model': WEIGHTS}
# Files of the first version do not say on how many sampled contexts a floor rests.
LOSSES = {'entropy': float, 'marginal': float, 'floors': {int: (float, float)}, 'contexts?': {int: int}}

CONFIG = {'config': {str: PLAIN}, 'machine?': {str: PLAIN}, 'rules': Tensor, **LOSSES}
CHECKPOINT = {
    'model': WEIGHTS,
    'state': RECORD,
    'step': int,
    'resume?': {
        'dynamics': [RECORD, ...],
        'best': BEST,
        'since_record': [float],
        'recent': [float],
        'seconds': float,
        'stopped_early': bool,
        'excess_error': float,
        # Only at the end of a run: what its last record has changed, as it was before.
        'before_record?': {'best': {str: object}, 'since_record': [float], 'excess_error': float},
        'optimizer': {'state': {int: {str: object}}, 'param_groups': [{str: object}, ...]},
    },
}
FINAL = {
    'config': {str: PLAIN},
    'output': {
        **LOSSES, 'dynamics': [RECORD, ...], 'step': int, 'early_stop': bool, 'excess_error': float, 'machine?': dict,
    },
    'model': WEIGHTS,
    'best': BEST,
}  # fmt: skip


def check(content: dict[str, Any], form: Form, path: Path) -> None:
    """Raises UnreadableFileError, with the first difference, for the content of a file that does not have its form."""
    found = difference(content, form)
    if found is not None:
        raise foreign(path, found)


def is_end(output: dict[str, Any], last_step: int) -> bool:
    """Whether the `output` of a final file is that of a run of this length, and not that of a shorter one."""
    return bool(output['early_stop']) or output['step'] >= last_step


def check_rules(rules: Tensor, config: Config, path: Path) -> None:
    """Raises UnreadableFileError for rules that are not probabilities, or do not have the shape of the options.

    That is `(v, v, v)` for an RLM, `(L, v, v, v)` for an RHM, and either for a registered dataset.
    """
    v, shape = config.num_features, tuple(rules.shape)
    shared: tuple[int, ...] = (v, v, v)
    by_level: tuple[int, ...] = (config.num_layers, v, v, v)
    allowed = {'rlm': (shared,), 'unambiguous': (shared,), 'rhm': (by_level,)}.get(config.dataset, (shared, by_level))
    if shape not in allowed:
        raise foreign(path, f"'rules' have shape {shape}, not {' or '.join(str(s) for s in allowed)}")
    if rules.layout != torch.strided or not rules.is_floating_point():
        raise foreign(path, f"'rules' are {rules.dtype}, not torch.float32")
    # The second comparison is false for NaN.
    sums = rules.flatten(-2).sum(-1)
    if rules.min() < 0 or not (sums - 1).abs().max() < 1e-3:
        raise foreign(path, "'rules' are not probabilities")


def check_same_model(part: dict[str, Any], whole: dict[str, Any], path: Path) -> None:
    """Raises UnreadableFileError when the weights of the best model do not fit those of the last one in a file."""
    last, best = ({name: x.shape for name, x in content['model'].items()} for content in (whole, part))
    if last != best:
        raise foreign(path, "'best' has the weights of another model")


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Gives a model the weights of a file. Raises UnreadableFileError when they belong to another model."""
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise foreign(path, 'it has the weights of another model') from None


def foreign(path: Path, why: str) -> UnreadableFileError:
    """The error of a file that is not what its name says."""
    return UnreadableFileError(f'{path} is not a file of this run ({why}): {REMEDY}', damaged=False)


def difference(value: Any, form: Form, name: str = 'it') -> str | None:
    """The first difference between a value and a form, such as "it lacks 'rules'"; None when there is none."""
    if isinstance(form, (set, frozenset)):
        fits = any(difference(value, alternative) is None for alternative in form)
        return None if fits else f'{name} is {_article(type(value))}'
    kind = form if isinstance(form, type) else type(form)
    if not _has_type(value, kind):
        return f'{name} is {_article(type(value))}, not {_article(kind)}'
    if isinstance(form, dict):
        missing = [key for key in form if isinstance(key, str) and not key.endswith('?') and key not in value]
        if missing:
            return f'{name} lacks {missing[0]!r}'
    if isinstance(form, list) and form[-1] is ... and not value:
        return f'{name} is empty'
    if isinstance(form, tuple) and len(value) != len(form):
        return f'{name} has {len(value)} entries, not {len(form)}'
    parts = (difference(part, part_form, part_name) for part, part_form, part_name in _parts(value, form, name))
    return next((found for found in parts if found is not None), None)


def _has_type(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _parts(value: Any, form: Form, name: str) -> Iterator[tuple[Any, Form, str]]:
    """The parts of a value with the form and the name of each."""
    if isinstance(form, dict):
        for key, part in form.items():
            if isinstance(key, type):
                yield from ((entry, key, f'a key of {name}') for entry in value)
                yield from ((entry, part, _entry(name, entry_key)) for entry_key, entry in value.items())
            elif (plain := key.removesuffix('?')) in value:
                yield value[plain], part, _entry(name, plain)
    elif isinstance(form, list):
        yield from ((entry, form[0], f'{name}[{i}]') for i, entry in enumerate(value))
    elif isinstance(form, tuple):
        yield from ((entry, part, f'{name}[{i}]') for i, (entry, part) in enumerate(zip(value, form, strict=True)))


def _entry(name: str, key: Any) -> str:
    """How messages call an entry of a dict: dynamics[3]['lr'], without a word for the file itself."""
    return str(key) if name == 'it' else f'{name}[{key!r}]'


def _article(kind: type) -> str:
    name = 'None' if kind is type(None) else kind.__name__
    return name if name == 'None' else f'{"an" if name[0] in "aeiou" else "a"} {name}'
