#!/usr/bin/env bash
# Makes (once) a small Python environment in the user's cache directory, under a name that holds a hash of its requirements.
#
#     python=$(scripts/small-env.sh NAME REQUIREMENTS SIZE | tail -n 1)
#
# SIZE is said to the reader, such as "140 MB". The last line of stdout is the path of its python.
set -euo pipefail

name=$1
requirements=$2
size=$3
base_python=${PYTHON:-python3}
# shellcheck source=scripts/cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/cache.sh"

has_python "$base_python"
venv=$(keyed "$name" "$base_python" "$requirements")
marker=$venv/.complete

locked "$venv"
if [[ ! -f $marker ]]; then
    makes_environments "$base_python"
    echo "making $venv (half a minute, about $size)"
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
    # Written last: without it the next run starts again from nothing.
    touch "$marker"
fi
echo "$venv/bin/python"
