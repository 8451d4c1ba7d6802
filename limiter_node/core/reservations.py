"""Reservations: what a node does for atomic batches (`atomic`) as the owner of a key, or of a batch.

It sets tokens aside as a check would spend them, spends what was set aside or gives it back, and settles batches.
Whether this node may decide, and who is to be told, is the keeper's business.

Invariant: for each bucket, what is spent and what is set aside fit its capacity together, as long as that is not cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from limiter_node.core.model import Check, Op, Settled, UnknownRule, Verdict

if TYPE_CHECKING:
    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.holds import Holds
    from limiter_node.core.in_force import RuleInForce
    from limiter_node.core.plan import Plan
    from limiter_node.core.settlements import Settlements

UNKNOWN_RULE = UnknownRule()


class Buckets(Protocol):
    """The engine, as far as reservations need it."""

    rules: dict[str, RuleInForce]
    holds: Holds
    settlements: Settlements

    def plan_for(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """The plan that a check comes under."""

    def priority_of(self, rule: RuleInForce, plan: Plan, check: Check) -> int:
        """The priority that a check has at the rule's backend."""

    def spend(self, plan: Plan, check: Check, now_ns: int) -> Verdict:
        """Spend as if what is set aside were spent."""

    def peek(self, rule: RuleInForce, check: Check, now_ns: int) -> Verdict:
        """How a check's bucket stands."""


class Reservations:
    """Acts on the buckets of one node."""

    def __init__(self, engine: Buckets) -> None:
        self._engine = engine

    def reserve(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        """Decide a check: what it may spend is set aside. Asked again, it says the same."""
        engine, holds = self._engine, self._engine.holds
        rule = engine.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE
        assert check.hold is not None
        bucket = check.rule, check.key
        if holds.is_known(bucket, check.hold):
            verdict = replace(engine.peek(rule, check, now_ns), allowed=True, retry_ns=0)
        elif holds.has_ended(bucket, check.hold[0]) or not holds.has_room(bucket):
            stands = engine.peek(rule, check, now_ns)
            verdict = replace(stands, allowed=False, retry_ns=holds.reserved_ns, reason="batch")
        else:
            plan = engine.plan_for(rule, check.key, check.segment, now_ns)
            verdict = engine.spend(plan, check, now_ns)
            if verdict.allowed:
                plan.refund(check.key, check.cost, now_ns)
                holds.add(bucket, check, now_ns)
        return shadowed(verdict) if rule.rule.shadow else verdict

    def end(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        """Spend (`Op.CONFIRM`) what a batch has set aside, if anything still is, or give it back; returns a peek."""
        engine = self._engine
        rule = engine.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE
        assert check.hold is not None
        bucket, batch = (check.rule, check.key), check.hold[0]
        if check.op is Op.CONFIRM:
            for held in engine.holds.of(bucket, batch):
                # The numbers may have been cut, or the key have spent more under another segment's: it was granted.
                engine.plan_for(rule, check.key, held.segment, now_ns).charge(check.key, held.cost, now_ns)
        engine.holds.end(bucket, batch, now_ns)
        return engine.peek(rule, check, now_ns)

    def settle(self, check: Check) -> Settled:
        """Say whether the batch `check.key` is spent, once and for all."""
        return Settled(self._engine.settlements.settle(check.key, is_spent=check.op is Op.COMMIT))

    # At the node that runs the batch: the gates are asked once, when every owner has said yes.

    def offer(self, check: Check, now_ns: int) -> None:
        """Count a check of a batch at its backend's gate here."""
        gate, priority = self._gate(check, now_ns)
        if gate is not None:
            gate.offer(priority)

    def admit(self, check: Check, verdict: Verdict, now_ns: int) -> Verdict:
        """Bring what its owner has allowed before its backend's gate here."""
        gate, priority = self._gate(check, now_ns)
        retry_ns = 0 if gate is None or verdict.would_allow is False else gate.admit(priority, now_ns)
        if not retry_ns:
            return verdict
        if verdict.would_allow:
            return replace(verdict, would_allow=False)
        return replace(verdict, allowed=False, retry_ns=retry_ns, reason="backend_overload")

    def _gate(self, check: Check, now_ns: int) -> tuple[Gate | None, int]:
        engine = self._engine
        rule = engine.rules.get(check.rule)
        if rule is None or rule.gate is None or not check.cost:
            return None, 0
        plan = engine.plan_for(rule, check.key, check.segment, now_ns)
        return rule.gate, engine.priority_of(rule, plan, check)


def shadowed(verdict: Verdict) -> Verdict:
    """Allow, and tell what would have been."""
    return replace(verdict, allowed=True, retry_ns=0, would_allow=verdict.allowed, reason=None)
