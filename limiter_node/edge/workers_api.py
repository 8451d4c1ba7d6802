"""The admin API of a node with several workers: asks each of them, and adds up what they say.

Health, readiness, metrics and status are the node's own; whatever else is asked for (a key, the rules, the dashboard of
the fleet), any worker answers as well as another, so the question is passed on to the first that can be asked.

A node is ready from when all its workers have been for the first time. A worker that is started again is not missed:
it listens only once it is ready, and the others take its share. One that listens and is not well makes the node
unready, for the kernel goes on giving it connections.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import msgspec
from aiohttp import web
from yarl import URL

from limiter_node.edge import summed_metrics
from limiter_node.edge.admin_api import PROMETHEUS_TEXT, problems_answered
from limiter_node.edge.answers import Problem
from limiter_node.edge.summed_status import summed

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_S = 2.0
"""How long a worker may take to tell of itself: a busy one takes some 10 ms."""

NODE_METRICS = """\
# HELP limiter_ready 1 while a load balancer should send checks here.
# TYPE limiter_ready gauge
limiter_ready {ready:d}.0
# HELP limiter_node_info Always 1; the labels say which node this is.
# TYPE limiter_node_info gauge
limiter_node_info{{node="{node}",version="{version}",zone="{zone}"}} 1.0
# HELP limiter_worker_up 1 while the worker listens for checks.
# TYPE limiter_worker_up gauge
{ups}# HELP limiter_worker_restarts_total Times that a worker was started again.
# TYPE limiter_worker_restarts_total counter
{restarts}"""


class WorkerView(Protocol):
    """A worker, as its supervisor sees it."""

    number: int
    id: str
    restarts: int
    state: str  # down, starting, joining or listening
    admin: str  # the unix socket at which it tells of itself

    @property
    def pid(self) -> int | None:
        """None while it does not run."""


class NodeView(Protocol):
    """A node with several workers, as its supervisor sees it."""

    node_id: str
    zone: str | None
    version: str
    addresses: dict[str, str]
    is_draining: bool
    is_begun: bool  # whether all workers have been ready for the first time

    @property
    def workers(self) -> Sequence[WorkerView]:
        """All of them, running or not."""


class WorkersApi:
    """Serves the admin paths of a node with several workers."""

    def __init__(self, node: NodeView) -> None:
        self._node = node
        self._ledger = summed_metrics.Ledger()
        self._sessions: dict[int, aiohttp.ClientSession] = {}  # by worker
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address in use."""
        for worker in self._node.workers:
            connector = aiohttp.UnixConnector(worker.admin)
            self._sessions[worker.number] = aiohttp.ClientSession(connector=connector)
        app = web.Application(middlewares=[problems_answered])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/status", self._status),
                web.get("/{path:.*}", self._pass_on),
                web.delete("/v1/keys/{path:.*}", self._pass_on),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        address: tuple[str, int] = self._runner.addresses[0][:2]
        return address

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    def note_death(self, worker: int) -> None:
        """Keep what a worker had counted."""
        self._ledger.end(worker)

    # What the node says.

    async def _healthz(self, request: web.Request) -> web.Response:
        listening = self._in("listening")
        told = await self._ask(listening, "/healthz")
        if len(told) < len(listening):
            raise Problem(503, "a worker that listens for checks does not answer")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if not await self._is_ready():
            why = "draining" if self._node.is_draining else "starting" if not self._node.is_begun else "not well"
            raise Problem(503, f"the node is {why}", headers="Retry-After: 1\r\n")
        return web.Response(text="ready\n")

    async def _is_ready(self) -> bool:
        if self._node.is_draining or not self._node.is_begun:
            return False
        listening = self._in("listening")
        told = await self._ask(listening, "/readyz")
        return bool(listening) and len(told) == len(listening)

    async def _metrics(self, request: web.Request) -> web.Response:
        running = self._in("listening", "joining")
        lives = {worker.number: (worker.pid, worker.restarts) for worker in running}
        told = await self._ask(running, "/metrics")
        # A worker that died meanwhile has been accounted for.
        now = {
            worker.number: summed_metrics.parse(told[worker.number].decode())
            for worker in running
            if worker.number in told and (worker.pid, worker.restarts) == lives[worker.number]
        }
        page = self._ledger.total(now) | summed_metrics.parse(self._node_metrics(is_ready=await self._is_ready()))
        return web.Response(body=summed_metrics.render(page).encode(), headers=PROMETHEUS_TEXT)

    def _node_metrics(self, *, is_ready: bool) -> str:
        node = self._node
        return NODE_METRICS.format(
            ready=is_ready,
            node=node.node_id,
            version=node.version,
            zone=node.zone or "",
            ups="".join(
                f'limiter_worker_up{{worker="{one.id}"}} {int(one.state == "listening")}.0\n' for one in node.workers
            ),
            restarts="".join(
                f'limiter_worker_restarts_total{{worker="{one.id}"}} {one.restarts}.0\n' for one in node.workers
            ),
        )

    async def _status(self, request: web.Request) -> web.Response:
        running = self._in("listening", "joining")
        told = await self._ask(running, "/v1/status")
        documents = {number: _decoded(body) for number, body in told.items()}
        if not documents:
            raise Problem(503, "no worker answers", headers="Retry-After: 1\r\n")
        return web.json_response(
            {
                **summed(list(documents.values())),
                "node": self._node.node_id,
                "addresses": self._node.addresses,
                "ready": await self._is_ready(),
                "workers": [_worker(worker, documents.get(worker.number)) for worker in self._node.workers],
            }
        )

    def _in(self, *states: str) -> list[WorkerView]:
        return [worker for worker in self._node.workers if worker.state in states]

    async def _ask(self, workers: Sequence[WorkerView], path: str) -> dict[int, bytes]:
        """{worker: its answer} of those that answered, and well."""
        bodies = await asyncio.gather(*(self._ask_one(worker, path) for worker in workers))
        return {worker.number: body for worker, body in zip(workers, bodies, strict=True) if body is not None}

    async def _ask_one(self, worker: WorkerView, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(ANSWER_S), self._sessions[worker.number].get(_at_worker(path)) as answer:
                return await answer.read() if answer.ok else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    # What any worker says.

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        for worker in self._in("listening") + self._in("joining"):
            try:
                answer = await self._sessions[worker.number].request(
                    request.method,
                    _at_worker(request.raw_path),
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S),
                )
            except aiohttp.ClientError:
                continue
            async with answer:
                return await _relay(request, answer)
        raise Problem(503, "no worker answers", headers="Retry-After: 1\r\n")


def _at_worker(path: str) -> URL:
    """The path as it was sent, for a key may hold an encoded slash, or be two dots."""
    return URL("http://worker" + path, encoded=True)


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass an answer on as it comes: the dashboard's events come for as long as somebody looks."""
    response = web.StreamResponse(status=answer.status)
    for name, value in answer.headers.items():
        if name not in ("Transfer-Encoding", "Connection", "Date", "Server"):
            response.headers.add(name, value)
    try:
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, ConnectionResetError):
        pass  # the worker died, or the page was closed: either side sees how it ends
    return response


def _worker(worker: WorkerView, status: dict[str, Any] | None) -> dict[str, Any]:
    """One row of the table of workers; of one that does not answer, what is known without it."""
    row = {"id": worker.id, "pid": worker.pid, "state": worker.state, "restarts": worker.restarts}
    if status is None:
        return {**row, "ready": False, "keys": 0, "fenced": False}
    return {**row, "ready": status["ready"], "keys": status["keys"], "fenced": status["fenced"]}


def _decoded(body: bytes) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(body)
    return document
