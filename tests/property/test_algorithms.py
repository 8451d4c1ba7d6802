"""Every algorithm against its twin, and the promise of each."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Wall
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import BUCKETS, COUNT_MAX, Limit
from limiter_node.core.model import DURATION_MAX_NS, NEVER
from tests.property.algorithm_keys import (
    ALGORITHMS,
    NOW_NS,
    WALL_NS,
    Ask,
    Charge,
    Event,
    Key,
    Numbers,
    Refund,
    all_events,
    asks,
    limit_of,
    limits,
    moves,
    numbers,
    of_each,
    refunds,
    traces,
    waits,
)
from tests.property.algorithm_twins import SECOND_NS, capacity, twin_of


@of_each
def test_it_grants_what_its_twin_says_is_left(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(all_events)
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
            case Charge(cost):
                twin.spend(cost, now_ns)
            case Refund(cost):
                twin.give_back(cost, now_ns)
            case Numbers(_, _, ppm, parts):
                twin.set_numbers(key.limit, ppm, parts, now_ns)
        assert key.spent() == ceil(twin.counted(now_ns))
        assert key.algorithm.tokens == capacity(key.limit, key.ppm, key.parts)


@of_each
def test_a_denial_and_a_peek_change_nothing(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(all_events)
    key = Key(limit)
    for event in trace:
        before = key.state
        decision = key.play(event)
        if isinstance(event, Ask) and decision is not None and (not decision.allowed or event.cost == 0):
            assert key.state is before


@of_each
def test_a_peek_tells_what_the_next_check_sees(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(all_events)
    key = Key(limit)
    for event in trace:
        key.play(event)
        peek, check = key.decide(0), key.decide(1)
        assert (peek.allowed, peek.retry_ns, peek.wait_ns) == (check.allowed, check.retry_ns, check.wait_ns)
        assert check.remaining == peek.remaining - check.allowed
        assert peek.remaining == max(0, key.algorithm.tokens - key.spent())


@of_each
def test_retry_is_the_first_nanosecond_at_which_the_cost_is_allowed(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(all_events)
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


@of_each
def test_reset_is_when_nothing_counts_any_more_and_no_state_counts_for_longer_than_it_is_remembered(
    algorithm: str, data: st.DataObject
) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(all_events)
    key = Key(limit)
    for event in trace:
        key.play(event)
        reset_ns = key.decide(0).reset_ns
        assert key.spent(reset_ns) == 0
        assert reset_ns == 0 or key.spent(reset_ns - 1) > 0
        if key.state is not None:
            assert reset_ns == key.algorithm.full_in_ns(key.state, key.now_ns + key.clock_ns)
            horizon = key.algorithm.horizon(key.now_ns + key.clock_ns)
            last_ns = key.now_ns + key.clock_ns + reset_ns - 1
            assert reset_ns == 0 or not key.algorithm.is_past(horizon, last_ns)


@of_each
def test_a_refund_gives_back_at_most_what_counts(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(traces(waits, asks, asks, asks, refunds))
    cost = data.draw(st.integers(0, 2_000))
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


@of_each
def test_a_change_of_numbers_keeps_what_was_spent(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(traces(waits, asks, asks, asks))
    other = data.draw(numbers)
    key = Key(limit)
    for event in trace:
        key.play(event)
    before = key.spent()
    key.play(other)
    assert key.spent() == before
    assert key.decide(0).remaining == max(0, capacity(key.limit, other.ppm, other.parts) - before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_that_was_granted_nothing_has_all(algorithm: str) -> None:
    law = build(limit_of(algorithm, "10/m"), PPM, 1, NOW_NS, Wall(WALL_NS))
    peek = law.decide(None, 0, NOW_NS)
    assert (peek.allowed, peek.state, peek.remaining, peek.reset_ns, peek.retry_ns) == (True, None, 10, 0, 0)
    assert law.spent(None, NOW_NS) == 0
    assert law.refund(None, 1, NOW_NS) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_cost_that_only_the_multiplier_keeps_from_fitting_is_worth_another_try(algorithm: str) -> None:
    law = build(limit_of(algorithm, "10/m"), PPM // 5, 1, NOW_NS, Wall(WALL_NS))
    assert law.tokens == 2
    for state in (None, law.decide(None, 2, NOW_NS).state):
        retry_ns = law.decide(state, 3, NOW_NS).retry_ns
        assert 0 < retry_ns <= 5 * 60 * SECOND_NS
        assert not law.decide(state, 3, NOW_NS + retry_ns).allowed
        assert law.decide(state, 11, NOW_NS).retry_ns == NEVER
    law.set_numbers(limit_of(algorithm, "10/m"), PPM, 1, NOW_NS)
    assert law.decide(None, 3, NOW_NS).allowed


@pytest.mark.parametrize("algorithm", BUCKETS)
def test_a_bucket_that_smaller_numbers_or_another_node_overdrew_is_remembered_until_it_is_full(algorithm: str) -> None:
    law = build(limit_of(algorithm, "1/s", 100), PPM, 1, NOW_NS, Wall())
    state = law.decide(None, 100, NOW_NS).state
    law.set_numbers(limit_of(algorithm, "1/s", 10), PPM, 1, NOW_NS)
    assert law.full_in_ns(state, NOW_NS) == 100 * SECOND_NS
    assert not law.is_past(law.horizon(NOW_NS), NOW_NS + 100 * SECOND_NS - 1)
    told = law.unpack([500_000_000, 0], 1, NOW_NS)
    assert law.full_in_ns(told, NOW_NS) == 500 * SECOND_NS
    horizon = law.horizon(NOW_NS)
    assert not law.is_past(horizon, NOW_NS + 500 * SECOND_NS - 1)
    assert law.is_past(horizon, NOW_NS + 500 * SECOND_NS)


def test_waits_that_no_frame_holds_are_told_as_the_longest_that_does() -> None:
    law = build(limit_of("leaky_bucket", "1/366d", COUNT_MAX), PPM, 1, NOW_NS, Wall())
    state = law.decide(None, COUNT_MAX, NOW_NS).state
    denial = law.decide(state, COUNT_MAX, NOW_NS)
    assert denial.retry_ns == denial.reset_ns == DURATION_MAX_NS
    state = law.refund(state, 1, NOW_NS)
    assert law.decide(state, 1, NOW_NS).wait_ns == DURATION_MAX_NS
    assert law.full_in_ns(state, NOW_NS) == DURATION_MAX_NS


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
