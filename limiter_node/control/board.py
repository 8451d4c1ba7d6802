"""The line between a supervisor and each of its workers, and the board that stands in for etcd where there is none.

A line is a socket pair that carries JSON documents, one a line. Its end tells a worker that the supervisor is dead. The
supervisor says once what the worker is to be; the worker, when it has begun and when it listens for checks.

The workers of a standalone node are a fleet too: who is a member, who leads and what the leader has decided is posted
on a board that the supervisor keeps and shows to all of them, by the keys and in the order that etcd would have.
Whoever is there longest leads; that needs no election, for whoever is dead is known to be.

The supervisor's side, `Board`, is pure.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import socket

    from limiter_node.control.etcd import Changes

LINE_BYTES_MAX = 4 << 20
"""A board of 64 workers and 1,000 backends is a tenth of it."""

LEADER = "leader"
NODES = "nodes/"


class Task(msgspec.Struct, tag=True):
    """To a worker: which one it is, of a node with these options; said once, at first."""

    options: dict[str, Any]
    number: int
    run: str


class Notice(msgspec.Struct, array_like=True, frozen=True):
    """What stands on the board under a key since a revision; None: it was taken down."""

    key: str
    value: str | None
    revision: int


class Shown(msgspec.Struct, tag=True):
    """To a worker: all that stands on the board."""

    notices: list[Notice]


class Started(msgspec.Struct, tag=True):
    """From a worker: it can be asked by people and peers, these at that address."""

    peer: str


class Opened(msgspec.Struct, tag=True):
    """From a worker: it listens for checks."""


class Post(msgspec.Struct, tag=True):
    """From a worker: this is to stand on the board, or with None to be taken down."""

    key: str
    value: str | None


_encoder = msgspec.json.Encoder()
_of_supervisor: msgspec.json.Decoder[Task | Shown] = msgspec.json.Decoder(Task | Shown)
_of_worker: msgspec.json.Decoder[Started | Opened | Post] = msgspec.json.Decoder(Started | Opened | Post)


def encode(message: Task | Shown | Started | Opened | Post) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def decode_of_supervisor(line: bytes) -> Task | Shown:
    """What a worker is told; raises `msgspec.MsgspecError`."""
    return _of_supervisor.decode(line)


def decode_of_worker(line: bytes) -> Started | Opened | Post:
    """What a supervisor is told; raises `msgspec.MsgspecError`."""
    return _of_worker.decode(line)


class Board:
    """What stands on the board of a node with so many workers."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._notices: dict[str, Notice] = {}
        self._revision = 0
        self._present: list[str] = []  # workers that are members, in the order in which they came
        self._is_founded = False

    @property
    def notices(self) -> list[Notice]:
        """All of them; none until every worker is there, so that all begin with one ring."""
        return list(self._notices.values()) if self._is_founded else []

    def post(self, worker: str, key: str, value: str | None) -> None:
        """Put up what a worker wants to be there; only the leader decides about backends."""
        if key == NODES + worker:
            self._attend(worker, is_present=value is not None)
        elif worker != self._leader:
            return
        self._put(key, value)

    def lose(self, worker: str) -> None:
        """The worker is dead. It stays a member, for it will be back, but leads no more."""
        self._attend(worker, is_present=False)

    def lapse(self, worker: str) -> None:
        """A while after that: unless it is back, the worker is no member any more."""
        if worker not in self._present:
            self._put(NODES + worker, None)

    @property
    def _leader(self) -> str | None:
        return self._present[0] if self._present else None

    def _attend(self, worker: str, *, is_present: bool) -> None:
        before = self._leader
        if is_present and worker not in self._present:
            self._present.append(worker)
        elif not is_present and worker in self._present:
            self._present.remove(worker)
        self._is_founded = self._is_founded or len(self._present) == self._workers
        if self._leader != before:
            self._put(LEADER, self._leader)

    def _put(self, key: str, value: str | None) -> None:
        self._revision += 1
        self._notices[key] = Notice(key, value, self._revision)


class Line:
    """A worker's end of the line to its supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._posted: set[str] = set()
        self._revision = 0

    @classmethod
    async def over(cls, end: socket.socket) -> Line:
        """The line over this end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES_MAX))

    def tell(self, message: Started | Opened | Post) -> None:
        """Say something to the supervisor, if it is there."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def follow(self, changes: Changes) -> None:
        """Pass on what is new on the board, until the supervisor is gone."""
        while line := await self._reader.readline():
            message = decode_of_supervisor(line)
            assert isinstance(message, Shown)
            for notice in message.notices:
                if notice.revision > self._revision:
                    value = None if notice.value is None else notice.value.encode()
                    changes.changed(notice.key, value, notice.revision)
            self._revision = max((notice.revision for notice in message.notices), default=self._revision)
            changes.synced(self._revision)

    # The board, as an etcd session would have it.

    async def first_sync(self) -> None:
        """Return at once: a worker registers first, and sees the board once all have."""

    def register(self, key: str, value: bytes) -> None:
        """Keep this key on the board; again with another value to change it."""
        self._posted.add(key)
        self.tell(Post(key, value.decode()))

    async def leave(self) -> None:
        """Take our keys down."""
        while self._posted:
            self.tell(Post(self._posted.pop(), None))

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with suppress(ConnectionError):  # the supervisor may be dead
            await self._writer.wait_closed()


class Appointment:
    """A worker's part in who leads a standalone node: the board says so (as `Leadership` where etcd does)."""

    def __init__(self, line: Line, node_id: str) -> None:
        self.leader: str | None = None
        self.term = 0  # this worker's; 0 while it does not lead
        self.refused = 0
        self._line = line
        self._node_id = node_id

    @property
    def is_leader(self) -> bool:
        """Whether this worker may act."""
        return self.term > 0

    def changed(self, value: bytes | None, revision: int) -> None:
        """Take what the board says of the leader."""
        self.leader = None if value is None else value.decode()
        self.term = revision if self.leader == self._node_id else 0

    async def write(self, key: str, value: bytes, mod_revision: int | None) -> bool:
        """Post a decision; the supervisor takes it from the leader only."""
        self._line.tell(Post(key, value.decode()))
        return True
