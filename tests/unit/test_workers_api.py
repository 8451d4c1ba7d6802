"""The admin API of a node with workers, before workers that say what a test wants."""

import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from limiter_node.edge.workers_api import WorkersApi
from tests.unit.test_summed_metrics import samples
from tests.unit.test_summed_status import status

METRICS = "# HELP limiter_checks_total Checks.\n# TYPE limiter_checks_total counter\nlimiter_checks_total 7.0\n"


class Worker:
    """Answers at a unix socket of its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = f"n.{number}"
        self.admin = f"\0limiter-test/{secrets.token_hex(8)}"
        self.state = "listening"
        self.restarts = 0
        self.pid: int | None = 70 + number
        self.is_ready = True
        self.asked: list[tuple[str, str]] = []
        self._runner: web.AppRunner

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.route("*", "/{path:.*}", self._answer)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(self.admin)
        await web.SockSite(self._runner, bound).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def die(self) -> None:
        self.state, self.pid = "down", None
        await self.stop()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        match request.path:
            case "/healthz":
                return web.Response()
            case "/readyz":
                return web.Response(status=200 if self.is_ready else 503)
            case "/metrics":
                return web.Response(text=METRICS)
            case "/v1/status":
                return web.json_response({**status(self.id), "ready": self.is_ready})
        return web.Response(status=418, text=self.id)


@dataclass
class Node:
    node_id: str = "n"
    zone: str | None = "east"
    version: str = "1.2.3"
    addresses: dict[str, str] = field(default_factory=lambda: {"http": "h:1"})
    is_draining: bool = False
    is_begun: bool = True
    workers: list[Worker] = field(default_factory=lambda: [Worker(1), Worker(2)])


class Admin:
    """A node, its admin API, and who asks it."""

    def __init__(self) -> None:
        self.node = Node()
        self.api = WorkersApi(self.node)
        self._session = aiohttp.ClientSession()
        self._url = ""

    async def start(self) -> None:
        for worker in self.node.workers:
            await worker.start()
        host, port = await self.api.start("127.0.0.1", 0)
        self._url = f"http://{host}:{port}"

    async def stop(self) -> None:
        await self._session.close()
        await self.api.stop()
        for worker in self.node.workers:
            await worker.stop()

    async def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        async with self._session.request(method, URL(self._url + path, encoded=True)) as answer:
            return answer.status, await answer.text()

    async def json(self, path: str) -> Any:
        async with self._session.get(self._url + path) as answer:
            assert answer.status == 200
            return await answer.json()

    async def statuses(self) -> tuple[int, int]:
        return (await self.ask("/healthz"))[0], (await self.ask("/readyz"))[0]


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    found = Admin()
    await found.start()
    yield found
    await found.stop()


async def test_a_node_is_ready_from_when_all_workers_were_until_it_drains(admin: Admin) -> None:
    admin.node.is_begun = False
    assert await admin.statuses() == (200, 503)
    assert "the node is starting" in (await admin.ask("/readyz"))[1]
    admin.node.is_begun = True
    assert await admin.statuses() == (200, 200)
    admin.node.is_draining = True
    assert await admin.statuses() == (200, 503)
    assert "the node is draining" in (await admin.ask("/readyz"))[1]


@pytest.mark.parametrize("state", ["down", "starting", "joining"])
async def test_a_worker_that_does_not_listen_is_not_missed_while_another_does(admin: Admin, state: str) -> None:
    first, last = admin.node.workers
    first.state, first.is_ready = state, False
    assert await admin.statuses() == (200, 200)
    last.state = state
    assert await admin.statuses() == (200, 503)


async def test_a_worker_that_listens_and_is_not_well_makes_the_node_unready(admin: Admin) -> None:
    first, _ = admin.node.workers
    first.is_ready = False
    assert await admin.statuses() == (200, 503)
    assert "the node is not well" in (await admin.ask("/readyz"))[1]
    first.is_ready = True
    await first.stop()  # it listens for checks, and answers nothing
    assert await admin.statuses() == (503, 503)


async def test_metrics_are_added_and_a_dead_worker_s_stay(admin: Admin) -> None:
    first, _ = admin.node.workers
    told = samples((await admin.ask("/metrics"))[1])
    assert told == {
        "limiter_checks_total": 14,
        "limiter_ready": 1,
        'limiter_node_info{node="n",version="1.2.3",zone="east"}': 1,
        'limiter_worker_up{worker="n.1"}': 1,
        'limiter_worker_up{worker="n.2"}': 1,
        'limiter_worker_restarts_total{worker="n.1"}': 0,
        'limiter_worker_restarts_total{worker="n.2"}': 0,
    }
    await first.die()
    admin.api.note_death(1)
    told = samples((await admin.ask("/metrics"))[1])
    assert (told["limiter_checks_total"], told['limiter_worker_up{worker="n.1"}']) == (14, 0)
    first.state, first.pid, first.restarts = "listening", 99, 1
    await first.start()
    told = samples((await admin.ask("/metrics"))[1])
    assert (told["limiter_checks_total"], told['limiter_worker_restarts_total{worker="n.1"}']) == (21, 1)


async def test_the_status_is_the_node_s_and_lists_its_workers(admin: Admin) -> None:
    first, last = admin.node.workers
    await first.die()
    last.restarts = 2
    told = await admin.json("/v1/status")
    assert (told["node"], told["addresses"], told["ready"], told["keys"]) == ("n", {"http": "h:1"}, True, 100)
    assert told["workers"] == [
        {"id": "n.1", "pid": None, "state": "down", "restarts": 0, "ready": False, "keys": 0, "fenced": False},
        {"id": "n.2", "pid": 72, "state": "listening", "restarts": 2, "ready": True, "keys": 100, "fenced": False},
    ]


async def test_what_any_worker_knows_is_asked_of_one_that_can_be_asked(admin: Admin) -> None:
    first, last = admin.node.workers
    # As it was sent: a key may hold an encoded slash, or be two dots.
    for path in ("/v1/keys/api/k%2F1?x=%2B+", "/v1/keys/api/.."):
        assert await admin.ask(path, "DELETE") == (418, "n.1")
        assert first.asked[-1] == ("DELETE", path)
    await first.stop()  # dead, and nobody knows yet
    assert await admin.ask("/v1/rules") == (418, "n.2")
    first.state = "starting"
    last.state = "joining"
    assert await admin.ask("/") == (418, "n.2")
    await last.die()
    code, text = await admin.ask("/v1/rules")
    assert (code, "no worker answers" in text) == (503, True)
    assert (await admin.ask("/v1/status"))[0] == 503
    assert (await admin.ask("/v1/rules", "DELETE"))[0] == 405
