#!/usr/bin/env bash
# The stress test of runs, refits and variants under ThreadSanitizer; fails when a race is reported. REGRAFT_STRESS sets the
# rounds. Needs a C compiler and the sanitizer's runtime, which comes with the Rust toolchain.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=x86_64-unknown-linux-gnu
libraries=$(rustc --print sysroot)/lib/rustlib/$target/lib
build=${CARGO_TARGET_DIR:-target}/race
mkdir -p "$build"
build=$(cd "$build" && pwd)

if [[ ! -e $libraries/librustc-stable_rt.tsan.a ]]; then
    echo "error: this toolchain has no runtime of ThreadSanitizer for $target" >&2
    exit 1
fi
contended=$(nm "$libraries"/libstd-*.so | awk '/ T .*5mutex5futex.*lock_contended/ { name = $3 } END { print name }')
cc -c -O2 -o "$build/std.o" scripts/race/std.c \
    "-DREAL_LOCK_CONTENDED=__real_$contended" "-DWRAP_LOCK_CONTENDED=__wrap_$contended"

# The standard library is not instrumented; the ABI is nevertheless the same.
flags=(-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg=crossbeam_sanitize_thread
    "-Clink-arg=$build/std.o" "-Clink-arg=-Wl,--wrap=$contended" -Clink-arg=-Wl,--wrap=__tsan_atomic64_fetch_sub)
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$build "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=${flags[*]}"
export TSAN_OPTIONS="suppressions=$PWD/scripts/race/suppressions.txt halt_on_error=0 exitcode=66"

cargo test --locked --target $target -p regraft-conformance --test stress -- --nocapture
echo "no race was found"
