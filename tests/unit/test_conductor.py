"""The conductor: has the fleet asked, the law applied and the outcome published, while its node leads.

Method: a real router, rulebook and polls of a node alone in its ring; ticks are a hundredth of a second long, and the
node's clock goes on by a second whenever it is looked at. Who leads is played by hand.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from limiter_node.control.conductor import STANDALONE_TERM, Conductor
from limiter_node.control.etcd_link import LinkError
from limiter_node.control.polls import Polls
from limiter_node.control.rulebook import RuleBook
from limiter_node.core.engine import Engine
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from tests.e2e.test_etcd_session import eventually

if TYPE_CHECKING:
    from limiter_node.core.adaptive.gate import Gate

NS = 1_000_000_000
KEY = "multipliers/orders"
OVERLOADED = {"latency_ms": {"p50": 1_000, "p90": 2_000, "p99": 3_000}, "error_rate": 0.3, "throughput": 100}


class Elections:
    """Leadership, as the test wants it; `written` is what etcd got."""

    def __init__(self) -> None:
        self.term = 0
        self.is_leader = False
        self.is_lost = False  # etcd does not answer
        self.written: list[tuple[str, Any, int | None]] = []
        self.tried = 0

    def win(self, term: int) -> None:
        self.term, self.is_leader = term, True

    def lose(self) -> None:
        self.is_leader = False

    async def write(self, key: str, value: bytes, mod_revision: int | None) -> bool:
        self.tried += 1
        if self.is_lost:
            raise LinkError("not connected")
        self.written.append((key, json.loads(value), mod_revision))
        return True


class Fixture:
    """A node and its conductor, running."""

    def __init__(self, elections: Elections | None) -> None:
        self.now_ns = 0
        self.engine = Engine(buckets_max=100)
        self.router = Router("a", self.engine, peer_timeout_ns=NS, open_link=self.open_no_link)
        self.router.set_ring(Ring(1, {"a": Member("a", "a:1")}), 0)
        self.book = RuleBook(self.engine)
        self.polls = Polls(self.engine.backends, self.router.controller, self.tell_ns, random.Random(1))
        leadership: Any = elections
        self.conductor = Conductor(self.router, self.book, leadership, self.polls, self.tell_ns)
        self.book.changed("backends/orders", b'{"slo_ms": 250}', 0)
        self._task = asyncio.create_task(self.conductor.run())

    @staticmethod
    def open_no_link(_: Any) -> Any:
        raise AssertionError("a node alone has no peers")

    def tell_ns(self) -> int:
        self.now_ns += NS
        return self.now_ns

    @property
    def gate(self) -> Gate:
        return self.engine.backends.gate("orders")

    @property
    def multiplier(self) -> float:
        return self.engine.backends.ppm("orders") / 1e6

    def say(self, document: Any) -> None:
        """Be the monitor, whose word holds from now on."""
        self.book.changed("health/orders", json.dumps(document).encode(), 10**6 * NS)

    def put(self, key: str, document: Any) -> None:
        self.book.changed(key, json.dumps(document).encode(), self.now_ns)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limiter_node.control.conductor.TICK_S", 0.01)
    monkeypatch.setattr("limiter_node.control.conductor.ANSWER_S", 0.001)


@pytest.fixture
def elections() -> Elections:
    return Elections()


async def test_a_node_alone_leads_itself_and_goes_by_its_decisions_at_once() -> None:
    fixture = Fixture(None)
    try:
        await eventually(lambda: fixture.router.controller.term == STANDALONE_TERM)
        assert fixture.multiplier == 1
        fixture.say(OVERLOADED)
        await eventually(lambda: fixture.multiplier < 0.9)
        assert fixture.engine.backends.state("orders") in ("overload", "drain")
        assert fixture.conductor.published > 0
    finally:
        await fixture.stop()


async def test_in_a_fleet_decisions_go_to_etcd_and_are_gone_by_when_they_come_back(elections: Elections) -> None:
    fixture = Fixture(elections)
    try:
        fixture.say(OVERLOADED)
        elections.win(17)
        await eventually(lambda: elections.written)
        key, document, revision = elections.written[0]
        assert (key, document["term"], revision) == (KEY, 17, 0)
        assert document["state"] == "overload"
        assert fixture.multiplier == 1
        fixture.conductor.changed("orders", 42, is_deleted=False)
        await eventually(lambda: elections.written[-1][2] == 42)
        fixture.conductor.changed("orders", 43, is_deleted=True)
        await eventually(lambda: elections.written[-1][2] == 0)
        fixture.put(*elections.written[-1][:2])
        assert fixture.multiplier < 1
        assert fixture.conductor.published == len(elections.written)
    finally:
        await fixture.stop()


async def test_what_is_only_observed_is_published_as_such(elections: Elections) -> None:
    fixture = Fixture(elections)
    try:
        fixture.put("backends/orders", {"slo_ms": 250, "adaptive": "observe"})
        fixture.say(OVERLOADED)
        elections.win(17)
        await eventually(lambda: any(document["would"]["multiplier"] < 1 for _, document, _ in elections.written))
        assert {(document["multiplier"], document["state"]) for _, document, _ in elections.written} == {(1, "observe")}
    finally:
        await fixture.stop()


async def test_who_leads_no_more_asks_nobody_until_it_leads_again(elections: Elections) -> None:
    fixture = Fixture(elections)
    try:
        fixture.say(OVERLOADED)
        elections.win(17)
        await eventually(lambda: elections.written)
        elections.lose()
        await eventually(lambda: fixture.router.controller.term == 0)
        tried = elections.tried
        elections.win(18)
        await eventually(lambda: elections.tried > tried)
        assert {document["term"] for _, document, _ in elections.written[tried:]} == {18}
        assert fixture.router.controller.term == 18
    finally:
        await fixture.stop()


async def test_a_leader_that_loses_while_it_decides_publishes_no_more(
    elections: Elections, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(elections)
    decide = fixture.router.controller.decide

    def lose_and_decide(now_ns: int) -> Any:
        changed = decide(now_ns)
        if changed:
            elections.lose()
        return changed

    monkeypatch.setattr(fixture.router.controller, "decide", lose_and_decide)
    try:
        fixture.say(OVERLOADED)
        elections.win(17)
        await eventually(lambda: elections.term and not elections.is_leader)
        await eventually(lambda: fixture.router.controller.term == 0)
        assert elections.tried == 0
    finally:
        await fixture.stop()


async def test_an_etcd_that_does_not_answer_is_tried_again_at_the_next_tick(elections: Elections) -> None:
    fixture = Fixture(elections)
    try:
        fixture.say(OVERLOADED)
        elections.is_lost = True
        elections.win(17)
        await eventually(lambda: elections.tried >= 2)
        assert fixture.conductor.published == 0
        elections.is_lost = False
        await eventually(lambda: fixture.conductor.published)
    finally:
        await fixture.stop()


async def test_polls_are_kept_by_who_leads_alone(elections: Elections) -> None:
    fixture = Fixture(elections)
    try:
        fixture.put("backends/orders", {"poll": {"url": "http://127.0.0.1:9/", "every_s": 3600}})
        elections.win(17)
        await eventually(lambda: polls_under_way() == ["poll of orders"])
        elections.lose()
        await eventually(lambda: not polls_under_way())
        elections.win(18)
        await eventually(polls_under_way)
    finally:
        await fixture.stop()
    await eventually(lambda: not polls_under_way())


def polls_under_way() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("poll of ")]
