"""The dashboard: any node tells of the whole fleet, and its page works in a real Chromium that reaches nothing else.

With DASHBOARD_SHOTS=FOLDER in the environment the screenshots are kept there, to be looked at.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import Browser, Page
from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet
from tests.harness import HttpClient, NodeProcess, RawConnection, eventually, get_json, request
from tests.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKS = 300
HOSTILE = "<img src=x onerror=document.title='broken'>"
DESKTOP, PHONE = (1280, 1400), (390, 844)

CHECKS_LABEL = "document.querySelector('#checks-chart').ariaLabel"

CONTRAST = """(() => {
  const paint = document.createElement("canvas").getContext("2d");
  const light = (name) => {
    paint.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const parts = [1, 3, 5].map((at) => parseInt(paint.fillStyle.slice(at, at + 2), 16) / 255);
    const [red, green, blue] = parts.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  const ratios = ["text", "faint", "accent", "good", "warn", "bad"].map((ink) => {
    const [one, other] = [light("--" + ink), light("--card")];
    return Math.max(one, other) / Math.min(one, other);
  });
  return Math.min(...ratios);
})()"""
"""The least contrast of a text with what it stands on, as WCAG 2 defines it."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as running:
        running.put("rules/api", {"rate": "1/d", "burst": 20, "segments": {"premium": {"rate": "1/d", "burst": 1000}}})
        running.put("rules/guarded", {"rate": "1000/s", "backend": "orders"})
        yield running


def ask(node: NodeProcess, count: int, *keys: str, rule: str = "api", segment: str | None = None) -> None:
    with HttpClient(node.http) as client:
        for number in range(count):
            client.check(rule, keys[number % len(keys)], segment=segment)


def first_event(node: NodeProcess) -> Any:
    """The first server-sent event, which has the last minutes."""
    with RawConnection(node.admin) as connection:
        connection.send("GET /v1/fleet/events HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while b"\n\n" not in data:
            data += connection.socket.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    start, end = body.index(b"data: ") + len(b"data: "), body.index(b"\n\n")
    return json.loads(body[start:end].replace(b"\r\n", b""))


def test_any_node_tells_of_the_whole_fleet(fleet: Fleet) -> None:
    asked = fleet.nodes[0]
    ask(asked, CHECKS // 2, "hot", segment="premium")
    ask(asked, CHECKS // 2, "hot")

    def shows_all(node: NodeProcess) -> bool:
        document = get_json(node.admin, "/v1/fleet")
        assert [(node["id"], node["answers"], node["state"]) for node in document["nodes"]] == [
            (node.node_id, True, "ready") for node in fleet.nodes
        ]
        assert sum(node["share"] for node in document["nodes"]) == pytest.approx(1, abs=0.001)
        assert document["leader"] in {node.node_id for node in fleet.nodes}
        assert (document["busiest"][0]["rule"], document["busiest"][0]["key"]) == ("api", "hot")
        assert (document["denied"][0]["rule"], document["denied"][0]["key"]) == ("api", "hot")
        return True

    def history_is_whole(node: NodeProcess) -> bool:
        # Allowed and denied a second, at all nodes: on a busy machine a second lasts longer than one, and shows less.
        total = sum(second[0] + second[1] for second in first_event(node)["seconds"])
        assert CHECKS / 2 < total < CHECKS * 1.05
        return True

    for node in fleet.nodes:
        eventually(partial(shows_all, node), what="the whole fleet")
        eventually(partial(history_is_whole, node), what="every check in the history")


def test_a_node_that_is_watched_stops_at_once(fleet: Fleet) -> None:
    alone = NodeProcess(rules={"rules": {"api": {"rate": "1/s"}}}, args=("--drain-delay", "0"))
    with alone.start() as node, RawConnection(node.admin) as connection:
        connection.send("GET /v1/fleet/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.socket.recv(100)
        assert node.stop(deadline_s=5) == 0


def test_the_page_is_made_of_files_of_this_node_only(fleet: Fleet) -> None:
    page = request(fleet.nodes[0].admin, "GET", "/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "://" not in page.body
    assert request(fleet.nodes[0].admin, "GET", "/dashboard/uPlot.LICENSE").body.startswith("The MIT License")
    for name in ("__init__.py", "..%2Fadmin_api.py", "nosuch"):
        assert request(fleet.nodes[0].admin, "GET", f"/dashboard/{name}").status == 404


class Traffic(Threads):
    """Checks and reports at the first and the last node, until the end of the context."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(self._send, fleet.nodes[::2])

    def _send(self, node: NodeProcess) -> None:
        report = json.dumps({"backend": "orders", "outcomes": [{"latency_ms": 12.5, "status": 200, "count": 20}]})
        with HttpClient(node.http) as client:
            while not self.stop.wait(0.02):
                for key in ("hot", "warm", HOSTILE):
                    client.check("api", key)
                client.check("api", "alice", segment="premium")
                client.check("guarded", "bob")
                client.request("POST", "/v1/report", report)


async def shoot(page: Page, name: str) -> None:
    """Keep a screenshot, if anybody wants to look at it."""
    png = await page.screenshot()
    assert png.startswith(b"\x89PNG")
    folder = os.environ.get("DASHBOARD_SHOTS")
    if folder:
        await asyncio.to_thread((Path(folder) / f"{name}.png").write_bytes, png)


async def test_the_page_in_a_real_browser(fleet: Fleet) -> None:
    with Traffic(fleet):
        async with Browser() as browser:
            page = await browser.open(f"http://{fleet.nodes[2].admin}/")
            await page.look(width=DESKTOP[0], height=DESKTOP[1])
            await shows_the_fleet(page)
            await shoot(page, "light")
            await looks_up_by_keyboard(page, fleet)
            await is_readable_anywhere(page)
            await asyncio.to_thread(fleet.etcd.etcdctl, "put", f"{fleet.prefix}/rules/api", '{"rate": "fast"}')
            await page.until("document.querySelector('#troubles').innerText.includes('rules/api: rate')")
            await shoot(page, "problem")
            # Last, for it does not come back: the node that is not asked.
            await asyncio.to_thread(fleet.nodes[1].kill)
            await page.until("document.querySelector('#troubles').innerText.includes('n2 does not answer')")
            await shoot(page, "death")
            assert page.errors == []
            assert {url.partition("/v1/")[0].partition("/dashboard/")[0].rstrip("/") for url in page.requested} == {
                f"http://{fleet.nodes[2].admin}"
            }


async def shows_the_fleet(page: Page) -> None:
    await page.until("document.querySelector('#live')?.textContent === 'live'")
    await page.until("document.querySelectorAll('#nodes tbody tr').length === 3")
    await page.until("document.querySelector('#flows').innerText.includes('premium')")
    await page.until("document.querySelector('#busiest').innerText.includes('hot')")
    await page.until("document.querySelector('#backends').innerText.includes('heard by report')")
    await page.until("document.querySelectorAll('.chart canvas').length === 3")
    # A key is text, whatever it says.
    await page.until(f"document.querySelector('#denied').innerText.includes({json.dumps(HOSTILE)})")
    assert await page.value("document.title") == "limiter-node"
    assert await page.text("#troubles") == ""


async def looks_up_by_keyboard(page: Page, fleet: Fleet) -> None:
    await page.press("/", "/")
    await page.write("api")
    await page.press("Tab")
    await page.write("hot")
    await page.press("Enter", "\r")
    await page.until("document.querySelector('#bucket').innerText.includes('denied')")
    shown = await page.text("#bucket")
    assert f"owner\n{await asyncio.to_thread(fleet.owner, 'hot')}" in shown
    assert "segment from\n" in shown  # explained
    # A chart is read off with the arrow keys.
    await page.value("document.querySelector('#checks-chart').focus()")
    await page.press("ArrowLeft")
    await page.until(f"/^\\d+ s ago: allowed/.test({CHECKS_LABEL})")
    shown_at = await page.value("times.at(-1)")
    await page.until(f"times.at(-1) > {shown_at}")
    assert " s ago: " in await page.value(CHECKS_LABEL)  # a new second does not take it away, leaving the chart does
    await page.value("document.querySelector('#theme').focus()")
    await page.until(f"{CHECKS_LABEL}.startsWith('Checks per second: allowed')")
    for theme in ("light", "dark", "auto"):
        await page.press("Enter", "\r")
        assert await page.value("document.documentElement.dataset.theme") == theme


async def is_readable_anywhere(page: Page) -> None:
    for dark in (False, True):
        for (width, height), phone in ((DESKTOP, False), (PHONE, True)):
            await page.look(width=width, height=height, dark=dark, phone=phone)
            await page.until(f"document.documentElement.scrollWidth <= {width}")
            assert await page.value(CONTRAST) >= 4.5
            await shoot(page, f"{'dark' if dark else 'light'}-{width}")
    await page.look(width=DESKTOP[0], height=DESKTOP[1])
