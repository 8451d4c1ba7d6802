"""Pulls: asking other nodes what they know of a bucket, and answering who may ask."""

import pytest

from limiter_node.core.engine import Engine
from limiter_node.core.links import Link
from limiter_node.core.model import COPIES_PER_FRAME_MAX, MICROS, Check, Copy, Member, Pull, Pulled, Reply
from limiter_node.core.pulls import Pulls
from limiter_node.core.ring import Ring
from limiter_node.core.rules import parse_rule

RING = Ring(7, {name: Member(name, f"{name}:8082") for name in "abcd"})
KEYS = [f"k{number}" for number in range(200)]
OF_A = [key for key in KEYS if RING.owner(key) == "a"]
HELD_BY_A = [key for key in KEYS if RING.replica(key) == "a"]
STRANGE = next(key for key in KEYS if "a" not in RING.holders(key))


class Answers(list[Reply]):
    """A node that is asked, and what it answers a."""

    def __init__(self) -> None:
        super().__init__()
        engine = Engine(buckets_max=1_000)
        engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 9}), 0)
        for key in (OF_A[0], HELD_BY_A[0], STRANGE):
            engine.check(Check("api", key, 3), 0)
        self.pulls = Pulls(engine)

    def ask(self, *keys: str, revision: int = 7, ring: Ring = RING) -> bool:
        pull = Pull(4, revision, [("api", key) for key in keys])
        return self.pulls.answer(ring, "a", pull, 0, self.append)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.mark.parametrize("revision", [1, 7])
def test_who_holds_a_bucket_is_told_what_has_been_spent_of_it(answers: Answers, revision: int) -> None:
    assert answers.ask(OF_A[0], HELD_BY_A[0], OF_A[1], revision=revision)
    assert answers == [Pulled(4, [Copy("api", key, "default", 3 * MICROS) for key in (OF_A[0], HELD_BY_A[0])])]


def test_who_asks_by_an_older_ring_for_a_bucket_it_no_longer_holds_is_told_nothing(answers: Answers) -> None:
    assert not answers.ask(OF_A[0], STRANGE, revision=6)
    assert answers == []


def test_who_asks_by_this_ring_knows_what_it_holds(answers: Answers) -> None:
    # It may not have been called by its name yet when it asked.
    assert answers.ask(STRANGE)
    assert answers == [Pulled(4, [Copy("api", STRANGE, "default", 3 * MICROS)])]


def test_who_asks_by_a_newer_ring_is_answered_once_this_node_has_it(answers: Answers) -> None:
    # From then on this node does not decide the bucket, whatever it has granted meanwhile.
    assert answers.ask(STRANGE, revision=8)
    assert answers.ask(OF_A[0], revision=9)
    assert answers == []
    newer = Ring(8, {name: Member(name, f"{name}:8082") for name in "ab"})
    (first, second) = answers.pulls.take_early()
    assert answers.pulls.take_early() == []
    for name, pull, respond in (first, second):
        assert answers.pulls.answer(newer, name, pull, 0, respond)
    assert answers == [Pulled(4, [Copy("api", STRANGE, "default", 3 * MICROS)])]
    assert answers.pulls.take_early() == [second]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (COPIES_PER_FRAME_MAX, [COPIES_PER_FRAME_MAX]),
        (2 * COPIES_PER_FRAME_MAX + 1, [COPIES_PER_FRAME_MAX, COPIES_PER_FRAME_MAX, 1]),
    ],
)
def test_all_that_is_wanted_of_a_peer_is_asked_for_once_in_frames_of_bounded_size(count: int, sizes: list[int]) -> None:
    pulls, link = Pulls(Engine(buckets_max=9)), Link(Member("b", "b:8082"))
    link.pulls = [("api", str(number)) for number in range(count)]
    wanted = list(link.pulls)
    frames = pulls.frames(link, 7, 2)
    assert [len(frame.wanted) for frame in frames] == sizes
    assert [bucket for frame in frames for bucket in frame.wanted] == wanted
    assert {frame.revision for frame in frames} <= {7}
    assert pulls.frames(link, 7, 2) == []
    assert [pulls.take_answered(frame.id, 2) for frame in frames] == [frame.wanted for frame in frames]


def test_an_answer_counts_once_and_not_at_all_after_the_way_was_broken() -> None:
    pulls = Pulls(Engine(buckets_max=9))
    frames = {}
    for name in "bc":
        link = Link(Member(name, f"{name}:8082"))
        link.pulls = [("api", name)]
        (frames[name],) = pulls.frames(link, 7, 2)
    pulls.on_down("b")
    assert pulls.take_answered(frames["b"].id, 2) == []
    assert pulls.take_answered(frames["c"].id, 2) == [("api", "c")]
    assert pulls.take_answered(frames["c"].id, 2) == []
    assert pulls.take_answered(12_345, 2) == []


def test_an_answer_does_not_count_for_what_has_been_missed_since_it_was_asked_for() -> None:
    pulls, link = Pulls(Engine(buckets_max=9)), Link(Member("b", "b:8082"))
    link.pulls = [("api", "k")]
    (frame,) = pulls.frames(link, 7, 2)
    assert pulls.take_answered(frame.id, 3) == []
