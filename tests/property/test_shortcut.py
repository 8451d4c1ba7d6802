"""The short way against the long one: two routers with the same past, of which one may take the shortcut.

Whatever the trace, both give the same verdicts and end with the same buckets.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limiter_node.core.backends import parse_record
from limiter_node.core.engine import Engine
from limiter_node.core.model import Check, Member, Verdict
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.core.shortcut import Shortcut

S = 1_000_000_000
KEYS = [f"k{number}" for number in range(4)]

numbers = st.fixed_dictionaries(
    {"rate": st.sampled_from(["1/s", "3/s", "100/m", "10/7s", "1/366d"]), "burst": st.integers(1, 5)}
)
documents = st.builds(
    lambda limits, segments, shadow, durability, backend: {
        **limits,
        **backend,
        "segments": segments,
        "shadow": shadow,
        "durability": durability,
    },
    numbers,
    st.sampled_from([{}, {"free": {"rate": "1/s", "burst": 2}}]),
    st.sampled_from([False, False, True]),
    st.sampled_from(["async", "async", "sync"]),
    st.sampled_from([{"backend": "orders"}, {}]),
)
NAMES = [*KEYS, "k*", "k?", "*0", "?1"]
entries = st.sampled_from([None, {}, {"segment": "free"}, {"rules": {"api": {"rate": "2/s", "burst": 3}}}])
events = st.one_of(
    st.tuples(st.just("check"), st.sampled_from(KEYS), st.integers(0, 3 * S)),
    st.tuples(st.just("check"), st.sampled_from(KEYS), st.integers(0, 3 * S)),
    st.tuples(st.just("together"), st.lists(st.sampled_from(KEYS), max_size=6), st.integers(0, 3 * S)),
    st.tuples(st.just("cost"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("tick"), st.none(), st.integers(S, 9 * S)),
    st.tuples(st.just("rule"), st.none(), st.none() | documents),
    st.tuples(st.just("entry"), st.sampled_from(NAMES), entries),
    st.tuples(st.just("scale"), st.none(), st.sampled_from([0.01, 0.3333, 1.0])),
    st.tuples(st.just("ration"), st.none(), st.sampled_from([0.0, 0.5, 0.5, 1.0])),
)


def member(name: str) -> Member:
    return Member(name, f"{name}:1")


def router(*, buckets_max: int = 1_000) -> Router:
    def no_links(link: Any) -> Any:
        raise AssertionError(link)

    node = Router("a", Engine(buckets_max=buckets_max), peer_timeout_ns=S // 10, open_link=no_links)
    node.set_ring(Ring(1, {"a": member("a")}), 0)
    return node


def verdict(node: Router, key: str, outcome: Any, now_ns: int) -> Any:
    """What the short way has come to; what the router has, if that is nothing."""
    if isinstance(outcome, tuple):
        (limit, window_s), remaining, reset_ns = outcome
        return Verdict(True, limit, remaining, reset_ns, 0, window_s)
    return outcome or node.check(Check("api", key), now_ns)


def play(node: Router, shortcut: Shortcut | None, event: tuple[str, Any, Any], now_ns: int) -> Any:
    """Do what the event says; returns the verdict of a check, or those of several."""
    engine = node.engine
    match event:
        case "check", key, _:
            return verdict(node, key, shortcut and shortcut.check("api", key, now_ns), now_ns)
        case "together", keys, _:
            outcomes = (shortcut and shortcut.checks("api", keys, now_ns)) or [None] * len(keys)
            return [verdict(node, key, outcome, now_ns) for key, outcome in zip(keys, outcomes, strict=True)]
        case "cost", key, cost:
            return node.check(Check("api", key, cost), now_ns)
        case "tick", _, _:
            engine.tick(now_ns)
        case "rule", _, document:
            engine.set_rule("api", document and parse_rule("api", document), now_ns)
        case "entry", name, document:
            engine.set_entry(name, None if document is None else parse_key_entry(name, document), now_ns)
        case "scale", _, multiplier:
            engine.backends.set_record("orders", parse_record("orders", {"multiplier": multiplier}), now_ns)
            engine.rescale("orders", now_ns)
        case "ration", _, fraction:
            document = {"multiplier": 1.0, "priorities": {"5": fraction}}
            engine.backends.set_record("orders", parse_record("orders", document), now_ns)
            engine.rescale("orders", now_ns)
    return None


@settings(max_examples=200)  # cheap, and its corners are far apart
@given(document=documents, trace=st.lists(events, max_size=60), has_peer=st.booleans())
def test_the_short_way_comes_to_what_the_long_one_does(
    document: dict[str, Any], trace: list[Any], has_peer: bool
) -> None:
    short, long = router(), router()
    shortcut = Shortcut(short)
    now_ns = 0
    for node in (short, long):
        play(node, None, ("rule", None, document), now_ns)
        if has_peer:  # which cannot be reached, and owns half of the keys
            node.ring = Ring(2, {"a": member("a"), "c": member("c")})
            node.engine.has_copies = True
    for event in trace:
        if event[0] in ("check", "together", "tick"):
            now_ns += event[2]
        assert play(short, shortcut, event, now_ns) == play(long, None, event, now_ns)
        assert short.engine.buckets == long.engine.buckets
        assert sorted(short.engine.take_changed()) == sorted(long.engine.take_changed())
    for key in KEYS:
        assert short.engine.inspect("api", key, now_ns) == long.engine.inspect("api", key, now_ns)
    gates = [node.engine.backends.gate("orders") for node in (short, long)]
    offered, wanted, admitted = ([getattr(gate, name) for gate in gates] for name in ("offered", "wanted", "admitted"))
    assert offered[0] == offered[1]
    assert wanted[0] == wanted[1]
    assert admitted[0] == admitted[1]


@pytest.fixture
def node() -> Router:
    node = router()
    node.engine.set_rule("api", parse_rule("api", {"rate": "1/s", "burst": 3}), 0)
    return node


def test_the_short_way_is_taken_by_keys_new_young_and_old(node: Router) -> None:
    shortcut = Shortcut(node)
    assert shortcut.check("api", "k", 0) == ((3, 3), 2, S)
    assert shortcut.check("api", "k", 0) == ((3, 3), 1, 2 * S)
    plan = node.engine.rules["api"].default
    plan.table.rotate(3 * S)
    assert shortcut.check("api", "k", 3 * S) == ((3, 3), 2, S)
    assert node.engine.buckets == 1


def test_many_checks_go_on_where_those_before_them_ended(node: Router) -> None:
    shortcut = Shortcut(node)
    assert shortcut.checks("api", ["k"] * 4, 0) == [((3, 3), 2, S), ((3, 3), 1, 2 * S), ((3, 3), 0, 3 * S), None]
    node.engine.has_copies = True
    granted, denied = shortcut.checks("api", ["l", "k"], 0) or []
    assert granted
    assert denied is None
    assert node.engine.take_changed() == [("api", "l")]
    node.ring = Ring(2, {"b": member("b")})
    assert shortcut.checks("api", ["m"], 0) == [node.check(Check("api", "n"), 0)]
    assert shortcut.checks("none", ["m"], 0) is None


def test_many_checks_find_keys_of_the_old_generation_full_and_not(node: Router) -> None:
    shortcut = Shortcut(node)
    table = node.engine.rules["api"].default.table
    assert shortcut.checks("api", ["full", "spent", "spent", "spent"], S)
    assert table.rotate(3 * S) == []
    assert not any(table.young)
    # Three tokens were spent of one key, of which two are back, and one of the other, which is.
    assert shortcut.checks("api", ["full", "spent"], 3 * S) == [((3, 3), 2, S), ((3, 3), 1, 2 * S)]
    assert node.engine.buckets == len(table) == 2
    assert not any(table.old)


def test_many_checks_leave_a_key_that_may_have_been_in_another_segment_to_the_router(node: Router) -> None:
    document = {"rate": "1/s", "burst": 3, "segments": {"free": {"rate": "1/s"}}}
    node.engine.set_rule("api", parse_rule("api", document), 0)
    assert Shortcut(node).checks("api", ["k"], 0) == [None]


def test_many_checks_for_which_room_may_have_to_be_made_are_left_to_the_router() -> None:
    node = router(buckets_max=3)
    node.engine.set_rule("api", parse_rule("api", {"rate": "1/s", "burst": 3}), 0)
    shortcut = Shortcut(node)
    assert shortcut.checks("api", ["k", "l"], 0)
    assert shortcut.checks("api", ["m", "n"], 0) is None
    assert node.engine.buckets == 2


def test_a_denial_and_an_unknown_rule_are_left_to_the_router(node: Router) -> None:
    shortcut = Shortcut(node)
    assert [shortcut.check("api", "k", 0) is None for _ in range(4)] == [False, False, False, True]
    assert shortcut.check("none", "k", 0) is None


def test_a_key_with_an_entry_of_its_own_or_of_a_pattern_is_left_to_the_router(node: Router) -> None:
    shortcut = Shortcut(node)
    for name in ("k", "10.*", "2001:db8::/32"):
        node.engine.set_entry(name, parse_key_entry(name, {}), 0)
    taken = [key for key in ("k", "l", "10.1.1.1", "11.1.1.1", "2001:db8::1") if shortcut.check("api", key, 0)]
    assert taken == ["l", "11.1.1.1"]


def test_a_key_of_another_node_is_passed_on(node: Router) -> None:
    node.ring = Ring(2, {"b": member("b")})
    outcome = Shortcut(node).check("api", "k", 0)
    assert outcome == node.check(Check("api", "other"), 0)
    assert isinstance(outcome, Verdict)
    assert outcome.degraded  # there is no link to that node


def test_without_room_for_another_bucket_a_new_key_is_left_to_the_router() -> None:
    node = router(buckets_max=1)
    node.engine.set_rule("api", parse_rule("api", {"rate": "1/s", "burst": 3}), 0)
    shortcut = Shortcut(node)
    assert shortcut.check("api", "k", 0) is not None
    assert shortcut.check("api", "other", 0) is None
    assert shortcut.check("api", "k", 0) is not None


def test_a_node_with_nobody_to_tell_notes_no_changes_and_one_with_peers_does(node: Router) -> None:
    shortcut = Shortcut(node)
    assert shortcut.check("api", "k", 0)
    assert isinstance(node.check(Check("api", "k", 2), 0), Verdict)
    assert node.engine.take_changed() == []
    node.engine.has_copies = True
    assert shortcut.check("api", "l", 0)
    assert node.engine.take_changed() == [("api", "l")]


def test_a_check_that_the_backend_takes_no_more_of_is_denied_the_short_way_too(node: Router) -> None:
    node.engine.set_rule("api", parse_rule("api", {"rate": "1/s", "burst": 3, "backend": "orders"}), 0)
    shortcut = Shortcut(node)
    assert shortcut.check("api", "k", 0) == ((3, 3), 2, S)
    play(node, None, ("ration", None, 0.0), 0)
    denied = shortcut.check("api", "k", 0)
    assert isinstance(denied, Verdict)
    assert (denied.allowed, denied.reason, denied.remaining, denied.reset_ns) == (False, "backend_overload", 2, S)
    assert denied.retry_ns > 0
