"""Copies of buckets whose rule is not in force here: kept, told on, and taken in once it is."""

from typing import Any

import pytest

from limiter_node.core.engine import Engine
from limiter_node.core.model import FORGOTTEN_SPENT, MICROS, Bucket, Check, Copy, Entry, Verdict
from limiter_node.core.orphans import ORPHANS_MAX, Orphans
from limiter_node.core.rules import parse_key_entry, parse_rule


def copy_of(tokens: int, key: str = "k", rule: str = "api", segment: str = "default") -> Copy:
    return Copy(rule, key, segment, tokens * MICROS)


def joint_copy_of(tokens: int) -> Copy:
    return Copy("api", "k", "default", 0, [Entry("sliding_window", 60, [0, 0, tokens])])


FORGOTTEN = Copy("api", "k", "default", FORGOTTEN_SPENT)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([], None),
        ([copy_of(3)], copy_of(3)),
        ([copy_of(3), copy_of(5)], copy_of(5)),
        ([copy_of(5), copy_of(3)], copy_of(5)),
        ([copy_of(5), FORGOTTEN], None),
        ([copy_of(5), FORGOTTEN, copy_of(3)], copy_of(3)),
        ([FORGOTTEN], None),
        ([joint_copy_of(3), joint_copy_of(5)], joint_copy_of(5)),
        ([copy_of(5), joint_copy_of(3)], joint_copy_of(3)),
    ],
)
def test_the_copy_that_knows_most_to_be_spent_since_the_bucket_was_forgotten_is_kept(
    told: list[Copy], kept: Copy | None
) -> None:
    orphans = Orphans()
    for copy in told:
        orphans.put(copy, follows=False)
    assert orphans.get("api", "k") == kept


def test_a_copy_is_kept_with_how_it_was_told() -> None:
    orphans = Orphans()
    orphans.put(copy_of(3), follows=True)
    orphans.put(copy_of(2), follows=False)
    assert orphans.take("api") == [(copy_of(3), True)]


def test_the_copies_of_a_rule_are_taken_once_and_those_of_others_stay() -> None:
    orphans = Orphans()
    for copy in (copy_of(1), copy_of(2, "l"), copy_of(3, rule="other")):
        orphans.put(copy, follows=False)
    assert orphans.buckets() == [("api", "k"), ("api", "l"), ("other", "k")]
    assert orphans.take("api") == [(copy_of(1), False), (copy_of(2, "l"), False)]
    assert orphans.take("api") == []
    assert orphans.buckets() == [("other", "k")]


def test_a_copy_dropped_is_not_kept() -> None:
    orphans = Orphans()
    orphans.put(copy_of(1), follows=False)
    orphans.drop("api", "k")
    orphans.drop("api", "k")
    assert orphans.get("api", "k") is None


def test_only_so_many_are_kept_and_those_go_on_to_be_brought_up_to_date() -> None:
    orphans = Orphans()
    for number in range(ORPHANS_MAX + 1):
        orphans.put(copy_of(1, str(number)), follows=False)
    assert len(orphans.buckets()) == ORPHANS_MAX
    assert orphans.get("api", str(ORPHANS_MAX)) is None
    orphans.put(copy_of(2, "0"), follows=False)
    assert orphans.get("api", "0") == copy_of(2, "0")
    # Whatever goes makes room.
    orphans.drop("api", "1")
    orphans.put(copy_of(1, "new"), follows=False)
    assert orphans.get("api", "new") == copy_of(1, "new")


# In the engine.


@pytest.fixture
def engine() -> Engine:
    return Engine(buckets_max=1_000)


def put(engine: Engine, **rule: Any) -> None:
    engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 10, **rule}), 0)


def used(engine: Engine, key: str = "k") -> tuple[str, int]:
    """Under which segment the bucket is, and what it has spent."""
    found = engine.inspect("api", key, 0)
    assert isinstance(found, Bucket)
    return found.segment, found.used


PREMIUM = {"segments": {"premium": {"rate": "1/d", "burst": 100}}}


def test_a_rule_that_comes_later_adopts_what_was_told_of_its_buckets(engine: Engine) -> None:
    engine.merge(copy_of(4), 0)
    assert engine.copy("api", "k", 0) == copy_of(4)
    assert engine.buckets == 0
    put(engine)
    verdict = engine.check(Check("api", "k", 6), 0)
    assert isinstance(verdict, Verdict)
    assert (verdict.allowed, verdict.remaining) == (True, 0)


def test_a_bucket_adopted_from_its_owner_comes_under_the_owners_segment(engine: Engine) -> None:
    engine.merge(copy_of(4, segment="premium"), 0, follows=True)
    put(engine, **PREMIUM)
    assert used(engine) == ("premium", 4)


def test_what_is_kept_for_an_unknown_rule_is_handed_on_and_may_be_forgotten(engine: Engine) -> None:
    engine.merge(copy_of(4), 0)
    engine.merge(copy_of(5, "l"), 0)
    assert [bucket for piece in engine.holdings() for bucket in piece] == [("api", "k"), ("api", "l")]
    engine.drop("api", "k")
    assert not engine.forget("api", "l", 0)
    put(engine)
    assert (used(engine), used(engine, "l"), engine.buckets) == (("default", 0), ("default", 0), 0)


def test_a_rule_deleted_forgets_what_was_kept_for_it_too(engine: Engine) -> None:
    engine.merge(copy_of(4), 0)
    engine.set_rule("api", None, 0)
    put(engine)
    assert used(engine) == ("default", 0)


# Copies of known rules.


@pytest.mark.parametrize(
    ("known", "told", "spent"), [(0, 4, 4), (3, 4, 4), (4, 3, 4), (4, 4, 4), (4, 15, 15), (0, 0, 0), (4, 0, 4)]
)
def test_a_bucket_has_spent_the_more_of_what_two_nodes_know(engine: Engine, known: int, told: int, spent: int) -> None:
    put(engine)
    engine.check(Check("api", "k", known), 0)
    engine.merge(copy_of(told), 0)
    assert used(engine) == ("default", spent)
    assert engine.buckets == (spent > 0)


@pytest.mark.parametrize("known", [0, 4])
def test_a_bucket_told_to_be_forgotten_is_full(engine: Engine, known: int) -> None:
    put(engine)
    engine.check(Check("api", "k", known), 0)
    engine.merge(FORGOTTEN, 0)
    assert (used(engine), engine.buckets) == (("default", 0), 0)


@pytest.mark.parametrize(
    ("told", "follows", "expected"),
    [
        (3, False, ("default", 4)),
        (4, False, ("default", 4)),
        (5, False, ("premium", 5)),
        (3, True, ("premium", 4)),
        (4, True, ("premium", 4)),
    ],
)
def test_a_bucket_goes_to_the_segment_of_its_owner_or_of_who_knows_more(
    engine: Engine, told: int, follows: bool, expected: tuple[str, int]
) -> None:
    put(engine, **PREMIUM)
    engine.check(Check("api", "k", 4), 0)
    engine.merge(copy_of(told, segment="premium"), 0, follows=follows)
    assert (used(engine), engine.buckets) == (expected, 1)


def test_the_bucket_of_a_key_with_numbers_of_its_own_travels_like_any_other(engine: Engine) -> None:
    put(engine, **PREMIUM)
    engine.set_entry("k", parse_key_entry("k", {"rules": {"api": {"rate": "1/d", "burst": 50}}}), 0)
    engine.check(Check("api", "k", 20), 0)
    assert engine.copy("api", "k", 0) == copy_of(20)
    engine.merge(copy_of(30, segment="premium"), 0, follows=True)
    found = engine.inspect("api", "k", 0)
    assert isinstance(found, Bucket)
    assert (found.limit, found.used, engine.buckets) == (50, 30, 1)


def test_a_merge_is_no_change_of_this_nodes_own(engine: Engine) -> None:
    put(engine)
    engine.merge(copy_of(4), 0)
    assert engine.take_changed() == []


def test_copies_beyond_what_the_node_can_hold_make_room(engine: Engine) -> None:
    put(engine)
    for number in range(2_000):
        engine.merge(copy_of(1 + number % 7, str(number)), 0)
    assert engine.buckets <= 1_000


def test_a_copy_rounds_what_is_spent_up(engine: Engine) -> None:
    put(engine, rate="1/s")
    engine.check(Check("api", "k", 4), 0)
    assert engine.copy("api", "k", 1) == copy_of(4)
    assert engine.copy("api", "k", 1_500) == Copy("api", "k", "default", 4 * MICROS - 1)
    assert engine.copy("api", "k", 4_000_000_000) is None
    assert engine.copy("api", "never", 0) is None


@pytest.mark.parametrize("key", ["k", "never"])
def test_a_bucket_dropped_is_not_this_nodes_any_more(engine: Engine, key: str) -> None:
    put(engine)
    engine.check(Check("api", "k", 4), 0)
    engine.drop("api", key)
    assert used(engine, key) == ("default", 0)
