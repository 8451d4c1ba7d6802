"""A real Chromium without a window, driven by its DevTools protocol; it reaches 127.0.0.1 and nothing else.

async with Browser() as browser:
    page = await browser.open("http://127.0.0.1:8081/")
    await page.until("document.title")
    png = await page.screenshot()
"""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from pathlib import Path
from typing import Any, Self

import aiohttp

START_DEADLINE_S = 30.0
POLL_S = 0.05

COMMAND = (
    "chromium",
    "--headless=new",
    "--no-sandbox",  # it may run as root here, and only sees our own page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Page:
    """One tab. `errors` are exceptions and console errors of the page, `requested` the URLs that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._socket = socket
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._waiting.pop(event["id"]).set_result(event)
            elif event["method"] == "Runtime.exceptionThrown":
                self.errors.append(event["params"]["exceptionDetails"]["exception"]["description"])
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.errors.append(str(event["params"]["entry"]))
            elif event["method"] == "Network.requestWillBeSent":
                self.requested.append(event["params"]["request"]["url"])

    async def command(self, method: str, **parameters: Any) -> Any:
        """Send a DevTools command and return its result."""
        self._next_id += 1
        answer = self._waiting[self._next_id] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": self._next_id, "method": method, "params": parameters}))
        event = await asyncio.wait_for(answer, 20)
        assert "error" not in event, (method, event)
        return event["result"]

    async def value(self, expression: str) -> Any:
        """What an expression gives on the page."""
        result = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result)
        return result["result"].get("value")

    async def until(self, expression: str, deadline_s: float = 10.0) -> Any:
        """Poll until an expression is true on the page."""
        end_s = asyncio.get_running_loop().time() + deadline_s
        while not (value := await self.value(expression)):
            text = await self.value("document.body.innerText")
            assert asyncio.get_running_loop().time() < end_s, f"{expression} is {value!r} after {deadline_s} s:\n{text}"
            await asyncio.sleep(POLL_S)
        return value

    async def text(self, selector: str) -> str:
        """The text that an element shows."""
        shown: str = await self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return shown

    async def press(self, key: str, text: str = "") -> None:
        """Press and let go of a key."""
        for kind in ("keyDown", "keyUp"):
            await self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text * (kind == "keyDown"))

    async def write(self, text: str) -> None:
        """Type into whatever has the focus."""
        await self.command("Input.insertText", text=text)

    async def look(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window, and what the reader prefers."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        shot = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def close(self) -> None:
        """Let go of the tab."""
        await self._socket.close()
        await self._reader


class Browser:
    """A Chromium with a profile of its own."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="limiter-chromium-", ignore_cleanup_errors=True)
        self._pages: list[Page] = []

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            f"--user-data-dir={self._profile.name}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            self._address = await asyncio.wait_for(self._listening(), START_DEADLINE_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for page in self._pages:
            await page.close()
        await self._http.close()
        self._process.kill()
        await self._process.wait()
        self._profile.cleanup()

    async def _listening(self) -> str:
        port_file = Path(self._profile.name) / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().strip():
            assert self._process.returncode is None, f"chromium ended with {self._process.returncode}"
            await asyncio.sleep(POLL_S)
        return f"127.0.0.1:{port_file.read_text().split()[0]}"

    async def open(self, url: str) -> Page:
        """Open a page in a tab of its own."""
        async with self._http.put(f"http://{self._address}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        page = Page(await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        self._pages.append(page)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.command(f"{domain}.enable")
        await page.command("Page.navigate", url=url)
        return page
