#!/usr/bin/env bash
# Makes (once) the Python environment of builds, checks, tests, fixtures and demo data: PyTorch on the CPU,
# torchvision, transformers, peft, diffusers, pytest, maturin, ruff, mypy. It lives in the user's cache directory, about
# 4.5 GB, under a name that holds a hash of the requirement files, so a changed list makes a new environment.
#
#     python=$(scripts/python-env.sh | tail -n 1)
#
# The last line of stdout is the path of its python; everything else is for the reader.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$root/requirements
base_python=${PYTHON:-python3}
# shellcheck source=scripts/cache.sh
source "$root/scripts/cache.sh"

has_python "$base_python"
venv=$(keyed venv "$base_python" "$requirements"/no-deps.txt "$requirements"/light.txt "$requirements"/constraints.txt)
marker=$venv/.complete

ready() {
    [[ -f $marker && -x $venv/bin/python ]]
}

report() {
    echo "using $venv"
    echo "$venv/bin/python"
}

if ready; then
    report
    exit 0
fi

makes_environments "$base_python"
# Its half-made environment is removed below.
locked "$venv"
if ready; then
    report
    exit 0
fi

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
}

echo "making $venv (a few minutes, about 4.5 GB)"
rm -rf "$venv"
"$base_python" -m venv "$venv"

# First: with torch in place pip would complain about the dependencies left out on purpose.
echo "installing light packages and the CUDA libraries that torch imports"
pip_install -r "$requirements/light.txt" -c "$requirements/constraints.txt"

echo "installing the packages that come without their dependencies"
pip_install --no-deps -r "$requirements/no-deps.txt"

echo "checking imports"
"$venv/bin/python" -W ignore - <<'PY'
import torch, torchvision, transformers
from diffusers import UNet2DConditionModel  # noqa: F401  (loaded lazily: ask for it)
from peft import get_peft_model  # noqa: F401
from transformers import BertModel, GPT2LMHeadModel  # noqa: F401

print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, transformers {transformers.__version__}")
PY

# Written last: without it the next run starts again from nothing.
touch "$marker"
report
