#!/usr/bin/env bash
# Tests the object cache against a server that speaks S3: starts moto's on a free port of this machine, makes a bucket, runs
# the tests of crates/object-cache/tests/s3.rs, stops the server. The server's Python environment is made once in the user's
# cache directory, about 140 MB, under a name that holds a hash of its requirements.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

python=$(scripts/small-env.sh s3-server requirements/s3-server.txt "140 MB" | tee >(cat >&2) | tail -n 1)

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
"$(dirname "$python")/moto_server" --host 127.0.0.1 --port 0 >"$work/log" 2>&1 &
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
"$python" -c 'import boto3; boto3.client("s3").create_bucket(Bucket="regraft-test")'
${CARGO:-cargo} test --locked -p regraft-object-cache --features aws --test s3 -- "$@"
