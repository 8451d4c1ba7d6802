"""Checks under rules that name a backend: what its gate turns away, what that costs, and whom it does not concern.

The gate is closed by a published record with a fraction of 0 for the priorities that a test wants turned away, so that
every verdict is certain. No time passes unless a test says so.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.backends import parse_backend, parse_record
from limiter_node.core.engine import UNREACHABLE_RETRY_NS, Engine
from limiter_node.core.model import NEVER, Check, Verdict
from limiter_node.core.rules import parse_key_entry, parse_rule

if TYPE_CHECKING:
    from limiter_node.core.adaptive.gate import Gate

S = 1_000_000_000
NAME = "orders"
OVERLOAD = "backend_overload"
SHUT = dict.fromkeys(map(str, range(10)), 0.0)
OPEN: dict[str, float] = {}


class Fixture:
    """An engine with the rule `api`, which names the backend."""

    def __init__(self, **rule: Any) -> None:
        self.engine = Engine(buckets_max=1_000)
        self.put(**rule)

    def put(self, **rule: Any) -> None:
        document = {"rate": "1/d", "burst": 100, "backend": NAME, **rule}
        self.engine.set_rule("api", parse_rule("api", document), 0)

    def entry(self, **document: Any) -> None:
        self.engine.backends.set_entry(NAME, parse_backend(NAME, document), 0)
        self.engine.rescale(NAME, 0)

    def publish(self, fractions: dict[str, float], multiplier: float = 1.0, **more: Any) -> None:
        document = {"multiplier": multiplier, "state": "overload", "priorities": fractions, **more}
        self.engine.backends.set_record(NAME, parse_record(NAME, document), 0)
        self.engine.rescale(NAME, 0)

    def key(self, key: str, **document: Any) -> None:
        self.engine.set_entry(key, parse_key_entry(key, document), 0)

    def spend(self, cost: int = 1, key: str = "k", segment: str | None = None, now_ns: int = 0) -> Verdict:
        verdict = self.engine.check(Check("api", key, cost, segment), now_ns)
        assert isinstance(verdict, Verdict)
        return verdict

    def alone(self, cost: int = 1, key: str = "k", segment: str | None = None, parts: int = 4) -> Verdict:
        verdict = self.engine.check_alone(Check("api", key, cost, segment), parts, 0)
        assert isinstance(verdict, Verdict)
        return verdict

    @property
    def gate(self) -> Gate:
        return self.engine.backends.gate(NAME)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Offered, wanted, admitted."""
        return sum(self.gate.offered), sum(self.gate.wanted), sum(self.gate.admitted)


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


# What is turned away.


def test_a_check_turned_away_says_so_and_when_to_come_back(fixture: Fixture) -> None:
    fixture.publish(SHUT)
    verdict = fixture.spend()
    assert (verdict.allowed, verdict.reason, verdict.would_allow, verdict.degraded) == (False, OVERLOAD, None, False)
    assert 0.5 * S <= verdict.retry_ns <= 1.5 * S


@pytest.mark.parametrize("cost", [1, 2, 69, 70])
def test_a_check_turned_away_spends_nothing(fixture: Fixture, cost: int) -> None:
    fixture.spend(30)
    before = fixture.spend(0)
    fixture.publish(SHUT)
    denied = fixture.spend(cost)
    assert (denied.allowed, denied.reason, denied.remaining, denied.limit) == (False, OVERLOAD, 70, 100)
    assert denied.reset_ns == before.reset_ns
    fixture.publish(OPEN)
    assert fixture.spend(0) == before
    assert fixture.spend(70).remaining == 0


def test_a_key_that_comes_for_the_first_time_spends_nothing_either(fixture: Fixture) -> None:
    fixture.publish(SHUT)
    assert (fixture.spend(5).remaining, fixture.spend(5).reset_ns) == (100, 0)
    fixture.publish(OPEN)
    assert fixture.spend(100).allowed


def test_a_check_turned_away_is_no_change_that_the_replica_must_know(fixture: Fixture) -> None:
    fixture.publish(SHUT)
    fixture.spend()
    assert fixture.engine.take_changed() == []
    fixture.publish(OPEN)
    fixture.spend()
    assert fixture.engine.take_changed() == [("api", "k")]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 10 * S)), max_size=40))
def test_checks_turned_away_leave_the_others_as_if_they_had_never_been(
    checks: list[tuple[bool, int, int]],
) -> None:
    """The same checks, with and without those that the gate turns away; a token comes back every second."""
    gated, other = Fixture(rate="1/s", burst=50), Fixture(rate="1/s", burst=50)
    now_ns = 0
    for is_shut, cost, pause_ns in checks:
        now_ns += pause_ns
        gated.publish(SHUT if is_shut else OPEN)
        verdict = gated.spend(cost, now_ns=now_ns)
        if is_shut and cost:
            peeked = other.spend(0, now_ns=now_ns)
            assert not verdict.allowed
            assert (verdict.limit, verdict.remaining, verdict.reset_ns) == (
                peeked.limit,
                peeked.remaining,
                peeked.reset_ns,
            )
        else:
            assert verdict == other.spend(cost, now_ns=now_ns)


def test_a_denial_by_the_keys_own_limit_stays_one(fixture: Fixture) -> None:
    fixture.spend(100)
    own = fixture.spend()
    assert (own.allowed, own.reason) == (False, None)
    fixture.publish(SHUT)
    assert fixture.spend() == own
    never = fixture.spend(101)
    assert (never.allowed, never.reason, never.retry_ns) == (False, None, NEVER)
    assert fixture.counts == (4, 1, 1)  # what its own limit denies is offered, and not wanted


def test_peeks_are_neither_turned_away_nor_counted(fixture: Fixture) -> None:
    fixture.publish(SHUT)
    verdict = fixture.spend(0)
    assert (verdict.allowed, verdict.remaining, verdict.reason) == (True, 100, None)
    assert fixture.alone(0).allowed
    assert fixture.counts == (0, 0, 0)


def test_what_is_let_through_is_counted_once_whatever_it_costs(fixture: Fixture) -> None:
    fixture.spend(40)
    fixture.spend()
    assert fixture.counts == (2, 2, 2)


def test_a_rule_without_a_backend_is_not_concerned(fixture: Fixture) -> None:
    fixture.publish(SHUT, 0.5)
    fixture.put(backend=None)
    assert (fixture.spend().allowed, fixture.spend(0).limit) == (True, 100)
    fixture.put()
    assert (fixture.spend().reason, fixture.spend(0).limit) == (OVERLOAD, 50)
    fixture.put(backend="stock")
    assert (fixture.spend().allowed, fixture.spend(0).limit) == (True, 100)


def test_a_rule_in_shadow_mode_allows_and_tells_what_would_have_been() -> None:
    fixture = Fixture(shadow=True)
    fixture.publish(SHUT)
    for verdict in (fixture.spend(), fixture.alone()):
        assert (verdict.allowed, verdict.would_allow, verdict.reason, verdict.retry_ns) == (True, False, None, 0)
    fixture.publish(OPEN)
    assert fixture.spend().would_allow is True


def test_what_a_rule_in_shadow_mode_sends_all_the_same_is_known_to_be_out() -> None:
    fixture = Fixture(shadow=True, burst=60)
    fixture.publish(SHUT)
    for _ in range(50):
        fixture.spend()
    assert (fixture.gate.guard.out, fixture.gate.would_deny, sum(fixture.gate.denied_by_priority)) == (50, 50, 50)
    fixture.publish(OPEN)
    assert [fixture.spend().would_allow for _ in range(61)] == [True] * 60 + [False]
    assert (fixture.gate.guard.out, fixture.gate.would_deny) == (111, 50)


# By priority.

SEGMENTS = {"premium": {"rate": "1/d", "burst": 50, "priority": 0}, "free": {"priority": 9}}


@pytest.mark.parametrize(
    ("entry", "segment", "priority"),
    [
        (None, None, 5),
        (None, "default", 5),
        (None, "premium", 0),
        (None, "free", 9),
        (None, "unlisted", 5),
        ({"segment": "premium"}, None, 0),
        ({"segment": "premium"}, "free", 9),
        ({"segment": "unlisted"}, None, 5),
        # Numbers of its own do not change who a key is.
        ({"rules": {"api": {"rate": "1/d", "burst": 7}}}, None, 5),
        ({"rules": {"api": {"rate": "1/d", "burst": 7}}}, "free", 9),
        ({"segment": "premium", "rules": {"api": {"rate": "1/d", "burst": 7}}}, None, 0),
        ({"segment": "premium", "rules": {"api": {"rate": "1/d", "burst": 7}}}, "unlisted", 5),
    ],
)
@pytest.mark.parametrize("name", ["k", "?"])
def test_a_check_has_the_priority_of_its_segment(entry: Any, segment: str | None, priority: int, name: str) -> None:
    fixture = Fixture(segments=SEGMENTS)
    if entry is not None:
        fixture.key(name, **entry)
    fixture.publish({**SHUT, str(priority): 1.0})
    assert fixture.spend(segment=segment).allowed
    assert fixture.alone(segment=segment).allowed
    fixture.publish({**dict.fromkeys(SHUT, 1.0), str(priority): 0.0})
    assert fixture.spend(segment=segment).reason == OVERLOAD
    assert [index for index, count in enumerate(fixture.gate.offered) if count] == [priority]


def test_the_priority_of_the_rule_is_that_of_its_segments_that_have_none() -> None:
    fixture = Fixture(priority=7, segments={"plain": {"rate": "1/d"}})
    fixture.spend()
    fixture.spend(segment="plain")
    assert fixture.gate.offered[7] == 2


@pytest.mark.parametrize("cost", [1, 4])
def test_a_key_with_numbers_of_its_own_spends_nothing_when_turned_away(cost: int) -> None:
    fixture = Fixture(segments=SEGMENTS)
    fixture.key("vip", segment="premium", rules={"api": {"rate": "1/d", "burst": 10}})
    fixture.spend(3, "vip")
    fixture.publish(SHUT)
    denied = fixture.spend(cost, "vip")
    assert (denied.reason, denied.limit, denied.remaining) == (OVERLOAD, 10, 7)
    fixture.publish(OPEN)
    assert fixture.spend(7, "vip").remaining == 0


def test_a_key_turned_away_under_another_segment_keeps_what_it_had_spent() -> None:
    fixture = Fixture(segments=SEGMENTS)
    fixture.spend(30)
    fixture.publish(SHUT)
    denied = fixture.spend(5, segment="premium")
    assert (denied.reason, denied.limit, denied.remaining) == (OVERLOAD, 50, 20)
    fixture.publish(OPEN)
    assert fixture.spend(0).remaining == 70


# The multiplier.


@pytest.mark.parametrize(
    ("multiplier", "limit"), [(1.0, 100), (0.5, 50), (0.255, 25), (0.01, 1), (0.009, 1), (1e-9, 1)]
)
def test_a_multiplier_scales_the_burst_to_one_token_at_least(fixture: Fixture, multiplier: float, limit: int) -> None:
    fixture.publish(OPEN, multiplier)
    assert (fixture.spend(0).limit, fixture.spend(limit).allowed, fixture.spend().allowed) == (limit, True, False)


def test_a_multiplier_scales_the_rate_as_well() -> None:
    fixture = Fixture(rate="100/s", burst=100)
    fixture.publish(OPEN, 0.25)
    fixture.spend(25)
    assert fixture.spend().retry_ns == S // 25
    assert fixture.spend(0, now_ns=S // 2).remaining == 12


def test_a_change_of_the_multiplier_keeps_what_was_spent(fixture: Fixture) -> None:
    fixture.spend(30)
    for multiplier, left in ((0.5, 20), (0.2, 0), (1.0, 70)):
        fixture.publish(OPEN, multiplier)
        assert fixture.spend(0).remaining == left


def test_a_cap_scales_plans_without_anything_published(fixture: Fixture) -> None:
    fixture.entry(max=0.4)
    assert fixture.spend(0).limit == 40
    fixture.publish(OPEN, 0.6)
    assert fixture.spend(0).limit == 40
    fixture.publish(OPEN, 0.3)
    assert fixture.spend(0).limit == 30


def test_a_pin_scales_and_turns_nobody_away(fixture: Fixture) -> None:
    fixture.entry(adaptive="off")
    fixture.publish(OPEN, 0.3, pinned=True)
    assert (fixture.spend(30).allowed, fixture.spend().reason) == (True, None)


# Policies.


def test_in_observe_mode_nobody_is_denied_and_it_is_counted_who_would_be(fixture: Fixture) -> None:
    fixture.entry(adaptive="observe")
    fixture.publish(OPEN, would={"multiplier": 0.1, "state": "overload", "priorities": {"5": 0.25}})
    assert [fixture.spend().remaining for _ in range(100)] == list(range(99, -1, -1))
    assert (fixture.gate.would_deny, fixture.counts) == (75, (100, 100, 25))


def test_in_off_mode_nobody_is_denied(fixture: Fixture) -> None:
    fixture.entry(adaptive="off")
    fixture.publish(SHUT, 0.1)
    assert fixture.spend(100).allowed
    assert (fixture.gate.would_deny, fixture.counts) == (0, (1, 1, 1))


# Deciding alone.


def test_a_node_that_decides_alone_asks_the_gate_as_well(fixture: Fixture) -> None:
    assert fixture.alone(5).remaining == 20
    fixture.publish(SHUT)
    denied = fixture.alone(5)
    assert (denied.allowed, denied.reason, denied.remaining, denied.degraded) == (False, OVERLOAD, 20, True)
    fixture.publish(OPEN)
    assert fixture.alone(20).remaining == 0
    own = fixture.alone()
    assert (own.allowed, own.reason, own.degraded) == (False, None, True)
    # What the share has spent is not spent from the bucket.
    assert fixture.spend(0).remaining == 100


@pytest.mark.parametrize(("policy", "allowed", "reason"), [("allow", True, None), ("deny", False, "unreachable")])
def test_what_a_rule_settles_beforehand_is_no_matter_of_the_gate(
    policy: str, allowed: bool, reason: str | None
) -> None:
    fixture = Fixture(on_unreachable=policy)
    fixture.publish(SHUT)
    verdict = fixture.alone()
    assert (verdict.allowed, verdict.reason) == (allowed, reason)
    assert verdict.retry_ns == (0 if allowed else UNREACHABLE_RETRY_NS)
    assert fixture.counts == (0, 0, 0)


# Garbage.


@pytest.mark.parametrize(
    ("latency_ms", "kind", "count"),
    [
        (None, "refused", 1),
        (None, "refused", 1_000),
        (0.0, "ok", 1),
        (None, "timeout", 1),
        (1e308, "ok", 1),
        (1e308, "ok", 10**9),
        (5e-324, "failed", 1),
    ],
)
def test_whatever_is_reported_checks_are_decided_and_loads_are_told(
    latency_ms: float | None, kind: Any, count: int
) -> None:
    fixture = Fixture(rate="1000000/s")
    now_ns = 0
    for is_reported in (True, False, True):
        for _ in range(100):
            now_ns += S // 10
            fixture.spend(now_ns=now_ns)
            if is_reported:
                fixture.gate.report(latency_ms, kind, count, now_ns)
        load = fixture.gate.take_load(now_ns)
        assert isfinite(load.in_flight)
        assert isfinite(load.latency.sum_ms)
