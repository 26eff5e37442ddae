"""What the columns of tables are called: each has a meaning, losses a unit, and a missing package a remedy."""

from __future__ import annotations

import dataclasses

from RLM_clean.config import Config
from RLM_clean.runs import columns, contents


def test_every_key_of_a_record_has_a_meaning_and_losses_are_in_nats() -> None:
    names = [name for name in contents.RECORD if not name.endswith('?')]
    assert all(columns.meaning(name) for name in names)
    assert {name: columns.unit(name) for name in names if columns.unit(name)} == {
        'trainloss': 'nat', 'testloss': 'nat', 'excess': 'nat', 'seconds': 's',
    }  # fmt: skip
    assert set(names) <= set(columns.MEASURED)


def test_floors_and_divergences_say_their_number() -> None:
    assert [columns.meaning(f'floor_{k}') for k in (1, 3)] == ['floor from 1 token, H_1', 'floor from 3 tokens, H_3']
    assert columns.meaning('bp_2') == 'KL(BP_2 || model)' and columns.unit('bp_2') == columns.unit('floor_1') == 'nat'


def test_an_option_is_not_taken_for_something_measured() -> None:
    """Each option has words of its own or its name, none has a unit, and the words are for options that exist."""
    options = {field.name for field in dataclasses.fields(Config)}
    assert set(columns.OPTIONS) <= options and options & set(columns.MEASURED) == {'lr'}
    assert columns.meaning('lr') == 'learning rate'
    assert not any(columns.unit(name) for name in options) and all(columns.help_of(name) for name in options)
    assert (columns.meaning('grad_clip'), columns.help_of('excess')) == ('grad clip', '')


def test_lists_of_a_record_are_spread() -> None:
    record = {'t': 3, 'bp': [0.5, 0.25], 'excess': 1.0}
    assert columns.flat(record) == {'t': 3, 'excess': 1.0, 'bp_0': 0.5, 'bp_1': 0.25}
