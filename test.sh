#!/usr/bin/env bash
# Sets up .venv when it is missing, then checks style, types, the arrows between the packages, and runs the tests:
#
#   bash test.sh            what takes up to five minutes on two cores
#   bash test.sh --all      everything: also SLURM, killed processes, notebooks, every block of the documents
#   bash test.sh --coverage the share of the lines that the fast tests reach; measuring slows them by a third
#   bash test.sh -k resume  the tests with that word in their names; other arguments go to pytest likewise
set -euo pipefail
cd "$(dirname "$0")"
if [ "${1:-}" = --help ]; then
    sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${0##*/}"
    exit
fi
source ./environment.sh

make_venv requirements-dev.txt
python=.venv/bin/python

echo "== ruff" && "$python" -m ruff check . && "$python" -m ruff format --check .
echo "== mypy" && "$python" -m mypy
echo "== import-linter" && .venv/bin/lint-imports --no-logo

echo "== pytest"
# As many tests at a time as there are cores, four at most.
parallel=(--numprocesses auto --maxprocesses 4 --dist loadgroup)
case ${1:-} in
    --all) "$python" -m pytest "${parallel[@]}" --durations 20 "${@:2}" ;;
    --coverage)
        rm -f .coverage .coverage.*
        "$python" -m coverage run -m pytest "${parallel[@]}" -m 'not slow' "${@:2}"
        "$python" -m coverage combine --quiet
        "$python" -m coverage report --skip-covered
        ;;
    '') "$python" -m pytest "${parallel[@]}" -m 'not slow' ;;
    *) "$python" -m pytest "$@" ;;
esac
