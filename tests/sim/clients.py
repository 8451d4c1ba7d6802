"""Callers: they ask nodes whenever their schedule says so, never waiting for an answer, and write down what they got.

Decides who asks what of whom, and when; a load balancer's view of the fleet is nodes that said they are ready, frozen
ones included. What an outcome is worth is the judge's business.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from msgspec.structs import replace

from limiter_node.core.forward import Forward
from limiter_node.core.model import Check, Op
from tests.sim.node import verdict_of
from tests.sim.world import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limiter_node.core.model import Outcome
    from tests.sim.judge import Judge
    from tests.sim.node import SimNode
    from tests.sim.scenario import Burst, Load
    from tests.sim.world import World

LANE = "clients"

LULL = 0.1


class Clients:
    """All callers of a fleet."""

    def __init__(self, world: World, nodes: Mapping[str, SimNode], judge: Judge) -> None:
        self.asked = 0
        self.refused = 0  # no node was ready
        self._world = world
        self._nodes = nodes
        self._judge = judge
        self._rng = world.rng(LANE)
        self._turn = 0

    def keep_asking(self, load: Load, lull_ns: tuple[int, int]) -> None:
        """Ask at random times; in the lull, when nothing happens but recovery, a tenth as often."""
        if not load.checks_per_s:
            return
        is_lull = lull_ns[0] <= self._world.now_ns < lull_ns[1]
        per_s = load.checks_per_s * (LULL if is_lull else 1.0)
        pause_ns = round(self._rng.expovariate(per_s) * NS_PER_S)

        def ask() -> None:
            self.keep_asking(load, lull_ns)
            ready = [node for node in self._nodes.values() if node.is_ready]
            if ready:
                node = self._rng.choice(ready)
                checks: list[Check] = []
                for _ in range(self._rng.randint(1, load.batch_max)):
                    if load.atomic_share and self._rng.random() < load.atomic_share:
                        size = self._rng.randint(1, load.atomic_max)
                        self.ask_together(node, [self._random_check(load) for _ in range(size)])
                    else:
                        checks.append(self._random_check(load))
                self.ask_batch(node, checks)
            else:
                self.refused += 1

        self._world.after(pause_ns, LANE, ask)

    def ask_burst(self, burst: Burst) -> None:
        """Ask the same thing again and again, of one node or of all in turn."""
        checks = [Check(burst.rule, key, burst.cost, burst.segment) for key in (burst.key, *burst.others)]
        for number in range(burst.count):
            at_ns = burst.at_ms * NS_PER_MS + number * burst.every_us * 1_000
            self._world.at(at_ns, LANE, lambda: self._ask_next(burst.node, checks))

    def ask(self, node: SimNode, check: Check) -> None:
        """Hand a check to a node, which takes it when it runs."""
        self.asked += 1
        node.run(lambda: self._take(node, check))

    def ask_batch(self, node: SimNode, checks: list[Check]) -> None:
        """Hand a node checks that have nothing to do with each other."""
        self.asked += len(checks)
        node.run(lambda: self._take_batch(node, checks))

    def _take_batch(self, node: SimNode, checks: list[Check]) -> None:
        """Have the usual checks of a rule decided together, as the edge has, and all the others one by one."""
        usual = [check for check in checks if check.cost == 1 and check.segment is None and check.op is Op.CHECK]
        for rule in sorted({check.rule for check in usual}):
            together = [check for check in usual if check.rule == rule]
            outcomes = node.router.shortcut.checks(rule, [check.key for check in together], node.now_ns)
            for check, outcome in zip(together, outcomes or repeat(None), strict=False):
                self._take(node, check, verdict_of(outcome) if isinstance(outcome, tuple) else outcome)
        for check in checks:
            if check not in usual:
                self._take(node, check)

    def ask_together(self, node: SimNode, checks: list[Check]) -> None:
        """Hand an atomic batch to a node; what asks something else than a check asks that instead."""
        self.asked += 1
        node.run(lambda: self._take_together(node, [replace(check, op=Op.CHECK) for check in checks]))

    def _take_together(self, node: SimNode, checks: list[Check]) -> None:
        batch = node.router.batches.check(checks, node.now_ns)
        record = self._judge.batches.begin(node, batch)
        if batch.is_done:
            self._judge.batches.end(node, record, batch)
        else:
            batch.reply = lambda done: self._judge.batches.end(node, record, done)

    def _ask_next(self, name: str | None, checks: list[Check]) -> None:
        ready = [node for node in self._nodes.values() if node.is_ready]
        if name is None and not ready:
            self.refused += 1
            return
        self._turn += name is None
        node = ready[self._turn % len(ready)] if name is None else self._nodes[name]
        if len(checks) > 1:
            self.ask_together(node, checks)
        else:
            self.ask(node, checks[0])

    def _take(self, node: SimNode, check: Check, outcome: Outcome | Forward | None = None) -> None:
        """Have the caller told what the short way came to, or else what the router says."""
        ticket = self._judge.begin(node, check)
        outcome = outcome or node.router.check(check, node.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = lambda late: self._judge.end(ticket, late)
        else:
            self._judge.end(ticket, outcome)

    def _random_check(self, load: Load) -> Check:
        rng = self._rng
        dice = rng.random()
        op = Op.CHECK
        if dice < load.inspect_share:
            op = Op.INSPECT
        elif dice < load.inspect_share + load.forget_share:
            op = Op.FORGET
        elif dice > 1 - load.refund_share:
            op = Op.REFUND
        rule, key = rng.choice(load.rules), rng.choice(load.keys)
        cost, segment = rng.choice(load.costs), rng.choice(load.segments)
        return Check(rule, key, cost, None if op is Op.REFUND else segment, op)
