"""A node's own guard of a backend: how many checks may be out and not yet reported, by Little's law.

    out     <- out + ratio per admitted check - 1 per reported outcome, and leaks towards what the latencies add up to
    target  =  max(0.5 objective, 1.5 normal mean latency)                          x = answers per second * target
    calm:      limit = max(1.8 x + 2 sqrt(1.8 x), mean + 4 sigma of `out` in health) + 2
    tight:     limit = x min(target / latency, 1) + sqrt(x) (0.5 + 2 clamp(1 - latency / target, 0, 1)), and a pace of
               1.5 limit / latency

Times are tight from the moment that answers are later than the target while more is admitted than answered, or far too
late, until a few in a row are quick. A queue shows in `out` before it shows in any latency. A limit below what the
backend can do lowers the latency, and below the target the limit is more than what is out, so that the rate grows every
round until the latency is the target: the guard lets go by itself.

Outcomes carry no check's name. Where they come back to the node that admitted, `out` is what is in flight; where a load
balancer spreads them it is a random walk, which the leak and the pace tie down. How far it strays in health is learned,
and the calm limit lies above that, so that noise throttles nobody; close to the target there is next to no margin, as
the margins of 24 nodes add up to a queue. Callers that report a part of what they do are known by the ratio.

Invariant: a check gets through once in a while whatever is believed to be out. Time comes in as an argument.
"""

from __future__ import annotations

from math import exp, inf, sqrt
from typing import TYPE_CHECKING, Literal

from limiter_node.core.adaptive.pace import Pace
from limiter_node.core.adaptive.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["ok", "refused", "failed", "timeout"]

NS = 1_000_000_000
STEP_NS = 50_000_000
"""How often the limit is worked out anew: within a round trip of most backends, at some 5 us each."""

RATE_COUNTS = 15
RATE_TAU_MIN_S = 0.25
RATE_TAU_MAX_S = 4.0
"""Rates and latencies are averaged over the time of 15 outcomes (26 % noise), within these bounds."""

SHUT_COUNTS = 3.0
SHUT_TAU_S = 1.5
"""When nothing is admitted where three would have been, the rate falls no faster than this: it must not take the limit
with it before an error in `out` has leaked away."""

LATEST_COUNTS = 3
RELAX_COUNTS = 3
RELAX_TAU_S = 0.1
"""Tight times begin by the latest 3 outcomes, or those of the last 0.1 s, and end by as many quick ones in a row. To
end too early is seen at once; to wait costs all that probes have to bring, one at a time."""

LEAK_TAU_S = 1.0
"""Of `out`. Spread reports make it stray by sqrt(rate * tau); a queue that grows for less than this is seen in full."""

LEAK_LOCAL = 10.0
"""Times as slowly where `out` is known to be what is in flight: latencies are told when they are over, so that in the
throes of an onset their sum is wrong for a while, by more than a limit."""

LEARN_TAU_S = 30.0
"""Of what is normal: ratio, latency, how far `out` strays. Long against a spike, short against a day."""

LEARN_AGAIN_NS = 5 * NS
"""After tight times or a denial nothing is learned for so long: what follows a jam is not normal."""

TARGET_SHARE = 0.5
"""Of the objective: the mean latency to steer to; the 90th percentile of a queue is then near the objective."""

TARGET_SHARE_LEARNED = 0.9
"""Of an objective that was only learned: nobody has said that it is late."""

TARGET_NORMAL = 1.5
"""Times the normal mean latency: an objective below what the backend can do must not close it."""

OBJECTIVE_NORMAL = 2.0
"""Times the normal p90: the objective where people gave none (contract, section 4)."""

RELAX_SHARE = 0.5
RELAX_NORMAL = 1.2
RELAX_SHARE_MAX = 0.9
"""Tight times end below half the target or 1.2 times the normal latency, at most 0.9 of the target: no flapping."""

CALM_SIGMAS = 4.0
CALM_EXTRA = 2.0
"""Four sigma are one check in 30,000 of a normal distribution; two more checks are for a few per second."""

PACE = 1.5
"""Tight times also bound the rate: by Little's law limit / latency is what belongs to the limit. 1.5 times that hinders
nobody where `out` is exact, and catches its errors where it is not."""

SILENT_PACE = 0.95
SILENT_HOLD_S = 15.0
SILENT_TAU_S = 30.0
"""Of the last known rate, while no outcome comes at all. A dead backend's callers report that they gave up; when even
that is missing it is the reports that are lost. The node goes on as before, and after 15 s takes back more and more."""

PROBE_NS = NS
PROBE_COUNTS = 10
PROBE_MAX_NS = 10 * NS
"""A check is let through when none was for a second or the time of ten, whatever is believed to be out; at least
every 10 s, so that a backend that was hung for long, and shut off, is found to be back."""

TIGHT_SIGMAS = 0.5
MARGIN_SIGMAS = 2.0
"""Of a Poisson count: always, and where the latency leaves room. The first makes nodes that have little gain on those
that have much."""

HARD_TARGET = 1.8
"""Times the target, 0.9 of the objective: so late it is tight whatever the answers do. Between the two it is only while
more is admitted than answered: a slow dependency answers as many as it gets, and to throttle it would gain nothing."""

GROWTH_TAU_S = 0.5
GROWTH_SIGMAS = 3.0
"""Of Poisson's noise in admitted minus answered, leaking."""

DENIED_NS = 200_000_000
"""The same is told by checks that the guard has turned away within so long: a few steps."""

TRIAL_MIN_NS = 4 * NS
TRIAL_MAX_NS = 64 * NS
TRIAL_PASSED_NS = 10 * NS
"""A dependency that has become slow looks like a queue at first, and throttled it stays slow. So the calm limit is
tried after some 4 s, and if that ends in a queue again within 10 s, after twice as long each time: half a second of
queue each."""

PATIENCE_NS = 2_500_000_000
"""After such a trial begins more is admitted than answered anyway, until as much is out as the latency takes."""

HORIZON_LATENCIES = 2.0
HORIZON_MIN_S = 0.5
"""Twice the recent latency ago: what was admitted before that is out no more, whatever the reports have said."""

RATIO_MIN = 0.2
"""Reports per check below which the guard is off: a fifth tells too little of the rest."""

WARM_REPORTS = 20
WARM_NS = 3 * NS
"""What has to be seen before the guard acts; the ratio is then known within some 25 %."""

SILENT_NS = 1_500_000_000
SILENT_COUNTS = 20
"""Checks go out, no outcome comes for so long and for the time of so many of them: tight. Batches take up to 1 s."""

TIER_LOWEST = 0.75
PRIORITY_LOWEST = 9
"""Priority 9 may fill 0.75 of the limit, 0 all of it, the others in proportion."""

TIERS = tuple(1.0 - (1.0 - TIER_LOWEST) * priority / PRIORITY_LOWEST for priority in range(PRIORITY_LOWEST + 1))


class Guard:
    """What this node has out at one backend, and how much that may be."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._spread = jitter()  # so that nodes do not try at the same time
        self.out = 0.0  # outcomes that are still to be reported
        self.ratio = 1.0  # outcomes reported at this node per check that it admits
        self.open_below = inf  # with less than this out no priority is turned away: all that the hot path looks at
        self.limit = inf
        self.is_on = False
        self.is_tight = False
        self.objective_ms: float | None = None  # as people gave it
        self.normal_ms = 0.0  # mean latency in health
        self.normal_p90_ms = 0.0
        self._rate = 0.0  # answers per second
        self._busy = 0.0  # seconds of latency reported per second: what is out, by Little's law
        self._late = 0.0  # decayed sum of latencies (ms) that tell of the queue,
        self._late_count = 0.0  # and of how many
        self._latest = 0.0  # the same over a shorter time
        self._latest_count = 0.0
        self._growth = 0.0  # admitted and not answered, leaking
        self._turned_ns = -LEARN_AGAIN_NS  # when times became tight, or ceased to be
        self._relax_ms = 0.0  # a latency below it is no queue's
        self._good_run = 0  # outcomes in a row with such latencies
        self._denied_ns = -NS  # when it last turned a check away
        self._patient_ns = 0  # until when growth of what is out is what was to be expected
        self._trial_ns = TRIAL_MIN_NS  # after how long in tight times to try without
        self._mean_out = 0.0  # of `out`, averaged like `busy`
        self._lately = 0.0  # outcomes to be expected of what was admitted within the horizon
        self._pace = Pace()  # of checks, whatever is out
        self._known_rate = 0.0  # checks admitted per second while reports came in
        self._idle_ns = 0  # for how long nothing has been admitted
        self._step_ns = 0  # when the limit was last worked out
        self._first_ns = 0  # first report
        self._last_ns = 0  # latest one
        self._jam_ns = -LEARN_AGAIN_NS  # when it last was tight, or turned a check away
        self._reports = 0
        self._admitted = 0  # checks admitted in all, when the limit was last worked out
        self._unanswered = 0  # checks admitted since the last report, as far as known
        # Since the limit was last worked out:
        self._answers = 0
        self._outcomes = 0
        self._busy_ms = 0.0
        self._new_ms = 0.0
        self._new_count = 0
        # Decayed sums over healthy times:
        self._span = self._sum_out = self._sum_square = 0.0
        self._sum_admitted = self._sum_outcomes = 0.0
        self._sketch = Sketch({}, 0.0)  # latencies since the normal ones were last learned
        self._learned_ns = 0

    @property
    def target_ms(self) -> float:
        """The mean latency to steer to."""
        learned_ms = TARGET_SHARE_LEARNED * OBJECTIVE_NORMAL * self.normal_p90_ms
        target_ms = TARGET_SHARE * self.objective_ms if self.objective_ms else learned_ms
        return max(target_ms, TARGET_NORMAL * self.normal_ms)

    def report(self, latency_ms: float | None, kind: Kind, count: int, now_ns: int) -> None:
        """Take outcomes that were reported at this node."""
        if not self._reports:
            self._first_ns = self._learned_ns = now_ns
        self._reports += count
        self._last_ns = now_ns
        self._unanswered = 0
        self.out -= count
        self._outcomes += count
        if kind == "timeout":
            latency_ms = max(latency_ms or 0.0, 2 * (self.objective_ms or OBJECTIVE_NORMAL * self.normal_p90_ms))
        if latency_ms is not None:
            self._busy_ms += latency_ms * count
            self._good_run = self._good_run + count if latency_ms < self._relax_ms else 0
            if kind != "refused":  # a refusal is quick, and tells of no queue
                self._new_ms += latency_ms * count
                self._new_count += count
        if kind in ("ok", "failed"):
            self._answers += count
            if latency_ms is not None:
                self._sketch.add(latency_ms, count)

    def refuses(self, priority: int, jitter: float, now_ns: int) -> bool:
        """Whether a check is to be turned away; `jitter` in [0, 1) rounds a limit that is not whole, without bias."""
        if not self.is_on or (self._pace.per_s == inf and self.out < 0.5):
            return False
        if self._idle_ns > min(max(PROBE_NS, PROBE_COUNTS * NS / (self._known_rate + 1e-3)), PROBE_MAX_NS):
            self._idle_ns = 0
            return False
        if self.out >= 0.5 and self.out + jitter > self.limit * TIERS[priority]:
            return True
        return not self._pace.take(now_ns)

    def turned_away(self, now_ns: int) -> None:
        """A check was."""
        self._jam_ns = self._denied_ns = now_ns

    def step(self, admitted: int, now_ns: int) -> None:
        """Work out the limit if it is time; `admitted` counts all checks that this node ever admitted."""
        span_ns = now_ns - self._step_ns
        if not self._reports:
            self._admitted, self._step_ns = admitted, now_ns  # what was admitted before the first report stays unknown
            return
        if span_ns < STEP_NS:
            return
        span_s = min(span_ns / NS, RATE_TAU_MAX_S)
        self._step_ns = now_ns
        new = admitted - self._admitted
        self._admitted = admitted
        self._unanswered += new
        weight = 1 - exp(-span_s / min(max(RATE_COUNTS / (self._rate + 1e-9), RATE_TAU_MIN_S), RATE_TAU_MAX_S))
        rate = self._answers / span_s
        is_shut = self._idle_ns / NS * self._rate > SHUT_COUNTS and rate < self._rate
        slow = 1 - exp(-span_s / SHUT_TAU_S)
        self._rate += (rate - self._rate) * (min(weight, slow) if is_shut else weight)
        self._busy += (self._busy_ms / 1e3 / span_s - self._busy) * weight
        if self._new_count:
            kept = exp(-self._new_count / max(RATE_COUNTS, self._rate * RATE_TAU_MIN_S))
            self._late = self._late * kept + self._new_ms
            self._late_count = self._late_count * kept + self._new_count
            kept = exp(-self._new_count / max(LATEST_COUNTS, self._rate * RELAX_TAU_S))
            self._latest = self._latest * kept + self._new_ms
            self._latest_count = self._latest_count * kept + self._new_count
        self._growth = self._growth * exp(-span_s / GROWTH_TAU_S) + new * self.ratio - self._answers
        if self._outcomes or now_ns - self._last_ns < SHUT_COUNTS * NS / (self._known_rate + 1):
            self._known_rate += (new / span_s - self._known_rate) * (1 - exp(-span_s / LEAK_TAU_S))
        self._mean_out += (self.out - self._mean_out) * weight
        shift = (self._busy - self._mean_out) * (1 - exp(-span_s / self._leak_tau_s()))
        self.out += shift
        self._mean_out += shift
        latency_s = self._late / self._late_count / 1e3 if self._late_count else 0.0
        self._lately *= exp(-span_s / max(HORIZON_LATENCIES * latency_s, HORIZON_MIN_S))
        self._lately += new * self.ratio
        self.out = min(self.out, self._lately + 1)
        self._idle_ns = 0 if new else self._idle_ns + span_ns
        self._judge(now_ns)
        self._learn(new, span_s, now_ns)
        self._bound(now_ns)
        self._answers = self._outcomes = self._new_count = 0
        self._busy_ms = self._new_ms = 0.0

    def _leak_tau_s(self) -> float:
        """How fast to lead `out` back: slowly where it strays no more than a Poisson count does."""
        if not self._span:
            return LEAK_TAU_S
        mean = self._sum_out / self._span
        variance = max(self._sum_square / self._span - mean * mean, 1e-9)
        return LEAK_TAU_S * min(max(LEAK_LOCAL * (abs(mean) + 1) / variance, 1.0), LEAK_LOCAL)

    def _judge(self, now_ns: int) -> None:
        """Settle whether times are tight."""
        if not self.is_on:
            if self._reports < WARM_REPORTS or now_ns - self._first_ns < WARM_NS or not self.target_ms:
                return  # without a target, as when nothing but refusals was reported, every answer would be too late
            self.is_on = True
            self.out = self._mean_out = self._busy
        target_ms = self.target_ms
        latency_ms = self._late / self._late_count if self._late_count else 0.0
        latest_ms = self._latest / self._latest_count if self._latest_count else 0.0
        self._relax_ms = min(max(RELAX_SHARE * target_ms, RELAX_NORMAL * self.normal_ms), RELAX_SHARE_MAX * target_ms)
        if not self.is_tight:
            noise = sqrt(max(self._rate, 1.0) * GROWTH_TAU_S)
            grows = self._growth > GROWTH_SIGMAS * noise or now_ns - self._denied_ns < DENIED_NS
            queued = max(latency_ms, latest_ms) > target_ms and grows and now_ns >= self._patient_ns
            too_late = latency_ms > target_ms * HARD_TARGET or latest_ms > 2 * target_ms or queued
            self.is_tight = too_late or self._is_silent(now_ns)
            if now_ns - self._turned_ns > TRIAL_PASSED_NS:
                self._trial_ns = TRIAL_MIN_NS
            if self.is_tight:
                self._turned_ns = now_ns
        elif self._is_silent(now_ns):
            self._turned_ns = now_ns
        elif self._good_run >= max(RELAX_COUNTS, self._rate * RELAX_TAU_S):
            self.is_tight = False
            self._turned_ns = now_ns
        elif now_ns - self._turned_ns > self._trial_ns * (0.5 + self._spread) and latency_ms < target_ms * HARD_TARGET:
            self.is_tight = False
            self._turned_ns = now_ns
            self._trial_ns = min(2 * self._trial_ns, TRIAL_MAX_NS)
            self._patient_ns = now_ns + PATIENCE_NS
            self._late = self._late_count = 0.0
        if self.is_tight:
            self._jam_ns = now_ns

    def _is_silent(self, now_ns: int) -> bool:
        """Whether checks go out and nothing comes back."""
        normal_rate = self._sum_outcomes / self._span if self._span else 0.0
        longest_ns = max(SILENT_NS, SILENT_COUNTS * NS / (normal_rate + 1e-9))
        return self._unanswered >= SILENT_COUNTS * RATIO_MIN and now_ns - self._last_ns >= longest_ns

    def _learn(self, admitted: int, span_s: float, now_ns: int) -> None:
        """Learn what is normal, while it is."""
        if self.is_on and now_ns - self._jam_ns < LEARN_AGAIN_NS:
            self._sketch = Sketch({}, 0.0)
            return
        if now_ns - self._last_ns > SILENT_NS:
            return
        kept = exp(-span_s / LEARN_TAU_S)
        self._sum_admitted = self._sum_admitted * kept + admitted
        self._sum_outcomes = self._sum_outcomes * kept + self._outcomes
        if self._sum_admitted:
            self.ratio = self._sum_outcomes / self._sum_admitted
        if self.is_on:
            self._span = self._span * kept + span_s
            self._sum_out = self._sum_out * kept + self.out * span_s
            self._sum_square = self._sum_square * kept + self.out * self.out * span_s
        if self._sketch.count >= WARM_REPORTS and now_ns - self._learned_ns >= NS:
            weight = 1 - exp(-(now_ns - self._learned_ns) / NS / LEARN_TAU_S) if self.normal_ms else 1.0
            self.normal_ms += (self._sketch.mean_ms - self.normal_ms) * weight
            self.normal_p90_ms += (self._sketch.quantiles_ms(0.9)[0] - self.normal_p90_ms) * weight
            self._sketch = Sketch({}, 0.0)
            self._learned_ns = now_ns

    def _bound(self, now_ns: int) -> None:
        """Work out the limit."""
        if not self.is_on or self.ratio < RATIO_MIN:
            self.limit = self.open_below = self._pace.per_s = inf
            return
        target_ms = self.target_ms
        expected = self._rate * target_ms / 1e3
        if self.is_tight:
            latency_ms = self._late / self._late_count if self._late_count else target_ms
            if self._latest_count:
                latency_ms = min(latency_ms, self._latest / self._latest_count)
            ease = max(target_ms, 1e-3) / max(latency_ms, 1e-3)  # no target: only refusals were ever reported
            margin = TIGHT_SIGMAS + MARGIN_SIGMAS * min(max(1 - 1 / ease, 0.0), 1.0)
            self.limit = expected * min(ease, 1.0) + margin * sqrt(expected)
            # One answer in time is reason enough for a check a second.
            least = min(float(self._good_run), 1.0)
            self.limit = max(self.limit, least)
            self._pace.per_s = max(PACE * self.limit / max(latency_ms / 1e3, 0.01) / self.ratio, least)
            silent_s = (now_ns - self._last_ns) / NS
            if self._is_silent(now_ns):
                fading = exp(-max(silent_s - SILENT_HOLD_S, 0) / SILENT_TAU_S)
                self._pace.per_s = SILENT_PACE * self._known_rate * fading
                self.limit = inf
        else:
            expected *= HARD_TARGET
            self.limit = expected + MARGIN_SIGMAS * sqrt(expected)
            if now_ns - self._turned_ns > LEARN_AGAIN_NS:
                span = self._span or 1.0
                mean = self._sum_out / span
                sigma = sqrt(max(self._sum_square / span - mean * mean, 0.0))
                self.limit = max(self.limit, mean + CALM_SIGMAS * sigma)
            self.limit += CALM_EXTRA
            self._pace.per_s = inf
        self.open_below = -inf if self.is_tight else self.limit * TIER_LOWEST - 1
