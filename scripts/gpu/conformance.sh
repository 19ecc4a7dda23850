#!/usr/bin/env bash
# Runs on a machine with a GPU: the conformance suite on it, with test binaries that were built elsewhere.
#
#     cargo test -p regraft-conformance --no-run
#     REGRAFT_FIXTURES=crates/conformance/fixtures scripts/gpu/conformance.sh FOLDER_FOR_LOGS BINARY...
set -uo pipefail

logs=$1
shift
mkdir -p "$logs"
prefix=$(python3 -c 'import sys; print(sys.prefix)' 2>/dev/null || true)
export VIRTUAL_ENV=${VIRTUAL_ENV:-$prefix} REGRAFT_TEST_DEVICE=${REGRAFT_TEST_DEVICE:-cuda:0}

failed=0
for binary in "$@"; do
    name=$(basename "$binary")
    start=$SECONDS
    timeout 150 "$binary" --test-threads=4 >"$logs/$name.txt" 2>&1
    status=$?
    grep '^test result' "$logs/$name.txt" || tail -n 3 "$logs/$name.txt"
    echo "$name: status $status in $((SECONDS - start)) s"
    [[ $status -eq 0 ]] || failed=1
done
exit $failed
