"""Worker processes, as who measures sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# An answer that takes longer does not come: inductor takes minutes for a large network on few processors.
PATIENCE = 1800.0


class Failed(Exception):
    """What an engine cannot do."""


class Worker:
    """A process of worker.py with one engine. It runs only while it is asked for something."""

    def __init__(self, python: str, engine: str, job: Mapping[str, Any], log: Path) -> None:
        environment = os.environ | {
            # OpenMP takes its threads from here, whatever PyTorch is told later.
            "OMP_NUM_THREADS": str(job["threads"]),
            # What inductor compiled for an earlier run would be taken for compiling.
            "TORCHINDUCTOR_CACHE_DIR": str(log.with_suffix(".cache")),
            "REGRAFT_PROGRESS": "0",
        }
        if python != sys.executable:
            # The package for this Python, and what it needs, is not for that one.
            environment.pop("PYTHONPATH", None)
        self.log = log
        with log.open("a") as messages:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", str(HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                bufsize=1,
                env=environment,
            )
        self._write({"engine": engine} | dict(job))
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """The answer.

        Raises:
            Failed: when the engine cannot, when the process ended, or when the answer does not come.

        """
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            self._write({"do": what} | details)
            self._signal(signal.SIGCONT)
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"{what}: the process ended ({self.process.wait()}): {last}")
        self._signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(f"{what}: {answer['failed']}")
        return answer

    def close(self) -> None:
        """Ends the process, at once: it has nothing to put away."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        # That the process ended is seen where the answer is read.
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(line) + "\n")

    def _signal(self, number: signal.Signals) -> None:
        # Does nothing to a process that ended.
        self.process.send_signal(number)


def peers_python() -> str:
    """The Python of the environment with the other engines, which is made if there is none."""
    # Of the same version as this one: the exporter to ONNX uses packages of both.
    environment = os.environ | {"PYTHON": sys.executable}
    environment.pop("PYTHONPATH", None)
    command = [str(ROOT / "scripts/small-env.sh"), "peers", str(ROOT / "requirements/peers.txt"), "490 MB"]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    *messages, python = told.splitlines()
    print("\n".join(messages), file=sys.stderr)
    return python


def prepare(python: str, model: str, batch: int, folder: Path) -> dict[str, Any]:
    """Has prepare.py write a model; what it tells.

    Raises:
        Failed: when it cannot be exported.

    """
    packages = next(Path(python).parents[1].glob("lib/python3*/site-packages"))
    command = [sys.executable, str(HERE / "prepare.py"), model, str(batch), str(folder), str(packages)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    (folder / "prepare.log").write_text(done.stderr)
    if done.returncode != 0:
        raise Failed(f"prepare: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads((folder / "facts.json").read_text())
