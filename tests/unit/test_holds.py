"""Holds and settlements: what is set aside, what copies tell of it, and what time does to both."""

import pytest

from limiter_node.core.holds import ASK_AGAIN_TIMEOUTS, ENDED_NS, RESERVED_TIMEOUTS, TOLD_NS, Holds
from limiter_node.core.model import BATCHES, ENDED, HOLDS_MAX, Check, Copy, Hold, Op
from limiter_node.core.settlements import KNOWN_NS, PIECE, Settlements

TIMEOUT_NS = 100
NOW_NS = 1_000_000
BUCKET = "api", "k"
RESERVED_NS = RESERVED_TIMEOUTS * TIMEOUT_NS
AGAIN_NS = ASK_AGAIN_TIMEOUTS * TIMEOUT_NS


def holding(*batches: str, cost: int = 2) -> Holds:
    holds = Holds(TIMEOUT_NS)
    for batch in batches:
        holds.add(BUCKET, Check(*BUCKET, cost, op=Op.RESERVE, hold=(batch, 0)), NOW_NS)
    return holds


def test_what_is_set_aside_adds_up_until_it_ends() -> None:
    holds = holding("one", "two")
    assert holds.tokens == {BUCKET: 4}
    assert [held.cost for held in holds.of(BUCKET, "one")] == [2]
    holds.end(BUCKET, "one", NOW_NS)
    holds.end(BUCKET, "none", NOW_NS)
    assert holds.tokens == {BUCKET: 2}
    assert (holds.has_ended(BUCKET, "one"), holds.has_ended(BUCKET, "two")) == (True, False)
    holds.end(BUCKET, "two", NOW_NS)
    assert (holds.tokens, list(holds)) == ({}, [])
    assert BUCKET in holds


def test_a_copy_tells_what_is_left_of_the_time_and_what_has_just_ended() -> None:
    holds = holding("one", "two")
    holds.end(BUCKET, "one", NOW_NS)
    assert holds.copy(BUCKET, NOW_NS + 5) == (Hold("two", 0, 2, RESERVED_NS - 5), Hold("one", 0, ENDED, 0))
    assert holds.copy(BUCKET, NOW_NS + TOLD_NS + 1) == (Hold("two", 0, 2, 0),)
    assert holds.copy(("api", "other"), NOW_NS) == ()


def test_a_copy_never_tells_more_than_a_frame_takes() -> None:
    holds = holding(*(f"{number}" for number in range(HOLDS_MAX)))
    holds.end(BUCKET, "0", NOW_NS)
    holds.end(BUCKET, "1", NOW_NS)
    for _ in range(2):
        told = holds.copy(BUCKET, NOW_NS)
        assert len(told) == HOLDS_MAX
        holds.add(BUCKET, Check(*BUCKET, 1, hold=("more", 0)), NOW_NS)


def test_a_copy_adds_what_was_not_known_and_ends_what_has_ended() -> None:
    holds = holding("known", "over")
    told = [Hold("known", 0, 2, 1), Hold("new", 1, 5, RESERVED_NS, "free"), Hold("over", 0, ENDED, 0)]
    holds.learn(BUCKET, told, NOW_NS)
    assert holds.tokens == {BUCKET: 7}
    assert holds.of(BUCKET, "new")[0] == (5, "free", NOW_NS + RESERVED_NS + AGAIN_NS)
    assert holds.of(BUCKET, "known")[0].until_ns == NOW_NS + RESERVED_NS  # it knows better than the copy
    holds.learn(BUCKET, [Hold("over", 0, 2, RESERVED_NS)], NOW_NS + 1)  # a copy that is older
    assert holds.tokens == {BUCKET: 7}


def test_a_hold_is_asked_about_when_its_time_is_over_and_again_after_a_while() -> None:
    holds = holding("one")
    assert holds.take_due(NOW_NS + RESERVED_NS - 1) == []
    assert holds.take_due(NOW_NS + RESERVED_NS) == [(BUCKET, "one")]
    assert holds.take_due(NOW_NS + RESERVED_NS + AGAIN_NS - 1) == []
    assert holds.take_due(NOW_NS + RESERVED_NS + AGAIN_NS) == [(BUCKET, "one")]


def test_that_a_hold_has_ended_is_forgotten_in_the_end() -> None:
    holds = holding("one", "two")
    holds.end(BUCKET, "one", NOW_NS)
    holds.end(BUCKET, "two", NOW_NS + 1)
    holds.take_due(NOW_NS + ENDED_NS)
    assert (holds.has_ended(BUCKET, "one"), holds.has_ended(BUCKET, "two")) == (False, True)
    holds.take_due(NOW_NS + ENDED_NS + 1)
    assert BUCKET not in holds


def test_a_rule_takes_the_holds_of_all_its_buckets_along() -> None:
    holds = holding("one")
    other = "other", "k"
    holds.add(other, Check(*other, 1, hold=("one", 0)), NOW_NS)
    holds.drop_rule("api")
    assert holds.tokens == {other: 1}


@pytest.mark.parametrize("is_spent", [False, True])
def test_what_is_settled_first_stays(is_spent: bool) -> None:
    settled = Settlements()
    assert settled.settle("b", is_spent=is_spent) is is_spent
    assert settled.settle("b", is_spent=not is_spent) is is_spent
    assert settled.changed == {(BATCHES, "b")}
    assert settled.copy("b") == Copy(BATCHES, "b", "", int(is_spent))
    assert settled.copy("other") is None
    settled.publish("b")
    settled.learn(Copy(BATCHES, "b", "", int(not is_spent)))
    assert settled.settle("b", is_spent=True) is is_spent


def test_a_draft_gives_way_to_what_others_have_settled_and_is_dropped_with_the_right_to_decide() -> None:
    settled = Settlements()
    settled.settle("told", is_spent=True)
    settled.publish("told")
    settled.settle("draft", is_spent=True)
    assert (settled.is_draft("told"), settled.is_draft("draft")) == (False, True)
    settled.learn(Copy(BATCHES, "draft", "", 0))
    assert (settled.is_draft("draft"), settled.settle("draft", is_spent=True)) == (False, False)
    settled.settle("other", is_spent=True)
    settled.drop_drafts()
    assert settled.settle("told", is_spent=False) is True
    assert settled.copy("other") is None


def test_a_settlement_is_known_for_long_and_then_forgotten() -> None:
    settled = Settlements()
    settled.tick(NOW_NS)
    settled.settle("b", is_spent=True)
    settled.tick(NOW_NS + KNOWN_NS)
    assert (len(settled), settled.settle("b", is_spent=False)) == (1, True)
    settled.drop("none")
    settled.tick(NOW_NS + 2 * KNOWN_NS)
    assert len(settled) == 0
    assert not settled.is_draft("b")


def test_settlements_are_told_a_few_at_a_time() -> None:
    settled = Settlements()
    names = [f"{number}" for number in range(2 * PIECE + 1)]
    for name in names:
        settled.settle(name, is_spent=True)
    pieces = list(settled.pieces())
    assert [len(piece) for piece in pieces] == [PIECE, PIECE, 1]
    assert [name for piece in pieces for _, name in piece] == names
