"""A node's own guard of a backend: how many checks may be out and not yet reported, by Little's law.

    out    <- out + ratio per admitted check - 1 per reported outcome, and leaks towards the sum of latencies per second
    calm:     limit = max(x + 2 sqrt(x), mean + 4 sigma of `out` in health) + 2,    x = answers per second * target
    tight:    limit = x + 2 sqrt(x) * clamp(2 - 2 latency / target, 0, 1)
    target =  max(0.6 objective, 1.5 normal mean latency)         tight: the recent mean latency is above it

A queue in front of the backend shows in `out` before it shows in any latency, so the guard acts within a round trip.
A limit below what the backend can do lowers its latency, and at a latency below the target the limit admits more than
is answered, so that the rate grows by their ratio every round until the latency is the target: the guard lets go by
itself.

Outcomes carry no check's name. Where they come back to the node that admitted, `out` is what is in flight; where a load
balancer spreads them it is a random walk about this node's part of it, which the leak ties down: nodes at their limits
admit one check for each outcome, so that what all have in flight stays, and the leak steers that to the target. How far
`out` strays while all is well is learned, and the calm limit lies above that, so that noise throttles nobody. Close to
the target no margin is left, because the margins of 24 nodes add up to a queue. Callers that report a part of what they
do are known by the ratio, learned in health too.

Invariant: a check is let through when nothing is out. Time comes in as an argument, nothing decides by chance.
"""

from __future__ import annotations

from math import exp, inf, sqrt
from typing import Literal

from limiter_node.core.adaptive.sketch import Sketch

Kind = Literal["ok", "refused", "failed", "timeout"]

NS = 1_000_000_000
STEP_NS = 50_000_000
"""How often the limit is worked out anew: within a round trip of most backends, at some 5 us each."""

RATE_COUNTS = 15
RATE_TAU_MIN_S = 0.25
RATE_TAU_MAX_S = 4.0
"""Rates and latencies are averaged over the time of 15 outcomes (26 % noise), within these bounds."""

LEAK_TAU_S = 2.0
"""Of `out`. Spread reports make it stray by sqrt(rate * tau); a queue that grows for less than this is seen in full."""

LEARN_TAU_S = 30.0
"""Of what is normal: ratio, latency, how far `out` strays. Long against a spike, short against a day."""

LEARN_AGAIN_NS = 5 * NS
"""After tight times or a denial nothing is learned for so long: what follows a jam is not normal."""

TARGET_SHARE = 0.6
"""Of the objective: the mean latency to steer to; the 90th percentile of a queue is then near the objective."""

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

MARGIN_SIGMAS = 2.0
"""Of a Poisson count, where the latency leaves room."""

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

    def __init__(self) -> None:
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
        objective = self.objective_ms or OBJECTIVE_NORMAL * self.normal_p90_ms
        return max(TARGET_SHARE * objective, TARGET_NORMAL * self.normal_ms)

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
            if kind != "refused":  # a refusal is quick, and tells of no queue
                self._new_ms += latency_ms * count
                self._new_count += count
        if kind in ("ok", "failed"):
            self._answers += count
            if latency_ms is not None:
                self._sketch.add(latency_ms, count)

    def refuses(self, priority: int, jitter: float) -> bool:
        """Whether a check is to be turned away; `jitter` in [0, 1) rounds a limit that is not whole, without bias."""
        if self.out < 0.5 or not self.is_on:
            return False
        return self.out + jitter > self.limit * TIERS[priority]

    def turned_away(self, now_ns: int) -> None:
        """A check was."""
        self._jam_ns = now_ns

    def step(self, admitted: int, now_ns: int) -> None:
        """Work out the limit if it is time; `admitted` counts all checks that this node ever admitted."""
        span_ns = now_ns - self._step_ns
        if span_ns < STEP_NS or not self._reports:
            return
        span_s = min(span_ns / NS, RATE_TAU_MAX_S)
        self._step_ns = now_ns
        new = admitted - self._admitted
        self._admitted = admitted
        self._unanswered += new
        weight = 1 - exp(-span_s / min(max(RATE_COUNTS / (self._rate + 1e-9), RATE_TAU_MIN_S), RATE_TAU_MAX_S))
        self._rate += (self._answers / span_s - self._rate) * weight
        self._busy += (self._busy_ms / 1e3 / span_s - self._busy) * weight
        if self._new_count:
            self._late = self._late * (1 - weight) + self._new_ms
            self._late_count = self._late_count * (1 - weight) + self._new_count
        self.out += (self._busy - self.out) * (1 - exp(-span_s / LEAK_TAU_S))
        self._judge(now_ns)
        self._learn(new, span_s, now_ns)
        self._bound()
        self._answers = self._outcomes = self._new_count = 0
        self._busy_ms = self._new_ms = 0.0

    def _judge(self, now_ns: int) -> None:
        """Settle whether times are tight."""
        if not self.is_on:
            if self._reports < WARM_REPORTS or now_ns - self._first_ns < WARM_NS:
                return
            self.is_on = True
            self.out = self._busy
        target_ms = self.target_ms
        latency_ms = self._late / self._late_count if self._late_count else 0.0
        normal_rate = self._sum_outcomes / self._span if self._span else 0.0
        silent_ns = now_ns - self._last_ns
        if (
            self._unanswered >= SILENT_COUNTS * RATIO_MIN
            and silent_ns >= max(SILENT_NS, SILENT_COUNTS * NS / (normal_rate + 1e-9))
        ) or latency_ms > target_ms:
            self.is_tight = True
        elif latency_ms < min(max(RELAX_SHARE * target_ms, RELAX_NORMAL * self.normal_ms), RELAX_SHARE_MAX * target_ms):
            self.is_tight = False
        if self.is_tight:
            self._jam_ns = now_ns

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

    def _bound(self) -> None:
        """Work out the limit."""
        if not self.is_on or self.ratio < RATIO_MIN:
            self.limit = self.open_below = inf
            return
        target_ms = self.target_ms
        expected = self._rate * target_ms / 1e3
        margin = MARGIN_SIGMAS * sqrt(expected)
        if self.is_tight:
            latency_ms = self._late / self._late_count if self._late_count else 0.0
            self.limit = expected + margin * min(max(2 - 2 * latency_ms / target_ms, 0.0), 1.0) if target_ms else inf
        else:
            span = self._span or 1.0
            mean = self._sum_out / span
            sigma = sqrt(max(self._sum_square / span - mean * mean, 0.0))
            self.limit = max(expected + margin, mean + CALM_SIGMAS * sigma) + CALM_EXTRA
        self.open_below = self.limit * TIER_LOWEST - 1
