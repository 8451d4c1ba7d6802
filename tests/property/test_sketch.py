"""The sketch against the sorted list of what was put in."""

from math import ceil

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.adaptive.sketch import ALPHA, LATENCY_MAX_MS, Sketch

LATENCIES = st.lists(st.floats(0.001, 1e7, allow_nan=False), min_size=1, max_size=300)
QUANTILES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4).map(sorted)


def sketch_of(latencies_ms: list[float]) -> Sketch:
    sketch = Sketch({}, 0.0)
    for latency_ms in latencies_ms:
        sketch.add(latency_ms)
    return sketch


@given(LATENCIES, QUANTILES)
def test_every_quantile_is_within_one_per_cent(latencies_ms: list[float], quantiles: list[float]) -> None:
    ordered = sorted(latencies_ms)
    for quantile, told in zip(quantiles, sketch_of(latencies_ms).quantiles_ms(*quantiles), strict=True):
        true = ordered[max(0, ceil(quantile * len(ordered)) - 1)]
        assert abs(told - true) <= true * ALPHA * 1.001


@given(LATENCIES, LATENCIES)
def test_merging_is_the_same_as_counting_everything_in_one(first: list[float], second: list[float]) -> None:
    merged = sketch_of(first)
    merged.merge(sketch_of(second))
    whole = sketch_of([*first, *second])
    assert merged.counts == whole.counts
    assert abs(merged.mean_ms - whole.mean_ms) <= 1e-9 * whole.mean_ms


@given(LATENCIES)
def test_a_sketch_survives_the_wire(latencies_ms: list[float]) -> None:
    sketch = sketch_of(latencies_ms)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sketch), type=Sketch) == sketch


def test_an_empty_sketch_and_the_ends_of_the_scale() -> None:
    assert Sketch({}, 0.0).quantiles_ms(0.5, 0.99) == (0.0, 0.0)
    sketch = sketch_of([0.0, 1e300])
    assert sketch.quantiles_ms(0.0, 1.0)[1] <= LATENCY_MAX_MS * (1 + ALPHA)
    assert sketch.quantiles_ms(0.5) == sketch.quantiles_ms(0.0)
