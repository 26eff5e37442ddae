"""The default tests on other versions of Python and torch. `python -m nox` runs those that are installed.

    python -m nox --list                      # what there is
    python -m nox -s 'tests-3.12(torch=2.6)'  # one of them

`bash test.sh` and continuous integration use the pinned versions of requirements-dev.txt; here the ranges of
pyproject.toml are tried at both ends.
"""

from __future__ import annotations

import nox

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = 'uv|virtualenv'

OLDEST, NEWEST = 'torch==2.6.*', 'torch'


@nox.session(python=['3.10', '3.11', '3.12', '3.13'])
@nox.parametrize('torch', [nox.param(OLDEST, id='torch=2.6'), nox.param(NEWEST, id='torch=newest')])
def tests(session: nox.Session, torch: str) -> None:
    """The default tests, without style and types."""
    # Without the limits of [tool.uv] in pyproject.toml, which are those of the pinned versions.
    session.install(torch, '-e', '.[test]', env={'UV_NO_CONFIG': '1'})
    words = session.posargs or ['-m', 'not slow', '--numprocesses', 'auto', '--maxprocesses', '4']
    session.run('python', '-m', 'pytest', '--dist', 'loadgroup', *words)
