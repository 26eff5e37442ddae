#!/usr/bin/env bash
# Sets up .venv when it is missing, then checks style and types and runs the tests. Arguments go to pytest:
#
#   bash test.sh                  everything
#   bash test.sh -m 'not slow'    what takes a minute
#   bash test.sh -k resume        the tests with that word in their names
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh

make_venv requirements-dev.txt
python=.venv/bin/python
if ! "$python" -c 'import importlib.metadata as m; m.version("rlm-clean")' 2>/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
fi

echo "== ruff" && "$python" -m ruff check . && "$python" -m ruff format --check .
echo "== mypy" && "$python" -m mypy
echo "== pytest"
if [ $# -gt 0 ]; then
    "$python" -m pytest "$@"
else
    # As many tests at a time as there are cores, four at most.
    rm -f .coverage .coverage.*
    "$python" -m coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup
    "$python" -m coverage combine --quiet
    "$python" -m coverage report --skip-covered
fi
