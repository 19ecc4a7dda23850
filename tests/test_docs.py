"""The documentation runs: Python and commands of a document in order, examples of docstrings each alone.

A document has one namespace and a folder of its own. Blocks of ``python`` and ``sh`` run; what is only shown
is ``text``, ``console`` or indented. Commands find ``regraft`` and ``python`` on the path.
"""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Registers the backend of torch.compile, also where the package is on the path without being installed.
import regraft.dynamo
from conftest import TIMEOUT_SECONDS, find_binary
from exporting import ROOT

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.M | re.S)


def blocks(document: Path) -> list[tuple[int, str, str]]:
    """The blocks that run, each with the number of its first line and its language."""
    text = document.read_text()
    return [(text[: found.start(2)].count("\n") + 1, found[1], found[2]) for found in BLOCK.finditer(text)]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [str(page.relative_to(ROOT)) for page in PAGES if blocks(page)]


def run_commands(code: str, where: str, folder: Path) -> None:
    commands = folder / ".commands"
    if not commands.exists():
        commands.mkdir()
        (commands / "regraft").symlink_to(find_binary())
        # A symbolic link to it would not find the packages of its environment.
        (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (commands / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        # Servers of this machine are reached without a proxy.
        env=os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "no_proxy": "127.0.0.1"},
    )
    assert done.returncode == 0, f"{where}: exit status {done.returncode}\n{done.stdout}{done.stderr}"


def test_every_kind_of_document_runs() -> None:
    for folder in ("README.md", "docs/python.md", "docs/guides/", "docs/tutorials/"):
        assert any(document.startswith(folder) for document in DOCUMENTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_document(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "document"}
    for line, language, code in blocks(ROOT / document):
        if language == "sh":
            run_commands(code, f"{document}:{line}", tmp_path)
            continue
        # Line numbers of the document, for the message of a failure.
        exec(compile("\n" * (line - 1) + code, str(ROOT / document), "exec"), namespace)


def test_links_of_the_readme() -> None:
    """Those of the pages `make docs` checks."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / "README.md").read_text())
    assert len(found) > 10
    missing = [link for link in found if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "scripts/reference.py", find_binary(), "--check"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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
