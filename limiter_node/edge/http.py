"""HTTP/1.1 as the check path needs it: callbacks of asyncio and httptools, no task and no request object.

It decides framing, sizes, the order of pipelined answers, and when a client is too slow; what a request means is the
`Application`'s. An answer is complete bytes, given at once or later through a `Slot`.

Invariants: every request that could be framed gets exactly one answer, in the order of the requests; after an
ambiguous framing the connection gets at most one answer and is closed; memory per connection is bounded by the sizes
below.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools
import structlog

from limiter_node import clock
from limiter_node.edge import limits
from limiter_node.edge.answers import Problem
from limiter_node.edge.exchange import Slot
from limiter_node.edge.intake import Intake

if TYPE_CHECKING:
    import asyncio

    from limiter_node.edge.exchange import Server

log = structlog.get_logger()

_WHOLE_GET = re.compile(rb"GET \S+( HTTP/1\.1\r\n.+)", re.DOTALL)


class HttpConnection(Intake):
    """One client connection. The attributes without underscore are the request being handled."""

    __deletable__ = ("_parser", "_spare")  # see `connection_lost`; mypyc wants to be told

    def __init__(self, server: Server) -> None:
        self.now_ns = 0  # when the bytes being parsed were read
        self.method = b""
        self.target = b""  # as sent: path and query
        self.content_type: bytes | None = None
        self.request_id: bytes | None = None  # the header X-Request-Id
        self.body = b""
        self.connection_header = ""  # the header line that the answer has to carry
        super().__init__(server)
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Slot] = deque()  # answers that wait, or wait behind one that does
        self._spare = Slot(self)
        self._out: list[bytes] = []
        self._began_ns = 0  # when the unfinished request began; 0 between requests
        self._last_ns = clock.now_ns()
        self._is_closing = False
        self._is_ended = False  # the client has closed its side
        self._in_head = False
        self._ended = 0  # requests parsed to their end so far
        self._known_tail = b""  # all behind the target of a GET that the parser found good, see `_known_get`
        self._reset_request()

    def _reset_request(self) -> None:
        self.target = b""
        self.content_type = self.request_id = None
        self.body = b""
        self._head_bytes = 0  # of whole headers
        self._raw_bytes = 0  # of all reads that brought nothing but this request
        self._hosts = 0
        self._body_bytes = 0
        self._body_parts: list[bytes] = []
        self._connection: bytes | None = None  # the header of that name
        self._expects_continue = False
        self._content_length = 0
        self._is_chunked = False
        self._is_refused = False

    @property
    def date(self) -> str:
        """The Date header line of an answer that leaves now."""
        return self._server.date

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._server.has_room():
            self._server.connections.add(self)
        else:
            problem = Problem(503, "the node has as many connections as it can", headers="Retry-After: 1\r\n")
            self._is_closing = True
            self.write(self._server.problem_answer(problem, "Connection: close\r\n"))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._queue.clear()
        self._server.connections.discard(self)
        # They refer to this, and nothing is parsed or answered any more: it is freed at once only when it forgets them.
        del self._parser, self._spare

    def eof_received(self) -> bool:
        # The reads before it are answered later, some answers come from other nodes: stay until then.
        self._is_ended = True
        self._known_tail = b""  # the short way would not end the connection
        self._server.was_answered(self)
        return True

    def process(self, now_ns: int) -> bytes | None:
        """Answer what was read: with the bytes to be written, or else (None) by `flush`.

        To return them saves the way through the queue of answers, a twentieth of a check's time. Empty: nothing yet.
        """
        self.now_ns = self._last_ns = now_ns
        data, self._input = self._input, b""
        # Clients and balancers that keep a connection send the same headers again and again. The parser has found them
        # good once, so only the target is new: this saves a quarter of a check's time.
        target = data.removesuffix(self._known_tail)
        if len(target) < len(data) and not (self._began_ns or self._is_closing or self._server.is_draining):
            answer = self._known_get(target)
            if answer is not None:
                return answer
        if not self._is_closing:
            self._parse(data)
        self._pause_if_full()
        return None

    def _known_get(self, target: bytes) -> bytes | None:
        """Answer a GET of known headers, by the bytes before them; None, for the parser, if those are unusual."""
        self.connection_header = ""
        slot = self._spare
        try:
            answer = self._server.app.handle_plain_get(target, self, slot)
        except Exception:
            answer = self._own_bug()
        if answer is None:
            self._queue.append(slot)
            self._spare = Slot(self)
        elif isinstance(answer, bool):
            return None
        elif self._queue or self._out:
            self._enqueue(answer)
        else:
            return answer
        self._pause_if_full()
        return b""

    def _pause_if_full(self) -> None:
        if len(self._queue) > limits.PIPELINE_MAX:
            self._is_full = True
            self._transport.pause_reading()

    def _parse(self, data: bytes) -> None:
        if len(data) > limits.PIECE_BYTES_MAX:
            self._input, data = data[limits.PIECE_BYTES_MAX :], data[: limits.PIECE_BYTES_MAX]
            self._server.was_much_read(self)
        ended, is_whole = self._ended, not self._began_ns
        rest = data
        while rest and not self._is_closing:
            rest = self._feed(rest)
        if self._began_ns:
            if self._ended == ended:  # else part of the bytes were requests before this one
                self._raw_bytes += len(data)
            self._refuse_endless()
        elif is_whole and self._ended == ended + 1 and not (self.body or self._is_closing or self._is_ended):
            match = _WHOLE_GET.fullmatch(data)
            self._known_tail = match[1] if match else b""

    def _refuse_endless(self) -> None:
        """Refuse an unfinished request whose head, or whatever else is no body in it, has grown too long.

        The parser keeps an unfinished header in memory, so this cannot wait for its end. What is no body after the
        head are chunk sizes, at worst some eight bytes for each of the body's, and trailers.
        """
        if self._in_head:
            if self._raw_bytes > limits.HEAD_BYTES_MAX:
                self._refuse(Problem(431, limits.HEAD_DETAIL, closes=self._raw_bytes > limits.HEAD_BYTES_TORN))
        elif self._raw_bytes > limits.HEAD_BYTES_TORN + 9 * self._body_bytes:
            self._refuse(Problem(431, limits.HEAD_DETAIL, closes=True))

    def _feed(self, data: bytes) -> bytes:
        """Parse; returns what is to be parsed anew, behind a head that wanted to change the protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(Problem(400, f"not HTTP: {error}", closes=True))
        return b""

    def _is_upgrade(self) -> bool:
        """Whether this is a head that will come again, see `_without_upgrade`."""
        parser = self._parser
        return self._connection is not None and parser.should_upgrade() and parser.get_method() != b"CONNECT"

    def _without_upgrade(self) -> bytes:
        """Begin again with the same head less its wish to speak another protocol, as `curl --http2` has it.

        The parser would take a body behind such a head for the other protocol's bytes.
        """
        if self._is_refused:
            self._refuse(Problem(400, "", closes=True))
        if self._is_closing:
            return b""
        version = self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self._parser.get_method(), self.target, version), b"Host: this"]
        if self._connection is not None:
            lines.append(b"Connection: " + self._connection)
        if self.content_type is not None:
            lines.append(b"Content-Type: " + self.content_type)
        if self._is_chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif self._content_length:
            lines.append(b"Content-Length: %d" % self._content_length)
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])

    def tick(self, now_ns: int) -> None:
        """Cut off a client that is too slow, or idle for too long; to be called about once a second."""
        if self._unread_ns and now_ns - self._unread_ns > limits.UNREAD_TIME_MAX_NS:
            self._transport.abort()
        elif self._is_closing:
            if now_ns - self._last_ns > limits.LINGER_TIME_MAX_NS:
                self._transport.abort()
        elif self._began_ns and now_ns - self._began_ns > limits.REQUEST_TIME_MAX_NS and not self._unread_ns:
            self._refuse(Problem(408, "the request did not arrive within 10 s", closes=True))
            self.flush()
        elif not self._began_ns and not self._queue and now_ns - self._last_ns > limits.IDLE_TIME_MAX_NS:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._reset_request()
        self._in_head = True
        self._began_ns = self.now_ns

    def on_url(self, url: bytes) -> None:
        self.target += url
        if len(self.target) > limits.TARGET_BYTES_MAX:
            self.target = b""
            self._refuse(Problem(414, f"the request target is longer than {limits.TARGET_BYTES_MAX} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        # By length first: most headers are none of these, and lowering every name costs more than the rest.
        match len(name):
            case 4:
                self._hosts += name.lower() == b"host"
            case 6:
                self._expects_continue |= name.lower() == b"expect" and value.lower() == b"100-continue"
            case 10 if name.lower() == b"connection":
                self._connection = value if self._connection is None else self._connection + b", " + value
            case 12 if name.lower() == b"content-type":
                self.content_type = value
            case 12 if name.lower() == b"x-request-id":
                self.request_id = value
            case 14 if name.lower() == b"content-length":
                self._content_length = int(value)  # the parser has made sure that it is digits
            case 17:
                self._is_chunked |= name.lower() == b"transfer-encoding"  # only chunked passes the parser
        if self._head_bytes > limits.HEAD_BYTES_MAX:
            self._refuse(Problem(431, limits.HEAD_DETAIL))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_upgrade():
            return
        if self._hosts != 1 and (self._hosts or self._parser.get_http_version() != "1.0"):
            self._refuse(Problem(400, f"{self._hosts} Host headers; exactly one is needed", closes=True))
        elif self._content_length > limits.BODY_BYTES_MAX:
            # Who waits for a 100 may send the body or not: only closing keeps the framing unambiguous.
            self._refuse(Problem(413, limits.BODY_DETAIL, closes=self._expects_continue))
        elif self._expects_continue and not self._is_refused:
            self._enqueue(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._body_bytes > limits.BODY_BYTES_MAX:
            self._body_parts.clear()
            self._refuse(Problem(413, limits.BODY_DETAIL))
        elif not self._is_refused:
            self._body_parts.append(part)

    def on_message_complete(self) -> None:
        if self._is_upgrade():
            return
        self._began_ns = 0
        if self._is_refused or self._is_closing:
            return
        self._ended += 1
        self.method = self._parser.get_method()
        self.body = b"".join(self._body_parts)
        self.connection_header = ""
        # What follows a CONNECT may be meant for its tunnel.
        closes = self._server.is_draining or not self._parser.should_keep_alive() or self.method == b"CONNECT"
        if closes:
            self.connection_header = "Connection: close\r\n"
        elif self._connection is not None and self._parser.get_http_version() == "1.0":
            self.connection_header = "Connection: keep-alive\r\n"
        self._handle(closes=closes)

    def _handle(self, *, closes: bool) -> None:
        """Have the request answered, now or later."""
        slot = self._spare
        try:
            answer = self._server.app.handle(self, slot)
        except Problem as problem:
            answer = self._problem_answer(problem)
        except Exception:
            answer = self._own_bug()
        if closes:
            self._is_closing = True
        if answer is None:
            slot.closes = closes
            self._queue.append(slot)
            self._spare = Slot(self)
        else:
            self._enqueue(answer, closes=closes)

    def _own_bug(self) -> bytes:
        """Log what should never happen; this client is told, the others never notice."""
        log.exception("a request could not be handled", target=self.target)
        return self._problem_answer(Problem(500, "the node made an error; its log has it"))

    def _problem_answer(self, problem: Problem) -> bytes:
        answer = self._server.problem_answer(problem, self.connection_header)
        return answer[: answer.index(b"\r\n\r\n") + 4] if self.method == b"HEAD" else answer

    def _refuse(self, problem: Problem) -> None:
        """Answer now, whatever of the request is still to come; what comes of it is read and thrown away."""
        if self._is_closing or (self._is_refused and not problem.closes):
            return
        was_refused = self._is_refused
        self._is_refused = True
        self._is_closing = problem.closes
        if was_refused:
            self._enqueue(b"", closes=True)
            return
        line = "Connection: close\r\n" if problem.closes else ""
        self._enqueue(self._server.problem_answer(problem, line), closes=problem.closes)

    def _enqueue(self, answer: bytes, *, closes: bool = False) -> None:
        if self._queue or closes:
            slot = Slot(self)
            slot.answer, slot.closes = answer, closes
            self._queue.append(slot)
        else:
            self._out.append(answer)

    def flush(self) -> None:
        """Write every answer that is there and not behind one that is not."""
        queue, out = self._queue, self._out
        if not queue and len(out) == 1 and not self._is_ended:  # as nearly always
            self._transport.write(out.pop())
            return
        closes = False
        while queue and queue[0].answer is not None:
            slot = queue.popleft()
            out.append(cast("bytes", slot.answer))
            closes = slot.closes
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if closes:
            self._finish()
        elif self._is_ended and not (queue or self._input):
            self._transport.close()
        elif self._is_full and not self._is_closing and len(queue) <= limits.PIPELINE_MAX // 2:
            self._is_full = False
            self._resume()

    def _finish(self) -> None:
        """Close for writing; keep reading for a while where unread input would turn the close into a reset."""
        self._last_ns = clock.now_ns()
        if self._is_refused:
            self._transport.write_eof()
        else:
            self._transport.close()

    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._began_ns or self._queue or self._input)

    def close(self) -> None:
        """Close once what is written has left."""
        self._transport.close()

    def was_answered(self) -> None:
        """Have the answers written that can be; a single one at once: to write it with others' later takes 2 % more."""
        queue = self._queue
        if len(queue) == 1 and not (self._out or self._is_closing or self._is_ended or self._is_full):
            slot = queue[0]
            if slot.answer is not None and not slot.closes:
                queue.clear()
                self.write(slot.answer)
                return
        self._server.was_answered(self)
