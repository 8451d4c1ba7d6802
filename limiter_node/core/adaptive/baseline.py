"""What is normal for a backend: its latencies, the errors it always makes, how much of its traffic is reported.

Learned only while nothing is cut and all is well, slowly, and with what goes in capped: an incident must not become
the new normal by lasting (failsafe-go #127, Envoy #38338). What really is a new normal is found by a test
(`diagnosis`), and is then set at once.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import TYPE_CHECKING

from limiter_node.core.adaptive.target import slo_ms

if TYPE_CHECKING:
    from limiter_node.core.adaptive.evidence import Policy, Signal

LEARN_TAU_S = 50.0
"""2 % a second: a day's wave is followed, a minute's incident is not."""

CAP = 1.5
"""Of the normal: more than this goes in as this."""

SAMPLES_MIN = 100
"""Quantiles of fewer are biased, and a normal that follows every low one ends too low."""

TARGET_SLO_MIN = 0.25
TARGET_NORMAL_MIN = 1.3
TARGET_NORMAL = 2.0
"""The p90 that counts as overload: twice the normal, but no less than a quarter of the objective (a backend far within
it is not in trouble), no more than the objective, and never what is within 1.3 of the normal."""

BORNE_TIMEOUTS = 0.05
"""With more of them a latency is not borne."""

Z90 = 1.2816
Z_SURE = 1.64
"""One-sided 95 %."""


class Baseline:
    """The normal of one backend. All zero until something was learned."""

    def __init__(self) -> None:
        self.p50_ms = 0.0
        self.p90_ms = 0.0
        self.mean_ms = 0.0
        self.errors = 0.0  # fraction that fails whatever the load is, at most, as a test has found
        self.ratio = 0.0  # answers reported per check admitted
        self._seen_s = 0.0

    def learn(self, signal: Signal, ratio: float, span_s: float) -> None:
        """Take a healthy reading."""
        if self.p90_ms and signal.samples < SAMPLES_MIN:
            span_s *= signal.samples / SAMPLES_MIN
        self._seen_s += span_s
        weight = max(1 - exp(-span_s / LEARN_TAU_S), span_s / self._seen_s)  # at first the mean of all
        self.p50_ms += (_capped(signal.p50_ms, self.p50_ms) - self.p50_ms) * weight
        self.p90_ms += (_capped(signal.p90_ms, self.p90_ms) - self.p90_ms) * weight
        self.mean_ms += (_capped(signal.mean_ms, self.mean_ms) - self.mean_ms) * weight
        self.ratio += (ratio - self.ratio) * weight
        self.errors = min(self.errors, self.errors + (signal.error_rate - self.errors) * weight)

    def reset(self, signal: Signal) -> None:
        """This is the normal from now on."""
        self.p50_ms, self.p90_ms, self.mean_ms = signal.p50_ms, signal.p90_ms, signal.mean_ms

    def bear_errors(self, signal: Signal) -> None:
        """So many errors are no sign of too much load."""
        self.errors = max(self.errors, _most_fraction(signal.error_rate, signal.samples))

    def slo_ms(self, policy: Policy) -> float:
        """The objective; 0 while it is not known."""
        return slo_ms(policy.slo_ms, self.p90_ms)

    def target_ms(self, policy: Policy) -> float:
        """The p90 that counts as overload; 0 while it is not known."""
        slo_ms = self.slo_ms(policy)
        if not self.p90_ms:
            return slo_ms
        return max(TARGET_SLO_MIN * slo_ms, min(slo_ms, TARGET_NORMAL * self.p90_ms), TARGET_NORMAL_MIN * self.p90_ms)


def is_borne(signal: Signal, policy: Policy) -> bool:
    """Whether people bear the latency that is; where they have not said which, callers who give up tell."""
    return signal.timeout_rate < BORNE_TIMEOUTS if policy.slo_ms is None else signal.p50_ms <= policy.slo_ms


def sure_p90_ms(signal: Signal) -> float:
    """The latency that the 90th percentile surely is not below (95 %), taking latencies for log-normal between."""
    samples = max(signal.samples, 1)
    if signal.p50_ms <= 0 or signal.p90_ms <= signal.p50_ms:
        return signal.p90_ms
    # The order statistic at 0.9 - z sqrt(0.09 / n), in standard deviations of the logarithm; 0.1755 the density.
    deviations = max(Z90 - Z_SURE * sqrt(0.09 / samples) / 0.1755, 0.0)
    return signal.p50_ms * exp(log(signal.p90_ms / signal.p50_ms) * deviations / Z90)


def sure_fraction(fraction: float, samples: int) -> float:
    """What a fraction seen in so many samples surely is not below: Wilson's lower bound (95 %)."""
    return max(_wilson(fraction, samples, -Z_SURE), 0.0) if samples > 0 else 0.0


def _most_fraction(fraction: float, samples: int) -> float:
    """What it surely is not above."""
    return min(_wilson(fraction, samples, Z_SURE), 1.0) if samples > 0 else 1.0


def _wilson(fraction: float, samples: int, z: float) -> float:
    z2 = z * z
    centre = fraction + z2 / (2 * samples)
    spread = z * sqrt(fraction * (1 - fraction) / samples + z2 / (4 * samples * samples))
    return (centre + spread) / (1 + z2 / samples)


def _capped(value: float, normal: float) -> float:
    return min(value, CAP * normal) if normal else value
