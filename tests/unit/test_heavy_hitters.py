"""The sketch of the heaviest keys against exact counts."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.heavy_hitters import HeavyHitters

SIZE = 8


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50)), max_size=300))
def test_no_key_is_told_to_weigh_more_than_it_does_and_every_heavy_one_is_known(stream: list[tuple[int, int]]) -> None:
    hitters, exact = HeavyHitters(SIZE), Counter[tuple[str, str]]()
    for number, weight in stream:
        key = ("api", f"client:{number}")
        hitters.add(key, weight)
        exact[key] += weight
    told = hitters.at_least()
    assert len(told) <= SIZE
    assert all(weight <= exact[key] for key, weight in told.items())
    total = exact.total()
    # The error of any key is below total / SIZE: one that weighs more than twice that is told with more than half.
    for key, weight in exact.items():
        if weight > 2 * total / SIZE:
            assert told.get(key, 0) >= weight - total / SIZE


def test_a_few_keys_are_counted_exactly() -> None:
    hitters = HeavyHitters(SIZE)
    for number in range(SIZE):
        hitters.add(("api", str(number)), number + 1)
        hitters.add(("api", str(number)), 10)
    assert hitters.at_least() == {("api", str(number)): number + 11 for number in range(SIZE)}
