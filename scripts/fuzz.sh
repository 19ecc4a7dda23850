#!/usr/bin/env bash
# Runs a fuzz target of fuzz/, or only builds all of them. Stable Rust is enough: what `cargo fuzz` wants a nightly for
# is given to rustc here.
#
#     scripts/fuzz.sh TARGET SECONDS    # what is found is in fuzz/artifacts/TARGET
#     scripts/fuzz.sh TARGET FILE       # runs the target once, on that input
#     scripts/fuzz.sh build
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fuzz=$root/fuzz
triple=x86_64-unknown-linux-gnu
# Its own folder: these flags would rebuild everything else.
target_dir=${CARGO_TARGET_DIR:-$root/target}/fuzz

fail() {
    echo "error: $*" >&2
    exit 1
}

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

[[ $# -ge 1 ]] || usage
[[ $(uname -sm) == "Linux x86_64" ]] || fail "the flags of this script are for Linux on x86-64"
runtime=$(rustc --print sysroot)/lib/rustlib/$triple/lib
compgen -G "$runtime/librustc*_rt.asan.a" >/dev/null ||
    fail "this Rust has no runtime of AddressSanitizer in $runtime (rustup's toolchains do)"
command -v c++ >/dev/null || fail "no C++ compiler, which libFuzzer needs (Debian: apt-get install g++)"

# All targets, or with `--bin NAME` one.
build() {
    local flags=(
        --cfg fuzzing
        -Zsanitizer=address
        -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
    )
    # With --target the flags are not those of build scripts.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" cargo build --release --locked --target "$triple" \
        --manifest-path "$fuzz/Cargo.toml" --target-dir "$target_dir" "$@"
}

if [[ $1 == build ]]; then
    build
    exit 0
fi
[[ $# -eq 2 ]] || usage
target=$1
program=$target_dir/$triple/release/$target
[[ -f $fuzz/fuzz_targets/$target.rs ]] ||
    fail "no target $target; there are: $(cd "$fuzz/fuzz_targets" && echo *.rs | sed 's/\.rs//g')"

corpus=$fuzz/corpus/$target
artifacts=$fuzz/artifacts/$target
options=(-rss_limit_mb=4096 -timeout=20 -max_len=16384 -print_final_stats=1 -artifact_prefix="$artifacts/")
dict=$fuzz/dicts/$target.dict
# Old files are pickles, too.
[[ $target != torch_old ]] || dict=$fuzz/dicts/pickle.dict
[[ ! -f $dict ]] || options+=(-dict="$dict")
if [[ -f $2 ]]; then
    inputs=("$2")
elif [[ $2 =~ ^[0-9]+$ ]]; then
    inputs=(-max_total_time="$2" "$corpus" "$fuzz/seeds/$target")
else
    fail "$2 is neither a file nor a number of seconds"
fi

build --bin "$target"
mkdir -p "$corpus" "$artifacts"
# The folder of a run's files carries its process id.
"$program" "${options[@]}" "${inputs[@]}" &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; rm -rf {/dev/shm,"${TMPDIR:-/tmp}"}/regraft-fuzz-"$pid"' EXIT
wait "$pid"
