"""Atomic batches on real processes: nodes killed in the middle of them, one after the other.

Each batch takes one token of three keys of its own, one of each node, so that what became of it can be read from them.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from itertools import count
from typing import TYPE_CHECKING

from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from tests.chaos.cases import ARGS, addresses, spend
from tests.etcd_process import EtcdProcess
from tests.fleet import Fleet, daily
from tests.harness import HttpClient
from tests.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.report import Options, Report

CALLERS = 6
BURST = 10
PEER_TIMEOUT_S = 0.25  # ARGS
SETTLED_MAX_S = 16 * PEER_TIMEOUT_S
"""By then a batch is spent at all of its keys or at none: 8 peer timeouts until it is asked for, and two questions of
up to 4 each."""


class Callers(Threads):
    """Threads that ask nodes in turn for one atomic batch after another; `begun` and `granted` are batches' keys."""

    def __init__(self, nodes: Sequence[str], keys: Iterator[tuple[str, ...]]) -> None:
        self.begun: list[tuple[str, ...]] = []
        self.granted: list[tuple[str, ...]] = []
        self.waiting = 0  # batches that are not answered
        self._nodes = list(nodes)
        self._keys = keys
        self._lock = threading.Lock()
        super().__init__(self._run, range(CALLERS))

    def _run(self, number: int) -> None:
        address = self._nodes[number % len(self._nodes)]
        while not self.stop.is_set():
            with HttpClient(address, 5.0) as client:
                try:
                    while not self.stop.is_set():
                        self._ask(client)
                except (OSError, http.client.HTTPException):
                    time.sleep(0.02)  # the node is dead

    def _ask(self, client: HttpClient) -> None:
        with self._lock:
            keys = next(self._keys)
            self.begun.append(keys)
            self.waiting += 1
        try:
            checks = [{"rule": "batch", "key": key} for key in keys]
            answer = client.request("POST", "/v1/check/batch", json.dumps({"atomic": True, "checks": checks}))
            if answer.status == 200 and answer.body["allowed"]:
                self.granted.append(keys)
        finally:
            with self._lock:
                self.waiting -= 1


def fresh_keys(fleet: Fleet) -> Iterator[tuple[str, ...]]:
    """Keys that nobody has used, one of each node, in any order."""
    names = [str(node.node_id) for node in fleet.nodes]
    ring = Ring(1, {name: Member(name, f"{name}:1") for name in names})
    found: dict[str, list[str]] = {name: [] for name in names}
    numbers = count()
    while True:
        while not all(found.values()):
            key = f"client:{next(numbers)}"
            found[ring.owner(key) or ""].append(key)
        keys = [found[name].pop() for name in names]
        random.shuffle(keys)
        yield tuple(keys)


def in_part(fleet: Fleet, batches: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The batches that are spent, or still held, at some of their keys and not at others."""
    keys = [key for batch in batches for key in batch]
    left = dict(zip(keys, (verdict["remaining"] for verdict in spend(fleet.running[0], "batch", keys, 0)), strict=True))
    return [batch for batch in batches if len({left[key] for key in batch}) > 1]


def killed_in_batches(report: Report, options: Options) -> None:
    """kill -9 in the middle of atomic batches over three owners, again and again: none stays spent in part."""
    longest_s, middle = 0.0, 0
    with EtcdProcess() as etcd, Fleet(etcd, args=ARGS) as fleet:
        fleet.put("rules/batch", daily(BURST, on_unreachable="deny"))
        keys = fresh_keys(fleet)
        for turn in range(options.kills):
            victim = fleet.nodes[turn % len(fleet.nodes)]
            with Callers(addresses(fleet.nodes), keys) as callers:
                time.sleep(0.2 + random.random() * 0.1)
                victim.kill()
                killed_s = time.monotonic()
                middle += callers.waiting
                time.sleep(0.5)
            begun = callers.begun
            while torn := in_part(fleet, begun):
                longest_s = time.monotonic() - killed_s
                if longest_s > SETTLED_MAX_S:
                    break
            report.require(not torn, f"kill {turn + 1}: {len(torn)} of {len(begun)} batches spent in part: {torn[:3]}")
            granted = [key for batch in callers.granted for key in batch]
            spent = [BURST - verdict["remaining"] for verdict in spend(fleet.running[0], "batch", granted, 0)]
            report.require(set(spent) <= {1}, f"kill {turn + 1}: keys of granted batches have spent {set(spent)}")
            report.say(f"kill {turn + 1} of {options.kills}: {len(begun)} batches, {len(callers.granted)} granted")
            report.sent += len(begun)
            victim.start()
            fleet.wait_members(fleet.nodes, 10.0)
    report.note(f"{middle} batches were under way at the moment of a kill")
    report.note(f"the last batch spent in part was seen {longest_s:.2f} s after its kill, at most")
    report.require(middle >= options.kills, "too few batches were under way")
