"""What was measured, as a file to go on from and as tables."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# In the order of the tables.
MODELS = {
    "resnet50": "ResNet-50",
    "mobilenet_v3_large": "MobileNetV3-L",
    "efficientnet_b0": "EfficientNet-B0",
    "convnext_tiny": "ConvNeXt-T",
    "vit_b_16": "ViT-B/16",
    "minilm_128": "MiniLM, 128 tokens",
    "bert_base_128": "BERT-base, 128 tokens",
    "bert_base_16": "BERT-base, 16 tokens",
    "bert_base_384": "BERT-base, 384 tokens",
    "whisper_tiny_encoder": "Whisper-tiny, encoder",
    "unet_half": "UNet of half the channels",
    "gpt2_prefill_128": "GPT-2, prompt of 128",
    "gpt2_token": "GPT-2, a token after 128",
    "llama_0.1b_token": "Llama of 0.1 B, a token after 128",
}
LABELS = {
    "regraft": "Regraft",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "eager": "PyTorch",
    "inductor": "inductor",
    "aoti": "AOTInductor",
}
RUNTIMES = ("onnxruntime", "openvino")
PYTORCH = ("eager", "inductor", "aoti")
# Between these lines of a document stand the tables.
BEGIN, END = "<!-- bench/peers -->", "<!-- end of bench/peers -->"


@dataclass
class Result:
    """One model with one batch, number of threads and type."""

    model: str
    threads: int
    batch: int
    dtype: str
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was found of each: `ms` or `failed`, `compile` and `load` in seconds, `peak` in bytes, `renew_ms`,
    `error` next to PyTorch in f32, and how many processors were `busy`.
    """

    def title(self) -> str:
        return f"{MODELS[self.model]}, {self.setting()}"

    def setting(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{threads}, batch {self.batch}, {self.dtype}"

    def facts(self) -> dict[str, Any]:
        ratios = {"runtimes_over_ours": self.ratio(RUNTIMES), "pytorch_over_ours": self.ratio(PYTORCH)}
        return asdict(self) | ratios

    def of(self, name: str, what: str) -> float | None:
        return self.engines.get(name, {}).get(what)

    def best(self, names: Collection[str]) -> float | None:
        """The shortest time."""
        times = [time for name in names if (time := self.of(name, "ms")) is not None]
        return min(times, default=None)

    def ratio(self, names: Collection[str]) -> float | None:
        """The shortest time of these, divided by ours: above 1 ours is shorter."""
        ours, theirs = self.of("regraft", "ms"), self.best(names)
        return theirs / ours if ours and theirs else None

    def line(self) -> str:
        times = [f"{name} {milliseconds(facts.get('ms'))}" for name, facts in self.engines.items()]
        return f"{self.title()}: {', '.join(times)} ms; of the faster {number(self.ratio(RUNTIMES))}"


class State:
    """The results of this run and of earlier ones with the same file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        kept = json.loads(path.read_text()) if path and path.exists() else []
        self.results = [Result(**facts) for facts in kept]

    def find(self, model: str, batch: int, threads: int, dtype: str) -> Result | None:
        for result in self.results:
            if (result.model, result.batch, result.threads, result.dtype) == (model, batch, threads, dtype):
                return result
        return None

    def keep(self, result: Result) -> None:
        self.results.append(result)
        if self.path:
            # Whole or not at all, when it is stopped meanwhile.
            unfinished = self.path.with_name(self.path.name + ".new")
            unfinished.write_text(json.dumps([asdict(each) for each in self.results], indent=1) + "\n")
            os.replace(unfinished, self.path)


# -------------------------------------------------------------------------------------------- tables


def summary(results: list[Result]) -> list[str]:
    """Tables of times, one for each number of threads, batch and type; then of what else was measured."""
    lines: list[str] = []
    for setting in dict.fromkeys(result.setting() for result in results):
        chosen = [result for result in results if result.setting() == setting]
        lines += [f"{setting[0].upper()}{setting[1:]}:", "", *times(chosen), ""]
    # Other threads and types cost about the same.
    firsts = {result.model: result for result in reversed(results)}
    lines += ["Beside the runs:", "", *costs([firsts[name] for name in MODELS if name in firsts])]
    failures = [
        f"- {result.title()}: {LABELS[name]}: {facts['failed']}"
        for result in results
        for name, facts in result.engines.items()
        if "failed" in facts
    ]
    return [*lines, "", "No time:", "", *failures] if failures else lines


def times(results: list[Result]) -> list[str]:
    names = shown(results)
    head = [f"{LABELS[name]}, ms" for name in names]
    rows = [
        [
            MODELS[result.model],
            *(milliseconds(result.of(name, "ms")) for name in names),
            number(result.ratio(RUNTIMES)),
            number(result.ratio(PYTORCH)),
        ]
        for result in results
    ]
    means = [mean(results, RUNTIMES), mean(results, PYTORCH)]
    rows.append(["geometric mean", *("" for _ in names), *means])
    return table(["model", *head, "runtimes ÷ ours", "PyTorch ÷ ours"], rows)


def costs(results: list[Result]) -> list[str]:
    """Each cell has one figure for each engine."""
    names = [name for name in shown(results) if name in ("regraft", *RUNTIMES, "eager")]
    columns = {
        "compile, s": ("compile", 1.0, 2),
        "load, ms": ("load", 1e3, 0),
        "peak memory, MB": ("peak", 1e-6, 0),
        "new weights, ms": ("renew_ms", 1.0, 1),
    }
    head = [f"{title} ({' / '.join(LABELS[name] for name in names)})" for title in columns]

    def cell(result: Result, what: str, factor: float, digits: int) -> str:
        found = [result.of(name, what) for name in names]
        return " / ".join("–" if value is None else f"{factor * value:.{digits}f}" for value in found)

    rows = [
        [MODELS[result.model], *(cell(result, *column) for column in columns.values())] for result in results
    ]
    return table(["model", *head], rows)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def shown(results: list[Result]) -> list[str]:
    """The engines that were measured in one of them."""
    return [name for name in LABELS if any(name in result.engines for result in results)]


def mean(results: list[Result], names: Collection[str]) -> str:
    """The geometric mean of the ratios."""
    ratios = [ratio for result in results if (ratio := result.ratio(names)) is not None]
    return number(statistics.geometric_mean(ratios)) if ratios else "–"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def document(path: Path, results: list[Result]) -> None:
    """Puts the tables between the lines of a document that are for them."""
    head, begin, rest = path.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text("\n".join([head + BEGIN, "", *summary(results), "", END + tail]))
