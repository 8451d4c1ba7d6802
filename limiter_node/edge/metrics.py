"""How Prometheus reads a node: plain numbers are turned into metric families only when they are scraped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from limiter_node.edge.tally import Histogram


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


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """Histograms that are read when they are scraped, one for each value of the labels."""

    text: str
    read: Callable[[], Mapping[tuple[str, ...], Histogram]]
    labels: tuple[str, ...] = ()

    def add_to(self, family: HistogramMetricFamily) -> Metric:
        """Put in what is read now; Prometheus' buckets hold all that is within their bound."""
        for values, histogram in self.read().items():
            names = (*(str(bound_s) for bound_s in histogram.bounds_s), "+Inf")
            buckets = list(zip(names, accumulate(histogram.counts), strict=True))
            family.add_metric(values, buckets, histogram.sum_s)
        return family


class Exposition:
    """Prometheus' text format of a node's numbers, read at the moment of a scrape.

    `gauges`, `totals` and `histograms` are {metric name: reading}. It has a registry of its own, so that several nodes
    can live in one process.
    """

    def __init__(
        self, *, gauges: dict[str, Reading], totals: dict[str, Reading], histograms: dict[str, HistogramReading]
    ) -> None:
        self._gauges = gauges
        self._totals = totals
        self._histograms = histograms
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """The page of `GET /metrics`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The metric families as they stand (prometheus-client's collector interface)."""
        for kind, readings in ((CounterMetricFamily, self._totals), (GaugeMetricFamily, self._gauges)):
            for name, reading in readings.items():
                yield reading.add_to(kind(name, reading.text, labels=reading.labels))
        for name, histogram in self._histograms.items():
            yield histogram.add_to(HistogramMetricFamily(name, histogram.text, labels=histogram.labels))
