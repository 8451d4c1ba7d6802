"""Who is in the ring: registrations, announced leaves, lapses and their grace."""

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from limiter_node.cluster.membership import (
    FOUNDING_GRACE_NS,
    LAPSE_GRACE_NS,
    WEIGHT_MAX,
    Membership,
    NodeDoc,
    encode_node,
    parse_node,
)
from limiter_node.core.errors import BadRule
from limiter_node.core.model import Member

if TYPE_CHECKING:
    from limiter_node.core.ring import Ring


class Watcher:
    """A membership, and every ring it has published."""

    def __init__(self) -> None:
        self.rings: list[Ring] = []
        self.membership = Membership("me", self.rings.append)
        self.now_ns = 1_000

    def register(self, name: str, revision: int, **fields: Any) -> None:
        doc = encode_node(NodeDoc(peer=f"{name}:8082", **fields))
        self.membership.changed(name, doc, revision, self.now_ns)

    def vanish(self, name: str, revision: int) -> None:
        self.membership.changed(name, None, revision, self.now_ns)

    def settle(self, after_ns: int = 0) -> list[str] | None:
        """The members of the ring that settling publishes, or None."""
        self.now_ns += after_ns
        count = len(self.rings)
        self.membership.settle(self.now_ns)
        assert len(self.rings) <= count + 1
        return list(self.rings[-1].members) if len(self.rings) > count else None


@pytest.fixture
def watcher() -> Watcher:
    watcher = Watcher()
    watcher.register("me", 5)
    watcher.register("other", 6)
    assert watcher.settle() == ["me", "other"]
    return watcher


def test_changes_are_published_together_with_the_latest_revision_and_only_once(watcher: Watcher) -> None:
    assert watcher.rings[-1].revision == 6
    assert watcher.settle() is None
    watcher.register("third", 9, zone="east", weight=3, version="1.2")
    assert watcher.settle() == ["me", "other", "third"]
    assert watcher.rings[-1].members["third"] == Member("third", "third:8082", "east", 3, "1.2")
    assert [ring.revision for ring in watcher.rings] == [6, 9]


def test_a_node_that_starts_alone_waits_for_others_before_it_founds_a_fleet() -> None:
    watcher = Watcher()
    watcher.register("me", 5)
    assert watcher.settle() is None
    assert watcher.settle(FOUNDING_GRACE_NS - 1) is None
    assert watcher.settle(1) == ["me"]


def test_a_node_that_starts_as_the_first_waits_even_if_others_come() -> None:
    watcher = Watcher()
    watcher.register("me", 5)
    assert watcher.settle() is None
    watcher.register("other", 6)
    assert watcher.settle(FOUNDING_GRACE_NS - 1) is None
    assert not watcher.membership.has_ring
    assert watcher.settle(1) == ["me", "other"]
    assert watcher.membership.has_ring


def test_a_node_that_starts_joins_others_at_once() -> None:
    watcher = Watcher()
    watcher.register("other", 6)
    assert watcher.settle() == ["other"]
    watcher.register("me", 7)
    assert watcher.settle() == ["me", "other"]


def test_a_node_that_all_others_have_left_goes_on_alone(watcher: Watcher) -> None:
    watcher.register("other", 7, leaving=True)
    assert watcher.settle() == ["me"]


def test_a_node_that_announces_its_leave_is_out_at_once_and_a_leaver_until_its_key_is_gone(watcher: Watcher) -> None:
    watcher.register("other", 7, leaving=True)
    assert watcher.settle() == ["me"]
    assert list(watcher.rings[-1].leavers) == ["other"]
    watcher.vanish("other", 8)
    assert watcher.settle() == ["me"]
    assert (watcher.rings[-1].revision, watcher.rings[-1].leavers) == (8, {})


def test_a_node_may_come_back_after_its_leave(watcher: Watcher) -> None:
    watcher.register("other", 7, leaving=True)
    watcher.register("other", 8)
    assert watcher.settle() == ["me", "other"]


def test_a_lapse_takes_effect_after_its_grace_and_not_a_nanosecond_before(watcher: Watcher) -> None:
    watcher.vanish("other", 7)
    assert watcher.settle(LAPSE_GRACE_NS - 1) is None
    assert watcher.settle(1) == ["me"]
    assert watcher.rings[-1].revision == 7


def test_a_lapse_told_twice_counts_from_the_first(watcher: Watcher) -> None:
    watcher.vanish("other", 7)
    watcher.now_ns += LAPSE_GRACE_NS - 1
    watcher.vanish("other", 8)
    assert watcher.settle(1) == ["me"]


def test_a_node_that_registers_again_within_the_grace_never_leaves_the_ring(watcher: Watcher) -> None:
    watcher.vanish("other", 7)
    watcher.now_ns += LAPSE_GRACE_NS - 1
    watcher.register("other", 8)
    assert watcher.settle() == ["me", "other"]
    assert watcher.settle(10 * LAPSE_GRACE_NS) is None


def test_all_nodes_that_lapse_and_are_back_in_time_leave_the_ring_as_it_was(watcher: Watcher) -> None:
    # An etcd that was frozen longer than the lease drops every lease when it wakes.
    for revision, name in enumerate(("me", "other"), 7):
        watcher.vanish(name, revision)
    assert watcher.settle(LAPSE_GRACE_NS // 2) is None
    for revision, name in enumerate(("me", "other"), 9):
        watcher.register(name, revision)
    assert watcher.settle(LAPSE_GRACE_NS) == ["me", "other"]
    assert watcher.rings[-1].members == watcher.rings[0].members


def test_a_node_that_lapses_itself_is_out_like_any_other(watcher: Watcher) -> None:
    watcher.vanish("me", 7)
    assert watcher.settle(LAPSE_GRACE_NS) == ["other"]
    watcher.register("me", 8)
    assert watcher.settle() == ["me", "other"]


def test_while_a_lapse_is_in_its_grace_the_ring_stays_as_it_is(watcher: Watcher) -> None:
    # Or else two nodes could have different rings of one revision: with the lapsed member, and without.
    watcher.vanish("other", 7)
    watcher.register("third", 8)
    assert watcher.settle(LAPSE_GRACE_NS - 1) is None
    assert watcher.settle(1) == ["me", "third"]
    assert watcher.rings[-1].revision == 8


def test_a_node_that_leaves_is_out_of_its_own_ring(watcher: Watcher) -> None:
    watcher.register("me", 7, leaving=True)
    assert watcher.settle() == ["other"]


def test_an_empty_ring_is_never_published(watcher: Watcher) -> None:
    # The last to leave still knows where its keys were; nobody is left to be told of an empty ring.
    watcher.register("other", 7, leaving=True)
    watcher.register("me", 8, leaving=True)
    assert watcher.settle(10 * LAPSE_GRACE_NS) is None
    watcher.register("third", 9)
    assert watcher.settle() == ["third"]


def test_nothing_is_published_before_there_is_a_member() -> None:
    watcher = Watcher()
    assert watcher.settle() is None
    watcher.vanish("unknown", 3)
    assert watcher.settle(10 * LAPSE_GRACE_NS) is None


def test_the_revision_of_the_ring_never_goes_back(watcher: Watcher) -> None:
    watcher.register("third", 12)
    assert watcher.settle() == ["me", "other", "third"]
    watcher.vanish("other", 7)
    assert watcher.settle(LAPSE_GRACE_NS) == ["me", "third"]
    watcher.register("fourth", 4)
    watcher.settle()
    assert [ring.revision for ring in watcher.rings] == [6, 12, 12, 12]


def test_a_bad_document_changes_nothing(watcher: Watcher) -> None:
    with pytest.raises(BadRule):
        watcher.membership.changed("other", b"{}", 7, watcher.now_ns)
    with pytest.raises(BadRule):
        watcher.membership.changed("bad name", encode_node(NodeDoc(peer="a:1")), 7, watcher.now_ns)
    assert watcher.settle(10 * LAPSE_GRACE_NS) is None
    # Nor does it mend a lapse.
    watcher.vanish("other", 8)
    with pytest.raises(BadRule):
        watcher.membership.changed("other", b"", 9, watcher.now_ns)
    assert watcher.settle(LAPSE_GRACE_NS) == ["me"]


# The documents of nodes.


@pytest.mark.parametrize(
    "doc",
    [
        NodeDoc(peer="10.0.0.1:8082"),
        NodeDoc(peer="[::1]:1", zone="east", version="0.1", weight=WEIGHT_MAX, leaving=True, boot=7),
        NodeDoc(peer="host.example:65535"),
    ],
)
def test_what_a_node_registers_is_read_as_it_was_written(doc: NodeDoc) -> None:
    assert parse_node("a", encode_node(doc)) == doc


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert parse_node("a", b'{"peer": "a:1", "shoe size": [43]}') == NodeDoc(peer="a:1")


@pytest.mark.parametrize(
    "peer",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:0",
        "a:-1",
        "a:65536",
        "a:1.0",
        "a: 1",
        "a:\u0661",
        "a:\u00b2",
        pytest.param("a:" + "9" * 5_000, id="5,000 digits"),
    ],
)
def test_a_peer_address_is_host_and_port(peer: str) -> None:
    with pytest.raises(BadRule) as caught:
        parse_node("a", encode_node(NodeDoc(peer=peer)))
    assert caught.value.problems == (f"peer: {peer!r} is not HOST:PORT",)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"zone": "east"}',
        b'{"peer": 5}',
        b'{"peer": "a:1", "weight": "1"}',
        b'{"peer": "a:1", "weight": 1.5}',
        b'{"peer": "a:1", "zone": 5}',
        b'{"peer": "\xff:1"}',
        pytest.param(b'{"peer": "a:1", "later": ' + b"[" * 100_000, id="nested 100,000 deep"),
    ],
)
def test_what_is_no_document_of_a_node_is_a_bad_rule_and_nothing_else(value: bytes) -> None:
    with pytest.raises(BadRule):
        parse_node("a", value)


def test_every_problem_of_a_node_is_told_at_once() -> None:
    with pytest.raises(BadRule) as caught:
        parse_node("a", b'{"weight": "1", "zone": 5}')
    assert caught.value.problems == (
        "weight: Expected int, got str; allowed: an integer",
        "zone: Expected str | null, got int; allowed: text",
        "peer: is required",
    )
    with pytest.raises(BadRule) as caught:
        parse_node("a b", msgspec.json.encode({"peer": "a", "weight": 0}))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["node id", "peer", "weight"]


@pytest.mark.parametrize("weight", [-1, 0, WEIGHT_MAX + 1])
def test_a_weight_is_between_1_and_100(weight: int) -> None:
    with pytest.raises(BadRule, match=f"weight: {weight} is out of range; allowed: 1 to {WEIGHT_MAX}"):
        parse_node("a", encode_node(NodeDoc(peer="a:1", weight=weight)))
