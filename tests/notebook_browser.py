"""Progress and reports in a notebook of JupyterLab, in headless Chromium.

Run by scripts/notebook-test.sh.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from browser import Browser, driver, until

__all__ = ["driver"]

CELLS = [
    """
import time
import torch, regraft
from torch import nn
from regraft.progress import Progress

torch.manual_seed(0)
net = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Linear(512, 512), nn.GELU()))).eval()
compiled = regraft.compile(net, (torch.randn(1, 512),), tune="fast")
compiled
""",
    # As a refit of 100 MB that takes three seconds.
    """
with Progress("refit") as progress:
    for done in range(0, 101, 5):
        progress.observer("stage", done * 1_000_000, 100_000_000)
        time.sleep(0.15)
""",
    "compiled.refit({'0.bias': torch.zeros(512)}, partial=True)",
]
# What the cells have put out, with the bars that are there now.
OUTPUT = """
    const areas = [...document.querySelectorAll('.jp-OutputArea')].map(area => area.innerText);
    return areas.join('\\n').replaceAll('\\u2007', ' ')
"""
BARS = "return document.querySelectorAll('.jp-OutputArea .widget-hprogress, .jp-OutputArea progress').length"
RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells'); return true"
READY = """
    const app = window.jupyterapp, panel = app && app.shell.currentWidget;
    return Boolean(panel && panel.sessionContext && panel.sessionContext.session
        && panel.sessionContext.session.kernel && panel.sessionContext.session.kernel.status === 'idle')
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook with these cells."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": s.strip(),
        }
        for i, s in enumerate(CELLS)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "try.ipynb").write_text(json.dumps(whole))
    startup = tmp_path / ".ipython/profile_default/startup/quiet.py"
    startup.parent.mkdir(parents=True)
    # It warns when it is imported that there is no triton.
    startup.write_text("import logging\nlogging.getLogger('torch.utils.flop_counter').setLevel('ERROR')\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *("--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password="),
        *("--expose-app-in-browser", f"--app-dir={os.environ['NOTEBOOK_APP']}", f"--notebook-dir={tmp_path}"),
    ]
    environment = os.environ | {"HOME": str(tmp_path), "REGRAFT_CACHE_DIR": str(tmp_path / "cache")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            return urllib.request.urlopen(f"{address}/api/status", timeout=10).status == 200
        except URLError:
            return False

    until(answers, 120)
    yield f"{address}/lab/tree/try.ipynb"
    server.terminate()
    server.wait(60)


def test_bars_come_and_go_and_objects_are_shown(driver: str, notebook: str) -> None:
    page = Browser(driver, 1280, 1000, is_phone=False)
    page.open(notebook)
    until(lambda: page.run(READY), 120)
    page.run(RUN)
    until(lambda: "compile: " in page.run(OUTPUT), 120)
    page.picture("notebook-compile")
    until(lambda: "refit: stage" in page.run(OUTPUT) and page.run(BARS), 300)
    until(lambda: "MB of 100MB" in page.run(OUTPUT))
    page.picture("notebook-refit")
    shown = until(lambda: "1 of 1 sources changed" in page.run(OUTPUT) and page.run(OUTPUT), 60)
    page.picture("notebook-done")
    # The bars are gone; what the objects say of themselves is there.
    assert "refit: stage" not in shown and "compile: " not in shown
    assert "regraft.Module(refittable, 80 sources" in shown
    phases = [shown.index(f"{phase} 0.") for phase in ("match", "check", "compare")]
    assert phases == sorted(phases), shown
    assert page.run("return document.querySelectorAll('.jp-OutputArea table, .jp-OutputArea pre').length") > 0
    page.close()
