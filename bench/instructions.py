"""Instructions that the main CPU kernels execute, counted by valgrind.

With the environment of scripts/python-env.sh:

    make build
    PYTHON bench/instructions.py target/release/regraft                   # counts next to those in the table
    PYTHON bench/instructions.py target/release/regraft --update          # write the table

Each line is a small program on one thread. The count is that of one run: the difference of two processes, of
which one runs it more often. Valgrind has no AVX-512, so the kernels are those for AVX2, on any processor.
Counts do not depend on how busy the machine is, but they do on the version of Rust. A count that is more than
3 % above that in docs/performance.md is a warning; the exit status is 0.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
# Between these lines of the document stands the table.
BEGIN, END = "<!-- bench/instructions -->", "<!-- end of bench/instructions -->"
ALLOWED = 1.03
# Runs of the two processes.
FEW, MANY = 2, 6
REFITS = 14  # of `regraft bench`, each with a copy of the same bytes

Case = tuple[nn.Module, tuple[Tensor, ...]]


class Function(nn.Module):
    """A function as a module, to export it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def products() -> dict[str, Case]:
    x, one, wide = floats(128, 768), floats(1, 768), floats(1, 12, 128, 64)
    bf16 = torch.bfloat16
    return {
        "linear 128 x 768 x 768, GELU": (nn.Sequential(nn.Linear(768, 768), nn.GELU()), (x,)),
        "linear 1 x 768 x 3072": (nn.Linear(768, 3072), (one,)),
        "linear 128 x 768 x 768 bf16": (nn.Linear(768, 768).to(bf16), (x.to(bf16),)),
        "attention, 12 heads of 128 x 64": (
            Function(functional.scaled_dot_product_attention),
            (wide, wide, wide),
        ),
        "LSTM, 16 steps of 256": (nn.LSTM(256, 256, batch_first=True), (floats(4, 16, 256),)),
    }


def images() -> dict[str, Case]:
    def relu(layer: nn.Module) -> nn.Module:
        return nn.Sequential(layer, nn.ReLU())

    narrow, x, wide = floats(1, 16, 56, 56), floats(1, 64, 28, 28), floats(1, 96, 28, 28)
    return {
        "conv 7 x 7 of 3 channels": (relu(nn.Conv2d(3, 32, 7, 2, 3)), (floats(1, 3, 112, 112),)),
        "conv 3 x 3, 64 to 64": (relu(nn.Conv2d(64, 64, 3, padding=1)), (x,)),
        "conv 1 x 1, 64 to 256": (relu(nn.Conv2d(64, 256, 1)), (x,)),
        "conv 1 x 1, 16 to 64": (relu(nn.Conv2d(16, 64, 1)), (narrow,)),
        "depthwise 3 x 3": (nn.Sequential(nn.Conv2d(96, 96, 3, 1, 1, groups=96), nn.Hardswish()), (wide,)),
        "depthwise 5 x 5, stride 2": (relu(nn.Conv2d(96, 96, 5, 2, 2, groups=96)), (wide,)),
        "depthwise 7 x 7": (nn.Conv2d(96, 96, 7, 1, 3, groups=96), (wide,)),
        "transposed conv 2 x 2": (nn.ConvTranspose2d(64, 32, 2, 2), (x,)),
        "group norm": (nn.GroupNorm(8, 64), (x,)),
        "max pool 3 x 3": (nn.MaxPool2d(3, 2, 1), (x,)),
        "bilinear resize": (nn.Upsample(scale_factor=2.0, mode="bilinear"), (x,)),
    }


def rows() -> dict[str, Case]:
    x = floats(128, 1024)
    return {
        "softmax": (nn.Softmax(-1), (x,)),
        "layer norm": (nn.LayerNorm(1024), (x,)),
        "sum": (Function(lambda a: a.sum(-1)), (x,)),
        "SiLU of one times the other": (Function(lambda a, b: functional.silu(a) * b), (x, x)),
        "sine": (Function(torch.sin), (x,)),
        "cast to bf16": (Function(lambda a: a.to(torch.bfloat16)), (x,)),
        "embedding": (nn.Embedding(1000, 768), (torch.arange(128) * 7 % 1000,)),
    }


def counted(*command: str | Path) -> int:
    """Instructions that a command executes."""
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *map(str, command)]
    said = subprocess.run(valgrind, check=True, capture_output=True, text=True).stderr
    return int(re.findall(r"Collected : (\d+)", said)[-1])


def compiled(regraft: Path, case: Case, mode: str, folder: Path) -> Path:
    module, inputs = case
    program, engine = folder / "program.pt2", folder / f"{mode}.rgf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module.eval(), inputs), program)
    # Under valgrind, so that it is for the processor that valgrind shows.
    command: list[str | Path] = [
        "valgrind",
        "--tool=none",
        regraft,
        "compile",
        program,
        "-o",
        engine,
        "--mode",
        mode,
    ]
    subprocess.run([*command, "--no-cache"], check=True, capture_output=True)
    return engine


def run_of(regraft: Path, case: Case, folder: Path) -> float:
    engine = compiled(regraft, case, "frozen", folder)
    few, many = (counted(regraft, "bench", engine, "--threads", "1", "--runs", str(n)) for n in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def refit_of(regraft: Path, case: Case, folder: Path) -> float:
    both = [compiled(regraft, case, mode, folder) for mode in ("frozen", "refittable")]
    frozen, refitted = (counted(regraft, "bench", e, "--threads", "1", "--runs", str(FEW)) for e in both)
    return (refitted - frozen) / REFITS


def table(document: str) -> dict[str, float]:
    inside = document.partition(BEGIN)[2].partition(END)[0]
    lines = [line.split("|")[1:3] for line in inside.splitlines() if line.startswith("| ")]
    return {name.strip(): float(count) for name, count in lines[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("regraft", type=Path, help="the command, of a release build")
    parser.add_argument("--only", default="", help="lines that contain this")
    parser.add_argument("--update", action="store_true", help="write the table in docs/performance.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    document = DOCUMENT.read_text()
    before = table(document)
    ways = [(name, case, run_of) for name, case in (products() | images() | rows()).items()]
    layers = {"linear": nn.Linear(768, 768), "conv 3 x 3": nn.Conv2d(64, 64, 3, padding=1)}
    given = {"linear": floats(4, 768), "conv 3 x 3": floats(1, 64, 8, 8)}
    ways += [(f"refit and copy of {name}", (layers[name], (given[name],)), refit_of) for name in layers]
    lines = ["| run of | million instructions |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, case, count in ways:
            if options.only not in name:
                continue
            found = count(options.regraft.resolve(), case, Path(folder)) / 1e6
            lines.append(f"| {name} | {found:.3f} |")
            note = f"{found / before[name]:7.3f}" if name in before else "    new"
            if found > ALLOWED * before.get(name, found):
                note += "  warning: more than 3 % above the table"
            print(f"{name:<34} {found:10.3f} {note}", flush=True)
    if options.update:
        head, _, rest = document.partition(BEGIN)
        tail = rest.partition(END)[2]
        DOCUMENT.write_text("\n".join([head + BEGIN, "", *lines, "", END + tail]))


if __name__ == "__main__":
    main()
