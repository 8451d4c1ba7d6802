"""What is known of a backend: the load that nodes have seen, the outcomes reported to them, signals from elsewhere.

What may live here: values that can be added up, and nothing that decides. A `Load` travels between nodes once a second
and never carries a point in time, only how long it spans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from limiter_node.core.adaptive.sketch import Sketch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRIORITIES = 10
"""0 is shed last, 9 first."""

SPANS_ALIKE = 0.1
"""Spans of nodes that were asked at the same time differ by less: their counts are left whole."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
InFlight = Annotated[float, msgspec.Meta(ge=0, le=2**53)]
Counts = Annotated[list[Count], msgspec.Meta(min_length=PRIORITIES, max_length=PRIORITIES)]


class Load(msgspec.Struct, array_like=True):
    """Checks for a backend and outcomes reported of it, over `span_ns`, at one node or (merged) at all of them."""

    span_ns: Annotated[int, msgspec.Meta(gt=0, le=2**53)]
    nodes: int  # that this is the sum of
    offered: Counts  # checks by priority; peeks are not counted
    wanted: Counts  # of them, allowed by their own limits
    admitted: Counts  # of them, let through; where the backend's policy is `observe`, those that would have been
    completed: Count  # outcomes reported, whatever they were
    refused: Count  # of them 429, 503 or "error": the backend, or the way to it, took no more
    failed: Count  # of them any other 5xx
    timeouts: Count  # of them "timeout"
    latency: Sketch  # of all outcomes but timeouts and "error"
    in_flight: InFlight  # checks admitted and not yet reported, as estimated by the gates


class Signal(msgspec.Struct, frozen=True):
    """How a backend is doing, by one source: reports, a poll, or an outside monitor."""

    source: str  # "report", "poll" or "health"
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput: float  # answers per second, good or bad
    error_rate: float  # of them, refused or failed, 0 to 1
    refused_rate: float  # of them, refused: 0 to 1
    timeout_rate: float  # of them, timed out: 0 to 1
    samples: int  # that the quantiles are of
    in_flight: float | None = None  # requests at the backend, where the source can tell


class Policy(msgspec.Struct, frozen=True):
    """What people want for a backend (contract, section 4), defaults filled in."""

    mode: str = "on"  # "off", "observe" or "on"
    slo_ms: float | None = None  # None: learned, twice the normal p90
    error_rate_max: float = 0.05
    min: float = 0.05
    fallback: float | None = None  # None: hold
    stale_after_s: float = 10.0


class Decision(msgspec.Struct, frozen=True):
    """What the law decides; published as `multipliers/<backend>`."""

    multiplier: float  # 0 < m <= 1, on the plans of the rules that name the backend
    state: str  # "normal", "overload", "recovery", "hold", "fallback", ...
    reason: str  # for people: "p90 812 ms > 250 ms"
    rate: float | None = None  # checks per second admitted for the whole backend; None: no bound
    priorities: dict[str, float] = {}  # fraction of each priority's wanted checks that is admitted
    hold_rate: float | None = None  # what `rate` becomes when nothing more is heard for `expires_ms`
    expires_ms: int | None = None  # a deep cut that drains a queue ends by itself


def together(loads: Iterable[Load], *, nodes: int) -> Load:
    """What several nodes have seen, over their mean span; counts of a longer or shorter span are brought to that."""
    loads = list(loads)
    total = _nothing(sum(load.span_ns for load in loads) // len(loads), nodes)
    for load in loads:
        factor = total.span_ns / load.span_ns
        _add(total, load, 1.0 if abs(factor - 1) < SPANS_ALIKE else factor)
        total.in_flight += load.in_flight
    return total


def in_a_row(loads: Sequence[Load]) -> Load:
    """What one node has seen in several spans, one after the other."""
    total = _nothing(sum(load.span_ns for load in loads), 1)
    for load in loads:
        _add(total, load, 1.0)
    total.in_flight = loads[-1].in_flight
    return total


def _nothing(span_ns: int, nodes: int) -> Load:
    return Load(
        span_ns=span_ns,
        nodes=nodes,
        offered=[0] * PRIORITIES,
        wanted=[0] * PRIORITIES,
        admitted=[0] * PRIORITIES,
        completed=0,
        refused=0,
        failed=0,
        timeouts=0,
        latency=Sketch({}, 0.0),
        in_flight=0.0,
    )


def _add(total: Load, load: Load, factor: float) -> None:
    for counts, more in (
        (total.offered, load.offered),
        (total.wanted, load.wanted),
        (total.admitted, load.admitted),
    ):
        for priority, count in enumerate(more):
            counts[priority] += round(count * factor)
    total.completed += round(load.completed * factor)
    total.refused += round(load.refused * factor)
    total.failed += round(load.failed * factor)
    total.timeouts += round(load.timeouts * factor)
    total.latency.merge(load.latency)
