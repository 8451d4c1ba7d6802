"""Whatever is told of a backend, what is published of it is finite, in range, and read back by every node."""

from __future__ import annotations

from math import inf, isfinite, nan
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Load, Policy, Signal
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.sketch import INDEX_MAX, LATENCY_MAX_MS, Sketch
from limiter_node.core.backends import RATE_MAX, parse_record, record_json, signal

if TYPE_CHECKING:
    from collections.abc import Iterable

NS = 1_000_000_000
MOST = 2**53

counts = st.sampled_from([0, 1, 7, 400, 10**6, MOST]) | st.integers(0, MOST)


def numbers(most: float) -> st.SearchStrategy[float]:
    """From 0 up to the most that the wire lets in, extremes often."""
    return st.sampled_from([0.0, 5e-324, 1e-9, 1.0, 250.0, most]) | st.floats(0, most)


sketches = st.builds(
    Sketch,
    st.dictionaries(st.integers(0, INDEX_MAX), st.integers(1, MOST), max_size=3),
    numbers(MOST * LATENCY_MAX_MS),
)
by_priority = st.lists(counts, min_size=PRIORITIES, max_size=PRIORITIES)
loads = st.builds(
    Load,
    span_ns=st.sampled_from([1, NS, MOST]) | st.integers(1, MOST),
    nodes=st.just(1),
    offered=by_priority,
    wanted=by_priority,
    admitted=by_priority,
    completed=counts,
    refused=counts,
    failed=counts,
    timeouts=counts,
    latency=sketches,
    in_flight=numbers(MOST),
)
quantiles = numbers(inf)
signals = st.builds(
    signal,
    st.sampled_from(["poll", "health"]),
    quantiles,
    quantiles,
    quantiles,
    throughput=numbers(inf),
    error_rate=st.floats(0, 1),
)
ticks = st.tuples(st.none() | loads, st.none() | signals, st.sampled_from([0, 1, NS, 10**6 * NS]))
adopted = st.builds(
    Decision,
    multiplier=st.floats(0, 1, exclude_min=True),
    state=st.just("by hand"),
    reason=st.just(""),
    rate=st.none() | st.floats(0, RATE_MAX),
    priorities=st.dictionaries(st.sampled_from("059"), st.floats(0, 1)),
    hold_rate=st.none() | st.floats(0, RATE_MAX),
    expires_ms=st.none() | st.integers(0, 10**6),
)
policies = st.builds(
    Policy,
    mode=st.sampled_from(["on", "observe"]),
    slo_ms=st.none() | st.floats(5e-324, 86_400_000),
    error_rate_max=st.floats(0, 1),
    min=st.floats(0, 1, exclude_min=True),
    fallback=st.none() | st.floats(0, 1, exclude_min=True),
    stale_after_s=st.floats(1, 86_400),
)


def rates(decision: Decision) -> Iterable[float]:
    return (rate for rate in (decision.rate, decision.hold_rate) if rate is not None)


def test_no_absurd_number_comes_in_over_the_wire() -> None:
    ones = [1] * PRIORITIES
    good = Load(NS, 1, ones, ones, ones, 1, 0, 0, 0, Sketch({5: 1}, 1.0), 1.0)
    for bad in (nan, inf, -inf, -1.0, 1e300):
        for load in (replace(good, in_flight=bad), replace(good, latency=Sketch({5: 1}, bad))):
            with pytest.raises(msgspec.ValidationError):
                msgspec.msgpack.decode(msgspec.msgpack.encode(load), type=Load)


@given(policies, st.none() | adopted, st.lists(ticks, max_size=12))
def test_a_record_is_finite_and_in_range_whatever_was_told(
    policy: Policy, before: Decision | None, told: list[tuple[Load | None, Signal | None, int]]
) -> None:
    law, now_ns = Law(policy), 0
    if before is not None:
        law.adopt(before)
    for load, told_signal, pause_ns in told:
        now_ns += pause_ns
        decision = law.decide(load, told_signal, now_ns)
        assert 0 < decision.multiplier <= 1
        assert all(isfinite(rate) and rate >= 0 for rate in rates(decision))
        assert all(0 <= part <= 1 for part in decision.priorities.values())
        written = parse_record("orders", msgspec.json.decode(record_json(decision, 1, observed=False)))
        assert 0 < written.decision.multiplier <= 1
        assert all(0 <= rate <= RATE_MAX for rate in rates(written.decision))
