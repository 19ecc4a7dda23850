"""Refits of BERT-base from a state dict in memory: `refit_module_weights` next to the refit in Rust.

    make build python && cargo build --release -p regraft-bench-refit
    PYTHONPATH=target/python PYTHON bench/python/refit.py      # with the environment of scripts/python-env.sh

Both sides are interleaved. The Rust figure is that of bench/refit: all weights change, from tensors in
memory.
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
from transformers import BertConfig, BertModel

import regraft

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from exporting import exported  # noqa: E402

ROUNDS = 5
REFITS = 12
BINARY = ROOT / "target/release/regraft-bench-refit"


def states() -> list[dict[str, torch.Tensor]]:
    """Two state dicts in which every tensor differs."""
    model = BertModel(BertConfig()).eval()
    first = {name: torch.randn_like(value) * 0.02 for name, value in model.state_dict().items()}
    return [first, {name: value + 0.01 for name, value in first.items()}]


def from_python(compiled: regraft.Module, given: list[dict[str, torch.Tensor]]) -> list[float]:
    times = []
    for turn in range(REFITS):
        start = time.perf_counter()
        regraft.refit_module_weights(compiled, given[turn % 2], in_place=True)
        times.append((time.perf_counter() - start) * 1e3)
    # The first ones bring memory into use.
    return times[2:]


def from_rust(models: Path, figures: Path) -> float:
    command = [BINARY, models, "--only", "bert_base", "--rounds", str(REFITS), "--json", figures]
    subprocess.run(command, check=True, capture_output=True)
    rows = [row["refit"] for row in json.loads(figures.read_text())]
    [full] = [row for row in rows if row["what"] == "all weights"]
    return float(full["refit_ms"])


def main() -> None:
    ids = torch.randint(0, 1000, (1, 128))
    compiled = regraft.compile(BertModel(BertConfig()).eval(), (ids,))
    given = states()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported("bert_base").archive(folder / "bert_base.pt2", "a")
        from_python(compiled, given)
        rounds = [
            (from_python(compiled, given), from_rust(folder, folder / "figures.json")) for _ in range(ROUNDS)
        ]
    python = statistics.median(time for times, _ in rounds for time in times)
    rust = statistics.median(time for _, time in rounds)
    print(f"from Python {python:.1f} ms, in Rust {rust:.1f} ms, ratio {python / rust:.2f}")


if __name__ == "__main__":
    main()
