"""What the check path counts: all checks as plain integers, and more of those that it looks at.

Looked at are checks picked at random, some PICKS_PER_S a second, and all of them while there are fewer; each stands for
those since the pick before. That gives latencies, and the keys that are asked for and denied most, for 30 ns a check.

Bounded: at most SERIES_MAX (rule, segment) and RULES_TIMED_MAX rules are told apart, what comes beyond them is counted
as OTHER; of keys the sketches hold HITTERS. No key is ever in a metric.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from limiter_node import clock
from limiter_node.core.heavy_hitters import HeavyHitters
from limiter_node.core.rules import DEFAULT_SEGMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limiter_node.core.engine import Engine
    from limiter_node.core.heavy_hitters import Key
    from limiter_node.core.model import Check, Verdict

PICKS_PER_S = 300
"""Looking at one costs 1.5 us: 0.05 % of a core. Quantiles of a minute are within a few per cent."""

SERIES_MAX = 500
RULES_TIMED_MAX = 100
OTHER = "(other)"  # no name of a rule

HITTERS = 200
STRETCH_NS = 30_000_000_000

LATENCY_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3)
"""Bounds for checks: one decided here takes some 50 us of which most is waiting for others, a hop 0.5 ms; the last two
are peer timeouts of patient fleets."""

LOCAL, FORWARDED = "local", "forwarded"
"""How a check was decided: at once, or with the help of another node: the owner or, of a rule of durability sync, the
replica."""


class Series:
    """Checks answered by this node under one rule and segment, whoever decided them."""

    __slots__ = ("allowed", "degraded", "denied", "rule", "segment", "shadow_denied")

    def __init__(self, rule: str, segment: str) -> None:
        self.rule = rule
        self.segment = segment
        self.allowed = 0
        self.denied = 0
        self.shadow_denied = 0
        self.degraded = 0


class Histogram:
    """How often a time was within each bound, all in seconds; the last count is of those above every bound."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = bounds_s
        self.counts = array("q", bytes(8 * (len(bounds_s) + 1)))  # in one place: see `gathering`
        self.sum_s = 0.0

    def observe(self, took_s: float, weight: int = 1) -> None:
        """Take a time, of so many."""
        self.counts[bisect_left(self.bounds_s, took_s)] += weight
        self.sum_s += took_s * weight


class Picks:
    """Picks checks: count `left` down with each check; at 0 it is picked, and `take` tells for how many it stands."""

    __slots__ = ("_drawn", "_gap", "_made", "_random", "_taken", "left")

    def __init__(self, random: Callable[[], float]) -> None:
        self.left = 1
        self._random = random  # uniform in [0, 1)
        self._drawn = 1
        self._gap = 1  # between picks, on average
        self._taken = 0  # checks that were stood for since `adjust`
        self._made = 0  # picks since the gap was last set

    def take(self) -> int:
        """Go on to the next one. Gaps are random, so that clients who take turns are all picked."""
        weight = self._drawn
        self._taken += weight
        self._made += 1
        if self._made == PICKS_PER_S:  # a burst, and the second is not over
            self._made = 0
            self._gap *= 2
        self._drawn = self.left = 1 + int(self._random() * (2 * self._gap - 1))
        return weight

    def adjust(self) -> None:
        """Have about PICKS_PER_S picks in the next second, if it is like the last one."""
        self._gap = max(1, -(-self._taken // PICKS_PER_S))
        self._taken = self._made = 0


class Lately:
    """The heaviest keys of the last 30 to 60 s: of two stretches, the one that lasts and the one before."""

    def __init__(self) -> None:
        self.now = HeavyHitters(HITTERS)
        self._before = HeavyHitters(HITTERS)
        self._began_ns = self._before_ns = clock.now_ns()

    def turn(self, now_ns: int) -> None:
        """Begin a new stretch when the last has been long enough; to be called now and then."""
        if now_ns - self._began_ns >= STRETCH_NS:
            self._before, self.now = self.now, HeavyHitters(HITTERS)
            self._before_ns, self._began_ns = self._began_ns, now_ns

    def renew(self) -> None:
        """Have all that is kept in other memory: what it was made in lies among things that are gone. Takes 0.5 ms."""
        self.now, self._before = self.now.renewed(), self._before.renewed()

    def top(self, count: int, now_ns: int) -> list[tuple[Key, float]]:
        """The heaviest keys and how many a second, at the least; the heaviest first."""
        totals = self.now.at_least()
        for key, weight in self._before.at_least().items():
            totals[key] = totals.get(key, 0) + weight
        span_s = max((now_ns - self._before_ns) / 1e9, 1.0)
        heaviest = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:count]
        return [(key, weight / span_s) for key, weight in heaviest]


class Tally:
    """All that a node counts of the checks that it answers; the engine knows under which segment of a rule one is."""

    def __init__(self, engine: Engine, random: Callable[[], float]) -> None:
        self.series: dict[tuple[str, str], Series] = {}  # by rule and segment
        self.unknown_rule = 0
        self.problems: dict[int, int] = {}  # answers that were no verdict, by status
        self.latencies: dict[str, dict[str, Histogram]] = {}  # by rule and path
        self.allowed_picks = Picks(random)
        self.busiest = Lately()
        self.most_denied = Lately()
        self._denied_picks = Picks(random)
        self._engine = engine
        self._defaults: dict[str, Series] = {}  # of the default segment, by rule

    def of(self, rule: str, segment: str = DEFAULT_SEGMENT) -> Series:
        """The counts of a segment of a rule, both of which exist."""
        series = self.series.get((rule, segment))
        if series is None:
            if len(self.series) >= SERIES_MAX:
                rule, segment = OTHER, ""
            series = self.series.setdefault((rule, segment), Series(rule, segment))
        if segment == DEFAULT_SEGMENT:
            self._defaults[rule] = series
        return series

    def count(self, check: Check, verdict: Verdict, began_ns: int, path: str) -> None:
        """Count one verdict under a rule that exists."""
        if check.segment is None and not self._engine.entries.named:  # as nearly always: 0.1 us less
            series = self._defaults.get(check.rule) or self.of(check.rule)
        else:
            series = self.of(check.rule, self._engine.segment_of(check))
        picks = self.allowed_picks
        if not verdict.allowed:
            series.denied += 1
            picks = self._denied_picks
        elif verdict.would_allow is False:
            series.shadow_denied += 1
            picks = self._denied_picks
        else:
            series.allowed += 1
        if verdict.degraded:
            series.degraded += 1
        picks.left -= 1
        if not picks.left:
            self.look(picks, check.rule, check.key, began_ns, path)

    def count_usual(self, series: Series, keys: Sequence[str], began_ns: int) -> None:
        """Count checks of these keys, which this node allowed at once, as one by one."""
        series.allowed += len(keys)
        picks = self.allowed_picks
        end = picks.left  # keys up to the one that is picked
        while end <= len(keys):
            self.look(picks, series.rule, keys[end - 1], began_ns)
            end += picks.left
        picks.left = end - len(keys)

    def look(self, picks: Picks, rule: str, key: str, began_ns: int, path: str = LOCAL) -> None:
        """Look at a check that was picked, and was read at `began_ns`."""
        weight = picks.take()
        self._timed(rule, path).observe((clock.now_ns() - began_ns) / 1e9, weight)
        self.busiest.now.add((rule, key), weight)
        if picks is self._denied_picks:
            self.most_denied.now.add((rule, key), weight)

    def _timed(self, rule: str, path: str) -> Histogram:
        by_path = self.latencies.get(rule)
        if by_path is None:
            if len(self.latencies) >= RULES_TIMED_MAX:
                rule = OTHER
            by_path = self.latencies.setdefault(rule, {})
        return by_path.get(path) or by_path.setdefault(path, Histogram(LATENCY_S))

    def count_problem(self, status: int) -> None:
        """Count an answer that is no verdict."""
        self.problems[status] = self.problems.get(status, 0) + 1

    def tick(self, now_ns: int) -> None:
        """Go on to another second."""
        self.allowed_picks.adjust()
        self._denied_picks.adjust()
        self.busiest.turn(now_ns)
        self.most_denied.turn(now_ns)
