"""Every algorithm against its twin, and what `algorithms.face` says of all of them."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Algorithm, Decision, State, Wall
from limiter_node.core.algorithms.token_bucket import PPM, UNITS_PER_MICRO
from limiter_node.core.limits import BUCKETS, COUNT_MAX, LOG_COUNT_MAX, Limit, parse_rate
from limiter_node.core.model import COST_MAX, DURATION_MAX_NS, NEVER
from tests.property.algorithm_twins import SECOND_NS, capacity, twin_of

ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")
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


Event = Wait | Ask | Refund | Numbers | Move

few = st.integers(1, 12)
waits = st.builds(
    Wait, st.one_of(st.integers(0, 8), st.integers(0, 30)), st.booleans(), st.sampled_from([0, 0, -1, 1, 12_345])
)
asks = st.builds(Ask, st.one_of(st.integers(0, 3), st.integers(0, 14)))
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

    def is_past(self, horizon: int, after_ns: int) -> bool:
        return self.algorithm.is_past(horizon, self.now_ns + self.clock_ns + after_ns)

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


all_events = traces(waits, waits, asks, asks, asks, refunds, numbers, moves)


@given(limits(), all_events)
def test_it_grants_what_its_twin_says_is_left(limit: Limit, trace: list[Event]) -> None:
    key, twin = Key(limit), twin_of(limit, WALL_NS)
    twin.set_numbers(limit, PPM, 1, key.now_ns)
    for event in trace:
        decision = key.play(event)
        now_ns = key.now_ns
        match event:
            case Ask(cost):
                assert decision is not None
                left = capacity(key.limit, key.ppm, key.parts) - twin.counted(now_ns)
                assert decision.allowed == ((cost or 1) <= left)
                if decision.allowed and cost:
                    twin.spend(cost, now_ns)
                    left = capacity(key.limit, key.ppm, key.parts) - twin.counted(now_ns)
                assert decision.remaining == max(0, floor(left))
            case Refund(cost):
                twin.give_back(cost, now_ns)
            case Numbers(_, _, ppm, parts):
                twin.set_numbers(key.limit, ppm, parts, now_ns)
        assert key.spent() == ceil(twin.counted(now_ns))
        assert key.algorithm.tokens == capacity(key.limit, key.ppm, key.parts)


@given(limits(), all_events)
def test_a_denial_and_a_peek_change_nothing(limit: Limit, trace: list[Event]) -> None:
    key = Key(limit)
    for event in trace:
        before = key.state
        decision = key.play(event)
        if isinstance(event, Ask) and decision is not None and (not decision.allowed or event.cost == 0):
            assert key.state is before


@given(limits(), all_events)
def test_a_peek_tells_what_the_next_check_sees(limit: Limit, trace: list[Event]) -> None:
    key = Key(limit)
    for event in trace:
        key.play(event)
        peek, check = key.decide(0), key.decide(1)
        assert (peek.allowed, peek.retry_ns, peek.wait_ns) == (check.allowed, check.retry_ns, check.wait_ns)
        assert check.remaining == peek.remaining - check.allowed
        assert peek.remaining == max(0, key.algorithm.tokens - key.spent())


@given(limits(), all_events)
def test_retry_is_the_first_nanosecond_at_which_the_cost_is_allowed(limit: Limit, trace: list[Event]) -> None:
    key = Key(limit)
    for event in trace:
        decision = key.play(event)
        if not isinstance(event, Ask) or decision is None:
            continue
        assert decision.allowed == (decision.retry_ns == 0)
        most = key.limit.burst if key.limit.algorithm in BUCKETS else key.limit.count
        assert (decision.retry_ns == NEVER) == (event.cost > most)
        if not decision.allowed and event.cost <= key.algorithm.tokens:
            assert not key.decide(event.cost, decision.retry_ns - 1).allowed
            assert key.decide(event.cost, decision.retry_ns).allowed


@given(limits(), all_events)
def test_reset_is_when_nothing_counts_any_more_and_no_state_counts_for_longer_than_it_is_remembered(
    limit: Limit, trace: list[Event]
) -> None:
    key = Key(limit)
    for event in trace:
        key.play(event)
        reset_ns = key.decide(0).reset_ns
        assert key.spent(reset_ns) == 0
        assert reset_ns == 0 or key.spent(reset_ns - 1) > 0
        if key.state is not None:
            assert reset_ns == key.algorithm.full_in_ns(key.state, key.now_ns + key.clock_ns)
            assert reset_ns == 0 or not key.is_past(key.algorithm.horizon(key.now_ns + key.clock_ns), reset_ns - 1)


@given(limits(), traces(waits, asks, asks, asks, refunds), st.integers(0, 2_000))
def test_a_refund_gives_back_at_most_what_counts(limit: Limit, trace: list[Event], cost: int) -> None:
    key = Key(limit)
    for event in trace:
        key.play(event)
    before = key.spent()
    key.play(Refund(cost))
    if limit.algorithm == "sliding_window":
        assert max(0, before - cost) <= key.spent() <= before
    else:
        assert key.spent() == max(0, before - cost)
    assert key.decide(0).remaining <= key.algorithm.tokens
    key.play(Refund(COUNT_MAX))
    assert key.state is None


@given(limits(), traces(waits, asks, asks, asks), numbers)
def test_a_change_of_numbers_keeps_what_was_spent(limit: Limit, trace: list[Event], other: Numbers) -> None:
    key = Key(limit)
    for event in trace:
        key.play(event)
    before = key.spent()
    key.play(other)
    assert key.spent() == before
    assert key.decide(0).remaining == max(0, capacity(key.limit, other.ppm, other.parts) - before)


# The promise.


def grants_of(key: Key, trace: list[Event]) -> list[tuple[int, int]]:
    """(time, cost) of every grant."""
    grants = []
    for event in trace:
        decision = key.play(event)
        if isinstance(event, Ask) and decision is not None and decision.allowed and event.cost:
            grants.append((key.now_ns, event.cost))
    return grants


def granted(grants: list[tuple[int, int]], from_ns: int, until_ns: int) -> int:
    return sum(cost for then_ns, cost in grants if from_ns <= then_ns < until_ns)


@given(limits(BUCKETS), traces(waits, asks, asks, moves, size=40))
def test_a_bucket_grants_burst_and_rate_in_any_stretch(limit: Limit, trace: list[Event]) -> None:
    grants = grants_of(Key(limit), trace)
    for index, (from_ns, _) in enumerate(grants):
        for until_ns, _ in grants[index:]:
            most = limit.burst + Fraction(limit.count * (until_ns - from_ns), limit.period_s * SECOND_NS)
            assert granted(grants, from_ns, until_ns + 1) <= most


@given(limits(("sliding_log",)), traces(waits, asks, asks, moves, size=40))
def test_the_log_grants_its_limit_in_any_period(limit: Limit, trace: list[Event]) -> None:
    grants = grants_of(Key(limit), trace)
    for from_ns, _ in grants:
        assert granted(grants, from_ns, from_ns + limit.period_s * SECOND_NS) <= limit.count


@given(limits(("sliding_window",)), traces(waits, asks, asks, moves, size=40))
def test_the_sliding_window_grants_less_than_twice_its_limit_in_any_period_and_its_limit_in_its_own_windows(
    limit: Limit, trace: list[Event]
) -> None:
    key = Key(limit)
    grants = grants_of(key, trace)
    period_ns = limit.period_s * SECOND_NS
    for from_ns, _ in grants:
        assert granted(grants, from_ns, from_ns + period_ns) < 2 * limit.count or limit.count == 1
    if key.state is not None:
        packed = key.algorithm.pack(key.state, key.now_ns + key.clock_ns)
        age_ns = packed[0] if packed else 0
        own_ns = key.now_ns - age_ns
        assert granted(grants, own_ns, own_ns + period_ns) <= limit.count
        assert granted(grants, own_ns - period_ns, own_ns) <= limit.count


@given(limits(("fixed_window",)), traces(waits, asks, asks, moves, size=40))
def test_the_fixed_window_grants_its_limit_in_each_window(limit: Limit, trace: list[Event]) -> None:
    twin = twin_of(limit, WALL_NS)
    twin.set_numbers(limit, PPM, 1, NOW_NS)
    for then_ns, cost in grants_of(Key(limit), trace):
        twin.spend(cost, then_ns)
        assert twin.counted(then_ns) <= limit.count


@given(limits(("leaky_bucket",)), traces(waits, asks, asks, asks, moves, size=40))
def test_callers_that_wait_as_told_go_on_as_their_predecessors_drain(limit: Limit, trace: list[Event]) -> None:
    key = Key(limit)
    ns_per_token = Fraction(limit.period_s * SECOND_NS, limit.count)
    drained_ns = Fraction(0)
    for event in trace:
        decision = key.play(event)
        if not isinstance(event, Ask) or decision is None:
            continue
        if not decision.allowed:
            assert decision.wait_ns is None
            continue
        assert decision.wait_ns is not None
        # Once those before have drained.
        begins_ns = key.now_ns + decision.wait_ns
        due_ns = max(drained_ns, Fraction(key.now_ns))
        assert begins_ns == ceil(due_ns)
        assert decision.wait_ns <= limit.burst * ns_per_token
        if event.cost:
            drained_ns = due_ns + event.cost * ns_per_token


# Copies.

LATER_EIGHTHS = (0, 1, 2, 4, 5, 7, 8, 9, 12, 16, 20, 24)


def spent_later(algorithm: Algorithm, state: State, limit: Limit, now_ns: int) -> list[int]:
    """What counts of a state, now and at many a later moment."""
    later_ns = (wait_ns(limit, eighths, of_token=False) + ns for eighths in LATER_EIGHTHS for ns in (0, 1, 999_999))
    return [algorithm.spent(state, now_ns + after_ns) for after_ns in later_ns]


@st.composite
def two_copies(draw: st.DrawFn) -> tuple[Key, State, State]:
    """States of one key that have a past in common, and each what the other does not know, told with delays."""
    key = Key(draw(limits()))
    for event in draw(traces(waits, asks, asks, asks, size=8)):
        key.play(event)
    other = Key(key.limit)
    packed = None if key.state is None else key.algorithm.pack(key.state, key.now_ns)
    delay_ns = draw(st.sampled_from([0, 1, 40_000_000, wait_ns(key.limit, 3, of_token=False)]))
    other.now_ns = key.now_ns + delay_ns
    other.state = packed and other.algorithm.unpack(packed, key.limit.period_s, other.now_ns)
    for one in (key, other):
        for event in draw(traces(waits, asks, asks, size=8)):
            one.play(event)
    key.now_ns = other.now_ns = max(key.now_ns, other.now_ns)
    for one in (key, other):
        if not one.spent():
            one.play(Ask(1))  # to draw again until both know of something takes three times as long
    told = None if other.state is None else other.algorithm.pack(other.state, other.now_ns)
    state = told and key.algorithm.unpack(told, key.limit.period_s, key.now_ns)
    return key, key.state, state


@given(two_copies())
def test_a_merge_forgets_nothing_that_either_knew_now_or_later(copies: tuple[Key, State, State]) -> None:
    key, one, other = copies
    algorithm, limit, now_ns = key.algorithm, key.limit, key.now_ns
    merged = spent_later(algorithm, algorithm.merge(one, other, now_ns), limit, now_ns)
    each = (spent_later(algorithm, state, limit, now_ns) for state in (one, other))
    known = [max(pair) for pair in zip(*each, strict=True)]
    if limit.algorithm == "sliding_window":
        assert all(sum_ >= most for sum_, most in zip(merged, known, strict=True))
    else:
        assert merged == known


@given(two_copies())
def test_a_merge_is_the_same_either_way_and_adds_nothing_that_is_known(copies: tuple[Key, State, State]) -> None:
    key, one, other = copies
    algorithm, limit, now_ns = key.algorithm, key.limit, key.now_ns
    merged = algorithm.merge(one, other, now_ns)
    assert algorithm.merge(other, one, now_ns) == merged
    assert algorithm.merge(merged, merged, now_ns) == merged
    same = algorithm.merge(one, one, now_ns)
    assert spent_later(algorithm, same, limit, now_ns) == spent_later(algorithm, one, limit, now_ns)
    if limit.algorithm != "sliding_window":
        assert algorithm.merge(merged, one, now_ns) == merged


MINUTE_NS = 60 * SECOND_NS
ages_ns = st.one_of(
    st.sampled_from([-MINUTE_NS // 2, -1, 0, MINUTE_NS // 2, MINUTE_NS - 1]),
    st.integers(-MINUTE_NS // 2, MINUTE_NS - 1),
)
two_counters = st.tuples(ages_ns, st.integers(0, 20), st.integers(0, 20)).map(list).filter(lambda told: any(told[1:]))


@given(two_counters, two_counters)
def test_sliding_windows_of_any_two_ages_merge_into_one_by_which_as_much_counts(
    one: list[int], other: list[int]
) -> None:
    limit = limit_of("sliding_window", "10/m")
    algorithm = build(limit, PPM, 1, NOW_NS, Wall())
    states = [algorithm.unpack(told, limit.period_s, NOW_NS) for told in (one, other)]
    merged = algorithm.merge(states[0], states[1], NOW_NS)
    assert algorithm.merge(states[1], states[0], NOW_NS) == merged
    assert algorithm.merge(merged, merged, NOW_NS) == merged
    each = (spent_later(algorithm, state, limit, NOW_NS) for state in (*states, merged))
    assert all(both >= max(pair) for *pair, both in zip(*each, strict=True))
    assert algorithm.is_past(algorithm.horizon(NOW_NS), NOW_NS + 5 * MINUTE_NS // 2)
    assert algorithm.full_in_ns(merged, NOW_NS) <= 5 * MINUTE_NS // 2
    packed = algorithm.pack(merged, NOW_NS)
    assert packed is not None
    assert algorithm.unpack(packed, limit.period_s, NOW_NS) == merged


def test_windows_that_begin_a_moment_apart_do_not_count_the_same_grants_twice() -> None:
    # The owner's window has just ended, its replica's, which heard of it later, has not.
    algorithm = build(limit_of("sliding_window", "10/m"), PPM, 1, NOW_NS, Wall())
    told = [[1_000, 10, 0], [MINUTE_NS - 1_000, 0, 10]]
    owner, replica = (algorithm.unpack(values, 60, NOW_NS) for values in told)
    assert algorithm.spent(algorithm.merge(owner, replica, NOW_NS), NOW_NS) == 10


def test_a_window_whose_only_grants_were_given_back_is_no_window() -> None:
    algorithm = build(limit_of("sliding_window", "10/m"), PPM, 1, NOW_NS, Wall())
    state = algorithm.unpack([MINUTE_NS - 1, 4, 3], 60, NOW_NS)
    state = algorithm.refund(state, 3, NOW_NS)
    later_ns = NOW_NS + MINUTE_NS // 2
    state = algorithm.decide(state, 1, later_ns).state
    assert algorithm.pack(state, later_ns) == [0, 0, 1]


def test_a_clock_that_was_read_before_the_last_grant_brings_no_log_out_of_order() -> None:
    algorithm = build(limit_of("sliding_log", "10/m"), PPM, 1, NOW_NS, Wall())
    state = algorithm.decide(algorithm.decide(None, 1, NOW_NS).state, 1, NOW_NS - 1).state
    assert algorithm.pack(state, NOW_NS) == [0, 1, 0, 1]
    assert algorithm.pack(state, NOW_NS - 1) == [0, 1, 0, 1]


@given(two_copies(), st.sampled_from([-NOW_NS, 0, 10**15]))
def test_a_state_is_told_whole_to_a_node_whose_clock_began_elsewhere(
    copies: tuple[Key, State, State], clock_ns: int
) -> None:
    key, one, other = copies
    limit, here_ns, there_ns = key.limit, key.now_ns, key.now_ns + clock_ns
    there = build(limit, PPM, 1, there_ns, Wall(WALL_NS - clock_ns))
    for state in (one, other, key.algorithm.merge(one, other, here_ns)):
        packed = key.algorithm.pack(state, here_ns)
        told = packed and there.unpack(packed, limit.period_s, there_ns)
        if told is None:
            assert key.spent() == 0 or key.algorithm.spent(state, here_ns) == 0
            continue
        assert packed is not None
        assert all(-(2**63) <= value < 2**63 for value in packed)
        assert there.pack(told, there_ns) == packed
        knew = spent_later(key.algorithm, state, limit, here_ns)
        knows = spent_later(there, told, limit, there_ns)
        assert knows == knew


@given(limits(), traces(waits, asks, asks, asks, size=12), st.sampled_from(["7s", "h", "30d"]), st.integers(1, 12))
def test_a_limit_of_another_period_takes_over_what_counts(
    limit: Limit, trace: list[Event], period: str, count: int
) -> None:
    key = Key(limit)
    for event in trace:
        key.play(event)
    assume(key.state is not None and key.spent())
    packed = key.algorithm.pack(key.state, key.now_ns)
    assert packed is not None
    other = limit_of(limit.algorithm or "", f"{count}/{period}", count)
    there = build(other, PPM, 1, key.now_ns, Wall(WALL_NS))
    told = there.unpack(packed, limit.period_s, key.now_ns)
    if limit.algorithm == "sliding_log":
        ages_and_costs = zip(packed[::2], packed[1::2], strict=True)
        expected = sum(cost for age_ns, cost in ages_and_costs if age_ns < other.period_s * SECOND_NS)
        assert there.spent(told, key.now_ns) == expected
    else:
        assert there.spent(told, key.now_ns) == key.spent()


packed_values = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.integers(0, SECOND_NS - 1))


@given(limits(), st.lists(packed_values, max_size=6))
def test_whatever_is_told_is_taken_or_refused(limit: Limit, packed: list[int]) -> None:
    algorithm = build(limit, PPM, 1, NOW_NS, Wall(WALL_NS))
    try:
        state = algorithm.unpack(packed, limit.period_s, NOW_NS)
    except ValueError:
        return
    if state is None:
        return
    assert algorithm.spent(state, NOW_NS) >= 0
    counts_ns = algorithm.full_in_ns(state, NOW_NS)
    assert counts_ns <= DURATION_MAX_NS
    assert counts_ns == 0 or not algorithm.is_past(algorithm.horizon(NOW_NS), NOW_NS + counts_ns - 1)
    again = algorithm.pack(state, NOW_NS)
    assert again is None or all(-(2**63) <= value < 2**63 for value in again)
    assert algorithm.merge(state, state, NOW_NS) is not None


REFUSED: list[tuple[str, list[int]]] = [
    ("token_bucket", []),
    ("token_bucket", [-1, 0]),
    ("leaky_bucket", [1]),
    ("leaky_bucket", [1, -1]),
    ("leaky_bucket", [1, UNITS_PER_MICRO]),
    ("leaky_bucket", [1, 2, 3]),
    ("fixed_window", [7]),
    ("fixed_window", [7, -1]),
    ("fixed_window", [7, COST_MAX + 1]),
    ("sliding_window", [1, 1]),
    ("sliding_window", [-31 * SECOND_NS, 1, 1]),
    ("sliding_window", [60 * SECOND_NS, 1, 1]),
    ("sliding_window", [0, -1, 1]),
    ("sliding_window", [0, 1, 2**40]),
    ("sliding_log", []),
    ("sliding_log", [1]),
    ("sliding_log", [-1, 1]),
    ("sliding_log", [60 * SECOND_NS, 1]),
    ("sliding_log", [2, 1, 1, 1]),
    ("sliding_log", [1, 0]),
    ("sliding_log", [1, LOG_COUNT_MAX, 2, 1]),
]


@pytest.mark.parametrize(("algorithm", "packed"), REFUSED)
def test_what_no_pack_makes_is_refused(algorithm: str, packed: list[int]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        build(limit_of(algorithm, "5/m"), PPM, 1, NOW_NS, Wall(WALL_NS)).unpack(packed, 60, NOW_NS)
