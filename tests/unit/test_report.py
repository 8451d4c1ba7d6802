"""What a node tells of itself: its longest stall, the state of its links."""

import pytest

from limiter_node import clock
from limiter_node.core.links import Link, LinkState
from limiter_node.core.model import Member
from limiter_node.report import STALLS_KEPT_NS, Stalls, circuit


def test_without_a_stall_the_longest_is_none() -> None:
    assert Stalls().longest_ns == 0


def test_the_longest_stall_is_told_for_30_to_60_seconds() -> None:
    stalls = Stalls()
    for late_ns, after_ns, longest_ns in (
        (5, 0, 5),
        (90, 1, 90),
        (7, STALLS_KEPT_NS, 90),
        # A stretch has ended: the longest of it is still told for another.
        (3, STALLS_KEPT_NS + 1, 90),
        (20, 2 * STALLS_KEPT_NS + 1, 90),
        (1, 2 * STALLS_KEPT_NS + 2, 20),
        (1, 3 * STALLS_KEPT_NS + 3, 1),
    ):
        stalls.note(late_ns, after_ns)
        assert stalls.longest_ns == longest_ns


@pytest.mark.parametrize(
    ("state", "is_heard", "told"),
    [
        (LinkState.CONNECTING, False, "connecting"),
        (LinkState.UP, True, "up"),
        (LinkState.UP, False, "silent"),
        (LinkState.DOWN, False, "down"),
    ],
)
def test_a_circuit_is_up_while_its_peer_answers(
    monkeypatch: pytest.MonkeyPatch, state: LinkState, is_heard: bool, told: str
) -> None:
    monkeypatch.setattr(clock, "now_ns", lambda: 100)
    link = Link(Member("b", "b:8082"))
    link.state = state
    link.usable_until_ns = 101 if is_heard else 100
    assert circuit(link) == told
