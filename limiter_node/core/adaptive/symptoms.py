"""How a backend does, in numbers that mean the same for all: 1 is overload, by whichever symptom is the worst.

    score = max(sure p90 / target, 1.3 errors / error_rate_max, 2 if timeouts, 2 backlog / half an objective of answers)

The backlog is what is in flight beyond what the answers keep busy (Little's law, with the normal mean latency and a
Poisson margin). Where nobody can tell what is in flight, it is the mean latency that tells, or what was admitted and
not reported, leaking; a queue shows in that a second before it shows in any latency. What is not sure (95 %) counts
less, so that few samples alarm nobody. Nothing here decides.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import TYPE_CHECKING

import msgspec

from limiter_node.core.adaptive.baseline import sure_fraction, sure_p90_ms

if TYPE_CHECKING:
    from limiter_node.core.adaptive.baseline import Baseline
    from limiter_node.core.adaptive.evidence import Policy
    from limiter_node.core.adaptive.view import View

AT_ONCE = 2.0
"""The score at which there is nothing to wait for."""

ERROR_WEIGHT = 1.3
"""Errors cross the threshold a little before they reach what people allow."""

TIMEOUTS_MAX = 0.01
"""Surely more than 1 % of outcomes timed out: overload, whatever the latency of the rest is."""

QUEUE_SLO = 0.5
"""Of an objective's answers: as many checks waiting are overload at once."""

GUARDED_BACKLOG_MAX = 1.9
"""Where guards act they bound what waits within a round trip, so that it may wait for a second tick: reports that come
0.3 s late once, as from a stalled caller, look like a queue of 0.3 s, and no latency bears it out."""

SURPLUS_TAU_S = 3.0
SURPLUS_SIGMAS = 3.0
"""Of checks admitted and not answered. Poisson's noise of both is left out."""

HELD_SLO = 0.8
HELD_TIMEOUTS = 0.05
"""Guards hold the latency while the median is below 0.8 of the objective and no more than 5 % time out."""


TELLING = 10
"""Outcomes in ten seconds. One request that timed out at night, of two, cut everybody to a fifth."""


class Symptoms(msgspec.Struct):
    """One tick's."""

    load_score: float  # by all but errors
    error_score: float  # by errors alone
    reason: str  # the worst, in words
    queued: float  # checks that wait
    answers_s: float  # in checks per second: callers may report a part of them
    lateness: float  # sure p90 by the objective; 0 where there is none
    is_useless: bool  # more than half of the answers are later than the objective
    is_held: bool  # guards act, and hold the latency

    @property
    def score(self) -> float:
        """How bad the worst is."""
        return max(self.load_score, self.error_score)


class Doctor:
    """Reads symptoms off views; remembers what was admitted and not answered."""

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline
        self._surplus = 0.0

    def read(self, view: View, policy: Policy, sent_s: float) -> Symptoms:
        """Take a tick; `sent_s` checks per second went to the backend."""
        baseline, signal = self._baseline, view.signal
        answers_s = view.answers_s / (baseline.ratio or 1.0)
        queued = self._backlog(view, answers_s, sent_s)
        slo_ms, target_ms = baseline.slo_ms(policy), baseline.target_ms(policy)
        is_telling = signal.samples >= TELLING
        p90_ms = sure_p90_ms(signal) if is_telling else 0.0
        timeouts = sure_fraction(signal.timeout_rate, signal.samples) if is_telling else 0.0
        errors = max(sure_fraction(signal.error_rate, signal.samples) - baseline.errors, 0.0) if is_telling else 0.0
        by_errors = ERROR_WEIGHT * errors / max(policy.error_rate_max, 1e-3)
        by_latency = p90_ms / target_ms if target_ms else 0.0
        by_backlog = AT_ONCE * queued / (QUEUE_SLO * slo_ms / 1e3 * answers_s + 1)
        is_late = signal.p90_ms > target_ms
        late = f"p90 {signal.p90_ms:.0f} ms {'>' if is_late else 'within'} {target_ms:.0f} ms"
        by_load = (
            (AT_ONCE if timeouts > TIMEOUTS_MAX else 0.0, f"timeouts {signal.timeout_rate:.1%}"),
            (
                min(by_backlog, GUARDED_BACKLOG_MAX) if view.is_guarded else by_backlog,
                late if by_latency >= 1 else f"{queued:.0f} checks wait",
            ),
            (by_latency, late),
        )
        load_score, reason = max(by_load, key=lambda symptom: symptom[0])
        if by_errors >= load_score:
            reason = f"errors {signal.error_rate:.1%} > {policy.error_rate_max:.1%}"
        return Symptoms(
            load_score=load_score,
            error_score=by_errors,
            reason=reason,
            queued=queued,
            answers_s=answers_s,
            lateness=p90_ms / slo_ms if slo_ms else 0.0,
            is_useless=is_telling and 0 < slo_ms < signal.p50_ms,
            is_held=view.is_guarded and signal.p50_ms <= HELD_SLO * slo_ms and timeouts <= HELD_TIMEOUTS,
        )

    def _backlog(self, view: View, answers_s: float, sent_s: float) -> float:
        sent = sent_s * view.span_s
        if view.signal.source == "report":
            outcomes = view.outcomes_s / (self._baseline.ratio or 1.0) * view.span_s
            self._surplus = self._surplus * exp(-view.span_s / SURPLUS_TAU_S) + sent - outcomes
        else:  # a told throughput is of other seconds than what was sent: a minute's mean, when more is wanted now
            self._surplus = 0.0
        if not self._baseline.mean_ms:
            return 0.0
        base = answers_s * self._baseline.mean_ms / 1e3
        in_flight = view.in_flight if view.in_flight is not None else answers_s * view.signal.mean_ms / 1e3
        surplus = 0.0 if view.is_guarded else self._surplus - SURPLUS_SIGMAS * sqrt(2 * sent)
        return max(0.0, in_flight - base - sqrt(base + 1), surplus)
