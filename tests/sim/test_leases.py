"""Leases in virtual time: the bound holds whatever becomes of them, and broken nodes that exceed it are caught.

    LIMITER_SIM_SEEDS=1000   that many seeds instead of SEEDS

`scripts/simulate --hot` runs more of them outside pytest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from tests.sim import scenario as scenarios
from tests.sim.faults import Partition
from tests.sim.fleet import Failed, run
from tests.sim.node import WatchedLeases, WatchedLendings
from tests.sim.scenario import Burst, Expect, Load, NodeSpec, Scenario

if TYPE_CHECKING:
    from limiter_node.core.leases import Lease, Mark
    from limiter_node.core.model import Check, Returned
    from limiter_node.core.outlet import Bucket

SEEDS = 2

HOT = Scenario(
    name="hot",
    about="one key asked for at all nodes, until nothing is left",
    nodes=tuple(NodeSpec(id=f"n{number}", offset_ms=1000 * number, drift_ppm=60 * number) for number in range(1, 4)),
    documents={"rules/api": {"rate": "1/d", "burst": 1_000, "lease": True}},
    bursts=(Burst(at_ms=100, rule="api", key="k", count=1_500, every_us=200),),
    expect=Expect(settles_within_ms=500, granted={"api/k": 1_000}),
)
FAST = replace(
    HOT,
    documents={"rules/api": {"rate": "1000/s", "burst": 100, "lease": True}},
    bursts=tuple(Burst(at_ms=at_ms, rule="api", key="k", count=400, every_us=100) for at_ms in range(100, 600, 70)),
    load=Load(checks_per_s=1_000, keys=("k",)),
    expect=Expect(settles_within_ms=500),
)
OWNER = "n2"
BORROWER = "n1"
KEY = next(
    key
    for key in (f"k{number}" for number in range(1_000))
    if Ring(1, {f"n{number}": Member(f"n{number}", "") for number in range(1, 4)}).holders(key) == (OWNER, "n3")
)


def asked(node: str, at_ms: int, count: int, every_us: int) -> Burst:
    return Burst(at_ms=at_ms, rule="api", key=KEY, count=count, every_us=every_us, node=node)


RECALLED = replace(
    HOT,
    about="a node borrows, its owner is asked until nothing is left, then the borrower again",
    documents={"rules/api": {"rate": "1/d", "burst": 400, "lease": True}},
    bursts=(asked(BORROWER, 100, 60, 100), asked(OWNER, 108, 400, 20), asked(BORROWER, 118, 100, 50)),
    expect=Expect(settles_within_ms=500, granted={f"api/{KEY}": 400}),
)
CUT_OFF = replace(
    RECALLED,
    about="the same, but the borrower is cut off before it can tell what it has granted",
    bursts=(asked(BORROWER, 100, 60, 100), asked(OWNER, 250, 400, 20)),
    faults=(Partition(at_ms=107, until_ms=500, links=(f"{BORROWER}|*",)),),
    expect=Expect(),
)


@pytest.mark.parametrize("seed", range(int(os.environ.get("LIMITER_SIM_SEEDS", SEEDS))))
def test_a_hot_key_is_granted_no_more_than_its_numbers_allow_whatever_happens(seed: int) -> None:
    run(scenarios.generate_hot(seed), seed)


def test_every_token_of_a_hot_key_is_granted_and_most_without_asking() -> None:
    report = run(HOT, 1)
    assert report.outcomes["granted under a lease"] > 300


# Broken nodes: each must be caught.


class SpendingRouter(Router):
    """Lets what is lent refill while it is out: it is spent, and not set aside."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        def lend(bucket: Bucket, tokens: int) -> None:
            rule = self.engine.rules[bucket[0]]
            if tokens > 0:
                rule.default.spend(bucket[1], tokens, now_ns)
            else:
                rule.default.refund(bucket[1], -tokens, now_ns)

        self.engine.holds.lend = lend  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


class ForgivingLendings(WatchedLendings):
    """Takes what is not told of for not granted."""

    def tick(self, now_ns: int) -> list[Bucket]:
        over = [(bucket, name) for bucket, there in self._out.items() for name in there]
        return [
            bucket
            for bucket, name in over
            if self._out[bucket][name].until_ns <= now_ns and self.end(bucket, name, 0, now_ns)
        ]


class ShamelessLeases(WatchedLeases):
    """Goes on granting what it has given back."""

    def recall(self, check: Check, now_ns: int) -> Returned:
        mark = check.rule, check.key, check.segment
        lease = self.known.get(mark)
        returned = super().recall(check, now_ns)
        if lease is not None:
            self.known[mark] = lease
        return returned


class LyingLeases(WatchedLeases):
    """Tells that nothing was granted."""

    def _give_back(self, mark: Mark, lease: Lease, now_ns: int) -> None:
        lease.granted = 0
        super()._give_back(mark, lease, now_ns)


def leasing(leases: type[WatchedLeases]) -> type[Router]:
    class Leasing(Router):
        def set_ring(self, ring: Ring, now_ns: int) -> None:
            self.leases.__class__ = leases
            super().set_ring(ring, now_ns)

    return Leasing


def lending(lendings: type[WatchedLendings]) -> type[Router]:
    class Lending(Router):
        def set_ring(self, ring: Ring, now_ns: int) -> None:
            self.keeper.commitments.lendings.__class__ = lendings
            super().set_ring(ring, now_ns)

    return Lending


@pytest.mark.parametrize(
    ("router_class", "scenario"),
    [
        (SpendingRouter, FAST),
        (lending(ForgivingLendings), CUT_OFF),
        (leasing(ShamelessLeases), RECALLED),
        (leasing(LyingLeases), HOT),
    ],
    ids=["spending", "forgiving", "shameless", "lying"],
)
def test_a_broken_node_is_caught(router_class: type[Router], scenario: Scenario) -> None:
    run(scenario, 1)

    def run_some() -> None:
        for seed in range(6):
            run(scenario, seed, router_class=router_class)

    with pytest.raises(Failed, match="tokens too many"):
        run_some()
