"""Single operators next to PyTorch's eager mode: interleaved, on the same tensors, with the same threads.

With the environment of scripts/python-env.sh:

    make python
    PYTHONPATH=target/python PYTHON bench/ops/run.py
    PYTHONPATH=target/python PYTHON bench/ops/run.py --only cumsum,sort --threads 2
    PYTHONPATH=target/python PYTHON bench/ops/run.py --update docs/performance.md

Prints medians in ms and their ratio; what takes more than 1.2 times as long as PyTorch is marked. Ratios are
those of medians over rounds, of which each times a few runs of either side.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import regraft

TARGET = 1.2
# Between these lines of a document stands the table.
BEGIN, END = "<!-- bench/ops -->", "<!-- end of bench/ops -->"
# How many times as long as PyTorch operators took when all but f32 ran on the reference evaluator.
BEFORE = {
    "add i32": 109,
    "and bool": 44,
    "cumsum i64": 86,
    "sum i64": 35,
    "prod f32": 69,
    "flip f32": 78,
    "index_select f32": 33,
    "gather f32": 11,
    "cast f32 to bf16": 50,
    "cast bf16 to f32": 30,
    "conv_transpose2d 4x4": 96,
    "conv3d": 28,
    "resize nearest": 37,
    "resize bilinear": 12,
    "resize bicubic": 14,
    "lstm": 9,
    "linear f64": 138,
    "log1p f32": 29,
    "sin f32": 17,
    "tan f32": 17,
    "softmax f32": 4,
    "add f32": 3,
}
# Seconds of one side in a round.
SLICE = 0.03

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
I64, I32, BOOL = torch.int64, torch.int32, torch.bool
Case = tuple[Callable[..., Any], tuple[Tensor, ...]]


def floats(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(*shape: int, below: int = 100, dtype: torch.dtype = I64, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(module: nn.Module, *inputs: Tensor) -> Case:
    return module.eval(), inputs


def large() -> dict[str, Case]:
    """Operators on 4 x 1024 x 1024 elements."""
    x, y = floats(4, 1024, 1024), floats(4, 1024, 1024, seed=1)
    i, j = whole(4, 1024, 1024), whole(4, 1024, 1024, seed=1)
    p, q = x > 0, y > 0
    rows = whole(4, 1024, below=1024, seed=2)
    at = whole(4, 1024, 1024, below=1024, seed=3)
    cases: dict[str, Case] = {
        "add f32": (lambda a, b: a + b, (x, y)),
        "add bf16": (lambda a, b: a + b, (x.to(BF16), y.to(BF16))),
        "add i32": (lambda a, b: a + b, (i.to(I32), j.to(I32))),
        "add i64": (lambda a, b: a + b, (i, j)),
        "mul f64": (lambda a, b: a * b, (x.to(F64), y.to(F64))),
        "and bool": (lambda a, b: a & b, (p, q)),
        "where f32": (torch.where, (p, x, y)),
        "equal i64": (lambda a, b: a == b, (i, j)),
        "cast f32 to bf16": (lambda a: a.to(BF16), (x,)),
        "cast bf16 to f32": (lambda a: a.to(F32), (x.to(BF16),)),
        "cast i64 to f32": (lambda a: a.to(F32), (i,)),
        "sum i64": (lambda a: a.sum(-1), (i,)),
        "sum f32": (lambda a: a.sum(-1), (x,)),
        "sum f32 of outer axes": (lambda a: a.sum((0, 2)), (x,)),
        "prod f32": (lambda a: a.prod(-1), (x,)),
        "argmax f32": (lambda a: a.argmax(-1), (x,)),
        "cumsum i64": (lambda a: a.cumsum(-1), (i,)),
        "cumsum f32": (lambda a: a.cumsum(-1), (x,)),
        "cumprod f32": (lambda a: a.cumprod(-1), (x,)),
        "flip f32": (lambda a: a.flip(-1), (x,)),
        "index_select f32": (lambda a, n: a.index_select(1, n), (x, rows[0])),
        "gather f32": (lambda a, n: a.gather(-1, n), (x, at)),
        "index_put f32": (lambda a, n, v: a.index_put((n,), v), (x[0], rows[0], y[0])),
        "scatter_add f32": (lambda a, n, v: a.scatter_add(-1, n, v), (x, at, y)),
        "sort f32": (lambda a: a.sort(-1), (x,)),
        "topk f32": (lambda a: a.topk(50, -1), (floats(4, 50257),)),
        "softmax f32": (lambda a: a.softmax(-1), (x,)),
        "softmax bf16": (lambda a: a.softmax(-1), (x.to(BF16),)),
        "batch_norm f32": layer(nn.Sequential(nn.BatchNorm2d(64)), floats(4, 64, 128, 128)),
        "layer_norm f32": layer(nn.LayerNorm(1024), x),
    }
    for name in ("exp", "log1p", "sin", "tan", "tanh", "erf", "sqrt", "sigmoid"):
        function = getattr(torch, name)
        cases[f"{name} f32"] = (lambda a, f=function: f(a), (x.abs(),))
    cases["gelu f32"] = (functional.gelu, (x,))
    cases["gelu bf16"] = (functional.gelu, (x.to(BF16),))
    return cases


def images() -> dict[str, Case]:
    """Operators on images, volumes and sequences."""
    x, v, s = floats(2, 64, 64, 64), floats(1, 16, 16, 48, 48), floats(4, 64, 4096)
    resize = functional.interpolate
    return {
        "conv_transpose1d": layer(nn.ConvTranspose1d(64, 32, 16, stride=8, padding=4), floats(2, 64, 512)),
        "conv_transpose2d 2x2": layer(nn.ConvTranspose2d(64, 32, 2, stride=2), x),
        "conv_transpose2d 4x4": layer(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), x),
        "conv_transpose2d 4x4 bf16": layer(
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1).to(BF16), x.to(BF16)
        ),
        "conv_transpose3d": layer(nn.ConvTranspose3d(16, 8, 2, stride=2), v),
        "conv3d": layer(nn.Conv3d(16, 32, 3, padding=1), v),
        "conv1d": layer(nn.Conv1d(64, 64, 5, padding=2), s),
        "resize nearest": (lambda a: resize(a, scale_factor=2.0), (x,)),
        "resize bilinear": (lambda a: resize(a, scale_factor=2.0, mode="bilinear"), (x,)),
        "resize bicubic": (lambda a: resize(a, scale_factor=2.0, mode="bicubic"), (x,)),
        "max_pool2d": (lambda a: functional.max_pool2d(a, 3, 2, 1), (x,)),
        "max_pool3d": (lambda a: functional.max_pool3d(a, 2), (v,)),
        "avg_pool3d": (lambda a: functional.avg_pool3d(a, 2), (v,)),
        "adaptive_avg_pool2d": (lambda a: functional.adaptive_avg_pool2d(a, 7), (x,)),
        "lstm": layer(nn.LSTM(256, 256, batch_first=True), floats(8, 64, 256)),
        "gru": layer(nn.GRU(256, 256, batch_first=True), floats(8, 64, 256)),
        "linear f32": layer(nn.Linear(768, 3072), floats(128, 768)),
        "linear bf16": layer(nn.Linear(768, 3072).to(BF16), floats(128, 768, dtype=BF16)),
        "linear f64": layer(nn.Linear(768, 768).to(F64), floats(128, 768, dtype=F64)),
    }


class Function(nn.Module):
    """A function as a module, to export it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def timed(run: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count * 1e3


def compare(case: Case, rounds: int, threads: int) -> tuple[float, float]:
    """Medians of PyTorch and of ours, in ms."""
    function, inputs = case
    module = function if isinstance(function, nn.Module) else Function(function)
    compiled = regraft.compile(module, inputs, threads=threads, min_block_size=1)
    if not compiled.models:
        raise RuntimeError("it stays in PyTorch")
    sides = [lambda: module(*inputs), lambda: compiled(*inputs)]
    counts = [max(1, int(SLICE * 1e3 / min(timed(side, 1), timed(side, 1)))) for side in sides]
    times = [[timed(side, count) for side, count in zip(sides, counts, strict=True)] for _ in range(rounds)]
    theirs, ours = (statistics.median(side) for side in zip(*times, strict=True))
    return theirs, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="names that contain one of these, by commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--update", type=Path, help="a document whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = [part for part in options.only.split(",") if part]
    lines = ["| operator | PyTorch, ms | ours, ms | ours / PyTorch | before |", "|---|---|---|---|---|"]
    slow = 0
    with torch.inference_mode():
        for name, case in (large() | images()).items():
            if wanted and not any(part in name for part in wanted):
                continue
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                try:
                    theirs, ours = compare(case, options.rounds, options.threads)
                except Exception as error:  # one operator must not end the table
                    print(f"{name:<28} {error}", flush=True)
                    continue
            ratio = ours / theirs
            notes = ["evaluator" for w in found if issubclass(w.category, regraft.SlowWarning)]
            notes += ["slower"] if ratio > TARGET else []
            slow += ratio > TARGET
            print(f"{name:<28} {theirs:9.3f} {ours:9.3f} {ratio:7.2f}  {' '.join(notes)}", flush=True)
            lines.append(f"| {name} | {theirs:.3f} | {ours:.3f} | {ratio:.2f} | {BEFORE.get(name, '')} |")
    print(f"{slow} of {len(lines) - 2} take more than {TARGET} times as long as PyTorch")
    if options.update:
        head, _, rest = options.update.read_text().partition(BEGIN)
        _, _, tail = rest.partition(END)
        options.update.write_text("\n".join([head + BEGIN, "", *lines, "", END + tail]))


if __name__ == "__main__":
    main()
