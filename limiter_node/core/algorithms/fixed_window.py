"""The fixed window: so many tokens in each window of the wall clock, as quotas are billed.

    allow iff count in this window + cost <= limit;   a new window starts at nothing

Windows are aligned to UTC, or where the period is a day, a week (from Monday) or a month to midnight in the limit's
time zone, so that everybody's begin at once and `reset_ns` is when the quota is there again: the time window of
draft-ietf-httpapi-ratelimit-headers. The window's number goes with the count from node to node.

What it promises: at most the limit in each window. What it costs: one integer a key, 32 bytes up to a count of a
million, 48 above. Where it errs: it looks at no two windows together, so that twice the limit passes around an edge
within an instant: the window-edge attack. And it goes by the wall clock, which people set and which differs by
milliseconds between nodes. Hence: a count of an earlier window is nothing; a key that is one window ahead, since its
last owner's clock is, goes on in that window; one further ahead was told by a clock that was wrong, and is counted in
the present window, until either clock comes there. Choose it for quotas and bills; to protect something choose another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.algorithms.token_bucket import whole_share
from limiter_node.core.algorithms.wall_windows import CalendarWindows, EvenWindows, Windows
from limiter_node.core.model import COST_MAX, NEVER

if TYPE_CHECKING:
    from limiter_node.core.algorithms.face import Wall
    from limiter_node.core.limits import Limit

NUMBER_BITS = 40
"""Of a state, below the count, so that usual ones take 60 bits: seconds are numbered until the year 19000."""

NUMBER_BIAS = 1 << NUMBER_BITS - 1
"""Windows before 1970 are numbered below 0."""

NUMBERS = (1 << NUMBER_BITS) - 1


class FixedWindow:
    """A count in numbered windows; a state is the count and below it the window's number."""

    __slots__ = ("_begin_ns", "_end_ns", "_number", "_wall", "_windows", "limit", "period_s", "tokens")

    def __init__(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int, wall: Wall) -> None:
        self._wall = wall
        self._windows: Windows = (
            CalendarWindows(limit.calendar, limit.timezone) if limit.calendar else EvenWindows(limit.period_s)
        )
        self.period_s = limit.period_s
        # Of the present window, so that to see that it still is takes two comparisons.
        self._number = self._begin_ns = self._end_ns = 0
        self.set_numbers(limit, multiplier_ppm, parts, now_ns)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """As `Algorithm` has it."""
        self.limit = limit
        self.tokens = whole_share(limit.count, multiplier_ppm, parts)

    def _present(self, now_ns: int) -> int:
        """The number of the window in which it is."""
        wall_ns = now_ns + self._wall.offset_ns
        if not self._begin_ns <= wall_ns < self._end_ns:
            self._number = self._windows.number_at(wall_ns)
            self._begin_ns = self._windows.begin_ns(self._number)
            self._end_ns = self._windows.begin_ns(self._number + 1)
        return self._number

    def _counted(self, state: int | None, now_ns: int) -> tuple[int, int]:
        """The window in which a key is, and its count in it."""
        present = self._present(now_ns)
        if state is None:
            return present, 0
        number = (state & NUMBERS) - NUMBER_BIAS
        if number < present:
            return present, 0
        return (number if number == present + 1 else present), state >> NUMBER_BITS

    def _ends_in_ns(self, number: int, now_ns: int) -> int:
        end_ns = self._end_ns if number == self._number else self._windows.begin_ns(number + 1)
        return end_ns - now_ns - self._wall.offset_ns

    def decide(self, state: int | None, cost: int, now_ns: int) -> Decision:
        """As `Algorithm` has it; both to retry and to be full means another window."""
        number, count = self._counted(state, now_ns)
        allowed = count + (cost or 1) <= self.tokens
        if allowed and cost:
            count += cost
            state = _state(number, count)
        ends_in_ns = self._ends_in_ns(number, now_ns)
        retry_ns = 0 if allowed else NEVER if cost > self.limit.count else ends_in_ns
        return Decision(allowed, state, max(0, self.tokens - count), ends_in_ns if count else 0, retry_ns)

    def spent(self, state: int | None, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return self._counted(state, now_ns)[1]

    def charge(self, state: int | None, cost: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        number, count = self._counted(state, now_ns)
        return _state(number, min(count + cost, COST_MAX))

    def refund(self, state: int | None, cost: int, now_ns: int) -> int | None:
        """As `Algorithm` has it; what was spent in an earlier window is not given back in this one."""
        number, count = self._counted(state, now_ns)
        return _state(number, count - cost) if count > cost else None

    def full_in_ns(self, state: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        number, count = self._counted(state, now_ns)
        return self._ends_in_ns(number, now_ns) if count else 0

    def horizon(self, now_ns: int) -> int:
        """As `Algorithm` has it: after this window, and the next for a key that is ahead."""
        return now_ns + 2 * self._windows.longest_ns

    def is_past(self, horizon: int, now_ns: int) -> bool:
        """As `Algorithm` has it; by no wall clock, or keys that one had put far ahead would count until it is there."""
        return now_ns >= horizon

    def pack(self, state: int, now_ns: int) -> list[int] | None:
        """[number of the window, count]."""
        number, count = self._counted(state, now_ns)
        return [number + self._windows.mark, count] if count else None

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> int | None:
        """As `Algorithm` has it.

        A sender that is a window behind tells of a window that is over here. What another clock, or another kind of
        windows, numbered further off counts in the present window.
        """
        number, count = packed
        if not 0 <= count <= COST_MAX:
            raise ValueError(f"count {count}; allowed: 0 to {COST_MAX}")
        present = self._present(now_ns)
        ahead = number - self._windows.mark - present if period_s == self.period_s else None
        if ahead == -1 or not count:
            return None
        return _state(present + 1 if ahead == 1 else present, count)

    def merge(self, state: int, other: int, now_ns: int) -> int:
        """As `Algorithm` has it: in the later of their windows, the larger of the counts."""
        number, count = self._counted(state, now_ns)
        other_number, other_count = self._counted(other, now_ns)
        return _state(max(number, other_number), max(count, other_count))


def _state(number: int, count: int) -> int:
    return count << NUMBER_BITS | number + NUMBER_BIAS
