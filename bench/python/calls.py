"""What a call from Python costs on top of the run: a small module, called from Python and run by `regraft
bench`.

    make build python
    PYTHONPATH=target/python PYTHON bench/python/calls.py      # with the environment of scripts/python-env.sh

Both sides are interleaved; medians of all rounds are printed, with their difference.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import regraft

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import find_binary  # noqa: E402

ROUNDS = 7
CALLS = 5000


def from_python(compiled: torch.nn.Module, x: torch.Tensor) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(CALLS):
            start = time.perf_counter()
            compiled(x)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def from_rust(engine: Path) -> float:
    command = [find_binary(), "bench", engine, "--runs", str(CALLS), "--json"]
    facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return facts["latency_ms"]["median"] * 1e3


def main() -> None:
    x = torch.randn(1, 64)
    compiled = regraft.compile(torch.nn.Linear(64, 64).eval(), (x,))
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "linear.rgf"
        compiled.models[0].save(engine)
        rounds = [(from_python(compiled, x), from_rust(engine)) for _ in range(ROUNDS)]
    call, run = (statistics.median(side) for side in zip(*rounds, strict=True))
    print(f"call from Python {call:.1f} µs, run in Rust {run:.1f} µs, overhead {call - run:.1f} µs")


if __name__ == "__main__":
    main()
