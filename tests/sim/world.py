"""Virtual time: one heap of events, one seed, one thread.

Decides what happens next and nothing else: no clock, loop or thread is asked. Events of equal time are taken by
lane, then in order of their making; a lane is one source of events (a link, a node's timers), so that the order in
which a set was walked, which differs from process to process, never shows. Every source draws from a random
stream of its own, named after it: one more fault does not shuffle all the others.

Invariant: the same seed and the same scenario give the same steps, and `fingerprint` proves it.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

TAIL_LINES = 60
"""Last lines of the trace that a failure prints: some 50 ms of a busy fleet."""


class Event:
    """Something that will happen, unless it is cancelled first."""

    __slots__ = ("act", "is_cancelled", "lane")

    def __init__(self, lane: str, act: Callable[[], None]) -> None:
        self.lane = lane
        self.act = act
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """True time and everything that is going to happen in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.steps = 0
        self.jumped_ns = 0  # what clocks have gained at once, all together
        self.after_step: Callable[[], None] = lambda: None
        self._heap: list[tuple[int, str, int, Event]] = []
        self._made = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._notes: list[str] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def at(self, at_ns: int, lane: str, act: Callable[[], None]) -> Event:
        """Have `act` happen at a true time, not before the present one."""
        event = Event(lane, act)
        self._made += 1
        heapq.heappush(self._heap, (max(at_ns, self.now_ns), lane, self._made, event))
        return event

    def after(self, delay_ns: int, lane: str, act: Callable[[], None]) -> Event:
        """Have `act` happen `delay_ns` of true time from now."""
        return self.at(self.now_ns + delay_ns, lane, act)

    def rng(self, name: str) -> random.Random:
        """The random stream of one source; the same for the same name, whatever else draws."""
        return random.Random(f"{self.seed}/{name}")

    def note(self, text: str) -> None:
        """Put a line into the trace."""
        self._notes.append(text)

    def run(self, until_ns: int) -> None:
        """Let everything happen that is due before `until_ns`."""
        while self._heap and self._heap[0][0] < until_ns:
            self.now_ns, lane, _, event = heapq.heappop(self._heap)
            if event.is_cancelled:
                continue
            self.steps += 1
            try:
                event.act()
                self.after_step()
            finally:
                self._write_notes(lane)
        self.now_ns = until_ns

    def fingerprint(self) -> str:
        """A hash of every step so far."""
        return self._hash.hexdigest()

    def tail(self) -> str:
        """The last lines of the trace."""
        return "\n".join(self._tail)

    def _write_notes(self, lane: str) -> None:
        # Sorted: within a step, a node may tell of several links in the order of a set.
        line = " | ".join([f"{self.now_ns:>14,} {lane}", *sorted(self._notes)])
        if self._notes:
            self._tail.append(line)
            self._notes.clear()
        self._hash.update(line.encode())
