"""The face that all algorithms show: pure arithmetic on what one key has had under one limit.

An `Algorithm` holds a limit's numbers; the state of each key is a small immutable value that whoever uses the algorithm
keeps, and None stands for a key of which nothing counts any more. Time comes in as the owner's monotonic nanoseconds.

What holds for each of them:
- A denied check, and a peek, leave the state as it was.
- A change of numbers keeps what every key has spent: remaining = new capacity - spent.
- `pack` tells a state to another node in tokens and durations, never in points of time.
- `merge` of two states of one key never forgets a grant that either knew of, and of a state with itself adds nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from limiter_node.core.limits import Limit

State = Any
"""What a key has had: each algorithm's own, immutable, and never None."""


class Decision(NamedTuple):
    """What an algorithm says to a cost."""

    allowed: bool
    state: State | None  # after it
    remaining: int  # whole tokens left after it, 0 or more
    reset_ns: int  # until nothing counts any more
    retry_ns: int  # until this cost would be allowed; 0 when it is; `model.NEVER` when it never can be
    wait_ns: int | None = None  # how long the caller is to hold back what was granted; None: it is not asked to


class Wall:
    """What the wall shows: nanoseconds since 1970 in UTC are the monotonic clock's plus `offset_ns`."""

    __slots__ = ("offset_ns",)

    def __init__(self, offset_ns: int = 0) -> None:
        self.offset_ns = offset_ns


class Algorithm(Protocol):
    """One limit at `multiplier_ppm` millionths of its numbers, and of that one of `parts` equal shares."""

    tokens: int
    """Capacity in whole tokens, at least 1: what a verdict calls `limit`."""

    def set_numbers(self, limit: Limit, multiplier_ppm: int, parts: int, now_ns: int) -> None:
        """Other numbers from now on, of a limit with the same algorithm, period, calendar and time zone."""

    def decide(self, state: State | None, cost: int, now_ns: int) -> Decision:
        """Spend `cost` whole tokens if they are there; cost 0 spends nothing and says what cost 1 would get."""

    def spent(self, state: State | None, now_ns: int) -> int:
        """Whole tokens that count against the key now, rounded up."""

    def charge(self, state: State | None, cost: int, now_ns: int) -> State:
        """The state with `cost` more whole tokens spent, even if it is then over the capacity."""

    def refund(self, state: State | None, cost: int, now_ns: int) -> State | None:
        """The state with `cost` whole tokens given back, the newest first; never more than were spent."""

    def full_in_ns(self, state: State, now_ns: int) -> int:
        """Nanoseconds until nothing counts any more; 0 when nothing does."""

    def horizon(self, now_ns: int) -> int:
        """A mark beyond which no state counts that was made until now, whatever numbers there will be meanwhile."""

    def is_past(self, horizon: int, now_ns: int) -> bool:
        """Whether such a mark has been reached."""

    def pack(self, state: State, now_ns: int) -> list[int] | None:
        """The state for another node, as integers below 2^63; None when nothing counts any more."""

    def unpack(self, packed: list[int], period_s: int, now_ns: int) -> State | None:
        """A state that another node, or another limit of this algorithm, packed; `period_s` is of its limit.

        Raises ValueError for what no `pack` makes.
        """

    def merge(self, state: State, other: State, now_ns: int) -> State:
        """The least state in which at least as much counts as in either, now and later."""
