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
"""

from __future__ import annotations

from math import gcd

UNIT = 3_600_000_000_000
"""Units in one token: the nanoseconds of an hour, so that N per s, m or h is a whole number of units per ns.

Small enough that states fit 60 bits (the 32-byte integers of CPython) up to a burst of 160,000; larger ones are as
exact and take 16 bytes a key more.
"""

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


def slope(count: int, period_s: int, multiplier_ppm: int = PPM) -> tuple[int, int]:
    """Units per nanosecond of `count` tokens per `period_s` seconds, scaled, as a reduced ratio (num, den)."""
    num = count * (UNIT // 1_000_000_000) * multiplier_ppm
    den = period_s * PPM
    common = gcd(num, den)
    return num // common, den // common
