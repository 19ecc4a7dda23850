"""A process with one engine, which does what the lines of its stdin ask and answers each with a line of JSON.

The first line is the job. `run.py` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from engines import ENGINES, Engine, Job, seconds

# Part of a block that is run before it counts: what the engine has in caches another one took.
WARM = 0.15


class Worker:
    """The requests that the process answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def build(self) -> dict[str, Any]:
        return {"compile": self.engine.build()}

    def load(self, save: str) -> dict[str, Any]:
        """To the first answer, which is saved."""
        start = time.perf_counter()
        compile = self.engine.load()
        self.engine.run()
        took = time.perf_counter() - start
        facts: dict[str, Any] = {"peak": peak()}
        if compile is not None:
            facts["compile"] = compile
        if self.engine.builds:
            facts["load"] = took
        self.save(save)
        return facts

    def block(self, length: float) -> dict[str, float]:
        """The median time of the runs of one block, and how many processors were busy meanwhile."""
        self.times(WARM * length)
        start, before = time.perf_counter(), time.process_time()
        times = self.times(length)
        busy = (time.process_time() - before) / (time.perf_counter() - start)
        return {"ms": 1e3 * statistics.median(times), "runs": len(times), "busy": busy}

    def times(self, length: float) -> list[float]:
        end = time.perf_counter() + length
        times = [seconds(self.engine.run)]
        while time.perf_counter() < end:
            times.append(seconds(self.engine.run))
        return times

    def renew(self, which: str, save: str) -> dict[str, Any]:
        """New weights, and what it computes with them."""
        took = self.engine.renew(which)
        self.save(save)
        return {"renew": took}

    def save(self, path: str) -> None:
        np.savez(path, **{str(index): array for index, array in enumerate(self.engine.outputs())})


def peak() -> int:
    """The most bytes of this process that were in memory at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def die_with_parent() -> None:
    """A worker is stopped while others are measured, and could then not see its parent end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def answers() -> TextIO:
    """The pipe of the answers: what libraries print goes to the log."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return pipe


def main() -> None:
    die_with_parent()
    pipe = answers()
    about = json.loads(sys.stdin.readline())
    name = about.pop("engine")
    worker = Worker(ENGINES[name](Job(**about | {"folder": Path(about["folder"])})))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked.pop("do"))(**asked)
        except Exception as error:
            traceback.print_exc()
            told = str(error).strip().splitlines() or [""]
            answer = {"failed": f"{type(error).__name__}: {told[0]}"}
        pipe.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
