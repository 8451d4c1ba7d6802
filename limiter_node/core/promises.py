"""Promises: what the owner of a key says will stay denied, so that whoever asked can say so itself for a while.

A key without a whole token left grants nothing to anybody, whatever it costs, until the first one is back: that much an
owner promises a peer along with a denial. It promises nothing where a smaller cost might still be granted, where tokens
are set aside for an atomic batch (they may be given back), or where its own limit is not what denies.

A promise is a duration, and the asker counts it from when it sent the question: it ends there before it does here. It
is short (`longest_ns`), and never longer than this node's right to decide (`fence`), so that it binds nobody else. And
it binds this node: what would make it untrue waits here until it is over. That is a refund, a reset, and a check under
another of the rule's plans, for that takes the bucket to where tokens come back faster. So once the caller of a refund
has its answer, every node grants, and no promise ever has to be called back.

What nobody waits for is a change of numbers: an asker lets go of what it was promised when it hears of one itself; if
that is later than here, it denies by the numbers of before for the rest of the promise, at most. The same goes for an
owner that dies (its peers forget its promises when their connections break), and for a bucket that is forgotten for
want of room.

Invariant: while a promise lasts, every check that it is about is denied here, with nothing left, and waits to the same
moments.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from limiter_node.core.model import DURATION_MAX_NS, Op

if TYPE_CHECKING:
    from limiter_node.core.holds import Holds
    from limiter_node.core.in_force import RuleInForce
    from limiter_node.core.model import Check, Verdict
    from limiter_node.core.outlet import Bucket
    from limiter_node.core.plan import Plan

LIFE_MAX_NS = 50_000_000
"""Longest promise: a client that hammers costs its owner some 25 questions a second and node asked; what has to wait
takes so long, and a tick."""

LIFE_SHARE = 0.5
"""And of a peer timeout: what has to wait and came from a peer is done while that peer still waits for the answer."""

PROMISES_MAX = 20_000
"""At a time, of 300 bytes each; who is promised nothing asks again."""

CONTESTED_NS = 10_000_000_000
"""For how long nothing is promised of a bucket after something had to wait for such a promise: a key that is asked for
under two segments, or whose tokens are given back again and again, makes its clients wait no more often than that."""

GIVES_BACK = (Op.FORGET, Op.REFUND)
"""What makes tokens available."""


def longest_ns(peer_timeout_ns: int) -> int:
    """The longest promise in a fleet of that peer timeout."""
    return min(LIFE_MAX_NS, round(peer_timeout_ns * LIFE_SHARE))


class Buckets(Protocol):
    """The engine, as far as promises need it."""

    rules: dict[str, RuleInForce]
    holds: Holds

    def plan_for(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """The plan that a check comes under."""


class Promises:
    """All that an owner has promised."""

    def __init__(self, engine: Buckets, life_ns: int) -> None:
        self.made: dict[Bucket, tuple[int, Plan]] = {}  # when each is over, and the plan that denies; latest made last
        self.movable: set[Bucket] = set()  # of these, the ones that a check might take to another plan
        self._engine = engine
        self._life_ns = life_ns  # the longest promise
        self._others_until_ns = 0  # until then whoever owned a bucket before may have promised something
        self._contested: dict[Bucket, int] = {}  # when something last had to wait

    def make(self, check: Check, verdict: Verdict, right_until_ns: int, now_ns: int) -> int:
        """For how many nanoseconds a denial that goes to a peer will stay true; 0: nothing is promised."""
        bucket = check.rule, check.key
        if (
            check.op is not Op.CHECK
            or verdict.remaining
            or verdict.reason is not None
            or verdict.reset_ns >= DURATION_MAX_NS  # told as that, however much longer it takes
            or bucket in self._engine.holds.tokens
            or bucket in self._contested
            or len(self.made) >= PROMISES_MAX
        ):
            return 0
        rule = self._engine.rules[check.rule]
        plan = self._engine.plan_for(rule, check.key, check.segment, now_ns)
        if not plan.has(check.key):  # another check of the frame has taken it to another plan
            return 0
        stands = plan.spend(check.key, 0, now_ns)
        if stands.allowed or stands.reset_ns != verdict.reset_ns:  # or has given something back
            return 0
        lasts_ns = min(self._life_ns, right_until_ns - now_ns, _steady_ns(stands, verdict))
        if lasts_ns <= 0 or not _is_steady(plan, check, verdict, now_ns + lasts_ns - 1):
            return 0
        until_ns = now_ns + lasts_ns
        before = self.made.pop(bucket, None)
        self.made[bucket] = until_ns if before is None else max(until_ns, before[0]), plan
        if rule.only is not plan:
            self.movable.add(bucket)
        return lasts_ns

    def note_others(self, now_ns: int) -> None:
        """Another node may have decided some of this node's buckets up to now."""
        self._others_until_ns = now_ns + self._life_ns

    def due_ns(self, check: Check, now_ns: int) -> int:
        """Until when a check has to wait; 0 if it need not."""
        until_ns, plan = self.made.get((check.rule, check.key), (0, None))
        if check.op in GIVES_BACK:
            until_ns = max(until_ns, self._others_until_ns)
        elif until_ns and (check.op is Op.INSPECT or self._is_under(plan, check, now_ns)):
            return 0
        return until_ns if until_ns > now_ns else 0

    def _is_under(self, plan: Plan | None, check: Check, now_ns: int) -> bool:
        rule = self._engine.rules.get(check.rule)
        return rule is None or self._engine.plan_for(rule, check.key, check.segment, now_ns) is plan

    def contest(self, bucket: Bucket, now_ns: int) -> None:
        """Something waits for the promise of a bucket, if there is one: nothing is promised of it again for a while."""
        if bucket in self.made:
            self._contested.pop(bucket, None)
            self._contested[bucket] = now_ns

    def tick(self, now_ns: int) -> None:
        """Forget what is over."""
        for bucket in list(takewhile(lambda bucket: self.made[bucket][0] <= now_ns, self.made)):
            del self.made[bucket]
            self.movable.discard(bucket)
        long_ago_ns = now_ns - CONTESTED_NS
        for bucket in list(takewhile(lambda bucket: self._contested[bucket] <= long_ago_ns, self._contested)):
            del self._contested[bucket]


def _steady_ns(stands: Verdict, verdict: Verdict) -> int:
    """Until the first token is back, or until one of several limits denies no more."""
    waits_ns = [limit.retry_ns for limit in verdict.limits or () if limit.retry_ns > 0]
    return min(stands.retry_ns, *waits_ns) if waits_ns else stands.retry_ns


def _is_steady(plan: Plan, check: Check, verdict: Verdict, later_ns: int) -> bool:
    """Whether other limits than the one that denies have no more left at that time than now."""
    if verdict.limits is None:
        return True
    later = plan.spend(check.key, 0, later_ns)
    return [limit.remaining for limit in later.limits or ()] == [limit.remaining for limit in verdict.limits]
