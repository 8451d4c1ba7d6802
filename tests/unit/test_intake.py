"""What a connection reads and when it does not: reading always goes on once nothing is left that it paused for."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest

from limiter_node import clock
from limiter_node.edge import limits
from limiter_node.edge.http import HttpConnection
from limiter_node.edge.http_server import HttpServer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from limiter_node.edge.exchange import Slot

GET = b"GET /v1/check?rule=api&key=k HTTP/1.1\r\nHost: limiter\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class OneAnswer:
    """An application that answers everything alike, at once."""

    def handle(self, request: HttpConnection, slot: Slot) -> bytes | None:
        return ANSWER

    def handle_plain_get(self, line: bytes, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        return ANSWER if line.count(b" ") == 1 else False


class Wire:
    """A transport that remembers what was written, and whether it reads."""

    def __init__(self) -> None:
        self.written = b""
        self.reads = True
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_reading(self) -> bool:
        return self.reads

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


class Loop:
    """Passes of a loop, one at a time."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def run(self) -> int:
        """Go on until there is nothing to do; returns the number of passes."""
        passes = 0
        while self.soon:
            soon, self.soon = self.soon, []
            for callback in soon:
                callback()
            passes += 1
            assert passes < 10_000
        return passes


class Fixture:
    def __init__(self) -> None:
        self.server = HttpServer(OneAnswer())
        self.loop = Loop()
        self.server._loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.wire = Wire()
        self.connection = self.connect(self.wire)

    def connect(self, wire: Wire) -> HttpConnection:
        connection = HttpConnection(self.server)
        connection.connection_made(cast("asyncio.Transport", wire))
        return connection

    @property
    def answers(self) -> int:
        return self.wire.written.count(ANSWER)


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def gets(size: int) -> bytes:
    """So many bytes of whole requests, or a little more."""
    return GET * (size // len(GET) + 1)


@pytest.mark.parametrize("size", [1, limits.PIECE_BYTES_MAX, limits.READ_BYTES_LONG, 4 * limits.READ_BYTES_LONG])
def test_all_of_a_read_is_answered_and_reading_goes_on(fixture: Fixture, size: int) -> None:
    fixture.connection.data_received(gets(size))
    fixture.loop.run()
    assert fixture.answers == len(gets(size)) // len(GET)
    assert fixture.wire.reads


def test_a_long_read_is_taken_in_pieces_and_others_are_served_in_between(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By a clock on which each piece takes 1 ms: how much of a pass it leaves is not to depend on the machine.
    monkeypatch.setattr(clock, "now_ns", partial(next, count(clock.now_ns(), 1_000_000)))
    other = Wire()
    fixture.connection.data_received(gets(3 * limits.PIECE_BYTES_MAX))
    fixture.connect(other).data_received(GET)
    fixture.loop.soon.pop()()
    assert other.written == ANSWER
    assert 0 < fixture.answers < 3 * limits.PIECE_BYTES_MAX // len(GET)


def test_a_second_read_before_the_first_was_handled_pauses_reading_until_both_have_been(fixture: Fixture) -> None:
    fixture.connection.data_received(GET[:30])
    fixture.connection.data_received(GET[30:] + GET)
    assert not fixture.wire.reads
    fixture.loop.run()
    assert fixture.answers == 2
    assert fixture.wire.reads


def test_a_client_that_reads_again_while_its_input_waits_is_read_from_once_that_is_handled(fixture: Fixture) -> None:
    fixture.connection.data_received(gets(3 * limits.PIECE_BYTES_MAX))
    fixture.loop.soon.pop()()
    fixture.connection.pause_writing()
    fixture.connection.resume_writing()
    assert not fixture.wire.reads, "what it has sent is to be handled first"
    fixture.loop.run()
    assert fixture.answers == len(gets(3 * limits.PIECE_BYTES_MAX)) // len(GET)
    assert fixture.wire.reads


def test_a_client_that_does_not_read_is_not_read_from_when_its_input_has_been_handled(fixture: Fixture) -> None:
    fixture.connection.data_received(gets(2 * limits.READ_BYTES_LONG))
    fixture.connection.pause_writing()
    fixture.loop.run()
    assert not fixture.wire.reads
    fixture.connection.resume_writing()
    assert fixture.wire.reads


def test_a_client_that_has_said_all_gets_every_answer_before_the_connection_ends(fixture: Fixture) -> None:
    fixture.connection.data_received(gets(3 * limits.PIECE_BYTES_MAX))
    fixture.connection.eof_received()
    fixture.loop.soon.pop()()
    assert not fixture.wire.is_closed
    fixture.loop.run()
    assert fixture.answers == len(gets(3 * limits.PIECE_BYTES_MAX)) // len(GET)
    assert fixture.wire.is_closed


def test_a_connection_that_is_lost_while_its_input_waits_is_let_go(fixture: Fixture) -> None:
    fixture.connection.data_received(gets(2 * limits.READ_BYTES_LONG))
    fixture.wire.is_closed = True
    fixture.connection.connection_lost(None)
    fixture.loop.run()
    assert not fixture.server.connections
    assert not fixture.server._behind
    fixture.server._behind_before.clear()
    other = Wire()
    fixture.connect(other).data_received(GET)
    fixture.loop.run()
    assert other.written == ANSWER


@pytest.mark.parametrize(
    ("request_", "closes"),
    [
        (GET, False),
        (b"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"GET /v1/check HTTP/1.1\r\nHost: limiter\r\nConnection: close\r\n\r\n", True),
    ],
)
def test_what_is_late_on_a_shedding_node_is_refused_and_what_comes_after_it_is_not(
    fixture: Fixture, request_: bytes, closes: bool
) -> None:
    fixture.connection.data_received(GET)
    fixture.loop.run()
    fixture.wire.written = b""
    fixture.server._backlog.is_shedding = True
    fixture.server.fell_behind(fixture.connection)
    fixture.server._behind[fixture.connection] = 1  # since the machine was started
    fixture.connection.data_received(request_)
    fixture.loop.run()
    assert fixture.wire.written.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in fixture.wire.written
    assert fixture.wire.written.count(b"HTTP/1.1 ") == fixture.server.refusing.refused == 1
    assert fixture.wire.is_closed is closes
    fixture.wire.written = b""
    fixture.connection.data_received(GET)
    fixture.loop.run()
    assert fixture.wire.written == (b"" if closes else ANSWER)


def test_past_the_most_connections_newcomers_are_told_so_and_closed(fixture: Fixture) -> None:
    fixture.server.connections_max = 1
    late = Wire()
    fixture.connect(late)
    assert late.written.startswith(b"HTTP/1.1 503 ")
    assert late.is_closed
    assert fixture.server.turned_away == 1
    assert fixture.server.connections == {fixture.connection}
