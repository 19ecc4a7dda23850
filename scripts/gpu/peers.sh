#!/usr/bin/env bash
# Runs bench/peers on a machine with many processors and no network: several models at a time, each on cores of its own.
#
#     PYTHONPATH=target/python scripts/gpu/peers.sh FOLDER PACKAGES CORES MODEL...
#
# PACKAGES is a folder with what requirements/peers.txt lists, for this machine's python3. CORES is how many each model has. PEERS_OPTIONS are
# options of bench/peers/run.py. Figures are left in FOLDER/peers.json, for its --state.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$1 packages=$(realpath "$2") cores=$3
shift 3
# shellcheck source=scripts/cache.sh
source scripts/cache.sh
read -ra options <<<"${PEERS_OPTIONS:-}"
mkdir -p "$out"
lscpu | grep -E '^(Model name|CPU\(s\)|Thread)' | tee "$out/machine.txt"

# The environment that scripts/small-env.sh would make.
python=$(python3 -c 'import sys; print(sys.executable)')
venv=$(keyed peers "$python" requirements/peers.txt)
mkdir -p "$venv/bin" "$venv/lib/python3"
ln -sfn "$packages" "$venv/lib/python3/site-packages"
printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "$packages" "$python" >"$venv/bin/python"
chmod +x "$venv/bin/python"
touch "$venv/.complete"

# One processor of each core, so that two models do not share one.
mapfile -t first < <(lscpu -p=CPU,CORE | grep -v '^#' | sort -t, -k2,2n -u | cut -d, -f1)
slots=$((${#first[@]} / cores))
printf '%s\n' "$@" >"$out/models"
work() {
    local slot=$1 model
    local mine=("${first[@]:slot*cores:cores}")
    # A model each time, until there is none: the slot that is done first takes the next.
    while model=$(flock "$out/lock" sh -c 'head -n 1 "$0"; sed -i 1d "$0"' "$out/models") && [[ -n $model ]]; do
        taskset -c "$(IFS=,; echo "${mine[*]}")" "$python" bench/peers/run.py --models "$model" "${options[@]}" \
            --state "$out/$slot.json" >>"$out/$slot.txt" 2>&1
        echo "$model: status $? after $SECONDS s"
    done
}
for ((slot = 0; slot < slots; slot++)); do
    work "$slot" &
done
wait
"$python" -c 'import json, sys; print(json.dumps([each for path in sys.argv[1:] for each in json.load(open(path))], indent=1))' \
    "$out"/[0-9]*.json >"$out/peers.json"
rm "$out/models" "$out/lock"
