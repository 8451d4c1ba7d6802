"""A whole fleet in one thread: builds the world of a scenario, lets it run, and reports.

`run` is the one way in, for tests and for `scripts/simulate` alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from structlog.testing import capture_logs

from limiter_node.core.engine import Engine
from limiter_node.core.router import Router
from tests.sim.clients import Clients
from tests.sim.clock import SimClock
from tests.sim.etcd import SimEtcd
from tests.sim.injector import Injector
from tests.sim.judge import Judge
from tests.sim.network import Network
from tests.sim.node import SimNode
from tests.sim.rings import shared_rings
from tests.sim.world import NS_PER_MS, World

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from tests.sim.scenario import DocumentChange, Scenario


class Failed(Exception):
    """A run ended badly; the text has what is needed to run it again."""


@dataclass(frozen=True)
class Report:
    """What a run that went well came to."""

    fingerprint: str
    steps: int
    asked: int
    outcomes: Counter[str]
    partly_ms: float  # longest that an atomic batch was spent at some of its keys only


class Fleet:
    """Everything of one run."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        engine_class: type[Engine] = Engine,
        router_class: type[Router] = Router,
    ) -> None:
        self.scenario = scenario
        self.world = World(seed)
        self.network = Network(self.world, self._run_on)
        self.etcd = SimEtcd(self.world)
        self.judge = Judge(
            self.world, scenario.expect, calm_ns=scenario.calm_ms * NS_PER_MS, is_reachable=self._is_reachable
        )
        self.nodes = {
            spec.id: SimNode(
                spec.id,
                SimClock(spec.offset_ms * NS_PER_MS, spec.drift_ppm),
                self.world,
                self.network,
                self.etcd,
                self.judge,
                zone=spec.zone,
                engine_class=engine_class,
                router_class=router_class,
            )
            for spec in scenario.nodes
        }
        self.clients = Clients(self.world, self.nodes, self.judge)

    def _is_reachable(self, name: str, life: int) -> bool:
        """Whether a node runs, in that life, and half of the others at least can speak with it."""
        node = self.nodes[name]
        others = [other for other in self.nodes.values() if other.is_alive and other is not node]
        cut = [
            other
            for other in others
            if self.network.path(name, other.name).is_blocked or self.network.path(other.name, name).is_blocked
        ]
        return node.is_alive and node.lives == life and not node.is_frozen and 2 * len(cut) <= len(others)

    def run(self) -> Report:
        """From the first moment to the last judgement."""
        scenario = self.scenario
        for key, document in scenario.documents.items():
            self.etcd.put(key, msgspec.json.encode(document))
        for change in scenario.changes:
            if change.is_bad:
                self.judge.ledger.bad_values.add(msgspec.json.encode(change.value))
            self.world.at(change.at_ms * NS_PER_MS, "people", partial(self._write, change))
        for spec in scenario.nodes:
            if spec.is_founder:
                self.nodes[spec.id].start(is_founder=True)
        injector = Injector(self.world, self.network, self.etcd, self.nodes, self.judge, self._is_reachable)
        injector.schedule(scenario.faults)
        for burst in scenario.bursts:
            self.clients.ask_burst(burst)
        self.clients.keep_asking(scenario.load, (scenario.trouble_ms * NS_PER_MS, scenario.calm_ms * NS_PER_MS))
        self.world.run(scenario.until_ms * NS_PER_MS)
        self.judge.finish(self.nodes.values(), self.etcd)
        outcomes, batches = self.judge.outcomes, self.judge.batches
        return Report(
            self.world.fingerprint(),
            self.world.steps,
            self.clients.asked,
            outcomes + batches.outcomes,
            batches.partly_ns / NS_PER_MS,
        )

    def _run_on(self, host: str, act: Callable[[], None]) -> None:
        self.nodes[host].run(act)

    def _write(self, change: DocumentChange) -> None:
        self.world.note(f"{change}")
        if change.value is None:
            self.etcd.delete(change.key)
        else:
            self.etcd.put(change.key, msgspec.json.encode(change.value))


def run(
    scenario: Scenario,
    seed: int,
    *,
    engine_class: type[Engine] = Engine,
    router_class: type[Router] = Router,
) -> Report:
    """Run a scenario; raises `Failed` with the seed and the end of the trace when anything goes wrong."""
    with capture_logs(), shared_rings():
        fleet = Fleet(scenario, seed, engine_class=engine_class, router_class=router_class)
        try:
            return fleet.run()
        except Exception as error:
            at_ms = fleet.world.now_ns / NS_PER_MS
            raise Failed(
                f"{scenario.name!r} fails with seed {seed} at {at_ms:.3f} ms, step {fleet.world.steps}: "
                f"{type(error).__name__}: {error}\n\nThe last steps:\n{fleet.world.tail()}\n"
            ) from error
