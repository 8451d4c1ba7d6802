"""Settlements: for each atomic batch whether it is spent, said once and never changed.

A batch's settlement lives where a bucket of its name would, and moves and is handed over as buckets are. Whoever asks
first settles it: the node that runs the batch by committing it, anybody else by wanting to know.

Nobody is told before the replica has a copy, or is known to be gone; until then the settlement is a draft. A node that
loses its right to decide drops its drafts: whoever decides in its place has the copy, or may settle otherwise.

Invariant: for as long as a settlement is known, nobody is told that the same batch is the other thing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from limiter_node.core.model import BATCHES, Copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.outlet import Bucket

KNOWN_NS = 20_000_000_000
"""Least time for which it is known; twice as long at most. Whoever still holds something for the batch has asked by
then. 6 MB at 1,000 batches a second."""

PIECE = 100


class Settlements:
    """Those that this node knows of."""

    def __init__(self) -> None:
        self.changed: set[Bucket] = set()  # since they were last sent to whoever else is to know
        self._young: dict[str, bool] = {}  # whether a batch is spent
        self._old: dict[str, bool] = {}
        self._drafts: set[str] = set()
        self._turns_ns = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def settle(self, batch: str, *, is_spent: bool) -> bool:
        """Say whether a batch is spent: as was said before, else `is_spent`."""
        known = self._known(batch)
        if known is None:
            self._young[batch] = known = is_spent
            self._drafts.add(batch)
            self.changed.add((BATCHES, batch))
        return known

    def is_draft(self, batch: str) -> bool:
        """Whether nobody may be told yet."""
        return batch in self._drafts

    def publish(self, batch: str) -> None:
        """It has been copied, or need not be."""
        self._drafts.discard(batch)

    def drop_drafts(self) -> None:
        """Forget what nobody was told."""
        for batch in list(self._drafts):
            self.drop(batch)

    def _known(self, batch: str) -> bool | None:
        known = self._young.get(batch)
        return self._old.get(batch) if known is None else known

    def copy(self, batch: str) -> Copy | None:
        """For another node."""
        known = self._known(batch)
        return None if known is None else Copy(BATCHES, batch, "", int(known))

    def learn(self, copy: Copy) -> None:
        """Take another node's, if this one has none or but a draft."""
        if self._known(copy.key) is None or self.is_draft(copy.key):
            self.drop(copy.key)
            self._young[copy.key] = copy.spent > 0

    def drop(self, batch: str) -> None:
        """Forget one."""
        for known in (self._young, self._old):
            known.pop(batch, None)
        self._drafts.discard(batch)

    def pieces(self) -> Iterator[list[Bucket]]:
        """All of them as buckets, a few at a time."""
        batches = iter([*self._old, *self._young])
        while piece := [(BATCHES, batch) for batch in islice(batches, PIECE)]:
            yield piece

    def tick(self, now_ns: int) -> None:
        """Forget what has been known for long."""
        if now_ns >= self._turns_ns:
            self._turns_ns = now_ns + KNOWN_NS
            self._old, self._young = self._young, {}
            self._drafts &= self._old.keys()
