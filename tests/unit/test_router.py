"""The router: who decides a check, what goes to whom, and that every check gets exactly one outcome."""

import random
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.engine import Engine
from limiter_node.core.forward import WAYS_MAX, Forward
from limiter_node.core.links import Link, LinkState
from limiter_node.core.model import (
    CHECKS_PER_FRAME_MAX,
    Ack,
    Answer,
    Ask,
    Bucket,
    Check,
    Copies,
    Forgotten,
    Member,
    NotOwner,
    Op,
    Outcome,
    Ping,
    Pong,
    Pull,
    Pulled,
    Reply,
    Request,
    Result,
    UnknownRule,
    Unreachable,
    Verdict,
)
from limiter_node.core.ring import Ring
from limiter_node.core.router import OUTBOX_MAX, Router
from limiter_node.core.rules import parse_rule
from limiter_node.core.service import PARKED_MAX

TIMEOUT_NS = 100_000_000
NOW_NS = 5_000_000_000
TICK_NS = TIMEOUT_NS // 10


class CountingCarrier:
    """Carries nothing, and counts what it was told."""

    def __init__(self) -> None:
        self.wakes = 0
        self.redials = 0
        self.is_closed = False

    def wake(self) -> None:
        self.wakes += 1

    def redial(self) -> None:
        self.redials += 1

    def hasten(self) -> None:
        raise AssertionError

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Fixture:
    """A router, what it asks of the outside, and the outcomes it has given. Its peers' keepers answer as they must."""

    def __init__(self, name: str = "a", burst: int = 90, **rule: Any) -> None:
        self.engine = Engine(buckets_max=100_000)
        self.carriers: dict[str, CountingCarrier] = {}
        self.router = Router(name, self.engine, peer_timeout_ns=TIMEOUT_NS, open_link=self.open_link)
        self.put(burst=burst, **rule)
        self.outcomes: list[Outcome] = []
        self.now_ns = NOW_NS
        self.silent: dict[str, list[str]] = {}  # whom each peer says it hears nothing of
        self.mute: set[str] = set()  # peers that say nothing at all

    def open_link(self, link: Link) -> CountingCarrier:
        self.carriers[link.peer.id] = CountingCarrier()
        return self.carriers[link.peer.id]

    @property
    def closed(self) -> list[str]:
        return [name for name, carrier in self.carriers.items() if carrier.is_closed]

    def put(self, **rule: Any) -> None:
        self.engine.set_rule("api", parse_rule("api", {"rate": "1/d", "lease": False, **rule}), 0)

    def join(self, *names: str, revision: int = 7, up: bool = True) -> None:
        self.router.set_ring(ring_of(*names, revision=revision), self.now_ns)
        if up:
            for link in self.router.links.values():
                self.router.on_up(link, self.now_ns)
            self.talk()  # they back this node
            self.talk()  # and tell what they know

    def talk(self) -> None:
        """Let every peer answer what this node's keeper asks; checks stay where they are."""
        for name, link in list(self.router.links.items()):
            if link.state is LinkState.UP and name not in self.mute:
                for request in self.router.keeper.flush(link, self.now_ns):
                    self.reply(name, request)

    def reply(self, name: str, request: Request) -> None:
        link, revision = self.link(name), self.router.ring.revision
        match request:
            case Ping():
                pong = Pong(request.id, revision, backs=True, released=True, silent=self.silent.get(name, []))
                self.router.on_reply(link, pong, self.now_ns)
            case Copies():
                self.router.on_reply(link, Ack(request.id, revision), self.now_ns)
            case Pull():
                self.router.on_reply(link, Pulled(request.id, []), self.now_ns)

    def lose(self, *peer_ids: str, is_refused: bool = False) -> None:
        for peer_id in peer_ids:
            self.router.on_down(self.link(peer_id), self.now_ns, refused_ns=self.now_ns if is_refused else None)

    def check(self, key: str, cost: int = 1, op: Op = Op.CHECK, rule: str = "api") -> Outcome | Forward:
        """Ask; a late outcome goes to `outcomes`."""
        outcome = self.router.check(Check(rule, key, cost, op=op), self.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = self.outcomes.append
        return outcome

    def link(self, peer_id: str) -> Link:
        return self.router.links[peer_id]

    def flush(self, peer_id: str) -> list[Ask]:
        """The asks on their way to a peer; what else is, is answered."""
        asks = []
        for request in self.router.flush(self.link(peer_id), self.now_ns):
            if isinstance(request, Ask):
                asks.append(request)
            elif peer_id not in self.mute:
                self.reply(peer_id, request)
        return asks

    def tick(self, after_ns: int = 0) -> None:
        """Let time pass in small steps, with peers that go on talking."""
        until_ns = self.now_ns + after_ns
        while True:
            self.talk()
            self.router.tick(self.now_ns)
            if self.now_ns >= until_ns:
                return
            self.now_ns = min(until_ns, self.now_ns + TICK_NS)

    def answer(self, peer_id: str, ask_id: int, *results: Any, revision: int = 7) -> None:
        self.router.on_reply(self.link(peer_id), Answer(ask_id, revision, list(results)), self.now_ns)

    def asked(self, ask: Ask) -> list[Reply]:
        """The answers at hand after a peer's frame; parked frames append theirs later."""
        answers: list[Reply] = []
        self.router.on_request("b", ask, self.now_ns, answers.append)
        return answers


def answer_of(replies: list[Reply]) -> Answer:
    (reply,) = replies
    assert isinstance(reply, Answer)
    return reply


def ring_of(*names: str, revision: int = 7) -> Ring:
    return Ring(revision, {name: Member(name, f"{name}:8082") for name in names})


def keys_of(owner: str, *names: str, count: int = 1) -> list[str]:
    """Keys that the owner has in the ring of these members."""
    ring = ring_of(*names)
    keys = (f"k{number}" for number in range(1_000_000))
    return [key for key, _ in zip((key for key in keys if ring.owner(key) == owner), range(count), strict=False)]


def key_of(owner: str, *names: str, replica: str | None = None) -> str:
    ring = ring_of(*names)
    keys = keys_of(owner, *names, count=50)
    return next(key for key in keys if replica is None or ring.replica(key) == replica)


ALLOWED = Verdict(True, 90, 89, 0, 0, 0)


@pytest.fixture
def node() -> Fixture:
    node = Fixture()
    node.join("a", "b", "c")
    return node


KEY_OF_A, KEY_OF_C = (key_of(owner, "a", "b", "c") for owner in "ac")
KEY_OF_B = key_of("b", "a", "b", "c", replica="c")
COPY_OF_B = key_of("b", "a", "b", "c", replica="a")
"""A key of b's whose replica is this node."""


# This node's own keys.


def test_the_owner_answers_at_once(node: Fixture) -> None:
    verdict = node.check(KEY_OF_A, 30)
    assert isinstance(verdict, Verdict)
    assert (verdict.allowed, verdict.remaining, verdict.degraded) == (True, 60, False)
    assert node.check(KEY_OF_A, 0, Op.INSPECT) == Bucket("default", "token_bucket", 90, 30, 60)
    node.tick(TIMEOUT_NS)  # what another node may have promised before it joined is over
    assert node.check(KEY_OF_A, 0, Op.FORGET) == Forgotten()
    assert node.check(KEY_OF_A, 0, Op.INSPECT) == Bucket("default", "token_bucket", 90, 0, 90)
    assert (node.router.forwarded, node.router.failover.unanswered) == (0, 0)


def test_the_owner_knows_which_rules_there_are(node: Fixture) -> None:
    assert node.check(KEY_OF_A, rule="none") == UnknownRule()
    assert node.check(KEY_OF_A, rule="none", op=Op.INSPECT) == UnknownRule()
    node.tick(TIMEOUT_NS)
    assert node.check(KEY_OF_A, rule="none", op=Op.FORGET) == Forgotten()


# Forwarding.


def test_a_check_of_anothers_key_goes_to_its_owner_and_the_answer_comes_back(node: Fixture) -> None:
    assert isinstance(node.check(KEY_OF_B, 3), Forward)
    asks = node.flush("b")
    assert asks == [Ask(1, 7, [Check("api", KEY_OF_B, 3)])]
    assert node.flush("b") == node.flush("c") == []
    node.answer("b", 1, ALLOWED)
    assert node.outcomes == [ALLOWED]
    assert (node.router.forwarded, node.engine.buckets) == (1, 0)


def test_a_link_is_woken_once_for_all_checks_until_it_is_flushed(node: Fixture) -> None:
    wakes = node.carriers["b"].wakes
    for _ in range(3):
        node.check(KEY_OF_B)
    assert node.carriers["b"].wakes == wakes + 1
    node.flush("b")
    node.check(KEY_OF_B)
    assert node.carriers["b"].wakes == wakes + 2


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (999, [999]), (1_000, [1_000]), (1_001, [1_000, 1]), (2_500, [1_000, 1_000, 500])],
)
def test_frames_hold_up_to_1000_checks_and_each_answer_finds_its_asker(
    node: Fixture, count: int, sizes: list[int]
) -> None:
    for cost in range(count):
        node.check(KEY_OF_B, cost)
    asks = node.flush("b")
    assert [len(ask.checks) for ask in asks] == sizes
    assert max(sizes) <= CHECKS_PER_FRAME_MAX
    assert len({ask.id for ask in asks}) == len(asks)
    assert [check.cost for ask in asks for check in ask.checks] == list(range(count))
    # Answers may come in any order.
    for ask in reversed(asks):
        node.answer("b", ask.id, *(Verdict(True, 90, check.cost, 0, 0, 0) for check in ask.checks))
    remaining = [outcome.remaining for outcome in node.outcomes if isinstance(outcome, Verdict)]
    assert sorted(remaining) == list(range(count))
    assert remaining[: sizes[-1]] == list(range(count - sizes[-1], count))


@pytest.mark.parametrize("outcome", [UnknownRule(), Bucket("default", "token_bucket", 9, 1, 8), Forgotten()])
def test_any_outcome_of_the_owner_is_passed_on_as_it_is(node: Fixture, outcome: Outcome) -> None:
    node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, outcome)
    assert node.outcomes == [outcome]


def test_frames_carry_the_revision_of_the_ring_they_are_sent_under(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.join("a", "b", "c", revision=9)
    assert [ask.revision for ask in node.flush("b")] == [9]


# The owner cannot be asked: the replica is.


def degraded(node: Fixture) -> list[Verdict]:
    """The outcomes so far, all of them degraded verdicts."""
    verdicts = [outcome for outcome in node.outcomes if isinstance(outcome, Verdict)]
    assert len(verdicts) == len(node.outcomes)
    assert all(verdict.degraded for verdict in verdicts)
    return verdicts


def test_a_check_whose_owner_is_down_goes_to_the_replica_at_once(node: Fixture) -> None:
    node.lose("b")
    assert isinstance(node.check(KEY_OF_B, 3), Forward)
    (ask,) = node.flush("c")
    assert (ask.helps, ask.checks) == (True, [Check("api", KEY_OF_B, 3)])
    node.answer("c", ask.id, ALLOWED)
    assert node.outcomes == [ALLOWED]
    assert (node.router.failover.helped, node.router.failover.unanswered) == (1, 0)


def test_a_check_whose_deadline_passes_goes_to_the_replica(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.flush("b")
    node.tick(TIMEOUT_NS - 1)
    assert node.flush("c") == []
    node.tick(1)
    (ask,) = node.flush("c")
    node.answer("c", ask.id, ALLOWED)
    assert node.outcomes == [ALLOWED]


def test_a_check_whose_owner_falls_silent_does_not_wait_for_the_deadline(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.flush("b")
    node.mute = {"b"}
    node.tick(round(0.8 * TIMEOUT_NS))
    assert len(node.flush("c")) == 1
    # The next one does not wait at all.
    node.check(KEY_OF_B)
    assert len(node.flush("c")) == 1


def test_asks_for_help_and_others_leave_in_frames_of_their_own(node: Fixture) -> None:
    node.lose("b")
    node.check(KEY_OF_B)
    node.check(KEY_OF_C)
    assert sorted((ask.helps, ask.checks[0].key) for ask in node.flush("c")) == [(False, KEY_OF_C), (True, KEY_OF_B)]


def test_when_the_replica_is_down_too_a_check_is_decided_alone(node: Fixture) -> None:
    node.lose("b", "c")
    verdict = node.check(KEY_OF_B)
    assert isinstance(verdict, Verdict)
    # A third of the plan, for there are three nodes.
    assert (verdict.degraded, verdict.limit, verdict.remaining) == (True, 30, 29)
    assert node.router.failover.unanswered == 1


def test_when_neither_owner_nor_replica_answers_another_node_is_asked_and_then_none() -> None:
    node = Fixture()
    node.join("a", "b", "c", "d")
    node.lose("b")
    node.check(key_of("b", "a", "b", "c", "d", replica="c"))
    (ask,) = node.flush("c")
    node.answer("c", ask.id, Unreachable())
    (ask,) = node.flush("c") + node.flush("d")
    assert ask.helps
    node.answer("d", ask.id, Unreachable())
    assert len(degraded(node)) == 1


def test_a_check_is_decided_alone_after_three_timeouts_whatever_could_still_be_tried(node: Fixture) -> None:
    node.check(KEY_OF_B)
    for _ in range(40):
        node.tick(TICK_NS)
        node.flush("b")
        node.flush("c")
        if node.outcomes:
            break
    assert len(degraded(node)) == 1
    assert node.now_ns - NOW_NS <= WAYS_MAX * TIMEOUT_NS + 2 * TICK_NS


# This node is the replica.


def test_the_replica_decides_when_all_agree_that_the_owner_is_gone(node: Fixture) -> None:
    node.silent["c"] = ["b"]
    node.lose("b", is_refused=True)
    node.tick(3 * TICK_NS)
    verdict = node.check(COPY_OF_B, 30)
    assert isinstance(verdict, Verdict)
    assert (verdict.degraded, verdict.limit, verdict.remaining) == (False, 90, 60)


def test_the_replica_has_a_third_node_pass_on_what_it_cannot_bring_to_the_owner(node: Fixture) -> None:
    node.lose("b", is_refused=True)
    node.tick(3 * TICK_NS)
    assert isinstance(node.check(COPY_OF_B), Forward)
    (ask,) = node.flush("c")
    assert ask.helps
    node.answer("c", ask.id, ALLOWED)
    assert node.outcomes == [ALLOWED]


def test_the_replica_waits_for_the_others_to_agree(node: Fixture) -> None:
    node.lose("b", is_refused=True)
    node.check(COPY_OF_B, 30)
    node.answer("c", node.flush("c")[0].id, Unreachable())
    assert node.outcomes == []
    node.silent["c"] = ["b"]
    node.tick(3 * TICK_NS)
    (verdict,) = node.outcomes
    assert isinstance(verdict, Verdict)
    assert (verdict.degraded, verdict.remaining) == (False, 60)


def test_what_the_replica_has_granted_goes_to_the_owner_once_it_is_back(node: Fixture) -> None:
    node.silent["c"] = ["b"]
    node.lose("b", is_refused=True)
    node.tick(3 * TICK_NS)
    node.check(COPY_OF_B, 30)
    node.router.on_up(node.link("b"), node.now_ns)
    (copies,) = [r for r in node.router.flush(node.link("b"), node.now_ns) if isinstance(r, Copies)]
    assert [(copy.key, copy.spent) for copy in copies.copies] == [(COPY_OF_B, 30_000_000)]


def test_who_asks_the_replica_for_help_gets_the_owners_verdict_through_it(node: Fixture) -> None:
    answers = node.asked(Ask(4, 7, [Check("api", COPY_OF_B), Check("api", KEY_OF_A)], helps=True))
    assert answers == []
    node.answer("b", node.flush("b")[0].id, ALLOWED)
    first, second = answer_of(answers).results
    assert first == ALLOWED
    assert isinstance(second, Verdict)


def test_who_asks_for_help_that_is_not_to_be_had_is_told_in_time(node: Fixture) -> None:
    node.lose("b")
    assert answer_of(node.asked(Ask(4, 7, [Check("api", KEY_OF_B)], helps=True))).results == [Unreachable()]
    # This node is its replica, and may come to know that the owner is gone.
    answers = node.asked(Ask(5, 7, [Check("api", COPY_OF_B)], helps=True))
    assert answers == []
    node.tick(TIMEOUT_NS - 1)
    assert answer_of(answers).results == [Unreachable()]


# Alone.


def test_answers_that_come_too_late_are_ignored(node: Fixture) -> None:
    node.check(KEY_OF_B)
    ask = node.flush("b")[0]
    node.tick(TIMEOUT_NS)
    node.answer("c", node.flush("c")[0].id, ALLOWED)
    node.answer("b", ask.id, ALLOWED)
    node.answer("b", 12_345, ALLOWED)
    assert len(node.outcomes) == 1


def test_an_answer_counts_once(node: Fixture) -> None:
    node.check(KEY_OF_B)
    ask = node.flush("b")[0]
    node.answer("b", ask.id, ALLOWED)
    node.answer("b", ask.id, ALLOWED)
    assert node.outcomes == [ALLOWED]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"on_unreachable": "local"}, (True, 30, 29, None, None)),
        ({"on_unreachable": "allow"}, (True, 90, 90, None, None)),
        ({"on_unreachable": "deny"}, (False, 90, 0, None, "unreachable")),
        ({"on_unreachable": "local", "shadow": True}, (True, 30, 29, True, None)),
    ],
)
def test_on_unreachable_decides_when_the_link_is_down(node: Fixture, rule: dict[str, Any], expected: Any) -> None:
    node.put(burst=90, **rule)
    node.lose("b", "c")
    verdict = node.check(KEY_OF_B)
    assert isinstance(verdict, Verdict)
    assert verdict.degraded
    told = (verdict.allowed, verdict.limit, verdict.remaining, verdict.would_allow, verdict.reason)
    assert told == expected
    assert (node.router.forwarded, node.router.failover.unanswered) == (0, 1)


def test_an_unknown_rule_is_unknown_alone_as_well(node: Fixture) -> None:
    node.lose("b", "c")
    assert node.check(KEY_OF_B, rule="none") == UnknownRule()


@pytest.mark.parametrize("op", [Op.INSPECT, Op.FORGET])
def test_what_is_no_check_is_unreachable_without_the_owner(node: Fixture, op: Op) -> None:
    node.lose("c")
    node.check(KEY_OF_B, op=op)
    node.lose("b")
    assert node.outcomes == [Unreachable()]
    assert node.check(KEY_OF_B, op=op) == Unreachable()


def test_what_waits_for_a_link_that_breaks_goes_another_way_and_nothing_else(node: Fixture) -> None:
    node.check(KEY_OF_B)
    ask = node.flush("b")[0]
    node.check(KEY_OF_B)
    node.check(KEY_OF_C)
    node.lose("b")
    assert node.outcomes == []
    other, helps = sorted(node.flush("c"), key=lambda ask: ask.helps)
    assert (len(other.checks), len(helps.checks)) == (1, 2)
    node.answer("c", helps.id, ALLOWED, ALLOWED)
    assert len(node.outcomes) == 2
    assert ask.id not in node.link("b").pending


def test_checks_wait_for_a_link_that_is_still_connecting() -> None:
    node = Fixture()
    node.join("a", "b", "c", up=False)
    assert node.link("b").state is LinkState.CONNECTING
    node.check(KEY_OF_B)
    wakes = node.carriers["b"].wakes
    node.router.on_up(node.link("b"), node.now_ns)
    assert node.carriers["b"].wakes == wakes + 1
    assert [len(ask.checks) for ask in node.flush("b")] == [1]


def test_a_link_that_is_back_is_used_again(node: Fixture) -> None:
    node.router.on_down(node.link("b"), node.now_ns)
    node.router.on_up(node.link("b"), node.now_ns)
    assert isinstance(node.check(KEY_OF_B), Forward)
    assert len(node.flush("b")) == 1


def test_checks_beyond_what_a_link_can_carry_do_not_wait(node: Fixture) -> None:
    node.lose("c")
    for _ in range(OUTBOX_MAX):
        assert isinstance(node.check(KEY_OF_B), Forward)
    verdict = node.check(KEY_OF_B)
    assert isinstance(verdict, Verdict)
    assert verdict.degraded


def test_an_answer_shorter_than_its_frame_leaves_nobody_waiting(node: Fixture) -> None:
    for _ in range(3):
        node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, ALLOWED)
    assert node.outcomes == [ALLOWED]
    assert [len(ask.checks) for ask in node.flush("c")] == [2]


def test_an_answer_longer_than_its_frame_is_cut(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, ALLOWED, ALLOWED, ALLOWED)
    assert node.outcomes == [ALLOWED]


def test_a_peer_that_says_nothing_for_a_whole_timeout_is_dialled_again(node: Fixture) -> None:
    # Whatever else is put on that connection would wait behind what it does not answer.
    node.mute = {"b"}
    node.tick(TIMEOUT_NS - 1)
    assert node.carriers["b"].redials == 0
    node.tick(1)
    assert (node.carriers["b"].redials, node.carriers["c"].redials) == (1, 0)


def test_a_peer_that_answers_something_is_slow_and_not_silent(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.flush("b")
    node.tick(2 * TIMEOUT_NS)
    assert node.carriers["b"].redials == 0


def test_a_node_that_did_not_run_for_a_while_does_not_hold_its_peers_for_silent(node: Fixture) -> None:
    node.tick()
    node.now_ns += 50 * TIMEOUT_NS
    assert isinstance(node.check(KEY_OF_B), Forward)
    assert len(node.flush("b")) == 1


# Not the owner.


def test_a_check_is_sent_on_to_whom_the_refusing_node_names(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.now_ns += TIMEOUT_NS // 2
    node.answer("b", node.flush("b")[0].id, NotOwner("c"), revision=9)
    assert node.outcomes == []
    assert node.router.failover.rerouted == 1
    (ask,) = node.flush("c")
    # Under the revision of the ring that says so: c may have to wait for it.
    assert ask.revision == 9
    # With a deadline of its own.
    node.tick(TIMEOUT_NS // 2)
    assert node.outcomes == []
    node.answer("c", ask.id, ALLOWED)
    assert node.outcomes == [ALLOWED]
    node.check(KEY_OF_C)
    assert [ask.revision for ask in node.flush("c")] == [7]


def test_a_check_is_sent_on_once_at_most(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, NotOwner("c"))
    node.answer("c", node.flush("c")[0].id, NotOwner("b"))
    # From here on only help can be had.
    assert [ask.helps for ask in node.flush("b") + node.flush("c")] == [True]
    assert node.router.failover.rerouted == 1


def test_a_check_sent_on_to_a_link_that_is_down_is_decided_alone_when_no_help_is_to_be_had(node: Fixture) -> None:
    node.check(KEY_OF_B)
    (ask,) = node.flush("b")
    node.lose("c")
    node.answer("b", ask.id, NotOwner("c"))
    assert len(degraded(node)) == 1


@pytest.mark.parametrize("named", ["a", "nobody"])
def test_a_check_sent_to_nobody_by_a_ring_of_our_own_revision_asks_for_help(node: Fixture, named: str) -> None:
    # b says the key is ours, but our own ring does not; or it names a node that we do not know.
    node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, NotOwner(named))
    assert [ask.helps for ask in node.flush("c")] == [True]


def test_a_check_refused_by_an_older_ring_goes_by_ours(node: Fixture) -> None:
    node.check(KEY_OF_B)
    ask = node.flush("b")[0]
    node.join("a", "b", "c", revision=8)
    node.answer("b", ask.id, NotOwner("c"), revision=7)
    assert node.flush("c") == []
    assert [ask.revision for ask in node.flush("b")] == [8]


# Keys that are b's among a, b and c, and another's without b.
MOVES_TO_A, MOVES_TO_C = (
    next(key for key in keys_of("b", "a", "b", "c", count=100) if ring_of("a", "c").owner(key) == heir) for heir in "ac"
)


@pytest.mark.parametrize(("key", "named"), [(MOVES_TO_A, "a"), (MOVES_TO_A, "nobody"), (MOVES_TO_C, "nobody")])
def test_a_check_sent_to_nobody_we_know_by_a_newer_ring_waits_for_it(node: Fixture, key: str, named: str) -> None:
    node.check(key, 30)
    node.answer("b", node.flush("b")[0].id, NotOwner(named), revision=9)
    node.tick(TIMEOUT_NS - 1)
    node.join("a", "b", "c", revision=8)
    assert node.outcomes == []
    node.join("a", "c", revision=9)
    node.tick()
    if key == MOVES_TO_A:
        (outcome,) = node.outcomes
        assert isinstance(outcome, Verdict)
        assert (outcome.degraded, outcome.limit, outcome.remaining) == (False, 90, 60)
    else:
        node.answer("c", node.flush("c")[0].id, ALLOWED, revision=9)
        assert node.outcomes == [ALLOWED]


def test_a_check_waits_for_a_newer_ring_up_to_its_deadline(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.answer("b", node.flush("b")[0].id, NotOwner("nobody"), revision=9)
    node.tick(TIMEOUT_NS - 1)
    assert node.outcomes == []
    node.tick(1)
    assert len(degraded(node)) == 1
    node.join("a", "c", revision=9)
    assert len(node.outcomes) == 1


def test_checks_of_one_frame_may_go_different_ways(node: Fixture) -> None:
    for key in keys_of("b", "a", "b", "c", count=4):
        node.check(key)
    node.answer("b", node.flush("b")[0].id, ALLOWED, NotOwner("c"), UnknownRule(), NotOwner("nobody"))
    assert node.outcomes == [ALLOWED, UnknownRule()]
    assert sum(len(ask.checks) for name in "bc" for ask in node.flush(name)) == 2


# Asks of others.


def test_a_peers_checks_are_decided_in_their_order(node: Fixture) -> None:
    checks = [Check("api", KEY_OF_A, 60), Check("api", KEY_OF_A, 60), Check("none", KEY_OF_A), Check("api", KEY_OF_B)]
    answer = answer_of(node.asked(Ask(4, 7, checks)))
    first, second, third, fourth = answer.results
    assert (answer.id, answer.revision) == (4, 7)
    assert isinstance(first, Verdict)
    assert isinstance(second, Verdict)
    assert (first.allowed, second.allowed) == (True, False)
    assert (third, fourth) == (UnknownRule(), NotOwner("b"))


@pytest.mark.parametrize("revision", [1, 7])
def test_a_peer_with_an_older_ring_is_told_the_owner_at_once(node: Fixture, revision: int) -> None:
    answer = answer_of(node.asked(Ask(4, revision, [Check("api", KEY_OF_C)])))
    assert answer.results == [NotOwner("c")]


def test_a_peer_with_a_newer_ring_is_answered_at_once_for_what_is_ours_anyway(node: Fixture) -> None:
    answer = answer_of(node.asked(Ask(4, 8, [Check("api", KEY_OF_A)])))
    assert isinstance(answer.results[0], Verdict)


def test_a_peer_with_a_newer_ring_waits_until_ours_has_caught_up(node: Fixture) -> None:
    moved = next(key for key in keys_of("b", "a", "b", "c", count=50) if ring_of("a", "c").owner(key) == "a")
    answers = node.asked(Ask(4, 9, [Check("api", moved)]))
    node.router.tick(node.now_ns)
    node.join("a", "b", "c", revision=8)
    assert answers == []
    node.join("a", "c", revision=9)
    node.tick()
    assert isinstance(answer_of(answers).results[0], Verdict)
    node.tick(10 * TIMEOUT_NS)
    assert len(answers) == 1


def test_a_peer_with_a_newer_ring_waits_half_its_deadline_at_most(node: Fixture) -> None:
    answers = node.asked(Ask(4, 9, [Check("api", KEY_OF_B)]))
    node.router.tick(node.now_ns + TIMEOUT_NS // 2 - 1)
    assert answers == []
    node.router.tick(node.now_ns + TIMEOUT_NS // 2)
    assert answers == [Answer(4, 7, [NotOwner("b")])]


def test_only_so_many_peers_wait_the_others_are_answered_as_things_stand(node: Fixture) -> None:
    for _ in range(PARKED_MAX):
        assert node.asked(Ask(4, 9, [Check("api", KEY_OF_B)])) == []
    assert node.asked(Ask(5, 9, [Check("api", KEY_OF_B)])) == [Answer(5, 7, [NotOwner("b")])]


# Rings.


def test_without_a_ring_nothing_is_owned_and_nothing_hangs() -> None:
    node = Fixture(burst=5)
    verdict = node.check("k")
    assert isinstance(verdict, Verdict)
    assert (verdict.degraded, verdict.limit, verdict.remaining) == (True, 5, 4)
    assert node.asked(Ask(4, 0, [Check("api", "k")])) == [Answer(4, 0, [NotOwner("a")])]


def test_a_node_that_is_not_in_the_ring_passes_everything_on() -> None:
    node = Fixture("x")
    node.join("a", "b")
    assert all(isinstance(node.check(f"k{number}"), Forward) for number in range(20))
    assert node.carriers.keys() == {"a", "b"}


def test_links_open_to_new_members_and_close_to_gone_ones(node: Fixture) -> None:
    assert (set(node.carriers), node.closed) == ({"b", "c"}, [])
    node.join("a", "c", "d", revision=8)
    node.tick()
    assert (set(node.router.links), node.closed) == ({"c", "d"}, ["b"])
    assert set(node.carriers) == {"b", "c", "d"}
    # A node that comes back is dialled anew.
    node.join("a", "b", "c", "d", revision=9)
    assert (set(node.router.links), node.closed) == ({"b", "c", "d"}, [])


def test_a_member_with_another_address_is_dialled_there(node: Fixture) -> None:
    moved = Member("b", "elsewhere:8082", weight=1)
    link = node.link("b")
    for peer, redials in ((Member("b", "b:8082", "east"), 0), (moved, 1), (moved, 1)):
        members = {**ring_of("a", "c").members, "b": peer}
        node.router.set_ring(Ring(node.router.ring.revision + 1, members), node.now_ns)
        assert node.router.links["b"] is link
        assert (link.peer, node.carriers["b"].redials) == (peer, redials)


def test_a_leaver_may_answer_what_it_was_asked_and_is_then_let_go(node: Fixture) -> None:
    node.check(KEY_OF_B)
    node.check(MOVES_TO_C)
    link, (ask,) = node.link("b"), node.flush("b")
    node.join("a", "c", revision=8)
    node.tick()
    assert (node.outcomes, node.closed) == ([], [])
    node.router.on_reply(link, Answer(ask.id, 8, [ALLOWED, NotOwner("c")]), node.now_ns)
    assert node.outcomes == [ALLOWED]
    node.answer("c", node.flush("c")[0].id, ALLOWED)
    assert node.outcomes == [ALLOWED, ALLOWED]
    node.tick()
    assert node.closed == ["b"]


def test_what_a_leaver_was_not_asked_yet_goes_to_the_new_owner(node: Fixture) -> None:
    node.check(MOVES_TO_C, 3)
    node.check(MOVES_TO_A, 30)
    node.join("a", "c", revision=8)
    node.tick()
    assert node.closed == ["b"]
    (here,) = node.outcomes
    assert isinstance(here, Verdict)
    assert (here.degraded, here.remaining) == (False, 60)
    (ask,) = node.flush("c")
    assert (ask.revision, ask.checks) == (8, [Check("api", MOVES_TO_C, 3)])


def test_what_a_leaver_hangs_up_on_goes_to_the_new_owner(node: Fixture) -> None:
    node.check(MOVES_TO_C, 3)
    node.check(MOVES_TO_A, 30)
    link, _ = node.link("b"), node.flush("b")
    node.join("a", "c", revision=8)
    node.router.on_down(link, node.now_ns)
    node.tick()
    assert [outcome.degraded for outcome in node.outcomes if isinstance(outcome, Verdict)] == [False]
    assert len(node.flush("c")[0].checks) == 1
    assert node.closed == ["b"]


def test_what_a_leaver_is_named_the_owner_of_is_asked_of_it_before_it_is_let_go(node: Fixture) -> None:
    node.check(MOVES_TO_C)
    (ask,) = node.flush("b")
    node.join("a", "c", revision=8)
    node.answer("b", ask.id, NotOwner("b"), revision=9)
    node.tick()
    assert node.closed == []
    node.answer("b", node.flush("b")[0].id, ALLOWED)
    assert node.outcomes == [ALLOWED]
    node.tick()
    assert node.closed == ["b"]


def test_an_older_ring_is_refused(node: Fixture) -> None:
    node.join("a", revision=6)
    assert (node.router.ring.revision, len(node.router.ring.members), node.closed) == (7, 3, [])
    node.join("a", revision=7)
    assert len(node.router.ring.members) == 1


# Whatever happens.

peers = st.sampled_from("bcd")
steps = st.one_of(
    st.tuples(st.just("check"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
    st.tuples(st.just("flush"), peers),
    st.tuples(st.just("answer"), st.integers(0, 1_000)),
    st.tuples(st.just("down"), peers),
    st.tuples(st.just("up"), peers),
    st.tuples(st.just("ring"), st.sets(st.sampled_from("abcd"))),
)


class Script:
    """Plays steps to a router: peers that answer late, wrongly, too little or not at all, links and rings that go."""

    def __init__(self, chance: random.Random) -> None:
        self.node = Fixture()
        self.node.join("a", "b", "c")
        self.chance = chance
        self.revision = 7
        self.asked_ns: list[int] = []
        self.answered: set[int] = set()
        self.asks: list[tuple[Link, Ask]] = []

    def play(self, kind: str, value: Any) -> None:
        if kind in ("flush", "down", "up") and value not in self.node.router.links:
            return
        getattr(self, kind)(value)

    def check(self, value: int) -> None:
        outcome = self.node.router.check(Check("api", f"k{value}"), self.node.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = partial(self.reply, len(self.asked_ns))
            self.asked_ns.append(self.node.now_ns)

    def reply(self, number: int, outcome: Outcome) -> None:
        assert number not in self.answered
        assert self.node.now_ns - self.asked_ns[number] <= (WAYS_MAX + 1) * (TIMEOUT_NS + TICK_NS)
        self.answered.add(number)

    def wait(self, ticks: int) -> None:
        self.node.tick(ticks * TICK_NS)

    def flush(self, peer_id: str) -> None:
        self.asks += [(self.node.link(peer_id), ask) for ask in self.node.flush(peer_id)]

    def answer(self, value: int) -> None:
        if not self.asks:
            return
        link, ask = self.asks.pop(value % len(self.asks))
        count = max(0, len(ask.checks) + self.chance.randint(-1, 1))
        results: list[Result] = [ALLOWED, UnknownRule(), Unreachable(), *map(NotOwner, "abcdx")]
        revision = self.revision + self.chance.randint(-1, 1)
        answer = Answer(ask.id, revision, self.chance.choices(results, k=count))
        self.node.router.on_reply(link, answer, self.node.now_ns)

    def down(self, peer_id: str) -> None:
        self.node.lose(peer_id)

    def up(self, peer_id: str) -> None:
        self.node.router.on_up(self.node.link(peer_id), self.node.now_ns)

    def ring(self, names: set[str]) -> None:
        self.revision += 1
        self.node.join(*names, revision=self.revision, up=False)


@given(st.lists(steps, max_size=60), st.randoms(use_true_random=False))
def test_every_check_gets_exactly_one_outcome_within_a_few_timeouts(
    steps: list[tuple[str, Any]], chance: random.Random
) -> None:
    script = Script(chance)
    for kind, value in steps:
        script.play(kind, value)
    script.wait(50)
    assert script.answered == set(range(len(script.asked_ns)))
