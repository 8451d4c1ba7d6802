"""Atomic batches: several checks taken together or not at all, whoever owns their keys.

The node that is asked runs the batch, in two round trips:

1. Every owner decides its checks and, where it allows one, sets the tokens aside (`holds`); the replica has a copy of
   that before the owner answers.
2. If all are allowed, and the backends' gates on this node let them pass, the batch is committed: its settlement
   (`settlements`), which lives on the ring like a bucket of the batch's name, says from then on that it is spent. That
   one step, copied to a replica before it counts, is what makes all of it spent; the caller is told, and the owners are
   told to spend what they have set aside. The name is chosen so that this node owns it, where that is quickly found.
3. If any is not allowed, all owners are told to give back, and the caller hears once they have.

Whoever still has tokens set aside when their time is over asks for the settlement. Not settled means that it never will
be committed: to ask settles it. So a crash of any one node, in the middle of anything, leaves the batch spent at all of
its keys or at none, after that time at the latest; and no clock but the holder's own is needed for it. This node, too,
may not know whether it has committed: its caller is then told no, which is safe, and the holders find out.

A peek in a batch has to be allowed as well. What nobody could decide as owner or replica counts as allowed only under
`on_unreachable: allow`: this node's own share of a plan cannot be set aside.

Invariant: no tokens are spent for a batch that is not settled as spent, none given back for one that is, and none of
those set aside for it are ever granted to another check before it is settled.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from limiter_node.core.forward import Forward
from limiter_node.core.model import BATCHES, COST_MAX, Check, Op, Outcome, Settled, Unreachable, Verdict
from limiter_node.core.ring import position

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.ring import Ring

    Stage = Callable[["Batch", int], None]

NAMES_TRIED = 16
"""To find a batch's name that this node owns: 40 us where each of them is another's, for a round trip saved."""

RETRY_NS = 1_000_000_000
"""When to try again where an owner, or the settlement, could not be reached."""


class Ways(Protocol):
    """The router, as far as batches need it."""

    node_id: str
    boot: int
    ring: Ring
    engine: Engine
    links: dict[str, Link]

    def check(self, check: Check, now_ns: int) -> Outcome | Forward:
        """Have a check decided."""


class Batch:
    """One batch. Once it `is_done`, `is_allowed` and the outcomes, in the order of its checks, are final.

    Who gets one that is not done sets `reply` at once; it is called when it is.
    """

    __slots__ = (
        "allows_unknown",
        "answers",
        "asked",
        "checks",
        "first_of",
        "is_allowed",
        "is_done",
        "missing",
        "name",
        "outcomes",
        "reply",
    )

    def __init__(self, name: str, checks: Sequence[Check], *, allows_unknown: bool) -> None:
        self.name = name
        self.checks = checks
        self.allows_unknown = allows_unknown  # whether a rule that does not exist allows
        self.outcomes: list[Outcome] = []
        self.is_allowed = False
        self.is_done = False
        self.reply: Callable[[Batch], None] = lambda _: None
        self.answers: dict[int, Outcome] = {}  # to what was asked last, by the place of the first check it is for
        self.missing = 0  # answers still to come
        # Checks of the same tokens are one, for their costs together, in the place of the first of them.
        firsts: dict[tuple[str, str, str | None, bool], int] = {}
        self.first_of: list[int] = []  # for each check
        self.asked: dict[int, Check] = {}
        for place, check in enumerate(checks):
            first = firsts.setdefault((check.rule, check.key, check.segment, check.cost > 0), place)
            cost = check.cost + (self.asked[first].cost if first < place else 0)
            self.asked[first] = replace(check, cost=min(cost, COST_MAX))
            self.first_of.append(first)

    def allows(self, outcome: Outcome) -> bool:
        """Whether a check's outcome lets the batch go on."""
        return outcome.allowed if isinstance(outcome, Verdict) else self.allows_unknown

    def holders(self, op: Op) -> dict[int, Check]:
        """What is asked about tokens that are set aside, wherever they may be."""
        hold = self.name, 0
        return {place: replace(check, op=op, cost=0, hold=hold) for place, check in self.asked.items() if check.cost}

    def spread(self) -> list[Outcome]:
        """The answers to all that was asked, for each of the checks."""
        return [self.answers[first] for first in self.first_of]


class Batches:
    """The batches that this node runs, and the holds whose time is over."""

    def __init__(self, router: Ways) -> None:
        self.granted = 0
        self.refused = 0
        self.resolved = 0  # questions about batches that this node holds tokens for
        self._router = router
        self._count = 0
        self._late: list[Callable[[int], None]] = []  # what answers that have come lead to

    def check(
        self, checks: Sequence[Check], now_ns: int, *, is_doomed: bool = False, allows_unknown: bool = False
    ) -> Batch:
        """Begin a batch, and end it if no other node is needed. A doomed one is not to be allowed: it only peeks."""
        batch = Batch(self._new_name(now_ns), checks, allows_unknown=allows_unknown)
        for check in checks:
            self._router.engine.reservations.offer(check, now_ns)
        if is_doomed:
            peeks = {place: replace(check, cost=0) for place, check in batch.asked.items()}
            self._ask(batch, peeks, self._end_doomed, now_ns)
        else:
            questions = {
                place: replace(check, op=Op.RESERVE, hold=(batch.name, place)) if check.cost else check
                for place, check in batch.asked.items()
            }
            self._ask(batch, questions, self._weigh, now_ns)
        return batch

    def go_on(self, now_ns: int) -> None:
        """Act on the answers that have come, and on holds whose time is over."""
        while self._late:
            late, self._late = self._late, []
            for act in late:
                act(now_ns)
        for bucket, name in self._router.engine.holds.take_due(now_ns):
            self.resolved += 1
            self._then(Check(BATCHES, name, 0, op=Op.RESOLVE), partial(self._end_hold, bucket, name), now_ns)

    # The stages of a batch.

    def _weigh(self, batch: Batch, now_ns: int) -> None:
        """All owners have answered."""
        batch.outcomes = batch.spread()
        if not all(map(batch.allows, batch.outcomes)) or not self._admit(batch, now_ns):
            self._give_back(batch, now_ns)
        elif any(check.cost for check in batch.checks):
            self._ask(batch, {0: Check(BATCHES, batch.name, 0, op=Op.COMMIT)}, self._settle, now_ns)
        else:
            self._grant(batch)

    def _admit(self, batch: Batch, now_ns: int) -> bool:
        for place, (check, outcome) in enumerate(zip(batch.checks, batch.outcomes, strict=True)):
            if isinstance(outcome, Verdict):
                batch.outcomes[place] = verdict = self._router.engine.reservations.admit(check, outcome, now_ns)
                if not verdict.allowed:
                    return False
        return True

    def _settle(self, batch: Batch, now_ns: int) -> None:
        if batch.answers[0] == Settled(True):
            for check in batch.holders(Op.CONFIRM).values():
                self._then(check, _nothing, now_ns)
            self._grant(batch)
        else:  # it may be committed for all that this node knows: whoever holds tokens for it will ask
            batch.outcomes = [_not_settled(outcome) for outcome in batch.outcomes]
            self._end(batch)

    def _grant(self, batch: Batch) -> None:
        batch.is_allowed = True
        self._end(batch)

    def _give_back(self, batch: Batch, now_ns: int) -> None:
        """Have nothing set aside any more, and then tell the caller how the buckets stand."""
        reserved, holders = batch.answers, batch.holders(Op.CANCEL).items()
        questions = {place: check for place, check in holders if batch.allows(reserved[place])}
        self._ask(batch, questions, self._end_refused, now_ns)

    def _end_refused(self, batch: Batch, now_ns: int) -> None:
        for place, first in enumerate(batch.first_of):
            if first in batch.answers:
                batch.outcomes[place] = _held_back(batch.outcomes[place], batch.answers[first])
        self._end(batch)

    def _end_doomed(self, batch: Batch, now_ns: int) -> None:
        batch.outcomes = [
            _held_back(outcome, outcome) if check.cost and batch.allows(outcome) else outcome
            for check, outcome in zip(batch.checks, batch.spread(), strict=True)
        ]
        self._end(batch)

    def _end(self, batch: Batch) -> None:
        self.granted += batch.is_allowed
        self.refused += not batch.is_allowed
        batch.is_done = True
        batch.reply(batch)

    # Holds whose time is over.

    def _end_hold(self, bucket: Bucket, name: str, settled: Outcome, now_ns: int) -> None:
        """The batch is settled, or (no `Settled`) is to be asked for again: end the hold where it is decided."""
        if isinstance(settled, Settled):
            op = Op.CONFIRM if settled.is_spent else Op.CANCEL
            check = Check(*bucket, 0, op=op, hold=(name, 0))
            self._then(check, partial(self._forget_hold, bucket, name), now_ns)

    def _forget_hold(self, bucket: Bucket, name: str, outcome: Outcome, now_ns: int) -> None:
        """It has ended there; here it may be a copy of it."""
        if not isinstance(outcome, Unreachable):
            self._router.engine.holds.end(bucket, name, now_ns)

    # How.

    def _ask(self, batch: Batch, questions: dict[int, Check], stage: Stage, now_ns: int) -> None:
        """Ask all of these, and go on with the stage once all are answered."""
        batch.answers, batch.missing = {}, len(questions)
        for place, check in questions.items():
            self._then(check, partial(self._take, batch, place, stage), now_ns)
        if not questions:
            stage(batch, now_ns)

    def _take(self, batch: Batch, place: int, stage: Stage, outcome: Outcome, now_ns: int) -> None:
        batch.answers[place] = outcome
        batch.missing -= 1
        if not batch.missing:
            stage(batch, now_ns)

    def _then(self, check: Check, act: Callable[[Outcome, int], None], now_ns: int) -> None:
        outcome = self._router.check(check, now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = lambda late: self._late.append(partial(act, late))
        else:
            act(outcome, now_ns)

    def _new_name(self, now_ns: int) -> str:
        """One that this node owns, and whose replica can be reached, if such a name is soon found."""
        router, name = self._router, ""
        for _ in range(NAMES_TRIED):
            self._count += 1
            name = f"{position(f'{router.node_id} {router.boot} {self._count}'):016x}"
            owner, replica = router.ring.holders(name)
            link = None if replica is None else router.links.get(replica)
            if owner == router.node_id and (link is None or link.is_usable(now_ns)):
                break
        return name


def _nothing(outcome: Outcome, now_ns: int) -> None:
    """Whoever has not got it will ask."""


def _held_back(outcome: Outcome, bucket: Outcome) -> Outcome:
    """The outcome of a check that its owner allowed, in a batch that is not: the bucket as it stands now, if known."""
    if not isinstance(outcome, Verdict):
        return outcome
    stands = bucket if isinstance(bucket, Verdict) else outcome
    return replace(
        outcome,
        allowed=False,
        reason="batch" if outcome.allowed else outcome.reason,
        remaining=stands.remaining,
        reset_ns=stands.reset_ns,
        limits=stands.limits,
        wait_ns=None,
    )


def _not_settled(outcome: Outcome) -> Outcome:
    """The outcome of a check of a batch that could not be committed."""
    if not isinstance(outcome, Verdict):
        return outcome
    return replace(outcome, allowed=False, reason="unreachable", degraded=True, retry_ns=RETRY_NS, wait_ns=None)
