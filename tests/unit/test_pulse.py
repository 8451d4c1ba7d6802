"""Pulses: what nodes tell each other of a backend, and what their guards make of it."""

from __future__ import annotations

import pytest

from limiter_node.core.adaptive.evidence import Policy
from limiter_node.core.adaptive.pulse import SHARE_LEAST, Fellows, Pulse
from limiter_node.core.adaptive.registry import PULSES_MAX, Backends
from limiter_node.core.backends import Backend

NS = 1_000_000_000
MS = 1_000_000
PULSE_NS = 50 * MS
NAME = "orders"


def pulse(wanted: int, sent: int = 0, answers: int = 0, latencies_ms: float = 0.0) -> Pulse:
    return Pulse(wanted, sent, answers, 0, 0, latencies_ms, latencies_ms)


def test_what_is_new_is_the_difference_whatever_was_lost_in_between() -> None:
    fellows = Fellows()
    assert fellows.hear("b", pulse(1_000, 900, 800, 8e4)) is None
    assert fellows.hear("b", pulse(1_030, 920, 810, 81e3)) == pulse(30, 20, 10, 1e3)
    assert fellows.hear("b", pulse(1_030, 920, 810, 81e3)) == pulse(0)
    assert fellows.hear("c", pulse(5)) is None


@pytest.mark.parametrize("reborn", [pulse(3), pulse(1_100, 20), pulse(1_100, 900, 900, 10.0)])
def test_a_node_that_was_restarted_begins_anew(reborn: Pulse) -> None:
    fellows = Fellows()
    fellows.hear("b", pulse(1_000, 900, 800, 8e4))
    assert fellows.hear("b", reborn) is None
    again = pulse(reborn.wanted + 7, reborn.sent + 5, reborn.answers, reborn.latencies_ms)
    assert fellows.hear("b", again) == pulse(7, 5)


def test_shares_are_those_of_the_demand_that_is_seen() -> None:
    fellows = Fellows()
    assert fellows.end_window(100, 1.0) == 1
    for number in range(1, 60):
        fellows.hear("b", pulse(300 * number))
        fellows.end_window(100, 1.0)
    fellows.hear("b", pulse(300 * 60))
    assert fellows.end_window(100, 1.0) == pytest.approx(0.25, abs=0.01)
    # What is not heard of any more is not seen by the guard, either.
    assert fellows.end_window(100, 1.0) == 1


def test_a_node_without_demand_keeps_a_little() -> None:
    fellows = Fellows()
    fellows.hear("b", pulse(0))
    assert fellows.end_window(0, 1.0) == 0.5
    fellows.hear("b", pulse(10_000))
    assert fellows.end_window(0, 1.0) == SHARE_LEAST / 2


class Pair:
    """Two nodes' backends; checks come to both in turn."""

    def __init__(self, *, talks: bool) -> None:
        self.nodes = [Backends(), Backends()]
        for node in self.nodes:
            node.set_entry(NAME, Backend(Policy(slo_ms=500)), 0)
        self.talks = talks
        self.now_ns = 0

    def serve(self, rate: int, seconds: float, *, reported: bool = True) -> int:
        """Have checks come evenly to both, each reported to the first node after 100 ms; returns how many got in."""
        admitted = 0
        reports: list[int] = []
        every_ns, end_ns = NS // rate, self.now_ns + round(seconds * NS)
        number = 0
        while self.now_ns < end_ns:
            self.now_ns += every_ns
            number += 1
            while reports and reports[0] <= self.now_ns:
                self.nodes[0].gate(NAME).report(100, "ok", 1, reports.pop(0))
            if not self.nodes[number % 2].gate(NAME).admit(5, self.now_ns):
                admitted += 1
                if reported:
                    reports.append(self.now_ns + 100 * MS)
            if self.now_ns % PULSE_NS < every_ns:
                self.talk()
            if self.now_ns % NS < every_ns:
                for node in self.nodes:
                    node.gate(NAME).take_load(self.now_ns)
        return admitted

    def talk(self) -> None:
        if self.talks:
            one, other = self.nodes
            one.hear("other", other.pulses(), self.now_ns)
            other.hear("one", one.pulses(), self.now_ns)


def test_each_nodes_guard_sees_what_all_have_out() -> None:
    pair = Pair(talks=True)
    pair.serve(400, 20)
    gates = [node.gate(NAME) for node in pair.nodes]
    assert [gate.guard.out for gate in gates] == [pytest.approx(40, abs=12)] * 2
    assert sum(gate.in_flight for gate in gates) == pytest.approx(40, abs=12)
    assert [gate.guard.share for gate in gates] == [pytest.approx(0.5, abs=0.02)] * 2
    assert [sum(gate.denied_by_guard) for gate in gates] == [0, 0]


def test_a_node_that_no_outcome_is_reported_to_guards_the_backend_as_well() -> None:
    silent, heard = Pair(talks=False), Pair(talks=True)
    for pair in (silent, heard):
        pair.serve(400, 20)
        pair.serve(400, 5, reported=False)
    assert sum(silent.nodes[1].gate(NAME).denied_by_guard) == 0
    assert sum(heard.nodes[1].gate(NAME).denied_by_guard) > 100


def test_a_backend_that_is_not_in_use_is_not_told_of() -> None:
    one = Backends()
    one.set_entry(NAME, Backend(), 0)
    gate = one.gate(NAME)
    assert one.pulses() == {}
    gate.admit(5, 0)
    gate.take_load(NS)
    assert one.pulses() == {NAME: pulse(1, 1)}
    gate.take_load(2 * NS)
    assert one.pulses() == {}


def test_a_ping_tells_of_no_more_than_it_can_carry_and_nobody_is_made_known_by_it() -> None:
    one, other = Backends(), Backends()
    for number in range(PULSES_MAX + 1):
        gate = one.gate(f"backend-{number}")
        gate.admit(5, 0)
        gate.take_load(NS)
    other.hear("one", one.pulses(), NS)
    assert len(one.pulses()) == PULSES_MAX
    assert not other.gates
