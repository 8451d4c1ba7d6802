"""The listener of the check API: accepts connections, tends them once a second, ends them.

All reads of one pass of the loop are answered together, then all answers are written together. Decisions back to back
keep the interpreter's code in the cache, and of writes back to back only the first has to wake the client: with 32
connections a check took 26 % less CPU so than read, answered and written one by one.

More than a pass may take waits in the `backlog`, and others get their turn: peers that ping, a probe of the admin
address. Of the time that a node is shedding, deciding has four fifths and refusing, which on a connection without
pipelining is hardly cheaper (reading and writing are two thirds of a check), one: however many are refused, four fifths
of what the node can decide is decided.

What happens on a connection is `edge.http`'s; what a request means is the application's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

import structlog

from limiter_node import clock
from limiter_node.edge.answers import problem_answer
from limiter_node.edge.backlog import DELAY_MAX_NS, Backlog
from limiter_node.edge.http import HttpConnection
from limiter_node.edge.limits import CONNECTIONS_MAX
from limiter_node.edge.refusing import Refusing

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.edge.answers import Problem
    from limiter_node.edge.exchange import Application


log = structlog.get_logger()

READS_MAX = 64
"""Reads that are handled without looking at the clock: 0.8 ms of plain checks."""

CHUNK_BYTES_MAX = 8 << 10
"""With more to do the clock is looked at this often: sixty plain checks, or one read of more."""

DECIDING_NS = 1_600_000
REFUSING_NS = 400_000
"""What either may take of a pass of the loop: a peer waits for one at each end, and its timeout is 100 ms."""


ACCEPTS_PER_PASS = 8
"""The loop accepts one connection of a listener in each pass: so many listen on the same socket, or a thousand clients
would wait two seconds for their turn on a busy node. To accept one takes some 0.1 ms."""


class HttpServer:
    """Listens, keeps the connections, and ends them: gently (`is_draining`), then all of them."""

    def __init__(self, app: Application, count_problem: Callable[[int], None] = lambda _: None) -> None:
        self.app = app
        self.refusing = Refusing(count_problem)
        self.connections: set[HttpConnection] = set()
        self.connections_max = CONNECTIONS_MAX
        self.turned_away = 0  # connections for which there was no room
        self.is_draining = False
        self.date = _date_header()  # a second old at most
        self._app = app
        self._count_problem = count_problem
        self._reads: list[HttpConnection] = []
        self._answered: list[HttpConnection] = []
        self._is_due = False  # in this pass of the loop
        self._backlog: Backlog[HttpConnection] = Backlog()
        self._has_much = False  # reads that may take long, or a backlog that needs watching
        self._behind: dict[HttpConnection, int] = {}  # since when what they sent may lie unread
        self._behind_before: dict[HttpConnection, int] = {}  # the same of those that read on in the last pass
        self._shed_before = 0  # refusals before the present overload
        self._is_overloaded = False  # as the log was told
        self._loop: asyncio.AbstractEventLoop
        self._listeners: list[asyncio.Server] = []
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, *, is_shared: bool = False) -> tuple[str, int]:
        """Listen, where `is_shared` beside other processes of this user; returns the address in use."""
        self._loop = asyncio.get_running_loop()
        # Any: its sockets are a list in uvloop, a tuple in the types, and a compiled node insists on those.
        first: Any = await self._loop.create_server(
            self._connect, host, port, backlog=1024, reuse_port=is_shared or None
        )
        self._listeners.append(first)
        for _ in range(ACCEPTS_PER_PASS - 1):
            again = socket.socket(fileno=os.dup(first.sockets[0].fileno()))
            self._listeners.append(await self._loop.create_server(self._connect, sock=again, backlog=1024))
        self._ticker = self._loop.create_task(self._tick())
        address: tuple[str, int] = first.sockets[0].getsockname()[:2]
        return address

    def _connect(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", HttpConnection(self))

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, give answers under way `grace_s` to leave, then close."""
        if self._ticker is None:
            return
        for listener in self._listeners:
            listener.close()
        deadline_s = self._loop.time() + grace_s
        self._answer()  # closed before its answer is written, a check that was read would be spent and never granted
        while any(map(HttpConnection.is_busy, self.connections)) and self._loop.time() < deadline_s:
            await asyncio.sleep(0.01)
            self._answer()
        for connection in list(self.connections):
            connection.close()
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)

    @property
    def is_shedding(self) -> bool:
        """Whether requests that have waited too long are refused."""
        return self._backlog.is_shedding

    def has_room(self) -> bool:
        """Whether another connection may stay; counts one that may not."""
        if len(self.connections) < self.connections_max:
            return True
        self.turned_away += 1
        return False

    def was_read(self, connection: HttpConnection) -> None:
        """Have a connection's input answered once the loop has made all reads of this pass."""
        if not self._is_due:
            self._be_due()
        self._reads.append(connection)

    def was_much_read(self, connection: HttpConnection) -> None:
        """As `was_read`, of input that may take long."""
        self._has_much = True
        self.was_read(connection)

    def fell_behind(self, connection: HttpConnection) -> None:
        """Have a connection read on once it has processed its input: that may have come at any time since now."""
        self._behind.setdefault(connection, self._behind_before.get(connection) or clock.now_ns())
        self._has_much = True

    def was_answered(self, connection: HttpConnection) -> None:
        """Have a connection's answers written together with those of others."""
        if not self._is_due:
            self._be_due()
        self._answered.append(connection)

    def problem_answer(self, problem: Problem, connection_header: str) -> bytes:
        """The answer to what is no good; counts it."""
        self._count_problem(problem.status)
        return problem_answer(problem, self.date, connection_header)

    def _be_due(self) -> None:
        self._is_due = True
        self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        self._is_due = False
        reads, self._reads = self._reads, []
        answered, self._answered = self._answered, []
        now_ns = clock.now_ns()
        if self._has_much or len(reads) > READS_MAX:
            self._work_off(reads, now_ns)
        else:
            self._handle(reads, now_ns)
        for connection in answered:
            connection.flush()

    def _handle(self, connections: list[HttpConnection], now_ns: int) -> None:
        answers = [connection.process(now_ns) for connection in connections]
        for connection, answer in zip(connections, answers, strict=True):
            if answer is None:
                connection.flush()
            elif answer:
                connection.write(answer)

    def _work_off(self, reads: list[HttpConnection], began_ns: int) -> None:
        """Handle what was read and what waits, as far as one pass may go."""
        backlog, behind, before = self._backlog, self._behind, self._behind_before
        for connection in reads:
            backlog.put(connection, behind.get(connection) or before.get(connection) or began_ns)
        before.clear()
        now_ns = began_ns
        while backlog and now_ns - began_ns < DECIDING_NS:
            now_ns = self._handle_next(now_ns)
        began_ns = now_ns
        while now_ns - began_ns < REFUSING_NS and (late := backlog.take_late(now_ns)):
            self._refuse([late], now_ns)
            now_ns = clock.now_ns()
        self._has_much = bool(self._reads or behind or before) or backlog.is_uneasy
        if (backlog or before) and not self._is_due:
            self._be_due()
        if backlog.is_shedding is not self._is_overloaded:
            self._tell_of_overload()

    def _handle_next(self, now_ns: int) -> int:
        """Handle some of what waits; returns the time after that."""
        chosen: list[HttpConnection] = []
        late: list[HttpConnection] = []
        input_bytes = 0
        while self._backlog and input_bytes < CHUNK_BYTES_MAX:
            connection, is_late = self._backlog.take(now_ns)
            input_bytes += connection.input_bytes
            (late if is_late else chosen).append(connection)
        self._handle(chosen, now_ns)
        self._read_on(chosen)
        if late:
            self._refuse(late, now_ns)
        return clock.now_ns()

    def _refuse(self, connections: list[HttpConnection], now_ns: int) -> None:
        self.app = self.refusing
        try:
            self._handle(connections, now_ns)
        finally:
            self.app = self._app
        self._read_on(connections)

    def _read_on(self, connections: list[HttpConnection]) -> None:
        """Let those that have caught up read again; the next pass knows since when they had not."""
        for connection in connections:
            if connection in self._behind and connection.catch_up():
                self._behind_before[connection] = self._behind.pop(connection)

    def _tell_of_overload(self) -> None:
        self._is_overloaded = self._backlog.is_shedding
        if self._is_overloaded:
            log.warning(
                "overloaded: requests that waited too long are refused",
                delay_max_ms=DELAY_MAX_NS // 1_000_000,
                connections=len(self.connections),
            )
        else:
            log.info("overload is over", refused=self.refusing.refused - self._shed_before)
            self._shed_before = self.refusing.refused

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.date = _date_header()
            self._answer()  # who is no longer idle is not to be closed for that
            now_ns = clock.now_ns()
            for connection in list(self.connections):
                connection.tick(now_ns)
            self._backlog.settle(now_ns)
            if self._backlog.is_shedding is not self._is_overloaded:
                self._tell_of_overload()


def _date_header() -> str:
    return f"Date: {formatdate(usegmt=True)}\r\n"
