"""A rule in force: its plans, one per segment, and one per key that has numbers of its own.

It knows which plan holds a key's bucket and keeps what keys have spent when the rule, an entry or a multiplier changes;
which plan a check comes under is the engine's business.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from limiter_node.core.plan import Plan
from limiter_node.core.rules import DEFAULT_SEGMENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.rules import KeyEntry, Limit, Rule
    from limiter_node.core.table import Census, Table


class RuleInForce:
    """A rule with its plans: one per segment, and one per key that has numbers of its own."""

    __slots__ = (
        "census",
        "changed",
        "default",
        "gate",
        "multiplier_ppm",
        "own",
        "plans",
        "priority",
        "relatives",
        "retired",
        "rule",
    )

    def __init__(self, rule: Rule, multiplier_ppm: int, now_ns: int, census: Census) -> None:
        self.gate: Gate | None = None  # of the backend that the rule names
        self.census = census
        self.plans: dict[str, Plan] = {}
        self.own: dict[str, Plan] = {}
        # Segments no longer listed, until their last bucket is full: their keys may come back under another plan.
        self.retired: dict[str, Plan] = {}
        self.relatives: list[Table] = []
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
                plan = Plan(
                    segment,
                    limit,
                    multiplier_ppm,
                    now_ns,
                    census=self.census,
                    relatives=self.relatives,
                    changed=self.changed,
                )
            else:
                plan.set_numbers(limit, multiplier_ppm, now_ns)
            self.plans[segment] = plan
        self.default = self.plans[DEFAULT_SEGMENT]
        self.priority = rule.priorities[DEFAULT_SEGMENT]
        for plan in self.retired.values():
            plan.set_numbers(self.default.limit, multiplier_ppm, now_ns)
        for plan in self.own.values():
            plan.set_numbers(plan.limit, multiplier_ppm, now_ns)
        self._relate()

    def own_plan(self, key: str, limit: Limit, now_ns: int) -> Plan:
        """The plan of a key with numbers of its own; its table is a single dict, for it holds a single key."""
        plan = self.own[key] = Plan(
            DEFAULT_SEGMENT,
            limit,
            self.multiplier_ppm,
            now_ns,
            census=self.census,
            relatives=self.relatives,
            changed=self.changed,
            shards=1,
        )
        return plan

    def set_entry(self, key: str, entry: KeyEntry | None, now_ns: int) -> None:
        """Tell the rule that what is special about a key has changed."""
        own = self.own.get(key)
        if own is None:
            return
        limit = entry and entry.limits.get(self.rule.name)
        if limit:
            own.set_numbers(limit, self.multiplier_ppm, now_ns)
            return
        del self.own[key]
        heir = self.plans.get((entry and entry.segment) or DEFAULT_SEGMENT, self.default)
        if spent := own.table.pop_spent(key, now_ns):
            heir.table.put_spent(key, spent, now_ns)
            self.changed.add(key)
        for table in own.tables():
            table.release()

    def holding(self, key: str) -> Plan | None:
        """The plan whose table has the key's bucket."""
        own = self.own.get(key)
        if own is not None and own.table.state(key) is not None:
            return own
        for plan in chain(self.plans.values(), self.retired.values()):
            if plan.table.state(key) is not None:
                return plan
        return None

    def drop_empty(self) -> None:
        """Let go of retired segments whose last bucket is full."""
        empty = [segment for segment, plan in self.retired.items() if not any(map(len, plan.tables()))]
        for segment in empty:
            del self.retired[segment]
        if empty:
            self._relate()

    def all_plans(self) -> Iterator[Plan]:
        """Every plan that may hold buckets."""
        return chain(self.plans.values(), self.retired.values(), self.own.values())

    def _relate(self) -> None:
        self.relatives[:] = [plan.table for plan in chain(self.plans.values(), self.retired.values())]
