#!/usr/bin/env bash
# Runs on a machine whose CPU has AVX-512 and AMX: tests of the CPU backend, and products in tiles next to those by vectors, with
# binaries that were built elsewhere.
#
#     cargo test -p regraft-backend-cpu --no-run                            the tests, and in target/debug/examples the examples
#     cargo test -p regraft-conformance --test fixtures --test precision --test tuning --no-run
#     strip -o FOLDER/NAME BINARY                                           for each of them; tests as NAME.test
#     REGRAFT_FIXTURES=crates/conformance/fixtures scripts/gpu/cpu.sh FOLDER_FOR_LOGS FOLDER
#
# Everything in FOLDER that is not a test runs after the tests, each alone, and what it prints is kept: `products`, `attention_speed`. Tests say
# "skipped" where the machine lacks what they are about.
set -uo pipefail

logs=$1
folder=$2
mkdir -p "$logs"

{
    uname -r
    lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|L1d|L2|L3)'
    lscpu | grep -oE '\b(avx512_bf16|avx512_vnni|avx512f|amx_[a-z0-9]+)\b' | sort -u | tr '\n' ' '
    echo
} | tee "$logs/machine.txt"

failed=0
for binary in "$folder"/*.test; do
    name=$(basename "$binary" .test)
    start=$SECONDS
    timeout 150 "$binary" --nocapture --test-threads=8 >"$logs/$name.txt" 2>&1
    status=$?
    grep -E '^test result|skipped:|FAILED|panicked' "$logs/$name.txt" | sort | uniq -c | head -n 20
    echo "$name: status $status in $((SECONDS - start)) s"
    [[ $status -eq 0 ]] || failed=1
done

for example in "$folder"/*; do
    name=$(basename "$example")
    [[ $name != *.test ]] || continue
    start=$SECONDS
    timeout 150 "$example" >"$logs/$name.txt" 2>&1
    echo "$name: status $? in $((SECONDS - start)) s"
done
[[ ! -f $logs/products.txt ]] || cat "$logs/products.txt"
exit $failed
