"""An engine whose keys have entries: numbers per key and per pattern, and what a key has spent on every way between."""

from itertools import product
from typing import Any

import pytest

from limiter_node.core.backends import parse_record
from limiter_node.core.engine import SWEEP_PERIOD_NS, Engine
from limiter_node.core.model import FORGOTTEN_SPENT, MICROS, Bucket, Check, Copy, Verdict
from limiter_node.core.plan import Plan
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.core.token_plan import TokenPlan

S = 1_000_000_000
KEY = "10.1.2.3"


def numbers(burst: int, segment: str | None = None) -> dict[str, Any]:
    return {"segment": segment, "rules": {"api": {"rate": "1/d", "burst": burst}}}


@pytest.fixture
def engine() -> Engine:
    engine = Engine(buckets_max=1_000)
    engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 100, "backend": "orders"}), 0)
    return engine


def put(engine: Engine, name: str, document: Any, now_ns: int = 0) -> None:
    engine.set_entry(name, None if document is None else parse_key_entry(name, document), now_ns)


def numbers_since(plan: Plan) -> int:
    """When a plan was last given numbers."""
    assert isinstance(plan, TokenPlan)
    return plan.table.clock.since_ns


def spend(engine: Engine, cost: int = 1, key: str = KEY, now_ns: int = 0, segment: str | None = None) -> Verdict:
    verdict = engine.check(Check("api", key, cost, segment), now_ns)
    assert isinstance(verdict, Verdict)
    return verdict


def bucket(engine: Engine, key: str = KEY, now_ns: int = 0) -> Bucket:
    found = engine.inspect("api", key, now_ns)
    assert isinstance(found, Bucket)
    return found


# Every way there is to have numbers, as {name: document}, with the burst that comes of it.
WAYS: list[tuple[dict[str, Any], int]] = [
    ({}, 100),
    ({KEY: numbers(50)}, 50),
    ({KEY: numbers(60)}, 60),
    ({KEY: {"segment": "premium"}, "10.1.0.0/16": numbers(70)}, 200),
    ({"10.1.0.0/16": numbers(70)}, 70),
    ({"10.1.0.0/16": numbers(75), "10.*": numbers(80)}, 75),
    ({"10.*": numbers(80)}, 80),
    ({"10.0.0.0/8": {"segment": "premium"}, "10.*": numbers(80)}, 200),
    ({"10.0.0.0/8": {}, "*": numbers(90)}, 100),
]


def go(engine: Engine, way: dict[str, Any]) -> None:
    for name in [*engine.entries.named]:
        if name not in way:
            put(engine, name, None)
    for name, document in way.items():
        put(engine, name, document)


@pytest.mark.parametrize("premium", [100, 200])
def test_on_every_way_from_numbers_to_others_a_key_keeps_what_it_has_spent(premium: int) -> None:
    segments = {"premium": {"rate": "1/d", "burst": premium}} if premium > 100 else {}
    rule = parse_rule("api", {"rate": "1/d", "burst": 100, "segments": segments})
    for *ways, is_asked in product(WAYS, WAYS, WAYS, (True, False)):
        engine = Engine(buckets_max=1_000)
        engine.set_rule("api", rule, 0)
        go(engine, ways[0][0])
        assert spend(engine, 4).remaining == min(ways[0][1], premium) - 4
        go(engine, ways[1][0])
        if is_asked:
            assert spend(engine, 0).remaining == min(ways[1][1], premium) - 4, ways
        engine.rules["api"].drop_empty()
        go(engine, ways[2][0])
        assert spend(engine).remaining == min(ways[2][1], premium) - 5, ways
        # And nothing is left behind where it was.
        assert engine.buckets == 1


def test_keys_of_one_pattern_have_buckets_of_their_own(engine: Engine) -> None:
    put(engine, "10.1.0.0/16", numbers(5))
    put(engine, "192.0.2.*", numbers(5))
    assert [spend(engine, key=f"10.1.0.{number}").remaining for number in (1, 1, 2)] == [4, 3, 4]
    assert spend(engine, 5, key="192.0.2.1").remaining == 0
    assert not spend(engine, key="192.0.2.1").allowed
    assert spend(engine, key="10.2.0.1").limit == 100
    assert engine.buckets == 4


def test_a_patterns_entry_is_used_whole(engine: Engine) -> None:
    engine.set_rule("other", parse_rule("other", {"rate": "1/s", "segments": {"premium": {"rate": "9/s"}}}), 0)
    put(engine, "10.*", {"segment": "premium", "rules": {"api": {"rate": "5/s"}}})
    put(engine, "10.1.0.0/16", {"segment": "premium"})
    put(engine, KEY, {})
    limits = []
    for rule, key in [(rule, key) for key in ("10.2.0.1", "10.1.0.1", KEY) for rule in ("api", "other")]:
        verdict = engine.check(Check(rule, key), 0)
        assert isinstance(verdict, Verdict)
        limits.append(verdict.limit)
    assert limits == [5, 9, 100, 9, 100, 1]
    assert bucket(engine, "10.2.0.1").segment == "premium"


def test_the_numbers_of_a_pattern_change_for_all_its_keys_at_once(engine: Engine) -> None:
    put(engine, "10.*", {"rules": {"api": {"rate": "1/s", "burst": 50}}})
    spend(engine, 40)
    spend(engine, 10, key="10.9.9.9")
    put(engine, "10.*", {"rules": {"api": {"rate": "2/s", "burst": 45}}}, now_ns=5 * S)
    # 35 were spent when the rate changed, whether or not the key was asked for since.
    assert spend(engine, 0, now_ns=10 * S).remaining == 45 - 25
    assert spend(engine, 0, key="10.9.9.9", now_ns=5 * S).remaining == 45 - 5


def test_a_deleted_patterns_buckets_refill_at_the_default_rate_until_they_move(engine: Engine) -> None:
    engine.set_rule("api", parse_rule("api", {"rate": "1/s", "burst": 100}), 0)
    put(engine, "10.*", numbers(50))
    spend(engine, 30)
    put(engine, "10.*", None)
    rule = engine.rules["api"]
    assert bucket(engine, now_ns=10 * S) == Bucket("default", "token_bucket", 100, 20, 80)
    assert spend(engine, 0, now_ns=10 * S).remaining == 80
    rule.drop_empty()
    assert not rule.retired
    assert rule.only is rule.default


def test_a_pattern_that_comes_and_goes_and_comes_keeps_what_keys_have_spent_that_nobody_asks_for(
    engine: Engine,
) -> None:
    for round_ in range(3):
        put(engine, "10.*", numbers(50))
        assert spend(engine).remaining == 50 - round_ - 1
        if not round_:
            spend(engine, 20, key="10.9.9.9")
        put(engine, "10.*", None)
    assert len(engine.rules["api"].retired) == 1
    assert spend(engine, 0, key="10.9.9.9").remaining == 80


def test_a_segment_asked_for_does_not_move_a_key_that_a_pattern_gives_numbers(engine: Engine) -> None:
    segments = {"premium": {"rate": "1/d", "burst": 200}}
    engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 100, "segments": segments}), 0)
    put(engine, "10.*", numbers(50))
    assert spend(engine, 10, segment="premium").limit == 50
    put(engine, "10.*", {"segment": "premium"})
    assert spend(engine, 0).remaining == 190
    assert spend(engine, 0, segment="default").remaining == 90


def test_a_multiplier_scales_the_numbers_of_patterns_and_of_keys(engine: Engine) -> None:
    put(engine, "10.*", numbers(50))
    put(engine, "alice", numbers(40))
    spend(engine, 10)
    spend(engine, 10, key="alice")
    engine.backends.set_record("orders", parse_record("orders", {"multiplier": 0.5}), 0)
    engine.rescale("orders", 0)
    assert (spend(engine, 0).limit, spend(engine, 0).remaining) == (25, 15)
    assert (spend(engine, 0, key="alice").limit, spend(engine, 0, key="alice").remaining) == (20, 10)
    assert spend(engine, key="10.3.3.3").limit == 25


def test_alone_a_node_enforces_its_share_of_a_patterns_numbers(engine: Engine) -> None:
    put(engine, "10.*", numbers(30))
    shares = [engine.check_alone(Check("api", key), 3, 0) for key in (KEY, KEY, "10.0.0.1")]
    assert [(share.limit, share.remaining) for share in shares if isinstance(share, Verdict)] == [
        (10, 9),
        (10, 8),
        (10, 9),
    ]
    engine.set_rule("api", None, 0)
    assert engine.buckets == 0


def test_what_is_forgotten_or_dropped_is_so_under_every_plan(engine: Engine) -> None:
    for name in (KEY, "10.*"):
        put(engine, name, numbers(30))
        spend(engine, 5)
        assert engine.forget("api", KEY, 0)
        assert (engine.buckets, spend(engine, 0).remaining) == (0, 30)
        spend(engine, 5)
        engine.drop("api", KEY)
        assert (engine.buckets, spend(engine, 0).remaining) == (0, 30)
        spend(engine, 5)
        engine.merge(Copy("api", KEY, "default", FORGOTTEN_SPENT), 0)
        assert (engine.buckets, spend(engine, 0).remaining) == (0, 30)
        put(engine, name, None)


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("name", [KEY, "10.1.0.0/16"])
def test_a_copy_goes_to_the_plan_that_the_entries_here_say_before_and_after(name: str, follows: bool) -> None:
    sender, receiver = (Engine(buckets_max=1_000) for _ in range(2))
    for each in (sender, receiver):
        each.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 100}), 0)
    put(sender, name, numbers(50))
    spend(sender, 7)
    copy = sender.copy("api", KEY, 0)
    assert copy == Copy("api", KEY, "default", 7 * MICROS)
    receiver.merge(copy, 0, follows=follows)
    assert bucket(receiver).remaining == 93
    put(receiver, name, numbers(50))
    spend(sender, 2)
    copy = sender.copy("api", KEY, 0)
    assert copy is not None
    receiver.merge(copy, 0, follows=follows)
    assert bucket(receiver).used == 9
    assert spend(receiver, 0).remaining == 41
    assert receiver.buckets == 1
    put(receiver, name, None)
    assert spend(receiver, 0).remaining == 91


def test_a_move_is_told_to_the_replica(engine: Engine) -> None:
    spend(engine, 5)
    put(engine, "10.*", numbers(30))
    assert engine.take_changed() == [("api", KEY)]
    spend(engine, 0)
    assert engine.take_changed() == [("api", KEY)]
    put(engine, KEY, numbers(40))
    spend(engine, 0)
    engine.take_changed()
    put(engine, KEY, None)
    assert engine.take_changed() == [("api", KEY)]
    assert engine.buckets == 1


def test_buckets_under_patterns_expire_and_make_room_like_others(engine: Engine) -> None:
    put(engine, "10.*", {"rules": {"api": {"rate": "10/s", "burst": 10}}})
    put(engine, "alice", {"rules": {"api": {"rate": "10/s", "burst": 10}}})
    for number in range(2_000):
        spend(engine, key=f"10.{number}")
    spend(engine, key="alice")
    assert 0 < engine.buckets <= 1_000
    assert engine.evicted
    for step in range(30):
        engine.tick(step * SWEEP_PERIOD_NS)
    assert engine.buckets == 0


@pytest.mark.parametrize("name", [KEY, "10.*"])
def test_own_numbers_that_name_no_algorithm_go_with_that_of_the_rule(engine: Engine, name: str) -> None:
    put(engine, name, {"rules": {"api": {"rate": "50/d"}}})
    left = []
    for algorithm in ("token_bucket", "sliding_window", "fixed_window", "fixed_window", "token_bucket"):
        engine.set_rule("api", parse_rule("api", {"rate": "100/d", "algorithm": algorithm}), 0)
        left.append(spend(engine, 3).remaining)
        assert bucket(engine).algorithm == algorithm
        assert engine.buckets == 1
        engine.rules["api"].drop_empty()
    # Another algorithm starts full, the same one goes on.
    assert left == [47, 47, 47, 44, 47]


def test_of_several_limits_each_keeps_what_was_spent_under_it(engine: Engine) -> None:
    engine.set_rule("api", parse_rule("api", {"limits": [{"rate": "100/m"}, {"rate": "200/d"}]}), 0)

    def left(cost: int) -> list[int]:
        return [limit.remaining for limit in spend(engine, cost).limits or ()]

    def limits(minute: int, day: int) -> Any:
        return {"rules": {"api": {"limits": [{"rate": f"{minute}/m"}, {"rate": f"{day}/d"}]}}}

    assert left(5) == [95, 195]
    put(engine, "10.*", limits(50, 60))
    assert left(1) == [44, 54]
    put(engine, "10.*", limits(40, 70))
    assert left(1) == [33, 63]
    put(engine, KEY, limits(30, 80))
    assert left(1) == [22, 72]
    put(engine, KEY, None)
    assert left(1) == [31, 61]
    put(engine, "10.*", None)
    assert left(1) == [90, 190]
    assert engine.buckets == 1


def test_keys_whose_own_numbers_are_the_same_share_a_plan_and_no_bucket(engine: Engine) -> None:
    for key in ("a", "b", "c"):
        put(engine, key, numbers(50))
    put(engine, "d", numbers(51))
    assert [spend(engine, cost, key).remaining for key, cost in (("a", 3), ("b", 4), ("d", 5))] == [47, 46, 46]
    rule = engine.rules["api"]
    assert len(rule.own) == 2
    put(engine, "b", numbers(51))
    assert spend(engine, 0, "b").remaining == 47
    assert spend(engine, 0, "a").remaining == 47
    put(engine, "a", {"segment": "free"})
    assert spend(engine, 0, "a").remaining == 97
    assert len(rule.own) == 1
    assert spend(engine, 6, "c").remaining == 44
    for key in ("b", "c", "d"):
        put(engine, key, None)
    assert not rule.own
    assert [spend(engine, 0, key).remaining for key in "abcd"] == [97, 96, 94, 95]


def test_an_entry_that_changes_in_one_rule_leaves_the_others_alone(engine: Engine) -> None:
    engine.set_rule("other", parse_rule("other", {"rate": "1/d", "burst": 100}), 0)
    both = {"api": {"rate": "1/d", "burst": 50}, "other": {"rate": "1/d", "burst": 60}}
    for name in ("k", "k*"):
        put(engine, name, {"rules": both})
        assert [engine.check(Check(rule, "k", 5), 0) for rule in ("api", "other")]
        plans = list(engine.rules["other"].all_plans())
        before = [numbers_since(plan) for plan in plans]
        put(engine, name, {"rules": {**both, "api": {"rate": "1/d", "burst": 70}, "unknown": {"rate": "1/s"}}}, S)
        assert list(engine.rules["other"].all_plans()) == plans
        assert [numbers_since(plan) for plan in plans] == before
        put(engine, name, None)
