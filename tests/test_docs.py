"""The Python of the documentation runs.

That of a document in order, in one namespace and a folder of its own; examples of docstrings each alone.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch

# Registers the backend of torch.compile, also where the package is on the path without being installed.
import regraft.dynamo
from exporting import ROOT

DOCUMENTS = ("README.md", "docs/python.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(document: str) -> list[tuple[int, str]]:
    """The Python blocks, each with the number of its first line."""
    text = (ROOT / document).read_text()
    return [(text[: found.start(1)].count("\n") + 1, found.group(1)) for found in BLOCK.finditer(text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_document(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "cache"))
    found = blocks(document)
    assert found
    namespace: dict[str, Any] = {"__name__": "document"}
    for line, code in found:
        # Line numbers of the document, for the message of a failure.
        exec(compile("\n" * (line - 1) + code, str(ROOT / document), "exec"), namespace)


def docstrings() -> list[doctest.DocTest]:
    """Those of the package that have examples."""
    finder = doctest.DocTestFinder()
    names = {"regraft": regraft, "torch": torch}
    modules = [info.name for info in pkgutil.walk_packages(regraft.__path__, "regraft.")]
    found = [
        case
        for name in modules
        # The tests of a fleet have an environment of their own.
        if not name.endswith("._regraft") and not name.startswith("regraft.serve.ray")
        for case in finder.find(importlib.import_module(name), extraglobs=names)
    ]
    return [case for case in found if case.examples]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", docstrings(), ids=lambda case: case.name)
def test_docstring(case: doctest.DocTest) -> None:
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(case, out=said.append)
    assert result.failed == 0, "".join(said)
