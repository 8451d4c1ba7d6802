"""Replication: every bucket that changed is on its way to whoever else holds it, until that node says that it has it.

One outlet per peer. A bucket due at a peer is read when it is sent, so a hot key costs one entry per interval, and a
slow peer one entry per active key, never a queue of changes. The same outlet carries changes to a replica, a replica's
own grants back to an owner that returns, and, behind these and at a measured pace, whole stretches of the ring to nodes
that take them over (a survey).

No clock and no sockets; what to send comes out as frames.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from limiter_node.core.forward import UNREACHABLE
from limiter_node.core.model import (
    FORGOTTEN_SPENT,
    VALUES_PER_FRAME,
    Copies,
    Copy,
    Settled,
    Verdict,
)
from limiter_node.core.outlet import Barrier, Outlet
from limiter_node.core.rules import DEFAULT_SEGMENT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limiter_node.core.engine import Engine
    from limiter_node.core.forward import Forward
    from limiter_node.core.links import Link
    from limiter_node.core.model import Answer, Ask, Check, Outcome
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.ring import Ring

COPIES_PER_FRAME = 50
"""See `FRAMES_IN_FLIGHT_MAX`."""

SURVEY_PER_TICK = 200
"""Buckets looked at per tick when the ring has changed: some half a millisecond in 10."""

SURVEY_PER_TICK_LEAVING = 2_000
"""A node that leaves has nothing else to do; it sends as fast as its peers confirm, too."""

BULK_MAX = 1_000
"""A survey waits while more than this is to be handed over to some peer."""


class Replication:
    """All outlets of a node. `wake` asks for a peer's frames to be fetched (`frames`) soon."""

    def __init__(self, node_id: str, engine: Engine, *, wake: Callable[[str], None]) -> None:
        self.outlets: dict[str, Outlet] = {}
        self.sent = 0  # copies
        self.uncopied = 0  # verdicts that were promised to wait for a copy and went without
        self._node_id = node_id
        self._engine = engine
        self._wake = wake
        self._next_id = 0
        self._survey: Iterator[list[Bucket]] | None = None
        self._barriers: dict[str, Barrier] | None = None  # what the survey has made due, by peer, once it has ended
        self._pruning: Iterator[list[Bucket]] | None = None
        self._rings: list[Ring] = []  # the last one whose survey has ended, and those since
        self._new: set[str] = set()  # members that were not there, or in another life, in one of them

    @property
    def is_leaving(self) -> bool:
        """Whether this node is in no ring any more."""
        return bool(self._rings) and self._node_id not in self._rings[-1].members

    @property
    def is_surveying(self) -> bool:
        """Whether buckets are still to be looked at for a change of the ring."""
        return self._survey is not None

    @property
    def due(self) -> int:
        """Copies that some peer is still to get, and changes that have not been looked at yet."""
        uncollected = sum(len(rule.changed) for rule in self._engine.rules.values())
        return uncollected + sum(len(outlet.due) + len(outlet.bulk) for outlet in self.outlets.values())

    def outlet(self, name: str) -> Outlet:
        """The outlet to a peer."""
        found = self.outlets.get(name)
        if found is None:
            found = self.outlets[name] = Outlet()
        return found

    def collect(self, ring: Ring, now_ns: int) -> None:
        """Put what has changed since the last call where it is due: at the replicas of this node's own keys.

        A copy that this node holds for another may change too, when the rules do; that is no news to anybody.
        """
        changed: dict[str, list[Bucket]] = {}
        for bucket in self._engine.take_changed():
            owner, replica = ring.holders(bucket[1])
            if owner == self._node_id and replica is not None:
                changed.setdefault(replica, []).append(bucket)
        for replica, buckets in changed.items():
            self.outlet(replica).add(buckets, now_ns)

    def carry(self, name: str, ask: Ask, spent: list[int], now_ns: int) -> None:
        """The answer to a peer's checks is the copy of some, too: of those of which it says what the key has spent."""
        self.outlet(name).carry(ask.id, ask.checks, spent, now_ns)
        self.sent += len(spent) - spent.count(0)

    def on_kept(self, name: str, frame_ids: list[int], now_ns: int) -> None:
        """A peer has kept the copies in these answers."""
        if name in self.outlets:
            self.outlets[name].on_kept(frame_ids, now_ns)

    def keep(self, link: Link, forwards: list[Forward], answer: Answer, now_ns: int) -> None:
        """Take the copies in a peer's answer to these checks of its own keys."""
        for forward, micros in zip(forwards, answer.spent, strict=True):
            if micros:
                check = forward.check
                self._engine.merge(Copy(check.rule, check.key, DEFAULT_SEGMENT, micros), now_ns, follows=True)
        link.kept.append(answer.id)

    def turn(self) -> None:
        """Give up copies in answers that were on their way at the last call, an interval ago, and still are."""
        for outlet in self.outlets.values():
            outlet.turn()

    def put(self, ring: Ring, bucket: Bucket, now_ns: int, *, forgets: bool = False) -> None:
        """Have the other holders of a bucket told of it at once; with `forgets`, that it is full again."""
        for name in ring.holders(bucket[1]):
            if name is not None and name != self._node_id:
                self.outlet(name).add([bucket], now_ns, forgets=forgets)

    def hold(self, name: str, bucket: Bucket, forward: Forward, outcome: Outcome, now_ns: int) -> None:
        """Keep an outcome back until a peer has the bucket."""
        outlet = self.outlet(name)
        outlet.add([bucket], now_ns)
        outlet.held.setdefault(bucket, []).append((forward, outcome))
        self._wake(name)

    def without_copy(self, check: Check, outcome: Outcome) -> Outcome:
        """Let an outcome go that was to wait for a copy; a verdict of a rule that promises the copy is marked.

        A settlement does not go: the replica might yet settle otherwise.
        """
        if isinstance(outcome, Settled):
            return UNREACHABLE
        if not isinstance(outcome, Verdict) or check.rule not in self._engine.sync_rules:
            return outcome
        self.uncopied += 1
        return replace(outcome, degraded=True)

    def lag_ns(self, now_ns: int) -> int:
        """How long the peer that is furthest behind has confirmed nothing."""
        behind = [outlet for outlet in self.outlets.values() if outlet.is_busy]
        return max((now_ns - outlet.confirmed_ns for outlet in behind), default=0)

    def frames(self, name: str, now_ns: int) -> list[Copies]:
        """What to send to a peer now."""
        outlet = self.outlets.get(name)
        frames: list[Copies] = []
        while outlet and (queue := outlet.next_up(now_ns, hurries=self.is_leaving)):
            batch, copies = self._fill(queue, now_ns)
            self._next_id += 1
            outlet.send(self._next_id, batch, now_ns)
            if outlet.held:
                helds = [held for bucket, _ in batch for held in outlet.held.pop(bucket, ())]
                if helds:
                    outlet.held_in[self._next_id] = helds
            frames.append(Copies(self._next_id, copies))
            self.sent += len(copies)
        return frames

    def _fill(self, queue: dict[Bucket, bool], now_ns: int) -> tuple[list[tuple[Bucket, bool]], list[Copy]]:
        """The first few buckets of those that wait, as many as a frame takes, and their copies."""
        batch: list[tuple[Bucket, bool]] = []
        copies: list[Copy] = []
        values = 0
        for bucket, forgets in islice(queue.items(), COPIES_PER_FRAME):
            batch.append((bucket, forgets))
            rule, key = bucket
            if forgets:
                copies.append(Copy(rule, key, "default", FORGOTTEN_SPENT))
            copy = self._engine.copy(rule, key, now_ns)
            if copy is not None:
                copies.append(copy)
                values += copy.values
                if values >= VALUES_PER_FRAME:
                    break
        return batch, copies

    def on_ack(self, name: str, frame_id: int, now_ns: int) -> None:
        """A peer has the copies of a frame."""
        outlet = self.outlets.get(name)
        if outlet is None or outlet.flight.pop(frame_id, None) is None:
            return
        outlet.confirmed_ns = now_ns
        for forward, outcome in outlet.held_in.pop(frame_id, ()):
            if isinstance(outcome, Settled):
                self._engine.settlements.publish(forward.check.key)
            forward.reply(outcome)
        if outlet.held or len(outlet.due) >= COPIES_PER_FRAME or (outlet.bulk and self.is_leaving):
            self._wake(name)

    def on_down(self, name: str) -> None:
        """The way to a peer is broken; outcomes that waited for it go without."""
        outlet = self.outlets.get(name)
        if outlet is not None:
            for forward, outcome in outlet.on_down():
                forward.reply(self.without_copy(forward.check, outcome))

    def expire(self, now_ns: int) -> None:
        """Let outcomes go whose deadline has passed."""
        for outlet in self.outlets.values():
            for waiting in (*outlet.held.values(), *outlet.held_in.values()):
                while waiting and waiting[0][0].deadline_ns <= now_ns:
                    forward, outcome = waiting.pop(0)
                    forward.reply(self.without_copy(forward.check, outcome))

    def drop(self, name: str) -> None:
        """A peer is no more: nothing is due there."""
        self.on_down(name)
        self.outlets.pop(name, None)
        if self._barriers is not None:
            self._barriers.pop(name, None)

    # When the ring changes.

    def has_told(self, ring: Ring, gone: set[str]) -> bool:
        """Whether every member, but for those that are gone, has all that it is to get."""
        if self.is_surveying:
            return False
        members = ring.members.keys() - gone
        return not any(outlet.is_busy for name, outlet in self.outlets.items() if name in members)

    def has_all(self, name: str, epoch: int) -> bool:
        """Whether a peer has all that was due there when it first asked for that, in this epoch of its own."""
        outlet = self.outlet(name)
        if outlet.epoch != epoch:
            outlet.epoch, outlet.barrier = epoch, Barrier()
            if outlet.is_busy:
                self._wake(name)
        return outlet.is_past(outlet.barrier)

    def is_last_to_know(self, ring: Ring, gone: set[str], now_ns: int) -> bool:
        """Whether a bucket is due at members that are gone, and nowhere else.

        They are back some time, or the ring gives it to others: as long as there are any, this node must not end.
        """
        if not ring.members.keys() - gone:
            return False
        due = (bucket for name in gone & self.outlets.keys() for bucket in self.outlets[name].buckets())
        return any(
            gone.issuperset(filter(None, ring.holders(key))) and self._engine.copy(rule, key, now_ns)
            for rule, key in due
        )

    def begin_survey(self, ring: Ring) -> None:
        """Look at every bucket, have it sent to holders that may not have it, and then forget what is not held here.

        The owner and the replica both send: whichever dies meanwhile, nothing is lost.
        """
        if not self._rings:
            self._rings = [ring]
            return
        self._rings.append(ring)
        self._new = {
            name
            for name, member in ring.members.items()
            if any(other.members.get(name) != member for other in self._rings)
        }
        self._survey, self._pruning = self._engine.holdings(), None
        self._barriers = None

    def survey(self, now_ns: int) -> None:
        """Go on with it for a bounded piece."""
        barriers = self._barriers
        if barriers is not None and all(self.outlet(name).is_past(barrier) for name, barrier in barriers.items()):
            self._barriers = None
            self._pruning = self._engine.holdings()
        if self._pruning is not None:
            self._prune()
        seen = 0
        budget = SURVEY_PER_TICK_LEAVING if self.is_leaving else SURVEY_PER_TICK
        while self._survey is not None and seen < budget:
            if any(len(outlet.bulk) > BULK_MAX for outlet in self.outlets.values()):
                break
            piece = next(self._survey, None)
            if piece is None:
                self._survey = None
                del self._rings[:-1]
                self._barriers = {name: Barrier() for name in self.outlets}
                break
            for bucket in piece:
                self._send_on(bucket, now_ns)
            seen += len(piece) + 1

    def _send_on(self, bucket: Bucket, now_ns: int) -> None:
        *before, now = [ring.holders(bucket[1]) for ring in self._rings]
        if not self.is_leaving and all(self._node_id not in holders for holders in before):
            return  # a node that leaves may be the last to know of it, though
        for name in now:
            if name is None or name == self._node_id:
                continue
            if name in self._new or any(name not in holders for holders in before):
                self.outlet(name).add_bulk(bucket, now_ns)

    def _prune(self) -> None:
        """Forget, in bounded pieces, buckets that other nodes hold now and have all of."""
        assert self._pruning is not None
        seen = 0
        while seen < SURVEY_PER_TICK:
            piece = next(self._pruning, None)
            if piece is None:
                self._pruning = None
                return
            for rule, key in piece:
                if self._node_id not in self._rings[-1].holders(key):
                    self._engine.drop(rule, key)
            seen += len(piece) + 1
