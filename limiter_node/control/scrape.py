"""A backend's own page to a signal: JSON as a monitor would write it, or two scrapes of Prometheus' text.

Pure. Prometheus' counters only grow, so what happened is the difference of two scrapes; a counter that went back was
reset, and counts from zero. Latencies are read off a histogram's buckets, linearly within one, as `histogram_quantile`
does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf, isfinite, isnan
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from limiter_node.core.backends import parse_health, signal
from limiter_node.core.errors import BadRule
from limiter_node.core.rules import decode_json

if TYPE_CHECKING:
    from limiter_node.core.adaptive.evidence import Signal
    from limiter_node.core.backends import Poll

Labels = tuple[tuple[str, str], ...]


@dataclass
class Scrape:
    """The counters of one page that matter."""

    buckets: dict[tuple[Labels, float], float] = field(default_factory=dict)  # by series and upper bound, in seconds
    requests: dict[Labels, float] = field(default_factory=dict)


class Page:
    """One backend's page, as it is read again and again. `read` raises `BadRule` when it is none."""

    def __init__(self, name: str, poll: Poll) -> None:
        self._name = name
        self._poll = poll
        self._before: tuple[Scrape, int] | None = None

    def read(self, body: bytes, now_ns: int) -> Signal | None:
        """The signal; None when it takes another reading to know."""
        if self._poll.format == "json":
            return parse_health(self._name, decode_json(body), "poll")
        scrape = parse_scrape(body, self._poll)
        before, self._before = self._before, (scrape, now_ns)
        if before is None or now_ns <= before[1]:
            return None
        return difference(before[0], scrape, (now_ns - before[1]) / 1e9, self._poll)


def parse_scrape(body: bytes, poll: Poll) -> Scrape:
    """The histogram and the counter that the poll names; raises `BadRule` when they are not there."""
    scrape = Scrape()
    try:
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                labels = dict(sample.labels)
                if poll.latency and sample.name == f"{poll.latency}_bucket":
                    bound = _bound(labels.pop("le"))
                    scrape.buckets[tuple(sorted(labels.items())), bound] = float(sample.value)
                elif poll.requests and sample.name in (poll.requests, f"{poll.requests}_total"):
                    scrape.requests[tuple(sorted(labels.items()))] = float(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise BadRule((f"no Prometheus text: {error}",)) from None
    if poll.latency and not scrape.buckets:
        raise BadRule((f"latency: there is no histogram {poll.latency!r}",))
    if poll.requests and not scrape.requests:
        raise BadRule((f"requests: there is no counter {poll.requests!r}",))
    return scrape


def difference(before: Scrape, after: Scrape, elapsed_s: float, poll: Poll) -> Signal | None:
    """What happened between two scrapes; None when nothing did."""
    grown = {labels: _growth(before.requests.get(labels, 0.0), value) for labels, value in after.requests.items()}
    total = sum(grown.values())
    errors = sum(count for labels, count in grown.items() if _is_error(dict(labels), poll))
    by_bound: dict[float, float] = {}
    for (labels, bound), value in after.buckets.items():
        count = _growth(before.buckets.get((labels, bound), 0.0), value)
        by_bound[bound] = by_bound.get(bound, 0.0) + count
    if not total:
        total = by_bound.get(inf, 0.0)
    if not total:
        return None
    p50, p90, p99 = (1e3 * histogram_quantile(by_bound, quantile) for quantile in (0.5, 0.9, 0.99))
    return signal("poll", p50, p90, p99, throughput=total / elapsed_s, error_rate=min(1.0, errors / total))


def histogram_quantile(by_bound: dict[float, float], quantile: float) -> float:
    """The latency (seconds) that this fraction of a cumulative histogram does not exceed; 0 when it is empty."""
    bounds = sorted(by_bound)
    total = by_bound[bounds[-1]] if bounds else 0.0
    low, below = 0.0, 0.0
    for bound in bounds:
        count = by_bound[bound]
        if total and count >= quantile * total:
            if bound == inf:
                return low  # nothing is known above the last bound
            return low + (bound - low) * (quantile * total - below) / max(count - below, 1e-12)
        low, below = bound, count
    return 0.0


def _bound(text: str) -> float:
    bound = float(text)
    if isnan(bound):
        raise ValueError(f"a bucket up to {text}")
    return bound


def _growth(before: float, after: float) -> float:
    growth = after - before if after >= before else after
    return max(growth, 0.0) if isfinite(growth) else 0.0


def _is_error(labels: dict[str, str], poll: Poll) -> bool:
    if poll.error_label is None:
        return False
    label, operator, value = poll.error_label
    told = labels.get(label, "")
    matches = told == value if operator in ("=", "!=") else re.fullmatch(value, told) is not None
    return matches != operator.startswith("!")
