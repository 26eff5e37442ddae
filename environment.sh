# Sourced by code.sh and test.sh: finds a Python with the packages of a requirements file, or makes one in .venv.
# Packages are installed by uv where it is installed, and by pip otherwise, or where UV is empty: UV= bash code.sh
#
#   find_python FILE MODULES...   sets $python; installs FILE into .venv when `import MODULES` fails everywhere

newer_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 or newer was found: install one, or name it as PYTHON=/path/to/python3" >&2
    return 2
}

# new_venv PYTHON       makes .venv
# install ARGUMENTS...  installs packages into it
if [ "${UV-$(command -v uv || true)}" ]; then
    # uv does not repair an environment whose Python is gone.
    new_venv() { rm -rf .venv && "${UV:-uv}" venv --quiet --seed --python "$1" .venv; }
    install() { "${UV:-uv}" pip install --quiet --python .venv/bin/python "$@"; }
else
    new_venv() { "$1" -m venv .venv; }
    install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
fi

make_venv() {
    local file=$1 base
    base=$(newer_python) || exit 2
    # The stamp is written last: an installation that was broken off begins again.
    local stamp=.venv/.installed-with-package-${file%.txt}
    if [ -x .venv/bin/python ] && cat requirements*.txt | cmp -s - "$stamp"; then
        return
    fi
    echo "setting up .venv with $file (once; some minutes, depending on the network)"
    if [ ! -w . ]; then
        echo "error: $PWD cannot be written, and packages are installed there: copy the project, or make it yours" >&2
        exit 2
    fi
    [ -x .venv/bin/python ] || new_venv "$base" || {
        local remedy="see the lines above"
        "$base" -c 'import venv, ensurepip' 2>/dev/null || remedy="install its venv module (on Debian: python3-venv)"
        echo "error: $base cannot make a virtual environment: $remedy" >&2
        exit 2
    }
    # The package itself goes in too, so that its imports work from every folder.
    install -r "$file" && install --no-deps -e . || {
        echo "error: the packages of $file could not be installed into .venv: see the lines above" >&2
        exit 2
    }
    cat requirements*.txt >"$stamp"
}

find_python() {
    local file=$1 modules=$2
    local recent="sys.exit(sys.version_info < (3, 10) or [*map(int, torch.__version__.split('.')[:2])] < [2, 6])"
    if [ ! -e .venv ] && "${PYTHON:-python3}" -c "import $modules, sys; $recent" 2>/dev/null; then
        python=${PYTHON:-python3}
    else
        make_venv "$file"
        python=.venv/bin/python
    fi
}
