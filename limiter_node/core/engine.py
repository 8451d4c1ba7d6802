"""The engine: every rule in force on this node and every bucket it holds; a check goes in, a verdict comes out.

It knows rules, key entries, backends and plans; it does not know which keys are its own (see `router`), where rules
come from, or what time it is. Changes take effect between two checks, never within one.

Invariants: a denied check leaves every bucket as it was; no change of numbers forgets what a key has spent; buckets
in memory never stay above `buckets_max`.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from limiter_node.core.adaptive.registry import Backends
from limiter_node.core.algorithms.face import Wall
from limiter_node.core.algorithms.token_bucket import PPM, UNITS_PER_MICRO
from limiter_node.core.denials import Denials
from limiter_node.core.entries import Entries
from limiter_node.core.holds import Holds
from limiter_node.core.in_force import RuleInForce
from limiter_node.core.model import (
    ANY_PERIOD,
    BATCHES,
    FORGOTTEN_SPENT,
    Bucket,
    Check,
    Copy,
    Entry,
    Op,
    UnknownRule,
    Verdict,
)
from limiter_node.core.orphans import Orphans
from limiter_node.core.plan import move, pass_gate, share_of, tables
from limiter_node.core.remains import Remains
from limiter_node.core.reservations import UNKNOWN_RULE, Reservations, shadowed
from limiter_node.core.rules import DEFAULT_SEGMENT
from limiter_node.core.settlements import Settlements
from limiter_node.core.table import SHARDS, Census
from limiter_node.core.token_plan import TokenPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limiter_node.core.plan import Plan
    from limiter_node.core.rules import KeyEntry, Rule
    from limiter_node.core.table import Shards

SWEEP_PERIOD_NS = 1_000_000_000
"""How often each table is offered to expire: memory follows the keys active within a refill time plus this."""

TABLES_PER_TICK = 64
RELEASED_PER_TICK = 10_000
"""Dead entries freed per tick, about 1 ms; with a tick every 20 ms, half a million a second."""

ROOM_SAMPLE = 4_096
"""Buckets looked at when room must be made; 1/16 of them go, so a new key past the cap costs 16 looks on average."""

UNREACHABLE_RETRY_NS = 1_000_000_000
"""When to try again after `on_unreachable: deny`: peers reconnect within a second."""


class Engine:
    """Decides checks for the keys whose buckets this node holds."""

    def __init__(self, *, buckets_max: int, jitter: Callable[[], float] = lambda: 0.5) -> None:
        self.buckets_max = buckets_max
        self.rules: dict[str, RuleInForce] = {}
        self.entries = Entries()
        self.backends = Backends(jitter)
        self.sync_rules: set[str] = set()  # whose verdicts wait until the replica has them
        self.has_copies = True  # some node is to be told what changes
        self.evicted = 0  # buckets forgotten before they were full
        self.wall = Wall()
        self.holds = Holds()
        self.settlements = Settlements()
        self.reservations = Reservations(self)
        self.denials = Denials(self)  # of keys that other nodes own
        self.remains = Remains()  # of what was forgotten
        self._census = Census(buckets_max)
        self._orphans = Orphans()
        self._sweep: Iterator[Shards[Any]] = iter(())
        self._swept_ns = 0
        self._hand = 0  # where the search for room goes on, a shard's index

    @property
    def buckets(self) -> int:
        """Buckets in memory."""
        return self._census.buckets

    # What is asked.

    def check(self, check: Check, now_ns: int) -> Verdict | UnknownRule:
        """Decide as the owner of the key."""
        rule = self.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE
        key, segment = check.key, check.segment
        if self.entries.named:
            plan = self.plan_for(rule, key, segment, now_ns)
        else:
            plan = rule.default if segment is None else rule.plans.get(segment, rule.default)
        verdict = plan.spend(key, check.cost, now_ns) if not self.holds.tokens else self.spend(plan, check, now_ns)
        if rule.gate is not None and check.cost:
            verdict = self._pass_gate(rule, plan, check, verdict, now_ns)
        if verdict.allowed and self.has_copies:
            rule.changed.add(key)
        if self._census.buckets > self.buckets_max:
            self._make_room(now_ns)
        return shadowed(verdict) if rule.rule.shadow else verdict

    def spend(self, plan: Plan, check: Check, now_ns: int) -> Verdict:
        """Spend as `Plan.spend` does, as if what is set aside were spent too."""
        key, held = check.key, self.holds.tokens.get((check.rule, check.key), 0)
        if held:
            aside = plan.spend(key, held, now_ns)
            if not aside.allowed:  # the numbers have been cut meanwhile
                return replace(aside, remaining=0, retry_ns=max(aside.retry_ns, self.holds.reserved_ns))
        verdict = plan.spend(key, check.cost, now_ns)
        if held:
            plan.refund(key, held, now_ns)
        return verdict

    def check_alone(self, check: Check, parts: int, now_ns: int) -> Verdict | UnknownRule:
        """Decide for a key whose owner cannot be asked, as the rule's `on_unreachable` says.

        This node's share is not for an atomic batch: nothing of it could be set aside at the owner.
        """
        rule = self.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE
        plan = self.plan_for(rule, check.key, check.segment, now_ns)
        policy = rule.rule.on_unreachable
        if policy == "local" and check.op is Op.RESERVE:
            policy = "deny"
        if policy == "local":
            plan = share_of(plan, parts, now_ns)
            verdict = plan.spend(check.key, check.cost, now_ns)
            if rule.gate is not None and check.cost:
                verdict = self._pass_gate(rule, plan, check, verdict, now_ns)
            if self._census.buckets > self.buckets_max:
                self._make_room(now_ns)
        elif policy == "allow":
            verdict = Verdict(True, plan.tokens, plan.tokens, 0, 0, plan.window_s)
        else:
            verdict = Verdict(False, plan.tokens, 0, UNREACHABLE_RETRY_NS, UNREACHABLE_RETRY_NS, plan.window_s)
        verdict = replace(verdict, degraded=True, reason="unreachable" if policy == "deny" else verdict.reason)
        return shadowed(verdict) if rule.rule.shadow else verdict

    def inspect(self, rule_name: str, key: str, now_ns: int) -> Bucket | UnknownRule:
        """Show a bucket, under the plan that holds it or else the one it would come under."""
        rule = self.rules.get(rule_name)
        if rule is None:
            return UNKNOWN_RULE
        plan = self.plan_for(rule, key, None, now_ns)
        if not plan.has(key):
            plan = rule.holding(key) or plan
        entry = self.entries.find(key)
        bucket = plan.bucket(key, now_ns)
        if entry and entry.segment and rule_name in entry.limits:
            return replace(bucket, segment=entry.segment)
        return bucket

    def forget(self, rule_name: str, key: str, now_ns: int) -> bool:
        """Make a bucket full again, with nothing set aside; returns whether the rule is known."""
        self._orphans.drop(rule_name, key)
        self.holds.drop((rule_name, key))
        rule = self.rules.get(rule_name)
        if rule is None:
            return False
        for plan in rule.places(key):
            for table in tables(plan):
                table.forget(key)
        return True

    def refund(self, rule_name: str, key: str, cost: int, now_ns: int) -> int:
        """Give back up to `cost` whole tokens that a key has spent; returns how many."""
        rule = self.rules.get(rule_name)
        plan = rule and rule.holding(key)
        return plan.refund(key, cost, now_ns) if plan else 0

    def peek(self, rule: RuleInForce, check: Check, now_ns: int) -> Verdict:
        """How a check's bucket stands, what is set aside being spent."""
        plan = self.plan_for(rule, check.key, check.segment, now_ns)
        return self.spend(plan, replace(check, cost=0), now_ns)

    # What travels between nodes.

    def take_changed(self) -> list[tuple[str, str]]:
        """(rule, key) of every bucket that something was granted from since the last call."""
        changed: list[tuple[str, str]] = []
        for name, rule in self.rules.items():
            if rule.changed:
                changed += [(name, key) for key in rule.changed]
                rule.changed.clear()
        for more in (self.holds.changed, self.settlements.changed):
            changed.extend(more)
            more.clear()
        return changed

    def copy(self, rule_name: str, key: str, now_ns: int) -> Copy | None:
        """The bucket, or what a batch has come to, for another node; None when there is nothing to tell."""
        if rule_name == BATCHES:
            return self.settlements.copy(key)
        copy = self._copy(rule_name, key, now_ns)
        if not self.holds or (bucket := (rule_name, key)) not in self.holds:
            return copy
        return replace(copy or Copy(rule_name, key, DEFAULT_SEGMENT, 0), holds=self.holds.copy(bucket, now_ns))

    def _copy(self, rule_name: str, key: str, now_ns: int) -> Copy | None:
        rule = self.rules.get(rule_name)
        if rule is None:
            return self._orphans.get(rule_name, key)
        lent = self.holds.lent.get((rule_name, key), 0) if self.holds.lent else 0
        plan = rule.holding(key) if lent or not rule.sole else rule.sole
        if not plan and not lent:
            return None
        if plan is None:
            plan = self.plan_for(rule, key, None, now_ns)
        if isinstance(plan, TokenPlan):
            spent = plan.spent(key, now_ns) + (plan.lent(lent) if lent else 0)
            return Copy(rule_name, key, plan.segment, -(-spent // UNITS_PER_MICRO)) if spent else None
        account = plan.account(key, now_ns)
        return Copy(rule_name, key, plan.segment, 0, account) if account else None

    def merge(self, copy: Copy, now_ns: int, *, follows: bool = False) -> None:
        """Take another node's copy: the bucket has spent the more of what either knows.

        With `follows` the other node owns the bucket, and it goes to the plan where that one has it.
        """
        if copy.rule == BATCHES:
            self.settlements.learn(copy)
            return
        rule = self.rules.get(copy.rule)
        if rule is None:
            self._orphans.put(copy, follows=follows)
            return
        key = copy.key
        target = self.plan_for(rule, key, copy.segment, now_ns)
        # Nearly always the bucket is where the copy says: to look there first takes a third of the time.
        holding = target if target is rule.sole or target.has(key) else rule.holding(key)
        if copy.spent == FORGOTTEN_SPENT:
            self.holds.drop((copy.rule, key))
            if holding is not None:
                holding.table.forget(key)
            return
        if copy.holds:
            self.holds.learn((copy.rule, key), copy.holds, now_ns)
        is_here = holding is None or holding is target
        if is_here and isinstance(target, TokenPlan) and not copy.account:
            target.credit_units(key, copy.spent * UNITS_PER_MICRO, now_ns)  # as nearly all are: half the time
        else:
            account = copy.account or [Entry("token_bucket", ANY_PERIOD, [copy.spent, 0])]
            if is_here:
                target.credit(key, account, now_ns)
            elif holding is not None and (holding.credit(key, account, now_ns) or follows):
                move(key, holding, target, now_ns)
        if self._census.buckets > self.buckets_max:
            self._make_room(now_ns)

    def drop(self, rule_name: str, key: str) -> None:
        """Forget a bucket that is another node's."""
        if rule_name == BATCHES:
            self.settlements.drop(key)
        self._orphans.drop(rule_name, key)
        self.holds.drop((rule_name, key))
        rule = self.rules.get(rule_name)
        plan = rule and rule.holding(key)
        if plan:
            plan.table.forget(key)

    def holdings(self) -> Iterator[list[tuple[str, str]]]:
        """(rule, key) of every bucket, in small pieces; what comes meanwhile may be missing, and is in `changed`."""
        for name, rule in list(self.rules.items()):
            for plan in list(rule.all_plans()):
                for keys in plan.table.key_pieces():
                    yield [(name, key) for key in keys]
        yield self._orphans.buckets()
        yield list(self.holds)
        yield from self.settlements.pieces()

    # What changes.

    def set_rule(self, name: str, rule: Rule | None, now_ns: int) -> None:
        """Put a rule in force, change it, or (None) delete it together with its buckets."""
        self.denials.clear()
        if rule is not None and rule.durability == "sync":
            self.sync_rules.add(name)
        else:
            self.sync_rules.discard(name)
        known, orphans = self.rules.get(name), self._orphans.take(name)
        self.backends.rename(known.rule.backend if known else None, rule.backend if rule else None)
        if rule is None:
            self.rules.pop(name, None)
            self.holds.drop_rule(name)
            if known is not None:
                self.remains.add(known.release())
            return
        ppm = self.backends.ppm(rule.backend) if rule.backend else PPM
        if known is None:
            known = self.rules[name] = RuleInForce(
                rule, ppm, now_ns, census=self._census, wall=self.wall, entries=self.entries
            )
            for copy, follows in orphans:
                self.merge(copy, now_ns, follows=follows)
        else:
            known.set_rule(rule, ppm, now_ns)
        known.gate = self.backends.gate(rule.backend) if rule.backend else None

    def set_entry(self, name: str, entry: KeyEntry | None, now_ns: int) -> None:
        """Change what is special about a client key or a pattern's keys, or (None) make them keys like any other.

        Touches the buckets of no key but that one; those of a pattern's keys move when they are next asked for.
        """
        self.denials.clear()
        before = self.entries.put(name, entry)
        for rule_name, written in before.limits.items() if before else ():
            rule = self.rules.get(rule_name)
            others = entry.limits.get(rule_name) if entry else None
            if rule is None or written == others:
                continue
            if before and before.pattern:
                rule.change_pattern(name, others, now_ns)
            elif written in rule.own:
                plan = self.plan_for(rule, name, None, now_ns)
                rule.leave_own(name, written, plan, now_ns, is_own=others is not None)

    def rescale(self, backend: str, now_ns: int) -> None:
        """Scale the plans of every rule that names the backend by the multiplier that is in force now."""
        self.denials.clear()
        for rule in self.rules.values():
            if rule.rule.backend == backend and rule.multiplier_ppm != self.backends.ppm(backend):
                rule.set_rule(rule.rule, self.backends.ppm(backend), now_ns)

    def tick(self, now_ns: int) -> None:
        """Expire and free a bounded piece; to be called every 20 ms or so."""
        self.settlements.tick(now_ns)
        done = 0
        for table in islice(self._sweep, TABLES_PER_TICK):
            self.remains.add(table.rotate(now_ns))
            done += 1
        if done < TABLES_PER_TICK and now_ns - self._swept_ns >= SWEEP_PERIOD_NS:
            self._swept_ns = now_ns
            for rule in self.rules.values():
                rule.drop_empty()
            self._sweep = iter(self.all_tables())
        self.remains.free(RELEASED_PER_TICK)

    # How.

    def plan_for(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """Numbers of the key itself, else of the segment asked for, else of the key's own segment, else the default."""
        if self.entries.named:
            entry = self.entries.find(key)
            if entry is not None:
                written = entry.limits.get(rule.rule.name)
                if written is not None:
                    return rule.plan_of(entry, written, now_ns)
                segment = segment or entry.segment
        return rule.default if segment is None else rule.plans.get(segment, rule.default)

    def segment_of(self, check: Check) -> str:
        """The segment that a check counts under: the one asked for or the key's own, where the rule lists it."""
        segment = check.segment
        if segment is None and self.entries.named:
            entry = self.entries.find(check.key)
            segment = entry.segment if entry is not None else None
        if segment is None:
            return DEFAULT_SEGMENT
        rule = self.rules.get(check.rule)  # it may be gone by the time another node has decided
        return segment if rule is not None and segment in rule.plans else DEFAULT_SEGMENT

    def _pass_gate(self, rule: RuleInForce, plan: Plan, check: Check, verdict: Verdict, now_ns: int) -> Verdict:
        assert rule.gate is not None
        priority = self.priority_of(rule, plan, check)
        return pass_gate(plan, rule.gate, check, priority, verdict, now_ns=now_ns, is_shadow=rule.rule.shadow)

    def priority_of(self, rule: RuleInForce, plan: Plan, check: Check) -> int:
        """Of the plan's segment; a key with numbers of its own keeps the priority of its segment."""
        segment: str | None = plan.segment
        entry = self.entries.find(check.key)
        if entry is not None and rule.rule.name in entry.limits:
            segment = check.segment or entry.segment
        priorities = rule.rule.priorities
        return priorities.get(segment or DEFAULT_SEGMENT, priorities[DEFAULT_SEGMENT])

    def all_tables(self) -> list[Shards[Any]]:
        """All that holds buckets."""
        return [table for rule in self.rules.values() for plan in rule.all_plans() for table in tables(plan)]

    def _make_room(self, now_ns: int) -> None:
        """Forget the buckets nearest to full: of all when there are few, else of a sample by hash."""
        held = self.all_tables()
        sample: list[tuple[int, str, Shards[Any]]] = []
        for offset in range(SHARDS):
            for shards in held:
                if offset <= shards.mask:
                    sample += [(*entry, shards) for entry in shards.fullness(self._hand & shards.mask, now_ns)]
            self._hand += 1
            if len(sample) >= ROOM_SAMPLE:
                break
        for until_full_ns, key, shards in nsmallest(max(1, len(sample) // 16), sample, key=itemgetter(0)):
            shards.forget(key)
            self.evicted += until_full_ns > 0
