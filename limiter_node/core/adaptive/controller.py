"""The controller: gathers what nodes know of the backends and decides; and what a node does for one that leads.

Once a second the leader asks every node (`Gather`); the answers (`Gathered`) are summed up per backend and go through
the law. The question carries each node's shares of the rates, by the demand that it had lately. All nodes are asked at
the same time, so their windows are those of the leader's ticks. Who leads is etcd's to say (`control.leadership`), what
becomes of the decisions the composition root's.

No clock, no sockets. Invariants: a node heeds no leader of a lower term than it has heard of; without a signal that is
fresh the law is told so, and raises nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.adaptive.evidence import Decision, in_a_row, together
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.pulse import SHARE_LEAST, SHARE_TAU_S
from limiter_node.core.adaptive.view import signal_of
from limiter_node.core.model import BACKENDS_MAX, Gather, Gathered

if TYPE_CHECKING:
    from limiter_node.core.adaptive.evidence import Load, Signal
    from limiter_node.core.adaptive.registry import Backends

NS = 1_000_000_000
TICK_NS = NS
UNASKED_NS = 2 * NS
"""A node that nobody asks for so long throws away what it has counted: its next answer is to be of one second."""

BYTES_MAX = 900_000
BYTES_PER_LOAD = 420
BYTES_PER_BUCKET = 12
"""Of a frame, in the worst case: what fits is some 900 backends with 50 different latencies each."""

REPORTS_MIN = 10
"""Outcomes in a second that outweigh what a poll or a monitor says."""

FRESH_NS = 3 * NS
FRESH_POLLS = 2.5
"""What a poll or a monitor has said holds for so long, a poll for 2.5 times its pace at the least (one may fail); it is
told to the law once a tick."""

RELEASED = Decision(1.0, "normal", "adaptive throttling is off")

CHANGE_MULTIPLIER = 0.01
CHANGE_RATE = 0.03
CHANGE_PRIORITY = 0.03
"""Smaller changes are not published: below what a second's Poisson noise does to a thousand checks (3 %)."""


class Controller:
    """One on each node; only one of the fleet leads."""

    def __init__(self, node_id: str, backends: Backends) -> None:
        self.term = 0  # that this node leads in; 0: it does not
        self.sources: dict[str, dict[str, int]] = {}  # by backend and source of a signal: when it was last heard
        self.decisions: dict[str, Decision] = {}  # the last ones of this node
        self.signals: dict[str, Signal] = {}  # that those went by
        self.heeded = 0  # highest term that this node was asked in
        self._node_id = node_id
        self._backends = backends
        self._laws: dict[str, Law] = {}
        self._loads: dict[str, dict[str, list[Load]]] = {}  # by backend and node, since the last decision
        self._demand: dict[str, dict[str, float]] = {}  # wanted per second, by backend and node, averaged
        self._polled: dict[str, tuple[Signal, int]] = {}
        self._to_ask: set[str] = set()
        self._asked_ns: int | None = None
        self._next_id = 0
        self._ticks = 0

    # As any node.

    def answer(self, gather: Gather, now_ns: int) -> Gathered:
        """Tell a leader what was counted since it last asked."""
        if gather.term < self.heeded:
            return Gathered(gather.id, {})
        self.heeded = gather.term
        self._asked_ns = now_ns
        self._backends.set_shares(gather.shares, now_ns)
        return Gathered(gather.id, self._take_loads(now_ns))

    def see_election(self, revision: int) -> None:
        """The `leader` key has changed at this revision of etcd: whoever wins from here on has no lower term.

        Revisions only fall where etcd was wiped; the terms from before mean nothing any more.
        """
        self.heeded = min(self.heeded, revision)

    def tick(self, now_ns: int) -> None:
        """Let go of what nobody asks for; to be called now and then."""
        if self._asked_ns is None or now_ns - self._asked_ns > UNASKED_NS:
            self._asked_ns = now_ns
            self._take_loads(now_ns)

    def _take_loads(self, now_ns: int) -> dict[str, Load]:
        """Of all gates; where there are more than a frame holds, of the others the next time."""
        gates = self._backends.gates
        loads: dict[str, Load] = {}
        room = BYTES_MAX
        for name in list(gates):
            if room <= 0 or len(loads) == BACKENDS_MAX:
                break
            load = loads[name] = gates[name].take_load(now_ns)
            room -= BYTES_PER_LOAD + BYTES_PER_BUCKET * len(load.latency.counts)
            gates[name] = gates.pop(name)  # to the end
        return loads

    # As the leader.

    def lead(self, term: int) -> None:
        """Begin to lead, from what is published."""
        self.term = term
        self._laws.clear()
        self._loads.clear()
        self.decisions.clear()
        self.signals.clear()

    def follow(self) -> None:
        """Lead no more."""
        self.term = 0
        self._to_ask.clear()
        self._polled.clear()
        self.signals.clear()

    def ask(self, nodes: set[str], now_ns: int) -> None:
        """Begin a tick: these peers are to be asked, and this node tells at once."""
        self._to_ask = nodes
        self._ticks += 1
        self.heeded = max(self.heeded, self.term)
        self._asked_ns = now_ns
        self._backends.set_shares(self._shares(self._node_id), now_ns)
        self.hear(self._node_id, Gathered(0, self._take_loads(now_ns)), now_ns)

    def frames(self, name: str) -> list[Gather]:
        """What to ask a peer now."""
        if name not in self._to_ask:
            return []
        self._to_ask.discard(name)
        self._next_id += 1
        shares = list(self._shares(name).items())
        if len(shares) > BACKENDS_MAX:  # of some at this tick, of the others at the next
            first = self._ticks * BACKENDS_MAX % len(shares)
            shares = (shares[first:] + shares[:first])[:BACKENDS_MAX]
        return [Gather(self._next_id, self.term, dict(shares))]

    def hear(self, name: str, gathered: Gathered, now_ns: int) -> None:
        """Take what a node has counted."""
        if not self.term:
            return
        for backend, load in gathered.loads.items():
            self._loads.setdefault(backend, {}).setdefault(name, []).append(load)
            if load.completed:
                self.sources.setdefault(backend, {})["report"] = now_ns

    def polled(self, backend: str, signal: Signal, now_ns: int) -> None:
        """Take what a backend's own page says."""
        self._polled[backend] = signal, now_ns
        self.sources.setdefault(backend, {})["poll"] = now_ns

    def decide(self, now_ns: int) -> dict[str, Decision]:
        """End a tick: what to publish, by backend; only where it changes enough to matter."""
        loads, self._loads = self._loads, {}
        for known in (self._laws, self._demand, self._polled, self.sources, self.signals):
            for name in known.keys() - self._backends.names():
                del known[name]
        changed: dict[str, Decision] = {}
        for name in sorted(self._backends.names()):
            record, entry = self._backends.records.get(name), self._backends.entry(name)
            published = record.decided if record is not None else None
            is_pinned, is_off = record is not None and record.pinned, entry.policy.mode == "off"
            if not self._backends.is_known(name) or is_off or is_pinned:
                self._laws.pop(name, None)  # and from there anew
                if is_off and not is_pinned and is_news(published, RELEASED):
                    changed[name] = RELEASED  # or what was decided before would hold again once it is on
                continue
            law = self._laws.get(name)
            if law is None:
                law = self._laws[name] = Law(entry.policy)
                if published:
                    law.adopt(published)
            law.set_policy(entry.policy)
            load = self._sum_up(name, {node: in_a_row(heard) for node, heard in loads.get(name, {}).items()})
            signal = self._signal(name, load, now_ns)
            if signal is not None:
                self.signals[name] = signal
            decision = self.decisions[name] = law.decide(load, signal, now_ns)
            recast = record is not None and (record.would is not None) != (entry.policy.mode == "observe")
            if recast or is_news(published, decision):
                changed[name] = decision
        return changed

    def _sum_up(self, backend: str, loads: dict[str, Load]) -> Load | None:
        demand = self._demand.setdefault(backend, {})
        weight = TICK_NS / NS / SHARE_TAU_S
        for name in loads.keys() | demand.keys():
            load = loads.get(name)
            wanted_s = sum(load.wanted) * NS / load.span_ns if load is not None else 0.0
            demand[name] = demand.get(name, wanted_s) + weight * (wanted_s - demand.get(name, wanted_s))
            if demand[name] < 1e-3 and name not in loads:
                del demand[name]
        return together(loads.values(), nodes=len(loads)) if loads else None

    def _shares(self, name: str) -> dict[str, float]:
        """Of each backend's rate, what a node may admit."""
        shares: dict[str, float] = {}
        for backend, demand in self._demand.items():
            total = sum(demand.values())
            if total > 0:
                least = SHARE_LEAST * total / len(demand)
                parts = {node: max(wanted, least) for node, wanted in demand.items()}
                shares[backend] = parts.get(name, least) / sum({**parts, name: parts.get(name, least)}.values())
        return shares

    def _signal(self, name: str, load: Load | None, now_ns: int) -> Signal | None:
        """The best that is fresh: many reports, then a poll, then a monitor, then few reports."""
        if load is not None and load.completed >= REPORTS_MIN:
            return signal_of(load)
        poll = self._backends.entry(name).poll
        fresh_ns = max(FRESH_NS, round(FRESH_POLLS * poll.every_s * NS)) if poll is not None else FRESH_NS
        for told, lasts_ns in ((self._polled.get(name), fresh_ns), (self._backends.health.get(name), FRESH_NS)):
            if told is not None and now_ns - told[1] <= lasts_ns:
                return told[0]
        return None if load is None else signal_of(load)


def is_news(published: Decision | None, decision: Decision) -> bool:
    """Whether a decision differs enough from what is published to be worth a write."""
    if published is None:
        return decision.state != "normal"
    if published.state != decision.state or (published.multiplier < 1) != (decision.multiplier < 1):
        return True
    if decision.expires_ms is not None or (published.rate is None) != (decision.rate is None):
        return True
    if abs(published.multiplier - decision.multiplier) > CHANGE_MULTIPLIER:
        return True
    if published.rate and decision.rate and abs(decision.rate / published.rate - 1) > CHANGE_RATE:
        return True
    before, after = published.priorities, decision.priorities
    return any(abs(before.get(name, 1.0) - after.get(name, 1.0)) > CHANGE_PRIORITY for name in before.keys() | after)
