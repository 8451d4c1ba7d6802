"""Links between nodes: what the router decides to send goes out, what comes in goes to the router.

They go over TCP, between the workers of one node over unix sockets.

One outgoing connection per peer carries this node's asks and the peer's answers; the peer's asks come in on
a connection of its own. All checks of one pass of the loop leave in one write, or of a few passes if each brings but a
few; all answers of one read leave in one write. Both sides say hello first, so that an address that another node has
taken over is noticed.

It decides when to dial again (at once, then with jittered backoff up to a second, but without it where connections are
refused: only a fresh refusal is proof that the peer is dead, see `fence`) and when a peer is too slow
to be written to; everything about checks is the router's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

import structlog

from limiter_node.cluster import wire
from limiter_node.core.errors import BadMessage
from limiter_node.core.links import LinkState
from limiter_node.core.model import Frame, Hello, Reply, Request

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from limiter_node.core.links import Link
    from limiter_node.core.router import Router

log = structlog.get_logger()

BACKOFF_MIN_S = 0.02
BACKOFF_MAX_S = 1.0
CONNECT_TIMEOUT_S = 1.0
HASTEN_AFTER_S = 0.1
"""How long a dial may go without an answer before a sign of life begins another: its segments may have been lost."""
FEW_CHECKS = 32
GATHERING_PASSES_MAX = 4
"""While more checks come in with each pass of the loop, fewer than that wait for so many passes: the way of a frame
there and back costs as much as some ten of its checks. Of 32 clients of a busy node 15 checks share a frame instead
of 12, and a check takes 10 % less CPU time; between four busy workers 3 instead of 2, and 15 %. A check that comes
alone waits for one pass that finds nothing to do, 3 us."""
ANSWERS_BUFFERED_MAX = 4 << 20
"""Bytes of answers a peer may leave unread before it is cut off: it would be past every deadline anyway."""


class _FrameProtocol(asyncio.Protocol):
    """The half that both directions share: bytes to frames, and a hello to begin with."""

    transport: asyncio.Transport

    def __init__(self, router: Router) -> None:
        self.router = router
        self._decoder = wire.Decoder()
        self._greeted = False
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(wire.encode(Hello(self.router.node_id, wire.PROTOCOL, self.router.boot)))

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if self._greeted:
                    self.on_frame(frame)
                else:
                    self._greet(frame)
        except BadMessage as error:
            log.warning("peer sent garbage", peer=self.name(), error=str(error))
            self.transport.abort()
        finally:
            self.write_out()

    def _greet(self, frame: Frame) -> None:
        if not isinstance(frame, Hello):
            raise BadMessage("the first frame is no hello")
        if frame.protocol != wire.PROTOCOL:
            raise BadMessage(f"protocol {frame.protocol}; this node speaks {wire.PROTOCOL}")
        self._greeted = True
        self.on_hello(frame)

    def send(self, frame: Frame) -> None:
        """Queue a frame for the write that ends this read or this flush."""
        self._out.append(wire.encode(frame))

    def write_out(self) -> None:
        """Send all that is queued, as one write."""
        if self._out and not self.transport.is_closing():
            self.transport.write(b"".join(self._out))
        self._out.clear()

    def name(self) -> str:
        """How the other side is called in the log."""
        return str(self.transport.get_extra_info("peername"))

    def on_hello(self, hello: Hello) -> None:
        """Take note of who the other side is."""

    def on_frame(self, frame: Frame) -> None:
        """Take one frame after the hello."""
        raise BadMessage(f"unexpected {type(frame).__name__}")


class PeerServer(_FrameProtocol):
    """The incoming side: answers the asks of one peer."""

    def __init__(self, router: Router, monotonic_ns: Callable[[], int], connections: set[PeerServer]) -> None:
        super().__init__(router)
        self._monotonic_ns = monotonic_ns
        self._connections = connections
        self._reading = False
        self._hello: Hello

    def on_hello(self, hello: Hello) -> None:
        self._hello = hello
        # What is still on its way on a connection that the peer has given up is older than what comes on this one.
        for other in self._connections:
            if other is not self and other.is_from(hello.node_id):
                other.transport.abort()
        link = self.router.links.get(hello.node_id)
        if link is not None and link.state is not LinkState.UP:
            link.carrier.hasten()

    def is_from(self, node_id: str) -> bool:
        """Whether that node is at the other end."""
        return self._greeted and self._hello.node_id == node_id

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._reading = True
        super().data_received(data)
        self._reading = False
        if self.transport.get_write_buffer_size() > ANSWERS_BUFFERED_MAX:
            log.warning("peer does not read its answers", peer=self.name())
            self.transport.abort()

    def on_frame(self, frame: Frame) -> None:
        if not isinstance(frame, Request):
            raise BadMessage(f"unexpected {type(frame).__name__} from a peer that asks")
        self.router.on_request(self.router.ring.name_of(self._hello), frame, self._monotonic_ns(), self._respond)

    def _respond(self, reply: Reply) -> None:
        self.send(reply)
        if not self._reading:
            self.write_out()


class _PeerClient(_FrameProtocol):
    """The outgoing side of one connection."""

    def __init__(self, link: PeerLink) -> None:
        super().__init__(link.router)
        self._link = link
        loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.is_stranger = False  # another life of the peer: the one that was meant is dead

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.broken(self, why=str(exc) if exc else "closed by the peer")
        self.greeted.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def on_hello(self, hello: Hello) -> None:
        if hello.node_id != self._link.peer_id:
            raise BadMessage(f"this is {hello.node_id}, not {self._link.peer_id}")
        if not self._link.is_same_life(hello):
            self.is_stranger = True
            raise BadMessage("the node that was here has been restarted")
        self._link.ready(self)
        self.greeted.set_result(None)

    def on_frame(self, frame: Frame) -> None:
        if not isinstance(frame, Reply):
            raise BadMessage(f"unexpected {type(frame).__name__} from a peer that answers")
        self._link.answered(frame)


class PeerLink:
    """Keeps one connection to the peer of a router's link, and carries its frames (a `router.Carrier`)."""

    def __init__(
        self,
        link: Link,
        router: Router,
        *,
        monotonic_ns: Callable[[], int],
        jitter: random.Random,
        at: str | None = None,
    ) -> None:
        """`at` is the unix socket of a worker of the same node."""
        self.router = router
        self._link = link
        self._at = at
        self._monotonic_ns = monotonic_ns
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._client: _PeerClient | None = None
        self._dial: _PeerClient | None = None  # the latest, answered or not
        self._is_awake = False
        self._dialled_ns = 0
        self._backoff_s = BACKOFF_MIN_S
        self._task = self._start()

    def _start(self) -> asyncio.Task[None]:
        return self._loop.create_task(self._keep_connected(), name=f"link to {self.peer_id}")

    @property
    def peer_id(self) -> str:
        """The node at the other end."""
        return self._link.peer.id

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left of it."""
        return self._task.done()

    # For the router.

    def wake(self) -> None:
        """Flush after this pass of the loop or a few; until the link is ready its outbox just waits."""
        if self._client is not None and not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self._gather, 0, GATHERING_PASSES_MAX)

    def redial(self) -> None:
        """Drop the connection, or whatever is being dialled, and dial the peer where it is now."""
        if self._client is not None:
            log.warning("peer given up, dialling again", peer=self.peer_id, address=self._link.peer.peer)
            self._client.transport.abort()
        else:
            self._task.cancel()
            self._task = self._start()

    def hasten(self) -> None:
        """Dial now, unless a dial has just begun: a peer behind a mended link could else be waited for for 2 s."""
        if self._client is None and self._monotonic_ns() - self._dialled_ns > HASTEN_AFTER_S * 1e9:
            self.redial()

    def close(self) -> None:
        """Stop dialling and close the connection."""
        self._task.cancel()

    async def closed(self) -> None:
        """Wait for the end that `close` has begun."""
        await asyncio.gather(self._task, return_exceptions=True)

    # For the connection.

    def ready(self, client: _PeerClient) -> None:
        """The peer has said who it is: checks may go."""
        if client is not self._dial:
            return  # of a dial that was given up; its connection is about to be closed
        self._client = client
        self.router.on_up(self._link, self._monotonic_ns())

    def broken(self, client: _PeerClient, why: str) -> None:
        """The connection is gone: whatever waits for an answer is answered without it."""
        if self._client is client:
            self._client = None
            log.info("peer disconnected", peer=self.peer_id, why=why)
        elif client is not self._dial:
            return  # of a dial that was given up
        self._down(is_refused=client.is_stranger)

    def is_same_life(self, hello: Hello) -> bool:
        """Whether who answers is the process that is a member, and not one that came after it."""
        return hello.boot == self._link.peer.boot

    def answered(self, reply: Reply) -> None:
        """Hand an answer to the router."""
        self.router.on_reply(self._link, reply, self._monotonic_ns())

    def _down(self, *, is_refused: bool = False) -> None:
        if is_refused:
            self._backoff_s = BACKOFF_MIN_S
        self.router.on_down(self._link, self._monotonic_ns(), refused_ns=self._dialled_ns if is_refused else None)

    def _gather(self, gathered: int, passes_left: int) -> None:
        checks = len(self._link.outbox)
        if gathered < checks < FEW_CHECKS and passes_left:
            self._loop.call_soon(self._gather, checks, passes_left - 1)
        else:
            self._flush()

    def _flush(self) -> None:
        self._is_awake = False
        if self._client is None:
            return
        for request in self.router.flush(self._link, self._monotonic_ns()):
            self._client.send(request)
        self._client.write_out()

    async def _keep_connected(self) -> None:
        self._backoff_s = BACKOFF_MIN_S
        while True:
            self._dialled_ns = self._monotonic_ns()
            await self._connect_once()
            if self._monotonic_ns() - self._dialled_ns > BACKOFF_MAX_S * 1e9:
                self._backoff_s = BACKOFF_MIN_S  # it held for a while
            await asyncio.sleep(self._backoff_s * self._jitter.uniform(0.5, 1.0))
            self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)

    async def _connect_once(self) -> None:
        """Dial, and stay until the connection is lost."""
        client = self._dial = _PeerClient(self)
        transport: asyncio.BaseTransport | None = None
        try:
            # Until the hello: a frozen peer's kernel accepts connections that nobody will answer.
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport = await self._open(client)
                await asyncio.wait((client.greeted,))
            await client.lost
        except (OSError, TimeoutError) as error:
            if self._link.state is not LinkState.DOWN:
                log.warning("peer unreachable", peer=self.peer_id, error=str(error) or "no answer in time")
            self._down(is_refused=isinstance(error, ConnectionRefusedError))
        finally:
            # A dial that is cancelled may have got as far as the hello; uvloop then tells nobody that it closed.
            if self._client is client:
                self.broken(client, why="given up")
            if transport is not None:
                cast("asyncio.Transport", transport).abort()

    async def _open(self, client: _PeerClient) -> asyncio.Transport:
        if self._at is not None:
            transport, _ = await self._loop.create_unix_connection(lambda: client, sock=_connected(self._at))
        else:
            host, _, port = self._link.peer.peer.rpartition(":")
            host = host.removeprefix("[").removesuffix("]")
            transport, _ = await self._loop.create_connection(lambda: client, host, int(port))
        return transport


def _connected(name: str) -> socket.socket:
    """A connection to an abstract unix socket, which uvloop does not open itself; it never has to be waited for."""
    end = socket.socket(socket.AF_UNIX)
    end.setblocking(False)
    try:
        end.connect(name)
    except OSError:
        end.close()
        raise
    return end
