"""What a backend is taken to be able to answer, per second: read off its answers while it is busy, tried out otherwise.

Answers per second are a measure of capacity only while checks wait, since otherwise they are as many as were admitted.
The last such measure is the ceiling: below it growth may be quick, past it slow and then ever quicker, so that what is
tried overshoots by a few per cent where nothing has changed, and finds a capacity that is back within seconds.
"""

from __future__ import annotations

from collections import deque

GUARDED_TICKS = 6
"""Where guards on the nodes let through what is answered, the second most of so many seconds is the capacity: what they
turn away too much for a moment must not become a cut for all, nor one second's noise a promise."""

GUARDED_STEP = 0.93
UNHELD_STEP = 0.85
"""The most that is taken back in such a tick, while they hold the latency and while they do not."""

WEIGHT_UP = 0.7
WEIGHT_DOWN = 0.4
"""Of the newest second in the capacity: noise of a second at 100/s is 10 %; more than was thought proves itself."""

UNKNOWN_STEP = 0.7
"""A tick, while most outcomes are timeouts: then nothing can be read off the answers."""

GROWTH_START = 0.02
GROWTH_FACTOR = 1.5
GROWTH_MAX = 1.0
"""A tick: 2 % more, then 3 %, up to twice as much."""

GROWTH_NEAR_GUARDED = 0.1
PAST_CEILING = 1.3
GROWTH_START_GUARDED = 0.5
"""Where guards on the nodes catch what is too much, trying costs little: a tenth up to 1.3 times the ceiling, half
and more beyond."""

BELOW_CEILING = 0.95
BELOW_GROWTH = 0.5
"""Two or three ticks from a cut to the capacity known."""


class Capacity:
    """C, in checks per second, and how it grows."""

    def __init__(self) -> None:
        self.value = 0.0
        self._ceiling = 0.0  # the last measure under a queue; 0: none
        self._growth = GROWTH_START
        self._guarded: deque[float] = deque(maxlen=GUARDED_TICKS)

    def begin(self, value: float) -> None:
        """Start anew, from what is known now."""
        self.value = value
        self._ceiling = 0.0
        self._growth = GROWTH_START
        self._guarded.clear()

    def measure(self, answers_s: float) -> None:
        """Take what was answered while checks waited."""
        self.value += (answers_s - self.value) * (WEIGHT_UP if answers_s > self.value else WEIGHT_DOWN)
        self._ceiling = self.value
        self._growth = GROWTH_START

    @property
    def usual(self) -> float:
        """What is published where guards bind: the mean of those seconds, which noise moves least, and C at most."""
        return min(self.value, sum(self._guarded) / len(self._guarded)) if self._guarded else self.value

    def see(self, answers_s: float) -> None:
        """Remember a tick under guards."""
        self._guarded.append(answers_s)

    def follow(self, *, is_held: bool) -> None:
        """Take what was answered while guards held the queue short, or tried to."""
        step = GUARDED_STEP if is_held else UNHELD_STEP
        self.value = max(sorted(self._guarded)[-2:][0], step * self.value)
        self._ceiling = self.value
        self._growth = GROWTH_START

    def doubt(self) -> None:
        """It is less, by nobody knows how much."""
        self.value *= UNKNOWN_STEP
        self._ceiling = self.value
        self._growth = GROWTH_START

    def pause(self) -> None:
        """Something is not well: the next growth starts slowly."""
        self._growth = GROWTH_START

    def grow(self, answers_s: float, *, is_guarded: bool) -> None:
        """All is well, and more is wanted."""
        if self.value < BELOW_CEILING * self._ceiling:
            self.value = min(self.value * (1 + BELOW_GROWTH), self._ceiling)
            return
        if is_guarded:
            known = self.value < PAST_CEILING * self._ceiling
            self._growth = GROWTH_NEAR_GUARDED if known else max(self._growth, GROWTH_START_GUARDED)
        self.value = max(self.value, answers_s) * (1 + self._growth)
        self._growth = min(self._growth * GROWTH_FACTOR, GROWTH_MAX)
