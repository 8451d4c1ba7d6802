"""A backend's page to a signal: JSON, and two scrapes of Prometheus' text."""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limiter_node.control.scrape import Page, histogram_quantile, parse_scrape
from limiter_node.core.backends import parse_backend
from limiter_node.core.errors import BadRule

if TYPE_CHECKING:
    from limiter_node.core.adaptive.evidence import Signal
    from limiter_node.core.backends import Poll

NS = 1_000_000_000


def poll(format_: str = "prometheus", **fields: Any) -> Poll:
    document = {"url": "http://orders/metrics", "format": format_, **fields}
    found = parse_backend("orders", {"poll": document}).poll
    assert found is not None
    return found


def histogram(*counts: float, bounds: tuple[str, ...] = ("0.1", "0.2", "0.4", "+Inf"), labels: str = "") -> str:
    """Cumulative buckets of `latency_seconds`."""
    return "".join(
        f'latency_seconds_bucket{{{labels}le="{bound}"}} {count}\n' for bound, count in zip(bounds, counts, strict=True)
    )


def requests(**by_code: float) -> str:
    return "".join(f'requests_total{{code="{code.removeprefix("c")}"}} {count}\n' for code, count in by_code.items())


def read(first: str, second: str, seconds: float = 1.0, **fields: Any) -> Signal | None:
    page = Page("orders", poll(**fields))
    assert page.read(first.encode(), 5 * NS) is None
    return page.read(second.encode(), 5 * NS + round(seconds * NS))


LATENCY: dict[str, Any] = {"latency": "latency_seconds"}
REQUESTS: dict[str, Any] = {"requests": "requests_total", "error_label": "code=~5.."}


# Prometheus.


def test_two_scrapes_are_what_happened_between_them() -> None:
    signal = read(
        histogram(10, 10, 10, 10) + requests(c200=1_000, c500=10),
        histogram(60, 100, 110, 110) + requests(c200=1_090, c500=20),
        seconds=2,
        **LATENCY,
        **REQUESTS,
    )
    assert signal is not None
    assert (signal.source, signal.throughput, signal.error_rate) == ("poll", 50, 0.1)
    assert (signal.p50_ms, signal.p90_ms) == pytest.approx((100, 200))
    assert signal.p99_ms == pytest.approx(380)


def test_one_scrape_tells_nothing() -> None:
    assert Page("orders", poll(**REQUESTS)).read(requests(c200=5).encode(), NS) is None


def test_two_scrapes_at_the_same_time_tell_nothing() -> None:
    assert read(requests(c200=5), requests(c200=6), seconds=0, **REQUESTS) is None


def test_a_time_without_requests_tells_nothing() -> None:
    page = requests(c200=5) + histogram(1, 2, 3, 4)
    assert read(page, page, **REQUESTS, **LATENCY) is None


def test_counters_that_were_reset_count_from_zero() -> None:
    signal = read(requests(c200=1_000, c500=50), requests(c200=6, c500=2), **REQUESTS)
    assert signal is not None
    assert (signal.throughput, signal.error_rate) == (8, 0.25)
    signal = read(histogram(100, 200, 300, 400), histogram(0, 10, 10, 10), **LATENCY)
    assert signal is not None
    assert (signal.throughput, signal.p50_ms) == pytest.approx((10, 150))


def test_a_series_that_is_new_counts_from_zero_and_one_that_has_gone_not_at_all() -> None:
    signal = read(requests(c200=100, c404=7), requests(c200=110, c500=10), **REQUESTS)
    assert signal is not None
    assert (signal.throughput, signal.error_rate) == (20, 0.5)


def test_series_of_all_labels_are_added_up() -> None:
    before = histogram(0, 0, 0, 0, labels='path="/a",') + histogram(5, 5, 5, 5, labels='path="/b",')
    after = histogram(10, 10, 10, 10, labels='path="/a",') + histogram(5, 15, 15, 15, labels='path="/b",')
    signal = read(before, after, **LATENCY)
    assert signal is not None
    assert (signal.throughput, signal.p50_ms, signal.error_rate) == pytest.approx((20, 100, 0))
    assert signal.p90_ms == pytest.approx(180)


def test_a_latency_above_the_last_bound_is_told_as_that_bound() -> None:
    signal = read(histogram(0, 0, 0, 0), histogram(0, 0, 0, 100), **LATENCY)
    assert signal is not None
    assert (signal.p50_ms, signal.p90_ms, signal.p99_ms) == (400, 400, 400)


def test_a_counter_is_found_with_and_without_its_ending() -> None:
    for name in ("requests", "requests_total"):
        signal = read(requests(c200=5), requests(c200=6), requests=name)
        assert signal is not None
        assert signal.throughput == 1


@pytest.mark.parametrize(
    ("label", "error_rate"),
    [
        (None, 0),
        ("code=500", 0.2),
        ("code!=500", 0.8),
        ("code=~5..", 0.3),
        ("code!~2..", 0.5),
        ("code=~.*", 1.0),
        ("code=~5", 0),  # a regular expression matches the whole value, as in Prometheus
        ("verb=", 1.0),  # a label that is not there is empty, as in Prometheus
        ("verb!=", 0),
        ("verb!~get", 1.0),
    ],
)
def test_which_series_are_errors(label: str | None, error_rate: float) -> None:
    signal = read(
        requests(c200=0, c404=0, c500=0, c502=0),
        requests(c200=50, c404=20, c500=20, c502=10),
        requests="requests_total",
        error_label=label,
    )
    assert signal is not None
    assert signal.error_rate == pytest.approx(error_rate)


GARBAGE = {
    "nothing": b"",
    "HTML": b"<html><body>It works!</body></html>",
    "not UTF-8": b"\xff\xfe",
    "another page": b"up 1\n",
    "no histogram": requests(c200=1).encode(),
    "no counter": histogram(1, 2, 3, 4).encode(),
    "no number": b'requests_total{code="200"} many\n',
    "no bound": b"latency_seconds_bucket 5\nrequests_total 1\n",
    "a bound that is no number": b'latency_seconds_bucket{le="fast"} 5\nrequests_total 1\n',
    "a bound of NaN": b'latency_seconds_bucket{le="NaN"} 5\nrequests_total 1\n',
    "an open quote": b'requests_total{code="200} 5\n',
    "an open brace": b'requests_total{code="200"',
    "a cut line": b"requests_total",
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_page_that_is_none_is_refused_and_forgotten(body: bytes) -> None:
    page = Page("orders", poll(**REQUESTS, **LATENCY))
    good = [histogram(n, n, n, n) + requests(c200=n) for n in (10, 30)]
    page.read(good[0].encode(), NS)
    with pytest.raises(BadRule):
        page.read(body, 2 * NS)
    signal = page.read(good[1].encode(), 3 * NS)
    assert signal is not None
    assert signal.throughput == 10


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-5", "-1e300"])
def test_counters_that_are_no_counts_are_nothing_that_happened(value: str) -> None:
    before = requests(c200=0, c500=0) + histogram(0, 0, 0, 0)
    signal = read(before, f'requests_total{{code="500"}} {value}\n' + histogram(0, 0, 0, 0), **REQUESTS, **LATENCY)
    assert signal is None
    signal = read(before, requests(c200=4) + f'requests_total{{code="500"}} {value}\n', **REQUESTS)
    assert signal is not None
    assert (signal.throughput, signal.error_rate) == (4, 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_page_or_refused(body: bytes) -> None:
    with suppress(BadRule):
        parse_scrape(body, poll(**REQUESTS))


@given(st.text('requests_total{}code="200",le= \n#5.eE+-naN\\', max_size=60))
def test_any_text_that_looks_like_a_page_is_one_or_refused(text: str) -> None:
    page = Page("orders", poll(**REQUESTS))
    page.read(requests(c200=1).encode(), NS)
    try:
        signal = page.read(text.encode(), 2 * NS)
    except BadRule:
        return
    assert signal is None or (signal.throughput > 0 and 0 <= signal.error_rate <= 1)


# JSON.


def test_a_page_of_json_is_a_signal_at_once() -> None:
    page = Page("orders", poll("json"))
    body = b'{"latency_ms": {"p50": 10, "p90": 20, "p99": 40}, "error_rate": 0.1, "throughput": 50}'
    for _ in range(2):
        signal = page.read(body, NS)
        assert signal is not None
        assert (signal.source, signal.p50_ms, signal.p90_ms, signal.p99_ms) == ("poll", 10, 20, 40)
        assert (signal.error_rate, signal.throughput, signal.samples) == (0.1, 50, 50)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"ok", "not JSON"),
        (b"[]", "document: must be an object"),
        (b"{}", "latency_ms: is required"),
        (b'{"latency_ms": 5}', "latency_ms: "),
        (b'{"latency_ms": {"p50": "fast"}}', "latency_ms.p50: "),
        (b'{"latency_ms": {}, "error_rate": 1.5}', "error_rate: "),
        (b'{"latency_ms": {}, "throughput": -1}', "throughput: "),
        (b'{"latency_ms": {}, "throughput": 1e300}', "throughput: "),
        (b'{"latency_ms": {"p50": NaN}}', "not JSON"),
        (b"[" * 100_000, ""),
    ],
)
def test_json_that_is_no_good_is_refused_by_its_field(body: bytes, told: str) -> None:
    with pytest.raises(BadRule) as caught:
        Page("orders", poll("json")).read(body, NS)
    assert str(caught.value).startswith(told)


# Quantiles of a histogram.


@st.composite
def histograms(draw: st.DrawFn) -> dict[float, float]:
    """Cumulative counts by ascending bounds, the last of them infinite or not."""
    bounds = sorted(draw(st.sets(st.floats(1e-6, 1e4), min_size=1, max_size=12)))
    if draw(st.booleans()):
        bounds.append(inf)
    counts = draw(st.lists(st.integers(0, 10**9), min_size=len(bounds), max_size=len(bounds)))
    return dict(zip(bounds, map(float, accumulate(counts)), strict=True))


@given(histograms(), st.floats(0, 1), st.floats(0, 1))
@example({0.1: 0.0, 0.2: 5.0, inf: 5.0}, 0.0, 0.5)
def test_a_quantile_is_monotone_and_within_the_bounds_of_its_bucket(
    by_bound: dict[float, float], first: float, second: float
) -> None:
    low, high = (histogram_quantile(by_bound, quantile) for quantile in sorted((first, second)))
    assert low <= high * (1 + 1e-9)
    finite = [bound for bound in by_bound if bound < inf]
    for quantile, found in zip(sorted((first, second)), (low, high), strict=True):
        rank = quantile * max(by_bound.values())
        above = [bound for bound in by_bound if by_bound[bound] >= rank]
        below = max((bound for bound in by_bound if bound < above[0]), default=0.0)
        upper = min(above[0], finite[-1] if finite else 0.0)
        if max(by_bound.values()):
            assert below * (1 - 1e-9) <= found <= upper * (1 + 1e-9)


def test_an_empty_histogram_has_quantiles_of_0() -> None:
    assert histogram_quantile({}, 0.5) == 0
    assert histogram_quantile({0.1: 0.0, inf: 0.0}, 0.99) == 0
