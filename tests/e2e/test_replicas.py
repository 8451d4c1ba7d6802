"""Nothing lost (contract, section 5), with real processes: rolled, killed, frozen, and what is forgotten stays so.

Buckets hardly refill while a test runs, so every number is exact.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self
from urllib.parse import urlencode

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import Fleet, daily, remaining, say
from tests.harness import RETRIES, HttpClient, NginxProcess, NodeProcess, check, eventually, key_path, request
from tests.threads import Threads

LEASE_TTL_S = 5
# Silence is told after 0.8 x 250 ms: longer than a busy test machine's hiccups.
ARGS = ("--lease-ttl", str(LEASE_TTL_S), "--drain-delay", "0.3", "--peer-timeout", "250")
INTERVAL_S = 0.05
"""What a node granted so shortly before its death may be granted again: an interval of 20 ms, and the delivery."""


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdProcess]:
    with EtcdProcess() as running:
        yield running


@pytest.fixture
def fleet(etcd: EtcdProcess, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with Fleet(etcd, prefix=f"/{request.node.name}", args=ARGS) as running:
        yield running


class Spender(Threads):
    """Threads that spend one key through several nodes as fast as they can, until it is empty or time is up."""

    def __init__(self, rule: str, key: str, addresses: Sequence[str]) -> None:
        self.granted_s: list[float] = []  # when each token was granted, on the monotonic clock
        self.failed: list[int] = []
        self._target = "/v1/check?" + urlencode({"rule": rule, "key": key})
        super().__init__(self._run, addresses)

    def __enter__(self) -> Self:
        super().__enter__()
        eventually(lambda: len(self.granted_s) > 20, what="some grants")
        return self

    def _run(self, address: str) -> None:
        with HttpClient(address, 5.0) as client:
            while not self.stop.wait(0.001):
                answer = client.request("GET", self._target)
                if answer.status == 200:
                    self.granted_s.append(time.monotonic())
                elif answer.status not in (200, 429):
                    self.failed.append(answer.status)


def batch(node: NodeProcess, rule: str, keys: Sequence[str]) -> list[bool]:
    """Spend a token of each key; says which were granted."""
    checks = [{"rule": rule, "key": key} for key in keys]
    results = request(node.http, "POST", "/v1/check/batch", json.dumps({"checks": checks})).body["results"]
    assert not any(result.get("degraded", True) for result in results), results
    return [result["allowed"] for result in results]


ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")

RULES: dict[str, dict[str, Any]] = {
    **{algorithm: {"rate": "10/d", "algorithm": algorithm} for algorithm in ALGORITHMS},
    "fixed_window": {"rate": "10/month", "algorithm": "fixed_window"},
    "joint": {"limits": [{"rate": "100/s"}, {"rate": "20/d", "algorithm": "sliding_log"}, {"rate": "10/d"}]},
}
"""One rule for each algorithm, and one of several limits; all of them let ten in."""


def test_a_fleet_rolled_one_by_one_grants_exactly_what_was_left(fleet: Fleet) -> None:
    for name, rule in RULES.items():
        fleet.put(f"rules/{name}", rule)
    fleet.put("rules/load", daily(1_000_000))
    keys = [f"user:{number}" for number in range(200)]
    for turn in range(4):
        for rule_name in RULES:
            assert batch(fleet.nodes[turn % 3], rule_name, keys) == [True] * 200
    addresses = [node.http for node in fleet.nodes]
    background = [f"load:{number}" for number in range(5)]
    with ExitStack() as stack:
        nginx = stack.enter_context(NginxProcess(addresses, location_config=RETRIES))
        loads = [stack.enter_context(Spender("load", key, [nginx.http])) for key in background]
        for node in fleet.nodes:
            node.terminate()
            assert node.wait() == 0
            node.start()
            fleet.wait_members(fleet.nodes)
        checks = sum(len(load.granted_s) for load in loads)
    say(f"{checks} background checks while all three nodes were replaced")
    assert [load.failed for load in loads] == [[]] * len(loads)
    for rule_name in RULES:
        granted = dict.fromkeys(keys, 0)
        for turn in range(8):
            for key, is_granted in zip(keys, batch(fleet.nodes[turn % 3], rule_name, keys), strict=True):
                granted[key] += is_granted
        assert set(granted.values()) == {6}, rule_name


def test_what_every_algorithm_has_granted_is_known_to_the_replica_of_a_node_that_is_killed(fleet: Fleet) -> None:
    for name, rule in RULES.items():
        fleet.put(f"rules/{name}", rule)
    *survivors, victim = fleet.nodes
    keys = fleet.owned_by(victim, 20)
    for rule_name in RULES:
        for turn in range(4):
            assert batch(fleet.nodes[turn % 3], rule_name, keys) == [True] * 20
    eventually(fleet.has_replicated, what="copies at the replicas")
    victim.kill()
    for rule_name in RULES:
        granted = [batch(survivors[turn % 2], rule_name, keys) for turn in range(8)]
        assert [sum(each) for each in zip(*granted, strict=True)] == [6] * 20, rule_name


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_node_killed_under_load_loses_at_most_what_it_granted_last(fleet: Fleet, durability: str) -> None:
    burst = 1_000
    # Denied where neither holder can be asked, so that whatever is granted comes from the one bucket.
    fleet.put("rules/scarce", daily(burst, durability=durability, on_unreachable="deny"))
    *survivors, victim = fleet.nodes
    (key,) = fleet.owned_by(victim, 1)
    with Spender("scarce", key, [node.http for node in survivors]) as spender:
        victim.kill()
        killed_s = time.monotonic()
        eventually(lambda: any(at_s > killed_s + 0.01 for at_s in spender.granted_s), what="grants by the replica")
        gap_s = max(later - earlier for earlier, later in zip(spender.granted_s, spender.granted_s[1:], strict=False))
        eventually(lambda: check(survivors[0], "scarce", key, cost=0).status == 429, 20.0, "an empty bucket")
    lately = sum(killed_s - INTERVAL_S <= at_s <= killed_s for at_s in spender.granted_s)
    extra = len(spender.granted_s) - burst
    say(f"{durability}: longest gap {gap_s * 1e3:.0f} ms, {extra} extra grants, {lately} in the last {INTERVAL_S} s")
    assert spender.failed == []
    assert gap_s < 0.5
    assert extra <= (0 if durability == "sync" else lately)


def test_a_node_frozen_for_longer_than_its_lease_grants_nothing_of_what_others_have_spent(fleet: Fleet) -> None:
    fleet.put("rules/scarce", daily(10))
    *others, frozen = fleet.nodes
    keys = fleet.owned_by(frozen, 10)
    for key in keys:
        assert remaining(frozen, "scarce", key, cost=2) == 8
    eventually(fleet.has_replicated, what="copies at the replicas")
    frozen.pause()
    began_s = time.monotonic()
    try:
        for key in keys:
            statuses = [check(node, "scarce", key, cost=2).status for node in others * 3]
            assert statuses == [200] * 4 + [429] * 2
        members = sorted(str(node.node_id) for node in others)
        for node in others:
            eventually(
                lambda node=node: (
                    sorted(  # type: ignore[misc]
                        member["id"] for member in request(node.admin, "GET", "/v1/status").body["ring"]["members"]
                    )
                    == members
                ),
                15.0,
                "a ring without the frozen node",
            )
        assert time.monotonic() - began_s > LEASE_TTL_S - 1
    finally:
        frozen.resume()
    for key in keys:
        answer = check(frozen, "scarce", key)
        assert (answer.status, answer.body["degraded"]) == (429, False)


def test_a_key_that_was_deleted_is_forgotten_by_its_replica_too(fleet: Fleet) -> None:
    fleet.put("rules/scarce", daily(10))
    *survivors, victim = fleet.nodes
    keys = fleet.owned_by(victim, 5)
    for key in keys:
        assert remaining(victim, "scarce", key, cost=7) == 3
    eventually(fleet.has_replicated, what="copies at the replicas")
    for key in keys:
        assert request(survivors[0].admin, "DELETE", key_path("scarce", key)).status == 204
    eventually(fleet.has_replicated, what="the deletion at the replicas")
    victim.kill()
    for key in keys:
        assert remaining(survivors[0], "scarce", key) == 9
