"""What the nodes of a fleet tell each other of a backend, many times a second: each one's guard sees what all do.

A guard that knows only its own node's checks sees one in N: with 8 nodes at 25/s it kept 0.46 of the goodput of the
best fixed limit, at a single node 0.80. So every ping between nodes carries what its sender has counted, ever since it
began: what is new is the difference to what was heard before, and a pulse that is lost costs nothing.

No clock. Invariant: nothing that a peer says can make a count fall, or be counted twice.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from limiter_node.core.adaptive.evidence import Count

Sum = Annotated[float, msgspec.Meta(ge=0, le=2.0**120)]
SHARE_TAU_S = 10.0
"""Shares follow demand over ten seconds, those of the published rate, too."""

SHARE_LEAST = 0.05
"""Of an even share: what a node has that was asked for nothing lately."""


class Pulse(msgspec.Struct, frozen=True, array_like=True):
    """What one node has counted of one backend, ever since."""

    wanted: Count  # checks that their own limits allowed
    sent: Count  # of them, what the backend has got
    answers: Count  # outcomes reported to this node with an answer, good or bad
    refused: Count
    timeouts: Count
    latencies_ms: Sum  # over the answers
    squares_ms2: Sum  # of those latencies

    def since(self, before: Pulse) -> Pulse | None:
        """What was counted since an earlier one; None where that is of another life of the node."""
        news = Pulse(
            self.wanted - before.wanted,
            self.sent - before.sent,
            self.answers - before.answers,
            self.refused - before.refused,
            self.timeouts - before.timeouts,
            self.latencies_ms - before.latencies_ms,
            self.squares_ms2 - before.squares_ms2,
        )
        return None if min(msgspec.structs.astuple(news)) < 0 else news


class _Fellow:
    """Another node, as far as one backend is concerned."""

    __slots__ = ("demand_s", "is_fresh", "last", "wanted")

    def __init__(self, pulse: Pulse) -> None:
        self.last = pulse
        self.wanted = 0  # checks, in the present window
        self.demand_s: float | None = None
        self.is_fresh = True  # it was heard in the present window


class Fellows:
    """The other nodes of the fleet, and which part of the demand is this node's."""

    def __init__(self) -> None:
        self._fellows: dict[str, _Fellow] = {}
        self._demand_s: float | None = None  # this node's own

    def hear(self, name: str, pulse: Pulse) -> Pulse | None:
        """Take a node's pulse; returns what is new in it. Of a first one that is unknown."""
        fellow = self._fellows.get(name)
        news = None if fellow is None else pulse.since(fellow.last)
        if fellow is None or news is None:
            self._fellows[name] = _Fellow(pulse)
            return None
        fellow.last = pulse
        fellow.wanted += news.wanted
        fellow.is_fresh = True
        return news

    def end_window(self, wanted: int, span_s: float) -> float:
        """This node's share of the demand, 0 to 1, after a window in which it had so much; 1 with no other node.

        Who was not heard in the window counts for nothing: what it sends is not seen here, either.
        """
        own_s = self._demand_s = _averaged(self._demand_s, wanted / span_s, span_s)
        for name, fellow in list(self._fellows.items()):
            if not fellow.is_fresh:
                del self._fellows[name]
                continue
            fellow.demand_s = _averaged(fellow.demand_s, fellow.wanted / span_s, span_s)
            fellow.wanted, fellow.is_fresh = 0, False
        demands_s = [fellow.demand_s or 0.0 for fellow in self._fellows.values()]
        total_s = own_s + sum(demands_s)
        even = 1 / (1 + len(demands_s))
        return max(own_s / total_s if total_s else even, SHARE_LEAST * even)


def _averaged(before: float | None, now: float, span_s: float) -> float:
    return now if before is None else before + (now - before) * min(span_s / SHARE_TAU_S, 1.0)
