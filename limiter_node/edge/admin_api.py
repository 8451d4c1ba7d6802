"""The admin API (contract, section 3): health, metrics, status, and a look at single keys.

Cold, so plain: an aiohttp application over a node. It decides nothing; it shows, and passes questions about a key on
to its owner as a check would be.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import web

from limiter_node import clock
from limiter_node.core.forward import Forward
from limiter_node.core.model import Bucket, Check, Explanation, Forgotten, Op, Outcome, UnknownRule
from limiter_node.core.rules import NAME_ALLOWED, is_name, key_problem
from limiter_node.edge.answers import Problem, explanation_json, limit_document, problem_document
from limiter_node.edge.fleet_feed import Feed, TooManyWatchers

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from limiter_node.core.engine import Engine
    from limiter_node.core.router import Router
    from limiter_node.edge.figures import Figures
    from limiter_node.edge.metrics import Exposition

KEYS_PATH = "/v1/keys/"
EXPLAIN_PATH = "/v1/explain/"

PROMETHEUS_TEXT = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
PAGE_FILES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
    "uPlot.LICENSE": "text/plain",
}
PAGE_HEADERS = {
    # Nothing from elsewhere, nothing inline: whatever a client key holds, it is no script here.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class NodeView(Protocol):
    """What the admin API shows of a node."""

    engine: Engine
    router: Router
    is_draining: bool

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send checks here."""

    @property
    def config_revision(self) -> int:
        """The revision of the rules last applied."""

    def describe(self) -> dict[str, Any]:
        """The document of `GET /v1/status`."""

    def figures(self, seconds: int) -> Figures:
        """What the dashboard shows of this node, with so many of its last seconds."""


class AdminApi:
    """Serves the admin paths of a node."""

    def __init__(self, node: NodeView, metrics: Exposition) -> None:
        self._node = node
        self._metrics = metrics
        self._feed = Feed(node)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address in use."""
        runner = await self._set_up()
        await web.TCPSite(runner, host, port).start()
        address: tuple[str, int] = runner.addresses[0][:2]
        return address

    async def start_at(self, bound: socket.socket) -> None:
        """Listen at a socket that is bound already."""
        await web.SockSite(await self._set_up(), bound).start()

    async def _set_up(self) -> web.AppRunner:
        app = web.Application(middlewares=[problems_answered])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._get_metrics),
                web.get("/", self._page),
                web.get("/dashboard/{name}", self._page),
                web.get("/v1/fleet", self._fleet),
                web.get("/v1/fleet/events", self._fleet_events),
                web.get("/v1/status", self._status),
                web.get("/v1/rules", self._rules),
                web.get("/v1/owner", self._owner),
                web.get(KEYS_PATH + "{rule}/{key:.*}", self._inspect),
                web.get(EXPLAIN_PATH + "{rule}/{key:.*}", self._explain),
                web.delete(KEYS_PATH + "{rule}/{key:.*}", self._forget),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        return self._runner

    async def stop(self) -> None:
        """Close the listener and every connection."""
        await self._feed.stop()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self._node.is_ready:
            return web.Response(text="ready\n")
        why = "draining" if self._node.is_draining else "starting"
        raise Problem(503, f"the node is {why}", headers="Retry-After: 1\r\n")

    async def _get_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers=PROMETHEUS_TEXT)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._node.describe())

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in PAGE_FILES:
            raise web.HTTPNotFound
        body = files("limiter_node.edge.dashboard").joinpath(name).read_bytes()
        return web.Response(body=body, content_type=PAGE_FILES[name], charset="utf-8", headers=PAGE_HEADERS)

    async def _fleet(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(await self._feed.look(1)), content_type="application/json")

    async def _fleet_events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, one a second, for as long as the client reads."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        try:
            async with aclosing(self._feed.watch()) as events:
                async for event in events:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(b"data: " + event + b"\n\n")
        except TooManyWatchers:
            raise Problem(503, "as many watch already as can be told", headers="Retry-After: 1\r\n") from None
        except ConnectionResetError:
            pass  # the page was closed
        return response

    async def _rules(self, request: web.Request) -> web.Response:
        rules = {name: rule.rule.describe() for name, rule in sorted(self._node.engine.rules.items())}
        return web.json_response({"revision": self._node.config_revision, "rules": rules})

    async def _owner(self, request: web.Request) -> web.Response:
        name, _, value = request.rel_url.raw_query_string.partition("=")
        if name != "key" or "&" in value:
            raise Problem(400, "key: exactly one is needed, and nothing else; allowed: /v1/owner?key=KEY")
        key = _good_key(_decoded(value.replace("+", " ")))
        ring = self._node.router.ring
        return web.json_response({"key": key, "owner": ring.owner(key), "replica": ring.replica(key)})

    async def _inspect(self, request: web.Request) -> web.Response:
        rule, key = _rule_and_key(request)
        outcome = await self._ask(Check(rule, key, op=Op.INSPECT))
        if not isinstance(outcome, Bucket):
            raise _no_bucket(rule, outcome)
        ring = self._node.router.ring
        return web.json_response(
            {
                "rule": rule,
                "key": key,
                "segment": outcome.segment,
                "algorithm": outcome.algorithm,
                "limit": outcome.limit,
                "used": outcome.used,
                "remaining": outcome.remaining,
                "owner": ring.owner(key),
                "replica": ring.replica(key),
                **({} if outcome.limits is None else {"limits": list(map(limit_document, outcome.limits))}),
            }
        )

    async def _explain(self, request: web.Request) -> web.Response:
        rule, key = _rule_and_key(request, EXPLAIN_PATH)
        check = Check(rule, key, op=Op.EXPLAIN)
        outcome = await self._ask(check)
        if not isinstance(outcome, Explanation):
            raise _no_bucket(rule, outcome)
        ring = self._node.router.ring
        body = explanation_json(outcome, check, ring.owner(key), ring.replica(key))
        return web.Response(text=body, content_type="application/json")

    async def _forget(self, request: web.Request) -> web.Response:
        rule, key = _rule_and_key(request)
        outcome = await self._ask(Check(rule, key, op=Op.FORGET))
        if not isinstance(outcome, Forgotten):
            raise _no_bucket(rule, outcome)
        return web.Response(status=204)

    async def _ask(self, check: Check) -> Outcome:
        outcome = self._node.router.check(check, clock.now_ns())
        if not isinstance(outcome, Forward):
            return outcome
        late: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.reply = lambda result: None if late.done() else late.set_result(result)
        return await late


def _no_bucket(rule: str, outcome: Outcome) -> Problem:
    if isinstance(outcome, UnknownRule):
        return Problem(404, f"rule: {rule!r} does not exist", title="unknown rule")
    return Problem(503, "the owner of the key cannot be reached", headers="Retry-After: 1\r\n")


def _rule_and_key(request: web.Request, path: str = KEYS_PATH) -> tuple[str, str]:
    """From the path as sent, for a key may hold an encoded slash."""
    rule, _, key = request.rel_url.raw_path.removeprefix(path).partition("/")
    rule = _decoded(rule)
    if not is_name(rule):
        raise Problem(400, f"rule: {rule!r} is not allowed; allowed: {NAME_ALLOWED}")
    return rule, _good_key(_decoded(key))


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise Problem(400, "key: is not UTF-8; allowed: percent-encoded UTF-8") from None


def _good_key(key: str) -> str:
    wrong = key_problem(key)
    if wrong:
        raise Problem(400, f"key: {wrong}")
    return key


@web.middleware
async def problems_answered(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Everything that is no success is a problem document."""
    headers: dict[str, str] = {}
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        problem = Problem(405, f"allowed: {allowed}")
        headers["Allow"] = allowed
    except web.HTTPNotFound:
        problem = Problem(404, "nothing here", title="unknown path")
    except Problem as raised:
        problem = raised
    if problem.status == 503:
        headers["Retry-After"] = "1"
    return web.Response(
        body=msgspec.json.encode(problem_document(problem)),
        status=problem.status,
        headers={"Content-Type": "application/problem+json", **headers},
    )
