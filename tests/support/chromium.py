"""A headless Chromium that opens pages, answers JavaScript and takes pictures, over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120.0
"""For a page to become what a test waits for: a loaded machine takes long to run MLflow's script."""


def executable() -> str | None:
    """Return where the browser is; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Args:
        url: Its DevTools address.
    """

    def __init__(self, url: str) -> None:
        self._socket = websocket.create_connection(url, timeout=SECONDS, suppress_origin=True)
        self._count = 0
        self.call("Page.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return one command and its result; events that come between are dropped."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        """Load a page anew, also where only the part after # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Return its value as soon as it is true, asked again until then; what the page says where it never is."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.ask(f"(() => {{ try {{ return {expression} }} catch (e) {{ return null }} }})()")):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {SECONDS:g} s: {expression}; the page says:\n{self.text()[:4000]}")
            time.sleep(0.2)
        return value

    def text(self) -> str:
        """Return what a person reads."""
        return str(self.ask("document.body ? document.body.innerText : ''"))

    def resize(self, height: int) -> None:
        """Show so many pixels of the page; what lies beyond some pages never draw."""
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path, *, height: int = 900) -> None:
        """Take a PNG of it, `height` pixels high."""
        self.resize(height)
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def browser() -> Iterator[Page]:
    """Yield a fresh profile with one tab; ended with the block."""
    command = executable()
    assert command is not None, "no chromium; install it, or skip"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                command, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-allow-origins=*",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            page = Page(_address(Path(profile), process))
            yield page
            page.close()
        finally:
            process.terminate()
            process.wait(timeout=30)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the tab's DevTools address, from the file in which the browser writes its port."""
    import urllib.request

    port, deadline = profile / "DevToolsActivePort", time.monotonic() + SECONDS
    while not (port.exists() and port.read_text().count("\n")):
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        assert time.monotonic() < deadline, "chromium did not start"
        time.sleep(0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list", timeout=30) as answer:
        tabs = json.load(answer)
    return str(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
