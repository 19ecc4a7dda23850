# Sourced by the scripts that make Python environments: where they are kept, under names that hold a hash of what is in them.
# shellcheck shell=bash

cache=${REGRAFT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/regraft}

fail() {
    echo "error: $*" >&2
    exit 1
}

# keyed NAME PYTHON FILE...: the folder for what these requirement files list. The interpreter is part of the key: packages
# with native code, and environments, are for one version of Python.
keyed() {
    local name=$1 python=$2 hash
    shift 2
    hash=$({
        cat "$@"
        "$python" -c 'import sys; print(sys.version_info[:2])'
    } | sha256sum | cut -c1-12) || return
    echo "$cache/$name-$hash"
}

# locked FOLDER: two runs at once, the second waits here and then finds the folder made. The kernel drops the lock of a killed
# run.
locked() {
    mkdir -p "$cache"
    exec 9>"$1.lock"
    if command -v flock >/dev/null; then
        flock 9
    fi
}

# has_python PYTHON: fails where there is none.
has_python() {
    command -v "$1" >/dev/null || fail "$1 not found (Debian: apt-get install python3 python3-venv)"
}

# makes_environments PYTHON: fails where it cannot.
makes_environments() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$1 cannot make virtual environments (Debian: apt-get install python3-venv)"
}
