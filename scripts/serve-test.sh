#!/usr/bin/env bash
# Tests `regraft serve` with the clients that people use (tritonclient, over HTTP and gRPC): makes their Python environment once in
# the user's cache directory, about 200 MB, under a name that holds a hash of its requirements, and runs tests/serve_clients.py.
# The command is REGRAFT_BIN, or target/release/regraft.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

python=$(scripts/small-env.sh serve-clients requirements/serve-clients.txt "200 MB" | tee >(cat >&2) | tail -n 1)

binary=${REGRAFT_BIN:-${CARGO_TARGET_DIR:-target}/release/regraft}
[[ -x $binary ]] || fail "there is no $binary (make build)"
REGRAFT_BIN=$(realpath "$binary") "$python" -m pytest --noconftest -q -p no:cacheprovider tests/serve_clients.py "$@"
