"""Commitments: what the owner of a key has bound itself to, and the checks that wait until it is free again.

It has promised denials (`promises`) and lent tokens (`lendings`). A check that would break a promise waits until that
is over; one that depends on lent tokens, until they are back: they are called back as soon as the first one waits.
While a check of a bucket waits, nothing more is promised or lent of it.

Invariant: who has waited once does not wait again for the same cause; the checks of a bucket go on in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.forward import parked_ns
from limiter_node.core.lendings import Lendings
from limiter_node.core.model import Check, Lent, Op, Outcome, Returned, UnknownRule, Verdict
from limiter_node.core.promises import Promises, longest_ns

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine
    from limiter_node.core.forward import Forward
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.ring import Ring


class Commitments:
    """All of a node, towards its peers. `recall` gets whom to ask for a lease, what, and the time."""

    recall: Callable[[str, Check, int], None]

    def __init__(self, engine: Engine, peer_timeout_ns: int, boot: int) -> None:
        self.promises = Promises(engine, longest_ns(peer_timeout_ns))
        self.lendings = Lendings(engine, peer_timeout_ns, boot)
        self._parked_ns = parked_ns(peer_timeout_ns)
        self._movable = self.promises.movable
        self._lent = engine.holds.lent
        self._waiting: dict[Bucket, list[tuple[int, Forward]]] = {}

    def bind(self, check: Check) -> bool:
        """Whether a check may have to wait."""
        movable, lent = self._movable, self._lent
        if not movable and not lent:
            return False
        bucket = check.rule, check.key
        return bucket in movable or bucket in lent

    def promise(self, check: Check, verdict: Verdict, right_until_ns: int, now_ns: int) -> int:
        """As `Promises.make`."""
        is_awaited = (check.rule, check.key) in self._waiting
        return 0 if is_awaited else self.promises.make(check, verdict, right_until_ns, now_ns)

    def do(self, check: Check, right_until_ns: int, now_ns: int) -> Lent | UnknownRule | Returned:
        """Lend, or take back."""
        bucket = check.rule, check.key
        if check.op is Op.LEND:
            return self.lendings.lend(check, 0 if bucket in self._waiting else right_until_ns, now_ns)
        assert check.hold is not None
        name, granted = check.hold
        self.take_back(bucket, name, granted, now_ns)
        return Returned(granted)

    def take_back(self, bucket: Bucket, name: str, granted: int, now_ns: int) -> None:
        """A borrower tells that a lease has ended, and how many of its tokens it has granted."""
        if self.lendings.end(bucket, name, granted, now_ns):
            self._hurry(bucket)

    # What waits.

    def due_ns(self, check: Check, now_ns: int, outcome: Outcome | None = None) -> int:
        """Until when a check has to wait before it is decided or, decided so, before that may be told; 0: it need not.

        What was decided and is not told has changed nothing: it is a denial.
        """
        if self.lendings.hinders(check, outcome):
            return now_ns + self._parked_ns
        return 0 if outcome is not None else self.promises.due_ns(check, now_ns)

    def park(self, forward: Forward, due_ns: int, now_ns: int) -> Forward:
        """Have a check wait."""
        bucket = forward.check.rule, forward.check.key
        if bucket not in self._waiting:
            self.promises.contest(bucket, now_ns)
            for name, recall in self.lendings.borrowers(bucket):
                self.recall(name, recall, now_ns)
        self._waiting.setdefault(bucket, []).append((due_ns, forward))
        return forward

    def take_due(self, now_ns: int) -> list[Forward]:
        """The checks that have waited, removed, in the order in which they came for each bucket."""
        due: list[Forward] = []
        for bucket, waiting in list(self._waiting.items()):
            due += [forward for due_ns, forward in waiting if due_ns <= now_ns]
            self._waiting[bucket] = [entry for entry in waiting if entry[0] > now_ns]
            if not self._waiting[bucket]:
                del self._waiting[bucket]
        return due

    def _hurry(self, bucket: Bucket) -> None:
        if bucket in self._waiting:
            self._waiting[bucket] = [(0, forward) for _, forward in self._waiting[bucket]]

    # What happens.

    def set_ring(self, ring: Ring, node_id: str, now_ns: int) -> None:
        """What is lent of other nodes' buckets does not come back here."""
        for bucket in self.lendings.buckets():
            if ring.owner(bucket[1]) != node_id:
                self.lendings.void(bucket, now_ns)
                self._hurry(bucket)

    def tick(self, now_ns: int) -> None:
        """End what is over."""
        self.promises.tick(now_ns)
        for bucket in self.lendings.tick(now_ns):
            self._hurry(bucket)
