"""Atomic batches in virtual time: all or nothing while a node dies, freezes, is cut off or leaves, and judges who see.

    LIMITER_SIM_SEEDS=1000   that many seeds instead of SEEDS: some 20,000 batches in the middle of which a node fails

`scripts/simulate --atomic` runs more of them outside pytest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from limiter_node.core.atomic import Batch, Batches
from limiter_node.core.model import Op, Settled
from limiter_node.core.router import Router
from tests.sim import scenario as scenarios
from tests.sim.faults import Kill
from tests.sim.fleet import Failed, run

if TYPE_CHECKING:
    from limiter_node.core.model import Check, Outcome
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.ring import Ring

SEEDS = 4
OWNER_DIES = scenarios.load(Path(__file__).parent / "scenarios" / "atomic-batches-while-an-owner-dies.yaml")

POWER_FAILS = replace(OWNER_DIES, faults=(Kill(at_ms=800, nodes=("n2",), is_silent=True),))
"""What n2 has sent and nobody has got yet is lost, too."""


@pytest.mark.parametrize("seed", range(int(os.environ.get("LIMITER_SIM_SEEDS", SEEDS))))
def test_a_batch_is_spent_at_all_of_its_keys_or_at_none_whichever_node_fails(seed: int) -> None:
    run(scenarios.generate_atomic(seed), seed)


def test_a_node_fails_in_the_middle_of_many_batches() -> None:
    report = run(POWER_FAILS, 1)
    assert report.outcomes["batches in the middle"] >= 10
    assert report.outcomes["batches granted"] > 100


# Broken nodes: each must be caught.


class CarelessRouter(Router):
    """Answers a reservation before its replica has a copy."""

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        needs_copy = self.keeper._deeds._needs_copy

        def needs_none(check: Check, outcome: Outcome) -> bool:
            return check.op is not Op.RESERVE and needs_copy(check, outcome)

        self.keeper._deeds._needs_copy = needs_none  # type: ignore[method-assign]
        super().set_ring(ring, now_ns)


class HastyBatches(Batches):
    """Has the owners spend without having committed."""

    def _settle(self, batch: Batch, now_ns: int) -> None:
        batch.answers = {0: Settled(True)}
        super()._settle(batch, now_ns)

    def _weigh(self, batch: Batch, now_ns: int) -> None:
        batch.outcomes = batch.spread()
        if all(map(batch.allows, batch.outcomes)):
            self._settle(batch, now_ns)
        else:
            super()._weigh(batch, now_ns)


class ForgetfulBatches(Batches):
    """Gives back what is set aside when its time is over, whatever has become of the batch."""

    def _end_hold(self, bucket: Bucket, name: str, settled: Outcome, now_ns: int) -> None:
        super()._end_hold(bucket, name, Settled(False), now_ns)


class IdleBatches(Batches):
    """Asks for no batch whose time is over."""

    def go_on(self, now_ns: int) -> None:
        self._router.engine.holds.take_due = lambda _: []  # type: ignore[method-assign,assignment]
        super().go_on(now_ns)


def running(batches: type[Batches]) -> type[Router]:
    """A router that runs batches so."""

    class Running(Router):
        def set_ring(self, ring: Ring, now_ns: int) -> None:
            if not isinstance(self.batches, batches):
                self.batches = batches(self)
            super().set_ring(ring, now_ns)

    return Running


@pytest.mark.parametrize(
    ("router_class", "complaint"),
    [
        (CarelessRouter, "spent .* of"),
        (running(HastyBatches), "not all or nothing"),
        (running(ForgetfulBatches), "not all or nothing"),
        (running(IdleBatches), "still set aside|spent .* of"),
    ],
    ids=["careless", "hasty", "forgetful", "idle"],
)
def test_a_broken_node_is_caught(router_class: type[Router], complaint: str) -> None:
    def run_some() -> None:
        for seed in range(10):
            run(POWER_FAILS, seed, router_class=router_class)

    with pytest.raises(Failed, match=complaint):
        run_some()
