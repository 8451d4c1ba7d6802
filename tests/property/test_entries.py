"""Entries against a dumb twin that scans them all, and an engine full of patterns against sums of what was spent."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.engine import Engine
from limiter_node.core.entries import Entries
from limiter_node.core.model import MICROS, Bucket, Check, Verdict
from limiter_node.core.rules import DEFAULT_SEGMENT, parse_key_entry, parse_rule

if TYPE_CHECKING:
    from limiter_node.core.rules import KeyEntry

RULE = "api"
RULE_DOCUMENT = {"rate": "1/366d", "burst": 50}
SEGMENTS = {"free": {"rate": "1/366d", "burst": 20}, "premium": {"rate": "1/366d", "burst": 90}}

# Few letters and few addresses, so that most names match something.
words = st.text("ab", min_size=1, max_size=5)
addresses = st.one_of(
    st.builds("10.{}.{}.1".format, st.integers(0, 2), st.integers(0, 2)),
    st.builds("2001:db8:{}::{}".format, st.integers(0, 1), st.integers(0, 1)),
)
networks = st.one_of(
    st.builds(
        lambda address, length: str(ip_network(f"{address}/{length}", strict=False)), addresses, st.integers(0, 32)
    ),
    st.sampled_from(["2001:db8::/32", "2001:DB8::/32", "2001:db8:0::/32", "::/0", "2001:db8::/48", "10.1.1.1/32"]),
)
globs = st.one_of(
    st.text("ab*?", min_size=1, max_size=6),
    st.sampled_from(["10.*", "10.1.*", "10.?.1.1", "*.1", "*::1", "*0*", "10.*/*"]),
)
keys = st.one_of(words, addresses, networks, globs)


def matches_glob(glob: str, key: str) -> bool:
    if not glob:
        return not key
    if glob[0] == "*":
        return any(matches_glob(glob[1:], key[start:]) for start in range(len(key) + 1))
    return bool(key) and glob[0] in ("?", key[0]) and matches_glob(glob[1:], key[1:])


@cache
def claim(name: str, key: str) -> tuple[int, int, str] | None:
    """How well a name matches a key, less is better, as the docstring of `entries` has it."""
    if name == key:
        return 0, 0, name
    try:
        network, address = ip_network(name), ip_address(key)
    except ValueError:
        pass
    else:
        return (1, -network.prefixlen, name) if "/" in name and address in network else None
    is_glob = "*" in name or "?" in name
    literals = sum(letter not in "*?" for letter in name)
    return (2, -literals, name) if is_glob and matches_glob(name, key) else None


def winner(names: Any, key: str) -> list[str]:
    """All names that match, the winner first."""
    claims = [claim(name, key) for name in names]
    return [name for _, _, name in sorted(filter(None, claims))]


@given(st.lists(st.tuples(keys, st.booleans()), max_size=20), st.lists(keys, min_size=1, max_size=8))
def test_the_entries_found_are_those_that_a_scan_of_all_finds(
    changes: list[tuple[str, bool]], asked: list[str]
) -> None:
    entries = Entries()
    twin: dict[str, KeyEntry] = {}
    for number, (name, is_put) in enumerate(changes):
        entry = parse_key_entry(name, {"segment": f"s{number}"}) if is_put else None
        assert entries.put(name, entry) == twin.pop(name, None)
        if entry is not None:
            twin[name] = entry
        for key in asked:
            expected = [twin[each] for each in winner(twin, key)]
            assert list(entries.matching(key)) == expected
            assert entries.find(key) == (expected[0] if expected else None)
    assert len(entries) == len(twin)


# The engine. Nothing is refilled in its time, so that what a key has spent is a sum and every move must keep it.

KEYS = ["10.1.1.1", "10.1.1.2", "10.1.2.1", "ab"]
NAMES = [*KEYS[:2], "10.1.1.0/24", "10.1.0.0/16", "10.1.*", "10.*1", "*b", "*"]

documents = st.one_of(
    st.none(),
    st.sampled_from([{}, {"segment": "free"}, {"segment": "unlisted"}, {"rules": {"other": {"rate": "1/s"}}}]),
    st.builds(
        lambda burst, segment: {"segment": segment, "rules": {RULE: {"rate": "1/366d", "burst": burst}}},
        st.sampled_from([5, 10, 10, 30]),
        st.sampled_from([None, "premium"]),
    ),
)
events = st.one_of(
    st.tuples(st.just("spend"), st.sampled_from(KEYS), st.integers(0, 3), st.sampled_from([None, None, "premium"])),
    st.tuples(st.just("entry"), st.sampled_from(NAMES), documents),
    st.tuples(st.just("entry"), st.sampled_from(NAMES), documents),
    st.tuples(st.just("rule"), st.sampled_from([{}, {"free": {"rate": "1/366d", "burst": 15}}, SEGMENTS])),
    st.tuples(st.sampled_from(["forget", "copy"]), st.sampled_from(KEYS)),
    st.tuples(st.just("sweep")),
)


class World:
    """An engine, one that is its replica, and what each key has spent under which numbers."""

    def __init__(self) -> None:
        self.engine, self.replica = Engine(buckets_max=1_000), Engine(buckets_max=1_000)
        self.entries: dict[str, Any] = {}
        self.spent = dict.fromkeys(KEYS, 0)
        self.rule(SEGMENTS)

    def burst(self, key: str, segment: str | None) -> int:
        names = winner(self.entries, key)
        entry = self.entries[names[0]] if names else {}
        own = entry.get("rules", {}).get(RULE)
        segment = segment or entry.get("segment") or DEFAULT_SEGMENT
        return int((own or self.segments.get(segment, RULE_DOCUMENT))["burst"])

    def spend(self, key: str, cost: int, segment: str | None) -> None:
        verdict, burst = self.engine.check(Check(RULE, key, cost, segment), 0), self.burst(key, segment)
        assert isinstance(verdict, Verdict)
        assert (verdict.limit, verdict.allowed) == (burst, self.spent[key] + max(1, cost) <= burst)
        self.spent[key] += cost * verdict.allowed
        assert verdict.remaining == max(0, burst - self.spent[key])

    def entry(self, name: str, document: Any) -> None:
        self.entries.pop(name, None)
        if document is not None:
            self.entries[name] = document
        for engine in (self.engine, self.replica):
            engine.set_entry(name, None if document is None else parse_key_entry(name, document), 0)

    def rule(self, segments: dict[str, Any]) -> None:
        self.segments = segments
        for engine in (self.engine, self.replica):
            engine.set_rule(RULE, parse_rule(RULE, {**RULE_DOCUMENT, "segments": segments}), 0)

    def forget(self, key: str) -> None:
        self.spent[key] = 0
        for engine in (self.engine, self.replica):
            engine.forget(RULE, key, 0)

    def copy(self, key: str) -> None:
        copy = self.engine.copy(RULE, key, 0)
        assert (copy.spent if copy else 0) == self.spent[key] * MICROS
        if copy is not None:
            self.replica.merge(copy, 0, follows=True)

    def sweep(self) -> None:
        self.engine.rules[RULE].drop_empty()

    def check(self) -> None:
        held = [key for piece in self.engine.holdings() for _, key in piece]
        assert sorted(held) == sorted(key for key in KEYS if self.spent[key])
        assert self.engine.buckets == len(held)
        for key in KEYS:
            bucket = self.engine.inspect(RULE, key, 0)
            assert isinstance(bucket, Bucket)
            assert bucket.used == self.spent[key]


@given(st.lists(events, max_size=40))
def test_a_key_keeps_what_it_has_spent_however_entries_move_it(trace: list[Any]) -> None:
    world = World()
    for name, *args in trace:
        getattr(world, name)(*args)
        assert world.engine.buckets == sum(spent > 0 for spent in world.spent.values())
    world.check()
    for key in KEYS:
        world.copy(key)
    world.engine, world.replica = world.replica, world.engine
    world.check()
    for key in KEYS:
        world.spend(key, 1, None)
        world.engine.drop(RULE, key)
    assert world.engine.buckets == 0


def test_numbers_of_their_own_take_a_plan_only_while_some_key_has_spent_under_them() -> None:
    engine = Engine(buckets_max=1_000)
    engine.set_rule(RULE, parse_rule(RULE, RULE_DOCUMENT), 0)
    rule = engine.rules[RULE]
    for number, key in enumerate(KEYS * 50):
        engine.set_entry(key, parse_key_entry(key, {"rules": {RULE: {"rate": "1/d", "burst": 300 + number}}}), 0)
        verdict = engine.check(Check(RULE, key), 0)
        assert isinstance(verdict, Verdict)
        assert verdict.remaining == 300 + number - (number // len(KEYS) + 1)
        assert len(rule.own) <= len(KEYS)
    for key in KEYS:
        engine.set_entry(key, None, 0)
    assert not rule.own
