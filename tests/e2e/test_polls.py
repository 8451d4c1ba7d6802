"""Polls of real pages: an HTTP server in this process is the backend's, and says what a test has it say."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web

from limiter_node import clock
from limiter_node.control.polls import PAGE_BYTES_MAX, Polls
from limiter_node.core.adaptive.controller import Controller
from limiter_node.core.adaptive.registry import Backends
from limiter_node.core.backends import parse_backend
from tests.e2e.test_etcd_session import eventually
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from limiter_node.core.adaptive.evidence import Signal

    Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

NAME = "orders"
HEALTH = {"latency_ms": {"p50": 10, "p90": 20, "p99": 40}, "error_rate": 0.1, "throughput": 50}
METRICS: dict[str, Any] = {"format": "prometheus", "requests": "requests_total", "error_label": "code=~5.."}


class Backend:
    """The page of a backend; `answer` is what it does when it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.under_way = 0
        self.answer: Answer = saying(web.json_response, HEALTH)
        self.url = ""
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.shutdown()
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        self.under_way += 1
        try:
            return await self.answer(request)
        finally:
            self.under_way -= 1


def saying(make: Callable[..., web.StreamResponse], *args: Any, **kwargs: Any) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return make(*args, **kwargs)

    return answer


class Listener(Controller):
    """A controller that notes what it is told of polls."""

    def __init__(self, backends: Backends) -> None:
        super().__init__("a", backends)
        self.heard: list[tuple[str, Signal]] = []

    def polled(self, backend: str, signal: Signal, now_ns: int) -> None:
        super().polled(backend, signal, now_ns)
        self.heard.append((backend, signal))


class Fixture:
    """A leader's polls of one backend."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.backends = Backends()
        self.controller = Listener(self.backends)
        self.polls = Polls(self.backends, self.controller, clock.now_ns, random.Random(1))

    def entry(self, name: str = NAME, *, path: str = "/health", url: str = "", mode: str = "on", **poll: Any) -> None:
        document = {"url": (url or self.backend.url) + path, "every_s": 0.1, **poll}
        self.backends.set_entry(name, parse_backend(name, {"adaptive": mode, "poll": document}), 0)
        self.polls.keep()

    @property
    def heard(self) -> list[tuple[str, Signal]]:
        return self.controller.heard

    @property
    def fault(self) -> str:
        return self.backends.faults.get(NAME, "")

    async def is_rejected(self, times: int = 2) -> None:
        """Wait until so many more polls were no good."""
        before = self.backends.rejected.get(NAME, 0)
        await eventually(lambda: self.backends.rejected.get(NAME, 0) >= before + times)


def polls_under_way() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("poll of ")]


@pytest.fixture
async def fixture() -> AsyncIterator[Fixture]:
    async with Backend() as backend:
        made = Fixture(backend)
        try:
            yield made
        finally:
            made.polls.stop()
            await eventually(lambda: not polls_under_way())


async def test_a_page_of_json_is_told_to_the_controller_again_and_again(fixture: Fixture) -> None:
    fixture.entry()
    await eventually(lambda: len(fixture.heard) >= 3)
    name, signal = fixture.heard[-1]
    assert (name, signal.source, signal.p90_ms, signal.error_rate, signal.throughput) == (NAME, "poll", 20, 0.1, 50)
    assert fixture.polls.done >= 3
    assert fixture.backends.rejected == {}
    assert fixture.controller.sources.keys() == {NAME}
    assert set(fixture.backend.asked) == {"/health"}


async def test_a_page_of_prometheus_is_told_from_the_second_time_on(fixture: Fixture) -> None:
    seen = 0

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        nonlocal seen
        seen += 10
        return web.Response(text=f'requests_total{{code="200"}} {seen}\nrequests_total{{code="500"}} {seen}\n')

    fixture.backend.answer = answer
    fixture.entry(**METRICS)
    await eventually(lambda: len(fixture.heard) >= 2)
    assert len(fixture.backend.asked) > len(fixture.heard)
    assert [signal.error_rate for _, signal in fixture.heard] == [0.5] * len(fixture.heard)
    assert all(signal.throughput > 0 for _, signal in fixture.heard)


async def test_a_long_page_that_comes_in_pieces_is_read_to_its_end(fixture: Fixture) -> None:
    lines = "".join(f'other_total{{path="/{number}"}} {number}\n' for number in range(5_000))

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (lines, lines, f'requests_total{{code="200"}} {len(fixture.backend.asked)}\n'):
            await response.write(piece.encode())
            await asyncio.sleep(0)
        return response

    fixture.backend.answer = answer
    fixture.entry(**METRICS)
    await eventually(lambda: fixture.heard)
    assert fixture.backends.rejected == {}


async def drop(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut_short(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"latency_ms": ')
    return await drop(request)


async def never_ending(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 100_000)


BAD: dict[str, tuple[Answer, str]] = {
    "500": (saying(web.json_response, HEALTH, status=500), "500, message='Internal Server Error'"),
    "404": (saying(web.Response, status=404), "404, message='Not Found'"),
    "no body": (saying(web.Response), "not JSON"),
    "HTML": (saying(web.Response, text="<html>It works!</html>"), "not JSON"),
    "not UTF-8": (saying(web.Response, body=b'{"latency_ms": "\xff"}'), "not JSON"),
    "another document": (saying(web.json_response, {"status": "UP"}), "status: unknown field"),
    "out of range": (saying(web.json_response, {"latency_ms": {"p50": -1}}), "latency_ms.p50: "),
    "too big": (saying(web.Response, body=b" " * (PAGE_BYTES_MAX + 1)), "the page is too long"),
    "too big, nobody knows how big": (never_ending, "the page is too long"),
    "dropped": (drop, "Server disconnected"),
    "cut short": (cut_short, ""),
    "a circle": (saying(web.Response, status=302, headers={"Location": "/"}), ""),
    "a redirection to a file": (saying(web.Response, status=302, headers={"Location": "file:///etc/passwd"}), ""),
    "compressed and not": (saying(web.Response, body=b"x", headers={"Content-Encoding": "gzip"}), ""),
}


@pytest.mark.parametrize(("answer", "told"), BAD.values(), ids=BAD.keys())
async def test_a_page_that_is_no_good_is_counted_and_named_and_the_next_may_be_better(
    fixture: Fixture, answer: Answer, told: str
) -> None:
    fixture.backend.answer, good = answer, fixture.backend.answer
    fixture.entry()
    await fixture.is_rejected()
    assert fixture.fault.startswith(f"poll: {told}")
    assert fixture.fault != "poll: "
    assert fixture.heard == []
    assert fixture.controller.sources == {}
    fixture.backend.answer = good
    await eventually(lambda: fixture.heard)


async def test_garbage_in_the_midst_of_scrapes_is_as_if_it_had_not_been(fixture: Fixture) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        asked = len(fixture.backend.asked)
        text = f"requests_total {asked}\n" if asked % 2 else "requests_total{ 5"
        return web.Response(text=text)

    fixture.backend.answer = answer
    fixture.entry(**METRICS)
    await eventually(lambda: len(fixture.heard) >= 2)
    await fixture.is_rejected()
    assert fixture.fault.startswith("poll: no Prometheus text")


async def test_a_page_that_does_not_come_in_time_is_given_up_and_asked_for_again(fixture: Fixture) -> None:
    async def hang(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    fixture.backend.answer = hang
    fixture.entry()
    await fixture.is_rejected(1)
    assert fixture.fault == "poll: no answer in time"
    await eventually(lambda: len(fixture.backend.asked) == 2)
    assert fixture.backend.under_way <= 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://a..b/", "http://nobody:here@127.0.0.1:{port}/"])
async def test_a_page_that_nobody_serves_is_counted_and_named(fixture: Fixture, url: str) -> None:
    fixture.entry(url=url.format(port=free_port()))
    await fixture.is_rejected(1)
    assert fixture.fault.startswith("poll: ")


async def test_an_entry_that_is_changed_is_polled_anew_and_one_that_is_not_goes_on(fixture: Fixture) -> None:
    fixture.entry(path="/old")
    await eventually(lambda: fixture.backend.asked)
    for _ in range(3):
        fixture.polls.keep()
    fixture.entry(path="/new")
    await eventually(lambda: "/new" in fixture.backend.asked)
    at_change = len(fixture.backend.asked)
    await eventually(lambda: len(fixture.backend.asked) >= at_change + 3)
    assert set(fixture.backend.asked[at_change:]) == {"/new"}


@pytest.mark.parametrize("end", ["removed", "off", "no poll"])
async def test_a_backend_that_is_to_be_polled_no_more_is_left_alone(fixture: Fixture, end: str) -> None:
    fixture.entry()
    await eventually(lambda: fixture.heard)
    if end == "off":
        fixture.entry(mode="off")
    else:
        fixture.backends.set_entry(NAME, parse_backend(NAME, {}) if end == "no poll" else None, 0)
        fixture.polls.keep()
    before = len(fixture.heard)
    # Another backend's polls tell how much time has passed.
    fixture.entry("stock", path="/stock")
    await eventually(lambda: len(fixture.heard) >= before + 4)
    assert {name for name, _ in fixture.heard[before:]} == {"stock"}


async def test_a_node_that_leads_no_more_polls_nobody(fixture: Fixture) -> None:
    fixture.entry()
    await eventually(lambda: fixture.heard)
    fixture.polls.stop()
    await eventually(lambda: not polls_under_way())


async def test_what_is_wrong_with_one_page_is_no_matter_of_the_others(fixture: Fixture) -> None:
    fixture.entry(url=f"http://127.0.0.1:{free_port()}")
    fixture.entry("stock")
    await fixture.is_rejected()
    await eventually(lambda: fixture.heard)
    assert fixture.backends.rejected.keys() == {NAME}


async def test_a_node_that_leads_again_polls_again(fixture: Fixture) -> None:
    fixture.entry()
    await eventually(lambda: fixture.heard)
    fixture.polls.stop()
    fixture.heard.clear()
    fixture.polls.keep()
    await eventually(lambda: fixture.heard)
