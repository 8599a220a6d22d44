"""A real headless browser for tests: Chromium, spoken to in its DevTools protocol over pipes."""

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--remote-debugging-pipe",
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)


class Tab:
    """One page of the browser."""

    def __init__(self, to: io.FileIO, answers: io.BufferedReader) -> None:
        self.to, self.answers, self.number = to, answers, 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        told = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = told["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the result of a method of the protocol; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        return dict(json.loads(text))

    def open(self, file: Path, *, width: int = 1000, dark: bool = False) -> None:
        """Show a file in a window of that width; a narrow one is a phone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value_of(self, script: str) -> Any:
        """Return what a piece of JavaScript gives; the page's own policy does not hold for it."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def click(self, selector: str, *, x: float = 0.5, y: float = 0.5) -> None:
        """Move the mouse onto the first element of a CSS selector, and click; x and y: where on it,
        as a part of its width and height."""
        self.value_of(f"document.querySelector({json.dumps(selector)})"
                      ".scrollIntoView({block: 'center', behavior: 'instant'})")
        left, top, width, height = self.value_of(
            f"(({{x, y, width, height}}) => [x, y, width, height])(document.querySelector("
            f"{json.dumps(selector)}).getBoundingClientRect())"
        )
        place = {"x": left + x * width, "y": top + y * height}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            codes = {"Enter": 13, "Escape": 27}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=codes[key], **text)

    def wait_for(self, script: str, seconds: float = 30.0) -> None:
        """Wait until a piece of JavaScript gives something true."""
        end = time.monotonic() + seconds
        while not self.value_of(script):  # rarely, so that the browser has time to draw
            assert time.monotonic() < end, f"{script} stays false: {self.complaints()}"
            time.sleep(0.1)

    def screenshot(self) -> Image.Image:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for, its own and data: left out."""
        found = [
            event["params"]["request"]["url"] for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in found[1:] if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the browser logged of the page: errors, and what its policy forbade."""
        return [
            json.dumps(event["params"]) for event in self.events
            if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]


@contextmanager
def browser() -> Iterator[Tab]:
    """A running Chromium with an empty tab; ended, and its files removed, after the body."""
    assert CHROMIUM is not None
    (read_to, to), (answers, write_answers) = os.pipe(), os.pipe()

    def place() -> None:  # where the protocol's pipes are expected
        kept = [os.dup(read_to), os.dup(write_answers)]
        os.dup2(kept[0], 3)
        os.dup2(kept[1], 4)

    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder}"], preexec_fn=place, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(read_to)
        os.close(write_answers)
        try:
            with open(to, "wb", buffering=0) as writer, open(answers, "rb") as reader:
                yield Tab(writer, reader)
        finally:
            process.kill()
            process.wait()
