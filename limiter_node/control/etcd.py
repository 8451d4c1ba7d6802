"""One resilient etcd session: what is below the prefix, and our own keys under a lease.

Decides when to read, watch, renew, register and give a connection up. Does not know what any key means,
nor what to do while etcd is away: whoever consumes the changes goes on with what it was told last.

One endpoint is used at a time. Each connection runs two loops side by side, and the first failure of
either ends both and moves on to the next endpoint:

    follow   read everything at one revision R, watch from R + 1; after a compaction read again
    keep     renew the lease every third of its TTL, put what is to be registered and is not

There is no smaller repair than a new connection with a full read, so there is one path to test. A mirror
of key -> fingerprint of what was delivered turns that read into exactly the changes that were missed.

Invariants: the consumer is told of a deletion only by a watch event or after a full read has ended well,
never because etcd did not answer; `synced(revision)` comes only when everything up to it was delivered;
a key's changes arrive in the order of their revisions, until etcd itself goes back in history.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from aetcd import rpc

from limiter_node.control.etcd_link import CALL_DEADLINE_S, EtcdConfig, Link, LinkError, call_once, dial, mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = structlog.get_logger()

# Pause before the next endpoint is tried: doubles from the first to the second while attempts fail.
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
# A connection that held this long starts the next pause at the minimum again. Without it an endpoint that
# accepts us and drops us at once would be read in full twenty times a second.
STEADY_NS = 5_000_000_000
# While etcd stays away, the same failure of the same endpoint is logged this often.
REPEAT_LOG_NS = 60_000_000_000
# Longest time that leave() holds up a shutdown; the lease runs out by itself otherwise.
LEAVE_DEADLINE_S = 2.0
# A page of the first read: some 2 MB of rules or keys, a few milliseconds to parse.
PAGE_KEYS = 5_000
# The loop gets a turn after so many keys, told or found unchanged: about 1 ms and what the consumer takes.
BATCH_CHANGES = 256

_Change = tuple[str, bytes | None, int]  # key below the prefix, value or None, revision


class Changes(Protocol):
    """Who is told; called on the loop, in order, never by two connections at once."""

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        """Take one key's new value, or None when it is deleted.

        `key` is below the prefix, as "rules/api". `revision` is that of the put or the delete; for a
        delete that nobody watched, of the read that missed the key.
        """

    def synced(self, revision: int) -> None:
        """Everything up to this revision has been delivered."""


@dataclass(slots=True)
class _Registration:
    """A key that is to exist under our lease, and what is known of it in etcd."""

    value: bytes
    put_value: bytes | None = None
    put_lease: int = 0
    put_revision: int = 0
    deleted_revision: int = 0  # newest revision at which the key was seen to be missing

    def is_put(self, lease_id: int) -> bool:
        return (
            self.put_value == self.value and self.put_lease == lease_id and self.deleted_revision <= self.put_revision
        )


def _fingerprint(value: bytes, revision: int) -> int:
    """Name a key's state in 64 bits.

    The revision alone would do within one history of etcd. In another it proves nothing: a wiped etcd that
    gets its rules by one transaction has them at revision 2, as the one before had.
    """
    return hash((revision, value))


def _is_compacted(response: Any) -> bool:
    """Tell an answer of a watch from the end of it; raise when it ended for another cause."""
    # Neither the end of the stream nor what could not be parsed (None, gRPC logs it) is a response.
    if not isinstance(response, rpc.WatchResponse):
        raise LinkError("watch ended")
    if response.canceled and not response.compact_revision:
        raise LinkError(f"watch cancelled: {response.cancel_reason}")
    return bool(response.compact_revision)


class EtcdSession:
    """Delivers what changes below the prefix and keeps our registrations alive, through any outage.

    `rng` spreads the retries of a fleet; `page_keys` is for tests.
    """

    def __init__(
        self,
        config: EtcdConfig,
        changes: Changes,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        rng: random.Random | None = None,
        page_keys: int = PAGE_KEYS,
    ) -> None:
        self._config = config
        self._changes = changes
        self._monotonic_ns = monotonic_ns
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._page_keys = page_keys
        root = f"{config.prefix}/"
        self._root = root.encode()
        self._root_end = f"{config.prefix}0".encode()  # "0" comes right after "/"

        # What is known of etcd; outlives connections.
        self._mirror: dict[str, int] = {}  # key -> fingerprint of what was delivered last
        self._cluster_id = 0
        self._raft_term = 0
        self._lease_id = 0
        self._registrations: dict[str, _Registration] = {}
        self._leaving = False
        self._left = asyncio.Event()
        self._was_live = False
        self._synced_once = asyncio.Event()

        # Of the present connection.
        self.is_watching = False  # what is told happens now; else a read has found it, of any age
        self._kept = False
        self._live_since_ns: int | None = None  # when both of its loops had begun to work
        self._wake_keeper = asyncio.Event()
        self._redial = asyncio.Event()
        self._link: Link | None = None

        self._task: asyncio.Task[None] | None = None
        self._logged_ns: dict[tuple[str, str], int] = {}

        self.revision = 0  # last applied
        # Taken just before the last successful grant or renewal was sent: the lease lives at least the
        # TTL from then on, whatever the network did to the answer.
        self.lease_renewed_ns: int | None = None
        # Revision at which the registrations were first put under the present lease; None before. While
        # `revision` is below it, others may have seen us leave and we do not know it yet.
        self.registered_revision: int | None = None

        # Counters for metrics.
        self.reconnects = 0  # times the session was connected again
        self.rereads = 0  # full reads begun after the first complete one
        self.lease_losses = 0

    @property
    def connected(self) -> bool:
        """Whether a watch is live and the last renewal of the lease went well."""
        return self.is_watching and self._kept

    async def start(self) -> None:
        """Begin, and return at once: an etcd that is down is tried again until it is there."""
        self._task = asyncio.create_task(self._run(), name="etcd session")

    async def first_sync(self) -> None:
        """Wait until everything below the prefix has been delivered once."""
        await self._synced_once.wait()

    def register(self, key: str, value: bytes) -> None:
        """Keep this key, below the prefix, in etcd under our lease; again with another value to change it."""
        registration = self._registrations.setdefault(key, _Registration(value))
        registration.value = value
        self._wake_keeper.set()

    async def leave(self) -> None:
        """Revoke the lease, so that our keys go at once. Final; changes are still delivered until close."""
        if self._task is None:
            return
        self._leaving = True
        self._registrations.clear()
        self._wake_keeper.set()
        try:
            async with asyncio.timeout(LEAVE_DEADLINE_S):
                await self._left.wait()
        except TimeoutError:
            log.warning("etcd lease left to expire", lease_ttl_s=self._config.lease_ttl_s)

    @property
    def lease_id(self) -> int:
        """The lease of our registrations; 0 while there is none."""
        return self._lease_id if self._kept else 0

    def raw_key(self, key: str) -> bytes:
        """The whole key in etcd of one below the prefix."""
        return self._root + key.encode()

    async def transact(self, request: Any) -> Any:
        """Make one transaction over the present connection; raises `LinkError` when that cannot be."""
        if self._link is None:
            raise LinkError("not connected")
        return await call_once(self._link.kv.Txn, request, self._link, self._config.renew_every_s)

    def reconnect(self) -> None:
        """Connect anew with files read anew, as after SIGHUP."""
        self._redial.set()

    async def close(self) -> None:
        """End the session. A lease that was not left runs out."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait((self._task,))
        self._task = None

    # --- connections ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        for endpoint in itertools.cycle(self._config.endpoints):
            self._redial.clear()
            # In a task of its own: up to Python 3.11.3 a failed task group leaves its task marked as cancelled, and
            # no asyncio.timeout in it ends as TimeoutError from then on.
            await asyncio.create_task(self._attend(endpoint))
            now_ns, live_since_ns = self._monotonic_ns(), self._live_since_ns
            was_steady = live_since_ns is not None and now_ns - live_since_ns >= STEADY_NS
            self._live_since_ns = None
            failures = 0 if was_steady else min(failures + 1, 10)
            pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**failures) * self._rng.uniform(0.5, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._redial.wait()

    async def _attend(self, endpoint: str) -> None:
        """Serve one connection until it fails."""
        try:
            async with dial(self._config, endpoint) as link, asyncio.TaskGroup() as group:
                self._link = link
                group.create_task(self._follow(link))
                group.create_task(self._keep(link))
                group.create_task(self._heed_redial())
        except* LinkError as lost:
            self._log_lost(endpoint, lost.exceptions[0])
        except* Exception:  # ours or the consumer's bug: say so, and start from a full read
            log.exception("etcd session failed", endpoint=endpoint)
        finally:
            self.is_watching = self._kept = False
            self._link = None

    async def _heed_redial(self) -> None:
        await self._redial.wait()
        raise LinkError("asked to reconnect")

    def _note_live(self, link: Link) -> None:
        """Log that the connection has come to life, the first time that both loops say so."""
        if not self.connected or self._live_since_ns is not None:
            return
        self._live_since_ns = self._monotonic_ns()
        self.reconnects += self._was_live
        self._was_live = True
        self._logged_ns.clear()
        log.info("etcd connected", endpoint=link.endpoint, revision=self.revision, keys=len(self._mirror))

    def _log_lost(self, endpoint: str, error: BaseException) -> None:
        now_ns, what = self._monotonic_ns(), (endpoint, getattr(error, "code", ""))
        if self._live_since_ns is not None:
            log.warning("etcd lost", endpoint=endpoint, error=str(error))
        elif now_ns - self._logged_ns.get(what, -REPEAT_LOG_NS) >= REPEAT_LOG_NS:
            self._logged_ns[what] = now_ns
            log.warning("etcd unreachable", endpoint=endpoint, error=str(error))

    # --- follow: read and watch ----------------------------------------------------------------------

    async def _follow(self, link: Link) -> None:
        while True:
            await self._read(link)
            await self._watch(link)

    async def _read(self, link: Link) -> None:
        """Deliver how the prefix differs from what was delivered so far."""
        self.rereads += self._synced_once.is_set()
        missing = set(self._mirror)
        start, pinned = self._root, 0
        while True:
            # Later pages need no quorum: any member has the same at a revision that it has.
            request = rpc.RangeRequest(
                key=start,
                range_end=self._root_end,
                limit=self._page_keys,
                revision=pinned,
                serializable=pinned > 0,
            )
            page = await call_once(link.kv.Range, request, link)
            if not pinned:
                pinned = page.header.revision
                self._check_history(page.header)
            await self._deliver(self._found(page, missing))
            if not page.more:
                break
            start = page.kvs[-1].key + b"\0"
        await self._deliver((key, None, pinned) for key in missing)
        self._note_missing_registrations(pinned)
        self._applied(pinned)
        self._synced_once.set()

    def _found(self, page: Any, missing: set[str]) -> Iterator[_Change]:
        for kv in page.kvs:
            key = self._key(kv.key)
            missing.discard(key)
            # Deleted and put again while nobody watched: what hung on the old key must go with it. No turn of the
            # loop comes between the two.
            if 0 < self.revision < kv.create_revision:
                self._tell(key, None, kv.create_revision)
            yield key, kv.value, kv.mod_revision

    async def _watch(self, link: Link) -> None:
        """Deliver what happens from the last applied revision on; return when etcd has compacted past it."""
        create = rpc.WatchCreateRequest(
            key=self._root, range_end=self._root_end, start_revision=self.revision + 1, fragment=True
        )
        call = link.watch.Watch(metadata=link.metadata)
        try:
            with mapped():
                async with asyncio.timeout(CALL_DEADLINE_S):
                    await call.write(rpc.WatchRequest(create_request=create))
                    response = await call.read()
            while not _is_compacted(response):
                await self._apply(response)
                self.is_watching = True
                self._note_live(link)
                with mapped():
                    response = await call.read()
        finally:
            self.is_watching = False
            call.cancel()

    async def _apply(self, response: Any) -> None:
        events = [event for event in response.events if event.kv.mod_revision > self.revision]
        await self._deliver(
            (
                self._key(event.kv.key),
                None if event.type == event.DELETE else event.kv.value,
                event.kv.mod_revision,
            )
            for event in events
        )
        # Not the header's revision: while a watch catches up, that is etcd's newest, whatever part of the
        # way this response goes. A fragment may end in the middle of a revision.
        if events and not response.fragment:
            self._applied(events[-1].kv.mod_revision)

    async def _deliver(self, changes: Iterable[_Change]) -> None:
        for count, change in enumerate(changes, 1):
            self._tell(*change)
            if count % BATCH_CHANGES == 0:
                await asyncio.sleep(0)

    def _tell(self, key: str, value: bytes | None, revision: int) -> None:
        """Tell the consumer what is news to it, and remember that only when it has taken it."""
        if value is None:
            if key in self._mirror:
                self._changes.changed(key, None, revision)
                del self._mirror[key]
                self._note_deleted(key, revision)
        elif self._mirror.get(key) != (fingerprint := _fingerprint(value, revision)):
            self._changes.changed(key, value, revision)
            self._mirror[key] = fingerprint

    def _applied(self, revision: int) -> None:
        self.revision = revision
        self._changes.synced(revision)

    def _key(self, raw: bytes) -> str:
        # Anyone may write anything; a name that is no text must reach the consumer's own validation.
        return raw[len(self._root) :].decode(errors="surrogateescape")

    def _check_history(self, header: Any) -> None:
        """Notice an etcd that was wiped or restored from a backup, and deliver all of it as new.

        The answer to a linearizable read never has a lower revision or Raft term within one history. A new
        history that has passed both already goes unnoticed here; the fingerprints then tell what differs.
        """
        if (
            header.revision < self.revision
            or header.raft_term < self._raft_term
            or self._cluster_id not in (0, header.cluster_id)
        ):
            log.error("etcd wiped or restored", revision_seen=self.revision, revision=header.revision)
            self.revision = 0
            self.registered_revision = None
            self._mirror = dict.fromkeys(self._mirror, 0)  # in 2 ** 64 no fingerprint
            for key, registration in self._registrations.items():
                self._registrations[key] = _Registration(registration.value)
            self._wake_keeper.set()
        self._cluster_id, self._raft_term = header.cluster_id, header.raft_term

    # --- keep: lease and registrations ---------------------------------------------------------------

    async def _keep(self, link: Link) -> None:
        while True:
            self._wake_keeper.clear()
            if self._leaving:
                await self._revoke(link)
            else:
                await self._renew(link)
                await self._put_registrations(link)
            self._kept = True
            self._note_live(link)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.renew_every_s):
                    await self._wake_keeper.wait()

    async def _renew(self, link: Link) -> None:
        """Renew the lease, or be granted another."""
        sent_ns = self._monotonic_ns()
        if self._lease_id and not await self._is_renewed(link):
            log.warning("etcd lease lost")
            self.lease_losses += 1
            self._forget_lease()
            sent_ns = self._monotonic_ns()
        if not self._lease_id:
            request = rpc.LeaseGrantRequest(TTL=math.ceil(self._config.lease_ttl_s))
            self._lease_id = (await call_once(link.lease.LeaseGrant, request, link, self._config.renew_every_s)).ID
        self.lease_renewed_ns = sent_ns

    async def _is_renewed(self, link: Link) -> bool:
        """Renew the lease; False when etcd does not have it any more."""
        call = link.lease.LeaseKeepAlive(timeout=self._config.renew_every_s, metadata=link.metadata)
        try:
            with mapped():
                await call.write(rpc.LeaseKeepAliveRequest(ID=self._lease_id))
                await call.done_writing()
                answer = await call.read()
        finally:
            call.cancel()
        if not isinstance(answer, rpc.LeaseKeepAliveResponse):
            raise LinkError("renewal ended without an answer")
        return bool(answer.TTL > 0)

    def _forget_lease(self) -> None:
        self._lease_id = 0
        self.lease_renewed_ns = self.registered_revision = None

    async def _put_registrations(self, link: Link) -> None:
        for key, registration in tuple(self._registrations.items()):
            if registration.is_put(self._lease_id):
                continue
            value, lease_id = registration.value, self._lease_id
            request = rpc.PutRequest(key=self._root + key.encode(), value=value, lease=lease_id)
            answer = await call_once(link.kv.Put, request, link, self._config.renew_every_s)
            if registration.put_lease != lease_id:
                self.registered_revision = answer.header.revision
            registration.put_value = value
            registration.put_lease = lease_id
            registration.put_revision = answer.header.revision

    def _note_deleted(self, key: str, revision: int) -> None:
        """Have one of our own keys put again, if it was deleted after we put it last."""
        registration = self._registrations.get(key)
        if registration is not None:
            registration.deleted_revision = revision
            self._wake_keeper.set()

    def _note_missing_registrations(self, revision: int) -> None:
        for key in self._registrations:
            if key not in self._mirror:
                self._note_deleted(key, revision)

    async def _revoke(self, link: Link) -> None:
        if self._lease_id:
            request = rpc.LeaseRevokeRequest(ID=self._lease_id)
            try:
                await call_once(link.lease.LeaseRevoke, request, link, self._config.renew_every_s)
            except LinkError as exc:
                if exc.code != "NOT_FOUND":  # expired already: as good as revoked
                    raise
            self._forget_lease()
        self._left.set()
