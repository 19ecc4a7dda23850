"""The figures of docs/figures.md: every model of the test zoo through `regraft bench`, as a Markdown table.

    PYTHON bench/figures.py            # with the environment of scripts/python-env.sh and a release build

Latency of the refittable and the frozen engine is measured interleaved in one run; so are refits and copies
of the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import find_binary  # noqa: E402
from exporting import exported  # noqa: E402
from models import ZOO  # noqa: E402


def regraft(*arguments: str | Path) -> dict:
    command = [find_binary(), *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, folder: Path) -> dict:
    model = exported(name)
    program = model.archive(folder / f"{name}.pt2", "a")
    refittable, frozen = folder / "refittable.rgf", folder / "frozen.rgf"
    compiled = regraft("compile", program, "-o", refittable)
    regraft("compile", program, "-o", frozen, "--mode", "frozen")
    return compiled | regraft("bench", refittable, "--against", frozen)


def main() -> None:
    print(
        "| model | inputs | compile | latency | refittable ÷ frozen "
        "| weights | refit of all | copy | refit ÷ copy |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or ZOO:
        with tempfile.TemporaryDirectory() as folder:
            facts = measure(name, Path(folder))
            print(row(name, facts), flush=True)


def row(name: str, facts: dict) -> str:
    shapes = ", ".join(text.split("[")[1].rstrip("]").replace(", ", "×") for text in facts["inputs"])
    refit = facts["refit"]
    cells = [
        name,
        shapes,
        f"{1e3 * (facts['import_seconds'] + facts['build_seconds']):.0f} ms",
        f"{facts['latency_ms']['median']:.1f} ms",
        f"{facts['against']['ratio_of_medians']:.3f}",
        f"{refit['bytes'] / 1e6:.0f} MB",
        f"{refit['ms']['median']:.1f} ms",
        f"{refit['copy_ms']['median']:.1f} ms",
        f"{refit['ratio_of_medians']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
