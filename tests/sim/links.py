"""Links between simulated nodes: what `cluster/peer.py` does over TCP, over the simulated network.

Real frames through the real codec; the same hello, the same backoff, the same moments at which the router is told
that a link is up or down. Kept line by line beside peer.py, because a difference here would be a fleet that does not
exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.cluster import wire
from limiter_node.cluster.peer import BACKOFF_MAX_S, BACKOFF_MIN_S, CONNECT_TIMEOUT_S, HASTEN_AFTER_S
from limiter_node.core.errors import BadMessage
from limiter_node.core.links import LinkState
from limiter_node.core.model import Frame, Hello, Reply, Request
from tests.sim.world import NS_PER_S

if TYPE_CHECKING:
    from limiter_node.core.links import Link
    from tests.sim.network import Side
    from tests.sim.node import SimNode
    from tests.sim.world import Event


class _FrameEnd:
    """The half that both directions share: bytes to frames, and a hello to begin with."""

    def __init__(self, node: SimNode, side: Side) -> None:
        self.node = node
        self.side = side
        self._decoder = wire.Decoder()
        self._is_greeted = False
        self._out: list[bytes] = []
        side.endpoint = self
        side.send(wire.encode(Hello(node.name, wire.PROTOCOL, node.router.boot)))

    def received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if self._is_greeted:
                    self.on_frame(frame)
                else:
                    self._greet(frame)
        finally:
            self.write_out()

    def lost(self) -> None:
        """The connection is gone."""

    def send(self, frame: Frame) -> None:
        self._out.append(wire.encode(frame))

    def write_out(self) -> None:
        if self._out:
            self.side.send(b"".join(self._out))
            self._out.clear()

    def _greet(self, frame: Frame) -> None:
        if not isinstance(frame, Hello) or frame.protocol != wire.PROTOCOL:
            raise BadMessage(f"no hello: {frame}")
        self._is_greeted = True
        self.on_hello(frame)

    def on_hello(self, hello: Hello) -> None:
        """Take note of who the other side is."""

    def on_frame(self, frame: Frame) -> None:
        raise BadMessage(f"unexpected {frame}")


class AnsweringEnd(_FrameEnd):
    """The incoming side: answers the asks of one peer."""

    _is_reading = False

    def received(self, data: bytes) -> None:
        self._is_reading = True
        super().received(data)
        self._is_reading = False

    def on_hello(self, hello: Hello) -> None:
        self._hello = hello
        earlier = self.node.answering.get(hello.node_id)
        if earlier is not None:
            earlier.side.close()
        self.node.answering[hello.node_id] = self
        link = self.node.router.links.get(hello.node_id)
        if link is not None and link.state is not LinkState.UP:
            link.carrier.hasten()

    def on_frame(self, frame: Frame) -> None:
        if not isinstance(frame, Request):
            raise BadMessage(f"unexpected {frame} from a peer that asks")
        router = self.node.router
        router.on_request(router.ring.name_of(self._hello), frame, self.node.now_ns, self._respond)

    def _respond(self, reply: Reply) -> None:
        self.send(reply)
        if not self._is_reading:
            self.write_out()


class AskingEnd(_FrameEnd):
    """The outgoing side of one connection."""

    is_ready = False
    is_stranger = False

    def __init__(self, link: SimLink, side: Side) -> None:
        self._link = link
        super().__init__(link.node, side)

    def lost(self) -> None:
        self._link.broken(self)

    def on_hello(self, hello: Hello) -> None:
        self.is_stranger = hello.boot != self._link.link.peer.boot
        if hello.node_id == self._link.peer_id and not self.is_stranger:
            self._link.ready(self)
            self.is_ready = True
        else:
            self.side.close()
            self.lost()

    def on_frame(self, frame: Frame) -> None:
        if not isinstance(frame, Reply):
            raise BadMessage(f"unexpected {frame} from a peer that answers")
        self._link.answered(frame)


class SimLink:
    """Keeps one connection to a peer, and carries the router's frames over it (a `router.Carrier`)."""

    def __init__(self, node: SimNode, link: Link) -> None:
        self.node = node
        self.link = link
        self.peer_id = peer_id = link.peer.id
        self._lane = f"link {node.name}>{peer_id}"
        self._rng = node.world.rng(f"{self._lane} {node.world.now_ns}")
        self._end: AskingEnd | None = None
        self._side: Side | None = None
        self._is_awake = False
        self._is_closed = False
        self._life = node.lives
        self._dials = 0
        self._began_ns = 0
        self._backoff_s = BACKOFF_MIN_S
        self._pause: Event | None = None
        node.soon(self._lane, self._dial)

    def wake(self) -> None:
        """Flush after this pass of the loop; until the link is ready its outbox just waits."""
        if self._end is not None and not self._is_awake:
            self._is_awake = True
            self.node.soon(self._lane, self._flush)

    def ready(self, end: AskingEnd) -> None:
        self._end = end
        self.node.router.on_up(self.link, self.node.now_ns)

    def broken(self, end: AskingEnd) -> None:
        if self._end is end:
            self._end = None
        elif end.side is not self._side:
            return  # of a dial that was given up
        # What a machine that was frozen closes when it wakes may have been of a life of this one that is over.
        if not self._is_closed and self.node.lives == self._life:
            self._down(is_refused=end.is_stranger)
            self._retry()

    def answered(self, reply: Reply) -> None:
        self.node.router.on_reply(self.link, reply, self.node.now_ns)

    def redial(self) -> None:
        """Drop the connection, or whatever is being dialled, and dial the peer where it is now."""
        end = self._end
        if end is None:
            if self._pause is not None:
                self._pause.cancel()
            if self._side is not None:
                self._side.close()
            self._dials += 1
            self._backoff_s = BACKOFF_MIN_S
            self.node.soon(self._lane, self._dial)
        if end is not None and self._side is not None:
            self._side.close()
            self.node.soon(self._lane, lambda: self.broken(end))

    def hasten(self) -> None:
        """Dial now, unless a dial has just begun."""
        if self._end is None and self.node.now_ns - self._began_ns > HASTEN_AFTER_S * NS_PER_S:
            self.redial()

    def close(self) -> None:
        """Stop dialling and close the connection."""
        self._is_closed = True
        self._end = None
        if self._side is not None:
            self._side.close()

    def _down(self, *, is_refused: bool = False) -> None:
        if is_refused:
            self._backoff_s = BACKOFF_MIN_S
        self.node.router.on_down(self.link, self.node.now_ns, refused_ns=self._began_ns if is_refused else None)

    def _flush(self) -> None:
        self._is_awake = False
        end = self._end
        if end is None:
            return
        for request in self.node.router.flush(self.link, self.node.now_ns):
            end.send(request)
        end.write_out()

    def _retry(self) -> None:
        if self.node.now_ns - self._began_ns > BACKOFF_MAX_S * NS_PER_S:
            self._backoff_s = BACKOFF_MIN_S
        pause_s = self._backoff_s * self._rng.uniform(0.5, 1.0)
        self._backoff_s = min(BACKOFF_MAX_S, self._backoff_s * 2)
        self._pause = self.node.later(round(pause_s * NS_PER_S), self._lane, self._dial)

    def _dial(self) -> None:
        self._pause = self._side = None
        if self._is_closed:
            return
        self._began_ns = self.node.now_ns
        self._dials += 1
        dial = self._dials

        def connected(side: Side | None) -> None:
            is_of_this_life = self.node.lives == self._life  # a slow answer may come to the next one
            if self._is_closed or dial != self._dials or not is_of_this_life:
                if side is not None:
                    side.close()
                return
            if side is None or not side.is_open:
                failed(is_refused=side is None)
            else:
                self._side = side
                ends.append(AskingEnd(self, side))

        def failed(*, is_refused: bool = False) -> None:
            timeout.cancel()
            if not self._is_closed and dial == self._dials and not (ends and ends[0].is_ready):
                self._dials += 1
                if self._side is not None:
                    self._side.close()
                self._down(is_refused=is_refused)
                self._retry()

        ends: list[AskingEnd] = []
        timeout = self.node.later(round(CONNECT_TIMEOUT_S * NS_PER_S), self._lane, failed)
        self.node.network.connect(self.node.name, self.link.peer.peer, connected, self._lane)
