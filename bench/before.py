"""Two builds of Regraft next to each other: whether a change made anything slower.

    git worktree add OLD COMMIT                       # and in each of both, with a target folder of its own:
    make build && cargo build --release -p regraft-bench-refit
    PYTHON bench/before.py OLD/target/release target/release [MODEL ...] [--json FILE]

For every model of the test zoo: compile time, latency at the exported sizes, full refit and, where
bench/refit measures them, LoRA swaps. The builds are interleaved (old, new, new, old); a figure is the
median of its turns, and every ratio is old ÷ new, so that above 1 the new build is faster. Ends with the
geometric mean of each column.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from exporting import exported  # noqa: E402
from models import ZOO  # noqa: E402

ROUNDS = 3
COLUMNS = ["compile", "latency", "full refit", "LoRA swap"]


def said(*command: str | Path) -> dict:
    return json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)


def turn(build: Path, program: Path, folder: Path) -> dict[str, float]:
    """One turn of one build, in milliseconds."""
    engine = folder / "model.rgf"
    compiled = said(build / "regraft", "compile", program, "-o", engine)
    bench = said(build / "regraft", "bench", engine)
    figures = folder / "refits.json"
    command = [build / "regraft-bench-refit", program.parent, "--only", program.stem, "--rounds", "12"]
    subprocess.run([*command, "--json", figures], check=True, capture_output=True)
    rows = [row["refit"] for row in json.loads(figures.read_text())]
    swaps = [row["refit_ms"] for row in rows if "LoRA" in row["what"]]
    return {
        "compile": 1e3 * (compiled["import_seconds"] + compiled["build_seconds"]),
        "latency": bench["latency_ms"]["median"],
        "full refit": bench["refit"]["ms"]["median"],
    } | ({"LoRA swap": statistics.geometric_mean(swaps)} if swaps else {})


def compare(old: Path, new: Path, program: Path, folder: Path) -> dict[str, tuple[float, float]]:
    turns: dict[Path, list[dict[str, float]]] = {old: [], new: []}
    for _ in range(ROUNDS):
        for build in (old, new, new, old):
            turns[build].append(turn(build, program, folder))

    def median(build: Path, column: str) -> float:
        return statistics.median(facts[column] for facts in turns[build])

    return {column: (median(old, column), median(new, column)) for column in turns[old][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    print(f"| model | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name in given.models or ZOO:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            program = exported(name).archive(folder / f"{name}.pt2", "a")
            rows[name] = compare(given.old.resolve(), given.new.resolve(), program, folder)
        print(f"| {name} | {' | '.join(cell(rows[name].get(column)) for column in COLUMNS)} |", flush=True)
    print(f"| geometric mean | {' | '.join(mean(rows, column) for column in COLUMNS)} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


def cell(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.2f} / {pair[1]:.2f} ms = {pair[0] / pair[1]:.3f}" if pair else "none"


def mean(rows: dict[str, dict[str, tuple[float, float]]], column: str) -> str:
    pairs = [row[column] for row in rows.values() if column in row]
    return f"{statistics.geometric_mean(old / new for old, new in pairs):.3f}" if pairs else "none"


if __name__ == "__main__":
    main()
