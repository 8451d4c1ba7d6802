"""Two tests against a wrong diagnosis: do the errors depend on the load, and is the latency a queue's?

An error rate and a latency look the same whether a backend has too much to do or is merely worse than it was.
Throttling helps the one and only costs the other, so that each test compares what a cut brought with what it would
bring in either case. Pure: they are told of ticks and answer.
"""

from __future__ import annotations

from math import log

SURE = 5.0
"""Log of the odds at which a verdict is given: 150 to 1."""

LIMITED_ERRORS_MIN = 0.04
"""Of the admitted: errors that remain below a capacity, so that a few do not speak against it."""

STUCK_P50 = 1.4
"""Times the normal median: below it there is nothing to explain."""

STUCK_TICKS = 4
DRAIN_EVERY_S = 20.0
DRAIN_EVERY_MAX_S = 160.0
"""A test costs 40 % of some two seconds, so after each that found a queue it takes twice as long to the next."""

DRAIN_TICKS = 3
"""A tick and a half of draining, and the rest for answers that were under way to come in."""

DRAINED_P50 = 0.75
"""Of the median before: a queue's falls below it when 40 % less is admitted."""


class ErrorTest:
    """Wald's sequential test of two explanations of errors: a fixed fraction, or all that is above a capacity."""

    def __init__(self, error_rate: float, successes_s: float) -> None:
        self._error_rate = error_rate  # before the cut
        self._successes_s = successes_s
        self._llr = 0.0

    def step(self, admitted_s: float, errors_s: float, span_s: float) -> bool | None:
        """Take a tick after the cut: True when errors depend on the load, False when they do not, None: not yet."""
        limited = max(LIMITED_ERRORS_MIN * admitted_s, admitted_s - self._successes_s) * span_s
        fixed = self._error_rate * admitted_s * span_s
        if limited <= 0 or fixed <= 0:
            return None
        self._llr += errors_s * span_s * log(fixed / limited) - (fixed - limited)
        if self._llr > SURE:
            return False
        if self._llr < -SURE:
            return True
        return None


class DrainTest:
    """Admit much less for a moment: a queue's latency falls, a slow dependency's does not."""

    def __init__(self) -> None:
        self.is_running = False
        self._stuck = 0
        self._every_s = DRAIN_EVERY_S
        self._idle_s = DRAIN_EVERY_S
        self._ticks = 0
        self._before_ms = 0.0

    def wants(self, p50_ms: float, normal_ms: float, span_s: float, *, is_jammed: bool) -> bool:
        """Take a tick; True when it is time to drain."""
        self._idle_s += span_s
        self._stuck = self._stuck + 1 if is_jammed and p50_ms > STUCK_P50 * normal_ms > 0 else 0
        if self._stuck < STUCK_TICKS or self._idle_s < self._every_s:
            return False
        self.is_running = True
        self._stuck = self._ticks = 0
        self._idle_s = 0.0
        self._before_ms = p50_ms
        return True

    def step(self, p50_ms: float) -> bool | None:
        """Take a tick of the drain: True when there was a queue, False when there was none, None: not yet."""
        self._ticks += 1
        if p50_ms <= DRAINED_P50 * self._before_ms:
            self.is_running = False
            self._every_s = min(2 * self._every_s, DRAIN_EVERY_MAX_S)
            return True
        if self._ticks < DRAIN_TICKS:
            return None
        self.is_running = False
        self._every_s = DRAIN_EVERY_S
        return False
