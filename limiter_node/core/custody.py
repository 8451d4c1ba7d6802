"""Custody: which buckets this node may decide although others may know more of them.

When the ring has changed, or this node has lost its right to decide for a moment or has it back, other nodes may have
granted what it does not know of. Until each of them has released this node (has told all, see `replication`), a bucket
is decided only

- if it has been this node's in every ring since it last was whole, or
- if every node that has not released this one yet has answered what it knows of that bucket (a pull), and so decides it
  no more.

A check of any other bucket is parked until then. No clock, no sockets: it says whom to ask, and which checks can go on.

Invariant: parked checks of a bucket go on in the order in which they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.fence import ALWAYS_NS
from limiter_node.core.remains import Remains
from limiter_node.core.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Collection

    from limiter_node.core.forward import Forward
    from limiter_node.core.outlet import Bucket

NO_RING = Ring(0, {})
FORGOTTEN_PER_TICK = 5_000
"""Names of pulled buckets let go per tick: all at once, 300,000 would stall the loop for 20 ms."""


class Parked:
    """Checks of one bucket, and the nodes that are still to say what they know of it."""

    __slots__ = ("due_ns", "forwards", "missing")

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing
        self.forwards: list[Forward] = []
        self.due_ns = ALWAYS_NS  # the earliest of their deadlines: who came later may have had to wait elsewhere before


class Custody:
    """What this node has to learn before it may decide."""

    def __init__(self, node_id: str) -> None:
        self.epoch = 0  # counts the occasions on which something was missed
        self.pending: set[str] = set()  # nodes that have not released this one yet
        self.parked: dict[Bucket, Parked] = {}
        self.pulled = 0
        self.untold: set[str] = set()  # nodes that went before they had told all
        self._node_id = node_id
        self._rings: list[Ring] = [NO_RING]  # in force since this node last was whole
        self._since: dict[Bucket, int] = {}  # for buckets pulled since: how many rings there were then
        self.remains = Remains()

    def begin(self, ring: Ring, others: set[str], *, missed: bool) -> None:
        """Something may be known to others: the ring has changed, or (`missed`) this node had lost its right."""
        self.epoch += 1
        self.pending |= others
        if missed:
            self._rings = [NO_RING]
            self.remains.add([self._since])
            self._since = {}
        self._rings.append(ring)
        for bucket, parked in self.parked.items():
            if ring.owner(bucket[1]) == self._node_id:
                parked.missing |= others
        if not self.pending:
            self._become_whole()

    def is_sure(self, bucket: Bucket, *, as_replica: bool = False) -> bool:
        """Whether a bucket that is this node's in the present ring, or whose replica it is, may be decided at once."""
        if not self.pending:
            return True
        rings = self._rings[self._since.get(bucket, 0) :]
        if as_replica:
            return all(self._node_id in ring.holders(bucket[1]) for ring in rings)
        return all(ring.owner(bucket[1]) == self._node_id for ring in rings)

    def has_strangers(self, ring: Ring, asked: Collection[str] = ()) -> bool:
        """Whether some node that is still to tell all is not in this ring: its members need never have heard of it.

        Whoever asks this node and not that one too (`asked`) must not go without what it knows: wait for that.
        """
        return any(name not in ring.members and name not in ring.leavers and name not in asked for name in self.pending)

    def park(self, bucket: Bucket, forward: Forward) -> set[str]:
        """Have a check wait; returns the nodes to pull the bucket from."""
        is_new = bucket not in self.parked
        if is_new:
            self.parked[bucket] = Parked(set(self.pending))
        parked = self.parked[bucket]
        parked.forwards.append(forward)
        parked.due_ns = min(parked.due_ns, forward.deadline_ns)
        return parked.missing if is_new else set()

    def on_pulled(self, name: str, bucket: Bucket) -> None:
        """A node has said all that it knows of a bucket."""
        parked = self.parked.get(bucket)
        if parked is not None:
            parked.missing.discard(name)
            if not parked.missing and bucket not in self._since:
                self._since[bucket] = len(self._rings) - 1
                self.pulled += 1

    def release(self, name: str, *, is_gone: bool = False) -> None:
        """A node has told all, or is gone and whoever else held its buckets speaks for it."""
        self.pending.discard(name)
        if is_gone:
            self.untold.add(name)
        else:
            self.untold.discard(name)
        for bucket in self.parked:
            self.on_pulled(name, bucket)
        if not self.pending:
            self._become_whole()

    def take_ready(self, *, as_replica_only: bool) -> list[Forward]:
        """The checks that wait for nothing any more, removed."""
        ready = [
            bucket
            for bucket, parked in self.parked.items()
            if not parked.missing and (not as_replica_only or parked.forwards[0].asks_help)
        ]
        return [forward for bucket in ready for forward in self.parked.pop(bucket).forwards]

    def take_late(self, now_ns: int) -> list[Forward]:
        """The checks whose deadline has passed, removed."""
        if not self.parked:
            return []
        late: list[Forward] = []
        for bucket, parked in list(self.parked.items()):
            if parked.due_ns <= now_ns:
                late += [forward for forward in parked.forwards if forward.deadline_ns <= now_ns]
                parked.forwards = [forward for forward in parked.forwards if forward.deadline_ns > now_ns]
                parked.due_ns = min((forward.deadline_ns for forward in parked.forwards), default=ALWAYS_NS)
                if not parked.forwards:
                    del self.parked[bucket]
        return late

    def tick(self) -> None:
        """Free a bounded piece of what is not needed any more."""
        self.remains.free(FORGOTTEN_PER_TICK)

    def _become_whole(self) -> None:
        if not any(name in self._rings[-1].members for name in self.untold):
            self.untold.clear()
        del self._rings[:-1]
        self.remains.add([self._since])
        self._since = {}
