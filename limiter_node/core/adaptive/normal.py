"""What is normal at a backend, learned while all is well: latency, outcomes per check, the most that is out, and how
unevenly checks come.

Everything fades over half a minute, so that it follows the day and no spike. Time comes in as an argument.
"""

from __future__ import annotations

from math import exp, log, sqrt

NS = 1_000_000_000
LEARN_TAU_S = 30.0
"""Long against a spike, short against a day."""

REPORTS_MIN = 20
"""For a mean and a 90th percentile."""

CHANCE_COUNTS = 7.0
"""Outcomes that may fail to come by chance alone: their time is no batch. Of the 360 pauses of half a minute at 12/s
the longest is ln 360, or six, times the mean."""

RATIO_CHANCE = 10.0
"""Outcomes too many or too few by chance: the end of each spell of health is known to a few of them. Less is no reason
to believe that callers report but a part: at 12 to 25/s 0.97 was made of 1."""

COUNTED_S = 0.25
COUNTED_MAX_S = 2.0
BEAT = 1.0
"""Checks are counted over so long; a longer pause tells of no unevenness. The other nodes' come with their pings, whose
beat against these spans makes up to 1 more of the dispersion than there is."""

Z_90 = 1.2816


class Normal:
    """Of one backend, as a guard sees it."""

    def __init__(self) -> None:
        self.ratio = 1.0  # outcomes reported per check that is admitted
        self.mean_ms = 0.0
        self.p90_ms = 0.0
        self.pause_ns = 0  # longest time between reports
        self.peak = 0.0  # most that was out, and answered in time
        # Decayed sums:
        self._span_s = 0.0
        self._due = self._outcomes = 0.0
        self._excess = self._expected = 0.0  # of counts: half their squared differences, and their mean
        self._counted, self._counted_s = 0, 0.0  # checks, and in how many seconds
        self._before: tuple[float, float] | None = None  # checks per second in the count before, and its seconds
        # Latencies since the normal ones were last learned:
        self._latencies_ms = self._squares_ms2 = 0.0
        self._count = 0
        self._learned_ns = 0
        # Most that was out since an answer was late or it was borne, which it is with so many answers in time in a row:
        self._crest = self._borne_run = 0.0
        self._run = 0

    @property
    def admitted_s(self) -> float:
        """Checks per second."""
        return max(self._due, 0.0) / self._span_s if self._span_s else 0.0

    @property
    def outcomes_s(self) -> float:
        """Outcomes per second."""
        return self._outcomes / self._span_s if self._span_s else 0.0

    @property
    def batch_s(self) -> float:
        """For how long callers hold outcomes back, to report several at once."""
        return max(self.pause_ns / NS - CHANCE_COUNTS / (self.outcomes_s + 0.1), 0.0)

    @property
    def dispersion(self) -> float:
        """Variance of counts of checks by their mean: 1 where they come one by one, more where in groups."""
        return max(self._excess / self._expected - BEAT, 1.0) if self._expected else 1.0

    def begin(self, now_ns: int) -> None:
        """The first outcome is about to be heard."""
        self._learned_ns = now_ns

    def hear(self, latencies_ms: float, squares_ms2: float, count: int) -> None:
        """Take sums over the latencies of answers; whether they are normal is for `learn` or `forget` to say."""
        self._latencies_ms += latencies_ms
        self._squares_ms2 += squares_ms2
        self._count += count

    def forget(self) -> None:
        """What was heard lately is not normal."""
        self._begin_latencies()
        self._counted, self._counted_s, self._before = 0, 0.0, None

    def learn(self, admitted: int, due: float, outcomes: int, span_s: float, now_ns: int) -> None:
        """Take what was seen in so many seconds in which all was well.

        `due`: checks of which the outcomes were to come in that time. A spell of health ends when more is sent than
        answered: those admitted would have made 0.93 of a ratio of 1 at 12/s.
        """
        kept = exp(-span_s / LEARN_TAU_S)
        self._due = self._due * kept + due
        self._outcomes = self._outcomes * kept + outcomes
        if self._due > 0:
            is_chance = abs(self._outcomes - self._due) < RATIO_CHANCE
            self.ratio = 1.0 if is_chance else self._outcomes / self._due
        self._span_s = self._span_s * kept + span_s
        self._count_checks(admitted, span_s)
        self.peak *= kept
        self.pause_ns = round(self.pause_ns * kept)
        if self._count >= REPORTS_MIN and now_ns - self._learned_ns >= NS:
            mean_ms = self._latencies_ms / self._count
            weight = 1 - exp(-(now_ns - self._learned_ns) / NS / LEARN_TAU_S) if self.mean_ms else 1.0
            self.mean_ms += (mean_ms - self.mean_ms) * weight
            self.p90_ms += (_p90(mean_ms, self._squares_ms2 / self._count) - self.p90_ms) * weight
            self._learned_ns = now_ns
            self._begin_latencies()

    def bear(self, out: float, good_run: int) -> None:
        """Take how many are out, and how many answers in a row were in time: with as many since, it was not too many.

        What chance brings, and is answered late, is too many: else 0.86 and not 0.87 of the goodput at 12 to 50/s.
        """
        if good_run < self._run:  # one was late
            self._crest = 0.0
        elif good_run >= self._borne_run:
            self.peak = max(self.peak, self._crest)
            self._crest = 0.0
        self._run = good_run
        if out > self._crest:
            self._crest, self._borne_run = out, good_run + out

    def _begin_latencies(self) -> None:
        self._latencies_ms = self._squares_ms2 = 0.0
        self._count = 0

    def _count_checks(self, admitted: int, span_s: float) -> None:
        """By differences between neighbours (von Neumann), so that a slow change of the demand is no unevenness."""
        self._counted += admitted
        self._counted_s += span_s
        if self._counted_s < COUNTED_S:
            return
        rate, span_s = self._counted / self._counted_s, self._counted_s
        self._counted, self._counted_s = 0, 0.0
        before, self._before = self._before, (rate, span_s) if span_s < COUNTED_MAX_S else None
        if before is None or self._before is None:
            return
        rate_before, span_before_s = before
        kept = exp(-span_s / LEARN_TAU_S)
        self._excess = self._excess * kept + (rate - rate_before) ** 2 / (1 / span_s + 1 / span_before_s)
        self._expected = self._expected * kept + (rate + rate_before) / 2

    def accept(self, latency_ms: float) -> None:
        """From now on this mean latency is normal, and the spread what it was."""
        self.p90_ms *= latency_ms / self.mean_ms
        self.mean_ms = latency_ms


def _p90(mean: float, square: float) -> float:
    """Of a log-normal distribution, as latencies about are, with that mean and mean square."""
    variance = max(log(square) - 2 * log(mean), 0.0) if mean and square else 0.0
    return mean * exp(Z_90 * sqrt(variance) - variance / 2)
