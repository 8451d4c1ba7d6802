"""A pace: so many turns per second, with next to no burst. Without one, everybody's turn has come."""

from __future__ import annotations

from math import inf

NS = 1_000_000_000
BURST_S = 0.1
"""Of the pace, and a turn at the least."""


class Pace:
    """Hands out turns. Time comes in as an argument."""

    __slots__ = ("_at_ns", "_turns", "per_s")

    def __init__(self) -> None:
        self.per_s = inf
        self._turns = 1.0
        self._at_ns = 0

    def take(self, now_ns: int) -> bool:
        """Take a turn; False when there is none yet."""
        if self.per_s == inf:
            return True
        earned = self.per_s * min(now_ns - self._at_ns, NS) / NS
        self._at_ns = now_ns
        self._turns = min(self._turns + earned, max(BURST_S * self.per_s, 1.0))
        if self._turns < 1:
            return False
        self._turns -= 1
        return True
