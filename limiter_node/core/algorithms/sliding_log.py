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
from collections import Counter
from itertools import accumulate, chain, repeat
from operator import sub
from typing import TYPE_CHECKING

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.algorithms.token_bucket import whole_share
from limiter_node.core.limits import LOG_COUNT_MAX
from limiter_node.core.model import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

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
            log = state = self.charge(log, cost, now_ns)
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

    def charge(self, state: array[int] | None, cost: int, now_ns: int) -> array[int]:
        """As `Algorithm` has it; of more than any limit the newest tell as much."""
        log = _q(0) if state is None else state
        grants, granted = len(log) // 2, log[-1] + min(cost, LOG_COUNT_MAX)
        kept = bisect_left(log, granted - LOG_COUNT_MAX, grants + self._first(log, now_ns))
        # A clock that was read before the last grant's must not bring the times out of order.
        then_ns = max(now_ns, log[grants - 1]) if grants else now_ns
        return log[kept - grants : grants] + _q(then_ns) + log[kept:] + _q(granted)

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

    def horizon(self, now_ns: int) -> int:
        """As `Algorithm` has it: a time."""
        return now_ns + self.period_ns

    def is_past(self, horizon: int, now_ns: int) -> bool:
        """As `Algorithm` has it."""
        return now_ns >= horizon

    def pack(self, state: array[int], now_ns: int) -> list[int] | None:
        """[age in nanoseconds, cost, age, cost, ...] of each grant that counts, the newest first."""
        first = self._first(state, now_ns)
        times = state[first : len(state) // 2]
        packed = [0] * (2 * len(times))
        packed[::2] = [now_ns - then_ns if then_ns < now_ns else 0 for then_ns in reversed(times)]
        packed[1::2] = _costs(state, first)[::-1]
        return packed or None

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> array[int] | None:
        """As `Algorithm` has it; ages mean the same whatever the period."""
        ages, costs = packed[::2], packed[1::2]
        if not len(ages) == len(costs) > 0 or ages != sorted(ages) or ages[0] < 0 or ages[-1] >= period_s * 10**9:
            raise ValueError(f"{ages}: no ages below {period_s} s, the newest first, one a cost")
        if sum(costs) > LOG_COUNT_MAX or min(costs) < 1:
            raise ValueError(f"{costs}: no costs; allowed: 1 or more each, {LOG_COUNT_MAX} in all")
        counting = bisect_left(ages, self.period_ns)
        times = [now_ns - age for age in reversed(ages[:counting])]
        return _log(times, costs[:counting][::-1]) if times else None

    def merge(self, state: array[int], other: array[int], now_ns: int) -> array[int]:
        """As `Algorithm` has it: a log by which, since any moment, as much was granted as by either since then.

        A grant that both know counts once, for it is part of what each knows to have been granted since then.
        """
        shorter, longer = sorted((self._tokens(state, now_ns), self._tokens(other, now_ns)), key=len)
        older = len(longer) - len(shorter)
        # Of the tokens with the same rank, counted from the newest, the later one.
        costs = Counter(chain(longer[:older], map(max, longer[older:], shorter)))
        return _log(costs, costs.values())

    def _tokens(self, log: array[int], now_ns: int) -> list[int]:
        """When each token was granted that counts, the oldest first."""
        first = self._first(log, now_ns)
        return [*chain.from_iterable(map(repeat, log[first : len(log) // 2], _costs(log, first)))]


def _q(value: int) -> array[int]:
    return array("q", (value,))


def _costs(log: array[int], first: int) -> list[int]:
    """Of the grants from that index on."""
    granted = log[len(log) // 2 + first :]
    return [*map(sub, granted[1:], granted)]


def _log(times: Iterable[int], costs: Iterable[int]) -> array[int]:
    """The log of grants, oldest first."""
    return array("q", [*times, *accumulate(costs, initial=0)])
