"""A node that gets more than it can do: it refuses what has waited too long, answers everything once, and lives.

The flood is a frozen node's: far more requests are sent than it can answer before its queue counts as standing, so
that what happens does not depend on how fast machine and clients are.
"""

from __future__ import annotations

import re
import resource
import selectors
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import HttpClient, NodeProcess, RawConnection, check, eventually, get_json, request, split_address

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES: dict[str, Any] = {"rules": {"bulk": {"rate": "1/d", "burst": 1_000_000}}}
BURST = 1_000_000
CROWD = 250
REQUESTS_EACH = 400
FEW = 50
FLOOD_DEADLINE_S = 60.0
MARK = b"HTTP/1.1 "

_STATUS_AND_LEFT = re.compile(rb'HTTP/1\.1 (\d+) .*?\r\n\r\n(?:\{"allowed":true.*?"remaining":(\d+))?', re.DOTALL)


@pytest.fixture
def node() -> Iterator[NodeProcess]:
    with NodeProcess("busy", rules=RULES) as running:
        yield running


class Client:
    """Sends many requests for a key of its own at once, and takes in what comes back."""

    def __init__(self, address: str, key: str, count: int) -> None:
        self.key, self.count = key, count
        self.socket = socket.create_connection(split_address(address))
        self.socket.setblocking(False)
        self.unsent = f"GET /v1/check?rule=bulk&key={key} HTTP/1.1\r\nHost: limiter\r\n\r\n".encode() * count
        self.came = bytearray()
        self.answered = 0

    def go_on(self) -> bool:
        """Send and receive what can be; says whether all is answered."""
        with suppress(BlockingIOError):
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        with suppress(BlockingIOError):
            while data := self.socket.recv(1 << 20):
                self.came += data
                # An answer's start may have come in two parts.
                self.answered += self.came.count(MARK, max(0, len(self.came) - len(data) - len(MARK) + 1))
        return self.answered == self.count and self.came.endswith(b"}")

    def answers(self) -> list[tuple[int, int]]:
        """(status, tokens left, of a grant) of each answer, in their order."""
        return [(int(status), int(left or -1)) for status, left in _STATUS_AND_LEFT.findall(bytes(self.came))]


def flood(node: NodeProcess, clients: list[Client]) -> None:
    """Let clients fill the queues of a frozen node, then let it go on until all is answered."""
    node.pause()
    for client in clients:
        client.go_on()
    node.resume()
    end = time.monotonic() + FLOOD_DEADLINE_S
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
        while selector.get_map():
            assert time.monotonic() < end, f"{len(selector.get_map())} clients are not answered"
            for key, _ in selector.select(0.1):
                if not key.data.unsent:
                    selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
                if key.data.go_on():
                    selector.unregister(key.fileobj)


def test_a_flood_is_shed_and_every_request_is_answered_once_and_in_order(node: NodeProcess) -> None:
    with ExitStack() as stack, HttpClient(node.admin) as probe:
        assert probe.request("GET", "/readyz").status == 200
        clients = [Client(node.http, f"k{number}", REQUESTS_EACH) for number in range(CROWD)]
        for client in clients:
            stack.enter_context(client.socket)
        eventually(lambda: metric(node, "limiter_http_connections") == CROWD, what="all are connected")
        flood(node, clients)
        assert probe.request("GET", "/readyz").status == 200

        granted = refused = 0
        for client in clients:
            answers = client.answers()
            lefts = [left for status, left in answers if status == 200]
            assert len(answers) == REQUESTS_EACH
            assert {status for status, _ in answers} <= {200, 503}
            assert lefts == list(range(BURST - 1, BURST - 1 - len(lefts), -1)), "in order, and only grants spend"
            granted, refused = granted + len(lefts), refused + REQUESTS_EACH - len(lefts)
        assert granted > 0
        assert refused > 0
        assert metric(node, "limiter_shed_requests_total") == refused
        assert_says_when_to_come_back(next(bytes(client.came) for client in clients if b"HTTP/1.1 503" in client.came))

        answer = check(node, "bulk", "afterwards")
        assert (answer.status, answer.body["remaining"]) == (200, BURST - 1)
        eventually(lambda: not get_json(node.admin, "/v1/status")["overloaded"], what="the overload is over")
        eventually(lambda: {"overload is over"} <= {event["event"] for event in node.log_events})
        over = next(event for event in node.log_events if event["event"] == "overload is over")
        assert over["refused"] == refused


def assert_says_when_to_come_back(came: bytes) -> None:
    head, _, rest = came[came.index(b"HTTP/1.1 503") :].partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json" in head
    assert re.search(rb"\r\nRetry-After: [1-9]\d*(\r\n|$)", head)
    assert rest.startswith(b'{"type":"urn:limiter-node:problem:')
    assert b'"status":503' in rest.partition(b"}")[0]


def test_few_clients_are_never_refused_however_much_each_sends(node: NodeProcess) -> None:
    with ExitStack() as stack:
        clients = [Client(node.http, f"k{number}", REQUESTS_EACH) for number in range(FEW)]
        for client in clients:
            stack.enter_context(client.socket)
        flood(node, clients)
        for client in clients:
            assert client.answers() == [(200, BURST - 1 - index) for index in range(REQUESTS_EACH)]


class ScantNode(NodeProcess):
    """A node that may have few files open."""

    def _command(self) -> list[str]:
        return ["prlimit", "--nofile=160:160", *super()._command()]


def test_more_connections_than_there_is_room_for_are_turned_away_and_the_others_live() -> None:
    room = 80
    with ScantNode("scant", rules=RULES) as node, ExitStack() as stack:
        kept = [stack.enter_context(RawConnection(node.http)) for _ in range(room)]
        eventually(lambda: metric(node, "limiter_http_connections") == room, what="all are connected")
        for _ in range(room):
            with RawConnection(node.http) as late:
                (answer,) = late.read_to_end()
                assert (answer.status, answer.headers["connection"]) == (503, "close")
                assert int(answer.headers["retry-after"]) >= 1
        assert request(node.admin, "GET", "/healthz").status == 200
        assert metric(node, "limiter_refused_connections_total") == room
        kept.pop().close()
        eventually(lambda: check(node, "bulk", "a").status == 200, what="there is room again")
        for connection in kept:
            connection.send("GET /v1/check?rule=bulk&key=b HTTP/1.1\r\nHost: limiter\r\n\r\n")
            assert connection.read_answer().status == 200


def test_a_node_without_a_file_left_serves_those_that_it_has(node: NodeProcess) -> None:
    with HttpClient(node.http) as client, ExitStack() as stack:
        assert client.check("bulk", "a").status == 200
        limits = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        used = max(int(path.name) for path in Path(f"/proc/{node.pid}/fd").iterdir()) + 1
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        for number in range(50):
            raw = stack.enter_context(RawConnection(node.http))
            raw.send_until_refused(b"GET /v1/check?rule=bulk&key=a HTTP/1.1\r\nHost: limiter\r\n\r\n")
            assert client.check("bulk", f"b{number}").status == 200
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limits)
        eventually(lambda: check(node, "bulk", "c").status == 200, what="new connections are taken again")


def metric(node: NodeProcess, name: str) -> int:
    text = request(node.admin, "GET", "/metrics").body
    return int(float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]))  # type: ignore[index]
