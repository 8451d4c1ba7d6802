"""100,000 entries below keys/ in a real etcd: how long a node takes to read them, what they cost, how soon one changes.

A fresh node on one core beside an etcd on the other, once without entries and once with them. Half of them name a
segment, half have numbers of their own, of 50 different sizes. `load` is from the node's listening to its log's
"etcd connected": everything is read and in force, the watch is live. `change` is from the start of etcdctl, which
itself takes most of it, until the node answers a check by the new entry. Then, without a node, what a check costs an
engine of a million buckets with and without 100 patterns: for keys that come often, and for keys in an order that no
cache can help with.

    python -m bench.entries [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.memory import private_bytes
from bench.servers import Stage, metric, put, read_json
from limiter_node.core.engine import Engine
from limiter_node.core.model import Check
from limiter_node.core.rules import parse_key_entry, parse_rule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.servers import System

ENTRIES = 100_000
ENTRIES_QUICK = 10_000
BUCKETS = 1_000_000
BUCKETS_QUICK = 100_000
PATTERNS = (0, 1, 100)
ROUNDS = 5
LOAD_S_MAX = 10.0
CHANGES = 20
CHANGE_S_MAX = 5.0
OPERATIONS_PER_TXN = 128  # as many as etcd takes by default
RULE = {"rate": "1/d", "burst": 100, "segments": {"premium": {"rate": "1/d", "burst": 1000}}}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A node that has read so many entries."""

    entries: int
    load_s: float
    ready_s: float  # from the start of the process
    memory: int  # private bytes
    stall_ms: float  # the longest that the loop was late
    change_ms: list[float]


def entry(number: int) -> dict[str, Any]:
    """What is written for one key."""
    if number % 2:
        return {"segment": "premium"}
    return {"rules": {"bench": {"rate": "1/d", "burst": 10 + number % 100}}}


def fill(etcd: str, count: int) -> None:
    """Write so many entries, by etcd's JSON gateway: etcdctl would take 30 ms for each."""
    connection = http.client.HTTPConnection(etcd.removeprefix("http://"), timeout=30)
    for first in range(0, count, OPERATIONS_PER_TXN):
        puts = [_put_request(number) for number in range(first, min(first + OPERATIONS_PER_TXN, count))]
        connection.request("POST", "/v3/kv/txn", json.dumps({"success": puts}))
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 or b'"succeeded":true' not in text:
            raise RuntimeError(f"etcd took no entries: {answer.status} {text[:300]!r}")
    connection.close()


def _put_request(number: int) -> dict[str, Any]:
    key, value = f"/limiter/keys/user:{number:08d}", json.dumps(entry(number))
    return {"requestPut": {"key": _base64(key), "value": _base64(value)}}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def measure_node(entries: int, *, cpus: Sequence[int]) -> Loaded:
    """Start a node beside an etcd with so many entries, and change some."""
    with Stage() as stage:
        etcd = stage.etcd(cpu=cpus[-1])
        put(etcd, "/limiter/rules/bench", RULE)
        fill(etcd, entries)
        began = time.monotonic()
        node = stage.node("bench", ["--etcd", etcd], cpu=cpus[0])
        ready_s = time.monotonic() - began
        logged = _log(node.server.log)
        stall_ms = 1e3 * metric(node, "limiter_loop_stall_max_seconds")
        memory = private_bytes(node.server.pid)
        changes = [_change(node, etcd, f"user:{number:08d}", 2_000 + number) for number in range(CHANGES)]
        return Loaded(entries, logged["etcd connected"] - logged["listening"], ready_s, memory, stall_ms, changes)


def _log(path: Path) -> dict[str, float]:
    """{event: when it was logged}, in seconds."""
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.startswith("{"))
    return {line["event"]: datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines}


def _change(node: System, etcd: str, key: str, burst: int) -> float:
    """Give a key other numbers; returns the milliseconds until a check is answered by them."""
    began = time.monotonic()
    put(etcd, f"/limiter/keys/{key}", {"rules": {"bench": {"rate": "1/d", "burst": burst}}})
    while read_json(f"http://{node.http}/v1/check?rule=bench&key={key}&cost=0")["limit"] != burst:
        if time.monotonic() - began > CHANGE_S_MAX:
            raise RuntimeError(f"the entry of {key} is not in force after {CHANGE_S_MAX:g} s")
    return 1e3 * (time.monotonic() - began)


def measure_engines(buckets: int, *, seed: int) -> dict[int, tuple[float, float]]:
    """{patterns: nanoseconds of processor time per check of few keys, and of any}; half of the keys are addresses.

    The fastest of interleaved rounds: whatever else the machine does makes them slower, never faster.
    """
    checks = [Check("bench", _key(number)) for number in range(buckets)]
    random.Random(seed).shuffle(checks)
    few, many = checks[:1_000] * (buckets // 10_000), checks[: buckets // 3]
    engines = {patterns: _engine(patterns, checks) for patterns in PATTERNS}
    taken: dict[int, list[tuple[float, float]]] = {patterns: [] for patterns in PATTERNS}
    for _ in range(ROUNDS):
        for patterns, engine in engines.items():
            taken[patterns].append((_check_ns(engine, few), _check_ns(engine, many)))
    return {patterns: (min(few for few, _ in each), min(many for _, many in each)) for patterns, each in taken.items()}


def _engine(patterns: int, checks: list[Check]) -> Engine:
    """An engine with so many patterns and a bucket for each check."""
    engine = Engine(buckets_max=2 * len(checks))
    engine.has_copies = False
    engine.set_rule("bench", parse_rule("bench", RULE), 0)
    for number in range(patterns):
        name = f"10.{number}.0.0/16" if number % 2 else f"tenant-{number}:*"
        engine.set_entry(name, parse_key_entry(name, {"rules": {"bench": {"rate": "1/d", "burst": 500}}}), 0)
    for check in checks:
        engine.check(check, 0)
    return engine


def _key(number: int) -> str:
    return f"user:{number:08d}" if number % 2 else f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def _check_ns(engine: Engine, checks: list[Check]) -> float:
    began = time.process_time_ns()
    for check in checks:
        engine.check(check, 0)
    return (time.process_time_ns() - began) / len(checks)


def measure(*, quick: bool, seed: int, cpus: Sequence[int]) -> bool:
    """Take all figures and print them; returns whether they are as they should be."""
    none, all_ = (measure_node(count, cpus=cpus) for count in (0, ENTRIES_QUICK if quick else ENTRIES))
    met = all_.load_s < LOAD_S_MAX
    print(f"{'entries':>9}{'load':>9}{'ready':>9}{'memory':>11}{'stall':>9}{'change: median':>17}{'worst':>9}")
    for node in (none, all_):
        print(
            f"{node.entries:>9,}{node.load_s:>7.2f} s{node.ready_s:>7.2f} s{node.memory / 1e6:>8.1f} MB"
            f"{node.stall_ms:>6.1f} ms{median(node.change_ms):>14.1f} ms{max(node.change_ms):>6.1f} ms"
        )
    print(f"  {(all_.memory - none.memory) / all_.entries:.0f} bytes an entry")
    print(f"  load below {LOAD_S_MAX:g} s: {'met' if met else 'MISSED'}\n", flush=True)
    buckets = BUCKETS_QUICK if quick else BUCKETS
    for patterns, (few, many) in measure_engines(buckets, seed=seed).items():
        said = f"{few:.0f} ns a check of 1,000 keys, {many:.0f} of all"
        print(f"{patterns:>4} patterns, {buckets:,} buckets: {said}", flush=True)
    print("  does not show: a network between node and etcd, several nodes that read at once")
    return met


def main() -> None:
    """Measure entries alone."""
    parser = argparse.ArgumentParser(description="What entries below keys/ cost a limiter node.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the entries and of the buckets")
    parser.add_argument("--seed", type=int, default=1, help="order of the checks (default 1)")
    options = parser.parse_args()
    machine.show(machine.describe(options.seed))
    sys.exit(not measure(quick=options.quick, seed=options.seed, cpus=sorted(os.sched_getaffinity(0))))


if __name__ == "__main__":
    main()
