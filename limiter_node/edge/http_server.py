"""The listener of the check API: accepts connections, tends them once a second, ends them.

All reads of one pass of the loop are answered together, then all answers are written together. Decisions back to back
keep the interpreter's code in the cache, and of writes back to back only the first has to wake the client: with 32
connections a check took 26 % less CPU so than read, answered and written one by one.

What happens on a connection is `edge.http`'s; what a request means is the application's.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import TYPE_CHECKING

from limiter_node import clock
from limiter_node.edge.answers import problem_answer
from limiter_node.edge.http import HttpConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.edge.answers import Problem
    from limiter_node.edge.exchange import Application


class HttpServer:
    """Listens, keeps the connections, and ends them: gently (`is_draining`), then all of them."""

    def __init__(self, app: Application, count_problem: Callable[[int], None] = lambda _: None) -> None:
        self.app = app
        self._count_problem = count_problem
        self.connections: set[HttpConnection] = set()
        self.is_draining = False
        self.date = _date_header()  # a second old at most
        self._reads: list[tuple[HttpConnection, bytes]] = []
        self._answered: list[HttpConnection] = []
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address in use."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(lambda: HttpConnection(self), host, port, backlog=1024)
        self._ticker = self._loop.create_task(self._tick())
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def stop(self, grace_s: float) -> None:
        """Take no new connections, give answers under way `grace_s` to leave, then close."""
        if self._server is None or self._ticker is None:
            return
        self._server.close()
        deadline_s = self._loop.time() + grace_s
        self._answer()  # closed before its answer is written, a check that was read would be spent and never granted
        while any(map(HttpConnection.is_busy, self.connections)) and self._loop.time() < deadline_s:
            await asyncio.sleep(0.01)
            self._answer()
        for connection in list(self.connections):
            connection.close()
        self._ticker.cancel()
        await asyncio.gather(self._ticker, return_exceptions=True)

    def was_read(self, connection: HttpConnection, data: bytes) -> None:
        """Take a read, to be answered once the loop has made all reads of this pass."""
        if not self._reads and not self._answered:
            self._loop.call_soon(self._answer)
        self._reads.append((connection, data))

    def was_answered(self, connection: HttpConnection) -> None:
        """Have a connection's answers written together with those of others."""
        if not self._reads and not self._answered:
            self._loop.call_soon(self._answer)
        self._answered.append(connection)

    def problem_answer(self, problem: Problem, connection_header: str) -> bytes:
        """The answer to what is no good; counts it."""
        self._count_problem(problem.status)
        return problem_answer(problem, self.date, connection_header)

    def _answer(self) -> None:
        reads, self._reads = self._reads, []
        answered, self._answered = self._answered, []
        now_ns = clock.now_ns()
        answers = [connection.process(data, now_ns) for connection, data in reads]
        for (connection, _), answer in zip(reads, answers, strict=True):
            if answer is None:
                connection.flush()
            elif answer:
                connection.write(answer)
        for connection in answered:
            connection.flush()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.date = _date_header()
            self._answer()  # who is no longer idle is not to be closed for that
            now_ns = clock.now_ns()
            for connection in list(self.connections):
                connection.tick(now_ns)


def _date_header() -> str:
    return f"Date: {formatdate(usegmt=True)}\r\n"
