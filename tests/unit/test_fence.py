"""The fence: how many must back a node, how long that counts, and who may be held for gone."""

import pytest

from limiter_node.core.fence import ALWAYS_NS, PINGS_PER_TIMEOUT, RIGHT_SHARE, SILENT_SHARE, Fence
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring

TIMEOUT_NS = 100_000_000
RIGHT_NS = round(TIMEOUT_NS * RIGHT_SHARE)
SILENT_NS = round(TIMEOUT_NS * SILENT_SHARE)
NOW_NS = 5_000_000_000
NAMES = "abcde"


def ring_of(names: str, leavers: str = "", boot: int = 0) -> Ring:
    """Of these nodes; `boot` is of the last member."""
    members, gone = (
        {name: Member(name, f"{name}:8082", boot=boot * (name == names[-1])) for name in who}
        for who in (names, leavers)
    )
    return Ring(7, members, gone)


def fence_of(names: str, name: str = "a") -> Fence:
    fence = Fence(name, TIMEOUT_NS)
    fence.set_ring(ring_of(names), NOW_NS)
    return fence


def back(fence: Fence, names: str, asked_ns: int, *, backs: bool = True, silent: str = "") -> None:
    """Have peers answer, at once, what they were asked then."""
    for name in names:
        fence.on_pong(name, asked_ns, asked_ns, backs=backs, silent=list(silent))


def may_decide(fence: Fence, now_ns: int) -> bool:
    return now_ns < fence.right_until_ns


# The right to decide.


@pytest.mark.parametrize(("members", "enough"), [(2, 1), (3, 1), (4, 2), (5, 2)])
def test_half_of_the_others_rounded_up_must_back_a_node(members: int, enough: int) -> None:
    fence = fence_of(NAMES[:members])
    back(fence, NAMES[1:enough], NOW_NS)
    assert not may_decide(fence, NOW_NS)
    back(fence, NAMES[enough], NOW_NS)
    assert may_decide(fence, NOW_NS)


@pytest.mark.parametrize(("members", "enough"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_peer_is_gone_when_most_of_the_others_hear_nothing_of_it(members: int, enough: int) -> None:
    peer, others = NAMES[members - 1], NAMES[1 : members - 1]
    now_ns = NOW_NS + SILENT_NS
    fence = fence_of(NAMES[:members])
    # This node is one of the others.
    back(fence, others, now_ns)
    back(fence, others[: enough - 2] if enough > 1 else "", now_ns, silent=peer)
    assert fence.is_gone(peer, now_ns) is (enough == 1)
    back(fence, others[: enough - 1], now_ns, silent=peer)
    assert fence.is_gone(peer, now_ns)


def test_a_node_that_is_alone_in_its_ring_may_always_decide() -> None:
    assert fence_of("a").right_until_ns == ALWAYS_NS


def test_a_node_that_is_not_in_the_ring_may_not_decide_whoever_backs_it() -> None:
    fence = fence_of("bcd")
    back(fence, "bcd", NOW_NS)
    assert not may_decide(fence, NOW_NS)


def test_a_new_ring_takes_the_right_away_when_it_wants_more_backing() -> None:
    fence = fence_of("abc")
    back(fence, "b", NOW_NS)
    fence.set_ring(ring_of("abcde"), NOW_NS)
    assert not may_decide(fence, NOW_NS)
    back(fence, "d", NOW_NS)
    assert may_decide(fence, NOW_NS)
    fence.set_ring(ring_of("bcde"), NOW_NS)
    assert not may_decide(fence, NOW_NS)


def test_the_right_lapses_so_long_after_the_question_and_not_after_the_answer() -> None:
    fence = fence_of("ab")
    answered_ns = NOW_NS + RIGHT_NS - 5
    fence.on_pong("b", NOW_NS, answered_ns, backs=True, silent=[])
    assert fence.right_until_ns == NOW_NS + RIGHT_NS
    assert may_decide(fence, NOW_NS + RIGHT_NS - 1)
    assert not may_decide(fence, NOW_NS + RIGHT_NS)


def test_a_node_that_backs_another_keeps_its_promise_for_longer_than_that_counts() -> None:
    asker, backer = fence_of("ab"), fence_of("ab", "b")
    backs, silent = backer.on_ping("a", NOW_NS)
    asker.on_pong("b", NOW_NS, NOW_NS, backs=backs, silent=silent)
    assert (backs, silent) == (True, [])
    assert not backer.is_gone("a", asker.right_until_ns)
    assert not backer.is_gone("a", NOW_NS + SILENT_NS - 1)
    assert backer.is_gone("a", NOW_NS + SILENT_NS)


def test_answers_out_of_order_do_not_shorten_the_right() -> None:
    fence = fence_of("ab")
    back(fence, "b", NOW_NS + 10)
    back(fence, "b", NOW_NS)
    assert fence.right_until_ns == NOW_NS + 10 + RIGHT_NS


def test_an_answer_without_backing_gives_no_right_and_takes_none() -> None:
    fence = fence_of("ab")
    back(fence, "b", NOW_NS, backs=False)
    assert not may_decide(fence, NOW_NS)
    back(fence, "b", NOW_NS)
    back(fence, "b", NOW_NS + 10, backs=False)
    assert fence.right_until_ns == NOW_NS + RIGHT_NS


def test_the_right_lasts_as_long_as_the_least_of_those_that_are_needed() -> None:
    fence = fence_of("abcd")
    for name, asked_ns in (("b", NOW_NS + 30), ("c", NOW_NS + 10), ("d", NOW_NS + 20)):
        back(fence, name, asked_ns)
    assert fence.right_until_ns == NOW_NS + 20 + RIGHT_NS


def test_three_pings_fit_into_the_time_after_which_a_peer_is_silent() -> None:
    fence = fence_of("ab")
    assert fence.ping_every_ns == TIMEOUT_NS // PINGS_PER_TIMEOUT
    assert 3 * fence.ping_every_ns < fence.silent_after_ns == SILENT_NS
    assert RIGHT_NS < SILENT_NS


# What peers tell of each other.


def test_nobody_backs_a_peer_that_it_has_told_to_be_silent_until_that_has_run_out() -> None:
    fence = fence_of("abc")
    told_ns = NOW_NS + SILENT_NS
    assert fence.on_ping("b", told_ns) == (True, ["c"])
    # c is heard of again at once, yet b may hold it for gone for a while.
    assert fence.on_ping("c", told_ns) == (False, [])
    assert fence.on_ping("c", told_ns + SILENT_NS - 1) == (False, [])
    assert fence.on_ping("c", told_ns + SILENT_NS) == (True, ["b"])


def test_every_telling_counts_anew() -> None:
    fence = fence_of("abc")
    told_ns = NOW_NS + SILENT_NS
    fence.on_ping("b", told_ns)
    fence.on_ping("b", told_ns + 50)
    assert fence.on_ping("c", told_ns + SILENT_NS + 49)[0] is False
    assert fence.on_ping("c", told_ns + SILENT_NS + 50)[0] is True


def test_what_a_peer_told_counts_for_as_long_as_backing_does_from_the_question_on() -> None:
    fence = fence_of("abc")
    asked_ns = NOW_NS + SILENT_NS
    fence.on_pong("b", asked_ns, asked_ns + 20, backs=True, silent=["c"])
    assert fence.is_gone("c", asked_ns + RIGHT_NS - 1)
    assert not fence.is_gone("c", asked_ns + RIGHT_NS)


def test_a_peer_that_hears_of_another_again_takes_back_what_it_told() -> None:
    fence = fence_of("abc")
    now_ns = NOW_NS + SILENT_NS
    back(fence, "b", now_ns, silent="c")
    assert fence.is_gone("c", now_ns)
    back(fence, "b", now_ns + 1)
    assert not fence.is_gone("c", now_ns + 1)


def test_nobody_is_gone_of_whom_this_node_hears_whatever_others_tell() -> None:
    fence = fence_of("abcde")
    back(fence, "bcd", NOW_NS, silent="e")
    assert not fence.is_gone("e", NOW_NS + SILENT_NS - 1)


@pytest.mark.parametrize("what", ["anything", "a ping", "an answer"])
def test_whatever_comes_from_a_peer_shows_that_it_is_there(what: str) -> None:
    fence, now_ns = fence_of("ab"), NOW_NS + SILENT_NS
    assert fence.is_silent("b", now_ns)
    match what:
        case "anything":
            fence.heard("b", now_ns)
        case "a ping":
            fence.on_ping("b", now_ns)
        case _:
            fence.on_pong("b", NOW_NS, now_ns, backs=False, silent=[])
    assert not fence.is_silent("b", now_ns + SILENT_NS - 1)
    assert fence.is_silent("b", now_ns + SILENT_NS)


def test_a_peer_that_left_the_ring_is_gone_once_it_is_silent_whatever_others_hear() -> None:
    fence = Fence("a", TIMEOUT_NS)
    fence.set_ring(ring_of("abc", leavers="d"), NOW_NS)
    back(fence, "bc", NOW_NS + SILENT_NS)
    assert not fence.is_gone("d", NOW_NS + SILENT_NS - 1)
    assert fence.is_gone("d", NOW_NS + SILENT_NS)


def test_a_stranger_is_gone_backed_by_nobody_and_counts_for_nothing() -> None:
    fence = fence_of("abc")
    assert fence.on_ping("x", NOW_NS) == (False, [])
    fence.on_pong("x", NOW_NS, NOW_NS, backs=True, silent=["b"])
    fence.refused("x", NOW_NS, NOW_NS)
    assert fence.is_gone("x", NOW_NS)
    assert "x" not in fence.peers
    assert not may_decide(fence, NOW_NS)


def test_a_peer_that_has_left_for_good_is_forgotten() -> None:
    fence = fence_of("abc")
    fence.set_ring(ring_of("ab"), NOW_NS)
    assert not fence.is_gone("c", NOW_NS)
    fence.forget("c")
    fence.forget("c")
    assert fence.is_gone("c", NOW_NS)


# Dead peers: their machine refuses connections.


def test_a_refusal_makes_a_peer_silent_at_once_and_for_as_long_as_backing_counts() -> None:
    fence = fence_of("ab")
    fence.refused("b", NOW_NS, NOW_NS + 10)
    assert fence.is_silent("b", NOW_NS + RIGHT_NS - 1)
    # By then it may have been started again; whether it has, the next dial tells.
    assert not fence.is_silent("b", NOW_NS + RIGHT_NS)
    fence.refused("b", NOW_NS + RIGHT_NS, NOW_NS + RIGHT_NS)
    assert fence.is_silent("b", NOW_NS + RIGHT_NS)


def test_a_peer_that_is_heard_of_is_not_dead() -> None:
    fence = fence_of("ab")
    back(fence, "b", NOW_NS - RIGHT_NS)
    fence.refused("b", NOW_NS, NOW_NS)
    assert may_decide(fence, NOW_NS)
    fence.heard("b", NOW_NS + 1)
    fence.reckon(NOW_NS + 1)
    assert not fence.is_silent("b", NOW_NS + 1)
    assert not may_decide(fence, NOW_NS + 1)


def test_the_last_node_alive_may_decide_while_the_refusals_of_all_others_are_fresh() -> None:
    fence = fence_of("abcd")
    back(fence, "bcd", NOW_NS - RIGHT_NS)
    for name, dialled_ns in (("b", NOW_NS + 2), ("c", NOW_NS), ("d", NOW_NS + 1)):
        assert not may_decide(fence, NOW_NS)
        fence.refused(name, dialled_ns, NOW_NS + 5)
    # From when the oldest dial began.
    assert fence.right_until_ns == NOW_NS + RIGHT_NS
    fence.refused("c", NOW_NS + 30, NOW_NS + 40)
    assert fence.right_until_ns == NOW_NS + 1 + RIGHT_NS
    # A refusal that comes late does not bring the others back to life.
    fence.refused("c", NOW_NS + 3, NOW_NS + 50)
    assert fence.right_until_ns == NOW_NS + 1 + RIGHT_NS
    late_ns = NOW_NS + 1 + RIGHT_NS
    fence.reckon(late_ns)
    assert not may_decide(fence, late_ns)


def test_the_dead_are_no_longer_among_the_others_whose_backing_is_needed() -> None:
    fence = fence_of("abcde")
    back(fence, "cd", NOW_NS - RIGHT_NS)
    back(fence, "b", NOW_NS)
    assert not may_decide(fence, NOW_NS)
    for name in "cd":
        fence.refused(name, NOW_NS, NOW_NS)
    fence.reckon(NOW_NS + RIGHT_NS - 1)
    assert may_decide(fence, NOW_NS + RIGHT_NS - 1)


def test_what_a_dead_peer_may_have_said_of_this_node_must_run_out_before_it_is_left_out_of_the_others() -> None:
    # b has not backed this node for so long that it may have told others that it is silent.
    fence = fence_of("ab")
    back(fence, "b", NOW_NS - SILENT_NS)
    fence.refused("b", NOW_NS, NOW_NS)
    assert not may_decide(fence, NOW_NS)
    fence.refused("b", NOW_NS + RIGHT_NS - 1, NOW_NS + RIGHT_NS - 1)
    assert not may_decide(fence, NOW_NS + RIGHT_NS - 1)
    fence.reckon(NOW_NS + RIGHT_NS)
    assert may_decide(fence, NOW_NS + RIGHT_NS)


def test_what_a_dead_peer_has_backed_must_run_out_before_it_is_left_out_of_the_others() -> None:
    # d may be backed by c still, although c is dead: b tells nothing, so this node has no majority.
    fence = fence_of("acd")
    now_ns = NOW_NS + SILENT_NS
    fence.refused("c", now_ns, now_ns)
    assert fence.is_silent("d", now_ns)
    assert not fence.is_gone("d", now_ns)
    # c is dialled all the time, and goes on to be dead.
    fence.refused("c", now_ns + RIGHT_NS - 10, now_ns + RIGHT_NS - 10)
    assert not fence.is_gone("d", now_ns + RIGHT_NS - 1)
    assert fence.is_gone("d", now_ns + RIGHT_NS)


def test_a_peer_heard_of_between_two_deaths_is_dead_since_the_second() -> None:
    fence = fence_of("acd")
    fence.refused("c", NOW_NS, NOW_NS)
    fence.heard("c", NOW_NS + SILENT_NS)
    died_ns = NOW_NS + SILENT_NS + 1
    fence.refused("c", died_ns, died_ns)
    assert not fence.is_gone("d", died_ns + RIGHT_NS - 1)
    fence.refused("c", died_ns + 1, died_ns + 1)
    assert fence.is_gone("d", died_ns + RIGHT_NS)


def test_what_a_dead_peer_told_before_still_counts_and_so_does_that_peer() -> None:
    fence = fence_of("abcd")
    now_ns = NOW_NS + SILENT_NS
    back(fence, "c", now_ns)
    back(fence, "b", now_ns, silent="d")
    fence.refused("b", now_ns, now_ns)
    assert fence.is_gone("d", now_ns + RIGHT_NS - 1)
    # Once that has run out there are two others left, who would have to agree.
    fence.refused("b", now_ns + 10, now_ns + 10)
    assert not fence.is_gone("d", now_ns + RIGHT_NS)


def test_what_was_known_of_an_earlier_life_of_a_peer_counts_no_more() -> None:
    fence = fence_of("abc")
    back(fence, "c", NOW_NS, silent="b")
    fence.refused("c", NOW_NS, NOW_NS)
    now_ns = NOW_NS + RIGHT_NS - 1
    fence.set_ring(ring_of("abc"), now_ns)
    assert may_decide(fence, now_ns)
    fence.set_ring(ring_of("abc", boot=1), now_ns)
    assert not may_decide(fence, now_ns)
    # It is heard of until it has been silent for a while, like any peer that is new.
    assert not fence.is_silent("c", now_ns + SILENT_NS - 1)
    assert not fence.is_gone("b", now_ns + SILENT_NS)
    assert fence.is_silent("c", now_ns + SILENT_NS)


# A node that did not run.


@pytest.mark.parametrize(
    ("span_ns", "silent_at_ns"),
    [(RIGHT_NS - 1, NOW_NS + SILENT_NS + RIGHT_NS - 1), (RIGHT_NS, NOW_NS + 500 + SILENT_NS + RIGHT_NS)],
)
def test_a_node_that_did_not_run_for_long_has_to_hear_anew(span_ns: int, silent_at_ns: int) -> None:
    fence = fence_of("ab")
    # After a short pause the time that it took does not count; after a long one no time does.
    fence.pause(span_ns, NOW_NS + 500 + span_ns)
    assert not fence.is_silent("b", silent_at_ns - 1)
    assert fence.is_silent("b", silent_at_ns)


def test_a_pause_gives_no_right() -> None:
    fence = fence_of("ab")
    back(fence, "b", NOW_NS)
    fence.pause(50 * TIMEOUT_NS, NOW_NS + 50 * TIMEOUT_NS)
    fence.reckon(NOW_NS + 50 * TIMEOUT_NS)
    assert fence.right_until_ns == NOW_NS + RIGHT_NS
