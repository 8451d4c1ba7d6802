"""What a law is held against: controllers that must fail, and fixed limits, the best of which is the reference.

The reference knows, by a sweep, the limit that is best for its scenario; it sees every request at one gate, and serves
priorities by reserving the last part of its limit for the higher ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.adaptive.world import Outcome, World

INF = float("inf")


class Full:
    """No limiter at all."""

    def start(self, world: World) -> None:
        """Nothing to do."""

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """Everybody."""
        return True

    def report(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Whatever it was."""


class Rate(Full):
    """A bucket at a part of the healthy demand, never changed: at 1.1 frozen, at 0.05 the minimum."""

    def __init__(self, part: float) -> None:
        self._part = part

    def start(self, world: World) -> None:
        """Fill the bucket."""
        self._rate = self._part * world.scenario.demand
        self._burst = max(1.0, self._rate)
        self._tokens, self._at_s = self._burst, 0.0

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """While there is a token."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


RESERVED = {0: 0.0, 5: 0.12, 9: 0.3}
"""Of a fixed limit, what each priority may not use."""

REFERENCE_LIMITS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.5, 7.0, 12.0, INF)
"""The sweep: requests in flight, in servers."""


class Fixed(Full):
    """As many in flight as `per_server` times the healthy number of servers."""

    def __init__(self, per_server: float) -> None:
        self._per_server = per_server
        self._out = 0

    def start(self, world: World) -> None:
        """Work out the limit of each priority."""
        limit = self._per_server * world.scenario.servers
        self._limits = {priority: max(1.0, limit * (1 - part)) for priority, part in RESERVED.items()}

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """Below its limit."""
        if self._out >= self._limits[priority]:
            return False
        self._out += 1
        return True

    def report(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """One less in flight."""
        self._out -= 1
