"""The composition root: builds every object of a node, starts and stops them in order.

Start: listen (so that addresses are known), read the rules, register, join the ring, be ready.
Stop: not ready, keep serving for the drain delay, leave the ring, finish what is under way, close.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import structlog

from limiter_node import __version__
from limiter_node.cluster.membership import Membership, NodeDoc, encode_node
from limiter_node.cluster.peer import PeerLink, PeerServer
from limiter_node.control.etcd import EtcdSession
from limiter_node.control.etcd_link import EtcdConfig
from limiter_node.control.rulebook import RuleBook
from limiter_node.control.rules_file import RulesFile
from limiter_node.core.engine import Engine
from limiter_node.core.errors import BadRule
from limiter_node.core.ring import Member, Ring
from limiter_node.core.router import LinkState, Router
from limiter_node.edge.admin_api import AdminApi
from limiter_node.edge.check_api import CheckApi
from limiter_node.edge.http_server import HttpServer
from limiter_node.edge.metrics import Counters, Exposition, Reading
from limiter_node.settings import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.router import Link
    from limiter_node.settings import Settings

log = structlog.get_logger()

TICK_S = 0.02
"""A fifth of the default peer timeout: deadlines are noticed at most this late."""

PARTING_S = 1.0
"""Longest wait for peers to hang up after the leave."""

LEAVE_SEEN_S = 1.0
"""Longest wait for etcd to tell this node that its leave is known."""


class Fleet:
    """What etcd says, taken to where it belongs (an `etcd.Changes`)."""

    def __init__(self, book: RuleBook, membership: Membership, monotonic_ns: Callable[[], int]) -> None:
        self._book = book
        self._membership = membership
        self._monotonic_ns = monotonic_ns

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """Take one change."""
        kind, _, name = key.partition("/")
        if kind != "nodes":
            self._book.changed(key, value, self._monotonic_ns())
            return
        try:
            self._membership.changed(name, value, revision, self._monotonic_ns())
        except BadRule as bad:
            self._book.reject(key, str(bad))
        else:
            self._book.problems.pop(key, None)

    def synced(self, revision: int) -> None:
        """Act on the changes so far together: one ring, however many nodes came or went."""
        self._membership.settle(self._monotonic_ns())


class Node:
    """One node, from its settings to its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_draining = False
        self.addresses: dict[str, Address] = {}
        self.counters = Counters()
        self.engine = Engine(buckets_max=settings.max_keys)
        self.router = Router(
            settings.node_id,
            self.engine,
            peer_timeout_ns=settings.peer_timeout_ms * 1_000_000,
            open_link=self._open_link,
        )
        self.book = RuleBook(self.engine)
        self.membership = Membership(settings.node_id, self._set_ring)
        self.api = CheckApi(self.router, self.counters, on_unknown_rule=settings.on_unknown_rule)
        self.http = HttpServer(self.api)
        self.admin = AdminApi(self, Exposition(self.counters, gauges=self._gauges(), totals=self._totals()))
        self.etcd: EtcdSession | None = None
        self.rules_file: RulesFile | None = None
        self._peer_links: list[PeerLink] = []
        self._peer_connections: set[PeerServer] = set()
        self._peer_server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ring_changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send checks here."""
        return self.api.is_ready and not self.is_draining

    @property
    def config_revision(self) -> int:
        """The revision of the rules last applied: etcd's, or how often the rules file was read."""
        if self.etcd is not None:
            return self.etcd.revision
        return self.rules_file.revision if self.rules_file is not None else 0

    async def start(self) -> None:
        """Listen, and begin to join; raises `ConfigError` or OSError when that cannot be."""
        settings = self.settings
        if settings.is_standalone:
            self._start_standalone()
        loop = asyncio.get_running_loop()
        self._peer_server = await loop.create_server(
            lambda: PeerServer(self.router, monotonic_ns, self._peer_connections),
            settings.peer.host,
            settings.peer.port,
        )
        self.addresses["peer"] = Address(*self._peer_server.sockets[0].getsockname()[:2])
        self.addresses["http"] = Address(*await self.http.start(settings.http.host, settings.http.port))
        self.addresses["admin"] = Address(*await self.admin.start(settings.admin.host, settings.admin.port))
        log.info(
            "listening",
            node=settings.node_id,
            version=__version__,
            **{name: str(address) for name, address in self.addresses.items()},
        )
        self._tasks.append(loop.create_task(self._tick(), name="tick"))
        if settings.is_standalone:
            self._become_ready()
        else:
            await self._start_etcd()

    def _start_standalone(self) -> None:
        log.warning("standalone: one node, no etcd; limits hold for this node alone")
        if self.settings.rules is None:
            log.warning("no rules: give --rules FILE, or --etcd to join a fleet")
        else:
            self.rules_file = RulesFile(self.settings.rules, self.book, monotonic_ns)
            self.rules_file.load()
            self._tasks.append(asyncio.create_task(self.rules_file.watch(), name="rules file"))
        me = Member(self.settings.node_id, "", self.settings.zone, 1, __version__)
        self.router.set_ring(Ring(1, {me.id: me}), monotonic_ns())

    async def _start_etcd(self) -> None:
        settings = self.settings
        config = EtcdConfig(
            endpoints=settings.etcd,
            prefix=settings.prefix,
            lease_ttl_s=settings.lease_ttl_s,
            ca=settings.etcd_ca,
            cert=settings.etcd_cert,
            key=settings.etcd_key,
            user=settings.etcd_user,
            password=settings.etcd_password,
        )
        self.etcd = EtcdSession(config, Fleet(self.book, self.membership, monotonic_ns))
        await self.etcd.start()
        self._tasks.append(asyncio.create_task(self._join(), name="join"))

    async def _join(self) -> None:
        """Register once the rules are known, and be ready once the ring has this node and its links are tried."""
        assert self.etcd is not None
        await self.etcd.first_sync()
        self._register(leaving=False)
        while self.settings.node_id not in self.router.ring.members:
            self._ring_changed.clear()
            await self._ring_changed.wait()
        while any(link.state is LinkState.CONNECTING for link in self.router.links.values()):
            await asyncio.sleep(TICK_S)
        self._become_ready()

    def _register(self, *, leaving: bool) -> None:
        assert self.etcd is not None
        peer = self.settings.advertise or self.addresses["peer"]
        doc = NodeDoc(peer=str(peer), zone=self.settings.zone, version=__version__, leaving=leaving)
        self.etcd.register(f"nodes/{self.settings.node_id}", encode_node(doc))

    def _become_ready(self) -> None:
        self.api.is_ready = True
        log.info(
            "ready",
            node=self.settings.node_id,
            rules=len(self.engine.rules),
            members=len(self.router.ring.members),
        )

    def _set_ring(self, ring: Ring) -> None:
        before = self.router.ring.members.keys()
        self.router.set_ring(ring, monotonic_ns())
        if before != ring.members.keys():
            log.info("ring changed", revision=ring.revision, members=list(ring.members))
        self._ring_changed.set()

    def _open_link(self, link: Link) -> PeerLink:
        # Jitter spreads reconnects, it guards nothing.
        carrier = PeerLink(link, self.router, monotonic_ns=monotonic_ns, jitter=random.Random())  # noqa: S311
        self._peer_links = [other for other in self._peer_links if not other.is_closed]
        self._peer_links.append(carrier)
        return carrier

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_ns = monotonic_ns()
            self.router.tick(now_ns)
            self.engine.tick(now_ns)
            self.membership.settle(now_ns)

    async def drain(self) -> None:
        """Leave without failing a check; takes at most the drain timeout."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + settings.drain_timeout_s
        log.info("draining", delay_s=settings.drain_delay_s, timeout_s=settings.drain_timeout_s)
        self.is_draining = self.http.is_draining = True
        await asyncio.sleep(settings.drain_delay_s)
        if self.etcd is not None:
            await self._leave()
        left_s = loop.time()
        await self.http.stop(max(0.0, deadline_s - loop.time()))
        # Peers hang up once they know the new ring and have their answers.
        while self._peer_connections and loop.time() < min(deadline_s, left_s + PARTING_S):
            await asyncio.sleep(TICK_S)
        await self.close()
        log.info("stopped", node=settings.node_id)

    async def _leave(self) -> None:
        """Have the others take this node out of the ring, then give up the lease."""
        assert self.etcd is not None
        if self.settings.node_id in self.router.ring.members and len(self.router.ring.members) > 1:
            self._register(leaving=True)
            try:
                async with asyncio.timeout(LEAVE_SEEN_S):
                    while self.settings.node_id in self.router.ring.members:
                        self._ring_changed.clear()
                        await self._ring_changed.wait()
            except TimeoutError:
                log.warning("etcd did not confirm the leave; the lease will run out")
        await self.etcd.leave()

    async def close(self) -> None:
        """Stop everything at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.etcd is not None:
            await self.etcd.close()
        for link in self._peer_links:
            link.close()
        await asyncio.gather(*(link.closed() for link in self._peer_links))
        if self._peer_server is not None:
            self._peer_server.close()
        for connection in list(self._peer_connections):
            connection.transport.abort()
        await self.http.stop(0)
        await self.admin.stop()

    def _gauges(self) -> dict[str, Reading]:
        return {
            "limiter_ready": ("1 while a load balancer should send checks here.", lambda: self.is_ready),
            "limiter_keys": ("Buckets in memory.", lambda: self.engine.buckets),
            "limiter_rules": ("Rules in force.", lambda: len(self.engine.rules)),
            "limiter_config_problems": ("Keys whose present value is bad.", lambda: len(self.book.problems)),
            "limiter_config_revision": ("Revision of the rules last applied.", lambda: self.config_revision),
            "limiter_ring_members": ("Nodes in the ring.", lambda: len(self.router.ring.members)),
            "limiter_ring_revision": ("etcd revision of the ring.", lambda: self.router.ring.revision),
            "limiter_peers_up": (
                "Peers that checks can be sent to.",
                lambda: sum(link.state is LinkState.UP for link in self.router.links.values()),
            ),
            "limiter_etcd_connected": (
                "1 while etcd is watched.",
                lambda: self.etcd is not None and self.etcd.connected,
            ),
            "limiter_http_connections": ("Open check connections.", lambda: len(self.http.connections)),
        }

    def _totals(self) -> dict[str, Reading]:
        return {
            "limiter_forwarded_checks": ("Checks passed on to their owner.", lambda: self.router.forwarded),
            "limiter_rerouted_checks": (
                "Forwarded checks that the first node asked did not own.",
                lambda: self.router.rerouted,
            ),
            "limiter_unanswered_checks": (
                "Forwarded checks decided by on_unreachable.",
                lambda: self.router.unanswered,
            ),
            "limiter_unknown_rule_checks": (
                "Checks whose rule does not exist.",
                lambda: self.counters.unknown_rule,
            ),
            "limiter_evicted_keys": (
                "Buckets forgotten before they were full, for want of room.",
                lambda: self.engine.evicted,
            ),
            "limiter_config_rejections": ("Bad values seen.", lambda: self.book.rejected),
            "limiter_etcd_reconnects": (
                "Connections to etcd given up.",
                lambda: 0 if self.etcd is None else self.etcd.reconnects,
            ),
            "limiter_etcd_lease_losses": (
                "Leases that ran out.",
                lambda: 0 if self.etcd is None else self.etcd.lease_losses,
            ),
        }

    def describe(self) -> dict[str, Any]:
        """The document of `GET /v1/status`."""
        ring, etcd = self.router.ring, self.etcd
        return {
            "node": self.settings.node_id,
            "version": __version__,
            "addresses": {name: str(address) for name, address in self.addresses.items()},
            "standalone": self.settings.is_standalone,
            "ready": self.is_ready,
            "etcd": {
                "connected": etcd is not None and etcd.connected,
                "revision": 0 if etcd is None else etcd.revision,
            },
            "leader": None,
            "ring": {
                "revision": ring.revision,
                "members": [
                    {
                        "id": member.id,
                        "peer": member.peer or str(self.addresses["peer"]),
                        "zone": member.zone,
                        "share": round(ring.share(member.id), 4),
                    }
                    for member in ring.members.values()
                ],
            },
            "links": {name: link.state.value for name, link in self.router.links.items()},
            "config": {
                "revision": self.config_revision,
                "rules": len(self.engine.rules),
                "problems": [{"key": key, "error": error} for key, error in sorted(self.book.problems.items())],
            },
            "backends": {
                name: {"multiplier": multiplier.ppm / 1e6, "state": multiplier.state, "signal_age": None}
                for name, multiplier in self.engine.multipliers.items()
            },
            "keys": self.engine.buckets,
        }


async def serve(settings: Settings) -> None:
    """Run a node until a signal ends it; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    node = Node(settings)
    stop = asyncio.Event()

    def on_stop() -> None:
        if stop.is_set():
            log.warning("second signal: leaving at once")
            os._exit(1)
        stop.set()

    def on_hangup() -> None:
        log.info("reloading certificates and tokens")
        if node.etcd is not None:
            node.etcd.reconnect()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    try:
        await node.start()
    except BaseException:
        await node.close()
        raise
    # What is there now stays: leave it out of every collection, and collect seldom, for what a check makes is freed by
    # its reference counts. A batch of 100 takes 10 % less time so, and no collection walks the whole heap any more.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    await stop.wait()
    await node.drain()
