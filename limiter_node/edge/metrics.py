"""What the node counts, and how Prometheus reads it.

The check path adds to plain integers; a collector turns them into metric families only when it is scraped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from limiter_node.core.model import Verdict


class RuleCounters:
    """Checks answered by this node under one rule, whoever decided them."""

    __slots__ = ("allowed", "degraded", "denied", "shadow_denied")

    def __init__(self) -> None:
        self.allowed = 0
        self.denied = 0
        self.shadow_denied = 0
        self.degraded = 0


class Counters:
    """All counters of the check path."""

    def __init__(self) -> None:
        self.rules: dict[str, RuleCounters] = {}
        self.unknown_rule = 0

    def of(self, rule: str) -> RuleCounters:
        """The counters of a rule that exists."""
        counters = self.rules.get(rule)
        if counters is None:
            counters = self.rules[rule] = RuleCounters()
        return counters

    def count(self, rule: str, verdict: Verdict) -> None:
        """Count one verdict under a rule that exists."""
        counters = self.of(rule)
        if not verdict.allowed:
            counters.denied += 1
        elif verdict.would_allow is False:
            counters.shadow_denied += 1
        else:
            counters.allowed += 1
        if verdict.degraded:
            counters.degraded += 1


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric that is read when it is scraped; with labels, `read` gives a number for each of their values."""

    text: str
    read: Callable[[], float | Mapping[str, float] | Mapping[tuple[str, ...], float]]
    label: str | tuple[str, ...] | None = None

    def add_to(self, family: CounterMetricFamily | GaugeMetricFamily) -> Metric:
        """Put in what is read now."""
        now = self.read()
        if not isinstance(now, Mapping):
            family.add_metric((), now)
            return family
        for value, number in now.items():
            family.add_metric((value,) if isinstance(value, str) else value, number)
        return family

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, str) else self.label


class Exposition:
    """Prometheus' text format of a node's numbers, read at the moment of a scrape.

    `gauges` and `totals` are {metric name: reading}. It has a registry of its own, so that several nodes can live in
    one process.
    """

    def __init__(self, counters: Counters, *, gauges: dict[str, Reading], totals: dict[str, Reading]) -> None:
        self._counters = counters
        self._gauges = gauges
        self._totals = totals
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The page of `GET /metrics`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The metric families as they stand (prometheus-client's collector interface)."""
        checks = CounterMetricFamily(
            "limiter_checks",
            "Checks answered by this node, whoever owned the key.",
            labels=("rule", "verdict"),
        )
        degraded = CounterMetricFamily(
            "limiter_degraded",
            "Degraded answers, whoever made them; see limiter_degraded_verdicts for the reasons.",
            labels=("rule",),
        )
        for rule, counters in self._counters.rules.items():
            checks.add_metric((rule, "allowed"), counters.allowed)
            checks.add_metric((rule, "denied"), counters.denied)
            checks.add_metric((rule, "shadow_denied"), counters.shadow_denied)
            degraded.add_metric((rule,), counters.degraded)
        yield checks
        yield degraded
        for kind, readings in ((CounterMetricFamily, self._totals), (GaugeMetricFamily, self._gauges)):
            for name, reading in readings.items():
                yield reading.add_to(kind(name, reading.text, labels=reading.labels))
