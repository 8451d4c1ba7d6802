"""Tables against a dict, and what an engine forgets when it has too much to remember.

The twin of a table is a dict that never forgets and a clock whose origin never moves. Whatever the table lets go must
have been full, and whatever it keeps must read as in the dict.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from limiter_node.core.algorithms.token_bucket import UNIT, VirtualClock
from limiter_node.core.engine import Engine
from limiter_node.core.model import Bucket, Check, Verdict
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.core.table import Census, Table, whole_tokens

KEYS = [f"user:{number}" for number in range(4)]
keys = st.sampled_from(KEYS)
capacities = st.one_of(st.sampled_from([8, 80, 800]), st.integers(1, 1_000))
slopes = st.sampled_from([(1, 1), (1, 1), (5, 1), (1, 3), (50, 7)])


class TableAgainstADict(RuleBasedStateMachine):
    """Any order of what an engine does to a table."""

    @initialize(capacity=capacities, slope=slopes, shards=st.sampled_from([1, 2, 16]))
    def begin(self, capacity: int, slope: tuple[int, int], shards: int) -> None:
        self.now_ns = 1_000_000
        self.census = Census()
        self.table = Table(self.census, self.now_ns, capacity, *slope, shards=shards)
        self.clock = VirtualClock(self.now_ns, *slope)
        self.full_at: dict[str, int] = {}

    def spent(self, key: str) -> int:
        return max(0, self.full_at.get(key, 0) - self.clock.at(self.now_ns))

    @rule(eighths=st.integers(0, 20), ns=st.integers(-1, 1), is_told=st.booleans())
    def time_passes(self, eighths: int, ns: int, is_told: bool) -> None:
        """Eighths of the time that the capacity takes to be refilled, where everything here has its edges."""
        refill_ns = -(-self.table.capacity * eighths * self.clock.den // (8 * self.clock.num))
        self.now_ns += max(0, refill_ns + ns)
        if is_told:
            self.rotate()

    def rotate(self) -> None:
        before = len(self.table)
        dropped = self.table.rotate(self.now_ns)
        assert sum(map(len, dropped)) == before - len(self.table)
        for shard in dropped:
            for key in shard:
                assert self.spent(key) == 0
                assert self.table.state(key) is None

    @rule(key=keys, eighths=st.integers(0, 8))
    def put(self, key: str, eighths: int) -> None:
        spent = self.table.capacity * eighths // 8
        self.table.put(key, self.table.clock.at(self.now_ns) + spent)
        self.full_at[key] = self.clock.at(self.now_ns) + spent

    @rule(key=keys, eighths=st.integers(0, 40))
    def put_what_comes_from_elsewhere(self, key: str, eighths: int) -> None:
        spent = self.table.capacity * eighths // 8
        self.table.put_spent(key, spent, self.now_ns)
        self.full_at[key] = self.clock.at(self.now_ns) + spent

    @rule(key=keys)
    def pop(self, key: str) -> None:
        expected = self.spent(key)
        popped = self.table.pop_spent(key, self.now_ns)
        assert (popped or 0) == expected
        assert self.table.state(key) is None
        self.full_at.pop(key, None)

    @rule(capacity=capacities, slope=slopes)
    def change_numbers(self, capacity: int, slope: tuple[int, int]) -> None:
        self.table.set_numbers(self.now_ns, capacity, *slope)
        self.clock.set_rate(self.now_ns, *slope)

    @precondition(lambda self: len(self.full_at) == len(KEYS))
    @rule()
    def release(self) -> None:
        stored = len(self.table)
        assert sum(map(len, self.table.release())) == stored
        assert len(self.table) == 0
        self.full_at.clear()

    @invariant()
    def every_key_reads_as_in_the_dict(self) -> None:
        v = self.table.clock.at(self.now_ns)
        for key in KEYS:
            state = self.table.state(key)
            assert max(0, (v if state is None else state) - v) == self.spent(key)

    @invariant()
    def the_census_counts_what_is_stored_once(self) -> None:
        walked = [
            entry for index in range(self.table.mask + 1) for entry in self.table.shard_entries(index, self.now_ns)
        ]
        assert self.census.buckets == len(self.table) == len(walked)
        assert dict(walked) == {key: self.spent(key) for key, _ in walked}
        assert {key for key in KEYS if self.spent(key)} <= dict(walked).keys()
        assert len(dict(walked)) == len(walked)

    @invariant()
    def the_time_until_full_is_the_first_at_which_it_is(self) -> None:
        num, den = self.table.clock.num, self.table.clock.den
        for key in KEYS:
            spent = self.spent(key)
            wait_ns = self.table.ns_until_full(spent)
            assert wait_ns * num >= spent * den
            assert wait_ns == 0 or (wait_ns - 1) * num < spent * den


TestTableAgainstADict = TableAgainstADict.TestCase


# Units, one a nanosecond. What is stored must outlive every rotation until it is full, which is at 100.
ORDERS = {
    "within the capacity": [("capacity", 100), ("put", 100)],
    "beyond the capacity": [("capacity", 10), ("put", 100)],
    "capacity cut": [("capacity", 100), ("put", 100), ("capacity", 10)],
    "capacity raised and cut": [("capacity", 10), ("capacity", 100), ("put", 100), ("capacity", 10)],
    "capacity raised": [("capacity", 10), ("put", 100), ("capacity", 50)],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
@pytest.mark.parametrize("step_ns", [1, 7, 10, 49, 99])
def test_no_rotation_forgets_a_bucket_a_unit_too_early(order: list[tuple[str, int]], step_ns: int) -> None:
    table = Table(Census(), 0, 10, 1, 1)
    start_ns = 10  # the first rotation is due: it comes at the very moment at which the bucket is stored
    for what, units in order:
        if what == "capacity":
            table.set_numbers(start_ns, units, 1, 1)
        elif units > table.capacity:
            table.put_spent("k", units, start_ns)
        else:
            table.put("k", table.clock.at(start_ns) + units)
    for elapsed_ns in [*range(0, 99, step_ns), 99]:
        now_ns = start_ns + elapsed_ns
        assert table.rotate(now_ns) == []
        assert (table.state("k") or 0) - table.clock.at(now_ns) == 100 - elapsed_ns


@given(capacities, slopes, st.dictionaries(keys, st.integers(0, 5_000)), st.integers(0, 500))
def test_an_idle_table_is_empty_after_two_refill_times(
    capacity: int, slope: tuple[int, int], buckets: dict[str, int], early_ns: int
) -> None:
    census = Census()
    table = Table(census, 0, capacity, *slope)
    for key, spent in buckets.items():
        table.put_spent(key, spent, 0)
    table.rotate(early_ns)
    refill_ns = table.ns_until_full(max([capacity, *buckets.values()])) + 1
    for times in (1, 2, 3):
        table.rotate(early_ns + times * refill_ns)
    assert census.buckets == len(table) == 0


@pytest.mark.parametrize(("units", "tokens"), [(-1, 0), (0, 0), (UNIT - 1, 0), (UNIT, 1), (UNIT + 1, 1), (5 * UNIT, 5)])
def test_whole_tokens_are_rounded_down_and_never_negative(units: int, tokens: int) -> None:
    assert whole_tokens(units) == tokens


# The cap on buckets in memory.

RULES = {
    "quick": {"rate": "100/s", "burst": 1_000, "segments": {"slow": {"rate": "1/s", "burst": 500}}},
    "daily": {"rate": "3/d", "burst": 1_000},
}


def until_full_s(rule_name: str, segment: str | None, used: int) -> float:
    (limit,) = parse_rule(rule_name, RULES[rule_name]).limits[segment or "default"]
    return used * limit.period_s / limit.count


checks = st.builds(
    Check,
    st.sampled_from(list(RULES)),
    st.integers(0, 60).map("k{}".format),
    st.integers(1, 400),
    st.sampled_from([None, None, "slow"]),
)


@given(st.integers(1, 40), st.lists(checks, max_size=120))
def test_when_room_is_made_exactly_those_furthest_from_full_survive(cap: int, asked: list[Check]) -> None:
    # No time passes, so what a key has used is what it was granted; `kept` is {bucket: seconds until full}.
    engine = Engine(buckets_max=cap)
    for name, document in RULES.items():
        engine.set_rule(name, parse_rule(name, document), 0)
    engine.set_entry("k7", parse_key_entry("k7", {"rules": {"daily": {"rate": "1/d", "burst": 900}}}), 0)
    kept: dict[tuple[str, str], float] = {}
    evictions = 0
    for check in asked:
        segment = check.segment if check.rule == "quick" else None
        own = check.rule == "daily" and check.key == "k7"
        verdict = engine.check(check, 0)
        assert isinstance(verdict, Verdict)
        used = verdict.limit - verdict.remaining
        if used:
            kept[check.rule, check.key] = used * 86_400.0 if own else until_full_s(check.rule, segment, used)
        expected = len(kept)
        if expected > cap:
            expected -= max(1, expected // 16)
        assert engine.buckets == expected <= cap
        present = {pair for pair in kept if _used(engine, *pair)}
        gone = kept.keys() - present
        assert len(present) == expected
        if gone:
            assert max(kept[pair] for pair in gone) <= min((kept[pair] for pair in present), default=float("inf"))
        evictions += len(gone)
        kept = {pair: kept[pair] for pair in present}
    assert engine.evicted == evictions


def _used(engine: Engine, rule_name: str, key: str) -> int:
    bucket = engine.inspect(rule_name, key, 0)
    assert isinstance(bucket, Bucket)
    return bucket.used


def test_buckets_that_are_full_go_first_and_are_not_counted_as_evicted() -> None:
    engine = Engine(buckets_max=32)
    engine.set_rule("quick", parse_rule("quick", RULES["quick"]), 0)
    for number in range(32):
        engine.check(Check("quick", f"k{number}"), 0)
    engine.check(Check("quick", "late"), 1_000_000_000)
    assert (engine.buckets, engine.evicted) == (31, 0)


def test_a_table_too_large_to_be_looked_at_whole_stays_within_the_cap_too() -> None:
    engine = Engine(buckets_max=6_000)
    engine.set_rule("daily", parse_rule("daily", RULES["daily"]), 0)
    most = 0
    for number in range(9_000):
        engine.check(Check("daily", f"k{number}", 1 + number % 7), number)
        most = max(most, engine.buckets)
    assert most <= 6_000 < most + 4_096 // 16 + 2
    assert engine.buckets + engine.evicted == 9_000
    # A sample of the keys by hash is as good as all: those that spent most are nearly all still there.
    spent_most = [f"k{number}" for number in range(9_000) if number % 7 == 6]
    assert sum(_used(engine, "daily", key) > 0 for key in spent_most) > 0.9 * len(spent_most)


def test_shares_for_deciding_alone_count_and_make_room_as_well() -> None:
    engine = Engine(buckets_max=10)
    engine.set_rule("daily", parse_rule("daily", RULES["daily"]), 0)
    for number in range(50):
        engine.check_alone(Check("daily", f"k{number}"), 3, 0)
        assert engine.buckets <= 10
    assert engine.evicted == 40
