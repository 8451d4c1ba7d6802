"""Adaptive throttling on three real nodes and a real etcd (contract, sections 2 to 5): what callers report or monitors
write shrinks the limits everywhere and gives them back, one controller at a time decides, people have the last word.

The backends here are played by what is reported of them; a real one that is drowned is in tests/overload.
"""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet, metric, say
from tests.harness import Answer, HttpClient, NodeProcess, check, eventually, get_json, request, split_address
from tests.relay import Relay
from tests.threads import Threads

GOOD = ((50, 200),)
BAD = ((2000, 200), (2000, 500), (2000, 200))
"""Latencies (ms) and statuses of the outcomes that are reported, in turn."""

PACE_S = 0.05


@pytest.fixture
def relays() -> dict[str, Relay]:
    """The ways to etcd, by node."""
    return {}


@pytest.fixture
def fleet(relays: dict[str, Relay]) -> Iterator[Fleet]:
    with EtcdProcess() as etcd, ExitStack() as ways:
        host, port = split_address(etcd.url.removeprefix("http://"))
        relays.update({f"n{number}": ways.enter_context(Relay((host, port))) for number in (1, 2, 3)})
        urls = [f"http://127.0.0.1:{relay.port}" for relay in relays.values()]
        with Fleet(etcd, args=PATIENT, ways=urls) as running:
            eventually(lambda: leader_of(running), what="a leader")
            yield running


def leader_of(fleet: Fleet) -> NodeProcess | None:
    """The node that all running ones take for the controller, and that acts as one."""
    names = {status["leader"] for status in fleet.statuses()}
    leaders = [node for node in fleet.running if metric(node, "limiter_leader") == 1]
    return leaders[0] if len(leaders) == 1 and names == {leaders[0].node_id} else None


def backend_at(node: NodeProcess, name: str = "orders") -> Any:
    return get_json(node.admin, "/v1/status")["backends"][name]


def multipliers(fleet: Fleet, name: str = "orders") -> list[float]:
    return [backend_at(node, name)["multiplier"] for node in fleet.running]


class Callers(Threads):
    """Callers of a backend: ten checks every 50 ms, in turn at these nodes, and an outcome for each that is allowed."""

    def __init__(self, nodes: list[NodeProcess], backend: str = "orders") -> None:
        self.outcomes: tuple[tuple[int, int], ...] | None = GOOD
        self.checked = 0
        self._backend = backend
        super().__init__(self._run, [nodes])

    def _run(self, nodes: list[NodeProcess]) -> None:
        clients = [HttpClient(node.http, 10.0) for node in nodes]
        turn = 0
        while not self.stop.wait(PACE_S):
            client = clients[turn % len(clients)]
            turn += 1
            outcomes = []
            for number in range(10):
                allowed = client.check("calls", f"user:{(turn * 10 + number) % 500}").body["allowed"]
                self.checked += 1
                if allowed and self.outcomes is not None:
                    latency_ms, status = self.outcomes[self.checked % len(self.outcomes)]
                    outcomes.append({"latency_ms": latency_ms, "status": status})
            if outcomes:
                answer = client.request("POST", "/v1/report", report_of(self._backend, outcomes))
                assert answer.status == 202
        for client in clients:
            client.close()


def report_of(backend: str, outcomes: list[dict[str, Any]]) -> str:
    return json.dumps({"backend": backend, "outcomes": outcomes})


def protect(fleet: Fleet, entry: dict[str, Any] | None = None) -> None:
    fleet.put("backends/orders", {"slo_ms": 250, **(entry or {})})
    fleet.put("rules/calls", {"rate": "1000/s", "backend": "orders"})


@contextmanager
def drowned(fleet: Fleet, nodes: list[NodeProcess] | None = None, entry: dict[str, Any] | None = None) -> Iterator[Any]:
    """Callers of a backend that is well for three seconds, and then slow and failing; yields when every node knows."""
    protect(fleet, entry)
    with Callers(nodes or fleet.nodes) as callers:
        eventually(lambda: callers.checked >= 300, 30.0, "three seconds of health")
        assert multipliers(fleet) == [1.0] * len(fleet.running)
        callers.outcomes = BAD
        began = time.monotonic()
        eventually(lambda: max(multipliers(fleet)) < 0.7, 10.0, "every multiplier below 0.7")
        took_s = time.monotonic() - began
        say(f"every multiplier below 0.7 after {took_s:.1f} s")
        assert took_s < 5.0
        yield callers


def test_limits_shrink_while_a_backend_suffers_and_grow_back(fleet: Fleet) -> None:
    with drowned(fleet) as callers:
        node = fleet.nodes[0]
        assert check(node.http, "calls", "some user").body["limit"] < 700
        seen = backend_at(node)
        assert seen["state"] in {"overload", "drain"}
        assert seen["reason"]
        callers.outcomes = GOOD
        began = time.monotonic()
        eventually(lambda: min(multipliers(fleet)) >= 0.95, 25.0, "every multiplier back")
        took_s = time.monotonic() - began
        say(f"back to 0.95 after {took_s:.1f} s")
        assert took_s < 20.0
        eventually(lambda: {backend_at(each)["state"] for each in fleet.nodes} == {"normal"}, 30.0, "normal everywhere")
        assert multipliers(fleet) == [1.0, 1.0, 1.0]
    events = [event for event in node.log_events if event["event"] == "backend state changed"]
    assert {"overload", "normal"} <= {event["state"] for event in events}


@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
def test_another_node_leads_when_the_leader_is_lost_and_nothing_jumps(
    fleet: Fleet, relays: dict[str, Relay], how: str
) -> None:
    lost = eventually(lambda: leader_of(fleet), what="a leader")
    assert lost is not None
    others = [node for node in fleet.nodes if node is not lost]
    with drowned(fleet, others):
        before = eventually(lambda: steady(others[0]), 20.0, "a steady multiplier")
        term = published(fleet)["term"]
        began = time.monotonic()
        if how == "killed":
            lost.kill()
        elif how == "frozen":
            lost.pause()
        else:
            relays[str(lost.node_id)].cut()
        jumps = []
        while metric(others[0], "limiter_leader") + metric(others[1], "limiter_leader") < 1:
            jumps.append(abs(backend_at(others[0])["multiplier"] - before))
            assert time.monotonic() < began + 12.0, "nobody has taken over"
        took_s = time.monotonic() - began
        eventually(lambda: published_later(fleet, term), 10.0, "a decision of the new leader")
        jumps.append(abs(published(fleet)["multiplier"] - before))
        say(f"another leads after {took_s:.1f} s, largest jump {max(jumps):.3f}")
        assert took_s < 10.0
        assert max(jumps) <= 0.1
        if how != "killed":
            relays[str(lost.node_id)].join()
            lost.resume()
            eventually(lambda: metric(lost, "limiter_leader") == 0, 5.0, "the old leader to see it")
            assert published(fleet)["term"] > term


def steady(node: NodeProcess) -> float | None:
    """The multiplier, if it stays for 3 s."""
    first = backend_at(node)["multiplier"]
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        if abs(backend_at(node)["multiplier"] - first) > 0.02:
            return None
        time.sleep(0.1)
    return float(first)


def published(fleet: Fleet) -> Any:
    return json.loads(fleet.etcd.etcdctl("get", "--print-value-only", "/limiter/multipliers/orders"))


def published_later(fleet: Fleet, term: int) -> bool:
    return bool(published(fleet)["term"] > term)


def test_signals_that_stop_in_mid_overload_hold_and_then_go_to_the_fallback(fleet: Fleet) -> None:
    # To the least that there is: from however deep a cut, that is down, and at once.
    with drowned(fleet, entry={"stale_after_s": 4, "min": 0.05, "fallback": 0.05}) as callers:
        callers.outcomes = None
        seen: list[float] = []

        def has_fallen_back() -> bool:
            now = backend_at(fleet.nodes[0])
            seen.append(now["multiplier"])
            return bool(now["state"] == "fallback")

        eventually(has_fallen_back, 15.0, "the fallback")
        assert all(later <= before + 1e-9 for before, later in itertools.pairwise(seen[5:]))
        eventually(lambda: multipliers(fleet) == [0.05] * 3, 5.0, "0.05 everywhere")
        assert backend_at(fleet.nodes[0])["signal_age"] >= 4


def test_a_monitor_alone_shrinks_and_restores_limits(fleet: Fleet) -> None:
    protect(fleet)
    stop = threading.Event()
    told = {"now": {"latency_ms": {"p50": 30, "p99": 90}, "error_rate": 0.0, "throughput": 200}}

    def monitor() -> None:
        while not stop.wait(0.5):
            fleet.etcd.etcdctl("put", "/limiter/health/orders", json.dumps(told["now"]))

    thread = threading.Thread(target=monitor)
    with Callers(fleet.nodes) as callers:
        callers.outcomes = None
        thread.start()
        try:
            eventually(lambda: callers.checked >= 400, 30.0, "some seconds of health")
            assert multipliers(fleet) == [1.0, 1.0, 1.0]
            told["now"] = {"latency_ms": {"p50": 1500, "p99": 2500}, "error_rate": 0.3, "throughput": 80}
            eventually(lambda: max(multipliers(fleet)) < 0.7, 8.0, "every multiplier below 0.7")
            assert "health" in backend_at(fleet.nodes[0])["signals"]
            told["now"] = {"latency_ms": {"p50": 30, "p99": 90}, "error_rate": 0.0, "throughput": 200}
            eventually(lambda: min(multipliers(fleet)) >= 0.95, 25.0, "every multiplier back")
        finally:
            stop.set()
            thread.join()


def test_what_people_pin_or_cap_holds_against_the_controller(fleet: Fleet) -> None:
    with drowned(fleet) as callers:
        fleet.put("multipliers/orders", {"multiplier": 0.9, "pinned": True})
        checked = callers.checked
        eventually(lambda: callers.checked > checked + 400, 30.0, "some seconds of overload")
        assert multipliers(fleet) == [0.9, 0.9, 0.9]
        assert {backend_at(node)["state"] for node in fleet.nodes} == {"pinned"}
        fleet.delete("multipliers/orders")
        eventually(lambda: max(multipliers(fleet)) < 0.7, 10.0, "the controller to go on")
        callers.outcomes = GOOD
        fleet.put("backends/orders", {"slo_ms": 250, "max": 0.8})
        eventually(lambda: multipliers(fleet) == [0.8, 0.8, 0.8], 25.0, "the cap")


def test_observing_decides_and_counts_and_throttles_nobody(fleet: Fleet) -> None:
    protect(fleet, {"adaptive": "observe"})
    with Callers(fleet.nodes) as callers:
        eventually(lambda: callers.checked >= 300, 30.0, "three seconds of health")
        callers.outcomes = BAD
        eventually(lambda: (backend_at(fleet.nodes[0])["would_be"] or 1) < 0.7, 10.0, "a decision to observe")
        eventually(lambda: sum(backend_at(node)["gate"]["would_deny"] for node in fleet.nodes) > 20, 10.0, "counts")
        assert multipliers(fleet) == [1.0, 1.0, 1.0]
        assert published(fleet)["multiplier"] == 1.0
        answers = [check(fleet.nodes[0].http, "calls", f"watched:{number}") for number in range(50)]
        assert all(answer.body["allowed"] for answer in answers)


def test_a_published_rate_bounds_what_many_small_clients_get_together_by_priority(fleet: Fleet) -> None:
    segments = {"premium": {"priority": 0}, "free": {"priority": 9}}
    fleet.put("rules/calls", {"rate": "1000/s", "backend": "orders", "segments": segments})
    fleet.put("multipliers/orders", {"multiplier": 1, "rate": 60, "priorities": {"0": 1, "9": 0.1}, "pinned": True})
    granted: Counter[str] = Counter()
    denials: list[Answer] = []
    began = time.monotonic()
    rounds = 0
    while time.monotonic() < began + 4.0:
        rounds += 1
        node = fleet.nodes[rounds % 3]
        for segment in ("premium", "free", "free"):
            answer = check(node.http, "calls", f"{segment}:{rounds % 200}", segment=segment)
            granted[segment] += answer.body["allowed"]
            if not answer.body["allowed"]:
                denials.append(answer)
    took_s = time.monotonic() - began
    say(f"{dict(granted)} of {rounds} and {2 * rounds} in {took_s:.1f} s; at most 60 a second in all")
    assert sum(granted.values()) <= 60 * (took_s + 1)
    assert granted["premium"] > 3 * granted["free"] > 0
    told = denials[-1]
    assert told.status == 429
    assert told.body["reason"] == "backend_overload"
    assert told.body["type"].endswith("#temporary-reduced-capacity")
    assert told.body["remaining"] == 1000  # the key's own: nothing was spent
    assert 1 <= int(told.headers["retry-after"]) <= 16
    assert len({denial.body["retry_after"] for denial in denials}) > len(denials) // 2


def test_garbage_is_counted_named_and_ignored(fleet: Fleet) -> None:
    protect(fleet, {"poll": {"url": f"http://{fleet.nodes[0].admin}/metrics"}})
    with Callers(fleet.nodes) as callers:
        leader = eventually(lambda: leader_of(fleet), what="a leader")
        assert leader is not None
        eventually(lambda: "poll" in (backend_at(leader)["fault"] or ""), 10.0, "the poll's fault")
        bad = request(fleet.nodes[0].http, "POST", "/v1/report", report_of("orders", [{"status": 99, "latency_ms": 1}]))
        assert bad.status == 400
        assert backend_at(fleet.nodes[0])["rejected"] >= 1
        fleet.put("health/orders", "certainly not JSON")
        assert all("health/orders" in keys for keys in fleet.problems())
        checked = callers.checked
        eventually(lambda: callers.checked > checked + 200, 30.0, "checks that go on")
        assert multipliers(fleet) == [1.0, 1.0, 1.0]
    fleet.delete("health/orders")
    assert metric(fleet.nodes[0], "limiter_backend_rejected_signals_total", backend="orders") >= 1
