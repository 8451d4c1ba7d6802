"""Denials that an owner promises, and that the node that asked says itself: as the owner would, and no longer.

A few routers and links that a test can cut; time passes when a test says so.
"""

from __future__ import annotations

from typing import Any

import pytest

from limiter_node.core import denials as denials_module
from limiter_node.core import promises as promises_module
from limiter_node.core.backends import parse_record
from limiter_node.core.forward import Forward
from limiter_node.core.model import Answer, Ask, Check, Forgotten, Op, Refunded, Verdict
from limiter_node.core.promises import LIFE_MAX_NS, longest_ns
from limiter_node.core.ring import Ring
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.core.shortcut import Shortcut
from tests.routers import TICK_NS, TIMEOUT_NS, Routers

MS = 1_000_000
LIFE_NS = longest_ns(TIMEOUT_NS)
API = {"rate": "10/s", "burst": 5}
SLOW = {"rate": "1/m", "burst": 5}


class Fleet(Routers):
    """Three routers, and a key of b's, which a is asked for."""

    def __init__(self, **rule: Any) -> None:
        super().__init__("a", "b", "c", api=rule or SLOW)
        (self.key,) = self.keys("b")

    def spend(self, cost: int = 5) -> None:
        verdict = self.check("b", cost)
        assert verdict.allowed

    def check(self, name: str = "a", cost: int = 1, segment: str | None = None) -> Verdict:
        outcome = self.ask(name, Check("api", self.key, cost, segment))
        assert isinstance(outcome, Verdict)
        return outcome

    def at_once(self, cost: int = 1, segment: str | None = None, name: str = "a") -> Verdict | None:
        """What a node says itself, if it does; what it would ask is not sent."""
        outcome = self[name].check(Check("api", self.key, cost, segment), self.now_ns)
        if isinstance(outcome, Verdict):
            return outcome
        self.discard(name)
        return None

    def discard(self, name: str) -> None:
        for link in self[name].links.values():
            link.outbox.clear()

    @property
    def asks_of_a(self) -> int:
        return sum(len(ask.checks) for sender, _, ask in self.asked if sender == "a")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def denied(fleet: Fleet) -> Fleet:
    """A fleet whose a has just been denied a check of b's key, for longer than any promise."""
    fleet.spend()
    assert not fleet.check().allowed
    return fleet


def test_who_hammers_costs_the_owner_a_question_now_and_then() -> None:
    fleet = Fleet()
    fleet.spend()
    before = fleet.asks_of_a
    for _ in range(10):
        for _ in range(1_000):
            assert not fleet.check().allowed
        fleet.let_pass(TICK_NS)
    # 100 ms of denials, each promised for half of a peer timeout and asked for anew before that is over.
    assert fleet.asks_of_a - before <= 5
    assert fleet["a"].engine.denials.told >= 9_990


def test_nothing_is_promised_of_a_key_that_another_check_of_the_frame_has_taken_to_another_segment() -> None:
    fleet = Fleet(rate="100/s", burst=5, segments={"free": {"rate": "10/m", "burst": 5}})
    fleet.spend()
    for segment in (None, "free"):
        forward = fleet["a"].check(Check("api", fleet.key, 3, segment), fleet.now_ns)
        assert isinstance(forward, Forward)
        forward.reply = lambda _: None
    fleet.talk()
    assert fleet.at_once(3) is None
    fleet.let_pass(60 * MS)
    # It refills by 10 a minute since; to look for what to promise has not taken it back to 100 a second.
    assert fleet.check("b", 0, "free").remaining == 0


def test_it_is_told_as_the_owner_would_tell_it_with_the_time_that_has_passed(denied: Fleet) -> None:
    for _ in range(3):
        denied.now_ns += 7 * MS
        assert denied.at_once() == denied.check("b")


def test_it_ends_when_the_token_is_back_and_not_before() -> None:
    fleet = Fleet(**API)
    fleet.spend()
    fleet.let_pass(80 * MS)
    denial = fleet.check()
    assert (denial.allowed, denial.retry_ns) == (False, 20 * MS)
    cut_ns = 20 * MS // denials_module.CLOCKS_SHARE
    fleet.now_ns += 20 * MS - cut_ns - 1
    told = fleet.at_once()
    assert told is not None
    assert (told.allowed, told.retry_ns) == (False, cut_ns + 1)
    fleet.now_ns += 1
    assert fleet.at_once() is None
    fleet.now_ns += cut_ns
    assert fleet.check().allowed


def test_it_is_counted_from_when_the_question_was_sent(fleet: Fleet) -> None:
    fleet.spend()
    outcome = fleet["a"].check(Check("api", fleet.key), fleet.now_ns)
    assert isinstance(outcome, Forward)
    outcome.reply = lambda _: None
    fleet.now_ns += 30 * MS  # on its way
    fleet.talk()
    fleet.now_ns += LIFE_NS - 31 * MS
    told = fleet.at_once()
    assert told is None or told.retry_ns > 0
    fleet.now_ns += MS
    assert fleet.at_once() is None


def test_in_the_last_part_of_its_life_one_check_asks_anew_and_the_others_do_not_wait(denied: Fleet) -> None:
    denied.now_ns += LIFE_NS * 9 // 10
    assert denied.at_once() is None
    assert [denied.at_once() is None for _ in range(3)] == [False, False, False]


def test_nothing_is_promised_where_less_could_be_had_or_another_cause_denies(fleet: Fleet) -> None:
    fleet.spend(2)
    assert not fleet.check(cost=4).allowed  # 3 are left
    assert fleet.at_once(cost=4) is None
    fleet.spend(3)
    assert not fleet.check(cost=4).allowed
    assert fleet.at_once(cost=4) is not None
    assert fleet.at_once(cost=1) is None  # it was not asked for
    assert not fleet.check(cost=9).allowed  # more than it can ever hold
    told = fleet.at_once(cost=9)
    assert told is not None
    assert told.retry_ns == -1


def test_nothing_is_promised_while_tokens_are_set_aside(fleet: Fleet) -> None:
    fleet.spend(3)
    fleet["b"].engine.holds.add(("api", fleet.key), Check("api", fleet.key, 2, hold=("some", 0)), fleet.now_ns)
    assert not fleet.check().allowed
    assert fleet.at_once() is None


def test_what_the_backend_turns_away_and_what_a_shadow_rule_would_deny_is_asked_each_time() -> None:
    fleet = Fleet(**SLOW, backend="orders")
    document = {"multiplier": 1.0, "priorities": {"5": 0.0}}
    fleet["b"].engine.backends.set_record("orders", parse_record("orders", document), fleet.now_ns)
    assert fleet.check().reason == "backend_overload"
    assert fleet.at_once() is None
    shadow = Fleet(**SLOW, shadow=True)
    shadow.spend()
    assert shadow.check().would_allow is False
    assert shadow.at_once() is None


def test_the_backends_gate_here_counts_what_is_denied_here() -> None:
    fleet = Fleet(**SLOW, backend="orders", priority=3)
    fleet.spend()
    fleet.check()
    gate = fleet["a"].engine.backends.gate("orders")
    before = gate.offered[3]
    assert fleet.at_once()
    assert gate.offered[3] == before + 1
    assert not fleet.check(cost=0).allowed
    assert fleet.at_once(cost=0)  # a peek asks nothing of the backend
    assert gate.offered[3] == before + 1


CHANGES = {
    "rule": lambda node, now_ns: node.engine.set_rule("api", parse_rule("api", {**SLOW, "burst": 9}), now_ns),
    "other rule": lambda node, now_ns: node.engine.set_rule("other", parse_rule("other", SLOW), now_ns),
    "entry": lambda node, now_ns: node.engine.set_entry("k", parse_key_entry("k", {"segment": "x"}), now_ns),
    "multiplier": lambda node, now_ns: node.engine.rescale("orders", now_ns),
    "ring": lambda node, now_ns: node.set_ring(Ring(8, node.ring.members), now_ns),
    "link": lambda node, now_ns: node.on_down(node.links["b"], now_ns),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_it_goes_by_ends_it_when_it_changes(denied: Fleet, change: str) -> None:
    assert denied.at_once()
    CHANGES[change](denied["a"], denied.now_ns)
    outcome = denied["a"].check(Check("api", denied.key), denied.now_ns)
    assert isinstance(outcome, Forward)


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("op", [Op.REFUND, Op.FORGET])
def test_a_refund_and_a_reset_wait_for_its_end_and_then_every_node_grants(denied: Fleet, op: Op, name: str) -> None:
    outcomes = denied.begun(name, Check("api", denied.key, 2, op=op))
    while not outcomes:
        told = denied.at_once()
        assert told is None or not told.allowed
        assert not denied.check("c").allowed  # so it is nowhere there yet
        denied.let_pass(TICK_NS)
    assert isinstance(outcomes[0], Refunded | Forgotten)
    assert denied.at_once() is None
    assert denied.check("a").allowed
    assert denied.check("c").allowed


def test_who_gives_back_waits_no_longer_than_a_promise_lasts_and_the_next_one_not_at_all(denied: Fleet) -> None:
    began_ns = denied.now_ns
    refund = Check("api", denied.key, 1, op=Op.REFUND)
    assert isinstance(denied.ask("c", refund), Refunded)
    assert denied.now_ns - began_ns <= LIFE_NS + TICK_NS
    assert denied.check().allowed
    for _ in range(3):
        assert not denied.check().allowed
        assert denied.begun("c", refund) != []  # nothing is promised of it for a while
        assert denied.check().allowed
    denied.let_pass(promises_module.CONTESTED_NS)
    denied.check("b", cost=5)
    assert not denied.check().allowed
    assert denied.at_once()


def test_no_promise_is_longer_than_a_peer_waits_nor_than_a_refund_should() -> None:
    assert [longest_ns(ms * MS) for ms in (20, 100, 2_000)] == [10 * MS, LIFE_MAX_NS, LIFE_MAX_NS]


def test_a_refund_of_another_key_waits_for_nothing(denied: Fleet) -> None:
    key = next(key for key in (f"x{n}" for n in range(1_000)) if denied.ring.owner(key) == "b")
    assert denied.begun("c", Check("api", key, 1, op=Op.REFUND)) != []


def test_a_check_that_takes_the_bucket_to_another_plan_waits_for_its_end() -> None:
    fleet = Fleet(**SLOW, segments={"premium": {"rate": "1000/s", "burst": 50}})
    fleet.spend()
    assert not fleet.check().allowed
    outcomes = fleet.begun("c", Check("api", fleet.key, 1, "premium"))
    assert outcomes == []
    while not outcomes:
        assert not fleet.check("b").allowed
        fleet.let_pass(TICK_NS)
    (verdict,) = outcomes
    assert isinstance(verdict, Verdict)
    assert verdict.allowed
    assert fleet.at_once() is None
    assert fleet.begun("c", Check("api", fleet.key, 1, "premium")) != []  # and the next one does not wait


def test_the_short_way_sees_that_the_bucket_must_not_move() -> None:
    fleet = Fleet(**SLOW, segments={"free": {"rate": "1/h", "burst": 2}})
    fleet.check("b", 2, "free")
    assert not fleet.check("a", 1, "free").allowed
    assert fleet.at_once(1, "free")
    assert Shortcut(fleet["b"]).check("api", fleet.key, fleet.now_ns) is None
    outcomes = fleet.begun("b", Check("api", fleet.key))
    assert outcomes == []
    fleet.let_pass(LIFE_NS + TICK_NS)
    assert outcomes[0].allowed  # type: ignore[union-attr]


def test_no_promise_outlasts_the_right_to_decide(fleet: Fleet) -> None:
    fleet.spend()
    owner = fleet["b"].keeper
    owner.fence.right_until_ns = owner.free_until_ns = fleet.now_ns + 10 * MS
    answers: list[Any] = []
    fleet["b"].on_request("a", Ask(1, 7, [Check("api", fleet.key)]), fleet.now_ns, answers.append)
    assert answers[0].promises == {0: 10 * MS}


def test_a_new_owner_gives_nothing_back_before_what_its_predecessor_promised_is_over(denied: Fleet) -> None:
    denied.ring = Ring(8, {name: member for name, member in denied.ring.members.items() if name != "b"})
    for node in denied.alive:
        node.set_ring(denied.ring, denied.now_ns)
    heir = denied.ring.owner(denied.key)
    assert heir is not None
    began_ns = denied.now_ns
    assert isinstance(denied.ask(heir, Check("api", denied.key, 2, op=Op.REFUND)), Refunded)
    assert denied.now_ns - began_ns >= LIFE_NS
    assert denied.check().allowed


@pytest.mark.parametrize("op", [Op.REFUND, Op.FORGET])
def test_nothing_is_promised_of_what_another_check_of_the_frame_gives_back(fleet: Fleet, op: Op) -> None:
    fleet.spend()
    answers: list[Any] = []
    asked = [Check("api", fleet.key), Check("api", fleet.key, 2, op=op)]
    fleet["b"].on_request("a", Ask(1, 7, asked), fleet.now_ns, answers.append)
    assert not answers[0].results[0].allowed
    assert answers[0].promises == {}
    assert fleet.check().allowed


def test_a_helper_promises_nothing(fleet: Fleet) -> None:
    fleet.spend()
    answers: list[Any] = []
    fleet["b"].on_request("a", Ask(1, 7, [Check("api", fleet.key)], helps=True), fleet.now_ns, answers.append)
    assert answers == [Answer(1, 7, answers[0].results)]


def test_a_promise_of_another_ring_or_beyond_the_answer_is_none(fleet: Fleet) -> None:
    fleet.spend()
    node = fleet["a"]
    for revision, index in ((6, 0), (8, 0), (7, 1)):
        outcome = node.check(Check("api", fleet.key), fleet.now_ns)
        assert isinstance(outcome, Forward)
        outcome.reply = lambda _: None
        (ask,) = (ask for ask in node.flush(node.links["b"], fleet.now_ns) if isinstance(ask, Ask))
        verdict = Verdict(False, 5, 0, 300 * MS, 60 * MS, 300)
        node.on_reply(node.links["b"], Answer(ask.id, revision, [verdict], {index: 40 * MS}), fleet.now_ns)
        assert fleet.at_once() is None


def test_both_sides_are_bounded_and_forget_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denials_module, "DENIALS_MAX", 3)
    monkeypatch.setattr(promises_module, "PROMISES_MAX", 4)
    fleet = Fleet()
    keys = [key for key in (f"x{n}" for n in range(200)) if fleet.ring.owner(key) == "b"][:10]
    for key in keys:
        fleet.ask("b", Check("api", key, 5))
        fleet.ask("a", Check("api", key))
    assert len(fleet["a"].engine.denials.known) == 3
    assert len(fleet["b"].keeper.commitments.promises.made) == 4
    fleet.let_pass(LIFE_NS + TICK_NS)
    assert not fleet["a"].engine.denials.known
    promises = fleet["b"].keeper.commitments.promises
    assert not promises.made
    assert not promises.movable
    fleet.spend()
    assert not fleet.check().allowed
    assert fleet.at_once()
