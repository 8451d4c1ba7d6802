"""The ring: the same owner on every node, no key moved without need, fair shares, copies kept apart."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiter_node.core.model import Member
from limiter_node.core.ring import Ring

KEYS = [f"user:{number}" for number in range(300)]

names = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", min_size=1, max_size=64)
members = st.builds(
    lambda name, host, port, zone, weight: Member(name, f"10.0.0.{host}:{port}", zone, weight),
    names,
    st.integers(1, 4),
    st.integers(8082, 8084),
    st.sampled_from([None, "east", "west", "north"]),
    st.sampled_from([1, 1, 1, 2, 3]),
)
fleets = st.lists(members, min_size=1, max_size=8, unique_by=lambda member: member.id)
# A ring of a few members takes some milliseconds to make, and hashes scatter whatever the names are.
few_examples = settings(max_examples=max(25, settings.default.max_examples // 4))  # type: ignore[union-attr]


def ring_of(fleet: list[Member], revision: int = 1) -> Ring:
    return Ring(revision, {member.id: member for member in fleet})


def named(*ids: str) -> Ring:
    return ring_of([Member(name, f"{name}:8082") for name in ids])


@few_examples
@given(fleets, st.randoms(use_true_random=False))
def test_the_same_members_in_any_order_give_every_key_the_same_owner_and_replica(
    fleet: list[Member], shuffler: random.Random
) -> None:
    shuffled = fleet[:]
    shuffler.shuffle(shuffled)
    one, other = ring_of(fleet), ring_of(shuffled, revision=2)
    # Listed in one order too: where two points collide the later member keeps the point.
    assert list(one.members) == list(other.members)
    assert [one.owner(key) for key in KEYS] == [other.owner(key) for key in KEYS]
    assert [one.replica(key) for key in KEYS] == [other.replica(key) for key in KEYS]
    assert {one.owner(key) for key in KEYS} <= {member.id for member in fleet}


@few_examples
@given(fleets, st.data())
def test_a_node_that_leaves_moves_only_its_own_keys_and_one_that_joins_takes_keys_only_for_itself(
    fleet: list[Member], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(fleet))
    with_it, without_it = ring_of(fleet), ring_of([member for member in fleet if member != gone])
    for key in KEYS:
        owner = with_it.owner(key)
        if owner != gone.id:
            assert without_it.owner(key) == owner
        else:
            assert without_it.owner(key) != gone.id


@few_examples
@given(fleets)
def test_the_replica_is_another_node_as_far_from_the_owner_as_there_is_one(fleet: list[Member]) -> None:
    def host(member: Member) -> str:
        return member.peer.rpartition(":")[0]

    ring = ring_of(fleet)
    for key in KEYS[:60]:
        owner_id, replica_id = ring.owner(key), ring.replica(key)
        assert owner_id is not None
        if len(fleet) == 1:
            assert replica_id is None
            continue
        assert replica_id is not None
        owner, replica = ring.members[owner_id], ring.members[replica_id]
        assert replica.id != owner.id
        if any(member.zone != owner.zone for member in fleet):
            assert replica.zone != owner.zone
        elif any(host(member) != host(owner) for member in fleet):
            assert host(replica) != host(owner)


@few_examples
@given(fleets)
def test_shares_add_up_to_everything(fleet: list[Member]) -> None:
    ring = ring_of(fleet)
    assert sum(ring.share(member.id) for member in fleet) == pytest.approx(1)


def _random_hex(number: int) -> str:
    return random.Random(number).randbytes(8).hex()


NAMINGS: dict[str, Callable[[int], str]] = {
    "node-0": "node-{}".format,
    "hostname": "limiter-{:02}.eu-west.example.com".format,
    "pod": lambda number: f"limiter-7d9f8b6c5d-{random.Random(number).randbytes(3).hex()[:5]}",
    "random hex": _random_hex,
    "address": lambda number: f"10.0.{number // 10}.{number % 10 + 1}-8082",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_share_is_within_a_quarter_of_fair_for_3_to_30_nodes(naming: str) -> None:
    for size in range(3, 31):
        ring = named(*(NAMINGS[naming](number) for number in range(size)))
        shares = [ring.share(name) * size for name in ring.members]
        assert min(shares) > 0.75, f"{size} nodes"
        assert max(shares) < 1.25, f"{size} nodes"


def test_shares_are_what_keys_see() -> None:
    ring = named(*(f"node-{number}" for number in range(10)))
    owned = Counter(ring.owner(f"key-{number}") for number in range(50_000))
    for name in ring.members:
        assert owned[name] / 50_000 == pytest.approx(ring.share(name), abs=0.006)


def test_a_node_of_twice_the_weight_owns_twice_as_much() -> None:
    ring = ring_of([Member("a", "a:1"), Member("b", "b:1"), Member("c", "c:1", weight=2), Member("d", "d:1", weight=4)])
    for member in ring.members.values():
        assert ring.share(member.id) == pytest.approx(member.weight / 8, rel=0.2)


def test_a_change_of_weight_moves_keys_only_to_or_from_that_node() -> None:
    light, heavy = (ring_of([Member("a", "a:1"), Member("b", "b:1"), Member("c", "c:1", weight=w)]) for w in (1, 3))
    for key in KEYS:
        assert heavy.owner(key) in {light.owner(key), "c"}


PINNED = {
    "user:42": "node-2",
    "10.0.0.1": "node-1",
    "a": "node-3",
    "tenant/7/orders": "node-1",
    "ключ": "node-2",
    "x" * 512: "node-4",
}


def test_owners_are_the_same_in_every_version_of_this_program_and_of_its_libraries() -> None:
    # A fleet is rolled node by node: if a release of uhashring or xxhash placed keys otherwise, nodes old and new
    # would each send the other's keys away. Change these literals only together with the wire protocol.
    ring = named(*(f"node-{number}" for number in range(5)))
    assert {key: ring.owner(key) for key in PINNED} == PINNED
    assert ring.share("node-0") == pytest.approx(0.21690413958977947, abs=1e-12)


def test_an_empty_ring_owns_nothing() -> None:
    ring = Ring(7, {})
    assert (ring.revision, ring.members, ring.owner("k"), ring.replica("k"), ring.share("a")) == (
        7,
        {},
        None,
        None,
        0,
    )


def test_a_node_alone_owns_everything_and_has_no_replica() -> None:
    ring = named("alone")
    assert {ring.owner(key) for key in KEYS} == {"alone"}
    assert ring.replica("k") is None
    assert ring.share("alone") == 1
    assert ring.share("nobody") == 0


def test_a_node_without_weight_owns_nothing_and_copies_nothing() -> None:
    ring = ring_of([Member("a", "a:1"), Member("b", "b:1", weight=0)])
    assert {ring.owner(key) for key in KEYS} == {"a"}
    assert {ring.replica(key) for key in KEYS} == {None}
