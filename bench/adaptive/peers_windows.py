"""Peers that tell overload by latency and bound what is in flight: Netflix's limits and Envoy's gradient.

Written from the descriptions in adaptive.md section 1. All of them see every request and outcome at once, at the gate
that admitted it. A timeout is a drop with the latency of the time-out.
"""

from __future__ import annotations

from math import ceil, log10, sqrt
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Limit(Protocol):
    """A bound on what is in flight, and how it changes with a sample."""

    limit: float

    def sample(self, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Take a latency, how much was in flight, and whether it was lost."""


class Gradient2:
    """L <- 0.8 L + 0.2 (L clamp(tolerance long / short, 0.5, 1) + queue); drops are ignored."""

    def __init__(
        self, *, initial: float = 20, least: float = 20, most: float = 200, queue: float = 4, tolerance: float = 1.5
    ) -> None:
        self.limit = initial
        self._least, self._most, self._queue, self._tolerance = least, most, queue, tolerance
        self._long_s = 0.0
        self._samples = 0

    def sample(self, rtt_s: float, out: int, *, dropped: bool) -> None:
        """The long average is a plain mean for 10 samples, then exponential over 600."""
        self._samples += 1
        weight = 1 / self._samples if self._samples <= 10 else 2 / 601
        self._long_s += (rtt_s - self._long_s) * weight
        if self._long_s > 2 * rtt_s:
            self._long_s *= 0.95
        if out < self.limit / 2:
            return
        gradient = max(0.5, min(1.0, self._tolerance * self._long_s / rtt_s))
        self.limit = 0.8 * self.limit + 0.2 * (self.limit * gradient + self._queue)
        self.limit = max(self._least, min(self._most, self.limit))


class Vegas:
    """The queue L (1 - rtt0 / rtt) is kept between 3 and 6 log10 L."""

    def __init__(
        self, *, initial: float = 20, most: float = 1000, alpha: float = 3, beta: float = 6, probe: float = 30
    ) -> None:
        self.limit = initial
        self._most, self._alpha, self._beta, self._probe = most, alpha, beta, probe
        self._rtt0_s = 0.0
        self._samples = 0

    def sample(self, rtt_s: float, out: int, *, dropped: bool) -> None:
        """The least latency is forgotten every `probe` times L samples; 0.75 is the mean of its jitter."""
        self._samples += 1
        if self._samples > 0.75 * self._probe * self.limit:
            self._samples, self._rtt0_s = 0, rtt_s
            return
        if not self._rtt0_s or rtt_s < self._rtt0_s:
            self._rtt0_s = rtt_s
            return
        step = max(1.0, log10(self.limit))
        if dropped:
            self.limit -= step
        elif 2 * out < self.limit:
            return
        else:
            queue = ceil(self.limit * (1 - self._rtt0_s / rtt_s))
            if queue <= step:
                self.limit += self._beta * step
            elif queue < self._alpha * step:
                self.limit += step
            elif queue > self._beta * step:
                self.limit -= step
        self.limit = max(1.0, min(self._most, self.limit))


class Aimd:
    """x 0.9 on a drop or a latency above 5 s, else + 1 while at least half is used."""

    def __init__(
        self, *, initial: float = 20, least: float = 20, most: float = 200, slow_s: float = 5.0, backoff: float = 0.9
    ) -> None:
        self.limit = initial
        self._least, self._most, self._slow_s, self._backoff = least, most, slow_s, backoff

    def sample(self, rtt_s: float, out: int, *, dropped: bool) -> None:
        """One sample, one step."""
        if dropped or rtt_s > self._slow_s:
            self.limit *= self._backoff
        elif 2 * out >= self.limit:
            self.limit += 1
        self.limit = max(self._least, min(self._most, self.limit))


class Breakwater:
    """Credits: + A a client while the delay is below its target, else x max(1 - B (d - target) / target, 0.5)."""

    def __init__(self, *, target_s: float = 0.2, grow: float = 0.001, cut: float = 0.02, clients: int = 180) -> None:
        self.limit = 20.0
        self._target_s, self._grow, self._cut = target_s, max(1.0, grow * clients), cut

    def sample(self, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Windowed to a round trip by its gate."""
        if rtt_s < self._target_s:
            if 2 * out >= self.limit:
                self.limit += self._grow
        else:
            self.limit *= max(1 - self._cut * (rtt_s - self._target_s) / self._target_s, 0.5)
        self.limit = max(1.0, self.limit)


class Windowed:
    """Passes on one sample a window, the mean, and none of a window with fewer than `samples_min`."""

    def __init__(self, inner: Limit, *, window_s: float = 1.0, samples_min: int = 10) -> None:
        self._inner, self._window_s, self._samples_min = inner, window_s, samples_min
        self._until_s = window_s
        self._sum_s, self._count, self._most, self._dropped = 0.0, 0, 0, False

    @property
    def limit(self) -> float:
        """The inner one's."""
        return self._inner.limit

    def take(self, now_s: float, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Add a sample to the window, or end it."""
        self._sum_s += rtt_s
        self._count += 1
        self._most = max(self._most, out)
        self._dropped |= dropped
        if now_s >= self._until_s:
            if self._count >= self._samples_min:
                self._inner.sample(self._sum_s / self._count, self._most, dropped=self._dropped)
            self._until_s = now_s + self._window_s
            self._sum_s, self._count, self._most, self._dropped = 0.0, 0, 0, False


class EnvoyGradient:
    """L <- L g + sqrt(L g), g = clamp(1.25 rtt0 / p50, 0.5, 2), every 0.1 s; rtt0 is measured at 3 in flight."""

    def __init__(
        self,
        *,
        buffer: float = 0.25,
        interval_s: float = 0.1,
        probe_s: float = 60.0,
        least: float = 3,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.limit = float(least)
        self._buffer, self._interval_s, self._probe_s, self._least = buffer, interval_s, probe_s, least
        self._jitter = jitter
        self._rtt0_s = 0.0
        self._is_probing = True
        self._probed: list[float] = []
        self._window: list[float] = []
        self._next_s, self._next_probe_s = interval_s, 0.0
        self._kept = 50.0
        self._at_least = 0

    def take(self, now_s: float, rtt_s: float, out: int, *, dropped: bool) -> None:
        """Measure rtt0 with 50 requests, or collect a window."""
        if self._is_probing:
            self._probed.append(rtt_s)
            if len(self._probed) >= 50:
                self._end_probe(now_s)
            return
        self._window.append(rtt_s)
        if now_s >= self._next_s:
            self._next_s = now_s + self._interval_s
            self.update(sorted(self._window)[len(self._window) // 2])
            self._window = []
            if now_s >= self._next_probe_s or self._at_least >= 5:
                self._is_probing, self._probed, self._at_least = True, [], 0
                self._kept, self.limit = self.limit, float(self._least)

    def update(self, p50_s: float) -> None:
        """One step of the law."""
        gradient = max(0.5, min(2.0, self._rtt0_s * (1 + self._buffer) / p50_s))
        headed = self.limit * gradient
        self.limit = max(float(self._least), min(1000.0, headed + sqrt(headed)))
        self._at_least = self._at_least + 1 if self.limit <= self._least else 0

    def set_rtt0(self, rtt0_s: float) -> None:
        """Take a measured one."""
        self._rtt0_s = rtt0_s
        self._is_probing = False

    def _end_probe(self, now_s: float) -> None:
        self.set_rtt0(sorted(self._probed)[25])
        self._next_probe_s = now_s + self._probe_s * (1 + 0.15 * self._jitter())
        self._next_s = now_s + self._interval_s
        self.limit = max(self._kept, float(self._least))
