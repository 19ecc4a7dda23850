"""What serving costs beside the model's own run, and whether publications are felt: HTTP with binary tensors.

    regraft compile model.pt2 -o model.rgf
    python3 bench/serve/load.py --regraft regraft model.rgf --clients 1 --clients 8 --clients 64

Starts a server of its own on this machine, sends random inputs, and prints the time of a request beside the
time of a run that the server measured; then the same while weights are staged and published each second, with
the ratio of the 99th percentiles. With `--adapter-every 10` each tenth request names an adapter, at one of
three scales, in both. Every answer is checked: answers that name the same weights must be
the same bits, and one that was asked for after a publication must not be older.

The load test (1,000 connections, half an hour, a publication each second, adapters):

    python3 bench/serve/load.py --regraft regraft model.rgf --clients 1000 --rate 400 --seconds 1800 \\
        --quiet-seconds 300 --adapter-every 10 --report load.json

`--rate` sends so many requests a second in all, each connection in its turn, so that latencies are those of a
server that keeps up; without it each connection sends its next request when it has the answer. Give about
half of what one client without a rate reaches.

`--baseline model.onnx` serves the same model by ONNX Runtime behind FastAPI and behind MLServer (one process
each; what they need is in requirements/serve-bench.txt, and the same Python runs them) and sends the same
requests there, to MLServer with numbers in JSON. Without it nothing but Python is needed. `overhead.py`
measures what a request costs beside the run, and throughput against runs back to back.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requests_of import adapter, manifest, request, weights
from servers import Baseline, Server, parser_of

MLSERVER = "mlserver_onnx.py"
BASELINES = {"fastapi": "fastapi_onnx.py", "mlserver": MLSERVER}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument(
        "--quiet-seconds", type=float, help="length of one without publications [default: --seconds]"
    )
    parser.add_argument("--clients", type=int, action="append", help="connections at a time [default: 1, 8]")
    parser.add_argument(
        "--rate", type=float, help="requests a second in all [default: as many as are answered]"
    )
    parser.add_argument("--publish-every", type=float, default=1.0, help="seconds between publications")
    parser.add_argument(
        "--adapter-every", type=int, default=0, help="each request of this many names an adapter"
    )
    parser.add_argument("--baseline", type=Path, help="an .onnx file of the same model")
    parser.add_argument(
        "--behind", action="append", choices=BASELINES, help="what serves that file [default: each]"
    )
    parser.add_argument("--report", type=Path, help="writes the figures as JSON")
    arguments = parser.parse_args()
    clients = arguments.clients or [1, 8]
    length = arguments.seconds
    quietly = arguments.quiet_seconds or length
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        with Server(arguments, Path(folder), max(clients)) as server:
            about = server.get("/v2/models/m")
            sizes = dict(pair.split("=") for pair in arguments.sizes.split(",") if pair)
            inputs = request(about, sizes, arguments.size, arguments.ids)
            sources = manifest(arguments.regraft, arguments.engine)
            if arguments.adapter_every:
                adapter(sources, server.adapters / "style")
            pair = [Path(folder) / f"{number}.safetensors" for number in range(2)]
            for path, content in zip(pair, weights(sources), strict=True):
                path.write_bytes(content)
            print(HEADER)
            for count in clients:
                quiet = measure(server, arguments, inputs, count, quietly, None)
                busy = measure(server, arguments, inputs, count, length, pair)
                figures += [quiet.facts(), busy.facts()]
                print(f"  p99 with publishes is {busy.p(99) / quiet.p(99):.2f} x that without")
                print(f"  memory of the server: {busy.memory_text()}")
            failed = sum(figure["errors"] + figure["mixed"] + figure["old"] for figure in figures)
        if arguments.baseline:
            for name, script in BASELINES.items():
                if name in (arguments.behind or BASELINES):
                    print(f"ONNX Runtime behind {name}: {arguments.baseline}\n{HEADER}")
                    with Baseline(script, arguments.baseline, Path(folder)) as baseline:
                        for count in clients:
                            figures.append(measure(baseline, arguments, inputs, count, length, None).facts())
    if arguments.report:
        arguments.report.write_text(json.dumps(figures, indent=1) + "\n")
    if failed:
        sys.exit(f"{failed} answers were errors, mixed or old")


HEADER = (
    f"{'clients':>7}  {'publishes':>9}  {'requests/s':>10}  {'p50':>10}  {'p99':>10}"
    f"  {'over the run, p50':>17}  {'running':>7}  {'errors':>6}  {'mixed':>5}  {'old':>3}"
)


@dataclass
class Load:
    """One measurement."""

    server: Server | Baseline
    clients: int
    every: int
    seconds: float = 0.0
    times: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    old: int = 0
    published: int = 0
    newest: int = 0
    """The generation that the last publication told of."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """A digest of the outputs, by that of the weights."""
    memory: list[int] = field(default_factory=list)
    """Bytes of the server's process, once a second."""
    run: float = 0.0
    """The mean time of a run."""
    running: float = 0.0
    """The part of the time in which the model ran."""

    def p(self, percent: int) -> float:
        """A percentile of the times."""
        times = sorted(self.times) or [float("nan")]
        return times[min(len(times) * percent // 100, len(times) - 1)]

    def check(self, status: int, headers: dict[str, str], body: bytes, floor: int) -> None:
        """Whether an answer is right, and of weights that were to be expected."""
        if status != 200:
            self.errors[f"{status} {body[:200].decode(errors='replace')}"] += 1
            return
        if "regraft-weights" not in headers:
            return
        outputs = hashlib.blake2b(body[int(headers["inference-header-content-length"]) :], digest_size=16)
        known = self.answers.setdefault(headers["regraft-weights"], outputs.digest())
        self.mixed += known != outputs.digest()
        self.old += int(headers["regraft-generation"]) < floor

    def facts(self) -> dict[str, Any]:
        """The figures."""
        return {
            "server": type(self.server).__name__, "clients": self.clients, "seconds": self.seconds,
            "requests": len(self.times), "published": self.published, "p50": self.p(50), "p99": self.p(99),
            "run": self.run, "running": self.running, "errors": self.errors.total(), "mixed": self.mixed,
            "old": self.old, "what": dict(self.errors.most_common(5)), "weights_seen": len(self.answers),
            "memory_then_and_now": self.memory_then_and_now(),
            "memory": self.memory[:: max(len(self.memory) // 60, 1)],
        }  # fmt: skip

    def memory_text(self) -> str:
        """The memory after a tenth of the time, at its most, and in the last tenth."""
        first, last = self.memory_then_and_now()
        most = max(self.memory) / 1e6
        return (
            f"{first / 1e6:.0f} MB after a tenth of the time, {last / 1e6:.0f} MB ({last / first:.2f} x) in"
            f" the last tenth, at most {most:.0f} MB"
        )

    def memory_then_and_now(self) -> tuple[float, float]:
        """The mean memory in the second and in the last tenth of the time."""
        tenth = max(len(self.memory) // 10, 1)
        then, now = self.memory[tenth : 2 * tenth] or self.memory, self.memory[-tenth:]
        return sum(then) / len(then), sum(now) / len(now)

    def line(self) -> str:
        """The figures as text."""
        over = f"{(self.p(50) - self.run) * 1e6:14.0f} us" if self.run else f"{'':>17}"
        return (
            f"{self.clients:7}  {self.published or 'none':>9}  {len(self.times) / self.seconds:10.0f}"
            f"  {self.p(50) * 1e3:7.3f} ms  {self.p(99) * 1e3:7.3f} ms  {over}  {self.running:7.1%}"
            f"  {self.errors.total():6}  {self.mixed:5}  {self.old:3}"
        )


def measure(
    server: Server | Baseline,
    arguments: argparse.Namespace,
    inputs: Any,
    clients: int,
    length: float,
    pair: list[Path] | None,
) -> Load:
    """Requests from so many connections for so many seconds; with publications of these files of weights in
    turn, if they are given.
    """
    load = Load(server, clients, arguments.adapter_every if isinstance(server, Server) else 0)
    before = server.runs()
    begin = time.perf_counter()
    asyncio.run(whole(load, arguments, inputs, length, pair))
    load.seconds = time.perf_counter() - begin
    count, total = (now - then for now, then in zip(server.runs(), before, strict=True))
    load.run = total / count if count else 0.0
    load.running = total / load.seconds
    print(load.line())
    for what, count in load.errors.most_common(3):
        print(f"  {count} x {what}")
    return load


async def whole(
    load: Load,
    arguments: argparse.Namespace,
    inputs: Any,
    length: float,
    pair: list[Path] | None,
) -> None:
    stop = asyncio.Event()
    # What a baseline does not take is sent to it as numbers.
    takes_bytes = not isinstance(load.server, Baseline) or load.server.script != MLSERVER
    plain = [inputs.http() if takes_bytes else inputs.json()]
    styled = [inputs.http({"adapter": "style", "scale": scale}) for scale in (0.25, 0.5, 1.0)]
    tasks = [
        asyncio.create_task(client(load, arguments, stop, number, plain, styled))
        for number in range(load.clients)
    ]
    tasks.append(asyncio.create_task(watch(load, stop)))
    if pair:
        tasks.append(asyncio.create_task(publish(load, stop, pair, arguments.publish_every)))
    await asyncio.sleep(length)
    stop.set()
    await asyncio.gather(*tasks)


async def client(
    load: Load, arguments: argparse.Namespace, stop: asyncio.Event, number: int, plain: Any, styled: Any
) -> None:
    """One connection."""
    pause = load.clients / arguments.rate if arguments.rate else 0.0
    # Each in its turn: all at once would be a wave every `pause` seconds.
    at = time.perf_counter() + pause * number / load.clients
    reader = writer = None
    count = number
    while True:
        if pause:
            at += pause
            await until(at - pause, stop)
        if stop.is_set():
            break
        count += 1
        is_styled = load.every and count % load.every == 0
        data = styled[count // load.every % len(styled)] if is_styled else plain[0]
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(*load.server.place)
            # Connecting is not what is measured.
            floor, begin = load.newest, time.perf_counter()
            writer.write(data)
            status, headers, body = await answer(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            load.errors[type(error).__name__] += 1
            writer = None
            await asyncio.sleep(0.1)
            continue
        load.times.append(time.perf_counter() - begin)
        load.check(status, headers, body, floor)
        if headers.get("connection") == "close":
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


async def until(moment: float, stop: asyncio.Event) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        try:
            await asyncio.wait_for(stop.wait(), left)
        except asyncio.TimeoutError:
            return


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def publish(load: Load, stop: asyncio.Event, pair: list[Path], every: float) -> None:
    """A publication after the other, by publisher.py."""
    command = [
        str(Path(__file__).with_name("publisher.py")),
        *map(str, load.server.place),
        str(every),
        *map(str, pair),
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None and process.stdout is not None
    ending = asyncio.create_task(stop.wait())
    ending.add_done_callback(lambda _: process.stdin.close())
    while line := (await process.stdout.readline()).decode().strip():
        if line.isdecimal():
            load.newest = int(line)
            load.published += 1
        elif line != "ready":
            load.errors[f"publication: {line}"] += 1
    await process.wait()


async def watch(load: Load, stop: asyncio.Event) -> None:
    """The memory of the server."""
    while True:
        load.memory.append(load.server.memory())
        if stop.is_set():
            return
        await until(time.perf_counter() + 1.0, stop)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}: {error.stderr}")
