"""One key under any algorithm, and what may happen to it: events, and strategies that draw them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Algorithm, Decision, State, Wall
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import BUCKETS, LOG_COUNT_MAX, WINDOWS, Limit, parse_rate
from tests.property.algorithm_twins import SECOND_NS

ALGORITHMS = (*BUCKETS, *WINDOWS)
NOW_NS = 987_654_321_987
WALL_NS = 1_774_746_000_000_000_000 - NOW_NS
"""29 March 2026, an hour before the clocks of Berlin go forward, on the wall at NOW_NS."""

# Periods for which a bucket refills a whole number of units per nanosecond, at every multiplier and share used here.
PERIODS = ("s", "10s", "m", "15m")
CALENDAR_PERIODS = ("d", "week", "month")
ZONES = (None, "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia")


@dataclass(frozen=True)
class Wait:
    """Time passes: eighths of the period, or of the time of one token, and some nanoseconds."""

    eighths: int
    of_token: bool
    ns: int


@dataclass(frozen=True)
class Ask:
    """A check, or with cost 0 a peek."""

    cost: int


@dataclass(frozen=True)
class Charge:
    """What was granted elsewhere, or before, counts whether it fits or not."""

    cost: int


@dataclass(frozen=True)
class Refund:
    """Some of it is given back."""

    cost: int


@dataclass(frozen=True)
class Numbers:
    """Other numbers, of the same period."""

    count: int
    burst: int
    ppm: int
    parts: int


@dataclass(frozen=True)
class Move:
    """The key moves to another node, whose monotonic clock shows `clock_ns` more than the true time."""

    clock_ns: int


Event = Wait | Ask | Charge | Refund | Numbers | Move


def of_each(test: Callable[..., None]) -> Callable[..., None]:
    """Run a property for each algorithm, with a fifth of the usual examples."""
    examples = settings(max_examples=settings().max_examples // 5)
    each: Callable[..., None] = pytest.mark.parametrize("algorithm", ALGORITHMS)(examples(given(data=st.data())(test)))
    return each


few = st.integers(1, 12)
waits = st.builds(
    Wait, st.one_of(st.integers(0, 8), st.integers(0, 30)), st.booleans(), st.sampled_from([0, 0, -1, 1, 12_345])
)
asks = st.builds(Ask, st.one_of(st.integers(0, 3), st.integers(0, 14)))
charges = st.builds(Charge, st.integers(1, 14))
refunds = st.builds(Refund, st.integers(0, 14))
numbers = st.builds(Numbers, few, few, st.sampled_from([PPM, PPM // 2]), st.sampled_from([1, 2]))
moves = st.builds(Move, st.sampled_from([0, -NOW_NS, 10**15]))


def traces(*events: st.SearchStrategy[Any], size: int = 25) -> st.SearchStrategy[list[Event]]:
    return st.lists(st.one_of(*events), max_size=size)


def limit_of(algorithm: str, rate: str, burst: int | None = None, timezone: str | None = None) -> Limit:
    count, period_s = parse_rate(rate)
    return Limit(rate, count, period_s, burst or count, algorithm, timezone)


@st.composite
def limits(draw: st.DrawFn, algorithms: tuple[str, ...] = ALGORITHMS) -> Limit:
    algorithm = draw(st.sampled_from(algorithms))
    count = draw(st.one_of(few, few, st.integers(1, LOG_COUNT_MAX)))
    if algorithm == "fixed_window" and draw(st.booleans()):
        period = draw(st.sampled_from(CALENDAR_PERIODS))
        return limit_of(algorithm, f"{count}/{period}", timezone=draw(st.sampled_from(ZONES)))
    burst = draw(few) if algorithm in BUCKETS else None
    return limit_of(algorithm, f"{count}/{draw(st.sampled_from(PERIODS))}", burst)


class Key:
    """One key under an algorithm, and the true time; its node's clocks may show another."""

    def __init__(self, limit: Limit) -> None:
        self.limit, self.ppm, self.parts = limit, PPM, 1
        self.now_ns = NOW_NS
        self.clock_ns = 0
        self.state: State | None = None
        self.algorithm = self._node(0)

    def _node(self, clock_ns: int) -> Algorithm:
        wall = Wall(WALL_NS - clock_ns)
        return build(self.limit, self.ppm, self.parts, self.now_ns + clock_ns, wall)

    def decide(self, cost: int, after_ns: int = 0) -> Decision:
        """What would be decided after a while."""
        return self.algorithm.decide(self.state, cost, self.now_ns + self.clock_ns + after_ns)

    def spent(self, after_ns: int = 0) -> int:
        return self.algorithm.spent(self.state, self.now_ns + self.clock_ns + after_ns)

    def play(self, event: Event) -> Decision | None:
        """What an event does; a check's decision."""
        now_ns = self.now_ns + self.clock_ns
        match event:
            case Wait(eighths, of_token, ns):
                self.now_ns += max(0, wait_ns(self.limit, eighths, of_token=of_token) + ns)
            case Ask(cost):
                decision = self.decide(cost)
                self.state = decision.state
                return decision
            case Charge(cost):
                self.state = self.algorithm.charge(self.state, cost, now_ns)
            case Refund(cost):
                self.state = self.algorithm.refund(self.state, cost, now_ns)
            case Numbers(count, burst, ppm, parts):
                self.limit = with_numbers(self.limit, count, burst)
                self.ppm, self.parts = ppm, parts
                self.algorithm.set_numbers(self.limit, ppm, parts, now_ns)
            case Move(clock_ns):
                packed = None if self.state is None else self.algorithm.pack(self.state, now_ns)
                self.algorithm, self.clock_ns = self._node(clock_ns), clock_ns
                here_ns = self.now_ns + clock_ns
                self.state = packed and self.algorithm.unpack(packed, self.limit.period_s, here_ns)
        return None


def wait_ns(limit: Limit, eighths: int, *, of_token: bool) -> int:
    return limit.period_s * SECOND_NS * eighths // (8 * (limit.count if of_token else 1))


def with_numbers(limit: Limit, count: int, burst: int) -> Limit:
    period = limit.rate.partition("/")[2]
    return limit_of(
        limit.algorithm or "", f"{count}/{period}", burst if limit.algorithm in BUCKETS else None, limit.timezone
    )


all_events = traces(waits, waits, asks, asks, asks, charges, refunds, numbers, moves)
