"""Limiter nodes with their gates and a leader with the law, and what can go wrong between them.

A request meets a node by chance (the owner of its key). Its outcome is reported there or at any node, a little later.
Once a second each node sends its load to the leader and the leader decides and publishes; all of it takes time, and
may be lost, late, twice or out of order. Every node's clock has an offset of its own of up to a minute. A publish
carries its leader's term and a number, and nodes ignore older ones; so a leader that was cut off writes in vain.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from bench.adaptive.scenario import PRIORITIES
from limiter_node.core.adaptive.evidence import PRIORITIES as PRIORITY_COUNT
from limiter_node.core.adaptive.evidence import Decision, Load, Policy
from limiter_node.core.adaptive.gate import Gate
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.sketch import Sketch
from limiter_node.core.adaptive.view import signal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.adaptive.scenario import Spans
    from bench.adaptive.world import Outcome, World

NS = 1_000_000_000
TICK_S = 1.0
PULSE_S = 0.06
PULSE_DELAY_S = (0.001, 0.01)
"""Nodes ping each other every 50 ms, as far as ticks of 10 ms let them."""

LEADS_AT = 0
"""The node that leads: when loads are lost, it neither hears the others nor is heard."""

FLUSH_S = 0.02
"""Callers send what they have to report so often."""

CLOCK_SPREAD_S = 60.0
LOAD_DELAY_S = (0.005, 0.05)
DUPLICATE_LATER_S = 5.0
DECIDES_AFTER_S = 0.1
"""The leader waits so long for loads."""

Sequence2 = tuple[int, int]
"""Term and number of a publish."""


def merged(loads: Sequence[Load]) -> Load:
    """The sum of loads of one tick: they span the same second."""
    latency = Sketch({}, 0.0)
    for load in loads:
        latency.merge(load.latency)
    columns = ([load.offered for load in loads], [load.wanted for load in loads], [load.admitted for load in loads])
    offered, wanted, admitted = ([sum(counts) for counts in zip(*column, strict=True)] for column in columns)
    return Load(
        span_ns=max(load.span_ns for load in loads),
        nodes=sum(load.nodes for load in loads),
        offered=offered,
        wanted=wanted,
        admitted=admitted,
        completed=sum(load.completed for load in loads),
        refused=sum(load.refused for load in loads),
        failed=sum(load.failed for load in loads),
        timeouts=sum(load.timeouts for load in loads),
        latency=latency,
        in_flight=sum(load.in_flight for load in loads),
    )


class LateOutcomes:
    """Outcomes on their way from callers, who send what they have every `FLUSH_S`; `tell` gets them once there."""

    def __init__(self, world: World, tell: Callable[[int, float | None, Outcome, float], None]) -> None:
        self._delay_s = world.scenario.report_delay_s
        self._tell = tell
        self._under_way: deque[tuple[float, int, float | None, Outcome]] = deque()
        world.every(FLUSH_S, self._flush)

    def send(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """To a node."""
        self._under_way.append((now_s + self._delay_s, node, latency_s, outcome))

    def _flush(self, now_s: float) -> None:
        under_way = self._under_way
        while under_way and under_way[0][0] <= now_s:
            _, node, latency_s, outcome = under_way.popleft()
            self._tell(node, latency_s, outcome, now_s)


class Leader:
    """Whoever decides: its law, its clock, and the loads that have come since its last tick."""

    def __init__(self, policy: Policy, term: int, clock_ns: int) -> None:
        self.law = Law(policy)
        self.term = term
        self.clock_ns = clock_ns
        self.number = 0
        self.loads: dict[int, Load] = {}
        self.is_alive = True


class Fleet:
    """Our two layers; the guards alone without a leader; on one node instead of the scenario's where `nodes` is 1."""

    def __init__(self, *, has_leader: bool = True, nodes: int | None = None) -> None:
        self._has_leader = has_leader
        self._nodes = nodes
        self.decisions: list[tuple[float, Decision]] = []

    def start(self, world: World) -> None:
        """Build the nodes and set their clocks going."""
        scenario = self._scenario = world.scenario
        if self._nodes is not None:
            scenario = self._scenario = replace(scenario, nodes=self._nodes)
        self._world = world
        self._chance = Random(f"fleet {world.seed}")
        self._policy = Policy(slo_ms=scenario.slo_s * 1e3 if scenario.slo_is_known else None)
        self._gates = [Gate(self._policy, Random(f"gate {world.seed} {n}").random) for n in range(scenario.nodes)]
        spread = CLOCK_SPREAD_S
        # Monotonic clocks begin anywhere; an hour on top keeps them positive.
        self._clocks = [round((3600 + self._chance.uniform(-spread, spread)) * NS) for _ in self._gates]
        self._seen: list[Sequence2] = [(0, 0)] * scenario.nodes
        self._last: Decision | None = None
        self._leader = Leader(self._policy, 1, self._clocks[0])
        share = 1 / scenario.nodes
        for gate, clock_ns in zip(self._gates, self._clocks, strict=True):
            gate.set_share(share, clock_ns)
        self._late = LateOutcomes(world, self._hear)
        for node in range(scenario.nodes):
            world.every(PULSE_S, lambda now_s, node=node: self._tell(node, now_s), first_s=self._chance.random())  # type: ignore[misc]
            world.every(TICK_S, lambda now_s, node=node: self._send_load(node, now_s), first_s=TICK_S)  # type: ignore[misc]
        if self._has_leader:
            self._start_leader(world)

    def _start_leader(self, world: World) -> None:
        scenario = self._scenario
        if scenario.start is not None:
            rate = scenario.start * scenario.demand
            fractions = {str(priority): scenario.start for priority in PRIORITIES}
            decision = Decision(scenario.start, "overload", "adopted", rate=rate, priorities=fractions)
            self._leader.law.adopt(decision)
            self._publish(self._leader, decision, 0.0)
        self._lead(world, self._leader, TICK_S + DECIDES_AFTER_S)
        if scenario.leader_lost_s is not None:
            world.at(scenario.leader_lost_s, self._lose_leader)
            world.at(scenario.leader_lost_s + scenario.leader_gap_s, self._replace_leader)

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """Ask the node's gate."""
        node %= len(self._gates)
        gate = self._gates[node]
        gate.offer(priority)
        return not gate.admit(priority, int(now_s * 1e9) + self._clocks[node])

    def report(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Put it on its way to a node, unless reports are being lost."""
        scenario = self._scenario
        if scenario.reports_lost and _is_within(scenario.reports_lost, now_s):
            return
        if scenario.reports_to == "random":
            node = int(self._chance.random() * scenario.nodes)
        else:
            node %= len(self._gates)
        self._late.send(node, latency_s, outcome, now_s)

    def _hear(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        latency_ms = None if latency_s is None else latency_s * 1e3
        self._gates[node].report(latency_ms, outcome, 1, int(now_s * 1e9) + self._clocks[node])

    def _tell(self, node: int, now_s: float) -> None:
        pulse, name = self._gates[node].pulse(), str(node)
        cut_off = {LEADS_AT} if _is_within(self._scenario.loads_lost, now_s) else set()

        def arrive(at_s: float) -> None:
            for other, gate in enumerate(self._gates):
                if other != node and not cut_off & {node, other}:
                    gate.hear(name, pulse, int(at_s * 1e9) + self._clocks[other])

        self._world.at(now_s + self._chance.uniform(*PULSE_DELAY_S), arrive)

    def _send_load(self, node: int, now_s: float) -> None:
        load = self._gates[node].take_load(int(now_s * 1e9) + self._clocks[node])
        if _is_within(self._scenario.loads_lost, now_s) or not self._has_leader:
            return
        leader = self._leader
        delay_s = self._chance.uniform(*LOAD_DELAY_S)
        self._world.at(now_s + delay_s, lambda _: leader.loads.__setitem__(node, load))

    def _lead(self, world: World, leader: Leader, first_s: float) -> None:
        world.every(TICK_S, lambda now_s: self._decide(leader, now_s), first_s=first_s)

    def _decide(self, leader: Leader, now_s: float) -> None:
        if not leader.is_alive:
            return
        loads, leader.loads = leader.loads, {}
        load = merged(list(loads.values())) if loads else None
        decision = leader.law.decide(load, signal_of(load) if load else None, int(now_s * 1e9) + leader.clock_ns)
        if leader is self._leader:
            self._last = decision
            self.decisions.append((now_s, decision))
        self._publish(leader, decision, now_s)
        total = sum(sum(load.wanted) for load in loads.values())
        if len(loads) == len(self._gates) and total >= len(loads) * 10:
            for node, part in loads.items():
                self._share(node, sum(part.wanted) / total, now_s)

    def _share(self, node: int, share: float, now_s: float) -> None:
        gate, clock_ns = self._gates[node], self._clocks[node]
        delay_s = self._chance.uniform(*LOAD_DELAY_S)
        self._world.at(now_s + delay_s, lambda at_s: gate.set_share(share, int(at_s * 1e9) + clock_ns))

    def _publish(self, leader: Leader, decision: Decision, now_s: float) -> None:
        leader.number += 1
        sequence = leader.term, leader.number
        for node in range(len(self._gates)):
            delay_s = self._chance.uniform(*self._scenario.publish_delay_s)
            self._deliver(node, sequence, decision, now_s + delay_s)
            if self._scenario.duplicated and self._chance.random() < self._scenario.duplicated:
                again_s = now_s + delay_s + self._chance.uniform(0, DUPLICATE_LATER_S)
                self._deliver(node, sequence, decision, again_s)

    def _deliver(self, node: int, sequence: Sequence2, decision: Decision, at_s: float) -> None:
        def arrive(now_s: float) -> None:
            if sequence >= self._seen[node]:
                self._seen[node] = sequence
                self._gates[node].apply(decision, int(now_s * 1e9) + self._clocks[node])

        self._world.at(at_s, arrive)

    def _lose_leader(self, now_s: float) -> None:
        # Cut off, it hears no loads, and goes on writing under its old term.
        self._leader.is_alive = self._scenario.leader_is_cut_off
        old, clock_ns = self._leader, self._clocks[-1]
        self._leader = Leader(self._policy, old.term + 1, clock_ns)
        self._leader.is_alive = False

    def _replace_leader(self, now_s: float) -> None:
        self._leader.is_alive = True
        if self._last is not None:
            self._leader.law.adopt(self._last)
        self._lead(self._world, self._leader, now_s + DECIDES_AFTER_S)


def _is_within(spans: Spans, at_s: float) -> bool:
    return any(since_s <= at_s < until_s for since_s, until_s in spans)


assert max(PRIORITIES) < PRIORITY_COUNT
