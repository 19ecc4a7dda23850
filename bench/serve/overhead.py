"""What a request costs beside the model's own run, and how near the server comes to runs back to back.

    python3 bench/serve/overhead.py --regraft regraft bert.rgf --sizes input_ids=1x128
    python3 bench/serve/overhead.py --regraft regraft bert.rgf --sizes input_ids=1x128 \\
        --clients 64 --batch 1 --batch 8 --batch 32 --dims s0=ROWS,s1=128

Without `--clients`: one request at a time, over REST with binary tensors and over gRPC, from a client that
does as little as it can (ask.rs). After each request the server is asked, on another connection, for the time
of its run. Their difference is what the request cost beside it.

With `--clients`: `regraft bench` runs the model back to back at each size of `--batch`; then so many clients
of ask.rs send requests of one row to a server with `--batch` of the best, and rows a second of both are
compared.

Nothing but Python and rustc is needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from requests_of import Inputs, request
from servers import Server, parser_of


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=300, help="how many are measured")
    parser.add_argument("--dims", default="s0=ROWS", help="sizes of symbols for `regraft bench`, with ROWS")
    parser.add_argument("--clients", type=int, help="clients at a time")
    parser.add_argument("--batch", type=int, action="append", help="sizes of batches that are tried")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long clients send requests")
    arguments = parser.parse_args()
    if arguments.clients:
        throughput(arguments)
    else:
        overhead(arguments)


def overhead(arguments: argparse.Namespace) -> None:
    """One request at a time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ask = client_in(folder)
        with Server(arguments, folder, 2) as server:
            inputs = inputs_of(server, arguments)
            print(f"{'':>12}  {'request, p50':>13}  {'run, p50':>10}  {'beside it, p50':>14}  {'p99':>10}")
            for what, protocol, content in (
                ("REST binary", "http", inputs.http()),
                ("gRPC", "grpc", inputs.grpc()),
            ):
                (folder / protocol).write_bytes(content)
                told = asked(ask, server, protocol, folder / protocol, arguments.requests)
                report(what, [tuple(map(float, line.split())) for line in told.splitlines()])


def client_in(folder: Path) -> Path:
    """ask.rs, compiled."""
    ask, source = folder / "ask", Path(__file__).with_name("ask.rs")
    subprocess.run(["rustc", "-O", "--edition", "2024", str(source), "-o", str(ask)], check=True)
    return ask


def asked(ask: Path, server: Server, *arguments: object) -> str:
    """What it prints."""
    command = [str(ask), ":".join(map(str, server.place)), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def report(what: str, found: list[tuple[float, ...]]) -> None:
    took, ran = [one for one, _ in found], [run for _, run in found]
    over = sorted(one - run for one, run in found)
    print(
        f"{what:>12}  {statistics.median(took) * 1e3:10.3f} ms  {statistics.median(ran) * 1e3:7.3f} ms"
        f"  {statistics.median(over) * 1e6:11.0f} us  {over[len(over) * 99 // 100] * 1e6:7.0f} us"
    )


def throughput(arguments: argparse.Namespace) -> None:
    """Many clients, and runs back to back."""
    best, most = 1, 0.0
    for rows in arguments.batch or [1, 2, 4, 8, 16, 32]:
        rate = rows / back_to_back(arguments, rows)
        print(f"back to back, {rows:3} rows at a time: {rate:9.1f} rows/s")
        best, most = (rows, rate) if rate > most else (best, most)
    # The best of several is partly luck: it is measured again, before the load and after it.
    before = best / back_to_back(arguments, best)
    arguments.serve = f"{arguments.serve} --batch {best}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ask = client_in(folder)
        with Server(arguments, folder, arguments.clients) as server:
            (folder / "http").write_bytes(inputs_of(server, arguments).http())
            for seconds in (min(arguments.seconds, 5.0), arguments.seconds):
                earlier = server.runs()
                told = asked(ask, server, "clients", folder / "http", seconds, arguments.clients)
            runs, ran = (now - then for now, then in zip(server.runs(), earlier, strict=True))
    answered, seconds = map(float, told.split())
    rate = answered / seconds
    after = best / back_to_back(arguments, best)
    print(f"back to back, {best:3} rows at a time: {before:9.1f} rows/s before, {after:.1f} after")
    share = 2 * rate / (before + after)
    print(f"{arguments.clients} clients, --batch {best}: {rate:.1f} rows/s, {share:.3f} x back to back")
    print(f"the model ran {ran / seconds:.1%} of the time, {answered / runs:.1f} rows in a run")


def back_to_back(arguments: argparse.Namespace, rows: int) -> float:
    """Seconds of a run of so many rows, the mean, since what it is compared with is the rate of all runs."""
    dims = arguments.dims.replace("ROWS", str(rows))
    command = [arguments.regraft, "bench", str(arguments.engine), "--json", "--dims", dims]
    threads = arguments.serve.split()
    if "--threads" in threads:
        command += threads[threads.index("--threads") :][:2]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(told.stdout)["latency_ms"]["mean"]) / 1e3


def inputs_of(server: Server, arguments: argparse.Namespace) -> Inputs:
    sizes: dict[str, str] = dict(pair.split("=") for pair in arguments.sizes.split(",") if pair)
    about: dict[str, Any] = server.get("/v2/models/m")
    return request(about, sizes, arguments.size, arguments.ids)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {error.stderr}")
