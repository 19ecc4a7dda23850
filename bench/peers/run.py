"""Regraft next to ONNX Runtime, OpenVINO and PyTorch on the CPU, with the same models, weights and inputs.

With the environment of scripts/python-env.sh (`make peers` does it all):

    make python
    PYTHONPATH=target/python PYTHON bench/peers/run.py --threads 1 2 --state peers.json
    PYTHONPATH=target/python PYTHON bench/peers/run.py --models resnet50 vit_b_16 --dtype bf16 --batch 1 8
    PYTHONPATH=target/python PYTHON bench/peers/run.py --threads 1 2 --state peers.json \\
        --update docs/performance.md

The others are installed from PyPI into an environment of their own (requirements/peers.txt). Each engine is
in a process of its own. They are interleaved, in blocks of half a second with pauses between, and a
process that is not measured is stopped, so that no engine's waiting threads slow another down. A figure is
the median over blocks of the median run of each. All results are compared with PyTorch's in f32; an engine
whose results are wrong has no time. What was measured is kept in the state file, from which a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from driver import Failed, Worker, peers_python, prepare
from engines import ENGINES
from plot import draw
from results import MODELS, Result, State, document, summary

# In the environment of their own.
PEERS = {"onnxruntime", "openvino"}
# How often weights are changed: rebuilding takes longer, and scatters less.
REFITS, REBUILDS = 6, 2
# The norm of the difference from PyTorch in f32, next to that of its results, above which results are wrong.
# Convolutional networks with random weights lose a tenth in bf16, also in PyTorch.
LIMITS = {"f32": 1e-3, "bf16": 0.3}
SECONDS = 0.5
PAUSE = 0.2
# AOTInductor takes minutes to compile a model, and runs what inductor does.
USUAL = [name for name in ENGINES if name != "aoti"]


def main() -> None:
    options = parsed()
    state = State(options.state)
    wanted = [
        (model, batch, threads, dtype)
        for model in options.models
        for batch in options.batch
        for dtype in options.dtype
        for threads in options.threads
    ]
    python = peers_python()
    for model, batch in dict.fromkeys((model, batch) for model, batch, _, _ in wanted):
        left = [job for job in wanted if job[:2] == (model, batch) and state.find(*job) is None]
        if left:
            measure_model(python, model, batch, left, options, state)
    results = [result for job in wanted if (result := state.find(*job))]
    print("\n".join(summary(results)))
    if options.json:
        options.json.write_text(json.dumps([result.facts() for result in results], indent=1) + "\n")
    if options.svg:
        options.svg.write_text(draw(results))
    if options.update:
        document(options.update, results)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=USUAL, metavar="ENGINE")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--dtype", nargs="+", choices=list(LIMITS), default=["f32"])
    parser.add_argument("--tune", choices=["off", "fast", "full"], default="off", help="Regraft's")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each engine")
    parser.add_argument("--state", type=Path, help="where figures are kept, to go on from")
    parser.add_argument("--json", type=Path, help="a file for the figures of this run")
    parser.add_argument("--svg", type=Path, help="a file for a picture of them")
    parser.add_argument("--update", type=Path, help="a document whose tables are replaced")
    return parser.parse_args()


def measure_model(
    python: str,
    model: str,
    batch: int,
    jobs: list[tuple[str, int, int, str]],
    options: argparse.Namespace,
    state: State,
) -> None:
    """All measurements of one model with one batch size. Its files are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"peers-{model}-") as text:
        folder = Path(text)
        try:
            prepare(python, model, batch, folder)
        except Failed as failure:
            print(f"{model}, batch {batch}: {failure}", file=sys.stderr)
            return
        for *_, threads, dtype in jobs:
            result = Result(model, threads, batch, dtype)
            Measurement(python, folder, result, options).run()
            print(result.line(), flush=True)
            state.keep(result)


class Measurement:
    """One model with one batch, number of threads and type, on all engines."""

    def __init__(self, python: str, folder: Path, result: Result, options: argparse.Namespace) -> None:
        self.python, self.folder, self.result = python, folder, result
        self.rounds = options.rounds
        self.engines = [name for name in options.engines if result.dtype in ENGINES[name].dtypes]
        self.job = {
            "model": result.model,
            "folder": str(folder),
            "threads": result.threads,
            "dtype": result.dtype,
            "tune": options.tune,
        }
        self.workers: dict[str, Worker] = {}

    def run(self) -> None:
        with ExitStack() as stack:
            for name in self.engines:
                self.result.engines[name] = {}
                self.attempt(name, lambda name=name: self.begin(name, stack))
            for turn in range(self.rounds):
                # None is always the one after the slowest.
                for name in rotated(self.engines, turn):
                    self.attempt(name, lambda name=name: self.block(name))
            for name in self.engines:
                self.attempt(name, lambda name=name: self.renew(name))
        for facts in self.result.engines.values():
            if "failed" not in facts:
                facts["ms"] = statistics.median(facts["blocks"])

    def attempt(self, name: str, step: Any) -> None:
        """One that fails takes no more part."""
        if "failed" in self.result.engines[name]:
            return
        try:
            step()
        except Failed as failure:
            self.result.engines[name]["failed"] = str(failure)
            print(f"{self.result.title()}: {name}: {failure}", file=sys.stderr)

    def worker(self, name: str) -> Worker:
        python = self.python if name in PEERS else sys.executable
        log = self.folder / f"{name}-{self.result.threads}-{self.result.dtype}.log"
        return Worker(python, name, self.job, log)

    def begin(self, name: str, stack: ExitStack) -> None:
        facts = self.result.engines[name]
        if ENGINES[name].builds:
            with self.worker(name) as builder:
                facts |= builder.ask("build")
        worker = stack.enter_context(self.worker(name))
        facts |= worker.ask("load", save=str(self.outputs(name)))
        facts["error"] = self.compare(name, "a")
        self.workers[name] = worker

    def block(self, name: str) -> None:
        time.sleep(PAUSE)
        found = self.workers[name].ask("block", length=SECONDS)
        facts = self.result.engines[name]
        facts.setdefault("blocks", []).append(found["ms"])
        facts["busy"] = max(found["busy"], facts.get("busy", 0.0))

    def renew(self, name: str) -> None:
        """New weights, alternately those of both files."""
        refits = ENGINES[name].refits
        if not ENGINES[name].renews:
            return
        took = []
        for turn in range(REFITS if refits else REBUILDS):
            time.sleep(PAUSE)
            which = "ba"[turn % 2]
            found = self.workers[name].ask("renew", which=which, save=str(self.outputs(name)))
            # What was rebuilt has the weights of the one file that there is.
            self.compare(name, which if refits else "a")
            took.append(1e3 * found["renew"])
        self.result.engines[name]["renew_ms"] = statistics.median(took)

    def outputs(self, name: str) -> Path:
        return self.folder / f"outputs-{name}.npz"

    def compare(self, name: str, which: str) -> float:
        """How far the results are from PyTorch's.

        Raises:
            Failed: when they are wrong.

        """
        with np.load(self.folder / f"expected_{which}.npz") as wanted, np.load(self.outputs(name)) as found:
            if set(wanted) != set(found):
                raise Failed(f"expected {len(set(wanted))} results, found {len(set(found))}")
            errors = [distance(found[key], wanted[key]) for key in wanted]
        error = max(errors)
        if not error <= LIMITS[self.result.dtype]:
            raise Failed(f"wrong results: {error:.1e} from PyTorch's, with weights {which}")
        return error


def rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        raise Failed(f"expected a result of {wanted.shape}, found {found.shape}")
    exact = wanted.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    main()
