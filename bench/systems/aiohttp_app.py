"""The ordinary way to write a rate limiter: an aiohttp application that asks a store.

It answers the same URLs with the same body and headers as a node, for one rule, and leaves out what a fleet needs: no
owner, no live rules, no segments. The stores are those that users would pick:

    dict            token buckets in a dict of this process; nothing is ever forgotten
    limits-memory   the package `limits` in memory: its fixed window, the cheapest of its strategies
    limits-redis    the same on a Redis, by its asyncio storage
    gcra-redis      gcra.lua called in a Redis by redis-py with hiredis: one round trip

    python -m bench.systems.aiohttp_app PORT STORE COUNT PERIOD_S BURST [REDIS_URL]
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import uvloop
from aiohttp import web

SCRIPT = Path(__file__).with_name("gcra.lua")


class Taken(NamedTuple):
    """What a store says to a check; times in seconds."""

    allowed: bool
    remaining: int
    reset_after: float
    retry_after: float


class Store(Protocol):
    """Keeps what each key has spent."""

    async def take(self, key: str, cost: int) -> Taken:
        """Spend so many tokens, or none."""


class DictStore:
    """Token buckets in this process."""

    def __init__(self, count: int, period_s: int, burst: int) -> None:
        self._rate_per_s, self._burst = count / period_s, float(burst)
        # Client key -> (tokens left, when that was so).
        self._buckets: dict[str, tuple[float, float]] = {}

    async def take(self, key: str, cost: int) -> Taken:
        now = time.monotonic()
        tokens, then = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate_per_s)
        allowed = tokens >= cost
        if allowed:
            tokens -= cost
        self._buckets[key] = (tokens, now)
        reset_after = (self._burst - tokens) / self._rate_per_s
        return Taken(allowed, int(tokens), reset_after, 0.0 if allowed else (cost - tokens) / self._rate_per_s)


class LimitsMemoryStore:
    """The package's synchronous storage: it waits for nothing, and its asyncio one is much slower at many keys."""

    def __init__(self, count: int, period_s: int, burst: int) -> None:
        del burst  # a fixed window has none
        from limits import RateLimitItemPerSecond  # noqa: PLC0415 -- only the store in use is imported
        from limits.storage import MemoryStorage  # noqa: PLC0415
        from limits.strategies import FixedWindowRateLimiter  # noqa: PLC0415

        self._item = RateLimitItemPerSecond(count, period_s)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def take(self, key: str, cost: int) -> Taken:
        allowed = self._limiter.hit(self._item, key, cost=cost)
        reset_time, remaining = self._limiter.get_window_stats(self._item, key)
        return _windowed(reset_time, remaining, allowed=allowed)


class LimitsRedisStore:
    """The package's asyncio storage."""

    def __init__(self, count: int, period_s: int, burst: int, redis_url: str) -> None:
        del burst
        from limits import RateLimitItemPerSecond  # noqa: PLC0415
        from limits.aio.storage import RedisStorage  # noqa: PLC0415
        from limits.aio.strategies import FixedWindowRateLimiter  # noqa: PLC0415

        self._item = RateLimitItemPerSecond(count, period_s)
        self._limiter = FixedWindowRateLimiter(RedisStorage(f"async+{redis_url}", implementation="redispy"))

    async def take(self, key: str, cost: int) -> Taken:
        allowed = await self._limiter.hit(self._item, key, cost=cost)
        reset_time, remaining = await self._limiter.get_window_stats(self._item, key)
        return _windowed(reset_time, remaining, allowed=allowed)


class GcraRedisStore:
    """GCRA in a Redis."""

    def __init__(self, count: int, period_s: int, burst: int, redis_url: str) -> None:
        from redis.asyncio import Redis  # noqa: PLC0415

        self._us_per_token, self._burst = 1_000_000 * period_s / count, burst
        self._script = Redis.from_url(redis_url).register_script(SCRIPT.read_text())

    async def take(self, key: str, cost: int) -> Taken:
        allowed, remaining, reset_us, retry_us = await self._script(
            keys=[key], args=[self._us_per_token, self._burst, cost]
        )
        return Taken(bool(allowed), remaining, reset_us / 1e6, retry_us / 1e6)


STORES = {
    "dict": DictStore,
    "limits-memory": LimitsMemoryStore,
    "limits-redis": LimitsRedisStore,
    "gcra-redis": GcraRedisStore,
}


def _windowed(reset_time: float, remaining: int, *, allowed: bool) -> Taken:
    reset_after = max(0.0, reset_time - time.time())
    return Taken(allowed, remaining, reset_after, 0.0 if allowed else reset_after)


class Application:
    """The two handlers, and how an answer looks."""

    def __init__(self, store: Store, count: int, period_s: int, burst: int) -> None:
        self._store = store
        self._burst = burst
        self._window_s = math.ceil(burst * period_s / count)

    async def check_get(self, request: web.Request) -> web.Response:
        query = request.query
        return self._respond(query["rule"], await self._store.take(query["key"], int(query.get("cost", "1"))))

    async def check_post(self, request: web.Request) -> web.Response:
        check = await request.json()
        return self._respond(check["rule"], await self._store.take(check["key"], check.get("cost", 1)))

    def _respond(self, rule: str, taken: Taken) -> web.Response:
        reset = math.ceil(taken.reset_after)
        headers = {
            "RateLimit-Policy": f'"{rule}";q={self._burst};w={self._window_s}',
            "RateLimit": f'"{rule}";r={taken.remaining};t={reset}',
            "X-RateLimit-Limit": str(self._burst),
            "X-RateLimit-Remaining": str(taken.remaining),
            "X-RateLimit-Reset": str(reset),
        }
        if not taken.allowed:
            headers["Retry-After"] = str(max(1, math.ceil(taken.retry_after)))
        verdict = {
            "allowed": taken.allowed,
            "rule": rule,
            "limit": self._burst,
            "remaining": taken.remaining,
            "reset_after": taken.reset_after,
            "retry_after": taken.retry_after,
            "degraded": False,
        }
        return web.json_response(verdict, status=200 if taken.allowed else 429, headers=headers)


async def build(store: str, numbers: tuple[int, int, int], options: list[str]) -> web.Application:
    """Make the application; in the loop, for the clients of Redis belong to it."""
    handlers = Application(STORES[store](*numbers, *options), *numbers)
    app = web.Application()
    app.add_routes([web.get("/v1/check", handlers.check_get), web.post("/v1/check", handlers.check_post)])
    return app


def main() -> None:
    port, store, count, period_s, burst, *options = sys.argv[1:]
    web.run_app(
        build(store, (int(count), int(period_s), int(burst)), options),
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
