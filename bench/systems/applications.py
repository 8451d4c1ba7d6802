"""The aiohttp application on each of its stores. A Redis has a core of its own: that of the load generator.

What Redis does there is part of the cost of a check; at the rates that an aiohttp application reaches, neither it nor
the load generator is ever short of that core.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.servers import System, answers, free_port, takes_connections

if TYPE_CHECKING:
    from bench.servers import Cores, Numbers, Server, Stage


def with_dict(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start the application with token buckets in a dict."""
    return _start(stage, "dict", numbers, cpu=cores.server)


def with_limits(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start the application with the package `limits`, in memory."""
    return _start(stage, "limits-memory", numbers, cpu=cores.server)


def with_limits_on_redis(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start the application with the package `limits`, on a Redis."""
    return _start_beside_redis(stage, "limits-redis", cores, numbers)


def with_gcra_on_redis(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start the application with gcra.lua, in a Redis."""
    return _start_beside_redis(stage, "gcra-redis", cores, numbers)


def _start_beside_redis(stage: Stage, store: str, cores: Cores, numbers: Numbers) -> System:
    port = free_port()
    argv = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(stage.folder)]
    redis = stage.start(f"{store}-server", [*argv, "--save", "", "--appendonly", "no"], cpu=cores.load)
    redis.wait_until("listening", lambda: takes_connections(port))
    return _start(stage, store, numbers, f"redis://127.0.0.1:{port}", cpu=cores.server, behind=(redis,))


def _start(
    stage: Stage, store: str, numbers: Numbers, *options: str, cpu: int, behind: tuple[Server, ...] = ()
) -> System:
    port = free_port()
    argv = [sys.executable, "-m", "bench.systems.aiohttp_app", str(port), store]
    argv += [str(numbers.count), str(numbers.period_s), str(numbers.burst), *options]
    server = stage.start(f"aiohttp-{store}", argv, cpu=cpu)
    address = f"127.0.0.1:{port}"
    server.wait_until("listening", lambda: answers(f"http://{address}/v1/check?rule=bench&key=ready"))
    return System(address, (server, *behind))
