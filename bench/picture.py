"""The picture of the README: how long each request takes while weights are replaced.

    make python
    PYTHONPATH=target/python PYTHON bench/picture.py      # writes docs/images/latency.svg

One thread asks ResNet-18 for an answer again and again. In the second half another thread refits all weights
every half second, alternating between two checkpoints. Each request is a dot, at the time when it began. Each
answer is compared, bit for bit, with the answers of the two checkpoints: a third answer is an error.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

import regraft

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 5.0
EVERY = 0.5
COLORS = ("#2563eb", "#ea580c")


@dataclass
class Request:
    """One request: when it began and how long it took, in seconds, and which checkpoint answered."""

    began: float
    took: float
    checkpoint: int


@dataclass
class Measured:
    """What is drawn."""

    requests: list[Request]
    refits: list[tuple[float, float]]
    """When each refit began, in seconds, and its milliseconds."""

    def milliseconds(self, of_refits: bool) -> list[float]:
        """Latencies of the half with refits, or of the one without."""
        return sorted(one.took * 1e3 for one in self.requests if (one.began >= SECONDS) == of_refits)


def measure() -> Measured:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    nets = [torchvision.models.resnet18().eval() for _ in range(2)]
    states = [net.state_dict() for net in nets]
    x = torch.randn(1, 3, 224, 224)
    compiled = regraft.compile(nets[0], (x,), threads=1)
    answers = []
    for turn in range(4):
        # The first refits bring memory into use.
        compiled.refit(states[turn % 2])
        answers = [*answers[-1:], compiled(x)]
    compiled.refit(states[0])
    for _ in range(10):
        compiled(x)

    requests: list[Request] = []
    refits: list[tuple[float, float]] = []
    start = time.perf_counter()

    def refit() -> None:
        turn = 0
        while (ahead := SECONDS + turn * EVERY) < 2 * SECONDS:
            time.sleep(max(0.0, ahead - (time.perf_counter() - start)))
            turn += 1
            began = time.perf_counter() - start
            compiled.refit(states[turn % 2])
            refits.append((began, (time.perf_counter() - start - began) * 1e3))

    other = threading.Thread(target=refit)
    other.start()
    while (began := time.perf_counter() - start) < 2 * SECONDS:
        found = compiled(x)
        took = time.perf_counter() - start - began
        [checkpoint] = [number for number, answer in enumerate(answers) if torch.equal(found, answer)]
        requests.append(Request(began, took, checkpoint))
    other.join()
    return Measured(requests, refits)


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def draw(measured: Measured) -> str:
    """The picture as SVG, which needs no font and no script of its own."""
    width, height, left, top, right, bottom = 860, 300, 56, 46, 16, 44
    across, down = width - left - right, height - top - bottom
    highest = max(one.took for one in measured.requests) * 1e3 * 1.15

    def at(seconds: float, milliseconds: float) -> tuple[float, float]:
        return left + across * seconds / (2 * SECONDS), top + down * (1 - milliseconds / highest)

    def text(x: float, y: float, content: str, style: str) -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" {style}>{content}</text>'

    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="12">',
        "<title>Latency of each request while weights are replaced</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    quiet, loud = 'fill="#4b5563"', 'fill="#111827"'
    step = 10 if highest <= 80 else 25 if highest <= 200 else 100
    for value in range(0, int(highest) + 1, step):
        x, y = at(0, value)
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{width - right}" stroke="#e5e7eb"/>')
        parts.append(text(x - 8, y + 4, str(value), f'text-anchor="end" {quiet}'))
    for second in range(int(2 * SECONDS) + 1):
        x, y = at(second, 0)
        parts.append(text(x, y + 16, str(second), f'text-anchor="middle" {quiet}'))
    for began, _ in measured.refits:
        x, _ = at(began, 0)
        parts.append(f'<path d="M{x:.1f} {top}V{top + down}" stroke="#9ca3af" stroke-dasharray="3 3"/>')
    for one in measured.requests:
        x, y = at(one.began, one.took * 1e3)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{COLORS[one.checkpoint]}"/>')
    refit = statistics.median(took for _, took in measured.refits)
    changing = f"all weights replaced every {EVERY:g} s (a refit takes {refit:.1f} ms)"
    for half, name in ((0, "weights stay"), (1, changing)):
        values = measured.milliseconds(of_refits=half == 1)
        x, _ = at(half * SECONDS, 0)
        figures = f"median {statistics.median(values):.1f} ms, 99 % within {percentile(values, 0.99):.1f} ms"
        parts.append(text(x + 4, 18, name, f'{loud} font-weight="bold"'))
        parts.append(text(x + 4, 34, figures, loud))
    caption = (
        "seconds; milliseconds of each request, colored by the checkpoint that answered"
        " (ResNet-18, one thread; dashed: a refit begins)"
    )
    parts.append(text(left, height - 8, caption, quiet))
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/latency.svg")
    arguments = parser.parse_args()
    measured = measure()
    arguments.output.write_text(draw(measured))
    for name, of_refits in (("weights stay", False), ("weights change", True)):
        values = measured.milliseconds(of_refits)
        median, late = statistics.median(values), percentile(values, 0.99)
        print(f"{name}: {len(values)} requests, median {median:.1f} ms, p99 {late:.1f} ms")
    took = [took for _, took in measured.refits]
    print(f"{len(took)} refits, median {statistics.median(took):.1f} ms; {arguments.output}")


if __name__ == "__main__":
    main()
