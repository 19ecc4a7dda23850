#!/usr/bin/env bash
# Tests a fleet on Ray Serve (regraft.serve.ray) on a Ray cluster of this machine: makes its Python environment once in the
# user's cache directory, about 500 MB, under a name that holds a hash of its requirements, and runs tests/fleet_ray.py.
# The command is REGRAFT_BIN, or target/release/regraft; the package is found through PYTHONPATH, or in target/python.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

python=$(scripts/small-env.sh fleet requirements/fleet.txt "500 MB" | tee >(cat >&2) | tail -n 1)

target=${CARGO_TARGET_DIR:-target}
binary=${REGRAFT_BIN:-$target/release/regraft}
[[ -x $binary ]] || fail "there is no $binary (make build)"
package=${PYTHONPATH:-$(realpath -m "$target")/python}
PYTHONPATH=$package "$python" -c 'import regraft' || fail "there is no package regraft in $package (make python)"
# Ray tells its makers how it is used unless it is asked not to.
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0 OMP_NUM_THREADS=1
# The workers import the test's classes.
REGRAFT_BIN=$(realpath "$binary") PYTHONPATH=$package:$PWD/tests \
    "$python" -W ignore -m pytest --noconftest -q -p no:cacheprovider -W ignore tests/fleet_ray.py "$@"
