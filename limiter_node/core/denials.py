"""Denials: what the owners of keys have promised this node to deny for a while, which it says itself until then.

What is told is the owner's verdict, with the time that has passed since it came taken off; `promises` says why nothing
else in it can change. It is said of the very check that was denied: same rule, key, cost and segment. What this node
hears of a rule, an entry, a multiplier, the ring, or of a broken connection ends all of it.

Invariant: nothing is said here after the promise is over, counted from before the owner had made it.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from limiter_node.core.model import Op, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.forward import Forward
    from limiter_node.core.in_force import RuleInForce
    from limiter_node.core.model import Answer, Check, LimitVerdict
    from limiter_node.core.plan import Plan

DENIALS_MAX = 10_000
"""At a time, of 500 bytes each: living for 50 ms at most, those are of 200,000 keys denied a second."""

CLOCKS_SHARE = 16
"""A promise is cut by one part in so many: clocks drift apart by far less. As much is between the shares of `fence`."""

RENEW_SHARE = 4
"""In the last of so many parts of its life one check asks anew, and the others need not all wait for that answer: at
32 callers and 20 promises a second they were one denial in 60."""

ALWAYS_NS = 2**63 - 1


class Rules(Protocol):
    """The engine, as far as denials need it."""

    rules: dict[str, RuleInForce]

    def plan_for(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """The plan that a check comes under."""

    def priority_of(self, rule: RuleInForce, plan: Plan, check: Check) -> int:
        """The priority that a check has at the rule's backend."""


class Denial:
    """A verdict, from when to when it is told, and whose checks it is about."""

    __slots__ = ("gate", "priority", "renew_ns", "since_ns", "until_ns", "verdict")

    def __init__(self, verdict: Verdict, since_ns: int, until_ns: int) -> None:
        self.verdict = verdict
        self.since_ns = since_ns  # when it came
        self.until_ns = until_ns
        self.renew_ns = ALWAYS_NS
        self.gate: Gate | None = None  # of the rule's backend here, which counts what is asked for
        self.priority = 0


class Denials:
    """All of a node, by rule, key, cost and segment."""

    def __init__(self, engine: Rules) -> None:
        self.known: dict[tuple[str, str, int, str | None], Denial] = {}
        self.told = 0  # checks answered
        self.clears = 0  # times that something has changed
        self._engine = engine

    def find(self, check: Check, now_ns: int) -> Verdict | None:
        """The verdict on a check, if it is known."""
        denial = self.known.get((check.rule, check.key, check.cost, check.segment))
        if denial is None or now_ns >= denial.until_ns or check.op is not Op.CHECK:
            return None
        if now_ns >= denial.renew_ns:
            denial.renew_ns = ALWAYS_NS
            return None
        self.told += 1
        if denial.gate is not None:
            denial.gate.offer(denial.priority)
        return _after(denial.verdict, now_ns - denial.since_ns)

    def learn(self, forwards: Sequence[Forward], answer: Answer, ways_ns: int, now_ns: int) -> None:
        """Take what an owner has promised along with its answer to these; the last way of each ends `ways_ns` after it
        was asked."""
        for index, lasts_ns in answer.promises.items():
            if index >= min(len(forwards), len(answer.results)):
                continue
            forward, verdict = forwards[index], answer.results[index]
            until_ns = forward.expires_ns - ways_ns + lasts_ns - lasts_ns // CLOCKS_SHARE
            if isinstance(verdict, Verdict) and not forward.for_peer and now_ns < until_ns:
                denial = Denial(verdict, now_ns, until_ns)
                if verdict.retry_ns != lasts_ns:  # then it is denied for longer
                    denial.renew_ns = until_ns - (until_ns - now_ns) // RENEW_SHARE
                self._put(forward.check, denial, now_ns)

    def _put(self, check: Check, denial: Denial, now_ns: int) -> None:
        rule = self._engine.rules.get(check.rule)
        if rule is None or len(self.known) >= DENIALS_MAX:
            return
        if rule.gate is not None and check.cost:
            plan = self._engine.plan_for(rule, check.key, check.segment, now_ns)
            denial.gate, denial.priority = rule.gate, self._engine.priority_of(rule, plan, check)
        mark = check.rule, check.key, check.cost, check.segment
        self.known.pop(mark, None)  # so that those that came last stay behind
        self.known[mark] = denial

    def clear(self) -> None:
        """What they go by has changed."""
        self.clears += 1
        self.known.clear()

    def tick(self, now_ns: int) -> None:
        """Forget those that are over."""
        for mark in list(takewhile(lambda mark: self.known[mark].until_ns <= now_ns, self.known)):
            del self.known[mark]


def _after(verdict: Verdict, elapsed_ns: int) -> Verdict:
    """The same denial, so much later."""
    limits, retry_ns = verdict.limits, verdict.retry_ns
    return Verdict(
        False,
        verdict.limit,
        verdict.remaining,
        verdict.reset_ns - elapsed_ns,
        retry_ns - elapsed_ns if retry_ns > 0 else retry_ns,
        verdict.window_s,
        limits=[_limit_after(limit, elapsed_ns) for limit in limits] if limits else None,
    )


def _limit_after(limit: LimitVerdict, elapsed_ns: int) -> LimitVerdict:
    retry_ns = limit.retry_ns
    return replace(
        limit,
        reset_ns=max(0, limit.reset_ns - elapsed_ns),
        retry_ns=retry_ns - elapsed_ns if retry_ns > 0 else retry_ns,
    )
