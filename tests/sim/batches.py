"""The atomic batches of a run: what each set aside and spent, and that none was spent in part.

Told by the judge what nodes do, it keeps one record per batch. While a node fails, a batch may be spent at some of its
keys and not yet at others, for as long as tokens may be set aside and the settlement is looked for; how long it was at
worst is in the report.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from limiter_node.core.model import Op, Verdict
from tests.sim.node import PEER_TIMEOUT_NS, TICK_NS
from tests.sim.world import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from limiter_node.core.atomic import Batch
    from limiter_node.core.model import Check
    from tests.sim.node import SimNode
    from tests.sim.world import World

TOLD_WITHIN_NS = 3 * (4 * (PEER_TIMEOUT_NS + TICK_NS) + NS_PER_MS)
"""Three stages, each of which has to be over as soon as a single check."""

PARTLY_MAX_NS = 2_000 * NS_PER_MS
"""Longest that a batch may be spent at some of its keys only: 8 peer timeouts until it is asked for, and two questions
of up to 4 each, once more if the first one fails."""


class Record:
    """What is known of one batch."""

    __slots__ = ("batch", "began_ns", "given_back", "is_told", "node", "reserved", "spent")

    def __init__(self, began_ns: int) -> None:
        self.batch: Batch | None = None  # once its node has returned it
        self.node: SimNode | None = None
        self.began_ns = began_ns
        self.is_told = False
        self.reserved: set[tuple[str, str]] = set()  # buckets that tokens were set aside of
        self.given_back: set[tuple[str, str]] = set()
        self.spent: dict[tuple[str, str], int] = {}  # when they were spent first, in true time

    @property
    def is_spent(self) -> bool:
        """Whether all of it is spent."""
        return self.spent.keys() == self.reserved


class Batches:
    """All of a run."""

    def __init__(
        self, world: World, broken: Callable[[SimNode, Check | None, str], Exception], *, is_strict: bool
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.partly_ns = 0  # longest that one was spent in part
        self._world = world
        self._broken = broken
        self._is_strict = is_strict  # whether no batch may be spent in part
        self._records: dict[str, Record] = {}

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = Record(self._world.now_ns)
        return record

    def begin(self, node: SimNode, batch: Batch) -> Record:
        """A node has taken a batch."""
        record = self._record(batch.name)
        record.batch, record.node = batch, node
        life, awake_ns = node.lives, node.awake_ns
        self._world.after(TOLD_WITHIN_NS, "judge", lambda: self._due(node, record, life, awake_ns))
        return record

    def end(self, node: SimNode, record: Record, batch: Batch) -> None:
        """The caller is told."""
        if record.is_told:
            raise self._broken(node, None, f"batch {batch.name}: told twice")
        record.is_told = True
        if len(batch.outcomes) != len(batch.checks):
            raise self._broken(node, None, f"batch {batch.name}: {len(batch.outcomes)} outcomes")
        self.outcomes["batches granted" if batch.is_allowed else "batches refused"] += 1
        self._world.note(f"{node.name} batch {batch.name} {'granted' if batch.is_allowed else 'refused'}")

    def lost(self, node: SimNode) -> None:
        """A node fails: count the batches that it runs, or owns keys of, and that are not over."""
        for record in self._records.values():
            is_over = record.is_told and (not record.batch or not record.batch.is_allowed or record.is_spent)
            if record.batch is not None and not is_over:
                owners = {node.router.ring.owner(check.key) for check in record.batch.checks}
                if record.node is node or node.name in owners:
                    self.outcomes["batches in the middle"] += 1

    def reserved(self, check: Check) -> None:
        """Tokens were set aside."""
        assert check.hold is not None
        self._record(check.hold[0]).reserved.add((check.rule, check.key))

    def ended(self, node: SimNode, check: Check) -> bool:
        """What was set aside is spent or given back; returns whether it is spent, and for the first time."""
        assert check.hold is not None
        record, bucket = self._record(check.hold[0]), (check.rule, check.key)
        is_spent = check.op is Op.CONFIRM
        if self._is_strict and (record.given_back if is_spent else record.spent):
            what = f"spent {sorted(record.spent)}, given back {sorted(record.given_back)}"
            raise self._broken(node, check, f"a batch is not all or nothing: {what}")
        if not is_spent:
            record.given_back.add(bucket)
        elif bucket not in record.spent:
            record.spent[bucket] = self._world.now_ns
            self.partly_ns = max(self.partly_ns, self._world.now_ns - min(record.spent.values()))
            return True
        return False

    def finish(self, nodes: Iterable[SimNode]) -> None:
        """The run is over: every batch but the latest is spent at all of its keys or at none, and holds nothing."""
        old = {
            name: record
            for name, record in self._records.items()
            if self._world.now_ns - record.began_ns > PARTLY_MAX_NS
        }
        for node in nodes:
            for bucket in node.engine.holds:
                if any(hold.cost and hold.batch in old for hold in node.engine.holds.copy(bucket, node.now_ns)):
                    raise self._broken(node, None, f"{bucket}: tokens are still set aside")
        if not self._is_strict:
            return
        for name, record in old.items():
            is_granted = record.is_told and record.batch is not None and record.batch.is_allowed
            if (record.spent or is_granted) and not record.is_spent:
                spent = sorted(record.spent)
                raise AssertionError(
                    f"batch {name} (granted: {is_granted}): spent {spent} of {sorted(record.reserved)}"
                )
        if self.partly_ns > PARTLY_MAX_NS:
            raise AssertionError(f"a batch was spent in part for {self.partly_ns / NS_PER_MS} ms")

    def _due(self, node: SimNode, record: Record, life: int, awake_ns: int) -> None:
        if record.is_told or not node.is_alive or node.lives != life:
            return
        left_ns = TOLD_WITHIN_NS - (node.awake_ns - awake_ns)
        if left_ns <= 0:
            raise self._broken(node, None, f"a batch was not told in {TOLD_WITHIN_NS / NS_PER_MS} ms")
        self._world.after(max(left_ns, TICK_NS), "judge", lambda: self._due(node, record, life, awake_ns))


def is_set_aside(check: Check, verdict: object) -> bool:
    """Whether a decision set tokens aside."""
    return (
        check.op is Op.RESERVE and isinstance(verdict, Verdict) and verdict.allowed and verdict.would_allow is not False
    )
