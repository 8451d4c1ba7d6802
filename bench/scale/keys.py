"""Many keys on one node: what they cost, and how long a check has to wait while they come, move or expire.

Two fresh nodes for each number of keys. One fills up, its memory read on the way, and then another node joins it: the
start of a hand-over. One fills with buckets that are full again soon after, so that generations turn and die. A client
that asks 200 times a second all the while tells the longest wait of a check: a stall of the node's loop, and whatever
else stands between them. Keys come in batches of 1,000, which hold the loop for some 3 ms each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bench.load import keys_of_13_bytes
from bench.memory import fill, private_bytes
from bench.progress import tell
from bench.scale.probe import Probe
from bench.servers import RULE, Numbers, Stage, put, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.servers import Cores, System

SIZES = (100_000, 1_000_000, 10_000_000)
SIZES_QUICK = (20_000, 100_000)
STEPS = 20  # memory is read at so many sizes on the way
BURST = 100
# Seconds in which an emptied bucket is full again: longer than filling takes, so that all keys are there at once.
REFILL_S_MIN, REFILL_S_PER_KEY = 5, 12e-6
HAND_OVER_S = 20.0  # of one that takes longer only the start is watched


def measure(cores: Cores, *, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each number of keys."""
    found = []
    for count in SIZES_QUICK if is_quick else SIZES:
        keys = keys_of_13_bytes(count, seed=1)
        of_keys = {"keys": count, **_hold(keys, cores), **_expire(keys, cores)}
        found.append(of_keys)
        tell("")
        bytes_per_key = [value for size, value in of_keys["bytes_per_key"] if size >= count / 4]
        print(
            f"  {count:>10,} keys: {bytes_per_key[-1]:.0f} bytes a key, {min(bytes_per_key):.0f} to"
            f" {max(bytes_per_key):.0f} on the way; longest wait {of_keys['fill_wait_ms']:.1f} ms while they come,"
            f" {of_keys['hand_over_wait_ms']:.1f} ms while they move, {of_keys['expiry_wait_ms']:.1f} ms in expiry",
            flush=True,
        )
    return found


def _hold(keys: Sequence[str], cores: Cores) -> dict[str, Any]:
    with Stage() as stage:
        etcd = stage.etcd(cpu=cores.load)
        put(etcd, f"/limiter/rules/{RULE}", Numbers(BURST, 86_400, BURST).rule)
        node = stage.node("first", ["--etcd", etcd], cpu=cores.server)
        fill(node, RULE, ["warm"] * 100_000, cost=0)
        bytes_per_key: list[tuple[int, float]] = []
        with Probe(node, cpu=cores.load) as probe:
            before = private_bytes(node.server.pid)
            began_s = time.monotonic()
            _fill(
                node,
                keys,
                cost=1,
                after=lambda held: bytes_per_key.append((held, (private_bytes(node.server.pid) - before) / held)),
            )
            return {
                "bytes_per_key": bytes_per_key,
                "fill_per_s": len(keys) / (time.monotonic() - began_s),
                "fill_wait_ms": probe.longest_wait_ms(),
                **_hand_over(stage, probe, ["--etcd", etcd], cores),
            }


def _hand_over(stage: Stage, probe: Probe, options: Sequence[str], cores: Cores) -> dict[str, Any]:
    # The one that joins has the other core: what is asked is how the first one fares.
    joining = stage.joining_node("second", options, cpu=cores.load)
    began_s = time.monotonic()
    while not (is_ready := joining.is_ready()) and time.monotonic() - began_s < HAND_OVER_S:
        tell(f"another node joins: {time.monotonic() - began_s:.0f} s")
        time.sleep(0.5)
    lasted_s = time.monotonic() - began_s
    return {
        "hand_over_wait_ms": probe.longest_wait_ms(),
        "hand_over_s": lasted_s if is_ready else None,
        "handed_over": read_json(f"http://{joining.admin}/v1/status")["keys"],
    }


def _expire(keys: Sequence[str], cores: Cores) -> dict[str, Any]:
    refill_s = max(REFILL_S_MIN, round(REFILL_S_PER_KEY * len(keys)))
    with Stage() as stage:
        node = stage.standalone({RULE: Numbers(BURST, refill_s, BURST).rule}, cpu=cores.server)
        with Probe(node, cpu=cores.load) as probe:
            _fill(node, keys, cost=BURST)
            held = _held(node)
            probe.longest_wait_ms()
            began_s = time.monotonic()
            while left := _held(node):
                tell(f"{left:,} keys are not full yet")
                time.sleep(1)
            return {
                "refill_s": refill_s,
                "held_at_once": held,
                "expired_s": time.monotonic() - began_s,
                "expiry_wait_ms": probe.longest_wait_ms(),
            }


def _fill(node: System, keys: Sequence[str], *, cost: int, after: Callable[[int], None] = lambda _: None) -> None:
    step = len(keys) // STEPS
    for first in range(0, len(keys), step):
        fill(node, RULE, keys[first : first + step], cost=cost)
        after(first + step)
        tell(f"{first + step:,} of {len(keys):,} keys")


def _held(node: System) -> int:
    return int(read_json(f"http://{node.admin}/v1/status")["keys"])
