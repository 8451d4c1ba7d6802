"""Figures of a run, as adaptive.md section 4 defines them, and their intervals over seeds.

Goodput is answers well within the objective, by the second they were asked in. What compares a controller with the
reference does so for the same seed, that is, for the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from random import Random
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from bench.adaptive.scenario import USERS
from bench.adaptive.trace import SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.adaptive.scenario import Scenario
    from bench.adaptive.trace import Trace

WINDOW_S = 5
PROTECTED = 0.8
RECOVERED = 0.95
SETTLED_S = 10
"""The admitted rate is called steady so long after the onset."""

WARM_S = 5
"""Nothing is judged before: the backend fills and averages begin."""

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. None: the scenario does not tell."""

    good_s: tuple[int, ...]  # by second
    offered_s: tuple[int, ...]
    admitted_s: tuple[int, ...]
    goodput: float  # per second during the cause
    premium: float  # fraction of premium requests answered well during the cause
    overshoot: float  # highest 5 s of admitted over capacity during the cause
    variation: float  # of the admitted rate by second, once steady
    floor: float  # what Poisson's noise alone would make of it
    fairness: float  # Jain's index of users' success, the mean over segments
    throttled: float  # fraction turned away while nothing is wrong
    well: float  # fraction answered well while nothing is wrong
    p99_s: float


def figures(scenario: Scenario, trace: Trace) -> Figures:
    """Work out what a run is judged by."""
    onset, end = int(scenario.onset_s), int(scenario.end_s)
    good, offered, admitted = (trace.per_second(column) for column in (trace.good, trace.offered, trace.admitted))
    premium = sum(trace.per_second(trace.good, 0)[onset:end]) / max(sum(trace.per_second(trace.asked, 0)[onset:end]), 1)
    steady = admitted[min(onset + SETTLED_S, end - WINDOW_S) : end]
    mean = fmean(steady)
    calm = slice(WARM_S, onset if scenario.is_overload or scenario.family == "errors" else end)
    calm_offered = sum(offered[calm])
    latencies = sorted(trace.latencies_s)
    return Figures(
        good_s=tuple(good),
        offered_s=tuple(offered),
        admitted_s=tuple(admitted),
        goodput=sum(good[onset:end]) / (end - onset),
        premium=premium,
        overshoot=overshoot(
            admitted, [scenario.capacity_at(second + 0.5) for second in range(len(admitted))], onset, end
        ),
        variation=pstdev(steady) / mean if mean else 0.0,
        floor=1 / sqrt(mean) if mean else 0.0,
        fairness=fairness(trace),
        throttled=1 - sum(admitted[calm]) / calm_offered if calm_offered else 0.0,
        well=sum(good[calm]) / calm_offered if calm_offered else 1.0,
        p99_s=latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))] if latencies else 0.0,
    )


def overshoot(admitted: Sequence[int], capacity: Sequence[float], onset: int, end: int) -> float:
    """The highest 5 s of admitted over capacity."""
    return max(
        sum(admitted[second : second + WINDOW_S]) / sum(capacity[second : second + WINDOW_S])
        for second in range(onset, end - WINDOW_S + 1)
    )


def fairness(trace: Trace) -> float:
    """Jain's index of the success of users who asked, by segment; the mean of segments that got anything."""
    found = []
    for segment in range(SEGMENTS):
        users = slice(segment * USERS, (segment + 1) * USERS)
        success = [
            good / offered
            for good, offered in zip(trace.user_good[users], trace.user_offered[users], strict=True)
            if offered
        ]
        if any(success):
            found.append(jain(success))
    return fmean(found) if found else 0.0


def jain(shares: Sequence[float]) -> float:
    """1 when all are equal, 1 / n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def protect_s(good: Sequence[int], reference: Sequence[int], onset: int, end: int) -> float:
    """Seconds from the onset to the first 5 s of at least 0.8 of the reference; to the end where there are none."""
    for second in range(onset, end - WINDOW_S + 1):
        window = slice(second, second + WINDOW_S)
        if sum(good[window]) >= PROTECTED * sum(reference[window]):
            return float(second - onset)
    return float(end - onset)


def back_s(good: Sequence[int], offered: Sequence[int], onset: int, end: int, last: int) -> float:
    """Seconds from the end of the cause to the first 5 s that are 95 % of normal; else all there are.

    Normal is the fraction of what is offered that was good before the cause, 1 where there was no before.
    """
    normal = sum(good[WARM_S:onset]) / max(sum(offered[WARM_S:onset]), 1) if onset > WARM_S else 1.0
    for second in range(end, last - WINDOW_S + 1):
        window = slice(second, second + WINDOW_S)
        if sum(good[window]) >= RECOVERED * normal * sum(offered[window]):
            return float(second - end)
    return float(last - end)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean lies with 95 %: bootstrap over seeds."""
    if len(values) < 2:
        return values[0], values[0]
    chance = Random(len(values))
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
