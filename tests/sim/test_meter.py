"""The judge's meter against the words of the promise: in any window, at most burst + rate x t."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.sim.meter import UNIT, Meter, numbers

GRANTS = st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 9)), max_size=12)  # (pause in ns, tokens)
RATES = st.tuples(st.integers(1, 1000), st.sampled_from([1, 2, 60, 3600, 86_400]), st.integers(1, 40))


@given(GRANTS, RATES)
def test_the_meter_overflows_exactly_when_some_window_holds_too_much(
    grants: list[tuple[int, int]], rate: tuple[int, int, int]
) -> None:
    count, period_s, burst = rate
    now = numbers(count, period_s, burst)
    meter, at_ns = Meter(0), 0
    granted: list[tuple[int, int]] = []
    for pause_ns, tokens in grants:
        at_ns += pause_ns
        granted.append((at_ns, tokens))
        meter.advance(at_ns, now.slope)
        fits = meter.fits(tokens, now.capacity, 0)
        meter.level += tokens * UNIT
        is_kept = all(
            sum(tokens for _, tokens in granted[first:]) * period_s * 10**9
            <= burst * period_s * 10**9 + count * (at_ns - granted[first][0])
            for first in range(len(granted))
        )
        assert fits == is_kept


def test_a_share_is_a_part_of_burst_and_rate_and_never_less_than_a_token() -> None:
    whole, third = numbers(30, 60, 10), numbers(30, 60, 10, parts=3)
    assert third.capacity == 3 * UNIT
    assert third.slope * 3 == whole.slope
    assert numbers(1, 1, 1, ppm=1, parts=9).capacity == UNIT
