"""Copies taken in the short way: what was spent is the same merged as itself and written out as an account."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from limiter_node.core.engine import Engine
from limiter_node.core.model import ANY_PERIOD, FORGOTTEN_SPENT, Copy, Entry, Hold
from limiter_node.core.rules import parse_key_entry, parse_rule

KEYS = ("bob", "guest:7")
RULES: dict[str, dict[str, Any]] = {
    "one": {"rate": "10/s", "burst": 50},
    "some": {"rate": "10/s", "burst": 50, "segments": {"premium": {"rate": "20/s", "burst": 90}}},
    "joint": {"limits": [{"rate": "10/s", "burst": 50}, {"rate": "100/m", "algorithm": "sliding_window"}]},
}
ENTRIES: tuple[dict[str, Any], ...] = ({"segment": "premium"}, {"rules": {"one": {"rate": "5/s", "burst": 7}}})

copies = st.builds(
    Copy,
    st.sampled_from([*RULES, "gone"]),
    st.sampled_from(KEYS),
    st.sampled_from(["default", "premium", "never heard of"]),
    st.integers(FORGOTTEN_SPENT, 100_000_000),
    st.sampled_from([[], [], [Entry("token_bucket", 1, [3_000_000, 5])]]),
    st.sampled_from([(), (), (Hold("batch", 0, 2, 1_000_000_000),)]),
)
changes = st.tuples(st.sampled_from(["bob", "guest:*"]), st.sampled_from([*ENTRIES, None]))
waits_ns = st.sampled_from([0, 0, 1_000_000, 2_000_000_000])
steps = st.lists(st.tuples(waits_ns, st.one_of(copies, copies, copies, changes)), min_size=15, max_size=60)


def engine() -> Engine:
    made = Engine(buckets_max=100)
    for name, rule in RULES.items():
        made.set_rule(name, parse_rule(name, rule), 0)
    return made


def told(made: Engine, now_ns: int) -> list[Any]:
    """All that an engine would tell another node."""
    return [made.buckets, *(made.copy(rule, key, now_ns) for rule in [*RULES, "gone"] for key in KEYS)]


def written_out(copy: Copy) -> Copy:
    """The same as an account, which is merged in the long way; what is to be forgotten, or kept as it is, stays."""
    if copy.account or copy.spent == FORGOTTEN_SPENT or copy.rule not in RULES:
        return copy
    return replace(copy, account=[Entry("token_bucket", ANY_PERIOD, [copy.spent, 0])])


@given(steps, st.booleans())
def test_what_is_credited_is_what_would_have_been_merged(taken: list[tuple[int, Any]], follows: bool) -> None:
    short, long = engine(), engine()
    now_ns = 0
    for later_ns, step in taken:
        now_ns += later_ns
        for made in (short, long):
            if not isinstance(step, Copy):
                name, entry = step
                made.set_entry(name, parse_key_entry(name, entry) if entry else None, now_ns)
            else:
                made.merge(step if made is short else written_out(step), now_ns, follows=follows)
        assert told(short, now_ns) == told(long, now_ns)
