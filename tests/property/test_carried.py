"""Copies that answers carry: the replica ends up with what the owner has, as if all had come in frames of copies."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from limiter_node.core.algorithms.token_bucket import UNIT, UNITS_PER_MICRO
from limiter_node.core.engine import Engine
from limiter_node.core.model import Check, Op
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.core.token_plan import TokenPlan
from tests.routers import TICK_NS, Routers

KEYS = tuple(f"k{number}" for number in range(6))  # of either node
RULES = (
    {"rate": "10/s", "burst": 20},
    {"rate": "1/d", "burst": 5},
    {"rate": "3/s", "burst": 9, "segments": {"premium": {"rate": "7/s", "burst": 30}}},
    {"rate": "10/s", "burst": 20, "durability": "sync"},
)
MICROS_MORE = 3
"""What rounding adds: up to a millionth, by what is refilled in a nanosecond, and of either once more on the way."""

keys, nodes = st.sampled_from(KEYS), st.sampled_from("ab")
events = st.one_of(
    st.tuples(st.just("check"), nodes, keys, st.sampled_from([1, 1, 1, 1, 2])),
    st.tuples(st.just("check"), nodes, keys, st.sampled_from([1, 1, 1, 1, 2])),
    st.tuples(st.just("frame"), nodes, st.lists(keys, min_size=2, max_size=6), st.just(1)),
    st.tuples(st.just("undo"), nodes, keys, st.sampled_from([Op.FORGET, Op.REFUND])),
    st.tuples(st.just("entry"), st.none(), st.just("nobody"), st.sampled_from([None, {"segment": "premium"}])),
    st.tuples(st.just("pass"), st.none(), st.none(), st.integers(1, 6)),
)


def play(fleet: Routers, event: tuple[str, Any, Any, Any]) -> None:
    match event:
        case "check", node, key, cost:
            fleet.ask(node, Check("api", key, cost))
        case "frame", node, several, _:
            for key in several:
                fleet.shortcut(node, key)
            fleet.talk()
        case "undo", node, key, op:
            fleet.ask(node, Check("api", key, op is Op.REFUND, op=op))
        case "entry", _, key, entry:
            for router in fleet.alive:
                router.engine.set_entry(key, parse_key_entry(key, entry) if entry else None, fleet.now_ns)
        case "pass", _, _, ticks:
            fleet.let_pass(ticks * TICK_NS)


@settings(max_examples=150)
@given(st.sampled_from(RULES), st.lists(events, min_size=5, max_size=40))
def test_a_replica_ends_up_with_what_the_owner_has(rule: dict[str, Any], played: list[Any]) -> None:
    fleet = Routers("a", "b", api=rule)
    for event in played:
        play(fleet, event)
    fleet.let_pass(10 * TICK_NS)
    for key in KEYS:
        spent = []
        for name in fleet.ring.holders(key):
            assert name is not None
            copy = fleet[name].engine.copy("api", key, fleet.now_ns)
            spent.append(copy.spent if copy else 0)
        at_owner, at_replica = spent
        assert at_owner <= at_replica <= at_owner + MICROS_MORE, key


@given(
    st.integers(1, 10**9),
    st.sampled_from(["1s", "7s", "1m", "1h", "366d"]),
    st.integers(1, 10**9),
    st.lists(st.integers(0, 10**10), min_size=1, max_size=20),
)
def test_what_is_told_of_a_grant_is_what_was_spent_rounded_up(
    count: int, period: str, burst: int, waits_ns: list[int]
) -> None:
    engine = Engine(buckets_max=10)
    engine.set_rule("api", parse_rule("api", {"rate": f"{count}/{period}", "burst": burst}), 0)
    plan = engine.rules["api"].default
    assert isinstance(plan, TokenPlan)
    now_ns = 0
    for wait_ns in waits_ns:
        now_ns += wait_ns
        grant = plan.grant("k", now_ns)
        if grant is not None:
            clock, spent = plan.table.clock, plan.spent("k", now_ns)
            more = plan.micros_spent(grant) * UNITS_PER_MICRO - spent
            a_nanosecond = -(-clock.num // clock.den)
            is_exact = grant[2] < 2**63 - 1
            assert 0 <= more < (UNITS_PER_MICRO + a_nanosecond if is_exact else UNIT)
