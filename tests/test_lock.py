"""uv.lock: it holds the pins of the requirements files, and was written after the last change of the dependencies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import ROOT

tomllib = pytest.importorskip('tomllib')


def read(name: str) -> dict[str, Any]:
    with (ROOT / name).open('rb') as file:
        return tomllib.load(file)


def test_the_lock_has_the_pinned_versions() -> None:
    locked: dict[str, set[str]] = {}
    for package in read('uv.lock')['package']:
        locked.setdefault(package['name'], set()).add(package.get('version', ''))
    pinned: dict[str, set[str]] = {}
    for name in ('requirements.txt', 'requirements-dev.txt'):
        for package, version in re.findall(r'^([\w-]+)==([^;\s]+)', (ROOT / name).read_text(), re.MULTILINE):
            pinned.setdefault(package, set()).add(version)
    assert len(pinned) > 20
    assert {name: locked.get(name) for name in pinned} == pinned


def test_the_lock_has_the_ranges_of_the_project() -> None:
    project = read('pyproject.toml')['project']
    wanted = [('', word) for word in project['dependencies']]
    wanted += [(extra, word) for extra, words in project['optional-dependencies'].items() for word in words]
    (package,) = [package for package in read('uv.lock')['package'] if package['name'] == project['name']]
    found = {
        (row['name'], *re.findall(r"extra == '([\w-]+)'", row.get('marker', '')), *sorted(ranges(row)))
        for row in package['metadata']['requires-dist']
    }
    assert {(name_of(word), *([extra] if extra else []), *sorted(ranges(word))) for extra, word in wanted} == found


def name_of(requirement: str) -> str:
    """The package that a line asks for: mkdocs for 'mkdocs>=1.6,<2'."""
    return re.split(r'[^\w-]', requirement)[0]


def ranges(requirement: str | dict[str, Any]) -> list[str]:
    """The versions that a line asks for, or one of the lock: ['>=1.6', '<2']."""
    text = requirement.partition(';')[0] if isinstance(requirement, str) else requirement.get('specifier', '')
    return re.findall(r'[<>=]+[^,\s]+', text)


def test_the_lock_names_public_hosts_only() -> None:
    hosts = set(re.findall(r'\w+://([^/"]+)', (ROOT / 'uv.lock').read_text()))
    assert hosts == {'pypi.org', 'files.pythonhosted.org'}
