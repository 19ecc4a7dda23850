"""The engine once, without weights; the weights as often as they change.

The engine is compiled here. Another process, which has neither the code of the network nor its program, takes
the engine and a weight file.

PYTHON examples/stripped_distribution.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

import regraft

INPUT = torch.ones(1, 3, 96, 96)

SERVER = """
import sys, torch, regraft
engine, weights = sys.argv[1:]
model = regraft.load(engine)
try:
    model(torch.ones(1, 3, 96, 96))
except regraft.NotBoundError:
    print("server: no weights yet")
report = model.refit(weights)
print(f"server: {len(report.applied)} weights bound")
print(f"server: class {model(torch.ones(1, 3, 96, 96)).argmax().item()}")
"""


def size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def main() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compiled = regraft.compile(net, (INPUT,), mode="stripped")
        regraft.save(compiled, folder / "resnet18")
        save_file(net.state_dict(), folder / "weights.safetensors")
        sizes = [size(folder / name) / 1e6 for name in ("resnet18", "weights.safetensors")]
        print(f"engine: {sizes[0]:.1f} MB, weights: {sizes[1]:.1f} MB")
        subprocess.run(
            [sys.executable, "-c", SERVER, folder / "resnet18", folder / "weights.safetensors"], check=True
        )
    with torch.no_grad():
        print(f"PyTorch: class {net(INPUT).argmax().item()}")


if __name__ == "__main__":
    main()
