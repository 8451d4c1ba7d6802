"""Atomic batches on a few routers: all or nothing, whatever is lost and whoever dies in between."""

from __future__ import annotations

from typing import Any

import pytest

from limiter_node.cluster import wire
from limiter_node.core.adaptive.evidence import Decision
from limiter_node.core.atomic import RETRY_NS
from limiter_node.core.forward import Forward
from limiter_node.core.holds import ASK_AGAIN_TIMEOUTS, RESERVED_TIMEOUTS
from limiter_node.core.model import (
    BATCHES,
    CHECKS_PER_FRAME_MAX,
    HOLDS_MAX,
    Answer,
    Ask,
    Check,
    Copies,
    Op,
    Outcome,
    Refunded,
    Reply,
    Request,
    Settled,
    UnknownRule,
    Unreachable,
    Verdict,
)
from limiter_node.core.rules import parse_rule
from tests.routers import TIMEOUT_NS, Routers

BURST = 10
ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")
DAILY = {"rate": "1/d", "burst": BURST}
RESERVED_NS = RESERVED_TIMEOUTS * TIMEOUT_NS
SETTLED_NS = RESERVED_NS + (ASK_AGAIN_TIMEOUTS + 4) * TIMEOUT_NS
"""By then all that was set aside is spent or given back."""


@pytest.fixture
def fleet() -> Routers:
    return Routers("a", "b", "c", api=DAILY)


def one_each(fleet: Routers, cost: int = 1) -> list[Check]:
    return [Check("api", key, cost) for key in fleet.keys("a", "b", "c")]


def lefts(fleet: Routers, checks: list[Check]) -> list[int]:
    return [fleet.remaining(check.key, check.rule) for check in checks]


def verdicts(outcomes: list[Outcome]) -> list[Verdict]:
    assert all(isinstance(outcome, Verdict) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Verdict)]


def losing(*ops: Op) -> Any:
    """Lose all such questions between nodes."""

    def loses(source: str, target: str, request: Request) -> bool:
        return isinstance(request, Ask) and any(check.op in ops for check in request.checks)

    return loses


# Nothing fails.


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_a_batch_that_all_allow_is_spent_at_all_of_its_keys(fleet: Routers, asked: str) -> None:
    checks = one_each(fleet, 3)
    batch = fleet.batch(asked, checks)
    assert batch.is_allowed
    assert [(verdict.allowed, verdict.remaining) for verdict in verdicts(batch.outcomes)] == [(True, BURST - 3)] * 3
    fleet.let_pass(TIMEOUT_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST - 3] * 3


def test_a_batch_that_one_denies_is_spent_at_none_and_each_result_says_why(fleet: Routers) -> None:
    checks = one_each(fleet, 3)
    fleet.ask("a", Check("api", checks[1].key, BURST - 2))
    batch = fleet.batch("a", checks)
    assert not batch.is_allowed
    first, denied, last = verdicts(batch.outcomes)
    assert (denied.allowed, denied.reason, denied.remaining) == (False, None, 2)
    assert denied.retry_ns > 0
    for verdict in (first, last):
        assert (verdict.allowed, verdict.reason, verdict.remaining, verdict.retry_ns) == (False, "batch", BURST, 0)
        assert verdict.reset_ns == 0
    # When the caller hears of it, nothing is set aside any more at the owners.
    assert lefts(fleet, checks) == [BURST, 2, BURST]
    fleet.let_pass(TIMEOUT_NS)
    assert fleet.held == {}


def test_one_node_alone_decides_at_once() -> None:
    node = Routers("a", api=DAILY)
    checks = [Check("api", "k", 4), Check("api", "l", 1)]
    assert node.begin("a", checks).is_allowed
    batch = node.begin("a", [Check("api", "l", 9), Check("api", "k", 7)])
    assert (batch.is_done, batch.is_allowed) == (True, False)
    assert lefts(node, checks) == [BURST - 4, BURST - 1]
    assert node.held == {}


def test_the_same_key_twice_needs_the_tokens_of_both(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    assert not fleet.batch("a", [Check("api", key, 6), Check("api", key, 6)]).is_allowed
    assert fleet.remaining(key) == BURST
    batch = fleet.batch("a", [Check("api", key, 6), Check("api", key, 4)])
    assert batch.is_allowed
    assert [verdict.remaining for verdict in verdicts(batch.outcomes)] == [0, 0]
    assert fleet.remaining(key) == 0


def test_the_same_key_a_thousand_times_is_one_hold() -> None:
    fleet = Routers("a", "b", "c", api={"rate": "1/d", "burst": CHECKS_PER_FRAME_MAX})
    key = fleet.keys("b")[0]
    assert fleet.batch("a", [Check("api", key)] * CHECKS_PER_FRAME_MAX).is_allowed
    assert fleet.remaining(key) == 0


def test_a_peek_spends_nothing_and_has_to_be_allowed_too(fleet: Routers) -> None:
    peeked, spent = fleet.keys("b", "c")
    batch = fleet.batch("a", [Check("api", peeked, 0), Check("api", spent)])
    assert batch.is_allowed
    assert [verdict.remaining for verdict in verdicts(batch.outcomes)] == [BURST, BURST - 1]
    fleet.ask("a", Check("api", peeked, BURST))
    batch = fleet.batch("a", [Check("api", peeked, 0), Check("api", spent)])
    assert not batch.is_allowed
    assert [verdict.reason for verdict in verdicts(batch.outcomes)] == [None, "batch"]
    assert fleet.remaining(spent) == BURST - 1
    assert fleet.batch("a", [Check("api", spent, 0)]).is_allowed


def test_a_doomed_batch_only_peeks(fleet: Routers) -> None:
    checks = one_each(fleet)
    batch = fleet.batch("a", checks, is_doomed=True)
    assert not batch.is_allowed
    assert [(v.allowed, v.reason, v.remaining) for v in verdicts(batch.outcomes)] == [(False, "batch", BURST)] * 3
    assert not fleet.asks(Op.RESERVE)
    assert fleet.begin("a", [], is_doomed=True).is_done


@pytest.mark.parametrize("allows_unknown", [False, True])
def test_a_rule_that_its_owner_does_not_know_is_as_the_node_is_told(fleet: Routers, allows_unknown: bool) -> None:
    known, unknown = fleet.keys("a", "b")
    checks = [Check("api", known), Check("nowhere", unknown)]
    batch = fleet.batch("a", checks, allows_unknown=allows_unknown)
    assert batch.is_allowed is allows_unknown
    assert batch.outcomes[1] == UnknownRule()
    assert fleet.remaining(known) == BURST - allows_unknown


def test_a_shadow_rule_lets_the_batch_go_on_and_tells_what_it_would_have_said() -> None:
    fleet = Routers("a", "b", "c", api=DAILY, quiet={**DAILY, "shadow": True})
    plain, shadow = fleet.keys("b", "c")
    batch = fleet.batch("a", [Check("api", plain), Check("quiet", shadow, 7)])
    assert (batch.is_allowed, verdicts(batch.outcomes)[1].would_allow) == (True, True)
    batch = fleet.batch("a", [Check("api", plain), Check("quiet", shadow, 7)])
    assert (batch.is_allowed, verdicts(batch.outcomes)[1].would_allow) == (True, False)
    assert (fleet.remaining(plain), fleet.remaining(shadow, "quiet")) == (BURST - 2, BURST - 7)
    batch = fleet.batch("a", [Check("api", plain, BURST), Check("quiet", shadow)])
    denied, held_back = verdicts(batch.outcomes)
    assert (denied.allowed, denied.reason) == (False, None)
    assert (held_back.allowed, held_back.would_allow, held_back.reason) == (False, True, "batch")


def test_several_limits_of_any_algorithm_are_set_aside_and_given_back() -> None:
    limits = [
        {"rate": "10/h"},
        {"rate": "8/d", "algorithm": "fixed_window"},
        {"rate": "9/d", "algorithm": "sliding_log"},
    ]
    fleet = Routers("a", "b", "c", api=DAILY, many={"limits": limits})
    plain, many = fleet.keys("b", "c")
    assert fleet.batch("a", [Check("api", plain), Check("many", many, 5)]).is_allowed
    assert not fleet.batch("a", [Check("api", plain), Check("many", many, 4)]).is_allowed
    assert not fleet.batch("a", [Check("api", plain, BURST), Check("many", many, 3)]).is_allowed
    assert fleet.remaining(many, "many") == 3
    assert fleet.batch("a", [Check("api", plain), Check("many", many, 3)]).is_allowed


def test_a_thousand_checks_take_as_many_frames_as_a_plain_batch_at_each_stage(fleet: Routers) -> None:
    checks = [Check("api", f"user:{number}") for number in range(CHECKS_PER_FRAME_MAX)]
    assert fleet.batch("a", checks).is_allowed
    fleet.let_pass(TIMEOUT_NS)
    assert {op: len(fleet.asks(op)) for op in (Op.RESERVE, Op.COMMIT, Op.CONFIRM)} == {
        Op.RESERVE: 2,
        Op.COMMIT: 0,  # a node commits at itself, where it finds a name for that
        Op.CONFIRM: 2,
    }
    assert fleet.held == {}


def test_what_a_plain_check_costs_on_the_wire_grows_by_a_byte() -> None:
    one, two = (len(wire.encode(Ask(1, 7, [Check("api", "user:42")] * count))) for count in (1, 2))
    assert two - one == 17


# What is set aside.


def test_what_is_set_aside_is_nobody_elses_until_it_is_given_back(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    owner = fleet["b"]
    held = Check("api", key, 7, op=Op.RESERVE, hold=("batch", 0))
    verdict = fleet.ask("a", held)
    assert isinstance(verdict, Verdict)
    assert (verdict.allowed, verdict.remaining) == (True, 3)
    assert fleet.remaining(key) == 3
    assert owner.engine.holds.tokens == {("api", key): 7}
    denied = fleet.ask("a", Check("api", key, 4))
    assert isinstance(denied, Verdict)
    assert (denied.allowed, denied.remaining) == (False, 3)
    assert denied.retry_ns > 0
    granted = fleet.ask("a", Check("api", key, 2))
    assert isinstance(granted, Verdict)
    assert (granted.allowed, granted.remaining) == (True, 1)
    fleet.ask("a", Check("api", key, 0, op=Op.CANCEL, hold=("batch", 0)))
    assert fleet.remaining(key) == 8
    fleet.ask("a", Check("api", key, 0, op=Op.CONFIRM, hold=("batch", 0)))  # too late: it has ended
    assert fleet.remaining(key) == 8
    late = fleet.ask("a", held)
    assert isinstance(late, Verdict)
    assert (late.allowed, late.reason) == (False, "batch")


def test_what_a_check_of_a_frame_sets_aside_is_not_granted_to_a_later_one(fleet: Routers) -> None:
    key, router = fleet.keys("b")[0], fleet["b"]
    checks = [Check("api", key), Check("api", key, BURST - 1, op=Op.RESERVE, hold=("batch", 0)), Check("api", key)]
    replies: list[Reply] = []
    router.on_request("a", Ask(1, router.ring.revision, checks), fleet.now_ns, replies.append)
    fleet.let_pass(TIMEOUT_NS)  # the reservation's copy is to arrive
    (answer,) = replies
    assert isinstance(answer, Answer)
    assert [isinstance(result, Verdict) and result.allowed for result in answer.results] == [True, True, False]


def test_a_reservation_asked_for_again_is_one(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    held = Check("api", key, 7, op=Op.RESERVE, hold=("batch", 0))
    assert fleet.ask("a", held) == fleet.ask("a", held) == fleet.ask("c", held)
    for _ in range(2):
        fleet.ask("a", Check("api", key, 0, op=Op.CONFIRM, hold=("batch", 0)))
    assert fleet.remaining(key) == BURST - 7


def test_a_key_has_so_many_holds_at_most() -> None:
    node = Routers("a", api={"rate": "1/d", "burst": 1_000_000})
    for number in range(HOLDS_MAX):
        assert node["a"].check(Check("api", "k", 1, op=Op.RESERVE, hold=(f"{number}", 0)), node.now_ns).allowed  # type: ignore[union-attr]
    full = node.ask("a", Check("api", "k", 1, op=Op.RESERVE, hold=("more", 0)))
    assert isinstance(full, Verdict)
    assert (full.allowed, full.reason) == (False, "batch")


def test_a_cost_beyond_what_the_key_can_ever_hold_is_never_to_be_tried_again(fleet: Routers) -> None:
    batch = fleet.batch("a", one_each(fleet, BURST + 1))
    assert [verdict.retry_ns for verdict in verdicts(batch.outcomes)] == [-1] * 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_set_aside_is_spent_though_numbers_that_were_cut_have_no_room_for_it(algorithm: str) -> None:
    before, cut = ({"rate": f"{count}/d", "algorithm": algorithm} for count in (BURST, 5))
    node = Routers("a", api=before)
    engine, confirm = node["a"].engine, Check("api", "k", 0, op=Op.CONFIRM, hold=("batch", 0))
    for place, cost in enumerate((4, 3)):
        node.ask("a", Check("api", "k", cost, op=Op.RESERVE, hold=("batch", place)))
    engine.set_rule("api", parse_rule("api", cut), node.now_ns)
    denied = node.ask("a", Check("api", "k"))
    assert isinstance(denied, Verdict)
    assert (denied.allowed, denied.remaining) == (False, 0)
    assert denied.retry_ns > 0
    node.ask("a", confirm)
    assert (node.held, node.remaining("k")) == ({}, 0)
    engine.set_rule("api", parse_rule("api", before), node.now_ns)
    assert node.remaining("k") == BURST - 7


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_set_aside_is_spent_though_the_key_has_spent_more_by_another_segments_numbers(algorithm: str) -> None:
    node = Routers("a", api={"rate": "3/h", "algorithm": algorithm, "segments": {"premium": {"rate": "10/d"}}})
    node.ask("a", Check("api", "k", 2, op=Op.RESERVE, hold=("batch", 0)))
    premium = node.ask("a", Check("api", "k", 5, "premium"))
    assert isinstance(premium, Verdict)
    assert (premium.allowed, premium.remaining) == (True, 3)
    node.ask("a", Check("api", "k", 0, op=Op.CONFIRM, hold=("batch", 0)))
    assert node.held == {}
    left = node.ask("a", Check("api", "k", 0, "premium"))
    assert isinstance(left, Verdict)
    assert left.remaining == 3


def test_a_rule_that_is_deleted_meanwhile_takes_its_holds_along(fleet: Routers) -> None:
    checks = one_each(fleet)
    fleet.loses = losing(Op.CONFIRM)
    assert fleet.batch("a", checks).is_allowed
    for node in fleet.alive:
        node.engine.set_rule("api", None, fleet.now_ns)
    assert fleet.held == {}
    fleet.let_pass(SETTLED_NS)


def test_a_reset_leaves_nothing_set_aside(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    fleet.ask("a", Check("api", key, 7, op=Op.RESERVE, hold=("batch", 0)))
    fleet.ask("a", Check("api", key, op=Op.FORGET))
    fleet.let_pass(TIMEOUT_NS)
    assert fleet.held == {}
    assert fleet.remaining(key) == BURST


# Something fails.


def test_whoever_asks_first_settles_a_batch(fleet: Routers) -> None:
    spent, lapsed = fleet.keys("b", "b")
    for name, first in ((spent, Op.COMMIT), (lapsed, Op.RESOLVE)):
        assert fleet.ask("a", Check(BATCHES, name, 0, op=first)) == Settled(name == spent)
    fleet.kill("b")  # the replica knew before anybody was told
    fleet.let_pass(TIMEOUT_NS)
    for name in (spent, lapsed):
        for op in (Op.COMMIT, Op.RESOLVE):
            assert fleet.ask("a", Check(BATCHES, name, 0, op=op)) == Settled(name == spent)


def test_a_batch_whose_node_dies_before_the_commit_is_given_back_when_its_time_is_over(fleet: Routers) -> None:
    checks = one_each(fleet, 3)
    fleet.begin("a", checks)
    fleet["a"].batches.go_on = lambda now_ns: None  # type: ignore[method-assign]  # it gets no further
    fleet.talk()
    assert set(fleet.held) == {"a", "b", "c"}
    fleet.kill("a")
    fleet.let_pass(RESERVED_NS - 3 * TIMEOUT_NS)
    assert fleet.held
    fleet.let_pass(SETTLED_NS - RESERVED_NS + 3 * TIMEOUT_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST] * 3


def test_a_batch_whose_node_dies_right_after_the_commit_is_spent_at_all_of_its_keys(fleet: Routers) -> None:
    checks = one_each(fleet, 3)
    fleet.loses = losing(Op.CONFIRM)
    assert fleet.batch("a", checks).is_allowed
    fleet.kill("a")
    assert set(fleet.held) == {"b", "c"}
    fleet.let_pass(SETTLED_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST - 3] * 3


@pytest.mark.parametrize("victim", ["b", "c"])
def test_an_owner_that_dies_with_a_reservation_is_replaced_by_its_replica(fleet: Routers, victim: str) -> None:
    checks = one_each(fleet, 3)
    fleet.loses = losing(Op.CONFIRM, Op.COMMIT)
    batch = fleet.begin("a", checks)
    fleet.talk()
    fleet.kill(victim)
    fleet.loses = lambda *_: False
    fleet.let_pass(SETTLED_NS)
    assert batch.is_done
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST - 3 * batch.is_allowed] * 3


def test_an_owner_that_cannot_be_reached_refuses_the_batch_and_gives_nothing_of_its_share(fleet: Routers) -> None:
    checks = one_each(fleet)
    fleet.loses = lambda *_: True
    fleet.let_pass(TIMEOUT_NS)
    batch = fleet.batch("a", checks)
    assert not batch.is_allowed
    for verdict in verdicts(batch.outcomes):
        assert (verdict.allowed, verdict.degraded, verdict.reason) == (False, True, "unreachable")


def test_a_rule_that_allows_when_unreachable_does_so_in_a_batch() -> None:
    fleet = Routers("a", "b", "c", api=DAILY, lax={**DAILY, "on_unreachable": "allow"})
    mine, other = fleet.keys("a", "b")

    def loses(source: str, target: str, request: Request) -> bool:
        return isinstance(request, Ask) and any(check.rule == "lax" for check in request.checks)

    fleet.loses = loses
    batch = fleet.batch("a", [Check("api", mine), Check("lax", other)])
    assert batch.is_allowed
    assert [verdict.degraded for verdict in verdicts(batch.outcomes)] == [False, True]
    assert fleet.remaining(mine) == BURST - 1


def test_a_commit_that_nobody_answers_is_told_as_refused_and_found_out_by_the_holders(fleet: Routers) -> None:
    checks = one_each(fleet)
    fleet["a"].batches._new_name = lambda now_ns: fleet.keys("b")[0]  # type: ignore[method-assign]
    fleet.loses = losing(Op.COMMIT)
    batch = fleet.batch("a", checks)
    assert not batch.is_allowed
    for verdict in verdicts(batch.outcomes):
        assert (verdict.reason, verdict.degraded, verdict.retry_ns) == ("unreachable", True, RETRY_NS)
    assert fleet.held
    fleet.let_pass(SETTLED_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST] * 3


def test_a_batch_that_came_too_late_to_commit_is_refused(fleet: Routers) -> None:
    checks = one_each(fleet)
    name = fleet.keys("b")[0]
    fleet["a"].batches._new_name = lambda now_ns: name  # type: ignore[method-assign]
    assert fleet.ask("c", Check(BATCHES, name, 0, op=Op.RESOLVE)) == Settled(False)
    assert not fleet.batch("a", checks).is_allowed
    fleet.let_pass(SETTLED_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST] * 3


def test_with_durability_sync_a_reservation_without_its_copy_says_so() -> None:
    fleet = Routers("a", "b", "c", api={**DAILY, "durability": "sync"})
    checks = one_each(fleet)
    batch = fleet.batch("a", checks)
    assert batch.is_allowed
    assert not any(verdict.degraded for verdict in verdicts(batch.outcomes))
    fleet.kill("c")
    fleet.let_pass(2 * TIMEOUT_NS)
    batch = fleet.batch("a", checks)
    assert batch.is_allowed
    assert any(verdict.degraded for verdict in verdicts(batch.outcomes))
    fleet.let_pass(SETTLED_NS)
    assert lefts(fleet, checks) == [BURST - 2] * 3


def to(target: str, *frames: type) -> Any:
    """Lose all such frames to a node."""
    return lambda source, where, request: where == target and isinstance(request, frames)


def key_held_by(fleet: Routers, owner: str, replica: str) -> str:
    return next(key for key in map(str, range(10_000)) if fleet.ring.holders(key) == (owner, replica))


def test_a_reservation_goes_without_its_copy_where_that_does_not_arrive_and_is_not_degraded_for_it(
    fleet: Routers,
) -> None:
    key = key_held_by(fleet, "b", "c")
    fleet.loses = to("c", Copies)
    verdict = fleet.ask("a", Check("api", key, 3, op=Op.RESERVE, hold=("batch", 0)))
    assert isinstance(verdict, Verdict)
    assert (verdict.allowed, verdict.degraded) == (True, False)


def test_a_settlement_is_told_to_nobody_before_its_copy_has_arrived_or_the_replica_is_gone(fleet: Routers) -> None:
    name = key_held_by(fleet, "b", "c")
    fleet.loses = to("c", Copies)
    for op in (Op.COMMIT, Op.RESOLVE, Op.COMMIT):
        assert fleet.ask("a", Check(BATCHES, name, 0, op=op)) == Unreachable()
    fleet.kill("c")
    fleet.let_pass(2 * TIMEOUT_NS)
    for op in (Op.RESOLVE, Op.COMMIT):
        assert fleet.ask("a", Check(BATCHES, name, 0, op=op)) == Settled(True)


def test_a_node_that_loses_its_right_to_decide_forgets_what_it_has_settled_and_told_nobody(fleet: Routers) -> None:
    name = key_held_by(fleet, "b", "c")
    fleet.loses = lambda source, target, request: "b" in (source, target)  # b is cut off
    told: list[Outcome] = []
    draft = fleet["b"].keeper.decide(Check(BATCHES, name, 0, op=Op.COMMIT), fleet.now_ns)
    assert isinstance(draft, Forward)
    draft.reply = told.append
    fleet.let_pass(2 * TIMEOUT_NS)
    assert told == [Unreachable()]
    assert fleet.ask("a", Check(BATCHES, name, 0, op=Op.RESOLVE)) == Settled(False)
    fleet.loses = lambda *_: False
    fleet.let_pass(5 * TIMEOUT_NS)
    assert fleet.ask("b", Check(BATCHES, name, 0, op=Op.COMMIT)) == Settled(False)


def test_who_cannot_find_out_asks_again(fleet: Routers) -> None:
    checks = one_each(fleet)
    fleet["a"].batches._new_name = lambda now_ns: fleet.keys("b")[0]  # type: ignore[method-assign]
    fleet.loses = losing(Op.COMMIT, Op.RESOLVE)
    assert not fleet.batch("a", checks).is_allowed
    fleet.loses = losing(Op.RESOLVE, Op.CANCEL)
    fleet.let_pass(SETTLED_NS)
    assert {node.node_id: node.batches.resolved > 0 for node in fleet.alive} == {"a": True, "b": True, "c": True}
    assert fleet.held
    fleet.loses = lambda *_: False
    fleet.let_pass(SETTLED_NS)
    assert fleet.held == {}
    assert lefts(fleet, checks) == [BURST] * 3


def test_an_unknown_rule_that_would_be_allowed_keeps_its_outcome_when_the_batch_is_refused(fleet: Routers) -> None:
    known, unknown = fleet.keys("a", "b")
    checks = [Check("api", known, BURST + 1), Check("nowhere", unknown)]
    batch = fleet.batch("a", checks, allows_unknown=True)
    assert (batch.is_allowed, batch.outcomes[1]) == (False, UnknownRule())
    fleet["a"].batches._new_name = lambda now_ns: fleet.keys("b")[0]  # type: ignore[method-assign]
    fleet.loses = losing(Op.COMMIT)
    batch = fleet.batch("a", [Check("api", known), Check("nowhere", unknown)], allows_unknown=True)
    assert (batch.is_allowed, batch.outcomes[1]) == (False, UnknownRule())


# Backends.


def test_the_gates_are_asked_once_and_last() -> None:
    fleet = Routers("a", "b", "c", api=DAILY, shop={**DAILY, "backend": "orders"})
    plain, shop = fleet.keys("b", "c")
    gate = fleet["a"].engine.backends.gate("orders")
    assert fleet.batch("a", [Check("api", plain), Check("shop", shop)]).is_allowed
    assert (sum(gate.offered), sum(gate.admitted)) == (1, 1)
    assert not fleet.batch("a", [Check("api", plain, BURST), Check("shop", shop)]).is_allowed
    assert (sum(gate.offered), sum(gate.admitted)) == (2, 1)  # what is given back was never admitted
    gate.apply(Decision(0.5, "overload", "", priorities={"5": 0.0}), fleet.now_ns)
    batch = fleet.batch("a", [Check("api", plain), Check("shop", shop)])
    held_back, shed = verdicts(batch.outcomes)
    assert (held_back.allowed, held_back.reason) == (False, "batch")
    assert (shed.allowed, shed.reason) == (False, "backend_overload")
    assert shed.retry_ns > 0
    assert (fleet.remaining(plain), fleet.remaining(shop, "shop")) == (BURST - 1, BURST - 1)
    assert sum(fleet["c"].engine.backends.gate("orders").offered) == 0


def test_a_gate_refuses_no_shadow_rule_and_is_not_asked_for_one_that_would_deny() -> None:
    fleet = Routers("a", "b", "c", shop={**DAILY, "backend": "orders", "shadow": True})
    key = fleet.keys("c")[0]
    gate = fleet["a"].engine.backends.gate("orders")
    gate.apply(Decision(0.5, "overload", "", priorities={"5": 0.0}), fleet.now_ns)
    for cost, wanted in ((1, 1), (BURST + 1, 1)):
        batch = fleet.batch("a", [Check("shop", key, cost)])
        assert (batch.is_allowed, verdicts(batch.outcomes)[0].would_allow) == (True, False)
        assert sum(gate.wanted) == wanted


# Refunds.


def test_a_refund_gives_back_what_was_spent_and_no_more(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    fleet.ask("a", Check("api", key, 5))
    assert fleet.ask("a", Check("api", key, 2, op=Op.REFUND)) == Refunded(2, BURST, BURST - 3, 3 * 86_400 * 10**9)
    refunded = fleet.ask("c", Check("api", key, 9, op=Op.REFUND))
    assert isinstance(refunded, Refunded)
    assert (refunded.tokens, refunded.remaining) == (3, BURST)
    assert fleet.ask("a", Check("api", key, 9, op=Op.REFUND)) == Refunded(0, BURST, BURST, 0)
    assert fleet.ask("a", Check("nowhere", key, 9, op=Op.REFUND)) == UnknownRule()


def test_the_replica_knows_of_a_refund(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    fleet.ask("a", Check("api", key, 5))
    fleet.let_pass(TIMEOUT_NS)
    fleet.ask("a", Check("api", key, 2, op=Op.REFUND))
    fleet.let_pass(TIMEOUT_NS)
    fleet.kill("b")
    fleet.let_pass(2 * TIMEOUT_NS)
    assert fleet.remaining(key) == BURST - 3


def test_a_refund_does_not_touch_what_is_set_aside(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    fleet.ask("a", Check("api", key, 2))
    fleet.ask("a", Check("api", key, 5, op=Op.RESERVE, hold=("batch", 0)))
    refunded = fleet.ask("a", Check("api", key, 9, op=Op.REFUND))
    assert isinstance(refunded, Refunded)
    assert (refunded.tokens, refunded.remaining) == (2, BURST - 5)
    fleet.let_pass(TIMEOUT_NS)
    assert len(fleet.held) == 2  # the owner's and the replica's


def test_a_refund_that_may_have_been_done_is_not_repeated(fleet: Routers) -> None:
    key = fleet.keys("b")[0]
    fleet.ask("a", Check("api", key, 8))
    fleet.let_pass(TIMEOUT_NS)
    asked = len(fleet.asked)
    fleet.loses = losing(Op.REFUND)
    assert fleet.ask("a", Check("api", key, 2, op=Op.REFUND)) == Unreachable()
    fleet.loses = lambda *_: False
    fleet.let_pass(5 * TIMEOUT_NS)
    assert len(fleet.asked) == asked
    fleet.kill("b")
    fleet.let_pass(2 * TIMEOUT_NS)
    outcome = fleet.ask("a", Check("api", key, 2, op=Op.REFUND))  # not sent to the dead owner: the replica does it
    assert isinstance(outcome, Refunded)
    assert fleet.remaining(key) == BURST - 6
