"""Publishes weights to a server, again and again, for load.py: in a process of its own, because the time that
sending them takes from a client's process would be felt in that client's latencies.

python3 publisher.py HOST PORT SECONDS WEIGHTS... prints the number of each generation that serves, and ends
when its input does. What goes wrong is printed, too.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from pathlib import Path


def main() -> None:
    host, port, every = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    files = [Path(name).read_bytes() for name in sys.argv[4:]]
    print("ready", flush=True)
    count = 0
    at = time.monotonic() + every
    while not select.select([sys.stdin], [], [], max(at - time.monotonic(), 0))[0]:
        # One that takes longer than `every` is followed by the next at once.
        at = max(at + every, time.monotonic())
        try:
            post(host, port, "stage", files[count % len(files)])
            told = post(host, port, "publish", b"")
            print(told["serving"]["generation"], flush=True)
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"error {error}", flush=True)
        count += 1


def post(host: str, port: int, path: str, body: bytes) -> dict:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=600)
    try:
        connection.request("POST", f"/v2/models/m/weights/{path}", body)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise ValueError(f"{path}: {answer.status} {text[:200]!r}")
        return json.loads(text)
    finally:
        connection.close()


if __name__ == "__main__":
    main()
