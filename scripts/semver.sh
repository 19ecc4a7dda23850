#!/usr/bin/env bash
# Compares the public API of every crate that is published with that of the last release, by cargo-semver-checks. A breaking change
# needs a new minor version (0.1.3 to 0.2.0): cargo may combine any two patch versions of these crates.
#
#     scripts/semver.sh                         # with the newest tag v*
#     REGRAFT_BASELINE=REV scripts/semver.sh    # with any revision
#
# Without a tag there is nothing to compare. The tool is installed in the target folder when it is missing, which takes minutes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Reads the JSON of rustdoc 1.94 and later.
version=0.51.0
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$PWD/$target
tools=$target/tools

baseline=${REGRAFT_BASELINE:-$(git tag --list 'v*' --merged HEAD --sort=-version:refname | head -n 1)}
if [[ -z $baseline ]]; then
    echo "skipped: there is no tag v* to compare with (REGRAFT_BASELINE=REV names another revision)"
    exit 0
fi
commit=$(git rev-parse --quiet --verify "$baseline^{commit}") || {
    echo "error: there is no revision $baseline here" >&2
    exit 1
}

tool=$tools/bin/cargo-semver-checks
if [[ $("$tool" semver-checks --version 2>/dev/null) != "cargo-semver-checks $version" ]]; then
    echo "== installing cargo-semver-checks $version in $tools"
    "$cargo" install --quiet --locked --root "$tools" --force "cargo-semver-checks@$version"
fi

# Crates that are published as libraries for Rust, and were there in the baseline.
packages=$("$cargo" metadata --no-deps --format-version 1 | python3 -c '
import json, sys

for package in json.load(sys.stdin)["packages"]:
    if package["publish"] != [] and any("lib" in target["kind"] for target in package["targets"]):
        print(package["name"])
')
selected=()
for package in $packages; do
    folder=crates/${package#regraft-}
    if git cat-file -e "$commit:$folder/Cargo.toml" 2>/dev/null; then
        selected+=(--package "$package")
    else
        echo "new since $baseline: $package"
    fi
done

echo "== comparing $((${#selected[@]} / 2)) crates with $baseline"
"$tool" semver-checks --baseline-rev "$commit" "${selected[@]}"
