"""Every backend that this node knows: its entry, what is published for it, what monitors say, and its gate here.

A backend is known by an entry under `backends/` or by a rule that names it; the latter goes by the defaults. It says
what applies: a person's pin always, the controller's record where the policy is `on`, the entry's cap in any case.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from limiter_node.core.adaptive.gate import Gate
from limiter_node.core.backends import Backend, Record, to_ppm

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.adaptive.evidence import Signal
    from limiter_node.core.adaptive.pulse import Pulse

PULSES_MAX = 50
"""Backends that a ping tells of. One costs 4 us a ping at both ends: 8 nodes spend at most 3 % of a core each on it."""

PULSE_NS = 50_000_000
PULSE_EACH_NS = 2_000_000
"""How often they are told, however patient nodes are with each other. Each 0.4 s, as pings of a `--peer-timeout` of 2 s
come, three nodes let in all or nobody by turns: premium users got 0.87 to 0.91 in a surge of 2.5, and 0.99 so. A ping
costs some 0.1 ms at both ends: less often with more than 25 nodes, so that they take a twentieth of a core at most."""

DEFAULT = Backend()


def _halfway() -> float:
    return 0.5


class Backends:
    """By name. `jitter` is uniform in [0, 1)."""

    def __init__(self, jitter: Callable[[], float] = _halfway) -> None:
        self.gates: dict[str, Gate] = {}
        self.entries: dict[str, Backend] = {}
        self.records: dict[str, Record] = {}
        self.health: dict[str, tuple[Signal, int]] = {}  # what a monitor said, and when this node heard it
        self.faults: dict[str, str] = {}  # what was last wrong with what is said of a backend, by whom
        self.rejected: dict[str, int] = {}  # reports, polls and health values that were no good, by backend
        self._jitter = jitter
        self._named: dict[str, int] = {}  # by how many rules
        self._share = 1.0

    def names(self) -> set[str]:
        """Of all that are known, or have something published."""
        return self.entries.keys() | self._named.keys() | self.records.keys()

    def is_known(self, name: str) -> bool:
        """Whether somebody has named such a backend in an entry or a rule."""
        return name in self.entries or name in self._named

    def entry(self, name: str) -> Backend:
        """What people want for it."""
        return self.entries.get(name, DEFAULT)

    def gate(self, name: str) -> Gate:
        """Its gate, made when it is first asked for."""
        gate = self.gates.get(name)
        if gate is None:
            gate = self.gates[name] = Gate(self.entry(name).policy, self._jitter)
            gate.set_share(self._share, 0)
        return gate

    def ppm(self, name: str) -> int:
        """The multiplier in force on the plans of its rules, in millionths."""
        entry, record = self.entry(name), self.records.get(name)
        if record is not None and record.pinned:
            return record.ppm
        cap = to_ppm(entry.max)
        return min(cap, record.ppm) if record is not None and entry.policy.mode == "on" else cap

    def state(self, name: str) -> str:
        """In a word, for people."""
        record = self.records.get(name)
        if record is not None and record.pinned:
            return "pinned"
        mode = self.entry(name).policy.mode
        if mode != "on":
            return mode
        return "normal" if record is None else record.decision.state

    def rename(self, before: str | None, after: str | None) -> None:
        """A rule names another backend now, or none."""
        if before is not None:
            self._named[before] -= 1
            if not self._named[before]:
                del self._named[before]
        if after is not None:
            self._named[after] = self._named.get(after, 0) + 1

    def set_entry(self, name: str, entry: Backend | None, now_ns: int) -> None:
        """Put an entry in force, or (None) go back to the defaults."""
        if entry is None:
            self.entries.pop(name, None)
        else:
            self.entries[name] = entry
        self.gate(name).set_policy(self.entry(name).policy)
        self._apply(name, now_ns)

    def set_record(self, name: str, record: Record | None, now_ns: int) -> None:
        """Go by what is published; None: nothing is."""
        if record is None:
            self.records.pop(name, None)
        else:
            self.records[name] = record
        self._apply(name, now_ns)

    def _apply(self, name: str, now_ns: int) -> None:
        record, mode = self.records.get(name), self.entry(name).policy.mode
        decision = None if record is None else record.decision
        if record is not None and mode == "observe" and not record.pinned:
            decision = record.decided
        self.gate(name).apply(decision if mode != "off" else None, now_ns)

    def set_shares(self, shares: dict[str, float], now_ns: int) -> None:
        """Of each backend's rate, what this node may admit, as the controller has measured."""
        for name, share in shares.items():
            if name in self.gates:
                self.gates[name].set_share(share, now_ns)

    def set_default_share(self, share: float, now_ns: int) -> None:
        """What this node may admit until the controller says otherwise: its part of a fleet that has changed."""
        if share != self._share:
            self._share = share
            for gate in self.gates.values():
                gate.set_share(share, now_ns)

    def pulse_every_ns(self, peers: int) -> float:
        """How often each of so many other nodes is to be told; never while nothing is in use."""
        if all(gate.is_idle for gate in self.gates.values()):
            return inf
        return max(PULSE_NS, PULSE_EACH_NS * peers)

    def pulses(self) -> dict[str, Pulse]:
        """What to tell the other nodes: of gates that are in use, as many as may be."""
        busy = ((name, gate) for name, gate in self.gates.items() if not gate.is_idle)
        return {name: gate.pulse() for name, gate in islice(busy, PULSES_MAX)}

    def hear(self, node: str, pulses: dict[str, Pulse], now_ns: int) -> None:
        """Take what another node tells."""
        for name, pulse in pulses.items():
            if self.is_known(name):
                self.gate(name).hear(node, pulse, now_ns)

    def reject(self, name: str, source: str, problem: str) -> None:
        """Somebody said something of a backend that is no good: count it, and keep it for people to see."""
        name = name if self.is_known(name) else ""  # whatever is asked for must not fill the memory
        self.rejected[name] = self.rejected.get(name, 0) + 1
        self.faults[name] = f"{source}: {problem}"
