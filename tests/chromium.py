"""Drive a headless Chromium through its debugging protocol, as a user's hands and eyes would."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from zaplock.measure.guest.qemu import die_with_parent

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--window-size=1400,1000",
)
SIZE = {"width": 1400, "height": 1000}


def find() -> str:
    """Return the browser's path; skip the test where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)} is on the path")


class Page:
    """One open page."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.write_message(
            json.dumps({"id": self.number, "method": method, "params": params})
        )
        while True:
            message = await asyncio.wait_for(self.socket.read_message(), 250)
            assert message is not None, "the browser went away"
            answer = json.loads(message)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"]["exceptionDetails"])[:500])

    async def ask(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + 250
        while time.monotonic() < deadline:
            if await self.ask(expression):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {expression}; errors: {self.errors}")

    async def click(self, selector: str) -> None:
        box = await self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + Math.min(b.width / 2, 60), b.y + b.height / 2]; })()"
        )
        await self.click_at(*box)

    async def click_at(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def wheel(self, x: float, y: float, delta: float) -> None:
        await self.call(
            "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta
        )

    async def type(self, selector: str, text: str) -> None:
        await self.ask(f"document.querySelector({json.dumps(selector)}).select()")
        await self.click(selector)
        await self.ask(f"document.querySelector({json.dumps(selector)}).select()")
        await self.call("Input.insertText", text=text)

    async def computed_s(self) -> float:
        """Return the seconds of CPU time that the page's thread has worked."""
        told = (await self.call("Performance.getMetrics"))["metrics"]
        seconds: float = next(one["value"] for one in told if one["name"] == "TaskDuration")
        return seconds

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def opened(file: Path, *, still: bool = False) -> AsyncIterator[Page]:
    """Open a file in a window that shares nothing with another's, and close that afterwards.

    A `still` page has no script of its own that says when it is ready.
    """
    if _browser()[0].poll() is not None:  # it crashed, maybe, or was out of memory
        _browser.cache_clear()
    address = _browser()[1]
    whole = Page(await websocket_connect(address, max_message_size=1 << 28))
    apart = {
        "browserContextId": (await whole.call("Target.createBrowserContext"))["browserContextId"]
    }
    try:
        target = await whole.call("Target.createTarget", url="about:blank", **SIZE, **apart)
        where = f"{address.partition('devtools/')[0]}devtools/page/{target['targetId']}"
        page = Page(await websocket_connect(where, max_message_size=1 << 28))
        for domain in ("Page", "Network", "Runtime"):
            await page.call(f"{domain}.enable")
        await page.call("Performance.enable", timeDomain="threadTicks")
        await page.call("Page.navigate", url=file.as_uri())
        await page.until(_LOADED if still else _READY)
        yield page
        page.socket.close()
    finally:
        await whole.call("Target.disposeBrowserContext", **apart)
        whole.socket.close()


_READY = "document.body && document.body.dataset.ready === '1'"
_LOADED = "location.protocol === 'file:' && document.readyState === 'complete'"


@functools.cache
def _browser() -> tuple[subprocess.Popen[bytes], str]:
    """Start the one browser of this process, which ends with it; return it and its address."""
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    command = [find(), *FLAGS, f"--user-data-dir={profile.name}", "about:blank"]
    with open(Path(profile.name, "log"), "w") as log:
        browser = subprocess.Popen(command, stderr=log, preexec_fn=die_with_parent)
    atexit.register(_end, browser, profile)
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline:
        found = re.search(r"ws://\S+", Path(profile.name, "log").read_text())
        if found:
            return browser, found[0]
        assert browser.poll() is None, "Chromium ended before it could be driven"
        time.sleep(0.05)
    raise AssertionError("Chromium says no address")


def _end(browser: subprocess.Popen[bytes], profile: tempfile.TemporaryDirectory[str]) -> None:
    browser.kill()
    browser.wait()
    profile.cleanup()
