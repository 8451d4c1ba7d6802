"""A simulated node: the product's own router, engine, rulebook and membership, wired as `app.py` wires them.

A node is a machine (a name, an address, a clock of its own) that lives one or several lives. It is killed, frozen,
thawed, started again; in between it does what the real one does, at the moments at which the real one would. Every
decision of its engine is told to a witness, at true time.

Invariant: nothing happens on a node that is dead, or frozen; what came while it was frozen happens when it thaws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from limiter_node.cluster.membership import Membership, NodeDoc, encode_node
from limiter_node.control.rulebook import RuleBook
from limiter_node.core.denials import Denials
from limiter_node.core.engine import Engine
from limiter_node.core.errors import BadRule
from limiter_node.core.leases import Leases
from limiter_node.core.lendings import Lendings
from limiter_node.core.model import Check, Lent, Op, Verdict
from limiter_node.core.reservations import Reservations
from limiter_node.core.router import Router
from limiter_node.core.shortcut import Shortcut
from tests.sim.etcd import SimEtcd, SimSession
from tests.sim.links import AnsweringEnd, SimLink
from tests.sim.world import NS_PER_MS, NS_PER_S, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limiter_node.core.links import Carrier, Link
    from limiter_node.core.model import UnknownRule
    from limiter_node.core.plan import Grant
    from limiter_node.core.ring import Ring
    from limiter_node.core.shortcut import Granter
    from tests.sim.clock import SimClock
    from tests.sim.network import Network, Side
    from tests.sim.world import World

TICK_NS = 10 * NS_PER_MS  # app.TICK_S
PEER_TIMEOUT_NS = 100 * NS_PER_MS  # --peer-timeout
LEASE_TTL_NS = 5 * NS_PER_S  # --lease-ttl
REPLICATION_NS = 20 * NS_PER_MS  # --replication-interval
LEAVE_SEEN_NS = 2500 * NS_PER_MS  # app.LEAVE_SEEN_S
DRAIN_NS = 10 * NS_PER_S  # --drain-timeout
PARTING_NS = NS_PER_S  # app.PARTING_S
BUCKETS_MAX = 1_000_000


WALL_NS = (1_795_651_200 + 45_000) * 1_000_000_000
"""When a run begins, by the wall clock: half past twelve on 26 November 2026, far from the end of an hour."""

WALL_ERROR_MAX_NS = 50_000_000


class Witness(Protocol):
    """Who is told what nodes decide and learn."""

    def born(self, node: SimNode) -> None:
        """A life begins: nothing is known on the node."""

    def learned(self, node: SimNode, key: str, value: bytes | None) -> None:
        """The node has taken a change of a document."""

    def decides(self, node: SimNode, check: Check) -> None:
        """The node is about to decide."""

    def lost(self, node: SimNode) -> None:
        """The node is dead, frozen or cut off."""

    def found(self, node: SimNode) -> None:
        """The node, still in the same life, is not cut off any more."""

    def decided(self, node: SimNode, check: Check, verdict: Verdict | UnknownRule) -> None:
        """The node decided as owner."""

    def decided_alone(self, node: SimNode, check: Check, parts: int, verdict: Verdict | UnknownRule) -> None:
        """The node decided because the owner could not be asked."""

    def denied_at_edge(self, node: SimNode, check: Check, verdict: Verdict) -> None:
        """The node denied what the owner of the key had promised to deny."""

    def lent(self, node: SimNode, check: Check, tokens: int) -> None:
        """The node has lent tokens."""

    def granted_under_lease(self, node: SimNode, check: Check, verdict: Verdict) -> None:
        """The node granted a check from what it had borrowed."""

    def forgot(self, node: SimNode, rule: str, key: str) -> None:
        """The node made a bucket full again."""

    def refunded(self, node: SimNode, check: Check) -> None:
        """The node gave tokens back."""

    def ended(self, node: SimNode, check: Check, tokens: int) -> None:
        """The node spent, or gave back, so many tokens that were set aside for a batch; 0 when nothing was any more."""


class WatchedReservations(Reservations):
    """What is set aside, and what becomes of it, told to the witness."""

    def __init__(self, engine: WatchedEngine) -> None:
        super().__init__(engine)
        self._watched = engine

    def reserve(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        engine = self._watched
        assert check.hold is not None
        is_repeated = engine.holds.is_known((check.rule, check.key), check.hold)
        engine.witness.decides(engine.node, check)
        verdict = super().reserve(check, now_ns)
        if is_repeated:
            engine.witness.ended(engine.node, check, 0)
        else:
            engine.witness.decided(engine.node, check, verdict)
        return verdict

    def end(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        engine, bucket = self._watched, (check.rule, check.key)
        tokens = engine.holds.tokens.get(bucket, 0)
        engine.witness.decides(engine.node, check)
        stands = super().end(check, now_ns)
        engine.witness.ended(engine.node, check, tokens - engine.holds.tokens.get(bucket, 0))
        return stands


class WatchedDenials(Denials):
    """What is denied in an owner's place, told to the witness."""

    def __init__(self, engine: WatchedEngine) -> None:
        super().__init__(engine)
        self._watched = engine

    def find(self, check: Check, now_ns: int) -> Verdict | None:
        verdict = super().find(check, now_ns)
        if verdict is not None:
            self._watched.witness.denied_at_edge(self._watched.node, check, verdict)
        return verdict


class WatchedLeases(Leases):
    """What is granted under a lease, told to the witness."""

    def grant(self, check: Check, now_ns: int) -> Verdict | None:
        verdict = super().grant(check, now_ns)
        if verdict is not None:
            engine = self._router.engine
            assert isinstance(engine, WatchedEngine)
            engine.witness.granted_under_lease(engine.node, check, verdict)
        return verdict


class WatchedLendings(Lendings):
    """What is lent, told to the witness."""

    def lend(self, check: Check, right_until_ns: int, now_ns: int) -> Lent | UnknownRule:
        lent = super().lend(check, right_until_ns, now_ns)
        if isinstance(lent, Lent) and lent.tokens:
            engine = self._engine
            assert isinstance(engine, WatchedEngine)
            engine.witness.lent(engine.node, check, lent.tokens)
        return lent


class WatchedEngine(Engine):
    """The engine, with every decision told to the witness."""

    node: SimNode
    witness: Witness

    def __init__(self, *, buckets_max: int) -> None:
        super().__init__(buckets_max=buckets_max)
        self.reservations = WatchedReservations(self)
        self.denials = WatchedDenials(self)

    def check(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        self.witness.decides(self.node, check)
        verdict = super().check(check, now_ns)
        self.witness.decided(self.node, check, verdict)
        return verdict

    def check_alone(self, check: Check, parts: int, now_ns: int) -> Verdict | UnknownRule:
        verdict = super().check_alone(check, parts, now_ns)
        self.witness.decided_alone(self.node, check, parts, verdict)
        return verdict

    def forget(self, rule_name: str, key: str, now_ns: int) -> bool:
        known = super().forget(rule_name, key, now_ns)
        self.witness.forgot(self.node, rule_name, key)
        return known

    def refund(self, rule_name: str, key: str, cost: int, now_ns: int) -> int:
        tokens = super().refund(rule_name, key, cost, now_ns)
        self.witness.refunded(self.node, Check(rule_name, key, cost, op=Op.REFUND))
        return tokens


class WatchedShortcut(Shortcut):
    """The short way of peers' checks, told to the witness."""

    def __init__(self, router: Router, node: SimNode, witness: Witness) -> None:
        super().__init__(router)
        self._node = node
        self._witness = witness

    def granter(self, rule_name: str, now_ns: int) -> Granter | None:
        grant_to = super().granter(rule_name, now_ns)
        if grant_to is None:
            return None

        def grant(key: str, is_to_replica: bool) -> tuple[Grant, int] | None:
            check = Check(rule_name, key)
            self._witness.decides(self._node, check)
            granted = grant_to(key, is_to_replica)
            self._tell(check, granted and granted[0])
            return granted

        return grant

    def grants(self, rule_name: str, keys: Sequence[str], now_ns: int) -> list[Grant | None] | None:
        checks = [Check(rule_name, key) for key in keys]
        for check in checks:
            self._witness.decides(self._node, check)
        grants = super().grants(rule_name, keys, now_ns)
        for check, grant in zip(checks, grants or (), strict=False):
            self._tell(check, grant)
        return grants

    def _tell(self, check: Check, grant: Grant | None) -> None:
        if grant is not None:
            self._witness.decided(self._node, check, verdict_of(grant))


def verdict_of(grant: Grant) -> Verdict:
    """What is told of a grant."""
    (limit, window_s), remaining, reset_ns = grant
    return Verdict(True, limit, remaining, reset_ns, 0, window_s)


def watched(engine_class: type[Engine]) -> type[WatchedEngine]:
    """The class, with the witness between it and its callers."""
    if engine_class is Engine:
        return WatchedEngine
    return type(f"Watched{engine_class.__name__}", (WatchedEngine, engine_class), {})


class SimNode:
    """One machine of the fleet. `engine_class` and `router_class` may be replaced by broken ones."""

    engine: WatchedEngine
    router: Router
    book: RuleBook
    membership: Membership
    session: SimSession

    def __init__(
        self,
        name: str,
        clock: SimClock,
        world: World,
        network: Network,
        etcd: SimEtcd,
        witness: Witness,
        *,
        zone: str | None = None,
        engine_class: type[Engine] = Engine,
        router_class: type[Router] = Router,
    ) -> None:
        self.name = name
        self.clock = clock
        self.world = world
        self.network = network
        self.lives = 0
        self._port = 8082
        self.is_alive = False
        self.is_frozen = False
        self.is_ready = False
        self.is_leaving = False
        self._is_ending = False
        self._is_leave_seen = False  # or given up
        self._etcd = etcd
        self._witness = witness
        self._zone = zone
        self._engine_class = watched(engine_class)
        self._router_class = router_class
        self._backlog: list[Callable[[], None]] = []
        self._wall_error_ns = world.rng(f"wall of {name}").randint(-WALL_ERROR_MAX_NS, WALL_ERROR_MAX_NS)
        self._lane = f"node {name}"
        self._rng = world.rng(self._lane)
        self._frozen_ns = 0  # true time spent frozen in this life, up to the present freeze
        self._frozen_since_ns = 0

    @property
    def now_ns(self) -> int:
        """The machine's monotonic clock."""
        return self.clock.read(self.world.now_ns)

    @property
    def address(self) -> str:
        return f"{self.name}.fleet:{self._port}"

    @property
    def awake_ns(self) -> int:
        """True time in which this life was not frozen."""
        frozen_ns = self._frozen_ns + (self.world.now_ns - self._frozen_since_ns if self.is_frozen else 0)
        return self.world.now_ns - frozen_ns

    # When things happen on a node.

    def run(self, act: Callable[[], None]) -> None:
        """Do something now, or on thawing, or never."""
        if self.is_frozen:
            self._backlog.append(act)
        elif self.is_alive:
            act()

    def later(self, local_ns: int, lane: str, act: Callable[[], None]) -> Event:
        """Do something once `local_ns` have passed on this machine, if it lives on till then."""
        life = self.lives

        def fire() -> None:
            if life == self.lives and not event.is_cancelled:
                act()

        event = self.world.after(self.clock.true_span(local_ns), lane, lambda: self.run(fire))
        return event

    def soon(self, lane: str, act: Callable[[], None]) -> None:
        """Do something after this pass of the loop."""
        life = self.lives

        def fire() -> None:
            if life == self.lives:
                act()

        self.world.after(0, lane, lambda: self.run(fire))

    # Lives.

    def start(self, *, is_founder: bool = False, moves: bool = False) -> None:
        """Begin a life: listen, read, register, join; at another address if it moves.

        A founder has been registered since before the story began.
        """
        if self.is_alive:
            return
        if moves:
            self._port += 1
        self.network.dark.discard(self.address)
        self.lives += 1
        self.is_alive, self.is_ready, self.is_leaving, self._is_ending = True, False, False, False
        self._is_leave_seen = False
        self._frozen_ns = 0
        self.answering: dict[str, AnsweringEnd] = {}  # the newest connection of each peer that has said hello
        self.engine = self._engine_class(buckets_max=BUCKETS_MAX)
        self.engine.node, self.engine.witness = self, self._witness
        self._look_at_wall()
        self.router = self._router_class(
            self.name,
            self.engine,
            boot=self.lives,
            peer_timeout_ns=PEER_TIMEOUT_NS,
            replication_ns=REPLICATION_NS,
            open_link=self._open_link,
            on_ring=self._hear_ring,
        )
        self.router.leases = WatchedLeases(self.router)
        self.router.keeper.commitments.lendings = WatchedLendings(self.engine, PEER_TIMEOUT_NS, self.lives)
        self.router.shortcut = WatchedShortcut(self.router, self, self._witness)
        self.book = RuleBook(self.engine)
        self.membership = Membership(self.name, self._set_ring)
        self.session = SimSession(self, self._etcd, self, lease_ttl_ns=LEASE_TTL_NS)
        self._has_synced = False
        self._witness.born(self)
        self.network.listeners[self.address] = (self.name, self)
        if is_founder:
            self.session.found(self._node_key, self._node_doc(leaving=False))
        self.session.start()
        self.later(self._rng.randrange(TICK_NS), self._lane, self._tick)
        self.world.note(f"{self.name} starts, life {self.lives}")

    def kill(self, *, is_silent: bool = False) -> None:
        """Die at once. Silent: the machine lost its power, so nobody closes its connections or refuses new ones."""
        if not self.is_alive:
            return
        self._witness.lost(self)
        self.is_alive = self.is_frozen = self.is_ready = False
        self._backlog.clear()
        self.session.end()
        del self.network.listeners[self.address]
        if is_silent:
            self.network.dark.add(self.address)
        self.network.drop_host(self.name, is_silent=is_silent)
        self.world.note(f"{self.name} dies")

    def leave(self) -> None:
        """Leave as on SIGTERM: have the others take this node out of the ring, give up the lease, end."""
        if not self.is_alive or self.is_leaving:
            return
        self.is_ready, self.is_leaving = False, True
        self.world.note(f"{self.name} leaves")
        if self.name in self.router.ring.members and len(self.router.ring.members) > 1:
            self.session.register(self._node_key, self._node_doc(leaving=True))
            self.later(LEAVE_SEEN_NS, self._lane, self._give_up_leave)
            self.later(DRAIN_NS - PARTING_NS, self._lane, self._end)
        else:
            self._end()

    def _give_up_leave(self) -> None:
        self._is_leave_seen = True

    def freeze(self) -> None:
        """Stop running, as by SIGSTOP or on a machine that is suspended."""
        if not self.is_alive or self.is_frozen:
            return
        self._witness.lost(self)
        self.is_frozen, self._frozen_since_ns = True, self.world.now_ns
        self.world.note(f"{self.name} freezes")

    def thaw(self) -> None:
        """Run on: all that came in between happens now, one thing per step."""
        if not self.is_frozen:
            return
        self.is_frozen = False
        self._frozen_ns += self.world.now_ns - self._frozen_since_ns
        backlog, self._backlog = self._backlog, []
        for act in backlog:
            self.soon(self._lane, act)
        self.world.note(f"{self.name} thaws")

    # What the control plane says (as app.Fleet does).

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """Take one change from etcd."""
        kind, _, name = key.partition("/")
        if kind != "nodes":
            self._witness.learned(self, key, value)
            self.book.changed(key, value, self.now_ns)
            return
        try:
            self.membership.changed(name, value, revision, self.now_ns)
        except BadRule as bad:
            self.book.reject(key, str(bad))
        else:
            self.book.problems.pop(key, None)

    def synced(self, revision: int) -> None:
        """Act on the changes so far together."""
        self.membership.settle(self.now_ns)
        if not self._has_synced:
            self._has_synced = True
            self.session.register(self._node_key, self._node_doc(leaving=False))

    # Peers (as app.Node does).

    def accept(self, side: Side) -> None:
        """Answer a peer on its new connection."""
        AnsweringEnd(self, side)

    def _open_link(self, link: Link) -> Carrier:
        return SimLink(self, link)

    def _hear_ring(self, ring: Ring) -> None:
        if self.membership.has_ring:
            self._set_ring(ring)

    def _set_ring(self, ring: Ring) -> None:
        self.router.set_ring(ring, self.now_ns)
        self.world.note(f"{self.name} has ring {ring.revision}: {','.join(ring.members)}")
        if self.is_leaving and self.name not in ring.members:
            self._is_leave_seen = True

    def _look_at_wall(self) -> None:
        self.engine.wall.offset_ns = WALL_NS + self.world.now_ns + self._wall_error_ns - self.now_ns

    def _tick(self) -> None:
        self.later(TICK_NS, self._lane, self._tick)
        now_ns = self.now_ns
        self._look_at_wall()
        self.router.tick(now_ns)
        self.engine.tick(now_ns)
        self.membership.settle(now_ns)
        keeper = self.router.keeper
        me = self.router.ring.members.get(self.name)
        if not self.is_ready and not self.is_leaving and me is not None and me.boot == self.lives:
            self.is_ready = keeper.is_whole
        if self.is_leaving and not self._is_ending and self._is_leave_seen and keeper.has_handed_over(now_ns):
            self._end()

    def _end(self) -> None:
        """Give up the lease, finish what is under way, die."""
        if self._is_ending:
            return
        self._is_ending = True
        self.session.leave()
        self.later(2 * (PEER_TIMEOUT_NS + TICK_NS), self._lane, self.kill)

    @property
    def _node_key(self) -> str:
        return f"nodes/{self.name}"

    def _node_doc(self, *, leaving: bool) -> bytes:
        return encode_node(NodeDoc(peer=self.address, zone=self._zone, leaving=leaving, boot=self.lives))
