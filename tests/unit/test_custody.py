"""Custody: which buckets may be decided although others may know more of them, and what the rest wait for."""

from limiter_node.core.custody import FORGOTTEN_PER_TICK, Custody
from limiter_node.core.forward import Forward, one_way
from limiter_node.core.model import Check, Member
from limiter_node.core.ring import Ring

RING_NAMES = ("ab", "abc", "abcd", "ac")
RINGS = {
    names: Ring(number, {name: Member(name, f"{name}:8082") for name in names})
    for number, names in enumerate(RING_NAMES, start=1)
}


def bucket(**owners: str) -> tuple[str, str]:
    """A bucket that belongs to these nodes in the rings of these members."""
    keys = (f"k{number}" for number in range(10_000))
    return "api", next(k for k in keys if all(RINGS[names].owner(k) == owner for names, owner in owners.items()))


def replicated(**replicas: str) -> tuple[str, str]:
    """A bucket whose copies these nodes hold in the rings of these members."""
    keys = (f"k{number}" for number in range(10_000))
    return "api", next(k for k in keys if all(RINGS[names].replica(k) == name for names, name in replicas.items()))


def whole(names: str = "abc") -> Custody:
    """Custody of a, which has all that belongs to it in the ring of these members."""
    custody = Custody("a")
    custody.begin(RINGS[names], set(names) - {"a"}, missed=True)
    for name in set(names) - {"a"}:
        custody.release(name)
    return custody


def forward(bucket: tuple[str, str], deadline_ns: int = 100, *, asks_help: bool = False) -> Forward:
    one = one_way(Check(*bucket), deadline_ns)
    one.asks_help = asks_help
    return one


def pulled(custody: Custody, bucket: tuple[str, str], *names: str) -> list[Forward]:
    """The checks that go on once these nodes have said what they know of a bucket."""
    custody.park(bucket, forward(bucket))
    for name in names:
        custody.on_pulled(name, bucket)
    return custody.take_ready(as_replica_only=False)


MINE = bucket(abc="a", abcd="a", ac="a")
NEW = bucket(abc="b", ac="a")
BACK = bucket(abc="a", abcd="d", ac="a")


# What is sure.


def test_a_node_that_missed_nothing_is_sure_of_everything() -> None:
    custody = whole()
    assert custody.is_sure(MINE)
    assert custody.is_sure(replicated(abc="a"), as_replica=True)


def test_a_node_that_was_never_in_a_ring_before_is_sure_of_nothing() -> None:
    custody = Custody("a")
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    assert not custody.is_sure(MINE)
    custody.release("b")
    assert not custody.is_sure(MINE)
    custody.release("c")
    assert custody.is_sure(MINE)


def test_a_node_alone_has_nobody_to_wait_for() -> None:
    custody = Custody("a")
    custody.begin(Ring(1, {"a": Member("a", "a:8082")}), set(), missed=True)
    assert custody.is_sure(MINE)


def test_after_a_change_of_the_ring_only_what_was_this_nodes_before_is_sure() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    assert custody.is_sure(MINE)
    assert not custody.is_sure(NEW)
    custody.release("b")
    custody.release("c")
    assert custody.is_sure(NEW)


def test_what_was_anothers_in_between_is_not_sure() -> None:
    custody = whole()
    custody.begin(RINGS["abcd"], {"b", "c", "d"}, missed=False)
    custody.begin(RINGS["abc"], {"b", "c", "d"}, missed=False)
    assert custody.is_sure(MINE)
    assert not custody.is_sure(BACK)


def test_a_node_that_had_lost_its_right_is_sure_of_nothing_it_had() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    assert not custody.is_sure(MINE)


def test_a_replica_is_sure_of_what_it_has_held_in_every_ring() -> None:
    custody = whole()
    held = replicated(abc="a", ab="a")
    new = next(("api", f"k{number}") for number in range(10_000) if "a" not in RINGS["abc"].holders(f"k{number}"))
    custody.begin(RINGS["ab"], {"b", "c"}, missed=False)
    assert custody.is_sure(held, as_replica=True)
    assert not custody.is_sure(held)
    assert not custody.is_sure(new, as_replica=True)


def test_a_bucket_is_sure_once_every_node_that_has_not_told_all_has_said_what_it_knows_of_it() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    check = forward(NEW)
    assert custody.park(NEW, check) == {"b", "c"}
    custody.on_pulled("b", NEW)
    assert custody.take_ready(as_replica_only=False) == []
    custody.on_pulled("c", NEW)
    assert custody.take_ready(as_replica_only=False) == [check]
    assert custody.is_sure(NEW)
    assert custody.pulled == 1


def test_who_has_told_all_is_not_asked() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    custody.release("b")
    assert custody.park(NEW, forward(NEW)) == {"c"}


def test_a_bucket_that_was_pulled_is_sure_until_it_is_anothers_for_a_while() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    pulled(custody, NEW, "b", "c")
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    assert custody.is_sure(NEW)
    custody.begin(RINGS["abc"], {"b", "c"}, missed=False)
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    assert not custody.is_sure(NEW)


def test_what_was_pulled_before_the_right_was_lost_is_not_sure_after() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    pulled(custody, NEW, "b", "c")
    custody.begin(RINGS["ac"], {"b", "c"}, missed=True)
    assert not custody.is_sure(NEW)
    pulled(custody, NEW, "b", "c")
    assert custody.is_sure(NEW)


def test_every_occasion_has_an_epoch_of_its_own() -> None:
    custody = whole()
    epochs = [custody.epoch]
    for missed in (False, True, False):
        custody.begin(RINGS["abc"], {"b", "c"}, missed=missed)
        epochs.append(custody.epoch)
    assert epochs == [epochs[0] + number for number in range(4)]


# What waits.


def test_checks_of_a_bucket_go_on_in_the_order_in_which_they_came_and_are_asked_for_once() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    checks = [forward(NEW) for _ in range(3)]
    assert [custody.park(NEW, check) for check in checks] == [{"b", "c"}, set(), set()]
    for name in "bc":
        custody.on_pulled(name, NEW)
    assert custody.take_ready(as_replica_only=False) == checks
    assert custody.take_ready(as_replica_only=False) == []
    assert custody.pulled == 1


def test_one_bucket_does_not_wait_for_another() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    first, second = forward(MINE), forward(BACK)
    custody.park(MINE, first)
    custody.park(BACK, second)
    for name in "bc":
        custody.on_pulled(name, BACK)
        custody.on_pulled(name, ("api", "never parked"))
    assert custody.take_ready(as_replica_only=False) == [second]
    assert list(custody.parked) == [MINE]


def test_who_tells_all_need_not_be_heard_of_single_buckets_any_more() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    check = forward(MINE)
    custody.park(MINE, check)
    custody.on_pulled("b", MINE)
    custody.release("c")
    assert custody.pending == {"b"}
    assert custody.take_ready(as_replica_only=False) == [check]
    assert custody.is_sure(MINE)
    assert not custody.is_sure(BACK)


def test_what_a_node_said_before_something_else_was_missed_counts_no_more() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    check = forward(MINE)
    custody.park(MINE, check)
    custody.on_pulled("b", MINE)
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    custody.on_pulled("c", MINE)
    assert custody.take_ready(as_replica_only=False) == []
    custody.on_pulled("b", MINE)
    assert custody.take_ready(as_replica_only=False) == [check]


def test_a_parked_check_of_a_bucket_that_is_anothers_now_asks_nobody_more() -> None:
    custody = whole()
    custody.begin(RINGS["ac"], {"b", "c"}, missed=False)
    custody.park(NEW, forward(NEW))
    custody.on_pulled("b", NEW)
    custody.begin(RINGS["abc"], {"b", "c"}, missed=False)
    assert custody.parked[NEW].missing == {"c"}


def test_checks_for_a_peers_help_go_on_alone_while_this_node_has_no_right_of_its_own() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b"}, missed=True)
    own, helped = forward(MINE), forward(BACK, asks_help=True)
    custody.park(MINE, own)
    custody.park(BACK, helped)
    custody.release("b")
    assert custody.take_ready(as_replica_only=True) == [helped]
    assert custody.take_ready(as_replica_only=False) == [own]


def test_a_check_does_not_wait_for_the_deadline_of_one_that_came_before() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b"}, missed=True)
    first, second = forward(MINE, 100), forward(MINE, 50)
    custody.park(MINE, first)
    custody.park(MINE, second)
    assert custody.take_late(50) == [second]
    assert custody.take_late(99) == []
    assert custody.take_late(100) == [first]


def test_a_check_whose_deadline_has_passed_waits_no_more_and_the_others_do() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    early, later, last, other = (forward(key, ns) for key, ns in ((MINE, 50), (MINE, 60), (MINE, 70), (BACK, 80)))
    for check in (early, later, last, other):
        custody.park((check.check.rule, check.check.key), check)
    assert custody.take_late(49) == []
    assert custody.take_late(60) == [early, later]
    assert custody.take_late(79) == [last]
    assert custody.take_late(80) == [other]
    assert custody.parked == {}
    # A bucket given up is pulled anew when it is asked for again.
    assert custody.park(MINE, forward(MINE)) == {"b", "c"}


# Who went without telling.


def test_who_is_gone_before_it_has_told_all_is_remembered_until_it_does_or_leaves() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=False)
    custody.release("b", is_gone=True)
    assert (custody.untold, custody.pending) == ({"b"}, {"c"})
    # All others have told: what was b's is known from them, but b is still a member, and may be missed again.
    custody.release("c")
    assert (custody.untold, custody.pending) == ({"b"}, set())
    custody.begin(RINGS["abc"], {"b", "c"}, missed=False)
    custody.release("b")
    assert custody.untold == set()


def test_who_is_gone_is_forgotten_once_a_ring_without_it_is_whole() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=False)
    custody.release("b", is_gone=True)
    custody.begin(RINGS["ac"], {"c"}, missed=False)
    assert custody.untold == {"b"}
    custody.release("c")
    assert custody.untold == set()


def test_what_was_pulled_is_let_go_in_bounded_pieces() -> None:
    custody = whole()
    custody.begin(RINGS["abc"], {"b", "c"}, missed=True)
    custody.release("c")
    count = 2 * FORGOTTEN_PER_TICK + 1
    for number in range(count):
        custody.park(("api", str(number)), forward(("api", str(number))))
        custody.on_pulled("b", ("api", str(number)))
    custody.take_ready(as_replica_only=False)
    custody.release("b")
    for left in (count, count - FORGOTTEN_PER_TICK, 1, 0):
        assert len(custody.remains) == left
        custody.tick()
    assert not custody.remains
