"""The controller's law for one backend: a reading a second in, a decision out.

What is controlled is an absolute rate R of admitted checks; m = R / L is published, where L is the demand of the time
before the cut. L is raised with demand and never falls with it, as the cut itself lowers the demand.

    score    s = max(sure p90 / target, 1.3 errors / error_rate_max, 2 if timeouts);  enter at s >= 1 twice, s >= 2 once
    capacity C follows the answers per second while there is more demand than that; grows by g a tick while all is well
    backlog  q = in flight - answers * normal latency - sqrt(...)                                             (Little)
    rate     R = C - (q - 0.02 C) / 1.5 s,  within [0.2 C, 1.1 C];   1.15 C while the guards hold the latency
    end      well, and a tenth above demand, for 5 s

Cuts are anchored on what was answered, never on the m before, so that ticks during the dead time do not compound. The
guards on the nodes are quicker and hold the latency; while they do, the law yields: it keeps to the order of priorities
and the published number, and lets them have the last fifteenth. Before it believes in a cut it tests it (`diagnosis`).

Invariants: min <= m <= 1; in state "normal" m is 1 and nothing is bounded; without news m and R never rise, but for
the fallback that people chose, by 0.1 a minute.
"""

from __future__ import annotations

from math import exp, sqrt

from limiter_node.core.adaptive.baseline import Baseline, sure_fraction, sure_p90_ms
from limiter_node.core.adaptive.capacity import Capacity
from limiter_node.core.adaptive.diagnosis import DrainTest, ErrorTest
from limiter_node.core.adaptive.evidence import Decision, Load, Policy, Signal
from limiter_node.core.adaptive.shares import fractions
from limiter_node.core.adaptive.view import Recent, View, signal_of

NS = 1_000_000_000

ENTER = 1.0
ENTER_AT_ONCE = 2.0
ENTER_TICKS = 2
HEALTHY = 0.8
"""Between 0.8 and 1 nothing changes: the dead band against flapping."""

ERROR_WEIGHT = 1.3
"""Errors cross the threshold a little before they reach what people allow."""

TIMEOUTS_MAX = 0.01
"""Surely more than 1 % of outcomes timed out: overload, whatever the latency of the rest is."""

QUEUED_S = 0.05
QUEUE_WANTED_S = 0.02
QUEUE_SLO = 0.5
"""Backlogs as seconds of capacity: 50 ms are a queue, 20 ms are kept (idle servers cost more), and half an objective is
overload at once: it is seen a second before the latencies are."""

DRAIN_S = 1.5
RATE_CAPACITY_MIN = 0.2
RATE_CAPACITY_MAX = 1.1
"""What is too much is to be gone in 1.5 s, near the dead time; a fifth of the capacity is admitted at the least."""

YIELD = 1.15
"""Of the capacity: what is left to the guards while they hold the latency."""

GUARDED_MIN = 0.2
"""Of the demand: where guards act they turn away what is too much even below that, and let it in again sooner."""

YIELD_LATE = 0.2
YIELD_SLO = 0.7
"""Of that, 0.2 is taken back while the 90th percentile goes from 0.7 of the objective to 1.4."""

HELD_SLO = 0.8
HELD_TIMEOUTS = 0.05
"""The guards hold it while the median is below 0.8 of the objective and no more than 5 % time out."""

UNHELD_TICKS = 4
"""So long they are given: at an onset they need a latency and a drain."""

BLIND_TIMEOUTS = 0.3
BLIND_TICKS = 4
"""With more of them the answers tell no capacity, and the queue is drained as deep as may be; after so many ticks of it
the capacity is doubted."""

SURPLUS_TAU_S = 3.0
SURPLUS_SIGMAS = 3.0
"""Checks admitted beyond those answered, leaking: a backlog where nobody can tell what is in flight. Poisson's noise of
both is left out."""

BINDING = 0.85
"""Of the rate: with so much admitted, or 1 % turned away by it, the rate is what limits."""

RELEASE_MARGIN = 1.1
RELEASE_S = 5.0

ENTRY_ERRORS_MIN = 0.5
ENTRY_ERRORS_KEEP = 1.05
"""An error cut keeps all successes and a little more, but half of what was admitted at least."""

USELESS_CUT = 0.6
USELESS_STEP = 0.85
USELESS_MIN = 0.3
"""When more than half of the answers miss the objective, no capacity can be read off them: admit 0.6 of what was
admitted, then 0.85 of that each tick, down to 0.3 of the demand, until some are in time again."""

DRAIN_RATE = 0.6
DRAIN_MS = 1600
DRAIN_HOLD = 0.95
"""Of the capacity, for how long, and what the nodes go on with if nothing more is heard."""

ADOPTED_GROWTH_S = 2.0
"""A new leader learns for so long before it lets anything grow: a tick of evidence may be half a tick."""

ADOPTED_STEP = 0.1
"""The most that m moves at its first decision."""

FALLBACK_PER_S = 0.1 / 60

FRACTION_SLACK = 1.1
"""Of the rate, what priorities are admitted for: the nodes' buckets bound the rate, and waste less than fractions of a
demand that was measured a second ago."""

GUARDED = 0.97
"""Of what the rate would have let through: with less than this admitted, guards turn checks away."""

DELAY_TICKS = 0.2
"""For so long the rate before is still in force at the nodes."""

GUARDS_BIND = 0.9
"""The same, where what the nodes' buckets waste must not be taken for it."""

NEW_NORMAL_S = 15.0
"""With all demand admitted, guards quiet and the objective kept for so long, a higher latency is the normal one."""

__all__ = ["Law", "signal_of"]


class Law:
    """One backend's. Call `decide` about once a second."""

    def __init__(self, policy: Policy) -> None:
        self.baseline = Baseline()
        self.is_controlling = False
        self.capacity = Capacity()  # C
        self.rate = 0.0  # R
        self.demand = 0.0  # L
        self._policy = policy
        self._recent = Recent()
        self._multiplier = 1.0
        self._surplus = 0.0  # checks admitted and not answered, leaking
        self._queued = 0.0  # backlog at the last tick
        self._hot = 0  # ticks in a row with a score of 1 and more
        self._well_s = 0.0  # for how long it could have ended
        self._accepted_s = 0.0  # for how long a higher latency was borne by all
        self._errors: ErrorTest | None = None
        self._drain = DrainTest()
        self._blind = 0  # ticks in a row in which the answers told nothing
        self._enforced = 0.0  # rate that was in force over the last tick
        self._unheld = 0  # ticks in a row in which the guards did not hold the latency
        self._adopted: Decision | None = None
        self._adopted_ns: int | None = None
        self._heard_ns: int | None = None
        self._asked_ns: int | None = None

    def set_policy(self, policy: Policy) -> None:
        """Go over to another policy; what was learned stays."""
        self._policy = policy

    def adopt(self, decision: Decision) -> None:
        """Take over from the leader before, whose last decision this is."""
        self._adopted = decision
        self._adopted_ns = None
        self._multiplier = decision.multiplier
        self.is_controlling = decision.multiplier < 1 or decision.rate is not None
        self.rate = decision.hold_rate or decision.rate or 0.0
        self.demand = self.rate / decision.multiplier
        self.capacity.begin(self.rate)

    def decide(self, load: Load | None, signal: Signal | None, now_ns: int) -> Decision:
        """Take what was heard since the last call; returns what is to be published."""
        elapsed_s = (now_ns - self._asked_ns) / NS if self._asked_ns is not None else 0.0
        self._asked_ns = now_ns
        if self._heard_ns is None:
            self._heard_ns = now_ns
        self._recent.hear(load)
        view = self._recent.view(load, signal)
        if self._policy.mode == "off":
            self._end()
            return self._normal("adaptive throttling is off")
        if view is None:
            return self._without_news((now_ns - self._heard_ns) / NS, elapsed_s)
        self._heard_ns = now_ns
        queued = self._backlog(view)
        if self._adopted is not None and self._adopted_ns is None:
            self._adopted_ns = now_ns
            if self.is_controlling and not self.rate:
                # Only a multiplier was published: what is admitted under it is its rate.
                self.rate = self._enforced = view.admitted_s
                self.capacity.begin(self.rate)
                self.demand = view.admitted_s / self._multiplier
        if not self.is_controlling:
            if self._multiplier < 1:  # out of a fallback, and on from there
                self._begin(view, self._multiplier * max(self.demand, view.wanted_s))
            else:
                return self._watch(view, queued)
        return self._control(view, queued, now_ns)

    # All is well.

    def _watch(self, view: View, queued: float) -> Decision:
        score, error_score, reason = self._score(view, queued)
        guards = view.is_guarded and view.admitted_s < GUARDED * view.wanted_s
        if score <= HEALTHY and not guards:
            self._learn(view)
        self._hot = self._hot + 1 if score >= ENTER else 0
        if score < ENTER_AT_ONCE and self._hot < ENTER_TICKS:
            return self._normal("")
        answers_s = self._answers_s(view)
        if error_score >= score:
            successes_s = answers_s * (1 - view.signal.error_rate)
            self._begin(view, max(ENTRY_ERRORS_MIN * view.admitted_s, ENTRY_ERRORS_KEEP * successes_s))
            if self._policy.mode == "on":
                self._errors = ErrorTest(view.signal.error_rate, successes_s)
        else:
            self._begin(view, answers_s)
        return self._settle(view, queued, score, reason)

    def _begin(self, view: View, capacity: float) -> None:
        self.is_controlling = True
        self.demand = max(view.wanted_s, sum(view.mix_s))
        self.capacity.begin(capacity)
        self.rate = self._enforced = view.admitted_s
        self._surplus = 0.0  # checks admitted and not answered, leaking
        self._queued = 0.0  # backlog at the last tick
        self._hot = 0
        self._well_s = self._accepted_s = 0.0
        self._errors = None

    def _end(self) -> None:
        self.is_controlling = False
        self._multiplier = 1.0
        self._errors = None
        self._drain.is_running = False
        self.demand = 0.0

    def _learn(self, view: View) -> None:
        sent_s = self._sent_s(view)
        if sent_s > 0 and view.signal.p90_ms > 0:
            self.baseline.learn(view.signal, view.answers_s / sent_s, view.span_s)

    def _sent_s(self, view: View) -> float:
        """Checks per second that went to the backend: where only observed, all."""
        return view.wanted_s if self._policy.mode == "observe" else view.admitted_s

    def _answers_s(self, view: View) -> float:
        """Answers per second in checks: callers may report a part of them."""
        return view.answers_s / (self.baseline.ratio or 1.0)

    def _backlog(self, view: View) -> float:
        """Checks that wait, beyond those that are served."""
        answers_s = self._answers_s(view)
        outcomes = view.outcomes_s / (self.baseline.ratio or 1.0) * view.span_s
        sent = self._sent_s(view) * view.span_s
        self._surplus = self._surplus * exp(-view.span_s / SURPLUS_TAU_S) + sent - outcomes
        if not self.baseline.mean_ms:
            return 0.0
        base = answers_s * self.baseline.mean_ms / 1e3
        in_flight = view.in_flight if view.in_flight is not None else answers_s * view.signal.mean_ms / 1e3
        surplus = self._surplus - SURPLUS_SIGMAS * sqrt(2 * sent)
        return max(0.0, in_flight - base - sqrt(base + 1), 0.0 if view.is_guarded else surplus)

    def _score(self, view: View, queued: float) -> tuple[float, float, str]:
        """How bad it is (1: overload), how bad by errors alone, and the worst in words."""
        signal = view.signal
        target_ms = self.baseline.target_ms(self._policy)
        p90_ms = sure_p90_ms(signal)
        by_latency = p90_ms / target_ms if target_ms else 0.0
        excess = sure_fraction(signal.error_rate, signal.samples) - self.baseline.errors
        by_errors = ERROR_WEIGHT * max(excess, 0.0) / max(self._policy.error_rate_max, 1e-3)
        by_timeouts = ENTER_AT_ONCE if sure_fraction(signal.timeout_rate, signal.samples) > TIMEOUTS_MAX else 0.0
        waits_s = QUEUE_SLO * self.baseline.slo_ms(self._policy) / 1e3 * self._answers_s(view)
        by_queue = ENTER_AT_ONCE * queued / (waits_s + 1.0)
        score = max(by_latency, by_errors, by_timeouts, by_queue)
        if by_errors >= score:
            reason = f"errors {signal.error_rate:.1%} > {self._policy.error_rate_max:.1%}"
        elif by_timeouts >= score:
            reason = f"timeouts {signal.timeout_rate:.1%}"
        elif by_queue >= score:
            reason = f"{queued:.0f} checks wait"
        else:
            reason = f"p90 {signal.p90_ms:.0f} ms > {target_ms:.0f} ms"
        return score, by_errors, reason

    # Something is not.

    def _control(self, view: View, queued: float, now_ns: int) -> Decision:
        self.demand = max(self.demand, sum(view.mix_s))
        score, error_score, reason = self._score(view, queued)
        if self._errors is not None:
            errors_s = self._answers_s(view) * view.signal.error_rate
            verdict = self._errors.step(view.admitted_s, errors_s, view.span_s)
            if verdict is not None:
                self._errors = None
            if verdict is False:
                self.baseline.errors = max(self.baseline.errors, view.signal.error_rate)
                if score <= error_score:
                    self._end()
                    return self._normal("errors do not depend on the load")
        is_new = self._adopted_ns is not None and now_ns - self._adopted_ns < ADOPTED_GROWTH_S * NS
        self._follow(view, queued, score, error_score, may_grow=not is_new)
        if self._is_over(view, score):
            self._end()
            return self._normal("")
        return self._settle(view, queued, score, reason, is_new=is_new)

    def _guards_hold(self, view: View) -> bool:
        """Whether the nodes' guards keep the latency, so that the law may yield."""
        slo_ms = self.baseline.slo_ms(self._policy)
        timeouts = sure_fraction(view.signal.timeout_rate, view.signal.samples)
        return view.is_guarded and view.signal.p50_ms <= HELD_SLO * slo_ms and timeouts <= HELD_TIMEOUTS

    def _follow(self, view: View, queued: float, score: float, error_score: float, *, may_grow: bool) -> None:
        """Move the capacity to what is seen."""
        answers_s = self._answers_s(view)
        capacity = self.capacity
        guards = view.is_guarded and view.admitted_s < GUARDS_BIND * min(view.wanted_s, self._enforced)
        least = QUEUED_S * capacity.value
        self._unheld = 0 if self._guards_hold(view) else self._unheld + 1
        yields = view.is_guarded and self._unheld < UNHELD_TICKS
        self._blind = self._blind + 1 if view.signal.timeout_rate > BLIND_TIMEOUTS and not yields else 0
        capacity.see(answers_s)
        was_busy = min(queued, self._queued) > least
        self._queued = queued
        if error_score > HEALTHY:
            successes_s = answers_s * (1 - view.signal.error_rate)
            if successes_s < capacity.value and self._errors is None:
                capacity.measure(successes_s)
        elif self._blind:
            if self._blind > BLIND_TICKS:
                capacity.doubt()
        elif yields and guards:
            if score > HEALTHY:
                capacity.follow()
        elif yields and self._unheld == 0:
            if may_grow and self.rate < self.demand:
                capacity.grow(min(answers_s, self.rate), is_guarded=True)
        elif was_busy:
            capacity.measure(answers_s)
        elif score > HEALTHY or queued > least:
            capacity.pause()
        elif may_grow and self.rate < self.demand and view.admitted_s >= BINDING * min(self.rate, view.wanted_s):
            capacity.grow(min(answers_s, self.rate), is_guarded=False)

    def _is_over(self, view: View, score: float) -> bool:
        """Whether all has been well for long enough; a latency that all have borne for long is normal from now on."""
        served = view.admitted_s >= GUARDED * view.wanted_s
        room = self.rate >= min(RELEASE_MARGIN * view.wanted_s, self.demand)
        self._well_s = self._well_s + view.span_s if score <= HEALTHY and served and room else 0.0
        borne = score > HEALTHY and served and self._multiplier >= 1 and self._guards_hold(view)
        self._accepted_s = self._accepted_s + view.span_s if borne else 0.0
        if self._accepted_s >= NEW_NORMAL_S:
            self.baseline.reset(view.signal)
            return True
        return self._well_s >= RELEASE_S

    def _settle(self, view: View, queued: float, score: float, reason: str, *, is_new: bool = False) -> Decision:
        """Work out the rate of this tick."""
        capacity = self.capacity.value
        slo_ms = self.baseline.slo_ms(self._policy)
        yields = view.is_guarded and self._unheld < UNHELD_TICKS
        if yields:
            late = (sure_p90_ms(view.signal) / slo_ms - YIELD_SLO) / YIELD_SLO if slo_ms else 0.0
            rate = (YIELD - YIELD_LATE * min(max(late, 0.0), 1.0)) * capacity
        else:
            rate = capacity - (queued - QUEUE_WANTED_S * capacity) / DRAIN_S
            rate = min(rate, 0.0 if self._blind else RATE_CAPACITY_MAX * capacity)
            rate = max(rate, RATE_CAPACITY_MIN * capacity)
        if slo_ms and view.signal.p50_ms > slo_ms:
            step = USELESS_STEP * self.rate if self._multiplier < 1 else USELESS_CUT * view.admitted_s
            rate = min(rate, max(step, USELESS_MIN * self.demand))
        pulse = self._test_drain(view, score, yields=yields)
        if pulse:
            rate = min(rate, DRAIN_RATE * capacity)
        if is_new:
            rate = min(max(rate, (1 - ADOPTED_STEP) * self.rate), self.rate)
        before = self.rate
        floor = min(GUARDED_MIN * self.demand, before) if view.is_guarded else 0.0
        lowest = max(self._policy.min * self.demand, floor)
        self.rate = min(max(rate, lowest), self.demand)
        self._enforced = DELAY_TICKS * before + (1 - DELAY_TICKS) * self.rate
        self._multiplier = min(max(self.rate / self.demand, self._policy.min), 1.0) if self.demand else 1.0
        state = "overload" if score > HEALTHY else "recovery"
        if self._multiplier >= 1:
            return Decision(multiplier=1.0, state=state, reason=reason)
        held = min(max(DRAIN_HOLD * capacity, self.rate), self.demand)
        return Decision(
            multiplier=self._multiplier,
            state="drain" if pulse else state,
            reason=reason,
            rate=self.rate,
            priorities=fractions(FRACTION_SLACK * max(held if pulse else 0.0, self.rate), view.mix_s),
            hold_rate=held if held > self.rate else None,
            expires_ms=DRAIN_MS if held > self.rate else None,
        )

    def _test_drain(self, view: View, score: float, *, yields: bool) -> bool:
        """Take a tick of the test whether there is a queue; True while it needs a deep cut."""
        if self._policy.mode != "on":
            return False
        p50_ms = view.signal.p50_ms
        drain = self._drain
        if drain.is_running:
            if drain.step(p50_ms) is False and p50_ms <= self.baseline.slo_ms(self._policy):
                self.baseline.reset(view.signal)
                self.capacity.begin(max(self.capacity.value, view.wanted_s))
            return drain.is_running
        return drain.wants(p50_ms, self.baseline.p50_ms, view.span_s, is_jammed=score > HEALTHY and not yields)

    # Nothing is known.

    def _without_news(self, silent_s: float, elapsed_s: float) -> Decision:
        """Hold; after a while go to what people have chosen for this case."""
        self.demand = max(self.demand, sum(self._recent.mix_s)) if self._multiplier < 1 else self.demand
        reason = f"no signal for {silent_s:.0f} s"
        fallback = self._policy.fallback
        if fallback is not None and silent_s >= self._policy.stale_after_s:
            fallback = max(fallback, self._policy.min)
            up = self._multiplier + FALLBACK_PER_S * elapsed_s
            self._multiplier = min(fallback, max(up, self._policy.min))
            self.demand = max(self.demand, sum(self._recent.mix_s))
            self.is_controlling = False
            self.rate = self._multiplier * self.demand
            return self._held("fallback", reason)
        if self._multiplier >= 1:
            return self._normal(reason if self.is_controlling else "")
        if self._drain.is_running:
            self._drain.is_running = False
            self.rate = min(max(self.rate, DRAIN_HOLD * self.capacity.value), self.demand)
            self._multiplier = self.rate / self.demand
        return self._held("hold", reason)

    def _held(self, state: str, reason: str) -> Decision:
        if self._multiplier >= 1:
            return Decision(multiplier=1.0, state=state, reason=reason)
        mix_s = self._recent.mix_s
        return Decision(
            multiplier=self._multiplier,
            state=state,
            reason=reason,
            rate=self.rate or None,
            priorities=fractions(FRACTION_SLACK * self.rate, mix_s) if self.rate else {},
        )

    def _normal(self, reason: str) -> Decision:
        return Decision(multiplier=1.0, state="normal", reason=reason)
