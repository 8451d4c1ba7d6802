"""What a connection of the check API exchanges requests and answers with: an application, its server, a late answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from limiter_node.edge.answers import Problem
    from limiter_node.edge.http import HttpConnection


class Application(Protocol):
    """What answers requests."""

    def handle(self, request: HttpConnection, slot: Slot) -> bytes | None:
        """Return the whole answer, or None when `slot.fill` will bring it later; raise `Problem` to refuse."""

    def handle_plain_get(self, line: bytes, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        """As `handle`, for method and target of a GET on a connection that stays open; False for an unusual one."""


class Server(Protocol):
    """What a connection belongs to."""

    app: Application
    connections: set[HttpConnection]
    is_draining: bool
    date: str  # the Date header line

    def has_room(self) -> bool:
        """Whether another connection may stay."""

    def was_read(self, connection: HttpConnection) -> None:
        """Have the connection `process` its input, and write or `flush`, soon."""

    def was_much_read(self, connection: HttpConnection) -> None:
        """As `was_read`, of input that may take long."""

    def fell_behind(self, connection: HttpConnection) -> None:
        """Have the connection `catch_up` once it has processed its input: until then it reads no more."""

    def was_answered(self, connection: HttpConnection) -> None:
        """Have the connection `flush`, later in this pass of the loop."""

    def problem_answer(self, problem: Problem, connection_header: str) -> bytes:
        """The answer to what is no good; counts it."""


class Waiting(Protocol):
    """A connection that waits for an answer."""

    def was_answered(self) -> None:
        """Have the answers written that can be."""


class Slot(msgspec.Struct, eq=False):
    """The place, in the order of a connection's answers, of one that is not there yet."""

    connection: Waiting
    answer: bytes | None = None
    closes: bool = False

    def fill(self, answer: bytes) -> None:
        """Bring the answer; it leaves as soon as all earlier ones have."""
        self.answer = answer
        self.connection.was_answered()
