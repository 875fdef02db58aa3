"""A real Chromium that opens one file, driven through its DevTools protocol."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from websockets.sync.client import connect

PATIENCE_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Its path; skips the test where there is none at home, fails it in CI."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no chromium on PATH, and CI must not skip the browser: apt-get install chromium")
        pytest.skip("there is no chromium on PATH: apt-get install chromium")
    return found


class Page:
    """One tab of a browser with a new, empty profile. Use it in a `with`."""

    def __init__(self, profile: Path) -> None:
        profile.mkdir()
        self._log = (profile.parent / f"{profile.name}.log").open("wb")
        self._process = subprocess.Popen(
            [chromium(), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._open = contextlib.ExitStack()
        self._ids = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        try:
            address = self._address(profile / "DevToolsActivePort")
            self._socket = self._open.enter_context(connect(address, max_size=None, proxy=None))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _address(self, file: Path) -> str:
        deadline = time.monotonic() + PATIENCE_S
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                port = file.read_text().splitlines()[0]
                with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                    for target in json.load(answer):
                        if target["type"] == "page":
                            return str(target["webSocketDebuggerUrl"])
            except (OSError, IndexError):
                pass
            time.sleep(0.05)  # the file and the port have no event to wait for
        pytest.fail("chromium did not open its DevTools port")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result; events that come first are kept."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def open(self, file: Path, width: int) -> None:
        """Load a file at a phone's or a desk's width, and wait until all of it is there."""
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv(timeout=PATIENCE_S)))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is worth in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """A real press of the mouse in the middle of the first element that matches."""
        at = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=at["x"], y=at["y"], button="left", clickCount=1)
