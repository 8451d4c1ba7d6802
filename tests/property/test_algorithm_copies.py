"""What nodes tell each other of a key, by every algorithm: nothing is forgotten, and nothing counts twice."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Algorithm, State, Wall
from limiter_node.core.algorithms.token_bucket import PPM, UNITS_PER_MICRO
from limiter_node.core.limits import LOG_COUNT_MAX, Limit
from limiter_node.core.model import COST_MAX, DURATION_MAX_NS
from tests.property.algorithm_keys import (
    NOW_NS,
    WALL_NS,
    Ask,
    Key,
    asks,
    limit_of,
    limits,
    of_each,
    traces,
    wait_ns,
    waits,
)
from tests.property.algorithm_twins import SECOND_NS

LATER_EIGHTHS = (0, 1, 2, 4, 5, 7, 8, 9, 12, 16, 20, 24)


def spent_later(algorithm: Algorithm, state: State, limit: Limit, now_ns: int) -> list[int]:
    """What counts of a state, now and at many a later moment."""
    later_ns = (wait_ns(limit, eighths, of_token=False) + ns for eighths in LATER_EIGHTHS for ns in (0, 1, 999_999))
    return [algorithm.spent(state, now_ns + after_ns) for after_ns in later_ns]


@st.composite
def two_copies(draw: st.DrawFn, algorithm: str) -> tuple[Key, State, State]:
    """States of one key that have a past in common, and each what the other does not know, told with delays."""
    key = Key(draw(limits((algorithm,))))
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


@of_each
def test_a_merge_forgets_nothing_that_either_knew_now_or_later(algorithm: str, data: st.DataObject) -> None:
    key, one, other = data.draw(two_copies(algorithm))
    law, limit, now_ns = key.algorithm, key.limit, key.now_ns
    merged = spent_later(law, law.merge(one, other, now_ns), limit, now_ns)
    each = (spent_later(law, state, limit, now_ns) for state in (one, other))
    known = [max(pair) for pair in zip(*each, strict=True)]
    if limit.algorithm == "sliding_window":
        assert all(sum_ >= most for sum_, most in zip(merged, known, strict=True))
    else:
        assert merged == known


@of_each
def test_a_merge_is_the_same_either_way_and_adds_nothing_that_is_known(algorithm: str, data: st.DataObject) -> None:
    key, one, other = data.draw(two_copies(algorithm))
    law, limit, now_ns = key.algorithm, key.limit, key.now_ns
    merged = law.merge(one, other, now_ns)
    assert law.merge(other, one, now_ns) == merged
    assert law.merge(merged, merged, now_ns) == merged
    same = law.merge(one, one, now_ns)
    assert spent_later(law, same, limit, now_ns) == spent_later(law, one, limit, now_ns)
    if limit.algorithm != "sliding_window":
        assert law.merge(merged, one, now_ns) == merged


MINUTE_NS = 60 * SECOND_NS
ages_ns = st.one_of(
    st.sampled_from([-MINUTE_NS // 2, -1, 0, MINUTE_NS // 2, MINUTE_NS - 1]),
    st.integers(-MINUTE_NS // 2, MINUTE_NS - 1),
)
counter = st.one_of(st.just(0), st.sampled_from([1, 10]), st.integers(0, 20))
two_counters = st.tuples(ages_ns, counter, counter).map(list).filter(lambda told: any(told[1:]))


@settings(max_examples=300)  # cheap, and its corners are far apart
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
    longest_ns = 150 * SECOND_NS  # two and a half periods
    assert algorithm.full_in_ns(merged, NOW_NS) <= longest_ns
    assert algorithm.is_past(algorithm.horizon(NOW_NS), NOW_NS + longest_ns)
    packed = algorithm.pack(merged, NOW_NS)
    assert packed is not None
    assert algorithm.unpack(packed, limit.period_s, NOW_NS) == merged


def test_windows_that_begin_a_moment_apart_do_not_count_the_same_grants_twice() -> None:
    # The owner's window has just ended, its replica's, which heard of it later, has not.
    algorithm = build(limit_of("sliding_window", "10/m"), PPM, 1, NOW_NS, Wall())
    told = [[1_000, 10, 0], [MINUTE_NS - 1_000, 0, 10]]
    owner, replica = (algorithm.unpack(values, 60, NOW_NS) for values in told)
    assert algorithm.spent(algorithm.merge(owner, replica, NOW_NS), NOW_NS) == 10


@given(two_counters, st.integers(2 * MINUTE_NS, 3 * MINUTE_NS))
def test_a_window_of_which_nothing_counts_any_more_adds_nothing(told: list[int], later_ns: int) -> None:
    limit = limit_of("sliding_window", "10/m")
    algorithm = build(limit, PPM, 1, NOW_NS, Wall())
    bygone = algorithm.unpack([0, 10, 10], limit.period_s, NOW_NS)
    state = algorithm.unpack(told, limit.period_s, NOW_NS + later_ns)
    for merged in (
        algorithm.merge(bygone, state, NOW_NS + later_ns),
        algorithm.merge(state, bygone, NOW_NS + later_ns),
    ):
        assert merged == state
    nothing = algorithm.merge(bygone, bygone, NOW_NS + later_ns)
    assert algorithm.pack(nothing, NOW_NS + later_ns) is None


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


@of_each
def test_a_state_is_told_whole_to_a_node_whose_clock_began_elsewhere(algorithm: str, data: st.DataObject) -> None:
    key, one, other = data.draw(two_copies(algorithm))
    clock_ns = data.draw(st.sampled_from([-NOW_NS, 0, 10**15]))
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


@of_each
def test_a_limit_of_another_period_takes_over_what_counts(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    trace = data.draw(traces(waits, asks, asks, asks, size=12))
    period = data.draw(st.sampled_from(["7s", "h", "30d"]))
    count = data.draw(st.integers(1, 12))
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


@of_each
def test_whatever_is_told_is_taken_or_refused(algorithm: str, data: st.DataObject) -> None:
    limit = data.draw(limits((algorithm,)))
    packed = data.draw(st.lists(packed_values, max_size=6))
    law = build(limit, PPM, 1, NOW_NS, Wall(WALL_NS))
    try:
        state = law.unpack(packed, limit.period_s, NOW_NS)
    except ValueError:
        return
    if state is None:
        return
    assert law.spent(state, NOW_NS) >= 0
    counts_ns = law.full_in_ns(state, NOW_NS)
    assert counts_ns <= DURATION_MAX_NS
    assert counts_ns == 0 or not law.is_past(law.horizon(NOW_NS), NOW_NS + counts_ns - 1)
    again = law.pack(state, NOW_NS)
    assert again is None or all(-(2**63) <= value < 2**63 for value in again)
    assert law.merge(state, state, NOW_NS) is not None


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
