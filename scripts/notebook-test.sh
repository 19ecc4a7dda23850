#!/usr/bin/env bash
# Tests progress and reports in a notebook: JupyterLab in headless Chromium (Debian's packages chromium and chromium-driver). The package
# is on PYTHONPATH; REGRAFT_PICTURES names a folder for pictures of the notebook.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

for command in chromium chromedriver; do
    command -v "$command" >/dev/null || fail "$command not found (Debian: apt-get install chromium chromium-driver)"
done
python=$(scripts/python-env.sh | tee >(cat >&2) | tail -n 1)
folder=$(scripts/overlay.sh notebook requirements/notebook.txt "170 MB" | tee >(cat >&2) | tail -n 1)
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$folder
"$python" -c 'import regraft' || fail "there is no package regraft on PYTHONPATH (make python)"
export JUPYTER_PATH=$folder/share/jupyter NOTEBOOK_APP=$folder/share/jupyter/lab
"$python" -m pytest --noconftest -q -p no:cacheprovider tests/notebook_browser.py "$@"
