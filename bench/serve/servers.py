"""The servers that are measured: `regraft serve`, and ONNX Runtime behind FastAPI or MLServer."""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every measurement of a server has; `about` is the script's docstring."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--regraft", default="regraft", help="the command")
    parser.add_argument("--serve", default="", help="more options of the server, such as '--batch 16'")
    parser.add_argument(
        "--size", type=int, default=1, help="what sizes that vary are, besides those in --sizes"
    )
    parser.add_argument("--sizes", default="", help="NAME=1x128,... of inputs")
    parser.add_argument("--ids", type=int, default=100, help="integers are below this")
    return parser


class Server:
    """`regraft serve` on this machine, for as long as the block lasts."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, clients: int) -> None:
        self.adapters = folder / "adapters"
        self.adapters.mkdir()
        command = [arguments.regraft, "serve", f"m={arguments.engine}", "--address", "127.0.0.1:0", "--json"]
        command += ["--adapters", str(self.adapters)]
        # A few connections for publishing and for looking.
        more = ["--max-connections", str(clients + 64), "--queue", str(max(256, clients + 64))]
        self.process = subprocess.Popen(
            command + more + arguments.serve.split(), stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        address = json.loads(self.process.stdout.readline())["listening"].removeprefix("http://")
        host, _, port = address.rpartition(":")
        self.place = (host, int(port))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.place, timeout=60)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {text.decode()}")
        return json.loads(text)

    def get(self, path: str) -> dict[str, Any]:
        return self.call("GET", path)

    def runs(self) -> tuple[float, float]:
        """How many there were, and the seconds of all."""
        about = self.get("/inspector/state")["models"][0]["metrics"]["run_seconds"]
        return about["count"], about["sum"]

    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        return resident(self.process.pid)


class Baseline:
    """A script of this folder that serves a model, on this machine, for as long as the block lasts."""

    def __init__(self, script: str, model: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.place = ("127.0.0.1", port)
        self.script = script
        with (folder / "baseline.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(script)), str(model), str(port)],
                stdout=log,
                stderr=log,
            )
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit((folder / "baseline.log").read_text())
            try:
                socket.create_connection(self.place).close()
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the baseline did not start within a minute")

    def __enter__(self) -> Baseline:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def runs(self) -> tuple[float, float]:
        """It tells none."""
        return 0.0, 0.0

    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        return resident(self.process.pid)


def resident(process: int) -> int:
    """Bytes of a process that are in memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
