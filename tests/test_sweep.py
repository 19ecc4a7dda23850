"""The sweep of models (`make sweep`) goes on where it was stopped, and no model stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SWEEP = Path(__file__).resolve().parent.parent / "bench/sweep"


def called(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, SWEEP / script, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_models_are_swept_once_and_put_on_a_page(tmp_path: Path) -> None:
    results, page = tmp_path / "results.jsonl", tmp_path / "models.md"
    chosen = ("--only", "front ends/torch/decibels,detectors/YOLO/YOLOv5-like")
    called("run.py", results, *chosen)
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["status"] for record in records] == ["right", "right"], records
    # A line that was cut off is not a result.
    with results.open("a") as lines:
        lines.write('{"id": "front ends/torch/dec')
    assert "2 models, 0 of them to run" in called("run.py", results, *chosen)
    called("page.py", results, page)
    text = page.read_text()
    assert "| detectors | 1 | 1 | 100.0 % | 0 | 0 | 0 |" in text
    assert "| YOLO | YOLOv5-like | right |" in text


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SWEEP))
    import run

    return run


def test_models_that_crash_or_take_too_long_are_results(run: ModuleType) -> None:
    from zoo.case import Call, Case

    def killed() -> Call:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def slow() -> Call:
        time.sleep(600)
        raise AssertionError

    def large() -> Call:
        return Call(torch.nn.Identity(), (torch.zeros(10**10),))

    def records(limits: Any, **models: Callable[[], Any]) -> list[dict[str, Any]]:
        cases = [Case("tests", "failing", name, make) for name, make in models.items()]
        return list(run.run_all(cases, 1, limits))

    crash, memory = records(run.Limits(300, 8 * 10**9), killed=killed, large=large)
    assert crash["status"] == "crash" and "-9" in crash["reason"]
    assert memory["status"] == "error" and "memory" in memory["reason"]
    [late] = records(run.Limits(2, 8 * 10**9), slow=slow)
    assert late["status"] == "timeout"
