"""Lendings: tokens of a hot key that its owner has lent to nodes that ask for it often, which then grant by themselves.

The owner sets a slice aside for LEASE_MAX_NS at most, counted by the borrower from when it asked; `leases` is the
borrower's side. When a lease ends the borrower tells how many tokens it has granted: these are spent then, the others
are free again. Of a lease that is not told of in time, all is spent: a lost lease is lost tokens.

The bound of burst + rate x t in any window holds strictly. Let C be the capacity, `free` what the owner could still
grant, and `out` what borrowers could still grant. Then X = free + out is at most C at all times, for the owner decides
as if all that it has lent were spent on top of what is: free <= C - lent, and out <= lent, since a lease counts here as
lent until its end is known. X falls by each token that anybody grants, at that moment; it rises by nothing but refill,
at the rate at most: lending and giving back move tokens between its two parts. So what is granted in any window of t
seconds is at most X at its beginning, plus rate x t. Lent tokens do not refill while they are out, and those granted
begin to refill when they are told of: that costs, and never gives.

What is lent is spent for everybody else: for the replica, or a new owner, and with what could be refilled while the
lease lives, so that the bound holds there, too. When a key moves, slices that were out are lost so. A lease does not
outlast the owner's right to decide, as `promises`.

Slices follow what the borrower asks for, and are at most one in SLICES of what is free: they shrink with the bucket,
and at few tokens none are lent. A check that would be denied while tokens are lent out waits until they are called
back: a round trip, or PARKED_SHARE of a peer timeout if the borrower does not answer. Refunds, resets and whoever looks
wait, too.

Lent are tokens of a single token bucket whose rule names no backend (its gate is asked where the key lives), is not in
shadow mode, and of durability async (a grant under a lease has no copy anywhere).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from limiter_node.core.algorithms.token_bucket import UNIT
from limiter_node.core.model import Check, Lent, Op, Outcome, UnknownRule, Verdict
from limiter_node.core.reservations import UNKNOWN_RULE
from limiter_node.core.token_plan import LEASE_MAX_NS, TokenPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.holds import Holds
    from limiter_node.core.in_force import RuleInForce
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.plan import Plan

SLICES = 4
"""A slice is at most one in so many of the free tokens: three borrowers leave four in ten to everybody else."""

SLICE_MIN = 8
"""Smaller slices cost more than the questions that they save."""

LIFE_MIN_NS = 5_000_000
"""Shorter leases are not worth the asking."""

LENDINGS_MAX = 1_000
"""Buckets at a time; all are looked at in each tick."""

LOOKS = (Op.REFUND, Op.FORGET, Op.INSPECT, Op.EXPLAIN)
"""What needs to know how many of the lent tokens are spent."""


class Buckets(Protocol):
    """The engine, as far as lendings need it."""

    rules: dict[str, RuleInForce]
    holds: Holds

    def plan_for(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """The plan that a check comes under."""

    def peek(self, rule: RuleInForce, check: Check, now_ns: int) -> Verdict:
        """How a check's bucket stands."""


class Lending(NamedTuple):
    """A lease as the owner has it."""

    borrower: str
    tokens: int
    until_ns: int
    segment: str | None


class Lendings:
    """All of a node."""

    def __init__(self, engine: Buckets, grace_ns: int, boot: int) -> None:
        self.tokens = 0  # lent so far
        self.lost = 0  # of these, those of leases that were not told of in time
        self._engine = engine
        self._grace_ns = grace_ns  # how long after its end the word of a lease is waited for
        self._boot = boot  # names this life of the node: what is told of another's leases ends none of this one's
        self._count = 0
        self._out: dict[Bucket, dict[str, Lending]] = {}

    def lend(self, check: Check, right_until_ns: int, now_ns: int) -> Lent | UnknownRule:
        """Set up to `check.cost` tokens aside for the node that `check.hold` names."""
        rule = self._engine.rules.get(check.rule)
        if rule is None or check.hold is None:
            return UNKNOWN_RULE
        plan = self._engine.plan_for(rule, check.key, check.segment, now_ns)
        stands = self._engine.peek(rule, check, now_ns)
        lasts_ns = min(LEASE_MAX_NS, right_until_ns - now_ns)
        tokens = min(check.cost, stands.remaining // SLICES)
        is_lent = rule.may_lend and isinstance(plan, TokenPlan) and stands.allowed and len(self._out) < LENDINGS_MAX
        if not is_lent or tokens < SLICE_MIN or lasts_ns < LIFE_MIN_NS:
            return Lent("", 0, 0, stands.limit, stands.window_s, stands.remaining, stands.reset_ns, 0)
        assert isinstance(plan, TokenPlan)
        self._count += 1
        self.tokens += tokens
        name, bucket = f"{self._boot:x}.{self._count}", (check.rule, check.key)
        lending = Lending(check.hold[0], tokens, now_ns + lasts_ns, check.segment)
        self._out.setdefault(bucket, {})[name] = lending
        self._engine.holds.lend(bucket, tokens)
        rule.changed.add(check.key)
        clock = plan.table.clock
        token_ns = -(-UNIT * clock.den // clock.num)
        left = stands.remaining - tokens
        return Lent(name, tokens, lasts_ns, stands.limit, stands.window_s, left, stands.reset_ns, token_ns)

    def borrowers(self, bucket: Bucket) -> Iterator[tuple[str, Check]]:
        """Whom to ask to give back, and what."""
        rule, key = bucket
        for name, lending in self._out.get(bucket, {}).items():
            yield lending.borrower, Check(rule, key, 0, lending.segment, Op.RECALL, (name, 0))

    def hinders(self, check: Check, outcome: Outcome | None = None) -> bool:
        """Whether lent tokens must come back before a check is decided, or before its outcome is told."""
        if (check.rule, check.key) not in self._out:
            return False
        if outcome is None:
            return check.op in LOOKS
        return isinstance(outcome, Verdict) and not outcome.allowed and outcome.reason is None

    def end(self, bucket: Bucket, name: str, granted: int, now_ns: int) -> bool:
        """A lease has ended with so many tokens granted; returns whether none of the bucket is left."""
        there = self._out.get(bucket, {})
        lending = there.pop(name, None)
        if lending is not None:
            self._engine.holds.lend(bucket, -lending.tokens)
            self._spend(bucket, lending, min(granted, lending.tokens) * UNIT, now_ns)
            if not there:
                del self._out[bucket]
        return not there

    def _spend(self, bucket: Bucket, lending: Lending, units: int, now_ns: int) -> None:
        """Have so many units more spent, whatever the bucket holds now."""
        key, rule = bucket[1], self._engine.rules.get(bucket[0])
        if rule is None or units <= 0:
            return
        plan = rule.holding(key) or self._engine.plan_for(rule, key, lending.segment, now_ns)
        if isinstance(plan, TokenPlan):  # else the rule has another algorithm by now, and that starts full
            plan.charge_units(key, units, now_ns)
            rule.changed.add(key)

    def void(self, bucket: Bucket, now_ns: int) -> None:
        """The bucket is another node's: all that is lent is spent, and for as long as it may be granted."""
        rule = self._engine.rules.get(bucket[0])
        for lending in self._out.pop(bucket, {}).values():
            self._engine.holds.lend(bucket, -lending.tokens)
            plan = rule and self._engine.plan_for(rule, bucket[1], lending.segment, now_ns)
            if isinstance(plan, TokenPlan):
                self._spend(bucket, lending, plan.lent(lending.tokens), now_ns)

    def buckets(self) -> list[Bucket]:
        """Those of which something is lent."""
        return list(self._out)

    def tick(self, now_ns: int) -> list[Bucket]:
        """End the leases that were not told of in time; returns the buckets of which nothing more is lent."""
        done = []
        for bucket, there in list(self._out.items()):
            for name, lending in list(there.items()):
                if lending.until_ns + self._grace_ns <= now_ns:
                    self.lost += lending.tokens
                    if self.end(bucket, name, lending.tokens, now_ns):
                        done.append(bucket)
        return done
