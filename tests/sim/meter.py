"""The dumb twin of a bucket: how much a key may be granted, counted by the promise and not by the product's code.

The level is the largest excess, over all windows that end now, of what was granted in the window over what the rate
refilled in it. "In any window at most burst + rate x t" is the same as "after every grant, level <= burst", with the
burst and the rates that were in force; `test_meter.py` holds it against the literal definition over all windows.

Everything is an integer of 1/UNIT token per nanosecond, so there is nothing to round.
"""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

PARTS_MAX = 64
_PARTS = lcm(*range(1, PARTS_MAX + 1))
_DAY_S = 86_400
_PPM = 1_000_000

UNIT = _DAY_S * 1_000_000_000 * _PPM * _PARTS
"""Units in a token: N per a whole divisor of a day, times a multiplier, over any number of parts, is a whole slope."""

TOLERANCE = UNIT // 10**9
"""A billionth of a token: far above the product's rounding for multipliers (3e-13), far below what could be spent."""


class Numbers(NamedTuple):
    """What is in force for a bucket: its capacity in units, its refill in units per nanosecond."""

    capacity: int
    slope: int


def numbers(count: int, period_s: int, burst: int, ppm: int = _PPM, parts: int = 1) -> Numbers:
    """`count` tokens per `period_s`, at most `burst`, scaled by a multiplier and divided into equal parts."""
    assert _DAY_S % period_s == 0, f"a period of {period_s} s has no exact slope here"
    tokens = max(1, burst * ppm // (_PPM * parts))
    return Numbers(tokens * UNIT, count * ppm * (_DAY_S // period_s) * (_PARTS // parts))


class Meter:
    """The level of one key."""

    __slots__ = ("level", "local_ns")

    def __init__(self, local_ns: int) -> None:
        self.level = 0
        self.local_ns = local_ns

    def advance(self, local_ns: int, slope: int) -> None:
        """Let time pass at a rate, on the clock of whoever holds the bucket."""
        self.level = max(0, self.level - (local_ns - self.local_ns) * slope)
        self.local_ns = local_ns

    def fits(self, tokens: int, capacity: int, tolerance: int) -> bool:
        """Whether so many tokens more keep the promise, give or take."""
        return self.level + tokens * UNIT <= capacity + tolerance

    def left(self, capacity: int, tolerance: int) -> int:
        """Whole tokens that could be granted now."""
        return max(0, capacity + tolerance - self.level) // UNIT
