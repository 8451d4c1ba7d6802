"""Denials at the edge in virtual time: they are as the owner's would be, and broken nodes whose are not are caught.

`scripts/simulate` has them in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from limiter_node.core.denials import ALWAYS_NS, Denial, Denials
from limiter_node.core.model import Check, Op, Verdict
from limiter_node.core.promises import Promises
from limiter_node.core.router import Router
from tests.sim.faults import AnyFault, Delay, Freeze, Kill
from tests.sim.fleet import Failed, run
from tests.sim.node import WatchedDenials
from tests.sim.scenario import Expect, Load, NodeSpec, Scenario

if TYPE_CHECKING:
    from limiter_node.core.ring import Ring

HAMMERED = Scenario(
    name="hammered",
    about="few keys asked far more often than allowed, of every node; refunds, resets, and another segment's checks",
    nodes=tuple(NodeSpec(id=f"n{number}", offset_ms=1000 * number, drift_ppm=100 * number) for number in range(1, 4)),
    documents={"rules/api": {"rate": "20/s", "burst": 5, "segments": {"premium": {"rate": "100/s", "burst": 9}}}},
    load=Load(
        checks_per_s=1_500,
        keys=tuple(f"user:{number}" for number in range(10)),
        costs=(0, 1, 1, 1, 1, 1, 1, 3),
        segments=(None,) * 400 + ("premium",),
        refund_share=0.001,
        forget_share=0.001,
    ),
    expect=Expect(settles_within_ms=7_000),
)


FAULTS: dict[str, tuple[AnyFault, ...]] = {
    "none": (Delay(at_ms=900, until_ms=1_000, links=("*|*",), least_ms=0, most_ms=1),),
    "delays": (Delay(at_ms=100, until_ms=1_000, links=("*|*",), least_ms=0, most_ms=30),),
    "freeze": (Freeze(at_ms=600, until_ms=1_000, nodes=("n2",)),),
    "kill": (Kill(at_ms=1_000, nodes=("n2",)),),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_denial_at_the_edge_is_what_the_owner_would_say(fault: str) -> None:
    report = run(replace(HAMMERED, faults=FAULTS[fault]), 4)
    assert report.outcomes["denied at the edge"] > 50


# Broken nodes: each must be caught.


class HastyPromises(Promises):
    """Lets nothing wait."""

    def due_ns(self, check: Check, now_ns: int) -> int:
        return 0


class LooseningPromises(Promises):
    """Lets refunds and resets wait, but not what takes the bucket to another plan."""

    def due_ns(self, check: Check, now_ns: int) -> int:
        return super().due_ns(check, now_ns) if check.op in (Op.REFUND, Op.FORGET) else 0


class BlindPromises(Promises):
    """Promises what it is asked for whatever is left."""

    def make(self, check: Check, verdict: Verdict, right_until_ns: int, now_ns: int) -> int:
        return super().make(check, verdict, right_until_ns, now_ns) or 20_000_000


class EndlessDenials(Denials):
    """Goes on when a promise is over."""

    def _put(self, check: Check, denial: Denial, now_ns: int) -> None:
        denial.until_ns = ALWAYS_NS
        super()._put(check, denial, now_ns)


class LateDenials(Denials):
    """Counts a promise from when it came."""

    def _put(self, check: Check, denial: Denial, now_ns: int) -> None:
        denial.until_ns = max(denial.until_ns, now_ns + denial.verdict.retry_ns)
        super()._put(check, denial, now_ns)


def promising(promises: type[Promises]) -> type[Router]:
    class Promising(Router):
        def set_ring(self, ring: Ring, now_ns: int) -> None:
            self.keeper.commitments.promises.__class__ = promises
            super().set_ring(ring, now_ns)

    return Promising


def denying(denials: type[Denials]) -> type[Router]:
    class Denying(Router):
        def set_ring(self, ring: Ring, now_ns: int) -> None:
            self.engine.denials.__class__ = type(denials.__name__, (WatchedDenials, denials), {})
            super().set_ring(ring, now_ns)

    return Denying


@pytest.mark.parametrize(
    ("router_class", "fault", "complaint"),
    [
        (promising(HastyPromises), "none", "denied at the edge: .* left|denied at the edge: nothing"),
        (promising(LooseningPromises), "none", "denied at the edge: .* left"),
        (promising(BlindPromises), "none", "denied at the edge: "),
        (denying(EndlessDenials), "none", "denied at the edge: "),
        (denying(LateDenials), "delays", "denied at the edge: .* left|ms old"),
    ],
    ids=["hasty", "loosening", "blind", "endless", "late"],
)
def test_a_broken_node_is_caught(router_class: type[Router], fault: str, complaint: str) -> None:
    with pytest.raises(Failed, match=complaint):
        run(replace(HAMMERED, faults=FAULTS[fault]), 1, router_class=router_class)
