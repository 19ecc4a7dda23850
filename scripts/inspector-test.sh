#!/usr/bin/env bash
# Tests the inspector's page in headless Chromium (Debian's packages chromium and chromium-driver), at the width of a screen and of a
# phone. The command is REGRAFT_BIN, or target/release/regraft; REGRAFT_PICTURES names a folder for pictures of the page.
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
binary=${REGRAFT_BIN:-${CARGO_TARGET_DIR:-target}/release/regraft}
[[ -x $binary ]] || fail "there is no $binary (make build)"
REGRAFT_BIN=$(realpath "$binary") "$python" -m pytest --noconftest -q -p no:cacheprovider tests/inspector_browser.py "$@"
