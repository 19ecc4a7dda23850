#!/usr/bin/env bash
# Tests `regraft serve` with the clients that people use (tritonclient, over HTTP and gRPC): makes their Python environment once in
# the user's cache directory, about 200 MB, under a name that holds a hash of its requirements, and runs tests/serve_clients.py.
# The command is REGRAFT_BIN, or target/release/regraft.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=requirements/serve-clients.txt
base_python=${PYTHON:-python3}
cache=${REGRAFT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/regraft}

fail() {
    echo "error: $*" >&2
    exit 1
}

"$base_python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base_python cannot make virtual environments (Debian: apt-get install python3 python3-venv)"

# The interpreter is part of the key: an environment of another Python version cannot be reused.
hash=$({
    cat "$requirements"
    "$base_python" -c 'import sys; print(sys.version_info[:2])'
} | sha256sum | cut -c1-12)
venv=$cache/serve-clients-$hash
marker=$venv/.complete

mkdir -p "$cache"
# Two runs at once: the second waits here and then finds the marker.
exec 9>"$venv.lock"
if command -v flock >/dev/null; then
    flock 9
fi
if [[ ! -f $marker ]]; then
    echo "making $venv (half a minute, about 200 MB)"
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
    # Written last: without it the next run starts again from nothing.
    touch "$marker"
fi
exec 9>&-

binary=${REGRAFT_BIN:-${CARGO_TARGET_DIR:-target}/release/regraft}
[[ -x $binary ]] || fail "there is no $binary (make build)"
REGRAFT_BIN=$(realpath "$binary") "$venv/bin/python" -m pytest --noconftest -q -p no:cacheprovider tests/serve_clients.py "$@"
