"""A rule in force: its plans, one per segment, and those of the keys that have numbers of their own.

It knows which plan holds a key's bucket and keeps what keys have spent when the rule, an entry or a multiplier changes;
which plan a check comes under is the engine's business.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from limiter_node.core.joint_plan import JointPlan
from limiter_node.core.limits import under
from limiter_node.core.plan import move, share_of, tables
from limiter_node.core.rules import DEFAULT_SEGMENT
from limiter_node.core.table import SHARDS
from limiter_node.core.token_plan import TokenPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.algorithms.face import Wall
    from limiter_node.core.entries import Entries
    from limiter_node.core.limits import Limits
    from limiter_node.core.plan import Plan
    from limiter_node.core.rules import KeyEntry, Rule
    from limiter_node.core.table import Census

OWN = ""
"""Name of a retired plan of keys' own limits: it does not come back, its keys do."""


class RuleInForce:
    """A rule with its plans.

    There is one per segment, one per pattern with numbers of its own, and one for all keys whose own numbers are the
    same: with one per key, 100,000 of them took 100 MB and a new multiplier 0.2 s.

    Keys move as follows. Between segments and patterns, and to numbers of its own, a key moves with its next check:
    `places` is where it may be. From numbers of its own it moves at once, so that `own` holds no other keys.
    """

    __deletable__ = ("default", "only", "short")  # see `release`; mypyc wants to be told
    __slots__ = (
        "_census",
        "_entries",
        "_wall",
        "changed",
        "default",
        "gate",
        "may_lend",
        "multiplier_ppm",
        "only",
        "own",
        "patterns",
        "plans",
        "priority",
        "retired",
        "rule",
        "short",
    )

    def __init__(
        self, rule: Rule, multiplier_ppm: int, now_ns: int, *, census: Census, wall: Wall, entries: Entries
    ) -> None:
        self.gate: Gate | None = None  # of the backend that the rule names
        self._census = census
        self._wall = wall
        self._entries = entries
        self.plans: dict[str, Plan] = {}
        self.patterns: dict[str, Plan] = {}
        self.own: dict[Limits, Plan] = {}  # by the limits as written: the rule's decide what they leave open
        # Of segments and patterns that have no limits any more, or others, until their last bucket is full: their keys
        # may come back under another plan, they themselves under their name (no segment has that of a pattern).
        self.retired: list[tuple[str, Plan]] = []
        self.only: Plan | None = None
        self.changed: set[str] = set()  # keys granted something since `Engine.take_changed`
        self.set_rule(rule, multiplier_ppm, now_ns)

    def set_rule(self, rule: Rule, multiplier_ppm: int, now_ns: int) -> None:
        """Put another version of the rule, or another multiplier, in force."""
        self.rule = rule
        self.may_lend = rule.lease is not False and not rule.why_not_lent
        self.multiplier_ppm = multiplier_ppm
        for segment in self.plans.keys() - rule.limits.keys():
            self.retired.append((segment, self.plans.pop(segment)))
        for segment, limits in rule.limits.items():
            self._set_plan(self.plans, segment, limits, now_ns)
        self.default = self.plans[DEFAULT_SEGMENT]
        self.short = self.default if isinstance(self.default, TokenPlan) else None  # the same, if it has the short way
        self.priority = rule.priorities[DEFAULT_SEGMENT]
        for name in self.patterns:
            self._set_plan(self.patterns, name, self._in_full(self._entries.named[name].limits[rule.name]), now_ns)
        for written, plan in list(self.own.items()):
            limits = self._in_full(written)
            if plan.fits(limits):
                plan.set_numbers(limits, multiplier_ppm, now_ns)
            else:
                self.retired.append((OWN, self.own.pop(written)))
        for _, plan in self.retired:
            self._fade(plan, now_ns)
        self._relate()

    def plan_of(self, entry: KeyEntry, written: Limits, now_ns: int) -> Plan:
        """The plan of the limits that an entry gives for this rule, made when it is first asked for."""
        if entry.pattern is None:
            plan = self.own.get(written)
            if plan is None:
                # A single dict: mostly few keys have the same numbers, and such plans may come by the thousand.
                plan = self.own[written] = self._new_plan(DEFAULT_SEGMENT, self._in_full(written), now_ns, shards=1)
            return plan
        plan = self.patterns.get(entry.pattern)
        if plan is None:
            plan = self._set_plan(self.patterns, entry.pattern, self._in_full(written), now_ns)
            self._relate()
        return plan

    def change_pattern(self, name: str, written: Limits | None, now_ns: int) -> None:
        """Give a pattern that had limits for this rule others, or (None) no more."""
        plan = self.patterns.get(name)
        if plan is None:
            return
        if written is not None:
            self._set_plan(self.patterns, name, self._in_full(written), now_ns)
        else:
            self.retired.append((name, self.patterns.pop(name)))
            self._fade(plan, now_ns)
        self._relate()

    def leave_own(self, key: str, written: Limits, plan: Plan, now_ns: int, *, is_own: bool) -> None:
        """Move a key from the plan of its own limits to another; with its last key, whoever that is, that plan goes.

        What this node granted alone counts on where the other plan `is_own`, too.
        """
        own = self.own[written]
        if own.has(key) and move(key, own, plan, now_ns):
            self.changed.add(key)
        if own.share is not None and is_own:
            move(key, own.share, share_of(plan, own.share.parts, now_ns), now_ns)
        held = tables(own)
        for table in held:
            table.forget(key)
        if not any(map(len, held)):
            del self.own[written]

    def places(self, key: str) -> Iterator[Plan]:
        """The plans that may hold a key's bucket; at most one does."""
        yield from self.plans.values()
        for _, plan in self.retired:
            yield plan
        if self.own or self.patterns:
            for entry in self._entries.matching(key):
                written = entry.limits.get(self.rule.name)
                if written is not None:
                    own = self.own.get(written) if entry.pattern is None else self.patterns.get(entry.pattern)
                    if own is not None:
                        yield own

    def holding(self, key: str) -> Plan | None:
        """The plan whose table has the key's bucket."""
        sole = self.sole
        if sole is not None:
            return sole if sole.has(key) else None
        for plan in self.places(key):
            if plan.has(key):
                return plan
        return None

    @property
    def sole(self) -> Plan | None:
        """The plan that has the bucket of every key, where it is the only one."""
        return None if self.own else self.only

    def drop_empty(self) -> None:
        """Let go of retired plans whose last bucket is full."""
        kept = [(name, plan) for name, plan in self.retired if any(map(len, tables(plan)))]
        if len(kept) < len(self.retired):
            self.retired = kept
            self._relate()

    def all_plans(self) -> Iterator[Plan]:
        """Every plan that may hold buckets."""
        retired = (plan for _, plan in self.retired)
        return chain(self.plans.values(), retired, self.patterns.values(), self.own.values())

    def release(self) -> list[dict[str, Any]]:
        """Forget everything; returns the shards let go."""
        dropped = [shard for plan in self.all_plans() for table in tables(plan) for shard in table.release()]
        # Plans refer to this, and are freed at once only when it does not refer to them.
        del self.default, self.only, self.short
        for held in (self.plans, self.patterns, self.own, self.retired, self.changed):
            held.clear()
        return dropped

    def _set_plan(self, plans: dict[str, Plan], name: str, limits: Limits, now_ns: int) -> Plan:
        """Have the plan of a segment or pattern go by these limits: the present one, one that was, or a new one."""
        before = plans.get(name)
        if before is not None and before.fits(limits):
            before.set_numbers(limits, self.multiplier_ppm, now_ns)
            return before
        known = [each for each in self.retired if each[0] == name and each[1].fits(limits)]
        if known:
            self.retired.remove(known[0])
            plan = known[0][1]
            plan.set_numbers(limits, self.multiplier_ppm, now_ns)
        else:
            plan = self._new_plan(name if plans is self.plans else DEFAULT_SEGMENT, limits, now_ns)
        plans[name] = plan
        if before is not None:
            self.retired.append((name, before))
        for former, retired in self.retired:
            if former == name:
                _hand_on_share(retired, plan, now_ns)
        return plan

    def _fade(self, plan: Plan, now_ns: int) -> None:
        """Have what keys have spent under a retired plan refill as by default, where that goes by the same states."""
        limits = self.default.limits
        plan.set_numbers(limits if plan.fits(limits) else plan.limits, self.multiplier_ppm, now_ns)

    def _in_full(self, written: Limits) -> Limits:
        return under(written, self.default.limits)

    def _new_plan(self, segment: str, limits: Limits, now_ns: int, shards: int = SHARDS) -> Plan:
        if len(limits) == 1 and limits[0].algorithm == "token_bucket":
            return TokenPlan(
                segment,
                limits,
                self.multiplier_ppm,
                now_ns,
                census=self._census,
                kin=self,
                changed=self.changed,
                shards=shards,
            )
        return JointPlan(
            segment,
            limits,
            self.multiplier_ppm,
            now_ns,
            wall=self._wall,
            census=self._census,
            kin=self,
            changed=self.changed,
            shards=shards,
        )

    def _relate(self) -> None:
        is_only = len(self.plans) == 1 and not self.retired and not self.patterns
        self.only = self.default if is_only else None


def _hand_on_share(before: Plan, plan: Plan, now_ns: int) -> None:
    """Have what this node granted alone count on; at once, for few keys were asked for meanwhile."""
    if before.share is None:
        return
    share = share_of(plan, before.share.parts, now_ns)
    for keys in before.share.table.key_pieces():
        for key in keys:
            move(key, before.share, share, now_ns)
