"""The token bucket against a twin that is too simple to be wrong.

The twin counts in fractions of a token, keeps one number per key and settles it at every event; it has no virtual
clock, no units, no tables, and never forgets. Traces of events run through an `Engine` and the twin side by side.
Rates per second, minute or hour must agree exactly, all others within one unit for every time the numbers changed.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from limiter_node.core.adaptive.evidence import Decision
from limiter_node.core.algorithms.token_bucket import PPM, UNIT, VirtualClock, slope, take
from limiter_node.core.backends import Record
from limiter_node.core.engine import Engine
from limiter_node.core.limits import COUNT_MAX, PERIOD_MAX_S, Limit
from limiter_node.core.model import COST_MAX, DURATION_MAX_NS, NEVER, Bucket, Check, Verdict
from limiter_node.core.rules import DEFAULT_SEGMENT, KeyEntry, Rule, parse_key_entry, parse_rule

START_NS = 987_654_321_987
RULE = "api"
KEYS = ("ann", "bob")
SEGMENTS = ("free", "premium", "unlisted")


# What may happen.


@dataclass(frozen=True)
class Wait:
    """Time passes: eighths of a token of the default numbers, and some nanoseconds."""

    eighths: int
    ns: int


@dataclass(frozen=True)
class Spend:
    """A check, or with cost 0 a peek."""

    key: str
    cost: int
    segment: str | None = None


@dataclass(frozen=True)
class Edit:
    """Another version of the rule."""

    document: dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Another multiplier, or none."""

    ppm: int | None


@dataclass(frozen=True)
class Entry:
    """Something special about a key, or nothing any more."""

    key: str
    document: dict[str, Any] | None


@dataclass(frozen=True)
class Tick:
    """The engine may forget what is full."""

    count: int


Event = Wait | Spend | Edit | Scale | Entry | Tick

# COUNT/PERIOD that are a whole number of units per nanosecond, and those that are not always.
EXACT_PERIODS = ("s", "m", "h", "2s", "10s", "30s", "60s", "90s", "15m", "45m", "3600s")
OTHER_PERIODS = ("d", "2d", "7d", "30d", "366d", "7s", "13s", "59s", "7m", "5h", "23h", "3601s")

counts = st.one_of(st.integers(1, 20), st.integers(1, 5_000), st.integers(1, COUNT_MAX))
bursts = st.one_of(st.integers(1, 12), st.integers(1, 12), st.integers(1, COUNT_MAX))
costs = st.one_of(st.integers(0, 3), st.integers(0, 13), st.integers(0, COST_MAX))
multipliers = st.one_of(st.none(), st.sampled_from([PPM, PPM // 2, PPM // 3, 1]), st.integers(1, PPM))


def _is_exact(rate: str) -> bool:
    """Whether the rate is a whole number of units per nanosecond: 13/30s is, 13/7s is not."""
    (limit,) = parse_rule(RULE, {"rate": rate}).limits[DEFAULT_SEGMENT]
    return slope(limit.count, limit.period_s)[1] == 1


exact_counts = st.one_of(st.integers(1, 20), st.integers(1, 5_000))
exact_rates = st.builds("{}/{}".format, exact_counts, st.sampled_from(EXACT_PERIODS)).filter(_is_exact)
all_rates = st.one_of(
    st.builds("{}/{}".format, counts, st.sampled_from(EXACT_PERIODS + OTHER_PERIODS)),
    st.builds("{}/{}s".format, counts, st.integers(1, PERIOD_MAX_S)),
)
waits = st.builds(
    Wait,
    st.one_of(st.integers(0, 16), st.integers(0, 100), st.sampled_from([8, 80, 1_000, 10_000])),
    st.one_of(st.integers(-1, 1), st.integers(0, 10**9), st.integers(0, 10**11)),
)
ticks = st.builds(Tick, st.integers(1, 4))


def limits(rates: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"rate": rates}, optional={"burst": bursts})


def rules(rates: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Rule documents with up to two segments."""
    segments = st.dictionaries(st.sampled_from(SEGMENTS[:2]), limits(rates), max_size=2)
    return st.builds(
        lambda limit, segments: {**limit, "segments": segments, "backend": "orders"}, limits(rates), segments
    )


def entries(rates: st.SearchStrategy[str]) -> st.SearchStrategy[Entry]:
    documents = st.fixed_dictionaries(
        {},
        optional={
            "segment": st.sampled_from(SEGMENTS),
            "rules": st.dictionaries(st.just(RULE), limits(rates), max_size=1),
        },
    )
    return st.builds(Entry, st.sampled_from(KEYS), st.one_of(st.none(), documents))


def traces(*kinds: st.SearchStrategy[Any], size: int = 30) -> st.SearchStrategy[list[Event]]:
    """Lists of events in which every second one, about, is a check."""
    return st.lists(st.one_of(*kinds), min_size=1, max_size=size)


plain_spends = st.builds(Spend, st.just(KEYS[0]), costs)
spends = st.builds(Spend, st.sampled_from(KEYS), costs, st.sampled_from([None, DEFAULT_SEGMENT, *SEGMENTS]))


# The two that must agree.


class Subject:
    """An engine with one rule, and the time it is told."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.engine = Engine(buckets_max=1_000_000)
        self.now_ns = START_NS
        self.default: Limit
        self.play(Edit(document))

    def play(self, event: Event) -> Verdict | None:
        match event:
            case Wait(eighths, ns):
                token_ns = self.default.period_s * 1_000_000_000 / Fraction(self.default.count)
                self.now_ns += max(0, ceil(token_ns * eighths / 8) + ns)
            case Spend(key, cost, segment):
                return self.spend(key, cost, segment)
            case Edit(document):
                rule = parse_rule(RULE, document)
                (self.default,) = rule.limits[DEFAULT_SEGMENT]
                self.engine.set_rule(RULE, rule, self.now_ns)
            case Scale(ppm):
                record = None if ppm is None else Record(Decision(ppm / PPM, "pinned", ""), pinned=True)
                self.engine.backends.set_record("orders", record, self.now_ns)
                self.engine.rescale("orders", self.now_ns)
            case Entry(key, document):
                entry = None if document is None else parse_key_entry(key, document)
                self.engine.set_entry(key, entry, self.now_ns)
            case Tick(count):
                for _ in range(count):
                    self.engine.tick(self.now_ns)
        return None

    def spend(self, key: str, cost: int, segment: str | None = None) -> Verdict:
        verdict = self.engine.check(Check(RULE, key, cost, segment), self.now_ns)
        assert isinstance(verdict, Verdict)
        return verdict

    def used(self, key: str, at_ns: int) -> int:
        """Whole tokens spent, rounded up: 0 only when the bucket is full."""
        bucket = self.engine.inspect(RULE, key, at_ns)
        assert isinstance(bucket, Bucket)
        return bucket.used


class Twin:
    """What each key has spent, in fractions of a token, and under which numbers it is refilled."""

    OWN = "the key's own"

    def __init__(self) -> None:
        self.rule: Rule | None = None
        self.ppm = PPM
        self.entries: dict[str, KeyEntry] = {}
        self.spent: dict[str, Fraction] = {}
        self.place: dict[str, str] = {}
        self.now_ns = START_NS
        self.changes = 0  # of numbers, or of a key to other numbers: each may round once

    def play(self, event: Event, now_ns: int) -> None:
        """Take any event but a check."""
        self.pass_time(now_ns)
        match event:
            case Edit(document):
                self.changes += 1
                self.rule = parse_rule(RULE, document)
            case Scale(ppm):
                self.changes += 1
                self.ppm = PPM if ppm is None else ppm
            case Entry(key, document):
                self.changes += 1
                if document is None:
                    self.entries.pop(key, None)
                else:
                    self.entries[key] = parse_key_entry(key, document)
                # A key's own numbers go at once when they are deleted; new ones count from its next check on.
                if self.place.get(key) == self.OWN:
                    self.place[key] = self.where(key, None)

    def pass_time(self, now_ns: int) -> None:
        elapsed_s = Fraction(now_ns - self.now_ns, 1_000_000_000)
        self.now_ns = now_ns
        for key, spent in self.spent.items():
            self.spent[key] = max(Fraction(0), spent - self.rate(key, self.place[key]) * elapsed_s)

    def where(self, key: str, segment: str | None) -> str:
        assert self.rule is not None
        entry = self.entries.get(key)
        if entry is not None and RULE in entry.limits:
            return self.OWN
        segment = segment or (entry.segment if entry is not None else None)
        return segment if segment in self.rule.limits else DEFAULT_SEGMENT

    def limit(self, key: str, place: str) -> Limit:
        assert self.rule is not None
        if place == self.OWN:
            return self.entries[key].limits[RULE][0]
        # A segment that is not listed any more has the default numbers.
        return self.rule.limits.get(place, self.rule.limits[DEFAULT_SEGMENT])[0]

    def rate(self, key: str, place: str) -> Fraction:
        """Tokens per second."""
        limit = self.limit(key, place)
        return Fraction(limit.count * self.ppm, limit.period_s * PPM)

    def capacity(self, key: str, place: str) -> int:
        return max(1, self.limit(key, place).burst * self.ppm // PPM)

    def spend(self, event: Spend, now_ns: int, allowed: bool | None = None) -> tuple[Verdict, Fraction]:
        """The verdict, and by how much the cost fits; `allowed` overrules it, for decisions at the very edge."""
        self.pass_time(now_ns)
        key, place = event.key, self.where(event.key, event.segment)
        if self.place.setdefault(key, place) != place:
            self.changes += 1
            self.place[key] = place
        limit, rate, capacity = self.limit(key, place), self.rate(key, place), self.capacity(key, place)
        margin = capacity - self.spent.get(key, Fraction(0)) - (event.cost or 1)
        if allowed is None:
            allowed = margin >= 0
        if allowed and event.cost:
            self.spent[key] = self.spent.get(key, Fraction(0)) + event.cost
        spent = self.spent.setdefault(key, Fraction(0))
        retry_ns = 0 if allowed else NEVER if event.cost > limit.burst else duration_ns(-margin / rate)
        reset_ns = duration_ns(spent / rate)
        remaining = max(0, floor(capacity - spent))
        return Verdict(allowed, capacity, remaining, reset_ns, retry_ns, limit.window_s), margin


def duration_ns(seconds: Fraction) -> int:
    """As a verdict tells it: rounded up, and centuries cut."""
    return min(ceil(seconds * 1_000_000_000), DURATION_MAX_NS)


def compare_exactly(document: dict[str, Any], trace: list[Event]) -> None:
    subject, twin = Subject(document), Twin()
    twin.play(Edit(document), START_NS)
    for event in trace:
        verdict = subject.play(event)
        if isinstance(event, Spend):
            assert verdict == twin.spend(event, subject.now_ns)[0], event
        else:
            twin.play(event, subject.now_ns)


def compare_within_a_unit(document: dict[str, Any], trace: list[Event]) -> None:
    """As `compare_exactly`, but each change of numbers so far may have rounded by less than one unit."""
    subject, twin = Subject(document), Twin()
    twin.play(Edit(document), START_NS)
    for event in trace:
        verdict = subject.play(event)
        if not isinstance(event, Spend):
            twin.play(event, subject.now_ns)
            continue
        assert verdict is not None
        expected, margin = twin.spend(event, subject.now_ns, verdict.allowed)
        # The first version of the rule is no change.
        slack = Fraction(twin.changes, UNIT)
        slack_ns = slack / twin.rate(event.key, twin.place[event.key]) * 1_000_000_000 + 1
        assert margin > -slack if verdict.allowed else margin < slack, event
        assert (verdict.limit, verdict.window_s) == (expected.limit, expected.window_s), event
        left = expected.limit - twin.spent[event.key]
        assert max(0, floor(left - slack)) <= verdict.remaining <= max(0, floor(left + slack)), event
        assert abs(verdict.reset_ns - expected.reset_ns) <= slack_ns, event
        if verdict.allowed or event.cost > expected.limit:
            assert (verdict.retry_ns > 0) == (expected.retry_ns > 0), event
        else:
            assert abs(verdict.retry_ns - expected.retry_ns) <= slack_ns, event


# Against the twin.


@given(rules(exact_rates), traces(spends, spends, waits, ticks))
def test_every_field_of_every_verdict_is_exact_for_rates_per_second_minute_and_hour(
    document: dict[str, Any], trace: list[Event]
) -> None:
    compare_exactly(document, trace)


@given(
    rules(exact_rates),
    traces(spends, spends, waits, waits, ticks, st.builds(Edit, rules(exact_rates)), entries(exact_rates), size=40),
)
def test_changes_of_rules_segments_and_keys_are_exact_for_rates_per_second_minute_and_hour(
    document: dict[str, Any], trace: list[Event]
) -> None:
    compare_exactly(document, trace)


@given(rules(all_rates), traces(spends, spends, waits, ticks))
def test_any_rate_is_right_within_one_unit(document: dict[str, Any], trace: list[Event]) -> None:
    compare_within_a_unit(document, trace)


@given(
    rules(all_rates),
    traces(
        spends,
        spends,
        waits,
        waits,
        ticks,
        st.builds(Scale, multipliers),
        st.builds(Edit, rules(all_rates)),
        entries(all_rates),
        size=40,
    ),
)
def test_changes_of_any_kind_round_by_less_than_a_unit_each(document: dict[str, Any], trace: list[Event]) -> None:
    compare_within_a_unit(document, trace)


# The promises, one by one.


@given(
    limits(all_rates),
    traces(plain_spends, plain_spends, waits, ticks, st.builds(Scale, multipliers), st.builds(Edit, rules(all_rates))),
)
def test_no_window_of_time_is_granted_more_than_burst_plus_what_was_refilled_in_it(
    document: dict[str, Any], trace: list[Event]
) -> None:
    # For every pair of grants: what was granted from the first to the last <= the capacity at the last + the refill
    # between them, each stretch at its own rate.
    subject, ppm, refilled, is_exact = Subject({**document, "backend": "orders"}), PPM, Fraction(0), True
    grants: list[tuple[Fraction, int, int]] = []
    for event in trace:
        before_ns, limit = subject.now_ns, subject.default
        is_exact = is_exact and slope(limit.count, limit.period_s, ppm)[1] == 1
        verdict = subject.play(event)
        elapsed_s = Fraction(subject.now_ns - before_ns, 1_000_000_000)
        refilled += elapsed_s * Fraction(limit.count * ppm, limit.period_s * PPM)
        if isinstance(event, Scale):
            ppm = event.ppm or PPM
        if isinstance(event, Spend) and verdict is not None and verdict.allowed:
            grants.append((refilled, event.cost, verdict.limit))
    granted = [0, *accumulate(cost for _, cost, _ in grants)]
    for last, (until, _, capacity) in enumerate(grants):
        for first, (since, _, _) in enumerate(grants[: last + 1]):
            excess = granted[last + 1] - granted[first] - capacity - (until - since)
            assert excess <= 0 if is_exact else excess < Fraction(1, UNIT), (first, last)


@given(rules(all_rates), traces(spends, waits, st.builds(Scale, multipliers), entries(all_rates)))
def test_a_denied_check_changes_nothing(document: dict[str, Any], trace: list[Event]) -> None:
    subject = Subject(document)
    for event in trace:
        if not isinstance(event, Spend):
            subject.play(event)
            continue
        peek = subject.spend(event.key, 0, event.segment)
        before = peek, subject.used(event.key, subject.now_ns), subject.engine.buckets
        verdict = subject.spend(event.key, event.cost, event.segment)
        if not verdict.allowed:
            peek = subject.spend(event.key, 0, event.segment)
            assert (peek, subject.used(event.key, subject.now_ns), subject.engine.buckets) == before
            assert (verdict.remaining, verdict.reset_ns) == (peek.remaining, peek.reset_ns)


@given(rules(all_rates), traces(spends, waits, st.builds(Scale, multipliers), entries(all_rates)))
def test_cost_0_spends_nothing_and_says_what_cost_1_would_have_got(
    document: dict[str, Any], trace: list[Event]
) -> None:
    subject = Subject(document)
    for event in trace:
        if not isinstance(event, Spend):
            subject.play(event)
            continue
        peek = subject.spend(event.key, 0, event.segment)
        assert subject.spend(event.key, 0, event.segment) == peek
        one = subject.spend(event.key, 1, event.segment)
        assert (peek.allowed, peek.limit, peek.retry_ns) == (one.allowed, one.limit, one.retry_ns)
        assert peek.remaining == one.remaining + one.allowed


@given(
    rules(all_rates),
    traces(spends, spends, waits, ticks, st.builds(Scale, multipliers), st.builds(Edit, rules(all_rates))),
)
@example({"rate": "1/366d", "backend": "orders"}, [Spend("ann", 1), Scale(333_333), Wait(3, 1), Spend("ann", 1)])
def test_retry_after_is_exact_denied_one_nanosecond_before_and_allowed_at_it(
    document: dict[str, Any], trace: list[Event]
) -> None:
    subject = Subject(document)
    for event in trace:
        verdict = subject.play(event)
        # A cost between the scaled and the full capacity waits for the multiplier, which nobody can time.
        if not isinstance(event, Spend) or verdict is None or verdict.allowed or event.cost > verdict.limit:
            continue
        assume(verdict.retry_ns < DURATION_MAX_NS)
        assert verdict.retry_ns > 0
        subject.now_ns += verdict.retry_ns - 1
        early = subject.spend(event.key, event.cost, event.segment)
        assert (early.allowed, early.retry_ns) == (False, 1)
        subject.now_ns += 1
        assert subject.spend(event.key, event.cost, event.segment).allowed


@given(rules(all_rates), traces(spends, waits))
def test_retry_after_is_never_only_above_the_capacity(document: dict[str, Any], trace: list[Event]) -> None:
    subject = Subject(document)
    for event in trace:
        verdict = subject.play(event)
        if isinstance(event, Spend) and verdict is not None:
            assert (verdict.retry_ns == NEVER) == (event.cost > verdict.limit)
            assert verdict.allowed == (verdict.retry_ns == 0)


@given(
    rules(exact_rates),
    traces(spends, spends, waits, ticks, st.builds(Edit, rules(exact_rates)), entries(exact_rates)),
)
def test_reset_is_exact_not_full_one_nanosecond_before_and_full_at_it(
    document: dict[str, Any], trace: list[Event]
) -> None:
    subject = Subject(document)
    for event in trace:
        verdict = subject.play(event)
        if not isinstance(event, Spend) or verdict is None:
            continue
        assume(verdict.reset_ns < DURATION_MAX_NS)
        assert subject.used(event.key, subject.now_ns + verdict.reset_ns) == 0
        if verdict.reset_ns:
            assert subject.used(event.key, subject.now_ns + verdict.reset_ns - 1) > 0


@given(rules(all_rates), traces(spends, spends, waits, st.builds(Scale, multipliers), entries(all_rates)))
def test_reset_is_never_early_and_late_by_less_than_the_time_of_a_unit(
    document: dict[str, Any], trace: list[Event]
) -> None:
    subject, twin = Subject(document), Twin()
    twin.play(Edit(document), START_NS)
    for event in trace:
        verdict = subject.play(event)
        if not isinstance(event, Spend) or verdict is None:
            twin.play(event, subject.now_ns)
            continue
        twin.spend(event, subject.now_ns, verdict.allowed)
        assume(verdict.reset_ns < DURATION_MAX_NS)
        unit_ns = ceil(1_000_000_000 / (twin.rate(event.key, twin.place[event.key]) * UNIT))
        assert subject.used(event.key, subject.now_ns + verdict.reset_ns) == 0
        if verdict.reset_ns > unit_ns:
            assert subject.used(event.key, subject.now_ns + verdict.reset_ns - 1 - unit_ns) > 0


@given(
    rules(exact_rates),
    traces(spends, spends, waits, waits, ticks, st.builds(Edit, rules(exact_rates)), entries(exact_rates), size=50),
)
def test_forgetting_changes_no_later_answer_whatever_else_changes(document: dict[str, Any], trace: list[Event]) -> None:
    forgetful, mindful = Subject(document), Subject(document)
    for event in trace:
        verdict = forgetful.play(event)
        if not isinstance(event, Tick):
            assert verdict == mindful.play(event), event


@given(
    rules(all_rates),
    traces(spends, spends, waits, waits, ticks, st.builds(Scale, multipliers), entries(all_rates), size=50),
)
def test_forgetting_changes_no_later_answer_at_any_rate(document: dict[str, Any], trace: list[Event]) -> None:
    forgetful, mindful = Subject(document), Subject(document)
    for event in trace:
        verdict = forgetful.play(event)
        if not isinstance(event, Tick):
            assert verdict == mindful.play(event), event


@given(rules(all_rates), traces(spends, spends, waits, size=20))
def test_everything_is_forgotten_once_it_is_full(document: dict[str, Any], trace: list[Event]) -> None:
    subject = Subject(document)
    for event in trace:
        subject.play(event)
    resets_ns = [subject.spend(key, 0, segment).reset_ns for key in KEYS for segment in (None, *SEGMENTS)]
    assume(max(resets_ns) < DURATION_MAX_NS)
    longest_s = max(limit.window_s for (limit,) in parse_rule(RULE, document).limits.values())
    # Two generations, each let go within a refill time and a sweep; the first bucket may have come a sweep late.
    for _ in range(4):
        subject.now_ns += max(*resets_ns, longest_s * 1_000_000_000) + 1_000_000_000
        subject.play(Tick(2))
    assert subject.engine.buckets == 0
    assert subject.spend(KEYS[0], 0).reset_ns == 0


@given(bursts, bursts, st.data())
def test_a_burst_change_keeps_what_was_spent(before: int, after: int, data: st.DataObject) -> None:
    spent = data.draw(st.integers(1, before))
    subject = Subject({"rate": "1/366d", "burst": before})
    assert subject.spend("ann", spent).remaining == before - spent
    subject.play(Edit({"rate": "1/366d", "burst": after}))
    assert subject.used("ann", subject.now_ns) == spent
    peek = subject.spend("ann", 0)
    assert (peek.limit, peek.remaining) == (after, max(0, after - spent))


@given(
    st.integers(1, 1_000),
    st.integers(1, 1_000),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
)
def test_a_rate_change_counts_each_stretch_at_its_own_rate(
    rate_before: int, rate_after: int, before_ns: int, after_ns: int
) -> None:
    burst = 100_000
    subject = Subject({"rate": f"{rate_before}/s", "burst": burst})
    subject.spend("ann", burst)
    subject.now_ns += before_ns
    subject.play(Edit({"rate": f"{rate_after}/s", "burst": burst}))
    subject.now_ns += after_ns
    refilled = (before_ns * rate_before + after_ns * rate_after) // 1_000_000_000
    assert subject.spend("ann", 0).remaining == min(burst, refilled)


@given(st.lists(st.tuples(st.sampled_from([None, *SEGMENTS]), st.integers(1, 9)), min_size=1, max_size=12))
def test_a_key_takes_what_it_has_spent_from_segment_to_segment(steps: list[tuple[str | None, int]]) -> None:
    numbers = {"free": {"rate": "1/366d", "burst": 200}, "premium": {"rate": "1/366d", "burst": 5_000}}
    subject = Subject({"rate": "1/366d", "burst": 1_000, "segments": numbers})
    spent = 0
    for segment, cost in steps:
        verdict = subject.spend("ann", cost, segment)
        spent += cost
        limit = {"free": 200, "premium": 5_000}.get(segment or "", 1_000)
        assert (verdict.limit, verdict.remaining) == (limit, limit - spent)
    assert subject.engine.buckets == 1


def test_a_key_keeps_what_it_has_spent_through_own_numbers_and_retired_segments() -> None:
    listed = {"rate": "1/366d", "burst": 100, "segments": {"premium": {"rate": "1/366d", "burst": 1_000}}}
    subject = Subject(listed)
    assert subject.spend("ann", 60, "premium").remaining == 940
    # The segment is struck off the rule: the default numbers, and later the segment's again.
    subject.play(Edit({"rate": "1/366d", "burst": 100}))
    assert subject.spend("ann", 0, "premium").remaining == 40
    subject.play(Tick(2))
    subject.play(Edit(listed))
    assert subject.spend("ann", 0, "premium").remaining == 940
    # Numbers of its own, and then none.
    subject.play(Entry("ann", {"rules": {RULE: {"rate": "1/366d", "burst": 70}}}))
    verdict = subject.spend("ann", 5, "premium")
    assert (verdict.limit, verdict.remaining) == (70, 5)
    subject.play(Entry("ann", {"segment": "premium"}))
    assert subject.spend("ann", 0).remaining == 935
    subject.play(Entry("ann", None))
    assert subject.spend("ann", 0).remaining == 35
    assert subject.engine.buckets == 1


# The law alone.


@given(st.integers(1, COUNT_MAX), st.integers(1, PERIOD_MAX_S), st.integers(1, PPM))
def test_the_slope_is_the_rate_in_units_per_nanosecond_and_whole_for_seconds_minutes_and_hours(
    count: int, period_s: int, ppm: int
) -> None:
    num, den = slope(count, period_s, ppm)
    assert Fraction(num, den) == Fraction(count * UNIT * ppm, period_s * 1_000_000_000 * PPM)
    for whole_s in (1, 60, 3_600):
        assert slope(count, whole_s)[1] == 1


@given(st.integers(-50, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 50))
def test_take_spends_if_it_fits_and_else_leaves_what_was_spent(state: int, v: int, cost: int, capacity: int) -> None:
    spent = max(0, state - v)
    fits = spent + cost <= capacity
    assert take(state, v, cost, capacity) == (fits, spent + cost if fits else spent)


slopes = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))


@given(slopes, st.lists(st.tuples(st.integers(0, 10**6), slopes), max_size=20))
def test_the_clock_never_goes_backwards_and_loses_less_than_a_unit_with_each_change(
    first: tuple[int, int], changes: list[tuple[int, tuple[int, int]]]
) -> None:
    clock, now_ns, exact, rate = VirtualClock(0, *first), 0, Fraction(0), Fraction(*first)
    for count, (elapsed_ns, (num, den)) in enumerate(changes):
        before = clock.at(now_ns)
        now_ns += elapsed_ns
        exact += rate * elapsed_ns
        assert before <= clock.at(now_ns) <= exact
        clock.set_rate(now_ns, num, den)
        rate = Fraction(num, den)
        assert exact - count - 1 < clock.at(now_ns) <= exact


@given(slopes, st.lists(st.tuples(st.integers(0, 10**6), slopes), max_size=5), st.integers(0, 10**9))
def test_ns_until_is_the_first_nanosecond_at_which_the_clock_reads_so(
    first: tuple[int, int], changes: list[tuple[int, tuple[int, int]]], ahead: int
) -> None:
    clock, now_ns = VirtualClock(0, *first), 0
    for elapsed_ns, (num, den) in changes:
        now_ns += elapsed_ns
        clock.set_rate(now_ns, num, den)
    v = clock.at(now_ns) + ahead
    wait_ns = clock.ns_until(v, now_ns)
    assert clock.at(now_ns + wait_ns) >= v
    assert wait_ns == 0 or clock.at(now_ns + wait_ns - 1) < v


def test_a_time_before_the_last_change_counts_as_that_changes() -> None:
    clock = VirtualClock(100, 5, 1)
    clock.set_rate(200, 7, 1)
    assert clock.at(150) == clock.at(200) == 500
    clock.set_rate(150, 9, 1)
    assert (clock.at(200), clock.at(201)) == (500, 509)
    assert clock.ns_until(509, 150) == 51


@pytest.mark.parametrize(
    ("steps", "remaining"),
    [
        # From the issue: an over-ask spends nothing.
        (
            [(1_000, True), (1_500, False), (500, True), (400, True), (100, True), (1, False)],
            [1_000, 1_000, 500, 100, 0, 0],
        ),
        ([(1, True), (100, True), (2_001, False)], [1_999, 1_899, 1_899]),
    ],
)
def test_an_over_ask_spends_nothing_and_nothing_is_truncated(
    steps: list[tuple[int, bool]], remaining: list[int]
) -> None:
    subject = Subject({"rate": "2000/s", "burst": 2_000})
    verdicts = [subject.spend("ann", cost) for cost, _ in steps]
    assert [verdict.allowed for verdict in verdicts] == [allowed for _, allowed in steps]
    assert [verdict.remaining for verdict in verdicts] == remaining
