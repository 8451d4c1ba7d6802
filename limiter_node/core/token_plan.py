"""The plan of one token bucket: what nearly all rules are, and nearly all checks go through.

It is written for speed: the arithmetic of `algorithms.token_bucket` is spelled out where a call would cost 5 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limiter_node.core.algorithms.token_bucket import (
    PPM,
    UNIT,
    UNITS_PER_MICRO,
    compact,
    in_micros,
    in_units,
    slope,
    take,
)
from limiter_node.core.model import DURATION_MAX_NS, MICROS, NEVER, Bucket, Entry, Verdict
from limiter_node.core.plan import NoKin, PlanBase, continued, move, share_of
from limiter_node.core.table import SHARDS, Census, Table, whole_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limiter_node.core.limits import Limits
    from limiter_node.core.plan import Grant, Kin


LEASE_MAX_NS = 50_000_000
"""Longest life of a lease (see `lendings`): what is lost with it is used again so much later at worst."""


class TokenPlan(PlanBase):
    """A `Plan` of a single token bucket."""

    __slots__ = ("burst", "first_grant", "numbers", "table")

    def __init__(
        self,
        segment: str,
        limits: Limits,
        multiplier_ppm: int,
        now_ns: int,
        *,
        census: Census,
        kin: Kin,
        changed: set[str],
        parts: int = 1,
        shards: int = SHARDS,
    ) -> None:
        super().__init__(segment, kin=kin, changed=changed, parts=parts)
        self.table = Table(census, now_ns, UNIT, 1, 1, shards=shards)
        self.set_numbers(limits, multiplier_ppm, now_ns)

    def fits(self, limits: Limits) -> bool:
        """Whether the limits are one token bucket."""
        return len(limits) == 1 and limits[0].algorithm == "token_bucket"

    def set_numbers(self, limits: Limits, multiplier_ppm: int, now_ns: int) -> None:
        """Other numbers from now on; every key keeps what it has spent."""
        self.limits = limits
        self.multiplier_ppm = multiplier_ppm
        limit = limits[0]
        self.burst = limit.burst
        self.window_s = limit.window_s
        self.tokens = max(1, limit.burst * multiplier_ppm // (PPM * self.parts))
        self.numbers = self.tokens, self.window_s
        num, den = slope(limit.count, limit.period_s * self.parts, multiplier_ppm)
        self.table.set_numbers(now_ns, self.tokens * UNIT, num, den)
        # Of a key that was full, as most are of many keys: 0.2 us less than to divide anew. Never None: compiled, a
        # tuple that cannot be None is taken apart, and put together again whenever it is given away.
        self.first_grant: Grant | None = self.numbers, self.tokens - 1, min(-(-UNIT * den // num), DURATION_MAX_NS)
        if self.share is not None:
            share_of(self, self.share.parts, now_ns)

    def at_share(self, parts: int, now_ns: int) -> TokenPlan:
        """As `Plan` has it."""
        return TokenPlan(
            self.segment,
            self.limits,
            self.multiplier_ppm,
            now_ns,
            census=self.table.census,
            kin=NoKin(),
            changed=set(),
            parts=parts,
            shards=self.table.mask + 1,
        )

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
            elif self.kin.only is self and table.census.buckets < table.census.buckets_max:
                state = v  # new to the whole rule
            else:
                return None
        spent = state - v + UNIT if state > v else UNIT
        if spent > capacity:
            return None
        if old is not None and old.pop(key, None) is None:
            table.census.buckets += 1
        shard[key] = v + spent | 0  # `compact`, spelled out
        if spent == UNIT:
            return self.first_grant
        reset_ns = -(-spent // num) if den == 1 else -(-spent * den // num)
        return self.numbers, (capacity - spent) // UNIT, reset_ns if reset_ns < DURATION_MAX_NS else DURATION_MAX_NS

    def micros_spent(self, grant: Grant) -> int:
        """What a key has spent that was just given this, in millionths of a token.

        Rounded up to a millionth, and by what is refilled in a nanosecond.
        """
        numbers, remaining, reset_ns = grant
        if reset_ns >= DURATION_MAX_NS:
            return (numbers[0] - remaining) * MICROS  # in whole tokens: it is not told for how long exactly
        clock = self.table.clock
        return -(-reset_ns * clock.num // (clock.den * UNITS_PER_MICRO))

    def grants(self, keys: Sequence[str], now_ns: int) -> list[Grant | None]:
        """What `grant` comes to for each of these keys in turn, spelled out for all but a few.

        Of 100,000 keys of which most are full this takes 0.4 us a key and `grant` 1.1: nothing is looked up twice, and
        all that were full share one state, so that the memory of fewer states has to be fetched.
        """
        table, clock, census = self.table, self.table.clock, self.table.census
        young, olds, mask, capacity = table.young, table.old, table.mask, table.capacity
        num, den, numbers, first_grant = clock.num, clock.den, self.numbers, self.first_grant
        elapsed_ns = now_ns - clock.since_ns
        if elapsed_ns < 0:
            return [None] * len(keys)
        v = clock.base + (elapsed_ns * num if den == 1 else elapsed_ns * num // den)
        v_of_old = v + table.shift
        highest = v + capacity - UNIT  # state of a bucket that has one token left
        once_spent: Any = compact(v + UNIT)  # compiled, an int that is not Any is made anew wherever it is stored
        grants: list[Grant | None] = []
        append = grants.append
        for key in keys:
            index = hash(key) & mask
            shard = young[index]
            state = shard.get(key)
            if state is None:
                state = olds[index].get(key)
                if state is not None and state <= v_of_old:
                    del olds[index][key]
                elif state is None and self.kin.only is self and census.buckets < census.buckets_max:
                    census.buckets += 1  # new to the whole rule
                else:
                    append(self.grant(key, now_ns))
                    continue
                shard[key] = once_spent
                append(first_grant)
            elif state <= v:
                shard[key] = once_spent
                append(first_grant)
            elif state > highest:
                append(None)
            else:
                state += UNIT
                shard[key] = state | 0  # `compact`, spelled out
                spent = state - v
                reset_ns = -(-spent // num) if den == 1 else -(-spent * den // num)
                left = (capacity - spent) // UNIT
                append((numbers, left, reset_ns if reset_ns < DURATION_MAX_NS else DURATION_MAX_NS))
        return grants

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
                shard[key] = compact(v + spent)
            else:
                table.put(key, compact(v + spent))
        elif cost > self.burst:
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

    def charge(self, key: str, cost: int, now_ns: int) -> None:
        """As `Plan` has it."""
        self.charge_units(key, cost * UNIT, now_ns)

    def charge_units(self, key: str, units: int, now_ns: int) -> None:
        """As `charge`, in units."""
        if not self.has(key):
            self._moved(key, 0, now_ns)
        self.table.put_spent(key, self.spent(key, now_ns) + units, now_ns)

    def refund(self, key: str, cost: int, now_ns: int) -> int:
        """Give back up to `cost` whole tokens that the key has spent; returns how many."""
        spent = self.spent(key, now_ns)
        given = min(cost * UNIT, spent)
        if given == spent:
            self.table.forget(key)
        else:
            self.table.put(key, self.table.clock.at(now_ns) + spent - given)
        return given // UNIT

    def _moved(self, key: str, v: int, now_ns: int) -> int:
        """The state of a key that is new here: moved from another plan of the rule, or else a full bucket."""
        for plan in self.kin.places(key):
            if plan is not self and plan.has(key) and move(key, plan, self, now_ns):
                self.changed.add(key)
                return v + self.spent(key, now_ns)
        return v

    def has(self, key: str) -> bool:
        """Whether the key's bucket is here."""
        return self.table.state(key) is not None

    def account(self, key: str, now_ns: int) -> list[Entry]:
        """What the key has spent, for another plan."""
        spent = self.spent(key, now_ns)
        return [Entry("token_bucket", self.limits[0].period_s, in_micros(spent))] if spent else []

    def credit(self, key: str, account: Sequence[Entry], now_ns: int) -> bool:
        """Have the key spent at least what an account says; returns whether that is news."""
        for _, entry in continued(self.limits, account):
            if entry is not None:
                try:
                    return self.credit_units(key, in_units(entry.values), now_ns)
                except ValueError:
                    break  # of a peer with a bug: nothing to learn from
        return False

    def credit_units(self, key: str, units: int, now_ns: int) -> bool:
        """Have the key spent at least so many units; returns whether that is news."""
        return self.table.raise_spent(key, units, now_ns)

    def spent(self, key: str, now_ns: int) -> int:
        """Units that the key has spent."""
        state = self.table.state(key)
        return 0 if state is None else max(0, state - self.table.clock.at(now_ns))

    def lent(self, tokens: int) -> int:
        """What somebody has to take for spent who does not know when tokens that are lent come back, in units.

        With what is refilled in the longest life of a lease it is more than the lease until that is over.
        """
        return tokens * UNIT + LEASE_MAX_NS * self.table.clock.num // self.table.clock.den

    def bucket(self, key: str, now_ns: int) -> Bucket:
        """The key's bucket as it stands."""
        spent = self.spent(key, now_ns)
        remaining = whole_tokens(self.table.capacity - spent)
        return Bucket(self.segment, "token_bucket", self.tokens, -(-spent // UNIT), remaining)
