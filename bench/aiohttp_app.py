"""The ordinary way to write a rate limiter: an aiohttp application with token buckets in a dict.

It answers the same URLs with the same body and headers as a node, for one rule and one process, and
leaves out what a fleet needs: no owner, no live rules, no segments, nothing forgotten. What a node is
faster by is what its data plane without a framework buys.

    python -m bench.aiohttp_app PORT
"""

from __future__ import annotations

import math
import sys
import time

import uvloop
from aiohttp import web

RATE_PER_S = 1000.0
BURST = 2000

# Client key -> (tokens left, when that was so).
buckets: dict[str, tuple[float, float]] = {}


def decide(rule: str, key: str, cost: int) -> web.Response:
    now = time.monotonic()
    tokens, then = buckets.get(key, (float(BURST), now))
    tokens = min(float(BURST), tokens + (now - then) * RATE_PER_S)
    allowed = tokens >= cost
    if allowed:
        tokens -= cost
    buckets[key] = (tokens, now)
    reset_after = (BURST - tokens) / RATE_PER_S
    retry_after = 0.0 if allowed else (cost - tokens) / RATE_PER_S
    reset = math.ceil(reset_after)
    headers = {
        "RateLimit-Policy": f'"{rule}";q={BURST};w={math.ceil(BURST / RATE_PER_S)}',
        "RateLimit": f'"{rule}";r={int(tokens)};t={reset}',
        "X-RateLimit-Limit": str(BURST),
        "X-RateLimit-Remaining": str(int(tokens)),
        "X-RateLimit-Reset": str(reset),
    }
    if not allowed:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    verdict = {
        "allowed": allowed,
        "rule": rule,
        "limit": BURST,
        "remaining": int(tokens),
        "reset_after": reset_after,
        "retry_after": retry_after,
        "degraded": False,
    }
    return web.json_response(verdict, status=200 if allowed else 429, headers=headers)


async def check_get(request: web.Request) -> web.Response:
    query = request.query
    return decide(query["rule"], query["key"], int(query.get("cost", "1")))


async def check_post(request: web.Request) -> web.Response:
    check = await request.json()
    return decide(check["rule"], check["key"], check.get("cost", 1))


def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/v1/check", check_get), web.post("/v1/check", check_post)])
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
