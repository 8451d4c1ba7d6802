"""The backlog: reads that wait to be handled, which of them is next, and which have waited too long.

Pure; time is handed in. The rule is CoDel's (RFC 8289) as Facebook applies it to requests (B. Maurer, "Fail at Scale",
ACM Queue 13/8, 2015), with its adaptive LIFO:

    as long as anything is taken within DELAY_MAX_NS, the queue is a burst that drains: the oldest goes first, nothing
    is refused. Once nothing has been for STANDING_NS, the queue stands, and the node sheds: the newest goes first,
    since whoever sent the oldest has stopped waiting, and what has waited for longer than DELAY_MAX_NS is refused.
    That lasts until nothing had to be refused for CALM_NS.

A closed loop of clients who wait for their answers does not get there by keeping the node busy: with 500 connections
a check waits for 7 ms. It takes 1,500, or clients who send more than the node can do whatever it answers.

Invariant: what was put in is taken out once, decided or refused; nothing is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")

DELAY_MAX_NS = 20_000_000
"""The time that Envoy gives a rate limit service unless told otherwise, and a fifth of the default peer timeout."""

STANDING_NS = 100_000_000
"""CoDel's interval. Pauses of the interpreter and of a crowded machine are shorter, or are over at once."""

CROWD_MIN = 100
"""So many must wait for the queue to count as standing: a few clients who each send much wait for themselves. CoDel has
the same rule for queues shorter than a packet."""

CALM_NS = 1_000_000_000
"""The shortest Retry-After: by then those who were refused are back."""


class Backlog(Generic[Item]):
    """What waits, in the order in which it came."""

    def __init__(self) -> None:
        self.is_shedding = False
        self._waiting: deque[tuple[int, Item]] = deque()  # since when, and what
        self._standing_ns = 0  # since when nothing was taken in time; 0: the last one was
        self._late_ns = 0  # when it last had to refuse something

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_uneasy(self) -> bool:
        """Whether something waits, or has just waited for long."""
        return bool(self._waiting or self._standing_ns or self.is_shedding)

    def put(self, item: Item, since_ns: int) -> None:
        """Have it wait; what it brings has come in at `since_ns` at the earliest."""
        self._waiting.append((since_ns, item))

    def take(self, now_ns: int) -> tuple[Item, bool]:
        """What is to be handled next, of what there is, and whether it is to be refused."""
        is_crowd = len(self._waiting) >= CROWD_MIN
        since_ns, item = self._waiting.pop() if self.is_shedding else self._waiting.popleft()
        is_late = now_ns - since_ns > DELAY_MAX_NS
        if self.is_shedding:
            self._late_ns = now_ns if is_late else self._late_ns
        else:
            self._judge(now_ns, is_standing=is_late and is_crowd)
        return item, is_late and self.is_shedding

    def take_late(self, now_ns: int) -> Item | None:
        """The oldest, if it is to be refused."""
        if not self.is_shedding or not self._waiting or now_ns - self._waiting[0][0] <= DELAY_MAX_NS:
            return None
        self._late_ns = now_ns
        return self._waiting.popleft()[1]

    def settle(self, now_ns: int) -> None:
        """Stop shedding after a time of calm; to be called about once a second."""
        if self.is_shedding and now_ns - self._late_ns > CALM_NS:
            self.is_shedding = False
            self._standing_ns = 0

    def _judge(self, now_ns: int, *, is_standing: bool) -> None:
        if not is_standing:
            self._standing_ns = 0
        elif not self._standing_ns:
            self._standing_ns = now_ns
        elif now_ns - self._standing_ns >= STANDING_NS:
            self.is_shedding = True
            self._late_ns = now_ns
