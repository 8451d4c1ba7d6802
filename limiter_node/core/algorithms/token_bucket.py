"""The token bucket as one integer per key, against a virtual clock shared by all keys of a plan.

The clock V counts what the plan has refilled since an origin; it is piecewise linear, its slope the plan's
present rate. A key's state is the reading of V at which its bucket will be full again:

    spent = max(0, state - V)
    allow iff spent + cost <= capacity;   then state <- V + spent + cost

This is GCRA (the virtual scheduling of ATM Forum TM 4.0, 4.4.2) counted in tokens instead of time. What it promises:
in any window of t seconds at most burst + rate x t tokens, at any concurrency. What it costs: one machine integer per
key. What it buys: a change of rate touches one clock, not a million buckets, and refill before the change counts at
the old rate; a change of burst keeps what was spent; a state at or below V is a full bucket, and forgetting it loses
nothing. Choose it unless you need a calendar window.

Everything is counted in integer units of 1/UNIT token, so nothing is ever rounded for rates per second, minute or hour.
For other periods and for multipliers below 1 the clock rounds down by less than one unit: a token comes early by less
than 3e-13 of itself, and errors do not add up.

`TokenBucket` is the same law with the face of all algorithms, for rules of several limits. Its clock runs from when the
rule came into force, so that a state takes 32 bytes at first and 48 once V has passed 2^60.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from limiter_node.core.algorithms.face import Decision
from limiter_node.core.model import DURATION_MAX_NS, MICROS, NEVER

if TYPE_CHECKING:
    from limiter_node.core.limits import Limit

UNIT = 3_600_000_000_000
"""Units in one token: the nanoseconds of an hour, so that N per s, m or h is a whole number of units per ns.

Small enough that states fit 60 bits (the 32-byte integers of CPython) up to a burst of 160,000; larger ones are as
exact and take 16 bytes a key more.
"""

UNITS_PER_MICRO = UNIT // MICROS

PPM = 1_000_000
"""Multipliers are counted in millionths, so that the slope stays a ratio of integers."""


def take(state: int, v: int, cost: int, capacity: int) -> tuple[bool, int]:
    """Decide a cost (units) against a state; returns (allowed, units spent after the decision).

    A denial leaves `spent` as it was. The new state of a bucket is `v + spent`.
    """
    spent = state - v if state > v else 0
    if spent + cost <= capacity:
        return True, spent + cost
    return False, spent


def compact(state: int) -> int:
    """The same state in memory of its own size: 16 bytes a key less.

    CPython adds into room for a carry digit and keeps that room: a sum of two digits lives in 48 bytes, not in the 32
    that `sys.getsizeof` tells. A bitwise operation makes an integer of exactly the digits that it needs.
    """
    return state | 0


class VirtualClock:
    """V(now): units refilled since the origin, at `num / den` units per nanosecond.

    Invariant: V never goes backwards while `now_ns` does not, whatever the rate is changed to.
    """

    __slots__ = ("base", "den", "num", "since_ns")

    def __init__(self, now_ns: int, num: int, den: int) -> None:
        self.base = 0
        self.since_ns = now_ns
        self.num = num
        self.den = den

    def at(self, now_ns: int) -> int:
        """Units refilled up to `now_ns`; a time before the last change counts as that change's."""
        elapsed_ns = now_ns - self.since_ns
        return self.base + elapsed_ns * self.num // self.den if elapsed_ns > 0 else self.base

    def set_rate(self, now_ns: int, num: int, den: int) -> None:
        """Refill at `num / den` units per nanosecond from `now_ns` on."""
        self.base = self.at(now_ns)
        self.since_ns = max(now_ns, self.since_ns)
        self.num = num
        self.den = den

    def ns_until(self, v: int, now_ns: int) -> int:
        """Nanoseconds from `now_ns` until the clock reads `v`: the exact first one, 0 when it already does."""
        missing = v - self.base
        if missing <= 0:
            return 0
        reached_ns = self.since_ns - (-missing * self.den // self.num)
        return max(0, reached_ns - now_ns)


def in_micros(units: int) -> list[int]:
    """Units as [millionths of a token, units beyond them]: each fits a frame, whose integers are below 2^63."""
    return [*divmod(units, UNITS_PER_MICRO)]


def in_units(values: list[int]) -> int:
    """What was packed so; raises ValueError for what was not."""
    micros, units = values
    if micros < 0 or not 0 <= units < UNITS_PER_MICRO:
        raise ValueError(f"{values}; allowed: 0 or more millionths of a token, and units of less than one")
    return micros * UNITS_PER_MICRO + units


def slope(count: int, period_s: int, multiplier_ppm: int = PPM) -> tuple[int, int]:
    """Units per nanosecond of `count` tokens per `period_s` seconds, scaled, as a reduced ratio (num, den)."""
    num = count * (UNIT // 1_000_000_000) * multiplier_ppm
    den = period_s * PPM
    common = gcd(num, den)
    return num // common, den // common


def whole_share(tokens: int, multiplier_ppm: int, parts: int) -> int:
    """Capacity: `tokens` at a multiplier, and of that one of `parts` shares; in whole tokens, at least 1."""
    return max(1, tokens * multiplier_ppm // (PPM * parts))


class TokenBucket:
    """A bucket under one of several limits; a state is the reading of `clock` at which it is full again."""

    __slots__ = ("_full_by", "capacity", "clock", "limit", "tokens")

    def __init__(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        self.clock = VirtualClock(now_ns, 1, 1)
        self.capacity = 0
        # Smaller numbers, and other nodes, leave states that are further from full than the capacity: none is later.
        self._full_by = 0
        self.set_numbers(limit, multiplier_ppm, parts, now_ns)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """As `Algorithm` has it; what was refilled before counts at the rate of then."""
        self.limit = limit
        self.clock.set_rate(now_ns, *slope(limit.count, limit.period_s * parts, multiplier_ppm))
        self._full_by = max(self._full_by, self.clock.at(now_ns) + self.capacity)
        self.tokens = whole_share(limit.burst, multiplier_ppm, parts)
        self.capacity = self.tokens * UNIT

    def decide(self, state: int | None, cost: int, now_ns: int) -> Decision:
        """As `Algorithm` has it."""
        clock = self.clock
        v = clock.at(now_ns)
        units = (cost or 1) * UNIT
        allowed, spent = take(v if state is None else state, v, units, self.capacity)
        retry_ns = 0
        if not allowed:
            retry_ns = NEVER if cost > self.limit.burst else self._ns_until(v + spent + units - self.capacity, now_ns)
        elif cost:
            state = v + spent
        else:
            spent -= units
        remaining = max(0, self.capacity - spent) // UNIT
        return Decision(allowed, state, remaining, self._ns_until(v + spent, now_ns), retry_ns)

    def _ns_until(self, v: int, now_ns: int) -> int:
        return min(self.clock.ns_until(v, now_ns), DURATION_MAX_NS)

    def _units(self, state: int | None, now_ns: int) -> int:
        return 0 if state is None else max(0, state - self.clock.at(now_ns))

    def spent(self, state: int | None, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return -(-self._units(state, now_ns) // UNIT)

    def charge(self, state: int | None, cost: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        state = self.clock.at(now_ns) + self._units(state, now_ns) + cost * UNIT
        self._full_by = max(self._full_by, state)
        return state

    def refund(self, state: int | None, cost: int, now_ns: int) -> int | None:
        """As `Algorithm` has it; what has been refilled since is no longer spent."""
        if state is None or self._units(state, now_ns) <= cost * UNIT:
            return None
        return state - cost * UNIT

    def full_in_ns(self, state: int, now_ns: int) -> int:
        """As `Algorithm` has it."""
        return self._ns_until(state, now_ns)

    def horizon(self, now_ns: int) -> int:
        """As `Algorithm` has it: a reading of the clock."""
        return max(self._full_by, self.clock.at(now_ns) + self.capacity)

    def is_past(self, horizon: int, now_ns: int) -> bool:
        """As `Algorithm` has it."""
        return self.clock.at(now_ns) >= horizon

    def pack(self, state: int, now_ns: int) -> list[int] | None:
        """What is spent, see `in_micros`."""
        units = self._units(state, now_ns)
        return in_micros(units) if units else None

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> int | None:
        """As `Algorithm` has it; what was spent is the same whatever the period."""
        spent = in_units(packed)
        state = self.clock.at(now_ns) + spent
        self._full_by = max(self._full_by, state)
        return state if spent else None

    def merge(self, state: int, other: int, now_ns: int) -> int:
        """As `Algorithm` has it: the bucket that is full later."""
        return max(state, other)
