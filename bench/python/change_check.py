"""What it costs a mutable module to find out, at each call, that nothing changed: BERT-base, 199 parameters.

    PYTHONPATH=target/python PYTHON bench/python/change_check.py

With the environment of scripts/python-env.sh. `again` is one check after the other; `after a run` is one
check after each run of the compiled module, whose weights have pushed everything else out of the caches.
Then what it costs that something did change: the call that takes it in.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import regraft

CHECKS = 1000
RUNS = 40
CHANGES = 10


def microseconds(
    check: Callable[[], object], times: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    found = []
    for _ in range(times):
        before()
        start = time.perf_counter()
        check()
        found.append((time.perf_counter() - start) * 1e6)
    return found


def line(name: str, found: list[float]) -> str:
    tenths = statistics.quantiles(found, n=10)
    return f"{name:34} median {statistics.median(found):9.1f} us   p90 {tenths[-1]:9.1f} us"


def processor() -> str:
    names = (row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name"))
    return next(names, platform.machine()).partition(":")[2].strip()


def main() -> None:
    torch.manual_seed(0)
    net = BertModel(BertConfig()).eval()
    ids = torch.randint(0, 30000, (1, 16))
    mutable = regraft.MutableModule(net)
    query = net.encoder.layer[0].attention.self.query

    def write() -> None:
        query.weight.data.mul_(1.01)

    with torch.inference_mode():
        # Exporting notes things down on the module, which the second call takes in.
        mutable(ids)
        mutable(ids)
        watcher = mutable._regraft_state.watcher
        assert watcher.look() is None
        print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"BERT-base: {len(list(net.parameters()))} parameters, {len(list(net.modules()))} modules")
        print(line("check, again", microseconds(watcher.look, CHECKS)))
        print(line("check, after a run", microseconds(watcher.look, RUNS, lambda: mutable(ids))))
        compiled = mutable.compiled
        print(line("call of the compiled module", microseconds(lambda: compiled(ids), RUNS)))
        print(line("call of the mutable module", microseconds(lambda: mutable(ids), RUNS)))
        print(line("call after one weight changed", microseconds(lambda: mutable(ids), CHANGES, write)))
        print(
            line(
                "call that compares everything", microseconds(lambda: mutable(ids), CHANGES, mutable.refresh)
            )
        )


if __name__ == "__main__":
    main()
