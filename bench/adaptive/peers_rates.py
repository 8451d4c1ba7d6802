"""Peers that turn away a part of what comes, by what they count: SRE throttling, Envoy admission control, BBR, DAGOR,
Aperture and TopFull. Written from the descriptions in adaptive.md section 1.

Chance comes from a seeded source. What a law needs to hear of the backend itself (utilisation, queueing times) it is
told truly and at once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.adaptive.plant import Plant
    from bench.adaptive.world import Outcome

RESERVED = {0: 0.0, 5: 0.25, 9: 0.55}
"""Of a bucket, below which a priority may not draw (adaptive.md 2.7): how the rate laws here serve priorities."""


class History:
    """Sums over the last `window_s`, a column each, kept by the second."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seconds: deque[list[float]] = deque()
        self.first = 0.0
        self.second = 0.0

    def add(self, now_s: float, first: float, second: float) -> None:
        """Count, and forget what is too old."""
        second_now = float(int(now_s))
        if not self._seconds or self._seconds[-1][0] != second_now:
            self._seconds.append([second_now, 0.0, 0.0])
        self._seconds[-1][1] += first
        self._seconds[-1][2] += second
        self.first += first
        self.second += second
        while self._seconds[0][0] < now_s - self._window_s:
            _, gone, gone_second = self._seconds.popleft()
            self.first -= gone
            self.second -= gone_second


def sre_rejects(requests: float, accepts: float, k: float) -> float:
    """Client throttling: the probability to turn a request away."""
    return max(0.0, (requests - k * accepts) / (requests + 1))


def by_class(rejected: float, priority: int) -> float:
    """The part of a class to turn away when `rejected` of all are: a class only once the lower ones are gone."""
    left = rejected
    for share, name in ((0.5, 9), (0.3, 5), (0.2, 0)):
        if name == priority:
            return min(1.0, max(0.0, left / share))
        left -= share
    raise AssertionError("a priority that nobody has")


class Sre:
    """p = max(0, (requests - K accepts) / (requests + 1)) over 2 minutes; lower classes first."""

    def __init__(self, chance: Callable[[], float], *, k: float = 2.0, window_s: float = 120.0) -> None:
        self._chance, self._k, self._history = chance, k, History(window_s)

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """By chance."""
        history = self._history
        rejected = sre_rejects(history.first, history.second, self._k)
        history.add(now_s, 1, 0)
        return not rejected or self._chance() >= by_class(rejected, priority)

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Refusals and timeouts are not accepted."""
        if outcome in ("ok", "failed"):
            self._history.add(now_s, 0, 1)


def admission_rejects(count: float, successes: float, threshold: float, aggression: float) -> float:
    """Envoy's admission control: the probability to turn a request away, 0.8 at most."""
    excess = max(0.0, (count - successes / threshold) / (count + 1))
    return min(0.8, float(excess ** (1 / aggression)))


class EnvoyAdmission:
    """By the success rate of what was let through in the last 30 s."""

    def __init__(
        self,
        chance: Callable[[], float],
        *,
        threshold: float = 0.95,
        aggression: float = 1.0,
        window_s: float = 30.0,
    ) -> None:
        self._chance, self._threshold, self._aggression = chance, threshold, aggression
        self._history = History(window_s)

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """By chance, nobody first."""
        history = self._history
        rejected = admission_rejects(history.first, history.second, self._threshold, self._aggression)
        return not rejected or self._chance() >= rejected

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Count a request and whether it succeeded; local rejections are not counted."""
        self._history.add(now_s, 1, outcome == "ok")


class Bbr:
    """Above 80 % of CPU, no more in flight than the most passes of a bucket times the least mean latency of one."""

    def __init__(
        self, plant: Plant, *, threshold: float = 0.8, decay: float = 0.95, window_s: float = 10.0, buckets: int = 100
    ) -> None:
        self._plant, self._threshold, self._decay = plant, threshold, decay
        self._width_s, self._buckets = window_s / buckets, buckets
        self._passes: deque[list[float]] = deque()  # number, passes, sum of latencies
        self._cpu, self._cpu_s = 0.0, 0.0
        self._dropped_s = -10.0
        self._out = 0
        self._limit, self._limit_of = float("inf"), -1

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """Nobody first."""
        while now_s >= self._cpu_s:  # an average every half second
            self._cpu = self._decay * self._cpu + (1 - self._decay) * self._plant.utilisation
            self._cpu_s += 0.5
        is_hot = self._cpu >= self._threshold or now_s - self._dropped_s <= 1.0
        if is_hot and self._out > 1 and self._out > self._bound(now_s):
            if self._cpu >= self._threshold:
                self._dropped_s = now_s
            return False
        self._out += 1
        return True

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Passes are answers; a timeout is none."""
        self._out -= 1
        if latency_s is None or outcome == "refused":
            return
        number = int(now_s / self._width_s)
        if not self._passes or self._passes[-1][0] != number:
            self._passes.append([number, 0.0, 0.0])
        self._passes[-1][1] += 1
        self._passes[-1][2] += latency_s

    def _bound(self, now_s: float) -> float:
        number = int(now_s / self._width_s)
        if number != self._limit_of:
            self._limit_of = number
            while self._passes and self._passes[0][0] < number - self._buckets:
                self._passes.popleft()
            whole = [bucket for bucket in self._passes if bucket[0] != number]
            if whole:
                most = max(passes for _, passes, _ in whole)
                least_s = min(total_s / passes for _, passes, total_s in whole)
                self._limit = int(most * least_s / self._width_s + 0.5)
        return self._limit


class Dagor:
    """Levels of (business, user); the mean queueing time of a window above 20 ms cuts 5 % off, else 1 % comes back."""

    LEVELS = 128

    def __init__(
        self, plant: Plant, *, queued_s: float = 0.02, cut: float = 0.05, grow: float = 0.01, window_s: float = 1.0
    ) -> None:
        self._plant, self._queued_s, self._cut, self._grow, self._window_s = plant, queued_s, cut, grow, window_s
        self._histogram = [0] * (3 * self.LEVELS)
        self._level = 3 * self.LEVELS - 1
        self._until_s, self._count, self._admitted = window_s, 0, 0
        self._seen = (0.0, 0)

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """Up to the level; users are spread over levels by a hash."""
        level = {0: 0, 5: 1, 9: 2}[priority] * self.LEVELS + user * 2654435761 % 2**32 * self.LEVELS // 2**32
        self._histogram[level] += 1
        self._count += 1
        is_in = level <= self._level
        self._admitted += is_in
        if now_s >= self._until_s or self._count >= 2000:
            self._turn(now_s)
        return is_in

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Not needed: queueing times come from the backend."""

    def _turn(self, now_s: float) -> None:
        plant, (waited_s, started) = self._plant, self._seen
        self._seen = plant.waited_s, plant.started
        count = plant.started - started
        is_over = (plant.waited_s - waited_s) / count > self._queued_s if count else bool(plant.queue)
        wanted = self._admitted * (1 - self._cut) if is_over else self._admitted + self._grow * self._count
        total, level = 0, 0
        while level < len(self._histogram) - 1 and total + self._histogram[level] <= wanted:
            total += self._histogram[level]
            level += 1
        self._level = level
        self._histogram = [0] * len(self._histogram)
        self._until_s, self._count, self._admitted = now_s + self._window_s, 0, 0


class _Bucket:
    """A rate with a burst of half a second of it, the last parts of which are kept for the higher priorities."""

    def __init__(self) -> None:
        self.rate = float("inf")
        self._tokens, self._at_s = 0.0, 0.0

    def draw(self, priority: int, now_s: float) -> bool:
        """Take a token, or not."""
        if self.rate == float("inf"):
            self._at_s = now_s
            return True
        burst = max(4.0, self.rate / 2)
        self._tokens = min(burst, self._tokens + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        if self._tokens < max(1.0, RESERVED[priority] * burst):
            return False
        self._tokens -= 1
        return True


class Aperture:
    """Every 10 s: load x clamp(setpoint / latency, 0.1, 1) of a 30 s mean above 1.25 of its long mean; else + 2.5 %."""

    def __init__(
        self, *, tick_s: float = 10.0, window_s: float = 30.0, tolerance: float = 1.25, grow: float = 0.025
    ) -> None:
        self._tick_s, self._tolerance, self._grow = tick_s, tolerance, grow
        self._latencies, self._incoming = History(window_s), History(window_s)
        self._long = History(1800.0)
        self._window_s = window_s
        self._next_s, self._multiplier = tick_s, 2.0
        self._bucket = _Bucket()

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """By the bucket."""
        if now_s >= self._next_s:
            self._next_s += self._tick_s
            self._turn(now_s)
        is_in = self._bucket.draw(priority, now_s)
        self._incoming.add(now_s, 1, is_in)
        return is_in

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """A timeout counts as long as it took."""
        for history in (self._latencies, self._long):
            history.add(now_s, 1, 1.0 if latency_s is None else latency_s)

    def _turn(self, now_s: float) -> None:
        if not self._latencies.first or not self._incoming.first:
            return
        signal_s = self._latencies.second / self._latencies.first
        setpoint_s = self._tolerance * self._long.second / self._long.first
        observed = self._incoming.second / self._incoming.first
        if signal_s > setpoint_s:
            self._multiplier = observed * max(0.1, min(1.0, setpoint_s / signal_s))
        elif self._multiplier < 2.0:
            self._multiplier = min(2.0, max(self._multiplier, observed) + self._grow)
        rate = self._incoming.first / min(self._window_s, now_s)
        self._bucket.rate = float("inf") if self._multiplier >= 2.0 else rate * self._multiplier


class TopFull:
    """Once a second: p95 above the objective cuts the rate by 5 %, else + 1 %, at most 1.1 of what is admitted."""

    def __init__(
        self, *, slow_s: float = 1.0, cut: float = 0.05, grow: float = 0.01, floor: float = 10.0, tick_s: float = 1.0
    ) -> None:
        self._slow_s, self._cut, self._grow, self._floor, self._tick_s = slow_s, cut, grow, floor, tick_s
        self._latencies: list[float] = []
        self._admitted, self._next_s = 0, tick_s
        self._bucket = _Bucket()

    def admits(self, priority: int, user: int, now_s: float) -> bool:
        """By the bucket."""
        if now_s >= self._next_s:
            self._next_s += self._tick_s
            self._turn()
        is_in = self._bucket.draw(priority, now_s)
        self._admitted += is_in
        return is_in

    def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """A timeout is as slow as can be."""
        self._latencies.append(1.0 if latency_s is None else latency_s)

    def _turn(self) -> None:
        latencies, self._latencies = sorted(self._latencies), []
        admitted, self._admitted = self._admitted / self._tick_s, 0
        if not latencies:
            return
        rate = min(self._bucket.rate, 1.1 * admitted)
        if latencies[int(0.95 * len(latencies))] >= self._slow_s:
            rate *= 1 - self._cut
        elif self._bucket.rate < float("inf"):
            rate = min(self._bucket.rate * (1 + self._grow), 1.1 * max(admitted, self._floor))
        else:
            return
        self._bucket.rate = max(self._floor, rate)
