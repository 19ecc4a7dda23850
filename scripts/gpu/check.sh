#!/usr/bin/env bash
# Runs on a machine with a GPU: checks and times every kernel with a `gpu_check` that was built elsewhere.
#
#     cargo build --release -p regraft-backend-cuda --example gpu_check
#     scripts/gpu/check.sh PATH_OF_GPU_CHECK FOLDER_FOR_LOGS
#
# The check first, then the same on small sizes under compute-sanitizer where it is installed.
set -uo pipefail

check=$1
logs=$2
mkdir -p "$logs"

# Libraries of the Python environment there are the second place that is searched.
prefix=$(python3 -c 'import sys; print(sys.prefix)' 2>/dev/null || true)
export VIRTUAL_ENV=${VIRTUAL_ENV:-$prefix}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$logs/device.txt"

status=0
timeout 240 "$check" all >"$logs/check.txt" 2>&1 || status=$?
echo "check: status $status"
grep -c FAILED "$logs/check.txt"
for tool in memcheck racecheck initcheck; do
    command -v compute-sanitizer >/dev/null || break
    options=() part=small
    # What the driver refuses is the check's to judge: a graph that cannot be updated is made anew.
    [[ $tool != memcheck ]] || options=(--report-api-errors no)
    # NVIDIA's kernels take it many minutes.
    [[ $tool != racecheck ]] || part=kernels
    # Poisoned memory is written by the driver, which initcheck counts.
    timeout 240 compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 "$check" "$part" \
        >"$logs/$tool.txt" 2>&1
    echo "$tool: status $?"
    tail -n 2 "$logs/$tool.txt"
done
exit "$status"
