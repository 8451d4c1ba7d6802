"""Bytes per key of every system: private memory of all its processes, with all keys in them less without.

Each key is asked for once, by a plain GET; some thousand checks of one key come first, so that the buffers that any
traffic needs are not counted. Numbers of 100 a day: no bucket is full again, no window over, meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.load import RunError, keys_of_13_bytes
from bench.memory import private_bytes
from bench.open_loop import Client, requests_for
from bench.progress import tell
from bench.servers import Numbers, Stage
from bench.speed import NGINX, SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.comparison import Plan
    from bench.open_loop import Measured
    from bench.servers import System

NUMBERS = Numbers(count=100, period_s=86_400, burst=100)
KEYS = 50_000
KEYS_QUICK = 5_000
WARM_CHECKS = 5_000


def measure(plan: Plan) -> dict[str, Any]:
    """Take the figure of every system that keeps keys, print them and return them."""
    keys = keys_of_13_bytes(KEYS_QUICK if plan.is_quick else KEYS, seed=plan.seed)
    print(f"footprint: private memory of all processes of a system, {len(keys):,} keys of 13 bytes, one rule")
    found = {}
    for name, start in SYSTEMS.items():
        if name == NGINX or not plan.wants(name):
            continue
        tell(f"filling  {name}")
        with Stage() as stage:
            found[name] = bytes_per_key(start(stage, plan.cores, NUMBERS), keys)
        tell("")
        print(f"  bytes a key, {name:<36}{found[name]:>8.0f}", flush=True)
    print(
        "  does not show: copies, several rules; allocators and hash tables grow in steps, at other numbers of keys\n"
    )
    return {"keys": len(keys), "bytes_per_key": found}


def bytes_per_key(system: System, keys: Sequence[str]) -> float:
    """What each of these keys costs."""
    _ask_each(system.http, ["warm"] * WARM_CHECKS)
    before = sum(map(private_bytes, system.pids))
    measured = _ask_each(system.http, keys)
    if measured.checks < len(keys) or measured.refused:
        raise RunError(f"not every key was allowed a check: {measured}")
    return (sum(map(private_bytes, system.pids)) - before) / len(keys)


def _ask_each(address: str, keys: Sequence[str]) -> Measured:
    # All due at once: as fast as the connections get their answers.
    return Client([address], requests_for(keys, address), [0.0] * len(keys)).run()
