"""A headless browser with a person's hands: it types, presses keys and looks, over Chromium's DevTools protocol."""

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.benchmarks.loading import ask, opened
from tests.report.browser import CHROMIUM, FLAGS


class Tab:
    """One tab. `evaluate` runs a script as the console does, which the page's policy does not bind."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, folder: Path) -> None:
        self.ws, self.folder = ws, folder

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        return await ask(self.ws, method, **params)

    async def evaluate(self, expression: str) -> Any:
        done = await self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    async def until(self, expression: str, seconds: float = 120) -> None:
        """Wait until an expression is true; a page that is being replaced has no answer."""
        async with asyncio.timeout(seconds):
            while True:
                done = await self.do("Runtime.evaluate", expression=expression)
                if done["result"].get("value") is True and "exceptionDetails" not in done:
                    return
                await asyncio.sleep(0.05)

    async def open(self, url: str) -> None:
        await self.do("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({url!r}) && document.readyState == 'complete'")

    async def type(self, field: str, text: str) -> None:
        await self.evaluate(f"document.getElementById({field!r}).focus()")
        await self.do("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """One key, with what the browser itself does for it."""
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    async def choose(self, field: str, file: Path) -> None:
        """Put a file into a field of the page."""
        root = (await self.do("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.do("DOM.querySelector", nodeId=root, selector=f"#{field}"))["nodeId"]
        await self.do("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    async def look(self, name: str, width: int, scheme: str = "light") -> Path:
        """A screenshot of the whole page at a width."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await self.do("Emulation.setDeviceMetricsOverride", **size)
        await self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        height = await self.evaluate("document.documentElement.scrollHeight")
        await self.do("Emulation.setDeviceMetricsOverride", **{**size, "height": height})
        seen = "[...document.images].filter(i => !i.closest('details:not([open])') && !i.closest('[hidden]'))"
        await self.until(f"{seen}.every(i => i.complete)")
        shot = await self.do("Page.captureScreenshot", format="png")
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Tab]:
    """A fresh browser with one tab; `console.log` in the folder has what it writes about pages."""
    assert CHROMIUM is not None
    profile, log = folder / "profile", folder / "console.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=output,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                port = await opened(profile / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    (tab,) = [t for t in await answer.json() if t["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as ws:
                    yield Tab(ws, folder)
        finally:
            process.kill()
            process.wait()


def complaints(folder: Path) -> list[str]:
    """The lines of the console."""
    return [line for line in (folder / "console.log").read_text().splitlines() if "CONSOLE" in line]
