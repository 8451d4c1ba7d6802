"""What a key costs in memory, beside its name and its place in a dict."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest

from limiter_node.core.algorithms.token_bucket import UNIT
from limiter_node.core.engine import Engine
from limiter_node.core.model import MICROS, Check
from limiter_node.core.rules import parse_rule
from limiter_node.core.token_plan import TokenPlan

KEYS = [f"user:{number:08d}" for number in range(1_000)]
INT_BYTES = 32  # of up to 60 bits
NOW_NS = 5_000_000_000


def engine() -> Engine:
    """With a bucket of each key."""
    found = Engine(buckets_max=10_000)
    found.has_copies = False
    found.set_rule("api", parse_rule("api", {"rate": "100/s", "burst": 200}), 0)
    for key in KEYS:
        found.check(Check("api", key), NOW_NS)
    return found


def check(found: Engine, key: str) -> None:
    found.check(Check("api", key), NOW_NS + 1)


def check_two(found: Engine, key: str) -> None:
    found.check(Check("api", key, 2), NOW_NS + 1)


def take_copy(found: Engine, key: str) -> None:
    plan = found.rules["api"].default
    assert isinstance(plan, TokenPlan)
    plan.credit_units(key, 2 * UNIT, NOW_NS + 1)


@pytest.mark.parametrize("act", [check, check_two, take_copy])
def test_a_state_takes_no_more_memory_than_its_size(act: Callable[[Engine, str], None]) -> None:
    found = engine()
    shards = found.rules["api"].default.table.young
    for shard in shards:
        shard.update(dict.fromkeys(shard, 0))  # an integer that every process has anyway
    gc.collect()
    tracemalloc.start()
    try:
        for key in KEYS:
            act(found, key)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert all(state > 2**30 for shard in shards for state in shard.values())
    # A sum that keeps the room for its carry takes 4 bytes more, and by that the allocator's next size, 48.
    assert taken / len(KEYS) < INT_BYTES + 2


def test_what_is_refilled_after_292_years_only_is_told_in_whole_tokens() -> None:
    found = Engine(buckets_max=10)
    found.set_rule("api", parse_rule("api", {"rate": "1/366d", "burst": 1_000_000}), 0)
    plan = found.rules["api"].default
    assert isinstance(plan, TokenPlan)
    plan.charge("k", 1_000, NOW_NS)
    grant = plan.grant("k", NOW_NS)
    assert grant is not None
    assert plan.micros_spent(grant) == 1_001 * MICROS
