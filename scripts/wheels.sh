#!/usr/bin/env bash
# Builds wheels that need no Rust: abi3 for Python 3.10 and later, for Linux with glibc 2.28 or later (manylinux_2_28), on x86-64 and
# aarch64; then installs that of this machine in an environment without anything else, and uses it.
#
#     scripts/wheels.sh FOLDER [x86_64|aarch64]...
#
# zig links against the old C library and for the other processor. maturin refuses a wheel that needs newer symbols. Without names,
# a processor is skipped whose Rust target is not there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $# -ge 1 ]] || fail "usage: scripts/wheels.sh FOLDER [x86_64|aarch64]..."
folder=$1
shift
named=("$@")
processors=("${named[@]}")
[[ ${#processors[@]} -ne 0 ]] || processors=(x86_64 aarch64)
here=$(uname -m)

# Whether Rust has its library for a target, which is fetched where that is possible.
has_target() {
    rustc --print target-libdir --target "$1" 2>/dev/null | xargs test -d && return
    command -v rustup >/dev/null && rustup target add "$1"
}

python=$(scripts/small-env.sh wheels requirements/wheels.txt "400 MB" | tee >(cat >&2) | tail -n 1)
# maturin looks for zig as a module of the Python on the path.
PATH=$(dirname "$python"):$PATH
export PATH

mkdir -p "$folder"
for processor in "${processors[@]}"; do
    target=$processor-unknown-linux-gnu
    if ! has_target "$target"; then
        missing="Rust for $target is missing (rustup target add $target)"
        [[ ${#named[@]} -eq 0 && $processor != "$here" ]] || fail "$missing"
        echo "skipped: $missing"
        continue
    fi
    echo "== building for $target"
    maturin build --release --locked --strip --zig --compatibility manylinux_2_28 --target "$target" --out "$folder"
done

wheel=$(find "$folder" -name "regraft-*-abi3-manylinux_2_28_$here.whl" | head -n 1)
if [[ -z $wheel ]]; then
    echo "the wheels are for other machines than this one ($here): not installed"
else
    echo "== installing $(basename "$wheel") where there is nothing else"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "${PYTHON:-python3}" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
    weights=$PWD/crates/conformance/fixtures/linear.safetensors
    # Neither Rust nor this checkout is on a path.
    (cd "$work" && env -i PATH=/usr/bin:/bin HOME="$work" "$work/venv/bin/python" - "$weights" <<'PY'
import sys

import regraft

print(regraft.doctor())
weights = regraft.StateDict.open(sys.argv[1])
assert len(weights) > 0
try:
    regraft.load("missing.rgf")
except (regraft.RegraftError, OSError) as error:
    print(f"as it should: {error}")
else:
    sys.exit("a missing file was loaded")
PY
    )
fi

for wheel in "$folder"/regraft-*-manylinux_2_28_*.whl; do
    echo "$(basename "$wheel"): $(($(stat -c %s "$wheel") / 1000)) kB"
done
