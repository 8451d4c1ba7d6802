"""1 to 12 real nodes on one core, etcd and the load on the other: what a fleet costs at rest, and for each check.

At rest nodes ping each other, which grows by the square of the fleet; a check costs the more the likelier its key is
another node's. So that the pings of many nodes on one core do not drown the checks, these are measured on fleets whose
peer timeout is ten times longer. The load is a closed loop of few connections to every node: loops are busy, and yet
hardly any two checks travel a link together, as in a large fleet.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.load import RunError, cpu_ns, keys_of_13_bytes
from bench.open_loop import Client, requests_for
from bench.progress import tell
from bench.servers import COPIED, RULE, Stage, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.open_loop import Measured
    from bench.servers import Cores, System

SIZES = (1, 3, 6, 9, 12)
SIZES_QUICK = (1, 3)
CHECKS_PER_S = 10_000  # of the load, about
SECONDS, SECONDS_QUICK = 5, 1
ROUNDS, ROUNDS_QUICK = 3, 1
SETTLE_S = 3.0  # links come up, first keys are copied
KEYS = 20_000
PEER_TIMEOUT_MS, PATIENT_MS = 100, 1_000


def measure(cores: Cores, *, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each size."""
    seconds, rounds = (SECONDS_QUICK, ROUNDS_QUICK) if is_quick else (SECONDS, ROUNDS)
    found = []
    for size in SIZES_QUICK if is_quick else SIZES:
        with _fleet(size, cores, peer_timeout_ms=PEER_TIMEOUT_MS) as nodes:
            rest_us_per_s = median(_rest_us_per_s(nodes, seconds) for _ in range(rounds))
        with _fleet(size, cores, peer_timeout_ms=PATIENT_MS) as nodes:
            loads = [_load(nodes, seconds) for _ in range(rounds)]
        of_load = {name: median(load[name] for load in loads) for name in loads[0]}
        found.append({"nodes": size, "rest_us_per_s": rest_us_per_s, **of_load})
        tell("")
        print(
            f"  {size:>3} nodes: at rest {rest_us_per_s / size:,.0f} us a second and node;"
            f" {of_load['check_us']:.1f} us a check besides, at {of_load['checks_per_s']:,.0f}/s",
            flush=True,
        )
    return found


@contextmanager
def _fleet(size: int, cores: Cores, *, peer_timeout_ms: int) -> Iterator[list[System]]:
    tell(f"{size} nodes start")
    with Stage() as stage:
        etcd = stage.etcd(cpu=cores.load)
        put(etcd, f"/limiter/rules/{RULE}", COPIED.rule)
        options = ["--etcd", etcd, "--peer-timeout", str(peer_timeout_ms)]
        nodes = stage.nodes([f"node-{number}" for number in range(size)], options, cpu=cores.server)
        time.sleep(SETTLE_S)
        yield nodes


def _rest_us_per_s(nodes: Sequence[System], seconds: int) -> float:
    return _used_us(nodes, lambda: time.sleep(seconds))[1]


def _load(nodes: Sequence[System], seconds: int) -> dict[str, float]:
    rest_us_per_s = _rest_us_per_s(nodes, 1)
    addresses = [node.http for node in nodes]
    requests = requests_for(keys_of_13_bytes(KEYS, seed=1), addresses[0])
    measured: list[Measured] = []
    # All due at once: as fast as the connections get their answers.
    client = Client(addresses, requests, [0.0] * (CHECKS_PER_S * seconds))
    lasted_s, us_per_s = _used_us(nodes, lambda: measured.append(client.run()))
    (of_load,) = measured
    if of_load.refused or of_load.unanswered:
        raise RunError(f"not every check was allowed: {of_load}")
    return {
        "check_us": (us_per_s - rest_us_per_s) * lasted_s / of_load.checks,
        "checks_per_s": of_load.checks / lasted_s,
    }


def _used_us(nodes: Sequence[System], act: Callable[[], None]) -> tuple[float, float]:
    """(seconds that it lasted, microseconds of a core that the nodes used meanwhile, a second)."""
    pids = [node.server.pid for node in nodes]
    began_s, began_ns = time.monotonic(), cpu_ns(pids)
    act()
    lasted_s = time.monotonic() - began_s
    return lasted_s, (cpu_ns(pids) - began_ns) / 1e3 / lasted_s
