"""An etcd of one member: a revisioned key-value store with leases, and a session of each node with it.

The store keeps etcd's promises (one revision per change, changes in order, a lease that is not renewed in time takes
its keys along); the session keeps those of `control/etcd.py` to its consumer: a deletion is told only after a watch
event or a complete read, `synced` only when everything up to a revision was delivered, and whatever breaks ends
in a new connection with a full read. Calls and events travel the paths between the node and the host `etcd`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from limiter_node.control.etcd import BACKOFF_MAX_S, BACKOFF_MIN_S
from limiter_node.control.etcd_link import CALL_DEADLINE_S
from tests.sim.network import Pipe
from tests.sim.world import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.node import SimNode
    from tests.sim.world import Event, World

T = TypeVar("T")

HOST = "etcd"


class Entry(NamedTuple):
    """A key's present value."""

    value: bytes
    revision: int
    lease: int


class Change(NamedTuple):
    """What a watch tells: a value, or None for a deletion."""

    key: str
    value: bytes | None
    revision: int


@dataclass
class Lease:
    """Keys that live only while somebody renews."""

    ttl_ns: int
    expiry: Event
    keys: dict[str, None] = field(default_factory=dict)


class SimEtcd:
    """The store. While it is down it answers nobody, and its leases wait with it."""

    def __init__(self, world: World) -> None:
        self.is_up = True
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.sessions: dict[str, SimSession] = {}  # connected ones, by node
        self._leases: dict[int, Lease] = {}
        self._granted = 0
        self._world = world

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Write a key; returns the revision."""
        self.revision += 1
        old = self.entries.get(key)
        if old is not None and old.lease in self._leases:
            self._leases[old.lease].keys.pop(key, None)
        self.entries[key] = Entry(value, self.revision, lease)
        if lease:
            self._leases[lease].keys[key] = None
        self._tell(Change(key, value, self.revision))
        return self.revision

    def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        if self.entries.pop(key, None) is not None:
            self.revision += 1
            self._tell(Change(key, None, self.revision))

    def grant(self, ttl_ns: int) -> int:
        """A new lease."""
        self._granted += 1
        self._leases[self._granted] = Lease(ttl_ns, self._expiry(self._granted, ttl_ns))
        return self._granted

    def renew(self, lease: int) -> bool:
        """Start a lease's time anew; False when it has run out."""
        known = self._leases.get(lease)
        if known is None:
            return False
        known.expiry.cancel()
        known.expiry = self._expiry(lease, known.ttl_ns)
        return True

    def has_lease(self, lease: int) -> bool:
        return lease in self._leases

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys, one revision for them all."""
        known = self._leases.pop(lease, None)
        if known is None:
            return
        known.expiry.cancel()
        if known.keys:
            self.revision += 1
        for key in known.keys:
            del self.entries[key]
            self._tell(Change(key, None, self.revision))

    def stop(self) -> None:
        """Go down; every session hears of it."""
        self.is_up = False
        for lease in self._leases.values():
            lease.expiry.cancel()
        sessions, self.sessions = self.sessions, {}
        for session in sessions.values():
            session.reset()

    def start(self, *, drops_leases: bool) -> None:
        """Come back: restarted, leases get their whole time again; woken from a freeze, they have all run out."""
        self.is_up = True
        for lease, known in list(self._leases.items()):
            if drops_leases:
                self.revoke(lease)
            else:
                known.expiry = self._expiry(lease, known.ttl_ns)

    def _expiry(self, lease: int, ttl_ns: int) -> Event:
        return self._world.after(ttl_ns, f"lease {lease}", lambda: self.revoke(lease))

    def _tell(self, change: Change) -> None:
        for session in self.sessions.values():
            session.push(change)


class Changes(Protocol):
    """Who is told (as in `control/etcd.py`)."""

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """Take one key's new value, or None when it is deleted."""

    def synced(self, revision: int) -> None:
        """Everything up to this revision has been delivered."""


class SimSession:
    """One node's session: reads, watches, keeps its own keys under a lease, and starts over when anything fails."""

    def __init__(self, node: SimNode, etcd: SimEtcd, changes: Changes, *, lease_ttl_ns: int) -> None:
        self.node = node
        self.etcd = etcd
        self.revision = 0
        self.watch_lag_ns = 0
        self.lease = 0
        self._changes = changes
        self._lease_ttl_ns = lease_ttl_ns
        self._lane = f"etcd {node.name}"
        self._rng = node.world.rng(self._lane)
        self._mirror: dict[str, tuple[int, bytes]] = {}
        self._wanted: dict[str, bytes] = {}
        self._put: dict[str, tuple[bytes, int]] = {}  # what was put, under which lease
        self._connection = 0  # everything of an earlier one is ignored
        self._failures = 0
        self._next_keep: Event | None = None
        self._is_ended = False

    def start(self) -> None:
        self.node.soon(self._lane, self._dial)

    def found(self, key: str, value: bytes) -> None:
        """Have a key in etcd from the beginning, as a fleet that was there before the story starts."""
        self.lease = self.etcd.grant(self._lease_ttl_ns)
        self._wanted[key] = value
        self._put[key] = (value, self.lease)
        self.etcd.put(key, value, self.lease)

    def register(self, key: str, value: bytes) -> None:
        """Keep this key in etcd under our lease; again with another value to change it."""
        self._wanted[key] = value
        self._keep_soon()

    def leave(self) -> None:
        """Revoke the lease, so that our keys go at once; changes are still delivered until the end."""
        self._wanted.clear()
        lease, self.lease = self.lease, 0
        if lease:
            self._call(lambda: self.etcd.revoke(lease), lambda _: None)

    def end(self) -> None:
        """The process is gone."""
        self._is_ended = True
        self._connection += 1
        if self.etcd.sessions.get(self.node.name) is self:
            del self.etcd.sessions[self.node.name]

    # What etcd sends.

    def push(self, change: Change) -> None:
        """A watch event leaves etcd."""
        connection = self._connection
        self._down.send(lambda: self._run(connection, lambda: self._event(change)), self.watch_lag_ns)

    def reset(self) -> None:
        """etcd closes the connection."""
        connection = self._connection
        self._down.send(lambda: self._run(connection, self._lost))

    # How.

    def _run(self, connection: int, act: Callable[[], None]) -> None:
        """Do something on the node when it runs, if this connection is still the present one."""

        def guarded() -> None:
            if connection == self._connection:
                act()

        self.node.run(guarded)

    def _dial(self) -> None:
        if self._is_ended:
            return
        self._connection += 1
        world, network, name = self.node.world, self.node.network, self.node.name
        self._up = Pipe(world, network.path(name, HOST), self._lane)
        self._down = Pipe(world, network.path(HOST, name), self._lane)
        self._call(self._read_there, self._read_here, round(CALL_DEADLINE_S * NS_PER_S))

    def _call(self, there: Callable[[], T], here: Callable[[T], None], deadline_ns: int = 0) -> None:
        """Have etcd do something and take its answer; none within the deadline ends the connection."""
        connection, down = self._connection, self._down
        timeout = self.node.later(
            deadline_ns or self._lease_ttl_ns // 3,
            self._lane,
            lambda: self._run(connection, self._lost),
        )

        def answered(answer: T) -> None:
            timeout.cancel()
            here(answer)

        def serve() -> None:
            if connection != self._connection:
                return
            if not self.etcd.is_up:
                down.send(lambda: self._run(connection, self._lost))
                return
            answer = there()
            down.send(lambda: self._run(connection, lambda: answered(answer)))

        self._up.send(serve)

    def _lost(self) -> None:
        self._connection += 1
        if self.etcd.sessions.get(self.node.name) is self:
            del self.etcd.sessions[self.node.name]
        self._failures = min(self._failures + 1, 10)
        pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**self._failures) * self._rng.uniform(0.5, 1)
        self.node.later(round(pause_s * NS_PER_S), self._lane, self._dial)

    def _read_there(self) -> tuple[int, dict[str, Entry]]:
        # Read and watch in one: what happens from here on is pushed.
        self.etcd.sessions[self.node.name] = self
        return self.etcd.revision, dict(self.etcd.entries)

    def _read_here(self, answer: tuple[int, dict[str, Entry]]) -> None:
        revision, entries = answer
        self._failures = 0
        missing = self._mirror.keys() - entries.keys()
        for key, entry in entries.items():
            self._tell(Change(key, entry.value, entry.revision))
        for key in sorted(missing):
            self._tell(Change(key, None, revision))
        for key in self._wanted.keys() - entries.keys():
            self._put.pop(key, None)
        self._applied(revision)
        self._keep()

    def _event(self, change: Change) -> None:
        if change.revision > self.revision or change.value is None:
            self._tell(change)
            self._applied(change.revision)

    def _tell(self, change: Change) -> None:
        if change.value is None:
            if change.key in self._mirror:
                self._changes.changed(change.key, None, change.revision)
                del self._mirror[change.key]
                if change.key in self._wanted:
                    self._put.pop(change.key, None)
                    self._keep_soon()
        elif self._mirror.get(change.key) != (mark := (change.revision, change.value)):
            self._changes.changed(change.key, change.value, change.revision)
            self._mirror[change.key] = mark

    def _applied(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self._changes.synced(self.revision)

    def _keep_soon(self) -> None:
        if self._next_keep is not None:
            self._next_keep.cancel()
            self._next_keep = None
            self._schedule_keep(NS_PER_MS)

    def _schedule_keep(self, delay_ns: int) -> None:
        connection = self._connection

        def keep() -> None:
            if connection == self._connection:
                self._keep()

        self._next_keep = self.node.later(delay_ns, self._lane, keep)

    def _keep(self) -> None:
        """Renew the lease or be granted another, then put what is to be registered and is not."""
        self._next_keep = None
        lease = self.lease
        if lease:
            self._call(lambda: self.etcd.renew(lease), self._renewed)
        elif self._wanted:
            self._call(lambda: self.etcd.grant(self._lease_ttl_ns), self._granted)
        else:
            self._schedule_keep(self._lease_ttl_ns // 3)

    def _renewed(self, is_alive: bool) -> None:
        if is_alive:
            self._put_wanted()
        else:
            self.lease = 0
            self._keep()

    def _granted(self, lease: int) -> None:
        self.lease = lease
        self._put_wanted()

    def _put_wanted(self) -> None:
        lease = self.lease
        for key, value in self._wanted.items():
            if self._put.get(key) != (value, lease):
                self._call(partial(self._put_there, key, value, lease), self._was_put)
                return
        self._schedule_keep(self._lease_ttl_ns // 3)

    def _put_there(self, key: str, value: bytes, lease: int) -> tuple[str, bytes, int] | None:
        if not self.etcd.has_lease(lease):
            return None
        self.etcd.put(key, value, lease)
        return key, value, lease

    def _was_put(self, done: tuple[str, bytes, int] | None) -> None:
        if done is None:
            self.lease = 0
            self._keep()
            return
        key, value, lease = done
        self._put[key] = (value, lease)
        self._put_wanted()
