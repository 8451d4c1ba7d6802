"""A link to a peer (cluster/peer.py): which checks leave in one frame."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

from limiter_node.cluster import wire
from limiter_node.cluster.peer import FEW_CHECKS, GATHERING_PASSES_MAX, PeerLink
from limiter_node.core.forward import one_way
from limiter_node.core.links import Link
from limiter_node.core.model import Ask, Check, Hello, Member, Request

BOOT = 7


class Peer(asyncio.Protocol):
    """Says hello, and notes how many checks each frame brings."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._decoder = wire.Decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(wire.encode(Hello("b", wire.PROTOCOL, BOOT)))

    def data_received(self, data: bytes) -> None:
        self._sizes += [len(frame.checks) for frame in self._decoder.feed(data) if isinstance(frame, Ask)]


class Asking:
    """Stands for the router: puts checks into its link's outbox, and gives them to whoever flushes it."""

    node_id, boot = "a", BOOT

    def __init__(self) -> None:
        self.is_up = asyncio.Event()
        self.link = Link(Member("b", "127.0.0.1:1", boot=BOOT))
        self._ids = count(1)

    def on_up(self, link: Link, now_ns: int) -> None:
        self.is_up.set()

    def on_down(self, link: Link, now_ns: int, *, refused_ns: int | None = None) -> None:
        pass

    def flush(self, link: Link, now_ns: int) -> list[Request]:
        return link.take_asks(next(self._ids), 0)

    def put(self, checks: int) -> None:
        if not self.link.outbox:
            self.link.carrier.wake()
        self.link.outbox.extend(one_way(Check("api", "bob"), 1 << 62) for _ in range(checks))


@asynccontextmanager
async def asking(sizes: list[int]) -> AsyncIterator[Asking]:
    """A link that is up, to a peer that notes the sizes of its frames."""
    server = await asyncio.get_running_loop().create_server(lambda: Peer(sizes), "127.0.0.1", 0)
    router = Asking()
    host, port = server.sockets[0].getsockname()
    router.link.peer = Member("b", f"{host}:{port}", boot=BOOT)
    carrier = PeerLink(router.link, router, monotonic_ns=lambda: 0, jitter=random.Random(0))  # type: ignore[arg-type]
    router.link.carrier = carrier
    try:
        await asyncio.wait_for(router.is_up.wait(), 5)
        yield router
    finally:
        carrier.close()
        await carrier.closed()
        server.close()


async def frames_of(passes: list[int]) -> list[int]:
    """The sizes of the frames in which so many checks, in passes of the loop that follow each other, reach the peer."""
    sizes: list[int] = []
    async with asking(sizes) as router, asyncio.timeout(5):
        for checks in passes:
            if checks:
                router.put(checks)
            await asyncio.sleep(0)
        await until(lambda: sum(sizes) == sum(passes))
    return sizes


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0)


async def test_the_checks_of_passes_that_follow_each_other_share_a_frame() -> None:
    assert await frames_of([1, 1, 1]) == [3]
    assert await frames_of([5, 1, 7]) == [13]


async def test_a_pass_without_a_check_ends_a_frame() -> None:
    assert await frames_of([2, 0, 0, 1]) == [2, 1]


async def test_many_checks_wait_for_no_more() -> None:
    assert await frames_of([FEW_CHECKS, 1]) == [FEW_CHECKS, 1]


async def test_few_checks_do_not_wait_for_ever() -> None:
    sizes = await frames_of([1] * 20)
    assert sum(sizes) == 20
    assert max(sizes) <= GATHERING_PASSES_MAX + 1
