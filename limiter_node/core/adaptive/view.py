"""What the law sees at a tick: rates of checks now, and how the backend does over as long as it takes to know.

Loads are kept for as long as a few answers a second need to be a sample (`MERGED_S`); signals of other sources, which
cannot be added up, are averaged by their samples. Nothing here decides.
"""

from __future__ import annotations

from collections import deque

import msgspec

from limiter_node.core.adaptive.evidence import PRIORITIES, Load, Signal
from limiter_node.core.adaptive.sketch import Sketch

NS = 1_000_000_000
SAMPLES_MIN = 20
"""Fewer are merged with those before: p90 of 20 is known within a factor of 1.4."""

MERGED_S = 10.0
"""The longest time that is merged; control cannot be quicker than its window (adaptive.md 2.1)."""

DEMAND_TAU_S = 3.0
"""Demand by priority is averaged over a few ticks: fractions must not dance with Poisson's noise."""


CHECKED = 0.2
"""Of the outcomes heard of: with fewer checks than that, the backend's load does not come through this fleet, and what
is answered is taken for what is wanted. The multiplier is then for others to read, and for what little does come."""


class View(msgspec.Struct):
    """One tick's reading."""

    wanted_s: float  # checks per second, the last second's
    admitted_s: float
    mix_s: list[float]  # wanted by priority, averaged
    span_s: float  # since the last tick
    signal: Signal
    answers_s: float  # reported or told per second, timeouts left out
    outcomes_s: float  # with them
    in_flight: float | None  # checks; None: nobody can tell
    is_guarded: bool  # the nodes' guards act
    fresh: float  # the part of its samples that is new since the last tick

    @property
    def turned_away(self) -> float:
        """Of the last second's checks that their own limits allowed, the fraction that did not get in."""
        return max(1 - self.admitted_s / self.wanted_s, 0.0) if self.wanted_s else 0.0


class Recent:
    """What was heard lately."""

    def __init__(self) -> None:
        self._loads: deque[Load] = deque()
        self._signals: deque[Signal] = deque()
        self.mix_s = [0.0] * PRIORITIES
        self.wanted_s = 0.0
        self.admitted_s = 0.0

    def hear(self, load: Load | None) -> None:
        """Take the load since the last tick."""
        if load is None:
            return
        span_s = load.span_ns / NS
        first = not self._loads
        self._loads.append(load)
        while sum(old.span_ns for old in self._loads) - self._loads[0].span_ns > MERGED_S * NS:
            self._loads.popleft()
        self.wanted_s = sum(load.wanted) / span_s
        self.admitted_s = sum(load.admitted) / span_s
        weight = 1.0 if first else min(span_s / DEMAND_TAU_S, 1.0)
        for priority, count in enumerate(load.wanted):
            self.mix_s[priority] += (count / span_s - self.mix_s[priority]) * weight

    def view(self, load: Load | None, signal: Signal | None) -> View | None:
        """What is seen now; None when nothing new is known of the backend."""
        completed = load.completed if load is not None else 0
        fresh = 1.0  # of other sources' samples nobody knows when they were taken
        if completed and (signal is None or signal.source == "report"):
            merged = self._merged()
            signal = signal_of(merged)
            assert signal is not None
            fresh = completed / signal.samples
            answers_s = signal.throughput * (1 - signal.timeout_rate)
        elif signal is not None and signal.source != "report":
            signal = self._averaged(signal)
            if not signal.throughput:  # not told: what was admitted is taken to be answered
                signal = msgspec.structs.replace(signal, throughput=self.admitted_s)
            answers_s = signal.throughput * (1 - signal.timeout_rate)
        else:
            return None
        in_flight = max(load.in_flight, 0.0) if load is not None and load.in_flight else signal.in_flight
        is_checked = self.wanted_s >= CHECKED * signal.throughput
        return View(
            wanted_s=self.wanted_s if is_checked else signal.throughput,
            admitted_s=self.admitted_s if is_checked else signal.throughput,
            mix_s=self.mix_s,
            span_s=load.span_ns / NS if load is not None else 1.0,
            signal=signal,
            answers_s=answers_s,
            outcomes_s=signal.throughput,
            in_flight=in_flight,
            is_guarded=load is not None and load.in_flight != 0,
            fresh=fresh,
        )

    def _merged(self) -> Load:
        loads = iter(reversed(self._loads))
        newest = next(loads)
        merged = msgspec.structs.replace(newest, latency=Sketch(newest.latency.counts.copy(), newest.latency.sum_ms))
        for load in loads:
            if merged.completed >= SAMPLES_MIN:
                break
            merged.span_ns += load.span_ns
            merged.completed += load.completed
            merged.refused += load.refused
            merged.failed += load.failed
            merged.timeouts += load.timeouts
            merged.latency.merge(load.latency)
        return merged

    def _averaged(self, signal: Signal) -> Signal:
        self._signals.append(signal)
        while len(self._signals) > MERGED_S:
            self._signals.popleft()
        total = signal.samples
        chosen = [signal]
        for old in list(self._signals)[-2::-1]:
            if total >= SAMPLES_MIN or old.source != signal.source:
                break
            chosen.append(old)
            total += old.samples
        if len(chosen) == 1 or not total:
            return signal

        def mean(name: str) -> float:
            return float(sum(getattr(one, name) * one.samples for one in chosen) / total)

        names = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "error_rate", "refused_rate", "timeout_rate")
        throughput = sum(one.throughput for one in chosen) / len(chosen)
        return msgspec.structs.replace(
            signal, samples=total, throughput=throughput, **{name: mean(name) for name in names}
        )


def signal_of(load: Load) -> Signal | None:
    """The outcomes reported in a load as a signal; None when there are none."""
    if not load.completed:
        return None
    p50_ms, p90_ms, p99_ms = load.latency.quantiles_ms(0.5, 0.9, 0.99)
    return Signal(
        source="report",
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        mean_ms=load.latency.mean_ms,
        throughput=load.completed / (load.span_ns / NS),
        # At most all: what a node adds up wrongly is to be no more than wrong.
        error_rate=min((load.refused + load.failed) / load.completed, 1.0),
        refused_rate=min(load.refused / load.completed, 1.0),
        timeout_rate=min(load.timeouts / load.completed, 1.0),
        samples=load.completed,
        in_flight=max(load.in_flight, 0.0) or None,
    )
