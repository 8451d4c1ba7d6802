"""Pulls: asking other nodes what they know of a bucket, and answering who may ask."""

import pytest

from limiter_node.core.custody import Custody
from limiter_node.core.engine import Engine
from limiter_node.core.links import Link
from limiter_node.core.model import COPIES_PER_FRAME_MAX, MICROS, Check, Copy, Member, Pull, Pulled, Reply
from limiter_node.core.pulls import Pulls
from limiter_node.core.rules import parse_rule

CUSTODY = Custody("a")
CUSTODY.epoch = 2
CUSTODY.pending = {"d", "b"}


class Answers(list[Reply]):
    """A node that is asked, and what it answers."""

    def __init__(self) -> None:
        super().__init__()
        engine = Engine(buckets_max=1_000)
        engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 9}), 0)
        for key in "kl":
            engine.check(Check("api", key, 3), 0)
        self.pulls = Pulls(engine)

    def ask(self, *keys: str, is_early: bool = False) -> None:
        self.pulls.answer(Pull(4, 7, [("api", key) for key in keys]), 0, self.append, is_early=is_early)


@pytest.fixture
def answers() -> Answers:
    return Answers()


def test_who_asks_is_told_what_has_been_spent(answers: Answers) -> None:
    answers.ask("k", "full", "l")
    assert answers == [Pulled(4, [Copy("api", key, "default", 3 * MICROS) for key in "kl"])]


def test_who_asks_too_early_is_answered_later(answers: Answers) -> None:
    answers.ask("k", is_early=True)
    answers.ask("l", is_early=True)
    assert answers == []
    (first, second) = answers.pulls.take_early()
    assert answers.pulls.take_early() == []
    for (pull, respond), is_early in ((first, False), (second, True)):
        answers.pulls.answer(pull, 0, respond, is_early=is_early)
    assert answers == [Pulled(4, [Copy("api", "k", "default", 3 * MICROS)])]
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
    frames = pulls.frames(link, 7, CUSTODY)
    assert [len(frame.wanted) for frame in frames] == sizes
    assert [bucket for frame in frames for bucket in frame.wanted] == wanted
    assert all((frame.revision, frame.asked) == (7, ["b", "d"]) for frame in frames)
    assert pulls.frames(link, 7, CUSTODY) == []
    assert [pulls.take_answered(frame.id, 2) for frame in frames] == [frame.wanted for frame in frames]


def test_an_answer_counts_once_and_not_at_all_after_the_way_was_broken() -> None:
    pulls = Pulls(Engine(buckets_max=9))
    frames = {}
    for name in "bc":
        link = Link(Member(name, f"{name}:8082"))
        link.pulls = [("api", name)]
        (frames[name],) = pulls.frames(link, 7, CUSTODY)
    pulls.on_down("b")
    assert pulls.take_answered(frames["b"].id, 2) == []
    assert pulls.take_answered(frames["c"].id, 2) == [("api", "c")]
    assert pulls.take_answered(frames["c"].id, 2) == []
    assert pulls.take_answered(12_345, 2) == []


def test_an_answer_does_not_count_for_what_has_been_missed_since_it_was_asked_for() -> None:
    pulls, link = Pulls(Engine(buckets_max=9)), Link(Member("b", "b:8082"))
    link.pulls = [("api", "k")]
    (frame,) = pulls.frames(link, 7, CUSTODY)
    assert pulls.take_answered(frame.id, 3) == []
