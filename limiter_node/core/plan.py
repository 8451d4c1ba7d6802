"""A plan: the numbers in force for one segment of a rule, or for one key of it, and the buckets that live by them.

Numbers are a limit scaled by the backend's multiplier and, for a node that must decide alone, by that node's share
of the fleet. Which key is under which plan is the engine's business; a key that comes from another plan of
the same rule takes what it has spent along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.algorithms.token_bucket import PPM, UNIT, slope, take
from limiter_node.core.model import DURATION_MAX_NS, NEVER, Bucket, Verdict
from limiter_node.core.table import SHARDS, Census, Table, whole_tokens

if TYPE_CHECKING:
    from limiter_node.core.adaptive.gate import Gate
    from limiter_node.core.model import Check
    from limiter_node.core.rules import Limit


Grant = tuple[tuple[int, int], int, int]
"""Of a check that was allowed: (`Plan.tokens`, `window_s`), the whole tokens left, the nanoseconds until it is full."""


class Plan:
    """Decides for the keys under it, at `limit` x `multiplier_ppm` / PPM / `parts`.

    `relatives` are the tables of all plans of the rule, this one's included: where a key that is new here may
    have been before. `changed` are keys whose copies are to follow. Both are shared, and kept by the rule.
    """

    __slots__ = (
        "changed",
        "limit",
        "multiplier_ppm",
        "numbers",
        "parts",
        "relatives",
        "segment",
        "share",
        "table",
        "tokens",
        "window_s",
    )

    def __init__(
        self,
        segment: str,
        limit: Limit,
        multiplier_ppm: int,
        now_ns: int,
        *,
        census: Census,
        relatives: list[Table],
        changed: set[str],
        parts: int = 1,
        shards: int = SHARDS,
    ) -> None:
        self.segment = segment
        self.parts = parts
        self.relatives = relatives
        self.changed = changed
        self.share: Plan | None = None  # this plan at 1/parts, made when the node has to decide alone
        self.table = Table(census, now_ns, UNIT, 1, 1, shards=shards)
        self.set_numbers(limit, multiplier_ppm, now_ns)

    def set_numbers(self, limit: Limit, multiplier_ppm: int, now_ns: int) -> None:
        """Other numbers from now on; every key keeps what it has spent."""
        self.limit = limit
        self.multiplier_ppm = multiplier_ppm
        self.window_s = limit.window_s
        # Capacity in whole tokens: what a verdict calls `limit`.
        self.tokens = max(1, limit.burst * multiplier_ppm // (PPM * self.parts))
        self.numbers = self.tokens, self.window_s
        num, den = slope(limit.count, limit.period_s * self.parts, multiplier_ppm)
        self.table.set_numbers(now_ns, self.tokens * UNIT, num, den)
        if self.share is not None:
            self.share.set_numbers(limit, multiplier_ppm, now_ns)

    def share_of(self, parts: int, now_ns: int) -> Plan:
        """This plan at 1/`parts` of rate and burst, with buckets of its own."""
        if self.share is None:
            self.share = Plan(
                self.segment,
                self.limit,
                self.multiplier_ppm,
                now_ns,
                census=self.table.census,
                relatives=[],
                changed=set(),
                parts=parts,
                shards=len(self.table.young),
            )
        elif self.share.parts != parts:
            self.share.parts = parts
            self.share.set_numbers(self.limit, self.multiplier_ppm, now_ns)
        return self.share

    def tables(self) -> list[Table]:
        """The plan's table and, if it ever decided alone, that of its share."""
        return [self.table] if self.share is None else [self.table, self.share.table]

    def grant(self, key: str, now_ns: int) -> Grant | None:
        """Spend one token of a key, if it is there; None: nothing was done, and `spend` knows more.

        `spend`, `clock.at`, `take` and `put` in one, for the check that nearly all are: it takes two fifths of their
        time.
        """
        table = self.table
        clock = table.clock
        num, den, capacity = clock.num, clock.den, table.capacity
        elapsed_ns = now_ns - clock.since_ns
        if elapsed_ns < 0:
            return None
        v = clock.base + (elapsed_ns * num if den == 1 else elapsed_ns * num // den)
        index = hash(key) & table.mask
        shard = table.young[index]
        state = shard.get(key)
        old = None
        if state is None:
            old = table.old[index]
            state = old.get(key)
            if state is not None:
                state -= table.shift
            elif self.relatives == [table] and table.census.buckets < table.census.buckets_max:
                state = v  # new to the whole rule
            else:
                return None
        spent = state - v + UNIT if state > v else UNIT
        if spent > capacity:
            return None
        if old is not None and old.pop(key, None) is None:
            table.census.buckets += 1
        shard[key] = v + spent
        reset_ns = -(-spent // num) if den == 1 else -(-spent * den // num)
        return self.numbers, (capacity - spent) // UNIT, reset_ns if reset_ns < DURATION_MAX_NS else DURATION_MAX_NS

    def spend(self, key: str, cost: int, now_ns: int) -> Verdict:
        """Spend `cost` whole tokens of the key if they are there; a denial changes nothing, cost 0 is a peek."""
        if cost == 1:
            grant = self.grant(key, now_ns)
            if grant is not None:
                return Verdict(True, self.tokens, grant[1], grant[2], 0, self.window_s)
        table = self.table
        clock = table.clock
        num, den = clock.num, clock.den
        # `clock.at`, spelled out, and without its division where there is nothing to divide: 5 % of a check.
        v = clock.base
        elapsed_ns = now_ns - clock.since_ns
        if elapsed_ns > 0:
            v += elapsed_ns * num if den == 1 else elapsed_ns * num // den
        index = hash(key) & table.mask
        shard = table.young[index]
        state = shard.get(key)
        is_young = state is not None
        if state is None:
            state = table.old_state(key, index)
            if state is None:
                state = self._moved(key, v, now_ns)
        # A peek is told what cost 1 would get.
        units = (cost or 1) * UNIT
        allowed, spent = take(state, v, units, table.capacity)
        if allowed:
            retry_ns = 0
            if not cost:
                spent -= units
            elif is_young:
                shard[key] = v + spent
            else:
                table.put(key, v + spent)
        elif cost > self.limit.burst:
            retry_ns = NEVER
        else:
            retry_ns = min(clock.ns_until(v + spent + units - table.capacity, now_ns), DURATION_MAX_NS)
        left = table.capacity - spent
        reset_ns = -(-spent // num) if den == 1 else -(-spent * den // num)
        return Verdict(
            allowed,
            self.tokens,
            left // UNIT if left > 0 else 0,
            reset_ns if reset_ns < DURATION_MAX_NS else DURATION_MAX_NS,
            retry_ns,
            self.window_s,
        )

    def pass_gate(
        self, gate: Gate, check: Check, priority: int, verdict: Verdict, now_ns: int, *, is_shadow: bool
    ) -> Verdict:
        """Bring the verdict on a check, no peek, before the backend's gate; what it turns away has spent nothing."""
        gate.offer(priority)
        if not verdict.allowed:
            if is_shadow:
                gate.overrule()
            return verdict
        retry_ns = gate.admit(priority, now_ns, is_shadow=is_shadow)
        return self.turned_away(check.key, check.cost, retry_ns, now_ns) if retry_ns else verdict

    def turned_away(self, key: str, cost: int, retry_ns: int, now_ns: int) -> Verdict:
        """Undo what has just been granted: the backend takes no more for now."""
        table = self.table
        table.young[hash(key) & table.mask][key] -= cost * UNIT
        peeked = self.spend(key, 0, now_ns)
        return Verdict(
            False, peeked.limit, peeked.remaining, peeked.reset_ns, retry_ns, peeked.window_s, reason="backend_overload"
        )

    def _moved(self, key: str, v: int, now_ns: int) -> int:
        """The state of a key that is new here: moved from another plan of the rule, or else a full bucket."""
        for table in self.relatives:
            if table is not self.table and (spent := table.pop_spent(key, now_ns)):
                self.table.put_spent(key, spent, now_ns)
                self.changed.add(key)
                return v + spent
        return v

    def spent(self, key: str, now_ns: int) -> int:
        """Units that the key has spent."""
        state = self.table.state(key)
        return 0 if state is None else max(0, state - self.table.clock.at(now_ns))

    def bucket(self, key: str, now_ns: int) -> Bucket:
        """The key's bucket as it stands."""
        spent = self.spent(key, now_ns)
        remaining = whole_tokens(self.table.capacity - spent)
        return Bucket(self.segment, "token_bucket", self.tokens, -(-spent // UNIT), remaining)
