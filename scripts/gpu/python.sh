#!/usr/bin/env bash
# Runs on a machine with a GPU: the Python package on it, with a native module that was built elsewhere.
#
#     cargo build --release -p regraft-python
#     scripts/gpu/python.sh NATIVE FOLDER_FOR_LOGS [WHEELS]
#
# NATIVE is the built `lib_regraft.so`, or a wheel of the package. WHEELS is a folder of wheels that the machine lacks: the
# example needs diffusers 0.42.1 and importlib_metadata (`pip download --no-deps diffusers==0.42.1 importlib_metadata`);
# PyTorch, transformers, peft, accelerate, safetensors and pytest are taken from there. Prints one line for each step and
# ends after ten minutes at the latest.
set -uo pipefail

native=$1
logs=$2
wheels=${3:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$logs"

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ $native == *.whl ]]; then
    (cd "$site" && python3 -m zipfile -e "$native" .)
else
    cp -r "$root/python/regraft" "$site/"
    cp "$native" "$site/regraft/_regraft.abi3.so"
fi
if [[ -n $wheels ]]; then
    for wheel in "$wheels"/*.whl; do
        python3 -m zipfile -e "$wheel" "$site" && echo "carried $(basename "$wheel")"
    done
fi
export PYTHONPATH="$site" REGRAFT_CACHE_DIR="${REGRAFT_CACHE_DIR:-$site/cache}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

failed=0
step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout -k 5 "$limit" "$@" >"$logs/$name.txt" 2>&1 || status=$?
    echo "$name: status $status in $((SECONDS - start)) s: $(grep -v '^$' "$logs/$name.txt" | tail -n 1 | cut -c -200)"
    [[ $status -eq 0 ]] || failed=1
}

step import 60 python3 -c 'import torch, regraft; print(torch.__version__, torch.cuda.get_device_name(0), regraft.__version__)'
step tests 360 python3 -m pytest -q -x --maxfail=100 -p no:cacheprovider "$root/tests/gpu"
grep -E '^(FAILED|ERROR)' "$logs/tests.txt" | cut -c -200
step example 150 python3 "$root/examples/diffusers_lora_cuda.py"
grep -v -i warn "$logs/example.txt" | tail -n 25
exit $failed
