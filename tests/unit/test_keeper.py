"""The keeper: what this node decides, what has to wait for what, and what it tells the keepers of other nodes.

Its peers are played by hand: by default they back it, have told all, and confirm whatever they are sent.
"""

from functools import cache
from typing import Any

import pytest

from limiter_node.core.backends import Backend
from limiter_node.core.engine import Engine
from limiter_node.core.fence import RIGHT_SHARE, SILENT_SHARE
from limiter_node.core.forward import PARKED_SHARE, WAYS_MAX, Forward
from limiter_node.core.keeper import Keeper
from limiter_node.core.links import NEVER_NS, Link, LinkState
from limiter_node.core.model import (
    FORGOTTEN_SPENT,
    MICROS,
    Ack,
    Bucket,
    Check,
    Copies,
    Copy,
    Forgotten,
    Member,
    News,
    Op,
    Outcome,
    Ping,
    Pong,
    Pull,
    Pulled,
    Reply,
    Request,
    Verdict,
)
from limiter_node.core.ring import Ring
from limiter_node.core.rules import parse_rule

TIMEOUT_NS = 100_000_000
RIGHT_NS = round(TIMEOUT_NS * RIGHT_SHARE)
SILENT_NS = round(TIMEOUT_NS * SILENT_SHARE)
PARKED_NS = round(TIMEOUT_NS * PARKED_SHARE)
REPLICATION_NS = 20_000_000
TICK_NS = 10_000_000
NOW_NS = 5_000_000_000


@cache
def ring_of(names: str, revision: int = 7, leavers: str = "") -> Ring:
    members, gone = ({name: Member(name, f"{name}:8082") for name in who} for who in (names, leavers))
    return Ring(revision, members, gone)


def key_of(owner: str, replica: str | None = None, names: str = "abc", **others: str) -> str:
    """A key of these holders; `others`: its owner in the rings of other members."""
    return next(
        key
        for key in (f"k{number}" for number in range(100_000))
        if ring_of(names).owner(key) == owner
        and (replica is None or ring_of(names).replica(key) == replica)
        and all(ring_of(other).owner(key) == name for other, name in others.items())
    )


MINE = key_of("a", "b")
STAND_IN = key_of("b", "a")
"""A key of b's, whose replica this node is."""


class SilentCarrier:
    """Counts how often it was asked to send."""

    def __init__(self) -> None:
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def redial(self) -> None:
        raise AssertionError

    def hasten(self) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


class Node:
    """The keeper of node a."""

    timeout_ns = TIMEOUT_NS

    def __init__(self, name: str = "a", **rule: Any) -> None:
        self.engine = Engine(buckets_max=100_000)
        self.engine.set_rule("api", parse_rule("api", {"rate": "1/d", "burst": 90, **rule}), NOW_NS)
        self.links: dict[str, Link] = {}
        self.carriers: dict[str, SilentCarrier] = {}
        self.told: list[Ring] = []
        self.keeper = Keeper(
            name,
            self.engine,
            self.links,
            peer_timeout_ns=self.timeout_ns,
            replication_ns=REPLICATION_NS,
            set_ring=self.told.append,
        )
        self.name = name
        self.now_ns = NOW_NS
        self.outcomes: list[Outcome] = []
        self.mute: set[str] = set()  # peers that answer nothing
        self.withholds: set[str] = set()  # peers that have not told all yet
        self.silent: dict[str, list[str]] = {}  # whom each peer hears nothing of
        self.sent: dict[str, set[tuple[str, str]]] = {}  # buckets, by who has confirmed them
        self.known: list[Copy] = []  # what all peers know of buckets that are pulled

    def set_ring(self, ring: Ring) -> None:
        for peer in (*ring.members.values(), *ring.leavers.values()):
            if peer.id != self.name and peer.id not in self.links:
                link = self.links[peer.id] = Link(peer)
                link.carrier = self.carriers[peer.id] = SilentCarrier()
                link.state = LinkState.UP
                link.usable_until_ns = 2**62
        self.keeper.set_ring(ring, self.now_ns)

    def join(self, names: str = "abc", revision: int = 7, leavers: str = "") -> None:
        self.set_ring(ring_of(names, revision, leavers))
        self.talk()
        self.tick(10 * TICK_NS)

    def flush(self, name: str) -> list[Request]:
        return self.keeper.flush(self.links[name], self.now_ns)

    def talk(self) -> None:
        for name in self.links:
            if name not in self.mute:
                for request in self.flush(name):
                    self.answer(name, request)

    def answer(self, name: str, request: Request) -> None:
        revision = self.keeper.ring.revision
        match request:
            case Ping(id=number):
                released = name not in self.withholds
                self.reply(name, Pong(number, revision, True, released, self.silent.get(name, [])))
            case Copies(id=number, copies=copies):
                self.sent[name] = self.sent.get(name, set()) | {(copy.rule, copy.key) for copy in copies}
                self.reply(name, Ack(number, revision))
            case Pull(id=number, wanted=wanted):
                self.reply(name, Pulled(number, [copy for copy in self.known if (copy.rule, copy.key) in wanted]))

    def reply(self, name: str, reply: Reply) -> None:
        self.keeper.on_reply(self.links[name], reply, self.now_ns)

    def ask(self, name: str, request: Request) -> list[Reply]:
        """What a peer is answered."""
        replies: list[Reply] = []
        self.keeper.on_request(name, request, self.now_ns, replies.append)
        return replies

    def ping(self, name: str, revision: int = 7, epoch: int = 3) -> Pong:
        *news, pong = self.ask(name, Ping(9, revision, epoch))
        assert isinstance(pong, Pong)
        assert news == ([self.keeper.ring.news()] if revision < self.keeper.ring.revision else [])
        assert (pong.id, pong.revision) == (9, self.keeper.ring.revision)
        return pong

    def tick(self, span_ns: int = 0) -> None:
        """Let time pass, with peers that go on talking."""
        until_ns = self.now_ns + span_ns
        while True:
            self.talk()
            self.keeper.tick(self.now_ns)
            if self.now_ns >= until_ns:
                return
            self.now_ns = min(until_ns, self.now_ns + TICK_NS)

    def lapse(self) -> None:
        """Have the right to decide run out, for want of answers; the links are still there."""
        mute, self.mute = self.mute, set("bcd")
        self.tick(RIGHT_NS + TICK_NS)
        self.mute = mute
        assert self.keeper.is_fenced

    def decide(self, key: str = MINE, cost: int = 1, op: Op = Op.CHECK, *, for_peer: bool = False) -> Any:
        outcome = self.keeper.decide(Check("api", key, cost, op=op), self.now_ns, for_peer=for_peer)
        if isinstance(outcome, Forward):
            outcome.reply = self.outcomes.append
        return outcome

    def act(self, key: str = STAND_IN, cost: int = 1) -> tuple[Outcome | None, Forward]:
        forward = Forward(Check("api", key, cost), self.now_ns + TIMEOUT_NS, expires_ns=self.now_ns + 3 * TIMEOUT_NS)
        forward.reply = self.outcomes.append
        return self.keeper.act(forward, self.now_ns), forward

    def copies(self, name: str) -> list[Copy]:
        return [copy for one in self.flush(name) if isinstance(one, Copies) for copy in one.copies]

    def remaining(self) -> list[int]:
        return [outcome.remaining for outcome in self.outcomes if isinstance(outcome, Verdict)]

    def wanted(self, name: str) -> list[tuple[str, str]]:
        return [bucket for one in self.flush(name) if isinstance(one, Pull) for bucket in one.wanted]


@pytest.fixture
def node() -> Node:
    node = Node()
    node.join()
    assert node.keeper.is_whole
    return node


@pytest.fixture
def sync() -> Node:
    node = Node(durability="sync")
    node.join()
    return node


# Deciding as the owner.


def test_a_node_that_is_backed_and_knows_all_decides_at_once(node: Node) -> None:
    assert node.decide(cost=30).remaining == 60
    assert node.decide(op=Op.INSPECT) == Bucket("default", "token_bucket", 90, 30, 60)
    assert node.now_ns < node.keeper.free_until_ns <= node.now_ns + RIGHT_NS


def test_a_node_alone_decides_from_the_first_moment_on() -> None:
    node = Node()
    node.set_ring(ring_of("a"))
    assert node.decide(cost=30).remaining == 60
    assert node.keeper.is_whole
    assert node.keeper.fenced_ns_until(node.now_ns) == 0


@pytest.mark.parametrize("missing", ["backing", "release"])
def test_a_node_that_joins_decides_once_it_is_backed_and_has_been_told_all(missing: str) -> None:
    node = Node()
    node.mute, node.withholds = (set("bc"), set()) if missing == "backing" else (set(), set("b"))
    node.set_ring(ring_of("abc"))
    node.talk()
    assert isinstance(node.decide(cost=30), Forward)
    # What the peers say in answer to a pull would do for this bucket: have them not answer it.
    for link in node.links.values():
        link.pulls.clear()
    node.tick(2 * TICK_NS)
    assert (node.outcomes, node.keeper.is_whole) == ([], False)
    assert node.keeper.is_fenced is (missing == "backing")
    node.mute, node.withholds = set(), set()
    node.tick(4 * TICK_NS)
    assert node.remaining() == [60]
    assert node.keeper.is_whole


def test_a_forgotten_bucket_is_full_and_its_replica_is_told(node: Node) -> None:
    node.decide(cost=30)
    node.tick(REPLICATION_NS)
    assert node.decide(op=Op.FORGET) == Forgotten()
    assert node.copies("b") == [Copy("api", MINE, "default", FORGOTTEN_SPENT)]
    assert node.decide(cost=0).remaining == 90


def test_what_is_granted_goes_to_the_replica_once_an_interval(node: Node) -> None:
    sent: list[int] = []
    for _ in range(20):
        node.decide()
        node.keeper.tick(node.now_ns)
        for request in node.flush("b"):
            if isinstance(request, Copies):
                sent += [-(-copy.spent // MICROS) for copy in request.copies]
            node.answer("b", request)
        node.now_ns += REPLICATION_NS // 2
    assert sent == list(range(sent[0], 21, 2))


def test_links_to_whom_something_is_due_are_woken_at_the_end_of_an_interval(node: Node) -> None:
    node.tick(REPLICATION_NS)
    node.mute = {"b", "c"}
    node.decide()
    for link in node.links.values():
        link.pinged_ns = 2**62  # pings are no matter here
    before = {name: carrier.wakes for name, carrier in node.carriers.items()}
    for after_ns, wakes in ((REPLICATION_NS - 1, [0, 0]), (REPLICATION_NS, [1, 0])):
        node.keeper.tick(node.now_ns + after_ns)
        assert [node.carriers[name].wakes - before[name] for name in "bc"] == wakes


# Losing the right.


def test_a_node_whose_right_has_lapsed_parks_its_checks_and_asks_all_others(node: Node) -> None:
    node.lapse()
    assert isinstance(node.decide(cost=30), Forward)
    assert (node.wanted("b"), node.wanted("c")) == ([("api", MINE)], [("api", MINE)])
    assert node.outcomes == []
    assert node.keeper.lapses == 1


def test_the_right_lapses_between_two_ticks_too(node: Node) -> None:
    node.now_ns = node.keeper.free_until_ns
    assert isinstance(node.decide(), Forward)
    assert node.keeper.is_fenced


def test_who_has_no_link_any_more_is_waited_for_and_not_asked(node: Node) -> None:
    node.lapse()
    del node.links["c"]
    node.decide()
    assert node.wanted("b") == [("api", MINE)]
    node.tick(2 * TICK_NS)
    assert node.outcomes == []


def test_what_others_granted_meanwhile_is_known_before_anything_is_decided_again(node: Node) -> None:
    node.decide(cost=10)
    node.lapse()
    node.known = [Copy("api", MINE, "default", 50 * MICROS)]
    node.withholds = {"b", "c"}
    node.decide(cost=30)
    node.decide(cost=30)
    node.tick(2 * TICK_NS)
    allowed = [outcome.allowed for outcome in node.outcomes if isinstance(outcome, Verdict)]
    assert (node.remaining(), allowed) == ([10, 10], [True, False])
    # The node is not whole, but sure of that bucket.
    assert not node.keeper.is_whole
    assert node.decide(cost=10).remaining == 0
    assert node.keeper.custody.pulled == 1


def test_what_was_pulled_goes_on_only_with_the_right_to_decide(node: Node) -> None:
    node.lapse()
    node.decide(cost=30)
    for name in "bc":
        (pull,) = [request for request in node.flush(name) if isinstance(request, Pull)]
        node.reply(name, Pulled(pull.id, []))
    assert node.outcomes == []
    node.tick(2 * TICK_NS)
    assert node.remaining() == [60]


def test_what_was_told_before_the_right_is_back_must_be_told_again(node: Node) -> None:
    node.lapse()
    node.decide(cost=30)
    asked = {name: node.flush(name) for name in "bc"}  # by ping and pull
    for name, requests in asked.items():
        for request in requests:
            node.answer(name, request)
    assert not node.keeper.is_fenced
    assert node.outcomes == []
    node.known = [Copy("api", MINE, "default", 50 * MICROS)]
    node.withholds = {"b", "c"}
    node.talk()
    assert node.remaining() == [10]


def test_who_was_given_up_for_gone_meanwhile_must_tell_once_the_right_is_back() -> None:
    node = Node()
    node.join("ab")
    node.lapse()
    assert node.keeper.custody.pending == set()
    # b is still cut off, and may have acted in this node's place; that of two others d hears both gives the right back.
    node.set_ring(ring_of("abd", 8))
    node.mute = {"b"}
    node.tick(2 * TICK_NS)
    assert not node.keeper.is_fenced
    mine = key_of("a", abd="a")
    assert isinstance(node.decide(mine), Forward)
    assert node.outcomes == []
    node.mute = set()
    node.withholds = {"b"}
    node.known = [Copy("api", mine, "default", 50 * MICROS)]
    node.tick(TICK_NS)
    assert node.remaining() == [39]


@pytest.mark.parametrize(("for_peer", "wait_ns"), [(True, PARKED_NS), (False, WAYS_MAX * TIMEOUT_NS // 2)])
def test_a_parked_check_is_given_up_in_time_for_whoever_asked(node: Node, for_peer: bool, wait_ns: int) -> None:
    node.lapse()
    forward = node.decide(for_peer=for_peer)
    assert forward.deadline_ns == node.now_ns + wait_ns
    assert node.keeper.take_homeless(node.now_ns + wait_ns - 1) == ([], [])
    assert node.keeper.take_homeless(node.now_ns + wait_ns) == ([], [forward])
    assert node.keeper.take_homeless(node.now_ns + wait_ns) == ([], [])


def test_a_check_that_has_waited_elsewhere_waits_here_no_longer_than_is_left_to_it(node: Node) -> None:
    node.lapse()
    forward = node.keeper.decide(Check("api", MINE), node.now_ns, expires_ns=node.now_ns + 5)
    assert isinstance(forward, Forward)
    assert forward.deadline_ns == forward.expires_ns == node.now_ns + 5
    assert node.keeper.take_homeless(node.now_ns + 5) == ([], [forward])


def test_a_node_without_the_right_for_long_does_not_let_checks_wait_any_more(node: Node) -> None:
    node.mute = {"b", "c"}
    node.now_ns = lapsed_ns = node.keeper.free_until_ns
    for link in node.links.values():
        link.usable_until_ns = node.now_ns
    node.tick()
    assert node.keeper.is_fenced
    longest_ns = WAYS_MAX * TIMEOUT_NS // 2
    assert not node.keeper.is_isolated(lapsed_ns + longest_ns)
    node.tick(longest_ns)
    assert isinstance(node.decide(), Forward)
    node.tick(1)
    assert node.keeper.is_isolated(node.now_ns)
    assert node.decide() is None


def test_checks_wait_again_for_a_right_gone_for_long_once_enough_peers_answer(node: Node) -> None:
    node.lapse()
    node.mute = {"b", "c"}
    for link in node.links.values():
        link.usable_until_ns = node.now_ns
    node.tick(WAYS_MAX * TIMEOUT_NS)
    assert node.decide() is None
    node.links["c"].usable_until_ns = node.now_ns + 1  # one of two is enough to back it
    assert isinstance(node.decide(), Forward)


def test_the_time_without_the_right_is_counted(node: Node) -> None:
    before_ns = node.keeper.fenced_ns_until(node.now_ns)
    node.mute = {"b", "c"}
    node.now_ns = lapsed_ns = node.keeper.free_until_ns
    node.tick()
    node.tick(30)
    assert node.keeper.fenced_ns_until(node.now_ns) - before_ns == 30
    node.mute = set()
    node.tick(5 * TICK_NS)
    assert not node.keeper.is_fenced
    fenced_ns = node.keeper.fenced_ns_until(node.now_ns) - before_ns
    assert 30 <= fenced_ns <= node.now_ns - lapsed_ns
    assert node.keeper.fenced_ns_until(node.now_ns + 1_000) - before_ns == fenced_ns


def test_a_lapse_that_ends_with_the_next_answer_is_noticed_all_the_same(node: Node) -> None:
    node.mute = {"b", "c"}
    node.withholds = {"b", "c"}
    node.now_ns = node.keeper.free_until_ns
    for name in "bc":
        (ping,) = [request for request in node.flush(name) if isinstance(request, Ping)]
        node.answer(name, ping)
    assert (node.keeper.lapses, node.keeper.is_fenced, node.keeper.is_whole) == (1, False, False)


# Durability sync.


def test_a_sync_verdict_waits_for_the_replicas_ack(sync: Node) -> None:
    wakes = sync.carriers["b"].wakes
    assert isinstance(sync.decide(cost=30), Forward)
    assert sync.carriers["b"].wakes == wakes + 1
    (frame,) = [request for request in sync.flush("b") if isinstance(request, Copies)]
    assert frame.copies == [Copy("api", MINE, "default", 30 * MICROS)]
    assert sync.outcomes == []
    sync.answer("b", frame)
    (verdict,) = sync.outcomes
    assert isinstance(verdict, Verdict)
    assert (verdict.remaining, verdict.degraded) == (60, False)


@pytest.mark.parametrize(("cost", "op"), [(91, Op.CHECK), (0, Op.CHECK), (0, Op.INSPECT), (0, Op.FORGET)])
def test_what_spends_nothing_waits_for_nobody(sync: Node, cost: int, op: Op) -> None:
    assert not isinstance(sync.decide(cost=cost, op=op), Forward)


def test_rules_that_are_not_sync_do_not_wait(sync: Node) -> None:
    sync.engine.set_rule("other", parse_rule("other", {"rate": "1/d", "burst": 9}), NOW_NS)
    verdict = sync.keeper.decide(Check("other", MINE), sync.now_ns)
    assert isinstance(verdict, Verdict)
    assert not verdict.degraded


def test_a_sync_verdict_goes_alone_where_there_is_no_replica() -> None:
    node = Node(durability="sync")
    node.set_ring(ring_of("a"))
    verdict = node.decide(cost=30)
    assert (verdict.remaining, verdict.degraded) == (60, False)


@pytest.mark.parametrize("how", ["down", "silent", "no link"])
def test_a_sync_verdict_that_can_have_no_copy_is_degraded_at_once(sync: Node, how: str) -> None:
    if how == "no link":
        del sync.links["b"]
    else:
        sync.links["b"].state = LinkState.DOWN if how == "down" else LinkState.UP
        sync.links["b"].usable_until_ns = sync.now_ns
    verdict = sync.decide(cost=30)
    assert (verdict.allowed, verdict.remaining, verdict.degraded) == (True, 60, True)
    assert sync.keeper.replication.uncopied == 1


def test_a_sync_verdict_goes_without_the_ack_in_time_for_whoever_asked(sync: Node) -> None:
    sync.decide(cost=30)
    sync.mute = {"b"}
    sync.tick(PARKED_NS - 1)
    assert sync.outcomes == []
    sync.tick(1)
    assert [outcome.degraded for outcome in sync.outcomes if isinstance(outcome, Verdict)] == [True]


def test_a_sync_verdict_goes_without_the_ack_when_the_replica_hangs_up(sync: Node) -> None:
    sync.decide(cost=30)
    sync.keeper.on_down(sync.links["b"], sync.now_ns, refused_ns=None)
    assert [outcome.degraded for outcome in sync.outcomes if isinstance(outcome, Verdict)] == [True]


def test_a_parked_sync_check_waits_for_the_ack_once_it_is_decided(sync: Node) -> None:
    sync.lapse()
    sync.decide(cost=30)
    sync.talk()  # they back this node
    sync.talk()  # and tell what they know
    sync.mute = {"b", "c"}
    assert sync.outcomes == []
    (frame,) = [request for request in sync.flush("b") if isinstance(request, Copies)]
    sync.answer("b", frame)
    assert sync.remaining() == [60]


# Standing in for an owner that is gone.


def gone(node: Node, name: str = "b", *, others: str = "c") -> None:
    """Have a peer fall silent to all."""
    node.mute = {name}
    node.silent = {other: [name] for other in others}
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert node.keeper.fence.is_gone(name, node.now_ns)


def test_the_replica_decides_for_an_owner_that_is_gone(node: Node) -> None:
    gone(node)
    assert node.keeper.can_stand_in("b", node.now_ns)
    verdict, _ = node.act(cost=30)
    assert isinstance(verdict, Verdict)
    assert (verdict.remaining, verdict.degraded, node.keeper.acted) == (60, False, 1)
    # The owner is told once it can be.
    assert node.copies("b") == [Copy("api", STAND_IN, "default", 30 * MICROS)]


@pytest.mark.parametrize(("cost", "is_degraded"), [(30, True), (91, False)])
def test_a_sync_verdict_of_a_replica_has_no_copy_and_says_so(sync: Node, cost: int, is_degraded: bool) -> None:
    gone(sync)
    verdict, _ = sync.act(cost=cost)
    assert isinstance(verdict, Verdict)
    assert verdict.degraded is is_degraded


def test_a_node_does_not_stand_in_for_a_peer_that_only_it_hears_nothing_of(node: Node) -> None:
    node.mute = {"b"}
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert not node.keeper.can_stand_in("b", node.now_ns)


def test_a_node_does_not_stand_in_when_two_have_gone_before_they_had_told_all() -> None:
    # Both may have known what nobody else does.
    node = Node()
    node.withholds = {"b", "c"}
    node.join("abcd")
    gone(node, "b", others="cd")
    assert node.keeper.can_stand_in("b", node.now_ns)
    node.mute = {"b", "c"}
    node.silent = {"d": ["b", "c"]}
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert node.keeper.fence.is_gone("b", node.now_ns)
    assert not node.keeper.can_stand_in("b", node.now_ns)


def test_a_replica_that_may_have_missed_something_asks_before_it_stands_in(node: Node) -> None:
    node.lapse()
    gone(node)
    node.withholds = {"c"}
    node.lapse()
    node.mute = {"b"}
    node.known = [Copy("api", STAND_IN, "default", 50 * MICROS)]
    outcome, forward = node.act(cost=30)
    assert (outcome, forward.asks_help) == (None, True)
    assert forward.deadline_ns == node.now_ns + PARKED_NS
    node.tick(SILENT_NS + 2 * TICK_NS)
    # The way it goes on is the router's to find.
    homeless, _ = node.keeper.take_homeless(forward.deadline_ns - 1)
    assert homeless == [forward]
    outcome, _ = node.act(cost=30)
    assert isinstance(outcome, Verdict)
    assert outcome.remaining == 10


# Pings.


def test_a_member_of_the_same_ring_is_backed_and_released_when_nothing_is_due_there(node: Node) -> None:
    pong = node.ping("b")
    assert (pong.backs, pong.released, pong.silent) == (True, True, [])


@pytest.mark.parametrize(
    ("name", "revision", "backs", "released"),
    [("b", 6, False, True), ("b", 7, True, True), ("b", 8, True, False), ("x", 7, False, False)],
)
def test_who_is_backed_and_released_depends_on_its_ring(
    node: Node, name: str, revision: int, backs: bool, released: bool
) -> None:
    pong = node.ping(name, revision)
    assert (pong.backs, pong.released) == (backs, released)


def test_a_peer_is_released_once_it_has_confirmed_all_that_was_due_when_it_asked(node: Node) -> None:
    node.decide()
    wakes = node.carriers["b"].wakes
    assert not node.ping("b").released
    assert node.carriers["b"].wakes == wakes + 1
    frames = [request for request in node.flush("b") if isinstance(request, Copies)]
    assert not node.ping("b").released
    for frame in frames:
        node.answer("b", frame)
    # What is due later is no matter of that epoch, but of the next.
    node.decide()
    assert node.ping("b").released
    assert not node.ping("b", epoch=4).released
    assert node.ping("c").released


def test_nobody_is_released_while_buckets_are_still_to_be_looked_at(node: Node) -> None:
    node.set_ring(ring_of("abcd", 8))
    assert node.keeper.replication.is_surveying
    assert not node.ping("b", 8).released
    node.tick(5 * TICK_NS)
    assert node.ping("b", 8).released


def test_nobody_is_released_who_has_never_heard_of_a_node_that_has_not_told_all_yet() -> None:
    node = Node()
    node.join("abcd")
    node.withholds = {"d"}
    node.set_ring(ring_of("abc", 8))
    node.tick(5 * TICK_NS)
    assert "d" in node.keeper.custody.pending
    assert not node.ping("b", 8).released
    node.withholds = set()
    node.tick(5 * TICK_NS)
    assert node.ping("b", 8).released


def test_whom_this_node_hears_nothing_of_is_told_to_who_asks(node: Node) -> None:
    node.mute = {"b"}
    node.tick(SILENT_NS + TICK_NS)
    assert node.ping("c").silent == ["b"]


def test_an_answer_to_no_ping_of_this_life_of_the_link_counts_for_nothing(node: Node) -> None:
    node.lapse()
    pings = [request for request in node.flush("b") if isinstance(request, Ping)]
    node.keeper.on_down(node.links["b"], node.now_ns, refused_ns=None)
    for ping in (*pings, Ping(12_345, 7, 0)):
        node.answer("b", ping)
    assert node.keeper.is_fenced


def test_a_release_counts_for_the_epoch_that_was_asked_about() -> None:
    node = Node()
    node.set_ring(ring_of("abc"))
    pings = {name: node.flush(name)[0] for name in "bc"}
    node.set_ring(ring_of("abcd", 8))
    for name, ping in pings.items():
        node.answer(name, ping)
    assert node.keeper.custody.pending == {"b", "c", "d"}
    # The backing does.
    assert node.keeper.is_fenced is False


def test_a_peer_with_an_older_ring_does_not_release_and_is_told_the_ring(node: Node) -> None:
    node.set_ring(ring_of("abcd", 8))
    (ping,) = [request for request in node.flush("b") if isinstance(request, Ping)]
    node.reply("b", Pong(ping.id, 7, True, True, []))
    assert "b" in node.keeper.custody.pending
    assert [request for request in node.flush("b") if isinstance(request, News)] == [ring_of("abcd", 8).news()]
    assert not any(isinstance(request, News) for request in node.flush("b"))


def test_links_are_woken_when_it_is_time_to_ping(node: Node) -> None:
    every_ns = node.keeper.fence.ping_every_ns
    node.flush("b")
    node.links["b"].pinged_ns = node.now_ns
    wakes = node.carriers["b"].wakes
    node.keeper.tick(node.now_ns + every_ns - 1)
    assert node.carriers["b"].wakes == wakes
    node.keeper.tick(node.now_ns + every_ns)
    assert node.carriers["b"].wakes == wakes + 1
    node.now_ns += every_ns
    assert [type(request) for request in node.flush("b")] == [Ping]
    assert node.flush("b") == []


def test_a_link_that_is_down_is_not_woken_for_copies(node: Node) -> None:
    node.links["b"].state = LinkState.DOWN
    node.links["b"].pinged_ns = 2**62
    wakes = node.carriers["b"].wakes
    node.decide()
    node.keeper.tick(node.now_ns + REPLICATION_NS)
    assert node.keeper.replication.outlets["b"].due
    assert node.carriers["b"].wakes == wakes


# Copies, pulls, news.


def test_copies_are_taken_in_and_confirmed(node: Node) -> None:
    copies = [Copy("api", STAND_IN, "default", 30 * MICROS), Copy("none", STAND_IN, "default", MICROS)]
    assert node.ask("b", Copies(5, copies)) == [Ack(5, 7)]
    assert node.engine.inspect("api", STAND_IN, node.now_ns) == Bucket("default", "token_bucket", 90, 30, 60)
    assert node.engine.copy("none", STAND_IN, node.now_ns) == copies[1]


def test_the_owner_says_under_which_segment_a_bucket_is_and_others_do_not(node: Node) -> None:
    node.engine.set_rule(
        "api", parse_rule("api", {"rate": "1/d", "burst": 90, "segments": {"free": {"rate": "1/d"}}}), NOW_NS
    )
    node.ask("b", Copies(5, [Copy("api", STAND_IN, "default", 3 * MICROS)]))
    for name, segment in (("c", "default"), ("b", "free")):
        node.ask(name, Copies(6, [Copy("api", STAND_IN, "free", MICROS)]))
        copy = node.engine.copy("api", STAND_IN, node.now_ns)
        assert copy == Copy("api", STAND_IN, segment, 3 * MICROS)


def test_whoever_holds_a_bucket_may_pull_it(node: Node) -> None:
    node.ask("c", Copies(5, [Copy("api", STAND_IN, "default", 30 * MICROS)]))
    pulled = Pulled(6, [Copy("api", STAND_IN, "default", 30 * MICROS)])
    assert node.ask("b", Pull(6, 7, [("api", STAND_IN)])) == [pulled]


def test_who_pulls_by_an_older_ring_is_told_the_ring_first(node: Node) -> None:
    assert node.ask("b", Pull(6, 6, [("api", STAND_IN)])) == [node.keeper.ring.news(), Pulled(6, [])]


def test_who_pulls_by_a_newer_ring_is_answered_when_it_has_come(node: Node) -> None:
    moved = key_of("a", abcd="d")
    node.decide(moved, 30)
    replies: list[Reply] = []
    node.keeper.on_request("d", Pull(6, 8, [("api", moved)]), node.now_ns, replies.append)
    assert replies == []
    node.set_ring(ring_of("abcd", 8))
    assert replies == [Pulled(6, [Copy("api", moved, "default", 30 * MICROS)])]


def test_who_pulls_without_having_heard_of_a_node_is_answered_when_that_has_told_all(node: Node) -> None:
    # d has joined when c was not registered for a moment: it asks a and b only, and neither has the key's bucket.
    moved = key_of("c", "b", abd="d")
    node.withholds = {"b", "c"}
    node.set_ring(ring_of("abd", 8))
    replies: list[Reply] = []
    node.keeper.on_request("d", Pull(6, 8, [("api", moved)], ["a", "b"]), node.now_ns, replies.append)
    node.tick(2 * TICK_NS)
    assert replies == []
    # Who asks c, too, need not wait for that.
    assert node.ask("b", Pull(7, 8, [("api", moved)], ["a", "c", "d"])) == [Pulled(7, [])]
    node.ask("c", Copies(5, [Copy("api", moved, "default", 30 * MICROS)]))
    node.withholds = {"b"}
    node.tick(2 * TICK_NS)
    assert replies == [Pulled(6, [Copy("api", moved, "default", 30 * MICROS)])]


def test_a_leaver_that_only_a_newer_ring_names_must_tell_too(node: Node) -> None:
    node.withholds = {"d"}
    node.set_ring(ring_of("abc", 8, leavers="d"))
    node.tick(2 * TICK_NS)
    assert node.keeper.custody.pending == {"d"}


def test_a_newer_ring_is_taken_from_whoever_tells_it_and_an_older_one_is_not(node: Node) -> None:
    node.ask("b", ring_of("ab", 7).news())
    node.reply("b", ring_of("ab", 6).news())
    assert node.told == []
    node.ask("b", ring_of("ab", 8, leavers="c").news())
    node.reply("b", ring_of("abcd", 9).news())
    told = [(ring.revision, [*ring.members], [*ring.leavers]) for ring in node.told]
    assert told == [(8, ["a", "b"], ["c"]), (9, ["a", "b", "c", "d"], [])]


# When the ring changes.


def test_after_a_change_a_node_goes_on_with_what_it_had_and_pulls_what_is_new(node: Node) -> None:
    new = key_of("c", ab="a")
    node.withholds = set("bc")
    node.known = [Copy("api", new, "default", 50 * MICROS)]
    node.set_ring(ring_of("ab", 8, leavers="c"))
    assert node.decide(key_of("a", ab="a"), 30).remaining == 60
    assert isinstance(node.decide(new, 30), Forward)
    node.tick(2 * TICK_NS)
    assert node.remaining() == [10]


def test_a_parked_check_of_a_key_that_is_anothers_now_finds_its_way_there(node: Node) -> None:
    moved = key_of("a", abcd="d")
    node.lapse()
    forward = node.decide(moved)
    node.set_ring(ring_of("abcd", 8))
    assert node.keeper.take_homeless(node.now_ns) == ([forward], [])
    assert node.keeper.custody.parked == {}


def test_a_parked_check_of_a_key_that_stays_asks_the_new_nodes_too(node: Node) -> None:
    kept = key_of("a", abcd="a")
    node.lapse()
    node.decide(kept)
    for name in "bc":
        node.flush(name)
    node.set_ring(ring_of("abcd", 8))
    assert [node.wanted(name) for name in "bcd"] == [[("api", kept)]] * 3


def test_a_ring_of_the_same_members_changes_nothing_but_its_revision(node: Node) -> None:
    epoch = node.keeper.custody.epoch
    node.set_ring(ring_of("abc", 9))
    assert node.decide(cost=30).remaining == 60
    assert (node.keeper.custody.epoch, node.keeper.is_whole) == (epoch, True)
    assert not node.keeper.replication.is_surveying


def test_what_an_earlier_life_of_a_peer_was_still_to_get_died_with_it(sync: Node) -> None:
    sync.decide(cost=30)
    members = {**ring_of("abc").members, "b": Member("b", "b:8082", boot=1)}
    sync.set_ring(Ring(8, members))
    assert [outcome.degraded for outcome in sync.outcomes if isinstance(outcome, Verdict)] == [True]
    # The new life gets all of it by the survey.
    sync.mute = {"b", "c"}
    sync.tick(2 * TICK_NS)
    assert [copy.spent for copy in sync.copies("b")] == [30 * MICROS]


def test_a_link_that_is_back_asks_again_for_what_is_still_missing(node: Node) -> None:
    node.lapse()
    node.decide()
    pulls = [request for request in node.flush("b") if isinstance(request, Pull)]
    node.keeper.on_down(node.links["b"], node.now_ns, refused_ns=None)
    node.answer("b", pulls[0])
    node.keeper.ask(node.links["b"])
    assert node.links["b"].pinged_ns == NEVER_NS
    assert node.wanted("b") == [("api", MINE)]
    # What has been answered is not asked for again.
    node.answer("c", next(request for request in node.flush("c") if isinstance(request, Pull)))
    node.keeper.ask(node.links["c"])
    assert node.wanted("c") == []


def test_a_peer_that_has_left_is_needed_until_it_has_told_all_or_is_gone(node: Node) -> None:
    link = node.links["c"]
    node.withholds = {"c"}
    node.set_ring(ring_of("ab", 8))
    node.tick(2 * TICK_NS)
    assert node.keeper.needs(link)
    node.mute = {"c"}
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert not node.keeper.needs(link)
    node.keeper.part("c")
    assert "c" not in node.keeper.fence.peers
    assert "c" not in node.keeper.replication.outlets


def test_a_member_that_is_gone_is_not_waited_for(node: Node) -> None:
    node.lapse()
    node.mute, node.withholds = {"b"}, {"b"}
    node.silent = {"c": ["b"]}
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert node.keeper.is_whole
    assert node.keeper.custody.untold == {"b"}


# Leaving.


def test_a_node_that_leaves_has_handed_over_when_all_who_can_be_had_have_everything(node: Node) -> None:
    node.decide(cost=30)
    for number in range(200):
        node.decide(f"k{number}")
    node.mute = {"b", "c"}
    node.set_ring(ring_of("bc", 8, leavers="a"))
    assert not node.keeper.has_handed_over(node.now_ns)
    assert not node.keeper.is_fenced
    node.tick(2 * TICK_NS)
    assert not node.keeper.replication.is_surveying
    assert not node.keeper.has_handed_over(node.now_ns)
    # Nobody is told that it has all before everybody has.
    node.mute = {"b"}
    node.tick(2 * TICK_NS)
    assert not node.ping("c", 8).released
    node.mute = set()
    node.tick(2 * TICK_NS)
    assert node.keeper.has_handed_over(node.now_ns)
    assert node.ping("c", 8).released


def test_a_node_that_leaves_does_not_wait_for_who_is_gone(node: Node) -> None:
    for number in range(200):
        node.decide(f"k{number}")
    node.mute = {"b"}
    node.set_ring(ring_of("bc", 8, leavers="a"))
    node.tick(4 * TICK_NS)
    assert not node.keeper.has_handed_over(node.now_ns)
    node.silent = {"c": ["b"]}
    node.tick(SILENT_NS)
    assert node.keeper.has_handed_over(node.now_ns)


def test_a_node_that_leaves_waits_for_who_is_gone_when_nobody_else_would_know() -> None:
    node = Node()
    node.join("abcd")
    alone = key_of("a", "b", "abcd", bcd="b")
    replica, other = ("c", "d") if ring_of("bcd").replica(alone) == "c" else ("d", "c")
    node.decide(alone, 30)
    node.mute = {"b", replica}
    node.silent = {other: ["b", replica]}
    node.set_ring(ring_of("bcd", 8, leavers="a"))
    node.tick(SILENT_NS + 2 * TICK_NS)
    assert not node.keeper.has_handed_over(node.now_ns)
    # The other one does not wait for that: whatever becomes its own, it will ask for.
    assert node.ping(other, 8).released
    node.set_ring(ring_of(other, 9, leavers="a"))
    node.tick(2 * TICK_NS)
    assert node.keeper.has_handed_over(node.now_ns)
    assert ("api", alone) in node.sent[other]


def test_a_node_that_leaves_does_not_wait_when_all_are_gone(node: Node) -> None:
    node.decide(cost=30)
    node.mute = {"b", "c"}
    node.set_ring(ring_of("bc", 8, leavers="a"))
    for name in "bc":
        node.keeper.on_down(node.links[name], node.now_ns, refused_ns=node.now_ns)
    node.tick(SILENT_NS)
    for name in "bc":
        node.keeper.on_down(node.links[name], node.now_ns, refused_ns=node.now_ns)
    node.tick(2 * TICK_NS)
    assert node.keeper.has_handed_over(node.now_ns)


# A node that did not run.


def test_a_stall_shifts_what_is_known_of_peers_and_a_short_delay_does_not(node: Node) -> None:
    link, ticked_ns = node.links["b"], node.now_ns
    longest_ns = 2 * node.keeper.fence.ping_every_ns
    heard_ns, usable_until_ns = link.heard_ns, link.usable_until_ns
    assert not node.keeper.note_stall(ticked_ns + longest_ns)
    assert (link.heard_ns, link.usable_until_ns) == (heard_ns, usable_until_ns)
    assert node.keeper.note_stall(ticked_ns + longest_ns + 1)
    assert link.heard_ns == heard_ns + longest_ns + 1
    assert link.usable_until_ns == usable_until_ns + longest_ns + 1
    assert not node.keeper.note_stall(ticked_ns + longest_ns + 1)


def test_a_node_that_never_ran_has_not_stalled() -> None:
    assert not Node().keeper.note_stall(NOW_NS)


def test_a_node_that_was_frozen_decides_nothing_before_it_has_asked_around(node: Node) -> None:
    node.decide(cost=10)
    node.tick(REPLICATION_NS)
    node.now_ns += 50 * TIMEOUT_NS
    node.known = [Copy("api", MINE, "default", 90 * MICROS)]
    assert isinstance(node.decide(), Forward)
    node.tick(5 * TICK_NS)
    assert [outcome.allowed for outcome in node.outcomes if isinstance(outcome, Verdict)] == [False]
    assert not node.keeper.fence.is_silent("b", node.now_ns)


# A lapse that nobody has looked at yet.


def test_a_lapse_is_noticed_before_a_ring_gives_the_right_back() -> None:
    node = Node()
    node.join()
    node.now_ns += 10 * TIMEOUT_NS
    node.set_ring(ring_of("a", 8, "bc"))
    assert node.keeper.lapses == 1
    assert node.keeper.custody.pending == {"b", "c"}


def test_a_lapse_is_noticed_before_a_refusal_gives_the_right_back() -> None:
    node = Node()
    node.join("ab")
    node.now_ns = node.keeper.fence.right_until_ns + 1
    node.keeper.on_down(node.links["b"], node.now_ns, refused_ns=node.now_ns)
    assert node.now_ns < node.keeper.fence.right_until_ns
    assert node.keeper.lapses == 1
    assert node.keeper.custody.pending == {"b"}


def test_pings_tell_what_was_counted_of_backends() -> None:
    one, other = Node("a"), Node("b")
    for node in (one, other):
        node.join()
        node.engine.backends.set_entry("orders", Backend(), node.now_ns)
    gate = one.engine.backends.gate("orders")
    for _ in range(2):
        gate.admit(5, one.now_ns)
        gate.take_load(one.now_ns)
        one.now_ns += TICK_NS * 10
        (ping,) = [request for request in one.flush("b") if isinstance(request, Ping)]
        assert ping.pulses == {"orders": gate.pulse()}
        other.ask("a", ping)
    assert other.engine.backends.gate("orders").guard.share == 1
    other.engine.backends.gate("orders").take_load(other.now_ns)
    assert other.engine.backends.gate("orders").guard.share < 0.5  # all demand was at the other node


class PatientNode(Node):
    timeout_ns = 2_000_000_000


def test_nodes_tell_each_other_of_backends_in_use_however_patient_they_are() -> None:
    node = PatientNode()
    node.join()

    def pings_of_a_second() -> int:
        count = 0
        for _ in range(100):
            node.tick()
            node.now_ns += TICK_NS
            count += sum(isinstance(request, Ping) for request in node.flush("b"))
        return count

    assert pings_of_a_second() in (2, 3)  # five in a timeout
    node.engine.backends.set_entry("orders", Backend(), node.now_ns)
    gate = node.engine.backends.gate("orders")
    gate.admit(5, node.now_ns)
    gate.take_load(node.now_ns)
    assert 17 <= pings_of_a_second() <= 20
    gate.take_load(node.now_ns)  # of a second without a check
    assert pings_of_a_second() in (2, 3)
