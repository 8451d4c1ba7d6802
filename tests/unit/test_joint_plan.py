"""Several limits in one rule, and each algorithm under the engine: checks, changes, copies, refunds, shares, expiry.

What each algorithm decides is in tests/property/test_algorithms.py.
"""

from typing import Any

import pytest

from limiter_node.core.backends import parse_record
from limiter_node.core.engine import Engine
from limiter_node.core.model import NEVER, Bucket, Check, LimitVerdict, Verdict
from limiter_node.core.rules import parse_key_entry, parse_rule

S = 1_000_000_000
START_NS = 1_000 * S
ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")
DAILY = {"rate": "100/d", "algorithm": "fixed_window"}


@pytest.fixture
def engine() -> Engine:
    return new_engine()


def new_engine() -> Engine:
    engine = Engine(buckets_max=1_000_000)
    engine.wall.offset_ns = 1_795_000_000 * S  # in November 2026, at ten to nine in the evening
    return engine


def put(engine: Engine, now_ns: int = START_NS, **document: Any) -> None:
    engine.set_rule("api", parse_rule("api", document), now_ns)


def put_key(engine: Engine, document: Any) -> None:
    engine.set_entry("k", None if document is None else parse_key_entry("k", document), START_NS)


def spend(engine: Engine, cost: int = 1, now_ns: int = START_NS, **check: Any) -> Verdict:
    verdict = engine.check(Check("api", check.pop("key", "k"), cost, **check), now_ns)
    assert isinstance(verdict, Verdict)
    return verdict


def bucket(engine: Engine, now_ns: int = START_NS) -> Bucket:
    found = engine.inspect("api", "k", now_ns)
    assert isinstance(found, Bucket)
    return found


def left(verdict: Verdict) -> list[int]:
    assert verdict.limits is not None
    return [limit.remaining for limit in verdict.limits]


# Several limits.


def test_all_limits_must_allow_and_the_tightest_is_told(engine: Engine) -> None:
    put(engine, limits=[{"rate": "10/s"}, {"rate": "15/h", "algorithm": "sliding_log"}])
    verdict = spend(engine, 10)
    assert verdict == Verdict(
        True,
        10,
        0,
        S,
        0,
        1,
        limits=[
            LimitVerdict("10/s", "token_bucket", 10, 0, S, 0),
            LimitVerdict("15/h", "sliding_log", 15, 5, 3_600 * S, 0),
        ],
    )
    denied = spend(engine)
    assert (denied.allowed, denied.limit, denied.remaining, denied.retry_ns) == (False, 10, 0, S // 10)
    assert left(denied) == [0, 5]
    later = spend(engine, 6, START_NS + S)
    assert (later.allowed, later.limit, later.remaining, later.retry_ns) == (False, 15, 5, 3_599 * S)
    assert left(later) == [10, 5], "what was denied by one has spent nothing of the other"
    assert left(spend(engine, 5, START_NS + S)) == [5, 0]


def test_a_cost_above_one_of_the_limits_never_fits(engine: Engine) -> None:
    put(engine, limits=[{"rate": "10/s"}, {"rate": "15/h"}])
    assert spend(engine, 11).retry_ns == NEVER
    assert left(spend(engine, 0)) == [10, 15]


def test_a_peek_spends_nothing_and_tells_what_cost_1_would_get(engine: Engine) -> None:
    put(engine, limits=[{"rate": "2/s"}, DAILY])
    assert left(spend(engine, 0)) == [2, 100]
    spend(engine, 2)
    peeked = spend(engine, 0)
    assert (peeked.allowed, left(peeked)) == (False, [0, 98])
    assert engine.buckets == 1


def test_limits_of_one_algorithm_and_period_go_by_their_order(engine: Engine) -> None:
    limits = [{"rate": "5/h", "burst": 5}, {"rate": "1/h", "burst": 20}]
    put(engine, limits=limits)
    spend(engine, 4)
    put(engine, limits=[{"rate": "5/h", "burst": 50}, {"rate": "1/h", "burst": 200}])
    assert left(spend(engine)) == [45, 195]


def test_a_changed_list_keeps_what_goes_on_and_starts_the_rest_full(engine: Engine) -> None:
    put(engine, limits=[{"rate": "10/s"}, DAILY])
    spend(engine, 4)
    put(engine, limits=[{"rate": "50/h", "algorithm": "sliding_window"}, {**DAILY, "rate": "200/d"}, {"rate": "20/s"}])
    assert left(spend(engine, 0)) == [50, 196, 16]
    put(engine, rate="200/d", algorithm="fixed_window")
    assert spend(engine, 0).remaining == 196
    put(engine, limits=[{"rate": "20/s"}, {**DAILY, "rate": "200/d", "timezone": "Asia/Tokyo"}])
    assert left(spend(engine, 0))[0] == 20


def test_a_lone_bucket_that_gets_company_keeps_what_it_has_spent_to_the_nanosecond(engine: Engine) -> None:
    company = [{"rate": "7/h"}, DAILY]
    put(engine, rate="7/h")
    spend(engine, 4)
    now_ns = START_NS + 1
    before = spend(engine, 0, now_ns)
    put(engine, now_ns, limits=company)
    after = spend(engine, 0, now_ns)
    assert after.limits is not None
    assert (left(after), after.limits[0].reset_ns) == ([3, 100], before.reset_ns)
    put(engine, now_ns, rate="7/h")
    assert spend(engine, 0, now_ns).remaining == 3


def test_a_limit_that_is_full_again_leaves_its_place_in_a_copy_to_no_other(engine: Engine) -> None:
    limits = [{"rate": "100/m"}, {"rate": "10/m", "burst": 50}]
    put(engine, limits=limits)
    spend(engine, 40)
    now_ns = START_NS + 60 * S
    assert left(spend(engine, 0, now_ns)) == [100, 20]
    copy = engine.copy("api", "k", now_ns)
    assert copy is not None
    put(other := new_engine(), limits=limits)
    other.merge(copy, now_ns)
    assert left(spend(other, 0, now_ns)) == [100, 20]


def test_an_entry_of_a_list_is_no_lone_limit_because_the_others_are_full(engine: Engine) -> None:
    put(engine, limits=[{"rate": "100/s"}, DAILY])
    spend(engine, 40)
    now_ns = START_NS + S
    put(engine, now_ns, rate="100/h", algorithm="fixed_window")
    assert spend(engine, 0, now_ns).remaining == 100


def test_the_headers_of_many_limits_are_bounded_by_the_smallest_when_a_node_decides_alone(engine: Engine) -> None:
    put(engine, limits=[{"rate": "9/s"}, {"rate": "300/h"}])
    alone = engine.check_alone(Check("api", "k"), 3, START_NS)
    assert isinstance(alone, Verdict)
    assert (alone.degraded, alone.limit, left(alone)) == (True, 3, [2, 99])


# Every algorithm.


def test_a_leaky_bucket_says_how_long_to_hold_back(engine: Engine) -> None:
    put(engine, rate="10/s", burst=3, algorithm="leaky_bucket")
    waits = [spend(engine).wait_ns for _ in range(3)]
    assert waits == [0, S // 10, 2 * S // 10]
    denied = spend(engine)
    assert (denied.allowed, denied.wait_ns, denied.retry_ns) == (False, None, S // 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_spent_is_spent_denied_is_not(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/h", algorithm=algorithm)
    assert [spend(engine, 4).remaining for _ in range(2)] == [6, 2]
    assert [spend(engine, 4).allowed for _ in range(2)] == [False, False]
    found = bucket(engine)
    assert (found.algorithm, found.limit, found.used, found.remaining) == (algorithm, 10, 8, 2)
    assert spend(engine, 2).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_other_numbers_keep_what_was_spent(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm)
    spend(engine, 4)
    put(engine, rate="6/d", algorithm=algorithm)
    assert spend(engine, 0).remaining == 2
    put(engine, rate="3/d", algorithm=algorithm)
    assert (spend(engine, 0).allowed, spend(engine, 0).remaining) == (False, 0)
    put(engine, rate="100/h", algorithm=algorithm)
    assert spend(engine, 0).remaining == 96, "a lone limit keeps it with another period, too"


@pytest.mark.parametrize("before", ALGORITHMS)
@pytest.mark.parametrize("after", ALGORITHMS)
def test_another_algorithm_starts_full_and_the_same_does_not(engine: Engine, before: str, after: str) -> None:
    put(engine, rate="10/d", algorithm=before)
    spend(engine, 4)
    put(engine, rate="10/d", algorithm=after)
    assert spend(engine, 0).remaining == (6 if before == after else 10)
    assert spend(engine, 6).remaining == (0 if before == after else 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_multiplier_scales_them(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm, backend="orders")
    spend(engine, 4)
    engine.backends.set_record("orders", parse_record("orders", {"multiplier": 0.5}), START_NS)
    engine.rescale("orders", START_NS)
    verdict = spend(engine, 0)
    assert (verdict.limit, verdict.remaining) == (5, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_that_moves_between_segments_takes_along_what_it_has_spent(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm, segments={"premium": {"rate": "50/d"}})
    spend(engine, 4)
    assert spend(engine, segment="premium").remaining == 45
    assert spend(engine).remaining == 4
    put_key(engine, {"rules": {"api": {"rate": "30/d"}}})
    assert spend(engine).remaining == 23
    assert bucket(engine).algorithm == algorithm
    put_key(engine, None)
    assert spend(engine, segment="premium").remaining == 42
    assert engine.buckets == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_own_numbers_are_of_the_algorithm_that_the_rule_has(engine: Engine, algorithm: str) -> None:
    put_key(engine, {"rules": {"api": {"rate": "30/d"}}})
    put(engine, rate="10/d", algorithm=algorithm)
    spend(engine, 4)
    assert (bucket(engine).algorithm, bucket(engine).remaining) == (algorithm, 26)
    put(engine, limits=[{"rate": "10/d", "algorithm": algorithm}, {"rate": "5/s"}])
    assert spend(engine, 0).remaining == (26 if algorithm == "token_bucket" else 30)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copy_brings_another_node_all_that_was_spent(engine: Engine, algorithm: str) -> None:
    put(engine, limits=[{"rate": "10/h", "algorithm": algorithm}, {"rate": "9/m"}])
    spend(engine, 4)
    spend(engine, 1, START_NS + S)
    copy = engine.copy("api", "k", START_NS + S)
    assert copy is not None
    other = new_engine()
    here_ns = START_NS + 777 * S  # its clock shows something else
    other.wall.offset_ns = engine.wall.offset_ns - 776 * S
    put(other, here_ns, limits=[{"rate": "10/h", "algorithm": algorithm}, {"rate": "9/m"}])
    for _ in range(2):
        other.merge(copy, here_ns, follows=True)
    expected = spend(engine, 0, START_NS + S)
    got = spend(other, 0, here_ns)
    assert left(got) == left(expected)
    assert got.limits is not None
    assert expected.limits is not None
    assert [told.reset_ns for told in got.limits] == [own.reset_ns for own in expected.limits]
    assert other.copy("api", "k", here_ns) is not None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copy_for_other_limits_is_taken_as_far_as_it_goes(engine: Engine, algorithm: str) -> None:
    put(engine, limits=[{"rate": "10/h", "algorithm": algorithm}, {"rate": "9/m"}])
    spend(engine, 4)
    copy = engine.copy("api", "k", START_NS)
    assert copy is not None
    put(other := new_engine(), rate="20/h", algorithm=algorithm)
    other.merge(copy, START_NS)
    assert spend(other, 0).remaining == 16


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_refunded_can_be_spent_again_and_never_more(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm)
    spend(engine, 4)
    assert engine.refund("api", "k", 3, START_NS) == 3
    assert spend(engine, 0).remaining == 9
    assert engine.refund("api", "k", 3, START_NS) == 1
    assert (spend(engine, 0).remaining, engine.refund("api", "k", 1, START_NS)) == (10, 0)
    assert engine.buckets == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_a_backend_does_not_take_has_spent_nothing(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm, backend="orders")
    record = parse_record("orders", {"multiplier": 1.0, "rate": 0.001, "priorities": {"5": 0.0}})
    engine.backends.set_record("orders", record, START_NS)
    verdicts = [spend(engine, key=f"k{number}") for number in range(50)]
    denied = [verdict for verdict in verdicts if not verdict.allowed]
    assert denied
    assert {(verdict.reason, verdict.remaining) for verdict in denied} == {("backend_overload", 10)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bucket_is_forgotten_once_it_is_full_and_not_before(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/m", algorithm=algorithm)
    spend(engine, 10)
    now_ns = START_NS
    while (reset_ns := spend(engine, 0, now_ns).reset_ns) > 0:
        assert engine.buckets == 1
        engine.tick(now_ns)
        now_ns += min(7 * S, reset_ns)
    for _ in range(200):
        now_ns += 2 * S
        engine.tick(now_ns)
    assert engine.buckets == 0


def forgets_when_full(engine: Engine, now_ns: int) -> bool:
    """Whether the bucket of k is there until it is full, and gone some time later."""
    full_ns = now_ns + spend(engine, 0, now_ns).reset_ns
    while now_ns < full_ns:
        engine.tick(now_ns)
        if spend(engine, 0, now_ns).reset_ns != full_ns - now_ns:
            return False
        now_ns += min(3 * S, full_ns - now_ns)
    for _ in range(400):
        now_ns += 2 * S
        engine.tick(now_ns)
    return engine.buckets == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_other_nodes_tell_keeps_nothing_from_being_forgotten(engine: Engine, algorithm: str) -> None:
    put(engine, limits=[{"rate": "10/m", "algorithm": algorithm}, {"rate": "10/s"}])
    put(owner := new_engine(), limits=[{"rate": "10/m", "algorithm": algorithm}, {"rate": "10/s"}])
    for number in range(600):
        now_ns = START_NS + number * S
        spend(owner, 1, now_ns, key=f"k{number}")
        copy = owner.copy("api", f"k{number}", now_ns)
        assert copy is not None
        engine.merge(copy, now_ns)
        for each in (owner, engine):
            each.tick(now_ns)
    assert engine.buckets == owner.buckets < 350


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_multiplier_that_changes_all_the_time_keeps_nothing_from_being_forgotten(
    engine: Engine, algorithm: str
) -> None:
    put(engine, limits=[{"rate": "10/m", "algorithm": algorithm}, {"rate": "10/s"}], backend="orders")
    for number in range(600):
        now_ns = START_NS + number * S
        record = parse_record("orders", {"multiplier": 0.5 + number % 2 / 2})
        engine.backends.set_record("orders", record, now_ns)
        engine.rescale("orders", now_ns)
        spend(engine, 1, now_ns, key=f"k{number}")
        engine.tick(now_ns)
    assert engine.buckets < 350


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("after_s", [0, 59, 60, 61])
def test_smaller_numbers_make_nothing_forgotten_too_early(engine: Engine, algorithm: str, after_s: int) -> None:
    company = {"rate": "9/s", "algorithm": "leaky_bucket"}
    put(engine, limits=[{"rate": "10/m", "algorithm": algorithm}, company])
    for number in range(after_s):
        engine.tick(START_NS + number * S)
    now_ns = START_NS + after_s * S
    spend(engine, 9, now_ns)
    put(engine, now_ns, limits=[{"rate": "1/m", "algorithm": algorithm}, company])
    assert forgets_when_full(engine, now_ns)


def test_what_was_spent_elsewhere_under_larger_numbers_is_not_forgotten_too_early(engine: Engine) -> None:
    put(owner := new_engine(), rate="60/m", burst=600, algorithm="leaky_bucket")
    put(engine, rate="60/m", algorithm="leaky_bucket")
    spend(owner, 600)
    copy = owner.copy("api", "k", START_NS)
    assert copy is not None
    engine.merge(copy, START_NS)
    assert forgets_when_full(engine, START_NS)
    assert spend(engine, 60, START_NS + 600 * S).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_forgetting_and_deleting_leave_nothing(engine: Engine, algorithm: str) -> None:
    put(engine, rate="10/d", algorithm=algorithm)
    spend(engine, 10)
    engine.forget("api", "k", START_NS)
    assert spend(engine, 10).allowed
    engine.set_rule("api", None, START_NS)
    put(engine, rate="10/d", algorithm=algorithm)
    assert spend(engine, 10).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_past_the_cap_those_nearest_to_full_go_first(algorithm: str) -> None:
    engine = Engine(buckets_max=32)
    put(engine, rate="100/d", algorithm=algorithm)
    for number in range(100):
        spend(engine, 1 + (number == 0), START_NS + number, key=f"k{number}")
        assert engine.buckets <= 32
    assert engine.evicted > 0
    if algorithm in ("token_bucket", "leaky_bucket"):
        assert spend(engine, 0, START_NS + 100, key="k0").remaining == 98


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_share_keeps_what_was_spent_when_the_period_changes_and_back(engine: Engine, algorithm: str) -> None:
    left = []
    for rate in ("30/d", "60/h", "30/d"):
        put(engine, rate=rate, algorithm=algorithm)
        verdict = engine.check_alone(Check("api", "k", 4), 3, START_NS)
        assert isinstance(verdict, Verdict)
        left.append(verdict.remaining)
    assert left == [6, 12, 2], "of 10, 20 and 10; the last was denied"
