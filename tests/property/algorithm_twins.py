"""Algorithms that are too simple to be wrong: fractions of tokens, lists of grants, nothing packed, nothing forgotten.

A twin knows what counts and not what is allowed: that is the same sum for all of them.
"""

from collections.abc import Callable, Hashable
from datetime import UTC, datetime, tzinfo
from fractions import Fraction
from typing import Protocol
from zoneinfo import ZoneInfo

from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import BUCKETS, Limit

SECOND_NS = 1_000_000_000


class Twin(Protocol):
    """What one key has had."""

    def counted(self, now_ns: int) -> Fraction:
        """Tokens that count now."""

    def spend(self, cost: int, now_ns: int) -> None:
        """A cost was granted."""

    def give_back(self, cost: int, now_ns: int) -> None:
        """As much of it as counts was given back, the newest first."""

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """Other numbers from now on."""


def capacity(limit: Limit, multiplier_ppm: int, parts: int) -> int:
    """In whole tokens."""
    most = limit.burst if limit.algorithm in BUCKETS else limit.count
    return max(1, int(Fraction(most * multiplier_ppm, PPM * parts)))


class BucketTwin:
    """A level, settled at every event."""

    def __init__(self) -> None:
        self.level, self.rate, self.since_ns = Fraction(0), Fraction(0), 0

    def counted(self, now_ns: int) -> Fraction:
        return max(Fraction(0), self.level - self.rate * (now_ns - self.since_ns))

    def _settle(self, now_ns: int) -> None:
        self.level, self.since_ns = self.counted(now_ns), now_ns

    def spend(self, cost: int, now_ns: int) -> None:
        self._settle(now_ns)
        self.level += cost

    def give_back(self, cost: int, now_ns: int) -> None:
        self._settle(now_ns)
        self.level = max(Fraction(0), self.level - cost)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        self._settle(now_ns)
        self.rate = Fraction(limit.count * multiplier_ppm, limit.period_s * SECOND_NS * PPM * parts)


class Grants:
    """A list of (time, cost); `counts` says which of them do."""

    def __init__(self) -> None:
        self.grants: list[tuple[int, int]] = []

    def counts(self, then_ns: int, now_ns: int) -> bool:
        raise NotImplementedError

    def counted(self, now_ns: int) -> Fraction:
        return Fraction(sum(cost for then_ns, cost in self.grants if self.counts(then_ns, now_ns)))

    def spend(self, cost: int, now_ns: int) -> None:
        self.grants.append((now_ns, cost))

    def give_back(self, cost: int, now_ns: int) -> None:
        for index in reversed(range(len(self.grants))):
            then_ns, spent = self.grants[index]
            back = min(cost, spent) if self.counts(then_ns, now_ns) else 0
            self.grants[index] = then_ns, spent - back
            cost -= back

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        self.period_ns = limit.period_s * SECOND_NS


class LogTwin(Grants):
    def counts(self, then_ns: int, now_ns: int) -> bool:
        return now_ns - then_ns < self.period_ns


class FixedTwin(Grants):
    """`window_of` names the window of a wall time; `wall_ns` is what the wall shows at 0."""

    def __init__(self, window_of: Callable[[int], Hashable], wall_ns: int) -> None:
        super().__init__()
        self.window_of, self.wall_ns = window_of, wall_ns

    def counts(self, then_ns: int, now_ns: int) -> bool:
        return self.window_of(then_ns + self.wall_ns) == self.window_of(now_ns + self.wall_ns)


class SlidingTwin(Grants):
    """Windows as a list of (start, index of the first grant in it); each follows upon the last while that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[int, int]] = []

    def _weight(self, index: int, now_ns: int) -> Fraction:
        start_ns = max((start_ns for start_ns, first in self.starts if first <= index), default=now_ns)
        age = Fraction(now_ns - start_ns, self.period_ns)
        return Fraction(1) if age < 1 else max(Fraction(0), 2 - age)

    def counts(self, then_ns: int, now_ns: int) -> bool:
        raise NotImplementedError

    def counted(self, now_ns: int) -> Fraction:
        weighed = (cost * self._weight(index, now_ns) for index, (_, cost) in enumerate(self.grants) if cost)
        return sum(weighed, Fraction(0))

    def spend(self, cost: int, now_ns: int) -> None:
        if not self.counted(now_ns):
            self.starts.append((now_ns, len(self.grants)))
        elif now_ns - self.starts[-1][0] >= self.period_ns:
            self.starts.append((self.starts[-1][0] + self.period_ns, len(self.grants)))
        super().spend(cost, now_ns)

    def give_back(self, cost: int, now_ns: int) -> None:
        for index in reversed(range(len(self.grants))):
            then_ns, spent = self.grants[index]
            back = min(cost, spent) if self._weight(index, now_ns) else 0
            self.grants[index] = then_ns, spent - back
            cost -= back


def calendar_window(unit: str, timezone: str | None) -> Callable[[int], Hashable]:
    """Names the local day, week or month of a wall time."""
    zone: tzinfo = UTC if timezone is None else ZoneInfo(timezone)

    def window(wall_ns: int) -> Hashable:
        local = datetime.fromtimestamp(wall_ns // SECOND_NS, zone)
        if unit == "day":
            return local.date()
        return local.isocalendar()[:2] if unit == "week" else (local.year, local.month)

    return window


def twin_of(limit: Limit, wall_ns: int) -> Twin:
    """The twin of what the limit names; `wall_ns` is what the wall shows at 0."""
    if limit.algorithm in BUCKETS:
        return BucketTwin()
    if limit.algorithm == "sliding_window":
        return SlidingTwin()
    if limit.algorithm == "sliding_log":
        return LogTwin()
    if limit.calendar:
        return FixedTwin(calendar_window(limit.calendar, limit.timezone), wall_ns)
    return FixedTwin(lambda then_ns: then_ns // (limit.period_s * SECOND_NS), wall_ns)
