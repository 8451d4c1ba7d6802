"""Bytes per key, and whether they are given back once buckets are full again.

Each size is measured in a fresh standalone node, from outside: its private memory (the private and dirty
pages of /proc/PID/smaps_rollup) with all keys in it, less what it had after serving as many checks
for one key. So everything that a key costs is in the figure: its name, its state, the dict's free
slots and what the allocator loses; that last part differs from process to process, hence a median of several.

    python -m bench.memory [--quick]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.load import RunError, keys_of_13_bytes
from bench.servers import Stage, System, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Not multiples by powers of two: a dict's size doubles, and so would always be as full.
SIZES = (200_000, 300_000, 450_000, 750_000)
SIZES_QUICK = (20_000, 30_000, 45_000)
BYTES_PER_KEY_MAX = 140
# Between the cheapest and the dearest size: linear, with room for a dict just before it doubles and just after.
SPREAD_MAX = 1.20
# To the system, that is: CPython returns an arena (1 MB) once nothing is left in it; what stays is used again,
# as filling the node a second time shows. What stays are some 25 MB, however many keys there were.
GIVEN_BACK_MIN = 0.6
# As many other keys after the first ones were forgotten, against the first ones.
AGAIN_MAX = 1.05
NODES_PER_SIZE = 3

BATCH = 1_000
WARM_BATCHES = 100
REFILL_S = 20  # longer than filling takes, so that all are there at once
BURST = 100
FORGET_S_MAX = 90.0
SETTLED_S = 2.0
RULES = {
    "slow": {"rate": "1/d", "burst": 100},  # spent once, a bucket stays for a day
    "soon": {"rate": f"{BURST // REFILL_S}/s", "burst": BURST},  # emptied, it is full again in REFILL_S
}


@dataclass(frozen=True, slots=True)
class Size:
    """What one number of keys cost."""

    keys: int
    by_node: tuple[float, ...]

    @property
    def bytes_per_key(self) -> float:
        return median(self.by_node)


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A node's private memory before, with and after its keys."""

    keys: int
    before_mb: float
    full_mb: float
    after_mb: float
    again_mb: float
    # Seconds from the last check until /v1/status reported no keys, in steps of the poll.
    forgotten_after_s: float

    @property
    def share(self) -> float:
        return (self.full_mb - self.after_mb) / (self.full_mb - self.before_mb)


def private_bytes(pid: int) -> int:
    """Return what the process has written and would be free if it ended.

    Pages of programs are left out: they are private or not as other processes run the same ones, 13 MB of a node's.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def fill_fresh_node(keys: list[str], *, cpu: int) -> float:
    """Return the bytes that each of these keys costs a fresh node."""
    with Stage() as stage:
        node = stage.standalone(RULES, cpu=cpu)
        _warm(node, "slow")
        before = private_bytes(node.server.pid)
        fill(node, "slow", keys, cost=1)
        full = private_bytes(node.server.pid)
        held = read_json(f"http://{node.admin}/v1/status")["keys"]
        if held < len(keys):
            raise RunError(f"the node holds {held} of {len(keys)} keys")
    return (full - before) / len(keys)


def measure_given_back(keys: list[str], *, cpu: int) -> GivenBack:
    """Empty all keys' buckets at once, then watch the node forget them as they become full."""
    with Stage() as stage:
        node = stage.standalone(RULES, cpu=cpu)
        _warm(node, "soon")
        before = private_bytes(node.server.pid)
        fill(node, "soon", keys, cost=BURST)
        full = private_bytes(node.server.pid)
        since = time.monotonic()
        while read_json(f"http://{node.admin}/v1/status")["keys"]:
            if time.monotonic() - since > FORGET_S_MAX:
                raise RunError(f"keys are still held {FORGET_S_MAX:g} s after the last check")
            time.sleep(0.25)
        forgotten_after_s = time.monotonic() - since
        after = _settled(node.server.pid)
        fill(node, "soon", [key.replace("user", "anew") for key in keys], cost=BURST)
        again = private_bytes(node.server.pid)
    return GivenBack(
        len(keys), before / 1e6, full / 1e6, after / 1e6, again / 1e6, forgotten_after_s=round(forgotten_after_s, 1)
    )


def measure(*, quick: bool, seed: int, cpu: int) -> dict[str, Any]:
    """Take all figures, print them and return them."""
    print(f"memory: private memory of a fresh standalone node, median of {NODES_PER_SIZE}, keys of 13 bytes, one rule")
    sizes = []
    for count in SIZES_QUICK if quick else SIZES:
        keys = keys_of_13_bytes(count, seed=seed)
        size = Size(count, tuple(fill_fresh_node(keys, cpu=cpu) for _ in range(NODES_PER_SIZE)))
        met = size.bytes_per_key <= BYTES_PER_KEY_MAX
        _show(f"bytes a key, {count:,} keys", size.bytes_per_key, f"<= {BYTES_PER_KEY_MAX}", met=met)
        print(f"    by node: {', '.join(f'{each:.0f}' for each in size.by_node)}", flush=True)
        sizes.append(size)
    spread = max(size.bytes_per_key for size in sizes) / min(size.bytes_per_key for size in sizes)
    _show("dearest / cheapest (linear: 1)", spread, f"<= {SPREAD_MAX}", met=spread <= SPREAD_MAX)
    keys = keys_of_13_bytes(SIZES[-1], seed=seed)  # of fewer, what stays would be much
    back = measure_given_back(keys, cpu=cpu)
    _show("share given back", back.share, f">= {GIVEN_BACK_MIN}", met=back.share >= GIVEN_BACK_MIN)
    again = back.again_mb / back.full_mb
    _show("filled again / filled once", again, f"<= {AGAIN_MAX}", met=again <= AGAIN_MAX)
    print(
        f"  {back.before_mb:.1f} MB before, {back.full_mb:.1f} MB with {back.keys:,} emptied buckets,"
        f" {back.after_mb:.1f} MB once they were full again,\n"
        f"  {back.again_mb:.1f} MB with as many other keys;"
        f" no keys left {back.forgotten_after_s} s after the last check (full again after {REFILL_S} s)\n"
        "  does not show: the replica's copy, rules with several limits, keys longer than 13 bytes\n",
        flush=True,
    )
    return {
        "sizes": [{**asdict(size), "bytes_per_key": size.bytes_per_key} for size in sizes],
        "bytes_per_key_max": BYTES_PER_KEY_MAX,
        "spread": spread,
        "again": again,
        "again_max": AGAIN_MAX,
        "spread_max": SPREAD_MAX,
        "given_back": {**asdict(back), "share": back.share},
        "given_back_min": GIVEN_BACK_MIN,
        "met": spread <= SPREAD_MAX
        and back.share >= GIVEN_BACK_MIN
        and again <= AGAIN_MAX
        and all(size.bytes_per_key <= BYTES_PER_KEY_MAX for size in sizes),
    }


def _show(name: str, value: float, target: str, *, met: bool) -> None:
    print(f"  {name:<36}{value:>10.2f}   target {target:<8}{'met' if met else 'MISSED'}", flush=True)


def _settled(pid: int) -> int:
    # What is forgotten is freed in small pieces afterwards, so that no check waits for it.
    lowest, since = private_bytes(pid), time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        time.sleep(0.2)
        now = private_bytes(pid)
        if now < lowest:
            lowest, since = now, time.monotonic()
    return private_bytes(pid)


def _warm(node: System, rule: str) -> None:
    # One key: the buffers and pools that any traffic needs grow now, the tables do not.
    _post(node, (_body(rule, ["warm"] * BATCH, cost=0) for _ in range(WARM_BATCHES)))


def fill(node: System, rule: str, keys: Sequence[str], *, cost: int) -> None:
    """Spend that much of each key, in batches; raises RunError where one is not allowed."""
    _post(node, (_body(rule, keys[first : first + BATCH], cost=cost) for first in range(0, len(keys), BATCH)))


def _body(rule: str, keys: Sequence[str], *, cost: int) -> bytes:
    return json.dumps({"checks": [{"rule": rule, "key": key, "cost": cost} for key in keys]}).encode()


def _post(node: System, bodies: Iterator[bytes]) -> None:
    connection = http.client.HTTPConnection(node.http, timeout=30)
    for body in bodies:
        connection.request("POST", "/v1/check/batch", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 or b'"allowed":true' not in text or b'"allowed":false' in text:
            raise RunError(f"a batch was not allowed: {answer.status} {text[:300]!r}")
    connection.close()


def main() -> None:
    """Measure memory alone."""
    parser = argparse.ArgumentParser(description="Bytes per key of a limiter node.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the keys")
    parser.add_argument("--seed", type=int, default=1, help="order of the keys (default 1)")
    options = parser.parse_args()
    machine.show(machine.describe(options.seed))
    measured = measure(quick=options.quick, seed=options.seed, cpu=min(os.sched_getaffinity(0)))
    sys.exit(not measured["met"])


if __name__ == "__main__":
    main()
