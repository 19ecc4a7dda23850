"""The tables and the picture of bench/peers, from made-up figures; nothing is measured."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from exporting import ROOT

sys.path.append(str(ROOT / "bench/peers"))

from plot import draw
from results import BEGIN, END, RUNTIMES, Result, State, document, summary


def results() -> list[Result]:
    times = {"regraft": 2.0, "onnxruntime": 4.0, "openvino": 3.0, "eager": 8.0}
    engines = {name: {"ms": time, "blocks": [time]} for name, time in times.items()}
    engines["regraft"] |= {"compile": 0.5, "load": 0.02, "peak": 50_000_000, "renew_ms": 1.25}
    wrong = {"regraft": {"ms": 4.0}, "onnxruntime": {"failed": "wrong results"}, "openvino": {"ms": 2.0}}
    return [
        Result("resnet50", 1, 1, "f32", engines),
        Result("vit_b_16", 1, 1, "f32", wrong),
        Result("resnet50", 2, 1, "bf16", {"regraft": {"ms": 1.0}, "eager": {"ms": 1.0}}),
    ]


def test_ratios_are_of_the_faster_one_and_a_failure_has_no_time() -> None:
    first, second, third = results()
    assert first.ratio(RUNTIMES) == 1.5
    assert second.ratio(RUNTIMES) == 0.5 and second.of("onnxruntime", "ms") is None
    assert third.ratio(RUNTIMES) is None
    lines = summary(results())
    assert "| ResNet-50 | 2.00 | 4.00 | 3.00 | 8.00 | 1.50 | 4.00 |" in lines
    # Of 1.5 and 0.5.
    assert "| geometric mean |  |  |  |  | 0.87 | 4.00 |" in lines
    assert "| ResNet-50 | 1.00 | 1.00 | – | 1.00 |" in lines
    assert "| ResNet-50 | 0.50 / – / – / – | 20 / – / – / – | 50 / – / – / – | 1.2 / – / – / – |" in lines
    assert lines[-1] == "- ViT-B/16, 1 thread, batch 1, f32: ONNX Runtime: wrong results"


def test_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    for result in results():
        State(file).keep(result)
    found = State(file)
    assert found.results == results()
    assert found.find("vit_b_16", 1, 1, "f32") == results()[1]
    assert found.find("vit_b_16", 8, 1, "f32") is None


def test_tables_go_between_the_lines_of_a_document(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    document(page, results())
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n") and text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text and "geometric mean" in text
    page.write_text("none")
    with pytest.raises(SystemExit, match="expected the lines"):
        document(page, results())


def test_the_picture_has_a_dot_for_each_time() -> None:
    picture = xml.fromstring(draw(results()))
    names = [element.tag.rpartition("}")[2] for element in picture.iter()]
    # Three of the legend, and five of the results.
    assert names.count("circle") == 3 + 5
