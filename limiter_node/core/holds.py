"""Holds: tokens of a bucket that are set aside for checks of atomic batches.

What is set aside is neither spent nor free: a check is decided as if it were spent. It becomes spent when the batch is
confirmed, and free when it is not; so nothing that was spent ever has to be taken back, and merging copies of what was
spent by the greater of them stays right. `atomic` has the whole story.

A hold ends by its batch's word alone, never by time: when its time is over this node asks (`take_due`) what the batch
has come to. Times are local; a copy tells what is left of them.

Invariant: a hold that has ended here is not learnt anew from a copy that is older than that.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from limiter_node.core.model import ENDED, HOLDS_MAX, Hold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from limiter_node.core.model import Check
    from limiter_node.core.outlet import Bucket

RESERVED_TIMEOUTS = 8
"""Peer timeouts for which tokens are set aside before anybody asks: a reservation and the commit take at most 3 each,
whatever fails, and 2 are for the confirmation to arrive."""

ASK_AGAIN_TIMEOUTS = 4
"""Until whoever could not find out asks again. A copy's time is longer by so much: its holder asks if the owner has
not."""

ENDED_NS = 5_000_000_000
"""For how long it is known that a hold has ended: a copy made before that arrives by then, or ends like this one."""


TOLD_NS = 100_000_000
"""For how long after it a copy tells that a hold has ended: some replication intervals. Who has not heard of it asks
when the hold's time is over."""


class Held(NamedTuple):
    """A `Hold` as it is here."""

    cost: int
    segment: str | None
    until_ns: int


class Holds:
    """All holds that a node knows of."""

    def __init__(self, peer_timeout_ns: int = 100_000_000) -> None:
        self.tokens: dict[Bucket, int] = {}  # set aside or lent, by bucket; none that has nothing
        self.lent: dict[Bucket, int] = {}  # of these, the ones that other nodes may grant (see `lendings`)
        self.changed: set[Bucket] = set()  # since they were last sent to whoever else has the bucket
        self.set_pace(peer_timeout_ns)
        self._held: dict[Bucket, dict[tuple[str, int], Held]] = {}  # by batch and place
        self._due_ns = 0  # no hold's time is over before
        self._ended: dict[Bucket, dict[str, int]] = {}  # batches that are known to hold nothing more, and since when
        self._endings: deque[tuple[int, Bucket, str]] = deque()  # the same, in that order

    def set_pace(self, peer_timeout_ns: int) -> None:
        """Go by the fleet's peer timeout."""
        self.reserved_ns = RESERVED_TIMEOUTS * peer_timeout_ns
        self._ask_again_ns = ASK_AGAIN_TIMEOUTS * peer_timeout_ns

    def __bool__(self) -> bool:
        """Whether any bucket has a hold or had one lately."""
        return bool(self._held or self._ended)

    def __contains__(self, bucket: Bucket) -> bool:
        """Whether the bucket has a hold, or had one lately: its copy says so, even when nothing is spent."""
        return bucket in self._held or bucket in self._ended

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._held)

    def has_room(self, bucket: Bucket) -> bool:
        """Whether the bucket may have another hold."""
        return len(self._held.get(bucket, ())) < HOLDS_MAX

    def is_known(self, bucket: Bucket, hold: tuple[str, int]) -> bool:
        """Whether tokens are set aside for the check at that place of a batch."""
        return hold in self._held.get(bucket, ())

    def has_ended(self, bucket: Bucket, batch: str) -> bool:
        """Whether the batch is known to hold nothing more of the bucket."""
        return batch in self._ended.get(bucket, ())

    def add(self, bucket: Bucket, check: Check, now_ns: int) -> None:
        """Set the cost of an atomic batch's check aside."""
        assert check.hold is not None
        held = Held(check.cost, check.segment, now_ns + self.reserved_ns)
        self._held.setdefault(bucket, {})[check.hold] = held
        self.tokens[bucket] = self.tokens.get(bucket, 0) + check.cost
        self.changed.add(bucket)
        self._due_ns = min(self._due_ns, held.until_ns)

    def of(self, bucket: Bucket, batch: str) -> list[Held]:
        """All that is set aside for a batch."""
        return [held for (name, _), held in self._held.get(bucket, {}).items() if name == batch]

    def end(self, bucket: Bucket, batch: str, now_ns: int) -> None:
        """Set nothing more aside for the batch."""
        there = self._held.get(bucket, {})
        left = {mark: held for mark, held in there.items() if mark[0] != batch}
        if len(left) < len(there):
            self._keep(bucket, left)
            self.changed.add(bucket)
            self._ended.setdefault(bucket, {})[batch] = now_ns
            self._endings.append((now_ns, bucket, batch))

    def drop(self, bucket: Bucket) -> None:
        """Forget all holds of a bucket."""
        self._keep(bucket, {})

    def drop_rule(self, rule: str) -> None:
        """Forget all holds of a rule's buckets."""
        for bucket in [bucket for bucket in self._held if bucket[0] == rule]:
            self.drop(bucket)

    def _keep(self, bucket: Bucket, held: dict[tuple[str, int], Held]) -> None:
        if held:
            self._held[bucket] = held
        else:
            self._held.pop(bucket, None)
        self._add_up(bucket)

    def _add_up(self, bucket: Bucket) -> None:
        held = sum(each.cost for each in self._held.get(bucket, {}).values())
        tokens = held + self.lent.get(bucket, 0)
        if tokens:
            self.tokens[bucket] = tokens
        else:
            self.tokens.pop(bucket, None)

    def lend(self, bucket: Bucket, tokens: int) -> None:
        """Have so many tokens more lent to other nodes or, of a negative number, so many less."""
        lent = self.lent.get(bucket, 0) + tokens
        if lent:
            self.lent[bucket] = lent
        else:
            self.lent.pop(bucket, None)
        self._add_up(bucket)

    # What travels between nodes.

    def copy(self, bucket: Bucket, now_ns: int) -> tuple[Hold, ...]:
        """The bucket's holds for another node, and those that have just ended."""
        holds = [
            Hold(batch, place, held.cost, max(0, held.until_ns - now_ns), held.segment)
            for (batch, place), held in self._held.get(bucket, {}).items()
        ]
        for batch, ended_ns in reversed(self._ended.get(bucket, {}).items()):
            if now_ns - ended_ns > TOLD_NS or len(holds) >= HOLDS_MAX:
                break
            holds.append(Hold(batch, 0, ENDED, 0))
        return tuple(holds[:HOLDS_MAX])

    def learn(self, bucket: Bucket, holds: Sequence[Hold], now_ns: int) -> None:
        """Take another node's holds of a bucket: those that it knows, less those that either knows to have ended."""
        for hold in holds:
            if hold.cost == ENDED:
                self.end(bucket, hold.batch, now_ns)
        known, ended = self._held.get(bucket, {}), self._ended.get(bucket, {})
        told = {
            (hold.batch, hold.place): Held(hold.cost, hold.segment, now_ns + hold.left_ns + self._ask_again_ns)
            for hold in holds
            if hold.cost != ENDED and hold.batch not in ended
        }
        self._keep(bucket, told | known)
        self._due_ns = min([self._due_ns, *(held.until_ns for held in told.values())])

    # What time does.

    def take_due(self, now_ns: int) -> list[tuple[Bucket, str]]:
        """The holds, as bucket and batch, whose time is over: their batch is to be asked for, again after a while."""
        while self._endings and self._endings[0][0] + ENDED_NS <= now_ns:
            _, bucket, batch = self._endings.popleft()
            self._ended[bucket].pop(batch, None)
            if not self._ended[bucket]:
                del self._ended[bucket]
        if now_ns < self._due_ns:
            return []
        due: dict[tuple[Bucket, str], None] = {}
        soonest_ns = now_ns + self.reserved_ns
        for bucket, there in self._held.items():
            for mark, held in there.items():
                if held.until_ns <= now_ns:
                    due[bucket, mark[0]] = None
                    there[mark] = held._replace(until_ns=now_ns + self._ask_again_ns)
                soonest_ns = min(soonest_ns, there[mark].until_ns)
        self._due_ns = soonest_ns
        return list(due)
