"""The composition root: builds every object of a node, starts and stops them in order.

Start: listen (so that addresses are known), read the rules, register, join the ring, be ready.
Stop: not ready, keep serving for the drain delay, leave the ring, finish what is under way, close.

A worker is a node like any other, but that it has a line to its supervisor and that somebody else may be spoken to at
its place (`listeners`).
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import structlog

from limiter_node import __version__, clock, files, report, report_figures, report_metrics
from limiter_node.cluster.membership import Membership, NodeDoc, encode_node
from limiter_node.cluster.peer import PeerLink
from limiter_node.collector import Collector
from limiter_node.control.board import Appointment, Line, Opened, Started
from limiter_node.control.conductor import Conductor
from limiter_node.control.etcd import EtcdSession
from limiter_node.control.etcd_link import EtcdConfig
from limiter_node.control.leadership import Leadership
from limiter_node.control.polls import Polls
from limiter_node.control.rulebook import RuleBook
from limiter_node.control.rules_file import RulesFile
from limiter_node.core.engine import Engine
from limiter_node.core.model import Member
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from limiter_node.edge.admin_api import AdminApi
from limiter_node.edge.check_api import CheckApi
from limiter_node.edge.check_log import LoggedCheckApi, log_decision
from limiter_node.edge.http_server import HttpServer
from limiter_node.edge.tally import Tally
from limiter_node.fleet import Fleet
from limiter_node.gathering import Gathering
from limiter_node.listeners import Listeners

if TYPE_CHECKING:
    import socket

    from limiter_node.control.conductor import Election
    from limiter_node.core.links import Link
    from limiter_node.edge.figures import Figures
    from limiter_node.settings import Settings

log = structlog.get_logger()

SECOND_NS = 1_000_000_000
TICK_S = 0.01
"""A tenth of the default peer timeout: deadlines are noticed at most this late."""

PARTING_S = 1.0
"""Longest wait for peers to hang up after the leave."""

LEAVE_SEEN_S = 2.5
"""Longest wait for etcd to tell this node that its leave is known; another node's lapse may hold it up for a second."""


class Node:
    """One node, from its settings to its end."""

    def __init__(self, settings: Settings, line: Line | None = None) -> None:
        self.settings = settings
        self.is_draining = False
        self._has_joined = False  # and has taken over its keys
        self._line = line  # of a worker
        self.stalls = report.Stalls()
        self.collector = Collector(clock.now_ns())
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self.engine = Engine(buckets_max=settings.max_keys, jitter=self._rng.random)
        self.tally = Tally(self.engine, self._rng.random)
        self.engine.wall.offset_ns = clock.wall_offset_ns()
        self.router = Router(
            settings.node_id,
            self.engine,
            boot=secrets.randbits(48),
            peer_timeout_ns=settings.peer_timeout_ms * 1_000_000,
            replication_ns=settings.replication_interval_ms * 1_000_000,
            open_link=self._open_link,
            on_ring=self._hear_ring,
            tell=self._tell_peer,
            on_traced=log_decision,
        )
        self.book = RuleBook(self.engine)
        self.membership = Membership(settings.node_id, self._set_ring)
        self.api = self._check_api()
        self.http = HttpServer(self.api, self.tally.count_problem)
        self.admin = AdminApi(self, report_metrics.exposition(self))
        self._listeners = Listeners(settings, self.router, self.http, self.admin)
        self.addresses = self._listeners.addresses  # in use, by purpose
        self.recorder = report_figures.Recorder(self)
        self.etcd: EtcdSession | None = None
        self._registry: EtcdSession | Line | None = None  # where it registers; None while it is alone
        self.rules_file: RulesFile | None = None
        self.leadership: Election | None = None
        self.conductor: Conductor | None = None
        self._peer_links: list[PeerLink] = []
        self._tasks: list[asyncio.Task[None]] = []

    def _check_api(self) -> CheckApi:
        settings = self.settings
        if not settings.log_checks:
            return CheckApi(self.router, self.tally, on_unknown_rule=settings.on_unknown_rule)
        return LoggedCheckApi(
            self.router,
            self.tally,
            on_unknown_rule=settings.on_unknown_rule,
            fraction=settings.log_checks,
            random=self._rng.random,
        )

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer should send checks here."""
        return self._has_joined and not self.is_draining

    @property
    def leader(self) -> str | None:
        """The node that is the controller, as far as is known."""
        if self.settings.is_alone:
            return self.settings.node_id
        return self.leadership.leader if self.leadership is not None else None

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
            self._read_rules()
        if settings.is_alone:
            self._found()
        await self._listeners.start()
        log.info(
            "listening" if self._line is None else "worker listening",
            node=settings.node_id,
            version=__version__,
            compiled=not clock.__file__.endswith(".py"),
            **{name: str(address) for name, address in self.addresses.items()},
        )
        self._tasks.append(asyncio.create_task(self._tick(), name="tick"))
        if self._line is not None:
            self._line.tell(Started(str(self.addresses["peer"])))
        if settings.is_alone:
            await self._become_ready()
        elif self._line is not None and settings.is_standalone:
            self._join_board(self._line)
        else:
            await self._start_etcd()

    def _read_rules(self) -> None:
        if self.settings.is_alone:
            log.warning("standalone: one node, no etcd; limits hold for this node alone")
        if self.settings.rules is None:
            log.warning("no rules: give --rules FILE, or --etcd to join a fleet")
        else:
            self.rules_file = RulesFile(self.settings.rules, self.book, clock.now_ns)
            self.rules_file.load()
            self._tasks.append(asyncio.create_task(self.rules_file.watch(), name="rules file"))

    def _found(self) -> None:
        self._conduct()
        me = Member(self.settings.node_id, "", self.settings.zone, 1, __version__, self.router.boot)
        self._set_ring(Ring(1, {me.id: me}))

    def _join_board(self, line: Line) -> None:
        self._registry = line
        self.leadership = Appointment(line, self.settings.node_id)
        self._conduct()
        self._tasks.append(asyncio.create_task(self._join(), name="join"))

    async def _start_etcd(self) -> None:
        settings = self.settings
        config = EtcdConfig(lease_ttl_s=settings.lease_ttl_s, **asdict(settings.etcd))
        self._registry = self.etcd = EtcdSession(config, Fleet(self))
        self.leadership = leadership = Leadership(self.etcd, settings.node_id, self._rng)
        self._conduct()
        await self.etcd.start()
        self._tasks.append(asyncio.create_task(leadership.campaign(), name="campaign"))
        self._tasks.append(asyncio.create_task(self._join(), name="join"))

    def _conduct(self) -> None:
        polls = Polls(self.engine.backends, self.router.controller, clock.now_ns, self._rng)
        self.conductor = Conductor(self.router, self.book, self.leadership, polls, clock.now_ns)
        self._tasks.append(asyncio.create_task(self.conductor.run(), name="conductor"))

    async def _join(self) -> None:
        """Register once the rules are known, and be ready once this node has the keys that it takes over."""
        assert self._registry is not None
        await self._registry.first_sync()
        self._register(leaving=False)
        while not self._is_member or not self.router.keeper.is_whole:
            await asyncio.sleep(TICK_S)
        await self._become_ready()

    @property
    def _is_member(self) -> bool:
        me = self.router.ring.members.get(self.settings.node_id)
        return me is not None and me.boot == self.router.boot

    def _register(self, *, leaving: bool) -> None:
        assert self._registry is not None
        peer = self.settings.advertise or self.addresses["peer"]
        doc = NodeDoc(
            peer=str(peer), zone=self.settings.zone, version=__version__, leaving=leaving, boot=self.router.boot
        )
        self._registry.register(f"nodes/{self.settings.node_id}", encode_node(doc))

    async def _become_ready(self) -> None:
        if self._line is not None:
            await self._listeners.open()
            self._line.tell(Opened())
        self._has_joined = True
        log.info(
            "ready",
            node=self.settings.node_id,
            rules=len(self.engine.rules),
            members=len(self.router.ring.members),
        )

    def _hear_ring(self, ring: Ring) -> None:
        """Go over to a ring that a peer has told, unless this node still waits for its first one."""
        if self.membership.has_ring:
            self._set_ring(ring)

    def _set_ring(self, ring: Ring) -> None:
        before = self.router.ring.members
        self.router.set_ring(ring, clock.now_ns())
        self.api.is_answering = True  # the rules came with the first ring
        if before != ring.members:
            log.info(
                "ring changed",
                revision=ring.revision,
                members=list(ring.members),
                **report.ring_difference(before, ring),
            )
            if self._has_joined and self.settings.node_id in ring.members and not self._is_member:
                log.error("another node is registered under this id", peer=ring.members[self.settings.node_id].peer)

    def _open_link(self, link: Link) -> PeerLink:
        worker = self.settings.worker
        at = worker.siblings.get(link.peer.id) if worker is not None else None
        carrier = PeerLink(link, self.router, monotonic_ns=clock.now_ns, jitter=self._rng, at=at)
        self._peer_links = [other for other in self._peer_links if not other.is_closed]
        self._peer_links.append(carrier)
        return carrier

    async def _tick(self) -> None:
        fleet_log, gathering = report.FleetLog(), Gathering(self)
        counted_ns = clock.now_ns()
        pause_s = min(TICK_S, self.settings.replication_interval_ms / 1000)
        while True:
            slept_ns = clock.now_ns()
            await asyncio.sleep(pause_s)
            now_ns = clock.now_ns()
            self.stalls.note(now_ns - slept_ns - round(pause_s * 1e9), now_ns)
            self.engine.wall.offset_ns = clock.wall_offset_ns()
            self.router.tick(now_ns)
            self.engine.tick(now_ns)
            gathering.tick()
            self.collector.tick(now_ns)
            self.membership.settle(now_ns)
            fleet_log.note(self, now_ns)
            if now_ns - counted_ns >= SECOND_NS:
                counted_ns = now_ns
                self.tally.tick(now_ns)
                self.recorder.tick(now_ns)

    async def drain(self, why: str) -> None:
        """Leave without failing a check; takes at most the drain timeout."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + settings.drain_timeout_s
        log.info("draining", why=why, delay_s=settings.drain_delay_s, timeout_s=settings.drain_timeout_s)
        self.is_draining = self.http.is_draining = True
        await asyncio.sleep(settings.drain_delay_s)
        if self._registry is not None:
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._leave(self._registry, deadline_s - PARTING_S)
            except TimeoutError:
                log.warning("out of time to leave; the lease will run out")
        left_s = loop.time()
        await self.http.stop(max(0.0, deadline_s - loop.time()))
        # Peers hang up once they know the new ring and have their answers.
        while self._listeners.peer_connections and loop.time() < min(deadline_s, left_s + PARTING_S):
            await asyncio.sleep(TICK_S)
        await self.close()
        log.info("stopped", node=settings.node_id)

    async def _leave(self, registry: EtcdSession | Line, deadline_s: float) -> None:
        """Have the others take this node out of the ring, hand over what it knows, then give up the lease.

        Where all leave, as the workers of a lone machine do, nobody is left to hand anything to.
        """
        loop, membership = asyncio.get_running_loop(), self.membership
        if self.settings.node_id in self.router.ring.members and membership.has_others:
            self._register(leaving=True)
            seen_by_s = loop.time() + LEAVE_SEEN_S
            while self.settings.node_id in self.router.ring.members and membership.has_others:
                if loop.time() > seen_by_s:
                    log.warning("etcd did not confirm the leave; the lease will run out")
                    break
                await asyncio.sleep(TICK_S)
        while membership.has_others and not self.router.keeper.has_handed_over(clock.now_ns()):
            if loop.time() > deadline_s:
                log.warning("not all keys were handed over in time", copies_due=self.router.keeper.replication.due)
                break
            await asyncio.sleep(TICK_S)
        await registry.leave()

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
        await self._listeners.stop()
        if self._line is not None:
            await self._line.close()

    def _tell_peer(self, seconds: int) -> bytes:
        return self.recorder.tell(seconds)

    def describe(self) -> dict[str, Any]:
        """The document of `GET /v1/status`."""
        return report.describe(self)

    def figures(self, seconds: int) -> Figures:
        """What the dashboard shows of this node, with so many of its last seconds."""
        return self.recorder.figures(seconds)


async def serve(settings: Settings, end: socket.socket | None = None) -> None:
    """Run a node until a signal ends it; a second signal ends it at once.

    A worker has one end of a line to its supervisor, and drains when that is gone. It does not mind further signals:
    those for the whole node may come from the terminal too, and the supervisor knows when there is to be an end.
    """
    loop = asyncio.get_running_loop()
    line = await Line.over(end) if end is not None else None
    node = Node(settings, line)
    node.http.connections_max = min(node.http.connections_max, files.room_for_clients())
    stop: asyncio.Future[str] = loop.create_future()

    def on_stop(why: str) -> None:
        if not stop.done():
            stop.set_result(why)
        elif line is None:
            log.warning("second signal: leaving at once")
            os._exit(1)

    def on_hangup() -> None:
        log.info("reloading certificates and tokens")
        if node.etcd is not None:
            node.etcd.reconnect()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    if line is not None:
        following = loop.create_task(line.follow(Fleet(node)), name="line to the supervisor")
        following.add_done_callback(lambda _: on_stop("the supervisor is gone"))
    try:
        await node.start()
    except BaseException:
        await node.close()
        raise
    node.collector.take_over()
    await node.drain(await stop)
