#!/usr/bin/env bash
# Puts packages (once) beside the Python environment of scripts/python-env.sh, in a folder of its own for PYTHONPATH: what
# few scripts need, or what would pull a second PyTorch. The folder's name holds a hash of the requirements.
#
#     folder=$(scripts/overlay.sh NAME REQUIREMENTS SIZE | tail -n 1)
#
# SIZE is said to the reader, such as "140 MB". The last line of stdout is the folder.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=$1
requirements=$2
size=$3
# shellcheck source=scripts/cache.sh
source "$root/scripts/cache.sh"
python=$("$root/scripts/python-env.sh" | tee >(cat >&2) | tail -n 1)
folder=$(keyed "$name" "$python" "$requirements")

locked "$folder"
if [[ ! -d $folder ]]; then
    echo "making $folder (half a minute, about $size)"
    unfinished=$(mktemp -d "$cache/$name.XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$unfinished" -r "$requirements" >&2
    # Renamed once it is whole: a killed run leaves nothing that looks finished.
    chmod 755 "$unfinished"
    mv "$unfinished" "$folder"
fi
echo "$folder"
