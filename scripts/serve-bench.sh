#!/usr/bin/env bash
# Measures `regraft serve`, and other servers beside it: runs a script of bench/serve in an environment that has those, which is
# made once in the user's cache directory, about 400 MB, under a name that holds a hash of its requirements.
#
#     scripts/serve-bench.sh load.py --regraft target/release/regraft model.rgf --baseline model.onnx
#     scripts/serve-bench.sh overhead.py --regraft target/release/regraft model.rgf
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

[[ $# -gt 0 && -f bench/serve/$1 ]] || {
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
python=$(scripts/small-env.sh serve-bench requirements/serve-bench.txt "400 MB" | tee >(cat >&2) | tail -n 1)
exec "$python" "bench/serve/$1" "${@:2}"
