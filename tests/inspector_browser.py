"""The inspector's page in headless Chromium, at the width of a screen and of a phone.

Run by scripts/inspector-test.sh; the browser is driven by chromedriver, in the words of WebDriver.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import Browser, driver, until
from exporting import ROOT, load_arrays, save_arrays

__all__ = ["driver"]

FIXTURES = ROOT / "crates/conformance/fixtures"
REGRAFT = os.environ["REGRAFT_BIN"]
RIGHT = "\ue014"


@pytest.fixture(params=["screen", "phone"])
def browser(driver: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    is_phone = request.param == "phone"
    browser = Browser(driver, 375 if is_phone else 1280, 740 if is_phone else 900, is_phone)
    yield browser
    browser.close()


class Server:
    """`regraft serve` with the model `mlp` and the adapter `style`."""

    def __init__(self, folder: Path, *options: str, token: str = "") -> None:
        self.token = token
        engine, adapter = folder / "mlp.rgf", folder / "adapters/style"
        environment = os.environ | {"REGRAFT_CACHE_DIR": str(folder / "cache")}
        program = FIXTURES / "mlp_gelu.pt2"
        subprocess.run([REGRAFT, "compile", program, "-o", engine], check=True, env=environment)
        adapter.mkdir(parents=True)
        prefix = "base_model.model.0"
        factors = {
            f"{prefix}.lora_A.weight": np.ones((2, 10), np.float32),
            f"{prefix}.lora_B.weight": np.ones((16, 2), np.float32),
        }
        save_arrays(adapter / "adapter_model.safetensors", factors)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["0"]}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        command = [REGRAFT, "serve", f"mlp={engine}", "--address", "127.0.0.1:0", "--json"]
        command += ["--adapters", str(adapter.parent), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["listening"]
        self.weights = save_arrays(
            folder / "b.safetensors",
            {
                n[2:]: a
                for n, a in load_arrays(FIXTURES / "mlp_gelu.safetensors").items()
                if n.startswith("b/")
            },
        )

    def call(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(f"{self.address}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def status(self) -> Any:
        return self.call("v2/models/mlp/weights/status")

    def serving(self) -> str:
        return str(self.status()["serving"]["digest"])

    def stage(self) -> str:
        answer = self.call("v2/models/mlp/weights/stage", self.weights.read_bytes())
        return str(answer["staged"]["digest"])

    def infer(self, times: int) -> None:
        about = self.call("v2/models/mlp")["inputs"][0]
        tensor = {"name": about["name"], "shape": [3, 10], "datatype": "FP32", "data": [0.5] * 30}
        for _ in range(times):
            self.call("v2/models/mlp/infer", json.dumps({"inputs": [tensor]}).encode())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def assert_fits(browser: Browser) -> None:
    """Nothing is wider than the page, and what is touched is large enough for a finger."""
    wide = browser.run(
        "const page = document.scrollingElement;"
        "return page.scrollWidth > window.innerWidth ? [page.scrollWidth, window.innerWidth] : null"
    )
    assert wide is None, wide
    small = browser.run(
        "return [...document.querySelectorAll('button, input')].map(e => e.getBoundingClientRect().height)"
        ".filter(height => height > 0 && height < 15)"
    )
    assert small == []
    size = browser.run("return parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 14


def test_the_page_shows_and_changes_weights(browser: Browser, server: Server, request: Any) -> None:
    first = server.serving()
    browser.open(f"{server.address}/inspector")
    until(lambda: "mlp ready" in browser.text() and first[:12] in browser.text())
    publish, back = "//button[text()='publish']", "//button[text()='roll back']"
    assert browser.run("return document.querySelector('button[disabled]').textContent") == "publish"

    # What cannot be done is said, and the page goes on.
    browser.click(back)
    until(lambda: browser.run("return document.getElementById('error').textContent"))
    assert browser.run("return getComputedStyle(document.getElementById('error')).display") != "none"

    staged = server.stage()
    until(lambda: staged[:12] in browser.text())
    until(lambda: (browser.click(publish), server.serving() == staged)[1])
    until(lambda: "published" in browser.text())
    assert browser.run("return document.getElementById('error').textContent") == ""
    phases = browser.run("return [...document.querySelectorAll('.bar')].map(bar => bar.title)")
    assert any("stage" in title and " ms" in title for title in phases)
    until(lambda: (browser.click(back), server.serving() == first)[1])

    # Figures of requests become lines.
    def drawn() -> bool:
        server.infer(20)
        paths = browser.run("return [...document.querySelectorAll('svg path')].map(p => p.getAttribute('d'))")
        return any("L" in path for path in paths)

    until(drawn)
    until(lambda: " ok" in browser.text())

    # A slider that is moved stages and publishes, and stays where it was put.
    slider = "//input[@type='range' and @aria-label='style']"
    for _ in range(3):
        browser.type(slider, RIGHT)
    until(lambda: server.status()["serving"]["adapters"])
    (adapter,) = server.status()["serving"]["adapters"]
    assert adapter["name"] == "style" and 0 < adapter["scale"] <= 0.15 + 1e-9
    until(lambda: "style × 0.15" in browser.text())
    time.sleep(1.2)
    assert abs(float(browser.run("return document.querySelector('input[type=range]').value")) - 0.15) < 1e-9
    assert_fits(browser)
    browser.picture(f"inspector-{request.node.callspec.params['browser']}")
    # The refusal of above is the only thing that the browser noted.
    assert all("rollback" in error for error in browser.errors())


def test_a_server_with_tokens_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    token = "a-token-that-nobody-guesses"
    for right in ("infer", "weights"):
        (tmp_path / right).write_text(f"{token}\n")
    options = ["--infer-tokens", str(tmp_path / "infer"), "--weights-tokens", str(tmp_path / "weights")]
    server = Server(tmp_path, *options, token=token)
    try:
        browser.open(f"{server.address}/inspector")
        until(lambda: "a token is needed" in browser.text())
        assert "mlp" not in browser.text()
        browser.type("//input[@id='token']", "<img src=x onerror=alert(1)>")
        browser.click("//button[text()='use']")
        until(lambda: "does not give the right" in browser.text())
        browser.run("document.getElementById('token').value = ''")
        browser.type("//input[@id='token']", token)
        browser.click("//button[text()='use']")
        until(lambda: "mlp ready" in browser.text())
        assert browser.run("return document.getElementById('error').textContent") == ""
        assert token not in browser.run("return location.href + document.documentElement.innerHTML")
        assert_fits(browser)
    finally:
        server.close()


def test_a_server_that_goes_away_is_told(browser: Browser, server: Server) -> None:
    browser.open(f"{server.address}/inspector")
    until(lambda: "mlp ready" in browser.text())
    server.close()
    until(lambda: browser.run("return document.getElementById('error').textContent"))
    # What was last known stays.
    assert "mlp" in browser.text()
