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
from typing import TYPE_CHECKING

from msgspec.structs import replace

from limiter_node.core.adaptive.registry import Backends
from limiter_node.core.algorithms.token_bucket import PPM, UNIT
from limiter_node.core.in_force import RuleInForce
from limiter_node.core.model import FORGOTTEN_SPENT, MICROS, Bucket, Check, Copy, UnknownRule, Verdict
from limiter_node.core.orphans import Orphans
from limiter_node.core.rules import DEFAULT_SEGMENT
from limiter_node.core.table import SHARDS, Census, Shard, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from limiter_node.core.plan import Plan
    from limiter_node.core.rules import KeyEntry, Rule

SWEEP_PERIOD_NS = 1_000_000_000
"""How often each table is offered to expire: memory follows the keys active within a refill time plus this."""

TABLES_PER_TICK = 64
RELEASED_PER_TICK = 10_000
"""Dead entries freed per tick, about 1 ms; with a tick every 20 ms, half a million a second."""

ROOM_SAMPLE = 4_096
"""Buckets looked at when room must be made; 1/16 of them go, so a new key past the cap costs 16 looks on average."""

UNREACHABLE_RETRY_NS = 1_000_000_000
"""When to try again after `on_unreachable: deny`: peers reconnect within a second."""

UNKNOWN_RULE = UnknownRule()

UNITS_PER_MICRO = UNIT // MICROS


class Engine:
    """Decides checks for the keys whose buckets this node holds."""

    def __init__(self, *, buckets_max: int, jitter: Callable[[], float] = lambda: 0.5) -> None:
        self.buckets_max = buckets_max
        self.rules: dict[str, RuleInForce] = {}
        self.entries: dict[str, KeyEntry] = {}
        self.backends = Backends(jitter)
        self.sync_rules: set[str] = set()  # whose verdicts wait until the replica has them
        self.has_copies = True  # some node is to be told what changes
        self.evicted = 0  # buckets forgotten before they were full
        self._census = Census(buckets_max)
        self._orphans = Orphans()
        self._dying: list[Shard] = []
        self._sweep: Iterator[Table] = iter(())
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
        if self.entries:
            plan = self._plan(rule, key, segment, now_ns)
        else:
            plan = rule.default if segment is None else rule.plans.get(segment, rule.default)
        verdict = plan.spend(key, check.cost, now_ns)
        if rule.gate is not None and check.cost:
            verdict = self._pass_gate(rule, plan, check, verdict, now_ns)
        if verdict.allowed and self.has_copies:
            rule.changed.add(key)
        if self._census.buckets > self.buckets_max:
            self._make_room(now_ns)
        return _shadowed(verdict) if rule.rule.shadow else verdict

    def check_alone(self, check: Check, parts: int, now_ns: int) -> Verdict | UnknownRule:
        """Decide for a key whose owner cannot be asked, as the rule's `on_unreachable` says."""
        rule = self.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE
        plan = self._plan(rule, check.key, check.segment, now_ns)
        policy = rule.rule.on_unreachable
        if policy == "local":
            plan = plan.share_of(parts, now_ns)
            verdict = plan.spend(check.key, check.cost, now_ns)
            if rule.gate is not None and check.cost:
                verdict = self._pass_gate(rule, plan, check, verdict, now_ns)
            if self._census.buckets > self.buckets_max:
                self._make_room(now_ns)
        elif policy == "allow":
            verdict = Verdict(True, plan.tokens, plan.tokens, 0, 0, plan.limit.window_s)
        else:
            verdict = Verdict(False, plan.tokens, 0, UNREACHABLE_RETRY_NS, UNREACHABLE_RETRY_NS, plan.limit.window_s)
        verdict = replace(verdict, degraded=True, reason="unreachable" if policy == "deny" else verdict.reason)
        return _shadowed(verdict) if rule.rule.shadow else verdict

    def inspect(self, rule_name: str, key: str, now_ns: int) -> Bucket | UnknownRule:
        """Show a bucket, under the plan that holds it or else the one it would come under."""
        rule = self.rules.get(rule_name)
        if rule is None:
            return UNKNOWN_RULE
        plan = self._plan(rule, key, None, now_ns)
        if plan.table.state(key) is None:
            plan = next((other for other in rule.all_plans() if other.table.state(key) is not None), plan)
        entry = self.entries.get(key)
        bucket = plan.bucket(key, now_ns)
        if entry and entry.segment and key in rule.own:
            return Bucket(entry.segment, bucket.algorithm, bucket.limit, bucket.used, bucket.remaining)
        return bucket

    def forget(self, rule_name: str, key: str, now_ns: int) -> bool:
        """Make a bucket full again; returns whether the rule is known."""
        self._orphans.drop(rule_name, key)
        rule = self.rules.get(rule_name)
        if rule is None:
            return False
        for plan in rule.all_plans():
            for table in plan.tables():
                table.pop_spent(key, now_ns)
        return True

    # What travels between nodes.

    def take_changed(self) -> list[tuple[str, str]]:
        """(rule, key) of every bucket that something was granted from since the last call."""
        changed = [(name, key) for name, rule in self.rules.items() if rule.changed for key in rule.changed]
        for name, _ in changed:
            self.rules[name].changed.clear()
        return changed

    def copy(self, rule_name: str, key: str, now_ns: int) -> Copy | None:
        """The bucket for another node, or None when it is full."""
        rule = self.rules.get(rule_name)
        if rule is None:
            return self._orphans.get(rule_name, key)
        plan = rule.holding(key)
        if not plan:
            return None
        spent = plan.spent(key, now_ns)
        return Copy(rule_name, key, plan.segment, -(-spent // UNITS_PER_MICRO)) if spent else None

    def merge(self, copy: Copy, now_ns: int, *, follows: bool = False) -> None:
        """Take another node's copy: the bucket has spent the more of what either knows.

        With `follows` the other node owns the bucket, and it goes to the plan where that one has it.
        """
        rule = self.rules.get(copy.rule)
        if rule is None:
            self._orphans.put(copy, follows=follows)
            return
        key = copy.key
        target = self._plan(rule, key, copy.segment, now_ns)
        # Nearly always the bucket is where the copy says: to look there first takes a third of the time.
        holding = target if target.table.state(key) is not None else rule.holding(key)
        known = 0 if holding is None else holding.spent(key, now_ns)
        spent = 0 if copy.spent == FORGOTTEN_SPENT else max(known, copy.spent * UNITS_PER_MICRO)
        if spent == known and (target is holding or not follows):
            return
        if holding is not None and not (spent and target is holding):
            holding.table.pop_spent(key, now_ns)
        if spent:
            target.table.put_spent(key, spent, now_ns)
            if self._census.buckets > self.buckets_max:
                self._make_room(now_ns)

    def drop(self, rule_name: str, key: str) -> None:
        """Forget a bucket that is another node's."""
        self._orphans.drop(rule_name, key)
        rule = self.rules.get(rule_name)
        plan = rule and rule.holding(key)
        if plan:
            plan.table.pop_spent(key, 0)

    def holdings(self) -> Iterator[list[tuple[str, str]]]:
        """(rule, key) of every bucket, in small pieces; what comes meanwhile may be missing, and is in `changed`."""
        for name, rule in list(self.rules.items()):
            for plan in list(rule.all_plans()):
                for keys in plan.table.key_pieces():
                    yield [(name, key) for key in keys]
        yield self._orphans.buckets()

    # What changes.

    def set_rule(self, name: str, rule: Rule | None, now_ns: int) -> None:
        """Put a rule in force, change it, or (None) delete it together with its buckets."""
        if rule is not None and rule.durability == "sync":
            self.sync_rules.add(name)
        else:
            self.sync_rules.discard(name)
        known, orphans = self.rules.get(name), self._orphans.take(name)
        self.backends.rename(known.rule.backend if known else None, rule.backend if rule else None)
        if rule is None:
            self.rules.pop(name, None)
            if known is not None:
                for plan in known.all_plans():
                    for table in plan.tables():
                        self._dying += table.release()
            return
        ppm = self.backends.ppm(rule.backend) if rule.backend else PPM
        if known is None:
            known = self.rules[name] = RuleInForce(rule, ppm, now_ns, self._census)
            for copy, follows in orphans:
                self.merge(copy, now_ns, follows=follows)
        else:
            known.set_rule(rule, ppm, now_ns)
        known.gate = self.backends.gate(rule.backend) if rule.backend else None

    def set_entry(self, key: str, entry: KeyEntry | None, now_ns: int) -> None:
        """Change what is special about a client key, or (None) make it a key like any other."""
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        for rule in self.rules.values():
            rule.set_entry(key, entry, now_ns)

    def rescale(self, backend: str, now_ns: int) -> None:
        """Scale the plans of every rule that names the backend by the multiplier that is in force now."""
        for rule in self.rules.values():
            if rule.rule.backend == backend and rule.multiplier_ppm != self.backends.ppm(backend):
                rule.set_rule(rule.rule, self.backends.ppm(backend), now_ns)

    def tick(self, now_ns: int) -> None:
        """Expire and free a bounded piece; to be called every 20 ms or so."""
        done = 0
        for table in islice(self._sweep, TABLES_PER_TICK):
            self._dying += table.rotate(now_ns)
            done += 1
        if done < TABLES_PER_TICK and now_ns - self._swept_ns >= SWEEP_PERIOD_NS:
            self._swept_ns = now_ns
            for rule in self.rules.values():
                rule.drop_empty()
            self._sweep = iter(self._tables())
        self._free(RELEASED_PER_TICK)

    # How.

    def _plan(self, rule: RuleInForce, key: str, segment: str | None, now_ns: int) -> Plan:
        """Numbers of the key itself, else of the segment asked for, else of the key's own segment, else the default."""
        if self.entries:
            entry = self.entries.get(key)
            if entry is not None:
                limit = entry.limits.get(rule.rule.name)
                if limit is not None:
                    return rule.own.get(key) or rule.own_plan(key, limit, now_ns)
                segment = segment or entry.segment
        return rule.default if segment is None else rule.plans.get(segment, rule.default)

    def _pass_gate(self, rule: RuleInForce, plan: Plan, check: Check, verdict: Verdict, now_ns: int) -> Verdict:
        assert rule.gate is not None
        priority = self._priority(rule, plan, check)
        return plan.pass_gate(rule.gate, check, priority, verdict, now_ns, is_shadow=rule.rule.shadow)

    def _priority(self, rule: RuleInForce, plan: Plan, check: Check) -> int:
        """Of the plan's segment; a key with numbers of its own keeps the priority of its segment."""
        segment: str | None = plan.segment
        if check.key in rule.own:
            segment = check.segment or self.entries[check.key].segment
        priorities = rule.rule.priorities
        return priorities.get(segment or DEFAULT_SEGMENT, priorities[DEFAULT_SEGMENT])

    def _tables(self) -> list[Table]:
        return [table for rule in self.rules.values() for plan in rule.all_plans() for table in plan.tables()]

    def _free(self, budget: int) -> None:
        while budget > 0 and self._dying:
            shard = self._dying[-1]
            if len(shard) <= budget:
                budget -= max(1, len(shard))
                self._dying.pop()
            else:
                for _ in range(budget):
                    shard.popitem()
                return

    def _make_room(self, now_ns: int) -> None:
        """Forget the buckets nearest to full: of all when there are few, else of a sample by hash."""
        tables = self._tables()
        sample: list[tuple[int, str, Table]] = []
        for offset in range(SHARDS):
            for table in tables:
                if offset <= table.mask:
                    entries = table.shard_entries(self._hand & table.mask, now_ns)
                    sample += [(table.ns_until_full(spent), key, table) for key, spent in entries]
            self._hand += 1
            if len(sample) >= ROOM_SAMPLE:
                break
        for until_full_ns, key, table in nsmallest(max(1, len(sample) // 16), sample, key=itemgetter(0)):
            table.pop_spent(key, now_ns)
            self.evicted += until_full_ns > 0


def _shadowed(verdict: Verdict) -> Verdict:
    """Allow, and tell what would have been."""
    return replace(verdict, allowed=True, retry_ns=0, would_allow=verdict.allowed, reason=None)
