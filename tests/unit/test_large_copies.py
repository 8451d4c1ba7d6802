"""Copies of the largest buckets there are, eight full logs each: cut into frames that can be sent and taken in."""

import pytest

from limiter_node.cluster import wire
from limiter_node.core.engine import Engine
from limiter_node.core.limits import LOG_COUNT_MAX
from limiter_node.core.model import Check, Copy, Member, Pull, Pulled, Reply
from limiter_node.core.outlet import FRAMES_IN_FLIGHT_MAX
from limiter_node.core.pulls import Pulls
from limiter_node.core.replication import Replication
from limiter_node.core.ring import Ring
from limiter_node.core.rules import LIMITS_MAX, Rule, parse_rule

DAY_NS = 86_400_000_000_000
RING = Ring(7, {name: Member(name, f"{name}:8082") for name in "ab"})
KEYS = [key for number in range(60) if RING.owner(key := f"{'k' * 500}{number:03}") == "a"][:12]


def eight_logs() -> Rule:
    limits = [{"rate": f"{LOG_COUNT_MAX}/{days}d", "algorithm": "sliding_log"} for days in range(1, LIMITS_MAX + 1)]
    return parse_rule("api", {"limits": limits})


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Every token was granted at another moment, long ago."""
    engine = Engine(buckets_max=1_000)
    engine.set_rule("api", eight_logs(), 0)
    for number in range(LOG_COUNT_MAX):
        engine.check(Check("api", KEYS[0]), number * 1_000_003)
    copy = engine.copy("api", KEYS[0], DAY_NS // 2)
    assert copy is not None
    assert copy.values == 2 * LOG_COUNT_MAX * LIMITS_MAX
    for key in KEYS[1:]:
        engine.merge(Copy("api", key, "default", 0, copy.account), DAY_NS // 2)
    return engine


def test_they_are_replicated_in_frames_that_can_be_sent_two_at_a_time(engine: Engine) -> None:
    replication = Replication("a", engine, wake=lambda _: None)
    replication.begin_survey(RING)
    for key in KEYS:
        replication.put(RING, ("api", key), DAY_NS // 2)
    sent: list[str] = []
    while frames := replication.frames("b", DAY_NS // 2):
        assert len(frames) <= FRAMES_IN_FLIGHT_MAX
        for frame in frames:
            assert list(wire.Decoder().feed(wire.encode(frame))) == [frame]
            sent += [copy.key for copy in frame.copies]
            replication.on_ack("b", frame.id, DAY_NS // 2)
    assert sent == KEYS


def test_a_pull_is_answered_in_parts_of_which_the_last_says_that_it_is_all(engine: Engine) -> None:
    told: list[Reply] = []
    Pulls(engine).answer(Pull(4, 7, [("api", key) for key in KEYS]), DAY_NS // 2, told.append, is_early=False)
    taken = Engine(buckets_max=1_000)
    taken.set_rule("api", eight_logs(), 0)
    for reply in told:
        (pulled,) = wire.Decoder().feed(wire.encode(reply))
        assert isinstance(pulled, Pulled)
        for copy in pulled.copies:
            taken.merge(copy, DAY_NS // 2)
    assert [reply.id for reply in told if isinstance(reply, Pulled)][-1] == 4
    asker = Pulls(taken)
    assert [asker.take_answered(reply.id, 0) for reply in told[:-1] if isinstance(reply, Pulled)] == [[]] * (
        len(told) - 1
    )
    assert all(taken.copy("api", key, DAY_NS // 2) == engine.copy("api", key, DAY_NS // 2) for key in KEYS)


def test_a_copy_that_is_taken_in_again_a_moment_later_is_not_counted_twice(engine: Engine) -> None:
    copy = engine.copy("api", KEYS[0], DAY_NS // 2)
    assert copy is not None
    taken = Engine(buckets_max=1_000)
    taken.set_rule("api", eight_logs(), 0)
    for delay_ns in (0, 3_000_000, 1):
        taken.merge(copy, DAY_NS // 2 + delay_ns)
    again = taken.copy("api", KEYS[0], DAY_NS // 2 + 3_000_000)
    assert again == copy
