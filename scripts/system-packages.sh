#!/usr/bin/env bash
# Installs the system packages that the commands given as arguments come from, where they are missing, or says which these are.
#
#     scripts/system-packages.sh cc git python-venv
#
# On Debian and Ubuntu, as root or with sudo; elsewhere a missing one is an error that names its package.
set -euo pipefail

python=${PYTHON:-python3}
missing=()
for command in "$@"; do
    case $command in
        cc) command -v cc >/dev/null || missing+=(gcc libc6-dev) ;;
        c++) command -v c++ >/dev/null || missing+=(g++) ;;
        python-venv) "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv) ;;
        *) command -v "$command" >/dev/null || missing+=("$command") ;;
    esac
done
if ! command -v "${CARGO:-cargo}" >/dev/null; then
    echo "error: ${CARGO:-cargo} not found: install Rust 1.90 or later, see https://rustup.rs" >&2
    exit 1
fi
if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi

install=(apt-get install -y -qq --no-install-recommends "${missing[@]}")
root=()
if [[ $(id -u) -ne 0 ]]; then
    root=(sudo)
fi
if ! command -v apt-get >/dev/null || { [[ ${#root[@]} -ne 0 ]] && ! command -v sudo >/dev/null; }; then
    echo "error: these packages are missing: ${missing[*]} (Debian: ${install[*]})" >&2
    exit 1
fi
echo "installing ${missing[*]}" >&2
"${root[@]}" apt-get update -qq >&2
"${root[@]}" "${install[@]}" >&2
