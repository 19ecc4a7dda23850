"""Pages in headless Chromium, driven by chromedriver in the words of WebDriver."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Where pictures of pages are kept, to look at.
PICTURES = os.environ.get("REGRAFT_PICTURES")
WAIT = 30.0
# How WebDriver spells a reference to an element.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """A session of chromedriver."""

    def __init__(self, driver: str, width: int, height: int, is_phone: bool) -> None:
        options: dict[str, Any] = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"]
        }
        if is_phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "mobile": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.send(f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"{driver}/session/{answer['sessionId']}"

    @staticmethod
    def send(address: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:2000]) from error

    def call(self, path: str, body: Any = None) -> Any:
        return self.send(f"{self.session}/{path}", body)

    def open(self, address: str) -> None:
        self.call("url", {"url": address})

    def run(self, script: str) -> Any:
        return self.call("execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def element(self, xpath: str) -> str:
        return str(self.call("element", {"using": "xpath", "value": xpath})[ELEMENT])

    def click(self, xpath: str) -> None:
        # Between finding it and the click the page may be drawn again.
        until(lambda: self.call(f"element/{self.element(xpath)}/click", {}) is None)

    def type(self, xpath: str, text: str) -> None:
        until(lambda: self.call(f"element/{self.element(xpath)}/value", {"text": text}) is None)

    def errors(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.call("se/log", {"type": "browser"})
            if entry["level"] == "SEVERE"
        ]

    def picture(self, name: str) -> None:
        data = base64.b64decode(self.call("screenshot"))
        assert data.startswith(b"\x89PNG")
        if PICTURES:
            (Path(PICTURES) / f"{name}.png").write_bytes(data)

    def close(self) -> None:
        self.send(self.session, method="DELETE")


def until(true: Callable[[], Any], seconds: float = WAIT) -> Any:
    """Waits for what a page shows, which may be drawn again at any time."""
    end = time.monotonic() + seconds
    while True:
        try:
            value = true()
        except AssertionError:
            # The element was drawn again already.
            value = None
        if value:
            return value
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def driver() -> Iterator[str]:
    command = ["chromedriver", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if "started successfully on port " in line:
                yield "http://127.0.0.1:" + line.rstrip().rstrip(".").rpartition(" ")[2]
                break
        else:
            pytest.fail("chromedriver did not start")
        driver.terminate()
