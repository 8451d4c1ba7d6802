"""The sliding log: every grant of the last period, with its time and cost. Exact.

    allow iff (tokens granted less than a period ago) + cost <= limit

What it promises: at most the limit in any period whatever; a denial tells the very nanosecond at which the cost will
fit. What it costs: 16 bytes a grant and 88 a key, so 16 KB for a key that is at a limit of 1,000, which is why
`limits.LOG_COUNT_MAX` is that; a decision searches in O(log n), a grant copies the log, as states are immutable: 1.5 us
more at 1,000 than at 10. Where it errs: nowhere. Choose it where each grant counts and they are few: log-ins, messages
to a phone, payments. It is the definition that the other algorithms approximate.

A state is an array: the times of the grants, oldest first; then, for each, how much had been granted before it; then
how much has been granted in all. Both parts only rise, so that all searches are bisections.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.algorithms.token_bucket import whole_share
from limiter_node.core.limits import LOG_COUNT_MAX
from limiter_node.core.model import NEVER

if TYPE_CHECKING:
    from limiter_node.core.limits import Limit


class SlidingLog:
    """A log of grants; a state is such an array, never written to once it is made."""

    __slots__ = ("limit", "period_ns", "tokens")

    def __init__(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        self.period_ns = limit.period_s * 1_000_000_000
        self.set_numbers(limit, multiplier_ppm, parts, now_ns)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """As `Algorithm` has it."""
        self.limit = limit
        self.tokens = whole_share(limit.count, multiplier_ppm, parts)

    def _first(self, log: array[int], now_ns: int) -> int:
        """The index of the first grant that counts."""
        return bisect_right(log, now_ns - self.period_ns, 0, len(log) // 2)

    def decide(self, state: array[int] | None, cost: int, now_ns: int) -> Decision:
        """As `Algorithm` has it."""
        log = _q(0) if state is None else state
        grants, first = len(log) // 2, self._first(log, now_ns)
        spent = log[-1] - log[grants + first]
        ask = cost or 1
        if spent + ask > self.tokens:
            retry_ns = NEVER if cost > self.limit.count else self._fits_in_ns(log, ask, now_ns)
            return Decision(False, state, max(0, self.tokens - spent), self._full_in_ns(log, now_ns), retry_ns)
        if cost:
            # A clock that was read before the last grant's must not bring the times out of order.
            then_ns = max(now_ns, log[grants - 1]) if grants else now_ns
            log = state = log[first:grants] + _q(then_ns) + log[grants + first :] + _q(log[-1] + cost)
            spent += cost
        return Decision(True, state, self.tokens - spent, self._full_in_ns(log, now_ns), 0)

    def _fits_in_ns(self, log: array[int], cost: int, now_ns: int) -> int:
        """Until a cost that is denied now fits: until enough of the oldest grants are out of sight."""
        if cost > self.tokens:
            return self.period_ns  # not at this multiplier
        grants = len(log) // 2
        gone = bisect_left(log, log[-1] + cost - self.tokens, grants) - grants
        return log[gone - 1] + self.period_ns - now_ns

    def _full_in_ns(self, log: array[int], now_ns: int) -> int:
        grants = len(log) // 2
        return max(0, log[grants - 1] + self.period_ns - now_ns) if grants else 0

    def spent(self, state: array[int] | None, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return 0 if state is None else state[-1] - state[len(state) // 2 + self._first(state, now_ns)]

    def refund(self, state: array[int] | None, cost: int, now_ns: int) -> array[int] | None:
        """As `Algorithm` has it."""
        if state is None:
            return None
        grants, first = len(state) // 2, self._first(state, now_ns)
        granted = state[-1] - cost
        kept = bisect_left(state, granted, grants + first) - grants
        if kept == first:
            return None
        return state[first:kept] + state[grants + first : grants + kept] + _q(granted)

    def full_in_ns(self, state: array[int], now_ns: int) -> int:
        """As `Algorithm` has it."""
        return self._full_in_ns(state, now_ns)

    @property
    def memory_ns(self) -> int:
        """As `Algorithm` has it."""
        return self.period_ns

    def pack(self, state: array[int], now_ns: int) -> list[int] | None:
        """[age in nanoseconds, cost, age, cost, ...] of each grant that counts, the newest first."""
        grants, first = len(state) // 2, self._first(state, now_ns)
        packed: list[int] = []
        for index in range(grants - 1, first - 1, -1):
            packed += max(0, now_ns - state[index]), state[grants + index + 1] - state[grants + index]
        return packed or None

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> array[int] | None:
        """As `Algorithm` has it; ages mean the same whatever the period."""
        ages, costs = packed[::2], packed[1::2]
        if len(ages) != len(costs) or ages != sorted(ages) or not all(0 <= age < period_s * 10**9 for age in ages):
            raise ValueError(f"{ages}: no ages below {period_s} s, the newest first, one a cost")
        if sum(costs) > LOG_COUNT_MAX or not all(cost > 0 for cost in costs):
            raise ValueError(f"{costs}: no costs; allowed: 1 or more each, {LOG_COUNT_MAX} in all")
        grants = [(now_ns - age, cost) for age, cost in zip(ages, costs, strict=True) if age < self.period_ns]
        return _of_newest_first(grants) if grants else None

    def merge(self, state: array[int], other: array[int], now_ns: int) -> array[int]:
        """As `Algorithm` has it: a log by which, since any moment, as much was granted as by either since then.

        A grant that both know counts once, for it is part of what each knows to have been granted since then.
        """
        most = 0
        newest_first: list[tuple[int, int]] = []
        for then_ns in sorted({*self._times(state, now_ns), *self._times(other, now_ns)}, reverse=True):
            granted = max(_granted_since(state, then_ns), _granted_since(other, then_ns))
            if granted > most:
                newest_first.append((then_ns, granted - most))
                most = granted
        return _of_newest_first(newest_first)

    def _times(self, log: array[int], now_ns: int) -> array[int]:
        return log[self._first(log, now_ns) : len(log) // 2]


def _q(value: int) -> array[int]:
    return array("q", (value,))


def _of_newest_first(grants: list[tuple[int, int]]) -> array[int]:
    """The log of (time, cost) pairs."""
    grants = grants[::-1]
    granted = accumulate((cost for _, cost in grants), initial=0)
    return array("q", (*(then_ns for then_ns, _ in grants), *granted))


def _granted_since(log: array[int], then_ns: int) -> int:
    """Tokens granted at `then_ns` or after."""
    grants = len(log) // 2
    return log[-1] - log[grants + bisect_left(log, then_ns, 0, grants)]
