"""The engine: rules, segments, keys, multipliers, shadow rules, deciding alone, looking and forgetting.

What time does to a bucket is in tests/property; here no time passes unless it says so.
"""

import weakref
from itertools import pairwise
from typing import Any

import pytest

from limiter_node.core.backends import parse_record
from limiter_node.core.engine import RELEASED_PER_TICK, SWEEP_PERIOD_NS, TABLES_PER_TICK, UNREACHABLE_RETRY_NS, Engine
from limiter_node.core.limits import COUNT_MAX
from limiter_node.core.model import COST_MAX, NEVER, Bucket, Check, UnknownRule, Verdict
from limiter_node.core.rules import parse_key_entry, parse_rule

S = 1_000_000_000


@pytest.fixture
def engine() -> Engine:
    return Engine(buckets_max=1_000_000)


def put(engine: Engine, now_ns: int = 0, name: str = "api", **document: Any) -> None:
    engine.set_rule(name, parse_rule(name, document), now_ns)


def put_key(engine: Engine, key: str, document: Any) -> None:
    engine.set_entry(key, None if document is None else parse_key_entry(key, document), 0)


def scale(engine: Engine, multiplier: float | None, now_ns: int = 0) -> None:
    record = None if multiplier is None else parse_record("orders", {"multiplier": multiplier})
    engine.backends.set_record("orders", record, now_ns)
    engine.rescale("orders", now_ns)


def spend(engine: Engine, cost: int = 1, key: str = "k", now_ns: int = 0, **check: Any) -> Verdict:
    verdict = engine.check(Check(check.pop("rule", "api"), key, cost, **check), now_ns)
    assert isinstance(verdict, Verdict)
    return verdict


def alone(engine: Engine, cost: int = 1, parts: int = 3, key: str = "k", now_ns: int = 0, **check: Any) -> Verdict:
    verdict = engine.check_alone(Check("api", key, cost, **check), parts, now_ns)
    assert isinstance(verdict, Verdict)
    return verdict


def bucket(engine: Engine, key: str = "k", now_ns: int = 0) -> Bucket:
    found = engine.inspect("api", key, now_ns)
    assert isinstance(found, Bucket)
    return found


# Verdicts.


def test_a_verdict_is_the_example_of_the_contract(engine: Engine) -> None:
    put(engine, rate="100/s", burst=200)
    assert spend(engine) == Verdict(True, 200, 199, S // 100, 0, 2)


def test_a_denial_says_when_this_cost_would_be_allowed(engine: Engine) -> None:
    put(engine, rate="10/s")
    assert spend(engine, 8) == Verdict(True, 10, 2, 8 * S // 10, 0, 1)
    assert spend(engine, 5) == Verdict(False, 10, 2, 8 * S // 10, 3 * S // 10, 1)
    assert spend(engine, 3) == Verdict(False, 10, 2, 8 * S // 10, S // 10, 1)


@pytest.mark.parametrize("cost", [11, COUNT_MAX, COST_MAX])
def test_a_cost_above_the_capacity_is_never_allowed(engine: Engine, cost: int) -> None:
    put(engine, rate="10/s")
    assert spend(engine, cost) == Verdict(False, 10, 10, 0, NEVER, 1)
    assert engine.buckets == 0


def test_cost_0_says_what_cost_1_would_get_and_stores_nothing(engine: Engine) -> None:
    put(engine, rate="10/s")
    assert spend(engine, 0) == Verdict(True, 10, 10, 0, 0, 1)
    assert engine.buckets == 0
    spend(engine, 10)
    assert spend(engine, 0) == Verdict(False, 10, 0, S, S // 10, 1)


def test_keys_and_rules_have_buckets_of_their_own(engine: Engine) -> None:
    put(engine, rate="1/d", burst=5)
    put(engine, name="other", rate="1/d", burst=5)
    assert spend(engine, 5).remaining == 0
    assert spend(engine, 2, key="l").remaining == 3
    assert spend(engine, 3, rule="other").remaining == 2
    assert engine.buckets == 3


def test_a_check_of_an_unknown_rule_is_told_so(engine: Engine) -> None:
    assert engine.check(Check("api", "k"), 0) == UnknownRule()
    assert engine.check_alone(Check("api", "k"), 3, 0) == UnknownRule()
    assert engine.inspect("api", "k", 0) == UnknownRule()
    assert not engine.forget("api", "k", 0)


# Which numbers.


SEGMENTED: dict[str, Any] = {
    "rate": "1/d",
    "burst": 100,
    "segments": {"premium": {"rate": "1/d", "burst": 1_000}, "free": {"rate": "1/d", "burst": 10}},
}


@pytest.mark.parametrize(
    ("entry", "asked", "limit"),
    [
        (None, None, 100),
        (None, "default", 100),
        (None, "free", 10),
        (None, "unlisted", 100),
        ({"segment": "premium"}, None, 1_000),
        ({"segment": "premium"}, "free", 10),
        ({"segment": "premium"}, "unlisted", 100),
        ({"segment": "unlisted"}, None, 100),
        ({}, None, 100),
        ({"rules": {"api": {"rate": "7/d"}}}, None, 7),
        ({"rules": {"api": {"rate": "7/d"}}}, "free", 7),
        ({"segment": "premium", "rules": {"api": {"rate": "7/d"}}}, None, 7),
        ({"segment": "premium", "rules": {"other": {"rate": "7/d"}}}, None, 1_000),
        ({"rules": {"other": {"rate": "7/d"}}}, "free", 10),
    ],
)
def test_a_keys_own_numbers_come_first_then_the_segment_asked_for_then_the_keys_then_the_default(
    engine: Engine, entry: Any, asked: str | None, limit: int
) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "k", entry)
    put_key(engine, "another", {"segment": "free"})
    assert spend(engine, 3, segment=asked).limit == limit
    assert spend(engine, 0, segment=asked).remaining == limit - 3


def test_own_numbers_may_change_go_and_come_back_without_forgetting(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    assert spend(engine, 4).remaining == 96
    for document, limit in (
        ({"rules": {"api": {"rate": "1/d", "burst": 50}}}, 50),
        ({"rules": {"api": {"rate": "1/d", "burst": 60}}}, 60),
        ({"segment": "premium"}, 1_000),
        ({"rules": {"api": {"rate": "1/d", "burst": 50}}}, 50),
        ({"segment": "unlisted", "rules": {"other": {"rate": "1/d"}}}, 100),
        ({"rules": {"api": {"rate": "1/d", "burst": 20}}}, 20),
        (None, 100),
    ):
        put_key(engine, "k", document)
        assert spend(engine, 0).remaining == limit - 4
        assert engine.buckets == 1


def test_own_numbers_that_were_never_asked_for_go_without_a_trace(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "k", {"rules": {"api": {"rate": "1/d", "burst": 50}}})
    put_key(engine, "k", None)
    put_key(engine, "never", None)
    assert spend(engine).limit == 100
    put_key(engine, "k", {"rules": {"api": {"rate": "1/d", "burst": 50}}})
    spend(engine, 0)
    put_key(engine, "k", None)
    assert spend(engine, 0).remaining == 99


def test_own_numbers_that_go_take_the_buckets_of_deciding_alone_along(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "k", {"rules": {"api": {"rate": "1/d", "burst": 30}}})
    assert alone(engine, 4).remaining == 6
    put_key(engine, "k", None)
    assert engine.buckets == 0


def test_a_segment_struck_off_and_listed_again_keeps_what_its_keys_have_spent(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    spend(engine, 40, segment="premium")
    put(engine, rate="1/d", burst=100)
    # Its last bucket is remembered past any number of sweeps; a segment with none is let go.
    for number in range(6):
        engine.tick(number * SWEEP_PERIOD_NS)
    assert bucket(engine).segment == "premium"
    put(engine, **SEGMENTED)
    assert spend(engine, 0, segment="premium").remaining == 960
    assert spend(engine, 0, key="l", segment="free").remaining == 10


def test_a_bucket_of_a_retired_segment_refills_at_the_default_rate(engine: Engine) -> None:
    put(engine, rate="1/s", burst=100, segments={"premium": {"rate": "1/d", "burst": 100}})
    spend(engine, 50, segment="premium")
    put(engine, rate="1/s", burst=100)
    assert spend(engine, 0, now_ns=20 * S).remaining == 70


# What changes.


def test_a_burst_changed_live_keeps_what_was_spent(engine: Engine) -> None:
    put(engine, rate="1/d", burst=100)
    assert [spend(engine).remaining for _ in range(2)] == [99, 98]
    put(engine, rate="1/d", burst=10)
    assert [spend(engine).remaining for _ in range(2)] == [7, 6]
    put(engine, rate="1/d", burst=200)
    assert spend(engine).remaining == 195


def test_a_burst_below_what_was_spent_leaves_nothing_and_no_debt_is_shown(engine: Engine) -> None:
    put(engine, rate="10/s", burst=100)
    spend(engine, 80)
    put(engine, rate="10/s", burst=50)
    verdict = spend(engine)
    assert (verdict.allowed, verdict.limit, verdict.remaining, verdict.retry_ns) == (False, 50, 0, 31 * S // 10)
    assert bucket(engine) == Bucket("default", "token_bucket", 50, 80, 0)


def test_a_rule_deleted_forgets_its_buckets(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    spend(engine, 5)
    alone(engine, 5)
    assert engine.buckets == 2
    engine.set_rule("api", None, 0)
    engine.set_rule("never", None, 0)
    assert engine.buckets == 0
    put(engine, **SEGMENTED)
    assert spend(engine, 0).remaining == 100


@pytest.mark.parametrize(
    ("multiplier", "burst", "limit"),
    [
        (1, 200, 200),
        (0.5, 200, 100),
        (0.62, 200, 124),
        (0.333, 100, 33),
        (0.05, 10, 1),
        (0.001, 200, 1),
        (None, 200, 200),
    ],
)
def test_a_multiplier_scales_the_capacity_rounded_down_and_at_least_1(
    engine: Engine, multiplier: float | None, burst: int, limit: int
) -> None:
    put(engine, rate="100/s", burst=burst, backend="orders")
    scale(engine, multiplier)
    verdict = spend(engine)
    assert (verdict.limit, verdict.remaining, verdict.window_s) == (limit, limit - 1, -(-burst // 100))


def test_a_multiplier_scales_the_rate_of_every_plan_from_now_on(engine: Engine) -> None:
    put(engine, rate="10/s", burst=100, backend="orders", segments={"free": {"rate": "20/s", "burst": 100}})
    put_key(engine, "own", {"rules": {"api": {"rate": "40/s", "burst": 100}}})
    for key, segment in (("k", None), ("l", "free"), ("own", None)):
        spend(engine, 100, key=key, segment=segment)
    scale(engine, 0.5, now_ns=S)
    used = [bucket(engine, key, now_ns=2 * S).used for key in ("k", "l", "own")]
    assert used == [100 - 15, 100 - 30, 100 - 60]
    scale(engine, None, now_ns=2 * S)
    assert bucket(engine, "own", now_ns=3 * S).used == 0


def test_a_multiplier_is_for_the_rules_that_name_its_backend(engine: Engine) -> None:
    scale(engine, 0.5)
    put(engine, rate="100/s", backend="orders")
    put(engine, name="other", rate="100/s", backend="invoices")
    put(engine, name="free", rate="100/s")
    assert [spend(engine, 0, rule=name).limit for name in ("api", "other", "free")] == [50, 100, 100]
    put(engine, rate="100/s", backend="invoices")
    put(engine, name="other", rate="100/s", backend="orders")
    assert [spend(engine, 0, rule=name).limit for name in ("api", "other", "free")] == [100, 50, 100]
    scale(engine, 0.25)
    assert [spend(engine, 0, rule=name).limit for name in ("api", "other", "free")] == [100, 25, 100]


def test_a_cost_between_the_scaled_and_the_full_capacity_is_denied_for_now(engine: Engine) -> None:
    put(engine, rate="100/s", backend="orders")
    scale(engine, 0.5)
    verdict = spend(engine, 60)
    assert (verdict.allowed, verdict.limit) == (False, 50)
    assert verdict.retry_ns > 0
    scale(engine, 1)
    assert spend(engine, 60).allowed


# Shadow rules.


def test_a_shadow_rule_decides_and_counts_but_always_allows(engine: Engine) -> None:
    put(engine, rate="1/d", burst=2, shadow=True)
    assert [spend(engine).would_allow for _ in range(3)] == [True, True, False]
    assert spend(engine, 5) == Verdict(True, 2, 0, 2 * 86_400 * S, 0, 2 * 86_400, would_allow=False)
    put(engine, rate="1/d", burst=2)
    verdict = spend(engine)
    assert (verdict.allowed, verdict.would_allow) == (False, None)


# Alone.


@pytest.mark.parametrize(("parts", "limit"), [(1, 100), (2, 50), (3, 33), (99, 1), (1_000, 1)])
def test_alone_a_node_enforces_its_share_of_the_plan(engine: Engine, parts: int, limit: int) -> None:
    put(engine, rate="100/s")
    verdicts = [alone(engine, parts=parts) for _ in range(limit + 1)]
    assert [verdict.allowed for verdict in verdicts] == [True] * limit + [False]
    assert {verdict.limit for verdict in verdicts} == {limit}
    assert all(verdict.degraded and verdict.reason is None for verdict in verdicts)
    assert verdicts[-1].retry_ns == parts * S // 100


def test_what_is_spent_alone_is_not_spent_at_the_owner(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    assert alone(engine, 20).remaining == 13
    assert spend(engine, 1).remaining == 99
    assert alone(engine, 1).remaining == 12


def test_a_share_follows_the_rule_the_multiplier_and_the_size_of_the_fleet(engine: Engine) -> None:
    put(engine, rate="1/d", burst=90, backend="orders")
    assert alone(engine, 10, parts=3).remaining == 20
    assert alone(engine, 0, parts=2).remaining == 35
    put(engine, rate="1/d", burst=60, backend="orders")
    assert alone(engine, 0, parts=2).remaining == 20
    scale(engine, 0.5)
    verdict = alone(engine, 0, parts=2)
    assert (verdict.limit, verdict.remaining) == (15, 5)


def test_alone_segments_and_own_numbers_are_those_of_the_plan(engine: Engine) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "own", {"rules": {"api": {"rate": "1/d", "burst": 50}}})
    limits = [
        alone(engine, key=key, parts=2, segment=segment).limit
        for key, segment in (("k", None), ("k", "premium"), ("k", "free"), ("own", "free"))
    ]
    assert limits == [50, 500, 5, 25]


def test_on_unreachable_allow_allows_everything_and_spends_nothing(engine: Engine) -> None:
    put(engine, rate="1/d", burst=5, on_unreachable="allow")
    for cost in (1, 5, 500):
        assert alone(engine, cost) == Verdict(True, 5, 5, 0, 0, 5 * 86_400, degraded=True)
    assert engine.buckets == 0


def test_on_unreachable_deny_denies_everything_and_says_why(engine: Engine) -> None:
    put(engine, rate="1/d", burst=5, on_unreachable="deny")
    for cost in (0, 1, 500):
        verdict = alone(engine, cost)
        assert (verdict.allowed, verdict.degraded, verdict.reason) == (False, True, "unreachable")
        assert (verdict.limit, verdict.remaining, verdict.retry_ns) == (5, 0, UNREACHABLE_RETRY_NS)
    assert engine.buckets == 0


@pytest.mark.parametrize(("policy", "would_allow"), [("local", False), ("allow", True), ("deny", False)])
def test_alone_a_shadow_rule_allows_too(engine: Engine, policy: str, would_allow: bool) -> None:
    put(engine, rate="1/d", burst=3, on_unreachable=policy, shadow=True)
    alone(engine, 1)
    verdict = alone(engine, 1)
    assert (verdict.allowed, verdict.would_allow, verdict.degraded) == (True, would_allow, True)
    assert verdict.retry_ns == 0


# Looking and forgetting.


def test_inspecting_shows_a_bucket_and_changes_nothing(engine: Engine) -> None:
    put(engine, rate="1/s", burst=100, segments={"premium": {"rate": "1/s", "burst": 1_000}})
    assert bucket(engine) == Bucket("default", "token_bucket", 100, 0, 100)
    spend(engine, 7)
    assert bucket(engine, now_ns=S // 2) == Bucket("default", "token_bucket", 100, 7, 93)
    assert bucket(engine, now_ns=S) == Bucket("default", "token_bucket", 100, 6, 94)
    assert spend(engine, 0).remaining == 93
    assert engine.buckets == 1


def test_inspecting_shows_a_bucket_under_the_plan_that_holds_it_else_the_one_it_would_come_under(
    engine: Engine,
) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "k", {"segment": "premium"})
    assert bucket(engine) == Bucket("premium", "token_bucket", 1_000, 0, 1_000)
    spend(engine, 3, segment="free")
    assert bucket(engine) == Bucket("free", "token_bucket", 10, 3, 7)
    put_key(engine, "k", {"segment": "premium", "rules": {"api": {"rate": "1/d", "burst": 50}}})
    spend(engine, 0)
    assert bucket(engine) == Bucket("premium", "token_bucket", 50, 3, 47)
    put_key(engine, "k", {"rules": {"api": {"rate": "1/d", "burst": 50}}})
    assert bucket(engine) == Bucket("default", "token_bucket", 50, 3, 47)


@pytest.mark.parametrize("entry", [None, {"segment": "free"}, {"rules": {"api": {"rate": "1/d", "burst": 50}}}])
def test_a_forgotten_bucket_is_full_wherever_it_was(engine: Engine, entry: Any) -> None:
    put(engine, **SEGMENTED)
    put_key(engine, "k", entry)
    limit = spend(engine, 3).limit
    alone(engine, 3)
    spend(engine, 1, key="other")
    assert engine.forget("api", "k", 0)
    assert engine.forget("api", "k", 0)
    assert (spend(engine, 0).remaining, alone(engine, 0).remaining) == (limit, limit // 3)
    assert engine.buckets == 1


# Ticks.


def test_full_buckets_are_let_go_within_two_refill_times_and_the_sweeps_between(engine: Engine) -> None:
    put(engine, rate="1/s", burst=5)
    for number in range(1_000):
        spend(engine, 5, key=f"k{number}")
    for half_s in range(2, 2 * 14):
        engine.tick(half_s * S // 2)
    assert engine.buckets == 0
    assert engine.evicted == 0


def test_every_table_is_swept_however_many_there_are(engine: Engine) -> None:
    rules = 3 * TABLES_PER_TICK // 2 + 5
    for number in range(rules):
        put(engine, name=f"rule-{number}", rate="1/s", segments={"free": {"rate": "1/s"}})
        spend(engine, rule=f"rule-{number}", segment="free")
    assert engine.buckets == rules
    for step in range(1, 400):
        engine.tick(step * 20_000_000)
    assert engine.buckets == 0


class TracedKey(str):
    """A key whose end can be noticed."""


def test_dead_buckets_are_freed_in_bounded_pieces(engine: Engine) -> None:
    put(engine, rate="1/d", burst=5)
    keys = [TracedKey(f"k{number}") for number in range(2 * RELEASED_PER_TICK + RELEASED_PER_TICK // 2)]
    for key in keys:
        spend(engine, key=key)
    traces = list(map(weakref.ref, keys))
    del key, keys
    engine.set_rule("api", None, 0)
    assert engine.buckets == 0
    alive = [len(traces)]
    while alive[-1]:
        engine.tick(0)
        alive.append(sum(trace() is not None for trace in traces))
    assert all(before - after <= RELEASED_PER_TICK for before, after in pairwise(alive))
    assert len(alive) == 4


def test_a_tick_without_rules_does_nothing(engine: Engine) -> None:
    for step in range(3):
        engine.tick(step * SWEEP_PERIOD_NS)
    assert (engine.buckets, engine.evicted) == (0, 0)


def test_a_key_that_gets_numbers_of_its_own_takes_what_it_has_spent_along_into_its_next_check(engine: Engine) -> None:
    put(engine, rate="1/s", burst=10)
    spend(engine, 4)
    put_key(engine, "k", {"rules": {"api": {"rate": "1/s", "burst": 20}}})
    assert spend(engine, 1).remaining == 15
