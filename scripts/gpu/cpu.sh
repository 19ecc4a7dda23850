#!/usr/bin/env bash
# Runs on a machine whose CPU has AVX-512 and AMX: tests of the CPU backend, and products in tiles next to those by vectors, with
# binaries that were built elsewhere.
#
#     cargo test -p regraft-backend-cpu --lib --no-run
#     cargo test -p regraft-conformance --test fixtures --test tuning --no-run
#     CARGO_PROFILE_RELEASE_LTO=off cargo build --release -p regraft-backend-cpu --example products --example attention_speed
#     strip -o FOLDER/NAME BINARY                    for each of them
#     REGRAFT_FIXTURES=crates/conformance/fixtures scripts/gpu/cpu.sh FOLDER_FOR_LOGS FOLDER
#
# In FOLDER: test binaries as `*.test`, examples under their names. Tests say "skipped" where the machine lacks what they are about.
set -uo pipefail

logs=$1
folder=$2
mkdir -p "$logs"

uname -r | tee "$logs/machine.txt"
lscpu | grep -E '^(Model name|CPU\(s\)|Thread|Core|Socket|CPU max MHz|L1d|L2|L3)' | tee -a "$logs/machine.txt"
lscpu | grep -oE '\b(avx512_bf16|avx512_vnni|avx512f|amx_[a-z0-9]+)\b' | sort -u | tr '\n' ' ' | tee -a "$logs/machine.txt"
echo

failed=0
for binary in "$folder"/*.test; do
    name=$(basename "$binary" .test)
    start=$SECONDS
    timeout 200 "$binary" --nocapture --test-threads=8 >"$logs/$name.txt" 2>&1
    status=$?
    grep -E '^test result|^skipped|FAILED|panicked' "$logs/$name.txt" | sort | uniq -c | head -n 20
    echo "$name: status $status in $((SECONDS - start)) s"
    [[ $status -eq 0 ]] || failed=1
done

for example in products attention_speed; do
    [[ -x $folder/$example ]] || continue
    timeout 180 "$folder/$example" >"$logs/$example.txt" 2>&1
    echo "$example: status $?"
done
[[ -f $logs/products.txt ]] && cat "$logs/products.txt"
exit $failed
