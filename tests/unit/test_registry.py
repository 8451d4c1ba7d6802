"""The registry of backends: what multiplier applies, who is known, what the gates are told."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from limiter_node.core.adaptive.evidence import Decision, Policy
from limiter_node.core.adaptive.registry import DEFAULT, Backends
from limiter_node.core.backends import Backend, Record
from limiter_node.core.engine import Engine
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router

NS = 1_000_000_000
NAME = "orders"
CUT = Decision(0.4, "overload", "p90", rate=80.0, priorities={"5": 0.5})


def backends(mode: str = "on", *, cap: float = 1.0, record: Record | None = None) -> Backends:
    made = Backends()
    made.set_entry(NAME, Backend(Policy(mode=mode), cap), 0)
    made.set_record(NAME, record, 0)
    return made


PUBLISHED = Record(CUT)
PINNED = Record(Decision(0.3, "unknown", ""), pinned=True)
PINNED_HIGH = Record(Decision(1.0, "unknown", ""), pinned=True)
OBSERVED = Record(Decision(1.0, "observe", ""), would=CUT)


@pytest.mark.parametrize(
    ("mode", "cap", "record", "multiplier", "state"),
    [
        ("on", 1.0, None, 1.0, "normal"),
        ("on", 1.0, PUBLISHED, 0.4, "overload"),
        ("on", 0.9, None, 0.9, "normal"),
        ("on", 0.9, PUBLISHED, 0.4, "overload"),
        ("on", 0.2, PUBLISHED, 0.2, "overload"),
        ("on", 1.0, OBSERVED, 1.0, "observe"),
        ("observe", 1.0, PUBLISHED, 1.0, "observe"),
        ("observe", 1.0, OBSERVED, 1.0, "observe"),
        ("observe", 0.7, OBSERVED, 0.7, "observe"),
        ("off", 1.0, PUBLISHED, 1.0, "off"),
        ("off", 0.7, None, 0.7, "off"),
        # A person's pin always applies, whatever else people want.
        ("on", 1.0, PINNED, 0.3, "pinned"),
        ("on", 0.2, PINNED, 0.3, "pinned"),
        ("on", 0.5, PINNED_HIGH, 1.0, "pinned"),
        ("observe", 1.0, PINNED, 0.3, "pinned"),
        ("off", 1.0, PINNED, 0.3, "pinned"),
    ],
)
def test_the_multiplier_that_applies(
    mode: str, cap: float, record: Record | None, multiplier: float, state: str
) -> None:
    one = backends(mode, cap=cap, record=record)
    assert one.ppm(NAME) == round(multiplier * 1e6)
    assert one.state(NAME) == state


def test_without_an_entry_the_defaults_apply() -> None:
    one = Backends()
    assert (one.ppm("any"), one.state("any"), one.entry("any")) == (1_000_000, "normal", DEFAULT)
    one.set_record("any", PUBLISHED, 0)
    assert one.ppm("any") == 400_000


def test_what_is_taken_away_applies_no_more() -> None:
    one = backends(cap=0.3, record=PUBLISHED)
    one.set_entry(NAME, None, 0)
    assert (one.ppm(NAME), one.entry(NAME)) == (400_000, DEFAULT)
    one.set_record(NAME, None, 0)
    assert one.ppm(NAME) == 1_000_000


# Who is known.


def test_a_backend_is_known_by_its_entry_or_by_a_rule_that_names_it() -> None:
    one = Backends()
    assert not one.is_known(NAME)
    one.set_entry(NAME, Backend(), 0)
    assert one.is_known(NAME)
    one.rename(None, NAME)
    one.set_entry(NAME, None, 0)
    assert one.is_known(NAME)
    one.rename(NAME, None)
    assert not one.is_known(NAME)


def test_a_backend_is_known_as_long_as_any_rule_names_it() -> None:
    one = Backends()
    one.rename(None, NAME)
    one.rename(None, NAME)
    one.rename(NAME, "stock")
    assert one.names() == {NAME, "stock"}
    one.rename(NAME, NAME)
    assert one.is_known(NAME)
    one.rename(NAME, "stock")
    assert not one.is_known(NAME)
    assert one.names() == {"stock"}


def test_what_is_only_published_is_listed_and_not_known() -> None:
    one = Backends()
    one.set_record(NAME, PUBLISHED, 0)
    assert one.names() == {NAME}
    assert not one.is_known(NAME)


def test_rejected_reports_are_counted_by_backend_and_those_of_unknown_ones_together() -> None:
    one = backends()
    one.reject(NAME, "report", "status: 'oops' is not allowed")
    one.reject(NAME, "poll", "500")
    for number in range(10_000):
        one.reject(f"made-up-{number}", "report", f"no {number}")
    assert one.rejected == {NAME: 2, "": 10_000}
    assert one.faults == {NAME: "poll: 500", "": "report: no 9999"}
    assert one.names() == {NAME}
    assert one.gates.keys() == {NAME}


# Gates.


def passed(one: Backends, times: int = 100) -> int:
    return sum(not one.gate(NAME).admit(5, 0) for _ in range(times))


@pytest.mark.parametrize(
    ("mode", "record", "let_through", "would_deny"),
    [
        ("on", None, 100, 0),
        ("on", Record(Decision(0.4, "overload", "", priorities={"5": 0.5})), 50, 0),
        ("on", OBSERVED, 100, 0),
        ("on", Record(Decision(0.4, "unknown", "", priorities={"5": 0.5}), pinned=True), 50, 0),
        ("observe", Record(Decision(0.4, "overload", "", priorities={"5": 0.5})), 100, 50),
        ("observe", Record(Decision(1, "observe", ""), would=Decision(0.4, "", "", priorities={"5": 0.5})), 100, 50),
        ("off", PUBLISHED, 100, 0),
    ],
)
def test_a_gate_goes_by_what_is_published(mode: str, record: Record | None, let_through: int, would_deny: int) -> None:
    one = backends(mode, record=record)
    assert (passed(one), one.gate(NAME).would_deny) == (let_through, would_deny)


def test_a_gate_made_later_follows_entry_and_record_all_the_same() -> None:
    one = Backends()
    one.set_record(NAME, Record(Decision(0.4, "overload", "", priorities={"5": 0.5})), 0)
    assert passed(one) == 50
    one.set_entry(NAME, Backend(Policy(mode="off")), 0)
    assert passed(one) == 100
    one.set_entry(NAME, None, 0)
    assert passed(one) == 50
    one.set_record(NAME, None, 0)
    assert passed(one) == 100


def test_a_gate_takes_the_objective_of_its_entry() -> None:
    one = backends()
    assert one.gate(NAME).guard.objective_ms is None
    one.set_entry(NAME, Backend(Policy(slo_ms=250)), 0)
    assert one.gate(NAME).guard.objective_ms == 250


# Shares.


def test_shares_by_default_are_one_of_as_many_as_the_fleet_has_nodes() -> None:
    engine = Engine(buckets_max=10)
    before = engine.backends.gate("before")
    router = Router("a", engine, peer_timeout_ns=NS, open_link=open_no_link)
    for names, share in (("a", 1.0), ("abcd", 0.25), ("ab", 0.5)):
        members = {name: Member(name, f"{name}:1") for name in names}
        router.set_ring(Ring(1 + router.ring.revision, members), NS)
        assert (before.share, engine.backends.gate(f"made with {names}").share) == (share, share)


def test_others_are_told_often_while_a_backend_is_in_use_and_less_often_the_more_they_are() -> None:
    one = backends()
    assert one.pulse_every_ns(2) == inf
    one.gate(NAME).admit(5, 0)
    one.gate(NAME).take_load(NS)
    assert (one.pulse_every_ns(2), one.pulse_every_ns(23)) == (50_000_000, 50_000_000)
    assert one.pulse_every_ns(999) == pytest.approx(2 * NS, rel=0.01)
    one.gate(NAME).take_load(2 * NS)
    assert one.pulse_every_ns(2) == inf


def open_no_link(_: Any) -> Any:
    class Nowhere:
        def wake(self) -> None: ...
        def redial(self) -> None: ...
        def hasten(self) -> None: ...
        def close(self) -> None: ...

    return Nowhere()


def test_what_the_controller_has_measured_stands_until_the_fleet_changes() -> None:
    one = backends()
    one.set_default_share(0.5, 0)
    one.set_shares({NAME: 0.9, "unheard of": 0.1}, 0)
    assert one.gate(NAME).share == 0.9
    assert one.gates.keys() == {NAME}
    one.set_default_share(0.5, 0)
    assert one.gate(NAME).share == 0.9
    one.set_default_share(0.25, 0)
    assert one.gate(NAME).share == 0.25
