"""What comes back of what one node has sent to a backend: answers, losses, a surplus, and a memory of the capacity.

Answers per second are the capacity itself while the backend has a queue, a latency earlier than anything that latencies
tell. In a jam, when callers give up before they are answered, nothing can be measured, and the memory only fades.
"""

from __future__ import annotations

from bisect import bisect
from math import exp

FAST_S = 0.3
"""Rates are averaged over so long, twice a round trip of most backends, or two pauses between reports."""

SURPLUS_TAU_S = 0.5
"""Of checks sent and not answered, leaking."""

HELD_TAU_S = 1.0
HELD_COUNTS = 10.0
HELD_LEAST_S = 5.0
"""In which what is held comes to what latencies say: quick changes are of the counts, which are known at once, and what
lasts is of the latencies, which no lost report makes wrong. With 2 s a mean of 18 overloads fell by 0.02. Of fewer than
10 answers latencies tell less than the counts (with 5 as with 10; with 20, 0.79 instead of 0.82 of the goodput at 12 to
25/s, with 60 less by 0.06), but where nothing comes back, as at less than 5/s, what is held must not stay what it
was."""

UP_S = 1.5
DOWN_S = 0.5
DOWN_COUNTS = 20.0
"""The memory falls quickly and rises slowly: a backend that flaps is met at its worst again within seconds. It falls no
quicker than in the time of 20 answers, or it is of the worst that chance brings: at 12 to 50/s a false alarm in health
then turned more away (4.6 % and 4.1). With 3 s to rise a backend at 25/s was back to 95 % after 15 s instead of 11."""

TURNED_COUNTS = 100.0
"""Checks that the part of those turned away is averaged over. With 50 chance keeps times tight (10 % instead of 5 %
turned away in health at 12 to 25/s), with 200 it ends them in mid-overload (0.77 instead of 0.80 of the goodput)."""

LOST_FEW = 0.1
"""Of the answers: with more of them lost, what is answered is not what the backend can do."""

LOST_TAU_S = 4.0
"""In a jam that loses answers the memory fades: it is of the time before, when more came back."""

LATEST_COUNTS = 3
LATEST_TAU_S = 0.05
LATEST_MAX_S = 3.0
"""The latest outcomes: 3, or those of the last 50 ms. With 0.2 s a drop to 44 % cost 4 % more, with 0.3 s 11 %. What
was before a pause of seconds tells less, so that the first probe in time after a hang is believed."""

HISTORY_MAX = 128
"""Steps that are remembered: 3.2 s at the least, beyond any latency that a caller waits for."""


class History:
    """How many checks had been admitted at which time, for the last seconds."""

    def __init__(self) -> None:
        self._times_ns = [0]
        self._counts = [0]

    def add(self, now_ns: int, count: int) -> None:
        """Remember a count; what is older than any latency that matters is forgotten."""
        self._times_ns.append(now_ns)
        self._counts.append(count)
        if len(self._times_ns) > HISTORY_MAX:
            del self._times_ns[: HISTORY_MAX // 2], self._counts[: HISTORY_MAX // 2]

    def count_at(self, at_ns: int) -> float:
        """The count at a time, by interpolation."""
        times, counts = self._times_ns, self._counts
        after = bisect(times, at_ns)
        if after == 0 or after == len(times):
            return counts[0] if after == 0 else counts[-1]
        before_ns, before = times[after - 1], counts[after - 1]
        return before + (counts[after] - before) * (at_ns - before_ns) / (times[after] - before_ns)


class Latest:
    """The mean latency of the latest outcomes."""

    def __init__(self) -> None:
        self.mean_ms = 0.0
        self._sum_ms = self._count = 0.0  # decayed
        self._last_ns = 0

    def add(self, latencies_ms: float, count: int, answers_s: float, now_ns: int, *, begins_anew: bool) -> None:
        """Take the sum of so many; where it begins anew, what was before tells nothing any more."""
        lasts = max(LATEST_COUNTS, answers_s * LATEST_TAU_S)
        kept = exp(-count / lasts - (now_ns - self._last_ns) / 1e9 / LATEST_MAX_S) if not begins_anew else 0.0
        self._last_ns = now_ns
        self._sum_ms = self._sum_ms * kept + latencies_ms
        self._count = self._count * kept + count
        self.mean_ms = self._sum_ms / self._count


class Flow:
    """Of one node and backend, in checks per second."""

    def __init__(self) -> None:
        self.answers_s = 0.0
        self.lost_s = 0.0  # refused, or given up by their callers
        self.surplus = 0.0  # checks sent and not answered, lately
        self.turned_away = 0.0  # the part of what is asked for that does not get in
        self.held = 0.0  # checks that the backend has, as counts and latencies tell together
        self._back_s = 0.0  # outcomes, averaged over two batches
        self.memory_s = 0.0  # what could be answered, as far as known

    @property
    def is_whole(self) -> bool:
        """Whether hardly anything is lost."""
        return self.lost_s < LOST_FEW * self.answers_s

    def step(self, sent: float, answers: float, lost: float, span_s: float, pause_s: float) -> None:
        """Take what was sent and came back in a span; reports come with pauses of up to `pause_s`."""
        self.surplus = self.surplus * exp(-span_s / SURPLUS_TAU_S) + sent - answers
        weight = 1 - exp(-span_s / max(FAST_S, 2 * pause_s))
        self.answers_s += (answers / span_s - self.answers_s) * weight
        self.lost_s += (lost / span_s - self.lost_s) * weight

    def turn_away(self, turned: int, sent: int) -> None:
        """Take how many were turned away, and how many let in meanwhile."""
        asked = turned + sent
        if asked:
            self.turned_away += (turned / asked - self.turned_away) * (1 - exp(-asked / TURNED_COUNTS))

    def hold(self, sent: int, outcomes: float, out: float, span_s: float, batch_s: float) -> None:
        """Follow what the backend has; `out`: what it has by the latencies alone; outcomes come in batches."""
        self._back_s += (outcomes / span_s - self._back_s) * (1 - exp(-span_s / max(2 * batch_s, 1e-3)))
        held = max(self.held + sent - self._back_s * span_s, 0.0)
        tau_s = max(HELD_TAU_S, HELD_COUNTS / (self.answers_s + HELD_LEAST_S))
        self.held = held + (out - held) * (1 - exp(-span_s / tau_s))

    def remember(self, seen_s: float, span_s: float, *, is_jammed: bool) -> None:
        """Let the memory follow; in a jam that loses answers it only fades."""
        if seen_s > self.memory_s:
            self.memory_s += (seen_s - self.memory_s) * (1 - exp(-span_s / UP_S))
        else:
            is_known = self.is_whole or not is_jammed
            tau_s = max(DOWN_S, DOWN_COUNTS / (seen_s + 1)) if is_known else LOST_TAU_S
            self.memory_s += (seen_s - self.memory_s) * (1 - exp(-span_s / tau_s))
