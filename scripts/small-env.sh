#!/usr/bin/env bash
# Makes (once) a small Python environment in the user's cache directory, under a name that holds a hash of its requirements.
#
#     python=$(scripts/small-env.sh NAME REQUIREMENTS SIZE | tail -n 1)
#
# SIZE is said to the reader, such as "140 MB". The last line of stdout is the path of its python.
set -euo pipefail

name=$1
requirements=$2
size=$3
base_python=${PYTHON:-python3}
cache=${REGRAFT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/regraft}

fail() {
    echo "error: $*" >&2
    exit 1
}

command -v "$base_python" >/dev/null || fail "$base_python not found (Debian: apt-get install python3 python3-venv)"
"$base_python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base_python cannot make virtual environments (Debian: apt-get install python3-venv)"

# The interpreter is part of the key: an environment of another Python version cannot be reused.
hash=$({
    cat "$requirements"
    "$base_python" -c 'import sys; print(sys.version_info[:2])'
} | sha256sum | cut -c1-12)
venv=$cache/$name-$hash
marker=$venv/.complete

mkdir -p "$cache"
# Two runs at once: the second waits here and then finds the marker.
exec 9>"$venv.lock"
if command -v flock >/dev/null; then
    flock 9
fi
if [[ ! -f $marker ]]; then
    echo "making $venv (half a minute, about $size)"
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
    # Written last: without it the next run starts again from nothing.
    touch "$marker"
fi
echo "$venv/bin/python"
