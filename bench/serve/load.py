"""What serving costs beside the model's own run, and whether publications are felt: HTTP with binary tensors.

    regraft compile model.pt2 -o model.rgf
    python3 bench/serve/load.py --regraft regraft model.rgf --seconds 5 --clients 1 --clients 8

Starts a server of its own on this machine, sends random inputs at the sizes that `regraft bench` uses,
and prints the time of a request beside the time of a run that the server measured; then the same while
weights are staged and published each second, with the ratio of the 99th percentiles. Needs nothing but
Python.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WIDTH = {
    "FP64": 8,
    "FP32": 4,
    "FP16": 2,
    "BF16": 2,
    "INT64": 8,
    "INT32": 4,
    "INT16": 2,
    "INT8": 1,
    "UINT8": 1,
    "BOOL": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", type=Path)
    parser.add_argument("--regraft", default="regraft", help="the command")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--clients", type=int, action="append", help="connections at a time [default: 1, 8]")
    parser.add_argument(
        "--size", type=int, default=1, help="what sizes that vary are, besides those in --sizes"
    )
    parser.add_argument("--sizes", default="", help="NAME=2x128,... of inputs")
    parser.add_argument("--ids", type=int, default=100, help="integers are below this")
    parser.add_argument("--serve", default="", help="more options of the server, such as '--batch 16'")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(arguments) as server:
        about = server.get("/v2/models/m")
        sizes = dict(pair.split("=") for pair in arguments.sizes.split(",") if pair)
        body, header = request(about, sizes, arguments.size, arguments.ids)
        a, b = weights(arguments, Path(folder))
        print(
            f"{'clients':>7}  {'publishes':>9}  {'requests/s':>10}  {'p50':>9}  {'p99':>9}"
            f"  {'over the run, p50':>17}"
        )
        for clients in arguments.clients or [1, 8]:
            quiet = measure(server, body, header, clients, arguments.seconds, None)
            busy = measure(server, body, header, clients, arguments.seconds, (a, b))
            print(f"  p99 with publishes is {busy['p99'] / quiet['p99']:.2f} x that without")


class Server:
    """A server of this machine, for as long as the block lasts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        command = [arguments.regraft, "serve", f"m={arguments.engine}", "--address", "127.0.0.1:0", "--json"]
        self.process = subprocess.Popen(command + arguments.serve.split(), stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["listening"].removeprefix("http://")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=60)

    def call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        connection = self.connect()
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {text.decode()}")
        return json.loads(text)

    def get(self, path: str) -> dict[str, Any]:
        return self.call("GET", path)


def request(
    about: dict[str, Any], sizes: dict[str, str], size: int, ids: int
) -> tuple[bytes, dict[str, str]]:
    """A request with random inputs."""
    chance = random.Random(5)
    inputs, data = [], []
    for port in about["inputs"]:
        given = sizes.get(port["name"])
        shape = [int(n) for n in given.split("x")] if given else [size if n < 0 else n for n in port["shape"]]
        count = 1
        for n in shape:
            count *= n
        kind = port["datatype"]
        if kind == "FP32":
            values = struct.pack(f"<{count}f", *(chance.uniform(-1, 1) for _ in range(count)))
        elif kind == "INT64":
            ones = "mask" in port["name"]
            values = struct.pack(f"<{count}q", *(1 if ones else chance.randrange(ids) for _ in range(count)))
        else:
            values = bytes(count * WIDTH[kind])
        parameters = {"binary_data_size": len(values)}
        inputs.append({"name": port["name"], "shape": shape, "datatype": kind, "parameters": parameters})
        data.append(values)
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": inputs}).encode()
    return head + b"".join(data), {"Inference-Header-Content-Length": str(len(head))}


def weights(arguments: argparse.Namespace, folder: Path) -> tuple[bytes, bytes]:
    """Two files of weights for the engine that differ in every float, made of its manifest without NumPy."""
    listed = subprocess.run(
        [arguments.regraft, "inspect", str(arguments.engine), "--manifest", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    sources = json.loads(listed.stdout)["manifest"]
    return tuple(safetensors(sources, step) for step in (0.01, 0.011))  # type: ignore[return-value]


def safetensors(sources: list[dict[str, Any]], value: float) -> bytes:
    """Every tensor of these sources, its floats around `value`."""
    names = {
        "f32": "F32",
        "f64": "F64",
        "f16": "F16",
        "bf16": "BF16",
        "i64": "I64",
        "i32": "I32",
        "u8": "U8",
        "bool": "BOOL",
    }
    codes = {"f32": "<f", "f64": "<d", "f16": "<e"}
    header: dict[str, Any] = {}
    parts, at = [], 0
    for source in sources:
        kind, count = source["dtype"], 1
        for n in source["shape"]:
            count *= n
        width = {"64": 8, "32": 4, "16": 2}.get(kind.lstrip("fibu"), 1)
        if kind in codes:
            data = struct.pack(codes[kind], value) * count
        elif kind == "bf16":
            data = struct.pack("<f", value)[2:] * count
        else:
            data = bytes(width * count)
        header[source["name"]] = {
            "dtype": names[kind],
            "shape": source["shape"],
            "data_offsets": [at, at + len(data)],
        }
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def measure(
    server: Server,
    body: bytes,
    header: dict[str, str],
    clients: int,
    seconds: float,
    publish: tuple[bytes, bytes] | None,
) -> dict[str, float]:
    """Requests from so many clients, with a publication each second if asked."""
    stop = threading.Event()
    times: list[list[float]] = [[] for _ in range(clients)]
    generations: set[str] = set()
    failures: list[str] = []

    def client(mine: list[float]) -> None:
        connection = server.connect()
        while not stop.is_set():
            begin = time.perf_counter()
            connection.request("POST", "/v2/models/m/infer", body, header)
            answer = connection.getresponse()
            text = answer.read()
            mine.append(time.perf_counter() - begin)
            if answer.status != 200:
                failures.append(f"{answer.status} {text[:200].decode(errors='replace')}")
                return
            generations.add(answer.headers["Regraft-Generation"])

    def publisher(pair: tuple[bytes, bytes]) -> None:
        count = 0
        while not stop.wait(1.0):
            server.call("POST", "/v2/models/m/weights/stage", pair[count % 2])
            server.call("POST", "/v2/models/m/weights/publish")
            count += 1

    before = server.get("/inspector/state")["models"][0]["metrics"]["run_seconds"]
    threads = [threading.Thread(target=client, args=(mine,)) for mine in times]
    if publish:
        threads.append(threading.Thread(target=publisher, args=(publish,)))
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(failures[0])
    after = server.get("/inspector/state")["models"][0]["metrics"]["run_seconds"]
    all_times = sorted(one for mine in times for one in mine[5:])
    p50, p99 = all_times[len(all_times) // 2], all_times[len(all_times) * 99 // 100]
    run = (after["sum"] - before["sum"]) / max(after["count"] - before["count"], 1)
    shown = f"{len(generations)} seen" if publish else "none"
    print(
        f"{clients:7}  {shown:>9}  {len(all_times) / seconds:10.0f}  {p50 * 1e3:6.3f} ms"
        f"  {p99 * 1e3:6.3f} ms  {(p50 - run) * 1e6:14.0f} us"
    )
    return {"p50": p50, "p99": p99}


if __name__ == "__main__":
    main()
