"""The backend that is drowned: a pool of workers behind a queue, first in first out, over HTTP.

    python -m tests.overload.backend --port 9000 --workers 5 --service-ms 60 --spread 0.4

`GET /work` waits for a worker and for the work; `PUT /control {"workers": 2, "slowness": 2.5, "failing": 0.3}` changes
what is given, at once for what is still to begin; `GET /control` tells. A request whose client has given up is worked
on all the same: most servers do not notice, and it is what makes a long queue worthless. Nobody is turned away, but for
the memory's sake at QUEUE_MAX.

Capacity is workers / mean service time, exactly: a worker that takes the next request begins it when the last one was
due to end, so that the delays of a busy machine do not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
from collections import deque
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import uvloop
from aiohttp import web

from tests.overload.scenario import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_MAX = 20_000


class Pool:
    """Workers and their queue. `at` calls back at a time of the caller's clock, in seconds."""

    def __init__(
        self, mode: Mode, service_ms: float, spread: float, seed: int, at: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self.mode = mode
        self.busy = 0
        self.done = 0
        self.waiting: deque[Callable[[bool], None]] = deque()
        self._mu = math.log(service_ms / 1e3) - spread * spread / 2  # so that service_ms is the mean
        self._spread = spread
        self._random = random.Random(seed)
        self._at = at

    def take(self, now_s: float, finished: Callable[[bool], None]) -> None:
        """Queue a request; `finished` is told whether it went well."""
        self.waiting.append(finished)
        self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Give idle workers what waits."""
        while self.waiting and self.busy < self.mode.workers:
            self.busy += 1
            finished = self.waiting.popleft()
            end_s = now_s + self._random.lognormvariate(self._mu, self._spread) * self.mode.slowness
            self._at(end_s, lambda finished=finished, end_s=end_s: self._end(finished, end_s))  # type: ignore[misc]

    def _end(self, finished: Callable[[bool], None], end_s: float) -> None:
        self.busy -= 1
        self.done += 1
        finished(self._random.random() >= self.mode.failing)
        self.begin(end_s)


class Backend:
    """The pool behind HTTP."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/work", self.work)
        app.router.add_get("/control", self.tell)
        app.router.add_put("/control", self.change)
        return app

    async def work(self, request: web.Request) -> web.Response:
        if len(self._pool.waiting) >= QUEUE_MAX:
            return web.Response(status=503)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        went_well: asyncio.Future[bool] = loop.create_future()
        self._pool.take(began_s, went_well.set_result)
        is_good = await went_well
        took_ms = (loop.time() - began_s) * 1e3
        return web.json_response({"took_ms": round(took_ms, 1)}, status=200 if is_good else 500)

    async def tell(self, request: web.Request) -> web.Response:
        pool = self._pool
        return web.json_response(
            {**asdict(pool.mode), "waiting": len(pool.waiting), "busy": pool.busy, "done": pool.done}
        )

    async def change(self, request: web.Request) -> web.Response:
        self._pool.mode = replace(self._pool.mode, **await request.json())
        self._pool.begin(asyncio.get_running_loop().time())
        return await self.tell(request)


async def serve(options: argparse.Namespace) -> None:
    """Serve until told to stop."""
    loop = asyncio.get_running_loop()
    pool = Pool(Mode(options.workers), options.service_ms, options.spread, options.seed, loop.call_at)
    runner = web.AppRunner(Backend(pool).app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description="A backend with a known capacity.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--service-ms", type=float, default=60.0, help="mean time of a request in a worker")
    parser.add_argument("--spread", type=float, default=0.4, help="sigma of its logarithm")
    parser.add_argument("--seed", type=int, default=1)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
