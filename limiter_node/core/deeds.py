"""Deeds: what the owner of a key, or its stand-in, does when it is asked, and who must know of it before it is told.

Whether this node may is the keeper's business, and how a copy gets to another node `replication`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from limiter_node.core.explain import explain
from limiter_node.core.forward import one_way, parked_ns
from limiter_node.core.model import Check, Forgotten, Op, Outcome, Refunded, Settled, UnknownRule, Verdict
from limiter_node.core.promises import GIVES_BACK
from limiter_node.core.reservations import UNKNOWN_RULE

if TYPE_CHECKING:
    from limiter_node.core.commitments import Commitments
    from limiter_node.core.engine import Engine
    from limiter_node.core.fence import Fence
    from limiter_node.core.forward import Forward
    from limiter_node.core.links import Link
    from limiter_node.core.replication import Replication
    from limiter_node.core.ring import Ring

FORGOTTEN = Forgotten()
LEASES = (Op.LEND, Op.RETURN)


class Keeping(Protocol):
    """The keeper, as far as this needs it."""

    ring: Ring
    fence: Fence
    replication: Replication
    commitments: Commitments


class Deeds:
    """Those of a node; `links` are its ways to its peers."""

    def __init__(
        self, keeper: Keeping, node_id: str, engine: Engine, links: dict[str, Link], *, peer_timeout_ns: int
    ) -> None:
        self._keeper = keeper
        self._node_id = node_id
        self._engine = engine
        self._links = links
        self._copied_within_ns = parked_ns(peer_timeout_ns)

    def do(self, check: Check, now_ns: int) -> Outcome:
        """Do what a check asks."""
        keeper = self._keeper
        if check.op in LEASES:
            is_owner = keeper.ring.owner(check.key) == self._node_id
            return keeper.commitments.do(check, keeper.fence.right_until_ns if is_owner else 0, now_ns)
        outcome = _do(self._engine, self._node_id, check, now_ns)
        if check.op in GIVES_BACK:
            # Whoever else has the bucket must forget what it knows: of two copies the one that has spent more counts.
            keeper.replication.put(keeper.ring, (check.rule, check.key), now_ns, forgets=True)
        return outcome

    def when_copied(self, check: Check, outcome: Outcome, now_ns: int) -> Outcome | Forward:
        """The outcome, or what brings it once the replica has it, or as `Replication.without_copy` says."""
        if not self._needs_copy(check, outcome):
            return outcome
        keeper = self._keeper
        replica = keeper.ring.replica(check.key)
        if isinstance(outcome, Settled) and (replica is None or keeper.fence.is_gone(replica, now_ns)):
            self._engine.settlements.publish(check.key)
            return outcome
        if replica is None:
            return outcome
        link = self._links.get(replica)
        if link is None or not link.is_usable(now_ns):
            return keeper.replication.without_copy(check, outcome)
        forward = one_way(check, now_ns + self._copied_within_ns)
        keeper.replication.hold(replica, (check.rule, check.key), forward, outcome, now_ns)
        return forward

    def do_as_replica(self, check: Check, now_ns: int) -> Outcome:
        """Do what a check asks of an owner that is gone.

        With `durability: sync` the verdict has gone without a copy, and says so.
        """
        outcome, replication = self.do(check, now_ns), self._keeper.replication
        replication.put(self._keeper.ring, (check.rule, check.key), now_ns)
        if isinstance(outcome, Settled):
            self._engine.settlements.publish(check.key)
        return replication.without_copy(check, outcome) if self._needs_copy(check, outcome) else outcome

    def _needs_copy(self, check: Check, outcome: Outcome) -> bool:
        """Whether the replica is to have an outcome before it is told: all that an atomic batch goes by is so."""
        if isinstance(outcome, Verdict):
            spends = outcome.allowed and check.cost
            return bool(spends and (check.op is Op.RESERVE or check.rule in self._engine.sync_rules))
        return isinstance(outcome, Settled) and self._engine.settlements.is_draft(check.key)


def _do(engine: Engine, node_id: str, check: Check, now_ns: int) -> Outcome:
    """What is a matter of buckets alone, one for each `Op`."""
    outcome: Outcome = FORGOTTEN
    match check.op:
        case Op.CHECK:
            outcome = engine.check(check, now_ns)
        case Op.INSPECT:
            outcome = engine.inspect(check.rule, check.key, now_ns)
        case Op.EXPLAIN:
            outcome = explain(engine, node_id, check, now_ns)
        case Op.FORGET:
            engine.forget(check.rule, check.key, now_ns)
        case Op.REFUND:
            outcome = _refund(engine, check, now_ns)
        case Op.RESERVE:
            outcome = engine.reservations.reserve(check, now_ns)
        case Op.CONFIRM | Op.CANCEL:
            outcome = engine.reservations.end(check, now_ns)
        case Op.COMMIT | Op.RESOLVE:
            outcome = engine.reservations.settle(check)
    return outcome


def _refund(engine: Engine, check: Check, now_ns: int) -> Refunded | UnknownRule:
    rule = engine.rules.get(check.rule)
    if rule is None:
        return UNKNOWN_RULE
    tokens, stands = engine.refund(check.rule, check.key, check.cost, now_ns), engine.peek(rule, check, now_ns)
    return Refunded(tokens, stands.limit, stands.remaining, stands.reset_ns)
