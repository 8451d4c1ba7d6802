"""The sliding window by two counters: the present window's, and the earlier one's as far as it is still in sight.

    counted = current + previous x (period - age) / period;   allow iff counted + cost <= limit

where `age` is how long the current window has lasted: the last `period` is taken to have had, of the earlier window,
what it would have had if grants had come evenly. (J. Desgats, "How we built rate limiting capable of scaling to
millions of domains", Cloudflare, 2017; they saw 0.003 % of requests decided wrongly.) Here windows begin per key, with
its first grant, and go by the owner's monotonic clock alone: no edge is known to others, and no wall clock matters.

What it promises: never more than the limit in one of the key's own windows, and in any other stretch of a period at
most limit + previous x age / period. What it costs: one integer a key, 48 bytes, whatever the limit. Where it errs: by
how far from evenly the earlier window was filled. Two bursts around an edge gain nothing; whoever keeps back a whole
burst for a window's very end and then takes every token as it comes gets up to twice the limit within a period, and
whoever spent all at a window's beginning is denied for up to a period longer than by the log. Choose it for large
limits over long periods, where a log would be too large and a bucket's burst plus rate too much. Arithmetic is exact:
in integers, rounded against the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.algorithms.token_bucket import whole_share
from limiter_node.core.model import NEVER

if TYPE_CHECKING:
    from limiter_node.core.limits import Limit

COUNT_BITS = 40
"""Of each counter in a state: above `limits.COUNT_MAX`."""

COUNTS = (1 << COUNT_BITS) - 1

Sight = tuple[int, int, int]
"""(when the current window began, the previous count, the current count)."""


class SlidingWindow:
    """Two counters; a state is when the current window began and below it both counts."""

    __slots__ = ("limit", "period_ns", "period_s", "tokens")

    def __init__(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        self.period_s = limit.period_s
        self.period_ns = limit.period_s * 1_000_000_000
        self.set_numbers(limit, multiplier_ppm, parts, now_ns)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """As `Algorithm` has it."""
        self.limit = limit
        self.tokens = whole_share(limit.count, multiplier_ppm, parts)

    def _seen(self, state: int | None, now_ns: int) -> Sight:
        """A key's windows as they are now."""
        if state is None:
            return now_ns, 0, 0
        start_ns, previous, current = state >> 2 * COUNT_BITS, state >> COUNT_BITS & COUNTS, state & COUNTS
        windows = (now_ns - start_ns) // self.period_ns
        # A merge may have brought the window forward, to begin after now.
        if windows <= 0:
            return start_ns, previous, current
        if windows == 1 and current:
            return start_ns + self.period_ns, current, 0
        return now_ns, 0, 0

    def _spent(self, sight: Sight, now_ns: int) -> int:
        start_ns, previous, current = sight
        return current + _weighed(previous, now_ns - start_ns, self.period_ns)

    def _full_in_ns(self, sight: Sight, now_ns: int) -> int:
        start_ns, previous, current = sight
        windows = 2 if current else 1 if previous else 0
        return start_ns + windows * self.period_ns - now_ns if windows else 0

    def _fits_in_ns(self, sight: Sight, cost: int, now_ns: int) -> int:
        """Until a cost that is denied now fits: until enough of the earlier window is out of sight."""
        room = self.tokens - cost
        if room < 0:
            return self.period_ns  # not at this multiplier
        start_ns, previous, current = sight
        if current > room:
            # Not before the next window, in which the present one is the earlier.
            start_ns, previous, current = start_ns + self.period_ns, current, 0
        return start_ns + self.period_ns - (room - current) * self.period_ns // previous - now_ns

    def decide(self, state: int | None, cost: int, now_ns: int) -> Decision:
        """As `Algorithm` has it."""
        sight = self._seen(state, now_ns)
        spent = self._spent(sight, now_ns)
        ask = cost or 1
        allowed = spent + ask <= self.tokens
        retry_ns = 0
        if not allowed:
            retry_ns = NEVER if cost > self.limit.count else self._fits_in_ns(sight, ask, now_ns)
        elif cost:
            start_ns, previous, current = sight
            sight = start_ns, previous, current + cost
            spent += cost
            state = _state(*sight)
        return Decision(allowed, state, max(0, self.tokens - spent), self._full_in_ns(sight, now_ns), retry_ns)

    def spent(self, state: int | None, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return self._spent(self._seen(state, now_ns), now_ns)

    def charge(self, state: int | None, cost: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        start_ns, previous, current = self._seen(state, now_ns)
        return _state(start_ns, previous, min(current + cost, COUNTS))

    def refund(self, state: int | None, cost: int, now_ns: int) -> int | None:
        """As `Algorithm` has it; what was spent in the earlier window counts no more than it did."""
        start_ns, previous, current = self._seen(state, now_ns)
        kept = max(0, current - cost)
        previous = max(0, previous - (cost - (current - kept)))
        return _state(start_ns, previous, kept) if kept or previous else None

    def full_in_ns(self, state: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return self._full_in_ns(self._seen(state, now_ns), now_ns)

    def horizon(self, now_ns: int) -> int:
        """As `Algorithm` has it: after two windows, the first of which may begin in half a period (see `merge`)."""
        return now_ns + 5 * self.period_ns // 2

    def is_past(self, horizon: int, now_ns: int) -> bool:
        """As `Algorithm` has it."""
        return now_ns >= horizon

    def pack(self, state: int, now_ns: int) -> list[int] | None:
        """[age of the current window in nanoseconds, previous, current].

        The age is below 0 for a window that is yet to begin, by half a period at most.
        """
        start_ns, previous, current = self._seen(state, now_ns)
        return [now_ns - start_ns, previous, current] if previous or current else None

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> int | None:
        """As `Algorithm` has it; what counts under another period is spent in a window that begins now."""
        age_ns, previous, current = packed
        period_ns = period_s * 1_000_000_000
        if not (-period_ns <= 2 * age_ns < 2 * period_ns and 0 <= previous <= COUNTS and 0 <= current <= COUNTS):
            raise ValueError(f"{packed}: no age and counts of windows of {period_s} s")
        if period_s != self.period_s:
            current = min(current + _weighed(previous, age_ns, period_ns), COUNTS)
            age_ns = previous = 0
        return _state(now_ns - age_ns, previous, current) if previous or current else None

    def merge(self, state: int, other: int, now_ns: int) -> int:
        """As `Algorithm` has it: in the same window, the larger of each count and the later beginning.

        Of two whose windows begin more than half a period apart, the one that is behind is brought a window forward,
        all that it counts now then being its earlier window.
        """
        behind, ahead = sorted((self._seen(state, now_ns), self._seen(other, now_ns)))
        if not any(ahead[1:]) or not any(behind[1:]):
            return _state(*(behind if any(behind[1:]) else ahead))
        half_ns = self.period_ns // 2
        if ahead[0] - behind[0] > half_ns and now_ns - behind[0] >= half_ns:
            behind = behind[0] + self.period_ns, min(self._spent(behind, now_ns), COUNTS), 0
        start_ns, previous, current = map(max, behind, ahead)
        return _state(start_ns, previous, current)


def _weighed(previous: int, age_ns: int, period_ns: int) -> int:
    """What of an earlier window's count is still in sight, rounded up."""
    return -(-previous * (period_ns - max(0, age_ns)) // period_ns)


def _state(start_ns: int, previous: int, current: int) -> int:
    return start_ns << 2 * COUNT_BITS | previous << COUNT_BITS | current
