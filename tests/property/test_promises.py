"""What an owner promises of a denial holds: until it is over, the owner itself says what the asker makes of it.

Any limits, any past; looked at now, in between and in the last nanosecond.
"""

from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st
from msgspec.structs import replace

from limiter_node.core import denials
from limiter_node.core.engine import Engine
from limiter_node.core.fence import ALWAYS_NS
from limiter_node.core.model import Check, Verdict
from limiter_node.core.promises import Promises
from limiter_node.core.rules import parse_rule

S = 1_000_000_000
ALGORITHMS = ["token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log"]
WALL_NS = 1_795_651_200 * S

single = st.builds(
    lambda rate, algorithm: {"rate": rate, "algorithm": algorithm},
    st.sampled_from(["1/s", "3/s", "7/5s", "10/7s", "5/m", "1000/s", "1/366d"]),
    st.sampled_from(ALGORITHMS),
)
documents = st.one_of(single, st.lists(single, min_size=2, max_size=4).map(lambda limits: {"limits": limits}))
costs = st.sampled_from([0, 1, 1, 1, 2, 5, 2_000])
steps = st.lists(st.tuples(costs, st.one_of(st.integers(0, 3), st.integers(0, 4 * S))), min_size=1, max_size=40)
lives_ns = st.sampled_from([50_000_000, S, 100 * S])
shares = st.lists(st.fractions(0, 1), min_size=1, max_size=4)


ROUNDED_NS = 8_784
"""Until a bucket is full is told in whole units of refill: so long is one at the slowest rate, a token in 366 days."""


def assert_same(said: Verdict, told: Verdict) -> None:
    assert abs(said.reset_ns - told.reset_ns) <= ROUNDED_NS
    assert replace(said, reset_ns=0, limits=None) == replace(told, reset_ns=0, limits=None)
    for limit, other in zip(said.limits or (), told.limits or (), strict=True):
        assert abs(limit.reset_ns - other.reset_ns) <= ROUNDED_NS
        assert replace(limit, reset_ns=0) == replace(other, reset_ns=0)


@given(documents, steps, lives_ns, shares, st.integers(0, 3 * S))
def test_until_a_promise_is_over_the_owner_says_the_same_with_the_time_taken_off(
    document: dict[str, Any], steps: list[tuple[int, int]], life_ns: int, shares: list[Any], began_ns: int
) -> None:
    engine = Engine(buckets_max=100)
    engine.wall.offset_ns = WALL_NS
    engine.set_rule("api", parse_rule("api", document), 0)
    now_ns, made = began_ns, 0
    for cost, pause_ns in steps:
        now_ns += pause_ns
        check = Check("api", "k", cost)
        verdict = engine.check(check, now_ns)
        assert isinstance(verdict, Verdict)
        if verdict.allowed:
            continue
        lasts_ns = Promises(engine, life_ns).make(check, verdict, ALWAYS_NS, now_ns)
        made += lasts_ns > 0
        assert lasts_ns <= life_ns
        if verdict.limits is None and not verdict.remaining and verdict.reset_ns < 2**63 - 1:
            assert lasts_ns > 0, "nothing is left, and yet nothing is promised"
        for later_ns in {0, lasts_ns - 1, *(round(share * (lasts_ns - 1)) for share in shares)} if lasts_ns else ():
            said = engine.check(check, now_ns + later_ns)
            assert isinstance(said, Verdict)
            assert_same(said, denials._after(verdict, later_ns))
            for other in (0, 1, 2, 5):
                said = engine.check(Check("api", "k", other), now_ns + later_ns)
                assert isinstance(said, Verdict)
                assert not said.allowed
    event(f"promises made: {min(made, 3)}")
