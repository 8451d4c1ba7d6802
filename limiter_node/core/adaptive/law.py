"""The controller's law for one backend: a reading a second in, a decision out.

What is controlled is an absolute rate R of admitted checks; m = R / L is published (C / L where guards have the rest),
where L is the demand before the cut, raised with demand, and never lowered with it, as the cut itself lowers it.

    score    s: how bad the worst symptom is (`symptoms`)
    enter    at s >= 1 twice (0.8 where guards deny, any s where they deny a fifth), or 2 once
    capacity C follows the answers per second while checks wait, grows while all is well (`capacity`)
    backlog  q = in flight - answers * normal latency - margin                                                 (Little)
    rate     R = C - (q - 0.02 C) / 1.5 s,  within [0.2 C, 1.1 C]
             R = 2 C where guards hold the latency (1.25 C with errors), less the later it is, and at least 0.2 L
    end      well, and a tenth above demand, for 5 s

Cuts are anchored on what was answered, never on the m before, so that ticks during the dead time do not compound. The
guards on the nodes are quicker and hold the latency; while they do, the law yields: it keeps the order of priorities
and the published number, and leaves the last of it to them. Before it believes in a cut it tests it (`diagnosis`).

Invariants: min <= m <= 1; in state "normal" m is 1 and nothing is bounded; without news m and R never rise, but for
the fallback that people chose, by 0.1 a minute.
"""

from __future__ import annotations

from limiter_node.core.adaptive.baseline import Baseline, is_borne
from limiter_node.core.adaptive.capacity import Capacity
from limiter_node.core.adaptive.diagnosis import DrainTest, ErrorTest
from limiter_node.core.adaptive.evidence import Decision, Load, Policy, Signal
from limiter_node.core.adaptive.shares import fractions
from limiter_node.core.adaptive.symptoms import AT_ONCE, Doctor, Symptoms
from limiter_node.core.adaptive.view import Recent, View

NS = 1_000_000_000

ENTER = 1.0
ENTER_TICKS = 2
HEALTHY = 0.8
"""Between 0.8 and 1 nothing changes: the dead band against flapping."""

QUEUED_S = 0.05
QUEUE_WANTED_S = 0.02
"""Backlogs as seconds of capacity: 50 ms are a queue, 20 ms are kept (idle servers cost more)."""

DRAIN_S = 1.5
RATE_CAPACITY_MIN = 0.2
RATE_CAPACITY_MAX = 1.1
"""What is too much is to be gone in 1.5 s, near the dead time; a fifth of the capacity is admitted at the least."""

YIELD = 2.0
YIELD_ERRORS = 1.25
"""Of the capacity: what is left to guards that hold the latency. With 1.25 a flapping backend's return waited for the
law (0.91 instead of 0.95); where errors are the symptom, guards see no queue to order by priority."""

GUARDED_MIN = 0.2
"""Of the demand: where guards act they turn away what is too much even below that, and let it in again sooner."""

YIELD_LATE = 0.5
YIELD_SLO = 0.7
"""Of that, 0.5 is taken back while the 90th percentile goes from 0.7 of the objective to 1.4."""

UNHELD_TICKS = 4.0
"""So long they are given: at an onset they need a latency and a drain. A tick counts by what is new in its view: few
answers show one jam for 8 s, and at 12/s the rate was kept at a fifth for so long (0.02 of the goodput)."""

BLIND_TIMEOUTS = 0.3
BLIND_TICKS = 4
"""With more of them answers tell no capacity, and the queue is drained deep; after so many ticks C is doubted."""

BINDING = 0.85
"""Of the rate: with so much admitted, the rate is what limits."""

RELEASE_MARGIN = 1.1
RELEASE_S = 5.0

ENTRY_ERRORS_MIN = 0.5
ENTRY_ERRORS_KEEP = 1.05
"""An error cut keeps all successes and a little more, but half of what was handled at least."""

USELESS_CUT = 0.6
USELESS_STEP = 0.85
USELESS_MIN = 0.3
"""When more than half of the answers miss the objective they tell no capacity: where no guard acts, admit 0.6 of what
was admitted, then 0.85 of that each tick, down to 0.3 of the demand, until some are in time again."""

DRAIN_RATE = 0.6
DRAIN_MS = 1600
DRAIN_HOLD = 0.95
"""Of the capacity, for how long, and what the nodes go on with if nothing more is heard."""

ADOPTED_GROWTH_S = 1.5
ADOPTED_STEP = 0.1
"""A new leader learns for so long before it lets anything grow: a tick of evidence may be half a tick. At its first
decision m moves by a tenth at most."""

FALLBACK_PER_S = 0.1 / 60

FRACTION_SLACK = 1.1
"""Of the rate, what priorities are admitted for: the nodes' buckets bound the rate, and waste less than fractions of a
demand that was measured a second ago."""

GUARDED = 0.03
GUARDED_HOT = 0.2
"""Of what is wanted: with more turned away guards are at work; with so much it is an overload, however well they do."""

GUARDS_BIND = 0.9
"""Of the rate: less is admitted because of guards, and not of what the nodes' buckets waste."""

DELAY_TICKS = 0.2
"""For so long the rate before is still in force at the nodes."""

NEW_NORMAL_S = 15.0
"""With all demand admitted, guards quiet and the objective kept for so long, a higher latency is the normal one."""


class Law:
    """One backend's. Call `decide` about once a second."""

    def __init__(self, policy: Policy) -> None:
        self.baseline = Baseline()
        self._doctor = Doctor(self.baseline)
        self.is_controlling = False
        self.capacity = Capacity()  # C
        self.rate = 0.0  # R
        self.demand = 0.0  # L
        self._policy = policy
        self._recent = Recent()
        self._multiplier = 1.0
        self._queued = 0.0  # backlog at the last tick
        self._hot = 0  # ticks in a row with a score of 1 and more
        self._well_s = 0.0  # for how long it could have ended
        self._accepted_s = 0.0  # for how long a higher latency was borne by all
        self._errors: ErrorTest | None = None
        self._is_to_test = False  # errors were not tested since it began
        self._drain = DrainTest()
        self._blind = 0  # ticks in a row in which the answers told nothing
        self._enforced = 0.0  # rate that was in force over the last tick
        self._unheld = 0.0  # ticks in a row in which the guards did not hold the latency
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
        self._multiplier = max(decision.multiplier, 1e-6)  # people may write what no law decides
        self.is_controlling = decision.multiplier < 1 or decision.rate is not None
        self.rate = decision.hold_rate or decision.rate or 0.0
        self.demand = self.rate / self._multiplier
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
        symptoms = self._doctor.read(view, self._policy, self._sent_s(view))
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
                return self._watch(view, symptoms)
        return self._control(view, symptoms, now_ns)

    # All is well.

    def _watch(self, view: View, symptoms: Symptoms) -> Decision:
        denied = view.turned_away if view.is_guarded else 0.0
        if denied > GUARDED_HOT and symptoms.score < ENTER:
            symptoms.load_score, symptoms.reason = ENTER, f"guards turn {denied:.0%} away"
        score = symptoms.score
        if score <= HEALTHY and denied <= GUARDED:
            self._learn(view)
        self._hot = self._hot + 1 if score >= (HEALTHY if denied > GUARDED else ENTER) else 0
        if score < AT_ONCE and self._hot < ENTER_TICKS:
            return self._normal("")
        self._begin(view, symptoms.answers_s)
        if self._is_to_test and symptoms.error_score >= score:
            self._begin_test(view, symptoms)
        return self._settle(view, symptoms)

    def _begin_test(self, view: View, symptoms: Symptoms) -> None:
        """Cut to the successes, and see whether the errors end."""
        self._is_to_test = False
        successes_s = symptoms.answers_s * (1 - view.signal.error_rate)
        least = max(ENTRY_ERRORS_MIN * min(view.admitted_s, symptoms.answers_s), ENTRY_ERRORS_KEEP * successes_s)
        self.capacity.value = min(self.capacity.value, least)
        self._errors = ErrorTest(view.signal.error_rate, successes_s)

    def _acquits(self, test: ErrorTest, view: View, symptoms: Symptoms) -> bool:
        """Take a tick of the test; True when errors do not depend on the load, and nothing else is wrong."""
        verdict = test.step(view.admitted_s, symptoms.answers_s * view.signal.error_rate, view.span_s)
        self._errors = test if verdict is None else None
        if verdict is not False:
            return False
        self.baseline.bear_errors(view.signal)
        self._is_to_test = True  # what is beyond that
        symptoms.error_score = 0.0
        return symptoms.load_score <= HEALTHY and not self._guards_bind(view)

    def _begin(self, view: View, capacity: float) -> None:
        self.is_controlling = True
        self.demand = max(view.wanted_s, sum(view.mix_s))
        self.capacity.begin(capacity)
        self.rate, self._enforced = view.admitted_s, view.wanted_s
        self._queued = self._well_s = self._accepted_s = 0.0
        self._hot = 0
        self._errors = None
        self._is_to_test = self._policy.mode == "on"

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

    # Something is not.

    def _control(self, view: View, symptoms: Symptoms, now_ns: int) -> Decision:
        self.demand = max(self.demand, sum(view.mix_s))
        if self._errors is None and self._is_to_test and symptoms.error_score > HEALTHY:
            self._begin_test(view, symptoms)
        elif self._errors is not None and self._acquits(self._errors, view, symptoms):
            self._end()
            return self._normal("errors do not depend on the load")
        is_new = self._adopted_ns is not None and now_ns - self._adopted_ns < ADOPTED_GROWTH_S * NS
        self._follow(view, symptoms, may_grow=not is_new)
        if self._is_over(view, symptoms):
            self._end()
            return self._normal("")
        return self._settle(view, symptoms, is_new=is_new)

    def _follow(self, view: View, symptoms: Symptoms, *, may_grow: bool) -> None:
        """Move the capacity to what is seen."""
        answers_s, queued, capacity = symptoms.answers_s, symptoms.queued, self.capacity
        self._unheld = 0.0 if symptoms.is_held else self._unheld + view.fresh
        self._blind = self._blind + 1 if view.signal.timeout_rate > BLIND_TIMEOUTS and not self._yields(view) else 0
        capacity.see(answers_s)
        least = QUEUED_S * capacity.value
        was_busy = min(queued, self._queued) > least
        self._queued = queued
        may_grow = may_grow and self.rate < self.demand
        if symptoms.error_score > HEALTHY:
            successes_s = answers_s * (1 - view.signal.error_rate)
            if successes_s < capacity.value and self._errors is None:
                capacity.measure(successes_s)
        elif self._blind:
            if self._blind > BLIND_TICKS:
                capacity.doubt()
        elif self._yields(view) and (symptoms.is_held or self._guards_bind(view)):
            self._follow_guards(view, symptoms, may_grow=may_grow)
        elif was_busy:
            capacity.measure(answers_s)
        elif symptoms.score > HEALTHY or queued > least:
            capacity.pause()
        elif may_grow and view.admitted_s >= BINDING * min(self.rate, view.wanted_s):
            capacity.grow(min(answers_s, self.rate), is_guarded=False)

    def _follow_guards(self, view: View, symptoms: Symptoms, *, may_grow: bool) -> None:
        """The same where guards are the quicker: what they let through, or more, when it is not they who bind."""
        if self._guards_bind(view) and symptoms.score > HEALTHY:
            self.capacity.follow(is_held=symptoms.is_held)
        elif may_grow:
            self.capacity.grow(min(symptoms.answers_s, self.rate), is_guarded=True)
            self.capacity.value = min(self.capacity.value, RELEASE_MARGIN * self.demand)

    def _guards_bind(self, view: View) -> bool:
        return view.is_guarded and view.admitted_s < GUARDS_BIND * min(view.wanted_s, self._enforced)

    def _yields(self, view: View) -> bool:
        """Whether the guards are given their time."""
        return view.is_guarded and self._unheld < UNHELD_TICKS

    def _is_over(self, view: View, symptoms: Symptoms) -> bool:
        """Whether all has been well for long enough; a latency that all have borne for long is normal from now on."""
        served = view.turned_away <= GUARDED
        room = self.rate >= min(RELEASE_MARGIN * view.wanted_s, self.demand)
        self._well_s = self._well_s + view.span_s if symptoms.score <= HEALTHY and served and room else 0.0
        borne = symptoms.score > HEALTHY and served and self._multiplier >= 1 and symptoms.is_held
        self._accepted_s = self._accepted_s + view.span_s if borne else 0.0
        if self._accepted_s >= NEW_NORMAL_S:
            self.baseline.reset(view.signal)
            return True
        return self._well_s >= RELEASE_S

    def _settle(self, view: View, symptoms: Symptoms, *, is_new: bool = False) -> Decision:
        """Work out the rate of this tick."""
        capacity = self.capacity.value
        yields, binds = self._yields(view), self._guards_bind(view)
        if yields:
            late = (symptoms.lateness - YIELD_SLO) / YIELD_SLO
            times = YIELD_ERRORS if symptoms.error_score > HEALTHY else YIELD
            rate = (times - YIELD_LATE * min(max(late, 0.0), 1.0)) * capacity
        else:
            rate = capacity - (symptoms.queued - QUEUE_WANTED_S * capacity) / DRAIN_S
            rate = min(rate, 0.0 if self._blind else RATE_CAPACITY_MAX * capacity)
            rate = max(rate, RATE_CAPACITY_MIN * capacity)
        most = self.demand
        if symptoms.is_useless and not yields:
            step = USELESS_STEP * self.rate if self.rate < self.demand else USELESS_CUT * view.admitted_s
            most = min(most, max(step, USELESS_MIN * self.demand))
        pulse = self._test_drain(view, is_jammed=symptoms.score > HEALTHY and not yields)
        if pulse:
            rate = min(rate, DRAIN_RATE * capacity)
        if self._errors is not None:  # above the successes nothing could be told
            rate = min(rate, capacity)
        if is_new:
            rate = min(max(rate, (1 - ADOPTED_STEP) * self.rate), self.rate)
        before = self.rate
        floor = min(GUARDED_MIN * self.demand, before) if view.is_guarded else 0.0
        lowest = max(self._policy.min * self.demand, floor)
        self.rate = min(max(rate, lowest), max(most, lowest))
        self._enforced = DELAY_TICKS * before + (1 - DELAY_TICKS) * self.rate
        held = max(min(DRAIN_HOLD * capacity, most), self.rate)
        told = min(held, max(self.capacity.usual, lowest)) if yields else held
        self._multiplier = min(max(told / self.demand, self._policy.min), 1.0) if self.demand else 1.0
        state = "overload" if symptoms.score > HEALTHY else "recovery"
        if self.rate >= self.demand:
            return Decision(multiplier=self._multiplier if binds else 1.0, state=state, reason=symptoms.reason)
        return Decision(
            multiplier=self._multiplier,
            state="drain" if pulse else state,
            reason=symptoms.reason,
            rate=self.rate,
            priorities=fractions(FRACTION_SLACK * max(held if pulse else 0.0, self.rate), view.mix_s),
            hold_rate=held if held > self.rate else None,
            expires_ms=DRAIN_MS if held > self.rate else None,
        )

    def _test_drain(self, view: View, *, is_jammed: bool) -> bool:
        """Take a tick of the test whether there is a queue; True while it needs a deep cut."""
        if self._policy.mode != "on":
            return False
        p50_ms = view.signal.p50_ms
        drain = self._drain
        if drain.is_running:
            if drain.step(p50_ms) is False and is_borne(view.signal, self._policy):
                self.baseline.reset(view.signal)
                self.capacity.begin(max(self.capacity.value, view.wanted_s))
            return drain.is_running
        return drain.wants(p50_ms, self.baseline.p50_ms, view.span_s, is_jammed=is_jammed)

    # Nothing is known.

    def _without_news(self, silent_s: float, elapsed_s: float) -> Decision:
        """Hold; after a while go to what people have chosen for this case."""
        self.demand = max(self.demand, sum(self._recent.mix_s))
        reason = f"no signal for {silent_s:.0f} s"
        fallback = self._policy.fallback
        if fallback is not None and silent_s >= self._policy.stale_after_s:
            fallback = max(fallback, self._policy.min)
            up = self._multiplier + FALLBACK_PER_S * elapsed_s
            self._multiplier = min(fallback, max(up, self._policy.min))
            self.is_controlling = False
            self.rate = self._multiplier * self.demand
            return self._held("fallback", reason)
        if self._multiplier >= 1:
            return self._normal(reason if self.is_controlling else "")
        self._drain.is_running = False
        self.rate = max(self.rate, self._multiplier * self.demand)  # a pulse has ended
        return self._held("hold", reason)

    def _held(self, state: str, reason: str) -> Decision:
        if self._multiplier >= 1:
            return Decision(multiplier=1.0, state=state, reason=reason)
        priorities = fractions(FRACTION_SLACK * self.rate, self._recent.mix_s) if self.rate else {}
        return Decision(self._multiplier, state, reason, rate=self.rate or None, priorities=priorities)

    def _normal(self, reason: str) -> Decision:
        return Decision(multiplier=1.0, state="normal", reason=reason)
