"""A rule in force: its plans, one per segment, and those of the keys that have numbers of their own.

It knows which plan holds a key's bucket and keeps what keys have spent when the rule, an entry or a multiplier changes;
which plan a check comes under is the engine's business.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from limiter_node.core.plan import Plan
from limiter_node.core.rules import DEFAULT_SEGMENT
from limiter_node.core.table import SHARDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.entries import Entries
    from limiter_node.core.rules import KeyEntry, Limit, Rule
    from limiter_node.core.table import Census, Shard


class RuleInForce:
    """A rule with its plans.

    There is one per segment, one per pattern with numbers of its own, and one for all keys whose own numbers are the
    same: with one per key, 100,000 of them took 100 MB and a new multiplier 0.2 s.

    Keys move as follows. Between segments and patterns, and to numbers of its own, a key moves with its next check:
    `places` is where it may be. From numbers of its own it moves at once, so that `own` holds no other keys.
    """

    __slots__ = (
        "census",
        "changed",
        "default",
        "entries",
        "gate",
        "multiplier_ppm",
        "only",
        "own",
        "patterns",
        "plans",
        "priority",
        "retired",
        "rule",
    )

    def __init__(self, rule: Rule, multiplier_ppm: int, now_ns: int, census: Census, entries: Entries) -> None:
        self.gate: Gate | None = None  # of the backend that the rule names
        self.census = census
        self.entries = entries
        self.plans: dict[str, Plan] = {}
        self.own: dict[Limit, Plan] = {}
        self.patterns: dict[str, Plan] = {}
        # Of segments no longer listed and patterns without numbers, until their last bucket is full: their keys may
        # come back under another plan. No segment has the name of a pattern.
        self.retired: dict[str, Plan] = {}
        self.only: Plan | None = None
        self.changed: set[str] = set()  # keys granted something since `Engine.take_changed`
        self.set_rule(rule, multiplier_ppm, now_ns)

    def set_rule(self, rule: Rule, multiplier_ppm: int, now_ns: int) -> None:
        """Put another version of the rule, or another multiplier, in force."""
        self.rule = rule
        self.multiplier_ppm = multiplier_ppm
        for segment in self.plans.keys() - rule.limits.keys():
            self.retired[segment] = self.plans.pop(segment)
        for segment, limit in rule.limits.items():
            plan = self.plans.get(segment) or self.retired.pop(segment, None)
            if plan is None:
                plan = self._new_plan(segment, limit, now_ns)
            else:
                plan.set_numbers(limit, multiplier_ppm, now_ns)
            self.plans[segment] = plan
        self.default = self.plans[DEFAULT_SEGMENT]
        self.priority = rule.priorities[DEFAULT_SEGMENT]
        for plan in self.retired.values():
            plan.set_numbers(self.default.limit, multiplier_ppm, now_ns)
        for plan in chain(self.own.values(), self.patterns.values()):
            plan.set_numbers(plan.limit, multiplier_ppm, now_ns)
        self._relate()

    def plan_of(self, entry: KeyEntry, limit: Limit, now_ns: int) -> Plan:
        """The plan of numbers that an entry gives for this rule, made when it is first asked for."""
        if entry.pattern is None:
            plan = self.own.get(limit)
            if plan is None:
                # A single dict: mostly there are few keys of the same numbers, and tables by the thousand.
                plan = self.own[limit] = self._new_plan(DEFAULT_SEGMENT, limit, now_ns, shards=1)
            return plan
        plan = self.patterns.get(entry.pattern)
        if plan is None:
            plan = self.retired.pop(entry.pattern, None)
            if plan is None:
                plan = self._new_plan(DEFAULT_SEGMENT, limit, now_ns)
            else:
                plan.set_numbers(limit, self.multiplier_ppm, now_ns)
            self.patterns[entry.pattern] = plan
            self._relate()
        return plan

    def change_pattern(self, name: str, limit: Limit | None, now_ns: int) -> None:
        """Give a pattern that had numbers for this rule others, or (None) no more."""
        plan = self.patterns.get(name)
        if plan is None:
            return
        if limit is None:
            self.retired[name] = self.patterns.pop(name)
            self._relate()
        plan.set_numbers(limit or self.default.limit, self.multiplier_ppm, now_ns)

    def take_own(self, key: str, limit: Limit, now_ns: int) -> int:
        """Take a key away from the plan of its own numbers; returns the units that it has spent."""
        plan = self.own.get(limit)
        if plan is None:
            return 0
        spent = plan.table.pop_spent(key, now_ns)
        if plan.share is not None:
            plan.share.table.pop_spent(key, now_ns)
        # Whichever key is the last to leave, then or later, takes the plan along.
        if not any(map(len, plan.tables())):
            del self.own[limit]
        return spent or 0

    def places(self, key: str) -> Iterator[Plan]:
        """The plans that may hold a key's bucket; at most one does."""
        yield from self.plans.values()
        yield from self.retired.values()
        if self.own or self.patterns:
            for entry in self.entries.matching(key):
                limit = entry.limits.get(self.rule.name)
                if limit is not None:
                    plan = self.own.get(limit) if entry.pattern is None else self.patterns.get(entry.pattern)
                    if plan is not None:
                        yield plan

    def holding(self, key: str) -> Plan | None:
        """The plan whose table has the key's bucket."""
        return next((plan for plan in self.places(key) if plan.table.state(key) is not None), None)

    def drop_empty(self) -> None:
        """Let go of retired plans whose last bucket is full."""
        empty = [name for name, plan in self.retired.items() if not any(map(len, plan.tables()))]
        for name in empty:
            del self.retired[name]
        if empty:
            self._relate()

    def all_plans(self) -> Iterator[Plan]:
        """Every plan that may hold buckets."""
        return chain(self.plans.values(), self.retired.values(), self.own.values(), self.patterns.values())

    def release(self) -> list[Shard]:
        """Forget everything; returns the shards let go."""
        dropped = [shard for plan in self.all_plans() for table in plan.tables() for shard in table.release()]
        # Plans refer to this: without them, and without a collector, it goes at once.
        for plans in (self.plans, self.retired, self.own, self.patterns):
            plans.clear()
        del self.default, self.only
        return dropped

    def _new_plan(self, segment: str, limit: Limit, now_ns: int, shards: int = SHARDS) -> Plan:
        return Plan(
            segment,
            limit,
            self.multiplier_ppm,
            now_ns,
            census=self.census,
            kin=self,
            changed=self.changed,
            shards=shards,
        )

    def _relate(self) -> None:
        is_only = len(self.plans) == 1 and not self.retired and not self.patterns
        self.only = self.default if is_only else None
