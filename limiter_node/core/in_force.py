"""A rule in force: its plans, one per segment, and one per key that has numbers of its own.

It knows which plan holds a key's bucket and keeps what keys have spent when the rule, an entry or a multiplier changes;
which plan a check comes under is the engine's business.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from limiter_node.core.joint_plan import JointPlan
from limiter_node.core.limits import under
from limiter_node.core.plan import move, tables
from limiter_node.core.rules import DEFAULT_SEGMENT
from limiter_node.core.table import SHARDS
from limiter_node.core.token_plan import TokenPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.algorithms.face import Wall
    from limiter_node.core.limits import Limits
    from limiter_node.core.plan import Plan
    from limiter_node.core.rules import KeyEntry, Rule
    from limiter_node.core.table import Census


class RuleInForce:
    """A rule with its plans: one per segment, and one per key that has numbers of its own."""

    __slots__ = (
        "_wall",
        "_written",
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

    def __init__(self, rule: Rule, multiplier_ppm: int, now_ns: int, census: Census, wall: Wall) -> None:
        self.gate: Gate | None = None  # of the backend that the rule names
        self.census = census
        self._wall = wall
        self.plans: dict[str, Plan] = {}
        self.own: dict[str, Plan] = {}
        self._written: dict[str, Limits] = {}  # the limits of each of these: the rule's decide what they leave open
        # Of segments no longer listed, or listed with other limits, until their last bucket is full: their keys may
        # come back under another plan.
        self.retired: list[Plan] = []
        self.relatives: list[Plan] = []
        self.changed: set[str] = set()  # keys granted something since `Engine.take_changed`
        self.set_rule(rule, multiplier_ppm, now_ns)

    def set_rule(self, rule: Rule, multiplier_ppm: int, now_ns: int) -> None:
        """Put another version of the rule, or another multiplier, in force."""
        self.rule = rule
        self.multiplier_ppm = multiplier_ppm
        for segment in self.plans.keys() - rule.limits.keys():
            self.retired.append(self.plans.pop(segment))
        for segment, limits in rule.limits.items():
            self._set_segment(segment, limits, now_ns)
        self.default = self.plans[DEFAULT_SEGMENT]
        self.priority = rule.priorities[DEFAULT_SEGMENT]
        for plan in self.retired:
            fits = plan.fits(self.default.limits)
            plan.set_numbers(self.default.limits if fits else plan.limits, multiplier_ppm, now_ns)
        for key, plan in list(self.own.items()):
            self._set_own(key, plan, self._written[key], now_ns)
        self._relate()

    def _set_segment(self, segment: str, limits: Limits, now_ns: int) -> None:
        plan = self.plans.get(segment)
        if plan is not None and not plan.fits(limits):
            self.retired.append(plan)
            plan = None
        if plan is None:
            known = [plan for plan in self.retired if plan.segment == segment and plan.fits(limits)]
            if not known:
                self.plans[segment] = self._new_plan(segment, limits, now_ns)
                return
            plan = known[0]
            self.retired.remove(plan)
        plan.set_numbers(limits, self.multiplier_ppm, now_ns)
        self.plans[segment] = plan

    def _new_plan(self, segment: str, limits: Limits, now_ns: int, shards: int = SHARDS) -> Plan:
        if len(limits) == 1 and limits[0].algorithm == "token_bucket":
            return TokenPlan(
                segment,
                limits,
                self.multiplier_ppm,
                now_ns,
                census=self.census,
                relatives=self.relatives,
                changed=self.changed,
                shards=shards,
            )
        return JointPlan(
            segment,
            limits,
            self.multiplier_ppm,
            now_ns,
            wall=self._wall,
            census=self.census,
            relatives=self.relatives,
            changed=self.changed,
            shards=shards,
        )

    def own_plan(self, key: str, limits: Limits, now_ns: int) -> Plan:
        """The plan of a key with numbers of its own; its table is a single dict, for it holds a single key."""
        self._written[key] = limits
        plan = self.own[key] = self._new_plan(DEFAULT_SEGMENT, under(limits, self.default.limits), now_ns, shards=1)
        return plan

    def _set_own(self, key: str, own: Plan, limits: Limits, now_ns: int) -> None:
        """Give a key that has numbers of its own others."""
        in_full = under(limits, self.default.limits)
        if own.fits(in_full):
            self._written[key] = limits
            own.set_numbers(in_full, self.multiplier_ppm, now_ns)
        else:
            self._hand_on(key, own, self.own_plan(key, limits, now_ns), now_ns)

    def _hand_on(self, key: str, own: Plan, heir: Plan, now_ns: int) -> None:
        if move(key, own, heir, now_ns):
            self.changed.add(key)
        for table in tables(own):
            table.release()

    def set_entry(self, key: str, entry: KeyEntry | None, now_ns: int) -> None:
        """Tell the rule that what is special about a key has changed."""
        own = self.own.get(key)
        if own is None:
            return
        limits = entry and entry.limits.get(self.rule.name)
        if limits:
            self._set_own(key, own, limits, now_ns)
            return
        del self.own[key], self._written[key]
        heir = self.plans.get((entry and entry.segment) or DEFAULT_SEGMENT, self.default)
        self._hand_on(key, own, heir, now_ns)

    def holding(self, key: str) -> Plan | None:
        """The plan whose table has the key's bucket."""
        own = self.own.get(key)
        if own is not None and own.has(key):
            return own
        for plan in self.relatives:
            if plan.has(key):
                return plan
        return None

    def drop_empty(self) -> None:
        """Let go of retired plans whose last bucket is full."""
        kept = [plan for plan in self.retired if any(map(len, tables(plan)))]
        if len(kept) < len(self.retired):
            self.retired = kept
            self._relate()

    def all_plans(self) -> Iterator[Plan]:
        """Every plan that may hold buckets."""
        return chain(self.relatives, self.own.values())

    def release(self) -> list[dict[str, Any]]:
        """Forget everything; returns the shards let go."""
        dropped = [shard for plan in self.all_plans() for table in tables(plan) for shard in table.release()]
        self.relatives.clear()  # plans and they refer to each other, and are freed at once only so
        self.changed.clear()
        return dropped

    def _relate(self) -> None:
        self.relatives[:] = [*self.plans.values(), *self.retired]
