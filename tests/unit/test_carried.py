"""Copies that answers carry: the replica that passes a check on has the copy when it has the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from limiter_node.core.forward import Forward
from limiter_node.core.model import FORGOTTEN_SPENT, MICROS, Answer, Ask, Check, Copies, Member, Op, Reply, Verdict
from limiter_node.core.outlet import Barrier, Outlet
from limiter_node.core.ring import Ring
from tests.routers import TICK_NS, Routers

if TYPE_CHECKING:
    from limiter_node.core.links import Link

API = {"rate": "1/d", "burst": 10, "lease": False}
INTERVAL_NS = 2 * TICK_NS  # of replication


class Fleet(Routers):
    """Routers whose frames of copies are noted; b owns the keys, a is their replica and asks for them."""

    def __init__(self, *names: str, **rules: Any) -> None:
        self.copies: list[tuple[str, Copies]] = []  # to whom, what
        super().__init__(*(names or ("a", "b")), **(rules or {"api": API}))
        self.loses = self._note
        holders = ((key, self.ring.holders(key)) for key in (f"k{number}" for number in range(1_000)))
        self.key, self.other, *_ = (key for key, who in holders if who == ("b", "a"))
        (self.of_a,) = self.keys("a")

    def _note(self, sender: str, receiver: str, request: object) -> bool:
        if isinstance(request, Copies):
            self.copies.append((receiver, request))
        return False

    def spent(self, name: str, key: str = "") -> int:
        """Millionths of a token that a node knows to be spent."""
        copy = self[name].engine.copy("api", key or self.key, self.now_ns)
        return copy.spent if copy else 0

    def sends(self, *checks: Check) -> tuple[Link, Ask]:
        """What a asks b; the ask is on its way."""
        link = self["a"].links["b"]
        for check in checks:
            forward = self["a"].check(check, self.now_ns)
            assert isinstance(forward, Forward)
            forward.reply = lambda _: None
        (ask,) = (request for request in self["a"].flush(link, self.now_ns) if isinstance(request, Ask))
        return link, ask

    def answers(self, ask: Ask, name: str = "a") -> Answer:
        """What b answers; it is on its way."""
        answers: list[Reply] = []
        self["b"].on_request(name, ask, self.now_ns, answers.append)
        (answer,) = answers
        assert isinstance(answer, Answer)
        return answer

    @property
    def outlet(self) -> Outlet:
        return self["b"].keeper.replication.outlet("a")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_the_replica_that_asks_has_the_copy_with_the_answer(fleet: Fleet) -> None:
    for spent in (1, 2, 3):
        verdict = fleet.ask("a", Check("api", fleet.key))
        assert isinstance(verdict, Verdict)
        assert verdict.allowed
        assert fleet.spent("a") == spent * MICROS


def test_it_counts_when_the_owner_dies_at_once(fleet: Fleet) -> None:
    for _ in range(4):
        fleet.ask("a", Check("api", fleet.key))
    fleet.kill("b")
    fleet.let_pass(50 * TICK_NS)
    assert fleet.remaining(fleet.key) == 6


def test_no_frame_is_sent_for_a_copy_that_was_carried_while_more_is_asked(fleet: Fleet) -> None:
    for _ in range(5):
        fleet.ask("a", Check("api", fleet.key))
        fleet.let_pass(TICK_NS)
    assert not fleet.copies
    assert fleet["b"].keeper.replication.sent == 5


def test_what_nobody_says_is_kept_is_sent_once_more_and_no_more(fleet: Fleet) -> None:
    fleet.ask("a", Check("api", fleet.key))
    assert fleet.outlet.is_busy
    assert list(fleet.outlet.buckets()) == [("api", fleet.key)]
    fleet.let_pass(4 * INTERVAL_NS)
    assert [[copy.key for copy in frame.copies] for _, frame in fleet.copies] == [[fleet.key]]
    assert not fleet.outlet.is_busy


def test_a_lost_answer_costs_no_copy(fleet: Fleet) -> None:
    _, ask = fleet.sends(Check("api", fleet.key))
    fleet.answers(ask)
    assert fleet.spent("a") == 0
    fleet.let_pass(4 * INTERVAL_NS)
    assert fleet.spent("a") >= MICROS


def test_an_answer_that_comes_too_late_is_not_said_to_be_kept(fleet: Fleet) -> None:
    link, ask = fleet.sends(Check("api", fleet.key))
    answer = fleet.answers(ask)
    link.pending.clear()
    fleet["a"].on_reply(link, answer, fleet.now_ns)
    assert (link.kept, fleet.spent("a")) == ([], 0)


def test_what_says_too_little_or_too_much_of_its_checks_is_not_kept(fleet: Fleet) -> None:
    for spent in ([], [MICROS], [MICROS] * 3):
        link, ask = fleet.sends(Check("api", fleet.key), Check("api", fleet.other))
        fleet["a"].on_reply(link, Answer(ask.id, 7, fleet.answers(ask).results, {}, spent), fleet.now_ns)
        assert (link.kept, fleet.spent("a")) == ([], 0)


def test_copies_of_other_nodes_are_sent() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.ask("c", Check("api", fleet.key))
    assert fleet.spent("a") == fleet.spent("c") == 0
    fleet.let_pass(2 * INTERVAL_NS)
    assert fleet.spent("a") == MICROS
    assert [receiver for receiver, _ in fleet.copies] == ["a"]


def test_only_grants_of_one_token_by_a_single_bucket_are_carried(fleet: Fleet) -> None:
    fleet.ask("b", Check("api", fleet.other, 10))
    _, ask = fleet.sends(
        Check("api", fleet.key, 2), Check("api", fleet.key), Check("api", fleet.other), Check("no-rule", fleet.key)
    )
    assert fleet.answers(ask).spent == [0, 3 * MICROS, 0, 0]
    assert fleet["b"].keeper.replication.sent == 1
    fleet.let_pass(2 * INTERVAL_NS)
    assert fleet.spent("a") == 3 * MICROS


@pytest.mark.parametrize(
    "rule",
    [
        {**API, "durability": "sync"},
        {"rate": "10/d", "algorithm": "sliding_log"},
        {"limits": [{"rate": "1/d", "burst": 10}, {"rate": "10/d", "burst": 20}]},
        {**API, "shadow": True},
    ],
)
def test_rules_of_another_kind_are_copied_as_ever(rule: dict[str, Any]) -> None:
    fleet = Fleet(api=rule)
    _, ask = fleet.sends(Check("api", fleet.key))
    replies: list[Reply] = []
    fleet["b"].on_request("a", ask, fleet.now_ns, replies.append)
    fleet.let_pass(2 * INTERVAL_NS)
    (answer,) = (reply for reply in replies if isinstance(reply, Answer))
    assert answer.spent == []
    assert fleet["a"].engine.copy("api", fleet.key, fleet.now_ns) is not None


def test_a_key_of_which_tokens_are_lent_is_copied_as_ever_and_no_other() -> None:
    fleet = Fleet(api={"rate": "10/s", "burst": 1_000, "lease": True})
    lease = Check("api", fleet.key, 100, op=Op.LEND, hold=("a", 1))
    assert fleet.answers(Ask(99, 7, [lease])).spent == []
    assert fleet["b"].engine.holds.lent
    answer = fleet.answers(Ask(100, 7, [Check("api", fleet.key), Check("api", fleet.other)]))
    assert answer.spent == [0, MICROS]


def forgotten_before(fleet: Fleet, link: Link, answer: Answer) -> None:
    """Have the key's owner forget it, and its replica, before an answer that carries its copy comes."""
    fleet.ask("b", Check("api", fleet.key, 0, op=Op.FORGET))
    fleet.ask("b", Check("api", fleet.of_a))  # all that is due goes with it
    assert [copy.spent for _, frame in fleet.copies for copy in frame.copies] == [FORGOTTEN_SPENT]
    fleet["a"].on_reply(link, answer, fleet.now_ns)
    assert fleet.spent("a") == MICROS


def test_what_is_to_be_forgotten_is_forgotten_though_an_answer_comes_after_that(fleet: Fleet) -> None:
    link, ask = fleet.sends(Check("api", fleet.key))
    forgotten_before(fleet, link, fleet.answers(ask))
    fleet.let_pass(INTERVAL_NS)
    fleet.ask("a", Check("api", fleet.other))  # says that the answer is kept
    assert link.kept == [ask.id + 1]  # and then that the other is, no more
    fleet.let_pass(INTERVAL_NS)
    assert (fleet.spent("a"), fleet.spent("b")) == (0, 0)
    assert fleet.spent("a", fleet.other) == MICROS


def test_what_is_forgotten_in_the_frame_that_it_was_granted_in_is_forgotten(fleet: Fleet) -> None:
    link, ask = fleet.sends(Check("api", fleet.key), Check("api", fleet.key, 0, op=Op.FORGET))
    answer = fleet.answers(ask)
    assert answer.spent == [MICROS, 0]
    fleet.ask("b", Check("api", fleet.of_a))  # all that is due goes with it
    fleet["a"].on_reply(link, answer, fleet.now_ns)
    assert fleet.spent("a") == MICROS
    fleet.let_pass(4 * INTERVAL_NS)
    assert (fleet.spent("a"), fleet.spent("b")) == (0, 0)


@pytest.mark.parametrize("intervals", [0, 1])
def test_it_is_forgotten_too_where_nobody_says_that_the_answer_is_kept(fleet: Fleet, intervals: int) -> None:
    link, ask = fleet.sends(Check("api", fleet.key))
    answer = fleet.answers(ask)
    fleet.let_pass(intervals * INTERVAL_NS)
    forgotten_before(fleet, link, answer)
    fleet.let_pass(4 * INTERVAL_NS)
    assert (fleet.spent("a"), fleet.spent("b")) == (0, 0)


def test_the_copy_is_in_the_plan_where_the_owner_has_the_bucket() -> None:
    fleet = Fleet(api={**API, "segments": {"premium": {"rate": "2/d", "burst": 20}}})
    fleet.ask("a", Check("api", fleet.key, segment="premium"))
    fleet.let_pass(2 * INTERVAL_NS)
    fleet.ask("a", Check("api", fleet.key))  # takes the bucket to another plan, and is not carried for that
    fleet.ask("a", Check("api", fleet.key))
    copies = [fleet[name].engine.copy("api", fleet.key, fleet.now_ns) for name in "ab"]
    assert [(copy.segment, copy.spent) for copy in copies if copy] == [("default", 3 * MICROS)] * 2


# What others wait for.


CHECKS, SPENT = [Check("api", "k"), Check("api", "l"), Check("api", "m")], [MICROS, 0, MICROS]
CARRIED = {("api", "k"), ("api", "m")}


def test_a_peer_is_past_a_barrier_when_it_has_what_was_carried_before() -> None:
    outlet, barrier = Outlet(), Barrier()
    outlet.carry(5, CHECKS, SPENT, 0)
    assert not outlet.is_past(barrier)
    assert outlet.due.keys() == CARRIED  # it may have been asked for on another way than the answer's
    outlet.carry(6, CHECKS, SPENT, 0)
    outlet.send(1, [(bucket, False) for bucket in CARRIED], 0)
    assert not outlet.is_past(barrier)
    del outlet.flight[1]
    assert outlet.is_past(barrier)
    assert not outlet.is_past(Barrier())


def test_a_node_that_leaves_has_not_told_what_is_still_carried() -> None:
    fleet = Fleet()
    replication = fleet["b"].keeper.replication
    assert replication.has_told(fleet.ring, set())
    fleet.ask("a", Check("api", fleet.key))
    assert not replication.has_told(fleet.ring, set())
    fleet.ask("a", Check("api", fleet.other))
    fleet.let_pass(4 * INTERVAL_NS)
    assert replication.has_told(fleet.ring, set())


def test_it_is_behind_for_as_long_as_nothing_is_kept() -> None:
    outlet = Outlet()
    outlet.carry(5, CHECKS, SPENT, 10)
    outlet.carry(6, CHECKS, SPENT, 20)
    assert outlet.confirmed_ns == 10
    outlet.on_kept([5], 30)
    assert outlet.confirmed_ns == 30
    outlet.on_kept([5, 7], 40)
    assert outlet.confirmed_ns == 30
    assert set(outlet.buckets()) == CARRIED


def test_a_peer_that_was_started_anew_is_told_by_the_survey_alone(fleet: Fleet) -> None:
    fleet.ask("a", Check("api", fleet.key))
    old = fleet.ring.members
    ring = Ring(8, {"a": Member("a", "a:8082", boot=9), "b": old["b"]})
    fleet["b"].set_ring(ring, fleet.now_ns)
    assert not fleet.outlet.carried
