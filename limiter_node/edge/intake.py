"""The intake of a connection: what was read and waits to be handled, and when reading pauses.

Reading pauses while the client does not read its answers, while too many of its requests wait for theirs, and while
more is at hand than the node gets to: so no client makes this side hold more than two reads and a pipeline of answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from limiter_node import clock
from limiter_node.edge import limits

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from limiter_node.edge.exchange import Server
    from limiter_node.edge.http import HttpConnection


class Intake:
    """The part of an `HttpConnection` that reads: of an `asyncio.Protocol`, in all but name, see setup.py."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.write: Callable[[bytes], None]
        self._input = b""  # read and not yet handled
        self._unread_ns = 0  # since when the client does not read; 0 while it does
        self._is_full = False  # reading pauses until enough of the answers have left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write

    def pause_writing(self) -> None:
        self._unread_ns = clock.now_ns()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._unread_ns = 0
        self._resume()

    def data_received(self, data: bytes) -> None:
        if len(data) > limits.READ_BYTES_SHORT or self._input:
            self._take_much(data)
        else:
            self._input = data
            self._server.was_read(cast("HttpConnection", self))

    def _take_much(self, data: bytes) -> None:
        """Take a long read, or one before the last was handled; the loop would read 32 long ones in a row."""
        connection = cast("HttpConnection", self)
        is_waiting = bool(self._input)
        self._input += data
        if is_waiting or len(data) > limits.READ_BYTES_LONG:
            self._transport.pause_reading()
            self._server.fell_behind(connection)
        if not is_waiting:
            self._server.was_much_read(connection)

    @property
    def input_bytes(self) -> int:
        """How much was read and waits to be handled."""
        return len(self._input)

    def catch_up(self) -> bool:
        """Read on, if all that was read has been handled; says whether it has."""
        self._resume()
        return not self._input

    def _resume(self) -> None:
        """Read on, unless there is a reason left not to; if that is its own input, once that has been handled."""
        if self._unread_ns or self._is_full:
            return
        if self._input:
            self._server.fell_behind(cast("HttpConnection", self))
        elif not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()
