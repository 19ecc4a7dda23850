#!/usr/bin/env bash
# Tests `regraft serve` with the clients that people use (tritonclient's and KServe's, over HTTP and gRPC), and what is in deploy/
# with KServe's models: makes their Python environment once in the user's cache directory, about 550 MB, under a name that holds a
# hash of its requirements, and runs tests/serve_clients.py and tests/serve_kserve.py.
# The command is REGRAFT_BIN, or target/release/regraft.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

python=$(scripts/small-env.sh serve-clients requirements/serve-clients.txt "550 MB" | tee >(cat >&2) | tail -n 1)

binary=${REGRAFT_BIN:-${CARGO_TARGET_DIR:-target}/release/regraft}
[[ -x $binary ]] || fail "there is no $binary (make build)"
export REGRAFT_BIN
REGRAFT_BIN=$(realpath "$binary")
# In processes of their own: the messages of both clients have the same names.
for test in tests/serve_clients.py tests/serve_kserve.py; do
    "$python" -W ignore -m pytest --noconftest -q -p no:cacheprovider -W ignore "$test" "$@"
done
