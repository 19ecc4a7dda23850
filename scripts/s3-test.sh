#!/usr/bin/env bash
# Tests the object cache against a server that speaks S3: starts moto's on a free port of this machine, makes a bucket, runs
# the tests of crates/object-cache/tests/s3.rs, stops the server. The server's Python environment is made once in the user's
# cache directory, about 140 MB, under a name that holds a hash of its requirements.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=requirements/s3-server.txt
base_python=${PYTHON:-python3}
cache=${REGRAFT_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/regraft}

fail() {
    echo "error: $*" >&2
    exit 1
}

command -v "$base_python" >/dev/null || fail "$base_python not found (Debian: apt-get install python3 python3-venv)"
"$base_python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$base_python cannot make virtual environments (Debian: apt-get install python3-venv)"

# The interpreter is part of the key: an environment of another Python version cannot be reused.
hash=$({
    cat "$requirements"
    "$base_python" -c 'import sys; print(sys.version_info[:2])'
} | sha256sum | cut -c1-12)
venv=$cache/s3-server-$hash
marker=$venv/.complete

mkdir -p "$cache"
# Two runs at once: the second waits here and then finds the marker.
exec 9>"$venv.lock"
if command -v flock >/dev/null; then
    flock 9
fi
if [[ ! -f $marker ]]; then
    echo "making $venv (half a minute, about 140 MB)"
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"
    # Written last: without it the next run starts again from nothing.
    touch "$marker"
fi
exec 9>&-

export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_ALLOW_HTTP=true
# What the caller has set must not reach the server under test.
unset AWS_SESSION_TOKEN AWS_PROFILE AWS_ENDPOINT_URL_S3 HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy

work=$(mktemp -d)
server=
stop() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Port 0: the system chooses a free one, and the server says which.
"$venv/bin/moto_server" --host 127.0.0.1 --port 0 >"$work/log" 2>&1 &
server=$!

endpoint=
for _ in {1..300}; do
    kill -0 "$server" 2>/dev/null || break
    endpoint=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$work/log" | head -n 1 || true)
    [[ -z $endpoint ]] || break
    sleep 0.1
done
if [[ -z $endpoint ]]; then
    cat "$work/log" >&2
    fail "the server did not start within 30 s"
fi

echo "a server that speaks S3 is at $endpoint"
export AWS_ENDPOINT_URL=$endpoint REGRAFT_S3_TEST_ENDPOINT=$endpoint
"$venv/bin/python" -c 'import boto3; boto3.client("s3").create_bucket(Bucket="regraft-test")'
${CARGO:-cargo} test --locked -p regraft-object-cache --features aws --test s3 -- "$@"
