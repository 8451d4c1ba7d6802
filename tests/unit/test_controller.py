"""The controller: what nodes know becomes one decision, and each node's share of it.

Method: a fleet of controllers wired by hand. Who leads asks, the others answer, and every frame goes through the
encoding of the wire; there are no sockets, and time is a number that the test moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.cluster.wire import FRAME_BYTES_MAX, Decoder, encode
from limiter_node.core.adaptive.controller import (
    FRESH_NS,
    REPORTS_MIN,
    UNASKED_NS,
    Controller,
    is_news,
)
from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Load, Policy, Signal, in_a_row, together
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.registry import Backends
from limiter_node.core.adaptive.sketch import Sketch
from limiter_node.core.backends import Backend, Poll, Record, parse_record, record_json
from limiter_node.core.model import BACKENDS_MAX, Gather, Gathered

if TYPE_CHECKING:
    from limiter_node.core.adaptive.gate import Gate

NS = 1_000_000_000
NAME = "orders"


class Node:
    """One node: its registry and its controller."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.backends = Backends()
        self.backends.set_entry(NAME, Backend(policy), 0)
        self.controller = Controller(name, self.backends)

    @property
    def gate(self) -> Gate:
        return self.backends.gate(NAME)

    @property
    def share(self) -> float:
        return self.gate.share

    def work(self, wanted: int, now_ns: int, *, latency_ms: float = 50, reported: int | None = None) -> None:
        """Have so many checks come at once, and so many outcomes be reported."""
        for _ in range(wanted):
            self.gate.offer(5)
            self.gate.admit(5, now_ns)
        for _ in range(wanted if reported is None else reported):
            self.gate.report(latency_ms, "ok", 1, now_ns)


class Fleet:
    """Nodes, of which the first leads; `tick` is a second of the leader's, publishing included."""

    def __init__(self, *names: str, term: int = 7, **policy: Any) -> None:
        self.nodes = {name: Node(name, Policy(**{"slo_ms": 250.0, **policy})) for name in names}
        self.leader = self.nodes[names[0]]
        self.leader.controller.lead(term)
        self.term = term
        self.now_ns = 0
        self.silent: set[str] = set()  # nodes whose answers do not come

    def gather(self) -> None:
        self.now_ns += NS
        leader = self.leader.controller
        others = self.nodes.keys() - {self.leader.name}
        leader.ask(set(others), self.now_ns)
        for name in sorted(others - self.silent):
            for gather in leader.frames(name):
                leader.hear(name, self.nodes[name].controller.answer(sent(gather), self.now_ns), self.now_ns)

    def tick(self) -> dict[str, Decision]:
        self.gather()
        changed = self.leader.controller.decide(self.now_ns)
        for name, decision in changed.items():
            self.publish(name, decision)
        return changed

    def publish(self, name: str, decision: Decision) -> None:
        observed = self.leader.backends.entry(name).policy.mode == "observe"
        record = parse_record(name, msgspec.json.decode(record_json(decision, self.term, observed=observed)))
        for node in self.nodes.values():
            node.backends.set_record(name, record, self.now_ns)

    def run(self, seconds: int, wanted: int = 100, *, latency_ms: float = 50, reported: int | None = None) -> None:
        """Let seconds pass with so many checks and outcomes at each node."""
        for _ in range(seconds):
            for node in self.nodes.values():
                node.work(wanted, self.now_ns, latency_ms=latency_ms, reported=reported)
            self.tick()

    @property
    def decision(self) -> Decision:
        return self.leader.controller.decisions[NAME]


def sent(gather: Gather) -> Gather:
    """The frame as it arrives."""
    (received,) = Decoder().feed(encode(gather))
    assert isinstance(received, Gather)
    return received


class Told:
    """What the laws are told at each tick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loads: list[Load | None] = []
        self.signals: list[Signal | None] = []
        decide = Law.decide

        def listen(law: Law, load: Load | None, signal: Signal | None, now_ns: int) -> Decision:
            self.loads.append(load)
            self.signals.append(signal)
            return decide(law, load, signal, now_ns)

        monkeypatch.setattr(Law, "decide", listen)

    @property
    def source(self) -> str | None:
        signal = self.signals[-1]
        return signal.source if signal is not None else None


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


def signal(source: str, latency_ms: float = 50, throughput: float = 100) -> Signal:
    return Signal(source, latency_ms, latency_ms, latency_ms, latency_ms, throughput, 0.0, 0.0, 0.0, round(throughput))


# What is gathered.


def test_what_several_nodes_have_counted_is_added_up(told: Told) -> None:
    fleet = Fleet("a", "b", "c")
    fleet.gather()
    for number, node in enumerate(fleet.nodes.values(), 1):
        node.work(10 * number, fleet.now_ns, latency_ms=10 * number, reported=number)
    fleet.gather()
    fleet.leader.controller.decide(fleet.now_ns)
    load = told.loads[-1]
    assert load is not None
    assert (load.nodes, load.completed, sum(load.wanted), load.latency.count) == (3, 6, 60, 6)


def test_what_comes_late_is_of_the_next_tick_and_of_its_own_time(told: Told) -> None:
    fleet = Fleet("a", "b")
    fleet.run(5)
    leader, late = fleet.leader.controller, fleet.nodes["b"].controller
    for node in fleet.nodes.values():
        node.work(100, fleet.now_ns)
    fleet.silent = {"b"}
    fleet.gather()
    answers = [late.answer(sent(gather), fleet.now_ns) for gather in leader.frames("b")]
    leader.decide(fleet.now_ns)
    for answer in answers:
        leader.hear("b", answer, fleet.now_ns)
    fleet.silent.clear()
    fleet.run(1)
    load = told.loads[-1]
    assert load is not None
    assert sum(load.wanted) * NS / load.span_ns == 200


def test_a_node_is_asked_once_in_a_tick() -> None:
    fleet = Fleet("a", "b")
    controller = fleet.leader.controller
    assert controller.frames("b") == []
    controller.ask({"b"}, NS)
    (gather,) = controller.frames("b")
    assert (gather.term, controller.frames("b"), controller.frames("c")) == (7, [], [])


def test_a_node_heeds_no_leader_of_a_lower_term() -> None:
    fleet = Fleet("a", "b")
    node = fleet.nodes["b"]
    node.work(10, 0)
    assert node.controller.answer(Gather(1, 6, {}), NS).loads.keys() == {NAME}
    node.work(10, NS)
    assert node.controller.answer(Gather(2, 7, {NAME: 0.5}), 2 * NS).loads[NAME].completed == 10
    node.work(10, 2 * NS)
    assert node.controller.answer(Gather(3, 6, {NAME: 0.1}), 3 * NS) == Gathered(3, {})
    assert node.share == 0.5
    # And what it has counted is kept for the one that leads.
    assert node.controller.answer(Gather(4, 7, {}), 3 * NS).loads[NAME].completed == 10


def test_a_leader_heeds_none_of_a_lower_term_either() -> None:
    fleet = Fleet("a", "b", term=7)
    fleet.gather()
    assert fleet.leader.controller.answer(Gather(1, 6, {}), fleet.now_ns) == Gathered(1, {})


def test_after_etcd_was_wiped_a_leader_of_a_lower_term_is_heeded() -> None:
    node = Fleet("a", "b", term=900).nodes["b"]
    node.controller.answer(Gather(1, 900, {}), NS)
    node.controller.see_election(5)
    node.work(10, NS)
    assert node.controller.answer(Gather(2, 4, {}), 2 * NS) == Gathered(2, {})
    assert node.controller.answer(Gather(3, 5, {}), 2 * NS).loads[NAME].completed == 10
    # An election as any other takes nothing back.
    node.controller.see_election(17)
    assert node.controller.answer(Gather(4, 4, {}), 3 * NS) == Gathered(4, {})


def test_who_does_not_lead_takes_no_answers_and_asks_nobody(told: Told) -> None:
    fleet = Fleet("a", "b")
    controller = fleet.leader.controller
    controller.ask({"b"}, NS)
    controller.follow()
    assert controller.frames("b") == []
    answer = fleet.nodes["b"].controller.answer(Gather(1, 7, {}), NS)
    controller.hear("b", answer, NS)
    controller.lead(9)
    controller.decide(2 * NS)
    assert told.loads == [None]


def test_a_node_that_nobody_asks_throws_old_counts_away() -> None:
    fleet = Fleet("a", "b")
    node = fleet.nodes["b"]
    node.controller.answer(Gather(1, 7, {}), NS)
    node.work(10, NS)
    node.controller.tick(NS + UNASKED_NS)
    assert node.controller.answer(Gather(2, 7, {}), NS + UNASKED_NS).loads[NAME].completed == 10
    node.work(10, 3 * NS)
    node.controller.tick(3 * NS + UNASKED_NS + 1)
    node.work(1, 4 * NS + UNASKED_NS)
    load = node.controller.answer(Gather(3, 7, {}), 4 * NS + UNASKED_NS).loads[NAME]
    assert (load.completed, load.span_ns) == (1, NS - 1)


def test_a_node_that_was_never_asked_begins_to_count_anew_as_well() -> None:
    node = Node("a", Policy())
    node.work(10, 0)
    node.controller.tick(NS)
    assert node.controller.answer(Gather(1, 7, {}), 2 * NS).loads[NAME].completed == 0


# Together.


def load(span_s: float = 1.0, wanted: int = 0, completed: int = 0, in_flight: float = 0.0) -> Load:
    counts = [wanted, *[0] * (PRIORITIES - 1)]
    sketch = Sketch({}, 0.0)
    if completed:
        sketch.add(50, completed)
    return Load(round(span_s * NS), 1, counts, counts, counts, completed, completed, 0, completed, sketch, in_flight)


def test_loads_of_nearly_the_same_span_are_added_whole() -> None:
    both = together([load(1.0, 100, 90, 2.0), load(1.05, 50, 7, 3.0)], nodes=2)
    assert (both.span_ns, both.nodes, both.in_flight) == (1_025_000_000, 2, 5.0)
    assert (both.offered[0], both.wanted[0], both.admitted[0]) == (150, 150, 150)
    assert (both.completed, both.refused, both.timeouts, both.latency.count) == (97, 97, 97, 97)


def test_loads_of_other_spans_are_brought_to_the_mean() -> None:
    both = together([load(1.0, 100, 10), load(3.0, 300, 30)], nodes=2)
    assert (both.span_ns, both.wanted[0], both.completed) == (2 * NS, 400, 40)


@given(st.lists(st.tuples(st.floats(0.5, 4), st.integers(0, 5_000)), min_size=1, max_size=8))
def test_rates_of_nodes_are_added_up_whatever_their_spans(nodes: list[tuple[float, int]]) -> None:
    every = together([load(span_s, round(rate * span_s)) for span_s, rate in nodes], nodes=len(nodes))
    rate = every.wanted[0] * NS / every.span_ns
    # Nearly alike spans are left whole: a tenth at most.
    assert abs(rate - sum(rate for _, rate in nodes)) <= 0.1 * rate + 2 * len(nodes)


def test_what_one_node_counts_in_a_row_is_the_same_rate_for_longer() -> None:
    one = in_a_row([load(1.0, 100, 10, 5.0), load(2.0, 200, 20, 3.0)])
    assert (one.span_ns, one.nodes, one.wanted[0], one.completed, one.in_flight) == (3 * NS, 1, 300, 30, 3.0)


def test_merging_leaves_what_is_merged_as_it_was() -> None:
    first, second = load(1.0, 100, 10), load(1.0, 100, 10)
    together([first, second], nodes=2)
    in_a_row([first, second])
    assert (first, second) == (load(1.0, 100, 10), load(1.0, 100, 10))


# Shares.


def test_shares_follow_demand_and_add_up_to_one() -> None:
    fleet = Fleet("a", "b", "c")
    for _ in range(60):
        for node, wanted in zip(fleet.nodes.values(), (10, 30, 60), strict=True):
            node.work(wanted, fleet.now_ns)
        fleet.tick()
    fleet.gather()
    shares = [node.share for node in fleet.nodes.values()]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.01)
    assert sum(shares) == pytest.approx(1)


def test_shares_move_over_to_where_the_demand_has_gone() -> None:
    fleet = Fleet("a", "b")
    fleet.run(20)
    moved: list[float] = []
    for _ in range(40):
        fleet.nodes["b"].work(200, fleet.now_ns)
        fleet.tick()
        moved.append(fleet.nodes["b"].share)
    assert moved == sorted(moved)
    assert moved[1] < 0.6
    assert moved[-1] > 0.95
    assert fleet.leader.share > 0.02


def test_a_node_without_any_demand_gets_something_to_begin_with() -> None:
    fleet = Fleet("a", "b")
    fleet.nodes["c"] = Node("c", Policy())
    fleet.silent = {"c"}
    for _ in range(5):
        fleet.leader.work(100, fleet.now_ns)
        fleet.nodes["b"].work(100, fleet.now_ns)
        fleet.tick()
    fleet.silent.clear()
    fleet.gather()
    shares = {name: node.share for name, node in fleet.nodes.items()}
    assert 0.02 <= shares["c"] <= 0.05
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)


def test_a_node_that_has_left_is_forgotten_and_its_share_goes_to_the_others() -> None:
    fleet = Fleet("a", "b")
    fleet.run(20)
    del fleet.nodes["b"]
    fleet.run(150)
    fleet.gather()
    assert fleet.leader.share == 1.0


def test_with_no_demand_at_all_shares_stay_as_they_are() -> None:
    fleet = Fleet("a", "b")
    for node in fleet.nodes.values():
        node.backends.set_default_share(0.5, 0)
    fleet.run(3, 0)
    assert [node.share for node in fleet.nodes.values()] == [0.5, 0.5]


# Which signal.


def test_many_reports_win_then_a_poll_then_a_monitor_then_few_reports(told: Told) -> None:
    fleet = Fleet("a")
    node, controller = fleet.leader, fleet.leader.controller

    def source(reported: int, *, poll: bool, health: bool) -> str | None:
        controller.lead(7)
        controller.follow()
        controller.lead(7)
        node.backends.health.clear()
        node.work(reported, fleet.now_ns)
        if poll:
            controller.polled(NAME, signal("poll"), fleet.now_ns)
        if health:
            node.backends.health[NAME] = signal("health"), fleet.now_ns
        fleet.tick()
        return told.source

    assert source(REPORTS_MIN, poll=True, health=True) == "report"
    assert source(REPORTS_MIN - 1, poll=True, health=True) == "poll"
    assert source(REPORTS_MIN - 1, poll=False, health=True) == "health"
    assert source(REPORTS_MIN - 1, poll=False, health=False) == "report"
    assert source(0, poll=False, health=False) is None


@pytest.mark.parametrize("source", ["poll", "health"])
def test_what_was_said_too_long_ago_is_not_told_to_the_law(told: Told, source: str) -> None:
    fleet = Fleet("a")
    if source == "poll":
        fleet.leader.controller.polled(NAME, signal("poll"), 0)
    else:
        fleet.leader.backends.health[NAME] = signal("health"), 0
    for _ in range(FRESH_NS // NS + 2):
        fleet.tick()
    assert [told and told.source for told in told.signals] == [source] * (FRESH_NS // NS) + [None] * 2


def test_a_slow_poll_holds_until_the_next_but_one(told: Told) -> None:
    fleet = Fleet("a")
    poll = Poll("http://orders/health", "json", 10.0, None, None, None)
    fleet.leader.backends.set_entry(NAME, Backend(Policy(slo_ms=250), poll=poll), 0)
    fleet.leader.controller.polled(NAME, signal("poll"), 0)
    for _ in range(27):
        fleet.tick()
    assert [told and told.source for told in told.signals] == ["poll"] * 25 + [None] * 2


def test_a_monitor_that_is_fresh_is_heard_where_the_poll_is_stale(told: Told) -> None:
    fleet = Fleet("a")
    fleet.leader.controller.polled(NAME, signal("poll"), 0)
    for _ in range(FRESH_NS // NS):
        fleet.tick()
    fleet.leader.backends.health[NAME] = signal("health"), fleet.now_ns
    fleet.tick()
    assert told.source == "health"


def test_a_node_that_leads_again_does_not_go_by_polls_of_its_last_time(told: Told) -> None:
    fleet = Fleet("a")
    fleet.leader.controller.polled(NAME, signal("poll"), 0)
    fleet.leader.controller.follow()
    fleet.leader.controller.lead(9)
    fleet.tick()
    assert told.signals == [None]


def test_it_is_known_when_each_source_was_last_heard() -> None:
    fleet = Fleet("a", "b")
    fleet.nodes["b"].work(1, 0)
    fleet.leader.controller.polled(NAME, signal("poll"), 5)
    fleet.gather()
    assert fleet.leader.controller.sources == {NAME: {"poll": 5, "report": NS}}


# Which backends.


def overloaded(fleet: Fleet, seconds: int = 5) -> None:
    fleet.run(20)
    fleet.run(seconds, latency_ms=2_000, reported=40)


def test_an_overload_is_decided_for_the_whole_fleet() -> None:
    fleet = Fleet("a", "b")
    overloaded(fleet)
    assert fleet.decision.state in ("overload", "drain")
    assert fleet.decision.multiplier < 0.9
    assert [node.backends.records[NAME].decision.state for node in fleet.nodes.values()] == [fleet.decision.state] * 2


def test_a_pinned_backend_is_left_alone() -> None:
    fleet = Fleet("a")
    for node in fleet.nodes.values():
        node.backends.set_record(NAME, Record(Decision(0.5, "unknown", ""), pinned=True), 0)
    overloaded(fleet)
    assert fleet.leader.controller.decisions == {}
    assert fleet.leader.backends.ppm(NAME) == 500_000


def test_a_backend_that_is_off_is_left_alone() -> None:
    fleet = Fleet("a", mode="off")
    overloaded(fleet)
    assert fleet.leader.controller.decisions == {}
    assert fleet.leader.backends.records == {}


def test_a_backend_that_was_off_starts_from_what_holds_and_not_from_what_was_published_before() -> None:
    fleet = Fleet("a")
    overloaded(fleet)
    assert fleet.leader.backends.ppm(NAME) < 900_000
    fleet.leader.backends.set_entry(NAME, Backend(Policy(slo_ms=250, mode="off")), 0)
    assert fleet.tick()[NAME].state == "normal"
    assert fleet.tick() == {}
    fleet.leader.backends.set_entry(NAME, Backend(Policy(slo_ms=250)), 0)
    assert fleet.leader.backends.ppm(NAME) == 1_000_000
    fleet.run(1)
    assert fleet.decision.multiplier == 1.0


def test_a_pin_on_a_backend_that_is_off_stays() -> None:
    fleet = Fleet("a", mode="off")
    fleet.leader.backends.set_record(NAME, Record(CUT, pinned=True), 0)
    assert fleet.tick() == {}


def test_a_published_backend_that_nobody_names_is_left_alone() -> None:
    fleet = Fleet("a")
    fleet.leader.backends.set_record("gone", Record(Decision(0.5, "overload", "")), 0)
    fleet.run(3)
    assert fleet.leader.controller.decisions.keys() == {NAME}
    assert fleet.leader.backends.records["gone"].decision.multiplier == 0.5


def test_a_backend_that_is_no_more_is_forgotten() -> None:
    fleet = Fleet("a")
    fleet.run(3)
    controller = fleet.leader.controller
    fleet.leader.backends.set_entry(NAME, None, 0)
    fleet.tick()
    assert controller.sources == {}
    controller.ask({"b"}, fleet.now_ns)
    assert controller.frames("b")[0].shares == {}


def test_after_a_pin_the_law_begins_from_it() -> None:
    fleet = Fleet("a")
    fleet.run(10)
    pin = Decision(0.5, "unknown", "")
    fleet.leader.backends.set_record(NAME, Record(pin, pinned=True), 0)
    fleet.run(3)
    fleet.leader.backends.set_record(NAME, Record(pin), 0)
    fleet.run(1, 50)
    assert abs(fleet.decision.multiplier - 0.5) <= 0.05


def test_a_changed_policy_is_gone_by_from_the_next_tick() -> None:
    fleet = Fleet("a", min=0.9)
    overloaded(fleet, 10)
    assert fleet.decision.multiplier == 0.9
    fleet.leader.backends.set_entry(NAME, Backend(Policy(slo_ms=250, min=0.05)), 0)
    fleet.run(3, latency_ms=2_000, reported=40)
    assert fleet.decision.multiplier < 0.9


# Taking over.


@pytest.mark.parametrize("latency_ms", [50, 2_000])
def test_a_new_leader_goes_on_from_what_is_published_without_a_jump(latency_ms: float) -> None:
    fleet = Fleet("a", "b")
    overloaded(fleet, 8)
    fleet.run(3, latency_ms=2_000, reported=40)
    before = fleet.leader.backends.records[NAME].decision
    assert before.multiplier < 0.9
    fleet.leader.controller.follow()
    fleet.leader = fleet.nodes["b"]
    fleet.leader.controller.lead(8)
    fleet.term = 8
    fleet.run(1, latency_ms=latency_ms, reported=40)
    assert abs(fleet.decision.multiplier - before.multiplier) <= 0.1 * before.multiplier + 0.01


def test_a_new_leader_that_hears_nothing_holds_what_is_published() -> None:
    fleet = Fleet("a", "b")
    overloaded(fleet, 8)
    before = fleet.leader.backends.records[NAME].decision.multiplier
    fleet.leader.controller.follow()
    fleet.leader = fleet.nodes["b"]
    fleet.leader.controller.lead(8)
    for _ in range(5):
        fleet.tick()
    assert fleet.decision.multiplier == pytest.approx(before)
    assert fleet.decision.state == "hold"


# What is published.


def test_in_health_nothing_is_published() -> None:
    fleet = Fleet("a", "b")
    fleet.run(30)
    assert fleet.leader.backends.records == {}


def test_what_has_not_changed_is_not_published_again() -> None:
    fleet = Fleet("a")
    overloaded(fleet)
    assert fleet.tick()[NAME].state == "hold"
    for _ in range(15):
        fleet.tick()
    assert [fleet.tick() for _ in range(5)] == [{}] * 5


NORMAL = Decision(1.0, "normal", "")
CUT = Decision(0.5, "overload", "p90", rate=100.0, priorities={"0": 1.0, "5": 0.5})


def changed(**fields: Any) -> Decision:
    return msgspec.structs.replace(CUT, **fields)


@pytest.mark.parametrize(
    ("published", "decision", "is_told"),
    [
        (None, NORMAL, False),
        (None, CUT, True),
        (None, Decision(1.0, "fallback", ""), True),
        (NORMAL, NORMAL, False),
        (NORMAL, Decision(1.0, "normal", "for another reason"), False),
        (CUT, CUT, False),
        (CUT, NORMAL, True),
        (CUT, changed(reason="p90 more"), False),
        (CUT, changed(state="recovery"), True),
        (CUT, changed(multiplier=0.509), False),
        (CUT, changed(multiplier=0.511), True),
        (changed(multiplier=0.995), changed(multiplier=1.0), True),
        (CUT, changed(rate=None), True),
        (changed(rate=None), CUT, True),
        (CUT, changed(rate=102.9), False),
        (CUT, changed(rate=103.1), True),
        (CUT, changed(priorities={"0": 1.0, "5": 0.52}), False),
        (CUT, changed(priorities={"0": 1.0, "5": 0.46}), True),
        (CUT, changed(priorities={"0": 1.0, "5": 0.5, "9": 0.9}), True),
        (CUT, changed(priorities={"5": 0.5}), False),
        (CUT, changed(hold_rate=200.0, expires_ms=1_600), True),
    ],
)
def test_only_news_is_published(published: Decision | None, decision: Decision, is_told: bool) -> None:
    assert is_news(published, decision) is is_told


def test_a_backend_that_goes_from_observed_to_on_is_published_at_once() -> None:
    fleet = Fleet("a", mode="observe", min=0.9)
    overloaded(fleet, 10)
    record = fleet.leader.backends.records[NAME]
    assert record.would is not None
    assert (record.decision.multiplier, record.would.multiplier) == (1.0, 0.9)
    fleet.leader.backends.set_entry(NAME, Backend(Policy(slo_ms=250, min=0.9)), 0)
    fleet.run(1, latency_ms=2_000, reported=40)
    assert fleet.leader.backends.ppm(NAME) == 900_000
    assert fleet.leader.backends.records[NAME].would is None


# Very many backends.


def many(count: int, latencies: int = 0, outcomes: int = 1) -> Node:
    node = Node("b", Policy())
    for number in range(count):
        name = f"{number:064}"
        node.backends.set_entry(name, Backend(), 0)
        for latency in range(latencies):
            node.backends.gate(name).report(1.03**latency, "ok", outcomes, 0)
    return node


@pytest.mark.parametrize(("latencies", "outcomes"), [(0, 1), (300, 1), (300, 2**40)])
def test_an_answer_fits_its_frame_however_many_backends_there_are(latencies: int, outcomes: int) -> None:
    node = many(1_200, latencies, outcomes)
    seen: set[str] = set()
    for turn in range(8):
        gathered = node.controller.answer(Gather(turn, 7, {}), (turn + 1) * NS)
        frame = encode(gathered)
        assert len(frame) < FRAME_BYTES_MAX
        assert list(Decoder().feed(frame)) == [gathered]
        seen |= gathered.loads.keys()
    # Each has its turn, and none more often than it must.
    assert len(seen) == 1_201


def test_a_question_fits_its_frame_and_tells_every_share_in_turn() -> None:
    leader = many(2_500)
    leader.controller.lead(7)
    for number in range(2_500):
        leader.backends.gate(f"{number:064}").admit(5, 0)
    for turn in range(1, 4):
        leader.controller.ask(set(), turn * NS)
        leader.controller.decide(turn * NS)
    seen: set[str] = set()
    for turn in range(4, 8):
        leader.controller.ask({"c", "d"}, turn * NS)
        told = {name: sent(leader.controller.frames(name)[0]).shares for name in ("c", "d")}
        assert len(told["c"]) == len(told["d"]) == BACKENDS_MAX
        seen |= told["c"].keys()
    assert len(seen) == 2_500
