"""A node's own guard of a backend: how many checks may be out and not yet answered, and in tight times at which rate.

It needs no controller: what the other nodes send and hear comes with their pings (`pulse`), and where none comes it
goes by its own. Of a rate it takes its share of the demand.

What is out is what was admitted within the latency of what is answered now: exact for a queue, whatever part of the
outcomes is reported, at whichever node, in whatever batches. It needs no names of checks, and cannot stray.

    out     =  admitted in the last d seconds        a = answers per second
    d       =  mean latency of the latest outcomes, longer when they are overdue
    target  =  a mean latency within the objective (`target`)
    calm:      out <= 4 + the more of x + 1.5 sqrt(x), x = 1.2 a * target, and what was out and in time in health, less
               for low priorities
    tight:     a rate, and a window for what is held (`steering`), the highest priority first

Times are tight from the moment that more is sent than answered, beyond chance, and later than in health; or that
answers are far too late; until they are in time and for 4 s and 100 checks few were turned away, or no answer told of a
queue. A latency that stays so for 6 s while less is admitted is no queue's, and where people bear it, is the normal
one from then on.

Invariant: a check gets through once in a while whatever is believed to be out. Time comes in as an argument.
"""

from __future__ import annotations

from math import exp, inf, sqrt
from typing import TYPE_CHECKING, Literal

from limiter_node.core.adaptive.flow import SURPLUS_TAU_S, Flow, History, Latest
from limiter_node.core.adaptive.normal import Normal
from limiter_node.core.adaptive.ration import Ration
from limiter_node.core.adaptive.steering import RANKS, UNBOUND, tight_rate, tight_windows
from limiter_node.core.adaptive.target import calm_target_ms, slo_ms, tight_target_ms

if TYPE_CHECKING:
    from limiter_node.core.adaptive.pulse import Pulse

Kind = Literal["ok", "refused", "failed", "timeout"]

NS = 1_000_000_000
STEP_NS = 50_000_000
"""How often the limit is worked out anew: within a round trip of most backends, at some 5 us each."""

SPAN_MAX_S = 4.0
"""A longer time without a check counts as so long."""

OVERDUE_COUNTS = 3.0
"""With fewer checks out since the last report none is overdue: it may be chance that nothing comes."""

OVERDUE_GAPS = 2
"""Times the longest pause between reports in health: callers report in batches."""

RELAX_NS = 4 * NS
RELAX_COUNTS = 100
RELAX_TURNED = 0.2
"""Tight times end when for so long, and for the time of so many checks, no more than a fifth was turned away: had they
ended by quick answers each drained queue would have been the start of the next (0.91 instead of 0.94 of the goodput at
44 % of the capacity). If nobody were to be, a dependency 2.4 times slower, and no less able, would keep 0.62 to 0.85 of
its goodput instead of 0.86 to 0.98, and in health 13 % of 12 to 25/s would be turned away instead of 5 %."""

KNOWN_TAU_S = 2.0
"""Of the rate that goes on when reports are lost; with 1 s its noise cost 2 %."""

LEARN_AGAIN_NS = 5 * NS
"""After tight times or a denial nothing is learned for so long: what follows a jam is not normal."""

JAM_OVER = 2
"""Answers in time in a row that end a jam."""

NO_QUEUE_NS = 6 * NS
"""A queue that is admitted less than it answers is gone in seconds. What is late for so long without a break, though
callers wait for it and nobody has said that it is too late, is as quick as the backend is from now on."""

BUCKET = 5.0
"""Checks that a node may save up in tight times. With 3, eight nodes served 1 % less of the highest priority, and three
nodes at 11/s wasted a quarter of the rate: before there were windows. With them 6 cost 0.04 at 12/s."""

CALM = 1.2
CALM_SIGMAS = 1.5
CALM_EXTRA = 4.0
"""Times what belongs to the target, and Poisson's noise; four more are for a few per second. As many as were out and
answered in time are never too many: groups are served as long as that does no harm. Without the noise groups of ten at
three nodes were denied 4 % for 40 s after a recovery; with 1.0 a dependency 3 times slower lost 3 %."""

SILENT_HOLD_S = 15.0
SILENT_TAU_S = 30.0
SILENT_PART = 0.95
"""A dead backend's callers report that they gave up; when even that is missing it is the reports that are lost. The
node goes on at the last known rate, and after 15 s takes back more and more; in tight times at less from the first.
For the rate is known within 3.5 %, and after 5 s at 4 % too much no answer is in time: of 16 fleets without reports for
15 s the worst kept 0.67 of the goodput, and keeps 0.92 (mean 0.915 and 0.94)."""

PROBE_NS = NS
PROBE_COUNTS = 10
PROBE_MAX_NS = 10 * NS
"""A check is let through when none was for a second or the time of ten, whatever is believed to be out; at least
every 10 s, so that a backend that was hung for long, and shut off, is found to be back."""

HARD_TARGET = 1.5
"""Times the target: so late it is tight whatever the answers do. Between the two it is only while
more is admitted than answered: a slow dependency answers as many as it gets, and to throttle it would gain nothing."""

LATE_MAX = 10.0
"""Times the target: later than that is as bad. Answers that were hung for minutes would else be averaged away one probe
at a time: the guard opened more than 70 s after a hang of 3 minutes."""

SURPLUS_SIGMAS = 2.5
EARLY_NORMAL = 1.3
"""Of the noise in admitted minus answered, leaking, and of the normal latency. The noise is Poisson's, or more where
checks come in groups: else groups of five were denied 1.6 % in health instead of 0.6. A queue is told by that 0.2 s
before its latency is at the target: a drop to 15 % keeps 0.83 instead of 0.80. It may be wrong: where there is no queue
tight times let in all that belongs to the target, and turn nobody away."""

PAUSE_USUAL_S = 0.1
"""What callers that report in batches hold back longer is no queue."""

DENIED_NS = 200_000_000
"""The same is told by checks that the guard has turned away within so long: a few steps."""

RATIO_MIN = 0.2
"""Reports per check below which the guard is off: a fifth tells too little of the rest."""

WARM_REPORTS = 20
WARM_NS = NS
"""What has to be seen before the guard acts; the ratio is then known within some 25 %."""

SILENT_NS = 1_250_000_000
SILENT_COUNTS = 20
"""Checks go out, no outcome comes for so long and for the time of so many of them: tight. Batches take up to 1 s."""

TIER_LOWEST = 0.75
"""Priority 9 may fill 0.75 of the limit, 0 all of it, the others in proportion."""

TIERS = tuple(TIER_LOWEST + (1.0 - TIER_LOWEST) * rank for rank in RANKS)


class Guard:
    """What this node has out at one backend, and how much that may be."""

    def __init__(self) -> None:
        self.out = 0.0  # outcomes that are still to be reported
        self.open_below = inf  # with less than this out no priority is turned away: all that the hot path looks at
        self.limit = inf
        self.is_on = False
        self.is_tight = False
        self.objective_ms: float | None = None  # as people gave it
        self.normal = Normal()
        self.share = 1.0  # this node's part of what all that are heard send
        self._latest = Latest()  # latencies that tell of the queue
        self._flow = Flow()
        self._is_silent = False  # checks go out and nothing comes back
        self._is_jammed = False  # answers are far too late: admit less than comes back, and measure nothing
        self._history = History()
        self._turned_ns = -LEARN_AGAIN_NS  # when times became tight, or ceased to be
        self._in_time_ns = 0  # when answers last were in time,
        self._queued_ns = 0  # and when they were later than normal
        self._good_ms = inf  # a latency below it is in time; before anything is normal each is
        self._late_max_ms = inf
        self._good_run = 0  # outcomes in a row with such latencies
        self._denied_ns = -NS  # when a check was last turned away: by it, in tight times by whomever
        self._short_ns = -NS  # when many were
        self._ration = Ration(BUCKET)  # in tight times
        self._windows = UNBOUND
        self._unseen = 0.0  # of what is held, beyond what is out by the latencies
        self._known_rate = 0.0  # checks admitted per second while reports came in
        self._idle_ns = 0  # for how long nothing has been admitted
        self._step_ns = 0  # when the limit was last worked out
        self._first_ns = 0  # first report
        self._last_ns = 0  # latest one
        self._jam_ns = -LEARN_AGAIN_NS  # when it last was tight, or turned a check away
        self._reports = 0
        self._others = 0  # checks that other nodes have sent
        self._admitted = 0  # checks admitted in all, when the limit was last worked out,
        self._due = 0.0  # and those of them whose outcomes were due
        self._unanswered = 0  # checks admitted since the last report, as far as known
        # Since the limit was last worked out:
        self._turned = 0  # checks turned away, here and elsewhere
        self._answers = self._refused = 0
        self._outcomes = 0
        self._new_ms = 0.0
        self._new_count = 0

    @property
    def target_ms(self) -> float:
        """The mean latency that is in time; in tight times it is steered to less, see `target`."""
        return calm_target_ms(self.objective_ms, self.normal)

    def report(self, latency_ms: float | None, kind: Kind, count: int, now_ns: int) -> None:
        """Take outcomes that were reported at this node."""
        self._take(latency_ms, kind, count, now_ns)
        if kind in ("ok", "failed") and latency_ms is not None:
            self.normal.hear(latency_ms * count, latency_ms * latency_ms * count, count)

    def hear(self, news: Pulse, now_ns: int) -> None:
        """Take what another node has sent, and what was reported to it."""
        self._others += news.sent
        self._turned += max(news.wanted - news.sent, 0)
        if news.answers:
            self._take(news.latencies_ms / news.answers, "ok", news.answers, now_ns)
            self.normal.hear(news.latencies_ms, news.squares_ms2, news.answers)
        if news.refused:
            self._take(None, "refused", news.refused, now_ns)
        if news.timeouts:
            self._take(None, "timeout", news.timeouts, now_ns)

    def _take(self, latency_ms: float | None, kind: Kind, count: int, now_ns: int) -> None:
        if not self._reports:
            self._first_ns = now_ns
            self.normal.begin(now_ns)
        self._reports += count
        pause_ns = now_ns - self._last_ns if self._last_ns else 0
        if now_ns - self._jam_ns > LEARN_AGAIN_NS and pause_ns > self.normal.pause_ns:
            self.normal.pause_ns = pause_ns
        self._last_ns = now_ns
        self._outcomes += count
        if kind == "timeout":
            latency_ms = max(latency_ms or 0.0, 2 * slo_ms(self.objective_ms, self.normal.p90_ms))
        if latency_ms is not None:
            self._good_run = self._good_run + count if latency_ms < self._good_ms else 0
            if kind != "refused":  # a refusal is quick, and tells of no queue
                self._new_ms += min(latency_ms, self._late_max_ms) * count
                self._new_count += count
        if kind in ("ok", "failed"):
            self._answers += count
        elif kind == "refused":
            self._refused += count

    def refuses(self, priority: int, jitter: float, now_ns: int) -> bool:
        """Whether a check is to be turned away; `jitter` in [0, 1) rounds a limit that is not whole, without bias."""
        if not self.is_on or (not self.is_tight and self.out < 0.5):
            return False
        if self._idle_ns > min(max(PROBE_NS, PROBE_COUNTS * NS / (self._known_rate + 1e-3)), PROBE_MAX_NS):
            self._idle_ns = 0
            return False
        if self.is_tight:
            held = self.out + self._unseen + jitter
            return held > self._windows[priority] or not self._ration.draw(priority, now_ns)
        return self.out + jitter > self.limit * TIERS[priority]

    def turned_away(self, now_ns: int) -> None:
        """A check was."""
        self._jam_ns = self._denied_ns = now_ns
        self._turned += 1

    def step(self, admitted: int, now_ns: int) -> None:
        """Work out the limit if it is time; `admitted` counts all checks that this node ever admitted."""
        span_ns = now_ns - self._step_ns
        admitted += self._others
        if not self._reports:
            self._admitted, self._due, self._step_ns = admitted, admitted, now_ns  # earlier ones stay unknown
            return
        if span_ns < STEP_NS:
            return
        span_s = min(span_ns / NS, SPAN_MAX_S)
        self._step_ns = now_ns
        new = admitted - self._admitted
        self._admitted = admitted
        self._unanswered = max(new - self._outcomes, 0) if self._outcomes else self._unanswered + new
        if self._new_count:
            is_over = self._is_jammed and self._good_run >= JAM_OVER
            self._latest.add(self._new_ms, self._new_count, self._flow.answers_s, now_ns, begins_anew=is_over)
        ratio = max(self.normal.ratio, RATIO_MIN)
        lost = self._outcomes - self._answers
        taken = new - self._refused / ratio  # what is refused waits in no queue
        self._flow.step(taken, self._answers / ratio, lost / ratio, span_s, self.normal.pause_ns / NS)
        if self._outcomes or now_ns - self._last_ns < OVERDUE_COUNTS * NS / (self._known_rate + 1):
            self._known_rate += (new / span_s - self._known_rate) * (1 - exp(-span_s / KNOWN_TAU_S))
        self.normal.bear(self.out, self._good_run)
        self._history.add(now_ns, admitted)
        before, self._due = self._due, self._history.count_at(now_ns - round(self._delay_ms(now_ns) * 1e6))
        self.out = admitted - self._due
        self._flow.turn_away(self._turned, new)
        if self._flow.turned_away > RELAX_TURNED:
            self._short_ns = now_ns
        self._flow.hold(new, self._outcomes / ratio, self.out, span_s, self.normal.batch_s)
        self._follow(span_s, now_ns)
        self._idle_ns = 0 if new else self._idle_ns + span_ns
        self._judge(now_ns)
        self._learn(new, self._due - before, span_s, now_ns)
        self._bound(now_ns)
        self._answers = self._refused = self._outcomes = self._new_count = self._turned = 0
        self._new_ms = 0.0

    def _follow(self, span_s: float, now_ns: int) -> None:
        """Note whether the backend is jammed or silent, and what it could answer before."""
        flow, was_silent = self._flow, self._is_silent
        self._is_jammed = self.is_tight and self._delay_ms(now_ns) > HARD_TARGET * self.target_ms
        flow.remember(flow.answers_s, span_s, is_jammed=self._is_jammed)
        self._is_silent = self._hears_nothing(now_ns)
        if self._is_silent and not was_silent and self.is_tight and self._turned_ns < self._last_ns:
            self._known_rate *= SILENT_PART
        if was_silent or self._is_silent:
            flow.held = self.out  # of reports that are lost there is nothing to count
        if was_silent and self._outcomes:
            flow.memory_s = max(flow.memory_s, self._known_rate)

    @property
    def latency_ms(self) -> float:
        """The mean of the latest outcomes."""
        return self._latest.mean_ms

    def _delay_ms(self, now_ns: int) -> float:
        """How long ago the checks were admitted that are answered now; longer when answers are overdue."""
        overdue_ns = (
            now_ns - self._last_ns - OVERDUE_GAPS * self.normal.pause_ns if self._unanswered >= OVERDUE_COUNTS else 0
        )
        return self.latency_ms + max(overdue_ns, 0) / 1e6

    def _judge(self, now_ns: int) -> None:
        """Settle whether times are tight."""
        # Without anything normal, as when nothing but refusals was reported, every answer would be too late.
        is_warm = self._reports >= WARM_REPORTS and now_ns - self._first_ns >= WARM_NS and self.normal.mean_ms > 0
        self.is_on = self.is_on or is_warm
        if not self.is_on:
            return
        target_ms = self.target_ms
        latency_ms = self._delay_ms(now_ns)
        self._good_ms, self._late_max_ms = target_ms, LATE_MAX * target_ms
        is_queued = latency_ms > EARLY_NORMAL * self.normal.mean_ms
        if is_queued or latency_ms > (self.normal.mean_ms + tight_target_ms(self.objective_ms, self.normal)) / 2:
            self._queued_ns = now_ns  # a queue held to its target may be less than what tells one otherwise
        if not self.is_tight:
            denies = now_ns - self._denied_ns < DENIED_NS
            late = latency_ms > target_ms * (1 if denies else HARD_TARGET)
            self.is_tight = late or self._is_silent or (is_queued and self._grows())
            if self.is_tight:
                self._turned_ns = self._in_time_ns = now_ns
        elif self._is_silent:
            self._turned_ns = self._in_time_ns = now_ns
        elif latency_ms < target_ms:
            self._in_time_ns = now_ns
            quiet_ns = max(RELAX_NS, RELAX_COUNTS * NS / (self.normal.admitted_s + 1))
            if now_ns - min(self._short_ns, self._queued_ns) > quiet_ns:
                self.is_tight = False
                self._turned_ns = now_ns
        elif now_ns - self._in_time_ns > NO_QUEUE_NS and self._is_no_queue(latency_ms):
            self.normal.accept(latency_ms)
            self._flow.memory_s = max(self._flow.memory_s, self._known_rate)  # the drain told of no capacity
            self.is_tight = False
            self._turned_ns = now_ns
        if self.is_tight:
            self._jam_ns = now_ns

    def _grows(self) -> bool:
        """Whether more was sent than answered, beyond chance and what callers may hold back."""
        pause_s = max(self.normal.pause_ns / NS - PAUSE_USUAL_S, 0.0)
        answers_s = max(self._flow.answers_s, 1.0)
        chance = sqrt(answers_s * SURPLUS_TAU_S * self.normal.dispersion)
        return self._flow.surplus > SURPLUS_SIGMAS * chance + answers_s * pause_s

    def _is_no_queue(self, latency_ms: float) -> bool:
        """Whether answers come as late as ever, though fewer are let in than come back: they take so long now."""
        is_borne = self.objective_ms is None or latency_ms < self.objective_ms
        return is_borne and self.normal.mean_ms > 0 and self._flow.is_whole

    def _hears_nothing(self, now_ns: int) -> bool:
        """Whether checks go out and nothing comes back."""
        longest_ns = max(SILENT_NS, SILENT_COUNTS * NS / (self.normal.outcomes_s + 1e-9))
        return self._unanswered >= SILENT_COUNTS * RATIO_MIN and now_ns - self._last_ns >= longest_ns

    def _learn(self, admitted: int, due: float, span_s: float, now_ns: int) -> None:
        """Learn what is normal, while it is."""
        if self.is_on and now_ns - self._jam_ns < LEARN_AGAIN_NS:
            self.normal.forget()
        elif now_ns - self._last_ns <= SILENT_NS:
            self.normal.learn(admitted, due, self._outcomes, span_s, now_ns)

    def _bound(self, now_ns: int) -> None:
        """Work out the limit, or in tight times the rate."""
        if not self.is_on or self.normal.ratio < RATIO_MIN:
            self.limit = self.open_below = inf
            self._ration.set_rate(None, now_ns)
            return
        if self.is_tight:
            self._bound_tight(now_ns)
            return
        self._ration.set_rate(None, now_ns)
        expected = self._flow.answers_s * self.target_ms / 1e3
        if now_ns - self._turned_ns > LEARN_AGAIN_NS:
            # A pause of a few seconds makes the next check no burst.
            expected = max(expected, self.normal.admitted_s * self.target_ms / 1e3)
        expected *= CALM
        chance = sqrt(expected * self.normal.dispersion)
        self.limit = max(expected + CALM_SIGMAS * chance, self.normal.peak / TIER_LOWEST) + CALM_EXTRA
        self.open_below = self.limit * TIER_LOWEST - 1

    def _bound_tight(self, now_ns: int) -> None:
        flow, target_s = self._flow, tight_target_ms(self.objective_ms, self.normal) / 1e3
        if self._is_silent:
            silent_s = (now_ns - self._last_ns) / NS
            rate = self._known_rate * exp(-max(silent_s - SILENT_HOLD_S, 0) / SILENT_TAU_S)
            self._windows = UNBOUND
        else:
            late_s = (now_ns - self._in_time_ns) / NS
            run = self._good_run
            rate = tight_rate(flow, target_s=target_s, late_s=late_s, good_run=run, is_jammed=self._is_jammed)
            self._windows = tight_windows(flow, target_s=target_s, good_run=run, share=self.share)
        self._unseen = flow.held - self.out
        self._ration.set_rate(rate * self.share, now_ns, flow.memory_s * self.share)
        self.open_below = -inf
