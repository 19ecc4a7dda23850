#!/usr/bin/env bash
# Does what the README says under "From Python" as a newcomer would: in a minimal Debian in a temporary folder, with Rust, a fresh clone of
# the last commit and nothing else. Says how many commands and how much time the first result took.
#
#     scripts/fresh-machine.sh [FOLDER]        # FOLDER for the machine, by default the one for temporary files
#
# Needs root, debootstrap, the network, and about 12 GB: the README's command takes PyTorch from the Python package index, which has CUDA.
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes one for the CPU, in 3 GB. SUITE and MIRROR choose another Debian.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $(id -u) -eq 0 ]] || fail "changing the root folder needs root"
command -v debootstrap >/dev/null || fail "debootstrap is missing (Debian: apt-get install debootstrap)"
command -v rustc >/dev/null || fail "rustc not found: the README asks for Rust 1.90 or later"
suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}

machine=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/fresh-machine.XXXXXX")
trap 'rm -rf --one-file-system "$machine" "$machine.log"' EXIT

echo "== making a minimal Debian $suite in $machine"
debootstrap --variant=minbase --include=ca-certificates,make,python3 "$suite" "$machine" "$mirror" >"$machine.log" 2>&1 ||
    fail "debootstrap failed: $(tail -n 3 "$machine.log")"
rm -f "$machine.log"
cp /etc/resolv.conf "$machine/etc/resolv.conf"
# The certificates of this machine: the network may be behind one with its own.
cp -L /etc/ssl/certs/ca-certificates.crt "$machine/etc/ssl/certs/ca-certificates.crt"
mkdir "$machine/opt/rust"
cp -a "$(rustc --print sysroot)"/{bin,lib} "$machine/opt/rust"
git clone --quiet --depth 1 "file://$PWD" "$machine/root/regraft"

# What the README says under "From Python": the indented lines are commands, the block in Python is the first program.
readme=$machine/root/regraft/README.md
section=$(sed -n '/^## From Python/,/^## From the command line/p' "$readme")
sed -n '/^```python/,/^```/p' <<<"$section" | sed '/^```/d' >"$machine/root/regraft/first.py"
sed -n '/^```python/q; s/^    //p' <<<"$section" >"$machine/root/commands"
echo "python first.py" >>"$machine/root/commands"
[[ -s $machine/root/regraft/first.py ]] || fail "the README has no Python under \"From Python\""

# Reads the commands one by one in one shell, since one of them activates an environment.
cat >"$machine/root/follow.sh" <<'FOLLOW'
set -eo pipefail
cd /root/regraft
begin=$SECONDS
count=0
while IFS= read -r command <&3; do
    [[ -n $command ]] || continue
    start=$SECONDS
    echo "\$ $command"
    eval "$command" </dev/null
    count=$((count + 1))
    echo "  ($((SECONDS - start)) s)"
done 3</root/commands
echo "== the first result in Python: $count commands, $((SECONDS - begin)) s on $(nproc) cores"
FOLLOW

echo "== following the README"
variables=()
for name in "${!PIP_@}" "${!CARGO_@}" http_proxy https_proxy no_proxy; do
    case $name in
        # Folders of this machine, which are not on the fresh one.
        CARGO_HOME | CARGO_TARGET_DIR | PIP_FIND_LINKS | PIP_CACHE_DIR | PIP_CONFIG_FILE) ;;
        *) [[ -z ${!name:-} ]] || variables+=("$name=${!name}") ;;
    esac
done
# Mounts are seen inside alone, so that nothing of this machine can be removed with the folder; and nothing inside outlives the script.
unshare --mount --pid --fork --kill-child bash -euo pipefail -c '
    machine=$1
    shift
    mount -t proc proc "$machine/proc"
    mount --rbind /dev "$machine/dev"
    exec chroot "$machine" /usr/bin/env -i HOME=/root LANG=C.UTF-8 \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" bash /root/follow.sh
' _ "$machine" "${variables[@]}"
